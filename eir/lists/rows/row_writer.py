"""Writer of data files in the layout `eir`: rows of a table as CSV."""

from collections.abc import Iterator, Sequence

import numpy as np

from eir.device import MEID_BASE, ODD_BASE, SNR_KEYS, TAC_DIGITS, key_text
from eir.frames import pl
from eir.lists.record.reasons import REASONS_MAX, reason_at
from eir.lists.record.settings import DEVICES, PAIRS, SUBSCRIBERS, TYPES
from eir.lists.rows.layout import (
    BEGIN,
    BY_IMEI,
    BY_IMSI,
    BY_ODD,
    BY_PAIR,
    BY_RANGE,
    BY_TAC,
    BY_TYPE,
    DATE,
    REASON,
    UNTIL,
)
from eir.lists.table.columns import BEGINS, DAYS, ENDS, REASONS, SECONDS, Numbers, TableRows

CHUNK_ROWS = 1 << 20
"""Number of rows that are converted together."""


def frames_of(
    kind: str, rows: TableRows, reasons: Sequence[str], lasts: Numbers | None = None
) -> Iterator[pl.DataFrame]:
    """Yield the rows of a data file as frames of texts: the columns that identify an entry, then those of the columns `reason`, `date`, `begin` and `until` that the rows have.

    Args:
        kind: kind of the list.
        rows: rows of single identifiers, or first keys of ranges. A key has no flag of a whole TAC.
        reasons: texts by index.
        lasts: last key of each row; None if each row has one key.
    """
    is_other = rows.column(REASONS) == REASONS_MAX
    if is_other.any():  # a load gives the text `other` this index only after all other texts
        order = np.argsort(is_other, kind="stable")
        rows, lasts = rows.select(order), None if lasts is None else lasts[order]
    subject = _subject(kind, rows.keys, lasts)
    for start in range(0, max(len(rows), 1), CHUNK_ROWS):
        where = np.arange(start, min(start + CHUNK_ROWS, len(rows)))
        yield _frame(kind, subject, rows.select(where), reasons, None if lasts is None else lasts[where])


def _subject(kind: str, keys: Numbers, lasts: Numbers | None) -> Sequence[str]:
    """Choose the columns that identify an entry, such as `imei`."""
    if kind != DEVICES:
        return {PAIRS: BY_PAIR, TYPES: BY_TYPE}.get(kind, BY_IMSI)
    if lasts is None:
        return BY_ODD if (keys >= np.uint64(ODD_BASE)).any() else BY_IMEI
    is_whole = (keys % np.uint64(SNR_KEYS) == 0) & (lasts - keys == np.uint64(SNR_KEYS - 1))
    return BY_TAC if is_whole.all() else BY_RANGE


def _frame(
    kind: str, subject: Sequence[str], rows: TableRows, reasons: Sequence[str], lasts: Numbers | None
) -> pl.DataFrame:
    texts = pl.Series([None, *(reason_at(reasons, index) for index in range(1, REASONS_MAX + 1))])
    columns = {}
    for name in subject:
        if name == "tac":
            columns[name] = _digits(rows.keys // np.uint64(SNR_KEYS), TAC_DIGITS)
        elif name == "imsi":
            keys = rows.keys if kind == SUBSCRIBERS else rows.column(SECONDS)
            columns[name] = pl.Series(keys).cast(pl.String).str.slice(1)
        elif name == "device_type":
            columns[name] = texts.gather(rows.column(REASONS))
        else:
            columns[name] = _identifiers(rows.keys if name != "imei_to" or lasts is None else lasts)
    if rows.columns[REASONS] is not None and kind != TYPES:
        columns[REASON] = texts.gather(rows.column(REASONS))
    if rows.columns[DAYS] is not None:
        columns[DATE] = pl.Series(rows.column(DAYS)).replace(0, None).cast(pl.Int32).cast(pl.Date)
    for name, index in ((BEGIN, BEGINS), (UNTIL, ENDS)):
        if rows.columns[index] is not None:
            seconds = pl.Series(rows.column(index)).replace(0, None).cast(pl.Int64)
            columns[name] = (seconds * 1000).cast(pl.Datetime("ms"))
    return pl.DataFrame(columns)


def _identifiers(keys: Numbers) -> pl.Series:
    is_odd = keys >= np.uint64(MEID_BASE)
    texts = _digits(np.where(is_odd, 0, keys), 14)
    if is_odd.any():
        texts.scatter(np.flatnonzero(is_odd), [key_text(key) for key in keys[is_odd].tolist()])
    return texts


def _digits(numbers: Numbers, digits: int) -> pl.Series:
    """Convert numbers to decimal texts of a fixed length."""
    return pl.Series(numbers + np.uint64(10**digits)).cast(pl.String).str.slice(1)


def csv_text(frame: pl.DataFrame, *, header: bool) -> str:
    """Return the rows of a frame as CSV; `header`: also the line of column names."""
    return frame.write_csv(include_header=header, datetime_format="%Y-%m-%dT%H:%M:%SZ")


def to_dirbs(frame: pl.DataFrame, release_day: str) -> pl.DataFrame:
    """Convert a frame of a list of IMEIs to the columns of DIRBS's blacklist. A row without a date gets the day of the release, such as `20261124`."""
    missing = pl.Series([None] * len(frame), dtype=pl.String)
    days = frame[DATE] if DATE in frame.columns else missing
    reasons = frame[REASON] if REASON in frame.columns else missing
    return pl.DataFrame(
        {
            "IMEI": frame["imei"],
            "block_date": days.cast(pl.Date).dt.strftime("%Y%m%d").fill_null(release_day),
            "reasons": reasons,
        }
    )

"""Export of a list to a data file, from which a release with the same content can be published.

The file begins with one row for each reason that the list has, in the order of the reasons' indexes, so that a load of the file into an empty
list assigns the indexes in this order.
"""

import csv
from collections.abc import Callable, Mapping, Sequence
from typing import TextIO

import numpy as np

from eir.device import MEID_BASE, ODD_BASE, SNR_KEYS, TAC_DIGITS, imsi_text, key_text
from eir.errors import EirError
from eir.lists.log.change import Head
from eir.lists.record.entries import date_text, until_text
from eir.lists.record.first_days import DAY_S
from eir.lists.record.listed_entries import chunks_of, display_order, first_keys, is_whole
from eir.lists.record.reasons import REASONS_MAX, reason_at
from eir.lists.record.settings import DEVICES, PAIRS, SUBSCRIBERS, TYPES
from eir.lists.rows.layout import (
    ALLOCATED,
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
from eir.lists.table.columns import BEGINS, DAYS, ENDS, REASONS, SECONDS, TableRows
from eir.lists.table.table import Table

EIR, IMEI, DIRBS_BLACKLIST = EXPORTS = ("eir", "imei", "dirbs-blacklist")
"""Layouts in which `eir export` writes a list."""
RANGES_MAX = 100_000
"""Maximum number of entries of a list with whole TACs and single identifiers that are written as ranges to one file. A load of ranges is slower than a load of single identifiers."""
_LOST: Mapping[str, str] = {
    "identifier": "identifiers that are no IMEI",
    "tac": "whole TACs",
    "imei_from": "whole TACs",
    BEGIN: "begins",
    UNTIL: "ends",
    REASON: "reasons",
    DATE: "dates",
}
"""Columns that another layout than EIR may lack, with the lost content for a message."""
_IN_DIRBS = (REASON, DATE)
"""Columns that the layout `dirbs-blacklist` has and the layout `imei` lacks."""


def export_table(
    head: Head, table: Table, layout: str, out: TextIO, *, only_tacs: bool | None = None,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> int:  # fmt: skip
    """Write a list as a CSV file and return the number of rows.

    Args:
        head: head of the list.
        table: content of the list.
        layout: one of EXPORTS.
        out: file that receives the rows.
        only_tacs: True to write only whole TACs, False to write only single identifiers, None for both. To publish the
            whole list from two files, the file of the single identifiers must be the first one.
        progress: receives the number of written rows and the number of all rows.

    Raises:
        EirError: before a row is written, if the layout lacks a column that the list needs, or if one file cannot have
            all entries. `imei` has identifiers only. `dirbs-blacklist` has neither whole TACs nor times. Both are for
            lists of devices only.
    """
    rows = display_order(table.rows())
    if only_tacs is not None:
        rows = rows.select(is_whole(rows) == only_tacs)
    if not only_tacs and rows.columns[REASONS] is not None:
        rows = _with_each_reason_first(rows)
    columns = _columns(head.kind, rows, _subject(head.kind, rows, only_tacs))
    if layout != EIR:
        refuse_loss(head.kind, columns, layout)
    writer = csv.writer(out, lineterminator="\n")
    if layout == DIRBS_BLACKLIST:
        writer.writerow(("IMEI", "block_date", "reasons"))
        columns = ["imei", DATE, REASON]
    elif layout != IMEI:
        writer.writerow(columns)
    reasons = [reason_at(head.reasons, index) for index in range(REASONS_MAX + 1)]
    release_day = (head.issued or head.loaded_at or "")[:10].replace("-", "")
    done = 0
    for part in chunks_of(rows):
        texts = [_texts(head.kind, column, part, reasons) for column in columns]
        if layout == DIRBS_BLACKLIST:
            texts[1] = [day.replace("-", "") or release_day for day in texts[1]]
        writer.writerows(zip(*texts, strict=True))
        done += len(part)
        progress(done, len(rows))
    return len(rows)


def _with_each_reason_first(rows: TableRows) -> TableRows:
    """Move the first row with each reason before all other rows, in the order of the reasons' indexes."""
    indexes, first = np.unique(rows.column(REASONS), return_index=True)
    first = first[indexes > 0]
    return rows.select(np.concatenate((first, np.delete(np.arange(len(rows)), first))))


def _subject(kind: str, rows: TableRows, only_tacs: bool | None) -> Sequence[str]:
    """Choose the columns that identify an entry in the export of a list, such as `imei`.

    Raises:
        EirError: if one file cannot have all entries.
    """
    if kind != DEVICES:
        return {PAIRS: BY_PAIR, TYPES: BY_TYPE}.get(kind, BY_IMSI)
    whole = is_whole(rows)
    highest = int(rows.keys[~whole].max(initial=0))
    if only_tacs or (only_tacs is None and len(rows) and whole.all()):
        return BY_TAC
    if only_tacs is False or not whole.any():
        return BY_ODD if highest >= ODD_BASE else BY_IMEI
    if highest >= MEID_BASE:
        content = "MEIDs with letters, or what is no IMEI,"
    elif len(rows) > RANGES_MAX:
        content = f"{len(rows):,} entries"
    else:
        return BY_RANGE
    raise EirError(
        f"the list holds whole TACs beside {content}, which no one file can hold: write two, the first with --only imei and the second with "
        "--only tac, and publish them in this order"
    )


def _columns(kind: str, rows: TableRows, subject: Sequence[str]) -> list[str]:
    """Choose the columns for the export of a list."""
    first = {ALLOCATED: DAYS} if kind == TYPES else {REASON: REASONS, DATE: DAYS}
    optional = first | {BEGIN: BEGINS, UNTIL: ENDS}
    return [*subject, *(name for name, index in optional.items() if rows.columns[index] is not None)]


def _texts(kind: str, column: str, rows: TableRows, reasons: Sequence[str]) -> list[str]:
    """Return the fields of one column of the exported file."""
    if column in {REASON, "device_type"}:
        return [reasons[index] for index in rows.column(REASONS).tolist()]
    if column in {DATE, ALLOCATED}:
        return _each(rows.column(DAYS).tolist(), lambda day: date_text(day * DAY_S))
    if column in {BEGIN, UNTIL}:
        return _each(rows.column(BEGINS if column == BEGIN else ENDS).tolist(), until_text)
    keys = first_keys(rows)
    if column == "tac":
        return [f"{key // SNR_KEYS:0{TAC_DIGITS}d}" for key in keys.tolist()]
    if column == "imei_to":
        keys = np.where(is_whole(rows), keys + np.uint64(SNR_KEYS - 1), keys)
    if column == "imsi":
        return [imsi_text(key) for key in (keys if kind == SUBSCRIBERS else rows.column(SECONDS)).tolist()]
    return [key_text(key) for key in keys.tolist()]


def _each(values: Sequence[int], text_of: Callable[[int], str]) -> list[str]:
    """Convert numbers with few different values to texts."""
    texts = {value: text_of(value) for value in set(values)}
    return [texts[value] for value in values]


def refuse_loss(kind: str, columns: Sequence[str], layout: str) -> None:
    """Raise EirError if a layout lacks one of the columns that a list needs."""
    lost = [_LOST[column] for column in columns if column in _LOST]
    if layout == DIRBS_BLACKLIST:
        lost = [_LOST[column] for column in columns if column in _LOST and column not in _IN_DIRBS]
    if kind != DEVICES:
        lost = [kind]
    if lost:
        losses = " and ".join(lost)
        raise EirError(f"the layout {layout} has no place for {losses}, which the list holds; the layout {EIR} has")

"""Reader of data files, which parses rows to arrays of keys.

polars' CSV reader and vectorised casts parse a piece of the file. If a quote does not close within its line, or if polars
rejects the piece, Python's csv module parses it line by line with the same result.

polars parses on one thread, because a load shares the host with a server and may use only one core. Importing polars takes
30 MB and 0.2 s, so modules that may not need it import this module where they use it.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from eir.device import IMEI_LENGTHS, IMSI_LENGTHS, KEY_DIGITS, MEID_BASE, SNR_KEYS, TAC_DIGITS, device_type_key, odd_key
from eir.errors import IdentifierError, ReleaseRefused
from eir.lists.pages.content import Keys, ReasonIndexes, Seconds
from eir.lists.pages.dates import DAY_MAX, Days
from eir.lists.pages.first_days import DAY_S
from eir.lists.record.reasons import REASON_CHARS_MAX, REASONS_MAX, Reasons
from eir.lists.record.settings import Layout
from eir.lists.rows.build import Rows
from eir.lists.rows.layout import (
    ACTION,
    BOM,
    BY_FIRST_SEEN,
    BY_PAIR,
    BY_RANGE,
    BY_TAC,
    BY_TYPE,
    CHANGE,
    DATE,
    REASON,
    UNTIL,
    USUAL_DATES,
    WHEN,
    Plan,
    csv_fields,
    day_key,
    fields_of,
    find_layout,
    plan_of,
    row_fault,
    until_seconds,
)  # fmt: skip
from eir.lists.rows.records import Frame

os.environ.setdefault("POLARS_MAX_THREADS", "1")
import polars as pl  # reads POLARS_MAX_THREADS when it is imported

COMPLAINTS_MAX = 10
"""Bad rows that are named, with file, line and expectation but never with the identifier. All bad rows are counted."""

Mask: TypeAlias = NDArray[np.bool_]
Parsed: TypeAlias = tuple[Keys, Mask]
"""Key of each row, and which rows have a valid key."""

_DIRBS_JUNK = "^[0-9A-Fa-f*#]{1,16}$"
_MEID = "^[0-9A-Fa-f]{14}$"


WRONG_DATES, ENDED, ZEROS, FUTURE_DATES, LONG_ROWS = "wrong_dates", "ended", "zeros", "future_dates", "long_rows"
ODD = {
    WRONG_DATES: "its date is not like {dates}", ENDED: "its end (until) is over", ZEROS: "its IMEI is all zeros",
    FUTURE_DATES: "its date is more than a year ahead", LONG_ROWS: "it has more fields than the header",
}  # fmt: skip
"""Kind of an odd row → its fault."""


@dataclass(slots=True)
class OddRows:
    """Rows of one kind of probable mistake (`ODD`): their number, and the first of them."""

    count: int = 0
    named: list[str] = field(default_factory=list)
    """First rows of this kind, with file and line."""


@dataclass(slots=True, kw_only=True)
class Tally:
    """Limits, counts and faults of the rows in all files of a release."""

    bad_rows_max: int
    range_tacs_max: int
    check_digits: bool = False
    """Verify check digits, which have no effect and take time."""
    dates: bool = False
    """Parse the column `date` in a list of another kind than device types too."""
    keeps_dates: bool = False
    """Add these dates to the rows."""
    now_s: int | None = None
    """Unix seconds for odd rows, which are accepted but probably mistakes; None: odd rows are not counted."""
    complaints_max: int = COMPLAINTS_MAX
    each_bad: Callable[[str, int, str, bytes], None] | None = None
    """Receiver of each bad row: file, line, fault, and the row itself."""
    bad: int = 0
    skipped: int = 0
    """Junk identifiers, in layouts where they are normal."""
    wrong_check_digits: int = 0
    """IMEIs of 15 digits whose last digit is neither the check digit nor the spare 0 (TS 23.003 6.2.1)."""
    complaints: list[str] = field(default_factory=list)
    wide: list[str] = field(default_factory=list)
    """First bad rows, and first ranges over the limit."""
    odd: dict[str, "OddRows"] = field(default_factory=dict)
    """Odd rows by kind: a key of `ODD`."""


def read_rows(
    chunks: Iterable[bytes], *, name: str, layout: str, kind: str, rows: Rows | None, reasons: Reasons, tally: Tally,
    rows_max: int | None = None, removed: Rows | None = None, declared: Mapping[str, Layout] | None = None,
    actions: "Actions | None" = None,
) -> int:  # fmt: skip
    """Read the rows of one file; return their number, including bad and skipped rows but no blank lines.

    Args:
        chunks: content in pieces that end with a newline.
        name: name of the file for messages.
        layout: name of the layout.
        kind: kind of the list.
        rows: receives the rows; None to count them only.
        reasons: receives new reasons.
        tally: receives counts and faults.
        rows_max: maximum number of rows.
        removed: receives rows whose code removes an entry; None to count them only.
        declared: layouts of the configuration.
        actions: receives rows with codes instead of `rows` and `removed`. A caller that reads several files uses it so
            that the
            last row of all files counts.

    Raises:
        ReleaseRefused: `layout` if the header does not fit; `rows` if a record of the file states another count, or as
            soon as
            there are more than `rows_max`; `bad_rows` as soon as all files so far have more than `tally.bad_rows_max`; `range`
            as Rows.add_spans.
    """
    dialect = find_layout(name, layout, declared or {})
    gathered = actions or Actions()
    frame = Frame(name, dialect)
    plan: Plan | None = None
    count, line = 0, 1 + dialect.lines_before
    for piece in frame.lines(chunks):
        chunk = piece
        if plan is None:
            plan, chunk = plan_of(name, dialect, kind, piece, dates=tally.dates)
            line += _lines(piece) - _lines(chunk)
        if chunk:
            lines = _lines(chunk)
            bad, wide, odd = _read_chunk(chunk, lines, plan, (rows, reasons, tally), gathered)
            count += len(bad)
            tally.bad += int(bad.sum())
            _tally_rows(tally, plan, (name, line), chunk, (bad, wide, odd))
            if tally.bad > tally.bad_rows_max:
                detail = f"{tally.bad} bad rows at least, {tally.bad_rows_max} are allowed (bad_rows_max)"
                raise ReleaseRefused("bad_rows", "\n".join((detail, *tally.complaints)))
            if rows_max is not None and count > rows_max:
                raise ReleaseRefused("rows", f"{name} has {count} rows; the manifest says {rows_max}")
            line += lines
    if plan is None and dialect.names:
        raise ReleaseRefused("layout", f"{name} is empty; a header is expected")
    frame.check(count)
    if actions is None:
        gathered.move_to(rows, removed)
    return count


def _read_chunk(
    data: bytes,
    lines: int,
    plan: Plan,
    into: tuple[Rows | None, Reasons, Tally],
    actions: "Actions",
) -> tuple[Mask, Mask, Mapping[str, Mask]]:
    """Parse some lines of a file, and add their rows to the collections in `into`.

    Return three masks of rows: bad rows, rows with a range above the limit, and odd rows by kind of `ODD`.
    """
    rows, reasons, tally = into
    columns, layout = _columns(data, lines, plan), plan.layout
    if not len(columns[plan.subject[0]]):  # blank lines
        return np.zeros(0, bool), np.zeros(0, bool), {}
    plus = b"+" in data  # polars accepts a sign before a number; identifiers have none
    if tally.check_digits:
        tally.wrong_check_digits += sum(
            _wrong_check_digits(columns[name], plus) for name in plan.subject if name.startswith("imei")
        )
    _close_ranges(columns, plan)
    parsed = [_KEYS_OF[name](columns[name], plus) for name in plan.subject]
    keys = [numbers for numbers, _ in parsed]
    good = np.logical_and.reduce([mask for _, mask in parsed])
    until, goes = None, None
    if UNTIL in columns:
        until, readable = _ends(columns[UNTIL], layout.dates)
        good &= readable
    days, wrong = _days(columns, layout)
    if ACTION in columns:
        goes, readable = _codes(columns, layout)
        good &= readable
    wide = _ranges(plan, keys, good, tally)
    odd = {WRONG_DATES: wrong} | _probable_mistakes(data, plan, (keys[0], days, until), good, now_s=tally.now_s)
    bad = ~good
    if layout.junk and bad.any():
        junk = ~parsed[0][1] & _matches(columns[plan.subject[0]], _DIRBS_JUNK)
        tally.skipped += int(junk.sum())
        bad &= ~junk
    why = None if REASON not in columns else _reason_indexes(_expand_reason_codes(columns[REASON], layout), reasons)
    if plan.subject == BY_TAC:
        keys.append(keys[0] + np.uint64(SNR_KEYS - 1))
    if plan.subject == BY_TYPE:
        keys.insert(1, days)
    keys, why, until = [_some(each, good) for each in keys], _some(why, good), _some(until, good)
    since = _some(np.minimum(days // DAY_S, DAY_MAX - 1).astype(np.uint16), good) if tally.keeps_dates else None
    if goes is not None:
        when = columns[WHEN].cast(pl.Int64).to_numpy() if WHEN in columns else None
        actions.add(_Part(plan, keys, _some(goes, good), _some(when, good), why, until, since))
    elif rows is not None:
        _add(rows, plan, keys, why, until, since=since)
    return bad, wide, odd


def _probable_mistakes(
    data: bytes, plan: Plan, columns: tuple[Keys, Keys, Seconds | None], good: Mask, *, now_s: int | None
) -> dict[str, Mask]:
    """Return masks of good rows that are probably mistakes, by kind of `ODD`.

    `columns`: keys, days and expiries. If `now_s` is `None`, no row is a mistake.
    """
    if now_s is None:
        return {}
    keys, days, until = columns
    odd = {FUTURE_DATES: days > np.uint64(now_s + 365 * DAY_S), LONG_ROWS: _too_long(data, plan)}
    if plan.subject[0].startswith("imei"):
        odd[ZEROS] = keys == 0
    if until is not None:
        odd[ENDED] = (until > 0) & (until <= now_s)
    return {kind: which & good for kind, which in odd.items()}


def _too_long(data: bytes, plan: Plan) -> Mask:
    """Return a mask of the rows with more fields than the header, such as by a comma in an unquoted reason."""
    lines, separator = [line for line in data.split(b"\n") if line], plan.layout.separator
    counts = np.fromiter((line.count(separator.encode()) for line in lines), np.int64, len(lines))
    long = (counts >= plan.width) if plan.width else np.zeros(len(lines), bool)
    for row in np.flatnonzero(long):
        long[row] = len(csv_fields(lines[row], separator)) > plan.width
    return long


class _Part(NamedTuple):
    """Rows with a code that adds or removes an entry, in the order of the file."""

    plan: Plan
    keys: Sequence[Keys]
    """Arrays in the order of `_add`."""
    goes: Mask
    when: Seconds | None
    """Unix seconds, if the layout has times."""
    why: ReasonIndexes | None
    until: Seconds | None
    since: Days | None
    """Days of the column `date`, if dates are kept."""


class Actions:
    """Collection of rows with codes that add or remove an entry. Of each entry, the latest row counts.

    Without times, or at equal times, the last row counts.
    """

    def __init__(self) -> None:
        self._parts: list[_Part] = []

    def add(self, part: _Part) -> None:
        """Add rows with codes to the collection."""
        self._parts.append(part)

    def move_to(self, rows: Rows | None, removed: Rows | None) -> None:
        """Move the rows that count to `rows` (added entries) and `removed`; other rows are dropped."""
        parts, self._parts = [part for part in self._parts if len(part.goes)], []
        for part, counts in zip(parts, _latest(parts), strict=True):
            for target, which in ((rows, counts & ~part.goes), (removed, counts & part.goes)):
                if target is not None:
                    keys = [_some(each, which) for each in part.keys]
                    columns = _some(part.why, which), _some(part.until, which)
                    _add(target, part.plan, keys, *columns, since=_some(part.since, which))


def _latest(parts: Sequence[_Part]) -> list[Mask]:
    """Return for each part a mask of the rows that count: of several rows of one entry, only the latest.

    If no row removes an entry, all rows of the entry count, unless the layout has times.
    """
    gone = np.concatenate([part.keys[0][part.goes] for part in parts]) if parts else np.zeros(0, np.uint64)
    disputed = [
        np.ones(len(part.goes), bool) if part.when is not None else np.isin(part.keys[0], gone) for part in parts
    ]
    if not any(which.any() for which in disputed):
        return [~which for which in disputed]
    first, last = (
        np.concatenate([part.keys[at][which] for part, which in zip(parts, disputed, strict=True)]) for at in (0, -1)
    )
    when = np.concatenate([
        np.zeros(int(which.sum()), np.int64) if part.when is None else part.when
        for part, which in zip(parts, disputed, strict=True)
    ])  # fmt: skip
    order = np.lexsort((when, last, first))  # stable
    first, last = first[order], last[order]
    counts = np.zeros(len(order), bool)
    counts[order[np.append((first[1:] != first[:-1]) | (last[1:] != last[:-1]), True)]] = True
    masks, at = [], 0
    for which in disputed:
        mine = ~which
        mine[which] = counts[at : at + int(which.sum())]
        at += int(which.sum())
        masks.append(mine)
    return masks


def _close_ranges(columns: dict[str, pl.Series], plan: Plan) -> None:
    """Set the missing end of a range to the first identifier of the range."""
    if plan.may_be_open:
        columns["imei_to"] = columns["imei_from"].zip_with(columns["imei_to"].fill_null("") == "", columns["imei_to"])


def _ranges(plan: Plan, keys: Sequence[Keys], good: Mask, tally: Tally) -> Mask:
    """Return a mask of the rows whose range exceeds the limit.

    In `good`, rows whose range ends before it begins are cleared.
    """
    if plan.subject != BY_RANGE:
        return np.zeros(len(good), bool)
    good &= keys[0] <= keys[1]
    return good & (keys[1] - keys[0] >= np.uint64(tally.range_tacs_max * SNR_KEYS))


_Values = TypeVar("_Values", bound=NDArray[Any] | None)


def _some(values: _Values, which: Mask) -> _Values:
    return values if values is None or which.all() else cast("_Values", values[which])


def _add(
    rows: Rows,
    plan: Plan,
    keys: Sequence[Keys],
    why: ReasonIndexes | None,
    until: Seconds | None,
    *,
    since: Days | None,
) -> None:
    if plan.subject in {BY_PAIR, BY_TYPE, BY_FIRST_SEEN}:  # for BY_TYPE, keys[1] is the day of the TAC's allocation
        rows.add_pairs(keys[0], keys[-1], why, until, *keys[1:-1])
        return
    if since is not None:
        rows.dates.append(keys[0], keys[-1], since)
    if plan.may_be_open and (single := keys[0] == keys[1]).any():  # ranges would take longer
        rows.add(_some(keys[0], single), _some(why, single), _some(until, single))
        keys, why, until = [_some(each, ~single) for each in keys], _some(why, ~single), _some(until, ~single)
    if len(keys) == 1:
        rows.add(keys[0], why, until)
    elif len(keys[0]):
        rows.add_spans(keys[0], keys[1], why, until)


def _codes(columns: Mapping[str, pl.Series], layout: Layout) -> tuple[Mask, Mask]:
    """Return two masks: rows with a code that removes their entry, and rows whose codes are all known."""
    texts = [columns[name].str.strip_chars().fill_null("") for name in (ACTION, CHANGE) if name in columns]
    removes = [codes.is_in(list(layout.removed)).to_numpy() for codes in texts]
    adds = [codes.is_in(list(layout.added)).to_numpy() for codes in texts]
    return np.logical_or.reduce(removes), np.logical_and.reduce(
        [gone | comes for gone, comes in zip(removes, adds, strict=True)]
    )


def _expand_reason_codes(texts: pl.Series, layout: Layout) -> pl.Series:
    """Replace reason codes by the reason texts that the layout declares."""
    return texts.str.strip_chars().replace(dict(layout.reasons)) if layout.reasons else texts


_POWERS = np.array([10**digits for digits in range(20)], np.uint64)


def _device_keys(texts: pl.Series, plus: bool) -> Parsed:
    """Parse a column of IMEIs, IMEISVs and MEIDs; return their keys and a mask of the valid rows."""
    keys, good = _imeis(texts, plus)
    if not good.all() and (letters := ~good & _matches(texts, _MEID)).any():
        keys = keys.copy()
        keys[letters] = texts.filter(pl.Series(letters)).str.to_integer(base=16).to_numpy() + MEID_BASE
        good |= letters
    return keys, good


def _any_keys(texts: pl.Series, plus: bool) -> Parsed:
    """Parse a column of identifiers of any form; return their keys and a mask of the valid rows."""
    keys, good = _device_keys(texts, plus)
    if not good.all():
        keys, good = keys.copy(), good.copy()
        for row in np.flatnonzero(~good):  # a loop is fast enough: a register has some thousands of these
            with suppress(IdentifierError):
                keys[row], good[row] = odd_key(texts[int(row)] or ""), True
    return keys, good


def _imeis(texts: pl.Series, plus: bool) -> Parsed:
    """Parse a column of IMEIs and IMEISVs; return their keys and a mask of the valid rows."""
    numbers, good = _digits(texts, plus, IMEI_LENGTHS)
    lengths = texts.str.len_bytes().fill_null(0).to_numpy()
    if (lengths == KEY_DIGITS).all():  # no division
        return numbers, good
    return numbers // _POWERS[np.clip(lengths.astype(np.int64) - KEY_DIGITS, 0, 2)], good


def _tacs(texts: pl.Series, plus: bool) -> Parsed:
    """Parse a column of TACs; return the lowest key of each TAC and a mask of the valid rows."""
    numbers, good = _digits(texts, plus, (TAC_DIGITS,))
    return numbers * np.uint64(SNR_KEYS), good


def _imsis(texts: pl.Series, plus: bool) -> Parsed:
    """Parse a column of IMSIs; return their keys (eir.device.imsi_key) and a mask of the valid rows."""
    numbers, good = _digits(texts, plus, IMSI_LENGTHS)
    lengths = texts.str.len_bytes().fill_null(0).to_numpy()
    return numbers + _POWERS[np.minimum(lengths, IMSI_LENGTHS[-1])], good


def _types(texts: pl.Series, _: bool) -> Parsed:
    """Parse a column of device types; return their keys and a mask, in which every row is valid.

    An empty text is a type too, but no rule can name it.
    """
    texts = texts.fill_null("")
    known = {text: device_type_key(text) for text in texts.unique().to_list()}
    return texts.replace_strict(known, return_dtype=pl.UInt64).to_numpy(), np.ones(len(texts), bool)


def _days_seen(texts: pl.Series, _: bool) -> Parsed:
    """Parse days of first sightings. A file has few different days."""
    texts = texts.fill_null("")
    known: dict[str, int | None] = dict.fromkeys(texts.unique().to_list())
    for text in known:
        with suppress(IdentifierError):
            known[text] = day_key(text)
    days = texts.replace_strict(known, return_dtype=pl.UInt64)
    return days.fill_null(0).to_numpy(), days.is_not_null().to_numpy()


_KEYS_OF: Mapping[str, Callable[[pl.Series, bool], Parsed]] = {
    "imei": _device_keys, "identifier": _any_keys, "tac": _tacs, "imei_from": _imeis, "imei_to": _imeis, "imsi": _imsis,
    "device_type": _types, "first_seen": _days_seen,
}  # fmt: skip
"""Same table as `_KEY_OF` in eir.lists.rows.layout, for whole columns."""


def _wrong_check_digits(texts: pl.Series, plus: bool) -> int:
    """Return the number of IMEIs of 15 digits whose last digit is neither the check digit nor 0 (TS 23.003 annex B)."""
    numbers, good = _digits(texts, plus, (KEY_DIGITS + 1,))
    rest, last = np.divmod(numbers[good], np.uint64(10))
    total = np.zeros(len(rest), np.uint64)
    for position in range(KEY_DIGITS):
        rest, digit = np.divmod(rest, np.uint64(10))
        total += digit if position % 2 else np.where(digit > 4, 2 * digit - np.uint64(9), 2 * digit)
    return int(np.count_nonzero((last != 0) & ((total + last) % 10 != 0)))


def _digits(texts: pl.Series, plus: bool, lengths: Sequence[int]) -> Parsed:
    """Parse a column of digits; return the numbers and a mask of the rows with an allowed length."""
    numbers = texts.cast(pl.UInt64, strict=False)
    sizes = texts.str.len_bytes()
    if not plus and not numbers.null_count() and sizes.min() in lengths and sizes.max() in lengths:
        return numbers.to_numpy(), np.ones(len(numbers), bool)
    size = sizes.fill_null(0).to_numpy()
    good = numbers.is_not_null().to_numpy() & (size >= lengths[0]) & (size <= lengths[-1])
    if plus:  # reject identifiers with a sign, which polars accepted as numbers
        good &= ~texts.str.starts_with("+").fill_null(value=False).to_numpy()
    return numbers.fill_null(0).to_numpy(), good


def _ends(texts: pl.Series, form: str | None) -> tuple[Seconds, Mask]:
    """Parse a column of expiries as until_seconds does; return Unix seconds and a mask of the valid rows."""
    texts = texts.fill_null("")
    known: dict[str, int | None] = dict.fromkeys(texts.unique().to_list())
    for text in known:
        with suppress(ValueError):
            known[text] = until_seconds(text, form)
    seconds = texts.replace_strict(known, return_dtype=pl.Int64)
    return seconds.fill_null(0).to_numpy(), seconds.is_not_null().to_numpy()


def _days(columns: Mapping[str, pl.Series], layout: Layout) -> tuple[Keys, Mask]:
    """Parse the column of dates; return Unix seconds of each day (0 for none) and a mask of the invalid rows."""
    if DATE not in columns:
        rows = len(next(iter(columns.values())))
        return np.zeros(rows, np.uint64), np.zeros(rows, bool)
    ends, readable = _ends(columns[DATE], layout.dates)
    return (np.maximum(ends - 1, 0) // DAY_S * DAY_S).astype(np.uint64), ~readable


def _matches(texts: pl.Series, pattern: str) -> Mask:
    return texts.str.contains(pattern).fill_null(value=False).to_numpy()


def _columns(data: bytes, lines: int, plan: Plan) -> dict[str, pl.Series]:
    """Parse lines of CSV; return the columns of the plan without blank lines."""
    in_file_order = sorted(set(plan.at.values()))
    if data.startswith(BOM):  # the file's own BOM is already removed; polars would remove this one too
        return _columns_by_line(data, plan)
    try:
        frame = pl.read_csv(
            data, has_header=False, infer_schema=False, columns=in_file_order, separator=plan.layout.separator,
            quote_char='"' if b'"' in data else None, encoding="utf8-lossy", truncate_ragged_lines=True,
        )  # fmt: skip
    except pl.exceptions.PolarsError:
        return _columns_by_line(data, plan)
    columns = {column: frame.to_series(in_file_order.index(position)) for column, position in plan.at.items()}
    whole = frame.height == lines
    if whole and not any(columns[column].null_count() for column in plan.subject):
        return columns
    if data.startswith(b"\n") or b"\n\n" in data:
        data = b"".join(line + b"\n" for line in data.split(b"\n") if line)
        return (
            _columns(data, _lines(data), plan) if data else {column: pl.Series(dtype=pl.String) for column in plan.at}
        )
    return columns if whole else _columns_by_line(data, plan)  # a quote that does not close within its line


def _columns_by_line(data: bytes, plan: Plan) -> dict[str, pl.Series]:
    rows = [fields_of(line, plan) for line in data.split(b"\n") if line]
    return {column: pl.Series([fields[column] for fields in rows], dtype=pl.String) for column in plan.at}


def _lines(data: bytes) -> int:
    return int(np.count_nonzero(np.frombuffer(data, np.uint8) == ord("\n")))


def _reason_indexes(texts: pl.Series, reasons: Reasons) -> ReasonIndexes:
    """Return the reason index of each text; new texts are added to `reasons`."""
    texts = texts.fill_null("")
    if texts.str.len_bytes().max() > REASON_CHARS_MAX:  # type: ignore[operator]  # polars: any literal; these are numbers
        texts = texts.str.slice(0, REASON_CHARS_MAX)
    indexes = _known_reasons(texts, reasons)
    if indexes.null_count():
        for text in texts.filter(indexes.is_null()).unique(maintain_order=True).to_list():
            if reasons.index(text) == REASONS_MAX:
                break
        indexes = _known_reasons(texts, reasons).fill_null(REASONS_MAX)
    return indexes.to_numpy()


def _known_reasons(texts: pl.Series, reasons: Reasons) -> pl.Series:
    return texts.cast(pl.Enum(reasons.known), strict=False).to_physical().cast(pl.UInt8)


def _tally_rows(
    tally: Tally, plan: Plan, where: tuple[str, int], chunk: bytes, which: tuple[Mask, Mask, Mapping[str, Mask]]
) -> None:
    """Add the counts and the first faults of a chunk's rows to the tally, and report each bad row.

    Args:
        tally: receives names and counts.
        plan: plan of the file.
        where: the file, and the line at which the chunk begins.
        chunk: lines of the file.
        which: rows as `_read_chunk` returns them.
    """
    bad, wide, odd = which
    for names, mask in ((tally.complaints, bad), (tally.wide, wide)):
        _name_rows(names, where, chunk, mask, plan, most=tally.complaints_max)
    for kind, mask in odd.items():
        rows = tally.odd.setdefault(kind, OddRows())
        rows.count += int(mask.sum())
        fault = ODD[kind].format(dates=plan.layout.dates or USUAL_DATES)
        _name_rows(rows.named, where, chunk, mask, plan, most=tally.complaints_max, fault=fault)
    if tally.each_bad is not None:
        for line, row in _rows_of(chunk, where[1], bad):
            tally.each_bad(where[0], line, row_fault(row, plan), row)


def _name_rows(
    names: list[str],
    where: tuple[str, int],
    chunk: bytes,
    which: Mask,
    plan: Plan,
    *,
    most: int,
    fault: str | None = None,
) -> None:
    """Append `FILE:LINE: FAULT` to `names` for the first of these rows.

    Without `fault`, each row's own fault is used.

    `where`: the file, and the line at which the chunk begins.
    """
    first = np.zeros(len(which), bool)
    first[np.flatnonzero(which)[: most - len(names)]] = True
    for line, row in _rows_of(chunk, where[1], first):
        names.append(f"{where[0]}:{line}: {fault or row_fault(row, plan)}")


def _rows_of(chunk: bytes, begin: int, which: Mask) -> Iterator[tuple[int, bytes]]:
    """Yield line number and text of the selected rows of a chunk whose first line has the number `begin`."""
    if which.any():
        lines = ((line, text) for line, text in enumerate(chunk.split(b"\n"), begin) if text)
        yield from (each for each, wanted in zip(lines, which, strict=False) if wanted)

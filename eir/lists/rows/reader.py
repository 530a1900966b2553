"""Reader of data files: parses rows to arrays of keys.

polars parses a chunk of the file and converts whole columns. If a quote does not close within its line, or if polars rejects the
chunk, Python's csv module parses the chunk line by line with the same result.

polars uses one thread, because a load shares the host with a server and may use only one core. The import of polars needs 30 MB and
0.2 s, so a module that does not always read data files imports this module inside the function that uses it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from eir.device import IMEI_LENGTHS, IMSI_LENGTHS, KEY_DIGITS, MEID_BASE, SNR_KEYS, TAC_DIGITS, device_type_key, odd_key
from eir.errors import IdentifierError, ReleaseRefused
from eir.frames import pl
from eir.lists.record.first_days import DAY_S
from eir.lists.record.reasons import REASON_CHARS_MAX, REASONS_MAX, Reasons
from eir.lists.record.settings import Layout
from eir.lists.rows.layout import (
    ACTION,
    BEGIN,
    BOM,
    BY_RANGE,
    BY_TAC,
    BY_TYPE,
    CHANGE,
    DATE,
    REASON,
    UNTIL,
    USUAL_DATES,
    Plan,
    begin_seconds,
    csv_fields,
    day_key,
    fields_of,
    find_layout,
    plan_of,
    row_fault,
    until_seconds,
)  # fmt: skip
from eir.lists.rows.listed_rows import ListedRows
from eir.lists.rows.records import Frame
from eir.lists.table.columns import DAY_MAX, Numbers

COMPLAINTS_MAX = 10
"""Maximum number of named bad rows. A message has file, line and expected form, but never the identifier. All bad rows are counted."""

Mask: TypeAlias = NDArray[np.bool_]
Values = TypeVar("Values", bound=Numbers | None)
Parsed: TypeAlias = tuple[Numbers, Mask]
"""Key of each row, and a mask of the rows with a valid key."""

_DIRBS_JUNK = "^[0-9A-Fa-f*#]{1,16}$"
_MEID = "^[0-9A-Fa-f]{14}$"


WRONG_DATES, ENDED, ZEROS, FUTURE_DATES, LONG_ROWS = "wrong_dates", "ended", "zeros", "future_dates", "long_rows"
ODD = {
    WRONG_DATES: "its date is not like {dates}", ENDED: "its end (until) is over", ZEROS: "its IMEI is all zeros",
    FUTURE_DATES: "its date is more than a year ahead", LONG_ROWS: "it has more fields than the header",
}  # fmt: skip
"""Message by kind of odd row: a row that is accepted, but is probably a mistake."""


@dataclass(slots=True)
class OddRows:
    """Valid but suspicious rows of one kind, such as rows with future dates: their number, and messages about the first rows.

    The kinds are the keys of ODD.
    """

    count: int = 0
    named: list[str] = field(default_factory=list)
    """Messages with file and line."""


@dataclass(slots=True, kw_only=True)
class Tally:
    """Counts, limits and faults of the rows in all files of a release."""

    bad_rows_max: int
    range_tacs_max: int
    check_digits: bool = False
    """Verify the check digits of IMEIs for `wrong_check_digits`. A load needs no check digits, and the verification takes time."""
    dates: bool = False
    """Parse the column `date` also for another kind of list than device types, and add the dates to the rows."""
    now_s: int | None = None
    """Present time in Unix seconds, with which odd rows are found. None: only wrong dates are counted as odd rows."""
    complaints_max: int = COMPLAINTS_MAX
    each_bad: Callable[[str, int, str, bytes], None] | None = None
    """Callback that receives each bad row: file, line, fault, and the row itself."""
    bad: int = 0
    skipped: int = 0
    """Number of rows with a junk identifier, in layouts whose files usually have such rows."""
    wrong_check_digits: int = 0
    """Number of IMEIs of 15 digits whose last digit is neither the check digit nor the spare 0 (TS 23.003 6.2.1)."""
    complaints: list[str] = field(default_factory=list)
    """Messages about the first bad rows."""
    wide: list[str] = field(default_factory=list)
    """Messages about the first ranges that have more than `range_tacs_max` TACs."""
    odd: dict[str, "OddRows"] = field(default_factory=dict)
    """Odd rows by kind, a key of `ODD`."""


class _Chunk(NamedTuple):
    """Lines of a file that are parsed together."""

    file: str
    """Name of the file for messages."""
    line: int
    """Number of the first line in the file, from 1."""
    data: bytes
    plan: Plan


class _Faults(NamedTuple):
    """Masks of the invalid and suspicious rows among lines that are parsed together."""

    bad: Mask
    wide: Mask
    """Rows whose range has more than `range_tacs_max` TACs."""
    odd: Mapping[str, Mask]
    """Odd rows by kind, a key of `ODD`."""


def _select(values: Values, mask: Mask) -> Values:
    """Return those values of a column whose rows are in the mask; None for an absent column."""
    return values if values is None or mask.all() else cast("Values", values[mask])


class _RowColumns(NamedTuple):
    """Columns of the valid rows of a file."""

    plan: Plan
    keys: Sequence[Numbers]
    """Keys of the subject's columns. For a TAC, also its highest key; for a device type, the allocation date (Unix seconds) is second."""
    reasons: Numbers | None
    until: Numbers | None
    days: Numbers | None
    """Days of the column `date`, if the list stores dates."""
    begins: Numbers | None = None
    """Begins of the rows in Unix seconds, 0 for none."""

    def select(self, mask: Mask) -> "_RowColumns":
        """Return the columns, but only with the rows that the mask selects."""
        keys = [_select(column, mask) for column in self.keys]
        reasons = _select(self.reasons, mask)
        until = _select(self.until, mask)
        days = _select(self.days, mask)
        return _RowColumns(self.plan, keys, reasons, until, days, _select(self.begins, mask))

    def add_to(self, rows: ListedRows) -> None:
        """Add the rows of these columns to the collection `rows`."""
        is_type = self.plan.subject == BY_TYPE
        days = _days(self.keys[1]) if is_type else self.days
        keys = (self.keys[0], self.keys[-1]) if is_type else self.keys
        rows.add(self.plan.subject, keys, reasons=self.reasons, begins=self.begins, ends=self.until, days=days)


def read_rows(
    chunks: Iterable[bytes], *, name: str, layout: str, kind: str, rows: ListedRows | None, reasons: Reasons, tally: Tally,
    rows_max: int | None = None, removed: ListedRows | None = None, declared: Mapping[str, Layout] | None = None,
    actions: "Actions | None" = None,
) -> int:  # fmt: skip
    """Read the rows of one file; return the number of rows, which includes bad and skipped rows but no blank lines.

    Args:
        chunks: content in pieces that end with a newline.
        name: name of the file for messages.
        layout: name of the layout.
        kind: kind of the list.
        rows: receives the rows; None to only count them.
        reasons: receives new reasons.
        tally: receives counts and faults.
        rows_max: maximum number of rows.
        removed: receives the rows with a code that removes their entry; None to only count them.
        declared: layouts of the configuration.
        actions: receives rows with codes, in place of `rows` and `removed`. A caller that reads several files passes the
            same collection for each, so that the latest row of all files counts.

    Raises:
        ReleaseRefused: `layout` if the header does not fit; `rows` if a header or trailer record has another row count, or
            there are more than `rows_max` rows; `bad_rows` if all files so far have more than `tally.bad_rows_max` bad
            rows; `range` as ListedRows.add.
    """
    file_layout = find_layout(name, layout, declared or {})
    collected = actions or Actions()
    frame = Frame(name, file_layout)
    plan: Plan | None = None
    count = 0
    line = 1 + file_layout.lines_before
    for piece in frame.lines(chunks):
        data = piece
        if plan is None:
            plan, data = plan_of(name, file_layout, kind, piece, dates=tally.dates)
            line += _lines(piece) - _lines(data)
        if data:
            chunk = _Chunk(name, line, data, plan)
            faults = _read_chunk(chunk, rows, reasons, tally, collected)
            count += len(faults.bad)
            line += _lines(data)
            _tally_faults(tally, chunk, faults)
            if tally.bad > tally.bad_rows_max:
                detail = f"{tally.bad} bad rows at least, {tally.bad_rows_max} are allowed (bad_rows_max)"
                raise ReleaseRefused("bad_rows", "\n".join((detail, *tally.complaints)))
            if rows_max is not None and count > rows_max:
                raise ReleaseRefused("rows", f"{name} has {count} rows; the manifest says {rows_max}")
    if plan is None and file_layout.names:
        raise ReleaseRefused("layout", f"{name} is empty; a header is expected")
    frame.check(count)
    if actions is None:
        collected.move_to(rows, removed)
    return count


def _read_chunk(chunk: _Chunk, rows: ListedRows | None, reasons: Reasons, tally: Tally, actions: "Actions") -> _Faults:
    """Parse some lines of a file; add their valid rows to `rows` or `actions`, and return masks of the invalid and suspicious rows."""
    plan = chunk.plan
    layout = plan.layout
    columns = _columns(chunk.data, plan)
    identifiers = columns[plan.subject[0]]
    if not len(identifiers):  # only blank lines
        return _Faults(np.zeros(0, bool), np.zeros(0, bool), {})
    has_plus = b"+" in chunk.data  # polars accepts a sign before a number; identifiers have none
    if tally.check_digits:
        tally.wrong_check_digits += sum(
            _wrong_check_digits(columns[name], has_plus) for name in plan.subject if name.startswith("imei")
        )
    _close_ranges(columns, plan)
    parsed = [KEYS_OF[name](columns[name], has_plus) for name in plan.subject]
    keys = [numbers for numbers, _ in parsed]
    good = np.logical_and.reduce([is_valid for _, is_valid in parsed])
    begins, until, is_valid = _times(columns, layout)
    good &= is_valid
    dates_s, has_wrong_date = _dates(columns, layout)
    removes = None
    if ACTION in columns:
        removes, is_valid = _codes(columns, layout)
        good &= is_valid
    wide = _wide_ranges(plan, keys, good, tally)
    odd = {WRONG_DATES: has_wrong_date} | _probable_mistakes(chunk, (keys[0], dates_s, until), good, now_s=tally.now_s)
    bad = ~good
    if layout.junk and bad.any():
        _, is_valid = parsed[0]
        junk = ~is_valid & _matches(identifiers, _DIRBS_JUNK)
        tally.skipped += int(junk.sum())
        bad &= ~junk
    if plan.subject == BY_TAC:
        keys.append(keys[0] + np.uint64(SNR_KEYS - 1))
    if plan.subject == BY_TYPE:
        keys.insert(1, dates_s)
    days = _days(dates_s) if tally.dates else None
    indexes = _row_reasons(columns, layout, reasons)
    row_columns = _RowColumns(plan, keys, indexes, until, days, begins).select(good)
    if removes is not None:
        actions.add(_Part(row_columns, _select(removes, good)))
    elif rows is not None:
        row_columns.add_to(rows)
    return _Faults(bad, wide, odd)


def _days(dates_s: Numbers) -> Numbers:
    """Convert dates from Unix seconds to days since 1970-01-01."""
    days: Numbers = np.minimum(dates_s // DAY_S, DAY_MAX - 1)
    return days.astype(np.uint16)


def _probable_mistakes(
    chunk: _Chunk, columns: tuple[Numbers, Numbers, Numbers | None], good: Mask, *, now_s: int | None
) -> dict[str, Mask]:
    """Return masks of valid rows that are probably mistakes, by kind (a key of `ODD`), such as rows with future dates.

    Without `now_s`, there are no masks.

    `columns`: keys, dates (Unix seconds) and expiries.
    """
    if now_s is None:
        return {}
    keys, dates_s, until = columns
    odd = {FUTURE_DATES: dates_s > np.uint64(now_s + 365 * DAY_S), LONG_ROWS: _long_rows(chunk)}
    if chunk.plan.subject[0].startswith("imei"):
        odd[ZEROS] = keys == 0
    if until is not None:
        odd[ENDED] = (until > 0) & (until <= now_s)
    return {kind: mask & good for kind, mask in odd.items()}


def _long_rows(chunk: _Chunk) -> Mask:
    """Return a mask of the rows with more fields than the header, for example because of a comma in a reason without quotes."""
    width = chunk.plan.width
    separator = chunk.plan.layout.separator
    lines = [line for line in chunk.data.split(b"\n") if line]
    long = np.zeros(len(lines), bool)
    if width:
        for row, line in enumerate(lines):
            if line.count(separator.encode()) >= width:
                long[row] = len(csv_fields(line, separator)) > width
    return long


class _Part(NamedTuple):
    """Rows of one file, in the order of the file. The code of each row adds or removes a list entry."""

    columns: _RowColumns
    removes: Mask
    """Rows that remove their entry."""


class Actions:
    """Collection of rows whose codes add or remove list entries. The last row about an entry in the files decides."""

    def __init__(self) -> None:
        self._parts: list[_Part] = []

    def add(self, part: _Part) -> None:
        """Add rows of one file to the collection."""
        self._parts.append(part)

    def move_to(self, rows: ListedRows | None, removed: ListedRows | None) -> None:
        """Move the last row about each list entry to `rows` (entry added) or to `removed` (entry removed); drop all other rows."""
        parts = [part for part in self._parts if len(part.removes)]
        self._parts = []
        for part, counts in zip(parts, _latest(parts), strict=True):
            if rows is not None:
                part.columns.select(counts & ~part.removes).add_to(rows)
            if removed is not None:
                part.columns.select(counts & part.removes).add_to(removed)


def _latest(parts: Sequence[_Part]) -> list[Mask]:
    """Find the last row about each list entry in all parts; return these rows as one mask for each part.

    If no row removes an entry, all rows of the entry count.
    """
    removed_keys = [part.columns.keys[0][part.removes] for part in parts]
    removed = np.concatenate([np.zeros(0, np.uint64), *removed_keys])
    disputed: list[Mask] = [np.isin(part.columns.keys[0], removed) for part in parts]
    if not any(mask.any() for mask in disputed):
        return [~mask for mask in disputed]
    firsts, lasts = [], []
    for part, mask in zip(parts, disputed, strict=True):
        firsts.append(part.columns.keys[0][mask])
        lasts.append(part.columns.keys[-1][mask])
    first = np.concatenate(firsts)
    last = np.concatenate(lasts)
    order = np.lexsort((last, first))  # a stable sort
    first = first[order]
    last = last[order]
    is_latest = np.ones(len(order), bool)
    is_latest[:-1] = (first[1:] != first[:-1]) | (last[1:] != last[:-1])
    counts = np.zeros(len(order), bool)
    counts[order[is_latest]] = True
    masks = []
    begin = 0
    for mask in disputed:
        end = begin + int(mask.sum())
        part_counts = ~mask
        part_counts[mask] = counts[begin:end]
        masks.append(part_counts)
        begin = end
    return masks


def _close_ranges(columns: dict[str, pl.Series], plan: Plan) -> None:
    """Set a missing end of a range to the range's first identifier."""
    if plan.may_be_open:
        last = columns["imei_to"]
        is_missing = last.fill_null("") == ""
        columns["imei_to"] = columns["imei_from"].zip_with(is_missing, last)


def _wide_ranges(plan: Plan, keys: Sequence[Numbers], good: Mask, tally: Tally) -> Mask:
    """Return a mask of the rows whose range has more than `range_tacs_max` TACs.

    Rows whose range ends before it begins are cleared in `good`.
    """
    if plan.subject != BY_RANGE:
        return np.zeros(len(good), bool)
    first, last = keys
    good &= first <= last
    return good & (last - first >= np.uint64(tally.range_tacs_max * SNR_KEYS))


def _codes(columns: Mapping[str, pl.Series], layout: Layout) -> tuple[Mask, Mask]:
    """Return two masks: the rows whose code removes an entry, and the rows whose codes are all known."""
    rows = len(columns[ACTION])
    removes = np.zeros(rows, bool)
    is_known = np.ones(rows, bool)
    for name in (ACTION, CHANGE):
        if name in columns:
            codes = columns[name].str.strip_chars().fill_null("")
            column_removes = codes.is_in(list(layout.removed)).to_numpy()
            removes |= column_removes
            is_known &= column_removes | codes.is_in(list(layout.added)).to_numpy()
    return removes, is_known


_POWERS = np.array([10**digits for digits in range(20)], np.uint64)


def _device_keys(texts: pl.Series, plus: bool) -> Parsed:
    """Parse a column of IMEIs, IMEISVs and MEIDs; return their keys and a mask of the valid rows."""
    keys, good = _imeis(texts, plus)
    if good.all():
        return keys, good
    is_meid = ~good & _matches(texts, _MEID)
    if is_meid.any():
        meids = texts.filter(pl.Series(is_meid)).str.to_integer(base=16)
        keys = keys.copy()
        keys[is_meid] = meids.to_numpy() + MEID_BASE
        good |= is_meid
    return keys, good


def _any_keys(texts: pl.Series, plus: bool) -> Parsed:
    """Parse a column of identifiers of any form; return their keys and a mask of the valid rows."""
    keys, good = _device_keys(texts, plus)
    if good.all():
        return keys, good
    keys = keys.copy()
    good = good.copy()
    for row in np.flatnonzero(~good):  # a register has only some thousands of such identifiers
        with suppress(IdentifierError):
            keys[row] = odd_key(texts[int(row)] or "")
            good[row] = True
    return keys, good


def _imeis(texts: pl.Series, plus: bool) -> Parsed:
    """Parse a column of IMEIs and IMEISVs; return their keys and a mask of the valid rows."""
    numbers, good = _digits(texts, plus, IMEI_LENGTHS)
    lengths = texts.str.len_bytes().fill_null(0).to_numpy()
    if (lengths == KEY_DIGITS).all():
        return numbers, good
    further_digits = np.clip(lengths.astype(np.int64) - KEY_DIGITS, 0, 2)
    return numbers // _POWERS[further_digits], good


def _tacs(texts: pl.Series, plus: bool) -> Parsed:
    """Parse a column of TACs; return the lowest key of each TAC and a mask of the valid rows."""
    numbers, good = _digits(texts, plus, (TAC_DIGITS,))
    return numbers * np.uint64(SNR_KEYS), good


def _imsis(texts: pl.Series, plus: bool) -> Parsed:
    """Parse a column of IMSIs; return their keys (eir.device.imsi_key) and a mask of the valid rows."""
    numbers, good = _digits(texts, plus, IMSI_LENGTHS)
    lengths = texts.str.len_bytes().fill_null(0).to_numpy()
    digits = np.minimum(lengths, IMSI_LENGTHS[-1])
    return numbers + _POWERS[digits], good


def _types(texts: pl.Series, _: bool) -> Parsed:
    """Parse a column of device types; return their keys, and a mask in which every row is valid.

    An empty text is a type, but the configuration cannot name this type.
    """
    texts = texts.fill_null("")
    keys = {text: device_type_key(text) for text in texts.unique().to_list()}
    return texts.replace_strict(keys, return_dtype=pl.UInt64).to_numpy(), np.ones(len(texts), bool)


def _days_seen(texts: pl.Series, _: bool) -> Parsed:
    """Parse a column with days of first sightings; return the days since 1970-01-01 and a mask of the valid rows."""
    days, good = _parse_each(texts, day_key)
    return days.astype(np.uint64), good


def _parse_each(texts: pl.Series, parse: Callable[[str], int]) -> tuple[Numbers, Mask]:
    """Parse each different text of a column once; return numbers (0 for an invalid text), and a mask of the valid rows.

    `parse` raises ValueError or IdentifierError for a fault. The column should have few different texts.
    """
    texts = texts.fill_null("")
    known: dict[str, int | None] = dict.fromkeys(texts.unique().to_list())
    for text in known:
        with suppress(ValueError, IdentifierError):
            known[text] = parse(text)
    numbers = texts.replace_strict(known, return_dtype=pl.Int64)
    return numbers.fill_null(0).to_numpy(), numbers.is_not_null().to_numpy()


KEYS_OF: Mapping[str, Callable[[pl.Series, bool], Parsed]] = {
    "imei": _device_keys, "identifier": _any_keys, "tac": _tacs, "imei_from": _imeis, "imei_to": _imeis, "imsi": _imsis,
    "device_type": _types, "first_seen": _days_seen,
}  # fmt: skip
"""Same table as `KEY_OF` in eir.lists.rows.layout, for whole columns."""


def _wrong_check_digits(texts: pl.Series, plus: bool) -> int:
    """Return the number of IMEIs of 15 digits whose last digit is neither the check digit nor 0 (TS 23.003 annex B)."""
    numbers, good = _digits(texts, plus, (KEY_DIGITS + 1,))
    rest, last = np.divmod(numbers[good], np.uint64(10))
    total = np.zeros(len(rest), np.uint64)
    for position in range(KEY_DIGITS):
        rest, digit = np.divmod(rest, np.uint64(10))
        if position % 2:
            total += digit
        else:
            doubled = 2 * digit
            total += np.where(digit > 4, doubled - np.uint64(9), doubled)
    is_wrong = (last != 0) & ((total + last) % 10 != 0)
    return int(np.count_nonzero(is_wrong))


def _digits(texts: pl.Series, plus: bool, lengths: Sequence[int]) -> Parsed:
    """Parse a column of digits; return the numbers and a mask of the rows with an allowed length."""
    numbers = texts.cast(pl.UInt64, strict=False)
    byte_lengths = texts.str.len_bytes()
    if not plus and not numbers.null_count() and byte_lengths.min() in lengths and byte_lengths.max() in lengths:
        return numbers.to_numpy(), np.ones(len(numbers), bool)
    length = byte_lengths.fill_null(0).to_numpy()
    good = numbers.is_not_null().to_numpy() & (length >= lengths[0]) & (length <= lengths[-1])
    if plus:  # reject identifiers with a sign, which polars accepted as numbers
        has_sign = texts.str.starts_with("+").fill_null(value=False)
        good &= ~has_sign.to_numpy()
    return numbers.fill_null(0).to_numpy(), good


def _expiries(texts: pl.Series, form: str | None) -> tuple[Numbers, Mask]:
    """Parse a column of expiries as until_seconds does; return Unix seconds and a mask of the valid rows."""
    return _parse_each(texts, lambda text: until_seconds(text, form))


def _times(columns: Mapping[str, pl.Series], layout: Layout) -> tuple[Numbers | None, Numbers | None, Mask]:
    """Parse the columns of begins and expiries; return Unix seconds (None for an absent column) and a mask of the valid rows."""
    begins = until = None
    good = np.ones(len(next(iter(columns.values()))), bool)
    if UNTIL in columns:
        until, good = _expiries(columns[UNTIL], layout.dates)
    if BEGIN in columns:
        begins, is_valid = _parse_each(columns[BEGIN], lambda text: begin_seconds(text, layout.dates))
        good = good & is_valid
        if until is not None:
            good &= (until == 0) | (begins < until)
    return begins, until, good


def _dates(columns: Mapping[str, pl.Series], layout: Layout) -> tuple[Numbers, Mask]:
    """Parse the column of dates; return Unix seconds (0 for none) and a mask of the invalid rows."""
    if DATE not in columns:
        rows = len(next(iter(columns.values())))
        return np.zeros(rows, np.uint64), np.zeros(rows, bool)
    day_ends, is_valid = _expiries(columns[DATE], layout.dates)
    days = np.maximum(day_ends - 1, 0) // DAY_S
    return (days * DAY_S).astype(np.uint64), ~is_valid


def _matches(texts: pl.Series, pattern: str) -> Mask:
    return texts.str.contains(pattern).fill_null(value=False).to_numpy()


def _columns(data: bytes, plan: Plan) -> dict[str, pl.Series]:
    """Parse CSV lines except blank lines; return the needed columns."""
    if data.startswith(BOM):  # the BOM of the file is already removed; polars would remove a second one
        return _columns_by_line(data, plan)
    positions = sorted(set(plan.at.values()))
    quote = '"' if b'"' in data else None
    try:
        frame = pl.read_csv(
            data, has_header=False, infer_schema=False, columns=positions, separator=plan.layout.separator,
            quote_char=quote, encoding="utf8-lossy", truncate_ragged_lines=True,
        )  # fmt: skip
    except pl.exceptions.PolarsError:
        return _columns_by_line(data, plan)
    columns = {column: frame.to_series(positions.index(position)) for column, position in plan.at.items()}
    has_all_lines = frame.height == _lines(data)
    if has_all_lines and not any(columns[column].null_count() for column in plan.subject):
        return columns
    if data.startswith(b"\n") or b"\n\n" in data:
        lines = [line + b"\n" for line in data.split(b"\n") if line]
        return _columns(b"".join(lines), plan) if lines else _columns_by_line(b"", plan)
    if not has_all_lines:  # a quote does not close within its line
        return _columns_by_line(data, plan)
    return columns


def _columns_by_line(data: bytes, plan: Plan) -> dict[str, pl.Series]:
    rows = [fields_of(line, plan) for line in data.split(b"\n") if line]
    return {column: pl.Series([fields[column] for fields in rows], dtype=pl.String) for column in plan.at}


def _lines(data: bytes) -> int:
    return int(np.count_nonzero(np.frombuffer(data, np.uint8) == ord("\n")))


def _row_reasons(columns: Mapping[str, pl.Series], layout: Layout, reasons: Reasons) -> Numbers | None:
    """Return the index of each row's reason, and add new texts to `reasons`; None if the file has no reasons."""
    if REASON not in columns:
        return None
    texts = columns[REASON]
    if layout.reasons:
        texts = texts.str.strip_chars().replace(dict(layout.reasons))
    texts = texts.fill_null("")
    if texts.str.len_bytes().max() > REASON_CHARS_MAX:  # type: ignore[operator]  # polars: any literal; these are numbers
        texts = texts.str.slice(0, REASON_CHARS_MAX)
    indexes = _known_reasons(texts, reasons)
    if indexes.null_count():
        new_texts = texts.filter(indexes.is_null()).unique(maintain_order=True)
        for text in new_texts.to_list():
            if reasons.index(text) == REASONS_MAX:
                break
        indexes = _known_reasons(texts, reasons).fill_null(REASONS_MAX)
    return indexes.to_numpy()


def _known_reasons(texts: pl.Series, reasons: Reasons) -> pl.Series:
    return texts.cast(pl.Enum(reasons.known), strict=False).to_physical().cast(pl.UInt8)


def _tally_faults(tally: Tally, chunk: _Chunk, faults: _Faults) -> None:
    """Add the faulty rows of one chunk of a file to the counts and messages of a tally.

    Args:
        tally: counts and messages for all files of a release. Its callback `each_bad` receives each invalid row.
        chunk: lines that were parsed together.
        faults: masks of the rows in `chunk` that are invalid, have a too large range, or are odd (valid, but probably a mistake).
    """
    tally.bad += int(faults.bad.sum())
    _name_rows(tally.complaints, chunk, faults.bad, most=tally.complaints_max)
    _name_rows(tally.wide, chunk, faults.wide, most=tally.complaints_max)
    for kind, mask in faults.odd.items():
        odd_rows = tally.odd.setdefault(kind, OddRows())
        odd_rows.count += int(mask.sum())
        message = ODD[kind].format(dates=chunk.plan.layout.dates or USUAL_DATES)
        _name_rows(odd_rows.named, chunk, mask, most=tally.complaints_max, message=message)
    if tally.each_bad is not None:
        for line, row in _rows_of(chunk, faults.bad):
            tally.each_bad(chunk.file, line, row_fault(row, chunk.plan), row)


def _name_rows(names: list[str], chunk: _Chunk, mask: Mask, *, most: int, message: str | None = None) -> None:
    """Append a message `FILE:LINE: …` for each row of a mask to `names`, until `names` has `most` messages.

    `message`: text for all rows; None: the fault of each row.
    """
    selected = np.flatnonzero(mask)[: most - len(names)]
    first_rows = np.zeros(len(mask), bool)
    first_rows[selected] = True
    for line, row in _rows_of(chunk, first_rows):
        text = message or row_fault(row, chunk.plan)
        names.append(f"{chunk.file}:{line}: {text}")


def _rows_of(chunk: _Chunk, mask: Mask) -> Iterator[tuple[int, bytes]]:
    """Yield the line number and the text of each row that the mask selects among some lines of a file."""
    if mask.any():
        lines = ((line, text) for line, text in enumerate(chunk.data.split(b"\n"), chunk.line) if text)
        for numbered_line, is_selected in zip(lines, mask, strict=False):
            if is_selected:
                yield numbered_line

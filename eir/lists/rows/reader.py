"""Reader of data files: parses rows to arrays of keys.

polars parses a chunk of the file and converts whole columns. If a quote does not close within its line, or if polars rejects the
chunk, Python's csv module parses the chunk line by line with the same result.

polars uses one thread, because a load shares the host with a server and may use only one core. The import of polars needs 30 MB and
0.2 s, so a module that does not always read data files imports this module inside the function that uses it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

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
    BY_FIRST_SEEN,
    BY_PAIR,
    BY_RANGE,
    BY_TAC,
    BY_TYPE,
    CHANGE,
    DATE,
    EIR,
    REASON,
    TIME_MAX,
    UNTIL,
    USUAL_DATES,
    Plan,
    begin_seconds,
    csv_fields,
    day_key,
    fields_of,
    plan_for,
    row_fault,
    until_seconds,
)  # fmt: skip
from eir.lists.table.columns import COLUMNS, DAY_MAX, Numbers, TableRows

COMPLAINTS_MAX = 10
"""Maximum number of named bad rows. A message has file, line and expected form, but never the identifier. All bad rows are counted."""

Mask: TypeAlias = NDArray[np.bool_]
Parsed: TypeAlias = tuple[Numbers, Mask]
"""Key of each row, and a mask of the rows with a valid key."""

_DIRBS_JUNK = "^[0-9A-Fa-f*#]{1,16}$"
_MEID = "^[0-9A-Fa-f]{14}$"

BAD, WIDE = "bad", "wide"
"""Rows that are left out; rows whose range has more than `range_tacs_max` TACs."""
WRONG_DATES, ENDED, ZEROS, FUTURE_DATES, LONG_ROWS = "wrong_dates", "ended", "zeros", "future_dates", "long_rows"
ODD = {
    WRONG_DATES: "its date is not like {dates}", ENDED: "its end (until) is over", ZEROS: "its IMEI is all zeros",
    FUTURE_DATES: "its date is more than a year ahead", LONG_ROWS: "it has more fields than the header",
}  # fmt: skip
"""Message by kind of odd row: a row that is accepted, but is probably a mistake."""


@dataclass(slots=True)
class NamedRows:
    """Rows of one kind, such as bad rows: their number, and messages about the first rows."""

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
    skipped: int = 0
    """Number of rows with a junk identifier, in layouts whose files usually have such rows."""
    wrong_check_digits: int = 0
    """Number of IMEIs of 15 digits whose last digit is neither the check digit nor the spare 0 (TS 23.003 6.2.1)."""
    rows: dict[str, NamedRows] = field(default_factory=lambda: {kind: NamedRows() for kind in (BAD, WIDE, *ODD)})
    """Rows by kind: BAD, WIDE, or a key of ODD."""

    @property
    def bad(self) -> int:
        """Number of bad rows."""
        return self.rows[BAD].count

    @property
    def complaints(self) -> Sequence[str]:
        """Messages about the first bad rows."""
        return self.rows[BAD].named

    @property
    def wide(self) -> Sequence[str]:
        """Messages about the first ranges that have more than `range_tacs_max` TACs."""
        return self.rows[WIDE].named


class _Chunk(NamedTuple):
    """Lines of a file that are parsed together."""

    file: str
    """Name of the file for messages."""
    line: int
    """Number of the first line in the file, from 1."""
    data: bytes
    plan: Plan


class RowPart(NamedTuple):
    """Rows of some lines of a file."""

    row_count: int
    """Number of rows, which includes bad and skipped rows but no blank lines."""
    rows: TableRows
    """Valid rows in the order of the file. The key of a range or of a whole TAC is its first one."""
    lasts: Numbers | None
    """Last key of each valid row; None if each row has one key."""
    removes: Mask | None
    """Mask of the valid rows whose code removes their entry; None if the layout has no codes."""


def read_rows(
    chunks: Iterable[bytes], *, name: str, kind: str, reasons: Reasons, tally: Tally, layout: Layout = EIR,
    rows_max: int | None = None, first_line: int = 1,
) -> Iterator[RowPart]:  # fmt: skip
    """Yield the rows of one file.

    Args:
        chunks: content in pieces that end with a newline.
        name: name of the file for messages.
        kind: kind of the list.
        reasons: receives new reasons.
        tally: receives counts and faults.
        layout: layout of the file.
        rows_max: maximum number of rows.
        first_line: number of the first line in the file.

    Raises:
        ReleaseRefused: `layout` if the header does not fit; `rows` if there are more than `rows_max` rows; `bad_rows` if all files
            so far have more than `tally.bad_rows_max` bad rows.
    """
    plan: Plan | None = None
    count, line = 0, first_line
    for piece in map(one_line_end, chunks):
        data = piece
        if plan is None:
            header, data = b"", piece.removeprefix(BOM)
            if layout.names:
                header, _, data = data.partition(b"\n")
            plan = plan_for(name, layout, kind, header, dates=tally.dates)
            line += layout.names
        chunk = _Chunk(name, line, data, plan)
        line += _lines(data)
        columns = _columns(data, plan) if data else {}
        rows = len(next(iter(columns.values()), ()))
        if not rows:  # only blank lines
            continue
        part, faults = _parse(chunk, columns, reasons, tally)
        _tally_faults(tally, chunk, faults)
        if tally.bad > tally.bad_rows_max:
            detail = f"{tally.bad} bad rows at least, {tally.bad_rows_max} are allowed (bad_rows_max)"
            raise ReleaseRefused("bad_rows", "\n".join((detail, *tally.complaints)))
        count += part.row_count
        if rows_max is not None and count > rows_max:
            raise ReleaseRefused("rows", f"{name} has {count} rows; the manifest says {rows_max}")
        yield part
    if plan is None and layout.names:
        raise ReleaseRefused("layout", f"{name} is empty; a header is expected")


def one_line_end(piece: bytes) -> bytes:
    """Replace each CRLF by a newline, and each other carriage return by a blank.

    CSV readers treat carriage returns differently.
    """
    if b"\r" not in piece:
        return piece
    return piece.replace(b"\r\n", b"\n").replace(b"\r", b" ")


def _parse(
    chunk: _Chunk, columns: dict[str, pl.Series], reasons: Reasons, tally: Tally
) -> tuple[RowPart, dict[str, Mask]]:
    """Parse the columns of some lines; return the valid rows, and masks of the rows of each kind in `Tally.rows`."""
    plan = chunk.plan
    layout, subject = plan.layout, plan.subject
    has_plus = b"+" in chunk.data  # polars accepts a sign before a number; identifiers have none
    if tally.check_digits:
        tally.wrong_check_digits += sum(
            _wrong_check_digits(columns[name], has_plus) for name in subject if name.startswith("imei")
        )
    if plan.may_be_open:  # a missing end of a range is the range's first identifier
        last = columns["imei_to"]
        columns["imei_to"] = columns["imei_from"].zip_with(last.fill_null("") == "", last)
    parsed = [KEYS_OF[name](columns[name], has_plus) for name in subject]
    keys = [numbers for numbers, _ in parsed]
    begins, ends, good = _times(columns, layout)
    good = np.logical_and.reduce([good, *(is_valid for _, is_valid in parsed)])
    days, has_wrong_date = _days(columns, layout)
    removes = lasts = None
    if ACTION in columns:
        removes, is_valid = _codes(columns, layout)
        good &= is_valid
    wide = np.zeros(len(good), bool)
    if subject == BY_TAC:
        lasts = keys[0] + np.uint64(SNR_KEYS - 1)
    if subject == BY_RANGE:
        lasts = keys[1]
        good &= keys[0] <= lasts
        wide = good & (lasts - keys[0] >= np.uint64(tally.range_tacs_max * SNR_KEYS))
    faults = {BAD: ~good, WIDE: wide, WRONG_DATES: has_wrong_date} | _probable_mistakes(
        chunk, keys[0], days, ends, good, now_s=tally.now_s
    )
    if layout.junk and not good.all():
        _, is_valid = parsed[0]
        junk = _matches(columns[subject[0]], _DIRBS_JUNK, ~is_valid)
        tally.skipped += int(junk.sum())
        faults[BAD] &= ~junk
    seconds = keys[1] if subject in {BY_PAIR, BY_TYPE, BY_FIRST_SEEN} else None
    if ends is not None:
        ends = np.where(ends > TIME_MAX, 0, ends)
    values = (seconds, _row_reasons(columns, layout, reasons), begins, ends, days)
    rows = TableRows(keys[0], tuple(
        None if column is None or not column.any() else column.astype(form, copy=False)
        for column, form in zip(values, COLUMNS.values(), strict=True)
    ))  # fmt: skip
    if not good.all():
        rows = rows.select(good)
        lasts = None if lasts is None else lasts[good]
        removes = None if removes is None else removes[good]
    return RowPart(len(good), rows, lasts, removes), faults


def _probable_mistakes(
    chunk: _Chunk, keys: Numbers, days: Numbers | None, ends: Numbers | None, good: Mask, *, now_s: int | None
) -> dict[str, Mask]:
    """Return masks of valid rows that are probably mistakes, by kind (a key of `ODD`), such as rows with future dates.

    Without `now_s`, there are no masks.
    """
    if now_s is None:
        return {}
    odd = {LONG_ROWS: _long_rows(chunk)}
    if days is not None:
        odd[FUTURE_DATES] = days > now_s // DAY_S + 365
    if chunk.plan.subject[0].startswith("imei"):
        odd[ZEROS] = keys == 0
    if ends is not None:
        odd[ENDED] = (ends > 0) & (ends <= now_s)
    return {kind: mask & good for kind, mask in odd.items()}


def _long_rows(chunk: _Chunk) -> Mask:
    """Return a mask of the rows with more fields than the header, for example because of a comma in a reason without quotes."""
    separator = chunk.plan.layout.separator
    octets = np.frombuffer(chunk.data, np.uint8)
    _, ends = _row_bounds(chunk.data)
    before = np.flatnonzero(octets == ord(separator)).searchsorted(ends)
    long: Mask = np.diff(before, prepend=0) >= (chunk.plan.width or len(octets))
    for row, (_, line) in zip(np.flatnonzero(long), _rows_of(chunk, long), strict=True):
        long[row] = len(csv_fields(line, separator)) > chunk.plan.width
    return long


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
    keys, good = _imeis(texts, plus)
    if good.all():
        return keys, good
    is_meid = _matches(texts, _MEID, ~good)
    if is_meid.any():
        meids = texts.filter(pl.Series(is_meid)).str.to_integer(base=16)
        keys = keys.copy()
        keys[is_meid] = meids.to_numpy() + MEID_BASE
        good |= is_meid
    return keys, good


def _any_keys(texts: pl.Series, plus: bool) -> Parsed:
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
"""Parser of each column that identifies an entry: KEY_OF of eir.lists.rows.layout for whole columns. `plus`: the lines contain a plus sign."""


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


def _times(columns: Mapping[str, pl.Series], layout: Layout) -> tuple[Numbers | None, Numbers | None, Mask]:
    """Parse the columns of begins and expiries; return Unix seconds (None for an absent column) and a mask of the valid rows."""
    begins = ends = None
    good = np.ones(len(next(iter(columns.values()))), bool)
    if UNTIL in columns:
        ends, good = _parse_each(columns[UNTIL], lambda text: until_seconds(text, layout.dates))
    if BEGIN in columns:
        begins, is_valid = _parse_each(columns[BEGIN], lambda text: begin_seconds(text, layout.dates))
        good = good & is_valid
        if ends is not None:
            good &= (ends == 0) | (begins < ends)
    return begins, ends, good


def _days(columns: Mapping[str, pl.Series], layout: Layout) -> tuple[Numbers | None, Mask]:
    """Parse the column of dates; return days since 1970-01-01 (0 for none; None for an absent column) and a mask of the invalid rows."""
    if DATE not in columns:
        return None, np.zeros(len(next(iter(columns.values()))), bool)
    day_ends, is_valid = _parse_each(columns[DATE], lambda text: until_seconds(text, layout.dates))
    return np.minimum(np.maximum(day_ends - 1, 0) // DAY_S, DAY_MAX - 1), ~is_valid


def _matches(texts: pl.Series, pattern: str, among: Mask) -> Mask:
    """Return a mask of those rows of the mask `among` whose text matches a pattern."""
    matching = among.copy()
    matching[among] = texts.filter(pl.Series(among)).str.contains(pattern).fill_null(value=False).to_numpy()
    return matching


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


def _tally_faults(tally: Tally, chunk: _Chunk, faults: Mapping[str, Mask]) -> None:
    """Add the rows in masks, by their kind, to the counts and messages of a tally. `tally.each_bad` receives each bad row."""
    for kind, mask in faults.items():
        rows = tally.rows[kind]
        rows.count += int(mask.sum())
        first_rows = np.zeros(len(mask), bool)
        first_rows[np.flatnonzero(mask)[: tally.complaints_max - len(rows.named)]] = True
        message = ODD.get(kind, "").format(dates=chunk.plan.layout.dates or USUAL_DATES)
        for line, row in _rows_of(chunk, first_rows):
            rows.named.append(f"{chunk.file}:{line}: {message or row_fault(row, chunk.plan)}")
    if tally.each_bad is not None:
        for line, row in _rows_of(chunk, faults[BAD]):
            tally.each_bad(chunk.file, line, row_fault(row, chunk.plan), row)


def _rows_of(chunk: _Chunk, mask: Mask) -> Iterator[tuple[int, bytes]]:
    """Yield the line number and the text of each row that the mask selects among some lines of a file."""
    if mask.any():
        starts, ends = _row_bounds(chunk.data)
        for start, end in zip(starts[mask].tolist(), ends[mask].tolist(), strict=True):
            yield chunk.line + _lines(chunk.data[:start]), chunk.data[start:end]


def _row_bounds(data: bytes) -> tuple[Numbers, Numbers]:
    """Return the positions at which each line that is not blank starts and ends."""
    ends = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n"))
    starts = np.append(0, ends[:-1] + 1)
    is_row = starts < ends
    return starts[is_row], ends[is_row]

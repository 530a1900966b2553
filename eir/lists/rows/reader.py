"""Data files to keys: the rows of a file as arrays.

A piece of the file goes through polars' CSV reader and its vectorised casts; pieces in which a quote does not close within
its line, or that polars will not have, go through Python's csv line by line, with the same result.

polars parses on one thread: a load runs beside a server that answers, and one core is what it may take. polars takes 30 MB
and a fifth of a second to import, so modules that may not need it import this one where they do.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from eir.device import IMEI_LENGTHS, IMSI_LENGTHS, KEY_DIGITS, MEID_BASE, SNR_KEYS, TAC_DIGITS, device_type_key, odd_key
from eir.errors import IdentifierError, ReleaseRefused
from eir.lists.pages.content import Keys, ReasonIndexes, Seconds
from eir.lists.record.reasons import REASON_CHARS_MAX, REASONS_MAX, Reasons
from eir.lists.record.settings import Layout
from eir.lists.rows.build import Rows
from eir.lists.rows.layout import (
    ACTION,
    BOM,
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
    complaint,
    fields_of,
    layout_named,
    plan_of,
    until_seconds,
)  # fmt: skip
from eir.lists.rows.records import Frame

os.environ.setdefault("POLARS_MAX_THREADS", "1")
import polars as pl  # it reads the number of its threads when it is imported

COMPLAINTS_MAX, DAY_S = 10, 86_400
"""Bad rows that are named: with file, line and expectation, never with the identifier. All are counted."""

Mask: TypeAlias = NDArray[np.bool_]
Parsed: TypeAlias = tuple[Keys, Mask]
"""A key for each row, and which rows hold one."""

_DIRBS_JUNK = "^[0-9A-Fa-f*#]{1,16}$"
_MEID = "^[0-9A-Fa-f]{14}$"


@dataclass(slots=True, kw_only=True)
class Tally:
    """Counts over all files of a release, and the faults."""

    bad_rows_max: int
    range_tacs_max: int
    check_digits: bool = False
    """Look at check digits, which decide nothing and cost time."""
    dates: bool = False
    """Look at the column `date`, which decides nothing either but in a list of device types."""
    complaints_max: int = COMPLAINTS_MAX
    bad: int = 0
    skipped: int = 0
    """Junk identifiers, in layouts where they are normal."""
    wrong_check_digits: int = 0
    """IMEIs of 15 digits of which the last is neither the check digit nor the spare 0 (TS 23.003 6.2.1)."""
    wrong_dates: int = 0
    complaints: list[str] = field(default_factory=list)
    wide: list[str] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)
    """The first bad rows, the first ranges over the limit, and the first rows with an invalid date."""


def read_rows(
    chunks: Iterable[bytes], *, name: str, layout: str, kind: str, rows: Rows | None, reasons: Reasons, tally: Tally,
    rows_max: int | None = None, removed: Rows | None = None, declared: Mapping[str, Layout] | None = None,
    actions: "Actions | None" = None,
) -> int:  # fmt: skip
    """Read one file's rows into `rows` (None: only to count them); returns how many there are, bad and skipped ones included.

    Where the layout has codes for rows that are removed, these go to `removed` (None: they are only counted); `actions` gathers rows with
    codes instead, for a caller that reads several files and wants the last row of all of them to count. `declared`: layouts of the configuration. `chunks` end with a newline each. Blank lines do not count. Raises ReleaseRefused: `layout` for a header
    that does not fit, `rows` where a record of the file promises another count, or as soon as there are more than `rows_max`,
    `bad_rows` as soon as there are more than `tally.bad_rows_max` of them in all files so far, `range` as Rows.add_spans.
    """
    dialect = layout_named(name, layout, declared or {})
    gathered = actions or Actions()
    frame, no_date = Frame(name, dialect), f"its date is not like {dialect.dates or USUAL_DATES}"
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
            tally.wrong_dates += int(odd.sum())
            for names, which, says in (
                (tally.complaints, bad, None),
                (tally.wide, wide, None),
                (tally.odd, odd, no_date),
            ):
                _name_rows(names, (name, line), chunk, which, plan, most=tally.complaints_max, says=says)
            if tally.bad > tally.bad_rows_max:
                more = f"{tally.bad} bad rows at least, {tally.bad_rows_max} are allowed (bad_rows_max)"
                raise ReleaseRefused("bad_rows", "\n".join((more, *tally.complaints)))
            if rows_max is not None and count > rows_max:
                raise ReleaseRefused("rows", f"{name} has {count} rows; the manifest says {rows_max}")
            line += lines
    if plan is None and dialect.names:
        raise ReleaseRefused("layout", f"{name} is empty; a header is expected")
    frame.check(count)
    if actions is None:
        gathered.into(rows, removed)
    return count


def _read_chunk(
    data: bytes,
    lines: int,
    plan: Plan,
    into: tuple[Rows | None, Reasons, Tally],
    actions: "Actions",
) -> tuple[Mask, Mask, Mask]:
    """Take some lines: of the rows that they hold, which are bad, which hold a range over the limit, and which no date."""
    rows, reasons, tally = into
    columns, layout = _columns(data, lines, plan), plan.layout
    if not len(columns[plan.subject[0]]):  # blank lines
        return np.zeros(0, bool), np.zeros(0, bool), np.zeros(0, bool)
    plus = b"+" in data  # numbers may have a sign, identifiers may not
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
    days, odd = _days(columns, layout)
    if ACTION in columns:
        goes, readable = _codes(columns, layout)
        good &= readable
    wide = _ranges(plan, keys, good, tally)
    bad = ~good
    if layout.junk and bad.any():
        junk = ~parsed[0][1] & _matches(columns[plan.subject[0]], _DIRBS_JUNK)
        tally.skipped += int(junk.sum())
        bad &= ~junk
    why = None if REASON not in columns else _reason_indexes(_said(columns[REASON], layout), reasons)
    if plan.subject == BY_TAC:
        keys.append(keys[0] + np.uint64(SNR_KEYS - 1))
    if plan.subject == BY_TYPE:
        keys.insert(1, days)
    keys, why, until = [_some(each, good) for each in keys], _some(why, good), _some(until, good)
    if goes is not None:
        when = columns[WHEN].cast(pl.Int64).to_numpy() if WHEN in columns else None
        actions.add(_Part(plan, keys, _some(goes, good), _some(when, good), why, until))
    elif rows is not None:
        _add(rows, plan, keys, why, until)
    return bad, wide, odd


class _Part(NamedTuple):
    """Rows that say whether they add or remove, in the order in which they came."""

    plan: Plan
    keys: Sequence[Keys]
    """As _add takes them."""
    goes: Mask
    when: Seconds | None
    """Unix seconds, where the layout has them."""
    why: ReasonIndexes | None
    until: Seconds | None


class Actions:
    """Rows that say whether they add or remove. For each entry the latest row counts; among rows of one time, or without one, the last one."""

    def __init__(self) -> None:
        self._parts: list[_Part] = []

    def add(self, part: _Part) -> None:
        """More of them."""
        self._parts.append(part)

    def into(self, rows: Rows | None, removed: Rows | None) -> None:
        """Hand on the rows that count; nothing is left here."""
        parts, self._parts = [part for part in self._parts if len(part.goes)], []
        for part, counts in zip(parts, _latest(parts), strict=True):
            for taker, which in ((rows, counts & ~part.goes), (removed, counts & part.goes)):
                if taker is not None:
                    keys = [_some(each, which) for each in part.keys]
                    _add(taker, part.plan, keys, _some(part.why, which), _some(part.until, which))


def _latest(parts: Sequence[_Part]) -> list[Mask]:
    """The rows of each part that count. Those of an entry that no row removes all do, unless they have times."""
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
    found, at = [], 0
    for which in disputed:
        mine = ~which
        mine[which] = counts[at : at + int(which.sum())]
        at += int(which.sum())
        found.append(mine)
    return found


def _close_ranges(columns: dict[str, pl.Series], plan: Plan) -> None:
    """Close a range that may lack an end: it is then its first identifier alone."""
    if plan.may_be_open:
        columns["imei_to"] = columns["imei_from"].zip_with(columns["imei_to"].fill_null("") == "", columns["imei_to"])


def _ranges(plan: Plan, keys: Sequence[Keys], good: Mask, tally: Tally) -> Mask:
    """The rows with a range over the limit. Rows whose range ends before it begins are no longer `good`."""
    if plan.subject != BY_RANGE:
        return np.zeros(len(good), bool)
    good &= keys[0] <= keys[1]
    return good & (keys[1] - keys[0] >= np.uint64(tally.range_tacs_max * SNR_KEYS))


_Values = TypeVar("_Values", bound=NDArray[Any] | None)


def _some(values: _Values, which: Mask) -> _Values:
    return values if values is None or which.all() else cast("_Values", values[which])


def _add(rows: Rows, plan: Plan, keys: Sequence[Keys], why: ReasonIndexes | None, until: Seconds | None) -> None:
    if plan.subject in {BY_PAIR, BY_TYPE}:  # between a TAC and its type stands the day of its allocation
        rows.add_pairs(keys[0], keys[-1], why, until, *keys[1:-1])
        return
    if plan.may_be_open and (single := keys[0] == keys[1]).any():  # as ranges they would take long
        rows.add(_some(keys[0], single), _some(why, single), _some(until, single))
        keys, why, until = [_some(each, ~single) for each in keys], _some(why, ~single), _some(until, ~single)
    if len(keys) == 1:
        rows.add(keys[0], why, until)
    elif len(keys[0]):
        rows.add_spans(keys[0], keys[1], why, until)


def _codes(columns: Mapping[str, pl.Series], layout: Layout) -> tuple[Mask, Mask]:
    """The rows that one of their codes removes, and the rows whose codes are known."""
    texts = [columns[name].str.strip_chars().fill_null("") for name in (ACTION, CHANGE) if name in columns]
    removes = [codes.is_in(list(layout.removed)).to_numpy() for codes in texts]
    adds = [codes.is_in(list(layout.added)).to_numpy() for codes in texts]
    return np.logical_or.reduce(removes), np.logical_and.reduce(
        [gone | comes for gone, comes in zip(removes, adds, strict=True)]
    )


def _said(texts: pl.Series, layout: Layout) -> pl.Series:
    """Reasons, by their codes if the layout has some."""
    return texts.str.strip_chars().replace(dict(layout.reasons)) if layout.reasons else texts


_POWERS = np.array([10**digits for digits in range(20)], np.uint64)


def _device_keys(texts: pl.Series, plus: bool) -> Parsed:
    """IMEIs, IMEISVs and MEIDs."""
    keys, good = _imeis(texts, plus)
    if not good.all() and (letters := ~good & _matches(texts, _MEID)).any():
        keys = keys.copy()
        keys[letters] = texts.filter(pl.Series(letters)).str.to_integer(base=16).to_numpy() + MEID_BASE
        good |= letters
    return keys, good


def _any_keys(texts: pl.Series, plus: bool) -> Parsed:
    """Keys of anything that devices call themselves."""
    keys, good = _device_keys(texts, plus)
    if not good.all():
        keys, good = keys.copy(), good.copy()
        for row in np.flatnonzero(~good):  # few: a register has some thousands of these
            with suppress(IdentifierError):
                keys[row], good[row] = odd_key(texts[int(row)] or ""), True
    return keys, good


def _imeis(texts: pl.Series, plus: bool) -> Parsed:
    """IMEIs and IMEISVs."""
    numbers, good = _digits(texts, plus, IMEI_LENGTHS)
    lengths = texts.str.len_bytes().fill_null(0).to_numpy()
    if (lengths == KEY_DIGITS).all():  # no division
        return numbers, good
    return numbers // _POWERS[np.clip(lengths.astype(np.int64) - KEY_DIGITS, 0, 2)], good


def _tacs(texts: pl.Series, plus: bool) -> Parsed:
    """The lowest keys of TACs."""
    numbers, good = _digits(texts, plus, (TAC_DIGITS,))
    return numbers * np.uint64(SNR_KEYS), good


def _imsis(texts: pl.Series, plus: bool) -> Parsed:
    """IMSIs, as eir.device.imsi_key gives them: with a leading 1."""
    numbers, good = _digits(texts, plus, IMSI_LENGTHS)
    lengths = texts.str.len_bytes().fill_null(0).to_numpy()
    return numbers + _POWERS[np.minimum(lengths, IMSI_LENGTHS[-1])], good


def _types(texts: pl.Series, _: bool) -> Parsed:
    """Device types; none is a type too, which no rule can name."""
    texts = texts.fill_null("")
    known = {text: device_type_key(text) for text in texts.unique().to_list()}
    return texts.replace_strict(known, return_dtype=pl.UInt64).to_numpy(), np.ones(len(texts), bool)


_KEYS_OF: Mapping[str, Callable[[pl.Series, bool], Parsed]] = {
    "imei": _device_keys, "identifier": _any_keys, "tac": _tacs, "imei_from": _imeis, "imei_to": _imeis, "imsi": _imsis,
    "device_type": _types,
}  # fmt: skip
"""The same as layout's table, for whole columns."""


def _wrong_check_digits(texts: pl.Series, plus: bool) -> int:
    """Count the IMEIs of 15 digits that end in neither the Luhn digit of TS 23.003 annex B nor the spare 0."""
    numbers, good = _digits(texts, plus, (KEY_DIGITS + 1,))
    left, last = np.divmod(numbers[good], np.uint64(10))
    total = np.zeros(len(left), np.uint64)
    for position in range(KEY_DIGITS):
        left, digit = np.divmod(left, np.uint64(10))
        total += digit if position % 2 else np.where(digit > 4, 2 * digit - np.uint64(9), 2 * digit)
    return int(np.count_nonzero((last != 0) & ((total + last) % 10 != 0)))


def _digits(texts: pl.Series, plus: bool, lengths: Sequence[int]) -> Parsed:
    """Texts of digits only, of these lengths, as numbers."""
    numbers = texts.cast(pl.UInt64, strict=False)
    sizes = texts.str.len_bytes()
    if not plus and not numbers.null_count() and sizes.min() in lengths and sizes.max() in lengths:
        return numbers.to_numpy(), np.ones(len(numbers), bool)
    size = sizes.fill_null(0).to_numpy()
    good = numbers.is_not_null().to_numpy() & (size >= lengths[0]) & (size <= lengths[-1])
    if plus:  # a sign is a number's, not an identifier's
        good &= ~texts.str.starts_with("+").fill_null(value=False).to_numpy()
    return numbers.fill_null(0).to_numpy(), good


def _ends(texts: pl.Series, form: str | None) -> tuple[Seconds, Mask]:
    """Unix seconds of each `until`, and which rows have one that can be read; as until_seconds."""
    texts = texts.fill_null("")
    known: dict[str, int | None] = dict.fromkeys(texts.unique().to_list())
    for text in known:
        with suppress(ValueError):
            known[text] = until_seconds(text, form)
    seconds = texts.replace_strict(known, return_dtype=pl.Int64)
    return seconds.fill_null(0).to_numpy(), seconds.is_not_null().to_numpy()


def _days(columns: Mapping[str, pl.Series], layout: Layout) -> tuple[Keys, Mask]:
    """Unix seconds of each row's day, 0 for none, and the rows whose date cannot be read."""
    if DATE not in columns:
        rows = len(next(iter(columns.values())))
        return np.zeros(rows, np.uint64), np.zeros(rows, bool)
    ends, readable = _ends(columns[DATE], layout.dates)
    return (np.maximum(ends - 1, 0) // DAY_S * DAY_S).astype(np.uint64), ~readable


def _matches(texts: pl.Series, pattern: str) -> Mask:
    return texts.str.contains(pattern).fill_null(value=False).to_numpy()


def _columns(data: bytes, lines: int, plan: Plan) -> dict[str, pl.Series]:
    """The plan's columns of some lines; blank lines do not count."""
    in_file_order = sorted(set(plan.at.values()))
    if data.startswith(BOM):  # the file's own is gone, and polars would take another one for that of a file
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
    found = [fields_of(line, plan) for line in data.split(b"\n") if line]
    return {column: pl.Series([fields[column] for fields in found], dtype=pl.String) for column in plan.at}


def _lines(data: bytes) -> int:
    return int(np.count_nonzero(np.frombuffer(data, np.uint8) == ord("\n")))


def _reason_indexes(texts: pl.Series, reasons: Reasons) -> ReasonIndexes:
    """The byte for each text; new texts become known."""
    texts = texts.fill_null("")
    if texts.str.len_bytes().max() > REASON_CHARS_MAX:  # type: ignore[operator]  # polars: any literal; these are numbers
        texts = texts.str.slice(0, REASON_CHARS_MAX)
    found = _known_reasons(texts, reasons)
    if found.null_count():
        for text in texts.filter(found.is_null()).unique(maintain_order=True).to_list():
            if reasons.index(text) == REASONS_MAX:
                break
        found = _known_reasons(texts, reasons).fill_null(REASONS_MAX)
    return found.to_numpy()


def _known_reasons(texts: pl.Series, reasons: Reasons) -> pl.Series:
    return texts.cast(pl.Enum(reasons.known), strict=False).to_physical().cast(pl.UInt8)


def _name_rows(
    names: list[str], where: tuple[str, int], chunk: bytes, which: Mask, plan: Plan, *, most: int, says: str | None
) -> None:
    """Add `file:line: what is wrong` for the first of these rows. `where`: the file, and the line that begins the chunk."""
    wanted = set(np.flatnonzero(which)[: most - len(names)].tolist())
    if wanted:
        lines = ((line, text) for line, text in enumerate(chunk.split(b"\n"), where[1]) if text)
        names += [
            f"{where[0]}:{line}: {says or complaint(text, plan)}"
            for row, (line, text) in enumerate(lines)
            if row in wanted
        ]

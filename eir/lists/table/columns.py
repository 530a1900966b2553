"""Rows of a list as columns, and the place of a key among the blocks of a table.

A row has a key, a second key (IMSI or device type; 0 in other lists), the index of a reason, a begin, an end and a day. The key
is that of a device, a subscriber (eir.device) or a whole TAC (WHOLE | TAC). Rows are sorted by key and second key.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from eir.device import SNR_KEYS

Numbers: TypeAlias = NDArray[Any]
Columns: TypeAlias = "tuple[Numbers | None, ...]"
"""One array for each name in COLUMNS; None for a column that has only zeros."""

WHOLE = 1 << 60
"""Flag of a key that stands for a whole TAC; the other bits are the TAC."""
COLUMNS = {"seconds": "<u8", "reasons": "<u1", "begins": "<u4", "ends": "<u4", "days": "<u2"}
"""Columns beside the key, with their types. `begins` and `ends` are in Unix seconds, `days` in days since 1970-01-01; 0 for none."""
DAY_MAX = 0xFFFF
"""Number above all days that a row can have."""
SECONDS, REASONS, BEGINS, ENDS, DAYS = range(len(COLUMNS))
"""Index of each column."""
LOW_BITS, BLOCKS_PER_TAC = 16, 16
_WHOLE_BLOCKS = 1 << 44
"""First number of the blocks of whole TACs, above all blocks of identifiers."""
_TAGGED_MAX = 1 << 55
"""Keys below this number fit into 64 bits together with a reason."""


@dataclass(frozen=True, slots=True)
class TableRows:
    """Rows of a list or of a change, sorted by key and second key; each pair of both keys occurs once."""

    keys: Numbers
    columns: Columns

    def __len__(self) -> int:
        return len(self.keys)

    def column(self, index: int) -> Numbers:
        """Return a column; an absent one as zeros."""
        values = self.columns[index]
        return np.zeros(len(self.keys), [*COLUMNS.values()][index]) if values is None else values

    def select(self, where: Numbers) -> "TableRows":
        """Select rows by a mask or by their indexes."""
        return TableRows(
            self.keys[where], tuple(values if values is None else values[where] for values in self.columns)
        )


NO_COLUMNS: Columns = (None,) * len(COLUMNS)
NO_ROWS = TableRows(np.empty(0, "<u8"), NO_COLUMNS)


def places_of(keys: Numbers) -> tuple[Numbers, Numbers]:
    """Return the number of the block of each key, and its position in the block. A block has 2^16 keys of one TAC, or 2^16 whole TACs."""
    whole = keys >= np.uint64(WHOLE)
    has_whole = bool(whole.any())
    tacs, snrs = tacs_and_snrs(np.where(whole, 0, keys) if has_whole else keys)
    tacs *= np.uint64(BLOCKS_PER_TAC)
    tacs |= snrs >> np.uint32(LOW_BITS)
    lows = snrs.astype("<u2")
    if not has_whole:
        return tacs, lows
    numbers = keys & np.uint64(WHOLE - 1)
    blocks = np.where(whole, np.uint64(_WHOLE_BLOCKS) | numbers >> np.uint64(LOW_BITS), tacs)
    return blocks, np.where(whole, numbers.astype("<u2"), lows)


def block_numbers(keys: Numbers) -> Numbers:
    """Return the number of the block of each key."""
    return places_of(keys)[0]


def tacs_and_snrs(keys: Numbers) -> tuple[Numbers, Numbers]:
    """Divide keys by the number of keys of a TAC; return quotients and remainders.

    The division in float64 is several times as fast as that of integers. For keys below 2^52 it is exact: a quotient below a
    whole number differs from that number by at least 10^-6, and the rounding error is smaller.
    """
    if len(keys) and int(keys.max()) < 1 << 52:
        tacs = (keys.view(np.int64) / np.float64(SNR_KEYS)).astype(np.int64).view(np.uint64)
    else:
        tacs = keys // np.uint64(SNR_KEYS)
    return tacs, keys.astype("<u4") - tacs.astype("<u4") * np.uint32(SNR_KEYS)


def keys_of(blocks: Numbers, lows: Numbers) -> Numbers:
    """Return the keys at these positions of these blocks; the inverse of `places_of`."""
    tacs = blocks >> np.uint64(4)
    snrs = (blocks & np.uint64(BLOCKS_PER_TAC - 1)) << np.uint64(LOW_BITS) | lows
    keys: Numbers = tacs * np.uint64(SNR_KEYS) + snrs
    is_whole = blocks >= np.uint64(_WHOLE_BLOCKS)
    if is_whole.any():
        tacs = (blocks & np.uint64(_WHOLE_BLOCKS - 1)) << np.uint64(LOW_BITS) | lows
        keys = np.where(is_whole, np.uint64(WHOLE) | tacs, keys)
    return keys


def is_first(*columns: Numbers) -> Numbers:
    """Return a mask of the rows that differ from the row before in at least one of these columns."""
    first = np.zeros(len(columns[0]), bool)
    first[:1] = True
    for column in columns:
        first[1:] |= column[1:] != column[:-1]
    return first


def distinct(values: Numbers) -> Numbers:
    """Return the distinct values, ascending. `np.unique` hashes 64-bit numbers, and is many times as slow."""
    ordered = np.sort(values)
    first = is_first(ordered)
    return ordered if first.all() else ordered[first]


def rows_of(keys: Iterable[int] | Numbers, **columns: Any) -> TableRows:
    """Build sorted rows from rows in any order. `columns`: values by the names in COLUMNS, one value for each row or one for all.

    Of rows with equal keys the earliest begin, the latest end and the earliest day count, and the reason of the row with the
    latest end; of several such reasons the one with the lowest index.
    """
    array = keys if isinstance(keys, np.ndarray) else np.fromiter(keys, "<u8")
    given = [(columns.get(name), form) for name, form in COLUMNS.items()]
    full = tuple(None if values is None else _shaped(values, form, len(array)) for values, form in given)
    return sorted_rows(TableRows(array.astype("<u8"), full))


def _shaped(values: Any, form: str, rows: int) -> Numbers | None:
    column = np.broadcast_to(np.asarray(values, form), rows)
    return column if column.any() else None


def sorted_rows(rows: TableRows) -> TableRows:
    """Sort rows in any order, and merge those with equal keys as `rows_of`. The memory of the keys is used again."""
    seconds, reasons, begins, ends, days = rows.columns
    if len(rows) and seconds is None and begins is None and ends is None and days is None:
        if reasons is None:
            return _alone(rows.keys, None)
        is_low = rows.keys < np.uint64(_TAGGED_MAX)
        if is_low.all():
            return _alone(rows.keys, reasons)
        if is_low.any():
            return join((sorted_rows(rows.select(is_low)), sorted_rows(rows.select(~is_low))))
    order = np.argsort(rows.keys)
    keys = rows.keys[order]
    equal = keys[1:] == keys[:-1]
    if not equal.any():
        return rows.select(order)
    again = np.flatnonzero(np.append(equal, False) | np.append(False, equal))
    order[again] = order[again][_preference(rows.select(order[again]))]
    return _merged(rows.select(order))


def _alone(keys: Numbers, reasons: Numbers | None) -> TableRows:
    """Sort keys in place, each with its reason below it in one number; of equal keys the lowest reason counts."""
    indexes = None
    if reasons is not None:
        keys <<= np.uint64(8)
        keys |= reasons - np.uint8(1)  # 0, no reason, comes after all reasons
    keys.sort()
    if reasons is not None:
        indexes = keys.astype("<u1") + np.uint8(1)
        keys >>= np.uint64(8)
    rows, first = TableRows(keys, (None, indexes, None, None, None)), is_first(keys)
    return rows if first.all() else rows.select(first)


def _preference(rows: TableRows) -> Numbers:
    """Return the order of rows by their keys in which the preferred one of equal keys is last: the latest end, then the lowest reason."""
    seconds, reasons, _, ends, _ = rows.columns
    order: list[Numbers] = [] if reasons is None else [~(reasons - np.uint8(1))]
    order += [] if ends is None else [ends - np.uint32(1)]
    order += [rows.keys] if seconds is None else [seconds, rows.keys]
    return np.lexsort(order)


def _merged(ordered: TableRows) -> TableRows:
    """Merge rows with equal keys; the preferred one is last."""
    seconds, *_, days = ordered.columns
    first = is_first(ordered.keys, *([] if seconds is None else [seconds]))
    merged = merge_runs(ordered, first)
    if days is None or first.all():
        return merged
    # 0 is no day, so one less is the highest number.
    earliest = np.minimum.reduceat(days - np.uint16(1), np.flatnonzero(first)) + np.uint16(1)
    return TableRows(merged.keys, (*merged.columns[:DAYS], earliest))


def merge_runs(rows: TableRows, first: Numbers) -> TableRows:
    """Merge runs of rows with equal keys to one row each. `first`: mask of the first row of each run.

    The earliest begin and the latest end count, and the last reason and day that are not 0.
    """
    if first.all():
        return rows
    starts = np.flatnonzero(first)
    seconds, reasons, begins, ends, days = rows.columns
    return TableRows(
        rows.keys[starts],
        (
            None if seconds is None else seconds[starts],
            None if reasons is None else _last_value(reasons, starts),
            None if begins is None else np.minimum.reduceat(begins, starts),
            # 0 is no end, so it is the latest one: one less is the highest number.
            None if ends is None else np.maximum.reduceat(ends - np.uint32(1), starts) + np.uint32(1),
            None if days is None else _last_value(days, starts),
        ),
    )


def _last_value(values: Numbers, starts: Numbers) -> Numbers:
    """Return the last value of each run that is not 0; 0 if it has none."""
    places = np.where(values != 0, np.arange(len(values)), -1)
    last = np.maximum.reduceat(places, starts)
    return np.where(last >= starts, values[last], values.dtype.type(0))


def join(parts: Sequence[TableRows]) -> TableRows:
    """Concatenate rows in this order."""
    if len(parts) == 1:
        return parts[0]
    columns = []
    for index in range(len(COLUMNS)):
        is_absent = all(part.columns[index] is None for part in parts)
        columns.append(None if is_absent else np.concatenate([part.column(index) for part in parts]))
    return TableRows(np.concatenate([part.keys for part in parts]), tuple(columns))


def matches(rows: TableRows, others: TableRows) -> Numbers:
    """Return for each row the index of the other row with the same keys, or -1. Both are sorted."""
    if rows.columns[SECONDS] is None and others.columns[SECONDS] is None:
        if not len(others):
            return np.full(len(rows), -1)
        at = np.searchsorted(others.keys, rows.keys)
        at[at == len(others)] = 0
        return np.where(others.keys[at] == rows.keys, at, -1)
    keys = np.concatenate((others.keys, rows.keys))
    seconds = np.concatenate((others.column(SECONDS), rows.column(SECONDS)))
    order = np.lexsort((np.repeat([0, 1], [len(others), len(rows)]), seconds, keys))
    again = np.flatnonzero(~is_first(keys[order], seconds[order]))
    found = np.full(len(rows), -1)
    found[order[again] - len(others)] = order[again - 1]
    return found

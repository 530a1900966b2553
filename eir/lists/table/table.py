"""Table: content of a list as compact columns, and the effect of a change on it.

Keys are stored as blocks (eir.lists.table.columns): number of the block, index of its first row, and for each row the lower 16 bits.
The blocks are those of an image, so that both can share memory.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, TypeAlias

import numpy as np

from eir.device import SNR_KEYS
from eir.lists.table.columns import (
    BEGINS,
    BLOCKS_PER_TAC,
    COLUMNS,
    ENDS,
    NO_COLUMNS,
    SECONDS,
    WHOLE,
    Columns,
    Numbers,
    TableRows,
    block_numbers,
    distinct,
    is_first,
    join,
    keys_of,
    matches,
    merge_runs,
    places_of,
    tacs_and_snrs,
)


@dataclass(frozen=True, slots=True)
class Table:
    """Content of a list in compact form. A table is immutable."""

    blocks: Numbers
    """Numbers of the blocks, ascending."""
    starts: Numbers
    """Index of the first row of each block, and at the end the number of rows."""
    lows: Numbers
    """Position of each row's key in its block."""
    columns: Columns = NO_COLUMNS

    def __len__(self) -> int:
        return len(self.lows)

    def rows(self, numbers: Numbers | None = None) -> TableRows:
        """Return the rows of the blocks with these numbers, in this order; None: of all blocks."""
        if numbers is None:
            keys = np.empty(len(self), "<u8")
            firsts = self.starts.searchsorted(np.arange(0, len(self), _BATCH_ROWS), "right") - 1
            for first, after in pairwise([*firsts.tolist(), len(self.blocks)]):
                keys[self.starts[first] : self.starts[after]] = _slice(self, first, after).keys
            return TableRows(keys, self.columns)
        spans = _locate(self, numbers)
        sizes = spans.last - spans.first
        index = np.arange(int(sizes.sum())) + np.repeat(spans.first - (np.cumsum(sizes) - sizes), sizes)
        columns = tuple(None if values is None else values[index] for values in self.columns)
        return TableRows(keys_of(np.repeat(numbers, sizes), self.lows[index]), columns)

    def find(self, key: int) -> TableRows:
        """Return the rows of a key."""
        rows = self.rows(block_numbers(np.array([key], "<u8")))
        return rows.select(rows.keys == np.uint64(key))

    def find_device(self, key: int) -> TableRows:
        """Return the rows that list a device: first its own, then that of its whole TAC."""
        return join((self.find(key), self.find(WHOLE | key // SNR_KEYS)))


_WHOLE_BLOCK = block_numbers(np.array([WHOLE], "<u8"))[0]
"""First number of the blocks of whole TACs."""
_LIMITS = np.array([0, 1 << 63], "<u8")
"""Lowest number of a block, and a number above all blocks."""
_BATCH_ROWS = 1 << 16
"""Maximum number of rows in addition to those of one block that are converted or compared at once; their arrays fit into the processor's cache."""
EMPTY = Table(np.empty(0, "<u8"), np.zeros(1, "<u4"), np.empty(0, "<u2"))


def table_of(rows: TableRows) -> Table:
    """Build the table of sorted rows.

    Raises:
        ValueError: if there are 2^32 rows or more.
    """
    if len(rows) >= 1 << 32:
        raise ValueError("a list has more rows than a table can hold")
    lows, blocks, starts, last = np.empty(len(rows), "<u2"), [EMPTY.blocks], [np.empty(0, "<u4")], None
    for start in range(0, len(rows), _BATCH_ROWS):
        slab = slice(start, start + _BATCH_ROWS)
        numbers, lows[slab] = places_of(rows.keys[slab])
        first = np.flatnonzero(is_first(numbers))
        if numbers[0] == last:  # the block of the slab before
            first = first[1:]
        last = numbers[-1]
        blocks.append(numbers[first])
        starts.append((first + start).astype("<u4"))
    columns = tuple(None if values is None or not values.any() else values for values in rows.columns)
    return Table(np.concatenate(blocks), np.append(np.concatenate(starts), np.uint32(len(rows))), lows, columns)


class TableEffect(NamedTuple):
    """Effect of a change on a table."""

    table: Table
    """Content after the change."""
    blocks: Numbers
    """Numbers of the changed blocks, ascending."""
    added: TableRows
    removed: TableRows
    """Rows that lead from the content before to the content after: `removed` first, then `added`."""
    rows_added: int
    """Number of added rows whose keys the content before lacks."""
    rows_removed: int
    devices_added: int
    """Number of identifiers that the list has only after the change; a whole TAC has a million.

    In a list with second keys, number of keys that get a new second key. Rows that have ended do not count. Rows that have not begun count.
    """
    devices_removed: int
    """Number of identifiers that a row in force lists before the change and none after it. Rows that have not begun do not count."""


def change(old: Table, added: TableRows, removed: TableRows, now: int = 0) -> TableEffect:
    """Remove rows from a table, then add rows. An added row and a present row with the same keys are merged (`merge_runs`).

    Only the blocks of these rows are decoded, and only rows with their keys are compared. `now`: Unix seconds until which rows have ended;
    0: no row has ended.
    """
    keys = distinct(np.concatenate((added.keys, removed.keys)))
    numbers = distinct(block_numbers(keys))
    around = old.rows(numbers)
    firsts, ends = around.keys.searchsorted(keys), around.keys.searchsorted(keys, "right")
    # 1 at the first row of each key and -1 behind its last row: the running sum is 1 at the rows of the keys.
    is_before = np.zeros(len(around) + 1, "i1")
    np.add.at(is_before, firsts, 1)
    np.add.at(is_before, ends, -1)
    is_before = np.cumsum(is_before[:-1], dtype="i1").view(bool)
    before = around.select(is_before)
    after = merge(before.select(matches(before, removed) < 0), added)
    table = _splice(old, numbers, table_of(_inserted(around.select(~is_before), after)))
    return _effect(_State(old, before), _State(table, after), *_different_rows(before, after), now)


def _inserted(rows: TableRows, others: TableRows) -> TableRows:
    """Return sorted rows together with others that have none of their keys, in the order of the keys."""
    at = rows.keys.searchsorted(others.keys)
    columns = (
        None if mine is None and more is None else np.insert(rows.column(index), at, others.column(index))
        for index, (mine, more) in enumerate(zip(rows.columns, others.columns, strict=True))
    )
    return TableRows(np.insert(rows.keys, at, others.keys), tuple(columns))


def replacement(old: Table, new: Table, now: int = 0) -> TableEffect:
    """Return the effect of a whole new content in place of an old one. `now`: as for `change`."""
    added, removed = difference(old, new)
    return _effect(_State(old, removed), _State(new, added), added, removed, now)


def difference(old: Table, new: Table) -> tuple[TableRows, TableRows]:
    """Return the rows that a change adds to the table `old` and removes from it, so that it has the content of `new`.

    A row with another value in a column is removed and added.
    """
    if not len(old) or not len(new):
        return new.rows(), old.rows()
    rows = [np.arange(0, len(table), _BATCH_ROWS) for table in (old, new)]
    firsts = [
        table.blocks[table.starts.searchsorted(at, "right") - 1] for table, at in zip((old, new), rows, strict=True)
    ]
    numbers = distinct(np.concatenate((*firsts, _LIMITS)))
    places = [table.blocks.searchsorted(numbers).tolist() for table in (old, new)]
    parts = [
        _different_rows(_slice(old, *before), _slice(new, *after))
        for before, after in zip(*map(pairwise, places), strict=True)
    ]
    return join([added for added, _ in parts]), join([removed for _, removed in parts])


def _slice(table: Table, block: int, block_end: int) -> TableRows:
    """Return the rows of the blocks with these indexes."""
    starts = table.starts[block : block_end + 1]
    at = slice(int(starts[0]), int(starts[-1]))
    keys = keys_of(np.repeat(table.blocks[block:block_end], np.diff(starts)), table.lows[at])
    return TableRows(keys, tuple(None if values is None else values[at] for values in table.columns))


def _different_rows(before: TableRows, after: TableRows) -> tuple[TableRows, TableRows]:
    """Return the rows that only `after` has, and those that only `before` has."""
    at = matches(after, before)
    same = at >= 0
    for index in range(len(COLUMNS)):
        if after.columns[index] is not None or before.columns[index] is not None:
            same[same] &= after.column(index)[same] == before.column(index)[at[same]]
    gone = np.ones(len(before), bool)
    gone[at[same]] = False
    return after.select(~same), before.select(gone)


def has_ended(rows: TableRows, now: int) -> Numbers:
    """Return a mask of the rows that have ended by `now` (Unix seconds)."""
    ends = rows.column(ENDS)
    return (ends > 0) & (ends <= now)


def not_ended(rows: TableRows, now: int) -> TableRows:
    """Return the rows that have not ended by `now` (Unix seconds)."""
    return rows if rows.columns[ENDS] is None else rows.select(~has_ended(rows, now))


def in_force(rows: TableRows, now: int) -> TableRows:
    """Return the rows that have begun and have not ended by `now` (Unix seconds)."""
    rows = not_ended(rows, now)
    return rows if rows.columns[BEGINS] is None else rows.select(rows.column(BEGINS) <= now)


def merge(rows: TableRows, later: TableRows) -> TableRows:
    """Merge sorted rows with later ones: earliest begin, latest end, and the later reason and day unless they are 0."""
    if not len(rows) or not len(later):
        return rows if len(rows) else later
    both = join((rows, later))
    seconds = both.columns[SECONDS]
    columns = [both.keys] if seconds is None else [seconds, both.keys]
    ordered = both.select(np.lexsort(columns))  # a stable sort: a later row is behind
    return merge_runs(ordered, is_first(ordered.keys, *([] if seconds is None else [ordered.column(SECONDS)])))


def fold(changes: Sequence[tuple[TableRows, TableRows]]) -> tuple[TableRows, TableRows]:
    """Combine successive changes, each of added and removed rows, to one with the same effect."""
    if len(changes) == 1:
        return changes[0]
    middle = len(changes) // 2  # halves: each row is merged once for each doubling of the number of changes
    (added, removed), (more, fewer) = fold(changes[:middle]), fold(changes[middle:])
    if len(fewer):
        added = added.select(matches(added, fewer) < 0)
        removed = merge(removed, fewer)
    return merge(added, more), removed


def device_count(table: Table) -> int:
    """Return the number of listed identifiers: a whole TAC has a million, and identifiers of it do not count again."""
    tacs = _whole_tacs(table)
    singles = int(_key_starts(table)[np.searchsorted(table.blocks, _WHOLE_BLOCK)])
    return singles - _singles_in(table, tacs) + len(tacs) * SNR_KEYS


def devices_in_force(table: Table, now: int) -> int:
    """Return the number of identifiers that rows list which have begun and have not ended by `now` (Unix seconds)."""
    if table.columns[BEGINS] is None and table.columns[ENDS] is None:
        return device_count(table)
    rows = TableRows(np.arange(len(table), dtype="<u4"), table.columns)
    index = in_force(rows, now).keys
    starts = np.searchsorted(index, table.starts).astype("<u4")
    is_kept = starts[1:] > starts[:-1]
    seconds = table.columns[SECONDS]
    columns: Columns = (None if seconds is None else seconds[index], *NO_COLUMNS[1:])
    return device_count(
        Table(table.blocks[is_kept], np.append(starts[:-1][is_kept], starts[-1]), table.lows[index], columns)
    )


def _key_starts(table: Table) -> Numbers:
    """Return the number of distinct keys before each block, and at the end that of all blocks."""
    if table.columns[SECONDS] is None or not len(table):
        return table.starts
    first = is_first(table.lows)
    first[table.starts[:-1]] = True
    return np.searchsorted(np.flatnonzero(first), table.starts)


def _whole_tacs(table: Table) -> Numbers:
    """Return the TACs that are listed as a whole, ascending."""
    return _split(distinct(table.rows(table.blocks[np.searchsorted(table.blocks, _WHOLE_BLOCK) :]).keys))[1]


def _singles_in(table: Table, tacs: Numbers) -> int:
    """Return the number of identifiers that the table lists singly in these TACs."""
    if not len(tacs):
        return 0
    starts = _key_starts(table).astype(np.int64)
    first, end = (
        np.searchsorted(table.blocks, tacs_of * np.uint64(BLOCKS_PER_TAC)) for tacs_of in (tacs, tacs + np.uint64(1))
    )
    return int((starts[end] - starts[first]).sum())


_Counted: TypeAlias = "Callable[[TableRows, int], TableRows]"
"""Function that selects the rows whose identifiers count at a time in Unix seconds."""


class _State(NamedTuple):
    """A table, and those of its rows that the table before or after a change may lack."""

    table: Table
    rows: TableRows


def _effect(before: _State, after: _State, added: TableRows, removed: TableRows, now: int) -> TableEffect:
    rows_added, devices_added = _gained(after, before, not_ended, now)
    rows_removed, devices_removed = _gained(before, after, in_force, now)
    blocks = distinct(np.concatenate([_blocks_of(rows) for rows in (added, removed)]))
    return TableEffect(after.table, blocks, added, removed, rows_added, rows_removed, devices_added, devices_removed)


def _blocks_of(rows: TableRows) -> Numbers:
    """Return the numbers of the blocks of sorted rows."""
    slabs = (block_numbers(rows.keys[start : start + _BATCH_ROWS]) for start in range(0, len(rows), _BATCH_ROWS))
    return np.concatenate([EMPTY.blocks, *(blocks[is_first(blocks)] for blocks in slabs)])


def _fresh_keys(rows: TableRows, others: TableRows) -> Numbers:
    """Return the keys of the rows that others lack."""
    return rows.keys[matches(rows, others) < 0] if len(others) else rows.keys


def _gained(state: _State, other: _State, counted: _Counted, now: int) -> tuple[int, int]:
    """Return the numbers of rows and of identifiers that a state has and another does not. `counted`: rows whose identifiers count."""
    rows, others = state.rows, other.rows
    fresh = _fresh_keys(rows, others)
    count = len(fresh)
    if any(each.columns[index] is not None for each in (rows, others) for index in (BEGINS, ENDS)):
        rows, others = counted(rows, now), counted(others, now)
        fresh = _fresh_keys(rows, others)
    if rows.columns[SECONDS] is not None or others.columns[SECONDS] is not None:
        return count, int(is_first(fresh).sum())
    singles, tacs = _split(fresh)
    # A TAC that is whole in either state is counted as a whole, or not at all.
    if has_whole(state.table) or has_whole(other.table):
        of_tacs = tacs_and_snrs(singles)[0]
        is_whole = has_tacs(state.table, of_tacs, now, counted) | has_tacs(other.table, of_tacs, now, counted)
        singles = singles[~is_whole]
    return count, len(singles) + len(tacs) * SNR_KEYS - count_singles(other.table, tacs, now, counted)


def _split(keys: Numbers) -> tuple[Numbers, Numbers]:
    """Split sorted keys into those of identifiers, and TACs that are listed as a whole."""
    at = int(np.searchsorted(keys, np.uint64(WHOLE)))
    return keys[:at], keys[at:] & np.uint64(WHOLE - 1)


def has_whole(table: Table) -> bool:
    """Return True if a table lists at least one whole TAC."""
    return len(table.blocks) > 0 and bool(table.blocks[-1] >= _WHOLE_BLOCK)


def has_tacs(table: Table, tacs: Numbers, now: int, counted: _Counted = not_ended) -> Numbers:
    """Return for each TAC whether the table lists it as a whole."""
    whole = distinct(tacs) | np.uint64(WHOLE)
    present = counted(table.rows(distinct(block_numbers(whole))), now).keys if len(whole) else whole
    return np.isin(tacs | np.uint64(WHOLE), present)


def count_singles(table: Table, tacs: Numbers, now: int, counted: _Counted = not_ended) -> int:
    """Return the number of identifiers that the table lists singly in these TACs."""
    numbers = tacs[:, None] * np.uint64(BLOCKS_PER_TAC) + np.arange(BLOCKS_PER_TAC, dtype="<u8")
    return len(counted(table.rows(numbers.ravel()), now))


class _Spans(NamedTuple):
    """Places of blocks in a table: ranges of the arrays by block and by row."""

    block: Numbers
    block_end: Numbers
    """Equal to `block` if the table lacks the block."""
    first: Numbers
    last: Numbers


def _locate(table: Table, numbers: Numbers) -> _Spans:
    at = np.searchsorted(table.blocks, numbers)
    inside = at < len(table.blocks)
    after = at.copy()
    after[inside] += table.blocks[at[inside]] == numbers[inside]
    return _Spans(at, after, table.starts[at].astype(np.int64), table.starts[after].astype(np.int64))


def _splice(old: Table, numbers: Numbers, new: Table) -> Table:
    """Replace the blocks with these numbers by those of another table; a block that it lacks is removed."""
    places, sources = _locate(old, numbers), _locate(new, numbers)
    block_spans = [*zip(*(column.tolist() for column in (*places[:2], *sources[:2])), strict=True)]
    row_spans = [*zip(*(column.tolist() for column in (*places[2:], *sources[2:])), strict=True)]

    def spliced(before: Numbers, after: Numbers, spans: Sequence[tuple[int, ...]]) -> Numbers:
        pieces, done = [], 0
        for low, high, start, stop in spans:
            pieces += [before[done:low], after[start:stop]]
            done = high
        return np.concatenate([*pieces, before[done:]])

    columns: list[Numbers | None] = []
    for before, after, form in zip(old.columns, new.columns, COLUMNS.values(), strict=True):
        if before is None and after is None:
            columns.append(None)
            continue
        full = [
            np.zeros(len(table), form) if values is None else values for values, table in ((before, old), (after, new))
        ]
        column = spliced(full[0], full[1], row_spans)
        columns.append(column if column.any() else None)
    sizes = spliced(np.diff(old.starts), np.diff(new.starts), block_spans)
    starts = np.zeros(len(sizes) + 1, "<u4")
    np.cumsum(sizes, out=starts[1:])
    return Table(
        spliced(old.blocks, new.blocks, block_spans), starts, spliced(old.lows, new.lows, row_spans), tuple(columns)
    )

"""Rows of data files as rows of a table: collects them in any order, and expands ranges to whole TACs and single identifiers."""

from typing import NamedTuple

import numpy as np

from eir.device import SNR_KEYS
from eir.errors import ReleaseRefused
from eir.lists.table.columns import (
    BEGINS,
    ENDS,
    NO_ROWS,
    REASONS,
    SECONDS,
    WHOLE,
    Numbers,
    TableRows,
    is_first,
    join,
    matches,
    sorted_rows,
)

RANGE_TACS_MAX = 500_000
"""Maximum number of TACs that all ranges and whole TACs of one release touch. `--force` does not lift this limit. GSMA has allocated half as many TACs."""
RANGE_KEYS_MAX = 10**8
"""Maximum number of identifiers of the ranges that cover only a part of a TAC."""
_TAC = np.uint64(SNR_KEYS)


def check_sides(added: TableRows, removed: TableRows) -> None:
    """Reject a delta that both adds and removes an entry.

    Raises:
        ReleaseRefused: `rows`.
    """
    common = int((matches(added, removed) >= 0).sum())
    if common:
        raise ReleaseRefused(
            "rows", f"{common:,} entries are both added and removed; name each entry in one of the files"
        )


class DataRows(NamedTuple):
    """Rows of data files: single keys, and ranges."""

    singles: TableRows
    """Sorted rows with one key, merged by `sorted_rows`."""
    ranges: TableRows
    """Rows with the first key of a range or of a whole TAC, in any order."""
    lasts: Numbers
    """Last key of each range."""


class ListedRows:
    """Rows of a release or of a change, collected in any order from all its files.

    A row lists one identifier, one whole TAC, one range or one pair. A range becomes a whole TAC for each TAC that it covers completely, and
    single identifiers for the rest. These depend only on the row itself, so that a chain of deltas leads to the same rows as the full list.
    """

    def __init__(self) -> None:
        self._singles = [NO_ROWS]
        self._ranges = [(NO_ROWS, NO_ROWS.keys)]
        self._expanded: list[TableRows] = []
        self._tacs = self._range_keys = 0

    def add(self, rows: TableRows, lasts: Numbers | None = None) -> None:
        """Add rows in any order. `lasts`: last key of each row, whose own key is the first one; None if each row has one key.

        Raises:
            ReleaseRefused: `range`, if ranges touch too many TACs, or too many identifiers of TACs that they cover in part.
        """
        if lasts is None:
            self._singles.append(rows)
            return
        single = rows.keys == lasts
        self._singles.append(rows.select(single))
        self._add_ranges(rows.select(~single), lasts[~single])

    def _add_ranges(self, rows: TableRows, lasts: Numbers) -> None:
        """Add rows with ranges. A range includes its first and its last key."""
        self._ranges.append((rows, lasts))
        firsts, afters = rows.keys, lasts + np.uint64(1)
        self._tacs += int((lasts // _TAC - firsts // _TAC + np.uint64(1)).sum())
        if self._tacs > RANGE_TACS_MAX:
            detail = (
                f"its ranges and TACs cover at least {self._tacs} TACs; the maximum for one release is {RANGE_TACS_MAX}"
            )
            raise ReleaseRefused("range", f"{detail}: split it into a full release and deltas")
        tacs, tacs_after = -(-firsts.astype(np.int64) // SNR_KEYS), afters.astype(np.int64) // SNR_KEYS
        whole = TableRows(tacs.astype("<u8") | np.uint64(WHOLE), rows.columns)
        # Before the first whole TAC, and after the last one; a range in one TAC is all before.
        head_after = np.minimum(tacs.astype("<u8") * _TAC, afters)
        tail = np.maximum(tacs_after.astype("<u8") * _TAC, head_after)
        self._range_keys += int((head_after - firsts).sum() + (afters - tail).sum())
        if self._range_keys > RANGE_KEYS_MAX:
            detail = f"its ranges that do not cover whole TACs have {self._range_keys} identifiers; the maximum is {RANGE_KEYS_MAX}"
            raise ReleaseRefused("range", f"{detail}: split the release, or list the identifiers one by one")
        self._expanded += [
            _expanded(whole, np.maximum(tacs_after - tacs, 0)),
            _expanded(rows, head_after - firsts),
            _expanded(TableRows(tail, rows.columns), afters - tail),
        ]

    def data_rows(self) -> DataRows:
        """Return the rows as data files have them, with ranges as they were added."""
        rows, lasts = zip(*self._ranges, strict=True)
        return DataRows(sorted_rows(join(self._singles)), join(rows), np.concatenate(lasts))

    def count_repeats(self) -> tuple[int, int]:
        """Return how many entries are listed again, and how many of these have another reason, begin or end than the row before.

        An entry is a single identifier, a whole TAC or a pair.
        """
        rows = join((*self._singles, *self._expanded))
        keys = np.sort(rows.keys)
        keys = np.append(keys[:-1][keys[:-1] == keys[1:]], np.uint64(2**64 - 1))
        rows = rows.select(keys[keys.searchsorted(rows.keys)] == rows.keys)
        rows = rows.select(np.lexsort((rows.column(SECONDS), rows.keys)))
        again = np.flatnonzero(~is_first(rows.keys, rows.column(SECONDS)))
        here, before = rows.select(again), rows.select(again - 1)
        differs = [here.column(index) != before.column(index) for index in (REASONS, BEGINS, ENDS)]
        return len(again), int(np.logical_or.reduce(differs).sum())

    def unite_reasons(self) -> int:
        """Give each entry the reason with the lowest index of all its rows; return the number of rows that had another reason."""
        rows = join((*self._singles, *self._expanded))
        rows = rows.select(np.lexsort((rows.column(SECONDS), rows.keys)))
        starts = np.flatnonzero(is_first(rows.keys, rows.column(SECONDS)))
        if len(starts) == len(rows):
            return 0
        seconds, _, *times = rows.columns
        reasons = rows.column(REASONS)
        lowest = np.minimum.reduceat(reasons - np.uint8(1), starts) + np.uint8(
            1
        )  # 0, no reason, comes after all reasons
        kept = np.repeat(lowest, np.diff(starts, append=len(rows)))
        others = int(((reasons != 0) & (reasons != kept)).sum())
        if others:  # also a range has one reason for each of its entries then
            rows = TableRows(rows.keys, (seconds, kept, *times))
            tacs = rows.select(rows.keys >= np.uint64(WHOLE))
            firsts = TableRows((tacs.keys - np.uint64(WHOLE)) * _TAC, tacs.columns)
            self._singles = [rows.select(rows.keys < np.uint64(WHOLE))]
            self._expanded, self._ranges = [tacs], [(firsts, firsts.keys + _TAC - np.uint64(1))]
        return others

    def pop(self) -> TableRows:
        """Return the sorted rows, and clear this object. Of repeated rows the earliest begin and the latest end count (`sorted_rows`)."""
        rows = join((*self._singles, *self._expanded))
        self._singles, self._ranges, self._expanded = [NO_ROWS], [(NO_ROWS, NO_ROWS.keys)], []
        return sorted_rows(rows)


def _expanded(rows: TableRows, counts: Numbers) -> TableRows:
    """Return for each row as many rows with consecutive keys as `counts` has for it."""
    counts = counts.astype(np.int64)
    expanded = rows.select(np.repeat(np.arange(len(rows)), counts))
    before = np.repeat(np.cumsum(counts) - counts, counts)
    return TableRows(expanded.keys + (np.arange(len(expanded)) - before).astype("<u8"), expanded.columns)

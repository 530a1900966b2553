"""Rows of data files as rows of a table: collects them in any order, and expands ranges to whole TACs and single identifiers."""

from collections.abc import Sequence

import numpy as np

from eir.device import SNR_KEYS
from eir.errors import ReleaseRefused
from eir.lists.rows.layout import BY_FIRST_SEEN, BY_PAIR, BY_TYPE, TIME_MAX
from eir.lists.table.columns import (
    BEGINS,
    COLUMNS,
    ENDS,
    REASONS,
    SECONDS,
    WHOLE,
    Columns,
    Numbers,
    TableRows,
    is_first,
    matches,
    sorted_rows,
)

RANGE_TACS_MAX = 500_000
"""Maximum number of TACs that all ranges and whole TACs of one release touch. `--force` does not lift this limit. GSMA has allocated half as many TACs."""
RANGE_KEYS_MAX = 10**8
"""Maximum number of identifiers of the ranges that cover only a part of a TAC."""
EXPECTED_MAX = 1 << 27
"""Maximum number of rows for which memory is reserved by the row count of the manifest."""
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


class ListedRows:
    """Rows of a release or of a change, collected in any order from all its files.

    A row lists one identifier, one whole TAC, one range or one pair. A range becomes a whole TAC for each TAC that it covers completely, and
    single identifiers for the rest. These depend only on the row itself, so that a chain of deltas leads to the same rows as the full list.
    """

    def __init__(self, expected: int = 0) -> None:
        """Create an empty collection. `expected`: number of rows for which memory is reserved; the kernel allocates it as rows fill it."""
        self._keys = np.empty(min(expected, EXPECTED_MAX), "<u8")
        self._columns: list[Numbers | None] = [None] * len(COLUMNS)
        self._used = self._tacs = self._range_keys = 0

    def add(
        self,
        subject: Sequence[str],
        keys: Sequence[Numbers],
        *,
        reasons: Numbers | None = None,
        begins: Numbers | None = None,
        ends: Numbers | None = None,
        days: Numbers | None = None,
    ) -> None:
        """Add rows with the same subject (eir.lists.rows.layout).

        Args:
            subject: columns that identify each row.
            keys: device and IMSI, TAC and type, device and first day, first and last key of a range (also for a whole TAC), or single keys.
            reasons: indexes of reasons.
            begins: Unix seconds, 0 for none.
            ends: Unix seconds, 0 for none.
            days: days since 1970-01-01, 0 for none.

        Raises:
            ReleaseRefused: `range`, if ranges touch too many TACs, or too many identifiers of TACs that they cover in part.
        """
        if ends is not None:
            ends = np.where(ends > TIME_MAX, 0, ends)
        is_bound = subject in {BY_PAIR, BY_TYPE, BY_FIRST_SEEN}
        columns = _columns(keys[1] if is_bound else None, reasons, begins, ends, days)
        if is_bound or len(keys) == 1:
            self._append(TableRows(keys[0], columns))
            return
        single = keys[0] == keys[1]
        if single.any():
            self._append(TableRows(keys[0], columns).select(single))
        ranges = TableRows(keys[0], columns).select(~single)
        self._add_ranges(ranges.keys, keys[1][~single], ranges.columns)

    def _add_ranges(self, first: Numbers, last: Numbers, columns: Columns) -> None:
        """Add rows with ranges. A range includes its first and its last key."""
        after = last + np.uint64(1)
        self._tacs += int((last // _TAC - first // _TAC + np.uint64(1)).sum())
        if self._tacs > RANGE_TACS_MAX:
            detail = (
                f"its ranges and TACs cover at least {self._tacs} TACs; the maximum for one release is {RANGE_TACS_MAX}"
            )
            raise ReleaseRefused("range", f"{detail}: split it into a full release and deltas")
        tacs, tacs_after = -(-first.astype(np.int64) // SNR_KEYS), after.astype(np.int64) // SNR_KEYS
        whole = TableRows(tacs.astype("<u8") | np.uint64(WHOLE), columns)
        self._append(_expanded(whole, np.maximum(tacs_after - tacs, 0)))
        # Before the first whole TAC, and after the last one; a range in one TAC is all before.
        head_after = np.minimum(tacs.astype("<u8") * _TAC, after)
        tail = np.maximum(tacs_after.astype("<u8") * _TAC, head_after)
        self._range_keys += int((head_after - first).sum() + (after - tail).sum())
        if self._range_keys > RANGE_KEYS_MAX:
            detail = f"its ranges that do not cover whole TACs have {self._range_keys} identifiers; the maximum is {RANGE_KEYS_MAX}"
            raise ReleaseRefused("range", f"{detail}: split the release, or list the identifiers one by one")
        self._append(_expanded(TableRows(first, columns), head_after - first))
        self._append(_expanded(TableRows(tail, columns), after - tail))

    def _append(self, rows: TableRows) -> None:
        start, end = self._used, self._used + len(rows)
        if end > len(self._keys):
            size = max(end, 2 * start)
            self._keys = _grown(self._keys, start, size)
            self._columns = [None if column is None else _grown(column, start, size) for column in self._columns]
        self._keys[start:end] = rows.keys
        for index, values in enumerate(rows.columns):
            if values is not None:
                column = self._columns[index]
                if column is None:
                    column = self._columns[index] = np.zeros(len(self._keys), values.dtype)
                column[start:end] = values
        self._used = end

    def _rows(self) -> TableRows:
        """Return the collected rows in the order in which they were added."""
        columns = tuple(None if column is None else column[: self._used] for column in self._columns)
        return TableRows(self._keys[: self._used], columns)

    def count_repeats(self) -> tuple[int, int]:
        """Return how many entries are listed again, and how many of these have another reason, begin or end than before.

        An entry is a single identifier, a whole TAC or a pair.
        """
        rows = self._rows()
        if all(column is None for column in rows.columns):
            rows.keys.sort()  # in place: a copy of 100 million keys uses 800 MB
            return len(rows) - int(is_first(rows.keys).sum()), 0
        order = np.argsort(rows.keys)
        keys = rows.keys[order]
        equal = keys[1:] == keys[:-1]
        again = rows.select(order[np.append(equal, False) | np.append(False, equal)])
        names = [again.keys, again.column(SECONDS)]
        values = [again.column(index) for index in (REASONS, BEGINS, ENDS)]
        order = np.lexsort((*values, *names[::-1]))
        repeated = ~is_first(*(column[order] for column in names))
        conflicting = repeated & is_first(*(column[order] for column in values))
        return int(repeated.sum()), int(conflicting.sum())

    def pop(self) -> TableRows:
        """Return the sorted rows, and clear this object. Of repeated rows the earliest begin and the latest end count (`sorted_rows`)."""
        rows = self._rows()
        self._keys, self._columns, self._used = self._keys[:0], [None] * len(COLUMNS), 0
        return sorted_rows(rows)


def _grown(values: Numbers, used: int, size: int) -> Numbers:
    larger = np.zeros(size, values.dtype)
    larger[:used] = values[:used]
    return larger


def _columns(*values: Numbers | None) -> Columns:
    """Return the columns of rows with the types of a table; None for a column that has only zeros."""
    return tuple(
        None if column is None or not column.any() else column.astype(form, copy=False)
        for column, form in zip(values, COLUMNS.values(), strict=True)
    )


def _expanded(rows: TableRows, counts: Numbers) -> TableRows:
    """Return for each row as many rows with consecutive keys as `counts` has for it."""
    counts = counts.astype(np.int64)
    expanded = rows.select(np.repeat(np.arange(len(rows)), counts))
    before = np.repeat(np.cumsum(counts) - counts, counts)
    return TableRows(expanded.keys + (np.arange(len(expanded)) - before).astype("<u8"), expanded.columns)

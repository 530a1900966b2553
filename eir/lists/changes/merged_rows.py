"""Rows of a change beside those of the list: indexes in its reason table, ended rows, and days."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from eir.lists.record.reasons import REASONS_MAX, Reasons, reason_at
from eir.lists.table.columns import DAYS, REASONS, Numbers, TableRows, block_numbers, distinct, matches
from eir.lists.table.table import Table, has_ended

CHUNK_ROWS = 1 << 16
"""Number of rows whose reasons are compared at once."""
RowsType = TypeVar("RowsType", Table, TableRows)


def used_reasons(indexes: Numbers) -> Numbers:
    """Return the distinct indexes of reasons, ascending."""
    used = np.zeros(REASONS_MAX + 1, bool)
    for start in range(0, len(indexes), CHUNK_ROWS):
        used[indexes[start : start + CHUNK_ROWS]] = True
    return np.flatnonzero(used)


def with_reasons(rows: RowsType, texts: Sequence[str], present: Sequence[str]) -> tuple[RowsType, tuple[str, ...]]:
    """Give rows the reason indexes of a list; return also the reason texts of the list, to which the texts that it lacks are appended.

    Args:
        rows: rows with indexes in `texts`.
        texts: reason texts by index.
        present: reason texts of the list.
    """
    indexes = rows.columns[REASONS]
    if indexes is None:
        return rows, tuple(present)
    reasons, translation, used = Reasons(present), np.arange(REASONS_MAX + 1, dtype="<u1"), used_reasons(indexes)
    for index in used.tolist():
        translation[index] = reasons.index(reason_at(texts, index))
    return rows if (translation[used] == used).all() else _translated(rows, translation), reasons.texts


def _translated(rows: RowsType, translation: Numbers) -> RowsType:
    seconds, indexes, *rest = rows.columns
    return replace(rows, columns=(seconds, None if indexes is None else translation[indexes], *rest))


def has_other(rows: Table | TableRows) -> bool:
    """Return True if the reason of a row has no index of its own, and is `other`."""
    indexes = rows.columns[REASONS]
    return indexes is not None and bool((indexes == REASONS_MAX).any())


def without_unused(table: Table, texts: Sequence[str]) -> tuple[Table, tuple[str, ...]]:
    """Remove the reasons that no row of a table has from its reason table; return the table and its reasons."""
    indexes = table.columns[REASONS]
    used = [] if indexes is None else used_reasons(indexes).tolist()
    # The index of `other` is above those of all texts; it stays.
    kept = [index for index in used if 0 < index < REASONS_MAX]
    translation = np.zeros(REASONS_MAX + 1, "<u1")
    translation[kept] = np.arange(1, len(kept) + 1)
    translation[REASONS_MAX] = REASONS_MAX
    return _translated(table, translation), ("", *(texts[index] for index in kept)) if kept else ()


def ended_before(table: Table, added: TableRows, now: int) -> TableRows:
    """Return the rows of a table that have ended by `now` and have the keys of added rows.

    A change removes them first: the begin of an ended row must not count for a later row, which may begin in the future.
    """
    present = table.rows(distinct(block_numbers(added.keys)))
    return present.select(has_ended(present, now) & (matches(present, added) >= 0))


def with_days(rows: TableRows, present: TableRows) -> TableRows:
    """Give rows without a day that of the present row with the same keys."""
    days, at = rows.column(DAYS), matches(rows, present)
    if not len(present):
        return rows
    stored = np.where(at >= 0, present.column(DAYS)[at], np.uint16(0))
    return TableRows(rows.keys, (*rows.columns[:DAYS], np.where(days == 0, stored, days)))

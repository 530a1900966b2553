"""Rows of a change beside those of the list: indexes in its reason table, ended rows, and days."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from eir.lists.record.reasons import REASONS_MAX, Reasons
from eir.lists.table.columns import DAYS, REASONS, Numbers, TableRows, block_numbers, distinct, matches
from eir.lists.table.table import Table, has_ended


class ReasonTable(NamedTuple):
    """Reason table of a list after a change."""

    texts: tuple[str, ...]
    translation: Numbers
    """Index in `texts` for each index of the change's own table."""

    @property
    def is_full(self) -> bool:
        """True if a reason of the change has no index of its own, and is `other`."""
        return bool((self.translation == REASONS_MAX).any())


def merge_reasons(present: Sequence[str], texts: Sequence[str]) -> ReasonTable:
    """Append the texts of a change to the present reason table of a list, so that present indexes keep their meaning."""
    reasons = Reasons(present)
    indexes = [reasons.index(text) for text in texts] or [0]
    return ReasonTable(reasons.texts, np.array(indexes, "<u1"))


def translate(rows: TableRows, translation: Numbers) -> TableRows:
    """Replace the reason index of each row by that of the reason table to which `translation` leads."""
    seconds, reasons, *rest = rows.columns
    return rows if reasons is None else TableRows(rows.keys, (seconds, translation[reasons], *rest))


def translate_table(table: Table, translation: Numbers) -> Table:
    """Like `translate`, for a whole table."""
    seconds, reasons, *rest = table.columns
    if reasons is None:
        return table
    return Table(table.blocks, table.starts, table.lows, (seconds, translation[reasons], *rest))


def without_unused(table: Table, texts: Sequence[str]) -> tuple[Table, tuple[str, ...]]:
    """Remove the reasons that no row of a table has from its reason table; return the table and its reasons."""
    reasons = table.columns[REASONS]
    used = np.zeros(REASONS_MAX + 1, bool)
    if reasons is not None:
        used[np.unique(reasons)] = True
    # The index of `other` is above those of all texts; it stays.
    kept = [index for index in np.flatnonzero(used).tolist() if 0 < index < REASONS_MAX]
    translation = np.zeros(REASONS_MAX + 1, "<u1")
    translation[kept] = np.arange(1, len(kept) + 1)
    translation[REASONS_MAX] = REASONS_MAX
    return translate_table(table, translation), ("", *(texts[index] for index in kept)) if kept else ()


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

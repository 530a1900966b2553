"""Reasons of the rows of a change, as indexes in the reason table of the list."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from eir.lists.record.reasons import REASONS_MAX, Reasons
from eir.lists.table.columns import REASONS, Numbers, TableRows
from eir.lists.table.table import Table


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

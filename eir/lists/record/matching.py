"""Rows of a list that match in a check, if the configuration chooses some reasons (`lists.*.reasons`). The others stay in the list."""

from collections.abc import Sequence

import numpy as np

from eir.lists.record.reasons import OTHER_REASON, REASONS_MAX
from eir.lists.table.columns import NO_ROWS, REASONS, Numbers, TableRows
from eir.lists.table.table import Table, table_of


def matching_table(table: Table, texts: Sequence[str], chosen: Sequence[str]) -> Table:
    """Return the part of a table whose rows match. `texts`: reason texts of the list by index. `chosen`: reasons; empty for all rows."""
    if not chosen:
        return table
    indexes = table.columns[REASONS]
    if indexes is None:
        return table_of(NO_ROWS)
    where = _is_chosen(texts, chosen)[indexes]
    return table if where.all() else table.select(np.flatnonzero(where))


def matching_rows(rows: TableRows, texts: Sequence[str], chosen: Sequence[str]) -> TableRows:
    """Like `matching_table`, for rows."""
    return rows.select(_is_chosen(texts, chosen)[rows.column(REASONS)]) if chosen else rows


def other_reasons(table: Table, chosen: Sequence[str]) -> str:
    """Return a warning about rows that match because the list does not store the text of their reason; empty without such rows."""
    indexes = table.columns[REASONS]
    count = 0 if indexes is None or not chosen else int((indexes == REASONS_MAX).sum())
    return (
        f"{count:,} entries match with the reason '{OTHER_REASON}', because the list has too many reasons"
        if count
        else ""
    )


def _is_chosen(texts: Sequence[str], chosen: Sequence[str]) -> Numbers:
    """Return a mask of the reason indexes that match. The index of `other` matches, because it may stand for a chosen reason."""
    mask = np.zeros(REASONS_MAX + 1, bool)
    mask[REASONS_MAX] = True
    mask[[index for index, text in enumerate(texts[:REASONS_MAX]) if index and text in chosen]] = True
    return mask

"""Devices that lists register: lookup in tables, and the devices whose registration ended."""

from collections.abc import Iterable

import numpy as np

from eir.lists.record.first_days import DAY_S, batches, select_keys, sighted_rows
from eir.lists.table.columns import (
    BEGINS,
    ENDS,
    NO_COLUMNS,
    NO_ROWS,
    WHOLE,
    Numbers,
    TableRows,
    block_numbers,
    distinct,
    matches,
    tacs_and_snrs,
)
from eir.lists.table.table import Table, has_ended, has_whole, merge


def is_registered(tables: Iterable[Table], keys: Numbers, now: int, until: int | None = None) -> Numbers:
    """Return a mask of the devices (ascending) that at least one table lists, singly or by the whole TAC, in a row in force at the time `now`.

    `until`: rows that end until then do not count; None: `now`.
    """
    mask, until = np.zeros(len(keys), bool), now if until is None else until
    for table in tables:
        mask |= _has(table, keys, now, until)
        if has_whole(table):
            tacs, at = np.unique(tacs_and_snrs(keys)[0], return_inverse=True)
            mask |= _has(table, tacs | np.uint64(WHOLE), now, until)[at]
    return mask


def _has(table: Table, keys: Numbers, now: int, until: int) -> Numbers:
    rows = table.rows(distinct(block_numbers(keys)))
    rows = rows.select(~has_ended(rows, until) & (rows.column(BEGINS) <= now))
    return matches(TableRows(keys, NO_COLUMNS), rows) >= 0


def ends_by(tables: Iterable[Table], keys: Numbers, moment: int) -> Numbers:
    """Return a mask of the devices (ascending) that at least one table lists singly in a row that ends by a time."""
    mask = np.zeros(len(keys), bool)
    for table in tables:
        rows = table.rows(distinct(block_numbers(keys)))
        mask |= matches(TableRows(keys, NO_COLUMNS), rows.select(has_ended(rows, moment))) >= 0
    return mask


def ended_rows(table: Table, now: int, since: int) -> TableRows:
    """Return a row for each device whose registration ended from `since` to `now` (Unix seconds): no first day, and the day of the end."""
    ended = NO_ROWS
    if table.columns[ENDS] is not None:
        for rows in batches(table):
            found = select_keys(
                rows, rows.keys[has_ended(rows, now) & (rows.column(ENDS) > since) & (rows.keys < WHOLE)]
            )
            ended = merge(ended, sighted_rows(found.keys, 0, found.column(ENDS) // DAY_S))
    return ended

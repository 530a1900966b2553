"""Entries of a list, read from the rows of its table for commands and figures."""

from collections.abc import Iterator, Sequence

import numpy as np

from eir.device import SNR_KEYS
from eir.lists.record.entries import ListEntry
from eir.lists.record.first_days import DAY_S
from eir.lists.record.reasons import reason_at
from eir.lists.table.columns import BEGINS, DAYS, ENDS, REASONS, SECONDS, WHOLE, Numbers, TableRows, block_numbers
from eir.lists.table.table import Table, in_force

CHUNK_ROWS = 1 << 16
"""Number of rows that are converted together."""


def is_whole(rows: TableRows) -> Numbers:
    """Return a mask of the rows that list a whole TAC."""
    return rows.keys >= np.uint64(WHOLE)


def first_keys(rows: TableRows) -> Numbers:
    """Return the key of each row, and for a whole TAC its lowest key."""
    whole = is_whole(rows)
    return (
        np.where(whole, (rows.keys & np.uint64(WHOLE - 1)) * np.uint64(SNR_KEYS), rows.keys)
        if whole.any()
        else rows.keys
    )


def display_order(rows: TableRows) -> TableRows:
    """Sort the rows of a table as they are shown: TACs ascend, and a whole TAC is before its single identifiers."""
    whole = is_whole(rows)
    if not whole.any() or whole.all():
        return rows
    return rows.select(np.lexsort((~whole, first_keys(rows))))


def chunks_of(rows: TableRows) -> Iterator[TableRows]:
    """Yield rows in chunks of CHUNK_ROWS, which Python can convert to lists."""
    for start in range(0, len(rows), CHUNK_ROWS):
        yield rows.select(np.arange(start, min(start + CHUNK_ROWS, len(rows))))


def entries_in(rows: TableRows) -> Iterator[ListEntry]:
    """Yield the entries of rows in their order."""
    for part in chunks_of(rows):
        keys, whole = first_keys(part).tolist(), is_whole(part).tolist()
        columns = [part.column(index).tolist() for index in (SECONDS, REASONS, ENDS, DAYS, BEGINS)]
        for key, is_tac, second, reason, end, day, begin in zip(keys, whole, *columns, strict=True):
            yield ListEntry(key, second, is_tac, reason, end, day * DAY_S, begin)


def rows_between(table: Table, first: int, last: int) -> TableRows:
    """Return the rows that list at least one of these keys: those of the keys, and those of their whole TACs."""
    tacs = np.uint64(WHOLE | first // SNR_KEYS), np.uint64(WHOLE | last // SNR_KEYS)
    bounds = block_numbers(np.array([first, last, *tacs], "<u8"))
    blocks = table.blocks
    is_near = (blocks >= bounds[0]) & (blocks <= bounds[1]) | (blocks >= bounds[2]) & (blocks <= bounds[3])
    rows = table.rows(blocks[is_near])
    is_wanted = (rows.keys >= first) & (rows.keys <= last) | (rows.keys >= tacs[0]) & (rows.keys <= tacs[1])
    return rows.select(is_wanted)


def reason_and_day(
    table: Table, reasons: Sequence[str], key: int, *, second: int = 0, now: int = 0
) -> tuple[str | None, int]:
    """Return the reason and the day that a list has for a key; None without a reason, 0 without a day.

    If a row has the second key `second`, only this row counts.

    The result is that of the identifier's own row. If this row lacks a reason (or a day), has ended by `now` or has not begun, the
    result is that of the whole TAC. `now` is in Unix seconds; with 0 each row is in force.
    """
    rows = table.find_device(key)
    if now:
        rows = in_force(rows, now)
    is_second = rows.column(SECONDS) == second
    if second and is_second.any():
        rows = rows.select(is_second)
    indexes, days = rows.column(REASONS), rows.column(DAYS)
    reason = next((reason_at(reasons, index) for index in indexes.tolist() if index), None)
    return reason or None, next((day for day in days.tolist() if day), 0)

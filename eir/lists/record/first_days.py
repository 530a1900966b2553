"""First sightings: rows of devices with the day on which a device was seen first, and the day of its last recorded sighting.

A row of a record of first sightings has the device's key, its first day as `begin`, and its last day as `end`, both in Unix seconds at
0:00 UTC. If two rows of a device are merged, the earliest first day and the latest last day count. A first day of WAS_LISTED is the
earliest, so it wins each merge. Days are numbered from 1970-01-01 (UTC).

In an image, a device has the period (PERIOD_DAYS days) of its last sighting in place of the last day. The record of a device that is seen
daily changes once per period. The periods of different devices begin on different days, which spreads these changes.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from eir.lists.table.columns import (
    BEGINS,
    ENDS,
    NO_COLUMNS,
    NO_ROWS,
    Numbers,
    TableRows,
    block_numbers,
    distinct,
    matches,
    rows_of,
)
from eir.lists.table.table import Table, change

DAY_S = 86400
PERIOD_DAYS = 32
PERIODS_BEGIN = 19_723
"""Day on which the first period begins: 2024-01-01. The last period whose number fits into a byte ends in 2046."""
PERIOD_MAX = 255
WAS_LISTED = 0
"""First day of a device that left a list that registered it: its period of grace is over."""
LEFT_LIST = "left-list"
"""Text for WAS_LISTED in files of first sightings."""
IMPORT = "+import"
"""End of the name of the list with imported first sightings. No list of a configuration has such a name."""
BATCH_BLOCKS = 4_000
"""Maximum number of blocks of a table whose rows are decoded together."""
DAY_COUNT = 1 << 16


class Sighted(NamedTuple):
    """Devices that one peer checked on one day: message of the answering process to the process that writes the record of first sightings."""

    peer: str
    day: int
    confirmed: bool
    """A second peer or a second subscriber showed each of them, above the limit of the peer."""
    keys: bytes
    """Keys of eir.device, 8 bytes each."""


def period(day: int, key: int) -> int:
    """Return the index of a device's period that contains a day. Each device has its own periods, so that not all records change together.

    A period lasts PERIOD_DAYS days. Its first day depends on `key`, the key of the device. The last index is PERIOD_MAX.
    """
    return min(max((day - PERIODS_BEGIN + key % PERIOD_DAYS) // PERIOD_DAYS, 0), PERIOD_MAX)


def periods(days: int | Numbers, keys: Numbers) -> NDArray[np.uint8]:
    """Return for each device the index of its period (PERIOD_DAYS days) that contains a day. `days`: one day, or one for each device."""
    return np.clip((days - PERIODS_BEGIN + _shifts(keys)) // PERIOD_DAYS, 0, PERIOD_MAX).astype(np.uint8)


def _shifts(keys: Numbers) -> NDArray[np.int64]:
    """Return for each device the number of days by which its periods begin before PERIODS_BEGIN."""
    return (keys % np.uint64(PERIOD_DAYS)).astype(np.int64)


def sighted_rows(keys: Numbers, firsts: int | Numbers, lasts: int | Numbers) -> TableRows:
    """Build rows of devices, in any order, with first and last days. Of rows of one device the earliest first and the latest last day count."""
    begins, ends = (np.asarray(days, "<u4") * np.uint32(DAY_S) for days in (firsts, lasts))
    return rows_of(keys, begins=begins, ends=ends)


def first_days(rows: TableRows) -> NDArray[np.int64]:
    """Return the first day of each row."""
    return rows.column(BEGINS).astype(np.int64) // DAY_S


def last_days(rows: TableRows) -> NDArray[np.int64]:
    """Return the last day of each row."""
    return rows.column(ENDS).astype(np.int64) // DAY_S


def last_periods(rows: TableRows) -> NDArray[np.uint8]:
    """Return the period of the last sighting of each row."""
    return periods(last_days(rows), rows.keys)


def is_unseen(rows: TableRows, today: int, remember: int) -> NDArray[np.bool_]:
    """Return a mask of the rows of devices that have not been seen for `remember` days.

    Sightings in the period of the last recorded one are not recorded, so the days count from the end of this period.
    """
    ages = today - PERIODS_BEGIN + _shifts(rows.keys)
    period_ends = (last_periods(rows).astype(np.int64) + 1) * PERIOD_DAYS
    unseen: NDArray[np.bool_] = ages - period_ends >= remember
    return unseen


def batches(table: Table) -> Iterator[TableRows]:
    """Yield the rows of a table, those of at most BATCH_BLOCKS blocks at a time."""
    for at in range(0, len(table.blocks), BATCH_BLOCKS):
        yield table.rows(table.blocks[at : at + BATCH_BLOCKS])


def count_first_days(table: Table) -> dict[int, int]:
    """Count the devices of a record of first sightings by their first day."""
    counts = np.zeros(DAY_COUNT, np.int64)
    for rows in batches(table):
        counts += np.bincount(first_days(rows), minlength=DAY_COUNT)
    days = np.flatnonzero(counts)
    return dict(zip(days.tolist(), counts[days].tolist(), strict=True))


def select_keys(rows: TableRows, keys: Numbers, *, without: bool = False) -> TableRows:
    """Select the rows with these keys (ascending), or those `without` them."""
    return rows.select((matches(rows, TableRows(keys, NO_COLUMNS)) < 0) == without)


def rows_of_devices(table: Table, keys: Numbers) -> TableRows:
    """Return the rows of devices (ascending) in a record of first sightings."""
    return select_keys(table.rows(distinct(block_numbers(keys))), keys) if len(keys) else NO_ROWS


def different_keys(rows: TableRows, others: TableRows) -> Numbers:
    """Return the keys, ascending, of the rows that only one of two records has, or that differ in a day."""
    at = matches(rows, others)
    same = at >= 0
    for column in (BEGINS, ENDS):
        same[same] &= rows.column(column)[same] == others.column(column)[at[same]]
    return np.union1d(rows.keys[~same], others.keys[~np.isin(others.keys, rows.keys[same], assume_unique=True)])


def is_covered(rows: TableRows, record: TableRows) -> NDArray[np.bool_]:
    """Return a mask of the rows that a record has already: with a first day that is not later, and a last sighting in the same period or a later one."""
    at = matches(rows, record)
    found = at >= 0
    mine, other = rows.select(found), record.select(at[found])
    found[found] = (first_days(other) <= first_days(mine)) & (last_periods(other) >= last_periods(mine))
    return found


def merged_tables(one: Table, other: Table) -> Table:
    """Merge two records of first sightings: the earliest first day and the latest last day of each device count."""
    small, large = sorted((one, other), key=len)
    for rows in batches(small):
        large = change(large, rows, NO_ROWS).table
    return large

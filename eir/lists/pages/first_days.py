"""Devices with the days of their first sightings as arrays, and the pages of a record of first sightings.

Days count from 1970-01-01 (UTC). Beside its first day a device has the period of PERIOD_DAYS days in which it was last seen, so that a
device that is seen daily changes once per period. The periods of different devices begin on different days, which spreads these changes.
Two records of a device merge into the earlier first day and the later period, so that records that were apart agree again.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import groupby, starmap
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from eir.lists.pages.content import Keys, split
from eir.lists.pages.pages import PAGE_KEYS, Page, Sections, decode_sections
from eir.lists.pages.roaring import (
    BEYOND,
    ArrayPages,
    Indexes,
    Remainders,
    decode_keys,
    encode_many,
    is_fresh,
    may_be_arrays,
)

DAY_S = 86400
PERIOD_DAYS = 32
PERIODS_BEGIN = 19_723
"""Day on which the first period begins: 2024-01-01. The last one that a byte holds ends in 2046."""
PERIOD_MAX = 255
WAS_LISTED = 0
"""First day of a device that left a list that registered it: its period of grace is over."""
ROW_BYTES = 3


class FirstDays(NamedTuple):
    """Devices in ascending order, with their first days and the periods of their last sightings."""

    keys: Keys
    firsts: NDArray[np.uint16]
    """First day of each."""
    lasts: NDArray[np.uint8]
    """Period of the last sighting of each."""

    def where(self, wanted: NDArray[Any] | slice) -> "FirstDays":
        """Return the selected devices; `wanted` is a mask or a slice."""
        return FirstDays(self.keys[wanted], self.firsts[wanted], self.lasts[wanted])

    def is_same(self, other: "FirstDays") -> bool:
        """Return True if both objects have the same devices with the same days."""
        return all(starmap(np.array_equal, zip(self, other, strict=True)))


NOTHING = FirstDays(np.empty(0, np.uint64), np.empty(0, np.uint16), np.empty(0, np.uint8))


class Sighted(NamedTuple):
    """Devices that one peer showed on one day, as a worker sends them to the process that writes the record."""

    peer: str
    day: int
    confirmed: bool
    """A second peer or a second subscriber showed each of them, above the limit of the peer."""
    keys: bytes
    """Keys of eir.device, 8 bytes each."""


def period(day: int, key: int) -> int:
    """Return the number of a device's period (of PERIOD_DAYS days) in which a day lies."""
    return min(max((day - PERIODS_BEGIN + key % PERIOD_DAYS) // PERIOD_DAYS, 0), PERIOD_MAX)


def periods(day: int, keys: Keys) -> NDArray[np.uint8]:
    """Return, for each device, the number of its period (of PERIOD_DAYS days) in which a day lies."""
    found = (day - PERIODS_BEGIN + (keys % np.uint64(PERIOD_DAYS)).astype(np.int64)) // PERIOD_DAYS
    return np.clip(found, 0, PERIOD_MAX).astype(np.uint8)


def seen_on(keys: Keys, day: int, first: int | None = None) -> FirstDays:
    """Build the record of devices that were seen on a day, and first seen on `first` or else on the same day."""
    keys = np.unique(keys)
    return FirstDays(keys, np.full(len(keys), day if first is None else first, np.uint16), periods(day, keys))


def is_unseen(days: FirstDays, today: int, remember: int) -> NDArray[np.bool_]:
    """Return a mask of the devices not seen for `remember` days, counted from the end of their last period."""
    age = today - PERIODS_BEGIN + (days.keys % np.uint64(PERIOD_DAYS)).astype(np.int64)
    unseen: NDArray[np.bool_] = age - (days.lasts.astype(np.int64) + 1) * PERIOD_DAYS >= remember
    return unseen


def merge(parts: Sequence[FirstDays]) -> FirstDays:
    """Merge records of first sightings. For each device, the earliest first day and the latest period count."""
    keys, firsts, lasts = join(parts)
    if not len(keys):
        return NOTHING
    order = np.argsort(keys, kind="stable")
    keys, firsts, lasts = keys[order], firsts[order], lasts[order]
    starts = np.flatnonzero(is_fresh(keys))
    return FirstDays(keys[starts], np.minimum.reduceat(firsts, starts), np.maximum.reduceat(lasts, starts))


def join(parts: Iterable[FirstDays]) -> FirstDays:
    """Concatenate records of first sightings, whose devices must ascend from each record to the next."""
    records = [NOTHING, *parts]
    return FirstDays(
        np.concatenate([each.keys for each in records]),
        np.concatenate([each.firsts for each in records]),
        np.concatenate([each.lasts for each in records]),
    )


def by_page(days: FirstDays) -> dict[int, FirstDays]:
    """Split devices by page, and return the devices for each page number."""
    if not len(days.keys):
        return {}
    numbers, _, starts, sizes = split(days.keys)
    spans = zip(numbers.tolist(), starts.tolist(), (starts + sizes).tolist(), strict=True)
    return {number: days.where(slice(first, end)) for number, first, end in spans}


def encode_days(days: FirstDays) -> list[Page]:
    """Encode devices with their days as pages of a record of first sightings."""
    if not len(days.keys):
        return []
    numbers, low, starts, sizes = split(days.keys)
    firsts, lasts = days.firsts.astype("<u2").tobytes(), days.lasts.tobytes()
    spans = zip(
        numbers.tolist(), encode_many(low, starts, sizes), starts.tolist(), (starts + sizes).tolist(), strict=True
    )
    return [
        Page(number, keys, Sections(sightings=firsts[2 * first : 2 * end] + lasts[first:end]).encode())
        for number, keys, first, end in spans
    ]


def decode_days(pages: Iterable[Page]) -> FirstDays:
    """Decode pages of a record of first sightings, in ascending order, to devices with their days.

    Raises ValueError if a page is damaged or has no first sightings.
    """
    there = [page for page in pages if not page.is_empty]
    return join(_decoded(list(group), plain) for plain, group in groupby(there, lambda page: may_be_arrays(page.keys)))


def _keys(pages: Sequence[Page], plain: bool) -> tuple[Remainders, Indexes]:
    """Decode the keys of all pages; return them, and the number of keys in each page.

    `plain`: the pages may consist of array containers, which are decoded faster.
    """
    if plain:
        with suppress(ValueError):
            arrays = ArrayPages([page.keys for page in pages])
            return arrays.keys(), arrays.counts
    each = [np.frombuffer(decode_keys(page.keys).to_array(), "<u4") for page in pages]
    low = np.concatenate(each)
    if len(low) and low.max() >= PAGE_KEYS:
        raise ValueError(BEYOND)
    return low, np.array([len(keys) for keys in each])


def _decoded(pages: Sequence[Page], plain: bool) -> FirstDays:
    low, counts = _keys(pages, plain)
    columns = [decode_sections(page.extra).sightings for page in pages]
    rows = counts.tolist()
    for page, column, count in zip(pages, columns, rows, strict=True):
        if len(column) != ROW_BYTES * count:
            raise ValueError(f"page {page.number} has {count} devices and {len(column)} bytes of sightings")
    firsts = b"".join([column[: 2 * count] for column, count in zip(columns, rows, strict=True)])
    lasts = b"".join([column[2 * count :] for column, count in zip(columns, rows, strict=True)])
    numbers = np.repeat(np.array([page.number for page in pages], np.uint64), counts)
    return FirstDays(numbers * np.uint64(PAGE_KEYS) + low, np.frombuffer(firsts, "<u2"), np.frombuffer(lasts, np.uint8))

"""First sightings: devices with the days on which the node saw them first, as arrays and as stored pages.

Days are numbered from 1970-01-01 (UTC). Beside its first day, a device has the number of the period (PERIOD_DAYS days) in which it was
last seen. So the record of a device that is seen daily changes once per period. The periods of different devices begin on different days,
which spreads these changes. Two records of a device merge into the earlier first day and the later period, so merged records are equal.
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
from eir.lists.record.first_days import (  # noqa: F401
    DAY_S,
    LEFT_LIST,
    PERIOD_DAYS,
    PERIODS_BEGIN,
    WAS_LISTED,
    Sighted,
    period,
    periods,
)

ROW_BYTES = 3


class FirstDays(NamedTuple):
    """Devices in ascending order, each with the day on which it was first seen, and the period (PERIOD_DAYS days) of its last sighting."""

    keys: Keys
    firsts: NDArray[np.uint16]
    """First day of each device."""
    lasts: NDArray[np.uint8]
    """Index of the period in which each device was last seen (see `period`)."""

    def where(self, wanted: NDArray[Any] | slice) -> "FirstDays":
        """Return a part of these devices with their days. `wanted` selects it as a mask, a slice or an array of indexes."""
        return FirstDays(self.keys[wanted], self.firsts[wanted], self.lasts[wanted])

    def is_same(self, other: "FirstDays") -> bool:
        """Return True if another record of first sightings (`other`) has the same devices with the same days."""
        return all(starmap(np.array_equal, zip(self, other, strict=True)))


NOTHING = FirstDays(np.empty(0, np.uint64), np.empty(0, np.uint16), np.empty(0, np.uint8))


def seen_on(keys: Keys, day: int, first: int | None = None) -> FirstDays:
    """Build records of devices that were last seen on `day`, and first seen on `first` (None: also on `day`)."""
    devices = np.unique(keys)
    firsts = np.full(len(devices), day if first is None else first, np.uint16)
    return FirstDays(devices, firsts, periods(day, devices))


def is_unseen(days: FirstDays, today: int, remember: int) -> NDArray[np.bool_]:
    """Return a mask of the devices that have not been seen for `remember` days.

    The exact day of the last sighting is unknown, so the days count from the end of the period of the last sighting.
    """
    ages = today - PERIODS_BEGIN + (days.keys % np.uint64(PERIOD_DAYS)).astype(np.int64)
    period_ends = (days.lasts.astype(np.int64) + 1) * PERIOD_DAYS
    unseen: NDArray[np.bool_] = ages - period_ends >= remember
    return unseen


def merge(parts: Sequence[FirstDays]) -> FirstDays:
    """Merge records of first sightings. If several records have a device, its earliest first day and its latest period are kept."""
    joined = join(parts)
    if not len(joined.keys):
        return NOTHING
    keys, firsts, lasts = joined.where(np.argsort(joined.keys, kind="stable"))
    starts = np.flatnonzero(is_fresh(keys))
    return FirstDays(keys[starts], np.minimum.reduceat(firsts, starts), np.maximum.reduceat(lasts, starts))


def join(parts: Iterable[FirstDays]) -> FirstDays:
    """Concatenate the devices of several records of first sightings, in the order of the records.

    The devices of the result ascend only if each record begins after the last device of the previous record.
    """
    columns = zip(NOTHING, *parts, strict=True)
    return FirstDays(*map(np.concatenate, columns))


def by_page(days: FirstDays) -> dict[int, FirstDays]:
    """Split devices by page number; return a map from page number to devices."""
    if not len(days.keys):
        return {}
    numbers, _, starts, sizes = split(days.keys)
    ends = starts + sizes
    spans = zip(numbers.tolist(), starts.tolist(), ends.tolist(), strict=True)
    return {number: days.where(slice(first, end)) for number, first, end in spans}


def encode_days(days: FirstDays) -> list[Page]:
    """Encode devices with first days and periods as pages of the record of first sightings."""
    if not len(days.keys):
        return []
    numbers, low, starts, sizes = split(days.keys)
    firsts = days.firsts.astype("<u2").tobytes()
    lasts = days.lasts.tobytes()
    ends = starts + sizes
    page_keys = encode_many(low, starts, sizes)
    pages: list[Page] = []
    for number, keys, first, end in zip(numbers.tolist(), page_keys, starts.tolist(), ends.tolist(), strict=True):
        sections = Sections(sightings=firsts[2 * first : 2 * end] + lasts[first:end])
        pages.append(Page(number, keys, sections.encode()))
    return pages


def decode_days(pages: Iterable[Page]) -> FirstDays:
    """Decode pages of the record of first sightings, in ascending order, to devices with their days.

    Raises:
        ValueError: if a page is damaged or has no first sightings.
    """
    filled = [page for page in pages if not page.is_empty]
    groups = groupby(filled, lambda page: may_be_arrays(page.keys))
    return join(_decode_group(list(group), of_arrays) for of_arrays, group in groups)


def _decode_keys(pages: Sequence[Page], of_arrays: bool) -> tuple[Remainders, Indexes]:
    """Decode the keys of pages; return the remainders of all keys, and the number of keys on each page.

    `of_arrays`: the pages seem to consist of array containers, for which decoding is faster.
    """
    if of_arrays:
        with suppress(ValueError):
            arrays = ArrayPages([page.keys for page in pages])
            return arrays.keys(), arrays.counts
    lows = [np.frombuffer(decode_keys(page.keys).to_array(), "<u4") for page in pages]
    low = np.concatenate(lows)
    if len(low) and low.max() >= PAGE_KEYS:
        raise ValueError(BEYOND)
    return low, np.array([len(keys) for keys in lows])


def _decode_group(pages: Sequence[Page], of_arrays: bool) -> FirstDays:
    low, counts = _decode_keys(pages, of_arrays)
    firsts: list[bytes] = []
    lasts: list[bytes] = []
    for page, count in zip(pages, counts.tolist(), strict=True):
        column = decode_sections(page.extra).sightings
        if len(column) != ROW_BYTES * count:
            raise ValueError(f"page {page.number} has {count} devices and {len(column)} bytes of sightings")
        firsts.append(column[: 2 * count])
        lasts.append(column[2 * count :])
    numbers = np.repeat(np.array([page.number for page in pages], np.uint64), counts)
    keys = numbers * np.uint64(PAGE_KEYS) + low
    return FirstDays(keys, np.frombuffer(b"".join(firsts), "<u2"), np.frombuffer(b"".join(lasts), np.uint8))

"""Listings from the logs of lists: numbers of devices that were listed or released in a span of time, by list, reason and TAC."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from eir.device import SNR_KEYS
from eir.lists.log.change import NO_CHANGE
from eir.lists.log.comparison import REPLACED, newest_chain
from eir.lists.log.reader import LoggedList, empty_content, oldest_readable, read_content, step
from eir.lists.log.store import LogStore
from eir.lists.record.first_days import DAY_S
from eir.lists.record.listed_entries import first_keys, is_whole, reason_and_day
from eir.lists.record.reasons import reason_at
from eir.lists.table.columns import BEGINS, REASONS, TableRows, block_numbers, distinct, is_first
from eir.lists.table.table import Table, count_singles, has_tacs, replacement


class Listing(NamedTuple):
    """Key under which added or removed devices are counted: list, reason, TAC, and whether they were added or removed."""

    list: str
    is_listed: bool
    """True if the devices were added, False if they were removed."""
    reason: str | None
    """Reason of the rows; empty for no reason; None if the reason is not known."""
    tac: int | None
    """TAC of the devices; None if the TAC is not known."""


Parts = Counter[Listing]
"""Listing → count of devices."""


async def read_begin(store: LogStore, names: Collection[str]) -> str | None:
    """Return the time from which the logs of lists have all changes; None without a log.

    It is the time of the oldest change, or later if a log no longer has its first change or begins with a write-back.

    Raises:
        StoreError: if the store cannot be read.
    """
    begins, later = list[str](), list[str]()
    for name in names & (await store.heads()).keys():
        first = newest_chain([entry.change for entry in await store.log(name, 0)])[0]
        is_whole = first.before == NO_CHANGE and first.what not in REPLACED
        (begins if is_whole else later).append(first.time)
    return max(later) if later else min(begins, default=None)


async def read_listings(store: LogStore, kinds: Mapping[str, str], begin: str, end: str) -> Parts:
    """Count the devices that were added to or removed from lists, from `begin` until before `end`.

    Args:
        store: store of the lists.
        kinds: kind of each list that counts, by name.
        begin: first time of the period, as in changes (UTC).
        end: time after the period.

    Reason and TAC are unknown (None) for changes that the store can no longer restore; of these, rows are counted.

    Raises:
        StoreError: if a list cannot be read.
    """
    listings = Parts()
    heads = await store.heads()
    for name in sorted(kinds.keys() & heads.keys()):
        entries = await store.log(name, 0)
        oldest = await oldest_readable(store, name, entries)
        content = empty_content(kinds[name])
        for before, entry in zip([None, *entries], entries, strict=False):
            change = entry.change
            if not begin <= change.time < end:
                continue
            if content.head.digest != change.before and before is not None and before.change.generation >= oldest:
                content = await read_content(store, name, heads[name], before.change.generation)
            if content.head.digest == change.before and change.generation >= oldest:
                after = await step(store, name, content, entry)
                listings += count_changed(name, content, after)
                content = after
            else:
                listings += {
                    Listing(name, True, None, None): change.added,
                    Listing(name, False, None, None): change.removed,
                }
    return +listings


def count_changed(name: str, before: LoggedList, after: LoggedList) -> Parts:
    """Count the devices that a list has only before or only after a change."""
    effect = replacement(before.table, after.table)
    listings = Parts()
    for is_listed, state, other, rows in ((True, after, before, effect.added), (False, before, after, effect.removed)):
        known = other.table.rows(distinct(block_numbers(rows.keys)))
        fresh = rows.select(~np.isin(rows.keys, known.keys) & is_first(rows.keys))
        for (tac, reason), devices in _count_fresh(fresh, state.table, other.table).items():
            listings[Listing(name, is_listed, reason_at(state.head.reasons, reason), tac)] += devices
    return listings


def _count_fresh(rows: TableRows, table: Table, other: Table) -> Counter[tuple[int, int]]:
    """Count the devices of rows that only one of two tables has, by TAC and index of the reason."""
    counts = Counter[tuple[int, int]]()
    whole = is_whole(rows)
    tacs = first_keys(rows) // np.uint64(SNR_KEYS)
    is_alone = ~whole & ~has_tacs(table, tacs, 0) & ~has_tacs(other, tacs, 0)
    groups = np.sort(tacs[is_alone] << np.uint64(8) | rows.column(REASONS)[is_alone])
    starts = np.flatnonzero(is_first(groups))
    for group, devices in zip(groups[starts].tolist(), np.diff(starts, append=len(groups)).tolist(), strict=True):
        counts[group >> 8, group & 0xFF] += devices
    for tac, reason in zip(tacs[whole].tolist(), rows.column(REASONS)[whole].tolist(), strict=True):
        counts[tac, reason] += SNR_KEYS - count_singles(other, np.array([tac], "<u8"), 0)
    return counts


async def read_reasons(store: LogStore, name: str, keys: Sequence[int]) -> list[str | None]:
    """Return the present reasons of devices in a list, in the order of `keys`; None for a device that is not listed.

    Raises:
        StoreError: if the list cannot be read.
    """
    head = (await store.heads()).get(name)
    if head is None:
        return [None] * len(keys)
    content = await read_content(store, name, head)
    return [
        (reason_and_day(content.table, head.reasons, key)[0] or "") if len(content.table.find_device(key)) else None
        for key in keys
    ]


async def count_first_days(store: LogStore, names: Sequence[str], chosen: Sequence[NDArray[np.bool_]]) -> list[Counter[int]]:  # fmt: skip
    """Count by TAC the devices that were first seen on selected days. The result has one Counter for each selection in `chosen`.

    Args:
        store: store with the record of first sightings.
        names: names of that record and of its imports; the earliest day of a device counts.
        chosen: selections of days; each is a mask that has one element for every day since 1970-01-01.

    Raises:
        StoreError: if the record cannot be read.
    """
    heads = await store.heads()
    parts = [(await read_content(store, name, heads[name])).table.rows() for name in names if name in heads]
    keys = np.concatenate([np.empty(0, "<u8"), *(rows.keys for rows in parts)])
    days = np.concatenate([np.empty(0, "<i8"), *(rows.column(BEGINS) // DAY_S for rows in parts)])
    order = np.lexsort((days, keys))
    keys, days = keys[order], days[order]
    is_earliest = is_first(keys)
    keys, days = keys[is_earliest], days[is_earliest]
    counts = []
    for is_chosen in chosen:
        tacs, devices = np.unique(keys[is_chosen[days]] // np.uint64(SNR_KEYS), return_counts=True)
        counts.append(Counter(dict(zip(tacs.tolist(), devices.tolist(), strict=True))))
    return counts

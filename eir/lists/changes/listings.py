"""Listings: numbers of devices that were added to or removed from lists in a span of time, by list, reason and TAC.

The history has the number of devices of each change. Reason and TAC are known in two cases: the event names its entries, or the store
still has the release and its predecessor. Memory is bounded by the number of lists, reasons and TACs, because records and pages are
read in batches.
"""

import re
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from eir.device import SNR_KEYS
from eir.lists.changes.local import ADD, FILE, REMOVE, added_by
from eir.lists.pages.content import as_corrupt
from eir.lists.pages.first_days import decode_days
from eir.lists.pages.pages import PAGE_KEYS, Page
from eir.lists.record.entries import entries_of, read_pages
from eir.lists.record.history import is_refusal, read_record
from eir.lists.record.reasons import reason_text
from eir.lists.record.store import CHAINS, Event, ListState, ListStore, Release

ROLLBACK = "rollback"
CHANGES = frozenset({"load", ROLLBACK, ADD, REMOVE})
PAGES_AT_ONCE = 500
RECENT_MAX = 64
"""Number of changes of a list that are remembered, so that a rollback of them can be counted."""
_TURNOVER = re.compile(r"([\d,]+) \w+ come, ([\d,]+) go")
_FROM_FILE = re.compile(rf"; (\d+) entries of .*{FILE}")
_UNDONE = re.compile(r"release ([\d, ]+) undone")
_AFTER_REASON = re.compile(r"(?:, until \d{4}-[^\s,;]+Z)?(?:; [\d,]+ \w+ come, .*)?$")


class Listing(NamedTuple):
    """Key under which added or removed devices are counted: list, reason, TAC, and whether they were added or removed."""

    list: str
    is_listed: bool
    """True if the devices were added, False if they were removed."""
    reason: str | None
    """Reason of the entries, or of their removal by hand; empty for no reason; None if the reason is not known."""
    tac: int | None
    """TAC of the devices, which is their page number; None if the TAC is not known."""


Parts = Counter[Listing]
"""Listing → count of devices."""


async def read_listings(store: ListStore, kinds: Mapping[str, str], begin: str, end: str) -> Parts:
    """Count the devices that were added to or removed from lists, from `begin` until before `end`.

    Args:
        store: store of the lists and of the history.
        kinds: kind of each list that counts, by name.
        begin: first time of the period, as in events (UTC).
        end: time after the period.

    Raises:
        StoreError: if the store cannot be read.
    """
    reader = _HistoryReader(store, kinds)
    listings = Parts()
    for chain in CHAINS:
        async for batch in store.records(chain=chain):
            for record in batch:
                event = read_record(record, chain)
                name = event.list or ""
                is_change = event.what in CHANGES and not is_refusal(event)
                if name not in kinds or not is_change or event.time >= end:
                    continue
                parts = await reader.count_change(event, name)
                if event.time >= begin:
                    listings += parts
    return listings


class _HistoryReader:
    """Counter of the devices that list changes added or removed. The caller passes the events of a chain, oldest first."""

    def __init__(self, store: ListStore, kinds: Mapping[str, str]) -> None:
        self._store = store
        self._kinds = kinds
        self._recent: dict[str, deque[tuple[Event, Parts]]] = {name: deque(maxlen=RECENT_MAX) for name in kinds}
        """Newest changes of each list, which a rollback may undo."""

    async def count_change(self, event: Event, name: str) -> Parts:
        """Count the devices that a list change in the history (`event`) added and removed."""
        if event.what == ROLLBACK:
            return self._count_rollback(event, name)
        if event.what in {ADD, REMOVE} and not _FROM_FILE.search(event.detail):
            parts = self._count_named(event, name)
        else:
            parts = await self._count_differences(event, name)
            for is_listed, devices in zip((True, False), _turnover(event), strict=True):
                known = sum(count for listing, count in parts.items() if listing.is_listed is is_listed)
                if devices > known:
                    parts[Listing(name, is_listed, None, None)] += devices - known
        self._recent[name].append((event, parts))
        return parts

    def _count_named(self, event: Event, name: str) -> Parts:
        """Count the devices that an operator added or removed. The event of this change names each device."""
        before_entries = event.detail.rpartition(": ")[0]
        reason = _AFTER_REASON.sub("", before_entries, count=1)
        entries = added_by([replace(event, what=ADD)], self._kinds[name])
        devices = {(key, is_whole_tac) for key, _, is_whole_tac in entries}
        parts = Parts()
        for key, is_whole_tac in devices:
            listing = Listing(name, event.what == ADD, reason, key // PAGE_KEYS)
            parts[listing] += SNR_KEYS if is_whole_tac else 1
        return parts

    def _count_rollback(self, event: Event, name: str) -> Parts:
        """Count the devices that a rollback added and removed. It removed the devices that the undone changes added, and vice versa."""
        match = _UNDONE.match(event.detail)
        serials = {int(text) for text in match[1].split(",")} if match else set()
        parts = Parts()
        for change, change_parts in self._recent[name]:
            change_text = f"({change.what} by {change.who}, {change.time}: {change.detail})"
            if change.serial not in serials and change_text not in event.detail:
                continue
            for listing, devices in change_parts.items():
                undone = listing._replace(is_listed=not listing.is_listed)
                parts[undone] += devices
        return parts

    async def _count_differences(self, event: Event, name: str) -> Parts:
        """Count the devices that a release added and removed. If the store lacks this or the previous release, the counts are empty."""
        releases = await self._store.releases(name)
        made = [None if each.made is None else (each.made.time, each.made.detail) for each in releases]
        if (event.time, event.detail) not in made:
            return Parts()
        at = made.index((event.time, event.detail))
        newer = releases[at]
        older = releases[at + 1] if at + 1 < len(releases) else None
        is_first = ", before 0;" in event.detail
        if older is None and not is_first:
            return Parts()
        parts = Parts()
        numbers = await self._changed_pages(name, newer, older)
        for at in range(0, len(numbers), PAGES_AT_ONCE):
            batch = numbers[at : at + PAGES_AT_ONCE]
            after = await self._store.kept_pages(name, newer.state.generation, batch)
            before = () if older is None else await self._store.kept_pages(name, older.state.generation, batch)
            if after is None or before is None:
                return Parts()
            new = {page.number: page for page in after}
            old = {page.number: page for page in before}
            for number in batch:
                parts += _count_page(name, newer.state, new.get(number), old.get(number), is_listed=True)
                if older is not None:
                    parts += _count_page(name, older.state, old.get(number), new.get(number), is_listed=False)
        return parts

    async def _changed_pages(self, name: str, newer: Release, older: Release | None) -> Sequence[int]:
        """Return the numbers of the pages (TACs) that a release changed. If the change log lacks the release, return all page numbers."""
        changes = await self._store.changes(name, older.state.generation) if older else None
        if changes and changes[0].after == newer.state.generation and changes[0].pages is not None:
            return changes[0].pages
        return [page.number async for _, batch in self._store.pages(name) for page in batch]


def _turnover(event: Event) -> tuple[int, int]:
    """Parse the number of added and the number of removed devices in the detail of an event."""
    if match := _TURNOVER.search(event.detail):
        added, removed = (int(text.replace(",", "")) for text in match.groups())
        return added, removed
    match = _FROM_FILE.search(event.detail)
    entries = int(match[1]) if match else 0
    return (entries, 0) if event.what == ADD else (0, entries)


def _count_page(name: str, state: ListState, page: Page | None, other: Page | None, *, is_listed: bool) -> Parts:
    """Count the devices that are on `page` but not on `other`, by reason. `other`: the same page in another release of the list."""
    if page is None or page == other:
        return Parts()
    rows = _reasons_on(page)
    other_rows = {} if other is None else _reasons_on(other)
    tac = page.number * PAGE_KEYS, True
    if tac in other_rows:
        return Parts()
    if tac in rows:
        counts = Counter({rows[tac]: SNR_KEYS - len(other_rows)})
    else:
        counts = Counter(reason for row, reason in rows.items() if row not in other_rows)
    parts = Parts()
    for reason, devices in counts.items():
        listing = Listing(name, is_listed, reason_text(state, reason), page.number)
        parts[listing] += devices
    return parts


def _reasons_on(page: Page) -> dict[tuple[int, bool], int]:
    """Return a map from entry to the index of its reason, for all entries on a page.

    An entry is its key, and True if it covers a whole TAC.
    """
    return {(entry.key, entry.whole_tac): entry.reason for entry in entries_of([page])}


async def read_reasons(store: ListStore, name: str, keys: Sequence[int]) -> list[str | None]:
    """Return the present reasons of devices in a list, in the order of `keys`; None for a device that is not listed.

    Raises:
        StoreError: if the list cannot be read.
    """
    numbers = {key // PAGE_KEYS for key in keys}
    state, pages = await read_pages(store, name, lambda page: page.number in numbers)
    if state is None:
        return [None] * len(keys)
    wanted = {*((key, False) for key in keys), *((number * PAGE_KEYS, True) for number in numbers)}
    texts: dict[tuple[int, bool], str] = {}
    for page in pages:
        texts |= {row: reason_text(state, reason) for row, reason in _reasons_on(page).items() if row in wanted}
    return [texts.get((key, False), texts.get((key // PAGE_KEYS * PAGE_KEYS, True))) for key in keys]


async def count_first_days(store: ListStore, name: str, chosen: Sequence[NDArray[np.bool_]]) -> list[Counter[int]]:
    """Count by TAC the devices that were first seen on selected days. The result has one Counter for each selection in `chosen`.

    Args:
        store: store with the record of first sightings.
        name: name of that record.
        chosen: selections of days; each is a mask that has one element for every day since 1970-01-01.

    Raises:
        StoreError: if the record cannot be read.
    """
    counts = [Counter[int]() for _ in chosen]
    async for _, batch in store.pages(name):
        with as_corrupt(name):
            days = decode_days(batch)
        for count, is_chosen in zip(counts, chosen, strict=True):
            keys = days.keys[is_chosen[days.firsts]]
            tacs, devices = np.unique(keys // np.uint64(PAGE_KEYS), return_counts=True)
            devices_by_tac = dict(zip(tacs.tolist(), devices.tolist(), strict=True))
            count.update(devices_by_tac)
    return counts

"""Listings: devices that changes added to lists and removed from them in a period, by list, reason and TAC.

The history has the number of devices of each change. Reason and TAC are known for the entries that an event names, and for a release
that the store keeps beside its predecessor. Memory is bounded by the number of lists, reasons and TACs: records and pages are read in
batches.
"""

import re
from collections import Counter, defaultdict, deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from eir.device import SNR_KEYS
from eir.lists.changes.local import ADD, FILE, REMOVE, added_by
from eir.lists.pages.content import Content, as_corrupt, decode
from eir.lists.pages.first_days import decode_days
from eir.lists.pages.pages import PAGE_KEYS, Page
from eir.lists.record.history import is_refusal, read_record
from eir.lists.record.reasons import reason_text
from eir.lists.record.store import CHAINS, Event, ListState, ListStore, Release

ROLLBACK = "rollback"
CHANGES = frozenset({"load", ROLLBACK, ADD, REMOVE})
PAGES_AT_ONCE = 500
RECENT_MAX = 64
"""Number of changes of a list that a rollback can refer to."""
_TURNOVER = re.compile(r"([\d,]+) \w+ come, ([\d,]+) go")
_FROM_FILE = re.compile(rf"; (\d+) entries of .*{FILE}")
_UNDONE = re.compile(r"release ([\d, ]+) undone")
_AFTER_REASON = re.compile(r"(?:, until \d{4}-[^\s,;]+Z)?(?:; [\d,]+ \w+ come, .*)?$")


class Listing(NamedTuple):
    """Group of devices with the same list, reason and TAC, which were added to the list or removed from it."""

    list: str
    is_listed: bool
    """True if the devices were added, False if they were removed."""
    reason: str | None
    """Reason of the entries, or of their removal by hand; empty for none; None if it is not known."""
    tac: int | None
    """Page number of the devices, which is their TAC; None if it is not known."""


Parts = Counter[Listing]
"""Number of devices by listing."""
NO_CONTENT = decode(Page(0, b""))


@dataclass(slots=True)
class Listings:
    """Devices that the changes in a period added to lists and removed from them."""

    devices: Parts = field(default_factory=Counter)
    unlisted_at: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    """Times (Unix microseconds) of the changes that removed devices, by list."""

    def add(self, event: Event, parts: Parts) -> None:
        """Add the devices of one change and, if it removed devices, its time."""
        self.devices += parts
        if event.list is not None and any(not each.is_listed for each in parts):
            time_s = datetime.fromisoformat(event.time).timestamp()
            self.unlisted_at[event.list].append(round(time_s) * 1_000_000)


async def read_listings(store: ListStore, kinds: Mapping[str, str], begin: str, end: str) -> Listings:
    """Count the devices that changes from `begin` until before `end` added and removed (times as in events, UTC).

    `kinds`: names of the lists that count → their kind.

    Raises:
        StoreError: if the store cannot be read.
    """
    reader, found = _HistoryReader(store, kinds), Listings()
    for name in kinds:
        await reader.add_kept(name)
    for chain in CHAINS:
        async for batch in store.records(chain=chain):
            for event in (read_record(record, chain) for record in batch):
                list_name = event.list or ""
                if list_name in kinds and event.what in CHANGES and not is_refusal(event) and event.time < end:
                    parts = await reader.parts_of(event, list_name, in_period=event.time >= begin)
                    if event.time >= begin:
                        found.add(event, parts)
    return found


class _HistoryReader:
    """Reader of list changes from the history, which must be passed in order, oldest first."""

    def __init__(self, store: ListStore, kinds: Mapping[str, str]) -> None:
        self._store, self._kinds = store, kinds
        self._kept: dict[tuple[str, str, str], tuple[Release, Release | None]] = {}
        """List, time and detail of the event of each stored release → the release, and its predecessor if it is stored."""
        self._recent: dict[str, deque[tuple[Event, Parts]]] = {name: deque(maxlen=RECENT_MAX) for name in kinds}
        """Changes of each list that a rollback may undo."""

    async def add_kept(self, name: str) -> None:
        """Read the list's stored releases, so that their changes can be computed from their pages."""
        releases = [*await self._store.releases(name)]
        for newer, older in zip(releases, [*releases[1:], None], strict=False):
            if newer.made is not None:
                self._kept[name, newer.made.time, newer.made.detail] = newer, older

    async def parts_of(self, event: Event, name: str, *, in_period: bool) -> Parts:
        """Count the devices that a change added and removed. Pages of releases are compared only for `in_period`."""
        if event.what == ROLLBACK:
            return self._undone(event, name)
        if event.what in {ADD, REMOVE} and not _FROM_FILE.search(event.detail):
            parts = self._named(event, name)
        else:
            parts = await self._differences(event, name) if in_period else Parts()
            for is_listed, devices in zip((True, False), _turnover(event), strict=True):
                known = sum(count for each, count in parts.items() if each.is_listed is is_listed)
                if devices > known:
                    parts[Listing(name, is_listed, None, None)] += devices - known
        self._recent[name].append((event, parts))
        return parts

    def _named(self, event: Event, name: str) -> Parts:
        """Return the devices whose identifiers an event names: entries that a person added or removed."""
        reason = _AFTER_REASON.sub("", event.detail.rpartition(": ")[0], count=1)
        entries = added_by([replace(event, what=ADD)], self._kinds[name])
        parts = Parts()
        for key, is_whole_tac in {(key, is_whole_tac) for key, _, is_whole_tac in entries}:
            parts[Listing(name, event.what == ADD, reason, key // PAGE_KEYS)] += SNR_KEYS if is_whole_tac else 1
        return parts

    def _undone(self, event: Event, name: str) -> Parts:
        """Return the effect of a rollback: the changes that it undid, with added and removed devices exchanged."""
        match = _UNDONE.match(event.detail)
        serials = {int(text) for text in match[1].split(",")} if match else set()
        parts = Parts()
        for made, made_parts in self._recent[name]:
            if made.serial in serials or f"({made.what} by {made.who}, {made.time}: {made.detail})" in event.detail:
                for each, devices in made_parts.items():
                    parts[each._replace(is_listed=not each.is_listed)] += devices
        return parts

    async def _differences(self, event: Event, name: str) -> Parts:
        """Return the devices by which a release differs from its predecessor; nothing unless both are stored."""
        newer, older = self._kept.get((name, event.time, event.detail), (None, None))
        if newer is None or (older is None and ", before 0;" not in event.detail):
            return Parts()
        parts, numbers = Parts(), await self._touched(name, newer, older)
        for at in range(0, len(numbers), PAGES_AT_ONCE):
            some = numbers[at : at + PAGES_AT_ONCE]
            after = await self._store.kept_pages(name, newer.state.generation, some)
            before = () if older is None else await self._store.kept_pages(name, older.state.generation, some)
            if after is None or before is None:
                return Parts()
            new, old = ({page.number: page for page in pages} for pages in (after, before))
            for number in some:
                parts += _page_parts(name, newer.state, new.get(number), old.get(number), is_listed=True)
                if older is not None:
                    parts += _page_parts(name, older.state, old.get(number), new.get(number), is_listed=False)
        return parts

    async def _touched(self, name: str, newer: Release, older: Release | None) -> Sequence[int]:
        """Return the numbers of the pages that a release changed; if unknown, those of all pages in force now."""
        steps = await self._store.changes(name, older.state.generation) if older else None
        if steps and steps[0].after == newer.state.generation and steps[0].pages is not None:
            return steps[0].pages
        return [page.number async for _, batch in self._store.pages(name) for page in batch]


def _turnover(event: Event) -> tuple[int, int]:
    """Return the numbers of added and of removed devices that the text of an event gives."""
    if match := _TURNOVER.search(event.detail):
        come, gone = (int(text.replace(",", "")) for text in match.groups())
        return come, gone
    match = _FROM_FILE.search(event.detail)
    entries = int(match[1]) if match else 0
    return (entries, 0) if event.what == ADD else (0, entries)


def _page_parts(name: str, state: ListState, page: Page | None, other: Page | None, *, is_listed: bool) -> Parts:
    """Count by reason the devices that `page` contains and `other` lacks."""
    if page is None or page == other:
        return Parts()
    content, rest = _content(page), NO_CONTENT if other is None else _content(other)
    if rest.tac is not None:
        return Parts()
    if content.tac is not None:
        counts = {content.tac.reason: SNR_KEYS - len(rest.low)}
    else:
        lacking = ~np.isin(content.low, rest.low, assume_unique=True)
        counts = dict(enumerate(np.bincount(content.reasons[lacking]).tolist()))
    parts = Parts()
    for reason, devices in counts.items():
        if devices:
            parts[Listing(name, is_listed, reason_text(state, reason), page.number)] += devices
    return parts


def _content(page: Page) -> Content:
    with as_corrupt(f"page {page.number} is damaged"):
        return decode(page)


async def read_reasons(store: ListStore, name: str, keys: Sequence[int]) -> list[str | None]:
    """Return the present reasons of listed devices in the order of `keys`; None for a device that is not listed.

    Raises:
        StoreError: if the list cannot be read.
    """
    by_page: dict[int, list[int]] = defaultdict(list)
    for key in keys:
        by_page[key // PAGE_KEYS].append(key % PAGE_KEYS)
    found: dict[int, str] = {}
    numbers = sorted(by_page)
    for at in range(0, len(numbers), PAGES_AT_ONCE):
        state, pages = await store.some_pages(name, numbers[at : at + PAGES_AT_ONCE])
        if state is not None:
            for page in pages:
                found |= _reasons_in(page, state, by_page[page.number])
    return [found.get(key) for key in keys]


def _reasons_in(page: Page, state: ListState, lows: Collection[int]) -> Mapping[int, str]:
    """Return the reasons of the listed devices among the remainders `lows` of a page, by key."""
    content = _content(page)
    reasons = dict(zip(content.low.tolist(), content.reasons.tolist(), strict=True))
    if content.tac is not None:
        reasons = dict.fromkeys(lows, content.tac.reason) | reasons
    first = page.number * PAGE_KEYS
    return {first + low: reason_text(state, reasons[low]) for low in lows if low in reasons}


async def count_first_days(store: ListStore, name: str, chosen: Sequence[NDArray[np.bool_]]) -> list[Counter[int]]:
    """Count by TAC the devices that were first seen on the days of each choice.

    Args:
        store: store with the record of first sightings.
        name: name of that record.
        chosen: choices of days; each has for every day since 1970-01-01 whether the day is chosen.

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
            count.update(dict(zip(tacs.tolist(), devices.tolist(), strict=True)))
    return counts

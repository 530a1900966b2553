"""Keeper of the record of first sightings: the record in memory, its copy on disk and the store stay equal.

The image that workers map is the record in memory. Each round reads the changes of other nodes, adds the devices that workers saw,
removes devices that no longer belong on the record, and writes the pages that differ to each store. If the store knows the changes since
the last round, only their pages are read and replaced. Otherwise (after a loss of data or a partition, or from an older copy) all pages
are merged: the earliest first day and the latest sighting count. So a device keeps its first day after any faults in any order.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime
from typing import TypeAlias

import numpy as np

from eir.errors import GenerationConflict, Report, StoreChanged, StoreError
from eir.lists.changes.import_days import read_imported
from eir.lists.follow.follower import batches, read_some_pages
from eir.lists.images.day_images import all_days, count_first_days, days_in, image_of, image_with_days, left, registered
from eir.lists.images.image import Image
from eir.lists.images.index import DeviceList, FirstSeenList
from eir.lists.log.change import utc_text
from eir.lists.pages.first_days import (
    NOTHING,
    WAS_LISTED,
    FirstDays,
    Sighted,
    by_page,
    decode_days,
    encode_days,
    is_unseen,
    join,
    merge,
    seen_on,
)
from eir.lists.pages.pages import PAGE_KEYS, Page, digest_text
from eir.lists.record.clock import STOOD_STILL, STORE_TIMEOUT_S, await_store
from eir.lists.record.settings import FIRST_SEEN, FirstSeenSettings
from eir.lists.record.store import ACCEPTED, NO_LIST, SIGHTED, Event, ListState, ListStore
from eir.lists.table.columns import Numbers

ROUND_S, REST_TIMES, ROUND_MAX_S = 1.0, 20, 60.0
"""Minimum pause between two rounds in seconds; factor of the pause after a long round, to the duration of the round; maximum pause in seconds."""
WRITE_S = 120.0
"""Time limit for one write of the store in seconds."""
STEP_PAGES_MAX = 20_000
"""Maximum number of changed pages that are read alone; if more pages changed, all pages are merged."""
WRITE_PAGES = 4_000
"""Maximum number of pages that are written together."""
FORGOTTEN_SHARE, FORGOTTEN_MIN = 20, 1000
"""Limit on unseen devices that are removed in a day: one device in FORGOTTEN_SHARE, but at least FORGOTTEN_MIN. So a clock that is years
ahead empties the record slowly enough to be noticed."""
AGAIN_MAX = 5
"""Maximum number of attempts of a step that other nodes disturb."""
SAY_AGAIN_S = 60.0

NEW, LISTED, UNSEEN, LEFT, MERGED, UNDONE = "new", "listed", "unseen", "left_list", "merged", "undone"
"""Reasons for a change of the record: devices seen for the first time; in a list that registers them; not seen for long; removed from such a list; merged from a store; import taken back."""

NewToday: TypeAlias = Mapping[tuple[str, bool], int]
"""Number of new devices of a day by peer and `Sighted.confirmed`."""


class _Replica:
    """Store that has the record of first sightings, and the differences between this store and memory."""

    def __init__(self, store: ListStore, fault: str) -> None:
        self.store = store
        self.fault = fault
        """Prefix of the causes of failures of this store."""
        self.base: ListState | None = None
        """State of the record in the store when it was last read or written; None: the store has no record."""
        self.stale: dict[int, tuple[int, int]] = {}
        """Pages that differ from memory, by number: digest and number of devices of the page in the store."""

    def update(self, base: ListState | None, stale: dict[int, tuple[int, int]]) -> None:
        """Set the state that the record has in this store, and the pages that differ between the store and memory."""
        self.base = base
        self.stale = stale


class RecordKeeper:
    """Keeper of the record of first sightings on one node.

    Args:
        settings: settings of the record.
        record: record in memory.
        stores: node's own copy, if there is one, and last the store that all nodes share.
        who: name of this node in the history.
        report: logs events.
        registering: returns the lists whose devices do not belong on the record.
        publish: receives each new image.
        reject: receives a peer and its devices above the peer's limit, or an empty peer and devices that a list registers.
        count: receives the day and the number of new devices by peer and `Sighted.confirmed`, for `resume` of the next keeper.
    """

    def __init__(
        self, settings: FirstSeenSettings, record: FirstSeenList, stores: Sequence[ListStore], *, who: str, report: Report,
        registering: Callable[[], Sequence[DeviceList]], publish: Callable[[ListState, Image], None], reject: Callable[[str, list[int]], None],
        count: Callable[[int, NewToday], None],
    ) -> None:  # fmt: skip
        self._settings, self._record, self._who, self._report = settings, record, who, report
        self._registering, self._publish, self._reject, self._count = registering, publish, reject, count
        self._replicas = [_Replica(store, "copy_" if store is not stores[-1] else "") for store in stores]
        self._changed: dict[int, FirstDays] = {}
        """Pages of the record in memory that are newer than the image, by number."""
        self._digest = self._devices = 0
        """Digest and number of devices of the record in memory."""
        self._undone = 0
        """Number of imports that were taken back, of the record in memory (`ListState.serial_resets`)."""
        self._sighted: list[Sighted] = []
        self._taken: Counter[tuple[str, bool]] = Counter()
        """New devices of today by peer and `Sighted.confirmed`."""
        self._before: dict[str, Image] = {}
        """Images of registering lists at the last comparison with the record, for the lists that have changed since."""
        self._day, self._is_new_day = record.today, True
        self._is_tidy = False
        """True if no registering list has changed since its last comparison with the record."""
        self._tidy_at = float("-inf")
        """Earliest time (time.monotonic) of the next comparison."""
        self._event: Event | None = None
        """Summary of the last day, which the next write of the shared store adds to the history."""
        self._summed: Counter[str] = Counter()
        """Part of `changes` that earlier summaries contain."""
        self._told: dict[str, float] = {}
        """Time (time.monotonic) at which each cause of failures was last reported."""
        self.first_days: Mapping[int, int] = {}
        """Number of devices of the record in memory by first day."""
        self.errors: Counter[str] = Counter()
        """Number of failures by cause."""
        self.changes: Counter[str] = Counter()
        """Number of added or removed devices by reason."""

    def note(self, sighted: Iterable[Sighted]) -> None:
        """Queue sightings of devices from a worker. The next round adds them to the record of first sightings."""
        self._sighted += sighted

    def resume(self, day: int, taken: NewToday) -> None:
        """Continue the counts of an earlier keeper of this node, so that its restart lifts no limit of a peer."""
        if day == self._day:
            self._taken.update(taken)

    def note_switch(self, name: str, before: Image | None) -> None:
        """Handle a change of a list. If it lists registered devices, keep its old image until the next comparison with the record.

        `before`: image of the list in memory before the change; None: the list was empty.
        """
        registering = {devices.name for devices in self._registering()}
        if name not in registering:
            return
        self._is_tidy = False
        if before is not None:
            self._before.setdefault(name, before)

    async def start(self) -> None:
        """Read the record of first sightings from all stores, before the node answers checks.

        If an earlier process had a record in force, this record is already in memory.
        """
        held = self._record.state
        if held is not None:
            self._digest = int(held.content_digest, 16)
            self._devices = held.entries
            self._undone = held.serial_resets
            self.first_days = await asyncio.to_thread(count_first_days, self._record.image)
        for replica in self._replicas:
            await self._synchronize(replica, writes=False)
        await self._switch()

    async def run(self) -> None:
        """Synchronise memory and stores in rounds until the task is cancelled."""
        while True:
            began = time.monotonic()
            try:
                await self.round()
            except Exception as error:  # noqa: BLE001  # the outermost loop of this task
                self._failed("internal", error)
            await asyncio.sleep(_rest_s(began))

    async def round(self) -> None:
        """Synchronise memory and all stores once. A store that fails is tried again in the next round."""
        for replica in self._replicas:
            await self._synchronize(replica, writes=False)
        self._begin_day()
        if not self._is_tidy and time.monotonic() >= self._tidy_at:
            await self._tidy()  # first, so that a device that has left a list is not new
        self._add_sighted()
        for replica in self._replicas:
            await self._synchronize(replica, writes=True)
        await self._switch()

    # Between memory and a store

    async def _synchronize(self, replica: _Replica, *, writes: bool) -> None:
        """Merge the changes of a store into memory. If `writes` is true, also write the pages that differ from memory to the store."""
        for _ in range(AGAIN_MAX):
            try:
                await self._pull(replica)
                if writes:
                    await self._push(replica)
            except (GenerationConflict, StoreChanged):
                continue  # another node was faster
            except StoreError as error:
                self._failed(f"{replica.fault}{error.cause}", error)
            except (ValueError, OSError) as error:  # a damaged page, or no memory for an image
                self._failed(f"{replica.fault}corrupt", error)
            return

    async def _pull(self, replica: _Replica) -> None:
        """Read the changes that other nodes wrote to a store, and merge them into memory."""
        name = self._settings.list
        state = await await_store(replica.store.state(name), STORE_TIMEOUT_S)
        base = replica.base
        if state is not None:
            self._record.note_time(state.loaded_at)
        if state is not None and state.kind == FIRST_SEEN and state.serial_resets > self._undone:
            await self._undo_import(replica.store)
            self._undone = state.serial_resets
        if state is None:
            replica.update(None, dict.fromkeys(self._filled_page_numbers(), (0, 0)))
        elif state.kind != FIRST_SEEN:
            kinds = f"{name} is a list of {state.kind} in the store, and the name of the record of first sightings in the configuration"
            raise StoreError("kind", f"{kinds}: give one of them another name")
        elif state.content_digest == digest_text(self._digest):
            replica.update(state, {})
        elif base is not None and _version(state) == _version(base):
            return
        elif base is None or not await self._pull_steps(replica, base):
            await self._pull_all(replica)

    async def _undo_import(self, store: ListStore) -> None:
        """Take the import back in memory that a command has taken back in a store, so that a merge does not write its days again."""
        if not self._devices:
            return
        _, imported = await await_store(read_imported(store, self._settings.list), STORE_TIMEOUT_S)
        mine = self._local(by_page(imported.written))
        restored = {number: imported.restore(days) for number, days in mine.items()}
        self._replace_pages(restored, UNDONE)

    async def _pull_steps(self, replica: _Replica, base: ListState) -> bool:
        """Merge only the pages that changed in a store since the last round; return False if all pages must be read.

        All pages must be read if the changes are unknown or do not lead to the store's digest.
        """
        name = self._settings.list
        steps = await await_store(replica.store.changes(name, base.generation), STORE_TIMEOUT_S) or ()
        numbers = sorted({number for step in steps for number in step.pages or ()})
        are_known = all(step.pages is not None for step in steps)
        if not are_known or not 0 < len(numbers) <= STEP_PAGES_MAX:
            return False
        state, pages = await read_some_pages(replica.store, name, numbers, steps[-1].after, STORE_TIMEOUT_S)
        theirs = by_page(decode_days(pages))
        mine = self._local(numbers)
        stale = {number: replica.stale[number] for number in numbers if number in replica.stale}
        before = _weights(numbers, mine) | stale
        removed = sum(digest for digest, _ in before.values())
        added = sum(map(Page.digest, pages))
        if digest_text(int(base.content_digest, 16) - removed + added) != state.content_digest:
            return False
        weights = _weights(stale, theirs)
        changes: dict[int, FirstDays] = {}
        for number in numbers:
            ours = mine.get(number, NOTHING)
            merged = their = theirs.get(number, NOTHING)
            if number in stale:
                merged = merge((ours, their))
                if merged.is_same(their):
                    del replica.stale[number]
                else:
                    replica.stale[number] = weights[number]
            if not merged.is_same(ours):
                changes[number] = merged
        self._replace_pages(changes, MERGED, source=replica)
        replica.update(state, replica.stale)
        return True

    async def _pull_all(self, replica: _Replica) -> None:
        """Merge all pages of a store into memory.

        Raises:
            StoreError: if the record is damaged.
        """
        name = self._settings.list
        is_empty = not self._devices
        state = NO_LIST
        total = 0
        parts: list[FirstDays] = []
        changes: dict[int, FirstDays] = {}
        stale: dict[int, tuple[int, int]] = {}
        stored: set[int] = set()
        async with aclosing(batches(replica.store, name, STORE_TIMEOUT_S)) as reading:
            async for state, batch in reading:  # noqa: B007  # the last state is that of the whole record
                total += sum(map(Page.digest, batch))
                stored.update(page.number for page in batch)
                if is_empty:
                    parts.append(decode_days(batch))
                else:
                    self._merge_batch(batch, changes, stale)
        if digest_text(total) != state.content_digest:
            raise StoreError(
                "digest", f"{name}: pages have the digest {digest_text(total)}, not {state.content_digest}"
            )
        missing = dict.fromkeys(self._filled_page_numbers() - stored, (0, 0))
        replica.update(state, stale | missing)
        if is_empty:
            await self._apply_all(replica, join(parts), total)
        self._replace_pages(changes, MERGED, source=replica)

    def _merge_batch(
        self, batch: Sequence[Page], changes: dict[int, FirstDays], stale: dict[int, tuple[int, int]]
    ) -> None:
        """Merge each page that was read from a store with the same page in memory.

        Pages that change in memory are added to `changes`, and pages with devices that the store lacks to `stale`.
        """
        mine = self._local([page.number for page in batch])
        encoded = {page.number: page for page in encode_days(_joined(mine))}
        differing = [page for page in batch if encoded.get(page.number) != page]
        theirs = by_page(decode_days(differing))
        weights = _weights(theirs, theirs)
        for number, their in theirs.items():
            ours = mine.get(number, NOTHING)
            merged = merge((ours, their))
            if not merged.is_same(ours):
                changes[number] = merged
            if not merged.is_same(their):
                stale[number] = weights[number]

    async def _apply_all(self, replica: _Replica, days: FirstDays, digest: int) -> None:
        """Fill the empty record of first sightings in memory with the record that was read from a store."""
        image = await asyncio.to_thread(image_of, days)
        self._digest = digest
        self._devices = len(days.keys)
        for other in self._replicas:
            if other is not replica:
                other.stale.update(dict.fromkeys(image.numbers.tolist(), (0, 0)))
        await self._switch_to(self._state(), image)

    async def _push(self, replica: _Replica) -> None:
        """Update a store from the record in memory: write all pages that differ.

        Raises:
            GenerationConflict: if another node wrote first.
        """
        is_shared = replica is self._replicas[-1]
        event = self._event if is_shared else None
        if replica.base is None and self._devices:
            await self._switch()
            pages = encode_days(join(all_days(self._record.image)))
            writing = replica.store.replace(self._settings.list, self._state(), pages, seen=0, keep=0, event=event)
            replica.update(await await_store(writing, WRITE_S), {})
            event = None
        while replica.base is not None and replica.stale:
            await self._push_batch(replica, replica.base, event)
            event = None
        if event is None and is_shared:
            self._event = None

    async def _push_batch(self, replica: _Replica, base: ListState, event: Event | None) -> None:
        """Write the first WRITE_PAGES differing pages to a store. `base`: state of the record in the store."""
        numbers = sorted(replica.stale)[:WRITE_PAGES]
        mine = self._local(numbers)
        new = {page.number: page for page in encode_days(_joined(mine))}
        removed = [replica.stale[number] for number in numbers]
        removed_digest = sum(digest for digest, _ in removed)
        removed_devices = sum(devices for _, devices in removed)
        added_digest = sum(map(Page.digest, new.values()))
        added_devices = sum(len(days.keys) for days in mine.values())
        digest = int(base.content_digest, 16) - removed_digest + added_digest
        entries = base.entries - removed_devices + added_devices
        state = replace(
            base, content_digest=digest_text(digest), entries=entries, devices=entries, serial_resets=self._undone, loaded_at=self._now()
        )  # fmt: skip
        pages = [new.get(number, Page(number, b"")) for number in numbers]
        writing = replica.store.amend(self._settings.list, state, pages, seen=base.generation, keep=0, event=event)
        written = await await_store(writing, WRITE_S)
        for number in numbers:
            del replica.stale[number]
        replica.update(written, replica.stale)

    # In memory

    def _local(self, numbers: Collection[int]) -> dict[int, FirstDays]:
        """Return the devices in memory on pages with these page numbers, by page number; empty pages are left out."""
        in_image = sorted(number for number in numbers if number not in self._changed)
        pages = by_page(days_in(self._record.image, in_image))
        for number in numbers:
            if number in self._changed and len(self._changed[number].keys):
                pages[number] = self._changed[number]
        return pages

    def _filled_page_numbers(self) -> set[int]:
        """Return the page numbers (TACs) in memory that have at least one device."""
        image = self._record.image
        in_image = set() if image is None else set(image.numbers.tolist())
        emptied = {number for number, days in self._changed.items() if not len(days.keys)}
        return (in_image | self._changed.keys()) - emptied

    def _replace_pages(self, pages: Mapping[int, FirstDays], reason: str, *, source: _Replica | None = None) -> None:
        """Replace pages of the record in memory. In each store except `source`, mark these pages as different from memory.

        `source`: store from which the pages were read; None if they come from elsewhere.
        """
        before = self._local(pages)
        changes = {number: days for number, days in pages.items() if not days.is_same(before.get(number, NOTHING))}
        old = _weights(changes, before)
        new = _weights(changes, changes)
        removed_digest = sum(digest for digest, _ in old.values())
        removed_devices = sum(devices for _, devices in old.values())
        self._digest += sum(digest for digest, _ in new.values()) - removed_digest
        more = sum(devices for _, devices in new.values()) - removed_devices
        self._devices += more
        self.changes[reason] += abs(more)
        for replica in self._replicas:
            if replica is not source:
                replica.update(replica.base, old | replica.stale)
        self._changed |= changes

    def _state(self) -> ListState:
        """Return the state in the shared store if the store has the same content as the record in memory, otherwise a new list state."""
        base = self._replicas[-1].base
        digest = digest_text(self._digest)
        if base is not None and base.content_digest == digest:
            return base
        return replace(
            base or NO_LIST,
            kind=FIRST_SEEN,
            serial_resets=self._undone,
            content_digest=digest,
            entries=self._devices,
            devices=self._devices,
            loaded_at=self._now(),
        )

    def _now(self) -> str:
        """Return the time of a change of the record: not before the newest time of the store, so that a wrong clock does not set it back."""
        seconds = max(self._record.now(), self._record.known_time)
        return utc_text(datetime.fromtimestamp(seconds, UTC))

    async def _switch(self) -> None:
        """Build a new image of the record in memory from the old one and the changed pages, and put it in force."""
        before = self._record.state
        state = self._state()
        image = self._record.image
        if self._changed:
            image = await asyncio.to_thread(image_with_days, image, self._changed)
            self._changed = {}
        elif image is None or (before is not None and _version(before) == _version(state)):
            return
        await self._switch_to(state, image)

    async def _switch_to(self, state: ListState, image: Image) -> None:
        self._record.replace(state, image)
        self._publish(state, image)
        self.first_days = await asyncio.to_thread(count_first_days, image)

    # Devices that workers saw, and devices that no longer belong on the record

    def _begin_day(self) -> None:
        """At the start of a day, write a summary of the last day's changes to the history, and reset the counts."""
        today = self._record.today
        if today == self._day:
            return
        changes = self.changes - self._summed
        counts = ", ".join(f"{count:,} {reason}" for reason, count in sorted(changes.items()))
        if counts:
            now = self._now()
            detail = f"devices up to {now[:10]}: {counts}; {self._devices:,} on record"
            self._event = Event(
                time=now, who=self._who, what=SIGHTED, list=self._settings.list, outcome=ACCEPTED, detail=detail
            )
        self._day = today
        self._is_new_day = True
        self._is_tidy = False
        self._summed = self.changes.copy()
        self._taken.clear()

    def _add_sighted(self) -> None:
        """Add the queued devices to the record, up to the number of new devices that each peer may add."""
        queued, self._sighted = self._sighted, []
        for sighted in queued:
            keys = np.unique(np.frombuffer(sighted.keys, "<u8"))
            is_registered = registered(self._registering(), keys)
            if is_registered.any():
                self._reject("", keys[is_registered].tolist())
            keys = keys[~is_registered]
            mine = self._local(np.unique(keys // np.uint64(PAGE_KEYS)).tolist())
            is_new = ~np.isin(keys, _joined(mine).keys, assume_unique=True)
            new = keys[is_new]
            peer = sighted.peer, sighted.confirmed
            room = max(self._settings.new_per_peer - self._taken[peer], 0)
            self._taken[peer] += min(room, len(new))
            if len(new) > room:
                self._reject(sighted.peer, new[room:].tolist())
            accepted = np.concatenate((keys[~is_new], new[:room]))
            day = max(sighted.day, self._record.first_day_min)
            self._merge_pages(by_page(seen_on(accepted, day)), NEW)
        if queued:
            self._count(self._day, dict(self._taken))

    def _merge_pages(self, pages: Mapping[int, FirstDays], reason: str) -> None:
        """Merge devices into the pages of the record in memory. `reason`: reason of the change, for the counts."""
        mine = self._local(pages)
        merged = {number: merge((mine.get(number, NOTHING), days)) for number, days in pages.items()}
        self._replace_pages(merged, reason)

    async def _tidy(self) -> None:
        """Update the record of first sightings after a change of a list of registered devices, and at the start of a day.

        The record has the first day and the latest period of sightings of each unregistered device. Devices that a list now
        registers are deleted. Once a day, devices without a sighting for `remember` days are deleted too. Devices that left
        a list of registered devices are added with the first day WAS_LISTED, so that they get no period of grace.
        """
        began = time.monotonic()
        await self._switch()
        before, self._before = self._before, {}
        self._is_tidy = True
        unlisted, seen, added = await asyncio.to_thread(self._compare, before)
        self._replace_pages(unlisted, LISTED)
        self._replace_pages(seen, UNSEEN)
        self._merge_pages(added, LEFT)
        self._is_new_day = False
        self._tidy_at = time.monotonic() + _rest_s(began)

    def _compare(self, before: Mapping[str, Image]) -> tuple[dict[int, FirstDays], ...]:
        """Compare the record with the lists of registered devices. `before`: earlier images of changed lists.

        Returns:
            Pages without the devices that a list registers; pages also without devices that were not seen for long;
            pages of devices that left a list.
        """
        registering = self._registering()
        room = max(FORGOTTEN_MIN, self._devices // FORGOTTEN_SHARE) if self._is_new_day else 0
        unlisted: dict[int, FirstDays] = {}
        seen: dict[int, FirstDays] = {}
        for days in all_days(self._record.image):
            is_removed = registered(registering, days.keys)
            unlisted |= _without(days, is_removed)
            is_old = is_unseen(days, self._day, self._settings.remember) & ~is_removed
            forgotten = np.flatnonzero(is_old)[:room]
            room -= len(forgotten)
            is_removed[forgotten] = True
            is_forgotten = np.isin(np.arange(len(is_removed)), forgotten)
            seen |= _without(days, is_removed, is_forgotten)
        gone: list[FirstDays] = []
        for devices in registering:
            if devices.name in before and devices.image is not None:
                for keys in left(before[devices.name], devices.image):
                    unregistered = keys[~registered(registering, keys)]
                    gone.append(seen_on(unregistered, self._day, WAS_LISTED))
        return unlisted, seen, by_page(merge(gone))

    def _failed(self, cause: str, error: Exception) -> None:
        if cause.endswith(STOOD_STILL):
            return
        self.errors[cause] += 1
        now = time.monotonic()
        if now - self._told.get(cause, -SAY_AGAIN_S) < SAY_AGAIN_S:
            return
        self._told[cause] = now
        event = "copy_failed" if cause.startswith("copy_") else "store_failed"
        detail = str(error) or type(error).__name__
        self._report(event, level="error", reason=cause, list=self._settings.list, detail=detail)


def _rest_s(began: float) -> float:
    """Return the pause in seconds after a round of synchronisation that began at `began`. The pause is longer after a longer round."""
    duration = time.monotonic() - began
    return min(max(ROUND_S, REST_TIMES * duration), ROUND_MAX_S)


def _joined(pages: Mapping[int, FirstDays]) -> FirstDays:
    return join(pages[number] for number in sorted(pages))


def _without(days: FirstDays, is_removed: Numbers, is_touched: Numbers | None = None) -> dict[int, FirstDays]:
    """Remove devices from `days`, and return the new content of the changed pages. `is_removed`: mask of the devices to remove.

    `is_touched`: mask of devices; a page with one of these devices is returned. None: the mask `is_removed`.
    """
    touched = days.keys[is_removed if is_touched is None else is_touched]
    numbers = np.unique(touched // np.uint64(PAGE_KEYS)).tolist()
    rest = by_page(days.where(~is_removed)) if numbers else {}
    return {number: rest.get(number, NOTHING) for number in numbers}


def _weights(numbers: Collection[int], pages: Mapping[int, FirstDays]) -> dict[int, tuple[int, int]]:
    """Return for each page number the page's digest and its count of devices. Both are 0 if `pages` lacks the page."""
    days = {number: pages.get(number, NOTHING) for number in sorted(numbers)}
    digests = {page.number: page.digest() for page in encode_days(join(days.values()))}
    return {number: (digests.get(number, 0), len(each.keys)) for number, each in days.items()}


def _version(state: ListState) -> tuple[int, str]:
    return state.generation, state.content_digest

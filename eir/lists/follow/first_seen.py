"""Keeper of the record of first sightings, which synchronises memory, the copy on disk, and the store.

The image that workers map is the record in memory. Each round reads what others wrote, adds what workers saw, forgets what does not
belong on the record any more, and writes the pages that differ to each store. Pages that others changed in known steps are taken over
as they are. If the steps are not known (a store that lost data, nodes that were apart, an older copy), all pages are merged: the
earliest first day and the latest sighting count. So a device keeps its period after any faults in any order.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np

from eir.errors import GenerationConflict, Report, StoreChanged, StoreError
from eir.lists.follow.follower import batches
from eir.lists.images.chunks import Numbers
from eir.lists.images.day_images import all_days, count_first_days, days_in, image_of, image_with_days, left, registered
from eir.lists.images.image import Image
from eir.lists.images.index import DeviceList, FirstSeenList
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
from eir.lists.record.store import ACCEPTED, NO_LIST, SIGHTED, Event, ListState, ListStore, utc_text

ROUND_S, REST_TIMES, ROUND_MAX_S = 1.0, 20, 60.0
"""Seconds from one round to the next at least; after a long round the rest is this many times as long as it took, at most the maximum."""
WRITE_S = 120.0
"""Seconds that one write of the store may take."""
STEP_PAGES_MAX, READ_PAGES, WRITE_PAGES = 20_000, 500, 4000
"""Pages that are taken over in steps at most; pages that are read and written at a time."""
FORGOTTEN_SHARE, FORGOTTEN_MIN = 20, 1000
"""One device in so many is forgotten per day at most for not having been seen, but at least the minimum: a clock that is years ahead
takes the record away slowly enough to be noticed."""
AGAIN_MAX = 5
"""Times in a row that a round begins again because another node was faster."""
SAY_AGAIN_S = 60.0

NEW, LISTED, UNSEEN, LEFT, MERGED = "new", "listed", "unseen", "left_list", "merged"
"""Reasons for a change of the record: seen for the first time, in a list that registers it, not seen for long, out of such a list, from elsewhere."""


class _Replica:
    """Store that has the record of first sightings, and its differences to memory as of the last round."""

    def __init__(self, store: ListStore, fault: str) -> None:
        self.store, self.fault = store, fault
        """The second: the beginning of the causes of its failures."""
        self.base: ListState | None = None
        """The state that was last read or written; None: the store has no record."""
        self.stale: dict[int, tuple[int, int]] = {}
        """Pages that differ from memory: the digest and the devices that the store has in them."""

    def update(self, base: ListState | None, stale: dict[int, tuple[int, int]]) -> None:
        """Remember the state that this store has, and its pages that differ from memory."""
        self.base, self.stale = base, stale


class RecordKeeper:
    """Keeper of the record of first sightings on one node.

    `record` is what the node has in memory. `stores`: the node's copy, if there is one, then the store that all nodes share. `registering`
    returns the lists whose devices do not belong on the record. `publish` gets each new image, `reject` the devices that are not recorded
    because of the limit of a peer (or, with an empty peer, because a list has them). `who` marks this node in the history.
    """

    def __init__(
        self, settings: FirstSeenSettings, record: FirstSeenList, stores: Sequence[ListStore], *, who: str, report: Report,
        registering: Callable[[], Sequence[DeviceList]], publish: Callable[[ListState, Image], None], reject: Callable[[str, list[int]], None],
        answer_s: float = STORE_TIMEOUT_S,
    ) -> None:  # fmt: skip
        self._settings, self._record, self._who, self._report = settings, record, who, report
        self._registering, self._publish, self._reject = registering, publish, reject
        self._answer_s = answer_s
        self._replicas = [_Replica(store, "copy_" if store is not stores[-1] else "") for store in stores]
        self._changed: dict[int, FirstDays] = {}
        """Pages that are newer than the image."""
        self._digest = self._devices = 0
        """Digest and number of devices of the record in memory."""
        self._sighted: list[Sighted] = []
        self._taken: Counter[tuple[str, bool]] = Counter()
        """New devices by peer, today."""
        self._before: dict[str, Image] = {}
        """Lists that register devices and changed since the record was compared with them, as they were then."""
        self._day, self._is_new_day = record.today, True
        self._is_tidy, self._tidy_at = False, float("-inf")
        """The record was compared with the lists as they are; time from which it may be compared again (monotonic)."""
        self._event: Event | None = None
        """Summary of a day, for the history."""
        self._summed: Counter[str] = Counter()
        """Changes that are in a summary."""
        self._told: dict[str, float] = {}
        self.first_days: Mapping[int, int] = {}
        """First day → number of devices of the record in memory."""
        self.errors: Counter[str] = Counter()
        """Failures by cause."""
        self.changes: Counter[str] = Counter()
        """Devices that came or went, by reason."""

    def note(self, sighted: Iterable[Sighted]) -> None:
        """Queue devices that a worker saw; the next round adds them to the record."""
        self._sighted += sighted

    def note_switch(self, name: str, before: Image | None) -> None:
        """Remember the previous image (None: empty) of a changed list, for the comparison with the record."""
        if any(each.name == name for each in self._registering()):
            self._is_tidy = False
            if before is not None:
                self._before.setdefault(name, before)

    async def start(self) -> None:
        """Read all stores, before the node answers checks.

        The record that an earlier process had in force is already in memory.
        """
        if (held := self._record.state) is not None:
            self._digest, self._devices = int(held.content_digest, 16), held.entries
            self.first_days = await asyncio.to_thread(count_first_days, self._record.image)
        for replica in self._replicas:
            await self._level(replica, writes=False)
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
        """Synchronise memory and stores once. If a store fails, the next round tries it again."""
        for replica in self._replicas:
            await self._level(replica, writes=False)
        self._begin_day()
        if not self._is_tidy and time.monotonic() >= self._tidy_at:
            await self._tidy()  # first, so that a device that has left a list is not new
        self._take_sighted()
        for replica in self._replicas:
            await self._level(replica, writes=True)
        await self._switch()

    # Between memory and a store

    async def _level(self, replica: _Replica, *, writes: bool) -> None:
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
        """Read from a store the changes that other nodes wrote, and merge them into memory."""
        state, base = await await_store(replica.store.state(self._settings.list), self._answer_s), replica.base
        if state is None:
            replica.update(None, dict.fromkeys(self._numbers(), (0, 0)))
        elif state.kind != FIRST_SEEN:
            raise StoreError(
                "kind",
                f"{self._settings.list} is a list of {state.kind} in the store, and the name of the record of first sightings in the configuration: give one of them another name",
            )
        elif state.content_digest == digest_text(self._digest):
            replica.update(state, {})
        elif base is not None and (state.generation, state.content_digest) == (base.generation, base.content_digest):
            pass
        elif base is None or not await self._pull_steps(replica, base):
            await self._pull_all(replica)

    async def _pull_steps(self, replica: _Replica, base: ListState) -> bool:
        """Read the pages that changed in a store since the last round; return False if that is not possible.

        It is not possible if the changes are unknown or do not lead to the store's digest.
        """
        steps = await await_store(replica.store.changes(self._settings.list, base.generation), self._answer_s) or ()
        numbers = sorted({number for step in steps for number in step.pages or ()})
        if any(step.pages is None for step in steps) or not 0 < len(numbers) <= STEP_PAGES_MAX:
            return False
        state, theirs = NO_LIST, dict[int, Page]()
        for at in range(0, len(numbers), READ_PAGES):
            found, pages = await await_store(
                replica.store.some_pages(self._settings.list, numbers[at : at + READ_PAGES]), self._answer_s
            )
            if found is None or found.generation != steps[-1].after:
                raise StoreChanged(f"{self._settings.list} changed while its touched pages were read")
            state = found
            theirs |= {page.number: page for page in pages}
        mine, days = self._local(numbers), by_page(decode_days(theirs[number] for number in sorted(theirs)))
        before = _weights(numbers, mine) | {
            number: replica.stale[number] for number in numbers if number in replica.stale
        }
        goes, comes = sum(digest for digest, _ in before.values()), sum(map(Page.digest, theirs.values()))
        if digest_text(int(base.content_digest, 16) - goes + comes) != state.content_digest:
            return False
        changes = {}
        weights = _weights(replica.stale.keys() & set(numbers), days)
        for number in numbers:
            ours, their = mine.get(number, NOTHING), days.get(number, NOTHING)
            merged = their
            if number in replica.stale:
                merged = merge((ours, their))
                replica.stale[number] = weights[number]
                if merged.is_same(their):
                    del replica.stale[number]
            if not merged.is_same(ours):
                changes[number] = merged
        self._put(changes, MERGED, by=replica)
        replica.update(state, replica.stale)
        return True

    async def _pull_all(self, replica: _Replica) -> None:
        """Merge the whole record of a store into memory. Raises StoreError if it is damaged."""
        state, total, is_empty, parts = NO_LIST, 0, not self._devices, list[FirstDays]()
        changes, stale, there = dict[int, FirstDays](), dict[int, tuple[int, int]](), set[int]()
        async with aclosing(batches(replica.store, self._settings.list, self._answer_s)) as found:
            async for state, batch in found:  # noqa: B007  # the last one is what was read
                total += sum(map(Page.digest, batch))
                there.update(page.number for page in batch)
                if is_empty:
                    parts.append(decode_days(batch))
                    continue
                mine = self._local([page.number for page in batch])
                same = {page.number: page for page in encode_days(join(mine[number] for number in sorted(mine)))}
                differs = by_page(decode_days(page for page in batch if same.get(page.number) != page))
                weights = _weights(differs, differs)
                for number, their in differs.items():
                    ours = mine.get(number, NOTHING)
                    merged = merge((ours, their))
                    if not merged.is_same(ours):
                        changes[number] = merged
                    if not merged.is_same(their):
                        stale[number] = weights[number]
        if digest_text(total) != state.content_digest:
            raise StoreError(
                "digest",
                f"{self._settings.list}: pages have the digest {digest_text(total)}, not {state.content_digest}",
            )
        replica.update(state, stale | dict.fromkeys(self._numbers() - there, (0, 0)))
        if is_empty:
            await self._take_all(replica, join(parts), total)
        self._put(changes, MERGED, by=replica)

    async def _take_all(self, replica: _Replica, days: FirstDays, digest: int) -> None:
        """Put the whole record of a store in force, while memory has no record."""
        image = await asyncio.to_thread(image_of, days)
        self._digest, self._devices = digest, len(days.keys)
        for other in self._replicas:
            if other is not replica:
                other.stale.update(dict.fromkeys(image.numbers.tolist(), (0, 0)))
        await self._switch_to(self._state(), image)

    async def _push(self, replica: _Replica) -> None:
        """Write to a store the pages that it lacks or that are outdated there.

        Raises GenerationConflict if another node wrote first.
        """
        store, name, shared = replica.store, self._settings.list, replica is self._replicas[-1]
        event = self._event if shared else None
        if replica.base is None and self._devices:
            await self._switch()
            pages = encode_days(join(all_days(self._record.image)))
            writing = store.replace(name, self._state(), pages, seen=0, keep=0, event=event)
            replica.update(await await_store(writing, WRITE_S), {})
        while replica.base is not None and replica.stale:
            base, numbers = replica.base, sorted(replica.stale)[:WRITE_PAGES]
            mine = self._local(numbers)
            new = {page.number: page for page in encode_days(join(mine[number] for number in sorted(mine)))}
            digest = (
                int(base.content_digest, 16)
                - sum(replica.stale[number][0] for number in numbers)
                + sum(map(Page.digest, new.values()))
            )
            entries = (
                base.entries
                - sum(replica.stale[number][1] for number in numbers)
                + sum(len(days.keys) for days in mine.values())
            )
            state = replace(
                base, content_digest=digest_text(digest), entries=entries, devices=entries, loaded_at=_now()
            )
            pages = [new.get(number, Page(number, b"")) for number in numbers]
            writing = store.amend(name, state, pages, seen=base.generation, keep=0, event=event)
            written = await await_store(writing, WRITE_S)
            for number in numbers:
                del replica.stale[number]
            replica.update(written, replica.stale)
            event = None
        if event is None and shared:
            self._event = None

    # In memory

    def _local(self, numbers: Collection[int]) -> dict[int, FirstDays]:
        """Return the devices of the numbered pages in memory; pages without devices are left out."""
        rest = sorted(number for number in numbers if number not in self._changed)
        newer = {number: self._changed[number] for number in numbers if number in self._changed}
        return by_page(days_in(self._record.image, rest)) | {
            number: days for number, days in newer.items() if len(days.keys)
        }

    def _numbers(self) -> set[int]:
        image = self._record.image
        there = set() if image is None else set(image.numbers.tolist())
        return (there | self._changed.keys()) - {number for number, days in self._changed.items() if not len(days.keys)}

    def _put(self, changes: Mapping[int, FirstDays], reason: str, *, by: _Replica | None = None) -> None:
        """Replace pages in memory, and mark them as outdated in every store except `by`, the source of these pages."""
        before = self._local(changes)
        changes = {number: days for number, days in changes.items() if not days.is_same(before.get(number, NOTHING))}
        old, new = _weights(changes, before), _weights(changes, changes)
        self._digest += sum(digest for digest, _ in new.values()) - sum(digest for digest, _ in old.values())
        more = sum(count for _, count in new.values()) - sum(count for _, count in old.values())
        self._devices += more
        self.changes[reason] += abs(more)
        for replica in self._replicas:
            if replica is not by:
                replica.update(replica.base, old | replica.stale)
        self._changed |= changes

    def _state(self) -> ListState:
        """Return the state of the record in memory; it is the store's state if both have the same content."""
        base, digest = self._replicas[-1].base, digest_text(self._digest)
        if base is not None and base.content_digest == digest:
            return base
        return replace(
            base or NO_LIST,
            kind=FIRST_SEEN,
            content_digest=digest,
            entries=self._devices,
            devices=self._devices,
            loaded_at=_now(),
        )

    async def _switch(self) -> None:
        """Build an image with the changed pages and put it in force."""
        before, state, image = self._record.state, self._state(), self._record.image
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

    # What workers saw, and what does not belong on the record any more

    def _begin_day(self) -> None:
        if (today := self._record.today) == self._day:
            return
        counts = ", ".join(f"{count:,} {reason}" for reason, count in sorted((self.changes - self._summed).items()))
        if counts:
            self._event = Event(
                time=_now(), who=self._who, what=SIGHTED, list=self._settings.list, outcome=ACCEPTED,
                detail=f"devices up to {_now()[:10]}: {counts}; {self._devices:,} on record",
            )  # fmt: skip
        self._day, self._is_new_day, self._is_tidy, self._summed = today, True, False, self.changes.copy()
        self._taken.clear()

    def _take_sighted(self) -> None:
        """Add the queued devices to the record, up to the limit of each peer."""
        sighted, self._sighted = self._sighted, []
        for each in sighted:
            keys = np.unique(np.frombuffer(each.keys, "<u8"))
            listed = registered(self._registering(), keys)
            if listed.any():
                self._reject("", keys[listed].tolist())
            keys = keys[~listed]
            mine = self._local(np.unique(keys // np.uint64(PAGE_KEYS)).tolist())
            is_new = ~np.isin(keys, join(mine[number] for number in sorted(mine)).keys, assume_unique=True)
            new, of = keys[is_new], (each.peer, each.confirmed)
            room = max(self._settings.new_per_peer - self._taken[of], 0)
            self._taken[of] += min(room, len(new))
            if len(new) > room:
                self._reject(each.peer, new[room:].tolist())
            keys = np.concatenate((keys[~is_new], new[:room]))
            added = by_page(seen_on(keys, each.day))
            self._put({number: merge((mine.get(number, NOTHING), days)) for number, days in added.items()}, NEW)

    async def _tidy(self) -> None:
        """Remove devices that other lists contain or that were not seen for long; add devices that left these lists.

        The other lists are those that `registering` returns.
        """
        began = time.monotonic()
        await self._switch()
        before, self._before, self._is_tidy = self._before, {}, True
        forgotten, unseen, added = await asyncio.to_thread(self._compare, before)
        self._put(forgotten, LISTED)
        self._put(unseen, UNSEEN)
        mine = self._local(added)
        self._put({number: merge((mine.get(number, NOTHING), days)) for number, days in added.items()}, LEFT)
        self._is_new_day, self._tidy_at = False, time.monotonic() + _rest_s(began)

    def _compare(self, before: Mapping[str, Image]) -> tuple[dict[int, FirstDays], ...]:
        """Compare the record of first sightings with the lists whose devices do not belong in the record.

        Returns three results: pages without the devices that a list has; those pages without the devices that were not
        seen for long; devices that left a list.
        """
        today, room = self._day, max(FORGOTTEN_MIN, self._devices // FORGOTTEN_SHARE) if self._is_new_day else 0
        listed, unseen, gone = dict[int, FirstDays](), dict[int, FirstDays](), list[FirstDays]()
        for days in all_days(self._record.image):
            held = registered(self._registering(), days.keys)
            listed |= _without(days, held)
            old = np.flatnonzero(is_unseen(days, today, self._settings.remember) & ~held)[:room]
            room -= len(old)
            held[old] = True
            unseen |= _without(days, held, np.isin(np.arange(len(held)), old))
        for each in self._registering():
            if each.name in before and each.image is not None:
                for keys in left(before[each.name], each.image):
                    gone.append(seen_on(keys[~registered(self._registering(), keys)], today, WAS_LISTED))
        return listed, unseen, by_page(merge(gone))

    def _failed(self, cause: str, error: Exception) -> None:
        if cause.endswith(STOOD_STILL):
            return
        self.errors[cause] += 1
        now = time.monotonic()
        if now - self._told.get(cause, -SAY_AGAIN_S) >= SAY_AGAIN_S:
            self._told[cause] = now
            name, of_copy = self._settings.list, cause.startswith("copy_")
            self._report(
                "copy_failed" if of_copy else "store_failed",
                level="error",
                reason=cause,
                list=name,
                detail=str(error) or type(error).__name__,
            )


def _rest_s(began: float) -> float:
    """Return the pause in seconds after a round that started at `began`."""
    return min(max(ROUND_S, REST_TIMES * (time.monotonic() - began)), ROUND_MAX_S)


def _without(days: FirstDays, gone: Numbers, touched: Numbers | None = None) -> dict[int, FirstDays]:
    """Return the pages with a device of the mask `touched`, without the devices of the mask `gone`."""
    numbers = np.unique(days.keys[gone if touched is None else touched] // np.uint64(PAGE_KEYS)).tolist()
    rest = by_page(days.where(~gone)) if numbers else {}
    return {number: rest.get(number, NOTHING) for number in numbers}


def _weights(numbers: Collection[int], pages: Mapping[int, FirstDays]) -> dict[int, tuple[int, int]]:
    """Return the digest and the number of devices of each numbered page; both are 0 for a page that `pages` lacks."""
    days = {number: pages.get(number, NOTHING) for number in sorted(numbers)}
    digests = {page.number: page.digest() for page in encode_days(join(days.values()))}
    return {number: (digests.get(number, 0), len(each.keys)) for number, each in days.items()}


def _version(state: ListState) -> tuple[int, str]:
    return state.generation, state.content_digest


def _now() -> str:
    return utc_text(datetime.now(UTC))

"""The history on a node's side: this node's copy, which only grows, and the two rules by which it is kept level with the store's.

What continues the copy is appended to it. What does not is told, and the copy stays as it is until an operator adopts the store's
history. A store whose history is empty, damaged, or no more than the beginning of the copy gets the copy back.

Both rules hold for each chain. The feed's chain loses its oldest records when it is full, so a node that was away may find a gap behind its
copy. An anchor in the main chain, which continues the copy, proves the records behind the gap.
"""

import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import chain as chain_of

from eir.errors import GenerationConflict, Report, StoreError
from eir.lists.record.clock import TrustedClock, await_store
from eir.lists.record.history import (
    FOLDS_MAX,
    append_events,
    chain_faults,
    feed_faults,
    is_linked,
    is_of,
    newest_change,
    read_record,
    readable_events,
    record_digest,
)  # fmt: skip
from eir.lists.record.settings import HistorySettings
from eir.lists.record.store import (
    ACCEPTED,
    ANCHOR,
    CHAINS,
    FEED,
    MAIN,
    Event,
    Ledger,
    ListState,
    ListStore,
    Record,
    utc_text,
)

TRIM_S = 3600.0
ANCHOR_S = 86400.0
"""Longest time (s) from one anchor of a growing feed chain to the next."""
FEED_TRIM_S = 600.0
"""Least time (s) from one anchor to the next, whichever node writes them. So a flood of rows adds at most 144 anchors a day to the main chain,
and the feed's chain exceeds its limit by the rows of that time."""
FEED_KEPT = 0.9
"""Share of its size limit that a full feed chain is cut to."""
NEARLY_FULL = 0.8
"""Share of `history.max_bytes` above which the main chain raises an alert."""
WAITING_MAX = 1_000
"""Events that wait for a store that is away."""
COPY_TIMEOUT_S = 600.0
"""Seconds that copying a whole history, or giving it back, may take."""
UNRECORDED_S = 15.0
"""Seconds for which a list may be in the store before the record of the event that made it is there too."""
READ_AGAIN_MAX = 10
NAMES = " (SHA-256 "
"""Follows the part of a difference that stays the same while the store's chain grows: it is reported once."""
NEWEST = 20
"""Events of a list among which its last change mostly is."""


class HistoryKeeper:
    """A node's work on the history, again and again.

    `copy`: the node's own, where the store is elsewhere. `writes`: it may write the store's. `who` is this node, in the history. `now` is
    the monotonic clock, `wall` the time of day, `clock` the one by which records are too old: a clock that has jumped takes none away.
    """

    def __init__(
        self,
        copy: ListStore | None,
        *,
        writes: bool,
        who: str,
        report: Report,
        now: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        clock: TrustedClock | None = None,
    ) -> None:
        self._copy, self._writes, self._who, self._report, self._now, self._wall = copy, writes, who, report, now, wall
        self._waiting: deque[Event] = deque(maxlen=WAITING_MAX)
        self._clock = clock or TrustedClock()
        self._trimmed_at: float | None = None
        self._refusals = ""
        """The refusals of the store that were last taken over."""
        self._unrecorded: dict[str, tuple[ListState, float | None]] = {}
        """The state of each list at the last look, and the time since which it has no record (None: it has one)."""
        self._told: set[str] = set()
        """Lists without a record that the log has reported."""
        self.ledgers = dict.fromkeys(CHAINS, Ledger())
        """The store's, by chain, when they were last read."""
        self.differs = ""
        """The reason why the store's history does not continue this node's copy; empty if it does."""

    @property
    def unrecorded(self) -> list[str]:
        """Lists in the store that are not what the history says was last done to them."""
        now = self._now()
        return [
            name for name, (_, since) in self._unrecorded.items() if since is not None and now - since >= UNRECORDED_S
        ]

    def add(self, event: Event) -> None:
        """Have an event recorded at the next look, or when the store is back."""
        if self._writes:
            self._waiting.append(event)
        else:
            self._report(
                "history_not_written",
                level="warning",
                reason="heal",
                detail=f"{event.what} by {event.who}: with `heal: false` a node writes no history",
            )

    async def look(self, store: ListStore, settings: HistorySettings, lists: Sequence[str] = ()) -> None:
        """Bring copy and store level, write what waits, forget what is overdue, and hold `lists` against their records. Raises StoreError."""
        writes = self._writes and await await_store(store.newer()) is None
        if self._copy is not None and writes:
            try:
                healed = await await_store(give_back(store, self._copy, self._who), COPY_TIMEOUT_S)
            except GenerationConflict:  # another node was faster, or somebody wrote: the next look sees what
                return
            if healed:
                self._report("history_healed", level="warning", detail=healed)
        if writes:
            await await_store(store.settle())
            while self._waiting:
                await await_store(store.record(self._waiting[0]))
                self._waiting.popleft()
            await self._trim(store, settings)
            await self._limit_feed(store, settings)
        if self._copy is not None:
            with suppress(GenerationConflict):  # it was written meanwhile: the next look sees what
                await await_store(self._grow(store, self._copy), COPY_TIMEOUT_S)
            if not self.differs:
                await self._limit_copy(self._copy, settings, (await await_store(store.ledger(FEED))).bytes)
        self._note({chain: await await_store(store.ledger(chain)) for chain in CHAINS}, settings)
        await await_store(self._hold(store, lists))

    async def events(
        self, name: str | None, *, limit: int | None, since: str | None, chain: str | None
    ) -> Sequence[Event]:
        """The events in this node's copy, while the store is away. Raises StoreError."""
        if self._copy is None:
            raise StoreError("refused", "the history is in the store alone")
        return await self._copy.history(name, limit=limit, since=since, chain=chain)

    async def close(self) -> None:
        """Let go of the copy."""
        if self._copy is not None:
            await self._copy.close()

    async def _trim(self, store: ListStore, settings: HistorySettings) -> None:
        if self._trimmed_at is not None and self._now() - self._trimmed_at < TRIM_S:
            return
        until = self._until(settings)
        event = self._event("trim", "history.keep")
        await await_store(store.trim_history(until, None, event), COPY_TIMEOUT_S)
        if self._copy is not None and not self.differs:
            for chain in CHAINS:
                await self._copy.trim_history(until, None, None, chain)
        self._trimmed_at = self._now()

    def _until(self, settings: HistorySettings) -> str:
        """Return the time from which on records are kept."""
        now = datetime.fromtimestamp(self._clock.now(self._wall(), self._now()), UTC)
        return utc_text(now - timedelta(days=settings.keep))

    def _event(self, what: str, detail: str = "", chain: str = MAIN) -> Event:
        now = utc_text(datetime.fromtimestamp(self._wall(), UTC))
        return Event(time=now, who=self._who, what=what, outcome=ACCEPTED, detail=detail, chain=chain)

    async def _limit_feed(self, store: ListStore, settings: HistorySettings) -> None:
        """Anchor the feed's chain in the main chain each day and when the feed's chain is full; then forget its oldest records."""
        feed = await await_store(store.ledger(FEED))
        is_full = feed.bytes > settings.feed_max_bytes
        if not feed.number or self._is_recent(feed.anchored_at, FEED_TRIM_S if is_full else ANCHOR_S):
            return
        await await_store(store.record(self._event(ANCHOR, "newest record of the feed's chain")))
        event = self._event("trim", "history.keep, history.feed_max_bytes", FEED)
        bytes_max = int(settings.feed_max_bytes * FEED_KEPT) if is_full else None
        await await_store(store.trim_history(self._until(settings), bytes_max, event, FEED), COPY_TIMEOUT_S)

    def _is_recent(self, time: str, span_s: float) -> bool:
        """True if a time is less than so many seconds from now; in the future too, since nodes have clocks of their own."""
        first, last = (utc_text(datetime.fromtimestamp(self._wall() + span, UTC)) for span in (-span_s, span_s))
        return first < time < last

    async def _limit_copy(self, copy: ListStore, settings: HistorySettings, stored: int) -> None:
        """Forget the oldest records in the copy of a full feed chain, but none that the store has. `stored`: bytes of the store's chain."""
        if (await copy.ledger(FEED)).bytes > max(settings.feed_max_bytes, stored):
            bytes_max = max(int(settings.feed_max_bytes * FEED_KEPT), stored)
            await copy.trim_history(self._until(settings), bytes_max, None, FEED)

    async def _grow(self, store: ListStore, copy: ListStore) -> None:
        """Append to the copy what continues it, and nothing else."""
        differs = ""
        for chain in CHAINS:
            ours, theirs = await copy.ledger(chain), await store.ledger(chain)
            found = "" if theirs.number > ours.number or theirs.digest == ours.digest else "it has other records"
            if theirs.number > ours.number:
                found = await self._take_over(store, copy, chain, ours, theirs)
            if found and (await store.ledger(chain)).first != theirs.first:
                raise GenerationConflict("records were forgotten while they were read")
            if found and not differs:
                named = "history" if chain == MAIN else "history of the feed"
                differs = f"{named}: this node has records up to {ours.number}{NAMES}{ours.digest}), and the store's up to {theirs.number} do not continue them: {found}"
            if found:
                break  # the feed's chain is proved by the main chain
        if differs and self.differs.partition(NAMES)[0] != differs.partition(NAMES)[0]:
            self._report(
                "history_differs", level="error", detail=f"{differs}; see eir history --verify, then eir history adopt"
            )
        main = await store.ledger()
        if not differs and self._refusals != main.refusals:
            seen = await copy.ledger()
            await copy.rewrite_history(_one(()), await store.folds(), after=seen.number, seen=seen)
            self._refusals = main.refusals
        self.differs = differs

    async def _take_over(self, store: ListStore, copy: ListStore, chain: str, ours: Ledger, theirs: Ledger) -> str:
        """Take over the store's newer records of a chain. Returns why that cannot be done; empty if it was done."""
        if chain == FEED and ours.number and theirs.first > ours.number + 1:
            read = [record async for batch in store.records(chain=FEED) for record in batch]
            fed = [record for record in read if record.number <= theirs.number]
            main = [record async for batch in copy.records() for record in batch]
            if found := next(chain_of(chain_faults(fed, (), theirs), feed_faults(main, fed, theirs)), ""):
                return found
            await copy.rewrite_history(_one(fed), (), after=0, seen=ours, chain=FEED)
            return ""
        if found := await _unlinked(store, chain, ours, theirs):
            return found
        await self._append(store, copy, chain, ours)
        return ""

    async def _append(self, store: ListStore, copy: ListStore, chain: str, ours: Ledger) -> None:
        """Take over the records behind the copy's."""
        async for batch in store.records(ours.number, chain):
            if is_linked(
                batch, ours.digest if ours.number else None
            ):  # else it was changed meanwhile: the next look tells
                await copy.rewrite_history(_one(batch), (), after=ours.number, seen=ours, chain=chain)
                ours = await copy.ledger(chain)

    def _note(self, ledgers: dict[str, Ledger], settings: HistorySettings) -> None:
        """Report each newest record to the log: anyone who keeps the log can hold the history's end against it."""
        before, now = self.ledgers[MAIN], ledgers[MAIN]
        if (now.number, now.digest) != (before.number, before.digest):
            self._report("history_at", record=now.number, digest=now.digest)
        limit = settings.max_bytes * NEARLY_FULL
        if before.bytes <= limit < now.bytes:
            detail = f"the main chain takes {now.bytes:,} bytes of {settings.max_bytes:,} (history.max_bytes); nothing is deleted before history.keep"
            self._report("history_nearly_full", level="warning", detail=detail)
        self.ledgers = ledgers

    async def _hold(self, store: ListStore, lists: Sequence[str]) -> None:
        """Check that each list in the store is what its newest record made."""
        before, self._unrecorded = self._unrecorded, {}
        for name in lists:
            try:
                state = await store.state(name)
            except StoreError as error:
                if error.cause != "corrupt":
                    raise
                state = None  # the follower tells of it
            if state is None:
                continue
            known, since = before.get(name, (None, None))
            if known != state or since is not None:
                since = None if await _is_recorded(store, name, state) else self._now() if since is None else since
            self._unrecorded[name] = state, since
        told, self._told = self._told, {*self.unrecorded}
        for name in self.unrecorded:
            if name not in told:
                state, _ = self._unrecorded[name]
                self._report(
                    "list_unrecorded", level="error", list=name, serial=state.serial, generation=state.generation, digest=state.content_digest,
                    signers=",".join(state.signers) or None, detail="no record of the history says who put this into the store",
                )  # fmt: skip


async def _unlinked(store: ListStore, chain: str, ours: Ledger, theirs: Ledger) -> str:
    """The reason why the store's newer records do not continue the copy as a chain; empty if they do."""
    number, digest = ours.number, ours.digest if ours.number else None  # a node's first look takes what there is
    async for batch in store.records(ours.number, chain):
        if number and batch[0].number != number + 1:
            return f"record {batch[0].number} comes after {number}"
        if not is_linked(batch, digest):
            return f"a record after {number} was not written behind the one before it"
        number, digest = batch[-1].number, record_digest(batch[-1].text)
    return (
        ""
        if (number, digest) == (theirs.number, theirs.digest) or number > theirs.number
        else f"record {number}, the newest, is not the one that was written"
    )


async def give_back(store: ListStore, copy: ListStore, who: str) -> str | None:
    """Write each chain of the copy to a store in which that chain is empty, damaged, or only the beginning of the copy.

    Returns which of these it was; None if none applies.

    Raises StoreError, GenerationConflict if another node was faster.
    """
    found = [await _give_back(store, copy, who, chain) for chain in CHAINS]
    return "; ".join(filter(None, found)) or None


async def _give_back(store: ListStore, copy: ListStore, who: str, chain: str) -> str | None:
    ours = await copy.ledger(chain)
    theirs, damage = await _looked_at(store, chain)
    if not ours.number or not (damage or theirs.number < ours.number):
        return None
    after, seen = 0, None if damage else theirs
    if theirs.number and not damage:
        there = await _first(copy, theirs.number - 1, chain)
        if there is None or there.number != theirs.number or record_digest(there.text) != theirs.digest:
            return None  # other records: told, and left to an operator
        after = theirs.number
    named = "the history in the store" if chain == MAIN else "the history of the feed in the store"
    shown = f"{named} was {damage or ('empty' if not theirs.number else f'cut off after record {theirs.number}')}"
    healed = Event(
        time=utc_text(datetime.now(UTC)),
        who=who,
        what="heal",
        outcome=ACCEPTED,
        detail=f"{shown}; given back from this node's copy",
    )
    behind, _ = append_events(ours, [healed]) if chain == MAIN else ((), ours)
    folds = await copy.folds() if chain == MAIN else ()
    batches = _both(copy.records(after, chain), behind)
    await store.rewrite_history(batches, folds, after=after, seen=seen, chain=chain)
    if chain == FEED:
        await store.record(healed)
    return f"{shown}; records {after + 1} to {ours.number} are given back from this node's copy"


async def _looked_at(store: ListStore, chain: str) -> tuple[Ledger, str]:
    """The store's ledger of a chain, and the fault of the chain by a look at both of its ends; empty if it has no fault."""
    for _ in range(READ_AGAIN_MAX):
        try:
            ledger = await store.ledger(chain)
            if chain == MAIN:
                await store.folds()
                await store.outcomes()
            oldest = await _first(store, ledger.first - 1, chain)
            newest = [record async for batch in store.records(max(0, ledger.number - 1), chain) for record in batch]
        except StoreError as error:
            if error.cause != "corrupt":
                raise
            return Ledger(), f"damaged ({error})"
        if await store.ledger(chain) == ledger:
            break
    else:
        return ledger, ""  # it is written all the time: the next look sees more
    wanted = [(ledger.number, ledger.digest)] if ledger.number else []
    is_whole = [(number, record_digest(text)) for number, text in newest] == wanted and (
        not wanted or (oldest is not None and oldest.number == ledger.first)
    )
    return ledger, "" if is_whole else "damaged (its ends are not where they were)"


async def adopt(store: ListStore, copy: ListStore, event: Event) -> None:
    """Put the store's history in the place of this node's copy, with a record of that in the store.

    A chain that does not hold is made again of its records that can be read, in their order. Raises StoreError.
    """
    ours = {chain: await copy.ledger(chain) for chain in CHAINS}
    main, folds = [record async for batch in store.records() for record in batch], await store.folds()
    theirs = await store.ledger()
    if [*chain_faults(main, folds, theirs)]:
        again, _ = append_events(Ledger(), readable_events(main))
        await store.rewrite_history(_one(again), folds, after=0, seen=theirs, exact=True)
    fed, feed = [record async for batch in store.records(chain=FEED) for record in batch], await store.ledger(FEED)
    if [*chain_faults(fed, (), feed), *feed_faults(main, fed, feed)]:
        await _renew_feed(store, main, fed, feed)
        await store.record(replace(event, what=ANCHOR, detail="the feed's chain was made again of its records"))
    await store.record(event)
    for chain in CHAINS:
        folds = await store.folds() if chain == MAIN else ()
        await copy.rewrite_history(
            store.records(chain=chain), folds, after=0, seen=ours[chain], exact=True, chain=chain
        )


async def _renew_feed(store: ListStore, main: Sequence[Record], fed: Sequence[Record], feed: Ledger) -> None:
    """Make the feed's chain again of its records that can be read, with numbers above all that anchors hold."""
    heads = [event.head or 0 for event in readable_events(main) if event.what == ANCHOR]
    last = max(feed.number, *heads, 0)
    place = (await store.ledger()).number
    chain, _ = append_events(Ledger(first=last + 1, number=last), readable_events(fed, FEED), place)
    await store.rewrite_history(_one(chain), (), after=0, seen=feed, chain=FEED)


async def _is_recorded(store: ListStore, name: str, state: ListState) -> bool:
    """True if the newest record of a change to a list says that this state came of it."""
    newest = None
    chain = None if not state.serial else MAIN  # a register feeds local lists alone
    for limit in (NEWEST, FOLDS_MAX + NEWEST):  # there may be as many refusals behind it
        if (newest := newest_change(await store.history(name, limit=limit, chain=chain))) is not None:
            break
    if newest is not None and is_of(newest, state):
        return True
    # A long chain loses its oldest records: one of before those that are left is no longer there, and no fault.
    if newest is None:
        return await _is_forgotten(store, MAIN, state) or (not state.serial and await _is_forgotten(store, FEED, state))
    is_later = state.loaded_at is not None and newest.time <= state.loaded_at
    return not state.serial and is_later and await _is_forgotten(store, FEED, state)


async def _is_forgotten(store: ListStore, chain: str, state: ListState) -> bool:
    """True if a chain no longer reaches back to the time at which a list came into its state."""
    ledger = await store.ledger(chain)
    oldest = await _first(store, ledger.first - 1, chain) if ledger.first > 1 else None
    return oldest is not None and state.loaded_at is not None and state.loaded_at < read_record(oldest).time


async def _first(store: ListStore, after: int, chain: str) -> Record | None:
    async for batch in store.records(after, chain):
        return batch[0]
    return None


async def _one(batch: Sequence[Record]) -> AsyncIterator[Sequence[Record]]:
    yield batch


async def _both(batches: AsyncIterable[Sequence[Record]], last: Sequence[Record]) -> AsyncIterator[Sequence[Record]]:
    async for batch in batches:
        yield batch
    yield last

"""A node's copy of the history, to which records are only added, and the comparison of the copy with the store's history.

Records that continue the copy are appended to it. If the store's records do not continue it, the node raises an alert, and the
copy stays until an operator adopts the store's history. If the store's history is empty, damaged, or only the beginning of the
copy, the copy is written back to the store. A damaged history with newer records than the copy is left to an operator, because
the copy would replace these records.

Both rules apply to each chain. The oldest records of a full feed chain are deleted, so a node that was off may find a gap after
its copy. An anchor in the main chain, which continues the copy, proves the records after the gap.
"""

import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from eir.errors import GenerationConflict, Report, StoreError
from eir.lists.log.change import utc_text
from eir.lists.record.clock import TrustedClock, await_store
from eir.lists.record.history import (
    FOLDS_MAX,
    append_events,
    chain_faults,
    feed_faults,
    is_event_of,
    is_linked,
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
    Fold,
    Ledger,
    ListState,
    ListStore,
    Record,
)
from eir.lists.stores.write import one_batch

TRIM_S = 3600.0
ANCHOR_S = 86400.0
"""Maximum time (s) between two anchors of a growing feed chain."""
FEED_TRIM_S = 600.0
"""Minimum time (s) between two anchors of any node. So a flood of rows adds at most 144 anchors per day to the main chain, and the feed's chain exceeds its size limit by at most the rows of this time."""
FEED_KEPT = 0.9
"""Share of the size limit to which a full feed chain is trimmed."""
NEARLY_FULL = 0.8
"""Share of `history.max_bytes` above which the main chain raises an alert."""
WAITING_MAX = 1_000
"""Maximum number of queued events while the store is unreachable; the oldest is dropped."""
COPY_TIMEOUT_S = 600.0
"""Time limit (s) for copying a whole history, or for writing it back."""
UNRECORDED_S = 15.0
"""Time (s) after which a list without a record of its content is reported: the store may have a list before its record."""
READ_AGAIN_MAX = 10
NAMES = " (SHA-256 "
"""Text that ends the constant part of a difference. The rest changes as the store's chain grows, and each difference is logged once."""
NEWEST = 20
"""Number of events of a list that usually include the list's last change."""


class HistoryKeeper:
    """Maintenance of the history by one node: writes events, deletes old records, and updates the node's copy.

    Args:
        copy: node's own copy of a remote store's history.
        writes: the node may write to the store's history.
        who: name of this node in the history.
        report: logs events.
        now: monotonic clock.
        wall: time of day.
        clock: clock for the age of records; after a jump of the time no record is deleted.
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
        self._copy = copy
        self._writes = writes
        self._who = who
        self._report = report
        self._now = now
        self._wall = wall
        self._waiting: deque[Event] = deque(maxlen=WAITING_MAX)
        self._clock = clock or TrustedClock()
        self._trimmed_at: float | None = None
        self._refusals = ""
        """Sum of the store's refusals (`Ledger.refusals`) at the last copy of them."""
        self._unrecorded: dict[str, tuple[ListState, float | None]] = {}
        """Last state of each list, and the time since which no record has this state (None if a record has it)."""
        self._reported: set[str] = set()
        """Unrecorded lists that the log has reported."""
        self.ledgers = dict.fromkeys(CHAINS, Ledger())
        """Ledger of each chain in the store at the last read."""
        self.differs = ""
        """Reason why the store's history does not continue this node's copy; empty if it continues the copy."""

    @property
    def unrecorded(self) -> list[str]:
        """Names of lists whose content in the store has had no record in the history for UNRECORDED_S."""
        latest = self._now() - UNRECORDED_S
        return [name for name, (_, since) in self._unrecorded.items() if since is not None and since <= latest]

    def add(self, event: Event) -> None:
        """Queue an event for the history. `maintain` writes the event when the store is reachable."""
        if self._writes:
            self._waiting.append(event)
            return
        detail = f"{event.what} by {event.who}: with `heal: false` a node writes no history"
        self._report("history_not_written", level="warning", reason="heal", detail=detail)

    async def maintain(self, store: ListStore, settings: HistorySettings, lists: Sequence[str] = ()) -> None:
        """Write queued events, delete old records, update this node's copy, and check that the history has a record of each list.

        Raises:
            StoreError: if the store fails.
        """
        writes = self._writes and await await_store(store.newer()) is None
        left = ""
        if self._copy is not None and writes:
            try:
                healed, left = await await_store(restore_history(store, self._copy, self._who), COPY_TIMEOUT_S)
            except GenerationConflict:  # another node wrote: the next pass reads the new history
                return
            if healed:
                self._report("history_healed", level="warning", detail=healed)
            if left:
                self._set_difference(left)
        if not left:
            await self._synchronize(store, settings, writes=writes)
        ledgers = {chain: await await_store(store.ledger(chain)) for chain in CHAINS}
        self._log_heads(ledgers, settings)
        await await_store(self._check_lists(store, lists))

    async def _synchronize(self, store: ListStore, settings: HistorySettings, *, writes: bool) -> None:
        """If `writes` is true, write queued events to the store and delete its old records; then update this node's copy."""
        if writes:
            await await_store(store.append_pending())
            while self._waiting:
                await await_store(store.record(self._waiting[0]))
                self._waiting.popleft()
            await self._trim(store, settings)
            await self._limit_feed(store, settings)
        if self._copy is None:
            return
        with suppress(GenerationConflict):  # the history changed meanwhile: the next pass reads it
            await await_store(self._grow(store, self._copy), COPY_TIMEOUT_S)
        if not self.differs:
            feed = await await_store(store.ledger(FEED))
            await self._limit_copied_feed(self._copy, settings, feed.bytes)

    async def events(
        self, name: str | None, *, limit: int | None, since: str | None, chain: str | None
    ) -> Sequence[Event]:
        """Return events from this node's copy, for commands that cannot read the store.

        Raises:
            StoreError: if there is no copy.
        """
        if self._copy is None:
            raise StoreError("refused", "the node has no copy of the history")
        return await self._copy.history(name, limit=limit, since=since, chain=chain)

    async def close(self) -> None:
        """Close the node's copy of the history."""
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
        """Return the time before which records of the history must be deleted."""
        now = datetime.fromtimestamp(self._clock.now(self._wall(), self._now()), UTC)
        return utc_text(now - timedelta(days=settings.keep))

    def _event(self, what: str, detail: str = "", chain: str = MAIN) -> Event:
        now = utc_text(datetime.fromtimestamp(self._wall(), UTC))
        return Event(time=now, who=self._who, what=what, outcome=ACCEPTED, detail=detail, chain=chain)

    async def _limit_feed(self, store: ListStore, settings: HistorySettings) -> None:
        """Delete the oldest records of the feed's chain, daily or when this chain is full.

        Before, the main chain records the number and digest of the newest record in the feed's chain.
        """
        feed = await await_store(store.ledger(FEED))
        is_full = feed.bytes > settings.feed_max_bytes
        pause_s = FEED_TRIM_S if is_full else ANCHOR_S
        if not feed.number or self._is_recent(feed.anchored_at, pause_s):
            return
        await await_store(store.record(self._event(ANCHOR, "newest record of the feed's chain")))
        event = self._event("trim", "history.keep, history.feed_max_bytes", FEED)
        bytes_max = int(settings.feed_max_bytes * FEED_KEPT) if is_full else None
        await await_store(store.trim_history(self._until(settings), bytes_max, event, FEED), COPY_TIMEOUT_S)

    def _is_recent(self, time: str, span_s: float) -> bool:
        """Return True if a time is less than `span_s` before or after now. Another node's clock may be ahead."""
        now = datetime.fromtimestamp(self._wall(), UTC)
        span = timedelta(seconds=span_s)
        return utc_text(now - span) < time < utc_text(now + span)

    async def _limit_copied_feed(self, copy: ListStore, settings: HistorySettings, stored: int) -> None:
        """Delete the oldest records of the feed's chain in the node's copy, if this chain exceeds its size limit.

        The chain in the copy never becomes smaller than the feed's chain in the store, which has `stored` bytes.
        """
        copied = await copy.ledger(FEED)
        if copied.bytes > max(settings.feed_max_bytes, stored):
            bytes_max = max(int(settings.feed_max_bytes * FEED_KEPT), stored)
            await copy.trim_history(self._until(settings), bytes_max, None, FEED)

    async def _grow(self, store: ListStore, copy: ListStore) -> None:
        """Append new records of the store to the node's copy, chain by chain. If they do not continue the copy, set `differs`."""
        differs = ""
        for chain in CHAINS:
            ours = await copy.ledger(chain)
            theirs = await store.ledger(chain)
            if theirs.number > ours.number:
                reason = await self._copy_newer(store, copy, chain, ours, theirs)
            else:
                reason = "" if theirs.digest == ours.digest else "it has other records"
            if not reason:
                continue
            if (await store.ledger(chain)).first != theirs.first:
                raise GenerationConflict("records were forgotten while they were read")
            differs = f"{_chain_name(chain)}: this node has records up to {ours.number}{NAMES}{ours.digest}), and the store's up to {theirs.number} do not continue them: {reason}"
            break  # the main chain proves the feed's chain
        self._set_difference(differs)
        main = await store.ledger()
        if not differs and self._refusals != main.refusals:
            copied = await copy.ledger()
            await copy.rewrite_history(one_batch(()), await store.folds(), after=copied.number, seen=copied)
            self._refusals = main.refusals

    def _set_difference(self, differs: str) -> None:
        """Store the reason why the store's history does not continue the node's copy, and log each new reason once."""
        if differs and self.differs.partition(NAMES)[0] != differs.partition(NAMES)[0]:
            self._report(
                "history_differs", level="error", detail=f"{differs}; see eir history --verify, then eir history adopt"
            )
        self.differs = differs

    async def _copy_newer(self, store: ListStore, copy: ListStore, chain: str, ours: Ledger, theirs: Ledger) -> str:
        """Copy the newer records of a chain from the store; if they do not continue the copy, return the reason."""
        has_gap = theirs.first > ours.number + 1
        if chain == FEED and ours.number and has_gap:
            fed = [record for record in await read_records(store, FEED) if record.number <= theirs.number]
            main = await read_records(copy, MAIN)
            faults = [*chain_faults(fed, (), theirs), *feed_faults(main, fed, theirs)]
            if faults:
                return faults[0]
            await copy.rewrite_history(one_batch(fed), (), after=0, seen=ours, chain=FEED)
            return ""
        reason = await _link_fault(store, chain, ours, theirs)
        if not reason:
            await self._append(store, copy, chain, ours)
        return reason

    async def _append(self, store: ListStore, copy: ListStore, chain: str, ours: Ledger) -> None:
        """Append all records of the store with numbers above `ours.number` to the node's copy of a chain."""
        async for batch in store.records(ours.number, chain):
            before = ours.digest if ours.number else None
            if is_linked(batch, before):  # otherwise the chain changed meanwhile: the next pass reports it
                await copy.rewrite_history(one_batch(batch), (), after=ours.number, seen=ours, chain=chain)
                ours = await copy.ledger(chain)

    def _log_heads(self, ledgers: dict[str, Ledger], settings: HistorySettings) -> None:
        """Write number and digest of the main chain's newest record to the log, so that the history can later be compared with the log."""
        before = self.ledgers[MAIN]
        now = ledgers[MAIN]
        if (now.number, now.digest) != (before.number, before.digest):
            self._report("history_at", record=now.number, digest=now.digest)
        limit = settings.max_bytes * NEARLY_FULL
        if before.bytes <= limit < now.bytes:
            detail = f"the main chain takes {now.bytes:,} bytes of {settings.max_bytes:,} (history.max_bytes); nothing is deleted before history.keep"
            self._report("history_nearly_full", level="warning", detail=detail)
        self.ledgers = ledgers

    async def _check_lists(self, store: ListStore, lists: Sequence[str]) -> None:
        """Check that the history has a record of each list's present content; log each list without one."""
        before, self._unrecorded = self._unrecorded, {}
        for name in lists:
            state = await _readable_state(store, name)
            if state is None:
                continue
            known, since = before.get(name, (None, None))
            is_checked = known == state and since is None
            if not is_checked:
                is_recorded = await _is_recorded(store, name, state)
                if is_recorded:
                    since = None
                elif since is None:
                    since = self._now()
            self._unrecorded[name] = state, since
        unrecorded = self.unrecorded
        for name in unrecorded:
            if name not in self._reported:
                state, _ = self._unrecorded[name]
                self._report(
                    "list_unrecorded", level="error", list=name, serial=state.serial, generation=state.generation, digest=state.content_digest,
                    signers=",".join(state.signers) or None, detail="the history has no record of this content",
                )  # fmt: skip
        self._reported = {*unrecorded}


async def _readable_state(store: ListStore, name: str) -> ListState | None:
    """Return the state of a list; None if the list does not exist or its state is damaged. The follower reports damage."""
    try:
        return await store.state(name)
    except StoreError as error:
        if error.cause != "corrupt":
            raise
        return None


async def _link_fault(store: ListStore, chain: str, ours: Ledger, theirs: Ledger) -> str:
    """Return the reason why the store's records of a chain do not continue the node's copy of this chain; empty if they continue the copy.

    `ours` and `theirs`: ledgers of the chain in the copy and in the store.
    """
    number = ours.number
    digest = ours.digest if number else None  # an empty copy accepts all records
    async for batch in store.records(ours.number, chain):
        if number and batch[0].number != number + 1:
            return f"record {batch[0].number} comes after {number}"
        if not is_linked(batch, digest):
            return f"a record after {number} was not written behind the one before it"
        newest = batch[-1]
        number = newest.number
        digest = record_digest(newest.text)
    if number > theirs.number or (number, digest) == (theirs.number, theirs.digest):
        return ""
    return f"record {number}, the newest, is not the one that was written"


async def restore_history(
    store: ListStore, copy: ListStore, who: str, source: str = "this node's copy"
) -> tuple[str, str]:
    """Restore the history in a store from a node's copy, if the history in the store is empty, damaged or shorter than the copy.

    This is done for each chain separately. A damaged chain with records that are newer than the copy stays as it is.

    Returns:
        The restored chains and the reasons, and the damaged chains that were left to an operator; each empty if there
        is no such chain.

    Raises:
        StoreError: if the store fails.
        GenerationConflict: if another node wrote first.
    """
    outcomes = [await _restore_chain(store, copy, who, chain, source) for chain in CHAINS]
    healed = [text for text, _ in outcomes if text]
    left = [text for _, text in outcomes if text]
    return "; ".join(healed), "; ".join(left)


async def _restore_chain(store: ListStore, copy: ListStore, who: str, chain: str, source: str) -> tuple[str, str]:
    """Restore one chain of the history in the store from the node's copy, if the chain in the store is damaged, cut off or empty.

    Returns the texts of `restore_history` for this chain.
    """
    ours = await copy.ledger(chain)
    theirs, damage = await _read_ends(store, chain)
    is_whole = not damage and theirs.number >= ours.number
    if not ours.number or is_whole:
        return "", ""
    name = _chain_name(chain)
    if damage:
        if await _has_newer(store, chain, theirs, ours.number):
            left = f"{name}: {source} has records up to {ours.number}{NAMES}{ours.digest}), and the store has newer ones, but is {damage}"
            return "", left
        seen, after, found = None, 0, damage
    elif theirs.number:
        if not await _is_newest(copy, chain, theirs):
            return "", ""  # other records: `_grow` reports them, and they are left to an operator
        seen, after, found = theirs, theirs.number, f"cut off after record {theirs.number}"
    else:
        seen, after, found = theirs, 0, "empty"
    state_text = f"the {name} in the store was {found}"
    detail = f"{state_text}; given back from {source}"
    healed = Event(time=utc_text(datetime.now(UTC)), who=who, what="heal", outcome=ACCEPTED, detail=detail)
    if chain == MAIN:
        last, _ = append_events(ours, [healed])
        batches = _followed_by(copy.records(after, chain), last)
        await store.rewrite_history(batches, await copy.folds(), after=after, seen=seen, chain=chain)
    else:
        await store.rewrite_history(copy.records(after, chain), (), after=after, seen=seen, chain=chain)
        await store.record(healed)
    return f"{state_text}; records {after + 1} to {ours.number} are given back from {source}", ""


async def _is_newest(copy: ListStore, chain: str, theirs: Ledger) -> bool:
    """Return True if the node's copy of a chain contains the newest record of this chain in the store (`theirs`: ledger in the store)."""
    record = await _first(copy, theirs.number - 1, chain)
    return record is not None and (record.number, record_digest(record.text)) == (theirs.number, theirs.digest)


def _chain_name(chain: str) -> str:
    return "history" if chain == MAIN else "history of the feed"


async def _has_newer(store: ListStore, chain: str, theirs: Ledger, number: int) -> bool:
    """Return True if a damaged chain of the history in the store has records with numbers above `number`.

    `theirs`: ledger of the chain, which has the highest number. If the ledger is lost (its number is 0), the chain's readable
    records decide.
    """
    if theirs.number:
        return theirs.number > number
    return bool(readable_events(await _readable_records(store, chain, number), chain))


async def _read_ends(store: ListStore, chain: str) -> tuple[Ledger, str]:
    """Read the first and last records of a chain; return the chain's ledger, and a message about the first fault (empty without a fault).

    If the ledger cannot be read, an empty ledger is returned.
    """
    ledger = Ledger()
    for _ in range(READ_AGAIN_MAX):
        try:
            ledger = await store.ledger(chain)
            if chain == MAIN:
                await store.folds()
                await store.outcomes()
            oldest = await _first(store, ledger.first - 1, chain)
            newest = await read_records(store, chain, max(0, ledger.number - 1))
        except StoreError as error:
            if error.cause != "corrupt":
                raise
            return ledger, f"damaged ({error})"
        if await store.ledger(chain) == ledger:
            break
    else:
        return ledger, ""  # the chain changes all the time: the next pass reads more
    if not ledger.number:
        is_whole = not newest
    else:
        ends = [(number, record_digest(text)) for number, text in newest]
        has_oldest = oldest is not None and oldest.number == ledger.first
        is_whole = has_oldest and ends == [(ledger.number, ledger.digest)]
    return ledger, "" if is_whole else "damaged (its ends are not where they were)"


async def adopt(store: ListStore, copy: ListStore, event: Event) -> None:
    """Replace this node's copy by the store's history, and record this in the store's history.

    A damaged chain is rebuilt from its readable records in their order.

    Raises:
        StoreError: if the store fails.
    """
    ours = {chain: await copy.ledger(chain) for chain in CHAINS}
    await rebuild_history(store, event)
    for chain in CHAINS:
        folds = await store.folds() if chain == MAIN else ()
        await copy.rewrite_history(
            store.records(chain=chain), folds, after=0, seen=ours[chain], exact=True, chain=chain
        )


async def rebuild_history(store: ListStore, event: Event) -> None:
    """Rebuild each damaged chain of the store's history from its readable records in order, and record this as `event`.

    Raises:
        StoreError: if the store fails.
    """
    main, folds, theirs = await _read_damaged(store, MAIN)
    if theirs is None or [*chain_faults(main, folds, theirs)]:
        rebuilt = main
        if not main or not is_linked(main, None):
            rebuilt, _ = append_events(Ledger(), readable_events(main))
        await store.rewrite_history(one_batch(rebuilt), folds, after=0, seen=theirs, exact=True)
    fed, _, feed = await _read_damaged(store, FEED)
    if feed is None or [*chain_faults(fed, (), feed), *feed_faults(main, fed, feed)]:
        await _renew_feed(store, main, fed, feed)
        await store.record(replace(event, what=ANCHOR, detail="the feed's chain was made again of its records"))
    await store.record(event)


async def _read_damaged(store: ListStore, chain: str) -> tuple[list[Record], Sequence[Fold], Ledger | None]:
    """Return the readable records and folds (counts of equal refusals) of a damaged chain, and its ledger.

    The ledger is None if the ledger, the folds or the outcomes cannot be read.
    """
    records = await _readable_records(store, chain)
    folds: Sequence[Fold] = ()
    try:
        if chain == MAIN:
            folds = await store.folds()
            await store.outcomes()
        return records, folds, await store.ledger(chain)
    except StoreError as error:
        if error.cause != "corrupt":
            raise
        return records, folds, None


async def _readable_records(store: ListStore, chain: str, after: int = 0) -> list[Record]:
    """Return the records of a chain with numbers above `after`, until a damaged part that cannot be read."""
    records: list[Record] = []
    try:
        async for batch in store.records(after, chain):
            records += batch
    except StoreError as error:
        if error.cause != "corrupt":
            raise
    return records


async def _renew_feed(store: ListStore, main: Sequence[Record], fed: Sequence[Record], feed: Ledger | None) -> None:
    """Rebuild the feed's chain of the history from its readable records, which get new, higher numbers.

    The new numbers are above all numbers of feed records that the main chain mentions.
    """
    heads = [event.head or 0 for event in readable_events(main) if event.what == ANCHOR]
    newest = max((record.number for record in fed), default=0) if feed is None else feed.number
    last = max(newest, *heads, 0)
    place = (await store.ledger()).number
    chain, _ = append_events(Ledger(first=last + 1, number=last), readable_events(fed, FEED), place)
    await store.rewrite_history(one_batch(chain), (), after=0, seen=feed, chain=FEED)


async def _is_recorded(store: ListStore, name: str, state: ListState) -> bool:
    """Return True if the history records the change that led to this state of a list.

    A missing record is accepted if it may have been deleted because of its age.
    """
    is_local = not state.serial
    chain = None if is_local else MAIN  # only local lists have a feed
    newest: Event | None = None
    for limit in (NEWEST, FOLDS_MAX + NEWEST):  # up to FOLDS_MAX refusals may follow the record
        newest = newest_change(await store.history(name, limit=limit, chain=chain))
        if newest is not None:
            break
    if newest is not None and is_event_of(newest, state):
        return True
    # The oldest records of a long chain are deleted, so a missing record is not a fault if it is older than the rest.
    if newest is None and await _is_forgotten(store, MAIN, state):
        return True
    is_later = newest is None or (state.loaded_at is not None and newest.time <= state.loaded_at)
    return is_local and is_later and await _is_forgotten(store, FEED, state)


async def _is_forgotten(store: ListStore, chain: str, state: ListState) -> bool:
    """Return True if old records of a chain have been deleted, and its oldest remaining record is newer than the load of the list."""
    ledger = await store.ledger(chain)
    if ledger.first <= 1 or state.loaded_at is None:
        return False
    oldest = await _first(store, ledger.first - 1, chain)
    return oldest is not None and state.loaded_at < read_record(oldest).time


async def read_records(store: ListStore, chain: str, after: int = 0) -> list[Record]:
    """Return all records of a chain with numbers above `after`.

    Raises:
        StoreError: if the store fails.
    """
    return [record async for batch in store.records(after, chain) for record in batch]


async def _first(store: ListStore, after: int, chain: str) -> Record | None:
    """Return the first record of a chain with a number above `after`; None without one."""
    async for batch in store.records(after, chain):
        return batch[0]
    return None


async def _followed_by(
    batches: AsyncIterable[Sequence[Record]], last: Sequence[Record]
) -> AsyncIterator[Sequence[Record]]:
    async for batch in batches:
        yield batch
    yield last

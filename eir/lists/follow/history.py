"""A node's copy of the history, to which records are only added, and the rules that keep it equal to the store.

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
    Fold,
    Ledger,
    ListState,
    ListStore,
    Record,
    utc_text,
)

TRIM_S = 3600.0
ANCHOR_S = 86400.0
"""Maximum time (s) between two anchors of a growing feed chain."""
FEED_TRIM_S = 600.0
"""Minimum time (s) between two anchors, whichever node writes them. So a flood of rows adds at most 144 anchors per day to the main chain, and the feed's chain exceeds its limit by the rows of that time."""
FEED_KEPT = 0.9
"""Share of its size limit to which a full feed chain is cut."""
NEARLY_FULL = 0.8
"""Share of `history.max_bytes` above which the main chain raises an alert."""
WAITING_MAX = 1_000
"""Maximum number of events that wait for an unreachable store."""
COPY_TIMEOUT_S = 600.0
"""Seconds for copying a whole history, or for writing it back."""
UNRECORDED_S = 15.0
"""Seconds for which the store may have a list before the record of its event."""
READ_AGAIN_MAX = 10
NAMES = " (SHA-256 "
"""End of the constant part of a difference: the rest changes as the store's chain grows, and each difference is reported once."""
NEWEST = 20
"""Number of events of a list that usually include its last change."""


class HistoryKeeper:
    """Periodic maintenance of the history by one node.

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
        self._copy, self._writes, self._who, self._report, self._now, self._wall = copy, writes, who, report, now, wall
        self._waiting: deque[Event] = deque(maxlen=WAITING_MAX)
        self._clock = clock or TrustedClock()
        self._trimmed_at: float | None = None
        self._refusals = ""
        """Sum of the store's refusals that were last copied."""
        self._unrecorded: dict[str, tuple[ListState, float | None]] = {}
        """Last state of each list, and the time since which it has no record (None if it has one)."""
        self._reported: set[str] = set()
        """Lists without a record that the log has reported."""
        self.ledgers = dict.fromkeys(CHAINS, Ledger())
        """Store's ledgers by chain at the last read."""
        self.differs = ""
        """Reason why the store's history does not continue this node's copy; empty if it does."""

    @property
    def unrecorded(self) -> list[str]:
        """Lists in the store whose content differs from their newest history record."""
        now = self._now()
        return [
            name for name, (_, since) in self._unrecorded.items() if since is not None and now - since >= UNRECORDED_S
        ]

    def add(self, event: Event) -> None:
        """Queue an event for the history, which `maintain` writes when the store is reachable."""
        if self._writes:
            self._waiting.append(event)
        else:
            self._report(
                "history_not_written",
                level="warning",
                reason="heal",
                detail=f"{event.what} by {event.who}: with `heal: false` a node writes no history",
            )

    async def maintain(self, store: ListStore, settings: HistorySettings, lists: Sequence[str] = ()) -> None:
        """Update this node's copy and the store's history, write queued events, delete old records, and check `lists`.

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
        self._log_heads({chain: await await_store(store.ledger(chain)) for chain in CHAINS}, settings)
        await await_store(self._check_lists(store, lists))

    async def _synchronize(self, store: ListStore, settings: HistorySettings, *, writes: bool) -> None:
        """Write queued events to the store and delete its old records, if `writes` is true; then update this node's copy."""
        if writes:
            await await_store(store.settle())
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
            await self._limit_copy(self._copy, settings, feed.bytes)

    async def events(
        self, name: str | None, *, limit: int | None, since: str | None, chain: str | None
    ) -> Sequence[Event]:
        """Return events from this node's copy, for use while the store is unreachable.

        Raises:
            StoreError: if there is no copy.
        """
        if self._copy is None:
            raise StoreError("refused", "the node has no copy of the history")
        return await self._copy.history(name, limit=limit, since=since, chain=chain)

    async def close(self) -> None:
        """Close the copy of the history."""
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
        """Return the time before which history records are too old to be kept."""
        now = datetime.fromtimestamp(self._clock.now(self._wall(), self._now()), UTC)
        return utc_text(now - timedelta(days=settings.keep))

    def _event(self, what: str, detail: str = "", chain: str = MAIN) -> Event:
        now = utc_text(datetime.fromtimestamp(self._wall(), UTC))
        return Event(time=now, who=self._who, what=what, outcome=ACCEPTED, detail=detail, chain=chain)

    async def _limit_feed(self, store: ListStore, settings: HistorySettings) -> None:
        """Write an anchor for the feed's chain each day or when the chain is full; then delete its oldest records."""
        feed = await await_store(store.ledger(FEED))
        is_full = feed.bytes > settings.feed_max_bytes
        if not feed.number or self._is_recent(feed.anchored_at, FEED_TRIM_S if is_full else ANCHOR_S):
            return
        await await_store(store.record(self._event(ANCHOR, "newest record of the feed's chain")))
        event = self._event("trim", "history.keep, history.feed_max_bytes", FEED)
        bytes_max = int(settings.feed_max_bytes * FEED_KEPT) if is_full else None
        await await_store(store.trim_history(self._until(settings), bytes_max, event, FEED), COPY_TIMEOUT_S)

    def _is_recent(self, time: str, span_s: float) -> bool:
        """Return True if a time is less than `span_s` from now, in the past or (by another node's clock) the future."""
        first, last = (utc_text(datetime.fromtimestamp(self._wall() + span, UTC)) for span in (-span_s, span_s))
        return first < time < last

    async def _limit_copy(self, copy: ListStore, settings: HistorySettings, stored: int) -> None:
        """Delete the oldest records of a full feed chain from the copy, except records that the store still has.

        `stored`: size of the store's chain in bytes.
        """
        if (await copy.ledger(FEED)).bytes > max(settings.feed_max_bytes, stored):
            bytes_max = max(int(settings.feed_max_bytes * FEED_KEPT), stored)
            await copy.trim_history(self._until(settings), bytes_max, None, FEED)

    async def _grow(self, store: ListStore, copy: ListStore) -> None:
        """Append the new records of the store to the node's copy, if they follow the copy's last record."""
        differs = ""
        for chain in CHAINS:
            ours, theirs = await copy.ledger(chain), await store.ledger(chain)
            reason = "" if theirs.number > ours.number or theirs.digest == ours.digest else "it has other records"
            if theirs.number > ours.number:
                reason = await self._copy_newer(store, copy, chain, ours, theirs)
            if reason and (await store.ledger(chain)).first != theirs.first:
                raise GenerationConflict("records were forgotten while they were read")
            if reason and not differs:
                differs = f"{_chain_name(chain)}: this node has records up to {ours.number}{NAMES}{ours.digest}), and the store's up to {theirs.number} do not continue them: {reason}"
            if reason:
                break  # the main chain proves the feed's chain
        self._set_difference(differs)
        main = await store.ledger()
        if not differs and self._refusals != main.refusals:
            seen = await copy.ledger()
            await copy.rewrite_history(_one(()), await store.folds(), after=seen.number, seen=seen)
            self._refusals = main.refusals

    def _set_difference(self, differs: str) -> None:
        """Set the reason why the store's history does not continue the copy, and log each new reason once."""
        if differs and self.differs.partition(NAMES)[0] != differs.partition(NAMES)[0]:
            self._report(
                "history_differs", level="error", detail=f"{differs}; see eir history --verify, then eir history adopt"
            )
        self.differs = differs

    async def _copy_newer(self, store: ListStore, copy: ListStore, chain: str, ours: Ledger, theirs: Ledger) -> str:
        """Copy the newer records of a chain from the store; return the reason if they do not continue the copy."""
        if chain == FEED and ours.number and theirs.first > ours.number + 1:
            read = [record async for batch in store.records(chain=FEED) for record in batch]
            fed = [record for record in read if record.number <= theirs.number]
            main = [record async for batch in copy.records() for record in batch]
            if reason := next(chain_of(chain_faults(fed, (), theirs), feed_faults(main, fed, theirs)), ""):
                return reason
            await copy.rewrite_history(_one(fed), (), after=0, seen=ours, chain=FEED)
            return ""
        if reason := await _link_fault(store, chain, ours, theirs):
            return reason
        await self._append(store, copy, chain, ours)
        return ""

    async def _append(self, store: ListStore, copy: ListStore, chain: str, ours: Ledger) -> None:
        """Append to the copy the records of the store that are newer than the copy's newest record."""
        async for batch in store.records(ours.number, chain):
            if is_linked(
                batch, ours.digest if ours.number else None
            ):  # otherwise the chain changed meanwhile: the next pass reports it
                await copy.rewrite_history(_one(batch), (), after=ours.number, seen=ours, chain=chain)
                ours = await copy.ledger(chain)

    def _log_heads(self, ledgers: dict[str, Ledger], settings: HistorySettings) -> None:
        """Log the newest record of the history, so that its end can later be compared with the log."""
        before, now = self.ledgers[MAIN], ledgers[MAIN]
        if (now.number, now.digest) != (before.number, before.digest):
            self._report("history_at", record=now.number, digest=now.digest)
        limit = settings.max_bytes * NEARLY_FULL
        if before.bytes <= limit < now.bytes:
            detail = f"the main chain takes {now.bytes:,} bytes of {settings.max_bytes:,} (history.max_bytes); nothing is deleted before history.keep"
            self._report("history_nearly_full", level="warning", detail=detail)
        self.ledgers = ledgers

    async def _check_lists(self, store: ListStore, lists: Sequence[str]) -> None:
        """Check that the content of each list in the store is that of its newest record."""
        before, self._unrecorded = self._unrecorded, {}
        for name in lists:
            try:
                state = await store.state(name)
            except StoreError as error:
                if error.cause != "corrupt":
                    raise
                state = None  # the follower reports it
            if state is None:
                continue
            known, since = before.get(name, (None, None))
            if known != state or since is not None:
                since = None if await _is_recorded(store, name, state) else self._now() if since is None else since
            self._unrecorded[name] = state, since
        reported, self._reported = self._reported, {*self.unrecorded}
        for name in self.unrecorded:
            if name not in reported:
                state, _ = self._unrecorded[name]
                self._report(
                    "list_unrecorded", level="error", list=name, serial=state.serial, generation=state.generation, digest=state.content_digest,
                    signers=",".join(state.signers) or None, detail="the history has no record of this content",
                )  # fmt: skip


async def _link_fault(store: ListStore, chain: str, ours: Ledger, theirs: Ledger) -> str:
    """Return the reason why the store's newer records do not continue the copy, or an empty text."""
    number, digest = ours.number, ours.digest if ours.number else None  # an empty copy accepts all records
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


async def restore_history(
    store: ListStore, copy: ListStore, who: str, source: str = "this node's copy"
) -> tuple[str, str]:
    """Write the copy back to a store whose history is empty, damaged, or only the beginning of the copy.

    This is done for each chain separately. A damaged chain with records that are newer than the copy stays as it is.

    Returns:
        The restored chains and the reasons, and the damaged chains that were left to an operator; each empty if there
        is no such chain.

    Raises:
        StoreError: if the store fails.
        GenerationConflict: if another node wrote first.
    """
    outcomes = [await _restore_chain(store, copy, who, chain, source) for chain in CHAINS]
    healed, left = zip(*outcomes, strict=True)
    return "; ".join(filter(None, healed)), "; ".join(filter(None, left))


async def _restore_chain(store: ListStore, copy: ListStore, who: str, chain: str, source: str) -> tuple[str, str]:
    ours = await copy.ledger(chain)
    theirs, damage = await _read_ends(store, chain)
    if not ours.number or not (damage or theirs.number < ours.number):
        return "", ""
    named = _chain_name(chain)
    if damage and await _has_newer(store, chain, theirs, ours.number):
        left = f"{named}: {source} has records up to {ours.number}{NAMES}{ours.digest}), and the store has newer ones, but is {damage}"
        return "", left
    after, seen = 0, None if damage else theirs
    if theirs.number and not damage:
        boundary = await _first(copy, theirs.number - 1, chain)
        if boundary is None or boundary.number != theirs.number or record_digest(boundary.text) != theirs.digest:
            return "", ""  # other records: `_grow` reports them, and they are left to an operator
        after = theirs.number
    found = damage or ("empty" if not theirs.number else f"cut off after record {theirs.number}")
    state_text = f"the {named} in the store was {found}"
    healed = Event(
        time=utc_text(datetime.now(UTC)),
        who=who,
        what="heal",
        outcome=ACCEPTED,
        detail=f"{state_text}; given back from {source}",
    )
    behind, _ = append_events(ours, [healed]) if chain == MAIN else ((), ours)
    folds = await copy.folds() if chain == MAIN else ()
    batches = _both(copy.records(after, chain), behind)
    await store.rewrite_history(batches, folds, after=after, seen=seen, chain=chain)
    if chain == FEED:
        await store.record(healed)
    return f"{state_text}; records {after + 1} to {ours.number} are given back from {source}", ""


def _chain_name(chain: str) -> str:
    return "history" if chain == MAIN else "history of the feed"


async def _has_newer(store: ListStore, chain: str, theirs: Ledger, number: int) -> bool:
    """Return True if a damaged chain of the store has records after `number`.

    `theirs` is the chain's ledger. If the ledger is lost (its number is 0), any readable record counts.
    """
    if theirs.number:
        return theirs.number > number
    return bool(readable_events(await _readable_records(store, chain, number), chain))


async def _read_ends(store: ListStore, chain: str) -> tuple[Ledger, str]:
    """Return the store's ledger of a chain, and the first fault at either end of the chain or an empty text.

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
            newest = [record async for batch in store.records(max(0, ledger.number - 1), chain) for record in batch]
        except StoreError as error:
            if error.cause != "corrupt":
                raise
            return ledger, f"damaged ({error})"
        if await store.ledger(chain) == ledger:
            break
    else:
        return ledger, ""  # the chain changes all the time: the next pass reads more
    expected = [(ledger.number, ledger.digest)] if ledger.number else []
    is_whole = [(number, record_digest(text)) for number, text in newest] == expected and (
        not expected or (oldest is not None and oldest.number == ledger.first)
    )
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
    """Rebuild each damaged chain of the store from its readable records in their order, and record this as `event`.

    Raises:
        StoreError: if the store fails.
    """
    main, folds, theirs = await _read_damaged(store, MAIN)
    if theirs is None or [*chain_faults(main, folds, theirs)]:
        rebuilt = main if main and is_linked(main, None) else append_events(Ledger(), readable_events(main))[0]
        await store.rewrite_history(_one(rebuilt), folds, after=0, seen=theirs, exact=True)
    fed, _, feed = await _read_damaged(store, FEED)
    if feed is None or [*chain_faults(fed, (), feed), *feed_faults(main, fed, feed)]:
        await _renew_feed(store, main, fed, feed)
        await store.record(replace(event, what=ANCHOR, detail="the feed's chain was made again of its records"))
    await store.record(event)


async def _read_damaged(store: ListStore, chain: str) -> tuple[Sequence[Record], Sequence[Fold], Ledger | None]:
    """Return the readable records and folds of a chain, and its ledger.

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
    """Return the records of a chain after number `after`, up to damage that prevents reading."""
    records: list[Record] = []
    try:
        async for batch in store.records(after, chain):
            records += batch
    except StoreError as error:
        if error.cause != "corrupt":
            raise
    return records


async def _renew_feed(store: ListStore, main: Sequence[Record], fed: Sequence[Record], feed: Ledger | None) -> None:
    """Rebuild the feed's chain from its readable records, with numbers above those in all anchors."""
    heads = [event.head or 0 for event in readable_events(main) if event.what == ANCHOR]
    newest = max((record.number for record in fed), default=0) if feed is None else feed.number
    last = max(newest, *heads, 0)
    place = (await store.ledger()).number
    chain, _ = append_events(Ledger(first=last + 1, number=last), readable_events(fed, FEED), place)
    await store.rewrite_history(_one(chain), (), after=0, seen=feed, chain=FEED)


async def _is_recorded(store: ListStore, name: str, state: ListState) -> bool:
    """Return True if the history's newest record about changes of a list has this state."""
    newest = None
    chain = None if not state.serial else MAIN  # only local lists have a feed
    for limit in (NEWEST, FOLDS_MAX + NEWEST):  # up to FOLDS_MAX refusals may follow it
        if (newest := newest_change(await store.history(name, limit=limit, chain=chain))) is not None:
            break
    if newest is not None and is_of(newest, state):
        return True
    # The oldest records of a long chain are deleted, so a missing record is not a fault if it is older than the rest.
    if newest is None:
        return await _is_forgotten(store, MAIN, state) or (not state.serial and await _is_forgotten(store, FEED, state))
    is_later = state.loaded_at is not None and newest.time <= state.loaded_at
    return not state.serial and is_later and await _is_forgotten(store, FEED, state)


async def _is_forgotten(store: ListStore, chain: str, state: ListState) -> bool:
    """Return True if the chain's records of the time at which a list was loaded were already deleted."""
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

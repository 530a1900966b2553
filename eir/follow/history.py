"""The history on a node's side: this node's copy, which only grows, and the two rules by which it is kept level with the store's.

What continues the copy is appended to it. What does not is told, and the copy stays as it is until an operator adopts the store's
history. A store whose history is empty, damaged, or no more than the beginning of the copy gets the copy back.
"""

import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from eir.errors import GenerationConflict, Report, StoreError
from eir.record.clock import TrustedClock, in_time
from eir.record.history import (
    FOLDS_MAX,
    appended,
    broken,
    is_of,
    linked,
    newest_change,
    read_record,
    readable,
    record_digest,
)  # fmt: skip
from eir.record.settings import HistorySettings
from eir.record.store import ACCEPTED, Event, Ledger, ListState, ListStore, Record, utc_text

TRIM_S = 3600.0
WAITING_MAX = 1_000
"""Events that wait for a store that is away."""
COPY_TIMEOUT_S = 600.0
"""Seconds that copying a whole history, or giving it back, may take."""
UNRECORDED_S = 15.0
"""Seconds for which a list may be in the store before the record of the event that made it is there too."""
READ_AGAIN_MAX = 10
NEWEST = 20
"""Events of a list among which its last change mostly is."""


class HistoryKeeper:
    """A node's work on the history, again and again.

    `copy`: the node's own, where the store is elsewhere. `writes`: it may write the store's. `who` is this node, in the history. `now` is
    the monotonic clock, `clock` the one by which records are too old: a clock that has jumped takes none away.
    """

    def __init__(
        self,
        copy: ListStore | None,
        *,
        writes: bool,
        who: str,
        report: Report,
        now: Callable[[], float] = time.monotonic,
        clock: TrustedClock | None = None,
    ) -> None:
        self._copy, self._writes, self._who, self._report, self._now = copy, writes, who, report, now
        self._waiting: deque[Event] = deque(maxlen=WAITING_MAX)
        self._clock = clock or TrustedClock()
        self._trimmed_at: float | None = None
        self._refusals = ""
        """The refusals of the store that were last taken over."""
        self._unrecorded: dict[str, tuple[ListState, float | None]] = {}
        """The state of each list at the last look, and the time since which it has no record (None: it has one)."""
        self._told: set[str] = set()
        """Lists without a record that the log has reported."""
        self.newest = Ledger()
        """The store's, when it was last read."""
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
        writes = self._writes and await in_time(store.newer()) is None
        if self._copy is not None and writes:
            try:
                healed = await in_time(give_back(store, self._copy, self._who), COPY_TIMEOUT_S)
            except GenerationConflict:  # another node was faster, or somebody wrote: the next look sees what
                return
            if healed:
                self._report("history_healed", level="warning", detail=healed)
        if writes:
            await in_time(store.settle())
            while self._waiting:
                await in_time(store.record(self._waiting[0]))
                self._waiting.popleft()
            await self._trim(store, settings)
        if self._copy is not None:
            with suppress(GenerationConflict):  # it was written meanwhile: the next look sees what
                await in_time(self._grow(store, self._copy), COPY_TIMEOUT_S)
        await self._anchor(await in_time(store.ledger()))
        await in_time(self._hold(store, lists))

    async def events(self, name: str | None, *, limit: int | None, since: str | None) -> Sequence[Event]:
        """The events in this node's copy, while the store is away. Raises StoreError."""
        if self._copy is None:
            raise StoreError("refused", "the history is in the store alone")
        return await self._copy.history(name, limit=limit, since=since)

    async def close(self) -> None:
        """Let go of the copy."""
        if self._copy is not None:
            await self._copy.close()

    async def _trim(self, store: ListStore, settings: HistorySettings) -> None:
        if self._trimmed_at is not None and self._now() - self._trimmed_at < TRIM_S:
            return
        now = datetime.fromtimestamp(self._clock.now(time.time(), self._now()), UTC)
        until = utc_text(now - timedelta(days=settings.keep))
        event = Event(
            time=utc_text(datetime.now(UTC)),
            who=self._who,
            what="trim",
            outcome=ACCEPTED,
            detail="history.keep, history.max_bytes",
        )
        await in_time(store.trim_history(until, settings.max_bytes, event), COPY_TIMEOUT_S)
        if self._copy is not None and not self.differs:
            await self._copy.trim_history(until, settings.max_bytes, None)
        self._trimmed_at = self._now()

    async def _grow(self, store: ListStore, copy: ListStore) -> None:
        """Append to the copy what continues it, and nothing else."""
        ours, theirs = await copy.ledger(), await store.ledger()
        differs = "" if theirs.number > ours.number or theirs.digest == ours.digest else "it has other records"
        if theirs.number > ours.number and not (differs := await _unlinked(store, ours, theirs)):
            await self._append(store, copy, ours)
        if differs:
            differs = f"history: this node has records up to {ours.number} (SHA-256 {ours.digest}), and the store's up to {theirs.number} do not continue them: {differs}"
            if self.differs != differs:
                self._report(
                    "history_differs",
                    level="error",
                    detail=f"{differs}; see eir history --verify, then eir history adopt",
                )
        elif self._refusals != theirs.refusals:
            seen = await copy.ledger()
            await copy.rewrite_history(_one(()), await store.folds(), after=seen.number, seen=seen)
            self._refusals = theirs.refusals
        self.differs = differs

    async def _append(self, store: ListStore, copy: ListStore, ours: Ledger) -> None:
        """Take over the records behind the copy's."""
        async for batch in store.records(ours.number):
            if linked(
                batch, ours.digest if ours.number else None
            ):  # else it was changed meanwhile: the next look tells
                await copy.rewrite_history(_one(batch), (), after=ours.number, seen=ours)
                ours = await copy.ledger()

    async def _anchor(self, ledger: Ledger) -> None:
        """Report each newest record to the log: anyone who keeps the log can hold the history's end against it."""
        if (ledger.number, ledger.digest) != (self.newest.number, self.newest.digest):
            self._report("history_at", record=ledger.number, digest=ledger.digest)
        self.newest = ledger

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


async def _unlinked(store: ListStore, ours: Ledger, theirs: Ledger) -> str:
    """The reason why the store's newer records do not continue the copy as a chain; empty if they do."""
    number, digest = ours.number, ours.digest if ours.number else None  # a node's first look takes what there is
    async for batch in store.records(ours.number):
        if number and batch[0].number != number + 1:
            return f"record {batch[0].number} comes after {number}"
        if not linked(batch, digest):
            return f"a record after {number} was not written behind the one before it"
        number, digest = batch[-1].number, record_digest(batch[-1].text)
    return (
        ""
        if (number, digest) == (theirs.number, theirs.digest) or number > theirs.number
        else f"record {number}, the newest, is not the one that was written"
    )


async def give_back(store: ListStore, copy: ListStore, who: str) -> str | None:
    """Write the copy to a store whose history is empty, damaged, or only the beginning of the copy.

    Returns which of these it was; None if none applies.

    Raises StoreError, GenerationConflict if another node was faster.
    """
    ours = await copy.ledger()
    theirs, damage = await _looked_at(store)
    if not ours.number or not (damage or theirs.number < ours.number):
        return None
    after, seen = 0, None if damage else theirs
    if theirs.number and not damage:
        there = await _first(copy, theirs.number - 1)
        if there is None or there.number != theirs.number or record_digest(there.text) != theirs.digest:
            return None  # other records: told, and left to an operator
        after = theirs.number
    shown = f"the history in the store was {damage or ('empty' if not theirs.number else f'cut off after record {theirs.number}')}"
    healed = Event(
        time=utc_text(datetime.now(UTC)),
        who=who,
        what="heal",
        outcome=ACCEPTED,
        detail=f"{shown}; given back from this node's copy",
    )
    behind, _ = appended(ours, [healed])
    await store.rewrite_history(_both(copy.records(after), behind), await copy.folds(), after=after, seen=seen)
    return f"{shown}; records {after + 1} to {ours.number} are given back from this node's copy"


async def _looked_at(store: ListStore) -> tuple[Ledger, str]:
    """The store's ledger, and the fault of its history by a look at both of its ends; empty if it has no fault."""
    for _ in range(READ_AGAIN_MAX):
        try:
            ledger = await store.ledger()
            await store.folds()
            await store.outcomes()
            oldest = await _first(store, ledger.first - 1)
            newest = [record async for batch in store.records(max(0, ledger.number - 1)) for record in batch]
        except StoreError as error:
            if error.cause != "corrupt":
                raise
            return Ledger(), f"damaged ({error})"
        if await store.ledger() == ledger:
            break
    wanted = [(ledger.number, ledger.digest)] if ledger.number else []
    is_whole = [(number, record_digest(text)) for number, text in newest] == wanted and (
        not wanted or (oldest is not None and oldest.number == ledger.first)
    )
    return ledger, "" if is_whole else "damaged (its ends are not where they were)"


async def adopt(store: ListStore, copy: ListStore, event: Event) -> None:
    """Put the store's history in the place of this node's copy, with a record of that in the store.

    A chain that does not hold is made again of its records that can be read, in their order. Raises StoreError.
    """
    ours, theirs = await copy.ledger(), await store.ledger()
    records, folds = [record async for batch in store.records() for record in batch], await store.folds()
    if [*broken(records, folds, theirs)]:
        chain, _ = appended(Ledger(), readable(records))
        await store.rewrite_history(_one(chain), folds, after=0, seen=theirs, exact=True)
    await store.record(event)
    await copy.rewrite_history(store.records(), await store.folds(), after=0, seen=ours, exact=True)


async def _is_recorded(store: ListStore, name: str, state: ListState) -> bool:
    """True if the newest record of a change to a list says that this state came of it."""
    for limit in (NEWEST, FOLDS_MAX + NEWEST):  # there may be as many refusals behind it
        if (newest := newest_change(await store.history(name, limit=limit))) is not None:
            return is_of(newest, state)
    # A long history loses its oldest records: one of before those that are left is no longer there, and no fault.
    ledger = await store.ledger()
    oldest = await _first(store, ledger.first - 1) if ledger.first > 1 else None
    return oldest is not None and state.loaded_at is not None and state.loaded_at < read_record(oldest).time


async def _first(store: ListStore, after: int) -> Record | None:
    async for batch in store.records(after):
        return batch[0]
    return None


async def _one(batch: Sequence[Record]) -> AsyncIterator[Sequence[Record]]:
    yield batch


async def _both(batches: AsyncIterable[Sequence[Record]], last: Sequence[Record]) -> AsyncIterator[Sequence[Record]]:
    async for batch in batches:
        yield batch
    yield last

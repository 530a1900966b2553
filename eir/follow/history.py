"""The history on a node's side: this node's copy, kept level with the store's and given back to a store that lost it.

Imports eir.lists and eir.errors; knows no particular store. A copy takes over nothing that does not link to what it holds. Where
the two differ, the longer one goes on, and what only the other one holds is written behind it: nothing that was ever recorded
goes, and of several nodes that do this at once all come to the same.
"""

import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from eir.errors import GenerationConflict, Report
from eir.lists.history import appended, linked, read_record, same_event
from eir.lists.patience import in_time
from eir.lists.settings import HistorySettings
from eir.lists.store import ACCEPTED, Event, Ledger, ListStore, Record, utc_text

TRIM_S = 3600.0
WAITING_MAX = 1_000
"""Events that wait for a store that is away."""
COPY_TIMEOUT_S = 600.0
"""How long a whole history may take to be copied, or given back."""


class HistoryKeeper:
    """What a node does about the history, again and again.

    `copy`: the node's own, where the store is elsewhere. `writes`: it may write the store's. `who` is this node, in the history.
    """

    def __init__(self, copy: ListStore | None, *, writes: bool, who: str, report: Report) -> None:
        self._copy, self._writes, self._who, self._report = copy, writes, who, report
        self._waiting: deque[Event] = deque(maxlen=WAITING_MAX)
        self._trimmed_at = 0.0

    def add(self, event: Event) -> None:
        """Have an event recorded at the next look, or when the store is back."""
        if self._writes:
            self._waiting.append(event)
        else:
            self._report("history_not_written", level="warning", reason="heal", detail=f"{event.what} by {event.who}: with `heal: false` a node writes no history")

    async def look(self, store: ListStore, settings: HistorySettings) -> None:
        """Write what waits, forget what is overdue, and bring copy and store level. Raises StoreError."""
        if self._writes:
            await in_time(store.settle())
            while self._waiting:
                await in_time(store.record(self._waiting[0]))
                self._waiting.popleft()
            await self._trim(store, settings)
        if self._copy is not None:
            with suppress(GenerationConflict):  # it was written meanwhile: the next look sees what
                await in_time(self._keep_level(store, self._copy), COPY_TIMEOUT_S)

    async def close(self) -> None:
        """Let go of the copy."""
        if self._copy is not None:
            await self._copy.close()

    async def _trim(self, store: ListStore, settings: HistorySettings) -> None:
        if self._trimmed_at and time.monotonic() - self._trimmed_at < TRIM_S:
            return
        now = datetime.now(UTC)
        until = utc_text(now - timedelta(days=settings.keep))
        event = Event(time=utc_text(now), who=self._who, what="trim", outcome=ACCEPTED, detail="history.keep, history.max_bytes")
        await in_time(store.trim_history(until, settings.max_bytes, event), COPY_TIMEOUT_S)
        if self._copy is not None:
            await self._copy.trim_history(until, settings.max_bytes, None)
        self._trimmed_at = time.monotonic()

    async def _keep_level(self, store: ListStore, copy: ListStore) -> None:
        ours, theirs = await copy.ledger(), await store.ledger()
        if (ours.number, ours.digest, ours.refusals) == (theirs.number, theirs.digest, theirs.refusals):
            return
        fork = await fork_of(copy, ours, store, theirs)
        if fork == ours.number or ours.number + 1 < theirs.first:
            await self._follow(store, theirs, copy, ours)
        elif not self._writes:
            self._report("history_lost", level="error", detail=_differs(fork, ours, theirs))
        elif await _goes_before(copy, ours, store, theirs, fork):
            await self._give_back(store, theirs, copy, ours, fork)
        else:
            await self._give_way(store, theirs, copy, ours, fork)

    async def _follow(self, store: ListStore, theirs: Ledger, copy: ListStore, ours: Ledger) -> None:
        """Take over what the store has more."""
        after, digest = (ours.number, ours.digest) if ours.number + 1 >= theirs.first else (0, None)
        async for batch in store.records(after):
            if not linked(batch, digest):
                self._report("history_broken", level="error", detail="a record of the history in the store was changed or removed: eir history --verify")
                return
            await copy.rewrite_history(_one(batch), (), after=after, seen=ours)
            ours = await copy.ledger()
            after, digest = ours.number, ours.digest
        await copy.rewrite_history(_one(()), await store.folds(), after=ours.number, seen=ours, exact=True)

    async def _give_back(self, store: ListStore, theirs: Ledger, copy: ListStore, ours: Ledger, fork: int) -> None:
        """Write the copy's records to the store, and behind them what only the store has."""
        only_theirs = await _not_in(store, copy, fork)
        detail = _differs(fork, ours, theirs)
        healed = Event(time=utc_text(datetime.now(UTC)), who=self._who, what="heal", outcome=ACCEPTED, detail=f"{detail}; given back from this node's copy")
        behind, _ = appended(ours, [*only_theirs, healed])
        await store.rewrite_history(_both(copy.records(fork), behind), await copy.folds(), after=fork, seen=theirs)
        self._report("history_healed", level="warning", detail=detail)

    async def _give_way(self, store: ListStore, theirs: Ledger, copy: ListStore, ours: Ledger, fork: int) -> None:
        """Write what only the copy has to the store, and take over the store's."""
        for event in await _not_in(copy, store, fork):
            await store.record(event)
        seen = await store.ledger()
        await store.rewrite_history(_one(()), await copy.folds(), after=seen.number, seen=seen)
        self._report("history_differs", level="error", detail=_differs(fork, ours, theirs))
        await copy.rewrite_history(store.records(fork), (), after=fork, seen=ours)


async def fork_of(one: ListStore, ours: Ledger, other: ListStore, theirs: Ledger) -> int:
    """The number of the last record that is the same in both histories; 0: none is."""
    low, high = 0, min(ours.number, theirs.number)
    step = high  # most often it is the last one
    while low < high:
        if await _at(one, step) == await _at(other, step) is not None:
            low = step
        else:
            high = step - 1
        step = (low + high + 1) // 2
    return low


async def _goes_before(copy: ListStore, ours: Ledger, store: ListStore, theirs: Ledger, fork: int) -> bool:
    """Whether what the copy has after the fork was done first; within a second the longer one did more, or the digests decide."""
    mine, its = await _at(copy, fork + 1), await _at(store, fork + 1)
    began, store_began = (read_record(record).time if record else "" for record in (mine, its))
    return its is None or (store_began, ours.number, theirs.digest) > (began, theirs.number, ours.digest)


async def _at(store: ListStore, number: int) -> Record | None:
    async for batch in store.records(number - 1):
        return batch[0]
    return None


async def _not_in(one: ListStore, other: ListStore, fork: int) -> list[Event]:
    """The events after a record that one history has and the other one has not."""
    left = {same_event(record.text): record async for batch in one.records(fork) for record in batch}
    async for batch in other.records(fork):
        for record in batch:
            left.pop(same_event(record.text), None)
    return [read_record(record) for record in left.values()]


def _differs(fork: int, ours: Ledger, theirs: Ledger) -> str:
    return f"history: this node has records up to {ours.number}, the store up to {theirs.number}, and after {fork} they are not the same"


async def _one(batch: Sequence[Record]) -> AsyncIterator[Sequence[Record]]:
    yield batch


async def _both(batches: AsyncIterable[Sequence[Record]], last: Sequence[Record]) -> AsyncIterator[Sequence[Record]]:
    async for batch in batches:
        yield batch
    yield last

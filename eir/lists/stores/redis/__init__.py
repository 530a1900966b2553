"""The store for many nodes: Redis (7 or later) or Valkey, alone, under Sentinel, or as a cluster.

Everything of a list is under one hash tag, so it is one slot of a cluster and one transaction can change it:

    eir:{LIST}:state      hash: state (JSON), generation, form (of what is here), set (ID of the set in force), fields (how many that has),
                          change (random for each write), past (JSON: the change that it belongs to; what a rollback can put in force,
                          newest first; the event that made the list what it is; the one that the history gets for this change)
    eir:{LIST}:set:ID     hash: page number → keys, and where a page has `extra`, NUMBER+ → extra
    eir:{LIST}:kept:ID    hash of the same form: pages as they were before a delta (nothing in them: there was none)
    eir:{LIST}:written    a mark, with an expiry, that shows whether a replica has what was written before it
    eir:{LIST}:changes    stream, trimmed: entry GENERATION-0 with before, pages (8 bytes each, little-endian; absent: all)
    eir:lists             set: names of lists
    eir:{history}:…       see eir.lists.stores.redis.history
    eir:claim:WHAT        who has the sole right to do something, with an expiry

A load fills a new set that expires unless it is put in force; that is one EXEC on condition that neither the state nor the
set changed. Whether an EXEC whose answer was lost was done shows in `change`. The history is in another slot: an event goes there
after the EXEC, and until it is there it is found in `past`. What a worker needs may be narrow: it reads by HMGET, HSCAN, HLEN,
XRANGE, XREAD, SMEMBERS, INFO only.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, cast

from redis.exceptions import WatchError

from eir.errors import Report, StoreChanged, StoreError, silent
from eir.lists.pages.pages import Page
from eir.lists.record.store import MAIN, Change, Event, Fold, Ledger, ListState, Outcome, Record
from eir.lists.stores.records import decode_change
from eir.lists.stores.redis import history, reading, writing
from eir.lists.stores.redis.link import REPLICA_WAIT_MS, Link
from eir.lists.stores.redis_url import parse_url
from eir.lists.stores.write import Batches, PageSetStore, Stored, Undo, Wanted, without_gap

BATCH_BYTES = 1 << 16
"""Bytes read at a time: decoding them holds the interpreter for less than half a millisecond."""
BATCHES_AHEAD = 2
"""Read while the caller uses the one before, so that one is on its way and one has come."""
READ_AGAIN_MAX = 5
UNCHANGED_PAUSE_S = 0.1


class RedisStore(PageSetStore):
    """Implements eir.lists.record.store.ListStore on Redis. Connects when first asked. `report` hears of anything that is not an error.

    Raises StoreError (`url`) for a URL that is not one of eir.lists.stores.redis_url, see there also for `check`.
    """

    def __init__(
        self, url: str, *, report: Report = silent, check: bool = True, replica_wait_ms: int = REPLICA_WAIT_MS
    ) -> None:
        self._link = Link(parse_url(url, check=check), report, replica_wait_ms)
        self._told: list[Any] = []
        """The result of the last wait."""

    async def _stored(self, name: str) -> reading.Row | None:
        return await reading.read_row(self._link, name, past=True)

    async def _pages_in(
        self, stored: Stored[Any], page_set: reading.PageSet, numbers: Sequence[int]
    ) -> Sequence[Page] | None:
        return await reading.read_in_set(self._link, cast("reading.Row", stored), page_set, numbers)

    async def state(self, name: str) -> ListState | None:
        row = await reading.read_row(self._link, name)
        return None if row is None or row.lost else row.state

    async def states(self) -> Mapping[str, ListState]:
        """The states of all names that were ever written."""
        rows = [await reading.read_row(self._link, name) for name in await self._names()]
        return {row.name: row.state for row in rows if row is not None and not row.lost}

    async def _names(self) -> list[str]:
        with self._link.as_written():
            return sorted(name.decode() for name in await self._link.do("SMEMBERS", writing.LISTS))

    async def _check_room(self, name: str, pages: Sequence[Page], *, amends: bool) -> None:
        await writing.make_room(self._link, name, pages, amends=amends)

    async def _write(self, name: str, seen: int, wanted: Wanted | Undo, batches: Batches | None = None) -> ListState:
        return await writing.write(self._link, name, seen, wanted, batches)

    async def pages(self, name: str) -> AsyncIterator[tuple[ListState, Sequence[Page]]]:
        """The next batch is read while the caller uses this one."""
        row = await reading.read_row(self._link, name)
        if row is None or row.lost:
            return
        numbers = await reading.read_numbers(self._link, row, row.page_set)
        plain = len(numbers) == row.page_set.fields
        if not len(numbers):
            yield row.state, []
        at, count = 0, 32
        ahead: deque[asyncio.Task[list[Page]]] = deque()
        try:
            while ahead or at < len(numbers):
                while len(ahead) < BATCHES_AHEAD and at < len(numbers):
                    part = numbers[at : at + count].tolist()
                    ahead.append(
                        asyncio.create_task(reading.read_pages(self._link, row, row.page_set, part, plain=plain))
                    )
                    at += len(part)
                batch = await ahead[0]
                ahead.popleft()
                size = sum(len(page.keys) + len(page.extra) for page in batch) // (len(batch) + 1)
                count = min(max(BATCH_BYTES // (size + 1), 1), reading.BATCH_PAGES_MAX)
                yield row.state, batch
        finally:
            await _end(ahead)

    async def some_pages(self, name: str, numbers: Sequence[int]) -> tuple[ListState | None, Sequence[Page]]:
        """Read in parts that must all be of one generation, again if they are not."""
        for _ in range(READ_AGAIN_MAX):
            row = await reading.read_row(self._link, name)
            if row is None or row.lost:
                return None, []
            with suppress(StoreChanged):
                pages = await reading.read_each(self._link, row, row.page_set, sorted(set(numbers)))
                return row.state, [page for page in pages if not page.gone]
        raise StoreChanged(f"list {name} changed {READ_AGAIN_MAX} times while its pages were read")

    async def changes(self, name: str, after: int) -> Sequence[Change] | None:
        row = await reading.read_row(self._link, name)
        entries = await self._link.do("XRANGE", reading.key(name, "changes"), f"({after}-0", "+")
        with self._link.as_written():
            found = [(int(entry.partition(b"-")[0]), step) for entry, step in entries]
            steps = [decode_change(int(step[b"before"]), generation, step.get(b"pages")) for generation, step in found]
        return without_gap(steps, after, 0 if row is None else row.generation)

    async def wait(self, seen: Mapping[str, int], timeout_s: float) -> None:
        """Reads the streams of changes with BLOCK; entries are numbered by generation, so none is missed."""
        if not seen:
            await asyncio.sleep(timeout_s)
            return
        # In a cluster one command stays in one slot: there each list has its own.
        groups = [[name] for name in seen] if self._link.clustered else [list(seen)]
        tasks = [
            asyncio.create_task(self._next_entry({name: seen[name] for name in names}, timeout_s)) for names in groups
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            told = [task.result() for task in done]
        except StoreError as error:
            if error.cause != "corrupt":
                raise
            # The log of one list is damaged, which says nothing about the others: the caller looks at the states of all.
            told = []
            await asyncio.sleep(timeout_s)
        finally:
            await _end(tasks)
        if any(told) and told == self._told:  # an entry without the state that belongs to it
            await asyncio.sleep(min(UNCHANGED_PAUSE_S, timeout_s))
        self._told = told

    async def _next_entry(self, seen: Mapping[str, int], timeout_s: float) -> Any:
        streams, after = (
            [reading.key(name, "changes") for name in seen],
            [f"{generation}-0" for generation in seen.values()],
        )
        block = ("XREAD", "COUNT", 1, "BLOCK", max(1, int(timeout_s * 1000)), "STREAMS", *streams, *after)
        return await self._link.do(*block, key=streams[0])

    async def claim(self, what: str, who: str, ttl_s: float) -> bool:
        claim = f"eir:claim:{what}"
        return await self._link.call(claim, lambda client: _claim(client, claim, who, int(ttl_s * 1000)))

    async def record(self, event: Event) -> None:
        """One EXEC. If the answer is lost, the event may be there twice."""
        await history.append(self._link, event)

    async def settle(self) -> None:
        for row in await self._unsettled():
            await writing.settle(self._link, row)

    async def _unsettled(self) -> list[reading.Row]:
        """Lists whose last write the history does not have yet."""
        names = await self._names()
        rows = [await reading.read_row(self._link, name, past=True) for name in names]
        done = await history.read_done(self._link, names)
        return [row for row in rows if row is not None and row.event is not None and row.change != done[row.name]]

    async def history(
        self, name: str | None = None, *, limit: int | None = None, since: str | None = None, chain: str | None = None
    ) -> Sequence[Event]:
        """With what the history does not have yet behind it."""
        last = [
            row.event
            for row in await self._unsettled()
            if row.event is not None and name in {None, row.event.list} and chain in {None, row.event.chain}
        ]
        events = [*await history.read_history(self._link, name, since, limit, chain), *last]
        return events if limit is None else events[-limit:]

    async def ledger(self, chain: str = MAIN) -> Ledger:
        return (await history.read_ledger(self._link, chain)).ledger

    def records(self, after: int = 0, chain: str = MAIN) -> AsyncIterator[Sequence[Record]]:
        return history.read_records(self._link, after, chain)

    async def folds(self) -> Sequence[Fold]:
        return await history.read_folds(self._link)

    async def rewrite_history(
        self,
        batches: AsyncIterable[Sequence[Record]],
        folds: Sequence[Fold],
        *,
        after: int,
        seen: Ledger | None,
        exact: bool = False,
        chain: str = MAIN,
    ) -> None:
        """Staged, where it is not only appended; one EXEC does the rest."""
        await history.rewrite(self._link, batches, folds, after=after, seen=seen, exact=exact, chain=chain)

    async def trim_history(self, until: str, bytes_max: int | None, event: Event | None, chain: str = MAIN) -> int:
        """With an event, always: the command that appends it also takes off the oldest, which takes a right of its own otherwise."""
        if event is None:
            raise StoreError("error", "the history in Redis forgets nothing without saying so")
        return await history.trim(self._link, until, bytes_max, event, chain)

    async def outcomes(self) -> Sequence[Outcome]:
        return await history.read_outcomes(self._link)

    async def newer(self) -> str | None:
        return await history.newer(self._link)

    async def close(self) -> None:
        await self._link.close()


async def _end(tasks: Sequence[asyncio.Task[object]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _claim(client: Any, claim: str, who: str, milliseconds: int) -> bool:
    if milliseconds > 0 and await client.execute_command("SET", claim, who, "NX", "PX", milliseconds):
        return True
    async with client.pipeline(transaction=True) as pipe:
        await pipe.watch(claim)
        if await pipe.execute_command("GET", claim) != who.encode():
            return False
        pipe.multi()
        pipe.execute_command(*("PEXPIRE", claim, milliseconds) if milliseconds > 0 else ("DEL", claim))
        with suppress(WatchError):
            await pipe.execute()
            return True
    return False

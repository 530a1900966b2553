"""Store for many nodes: Redis (7 or later) or Valkey, standalone, with Sentinel, or as a cluster.

All keys of a list share one hash tag, so they are in one slot of a cluster and one transaction can change them:

    eir:{LIST}:state      hash: state (JSON), generation, form (version of the format), set (ID of the set in force), fields (their
                          number in that set), change (random for each write), past (JSON: the change to which it belongs; the
                          releases for a rollback, newest first; the event that put the list in force; the event for the history)
    eir:{LIST}:set:ID     hash: page number → keys, and if a page has `extra`, NUMBER+ → extra
    eir:{LIST}:kept:ID    hash of the same form: pages before a delta (empty for a page that did not exist)
    eir:{LIST}:written    mark, with an expiry: a replica that has it also has all earlier writes
    eir:{LIST}:changes    stream, trimmed: entry GENERATION-0 with before, pages (8 bytes each, little-endian; absent: all)
    eir:lists             set: names of lists
    eir:{history}:…       see eir.lists.stores.redis.history
    eir:claim:WHAT        holder of an exclusive right, with an expiry

A load fills a new set, which expires unless one EXEC puts it in force. The EXEC is conditional on an unchanged state and an
unchanged set. If the answer of an EXEC is lost, `change` shows whether it was done. The history is in another slot: an event
is appended there after the EXEC, and until then it is in `past`. The rights of a worker can be limited: it reads with HMGET,
HSCAN, HLEN, XRANGE, XREAD, SMEMBERS, INFO only.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, cast

from redis.exceptions import WatchError

from eir.errors import Report, StoreChanged, StoreError, silent
from eir.lists.pages.pages import Page
from eir.lists.record.store import MAIN, Event, Fold, Ledger, ListChange, ListState, OutcomeCount, Record
from eir.lists.stores.records import decode_change
from eir.lists.stores.redis import history, reading, writing
from eir.lists.stores.redis.link import REPLICA_WAIT_MS, RedisClient
from eir.lists.stores.redis_url import parse_url
from eir.lists.stores.write import Batches, PageSetStore, Stored, Undo, WriteRequest, contiguous_changes

BATCH_BYTES = 1 << 16
"""Bytes of a batch: decoding it holds the interpreter's lock for less than 0.5 ms."""
BATCHES_AHEAD = 2
"""Batches that are read ahead: one has arrived and one is on its way while the caller uses another."""
READ_AGAIN_MAX = 5
UNCHANGED_PAUSE_S = 0.1


class RedisStore(PageSetStore):
    """Store of lists in Redis, which implements eir.lists.record.store.ListStore and connects at the first call.

    Args:
        url: URL of eir.lists.stores.redis_url.
        report: receives events that are not errors.
        check: as in eir.lists.stores.redis_url.
        replica_wait_ms: time for a replica to receive a write.

    Raises:
        StoreError: `url`, for an invalid URL.
    """

    def __init__(
        self, url: str, *, report: Report = silent, check: bool = True, replica_wait_ms: int = REPLICA_WAIT_MS
    ) -> None:
        self._link = RedisClient(parse_url(url, check=check), report, replica_wait_ms)
        self._last_wait: list[Any] = []
        """Result of the last wait."""

    async def _stored(self, name: str) -> reading.ListRow | None:
        return await reading.read_row(self._link, name, past=True)

    async def _pages_in(
        self, stored: Stored[Any], page_set: reading.PageSet, numbers: Sequence[int]
    ) -> Sequence[Page] | None:
        return await reading.read_in_set(self._link, cast("reading.ListRow", stored), page_set, numbers)

    async def state(self, name: str) -> ListState | None:
        row = await reading.read_row(self._link, name)
        return None if row is None or row.lost else row.state

    async def states(self) -> Mapping[str, ListState]:
        """Return the states of all lists in Redis that can be read."""
        rows = [await reading.read_row(self._link, name) for name in await self._names()]
        return {row.name: row.state for row in rows if row is not None and not row.lost}

    async def _names(self) -> list[str]:
        with self._link.as_written():
            return sorted(name.decode() for name in await self._link.do("SMEMBERS", writing.LISTS))

    async def _check_room(self, name: str, pages: Sequence[Page], *, amends: bool) -> None:
        await writing.check_memory(self._link, name, pages, amends=amends)

    async def _write(
        self, name: str, seen: int, request: WriteRequest | Undo, batches: Batches | None = None
    ) -> ListState:
        return await writing.write(self._link, name, seen, request, batches)

    async def pages(self, name: str) -> AsyncIterator[tuple[ListState, Sequence[Page]]]:
        """Yield a list in batches of pages. The next batches are read while the caller uses this one."""
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
            await _cancel_all(ahead)

    async def some_pages(self, name: str, numbers: Sequence[int]) -> tuple[ListState | None, Sequence[Page]]:
        """Return the state and the numbered pages of a list; read again if the list changes meanwhile."""
        for _ in range(READ_AGAIN_MAX):
            row = await reading.read_row(self._link, name)
            if row is None or row.lost:
                return None, []
            with suppress(StoreChanged):
                pages = await reading.read_each(self._link, row, row.page_set, sorted(set(numbers)))
                return row.state, [page for page in pages if not page.is_empty]
        raise StoreChanged(f"list {name} changed {READ_AGAIN_MAX} times while its pages were read")

    async def changes(self, name: str, after: int) -> Sequence[ListChange] | None:
        row = await reading.read_row(self._link, name)
        entries = await self._link.do("XRANGE", reading.key(name, "changes"), f"({after}-0", "+")
        with self._link.as_written():
            changes = [(int(entry.partition(b"-")[0]), step) for entry, step in entries]
            steps = [
                decode_change(int(step[b"before"]), generation, step.get(b"pages")) for generation, step in changes
            ]
        return contiguous_changes(steps, after, 0 if row is None else row.generation)

    async def wait(self, seen: Mapping[str, int], timeout_s: float) -> None:
        """Wait for an entry in the lists' change streams (XREAD with BLOCK), or for the timeout.

        Entries are numbered by generation, so no change is missed.
        """
        if not seen:
            await asyncio.sleep(timeout_s)
            return
        # In a cluster a command must stay in one slot, so each list needs a command of its own.
        groups = [[name] for name in seen] if self._link.clustered else [list(seen)]
        tasks = [
            asyncio.create_task(self._next_entry({name: seen[name] for name in names}, timeout_s)) for names in groups
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            results = [task.result() for task in done]
        except StoreError as error:
            if error.cause != "corrupt":
                raise
            # The change log of one list is damaged; the others may have changed, so the caller reads all states.
            results = []
            await asyncio.sleep(timeout_s)
        finally:
            await _cancel_all(tasks)
        if any(results) and results == self._last_wait:  # an entry whose state is not written
            await asyncio.sleep(min(UNCHANGED_PAUSE_S, timeout_s))
        self._last_wait = results

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
        """Append an event to the history in one EXEC.

        If the answer is lost, the event may be appended twice.
        """
        await history.append(self._link, event)

    async def settle(self) -> None:
        for row in await self._unsettled():
            await writing.settle(self._link, row)

    async def _unsettled(self) -> list[reading.ListRow]:
        """Return the lists whose last write is not yet in the history."""
        names = await self._names()
        rows = [await reading.read_row(self._link, name, past=True) for name in names]
        done = await history.read_done(self._link, names)
        return [row for row in rows if row is not None and row.event is not None and row.change != done[row.name]]

    async def history(
        self, name: str | None = None, *, limit: int | None = None, since: str | None = None, chain: str | None = None
    ) -> Sequence[Event]:
        """Return events of the history, and last the events of writes that are not yet in the history."""
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
        """Rewrite a chain of the history in one EXEC.

        New records are staged first, unless they are only appended.
        """
        await history.rewrite(self._link, batches, folds, after=after, seen=seen, exact=exact, chain=chain)

    async def trim_history(self, until: str, bytes_max: int | None, event: Event | None, chain: str = MAIN) -> int:
        """Delete the oldest records of a chain; `event` is required.

        The command that appends the event also trims the stream, so the user needs no further permission.
        """
        if event is None:
            raise StoreError("error", "an event is required to trim the history in Redis")
        return await history.trim(self._link, until, bytes_max, event, chain)

    async def outcomes(self) -> Sequence[OutcomeCount]:
        return await history.read_outcomes(self._link)

    async def newer(self) -> str | None:
        return await history.newer(self._link)

    async def close(self) -> None:
        await self._link.close()


async def _cancel_all(tasks: Sequence[asyncio.Task[object]]) -> None:
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

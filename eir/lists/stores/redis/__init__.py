"""Store for many nodes: Redis (7 or later) or Valkey, standalone, with Sentinel, or as a cluster.

All keys of a list share one hash tag, so they are in one slot of a cluster and one transaction can change them:

    eir:{LIST}:state      hash: state (JSON); generation; form (version of the format); set (ID of the set in force); fields
                          (number of fields in that set); change (random ID of the last write); past (JSON: the ID of the write
                          that stored it, the releases for a rollback from the newest to the oldest, the event that put the list
                          in force, and the event for the history)
    eir:{LIST}:set:ID     hash: page number → keys, and if a page has `extra`, NUMBER+ → extra
    eir:{LIST}:kept:ID    hash of the same form: pages that a delta replaced (empty for a page that the delta added)
    eir:{LIST}:written    mark, with an expiry: a replica that has the mark also has all earlier writes
    eir:{LIST}:changes    stream, trimmed: entry GENERATION-0 with before, pages (8 bytes each, little-endian; absent: all)
    eir:lists             set: names of lists
    eir:{history}:…       see eir.lists.stores.redis.history
    eir:claim:WHAT        holder of a lease, with an expiry

A load fills a new set, which expires unless one EXEC puts the set in force. The EXEC fails if the state or the set has changed. If
the answer of an EXEC is lost, `change` shows whether Redis executed it. The history is in another slot of a cluster, so the event of
a write is appended to the history after the EXEC. Until then the event is in `past`. A process that only reads needs the right to
HMGET, HSCAN, HLEN, XRANGE, XREAD, SMEMBERS and INFO.
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
from eir.lists.stores.write import Batches, PageSetStore, RollbackRequest, Stored, WriteRequest, contiguous_changes

BATCH_BYTES = 1 << 16
"""Approximate size of a batch in bytes. To decode a batch holds the interpreter's lock for less than 0.5 ms."""
BATCHES_AHEAD = 2
"""Number of batches that are requested while the caller uses another batch."""
READ_AGAIN_MAX = 5
"""Maximum number of reads of pages while the list changes."""
UNCHANGED_PAUSE_S = 0.1
"""Pause in seconds after a change stream has the same new entry as before, so that `wait` does not return at once again."""


class RedisStore(PageSetStore):
    """Store of lists in Redis, which implements eir.lists.record.store.ListStore and connects at the first call.

    Args:
        url: URL in the form of eir.lists.stores.redis_url.
        report: receives events that are not errors.
        check: as in eir.lists.stores.redis_url.parse_url.
        replica_wait_ms: time within which a replica must receive a write.

    Raises:
        StoreError: `url`, if the URL is invalid.
    """

    def __init__(
        self, url: str, *, report: Report = silent, check: bool = True, replica_wait_ms: int = REPLICA_WAIT_MS
    ) -> None:
        self.link = RedisClient(parse_url(url, check=check), report, replica_wait_ms)
        """Client of the server, for commands beyond those of a store."""
        self._last_wait: list[Any] = []
        """New entries of the change streams at the end of the last call of `wait`."""

    async def _stored(self, name: str) -> reading.ListRow | None:
        return await reading.read_row(self.link, name, past=True)

    async def _pages_in(
        self, stored: Stored[Any], page_set: reading.PageSet, numbers: Sequence[int]
    ) -> Sequence[Page] | None:
        return await reading.read_in_set(self.link, cast("reading.ListRow", stored), page_set, numbers)

    async def state(self, name: str) -> ListState | None:
        row = await reading.read_row(self.link, name)
        return None if row is None or row.lost else row.state

    async def states(self) -> Mapping[str, ListState]:
        """Return the states of all lists, except lists whose pages Redis has lost."""
        states = {}
        for name in await self._names():
            row = await reading.read_row(self.link, name)
            if row is not None and not row.lost:
                states[name] = row.state
        return states

    async def _names(self) -> list[str]:
        members = await self.link.execute("SMEMBERS", writing.LISTS)
        with self.link.decoding():
            return sorted(name.decode() for name in members)

    async def _check_room(self, name: str, pages: Sequence[Page], *, amends: bool) -> None:
        await writing.check_memory(self.link, name, pages, amends=amends)

    async def _write(
        self, name: str, seen: int, request: WriteRequest | RollbackRequest, batches: Batches | None = None
    ) -> ListState:
        return await writing.write(self.link, name, seen, request, batches)

    async def pages(self, name: str) -> AsyncIterator[tuple[ListState, Sequence[Page]]]:
        """Yield a list in batches of pages, and read ahead while the caller uses a batch."""
        row = await reading.read_row(self.link, name)
        if row is None or row.lost:
            return
        numbers = await reading.read_numbers(self.link, row, row.page_set)
        plain = len(numbers) == row.page_set.fields
        if not len(numbers):
            yield row.state, []
        start, count = 0, 32
        ahead: deque[asyncio.Task[list[Page]]] = deque()
        try:
            while ahead or start < len(numbers):
                while len(ahead) < BATCHES_AHEAD and start < len(numbers):
                    batch_numbers = numbers[start : start + count].tolist()
                    read = reading.read_pages(self.link, row, row.page_set, batch_numbers, plain=plain)
                    ahead.append(asyncio.create_task(read))
                    start += len(batch_numbers)
                batch = await ahead[0]
                ahead.popleft()
                batch_bytes = sum(len(page.keys) + len(page.extra) for page in batch)
                page_bytes = batch_bytes // (len(batch) + 1) + 1
                count = min(max(BATCH_BYTES // page_bytes, 1), reading.BATCH_PAGES_MAX)
                yield row.state, batch
        finally:
            await _cancel_all(ahead)

    async def some_pages(self, name: str, numbers: Sequence[int]) -> tuple[ListState | None, Sequence[Page]]:
        """Return the state and the numbered pages of a list. If the list changes meanwhile, both are read again."""
        sorted_numbers = sorted(set(numbers))
        for _ in range(READ_AGAIN_MAX):
            row = await reading.read_row(self.link, name)
            if row is None or row.lost:
                return None, []
            with suppress(StoreChanged):
                pages = await reading.read_each(self.link, row, row.page_set, sorted_numbers)
                return row.state, [page for page in pages if not page.is_empty]
        raise StoreChanged(f"list {name} changed {READ_AGAIN_MAX} times while its pages were read")

    async def changes(self, name: str, after: int) -> Sequence[ListChange] | None:
        row = await reading.read_row(self.link, name)
        entries = await self.link.execute("XRANGE", reading.key(name, "changes"), f"({after}-0", "+")
        changes = []
        with self.link.decoding():
            for entry_id, fields in entries:
                generation = int(entry_id.partition(b"-")[0])
                changes.append(decode_change(int(fields[b"before"]), generation, fields.get(b"pages")))
        current = 0 if row is None else row.generation
        return contiguous_changes(changes, after, current)

    async def wait(self, seen: Mapping[str, int], timeout_s: float) -> None:
        """Wait for a new entry in the change streams of the lists (XREAD with BLOCK), or for the timeout.

        The ID of an entry is a generation, so an entry that was added before the call is also found.
        """
        if not seen:
            await asyncio.sleep(timeout_s)
            return
        # In a cluster a command must stay in one slot, so each list needs a command of its own.
        groups = [{name: generation} for name, generation in seen.items()] if self.link.clustered else [seen]
        tasks = [asyncio.create_task(self._next_entries(group, timeout_s)) for group in groups]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            entries = [task.result() for task in done]
        except StoreError as error:
            if error.cause != "corrupt":
                raise
            # The change log of one list is damaged; the others may have changed, so the caller reads all states.
            entries = []
            await asyncio.sleep(timeout_s)
        finally:
            await _cancel_all(tasks)
        if any(entries) and entries == self._last_wait:  # the state of this entry was not written
            await asyncio.sleep(min(UNCHANGED_PAUSE_S, timeout_s))
        self._last_wait = entries

    async def _next_entries(self, seen: Mapping[str, int], timeout_s: float) -> Any:
        streams = [reading.key(name, "changes") for name in seen]
        last_ids = [f"{generation}-0" for generation in seen.values()]
        timeout_ms = max(1, int(timeout_s * 1000))
        command = ("XREAD", "COUNT", 1, "BLOCK", timeout_ms, "STREAMS", *streams, *last_ids)
        return await self.link.execute(*command, key=streams[0])

    async def claim(self, what: str, who: str, ttl_s: float) -> bool:
        key, ttl_ms = f"eir:claim:{what}", int(ttl_s * 1000)
        return await self.link.run(key, lambda client: _claim(client, key, who, ttl_ms))

    async def record(self, event: Event) -> None:
        """Append an event to the history in one EXEC.

        If the answer is lost, the event may be appended twice.
        """
        await history.append(self.link, event)

    async def append_pending(self) -> None:
        for row in await self._pending():
            await writing.append_pending(self.link, row)

    async def _pending(self) -> list[reading.ListRow]:
        """Return the rows of the lists whose last write is missing in the history."""
        rows = [await reading.read_row(self.link, name, past=True) for name in await self._names()]
        return await self._still_pending([row for row in rows if row is not None and row.event is not None])

    async def _still_pending(self, rows: Sequence[reading.ListRow]) -> list[reading.ListRow]:
        """Return those rows whose write is missing in the history, and was the last one of its list until now."""
        appended = await history.read_appended(self.link, [row.name for row in rows])
        missing = [row for row in rows if row.change != appended[row.name]]
        # If Redis has lost a list, it has no write, and the row has the only copy of the event.
        return [row for row in missing if await reading.read_change(self.link, row.name) in {None, row.change}]

    async def history(
        self, name: str | None = None, *, limit: int | None = None, since: str | None = None, chain: str | None = None
    ) -> Sequence[Event]:
        """Return events of the history, followed by the events of list writes that are not yet appended to the history."""
        while True:
            pending = await self._pending()
            events = await history.read_history(self.link, name, since, limit, chain)
            if len(await self._still_pending(pending)) == len(pending):  # none was appended meanwhile
                break
        for event in (row.event for row in pending):
            if event is not None and name in {None, event.list} and chain in {None, event.chain}:
                events.append(event)
        return events if limit is None else events[-limit:]

    async def ledger(self, chain: str = MAIN) -> Ledger:
        stored_chain = await history.read_chain(self.link, chain)
        return stored_chain.ledger

    def records(self, after: int = 0, chain: str = MAIN) -> AsyncIterator[Sequence[Record]]:
        return history.read_records(self.link, after, chain)

    async def folds(self) -> Sequence[Fold]:
        return await history.read_folds(self.link)

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
        """Replace the records of a history chain after record number `after` by the records of `batches`, in one EXEC.

        If records are replaced, the new chain is staged first. Records that are only appended are not staged.
        """
        await history.rewrite(self.link, batches, folds, after=after, seen=seen, exact=exact, chain=chain)

    async def trim_history(self, until: str, bytes_max: int | None, event: Event | None, chain: str = MAIN) -> int:
        """Delete the oldest records of a history chain by the limits `until` and `bytes_max`, and append `event`, which must not be None.

        The command that appends the event also trims the stream, so the Redis user needs no further permission.
        """
        if event is None:
            raise StoreError("error", "an event is required to trim the history in Redis")
        return await history.trim(self.link, until, bytes_max, event, chain)

    async def outcomes(self) -> Sequence[OutcomeCount]:
        return await history.read_outcomes(self.link)

    async def newer(self) -> str | None:
        return await history.newer(self.link)

    async def close(self) -> None:
        await self.link.close()


async def _cancel_all(tasks: Sequence[asyncio.Task[object]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _claim(client: Any, key: str, who: str, ttl_ms: int) -> bool:
    """Claim, renew or (with `ttl_ms` 0) release a lease; return False if another node has it."""
    if ttl_ms > 0 and await client.execute_command("SET", key, who, "NX", "PX", ttl_ms):
        return True
    async with client.pipeline(transaction=True) as pipe:
        await pipe.watch(key)
        holder = await pipe.execute_command("GET", key)
        if holder != who.encode():
            return False
        pipe.multi()
        if ttl_ms > 0:
            pipe.execute_command("PEXPIRE", key, ttl_ms)
        else:
            pipe.execute_command("DEL", key)
        with suppress(WatchError):
            await pipe.execute()
            return True
    return False

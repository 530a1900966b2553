"""The store for many nodes: Redis (7 or later) or Valkey, alone, under Sentinel, or as a cluster. Imports only eir.lists, errors, stores.

Everything of a list is under one hash tag, so it is one slot of a cluster and one transaction can change it:

    eir:{LIST}:state      hash: state (JSON), generation, set (ID of the set in force), fields (how many that has),
                          change (random for each write), previous (JSON: what a rollback puts in force; absent: nothing)
    eir:{LIST}:set:ID     hash: page number → keys, and where a page has `extra`, NUMBER+ → extra
    eir:{LIST}:kept:ID    hash of the same form: pages as they were before the last delta (nothing in them: there was none)
    eir:{LIST}:written    a mark, with an expiry, that shows whether a replica has what was written before it
    eir:{LIST}:changes    stream, trimmed: entry GENERATION-0 with before, pages (8 bytes each, little-endian; absent: all)
    eir:lists             set: names of lists
    eir:{history}:events  stream, trimmed;  eir:{history}:outcomes  hash: [list, outcome] → how often, and when last
    eir:claim:WHAT        who has the sole right to do something, with an expiry

A load fills a new set that expires unless it is put in force; that is one EXEC on condition that neither the state nor the
set changed. Whether an EXEC whose answer was lost was done shows in `change`. What a worker needs may be narrow: it reads
by HMGET, HSCAN, HLEN, XRANGE, XREAD, SMEMBERS, INFO only.
"""

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from redis.exceptions import WatchError

from eir.errors import Report, StoreChanged, silent
from eir.lists.pages import Page
from eir.lists.store import HISTORY_MAX, Change, Event, ListState, Outcome
from eir.stores.records import decode_change, decode_event, encode
from eir.stores.redis import reading, writing
from eir.stores.redis.link import Link
from eir.stores.redis_url import parse_url
from eir.stores.write import Batches, PageSetStore, Wanted, without_gap

EVENTS, OUTCOMES = "eir:{history}:events", "eir:{history}:outcomes"

BATCH_BYTES = 1 << 16
"""What is read at a time: taking it apart holds the interpreter for less than half a millisecond."""
BATCHES_AHEAD = 2
"""Read while the caller uses the one before, so that one is on its way and one has come."""
READ_AGAIN_MAX = 5
UNCHANGED_PAUSE_S = 0.1


class RedisStore(PageSetStore):
    """Implements eir.lists.store.ListStore on Redis. Connects when first asked. `report` hears of what is not an error.

    Raises StoreError (`url`) for a URL that is not one of eir.stores.redis_url, see there also for `check`.
    """

    def __init__(self, url: str, *, report: Report = silent, check: bool = True) -> None:
        self._link = Link(parse_url(url, check=check), report)
        self._told: list[Any] = []
        """What the last wait ended with."""

    async def _stored(self, name: str) -> reading.Row | None:
        return await reading.read_row(self._link, name)

    async def states(self) -> Mapping[str, ListState]:
        """Of all names that were ever written."""
        with self._link.as_written():
            names = sorted(name.decode() for name in await self._link.do("SMEMBERS", writing.LISTS))
        rows = [await reading.read_row(self._link, name) for name in names]
        return {row.name: row.state for row in rows if row is not None and not row.lost}

    async def _check_room(self, name: str, pages: Sequence[Page], *, amends: bool) -> None:
        await writing.make_room(self._link, name, pages, amends=amends)

    async def _write(self, name: str, seen: int, wanted: Wanted | None, whole: Batches | None = None) -> ListState:
        return await writing.write(self._link, name, seen, wanted, whole)

    async def pages(self, name: str, *, gently: bool = False) -> AsyncIterator[tuple[ListState, Sequence[Page]]]:  # noqa: ARG002  # batches have but one size
        """The next batch is read while the caller uses this one. All are small enough for a process that answers meanwhile."""
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
                    ahead.append(asyncio.create_task(reading.read_pages(self._link, row, row.page_set, part, plain=plain)))
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
        tasks = [asyncio.create_task(self._next_entry({name: seen[name] for name in names}, timeout_s)) for names in groups]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            told = [task.result() for task in done]
        finally:
            await _end(tasks)
        if any(told) and told == self._told:  # an entry without the state that belongs to it
            await asyncio.sleep(min(UNCHANGED_PAUSE_S, timeout_s))
        self._told = told

    async def _next_entry(self, seen: Mapping[str, int], timeout_s: float) -> Any:
        streams, after = [reading.key(name, "changes") for name in seen], [f"{generation}-0" for generation in seen.values()]
        block = ("XREAD", "COUNT", 1, "BLOCK", max(1, int(timeout_s * 1000)), "STREAMS", *streams, *after)
        return await self._link.do(*block, key=streams[0])

    async def claim(self, what: str, who: str, ttl_s: float) -> bool:
        claim = f"eir:claim:{what}"
        return await self._link.call(claim, lambda client: _claim(client, claim, who, int(ttl_s * 1000)))

    async def record(self, event: Event) -> None:
        """One EXEC. If the answer is lost, the event may be there twice."""
        about = json.dumps([event.list, event.outcome])
        await self._link.do_all(
            ("XADD", EVENTS, "MAXLEN", HISTORY_MAX, "*", "event", encode(event)),
            ("HINCRBY", OUTCOMES, f"count:{about}", 1),
            ("HSET", OUTCOMES, f"last:{about}", event.time),
            transaction=True,
        )

    async def history(self, name: str | None = None, limit: int = HISTORY_MAX) -> Sequence[Event]:
        entries = await self._link.do("XREVRANGE", EVENTS, "+", "-", *(() if name else ("COUNT", limit)))
        with self._link.as_written():
            events = [decode_event(found[b"event"]) for _, found in entries]
        return [event for event in events if name is None or event.list == name][:limit][::-1]

    async def outcomes(self) -> Sequence[Outcome]:
        found: dict[bytes, bytes] = await self._link.do("HGETALL", OUTCOMES)
        counted = [field.removeprefix(b"count:") for field in sorted(found) if field.startswith(b"count:")]
        with self._link.as_written():
            return [
                Outcome(name, outcome, int(found[b"count:" + about]), found.get(b"last:" + about, b"").decode())
                for about in counted for name, outcome in [json.loads(about)]
            ]  # fmt: skip

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

"""The store for many nodes: Redis (7 or later) or Valkey, alone, under Sentinel, or as a cluster. Imports eir.lists, errors.

Everything of a list is under one hash tag, so it is one slot of a cluster and one transaction can change it:

    eir:{LIST}:state      hash: state (JSON), generation, set (ID of the set in force), fields (how many that has),
                          change (random for each write), previous (JSON: what a rollback puts in force; absent: nothing)
    eir:{LIST}:set:ID     hash: page number → keys, and where a page has `extra`, NUMBER+ → extra
    eir:{LIST}:kept:ID    hash of the same form: pages as they were before the last delta (nothing in them: there was none)
    eir:{LIST}:changes    stream, trimmed: entry GENERATION-0 with before, pages (8 bytes each, little-endian; absent: all)
    eir:lists             set: names of lists
    eir:{history}:events  stream, trimmed;  eir:{history}:outcomes  hash: [list, outcome] → how often, and when last
    eir:claim:WHAT        who has the sole right to do something, with an expiry

A load fills a new set that expires unless it is put in force; that is one EXEC on condition that neither the state nor the
set changed. Whether an EXEC whose answer was lost was done shows in `change`. What a worker needs may be narrow: it reads
by HMGET, HSCAN, HLEN, XRANGE, XREAD, SMEMBERS, INFO only.
"""

import asyncio
import dataclasses
import functools
import json
import secrets
from array import array
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

import numpy as np
import redis.exceptions as fault

from eir.errors import GenerationConflict, NothingToRollBack, Report, StoreChanged, StoreError, silent
from eir.lists.pages import Page
from eir.lists.store import HISTORY_MAX, Change, Event, ListState, Outcome
from eir.stores.records import decode_event, decode_state, encode
from eir.stores.redis_url import Connections, parse_url

T = TypeVar("T")

STAGING_S = 600
"""A set that is being filled expires when nothing was added for so long."""
PREVIOUS_S = 30 * 24 * 3600
"""How long what a rollback needs is kept."""
CHANGES_MAX = 100
CHANGE_PAGES_MAX = 1 << 16
"""A step that touched more pages is kept as one that replaced all."""
PORTION_PAGES, PORTION_BYTES = 1_000, 1 << 20
"""What one command of a load writes at most: Redis answers nobody else meanwhile."""
BATCH_PAGES_MAX, BATCH_BYTES = 500, 1 << 16
"""What is read at a time: taking it apart holds the interpreter for less than half a millisecond."""
BATCHES_AHEAD = 2
"""Read while the caller uses the one before, so that one is on its way and one has come."""
SCAN_COUNT = 1_000
"""Names of pages that are asked for at a time."""
READ_AGAIN_MAX = 5
UNCHANGED_PAUSE_S = 0.1
REPLICA_WAIT_MS = 1_000
POLICY_SAFE = "noeviction"

CAUSES: tuple[tuple[type[Exception], str], ...] = (
    (fault.BusyLoadingError, "loading"),
    (fault.AuthenticationError, "noauth"),
    (fault.AuthorizationError, "noauth"),
    (fault.NoPermissionError, "noperm"),
    (fault.ReadOnlyError, "readonly"),
    (fault.OutOfMemoryError, "oom"),
    (fault.MasterDownError, "masterdown"),
    (fault.ClusterDownError, "clusterdown"),
    (fault.TryAgainError, "clusterdown"),
    (fault.RedisClusterException, "clusterdown"),
    (fault.MaxConnectionsError, "connections"),
    (fault.TimeoutError, "timeout"),
    (fault.ConnectionError, "refused"),
    (fault.ResponseError, "error"),
    (fault.RedisError, "error"),
    (OSError, "refused"),
)
"""The first that fits; the more special ones come first."""
WORDS = {"LOADING": "loading", "NOAUTH": "noauth", "WRONGPASS": "noauth", "NOPERM": "noperm", "READONLY": "readonly",
         "OOM": "oom", "MASTERDOWN": "masterdown", "CLUSTERDOWN": "clusterdown", "MISCONF": "misconf",
         "NOREPLICAS": "noreplicas"}  # fmt: skip
"""Error replies by their first word, where redis has no class of its own or wraps them in another."""


class _Keys(NamedTuple):
    """The keys of one list."""

    state: str
    changes: str
    base: str

    def set(self, page_set: str) -> str:
        return f"{self.base}:set:{page_set}"

    def kept(self, kept: str) -> str:
        return f"{self.base}:kept:{kept}"


def _keys(name: str) -> _Keys:
    base = f"eir:{{{name}}}"
    return _Keys(f"{base}:state", f"{base}:changes", base)


LISTS = "eir:lists"
EVENTS, OUTCOMES = "eir:{history}:events", "eir:{history}:outcomes"


class _Row(NamedTuple):
    """The state hash of a list; `lost`: its pages are not there any more."""

    state: ListState
    page_set: str
    fields: int
    change: bytes
    previous: dict[str, Any] | None
    lost: bool


class RedisStore:
    """Implements eir.lists.store.ListStore on Redis. Connects when first asked. `report` hears of what is not an error."""

    def __init__(self, url: str, *, report: Report = silent) -> None:
        address = parse_url(url)
        self.where = str(address)
        self._connections = Connections(address)
        self._report = report
        self._known: set[str] = set()
        self._greeted = False
        self._scans_names = True
        """HSCAN can leave out the values, as far as is known."""

    # The contract

    async def state(self, name: str) -> ListState | None:
        """From the state hash; None too if the pages that it points to are gone."""
        row = await self._call(self._row, name)
        return None if row is None or row.lost else row.state

    async def previous(self, name: str) -> ListState | None:
        """From the state hash; whether its pages are still there shows in the rollback."""
        row = await self._call(self._row, name)
        return None if row is None or row.lost or row.previous is None else decode_state(json.dumps(row.previous["state"]))

    async def states(self) -> Mapping[str, ListState]:
        """Of all names that were ever written or asked for."""
        names = await self._call(self._names)
        rows = await asyncio.gather(*(self._call(self._row, name) for name in names))
        return {name: row.state for name, row in zip(names, rows, strict=True) if row is not None and not row.lost}

    async def replace(self, name: str, state: ListState, pages: Sequence[Page], *, seen: int) -> ListState:
        """Staged in a set of its own that expires, then put in force by one EXEC."""
        return await self._call(self._replace, name, state, pages, seen)

    async def amend(self, name: str, state: ListState, pages: Sequence[Page], *, seen: int) -> ListState:
        """One EXEC; the touched pages as they were are staged before it."""
        return await self._call(self._amend, name, state, pages, seen)

    async def rollback(self, name: str, *, seen: int) -> ListState:
        """One EXEC: points back to the set before, or puts the touched pages back."""
        return await self._call(self._roll_back, name, seen)

    async def restore(
        self, name: str, state: ListState, batches: AsyncIterable[Sequence[Page]], *, seen: int, whole: bool = True
    ) -> None:
        """As `replace` (whole) or `amend`, with the state as given and nothing kept."""
        await self._call(self._restore if whole else self._restore_pages, name, state, batches, seen)

    async def pages(self, name: str, *, gently: bool = False) -> AsyncIterator[tuple[ListState, Sequence[Page]]]:  # noqa: ARG002  # batches have but one size
        """The next batch is read while the caller uses this one. All are small enough for a process that answers meanwhile."""
        row = await self._call(self._row, name)
        if row is None or row.lost:
            return
        numbers = await self._call(self._numbers, name, row)
        if not len(numbers):
            yield row.state, []
        read = functools.partial(self._read, name, row, plain=len(numbers) == row.fields)
        at, count = 0, 32
        ahead: deque[asyncio.Task[list[Page]]] = deque()
        try:
            while ahead or at < len(numbers):
                while len(ahead) < BATCHES_AHEAD and at < len(numbers):
                    part = numbers[at : at + count].tolist()
                    ahead.append(asyncio.create_task(self._call(read, part)))
                    at += len(part)
                batch = await ahead[0]
                ahead.popleft()
                size = sum(len(page.keys) + len(page.extra) for page in batch) // (len(batch) + 1)
                count = min(max(BATCH_BYTES // (size + 1), 1), BATCH_PAGES_MAX)
                yield row.state, batch
        finally:
            for task in ahead:
                task.cancel()
            await asyncio.gather(*ahead, return_exceptions=True)

    async def some_pages(self, name: str, numbers: Sequence[int]) -> tuple[ListState | None, Sequence[Page]]:
        """Read in parts that must all be of one generation, again if they are not."""
        for _ in range(READ_AGAIN_MAX):
            row = await self._call(self._row, name)
            if row is None or row.lost:
                return None, []
            with suppress(StoreChanged):
                return row.state, await self._call(self._read_all, name, row, sorted(set(numbers)))
        raise StoreChanged(f"list {name} changed {READ_AGAIN_MAX} times while its pages were read")

    async def changes(self, name: str, after: int) -> Sequence[Change] | None:
        """From the stream; the last CHANGES_MAX steps are kept."""
        return await self._call(self._changes, name, after)

    async def wait(self, seen: Mapping[str, int], timeout_s: float) -> None:
        """Reads the streams of changes with BLOCK; entries are numbered by generation, so none is missed."""
        self._known.update(seen)
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_s
        while (left := end - loop.time()) > 0:
            if not seen:
                await asyncio.sleep(left)
                return
            await self._call(self._block, seen, left)
            if await self._call(self._differ, seen):
                return
            # An entry without the state that belongs to it, or nothing at all until the time was over.
            await asyncio.sleep(max(0.0, min(UNCHANGED_PAUSE_S, end - loop.time())))

    async def claim(self, what: str, who: str, ttl_s: float) -> bool:
        """A key with an expiry."""
        return await self._call(self._claim, what, who, ttl_s)

    async def record(self, event: Event) -> None:
        """One EXEC. If the answer is lost, the event may be there twice."""
        await self._call(self._record, event)

    async def history(self, name: str | None = None, limit: int = HISTORY_MAX) -> Sequence[Event]:
        """From the stream of events."""
        return await self._call(self._history, name, limit)

    async def outcomes(self) -> Sequence[Outcome]:
        """From a hash of counts."""
        return await self._call(self._outcomes)

    async def close(self) -> None:
        """Close all connections."""
        await self._connections.close()

    # Errors, and what is looked at once

    async def _call(self, operation: Callable[..., Awaitable[T]], *args: object) -> T:
        """Run an operation with redis's errors as StoreError; once more where a cluster has moved the slot."""
        try:
            try:
                return await _heeding(operation(*args))
            except fault.AskError:  # MovedError too: the slot is elsewhere
                await self._connections.learn()
                return await _heeding(operation(*args))
        except (fault.RedisError, fault.RedisClusterException, OSError) as error:
            if isinstance(error, (fault.ConnectionError, fault.TimeoutError, fault.RedisClusterException, OSError)):
                await self._connections.learn()
            raise StoreError(_cause(error), f"Redis ({self.where}): {error}") from error
        except (ValueError, KeyError) as error:  # someone else wrote there, or another version of this program
            raise StoreError("corrupt", f"Redis ({self.where}): not what EIR writes there: {error!r}") from error

    async def _client(self, key: str) -> Any:
        client: Any = await self._connections.to(key)
        if not self._greeted:
            self._greeted = True  # others that ask at the same time do not look too
            try:
                await self._greet(client)
            except fault.NoPermissionError:
                pass
            except BaseException:
                self._greeted = False
                raise
        return client

    async def _greet(self, client: Any) -> None:
        memory = await client.info("memory")
        policy = memory.get("maxmemory_policy", POLICY_SAFE)
        if policy != POLICY_SAFE:
            self._report(
                "store_may_evict", level="warning", reason=str(policy),
                detail=f"Redis may drop lists when its memory is full; set maxmemory-policy {POLICY_SAFE}",
            )  # fmt: skip

    async def _do(self, command: str, key: str, *args: object, **options: object) -> Any:
        client = await self._client(key)
        return await _heeding(client.execute_command(command, key, *args, **options))

    # Reading

    async def _names(self) -> list[str]:
        found = await self._do("SMEMBERS", LISTS)
        self._known.update(name.decode() for name in found)
        return sorted(self._known)

    async def _row(self, name: str) -> _Row | None:
        keys = _keys(name)
        found = await self._do("HMGET", keys.state, "state", "set", "fields", "change", "previous")
        text, page_set, fields, change, previous = found
        if text is None or page_set is None or change is None:
            return None
        count = int(fields or 0)
        there = await self._do("HLEN", keys.set(page_set.decode()))
        if there != count:
            # Between the two commands another set may have come into force; only a state that stays has lost its set.
            (again,) = await self._do("HMGET", keys.state, "change")
            if again != change:
                return await self._row(name)
        return _Row(
            decode_state(text), page_set.decode(), count, change, json.loads(previous) if previous else None, there != count
        )

    async def _numbers(self, name: str, row: _Row) -> "np.ndarray[Any, np.dtype[np.int64]]":
        """The numbers of all pages in order. A scan may give a name twice."""
        keys, cursor, numbers = _keys(name), 0, []
        while True:
            cursor, names = await self._scan(keys.set(row.page_set), cursor)
            numbers.append(np.array([each for each in names if each[-1:] != b"+"], dtype=np.int64))
            if not cursor:
                break
        _check_unchanged(name, row, *await self._do("HMGET", keys.state, "change"))
        found: np.ndarray[Any, np.dtype[np.int64]] = np.concatenate(numbers)
        await asyncio.to_thread(found.sort)  # 10 ms for 250 thousand, without the interpreter's lock
        return found[np.flatnonzero(np.diff(found, prepend=-1))]

    async def _scan(self, key: str, cursor: int) -> tuple[int, Iterable[bytes]]:
        """Names of a hash's fields from a cursor on, and the next cursor. Before Redis 7.4 the values come with them."""
        if self._scans_names:
            try:
                return await self._do("HSCAN", key, cursor, "COUNT", SCAN_COUNT, "NOVALUES", no_values=True)  # type: ignore[no-any-return]
            except fault.ResponseError as error:
                if "syntax" not in str(error):
                    raise
                self._scans_names = False
        return await self._do("HSCAN", key, cursor, "COUNT", SCAN_COUNT)  # type: ignore[no-any-return]

    async def _read(self, name: str, row: _Row, numbers: Sequence[int], *, plain: bool = False) -> list[Page]:
        """Numbered pages, those that exist; `plain`: none has an `extra`. Raises StoreChanged.

        A set changes together with the state's `change`: as long as that is the same behind them, so are the pages.
        """
        asked = _names_of(numbers, plain=plain)
        keys = _keys(name)
        client = await self._client(keys.state)
        async with client.pipeline(transaction=False) as pipe:
            pipe.execute_command("HMGET", keys.set(row.page_set), *asked)
            pipe.execute_command("HMGET", keys.state, "change")
            found, (change,) = await _heeding(pipe.execute())
        _check_unchanged(name, row, change)
        return _pages(numbers, found, plain=plain)

    async def _read_all(self, name: str, row: _Row, numbers: Sequence[int]) -> list[Page]:
        pages = []
        for at in range(0, len(numbers), BATCH_PAGES_MAX):
            pages += await self._read(name, row, numbers[at : at + BATCH_PAGES_MAX])
        return pages

    async def _changes(self, name: str, after: int) -> Sequence[Change] | None:
        row = await self._row(name)
        current = 0 if row is None or row.lost else row.state.generation
        if after > current:
            return None
        entries = await self._do("XRANGE", _keys(name).changes, f"({after}-0", "+")
        steps, reached = [], after
        for entry, found in entries:
            before, end, pages = int(found[b"before"]), int(entry.partition(b"-")[0]), found.get(b"pages")
            if before != reached:
                return None
            steps.append(Change(before, end, None if pages is None else tuple(array("Q", pages))))
            reached = end
        return steps if reached >= current else None

    async def _differ(self, seen: Mapping[str, int]) -> bool:
        async def generation(name: str) -> int:
            (found,) = await self._do("HMGET", _keys(name).state, "generation")
            return int(found or 0)

        found = await asyncio.gather(*(generation(name) for name in seen))
        return any(there != known for there, known in zip(found, seen.values(), strict=True))

    async def _block(self, seen: Mapping[str, int], timeout_s: float) -> None:
        """Wait for an entry in any of the streams. In a cluster, each has its own connection."""
        groups: dict[Any, list[str]] = {}
        for name in seen:
            client = await self._client(_keys(name).state)
            groups.setdefault(client, []).append(name)
        if self._connections.clustered:  # one command, one slot
            reads = [self._read_streams(client, [name], seen, timeout_s) for client, names in groups.items() for name in names]
        else:
            reads = [self._read_streams(client, names, seen, timeout_s) for client, names in groups.items()]
        tasks = [asyncio.create_task(read) for read in reads]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    @staticmethod
    async def _read_streams(client: Any, names: Sequence[str], seen: Mapping[str, int], timeout_s: float) -> None:
        streams = [_keys(name).changes for name in names]
        after = [f"{seen[name]}-0" for name in names]
        milliseconds = max(1, int(timeout_s * 1000))
        await client.execute_command("XREAD", "COUNT", 1, "BLOCK", milliseconds, "STREAMS", *streams, *after)

    # Writing

    async def _stage(self, key: str, pages: Sequence[Page], *, keep_empty: bool = False) -> int:
        """Add pages to a hash that expires; returns how many fields these are."""
        client = await self._client(key)
        count = 0
        for fields in _portions(pages, keep_empty=keep_empty):
            async with client.pipeline(transaction=False) as pipe:
                pipe.execute_command("HSET", key, *fields)
                pipe.execute_command("EXPIRE", key, STAGING_S)
                await _heeding(pipe.execute())
            count += len(fields) // 2
        return count

    async def _start(self, name: str, seen: int) -> _Row | None:
        """What is in force, if it is what the caller saw."""
        row = await self._row(name)
        _check_generation(row, name, seen)
        await self._do("SADD", LISTS, name)
        return row

    async def _commit(
        self, name: str, row: _Row | None, staged: str | None, count: int, write: Callable[[Any, bytes], None]
    ) -> None:
        """EXEC what `write` queues, if the state is still what `row` says and `staged` has `count` fields."""
        keys = _keys(name)
        before, change = None if row is None else row.change, secrets.token_hex(8).encode()
        client = await self._client(keys.state)
        async with client.pipeline(transaction=True) as pipe:
            try:
                await pipe.watch(keys.state, *([keys.set(row.page_set)] if row is not None else []), *([staged] if staged else []))
                (now,) = await pipe.execute_command("HMGET", keys.state, "change")
                if now != before:
                    raise _overtaken(name, before, now)
                if staged and await pipe.execute_command("HLEN", staged) != count:
                    raise _overtaken(name, before, before)
                pipe.multi()
                write(pipe, change)
                await pipe.execute()
            except (fault.WatchError, fault.ConnectionError, fault.TimeoutError, OSError) as error:
                # An EXEC whose answer is lost may have been done all the same.
                (now,) = await self._do("HMGET", keys.state, "change")
                if now != change:
                    raise (
                        _overtaken(name, before, now)
                        if isinstance(error, fault.WatchError)
                        else StoreError("refused", f"Redis ({self.where}) was lost in the middle of the switch; nothing was written")
                    ) from error
        await self._replicate(client)

    async def _replicate(self, client: Any) -> None:
        """Give a replica a moment to have it too; a write that only the master has is reported."""
        with suppress(fault.RedisError):
            replication = await client.info("replication")
            if int(replication.get("connected_slaves", 0)) and not await client.execute_command("WAIT", 1, REPLICA_WAIT_MS):
                self._report(
                    "store_not_replicated", level="warning",
                    detail=f"no replica had the change within {REPLICA_WAIT_MS} ms; a failover now would lose it",
                )  # fmt: skip

    async def _replace(self, name: str, state: ListState, pages: Sequence[Page], seen: int) -> ListState:
        row = await self._start(name, seen)
        keys, page_set = _keys(name), secrets.token_hex(8)
        count = await self._stage(keys.set(page_set), pages)
        stored = _next_state(state, row)
        previous = None if row is None or row.lost else _previous(row.state, row.page_set, row.fields, whole=True)

        def write(pipe: Any, change: bytes) -> None:
            _put_state(pipe, keys, stored, page_set=page_set, fields=count, change=change, previous=previous)
            pipe.execute_command("PERSIST", keys.set(page_set))
            if row is not None:
                pipe.execute_command("EXPIRE", keys.set(row.page_set), PREVIOUS_S)
                _drop_previous(pipe, keys, row)
            _add_change(pipe, keys, Change(seen, stored.generation, None), anew=row is None or row.lost)

        await self._commit(name, row, keys.set(page_set) if count else None, count, write)
        return stored

    async def _amend(self, name: str, state: ListState, pages: Sequence[Page], seen: int) -> ListState:
        row = await self._start(name, seen)
        if row is None or row.lost:
            return await self._begin_by_amending(name, state, pages, row)
        keys, kept = _keys(name), secrets.token_hex(8)
        before = {page.number: page for page in await self._read_all(name, row, sorted({page.number for page in pages}))}
        kept_pages = [before.get(page.number) or Page(page.number, b"") for page in pages]
        kept_count = await self._stage(keys.kept(kept), kept_pages, keep_empty=True)
        stored = _next_state(state, row)
        count = row.fields + sum(map(_fields, pages)) - sum(map(_fields, before.values()))
        previous = _previous(row.state, kept, kept_count, whole=False)

        def write(pipe: Any, change: bytes) -> None:
            _overwrite(pipe, keys.set(row.page_set), pages)
            _put_state(pipe, keys, stored, page_set=row.page_set, fields=count, change=change, previous=previous)
            if kept_count:
                pipe.execute_command("EXPIRE", keys.kept(kept), PREVIOUS_S)
            _drop_previous(pipe, keys, row)
            _add_change(pipe, keys, Change(seen, stored.generation, tuple(page.number for page in pages)), anew=False)

        await self._commit(name, row, keys.kept(kept) if kept_count else None, kept_count, write)
        return stored

    async def _begin_by_amending(self, name: str, state: ListState, pages: Sequence[Page], row: _Row | None) -> ListState:
        """A list that is not there yet has nothing to keep."""
        keys, page_set = _keys(name), secrets.token_hex(8)
        count = await self._stage(keys.set(page_set), pages)
        stored = _next_state(state, row)
        touched = tuple(page.number for page in pages)

        def write(pipe: Any, change: bytes) -> None:
            _put_state(pipe, keys, stored, page_set=page_set, fields=count, change=change)
            pipe.execute_command("PERSIST", keys.set(page_set))
            _add_change(pipe, keys, Change(stored.generation - 1, stored.generation, touched), anew=True)

        await self._commit(name, row, keys.set(page_set) if count else None, count, write)
        return stored

    async def _roll_back(self, name: str, seen: int) -> ListState:
        row = await self._row(name)
        _check_generation(row, name, seen)
        if row is None or row.lost or row.previous is None:
            raise NothingToRollBack(f"no release of list {name} before the one in force is kept")
        keys = _keys(name)
        whole, other, count = row.previous["whole"], str(row.previous["set"]), int(row.previous["fields"])
        stored = _next_state(decode_state(json.dumps(row.previous["state"])), row)
        source = keys.set(other) if whole else keys.kept(other)
        if await self._do("HLEN", source) != count:
            raise NothingToRollBack(f"the release of list {name} before the one in force is no longer in Redis")
        kept = [] if whole else await self._kept_pages(source)
        before = await self._read_all(name, row, sorted(page.number for page in kept))
        fields = count if whole else row.fields + sum(map(_fields, kept)) - sum(map(_fields, before))

        def write(pipe: Any, change: bytes) -> None:
            if whole:
                if count:
                    pipe.execute_command("PERSIST", source)
                pipe.execute_command("UNLINK", keys.set(row.page_set))
            else:
                _overwrite(pipe, keys.set(row.page_set), kept)
                pipe.execute_command("UNLINK", source)
            _put_state(pipe, keys, stored, page_set=other if whole else row.page_set, fields=fields, change=change)
            touched = None if whole else tuple(page.number for page in kept)
            _add_change(pipe, keys, Change(seen, stored.generation, touched), anew=False)

        await self._commit(name, row, source if count else None, count, write)
        return stored

    async def _kept_pages(self, key: str) -> list[Page]:
        found: dict[bytes, bytes] = {}
        cursor = 0
        while True:
            cursor, fields = await self._do("HSCAN", key, cursor, "COUNT", BATCH_PAGES_MAX)
            found.update(fields)
            if not cursor:
                break
        return [
            Page(int(field), keys, found.get(field + b"+", b"")) for field, keys in found.items() if not field.endswith(b"+")
        ]

    async def _restore(self, name: str, state: ListState, batches: AsyncIterable[Sequence[Page]], seen: int) -> None:
        row = await self._start(name, seen)
        keys, page_set = _keys(name), secrets.token_hex(8)
        count = 0
        async for batch in batches:
            count += await self._stage(keys.set(page_set), batch)

        def write(pipe: Any, change: bytes) -> None:
            _put_state(pipe, keys, state, page_set=page_set, fields=count, change=change)
            pipe.execute_command("PERSIST", keys.set(page_set))
            if row is not None:
                pipe.execute_command("UNLINK", keys.set(row.page_set))
                _drop_previous(pipe, keys, row)
            pipe.execute_command("UNLINK", keys.changes)
            if state.generation > seen:
                _add_change(pipe, keys, Change(seen, state.generation, None), anew=True)

        await self._commit(name, row, keys.set(page_set) if count else None, count, write)

    async def _restore_pages(self, name: str, state: ListState, batches: AsyncIterable[Sequence[Page]], seen: int) -> None:
        row = await self._start(name, seen)
        pages = [page async for batch in batches for page in batch]
        if row is None or row.lost:
            await self._restore(name, state, _one_batch(pages), seen)
            return
        keys = _keys(name)
        before = await self._read_all(name, row, sorted({page.number for page in pages}))
        count = row.fields + sum(map(_fields, pages)) - sum(map(_fields, before))

        def write(pipe: Any, change: bytes) -> None:
            _overwrite(pipe, keys.set(row.page_set), pages)
            _put_state(pipe, keys, state, page_set=row.page_set, fields=count, change=change)
            _drop_previous(pipe, keys, row)
            _add_change(pipe, keys, Change(seen, state.generation, tuple(page.number for page in pages)), anew=False)

        await self._commit(name, row, None, 0, write)

    # History and claims

    async def _record(self, event: Event) -> None:
        about = json.dumps([event.list, event.outcome])
        client = await self._client(EVENTS)
        async with client.pipeline(transaction=True) as pipe:
            pipe.execute_command("XADD", EVENTS, "MAXLEN", HISTORY_MAX, "*", "event", encode(event))
            pipe.execute_command("HINCRBY", OUTCOMES, f"count:{about}", 1)
            pipe.execute_command("HSET", OUTCOMES, f"last:{about}", event.time)
            await pipe.execute()

    async def _history(self, name: str | None, limit: int) -> Sequence[Event]:
        entries = await self._do("XREVRANGE", EVENTS, "+", "-", *(() if name else ("COUNT", limit)))
        events = [decode_event(found[b"event"]) for _, found in entries]
        wanted = [event for event in events if name is None or event.list == name]
        return wanted[:limit][::-1]

    async def _outcomes(self) -> Sequence[Outcome]:
        found: dict[bytes, bytes] = await self._do("HGETALL", OUTCOMES)
        outcomes = []
        for field, count in sorted(found.items()):
            what, _, about = field.partition(b":")
            if what == b"count":
                last = found.get(b"last:" + about, b"").decode()
                name, outcome = json.loads(about)
                outcomes.append(Outcome(name, outcome, int(count), last))
        return outcomes

    async def _claim(self, what: str, who: str, ttl_s: float) -> bool:
        key, client = f"eir:claim:{what}", await self._client("eir:claim:" + what)
        milliseconds = int(ttl_s * 1000)
        if ttl_s > 0 and await client.execute_command("SET", key, who, "NX", "PX", milliseconds):
            return True
        async with client.pipeline(transaction=True) as pipe:
            await pipe.watch(key)
            if await pipe.execute_command("GET", key) != who.encode():
                return False
            pipe.multi()
            if ttl_s > 0:
                pipe.execute_command("PEXPIRE", key, milliseconds)
            else:
                pipe.execute_command("DEL", key)
            try:
                await pipe.execute()
            except fault.WatchError:
                return False
        return True


async def _heeding(answer: Awaitable[T]) -> T:
    """What is awaited, unless this task was cancelled meanwhile.

    redis sends under asyncio.wait_for, which before Python 3.12 loses a cancellation that comes while the bytes go out: a
    worker would not end, and a timeout around it would not hold.
    """
    task = asyncio.current_task()
    before = 0 if task is None else task.cancelling()
    try:
        return await answer
    finally:
        if task is not None and task.cancelling() > before:
            raise asyncio.CancelledError


def _cause(error: Exception) -> str:
    first = str(error).partition(" ")[0]
    if first in WORDS:
        return WORDS[first]
    return next(cause for kind, cause in CAUSES if isinstance(error, kind))


async def _one_batch(pages: Sequence[Page]) -> AsyncIterator[Sequence[Page]]:
    yield pages


def _fields(page: Page) -> int:
    """Fields of a set's hash that the page takes."""
    return 0 if page.gone else 1 + bool(page.extra)


def _portions(pages: Iterable[Page], *, keep_empty: bool = False) -> Iterable[list[object]]:
    """Pages as arguments of HSET, a bounded number of them at a time."""
    fields: list[object] = []
    size = 0
    for number, keys, extra in pages:
        if not keys and not extra and not keep_empty:
            continue
        fields += [number, keys, f"{number}+", extra] if extra else [number, keys]
        size += len(keys) + len(extra)
        if size >= PORTION_BYTES or len(fields) >= 4 * PORTION_PAGES:
            yield fields
            fields, size = [], 0
    if fields:
        yield fields


def _names_of(numbers: Sequence[int], *, plain: bool) -> list[bytes]:
    """The fields of pages. As bytes: redis turns one number after another into such, for longer than all else takes."""
    if plain:
        return " ".join(map(str, numbers)).encode().split()
    return " ".join([f"{number} {number}+" for number in numbers]).encode().split()


def _pages(numbers: Sequence[int], found: Sequence[bytes | None], *, plain: bool) -> list[Page]:
    """What HMGET gave for pages, without those that are not there: their keys, and unless `plain` behind each its `extra`."""
    if plain:
        return [Page(number, keys) for number, keys in zip(numbers, found, strict=True) if keys]
    parts = zip(numbers, found[::2], found[1::2], strict=True)
    return [Page(number, keys or b"", extra or b"") for number, keys, extra in parts if keys or extra]


def _check_unchanged(name: str, row: _Row, change: bytes | None) -> None:
    if change != row.change:
        raise StoreChanged(f"list {name} changed while its pages were read")


def _overtaken(name: str, before: bytes | None, now: bytes | None) -> StoreError:
    """Why a switch cannot be: the list has another `change` than it had, or it has the same and what was staged went."""
    if now is None or now == before:
        return StoreError("staging_lost", f"pages of list {name} are no longer in Redis (flushed, evicted); nothing was written: load again")
    return GenerationConflict(f"list {name} was changed by someone else meanwhile")


def _check_generation(row: _Row | None, name: str, seen: int) -> None:
    current = 0 if row is None or row.lost else row.state.generation
    if current != seen:
        raise GenerationConflict(f"list {name} is at generation {current}, not {seen}: someone else changed it meanwhile")


def _next_state(state: ListState, row: _Row | None) -> ListState:
    """A state that lost its pages still tells the highest serial and the generation, which go on from there."""
    generation, highest = (row.state.generation, row.state.highest_serial) if row is not None else (0, 0)
    return dataclasses.replace(
        state, generation=generation + 1, highest_serial=max(state.serial, state.highest_serial, highest)
    )


def _previous(state: ListState, page_set: str, fields: int, *, whole: bool) -> str:
    return json.dumps({"state": json.loads(encode(state)), "set": page_set, "fields": fields, "whole": whole})


def _put_state(
    pipe: Any, keys: _Keys, state: ListState, *, page_set: str, fields: int, change: bytes, previous: str | None = None
) -> None:
    pipe.execute_command(
        "HSET", keys.state, "state", encode(state), "generation", state.generation, "set", page_set, "fields", fields,
        "change", change, *(("previous", previous) if previous is not None else ()),
    )  # fmt: skip
    if previous is None:
        pipe.execute_command("HDEL", keys.state, "previous")


def _drop_previous(pipe: Any, keys: _Keys, row: _Row) -> None:
    """Free what only the rollback needed that is now out of reach."""
    if row.previous is not None:
        other = str(row.previous["set"])
        pipe.execute_command("UNLINK", keys.set(other) if row.previous["whole"] else keys.kept(other))


def _overwrite(pipe: Any, key: str, pages: Sequence[Page]) -> None:
    for fields in _portions(pages):
        pipe.execute_command("HSET", key, *fields)
    gone: list[object] = []
    for page in pages:
        gone += [page.number] if page.gone else []
        gone += [] if page.extra else [f"{page.number}+"]
    for at in range(0, len(gone), PORTION_PAGES):
        pipe.execute_command("HDEL", key, *gone[at : at + PORTION_PAGES])


def _add_change(pipe: Any, keys: _Keys, change: Change, *, anew: bool) -> None:
    if anew:  # the stream may be of a list that lost its state, with entries of higher numbers, after which XADD fails
        pipe.execute_command("UNLINK", keys.changes)
    pages = change.pages
    told = () if pages is None or len(pages) > CHANGE_PAGES_MAX else ("pages", array("Q", pages).tobytes())
    pipe.execute_command(
        "XADD", keys.changes, "MAXLEN", CHANGES_MAX, f"{change.after}-0", "before", change.before, *told
    )

"""Store of logs in Redis, for several nodes.

Keys of a list, all in one slot of a cluster:

    eir:{LIST}:head       hash: the head, the digest of the newest change, the format
    eir:{LIST}:log        stream: each change; the ID of an entry is its generation
    eir:{LIST}:rows       stream: the rows of the changes whose rows are not in parts
    eir:{LIST}:parts      stream: the IDs of the parts that a change names
    eir:{LIST}:bases      stream: each change with a base
    eir:{LIST}:base:ID    list: parts; it expires unless a change names it
    eir:{LIST}:written    mark, with an expiry: a replica that has the mark also has all earlier writes

Further keys: `eir:lists`, the set of names, and `eir:lease:TASK`.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

import redis.exceptions as fault

from eir.errors import GenerationConflict, Report, StoreError, silent
from eir.lists.log.change import Head, encode
from eir.lists.log.store import BASES_KEPT, RECORDS_KEPT, STAGED_S, LogEntry, StoredHeads
from eir.lists.stores.records import (
    LOG_FORM,
    deletion,
    other_form,
    part_counts,
    staging_lost,
    stored_entries,
    stored_heads,
)
from eir.lists.stores.redis_link import REPLICA_WAIT_MS, RedisClient, check_free, replicate
from eir.lists.stores.redis_url import parse_url

LISTS = "eir:lists"
POLL_S = 0.02
"""Seconds between two reads of the digests while `wait` waits."""
PORTION_PARTS = 8
"""Number of parts in one command. Redis serves no other client during the command."""
ENTRIES_READ = 500
"""Number of changes that one command reads."""
ROWS_READ = 32
"""Number of entries with rows (up to eir.lists.log.writer.INLINE_BYTES_MAX each) that one command reads."""
DELETED = 1_000
"""Number of entries that one command deletes."""

COMMIT = """
for index, name in ipairs({'hash', 'stream', 'stream', 'stream', 'stream'}) do
  local kind = redis.call('TYPE', KEYS[index]).ok
  if kind ~= 'none' and kind ~= name then return 'type' end
end
local seen, digest, head, version, id, change, rows, ids, has_base, records, bases = unpack(ARGV, 1, 11)
local now, done = redis.call('HMGET', KEYS[1], 'digest')[1], redis.call('XRANGE', KEYS[2], id, id)[1]
if now and done and done[2][2] == change then return 'ok' end -- redis-py has sent the command again, because the answer was lost
if (now or string.rep('0', 64)) ~= seen then return 'conflict' end
for index = 6, #KEYS do
  if redis.call('LLEN', KEYS[index]) ~= tonumber(ARGV[index + 6]) then return 'staged' end
end
if not now then redis.call('UNLINK', KEYS[2], KEYS[3], KEYS[4], KEYS[5]) end
for index = 6, #KEYS do redis.call('PERSIST', KEYS[index]) end
redis.call('XADD', KEYS[2], 'MAXLEN', records, id, 'change', change)
if rows ~= '' then redis.call('XADD', KEYS[3], id, 'rows', rows) end
if ids ~= '' then redis.call('XADD', KEYS[4], id, 'ids', ids) end
if has_base == '1' then redis.call('XADD', KEYS[5], 'MAXLEN', bases, id, 'change', change) end
redis.call('HSET', KEYS[1], 'digest', digest, 'head', head, 'form', version)
return 'ok'
"""
CLAIM = """
local holder, ttl = redis.call('GET', KEYS[1]), tonumber(ARGV[2])
if holder and holder ~= ARGV[1] then return 0 end
if ttl > 0 then redis.call('SET', KEYS[1], ARGV[1], 'PX', ttl) else redis.call('UNLINK', KEYS[1]) end
return 1
"""


def _text(octets: bytes | None) -> str:
    return (octets or b"").decode(errors="replace")


def list_key(name: str, *what: str) -> str:
    """Return the name of a list's key, such as `eir:{stolen}:head`."""
    return ":".join((f"eir:{{{name}}}", *what))


class RedisStore:
    """Store of logs in Redis, which connects at the first call. It implements eir.lists.log.store.LogStore.

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

    async def heads(self) -> StoredHeads:
        stored = await self._head_fields("digest", "head", "form")
        await self._check_forms(stored)
        heads = dict[str, tuple[bytes | StoreError, str]]()
        for name, fields in stored.items():
            if isinstance(fields, StoreError):
                heads[name] = fields, ""
            elif fields[0] is not None:
                heads[name] = fields[1] or b"", _text(fields[0])
        return stored_heads(heads)

    async def _head_fields(self, *names: str) -> Mapping[str, Sequence[bytes | None] | StoreError]:
        """Return fields of the head of each list, or the error of a key with another type.

        Raises:
            StoreError: for each other error.
        """
        members = await self.link.execute("SMEMBERS", LISTS)
        with self.link.decoding():
            lists = sorted(name.decode() for name in members)
        return dict(zip(lists, await self._each_hash([list_key(name, "head") for name in lists], names), strict=True))

    async def _each_hash(
        self, keys: Sequence[str], fields: Sequence[str]
    ) -> Sequence[Sequence[bytes | None] | StoreError]:
        """Return fields of hashes, or the error of a key with another type."""
        replies = await self.link.execute_each(*(("HMGET", key, *fields) for key in keys))
        for reply in replies:
            if isinstance(reply, StoreError) and reply.cause != "corrupt":
                raise reply
        return replies

    async def _check_forms(self, stored: Mapping[str, Sequence[bytes | None] | StoreError]) -> None:
        """Raise StoreError (`schema`) if a list has another format. Formats up to 3 had the key `state` instead of `head`."""
        forms = [fields[2] for fields in stored.values() if not isinstance(fields, StoreError)]
        headless = [name for name, fields in stored.items() if not isinstance(fields, StoreError) and fields[2] is None]
        old = await self._each_hash([list_key(name, "state") for name in headless], ("form",))
        forms += [fields[0] for fields in old if not isinstance(fields, StoreError)]
        for form in forms:
            if form not in {None, str(LOG_FORM).encode()}:
                raise StoreError("schema", other_form(f"Redis ({self.link.where})", _text(form)))

    async def log(self, name: str, after: int) -> Sequence[LogEntry]:
        changes = dict(await self._entries(name, "bases", b"change", after))
        changes |= dict(await self._entries(name, "log", b"change", after))
        rows = dict(await self._entries(name, "rows", b"rows", after))
        return stored_entries((changes[generation], rows.get(generation)) for generation in sorted(changes))

    async def _entries(self, name: str, stream: str, field: bytes, after: int) -> list[tuple[int, bytes]]:
        """Read a field of all entries of a stream with generations above `after`, in portions."""
        found: list[tuple[int, bytes]] = []
        most = ROWS_READ if stream == "rows" else ENTRIES_READ
        while True:
            key = list_key(name, stream)
            entries = await self.link.execute("XRANGE", key, f"({after}-0", "+", "COUNT", most)
            with self.link.decoding():
                found += [(int(entry_id.partition(b"-")[0]), fields[field]) for entry_id, fields in entries]
            if len(entries) < most:
                return found
            after = found[-1][0]

    async def base(self, name: str, part_id: str) -> AsyncIterator[bytes]:
        key, number = list_key(name, "base", part_id), 0
        while parts := await self.link.execute("LRANGE", key, number, number + PORTION_PARTS - 1):
            for part in parts:
                yield part
            number += len(parts)

    async def stage(self, name: str, part_id: str, parts: Iterable[bytes]) -> int:
        key, number, each = list_key(name, "base", part_id), 0, iter(parts)
        try:
            while portion := await asyncio.to_thread(lambda: [*islice(each, PORTION_PARTS)]):
                await check_free(self.link, key, sum(map(len, portion)))
                await self.link.execute_all(("RPUSH", key, *portion), ("EXPIRE", key, STAGED_S))
                number += len(portion)
        except BaseException:
            with suppress(StoreError):
                await self.link.execute("UNLINK", key)
            raise
        return number

    async def commit(self, name: str, head: Head, entry: LogEntry, *, seen: str, oldest: int = 0) -> None:
        await self.link.execute("SADD", LISTS, name)
        outcome = await self.link.run(list_key(name, "head"), lambda client: self._run(client, name, head, entry, seen))
        match outcome:
            case "conflict":
                raise GenerationConflict(f"list {name} was changed by another process meanwhile")
            case "staged":
                raise staging_lost(name)
            case "type":
                raise StoreError(
                    "corrupt",
                    f"Redis ({self.link.where}): a key of list {name} has another type: another program wrote it",
                )
        with deletion(name, self.link.report):
            if oldest:
                await self._delete_before(name, oldest)

    async def _run(self, client: Any, name: str, head: Head, entry: LogEntry, seen: str) -> str:
        """Run the script of a commit; return its outcome. If the answer is lost, the stored log shows the outcome."""
        change = entry.change
        counts = part_counts(change)
        keys = [list_key(name, what) for what in ("head", "log", "rows", "parts", "bases")]
        keys += [list_key(name, "base", part_id) for part_id, _ in counts]
        values = (
            seen, head.digest, encode(head), LOG_FORM, f"{change.generation}-0", encode(change), entry.rows or b"",
            " ".join(change.part_ids), int(bool(change.base_id)), RECORDS_KEPT, BASES_KEPT, *(count for _, count in counts),
        )  # fmt: skip
        try:
            outcome: bytes = await client.execute_command("EVAL", COMMIT, len(keys), *keys, *values)
        except (fault.ConnectionError, fault.TimeoutError, OSError) as error:
            if change.digest not in {each.change.digest for each in await self.log(name, change.generation - 1)}:
                raise StoreError(
                    "refused", f"Redis ({self.link.where}) was lost during the commit; nothing was written"
                ) from error
            outcome = b"ok"
        if outcome == b"ok":
            await replicate(self.link, client, list_key(name, "written"))
        return outcome.decode()

    async def _delete_before(self, name: str, oldest: int) -> None:
        """Delete the rows and parts of changes with generations below `oldest`: parts first, then the entries that name them."""
        stream = list_key(name, "parts")
        while entries := await self.link.execute("XRANGE", stream, "-", f"({oldest}-0", "COUNT", DELETED):
            with self.link.decoding():
                ids = [part_id.decode() for _, fields in entries for part_id in fields[b"ids"].split()]
            await self.link.execute("UNLINK", *(list_key(name, "base", part_id) for part_id in ids))
            await self.link.execute("XDEL", stream, *(entry_id for entry_id, _ in entries))
        rows = list_key(name, "rows")
        while entries := await self.link.execute("XRANGE", rows, "-", f"({oldest}-0", "COUNT", 1):
            await self.link.execute("XTRIM", rows, "MINID", "~", f"{oldest}-0", "LIMIT", DELETED)
            await self.link.execute("XDEL", rows, *(entry_id for entry_id, _ in entries))

    async def wait(self, seen: Mapping[str, str], timeout_s: float) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while (rest_s := deadline - loop.time()) > 0:
            stored = await self._head_fields("digest")
            digests = {
                name: "" if isinstance(fields, StoreError) else _text(fields[0])
                for name, fields in stored.items()
                if isinstance(fields, StoreError) or fields[0] is not None
            }
            if digests != dict(seen):
                return
            await asyncio.sleep(min(POLL_S, rest_s))

    async def claim(self, task: str, who: str, ttl_s: float) -> bool:
        key = f"eir:lease:{task}"
        return bool(await self.link.execute("EVAL", CLAIM, 1, key, who, int(ttl_s * 1000), key=key))

    async def close(self) -> None:
        await self.link.close()

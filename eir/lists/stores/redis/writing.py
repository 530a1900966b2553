"""Writer of lists in Redis: pages are staged in hashes that expire, and one EXEC puts them in force."""

import json
import secrets
from asyncio import sleep
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from time import monotonic
from typing import Any, cast

import redis.exceptions as fault

from eir.errors import GenerationConflict, NothingToRollBack, StoreError
from eir.lists.pages.pages import Page
from eir.lists.record.store import Event, ListState
from eir.lists.stores.records import FORM, check_form, encode, encode_numbers, log_upgrade
from eir.lists.stores.redis import history
from eir.lists.stores.redis.link import OUT_OF_MEMORY, POLICY_SAFE, RedisClient
from eir.lists.stores.redis.reading import ListRow, PageSet, key, read_change, read_each, read_numbers, read_row
from eir.lists.stores.write import (
    SMALL_BYTES,
    Batches,
    Kept,
    Undo,
    Write,
    WriteRequest,
    check_generation,
    check_room,
    decide,
    decide_undo,
    portions,
    rollback_steps,
)

LISTS = "eir:lists"

STAGING_S = 600
"""Seconds after the last page after which a staged set expires."""
HEAL_S, HEAL_PAUSE_S = 15.0, 0.5
"""Seconds for which a write waits for the repair of a damaged history, and between two tries. Each node checks the history every 5 s and writes its copy back."""
CHANGES_MAX = 100
PORTION_PAGES, PORTION_BYTES = 1_000, 1 << 20
"""Maximum number of pages and bytes that one command of a load writes, because Redis serves no other client meanwhile."""
FIELD_BYTES, ROUNDED_UP = 100, 1.2
"""Memory of a hash field: bytes besides its value, and bytes for each byte of the value."""
AMENDED_TIMES = 2
"""Factor for the memory of an amendment, which keeps the old pages besides the new ones."""
RESERVE_BYTES, RESERVE_SHARE = 16 << 20, 8
"""Memory that a load leaves free: this many bytes, or 1/8 of maxmemory if that is less."""


async def write(
    link: RedisClient, name: str, seen: int, request: WriteRequest | Undo, batches: Batches | None
) -> ListState:
    """Put the list content of a request in force, and append the request's event to the history.

    `batches` is the whole list, which is staged first. The list's state hash has the event until the history has it.
    """
    row = await read_row(link, name, past=True)
    where = f"list {name} in Redis ({link.where})"
    if row is not None:
        check_form(where, row.form)
    check_generation(name, row, seen)
    if row is not None:
        log_upgrade(link.report, where, row.form)
        await _settle_when_healed(link, row)
    own = staged = PageSet(key(name, "kept" if batches is None else "set", secrets.token_hex(8)), 0)
    try:
        if batches is not None:
            own = own._replace(fields=sum([await stage(link, own.key, batch) async for batch in batches]))
        if isinstance(request, Undo):
            steps, known = rollback_steps(name, row, request.to), cast("ListRow", row)  # raises if row is None
            pages = [await _kept_pages(link, name, known, step) for step in steps]
            decided = decide_undo(known, steps, pages, request.event)
        else:
            decided = decide(row, request, own)
        used = decided.after.page_set
        if row is not None and decided.put:
            decided = await _count_fields(link, row, decided)
        await link.do("SADD", LISTS, name)
        change = await link.call(key(name, "state"), lambda client: commit(link, client, name, row, decided, used=used))
    except StoreError as error:
        if error.cause == "oom":  # with other causes the EXEC may have been done; otherwise the staged set expires
            with suppress(StoreError):
                await link.do("UNLINK", staged.key)
        raise
    with suppress(StoreError):  # the next writer or reader of the history finds the event in the list's record
        await history.append(link, decided.event, (name, change))
    return decided.after.state


async def _settle_when_healed(link: RedisClient, row: ListRow) -> None:
    """Append the event of a list's last write to the history; wait up to HEAL_S if the history is damaged.

    Meanwhile a node may write its copy of the history back.

    Raises:
        StoreError: if the history is still damaged.
    """
    deadline = monotonic() + HEAL_S
    while True:
        try:
            return await settle(link, row)
        except StoreError as error:
            if error.cause != "corrupt" or monotonic() > deadline:
                raise
        await sleep(HEAL_PAUSE_S)


async def settle(link: RedisClient, row: ListRow) -> None:
    """Append to the history the event of a list's last write, if the process that wrote the list has not done so."""
    await history.append(link, row.event, (row.name, row.change))


async def check_memory(link: RedisClient, name: str, pages: Sequence[Page], *, amends: bool) -> None:
    """Raise StoreError (`oom`) if Redis does not have enough memory for these pages.

    The check is skipped if Redis may evict keys.
    """
    fields = sum([2 if extra else 1 for *_, extra in pages])
    content = sum([len(keys) + len(extra) for _, keys, extra in pages])
    needs = int(content * ROUNDED_UP + fields * FIELD_BYTES) * (AMENDED_TIMES if amends else 1)
    if needs <= SMALL_BYTES:
        return
    memory = await link.call(key(name, "state"), lambda client: client.info("memory"))
    limit = int(memory.get("maxmemory", 0))
    if limit and memory.get("maxmemory_policy", POLICY_SAFE) == POLICY_SAFE:
        reserve = min(RESERVE_BYTES, limit // RESERVE_SHARE)
        free = max(0, limit - int(memory["used_memory"]))
        check_room("oom", f"Redis ({link.where})", OUT_OF_MEMORY, needs=needs, free=free, reserve=reserve)


async def stage(link: RedisClient, hash_key: str, pages: Sequence[Page], *, keep_gone: bool = False) -> int:
    """Write pages to a hash that expires, and return the number of written fields."""
    count = 0
    for portion in portions(pages, PORTION_PAGES, PORTION_BYTES):
        if fields := _fields(portion, keep_gone=keep_gone):
            await link.do_all(("HSET", hash_key, *fields), ("EXPIRE", hash_key, STAGING_S))
            count += len(fields) // 2
    return count


def _fields(pages: Sequence[Page], *, keep_gone: bool = False) -> list[object]:
    """Return the hash fields of pages as a list, in which each field is followed by its value."""
    fields: list[object] = []
    for number, keys, extra in pages:
        if keys or extra or keep_gone:
            fields += [number, keys, f"{number}+", extra] if extra else [number, keys]
    return fields


async def _kept_pages(link: RedisClient, name: str, row: ListRow, kept: Kept[PageSet]) -> list[Page]:
    """Return the pages in the set of a kept release; an empty list if the set has the whole list.

    Raises:
        NothingToRollBack: if the set is incomplete.
    """
    pages: list[Page] = []
    if not kept.whole:
        numbers = await read_numbers(link, row, kept.page_set)
        pages = await read_each(link, row, kept.page_set, numbers.tolist())
    if await link.do("HLEN", kept.page_set.key) != kept.page_set.fields:  # it may have expired meanwhile
        raise NothingToRollBack(
            f"serial {kept.state.serial} of list {name}, or a change after it, is no longer in Redis"
        )
    return pages


async def _count_fields(link: RedisClient, row: ListRow, decided: Write[PageSet]) -> Write[PageSet]:
    """Compute the number of fields in the sets of a write, and return the write with these numbers.

    The pages that the write replaces are staged for a rollback.
    """
    page_set, aside = decided.after.page_set, decided.aside
    before = await read_each(link, row, page_set, [page.number for page in decided.put])
    page_set = page_set._replace(fields=page_set.fields + (len(_fields(decided.put)) - len(_fields(before))) // 2)
    kept = decided.after.kept
    if aside is not None:
        aside = aside._replace(fields=await stage(link, aside.key, before, keep_gone=True))
        kept = tuple(replace(each, page_set=aside) if each.page_set.key == aside.key else each for each in kept)
    return replace(decided, aside=aside, after=replace(decided.after, page_set=page_set, kept=kept))


async def commit(
    link: RedisClient, client: Any, name: str, row: ListRow | None, decided: Write[PageSet], *, used: PageSet
) -> bytes:
    """Apply a write in one EXEC if the list's state is still `row`; return the ID of this write (`change`).

    The new sets must be complete.

    `used` is the set that comes into force, with its number of fields before the write.
    """
    before, change = None if row is None else row.change, secrets.token_hex(8).encode()
    in_force = [] if row is None else [row.page_set.key]
    new = [page_set for page_set in (used, decided.aside) if page_set is not None and page_set.key not in in_force]
    async with client.pipeline(transaction=True) as pipe:
        try:
            await pipe.watch(key(name, "state"), *in_force, *(page_set.key for page_set in new))
            (now,) = await pipe.execute_command("HMGET", key(name, "state"), "change")
            if now != before:
                raise _conflict_error(name, before, now)
            for page_set in new:
                if await pipe.execute_command("HLEN", page_set.key) != page_set.fields:
                    raise _conflict_error(name, before, before)
            pipe.multi()
            _queue(pipe, name, decided, change)
            await pipe.execute()
        except (fault.WatchError, fault.ConnectionError, fault.TimeoutError, OSError) as error:
            # An EXEC may have been done although its answer is lost.
            now = await read_change(link, name)
            away = StoreError("refused", f"Redis ({link.where}) was lost during the switch; nothing was written")
            if now != change:
                overtaken = isinstance(error, fault.WatchError) or now not in {None, before}
                raise (_conflict_error(name, before, now) if overtaken else away) from error
        except fault.ResponseError:
            # One command of an EXEC may fail while the others are done: XADD, if another program wrote to the log's key.
            if await read_change(link, name) != change:
                raise
            await link.do("UNLINK", key(name, "changes"))
    await _replicate(link, client, name)
    return change


def _conflict_error(name: str, before: bytes | None, now: bytes | None) -> StoreError:
    """Return the error for a write that failed: another writer changed the list, or the staged set is lost."""
    if now is None or now == before:
        return StoreError(
            "staging_lost",
            f"pages of list {name} are no longer in Redis (flushed, evicted); nothing was written: load again",
        )
    return GenerationConflict(f"list {name} was changed by another process meanwhile")


def _queue(pipe: Any, name: str, decided: Write[PageSet], change: bytes) -> None:
    """Queue the commands of a write in the pipeline."""
    after, page_set = decided.after, decided.after.page_set
    for portion in portions(decided.put, PORTION_PAGES, PORTION_BYTES):
        pipe.execute_command(
            "HDEL", page_set.key, *(field for page in portion for field in (page.number, f"{page.number}+"))
        )
        if fields := _fields(portion):
            pipe.execute_command("HSET", page_set.key, *fields)
    for each in after.page_sets:
        pipe.execute_command("PERSIST", each.key)
    past = {
        "change": change.decode(), "event": _event_json(decided.event), "made": _event_json(after.made),
        "kept": [
            {"state": asdict(kept.state), "set": _id(kept.page_set), "fields": kept.page_set.fields, "whole": kept.whole, "made": _event_json(kept.made)}
            for kept in after.kept
        ],
    }  # fmt: skip
    pipe.execute_command(
        "HSET", key(name, "state"), "state", encode(after.state), "generation", after.state.generation, "set", _id(page_set),
        "fields", page_set.fields, "change", change, "past", json.dumps(past), "form", FORM,
    )  # fmt: skip
    if decided.dropped:
        pipe.execute_command("UNLINK", *(page_set.key for page_set in decided.dropped))
    _log_change(pipe, key(name, "changes"), decided)


def _event_json(event: Event | None) -> dict[str, Any] | None:
    return None if event is None else asdict(event)


def _id(page_set: PageSet) -> str:
    return page_set.key.rpartition(":")[2]


def _log_change(pipe: Any, stream: str, decided: Write[PageSet]) -> None:
    if decided.new_log:  # older entries may have higher numbers, after which XADD fails
        pipe.execute_command("UNLINK", stream)
    if (change := decided.change) is not None:
        pages = encode_numbers(change.pages)
        fields = () if pages is None else ("pages", pages)
        pipe.execute_command(
            "XADD", stream, "MAXLEN", CHANGES_MAX, f"{change.after}-0", "before", change.before, *fields
        )


async def _replicate(link: RedisClient, client: Any, name: str) -> None:
    """Wait until a replica has received the write; report a write that only the master has.

    WAIT covers the writes of its own connection, and the pool may use any connection. So one connection writes a mark,
    which a replica receives only after all earlier writes.
    """
    with suppress(fault.RedisError):
        replication = await client.info("replication")
        if not int(replication.get("connected_slaves", 0)):
            return
        async with client.client() as connection:
            await connection.execute_command("SET", key(name, "written"), "1", "PX", 10 * link.replica_wait_ms)
            if not await connection.execute_command("WAIT", 1, link.replica_wait_ms):
                link.report(
                    "store_not_replicated", level="warning",
                    detail=f"no replica had the change within {link.replica_wait_ms} ms; a failover now would lose it",
                )  # fmt: skip

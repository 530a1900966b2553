"""Writer of lists in Redis: stages pages in hashes that expire, and puts them in force by one EXEC."""

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
    RollbackRequest,
    Write,
    WriteRequest,
    check_generation,
    check_room,
    plan_rollback,
    plan_write,
    portions,
    rollback_steps,
)

LISTS = "eir:lists"

STAGING_S = 600
"""Seconds after the last written page after which a staged set expires."""
HEAL_S = 15.0
"""Seconds for which a write waits for the repair of a damaged history.

Each node checks the history every 5 s, and writes its copy back to a store that lost its history.
"""
HEAL_PAUSE_S = 0.5
"""Seconds between two tries to append to a damaged history."""
CHANGES_MAX = 100
"""Maximum number of entries in the change log of a list."""
PORTION_PAGES, PORTION_BYTES = 1_000, 1 << 20
"""Maximum number of pages, and of bytes, in one command of a load. Redis serves no other client during the command."""
FIELD_BYTES = 100
"""Bytes of memory of a hash field without its value."""
VALUE_FACTOR = 1.2
"""Bytes of memory for each byte of a value."""
AMENDMENT_FACTOR = 2
"""Factor for the memory of changed pages, because the replaced pages are kept too."""
RESERVE_BYTES, RESERVE_SHARE = 16 << 20, 8
"""Memory that a load leaves free: RESERVE_BYTES, or 1/RESERVE_SHARE of maxmemory if that is less."""


async def write(
    link: RedisClient, name: str, seen: int, request: WriteRequest | RollbackRequest, batches: Batches | None
) -> ListState:
    """Apply a write request to a list, and append its event to the history.

    `batches` is the whole list, which is staged first. The event is in the list's state hash until it is in the history.
    """
    row = await read_row(link, name, past=True)
    where = f"list {name} in Redis ({link.where})"
    if row is not None:
        check_form(where, row.form)
    check_generation(name, row, seen)
    if row is not None:
        log_upgrade(link.report, where, row.form)
        await _append_pending_after_repair(link, row)
    new_key = key(name, "kept" if batches is None else "set", secrets.token_hex(8))
    try:
        fields = 0
        if batches is not None:
            fields = sum([await stage(link, new_key, batch) async for batch in batches])
        if isinstance(request, RollbackRequest):
            steps = rollback_steps(name, row, request.to)
            stored = cast("ListRow", row)  # rollback_steps raises if row is None
            pages = [await _pages_to_restore(link, name, stored, step) for step in steps]
            planned = plan_rollback(stored, steps, pages, request.event)
        else:
            planned = plan_write(row, request, PageSet(new_key, fields))
        used = planned.after.page_set
        if row is not None and planned.pages:
            planned = await _count_fields(link, row, planned)
        await link.execute("SADD", LISTS, name)
        change = await link.run(key(name, "state"), lambda client: commit(link, client, name, row, planned, used=used))
    except StoreError as error:
        if (
            error.cause == "oom"
        ):  # other causes: Redis may have executed the EXEC; if it has not, the staged set expires
            with suppress(StoreError):
                await link.execute("UNLINK", new_key)
        raise
    with suppress(StoreError):  # the next writer or reader of the history finds the event in the list's state hash
        await history.append(link, planned.event, (name, change))
    return planned.after.state


async def _append_pending_after_repair(link: RedisClient, row: ListRow) -> None:
    """Append the event of a list's last write to the history; if the history is damaged, wait up to HEAL_S for its repair.

    Meanwhile a node may write its copy of the history back.

    Raises:
        StoreError: if the history is still damaged.
    """
    deadline = monotonic() + HEAL_S
    while True:
        try:
            return await append_pending(link, row)
        except StoreError as error:
            if error.cause != "corrupt" or monotonic() > deadline:
                raise
        await sleep(HEAL_PAUSE_S)


async def append_pending(link: RedisClient, row: ListRow) -> None:
    """Append the event of a list's last write to the history, unless the history already has this event."""
    await history.append(link, row.event, (row.name, row.change))


async def check_memory(link: RedisClient, name: str, pages: Sequence[Page], *, amends: bool) -> None:
    """Raise StoreError (`oom`) if Redis does not have enough memory for these pages."""
    fields = sum([2 if extra else 1 for *_, extra in pages])
    content = sum([len(keys) + len(extra) for _, keys, extra in pages])
    needs = int(content * VALUE_FACTOR + fields * FIELD_BYTES)
    if amends:
        needs *= AMENDMENT_FACTOR
    await check_free(link, key(name, "state"), needs)


async def check_free(link: RedisClient, on: str, needs: int) -> None:
    """Raise StoreError (`oom`) if the server of the key `on` has less free memory than a write needs. `needs` is in bytes.

    The check is skipped if Redis has no memory limit, or if it may evict keys.
    """
    if needs <= SMALL_BYTES:
        return
    memory = await link.run(on, lambda client: client.info("memory"))
    limit = int(memory.get("maxmemory", 0))
    policy = memory.get("maxmemory_policy", POLICY_SAFE)
    if limit and policy == POLICY_SAFE:
        reserve = min(RESERVE_BYTES, limit // RESERVE_SHARE)
        free = max(0, limit - int(memory["used_memory"]))
        check_room("oom", f"Redis ({link.where})", OUT_OF_MEMORY, needs=needs, free=free, reserve=reserve)


async def stage(link: RedisClient, hash_key: str, pages: Sequence[Page], *, with_empty: bool = False) -> int:
    """Write pages to a hash that expires, and return the number of written fields."""
    count = 0
    for portion in portions(pages, PORTION_PAGES, PORTION_BYTES):
        fields = _fields(portion, with_empty=with_empty)
        if fields:
            await link.execute_all(("HSET", hash_key, *fields), ("EXPIRE", hash_key, STAGING_S))
            count += len(fields) // 2
    return count


def _fields(pages: Sequence[Page], *, with_empty: bool = False) -> list[object]:
    """Return the Redis hash fields for pages, as a list in which names and values alternate.

    `with_empty`: True if an empty page also has a field.
    """
    fields: list[object] = []
    for number, keys, extra in pages:
        if keys or extra or with_empty:
            fields += [number, keys]
        if extra:
            fields += [f"{number}+", extra]
    return fields


async def _pages_to_restore(link: RedisClient, name: str, row: ListRow, kept: Kept[PageSet]) -> list[Page]:
    """Read the earlier versions of pages that a rollback to the release `kept` must write back.

    If the set of the kept release has all pages of the list, a rollback puts this set in force, so the result is empty.

    Raises:
        NothingToRollBack: if the set is incomplete.
    """
    pages: list[Page] = []
    if not kept.whole:
        numbers = await read_numbers(link, row, kept.page_set)
        pages = await read_each(link, row, kept.page_set, numbers.tolist())
    if await link.execute("HLEN", kept.page_set.key) != kept.page_set.fields:  # the set may have expired meanwhile
        raise NothingToRollBack(
            f"serial {kept.state.serial} of list {name}, or a change after it, is no longer in Redis"
        )
    return pages


async def _count_fields(link: RedisClient, row: ListRow, planned: Write[PageSet]) -> Write[PageSet]:
    """Compute the number of Redis fields in each page set after a planned write, and return the write with these numbers.

    If a rollback needs the replaced pages, copy them to a page set of their own.
    """
    after, replaced_set = planned.after, planned.replaced_set
    page_set, kept = after.page_set, after.kept
    replaced = await read_each(link, row, page_set, [page.number for page in planned.pages])
    added_fields = (len(_fields(planned.pages)) - len(_fields(replaced))) // 2
    page_set = page_set._replace(fields=page_set.fields + added_fields)
    if replaced_set is not None:
        staged = await stage(link, replaced_set.key, replaced, with_empty=True)
        replaced_set = replaced_set._replace(fields=staged)
        newest, *older = kept  # the set of the newest kept release is `replaced_set`
        kept = (replace(newest, page_set=replaced_set), *older)
    after = replace(after, page_set=page_set, kept=kept)
    return replace(planned, replaced_set=replaced_set, after=after)


async def commit(
    link: RedisClient, client: Any, name: str, row: ListRow | None, planned: Write[PageSet], *, used: PageSet
) -> bytes:
    """Apply a write in one EXEC, if the list's row is still `row` and the staged page sets are complete.

    `used` is the set that comes into force, with its number of fields before the write. The result is the ID of the
    write (`change`).
    """
    before = None if row is None else row.change
    change = secrets.token_hex(8).encode()
    state_key = key(name, "state")
    in_force = [] if row is None else [row.page_set.key]
    new_sets = [each for each in (used, planned.replaced_set) if each is not None and each.key not in in_force]
    async with client.pipeline(transaction=True) as pipe:
        try:
            await pipe.watch(state_key, *in_force, *(page_set.key for page_set in new_sets))
            (now,) = await pipe.execute_command("HMGET", state_key, "change")
            if now != before:
                raise _conflict_error(name, before, now)
            for page_set in new_sets:
                if await pipe.execute_command("HLEN", page_set.key) != page_set.fields:
                    raise _conflict_error(name, before, before)
            pipe.multi()
            _queue(pipe, name, planned, change)
            await pipe.execute()
        except (fault.WatchError, fault.ConnectionError, fault.TimeoutError, OSError) as error:
            # Redis may have executed an EXEC whose answer is lost.
            now = await read_change(link, name)
            if now != change:
                if isinstance(error, fault.WatchError) or now not in {None, before}:
                    raise _conflict_error(name, before, now) from error
                message = f"Redis ({link.where}) was lost during the switch; nothing was written"
                raise StoreError("refused", message) from error
        except fault.ResponseError:
            # One command of an EXEC may fail while Redis executes the others: XADD, if another program wrote to the log's key.
            if await read_change(link, name) != change:
                raise
            await link.execute("UNLINK", key(name, "changes"))
    await replicate(link, client, key(name, "written"))
    return change


def _conflict_error(name: str, before: bytes | None, now: bytes | None) -> StoreError:
    """Return the error for a failed EXEC: another writer has changed the list, or the staged pages are lost."""
    if now is None or now == before:
        message = f"pages of list {name} are no longer in Redis (flushed, evicted); nothing was written: load again"
        return StoreError("staging_lost", message)
    return GenerationConflict(f"list {name} was changed by another process meanwhile")


def _queue(pipe: Any, name: str, planned: Write[PageSet], change: bytes) -> None:
    """Queue the Redis commands of a list write in the pipeline."""
    after = planned.after
    page_set = after.page_set
    for portion in portions(planned.pages, PORTION_PAGES, PORTION_BYTES):
        old_fields = [field for page in portion for field in (page.number, f"{page.number}+")]
        pipe.execute_command("HDEL", page_set.key, *old_fields)
        new_fields = _fields(portion)
        if new_fields:
            pipe.execute_command("HSET", page_set.key, *new_fields)
    for used_set in after.page_sets:
        pipe.execute_command("PERSIST", used_set.key)
    past = {
        "change": change.decode(), "event": _event_json(planned.event), "made": _event_json(after.made),
        "kept": [
            {"state": asdict(kept.state), "set": _id(kept.page_set), "fields": kept.page_set.fields, "whole": kept.whole, "made": _event_json(kept.made)}
            for kept in after.kept
        ],
    }  # fmt: skip
    pipe.execute_command(
        "HSET", key(name, "state"), "state", encode(after.state), "generation", after.state.generation, "set", _id(page_set),
        "fields", page_set.fields, "change", change, "past", json.dumps(past), "form", FORM,
    )  # fmt: skip
    if planned.unused_sets:
        pipe.execute_command("UNLINK", *(page_set.key for page_set in planned.unused_sets))
    _log_change(pipe, key(name, "changes"), planned)


def _event_json(event: Event | None) -> dict[str, Any] | None:
    return None if event is None else asdict(event)


def _id(page_set: PageSet) -> str:
    return page_set.key.rpartition(":")[2]


def _log_change(pipe: Any, stream: str, planned: Write[PageSet]) -> None:
    if planned.clears_log:  # XADD fails if the stream has an entry with a higher ID
        pipe.execute_command("UNLINK", stream)
    change = planned.change
    if change is None:
        return
    numbers = encode_numbers(change.pages)
    fields = () if numbers is None else ("pages", numbers)
    entry_id = f"{change.after}-0"
    pipe.execute_command("XADD", stream, "MAXLEN", CHANGES_MAX, entry_id, "before", change.before, *fields)


async def replicate(link: RedisClient, client: Any, mark_key: str) -> None:
    """Wait until a replica has received the write; report a write that only the master has received.

    WAIT covers only the writes of its own connection, but the pool may have used another connection for the write. So
    this connection first writes a mark, the key `mark_key`. A replica receives the mark only after all earlier writes.
    """
    with suppress(fault.RedisError):
        replication = await client.info("replication")
        if not int(replication.get("connected_slaves", 0)):
            return
        async with client.client() as connection:
            await connection.execute_command("SET", mark_key, "1", "PX", 10 * link.replica_wait_ms)
            if not await connection.execute_command("WAIT", 1, link.replica_wait_ms):
                link.report(
                    "store_not_replicated", level="warning",
                    detail=f"no replica had the change within {link.replica_wait_ms} ms; a failover now would lose it",
                )  # fmt: skip

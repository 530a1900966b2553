"""Lists in Redis as writers see them: pages are staged in hashes that expire, and one EXEC makes a write of them."""

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
from eir.lists.stores.redis.link import OUT_OF_MEMORY, POLICY_SAFE, Link
from eir.lists.stores.redis.reading import PageSet, Row, key, read_change, read_each, read_numbers, read_row
from eir.lists.stores.write import (
    SMALL_BYTES,
    Batches,
    Kept,
    Undo,
    Wanted,
    Write,
    check_generation,
    check_room,
    decide,
    decide_undo,
    portions,
    steps_back,
)

LISTS = "eir:lists"

STAGING_S = 600
"""A set that is being filled expires when nothing was added for this long (s)."""
HEAL_S, HEAL_PAUSE_S = 15.0, 0.5
"""Seconds for which a write waits for a damaged history: each node looks at it every 5 s and gives its copy back. Pause between two tries."""
CHANGES_MAX = 100
PORTION_PAGES, PORTION_BYTES = 1_000, 1 << 20
"""Most pages and bytes that one command of a load writes: meanwhile Redis answers nobody else."""
FIELD_BYTES, ROUNDED_UP = 100, 1.2
"""Memory of a hash field: bytes besides its value, and bytes for each byte of the value."""
AMENDED_TIMES = 2
"""An amendment keeps old pages beside the new ones."""
RESERVE_BYTES, RESERVE_SHARE = 16 << 20, 8
"""Memory that a load leaves free of maxmemory: this many bytes, or this fraction (1/8) of it if that is less."""


async def write(link: Link, name: str, seen: int, wanted: Wanted | Undo, batches: Batches | None) -> ListState:
    """Put in force what is wanted; `batches`: the list to stage. Its event stands in the list's record until the history has it."""
    row = await read_row(link, name, past=True)
    where = f"list {name} in Redis ({link.where})"
    if row is not None:
        check_form(where, row.form)
    check_generation(name, row, seen)
    if row is not None:
        log_upgrade(link.report, where, row.form)
        await _settle_once_healed(link, row)
    own = staged = PageSet(key(name, "kept" if batches is None else "set", secrets.token_hex(8)), 0)
    try:
        if batches is not None:
            own = own._replace(fields=sum([await stage(link, own.key, batch) async for batch in batches]))
        if isinstance(wanted, Undo):
            steps, known = steps_back(name, row, wanted.to), cast("Row", row)  # it has raised if there is no such step
            pages = [await _kept_pages(link, name, known, step) for step in steps]
            decided = decide_undo(known, steps, pages, wanted.event)
        else:
            decided = decide(row, wanted, own)
        used = decided.after.page_set
        if row is not None and decided.put:
            decided = await _counted(link, row, decided)
        await link.do("SADD", LISTS, name)
        change = await link.call(key(name, "state"), lambda client: commit(link, client, name, row, decided, used=used))
    except StoreError as error:
        if error.cause == "oom":  # with other causes the switch may have been made, and what was staged expires
            with suppress(StoreError):
                await link.do("UNLINK", staged.key)
        raise
    with suppress(StoreError):  # whoever writes next, or reads the history, finds it in the list's record
        await history.append(link, decided.event, (name, change))
    return decided.after.state


async def _settle_once_healed(link: Link, row: Row) -> None:
    """Settle a list; wait up to HEAL_S for a node that gives a damaged history back. Raises StoreError."""
    give_up = monotonic() + HEAL_S
    while True:
        try:
            return await settle(link, row)
        except StoreError as error:
            if error.cause != "corrupt" or monotonic() > give_up:
                raise
        await sleep(HEAL_PAUSE_S)


async def settle(link: Link, row: Row) -> None:
    """Append what the last write of a list was to say in the history, if its writer could not."""
    await history.append(link, row.event, (row.name, row.change))


async def make_room(link: Link, name: str, pages: Sequence[Page], *, amends: bool) -> None:
    """Raise StoreError (oom) if the memory of Redis has no room for these pages. Of one that evicts nothing is known."""
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


async def stage(link: Link, hash_key: str, pages: Sequence[Page], *, keep_gone: bool = False) -> int:
    """Add pages to a hash that expires; returns how many fields these are."""
    count = 0
    for portion in portions(pages, PORTION_PAGES, PORTION_BYTES):
        if fields := _fields(portion, keep_gone=keep_gone):
            await link.do_all(("HSET", hash_key, *fields), ("EXPIRE", hash_key, STAGING_S))
            count += len(fields) // 2
    return count


def _fields(pages: Sequence[Page], *, keep_gone: bool = False) -> list[object]:
    """The fields that pages take in a hash, each followed by its value."""
    fields: list[object] = []
    for number, keys, extra in pages:
        if keys or extra or keep_gone:
            fields += [number, keys, f"{number}+", extra] if extra else [number, keys]
    return fields


async def _kept_pages(link: Link, name: str, row: Row, kept: Kept[PageSet]) -> list[Page]:
    """The pages in the kept set, unless that is whole. Raises NothingToRollBack if it is not there as it was."""
    pages: list[Page] = []
    if not kept.whole:
        numbers = await read_numbers(link, row, kept.page_set)
        pages = await read_each(link, row, kept.page_set, numbers.tolist())
    if await link.do("HLEN", kept.page_set.key) != kept.page_set.fields:  # it may have gone while it was read
        raise NothingToRollBack(
            f"serial {kept.state.serial} of list {name}, or what was changed after it, is no longer in Redis"
        )
    return pages


async def _counted(link: Link, row: Row, decided: Write[PageSet]) -> Write[PageSet]:
    """The write with the fields that its sets will have; what is to be kept of the pages in force is staged."""
    page_set, aside = decided.after.page_set, decided.aside
    before = await read_each(link, row, page_set, [page.number for page in decided.put])
    page_set = page_set._replace(fields=page_set.fields + (len(_fields(decided.put)) - len(_fields(before))) // 2)
    kept = decided.after.kept
    if aside is not None:
        aside = aside._replace(fields=await stage(link, aside.key, before, keep_gone=True))
        kept = tuple(replace(each, page_set=aside) if each.page_set.key == aside.key else each for each in kept)
    return replace(decided, aside=aside, after=replace(decided.after, page_set=page_set, kept=kept))


async def commit(
    link: Link, client: Any, name: str, row: Row | None, decided: Write[PageSet], *, used: PageSet
) -> bytes:
    """One EXEC, if the state is still what `row` says and the sets that come into use are whole; returns the list's new `change`.

    `used`: the set that comes into force, with the fields that it has before the write.
    """
    before, change = None if row is None else row.change, secrets.token_hex(8).encode()
    in_force = [] if row is None else [row.page_set.key]
    new = [page_set for page_set in (used, decided.aside) if page_set is not None and page_set.key not in in_force]
    async with client.pipeline(transaction=True) as pipe:
        try:
            await pipe.watch(key(name, "state"), *in_force, *(page_set.key for page_set in new))
            (now,) = await pipe.execute_command("HMGET", key(name, "state"), "change")
            if now != before:
                raise _overtaken(name, before, now)
            for page_set in new:
                if await pipe.execute_command("HLEN", page_set.key) != page_set.fields:
                    raise _overtaken(name, before, before)
            pipe.multi()
            _queue(pipe, name, decided, change)
            await pipe.execute()
        except (fault.WatchError, fault.ConnectionError, fault.TimeoutError, OSError) as error:
            # An EXEC whose answer is lost may have been done all the same.
            now = await read_change(link, name)
            away = StoreError(
                "refused", f"Redis ({link.where}) was lost in the middle of the switch; nothing was written"
            )
            if now != change:
                overtaken = isinstance(error, fault.WatchError) or now not in {None, before}
                raise (_overtaken(name, before, now) if overtaken else away) from error
        except fault.ResponseError:
            # In an EXEC one command may fail while the others are done: the log, if another program has written in its place.
            if await read_change(link, name) != change:
                raise
            await link.do("UNLINK", key(name, "changes"))
    await _replicate(link, client, name)
    return change


def _overtaken(name: str, before: bytes | None, now: bytes | None) -> StoreError:
    """The error for an impossible switch: the list's `change` is another one now, or the staged set is gone."""
    if now is None or now == before:
        return StoreError(
            "staging_lost",
            f"pages of list {name} are no longer in Redis (flushed, evicted); nothing was written: load again",
        )
    return GenerationConflict(f"list {name} was changed by someone else meanwhile")


def _queue(pipe: Any, name: str, decided: Write[PageSet], change: bytes) -> None:
    """Queue the commands of a write."""
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
        "change": change.decode(), "event": _said(decided.event), "made": _said(after.made),
        "kept": [
            {"state": asdict(kept.state), "set": _id(kept.page_set), "fields": kept.page_set.fields, "whole": kept.whole, "made": _said(kept.made)}
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


def _said(event: Event | None) -> dict[str, Any] | None:
    return None if event is None else asdict(event)


def _id(page_set: PageSet) -> str:
    return page_set.key.rpartition(":")[2]


def _log_change(pipe: Any, stream: str, decided: Write[PageSet]) -> None:
    if decided.new_log:  # what is in it may have higher numbers, after which XADD fails
        pipe.execute_command("UNLINK", stream)
    if (change := decided.change) is not None:
        pages = encode_numbers(change.pages)
        told = () if pages is None else ("pages", pages)
        pipe.execute_command("XADD", stream, "MAXLEN", CHANGES_MAX, f"{change.after}-0", "before", change.before, *told)


async def _replicate(link: Link, client: Any, name: str) -> None:
    """Give a replica a moment to have it too; a write that only the master has is reported.

    WAIT speaks of what its own connection wrote, and the pool may give any connection: so one of them writes a mark, which a
    replica has only after all that came before it.
    """
    with suppress(fault.RedisError):
        replication = await client.info("replication")
        if not int(replication.get("connected_slaves", 0)):
            return
        async with client.client() as one:
            await one.execute_command("SET", key(name, "written"), "1", "PX", 10 * link.replica_wait_ms)
            if not await one.execute_command("WAIT", 1, link.replica_wait_ms):
                link.report(
                    "store_not_replicated", level="warning",
                    detail=f"no replica had the change within {link.replica_wait_ms} ms; a failover now would lose it",
                )  # fmt: skip

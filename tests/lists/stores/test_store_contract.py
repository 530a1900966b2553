"""Contract of a store: one suite, run against each store as it really is, with the user `loader` of config/LISTS.md."""

import asyncio
import contextlib
import time
from dataclasses import replace

import groups
import pytest
from commits import commit, commit_base, next_change, parts_of
from redis.asyncio.connection import AbstractConnection
from simulated import servers
from simulated.patience import PATIENCE_S

from eir.errors import GenerationConflict, StoreError
from eir.lists.log import store as contract
from eir.lists.log.change import NO_CHANGE, Head, encode, following
from eir.lists.stores import redis as redis_store
from eir.lists.stores import sqlite as sqlite_store
from eir.lists.stores.redis import RedisStore
from eir.lists.stores.sqlite import SqliteStore

SHORT = ("sqlite", "redis")
"""Kinds of store that tests without `--long` use."""


@pytest.fixture(scope="module")
def running():
    with groups.started(servers.Protected) as server:
        yield server


@pytest.fixture(params=[pytest.param(kind, marks=[pytest.mark.long] * (kind not in SHORT)) for kind in groups.KINDS])
def kind(request):
    return request.param


@pytest.fixture
async def opener(kind, tmp_path, running):
    """Opens the store as one more process would."""
    if kind != "sqlite":
        running(kind).flush()
    async with contextlib.AsyncExitStack() as stack:

        async def open_one():
            store = SqliteStore(tmp_path / "lists.sqlite") if kind == "sqlite" else RedisStore(running(kind).url)
            stack.push_async_callback(store.close)
            return store

        yield open_one


@pytest.fixture
async def store(opener):
    return await opener()


@pytest.fixture
async def other(opener):
    """The same store as another process has it open."""
    return await opener()


async def test_an_empty_store(store):
    assert await store.heads() == {}
    assert await store.log("stolen", 0) == []
    assert await parts_of(store, "a") == []


async def test_a_commit_is_there_for_other_processes(store, other):
    first, one = await commit(
        store, serial=1, signers=("a", "b"), reasons=("", "stolen"), detail="Zürich: \u2028 \ud800"
    )
    second, two = await commit(other, first, None, serial=2)
    assert await store.heads() == {"stolen": second}
    assert await other.log("stolen", 0) == [(one, b"rows"), (two, None)]
    assert await store.log("stolen", 1) == [(two, None)]
    assert two.before == one.digest


async def test_of_two_writers_one_is_refused_and_nothing_of_it_is_written(store, other):
    first, _ = await commit(store)
    both = await asyncio.gather(
        commit(store, first, detail="a"), commit(other, first, detail="b"), return_exceptions=True
    )
    assert sorted(isinstance(result, GenerationConflict) for result in both) == [False, True]
    with pytest.raises(GenerationConflict):
        await commit(store, detail="c")
    assert len(await store.log("stolen", 0)) == 2
    (stored,) = [result[0] for result in both if not isinstance(result, GenerationConflict)]
    assert await store.heads() == {"stolen": stored}


async def test_parts_are_named_by_a_commit_or_not_at_all(store, other):
    parts = [bytes((number,)) * 1000 for number in range(20)]
    assert await store.stage("stolen", "a", iter(parts)) == 20
    assert await parts_of(other, "a") == parts
    for count in (19, 21):
        with pytest.raises(StoreError, match="staged parts") as caught:
            await commit(store, base_id="a", base_parts=count)
        assert caught.value.cause == "staging_lost"
    assert await store.heads() == {}
    _, change = await commit(store, base_id="a", base_parts=20)
    assert await parts_of(other, change.base_id) == parts


async def test_parts_that_expired_are_not_named(opener, monkeypatch):
    store = await opener()
    for module in (redis_store, sqlite_store):
        monkeypatch.setattr(module, "STAGED_S", 1 if module is redis_store else 0.05)
    await store.stage("stolen", "a", [b"x"])
    deadline = time.monotonic() + 60
    while isinstance(store, RedisStore) and await parts_of(store, "a"):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    if not isinstance(store, RedisStore):
        await asyncio.sleep(0.1)
    with pytest.raises(StoreError, match="staged parts"):
        await commit(store, base_id="a", base_parts=1)


async def test_a_failed_source_of_parts_leaves_none(store):
    def failing():
        yield b"x"
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        await store.stage("stolen", "a", failing())
    assert await parts_of(store, "a") == []


async def test_old_rows_and_parts_go_and_their_records_stay(store):
    head, changes = None, []
    for number in range(6):
        head, change = await commit_base(store, head, oldest=4 if number == 5 else 0)
        changes.append(change)
    assert await store.log("stolen", 0) == [(change, b"rows" if change.generation >= 4 else None) for change in changes]
    kept = [await parts_of(store, change.base_id) for change in changes]
    assert kept == [[]] * 3 + [[b"x", b"y"]] * 3


async def test_records_are_limited_and_those_with_a_base_stay_longer(store, monkeypatch):
    for module in (redis_store, sqlite_store):
        monkeypatch.setattr(module, "RECORDS_KEPT", 3)
        monkeypatch.setattr(module, "BASES_KEPT", 2)
    head = None
    for number in range(9):
        write = commit_base if number in {0, 1, 2, 7} else commit
        head, _ = await write(store, head, oldest=number)
    generations = [entry.change.generation for entry in await store.log("stolen", 0)]
    assert (
        generations == [3, 7, 8, 9]
        if isinstance(store, SqliteStore)
        else generations[-3:] == [7, 8, 9] and 3 in generations
    )


async def test_lists_do_not_touch_each_other(store):
    await commit(store)
    head, _ = await commit(store, name="own")
    await commit(store, head, name="own", oldest=2)
    assert [entry.rows for entry in await store.log("stolen", 0)] == [b"rows"]
    assert [*await store.heads()] == ["own", "stolen"]


async def test_of_many_writers_each_write_is_there_once(store, other):
    async def write(one, detail):
        while True:
            head = (await one.heads()).get("stolen")
            with contextlib.suppress(GenerationConflict):
                return await commit(one, head, detail=detail)

    await asyncio.gather(*(write(store if number % 2 else other, str(number)) for number in range(12)))
    log = [entry.change for entry in await store.log("stolen", 0)]
    assert sorted(int(change.detail) for change in log) == [*range(12)]
    assert [change.before for change in log] == [NO_CHANGE, *(change.digest for change in log[:-1])]


async def test_the_heads_of_many_lists_need_few_requests(kind, opener, monkeypatch):
    """One for the names, and one for each server."""
    store, names = await opener(), [f"list-{number:02}" for number in range(30)]
    heads = {name: (await commit(store, name=name))[0] for name in names}
    sent, send = [], AbstractConnection.send_packed_command

    async def counted(connection, *args, **options):
        sent.append(connection)
        await send(connection, *args, **options)

    monkeypatch.setattr(AbstractConnection, "send_packed_command", counted)
    found = await store.heads()
    assert (dict(found), found.digests) == (heads, {name: head.digest for name, head in heads.items()})
    assert len(sent) <= {"sqlite": 0, "cluster": 1 + groups.CLUSTER_NODES}.get(kind, 2)
    sent.clear()
    await store.wait({}, PATIENCE_S)
    assert len(sent) <= {"sqlite": 0, "cluster": 1 + groups.CLUSTER_NODES}.get(kind, 2)


async def test_rows_of_any_length_are_read(store):
    """Redis gives so many rows that a client refuses the reply if they come at once."""
    head, rows = None, bytes(1 << 20)
    for _ in range(70):
        head, _ = await commit(store, head, rows)
    assert [entry.rows == rows for entry in await store.log("stolen", 0)] == [True] * 70


async def test_wait_returns_at_a_change_of_any_list_and_at_a_new_one(store, other):
    head, _ = await commit(store)
    seen = {"stolen": head.digest}
    for name, before in (("stolen", head), ("new", None)):
        waiting = asyncio.create_task(store.wait(seen, 60))
        await asyncio.sleep(0)
        after, _ = await commit(other, before, name=name)
        await asyncio.wait_for(waiting, 30)
        seen[name] = after.digest
    begun = time.monotonic()
    await store.wait(seen, 0.05)
    assert time.monotonic() - begun >= 0.05
    await store.wait({**seen, "gone": NO_CHANGE}, 60)


async def test_a_lease_has_one_holder(store, other):
    assert await store.claim("load", "a", 60)
    assert not await other.claim("load", "b", 60)
    assert await store.claim("load", "a", 0.05)
    deadline = time.monotonic() + 60
    while not await other.claim("load", "b", 60):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    assert not await store.claim("load", "a", 0)
    assert await other.claim("load", "b", 0)
    assert await store.claim("load", "a", 60)


async def test_a_list_whose_head_is_lost_begins_again(store):
    head, _ = await commit(store)
    head, _ = await commit(store, head)
    if isinstance(store, SqliteStore):
        await store._file.call(lambda db: db.execute("DELETE FROM heads").rowcount)
    else:
        await store.link.execute("UNLINK", redis_store.list_key("stolen", "head"))
    with pytest.raises(GenerationConflict):
        await commit(store, head)
    _, change = await commit(store)
    assert await store.log("stolen", 0) == [(change, b"rows")]


async def test_a_damaged_record_affects_no_other(store):
    await commit(store, name="own")
    head, _ = await commit(store)
    _, second = await commit(store, head)
    if isinstance(store, SqliteStore):
        for statement in (
            "UPDATE heads SET head = '{\"a\": 1}' WHERE list = 'stolen'",
            "UPDATE log SET change = '[]' WHERE list = 'stolen' AND generation = 1",
        ):
            await store._file.call(lambda db, statement: db.execute(statement).rowcount, statement)
    else:
        await store.link.execute("HSET", redis_store.list_key("stolen", "head"), "head", b"\xff")
        key = redis_store.list_key("stolen", "log")
        await store.link.execute("UNLINK", key)
        await store.link.execute("XADD", key, "1-0", "change", "[]")
        await store.link.execute("XADD", key, "2-0", "change", encode(second))
    heads = await store.heads()
    assert [*heads] == ["own", "stolen"]
    assert heads["own"].generation == 1
    with pytest.raises(StoreError, match="damaged") as caught:
        heads.get("stolen")
    assert caught.value.cause == "corrupt"
    assert await store.log("stolen", 0) == [(second, b"rows")]
    begun = time.monotonic()
    await store.wait(heads.digests, 0.05)
    assert time.monotonic() - begun >= 0.05


def test_the_limits_of_the_contract_are_those_of_the_stores():
    for module in (redis_store, sqlite_store):
        assert (module.STAGED_S, module.RECORDS_KEPT, module.BASES_KEPT) == (
            contract.STAGED_S,
            contract.RECORDS_KEPT,
            contract.BASES_KEPT,
        )


def test_a_head_names_what_a_change_states():
    head = replace(Head(kind="devices"), reasons=("", "old"))
    after = following(head, next_change(head, serial=4, highest_serial=9, reasons=()), entries=1, devices=2)
    assert (after.serial, after.mark, after.reasons, after.loaded_at, after.releases) == (
        4,
        (0, 9),
        ("", "old"),
        "2026-12-02T08:00:00Z",
        ("2026-12-02T08:00:00Z",),
    )

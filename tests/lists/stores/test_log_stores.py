"""Contract of a store of logs: one suite, run against each store as it really is."""

import asyncio
import contextlib
import time
from dataclasses import replace

import groups
import pytest
from simulated import servers

from eir.errors import GenerationConflict, StoreError
from eir.lists.log import store as contract
from eir.lists.log.change import NO_CHANGE, Change, Head, encode, following
from eir.lists.log.store import LogEntry
from eir.lists.stores import log_redis, log_sqlite
from eir.lists.stores.log_redis import RedisLogStore
from eir.lists.stores.log_sqlite import SqliteLogStore


@pytest.fixture(scope="module")
def running():
    with groups.started(servers.Server) as server:
        yield server


@pytest.fixture(params=groups.KINDS)
async def opener(request, tmp_path, running):
    """Opens the store as one more process would."""
    kind = request.param
    if kind != "sqlite":
        running(kind).flush()
    async with contextlib.AsyncExitStack() as stack:

        async def open_one():
            store = SqliteLogStore(tmp_path / "lists.sqlite") if kind == "sqlite" else RedisLogStore(running(kind).url)
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


def next_change(head, **fields):
    return Change(
        generation=head.generation + 1,
        before=head.digest,
        time="2026-12-02T08:00:00Z",
        who="eir@host",
        what="load",
        **fields,
    )


async def commit(store, head=None, rows=b"rows", name="stolen", oldest=0, **fields):
    """Append a change after a head; return its head and change."""
    head = head or Head(kind="devices")
    change = next_change(head, **fields)
    after = following(head, change, entries=3, devices=3)
    await store.commit(name, after, LogEntry(change, rows), seen=head.digest, oldest=oldest)
    return after, change


async def parts_of(store, part_id, name="stolen"):
    return [part async for part in store.base(name, part_id)]


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
        await commit(store)
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
    for module in (log_redis, log_sqlite):
        monkeypatch.setattr(module, "STAGED_S", 1 if module is log_redis else 0.05)
    await store.stage("stolen", "a", [b"x"])
    deadline = time.monotonic() + 60
    while isinstance(store, RedisLogStore) and await parts_of(store, "a"):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    if not isinstance(store, RedisLogStore):
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
        await store.stage("stolen", f"base{number}", [b"x", b"y"])
        head, change = await commit(store, head, base_id=f"base{number}", base_parts=2, oldest=4 if number == 5 else 0)
        changes.append(change)
    assert await store.log("stolen", 0) == [(change, b"rows" if change.generation >= 4 else None) for change in changes]
    kept = [await parts_of(store, f"base{number}") for number in range(6)]
    assert kept == [[]] * 3 + [[b"x", b"y"]] * 3


async def test_records_are_limited_and_those_with_a_base_stay_longer(store, monkeypatch):
    for module in (log_redis, log_sqlite):
        monkeypatch.setattr(module, "RECORDS_KEPT", 3)
        monkeypatch.setattr(module, "BASES_KEPT", 2)
    head = None
    for number in range(9):
        has_base = number in {0, 1, 2, 7}
        if has_base:
            await store.stage("stolen", f"base{number}", [b"x"])
        head, _ = await commit(
            store, head, base_id=f"base{number}" if has_base else "", base_parts=int(has_base), oldest=number
        )
    generations = [entry.change.generation for entry in await store.log("stolen", 0)]
    assert (
        generations == [3, 7, 8, 9]
        if isinstance(store, SqliteLogStore)
        else generations[-3:] == [7, 8, 9] and 3 in generations
    )


async def test_lists_do_not_touch_each_other(store):
    await commit(store, name="stolen")
    head, _ = await commit(store, name="own")
    await commit(store, head, name="own", oldest=2)
    assert [entry.rows for entry in await store.log("stolen", 0)] == [b"rows"]
    assert [*await store.heads()] == ["own", "stolen"]


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
    if isinstance(store, SqliteLogStore):
        await store._file.call(lambda db: db.execute("DELETE FROM heads").rowcount)
    else:
        await store.link.execute("DEL", log_redis.list_key("stolen", "head"))
    with pytest.raises(GenerationConflict):
        await commit(store, head)
    _, change = await commit(store)
    assert await store.log("stolen", 0) == [(change, b"rows")]


async def test_a_damaged_record_affects_no_other(store):
    await commit(store, name="own")
    head, _ = await commit(store)
    _, second = await commit(store, head)
    if isinstance(store, SqliteLogStore):
        for statement in (
            "UPDATE heads SET head = '{\"a\": 1}' WHERE list = 'stolen'",
            "UPDATE log SET change = '[]' WHERE list = 'stolen' AND generation = 1",
        ):
            await store._file.call(lambda db, statement: db.execute(statement).rowcount, statement)
    else:
        await store.link.execute("HSET", log_redis.list_key("stolen", "head"), "head", b"\xff")
        key = log_redis.list_key("stolen", "log")
        await store.link.execute("DEL", key)
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


class TestRedis:
    @pytest.fixture
    async def store(self, server):
        server.flush()
        one = RedisLogStore(server.url)
        yield one
        await one.close()

    @pytest.mark.parametrize("what", ["head", "log", "rows", "parts", "bases"])
    async def test_a_key_of_another_program_stops_the_commit_before_its_first_write(self, store, server, what):
        server.command("SET", log_redis.list_key("stolen", what), "mine")
        with pytest.raises(StoreError, match="another") as caught:
            await commit(store)
        assert caught.value.cause == "corrupt"
        assert (
            server.command("KEYS", "eir:{stolen}*")
            == f"*1\r\n${len('eir:{stolen}:' + what)}\r\neir:{{stolen}}:{what}\r\n".encode()
        )

    async def test_a_head_of_another_type_affects_no_other(self, store, server):
        await commit(store, name="own")
        server.command("SADD", "eir:lists", "stolen")
        server.command("SET", log_redis.list_key("stolen", "head"), "mine")
        heads = await store.heads()
        assert heads["own"].generation == 1
        with pytest.raises(StoreError, match="another type"):
            heads.get("stolen")
        await store.wait(heads.digests, 0.05)

    async def test_a_store_of_an_earlier_format_is_refused(self, store, server):
        server.command("HSET", "eir:{stolen}:state", "form", "3")
        server.command("SADD", "eir:lists", "stolen")
        with pytest.raises(StoreError, match=r"format 3.*eir export") as caught:
            await store.heads()
        assert caught.value.cause == "schema"

    async def test_a_full_redis_takes_nothing(self, store, server):
        head, _ = await commit(store)
        server.command("CONFIG", "SET", "maxmemory", "1")
        try:
            with pytest.raises(StoreError) as caught:
                await commit(store, head)
            assert caught.value.cause == "oom"
            assert await store.heads() == {"stolen": head}
        finally:
            server.command("CONFIG", "SET", "maxmemory", "0")
        assert len(await store.log("stolen", 0)) == 1


async def test_an_earlier_format_of_the_file_is_refused(tmp_path):
    from eir.lists.stores.sqlite import SqliteStore

    old = SqliteStore(tmp_path / "lists.sqlite")
    await old.states()
    await old.close()
    store = SqliteLogStore(tmp_path / "lists.sqlite")
    with pytest.raises(StoreError, match=r"format 3.*eir export"):
        await store.heads()
    await store.close()


def test_the_limits_of_the_contract_are_those_of_the_stores():
    for module in (log_redis, log_sqlite):
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

"""What only the store in Redis owes: its keys, its faults by cause, TLS, Sentinel, a cluster. Users: faults/test_acl.py."""

import asyncio
import contextlib
import json
import re
import socket
import time
from dataclasses import replace

import groups
import pytest
import redis.asyncio
import redis.exceptions as fault
import trustme
from simulated import servers
from simulated.follower import Node
from simulated.patience import FACTOR, PATIENCE_S
from simulated.store_content import Altered, cause_of, event, page, pages_in, pages_of, state, until
from simulated.tcp_server import accepting

from eir.errors import GenerationConflict, NothingToRollBack, StoreChanged, StoreError
from eir.lists.pages.pages import PAGE_KEYS, Page
from eir.lists.record.clock import STORE_TIMEOUT_S
from eir.lists.record.history import chain_faults
from eir.lists.record.store import ACCEPTED, REFUSED
from eir.lists.stores import redis as redis_store
from eir.lists.stores import redis_url
from eir.lists.stores.open import open_store
from eir.lists.stores.redis import RedisStore, link, reading, writing
from eir.lists.stores.redis_url import parse_url
from eir.lists.stores.sqlite import SqliteStore

STATE = {"kind": "devices", "serial": 1, "generation": 1, "highest_serial": 1, "release_digest": ""}

pytestmark = pytest.mark.skipif("redis" not in servers.programs(), reason="redis-server is not installed")

A = pages_of([1, 2, 5 * PAGE_KEYS])
B = [page(0, [3, 4], reasons=b"\x00\x01"), *pages_of([7 * PAGE_KEYS])]


@pytest.fixture(scope="module")
def shared():
    with servers.Server(servers.programs()["redis"]) as server:
        yield server


@pytest.fixture
def server(shared):
    shared.command("FLUSHALL")
    return shared


@pytest.fixture
def own():
    """Servers of one test, with options of its own."""
    with contextlib.ExitStack() as stack:
        yield lambda *options, **how: stack.enter_context(servers.Server(servers.programs()["redis"], *options, **how))


@contextlib.asynccontextmanager
async def opened(url, **how):
    store = RedisStore(url, **how)
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
async def store(server):
    async with opened(server.url) as one:
        yield one


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr("eir.lists.stores.redis_url.ANSWER_TIMEOUT_S", 0.3)
    monkeypatch.setattr("eir.lists.stores.redis_url.RETRIES", 0)


def keys_of(server):
    return set(re.findall(rb"eir:\S+", server.command("KEYS", "*")))


class TestKeys:
    async def test_they_are_as_in_the_design(self, server, store):
        await store.replace("a", state(A), A, seen=0)
        await store.replace("a", state(B, serial=2), B, seen=1)
        await store.record(event("a"))
        names = {re.sub(rb":set:[0-9a-f]+", b":set:ID", key) for key in keys_of(server)}
        assert names == {
            b"eir:lists", b"eir:{a}:state", b"eir:{a}:set:ID", b"eir:{a}:changes", b"eir:{history}:records",
            b"eir:{history}:ledger", b"eir:{history}:outcomes",
        }  # fmt: skip

    async def test_pages_are_plain_bitmaps_under_their_number(self, server, store):
        await store.replace("a", state(B), B, seen=0)
        (key,) = [key for key in keys_of(server) if b":set:" in key]
        assert B[0].keys in server.command("HGET", key, "0")
        assert B[0].extra in server.command("HGET", key, "0+")
        assert B[1].keys in server.command("HGET", key, "7")
        assert server.command("HLEN", key) == b":3\r\n"

    async def test_only_what_is_in_force_stays(self, server, store):
        for seen in range(4):
            await store.replace("a", state(A, serial=seen + 1), A, seen=seen, keep=2)
        lifetimes = [ttl(server, key) for key in keys_of(server) if b":set:" in key]
        # In force, and the two before for a rollback; older ones are gone.
        assert lifetimes == [-1, -1, -1]
        await store.amend("a", state([page(0, [9]), A[1]], serial=5), [page(0, [9])], seen=4, keep=2)
        lifetimes = {key: ttl(server, key) for key in keys_of(server) if b":set:" in key or b":kept:" in key}
        assert [*lifetimes.values()] == [-1, -1, -1]
        assert sum(b":kept:" in key for key in lifetimes) == 1

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            (("HDEL", "eir:{a}:state", "form"), r"list a in Redis \(.*\) has form 1, and this eir reads forms 2 to 3"),
            (("HSET", "eir:{a}:state", "form", 99), r"list a in Redis \(.*\) was written by a newer eir \(form 99, this one knows 3\)"),
        ],
    )  # fmt: skip
    async def test_a_list_of_a_form_that_is_too_old_or_newer_is_read_and_not_changed(self, server, store, change, says):
        await store.replace("a", state(A), A, seen=0)
        assert server.command("HGET", "eir:{a}:state", "form") == b"$1\r\n3\r\n"
        server.command(*change)
        with pytest.raises(StoreError, match=says) as caught:
            await store.replace("a", state(B, serial=2), B, seen=1)
        assert caught.value.cause == "schema"
        assert (await store.state("a")).serial == 1
        assert await pages_in(store) == A

    async def test_data_of_an_older_form_are_announced_before_the_write_that_brings_them_to_ours(self, server):
        said = []
        async with opened(server.url, report=lambda event, **fields: said.append((event, fields["detail"]))) as store:
            await store.replace("a", state(A), A, seen=0, event=event("a"))
            assert "store_upgraded" not in dict(said)
            said.clear()
            for name in ("eir:{a}:state", "eir:{history}:ledger"):
                server.command("HSET", name, "form", 2)
            await store.replace("a", state(B, serial=2), B, seen=1, event=event("a"))
            assert [event for event, _ in said] == ["store_upgraded"] * 2
            assert said[0][1].startswith("list a in Redis (")
            assert " has form 2, and is converted to form 3" in said[0][1]
            assert said[1][1].startswith("the history in Redis (")
            await store.replace("a", state(A, serial=3), A, seen=2, event=event("a"))
            assert len(said) == 2

    async def test_a_rollback_whose_release_is_gone(self, server, store):
        await store.replace("a", state(A), A, seen=0)
        (old,) = [key for key in keys_of(server) if b":set:" in key]
        await store.replace("a", state(B, serial=2), B, seen=1)
        server.command("DEL", old)
        with pytest.raises(NothingToRollBack, match="no longer in Redis"):
            await store.rollback("a", seen=2)
        assert await pages_in(store) == B

    async def test_the_stream_of_changes_is_bounded(self, server, store):
        last = writing.CHANGES_MAX + 15
        for seen in range(last):
            await store.amend("a", state([page(0, [seen])]), [page(0, [seen])], seen=seen)
        assert len(await store.changes("a", last - 4)) == 4
        assert await store.changes("a", 3) is None
        assert server.command("XLEN", "eir:{a}:changes") == b":%d\r\n" % writing.CHANGES_MAX


def ttl(server, key):
    return int(server.command("TTL", key)[1:])


@pytest.mark.usefixtures("impatient")
class TestFaults:
    async def test_nobody_listens(self):
        async with opened(f"redis://127.0.0.1:{servers.free_port()}") as store:
            assert await cause_of(store.states()) == "refused"

    async def test_hanging(self, own):
        server = own()
        async with opened(server.url) as store:
            await store.replace("a", state(A), A, seen=0)
            server.pause()
            try:
                assert await cause_of(store.states()) == "timeout"
                assert await cause_of(store.replace("a", state(B), B, seen=1)) == "timeout"
            finally:
                server.resume()
            await until(lambda: is_a(store))

    async def test_a_password_is_wanted(self, own):
        server = own("--requirepass", "right")
        for url in (server.url, server.url.replace("//", "//:wrong@")):
            async with opened(url) as store:
                with pytest.raises(StoreError) as caught:
                    await store.states()
                assert caught.value.cause == "noauth"
                assert str(caught.value).endswith("; correct the user and the password that `store` names")
                assert "wrong" not in f"{caught.value}{store.link.where}{parse_url(url)!r}"
        async with opened(server.url.replace("//", "//:right@")) as store:
            assert await store.states() == {}

    async def test_a_password_file_is_read_for_each_connection(self, own, tmp_path):
        """So a password may change while a node runs; a file that is away meanwhile is a fault that passes."""
        server, file = own("--requirepass", "right"), tmp_path / "password"

        def cut():
            assert server.command("AUTH", password, then=["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"])

        file.write_text("right\n")
        password = "right"
        async with opened(f"{server.url}?password_file={file}") as store:
            await store.replace("a", state(A), A, seen=0)
            async with Node(store, {"a": "devices"}) as node:
                file.unlink()
                cut()
                await until(lambda: node.follower.errors["noauth"])
                details = [
                    fields["detail"]
                    for event, fields in node.events
                    if event == "store_failed" and fields["reason"] == "noauth"
                ]
                assert f"password file {file} cannot be read: No such file" in details[0]
                assert node.keys() == [1, 2, 5 * PAGE_KEYS]
                assert server.command("AUTH", password, then=["CONFIG", "SET", "requirepass", "other"])
                password = "other"
                file.write_text("other\n")
                cut()
                await until(lambda: is_a(store))
                await store.replace("a", state(B, serial=2), B, seen=1)
                await node.reaches(2)

    async def test_a_password_file_that_is_not_there_is_named_at_the_start(self, own, tmp_path):
        url = f"{own('--requirepass', 'right').url}?password_file={tmp_path}/password"
        with pytest.raises(StoreError, match=f"password_file {tmp_path}/password") as caught:
            open_store(url, tmp_path)
        assert caught.value.cause == "url"
        # A process of a node that has started takes it as a fault of each call.
        store = open_store(url, tmp_path, check=False)
        assert await cause_of(store.states()) == "noauth"
        (tmp_path / "password").write_text("right")
        assert await store.states() == {}
        await store.close()

    async def test_loading(self, own):
        server = own("--key-load-delay", "2000", "--loading-process-events-interval-bytes", "1024")
        for at in range(0, 20_000, 500):
            server.command("MSET", *[text for n in range(at, at + 500) for text in (f"k{n}", "x" * 100)])
        server.command("SAVE")
        server.kill()
        server.launch()
        await until(lambda: answers(server))
        async with opened(server.url) as store:
            cause = "timeout"
            while cause == "timeout":  # of a busy machine: the server loads for 40 s and answers now and then
                cause = await cause_of(store.states())
            assert cause == "loading"
            with pytest.raises(StoreError, match="; wait until Redis has loaded its data"):
                await store.states()

    async def test_a_replica_is_not_for_writing(self, own):
        master = own()
        replica = own("--replicaof", "127.0.0.1", str(master.port))
        async with opened(replica.url) as store:
            with pytest.raises(StoreError, match="; name the primary in `store`, or its Sentinels") as caught:
                await store.record(event())
            assert caught.value.cause == "readonly"

    async def test_a_user_without_a_permission(self, own):
        server = own()
        server.command("ACL", "SETUSER", "reader", "on", ">right", "%R~*", "+@read", "+info", "+acl|dryrun")
        async with opened(server.url.replace("//", "//reader:right@")) as store:
            with pytest.raises(StoreError, match=r"; give this user the rights in config/LISTS.md") as caught:
                await store.record(event())
            assert caught.value.cause == "noperm"

    async def test_memory_is_full(self, own):
        server = own("--maxmemory", "3mb")
        many = [page(n, range(n % 7, 30_000, 7)) for n in range(3_000)]
        async with opened(server.url) as store:
            await store.replace("a", state(A), A, seen=0)
            assert await cause_of(store.replace("a", state(many), many, seen=1)) == "oom"
            assert await pages_in(store) == A

    async def test_a_policy_that_drops_lists_is_reported(self, own):
        said = []
        async with opened(
            own("--maxmemory-policy", "allkeys-lru").url, report=lambda *what, **more: said.append((what, more))
        ) as store:
            await store.states()
        reported = {what: more for (what,), more in said}
        assert reported.keys() == {"store_may_evict", "store_unprotected"}
        assert reported["store_may_evict"]["reason"] == "allkeys-lru"

    async def test_it_is_reported_when_redis_comes_later_too(self, own):
        said = []
        server = own("--maxmemory-policy", "allkeys-lru")
        server.kill()
        async with opened(server.url, report=lambda what, **_: said.append(what)) as store:
            assert await cause_of(store.states()) == "refused"
            server.start()
            assert await store.states() == {}
            assert await store.states() == {}
        assert said == ["store_may_evict", "store_unprotected"]

    async def test_a_change_that_no_replica_has_is_reported(self, own):
        master, said = own(), []
        replica = own("--replicaof", "127.0.0.1", str(master.port))

        def heard(what, **_):
            said.append(what)

        await until(
            lambda: (
                b"connected_slaves:1" in master.command("INFO", "replication")
                and b"state=online" in master.command("INFO", "replication")
            )
        )
        async with opened(master.url, report=heard, replica_wait_ms=60_000) as store:
            await store.replace("a", state(A), A, seen=0)
        assert said == ["store_unprotected"]
        replica.pause()
        try:
            async with opened(master.url, report=heard, replica_wait_ms=100) as store:
                await store.replace("a", state(B), B, seen=1)
        finally:
            replica.resume()
        assert said == ["store_unprotected", "store_unprotected", "store_not_replicated"]


def answers(server):
    try:
        return server.command("PING")
    except OSError:
        return False


async def is_a(store):
    try:
        return await pages_in(store) == A
    except StoreError:
        return False


async def test_a_reader_that_is_cancelled_ends(store):
    """At any moment: redis before Python 3.12 loses a cancellation that comes while it sends."""
    await store.replace("a", state(A), A, seen=0)

    async def read_for_ever():
        while True:
            await pages_in(store)
            with contextlib.suppress(StoreError):
                await store.wait({"a": 1}, 0.001)

    for moment in range(100):
        reading = asyncio.create_task(read_for_ever())
        for _ in range(moment):
            await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait([reading], timeout=PATIENCE_S)
        assert reading.cancelled()


async def details_of(store, **selected):
    return [each.detail for each in await store.history("a", **selected)]


class TestPendingEvents:
    """A node reads the row of a list, and appends its event only after something else has happened."""

    @pytest.fixture
    async def row(self, store, monkeypatch):
        """Row of a write whose event is not in the history yet."""

        async def dead(*_):
            raise StoreError("refused", "the writer died")

        with monkeypatch.context() as patched:
            patched.setattr(redis_store.history, "append", dead)
            await store.replace("a", state(A), A, seen=0, event=event("a", detail="first"))
        return await reading.read_row(store.link, "a", past=True)

    async def test_another_node_has_written_the_list_again(self, store, row):
        await store.replace("a", state(B, serial=2), B, seen=1, event=event("a", detail="second"))
        await writing.append_pending(store.link, row)
        await store.append_pending()
        assert await details_of(store) == ["first", "second"]

    async def test_the_list_is_lost(self, server, store, row):
        server.command("DEL", "eir:{a}:state")
        for _ in range(2):
            await writing.append_pending(store.link, row)
        assert await details_of(store) == ["first"]

    async def test_the_list_is_lost_and_loaded_again(self, server, store, row):
        server.command("DEL", "eir:{a}:state")
        await store.replace("a", state(B), B, seen=0, event=event("a", detail="second"))
        for _ in range(2):
            await writing.append_pending(store.link, row)
            await store.append_pending()
        assert await details_of(store) == ["second", "first"]

    async def test_the_history_is_read_while_others_append(self, store, row, monkeypatch):
        read_history, asked = redis_store.history.read_history, []

        async def later(*what):
            asked.append(what)
            if len(asked) == 1:
                await store.replace("a", state(B, serial=2), B, seen=row.generation, event=event("a", detail="second"))
            return await read_history(*what)

        monkeypatch.setattr(redis_store.history, "read_history", later)
        assert await details_of(store, limit=1) == ["second"]
        assert len(asked) == 2

    async def test_a_list_is_written_while_pending_events_are_sought(self, store, row, monkeypatch):
        read_appended, asked = redis_store.history.read_appended, []

        async def later(*what):
            asked.append(what)
            if len(asked) == 1:
                await store.replace("a", state(B, serial=2), B, seen=row.generation, event=event("a", detail="second"))
            return await read_appended(*what)

        monkeypatch.setattr(redis_store.history, "read_appended", later)
        assert await store._pending() == []


async def test_pages_are_read_in_batches_of_bounded_size(store):
    pages = [page(n, range(0, 1_000_000, 997)) for n in range(400)]
    await store.replace("a", state(pages), pages, seen=0)
    sizes = [sum(len(each.keys) + len(each.extra) for each in batch) async for _, batch in store.pages("a")]
    assert 1 << 15 < max(sizes) < 3 << 15


class TestSwitch:
    async def test_a_staged_set_that_vanishes(self, server, store, monkeypatch):
        stored = await store.replace("a", state(A), A, seen=0)
        stage = writing.stage

        async def vanishing(link, key, pages, **how):
            count = await stage(link, key, pages, **how)
            server.command("DEL", key)
            return count

        monkeypatch.setattr(writing, "stage", vanishing)
        assert await cause_of(store.replace("a", state(B, serial=2), B, seen=1)) == "staging_lost"
        assert await cause_of(store.amend("a", state(B, serial=2), B, seen=1)) == "staging_lost"
        assert await store.state("a") == stored
        assert await pages_in(store) == A

    async def test_a_flush_in_the_middle_of_a_load(self, server, store):
        stored = await store.replace("a", state(A), A, seen=0)

        async def flushed():
            yield B
            server.command("FLUSHALL")

        newer = replace(state(B, serial=2), generation=2)
        assert await cause_of(store.restore("a", newer, flushed(), seen=stored.generation)) == "staging_lost"
        assert not {key for key in keys_of(server) if b"{a}" in key}

    @pytest.mark.parametrize(
        ("meanwhile", "cause"),
        [("done", None), ("nothing", "refused"), ("another write", "conflict"), ("a flush", "staging_lost")],
    )
    async def test_an_exec_whose_answer_is_lost(self, server, store, monkeypatch, meanwhile, cause):
        await store.replace("a", state(A), A, seen=0)
        other, more = RedisStore(server.url), pages_of([7 * PAGE_KEYS])
        client = await store.link._client("eir:{a}:state")
        pipeline = client.pipeline

        def breaking(*args, **how):
            pipe = pipeline(*args, **how)
            execute = pipe.execute

            async def lost():
                if meanwhile == "another write":
                    await other.amend("a", state([*A, *more], serial=2), more, seen=1)
                elif meanwhile == "a flush":
                    server.command("FLUSHALL")
                if meanwhile in {"done", "a flush"}:
                    await execute()
                raise ConnectionResetError("the answer is lost")

            if pipe.is_transaction:
                pipe.execute = lost
            return pipe

        monkeypatch.setattr(client, "pipeline", breaking)
        write = store.replace("a", state(B, serial=2), B, seen=1)
        if cause == "conflict":
            with pytest.raises(GenerationConflict):
                await write
        elif cause is not None:
            assert await cause_of(write) == cause
        else:
            assert (await write).generation == 2
        await other.close()
        assert (
            await pages_in(store) == {"done": B, "nothing": A, "another write": [*A, *more], "a flush": []}[meanwhile]
        )

    @pytest.mark.parametrize("refused", [False, True])
    async def test_a_history_whose_ledger_was_evicted_goes_on(self, server, store, refused):
        for number in range(3):
            await store.record(event(f"list-{number}"))
        await store.record(event("list-0", REFUSED))
        before = await store.ledger()
        server.command("DEL", "eir:{history}:ledger")
        await store.record(event("list-1", REFUSED) if refused else event("list-3"))
        now, records = await store.ledger(), [record async for batch in store.records() for record in batch]
        assert now.number == before.number + (not refused) == len(records)
        assert not list(chain_faults(records, await store.folds(), now))
        assert [each.list for each in await store.history() if each.outcome == ACCEPTED] == [
            f"list-{n}" for n in range(len(records))
        ]

    async def test_a_history_whose_ledger_was_evicted_is_trimmed_as_before(self, server, store):
        for day in range(1, 5):
            await store.record(event("stolen", time=f"2026-11-0{day}T00:00:00Z"))
        server.command("DEL", "eir:{history}:ledger")
        assert await store.trim_history("2026-11-03T00:00:00Z", 1 << 20, event(None, what="trim")) == 2
        records = [record async for batch in store.records() for record in batch]
        assert [record.number for record in records] == [3, 4, 5]
        assert not list(chain_faults(records, (), await store.ledger()))

    async def test_a_set_that_was_evicted_is_a_list_that_was_lost(self, server, store):
        await store.replace("a", state(A, serial=7), A, seen=0)
        (key,) = [key for key in keys_of(server) if b":set:" in key]
        server.command("DEL", key)
        assert await store.state("a") is None
        assert await store.states() == {}
        assert await pages_in(store) == []
        # What is loaded next goes on from what is known.
        stored = await store.replace("a", state(B, serial=8), B, seen=0)
        assert (stored.generation, stored.highest_serial) == (2, 8)
        assert await pages_in(store) == B

    async def test_part_of_a_set_that_is_gone_is_no_list_either(self, server, store):
        await store.replace("a", state(A), A, seen=0)
        (key,) = [key for key in keys_of(server) if b":set:" in key]
        server.command("HDEL", key, "0")
        assert await store.state("a") is None

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("state", "{"), ("state", "[]"), ("state", '{"kind": "devices"}'), ("state", json.dumps({**STATE, "serial": "7"})),
            ("state", json.dumps({**STATE, "expires": "2026-12-01T00:00:00"})), ("state", json.dumps({**STATE, "issued": "soon"})),
            ("state", json.dumps({**STATE, "content_digest": "x"})), ("state", json.dumps({**STATE, "signers": [7]})),
            ("fields", "many"), ("set", b"\xff"),
        ],
    )  # fmt: skip
    async def test_what_nobody_here_wrote_is_named_and_a_node_goes_on_from_memory(self, server, store, field, value):
        await store.replace("a", state(A), A, seen=0)
        async with Node(store, {"a": "devices"}) as node:
            server.command("HSET", "eir:{a}:state", field, value)
            assert await cause_of(store.state("a")) == "corrupt"
            await until(lambda: node.follower.errors["corrupt"])
            assert node.keys() == [1, 2, 5 * PAGE_KEYS]
        async with Node(store, {"a": "devices"}) as late:
            assert late.follower.missing == ("a",)
            assert late.follower.errors["corrupt"]

    async def test_a_damaged_state_keeps_no_other_list_from_being_followed(self, server, store):
        for name in ("a", "b", "c"):
            await store.replace(name, state(A), A, seen=0)
        async with Node(store, {"a": "devices", "b": "devices"}) as node:
            good = server.command("HGET", "eir:{a}:state", "state").split(b"\r\n")[1]
            for name in ("a", "c"):  # c is none of this node's lists
                server.command("HSET", f"eir:{{{name}}}:state", "state", "{")
            await until(lambda: node.follower.errors["corrupt"])
            await store.replace("b", state(B, serial=8), B, seen=1)
            await until(lambda: node.index.lists["b"].state.serial == 8)
            assert node.keys() == [1, 2, 5 * PAGE_KEYS]
            assert node.follower.up
            assert not node.follower.lost
            await until(lambda: node.lag_s > 1)
            async with Node(store, {"a": "devices", "b": "devices"}) as late:
                assert late.follower.missing == ("a",)
                assert late.index.lists["b"].state.serial == 8
            server.command("HSET", "eir:{a}:state", "state", good)
            await store.amend("a", state([page(0, [7]), A[1]], serial=8), [page(0, [7])], seen=1)
            await until(lambda: node.keys() == [7, 5 * PAGE_KEYS])
            await until(lambda: node.lag_s < 1)

    async def test_a_list_named_like_the_history(self, store):
        await store.replace("history", state(A), A, seen=0)
        await store.record(event("history"))
        assert await pages_in(store, "history") == A
        assert len(await store.history()) == 1


class TestNodes:
    async def test_a_load_and_a_single_entry_reach_every_node(self, server, store):
        async with contextlib.AsyncExitStack() as stack:
            nodes = []
            for _ in range(3):
                one = await stack.enter_async_context(opened(server.url))
                nodes.append(await stack.enter_async_context(Node(one, {"a": "devices"})))
            await store.replace("a", state(A), A, seen=0)
            for node in nodes:
                await node.reaches(1)
            touched = [page(0, [1, 2, 3])]
            await store.amend("a", state([touched[0], A[1]]), touched, seen=1)
            for node in nodes:
                await node.reaches(2)
                assert node.index.lists["a"].holds(3)
                assert not node.follower.errors

    async def test_a_change_that_the_log_lacks_is_found_by_the_next_poll(self, server, store, monkeypatch):
        """Trimmed before anyone read it: the follower looks at the states each second, and reads the whole list."""
        await store.replace("a", state(A), A, seen=0)
        async with opened(server.url) as one:
            waits, wait = [], one.wait

            async def noted(seen, timeout_s):
                waits.append((seen["a"], timeout_s))
                await wait(seen, timeout_s)

            monkeypatch.setattr(writing, "_log_change", lambda pipe, stream, _: pipe.execute_command("UNLINK", stream))
            async with Node(Altered(one, wait=noted), {"a": "devices"}) as node:
                await until(lambda: waits)
                await store.amend("a", state([page(0, [9]), A[1]], serial=2), [page(0, [9])], seen=1)
                begun = len(waits)
                await node.reaches(2)
            assert node.keys() == [9, 5 * PAGE_KEYS]
            assert {timeout_s for _, timeout_s in waits} == {1.0}
            assert [seen for seen, _ in waits[begun:]].count(
                1
            ) <= 1  # one look may have been made just before the change
            assert not node.follower.errors

    async def test_an_entry_without_its_state_does_not_make_a_follower_spin(self, server, store):
        await store.replace("a", state(A), A, seen=0)
        server.command("XADD", "eir:{a}:changes", "9-0", "before", "8")
        began = time.monotonic()
        for _ in range(4):
            await store.wait({"a": 1}, 60)
        assert 3 * redis_store.UNCHANGED_PAUSE_S <= time.monotonic() - began < 60

    async def test_an_entry_with_its_state_is_told_at_once(self, store, monkeypatch):
        await store.replace("a", state(A), A, seen=0)
        monkeypatch.setattr(redis_store, "UNCHANGED_PAUSE_S", 60)
        async with asyncio.timeout(STORE_TIMEOUT_S):
            await store.wait({"a": 0}, 60)

    async def test_pages_of_a_list_that_changes_during_each_read(self, store, monkeypatch):
        async def changed(*_):
            raise StoreChanged("changed")

        await store.replace("a", state(A), A, seen=0)
        monkeypatch.setattr(reading, "read_each", changed)
        with pytest.raises(StoreChanged, match="changed 5 times"):
            await store.some_pages("a", [0])

    async def test_a_flush_is_noticed_and_healed_from_a_copy(self, server, tmp_path, store):
        copy = SqliteStore(tmp_path / "copy.sqlite")
        await store.replace("a", state(A, serial=5), A, seen=0)
        async with Node(store, {"a": "devices"}, copy=copy, who="node") as node:
            await until(lambda: has_state(copy))
            server.command("FLUSHALL")
            await until(lambda: "store_healed" in node.said())
            assert node.index.lists["a"].holds(1)
            await until(lambda: not node.follower.lost)
            assert (await store.state("a")).serial == 5
            await store.replace("a", state(B, serial=6), B, seen=1)
            await node.reaches(2)
        await copy.close()

    @pytest.mark.usefixtures("impatient")
    async def test_a_server_that_comes_back_empty(self, own, tmp_path):
        server, copy = own(), SqliteStore(tmp_path / "copy.sqlite")
        async with opened(server.url) as store:
            await store.replace("a", state(A), A, seen=0)
            async with Node(store, {"a": "devices"}, copy=copy) as node:
                await until(lambda: has_state(copy))
                server.kill()
                await until(lambda: node.follower.errors["refused"])
                assert node.index.lists["a"].holds(1)
                server.start()
                await until(lambda: "store_healed" in node.said(), 20)
                assert await pages_in(store) == A
        await copy.close()


async def has_state(copy):
    return await copy.state("a") is not None


class TestUrls:
    @pytest.mark.parametrize(
        ("url", "expected"),
        [
            ("redis://host", ("single", (("host", 6379),), "", 0, "redis://host:6379")),
            ("redis://u:p@[::1]:7000/3", ("single", (("::1", 7000),), "", 3, "redis://[::1]:7000")),
            (
                "redis+sentinel://a,b:26380/lists",
                ("sentinel", (("a", 26379), ("b", 26380)), "lists", 0, "redis://a:26379"),
            ),
            ("rediss+sentinel://a/lists/2", ("sentinel", (("a", 26379),), "lists", 2, "rediss://a:26379")),
            ("redis+cluster://a:1,b:2", ("cluster", (("a", 1), ("b", 2)), "", 0, "redis://a:1")),
        ],
    )
    def test_forms(self, url, expected):
        found = parse_url(url, {})
        assert (found.form, found.hosts, found.service, found.database, found.first_server) == expected

    def test_secrets_come_from_the_files_that_the_url_names(self, tmp_path):
        file = tmp_path / "password"
        file.write_text("from file\n")
        assert parse_url("redis://u@h", {"EIR_REDIS_PASSWORD": "from default"}).options["password"] == "from default"
        assert parse_url("redis://u@h?password_env=MINE", {"MINE": "mine"}).options["password"] == "mine"
        found = parse_url(f"redis://u@h?password_file={file}", {"EIR_REDIS_PASSWORD": "x"})
        assert found.options["credential_provider"].get_credentials() == ("u", "from file")
        assert "password" not in found.options
        assert parse_url("redis://u:p%40%3A@h", {}).options["password"] == "p@:"
        assert "from file" not in repr(found)

    async def test_a_connection_that_is_refused_or_cut_is_tried_again_after_pauses_that_grow_and_differ(
        self, monkeypatch
    ):
        """By the library: with so many workers on one Redis, none is to come back at the same moment as the others."""
        came, pauses = [], []

        async def hang_up(_, writer):
            came.append(None)
            writer.close()

        pause = asyncio.sleep

        async def sleep(seconds, *result):
            pauses.append(seconds)
            return await pause(0, *result)

        async with accepting(hang_up) as (_, port):
            url = f"redis://127.0.0.1:{port}"
            monkeypatch.setattr("redis.asyncio.retry.sleep", sleep)
            for _ in range(20):
                async with opened(url) as store:
                    assert await cause_of(store.states()) == "refused"
        tries = 1 + redis_url.RETRIES
        assert len(came) == 20 * tries
        assert len(set(pauses)) > 20
        first, second = pauses[::2], pauses[1::2]
        assert max(first) < max(second) <= redis_url.BACKOFF_CAP_S

    def test_tls_is_verified(self):
        options = parse_url("rediss://h?ca_file=/ca&cert_file=/c&key_file=/k", {}, check=False).options
        assert {name: options[name] for name in options if name.startswith("ssl")} == {
            "ssl": True, "ssl_cert_reqs": "required", "ssl_check_hostname": True, "ssl_ca_certs": "/ca",
            "ssl_certfile": "/c", "ssl_keyfile": "/k",
        }  # fmt: skip
        assert parse_url("rediss+cluster://h", {}).options["ssl"]
        assert "ssl" not in parse_url("redis://h", {}).options

    @pytest.mark.parametrize(
        ("url", "says"),
        [
            ("http://h", "scheme 'http'"),
            ("redis://", "names no host"),
            ("redis://h/x", "database number"),
            ("redis://h/1/2", "database number"),
            ("redis+cluster://h/1", "database number"),
            ("redis+sentinel://h", "/SERVICE"),
            ("redis://h:99999", "bad port"),
            ("redis://:se/cret@h", "database number after the host in the store's URL (in a password / is written %2F"),
            ("redis+sentinel://u:x/sec/ret@h/s", "database number"),
            ("redis://u:se#cret@h:6379", "bad port"),
            ("redis://u:se?cret@h", "expected options after the ? in the store's URL (in a password"),
            (
                "redis://u:6?s=cret@h",
                "expected options after the ? in the store's URL (in a password / is written %2F, ? %3F",
            ),
            ("redis://h?pasword_file=x", "unknown option 'pasword_file'"),
            (
                "redis://h?password_file=/nowhere/at/all",
                "password_file /nowhere/at/all of the store cannot be read: No such file",
            ),
            ("redis+sentinel://h/s?sentinel_password_file=/nowhere", "sentinel_password_file /nowhere"),
            ("redis://h?password_file=/", "password_file / of the store cannot be read: Is a directory"),
            ("rediss://h?ca_file=/nowhere/ca.pem", "ca_file /nowhere/ca.pem"),
            ("redis://h?password_env=NOT_THERE", "NOT_THERE"),
        ],
    )
    def test_an_error_names_the_invalid_part_of_the_url(self, url, says):
        with pytest.raises(StoreError, match=re.escape(says)) as caught:
            parse_url(url, {})
        assert caught.value.cause == "url"
        assert "cret" not in str(caught.value)


class TestTls:
    """Certificates on both sides, whatever form the store has."""

    @pytest.fixture
    def tls(self, tmp_path):
        """Settings of a server that wants them, but for its port."""
        authority = trustme.CA()
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        for name in ("server", "client"):
            issued = authority.issue_cert("127.0.0.1" if name == "server" else "node@host")
            issued.private_key_pem.write_to_path(tmp_path / f"{name}.key")
            for at, part in enumerate(issued.cert_chain_pems):
                part.write_to_path(tmp_path / f"{name}.pem", append=at > 0)
        return {
            "tls-cert-file": tmp_path / "server.pem", "tls-key-file": tmp_path / "server.key", "tls-ca-cert-file": tmp_path / "ca.pem",
            "tls-auth-clients": "yes", "tls-cluster": "yes", "tls-replication": "yes",
        }  # fmt: skip

    @pytest.fixture
    def guarded(self, own, tls):
        """Starts a server that has a port for TLS too, and gives both."""

        def start(*options):
            port = servers.free_port()
            return own(
                *(text for name, value in {"tls-port": port, **tls}.items() for text in (f"--{name}", str(value))),
                *options,
            ), port

        return start

    @pytest.fixture
    def single(self, guarded):
        return f"rediss://127.0.0.1:{guarded()[1]}"

    @pytest.fixture
    def sentinel(self, own, guarded, tls, tmp_path):
        _, port = guarded()
        watcher_port = servers.free_port()
        settings = {"sentinel monitor": f"lists 127.0.0.1 {port} 1", "tls-port": watcher_port, **tls}
        lines = [f'{name} "{value}"' if "/" in str(value) else f"{name} {value}" for name, value in settings.items()]
        (tmp_path / "sentinel.conf").write_text("\n".join([*lines, ""]))
        own(folder=tmp_path, sentinel=tmp_path / "sentinel.conf")
        return f"rediss+sentinel://127.0.0.1:{watcher_port}/lists"

    @pytest.fixture
    def cluster(self, guarded):
        made = [guarded("--cluster-enabled", "yes") for _ in range(3)]
        for at, (node, _) in enumerate(made):
            node.command("CLUSTER", "ADDSLOTSRANGE", at * 5461 + (at > 0), 16383 if at == 2 else (at + 1) * 5461)
        for _, port in made[1:]:
            made[0][0].command("CLUSTER", "MEET", "127.0.0.1", port)
        groups.until(lambda: all(b"cluster_state:ok" in node.command("CLUSTER", "INFO") for node, _ in made))
        return "rediss+cluster://" + ",".join(f"127.0.0.1:{port}" for _, port in made)

    @pytest.mark.parametrize("form", ["single", "sentinel", "cluster"])
    async def test_with_certificates_on_both_sides(self, form, request, tmp_path):
        base = f"{request.getfixturevalue(form)}?ca_file={tmp_path / 'ca.pem'}"
        ours = f"{base}&cert_file={tmp_path / 'client.pem'}&key_file={tmp_path / 'client.key'}"
        async with opened(ours) as store:
            for name in "abc":
                await store.replace(name, state(A), A, seen=0)
                assert await pages_in(store, name) == A
        async with opened(base) as without:
            assert await cause_of(without.states()) in {"refused", "timeout", "clusterdown"}
        other = trustme.CA()
        other.cert_pem.write_to_path(tmp_path / "ca.pem")
        async with opened(ours) as deceived:
            assert await cause_of(deceived.states()) in {"refused", "clusterdown"}


@pytest.mark.usefixtures("impatient")
async def test_a_master_that_sentinel_names_and_a_failover(own, tmp_path):
    master = own()
    replica = own("--replicaof", "127.0.0.1", str(master.port))
    await until(lambda: b"state=online" in master.command("INFO", "replication"))
    watchers = []
    for number in range(3):
        folder = tmp_path / f"sentinel-{number}"
        folder.mkdir()
        (folder / "sentinel.conf").write_text(
            f"sentinel monitor lists 127.0.0.1 {master.port} 2\nsentinel down-after-milliseconds lists 500\n"
            "sentinel failover-timeout lists 3000\n"
        )
        watchers.append(own(folder=folder, sentinel=folder / "sentinel.conf"))
    hosts = ",".join(f"127.0.0.1:{watcher.port}" for watcher in watchers)
    known = b"num-other-sentinels\r\n$1\r\n2"
    await until(lambda: all(known in watcher.command("SENTINEL", "MASTER", "lists") for watcher in watchers), 30)
    async with opened(f"redis+sentinel://{hosts}/lists") as store:
        await store.replace("a", state(A), A, seen=0)
        async with Node(store, {"a": "devices"}) as node:
            master.kill()
            await until(lambda: node.follower.errors, 20)

            async def promoted():
                try:
                    await store.replace("a", state(B, serial=2), B, seen=1)
                except StoreError:
                    return False
                return True

            await until(promoted, 40)
            assert b"role:master" in replica.command("INFO", "replication")
            await until(lambda: node.generation() == 2, 20)
            assert node.index.lists["a"].holds(3)


async def test_sentinels_that_are_asked_at_the_same_time_all_stay_known(own, tmp_path):
    master, away = own(), servers.free_port()
    config = tmp_path / "sentinel.conf"
    config.write_text(f"sentinel monitor lists 127.0.0.1 {master.port} 1\n")
    watcher = own(folder=tmp_path, sentinel=config)
    async with opened(f"redis+sentinel://127.0.0.1:{away},127.0.0.1:{watcher.port}/lists") as store:
        await asyncio.gather(*(store.replace(name, state(A), A, seen=0) for name in "abcdef"))
        known = [client.connection_pool.connection_kwargs["port"] for client in store.link._sentinel.sentinels]
        assert sorted(known) == sorted([away, watcher.port])


async def test_a_cluster_of_three(own):
    nodes = [own("--cluster-enabled", "yes", "--cluster-node-timeout", "2000") for _ in range(3)]
    for at, node in enumerate(nodes):
        first, last = at * 5461 + (at > 0), 16383 if at == 2 else (at + 1) * 5461
        assert node.command("CLUSTER", "ADDSLOTSRANGE", first, last) == b"+OK\r\n"
    for node in nodes[1:]:
        node.command("CLUSTER", "MEET", "127.0.0.1", nodes[0].port)
    await until(
        lambda: all(
            b"cluster_state:ok" in n.command("CLUSTER", "INFO")
            and b"cluster_known_nodes:3" in n.command("CLUSTER", "INFO")
            for n in nodes
        ),
        30,
    )
    names = ["a", "b", "c", "history", "stolen-national"]
    async with opened(f"redis+cluster://127.0.0.1:{nodes[0].port},127.0.0.1:{nodes[1].port}") as store:
        for name in names:
            await store.replace(name, state(A), A, seen=0)
            await store.replace(name, state(B, serial=2), B, seen=1)
            await store.record(event(name))
        assert all(b"eir:" in node.command("KEYS", "eir:{*}:state") for node in nodes)
        async with Node(store, dict.fromkeys(names, "devices")) as node:
            for name in names:
                await store.amend(name, state([page(0, [9]), B[1]], serial=3), [page(0, [9])], seen=2)
                await node.reaches(3, name)
                await store.rollback(name, seen=3)
                await node.reaches(4, name)
            assert not node.follower.errors
            assert len(await store.history()) == len(names)
            assert await store.claim("inbox", "me", 5)
            # A slot that moves to another node, with nothing in the way of the next read.
            slot = int(nodes[0].command("CLUSTER", "KEYSLOT", "eir:{moved}:state")[1:])
            owner = next(n for n in nodes if b"MOVED" not in n.command("HLEN", "eir:{moved}:state"))
            target = next(n for n in nodes if n is not owner)
            identity = target.command("CLUSTER", "MYID").split(b"\r\n")[1]
            for n in nodes:
                assert n.command("CLUSTER", "SETSLOT", slot, "NODE", identity) == b"+OK\r\n"
            await store.replace("moved", state(A), A, seen=0)
            assert await pages_in(store, "moved") == A
            assert b"eir:{moved}:state" in target.command("KEYS", "eir:{moved}:state")


class TestOneOfSeveralHangs:
    """A host that was switched off answers nothing at all; who asks it where to go gives up early enough to ask the next."""

    @pytest.fixture(autouse=True)
    def _short(self, monkeypatch):
        assert 2 * redis_url.GUIDE_TIMEOUT_S < STORE_TIMEOUT_S, "two may hang"
        monkeypatch.setattr(redis_url, "GUIDE_TIMEOUT_S", min(redis_url.GUIDE_TIMEOUT_S, 0.5 * FACTOR))

    async def in_time(self, url):
        async with opened(url) as store, asyncio.timeout(STORE_TIMEOUT_S):
            assert "a" in await store.states()

    async def test_a_sentinel(self, redis_of):
        with groups.Watched(redis_of, sentinels=1) as watched, contextlib.ExitStack() as stack:
            async with opened(watched.url) as store:
                await store.replace("a", state(A), A, seen=0)
            holes = [stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(2)]
            await self.in_time(watched.url.replace("//", "//" + "".join(f"127.0.0.1:{port}," for port in holes)))

    async def test_a_node_of_a_cluster(self, redis_of):
        with groups.Cluster(redis_of, "--cluster-require-full-coverage", "no") as cluster:
            async with opened(cluster.url) as store:
                await store.replace("a", state(A), A, seen=0)
            needed = {cluster.owner(key) for key in ("eir:{a}:state", "eir:lists")}
            (other, *_) = set(cluster.nodes) - needed
            other.pause()
            try:
                for _ in range(4):  # the order in which they are asked is random
                    await self.in_time(cluster.url)
            finally:
                other.resume()


@pytest.fixture
def redis_of():
    return servers.programs()["redis"]


def test_the_form_of_a_state_is_json_for_other_readers(server):
    async def write():
        async with opened(server.url) as store:
            await store.replace("a", state(A, serial=42), A, seen=0)

    asyncio.run(write())
    text = server.command("HGET", "eir:{a}:state", "state").split(b"\r\n")[1]
    assert json.loads(text)["serial"] == 42


def test_a_page_that_is_not_there_is_left_out():
    assert reading.build_pages([5, 6, 7], [None, None, b"kk", b"x", b"", b"T"], plain=False) == [
        Page(6, b"kk", b"x"),
        Page(7, b"", b"T"),
    ]
    assert reading.build_pages([5, 6], [None, b"kk"], plain=True) == [Page(6, b"kk")]


class TestReadingTheNames:
    """Of a list's pages: HSCAN leaves out the values where it can, which Redis 7.0 and 7.2 cannot."""

    @pytest.fixture
    def scans(self, monkeypatch):
        """As on Redis 7.2: the arguments of each HSCAN that was tried."""
        tried, execute = [], redis.asyncio.Redis.execute_command

        async def older(client, command, *args, **options):
            if command == "HSCAN":
                tried.append(args)
                if "NOVALUES" in args:
                    raise fault.ResponseError("syntax error")
            return await execute(client, command, *args, **options)

        monkeypatch.setattr(redis.asyncio.Redis, "execute_command", older)
        return tried

    @pytest.mark.parametrize("pages", [A, B])
    async def test_where_values_come_with_them(self, store, scans, pages):
        await store.replace("a", state(pages), pages, seen=0)
        assert await pages_in(store) == pages
        assert ["NOVALUES" in args for args in scans] == [True, False]
        assert await pages_in(store) == pages
        assert ["NOVALUES" in args for args in scans] == [True, False, False]

    async def test_another_fault_is_one(self, server, store):
        await store.replace("a", state(A), A, seen=0)
        server.command("ACL", "SETUSER", "default", "-hscan")
        try:
            assert await cause_of(pages_in(store)) == "noperm"
        finally:
            server.command("ACL", "SETUSER", "default", "+@all")
        assert await pages_in(store) == A

    async def test_in_many_steps(self, store):
        many = pages_of(range(0, 5 * reading.SCAN_COUNT * PAGE_KEYS, PAGE_KEYS))
        await store.replace("a", state(many), many, seen=0)
        assert await pages_in(store) == many

    async def test_a_list_that_changes_between_names_and_pages_is_not_mixed(self, store, monkeypatch):
        await store.replace("a", state(B), B, seen=0)
        numbers = reading.read_numbers

        async def then_changed(*args):
            found = await numbers(*args)
            after = [page(0, [9]), B[1]]
            await store.amend("a", state(after, serial=2), [after[0]], seen=1)
            return found

        monkeypatch.setattr(reading, "read_numbers", then_changed)
        assert await cause_of(pages_in(store)) == "changed"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis://127.0.0.1:1", "Redis (single 127.0.0.1:1): cannot connect to 127.0.0.1:1: Connection refused"),
        ("redis://nosuch.invalid:6379", "cannot connect to nosuch.invalid:6379: "),
        ("redis+sentinel://127.0.0.1:1/eir", "no sentinel that can be reached names a master for eir"),
        ("redis+cluster://127.0.0.1:1", "cannot connect to 127.0.0.1:1: Connection refused"),
    ],
)
async def test_a_fault_is_reported_without_details_of_python(url, says):
    async with opened(url) as store:
        with pytest.raises(StoreError) as caught:
            await store.state("stolen")
    text, _, advice = str(caught.value).partition("; ")
    assert says in text
    server = url.removesuffix("/eir").replace("+sentinel", "").replace("+cluster", "")
    assert advice == f"start Redis, or correct `store`; test it with: redis-cli -u {server} ping"
    assert not re.search(r"[<>]|\('|Error|object|\[Errno", str(caught.value)), str(caught.value)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (KeyError("kind"), "kind is missing"),
        (TimeoutError(), "no answer in time"),
        (OSError(), "the connection was lost"),
    ],
)
def test_faults_without_a_text(error, says):
    assert link.error_text(error) == says


@pytest.mark.parametrize(
    ("users", "warned"),
    [
        ("", True),
        ("user default on nopass ~* +@all\n", True),
        ("user default off\n", False),
        ("user default on nopass ~* +@read\n", False),
        ("user default on nopass ~other:* +@all\n", False),
        ("user default on >secret ~* +@all\n", False),
    ],
)
async def test_a_redis_that_strangers_can_write_to_is_reported(own, tmp_path, users, warned):
    (tmp_path / "users").write_text(f"{users}user loader on >loading ~* &* +@all\n")
    server, said = own("--aclfile", str(tmp_path / "users")), []
    async with opened(
        f"redis://loader:loading@127.0.0.1:{server.port}", report=lambda what, **_: said.append(what)
    ) as store:
        await store.replace("a", state(A), A, seen=0)
        assert await pages_in(store) == A
    assert said == ["store_unprotected"] * warned

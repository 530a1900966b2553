"""The three users for Redis of config/LISTS.md: with exactly these rights everything works, without any one of them it does not."""

import asyncio
import contextlib
import re
from dataclasses import replace
from pathlib import Path

import pytest
from groups import Cluster, Watched
from simulated.follower import QUICK, Node
from simulated.node import until as wait_until
from simulated.patience import PATIENCE_S
from simulated.servers import Server
from simulated.store_content import event, page, pages_of, state, until

from eir.errors import StoreError
from eir.lists.follow.history import HistoryKeeper
from eir.lists.pages.pages import PAGE_KEYS
from eir.lists.record.history import read_record
from eir.lists.record.settings import HistorySettings
from eir.lists.stores.redis import RedisStore
from eir.lists.stores.sqlite import SqliteStore

PAGE = Path(__file__).parents[2] / "config" / "LISTS.md"
A = pages_of([1, 2, 5 * PAGE_KEYS])
B = [page(0, [3, 4], reasons=b"\x00\x01"), *pages_of([7 * PAGE_KEYS])]
HARM = ("FLUSHALL", "CONFIG SET maxmemory 1", "SHUTDOWN", "KEYS *", "GET other", "DEL other", "ACL LIST", "EVAL x 0")


def users():
    """User → rules, as config/LISTS.md gives them."""
    found = re.findall(r"^user (\S+) (.+)$", PAGE.read_text(), re.MULTILINE)
    return {name: rules.split() for name, rules in found}


LOADER, HEALER, WORKER = "loader", "healer", "worker"


def rights(user):
    return [rule for rule in users()[user] if rule.startswith("+")]


@pytest.fixture(scope="module")
def server(redis_program):
    """With a policy that is to be warned of, and a replica."""
    with contextlib.ExitStack() as stack:
        master = stack.enter_context(Server(redis_program, "--maxmemory-policy", "allkeys-lru", "--appendonly", "yes"))
        master.replica = stack.enter_context(Server(redis_program, "--replicaof", f"127.0.0.1 {master.port}"))
        yield master


def allow(server, user, without=()):
    """Give the user what the page says, less some of it; a password of the test's own."""
    rules = [rule for rule in users()[user] if rule not in without and not rule.startswith((">", "#"))]
    assert server.command("ACL", "SETUSER", user, "reset", ">secret", *rules) == b"+OK\r\n"
    server.command("ACL", "LOG", "RESET")


@contextlib.asynccontextmanager
async def opened(server, user):
    said = []
    url = server.url.replace("//", f"//{user}:secret@")
    store = RedisStore(url, report=lambda event, **_: said.append(event), replica_wait_ms=20)
    store.said = said
    try:
        yield store
    finally:
        await store.close()


async def mend(server, folder):
    """All that a node does that heals and loads nothing."""
    async with opened(server, HEALER) as store:
        admin = RedisStore(server.url)
        await admin.replace("a", state(A), A, seen=0, event=event("a"))
        await admin.record(event("a", "refused", what="refuse", detail="expired: …"))
        await admin.close()
        await record(store, folder)
        assert await store.trim_history("2000-01-01T00:00:00Z", 1 << 30, event(None, what="trim")) == 0
        await heal(server, folder, store)
        assert {"store_may_evict", "store_not_replicated"} <= set(store.said)
    server.command("FLUSHALL")
    await follow(server, folder, HEALER)


async def load(server, folder):
    """All that a loader does, and a node that heals or watches a drop folder."""
    async with opened(server, LOADER) as store:
        await store.replace("a", state(A), A, seen=0)
        await store.replace("a", state(B, serial=2), B, seen=1)
        await store.amend("a", state([page(0, [9]), B[1]], serial=3), [page(0, [9]), page(8, [])], seen=2)
        await store.rollback("a", seen=3)
        await store.replace("a", state(A, serial=5), A, seen=4)
        await store.rollback("a", seen=5)
        await store.record(event("a"))
        await store.record(event("a", "refused", what="refuse", detail="expired: …"))
        await record(store, folder)
        assert await store.claim("inbox", "me", 5)
        assert await store.claim("inbox", "me", 5)
        assert not await store.claim("inbox", "you", 5)
        assert await store.claim("inbox", "me", 0)
        assert {"store_may_evict", "store_not_replicated"} <= set(store.said)
        await heal(server, folder, store)
    server.command("FLUSHALL")
    await follow(server, folder, LOADER)


async def record(store, folder):
    """What a node does about the history: write what waits, forget, copy, give back."""
    copy = SqliteStore(folder / "history.sqlite")
    said = []
    keeper = HistoryKeeper(copy, writes=True, who="node", report=lambda what, **_: said.append(what))
    try:
        keeper.add(event(None, what="reload"))
        await keeper.maintain(store, HistorySettings(keep=1))
        await keeper.maintain(store, HistorySettings())
        await store.rewrite_history(nothing(), (), after=0, seen=await store.ledger(), exact=True)
        await keeper.maintain(store, HistorySettings())
        assert [what for what in said if what != "history_at"] == ["history_healed"]
    finally:
        await keeper.close()


async def nothing():
    for batch in ():
        yield batch


OFTEN = replace(QUICK, wait_s=0.05)
LESS_S = 3
"""Limit for a condition that a missing right prevents."""
WAITS = {(HEALER, "+acl|dryrun"), (HEALER, "+client|setinfo"), (HEALER, "+hscan")}
"""Without these rights a node waits for the limit."""


async def heal(server, folder, store):
    copy = SqliteStore(folder / "copy.sqlite")
    try:
        async with Node(store, {"a": "devices"}, copy=copy, pauses=OFTEN) as node:
            await until(lambda: is_there(copy), server.patience_s)
            server.command("DEL", "eir:{a}:state")
            await comes(server, node, lambda: node.follower.errors["lost_data"])
            await comes(server, node, lambda: not node.follower.lost)
            await until(lambda: is_there(store), server.patience_s)  # healed, and not yet to be found lost
            await until(lambda: is_recorded(store), server.patience_s)
    finally:
        await copy.close()


async def comes(server, node, condition):
    """Wait for something that does not come where Redis denied the node what it takes."""

    def denied():
        return any("noperm" in cause for cause in node.follower.errors)

    await until(lambda: condition() or denied(), server.patience_s)
    assert not denied()


async def is_there(copy):
    return await copy.state("a") is not None


async def is_recorded(store):
    """The event of the healing is in the history, and not only beside the list."""
    records = [each async for batch in store.records() for each in batch]
    return any(read_record(each).what == "heal" for each in records)


async def follow(server, _, user=WORKER):
    """All that a node does that only follows, and the commands that only show."""
    admin = RedisStore(server.url)
    try:
        await admin.replace("a", state(A), A, seen=0)
        await admin.record(event("a"))
        async with opened(server, user) as store:
            async with Node(store, {"a": "devices"}, pauses=OFTEN) as node:
                assert node.index.lists["a"].holds(1)
                await admin.amend("a", state([page(0, [9]), A[1]], serial=2), [page(0, [9])], seen=1)
                await comes(server, node, lambda: node.generation() == 2)
                await admin.replace("a", state(B, serial=3), B, seen=2)
                await comes(server, node, lambda: node.generation() == 3)
                assert not node.follower.errors
            assert (await store.states()).keys() == {"a"}  # `eir lists`
            assert (await store.outcomes())[0].count == 1
            assert len(await store.history()) == 1
            assert (
                (await store.ledger()).number == len([each async for batch in store.records() for each in batch]) == 1
            )
            assert await store.folds() == []
            assert store.said == ["store_may_evict", "store_unprotected"], store.said
    finally:
        await admin.close()


WORK = {LOADER: load, HEALER: mend, WORKER: follow}


def works(server, user, folder, patience_s=PATIENCE_S):
    """Whether all that the user is for works, and nothing was tried that it may not do.

    A replica that is asleep makes a loader wait, and say so.
    """
    server.command("FLUSHALL")
    server.patience_s = patience_s
    folder.mkdir()
    if user != WORKER:
        # Only a replica that is there makes a writer wait; one that was asleep for long has to come back first.
        wait_until(lambda: b"state=online" in server.command("INFO", "replication"))
        server.replica.pause()
    try:
        asyncio.run(WORK[user](server, folder))
    except (StoreError, AssertionError, TimeoutError) as error:
        print(repr(error))
        return False
    finally:
        server.replica.resume()
    return server.command("ACL", "LOG") == b"*0\r\n"


@pytest.mark.parametrize("user", [LOADER, HEALER, WORKER])
def test_with_these_rights_all_works(server, user, tmp_path):
    allow(server, user)
    assert works(server, user, tmp_path / "all")


@pytest.mark.parametrize(
    ("user", "right"),
    [
        pytest.param(user, right, marks=[pytest.mark.long] * ((user, right) in WAITS))
        for user in (LOADER, HEALER, WORKER)
        for right in rights(user)
    ],
)
def test_without_one_it_does_not(server, user, right, tmp_path):
    allow(server, user, without=(right,))
    assert not works(server, user, tmp_path / "less", LESS_S)


async def test_a_worker_changes_nothing(server):
    allow(server, WORKER)
    allow(server, LOADER)
    server.command("FLUSHALL")
    async with opened(server, LOADER) as store:
        for seen in range(2):
            await store.replace("a", state(A), A, seen=seen)
    async with opened(server, WORKER) as store:
        for write in (
            lambda: store.replace("a", state(B), B, seen=2),
            lambda: store.amend("a", state(B), B, seen=2),
            lambda: store.rollback("a", seen=2),
            lambda: store.record(event("a")),
            lambda: store.claim("inbox", "me", 5),
        ):
            with pytest.raises(StoreError) as caught:
                await write()
            assert caught.value.cause == "noperm"


async def test_a_healer_holds_up_no_drop_folder(server):
    allow(server, HEALER)
    server.command("FLUSHALL")
    async with opened(server, HEALER) as store:
        with pytest.raises(StoreError) as caught:
            await store.claim("inbox", "me", 5)
        assert caught.value.cause == "noperm"


@pytest.mark.parametrize("user", [LOADER, HEALER, WORKER])
@pytest.mark.parametrize("harm", HARM)
def test_neither_does_harm(server, user, harm):
    allow(server, user)
    assert b"-NOPERM" in server.command("AUTH", user, "secret", then=harm.split())


IN_A_CLUSTER = "+cluster|slots"
AT_SENTINELS = "+sentinel|masters +client|setinfo"


@pytest.mark.parametrize("less", [None, *IN_A_CLUSTER.split()])
async def test_in_a_cluster(cluster, less):
    assert f"`{IN_A_CLUSTER}`" in PAGE.read_text()
    for node in cluster.nodes:
        allow(node, LOADER)
        assert (
            node.command("ACL", "SETUSER", LOADER, *(right for right in IN_A_CLUSTER.split() if right != less))
            == b"+OK\r\n"
        )
    assert await is_read(cluster.url.replace("//", f"//{LOADER}:secret@")) == (less is None)


@pytest.mark.parametrize("less", [None, *AT_SENTINELS.split()])
async def test_at_sentinels(watched, less, monkeypatch):
    assert f"`{AT_SENTINELS}`" in PAGE.read_text()
    monkeypatch.setenv("SENTINELS", "secret")
    (sentinel,) = watched.sentinels
    rights = [right for right in AT_SENTINELS.split() if right != less]
    assert (
        sentinel.command("ACL", "SETUSER", "eir", "reset", "on", ">secret", "resetchannels", "-@all", *rights)
        == b"+OK\r\n"
    )
    sentinel.command("ACL", "LOG", "RESET")
    found = await is_read(f"{watched.url}?sentinel_user=eir&sentinel_password_env=SENTINELS")
    assert (found and sentinel.command("ACL", "LOG") == b"*0\r\n") == (less is None)


async def test_passwords_from_files(cluster, watched, tmp_path):
    file = tmp_path / "password"
    file.write_text("secret\n")
    for node in cluster.nodes:
        allow(node, LOADER)
        node.command("ACL", "SETUSER", LOADER, *IN_A_CLUSTER.split())
    assert await is_read(f"{cluster.url.replace('//', f'//{LOADER}@')}?password_file={file}")
    (sentinel,) = watched.sentinels
    sentinel.command("ACL", "SETUSER", "eir", "reset", "on", ">secret", "resetchannels", "-@all", *AT_SENTINELS.split())
    sentinel.command("ACL", "LOG", "RESET")
    assert await is_read(f"{watched.url}?sentinel_user=eir&sentinel_password_file={file}")
    assert sentinel.command("ACL", "LOG") == b"*0\r\n"


async def is_read(url):
    store = RedisStore(url)
    try:
        await store.states()
    except StoreError:
        return False
    finally:
        await store.close()
    return True


@pytest.fixture(scope="module")
def cluster(redis_program):
    with Cluster(redis_program) as made:
        yield made


@pytest.fixture(scope="module")
def watched(redis_program):
    with Watched(redis_program, sentinels=1) as made:
        yield made

"""The four users for Redis of config/LISTS.md: with exactly these rights everything works, without any one of them it does not."""

import asyncio
import contextlib
import re
from pathlib import Path

import pytest
from commits import commit, commit_base, everything, parts_of
from groups import Cluster, Watched
from simulated.node import until as wait_until
from simulated.servers import Server

from eir.errors import StoreError
from eir.lists.stores.redis import RedisStore

PAGE = Path(__file__).parents[2] / "config" / "LISTS.md"
LOADER, HEALER, RECORDER, WORKER = "loader", "healer", "recorder", "worker"
USERS = (LOADER, HEALER, RECORDER, WORKER)
WRITTEN = {LOADER: "stolen", HEALER: "stolen", RECORDER: "first-seen"}
"""List that a user writes here."""
HARM = (
    "FLUSHALL", "CONFIG SET maxmemory 1", "SHUTDOWN", "KEYS *", "GET other", "UNLINK other", "ACL LIST", "FUNCTION LIST", "SCRIPT FLUSH",
    "EVAL return(redis.call('SET',KEYS[1],1)) 1 other", "EVAL return(redis.call('FLUSHALL')) 0",
)  # fmt: skip


def users():
    """User → rules, as config/LISTS.md gives them."""
    found = re.findall(r"^user (\S+) (.+)$", PAGE.read_text(), re.MULTILINE)
    return {name: re.findall(r"\([^)]*\)|\S+", rules) for name, rules in found}


def rights(user):
    """The rights of a user. A selector, which has rights for a key of its own, is one of them."""
    return [rule for rule in users()[user] if rule.startswith(("+", "("))]


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


async def read(store, head, name):
    """All that a node reads, and the commands that only show."""
    heads = await store.heads()
    assert heads[name] == head
    log = await store.log(name, 0)
    assert await parts_of(store, log[-1].change.base_id, name) == [b"x", b"y"]
    await store.wait({}, 60)
    assert "store_may_evict" in store.said


async def write(store, name):
    """All that is written of a list: changes, bases, what is old goes, and a load that fails."""
    head, _ = await commit_base(store, name=name)
    head, _ = await commit(store, head, name=name)
    head, _ = await commit_base(store, head, name=name, oldest=2)
    head, _ = await commit_base(store, head, name=name, oldest=3)
    log = await store.log(name, 0)
    assert [entry.rows for entry in log] == [None, None, b"rows", b"rows"]
    assert await parts_of(store, log[0].change.base_id, name) == []

    def failing():
        yield b"x"
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        await store.stage(name, "failed", failing())
    assert "store_not_replicated" in store.said
    await read(store, head, name)


async def load(server):
    """All that a loader does, and a node with a drop folder."""
    async with opened(server, LOADER) as store:
        await write(store, WRITTEN[LOADER])
        await leases(store, "inbox")


async def leases(store, task):
    assert await store.claim(task, "me", 5)
    assert await store.claim(task, "me", 5)
    assert not await store.claim(task, "you", 5)
    assert await store.claim(task, "me", 0)


async def heal(server):
    """All that a node does that writes lists back and loads nothing."""
    async with opened(server, HEALER) as store:
        await write(store, WRITTEN[HEALER])
        await leases(store, "apply-again:stolen")
        await leases(store, "events:last-device")


async def record(server):
    """All that a node does that writes learned lists only."""
    async with opened(server, RECORDER) as store:
        for name in (WRITTEN[RECORDER], "last-device", "last-device+events"):
            await write(store, name)
        await leases(store, "events:last-device")
        await follow(server, RECORDER)


async def follow(server, user=WORKER):
    """All that a node does that only follows."""
    admin = RedisStore(server.url)
    try:
        head, _ = await commit_base(admin)
        async with opened(server, user) as store:
            await read(store, head, "stolen")
            assert store.said == ["store_may_evict", "store_unprotected"], store.said
    finally:
        await admin.close()


WORK = {LOADER: load, HEALER: heal, RECORDER: record, WORKER: follow}


def works(server, user):
    """Whether all that the user is for works, and nothing was tried that it may not do.

    A replica that is asleep makes a writer wait, and say so.
    """
    server.command("FLUSHALL")
    if user != WORKER:
        # Only a replica that is there makes a writer wait; one that was asleep for long has to come back first.
        wait_until(lambda: b"state=online" in server.command("INFO", "replication"))
        server.replica.pause()
    try:
        asyncio.run(WORK[user](server))
    except (StoreError, AssertionError) as error:
        print(repr(error))
        return False
    finally:
        server.replica.resume()
    return server.command("ACL", "LOG") == b"*0\r\n"


@pytest.mark.parametrize("user", USERS)
def test_with_these_rights_all_works(server, user):
    allow(server, user)
    assert works(server, user)


@pytest.mark.parametrize(("user", "right"), [(user, right) for user in USERS for right in rights(user)])
def test_without_one_it_does_not(server, user, right):
    allow(server, user, without=(right,))
    assert not works(server, user)


@pytest.mark.parametrize(
    ("user", "name"),
    [
        (WORKER, "stolen"), (WORKER, "first-seen"), (RECORDER, "stolen"), (RECORDER, "first-seen+import"), (RECORDER, "first-seen2"),
    ],
)  # fmt: skip
async def test_a_user_changes_no_other_list(server, user, name):
    allow(server, user)
    server.command("FLUSHALL")
    admin = RedisStore(server.url)
    head, _ = await commit_base(admin, name=name)
    before = await everything(admin, name)
    async with opened(server, user) as store:
        for change in (
            commit(store, head, name=name),
            commit_base(store, head, name=name),
            store.link.execute("UNLINK", f"eir:{{{name}}}:head"),
            store.link.execute("UNLINK", "eir:lists"),
            store.claim("inbox", "me", 5),
        ):
            with pytest.raises(StoreError) as caught:
                await change
            assert caught.value.cause == "noperm"
    assert await everything(admin, name) == before
    await admin.close()


async def test_a_healer_holds_up_no_drop_folder(server):
    allow(server, HEALER)
    server.command("FLUSHALL")
    async with opened(server, HEALER) as store:
        with pytest.raises(StoreError) as caught:
            await store.claim("inbox", "me", 5)
        assert caught.value.cause == "noperm"


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("harm", HARM)
def test_neither_does_harm(server, user, harm):
    allow(server, user)
    reply = server.command("AUTH", user, "secret", then=harm.split(" "))
    assert reply.startswith((b"-NOPERM", b"-ERR ACL failure in script")), reply


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
        await store.heads()
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


ALL = frozenset({"first-seen", "first-seen+import", "stolen"})
STOLEN = {WORKER: frozenset(), RECORDER: frozenset({"first-seen"}), HEALER: ALL, LOADER: ALL}
"""Lists that a thief of each user can change. Nodes bound a change of the record itself: tests/lists/follow/test_learned.py."""


@pytest.mark.parametrize("user", USERS)
async def test_a_thief_of_a_user_can_do_no_more_than_the_page_on_security_says(server, user):
    server.flush()
    allow(server, user)
    async with opened(server, user) as store:
        for name in sorted(ALL):
            if name in STOLEN[user]:
                await commit_base(store, name=name)
            else:
                with pytest.raises(StoreError) as raised:
                    await commit_base(store, name=name)
                assert raised.value.cause == "noperm"
        if user == LOADER:
            assert await store.claim("inbox", "thief", 60)
        else:
            with pytest.raises(StoreError) as raised:
                await store.claim("inbox", "thief", 60)
            assert raised.value.cause == "noperm"

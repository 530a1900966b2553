"""A Redis that restarts, with the user file of deploy/REDIS.md and an AOF: heads, logs, rows and bases are there."""

import contextlib

import pytest
from commits import commit, commit_base, everything
from simulated.servers import USER_FILE, Protected, programs

from eir.errors import StoreError
from eir.lists.stores.redis import RedisStore


@pytest.fixture(params=programs())
def program(request):
    return programs()[request.param]


@contextlib.asynccontextmanager
async def opened(server, user="loader"):
    said = []
    store = RedisStore(server.url_of(user), report=lambda what, **_: said.append(what))
    store.said = said
    try:
        yield store
    finally:
        await store.close()


def rewritten(server):
    """The AOF is rewritten: what was in it is in its base from now on."""
    server.command("BGREWRITEAOF")
    while (
        b"aof_rewrite_in_progress:0" not in (told := server.command("INFO", "persistence"))
        or b"aof_rewrite_scheduled:0" not in told
    ):
        pass
    assert b"aof_last_bgrewrite_status:ok" in told


@pytest.mark.long(short=["redis-end-0", "redis-end-1", "redis-end-2", "redis-kill-0", "redis-kill-1", "redis-kill-2"])
@pytest.mark.parametrize("rewrites", [(), ("first",), ("first", "second")], ids=len)
@pytest.mark.parametrize("ends", ["end", "kill"])
async def test_a_restart_loses_nothing(program, ends, rewrites):
    with Protected(program, "--appendfsync", "always") as server:
        async with opened(server) as store:
            head, _ = await commit_base(store, serial=60)
            await store.stage("stolen", "lost", [b"x"])
            if rewrites:
                rewritten(server)
            for serial in (61, 62):
                head, _ = await commit_base(store, head, serial=serial)
            head, _ = await commit(store, head, oldest=2)
            assert await store.claim("inbox", "me", 600)
            before = await everything(store)
            if len(rewrites) > 1:
                rewritten(server)
        getattr(server, ends)()
        server.start()
        async with opened(server) as store:
            assert await everything(store) == before
            assert not await store.claim("inbox", "you", 5)
            await commit(store, head)
            assert not store.said


OFF = "user default off"


@pytest.mark.long(short=[f"redis-{number}" for number in range(8)])
@pytest.mark.parametrize(
    ("users", "aof", "warned"),
    [
        (USER_FILE, "yes", False),
        ([OFF, *USER_FILE[1:]], "yes", True),
        ([OFF, *USER_FILE[1:]], "no", False),
        ([f"{OFF} ~other:* +@all", *USER_FILE[1:]], "yes", True),
        ([f"{OFF} ~* +@all -xadd", *USER_FILE[1:]], "yes", True),
        ([OFF, *(user.replace("+acl|dryrun ", "") for user in USER_FILE[1:])], "yes", True),
        ([f"{OFF} ~* &* +@all", *USER_FILE[1:]], "yes", False),
        (["user default on >PASSWORD ~* &* +@all", *USER_FILE[1:]], "yes", False),
    ],
    ids=map(str, range(8)),
)  # fmt: skip
async def test_a_node_warns_of_a_redis_that_could_not_replay(program, users, aof, warned):
    with Protected(program, "--appendonly", aof, users=users) as server:
        for user in ("worker", "recorder", "healer", "loader"):
            async with opened(server, user) as store:
                await store.heads()
                assert store.said == ["store_cannot_replay"] * warned, user


async def test_nobody_without_a_password_gets_in(program):
    with Protected(program) as server:
        stranger = RedisStore(f"redis://127.0.0.1:{server.port}")
        with pytest.raises(StoreError) as caught:
            await stranger.heads()
        await stranger.close()
        assert caught.value.cause == "noauth"

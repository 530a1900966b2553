"""A Redis that restarts, with the user file of config/LISTS.md and an AOF: lists, what a rollback needs, serials and the history are there."""

import contextlib

import pytest
from simulated.servers import USER_FILE, Protected, programs
from simulated.store_content import event, page, pages_of, state

from eir.errors import StoreError
from eir.lists.pages.pages import PAGE_KEYS
from eir.lists.record.history import chain_faults
from eir.lists.stores.redis import RedisStore

A, B = pages_of([1, 2]), pages_of([3, 5 * PAGE_KEYS])


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
            await store.replace("a", state(A, serial=60), A, seen=0, event=event("a", detail="first"))
            if rewrites:
                rewritten(server)
            await store.replace("a", state(B, serial=61), B, seen=1, event=event("a", detail="second"))
            await store.amend(
                "a", state([*B, page(9, [1])], serial=62), [page(9, [1])], seen=2, event=event("a", detail="third")
            )
            await store.record(event(None, "refused", what="refuse", detail="bad: …"))
            before = await everything(store)
            if len(rewrites) > 1:
                rewritten(server)
        getattr(server, ends)()
        server.start()
        async with opened(server) as store:
            assert await everything(store) == before
            await store.rollback("a", seen=3)
            await store.rollback("a", seen=4)
            found = await store.state("a")
            assert (found.serial, found.highest_serial, found.generation) == (60, 62, 5)
            assert [each async for _, batch in store.pages("a") for each in batch] == A
            assert not store.said


async def everything(store):
    records = [each async for batch in store.records() for each in batch]
    assert not list(chain_faults(records, await store.folds(), await store.ledger()))
    return (
        await store.states(),
        await store.releases("a"),
        records,
        await store.folds(),
        await store.ledger(),
        await store.outcomes(),
        await store.changes("a", 0),
    )


OFF = "user default off"


@pytest.mark.long(
    short=[
        "redis-worker-users0-yes-False",
        "redis-worker-users1-yes-True",
        "redis-worker-users2-no-False",
        "redis-worker-users3-yes-True",
        "redis-worker-users4-yes-True",
        "redis-worker-users5-yes-True",
        "redis-worker-users6-yes-False",
        "redis-worker-users7-yes-False",
        "redis-healer-users0-yes-False",
        "redis-healer-users1-yes-True",
        "redis-healer-users2-no-False",
        "redis-healer-users3-yes-True",
        "redis-healer-users4-yes-True",
        "redis-healer-users5-yes-True",
        "redis-healer-users6-yes-False",
        "redis-healer-users7-yes-False",
        "redis-loader-users0-yes-False",
        "redis-loader-users1-yes-True",
        "redis-loader-users2-no-False",
        "redis-loader-users3-yes-True",
        "redis-loader-users4-yes-True",
        "redis-loader-users5-yes-True",
        "redis-loader-users6-yes-False",
        "redis-loader-users7-yes-False",
    ]
)
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
)  # fmt: skip
@pytest.mark.parametrize("user", ["worker", "healer", "loader"])
async def test_a_node_warns_of_a_redis_that_could_not_replay(program, users, aof, warned, user):
    with Protected(program, "--appendonly", aof, users=users) as server:
        async with opened(server, user) as store:
            await store.states()
            assert store.said == ["store_cannot_replay"] * warned


async def test_nobody_without_a_password_gets_in(program):
    with Protected(program) as server:
        stranger = RedisStore(f"redis://127.0.0.1:{server.port}")
        with pytest.raises(StoreError) as caught:
            await stranger.states()
        await stranger.close()
        assert caught.value.cause == "noauth"

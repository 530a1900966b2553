"""Room runs out: a release that is too large is refused before anything is written, and nothing of it is in anyone's way after.

For SQLite on a real small disk, and for Redis with a small maxmemory, which is its disk.
"""

import itertools
import json
import random

import full_disk
import pytest
from commits import commit, commit_base, everything, parts_of
from simulated.node import LISTED, TRACKED, Site
from simulated.servers import Server, programs

from eir.errors import StoreError
from eir.lists.stores.redis import RedisStore
from eir.lists.stores.sqlite import SqliteStore

MB = 1 << 20
DISK_MB, MEMORY_MB = 60, 24


def large(megabytes):
    """Parts of that size in all."""
    return [bytes(MB)] * megabytes


class Disk:
    """SQLite on a small disk."""

    cause = "full"

    def __init__(self, disk):
        self.store = SqliteStore(disk.folder / "lists.sqlite")
        self.store._file._thread.submit(disk.enter).result()
        self.disk, self.fill, self.free = disk, disk.fill, disk.free

    def traces(self):
        """How long the files are, together."""
        return sum(
            path.stat().st_size
            for path in self.disk.seen_from_outside.glob("lists.sqlite*")
            if path.suffix != ".sqlite-shm"
        )


class Memory:
    """Redis with a small maxmemory."""

    cause = "oom"

    def __init__(self, server):
        self.server = server
        self.store = RedisStore(server.url)

    def fill(self, _):
        for number in itertools.count():
            if self.server.command("SET", f"other:{number}", bytes(1 << 19)) != b"+OK\r\n":
                break

    def free(self):
        self.server.command("DEL", *(f"other:{number}" for number in range(2 * MEMORY_MB)))

    def traces(self):
        return self.server.command("DBSIZE")


@pytest.fixture(params=["SQLite", "Redis"])
async def small(request, tmp_path):
    """A store with little room, in which two lists are."""
    if request.param == "SQLite":
        if not full_disk.is_possible(tmp_path):
            pytest.skip("no mount namespace may be made here")
        held = full_disk.small_disk(tmp_path, DISK_MB)
    elif "redis" in programs():
        held = Server(programs()["redis"], "--maxmemory", f"{MEMORY_MB}mb")
    else:
        pytest.skip("redis-server is not installed")
    with held as where:
        one = Disk(where) if request.param == "SQLite" else Memory(where)
        for name in ("stolen", "own"):
            await commit_base(one.store, name=name)
        yield one
        await one.store.close()


async def all_else_works(store):
    """What operators and other lists do with the store after one load was refused."""
    for name in ("stolen", "own"):
        head = (await store.heads())[name]
        head, change = await commit(store, head, bytes(1000), name=name)
        assert (await store.log(name, head.generation - 1))[0] == (change, bytes(1000))
        _, change = await commit_base(store, head, name=name)
        assert await parts_of(store, change.base_id, name) == [b"x", b"y"]


async def test_what_is_too_large_is_refused_and_nothing_of_it_stays(small):
    before, traces = await everything(small.store), small.traces()
    head = before[0]["stolen"]
    with pytest.raises(
        StoreError, match=r"needs about \d+ MB, and \d+ MB are free, of which \d+ MB are kept .*: (make|raise)"
    ) as caught:
        await commit_base(small.store, head, large(30))
    assert caught.value.cause == small.cause
    assert await everything(small.store) == before
    if isinstance(small, Memory):
        assert small.traces() == traces
    await all_else_works(small.store)


async def test_what_others_have_written_is_not_free(small):
    small.fill(2 * MB)
    with pytest.raises(StoreError, match=r"needs about \d+ MB, and [0-3] MB are free") as caught:
        await commit_base(small.store, (await small.store.heads())["stolen"], large(4))
    assert caught.value.cause == small.cause


@pytest.mark.parametrize("leave", [0, 2 * MB])
async def test_what_stops_in_the_middle_leaves_nothing_behind(small, leave):
    """Someone else takes the room while a list is written: all of it, or nearly all."""
    before, traces = await everything(small.store), small.traces()

    def parts():
        for number, part in enumerate(large(20)):
            if number == 8:
                small.fill(leave)
            yield part

    with pytest.raises(StoreError, match=r"make room|are free") as caught:
        await small.store.stage("stolen", "a", parts())
    assert caught.value.cause == small.cause
    assert await everything(small.store) == before
    small.free()
    assert await parts_of(small.store, "a") == []
    if isinstance(small, Memory):
        assert small.traces() == traces
    await all_else_works(small.store)


@pytest.mark.long
async def test_a_release_for_a_disk_that_is_too_small(tmp_path, publisher):
    """By the commands: the refusal says why and what to do, and what an operator does after it works."""
    (tmp_path / "disk").mkdir()
    if not full_disk.is_possible(tmp_path / "disk"):
        pytest.skip("no mount namespace may be made here")
    with full_disk.small_disk(tmp_path / "disk", 34) as disk, Site(tmp_path / "site", publisher) as site:
        lists = {"stolen": {"signers": "signers", "growth_max": "100%"}, "own": {"local": True}}
        site.configure(state=str(disk.folder), lists=lists, policy={"rules": []})

        def eir(*arguments, status=0):
            return site.eir(*arguments, status=status, prefix=disk.prefix)

        eir("load", site.release([LISTED]), site.release([LISTED, TRACKED], serial=2))
        rows = [f"35{number:012d}" for number in random.Random(1).sample(range(10**12), 400_000)]
        refused = eir("load", site.release(rows, serial=3), "--force", status=1)
        assert "MB are free" in refused.stderr
        assert "make room on the disk" in refused.stderr
        eir("add", "own", TRACKED, "--reason", "lost")
        eir("rollback", "stolen")
        assert [row["serial"] for row in json.loads(eir("lists", "--json").stdout)] == [1, 0]

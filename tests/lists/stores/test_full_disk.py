"""Room runs out: a release that is too large is refused before anything is written, and nothing of it is in anyone's way after.

For SQLite on a real small disk, and for Redis with a small maxmemory, which is its disk.
"""

import itertools
import json

import full_disk
import pytest
from simulated.node import LISTED, TRACKED, Site
from simulated.servers import Server, programs
from simulated.store_content import event, page, pages_in, pages_of, state

from eir.errors import StoreError
from eir.lists.pages.pages import PAGE_KEYS, Page
from eir.lists.stores.redis import RedisStore
from eir.lists.stores.sqlite import SqliteStore

MB = 1 << 20
DISK_MB, MEMORY_MB = 36, 24
A, B = pages_of([1, 2, 5 * PAGE_KEYS]), pages_of([3])
KEYS = page(0, range(0, PAGE_KEYS, 500)).keys  # 4 KB


def large(megabytes):
    """Pages of that size in all."""
    return [Page(number, KEYS) for number in range(megabytes * MB // len(KEYS))]


class Disk:
    """SQLite on a small disk."""

    cause = "full"

    def __init__(self, disk):
        self.store = SqliteStore(disk.folder / "lists.sqlite")
        self.store.file._thread.submit(disk.enter).result()
        self.disk, self.fill, self.free = disk, disk.fill, disk.free

    def traces(self):
        """How long the files are, together."""
        return sum(
            path.stat().st_size
            for path in self.disk.seen_from_outside.glob("lists.sqlite*")
            if path.suffix != ".sqlite-shm"
        )

    async def sets(self):
        return (await self.store.file.rows("SELECT count(*) FROM sets"))[0][0]


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

    async def sets(self):
        return self.traces()


@pytest.fixture(params=["SQLite", "Redis"])
async def small(request, tmp_path):
    """A store with little room, in which two lists are, one of them with something to roll back."""
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
        await one.store.replace("a", state(A), A, seen=0)
        await one.store.replace("b", state(A), A, seen=0)
        await one.store.amend("a", state([*A, *B], serial=2), [page(9, [1])], seen=1)
        yield one
        await one.store.close()


async def all_else_works(store):
    """What operators and other lists do with the store after one load was refused."""
    generation = (await store.state("a")).generation
    await store.amend("a", state([*A, *B], serial=3), [page(7, [5])], seen=generation)
    await store.amend("a", state([*A, *B], serial=4), [page(7, [])], seen=generation + 1)
    await store.rollback("a", seen=generation + 2)
    await store.record(event("a"))
    other = (await store.state("b")).generation
    await store.replace("b", state(B, serial=other + 1), B, seen=other)
    assert await pages_in(store, "b") == B
    assert page(7, [5]) in await pages_in(store, "a")


@pytest.mark.parametrize("write", ["replace", "amend"])
async def test_what_is_too_large_is_refused_before_anything_is_written(small, write):
    before, traces = await pages_in(small.store, "a"), small.traces()
    with pytest.raises(
        StoreError, match=r"needs about \d+ MB, and \d+ MB are free, of which \d+ MB are kept .*: (make|raise)"
    ) as caught:
        await getattr(small.store, write)("a", state(large(30), serial=3), large(30), seen=2)
    assert caught.value.cause == small.cause
    assert small.traces() == traces
    assert await pages_in(small.store, "a") == before
    await all_else_works(small.store)


async def test_what_others_have_written_is_not_free(small):
    small.fill(2 * MB)
    with pytest.raises(StoreError, match=r"needs about \d+ MB, and [0-3] MB are free") as caught:
        await small.store.replace("a", state(large(4), serial=3), large(4), seen=2)
    assert caught.value.cause == small.cause


@pytest.mark.parametrize("leave", [0, 2 * MB])
async def test_what_stops_in_the_middle_leaves_nothing_behind(small, leave):
    """Someone else takes the room while a list is written: all of it, or nearly all."""
    before, sets = await pages_in(small.store, "a"), await small.sets()
    pages = large(3)

    async def batches():
        for at in range(0, len(pages), 200):
            if at == 400:
                small.fill(leave)
            yield pages[at : at + 200]

    with pytest.raises(StoreError, match="make room") as caught:
        await small.store.restore("a", state(pages, serial=3, generation=3), batches(), seen=2)
    assert caught.value.cause == small.cause
    assert await pages_in(small.store, "a") == before
    if leave and isinstance(small, Disk):
        assert await small.sets() == sets
    small.free()
    if isinstance(small, Memory):
        assert await small.sets() == sets
    await all_else_works(small.store)


@pytest.mark.long
async def test_a_release_for_a_disk_that_is_too_small(tmp_path, publisher):
    """By the commands: the refusal says why and what to do, and what an operator does after it works."""
    (tmp_path / "disk").mkdir()
    if not full_disk.is_possible(tmp_path / "disk"):
        pytest.skip("no mount namespace may be made here")
    with full_disk.small_disk(tmp_path / "disk", DISK_MB) as disk, Site(tmp_path / "site", publisher) as site:
        lists = {"stolen": {"signers": "signers", "growth_max": "100%"}, "own": {"local": True}}
        site.configure(state=str(disk.folder), lists=lists, policy={"rules": []})

        def eir(*arguments, status=0):
            return site.eir(*arguments, status=status, prefix=disk.prefix)

        eir("load", site.release([LISTED]), site.release([LISTED, TRACKED], serial=2))
        rows = [f"{35_000_000 + number:08d}000000" for number in range(150_000)]
        refused = eir("load", site.release(rows, serial=3), "--force", status=1)
        assert "MB are free" in refused.stderr
        assert "make room on the disk" in refused.stderr
        eir("add", "own", TRACKED, "--reason", "lost")
        eir("rollback", "stolen")
        assert [row["serial"] for row in json.loads(eir("lists", "--json").stdout)] == [1, 0]

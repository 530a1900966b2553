"""The last good copy: kept level, used for a start without the store, written back to a store that lost its data."""

import asyncio
import contextlib
from dataclasses import replace

import numpy as np
import pytest
from simulated.follower import QUICK, Node
from simulated.store_content import directly, page, pages_in, pages_of, state, until
from test_follow import Faulty

from eir.errors import StoreError
from eir.lists.follow.copy import CopyKeeper, Relation, _HealRequest, relation
from eir.lists.pages.dates import PageDays, encode_page_days
from eir.lists.pages.pages import PAGE_KEYS
from eir.lists.pages.roaring import decode_keys
from eir.lists.record.dates import dates_name, write_dates
from eir.lists.stores.open import open_copy
from eir.lists.stores.sqlite import SqliteStore

A = pages_of([1, 2, 5 * PAGE_KEYS])
B = [page(0, [3], reasons=b"\x00"), *pages_of([7 * PAGE_KEYS])]
A_KEYS, B_KEYS = [1, 2, 5 * PAGE_KEYS], [3, 7 * PAGE_KEYS]


HELD = state(A, serial=2, generation=5)
OTHER = state(B).content_digest


class Meddled(SqliteStore):
    """A copy for which a test says what comes `before` a list is written to it."""

    before = None

    async def restore(self, name, *details, **more):
        if self.before is not None:
            await self.before(name)
        return await super().restore(name, *details, **more)


@pytest.fixture
async def stores(tmp_path):
    """The store that is elsewhere, and the folder of a node's copy."""
    async with contextlib.AsyncExitStack() as stack:

        def open_one(name, kind=SqliteStore):
            opened = kind(tmp_path / f"{name}.sqlite")
            stack.push_async_callback(opened.close)
            return opened

        yield open_one


async def is_level(copy, node, name="a"):
    found = await copy.state(name)
    return found is not None and found == node.index.lists[name].state


def test_only_a_store_that_is_elsewhere_needs_one(tmp_path):
    assert open_copy("sqlite", tmp_path) is None
    assert isinstance(open_copy("redis://127.0.0.1", tmp_path), SqliteStore)


@pytest.mark.parametrize(
    ("held", "stored", "expected"),
    [
        (None, None, Relation.SAME),
        (None, HELD, Relation.NEWER),
        (HELD, None, Relation.LOST),
        (HELD, HELD, Relation.SAME),
        (HELD, replace(HELD, highest_serial=3), Relation.NEWER),
        (HELD, replace(HELD, highest_serial=1), Relation.LOST),
        (HELD, replace(HELD, highest_serial=1, serial_resets=1), Relation.NEWER),
        (HELD, replace(HELD, content_digest=OTHER), Relation.LOST),
        (HELD, replace(HELD, content_digest=OTHER, generation=6), Relation.NEWER),
        (HELD, replace(HELD, content_digest=OTHER, generation=4), Relation.LOST),
        (HELD, replace(HELD, generation=6), Relation.NEWER),
        (HELD, replace(HELD, generation=4), Relation.NEWER),
        (HELD, replace(HELD, generation=4, serial=1), Relation.LOST),
    ],
)
def test_a_list_in_the_store_is_the_same_or_newer_or_lost(held, stored, expected):
    assert relation(held, stored) is expected


@pytest.mark.parametrize(
    ("copied", "is_written", "fault"),
    [
        (HELD, True, False),
        (None, False, True),
        (replace(HELD, serial=1, highest_serial=1), False, True),
        (replace(HELD, content_digest=OTHER, generation=6), False, False),
        (replace(HELD, serial=3, highest_serial=3), False, False),
    ],
)
def test_only_a_copy_of_the_list_in_force_is_written_back(stores, copied, is_written, fault):
    faults = []
    keeper = CopyKeeper(stores("store"), stores("copy"), print, lambda cause, *_: faults.append(cause), "node-1")
    assert keeper._is_called_for("a", _HealRequest(HELD, None), copied) is is_written
    assert faults == ["heal_behind"] * fault


async def test_it_is_kept_level_with_what_is_in_force(stores):
    store, copy = stores("store"), stores("copy")
    await store.replace("a", state(A), A, seen=0)
    async with Node(store, {"a": "devices"}, copy=copy) as node:
        await until(lambda: is_level(copy, node))
        assert await pages_in(copy) == A
        await store.replace("a", state(B, serial=2), B, seen=1)
        await node.reaches(2)
        await until(lambda: is_level(copy, node))
        touched = [page(0, []), page(1, [4])]
        await store.amend("a", state([touched[1], B[1]], serial=3), touched, seen=2)
        await node.reaches(3)
        await until(lambda: is_level(copy, node))
        assert await pages_in(copy) == [touched[1], B[1]]
        await store.rollback("a", seen=3)
        await node.reaches(4)
        await until(lambda: is_level(copy, node))
        assert await pages_in(copy) == B
        assert not node.follower.errors


async def test_a_serial_that_was_set_back_is_followed_and_copied(stores):
    store, copy = stores("store"), stores("copy")
    await store.replace("a", state(A, serial=900), A, seen=0)
    async with Node(store, {"a": "devices"}, copy=copy) as node:
        await until(lambda: is_level(copy, node))
        await store.reset_serial("a", 1, seen=1)
        await node.reaches(2)
        await until(lambda: is_level(copy, node))
        await store.replace("a", state(B, serial=2), B, seen=2)
        await node.reaches(3)
        await until(lambda: is_level(copy, node))
        assert (node.keys(), (await copy.state("a")).mark) == (B_KEYS, (1, 2))
        assert not node.follower.errors
        assert "store_lost_data" not in node.said()


async def test_a_delta_is_copied_by_its_pages(stores):
    store, copy = Faulty(stores("store")), stores("copy")
    await store.store.replace("a", state(A), A, seen=0)
    async with Node(store, {"a": "devices"}, copy=copy) as node:
        await until(lambda: is_level(copy, node))
        await until(lambda: not node.follower._keeper._requests)  # two changes in one would be read whole
        store.read_whole = 0
        await store.store.amend("a", state([page(0, [9]), A[1]], serial=2), [page(0, [9])], seen=1)
        await node.reaches(2)
        await until(lambda: is_level(copy, node))
        assert store.read_whole == 0


async def put_dates(store, pages, whole, *, serial, replaced=None):
    """Write the dates of list a, each device with the same day, and then the list, which then has the pages `whole`."""
    dates = [encode_page_days(each, PageDays(0, *each_of(each, 20_000 + serial))) for each in pages]
    of = state(whole, serial=serial)
    held = await store.state("a")
    seen = await store.state(dates_name("a"))
    await write_dates(store, "a", dates, replaced=replaced, seen=seen, state=of, keep=2)
    write = store.replace if replaced is None else store.amend
    await write("a", of, pages, seen=0 if held is None else held.generation)
    return dates


def each_of(page, day):
    low = np.frombuffer(decode_keys(page.keys).to_array(), np.uint32)
    return low, np.full(len(low), day, np.uint16)


async def test_dates_are_copied_with_their_list_and_written_back_with_it(stores):
    store, copy, name = Faulty(stores("store")), stores("copy"), dates_name("a")
    first = await put_dates(store.store, A, A, serial=1)
    async with Node(store, {"a": "devices"}, copy=copy) as node:
        await until(lambda: is_level(copy, node))
        assert await pages_in(copy, name) == first
        store.read_whole = 0
        changed = [page(0, [9])]
        second = await put_dates(store.store, changed, [*changed, A[1]], serial=2, replaced=first[:1])
        await node.reaches(2)
        await until(lambda: is_level(copy, node))
        assert await pages_in(copy, name) == [*second, first[1]]
        assert store.read_whole == 0
    emptied = stores("emptied")
    async with Node(emptied, {"a": "devices"}, copy=copy) as node:
        await until(lambda: "store_healed" in node.said())
        assert await pages_in(emptied, name) == [*second, first[1]]
        assert [event.what for event in await emptied.history()] == ["heal"]


async def test_a_list_without_room_is_not_tried_again_at_once(stores):
    store, copy, tried = stores("store"), stores("copy", Meddled), []
    await store.replace("a", state(A), A, seen=0)
    await store.replace("b", state(B), B, seen=0)

    async def full(name):
        tried.append(name)
        if name == "a":
            raise StoreError("full", "no room")

    copy.before = full
    async with Node(store, {"a": "devices", "b": "devices"}, copy=copy) as node:
        await until(lambda: is_level(copy, node, "b"))
        await store.replace("b", state(A, serial=2), A, seen=1)
        await until(lambda: is_level(copy, node, "b"))
        await asyncio.sleep(10 * QUICK.retry_s)
        assert tried.count("a") == 1
    async with Node(store, {"a": "devices"}, copy=copy, pauses=replace(QUICK, full_s=0.02)):
        await until(lambda: tried.count("a") > 3)


async def test_a_start_without_the_store_answers_from_it(stores):
    store, copy = Faulty(stores("store")), stores("copy")
    stored = await store.store.replace("a", state(A, serial=42), A, seen=0)
    async with Node(store, {"a": "devices"}, copy=copy) as node:
        await until(lambda: is_level(copy, node))
    store.fail = StoreError("refused", "nobody there")
    async with Node(store, {"a": "devices", "b": "devices"}, copy=copy) as node:
        assert node.keys() == A_KEYS
        assert node.index.lists["a"].state == stored
        assert not node.follower.up
        assert node.follower.from_copy == {"a"}
        assert node.follower.missing == ("b",)
        store.fail = None
        await until(lambda: node.follower.up and not node.follower.from_copy)
        await store.store.replace("a", state(B, serial=43), B, seen=1)
        await node.reaches(2)
        assert node.keys() == B_KEYS


async def test_a_start_takes_what_is_newer(stores):
    store, copy = stores("store"), stores("copy")
    await store.replace("a", state(A), A, seen=0)
    async with Node(store, {"a": "devices"}, copy=copy) as node:
        await until(lambda: is_level(copy, node))
    await store.replace("a", state(B, serial=2), B, seen=1)
    node = Node(store, {"a": "devices"}, copy=copy)
    await node.follower.start()
    assert node.keys() == B_KEYS
    assert not node.follower.from_copy


async def test_a_damaged_copy_is_not_used(stores):
    store, copy = Faulty(stores("store")), Faulty(stores("copy"))
    await copy.store.restore("a", state(A, generation=3), batches(A), seen=0)
    store.fail = StoreError("refused", "nobody there")
    copy.alter = lambda p: p._replace(keys=page(0, [77]).keys)
    copy.state = copy.store.state
    node = Node(store, {"a": "devices"}, copy=copy)
    await node.follower.start()
    assert node.follower.missing == ("a",)
    assert node.follower.errors["copy_digest"] == 1


async def batches(*some):
    for each in some:
        yield each


class TestHealing:
    async def lose(self, stores, lost):
        """A node that is level, and then a store that has less; `lost` says what."""
        store, copy = stores("store"), stores("copy")
        await store.replace("a", state(A), A, seen=0)
        await store.replace("a", state(B, serial=2), B, seen=1)
        async with Node(store, {"a": "devices"}, copy=copy) as node:
            await until(lambda: is_level(copy, node))
        found = await store.state("a")
        if lost == "all":
            with directly(store) as db:
                db.execute("DELETE FROM lists")
        elif lost == "the last release":
            await store.restore("a", state(A, generation=1), batches(A), seen=2)
        else:
            await store.restore("a", replace(state(A, serial=2), generation=2, highest_serial=2), batches(A), seen=2)
        return store, copy, found

    @pytest.mark.parametrize("lost", ["all", "the last release", "for another history"])
    async def test_the_copy_is_written_back(self, stores, lost):
        store, copy, found = await self.lose(stores, lost)
        async with Node(store, {"a": "devices"}, copy=copy, who="node-1") as node:
            assert node.keys() == B_KEYS
            await until(lambda: "store_healed" in node.said())
            await until(lambda: not node.follower.lost)
            assert node.keys() == B_KEYS
        healed = await store.state("a")
        assert (healed.content_digest, healed.serial) == (found.content_digest, 2)
        assert healed.generation == (2 if lost != "for another history" else 3)
        assert await pages_in(store) == B
        (event,) = await store.history("a")
        assert (event.what, event.who, event.serial) == ("heal", "node-1", 2)

    async def test_not_unless_it_is_wanted(self, stores):
        store, copy, _ = await self.lose(stores, "all")
        async with Node(store, {"a": "devices"}, copy=copy, heal=False) as node:
            assert node.keys() == B_KEYS
            await until(lambda: node.follower.lost)
            await asyncio.sleep(0.1)
            assert await store.state("a") is None

    async def test_not_from_a_copy_that_cannot_be_proved(self, stores):
        store, copy, _ = await self.lose(stores, "all")
        async with Node(store, {"a": "devices"}, copy=copy, heal=False) as node:
            damaged = page(0, [3, 4]).keys
            with directly(copy) as db:
                db.execute("UPDATE pages SET keys = ? WHERE id & 0xffff = 0", (damaged,))
            node.follower._heals = True
            await until(lambda: node.follower.errors["heal_digest"])
            assert "pages have the digest" in node.follower.copy_faults["a"]
            assert await store.state("a") is None
            assert node.keys() == B_KEYS

    async def test_a_new_release_after_the_loss_is_followed(self, stores):
        store, copy, _ = await self.lose(stores, "all")
        await store.replace("a", state(A, serial=3), A, seen=0)
        async with Node(store, {"a": "devices"}, copy=copy) as node:
            assert node.keys() == A_KEYS
            assert node.generation() == 1
            await until(lambda: is_level(copy, node))

    async def test_of_two_nodes_one_heals_and_both_hold_the_newest(self, stores):
        store, copy, found = await self.lose(stores, "all")
        older = stores("older")
        await older.restore("a", state(A, generation=1), batches(A), seen=0)
        async with (
            Node(store, {"a": "devices"}, copy=older, who="behind") as behind,
            Node(store, {"a": "devices"}, copy=copy, who="ahead") as ahead,
        ):
            await until(lambda: ahead.follower.up and not ahead.follower.lost and behind.generation() == 2)
            assert behind.keys() == ahead.keys() == B_KEYS
        assert (await store.state("a")).content_digest == found.content_digest

    async def test_the_same_release_loaded_anew_is_followed(self, stores):
        """Into a store that lost its generations, before anyone healed it; what is loaded after that is followed too."""
        store, copy, found = await self.lose(stores, "all")
        await store.replace("a", replace(found, generation=0), B, seen=0)
        async with Node(store, {"a": "devices"}, copy=copy) as node:
            await until(lambda: node.generation() == 1 and not node.follower.lost)
            assert node.keys() == B_KEYS
            await until(lambda: is_level(copy, node))
            await store.replace("a", state(A, serial=3), A, seen=1)
            await node.reaches(2)
            await until(lambda: is_level(copy, node))
            assert await pages_in(copy) == A

    async def test_a_list_that_went_before_it_was_copied_keeps_nobody_from_healing(self, stores):
        store, copy, _ = await self.lose(stores, "all")
        async with Node(store, {"a": "devices"}, copy=copy) as node:
            node.follower._keeper.request_copy("a", replace(state(A, serial=9), generation=9), None)
            await until(lambda: not node.follower.lost and "store_healed" in node.said())
            assert not node.follower.errors["copy_digest"]

    async def test_an_older_copy_is_not_written_back(self, stores):
        """The store was flushed before the newest release was copied: what is in force is healed, or nothing."""
        store, copy, _ = await self.lose(stores, "all")
        held = replace(state(A, serial=3), generation=3)
        other = stores("other")
        await other.restore("a", held, batches(A), seen=0)
        async with Node(other, {"a": "devices"}, copy=copy, heal=False) as node:
            keeper = node.follower._keeper
            await until(lambda: is_level(copy, node))
            await copy.restore("a", replace(state(B, serial=2), generation=2), batches(B), seen=3)
            node.follower._store = keeper.store = store
            node.follower._heals = True
            await until(lambda: node.follower.errors["heal_behind"] > 1)
            assert "is older than what is in force" in node.follower.copy_faults["a"]
            assert node.keys() == A_KEYS
            assert node.follower.lost
            assert await store.state("a") is None
            await store.replace("a", state(A, serial=3), A, seen=0)
            await until(lambda: not node.follower.lost and node.generation() == 1)
            await until(lambda: is_level(copy, node))
            await until(lambda: not node.follower.copy_faults)

    async def test_another_node_heals_what_was_not_yet_copied_here(self, stores):
        """And then it is copied here too."""
        store, behind, ahead = stores("store"), stores("behind", Meddled), stores("ahead")
        room = asyncio.Event()
        behind.before = lambda _: room.wait()
        await store.replace("a", state(A), A, seen=0)
        async with (
            Node(store, {"a": "devices"}, copy=behind) as late,
            Node(store, {"a": "devices"}, copy=ahead) as early,
        ):
            await until(lambda: is_level(ahead, early))
            assert await behind.state("a") is None
            with directly(store) as db:
                db.execute("DELETE FROM lists")
            await until(lambda: "store_healed" in early.said())
            await until(lambda: late.follower.up and not late.follower.lost)
            room.set()
            await until(lambda: is_level(behind, late))
            assert await pages_in(behind) == A

    async def test_a_fault_of_our_own_does_not_end_the_following(self, stores):
        store, copy = stores("store"), stores("copy", Meddled)
        await store.replace("a", state(A), A, seen=0)
        async with Node(store, {"a": "devices"}, copy=copy) as node:
            await until(lambda: is_level(copy, node))
            copy.before = lambda _: 1 / 0
            await store.replace("a", state(B, serial=2), B, seen=1)
            await until(lambda: node.follower.errors["copy_internal"] > 1)
            await store.replace("a", state(A, serial=3), A, seen=2)
            await node.reaches(3)
            copy.before = None
            await until(lambda: is_level(copy, node))

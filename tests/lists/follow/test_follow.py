"""From the store to the index: what is taken over, how it is proved, and what happens when the store fails or lies."""

import asyncio
import contextlib
import random
from dataclasses import replace

import pytest
from simulated.follower import QUICK, Node
from simulated.store_content import page, pages_of, state, until

from eir.errors import StoreChanged, StoreError
from eir.lists.follow import follower as follow
from eir.lists.follow.copy import Relation, relation
from eir.lists.follow.pauses import LARGE_ENTRIES
from eir.lists.pages.pages import PAGE_KEYS, content_digest
from eir.lists.record.store import ListState
from eir.lists.stores.sqlite import SqliteStore

A = pages_of([1, 2, 5 * PAGE_KEYS])
B = pages_of([3, 7 * PAGE_KEYS])


class Faulty:
    """A store whose answers a test changes: `fail` is raised, `hang` is awaited, `shown` replaces states, `alter` pages."""

    def __init__(self, store):
        self.store = store
        self.fail = self.hang = self.shown = self.alter = None
        self.read_whole = self.read_some = self.waited = 0

    async def _meddle(self):
        if self.hang is not None:
            await self.hang.wait()
        if self.fail is not None:
            raise self.fail

    async def state(self, name):
        await self._meddle()
        return await self.store.state(name) if self.shown is None else self.shown.get(name)

    async def wait(self, seen, timeout_s):
        self.waited += 1
        await self._meddle()
        await self.store.wait(seen, min(timeout_s, 0.1))

    async def changes(self, name, after):
        await self._meddle()
        return await self.store.changes(name, after)

    async def some_pages(self, name, numbers):
        await self._meddle()
        self.read_some += len(numbers)
        found, pages = await self.store.some_pages(name, numbers)
        return found, [self.alter(p) for p in pages] if self.alter else pages

    async def pages(self, name):
        await self._meddle()
        self.read_whole += 1
        async with contextlib.aclosing(self.store.pages(name)) as batches:
            async for found, pages in batches:
                yield found, [self.alter(p) for p in pages] if self.alter else pages


@pytest.fixture
async def faulty(store):
    return Faulty(store)


def shown(generation, highest, digest="00", resets=0) -> ListState:
    return replace(state(generation=generation), highest_serial=highest, content_digest=digest, serial_resets=resets)


@pytest.mark.parametrize(
    ("held", "stored", "expected"),
    [
        (None, None, Relation.SAME),
        (None, shown(1, 1), Relation.NEWER),
        (shown(1, 1), None, Relation.LOST),
        (shown(5, 7), shown(5, 7), Relation.SAME),
        (shown(5, 7), shown(6, 7, "01"), Relation.NEWER),
        (shown(5, 7), shown(6, 8, "01"), Relation.NEWER),
        (shown(5, 7), shown(4, 7, "01"), Relation.LOST),
        (shown(5, 7), shown(4, 6), Relation.LOST),
        (shown(5, 7), shown(1, 7), Relation.NEWER),  # lost its generations, and what is held was loaded into it again
        (shown(5, 7), shown(5, 7, "01"), Relation.LOST),  # another history
        (shown(5, 7), shown(9, 6, "01"), Relation.LOST),  # the highest serial never goes down by itself
        (shown(5, 7), shown(1, 8, "01"), Relation.NEWER),  # lost its generations, and has a release new to all since
        (shown(5, 900), shown(6, 7, resets=1), Relation.NEWER),  # an operator set it back
        (shown(6, 7, resets=1), shown(5, 900), Relation.LOST),  # the store lost that
        (shown(6, 7, resets=1), shown(7, 6, resets=1), Relation.LOST),
    ],
)
def test_relation(held, stored, expected):
    assert relation(held, stored) is expected


async def test_a_list_that_a_reload_adds_is_read_at_once(store):
    """Policies go by it already: until it is there, a rule that looks into it does not hold."""
    await store.replace("a", state(A), A, seen=0)
    await store.replace("b", state(B), B, seen=0)
    async with Node(store, {"a": "devices"}, pauses=replace(QUICK, wait_s=3600.0, answer_s=3600.0)) as node:
        await until(lambda: node.follower.up)
        node.index.apply({"a": "devices", "b": "devices"})
        node.follower.wake()
        await until(lambda: node.index.lists["b"].state is not None)


async def test_a_list_of_another_kind_than_configured_is_not_in_force(store, tmp_path):
    """Its entries would mean something else: devices of pairs that are blocked with every SIM, or devices that no SIM has."""
    await store.replace("a", state(A, kind="pairs"), A, seen=0)
    copy = SqliteStore(tmp_path / "copy.sqlite")
    await copy.replace("a", state(A, kind="pairs"), A, seen=0)
    async with Node(store, {"a": "devices"}, copy=copy) as node:
        assert (node.switched, node.follower.missing) == ([], ("a",))
        assert node.follower.errors["kind"] >= 1
        await store.replace("a", state(B, serial=2), B, seen=1)
        await node.reaches(2)
        await until(lambda: not node.follower.errors.pop("kind", 0))
        await store.replace("a", state(A, kind="pairs", serial=3), A, seen=2)
        await until(lambda: node.follower.errors["kind"])
        assert node.keys() == [3, 7 * PAGE_KEYS]  # what was in force stays
    await copy.close()


async def test_each_list_with_a_fault_is_reported(store, tmp_path):
    for name in ("a", "b"):
        await store.replace(name, state(A, kind="pairs"), A, seen=0)
    copy = SqliteStore(tmp_path / "copy.sqlite")
    async with Node(store, {"a": "devices", "b": "devices"}, copy=copy) as node:
        await until(lambda: node.said().count("store_failed") == 2)
        assert "copy_failed" not in node.said()
    await copy.close()


async def test_start_fills_all_lists_that_are_configured(store):
    await store.replace("a", state(A), A, seen=0)
    await store.replace("b", state(B), B, seen=0)
    node = Node(store, {"a": "devices", "new": "devices"})
    await node.follower.start()
    assert node.keys() == [1, 2, 5 * PAGE_KEYS]
    assert node.switched == [("a", 1)]
    assert node.follower.up
    assert node.follower.missing == ("new",)
    assert not node.follower.errors
    assert node.events == []


async def test_a_load_is_followed_as_soon_as_the_store_reports_it(store):
    async with Node(store, {"a": "devices"}, pauses=replace(QUICK, wait_s=3600.0)) as node:
        await store.replace("a", state(A), A, seen=0)
        await node.reaches(1)
        await store.replace("a", state(B, serial=2), B, seen=1)
        await node.reaches(2)
        assert node.keys() == [3, 7 * PAGE_KEYS]
        await until(lambda: node.lag_s < 2)
        await store.rollback("a", seen=2)
        await node.reaches(3)
        assert node.keys() == [1, 2, 5 * PAGE_KEYS]


async def test_a_large_list_is_made_aside_but_at_the_start(store):
    large = pages_of(range(LARGE_ENTRIES))
    await store.replace("a", state(large), large, seen=0)
    async with Node(store, {"a": "devices"}) as node:
        assert node.aside == []  # nobody is answered yet
        await store.replace("a", state(B, serial=2), B, seen=1)
        await node.reaches(2)
        assert node.aside == [1]
        await store.replace("a", state(B, serial=3), B, seen=2)
        await node.reaches(3)
        assert node.aside == [1]  # neither is large


async def test_a_list_that_is_fed_is_made_aside_and_many_changes_are_taken_over_together(store):
    async with Node(store, {"a": "devices"}) as node:
        await store.replace("a", state(A), A, seen=0)
        await node.reaches(1)
        for seen in range(1, 100):
            await store.amend("a", state([*A[:1], page(5, [seen])], serial=seen), [page(5, [seen])], seen=seen)
        await node.reaches(100)
        passes = [generation for _, generation in node.switched]
        assert len(passes) < 60
        assert set(node.aside) <= set(passes[follow.OFTEN - 1 :])
        assert len(node.aside) >= len(passes) - follow.OFTEN - 1
        assert node.keys() == [1, 2, 5 * PAGE_KEYS + 99]


async def test_only_touched_pages_are_read(store, faulty):
    await store.replace("a", state(A), A, seen=0)
    async with Node(faulty, {"a": "devices"}) as node:
        faulty.read_whole = 0
        touched = [page(0, [9]), page(5, []), page(6, [1])]
        await store.amend("a", state([touched[0], touched[2]], serial=2), touched, seen=1)
        await node.reaches(2)
        assert node.keys() == [9, 6 * PAGE_KEYS + 1]
        assert (faulty.read_some, faulty.read_whole) == (3, 0)
        # Again over pages that were amended, and one that came by an amendment.
        more = [page(6, [2]), page(0, [])]
        await store.amend("a", state([more[0]], serial=3), more, seen=2)
        await node.reaches(3)
        assert node.keys() == [6 * PAGE_KEYS + 2]
        assert faulty.read_whole == 0
        await store.rollback("a", seen=3)
        await node.reaches(4)
        assert node.keys() == [9, 6 * PAGE_KEYS + 1]
        assert faulty.read_whole == 0
        assert not node.follower.errors


async def test_several_steps_at_once(store, faulty):
    await store.replace("a", state(A), A, seen=0)
    node = Node(faulty, {"a": "devices"})
    await node.follower.start()
    for seen in range(1, 6):
        await store.amend("a", state([page(1, [seen]), *A[:2]], serial=seen), [page(1, [seen])], seen=seen)
    await store.amend("a", state([page(1, [77]), A[0]]), [page(1, [77]), page(5, [])], seen=6)
    async with node:
        await node.reaches(7)
    assert node.keys() == [1, 2, PAGE_KEYS + 77]


async def test_a_new_generation_of_the_same_pages_is_taken_over_without_reading(store, faulty):
    await store.replace("a", state(A), A, seen=0)
    async with Node(faulty, {"a": "devices"}) as node:
        faulty.read_whole = 0
        await store.replace("a", state(A, serial=2), A, seen=1)
        await node.reaches(2)
        assert node.index.lists["a"].state.serial == 2
        assert (faulty.read_some, faulty.read_whole) == (0, 0)
        touched = [page(0, [9])]
        await store.amend("a", state([touched[0], A[1]], serial=3), touched, seen=2)
        await node.reaches(3)
        assert node.keys() == [9, 5 * PAGE_KEYS]


async def test_the_store_away_leaves_the_memory_in_force(store, faulty):
    await store.replace("a", state(A), A, seen=0)
    async with Node(faulty, {"a": "devices"}) as node:
        faulty.fail = StoreError("refused", "nobody there")
        await until(lambda: node.follower.errors["refused"] > 2)
        assert not node.follower.up
        assert node.keys() == [1, 2, 5 * PAGE_KEYS]
        assert node.said().count("store_failed") == 1
        await store.replace("a", state(B, serial=2), B, seen=1)
        lag = node.lag_s
        await until(lambda: node.lag_s > lag)
        faulty.fail = None
        await node.reaches(2)
        assert node.follower.up
        assert node.said()[-1] == "store_back"


async def test_a_start_without_the_store_ends(faulty):
    faulty.fail = StoreError("refused", "nobody there")
    node = Node(faulty, {"a": "devices"})
    await node.follower.start()
    assert not node.follower.up
    assert node.follower.missing == ("a",)
    assert node.follower.errors == {"refused": 1}


async def test_a_store_that_hangs_is_given_up_in_time(store, faulty):
    await store.replace("a", state(A), A, seen=0)
    async with Node(faulty, {"a": "devices"}, pauses=replace(QUICK, wait_s=0.0, answer_s=0.2)) as node:
        faulty.hang = asyncio.Event()
        await until(lambda: node.follower.errors["timeout"] > 1)
        assert node.keys() == [1, 2, 5 * PAGE_KEYS]


async def test_a_fault_of_our_own_is_counted_and_following_goes_on(store, faulty):
    faulty.fail = ZeroDivisionError("a bug")
    async with Node(faulty, {"a": "devices"}) as node:
        await until(lambda: node.follower.errors["internal"] > 1)
        faulty.fail = None
        await store.replace("a", state(A), A, seen=0)
        await node.reaches(1)


@pytest.mark.parametrize("fault", [ZeroDivisionError("a bug"), OSError(27, "File too large")])
async def test_a_fault_while_an_image_is_made_is_counted_and_following_goes_on(store, faulty, monkeypatch, fault):
    def fail(*_):
        raise fault

    await store.replace("a", state(A), A, seen=0)
    async with Node(faulty, {"a": "devices"}) as node:
        monkeypatch.setattr(follow, "image_with", fail)
        new = [page(9, [4])]
        await store.amend("a", state([*A, *new], serial=2), new, seen=1)
        cause = "image" if isinstance(fault, OSError) else "internal"
        await until(lambda: node.follower.errors[cause] > 1)
        assert (node.keys(), node.generation(), node.follower.up) == ([1, 2, 5 * PAGE_KEYS], 1, cause == "image")
        monkeypatch.undo()
        await node.reaches(2)
        assert node.keys() == [1, 2, 5 * PAGE_KEYS, 9 * PAGE_KEYS + 4]


async def test_what_is_in_force_already_is_not_read_again(store, faulty):
    """A follower that takes the place of one that ended is handed the lists; a delta after that is read with all the rest."""
    await store.replace("a", state(A), A, seen=0)
    async with Node(store, {"a": "devices"}) as before:
        held = before.index.lists["a"]
    node = Node(faulty, {"a": "devices"})
    node.index.switch("a", held.state, held.image)
    async with node:
        assert (node.keys(), faulty.read_whole, node.switched) == ([1, 2, 5 * PAGE_KEYS], 0, [])
        new = [page(9, [4])]
        await store.amend("a", state([*A, *new], serial=2), new, seen=1)
        await node.reaches(2)
        assert (node.keys()[-1], faulty.read_whole) == (9 * PAGE_KEYS + 4, 1)
        await until(lambda: faulty.waited)  # the store is not read again and again without a pause


@pytest.mark.parametrize("less", ["nothing", "an older copy", "another history", "a lower serial"])
async def test_a_store_that_lost_data_is_not_followed(store, faulty, less):
    await store.replace("a", state(A), A, seen=0)
    await store.replace("a", state(B, serial=2), B, seen=1)
    async with Node(faulty, {"a": "devices"}) as node:
        stored = await store.state("a")
        faulty.shown = {
            "nothing": {},
            "an older copy": {"a": state(A, generation=1)},
            "another history": {"a": replace(stored, content_digest="11" * 32)},
            "a lower serial": {"a": state(A, generation=9)},
        }[less]
        await until(lambda: "a" in node.follower.lost)
        assert node.keys() == [3, 7 * PAGE_KEYS]
        assert node.said() == ["store_lost_data"]
        assert node.switched == [("a", 2)]
        lag = node.lag_s
        await until(lambda: node.lag_s > lag)
        assert node.follower.errors["lost_data"] == 1, "however often it is looked at"
        faulty.shown = None
        await until(lambda: "store_mended" in node.said())
        assert not node.follower.lost


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("fault", ["digest", "corrupt"])
async def test_pages_that_cannot_be_proved_are_not_taken_over(store, faulty, fault, whole):
    await store.replace("a", state(A), A, seen=0)
    async with Node(faulty, {"a": "devices"}) as node:
        altered = page(0, [1, 2, 4]).keys if fault == "digest" else b"rubbish"
        faulty.alter = lambda p: p._replace(keys=altered) if p.number == 0 else p
        touched = [page(0, [1, 2, 3])]
        write = store.replace if whole else store.amend
        await write("a", state([touched[0]] if whole else [touched[0], A[1]], serial=2), touched, seen=1)
        await until(lambda: node.follower.errors[fault] > 1)
        in_step_at = node.follower.in_step_at
        await until(lambda: node.follower.errors[fault] > 2)
        assert node.follower.in_step_at == in_step_at
        assert node.generation() == 1
        assert node.keys() == [1, 2, 5 * PAGE_KEYS]
        assert node.follower.up
        faulty.alter = None
        await node.reaches(2)
        assert node.index.lists["a"].holds(3)


async def test_a_list_that_changes_while_it_is_read_is_read_again(store, faulty):
    await store.replace("a", state(A), A, seen=0)
    node = Node(faulty, {"a": "devices"})
    seen = iter(range(1, 3))

    def change_meanwhile(p):
        if next(seen, None):
            raise StoreChanged("list a changed while its pages were read")
        return p

    faulty.alter = change_meanwhile
    await node.follower.start()
    assert node.keys() == [1, 2, 5 * PAGE_KEYS]
    assert faulty.read_whole == 3


async def test_a_list_that_the_configuration_lets_go_while_it_is_read(store, faulty):
    await store.replace("a", state(A), A, seen=0)
    node = Node(faulty, {"a": "devices"})

    def let_go(p):
        node.index.apply({"b": "devices"})
        return p

    faulty.alter = let_go
    await node.follower.start()
    assert list(node.index.lists) == ["b"]
    assert node.switched == []
    assert not node.follower.errors


async def test_a_list_that_the_configuration_adds_is_filled(store):
    await store.replace("a", state(A), A, seen=0)
    async with Node(store, {}) as node:
        node.index.apply({"a": "devices"})
        await node.reaches(1)


class TestEnds:
    PAGES = (page(0, [1, 2, 3], until=[1_000, 0, 2_000]), page(1, [5], until=[1_500]))

    async def test_rows_drop_out_without_a_load(self, store):
        await store.replace("a", state(self.PAGES), self.PAGES, seen=0)
        now = [999.0]
        async with Node(store, {"a": "devices"}, now=lambda: now[0]) as node:
            assert node.keys() == [1, 2, 3, PAGE_KEYS + 5]
            for now[0], left in ((1_000.0, [2, 3, PAGE_KEYS + 5]), (1_600.0, [2, 3]), (2_000.0, [2])):
                await until(lambda left=left: node.keys() == left)
            assert node.switched == [("a", 1)]

    async def test_rows_that_ended_before_the_load_are_never_in_force(self, store):
        async with Node(store, {"a": "devices"}, now=lambda: 1_700.0) as node:
            await store.replace("a", state(self.PAGES), self.PAGES, seen=0)
            await node.reaches(1)
            assert node.keys() == [2, 3]
            more = [page(n, [7, 8], until=[1_600, 0]) for n in range(2, 300)]
            left = [2, 3, *(n * PAGE_KEYS + 8 for n in range(2, 300))]
            seen = []
            node.on_switch = lambda: seen.append(node.keys())
            await store.amend("a", state([*self.PAGES, *more]), more, seen=1)
            await node.reaches(2)
            assert seen == [left], "as it comes into force"


async def test_random_changes_end_as_the_list_built_from_scratch(store, faulty):
    chosen = random.Random(7)
    await store.replace("a", state(A), A, seen=0)
    pages = {p.number: p for p in A}
    async with Node(faulty, {"a": "devices"}) as node:
        generation = 1
        while generation < 60:
            kind = chosen.choice(["amend"] * 8 + ["replace", "rollback"])
            if kind == "rollback":
                with contextlib.suppress(StoreError):
                    await store.rollback("a", seen=generation)
                    generation += 1
            else:
                some = [
                    page(
                        n,
                        chosen.sample(range(1_000), chosen.choice([0, chosen.randrange(600)])),
                        tac=chosen.choice([None, None, (0, 0), (1, 2**31)]),
                    )
                    for n in chosen.sample(range(8), 3)
                ]
                pages = {p.number: p async for _, batch in store.pages("a") for p in batch} if kind == "amend" else {}
                pages.update((p.number, p) for p in some)
                after = [p for _, p in sorted(pages.items()) if p.keys or p.extra]
                write = store.amend if kind == "amend" else store.replace
                await write("a", state(after), some, seen=generation)
                generation += 1
            if chosen.random() < 0.3:
                await asyncio.sleep(chosen.random() / 20)
        await node.reaches(generation)
        fresh = Node(store, {"a": "devices"})
        await fresh.follower.start()
        assert node.keys() == fresh.keys()
        assert len(fresh.keys()) == (await store.state("a")).devices
        assert node.index.lists["a"].state == fresh.index.lists["a"].state == await store.state("a")
        assert (
            content_digest([p async for _, batch in store.pages("a") for p in batch])
            == (await store.state("a")).content_digest
        )
        # Nothing waits for the follower here: a list that changed each time that it was read is no fault, and is read again.
        assert node.follower.errors.keys() <= {"changed"}
        assert faulty.read_some

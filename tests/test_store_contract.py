"""What every store owes: one suite, run against each of them as it really is."""

import asyncio
import contextlib
from dataclasses import replace
from uuid import uuid4

import groups
import pytest
import servers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made import event, page, pages_of, state, until

from eir.errors import GenerationConflict, NothingToRollBack, StoreChanged
from eir.lists.pages import PAGE_KEYS, amended_digest
from eir.lists.store import HISTORY_MAX, Change, Outcome
from eir.stores.open import open_store

KINDS = ["sqlite", *servers.programs(), *(["cluster", "sentinel"] if "redis" in servers.programs() else [])]


@pytest.fixture(scope="session")
def running():
    """Servers, started when the first test wants them."""
    with contextlib.ExitStack() as stack:
        started = {}

        def server(kind):
            if kind not in started:
                started[kind] = stack.enter_context(made(kind))
            return started[kind]

        def made(kind):
            redis = servers.programs()["redis" if kind not in servers.programs() else kind]
            match kind:
                case "cluster":
                    return groups.Cluster(redis)
                case "sentinel":
                    return groups.Watched(redis, sentinels=1)
            return servers.Server(redis)

        yield server


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
async def opener(kind, tmp_path, running):
    """Opens the store as one more process would; what is in it is gone before the next test."""
    async with contextlib.AsyncExitStack() as stack:
        if kind != "sqlite":
            running(kind).flush()

        async def open_one():
            store = open_store("sqlite" if kind == "sqlite" else running(kind).url, tmp_path)
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


A = pages_of([1, 2, PAGE_KEYS + 5, 7 * PAGE_KEYS])
B = pages_of([3, 9 * PAGE_KEYS])


async def read(store, name):
    """All pages of a list, each batch with the same state."""
    states, pages = [], []
    async for found, batch in store.pages(name):
        states.append(found)
        pages += batch
    assert len({found.generation for found in states}) <= 1
    return (states[0] if states else None), pages


async def batches_of(*batches):
    for batch in batches:
        yield batch


async def test_an_unknown_list(store):
    assert await store.state("stolen") is None
    assert await store.states() == {}
    assert await read(store, "stolen") == (None, [])
    assert await store.some_pages("stolen", [1]) == (None, [])
    assert not await store.changes("stolen", 0)
    assert await store.changes("stolen", 3) is None
    with pytest.raises(NothingToRollBack):
        await store.rollback("stolen", seen=0)


async def test_replace_returns_and_keeps_the_state(store, other):
    asked = state(
        A, serial=42, reasons=("stolen", "lost ünïcode"), issued="2026-11-24T00:00:00Z", expires="2026-12-08T00:00:00Z",
        signers=("agency SHA256:abc",), loaded_at="2026-11-24T01:00:00Z",
    )  # fmt: skip
    stored = await store.replace("stolen", asked, A, seen=0)
    assert stored == replace(asked, generation=1, highest_serial=42)
    assert await store.state("stolen") == stored
    assert await other.states() == {"stolen": stored}
    assert await read(other, "stolen") == (stored, A)


async def test_a_list_may_be_empty(store):
    stored = await store.replace("stolen", state(), [], seen=0)
    assert await read(store, "stolen") == (stored, [])


async def test_lists_do_not_mix(store):
    await store.replace("a", state(A), A, seen=0)
    await store.replace("b", state(B), B, seen=0)
    assert (await read(store, "a"))[1] == A
    assert (await read(store, "b"))[1] == B
    assert sorted(await store.states()) == ["a", "b"]
    assert await store.changes("b", 0) == [Change(0, 1, None)]


async def test_replace_leaves_nothing_of_the_list_before(store):
    await store.replace("stolen", state(A), A, seen=0)
    stored = await store.replace("stolen", state(B, serial=2), B, seen=1)
    assert stored.generation == 2
    assert await read(store, "stolen") == (stored, B)


async def test_the_highest_serial_never_goes_down(store):
    await store.replace("stolen", state(A, serial=9), A, seen=0)
    assert (await store.replace("stolen", state(B, serial=3), B, seen=1)).highest_serial == 9
    assert (await store.rollback("stolen", seen=2)).highest_serial == 9
    assert (await store.amend("stolen", state(A, serial=0), [], seen=3)).highest_serial == 9


@pytest.mark.parametrize("whole", [True, False])
async def test_a_reset_sets_the_highest_serial_back_and_nothing_else(store, other, whole):
    first = await store.replace("stolen", state(A), A, seen=0)
    after = B if whole else [page(0, [4]), *A[1:]]
    wild = state(after, serial=900)
    before = await (store.replace("stolen", wild, after, seen=1) if whole else store.amend("stolen", wild, after[:1], seen=1))
    for seen in (0, 1, 3):
        with pytest.raises(GenerationConflict):
            await store.reset_serial("stolen", 5, seen=seen)
    found = await store.reset_serial("stolen", 5, seen=2)
    assert found == replace(before, generation=3, highest_serial=5, serial_resets=1)
    assert await read(other, "stolen") == (found, after)
    assert await store.changes("stolen", 2) == [Change(2, 3, ())]
    # What was kept is there for a rollback, which brings no serial back that was given up.
    assert await store.previous("stolen") == first
    undone = await store.rollback("stolen", seen=3)
    assert (await read(other, "stolen"))[1] == A
    assert (undone.serial, undone.mark) == (1, (1, 5))
    assert (await store.replace("stolen", state(B, serial=6), B, seen=4)).mark == (1, 6)
    assert (await store.reset_serial("stolen", 2, seen=5)).mark == (2, 2)
    with pytest.raises(GenerationConflict):
        await store.reset_serial("none", 0, seen=0)


async def test_many_pages_come_back_in_order_and_whole(store):
    pages = [page(n * 7, [n % 1000, 999_999], reasons=bytes([n % 200, 3])) for n in range(3_000)]
    pages.append(page(10**9, range(0, PAGE_KEYS, 2)))
    pages.append(page((1 << 37) - 1, range(PAGE_KEYS)))
    stored = await store.replace("stolen", state(pages), pages, seen=0)
    assert await read(store, "stolen") == (stored, pages)
    found, some = await store.some_pages("stolen", [7, 8, 10**9, 14, 7])
    assert found == stored
    assert sorted(some) == [pages[1], pages[2], pages[-2]]


async def test_amend_replaces_adds_and_removes_pages(store, other):
    await store.replace("stolen", state(A), A, seen=0)
    touched = [page(0, [4]), page(1, []), page(2, [6], reasons=b"\x00")]
    after = [touched[0], touched[2], A[2]]
    stored = await store.amend("stolen", state(after, serial=2), touched, seen=1)
    assert stored.generation == 2
    assert await read(other, "stolen") == (stored, after)
    assert stored.content_digest == amended_digest(state(A).content_digest, A[:2], touched)


async def test_amend_may_begin_a_list(store):
    stored = await store.amend("local", state(A, serial=0), A, seen=0)
    assert await read(store, "local") == (stored, A)
    with pytest.raises(NothingToRollBack):
        await store.rollback("local", seen=1)


async def test_rollback_of_a_full_release(store, other):
    first = await store.replace("stolen", state(A, reasons=("x",)), A, seen=0)
    assert await store.previous("stolen") is None
    await store.replace("stolen", state(B, serial=2), B, seen=1)
    assert await other.previous("stolen") == first
    stored = await store.rollback("stolen", seen=2)
    assert stored == replace(first, generation=3, highest_serial=2)
    assert await read(other, "stolen") == (stored, A)
    assert await store.previous("stolen") is None
    with pytest.raises(NothingToRollBack):
        await store.rollback("stolen", seen=3)


async def test_rollback_of_a_delta(store):
    first = await store.replace("stolen", state(A), A, seen=0)
    touched = [page(0, [4]), page(1, []), page(2, [6])]
    await store.amend("stolen", state([touched[0], touched[2], A[2]], serial=2), touched, seen=1)
    assert await store.previous("stolen") == first
    stored = await store.rollback("stolen", seen=2)
    assert stored == replace(first, generation=3, highest_serial=2)
    assert await read(store, "stolen") == (stored, A)
    steps = await store.changes("stolen", 1)
    assert [(step.before, step.after) for step in steps] == [(1, 2), (2, 3)]
    assert [sorted(step.pages) for step in steps] == [[0, 1, 2], [0, 1, 2]]


async def test_only_the_last_release_is_undone(store):
    await store.replace("stolen", state(A), A, seen=0)
    await store.replace("stolen", state(B, serial=2), B, seen=1)
    touched = [page(0, [4])]
    await store.amend("stolen", state([touched[0], B[1]], serial=3), touched, seen=2)
    assert (await store.rollback("stolen", seen=3)).serial == 2
    assert (await read(store, "stolen"))[1] == B
    with pytest.raises(NothingToRollBack):
        await store.rollback("stolen", seen=4)


@pytest.mark.parametrize("seen", [0, 1, 3])
async def test_a_write_on_another_generation_changes_nothing(store, seen):
    await store.replace("stolen", state(A), A, seen=0)
    stored = await store.replace("stolen", state(A, serial=2), A, seen=1)
    for write in (
        lambda: store.replace("stolen", state(B, serial=3), B, seen=seen),
        lambda: store.amend("stolen", state(B, serial=3), B, seen=seen),
        lambda: store.rollback("stolen", seen=seen),
        lambda: store.restore("stolen", state(B, generation=9), batches_of(B), seen=seen),
        lambda: store.restore("stolen", state(B, generation=9), batches_of(B), seen=seen, whole=False),
    ):
        with pytest.raises(GenerationConflict):
            await write()
    assert await read(store, "stolen") == (stored, A)


async def test_of_two_writers_one_wins(store, other):
    for round_ in range(5):
        done = await asyncio.gather(
            store.replace("stolen", state(A, serial=round_ + 1), A, seen=round_),
            other.replace("stolen", state(B, serial=round_ + 1), B, seen=round_),
            return_exceptions=True,
        )
        lost = [result for result in done if isinstance(result, Exception)]
        assert [type(error) for error in lost] == [GenerationConflict]
        expected = B if done[0] in lost else A
        assert (await read(store, "stolen"))[1] == expected


@pytest.mark.parametrize("write", ["replace", "amend", "rollback", "restore"])
async def test_a_reader_sees_the_old_list_or_the_new_one(store, other, write):
    pages = [page(n, [n % 1000]) for n in range(3_000)]
    for seen in range(2):
        await store.replace("stolen", state(pages), pages, seen=seen)
    changes = {
        "replace": lambda: store.replace("stolen", state(B, serial=2), B, seen=2),
        "amend": lambda: store.amend("stolen", state(B, serial=2), [page(2_999, [5])], seen=2),
        "rollback": lambda: store.rollback("stolen", seen=2),
        "restore": lambda: store.restore("stolen", state(B, generation=3), batches_of(B), seen=2),
    }

    async def read_while_it_changes():
        batches = 0
        async for found, _ in other.pages("stolen"):
            assert found.generation == 2
            batches += 1
            if batches == 1:
                await changes[write]()

    with pytest.raises(StoreChanged):
        await read_while_it_changes()
    assert (await read(other, "stolen"))[0].generation == 3


async def test_changes_tell_the_steps(store):
    await store.replace("stolen", state(A), A, seen=0)
    await store.amend("stolen", state(A, serial=2), [A[0], A[2]], seen=1)
    await store.replace("stolen", state(B, serial=3), B, seen=2)
    await store.rollback("stolen", seen=3)
    steps = [Change(0, 1, None), Change(1, 2, (0, 7)), Change(2, 3, None), Change(3, 4, None)]
    for after in range(5):
        assert await store.changes("stolen", after) == steps[after:]
    assert await store.changes("stolen", 5) is None


async def test_restore_puts_a_state_in_force_as_it_is(store, other):
    copy = state(A, serial=7, generation=57)
    await store.restore("stolen", copy, batches_of(A[:1], A[1:]), seen=0)
    assert await read(other, "stolen") == (copy, A)
    touched = [page(0, []), page(3, [1])]
    after = [A[1], touched[1], A[2]]
    amended = state(after, serial=8, generation=60)
    await store.restore("stolen", amended, batches_of(touched), seen=57, whole=False)
    assert await read(other, "stolen") == (amended, after)
    assert await store.changes("stolen", 57) == [Change(57, 60, (0, 3))]
    with pytest.raises(NothingToRollBack):
        await store.rollback("stolen", seen=60)
    stored = await store.replace("stolen", state(B, serial=9), B, seen=60)
    assert stored.generation == 61


async def test_restore_over_a_lower_generation(store):
    await store.replace("stolen", state(B), B, seen=0)
    await store.restore("stolen", state(A, serial=7, generation=57), batches_of(A), seen=1)
    assert (await read(store, "stolen"))[1] == A
    assert await store.changes("stolen", 57) == []


async def test_a_restore_whose_source_fails_changes_nothing(store):
    stored = await store.replace("stolen", state(A), A, seen=0)

    async def failing():
        yield B
        raise StoreChanged("the source changed")

    for whole in (True, False):
        with pytest.raises(StoreChanged):
            await store.restore("stolen", state(B, generation=9), failing(), seen=1, whole=whole)
    assert await read(store, "stolen") == (stored, A)


async def test_wait_returns_on_a_change_and_not_before(store, other):
    await store.replace("stolen", state(A), A, seen=0)
    waiting = asyncio.create_task(other.wait({"stolen": 1, "later": 0}, 30))
    done, _ = await asyncio.wait([waiting], timeout=0.3)
    assert not done
    await store.replace("stolen", state(B, serial=2), B, seen=1)
    await asyncio.wait_for(waiting, 1)
    waiting = asyncio.create_task(other.wait({"stolen": 2, "later": 0}, 30))
    await store.replace("later", state(B), B, seen=0)
    await asyncio.wait_for(waiting, 1)
    await asyncio.wait_for(other.wait({"stolen": 1}, 30), 1)
    await asyncio.wait_for(other.wait({"stolen": 2, "later": 1}, 0.2), 1)


async def test_a_claim_is_one_holders_until_it_ends(store, other):
    assert await store.claim("load", "one", 30)
    assert not await other.claim("load", "two", 30)
    assert await other.claim("something else", "two", 30)
    assert await store.claim("load", "one", 0.2)
    await until(lambda: other.claim("load", "two", 30))
    assert not await store.claim("load", "one", 0)
    assert await other.claim("load", "two", 0)
    assert await store.claim("load", "one", 30)


async def test_history_is_kept_in_order_and_by_list(store, other):
    events = [
        event("stolen", serial=1, digest="ab", detail="10 entries"),
        event("grey", "refused", what="refuse", time="2026-11-24T00:00:01Z", detail="bad_signature: …"),
        event(None, "refused", what="refuse", time="2026-11-24T00:00:02Z"),
        event("stolen", "rolled_back", what="rollback", time="2026-11-24T00:00:03Z", serial=1),
    ]
    for each in events:
        await store.record(each)
    assert list(await other.history()) == events
    assert list(await other.history("stolen")) == [events[0], events[3]]
    assert list(await other.history(limit=2)) == events[2:]
    assert list(await other.history("stolen", limit=1)) == [events[3]]
    assert list(await other.history("none")) == []


async def test_outcomes_are_counted_beyond_the_history(store):
    for second in range(3):
        await store.record(event("stolen", "refused", time=f"2026-11-24T00:00:0{second}Z"))
    await store.record(event(None, "refused"))
    await store.record(event("stolen"))
    found = await store.outcomes()
    assert sorted(found, key=str) == sorted(
        [
            Outcome("stolen", "refused", 3, "2026-11-24T00:00:02Z"),
            Outcome(None, "refused", 1, "2026-11-24T00:00:00Z"),
            Outcome("stolen", "accepted", 1, "2026-11-24T00:00:00Z"),
        ],
        key=str,
    )


async def test_history_is_bounded(store, monkeypatch):
    assert HISTORY_MAX == 10_000
    monkeypatch.setattr(f"{type(store).__module__}.HISTORY_MAX", 20)
    for number in range(50):
        await store.record(event("stolen", detail=str(number)))
    kept = await store.history()
    assert 20 <= len(kept) <= 40
    assert kept[-1].detail == "49"
    assert (await store.outcomes())[0].count == 50


class TestRandomHistories:
    """A chain of deltas, full releases and rollbacks equals the plain dict that it leads to."""

    under = st.tuples(st.sets(st.integers(0, 3)), st.sampled_from([None, None, (1, 0), (2, 5)]))
    """What a page lists: single identifiers, and the TAC with or without them."""
    steps = st.lists(
        st.one_of(
            st.tuples(st.just("amend"), st.dictionaries(st.integers(0, 5), under, max_size=4)),
            st.tuples(st.just("replace"), st.dictionaries(st.integers(0, 5), under.filter(lambda had: had[0] or had[1]))),
            st.tuples(st.just("rollback"), st.none()),
        ),
        max_size=8,
    )

    @given(steps=steps)
    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    async def test_equal_a_plain_dict(self, store, steps):
        name, generation, pages, before = f"list-{uuid4()}", 0, {}, None
        for kind, content in steps:
            if kind == "rollback":
                if before is None:
                    with pytest.raises(NothingToRollBack):
                        await store.rollback(name, seen=generation)
                    continue
                await store.rollback(name, seen=generation)
                pages, before = before, None
            else:
                new = [page(number, keys, tac=tac) for number, (keys, tac) in sorted(content.items())]
                after = {p.number: p for p in new if p[1:] != (b"", b"")}
                if kind == "amend":
                    after = {n: p for n, p in {**pages, **{p.number: p for p in new}}.items() if p[1:] != (b"", b"")}
                write = store.amend if kind == "amend" else store.replace
                await write(name, state(after.values()), new, seen=generation)
                before = dict(pages) if generation else None
                pages = after
            generation += 1
            found, held = await read(store, name)
            assert found.generation == generation
            assert {p.number: p for p in held} == pages
            assert found.content_digest == state(held).content_digest

"""What every store owes: one suite, run against each of them as it really is."""

import asyncio
import contextlib
import itertools
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import groups
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from simulated import servers
from simulated.patience import PATIENCE_S
from simulated.store_content import event, page, pages_of, state, until

from eir.errors import GenerationConflict, NothingToRollBack, StoreChanged
from eir.lists.changes.local import ADD, REMOVE, Edit, EntryDetails, edit_list
from eir.lists.changes.local_entries import parse_entries
from eir.lists.changes.rollback import roll_back
from eir.lists.pages.first_days import DAY_S
from eir.lists.pages.pages import PAGE_KEYS, amended_digest, content_digest
from eir.lists.record import history
from eir.lists.record.dates import read_dates, write_dates
from eir.lists.record.entries import entries_of
from eir.lists.record.history import FOLDS_MAX
from eir.lists.record.reasons import reason_and_day
from eir.lists.record.settings import ListSettings
from eir.lists.record.store import ANCHOR, FEED, MAIN, Ledger, ListChange, OutcomeCount, Record
from eir.lists.rows.build import Rows, build_pages
from eir.lists.rows.dates import date_pages
from eir.lists.stores.open import open_store

SHORT = ("sqlite", "redis")
"""Kinds of store that tests without `--long` use."""


@pytest.fixture(scope="session")
def running():
    with groups.started(lambda redis: servers.Protected(redis, "--enable-debug-command", "yes")) as server:
        yield server


@pytest.fixture(params=[pytest.param(kind, marks=[pytest.mark.long] * (kind not in SHORT)) for kind in groups.KINDS])
def kind(request):
    return request.param


def digests(server):
    """What a server holds: the digest of each key, but for those that may expire meanwhile."""
    keys = sorted(key for key in server.command("KEYS", "*").split(b"\r\n") if key.startswith(b"eir:"))
    lasting = [key for key in keys if server.command("TTL", key) == b":-1\r\n"]
    return (
        dict(zip(lasting, server.command("DEBUG", "DIGEST-VALUE", *lasting).split(b"\r\n")[1:], strict=False))
        if lasting
        else {}
    )


@pytest.fixture
async def opener(kind, tmp_path, running):
    """Opens the store as one more process would; what is in it is gone before the next test.

    One server alone has the user file of config/LISTS.md and an AOF: what a test left in it is still there when it starts again.
    """
    async with contextlib.AsyncExitStack() as stack:
        if kind in servers.programs():
            stack.callback(restart, running(kind))
        if kind != "sqlite":
            running(kind).flush()

        async def open_one():
            store = open_store("sqlite" if kind == "sqlite" else running(kind).url, tmp_path)
            stack.push_async_callback(store.close)
            return store

        yield open_one


def restart(server):
    """Start a server again, and look whether all is there."""
    before = digests(server)
    server.end()
    server.start()
    assert digests(server) == before


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
    assert await store.changes("b", 0) == [ListChange(0, 1, None)]


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
    before = await (
        store.replace("stolen", wild, after, seen=1) if whole else store.amend("stolen", wild, after[:1], seen=1)
    )
    for seen in (0, 1, 3):
        with pytest.raises(GenerationConflict):
            await store.reset_serial("stolen", 5, seen=seen)
    found = await store.reset_serial("stolen", 5, seen=2)
    assert found == replace(before, generation=3, highest_serial=5, serial_resets=1)
    assert await read(other, "stolen") == (found, after)
    assert await store.changes("stolen", 2) == [ListChange(2, 3, ())]
    # What was kept is there for a rollback, which brings no serial back that was given up.
    assert [release.state for release in await store.releases("stolen")] == [found, first]
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
    assert [release.state for release in await store.releases("stolen")] == [first]
    await store.replace("stolen", state(B, serial=2), B, seen=1)
    assert [release.state for release in await other.releases("stolen")][1:] == [first]
    stored = await store.rollback("stolen", seen=2)
    assert stored == replace(first, generation=3, highest_serial=2)
    assert await read(other, "stolen") == (stored, A)
    assert [release.state for release in await store.releases("stolen")] == [stored]
    with pytest.raises(NothingToRollBack):
        await store.rollback("stolen", seen=3)


async def test_rollback_of_a_delta(store):
    first = await store.replace("stolen", state(A), A, seen=0)
    touched = [page(0, [4]), page(1, []), page(2, [6])]
    await store.amend("stolen", state([touched[0], touched[2], A[2]], serial=2), touched, seen=1)
    assert (await store.releases("stolen"))[1].state == first
    stored = await store.rollback("stolen", seen=2)
    assert stored == replace(first, generation=3, highest_serial=2)
    assert await read(store, "stolen") == (stored, A)
    steps = await store.changes("stolen", 1)
    assert [(step.before, step.after) for step in steps] == [(1, 2), (2, 3)]
    assert [sorted(step.pages) for step in steps] == [[0, 1, 2], [0, 1, 2]]


FULL, DELTA = "full", "delta"
TEN = (FULL, DELTA, DELTA, FULL, FULL, DELTA, DELTA, DELTA, FULL, DELTA)


async def ten_releases(store, keep=10):
    """Their states, and the pages of each."""
    pages, found = {}, []
    for serial, kind in enumerate(TEN, 1):
        new = [page(serial % 3, [serial], reasons=bytes([serial])), page(10 + serial, [serial])]
        if kind == FULL:
            pages = {}
        else:
            new += [page(9 + serial, [])]  # what the one before brought goes
        pages = {
            number: each
            for number, each in {**pages, **{each.number: each for each in new}}.items()
            if not each.is_empty
        }
        write = store.replace if kind == FULL else store.amend
        written = await write(
            "stolen",
            state(pages.values(), serial=serial),
            sorted(new),
            seen=serial - 1,
            keep=keep,
            event=event(serial=serial),
        )
        found.append((written, sorted(pages.values())))
    return found


@pytest.mark.parametrize("to", range(1, 10))
async def test_a_rollback_to_each_of_ten_releases(store, other, to):
    found = await ten_releases(store)
    assert [release.state for release in await other.releases("stolen")] == [written for written, _ in reversed(found)]
    wanted, pages = found[to - 1]
    undone = await store.rollback("stolen", seen=10, to=wanted.generation)
    assert undone == replace(wanted, generation=11, highest_serial=10)
    assert await read(other, "stolen") == (undone, pages)
    assert undone.content_digest == state(pages).content_digest
    assert [release.made.serial for release in await other.releases("stolen")] == list(range(to, 0, -1))
    # And from there on, step by step.
    for seen, (before, pages) in enumerate(reversed(found[: to - 1]), 11):
        stepped = await store.rollback("stolen", seen=seen)
        assert await read(other, "stolen") == (stepped, pages)
        assert (stepped.serial, stepped.content_digest) == (before.serial, state(pages).content_digest)
    with pytest.raises(NothingToRollBack):
        await store.rollback("stolen", seen=10 + to)


async def test_the_pages_of_each_release_that_is_kept_can_be_read(store, other):
    found = await ten_releases(store)
    assert [each.state for each in await other.releases("stolen")] == [written for written, _ in reversed(found)]
    for written, pages in found:
        assert sorted(await other.kept_pages("stolen", written.generation, range(30))) == pages, written.serial
        assert sorted(await other.kept_pages("stolen", written.generation, [2])) == [
            each for each in pages if each.number == 2
        ]
    assert await other.kept_pages("stolen", 11, [1]) is None
    assert await other.kept_pages("other", 1, [1]) is None
    await other.rollback("stolen", seen=10, to=4)
    assert sorted(await store.kept_pages("stolen", 11, range(30))) == found[3][1]
    assert await store.kept_pages("stolen", 7, [1]) is None


async def test_so_many_releases_are_kept_as_are_wanted(store):
    found = await ten_releases(store, keep=3)
    assert [release.state.serial for release in await store.releases("stolen")] == [10, 9, 8, 7]
    for to in (6, 10, 11):
        with pytest.raises(NothingToRollBack):
            await store.rollback("stolen", seen=10, to=to)
    assert (await store.rollback("stolen", seen=10, to=7)).content_digest == found[6][0].content_digest


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


async def test_changes_lists_the_steps(store):
    await store.replace("stolen", state(A), A, seen=0)
    await store.amend("stolen", state(A, serial=2), [A[0], A[2]], seen=1)
    await store.replace("stolen", state(B, serial=3), B, seen=2)
    await store.rollback("stolen", seen=3)
    steps = [ListChange(0, 1, None), ListChange(1, 2, (0, 7)), ListChange(2, 3, None), ListChange(3, 4, None)]
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
    assert await store.changes("stolen", 57) == [ListChange(57, 60, (0, 3))]
    with pytest.raises(NothingToRollBack):
        await store.rollback("stolen", seen=60)
    stored = await store.replace("stolen", state(B, serial=9), B, seen=60)
    assert stored.generation == 61


async def test_restore_over_a_lower_generation(store):
    await store.replace("stolen", state(B), B, seen=0)
    await store.restore("stolen", state(A, serial=7, generation=57), batches_of(A), seen=1)
    assert (await read(store, "stolen"))[1] == A
    assert await store.changes("stolen", 57) == []
    with pytest.raises(NothingToRollBack):
        await store.rollback("stolen", seen=57)


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
    waiting = asyncio.create_task(other.wait({"stolen": 1, "later": 0}, 3600))
    done, _ = await asyncio.wait([waiting], timeout=0.3)
    assert not done
    await store.replace("stolen", state(B, serial=2), B, seen=1)
    await asyncio.wait_for(waiting, PATIENCE_S)
    waiting = asyncio.create_task(other.wait({"stolen": 2, "later": 0}, 3600))
    await store.replace("later", state(B), B, seen=0)
    await asyncio.wait_for(waiting, PATIENCE_S)
    await asyncio.wait_for(other.wait({"stolen": 1}, 3600), PATIENCE_S)
    await asyncio.wait_for(other.wait({"stolen": 2, "later": 1}, 0.2), PATIENCE_S)


async def test_a_wait_that_is_cancelled_cancels_its_own_tasks(store):
    await store.replace("stolen", state(A), A, seen=0)
    before = asyncio.all_tasks()
    waiting = asyncio.create_task(store.wait({"stolen": 1}, 3600))
    await asyncio.wait([waiting], timeout=0.1)
    own = asyncio.all_tasks() - before - {waiting}
    waiting.cancel()
    await asyncio.sleep(0)
    assert not own or any(task.cancelling() for task in own)
    await asyncio.wait([waiting], timeout=PATIENCE_S)
    assert waiting.cancelled()
    assert all(task.done() for task in own)


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
            OutcomeCount("stolen", "refused", 3, "2026-11-24T00:00:02Z"),
            OutcomeCount(None, "refused", 1, "2026-11-24T00:00:00Z"),
            OutcomeCount("stolen", "accepted", 1, "2026-11-24T00:00:00Z"),
        ],
        key=str,
    )


async def records_of(store):
    return [record async for batch in store.records() for record in batch]


async def faults_of(store):
    return list(history.chain_faults(await records_of(store), await store.folds(), await store.ledger()))


async def test_the_history_is_a_chain(store, other):
    assert await other.ledger() == Ledger()
    assert await faults_of(other) == []
    for number in range(3):
        await store.record(event("stolen", serial=number, detail="ünïcode\n"))
    records = await records_of(other)
    assert [record.number for record in records] == [1, 2, 3]
    assert (await other.ledger()).digest == history.record_digest(records[-1].text)
    assert history.record_digest(records[0].text) in records[1].text
    assert [each.number for each in await other.history()] == [1, 2, 3]
    assert await faults_of(other) == []


TAMPERED = {
    "a record changed": (lambda said: [said[0], said[1].replace("load", "lose"), *said[2:]], "record 2 is not the one that record 3"),
    "the newest changed": (lambda said: [*said[:4], said[4].replace("load", "lose")], "record 5, the newest, was changed"),
    "the first changed": (lambda said: [said[0].replace("load", "lose"), *said[1:]], "record 1 is not the one that record 2"),
    "one removed": (lambda said: [*said[:2], None, *said[3:]], "record 3 is missing"),
    "two removed": (lambda said: [said[0], None, None, *said[3:]], "records 2 to 3 are missing"),
    "the newest removed": (lambda said: said[:4], "record 5 is missing"),
    "the first removed": (lambda said: [None, *said[1:]], "record 1 is missing"),
    "two moved": (lambda said: [said[0], said[2], said[1], *said[3:]], "record 3 stands where record 2 was"),
    "one removed, and the others moved up": (lambda said: [said[0], *said[2:]], "record 3 stands where record 2 was"),
    "one put in": (lambda said: [*said, said[4]], "records after 5 were not written by this program"),
    "no JSON": (lambda said: [said[0], "{", *said[2:]], "record 2 was changed: it cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("tamper", TAMPERED)
async def test_what_somebody_did_to_the_history_is_found(store, tamper):
    change, says = TAMPERED[tamper]
    for number in range(5):
        await store.record(event(serial=number))
    ledger, records = await store.ledger(), await records_of(store)
    changed = [
        Record(number, text) for number, text in enumerate(change([text for _, text in records]), 1) if text is not None
    ]
    await store.rewrite_history(batches_of(changed), (), after=0, seen=ledger)
    assert says in "; ".join(history.chain_faults(await records_of(store), await store.folds(), ledger))


async def test_what_somebody_did_to_refusals_is_found(store):
    for reason in "ab":
        await store.record(event(None, "refused", what="refuse", detail=f"{reason}: …"))
    ledger, folds = await store.ledger(), await store.folds()
    for changed in (folds[:1], [folds[0], folds[1]._replace(text=folds[1].text.replace("…", "!"))]):
        await store.rewrite_history(batches_of(), changed, after=0, seen=await store.ledger(), exact=True)
        assert list(history.chain_faults((), await store.folds(), ledger)) == ["refusals were changed or removed"]


async def test_two_that_write_at_once_make_one_chain(store, other):
    await asyncio.gather(*(each.record(event(detail=str(number))) for number in range(10) for each in (store, other)))
    assert sorted(each.detail for each in await store.history()) == sorted(2 * [str(number) for number in range(10)])
    assert await faults_of(store) == []


async def test_a_write_and_its_event_are_one(store, other):
    await store.replace("stolen", state(A), A, seen=0, event=event(detail="full"))
    await store.amend("stolen", state(A, serial=2), [A[0]], seen=1, event=event(detail="delta"))
    for write in (store.replace, store.amend):
        with pytest.raises(GenerationConflict):
            await write("stolen", state(B, serial=3), B, seen=1, event=event(detail="late"))
    await store.rollback("stolen", seen=2, event=event(detail="rollback"))
    await store.reset_serial("stolen", 1, seen=3, event=event(detail="reset"))
    await store.restore("stolen", state(B, generation=9), batches_of(B), seen=4, event=event(detail="heal"))
    assert [each.detail for each in await other.history()] == ["full", "delta", "rollback", "reset", "heal"]
    await other.append_pending()
    assert len(await records_of(store)) == 5
    assert (await store.outcomes())[0].count == 5


@pytest.fixture
def batches_of_three(monkeypatch):
    """Have stores read and delete three records of the history at a time."""
    for module in ("sqlite", "redis"):
        monkeypatch.setattr(f"eir.lists.stores.{module}.history.BATCH", 3)


async def test_refusals_are_folded_and_push_out_nothing(store):
    """But the oldest tenth of the folds."""
    folds, ledger = [], Ledger()
    for number in range(FOLDS_MAX - 20):
        old = event(None, "refused", what="refuse", detail=f"old{number}: …", time="2026-11-23T00:00:00Z")
        fold, ledger = history.fold_refusal(ledger, old, None)
        folds.append(fold)
    await store.rewrite_history(batches_of(), folds, after=0, seen=await store.ledger(), exact=True)
    await store.record(event(detail="before"))
    for number in range(100):
        await store.record(
            event(
                None,
                "refused",
                what="refuse",
                detail=f"bad_signature: try {number}",
                time=f"2026-11-24T00:00:{number % 60:02}Z",
            )
        )
    await store.record(event(detail="between"))
    for number in range(60):
        await store.record(event(None, "refused", what="refuse", detail=f"reason{number}: …"))
    await store.record(event("grey", "refused", what="refuse", detail="bad_signature: …"))
    found = await store.history()
    assert [each.detail for each in found if each.outcome == "accepted"] == ["before", "between"]
    assert len(found) <= 2 + FOLDS_MAX
    kept = [each.detail for each in found if each.detail.startswith("old")]
    assert kept == [f"old{number}: …" for number in range(FOLDS_MAX - 20 - len(kept), FOLDS_MAX - 20)]
    assert 20 < len(kept) < FOLDS_MAX - 20
    assert found[-1].detail == "bad_signature: …"
    assert found[-2].detail == "reason59: …"
    assert await faults_of(store) == []
    assert sum(each.count for each in await store.outcomes() if each.outcome == "refused") == 161


async def test_content_of_a_fold(store):
    for second in range(3):
        await store.record(
            event(
                None,
                "refused",
                what="refuse",
                detail=f"manifest: {second} (claims grey 7, unverified)",
                time=f"2026-11-24T00:00:0{second}Z",
            )
        )
    await store.record(
        event(
            None,
            "refused",
            what="refuse",
            detail="manifest: other (claims stolen 7, unverified)",
            time="2026-11-24T00:00:03Z",
        )
    )
    await store.record(
        event(
            None,
            "refused",
            what="refuse",
            detail="manifest: next day (claims grey 7, unverified)",
            time="2026-11-25T00:00:00Z",
        )
    )
    first, second = await store.history("grey")
    assert (first.count, first.first, first.time) == (3, "2026-11-24T00:00:00Z", "2026-11-24T00:00:02Z")
    assert first.detail.startswith("manifest: 2 ")
    assert (second.count, second.first) == (1, None)
    assert [each.detail for each in await store.history(since="2026-11-24T12:00:00Z")] == [second.detail]


async def test_history_of_a_time(store):
    for day in range(1, 9):
        await store.record(event("stolen" if day % 2 else "grey", time=f"2026-11-0{day}T00:00:00Z"))
    assert [each.time[8:10] for each in await store.history(since="2026-11-06T00:00:00Z")] == ["06", "07", "08"]
    assert [each.time[8:10] for each in await store.history("grey", since="2026-11-04T00:00:00Z")] == ["04", "06", "08"]
    assert [each.time[8:10] for each in await store.history("grey", since="2026-11-03T00:00:00Z", limit=2)] == [
        "06",
        "08",
    ]


@pytest.mark.usefixtures("batches_of_three")
async def test_what_is_older_than_wanted_is_forgotten(store):
    for day in range(1, 9):
        await store.record(event(time=f"2026-11-0{day}T00:00:00Z"))
    trim = event(None, what="trim", detail="history.keep")
    assert await store.trim_history("2026-11-01T00:00:00Z", 1 << 20, trim) == 0
    assert len(await store.history()) == 8
    assert await store.trim_history("2026-11-06T00:00:00Z", 1 << 20, trim) == 5
    found = await store.history()
    assert [each.time[8:10] for each in found if each.what == "load"] == ["06", "07", "08"]
    assert found[-1].detail.startswith("history.keep: records ")
    assert await faults_of(store) == []
    size = (await store.ledger()).bytes
    assert await store.trim_history("2026-11-01T00:00:00Z", size // 2, trim) > 1
    assert (await store.ledger()).bytes < size
    assert await faults_of(store) == []


async def test_a_history_is_rewritten(store):
    for number in range(6):
        await store.record(event(detail=str(number)))
    await store.record(event("stolen", "refused", what="refuse", detail="expired: …"))
    records, folds, seen = await records_of(store), await store.folds(), await store.ledger()
    other, ledger = history.append_events(Ledger(), [event(detail=text) for text in "ab"])
    with pytest.raises(GenerationConflict):
        await store.rewrite_history(batches_of(other), (), after=0, seen=Ledger())
    await store.rewrite_history(batches_of(other[:1], other[1:]), (), after=0, seen=seen, exact=True)
    assert (await records_of(store), await store.folds(), await faults_of(store)) == (other, [], [])
    assert (await store.ledger()).digest == ledger.digest
    await store.rewrite_history(batches_of(records[:4]), folds, after=0, seen=await store.ledger())
    await store.rewrite_history(batches_of(records[4:]), folds, after=4, seen=await store.ledger())
    await store.rewrite_history(batches_of(), (), after=6, seen=await store.ledger())
    assert (await records_of(store), await store.folds(), await faults_of(store)) == (records, folds, [])
    changed, _ = history.append_events(
        replace(seen, number=3, digest=history.record_digest(records[2].text)), [event(detail="x")]
    )
    await store.rewrite_history(batches_of(changed), (), after=3, seen=await store.ledger())
    assert await records_of(store) == [*records[:3], *changed]
    await store.record(event(detail="goes on"))
    assert await faults_of(store) == []


def fed(number, **fields):
    """One transaction of a register's feed."""
    return event("own", what="add", detail=f"fed by register: {number}", chain=FEED, **fields)


async def feed_of(store):
    return [record async for batch in store.records(chain=FEED) for record in batch]


async def faults_of_feed(store):
    records, ledger = await feed_of(store), await store.ledger(FEED)
    return [*history.chain_faults(records, (), ledger), *history.feed_faults(await records_of(store), records, ledger)]


async def test_rows_of_a_feed_are_a_chain_beside_the_main_one(store, other):
    await store.record(event(detail="first"))
    await store.record(fed(1))
    await store.record(fed(2, time="2026-11-24T00:00:01Z"))
    await store.record(event("own", "refused", what="refuse", detail="expired: …", time="2026-11-24T00:00:02Z"))
    await store.record(event("own", what="remove", detail="last"))
    await store.record(fed(3))
    events = await other.history()
    assert [(each.chain, each.number) for each in events] == [
        ("main", 1), ("feed", 1), ("feed", 2), ("main", None), ("main", 2), ("feed", 3),
    ]  # fmt: skip
    assert [each.detail for each in await other.history(chain=FEED)] == [f"fed by register: {n}" for n in (1, 2, 3)]
    assert [each.number for each in await other.history(chain=MAIN)] == [1, None, 2]
    assert [each.number for each in await other.history("own", limit=2)] == [2, 3]
    assert [each.number for each in await other.history("own", limit=2, chain=MAIN)] == [None, 2]
    assert len(await feed_of(other)) == 3
    assert await faults_of(other) == await faults_of_feed(other) == []
    assert sum(each.count for each in await other.outcomes() if each.list == "own") == 5


async def test_rows_keep_their_order_where_the_clock_goes_back(store):
    """The newest event of a list is compared with what is in force."""
    for number, second in enumerate((5, 4, 6)):
        await store.record(fed(number, time=f"2026-11-24T00:00:0{second}Z"))
    assert [each.detail[-1] for each in await store.history("own")] == ["0", "1", "2"]


@pytest.mark.usefixtures("batches_of_three")
async def test_the_events_of_many_rows_are_found_among_others(store):
    for number in range(20):
        await store.record(fed(number))
        if number % 5 == 0:
            await store.record(event("own", detail=f"by hand {number}"))
    for limit in (1, 2, 3, 7, 24, 30):
        assert await store.history("own", limit=limit) == (await store.history("own"))[-limit:], limit
    assert next(iter(await store.history("own", limit=5))).detail == "by hand 15"


async def test_a_write_and_its_event_in_the_feed_are_one(store, other):
    await store.replace("own", state(A), A, seen=0, event=event("own", detail="by hand"))
    await store.amend("own", state(A, serial=2), [A[0]], seen=1, event=fed(1))
    with pytest.raises(GenerationConflict):
        await store.amend("own", state(A, serial=2), [A[0]], seen=1, event=fed(2))
    await other.append_pending()
    assert [(each.chain, each.detail) for each in await other.history("own")] == [
        ("main", "by hand"), ("feed", "fed by register: 1"),
    ]  # fmt: skip
    assert (await store.releases("own"))[0].made.chain == FEED


ANCHORING = event(None, what=ANCHOR, time="2026-11-25T00:00:00Z")


async def test_an_anchor_holds_the_head_of_the_feed(store, other):
    await store.record(ANCHORING)
    assert await records_of(store) == [], "there is nothing to hold"
    for number in range(3):
        await store.record(fed(number))
    await store.record(ANCHORING)
    await store.record(ANCHORING)
    (anchor,) = await other.history(chain=MAIN)
    ledger = await other.ledger(FEED)
    assert (anchor.head, anchor.digest, anchor.what) == (3, ledger.digest, "anchor")
    assert (ledger.anchored, ledger.anchored_at) == (3, "2026-11-25T00:00:00Z")
    await store.record(fed(3))
    await store.record(ANCHORING)
    assert [each.head for each in await other.history(chain=MAIN)] == [3, 4]
    assert await faults_of(store) == await faults_of_feed(store) == []


FORGED = {
    "a record changed": (lambda events: [replace(events[0], detail="nothing"), *events[1:]], 0, "record 3 of the feed is not the one that record 1 holds"),
    "the newest removed": (lambda events: events[:2], 0, "records of the feed up to 3 are missing: record 1 holds that one"),
    "all removed": (lambda _: [], 0, "records of the feed up to 3 are missing"),
    "another chain with higher numbers": (lambda events: events, 9, "records of the feed before 10 were removed"),
}  # fmt: skip


@pytest.mark.parametrize("forgery", FORGED)
async def test_a_feed_that_was_written_again_is_found_by_its_anchor(store, forgery):
    """The chain holds in itself, as whoever may write the store can make it."""
    change, number, says = FORGED[forgery]
    for detail in range(3):
        await store.record(fed(detail))
    await store.record(ANCHORING)
    events = history.readable_events(await feed_of(store), FEED)
    forged, _ = history.append_events(Ledger(first=number + 1, number=number), change(events), 0)
    await store.rewrite_history(batches_of(forged), (), after=0, seen=await store.ledger(FEED), chain=FEED)
    faults = await faults_of_feed(store)
    assert faults
    assert says in faults[0]
    assert await faults_of(store) == []


@pytest.mark.usefixtures("batches_of_three")
async def test_a_feed_is_trimmed_and_the_main_chain_is_not(store):
    await store.record(event(detail="a load"))
    for number in range(20):
        await store.record(fed(number))
    await store.record(ANCHORING)
    main, size = await records_of(store), (await store.ledger(FEED)).bytes
    trim = event(None, what="trim", detail="history.feed_max_bytes", chain=FEED)
    count = await store.trim_history("2026-11-01T00:00:00Z", size // 2, trim, FEED)
    assert count > 8
    ledger = await store.ledger(FEED)
    assert (ledger.first, ledger.bytes < size * 0.7) == (count + 1, True)
    assert await records_of(store) == main
    assert (await store.history(chain=FEED))[-1].what == "trim"
    assert await faults_of(store) == await faults_of_feed(store) == []
    await store.record(fed(20))
    assert await faults_of_feed(store) == []


async def test_one_chain_is_rewritten_without_the_other(store):
    await store.record(event(detail="a load"))
    await store.record(event("own", "refused", what="refuse", detail="expired: …"))
    for number in range(4):
        await store.record(fed(number))
    main, folds, rows = await records_of(store), await store.folds(), await feed_of(store)
    for after in (0, 2, 4):
        seen = await store.ledger(FEED)
        await store.rewrite_history(batches_of(rows[after:]), (), after=after, seen=seen, exact=True, chain=FEED)
        assert (await records_of(store), await store.folds(), await feed_of(store)) == (main, folds, rows)
    size = (await store.ledger(FEED)).bytes
    assert size == sum(len(text) for _, text in rows)
    await store.rewrite_history(batches_of(main), folds, after=0, seen=None)
    assert (await records_of(store), await feed_of(store)) == (main, rows)
    assert (await store.ledger(FEED)).bytes == size
    await store.rewrite_history(batches_of(rows[:2]), (), after=0, seen=None, chain=FEED)
    assert (await records_of(store), await store.folds(), await feed_of(store)) == (main, folds, rows[:2])
    await store.record(fed(9))
    assert await faults_of(store) == await faults_of_feed(store) == []


class TestRandomHistories:
    """A chain of deltas, full releases and rollbacks equals the plain dict that it leads to."""

    under = st.tuples(st.sets(st.integers(0, 3)), st.sampled_from([None, None, (1, 0), (2, 5)]))
    """What a page lists: single identifiers, and the TAC with or without them."""
    steps = st.lists(
        st.one_of(
            st.tuples(st.just("amend"), st.dictionaries(st.integers(0, 5), under, max_size=4)),
            st.tuples(
                st.just("replace"), st.dictionaries(st.integers(0, 5), under.filter(lambda had: had[0] or had[1]))
            ),
            st.tuples(st.just("rollback"), st.integers(1, 3)),
        ),
        max_size=9,
    )

    @given(steps=steps)
    @settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
    async def test_equal_a_plain_dict(self, store, steps):
        name, generation, pages, before = f"list-{uuid4()}", 0, {}, []
        for kind, content in steps:
            if kind == "rollback":
                if len(before) < content:
                    with pytest.raises(NothingToRollBack):
                        await store.rollback(name, seen=generation, to=-1)
                    continue
                to = (await store.releases(name))[content].state.generation
                await store.rollback(name, seen=generation, to=to)
                pages, before = before[-content], before[:-content]
            else:
                new = [page(number, keys, tac=tac) for number, (keys, tac) in sorted(content.items())]
                after = {p.number: p for p in new if p[1:] != (b"", b"")}
                if kind == "amend":
                    after = {n: p for n, p in {**pages, **{p.number: p for p in new}}.items() if p[1:] != (b"", b"")}
                write = store.amend if kind == "amend" else store.replace
                await write(name, state(after.values()), new, seen=generation)
                before = [*before, dict(pages)][-5:] if generation else []
                pages = after
            generation += 1
            found, held = await read(store, name)
            assert found.generation == generation
            assert {p.number: p for p in held} == pages
            assert found.content_digest == state(held).content_digest


SECONDS = itertools.count()
DATED = ListSettings(name="own", local=True, dates=True, keep=3)
DAY = 20_000


def dated(what, **days):
    """An edit of devices of one page, by their last digit, with the day of each (0 for none)."""
    entries = parse_entries("devices", [f"3500000000000{name[1:]}" for name in days])
    details = {entry[1:]: EntryDetails(day=day) for entry, day in zip(entries, days.values(), strict=True)}
    return Edit(what=what, entries=entries, reason="seen", details=details)


async def edited(store, what, **days):
    edit = dated(what, **days)
    return await edit_list(edit, DATED, store, who="x", now=datetime.now(UTC) + timedelta(seconds=next(SECONDS)))


async def days_in(store):
    """Each device by its last digit, and its day."""
    _, pages = await store.some_pages("own", [35 * 10**6])
    _, dates = await read_dates(store, "own", [35 * 10**6])
    days = {entry.key % 10: entry.date // DAY_S for entry in entries_of(pages, dates)}
    assert days == {at: (await reason_and_day(store, "own", 35 * 10**12 + at))[1] for at in days}
    return days


async def test_dates_stand_beside_a_list_and_go_with_its_changes(store):
    await edited(store, ADD, _1=DAY, _2=0)
    first = await store.state("own")
    await edited(store, ADD, _3=DAY + 1)
    await edited(store, REMOVE, _1=0)
    assert await days_in(store) == {2: 0, 3: DAY + 1}
    await roll_back("own", store, who="x", now=datetime.now(UTC))
    assert await days_in(store) == {1: DAY, 2: 0, 3: DAY + 1}
    await edited(store, ADD, _4=0)
    await roll_back("own", store, who="x", now=datetime.now(UTC), to=first.generation)
    assert await days_in(store) == {1: DAY, 2: 0}
    plain = await store.state("own")
    assert (
        plain.content_digest == first.content_digest == content_digest((await store.some_pages("own", [35 * 10**6]))[1])
    )
    assert {event.list for event in await store.history()} == {"own"}


async def test_dates_of_a_page_that_another_program_changed_are_unknown(store):
    await edited(store, ADD, _1=DAY)
    await edit_list(dated(ADD, _2=DAY), replace(DATED, dates=False), store, who="x", now=datetime.now(UTC))
    assert await days_in(store) == {1: 0, 2: 0}
    await edited(store, ADD, _3=DAY)
    assert await days_in(store) == {1: 0, 2: 0, 3: DAY}
    await roll_back("own", store, who="x", now=datetime.now(UTC), to=1)
    assert await days_in(store) == {1: DAY}


async def test_of_edits_at_once_each_keeps_the_others_dates(store, other):
    await edited(store, ADD, _0=DAY)
    await asyncio.gather(*(edited(store if at % 2 else other, ADD, **{f"_{at}": DAY + at}) for at in range(1, 6)))
    assert await days_in(store) == {at: DAY + at for at in range(6)}


ROOM_TIMES = 2.0
"""Room of a list with dates, times that of the list without."""


async def test_a_list_with_dates_takes_at_most_twice_the_room(kind, store, running, tmp_path):
    """With a million devices over 1,000 to 250,000 TACs it takes 1.4 to 1.8 times as much."""
    if kind not in {"sqlite", "redis"}:
        pytest.skip("measured with these")
    rows = Rows()
    keys = np.sort(np.random.default_rng(1).choice(20 * PAGE_KEYS, 20_000, replace=False)).astype(np.uint64)
    rows.add(keys + np.uint64(35 * 10**12))
    rows.dates.append(
        keys + np.uint64(35 * 10**12), keys + np.uint64(35 * 10**12), (DAY + keys % 3000).astype(np.uint16)
    )
    dates, pages = rows.dates, build_pages(rows).pages
    await store.replace("own", state(pages), pages, seen=0)

    def room():
        if kind == "sqlite":
            return (tmp_path / "lists.sqlite").stat().st_size
        keys = [key for key in running(kind).command("KEYS", "eir:{*:set:*").split(b"\r\n") if key.startswith(b"eir:")]
        return sum(int(running(kind).command("MEMORY", "USAGE", key, "SAMPLES", "0")[1:]) for key in keys)

    empty = 0 if kind == "redis" else await sqlite_room(tmp_path)
    alone = room() - empty
    of = await store.state("own")
    await write_dates(store, "own", date_pages(pages, dates), replaced=None, state=of, keep=1)
    assert alone < room() - empty <= ROOM_TIMES * alone


async def sqlite_room(folder):
    """The size of a store with a list without entries."""
    folder.joinpath("empty").mkdir()
    store = open_store("sqlite", folder / "empty")
    await store.replace("own", state([]), [], seen=0)
    await store.close()
    return (folder / "empty" / "lists.sqlite").stat().st_size

"""What a write changes, decided without a store. That stores carry it out: test_store_contract.py."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated.store_content import event, page, pages_of, state

from eir.errors import GenerationConflict, NothingToRollBack
from eir.lists.record.store import ListChange
from eir.lists.stores import write
from eir.lists.stores.write import (
    CHANGE_PAGES_MAX,
    Kept,
    Stored,
    WriteRequest,
    check_generation,
    contiguous_changes,
    plan_rollback,
    plan_write,
    portions,
    rollback_steps,
)

A, B = replace(state(pages_of([1]), serial=7, generation=4), highest_serial=9), state(pages_of([2]), serial=8)
TOUCHED = [page(0, [2]), page(5, [])]
C, D = (state(pages_of([n]), serial=n, generation=n) for n in (3, 2))
PLAIN = Stored(A, "in force")
WAS_WHOLE, WAS_TOUCHED = Kept(C, "before", whole=True), Kept(C, "touched", whole=False)
AFTER_FULL, AFTER_DELTA = Stored(A, "in force", (WAS_WHOLE,)), Stored(A, "in force", (WAS_TOUCHED,))
LOST = replace(AFTER_FULL, lost=True)

RELEASE, DELTA = WriteRequest(state=B, whole=True), WriteRequest(state=B, pages=TOUCHED)
COPY = WriteRequest(state=replace(B, generation=60, highest_serial=8), whole=True, exact=True, keep=0)
COPIED_PAGES = replace(COPY, pages=TOUCHED, whole=False)
RESET = WriteRequest(state=replace(A, generation=5, highest_serial=2, serial_resets=1), exact=True, keep=None)
NEXT = replace(B, generation=5, highest_serial=9)
ALL, SOME = ListChange(4, 5, None), ListChange(4, 5, (0, 5))


@pytest.mark.parametrize(
    ("stored", "wanted", "after", "aside", "dropped", "change", "new_log"),
    [
        # A full release keeps the one before, a delta the pages that it replaces; what was kept until then stays behind it.
        (None, RELEASE, Stored(replace(B, generation=1, highest_serial=8), "own"), None, (), ListChange(0, 1, None), True),
        (PLAIN, RELEASE, Stored(NEXT, "own", (Kept(A, "in force", whole=True),)), None, (), ALL, False),
        (PLAIN, DELTA, Stored(NEXT, "in force", (Kept(A, "own", whole=False),)), "own", (), SOME, False),
        (AFTER_FULL, RELEASE, Stored(NEXT, "own", (Kept(A, "in force", whole=True), WAS_WHOLE)), None, (), ALL, False),
        (AFTER_DELTA, DELTA, Stored(NEXT, "in force", (Kept(A, "own", whole=False), WAS_TOUCHED)), "own", (), SOME, False),
        # So many as are wanted.
        (AFTER_FULL, replace(RELEASE, keep=1), Stored(NEXT, "own", (Kept(A, "in force", whole=True),)), None, ("before",), ALL, False),
        (AFTER_DELTA, replace(DELTA, keep=1), Stored(NEXT, "in force", (Kept(A, "own", whole=False),)), "own", ("touched",), SOME, False),
        # A list that lost its pages goes on from its generation and its highest serial; nothing of it is kept.
        (LOST, RELEASE, Stored(NEXT, "own"), None, ("in force", "before"), ListChange(0, 5, None), True),
        # A serial that was set back: the same list, and the same is kept.
        (AFTER_FULL, RESET, replace(AFTER_FULL, state=RESET.state), None, (), ListChange(4, 5, ()), False),
        (AFTER_DELTA, RESET, replace(AFTER_DELTA, state=RESET.state), None, (), ListChange(4, 5, ()), False),
        # A copy comes into force as it is; nothing is kept.
        (None, COPY, Stored(COPY.state, "own"), None, (), ListChange(0, 60, None), True),
        (AFTER_FULL, COPY, Stored(COPY.state, "own"), None, ("in force", "before"), ListChange(4, 60, None), True),
        (AFTER_DELTA, COPIED_PAGES, Stored(COPY.state, "in force"), None, ("touched",), ListChange(4, 60, (0, 5)), False),
        # One of a generation that is not higher is no step from what was there.
        (PLAIN, replace(COPY, state=A), Stored(A, "own"), None, ("in force",), None, True),
        (PLAIN, replace(COPIED_PAGES, state=A), Stored(A, "in force"), None, (), None, True),
    ],
)  # fmt: skip
def test_decide(stored, wanted, after, aside, dropped, change, new_log):
    found = plan_write(stored, wanted, "own")
    assert found == write.Write(after, wanted.pages, aside, dropped, change, new_log)


LOAD, OTHER_LOAD = event("a", serial=1), event("a", serial=2)
LAST, FULL, FIRST = Kept(B, "last", whole=False, made=LOAD), Kept(C, "full", whole=True), Kept(D, "first", whole=False)
OLD_PAGES = [page(0, [7]), page(6, [8])]


@pytest.mark.parametrize(
    ("kept", "to", "after", "put", "dropped", "change"),
    [
        ((WAS_WHOLE,), None, Stored(replace(C, generation=5, highest_serial=9), "before"), [], ("in force",), ALL),
        ((LAST,), None, Stored(NEXT, "in force", made=LOAD), TOUCHED, ("last",), SOME),
        ((LAST, FULL, FIRST), 0, Stored(NEXT, "in force", (FULL, FIRST), LOAD), TOUCHED, ("last",), SOME),
        ((LAST, FULL, FIRST), 3, Stored(replace(C, generation=5, highest_serial=9), "full", (FIRST,)), [], ("in force", "last"), ALL),
        # What a delta touched, in the whole set that was in force after it.
        ((LAST, FULL, FIRST), 2, Stored(replace(D, generation=5, highest_serial=9), "full"), OLD_PAGES, ("in force", "last", "first"), ALL),
        # Of a page that two deltas touched, as it was before the older one.
        ((LAST, FIRST), 2, Stored(replace(D, generation=5, highest_serial=9), "in force"), [OLD_PAGES[0], TOUCHED[1], OLD_PAGES[1]], ("last", "first"), ListChange(4, 5, (0, 5, 6))),
    ],
)  # fmt: skip
def test_a_rollback_goes_back_step_by_step(kept, to, after, put, dropped, change):
    stored = Stored(A, "in force", kept, OTHER_LOAD)
    steps = rollback_steps("a", stored, to)
    pages = {"last": TOUCHED, "first": OLD_PAGES}
    found = plan_rollback(stored, steps, [pages.get(step.page_set, ()) for step in steps], LOAD)
    assert found == write.Write(after, put, None, dropped, change, clears_log=False, event=LOAD)


def test_what_a_write_leaves_in_the_record():
    first = plan_write(None, replace(RELEASE, event=LOAD), "first").after
    assert first.made == LOAD
    second = plan_write(first, replace(DELTA, event=OTHER_LOAD), "second").after
    assert (second.made, [each.made for each in second.kept]) == (OTHER_LOAD, [LOAD])
    assert plan_write(second, replace(RESET, event=event(what="reset-serial")), "none").after.made == OTHER_LOAD


@pytest.mark.parametrize(
    ("before", "written", "after"),
    [((0, 9), (0, 8), (0, 9)), ((0, 9), (0, 10), (0, 10)), ((1, 9), (0, 8), (1, 9)), ((1, 7), (0, 900), (1, 8)), ((0, 900), (1, 8), (1, 8)), ((1, 5), (2, 6), (2, 8))],
)  # fmt: skip
def test_the_mark_of_serials_rises(before, written, after):
    """Of a release with serial 8; a mark of fewer resets counts for nothing."""
    states = [
        replace(each, serial_resets=resets, highest_serial=highest)
        for each, (resets, highest) in ((A, before), (B, written))
    ]
    assert (
        plan_write(replace(PLAIN, state=states[0]), WriteRequest(state=states[1], whole=True), "own").after.state.mark
        == after
    )
    kept = Stored(states[0], "in force", (Kept(states[1], "before", whole=True),))
    assert plan_rollback(kept, kept.kept, [()], None).after.state.mark == before  # a rollback uses up nothing


@pytest.mark.parametrize(
    ("stored", "to"), [(None, None), (PLAIN, None), (LOST, None), (AFTER_FULL, 4), (AFTER_FULL, 9)]
)
def test_nothing_to_roll_back(stored, to):
    with pytest.raises(NothingToRollBack):
        rollback_steps("a", stored, to)


@pytest.mark.parametrize(("stored", "generation"), [(None, 0), (PLAIN, 4), (LOST, 0)])
def test_a_write_is_on_the_generation_that_was_seen(stored, generation):
    check_generation("a", stored, generation)
    for other in {0, 1, 4, 5} - {generation}:
        with pytest.raises(GenerationConflict, match=f"generation {generation}, not {other}"):
            check_generation("a", stored, other)


def test_a_change_of_many_pages_is_logged_as_one_of_all():
    many = [TOUCHED[0]._replace(number=number) for number in range(CHANGE_PAGES_MAX + 1)]
    for pages, change in ((many, ALL), (many[1:], ListChange(4, 5, tuple(range(1, CHANGE_PAGES_MAX + 1))))):
        found = plan_write(PLAIN, replace(DELTA, pages=pages), "own")
        assert found.change == change
        assert found.pages == pages


@pytest.mark.parametrize(
    ("steps", "after", "current", "found"),
    [
        ([], 3, 3, []), ([], 4, 3, None), ([], 0, 3, None), ([(1, 2), (2, 3)], 1, 3, [(1, 2), (2, 3)]), ([(2, 3)], 1, 3, None),
        ([(1, 2), (3, 4)], 1, 4, None), ([(1, 2)], 1, 3, None), ([(1, 9)], 1, 9, [(1, 9)]),
        ([(1, 2), (2, 3)], 1, 2, [(1, 2), (2, 3)]),  # one more was made since the current generation was read
    ],
)  # fmt: skip
def test_steps_without_a_gap(steps, after, current, found):
    def changes(pairs):
        return [ListChange(*pair, None) for pair in pairs]

    assert contiguous_changes(changes(steps), after, current) == (None if found is None else changes(found))


@given(sizes=st.lists(st.integers(0, 5)), pages_max=st.integers(1, 4), bytes_max=st.integers(1, 12))
def test_portions_are_bounded_and_lose_nothing(sizes, pages_max, bytes_max):
    pages = [write.Page(number, bytes(size)) for number, size in enumerate(sizes)]
    found = list(portions(pages, pages_max, bytes_max))
    assert [each for portion in found for each in portion] == pages
    assert all(1 <= len(portion) <= pages_max for portion in found)
    assert all(sum(len(each.keys) for each in portion[:-1]) < bytes_max for portion in found)

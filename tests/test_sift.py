"""A list's sieve: whatever happens to the list and whenever it is asked, it never denies what the list has."""

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made import page, pages_of, state
from test_index import fill

from eir.lists.index import Index
from eir.lists.keyset import hold
from eir.lists.pages import PAGE_KEYS
from eir.lists.sieve import Sieve
from eir.lists.sift import DENSE_KEYS, STEP_PAGES_MAX, Sifter

PAST, NEVER = -math.inf, math.inf
FORMS = st.one_of(
    st.sets(st.integers(0, PAGE_KEYS - 1), max_size=30),
    st.sampled_from([range(0, PAGE_KEYS, 9_999), range(5, 3_000), range(0, PAGE_KEYS, 100), range(DENSE_KEYS), range(PAGE_KEYS)]),
)


def doubts(entries, keys):
    return entries.doubtful(np.array(list(keys), np.uint64))


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_no_key_of_the_list_is_ever_denied(data):
    index = Index({"a": "devices"})
    entries = index.lists["a"]
    held = {}
    asked = st.lists(st.tuples(st.integers(0, 60), st.integers(0, PAGE_KEYS - 1)), max_size=30)
    for serial in range(data.draw(st.integers(1, 6))):
        amend = serial > 0 and data.draw(st.booleans())
        new = data.draw(st.dictionaries(st.integers(0, 60), FORMS, max_size=40))
        held = {**held, **new} if amend else new
        pages = [page(number, keys) for number, keys in sorted(new.items())]
        total = sum(len(keys) for keys in held.values())
        builder = index.builder("a", state(entries=total), amend=amend)
        builder.add_all(pages)
        index.switch("a", builder)
        for _ in range(data.draw(st.integers(0, 6))):
            entries.sift(PAST)
            some = [number * PAGE_KEYS + key for number, key in data.draw(asked)]
            some += [number * PAGE_KEYS + key for number, keys in held.items() for key in list(keys)[::997]]
            if (found := doubts(entries, some)) is not None:
                assert all(doubt or not entries.holds(key) for key, doubt in zip(some, found, strict=True))
    assert entries.sift(NEVER)
    assert doubts(entries, []) is not None


def test_the_memory_of_a_large_sieve_comes_in_steps():
    sieve = Sieve(2_000_000)
    assert [sieve.touch() for _ in range(3)] == [False, False, True]
    sifter = Sifter({0: hold(page(0, [7]).keys)}, 2_000_000)
    assert not sifter.work(PAST)
    assert sifter.doubtful(np.array([7], np.uint64)) is None
    assert sifter.work(NEVER)
    assert sifter.doubtful(np.array([7, 8], np.uint64)).tolist() == [True, False]


def filled(pages):
    index = Index({"a": "devices"})
    fill(index, "a", pages)
    return index, index.lists["a"]


def test_nothing_is_known_before_it_is_done_and_it_is_done_in_steps():
    _, entries = filled(pages_of(n * PAGE_KEYS for n in range(10 * STEP_PAGES_MAX)))
    assert doubts(entries, [5]) is None
    steps = 1
    while not entries.sift(time.perf_counter()):
        assert doubts(entries, [5]) is None
        steps += 1
    assert steps == 10
    assert doubts(entries, [0, PAGE_KEYS]).all()
    assert doubts(entries, range(5, 1000)).mean() < 0.1


@pytest.mark.parametrize("keys", [range(DENSE_KEYS), range(PAGE_KEYS)])
def test_a_dense_page_is_doubtful_as_a_whole(keys):
    _, entries = filled([page(7, keys)])
    assert entries.sift(NEVER)
    assert doubts(entries, [7 * PAGE_KEYS, 8 * PAGE_KEYS - 1]).all()
    assert not doubts(entries, [8 * PAGE_KEYS, 7 * PAGE_KEYS - 1]).any()


def test_a_dense_page_stays_doubtful_when_the_step_that_found_it_failed(monkeypatch):
    # Enough pages that a step takes the dense one together with another.
    _, entries = filled([*(page(number, [1]) for number in range(100)), page(200, range(DENSE_KEYS))])
    add = Sifter._add
    monkeypatch.setattr(Sifter, "_add", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        entries.sift(NEVER)
    monkeypatch.setattr(Sifter, "_add", add)
    assert entries.sift(NEVER)
    assert doubts(entries, [200 * PAGE_KEYS, 99 * PAGE_KEYS + 1]).all()


def test_an_amended_page_is_doubtful_until_it_went_in():
    index, entries = filled(pages_of([1, PAGE_KEYS + 1]))
    entries.sift(NEVER)
    new = [page(1, [7]), page(9, [8])]
    fill(index, "a", new, amend=True)
    assert doubts(entries, [PAGE_KEYS + 3, 9 * PAGE_KEYS]).all()
    assert not doubts(entries, [3]).any()
    entries.sift(NEVER)
    assert doubts(entries, [1, PAGE_KEYS + 7, 9 * PAGE_KEYS + 8]).all()
    assert not doubts(entries, [PAGE_KEYS + 3, 9 * PAGE_KEYS]).any()


def test_a_list_that_grows_by_amendments_gets_a_larger_sieve():
    index, entries = filled(pages_of([1]))
    entries.sift(NEVER)
    for number in range(1, 40):
        index.switch("a", (builder := index.builder("a", state(entries=1000 * number), amend=True)).add(page(number, range(0, PAGE_KEYS, 1000))) or builder)
        entries.sift(NEVER)
    others = [number * PAGE_KEYS + key + 1 for number in range(1, 40) for key in range(0, PAGE_KEYS, 1000)]
    assert doubts(entries, [other - 1 for other in others]).all()
    assert doubts(entries, others).mean() < 0.05


def test_a_page_that_is_amended_again_and_again_does_not_fill_the_sieve():
    index, entries = filled([page(0, range(0, PAGE_KEYS, 1000))])
    for start in range(100):
        fill(index, "a", [page(0, range(start, PAGE_KEYS, 1000))], amend=True, entries=1000)
        entries.sift(NEVER)
    assert doubts(entries, range(PAGE_KEYS, 2 * PAGE_KEYS, 97)).mean() < 0.15, "of 1.5 times what it was made for, and twice that for an instant"

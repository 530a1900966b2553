"""The lists in memory: keys of a TAC, switching, ends of rows, pairs; and what they cost."""

import random
import time
from bisect import bisect_left

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated.store_content import fill, page, pair_rows, state

from eir.device import MEID_BASE, SNR_KEYS
from eir.lists.images.index import Index
from eir.lists.images.table_image import image_of
from eir.lists.table.columns import rows_of
from eir.lists.table.table import table_of


def device_list(keys):
    index = Index({"a": "devices"})
    fill(index, "a", rows_of(keys))
    return index.lists["a"]


@pytest.mark.parametrize("count", [1, 2, 63, 4_096, 70_000, SNR_KEYS])
def test_a_page_of_each_size_holds_its_keys_and_no_others(count):
    step = SNR_KEYS // count
    keys = {n * step for n in range(count)}
    entries = device_list(35_000_000 * SNR_KEYS + n for n in keys)
    probes = set(range(0, SNR_KEYS, 997)) | set(list(keys)[:500]) | {0, SNR_KEYS - 1}
    for probe in probes:
        assert entries.holds(35_000_000 * SNR_KEYS + probe) == (probe in keys)
        assert not entries.holds(35_000_001 * SNR_KEYS + probe)
    assert [key % SNR_KEYS for key in entries] == sorted(keys)


@given(st.sets(st.integers(0, 3 * SNR_KEYS - 1), max_size=900), st.lists(st.integers(0, 3 * SNR_KEYS - 1)))
@settings(max_examples=60)
def test_equals_a_set(keys, probes):
    entries = device_list(keys)
    assert list(entries) == sorted(keys)
    for probe in [*probes, *keys]:
        assert entries.holds(probe) == (probe in keys)


def test_a_meid_with_letters_is_a_key_like_any_other():
    entries = device_list([MEID_BASE + 0xFF_FFFF_FFFF_FFFF, 5])
    assert entries.holds(MEID_BASE + 0xFF_FFFF_FFFF_FFFF)
    assert not entries.holds(MEID_BASE + 0xFF_FFFF_FFFF_FFFE)


def test_a_switch_is_one_step():
    index = Index({"a": "devices"})
    entries, version = index.lists["a"], index.version
    assert (entries.state, list(entries), entries.holds(1)) == (None, [], False)
    assert index.switch("a", state(serial=1), first := image_of(table_of(rows_of([1, 2])))) is None
    second = image_of(table_of(rows_of(n * SNR_KEYS for n in range(5_000))))
    assert (list(entries), entries.state.serial) == ([1, 2], 1)
    assert index.switch("a", state(serial=2), second) is first
    assert (entries.state.serial, entries.holds(0), entries.holds(1)) == (2, True, False)
    assert index.switch("a", state(serial=3), second) is None, "of the same content nothing is let go"
    assert index.version > version + 2


class TestUntil:
    """A row that has ended answers nothing, whatever brought it into memory and whatever was done since."""

    @pytest.fixture
    def clock(self):
        return [0.0]

    @pytest.fixture
    def index(self, clock):
        return Index({"a": "devices"}, lambda: clock[0])

    def test_rows_end_at_their_moment(self, index, clock):
        entries = index.lists["a"]
        fill(index, "a", [page(0, [1, 2, 3, 4], until=[100, 0, 200, 100]), page(1, [5, 6], until=[150]), page(2, [9])])
        every = [1, 2, 3, 4, SNR_KEYS + 5, SNR_KEYS + 6, 2 * SNR_KEYS + 9]

        def keys_at(now):
            clock[0] = now
            assert [key for key in every if entries.holds(key)] == list(entries)
            return list(entries)

        assert keys_at(99.9) == every
        assert keys_at(100) == [2, 3, *every[4:]]
        assert keys_at(150) == [2, 3, every[-1]]
        assert keys_at(10**10) == [2, every[-1]]

    def test_rows_that_had_ended_never_come_into_force(self, index, clock):
        clock[0] = 200
        pages = [page(number, [1, 2], until=[100, 300]) for number in range(300)]
        fill(index, "a", [])
        fill(index, "a", pages)
        assert list(index.lists["a"]) == [number * SNR_KEYS + 2 for number in range(300)]

    def test_a_large_page_and_a_whole_tac_end_too(self, index, clock):
        fill(index, "a", [page(0, range(2_000), until=[n + 1 for n in range(2_000)]), page(1, [], tac=(0, 50))])
        assert index.lists["a"].holds(SNR_KEYS)
        clock[0] = 1_500
        assert list(index.lists["a"]) == list(range(1_500, 2_000))
        assert not index.lists["a"].holds(SNR_KEYS)

    def test_what_is_listed_under_a_tac_counts_when_the_tac_ends(self, index, clock):
        entries = index.lists["a"]
        fill(index, "a", [
            page(0, [1, 2, 3], until=[50, 150, 0], tac=(0, 100)), page(1, [4], tac=(0, 0)), page(2, [5], until=[10], tac=(0, 30)),
            page(3, [], tac=(0, 100)), page(4, [6], tac=(0, 100)),
        ])  # fmt: skip

        def at(now):
            clock[0] = now
            probes = (
                0,
                1,
                2,
                3,
                SNR_KEYS + 4,
                SNR_KEYS + 5,
                2 * SNR_KEYS + 5,
                3 * SNR_KEYS,
                4 * SNR_KEYS,
                4 * SNR_KEYS + 6,
            )
            return "".join(str(int(entries.holds(key))) for key in probes)

        assert at(0) == "1111111111"
        assert at(50) == "1111110111"
        assert at(100) == "0011110001"
        assert at(150) == "0001110001"

    ends = st.sampled_from([0, 10, 20, 30, 2**32 - 1])

    @given(
        st.lists(
            st.dictionaries(
                st.integers(0, 2), st.tuples(st.dictionaries(st.integers(0, 4), ends, max_size=4), st.none() | ends), max_size=3
            ),
            min_size=1, max_size=5,
        ),
        st.lists(st.integers(0, 35), max_size=4).map(sorted),
    )  # fmt: skip
    @settings(max_examples=150)
    def test_tacs_and_identifiers_end_each_on_its_own(self, histories, moments):
        """Against what the rows say: listed by its own row, or by its TAC's."""
        clock = [0.0]
        index = Index({"a": "devices"}, lambda: clock[0])
        fill(index, "a", [])
        for n, step in enumerate(histories):
            clock[0] = now = moments[n] if n < len(moments) else 35
            pages = [
                page(
                    number,
                    sorted(rows),
                    until=[rows[key] for key in sorted(rows)],
                    tac=None if end is None else (1, end),
                )
                for number, (rows, end) in sorted(step.items())
            ]
            fill(index, "a", pages)
            entries = index.lists["a"]
            for number in range(3):
                rows, tac = step.get(number, ({}, None))
                ends = {key: [end for end in (rows.get(key), tac) if end is not None] for key in range(6)}
                expected = [any(not end or end > now for end in ends[key]) for key in range(6)]
                assert [entries.holds(number * SNR_KEYS + key) for key in range(6)] == expected


class TestPairs:
    def test_a_device_is_bound_to_its_sims(self):
        index = Index({"a": "pairs"})
        fill(index, "a", pair_rows({1: [10**15 + 1], 2: [10**15 + 1, 10**15 + 2], SNR_KEYS: [7]}))
        pairs = index.lists["a"]
        assert pairs.imsis(2) == (10**15 + 1, 10**15 + 2)
        assert pairs.imsis(3) == ()
        assert pairs.binds(1, 10**15 + 1)
        assert not pairs.binds(1, 10**15 + 2)
        assert pairs.device_bound_elsewhere(1, 5)
        assert not pairs.device_bound_elsewhere(1, 10**15 + 1)
        assert not pairs.device_bound_elsewhere(3, 5)
        assert pairs.subscriber_bound_elsewhere(3, 7)
        assert not pairs.subscriber_bound_elsewhere(SNR_KEYS, 7)
        assert not pairs.subscriber_bound_elsewhere(3, 8)

    def test_ends_take_device_and_sims(self):
        clock = [99]
        index = Index({"a": "pairs"}, lambda: clock[0])
        fill(index, "a", [page(0, [1, 2, 3], until=[100, 200, 150, 0], imsis=[[11], [11, 12], [13]])])
        pairs = index.lists["a"]
        assert (pairs.imsis(1), pairs.device_bound_elsewhere(1, 12)) == ((11,), True)
        clock[0] = 100
        assert (pairs.imsis(1), pairs.imsis(2), pairs.imsis(3)) == ((), (11, 12), (13,))
        assert (pairs.holds(1), pairs.device_bound_elsewhere(1, 12)) == (False, False)
        assert pairs.has_subscriber(11)
        clock[0] = 150  # one of the device's two SIMs
        assert (pairs.imsis(2), pairs.holds(2), pairs.has_subscriber(12)) == ((11,), True, False)
        assert (pairs.subscriber_bound_elsewhere(1, 11), pairs.subscriber_bound_elsewhere(1, 12)) == (True, False)
        clock[0] = 200
        assert (pairs.imsis(2), pairs.holds(2)) == ((), False)
        assert not pairs.has_subscriber(11)
        assert pairs.imsis(3) == (13,)
        assert pairs.has_subscriber(13)

    def test_one_end_for_all_pairs_of_a_page(self):
        clock = [99]
        index = Index({"a": "pairs"}, lambda: clock[0])
        fill(index, "a", [page(0, [1, 2], until=[100], imsis=[[11, 12], [11]])])
        pairs = index.lists["a"]
        assert (pairs.imsis(1), pairs.has_subscriber(11), pairs.has_subscriber(12)) == ((11, 12), True, True)
        clock[0] = 100
        assert (pairs.imsis(1), pairs.has_subscriber(11), pairs.has_subscriber(12)) == ((), False, False)

    devices = st.integers(0, 2 * SNR_KEYS).map(lambda n: n - n % (SNR_KEYS // 3))
    bound = st.dictionaries(st.integers(1, 6), st.sampled_from([0, 10, 20]), min_size=1)

    @given(st.dictionaries(devices, bound, max_size=5))
    @settings(max_examples=100)
    def test_a_list_has_the_content_of_the_rows(self, bindings):
        clock = [0]
        index = Index({"a": "pairs"}, lambda: clock[0])
        ends = [end for _, imsis in sorted(bindings.items()) for _, end in sorted(imsis.items())]
        fill(index, "a", pair_rows({key: sorted(imsis) for key, imsis in sorted(bindings.items())}, ends=ends or 0))
        entries = index.lists["a"]
        for clock[0] in (5, 10, 15, 20):
            rows = {
                (device, imsi)
                for device, imsis in bindings.items()
                for imsi, end in imsis.items()
                if not end or end > clock[0]
            }
            assert list(entries) == sorted({device for device, _ in rows})
            assert {(device, imsi) for device in bindings for imsi in entries.imsis(device)} == rows
            assert {n for n in range(8) if entries.has_subscriber(n)} == {imsi for _, imsi in rows}


def test_reconfigure_keeps_what_stays():
    index = Index({"a": "devices", "b": "devices"})
    fill(index, "a", rows_of([1]))
    fill(index, "b", rows_of([2]))
    kept = index.lists["a"]
    index.apply({"c": "pairs", "a": "devices"})
    assert list(index.lists) == ["c", "a"]
    assert index.lists["a"] is kept
    assert kept.holds(1)
    index.apply({"a": "subscribers"})
    assert not index.lists["a"].holds(1)


def test_a_lookup_costs_a_few_steps_of_plain_python():
    # In the same run, on the same machine; what it takes on a quiet one is printed by `scripts/bench sizes`.
    entries = device_list(n * 5_003 for n in range(200_000))
    probes = [n * 5_003 + n % 2 for n in range(0, 200_000, 7)]
    by_page = {}
    for key in entries:
        by_page.setdefault(key // SNR_KEYS, []).append(key % SNR_KEYS)

    def plain(key):
        number, low = divmod(key, SNR_KEYS)
        held = by_page.get(number, ())
        at = bisect_left(held, low)
        return at < len(held) and held[at] == low

    def best(look):
        times = []
        for _ in range(5):
            start = time.thread_time()  # of the processor: a busy host gives a share of it
            for probe in probes:
                look(probe)
            times.append(time.thread_time() - start)
        return min(times)

    assert best(entries.holds) < 10 * best(plain)


@pytest.mark.parametrize("tacs", [5_000, 25_000])
def test_memory_of_a_million_is_a_tenth_of_what_ten_million_may_take(tacs):
    chosen = random.Random(1)
    models = [np.array(chosen.sample(range(SNR_KEYS), 1_000_000 // tacs)) for _ in range(200)]
    numbers = sorted(chosen.sample(range(10**8), tacs))
    keys = np.concatenate([number * SNR_KEYS + models[at % 200] for at, number in enumerate(numbers)])
    image = image_of(table_of(rows_of(np.sort(keys).astype("<u8"))))
    assert len(image.arrays["lows"]) == 1_000_000
    assert len(image.buffer) < 5_500_000

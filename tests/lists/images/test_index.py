"""The lists in memory: each form of a page, switching, ends of rows, pairs; and what they cost."""

import contextlib
import random
import time
from bisect import bisect_left

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyroaring import BitMap
from simulated.store_content import fill, page, pages_of, pair_pages, state

from eir.device import MEID_BASE
from eir.lists.images.chunks import chunk_of_image
from eir.lists.images.imaging import build_image, chunks_of, image_of, rows_of
from eir.lists.images.index import Index
from eir.lists.pages.pages import PAGE_KEYS, Page
from eir.lists.pages.roaring import ARRAY_KEYS, encode_keys


def device_list(keys):
    index = Index({"a": "devices"})
    fill(index, "a", pages_of(keys))
    return index.lists["a"]


@pytest.mark.parametrize("count", [1, 2, 63, ARRAY_KEYS, ARRAY_KEYS + 1, 70_000, PAGE_KEYS])
def test_a_page_of_each_size_holds_its_keys_and_no_others(count):
    step = PAGE_KEYS // count
    keys = {n * step for n in range(count)}
    entries = device_list(35_000_000 * PAGE_KEYS + n for n in keys)
    probes = set(range(0, PAGE_KEYS, 997)) | set(list(keys)[:500]) | {0, PAGE_KEYS - 1}
    for probe in probes:
        assert entries.holds(35_000_000 * PAGE_KEYS + probe) == (probe in keys)
        assert not entries.holds(35_000_001 * PAGE_KEYS + probe)
    assert [key % PAGE_KEYS for key in entries] == sorted(keys)


def stored(keys):
    return encode_keys(BitMap(keys))


@pytest.mark.parametrize("count", [1, 64, ARRAY_KEYS, ARRAY_KEYS + 1])
def test_a_key_beyond_its_page_is_damage(count):
    page = Page(3, stored([*range(0, 3 * (count - 1), 3), PAGE_KEYS]))
    with pytest.raises(ValueError, match="beyond"):
        rows_of(page)
    with pytest.raises(ValueError, match="beyond"):
        chunks_of([page])


@given(st.sets(st.integers(0, 3 * PAGE_KEYS - 1), max_size=900), st.lists(st.integers(0, 3 * PAGE_KEYS - 1)))
@settings(max_examples=60)
def test_equals_a_set(keys, probes):
    entries = device_list(keys)
    assert list(entries) == sorted(keys)
    for probe in [*probes, *keys]:
        assert entries.holds(probe) == (probe in keys)


class TestManyAtOnce:
    """Pages that are taken in together give what each of them gives alone."""

    keys = st.one_of(
        st.sets(st.integers(0, PAGE_KEYS - 1), max_size=120),
        st.sets(st.integers(0, 70_000), max_size=30),
        st.integers(1, 3_000).map(range),  # runs
        st.sampled_from([range(0, PAGE_KEYS, 3), range(PAGE_KEYS), range(0xD7F0, 0xE010), range(0, 900_000, 2_260)]),
        st.sampled_from(
            [range(0, 244 * ARRAY_KEYS, 244), [*range(0, 8_000, 2), *range(70_000, 70_200, 2)]]
        ),  # at the limit, beyond
    )
    extras = st.sampled_from([b"", b"", b"R\x01\x00\x00\x00\x00"])

    @given(st.lists(st.tuples(keys, extras), max_size=12))
    @settings(max_examples=80)
    def test_equals_one_after_another(self, rows):
        pages = [page(number, keys)._replace(extra=extra if keys else b"") for number, (keys, extra) in enumerate(rows)]
        alone = build_image([rows.chunk() for each in pages if (rows := rows_of(each)) is not None])
        assert bytes(image_of(pages).buffer) == bytes(alone.buffer)

    damaged = st.one_of(
        st.sets(st.integers(0, PAGE_KEYS - 1), min_size=1, max_size=20), st.just(range(0, PAGE_KEYS, 9_001))
    )

    @given(st.lists(damaged, min_size=1, max_size=4), st.data())
    @settings(max_examples=80)
    def test_damage_is_an_error_or_other_keys_but_no_crash(self, sets, data):
        pages = [page(number, keys) for number, keys in enumerate(sets)]
        victim = data.draw(st.integers(0, len(pages) - 1))
        keys = bytearray(pages[victim].keys)
        if data.draw(st.booleans()):
            keys[data.draw(st.integers(0, len(keys) - 1))] ^= data.draw(st.integers(1, 255))
        else:
            del keys[data.draw(st.integers(1, len(keys) - 1)) :]
        pages[victim] = pages[victim]._replace(keys=bytes(keys))
        with contextlib.suppress(ValueError):
            image = image_of(pages)
            for number in range(len(pages)):
                image.holds(number * PAGE_KEYS + 1, 0.0)


def test_a_meid_with_letters_is_a_key_like_any_other():
    entries = device_list([MEID_BASE + 0xFF_FFFF_FFFF_FFFF, 5])
    assert entries.holds(MEID_BASE + 0xFF_FFFF_FFFF_FFFF)
    assert not entries.holds(MEID_BASE + 0xFF_FFFF_FFFF_FFFE)


def test_a_switch_is_one_step():
    index = Index({"a": "devices"})
    entries, version = index.lists["a"], index.version
    assert (entries.state, list(entries), entries.holds(1)) == (None, [], False)
    assert index.switch("a", state(serial=1), first := image_of(pages_of([1, 2]))) is None
    second = image_of(pages_of(n * PAGE_KEYS for n in range(5_000)))
    assert (list(entries), entries.state.serial) == ([1, 2], 1)
    assert index.switch("a", state(serial=2), second) is first
    assert (entries.state.serial, entries.holds(0), entries.holds(1)) == (2, True, False)
    assert index.switch("a", state(serial=3), second) is None, "of the same content nothing is let go"
    assert index.version > version + 2


def test_an_amendment_replaces_the_pages_given_and_no_others():
    index = Index({"a": "devices"})
    fill(index, "a", pages_of([1, PAGE_KEYS + 1, 2 * PAGE_KEYS + 1]))
    fill(index, "a", [page(0, []), page(1, [7]), page(3, range(PAGE_KEYS))], amend=True)
    keys = iter(index.lists["a"])
    assert [next(keys), next(keys), next(keys)] == [PAGE_KEYS + 7, 2 * PAGE_KEYS + 1, 3 * PAGE_KEYS]


@pytest.mark.parametrize(
    ("damaged", "said"),
    [
        (pages_of([1])[0]._replace(keys=b"\x00\x01"), "bitmap"),
        (pages_of([1])[0]._replace(extra=b"U\x08\x00\x00\x00abc"), "cut short"),
        (page(0, [1, 2, 3], until=[5, 6]), "3 rows and 2 ends"),
        (page(0, [1, 2], imsis=[[4]]), "2 devices and 12 bytes"),
        (pages_of([1])[0]._replace(extra=b"R\x08\x00\x00\x00abc"), "cut short"),
        (pages_of([1])[0]._replace(extra=b"S\x08\x00\x00\x00abc"), "cut short"),
        (
            page(0, [1], imsis=[[4]])._replace(
                extra=page(0, [1], imsis=[[4]]).extra + b"U\x10\x00\x00\x00" + bytes(16)
            ),
            "1 rows and 2 ends",
        ),
    ],
)
def test_a_damaged_page_is_an_error(damaged, said):
    with pytest.raises(ValueError, match=said):
        image_of([damaged])


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
        every = [1, 2, 3, 4, PAGE_KEYS + 5, PAGE_KEYS + 6, 2 * PAGE_KEYS + 9]

        def keys_at(now):
            clock[0] = now
            assert [key for key in every if entries.holds(key)] == list(entries)
            return list(entries)

        assert keys_at(99.9) == every
        assert keys_at(100) == [2, 3, *every[4:]]
        assert keys_at(150) == [2, 3, every[-1]]
        assert keys_at(10**10) == [2, every[-1]]

    @pytest.mark.parametrize("amend", [False, True])
    def test_rows_that_had_ended_never_come_into_force(self, index, clock, amend):
        clock[0] = 200
        pages = [page(number, [1, 2], until=[100, 300]) for number in range(300)]
        fill(index, "a", [])
        fill(index, "a", pages, amend=amend)
        assert list(index.lists["a"]) == [number * PAGE_KEYS + 2 for number in range(300)]

    def test_a_large_page_and_a_whole_tac_end_too(self, index, clock):
        fill(index, "a", [page(0, range(2_000), until=[n + 1 for n in range(2_000)]), page(1, [], tac=(0, 50))])
        assert index.lists["a"].holds(PAGE_KEYS)
        clock[0] = 1_500
        assert list(index.lists["a"]) == list(range(1_500, 2_000))
        assert not index.lists["a"].holds(PAGE_KEYS)

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
                PAGE_KEYS + 4,
                PAGE_KEYS + 5,
                2 * PAGE_KEYS + 5,
                3 * PAGE_KEYS,
                4 * PAGE_KEYS,
                4 * PAGE_KEYS + 6,
            )
            return "".join(str(int(entries.holds(key))) for key in probes)

        assert at(0) == "1111111111"
        assert at(50) == "1111110111"
        assert at(100) == "0011110001"
        assert at(150) == "0001110001"

    def test_a_tac_whose_page_is_replaced_leaves_nothing(self, index, clock):
        entries = index.lists["a"]
        fill(index, "a", [page(0, [1], tac=(0, 100)), page(1, [2], until=[100], tac=(0, 200))])
        fill(index, "a", [page(0, [3]), page(1, [2], until=[300], tac=(0, 0))], amend=True)
        clock[0] = 250
        assert [entries.holds(key) for key in (1, 3, PAGE_KEYS, PAGE_KEYS + 2)] == [False, True, True, True]
        fill(index, "a", [page(1, [])], amend=True)
        assert list(entries) == [3]

    ends = st.sampled_from([0, 10, 20, 30, 2**33])

    @given(
        st.lists(
            st.dictionaries(
                st.integers(0, 2), st.tuples(st.dictionaries(st.integers(0, 4), ends, max_size=4), st.none() | ends), max_size=3
            ),
            min_size=1, max_size=5,
        ),
        st.lists(st.integers(0, 35), max_size=4).map(sorted),
        st.booleans(),
    )  # fmt: skip
    @settings(max_examples=150)
    def test_tacs_and_identifiers_end_each_on_its_own(self, histories, moments, amend):
        """Against what the rows say: listed by its own row, or by its TAC's."""
        clock, truth = [0.0], {}
        index = Index({"a": "devices"}, lambda: clock[0])
        fill(index, "a", [])
        for n, step in enumerate(histories):
            clock[0] = now = moments[n] if n < len(moments) else 35
            truth = (truth if amend else {}) | step
            pages = [
                page(
                    number,
                    sorted(rows),
                    until=[rows[key] for key in sorted(rows)],
                    tac=None if end is None else (1, end),
                )
                for number, (rows, end) in sorted(step.items())
            ]
            fill(index, "a", pages, amend=amend)
            entries = index.lists["a"]
            for number in range(3):
                rows, tac = truth.get(number, ({}, None))
                ends = {key: [end for end in (rows.get(key), tac) if end is not None] for key in range(6)}
                expected = [any(not end or end > now for end in ends[key]) for key in range(6)]
                assert [entries.holds(number * PAGE_KEYS + key) for key in range(6)] == expected

    def test_ends_of_a_page_that_was_replaced_do_not_count(self, index, clock):
        fill(index, "a", [page(0, [1], until=[100])])
        fill(index, "a", [page(0, [1, 2], until=[0, 500])], amend=True)
        clock[0] = 100
        assert list(index.lists["a"]) == [1, 2]
        clock[0] = 500
        assert list(index.lists["a"]) == [1]


class TestPairs:
    def test_a_device_is_bound_to_its_sims(self):
        index = Index({"a": "pairs"})
        fill(index, "a", pair_pages({1: [10**15 + 1], 2: [10**15 + 1, 10**15 + 2], PAGE_KEYS: [7]}))
        pairs = index.lists["a"]
        assert pairs.imsis(2) == (10**15 + 1, 10**15 + 2)
        assert pairs.imsis(3) == ()
        assert pairs.binds(1, 10**15 + 1)
        assert not pairs.binds(1, 10**15 + 2)
        assert pairs.device_bound_elsewhere(1, 5)
        assert not pairs.device_bound_elsewhere(1, 10**15 + 1)
        assert not pairs.device_bound_elsewhere(3, 5)
        assert pairs.subscriber_bound_elsewhere(3, 7)
        assert not pairs.subscriber_bound_elsewhere(PAGE_KEYS, 7)
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

    devices = st.integers(0, 2 * PAGE_KEYS).map(lambda n: n - n % (PAGE_KEYS // 3))
    bound = st.dictionaries(st.integers(1, 6), st.sampled_from([0, 10, 20]), min_size=1)

    @given(st.lists(st.dictionaries(devices, bound, max_size=5), min_size=2, max_size=5))
    @settings(max_examples=100)
    def test_amended_and_built_lists_have_the_content_of_the_rows(self, histories):
        clock = [0]
        amended, built = (Index({"a": "pairs"}, lambda: clock[0]) for _ in range(2))
        fill(amended, "a", pair_pages_with_ends(histories[0]))
        for pairs in histories[1:]:
            new = {p.number: p for p in pair_pages_with_ends(pairs)}
            fill(amended, "a", [new.get(number) or page(number, []) for number in range(3)], amend=True)
        fill(built, "a", pair_pages_with_ends(histories[-1]))
        for clock[0] in (5, 10, 15, 20):
            rows = {
                (device, imsi)
                for device, ends in histories[-1].items()
                for imsi, end in ends.items()
                if not end or end > clock[0]
            }
            for entries in (amended.lists["a"], built.lists["a"]):
                assert list(entries) == sorted({device for device, _ in rows})
                assert {(device, imsi) for device in histories[-1] for imsi in entries.imsis(device)} == rows
                assert {n for n in range(8) if entries.has_subscriber(n)} == {imsi for _, imsi in rows}


def pair_pages_with_ends(pairs):
    """The pages of a list of pairs: device key → IMSI key → end."""
    ends = {key: [imsis[imsi] for imsi in sorted(imsis)] for key, imsis in sorted(pairs.items())}
    return [
        page(p.number, keys := BitMap.deserialize(p.keys), imsis=[sorted(pairs[p.number * PAGE_KEYS + key]) for key in keys],
             until=[end for key in keys for end in ends[p.number * PAGE_KEYS + key]])
        for p in pair_pages(pairs)
    ]  # fmt: skip


def test_reconfigure_keeps_what_stays():
    index = Index({"a": "devices", "b": "devices"})
    fill(index, "a", pages_of([1]))
    fill(index, "b", pages_of([2]))
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
        by_page.setdefault(key // PAGE_KEYS, []).append(key % PAGE_KEYS)

    def plain(key):
        number, low = divmod(key, PAGE_KEYS)
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
    models = [page(0, chosen.sample(range(PAGE_KEYS), 1_000_000 // tacs)) for _ in range(200)]
    image = image_of(
        [
            models[at % 200]._replace(number=number)
            for at, number in enumerate(sorted(chosen.sample(range(10**8), tacs)))
        ]
    )
    assert len(chunk_of_image(image).lows) == 1_000_000
    assert len(image.buffer) < 5_500_000

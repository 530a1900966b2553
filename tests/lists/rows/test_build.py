"""Rows to pages: the same bytes as CRoaring writes, and the same content as a plain dictionary holds."""

import array
import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroaring import BitMap
from simulated.store_content import devices_of, tacs_of

from eir.device import MEID_BASE
from eir.errors import ReleaseRefused
from eir.lists.pages.content import split
from eir.lists.pages.pages import EMPTY_DIGEST, PAGE_KEYS, Page, content_digest, decode_sections
from eir.lists.pages.roaring import decode_keys, encode_keys
from eir.lists.rows.build import Rows, amend_pages, build_pages
from eir.lists.rows.turnover import differences


def amend(before, removed, added):
    amended = amend_pages(before, build_pages(removed).pages, build_pages(added).pages, EMPTY_DIGEST)
    return amended.pages, amended


def u64(values):
    return np.array(list(values), np.uint64)


def rows_of(entries, **limits):
    """`entries`: (first key, last key, reason, until), one identifier where first and last are equal."""
    rows = Rows(**limits)
    for first, last, reason, until in entries:
        extras = (np.array([reason], np.uint8), np.array([until], np.int64))
        if first != last:
            rows.add_spans(u64([first]), u64([last]), *extras)
        else:
            rows.add(u64([first]), *extras)
    return rows


def content_of(pages):
    """{key or TAC: (reason, until)} by the format's own words, without the code under test."""
    content = {("TAC", number): said for number, said in tacs_of(pages).items()}
    for page in pages:
        low = decode_keys(page.keys).to_array()
        sections = decode_sections(page.extra)
        reasons = sections.reasons or b"\0"
        ends = array.array("q", sections.until or bytes(8))
        if not low:  # the TAC alone
            assert (page.keys, len(page.extra)) == (b"", 14)
            continue
        assert len(reasons) in {1, len(low)}
        assert len(ends) in {1, len(low)}
        for at, key in enumerate(low):
            reason = reasons[at if len(reasons) > 1 else 0]
            content[page.number * PAGE_KEYS + key] = (reason, ends[at if len(ends) > 1 else 0])
    return content


def entries_of(first, last):
    """What a row names: a TAC for each that it covers from end to end, and identifiers."""
    for number in range(first // PAGE_KEYS, last // PAGE_KEYS + 1):
        low, high = max(first, number * PAGE_KEYS), min(last, number * PAGE_KEYS + PAGE_KEYS - 1)
        if high - low == PAGE_KEYS - 1:
            yield "TAC", number
        else:
            yield from range(low, high + 1)


def devices_in(truth):
    whole = {name[1] for name in truth if isinstance(name, tuple)}
    return len(whole) * PAGE_KEYS + sum(name // PAGE_KEYS not in whole for name in truth if isinstance(name, int))


def come_between(before, after):
    """Identifiers of `after` that `before` does not list."""
    come = 0
    for number in {name[1] if isinstance(name, tuple) else name // PAGE_KEYS for name in after}:
        had, has = ({n for n in truth if isinstance(n, int) and n // PAGE_KEYS == number} for truth in (before, after))
        if ("TAC", number) not in before:
            come += PAGE_KEYS - len(had) if ("TAC", number) in after else len(has - had)
    return come


def truth_of(entries):
    truth = {}
    for first, last, reason, until in entries:
        for name in entries_of(first, last):
            rank = (-(until or 1 << 62), first == last, reason)
            if name not in truth or rank < truth[name][0]:
                truth[name] = (rank, (reason, until))
    return {key: value for key, (_, value) in truth.items()}


def shapes():
    rng = np.random.default_rng(7)
    yield "scattered over 3000 TACs", rng.choice(3 * 10**9, 40_000, replace=False)
    yield "one key", [35_000_000_000_000]
    yield "runs", [*range(10, 5000), *range(70_000, 70_003), 131_071, 131_072]
    yield "runs of two beside single keys", [n + d for n in range(0, 999_990, 10) for d in (0, 1)]
    yield "a run exactly as long as the array", [0, 1, 2, 3, 9]
    yield "more than 4096 in one container", range(0, 3 * 4097, 3)
    yield "exactly 4096", range(0, 3 * 4096, 3)
    yield "across containers and pages", [65_535, 65_536, 999_999, 1_000_000, 1_065_536]
    yield "a whole page and its neighbours", range(999_990, 2_000_010)
    yield "dense", rng.choice(10**6, 300_000, replace=False)


@pytest.mark.parametrize("keys", [pytest.param(shape[1], id=shape[0]) for shape in shapes()])
def test_pages_are_byte_for_byte_what_croaring_writes(keys):
    keys = np.array(list(keys), np.uint64)
    rows = Rows()
    rows.add(np.concatenate((keys[::2], keys[::3], keys[1::2])))
    by_page = {}
    for key in keys.tolist():
        by_page.setdefault(key // PAGE_KEYS, []).append(key % PAGE_KEYS)
    expected = [Page(number, encode_keys(BitMap(low))) for number, low in sorted(by_page.items())]
    built = build_pages(rows)
    assert built.pages == expected
    assert built.entries == built.devices == len(set(keys.tolist()))


@given(
    st.sets(
        st.one_of(
            st.integers(0, 3 * PAGE_KEYS),
            st.integers(0, 300),
            st.integers(65_500, 65_600),
            st.builds(lambda n: 7 * n % 9000, st.integers(0, 9000)),
        ),
        min_size=1,
        max_size=400,
    )
)
def test_any_set_gives_the_canonical_bytes(keys):
    rows = Rows()
    rows.add(u64(keys))
    pages = build_pages(rows).pages
    assert [page.keys for page in pages] == [encode_keys(decode_keys(page.keys)) for page in pages]
    assert set(content_of(pages)) == keys


def test_slabs_end_at_page_boundaries():
    keys = np.random.default_rng(3).integers(0, 40 * PAGE_KEYS, 5000).astype(np.uint64)
    rows = Rows()
    rows.add(keys)
    done = []
    built = build_pages(rows, lambda at, of: done.append((at, of)), slab_keys=64)
    assert set(content_of(built.pages)) == set(keys.tolist())
    assert len({page.number for page in built.pages}) == len(built.pages) == 40
    assert len(done) > 30
    assert done[0] == (0, 5000)


SMALL_PAGE = st.integers(0, 40)
ENTRY = st.tuples(
    st.one_of(SMALL_PAGE, st.builds(lambda n: 999_980 + n, SMALL_PAGE), st.builds(lambda n: MEID_BASE + n, SMALL_PAGE)),
    st.sampled_from([0, 0, 0, 3, 30]),
    st.integers(0, 3),
    st.sampled_from([0, 0, 1_800_000_000, 1_900_000_000]),
)
WHOLE_TAC = st.builds(
    lambda first, last, reason, until: (first, last, reason, until),
    st.sampled_from([0, PAGE_KEYS - 2, PAGE_KEYS, 2 * PAGE_KEYS]),
    st.sampled_from([3 * PAGE_KEYS - 1, 3 * PAGE_KEYS + 1]),
    st.integers(0, 3),
    st.sampled_from([0, 0, 1_800_000_000, 1_900_000_000]),
)
ENTRIES = st.lists(ENTRY.map(lambda e: (e[0], e[0] + e[1], e[2], e[3])) | WHOLE_TAC, max_size=25)
"""Identifiers, short ranges, and ranges that cover TACs, with single identifiers under these."""


@given(ENTRIES)
def test_reasons_ends_ranges_and_repeats(entries):
    built = build_pages(rows_of(entries))
    truth = truth_of(entries)
    assert content_of(built.pages) == truth
    assert (built.entries, built.devices) == (len(truth), devices_in(truth))
    assert devices_of(built.pages) == built.devices
    assert [page.number for page in built.pages] == sorted(
        {n[1] if isinstance(n, tuple) else n // PAGE_KEYS for n in truth}
    )


@given(ENTRIES, st.lists(st.tuples(ENTRIES, ENTRIES), max_size=4))
def test_a_chain_of_deltas_is_the_dictionary_that_it_leads_to(first, deltas):
    built = build_pages(rows_of(first))
    pages = {page.number: page for page in built.pages}
    entries, devices = built.entries, built.devices
    truth = truth_of(first)
    for removed, added in deltas:
        before = dict(truth)
        for key in truth_of(removed):
            truth.pop(key, None)
        truth.update(truth_of(added))
        after, sums = amend(pages.values(), rows_of(removed), rows_of(added))
        touched = [pages[page.number] for page in after if page.number in pages]
        assert (
            (sums.come, sums.gone)
            == differences(touched, after)
            == (come_between(before, truth), come_between(truth, before))
        )
        for page in after:
            if page.keys or page.extra:
                assert pages.get(page.number) != page
                pages[page.number] = page
            else:
                del pages[page.number]
        entries, devices = entries + sums.entries, devices + sums.devices
        assert content_of(pages.values()) == truth
        assert (entries, devices) == (len(truth), devices_in(truth))
        full = build_pages(rows_of([(*span_of(name), *said) for name, said in truth.items()]))
        assert sorted(pages.values()) == full.pages  # byte for byte, so that the digests agree too


def span_of(name):
    return (name[1] * PAGE_KEYS, name[1] * PAGE_KEYS + PAGE_KEYS - 1) if isinstance(name, tuple) else (name, name)


def test_a_tac_is_one_entry_and_a_million_devices():
    tac, other = 35_123_456 * PAGE_KEYS, 35_123_458 * PAGE_KEYS
    rows = rows_of([(tac, tac + PAGE_KEYS - 1, 2, 0), (tac + 5, tac + 5, 1, 0), (other, other, 0, 0)])
    built = build_pages(rows)
    assert (built.entries, built.devices) == (3, PAGE_KEYS + 1)
    single = encode_keys(BitMap([5]))
    assert built.pages[0] == Page(35_123_456, single, b"T\x09\0\0\0\x02" + bytes(8) + b"R\x01\0\0\0\x01")
    after, sums = amend(built.pages, rows_of([(tac + 7, tac + 7, 0, 0)]), Rows())
    assert (after, sums.entries, sums.devices) == ([], 0, 0)  # only its TAC covers it: it is not there
    gone, sums = amend(built.pages, rows_of([(tac, tac + PAGE_KEYS - 1, 0, 0)]), Rows())
    assert gone == [Page(35_123_456, single, b"R\x01\0\0\0\x01")]
    assert (sums.entries, sums.devices) == (-1, 1 - PAGE_KEYS)
    gone, sums = amend(gone, rows_of([(tac + 5, tac + 5, 0, 0)]), Rows())
    assert gone == [Page(35_123_456, b"")]
    assert (sums.entries, sums.devices) == (-1, -1)


def test_a_tac_that_is_cut_short_is_damaged():
    whole = build_pages(rows_of([(0, PAGE_KEYS - 1, 1, 7)])).pages[0]
    assert whole.tac == (1, 7)
    for damaged in (whole.extra[:-1], whole.extra[:3], b"T\x01\0\0\0\x02" + bytes(8)):
        with pytest.raises(ValueError, match="cut short"):
            _ = Page(0, b"", damaged).tac


def test_a_single_row_outlives_the_tac_row_that_ends():
    tac = 86_000_000 * PAGE_KEYS
    built = build_pages(rows_of([(tac, tac + PAGE_KEYS - 1, 0, 1_800_000_000), (tac + 9, tac + 9, 1, 0)]))
    content = content_of(built.pages)
    assert content[tac + 9] == (1, 0)
    assert content["TAC", 86_000_000] == (0, 1_800_000_000)
    assert (built.entries, built.devices) == (2, PAGE_KEYS)


def test_the_highest_meid_has_a_page():
    top = MEID_BASE + 0xFFFF_FFFF_FFFF_FF
    built = build_pages(rows_of([(top, top, 1, 0), (top - 3 * PAGE_KEYS, top - 3 * PAGE_KEYS, 0, 0)]))
    assert content_of(built.pages) == {top: (1, 0), top - 3 * PAGE_KEYS: (0, 0)}


@pytest.mark.parametrize("top", [10**8, (1 << 52) // PAGE_KEYS, (1 << 53) // PAGE_KEYS, (1 << 56) // PAGE_KEYS])
def test_pages_and_remainders_of_large_keys(top):
    pages = np.concatenate((np.arange(top - 10_000, top), np.random.default_rng(2).integers(0, top, 100_000))).astype(
        np.uint64
    )
    for low in (0, 1, 2, 999_998, 999_999):
        keys = np.sort(pages * np.uint64(PAGE_KEYS) + np.uint64(low))
        numbers, lows, starts, sizes = split(keys)
        assert (np.repeat(numbers, sizes) == keys // np.uint64(PAGE_KEYS)).all()
        assert (numbers[1:] > numbers[:-1]).all()
        assert (starts == np.cumsum(sizes) - sizes).all()
        assert (lows == low).all()


@given(
    st.lists(
        st.tuples(st.integers(0, 6 * PAGE_KEYS), st.sampled_from([0, 1, 99, PAGE_KEYS - 1, PAGE_KEYS, 2 * PAGE_KEYS])),
        max_size=5,
    ),
    st.booleans(),
)
def test_whole_tacs_give_the_minimum_number_of_devices(starts, whole):
    entries = [(first // PAGE_KEYS * PAGE_KEYS if whole else first, length) for first, length in starts]
    rows = rows_of([(first, first + length, 0, 0) for first, length in entries])
    least, devices = rows.devices_min(), build_pages(rows).devices
    assert least <= devices
    if all(length == PAGE_KEYS - 1 for _, length in entries) and whole:
        assert least == devices


def test_ranges_past_memory_are_refused():
    with pytest.raises(ReleaseRefused, match="100000000 TACs") as caught:
        rows_of([(0, 99_999_999_999_999, 0, 0)])
    assert caught.value.reason == "range"


def test_ranges_are_refused_when_together_they_reach_too_far():
    """Before anything is made of them: many long ranges took minutes, and many short ones walk through whole TACs."""
    limits = {"span_pages_max": 10, "span_keys_max": 1000}
    with pytest.raises(ReleaseRefused, match="cover at least 12 TACs; the maximum for one release is 10"):
        rows_of([(PAGE_KEYS * n, PAGE_KEYS * (n + 4) - 1, 0, 0) for n in (0, 20, 40)], **limits)
    apart = [(first, first + 4, 0, 0) for page in range(4) for first in (page * PAGE_KEYS, page * PAGE_KEYS + 245)]
    assert build_pages(rows_of(apart, **limits)).entries == 40
    with pytest.raises(ReleaseRefused, match="have 1245 identifiers; the maximum is 1000"):
        build_pages(rows_of([*apart, (9 * PAGE_KEYS, 9 * PAGE_KEYS + 244, 0, 0)], **limits))


def test_nothing_gives_no_pages():
    built = build_pages(Rows())
    assert (built.pages, built.entries, built.devices) == ([], 0, 0)


def pairs_of(entries):
    rows = Rows()
    for key, imsi, reason, until in entries:
        rows.add_pairs(u64([key]), u64([imsi]), np.array([reason], np.uint8), np.array([until], np.int64))
    return rows


def pair_content_of(pages):
    """{key: (reason, {imsi: until})}, without the code under test."""
    content = {}
    for page in pages:
        lows = decode_keys(page.keys).to_array()
        section = decode_sections(page.extra).imsis
        counts = array.array("I", section[: 4 * len(lows)])
        imsis = array.array("Q", section[4 * len(lows) :]).tolist()
        ends = array.array("q", decode_sections(page.extra).until or bytes(8)).tolist()
        ends = ends * len(imsis) if len(ends) == 1 else ends
        codes = decode_sections(page.extra).reasons or b"\0"
        codes = codes * len(lows) if len(codes) == 1 else codes
        for low, code, count in zip(lows, codes, counts, strict=True):
            assert imsis[:count] == sorted(imsis[:count])
            content[page.number * PAGE_KEYS + low] = (code, dict(zip(imsis[:count], ends[:count], strict=True)))
            del imsis[:count], ends[:count]
        assert not imsis
        assert not ends
    return content


PAIR_ENTRIES = st.lists(
    st.tuples(
        st.sampled_from([5, 6, 999_999, 1_000_000, MEID_BASE + 3]),
        st.integers(1001, 1004),
        st.integers(0, 3),
        st.sampled_from([0, 0, 1_800_000_000, 1_900_000_000]),
    ),
    max_size=12,
)


def pair_truth_of(entries):
    truth = {}
    for key, imsi, reason, until in entries:
        best, imsis = truth.setdefault(key, ((1, 0), {}))
        imsis[imsi] = max(imsis.get(imsi, 0), until or 1 << 62)
        truth[key] = (min(best, (-(until or 1 << 62), reason)), imsis)
    return {
        key: (reason, {imsi: 0 if end == 1 << 62 else end for imsi, end in imsis.items()})
        for key, ((_, reason), imsis) in truth.items()
    }


@given(PAIR_ENTRIES, PAIR_ENTRIES, st.integers(1, 30))
def test_pairs_come_in_pieces_and_are_cut_into_slabs(one, other, slab):
    rows = pairs_of(one)
    said = [
        u64([key for key, *_ in other]),
        u64([imsi for _, imsi, *_ in other]),
        np.array([reason for *_, reason, _ in other], np.uint8),
    ]
    rows.add_pairs(*said, np.array([until for *_, until in other], np.int64))
    entries = one + other
    says = {
        (key, imsi): {(reason, until) for k, i, reason, until in entries if (k, i) == (key, imsi)}
        for key, imsi, *_ in entries
    }
    assert rows.repeats() == (len(entries) - len(says), sum(len(said) - 1 for said in says.values()))
    built = build_pages(rows, slab_pairs=slab)
    assert pair_content_of(built.pages) == pair_truth_of(entries)
    assert (built.devices, len(rows.pairs)) == (len({key for key, *_ in entries}), 0)
    assert [page.number for page in built.pages] == sorted({key // PAGE_KEYS for key, *_ in entries})


@given(PAIR_ENTRIES, st.lists(st.tuples(PAIR_ENTRIES, PAIR_ENTRIES), max_size=4))
def test_pairs_and_their_deltas(first, deltas):
    built = build_pages(pairs_of(first))
    truth = pair_truth_of(first)
    assert pair_content_of(built.pages) == truth
    assert built.devices == len(truth)
    pages = {page.number: page for page in built.pages}
    for removed, added in deltas:
        for key, (_, imsis) in pair_truth_of(removed).items():
            if key in truth:
                reason, had = truth.pop(key)
                if left := {imsi: end for imsi, end in had.items() if imsi not in imsis}:
                    truth[key] = (reason, left)
        for key, (reason, imsis) in pair_truth_of(added).items():
            truth[key] = (reason, (truth[key][1] if key in truth else {}) | imsis)
        after, _ = amend(pages.values(), pairs_of(removed), pairs_of(added))
        pages |= {page.number: page for page in after}
        pages = {number: page for number, page in pages.items() if page.keys}
        assert pair_content_of(pages.values()) == truth


def test_the_digest_of_a_list_is_that_of_number_keys_and_extra_of_its_pages():
    """Stores and other nodes hold it: it is the same in each version."""
    pages = [Page(10, b"keys", b"extra"), Page(11, b"k", b"")]
    total = sum(
        int.from_bytes(hashlib.sha256(each).digest()) for each in (bytes(7) + b"\x0akeysextra", bytes(7) + b"\x0bk")
    )
    assert content_digest(pages) == f"{total % (1 << 256):064x}"
    assert content_digest([*pages, Page(12, b"", b"")]) == content_digest(pages)

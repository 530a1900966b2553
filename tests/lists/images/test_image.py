"""The flat image of a list: it holds what its pages say, whatever is in them and changes; and nothing passes for one that is none."""

import mmap
import os
import signal
import struct
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated.lanes import ecr, sides
from simulated.store_content import fill, page, pages_of

from eir.checks.settings import PolicySettings, Rule, Status
from eir.device import MEID_BASE, imsi_key
from eir.interfaces.s13.lane import COMPILED
from eir.lists.images import table_image
from eir.lists.images.chunks import PageRows, chunk_of, chunk_of_image
from eir.lists.images.first_seen_image import first_seen_image
from eir.lists.images.image import BODY_AT, SECTIONS, VERSION, Image, ImageError, open_arrays
from eir.lists.images.imaging import build_image, image_of, image_with
from eir.lists.images.index import Index
from eir.lists.images.table_image import write_arrays
from eir.lists.pages.pages import PAGE_KEYS
from eir.lists.record.entries import entries_of
from eir.lists.record.first_days import sighted_rows
from eir.lists.record.settings import DEVICES, PAIRS
from eir.lists.table.columns import WHOLE, rows_of
from eir.lists.table.table import table_of

GUARDED = Path(__file__).parents[2] / "guarded.py"
NOW = 1_000.0
NUMBERS = [
    35,
    1_000_000,
    1_000_001,
    99_999_999,
    MEID_BASE // PAGE_KEYS + 5,
    (MEID_BASE + 2**55) // PAGE_KEYS,
    imsi_key("001010123456789") // PAGE_KEYS,
]
REMAINDERS = [0, 1, 0xFFFF, 0x10000, 0x10001, 500_000, 983_040, 999_999]
IMSIS = [imsi_key(text) for text in ("001010000000001", "001010000000002", "001011000000001", "00101")[:3]]
WIDE = frozenset(range(120_000, 135_000, 30))
"""A page with many keys in one block."""
remainders = st.sets(st.sampled_from(REMAINDERS) | st.integers(0, PAGE_KEYS - 1), max_size=12)
end = st.sampled_from([0, 999, 1000, 1001, 2**32 - 1])


@st.composite
def device_pages(draw, number):
    keys = draw(remainders | st.just(WIDE))
    tac = draw(st.none() | st.tuples(st.just(0), end))
    until = (
        draw(st.just([]) | end.map(lambda one: [one]) | st.lists(end, min_size=len(keys), max_size=len(keys)))
        if 0 < len(keys) < 20
        else []
    )
    return page(number, keys, until=until, tac=tac)


@st.composite
def pairs_pages(draw, number):
    keys = draw(remainders)
    imsis = [sorted(draw(st.sets(st.sampled_from(IMSIS), min_size=1))) for _ in keys]
    rows = sum(map(len, imsis))
    return page(
        number, keys, imsis=imsis, until=draw(st.just([]) | st.lists(end, min_size=rows, max_size=rows)) if keys else []
    )


def some(of):
    return st.sets(st.sampled_from(NUMBERS)).flatmap(
        lambda numbers: st.tuples(*[of(number) for number in sorted(numbers)])
    )


def said(pages, now):
    """By the rows themselves: devices in force, whole pages in force, IMSIs of each device."""
    devices, whole, bound = set(), set(), {}
    for row in entries_of(pages):
        if row.until and min(row.until, 2**32 - 1) <= now:
            continue
        if row.whole_tac:
            whole.add(row.key // PAGE_KEYS)
        else:
            devices.add(row.key)
            if row.imsi:
                bound.setdefault(row.key, []).append(row.imsi)
    return devices, whole, bound


def holds_what_they_say(image, pages, now):
    devices, whole, bound = said(pages, now)
    asked = (
        {p.number * PAGE_KEYS + r for p in pages for r in {*REMAINDERS, *range(0, PAGE_KEYS, 99_991)}}
        | devices
        | {35_000 * PAGE_KEYS, 2**62, 0}
    )
    assert {key for key in asked if image.holds(key, now)} == {
        key for key in asked if key in devices or key // PAGE_KEYS in whole
    }
    assert {key: image.imsis(key, now) for key in asked} == {key: tuple(bound.get(key, ())) for key in asked}
    imsis = {imsi for each in bound.values() for imsi in each}
    assert {imsi for imsi in (*IMSIS, imsi_key("001010000000009")) if image.has_subscriber(imsi, now)} == imsis
    if COMPILED:
        lists = Index({"list": PAIRS if bound else DEVICES}, lambda: now)
        fill(lists, "list", pages)
        stream = b"".join(ecr(f"{key:014d}", imsi=None) for key in sorted(asked) if key < 10**14)
        with_lane, without = sides(lists, PolicySettings(rules=(Rule(answer=Status.BLACKLISTED, list="list"),)))
        assert with_lane.feed(stream) == without.feed(stream)
        assert with_lane.state() == without.state()
    if not whole:
        assert list(image.keys(now)) == sorted(devices)


@pytest.mark.long(short=["pairs_pages"])
@pytest.mark.parametrize("pages", [device_pages, pairs_pages])
def test_an_image_has_the_content_of_its_pages(pages):
    """Made of all pages, or of the image before and of those that changed, and changed again."""

    @given(some(pages), some(pages), some(pages), st.sampled_from([0.0, NOW, 2.0**33]))
    @settings(max_examples=25)
    def holds_the_same(before, change, again, now):
        image = image_of(before)
        holds_what_they_say(image, before, now)
        there = {p.number: p for p in before}
        for each in (change, again):
            there |= {p.number: p for p in each}
            after = [there[number] for number in sorted(there)]
            image = image_with(image, each)
            holds_what_they_say(image, after, now)
            assert bytes(image.buffer) == bytes(image_of(after).buffer)

    holds_the_same()


def descriptors():
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def test_what_cannot_be_mapped_leaves_no_descriptor_behind():
    before = descriptors()
    with pytest.raises(ImageError, match="cut short"):
        Image.map(os.memfd_create("bad"))
    assert descriptors() == before


@given(st.sets(st.integers(0, 2**40) | st.integers(0, 300_000), max_size=200), st.integers(1, 5))
@settings(max_examples=100)
def test_plain_keys_in_any_chunks(keys, parts):
    by_page = np.array(sorted(keys), np.uint64)
    cuts = [
        0,
        *sorted({int(np.searchsorted(by_page, np.uint64(key // PAGE_KEYS * PAGE_KEYS))) for key in list(keys)[:parts]}),
        len(by_page),
    ]
    image = build_image([chunk_of(by_page[at:to]) for at, to in pairwise(cuts)])
    assert list(image.keys(NOW)) == sorted(keys)
    assert len(chunk_of_image(image).lows) == len(keys)
    assert all(image.holds(key, NOW) for key in keys)
    assert [key for key in range(0, 300_000, 997) if image.holds(key, NOW)] == [
        key for key in range(0, 300_000, 997) if key in keys
    ]


def test_a_hash_that_is_full_of_neighbours():
    numbers = [*range(35_000_000, 35_004_000), *range(0, 400_000_000, 100_003)]
    image = build_image([chunk_of(np.array(sorted(numbers), np.uint64) * np.uint64(PAGE_KEYS) + np.uint64(7))])
    assert all(image.holds(number * PAGE_KEYS + 7, NOW) for number in numbers)
    assert not any(image.holds((number + 50_000) * PAGE_KEYS + 7, NOW) for number in range(36_000_000, 36_001_000))


def arrays_of(name):
    """The arrays of an image that has something in the array of this name."""
    if name in {"row_stops", "seconds"} or name.startswith("subscriber_"):
        keys, imsis = [35_000_001, 35_000_001, 35_000_002], [1, 2, 2]
        image = table_image.image_of(
            table_of(rows_of(keys, seconds=imsis, begins=[0, 0, 2500], ends=[2000, 1500, 3000]))
        )
    elif name == "sightings":
        image = first_seen_image(table_of(sighted_rows(np.array([35_000_001, 35_000_002], np.uint64), 20_700, 20_700)))
    else:
        keys = [35_000_001, 35_070_000, 36_000_005, WHOLE | 36]
        image = table_image.image_of(table_of(rows_of(keys, begins=[0, 0, 1000, 0], ends=[0, 0, 2000, 1500])))
    found = open_arrays(image.buffer)
    assert len(found[name])
    assert Image.map(write_arrays(found)).numbers.tolist() == image.numbers.tolist()
    return found


class TestWhatPasses:
    """What is mapped is an image of this version, whole; and it cannot change."""

    def image(self):
        return build_image(
            [
                PageRows(35, np.array([1, 70_000])).chunk(),
                PageRows(36, np.array([5]), ends=np.array([2000]), tac=1500).chunk(),
            ]
        )

    def altered(self, octets):
        descriptor = os.memfd_create("altered")
        os.write(descriptor, octets)
        return descriptor

    def test_a_descriptor_that_was_handed_on(self):
        image = self.image()
        again = Image.map(os.dup(image.descriptor))
        assert list(again.keys(NOW)) == list(image.keys(NOW))
        with pytest.raises(PermissionError):
            os.pwrite(image.descriptor, b"x", 0)
        with pytest.raises(OSError, match="permitted"):
            os.ftruncate(image.descriptor, 0)
        with pytest.raises(PermissionError):
            mmap.mmap(image.descriptor, 0)

    @pytest.mark.parametrize("size", [0, 1, 60, BODY_AT - 1, BODY_AT, -64, -1])
    def test_one_that_is_cut_short(self, size):
        with pytest.raises(ImageError, match=r"cut short|not within"):
            Image.map(self.altered(bytes(self.image().buffer)[: size or 0]))

    def test_another_version(self):
        octets = bytearray(self.image().buffer)
        octets[8:12] = struct.pack("<I", VERSION + 1)
        with pytest.raises(ImageError, match=f"version {VERSION + 1}"):
            Image.map(self.altered(octets))

    @pytest.mark.parametrize(("name", "damage"), [
        *((name, damage) for name, _ in SECTIONS for damage in ("one less", "one more")),
        *((name, "another last") for name, _ in SECTIONS if name.removeprefix("subscriber_") in {"firsts", "offsets", "timed_starts"} or name == "row_stops"),
    ])  # fmt: skip
    def test_arrays_that_do_not_fit_one_another(self, name, damage):
        """Each alone: one item less or more than the others say, or where its last item says how long another one is, another number there."""
        arrays = arrays_of(name)
        item = arrays[name]
        match damage:
            case "one less":
                arrays[name] = item[:-1]
            case "one more":
                arrays[name] = np.append(item, item[-1:])
            case _:
                arrays[name] = np.append(item[:-1], item[-1:] + item.dtype.type(1))
        with pytest.raises(ImageError, match=r"damaged|do not fit"):
            Image.map(write_arrays(arrays))

    @pytest.mark.parametrize("slots", [0, 3, 12])
    def test_a_hash_without_a_free_slot_or_of_a_size_that_is_no_power_of_two(self, slots):
        arrays = arrays_of("slots")
        arrays["slots"] = np.resize(arrays["slots"], slots * 4)
        with pytest.raises(ImageError, match="do not fit"):
            Image.map(write_arrays(arrays))

    def test_another_file(self):
        with pytest.raises(ImageError, match="no image"):
            Image.map(self.altered(bytes(100_000)))

    def test_damaged_bytes_cause_no_read_behind_the_image(self):
        """The image ends at a page without access. The second process shows that a read of one byte there ends a process."""
        damaged, beyond = (
            subprocess.run([sys.executable, GUARDED, "1000", seed], capture_output=True, text=True, check=False)
            for seed in ("same", "beyond")
        )
        assert (damaged.returncode, damaged.stderr) == (0, "")
        assert int(damaged.stdout) > 100, "the checks of sizes reject most images, so that no lookup is tried"
        assert beyond.returncode == -signal.SIGSEGV

    def test_its_memory_goes_in_steps(self):
        image = build_image([chunk_of(np.arange(3_000_000, dtype=np.uint64))])
        done = steps = 0
        while done < len(image.buffer):
            done, steps = image.drop(done), steps + 1
        assert (done, steps > 2) == (len(image.buffer), True)
        assert image.holds(2_999_999, NOW), "what was given back comes again where somebody asks"

    def test_pages_have_to_ascend(self):
        with pytest.raises(ValueError, match="ascend"):
            build_image([chunk_of(np.array([35_000_000])), chunk_of(np.array([35_000_001]))])


def test_pages_of_a_store():
    keys = [*range(35_000_000, 35_000_200), 36_999_999]
    assert list(image_of(pages_of(keys)).keys(NOW)) == keys
    assert len(SECTIONS) == len({name for name, _ in SECTIONS})

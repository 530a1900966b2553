"""The flat image of a list: plain keys, and what passes for an image; look-ups are in tests/lists/images/test_table_image.py."""

import mmap
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eir.device import SNR_KEYS
from eir.lists.images.first_seen_image import first_seen_image
from eir.lists.images.image import BODY_AT, SECTIONS, VERSION, Image, ImageError, open_arrays
from eir.lists.images.table_image import image_of, write_arrays
from eir.lists.record.first_days import sighted_rows
from eir.lists.table.columns import WHOLE, rows_of
from eir.lists.table.table import table_of

GUARDED = Path(__file__).parents[2] / "guarded.py"
NOW = 1_000.0


def image_of_keys(keys):
    return image_of(table_of(rows_of(keys)))


def descriptors():
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def test_what_cannot_be_mapped_leaves_no_descriptor_behind():
    before = descriptors()
    with pytest.raises(ImageError, match="cut short"):
        Image.map(os.memfd_create("bad"))
    assert descriptors() == before


@given(st.sets(st.integers(0, 2**40) | st.integers(0, 300_000), max_size=200))
@settings(max_examples=100)
def test_plain_keys(keys):
    image = image_of_keys(sorted(keys))
    assert list(image.keys(NOW)) == sorted(keys)
    assert len(image.arrays["lows"]) == len(keys)
    assert all(image.holds(key, NOW) for key in keys)
    assert [key for key in range(0, 300_000, 997) if image.holds(key, NOW)] == [
        key for key in range(0, 300_000, 997) if key in keys
    ]


def test_a_hash_that_is_full_of_neighbours():
    numbers = [*range(35_000_000, 35_004_000), *range(0, 400_000_000, 100_003)]
    image = image_of_keys(np.unique(np.array(numbers, np.uint64)) * np.uint64(SNR_KEYS) + np.uint64(7))
    assert all(image.holds(number * SNR_KEYS + 7, NOW) for number in numbers)
    assert not any(image.holds((number + 50_000) * SNR_KEYS + 7, NOW) for number in range(36_000_000, 36_001_000))


def arrays_of(name):
    """The arrays of an image that has something in the array of this name."""
    if name in {"row_stops", "seconds"} or name.startswith("subscriber_"):
        keys, imsis = [35_000_001, 35_000_001, 35_000_002], [1, 2, 2]
        image = image_of(table_of(rows_of(keys, seconds=imsis, begins=[0, 0, 2500], ends=[2000, 1500, 3000])))
    elif name == "sightings":
        image = first_seen_image(table_of(sighted_rows(np.array([35_000_001, 35_000_002], np.uint64), 20_700, 20_700)))
    else:
        keys = [35_000_001, 35_070_000, 36_000_005, WHOLE | 36]
        image = image_of(table_of(rows_of(keys, begins=[0, 0, 1000, 0], ends=[0, 0, 2000, 1500])))
    found = open_arrays(image.buffer)
    assert len(found[name])
    assert Image.map(write_arrays(found)).numbers.tolist() == image.numbers.tolist()
    return found


class TestWhatPasses:
    """What is mapped is an image of this version, whole; and it cannot change."""

    def image(self):
        rows = rows_of(
            [35 * SNR_KEYS + 1, 35 * SNR_KEYS + 70_000, 36 * SNR_KEYS + 5, WHOLE | 36], ends=[0, 0, 2000, 1500]
        )
        return image_of(table_of(rows))

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
        image = image_of_keys(np.arange(3_000_000, dtype=np.uint64))
        done = steps = 0
        while done < len(image.buffer):
            done, steps = image.drop(done), steps + 1
        assert (done, steps > 2) == (len(image.buffer), True)
        assert image.holds(2_999_999, NOW), "what was given back comes again where somebody asks"


def test_each_array_has_a_name_of_its_own():
    assert len(SECTIONS) == len({name for name, _ in SECTIONS})

"""Image: content of a list as sorted arrays in immutable memory, which many processes map.

A new image is built (eir.lists.images.imaging) while the previous one is in force. It is in a sealed memory file: a process
that receives the descriptor maps memory that cannot change. Each lookup has the time as an argument and ignores rows that
have ended.

Arrays, each in a section of its own (little-endian):

    numbers, bits, firsts   for each page: its number; one bit for each block that exists, and flags; its first block
    slots                   hash table of the pages below 2^32 (TACs, IMSIs): number, first block, bits, index of the page plus one
    offsets, lows           for each block of 2^16 keys: the index of its first key; the lower 16 bits of all keys
    end_pages, end_starts, ends    the pages with rows that end; the index of their first end; the end of each row (0: none)
    tac_pages, tac_ends     the pages that are listed whole until a time; that time
    pair_ends, imsis        pairs: for each device the index after its last IMSI (empty if each has one); all IMSIs
    sightings               first sightings: the first day of each device, and the period of its last sighting
"""

import os
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from struct import Struct
from typing import Any, Final

import numpy as np

from eir.lists.images.chunks import BLOCK_BITS, BLOCKS, ENDS, SIGHTINGS, WHOLE, WHOLE_UNTIL, Chunk, Numbers
from eir.lists.images.memory import MappedFile
from eir.lists.pages.pages import PAGE_KEYS

MAGIC, VERSION = b"EIRIMAGE", 3
HASHED: Final = 1 << 32
"""Pages below this number are in the hash table; the others (MEIDs with letters) are few."""
SLOT_WORDS, SPREAD, WORD_BITS = 4, 0x9E3779B1, 32
ALIGNED = 64

_KEY_ARRAYS: Final[tuple[tuple[str, Any], ...]] = (
    ("numbers", "<u8"), ("bits", "<u4"), ("firsts", "<u4"), ("slots", "<u4"), ("offsets", "<u4"), ("lows", "<u2"), ("end_pages", "<u4"),
    ("end_starts", "<u4"), ("ends", "<u4"),
)  # fmt: skip
"""Names and types of the arrays in which keys are looked up."""
SECTIONS: Final = (
    *_KEY_ARRAYS,
    ("tac_pages", "<u4"), ("tac_ends", "<u4"), ("pair_ends", "<u4"), ("imsis", "<u8"), ("sightings", SIGHTINGS),
    *((f"subscriber_{name}", form) for name, form in _KEY_ARRAYS),
)  # fmt: skip
"""Arrays in order. Lists of pairs have a second set of key arrays for their IMSIs; the latest end of an IMSI's rows counts."""
HEADER = Struct("<8sIIQ32x")
"""Magic, version, number of sections, size in bytes; the rest is free."""
SECTION = Struct("<QQ")
SIGHTING = Struct("<HB")
"""One value of SIGHTINGS."""
BODY_AT: Final = -(-(HEADER.size + SECTION.size * len(SECTIONS)) // ALIGNED) * ALIGNED


class ImageError(ValueError):
    """Error for a memory file that does not contain an image (content of a list) of this version."""


class _Table:
    """Arrays of an image for the lookup of devices, or of subscribers. Memoryviews of these arrays make reads of single values faster."""

    __slots__ = (
        "arrays",
        "bits",
        "end_pages",
        "end_starts",
        "ends",
        "firsts",
        "lows",
        "numbers",
        "offsets",
        "shift",
        "slots",
    )

    def __init__(self, arrays: Mapping[str, Numbers]) -> None:
        self.arrays = arrays
        self.numbers = arrays["numbers"]
        self.bits = arrays["bits"].data
        self.firsts = arrays["firsts"].data
        self.slots = arrays["slots"].data
        self.offsets = arrays["offsets"].data
        self.lows = arrays["lows"].data
        self.ends = arrays["ends"].data
        self.end_pages = arrays["end_pages"]
        self.end_starts = arrays["end_starts"]
        self.shift = WORD_BITS - (len(self.slots) // SLOT_WORDS).bit_length() + 1

    def page(self, number: int) -> int:
        """Find a page by its number; return its index in the arrays of the image, or -1 if the image lacks the page."""
        if number >= HASHED:
            place = int(np.searchsorted(self.numbers, np.uint64(number)))
            return place if place < len(self.numbers) and self.numbers[place] == number else -1
        slots, at = self.slots, ((number * SPREAD & 0xFFFFFFFF) >> self.shift) * SLOT_WORDS
        for _ in range(0, len(slots), SLOT_WORDS):  # bounds the search: a damaged table may have no free slot
            if slots[at] == number or not slots[at + 3]:
                return slots[at + 3] - 1
            at = (at + SLOT_WORDS) % len(slots)
        return -1

    def position(self, place: int, remainder: int) -> int:
        """Find a key by its page and its remainder; return its index among all keys of the list, or -1 if the list lacks the key.

        `place`: index of the page (`page`). `remainder`: key modulo PAGE_KEYS.
        """
        if place < 0:
            return -1
        bits, upper = self.bits[place], remainder >> BLOCK_BITS
        if not bits >> upper & 1:
            return -1
        block = self.firsts[place] + (bits & (1 << upper) - 1).bit_count()
        start, end = self.offsets[block], self.offsets[block + 1]
        low = remainder & 0xFFFF
        at = bisect_left(self.lows, low, start, end)
        return at if at < end and self.lows[at] == low else -1

    def keys(self, place: int) -> range:
        """Return the range of positions at which the list has the keys of one page. `place`: index of the page."""
        return range(self.offsets[self.firsts[place]], self.offsets[self.firsts[place + 1]])

    def remainders(self, place: int) -> list[int]:
        """Return the keys of a page, modulo the page size, in ascending order. `place`: index of the page."""
        bits, block, keys = self.bits[place] & BLOCKS, self.firsts[place], list[int]()
        for upper in range(BLOCK_BITS):
            if bits >> upper & 1:
                keys += [upper << BLOCK_BITS | low for low in self.lows[self.offsets[block] : self.offsets[block + 1]]]
                block += 1
        return keys

    def ends_of(self, place: int) -> "memoryview | None":
        """Return the expiries of the rows of a page; None if none of these rows has an expiry."""
        if not self.bits[place] & ENDS:
            return None
        at = int(np.searchsorted(self.end_pages, place))
        return self.ends[self.end_starts[at] : self.end_starts[at + 1]]


class Image:
    """Content of a list in mapped memory (image), with lookups by key.

    Keys and IMSIs are those of eir.device; `now` is in Unix seconds. No bytes of an image can cause a read outside it.
    `map` rejects bytes that cannot be an image.
    """

    __slots__ = (
        "_devices",
        "_imsis",
        "_map",
        "_pair_ends",
        "_subscribers",
        "_tac_ends",
        "_tac_pages",
        "buffer",
        "descriptor",
        "numbers",
        "sightings",
    )

    def __init__(self, mapped: MappedFile, arrays: Mapping[str, Numbers], descriptor: int) -> None:
        self._map = mapped
        self.descriptor = descriptor
        """Descriptor of the memory file, for other processes; closed with the image."""
        self.buffer = mapped.buffer
        """All bytes of the image."""
        self._devices = _Table(arrays)
        self._subscribers = _Table({name: arrays[f"subscriber_{name}"] for name, _ in _KEY_ARRAYS})
        self._pair_ends = arrays["pair_ends"].data
        self._imsis = arrays["imsis"].data
        self._tac_pages = arrays["tac_pages"]
        self._tac_ends = arrays["tac_ends"]
        self.sightings = arrays["sightings"].view(np.uint8).data
        """In a record of first sightings: bytes with the days of each device (SIGHTINGS), also for a compiled lookup."""
        self.numbers = self._devices.numbers
        """Numbers of all pages in ascending order."""

    def __del__(self) -> None:
        os.close(self.descriptor)

    def fileno(self) -> int:
        """Return the descriptor of the image's memory file, by which another process can map the image."""
        return self.descriptor

    @classmethod
    def map(cls, descriptor: int) -> "Image":
        """Map an image from the memory file with this descriptor. The deletion of the image closes the descriptor.

        Raises:
            ImageError: if the file is not an image of this version.
            OSError: if the file cannot be mapped.
        """
        try:
            mapped, arrays = _map_file(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        return cls(mapped, arrays, descriptor)

    @property
    def lane_arrays(self) -> tuple[memoryview, memoryview, memoryview]:
        """Arrays for the lookup of keys by the compiled fast path: `slots`, `offsets` and `lows`."""
        return self._devices.slots, self._devices.offsets, self._devices.lows

    @property
    def has_pairs(self) -> bool:
        """True if the list binds devices to IMSIs."""
        return bool(len(self._imsis))

    @property
    def has_ends(self) -> bool:
        """True if at least one row of the list has an expiry."""
        return bool(len(self._devices.ends) or len(self._tac_ends))

    def holds(self, key: int, now: float) -> bool:
        """Return True if the list has an unexpired row for this key at the time `now`."""
        number, remainder = divmod(key, PAGE_KEYS)
        table = self._devices
        place = table.page(number)
        if place < 0:
            return False
        bits = table.bits[place]
        if bits & WHOLE or (bits & WHOLE_UNTIL and self._tac_end(place) > now):
            return True
        position = table.position(place, remainder)
        if position < 0 or not bits & ENDS:
            return position >= 0
        ends = self._ends(place, self._rows(position))
        return any(not end or end > now for end in ends)

    def imsis(self, key: int, now: float) -> tuple[int, ...]:
        """Return the IMSIs to which unexpired rows of the list bind a device."""
        place = self._devices.page(key // PAGE_KEYS)
        position = self._devices.position(place, key % PAGE_KEYS)
        if position < 0 or not len(self._imsis):
            return ()
        rows = self._rows(position)
        bound = zip(self._imsis[rows.start : rows.stop], self._ends(place, rows), strict=True)
        return tuple(imsi for imsi, end in bound if not end or end > now)

    def first_seen(self, key: int) -> tuple[int, int] | None:
        """Return the day on which a device was first seen, and the index of the period in which it was last seen.

        A period is PERIOD_DAYS days (eir.lists.pages.first_days). Returns None for a device without a record.
        """
        table = self._devices
        position = table.position(table.page(key // PAGE_KEYS), key % PAGE_KEYS)
        if position < 0 or not self.sightings:
            return None
        first, last = SIGHTING.unpack_from(self.sightings, position * SIGHTING.size)
        return first, last

    def has_subscriber(self, imsi: int, now: float) -> bool:
        """Return True if the list has an unexpired row with this IMSI."""
        table = self._subscribers
        place = table.page(imsi // PAGE_KEYS)
        position = table.position(place, imsi % PAGE_KEYS)
        if position < 0 or (ends := table.ends_of(place)) is None:
            return position >= 0
        end = ends[position - table.keys(place).start]
        return not end or end > now

    def keys(self, now: float) -> Iterator[int]:
        """Yield in ascending order each key that has an unexpired row at the time `now`."""
        for place, number in enumerate(self.numbers.tolist()):
            bits, base = self._devices.bits[place], number * PAGE_KEYS
            if bits & WHOLE or (bits & WHOLE_UNTIL and self._tac_end(place) > now):
                yield from range(base, base + PAGE_KEYS)
                continue
            keys = (base + remainder for remainder in self._devices.remainders(place))
            yield from (key for key in keys if not bits & ENDS or self.holds(key, now))

    def chunk(self) -> Chunk:
        """Return all rows of the image as one chunk (columns as arrays), from which a changed image can be built."""
        of = self._devices.arrays
        pair_ends, imsis = np.asarray(self._pair_ends), np.asarray(self._imsis)
        counts = np.diff(pair_ends, prepend=np.uint32(0)) if len(pair_ends) else np.ones(len(imsis), np.uint32)
        return Chunk(
            numbers=of["numbers"],
            bits=of["bits"],
            sizes=np.diff(of["offsets"]),
            lows=of["lows"],
            rows=np.diff(of["end_starts"]),
            ends=of["ends"],
            tac_ends=self._tac_ends,
            counts=counts,
            imsis=imsis,
            sightings=np.frombuffer(self.sightings, SIGHTINGS),
        )

    def drop(self, done: int) -> int:
        """Release a portion of the image's memory from byte `done` on; return the end of the portion, where the next call continues.

        The image must not be used afterwards.
        """
        return self._map.drop(done)

    def _tac_end(self, place: int) -> int:
        """Return the expiry (Unix seconds) of the list entry for a whole TAC. `place`: index of the TAC's page in the arrays."""
        return int(self._tac_ends[np.searchsorted(self._tac_pages, place)])

    def _rows(self, position: int) -> range:
        """Return the indexes of a key's rows. In a list of pairs, a key has one row for each bound IMSI; otherwise it has one row."""
        if not len(self._pair_ends):
            return range(position, position + 1)
        return range(self._pair_ends[position - 1] if position else 0, self._pair_ends[position])

    def _ends(self, place: int, rows: range) -> Sequence[int]:
        ends = self._devices.ends_of(place)
        if ends is None:
            return (0,) * len(rows)
        first = self._devices.keys(place).start
        begin = rows.start - self._rows(first).start
        return ends[begin : begin + len(rows)]


def _map_file(descriptor: int) -> tuple[MappedFile, dict[str, Numbers]]:
    """Map a memory file (see Image.map); return the mapping, and the arrays in it."""
    size = os.fstat(descriptor).st_size
    if size < BODY_AT:
        raise ImageError(f"an image of {size} bytes is cut short")
    mapped = MappedFile(descriptor)
    return mapped, open_arrays(mapped.buffer)


def open_arrays(image: memoryview) -> dict[str, Numbers]:
    """Return the arrays in a mapped memory file by name, and check that their sizes are consistent.

    Raises:
        ImageError: if they are not.
    """
    magic, version, count, stated = HEADER.unpack_from(image)
    if (magic, version, count) != (MAGIC, VERSION, len(SECTIONS)):
        raise ImageError(
            f"an image of version {version}; this program has {VERSION}" if magic == MAGIC else "no image of a list"
        )
    if stated != (size := len(image)):
        raise ImageError(f"an image of {stated} bytes has {size}: it is cut short")
    arrays: dict[str, Numbers] = {}
    for index, (name, form) in enumerate(SECTIONS):
        at, length = SECTION.unpack_from(image, HEADER.size + index * SECTION.size)
        item = np.dtype(form).itemsize
        if at % ALIGNED or length % item or not BODY_AT <= at <= at + length <= size:
            raise ImageError(f"section {name} of an image is not within it")
        arrays[name] = np.frombuffer(image, form, length // item, at)
    for prefix in ("", "subscriber_"):
        if prefix and not len(arrays["subscriber_firsts"]):
            continue
        _check_sizes({name: arrays[prefix + name] for name, _ in _KEY_ARRAYS})
    if len(arrays["tac_pages"]) != len(arrays["tac_ends"]):
        raise ImageError("the ends of an image's TACs are damaged")
    devices, pair_ends = len(arrays["lows"]), arrays["pair_ends"]
    if len(pair_ends) and (len(pair_ends) != devices or pair_ends[-1] != len(arrays["imsis"])):
        raise ImageError("the pairs of an image are damaged")
    if len(arrays["sightings"]) not in {0, devices}:
        raise ImageError("the days of an image are damaged")
    return arrays


def _check_sizes(of: Mapping[str, Numbers]) -> None:
    pages = len(of["numbers"])
    slots, part_slot = divmod(len(of["slots"]), SLOT_WORDS)
    are_slots = not part_slot and slots > pages and not slots & slots - 1
    is_sound = len(of["bits"]) == pages and are_slots
    blocks = len(of["offsets"]) - 1
    if (
        not is_sound
        or not _are_starts(of["firsts"], pages, blocks)
        or not _are_starts(of["offsets"], blocks, len(of["lows"]))
    ):
        raise ImageError("the sizes of an image's arrays do not fit one another")
    if not _are_starts(of["end_starts"], len(of["end_pages"]), len(of["ends"])):
        raise ImageError("the ends of an image are damaged")


def _are_starts(starts: Numbers, groups: int, items: int) -> bool:
    """Return True if an array of start indexes is consistent: it has one index for each group, and ends with the number of all items."""
    return len(starts) == groups + 1 > 0 and starts[-1] == items

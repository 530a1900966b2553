"""Image: content of a list as sorted arrays in immutable memory, which many processes map.

A new image is built (eir.lists.images.table_image) while the previous one is in force. It is in a sealed memory file: a process
that receives the descriptor maps memory that cannot change. Each lookup has the time as an argument and ignores rows that
have not begun or have ended.

A page has the keys of one TAC in up to 16 blocks of 2^16 keys. A whole TAC is a key, too: on a page from WHOLE_PAGES on, which has the
numbers of 2^20 TACs. A flag of the TAC's own page saves a lookup of that key.

Arrays, each in a section of its own (little-endian). All but the last two exist twice: for devices, and for the IMSIs of a list of pairs:

    numbers, bits, firsts   for each page: its number; one bit for each block that exists, and flags; its first block
    slots                   hash table of the pages below 2^32 (TACs, IMSIs): number, first block, bits, index of the page plus one
    offsets, lows           for each block: the index of its first key; the lower 16 bits of all keys
    row_stops               for each key the index after its last row; empty if each key has one row
    timed_pages, timed_starts   pages with rows that begin or end; the index of their first begin and end
    begins, ends            begin and end of each row of these pages (0: none); empty if no row has a begin, or an end
    seconds                 lists of pairs and of device types: IMSI or type of each row
    sightings               first sightings: the first day of each device, and the period of its last sighting
"""

import os
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from itertools import compress, repeat
from struct import Struct
from typing import Any, Final

import numpy as np

from eir.device import SNR_KEYS
from eir.lists.images.memory import MappedFile
from eir.lists.table.columns import LOW_BITS, Numbers

MAGIC, VERSION = b"EIRIMAGE", 4
HASHED: Final = 1 << 32
"""Pages below this number are in the hash table; the others (MEIDs with letters, whole TACs) are few."""
SLOT_WORDS, SPREAD, WORD_BITS = 4, 0x9E3779B1, 32
ALIGNED = 64
BLOCKS: Final = 0xFFFF
"""Mask of the bits of a page that show which of its 16 blocks exist."""
WHOLE, WHOLE_TIMED, TIMED = 1 << 16, 1 << 17, 1 << 18
"""Flags in the bits of a page: its TAC is listed whole; its TAC is listed whole by rows that all begin or end; it has rows that begin or end."""
WHOLE_PAGES: Final = 1 << 40
"""First number of the pages of whole TACs, above all pages of identifiers."""
TACS_BITS: Final = 20
"""Bits of a TAC's number on its page of whole TACs."""
SIGHTINGS = np.dtype([("first", "<u2"), ("last", "<u1")])
"""First sightings: the first day of a device, and the period of its last sighting, in 3 bytes."""

KEY_ARRAYS: Final[tuple[tuple[str, Any], ...]] = (
    ("numbers", "<u8"), ("bits", "<u4"), ("firsts", "<u4"), ("slots", "<u4"), ("offsets", "<u4"), ("lows", "<u2"), ("row_stops", "<u4"),
    ("timed_pages", "<u4"), ("timed_starts", "<u4"), ("begins", "<u4"), ("ends", "<u4"),
)  # fmt: skip
"""Names and types of the arrays in which keys are looked up."""
SECTIONS: Final = (
    *KEY_ARRAYS,
    *((f"subscriber_{name}", form) for name, form in KEY_ARRAYS),
    ("seconds", "<u8"),
    ("sightings", SIGHTINGS),
)
"""Arrays in order. An IMSI of a list of pairs has a row for each period in which at least one of its pairs is in force."""
HEADER = Struct("<8sIIQ32x")
"""Magic, version, number of sections, size in bytes; the rest is free."""
SECTION = Struct("<QQ")
SIGHTING = Struct("<HB")
"""One value of SIGHTINGS."""
BODY_AT: Final = -(-(HEADER.size + SECTION.size * len(SECTIONS)) // ALIGNED) * ALIGNED


class ImageError(ValueError):
    """Error for a memory file that does not contain an image (content of a list) of this version."""


class _Keys:
    """Arrays of an image for the lookup of devices, or of subscribers. Memoryviews of these arrays make reads of single values faster."""

    __slots__ = (
        "begins",
        "bits",
        "ends",
        "firsts",
        "lows",
        "numbers",
        "offsets",
        "row_stops",
        "shift",
        "slots",
        "timed_pages",
        "timed_starts",
    )

    def __init__(self, arrays: Mapping[str, Numbers], prefix: str = "") -> None:
        of = {name: arrays[prefix + name] for name, _ in KEY_ARRAYS}
        self.numbers = of["numbers"].data
        self.bits = of["bits"].data
        self.firsts = of["firsts"].data
        self.slots = of["slots"].data
        self.offsets = of["offsets"].data
        self.lows = of["lows"].data
        self.row_stops = of["row_stops"].data
        self.timed_pages = of["timed_pages"].data
        self.timed_starts = of["timed_starts"].data
        self.begins = of["begins"].data
        self.ends = of["ends"].data
        self.shift = WORD_BITS - (len(self.slots) // SLOT_WORDS).bit_length() + 1

    def page(self, number: int) -> int:
        """Find a page by its number; return its index in the arrays of the image, or -1 if the image lacks the page."""
        if number >= HASHED:
            place = bisect_left(self.numbers, number)
            return place if place < len(self.numbers) and self.numbers[place] == number else -1
        slots, at = self.slots, ((number * SPREAD & 0xFFFFFFFF) >> self.shift) * SLOT_WORDS
        for _ in range(0, len(slots), SLOT_WORDS):  # bounds the search: a damaged table may have no free slot
            if slots[at] == number or not slots[at + 3]:
                return slots[at + 3] - 1
            at = (at + SLOT_WORDS) % len(slots)
        return -1

    def position(self, place: int, remainder: int) -> int:
        """Find a key by its page and its remainder; return its index among all keys of the list, or -1 if the list lacks the key.

        `place`: index of the page (`page`). `remainder`: key modulo SNR_KEYS.
        """
        if place < 0:
            return -1
        bits, upper = self.bits[place], remainder >> LOW_BITS
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
        for upper in range(LOW_BITS):
            if bits >> upper & 1:
                keys += [upper << LOW_BITS | low for low in self.lows[self.offsets[block] : self.offsets[block + 1]]]
                block += 1
        return keys

    def rows(self, position: int) -> range:
        """Return the indexes of the rows of a key. `position`: index of the key."""
        if not len(self.row_stops):
            return range(position, position + 1)
        return range(self.row_stops[position - 1] if position else 0, self.row_stops[position])

    def timed(self, place: int, rows: range) -> slice:
        """Return the positions of these rows of a page in `begins` and `ends`. The page must be flagged as TIMED."""
        shift = self.timed_starts[bisect_left(self.timed_pages, place)] - self.rows(self.keys(place).start).start
        return slice(shift + rows.start, shift + rows.stop)

    def in_force(self, place: int, rows: range, now: float) -> list[bool]:
        """Return for each of these rows of a page whether it is in force at the time `now`. `place`: index of the page."""
        if not self.bits[place] & TIMED:
            return [True] * len(rows)
        span = self.timed(place, rows)
        begins, ends = self.begins[span] or repeat(0), self.ends[span] or repeat(0)
        return [begin <= now and (not end or end > now) for begin, end, _ in zip(begins, ends, rows, strict=False)]

    def holds(self, place: int, remainder: int, now: float) -> bool:
        """Return True if a key has a row that is in force at the time `now`. `place`, `remainder`: see `position`."""
        position = self.position(place, remainder)
        if position < 0 or not self.bits[place] & TIMED:
            return position >= 0
        return any(self.in_force(place, self.rows(position), now))


class Image:
    """Content of a list in mapped memory (image), with lookups by key.

    Keys and IMSIs are those of eir.device; `now` is in Unix seconds. No bytes of an image can cause a read outside it.
    `map` rejects bytes that cannot be an image.
    """

    __slots__ = (
        "_devices",
        "_map",
        "_seconds",
        "_subscribers",
        "arrays",
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
        self.arrays = arrays
        """Arrays of the image by name (SECTIONS)."""
        self._devices = _Keys(arrays)
        self._subscribers = _Keys(arrays, "subscriber_")
        self._seconds = arrays["seconds"].data
        self.sightings = arrays["sightings"].view(np.uint8).data
        """In a record of first sightings: bytes with the days of each device (SIGHTINGS), also for a compiled lookup."""
        self.numbers = arrays["numbers"]
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
    def has_times(self) -> bool:
        """True if at least one row of the list has a begin or an end."""
        return bool(len(self._devices.timed_pages))

    def holds(self, key: int, now: float) -> bool:
        """Return True if the list has a row for this key that is in force at the time `now`."""
        number, remainder = divmod(key, SNR_KEYS)
        devices = self._devices
        place = devices.page(number)
        if place < 0:
            return False
        bits = devices.bits[place]
        if bits & WHOLE or (bits & WHOLE_TIMED and self._holds_tac(number, now)):
            return True
        return devices.holds(place, remainder, now)

    def imsis(self, key: int, now: float) -> tuple[int, ...]:
        """Return the IMSIs to which rows of the list bind a device at the time `now`."""
        devices = self._devices
        place = devices.page(key // SNR_KEYS)
        position = devices.position(place, key % SNR_KEYS)
        if position < 0 or not len(self._seconds):
            return ()
        rows = devices.rows(position)
        return tuple(compress(self._seconds[rows.start : rows.stop], devices.in_force(place, rows, now)))

    def begins(self, key: int, now: float, second: int = 0) -> list[int]:
        """Return the begins after `now` of the rows that list a device or its TAC; with `second`, of those that bind the device to this IMSI."""
        devices, tac = self._devices, key // SNR_KEYS
        found = list[int]()
        for number, remainder in ((tac, key % SNR_KEYS), (WHOLE_PAGES | tac >> TACS_BITS, tac & (1 << TACS_BITS) - 1)):
            place = devices.page(number)
            position = devices.position(place, remainder)
            if position < 0 or not devices.bits[place] & TIMED:
                continue
            rows = devices.rows(position)
            begins = devices.begins[devices.timed(place, rows)]
            found += [
                begin
                for row, begin in zip(rows, begins, strict=False)
                if begin > now and (not second or self._seconds[row] == second)
            ]
        return found

    def pending(self, now: float) -> int:
        """Return the number of rows that begin after `now`."""
        return int(np.count_nonzero(self.arrays["begins"] > now))

    def first_seen(self, key: int) -> tuple[int, int] | None:
        """Return the day on which a device was first seen, and the index of the period in which it was last seen.

        A period is PERIOD_DAYS days (eir.lists.record.first_days). Returns None for a device without a record.
        """
        devices = self._devices
        position = devices.position(devices.page(key // SNR_KEYS), key % SNR_KEYS)
        if position < 0 or not self.sightings:
            return None
        first, last = SIGHTING.unpack_from(self.sightings, position * SIGHTING.size)
        return first, last

    def has_subscriber(self, imsi: int, now: float) -> bool:
        """Return True if the list has a row with this IMSI that is in force at the time `now`."""
        subscribers = self._subscribers
        return subscribers.holds(subscribers.page(imsi // SNR_KEYS), imsi % SNR_KEYS, now)

    def keys(self, now: float) -> Iterator[int]:
        """Yield in ascending order each key that has a row that is in force at the time `now`."""
        devices = self._devices
        for place, number in enumerate(self.numbers.tolist()):
            if number >= WHOLE_PAGES:
                break
            bits, base = devices.bits[place], number * SNR_KEYS
            if bits & WHOLE or (bits & WHOLE_TIMED and self._holds_tac(number, now)):
                yield from range(base, base + SNR_KEYS)
                continue
            keys = (base + remainder for remainder in devices.remainders(place))
            yield from (key for key in keys if not bits & TIMED or self.holds(key, now))

    def drop(self, done: int) -> int:
        """Release a portion of the image's memory from byte `done` on; return the end of the portion, where the next call continues.

        The image must not be used afterwards.
        """
        return self._map.drop(done)

    def _holds_tac(self, tac: int, now: float) -> bool:
        """Return True if the list has a row for this whole TAC that is in force at the time `now`."""
        devices = self._devices
        return devices.holds(devices.page(WHOLE_PAGES | tac >> TACS_BITS), tac & (1 << TACS_BITS) - 1, now)


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
        _check_sizes({name: arrays[prefix + name] for name, _ in KEY_ARRAYS})
    rows = arrays["row_stops"][-1] if len(arrays["row_stops"]) else len(arrays["lows"])
    if len(arrays["seconds"]) not in {0, rows}:
        raise ImageError("the pairs of an image are damaged")
    if len(arrays["sightings"]) not in {0, len(arrays["lows"])}:
        raise ImageError("the days of an image are damaged")
    return arrays


def _check_sizes(of: Mapping[str, Numbers]) -> None:
    pages = len(of["numbers"])
    slots, part_slot = divmod(len(of["slots"]), SLOT_WORDS)
    hashed = int(np.searchsorted(of["numbers"], np.uint64(HASHED)))
    are_slots = not part_slot and slots > hashed and not slots & slots - 1
    is_sound = len(of["bits"]) == pages and are_slots
    blocks = len(of["offsets"]) - 1
    if (
        not is_sound
        or not _are_starts(of["firsts"], pages, blocks)
        or not _are_starts(of["offsets"], blocks, len(of["lows"]))
    ):
        raise ImageError("the sizes of an image's arrays do not fit one another")
    if len(of["row_stops"]) not in {0, len(of["lows"])}:
        raise ImageError("the rows of an image's keys are damaged")
    starts, times = of["timed_starts"], max(len(of["begins"]), len(of["ends"]))
    if not _are_starts(starts, len(of["timed_pages"]), times) or not {len(of["begins"]), len(of["ends"])} <= {0, times}:
        raise ImageError("the begins and ends of an image are damaged")


def _are_starts(starts: Numbers, groups: int, items: int) -> bool:
    """Return True if an array of start indexes is consistent: it has one index for each group, and ends with the number of all items."""
    return len(starts) == groups + 1 > 0 and starts[-1] == items

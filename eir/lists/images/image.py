"""One flat, immutable image of a list: sorted arrays in memory that many processes map.

An image is made (eir.lists.images.imaging) beside the one in force. It is in a sealed memory file, so a process that is given
the descriptor maps memory that can never change. Whether a row has ended is decided when the row is asked for: the time is an argument.

The arrays, each in its own section (little-endian):

    numbers, bits, firsts   for each page its number; which blocks it has (a bit each) and the flags below; its first block
    slots                   a hash of the pages below 2^32 (TACs, IMSIs): number, first block, bits, place among the pages plus one
    offsets, lows           for each block, which is 2^16 keys of a page, where its keys begin; the lower 16 bits of all keys
    end_pages, end_starts, ends    the pages with rows that end, where theirs begin, and for each row when (0: it does not)
    tac_pages, tac_ends     pages that are listed whole until a time, and that time
    pair_ends, imsis        pairs: for each device the position behind its last IMSI (nothing if each has one), and all IMSIs
"""

import os
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from struct import Struct
from typing import Final

import numpy as np

from eir.lists.images.chunks import BLOCK_BITS, BLOCKS, ENDS, WHOLE, WHOLE_UNTIL, Chunk, Numbers
from eir.lists.images.memory import MappedFile
from eir.lists.pages.pages import PAGE_KEYS

MAGIC, VERSION = b"EIRIMAGE", 1
HASHED: Final = 1 << 32
"""Pages below this number are in the hash; others (MEIDs with letters) are few."""
SLOT_WORDS, SPREAD, WORD_BITS = 4, 0x9E3779B1, 32
ALIGNED = 64

_DEVICES = (
    ("numbers", "<u8"), ("bits", "<u4"), ("firsts", "<u4"), ("slots", "<u4"), ("offsets", "<u4"), ("lows", "<u2"), ("end_pages", "<u4"),
    ("end_starts", "<u4"), ("ends", "<u4"), ("tac_pages", "<u4"), ("tac_ends", "<u4"), ("pair_ends", "<u4"), ("imsis", "<u8"),
)  # fmt: skip
SECTIONS: Final = (*_DEVICES, *((f"subscriber_{name}", form) for name, form in _DEVICES[:9]))
"""The arrays in order. Lists of pairs have a second set, for their IMSIs; of one IMSI's rows the latest end counts."""
HEADER = Struct("<8sIIQ32x")
"""Magic, version, number of sections, size; the rest is free."""
SECTION = Struct("<QQ")
BODY_AT: Final = -(-(HEADER.size + SECTION.size * len(SECTIONS)) // ALIGNED) * ALIGNED


class ImageError(ValueError):
    """These bytes are not an image that this version can use."""


class _Table:
    """The arrays of devices, or of subscribers, by name; and as Python reads single places of them fastest."""

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
        self.bits, self.firsts, self.slots = arrays["bits"].data, arrays["firsts"].data, arrays["slots"].data
        self.offsets, self.lows, self.ends = arrays["offsets"].data, arrays["lows"].data, arrays["ends"].data
        self.end_pages, self.end_starts = arrays["end_pages"], arrays["end_starts"]
        self.shift = WORD_BITS - (len(self.slots) // SLOT_WORDS).bit_length() + 1

    def page(self, number: int) -> int:
        """The place of a page among the pages; -1 if it is not there."""
        if number >= HASHED:
            place = int(np.searchsorted(self.numbers, np.uint64(number)))
            return place if place < len(self.numbers) and self.numbers[place] == number else -1
        slots, at = self.slots, ((number * SPREAD & 0xFFFFFFFF) >> self.shift) * SLOT_WORDS
        for _ in range(0, len(slots), SLOT_WORDS):  # there are free slots, but in one that is damaged
            if slots[at] == number or not slots[at + 3]:
                return slots[at + 3] - 1
            at = (at + SLOT_WORDS) % len(slots)
        return -1

    def position(self, place: int, remainder: int) -> int:
        """The position of a key among all keys, by the place of its page; -1 if it is not there."""
        upper = remainder >> BLOCK_BITS
        if place < 0 or not (bits := self.bits[place]) >> upper & 1:
            return -1
        offsets, block = self.offsets, self.firsts[place] + (bits & (1 << upper) - 1).bit_count()
        low, end = remainder & 0xFFFF, offsets[block + 1]
        found = bisect_left(self.lows, low, offsets[block], end)
        return found if found < end and self.lows[found] == low else -1

    def keys(self, place: int) -> range:
        """The positions of a page's keys."""
        return range(self.offsets[self.firsts[place]], self.offsets[self.firsts[place + 1]])

    def remainders(self, place: int) -> list[int]:
        """The keys of a page, in ascending order."""
        bits, block, found = self.bits[place] & BLOCKS, self.firsts[place], list[int]()
        for upper in range(BLOCK_BITS):
            if bits >> upper & 1:
                found += [upper << BLOCK_BITS | low for low in self.lows[self.offsets[block] : self.offsets[block + 1]]]
                block += 1
        return found

    def ends_of(self, place: int) -> "memoryview | None":
        """The ends of the rows of a page; None if no row ends."""
        if not self.bits[place] & ENDS:
            return None
        at = int(np.searchsorted(self.end_pages, place))
        return self.ends[self.end_starts[at] : self.end_starts[at + 1]]


class Image:
    """The keys of a list, mapped. Keys and IMSIs are those of eir.device; `now` is in Unix seconds.

    Whatever an image's bytes say, nothing is read outside of it; `map` refuses what cannot be one.
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
    )

    def __init__(self, mapped: MappedFile, arrays: Mapping[str, Numbers], descriptor: int) -> None:
        self._map = mapped
        self.descriptor = descriptor
        """The memory file, to be handed on; closed with the image."""
        self.buffer = mapped.buffer
        """All of it."""
        self._devices = _Table(arrays)
        self._subscribers = _Table(
            {
                name.removeprefix("subscriber_"): values
                for name, values in arrays.items()
                if name.startswith("subscriber_")
            }
        )
        self._pair_ends, self._imsis = arrays["pair_ends"].data, arrays["imsis"].data
        self._tac_pages, self._tac_ends = arrays["tac_pages"], arrays["tac_ends"]
        self.numbers = self._devices.numbers
        """The numbers of all pages, in ascending order."""

    def __del__(self) -> None:
        os.close(self.descriptor)

    def fileno(self) -> int:
        """The descriptor, for handing the image on."""
        return self.descriptor

    @classmethod
    def map(cls, descriptor: int) -> "Image":
        """The image in a memory file, whose descriptor is the image's from now on. Raises ImageError, and OSError."""
        try:
            mapped, arrays = _mapped(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        return cls(mapped, arrays, descriptor)

    @property
    def lane_arrays(self) -> tuple[memoryview, memoryview, memoryview]:
        """Arrays for a compiled look-up: `slots`, `offsets` and `lows` of the devices, or of a list's subscribers."""
        return self._devices.slots, self._devices.offsets, self._devices.lows

    @property
    def has_pairs(self) -> bool:
        """Its devices are listed with IMSIs."""
        return bool(len(self._imsis))

    @property
    def has_ends(self) -> bool:
        """Some of its rows end."""
        return bool(len(self._devices.ends) or len(self._tac_ends))

    def holds(self, key: int, now: float) -> bool:
        """True if a row with this key is in force."""
        number, remainder = divmod(key, PAGE_KEYS)
        table = self._devices
        if (place := table.page(number)) < 0:
            return False
        bits = table.bits[place]
        if bits & WHOLE or (bits & WHOLE_UNTIL and self._tac_ends[np.searchsorted(self._tac_pages, place)] > now):
            return True
        position = table.position(place, remainder)
        return position >= 0 and (
            not bits & ENDS or any(not end or end > now for end in self._ends(place, self._rows(position)))
        )

    def imsis(self, key: int, now: float) -> tuple[int, ...]:
        """The IMSIs of the rows with this device that are in force."""
        place = self._devices.page(key // PAGE_KEYS)
        position = self._devices.position(place, key % PAGE_KEYS)
        if position < 0 or not len(self._imsis):
            return ()
        rows = self._rows(position)
        bound = zip(self._imsis[rows.start : rows.stop], self._ends(place, rows), strict=True)
        return tuple(imsi for imsi, end in bound if not end or end > now)

    def has_subscriber(self, imsi: int, now: float) -> bool:
        """True if a row with this IMSI is in force."""
        table = self._subscribers
        place = table.page(imsi // PAGE_KEYS)
        position = table.position(place, imsi % PAGE_KEYS)
        if position < 0 or (ends := table.ends_of(place)) is None:
            return position >= 0
        end = ends[position - table.keys(place).start]
        return not end or end > now

    def keys(self, now: float) -> Iterator[int]:
        """All keys in ascending order that a row in force has."""
        for place, number in enumerate(self.numbers.tolist()):
            bits = self._devices.bits[place]
            ended = bits & WHOLE_UNTIL and self._tac_ends[np.searchsorted(self._tac_pages, place)] <= now
            every = bits & WHOLE or (bits & WHOLE_UNTIL and not ended)
            remainders: Iterable[int] = range(PAGE_KEYS) if every else self._devices.remainders(place)
            base = number * PAGE_KEYS
            yield from (base + each for each in remainders if every or not bits & ENDS or self.holds(base + each, now))

    def chunk(self) -> Chunk:
        """All of it as one chunk, for another image that is made of this one."""
        of, pair_ends, imsis = self._devices.arrays, np.asarray(self._pair_ends), np.asarray(self._imsis)
        counts = np.diff(pair_ends, prepend=np.uint32(0)) if len(pair_ends) else np.ones(len(imsis), np.uint32)
        return Chunk(
            of["numbers"],
            of["bits"],
            np.diff(of["offsets"]),
            of["lows"],
            np.diff(of["end_starts"]),
            of["ends"],
            self._tac_ends,
            counts,
            imsis,
        )

    def drop(self, done: int) -> int:
        """Give back a part of the mapping's memory, from byte `done` on, and return up to where it is: nobody asks this image any more."""
        return self._map.drop(done)

    def _rows(self, position: int) -> range:
        """The rows of a key: one, or in a list of pairs one for each of its IMSIs."""
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


def _mapped(descriptor: int) -> tuple[MappedFile, dict[str, Numbers]]:
    """See Image.map."""
    size = os.fstat(descriptor).st_size
    if size < BODY_AT:
        raise ImageError(f"an image of {size} bytes is cut short")
    mapped = MappedFile(descriptor)
    return mapped, _arrays(mapped.buffer)


def _arrays(image: memoryview) -> dict[str, Numbers]:
    """The arrays of an image, once they agree with one another. Raises ImageError."""
    magic, version, count, said = HEADER.unpack_from(image)
    if (magic, version, count) != (MAGIC, VERSION, len(SECTIONS)):
        raise ImageError(
            f"an image of version {version}; this program has {VERSION}" if magic == MAGIC else "no image of a list"
        )
    if said != (size := len(image)):
        raise ImageError(f"an image of {said} bytes has {size}: it is cut short")
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
        _prove_sizes({name: arrays[prefix + name] for name, _ in _DEVICES[:9]})
    if len(arrays["tac_pages"]) != len(arrays["tac_ends"]):
        raise ImageError("the ends of an image's TACs are damaged")
    rows = len(arrays["lows"])
    if len(arrays["pair_ends"]) not in {0, rows} or (
        len(arrays["pair_ends"]) and arrays["pair_ends"][-1] != len(arrays["imsis"])
    ):
        raise ImageError("the pairs of an image are damaged")
    return arrays


def _prove_sizes(of: Mapping[str, Numbers]) -> None:
    pages, blocks, slots = len(of["numbers"]), len(of["offsets"]) - 1, len(of["slots"]) // SLOT_WORDS
    sizes = (
        len(of["bits"]),
        len(of["firsts"]) - 1,
        int(of["firsts"][-1]) if len(of["firsts"]) else -1,
        int(of["offsets"][-1]) if blocks >= 0 else -1,
    )
    if (
        sizes != (pages, pages, blocks, len(of["lows"]))
        or slots & slots - 1
        or slots <= pages
        or len(of["slots"]) % SLOT_WORDS
    ):
        raise ImageError("the sizes of an image's arrays do not fit one another")
    if len(of["end_starts"]) != len(of["end_pages"]) + 1 or of["end_starts"][-1] != len(of["ends"]):
        raise ImageError("the ends of an image are damaged")

"""The forms in which a page's keys are held in memory. May import numpy and pyroaring; knows no list, store or loop.

Each page has the cheapest form whose search is fast:

- under TRIPLE_KEYS keys three bytes for each key (big-endian, with TRIPLE_MARK, which tells them from the next form).
- up to ARRAY_KEYS keys the lower halves of all keys (little-endian, 2 bytes each), behind an index that says where those of
  each upper half begin (INDEX_WORDS offsets of 2 bytes, little-endian, the last one being the end): a look-up reads two places.
- above, a Roaring bitmap.
- a million keys, and a whole TAC: one shared `range`.

None of them is an object that the garbage collector walks; bytes are searched in C.

Roaring's portable format without runs, in which lists are stored: cookie (4 bytes), number of containers (4), for each container
its upper half and its size less one (2 and 2), for each its offset (4), then the lower halves (2 each). All of it is
little-endian.
"""

from collections.abc import Sequence
from itertools import pairwise
from struct import Struct
from typing import Final

import numpy as np
import numpy.typing as npt
from pyroaring import BitMap

from eir.lists.pages import PAGE_KEYS, decode_keys

TRIPLE_KEYS = 64
"""Keys from which an index is worth its bytes: below, one search through all of a page is as fast."""
TRIPLE_BYTES, TRIPLE_MARK = 3, 0xF00000
"""A key has 20 bits: the other four are set, so that a page in triples begins with a byte that no index begins with."""
TRIPLE_BEGINS: Final = TRIPLE_MARK >> 16
ARRAY_KEYS = 4096
"""Keys to which every container is an array, whatever they are (Roaring's own limit for one container)."""
WHOLE: Final = range(PAGE_KEYS)
COOKIE = (12346).to_bytes(4, "little")
"""How a page of array and bitset containers, without runs, begins."""
HEAD_BYTES, CONTAINER_BYTES, LOW_BYTES = 8, 8, 2
"""Of the cookie and the number of containers; of what is said of a container; of a lower half."""
CONTAINERS_MAX = 16
"""Containers of 2^16 keys each that a page's 10^6 keys can lie in."""
INDEX_WORDS: Final = CONTAINERS_MAX + 1
INDEX_BYTES: Final = 2 * INDEX_WORDS
NOT_ARRAYS = "a page is not made of arrays"
BEYOND = "a page has keys beyond its million"

_UPPER_HALVES: Final = np.arange(INDEX_WORDS, dtype="<u4") << np.uint32(16)
_OFFSETS: Final = (INDEX_BYTES + LOW_BYTES * np.arange(ARRAY_KEYS + 1)).astype("<u2")
"""Where in a page with an index a key is, by its position."""
_between = Struct("<HH").unpack_from
_low = Struct("<H").pack

Held = bytes | BitMap | range
Keys = npt.NDArray[np.uint32]
Counts = npt.NDArray[np.int64]


def hold(stored: bytes) -> Held | None:
    """The form in which a page's keys are held, out of their stored form; None if there are none.

    Raises ValueError if they are damaged.
    """
    return hold_bitmap(decode_keys(stored))


def hold_bitmap(bitmap: BitMap) -> Held | None:
    """As hold, out of a bitmap."""
    if not (count := len(bitmap)):
        return None
    if bitmap.max() >= PAGE_KEYS:
        raise ValueError(BEYOND)
    if count > ARRAY_KEYS:
        return WHOLE if count == PAGE_KEYS else bitmap
    keys = np.frombuffer(bitmap.to_array(), "<u4")
    if count < TRIPLE_KEYS:
        return _triples(keys)
    return _OFFSETS[keys.searchsorted(_UPPER_HALVES)].tobytes() + keys.view("<u2")[::2].tobytes()


def may_be_arrays(stored: bytes) -> bool:
    """True if these keys may have the form that hold_arrays takes, and are no more than ARRAY_KEYS."""
    if stored[:4] != COOKIE or len(stored) < HEAD_BYTES:
        return False
    return len(stored) <= HEAD_BYTES + CONTAINER_BYTES * stored[4] + LOW_BYTES * ARRAY_KEYS


def hold_arrays(stored: Sequence[bytes]) -> list[Held]:
    """As hold for pages that may_be_arrays, all at once: many times as fast as one after another.

    Raises ValueError if one has other containers than arrays, or is damaged.
    """
    arrays = _Arrays(stored)
    counts = arrays.counts.tolist()
    small = [page for page, count in zip(stored, counts, strict=True) if count < TRIPLE_KEYS]
    if len(small) == len(stored):  # as in most lists: nothing to read twice
        return list(_each_in_triples(arrays))
    triples = iter(_each_in_triples(_Arrays(small)) if small else ())
    return [
        index + page[HEAD_BYTES + CONTAINER_BYTES * page[4] :] if count >= TRIPLE_KEYS else next(triples)
        for page, count, index in zip(stored, counts, arrays.indices(), strict=True)
    ]


def read_bytes(pages: Sequence[bytes]) -> tuple[Keys, Counts]:
    """The keys of many pages held as bytes, one page after another in ascending order, and how many each has.

    All have to be in triples, or none of them.
    """
    if in_triples(pages[0]):
        return _keys_of_triples(b"".join(pages)), np.array([len(page) // TRIPLE_BYTES for page in pages])
    indices = np.frombuffer(b"".join([page[:INDEX_BYTES] for page in pages]), "<u2").reshape(-1, INDEX_WORDS)
    lows = np.frombuffer(b"".join([page[INDEX_BYTES:] for page in pages]), "<u2")
    sizes: Counts = (indices[:, 1:] - indices[:, :-1]).astype(np.int64) // LOW_BYTES
    uppers = np.broadcast_to(_UPPER_HALVES[:CONTAINERS_MAX], sizes.shape)
    return lows | np.repeat(uppers.ravel(), sizes.ravel()), sizes.sum(axis=1)


def in_triples(held: bytes) -> bool:
    """True if a page held as bytes has three for each key; else it has an index."""
    return held[0] >= TRIPLE_BEGINS


class _Arrays:
    """Pages of array containers, side by side; `counts` are the keys of each. Raises ValueError if one is not of that form."""

    def __init__(self, stored: Sequence[bytes]) -> None:
        lengths = np.array([len(page) for page in stored])
        if (lengths % 2).any():
            raise ValueError(NOT_ARRAYS)
        self._words = words = np.frombuffer(b"".join(stored), dtype="<u2")
        starts = np.cumsum(lengths // 2) - lengths // 2
        containers = words[starts + 2].astype(np.int64)
        self.counts: Counts = (lengths - HEAD_BYTES - CONTAINER_BYTES * containers) // 2
        if (
            (self.counts < 1).any()
            or (containers < 1).any()
            or (containers > CONTAINERS_MAX).any()
            or words[starts + 3].any()
        ):
            raise ValueError(NOT_ARRAYS)
        self._starts, self._containers = starts, containers
        firsts = np.cumsum(containers) - containers
        position = np.arange(firsts[-1] + containers[-1]) - np.repeat(firsts, containers)
        at = np.repeat(starts + HEAD_BYTES // 2, containers) + 2 * position
        self._uppers = words[at]
        self._sizes = words[at + 1].astype(np.int64) + 1
        rising = self._uppers[1:] > self._uppers[:-1]
        rising[firsts[1:] - 1] = True  # from page to page
        if (np.add.reduceat(self._sizes, firsts) != self.counts).any() or not rising.all():
            raise ValueError(NOT_ARRAYS)
        last = self._uppers[firsts + containers - 1].astype(np.int64) << 16 | words[starts + lengths // 2 - 1]
        if (last >= PAGE_KEYS).any():
            raise ValueError(BEYOND)

    def indices(self) -> list[bytes]:
        """The index of each page as it is held."""
        pages = len(self.counts)
        sizes = np.zeros((pages, INDEX_WORDS), np.int64)
        sizes[np.repeat(np.arange(pages), self._containers), self._uppers + 1] = self._sizes
        indices = _OFFSETS[sizes.cumsum(axis=1)].tobytes()
        return [indices[at : at + INDEX_BYTES] for at in range(0, len(indices), INDEX_BYTES)]

    def keys(self) -> Keys:
        """All keys, page after page."""
        ends = np.cumsum(self.counts)
        keys_at = self._starts + HEAD_BYTES // 2 + CONTAINER_BYTES // 2 * self._containers
        lows = self._words[np.arange(ends[-1]) + np.repeat(keys_at - (ends - self.counts), self.counts)]
        keys: Keys = lows | np.repeat(self._uppers.astype("<u4") << 16, self._sizes)
        return keys


def _each_in_triples(arrays: _Arrays) -> list[bytes]:
    ends = (TRIPLE_BYTES * np.cumsum(arrays.counts)).tolist()
    together = _triples(arrays.keys())
    return [together[start:end] for start, end in pairwise([0, *ends])]


def _triples(keys: Keys) -> bytes:
    return (keys | np.uint32(TRIPLE_MARK)).astype(">u4").view(np.uint8).reshape(-1, 4)[:, 1:].tobytes()


def _keys_of_triples(held: bytes) -> Keys:
    triples = np.frombuffer(held, dtype=np.uint8).reshape(-1, TRIPLE_BYTES).astype("<u4")
    keys: Keys = (triples[:, 0] << 16 | triples[:, 1] << 8 | triples[:, 2]) ^ TRIPLE_MARK
    return keys


def find_in_bytes(held: bytes, remainder: int) -> int:
    """The offset of a key in a page held as bytes; -1 if it is not in it."""
    if held[0] >= TRIPLE_BEGINS:  # as in_triples, without a call
        triple = (remainder | TRIPLE_MARK).to_bytes(TRIPLE_BYTES, "big")
        found = held.find(triple)
        while found > 0 and found % TRIPLE_BYTES:  # across two keys
            found = held.find(triple, found + 1)
        return found
    start, end = _between(held, remainder >> 16 << 1)
    low = _low(remainder & 0xFFFF)
    found = held.find(low, start, end)
    while found > 0 and found & 1:  # across two keys
        found = held.find(low, found + 1, end)
    return found


def rank(held: Held, remainder: int) -> int:
    """The position of a key among the keys of its page; -1 if it is not in it."""
    if isinstance(held, bytes):
        found = find_in_bytes(held, remainder)
        if found < 0 or in_triples(held):
            return found // TRIPLE_BYTES  # -1 stays -1
        return (found - INDEX_BYTES) // LOW_BYTES
    if remainder not in held:
        return -1
    return remainder if isinstance(held, range) else held.rank(remainder) - 1


def held_keys(held: Held) -> Keys:
    """The keys of a held page in ascending order."""
    if isinstance(held, bytes):
        return read_bytes([held])[0]
    if isinstance(held, range):
        return np.arange(PAGE_KEYS, dtype="<u4")
    return np.frombuffer(held.to_array(), dtype="<u4")


def held_count(held: Held) -> int:
    """How many keys a held page has."""
    if not isinstance(held, bytes):
        return len(held)
    return len(held) // TRIPLE_BYTES if in_triples(held) else (len(held) - INDEX_BYTES) // LOW_BYTES

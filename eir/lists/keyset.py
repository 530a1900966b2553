"""The forms in which a page's keys are held in memory. May import numpy, pyroaring, lists.pages, lists.roaring; knows no list.

Each page has the cheapest form whose search is fast:

- under TRIPLE_KEYS keys three bytes for each key (big-endian, with TRIPLE_MARK, which tells them from the next form).
- up to ARRAY_KEYS keys the lower halves of all keys (little-endian, 2 bytes each), behind an index that says where those of
  each upper half begin (INDEX_WORDS offsets of 2 bytes, little-endian, the last one being the end): a look-up reads two places.
- above, a Roaring bitmap.
- a million keys, and a whole TAC: one shared `range`.

None of them is an object that the garbage collector walks; bytes are searched in C.
"""

from collections.abc import Sequence
from itertools import pairwise
from struct import Struct
from typing import Final

import numpy as np
import numpy.typing as npt
from pyroaring import BitMap

from eir.lists.pages import PAGE_KEYS
from eir.lists.roaring import ARRAY_KEYS, BEYOND, CONTAINERS_MAX, ArrayPages, decode_keys, lower_halves

TRIPLE_KEYS = 64
"""Keys from which an index is worth its bytes: below, one search through all of a page is as fast."""
TRIPLE_BYTES, TRIPLE_MARK = 3, 0xF00000
"""A key has 20 bits: the other four are set, so that a page in triples begins with a byte that no index begins with."""
TRIPLE_BEGINS: Final = TRIPLE_MARK >> 16
WHOLE: Final = range(PAGE_KEYS)
LOW_BYTES = 2  # of a lower half
INDEX_WORDS: Final = CONTAINERS_MAX + 1
INDEX_BYTES: Final = 2 * INDEX_WORDS

_UPPER_HALVES: Final = np.arange(INDEX_WORDS, dtype="<u4") << np.uint32(16)
_OFFSETS: Final = (INDEX_BYTES + LOW_BYTES * np.arange(ARRAY_KEYS + 1)).astype("<u2")
"""Where in a page with an index a key is, by its position."""
_between = Struct("<HH").unpack_from
_low = Struct("<H").pack

KeySet = bytes | BitMap | range
Keys = npt.NDArray[np.uint32]
Counts = npt.NDArray[np.int64]


def hold(stored: bytes) -> KeySet | None:
    """The form in which a page's keys are held; None for a page without keys. Raises ValueError if they are damaged."""
    return hold_bitmap(decode_keys(stored))


def hold_bitmap(bitmap: BitMap) -> KeySet | None:
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


def hold_arrays(stored: Sequence[bytes]) -> list[KeySet]:
    """As hold, many times as fast, for pages that roaring.may_be_arrays. Raises ValueError if one is not, or is damaged."""
    arrays = ArrayPages(stored)
    counts = arrays.counts.tolist()
    small = [page for page, count in zip(stored, counts, strict=True) if count < TRIPLE_KEYS]
    if len(small) == len(stored):  # as in most lists: nothing to read twice
        return list(_each_in_triples(arrays))
    triples = iter(_each_in_triples(ArrayPages(small)) if small else ())
    indices = _OFFSETS[arrays.below()].tobytes()
    return [
        indices[at : at + INDEX_BYTES] + lower_halves(page) if count >= TRIPLE_KEYS else next(triples)
        for page, count, at in zip(stored, counts, range(0, len(indices), INDEX_BYTES), strict=True)
    ]


def read_bytes(pages: Sequence[bytes]) -> tuple[Keys, Counts]:
    """The keys of many pages held as bytes (all in triples, or none) in ascending order, and how many each page has."""
    if in_triples(pages[0]):
        triples = np.frombuffer(b"".join(pages), dtype=np.uint8).reshape(-1, TRIPLE_BYTES).astype("<u4")
        keys: Keys = (triples[:, 0] << 16 | triples[:, 1] << 8 | triples[:, 2]) ^ TRIPLE_MARK
        return keys, np.array([len(page) // TRIPLE_BYTES for page in pages])
    indices = np.frombuffer(b"".join([page[:INDEX_BYTES] for page in pages]), "<u2").reshape(-1, INDEX_WORDS)
    lows = np.frombuffer(b"".join([page[INDEX_BYTES:] for page in pages]), "<u2")
    sizes: Counts = (indices[:, 1:] - indices[:, :-1]).astype(np.int64) // LOW_BYTES
    uppers = np.broadcast_to(_UPPER_HALVES[:CONTAINERS_MAX], sizes.shape)
    return lows | np.repeat(uppers.ravel(), sizes.ravel()), sizes.sum(axis=1)


def in_triples(held: bytes) -> bool:
    """True if a page held as bytes has three for each key; else it has an index."""
    return held[0] >= TRIPLE_BEGINS


def _each_in_triples(arrays: ArrayPages) -> list[bytes]:
    ends = (TRIPLE_BYTES * np.cumsum(arrays.counts)).tolist()
    together = _triples(arrays.keys())
    return [together[start:end] for start, end in pairwise([0, *ends])]


def _triples(keys: Keys) -> bytes:
    return (keys | np.uint32(TRIPLE_MARK)).astype(">u4").view(np.uint8).reshape(-1, 4)[:, 1:].tobytes()


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


def rank(held: KeySet, remainder: int) -> int:
    """The position of a key among the keys of its page; -1 if it is not in it."""
    if isinstance(held, bytes):
        found = find_in_bytes(held, remainder)
        if found < 0 or in_triples(held):
            return found // TRIPLE_BYTES  # -1 stays -1
        return (found - INDEX_BYTES) // LOW_BYTES
    if remainder not in held:
        return -1
    return remainder if isinstance(held, range) else held.rank(remainder) - 1


def keys_of(held: KeySet) -> Keys:
    """The keys of a held page in ascending order."""
    if isinstance(held, bytes):
        return read_bytes([held])[0]
    if isinstance(held, range):
        return np.arange(PAGE_KEYS, dtype="<u4")
    return np.frombuffer(held.to_array(), dtype="<u4")


def count_of(held: KeySet) -> int:
    """How many keys a held page has."""
    if not isinstance(held, bytes):
        return len(held)
    return len(held) // TRIPLE_BYTES if in_triples(held) else (len(held) - INDEX_BYTES) // LOW_BYTES

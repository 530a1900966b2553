"""Encoder and decoder of the portable Roaring format, in which a page stores its keys.

CRoaring encodes and decodes one bitmap at a time. A list can have hundreds of thousands of pages, most of them small and
made of array containers only; numpy encodes and decodes many of these together. Both ways must give the same bytes because
the content digest covers them (verified by tests/lists/rows/test_build.py).

A bitmap of array containers ("no run containers" in RoaringFormatSpec) has, in units of two bytes, little-endian: the
cookie (2 units) and the number of containers (2); for each container its upper half (1) and its size less one (1); for each
container the byte at which its keys begin (2); the lower halves of all keys (1 each).
"""

import array
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap

from eir.lists.pages.pages import PAGE_KEYS

Indexes = NDArray[np.int64]
Remainders = NDArray[np.uint32]
"""Keys of pages modulo PAGE_KEYS."""

ARRAY_KEYS = 4096
"""Maximum number of keys of an array container, unless runs are shorter; a page with at most so many has no bitset container."""
CONTAINERS_MAX = 16
"""Maximum number of containers of a page: 10^6 keys in containers of 2^16."""
NOT_ARRAYS = "a page is not made of arrays"
BEYOND = "a page has keys beyond its million"

_COOKIE = (12346).to_bytes(4, "little")
"""First bytes of a bitmap of array and bitset containers without runs."""
_HEADS = [_COOKIE + containers.to_bytes(4, "little") for containers in range(CONTAINERS_MAX + 1)]
_HEAD, _CONTAINER = 4, 4
"""Sizes in units of two bytes: of the cookie with the number of containers, and of the head of one container."""


def encode_keys(bitmap: BitMap) -> bytes:
    """Encode a set of keys in its canonical form: run-optimised, in the portable format.

    Only the bitmap's internal form changes.
    """
    bitmap.run_optimize()
    return bytes(bitmap.serialize())


def decode_keys(stored: bytes) -> BitMap:
    """Decode the keys of a page. No bytes decode to an empty set.

    Raises:
        ValueError: if the bytes are not a Roaring bitmap.
    """
    return BitMap.deserialize(stored) if stored else BitMap()


def encode_sorted(low: Remainders) -> bytes:
    """Encode the keys of one page (in ascending order, at least one) in the canonical form."""
    keys = array.array("I")
    keys.frombytes(low.tobytes())
    return encode_keys(BitMap(keys))


def is_fresh(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Return a mask of the values that differ from the previous value; the first is True.

    There must be at least one value, and values must be sorted.
    """
    fresh = np.empty(len(values), bool)
    fresh[0] = True
    np.not_equal(values[1:], values[:-1], out=fresh[1:])
    return fresh


def encode_many(low: Remainders, starts: Indexes, sizes: Indexes) -> list[bytes]:
    """Encode the keys of many pages in the canonical form.

    The keys of page i are `low[starts[i]:starts[i] + sizes[i]]`.
    """
    high = low >> np.uint32(16)
    fresh = is_fresh(high)
    fresh[starts] = True
    containers = np.flatnonzero(fresh)
    counts = np.diff(containers, append=len(low))
    adjacent = np.flatnonzero((low[1:] - low[:-1] == 1) & ~fresh[1:]) + 1
    joined = np.bincount(np.searchsorted(containers, adjacent, side="right") - 1, minlength=len(containers))
    first_of_page = np.searchsorted(containers, starts)
    per_page = np.diff(first_of_page, append=len(containers))
    # CRoaring stores a container as an array if it has at most 4096 keys and runs would not be shorter.
    plain = np.logical_and.reduceat((counts <= ARRAY_KEYS) & (2 * (counts - joined) >= counts), first_of_page)
    described = np.stack((high[containers], counts - 1), axis=1).astype("<u2").tobytes()
    begins = 2 * (containers - np.repeat(starts - _HEAD - _CONTAINER * per_page, per_page)).astype("<u4")
    offsets, lows = begins.tobytes(), low.astype("<u2").tobytes()
    columns = (plain, starts, starts + sizes, first_of_page, first_of_page + per_page)
    return [
        b"".join(
            (_HEADS[until - of], described[4 * of : 4 * until], offsets[4 * of : 4 * until], lows[2 * first : 2 * last])
        )
        if is_plain
        else encode_sorted(low[first:last])
        for is_plain, first, last, of, until in zip(*(column.tolist() for column in columns), strict=True)
    ]


def may_be_arrays(stored: bytes) -> bool:
    """Return True if a page's stored keys seem to have the form that ArrayPages decodes. ArrayPages verifies it."""
    if stored[:4] != _COOKIE or len(stored) < 2 * _HEAD:
        return False
    return len(stored) <= 2 * (_HEAD + _CONTAINER * stored[4] + ARRAY_KEYS)


class ArrayPages:
    """Decoder for the keys of many pages at once, which must consist of array containers.

    Raises:
        ValueError: if a page has another form or is damaged.
    """

    def __init__(self, stored: Sequence[bytes]) -> None:
        lengths = np.array([len(page) for page in stored])
        if (lengths % 2).any():
            raise ValueError(NOT_ARRAYS)
        self._words = words = np.frombuffer(b"".join(stored), dtype="<u2")
        starts = np.cumsum(lengths // 2) - lengths // 2
        containers = words[starts + 2].astype(np.int64)
        self.counts: Indexes = lengths // 2 - _HEAD - _CONTAINER * containers  # keys of each page
        fits = (self.counts > 0) & (containers > 0) & (containers <= CONTAINERS_MAX) & (words[starts + 3] == 0)
        if not fits.all():
            raise ValueError(NOT_ARRAYS)
        self._starts, self._containers = starts, containers
        firsts = np.cumsum(containers) - containers
        position = np.arange(firsts[-1] + containers[-1]) - np.repeat(firsts, containers)
        at = np.repeat(starts + _HEAD, containers) + 2 * position
        self._uppers = words[at]
        self._sizes = words[at + 1].astype(np.int64) + 1
        rising = self._uppers[1:] > self._uppers[:-1]
        rising[firsts[1:] - 1] = True  # from page to page
        if (np.add.reduceat(self._sizes, firsts) != self.counts).any() or not rising.all():
            raise ValueError(NOT_ARRAYS)
        last = self._uppers[firsts + containers - 1].astype(np.int64) << 16 | words[starts + lengths // 2 - 1]
        if (last >= PAGE_KEYS).any():
            raise ValueError(BEYOND)

    def keys(self) -> Remainders:
        """Return the keys of all pages, one page after the other."""
        ends = np.cumsum(self.counts)
        keys_at = self._starts + _HEAD + _CONTAINER * self._containers
        lows = self._words[np.arange(ends[-1]) + np.repeat(keys_at - (ends - self.counts), self.counts)]
        keys: Remainders = lows | np.repeat(self._uppers.astype("<u4") << 16, self._sizes)
        return keys

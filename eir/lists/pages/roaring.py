"""Encoder and decoder of Roaring bitmaps in the portable format, in which a page stores its keys.

CRoaring encodes and decodes one bitmap at a time. A list can have hundreds of thousands of pages, most of them small and
made of array containers only; numpy encodes and decodes many of these together. CRoaring and numpy must produce the same bytes,
because the content digest covers them (verified by tests/lists/rows/test_build.py).

A bitmap of array containers ("no run containers" in RoaringFormatSpec) consists of little-endian units of two bytes: the cookie
(2 units); the number of containers (2); for each container the upper 16 bits of its keys (1) and its number of keys less one (1);
for each container the offset of its keys in bytes (2); the lower 16 bits of all keys (1 each).
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
"""Maximum number of keys of an array container. A container with more keys is a bitset, or runs if these are shorter."""
CONTAINERS_MAX = 16
"""Maximum number of containers of a page: 10^6 keys in containers of 2^16."""
NOT_ARRAYS = "a page is not made of arrays"
BEYOND = "a page has keys beyond its million"

_COOKIE = (12346).to_bytes(4, "little")
"""First bytes of a bitmap without runs: its containers are arrays and bitsets."""
_HEADS = [_COOKIE + containers.to_bytes(4, "little") for containers in range(CONTAINERS_MAX + 1)]
_HEAD, _CONTAINER = 4, 4
"""Units of two bytes of the cookie with the number of containers, and of each container's header."""


def encode_keys(bitmap: BitMap) -> bytes:
    """Encode a bitmap of keys in the canonical form: portable format, run-optimised.

    Only the bitmap's internal form changes.
    """
    bitmap.run_optimize()
    return bytes(bitmap.serialize())


def decode_keys(stored: bytes) -> BitMap:
    """Decode the stored keys of a page to a bitmap. Empty bytes become an empty set.

    Raises:
        ValueError: if the bytes are not a Roaring bitmap.
    """
    return BitMap.deserialize(stored) if stored else BitMap()


def encode_sorted(low: Remainders) -> bytes:
    """Encode the ascending keys of one page (at least one) in the canonical form."""
    keys = array.array("I")
    keys.frombytes(low.tobytes())
    return encode_keys(BitMap(keys))


def is_fresh(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Return a mask of the values that differ from the value before them; the first value counts as different.

    There must be at least one value, and values must be sorted.
    """
    fresh = np.empty(len(values), bool)
    fresh[0] = True
    np.not_equal(values[1:], values[:-1], out=fresh[1:])
    return fresh


def encode_many(low: Remainders, starts: Indexes, sizes: Indexes) -> list[bytes]:
    """Encode the keys of many pages, each in the canonical form.

    The keys of page i are `low[starts[i]:starts[i] + sizes[i]]`.
    """
    high = low >> np.uint32(16)
    begins_container = is_fresh(high)
    begins_container[starts] = True
    containers = np.flatnonzero(begins_container)
    counts = np.diff(containers, append=len(low))
    first_of_page = np.searchsorted(containers, starts)
    per_page = np.diff(first_of_page, append=len(containers))
    continues_run = (low[1:] - low[:-1] == 1) & ~begins_container[1:]
    run_keys = np.flatnonzero(continues_run) + 1
    container_of = np.searchsorted(containers, run_keys, side="right") - 1
    run_counts = counts - np.bincount(container_of, minlength=len(containers))
    # CRoaring stores a container as an array if it has at most 4096 keys and runs would not be shorter.
    is_array = (counts <= ARRAY_KEYS) & (2 * run_counts >= counts)
    has_arrays = np.logical_and.reduceat(is_array, first_of_page)
    headers = np.stack((high[containers], counts - 1), axis=1).astype("<u2").tobytes()
    page_starts = np.repeat(starts - _HEAD - _CONTAINER * per_page, per_page)
    offsets = (2 * (containers - page_starts)).astype("<u4").tobytes()
    lows = low.astype("<u2").tobytes()
    columns = (has_arrays, starts, starts + sizes, first_of_page, first_of_page + per_page)
    encoded: list[bytes] = []
    for of_arrays, first, last, at, end in zip(*(column.tolist() for column in columns), strict=True):
        if of_arrays:
            containers_of_page = slice(4 * at, 4 * end)
            parts = (
                _HEADS[end - at],
                headers[containers_of_page],
                offsets[containers_of_page],
                lows[2 * first : 2 * last],
            )
            encoded.append(b"".join(parts))
        else:
            encoded.append(encode_sorted(low[first:last]))
    return encoded


def may_be_arrays(stored: bytes) -> bool:
    """Return False if `ArrayPages` cannot decode the stored keys of a page. This fast check reads only the header and the length.

    After True, `ArrayPages` may still find another form.
    """
    if stored[:4] != _COOKIE or len(stored) < 2 * _HEAD:
        return False
    return len(stored) <= 2 * (_HEAD + _CONTAINER * stored[4] + ARRAY_KEYS)


class ArrayPages:
    """Decoder for the stored keys of many pages at once, if the pages contain only array containers of the Roaring format.

    Raises:
        ValueError: if a page has another form or is damaged.
    """

    def __init__(self, stored: Sequence[bytes]) -> None:
        lengths = np.array([len(page) for page in stored])
        if (lengths % 2).any():
            raise ValueError(NOT_ARRAYS)
        words = np.frombuffer(b"".join(stored), dtype="<u2")
        units = lengths // 2
        starts = np.cumsum(units) - units
        containers = words[starts + 2].astype(np.int64)
        self.counts: Indexes = units - _HEAD - _CONTAINER * containers
        """Number of keys of each page."""
        has_containers = (containers > 0) & (containers <= CONTAINERS_MAX) & (words[starts + 3] == 0)
        if not (has_containers & (self.counts > 0)).all():
            raise ValueError(NOT_ARRAYS)
        self._words = words
        self._starts = starts
        self._containers = containers
        firsts = np.cumsum(containers) - containers
        positions = np.arange(firsts[-1] + containers[-1]) - np.repeat(firsts, containers)
        headers = np.repeat(starts + _HEAD, containers) + 2 * positions
        self._uppers = words[headers]
        self._sizes = words[headers + 1].astype(np.int64) + 1
        is_ascending = self._uppers[1:] > self._uppers[:-1]
        is_ascending[firsts[1:] - 1] = True  # the first container of the next page
        has_counts = np.add.reduceat(self._sizes, firsts) == self.counts
        if not has_counts.all() or not is_ascending.all():
            raise ValueError(NOT_ARRAYS)
        last_uppers = self._uppers[firsts + containers - 1].astype(np.int64)
        last_keys = last_uppers << 16 | words[starts + units - 1]
        if (last_keys >= PAGE_KEYS).any():
            raise ValueError(BEYOND)

    def keys(self) -> Remainders:
        """Return the keys of all pages in one array, one page after the other."""
        ends = np.cumsum(self.counts)
        begins = ends - self.counts
        keys_at = self._starts + _HEAD + _CONTAINER * self._containers
        units = np.arange(ends[-1]) + np.repeat(keys_at - begins, self.counts)
        uppers = np.repeat(self._uppers.astype("<u4") << 16, self._sizes)
        keys: Remainders = self._words[units] | uppers
        return keys

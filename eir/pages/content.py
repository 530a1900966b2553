"""The content of a page as arrays: a page unfolded, and folded again to its one canonical form."""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import repeat
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from eir.pages.pages import PAGE_KEYS, Page, Sections, TacEntry, decode_sections
from eir.pages.roaring import Indexes, Remainders, decode_keys, encode_sorted, is_fresh

Keys: TypeAlias = NDArray[np.uint64]
ReasonIndexes: TypeAlias = NDArray[np.uint8]
Seconds: TypeAlias = NDArray[np.int64]
"""Unix seconds at which entries end; 0: they do not."""

_EXACT_QUOTIENTS = np.uint64(1 << 52)


class Content(NamedTuple):
    """A page: the remainders listed on their own, in order, what was said of each, and the TAC if it is listed."""

    low: Remainders
    reasons: ReasonIndexes
    until: Seconds
    """All 0 in lists of pairs, where SIMs have ends and not devices."""
    tac: TacEntry | None = None


def decode(page: Page) -> Content:
    """The page unfolded. Raises ValueError if it is damaged."""
    low = np.frombuffer(decode_keys(page.keys).to_array(), np.uint32)
    reasons, until, imsis, _ = decode_sections(page.extra)
    ends = each(b"" if imsis else until, np.int64, len(low))
    return Content(low, each(reasons, np.uint8, len(low)), ends, page.tac)


def encode(number: int, content: Content) -> Page:
    """The page of this content."""
    whole = b"" if content.tac is None else content.tac.extra
    if not len(content.low):
        return Page(number, b"", whole)
    start, size = np.zeros(1, np.int64), np.array([len(content.low)])
    return Page(number, encode_sorted(content.low), whole + next(extras(content.reasons, content.until, start, size)))


def sections(values: NDArray[Any], starts: Indexes, sizes: Indexes) -> Iterable[bytes]:
    """Section R, U or D of each of many pages, whose rows have the values from each start on, as many as its size says.

    A section has a value for each row, or one if all rows share it; it is empty if that is 0.
    """
    if not values.any():
        return repeat(b"", len(starts))
    width, raw = values.itemsize, values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
    shared = np.minimum.reduceat(values, starts) == np.maximum.reduceat(values, starts)
    ends = width * (starts + np.where(shared, 1, sizes))
    contents = (raw[first:last] for first, last in zip((width * starts).tolist(), ends.tolist(), strict=True))
    return [content if any(content) else b"" for content in contents]


def each(content: bytes, kind: type[Any], rows: int) -> NDArray[Any]:
    """A value for each row, from the content that `sections` gives. Raises ValueError if there are more or fewer."""
    values = np.frombuffer(content or bytes(8), np.dtype(kind).newbyteorder("<")).astype(kind, copy=False)
    if not content or len(values) == 1:
        return np.full(rows, values[0])
    if len(values) != rows:
        raise ValueError(f"a section has {len(values)} values for {rows} rows")
    return values


def extras(reasons: ReasonIndexes, until: Seconds, starts: Indexes, sizes: Indexes) -> Iterator[bytes]:
    """`extra` of each of many pages, with the arguments of `sections`."""
    if not reasons.any() and not until.any():
        return repeat(b"", len(starts))
    return map(_extra, sections(reasons, starts, sizes), sections(until, starts, sizes))


def _extra(reasons: bytes, until: bytes) -> bytes:
    return _short_extra(reasons, until) if len(reasons) < 2 and len(until) < 9 else Sections(reasons, until).encode()


@lru_cache(maxsize=1024)
def _short_extra(reasons: bytes, until: bytes) -> bytes:
    return Sections(reasons, until).encode()


def split(keys: Keys) -> tuple[Keys, Remainders, Indexes, Indexes]:
    """Sorted keys, one at least, cut into pages: page numbers, remainders, where each page begins in them, and its size.

    Doubles are divided and converted from and to signed integers several times as fast as unsigned integers are divided.
    Below 2^52 that is exact: a quotient just below a whole number misses it by 10^-6, and is rounded by less than half that.
    """
    if keys[-1] < _EXACT_QUOTIENTS:
        page_of = (keys.view(np.int64) / np.float64(PAGE_KEYS)).astype(np.int64).view(np.uint64)
    else:
        page_of = keys // np.uint64(PAGE_KEYS)
    # The remainder is below 2^32, so arithmetic modulo 2^32 gives it.
    low = keys.astype(np.uint32) - page_of.astype(np.uint32) * np.uint32(PAGE_KEYS)
    starts = np.flatnonzero(is_fresh(page_of))
    return page_of[starts], low, starts, np.diff(starts, append=len(keys))


def endless(until: Seconds) -> Seconds:
    """Ends that compare: no end is the latest."""
    return np.where(until == 0, np.iinfo(np.int64).max, until)

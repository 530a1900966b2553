"""What a page says, as arrays: a page unfolded, and folded again to its one canonical form.

May import numpy, pyroaring, lists.pages and lists.roaring; knows no store and no layout.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from eir.lists.pages import PAGE_KEYS, Page, Sections, TacEntry, decode_sections
from eir.lists.roaring import Indexes, Remainders, decode_keys, encode_sorted, is_fresh

Keys: TypeAlias = NDArray[np.uint64]
ReasonIndexes: TypeAlias = NDArray[np.uint8]
Seconds: TypeAlias = NDArray[np.int64]
"""Unix seconds at which entries end; 0: they do not."""

_PAGE = np.uint64(PAGE_KEYS)
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
    reasons, until, imsis = decode_sections(page.extra)
    ends = each(b"" if imsis else until, np.int64, len(low))
    return Content(low, each(reasons, np.uint8, len(low)), ends, page.tac)


def encode(number: int, content: Content) -> Page:
    """The page of this content."""
    whole = b"" if content.tac is None else content.tac.extra
    if not len(content.low):
        return Page(number, b"", whole)
    return Page(number, encode_sorted(content.low), whole + _extra(content.reasons, content.until))


def section(values: NDArray[Any]) -> bytes:
    """The content of section R or U: a value for each row, or one if all rows share it; empty if that is 0."""
    raw = values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
    one = raw[: values.itemsize]
    if raw != one * len(values):
        return raw
    return one if any(one) else b""


def each(content: bytes, kind: type[Any], rows: int) -> NDArray[Any]:
    """A value for each of so many rows, out of what `section` gives. Raises ValueError if there are more or fewer."""
    values = np.frombuffer(content or bytes(8), np.dtype(kind).newbyteorder("<")).astype(kind, copy=False)
    if not content or len(values) == 1:
        return np.full(rows, values[0])
    if len(values) != rows:
        raise ValueError(f"a section has {len(values)} values for {rows} rows")
    return values


def extras(reasons: ReasonIndexes, until: Seconds, starts: Indexes, sizes: Indexes) -> Iterator[bytes]:
    """`extra` of each of many pages: reasons and ends from each start on, as many as its size says."""
    shared = np.ones(len(starts), bool)
    for values in (reasons, until):
        shared &= np.minimum.reduceat(values, starts) == np.maximum.reduceat(values, starts)
    columns = (starts, starts + sizes, shared, reasons[starts], until[starts])
    for first, last, is_shared, reason, end in zip(*(column.tolist() for column in columns), strict=True):
        yield _shared_extra(reason, end) if is_shared else _extra(reasons[first:last], until[first:last])


def _extra(reasons: ReasonIndexes, until: Seconds) -> bytes:
    return Sections(section(reasons), section(until)).encode()


@lru_cache(maxsize=1024)
def _shared_extra(reason: int, until: int) -> bytes:
    """`extra` of a page all of whose keys have the same reason and the same end."""
    return _extra(np.array([reason], np.uint8), np.array([until], np.int64))


def split(keys: Keys) -> tuple[Keys, Remainders, Indexes, Indexes]:
    """Sorted keys, one at least, cut into pages: page numbers, remainders, where each page begins in them, and its size.

    Doubles are divided and converted from and to signed integers several times as fast as unsigned integers are divided.
    Below 2^52 that is exact: a quotient just below a whole number misses it by 10^-6, and is rounded by less than half that.
    """
    if keys[-1] < _EXACT_QUOTIENTS:
        page_of = (keys.view(np.int64) / np.float64(PAGE_KEYS)).astype(np.int64).view(np.uint64)
    else:
        page_of = keys // _PAGE
    # The remainder is below 2^32, so arithmetic modulo 2^32 gives it.
    low = keys.astype(np.uint32) - page_of.astype(np.uint32) * np.uint32(PAGE_KEYS)
    starts = np.flatnonzero(is_fresh(page_of))
    return page_of[starts], low, starts, np.diff(starts, append=len(keys))


def endless(until: Seconds) -> Seconds:
    """Ends that compare: no end is the latest."""
    return np.where(until == 0, np.iinfo(np.int64).max, until)

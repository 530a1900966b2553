"""Conversion between a page and arrays of its rows, with one canonical encoding of a page.

In a list of pairs each device has one reason, and each of its IMSIs has its own end.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import islice, repeat
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from eir.errors import StoreError
from eir.lists.pages.pages import PAGE_KEYS, Page, Sections, TacEntry, decode_sections
from eir.lists.pages.roaring import Indexes, Remainders, decode_keys, encode_many, encode_sorted, is_fresh

Keys: TypeAlias = NDArray[np.uint64]
ReasonIndexes: TypeAlias = NDArray[np.uint8]
Seconds: TypeAlias = NDArray[np.int64]
"""Unix seconds at which rows end; 0 for rows without an end."""

_EXACT_QUOTIENTS = np.uint64(1 << 52)


class Content(NamedTuple):
    """Rows of a page: single identifiers with their reasons and expiries, and the entry of the whole TAC.

    Identifiers are remainders in ascending order.
    """

    low: Remainders
    reasons: ReasonIndexes
    until: Seconds
    """All 0 in lists of pairs, where IMSIs have ends and devices have none."""
    tac: TacEntry | None = None


def decode(page: Page) -> Content:
    """Decode a page into arrays.

    Raises:
        ValueError: if the page is damaged.
    """
    low = np.frombuffer(decode_keys(page.keys).to_array(), np.uint32)
    reasons, until, imsis, *_ = decode_sections(page.extra)
    ends = each(b"" if imsis else until, np.int64, len(low))
    return Content(low, each(reasons, np.uint8, len(low)), ends, page.tac)


@contextmanager
def as_corrupt(fault: str) -> Iterator[None]:
    """Convert a ValueError of the block, which decodes pages of a store, to StoreError (`corrupt`); `fault` begins its text."""
    try:
        yield
    except ValueError as error:
        raise StoreError("corrupt", f"{fault}: {error}") from error


def encode(number: int, content: Content) -> Page:
    """Encode rows as the page with this number."""
    whole = b"" if content.tac is None else content.tac.extra
    if not len(content.low):
        return Page(number, b"", whole)
    start, size = np.zeros(1, np.int64), np.array([len(content.low)])
    return Page(number, encode_sorted(content.low), whole + next(extras(content.reasons, content.until, start, size)))


def sections(values: NDArray[Any], starts: Indexes, sizes: Indexes) -> Iterable[bytes]:
    """Encode one column of rows (section R, U or D of a page) for each of many pages.

    The values of page i are `values[starts[i]:starts[i] + sizes[i]]`. A section has one value for each row, or a single
    value if all rows share it. It is empty if that value is 0.
    """
    if not values.any():
        return repeat(b"", len(starts))
    width, raw = values.itemsize, values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
    shared = np.minimum.reduceat(values, starts) == np.maximum.reduceat(values, starts)
    ends = width * (starts + np.where(shared, 1, sizes))
    contents = (raw[first:last] for first, last in zip((width * starts).tolist(), ends.tolist(), strict=True))
    return [content if any(content) else b"" for content in contents]


def each(content: bytes, kind: type[Any], rows: int) -> NDArray[Any]:
    """Decode a section of a page, which `sections` encoded, to an array with one value for each row.

    Raises:
        ValueError: if the section has neither one value nor `rows` values.
    """
    values = np.frombuffer(content or bytes(8), np.dtype(kind).newbyteorder("<")).astype(kind, copy=False)
    if not content or len(values) == 1:
        return np.full(rows, values[0])
    if len(values) != rows:
        raise ValueError(f"a section has {len(values)} values for {rows} rows")
    return values


def extras(reasons: ReasonIndexes, until: Seconds, starts: Indexes, sizes: Indexes) -> Iterator[bytes]:
    """Encode the field `extra` of many pages; the arguments are those of `sections`."""
    if not reasons.any() and not until.any():
        return repeat(b"", len(starts))
    return map(_extra, sections(reasons, starts, sizes), sections(until, starts, sizes))


def _extra(reasons: bytes, until: bytes) -> bytes:
    return _short_extra(reasons, until) if len(reasons) < 2 and len(until) < 9 else Sections(reasons, until).encode()


@lru_cache(maxsize=1024)
def _short_extra(reasons: bytes, until: bytes) -> bytes:
    return Sections(reasons, until).encode()


def split(keys: Keys) -> tuple[Keys, Remainders, Indexes, Indexes]:
    """Split keys in ascending order (at least one) into pages.

    Double division and its conversions are several times as fast as the division of unsigned integers. It is exact
    below 2^52: a quotient just below a whole number differs from it by 10^-6, and the rounding error is less than half
    of that.

    Returns:
        Page numbers, remainders, the index of each page's first key, and the number of keys of each page.
    """
    if keys[-1] < _EXACT_QUOTIENTS:
        page_of = (keys.view(np.int64) / np.float64(PAGE_KEYS)).astype(np.int64).view(np.uint64)
    else:
        page_of = keys // np.uint64(PAGE_KEYS)
    # The remainder is below 2^32, so arithmetic modulo 2^32 is exact.
    low = keys.astype(np.uint32) - page_of.astype(np.uint32) * np.uint32(PAGE_KEYS)
    starts = np.flatnonzero(is_fresh(page_of))
    return page_of[starts], low, starts, np.diff(starts, append=len(keys))


def endless(until: Seconds) -> Seconds:
    """Return expiries in a form that can be compared: 0 (no expiry) becomes the latest possible time."""
    return np.where(until == 0, np.iinfo(np.int64).max, until)


SLAB_PAIRS = 1 << 16
"""Number of pairs whose pages are built together; with this size the arrays fit into the processor's cache."""

Pairs: TypeAlias = tuple[Keys, Keys, ReasonIndexes, Seconds, Keys]
"""Device keys, IMSI keys, and for each pair its reason, its end, and the date of the device in Unix seconds (0 for none)."""
_PAGE = np.uint64(PAGE_KEYS)


class Paired(NamedTuple):
    """Device in a page of pairs: the index of its reason, its IMSIs with their expiries, and its date."""

    reason: int
    imsis: dict[int, int]
    date: int = 0


class _Column:
    """Column of values to which arrays are appended. A column that is all 0 uses no memory."""

    __slots__ = ("_kind", "_pieces", "has_values")

    def __init__(self, kind: type[Any]) -> None:
        self._kind = kind
        self._pieces: list[NDArray[Any]] = []
        self.has_values = False
        """True if a value is not 0."""

    def append(self, values: NDArray[Any] | None, rows: int) -> None:
        if values is None or not values.any():
            values = np.broadcast_to(self._kind(0), rows)
        else:
            self.has_values = True
        self._pieces.append(values)

    def whole(self) -> NDArray[Any]:
        """Return all values of the column in one array."""
        pieces, self._pieces = self._pieces, []
        if len(pieces) != 1:
            pieces = [
                np.concatenate(pieces) if self.has_values else np.broadcast_to(self._kind(0), sum(map(len, pieces)))
            ]
        self._pieces = pieces
        return pieces[0]

    def arrange(self, order: Indexes) -> None:
        """Reorder the values of the column."""
        if self.has_values:
            self._pieces = [self.whole()[order]]


class PairRows:
    """Collection of pairs in any order. Of equal pairs, the pair with the latest expiry counts.

    Sorting 100 million pairs uses little more than twice the memory of the values.
    """

    def __init__(self) -> None:
        self._devices, self._imsis = _Column(np.uint64), _Column(np.uint64)
        self._reasons, self._until = _Column(np.uint8), _Column(np.int64)
        self._dates = _Column(np.uint64)
        self._all = self._devices, self._imsis, self._reasons, self._until, self._dates
        self._rows = 0
        self._sorted = True

    def __len__(self) -> int:
        return self._rows

    def append(
        self,
        devices: Keys,
        imsis: Keys,
        reasons: ReasonIndexes | None = None,
        until: Seconds | None = None,
        dates: Keys | None = None,
    ) -> None:
        """Append pairs with their reasons, expiries and dates."""
        for column, values in zip(self._all, (devices, imsis, reasons, until, dates), strict=True):
            column.append(values, len(devices))
        self._rows += len(devices)
        self._sorted = False

    def repeats(self) -> tuple[int, int]:
        """Return the number of rows that repeat an earlier pair, and how many of these contradict it.

        Like `Rows.repeats` in eir.lists.rows.build.
        """
        devices, imsis, reasons, until, _ = self.in_order()
        same = (devices[1:] == devices[:-1]) & (imsis[1:] == imsis[:-1])
        contradicts = (reasons[1:] != reasons[:-1]) | (until[1:] != until[:-1])
        return int(same.sum()), int((same & contradicts).sum())

    def slabs(self, most: int = SLAB_PAIRS) -> Iterator[Pairs]:
        """Yield all pairs in ascending order, in portions of whole pages with about `most` pairs each."""
        devices, imsis, reasons, until, dates = self.in_order()
        first = 0
        while first < len(devices):
            highest = devices[min(first + most, len(devices)) - 1]
            last = int(np.searchsorted(devices, (highest // _PAGE + np.uint64(1)) * _PAGE))
            yield devices[first:last], imsis[first:last], reasons[first:last], until[first:last], dates[first:last]
            first = last

    def in_order(self) -> Pairs:
        """Return all pairs, sorted by device and then by IMSI.

        Of equal pairs, the one that counts is first.
        """
        if not self._sorted:
            keys = [self._imsis.whole(), self._devices.whole()]
            if self._until.has_values:
                keys.insert(0, ~endless(self._until.whole()))
            if self._reasons.has_values:
                keys.insert(0, self._reasons.whole())
            if self._dates.has_values:
                keys.insert(0, self._dates.whole())
            order = np.lexsort(keys)
            del keys
            for column in self._all:
                column.arrange(order)
            self._sorted = True
        return (
            self._devices.whole(),
            self._imsis.whole(),
            self._reasons.whole(),
            self._until.whole(),
            self._dates.whole(),
        )


def pair_pages(pairs: Pairs) -> list[Page]:
    """Build pages from sorted pairs. Of equal pairs, the first counts.

    A device gets the reason of its pair with the latest end, and its earliest date. If several pairs have the latest
    end, the lowest reason index counts.
    """
    keys, imsis, reasons, until, dates = pairs
    fresh = is_fresh(keys) | is_fresh(imsis)
    keys, imsis, reasons, until = keys[fresh], imsis[fresh], reasons[fresh], until[fresh]

    devices, first, counts = np.unique(keys, return_index=True, return_counts=True)
    ends = endless(until)
    last_to_end = ends == np.repeat(np.maximum.reduceat(ends, first), counts)
    reason = np.minimum.reduceat(np.where(last_to_end, reasons, np.uint8(0xFF)), first)
    numbers, low, starts, sizes = split(devices)
    first_pairs = first[starts]
    pairs_of = np.diff(first_pairs, append=len(keys))
    columns = (starts, starts + sizes, first_pairs, first_pairs + pairs_of)
    bound = [
        counts[start:end].astype("<u4").tobytes() + imsis[pair:last].astype("<u8").tobytes()
        for start, end, pair, last in zip(*(column.tolist() for column in columns), strict=True)
    ]
    extras = map(
        Sections,
        sections(reason, starts, sizes),
        sections(until, first_pairs, pairs_of),
        bound,
        sections(np.minimum.reduceat(dates[fresh], first), starts, sizes),
    )
    return list(map(Page, numbers.tolist(), encode_many(low, starts, sizes), map(Sections.encode, extras)))


def has_pairs(page: Page) -> bool:
    """Return True if the page has at least one pair of a device and an IMSI."""
    return bool(decode_sections(page.extra).imsis)


def amend_pairs(old: Page, gone: Page, new: Page, *, one_each: bool) -> Page:
    """Apply a delta to a page of pairs: remove the pairs of `gone`, then add the pairs of `new`.

    A device in `new` gets its reason and date from there.

    Args:
        old: page before the delta.
        gone: pairs to remove.
        new: pairs to add.
        one_each: a device has one IMSI or type at a time, so a new one replaces the previous one.
    """
    after = decode_pairs(old)
    for low, goes in decode_pairs(gone).items():
        before = after.pop(low, None)
        if before is not None and (
            stays := {imsi: end for imsi, end in before.imsis.items() if imsi not in goes.imsis}
        ):
            after[low] = before._replace(imsis=stays)
    for low, comes in decode_pairs(new).items():
        before = after.get(low)
        after[low] = comes if before is None or one_each else comes._replace(imsis=before.imsis | comes.imsis)
    base = old.number * PAGE_KEYS
    rows = [
        (base + low, imsi, paired.reason, end, paired.date)
        for low, paired in after.items()
        for imsi, end in paired.imsis.items()
    ]
    if not rows:
        return Page(old.number, b"")
    keys, imsis, reasons, until, dates = zip(*rows, strict=True)
    arrays = (
        np.array(keys, np.uint64),
        np.array(imsis, np.uint64),
        np.array(reasons, np.uint8),
        np.array(until, np.int64),
        np.array(dates, np.uint64),
    )
    pairs = PairRows()
    pairs.append(*arrays)
    return pair_pages(pairs.in_order())[0]


def decode_pairs(page: Page) -> dict[int, Paired]:
    """Decode a page of pairs of IMEI and IMSI. The result has IMSIs, reason and date of each device by its number in the page."""
    low, reasons, *_ = decode(page)
    _, until, bound, dates, _ = decode_sections(page.extra)
    counts = np.frombuffer(bound[: 4 * len(low)], "<u4").tolist()
    imsis = np.frombuffer(bound[4 * len(low) :], "<u8").tolist()
    ends = zip(imsis, each(until, np.int64, len(imsis)).tolist(), strict=True)
    devices = zip(low.tolist(), reasons.tolist(), counts, each(dates, np.int64, len(low)).tolist(), strict=True)
    return {device: Paired(reason, dict(islice(ends, count)), date) for device, reason, count, date in devices}

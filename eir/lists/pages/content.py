"""Conversion between a page (the entries of one TAC in stored form) and arrays of its rows. Equal rows give equal bytes.

In a list of pairs each device has one reason, and each of its IMSIs has its own end.
"""

from collections.abc import Iterable, Iterator, Mapping
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
"""Expiries of rows in Unix seconds; 0 for a row that does not expire."""

_EXACT_QUOTIENTS = np.uint64(1 << 52)


class Content(NamedTuple):
    """Rows of a page as arrays: single identifiers with their reasons and expiries, and the entry of the whole TAC."""

    low: Remainders
    """Remainders of the single identifiers (key % 10^6) in ascending order."""
    reasons: ReasonIndexes
    until: Seconds
    """Expiries of the identifiers; all 0 in lists of pairs, where each IMSI has an expiry of its own."""
    tac: TacEntry | None = None


def decode(page: Page) -> Content:
    """Decode a page into arrays.

    Raises:
        ValueError: if the page is damaged.
    """
    low = np.frombuffer(decode_keys(page.keys).to_array(), np.uint32)
    rows = len(low)
    sections = decode_sections(page.extra)
    reasons = decode_column(sections.reasons, np.uint8, rows)
    until = decode_column(b"" if sections.imsis else sections.until, np.int64, rows)
    return Content(low, reasons, until, page.tac)


@contextmanager
def as_corrupt(fault: str) -> Iterator[None]:
    """Convert a ValueError in the `with` block to the StoreError `corrupt`, for damaged stored pages. `fault`: start of the error text."""
    try:
        yield
    except ValueError as error:
        raise StoreError("corrupt", f"{fault}: {error}") from error


def encode(number: int, content: Content) -> Page:
    """Encode rows as the page with this page number."""
    whole = b"" if content.tac is None else content.tac.extra
    if not len(content.low):
        return Page(number, b"", whole)
    start, size = np.zeros(1, np.int64), np.array([len(content.low)])
    (rows,) = encode_extras(content.reasons, content.until, start, size)
    return Page(number, encode_sorted(content.low), whole + rows)


def encode_column(values: NDArray[Any], starts: Indexes, sizes: Indexes) -> Iterable[bytes]:
    """Encode one column (reasons R, expiries U or dates D) of many pages; return one section for each page.

    `values` has one value for each row. The values of page i are `values[starts[i]:starts[i] + sizes[i]]`. A section has
    one value for each row, or a single value if all rows share it. It is empty if that value is 0.
    """
    if not values.any():
        return repeat(b"", len(starts))
    width = values.itemsize
    raw = values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
    is_shared = np.minimum.reduceat(values, starts) == np.maximum.reduceat(values, starts)
    counts = np.where(is_shared, 1, sizes)
    begins = (width * starts).tolist()
    ends = (width * (starts + counts)).tolist()
    contents = (raw[begin:end] for begin, end in zip(begins, ends, strict=True))
    return [content if any(content) else b"" for content in contents]


def decode_column(section: bytes, kind: type[Any], rows: int) -> NDArray[Any]:
    """Decode a section of a page that `encode_column` has encoded; return an array with one value for each row of the page.

    Raises:
        ValueError: if the section has neither one value nor `rows` values.
    """
    if not section:
        return np.zeros(rows, kind)
    values = np.frombuffer(section, np.dtype(kind).newbyteorder("<")).astype(kind, copy=False)
    if len(values) == 1:
        return np.full(rows, values[0])
    if len(values) != rows:
        raise ValueError(f"a section has {len(values)} values for {rows} rows")
    return values


def encode_extras(reasons: ReasonIndexes, until: Seconds, starts: Indexes, sizes: Indexes) -> Iterator[bytes]:
    """Encode the reasons and expiries of many pages as the field `extra` of each page."""
    if not reasons.any() and not until.any():
        return repeat(b"", len(starts))
    return map(_encode_extra, encode_column(reasons, starts, sizes), encode_column(until, starts, sizes))


def _encode_extra(reasons: bytes, until: bytes) -> bytes:
    is_shared = len(reasons) <= 1 and len(until) <= 8
    return _encode_shared(reasons, until) if is_shared else Sections(reasons, until).encode()


@lru_cache(maxsize=1024)
def _encode_shared(reasons: bytes, until: bytes) -> bytes:
    """Encode one reason and one expiry for all rows of a page. The result is cached, because many pages have equal reasons and expiries."""
    return Sections(reasons, until).encode()


def split(keys: Keys) -> tuple[Keys, Remainders, Indexes, Indexes]:
    """Split ascending keys (at least one) by page; return the page numbers and the ranges of their keys.

    The division in float64 is several times as fast as that of unsigned integers, conversions included. For keys below
    2^52 it is exact: a quotient just below a whole number differs from that number by 10^-6, and the rounding error is
    less than half of 10^-6.

    Returns:
        Page numbers, remainders, the index of each page's first key, and the number of keys of each page.
    """
    if keys[-1] < _EXACT_QUOTIENTS:
        quotients = keys.view(np.int64) / np.float64(PAGE_KEYS)
        page_of = quotients.astype(np.int64).view(np.uint64)
    else:
        page_of = keys // np.uint64(PAGE_KEYS)
    # The remainder is below 2^32, so arithmetic modulo 2^32 is exact.
    low = keys.astype(np.uint32) - page_of.astype(np.uint32) * np.uint32(PAGE_KEYS)
    starts = np.flatnonzero(is_fresh(page_of))
    return page_of[starts], low, starts, np.diff(starts, append=len(keys))


def endless(until: Seconds) -> Seconds:
    """Replace the expiry 0 (none) by the latest possible time, so that expiries can be compared."""
    return np.where(until == 0, np.iinfo(np.int64).max, until)


SLAB_PAIRS = 1 << 16
"""Number of pairs whose pages are built together; with this size the arrays fit into the processor's cache."""

Pairs: TypeAlias = tuple[Keys, Keys, ReasonIndexes, Seconds, Keys]
"""Columns of pairs: device key, IMSI key, reason index, expiry, and date of the device in Unix seconds (0 for none)."""
_PAGE = np.uint64(PAGE_KEYS)


class Paired(NamedTuple):
    """Device in a list of pairs, and the IMSIs to which it is bound."""

    reason: int
    """Index of the reason."""
    imsis: dict[int, int]
    """Expiry of each IMSI by its key."""
    date: int = 0
    """Date in Unix seconds; 0 for none."""


class _Column:
    """Column of values that grows by appended arrays. A column with only zeros uses no memory."""

    __slots__ = ("_kind", "_pieces", "has_values")

    def __init__(self, kind: type[Any]) -> None:
        self._kind = kind
        self._pieces: list[NDArray[Any]] = []
        self.has_values = False
        """True if at least one value is not 0."""

    def append(self, values: NDArray[Any] | None, rows: int) -> None:
        if values is None or not values.any():
            values = np.broadcast_to(self._kind(0), rows)
        else:
            self.has_values = True
        self._pieces.append(values)

    def whole(self) -> NDArray[Any]:
        """Return all values of the column in one array."""
        if len(self._pieces) != 1:
            if self.has_values:
                whole = np.concatenate(self._pieces)
            else:
                whole = np.broadcast_to(self._kind(0), sum(map(len, self._pieces)))
            self._pieces = [whole]
        return self._pieces[0]

    def arrange(self, order: Indexes) -> None:
        """Reorder the values of the column."""
        if self.has_values:
            self._pieces = [self.whole()[order]]


class PairRows:
    """Collection of rows (device, IMSI) in any order. If several rows have the same pair, the row with the latest expiry is used.

    Sorting 100 million pairs uses little more than twice the memory of the values.
    """

    def __init__(self) -> None:
        self._devices = _Column(np.uint64)
        self._imsis = _Column(np.uint64)
        self._reasons = _Column(np.uint8)
        self._until = _Column(np.int64)
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
        """Append rows of device and IMSI. Pass None for a column of reasons, expiries or dates if no row has a value in it."""
        for column, values in zip(self._all, (devices, imsis, reasons, until, dates), strict=True):
            column.append(values, len(devices))
        self._rows += len(devices)
        self._sorted = False

    def repeats(self) -> tuple[int, int]:
        """Return how many rows repeat an earlier row's pair, and how many repeats have another reason or expiry than the earlier row."""
        devices, imsis, reasons, until, _ = self.in_order()
        repeats = (devices[1:] == devices[:-1]) & (imsis[1:] == imsis[:-1])
        differs = (reasons[1:] != reasons[:-1]) | (until[1:] != until[:-1])
        contradicts = repeats & differs
        return int(repeats.sum()), int(contradicts.sum())

    def slabs(self, most: int = SLAB_PAIRS) -> Iterator[Pairs]:
        """Yield all pairs in ascending order, in portions of whole pages with about `most` pairs each."""
        devices, imsis, reasons, until, dates = self.in_order()
        first = 0
        while first < len(devices):
            highest = devices[min(first + most, len(devices)) - 1]
            next_page = highest // _PAGE + np.uint64(1)
            last = int(np.searchsorted(devices, next_page * _PAGE))
            yield devices[first:last], imsis[first:last], reasons[first:last], until[first:last], dates[first:last]
            first = last

    def in_order(self) -> Pairs:
        """Return all pairs, sorted by device, IMSI and expiry (latest first). If rows have the same pair, only the first row is used."""
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
    """Build the pages of a list of pairs from its sorted rows. If several rows have the same pair, the first row is used.

    A device gets the reason of its pair with the latest expiry, and its earliest date. If several pairs have the latest
    expiry, the lowest reason index counts.
    """
    keys, imsis, reasons, until, dates = pairs
    fresh = is_fresh(keys) | is_fresh(imsis)
    keys, imsis, reasons, until, dates = keys[fresh], imsis[fresh], reasons[fresh], until[fresh], dates[fresh]
    devices, first, counts = np.unique(keys, return_index=True, return_counts=True)
    ends = endless(until)
    latest = np.repeat(np.maximum.reduceat(ends, first), counts)
    candidates = np.where(ends == latest, reasons, np.uint8(0xFF))
    device_reasons = np.minimum.reduceat(candidates, first)
    device_dates = np.minimum.reduceat(dates, first)
    numbers, low, starts, sizes = split(devices)
    first_pairs = first[starts]
    pair_counts = np.diff(first_pairs, append=len(keys))
    columns = (starts, starts + sizes, first_pairs, first_pairs + pair_counts)
    spans = zip(*(column.tolist() for column in columns), strict=True)
    raw_counts, raw_imsis = counts.astype("<u4"), imsis.astype("<u8", copy=False)
    extras = map(
        Sections,
        encode_column(device_reasons, starts, sizes),
        encode_column(until, first_pairs, pair_counts),
        [raw_counts[start:end].tobytes() + raw_imsis[pair:last].tobytes() for start, end, pair, last in spans],
        encode_column(device_dates, starts, sizes),
    )
    page_keys = encode_many(low, starts, sizes)
    return list(map(Page, numbers.tolist(), page_keys, map(Sections.encode, extras)))


def has_pairs(page: Page) -> bool:
    """Return True if the page has at least one pair of a device and an IMSI."""
    return bool(decode_sections(page.extra).imsis)


def amend_pairs(old: Page, gone: Page, new: Page, *, one_each: bool) -> Page:
    """Return a page of pairs without the pairs of `gone` and with the pairs of `new`, as a delta demands.

    A device in `new` gets its reason and date from there.

    Args:
        old: page before the delta.
        gone: pairs to remove.
        new: pairs to add.
        one_each: a device has one IMSI or type at a time, so a new one replaces the previous one.
    """
    after = decode_pairs(old)
    for low, removed in decode_pairs(gone).items():
        before = after.pop(low, None)
        if before is None:
            continue
        imsis = {imsi: until for imsi, until in before.imsis.items() if imsi not in removed.imsis}
        if imsis:
            after[low] = before._replace(imsis=imsis)
    for low, added in decode_pairs(new).items():
        before = after.get(low)
        imsis = added.imsis if before is None or one_each else before.imsis | added.imsis
        after[low] = added._replace(imsis=imsis)
    return _encode_pairs(old.number, after)


def _encode_pairs(number: int, devices: Mapping[int, Paired]) -> Page:
    """Encode pairs as the page with this page number. `devices`: key of a device modulo 10^6 → IMSIs bound to the device."""
    base = number * PAGE_KEYS
    rows = [
        (base + low, imsi, paired.reason, until, paired.date)
        for low, paired in devices.items()
        for imsi, until in paired.imsis.items()
    ]
    if not rows:
        return Page(number, b"")
    keys, imsis, reasons, until, dates = zip(*rows, strict=True)
    pairs = PairRows()
    pairs.append(
        np.array(keys, np.uint64),
        np.array(imsis, np.uint64),
        np.array(reasons, np.uint8),
        np.array(until, np.int64),
        np.array(dates, np.uint64),
    )
    (page,) = pair_pages(pairs.in_order())
    return page


def decode_pairs(page: Page) -> dict[int, Paired]:
    """Decode a page of pairs to a map: key % 10^6 of each device → its IMSIs, reason and date.

    Raises:
        ValueError: if the page is damaged.
    """
    low, reasons, *_ = decode(page)
    rows = len(low)
    sections = decode_sections(page.extra)
    counts = np.frombuffer(sections.imsis[: 4 * rows], "<u4").tolist()
    imsis = np.frombuffer(sections.imsis[4 * rows :], "<u8").tolist()
    until = decode_column(sections.until, np.int64, len(imsis)).tolist()
    dates = decode_column(sections.dates, np.int64, rows).tolist()
    pairs = zip(imsis, until, strict=True)
    devices = zip(low.tolist(), reasons.tolist(), counts, dates, strict=True)
    return {device: Paired(reason, dict(islice(pairs, count)), date) for device, reason, count, date in devices}

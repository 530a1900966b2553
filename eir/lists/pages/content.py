"""The content of a page as arrays: a page unfolded, and folded again to its one canonical form.

In a list of pairs a device has a reason, and each SIM of it an end.
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import islice, repeat
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from eir.lists.pages.pages import PAGE_KEYS, Page, Sections, TacEntry, decode_sections
from eir.lists.pages.roaring import Indexes, Remainders, decode_keys, encode_many, encode_sorted, is_fresh

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


SLAB_PAIRS = 1 << 16
"""Pairs whose pages are made in one go: small arrays stay in the processor's cache."""

Pairs: TypeAlias = tuple[Keys, Keys, ReasonIndexes, Seconds, Keys]
"""Devices, IMSIs, and for each pair its reason, its end, and the date of the device in Unix seconds, 0 for none."""
_PAGE = np.uint64(PAGE_KEYS)


class Paired(NamedTuple):
    """A device in a page of pairs: its reason, its IMSIs, each with the end of its pair, and its date."""

    reason: int
    imsis: dict[int, int]
    date: int = 0


class _Column:
    """Values that come piece by piece. Where none is said, none takes memory: they are all 0."""

    __slots__ = ("_kind", "_pieces", "says")

    def __init__(self, kind: type[Any]) -> None:
        self._kind = kind
        self._pieces: list[NDArray[Any]] = []
        self.says = False
        """Some value is not 0."""

    def append(self, values: NDArray[Any] | None, rows: int) -> None:
        if values is None or not values.any():
            values = np.broadcast_to(self._kind(0), rows)
        else:
            self.says = True
        self._pieces.append(values)

    def whole(self) -> NDArray[Any]:
        """All of it in one array."""
        pieces, self._pieces = self._pieces, []
        if len(pieces) != 1:
            pieces = [np.concatenate(pieces) if self.says else np.broadcast_to(self._kind(0), sum(map(len, pieces)))]
        self._pieces = pieces
        return pieces[0]

    def arrange(self, order: Indexes) -> None:
        """Have the values in this order."""
        if self.says:
            self._pieces = [self.whole()[order]]


class PairRows:
    """Pairs that come in any order, some by some, and may repeat: of equal ones the one that ends last counts.

    A hundred million are sorted in memory that holds little more than twice what they say.
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
        """More of them."""
        for column, values in zip(self._all, (devices, imsis, reasons, until, dates), strict=True):
            column.append(values, len(devices))
        self._rows += len(devices)
        self._sorted = False

    def repeats(self) -> tuple[int, int]:
        """Return how many rows name what an earlier row names, and how many of them contradict it.

        As Rows.repeats in eir.lists.rows.build.
        """
        devices, imsis, reasons, until, _ = self.in_order()
        same = (devices[1:] == devices[:-1]) & (imsis[1:] == imsis[:-1])
        other = (reasons[1:] != reasons[:-1]) | (until[1:] != until[:-1])
        return int(same.sum()), int((same & other).sum())

    def slabs(self, most: int = SLAB_PAIRS) -> Iterator[Pairs]:
        """All of them in order, some pages' at a time: about `most`."""
        devices, imsis, reasons, until, dates = self.in_order()
        first = 0
        while first < len(devices):
            highest = devices[min(first + most, len(devices)) - 1]
            last = int(np.searchsorted(devices, (highest // _PAGE + np.uint64(1)) * _PAGE))
            yield devices[first:last], imsis[first:last], reasons[first:last], until[first:last], dates[first:last]
            first = last

    def in_order(self) -> Pairs:
        """All of them by device, of one device by IMSI, and of equal pairs first what counts."""
        if not self._sorted:
            keys = [self._imsis.whole(), self._devices.whole()]
            if self._until.says:
                keys.insert(0, ~endless(self._until.whole()))
            if self._reasons.says:
                keys.insert(0, self._reasons.whole())
            if self._dates.says:
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
    """The pages of these pairs, which come in order, of equal ones first the one that counts.

    A device has the reason of its pair that ends last, of several the one with the lowest index, and its earliest date.
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
    """True if the page is one of a list of pairs, and not empty."""
    return bool(decode_sections(page.extra).imsis)


def amended_pairs(old: Page, gone: Page, new: Page, *, one_each: bool) -> Page:
    """The page after a delta: pairs in `gone` go, then those in `new` come, and their devices take the new reasons and dates.

    `one_each`: a device is bound to one thing at a time, so that a new one takes the place of the one before.
    """
    after = decode_pairs(old)
    for low, goes in decode_pairs(gone).items():
        had = after.pop(low, None)
        if had is not None and (stays := {imsi: end for imsi, end in had.imsis.items() if imsi not in goes.imsis}):
            after[low] = had._replace(imsis=stays)
    for low, comes in decode_pairs(new).items():
        had = after.get(low)
        after[low] = comes if had is None or one_each else comes._replace(imsis=had.imsis | comes.imsis)
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
    """The content of a page of pairs, by device (its remainder)."""
    low, reasons, *_ = decode(page)
    _, until, bound, said = decode_sections(page.extra)
    counts = np.frombuffer(bound[: 4 * len(low)], "<u4").tolist()
    imsis = np.frombuffer(bound[4 * len(low) :], "<u8").tolist()
    ends = zip(imsis, each(until, np.int64, len(imsis)).tolist(), strict=True)
    devices = zip(low.tolist(), reasons.tolist(), counts, each(said, np.int64, len(low)).tolist(), strict=True)
    return {device: Paired(reason, dict(islice(ends, count)), date) for device, reason, count, date in devices}

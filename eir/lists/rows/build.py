"""Builder of pages from rows: it sorts keys, removes repeats, encodes pages, and applies deltas.

numpy processes keys in slabs, thousands of pages together. Pages with ranges are built one at a time.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from eir.device import MEID_BASE, ODD_BASE
from eir.errors import ReleaseRefused
from eir.lists.pages.content import (
    SLAB_PAIRS,
    Content,
    Keys,
    PairRows,
    ReasonIndexes,
    Seconds,
    amend_pairs,
    decode,
    encode,
    endless,
    extras,
    has_pairs,
    pair_pages,
    split,
)
from eir.lists.pages.pages import PAGE_KEYS, Page, TacEntry, amended_digest
from eir.lists.pages.roaring import decode_keys, encode_many, is_fresh
from eir.lists.record.store import ListState
from eir.lists.rows.dates import RowDates
from eir.lists.rows.turnover import differences

SLAB_KEYS = 1 << 16
"""Number of keys that are encoded together; with this size the arrays fit into the processor's cache, and malloc reuses memory."""
SPAN_PAGES_MAX = 500_000
"""Maximum number of TACs that the ranges and whole TACs of one release may touch, even with `--force`: twice as many as were ever allocated."""
SPAN_KEYS_MAX = 10**9
"""Maximum number of identifiers between the first and the last range within each TAC, summed over all TACs: this much memory is scanned."""
EXPECTED_MAX = 1 << 27
"""Maximum number of rows for which memory is reserved because the manifest announces them; the kernel allocates it when rows fill it."""

_REASON_BITS = np.uint64(8)
_PAGE = np.uint64(PAGE_KEYS)


class Span(NamedTuple):
    """Range of keys within one page: first and last remainder, index of the reason, and expiry."""

    first: int
    last: int
    reason: int
    until: int


@dataclass(slots=True)
class Built:
    """Pages of a list or of a change, in ascending order, and their counts.

    For a delta, the pages are those that differ from the list, including pages that became empty.
    """

    pages: Sequence[Page] = ()
    entries: int = 0
    devices: int = 0
    """Number of devices; `entries` and `devices` are counted as in ListState."""
    come: int = 0
    gone: int = 0
    """For a delta: number of identifiers that come and that go, as `differences` counts them."""
    content_digest: str = ""
    """Digest of the whole list; set for deltas."""
    dates: Sequence[Page] = ()
    """Pages of dates, if the list has them (eir.lists.rows.dates)."""
    dates_before: Sequence[Page] | None = None
    """For a delta: pages of dates that `dates` replace."""
    dates_state: ListState | None = None
    """State with which these pages were read."""

    def count(self, page: Page, sign: int = 1) -> None:
        """Add the devices and entries of a page to the counts; with `sign` -1, subtract them."""
        singles = len(decode_keys(page.keys))
        whole = page.tac is not None
        self.devices += sign * (PAGE_KEYS if whole else singles)
        self.entries += sign * (singles + whole)


def with_dates(built: Built, state: ListState | None, pages: tuple[Sequence[Page], Sequence[Page]]) -> Built:
    """Return the pages of a change with those of its dates: the replaced ones and their successors, read with `state`."""
    before, after = pages
    return replace(built, dates=after, dates_before=before, dates_state=state)


class _Singles:
    """Keys and reason indexes, packed into one growing array so that they need not be copied at the end."""

    __slots__ = ("_ends", "_packed", "_used")

    def __init__(self, expected: int) -> None:
        self._packed: Keys = np.empty(expected, np.uint64)  # the kernel allocates memory on the first write, not here
        self._used = 0
        self._ends: list[tuple[int, Seconds]] = []  # index of the first row of each chunk with ends, and the ends

    def append(self, keys: Keys, reasons: ReasonIndexes | None, until: Seconds | None) -> None:
        first, last = self._used, self._used + len(keys)
        if last > len(self._packed):
            larger = np.empty(max(last, 2 * first), np.uint64)
            larger[:first] = self._packed[:first]
            self._packed = larger
        packed = self._packed[first:last]
        np.left_shift(keys, _REASON_BITS, out=packed)
        if reasons is not None:
            packed |= reasons
        if until is not None and until.any():
            self._ends.append((first, until))
        self._used = last

    def repeats(self) -> tuple[int, int]:
        """Return the number of repeated keys, and the number of those that contradict, as in Rows.repeats."""
        packed = self._packed[: self._used]
        if not self._ends:
            packed.sort()  # in place, like `pop_sorted`: avoids a second copy of up to 100 million keys
            same = packed[1:] >> _REASON_BITS == packed[:-1] >> _REASON_BITS
            return int(same.sum()), int((same & (packed[1:] != packed[:-1])).sum())
        return _repeats((packed >> _REASON_BITS,), (packed, self._until()))

    def _until(self) -> Seconds:
        until = np.zeros(self._used, np.int64)
        for first, some in self._ends:
            until[first : first + len(some)] = some
        return until

    def pop_sorted(self) -> tuple[Keys, Seconds | None]:
        """Return the packed keys in ascending order with their expiries, and clear this object.

        The expiries are `None` if no row has an expiry. Of equal keys, the key that counts is first.
        """
        packed, until = self._packed[: self._used], self._until() if self._ends else None
        self._packed, self._used, self._ends = np.empty(0, np.uint64), 0, []
        if until is None:
            packed.sort()
            return packed, None
        order = np.lexsort((packed & np.uint64(0xFF), ~endless(until), packed >> _REASON_BITS))
        return packed[order], until[order]


class Rows:
    """Rows of a release, collected in any order from all its files.

    A row has entries: an identifier, a whole TAC, or a range. A range is split at page boundaries into a whole TAC for
    each TAC that it covers completely, and single identifiers for the rest. The split depends only on the row itself,
    not on the list or on other rows, so a chain of deltas leads to the same entries as the full list. (Two ranges that
    cover a TAC only together become a million single identifiers.)

    If several rows have the same entry, the row with the latest end counts; of rows with the same end a range counts
    before a single row, then the lowest reason index.
    """

    def __init__(
        self, expected: int = 0, *, span_pages_max: int = SPAN_PAGES_MAX, span_keys_max: int = SPAN_KEYS_MAX
    ) -> None:
        """Create an empty collection of rows.

        Args:
            expected: number of single identifiers for which memory is reserved; more are possible but need a copy.
            span_pages_max: most TACs that all ranges together may touch.
            span_keys_max: most identifiers that ranges may span within TACs that they do not cover.
        """
        self._span_pages_max, self._span_keys_max = span_pages_max, span_keys_max
        self.singles = {0: _Singles(min(expected, EXPECTED_MAX)), MEID_BASE: _Singles(0), ODD_BASE: _Singles(0)}
        """Single identifiers by base; each key is stored less its base, so that a key and a reason fit in 64 bits."""
        self._spans: list[tuple[Keys, Keys, ReasonIndexes | None, Seconds | None]] = []
        self._span_pages = 0
        self.pairs = PairRows()
        self.dates = RowDates()
        """Dates of identifiers, whole TACs and ranges."""

    def add(self, keys: Keys, reasons: ReasonIndexes | None = None, until: Seconds | None = None) -> None:
        """Add rows with single identifiers."""
        high, odd = keys >= np.uint64(MEID_BASE), keys >= np.uint64(ODD_BASE)
        if not high.any():
            self.singles[0].append(keys, reasons, until)
            return
        for base, which in ((0, ~high), (MEID_BASE, high & ~odd), (ODD_BASE, odd)):
            some_reasons = None if reasons is None else reasons[which]
            self.singles[base].append(
                keys[which] - np.uint64(base), some_reasons, None if until is None else until[which]
            )

    def add_spans(
        self, first: Keys, last: Keys, reasons: ReasonIndexes | None = None, until: Seconds | None = None
    ) -> None:
        """Add rows with ranges of keys, which include the first and the last key.

        A whole TAC is a range from its lowest to its highest key.

        Raises:
            ReleaseRefused: `range`, as soon as all ranges together touch more than `span_pages_max` TACs.
        """
        self._span_pages += int((last // _PAGE - first // _PAGE).sum()) + len(first)
        if self._span_pages > self._span_pages_max:
            detail = f"its ranges and TACs cover at least {self._span_pages} TACs; the maximum for one release is {self._span_pages_max}"
            raise ReleaseRefused("range", f"{detail}: split it into a full release and deltas")
        self._spans.append((first, last, reasons, until))

    def add_pairs(
        self,
        keys: Keys,
        imsis: Keys,
        reasons: ReasonIndexes | None = None,
        until: Seconds | None = None,
        dates: Keys | None = None,
    ) -> None:
        """Add rows that bind devices to subscribers (keys of IMSIs).

        Reason and date belong to the device, not to the pair.
        """
        self.pairs.append(keys, imsis, reasons, until, dates)

    def repeats(self) -> tuple[int, int]:
        """Return the number of rows that repeat an earlier row's entry, and how many of these contradict that row.

        A row contradicts if its reason or its end differs. Ranges and TACs are compared with each other, not with the
        identifiers in them. Call it before `build_pages`, which empties the rows.
        """
        counts = [singles.repeats() for singles in self.singles.values()]
        if self._spans:
            first, second, why, until = (
                np.concatenate([np.zeros(len(row[0]), np.int64) if row[at] is None else row[at] for row in self._spans])
                for at in range(4)
            )
            counts.append(_repeats((first, second), (why, until)))
        if self.pairs:
            counts.append(self.pairs.repeats())
        return sum(rows for rows, _ in counts), sum(contradictions for _, contradictions in counts)

    def devices_min(self) -> int:
        """Return a lower bound for the number of listed devices: those in whole TACs without an expiry."""
        whole = [np.zeros(0, np.uint64)]
        for first, last, _, until in self._spans:
            if until is None or not until.any():
                begins, ends = -(-first.astype(np.int64) // PAGE_KEYS), (last.astype(np.int64) + 1) // PAGE_KEYS
                counts = np.maximum(ends - begins, 0)
                whole.append(
                    np.arange(counts.sum()).astype(np.uint64)
                    + np.repeat(begins - np.cumsum(counts) + counts, counts).astype(np.uint64)
                )
        return PAGE_KEYS * len(np.unique(np.concatenate(whole)))

    def spans(self) -> dict[int, list[Span]]:
        """Return the ranges by page number, split at page boundaries.

        Raises:
            ReleaseRefused: `range`, if they span more than `span_keys_max` identifiers within TACs.
        """
        by_page: dict[int, list[Span]] = {}
        for first, last, reasons, until in self._spans:
            reason_of, end_of = (repeat(0) if values is None else values.tolist() for values in (reasons, until))
            for low, high, reason, end in zip(first.tolist(), last.tolist(), reason_of, end_of, strict=False):
                for number in range(low // PAGE_KEYS, high // PAGE_KEYS + 1):
                    start = number * PAGE_KEYS
                    span = Span(max(low - start, 0), min(high - start, PAGE_KEYS - 1), reason, end)
                    by_page.setdefault(number, []).append(span)
        walked = sum(last - first for first, last in map(_reach, map(_parts, by_page.values())))
        if walked > self._span_keys_max:
            detail = f"its ranges that do not cover whole TACs have {walked} identifiers; the maximum is {self._span_keys_max}"
            raise ReleaseRefused("range", f"{detail}: split the release, or list the identifiers one by one")
        return by_page


def _repeats(names: Sequence[NDArray[Any]], values: Sequence[NDArray[Any]]) -> tuple[int, int]:
    """Count repeated rows and contradictions as Rows.repeats does, for rows that are given as columns.

    `names` are the columns that identify an entry, `values` its reasons and expiries.
    """
    order = np.lexsort((*values, *names))

    def same(columns: Sequence[NDArray[Any]]) -> NDArray[np.bool_]:
        equal: NDArray[np.bool_] = np.logical_and.reduce(
            [column[order][1:] == column[order][:-1] for column in columns]
        )
        return equal

    repeated = same(names)
    return int(repeated.sum()), int((repeated & ~same(values)).sum())


def build_pages(
    rows: Rows,
    progress: Callable[[int, int], None] | None = None,
    *,
    slab_keys: int = SLAB_KEYS,
    slab_pairs: int = SLAB_PAIRS,
) -> Built:
    """Build the pages of a list from all rows of a full release.

    Args:
        rows: rows of the list; they are empty afterwards.
        progress: receives the number of keys done and of all keys.
        slab_keys: approximate number of single identifiers that are encoded together.
        slab_pairs: approximate number of pairs that are encoded together.

    Raises:
        ReleaseRefused: `range`, as Rows.spans.
    """
    built = Built()
    if rows.pairs:
        pairs, rows.pairs = rows.pairs, PairRows()  # the memory is freed at the end of this function
        built.pages = [page for some in pairs.slabs(slab_pairs) for page in pair_pages(some)]
        for page in built.pages:
            built.count(page)
        return built
    spans = rows.spans()
    pages: list[Page] = []
    for base, singles in rows.singles.items():
        packed, until = singles.pop_sorted()  # `singles` keeps no copy
        for first, last in _slabs(packed, slab_keys):
            if progress is not None:
                progress(first, len(packed))
            some, entries = _encode_slab(packed[first:last], None if until is None else until[first:last], base)
            pages += some
            built.entries += entries
        del packed, until
    built.devices = built.entries
    if spans:
        under = {page.number: page for page in pages if page.number in spans}
        pages = [page for page in pages if page.number not in under]
        for page in under.values():
            built.count(page, -1)
        for number, some_spans in spans.items():
            pages.append(_with_spans(under.get(number, Page(number, b"")), some_spans))
            built.count(pages[-1])
        pages.sort()
    built.pages = pages
    return built


def amend_pages(
    before: Iterable[Page],
    removed: Iterable[Page],
    added: Iterable[Page],
    content_digest: str,
    now: float = 0.0,
    *,
    one_each: bool = False,
) -> Built:
    """Apply a delta to those pages of a list that the delta changes.

    Identifiers in `removed` are deleted first, then those in `added` are inserted; one that the list already has gets
    the reason and the end of its new row. TACs are independent entries: removing a TAC keeps the single identifiers
    under it, and removing an identifier that only its TAC covers has no effect.

    Args:
        before: pages of the list with the page numbers of the delta.
        removed: pages built from the delta's removed rows.
        added: pages built from the delta's added rows.
        content_digest: digest of the list.
        now: as for `differences`.
        one_each: as for `amend_pairs`.
    """
    old, gone, new = ({page.number: page for page in pages} for pages in (before, removed, added))
    amended = Built()
    touched, after = [], []
    for number in sorted(gone.keys() | new.keys()):
        empty = Page(number, b"")
        previous, goes, comes = (pages.get(number, empty) for pages in (old, gone, new))
        if (page := _amend_page(previous, goes, comes, one_each)) != previous:
            amended.count(previous, -1)
            amended.count(page)
            touched.append(previous)
            after.append(page)
    amended.pages = after
    amended.come, amended.gone = differences(touched, after, now)
    amended.content_digest = amended_digest(content_digest, touched, after)
    return amended


def _parts(spans: Iterable[Span]) -> list[Span]:
    """Return the ranges that do not cover their TAC completely."""
    return [span for span in spans if span.last - span.first < PAGE_KEYS - 1]


def _reach(parts: Sequence[Span]) -> tuple[int, int]:
    """Return the first remainder in these ranges, and the last remainder plus 1."""
    return min((span.first for span in parts), default=0), max((span.last + 1 for span in parts), default=0)


def _with_spans(page: Page, spans: Sequence[Span]) -> Page:
    """Return a page of single identifiers with ranges added."""
    parts = _parts(spans)
    whole = [TacEntry(span.reason, span.until) for span in spans if span.last - span.first == PAGE_KEYS - 1]
    tac = min(whole, key=lambda tac: (tac.until != 0, -tac.until, tac.reason), default=None)
    if not parts:  # no single identifier is added: the page need not be decoded
        return page if tac is None else page._replace(extra=tac.extra + page.extra)
    content, (begin, end) = decode(page), _reach(parts)
    under = slice(*np.searchsorted(content.low, (begin, end)))
    at = content.low[under] - np.uint32(begin)
    present, reasons, until = (
        np.zeros(end - begin, bool),
        np.zeros(end - begin, np.uint8),
        np.zeros(end - begin, np.int64),
    )
    present[at], reasons[at], until[at] = True, content.reasons[under], content.until[under]
    # A later write wins, so the range with the latest end is written last: otherwise an earlier end would replace it.
    for span in sorted(parts, key=lambda span: (span.until == 0, span.until, -span.reason)):
        part = slice(span.first - begin, span.last + 1 - begin)
        where = ~present[part] | (endless(until[part]) <= endless(np.array(span.until)))
        reasons[part][where], until[part][where], present[part] = span.reason, span.until, True
    fresh = np.flatnonzero(present)
    low = np.concatenate((content.low[: under.start], (fresh + begin).astype(np.uint32), content.low[under.stop :]))
    reasons = np.concatenate((content.reasons[: under.start], reasons[fresh], content.reasons[under.stop :]))
    until = np.concatenate((content.until[: under.start], until[fresh], content.until[under.stop :]))
    return encode(page.number, Content(low, reasons, until, tac))


def _amend_page(old: Page, gone: Page, new: Page, one_each: bool) -> Page:
    if any(map(has_pairs, (old, gone, new))):
        return amend_pairs(old, gone, new, one_each=one_each)
    if old.is_empty:
        return new
    previous, goes, comes = decode(old), decode(gone), decode(new)
    stays = ~np.isin(previous.low, np.union1d(goes.low, comes.low), assume_unique=True)
    low = np.concatenate((previous.low[stays], comes.low))
    order = np.argsort(low, kind="stable")
    reasons = np.concatenate((previous.reasons[stays], comes.reasons))[order]
    until = np.concatenate((previous.until[stays], comes.until))[order]
    tac = comes.tac or (previous.tac if goes.tac is None else None)
    return encode(old.number, Content(low[order], reasons, until, tac))


def _slabs(packed: Keys, most: int) -> Iterator[tuple[int, int]]:
    """Yield the bounds of slices with about `most` keys each, which end at page boundaries."""
    first = 0
    while first < len(packed):
        key = int(packed[min(first + most, len(packed)) - 1] >> _REASON_BITS)
        next_page = (key // PAGE_KEYS + 1) * PAGE_KEYS << 8
        last = int(np.searchsorted(packed, np.uint64(next_page))) if next_page < 1 << 64 else len(packed)
        yield first, last
        first = last


def _encode_slab(packed: Keys, until: Seconds | None, base: int) -> tuple[list[Page], int]:
    """Encode a slice of sorted packed keys to pages; return the pages and their number of identifiers.

    No other slice may have keys of the same pages.
    """
    keys = packed >> _REASON_BITS
    fresh = is_fresh(keys)
    if not fresh.all():
        keys, packed = keys[fresh], packed[fresh]
        until = None if until is None else until[fresh]
    numbers, low, starts, sizes = split(keys)
    encoded = encode_many(low, starts, sizes)
    reasons = packed.astype(np.uint8)  # the lowest byte of each
    sections = extras(reasons, np.zeros(len(low), np.int64) if until is None else until, starts, sizes)
    numbers += np.uint64(base // PAGE_KEYS)
    return list(map(Page._make, zip(numbers.tolist(), encoded, sections, strict=True))), len(low)

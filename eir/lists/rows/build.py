"""Builder of pages (the entries of one TAC each) from rows: sorts keys, removes repeated rows, encodes pages, and applies deltas.

numpy encodes single identifiers in slabs of thousands of pages. Pages with ranges are built one at a time.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar, cast

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
    encode_extras,
    endless,
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
"""Number of keys that are encoded together. The arrays of so many keys fit into the processor's cache, and malloc reuses their memory."""
SPAN_PAGES_MAX = 500_000
"""Maximum number of TACs that all ranges and whole TACs of one release touch. `--force` does not lift this limit. GSMA has allocated half as many TACs."""
SPAN_KEYS_MAX = 10**9
"""Maximum number of array elements for the ranges that cover only a part of a TAC: in each TAC, one for each identifier from the first range to the last."""
EXPECTED_MAX = 1 << 27
"""Maximum number of rows for which memory is reserved by the row count of the manifest. The kernel allocates the memory as rows fill it."""

Values = TypeVar("Values", bound=NDArray[Any] | None)

_REASON_BITS = np.uint64(8)
_PAGE = np.uint64(PAGE_KEYS)


def select_rows(values: Values, mask: NDArray[np.bool_]) -> Values:
    """Return those values of a column whose rows are in the mask; None for an absent column."""
    if values is None or mask.all():
        return values
    return cast("Values", values[mask])


class Span(NamedTuple):
    """Range of identifiers in one TAC. `first` and `last` are keys % 10^6, `reason` is an index, `until` the expiry in Unix seconds."""

    first: int
    last: int
    reason: int
    until: int

    @property
    def is_whole_tac(self) -> bool:
        """True if the range covers its whole TAC."""
        return self.last - self.first == PAGE_KEYS - 1


@dataclass(slots=True)
class Built:
    """Result of building pages from the rows of a release or change: the pages in ascending order, and counts of their content.

    For a delta, `pages` are the changed pages of the list, including pages that became empty.
    """

    pages: Sequence[Page] = ()
    entries: int = 0
    devices: int = 0
    """Number of devices. `entries` and `devices` have the meaning of these fields in ListState; for a delta they are differences."""
    come: int = 0
    gone: int = 0
    """For a delta: `come` is the number of added identifiers, and `gone` the number of removed identifiers, as from `differences`."""
    content_digest: str = ""
    """For a delta: content digest of the whole list after the delta."""
    dates: Sequence[Page] = ()
    """Pages of dates, if the list stores dates (eir.lists.rows.dates)."""
    dates_before: Sequence[Page] | None = None
    """For a delta: stored pages of dates that `dates` replaces."""
    dates_state: ListState | None = None
    """For a delta: state of the stored dates when `dates_before` was read."""

    def count(self, page: Page, sign: int = 1) -> None:
        """Add the numbers of devices and entries on a page to the counts; `sign` -1 subtracts them."""
        singles = len(decode_keys(page.keys))
        is_whole_tac = page.tac is not None
        devices = PAGE_KEYS if is_whole_tac else singles
        self.devices += sign * devices
        self.entries += sign * (singles + is_whole_tac)


class _Singles:
    """Rows with single identifiers. Key and reason of a row are packed into one number of a growing array.

    One array is sorted in place at the end, without a copy of all rows.
    """

    __slots__ = ("_ends", "_packed", "_used")

    def __init__(self, expected: int) -> None:
        self._packed: Keys = np.empty(expected, np.uint64)  # the kernel allocates memory on the first write, not here
        self._used = 0
        self._ends: list[tuple[int, Seconds]] = []
        """Expiries of each chunk of rows that has an expiry, with the index of the first row of the chunk."""

    def append(self, keys: Keys, reasons: ReasonIndexes | None, until: Seconds | None) -> None:
        first = self._used
        last = first + len(keys)
        if last > len(self._packed):
            size = max(last, 2 * first)
            larger = np.empty(size, np.uint64)
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
        """Return how many rows repeat an earlier row's key, and how many repeats have another reason or expiry than the earlier row."""
        packed = self._packed[: self._used]
        if self._ends:
            return _repeats((packed >> _REASON_BITS,), (packed, self._until()))
        packed.sort()  # in place, like `pop_sorted`: a copy of 100 million keys uses 800 MB
        repeated = packed[1:] >> _REASON_BITS == packed[:-1] >> _REASON_BITS
        contradicting = repeated & (packed[1:] != packed[:-1])
        return int(repeated.sum()), int(contradicting.sum())

    def _until(self) -> Seconds:
        until = np.zeros(self._used, np.int64)
        for first, chunk_until in self._ends:
            until[first : first + len(chunk_until)] = chunk_until
        return until

    def pop_sorted(self) -> tuple[Keys, Seconds | None]:
        """Return the packed keys in ascending order with their expiries, and clear this object.

        The expiries are `None` if no row has an expiry. Of rows with equal keys, the row that counts is first.
        """
        packed = self._packed[: self._used]
        until = self._until() if self._ends else None
        self._packed = np.empty(0, np.uint64)
        self._used = 0
        self._ends = []
        if until is None:
            packed.sort()
            return packed, None
        reasons = packed & np.uint64(0xFF)
        order = np.lexsort((reasons, ~endless(until), packed >> _REASON_BITS))
        return packed[order], until[order]


class Rows:
    """Rows of a release, collected in any order from all its files.

    A row lists one identifier, one whole TAC, or one range. A range becomes entries: a whole TAC for each TAC that the
    range covers completely, and single identifiers for the rest. The entries of a row depend only on the row itself. So
    a chain of deltas leads to the same entries as the full list. (Two ranges that only together cover a TAC become a
    million single identifiers.)

    If several rows have the same entry, the row with the latest expiry counts. Of rows with the same expiry, a range has
    priority over a single identifier, then the lowest reason index has priority.
    """

    def __init__(
        self, expected: int = 0, *, span_pages_max: int = SPAN_PAGES_MAX, span_keys_max: int = SPAN_KEYS_MAX
    ) -> None:
        """Create an empty collection of rows.

        Args:
            expected: number of single identifiers for which memory is reserved. Further identifiers cause a copy.
            span_pages_max: maximum number of TACs, as SPAN_PAGES_MAX.
            span_keys_max: maximum number of array elements, as SPAN_KEYS_MAX.
        """
        self._span_pages_max = span_pages_max
        self._span_keys_max = span_keys_max
        reserved = min(expected, EXPECTED_MAX)
        self.singles = {0: _Singles(reserved), MEID_BASE: _Singles(0), ODD_BASE: _Singles(0)}
        """Single identifiers by the lowest key of their form. This key is subtracted, so that key and reason fit in 64 bits."""
        self._spans: list[tuple[Keys, Keys, ReasonIndexes, Seconds]] = []
        self._span_pages = 0
        self.pairs = PairRows()
        self.dates = RowDates()
        """Dates of identifiers, whole TACs and ranges."""

    def add(self, keys: Keys, reasons: ReasonIndexes | None = None, until: Seconds | None = None) -> None:
        """Add rows with single identifiers."""
        is_high = keys >= np.uint64(MEID_BASE)
        if not is_high.any():
            self.singles[0].append(keys, reasons, until)
            return
        is_odd = keys >= np.uint64(ODD_BASE)
        for base, mask in ((0, ~is_high), (MEID_BASE, is_high & ~is_odd), (ODD_BASE, is_odd)):
            based_keys = keys[mask] - np.uint64(base)
            self.singles[base].append(based_keys, select_rows(reasons, mask), select_rows(until, mask))

    def add_spans(
        self, first: Keys, last: Keys, reasons: ReasonIndexes | None = None, until: Seconds | None = None
    ) -> None:
        """Add rows with ranges of keys. A range includes its first and its last key.

        A whole TAC is a range from its lowest to its highest key.

        Raises:
            ReleaseRefused: `range`, as soon as all ranges together touch more than `span_pages_max` TACs.
        """
        pages = last // _PAGE - first // _PAGE + np.uint64(1)
        self._span_pages += int(pages.sum())
        if self._span_pages > self._span_pages_max:
            detail = f"its ranges and TACs cover at least {self._span_pages} TACs; the maximum for one release is {self._span_pages_max}"
            raise ReleaseRefused("range", f"{detail}: split it into a full release and deltas")
        if reasons is None:
            reasons = np.zeros(len(first), np.uint8)
        if until is None:
            until = np.zeros(len(first), np.int64)
        self._spans.append((first, last, reasons, until))

    def add_pairs(
        self,
        keys: Keys,
        imsis: Keys,
        reasons: ReasonIndexes | None = None,
        until: Seconds | None = None,
        dates: Keys | None = None,
    ) -> None:
        """Add rows that bind devices to IMSIs.

        Each row has one reason and one date, which apply to all pairs of its device.

        Args:
            keys: keys of the devices.
            imsis: keys of the subscribers' IMSIs.
            reasons: reason indexes.
            until: expiries of the pairs.
            dates: Unix seconds, 0 for none.
        """
        self.pairs.append(keys, imsis, reasons, until, dates)

    def repeats(self) -> tuple[int, int]:
        """Return how many rows repeat an earlier row's entry, and how many repeats have another reason or expiry than the earlier row.

        A row contradicts if its reason or its expiry differs. A range or TAC is compared with other ranges and TACs, but
        not with single identifiers. `build_pages` empties the rows, so this method must be called before.
        """
        counts = [singles.repeats() for singles in self.singles.values()]
        if self._spans:
            first, last, reasons, until = map(np.concatenate, zip(*self._spans, strict=True))
            counts.append(_repeats((first, last), (reasons, until)))
        if self.pairs:
            counts.append(self.pairs.repeats())
        repeated = sum(rows for rows, _ in counts)
        contradicting = sum(rows for _, rows in counts)
        return repeated, contradicting

    def devices_min(self) -> int:
        """Return a lower bound for the number of listed devices: the number of devices in all TACs that are listed whole.

        A batch of added ranges is not counted if at least one of its rows has an expiry.
        """
        whole_tacs = [np.zeros(0, np.int64)]
        for first, last, _, until in self._spans:
            if until.any():
                continue
            begins = -(-first.astype(np.int64) // PAGE_KEYS)
            ends = (last.astype(np.int64) + 1) // PAGE_KEYS
            counts = np.maximum(ends - begins, 0)
            positions = np.arange(counts.sum())
            range_positions = np.cumsum(counts) - counts
            whole_tacs.append(positions + np.repeat(begins - range_positions, counts))
        return PAGE_KEYS * len(np.unique(np.concatenate(whole_tacs)))

    def spans(self) -> dict[int, list[Span]]:
        """Return the ranges of the collected rows by page number; a range that covers several TACs is split.

        Raises:
            ReleaseRefused: `range`, if ranges that cover only a part of their TAC span more than `span_keys_max`
                identifiers.
        """
        by_page: dict[int, list[Span]] = {}
        for columns in self._spans:
            for low, high, reason, until in zip(*(column.tolist() for column in columns), strict=True):
                for number in range(low // PAGE_KEYS, high // PAGE_KEYS + 1):
                    start = number * PAGE_KEYS
                    first = max(low - start, 0)
                    last = min(high - start, PAGE_KEYS - 1)
                    by_page.setdefault(number, []).append(Span(first, last, reason, until))
        scanned = 0
        for page_spans in by_page.values():
            begin, end = _bounds(_partial_spans(page_spans))
            scanned += end - begin
        if scanned > self._span_keys_max:
            detail = f"its ranges that do not cover whole TACs have {scanned} identifiers; the maximum is {self._span_keys_max}"
            raise ReleaseRefused("range", f"{detail}: split the release, or list the identifiers one by one")
        return by_page


def _repeats(names: Sequence[NDArray[Any]], values: Sequence[NDArray[Any]]) -> tuple[int, int]:
    """Return how many rows repeat another row's entry, and how many repeats have another reason or expiry than the other row.

    Args:
        names: columns that identify the entry of each row.
        values: columns whose values contradict if they differ.
    """
    order = np.lexsort((*values, *names))
    repeated = _equal_to_previous(names, order)
    contradicting = repeated & ~_equal_to_previous(values, order)
    return int(repeated.sum()), int(contradicting.sum())


def _equal_to_previous(columns: Sequence[NDArray[Any]], order: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Compare each row with the previous row of the sequence `order`; return a mask of the equal rows, from the second row on."""
    equal = np.ones(len(order[1:]), bool)
    for column in columns:
        values = column[order]
        equal &= values[1:] == values[:-1]
    return equal


def build_pages(
    rows: Rows,
    progress: Callable[[int, int], None] | None = None,
    *,
    slab_keys: int = SLAB_KEYS,
    slab_pairs: int = SLAB_PAIRS,
) -> Built:
    """Build the pages of a list from all rows of a full release.

    Args:
        rows: rows of the list; this function empties the collection to free memory.
        progress: receives the number of encoded keys and the number of all keys.
        slab_keys: approximate number of single identifiers that are encoded together.
        slab_pairs: approximate number of pairs that are encoded together.

    Raises:
        ReleaseRefused: `range`, as Rows.spans.
    """
    built = Built()
    if rows.pairs:
        pairs, rows.pairs = rows.pairs, PairRows()  # the memory is freed at the end of this function
        built.pages = [page for slab in pairs.slabs(slab_pairs) for page in pair_pages(slab)]
        for page in built.pages:
            built.count(page)
        return built
    spans = rows.spans()
    pages: list[Page] = []
    for base, singles in rows.singles.items():
        packed, until = singles.pop_sorted()
        for first, last in _slabs(packed, slab_keys):
            if progress is not None:
                progress(first, len(packed))
            slab_until = None if until is None else until[first:last]
            slab_pages, entries = _encode_slab(packed[first:last], slab_until, base)
            pages += slab_pages
            built.entries += entries
        del packed, until  # frees this memory before the next keys are sorted
    built.devices = built.entries
    built.pages = _add_spans(pages, spans, built) if spans else pages
    return built


def _add_spans(pages: Sequence[Page], spans: Mapping[int, Sequence[Span]], counts: Built) -> list[Page]:
    """Add ranges of identifiers to pages of single identifiers, and return the new pages.

    `spans`: ranges by page number. `counts` is corrected.
    """
    replaced = {page.number: page for page in pages if page.number in spans}
    result = [page for page in pages if page.number not in spans]
    for number, page_spans in spans.items():
        singles = replaced.get(number, Page(number, b""))
        page = _with_spans(singles, page_spans)
        counts.count(singles, -1)
        counts.count(page)
        result.append(page)
    return sorted(result)


def amend_pages(
    before: Iterable[Page],
    removed: Iterable[Page],
    added: Iterable[Page],
    content_digest: str,
    now: float = 0.0,
    *,
    one_each: bool = False,
) -> Built:
    """Apply a delta to the pages that it changes.

    The identifiers of `removed` are deleted first, then the identifiers of `added` are inserted. An added identifier that
    the list already has gets reason and expiry of its new row. A TAC is an entry of its own: a removed TAC leaves the
    single identifiers with the same 8 digits, and removing an identifier that only a TAC covers has no effect.

    Args:
        before: pages of the list with the page numbers of the delta.
        removed: pages built from the delta's removed rows.
        added: pages built from the delta's added rows.
        content_digest: content digest of the list before the delta.
        now: time in Unix seconds, as for `differences`.
        one_each: True if each device has only one IMSI or type, as for `amend_pairs`.
    """
    old_pages = {page.number: page for page in before}
    removed_pages = {page.number: page for page in removed}
    added_pages = {page.number: page for page in added}
    amended = Built()
    changed, after = [], []
    for number in sorted(removed_pages.keys() | added_pages.keys()):
        empty = Page(number, b"")
        old = old_pages.get(number, empty)
        page = _amend_page(old, removed_pages.get(number, empty), added_pages.get(number, empty), one_each)
        if page != old:
            amended.count(old, -1)
            amended.count(page)
            changed.append(old)
            after.append(page)
    amended.pages = after
    amended.come, amended.gone = differences(changed, after, now)
    amended.content_digest = amended_digest(content_digest, changed, after)
    return amended


def _partial_spans(spans: Iterable[Span]) -> list[Span]:
    """Return those ranges of identifiers that cover only a part of their TAC."""
    return [span for span in spans if not span.is_whole_tac]


def _bounds(spans: Sequence[Span]) -> tuple[int, int]:
    """Return the lowest key % 10^6 of several ranges in one page, and the highest plus 1; (0, 0) without ranges."""
    begin = min((span.first for span in spans), default=0)
    end = max((span.last + 1 for span in spans), default=0)
    return begin, end


def _with_spans(page: Page, spans: Sequence[Span]) -> Page:
    """Return a copy of a page of single identifiers, with the ranges added."""
    tacs = [TacEntry(span.reason, span.until) for span in spans if span.is_whole_tac]
    tac = min(tacs, key=lambda tac: (tac.until != 0, -tac.until, tac.reason), default=None)
    partial = _partial_spans(spans)
    if not partial:  # no single identifier is added: the page need not be decoded
        return page if tac is None else page._replace(extra=tac.extra + page.extra)
    content = decode(page)
    begin, end = _bounds(partial)
    first, last = np.searchsorted(content.low, (begin, end))
    at = content.low[first:last] - np.uint32(begin)
    present = np.zeros(end - begin, bool)
    reasons = np.zeros(end - begin, np.uint8)
    until = np.zeros(end - begin, np.int64)
    present[at] = True
    reasons[at] = content.reasons[first:last]
    until[at] = content.until[first:last]
    # A range overwrites identifiers with an equal or earlier expiry. Of equal expiries, the lowest reason index is written last.
    for span in sorted(partial, key=lambda span: (span.until == 0, span.until, -span.reason)):
        part = slice(span.first - begin, span.last + 1 - begin)
        overwritten = ~present[part] | (endless(until[part]) <= endless(np.array(span.until)))
        reasons[part][overwritten] = span.reason
        until[part][overwritten] = span.until
        present[part] = True
    entries = np.flatnonzero(present)
    range_low = (entries + begin).astype(np.uint32)
    low = np.concatenate((content.low[:first], range_low, content.low[last:]))
    reasons = np.concatenate((content.reasons[:first], reasons[entries], content.reasons[last:]))
    until = np.concatenate((content.until[:first], until[entries], content.until[last:]))
    return encode(page.number, Content(low, reasons, until, tac))


def _amend_page(old_page: Page, removed_page: Page, added_page: Page, one_each: bool) -> Page:
    if any(map(has_pairs, (old_page, removed_page, added_page))):
        return amend_pairs(old_page, removed_page, added_page, one_each=one_each)
    if old_page.is_empty:
        return added_page
    old = decode(old_page)
    removed = decode(removed_page)
    added = decode(added_page)
    changed = np.union1d(removed.low, added.low)
    kept = ~np.isin(old.low, changed, assume_unique=True)
    low = np.concatenate((old.low[kept], added.low))
    order = np.argsort(low, kind="stable")
    reasons = np.concatenate((old.reasons[kept], added.reasons))
    until = np.concatenate((old.until[kept], added.until))
    kept_tac = old.tac if removed.tac is None else None
    content = Content(low[order], reasons[order], until[order], added.tac or kept_tac)
    return encode(old_page.number, content)


def _slabs(packed: Keys, most: int) -> Iterator[tuple[int, int]]:
    """Split sorted keys into slices of about `most` keys that end at page boundaries; yield the bounds of each slice."""
    first = 0
    while first < len(packed):
        end = min(first + most, len(packed))
        key = int(packed[end - 1] >> _REASON_BITS)
        next_page = (key // PAGE_KEYS + 1) * PAGE_KEYS
        packed_page = next_page << int(_REASON_BITS)
        last = len(packed)
        if packed_page < 1 << 64:
            last = int(np.searchsorted(packed, np.uint64(packed_page)))
        yield first, last
        first = last


def _encode_slab(packed: Keys, until: Seconds | None, base: int) -> tuple[list[Page], int]:
    """Encode sorted keys, each packed with its reason, to pages; return the pages and the number of identifiers.

    All keys of these pages must be in the slice.
    """
    keys = packed >> _REASON_BITS
    fresh = is_fresh(keys)
    if not fresh.all():
        keys = keys[fresh]
        packed = packed[fresh]
        until = select_rows(until, fresh)
    numbers, low, starts, sizes = split(keys)
    encoded_keys = encode_many(low, starts, sizes)
    reasons = packed.astype(np.uint8)  # the cast keeps the lowest byte of each element
    if until is None:
        until = np.zeros(len(low), np.int64)
    page_extras = encode_extras(reasons, until, starts, sizes)
    numbers += np.uint64(base // PAGE_KEYS)
    pages = zip(numbers.tolist(), encoded_keys, page_extras, strict=True)
    return list(map(Page._make, pages)), len(low)

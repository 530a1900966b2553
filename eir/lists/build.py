"""Rows to pages: collect keys, sort them, drop repeats, cut them at page boundaries, encode them.

Ten million keys go through numpy a slab at a time. A page of scattered keys is written in the Roaring format straight from
the sorted keys, thousands of pages in one go; pages with runs, dense pages and pages that ranges reach into go one by one
through CRoaring. Both ways give the same bytes (tests/test_build.py holds them to it), which the content digest needs.

May import eir.device, numpy, pyroaring and lists.pages; knows neither files nor stores.
"""

import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain, repeat
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap

from eir.device import MEID_BASE
from eir.lists.pages import (
    PAGE_KEYS,
    REASONS,
    SUBSCRIBERS,
    TAC,
    UNTIL,
    Page,
    TacEntry,
    decode_keys,
    decode_sections,
    encode_keys,
    encode_sections,
)

Keys: TypeAlias = NDArray[np.uint64]
ReasonIndexes: TypeAlias = NDArray[np.uint8]
Seconds: TypeAlias = NDArray[np.int64]
"""Unix seconds at which entries end; 0: they do not."""
Indexes: TypeAlias = NDArray[np.int64]
Progress: TypeAlias = Callable[[int, int], None]

SLAB_KEYS = 1 << 16
"""Keys that are encoded in one go: small arrays stay in the processor's cache, and malloc keeps their memory."""
SPAN_PAGES_MAX = 2_000_000
"""Pages that the ranges of one release may reach into, `--force` or not: more would not fit in memory."""
EXPECTED_MAX = 1 << 27
"""Rows for which memory is set aside on a manifest's word; what no row fills is never really taken."""

REASON_CHARS_MAX = 200
REASONS_MAX = 255
OTHER_REASON = "other"

_REASON_BITS = np.uint64(8)
_REASON_MASK = np.uint64(0xFF)
_PAGE = np.uint64(PAGE_KEYS)
_EXACT_QUOTIENTS = np.uint64(1 << 52)
_ROARING_COOKIE = 12346
_make_page: Callable[[tuple[int, bytes, bytes]], Page] = partial(tuple.__new__, Page)
"""As `Page(*fields)`, in half the time."""
_WHOLE = BitMap(range(PAGE_KEYS))


class TooManyPages(ValueError):
    """Ranges that reach into more than SPAN_PAGES_MAX pages."""


class Span(NamedTuple):
    """A range of keys within one page, as far as they are remainders there."""

    first: int
    last: int
    """Inclusive."""
    reason: int
    until: int


@dataclass(frozen=True, slots=True)
class Built:
    """The pages of a list, by rising number, and their sums."""

    pages: list[Page]
    entries: int
    """Single identifiers, and whole TACs, each counted as one."""
    devices: int
    """Identifiers that are listed: a whole TAC counts a million, the single ones under it not again."""


class Sums:
    """Entries and devices of some pages; a whole TAC counts as one entry and, with its singles, as a million devices."""

    __slots__ = ("devices", "entries")

    def __init__(self) -> None:
        self.entries = self.devices = 0

    def add(self, singles: int) -> None:
        """Count identifiers that are listed on their own, none of them under a listed TAC."""
        self.devices += singles
        self.entries += singles

    def count(self, page: Page, sign: int) -> None:
        """Count a page in (1) or out (-1)."""
        singles = len(decode_keys(page.keys))
        whole = page.tac is not None
        self.devices += sign * (PAGE_KEYS if whole else singles)
        self.entries += sign * (singles + whole)


class Reasons:
    """Texts that a reason byte stands for, in the order in which they first appeared; the first stands for none."""

    def __init__(self, known: Sequence[str] = ()) -> None:
        """`known`: those that a list's pages refer to already."""
        self._texts = list(known) or [""]
        self._index = {text: index for index, text in enumerate(self._texts[:REASONS_MAX])}

    @property
    def texts(self) -> tuple[str, ...]:
        """As a state carries them; empty if no row had a reason."""
        return tuple(self._texts) if len(self._texts) > 1 else ()

    @property
    def known(self) -> Sequence[str]:
        """Those that have a byte of their own."""
        return self._texts[:REASONS_MAX]

    def index(self, text: str) -> int:
        """The byte for a text of at most REASON_CHARS_MAX characters; past 255 texts new ones are `other`."""
        if (index := self._index.get(text)) is not None:
            return index
        if len(self._texts) < REASONS_MAX:
            self._index[text] = len(self._texts)
            self._texts.append(text)
            return self._index[text]
        if len(self._texts) == REASONS_MAX:
            self._texts.append(OTHER_REASON)
        return REASONS_MAX


class _Singles:
    """Keys with their reasons, packed into one array that grows: chunk by chunk, without a copy at the end."""

    __slots__ = ("_ends", "_packed", "_used")

    def __init__(self, expected: int) -> None:
        self._packed: Keys = np.empty(expected, np.uint64)  # memory is taken where it is written to, not here
        self._used = 0
        self._ends: list[tuple[int, Seconds]] = []
        """Where chunks with ends begin, and those ends."""

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

    def take(self) -> tuple[Keys, Seconds | None]:
        """Packed keys in the order of Rows, with their ends if any row has one; nothing is left here."""
        packed, ends = self._packed[: self._used], self._ends
        self._packed, self._used, self._ends = np.empty(0, np.uint64), 0, []
        if not ends:
            packed.sort()
            return packed, None
        until = np.zeros(len(packed), np.int64)
        for first, some in ends:
            until[first : first + len(some)] = some
        order = np.lexsort((packed & _REASON_MASK, ~_ends(until), packed >> _REASON_BITS))
        return packed[order], until[order]


class Rows:
    """What the rows of a release say, collected file by file and chunk by chunk; order does not matter.

    A row names entries: an identifier, a whole TAC, or a range. A range is, cut at page boundaries, a whole TAC for each TAC
    that it covers from end to end, and single identifiers besides. It is the row alone that tells, not what is listed
    already or by other rows: so a chain of deltas leads to the same entries as the full list. (Two ranges that only together
    cover a TAC are a million single identifiers.)

    Of rows that name the same entry the one that ends last counts, of those the one with the lowest reason index; a range
    counts before a single row, whatever its reason, where both end at the same time.
    """

    def __init__(self, expected: int = 0) -> None:
        """`expected`: how many single identifiers may come; more are taken too, with some copying."""
        self._singles = {0: _Singles(min(expected, EXPECTED_MAX)), MEID_BASE: _Singles(0)}
        self._spans: list[tuple[Keys, Keys, ReasonIndexes | None, Seconds | None]] = []
        self._pairs: list[tuple[Keys, Keys, ReasonIndexes, Seconds]] = []

    def add(self, keys: Keys, reasons: ReasonIndexes | None = None, until: Seconds | None = None, *, base: int = 0) -> None:
        """Single identifiers: keys less `base`, which is 0 or MEID_BASE, so that a key and a reason fit in 64 bits."""
        self._singles[base].append(keys, reasons, until)

    def add_spans(
        self, first: Keys, last: Keys, reasons: ReasonIndexes | None = None, until: Seconds | None = None
    ) -> None:
        """Ranges of keys, inclusive, first <= last; a whole TAC is one from its lowest key to its highest."""
        self._spans.append((first, last, reasons, until))

    def add_pairs(
        self, keys: Keys, imsis: Keys, reasons: ReasonIndexes | None = None, until: Seconds | None = None
    ) -> None:
        """Devices, each with a subscriber (an IMSI's key). The reason is kept for the device, not for the pair."""
        self._pairs.append(
            (
                keys,
                imsis,
                np.zeros(len(keys), np.uint8) if reasons is None else reasons,
                np.zeros(len(keys), np.int64) if until is None else until,
            )
        )

    def pairs(self) -> tuple[Keys, Keys, ReasonIndexes, Seconds] | None:
        """All pairs by device and subscriber, each once; None if there are none."""
        if not self._pairs:
            return None
        keys, imsis, reasons, until = (np.concatenate(parts) for parts in zip(*self._pairs, strict=True))
        order = np.lexsort((reasons, ~_ends(until), imsis, keys))
        keys, imsis, reasons, until = keys[order], imsis[order], reasons[order], until[order]
        fresh = np.ones(len(keys), bool)
        fresh[1:] = (keys[1:] != keys[:-1]) | (imsis[1:] != imsis[:-1])
        return keys[fresh], imsis[fresh], reasons[fresh], until[fresh]

    def sorted(self, base: int) -> tuple[Keys, Seconds | None]:
        """Packed keys in order, with their ends if any row has one; they are let go here, so that they exist once."""
        return self._singles[base].take()

    def spans(self) -> dict[int, list[Span]]:
        """The ranges, cut at page boundaries, by page. Raises TooManyPages."""
        pages = sum(int((last // _PAGE - first // _PAGE).sum()) + len(first) for first, last, *_ in self._spans)
        if pages > SPAN_PAGES_MAX:
            raise TooManyPages(f"the ranges reach into {pages} TACs; {SPAN_PAGES_MAX} is the most that can be held")
        by_page: dict[int, list[Span]] = {}
        for first, last, reasons, until in self._spans:
            reason_list = [0] * len(first) if reasons is None else reasons.tolist()
            until_list = [0] * len(first) if until is None else until.tolist()
            for low, high, reason, end in zip(first.tolist(), last.tolist(), reason_list, until_list, strict=True):
                for number in range(low // PAGE_KEYS, high // PAGE_KEYS + 1):
                    start = number * PAGE_KEYS
                    span = Span(max(low - start, 0), min(high - start, PAGE_KEYS - 1), reason, end)
                    by_page.setdefault(number, []).append(span)
        return by_page


def build_pages(rows: Rows, progress: Progress | None = None) -> Built:
    """The pages of a full list. `progress` gets keys done and keys in all. Raises TooManyPages."""
    sums = Sums()
    if (pairs := rows.pairs()) is not None:
        pages = _pair_pages(*pairs)
        for page in pages:
            sums.count(page, 1)
        return Built(pages, sums.entries, sums.devices)
    spans = rows.spans()
    pages = []
    for base in (0, MEID_BASE):
        packed, until = rows.sorted(base)
        for first, last in _slabs(packed):
            if progress is not None:
                progress(first, len(packed))
            pages += _encode_slab(packed[first:last], None if until is None else until[first:last], base, sums)
        del packed, until
    if not spans:
        return Built(pages, sums.entries, sums.devices)
    singles = {page.number: page for page in pages if page.number in spans}
    for page in singles.values():
        sums.count(page, -1)
    covered = [_with_spans(singles.get(number, Page(number, b"")), some) for number, some in spans.items()]
    for page in covered:
        sums.count(page, 1)
    merged = sorted(chain((page for page in pages if page.number not in singles), covered))
    return Built(merged, sums.entries, sums.devices)


def amend_pages(
    before: Iterable[Page], removed: Iterable[Page], added: Iterable[Page]
) -> tuple[list[Page], Sums]:
    """What a delta makes of the pages that it touches, and by how much entries and devices change.

    `removed`, `added`: pages built from the delta's rows; `before`: those of the list that have their numbers. Identifiers
    in `removed` go, then those in `added` come; one that is in the list already takes the reason and the end of its new
    row. TACs do so too, on their own: a removed TAC leaves what is listed singly under it, and a removed identifier that only
    its TAC covers is not there. An emptied page is gone. Pages that stay as they were are left out.
    """
    old, gone, new = ({page.number: page for page in pages} for pages in (before, removed, added))
    sums = Sums()
    after: list[Page] = []
    for number in sorted(gone.keys() | new.keys()):
        empty = Page(number, b"")
        had = old.get(number, empty)
        page = _amended(had, gone.get(number, empty), new.get(number, empty))
        if page != had:
            sums.count(had, -1)
            sums.count(page, 1)
            after.append(page)
    return after, sums


def differences(before: Iterable[Page], after: Iterable[Page]) -> tuple[int, int]:
    """Identifiers that come and that go between two lists (or the touched pages of one), a TAC counted as a million.

    One that a TAC covers before and after stays, whether it is listed on its own or not.
    """
    old = {page.number: page for page in before}
    come = go = 0
    for page in after:
        was = old.pop(page.number, None)
        if was is None or was.keys != page.keys or was.tac != page.tac:
            had, has = BitMap() if was is None else _listed(was), _listed(page)
            come += has.difference_cardinality(had)
            go += had.difference_cardinality(has)
    return come, go + sum(len(_listed(page)) for page in old.values())


class _Content(NamedTuple):
    """A page of single identifiers, unfolded: remainders in order and what was said of each."""

    low: NDArray[np.uint32]
    reasons: ReasonIndexes
    until: Seconds
    tac: TacEntry | None = None


class _Paired(NamedTuple):
    """What a page of pairs says of one device."""

    reason: int
    imsis: dict[int, int]
    """Each with the end of its pair."""


def _decode(page: Page) -> _Content:
    if not page.keys:
        return _Content(np.empty(0, np.uint32), np.empty(0, np.uint8), np.empty(0, np.int64), page.tac)
    low = np.frombuffer(decode_keys(page.keys).to_array(), np.uint32)
    sections = decode_sections(page.extra)
    reasons = np.frombuffer(sections.get(REASONS, b"\0"), np.uint8)
    until = np.frombuffer(sections.get(UNTIL, bytes(8)), "<i8").astype(np.int64)
    return _Content(low, np.resize(reasons, len(low)), np.resize(until, len(low)), page.tac)


def _encode(number: int, content: _Content) -> Page:
    whole = b"" if content.tac is None else _tac_extra(content.tac)
    if not len(content.low):
        return Page(number, b"", whole)
    return Page(number, _encode_one(content.low), whole + _extra(content.reasons, content.until))


def _extra(reasons: ReasonIndexes, until: Seconds) -> bytes:
    one_reason, one_end = (reasons == reasons[0]).all(), (until == until[0]).all()
    if one_reason and one_end:
        return _shared_extra(int(reasons[0]), int(until[0]))
    return encode_sections(
        (
            (REASONS, _reason_section(int(reasons[0])) if one_reason else reasons.tobytes()),
            (UNTIL, _until_section(int(until[0])) if one_end else until.astype("<i8").tobytes()),
        )
    )


@lru_cache(maxsize=1024)
def _shared_extra(reason: int, until: int) -> bytes:
    """`extra` of a page all of whose keys have the same reason and the same end."""
    return encode_sections(((REASONS, _reason_section(reason)), (UNTIL, _until_section(until))))


@lru_cache(maxsize=1024)
def _tac_extra(tac: TacEntry) -> bytes:
    """The section of a whole TAC, with which `extra` begins."""
    return encode_sections(((TAC, tac.encode()),))


def _reason_section(reason: int) -> bytes:
    return bytes((reason,)) if reason else b""


def _until_section(until: int) -> bytes:
    return until.to_bytes(8, "little", signed=True) if until else b""


def _with_spans(page: Page, spans: Sequence[Span]) -> Page:
    """A page of single identifiers with the ranges that reach into it."""
    parts = [span for span in spans if span.last - span.first < PAGE_KEYS - 1]
    whole = [TacEntry(span.reason, span.until) for span in spans if span.last - span.first == PAGE_KEYS - 1]
    tac = min(whole, key=lambda tac: (tac.until != 0, -tac.until, tac.reason), default=None)
    if not parts:  # no identifier comes, so that none needs to be unfolded
        return page if tac is None else page._replace(extra=_tac_extra(tac) + page.extra)
    return _encode(page.number, _with_parts(_decode(page), parts)._replace(tac=tac))


def _with_parts(content: _Content, spans: Sequence[Span]) -> _Content:
    """Single identifiers, and those of ranges."""
    present = np.zeros(PAGE_KEYS, bool)
    reasons = np.zeros(PAGE_KEYS, np.uint8)
    until = np.zeros(PAGE_KEYS, np.int64)
    present[content.low], reasons[content.low], until[content.low] = True, content.reasons, content.until
    # The later write counts: shorter ranges after longer-lasting ones would cut them short, so the longest-lasting is last.
    for span in sorted(spans, key=lambda span: (span.until == 0, span.until, -span.reason)):
        part = slice(span.first, span.last + 1)
        where = ~present[part] | (_ends(until[part]) <= _ends(np.array(span.until)))
        reasons[part][where], until[part][where], present[part] = span.reason, span.until, True
    low = np.flatnonzero(present).astype(np.uint32)
    return _Content(low, reasons[low], until[low])


def _ends(until: Seconds) -> Seconds:
    """Ends that compare: none at all is the latest."""
    return np.where(until == 0, np.iinfo(np.int64).max, until)


def _pair_pages(keys: Keys, imsis: Keys, reasons: ReasonIndexes, until: Seconds) -> list[Page]:
    """Pages of pairs that come by device and subscriber."""
    devices, first, counts = np.unique(keys, return_index=True, return_counts=True)
    endless = _ends(until)
    latest = np.maximum.reduceat(endless, first)
    ends_last = endless == np.repeat(latest, counts)
    reason = np.minimum.reduceat(np.where(ends_last, reasons, np.uint8(0xFF)), first)
    page_of, low = _split(devices)
    starts = np.concatenate(([0], np.flatnonzero(page_of[1:] != page_of[:-1]) + 1))
    sizes = np.diff(starts, append=len(low))
    first_imsi = np.append(first, len(keys))
    return [
        Page(
            int(page_of[start]),
            encoded,
            extra + _bound(counts[start : start + size], *_cut(first_imsi[start], first_imsi[start + size], imsis, until)),
        )
        for start, size, encoded, extra in zip(
            starts.tolist(),
            sizes.tolist(),
            _encode_many(low, starts, sizes),
            _extras(reason, None, starts, sizes),
            strict=True,
        )
    ]


def _cut(first: int, last: int, imsis: Keys, until: Seconds) -> tuple[Keys, Seconds]:
    return imsis[first:last], until[first:last]


def _bound(counts: NDArray[np.integer[Any]], imsis: Keys, until: Seconds) -> bytes:
    """What a page of pairs says of its pairs: how many each device has, their IMSIs, their ends."""
    one_end = (until == until[0]).all()
    return encode_sections(
        (
            (UNTIL, _until_section(int(until[0])) if one_end else until.astype("<i8").tobytes()),
            (SUBSCRIBERS, counts.astype("<u4").tobytes() + imsis.astype("<u8").tobytes()),
        )
    )


def _decode_pairs(page: Page) -> dict[int, _Paired]:
    content = _decode(page)
    sections = decode_sections(page.extra)
    section = sections.get(SUBSCRIBERS, b"")
    counts = np.frombuffer(section[: 4 * len(content.low)], "<u4")
    imsis = np.frombuffer(section[4 * len(content.low) :], "<u8").tolist()
    until = np.resize(np.frombuffer(sections.get(UNTIL, bytes(8)), "<i8"), len(imsis)).tolist()
    ends = np.cumsum(counts, dtype=np.int64).tolist()
    return {
        low: _Paired(reason, dict(zip(imsis[last - count : last], until[last - count : last], strict=True)))
        for low, reason, count, last in zip(
            content.low.tolist(), content.reasons.tolist(), counts.tolist(), ends, strict=True
        )
    }


def _amended_pairs(old: Page, gone: Page, new: Page) -> Page:
    after = _decode_pairs(old)
    for low, goes in _decode_pairs(gone).items():
        had = after.pop(low, None)
        if had is not None and (stays := {imsi: end for imsi, end in had.imsis.items() if imsi not in goes.imsis}):
            after[low] = had._replace(imsis=stays)
    for low, comes in _decode_pairs(new).items():
        had = after.get(low)
        after[low] = comes if had is None else comes._replace(imsis=had.imsis | comes.imsis)
    rows = [
        (old.number * PAGE_KEYS + low, imsi, paired.reason, end)
        for low, paired in sorted(after.items())
        for imsi, end in sorted(paired.imsis.items())
    ]
    if not rows:
        return Page(old.number, b"")
    keys, imsis, reasons, until = zip(*rows, strict=True)
    return _pair_pages(
        np.array(keys, np.uint64), np.array(imsis, np.uint64), np.array(reasons, np.uint8), np.array(until, np.int64)
    )[0]


def _amended(old: Page, gone: Page, new: Page) -> Page:
    if any(SUBSCRIBERS in decode_sections(page.extra) for page in (old, gone, new)):
        return _amended_pairs(old, gone, new)
    if old.gone:
        return new
    had, goes, comes = _decode(old), _decode(gone), _decode(new)
    leaves = np.union1d(goes.low, comes.low)
    stays = ~np.isin(had.low, leaves, assume_unique=True)
    low = np.concatenate((had.low[stays], comes.low))
    order = np.argsort(low, kind="stable")
    return _encode(
        old.number,
        _Content(
            low[order],
            np.concatenate((had.reasons[stays], comes.reasons))[order],
            np.concatenate((had.until[stays], comes.until))[order],
            comes.tac or (had.tac if goes.tac is None else None),
        ),
    )


def _slabs(packed: Keys) -> Iterator[tuple[int, int]]:
    """Bounds of slices of about SLAB_KEYS that end where a page ends."""
    first = 0
    while first < len(packed):
        last = first + SLAB_KEYS
        if last >= len(packed):
            last = len(packed)
        else:
            next_page = (int(packed[last] >> _REASON_BITS) // PAGE_KEYS + 1) * PAGE_KEYS << 8
            last = int(np.searchsorted(packed, np.uint64(next_page))) if next_page < 1 << 64 else len(packed)
        yield first, last
        first = last


def _encode_slab(packed: Keys, until: Seconds | None, base: int, sums: Sums) -> list[Page]:
    """The pages of some sorted packed keys that no page shares with another slab."""
    keys = packed >> _REASON_BITS
    fresh = np.empty(len(keys), bool)
    fresh[0] = True
    np.not_equal(keys[1:], keys[:-1], out=fresh[1:])
    if not fresh.all():
        keys, packed = keys[fresh], packed[fresh]
        until = None if until is None else until[fresh]
    page_of, low = _split(keys)
    starts = np.concatenate(([0], np.flatnonzero(page_of[1:] != page_of[:-1]) + 1))
    numbers = (page_of[starts] + np.uint64(base // PAGE_KEYS)).tolist()
    sizes = np.diff(starts, append=len(low))
    sums.add(len(low))
    encoded = _encode_many(low, starts, sizes)
    reasons = packed.astype(np.uint8)  # the lowest byte of each
    plain = until is None and not reasons.any()
    extras = repeat(b"", len(numbers)) if plain else _extras(reasons, until, starts, sizes)
    return list(map(_make_page, zip(numbers, encoded, extras, strict=True)))


def _split(keys: Keys) -> tuple[Keys, NDArray[np.uint32]]:
    """Page numbers and remainders of sorted keys.

    Doubles are divided and converted from and to signed integers several times as fast as unsigned integers are divided.
    Below 2^52 that is exact: a quotient just below a whole number misses it by 10^-6, and is rounded by less than half that.
    """
    if not len(keys) or keys[-1] < _EXACT_QUOTIENTS:
        page_of = (keys.view(np.int64) / np.float64(PAGE_KEYS)).astype(np.int64).view(np.uint64)
    else:
        page_of = keys // _PAGE
    # The remainder is below 2^32, so arithmetic modulo 2^32 gives it.
    return page_of, keys.astype(np.uint32) - page_of.astype(np.uint32) * np.uint32(PAGE_KEYS)


def _extras(reasons: ReasonIndexes, until: Seconds | None, starts: Indexes, sizes: Indexes) -> Iterator[bytes]:
    """`extra` of each page: `reasons` and `until` from each start on, as many as its size says."""
    lowest, highest = np.minimum.reduceat(reasons, starts), np.maximum.reduceat(reasons, starts)
    one_end = np.ones(len(starts), bool)
    if until is None:
        until = np.zeros(0, np.int64)
        first_ends = np.zeros(len(starts), np.int64)
    else:
        one_end = np.minimum.reduceat(until, starts) == np.maximum.reduceat(until, starts)
        first_ends = until[starts]
    raw = reasons.tobytes()
    columns = (starts, starts + sizes, lowest, lowest == highest, first_ends, one_end)
    for first, last, reason, same_reason, end, same_end in zip(*(column.tolist() for column in columns), strict=True):
        if same_reason and same_end:
            yield _shared_extra(reason, end)
        else:
            yield encode_sections(
                (
                    (REASONS, _reason_section(reason) if same_reason else raw[first:last]),
                    (UNTIL, _until_section(end) if same_end else until[first:last].astype("<i8").tobytes()),
                )
            )


def _encode_one(low: NDArray[np.uint32]) -> bytes:
    keys = array.array("I")
    keys.frombytes(low.tobytes())
    return encode_keys(BitMap(keys))


def _encode_many(low: NDArray[np.uint32], starts: Indexes, sizes: Indexes) -> list[bytes]:
    """The Roaring form of each page: `low` from each start on, as many as its size says."""
    high = low >> np.uint32(16)
    fresh = np.empty(len(low), bool)
    fresh[0] = True
    np.not_equal(high[1:], high[:-1], out=fresh[1:])
    fresh[starts] = True
    containers = np.flatnonzero(fresh)
    counts = np.diff(containers, append=len(low))
    adjacent = np.flatnonzero((low[1:] - low[:-1] == 1) & ~fresh[1:]) + 1
    joined = np.bincount(np.searchsorted(containers, adjacent, side="right") - 1, minlength=len(containers))
    runs = counts - joined
    first_container = np.searchsorted(containers, starts)
    per_page = np.diff(first_container, append=len(containers))
    # CRoaring stores a container as an array while it has 4096 keys at most and runs would not be shorter.
    plain = np.logical_and.reduceat((counts <= 4096) & (2 * runs >= counts), first_container)
    if plain.all():
        return _encode_arrays(low, sizes, high[containers], counts, per_page)
    in_plain = np.repeat(plain, per_page)
    some = _encode_arrays(
        low[np.repeat(plain, sizes)], sizes[plain], high[containers][in_plain], counts[in_plain], per_page[plain]
    )
    scattered = iter(some)
    return [
        next(scattered) if is_plain else _encode_one(low[start : start + size])
        for is_plain, start, size in zip(plain.tolist(), starts.tolist(), sizes.tolist(), strict=True)
    ]


def _encode_arrays(
    low: NDArray[np.uint32], sizes: Indexes, high: NDArray[np.uint32], counts: Indexes, per_page: Indexes
) -> list[bytes]:
    """Pages of array containers only, in the portable format (RoaringFormatSpec, "no run containers"), all at once.

    In units of two bytes a page is: cookie 2, number of containers 2; for each container its upper half and its count less
    one; for each container the byte at which its keys begin (2); the lower halves of all keys. `sizes` and `per_page` hold
    keys and containers of each page, `high` and `counts` the upper half and the keys of each container.
    """
    if not len(low):
        return []
    lengths = 4 + 4 * per_page + sizes
    ends = np.cumsum(lengths)
    at = ends - lengths
    out = np.empty(int(ends[-1]), "<u2")
    out[at], out[at + 1], out[at + 2], out[at + 3] = _ROARING_COOKIE, 0, per_page, 0

    first_container = np.cumsum(per_page) - per_page
    ordinal = np.arange(len(high)) - np.repeat(first_container, per_page)
    description = np.repeat(at + 4, per_page) + 2 * ordinal
    out[description], out[description + 1] = high, counts - 1

    first_key = np.cumsum(counts) - counts
    page_key = first_key[first_container]
    begins = 2 * (first_key - np.repeat(page_key - 4 - 4 * per_page, per_page))
    offset = description + np.repeat(2 * per_page, per_page)
    out[offset], out[offset + 1] = begins & 0xFFFF, begins >> 16

    places = np.repeat(at + 4 + 4 * per_page - page_key, sizes)
    places += np.arange(len(low))
    out[places] = low.astype(np.uint16)  # the lower half
    data = out.tobytes()
    return [data[first:last] for first, last in zip((2 * at).tolist(), (2 * ends).tolist(), strict=True)]


def _listed(page: Page) -> BitMap:
    """What is listed, on its own or by its TAC."""
    return decode_keys(page.keys) if page.tac is None else _WHOLE

"""Chunks: pages of a list converted to arrays, from which the image of the list in memory is built.

A chunk has pages in ascending order; the keys of a page are grouped in blocks of 2^16. Chunks are built from a store's pages,
or from the unchanged parts of an existing image and the pages that changed.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

import numpy as np

from eir.lists.images.image import BLOCKS, SIGHTINGS, TIMED, WHOLE, WHOLE_PAGES, WHOLE_TIMED, Image
from eir.lists.images.table_image import table_view
from eir.lists.pages.pages import PAGE_KEYS
from eir.lists.pages.roaring import is_fresh
from eir.lists.table.columns import BLOCKS_PER_TAC, ENDS, LOW_BITS, NO_COLUMNS, SECONDS, Numbers, TableRows
from eir.lists.table.columns import WHOLE as WHOLE_KEY
from eir.lists.table.columns import join as join_rows
from eir.lists.table.table import Table, table_of


class Chunk(NamedTuple):
    """Consecutive pages of a list, converted to arrays.

    `bits`: existing blocks and flags of each page. `sizes`: number of keys of each block. `lows`: the lower 16 bits of each
    key. `rows`: number of rows of each page with TIMED. `ends`: end of each of these rows (0: none). `tac_ends`: end of each
    page with WHOLE_TIMED.
    """

    numbers: Numbers
    bits: Numbers
    sizes: Numbers
    lows: Numbers
    rows: Numbers = np.empty(0, np.uint32)
    ends: Numbers = np.empty(0, np.uint32)
    tac_ends: Numbers = np.empty(0, np.uint32)
    counts: Numbers = np.empty(0, np.uint32)
    """In lists of pairs: number of IMSIs of each device."""
    imsis: Numbers = np.empty(0, np.uint64)
    sightings: Numbers = np.empty(0, SIGHTINGS)
    """In a record of first sightings: the days of each device."""


def chunk_of(keys: Numbers) -> Chunk:
    """Build a chunk (pages as arrays) from the distinct keys of a list in ascending order."""
    keys = keys.astype(np.uint64, copy=False)
    pages = keys // np.uint64(PAGE_KEYS)
    return chunk_of_pages(pages, (keys - pages * np.uint64(PAGE_KEYS)).astype(np.uint32))


def chunk_of_pages(pages: Numbers, remainders: Numbers) -> Chunk:
    """Build a chunk (pages as arrays) from keys that are already split into page numbers and remainders."""
    if not len(pages):
        return Chunk(*(np.empty(0, form) for form in (np.uint64, np.uint32, np.uint32, np.uint16)))
    uppers = remainders >> np.uint32(LOW_BITS)
    fresh_page = is_fresh(pages)
    fresh = is_fresh(uppers)
    fresh |= fresh_page
    blocks = np.flatnonzero(fresh)
    first_of_page = np.flatnonzero(fresh_page[blocks])
    bits = np.bitwise_or.reduceat(np.uint32(1) << uppers[blocks], first_of_page)
    sizes = np.diff(blocks, append=len(pages)).astype(np.uint32)
    return Chunk(pages[blocks[first_of_page]].astype(np.uint64), bits, sizes, remainders.astype(np.uint16))


@dataclass(slots=True, frozen=True)
class PageRows:
    """Rows of one page (the devices of one TAC), with all columns.

    `ends` (Unix seconds, 0 for none) has one value for each row, one value for all rows, or no value.
    """

    number: int
    keys: Numbers
    """Remainders of the single identifiers in ascending order."""
    ends: Numbers = field(default_factory=lambda: np.empty(0, np.uint32))
    counts: Numbers = field(default_factory=lambda: np.empty(0, np.uint32))
    """In lists of pairs: number of IMSIs of each key; each pair is a row."""
    imsis: Numbers = field(default_factory=lambda: np.empty(0, np.uint64))
    tac: int | None = None
    """End of the entry for the whole TAC in Unix seconds (0: no end); None if the TAC is not listed as a whole."""

    @property
    def is_plain(self) -> bool:
        """True if the page has only single identifiers without an expiry and without IMSIs."""
        return self.tac is None and not len(self.ends) and not len(self.counts) and bool(len(self.keys))

    def chunk(self) -> Chunk:
        """Convert the page to a chunk (arrays), from which images are built."""
        keys = self.keys.astype(np.uint32, copy=False)
        plain = chunk_of_pages(np.full(len(keys), self.number, np.uint64), keys)
        bits = int(plain.bits[0]) if len(keys) else 0
        tac_ends = list[int]()
        if self.tac:
            bits |= WHOLE_TIMED
            tac_ends = [self.tac]
        elif self.tac is not None:
            bits |= WHOLE
        ends = np.empty(0, np.uint32)
        rows = list[int]()
        if self.ends.any():
            bits |= TIMED
            rows = [len(self.imsis) if len(self.counts) else len(keys)]
            ends = np.broadcast_to(self.ends.astype(np.uint32), rows)
        return Chunk(
            numbers=np.array([self.number], np.uint64),
            bits=np.array([bits], np.uint32),
            sizes=plain.sizes,
            lows=plain.lows,
            rows=np.array(rows, np.uint32),
            ends=ends,
            tac_ends=np.array(tac_ends, np.uint32),
            counts=self.counts.astype(np.uint32),
            imsis=self.imsis.astype(np.uint64),
        )


def chunks_of_rows(pages: Iterable[PageRows | None]) -> Iterator[Chunk]:
    """Convert pages in ascending order to chunks (arrays). Consecutive pages that have only keys share one chunk."""
    existing = (page for page in pages if page is not None)
    for is_plain, group in groupby(existing, lambda page: page.is_plain):
        if not is_plain:
            yield from map(PageRows.chunk, group)
            continue
        rows = list(group)
        counts = [len(page.keys) for page in rows]
        numbers = np.array([page.number for page in rows], np.uint64)
        remainders = np.concatenate([page.keys for page in rows])
        yield chunk_of_pages(np.repeat(numbers, counts), remainders.astype(np.uint32, copy=False))


def with_changes(old: Chunk, changes: Mapping[int, PageRows | None]) -> Chunk:
    """Return a copy of a chunk in which some pages are replaced. `changes`: page number → new rows; None removes the page."""
    numbers = sorted(changes)
    new = chunks_of_rows(changes[number] for number in numbers)
    return replace_pages(old, np.array(numbers, np.uint64), join(list(new)))


def replace_pages(old: Chunk, numbers: Numbers, new: Chunk) -> Chunk:
    """Return a copy of the chunk `old` in which the pages with these numbers (ascending) are replaced by those of the chunk `new`.

    A page that `new` lacks is removed.
    """
    removed, added = _page_ranges(old, numbers), _page_ranges(new, numbers)
    columns = zip(old, _bounds(old), new, _bounds(new), strict=True)
    return Chunk(
        *(
            _splice(before, old_bounds[removed], after, new_bounds[added])
            for before, old_bounds, after, new_bounds in columns
        )
    )


def _page_ranges(of: Chunk, numbers: Numbers) -> Numbers:
    """Find pages of a chunk by their numbers; return the index range of each page: one row of starts, one row of ends.

    The indexes count the pages of the chunk. A page that the chunk lacks has an empty range.
    """
    return np.stack([np.searchsorted(of.numbers, numbers, side) for side in ("left", "right")])


def _bounds(of: Chunk) -> Chunk:
    """Return, for each array of a chunk, the indexes at which the pages begin. The last index is the length of the array."""
    pages = np.arange(len(of.numbers) + 1)
    blocks = begins(blocks_of(of.bits))
    keys = begins(of.sizes)[blocks]
    with_ends = begins(of.bits & TIMED != 0)
    none = np.zeros_like(keys)
    devices = keys if len(of.counts) else none
    return Chunk(
        numbers=pages,
        bits=pages,
        sizes=blocks,
        lows=keys,
        rows=with_ends,
        ends=begins(of.rows)[with_ends],
        tac_ends=begins(of.bits & WHOLE_TIMED != 0),
        counts=devices,
        imsis=begins(of.counts)[devices],
        sightings=keys if len(of.sightings) else none,
    )


def _splice(old: Numbers, removed: Numbers, new: Numbers, added: Numbers) -> Numbers:
    """Return a copy of the array `old` in which the ranges `removed` are replaced by the ranges `added` of the array `new`.

    `removed` and `added` have two rows: the starts and the ends of the ranges.
    """
    pieces: list[Numbers] = []
    at = 0
    for start, end, first, last in zip(*removed.tolist(), *added.tolist(), strict=True):
        pieces += (old[at:start], new[first:last])
        at = end
    pieces.append(old[at:])
    return np.concatenate(pieces)


def join(chunks: Sequence[Chunk]) -> Chunk:
    """Concatenate chunks of a list to one chunk. Their pages must be in ascending order.

    Raises:
        ValueError: if their pages do not ascend.
    """
    chunks = chunks or [chunk_of(np.empty(0, np.uint64))]
    whole = chunks[0] if len(chunks) == 1 else Chunk(*map(np.concatenate, zip(*chunks, strict=True)))
    if (whole.numbers[1:] <= whole.numbers[:-1]).any():
        raise ValueError("the pages of a list do not ascend")
    return whole


def begins(counts: Numbers) -> Numbers:
    """Return the index at which each of several consecutive groups begins, and then the total size. `counts`: sizes of the groups.

    All indexes are below 2^32.
    """
    positions = np.zeros(len(counts) + 1, np.uint32)
    np.cumsum(counts, dtype=np.uint32, out=positions[1:])
    return positions


def blocks_of(bits: Numbers) -> Numbers:
    """Return the number of key blocks (ranges of 2^16 keys) in each page. It is the number of bits set in the block mask of the page."""
    counts = bits & BLOCKS
    for shift, mask in ((1, 0x5555), (2, 0x3333), (4, 0x0F0F), (8, 0x00FF)):
        counts = (counts & mask) + (counts >> np.uint32(shift) & mask)
    return counts


def table_of_chunk(of: Chunk) -> Table:
    """Return the rows of a chunk as a table."""
    at, bit = np.nonzero(of.bits[:, None] >> np.arange(BLOCKS_PER_TAC, dtype=np.uint32) & np.uint32(1))
    blocks, starts = of.numbers[at] * np.uint64(BLOCKS_PER_TAC) | bit.astype(np.uint64), begins(of.sizes)
    lows, imsis = of.lows, of.imsis if len(of.counts) else None
    if len(of.counts):
        lows, starts = np.repeat(lows, of.counts), begins(of.counts)[starts]
    ends = None
    if len(of.ends):
        ends = np.zeros(len(lows), "<u4")
        ends[np.repeat(of.bits & TIMED != 0, np.diff(starts[begins(blocks_of(of.bits))]))] = of.ends
    columns = (imsis, None, None, ends, None)
    is_whole = of.bits & np.uint32(WHOLE | WHOLE_TIMED) != 0
    if not is_whole.any():
        return Table(blocks, starts, lows, columns)
    flags, tac_ends = of.bits[is_whole], np.zeros(int(is_whole.sum()), "<u4")
    tac_ends[flags & WHOLE_TIMED != 0] = of.tac_ends
    whole = table_of(TableRows(of.numbers[is_whole] | np.uint64(WHOLE_KEY), (*NO_COLUMNS[:ENDS], tac_ends, None)))
    both = join_rows((TableRows(lows, columns), TableRows(whole.lows, whole.columns)))
    all_blocks, all_starts = np.append(blocks, whole.blocks), np.append(starts, starts[-1] + whole.starts[1:])
    return Table(all_blocks, all_starts, both.keys, both.columns)


def chunk_of_image(image: Image) -> Chunk:
    """Return all rows of an image as one chunk, from which a changed image can be built. Begins are lost."""
    of, table = image.arrays, table_view(image)
    pages = int(np.searchsorted(of["numbers"], np.uint64(WHOLE_PAGES)))
    numbers, bits = of["numbers"][:pages], of["bits"][:pages]
    block = int(of["firsts"][pages])
    devices, rows = int(of["offsets"][block]), int(table.starts[block])
    is_timed = bits & TIMED != 0
    page_rows = np.diff(table.starts[of["firsts"][: pages + 1]])
    ends = table.columns[ENDS]
    is_whole = bits & np.uint32(WHOLE | WHOLE_TIMED) != 0
    stops, seconds = of["row_stops"], table.columns[SECONDS]
    counts = none = np.empty(0, np.uint32)
    if seconds is not None:
        counts = np.diff(stops, prepend=np.uint32(0)) if len(stops) else np.ones(devices, np.uint32)
    return Chunk(
        numbers=numbers,
        bits=bits,
        sizes=np.diff(of["offsets"][: block + 1]),
        lows=of["lows"][:devices],
        rows=page_rows[is_timed],
        ends=none if ends is None else ends[:rows][np.repeat(is_timed, page_rows)],
        tac_ends=none if ends is None else ends[rows:][bits[is_whole] & WHOLE_TIMED != 0],
        counts=counts,
        imsis=of["seconds"],
        sightings=of["sightings"],
    )

"""Images of lists (eir.lists.images.image), as they are made of the pages that stores keep."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import groupby

import numpy as np

from eir.lists.images.chunks import (
    ENDS,
    WHOLE,
    WHOLE_UNTIL,
    Chunk,
    Numbers,
    PageRows,
    begins,
    blocks_of,
    chunk_of,
    chunk_of_pages,
    chunks_of_rows,
    joined,
    with_changes,
)
from eir.lists.images.image import (
    ALIGNED,
    BODY_AT,
    HASHED,
    HEADER,
    MAGIC,
    SECTION,
    SECTIONS,
    SLOT_WORDS,
    SPREAD,
    VERSION,
    WORD_BITS,
    Image,
)  # fmt: skip
from eir.lists.images.memory import sealed, write_all
from eir.lists.pages.pages import PAGE_KEYS, Page, Sections, decode_sections
from eir.lists.pages.roaring import BEYOND, ArrayPages, Indexes, decode_keys, is_fresh, may_be_arrays


def make(chunks: Sequence[Chunk]) -> Image:
    """An image of these chunks, whose pages ascend, in a sealed memory file. Raises ValueError if they do not fit one another, and OSError."""
    whole = joined(chunks)
    arrays = _tables(whole)
    if len(whole.counts):
        if len(whole.counts) != len(whole.lows):
            raise ValueError(
                f"a list of pairs with {len(whole.lows)} devices, and {len(whole.counts)} of them with a number of subscribers"
            )
        arrays["pair_ends"] = np.empty(0) if (whole.counts == 1).all() else np.cumsum(whole.counts)
        arrays["imsis"] = whole.imsis
        arrays |= {f"subscriber_{name}": values for name, values in _tables(_subscribers(whole)).items()}
    return Image.map(_written(arrays))


def _tables(of: Chunk) -> dict[str, Numbers]:
    """The look-up tables of all pages. Raises ValueError for more than 2^32 keys."""
    if len(of.lows) >= HASHED or len(of.imsis) >= HASHED:
        raise ValueError("a list has more rows than an image can hold")
    firsts = begins(blocks_of(of.bits))
    return {
        "numbers": of.numbers, "bits": of.bits, "firsts": firsts, "slots": _slots(of.numbers, firsts, of.bits),
        "offsets": begins(of.sizes), "lows": of.lows,
        "end_pages": np.flatnonzero(of.bits & ENDS), "end_starts": begins(of.rows), "ends": of.ends,
        "tac_pages": np.flatnonzero(of.bits & WHOLE_UNTIL), "tac_ends": of.tac_ends,
    }  # fmt: skip


def _slots(numbers: Numbers, firsts: Numbers, bits: Numbers) -> Numbers:
    """The hash of pages."""
    hashed = int(np.searchsorted(numbers, np.uint64(HASHED)))
    size_bits = max(3, (2 * hashed).bit_length())
    slots = np.zeros((1 << size_bits, SLOT_WORDS), np.uint32)
    wanted = numbers[:hashed].astype(np.uint32)
    rows = np.stack((wanted, firsts[:-1][:hashed], bits[:hashed], np.arange(1, hashed + 1, dtype=np.uint32)), axis=1)
    at = (wanted * np.uint32(SPREAD) >> np.uint32(WORD_BITS - size_bits)).astype(np.int64)
    left = np.arange(hashed)
    while len(left):
        # Of those that want a free slot one gets it; the others go on to the next.
        free = left[slots[at[left], 3] == 0]
        slots[at[free]] = rows[free]
        left = left[slots[at[left], 3] != left + 1]
        at[left] = at[left] + 1 & (1 << size_bits) - 1
    return slots.ravel()


def _subscribers(of: Chunk) -> Chunk:
    """All IMSIs, each once, with its last end."""
    if not len(of.ends):
        imsis = np.sort(of.imsis)
        return chunk_of(imsis[is_fresh(imsis)] if len(imsis) else imsis)
    rows_of_page = _rows_of_pages(of)
    ending = np.repeat((of.bits & ENDS) != 0, rows_of_page)
    ends = np.full(len(of.imsis), HASHED, np.uint64)
    ends[ending] = np.where(of.ends == 0, np.uint64(HASHED), of.ends)
    order = np.lexsort((ends, of.imsis))
    imsis, ends = of.imsis[order], ends[order]
    last = np.append(imsis[1:] != imsis[:-1], True)
    imsis, ends = imsis[last], np.where(ends[last] == HASHED, 0, ends[last]).astype(np.uint32)
    plain = chunk_of(imsis)
    pages = imsis // np.uint64(PAGE_KEYS)
    starts = np.flatnonzero(is_fresh(pages))
    rows = np.diff(starts, append=len(imsis)).astype(np.uint32)
    some = np.bitwise_or.reduceat(ends, starts) != 0
    return plain._replace(
        bits=plain.bits | np.where(some, ENDS, 0).astype(np.uint32), rows=rows[some], ends=ends[np.repeat(some, rows)]
    )


def tacs_bound(images: Sequence[Image], to: Collection[int]) -> tuple[memoryview, memoryview, memoryview]:
    """Arrays as Image.lane_arrays, of the TACs that these images bind to one of some keys, each as a whole.

    One that is bound by rows that end alone is whole until then, so that a compiled look-up leaves it to others.
    """
    found = [np.empty(0, np.uint64)]
    for of in (image.chunk() for image in images):
        rows, ends = _rows_of_pages(of), np.zeros(len(of.imsis), np.uint32)
        ends[np.repeat(of.bits & ENDS != 0, rows)] = of.ends
        bound = np.isin(of.imsis, np.fromiter(to, np.uint64))
        found.append(np.repeat(of.numbers, rows)[bound] << np.uint64(1) | (ends[bound] != 0))
    tacs = np.sort(
        np.concatenate(found), kind="stable"
    )  # quick where they are in order; of one TAC first the rows that do not end
    numbers = tacs >> np.uint64(1)
    first = is_fresh(numbers) if len(numbers) else np.empty(0, bool)
    numbers, bits = numbers[first], np.where(tacs[first] % 2, WHOLE_UNTIL, WHOLE).astype(np.uint32)
    no_blocks = np.zeros(len(numbers) + 1, np.uint32)
    return _slots(numbers, no_blocks, bits).data, no_blocks[:1].data, np.empty(0, np.uint16).data


def _rows_of_pages(of: Chunk) -> Numbers:
    """The number of pairs in each page."""
    keys = begins(of.sizes)[begins(blocks_of(of.bits))]
    return np.diff(begins(of.counts)[keys])


def _written(arrays: Mapping[str, Numbers]) -> int:
    """A sealed memory file with these arrays; returns its descriptor."""
    at, table, places = BODY_AT, b"", dict[str, int]()
    for name, form in SECTIONS:
        length = len(arrays.get(name, ())) * np.dtype(form).itemsize
        places[name] = at
        table += SECTION.pack(at, length)
        at += -(-length // ALIGNED) * ALIGNED
    with sealed(at) as descriptor:
        for name, form in SECTIONS:
            if name in arrays:
                write_all(descriptor, np.ascontiguousarray(arrays[name], form).view(np.uint8).data, places[name])
        write_all(descriptor, HEADER.pack(MAGIC, VERSION, len(SECTIONS), at) + table, 0)
    return descriptor


UNTIL_MAX = 2**32 - 1  # 2106: later ends are held as this one
_REASONS, _SUBSCRIBERS, _HEAD = b"R", b"S", 5
"""Tags of sections R and S; tag and length of a section."""
KEYS, PAIRS, ROWS = range(3)
"""Forms of pages: those that say nothing but keys, and those that say pairs without ends, are taken many together."""


def image_of(pages: Sequence[Page]) -> Image:
    """The image of a whole list, whose pages ascend. Raises ValueError if one is damaged, and OSError."""
    return make(chunks_of(pages))


def image_with(image: Image, pages: Sequence[Page]) -> Image:
    """Another image: this one with these pages in place of those of the same number. Raises ValueError if one is damaged, and OSError."""
    return make([with_changes(image.chunk(), {page.number: rows_of(page) for page in pages})])


def chunks_of(pages: Sequence[Page]) -> list[Chunk]:
    """Pages that ascend as a chunk, or none: what a store gives together, many pages at a time. Raises ValueError if one is damaged."""
    found = [chunk for form, group in groupby(pages, _form) for chunk in _chunks(list(group), form)]
    return [joined(found)] if found else []


def _form(page: Page) -> int:
    """The form of a page besides keys and their reasons, which no image has; most pages of a list are of one form."""
    extra, at = page.extra, 0
    if extra[:1] == _REASONS:
        at = _HEAD + int.from_bytes(extra[1:_HEAD], "little")
    if not may_be_arrays(page.keys) or at > len(extra) or extra[at : at + 1] not in {b"", _SUBSCRIBERS}:
        return ROWS
    return PAIRS if extra[at:] else KEYS


def _chunks(pages: Sequence[Page], form: int) -> Iterator[Chunk]:
    if form != ROWS:
        with suppress(
            ValueError
        ):  # one of them looks like it, and is not: each on its own, then, says what is wrong with it
            arrays = ArrayPages([page.keys for page in pages])
            chunk = chunk_of_pages(
                np.repeat(np.array([page.number for page in pages], np.uint64), arrays.counts), arrays.keys()
            )
            yield chunk if form == KEYS else chunk._replace(**_all_pairs(pages, arrays.counts))
            return
    yield from chunks_of_rows(rows_of(page) for page in pages)


def rows_of(page: Page) -> PageRows | None:
    """The rows of a page without reasons; None if it is gone. Raises ValueError if it is damaged."""
    if page.gone:
        return None
    tac = page.tac
    whole_until = None if tac is None else min(max(tac.until, 0), UNTIL_MAX)
    keys = np.frombuffer(decode_keys(page.keys).to_array(), "<u4")
    if len(keys) and keys[-1] >= PAGE_KEYS:
        raise ValueError(BEYOND)
    sections = decode_sections(page.singles.extra)
    counts, imsis = _pairs(page.number, len(keys), sections)
    ends, rows = np.frombuffer(sections.until, "<i8"), len(imsis) if len(counts) else len(keys)
    if len(ends) not in {0, 1, rows}:
        raise ValueError(f"page {page.number} has {rows} rows and {len(ends)} ends")
    if len(keys) == PAGE_KEYS and not ends.any() and not len(counts):
        return PageRows(page.number, keys[:0], tac=0)  # as if it were listed whole
    return PageRows(page.number, keys, np.clip(ends, 0, UNTIL_MAX).astype("<u4"), counts, imsis, whole_until)


def _all_pairs(pages: Sequence[Page], devices: Indexes) -> dict[str, Numbers]:
    """The columns of pairs of these pages, with their numbers of devices. Raises ValueError if one is damaged."""
    sections = [decode_sections(page.extra) for page in pages]
    if any(said.until for said in sections):
        raise ValueError("a page has ends out of place")
    contents, sizes = [said.imsis for said in sections], devices.tolist()
    counts = np.frombuffer(
        b"".join([content[: 4 * size] for content, size in zip(contents, sizes, strict=True)]), "<u4"
    )
    imsis = np.frombuffer(b"".join([content[4 * size :] for content, size in zip(contents, sizes, strict=True)]), "<u8")
    if (
        len(counts) != devices.sum()
        or (4 * devices + 8 * np.add.reduceat(counts, np.cumsum(devices) - devices) != list(map(len, contents))).any()
    ):
        raise ValueError("a page has not as many subscribers as it says")
    return {"counts": counts, "imsis": imsis}


def _pairs(number: int, devices: int, sections: Sections) -> tuple[Numbers, Numbers]:
    """The number of IMSIs of each device, and all IMSIs; both empty if the page has no pairs."""
    content = sections.imsis
    counts = np.frombuffer(content[: 4 * devices], "<u4")
    if content and (len(counts) != devices or len(content) != 4 * devices + 8 * int(counts.sum())):
        raise ValueError(f"page {number} has {devices} devices and {len(content)} bytes of subscribers")
    return counts, np.frombuffer(content[4 * devices :], "<u8")

"""Builder of images (contents of lists in memory) from the pages of a store."""

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
    join,
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


def build_image(chunks: Sequence[Chunk]) -> Image:
    """Build an image in a sealed memory file from chunks (pages as arrays) in ascending order.

    Raises:
        ValueError: if the chunks are inconsistent.
        OSError: if the memory file cannot be written.
    """
    whole = join(chunks)
    arrays = _tables(whole)
    if len(whole.counts):
        if len(whole.counts) != len(whole.lows):
            raise ValueError(
                f"a list of pairs with {len(whole.lows)} devices, and {len(whole.counts)} of them with a number of subscribers"
            )
        arrays["pair_ends"] = np.empty(0) if (whole.counts == 1).all() else np.cumsum(whole.counts)
        arrays["imsis"] = whole.imsis
        subscribers = _tables(_subscribers(whole))
        arrays |= {f"subscriber_{name}": values for name, values in subscribers.items()}
    return Image.map(write_arrays(arrays))


def _tables(of: Chunk) -> dict[str, Numbers]:
    """Build the arrays in which an image looks up keys, from a chunk (pages as arrays).

    Raises:
        ValueError: if there are 2^32 keys or more.
    """
    if len(of.lows) >= HASHED or len(of.imsis) >= HASHED:
        raise ValueError("a list has more rows than an image can hold")
    firsts = begins(blocks_of(of.bits))
    return {
        "numbers": of.numbers,
        "bits": of.bits,
        "firsts": firsts,
        "slots": _slots(of.numbers, firsts, of.bits),
        "offsets": begins(of.sizes),
        "lows": of.lows,
        "end_pages": np.flatnonzero(of.bits & ENDS),
        "end_starts": begins(of.rows),
        "ends": of.ends,
        "tac_pages": np.flatnonzero(of.bits & WHOLE_UNTIL),
        "tac_ends": of.tac_ends,
        "sightings": of.sightings,
    }


def _slots(numbers: Numbers, firsts: Numbers, bits: Numbers) -> Numbers:
    """Build the hash table that maps a page number to the position of the page."""
    hashed = int(np.searchsorted(numbers, np.uint64(HASHED)))
    size_bits = max(3, (2 * hashed).bit_length())
    slots = np.zeros((1 << size_bits, SLOT_WORDS), np.uint32)
    hashed_numbers = numbers[:hashed].astype(np.uint32)
    indexes = np.arange(1, hashed + 1, dtype=np.uint32)
    rows = np.stack((hashed_numbers, firsts[:-1][:hashed], bits[:hashed], indexes), axis=1)
    hashes = hashed_numbers * np.uint32(SPREAD)
    at = (hashes >> np.uint32(WORD_BITS - size_bits)).astype(np.int64)
    unplaced = np.arange(hashed)
    while len(unplaced):
        # If several pages compete for a free slot, one gets it, and the others try the next slot.
        free = unplaced[slots[at[unplaced], 3] == 0]
        slots[at[free]] = rows[free]
        unplaced = unplaced[slots[at[unplaced], 3] != unplaced + 1]
        at[unplaced] = at[unplaced] + 1 & (1 << size_bits) - 1
    return slots.ravel()


def _subscribers(of: Chunk) -> Chunk:
    """Build a chunk for lookups by IMSI from a list of pairs. The chunk has each IMSI once, with the latest expiry of this IMSI."""
    if not len(of.ends):
        imsis = np.sort(of.imsis)
        return chunk_of(imsis[is_fresh(imsis)] if len(imsis) else imsis)
    can_end = np.repeat(of.bits & ENDS != 0, _rows_of_pages(of))
    ends = np.full(len(of.imsis), HASHED, np.uint64)
    ends[can_end] = np.where(of.ends == 0, np.uint64(HASHED), of.ends)
    order = np.lexsort((ends, of.imsis))
    imsis, ends = of.imsis[order], ends[order]
    is_last = np.append(imsis[1:] != imsis[:-1], True)
    imsis, ends = imsis[is_last], ends[is_last]
    ends = np.where(ends == HASHED, 0, ends).astype(np.uint32)
    starts = np.flatnonzero(is_fresh(imsis // np.uint64(PAGE_KEYS)))
    rows = np.diff(starts, append=len(imsis)).astype(np.uint32)
    has_ends = np.bitwise_or.reduceat(ends, starts) != 0
    flags = np.where(has_ends, ENDS, 0).astype(np.uint32)
    plain = chunk_of(imsis)
    return plain._replace(bits=plain.bits | flags, rows=rows[has_ends], ends=ends[np.repeat(has_ends, rows)])


def tacs_bound(images: Sequence[Image], to: Collection[int]) -> tuple[memoryview, memoryview, memoryview]:
    """Build arrays of TACs for the compiled fast path. A TAC is included if a list of device types gives the TAC a type in `to`.

    `to` contains keys of types (device_type_key). The arrays list each TAC as a whole. If all rows that assign the type to
    a TAC have an expiry, the flag of the TAC is WHOLE_UNTIL: then the compiled lookup leaves the check to the general path.
    """
    tagged_tacs = [np.empty(0, np.uint64)]
    for image in images:
        of = image.chunk()
        rows = _rows_of_pages(of)
        ends = np.zeros(len(of.imsis), np.uint32)
        ends[np.repeat(of.bits & ENDS != 0, rows)] = of.ends
        bound = np.isin(of.imsis, np.fromiter(to, np.uint64))
        tacs = np.repeat(of.numbers, rows)[bound]
        tagged_tacs.append(tacs << np.uint64(1) | (ends[bound] != 0))
    # A stable sort is fast if the tags are nearly sorted. Of one TAC, a row without an end comes first.
    tagged = np.sort(np.concatenate(tagged_tacs), kind="stable")
    numbers = tagged >> np.uint64(1)
    if len(numbers):
        is_first = is_fresh(numbers)
        tagged, numbers = tagged[is_first], numbers[is_first]
    bits = np.where(tagged % 2, WHOLE_UNTIL, WHOLE).astype(np.uint32)
    no_blocks = np.zeros(len(numbers) + 1, np.uint32)
    return _slots(numbers, no_blocks, bits).data, no_blocks[:1].data, np.empty(0, np.uint16).data


def _rows_of_pages(of: Chunk) -> Numbers:
    """Return the number of pairs (device, IMSI) on each page of a chunk."""
    keys = begins(of.sizes)[begins(blocks_of(of.bits))]
    return np.diff(begins(of.counts)[keys])


def write_arrays(arrays: Mapping[str, Numbers]) -> int:
    """Write the arrays of an image to a sealed memory file, and return its descriptor."""
    size, table = BODY_AT, b""
    starts = dict[str, int]()
    for name, form in SECTIONS:
        length = len(arrays.get(name, ())) * np.dtype(form).itemsize
        starts[name] = size
        table += SECTION.pack(size, length)
        size += -(-length // ALIGNED) * ALIGNED
    header = HEADER.pack(MAGIC, VERSION, len(SECTIONS), size)
    with sealed(size) as descriptor:
        for name, form in SECTIONS:
            if name in arrays:
                values = np.ascontiguousarray(arrays[name], form)
                write_all(descriptor, values.view(np.uint8).data, starts[name])
        write_all(descriptor, header + table, 0)
    return descriptor


UNTIL_MAX = 2**32 - 1
"""Latest end in an image, in Unix seconds (year 2106). Later ends are stored as this value."""
_REASONS, _SUBSCRIBERS, _HEAD = b"R", b"S", 5
"""Tags of sections R and S; bytes of a section's tag and length."""
KEYS, PAIRS, ROWS = range(3)
"""Forms of pages: keys only; pairs without ends; all others. Pages of the first two forms are decoded many together."""


def image_of(pages: Sequence[Page]) -> Image:
    """Build the image (content in memory) of a whole list from its pages in ascending order.

    Raises:
        ValueError: if a page is damaged.
        OSError: if the memory file cannot be written.
    """
    return build_image(chunks_of(pages))


def image_with(image: Image, pages: Sequence[Page]) -> Image:
    """Build the image (content in memory) of a changed list from the old `image` and the changed `pages`, which replace old pages.

    Raises:
        ValueError: if a page is damaged.
        OSError: if the memory file cannot be written.
    """
    changes = {page.number: rows_of(page) for page in pages}
    return build_image([with_changes(image.chunk(), changes)])


def chunks_of(pages: Sequence[Page]) -> list[Chunk]:
    """Convert stored pages to one chunk (pages as arrays). Return a list with this chunk, or an empty list if there are no pages.

    The pages must be in ascending order.

    Raises:
        ValueError: if a page is damaged.
    """
    chunks = [chunk for form, group in groupby(pages, _form) for chunk in _chunks(list(group), form)]
    return [join(chunks)] if chunks else []


def _form(page: Page) -> int:
    """Return the form of a page's encoding (KEYS, PAIRS or ROWS), by which its decoder is chosen.

    Reasons are ignored, because an image has none. Most pages of a list have the same form.
    """
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
        ):  # if a page has another form, each page is decoded alone, which reports the faulty one
            arrays = ArrayPages([page.keys for page in pages])
            numbers = np.array([page.number for page in pages], np.uint64)
            chunk = chunk_of_pages(np.repeat(numbers, arrays.counts), arrays.keys())
            yield chunk if form == KEYS else chunk._replace(**_all_pairs(pages, arrays.counts))
            return
    yield from chunks_of_rows(rows_of(page) for page in pages)


def rows_of(page: Page) -> PageRows | None:
    """Decode the keys, IMSIs and expiries in a stored page; return None if the page is empty.

    Raises:
        ValueError: if the page is damaged.
    """
    if page.is_empty:
        return None
    tac = page.tac
    whole_until = None if tac is None else min(max(tac.until, 0), UNTIL_MAX)
    keys = np.frombuffer(decode_keys(page.keys).to_array(), "<u4")
    if len(keys) and keys[-1] >= PAGE_KEYS:
        raise ValueError(BEYOND)
    sections = decode_sections(page.singles.extra)
    counts, imsis = _pairs(page.number, len(keys), sections)
    ends = np.frombuffer(sections.until, "<i8")
    rows = len(imsis) if len(counts) else len(keys)
    if len(ends) not in {0, 1, rows}:
        raise ValueError(f"page {page.number} has {rows} rows and {len(ends)} ends")
    if len(keys) == PAGE_KEYS and not ends.any() and not len(counts):
        return PageRows(page.number, keys[:0], tac=0)  # all keys: the same as the whole TAC
    return PageRows(page.number, keys, np.clip(ends, 0, UNTIL_MAX).astype("<u4"), counts, imsis, whole_until)


def _all_pairs(pages: Sequence[Page], devices: Indexes) -> dict[str, Numbers]:
    """Decode the IMSI columns of many pages of a list of pairs.

    `devices` has the number of devices of each page.

    Raises:
        ValueError: if a page is damaged.
    """
    sections = [decode_sections(page.extra) for page in pages]
    if any(section.until for section in sections):
        raise ValueError("a page has ends out of place")
    columns = [section.imsis for section in sections]
    sizes = (4 * devices).tolist()
    counts = np.frombuffer(b"".join([column[:size] for column, size in zip(columns, sizes, strict=True)]), "<u4")
    imsis = np.frombuffer(b"".join([column[size:] for column, size in zip(columns, sizes, strict=True)]), "<u8")
    is_whole = len(counts) == devices.sum()
    if is_whole:
        imsis_of_page = np.add.reduceat(counts, np.cumsum(devices) - devices)
        is_whole = (4 * devices + 8 * imsis_of_page == list(map(len, columns))).all()
    if not is_whole:
        raise ValueError("a page has not as many subscribers as it says")
    return {"counts": counts, "imsis": imsis}


def _pairs(number: int, devices: int, sections: Sections) -> tuple[Numbers, Numbers]:
    """Decode the pairs on a page: the number of IMSIs of each device in order, and the IMSIs of all devices in one array.

    Both arrays are empty if the page has no pairs.
    """
    content = sections.imsis
    counts = np.frombuffer(content[: 4 * devices], "<u4")
    if content and (len(counts) != devices or len(content) != 4 * devices + 8 * int(counts.sum())):
        raise ValueError(f"page {number} has {devices} devices and {len(content)} bytes of subscribers")
    return counts, np.frombuffer(content[4 * devices :], "<u8")

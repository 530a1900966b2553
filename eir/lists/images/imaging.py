"""Builder of images (contents of lists in memory) from the pages of a store."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import groupby

import numpy as np

from eir.lists.images import table_image
from eir.lists.images.chunks import (
    Chunk,
    PageRows,
    chunk_of_image,
    chunk_of_pages,
    chunks_of_rows,
    join,
    table_of_chunk,
    with_changes,
)
from eir.lists.images.image import HASHED, Image
from eir.lists.pages.pages import PAGE_KEYS, Page, Sections, decode_sections
from eir.lists.pages.roaring import BEYOND, ArrayPages, Indexes, decode_keys, may_be_arrays
from eir.lists.table.columns import Numbers


def build_image(chunks: Sequence[Chunk]) -> Image:
    """Build an image in a sealed memory file from chunks (pages as arrays) in ascending order.

    Raises:
        ValueError: if the chunks are inconsistent.
        OSError: if the memory file cannot be written.
    """
    whole = join(chunks)
    if len(whole.counts) not in {0, len(whole.lows)}:
        raise ValueError(
            f"a list of pairs with {len(whole.lows)} devices, and {len(whole.counts)} of them with a number of subscribers"
        )
    if len(whole.lows) >= HASHED or len(whole.imsis) >= HASHED:
        raise ValueError("a list has more rows than an image can hold")
    return table_image.image_of(table_of_chunk(whole), whole.sightings)


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
    return build_image([with_changes(chunk_of_image(image), changes)])


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

"""Converts the pages of a list, as stores keep them, to its image (eir.images.image)."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import groupby

import numpy as np

from eir.images.chunks import Chunk, Numbers, PageRows, chunk_of_pages, chunks_of_rows, joined, with_changes
from eir.images.image import Image
from eir.images.making import make
from eir.pages.pages import PAGE_KEYS, Page, Sections, decode_sections
from eir.pages.roaring import BEYOND, ArrayPages, Indexes, decode_keys, may_be_arrays

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

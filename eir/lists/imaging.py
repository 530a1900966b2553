"""From the pages of a list, as stores keep them, to its image (eir.lists.image). May import numpy, lists' pages, roaring, chunks, image."""

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np

from eir.lists.chunks import Chunk, Numbers, PageRows, chunk_of_pages, chunks_of_rows, joined
from eir.lists.image import Image, amended, make
from eir.lists.pages import PAGE_KEYS, Page, Sections, decode_sections
from eir.lists.roaring import BEYOND, ArrayPages, decode_keys, may_be_arrays

UNTIL_MAX = 2**32 - 1  # 2106: later ends are held as this one
_REASONS_ONLY, _HEAD = b"R", 5
"""Tag of section R; tag and length of a section."""


def image_of(pages: Sequence[Page]) -> Image:
    """The image of a whole list, whose pages ascend. Raises ValueError if one is damaged, and OSError."""
    return make(chunks_of(pages))


def image_with(image: Image, pages: Sequence[Page]) -> Image:
    """Another image: this one with these pages in place of those of the same number. Raises ValueError if one is damaged, and OSError."""
    return amended(image, {page.number: rows_of(page) for page in pages})


def chunks_of(pages: Sequence[Page]) -> list[Chunk]:
    """Pages that ascend as a chunk, or none: what a store gives together, many pages at a time. Raises ValueError if one is damaged."""
    found = [chunk for together, group in groupby(pages, _is_array) for chunk in _chunks(list(group), together=together)]
    return [joined(found)] if found else []


def _is_array(page: Page) -> bool:
    """The page says nothing but keys (and their reasons, which no image has), in the form that most pages have."""
    extra = page.extra
    has_rows = extra and (extra[:1] != _REASONS_ONLY or len(extra) != _HEAD + int.from_bytes(extra[1:_HEAD], "little"))
    return not has_rows and may_be_arrays(page.keys)


def _chunks(pages: Sequence[Page], *, together: bool) -> Iterator[Chunk]:
    if together:
        try:
            arrays = ArrayPages([page.keys for page in pages])
        except ValueError:  # one of them looks like it, and is not
            pass
        else:
            yield chunk_of_pages(np.repeat(np.array([page.number for page in pages], np.uint64), arrays.counts), arrays.keys())
            return
    yield from chunks_of_rows(rows_of(page) for page in pages)


def rows_of(page: Page) -> PageRows | None:
    """What a page says, but for reasons; None if it is gone. Raises ValueError if it is damaged."""
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


def _pairs(number: int, devices: int, sections: Sections) -> tuple[Numbers, Numbers]:
    """How many IMSIs each device has, and all of them; nothing of both where the page has no pairs."""
    content = sections.imsis
    counts = np.frombuffer(content[: 4 * devices], "<u4")
    if content and (len(counts) != devices or len(content) != 4 * devices + 8 * int(counts.sum())):
        raise ValueError(f"page {number} has {devices} devices and {len(content)} bytes of subscribers")
    return counts, np.frombuffer(content[4 * devices :], "<u8")

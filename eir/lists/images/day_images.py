"""Images (contents in shared memory) of the record of first sightings: built from devices with days, and read by page."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from eir.lists.images.chunks import Chunk, begins, blocks_of, chunk_of, chunk_of_image, replace_pages
from eir.lists.images.image import SIGHTINGS, WHOLE, WHOLE_TIMED, Image
from eir.lists.images.imaging import build_image
from eir.lists.images.index import DeviceList
from eir.lists.pages.first_days import NOTHING, FirstDays, decode_days, join
from eir.lists.pages.pages import PAGE_KEYS, Page
from eir.lists.table.columns import LOW_BITS, Numbers

BATCH_PAGES = 2000
"""Maximum number of pages that are read together."""
DAY_MAX = 0xFFFF
"""Last day that an image can hold."""
COUNT_BATCH = 1 << 20
"""Maximum number of devices whose days are counted together: numpy widens each day to 8 bytes."""


def _chunk(days: FirstDays) -> Chunk:
    sightings = np.empty(len(days.keys), SIGHTINGS)
    sightings["first"], sightings["last"] = days.firsts, days.lasts
    return chunk_of(days.keys)._replace(sightings=sightings)


def image_of(days: FirstDays) -> Image:
    """Build the image (content in shared memory) of a whole record of first sightings from its devices. Raises OSError."""
    return build_image([_chunk(days)])


def image_of_days(pages: Sequence[Page]) -> Image:
    """Build the image (content in shared memory) of a whole record of first sightings from its pages in ascending order.

    Raises ValueError if a page is damaged, and OSError.
    """
    return image_of(decode_days(pages))


def image_with_days(image: Image | None, changes: Mapping[int, FirstDays]) -> Image:
    """Build the image of a record of first sightings after changes. `changes`: page number → all devices of this page. Raises OSError."""
    numbers = sorted(changes)
    chunk = _chunk(join(changes[number] for number in numbers))
    if image is not None:
        chunk = replace_pages(chunk_of_image(image), np.array(numbers, np.uint64), chunk)
    return build_image([chunk])


def days_in(image: Image | None, numbers: Sequence[int]) -> FirstDays:
    """Return the devices on some pages of the record of first sightings, and their days. The page numbers must ascend."""
    if image is None:
        return NOTHING
    whole = chunk_of_image(image)
    keys, at = _keys_in(whole, np.asarray(numbers, np.uint64))
    sightings = whole.sightings[at]
    return FirstDays(keys, sightings["first"], sightings["last"])


def all_days(image: Image | None) -> Iterator[FirstDays]:
    """Yield all devices of the record of first sightings with their days, BATCH_PAGES pages at a time."""
    numbers = [] if image is None else image.numbers.tolist()
    for at in range(0, len(numbers), BATCH_PAGES):
        yield days_in(image, numbers[at : at + BATCH_PAGES])


def held_in(image: Image, keys: Numbers) -> Numbers:
    """Return a mask of the keys that a list contains, singly or by their whole TAC. Expired rows count too. `image`: content of the list.

    The keys must be in ascending order.
    """
    whole = chunk_of_image(image)
    pages = keys // np.uint64(PAGE_KEYS)
    tacs = whole.numbers[whole.bits & np.uint32(WHOLE | WHOLE_TIMED) != 0]
    single, _ = _keys_in(whole, np.unique(pages))
    held: Numbers = np.isin(keys, single, assume_unique=True)
    return held | np.isin(pages, tacs)


def registered(lists: Sequence[DeviceList], keys: Numbers) -> Numbers:
    """Return a mask of the device keys (ascending) that at least one of the lists contains in a row that is in force."""
    is_registered = np.zeros(len(keys), bool)
    for each in lists:
        if each.image is None:
            continue
        held = held_in(each.image, keys)
        if each.image.has_times:
            held[held] = [each.holds(key) for key in keys[held].tolist()]
        is_registered |= held
    return is_registered


def count_first_days(image: Image | None) -> dict[int, int]:
    """Count the devices in the record of first sightings by their first day."""
    counts = np.zeros(DAY_MAX + 1, np.int64)
    firsts = NOTHING.firsts if image is None else chunk_of_image(image).sightings["first"]
    for at in range(0, len(firsts), COUNT_BATCH):
        batch = firsts[at : at + COUNT_BATCH]
        counts += np.bincount(batch, minlength=len(counts))
    days = np.flatnonzero(counts)
    return dict(zip(days.tolist(), counts[days].tolist(), strict=True))


def left(before: Image, now: Image) -> Iterator[Numbers]:
    """Yield in batches the devices that a change has removed from a list. `before`, `now`: contents before and after the change."""
    was = chunk_of_image(before)
    for at in range(0, len(was.numbers), BATCH_PAGES):
        keys, _ = _keys_in(was, was.numbers[at : at + BATCH_PAGES])
        yield keys[~held_in(now, keys)]


def _keys_in(whole: Chunk, wanted: Numbers) -> tuple[Numbers, Numbers]:
    """Return the keys on some pages of a list in ascending order, and the position of each key among all keys of the list."""
    places = np.flatnonzero(np.isin(whole.numbers, wanted, assume_unique=True))
    page_blocks = begins(blocks_of(whole.bits)).astype(np.int64)
    block_keys = begins(whole.sizes).astype(np.int64)
    counts = page_blocks[places + 1] - page_blocks[places]
    blocks = _spans(page_blocks[places], counts)
    sizes = whole.sizes[blocks].astype(np.int64)
    positions = _spans(block_keys[blocks], sizes)
    block_bits = np.arange(LOW_BITS, dtype=np.uint32)
    _, uppers = np.nonzero(whole.bits[places, None] >> block_bits & np.uint32(1))
    first_keys = np.repeat(whole.numbers[places], counts) * np.uint64(PAGE_KEYS)
    first_keys += uppers.astype(np.uint64) << np.uint64(LOW_BITS)
    return np.repeat(first_keys, sizes) + whole.lows[positions], positions


def _spans(starts: Numbers, sizes: Numbers) -> Numbers:
    """Return all positions in the given ranges, one range after the other, as one array."""
    shifts = starts - (np.cumsum(sizes) - sizes)
    positions: Numbers = np.arange(sizes.sum()) + np.repeat(shifts, sizes)
    return positions

"""Pages of lists of pairs: a device has a reason, each SIM of it an end. May import numpy, lists' pages, roaring, content."""

from itertools import islice
from typing import NamedTuple, TypeAlias

import numpy as np

from eir.lists.content import Keys, ReasonIndexes, Seconds, decode, each, endless, sections, split
from eir.lists.pages import PAGE_KEYS, Page, Sections, decode_sections
from eir.lists.roaring import encode_many, is_fresh

Pairs: TypeAlias = tuple[Keys, Keys, ReasonIndexes, Seconds]
"""Devices, IMSIs, and for each pair its reason and its end."""


class Paired(NamedTuple):
    """What a page of pairs says of one device: its reason, and its IMSIs, each with the end of its pair."""

    reason: int
    imsis: dict[int, int]


def pair_pages(pairs: Pairs) -> list[Page]:
    """The pages of these pairs, which come in any order and may repeat: of equal ones the one that ends last counts.

    A device has the reason of its pair that ends last, of several the one with the lowest index.
    """
    keys, imsis, reasons, until = pairs
    order = np.lexsort((reasons, ~endless(until), imsis, keys))
    keys, imsis, reasons, until = keys[order], imsis[order], reasons[order], until[order]
    fresh = is_fresh(keys) | is_fresh(imsis)
    keys, imsis, reasons, until = keys[fresh], imsis[fresh], reasons[fresh], until[fresh]

    devices, first, counts = np.unique(keys, return_index=True, return_counts=True)
    ends = endless(until)
    last_to_end = ends == np.repeat(np.maximum.reduceat(ends, first), counts)
    reason = np.minimum.reduceat(np.where(last_to_end, reasons, np.uint8(0xFF)), first)
    numbers, low, starts, sizes = split(devices)
    first_pairs = first[starts]
    pairs_of = np.diff(first_pairs, append=len(keys))
    columns = (starts, starts + sizes, first_pairs, first_pairs + pairs_of)
    bound = [
        counts[start:end].astype("<u4").tobytes() + imsis[pair:last].astype("<u8").tobytes()
        for start, end, pair, last in zip(*(column.tolist() for column in columns), strict=True)
    ]
    extras = map(Sections, sections(reason, starts, sizes), sections(until, first_pairs, pairs_of), bound)
    return list(map(Page, numbers.tolist(), encode_many(low, starts, sizes), map(Sections.encode, extras)))


def has_pairs(page: Page) -> bool:
    """True if the page is one of a list of pairs, and not empty."""
    return bool(decode_sections(page.extra).imsis)


def amended_pairs(old: Page, gone: Page, new: Page) -> Page:
    """The page after a delta: pairs in `gone` go, then those in `new` come, and their devices take the new reasons."""
    after = decode_pairs(old)
    for low, goes in decode_pairs(gone).items():
        had = after.pop(low, None)
        if had is not None and (stays := {imsi: end for imsi, end in had.imsis.items() if imsi not in goes.imsis}):
            after[low] = had._replace(imsis=stays)
    for low, comes in decode_pairs(new).items():
        had = after.get(low)
        after[low] = comes if had is None else comes._replace(imsis=had.imsis | comes.imsis)
    base = old.number * PAGE_KEYS
    rows = [(base + low, imsi, paired.reason, end) for low, paired in after.items() for imsi, end in paired.imsis.items()]
    if not rows:
        return Page(old.number, b"")
    keys, imsis, reasons, until = zip(*rows, strict=True)
    arrays = (np.array(keys, np.uint64), np.array(imsis, np.uint64), np.array(reasons, np.uint8), np.array(until, np.int64))
    return pair_pages(arrays)[0]


def decode_pairs(page: Page) -> dict[int, Paired]:
    """What a page of pairs says, by device (its remainder)."""
    low, reasons, *_ = decode(page)
    _, until, bound = decode_sections(page.extra)
    counts = np.frombuffer(bound[: 4 * len(low)], "<u4").tolist()
    imsis = np.frombuffer(bound[4 * len(low) :], "<u8").tolist()
    ends = zip(imsis, each(until, np.int64, len(imsis)).tolist(), strict=True)
    devices = zip(low.tolist(), reasons.tolist(), counts, strict=True)
    return {device: Paired(reason, dict(islice(ends, count))) for device, reason, count in devices}

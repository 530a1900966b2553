"""Images of lists (eir.images.image), as they are made."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from eir.images.chunks import ENDS, WHOLE, WHOLE_UNTIL, Chunk, Numbers, begins, blocks_of, chunk_of, joined
from eir.images.image import (
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
from eir.images.memory import sealed, write_all
from eir.pages.pages import PAGE_KEYS
from eir.pages.roaring import is_fresh


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

"""Image of a table, and the table of an image: two forms of a list's content with the same arrays.

An image has the blocks and rows of the table, an index of their pages, and begins and ends only for pages that have some. Reasons and
days are not in it, since no lookup reads them.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from eir.lists.images.image import (
    ALIGNED,
    BLOCKS,
    BODY_AT,
    HASHED,
    HEADER,
    MAGIC,
    SECTION,
    SECTIONS,
    SLOT_WORDS,
    SPREAD,
    TIMED,
    VERSION,
    WHOLE,
    WHOLE_PAGES,
    WHOLE_TIMED,
    WORD_BITS,
    Image,
)  # fmt: skip
from eir.lists.images.memory import sealed, write_all
from eir.lists.table.columns import (
    BEGINS,
    BLOCKS_PER_TAC,
    ENDS,
    NO_COLUMNS,
    SECONDS,
    Numbers,
    TableRows,
    distinct,
    is_first,
)
from eir.lists.table.columns import WHOLE as WHOLE_KEY
from eir.lists.table.table import Table, table_of

_PAGE_BITS = np.uint64(BLOCKS_PER_TAC.bit_length() - 1)
_ZERO, _ONE, _WORD = np.uint32(0), np.uint32(1), np.uint64(32)


def image_of(table: Table, sightings: Numbers | None = None) -> Image:
    """Build the image of a table in a sealed memory file. `sightings`: days of each device, for a record of first sightings.

    Raises:
        OSError: if the memory file cannot be written.
    """
    arrays = _key_arrays(table)
    if sightings is not None:
        arrays["sightings"] = sightings
    if (seconds := table.columns[SECONDS]) is not None:
        arrays["seconds"] = seconds
        arrays |= {f"subscriber_{name}": values for name, values in _key_arrays(_subscribers(table, seconds)).items()}
    return Image.map(write_arrays(arrays))


def table_view(image: Image, *, reasons: Numbers | None = None, days: Numbers | None = None) -> Table:
    """Return the table of an image. Its large arrays are the image's memory, which lives as long as they do.

    `reasons`, `days`: columns that an image lacks. Begins and ends are copied if some pages have none; so are the keys of a list that
    binds a device several times.
    """
    of = image.arrays
    bits = np.unpackbits((of["bits"] & np.uint32(BLOCKS)).astype("<u2").view("u1"), bitorder="little")
    at = np.flatnonzero(bits).astype("<u8")
    blocks = of["numbers"][at >> _PAGE_BITS] << _PAGE_BITS | at & np.uint64(BLOCKS_PER_TAC - 1)
    starts, lows, seconds = of["offsets"], of["lows"], of["seconds"]
    if len(stops := of["row_stops"]):
        lows = np.repeat(lows, np.diff(stops, prepend=_ZERO))
        starts = np.append(_ZERO, stops)[starts]
    begins, ends = (_full_times(of, of[name], starts) for name in ("begins", "ends"))
    return Table(blocks, starts, lows, (seconds if len(seconds) else None, reasons, begins, ends, days))


def _full_times(of: Mapping[str, Numbers], times: Numbers, starts: Numbers) -> Numbers | None:
    """Return the begins or ends of all rows from those of the pages that have some. `starts`: index of the first row of each block."""
    rows = int(starts[-1])
    if not len(times) or len(times) == rows:
        return times if len(times) else None
    full = np.zeros(rows, times.dtype)
    full[np.repeat(of["bits"] & np.uint32(TIMED) != 0, np.diff(starts[of["firsts"]]))] = times
    return full


def _key_arrays(table: Table) -> dict[str, Numbers]:
    """Build the arrays in which an image looks up the keys of a table."""
    pages = table.blocks >> _PAGE_BITS
    first = np.flatnonzero(is_first(pages))
    numbers, counts = pages[first], np.diff(first, append=len(pages))
    bits = np.zeros(len(first), "<u4")
    if len(first):
        block_bits = _ONE << (table.blocks & np.uint64(BLOCKS_PER_TAC - 1)).astype("<u4")
        bits = np.bitwise_or.reduceat(block_bits, first)
    rows = np.diff(table.starts[np.append(first, len(pages))])
    is_timed, times = _is_timed(table), {}
    if is_timed is not None:
        are_timed = np.logical_or.reduceat(is_timed, table.starts[first])
        bits[are_timed] |= np.uint32(TIMED)
        chosen = slice(None) if are_timed.all() else np.repeat(are_timed, rows)
        columns = (("begins", table.columns[BEGINS]), ("ends", table.columns[ENDS]))
        times = {name: values[chosen] for name, values in columns if values is not None}
    timed_starts = _starts(rows[bits & np.uint32(TIMED) != 0])
    tacs, flags = _whole_tacs(table, is_timed)
    if len(tacs):
        own, own_counts, own_bits = numbers, counts, bits
        numbers = distinct(np.concatenate((own, tacs)))
        counts, bits = np.zeros(len(numbers), own_counts.dtype), np.zeros(len(numbers), "<u4")
        at = np.searchsorted(numbers, own)
        counts[at], bits[at] = own_counts, own_bits
        bits[np.searchsorted(numbers, tacs)] |= flags
    firsts = _starts(counts)
    return {
        "numbers": numbers,
        "bits": bits,
        "firsts": firsts,
        "slots": _slots(numbers, firsts, bits),
        **_distinct_keys(table),
        "timed_pages": np.flatnonzero(bits & np.uint32(TIMED)),
        "timed_starts": timed_starts,
        **times,
    }


def _distinct_keys(table: Table) -> dict[str, Numbers]:
    """Return the keys of a table without repetition, and the rows of each."""
    if table.columns[SECONDS] is not None:
        first = is_first(table.lows)
        first[table.starts[:-1]] = True
        if not first.all():
            at = np.flatnonzero(first)
            offsets = np.searchsorted(at, table.starts)
            return {"offsets": offsets, "lows": table.lows[at], "row_stops": np.append(at[1:], len(table))}
    return {"offsets": table.starts, "lows": table.lows}


def _is_timed(table: Table) -> Numbers | None:
    """Return a mask of the rows that have a begin or an end; None if no row has one."""
    times = [values != 0 for values in (table.columns[BEGINS], table.columns[ENDS]) if values is not None]
    is_timed: Numbers | None = np.logical_or.reduce(times) if times else None
    return is_timed if is_timed is not None and is_timed.any() else None


def _whole_tacs(table: Table, is_timed: Numbers | None) -> tuple[Numbers, Numbers]:
    """Return the TACs that are listed whole, and the flag of each. `is_timed`: mask of the rows that begin or end."""
    block = int(np.searchsorted(table.blocks, np.uint64(WHOLE_PAGES) << _PAGE_BITS))
    tacs = table.rows(table.blocks[block:]).keys & np.uint64(WHOLE_KEY - 1)
    return _tac_flags(tacs, np.zeros(len(tacs), bool) if is_timed is None else is_timed[len(table) - len(tacs) :])


def _tac_flags(tacs: Numbers, are_timed: Numbers) -> tuple[Numbers, Numbers]:
    """Return the distinct TACs, and the flag of each: WHOLE_TIMED if each of its rows begins or ends, otherwise WHOLE."""
    # A stable sort is fast if the tags are nearly sorted. Of one TAC, a row without begin and end comes first.
    tagged = np.sort(tacs << np.uint64(1) | are_timed, kind="stable")
    tagged = tagged[is_first(tagged >> np.uint64(1))]
    return tagged >> np.uint64(1), np.where(tagged % 2, WHOLE_TIMED, WHOLE).astype("<u4")


def _starts(counts: Numbers) -> Numbers:
    """Return the index at which each of several consecutive groups starts, and then the total. `counts`: sizes of the groups."""
    starts = np.zeros(len(counts) + 1, "<u4")
    np.cumsum(counts, dtype="<u4", out=starts[1:])
    return starts


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


def _subscribers(table: Table, imsis: Numbers) -> Table:
    """Return the IMSIs of a list of pairs as keys, with one row for each period in which at least one pair of the IMSI is in force.

    `imsis`: IMSI of each row.
    """
    begins, ends = table.columns[BEGINS], table.columns[ENDS]
    if begins is None and ends is None:
        return table_of(TableRows(distinct(imsis), NO_COLUMNS))
    begins, ends = (np.zeros(len(table), "<u4") if values is None else values for values in (begins, ends))
    order = np.lexsort((begins, imsis))
    imsis, begins = imsis[order], begins[order]
    is_new = is_first(imsis)
    # 0 is no end, so it is the latest one: one less is the highest number. The number of the IMSI is above these 32 bits.
    tagged = np.cumsum(is_new, dtype="<u8") << _WORD | (ends[order] - _ONE)
    latest = np.maximum.accumulate(tagged) & np.uint64((1 << 32) - 1)
    is_new[1:] |= begins[1:] > latest[:-1] + np.uint64(1)
    at = np.flatnonzero(is_new)
    stops = latest[np.append(at[1:], len(table)) - 1].astype("<u4") + _ONE
    return table_of(TableRows(imsis[at], (begins[at], None, begins[at], stops, None)))


def tacs_bound(images: Sequence[Image], to: Collection[int]) -> tuple[memoryview, memoryview, memoryview]:
    """Build arrays of TACs for the compiled fast path. A TAC is included if a list of device types gives the TAC a type in `to`.

    `to` contains keys of types (device_type_key). The arrays list each TAC as a whole. If all rows that assign the type to
    a TAC begin or end, the flag of the TAC is WHOLE_TIMED: then the compiled lookup leaves the check to the general path.
    """
    tacs, are_timed = [np.empty(0, "<u8")], [np.empty(0, bool)]
    for table in map(table_view, images):
        seconds, is_timed = table.columns[SECONDS], _is_timed(table)
        if seconds is None:
            continue
        is_bound = np.isin(seconds, np.fromiter(to, "<u8"))
        tacs.append(np.repeat(table.blocks >> _PAGE_BITS, np.diff(table.starts))[is_bound])
        are_timed.append(np.zeros(len(tacs[-1]), bool) if is_timed is None else is_timed[is_bound])
    numbers, bits = _tac_flags(np.concatenate(tacs), np.concatenate(are_timed))
    no_blocks = np.zeros(len(numbers) + 1, "<u4")
    return _slots(numbers, no_blocks, bits).data, no_blocks[:1].data, np.empty(0, "<u2").data


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

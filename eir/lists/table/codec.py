"""Encoded form of a table and of a change: compressed parts, as a store has them.

The first part of a table is a JSON array with the length of each of its arrays (null for an absent column). The bytes of each array follow,
little-endian, in parts that are compressed from at most 1 MiB each. A change is the table of its added rows, then that of its removed rows.
"""

import json
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import zstandard

from eir.lists.table.columns import COLUMNS, SECONDS, Numbers, TableRows
from eir.lists.table.table import Table, table_of

PART_BYTES = 1 << 20
"""Maximum number of bytes of a part before compression."""
ARRAY_FORMS = ("<u8", "<u4", "<u2", *COLUMNS.values())
"""Types of blocks, starts, lows and columns."""
_KEY_ARRAYS = 3
_HEAD_BYTES_MAX = 1024


def arrays_of(table: Table) -> tuple[Numbers | None, ...]:
    """Return the arrays of a table in the order of their encoding; None for an absent column."""
    return (table.blocks, table.starts, table.lows, *table.columns)


def encode(table: Table) -> Iterator[bytes]:
    """Encode a table as parts."""
    arrays = arrays_of(table)
    yield json.dumps([None if array is None else len(array) for array in arrays]).encode()
    compress = zstandard.ZstdCompressor(level=1).compress
    for array, form in zip(arrays, ARRAY_FORMS, strict=True):
        octets = b"" if array is None else np.ascontiguousarray(array, form).view("u1").data
        for at in range(0, len(octets), PART_BYTES):
            yield compress(octets[at : at + PART_BYTES])


def decode(parts: Iterable[bytes]) -> Table:
    """Decode a table from its parts; parts behind it stay in the iterator.

    Raises:
        ValueError: if the parts are damaged or cut short.
    """
    each = iter(parts)
    lengths = _lengths(next(each, b""))
    arrays = [
        None if length is None else _array(each, length, form)
        for length, form in zip(lengths, ARRAY_FORMS, strict=True)
    ]
    blocks, starts, lows = (array if array is not None else np.empty(0) for array in arrays[:_KEY_ARRAYS])
    return checked(Table(blocks, starts, lows, tuple(arrays[_KEY_ARRAYS:])))


def _lengths(head: bytes) -> Sequence[int | None]:
    """Parse the first part of a table."""
    if len(head) > _HEAD_BYTES_MAX:
        raise ValueError("the head of a table is too long")
    lengths = json.loads(head)
    if not isinstance(lengths, list) or len(lengths) != len(ARRAY_FORMS):
        raise ValueError(f"the head of a table must have {len(ARRAY_FORMS)} lengths")
    blocks, starts, rows, *columns = lengths
    if not all(type(length) is int and 0 <= length < 1 << 32 for length in (blocks, starts, rows)):
        raise ValueError("the head of a table must have lengths below 2^32")
    if starts != blocks + 1 or blocks > rows or any(length not in {None, rows} for length in columns):
        raise ValueError(f"the head of a table with {rows} rows in {blocks} blocks is inconsistent")
    return lengths


def _array(parts: Iterator[bytes], length: int, form: str) -> Numbers:
    """Read one array from its parts."""
    size = length * np.dtype(form).itemsize
    octets = bytearray()
    expand = zstandard.ZstdDecompressor().decompress
    while len(octets) < size:
        part = next(parts, b"")
        try:
            # The library allocates the size that the frame states, so it is bounded first.
            if not 0 < zstandard.frame_content_size(part) <= min(PART_BYTES, size - len(octets)):
                raise ValueError("a part of a table has another size than its array")
            octets += expand(part)
        except zstandard.ZstdError as error:
            raise ValueError(f"a part of a table is damaged: {error}") from error
    return np.frombuffer(octets, form)


def checked(table: Table) -> Table:
    """Return a table if its arrays are consistent: every key is in its block, and the rows ascend.

    Raises:
        ValueError: if they are not.
    """
    steps = np.diff(table.starts.astype(np.int64))
    if int(table.starts[0]) or int(table.starts[-1]) != len(table) or (steps <= 0).any():
        raise ValueError("the blocks of a table do not fit its rows")
    if (table.blocks[1:] <= table.blocks[:-1]).any():
        raise ValueError("the blocks of a table do not ascend")
    ascends = table.lows[1:] > table.lows[:-1]
    seconds = table.columns[SECONDS]
    if seconds is not None:
        ascends |= (table.lows[1:] == table.lows[:-1]) & (seconds[1:] > seconds[:-1])
    ascends[table.starts[1:-1] - 1] = True
    if not ascends.all():
        raise ValueError("the rows of a table do not ascend")
    return table


def encode_change(added: TableRows, removed: TableRows) -> Iterator[bytes]:
    """Encode the rows of a change as parts."""
    yield from encode(table_of(added))
    yield from encode(table_of(removed))


def decode_change(parts: Iterable[bytes]) -> tuple[TableRows, TableRows]:
    """Decode the added and the removed rows of a change.

    Raises:
        ValueError: if the parts are damaged, cut short or too many.
    """
    each = iter(parts)
    added, removed = decode(each).rows(), decode(each).rows()
    if next(each, None) is not None:
        raise ValueError("a change has more parts than its heads state")
    return added, removed

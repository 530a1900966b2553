"""Fast decoder of frequent forms of HPACK header blocks (RFC 7541), at a fraction of the cost of the library hpack.

It shares the header table with the library. The library decodes each block with an unusual or invalid field. This module itself
rejects only header lists that are too long, and blocks with too many changes of the table size.
"""

from hpack import Decoder, HPACKDecodingError, InvalidTableIndex, OversizedHeaderListError
from hpack.huffman_table import HUFFMAN_COMPLETE, HUFFMAN_EMIT_SYMBOL, HUFFMAN_FAIL, HUFFMAN_TABLE

ENTRY_OVERHEAD = 32
"""Bytes of an entry beside its name and value (RFC 7541 4.1)."""
SIZES_MAX = 2
"""Maximum number of table size changes in one block (RFC 7541 4.2)."""
PREFIX_BYTES = 28
"""Length of the cached beginning of a long Huffman-coded string, which requests have in common."""
PREFIXES_MAX = 64

_Step = tuple[int, bytes, bool]
"""Effect of a byte: next state, output, and whether a string may end after it."""


class _UnusualError(Exception):
    """Signal that the library hpack must decode a header block, because the fast decoder does not know its form."""


_steps: dict[int, _Step] = {}
"""Cache of steps by state << 8 | octet."""
_prefixes: dict[bytes, tuple[int, bytes]] = {}


def _step(at: int) -> _Step:
    """Return the Huffman decoder's next state and output after one byte, and cache them. `at`: state << 8 | byte.

    The byte is decoded in two steps, because the table of the library hpack has 4-bit steps.
    """
    state, out, complete = at >> 8, b"", False
    for half in (at >> 4 & 0xF, at & 0xF):
        state, flags, symbol = HUFFMAN_TABLE[(state << 4) + half]
        if flags & HUFFMAN_FAIL:
            raise _UnusualError
        if flags & HUFFMAN_EMIT_SYMBOL:
            out += bytes((symbol,))
        complete = bool(flags & HUFFMAN_COMPLETE)
    _steps[at] = step = state, out, complete
    return step


def _walk(octets: bytes, state: int) -> tuple[int, bytes, bool]:
    out, complete, steps = [], True, _steps
    for octet in octets:
        at = state << 8 | octet
        state, piece, complete = steps.get(at) or _step(at)
        out.append(piece)
    return state, b"".join(out), complete


def huffman(octets: bytes) -> bytes:
    """Decode a Huffman-coded string (RFC 7541 5.2). Raises _UnusualError."""
    if len(octets) <= PREFIX_BYTES:
        _, text, complete = _walk(octets, 0)
    else:
        begin = octets[:PREFIX_BYTES]
        known = _prefixes.get(begin)
        if known is None:
            state, text, _ = _walk(begin, 0)
            if len(_prefixes) >= PREFIXES_MAX:
                _prefixes.clear()
            known = _prefixes[begin] = state, text
        _, rest, complete = _walk(octets[PREFIX_BYTES:], known[0])
        text = known[1] + rest
    if not complete:
        raise _UnusualError
    return text


def _text(block: bytes, at: int) -> tuple[bytes, int]:
    """Decode the string that begins at the offset `at`; return the string and the offset after its end (RFC 7541 5.2)."""
    first = block[at]
    length, at = first & 0x7F, at + 1
    if length == 0x7F:
        more = block[at]
        if more & 0x80:
            if block[at + 1] & 0x80:
                raise _UnusualError
            more = (more & 0x7F) + (block[at + 1] << 7)
            at += 1
        length, at = length + more, at + 1
    octets = block[at : at + length]
    if len(octets) < length:
        raise _UnusualError
    return huffman(octets) if first & 0x80 else octets, at + length


_Field = tuple[int, bytes | None, bytes | None, bool]
"""Index (0: none), name (None: that of the index), value (None: that of the index), and whether the field is added to the table."""


def _parsed(block: bytes) -> list[_Field]:
    """Parse a header block into fields. A reference to the header table is returned as the index of the table entry.

    Raises _UnusualError, or IndexError if the block ends too soon.
    """
    fields: list[_Field] = []
    at, end = 0, len(block)
    while at < end:
        first = block[at]
        at += 1
        if first & 0x80:
            if (index := first & 0x7F) in {0, 0x7F}:
                raise _UnusualError
            fields.append((index, None, None, False))
            continue
        mask = 0x3F if first & 0x40 else 0x0F
        if not first & 0x40 and first & 0x20:
            raise _UnusualError  # a change of the table size
        index = first & mask
        if index == mask:
            more = block[at]
            if more & 0x80:
                raise _UnusualError
            index, at = index + more, at + 1
        name = None
        if not index:
            name, at = _text(block, at)
        value, at = _text(block, at)
        fields.append((index, name, value, bool(first & 0x40)))
    return fields


def _check_sizes(block: bytes) -> None:
    """Raise HPACKDecodingError if a header block changes the table size more than SIZES_MAX times.

    The library accepts any number of changes, and needs a second for thousands of them.
    """
    at = count = 0
    while at < len(block) and block[at] & 0xE0 == 0x20:
        count += 1
        if count > SIZES_MAX:
            raise HPACKDecodingError(f"more than {SIZES_MAX} sizes of the table")
        if block[at] & 0x1F == 0x1F:
            at += 1
            while at < len(block) and block[at] & 0x80:
                at += 1
        at += 1


def decoded(block: bytes, decoder: Decoder) -> list[tuple[bytes, bytes]]:
    """Decode a header block into (name, value) pairs in order. Raises the same exceptions as the library hpack."""
    try:
        fields = _parsed(block)
    except (_UnusualError, IndexError):
        _check_sizes(block)
        return [(bytes(name), bytes(value)) for name, value in decoder.decode(block, raw=True)]
    table, headers, size = decoder.header_table, list[tuple[bytes, bytes]](), 0
    look_up = table.get_by_index
    for index, name, value, kept in fields:
        if index:
            known, known_value = look_up(index)
            name = bytes(known)  # noqa: PLW2901  # the table may hold views of earlier blocks
            if value is None:
                value = bytes(known_value)  # noqa: PLW2901  # as above
        if name is None or value is None:
            raise InvalidTableIndex("neither an index nor a name")
        if kept:
            table.add(name, value)
        size += len(name) + len(value) + ENTRY_OVERHEAD
        if size > decoder.max_header_list_size:
            raise OversizedHeaderListError(f"more than {decoder.max_header_list_size}")
        headers.append((name, value))
    return headers

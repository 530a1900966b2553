"""Usual header blocks of clients, decoded for a fraction of the cost of the library's decoder (RFC 7541).

The library's table of headers is used and kept; a block with anything unusual in it is left to the library, untouched. So are
faults: nothing is refused here but a list that is too long, and sizes of the table without end.
"""

from hpack import Decoder, HPACKDecodingError, InvalidTableIndex, OversizedHeaderListError
from hpack.huffman_table import HUFFMAN_COMPLETE, HUFFMAN_EMIT_SYMBOL, HUFFMAN_FAIL, HUFFMAN_TABLE

ENTRY_OVERHEAD = 32
"""RFC 7541 4.1."""
SIZES_MAX = 2
"""RFC 7541 4.2."""
PREFIX_BYTES = 28
"""Bytes at the beginning of a long Huffman-coded text; requests have these in common."""
PREFIXES_MAX = 64

_Step = tuple[int, bytes, bool]
"""The effect of a byte: the next state, the output, and whether a text may end there."""


class _UnusualError(Exception):
    """A block, or a text, that the library is to judge."""


_steps: dict[int, _Step] = {}
"""State << 8 | octet → what it does; filled as octets come."""
_prefixes: dict[bytes, tuple[int, bytes]] = {}


def _step(at: int) -> _Step:
    """The effect of a byte in a state, by the library's table, which works on half bytes."""
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
    """The text that is coded (RFC 7541 5.2). Raises _UnusualError."""
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
    """The text that stands there, and where the next thing does (RFC 7541 5.2)."""
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
"""Index (0: none), name, value (None: that of the index), and whether the table takes it up."""


def _parsed(block: bytes) -> list[_Field]:
    """The fields of a block, before any table is looked into.

    Raises _UnusualError, or IndexError if the block ends too soon.
    """
    found: list[_Field] = []
    at, end = 0, len(block)
    while at < end:
        first = block[at]
        at += 1
        if first & 0x80:
            if (index := first & 0x7F) in {0, 0x7F}:
                raise _UnusualError
            found.append((index, None, None, False))
            continue
        mask = 0x3F if first & 0x40 else 0x0F
        if not first & 0x40 and first & 0x20:
            raise _UnusualError  # another size of the table
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
        found.append((index, name, value, bool(first & 0x40)))
    return found


def _check_sizes(block: bytes) -> None:
    """Raise HPACKDecodingError if the table is to have another size more than twice.

    The library takes any number of them, and thousands in one block take it a second.
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
    """The headers of a block, in order. Raises what the library's decoder raises."""
    try:
        fields = _parsed(block)
    except (_UnusualError, IndexError):
        _check_sizes(block)
        return [(bytes(name), bytes(value)) for name, value in decoder.decode(block, raw=True)]
    table, found, size = decoder.header_table, list[tuple[bytes, bytes]](), 0
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
        found.append((name, value))
    return found

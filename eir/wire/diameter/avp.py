"""AVP codec: encoding of every base type, and parser of encoded AVPs (RFC 6733 4). It works without a dictionary.

The key of an AVP is one integer, vendor << 32 | code. For AVPs of the IETF it equals the code.
"""

import ipaddress
import struct
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

V_FLAG, M_FLAG = 0x80, 0x40
HEADER_BYTES, VENDOR_HEADER_BYTES = 8, 12

L = TypeVar("L", int, None)

_TWO_WORDS = struct.Struct("!II")
_WORD = struct.Struct("!I")
_THREE_WORDS = struct.Struct("!III")
_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")
_ADDRESS_FAMILY = {4: b"\0\x01", 6: b"\0\x02"}
"""IANA address family numbers (RFC 6733 4.3.1)."""


class Avp(NamedTuple):
    """Parsed AVP of a message. `start` and `end` are offsets in the message; `end` excludes the padding."""

    key: int
    flags: int
    data: bytes
    start: int
    end: int


def key_of(code: int, vendor: int = 0) -> int:
    """Return the key of an AVP: vendor << 32 | code."""
    return vendor << 32 | code


def encode(key: int, data: bytes, *, flags: int = M_FLAG) -> bytes:
    """Encode an AVP with its padding, and with the V bit if the key has a vendor.

    The length of the AVP must fit in 24 bits.
    """
    size = len(data)
    vendor = key >> 32
    if vendor:
        size += VENDOR_HEADER_BYTES
        head = _THREE_WORDS.pack(key & 0xFFFFFFFF, (flags | V_FLAG) << 24 | size, vendor)
    else:
        size += HEADER_BYTES
        head = _TWO_WORDS.pack(key, flags << 24 | size)
    return head + data + _PADDING[size & 3]


def encode_u32(key: int, value: int, *, flags: int = M_FLAG) -> bytes:
    """Encode an AVP of type Unsigned32 or Enumerated."""
    return encode(key, _WORD.pack(value), flags=flags)


def encode_text(key: int, text: str, *, flags: int = M_FLAG) -> bytes:
    """Encode an AVP of type UTF8String, DiameterIdentity or DiameterURI."""
    return encode(key, text.encode(), flags=flags)


def encode_address(key: int, address: str) -> bytes:
    """Encode an AVP of type Address; an IPv4-mapped IPv6 address becomes IPv4.

    Raises:
        ValueError: if the text is no IP address.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return encode(key, _ADDRESS_FAMILY[ip.version] + ip.packed)


def u32(avp: Avp) -> int:
    """Return the value of an Unsigned32 AVP. The grammar check has ensured that its data are 4 bytes long."""
    return int.from_bytes(avp.data)


def u32_or(avp: Avp | None, otherwise: L) -> int | L:
    """Return the value of an unchecked Unsigned32 AVP, or `otherwise` if the AVP is missing or not 4 bytes long."""
    return int.from_bytes(avp.data) if avp is not None and len(avp.data) == _WORD.size else otherwise


def text(avp: Avp) -> str:
    """Return the value of an AVP as text; bytes that are not UTF-8 become U+FFFD."""
    return avp.data.decode("utf-8", "replace")


def nest(octets: bytes, groups: Sequence[Avp]) -> bytes:
    """Wrap encoded AVPs in the grouped AVPs `groups`, the outermost first. Other members of these groups are left out (RFC 6733 7.5)."""
    for group in reversed(groups):
        octets = encode(group.key, octets, flags=group.flags & ~V_FLAG)
    return octets


class Fault(NamedTuple):
    """Error in encoded AVPs: header of the AVP at which the parser stopped, and reason. A field of the header that cannot be read is 0."""

    key: int
    flags: int
    reason: str
    """`avp_length`, `avp_overrun` or `too_many_avps`."""


def parse(buffer: bytes, position: int, end: int, room: int) -> tuple[list[Avp], Fault | None]:
    """Parse the AVPs between two offsets of a message; return the AVPs and, if the parser stopped early, the fault.

    `room`: maximum number of AVPs. The last AVP of a group may lack its padding, because some stacks omit it.
    """
    avps: list[Avp] = []
    # Local names are faster: this loop is most of the cost of the general path.
    append, new, kind, unpack, from_bytes = avps.append, tuple.__new__, Avp, _TWO_WORDS.unpack_from, int.from_bytes
    while position < end:
        left = end - position
        if left < 8:
            code, word = _TWO_WORDS.unpack(buffer[position:end].ljust(HEADER_BYTES, b"\0"))
            return avps, Fault(code, word >> 24 & ~V_FLAG, "avp_length")
        code, word = unpack(buffer, position)
        length = word & 0xFFFFFF
        if word & 0x80000000:
            value = position + 12
            if length < 12 or left < 12:
                # RFC 6733 7.1.5: missing parts of the header are zero, here the Vendor-Id.
                return avps, Fault(code, word >> 24, "avp_length")
            code |= from_bytes(buffer[position + 8 : value]) << 32
        else:
            value = position + 8
            if length < 8:
                return avps, Fault(code, word >> 24, "avp_length")
        if length > left:
            return avps, Fault(code, word >> 24, "avp_overrun")
        if not room:
            return avps, Fault(code, word >> 24, "too_many_avps")
        room -= 1
        stop = position + length
        append(new(kind, (code, word >> 24, buffer[value:stop], position, stop)))
        position += length + 3 & ~3
    return avps, None

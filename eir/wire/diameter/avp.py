"""The AVP codec: encoding of every base type, and the walk over encoded AVPs (RFC 6733 4). Knows no AVP by name.

An AVP's key is one integer, vendor << 32 | code: it names the AVP everywhere here, and for AVPs of the IETF it is their code.
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
    """One AVP as it stands in a message; `start` and `end` are offsets into the message, padding not included."""

    key: int
    flags: int
    data: bytes
    start: int
    end: int


def key_of(code: int, vendor: int = 0) -> int:
    """The one integer that names an AVP."""
    return vendor << 32 | code


def encode(key: int, data: bytes, *, flags: int = M_FLAG) -> bytes:
    """An AVP with its padding; the V bit follows from the key. `data` must leave the length within 24 bits."""
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
    """An AVP of type Unsigned32, or Enumerated."""
    return encode(key, _WORD.pack(value), flags=flags)


def encode_text(key: int, text: str, *, flags: int = M_FLAG) -> bytes:
    """An AVP of type UTF8String, DiameterIdentity or DiameterURI."""
    return encode(key, text.encode(), flags=flags)


def encode_address(key: int, address: str) -> bytes:
    """An AVP of type Address; what a dual-stack socket shows of IPv4 goes out as IPv4. Raises ValueError for other text."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return encode(key, _ADDRESS_FAMILY[ip.version] + ip.packed)


def u32(avp: Avp) -> int:
    """The value of an AVP whose data the grammar found to be four bytes."""
    return int.from_bytes(avp.data)


def u32_or(avp: Avp | None, otherwise: L) -> int | L:
    """The value of an AVP that no grammar has checked; `otherwise` if it is missing or its data are not four bytes."""
    return int.from_bytes(avp.data) if avp is not None and len(avp.data) == _WORD.size else otherwise


def text(avp: Avp) -> str:
    """The value as text; bytes that are not UTF-8 become U+FFFD."""
    return avp.data.decode("utf-8", "replace")


def nest(octets: bytes, groups: Sequence[Avp]) -> bytes:
    """Encoded AVPs inside the groups that they stand in, outermost first, and nothing else (RFC 6733 7.5)."""
    for group in reversed(groups):
        octets = encode(group.key, octets, flags=group.flags & ~V_FLAG)
    return octets


class Fault(NamedTuple):
    """The point where a walk over encoded AVPs had to stop: the readable part of the AVP's header, else zeros."""

    key: int
    flags: int
    reason: str
    """`avp_length`, `avp_overrun` or `too_many_avps`."""


def parse(buffer: bytes, position: int, end: int, room: int) -> tuple[list[Avp], Fault | None]:
    """The AVPs between two offsets, and the fault that ended the walk early, if one did.

    `room` bounds the number of AVPs. The last AVP of a group may lack its padding, which some stacks leave out.
    """
    avps: list[Avp] = []
    # Names that are local are found faster: this loop is most of what the general path costs.
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
                # RFC 6733 7.1.5: what is missing of the header is zero, the Vendor-Id here.
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

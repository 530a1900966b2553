"""Parser and encoder of connectionless SCCP (Q.713, ANSI T1.112), without I/O.

Supported are UDT and unsegmented XUDT, UDTS and XUDTS if the sender requests return on error, and the subsystem status test of SCCP management.
"""

import struct
from collections.abc import Collection
from enum import IntEnum
from functools import lru_cache
from typing import Final, NamedTuple

ITU: Final = "itu"
ANSI: Final = "ansi"
BITS: dict[str, tuple[int, ...]] = {ITU: (3, 8, 3), ANSI: (8, 8, 8)}


def point_code(text: str, variant: str = ITU) -> int:
    """Parse a point code in the form `1-2-3`, `1.2.3` or a single number. Raises ValueError."""
    parts = text.replace(".", "-").split("-")
    bits = BITS[variant] if len(parts) > 1 else (sum(BITS[variant]),)
    if len(parts) != len(bits) or not all(part.isascii() and part.isdigit() for part in parts):
        raise ValueError(text)
    number = 0
    for part, width in zip(parts, bits, strict=True):
        if int(part) >> width:
            raise ValueError(text)
        number = number << width | int(part)
    return number


def point_code_text(number: int, variant: str = ITU) -> str:
    """Format a point code as `1-2-3`."""
    parts = []
    for width in reversed(BITS[variant]):
        parts.append(str(number & (1 << width) - 1))
        number >>= width
    return "-".join(reversed(parts))


UDT, UDTS, XUDT, XUDTS = 0x09, 0x0A, 0x11, 0x12
RETURN_ON_ERROR = 0x80
CLASSES = (0, 1)
ADDRESSES_MAX = 4096
"""Maximum number of cached addresses: an MSC always sends the same calling address."""
PART_MAX = 255
"""Maximum value of a pointer and of the length of a variable part (Q.713 1.7)."""
MANAGEMENT = 1
"""Subsystem number of SCCP management (Q.713 3.4.2.2)."""
_ALLOWED, _TEST = b"\x01", b"\x03"
"""Management messages SSA and SST (Q.713 5.1.1)."""
HOPS = 15
"""Hop counter of sent XUDT messages (Q.713 3.18)."""
_SEGMENTATION = 0x10
_BY_SSN, _NATIONAL = 0x40, 0x80
_DIGITS = "0123456789abcdef"


class ReturnCause(IntEnum):
    """Return causes of SCCP (Q.713 3.12)."""

    NO_TRANSLATION = 1
    UNEQUIPPED_USER = 4
    NO_REASSEMBLY = 10


class SccpFault(Exception):
    """Invalid or unsupported SCCP message. The exception's text is a label in metrics."""


class PartyAddress(NamedTuple):
    """Parsed called or calling party address (Q.713 3.4)."""

    octets: bytes
    """Encoded address."""
    pc: int | None
    """Point code, or None."""
    ssn: int
    """Subsystem number; 0: absent or unknown."""
    kind: int
    """Type of the global title, 1 to 4; 0: the address has no title."""
    title: bytes
    """Octets of the global title."""
    digits: str
    """Digits of the global title, or empty."""
    by_ssn: bool
    """True if routing is by subsystem number and point code instead of the title."""


class Unitdata(NamedTuple):
    """Parsed UDT or XUDT message."""

    kind: int
    protocol_class: int
    returns: bool
    """True if the sender requests return on error."""
    called: PartyAddress
    calling: PartyAddress
    data: bytes
    segmented: bool
    """True if the message is one segment of several."""


@lru_cache(ADDRESSES_MAX)
def address(octets: bytes, variant: str) -> PartyAddress:
    """Parse a called or calling party address. Raises SccpFault."""
    if not octets:
        raise SccpFault("address")
    indicator = octets[0]
    at = 1
    pc: int | None = None
    ssn = 0
    try:
        if variant == ANSI:  # T1.112.3 3.5: the subsystem number comes first, also in the indicator
            if indicator & 0x01:
                ssn, at = octets[at], at + 1
            if indicator & 0x02:
                pc, at = octets[at] | octets[at + 1] << 8 | octets[at + 2] << 16, at + 3
        else:
            if indicator & 0x01:
                pc, at = (octets[at] | octets[at + 1] << 8) & 0x3FFF, at + 2
            if indicator & 0x02:
                ssn, at = octets[at], at + 1
    except IndexError:
        raise SccpFault("address") from None
    kind = indicator >> 2 & 0x0F
    title = octets[at:] if kind else b""
    return PartyAddress(octets, pc, ssn, kind, title, _digits(kind, title, variant), bool(indicator & _BY_SSN))


def _digits(kind: int, title: bytes, variant: str) -> str:
    """Return the digits of a global title; empty if the title has no digits or its type is undefined."""
    head = {1: 2, 2: 1}.get(kind) if variant == ANSI else {1: 1, 2: 1, 3: 2, 4: 3}.get(kind)
    if head is None or len(title) <= head:
        return ""
    digits = "".join([_DIGITS[octet & 0x0F] + _DIGITS[octet >> 4] for octet in title[head:]])
    if variant != ANSI and kind == 1:
        odd = bool(title[0] & 0x80)
    elif head == 1:
        odd = digits[-1] == "f"  # this type has no indicator for an odd number of digits
    else:
        odd = title[1] & 0x0F == 1
    return digits[:-1] if odd else digits


def encoded_address(
    variant: str, *, pc: int | None = None, ssn: int = 0, kind: int = 0, title: bytes = b"", by_ssn: bool = True
) -> bytes:
    """Encode a called or calling party address from its parts."""
    indicator = kind << 2 | (_BY_SSN if by_ssn else 0)
    if variant == ANSI:
        indicator |= _NATIONAL | bool(ssn) | (2 if pc is not None else 0)
        return (
            bytes((indicator,))
            + (bytes((ssn,)) if ssn else b"")
            + (b"" if pc is None else pc.to_bytes(3, "little"))
            + title
        )
    indicator |= (1 if pc is not None else 0) | (2 if ssn else 0)
    return (
        bytes((indicator,))
        + (b"" if pc is None else pc.to_bytes(2, "little"))
        + (bytes((ssn,)) if ssn else b"")
        + title
    )


def e164(digits: str, variant: str) -> tuple[int, bytes]:
    """Return the kind and the octets of a global title for an E.164 number.

    ITU: type 4 and translation type 0. ANSI: type 1 and translation type 10.
    """
    packed = bytes(int(digits[at + 1 : at + 2] or "0") << 4 | int(digits[at]) for at in range(0, len(digits), 2))
    plan = 0x11 if len(digits) % 2 else 0x12
    return (1, bytes((10, plan)) + packed) if variant == ANSI else (4, bytes((0, plan, 4)) + packed)


def with_ssn(called: PartyAddress, ssn: int, variant: str) -> bytes:
    """Encode the called address of a request as calling address of the answer. If the address has no subsystem number, add `ssn`."""
    if called.ssn:
        return called.octets
    return encoded_address(variant, pc=called.pc, ssn=ssn, kind=called.kind, title=called.title, by_ssn=called.by_ssn)


def unitdata(octets: bytes, variant: str) -> Unitdata:
    """Parse a UDT or XUDT message. Raises SccpFault, also for any other message type."""
    kind = octets[0] if octets else 0
    if kind not in {UDT, XUDT}:
        raise SccpFault("returned" if kind in {UDTS, XUDTS} else "message_type")
    try:
        protocol_class = octets[1] & 0x0F
        first = 2 if kind == UDT else 3
        called, calling, carried = (_variable(octets, first + place) for place in range(3))
        segmented = kind == XUDT and _is_segmented(octets, first + 3)
    except IndexError:
        raise SccpFault("cut_off") from None
    if protocol_class not in CLASSES:
        raise SccpFault("protocol_class")
    return Unitdata(
        kind,
        protocol_class,
        bool(octets[1] & RETURN_ON_ERROR),
        address(called, variant),
        address(calling, variant),
        carried,
        segmented,
    )


def _variable(octets: bytes, pointer: int) -> bytes:
    """Return the mandatory variable parameter to which a pointer in an SCCP message refers.

    A pointer counts from its own position (Q.713 1.7).
    """
    at = pointer + octets[pointer]
    length = octets[at]
    if at == pointer or at + 1 + length > len(octets):
        raise IndexError
    return octets[at + 1 : at + 1 + length]


def _is_segmented(octets: bytes, pointer: int) -> bool:
    at = pointer + octets[pointer]
    if at == pointer:
        return False
    while octets[at]:
        name, length = octets[at], octets[at + 1]
        if name == _SEGMENTATION:
            return octets[at + 2] & 0x8F != 0x80  # Q.713 3.17: 0x80 is the first segment without further segments
        at += 2 + length
    return False


def encoded(kind: int, protocol_class: int, called: bytes, calling: bytes, data: bytes) -> bytes:
    """Encode a UDT or XUDT message. Raises SccpFault if a part is too long."""
    return _pointed(
        bytes((kind, protocol_class)) + (bytes((HOPS,)) if kind == XUDT else b""),
        called,
        calling,
        data,
        optional=kind == XUDT,
    )


def returned(unit: Unitdata, cause: ReturnCause) -> bytes:
    """Encode the message that returns an undeliverable message to its sender (Q.714 4.2): UDTS for a UDT, XUDTS for an XUDT.

    Called and calling address are swapped. Raises SccpFault like `encoded`.
    """
    extended = unit.kind == XUDT
    head = bytes((XUDTS, cause, HOPS)) if extended else bytes((UDTS, cause))
    return _pointed(head, unit.calling.octets, unit.called.octets, unit.data, optional=extended)


def allowed(unit: Unitdata, pc: int, subsystems: Collection[int], variant: str) -> bytes | None:
    """Encode the answer "subsystem allowed" (SSA) to a subsystem status test (SST); None if the message needs no SSA (Q.714 5.3.4).

    Only a test of one of these subsystems at this point code has an answer. Raises SccpFault like `encoded`.
    """
    at = pc.to_bytes(3 if variant == ANSI else 2, "little")
    if unit.called.ssn != MANAGEMENT or len(unit.data) != 3 + len(at) or unit.data[:1] != _TEST:
        return None
    if unit.data[1] not in subsystems or unit.data[2:-1] != at:
        return None
    return encoded(UDT, 0, unit.calling.octets, unit.called.octets, _ALLOWED + unit.data[1:])


def _pointed(head: bytes, called: bytes, calling: bytes, data: bytes, *, optional: bool) -> bytes:
    pointers = 4 if optional else 3
    second = pointers + len(called)
    third = pointers - 1 + len(called) + 1 + len(calling)
    if max(second, third, len(data)) > PART_MAX:
        raise SccpFault("too_long")
    fixed = struct.pack("BBB", pointers, second, third) + (b"\0" if optional else b"")
    return b"".join(
        (head, fixed, bytes((len(called),)), called, bytes((len(calling),)), calling, bytes((len(data),)), data)
    )

"""SCCP connectionless (Q.713, ANSI T1.112): unitdata in, unitdata or its return out. Addresses as they come, and what they say.

UDT and XUDT that is not segmented; UDTS and XUDTS where return on error is asked for; of the management of SCCP the test of a
subsystem. Point codes stand as people write them. No I/O.
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
    """The number of a point code that is written as `1-2-3`, `1.2.3` or a number. Raises ValueError."""
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
    """A point code as people write it."""
    parts = []
    for width in reversed(BITS[variant]):
        parts.append(str(number & (1 << width) - 1))
        number >>= width
    return "-".join(reversed(parts))


UDT, UDTS, XUDT, XUDTS = 0x09, 0x0A, 0x11, 0x12
RETURN_ON_ERROR = 0x80
CLASSES = (0, 1)
ADDRESSES_MAX = 4096
"""Addresses that are remembered with what they say: an MSC calls from the same one each time."""
PART_MAX = 255
"""The most that a pointer, or the length of a variable part, can say (Q.713 1.7)."""
MANAGEMENT = 1
"""Subsystem of SCCP's management (Q.713 3.4.2.2)."""
_ALLOWED, _TEST = b"\x01", b"\x03"
"""SSA and SST (Q.713 5.1.1)."""
HOPS = 15
"""Hop counter of what the node sends as XUDT (Q.713 3.18)."""
_SEGMENTATION = 0x10
_BY_SSN, _NATIONAL = 0x40, 0x80
_DIGITS = "0123456789abcdef"


class Cause(IntEnum):
    """Return causes (Q.713 3.12)."""

    NO_TRANSLATION = 1
    UNEQUIPPED_USER = 4
    NO_REASSEMBLY = 10


class SccpFault(Exception):
    """Octets that are no message of SCCP, or one that has no place here; the text is a short word for metrics."""


class Address(NamedTuple):
    """A called or calling party address (Q.713 3.4)."""

    octets: bytes
    """As it stood in the message."""
    pc: int | None
    ssn: int
    """0: none, or not known."""
    kind: int
    """Type of the global title, 1 to 4; 0: the address has no title."""
    title: bytes
    """Octets of the title."""
    digits: str
    """The title's digits; empty: none."""
    by_ssn: bool
    """Routing is by subsystem number and point code, not by title."""


class Unitdata(NamedTuple):
    """A UDT or XUDT."""

    kind: int
    protocol_class: int
    returns: bool
    """The sender wants the message back if it cannot be delivered."""
    called: Address
    calling: Address
    data: bytes
    segmented: bool
    """The message is one of several parts."""


@lru_cache(ADDRESSES_MAX)
def address(octets: bytes, variant: str) -> Address:
    """Read an address. Raises SccpFault."""
    if not octets:
        raise SccpFault("address")
    indicator = octets[0]
    at = 1
    pc: int | None = None
    ssn = 0
    try:
        if variant == ANSI:  # T1.112.3 3.5: the subsystem number stands first, in the indicator too
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
    return Address(octets, pc, ssn, kind, title, _digits(kind, title, variant), bool(indicator & _BY_SSN))


def _digits(kind: int, title: bytes, variant: str) -> str:
    """The digits of a global title; empty for a title that has none, or a type that the standards do not give."""
    head = {1: 2, 2: 1}.get(kind) if variant == ANSI else {1: 1, 2: 1, 3: 2, 4: 3}.get(kind)
    if head is None or len(title) <= head:
        return ""
    digits = "".join([_DIGITS[octet & 0x0F] + _DIGITS[octet >> 4] for octet in title[head:]])
    if variant != ANSI and kind == 1:
        odd = bool(title[0] & 0x80)
    elif head == 1:
        odd = digits[-1] == "f"  # the type says nothing of the number of digits
    else:
        odd = title[1] & 0x0F == 1
    return digits[:-1] if odd else digits


def encoded_address(
    variant: str, *, pc: int | None = None, ssn: int = 0, kind: int = 0, title: bytes = b"", by_ssn: bool = True
) -> bytes:
    """An address."""
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
    """Type and octets of the global title that carries a number of E.164: type 4, translation type 0; in ANSI type 1, translation type 10."""
    packed = bytes(int(digits[at + 1 : at + 2] or "0") << 4 | int(digits[at]) for at in range(0, len(digits), 2))
    plan = 0x11 if len(digits) % 2 else 0x12
    return (1, bytes((10, plan)) + packed) if variant == ANSI else (4, bytes((0, plan, 4)) + packed)


def with_ssn(called: Address, ssn: int, variant: str) -> bytes:
    """An address of ours as the answer shows it: as it was called, with the subsystem where that was left out."""
    if called.ssn:
        return called.octets
    return encoded_address(variant, pc=called.pc, ssn=ssn, kind=called.kind, title=called.title, by_ssn=called.by_ssn)


def unitdata(octets: bytes, variant: str) -> Unitdata:
    """A UDT or XUDT. Raises SccpFault for anything else."""
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
    """A mandatory variable part: a pointer counts from itself (Q.713 1.7)."""
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
            return octets[at + 2] & 0x8F != 0x80  # Q.713 3.17: neither the first nor the last of several
        at += 2 + length
    return False


def encoded(kind: int, protocol_class: int, called: bytes, calling: bytes, data: bytes) -> bytes:
    """A UDT or XUDT, with these addresses. Raises SccpFault for parts that do not fit into one."""
    return _pointed(
        bytes((kind, protocol_class)) + (bytes((HOPS,)) if kind == XUDT else b""),
        called,
        calling,
        data,
        optional=kind == XUDT,
    )


def returned(unit: Unitdata, cause: Cause) -> bytes:
    """A unitdata on its way back (Q.714 4.2): UDTS for UDT, XUDTS for XUDT, with its addresses turned round. Raises SccpFault as `encoded`."""
    extended = unit.kind == XUDT
    head = bytes((XUDTS, cause, HOPS)) if extended else bytes((UDTS, cause))
    return _pointed(head, unit.calling.octets, unit.called.octets, unit.data, optional=extended)


def allowed(unit: Unitdata, pc: int, subsystems: Collection[int], variant: str) -> bytes | None:
    """The answer to a test of one of these subsystems at this point code (SST): that it is allowed (SSA, Q.714 5.3.4).

    None: the unitdata is no such test. Raises SccpFault as `encoded`.
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

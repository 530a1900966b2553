"""Basic Encoding Rules of ASN.1 (X.690) as TCAP and MAP need them. The parser returns positions instead of copies.

It reads all three forms of a length (X.690 8.1.3). The encoder writes the shortest definite form.
"""

from typing import NamedTuple

DEPTH_MAX = 8
"""Maximum nesting depth of elements with an indefinite length, which bounds the work."""
TAG_OCTETS_MAX = 4
CONSTRUCTED = 0x20
_INDEFINITE = 0x80


class BerError(ValueError):
    """Error: the BER data are truncated, or contain an invalid length or tag."""


class Element(NamedTuple):
    """Tag and position of an element in the parsed octets."""

    tag: int
    """All octets of the tag as a number: 0x30, 0x04, 0x9F21."""
    start: int
    """Start of the contents."""
    stop: int
    """End of the contents."""
    end: int
    """End of the element: `stop`, or 2 octets later if the length is indefinite."""


def element(data: bytes, at: int, stop: int, depth: int = 0) -> Element:
    """Parse the BER element that begins at offset `at`.

    Raises:
        BerError: if the element is invalid, or ends after `stop`.
    """
    try:
        tag, at = _tag(data, at)
        length = data[at]
        at += 1
        if length == _INDEFINITE:
            return _indefinite(data, tag, at, stop, depth)
        if length > _INDEFINITE:
            octets = length - _INDEFINITE
            if octets > 4 or at + octets > stop:
                raise BerError("a length of more than 4 octets, or cut off")
            length, at = int.from_bytes(data[at : at + octets]), at + octets
    except IndexError:
        raise BerError("cut off") from None
    if at + length > stop:
        raise BerError("an element is longer than what it stands in")
    return Element(tag, at, at + length, at + length)


def _tag(data: bytes, at: int) -> tuple[int, int]:
    tag = data[at]
    at += 1
    if tag & 0x1F == 0x1F:
        for _ in range(TAG_OCTETS_MAX - 1):
            more = data[at]
            tag, at = tag << 8 | more, at + 1
            if more < 0x80:
                return tag, at
        raise BerError("a tag of more than 4 octets")
    return tag, at


def _indefinite(data: bytes, tag: int, start: int, stop: int, depth: int) -> Element:
    """Parse a constructed element of indefinite length, which ends with two zero octets (X.690 8.1.3.6)."""
    first = tag >> (8 * ((tag.bit_length() - 1) // 8)) if tag > 0xFF else tag
    if not first & CONSTRUCTED or depth >= DEPTH_MAX:
        raise BerError("an indefinite length that cannot be")
    at = start
    while data[at : at + 2] != b"\0\0":
        at = element(data, at, stop, depth + 1).end
    if at + 2 > stop:
        raise BerError("cut off")
    return Element(tag, start, at, at + 2)


def elements(data: bytes, start: int, stop: int) -> list[Element]:
    """Parse the consecutive BER elements between two offsets. Raises BerError."""
    parsed = []
    while start < stop:
        each = element(data, start, stop)
        parsed.append(each)
        start = each.end
    return parsed


def encoded(tag: int, contents: bytes) -> bytes:
    """Encode a BER element with a tag of one octet."""
    length = len(contents)
    if length < 0x80:
        return bytes((tag, length)) + contents
    octets = (length.bit_length() + 7) // 8
    return bytes((tag, 0x80 | octets)) + length.to_bytes(octets) + contents

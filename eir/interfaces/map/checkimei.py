"""Codec of checkIMEI in versions 1, 2 and 3 (TS 29.002 8.7.1, 17.7.1, 17.7.8): argument and result.

It is written by hand for this one operation. Vendors put the IMSI in different places; the parser searches all of them.
"""

from collections.abc import Collection
from typing import Final, NamedTuple

from eir.wire.ss7.ber import CONSTRUCTED, BerError, Element, elements
from eir.wire.ss7.tcap import MISTYPED_PARAMETER, RejectProblem

CHECK_IMEI: Final = 43
SYSTEM_FAILURE, DATA_MISSING, UNKNOWN_EQUIPMENT = 34, 35, 7
"""Errors of the operation (TS 29.002 17.6.1); no others are sent."""
CONTEXT: Final = bytes.fromhex("04000001000d")
"""equipmentMngtContext (TS 29.002 17.3.3) without its version."""
VERSIONS = (3, 2, 1)
IMSI_TAGS: Final = frozenset({0x00, 0x04})
"""Tags of an IMSI after the IMEI: 00 is Huawei's, 04 an octet string."""
_OCTETS, _BITS, _SEQUENCE = 0x04, 0x03, 0x30
_NESTED_MAX = 4
_FULL_IMSI_DIGITS = 15
_SWAPPED = bytes((octet & 0x0F) << 4 | octet >> 4 for octet in range(256))


class CheckImeiArgument(NamedTuple):
    """Parsed argument of a checkIMEI request."""

    imei: str | None
    """Digits as received, other signs as letters; None: there is no IMEI."""
    imsi: str
    """Empty: the argument has no IMSI."""
    wants_status: bool = True
    """False if only bmuef is requested, which is never returned."""


class DataMissing(Exception):
    """Error: a mandatory part of the checkIMEI argument is missing."""


def context_of(version: int) -> bytes:
    """Return the name of the application context for a version of checkIMEI."""
    return CONTEXT + bytes((version,))


def version_of(context: bytes) -> int | None:
    """Return the version of checkIMEI in an application context name; None if the node does not serve this context."""
    return context[-1] if context[:-1] == CONTEXT and context[-1] in VERSIONS else None


def digits(octets: bytes) -> str:
    """Decode a TBCD-STRING (17.7.8) to digits, without fillers at the end.

    Codes that are not digits become letters.
    """
    return octets.translate(_SWAPPED).hex().rstrip("f")


def packed(text: str) -> bytes:
    """Encode digits as a TBCD-STRING (17.7.8)."""
    return bytes.fromhex(text if len(text) % 2 == 0 else text + "f").translate(_SWAPPED)


def imsi_of(octets: bytes) -> str:
    """Decode TBCD octets to an IMSI; return an empty text if they are no IMSI (TS 23.003 2.2: 6 to 15 digits)."""
    text = digits(octets)
    return text if 6 <= len(text) <= 15 and text.isdigit() else ""


def asked(
    octets: bytes, version: int, parameters: list[Element], imsi_tags: Collection[int] = ()
) -> CheckImeiArgument | RejectProblem:
    """Parse the argument of a checkIMEI invocation; return a RejectProblem if the invocation must be rejected.

    `parameters`: elements after the operation code. `imsi_tags`: further tags of an IMSI.

    Raises:
        DataMissing: if a mandatory part is missing.
    """
    tags = IMSI_TAGS | set(imsi_tags)
    inside: list[Element] = []
    try:
        if version < 3 and not parameters:
            return CheckImeiArgument(None, "")
        if not parameters:
            raise DataMissing
        if parameters[0].tag == _SEQUENCE:
            inside, rest = elements(octets, parameters[0].start, parameters[0].stop), parameters[1:]
        elif version < 3 and parameters[0].tag == _OCTETS:
            inside, rest = parameters[:1], parameters[1:]
        else:
            return MISTYPED_PARAMETER
    except BerError:
        return MISTYPED_PARAMETER
    imei = octets[inside[0].start : inside[0].stop] if inside and inside[0].tag == _OCTETS else None
    beside = [*(inside if imei is None else inside[1:]), *rest]
    wants_status = True
    if version == 3:
        info = next((each for each in beside if each.tag == _BITS), None)
        if info is None:
            raise DataMissing
        if info.stop - info.start < 2 or octets[info.start] > 7:
            return MISTYPED_PARAMETER
        wants_status = bool(octets[info.start + 1] & 0x80)
    return CheckImeiArgument(
        None if imei is None else digits(imei), _imsi(octets, beside, tags, set(imsi_tags), 0), wants_status
    )


def _imsi(octets: bytes, among: list[Element], tags: Collection[int], named: Collection[int], depth: int) -> str:
    """Return the first IMSI in BER elements, also in nested elements; empty if there is no IMSI. `among`: elements to search.

    Inside an extension, an octet string is an IMSI only if it has 15 digits, because extensions hold other numbers too.
    """
    for each in among:
        part = octets[each.start : each.stop]
        if each.tag in tags and (imsi := imsi_of(part)):
            if depth == 0 or each.tag in named or each.tag != _OCTETS or len(imsi) == _FULL_IMSI_DIGITS:
                return imsi
        elif _first(each.tag) & CONSTRUCTED and depth < _NESTED_MAX:
            try:
                inner = elements(octets, each.start, each.stop)
            except BerError:
                continue
            if imsi := _imsi(octets, inner, tags, named, depth + 1):
                return imsi
    return ""


def _first(tag: int) -> int:
    while tag > 0xFF:
        tag >>= 8
    return tag


def result(version: int, status: int | None) -> bytes:
    """Encode a checkIMEI result with the EquipmentStatus `status` (17.7.1). Without `status`, the result has no status."""
    encoded = b"" if status is None else bytes((0x0A, 1, status))
    return bytes((_SEQUENCE, len(encoded))) + encoded if version == 3 else encoded


def argument(version: int, imei: str, imsi: str | None = None) -> bytes:
    """Encode the argument of a checkIMEI.

    An IMSI follows the IMEI in Huawei's form. In version 3 it is an octet string at the end.
    """
    number = packed(imei)
    first = bytes((_OCTETS, len(number))) + number
    if version < 3:
        return first + (b"" if imsi is None else bytes((0, len(packed(imsi)))) + packed(imsi))
    inside = (
        first
        + bytes((_BITS, 2, 6, 0x80))
        + (b"" if imsi is None else bytes((_OCTETS, len(packed(imsi)))) + packed(imsi))
    )
    return bytes((_SEQUENCE, len(inside))) + inside


def status_of(octets: bytes, version: int, parameters: list[Element]) -> int | None:
    """Return the EquipmentStatus in a checkIMEI result; None for a result without a status.

    Raises:
        BerError: if the result cannot be parsed.
    """
    inside = parameters
    if version == 3 and parameters and parameters[0].tag == _SEQUENCE:
        inside = elements(octets, parameters[0].start, parameters[0].stop)
    status = next((each for each in inside if each.tag == 0x0A and each.stop == each.start + 1), None)
    return None if status is None else octets[status.start]

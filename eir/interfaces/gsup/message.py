"""Codec of GSUP (Osmocom): CHECK-IMEI, its answers, and errors for other requests.

A GSUP message is a type, then elements of tag, length and value. GSUP has no transaction id: an answer is matched by its IMSI
alone, so the IMSI is returned as received. No I/O.
"""

from enum import IntEnum
from typing import Final, NamedTuple

from eir.device import is_digits
from eir.interfaces.gsup.ipa import GSUP, HEADER_BYTES, OSMO, frame

TYPE_AT: Final = HEADER_BYTES + 1
"""Offset of a GSUP message in its frame; the message begins with its type."""
CHECK_IMEI, CHECK_IMEI_ERROR, CHECK_IMEI_RESULT = 0x30, 0x31, 0x32
KIND_BITS: Final = 0x03
"""Bits of a type: 0 for a request, 1 for its error, 2 for its result."""
REQUEST: Final = 0
NETWORK_FAILURE: Final = 0x11
"""Cause after which a phone tries again later (TS 24.008 10.5.5.14)."""
SESSION_END: Final = bytes((0x31, 1, 3))

_SWAPPED: Final = bytes(octet >> 4 | (octet & 15) << 4 for octet in range(256))
"""Octets with swapped halves: TBCD has the first of two digits in the lower half (TS 29.002 17.7.8)."""


class Ie(IntEnum):
    """Tags of GSUP information elements."""

    IMSI = 0x01
    CAUSE = 0x02
    MESSAGE_CLASS = 0x0A
    SESSION_ID = 0x30
    SESSION_STATE = 0x31
    SM_RP_MR = 0x40
    IMEI = 0x50
    IMEI_RESULT = 0x51


_IMSI, _IMEI = int(Ie.IMSI), int(Ie.IMEI)
"""Plain integers, whose lookup takes half the time of an enum's."""


class CheckImei(NamedTuple):
    """Contents of a CHECK-IMEI request."""

    imsi: bytes | None
    """IMSI as received; None: it is missing, so that no answer is possible."""
    imei: str | None
    """Digits (14 from an OsmoMSC), or other signs if it is no IMEI; None: it is missing."""

    @property
    def subscriber(self) -> str:
        """IMSI as digits, or empty if the request has no IMSI."""
        return digits(self.imsi or b"")


def digits(tbcd: bytes) -> str:
    """Decode TBCD octets to digits, without fillers at the end.

    Codes that are not digits become letters.
    """
    return tbcd.translate(_SWAPPED).hex().rstrip("f")


def elements(message: bytes, at: int = TYPE_AT + 1) -> dict[int, bytes]:
    """Parse the information elements of a GSUP frame; return their contents by tag.

    The first element with a tag counts. A truncated element keeps its readable part.
    """
    values: dict[int, bytes] = {}
    end = len(message) - 1
    while at < end:
        after = at + 2 + message[at + 1]
        tag = message[at]
        if tag not in values:
            values[tag] = message[at + 2 : after]
        at = after
    return values


def read_check_imei(message: bytes) -> CheckImei:
    """Parse a frame with a CHECK-IMEI. The function raises no exception, even if the content is invalid.

    An IMEI begins with its number of octets (OsmoMSC: 7, which are 14 digits), or has no such octet.
    """
    values = elements(message)
    imsi, value = values.get(_IMSI), values.get(_IMEI)
    if value is None:
        return CheckImei(imsi, None)
    return CheckImei(imsi, digits(value[1:] if value and value[0] == len(value) - 1 else value))


def check_imei(imsi: str, imei: str) -> bytes:
    """Encode a CHECK-IMEI frame as OsmoMSC does. The IMEI may have any number of digits."""
    device = _tbcd(imei)
    return _frame(
        CHECK_IMEI, (Ie.IMSI, _tbcd(imsi)), (Ie.IMEI, bytes((len(device),)) + device), (Ie.MESSAGE_CLASS, b"\x01")
    )


def result(imsi: bytes, *, permitted: bool) -> bytes:
    """Encode the frame of a positive (ACK) or negative (NACK) result of a CHECK-IMEI.

    It always has a result element, because some clients read a message without one as an ACK.
    """
    return _BEFORE_IMSI[len(imsi)] + imsi + (_ACK if permitted else _NACK)


def is_nack(answer: bytes) -> bool:
    """Return true if a frame with the result of a CHECK-IMEI is a NACK."""
    return answer[TYPE_AT] == CHECK_IMEI_RESULT and any(elements(answer).get(Ie.IMEI_RESULT, b""))


def error(request: bytes) -> bytes | None:
    """Encode the error frame that answers a request which cannot be forwarded to the HLR.

    None: the message is no request, or has no IMSI.
    """
    values = elements(request)
    if request[TYPE_AT] & KIND_BITS != REQUEST or Ie.IMSI not in values:
        return None
    kept = [(tag, values[tag]) for tag in (Ie.IMSI, Ie.SESSION_ID, Ie.SM_RP_MR, Ie.MESSAGE_CLASS) if tag in values]
    ended = SESSION_END if Ie.SESSION_ID in values else b""
    return _frame(request[TYPE_AT] + 1, *kept, (Ie.CAUSE, bytes((NETWORK_FAILURE,))), more=ended)


def _frame(kind: int, *parts: tuple[int, bytes], more: bytes = b"") -> bytes:
    return frame(
        OSMO, bytes((GSUP, kind)) + b"".join([bytes((tag, len(value))) + value for tag, value in parts]) + more
    )


def _tbcd(number: str) -> bytes:
    if not is_digits(number) and number:
        raise ValueError
    return bytes.fromhex(number if len(number) % 2 == 0 else number + "f").translate(_SWAPPED)


_ACK, _NACK = (bytes((Ie.IMEI_RESULT, 1, says)) for says in (0, 1))
_BEFORE_IMSI = [
    frame(OSMO, bytes((GSUP, CHECK_IMEI_RESULT, Ie.IMSI, size)) + bytes(size) + _ACK)[: TYPE_AT + 3]
    for size in range(256)
]
"""Octets before an IMSI in a result, by the number of the IMSI's octets."""

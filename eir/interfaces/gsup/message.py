"""CHECK-IMEI and its answers, and the error of any other request (Osmocom's GSUP: a type, then elements of tag, length, value).

There is no id of a transaction: an answer is found by its IMSI alone, so that one goes back as it came. Without I/O.
"""

from enum import IntEnum
from typing import Final, NamedTuple

from eir.device import is_digits
from eir.interfaces.gsup.ipa import GSUP, HEADER_BYTES, OSMO, frame

TYPE_AT: Final = HEADER_BYTES + 1
"""Offset of a GSUP message in its frame, which begins with its type."""
CHECK_IMEI, CHECK_IMEI_ERROR, CHECK_IMEI_RESULT = 0x30, 0x31, 0x32
KIND_BITS: Final = 0x03
"""Bits of a type: 0 a request, 1 its error, 2 its result."""
REQUEST: Final = 0
NETWORK_FAILURE: Final = 0x11
"""A cause (TS 24.008 10.5.5.14) by which a phone tries again later."""
SESSION_END: Final = bytes((0x31, 1, 3))

_SWAPPED: Final = bytes(octet >> 4 | (octet & 15) << 4 for octet in range(256))
"""An octet with its halves changed round: TBCD has the first of two digits in the lower one (TS 29.002 17.7.8)."""


class Ie(IntEnum):
    """Elements."""

    IMSI = 0x01
    CAUSE = 0x02
    MESSAGE_CLASS = 0x0A
    SESSION_ID = 0x30
    SESSION_STATE = 0x31
    SM_RP_MR = 0x40
    IMEI = 0x50
    IMEI_RESULT = 0x51


_IMSI, _IMEI = int(Ie.IMSI), int(Ie.IMEI)
"""Plain numbers are found in half the time."""


class CheckImei(NamedTuple):
    """Content of a CHECK-IMEI."""

    imsi: bytes | None
    """The IMSI as it came; None: it is missing, so nobody could tell whose an answer is."""
    imei: str | None
    """Digits (14 from an OsmoMSC), or other signs if it is not an IMEI; None: it is missing."""

    @property
    def subscriber(self) -> str:
        """Return the IMSI's digits; empty if it is missing."""
        return digits(self.imsi or b"")


def digits(tbcd: bytes) -> str:
    """The digits of TBCD octets, fillers at the end left out; other signs than digits are letters."""
    return tbcd.translate(_SWAPPED).hex().rstrip("f")


def elements(message: bytes, at: int = TYPE_AT + 1) -> dict[int, bytes]:
    """The elements of a GSUP message in its frame, the first of each tag; one that is cut off has what is there of it."""
    found: dict[int, bytes] = {}
    end = len(message) - 1
    while at < end:
        after = at + 2 + message[at + 1]
        tag = message[at]
        if tag not in found:
            found[tag] = message[at + 2 : after]
        at = after
    return found


def read_check_imei(message: bytes) -> CheckImei:
    """Read a frame with a CHECK-IMEI; never raises.

    An IMEI begins with its number of octets (OsmoMSC: 7, which are 14 digits), or has no such octet.
    """
    found = elements(message)
    imsi, value = found.get(_IMSI), found.get(_IMEI)
    if value is None:
        return CheckImei(imsi, None)
    return CheckImei(imsi, digits(value[1:] if value and value[0] == len(value) - 1 else value))


def check_imei(imsi: str, imei: str) -> bytes:
    """A CHECK-IMEI as an OsmoMSC sends it, in its frame; of the IMEI go out whatever digits there are, two in an octet."""
    device = _tbcd(imei)
    return _frame(
        CHECK_IMEI, (Ie.IMSI, _tbcd(imsi)), (Ie.IMEI, bytes((len(device),)) + device), (Ie.MESSAGE_CLASS, b"\x01")
    )


def result(imsi: bytes, *, permitted: bool) -> bytes:
    """ACK or NACK, in its frame: never empty, since an empty one is an ACK for some."""
    return _BEFORE_IMSI[len(imsi)] + imsi + (_ACK if permitted else _NACK)


def says_no(answer: bytes) -> bool:
    """True if a frame with the result of a CHECK-IMEI is a NACK."""
    return answer[TYPE_AT] == CHECK_IMEI_RESULT and any(elements(answer).get(Ie.IMEI_RESULT, b""))


def error(request: bytes) -> bytes | None:
    """Return the answer, in its frame, to a request that nobody can answer now.

    None for what is not a request, or has no IMSI.
    """
    found = elements(request)
    if request[TYPE_AT] & KIND_BITS != REQUEST or Ie.IMSI not in found:
        return None
    kept = [(tag, found[tag]) for tag in (Ie.IMSI, Ie.SESSION_ID, Ie.SM_RP_MR, Ie.MESSAGE_CLASS) if tag in found]
    ended = SESSION_END if Ie.SESSION_ID in found else b""
    return _frame(request[TYPE_AT] + 1, *kept, (Ie.CAUSE, bytes((NETWORK_FAILURE,))), more=ended)


def _frame(kind: int, *parts: tuple[int, bytes], more: bytes = b"") -> bytes:
    return frame(
        OSMO, bytes((GSUP, kind)) + b"".join([bytes((tag, len(value))) + value for tag, value in parts]) + more
    )


def _tbcd(number: str) -> bytes:
    """Return digits as TBCD octets; raises ValueError for other signs."""
    if not is_digits(number) and number:
        raise ValueError
    return bytes.fromhex(number if len(number) % 2 == 0 else number + "f").translate(_SWAPPED)


_ACK, _NACK = (bytes((Ie.IMEI_RESULT, 1, says)) for says in (0, 1))
_BEFORE_IMSI = [
    frame(OSMO, bytes((GSUP, CHECK_IMEI_RESULT, Ie.IMSI, size)) + bytes(size) + _ACK)[: TYPE_AT + 3]
    for size in range(256)
]
"""Octets before an IMSI in a result, by the number of the IMSI's octets."""

"""Question about a device, and the validation of its identifiers (TS 23.003 6.2).

An interface (such as eir.interfaces.s13.service) fills a Question with the texts of its protocol without a validation. This
module distinguishes missing and malformed identifiers in the same way for each protocol. An identifier may also be suspect by
itself, without a list: reprogrammed phones have zeros, a repeated digit, sequences of digits, identifiers of test equipment, or
an IMEI with a wrong check digit. Independent of the policy.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from eir.device import IMEI_LENGTHS, KEY_DIGITS, ODD_BASE, SNR_KEYS, imei_key, is_digits, meid_key, odd_key
from eir.errors import IdentifierError

IMEISV_DIGITS = IMEI_LENGTHS[-1]
SOFTWARE_VERSION_DIGITS = IMEISV_DIGITS - KEY_DIGITS


class Question(NamedTuple):
    """Request for one check, with the texts of its protocol. A text is empty if the request lacks it."""

    imei: str | None = None
    """IMEI or IMEISV; None if the request has none, which is not the same as an empty one."""
    meid: str | None = None
    """MEID as hexadecimal digits; None if the request has none."""
    imsi: str = ""
    software_version: str = ""
    origin_host: str = ""
    origin_realm: str = ""
    protocol: str = ""
    """Protocol of the request, as a label of metrics."""
    peer: str = ""
    """Configured label of the peer that sent the request, for metrics and log; never a text from the wire."""
    unproven: bool = False
    """True if the SIM was not authenticated before the request, so that any phone may have claimed its IMSI."""
    msisdn: str = ""
    """Number of the subscriber: 5 to 15 digits with the country code. It is recorded, and does not change the answer."""
    other: str | None = None
    """Identifier of a device without an IMEI, which is in no list (5G: a MAC address or an EUI-64)."""

    @property
    def is_anonymous(self) -> bool:
        """True if the request contains neither an IMEI nor a MEID, not even a malformed one."""
        return self.imei is None and self.meid is None

    def device(self) -> int:
        """Return the key of the device: that of its IMEI if the IMEI is valid, else that of its MEID.

        Raises:
            IdentifierError: if neither is valid, with the reason for a person.
        """
        if self.imei is None:
            if self.meid is None:
                raise IdentifierError("there is neither an IMEI nor a MEID")
            return meid_key(self.meid)
        try:
            return imei_key(self.imei)
        except IdentifierError as e:
            if self.meid is None:
                raise
            bad_imei = e
        try:
            return meid_key(self.meid)
        except IdentifierError as e:
            raise IdentifierError(f"{bad_imei}; {e}") from None

    def any_device(self) -> int | None:
        """Return the key of the device's identifier, even if the identifier is neither an IMEI nor a MEID.

        The key is `None` if the identifier is empty or too long.
        """
        try:
            return self.device()
        except IdentifierError:
            pass
        try:
            return odd_key(self.imei or self.meid or "")
        except IdentifierError:
            return None

    def identifier(self) -> str:
        """Return the identifier of the device as it was sent, or an empty text.

        The IMEI is preferred. If the IMEI is not valid and the request has a MEID, the MEID is returned.
        """
        if self.imei and (self.meid is None or (len(self.imei) in IMEI_LENGTHS and is_digits(self.imei))):
            return self.imei
        return self.meid or self.imei or self.other or ""

    def subscriber(self) -> str:
        """Return the IMSI, or an empty text if the IMSI contains other characters than digits."""
        return self.imsi if is_digits(self.imsi) else ""

    def version(self) -> str:
        """Return the software version (two digits) of the request or else of its IMEISV, or an empty text."""
        version = self.software_version
        if not is_digits(version):
            version = (
                self.imei[KEY_DIGITS:] if self.imei and len(self.imei) == IMEISV_DIGITS and is_digits(self.imei) else ""
            )
        return version if len(version) == SOFTWARE_VERSION_DIGITS else ""


MALFORMED, CHECK_DIGIT = "malformed", "check_digit"
"""Faults that the key of a device (eir.device) does not show."""
NO_KEY = ODD_BASE
"""Key that no identifier has, so it is in no list."""
IMEI_DIGITS = 15

_UPWARD = "0123456789" * 3
_TEST_TACS = (
    *((f"0010{body:02d}00", f"0010{body:02d}99") for body in range(1, 18)),
    *((f"{body}0000", f"{body}9999") for body in ("0044", "0086", "0091")),
)
"""TACs of test equipment (GSMA TS.06, and test TACs of the reporting bodies): first and last TAC of each range."""


def _alone(*identifiers: str) -> tuple[tuple[int, int], ...]:
    return tuple((int(each), int(each)) for each in identifiers)


STRETCHES: Mapping[str, tuple[tuple[int, int], ...]] = {
    "zero": _alone("0" * KEY_DIGITS),
    "repeated": _alone(*(digit * KEY_DIGITS for digit in "123456789")),
    "sequence": _alone(*(row[at : at + KEY_DIGITS] for row in (_UPWARD, _UPWARD[::-1]) for at in range(10))),
    "test": tuple((int(first) * SNR_KEYS, (int(last) + 1) * SNR_KEYS - 1) for first, last in _TEST_TACS),
}
"""Faults that the key of a device shows, by name: first and last key of each range."""


def _within(stretches: tuple[tuple[int, int], ...]) -> Callable[[int], bool]:
    alone = frozenset(first for first, last in stretches if first == last)
    wide = tuple((first, last) for first, last in stretches if first != last)
    return lambda key: key in alone or any(first <= key <= last for first, last in wide)


BY_KEY: Mapping[str, Callable[[int], bool]] = {name: _within(stretches) for name, stretches in STRETCHES.items()}
"""Same as tests of a key."""

SUSPECT = (MALFORMED, *BY_KEY, CHECK_DIGIT)
"""Values of the condition `identifier`."""

_DOUBLED = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)


def is_wrong_digit(imei: str | bytes) -> bool:
    """Return True if the 15th digit of an IMEI is neither its check digit nor 0 (TS 23.003 annex B).

    Phones send 0 as a spare digit in this place.
    """
    if len(imei) != IMEI_DIGITS or not imei.isdigit():
        return False
    digits = [int(digit) for digit in (imei if isinstance(imei, str) else imei.decode())]
    luhn = -(sum(digits[0:KEY_DIGITS:2]) + sum(_DOUBLED[digit] for digit in digits[1:KEY_DIGITS:2])) % 10
    return digits[-1] not in {0, luhn}

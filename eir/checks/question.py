"""A question: a device, the subscriber that uses it and who asks; which identifiers are good (TS 23.003 6.2), and which are suspect.

A translator (eir.interfaces.s13.service is S13's) fills a Question with the texts that its protocol carried and judges none of them: what is
missing or malformed is told apart here, in the same way for each protocol. An identifier may be suspect by itself, before anybody looks
into a list: reprogrammed phones carry zeros, one digit over and over, runs of digits, identifiers of test equipment, or an IMEI whose
check digit belongs to another one. Imports eir.device and errors; knows no policy.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from eir.device import IMEI_LENGTHS, KEY_DIGITS, ODD_BASE, SNR_KEYS, imei_key, is_digits, meid_key, odd_key
from eir.errors import IdentifierError

IMEISV_DIGITS = IMEI_LENGTHS[-1]
SOFTWARE_VERSION_DIGITS = IMEISV_DIGITS - KEY_DIGITS


class Question(NamedTuple):
    """One check that is asked for. Texts are as the protocol carried them, empty where it carried none."""

    imei: str | None = None
    """IMEI or IMEISV; None: the request has none, which is not the same as an empty one."""
    meid: str | None = None
    """MEID, as hexadecimal digits; None: the request has none."""
    imsi: str = ""
    software_version: str = ""
    origin_host: str = ""
    origin_realm: str = ""
    protocol: str = ""
    """Over which the request came: a label of the metrics."""
    peer: str = ""
    """Label of the peer that sent the request, for metrics and log. Comes from the configuration, never from the wire."""
    unproven: bool = False
    """The SIM was not authenticated before the request, so that anybody may have given its IMSI."""
    other: str | None = None
    """An identifier of another kind, of devices that have no IMEI: no list has one (5G: a MAC address or an EUI-64)."""

    @property
    def is_anonymous(self) -> bool:
        """True if the request carries no identifier of a device, not even a malformed one."""
        return self.imei is None and self.meid is None

    def device(self) -> int:
        """The key (eir.device) of the device: by its IMEI if that is good, else by its MEID.

        Raises IdentifierError if neither is, with the reason in words.
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
        """The key of what the device calls itself, which need be neither IMEI nor MEID; None if it is nothing, or too long for a key."""
        try:
            return self.device()
        except IdentifierError:
            pass
        try:
            return odd_key(self.imei or self.meid or "")
        except IdentifierError:
            return None

    def identifier(self) -> str:
        """Return what names the device, as it was sent.

        It is the MEID if the IMEI is not one; empty if the request carries neither.
        """
        if self.imei and (self.meid is None or (len(self.imei) in IMEI_LENGTHS and is_digits(self.imei))):
            return self.imei
        return self.meid or self.imei or self.other or ""

    def subscriber(self) -> str:
        """The IMSI; empty if it is not digits only, so that it decides nothing."""
        return self.imsi if is_digits(self.imsi) else ""

    def version(self) -> str:
        """The software version, two digits: its own if it is digits, else the end of an IMEISV. Empty if that is not two digits."""
        version = self.software_version
        if not is_digits(version):
            version = (
                self.imei[KEY_DIGITS:] if self.imei and len(self.imei) == IMEISV_DIGITS and is_digits(self.imei) else ""
            )
        return version if len(version) == SOFTWARE_VERSION_DIGITS else ""


MALFORMED, CHECK_DIGIT = "malformed", "check_digit"
"""Faults that the key of a device (eir.device) does not show any more."""
NO_KEY = ODD_BASE
"""The key of nothing at all, so no list has it."""
IMEI_DIGITS = 15

_UPWARD = "0123456789" * 3
_TEST_TACS = (
    *((f"0010{body:02d}00", f"0010{body:02d}99") for body in range(1, 18)),
    *((f"{body}0000", f"{body}9999") for body in ("0044", "0086", "0091")),
)
"""Test equipment: GSMA TS.06 and the reporting bodies' test TACs; the first and the last one of each range."""


def _alone(*identifiers: str) -> tuple[tuple[int, int], ...]:
    return tuple((int(each), int(each)) for each in identifiers)


STRETCHES: Mapping[str, tuple[tuple[int, int], ...]] = {
    "zero": _alone("0" * KEY_DIGITS),
    "repeated": _alone(*(digit * KEY_DIGITS for digit in "123456789")),
    "sequence": _alone(*(row[at : at + KEY_DIGITS] for row in (_UPWARD, _UPWARD[::-1]) for at in range(10))),
    "test": tuple((int(first) * SNR_KEYS, (int(last) + 1) * SNR_KEYS - 1) for first, last in _TEST_TACS),
}
"""Faults that the key of a device shows by itself: by name, ranges of keys, the first and the last one of each."""


def _within(stretches: tuple[tuple[int, int], ...]) -> Callable[[int], bool]:
    alone = frozenset(first for first, last in stretches if first == last)
    wide = tuple((first, last) for first, last in stretches if first != last)
    return lambda key: key in alone or any(first <= key <= last for first, last in wide)


BY_KEY: Mapping[str, Callable[[int], bool]] = {name: _within(stretches) for name, stretches in STRETCHES.items()}
"""The same as tests."""

SUSPECT = (MALFORMED, *BY_KEY, CHECK_DIGIT)
"""Values of the condition `identifier`."""

_DOUBLED = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)


def is_wrong_digit(imei: str | bytes) -> bool:
    """True if an IMEI's 15th digit is neither its check digit (TS 23.003 annex B) nor the spare 0 that phones send."""
    if len(imei) != IMEI_DIGITS or not imei.isdigit():
        return False
    digits = [int(digit) for digit in (imei if isinstance(imei, str) else imei.decode())]
    luhn = -(sum(digits[0:KEY_DIGITS:2]) + sum(_DOUBLED[digit] for digit in digits[1:KEY_DIGITS:2])) % 10
    return digits[-1] not in {0, luhn}

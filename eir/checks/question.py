"""Question about a device, and the validation of its identifiers (TS 23.003 6.2).

An interface (such as eir.interfaces.s13.service) fills a Question with the texts of its protocol and does not validate them. This
module distinguishes missing and malformed identifiers in the same way for each protocol. It also detects identifiers that are
suspect in themselves, as reprogrammed phones send them: zeros, a repeated digit, a sequence of digits, or the identifier of test
equipment. The module does not depend on the policy.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from eir.device import IMEI_LENGTHS, KEY_DIGITS, ODD_BASE, SNR_KEYS, check_digit, imei_key, is_digits, meid_key, odd_key
from eir.errors import IdentifierError

IMEISV_DIGITS = IMEI_LENGTHS[-1]
SOFTWARE_VERSION_DIGITS = IMEISV_DIGITS - KEY_DIGITS


class Question(NamedTuple):
    """Request for one check of a device. A field that the request lacks is None or an empty text."""

    imei: str | None = None
    """IMEI or IMEISV; None if the request has no such field, an empty text if the field is empty."""
    meid: str | None = None
    """MEID as hexadecimal digits; None if the request has no such field."""
    imsi: str = ""
    software_version: str = ""
    origin_host: str = ""
    origin_realm: str = ""
    protocol: str = ""
    """Protocol of the request, as in the label `protocol` of metrics."""
    peer: str = ""
    """Configured label of the peer that sent the request, for metrics and log; never a text from the wire."""
    unproven: bool = False
    """True if the SIM was not authenticated before the request, so that any phone may have claimed its IMSI."""
    msisdn: str = ""
    """Telephone number of the subscriber: 5 to 15 digits with the country code. It is recorded, but no rule tests it."""
    other: str | None = None
    """Identifier that is neither an IMEI nor a MEID (5G: a MAC address or an EUI-64). No list can have it."""

    @property
    def is_anonymous(self) -> bool:
        """True if the request contains neither an IMEI nor a MEID, not even a malformed one."""
        return self.imei is None and self.meid is None

    def device(self) -> int:
        """Return the key of the IMEI if the IMEI is valid, else the key of the MEID.

        Raises:
            IdentifierError: if neither is valid. The message explains the fault.
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
        """Return the key of the device. If the identifier is malformed, compute the key from its text with `odd_key` (eir.device).

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
        imei = self.imei
        if imei and (self.meid is None or (len(imei) in IMEI_LENGTHS and is_digits(imei))):
            return imei
        return self.meid or imei or self.other or ""

    def subscriber(self) -> str:
        """Return the IMSI, or an empty text if the IMSI contains other characters than digits."""
        return self.imsi if is_digits(self.imsi) else ""

    def version(self) -> str:
        """Return the software version in the request (two digits), or else the last two digits of the IMEISV.

        The text is empty if the request has neither.
        """
        version, imei = self.software_version, self.imei
        if not is_digits(version):
            is_imeisv = imei and len(imei) == IMEISV_DIGITS and is_digits(imei)
            version = imei[KEY_DIGITS:] if imei and is_imeisv else ""
        return version if len(version) == SOFTWARE_VERSION_DIGITS else ""


MALFORMED = "malformed"
"""Fault that the key of a device (eir.device) does not reveal."""
NO_KEY = ODD_BASE
"""Key that no identifier has, so it is in no list."""
IMEI_DIGITS = 15

KeyRange = tuple[int, int]
"""First and last key of a range."""

_ASCENDING = "0123456789" * 3
_DESCENDING = _ASCENDING[::-1]
_TEST_TACS = (
    *((f"0010{body:02d}00", f"0010{body:02d}99") for body in range(1, 18)),
    *((f"{body}0000", f"{body}9999") for body in ("0044", "0086", "0091")),
)
"""First and last TAC of each range for test equipment (GSMA TS.06, and test TACs of the reporting bodies)."""


def _single_keys(identifiers: Iterable[str]) -> tuple[KeyRange, ...]:
    keys = map(int, identifiers)
    return tuple((key, key) for key in keys)


def _sequences() -> Iterator[str]:
    for digits in (_ASCENDING, _DESCENDING):
        for start in range(10):
            yield digits[start : start + KEY_DIGITS]


KEY_FAULTS: Mapping[str, tuple[KeyRange, ...]] = {
    "zero": _single_keys(["0" * KEY_DIGITS]),
    "repeated": _single_keys(digit * KEY_DIGITS for digit in "123456789"),
    "sequence": _single_keys(_sequences()),
    "test": tuple((int(first) * SNR_KEYS, (int(last) + 1) * SNR_KEYS - 1) for first, last in _TEST_TACS),
}
"""Fault that the key of a device reveals → ranges of keys with this fault."""


def _range_test(ranges: tuple[KeyRange, ...]) -> Callable[[int], bool]:
    single_keys = frozenset(first for first, last in ranges if first == last)
    wide_ranges = tuple((first, last) for first, last in ranges if first != last)
    return lambda key: key in single_keys or any(first <= key <= last for first, last in wide_ranges)


KEY_TESTS: Mapping[str, Callable[[int], bool]] = {fault: _range_test(ranges) for fault, ranges in KEY_FAULTS.items()}
"""Fault that the key of a device reveals → function that returns True for a key with this fault."""

FAULTS = (MALFORMED, *KEY_TESTS)
"""Values of the condition `identifier`."""


def has_wrong_check_digit(imei: str) -> bool:
    """Return True if the 15th digit of an IMEI is neither its check digit nor 0 (TS 23.003 annex B).

    Phones send 0 as a spare digit in this place.
    """
    if len(imei) != IMEI_DIGITS or not is_digits(imei):
        return False
    return int(imei[KEY_DIGITS]) not in {0, check_digit(imei[:KEY_DIGITS])}

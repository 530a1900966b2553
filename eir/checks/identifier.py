"""What can be wrong with an identifier by itself, before anybody looks into a list. Imports eir.device.

Reprogrammed phones carry zeros, one digit over and over, runs of digits, identifiers of test equipment, or an IMEI whose check digit
belongs to another one.
"""

from collections.abc import Callable, Mapping

from eir.device import KEY_DIGITS, MEID_BASE, SNR_KEYS

MALFORMED, CHECK_DIGIT = "malformed", "check_digit"
"""What the key of a device (eir.device) does not show any more."""
NO_KEY = MEID_BASE + (1 << 56)
"""The key of no device, so no list has it."""
IMEI_DIGITS = 15

_UPWARD = "0123456789" * 3
KEYS: Mapping[str, frozenset[int]] = {
    "zero": frozenset({0}),
    "repeated": frozenset(int(digit * KEY_DIGITS) for digit in "123456789"),
    "sequence": frozenset(int(row[at : at + KEY_DIGITS]) for row in (_UPWARD, _UPWARD[::-1]) for at in range(10)),
}
"""What is wrong with single devices."""
_TEST_BODIES = frozenset({"0044", "0086", "0091"})


def _is_test(key: int) -> bool:
    """Of test equipment: GSMA TS.06, reporting bodies' test TACs."""
    tac = f"{key // SNR_KEYS:08d}"
    return len(tac) == 8 and (tac[:4] in _TEST_BODIES or (tac[:4] == "0010" and "01" <= tac[4:6] <= "17"))


BY_KEY: Mapping[str, Callable[[int], bool]] = {
    "zero": KEYS["zero"].__contains__,
    "repeated": KEYS["repeated"].__contains__,
    "sequence": KEYS["sequence"].__contains__,
    "test": _is_test,
}
"""What the key of a device shows by itself."""

SUSPECT = (MALFORMED, *BY_KEY, CHECK_DIGIT)
"""Values of the condition `identifier`."""

_DOUBLED = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)


def is_wrong_digit(imei: str | bytes) -> bool:
    """Whether an IMEI of 15 digits ends with neither its check digit (TS 23.003 annex B) nor the spare 0 that phones send."""
    if len(imei) != IMEI_DIGITS or not imei.isdigit():
        return False
    digits = [int(digit) for digit in (imei if isinstance(imei, str) else imei.decode())]
    luhn = -(sum(digits[0:KEY_DIGITS:2]) + sum(_DOUBLED[digit] for digit in digits[1:KEY_DIGITS:2])) % 10
    return digits[-1] not in {0, luhn}

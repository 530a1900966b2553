"""Faults of an identifier by itself, before anybody looks into a list. Imports eir.device.

Reprogrammed phones carry zeros, one digit over and over, runs of digits, identifiers of test equipment, or an IMEI whose check digit
belongs to another one.
"""

from collections.abc import Callable, Mapping

from eir.device import KEY_DIGITS, ODD_BASE, SNR_KEYS

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

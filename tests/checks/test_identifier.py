"""What is wrong with an identifier by itself: the check digit against the standard's words, runs of digits, test equipment."""

import random

import pytest
from luhn import check_digit

from eir.checks.question import BY_KEY, is_wrong_digit


def some_imeis():
    """Each digit in each place, and a hundred by chance."""
    chance = random.Random(26)
    yield from ("0" * at + str(digit) + "0" * (13 - at) for at in range(14) for digit in range(10))
    yield from ("".join(chance.choices("0123456789", k=14)) for _ in range(100))


def test_the_check_digit_is_the_standards():
    for imei in some_imeis():
        right = {digit for digit in range(10) if not is_wrong_digit(f"{imei}{digit}")}
        assert right == {0, check_digit(imei)}, imei


def test_other_lengths_have_no_check_digit():
    assert not any(
        map(is_wrong_digit, ("", "35209900176148", "3520990017614801", "35209900176148x", b"3520990017614801"))
    )
    assert is_wrong_digit(b"352099001761482")


@pytest.mark.parametrize(
    ("what", "yes", "no"),
    [
        ("zero", ["00000000000000"], ["00000000000001"]),
        ("repeated", ["11111111111111", "99999999999999"], ["00000000000000", "11111111111112"]),
        ("sequence", ["01234567890123", "98765432109876", "12345678901234", "90123456789012"], ["01234567890124", "02468024680246"]),
        ("test", ["00100100000000", "00101799999999", "00440000000000", "00860000000000", "00910000000000"],
         ["00100000000000", "00101800000000", "00450000000000", "10010100000000", "35209900176148"]),
    ],
)  # fmt: skip
def test_what_the_key_shows(what, yes, no):
    assert [key for key in yes if not BY_KEY[what](int(key))] == []
    assert [key for key in no if BY_KEY[what](int(key))] == []

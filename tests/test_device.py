"""Identifiers of devices and subscribers: tables of vectors, and what holds for all of them."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated.luhn import check_digit

from eir.device import (
    KEY_DIGITS,
    MCC_MNC_DIGITS,
    MEID_BASE,
    SNR_KEYS,
    device_key,
    imei_key,
    imsi_key,
    is_digits,
    key_text,
    meid_key,
    shorten,
)
from eir.errors import IdentifierError

ARABIC_DIGITS = "٠١٢٣٤٥٦٧٨٩٠١٢٣"

digits = st.text(string.digits, min_size=14, max_size=14)
hexadecimal = st.text("0123456789ABCDEF", min_size=14, max_size=14).filter(lambda text: not text.isdigit())


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("00101001000001", 101001000001),  # 14 digits; leading zeros count as digits, TS 23.003 6.2.1
        ("001010010000014", 101001000001),  # 15, Luhn digit right
        ("001010010000010", 101001000001),  # 15, spare digit 0 as sent over the air, TS 23.003 6.2.1
        ("001010010000013", 101001000001),  # 15, any digit: never a fault
        ("0010100100000177", 101001000001),  # IMEISV in the IMEI AVP
        ("00000000000000", 0),
        ("99999999999999", 99999999999999),
    ],
)
def test_imei_key(text, key):
    assert imei_key(text) == key
    assert device_key(text) == key


@pytest.mark.parametrize(
    "text",
    ["", "1", "0010100100000", "00101001000001777", "0010100100000A", "0010100100000 ", " 00101001000001", "-0101001000001",
     "+0101001000001", "0_101001000001", ARABIC_DIGITS, "0010100100000²", "00101001000001\n", "00101001000001\0"],
)  # fmt: skip
def test_imei_key_refuses(text):
    with pytest.raises(IdentifierError):
        imei_key(text)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("A0000000000001", MEID_BASE + 0xA0000000000001),
        ("a0000000000001", MEID_BASE + 0xA0000000000001),  # either case is one device
        ("0000000000000F", MEID_BASE + 0xF),
        ("FFFFFFFFFFFFFF", MEID_BASE + 0xFFFFFFFFFFFFFF),
        ("99000000000001", 99000000000001),  # digits only: the space of IMEIs, GSMA TS.06
    ],
)
def test_meid_key(text, key):
    assert meid_key(text) == key
    assert device_key(text) == key


@pytest.mark.parametrize(
    "text",
    ["", "A000000000000", "A00000000000011", "G0000000000001", "A_000000000001", "0xA00000000001", "A000000000000é"],
)
def test_meid_key_refuses(text):
    with pytest.raises(IdentifierError):
        meid_key(text)


@pytest.mark.parametrize("text", ["", "A0000000000001F", "001010010000G1", "0010-1001-0000"])
def test_device_key_refuses(text):
    with pytest.raises(IdentifierError):
        device_key(text)


@given(digits, st.text(string.digits, max_size=2))
def test_a_key_is_the_first_14_digits(first, rest):
    key = imei_key(first + rest)
    assert key_text(key) == first
    assert divmod(key, SNR_KEYS) == (int(first[:8]), int(first[8:]))


@given(hexadecimal)
def test_a_meid_with_letters_has_its_own_range(text):
    key = meid_key(text)
    assert key >= MEID_BASE > imei_key("9" * KEY_DIGITS)
    assert key_text(key) == text


@given(digits | hexadecimal, digits | hexadecimal)
def test_two_devices_never_share_a_key(one, other):
    assert (device_key(one) == device_key(other)) == (one == other)


@given(st.text() | st.binary().map(lambda octets: octets.decode("latin-1")))
def test_any_text_is_a_key_or_an_identifier_error(text):
    for read in (imei_key, meid_key, device_key, imsi_key):
        try:
            key = read(text)
        except IdentifierError:
            continue
        assert key >= 0
        assert text.isascii()
        assert text.isalnum()


@pytest.mark.parametrize(
    ("first14", "digit"),
    [
        ("49015420323751", 8),  # the example that the field gives for an IMEI, GSMA TS.06
        ("35209900176148", 1),
        ("00101001000001", 4),
        ("00000000000000", 0),
        ("11111111111111", 9),
        ("99999999999999", 4),
    ],
)
def test_check_digit(first14, digit):
    assert check_digit(first14) == digit


@given(digits, st.integers(0, 13), st.integers(1, 9))
def test_check_digit_sees_any_single_wrong_digit(first14, position, change):
    wrong = str((int(first14[position]) + change) % 10)
    assert check_digit(first14[:position] + wrong + first14[position + 1 :]) != check_digit(first14)


@pytest.mark.parametrize(
    ("text", "key"),
    [("001010000000001", 1001010000000001), ("001010", 1001010), ("999999999999999", 1999999999999999)],
)
def test_imsi_key(text, key):
    assert imsi_key(text) == key


@pytest.mark.parametrize("text", ["", "00101", "0010100000000011", "00101000000000A", ARABIC_DIGITS])
def test_imsi_key_refuses(text):
    with pytest.raises(IdentifierError):
        imsi_key(text)


@given(st.text(string.digits, min_size=6, max_size=15), st.text(string.digits, min_size=6, max_size=15))
def test_imsis_of_different_length_are_different(one, other):
    assert (imsi_key(one) == imsi_key(other)) == (one == other)


@pytest.mark.parametrize(
    ("text", "answer"),
    [("0", True), ("0123456789", True), ("", False), ("1.0", False), ("²", False), (ARABIC_DIGITS, False)],
)
def test_is_digits(text, answer):
    assert is_digits(text) is answer


@pytest.mark.parametrize(
    ("identifier", "shown"),
    [("001010010000014", "00101001…14"), ("00101001000001", "00101001…01"), ("0010100101", "…"), ("", "…")],
)
def test_short(identifier, shown):
    assert shorten(identifier) == shown


@pytest.mark.parametrize(("imsi", "shown"), [("001010000000001", "00101…01"), ("0010100", "…"), ("", "…")])
def test_short_imsi(imsi, shown):
    assert shorten(imsi, MCC_MNC_DIGITS) == shown


@given(st.text(string.digits, min_size=14, max_size=16))
def test_short_never_gives_a_serial_number_away(identifier):
    assert identifier[8:-2] not in shorten(identifier)[8:]
    assert len(shorten(identifier)) == 11

"""A question names its device, subscriber and software version; an identifier can be wrong by itself."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated.luhn import check_digit

from eir.checks.question import KEY_TESTS, Question, has_wrong_check_digit
from eir.device import device_key, imei_key, meid_key
from eir.errors import IdentifierError

IMEI, OTHER, MEID = "35209900176148", "35123456789012", "A0000012345678"


@pytest.mark.parametrize(
    ("imei", "meid", "key"),
    [
        (IMEI, None, imei_key(IMEI)), (f"{IMEI}1", None, imei_key(IMEI)), (f"{IMEI}01", None, imei_key(IMEI)),
        (None, MEID, meid_key(MEID)), (None, MEID.lower(), meid_key(MEID)), (None, "99000012345678", 99000012345678),
        (IMEI, MEID, imei_key(IMEI)),  # a good IMEI comes first
        ("nonsense", MEID, meid_key(MEID)), ("", MEID, meid_key(MEID)),  # a bad one does not
        (IMEI, "nonsense", imei_key(IMEI)),
        ("0" * 14, None, 0),
    ],
)  # fmt: skip
def test_the_device(imei, meid, key):
    question = Question(imei, meid)
    assert question.device() == key
    assert not question.is_anonymous


@pytest.mark.parametrize(
    ("imei", "meid", "said"),
    [
        (None, None, "there is neither an IMEI nor a MEID"),
        ("", None, "got 0 characters"), ("3520990017614", None, "an IMEI has 14 or 15 digits, an IMEISV 16; got 13 characters"),
        (MEID, None, "an IMEI has"),  # what the protocol calls an IMEI is not taken for a MEID
        (None, f"{MEID}0", "a MEID has 14 hexadecimal digits; got 15 characters"),
        ("x", "G0000012345678", "an IMEI has 14 or 15 digits, an IMEISV 16; got 1 characters; a MEID has hexadecimal digits only"),
    ],
)  # fmt: skip
def test_no_device(imei, meid, said):
    question = Question(imei, meid)
    with pytest.raises(IdentifierError, match=said):
        question.device()
    assert question.is_anonymous is (imei is meid is None)


@pytest.mark.parametrize(
    ("imei", "meid", "other", "named"),
    [
        (IMEI, MEID, None, IMEI), (f"{IMEI}1", MEID, None, f"{IMEI}1"), ("3520990017614", None, None, "3520990017614"),
        ("nonsense123456", MEID, None, MEID), ("3520990017614", MEID, None, MEID),  # as long as an IMEI, or digits, is not enough
        (None, MEID, None, MEID), ("", MEID, None, MEID), (None, None, "mac-00-00-5E-00-53-00", "mac-00-00-5E-00-53-00"),
        ("", None, "mac-00-00-5E-00-53-00", "mac-00-00-5E-00-53-00"), (None, None, None, ""),
    ],
)  # fmt: skip
def test_what_names_the_device(imei, meid, other, named):
    assert Question(imei, meid, other=other).identifier() == named


@pytest.mark.parametrize(
    ("imei", "version", "found"),
    [
        (IMEI, "34", "34"), (IMEI, "", ""), (f"{IMEI}77", "", "77"), (f"{IMEI}77", "34", "34"), (None, "34", "34"), (None, "", ""),
        (f"{IMEI}77", "xx", "77"), (f"{IMEI}77", "3\N{FULLWIDTH DIGIT FOUR}", "77"),  # one that is not digits counts as missing
        (f"{IMEI}77", "345", ""), (f"{IMEI}77", "3", ""),
        ("nonsense12345677", "", ""),  # the end of something else
        (f"{IMEI}7", "", ""),
    ],
)  # fmt: skip
def test_the_software_version(imei, version, found):
    assert Question(imei, MEID, software_version=version).version() == found


@pytest.mark.parametrize(
    ("imsi", "found"),
    [("262011234567890", "262011234567890"), ("26201", "26201"), ("", ""), ("262011234567890@example.org", ""), ("\N{ARABIC-INDIC DIGIT TWO}6201", "")],
)  # fmt: skip
def test_the_subscriber(imsi, found):
    assert Question(imsi=imsi).subscriber() == found


@given(st.text() | st.text("0123456789ABCDEFabcdef", min_size=13, max_size=17))
def test_a_text_of_unknown_kind_is_asked_as_both(text):
    """The way of `eir check`, and the one that lists are read by."""
    try:
        expected = device_key(text)
    except IdentifierError:
        with pytest.raises(IdentifierError):
            Question(text, text).device()
    else:
        assert Question(text, text).device() == expected


def some_imeis():
    """Each digit in each place, and a hundred by chance."""
    chance = random.Random(26)
    yield from ("0" * at + str(digit) + "0" * (13 - at) for at in range(14) for digit in range(10))
    yield from ("".join(chance.choices("0123456789", k=14)) for _ in range(100))


def test_the_check_digit_is_the_standards():
    for imei in some_imeis():
        right = {digit for digit in range(10) if not has_wrong_check_digit(f"{imei}{digit}")}
        assert right == {0, check_digit(imei)}, imei


def test_other_lengths_have_no_check_digit():
    assert not any(map(has_wrong_check_digit, ("", "35209900176148", "3520990017614801", "35209900176148x")))


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
    assert [key for key in yes if not KEY_TESTS[what](int(key))] == []
    assert [key for key in no if KEY_TESTS[what](int(key))] == []

"""Conversion of device and subscriber identifiers between text and integer key.

A device's key is an integer. The key of an IMEI or IMEISV is its first 14 digits (TS 23.003 6.2: the 15th digit of an IMEI is a
check digit or a spare 0, the 15th and 16th of an IMEISV are a software version; these digits do not identify a device). A MEID
with decimal digits only has a key in the same range. A MEID with letters has the key `MEID_BASE` + its 56-bit value. Other
identifiers that phones send (`0`, 12 digits, a word) have keys from `ODD_BASE` on, so that they can be listed.
"""

import re
from hashlib import sha256
from string import hexdigits

from eir.errors import IdentifierError

KEY_DIGITS = 14
TAC_DIGITS = 8
MCC_MNC_DIGITS = 5
SNR_KEYS = 1_000_000
"""Number of identifiers of one TAC: the serial number (SNR) has 6 digits."""
MEID_BASE = 10**14
ODD_BASE = 731 * 10**14
"""First key above all MEIDs; a multiple of SNR_KEYS, as MEID_BASE is."""
ODD_OCTETS_MAX = 20
"""Maximum length of an identifier in octets; a longer one has no key."""
_ODD_DIGITS_MAX, _HASHED, _HASH_DIGITS = 13, 1 << 54, 14
HEX_DIGITS = frozenset(hexdigits)
ROUNDED = re.compile(r"[0-9][.,]?[0-9]*E\+?[0-9]+", re.ASCII | re.IGNORECASE)
"""Number of more than 11 digits as spreadsheets show it."""
DASHES = "-\u2010\u2011\u2012\u2013\u2014"

IMEI_LENGTHS = (14, 15, 16)
IMSI_LENGTHS = range(6, 16)
"""Digits of an IMSI: at most 15 (TS 23.003 2.2); the first 5 or 6 are MCC and MNC."""
MSISDN_LENGTHS = range(5, 16)
"""Digits of an MSISDN with country code: at most 15 (ITU-T E.164 6.2)."""


def is_digits(text: str) -> bool:
    """Return True if the text is ASCII digits only (`str.isdigit` also accepts digits of other scripts)."""
    return text.isascii() and text.isdigit()


def strip_separators(text: str) -> str:
    """Remove blanks and dashes if the rest has only hexadecimal digits; otherwise return the text unchanged."""
    characters = [character for character in text if not character.isspace() and character not in DASHES]
    if characters and HEX_DIGITS.issuperset(characters):
        return "".join(characters)
    return text


def imei_key(text: str) -> int:
    """Return the integer key of an IMEI (14 digits, or 15 with any last digit) or an IMEISV (16 digits).

    Raises:
        IdentifierError: for any other text.
    """
    if len(text) in IMEI_LENGTHS and is_digits(text):
        return int(text[:KEY_DIGITS])
    raise IdentifierError(f"an IMEI has 14 or 15 digits, an IMEISV 16; got {len(text)} characters")


def meid_key(text: str) -> int:
    """Return the integer key of a MEID, whose text has 14 hexadecimal digits.

    Raises:
        IdentifierError: for any other text.
    """
    if len(text) != KEY_DIGITS:
        raise IdentifierError(f"a MEID has 14 hexadecimal digits; got {len(text)} characters")
    if not HEX_DIGITS.issuperset(text):
        raise IdentifierError("a MEID has hexadecimal digits only")
    return int(text) if text.isdigit() else MEID_BASE + int(text, 16)


def device_key(text: str) -> int:
    """Return the integer key of an IMEI, an IMEISV or a MEID that a person typed or a list contains.

    Raises:
        IdentifierError: for any other text.
    """
    try:
        return imei_key(text) if is_digits(text) else meid_key(text)
    except IdentifierError:
        fault = _fault_text(text)
        raise IdentifierError(f"no IMEI (14 to 16 digits) and no MEID (14 hexadecimal digits); got {fault}") from None


def _fault_text(text: str) -> str:
    """Describe the fault of an invalid identifier for an error message, without quoting its digits."""
    if not text:
        return "nothing"
    if ROUNDED.fullmatch(text):
        return "a number that a spreadsheet has rounded: format the column as text, and export the number again"
    if strip_separators(text) != text:
        return f"{len(text)} characters, blanks or dashes among them"
    if len(text) == TAC_DIGITS and is_digits(text):
        return f"{TAC_DIGITS} digits, which are a TAC"
    length = f"{len(text)} characters"
    if len(text) in IMEI_LENGTHS and not HEX_DIGITS.issuperset(text):
        return f"{length}, not all of them digits"
    return length


def odd_key(text: str) -> int:
    """Return the integer key of a malformed identifier: 1 to 20 octets that are neither an IMEI nor a MEID.

    The function also accepts the text that `key_text` returns for such a key.

    Up to 13 digits are stored in the key. For any other text the key has 54 bits of its SHA-256, so collisions do not
    occur in practice.

    Raises:
        IdentifierError: if the text is empty or too long.
    """
    octets = text.encode(errors="surrogateescape")
    if not 0 < len(octets) <= ODD_OCTETS_MAX:
        raise IdentifierError(f"an identifier has 1 to {ODD_OCTETS_MAX} octets; got {len(octets)}")
    if is_digits(text) and len(text) <= _ODD_DIGITS_MAX:
        return ODD_BASE + int("1" + text)
    if len(text) == 1 + _HASH_DIGITS and text[0] == "#" and HEX_DIGITS.issuperset(text[1:]):
        return ODD_BASE + _HASHED + int(text[1:], 16) % _HASHED
    digest = sha256(octets).digest()
    return ODD_BASE + _HASHED + int.from_bytes(digest[:8]) % _HASHED


def any_key(text: str) -> int:
    """Return the integer key of any device identifier: `device_key` for an IMEI, IMEISV or MEID, else `odd_key`.

    Raises:
        IdentifierError: as `odd_key`.
    """
    try:
        return device_key(text)
    except IdentifierError:
        return odd_key(text)


def key_text(key: int) -> str:
    """Convert the integer key of a device back to the identifier as text.

    The key of an IMEI or MEID becomes 14 digits. Any other key becomes up to 13 digits, or `#` and the hash.
    """
    if key < MEID_BASE:
        return f"{key:014d}"
    if key < ODD_BASE:
        return f"{key - MEID_BASE:014X}"
    number = key - ODD_BASE
    if number >= _HASHED:
        return f"#{number - _HASHED:0{_HASH_DIGITS}x}"
    return str(number)[1:]


def check_digit(digits: str) -> int:
    """Return the check digit of an IMEI for its first 14 digits (TS 23.003 annex B: Luhn)."""
    total = 0
    for position, digit in enumerate(digits):
        value = 2 * int(digit) if position % 2 else int(digit)
        total += value // 10 + value % 10
    return -total % 10


def imsi_key(text: str) -> int:
    """Return the integer key of an IMSI: the digit 1, then the digits of the IMSI, so that IMSIs of different lengths have different keys.

    Raises:
        IdentifierError: unless the text is 6 to 15 digits.
    """
    if len(text) in IMSI_LENGTHS and is_digits(text):
        return int("1" + text)
    raise IdentifierError(f"an IMSI has 6 to 15 digits; got {len(text)} characters")


def imsi_text(key: int) -> str:
    """Convert the integer key of an IMSI back to its digits."""
    return str(key)[1:]


def device_type_key(text: str) -> int:
    """Return the integer key of a device type such as `IoT Device`, regardless of case and extra spaces.

    The key is in the range of the keys of IMSIs with 15 digits.
    """
    words = text.replace("_", " ").casefold().split()
    digest = sha256(" ".join(words).encode()).digest()
    return 10**15 + int.from_bytes(digest[:6]) % 10**15


def shorten(identifier: str, first: int = TAC_DIGITS) -> str:
    """Shorten an identifier for logs: keep its first characters and its last two, and omit the middle.

    `first`: number of characters at the beginning: the TAC of an IMEI, or MCC and MNC of an IMSI.
    """
    return f"{identifier[:first]}…{identifier[-2:]}" if len(identifier) > first + 2 else "…"


_IMEI_IN_TEXT = re.compile(rf"\b[0-9A-F]{{{IMEI_LENGTHS[0]},{IMEI_LENGTHS[-1]}}}\b", re.ASCII | re.IGNORECASE)
_IMSI_IN_TEXT = re.compile(rf"\b[0-9]{{{IMSI_LENGTHS[0]},{IMSI_LENGTHS[-1]}}}\b", re.ASCII)
_IMSI_OF_PAIR_IN_TEXT = re.compile(rf"(?<=\+){_IMSI_IN_TEXT.pattern}", re.ASCII)


def shorten_in_text(text: str, *, subscribers: bool = False) -> str:
    """Shorten each IMEI, IMEISV and MEID in a text for people, and each IMSI or MSISDN behind a `+`.

    `subscribers`: True if the text names IMSIs without a `+`, as the history of a list of subscribers does.
    """
    imsi = _IMSI_IN_TEXT if subscribers else _IMSI_OF_PAIR_IN_TEXT
    text = imsi.sub(lambda match: shorten(match[0], MCC_MNC_DIGITS), text)
    return _IMEI_IN_TEXT.sub(lambda match: shorten(match[0][:KEY_DIGITS]), text)

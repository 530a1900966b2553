"""Table of phone numbers: file of the operator that maps each MSISDN to an IMSI.

The file has two columns, `msisdn,imsi`, with or without a header line. In memory the table has two arrays, with 16 bytes for
each subscriber.
"""

from array import array
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from eir.device import MSISDN_LENGTHS, imsi_key, imsi_text, is_digits
from eir.errors import EirError, IdentifierError

ROWS_MAX = 1 << 31
HEADER = ("msisdn", "imsi")


class NumbersError(EirError):
    """Error for a table of numbers that cannot be used."""


def number_key(text: str) -> int:
    """Return the integer key of an MSISDN: the digit 1 followed by its digits, without `+` or `00`.

    Raises:
        IdentifierError: if the text is not an MSISDN.
    """
    return int("1" + msisdn_digits(text))


def msisdn_digits(text: str) -> str:
    """Return the digits of an MSISDN, without `+` or `00`.

    Raises:
        IdentifierError: if the text is not an MSISDN.
    """
    digits = text[1:] if text.startswith("+") else text.removeprefix("00")
    if len(digits) in MSISDN_LENGTHS and is_digits(digits):
        return digits
    first, last = MSISDN_LENGTHS[0], MSISDN_LENGTHS[-1]
    raise IdentifierError(f"an MSISDN has {first} to {last} digits; got {len(text)} characters")


class Numbers(NamedTuple):
    """Table of phone numbers in memory: MSISDN → IMSI."""

    numbers: NDArray[np.uint64]
    """Keys of MSISDNs in ascending order."""
    imsis: NDArray[np.uint64]
    """Key of the IMSI of each MSISDN."""

    def imsi(self, msisdn: str) -> str | None:
        """Return the IMSI of an MSISDN, or None if the table does not contain the MSISDN.

        Raises:
            IdentifierError: if the text is not an MSISDN.
        """
        key = np.uint64(number_key(msisdn))
        at = int(np.searchsorted(self.numbers, key))
        if at == len(self.numbers) or self.numbers[at] != key:
            return None
        return imsi_text(int(self.imsis[at]))


def number_of(numbers: Numbers) -> Callable[[str], str]:
    """Return a function that maps an IMSI to its lowest MSISDN, or to an empty text if the table does not contain the IMSI.

    The returned function raises IdentifierError if the text is not an IMSI.
    """
    order = np.lexsort((numbers.numbers, numbers.imsis))
    imsis = numbers.imsis[order]

    def number(imsi: str) -> str:
        key = np.uint64(imsi_key(imsi))
        at = int(np.searchsorted(imsis, key))
        if at == len(imsis) or imsis[at] != key:
            return ""
        msisdn_key = numbers.numbers[order[at]]
        return str(msisdn_key)[1:]

    return number


NO_NUMBERS = Numbers(np.zeros(0, np.uint64), np.zeros(0, np.uint64))


def read_numbers(path: Path) -> Numbers:
    """Read the table of numbers from a file.

    One bad line rejects the whole file, because a partial table would miss subscribers.

    Raises:
        NumbersError: if the file cannot be read, has a bad line or the same number twice, or is empty.
    """
    numbers = array("Q")
    imsis = array("Q")
    try:
        with path.open("rb") as stream:
            for line_number, line in enumerate(stream, 1):
                number, _, imsi = map(str.strip, line.decode("ascii").partition(","))
                if line_number == 1 and (number.lower(), imsi.lower()) == HEADER:
                    continue
                if number or imsi:
                    numbers.append(number_key(number))
                    imsis.append(imsi_key(imsi))
    except OSError as error:
        raise NumbersError(f"{path} cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, IdentifierError) as error:
        fault = "not ASCII" if isinstance(error, UnicodeDecodeError) else str(error)
        raise NumbersError(f"{path}:{line_number}: {fault}; expected MSISDN,IMSI") from None
    if not numbers:
        raise NumbersError(f"{path} has no number; expected lines of MSISDN,IMSI")
    keys = np.frombuffer(numbers, np.uint64)
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    repeated = np.flatnonzero(keys[1:] == keys[:-1])
    if len(repeated):
        at = repeated[0]
        first, second = order[at : at + 2] + 1
        raise NumbersError(f"{path}: rows {first} and {second} have the same number")
    return Numbers(keys, np.frombuffer(imsis, np.uint64)[order])

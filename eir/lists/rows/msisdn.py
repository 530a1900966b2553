"""Table from MSISDN to IMSI, which the operator supplies as a file.

The file has two columns, `msisdn,imsi`, with or without a header line. In memory the table has two arrays: 16 bytes for each
subscriber.
"""

from array import array
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from eir.device import MSISDN_LENGTHS, imsi_key, is_digits
from eir.errors import EirError, IdentifierError
from eir.lists.record.entries import imsi_text

ROWS_MAX = 1 << 31
HEADER = ("msisdn", "imsi")


class NumbersError(EirError):
    """Error for a table of numbers that cannot be used."""


def number_key(text: str) -> int:
    """Return the key of an MSISDN: a 1 followed by its digits, without `+` or `00`.

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
    """Table of numbers in memory: sorted keys of MSISDNs, and for each the key of its IMSI."""

    numbers: NDArray[np.uint64]
    imsis: NDArray[np.uint64]

    def imsi(self, msisdn: str) -> str | None:
        """Return the IMSI of an MSISDN, or None if the table does not contain the MSISDN.

        Raises:
            IdentifierError: if the text is not an MSISDN.
        """
        key = np.uint64(number_key(msisdn))
        at = int(np.searchsorted(self.numbers, key))
        return imsi_text(int(self.imsis[at])) if at < len(self.numbers) and self.numbers[at] == key else None


def number_of(numbers: Numbers) -> Callable[[str], str]:
    """Return a function that maps an IMSI to its lowest MSISDN, or to an empty text if it has none.

    The function raises IdentifierError for a text that is not an IMSI.
    """
    order = np.lexsort((numbers.numbers, numbers.imsis))
    imsis = numbers.imsis[order]

    def number(imsi: str) -> str:
        key = np.uint64(imsi_key(imsi))
        at = int(np.searchsorted(imsis, key))
        return str(numbers.numbers[order[at]])[1:] if at < len(imsis) and imsis[at] == key else ""

    return number


NO_NUMBERS = Numbers(np.zeros(0, np.uint64), np.zeros(0, np.uint64))


def read_numbers(path: Path) -> Numbers:
    """Read the table of numbers from a file.

    One bad line rejects the whole file, because a partial table would miss subscribers.
    """
    numbers, imsis = array("Q"), array("Q")
    try:
        with path.open("rb") as stream:
            for at, line in enumerate(stream, 1):
                number, _, imsi = line.decode("ascii").strip().partition(",")
                if at == 1 and (number.strip().lower(), imsi.strip().lower()) == HEADER:
                    continue
                if number or imsi:
                    numbers.append(number_key(number.strip()))
                    imsis.append(imsi_key(imsi.strip()))
    except OSError as e:
        raise NumbersError(f"{path} cannot be read: {e.strerror}") from None
    except (UnicodeDecodeError, IdentifierError) as e:
        raise NumbersError(
            f"{path}:{at}: {'not ASCII' if isinstance(e, UnicodeDecodeError) else e}; expected MSISDN,IMSI"
        ) from None
    if not numbers:
        raise NumbersError(f"{path} has no number; expected lines of MSISDN,IMSI")
    keys = np.frombuffer(numbers, np.uint64)
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    if len(again := np.flatnonzero(keys[1:] == keys[:-1])):
        first, second = order[again[0] : again[0] + 2] + 1
        raise NumbersError(f"{path}: rows {first} and {second} have the same number")
    return Numbers(keys, np.frombuffer(imsis, np.uint64)[order])

"""Subscribers by their numbers: a table that the operator delivers, from MSISDN to IMSI. Imports eir.device and errors.

A file of two columns, `msisdn,imsi`, with or without that line before them; two arrays in memory, of 16 bytes for each subscriber.
"""

from array import array
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from eir.device import imsi_key, is_digits
from eir.errors import EirError, IdentifierError
from eir.lists.record.entries import imsi_text

DIGITS = range(5, 16)
"""ITU-T E.164 6.2: at most 15, the country's code included."""
ROWS_MAX = 1 << 31
HEADER = ("msisdn", "imsi")


class NumbersError(EirError):
    """A table that cannot be used."""


def number_key(text: str) -> int:
    """The key of an MSISDN: its digits behind a 1, without the signs of an international number. Raises IdentifierError."""
    digits = text[1:] if text.startswith("+") else text.removeprefix("00")
    if len(digits) in DIGITS and is_digits(digits):
        return int("1" + digits)
    raise IdentifierError(f"an MSISDN has {DIGITS[0]} to {DIGITS[-1]} digits; got {len(text)} characters")


class Numbers(NamedTuple):
    """The table: keys of numbers in order, and the IMSI's key of each."""

    numbers: NDArray[np.uint64]
    imsis: NDArray[np.uint64]

    def imsi(self, msisdn: str) -> str | None:
        """The subscriber of a number; None: it is not in the table. Raises IdentifierError."""
        key = np.uint64(number_key(msisdn))
        at = int(np.searchsorted(self.numbers, key))
        return imsi_text(int(self.imsis[at])) if at < len(self.numbers) and self.numbers[at] == key else None


def number_of(numbers: Numbers) -> Callable[[str], str]:
    """A function from an IMSI to its number, the lowest of several; empty if it has no number.

    Raises IdentifierError.
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
    """Read the table. Raises NumbersError, with the line that is wrong: half of a table would leave subscribers out."""
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
        raise NumbersError(f"{path} has no number: was it cut off?")
    keys = np.frombuffer(numbers, np.uint64)
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    if len(again := np.flatnonzero(keys[1:] == keys[:-1])):
        first, second = order[again[0] : again[0] + 2] + 1
        raise NumbersError(f"{path}: rows {first} and {second} have the same number")
    return Numbers(keys, np.frombuffer(imsis, np.uint64)[order])

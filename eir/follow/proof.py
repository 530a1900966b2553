"""Digests of a list's pages, remembered to prove its next state. Imports eir.pages.pages only.

A sum modulo 2^256 is also one modulo 2^64: with 64 bits of each page's digest an amended list is proved against its content
digest, although the pages as they were are no longer at hand.
"""

from array import array
from bisect import bisect_left
from collections.abc import Sequence

from eir.pages.pages import Page

PROOF_MASK = (1 << 64) - 1


class Proof:
    """The mark of each page in memory, the low 64 bits of its digest: 16 bytes a page."""

    __slots__ = ("_amended", "_marks", "_numbers")

    def __init__(self) -> None:
        self._numbers = array("Q")
        self._marks = array("Q")
        self._amended: dict[int, int] = {}

    def extend(self, pages: Sequence[Page], marks: Sequence[int]) -> None:
        """The next pages of a list that is read whole; numbers ascend."""
        self._numbers.extend([page.number for page in pages])
        self._marks.extend(marks)

    def __getitem__(self, number: int) -> int:
        if (mark := self._amended.get(number)) is not None:
            return mark
        at = bisect_left(self._numbers, number)
        return self._marks[at] if at < len(self._numbers) and self._numbers[at] == number else 0

    def amend(self, pages: Sequence[Page]) -> None:
        """Take over pages that came into force."""
        self._amended.update((page.number, page.digest() & PROOF_MASK) for page in pages)

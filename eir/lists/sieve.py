"""A sieve for keys: says of most keys that are not in a list, many at a time, that they are not. Imports numpy only.

A Bloom filter of 64-bit words: a key has one word, and in it MARKS bits; a key of which a bit is missing was never added.
With BITS_PER_KEY bits for each key it lets about 1 in 350 of the others pass, which then have to be looked for. The cost of a
question is some arithmetic and one read from memory, whatever the number of keys.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

BITS_PER_KEY = 19
MARKS = 6
"""Bits that a key sets in its word."""
WORDS_MIN = 64
TOUCH_WORDS, PAGE_WORDS = 1 << 18, 512
"""Words that are touched at a time: a large page of memory (2 MB), in steps of a small one (4 KB)."""

_PATTERNS: Final = 4096
_FIRST, _SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)
"""Odd factors whose products spread a key over 64 bits."""
_HALF = np.uint64(32)
_PATTERN_MASK = np.uint64(_PATTERNS - 1)

KeyArray = npt.NDArray[np.uint64]


def _patterns() -> npt.NDArray[np.uint64]:
    bits = np.argsort(np.random.default_rng(64).random((_PATTERNS, 64)), axis=1)[:, :MARKS].astype(np.uint64)
    marks: npt.NDArray[np.uint64] = np.bitwise_or.reduce(np.uint64(1) << bits, axis=1)
    return marks


_MARKS_OF = _patterns()


class Sieve:
    """Holds marks of keys, none of the keys. `capacity`: how many keys it is made for; with more it lets more pass."""

    __slots__ = ("_count", "_touched", "_words", "capacity")

    def __init__(self, capacity: int) -> None:
        words = max(WORDS_MIN, capacity * BITS_PER_KEY // 64)
        self.capacity = words * 64 // BITS_PER_KEY
        self._words = np.zeros(words, dtype=np.uint64)
        self._count = np.uint64(words)
        self._touched = 0

    def touch(self) -> bool:
        """Have the system give it the next part of its memory; True when it has all. Only before the first key is taken in.

        Keys lie anywhere: the first ones would wait for all of it, which takes up to some milliseconds a part.
        """
        self._words[self._touched : self._touched + TOUCH_WORDS : PAGE_WORDS] = 0
        self._touched += TOUCH_WORDS
        return self._touched >= len(self._words)

    def add(self, keys: KeyArray) -> None:
        """Take keys in."""
        places, marks = self._places(keys)
        # Of keys with the same word only one has its marks after this; the few others follow, at three times the cost.
        self._words[places] |= marks
        lost = (self._words.take(places) & marks) != marks
        np.bitwise_or.at(self._words, places[lost], marks[lost])

    def passes(self, keys: KeyArray) -> npt.NDArray[np.bool_]:
        """False for each key that was certainly never added."""
        places, marks = self._places(keys)
        # `take` reads words that no cache has faster than an index does.
        passing: npt.NDArray[np.bool_] = (self._words.take(places) & marks) == marks
        return passing

    def _places(self, keys: KeyArray) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.uint64]]:
        spread = keys * _FIRST
        spread ^= spread >> _HALF
        spread *= _SECOND
        # The upper half chooses the word (scaled, not by remainder), bits of the lower one the pattern.
        places = ((spread >> _HALF) * self._count) >> _HALF
        return places.astype(np.intp), _MARKS_OF[(spread & _PATTERN_MASK).astype(np.intp)]

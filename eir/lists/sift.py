"""Which of many keys a list may have: a sieve of the list's keys, filled beside its other work. May import numpy.

A list is in force before its sieve is: until then the sieve says that nothing is known. The keys go in by pages, in
steps between which others have their turn; a page that changed after it went in is looked at again. What a page no longer has
stays in the sieve, which only costs a search; a new sieve is made with each new list, and when this one has become too small.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

import numpy as np
import numpy.typing as npt

from eir.lists.keyset import LOW_BYTES, Keys, KeySet, count_of, in_triples, keys_of, read_bytes
from eir.lists.pages import PAGE_KEYS
from eir.lists.sieve import KeyArray, Sieve

STEP_KEYS = 2_000
"""Keys that go in between two looks at the clock, about: less than a tenth of a millisecond."""
STEP_PAGES_MAX = 64
DENSE_KEYS = PAGE_KEYS // 16
"""Keys from which a page is known as a whole: each of its keys may be listed, so each is looked for."""
WORTH = 1.5
"""A sieve that got this many times the keys that it was made for is replaced."""
_PAGE_KEYS = np.uint64(PAGE_KEYS)


def room_for(held: KeySet) -> int:
    """Keys of a page that go into a sieve: at most so many, at a glance."""
    if isinstance(held, bytes):
        return len(held) // LOW_BYTES
    return len(held) if len(held) < DENSE_KEYS else 0


class Sifter:
    """The sieve of one list's pages. `entries`: how many keys they have, about; the pages may change, `changed` says which."""

    __slots__ = ("_dense", "_dense_array", "_late", "_late_array", "_most", "_pages", "_sieve", "_taken", "_waiting")

    def __init__(self, pages: Mapping[int, KeySet], entries: int) -> None:
        self._pages = pages
        self._most = entries
        """Keys that there are at most, by what came: a state that says more is damaged."""
        self._begin(entries)

    def _begin(self, entries: int) -> None:
        self._sieve = Sieve(entries)
        self._taken = 0
        self._waiting: list[int] | None = None
        """Pages that have yet to go in for the first time; None: all that there are."""
        self._late: set[int] = set()
        """Pages that changed since they went in."""
        self._dense: set[int] = set()
        self._late_array = self._dense_array = _sorted(())

    def changed(self, numbers: Iterable[int], entries: int) -> None:
        """These pages have changed, and the list has that many keys now, as its state says."""
        self._most += sum(room_for(held) for number in numbers if (held := self._pages.get(number)) is not None)
        entries = min(entries, self._most)
        if max(entries, self._taken) > WORTH * self._sieve.capacity:
            self._begin(entries)
        elif self._waiting is not None:
            self._late.update(numbers)
            self._late_array = _sorted(self._late)

    def work(self, deadline: float) -> bool:
        """Take in pages; True when all are in as they are now, False if the deadline (time.perf_counter) came first."""
        if self._waiting is None:
            while not self._sieve.touch():
                if time.perf_counter() > deadline:
                    return False
            self._waiting = list(self._pages)
        step = max(1, min(STEP_PAGES_MAX, STEP_KEYS * len(self._pages) // self._sieve.capacity))
        while self._waiting or self._late:
            if self._waiting:
                self._take(self._waiting[-step:])
                del self._waiting[-step:]
            else:
                late = list(islice(self._late, step))
                self._take(late)
                self._late.difference_update(late)
            if time.perf_counter() > deadline:
                break
        if len(self._dense) > len(self._dense_array):
            self._dense_array = _sorted(self._dense)
        if not self._late:
            self._late_array = _sorted(())
        return not self._waiting and not self._late

    def doubtful(self, keys: KeyArray) -> npt.NDArray[np.bool_] | None:
        """False for each key that the list does not have; None as long as not all pages have gone in."""
        if self._waiting is None or self._waiting:
            return None
        doubts = self._sieve.passes(keys)
        for numbers in (self._late_array, self._dense_array):
            if len(numbers):
                asked = keys // _PAGE_KEYS
                doubts |= numbers[np.minimum(np.searchsorted(numbers, asked), len(numbers) - 1)] == asked
        return doubts

    def _take(self, numbers: Sequence[int]) -> None:
        """Put the keys of these pages into the sieve, those of a kind together."""
        triples: list[tuple[int, bytes]] = []
        indexed: list[tuple[int, bytes]] = []
        for number in numbers:
            held = self._pages.get(number)
            if isinstance(held, bytes):
                (triples if in_triples(held) else indexed).append((number, held))
            elif held is not None and count_of(held) < DENSE_KEYS:
                self._add([number], keys_of(held), [count_of(held)])
            elif held is not None:
                self._dense.add(number)
        for alike in (triples, indexed):
            if alike:
                self._add([number for number, _ in alike], *read_bytes([held for _, held in alike]))

    def _add(self, numbers: Sequence[int], remainders: Keys, counts: Sequence[int] | npt.NDArray[np.int64]) -> None:
        self._taken += len(remainders)
        self._sieve.add(np.repeat(np.array(numbers, np.uint64), counts) * _PAGE_KEYS + remainders)


def _sorted(numbers: Iterable[int]) -> npt.NDArray[np.uint64]:
    return np.array(sorted(numbers), dtype=np.uint64)

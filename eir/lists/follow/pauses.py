"""Pauses and time limits of a follower, and the lower priority during work on large lists."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

from eir.lists.record.clock import STORE_TIMEOUT_S


@dataclass(frozen=True, slots=True)
class Pauses:
    """Pauses and time limits of a follower in seconds. A running node uses the defaults."""

    wait_s: float = 1.0
    """Maximum time between two reads of the states, without a notification of the store."""
    answer_s: float = STORE_TIMEOUT_S
    """Time limit for one answer of the store."""
    retry_s: float = 1.0
    """Pause after an error, before the store is read or the copy is written again."""
    unproved_s: float = 1.0
    """Pause before a list that could not be verified is read again; the pause doubles after each failure."""
    unproved_max_s: float = 60.0
    full_s: float = 60.0
    """Pause before a list is copied again after the disk was full, because each attempt writes until the disk is full."""
    heal_s: float = 2.0
    """Longest random pause before a list that the store has lost is written back, so that of several nodes one is first."""


PAUSES = Pauses()

LARGE_ENTRIES = 100_000
"""Minimum number of entries of a large list: building it takes so long that checks could be delayed."""

Heavy = Callable[[], AbstractContextManager[None]]
"""Function that returns a context manager for work on large lists, which lowers the priority of the process."""


class Sized(Protocol):
    """State of a list with its number of entries."""

    @property
    def entries(self) -> int:
        """Number of entries."""


def while_large(heavy: Heavy, *states: Sized | None, often: bool = False) -> AbstractContextManager[None]:
    """Return the context manager for work on a list: `heavy()` if the list is large or changes often, otherwise a null context.

    `heavy()` lowers the priority of the process. The list is large if one of its `states` has at least LARGE_ENTRIES entries.
    """
    is_large = any(state is not None and state.entries >= LARGE_ENTRIES for state in states)
    return heavy() if often or is_large else nullcontext()


REST_TIMES, REST_MAX_S = 10, 0.1
"""Pause after applying changes, as a multiple of the duration, up to a maximum in seconds. So quick changes, as of a register, are applied together, and the processor stays free for checks."""
OFTEN_S, OFTEN = 1.0, 5
"""Maximum time in seconds between two changes in a row, and the number of changes in a row above which a register feeds the list."""
FED, REST_FED_S = 30, 0.5
"""Pause in seconds after this many changes in a row, more than people make by hand. With it, the 99th percentile of checks beside 5,000 rows per second is 0.7 ms, without it 1.9 ms (scripts/bench feed)."""


class ChangePace:
    """Pace of a list's changes: how many came in a row, within OFTEN_S of each other."""

    __slots__ = ("_began", "_in_a_row", "_last")

    def __init__(self) -> None:
        self._in_a_row, self._began, self._last = 0, 0.0, 0.0

    def begin(self) -> bool:
        """Begin to apply a change; return True if the list changes often."""
        self._began = time.monotonic()
        self._in_a_row = self._in_a_row + 1 if self._began - self._last < OFTEN_S else 1
        return self._in_a_row > OFTEN

    def end(self) -> float:
        """End the work on the change; return the pause in seconds until the next one."""
        self._last = time.monotonic()
        return REST_FED_S if self._in_a_row > FED else min(REST_MAX_S, REST_TIMES * (self._last - self._began))

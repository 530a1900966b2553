"""Pauses and time limits of a follower."""

import time
from dataclasses import dataclass

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

REST_TIMES, REST_MAX_S = 10, 0.1
"""Pause after applying changes, as a multiple of the duration, up to a maximum in seconds. So quick changes, as of a register, are applied together, and the processor stays free for checks."""
IN_A_ROW_S = 1.0
"""Maximum time in seconds between two changes in a row."""
FED, REST_FED_S = 30, 0.5
"""Pause in seconds after this many changes in a row, more than people make by hand. With it, the 99th percentile of checks beside 5,000 rows per second is 0.7 ms, without it 1.9 ms (scripts/bench feed)."""


class ChangePace:
    """Pace of a list's changes: how many came in a row, within IN_A_ROW_S of each other."""

    __slots__ = ("_began", "_in_a_row", "_last")

    def __init__(self) -> None:
        self._in_a_row, self._began, self._last = 0, 0.0, 0.0

    def begin(self) -> None:
        """Begin to apply a change."""
        self._began = time.monotonic()
        self._in_a_row = self._in_a_row + 1 if self._began - self._last < IN_A_ROW_S else 1

    def end(self) -> float:
        """End the work on the change; return the pause in seconds until the next one."""
        self._last = time.monotonic()
        return REST_FED_S if self._in_a_row > FED else min(REST_MAX_S, REST_TIMES * (self._last - self._began))

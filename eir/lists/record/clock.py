"""Time on hosts whose clocks jump and which stand still: when rows with `until` end, and how long the store may take to answer.

A phone that drops out of a list because some clock jumped is a stolen phone that works again. So the time for that purpose
never goes back, and a wall clock that jumps ahead of the monotonic one is believed only once it has kept the jump for an
hour; until then time goes on at the pace of the monotonic clock. A start is no exception where the last time seen is known:
a host that was off for a day waits the hour, since a clock that is a day wrong looks the same.

A process that was stopped, or whose host stood still, finds every answer late, and that is not the store's fault: so the time that the
store has is counted while this process runs. Imports eir.errors.
"""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from eir.errors import StoreError

JUMP_S = 3600.0
"""Further ahead than this, a wall clock has jumped. Steps of NTP and leap seconds are far below."""
BELIEVED_AFTER_S = 3600.0
"""Time after which a jump that was kept counts as the right time (a suspended host, a clock that was set)."""


class TrustedClock:
    """Unix seconds that do not jump. `last_seen`: the latest time known from before (a file), 0 if none."""

    __slots__ = ("_jumped_at", "_monotonic", "_time")

    def __init__(self, last_seen: float = 0.0) -> None:
        self._time = last_seen
        self._monotonic: float | None = None
        self._jumped_at: float | None = None

    @property
    def jumped(self) -> bool:
        """True while the wall clock is ahead by a jump that is not believed yet."""
        return self._jumped_at is not None

    @property
    def time(self) -> float:
        """The time gone by last, in Unix seconds; what to keep over a restart as `last_seen`."""
        return self._time

    def now(self, wall: float, monotonic: float) -> float:
        """The time to use, from the readings of both clocks."""
        # The monotonic clock says nothing about the time before the process began.
        begins = self._monotonic is None and not self._time
        expected = self._time + (0.0 if self._monotonic is None else monotonic - self._monotonic)
        self._monotonic = monotonic
        if begins or wall <= expected + JUMP_S:
            self._jumped_at, self._time = None, max(self._time, wall)
        elif self._jumped_at is None or monotonic - self._jumped_at < BELIEVED_AFTER_S:
            self._jumped_at = monotonic if self._jumped_at is None else self._jumped_at
            self._time = expected
        else:
            self._jumped_at, self._time = None, wall
        return self._time


T = TypeVar("T")

STORE_TIMEOUT_S = 5.0
"""Seconds that one answer of the store may take."""
TICK_S = 0.25
"""The event loop counts the time in such pieces; one that lasted longer counts once, since the loop did not run in it."""
STILL_S = 1.0
"""Longer than that beyond its time a piece lasts only if the process did not run."""
STOOD_STILL = "stood_still"
"""Cause of a failure in an answer's time in which this process did not run: what waited for the answer, a client of the store for one,
may have given up without looking. To be tried again."""


async def in_time(
    answer: Awaitable[T], timeout_s: float = STORE_TIMEOUT_S, *, tick_s: float = TICK_S, stopped_s: float = STILL_S
) -> T:
    """The store's answer. Raises StoreError: what the answer raises, `timeout` if the loop ran for `timeout_s` without it, or STOOD_STILL.

    Time is counted in pieces of `tick_s`; one that lasts longer by `stopped_s` shows that the process did not run.
    """
    loop = asyncio.get_running_loop()
    ticking: asyncio.TimerHandle | None = None
    still_s = 0.0

    def look() -> None:
        nonlocal still_s
        if ticking is not None:
            still_s = max(still_s, loop.time() - ticking.when())

    def tick(left_s: float) -> None:
        nonlocal ticking
        look()
        if left_s > 0:
            ticking = loop.call_later(min(tick_s, left_s), tick, left_s - tick_s)
        else:
            limit.reschedule(loop.time())

    try:
        async with asyncio.timeout(None) as limit:
            tick(timeout_s)
            try:
                return await answer
            finally:
                look()
                if ticking is not None:
                    ticking.cancel()
    except TimeoutError:
        raise StoreError("timeout", f"the store did not answer within {timeout_s:g} s") from None
    except StoreError as e:
        if still_s < stopped_s:
            raise
        raise StoreError(STOOD_STILL, f"this process did not run for {still_s:.0f} s; meanwhile: {e}") from e

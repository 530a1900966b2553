"""Clock for the expiry of entries, and time limit for store calls. Both tolerate clock jumps and suspension of the host.

If the wall clock jumped ahead and ended a row early, a stolen phone would work again. So the trusted time follows a jump only after
the jump has lasted for an hour. Until then it advances with the monotonic clock. It never goes back. At a start the same rule applies
to the last time before the start: a host that was off for a day also waits an hour, because a wall clock that is wrong by a day
looks the same.

If a process is stopped or its host is suspended, the answers of the store are late without a fault of the store. So the timeout of
the store counts only time in which the process runs.
"""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from eir.errors import StoreError

JUMP_S = 3600.0
"""Seconds ahead of the expected time above which the wall clock counts as jumped. Steps of NTP and leap seconds are smaller."""
ACCEPTED_AFTER_S = 3600.0
"""Seconds after which the trusted time follows a jump."""
DIFFERENCE_MAX_S = 60.0
"""Difference in seconds between the wall clock and the trusted time above which the node warns."""


class TrustedClock:
    """Clock in Unix seconds that follows a jump of the wall clock only after one hour.

    `last_seen`: last trusted time before the start, from a file; 0 if unknown.
    """

    __slots__ = ("_jumped_at", "_monotonic", "_time")

    def __init__(self, last_seen: float = 0.0) -> None:
        self._time = last_seen
        self._monotonic: float | None = None
        self._jumped_at: float | None = None

    @property
    def jumped(self) -> bool:
        """True if the wall clock has jumped ahead, and the trusted clock does not follow the jump yet."""
        return self._jumped_at is not None

    def difference_s(self, wall: float) -> float:
        """Return the difference between the trusted time and the reading of the wall clock, in seconds without a sign."""
        return abs(wall - self._time)

    @property
    def time(self) -> float:
        """Last result of `now` in Unix seconds. The node saves this time, and the clock starts from the saved time after a restart."""
        return self._time

    def now(self, wall: float, monotonic: float) -> float:
        """Return the trusted time for the present readings of the wall clock and the monotonic clock."""
        is_first_start = self._monotonic is None and not self._time
        expected = self._time
        if self._monotonic is not None:  # the monotonic clock does not cover the time before the process began
            expected += monotonic - self._monotonic
        self._monotonic = monotonic
        if is_first_start or wall <= expected + JUMP_S:
            self._jumped_at = None
            self._time = max(self._time, wall)
            return self._time
        if self._jumped_at is None:
            self._jumped_at = monotonic
        if monotonic - self._jumped_at < ACCEPTED_AFTER_S:
            self._time = expected
        else:
            self._jumped_at = None
            self._time = wall
        return self._time


T = TypeVar("T")

STORE_TIMEOUT_S = 5.0
"""Seconds within which the store must answer."""
TICK_S = 0.25
"""Seconds of one tick of the timeout. A late tick counts as one tick, because the process did not run meanwhile."""
STOPPED_S = 1.0
"""Delay of a tick in seconds that shows that the process did not run."""
STOOD_STILL = "stood_still"
"""Cause of an error of the store after this process did not run. The client may have given up a read, so the caller tries again."""


async def await_store(
    answer: Awaitable[T], timeout_s: float = STORE_TIMEOUT_S, *, tick_s: float = TICK_S, stopped_s: float = STOPPED_S
) -> T:
    """Await a call of the store within a time limit. Time in which this process did not run is not counted.

    Args:
        answer: call of the store.
        timeout_s: time for the answer, counted in ticks of `tick_s`.
        tick_s: length of a tick.
        stopped_s: delay of a tick that shows that the process did not run.

    Raises:
        StoreError: error of the call; `timeout`, if the process ran for `timeout_s` without an answer; STOOD_STILL, if the
            call failed after the process did not run.
    """
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle | None = None
    delay_s = 0.0

    def measure() -> None:
        nonlocal delay_s
        if timer is not None:
            delay_s = max(delay_s, loop.time() - timer.when())

    def tick(left_s: float) -> None:
        nonlocal timer
        measure()
        if left_s > 0:
            timer = loop.call_later(min(tick_s, left_s), tick, left_s - tick_s)
        else:
            limit.reschedule(loop.time())

    try:
        async with asyncio.timeout(None) as limit:
            tick(timeout_s)
            try:
                return await answer
            finally:
                measure()
                if timer is not None:
                    timer.cancel()
    except TimeoutError:
        raise StoreError("timeout", f"the store did not answer within {timeout_s:g} s") from None
    except StoreError as e:
        if delay_s < stopped_s:
            raise
        raise StoreError(STOOD_STILL, f"this process did not run for {delay_s:.0f} s; meanwhile: {e}") from e

"""Clock for expiries and time limit for the store, which tolerate clock jumps and suspension of the host.

If a clock error ended a row early, a stolen phone would work again. So the time for `until` never goes back. If the wall clock
jumps ahead of the monotonic clock, the new time is accepted only after the jump has lasted for an hour; until then the time
advances with the monotonic clock. This also applies at a start if the last time is known: a host that was off for a day waits
an hour, because a clock that is wrong by a day looks the same.

After a process was stopped or its host was suspended, every answer is late, but that is not a fault of the store. So the
timeout of the store counts only time in which this process ran.
"""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from eir.errors import StoreError

JUMP_S = 3600.0
"""Seconds ahead of the expected time above which the wall clock has jumped. Steps of NTP and leap seconds are far below."""
ACCEPTED_AFTER_S = 3600.0
"""Seconds after which a jump that lasts is accepted (the host was suspended, or the clock was set)."""


class TrustedClock:
    """Clock in Unix seconds that does not follow jumps of the wall clock at once.

    `last_seen`: latest time before the start (from a file), 0 if unknown.
    """

    __slots__ = ("_jumped_at", "_monotonic", "_time")

    def __init__(self, last_seen: float = 0.0) -> None:
        self._time = last_seen
        self._monotonic: float | None = None
        self._jumped_at: float | None = None

    @property
    def jumped(self) -> bool:
        """True while the wall clock is ahead by a jump that is not yet accepted."""
        return self._jumped_at is not None

    @property
    def time(self) -> float:
        """Last result of `now` in Unix seconds, which is stored as `last_seen` for the next start."""
        return self._time

    def now(self, wall: float, monotonic: float) -> float:
        """Return the trusted time for the present readings of the wall clock and the monotonic clock."""
        # The monotonic clock does not cover the time before the process began.
        begins = self._monotonic is None and not self._time
        expected = self._time + (0.0 if self._monotonic is None else monotonic - self._monotonic)
        self._monotonic = monotonic
        if begins or wall <= expected + JUMP_S:
            self._jumped_at, self._time = None, max(self._time, wall)
        elif self._jumped_at is None or monotonic - self._jumped_at < ACCEPTED_AFTER_S:
            self._jumped_at = monotonic if self._jumped_at is None else self._jumped_at
            self._time = expected
        else:
            self._jumped_at, self._time = None, wall
        return self._time


T = TypeVar("T")

STORE_TIMEOUT_S = 5.0
"""Seconds within which the store must answer."""
TICK_S = 0.25
"""Seconds of one tick of the timeout; a tick that lasted longer counts once, because the process did not run meanwhile."""
STILL_S = 1.0
"""Seconds by which a tick is late only if the process did not run."""
STOOD_STILL = "stood_still"
"""Reason word for a failure while this process did not run: a client of the store may have given up without reading. Try again."""


async def await_store(
    answer: Awaitable[T], timeout_s: float = STORE_TIMEOUT_S, *, tick_s: float = TICK_S, stopped_s: float = STILL_S
) -> T:
    """Await a call of the store, with a time limit that counts only time in which this process ran.

    Args:
        answer: call of the store.
        timeout_s: time for the answer, counted in ticks of `tick_s`.
        tick_s: length of a tick.
        stopped_s: a tick that is late by this much shows that the process did not run.

    Raises:
        StoreError: the error of the answer; `timeout`, if the loop ran for `timeout_s` without an answer; STOOD_STILL.
    """
    loop = asyncio.get_running_loop()
    ticking: asyncio.TimerHandle | None = None
    still_s = 0.0

    def measure() -> None:
        nonlocal still_s
        if ticking is not None:
            still_s = max(still_s, loop.time() - ticking.when())

    def tick(left_s: float) -> None:
        nonlocal ticking
        measure()
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
                measure()
                if ticking is not None:
                    ticking.cancel()
    except TimeoutError:
        raise StoreError("timeout", f"the store did not answer within {timeout_s:g} s") from None
    except StoreError as e:
        if still_s < stopped_s:
            raise
        raise StoreError(STOOD_STILL, f"this process did not run for {still_s:.0f} s; meanwhile: {e}") from e

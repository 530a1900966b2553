"""The time limit for the store's answers, counted while this process runs.

A process that was stopped, or whose host stood still, finds every answer late, and that is not the store's fault. Imports eir.errors.
"""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from eir.errors import StoreError

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

"""How long the store is waited for: as long as this process runs meanwhile.

A process that was stopped, or whose host stood still, finds every answer late, and that is not the store's fault. Imports eir.errors.
"""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from eir.errors import StoreError

T = TypeVar("T")

STORE_TIMEOUT_S = 5.0
"""How long one answer of the store may take."""
TICK_S = 0.25
"""The event loop counts the time in such pieces; one that lasted longer counts once, since the loop did not run in it."""


async def in_time(answer: Awaitable[T], timeout_s: float = STORE_TIMEOUT_S) -> T:
    """The store's answer. Raises StoreError (`timeout`) if the event loop ran for `timeout_s` without it."""
    loop = asyncio.get_running_loop()
    ticking: asyncio.TimerHandle | None = None

    def tick(left_s: float) -> None:
        nonlocal ticking
        if left_s > 0:
            ticking = loop.call_later(min(TICK_S, left_s), tick, left_s - TICK_S)
        else:
            limit.reschedule(loop.time())

    try:
        async with asyncio.timeout(None) as limit:
            tick(timeout_s)
            try:
                return await answer
            finally:
                if ticking is not None:
                    ticking.cancel()
    except TimeoutError:
        raise StoreError("timeout", f"the store did not answer within {timeout_s:g} s") from None

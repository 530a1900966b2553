"""How long work holds the event loop at a time. Imports nothing of ours."""

import asyncio
import math
from time import perf_counter


class Slices:
    """Divides work on the loop: past `deadline` (time.perf_counter) it is time to pause; what was held is measured."""

    __slots__ = ("_since", "deadline", "limit_s", "longest_s")

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self.longest_s = 0.0
        self.begin()

    def begin(self) -> None:
        """Something was awaited: a slice begins."""
        self._since = perf_counter()
        self.deadline = self._since + self.limit_s

    def end(self) -> None:
        """Something will be awaited: the slice ends here."""
        if self.limit_s < math.inf:
            self.longest_s = max(self.longest_s, perf_counter() - self._since)

    async def pause_if_due(self) -> None:
        """Let the loop turn if the deadline has passed."""
        if perf_counter() > self.deadline:
            await self.pause()

    async def pause(self) -> None:
        """Let the loop turn."""
        self.end()
        await asyncio.sleep(0)
        self.begin()

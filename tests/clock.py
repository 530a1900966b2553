"""The time of a test's event loop: a host that stands still for a while, or keeps this process waiting, takes none of it.

For asyncio's own loop; uvloop keeps its time to itself.
"""

import asyncio
import selectors
import time
from contextlib import contextmanager

TURN_S = 0.05
"""A turn of the loop counts for so much at most, however long it took: what was about to come comes before a limit is over."""


class _Turns(selectors.DefaultSelector):
    """Counts the time of the loop's turns."""

    def __init__(self):
        super().__init__()
        self.counted_s, self._looked_at = 0.0, time.monotonic()

    def select(self, timeout=None):
        found = super().select(TURN_S if timeout is None else min(timeout, TURN_S))
        now = time.monotonic()
        self.counted_s += min(now - self._looked_at, TURN_S)
        self._looked_at = now
        return found


class Loop(asyncio.SelectorEventLoop):
    """The loop that tests run on."""

    def __init__(self):
        self._turns = _Turns()
        super().__init__(self._turns)

    def time(self):
        return self._turns.counted_s


def counted(test):
    """Run a coroutine on such a loop, where pytest does not."""
    with asyncio.Runner(loop_factory=Loop) as runner:
        return runner.run(test)


class Clock:
    """The running loop's time as a test wants it: ahead of what it was by what the test says, so that no limit has to be short."""

    def __init__(self):
        loop = asyncio.get_running_loop()
        self._real, self._ahead_s, self._stands_at = loop.time, 0.0, None
        loop.time = self.now

    def now(self):
        return (self._real() if self._stands_at is None else self._stands_at) + self._ahead_s

    def forward(self, seconds):
        """Let so much time have passed. Timers that are due by then run in the loop's next turn."""
        self._ahead_s += seconds

    @contextmanager
    def standing(self):
        """Let no time pass meanwhile, but by `forward`."""
        self._stands_at = self._real()
        try:
            yield self
        finally:
            self._ahead_s -= self._real() - self._stands_at
            self._stands_at = None

"""The time by which rows with `until` end. Imports nothing of ours; both clocks are arguments.

A phone that drops out of a list because some clock jumped is a stolen phone that works again. So the time for that purpose
never goes back, and a wall clock that jumps ahead of the monotonic one is believed only once it has kept the jump for an
hour; until then time goes on at the pace of the monotonic clock. A start is no exception where the last time seen is known:
a host that was off for a day waits the hour, since a clock that is a day wrong looks the same.
"""

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

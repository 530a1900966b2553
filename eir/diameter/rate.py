"""A limit on requests a second, with room for priorities (RFC 7944 DRMP). Time is an argument; imports nothing of ours."""

from collections.abc import Sequence
from typing import NamedTuple

BURST_S = 0.25
"""The bucket holds what the rate gives in this time: the burst that a quiet peer may send at once."""
PRIORITIES = 16
DEFAULT_PRIORITY = 10
"""RFC 7944 9: that of a request without DRMP."""


class Bucket:
    """A token bucket. The lower a request's priority, the fuller the bucket has to be for it, so that it goes first."""

    __slots__ = ("_capacity", "_filled_at", "_tokens", "rate_max")

    def __init__(self, rate_max: float, now: float) -> None:
        self.rate_max = rate_max
        """Requests a second."""
        self._capacity = max(rate_max * BURST_S, 1.0)
        self._tokens = self._capacity
        self._filled_at = now

    def take(self, now: float, priority: int = DEFAULT_PRIORITY) -> bool:
        """Whether one more request is within the limit, which it then counts against; `priority` from 0 (highest) to 15."""
        return self.grant(now, 1, priority) == 1

    def grant(self, now: float, wanted: int, priority: int = DEFAULT_PRIORITY) -> int:
        """Take as many requests of one priority as are within the limit, `wanted` at most; returns how many."""
        self._tokens = min(self._capacity, self._tokens + (now - self._filled_at) * self.rate_max)
        self._filled_at = now
        # At most half of the bucket is kept back, and never so much that a full one would refuse.
        kept_back = (self._capacity - 1) * min(priority, PRIORITIES - 1) / (2 * PRIORITIES)
        granted = max(0, min(wanted, int(self._tokens - kept_back)))
        self._tokens -= granted
        return granted

    def give_back(self, count: int) -> None:
        """Return what was granted and not used."""
        self._tokens += count


class Limit(NamedTuple):
    """A bucket, and the word that a refusal by it is counted under."""

    reason: str
    bucket: Bucket


def refusing(limits: Sequence[Limit], now: float, priority: int) -> Limit | None:
    """The first limit that a request would exceed, or None: it is then counted against all of them, and else against none."""
    for at, limit in enumerate(limits):
        if not limit.bucket.take(now, priority):
            for other in limits[:at]:
                other.bucket.give_back(1)
            return limit
    return None

"""Token buckets. They limit requests per second by the request's priority (RFC 7944 DRMP), and other events of one client.

Time is an argument.
"""

from collections.abc import Sequence
from typing import NamedTuple

from eir.wire.peers.settings import Limits, PeerSettings

BURST_S = 0.25
"""Seconds of the rate that a full bucket holds: the burst that an idle peer may send at once."""
PRIORITIES = 16
HIGHEST_PRIORITY = 0
DEFAULT_PRIORITY = 10
"""Priority of a request without DRMP (RFC 7944 9)."""
KEYS_MAX = 4096
"""Maximum number of buckets by key."""


class Bucket:
    """Token bucket with priorities: a request of lower priority needs a fuller bucket than one of higher priority."""

    __slots__ = ("_capacity", "_filled_at", "_tokens", "rate_max")

    def __init__(self, rate_max: float, now: float, *, burst: float | None = None) -> None:
        self.rate_max = rate_max
        """Tokens per second."""
        self._capacity = max(rate_max * BURST_S, 1.0) if burst is None else burst
        self._tokens = self._capacity
        self._filled_at = now

    def room(self, now: float, priority: int = DEFAULT_PRIORITY) -> int:
        """Return the number of further requests that the limit permits now. `priority`: priority of the requests, from 0 (highest) to 15.

        The caller must `spend` the requests that it handles.
        """
        tokens = self._tokens + (now - self._filled_at) * self.rate_max
        self._filled_at = now
        self._tokens = min(self._capacity, tokens)
        # At most half of the bucket is reserved, and a full bucket grants at least one request.
        kept_back = (self._capacity - 1) * min(priority, PRIORITIES - 1) / (2 * PRIORITIES)
        return max(0, int(self._tokens - kept_back))

    def spend(self, count: int) -> None:
        """Remove `count` tokens from the bucket, one for each request."""
        self._tokens -= count

    def try_spend(self, now: float, count: int = 1) -> bool:
        """Remove `count` tokens if the bucket holds at least `count`; return whether they were removed."""
        if self.room(now, HIGHEST_PRIORITY) < count:
            return False
        self.spend(count)
        return True

    def fill(self, count: int) -> None:
        """Add tokens, up to the capacity of the bucket."""
        self._tokens = min(self._capacity, self._tokens + count)


class Buckets:
    """Token buckets by key, such as a client's address. Above `keys_max` buckets, the oldest bucket is deleted."""

    def __init__(self, rate_max: float, burst: float, keys_max: int = KEYS_MAX) -> None:
        self._rate_max = rate_max
        self._burst = burst
        self._keys_max = keys_max
        self._by_key: dict[str, Bucket] = {}

    def of(self, key: str, now: float) -> Bucket:
        """Return the bucket of a key, and create the bucket if it does not exist."""
        bucket = self._by_key.get(key)
        if bucket is None:
            if len(self._by_key) >= self._keys_max:
                del self._by_key[next(iter(self._by_key))]
            bucket = self._by_key[key] = Bucket(self._rate_max, now, burst=self._burst)
        return bucket


class Limit(NamedTuple):
    """Token bucket of one limit, and the reason under which its rejections are counted."""

    reason: str
    bucket: Bucket


NO_LIMITS: Sequence[Limit] = ()


def allowed(limits: Sequence[Limit], now: float, wanted: int) -> tuple[int, str]:
    """Return how many of the `wanted` requests all limits permit, and the reason of the strictest limit.

    The reason is empty if all requests are permitted.
    """
    reached = ""
    for limit in limits:
        room = limit.bucket.room(now)
        if room < wanted:
            wanted, reached = room, limit.reason
    return wanted, reached


def refusing(limits: Sequence[Limit], now: float, priority: int) -> Limit | None:
    """Return the first limit that a request exceeds, or None.

    If no limit is exceeded, the request is counted against all limits.
    """
    for limit in limits:
        if not limit.bucket.room(now, priority):
            return limit
    for limit in limits:
        limit.bucket.spend(1)
    return None


class RateLimits:
    """Token buckets of a node: one for all requests, and one for each entry of the peer table that has a `rate_max`."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._by_label: dict[str, Bucket] = {}
        self._all: Bucket | None = None

    def reconfigure(self, peers: Sequence[PeerSettings], limits: Limits) -> None:
        """Apply new limits. If the limit of a peer table entry is unchanged, the entry keeps its token bucket."""
        self._limits, self._all = limits, None
        limited = {settings.label for settings in peers if settings.rate_max is not None}
        self._by_label = {label: bucket for label, bucket in self._by_label.items() if label in limited}

    def of(self, settings: PeerSettings, now: float) -> tuple[Limit, ...]:
        """Return the rate limits that apply to the requests of a peer."""
        buckets = []
        if settings.rate_max is not None:
            bucket = self._by_label.get(settings.label)
            if bucket is None or bucket.rate_max != settings.rate_max:
                bucket = self._by_label[settings.label] = Bucket(settings.rate_max, now)
            buckets.append(Limit("rate_max", bucket))
        if self._limits.rate_max is not None:
            self._all = self._all or Bucket(self._limits.rate_max, now)
            buckets.append(Limit("rate_max_all", self._all))
        return tuple(buckets)

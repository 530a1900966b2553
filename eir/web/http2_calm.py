"""How much of what brings no request forward a connection may send: resets, pings, settings, updates of windows.

Each such frame takes from an allowance that fills again over time, and with requests where honest clients send some for each.
A client that has used one up is sent away. Time is an argument; imports nothing of ours.
"""

from typing import NamedTuple

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
"""Types of frames (RFC 9113 6)."""
REASONS = {
    DATA: "data_flood", HEADERS: "stream_flood", PRIORITY: "priority_flood", RST_STREAM: "rapid_reset", SETTINGS: "settings_flood",
    PING: "ping_flood", WINDOW_UPDATE: "window_update_flood", CONTINUATION: "continuation_flood",
}  # fmt: skip
"""What metrics and log call a client that sends too many of them."""
HEADER_FLOOD = "header_flood"
UNKNOWN = "unknown_flood"


class Allowance(NamedTuple):
    """How many frames."""

    burst: float
    """At once."""
    a_second: float
    a_request: float = 0.0


CONTROL = Allowance(burst=500, a_second=50)
"""Frames that a client has little reason to send."""
UPDATES = Allowance(burst=2000, a_second=100, a_request=4)
"""Frames that some clients send with each request: WINDOW_UPDATE for what they have read, PRIORITY."""


HEAVY_BYTES, HEAVY_HEADERS = 8192, 64
"""A header block above either takes long to read, and no honest client sends many of them."""


def weight(size: int, headers: int) -> int:
    """What a header block of so many bytes and headers counts for, in frames that a client has little reason to send."""
    return (size >> 8 if size > HEAVY_BYTES else 0) + (headers >> 3 if headers > HEAVY_HEADERS else 0)


def size_weight(size: int) -> int:
    """What a frame of so many bytes that a client has little reason to send counts for; those of honest clients are short."""
    return 1 + (size >> 8)


class Purse:
    """What is left of one allowance."""

    __slots__ = ("_allowance", "_at", "left")

    def __init__(self, allowance: Allowance, now: float) -> None:
        self._allowance = allowance
        self._at = now
        self.left = allowance.burst

    def take(self, now: float, count: float = 1.0) -> bool:
        """Whether so many more are allowed; counts them."""
        self.left = min(self._allowance.burst, self.left + (now - self._at) * self._allowance.a_second) - count
        self._at = now
        return self.left >= 0

    def add_requests(self, count: int) -> None:
        """Requests have come."""
        self.left = min(self._allowance.burst, self.left + count * self._allowance.a_request)

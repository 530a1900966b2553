"""Limits on an HTTP/2 client: on its connection, and on frames that bring no request forward: resets, pings, settings, window updates.

Each such frame is taken from a bucket that fills again over time, and with requests where honest clients send some for each.
A client that has emptied one is sent away.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Http2Limits:
    """Limits on a connection; times in seconds."""

    streams_max: int = 128
    """Requests at once that are not answered yet."""
    header_list_bytes: int = 16_384
    """Bytes of a request's header list, as RFC 9113 6.5.2 counts; a longer one is answered as such."""
    header_list_bytes_max: int = 65_536
    """More of them end the connection."""
    body_bytes: int = 65_536
    """Bytes of a request's body."""
    preface_s: float = 10.0
    frame_s: float = 10.0
    """Seconds from a frame's first byte to its last, and from the beginning of a header block to its end."""
    request_s: float = 10.0
    """Seconds from a request's headers to its end."""
    answer_s: float = 10.0
    """Seconds that a client may leave no window for an answer."""
    idle_s: float = 60.0
    """Silence after which the server sends a PING."""
    ping_s: float = 10.0
    """Seconds that the client has to answer the PING; then the server sends the client away by a GOAWAY."""


DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
"""Types of frames (RFC 9113 6)."""
REASONS = {
    DATA: "data_flood", HEADERS: "stream_flood", PRIORITY: "priority_flood", RST_STREAM: "rapid_reset", SETTINGS: "settings_flood",
    PING: "ping_flood", WINDOW_UPDATE: "window_update_flood", CONTINUATION: "continuation_flood",
}  # fmt: skip
"""Names in metrics and log for a client that sends too many frames of one type."""
HEADER_FLOOD = "header_flood"
UNKNOWN = "unknown_flood"


CONTROL_BURST, CONTROL_A_SECOND = 500, 50
"""Frames that a client has little reason to send."""
UPDATES_BURST, UPDATES_A_SECOND, UPDATES_A_REQUEST = 2000, 100, 4
"""Frames that some clients send with each request: WINDOW_UPDATE for what they have read, PRIORITY."""


HEAVY_BYTES, HEAVY_HEADERS = 8192, 64
"""A header block above either takes long to read, and no honest client sends many of them."""


def weight(size: int, headers: int) -> int:
    """The weight of a header block of this size, in frames that a client has little reason to send."""
    return (size >> 8 if size > HEAVY_BYTES else 0) + (headers >> 3 if headers > HEAVY_HEADERS else 0)


def size_weight(size: int) -> int:
    """The weight of a frame of this size that a client has little reason to send; those of honest clients are short."""
    return 1 + (size >> 8)

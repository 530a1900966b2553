"""Limits on an HTTP/2 client: on its connection, and on the rate of its control frames, such as RST_STREAM and PING.

Each control frame spends from a token bucket. The bucket refills over time; that of WINDOW_UPDATE and PRIORITY also refills
with each request. The server closes the connection of a client whose bucket is empty.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Http2Limits:
    """Limits on one HTTP/2 connection. Times are in seconds."""

    streams_max: int = 128
    """Maximum number of concurrent requests without a response."""
    header_list_bytes: int = 16_384
    """Maximum size of a request's header list in bytes, counted as in RFC 9113 6.5.2; a larger request receives an error response."""
    header_list_bytes_max: int = 65_536
    """Size of a header list in bytes above which the server closes the connection."""
    body_bytes: int = 65_536
    """Maximum size of a request's body in bytes."""
    preface_s: float = 10.0
    frame_s: float = 10.0
    """Maximum seconds from the first byte of a frame to the last, and from the first frame of a header block to the last."""
    request_s: float = 10.0
    """Maximum seconds from a request's headers to its end."""
    answer_s: float = 10.0
    """Maximum seconds for which a client's flow-control window may block a response."""
    idle_s: float = 60.0
    """Seconds of silence after which the server sends a PING."""
    ping_s: float = 10.0
    """Seconds within which the client must acknowledge the PING; then the server sends a GOAWAY."""


DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
"""Frame types (RFC 9113 6)."""
REASONS = {
    DATA: "data_flood", HEADERS: "stream_flood", PRIORITY: "priority_flood", RST_STREAM: "rapid_reset", SETTINGS: "settings_flood",
    PING: "ping_flood", WINDOW_UPDATE: "window_update_flood", CONTINUATION: "continuation_flood",
}  # fmt: skip
"""Reasons in metrics and log for closing the connection of a client that sends too many frames of one type."""
HEADER_FLOOD = "header_flood"
UNKNOWN = "unknown_flood"


CONTROL_BURST, CONTROL_A_SECOND = 500, 50
"""Bucket for control frames that honest clients rarely send."""
UPDATES_BURST, UPDATES_A_SECOND, UPDATES_A_REQUEST = 2000, 100, 4
"""Bucket for frames that some clients send with each request: WINDOW_UPDATE after reading a body, and PRIORITY."""


HEAVY_BYTES, HEAVY_HEADERS = 8192, 64
"""Sizes above which a header block is slow to decode; honest clients rarely send one."""


def weight(size: int, headers: int) -> int:
    """Return the number of tokens that a header block costs in the token bucket of control frames: 0 for a block of usual size."""
    return (size >> 8 if size > HEAVY_BYTES else 0) + (headers >> 3 if headers > HEAVY_HEADERS else 0)


def size_weight(size: int) -> int:
    """Return the number of tokens that a control frame spends: 1, and 1 more for each 256 bytes."""
    return 1 + (size >> 8)

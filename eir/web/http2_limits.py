"""Limits on an HTTP/2 client. Data only; imports nothing of ours."""

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
    """Silence after which the client is asked for a sign of life."""
    ping_s: float = 10.0
    """Seconds that it has for that."""

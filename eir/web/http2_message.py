"""Requests and responses of HTTP/2, apart from any connection.

A response holds its frames' bytes, encoded once: its header block refers to nothing that a connection has seen before and leaves
nothing behind (RFC 7541 6.2.3), so that it is the same on each connection. Imports nothing of ours.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from hpack import Encoder

HEADERS_FRAME, DATA_FRAME = 1, 0
END_STREAM, END_HEADERS = 0x1, 0x4
"""RFC 9113 6.1, 6.2."""

HEADERS_TOO_LARGE, BODY_TOO_LARGE = "headers", "body"
"""Possible faults of a request whose frames are good."""

_encoder = Encoder()


def stateless(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A header block that neither uses nor changes what the other end's decoder remembers."""
    return bytes(_encoder.encode([(name, value, True) for name, value in headers], huffman=False))


def frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    """A frame (RFC 9113 4.1)."""
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream_id.to_bytes(4) + payload


class Request(NamedTuple):
    """A client's request."""

    method: str
    path: bytes
    """`:path`, query included, as it came."""
    headers: Mapping[bytes, bytes]
    """Names in lower case; values of a name that came several times are joined by commas (RFC 9110 5.3). No pseudo-headers."""
    fault: str | None = None
    """HEADERS_TOO_LARGE or BODY_TOO_LARGE: the rest of it was thrown away."""


@dataclass(frozen=True, slots=True)
class Response:
    """The response to it."""

    status: int
    headers: Sequence[tuple[bytes, bytes]] = ()
    """Names in lower case; content-length is added."""
    body: bytes = b""
    all_headers: Sequence[tuple[bytes, bytes]] = field(init=False)
    """With `:status` and content-length."""
    _pieces: tuple[bytes, bytes, bytes] = field(init=False)

    def __post_init__(self) -> None:
        headers = [(b":status", b"%d" % self.status), *self.headers, (b"content-length", b"%d" % len(self.body))]
        block = stateless(headers)
        object.__setattr__(self, "all_headers", headers)
        flags = END_HEADERS | (0 if self.body else END_STREAM)
        begin = len(block).to_bytes(3) + bytes((HEADERS_FRAME, flags))
        data = len(self.body).to_bytes(3) + bytes((DATA_FRAME, END_STREAM)) if self.body else b""
        object.__setattr__(self, "_pieces", (begin, block + data, self.body))

    def frames(self, stream_id: int) -> bytes:
        """HEADERS, and DATA if there is a body, of this stream."""
        begin, block, body = self._pieces
        stream = stream_id.to_bytes(4)
        return begin + stream + block + stream + body if body else begin + stream + block


Answer = Callable[[Request], Response]
"""Answers a request, at once."""

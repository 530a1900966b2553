"""HTTP/2 requests and responses, independent of a connection.

A response holds the bytes of its frames, encoded once. Its header block neither reads nor changes the header table of a connection
(RFC 7541 6.2.3), so that the bytes are the same on each connection.

Clients repeat the same headers. Validating header names costs more than reading values, so h2 validates each sequence of names once; a
`Shape` then locates the parts of a request with these names.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from hpack import Encoder

HEADERS_FRAME, DATA_FRAME = 1, 0
END_STREAM, END_HEADERS = 0x1, 0x4
"""Flags of DATA and HEADERS frames (RFC 9113 6.1, 6.2)."""

HEADERS_TOO_LARGE, BODY_TOO_LARGE = "headers", "body"
"""Faults of a request with valid frames."""

_encoder = Encoder()


def stateless(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Encode a header block without use of the receiver's dynamic header table."""
    return bytes(_encoder.encode([(name, value, True) for name, value in headers], huffman=False))


def frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    """Encode an HTTP/2 frame (RFC 9113 4.1)."""
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream_id.to_bytes(4) + payload


class Http2Request(NamedTuple):
    """HTTP/2 request of a client."""

    method: str
    path: bytes
    """Value of `:path` as received, with the query."""
    headers: Mapping[bytes, bytes]
    """Headers by name in lower case, without pseudo-headers. Values of a repeated header are joined by commas (RFC 9110 5.3)."""
    fault: str | None = None
    """HEADERS_TOO_LARGE or BODY_TOO_LARGE if the server has discarded the rest of the request."""


@dataclass(frozen=True, slots=True)
class Http2Response:
    """Response to an HTTP/2 request, with its encoded frames."""

    status: int
    headers: Sequence[tuple[bytes, bytes]] = ()
    """Headers with names in lower case, without content-length."""
    body: bytes = b""
    all_headers: Sequence[tuple[bytes, bytes]] = field(init=False)
    """Headers with `:status` and content-length."""
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
        """Return the response's frames for this stream: HEADERS, and DATA if the response has a body."""
        begin, block, body = self._pieces
        stream = stream_id.to_bytes(4)
        return begin + stream + block + stream + body if body else begin + stream + block


Answer = Callable[[Http2Request], Http2Response]
"""Function that returns the response to a request."""


SHAPES_MAX = 256
JUDGED = frozenset(
    {
        b"host",
        b"te",
        b"content-length",
        b"connection",
        b"transfer-encoding",
        b"upgrade",
        b"keep-alive",
        b"proxy-connection",
        b"cookie",
    }
)
"""Headers whose presence or value h2 validates: a request with one of them goes through h2."""


class Shape(NamedTuple):
    """Positions of the method, path and other headers in requests with a known sequence of header names."""

    method: int
    path: int
    others: Sequence[tuple[bytes, int]]
    size: int
    """Share of the names in the size of the header list, in bytes."""


class Shapes:
    """Cache: sequence of header names → positions of the request's parts (Shape). All connections of a server share it."""

    def __init__(self) -> None:
        self._known: dict[tuple[bytes, ...], Shape] = {}
        self.get = self._known.get

    def learn(self, names: tuple[bytes, ...]) -> None:
        """Add a sequence of header names to the cache, unless the library h2 must validate every request with these names."""
        if (
            len(set(names)) < len(names)
            or not {b":method", b":path", b":scheme", b":authority"} <= set(names)
            or not JUDGED.isdisjoint(names)
        ):
            return
        if len(self._known) >= SHAPES_MAX:
            self._known.clear()
        others = tuple((name, at) for at, name in enumerate(names) if not name.startswith(b":"))
        size = sum(len(name) + 32 for name in names)
        self._known[names] = Shape(names.index(b":method"), names.index(b":path"), others, size)


def are_clean(values: Sequence[bytes]) -> bool:
    """Return whether all header values are valid: no NUL, CR or LF, and no space or tab at the start or end (RFC 9113 8.2.1)."""
    joined = b"\n".join((b"", *values, b""))
    return joined.count(b"\n") == len(values) + 1 and not (
        b"\0" in joined
        or b"\r" in joined
        or b"\n " in joined
        or b" \n" in joined
        or b"\n\t" in joined
        or b"\t\n" in joined
    )

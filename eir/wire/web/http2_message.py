"""Requests and responses of HTTP/2, apart from any connection.

A response holds its frames' bytes, encoded once: its header block refers to nothing that a connection has seen before and leaves
nothing behind (RFC 7541 6.2.3), so that it is the same on each connection.

Clients send the same headers again and again. Judging names costs more than reading values does, so each set of them is judged once, by
h2; a `Shape` says where each part of such a request is.
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
"""Headers on whose values, or on which at all, h2 has an opinion: requests with one go through it."""


class Shape(NamedTuple):
    """The names of a request's headers in order, in which h2 once found no fault, and the positions of the parts."""

    method: int
    path: int
    others: Sequence[tuple[bytes, int]]
    size: int
    """Bytes of the names in a header list."""


class Shapes:
    """The shapes that the clients of a server use."""

    def __init__(self) -> None:
        self._known: dict[tuple[bytes, ...], Shape] = {}
        self.get = self._known.get

    def learn(self, names: tuple[bytes, ...]) -> None:
        """Take note of names that h2 has accepted."""
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
    """True if no value contains, begins or ends with a forbidden byte (RFC 9113 8.2.1)."""
    joined = b"\n".join((b"", *values, b""))
    return joined.count(b"\n") == len(values) + 1 and not (
        b"\0" in joined
        or b"\r" in joined
        or b"\n " in joined
        or b" \n" in joined
        or b"\n\t" in joined
        or b"\t\n" in joined
    )

"""One connection of an HTTP/1.1 server, without I/O: parses received bytes and encodes responses.

llhttp parses (httptools). This module adds what llhttp leaves to its user: limits on size, the Host header, and the versions
and transfer codings that are served. The owner of the socket enforces limits on time.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import httptools

REQUEST_BYTES_MAX = 16 * 1024
"""Maximum number of bytes of a request line and its headers, and of the framing of a chunked body beside the body."""
CHUNK_FRAMING_MAX = 8
"""Maximum number of bytes of framing for each byte of a chunked body, in addition to REQUEST_BYTES_MAX."""
PIECE_BYTES = 512
"""Number of bytes that are parsed at once: a client that pipelines many small requests delays the other clients only a little."""
NO_CONTENT = 204
"""Status of a response without a body and without headers of a body (RFC 9110 8.6)."""
BAD_REQUEST, TOO_LARGE, TOO_MANY_HEADERS, NOT_IMPLEMENTED = 400, 413, 431, 501


class HttpRequest(NamedTuple):
    """HTTP request of a client."""

    method: str
    path: str
    """Path of the target, without the query."""
    query: str = ""
    """Part of the target after the question mark."""
    headers: Mapping[str, str] = MappingProxyType({})
    """Headers by name in lower case. Values of a repeated header are joined by commas, in order."""
    address: str = ""
    """Address of the client; set by the owner of the socket."""
    body: bytes = b""
    names: Sequence[str] = ()
    """Names in the client's TLS certificate, if it sent one; set by the owner of the socket."""


class HttpResponse(NamedTuple):
    """Response to an HTTP request."""

    status: int
    content_type: str
    body: bytes
    headers: Sequence[tuple[str, str]] = ()
    """Headers other than those of the body."""
    authenticated: bool = False
    """True if the client has authenticated."""


class Conversation:
    """Sequence of requests and responses on one connection.

    `over` is True once no further request can come. The bytes that `answer` or `refuse` returned must be sent before the
    connection is closed. `fault` is then the status with which an invalid request must be refused, or 0.
    """

    def __init__(
        self, requests_max: int, body_bytes_max: int | None = None, unauthenticated_max: int | None = None
    ) -> None:
        """Create the state of a new HTTP/1.1 connection.

        `requests_max`: number of requests after which the connection closes. `body_bytes_max`: maximum size of a request's body; a longer one is
        refused with 413. None: bodies are discarded. `unauthenticated_max`: number of requests after which the connection of a client that has
        not authenticated closes; None: `requests_max`.
        """
        self._parsed = RequestParser(body_bytes_max)
        self._answered, self._requests_max = 0, requests_max
        self._unauthenticated_max = min(unauthenticated_max or requests_max, requests_max)
        self.authenticated = False
        """True after the client has authenticated."""
        self._asked = ParsedRequest(HttpRequest("", ""), is_last=False)
        self.over = False
        self.fault = 0

    def receive(self, data: bytes) -> None:
        """Add received bytes. If `data` is empty, the client has closed its side of the connection."""
        self._parsed.receive(data)

    def next_request(self) -> HttpRequest | None:
        """Return the next complete request; None if more bytes are needed or no further request can come."""
        if self.over:
            return None
        parsed = self._parsed.next_request()
        if parsed is None:
            self.over, self.fault = self._parsed.ended, self._parsed.fault
            return None
        self._asked = parsed
        return parsed.request

    def has_begun_request(self) -> bool:
        """Return true if the client has sent a part of its next request."""
        return self._parsed.has_begun_request()

    def interim_response(self) -> bytes:
        """Return the response 100 (Continue) if the client sends the body only after this response; otherwise no bytes.

        RFC 9110 10.1.1.
        """
        return b"HTTP/1.1 100 \r\n\r\n" if self._parsed.is_continue_due() else b""

    def answer(self, response: HttpResponse) -> bytes:
        """Encode the response to the request that `next_request` returned last."""
        self._answered += 1
        self.authenticated |= response.authenticated
        most = self._requests_max if self.authenticated else self._unauthenticated_max
        self.over = self._asked.is_last or self._answered >= most
        body = b"" if self._asked.request.method == "HEAD" else response.body
        return _encode(response, body, closes=self.over)

    def refuse(self, response: HttpResponse) -> bytes:
        """Encode the response to an invalid request. No further request follows on this connection."""
        return _encode(response, response.body, closes=True)


class ParsedRequest(NamedTuple):
    """Complete request. `is_last`: the connection closes after it, as the client or its HTTP version requires."""

    request: HttpRequest
    is_last: bool


class RequestParser:
    """Parser of the requests on one connection. The library llhttp calls the methods whose names begin with `on_`."""

    def __init__(self, body_bytes_max: int | None) -> None:
        self.fault = 0
        """Status for the invalid request at the end of the parsed bytes; 0 without one."""
        self.ended = False
        """True if no further request follows the parsed ones."""
        self._is_at_end = False
        """True after the client has closed its side: no further bytes follow the unparsed ones."""
        self.expects_continue = False
        """True while the client waits for an interim response."""
        self._llhttp = httptools.HttpRequestParser(self)
        self._unparsed = bytearray()
        self._requests: deque[ParsedRequest] = deque()
        self._body_max = body_bytes_max
        self._has_begun = self._has_headers = False
        self._target, self._body = bytearray(), bytearray()
        self._headers: list[tuple[str, str]] = []
        self._bytes = self._body_bytes = 0
        """Number of bytes of the current request from the first whole piece on, and of its body."""

    def is_continue_due(self) -> bool:
        """Return True if the client waits for the response 100 (Continue). Further calls for the same request return False."""
        is_due, self.expects_continue = self.expects_continue, False
        return is_due

    def receive(self, data: bytes) -> None:
        """Add received bytes. If `data` is empty, the client has closed its side of the connection."""
        self._unparsed += data
        self._is_at_end |= not data

    def next_request(self) -> ParsedRequest | None:
        """Return the next complete request; None if more bytes are needed or no further request can come."""
        while not self._requests and self._unparsed and not self.ended:
            piece = bytes(self._unparsed[:PIECE_BYTES])
            del self._unparsed[:PIECE_BYTES]
            self._parse(piece)
        if self._requests:
            return self._requests.popleft()
        if self._is_at_end:
            self._finish()
        return None

    def has_begun_request(self) -> bool:
        """Return true if the received bytes hold a complete or partial request that `next_request` has not returned yet."""
        return self._has_begun or bool(self._requests) or bool(self._unparsed.strip(b"\r\n"))

    def _finish(self) -> None:
        """Refuse the incomplete request of a client that has closed its side; no further request follows."""
        if self._has_begun:
            self._refuse(BAD_REQUEST)
        self.ended = True

    def _parse(self, piece: bytes) -> None:
        self._bytes += len(piece)
        try:
            self._llhttp.feed_data(piece)
        except httptools.HttpParserUpgrade:
            pass  # the request was queued as the last one
        except httptools.HttpParserError:
            self._refuse(BAD_REQUEST)
        framing_max = CHUNK_FRAMING_MAX * self._body_bytes if self._has_headers else 0
        if self._bytes - self._body_bytes > REQUEST_BYTES_MAX + framing_max:
            self._refuse(TOO_MANY_HEADERS)

    def _refuse(self, status: int) -> None:
        if not self.ended:
            self.ended, self.fault = True, status

    def on_message_begin(self) -> None:
        """Reset the state for a new request."""
        self._has_begun, self._has_headers = True, False
        self._target.clear()
        self._body.clear()
        self._headers.clear()
        self._bytes = self._body_bytes = 0

    def on_url(self, part: bytes) -> None:
        """Add a part of the request target."""
        self._target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header. Trailers after a chunked body are ignored."""
        if not self._has_headers:
            self._headers.append((name.decode("ascii").lower(), value.decode("latin-1").strip(" \t")))

    def on_headers_complete(self) -> None:
        """Check version, size and framing of the request by its headers, before the body arrives."""
        self._has_headers = True
        version = self._llhttp.get_http_version()
        hosts = sum(name == "host" for name, _ in self._headers)
        size = len(self._target) + sum(len(name) + len(value) for name, value in self._headers)
        codings = [value.lower() for name, value in self._headers if name == "transfer-encoding"]
        has_length = any(name == "content-length" and value != "0" for name, value in self._headers)
        if version not in {"1.0", "1.1"} or hosts > 1 or (version == "1.1" and not hosts):
            self._refuse(BAD_REQUEST)
        elif self._llhttp.should_upgrade() and (codings or has_length):
            self._refuse(BAD_REQUEST)  # llhttp parses no body then
        elif size > REQUEST_BYTES_MAX:
            self._refuse(TOO_MANY_HEADERS)
        elif codings not in ([], ["chunked"]):
            self._refuse(NOT_IMPLEMENTED)
        self.expects_continue = version == "1.1" and any(
            name == "expect" and value.lower() == "100-continue" for name, value in self._headers
        )

    def on_body(self, part: bytes) -> None:
        """Add a part of the request's body."""
        self.expects_continue = False
        self._body_bytes += len(part)
        if self._body_max is None:
            return
        if self._body_bytes > self._body_max:
            self._refuse(TOO_LARGE)
        else:
            self._body += part

    def on_message_complete(self) -> None:
        """Append the complete request to the queue of requests."""
        self._has_begun = self.expects_continue = False
        if self.ended:
            return
        keeps_alive = self._llhttp.should_keep_alive() and not self._llhttp.should_upgrade()
        self.ended = self._llhttp.get_http_version() == "1.0" or not keeps_alive
        headers: dict[str, str] = {}
        for name, value in self._headers:
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        path, _, query = self._target.decode("ascii", "replace").partition("?")
        request = HttpRequest(self._llhttp.get_method().decode("ascii"), path, query, headers, body=bytes(self._body))
        self._requests.append(ParsedRequest(request, self.ended))


def _encode(response: HttpResponse, body: bytes, *, closes: bool) -> bytes:
    headers = list(response.headers)
    if response.status != NO_CONTENT:
        headers += [("Content-Type", response.content_type), ("Content-Length", str(len(response.body)))]
    if closes:
        headers.append(("Connection", "close"))
    head = "".join(f"{name}: {value}\r\n" for name, value in headers)
    return f"HTTP/1.1 {response.status} \r\n{head}\r\n".encode("latin-1") + body

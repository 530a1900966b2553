"""One connection of an HTTP/1.1 server, without I/O: bytes in, requests out, answers in, bytes out. h11 does the protocol.

A request that comes whole and alone, has no body and says nothing of the connection is read beside h11, which takes 100 µs for one: so a
feed of thousands of rows a second leaves the processor to others. Whatever is not plainly such a request is h11's.

Knows nothing of what it serves, and no clock: how long a connection may take is for the one that has the socket to say.
"""

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import h11

REQUEST_BYTES_MAX = 16 * 1024
"""Bytes of a request line and its headers."""
NO_CONTENT = 204
"""An answer of this status has no body, and no header that speaks of one (RFC 9110 8.6)."""
AMBIGUOUS, TOO_LARGE, TOO_MANY_HEADERS = 400, 413, 431


PLAIN = re.compile(
    rb"(GET|POST|DELETE) (/[!-~]{0,4000}+) HTTP/1\.1\r\n((?:[A-Za-z0-9-]{1,64}+: ?[!-~][ -~]*+\r\n){1,32}+)\r\n"
)
OF_CONNECTION = frozenset(
    {"connection", "content-length", "expect", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}
)
"""Headers that say more than what is asked for; one of no body may stand there."""


class Request(NamedTuple):
    """A client's request."""

    method: str
    path: str
    """Without what follows a question mark."""
    query: str = ""
    """That."""
    headers: Mapping[str, str] = MappingProxyType({})
    """Headers by name in lower case; the values of one that came several times are joined in order by commas."""
    address: str = ""
    """The client's address, according to the process that has the socket."""
    body: bytes = b""


class Response(NamedTuple):
    """The response to it."""

    status: int
    content_type: str
    body: bytes
    headers: Sequence[tuple[str, str]] = ()
    """Headers besides those of the body."""
    authenticated: bool = False
    """True if the client has shown that it may use the service."""


class Conversation:
    """The connection. `over`: nothing more is to be read from it; what `answer` gave is to be sent before it is closed."""

    def __init__(self, requests_max: int, body_bytes_max: int | None = None) -> None:
        """`requests_max`: the answer to the last of this many requests says that the connection closes.

        `body_bytes_max`: of the body of a request; a longer one is answered 413. None: bodies are read and thrown away.
        """
        self._connection = h11.Connection(h11.SERVER, max_incomplete_event_size=REQUEST_BYTES_MAX)
        self._request: h11.Request | None = None
        self._body, self._body_max = bytearray(), body_bytes_max
        self._left = requests_max
        self._plain: Request | None = None
        """The next request, if it was read without h11."""
        self._beside = False
        """The request that is being answered was."""
        self._idle = True
        """h11 has seen nothing that is not answered."""
        self.over = False
        self.fault = 0
        """The status that what was no request is to be answered with; 0: there was none such."""

    def receive(self, data: bytes) -> None:
        """Take bytes from the client; none: it will send nothing more."""
        if self._idle and not self._beside and self._plain is None and (request := plain_request(data)) is not None:
            self._plain = request
            return
        self._idle = False
        try:
            self._connection.receive_data(data)
        except h11.RemoteProtocolError as e:
            self._failed(e)

    def next_request(self) -> Request | None:
        """The next whole request; None if more bytes are needed, or the connection is over."""
        if self._plain is not None and not self.over:
            request, self._plain, self._beside = self._plain, None, True
            return request
        while not self.over:
            try:
                event = self._connection.next_event()
            except h11.RemoteProtocolError as e:
                self._failed(e)
                break
            if event is h11.NEED_DATA:
                break
            if isinstance(event, h11.Request):
                self._request = event
                self._body.clear()
                self.fault = _fault_of(event)
                self.over = bool(self.fault)
            elif isinstance(event, h11.EndOfMessage) and self._request is not None:
                return _request(self._request, bytes(self._body))
            elif isinstance(event, h11.Data):
                if self._body_max is not None:
                    self._body += event.data
                    if len(self._body) > self._body_max:
                        self.over, self.fault = True, TOO_LARGE
            else:  # closed, or paused on something that is not HTTP/1.1
                self.over = True
        return None

    def go_on(self) -> bytes:
        """The bytes that a client waits for before it sends the body (RFC 9110 10.1.1); none if it waits for nothing."""
        if self.over or not self._connection.they_are_waiting_for_100_continue:
            return b""
        return self._connection.send(h11.InformationalResponse(status_code=100, headers=[])) or b""

    def answer(self, response: Response) -> bytes:
        """The bytes that answer the request that `next_request` gave last."""
        self._left -= 1
        headers = list(response.headers)
        if response.status != NO_CONTENT:
            headers += [("Content-Type", response.content_type), ("Content-Length", str(len(response.body)))]
        if not self._left:
            headers.append(("Connection", "close"))
        if self._beside:
            self._beside, self.over = False, not self._left
            return (
                "".join(
                    [f"HTTP/1.1 {response.status} \r\n", *[f"{name}: {value}\r\n" for name, value in headers], "\r\n"]
                ).encode("latin-1")
                + response.body
            )
        out = self._connection.send(h11.Response(status_code=response.status, headers=headers)) or b""
        if self._request is not None and self._request.method != b"HEAD" and response.status != NO_CONTENT:
            out += self._connection.send(h11.Data(data=response.body)) or b""
        out += self._connection.send(h11.EndOfMessage()) or b""
        if self._connection.our_state is h11.DONE:
            self._connection.start_next_cycle()
            self._idle = self._connection.trailing_data == (b"", False)
        else:
            self.over = True
        return out

    def refuse(self, response: Response) -> bytes:
        """The bytes that answer what was no request (`fault`), after which the connection is over."""
        if self._connection.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            return b""
        headers = [
            *response.headers,
            ("Content-Type", response.content_type),
            ("Content-Length", str(len(response.body))),
            ("Connection", "close"),
        ]
        out = self._connection.send(h11.Response(status_code=response.status, headers=headers)) or b""
        return out + (self._connection.send(h11.Data(data=response.body)) or b"")

    def _failed(self, fault: h11.RemoteProtocolError) -> None:
        self.over, self.fault = True, fault.error_status_hint


def plain_request(data: bytes) -> Request | None:
    """The request in these bytes, if they are a single plain one and nothing more; None: h11 has to look."""
    found = PLAIN.fullmatch(data)
    if found is None:
        return None
    method, target, lines = found.groups()
    headers: dict[str, str] = {}
    for line in lines.decode("ascii").split("\r\n")[:-1]:
        name, _, value = line.partition(":")
        name, value = name.lower(), value.strip(" ")
        if name in headers or (
            name in OF_CONNECTION and (name, value) not in {("content-length", "0"), ("connection", "keep-alive")}
        ):
            return None
        headers[name] = value
    path, _, query = target.decode("ascii").partition("?")
    return Request(method.decode("ascii"), path, query, headers) if "host" in headers else None


def _fault_of(head: h11.Request) -> int:
    """The status for a request that h11 accepts and this server does not; 0: it is accepted."""
    if {b"content-length", b"transfer-encoding"} <= {name for name, _ in head.headers}:
        return AMBIGUOUS  # whoever stands before this server may read it otherwise (RFC 9112 6.1)
    size = len(head.target) + sum(len(name) + len(value) for name, value in head.headers)
    return TOO_MANY_HEADERS if size > REQUEST_BYTES_MAX else 0  # h11 bounds only what has not come whole


def _request(head: h11.Request, body: bytes) -> Request:
    headers: dict[str, str] = {}
    for name, value in head.headers:
        key, text = name.decode("ascii"), value.decode("latin-1")
        headers[key] = f"{headers[key]}, {text}" if key in headers else text
    path, _, query = head.target.decode("ascii", "replace").partition("?")
    return Request(head.method.decode("ascii"), path, query, headers, body=body)

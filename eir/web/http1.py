"""One connection of an HTTP/1.1 server, without I/O: bytes in, requests out, answers in, bytes out. h11 does the protocol.

Knows nothing of what it serves, and no clock: how long a connection may take is for the one that has the socket to say.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import h11

REQUEST_BYTES_MAX = 16 * 1024
"""Of a request line and its headers."""


class Request(NamedTuple):
    """What a client asks for."""

    method: str
    path: str
    """Without what follows a question mark."""
    query: str = ""
    """That."""
    headers: Mapping[str, str] = MappingProxyType({})
    """Names in lower case."""
    address: str = ""
    """Where the client is, as far as the one that has the socket says."""


class Response(NamedTuple):
    """What it is answered."""

    status: int
    content_type: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    """Further ones."""


class Conversation:
    """The connection. `over`: nothing more is to be read from it; what `answer` gave is to be sent before it is closed."""

    def __init__(self, requests_max: int) -> None:
        """`requests_max`: the answer to the last of so many says that the connection closes."""
        self._connection = h11.Connection(h11.SERVER, max_incomplete_event_size=REQUEST_BYTES_MAX)
        self._request: h11.Request | None = None
        self._left = requests_max
        self.over = False

    def receive(self, data: bytes) -> None:
        """Take bytes from the client; none: it will send nothing more."""
        try:
            self._connection.receive_data(data)
        except h11.RemoteProtocolError:
            self.over = True

    def next_request(self) -> Request | None:
        """The next whole request; None if more bytes are needed, or the connection is over."""
        while not self.over:
            try:
                event = self._connection.next_event()
            except h11.RemoteProtocolError:
                self.over = True  # the client speaks something else, and is told nothing
                break
            if event is h11.NEED_DATA:
                break
            if isinstance(event, h11.Request):
                self._request = event
            elif isinstance(event, h11.EndOfMessage) and self._request is not None:
                method, target = self._request.method.decode("ascii"), self._request.target.decode("ascii", "replace")
                headers = {name.decode("ascii"): value.decode("latin-1") for name, value in self._request.headers}
                path, _, query = target.partition("?")
                return Request(method, path, query, headers)
            elif not isinstance(event, h11.Data):  # closed, or paused on something that is not HTTP/1.1
                self.over = True
        return None

    def answer(self, response: Response) -> bytes:
        """The bytes that answer the request that `next_request` gave last."""
        self._left -= 1
        headers = [("Content-Type", response.content_type), ("Content-Length", str(len(response.body))), *response.headers]
        if not self._left:
            headers.append(("Connection", "close"))
        out = self._connection.send(h11.Response(status_code=response.status, headers=headers)) or b""
        if self._request is not None and self._request.method != b"HEAD":
            out += self._connection.send(h11.Data(data=response.body)) or b""
        out += self._connection.send(h11.EndOfMessage()) or b""
        if self._connection.our_state is h11.DONE:
            self._connection.start_next_cycle()
        else:
            self.over = True
        return out

"""One request of an HTTP/2 client (RFC 9113), without I/O: a connection that asks one thing, and ends. h2 does the protocol.

For requests that are rare and may fail: a new connection is never one that the other end has long forgotten.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, Event, ResponseReceived, StreamEnded, StreamReset
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings

from eir.errors import EirError

BODY_BYTES_MAX = 1 << 18
STREAM = 1
"""RFC 9113 5.1.1: a client's first."""
HEAD_BYTES, GOAWAY = 9, 7
"""Bytes of a frame's head, and the type of a frame that ends a connection (RFC 9113 4.1, 6.8)."""


class NoAnswer(EirError):
    """The server sends no valid answer; the text says why."""


class Answer(NamedTuple):
    """The answer."""

    status: int
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes


class GoAway(NamedTuple):
    """The server takes no further request (RFC 9113 6.8)."""

    last: int
    """The last stream that is still answered."""
    error: int


class Incoming:
    """Bytes of a server as events of h2, which is shown no GOAWAY: after one it would refuse the answers that still come (RFC 9113 6.8)."""

    def __init__(self, h2: H2Connection) -> None:
        self._h2, self._unread = h2, b""

    def events(self, data: bytes) -> Iterator[Event | GoAway]:
        """Take bytes, and give what the whole frames in them say, one after the other. Raises ProtocolError."""
        data, at = self._unread + data, 0
        try:
            while len(data) - at >= HEAD_BYTES:
                length, kind = int.from_bytes(data[at : at + 3]), data[at + 3]
                # Of a frame that is too long h2 has enough with its beginning.
                end = at + HEAD_BYTES + min(length, self._h2.max_inbound_frame_size)
                if len(data) < end:
                    return
                frame, at = data[at:end], end
                if kind != GOAWAY or length < 8:
                    yield from self._h2.receive_data(frame)
                else:
                    last, error = (int.from_bytes(frame[of : of + 4]) for of in (HEAD_BYTES, HEAD_BYTES + 4))
                    yield GoAway(last & 0x7FFFFFFF, error)
        finally:
            self._unread = data[at:]


class Exchange:
    """The connection. `headers`: the request's, pseudo-headers first. `answer`: what came, once it has."""

    def __init__(self, headers: Sequence[tuple[str, str]], body: bytes) -> None:
        self._h2 = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self._h2.local_settings = Settings(client=True, initial_values={SettingCodes.ENABLE_PUSH: 0})
        self._h2.initiate_connection()
        self._h2.send_headers(STREAM, list(headers), end_stream=not body)
        self._rest = body
        self._status = 0
        self._headers: dict[str, str] = {}
        self._body = b""
        self._incoming = Incoming(self._h2)
        self.answer: Answer | None = None
        self._send_rest()

    def take(self) -> bytes:
        """Bytes for the server."""
        return self._h2.data_to_send()

    def receive(self, data: bytes) -> None:
        """Take bytes from the server; none: it will send nothing more. Raises NoAnswer once it is clear that there will be none."""
        if not data:
            raise NoAnswer("the connection was closed before the answer")
        try:
            for event in self._incoming.events(data):
                if isinstance(event, GoAway):
                    self._sent_away(event)
                elif isinstance(event, ResponseReceived):
                    self._headers = {str(name): str(value) for name, value in event.headers}
                    self._status = int(self._headers.get(":status", "0"))
                elif isinstance(event, DataReceived):
                    self._body += event.data
                    if len(self._body) > BODY_BYTES_MAX:
                        raise NoAnswer(f"the answer is longer than {BODY_BYTES_MAX} bytes")
                    self._h2.acknowledge_received_data(event.flow_controlled_length, STREAM)
                elif isinstance(event, StreamEnded):
                    self.answer = Answer(self._status, self._headers, self._body)
                    self._h2.close_connection()
                    return
                elif isinstance(event, StreamReset):
                    raise NoAnswer(f"the request was reset (error {int(event.error_code or 0)})")
            self._send_rest()
        except (ProtocolError, UnicodeDecodeError, ValueError) as e:
            raise NoAnswer(f"it does not speak HTTP/2 ({type(e).__name__})") from None

    @staticmethod
    def _sent_away(said: GoAway) -> None:
        """Go on where the request is still answered. Raises NoAnswer."""
        if said.error or said.last < STREAM:
            raise NoAnswer(f"the connection was ended (error {said.error})")

    def _send_rest(self) -> None:
        """Send of the body what the server has left a window for."""
        while (
            self._rest
            and (room := min(self._h2.local_flow_control_window(STREAM), self._h2.max_outbound_frame_size)) > 0
        ):
            part, self._rest = self._rest[:room], self._rest[room:]
            self._h2.send_data(STREAM, part, end_stream=not self._rest)

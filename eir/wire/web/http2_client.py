"""HTTP/2 client for one request on its own connection (RFC 9113), without I/O. The library h2 implements the protocol.

For rare requests: a new connection cannot be one that the server has silently dropped.
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
"""First stream of a client (RFC 9113 5.1.1)."""
HEAD_BYTES, GOAWAY = 9, 7
"""Length of a frame header in bytes, and the type of a GOAWAY frame (RFC 9113 4.1, 6.8)."""


class NoAnswer(EirError):
    """Error: the server sends no valid answer. The exception's text is the reason."""


class Http2Answer(NamedTuple):
    """Complete answer of the server."""

    status: int
    headers: dict[str, str]
    """Headers by name in lower case."""
    body: bytes


class GoAway(NamedTuple):
    """GOAWAY frame, after which the server accepts no further request (RFC 9113 6.8)."""

    last: int
    """Last stream that the server still answers."""
    error: int


class Incoming:
    """Decoder of a server's bytes into events of the library h2.

    It hides GOAWAY frames from h2, which would reject the remaining answers (RFC 9113 6.8).
    """

    def __init__(self, h2: H2Connection) -> None:
        self._h2, self._unread = h2, b""

    def events(self, data: bytes) -> Iterator[Event | GoAway]:
        """Add received bytes, and yield the events of complete frames. Raises ProtocolError."""
        data, at = self._unread + data, 0
        try:
            while len(data) - at >= HEAD_BYTES:
                length, kind = int.from_bytes(data[at : at + 3]), data[at + 3]
                # h2 rejects a frame that is too long by its header alone.
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
    """Client side of a connection with one request and its answer.

    `headers`: headers of the request, pseudo-headers first. `answer`: None until the answer is complete.
    """

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
        self.answer: Http2Answer | None = None
        self._send_rest()

    def data_to_send(self) -> bytes:
        """Return the bytes that must be sent to the server, and clear the send buffer."""
        return self._h2.data_to_send()

    def receive(self, data: bytes) -> None:
        """Process received bytes. If `data` is empty, the server has closed its side of the connection.

        Raises:
            NoAnswer: if no valid answer can follow.
        """
        if not data:
            raise NoAnswer("the connection was closed before the answer")
        try:
            for event in self._incoming.events(data):
                if isinstance(event, GoAway):
                    self._check_goaway(event)
                elif isinstance(event, ResponseReceived):
                    self._headers = {str(name): str(value) for name, value in event.headers}
                    self._status = int(self._headers.get(":status", "0"))
                elif isinstance(event, DataReceived):
                    self._body += event.data
                    if len(self._body) > BODY_BYTES_MAX:
                        raise NoAnswer(f"the answer is longer than {BODY_BYTES_MAX} bytes")
                    self._h2.acknowledge_received_data(event.flow_controlled_length, STREAM)
                elif isinstance(event, StreamEnded):
                    self.answer = Http2Answer(self._status, self._headers, self._body)
                    self._h2.close_connection()
                    return
                elif isinstance(event, StreamReset):
                    raise NoAnswer(f"the request was reset (error {int(event.error_code or 0)})")
            self._send_rest()
        except (ProtocolError, UnicodeDecodeError, ValueError) as e:
            raise NoAnswer(f"it does not speak HTTP/2 ({type(e).__name__})") from None

    @staticmethod
    def _check_goaway(goaway: GoAway) -> None:
        """Raise NoAnswer if the server's GOAWAY contains an error or excludes the request's stream."""
        if goaway.error or goaway.last < STREAM:
            raise NoAnswer(f"the connection was ended (error {goaway.error})")

    def _send_rest(self) -> None:
        """Send as much of the unsent body as the server's flow-control window allows."""
        while (
            self._rest
            and (room := min(self._h2.local_flow_control_window(STREAM), self._h2.max_outbound_frame_size)) > 0
        ):
            part, self._rest = self._rest[:room], self._rest[room:]
            self._h2.send_data(STREAM, part, end_stream=not self._rest)

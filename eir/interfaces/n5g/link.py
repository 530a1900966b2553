"""N5g connection of one AMF: passes received bytes to the HTTP/2 state, and sends its output."""

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from eir.wire.peers.link import PeerConnection

if TYPE_CHECKING:
    from eir.interfaces.n5g.server import N5gServer
    from eir.wire.web.http2 import Http2Connection

AHEAD_BYTES = 1 << 16
"""Maximum number of bytes that a connection may have ready before its turn; above it nothing is read."""


class N5gConnection(PeerConnection["N5gServer"]):
    """HTTP/2 connection of one AMF."""

    def __init__(self, owner: "N5gServer", loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(owner, loop)
        self._read_at = 0.0
        self._ended = False
        self.http: Http2Connection | None = None
        """None before the owner has accepted the connection, and after its end."""

    # link.PeerConnection

    def begin(self) -> bool:
        """Let the server accept or reject this new connection; return false after a rejection."""
        tls = self.transport.get_extra_info("ssl_object") if self.transport is not None else None
        self.http = self.owner.accept(self, None if tls is None else tls.selected_alpn_protocol() or "")
        if self.http is None:
            return False
        self.flush()
        return True

    def data_received(self, data: bytes) -> None:
        """Buffer received bytes, and handle them now or in a later loop iteration."""
        if self.http is not None:
            self._read_at = time.perf_counter()
            self.http.receive(data, self.loop.time())
            self.request_turn()

    def eof_received(self) -> bool:
        """Handle the end of the received stream: answer all requests that have arrived, then let the transport close."""
        self._ended = self.http is not None and (self.http.more or self.owner.turns.is_waiting(self))
        return self._ended

    def ended(self) -> None:
        """Discard the HTTP/2 state, because the connection has ended."""
        self.http = None

    def wants_bytes(self) -> bool:
        """Return true if the node can handle or buffer more bytes from the AMF."""
        http = self.http
        return (
            http is not None and not http.more and not (http.unread > AHEAD_BYTES and self.owner.turns.is_waiting(self))
        )

    def leave(self) -> None:
        """Start to close the connection gracefully: send GOAWAY, and answer pending requests."""
        if self.http is not None:
            self.http.leave(self.loop.time())
            self.flush()

    @property
    def tally(self) -> tuple[int, int]:
        """Number of requests, and number of answers, on this connection so far."""
        return (0, 0) if self.http is None else (self.http.requests, self.http.answers)

    @property
    def end(self) -> str:
        """Reason for the end of the connection; empty while it is open."""
        return self.over or ("" if self.http is None else self.http.over)

    def work(self, enough: Callable[[], bool]) -> bool:
        """Answer received requests until `enough` returns true; return whether requests remain."""
        http = self.http
        if http is None or self.stalled is not None or (self.transport is not None and self.transport.is_closing()):
            return False
        before = http.answers
        http.work(self.loop.time(), enough)
        self.flush()
        answered = http.answers - before
        if answered:
            self.owner.answered(self, answered, time.perf_counter() - self._read_at)
        more = http.more and not http.over and self.stalled is None
        if self._ended and not more and self.transport is not None:
            self.transport.close()
        return more

    def tick(self, now: float) -> None:
        """Enforce the time limits of the connection."""
        if self.http is not None:
            self.http.tick(now)
            self.flush()

    def flush(self) -> None:
        """Send the output of the HTTP/2 state, and close the connection if the state has ended."""
        http, transport = self.http, self.transport
        if http is None or transport is None:
            return
        if out := http.data_to_send():
            transport.write(out)
        if http.over:
            self.close()
        self.set_reading()

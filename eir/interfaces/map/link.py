"""SIGTRAN connection on the event loop: passes received bytes to the M3UA association, and sends the association's bytes."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from eir.interfaces.map.settings import GatewaySettings
from eir.wire.peers.link import Alarm, PeerConnection
from eir.wire.ss7 import m3ua
from eir.wire.ss7.asp import Association, AssociationEvent, AssociationState
from eir.wire.ss7.m3ua import MessageKind, Transfer
from eir.wire.transport.sctp import Carried

if TYPE_CHECKING:
    from eir.interfaces.map.server import MapServer

AHEAD_BYTES = 1 << 16
"""Maximum number of bytes that wait for their turn; above it nothing is read."""
PIECE_BYTES = 1024
"""Number of bytes that are parsed between two checks of the time; the smallest messages have 8 bytes, and management messages cost as much as a request."""
_DATA = MessageKind.DATA.to_bytes(2)


def _stream(octets: memoryview, streams: int) -> int:
    """Return the stream of a message (RFC 4666 1.4.7): DATA uses a stream by its SLS, other messages stream 0; a single stream carries all."""
    if octets[2:4] != _DATA or streams < 2:
        return 0
    label = bytes(octets).find(b"\2\x10", m3ua.HEADER_BYTES)
    return 1 + (octets[label + 15] if label >= 0 else 0) % (streams - 1)


CARRIED = Carried(
    m3ua.PPID,
    m3ua.HEADER_BYTES,
    lambda octets, at: int.from_bytes(octets[at + 4 : at + 8]),
    unordered=False,
    stream=_stream,
)
"""SCTP parameters of M3UA."""


class SigtranConnection(PeerConnection["MapServer"]):
    """Connection of one gateway or MSC."""

    def __init__(
        self, owner: "MapServer", loop: asyncio.AbstractEventLoop, gateway: GatewaySettings | None = None
    ) -> None:
        super().__init__(owner, loop)
        self._waiting: deque[Transfer] = deque()
        self._unread, self._at = b"", 0
        """Received bytes, and the offset up to which they were passed to the association."""
        self._alarm = Alarm(loop, self._due)
        self._read_at = 0.0
        self._requests = self._answers = 0
        self.gateway = gateway
        """Gateway to which the node connects; None: the other end connects."""
        self.association: Association | None = None
        """None before the owner has accepted the connection."""
        self.served = False
        """True if the association has been active."""

    @property
    def is_up(self) -> bool:
        """True if the other end takes part: it is active, or in standby."""
        return self.association is not None and self.association.state in {
            AssociationState.ACTIVE,
            AssociationState.STANDBY,
        }

    @property
    def is_open(self) -> bool:
        """True if the peer is known and takes part."""
        return self.is_up and super().is_open

    @property
    def outgoing(self) -> bool:
        """True if the node connects to a gateway."""
        return self.gateway is not None

    # link.PeerConnection

    def begin(self) -> bool:
        """Let the owner accept or reject the connection; return false if it is rejected."""
        self.association = self.owner.accept(self)
        if self.association is None:
            return False
        self.flush()
        return True

    def data_received(self, data: bytes) -> None:
        """Pass the bytes to the association, in turns."""
        if self.association is None:
            return
        self._read_at = time.perf_counter()
        self._unread, self._at = self._unread[self._at :] + data, 0
        self.request_turn()

    def ended(self) -> None:
        """Stop answering, and report the end of the association."""
        self._forget()
        self._alarm.cancel()
        if self.association is not None:
            self.association.lost()
            self._report_events(self.association)

    def wants_bytes(self) -> bool:
        """Return true if the connection can receive more."""
        return len(self._unread) - self._at < AHEAD_BYTES

    def leave(self) -> None:
        """Send ASPIA and ASPDN, in that order."""
        if self.association is not None:
            self.association.leave(self.loop.time())
            self.flush()

    @property
    def tally(self) -> tuple[int, int]:
        """Number of requests and answers so far."""
        return self._requests, self._answers

    @property
    def end(self) -> str:
        """Reason for the end of the connection; empty while it is open."""
        return self.over or ("" if self.association is None else self.association.over)

    def work(self, enough: Callable[[], bool]) -> bool:
        """Answer received requests until `enough` returns true; return whether requests remain."""
        association, waiting = self.association, self._waiting
        if association is None or self.stalled is not None:
            return False
        answered = 0
        while self._has_work(association):
            if not waiting:
                piece = self._unread[self._at : self._at + PIECE_BYTES]
                self._at += len(piece)
                waiting.extend(association.receive(piece, self.loop.time()))
            else:
                answer = self.owner.transferred(self, waiting.popleft())
                self._requests += 1
                if answer is not None:
                    association.send(answer)
                    answered += 1
            if enough():
                break
        if self._at == len(self._unread):
            self._unread, self._at = b"", 0  # release the memory of an idle connection
        self._answers += answered
        self.flush()
        if answered:
            self.owner.answered(self, answered, time.perf_counter() - self._read_at)
        return self._has_work(association) and self.stalled is None

    def flush(self) -> None:
        """Send the association's bytes, report its events, close a finished connection, and set the timer."""
        association, transport = self.association, self.transport
        if association is None or transport is None:
            return
        if out := association.messages_to_send():
            transport.write(b"".join(out))
        self._report_events(association)
        if association.over:
            self.close()
            return
        self._alarm.set(association.deadline())
        self.set_reading()

    # sctp.SctpProtocol

    def restarted(self) -> None:
        """Handle a restart of the association by the other end; the end that connects brings it up again (RFC 4666 4.2.1)."""
        self._forget()
        if self.gateway is not None or self.association is None:
            self.abort()
            return
        self.association.lost()
        self._report_events(self.association)
        again = self.owner.accept(self)
        if again is None:
            self.abort()
            return
        self.association = again
        self.flush()

    def path_changed(self, address: str, *, up: bool) -> None:
        """Log that a path to the other end was lost or is back."""
        paths = self.paths()
        self.owner.happened(self, AssociationEvent(
            "path_up" if up else "path_down", "answers" if up else "unreachable", {"address": address, "up": sum(paths.values()), "of": len(paths)}
        ))  # fmt: skip

    # inside

    def _forget(self) -> None:
        self._waiting.clear()
        self._unread, self._at = b"", 0

    def _report_events(self, association: Association) -> None:
        for each in association.drain_events():
            if each.event == "m3ua_state" and each.reason == AssociationState.ACTIVE:
                self.served = True
            self.owner.happened(self, each)

    def _has_work(self, association: Association) -> bool:
        """Return true if messages or bytes wait."""
        return bool(self._waiting) or (self._at < len(self._unread) and not association.over)

    def _due(self, now: float) -> None:
        if self.association is not None:
            self.association.timer(now)
            self.flush()

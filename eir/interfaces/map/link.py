"""SIGTRAN connection on the event loop: passes received bytes to the M3UA association, and sends its output."""

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
    """Return the number of the SCTP stream for a message (RFC 4666 1.4.7). `streams`: how many streams the association has.

    The SLS of a DATA message selects its stream. Other messages use stream 0, as all messages do if there is only one stream.
    """
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
    """SIGTRAN connection of the node to a gateway, or of an MSC to the node."""

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
        """True if the M3UA association is active or in standby."""
        return self.association is not None and self.association.state in {
            AssociationState.ACTIVE,
            AssociationState.STANDBY,
        }

    @property
    def is_open(self) -> bool:
        """True if the peer is identified, and the M3UA association is active or in standby."""
        return self.is_up and super().is_open

    @property
    def outgoing(self) -> bool:
        """True if the node opened the connection (to a gateway), false if the other end opened it."""
        return self.gateway is not None

    # link.PeerConnection

    def begin(self) -> bool:
        """Let the server accept or reject this new connection; return false after a rejection."""
        self.association = self.owner.accept(self)
        if self.association is None:
            return False
        self.flush()
        return True

    def data_received(self, data: bytes) -> None:
        """Buffer received bytes, and handle them now or in a later loop iteration."""
        if self.association is None:
            return
        self._read_at = time.perf_counter()
        self._unread, self._at = self._unread[self._at :] + data, 0
        self.request_turn()

    def ended(self) -> None:
        """Discard waiting messages, and log the end of the association."""
        self._forget()
        self._alarm.cancel()
        if self.association is not None:
            self.association.lost()
            self._report_events(self.association)

    def wants_bytes(self) -> bool:
        """Return true if the node can handle or buffer more bytes from the other end."""
        return len(self._unread) - self._at < AHEAD_BYTES

    def leave(self) -> None:
        """Take the M3UA association down gracefully: send ASPIA, then ASPDN."""
        if self.association is not None:
            self.association.leave(self.loop.time())
            self.flush()

    @property
    def tally(self) -> tuple[int, int]:
        """Number of requests, and number of answers, on this connection so far."""
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
        """Send the output of the M3UA association, log its events, and set its timer.

        A connection whose association is over is closed.
        """
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
        """Handle an SCTP restart by the other end: end the association and begin a new one.

        If the node made the connection, the node connects again instead (RFC 4666 4.2.1).
        """
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
        """Log that an SCTP path to the other end has failed or works again."""
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
        """Return true if received messages or unparsed bytes wait."""
        return bool(self._waiting) or (self._at < len(self._unread) and not association.over)

    def _due(self, now: float) -> None:
        if self.association is not None:
            self.association.timer(now)
            self.flush()

"""Diameter connection on the event loop: passes received bytes to the state machine (Peer), and sends its output.

All complete messages of a read are answered in one write, synchronously. The transport is any asyncio transport: `stream` has
functions for TCP and TLS only, and `sctp` a transport with additional information.
"""

import asyncio
import fcntl
import random
import termios
import threading
import time
from collections.abc import Sequence
from typing import Protocol

from eir.wire.diameter.capabilities import IdentifyPeer
from eir.wire.diameter.peer import Closed, DisconnectCause, Event, Opened, Peer
from eir.wire.diameter.serve import NodeContext
from eir.wire.diameter.states import State
from eir.wire.peers.counts import OTHER
from eir.wire.peers.link import STALLED_WRITE, Alarm, ConnectionOwner, PeerConnection
from eir.wire.peers.rate import Limit
from eir.wire.peers.settings import PeerSettings, Requester
from eir.wire.transport.stream import reset

REST_BYTES = 250_000
"""Bytes of a read after which other connections have their turn, because a loop may read one connection repeatedly."""
READ_BYTES = 262_144
"""Maximum number of bytes of one read."""
_WAIT_ADMISSION = State.WAIT_ADMISSION
"""Copy for code that runs on every read: before Python 3.12 the lookup of an enum member is slow."""


class _Place(threading.local):
    """Buffer for received bytes that all connections of a thread share.

    The bytes of a read are handled or copied before the next read. Each thread has its own buffer, so that event loops in
    several threads do not overwrite each other's.
    """

    def __init__(self) -> None:
        self.octets = memoryview(bytearray(READ_BYTES))


_PLACE = _Place()


class DiameterOwner(ConnectionOwner, Protocol):
    """Interface of a connection's owner, a node or a client: callbacks and the shared context."""

    context: NodeContext
    """Limits, counts and other objects that the node's connections share."""

    def accept(self, link: "DiameterConnection") -> Peer | None:
        """Return the state machine for a new connection, or None to close the connection at once."""

    def handle(self, link: "DiameterConnection", event: Event) -> None:
        """Handle one event of the connection."""


class DiameterConnection(PeerConnection[DiameterOwner], asyncio.BufferedProtocol):
    """Diameter connection as an asyncio protocol."""

    def __init__(
        self, owner: DiameterOwner, loop: asyncio.AbstractEventLoop, dialed: PeerSettings | None = None
    ) -> None:
        super().__init__(owner, loop)
        self._place = _PLACE.octets
        self._alarm = Alarm(loop, self._due)
        self._resting = False
        self._ended = False
        self._next_turn: asyncio.Handle | None = None
        self._read_at = 0.0
        self._retransmissions = 0
        self.requester = Requester(OTHER)
        self.peer: Peer | None = None
        """State machine; None before the owner has accepted the connection."""
        self.dialed = dialed
        """Entry of the peer to which the node makes this connection; None for an incoming connection."""
        self.opened = 0.0
        """Unix time of the capabilities exchange; 0 before it."""
        self.fault: Exception | None = None
        """Error that ended the connection, if the transport reported one."""
        self.locals: Sequence[str] = ()
        """IP addresses of this end. SCTP may have several, which all stand in a CER or CEA (RFC 6733 5.3.1)."""

    # link.PeerConnection

    def begin(self) -> bool:
        """Let the owner (node or client) accept or reject this new connection; return false after a rejection."""
        if self.transport is None:
            return False
        try:
            addresses = self.transport.get_extra_info("local_addresses")
            self.locals = addresses or (self.transport.get_extra_info("sockname")[0],)
        except (TypeError, IndexError, OSError):
            return False  # the other end closed before the loop handled the connection
        self.peer = self.owner.accept(self)
        if self.peer is None:
            return False
        self.pump()
        return True

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - the size is fixed
        """Return the buffer into which the transport reads."""
        return self._place

    def buffer_updated(self, nbytes: int) -> None:
        """Handle the `nbytes` bytes that the transport has read into the buffer."""
        self.data_received(self._place[:nbytes])

    def data_received(self, data: bytes | memoryview) -> None:
        """Pass received bytes to the state machine, and send its answers. The caller may then overwrite `data`."""
        if (peer := self.peer) is None:
            return
        self._read_at = time.perf_counter()
        if len(data) >= REST_BYTES:
            self._resting = True
            self.loop.call_soon(self._rested)
        self._turn(peer, data)

    def eof_received(self) -> bool:
        """Answer the requests received before the end of the stream, then let the transport close."""
        if (peer := self.peer) is None:
            return False
        if peer.more and self.transport is not None and self.transport.can_write_eof():
            self._ended = True  # TLS and SCTP cannot be closed in one direction only
            return True
        peer.end(self.loop.time())
        self.pump()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Handle the end of the transport: end the state machine, and cancel its timer."""
        self.fault = exc
        self._alarm.cancel()
        if (peer := self.peer) is not None:
            peer.end(self.loop.time())
            self._hand_out(peer)
            self.peer = None
        super().connection_lost(exc)

    def wants_bytes(self) -> bool:
        """Return true if the connection can handle received bytes now, so that the socket should be read."""
        peer = self.peer
        return peer is not None and not peer.more and not self._resting and peer.state is not _WAIT_ADMISSION

    def request_turn(self) -> None:
        """Handle the next portion of the buffered messages now, unless a later turn for this connection is already scheduled."""
        if self._next_turn is None:
            self._run_next_turn()

    def leave(self, why: str = "stopped") -> None:
        """Disconnect: by a DPR if the capabilities are exchanged, otherwise at once. `why`: reason in the log."""
        if self.peer is None:
            self.abort()  # it is in its handshake
            return
        self.peer.stop(DisconnectCause.REBOOTING, self.loop.time(), why)
        self.pump()

    def identified(self, settings: PeerSettings, requester: Requester, rates: Sequence[Limit]) -> None:
        """Store the identity of the peer after the capabilities exchange: entry in the peer table, requester, and rate limits."""
        super().identified(settings, requester, rates)
        if self.peer is not None:
            self.peer.limit(rates)

    def close_stalled(self) -> None:
        """Count and log that the peer does not read its answers; close the connection."""
        if self.peer is not None:
            self.owner.context.counts.errors[STALLED_WRITE] += 1
            self.peer.traffic.report("connection_fault", STALLED_WRITE, detail="the peer does not read its answers")
        super().close_stalled()

    @property
    def tally(self) -> tuple[int, int]:
        """Number of requests, and number of answers, on this connection so far."""
        return (0, 0) if self.peer is None else (self.peer.traffic.requests, self.peer.traffic.answers)

    @property
    def outgoing(self) -> bool:
        """True if the node opened the connection, false if the peer did."""
        return self.dialed is not None

    @property
    def is_open(self) -> bool:
        """True if the capabilities are exchanged."""
        return self.peer is not None and self.peer.state is State.OPEN

    # sctp.SctpProtocol

    def restarted(self) -> None:
        """Handle an SCTP restart by the other end: end this connection and begin a new one (RFC 6733 5.6)."""
        peer = self.peer
        if peer is None:
            return
        self.owner.context.counts.sctp_restarts[peer.traffic.label] += 1
        peer.traffic.report("association_restarted", "restarted", address=self.address)
        peer.drop("restarted", self.loop.time())
        self._hand_out(peer)
        self.peer = None
        if self.dialed is not None:
            self.abort()  # it is clear who sends the CER only if the other end makes the connection
            return
        self._alarm.cancel()
        if self.stalled is not None:
            self.resume_writing()
        self.settings, self.requester = None, Requester(OTHER)
        self.since, self.opened = time.time(), 0.0
        self.peer = self.owner.accept(self)
        self.pump()

    def path_changed(self, address: str, *, up: bool) -> None:
        """Log that an SCTP path to the peer has failed or works again.

        The connection stays up while another path works.
        """
        if self.peer is not None:
            paths = self.paths()
            self.peer.traffic.report(
                "path_up" if up else "path_down", "answers" if up else "unreachable", level="info" if up else "warning", address=address,
                up=sum(paths.values()), of=len(paths),
            )  # fmt: skip

    # Calls of the owner

    def retransmitted(self) -> int:
        """Return the number of DATA chunks retransmitted since the last call; 0 if the transport has no count."""
        so_far = self.transport.get_extra_info("retransmissions", 0) if self.transport is not None else 0
        before, self._retransmissions = self._retransmissions, max(so_far, self._retransmissions)
        return self._retransmissions - before

    def has_unread(self) -> bool:
        """Return true if the socket holds unread bytes."""
        end = self.transport.get_extra_info("socket") if self.transport is not None else None
        try:
            return end is not None and fcntl.ioctl(end.fileno(), termios.FIONREAD, bytes(4)) != bytes(4)
        except OSError:
            return False

    def new_peer(self, identify: IdentifyPeer) -> Peer:
        """Create the state machine of this connection."""
        self.peer = Peer(
            self.owner.context, identify, addresses=self.locals, now=self.loop.time(), first_id=random.getrandbits(32),
            secure=self.names is not None, remote=self.address,
        )  # fmt: skip
        return self.peer

    def pump(self) -> None:
        """Send the state machine's output, pass its events to the owner, and set its timer. After a `Closed` event, close the transport."""
        peer, transport = self.peer, self.transport
        if peer is None or transport is None:
            return
        closed: Closed | None = None
        while True:
            out = peer.data_to_send()
            if out:
                transport.write(out)
            if not peer.events:
                break
            closed = self._hand_out(peer) or closed
        if closed is not None:
            self._alarm.cancel()
            if closed.reset:
                reset(transport)
            else:
                self.close()
            return
        self._alarm.set(peer.deadline())
        if self.reading is not (self.stalled is None and self.wants_bytes()):
            self.set_reading()
        if peer.more and self._next_turn is None:
            self._next_turn = self.loop.call_soon(self._after_others)

    # Inside

    def _hand_out(self, peer: Peer) -> Closed | None:
        """Pass the events of the state machine to the owner; return the Closed event, if there is one."""
        closed: Closed | None = None
        for event in peer.clear_events():
            if isinstance(event, Closed):
                closed = event
            elif isinstance(event, Opened):
                self.opened = time.time()
            self.owner.handle(self, event)
        return closed

    def _turn(self, peer: Peer, data: bytes | memoryview) -> bool:
        """Handle received messages, up to the limit of one iteration of the event loop; return true if messages remain."""
        before = peer.traffic.answers
        peer.receive(data, self.loop.time())
        self.pump()
        answered = peer.traffic.answers - before
        if answered:
            counts = self.owner.context.counts
            counts.durations.add(time.perf_counter() - self._read_at, answered)
            counts.last_request[peer.traffic.label] = time.time()
        if self._ended and not peer.more:
            peer.end(self.loop.time())
            self.pump()
        return peer.more

    def _run_next_turn(self) -> None:
        """Handle the next portion of the buffered messages, unless the peer does not read its answers."""
        self._next_turn = None
        if (peer := self.peer) is None or not peer.more or self.stalled is not None:
            return
        following = self._next_turn = self.loop.call_soon(self._run_next_turn)  # reads come before it
        if not self._turn(peer, b""):
            following.cancel()
            self._next_turn = None

    def _after_others(self) -> None:
        """Schedule the next messages of this connection, so that bytes from other connections are handled before them.

        A direct `call_soon` would run before the reads of other connections.
        """
        self._next_turn = self.loop.call_soon(self._run_next_turn)

    def _rested(self) -> None:
        self._resting = False
        self.set_reading()

    def _due(self, now: float) -> None:
        if self.peer is not None:
            if self.peer.deadline() is not None:
                self.peer.timer(now)
            self.pump()

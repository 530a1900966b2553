"""One Diameter connection on the event loop: what comes in goes to the Peer, what it has to say goes out.

All complete messages of a read are answered in one write, synchronously. The transport may be any that does what those of asyncio do:
`stream` has what only TCP and TLS have, `sctp` one that tells more. Knows nothing of other connections.
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
"""After a read of this size other connections have their turn: a loop may read one connection again and again."""
READ_BYTES = 262_144
"""A read takes so much at most."""
_WAIT_ADMISSION = State.WAIT_ADMISSION
"""A copy for the code that runs on every read: before Python 3.12 the look-up of an enum's member counts there."""


class _Place(threading.local):
    """All connections of a thread are read into it, one at a time: what came is dealt with, or copied, before the next read.

    Each thread has one of its own, so that loops in several threads do not overwrite each other's.
    """

    def __init__(self) -> None:
        self.octets = memoryview(bytearray(READ_BYTES))


_PLACE = _Place()


class DiameterOwner(ConnectionOwner, Protocol):
    """Callbacks of a connection's owner."""

    context: NodeContext
    """Limits, counts and everything else that the node's connections share."""

    def accept(self, link: "DiameterConnection") -> Peer | None:
        """A connection stands: the peer that speaks on it, or None to close it at once."""

    def handle(self, link: "DiameterConnection", event: Event) -> None:
        """Something happened on the connection."""


class DiameterConnection(PeerConnection[DiameterOwner], asyncio.BufferedProtocol):
    """The connection."""

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
        """None before the owner has accepted the connection."""
        self.dialed = dialed
        """The peer that we make this connection to; None: the other end makes it."""
        self.opened = 0.0
        """Unix time at which the capabilities were exchanged; 0: not yet."""
        self.fault: Exception | None = None
        """The error that ended the connection, if the transport reported one."""
        self.locals: Sequence[str] = ()
        """IP addresses of our end: with SCTP there may be several, and all are named in a CER or CEA (RFC 6733 5.3.1)."""

    # link.PeerConnection

    def begin(self) -> bool:
        """Ask the owner whether the connection is wanted."""
        if self.transport is None:
            return False
        try:
            addresses = self.transport.get_extra_info("local_addresses")
            self.locals = addresses or (self.transport.get_extra_info("sockname")[0],)
        except (TypeError, IndexError, OSError):
            return False  # the other end was gone before the loop came to it
        self.peer = self.owner.accept(self)
        if self.peer is None:
            return False
        self.pump()
        return True

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - it is always this one
        """The place that the transport reads into."""
        return self._place

    def buffer_updated(self, nbytes: int) -> None:
        """So many bytes were read."""
        self.data_received(self._place[:nbytes])

    def data_received(self, data: bytes | memoryview) -> None:
        """Hand the bytes to the peer, and send what it answers. They may change afterwards."""
        if (peer := self.peer) is None:
            return
        self._read_at = time.perf_counter()
        if len(data) >= REST_BYTES:
            self._resting = True
            self.loop.call_soon(self._rested)
        self._turn(peer, data)

    def eof_received(self) -> bool:
        """The peer will send nothing more; what it asked before is answered, then the transport closes."""
        if (peer := self.peer) is None:
            return False
        if peer.more and self.transport is not None and self.transport.can_write_eof():
            self._ended = True  # TLS and SCTP have no half of a connection
            return True
        peer.end(self.loop.time())
        self.pump()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is gone, for any reason."""
        self.fault = exc
        self._alarm.cancel()
        if (peer := self.peer) is not None:
            peer.end(self.loop.time())
            self._hand_out(peer)
            self.peer = None
        super().connection_lost(exc)

    def wants_bytes(self) -> bool:
        """True if what is read can be dealt with at once."""
        peer = self.peer
        return peer is not None and not peer.more and not self._resting and peer.state is not _WAIT_ADMISSION

    def go_on(self) -> None:
        """Handle the rest of what came, unless its turn comes anyway."""
        if self._next_turn is None:
            self._go_on()

    def leave(self, why: str = "stopped") -> None:
        """End the connection in order, by a DPR where it is open. `why`: the reason in the log."""
        if self.peer is None:
            self.abort()  # it is in its handshake
            return
        self.peer.stop(DisconnectCause.REBOOTING, self.loop.time(), why)
        self.pump()

    def identified(self, settings: PeerSettings, requester: Requester, rates: Sequence[Limit]) -> None:
        """Its entry of the peer table was found, and with it who asks and the limits of its requests."""
        super().identified(settings, requester, rates)
        if self.peer is not None:
            self.peer.limit(rates)

    def give_up(self) -> None:
        """The peer has left its answers unread for too long."""
        if self.peer is not None:
            self.owner.context.counts.errors[STALLED_WRITE] += 1
            self.peer.traffic.report("connection_fault", STALLED_WRITE, detail="the peer does not read its answers")
        super().give_up()

    @property
    def tally(self) -> tuple[int, int]:
        """Requests and answers so far."""
        return (0, 0) if self.peer is None else (self.peer.traffic.requests, self.peer.traffic.answers)

    @property
    def outgoing(self) -> bool:
        """We connect to the peer."""
        return self.dialed is not None

    @property
    def is_open(self) -> bool:
        """The capabilities are exchanged."""
        return self.peer is not None and self.peer.state is State.OPEN

    # sctp.Receiver

    def restarted(self) -> None:
        """The other end restarted the association: as if it had gone and another one had come (RFC 6733 5.6)."""
        peer = self.peer
        if peer is None:
            return
        self.owner.context.counts.sctp_restarts[peer.traffic.label] += 1
        peer.traffic.report("association_restarted", "restarted", address=self.address)
        peer.drop("restarted", self.loop.time())
        self._hand_out(peer)
        self.peer = None
        if self.dialed is not None:
            self.abort()  # whose CER is due is plain only where the other end connects to us
            return
        self._alarm.cancel()
        if self.stalled is not None:
            self.resume_writing()
        self.settings, self.requester = None, Requester(OTHER)
        self.since, self.opened = time.time(), 0.0
        self.peer = self.owner.accept(self)
        self.pump()

    def path_changed(self, address: str, *, up: bool) -> None:
        """One of the paths to the peer was lost, or is back: no outage, as long as there is another."""
        if self.peer is not None:
            paths = self.paths()
            self.peer.traffic.report(
                "path_up" if up else "path_down", "answers" if up else "unreachable", level="info" if up else "warning", address=address,
                up=sum(paths.values()), of=len(paths),
            )  # fmt: skip

    # What the owner calls

    def retransmitted(self) -> int:
        """DATA chunks that were sent again since the last call; 0 over a transport that does not tell."""
        so_far = self.transport.get_extra_info("retransmissions", 0) if self.transport is not None else 0
        before, self._retransmissions = self._retransmissions, max(so_far, self._retransmissions)
        return self._retransmissions - before

    def has_unread(self) -> bool:
        """True if bytes have come that nobody has read yet."""
        end = self.transport.get_extra_info("socket") if self.transport is not None else None
        try:
            return end is not None and fcntl.ioctl(end.fileno(), termios.FIONREAD, bytes(4)) != bytes(4)
        except OSError:
            return False

    def new_peer(self, identify: IdentifyPeer) -> Peer:
        """A peer that speaks on this connection."""
        self.peer = Peer(
            self.owner.context, identify, addresses=self.locals, now=self.loop.time(), first_id=random.getrandbits(32),
            secure=self.names is not None, remote=self.address,
        )  # fmt: skip
        return self.peer

    def pump(self) -> None:
        """Do what the peer wants done: hand out its events, write its bytes, close, set its timer."""
        peer, transport = self.peer, self.transport
        if peer is None or transport is None:
            return
        closed: Closed | None = None
        while True:
            out = peer.take()
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
        """Give the owner the peer's events; return the end, if it is one of them."""
        closed: Closed | None = None
        for event in peer.take_events():
            if isinstance(event, Closed):
                closed = event
            elif isinstance(event, Opened):
                self.opened = time.time()
            self.owner.handle(self, event)
        return closed

    def _turn(self, peer: Peer, data: bytes | memoryview) -> bool:
        """Handle a turn's share of what came; returns whether more is left."""
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

    def _go_on(self) -> None:
        """The next turn, unless the peer leaves answers unread: then when it has read them."""
        self._next_turn = None
        if (peer := self.peer) is None or not peer.more or self.stalled is not None:
            return
        following = self._next_turn = self.loop.call_soon(self._go_on)  # what is read meanwhile comes before it
        if not self._turn(peer, b""):
            following.cancel()
            self._next_turn = None

    def _after_others(self) -> None:
        """Let others have their turn: what a read itself calls soon would come before the reads of the next poll."""
        self._next_turn = self.loop.call_soon(self._go_on)

    def _rested(self) -> None:
        self._resting = False
        self.set_reading()

    def _due(self, now: float) -> None:
        if self.peer is not None:
            if self.peer.deadline() is not None:
                self.peer.timer(now)
            self.pump()

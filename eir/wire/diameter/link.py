"""One transport connection on the event loop: what comes in goes to the Peer, what it has to say goes out.

All complete messages of a read are answered in one write, synchronously. Memory is bounded: nothing is read while the
peer leaves its answers unread, and such a peer is dropped after a while. The transport may be any that does what those of
asyncio do: `stream` has what only TCP and TLS have, `sctp` one that tells more. Knows nothing of other connections.
"""

import asyncio
import fcntl
import random
import socket
import termios
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Protocol, cast

from eir.wire.diameter.capabilities import IdentifyPeer
from eir.wire.diameter.peer import Closed, Event, Peer
from eir.wire.diameter.serve import NodeContext
from eir.wire.diameter.states import State
from eir.wire.peers.settings import PeerSettings
from eir.wire.transport.endpoint import address_text
from eir.wire.transport.settings import source_address
from eir.wire.transport.stream import certificate_names, reset

REST_BYTES = 250_000
"""After a read of this size other connections have their turn: a loop may read one connection again and again."""
READ_BYTES = 262_144
"""A read takes so much at most."""


class _Place(threading.local):
    """All connections of a thread are read into it, one at a time: what came is dealt with, or copied, before the next read.

    Each thread has one of its own, so that loops in several threads do not overwrite each other's.
    """

    def __init__(self) -> None:
        self.octets = memoryview(bytearray(READ_BYTES))


_PLACE = _Place()


class Owner(Protocol):
    """Callbacks of a connection's owner."""

    context: NodeContext
    """Limits, counts and everything else that the node's connections share."""

    def accept(self, link: "Link") -> Peer | None:
        """A connection stands: the peer that speaks on it, or None to close it at once."""

    def handle(self, link: "Link", event: Event) -> None:
        """Something happened on the connection."""

    def lost(self, link: "Link") -> None:
        """The connection is gone; nothing more will come from it."""


class Link(asyncio.BufferedProtocol):
    """The connection."""

    def __init__(self, owner: Owner, loop: asyncio.AbstractEventLoop, dialed: PeerSettings | None = None) -> None:
        self._owner = owner
        self._loop = loop
        self._place = _PLACE.octets
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._stalled: asyncio.TimerHandle | None = None
        self._reading = True
        self._resting = False
        self._ended = False
        self._next_turn: asyncio.Handle | None = None
        self._read_at = 0.0
        self._retransmissions = 0
        self._raw: socket.socket | None = None
        self.peer: Peer | None = None
        """None before the owner has accepted the connection."""
        self.number = -1
        """The owner's number for it; -1: not numbered yet."""
        self.dialed = dialed
        """The peer that we make this connection to; None: the other end makes it."""
        self.since = 0.0
        """Unix time of the connection's beginning."""
        self.opened = 0.0
        """Unix time at which the capabilities were exchanged; 0: not yet."""
        self.address = ""
        self.source: IPv4Address | IPv6Address = IPv4Address(0)
        """`ip:port` and IP address of the other end."""
        self.fault: Exception | None = None
        """The error that ended the connection, if the transport reported one."""
        self.locals: Sequence[str] = ()
        """IP addresses of our end: with SCTP there may be several, and all are named in a CER or CEA (RFC 6733 5.3.1)."""
        self.closed: asyncio.Future[None] = loop.create_future()
        """Done when the connection is gone."""

    # asyncio.BufferedProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask the owner whether the connection is wanted."""
        self._transport = cast("asyncio.Transport", transport)
        self._raw = None
        self.since = time.time()
        try:
            self._see(transport.get_extra_info("peername"))
            self.locals = transport.get_extra_info("local_addresses") or (transport.get_extra_info("sockname")[0],)
        except (TypeError, ValueError, IndexError, OSError):
            # The other end was gone before the loop came to it.
            self._transport.abort()
            return
        self._transport.set_write_buffer_limits(high=self._owner.context.limits.write_buffer_bytes)
        self.peer = self._owner.accept(self)
        if self.peer is None:
            self._transport.abort()
            return
        self.pump()

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
            self._loop.call_soon(self._rested)
        self._turn(peer, data)

    def eof_received(self) -> bool:
        """The peer will send nothing more; what it asked before is answered, then the transport closes."""
        if (peer := self.peer) is None:
            return False
        if (
            peer.more and self._transport is not None and self._transport.can_write_eof()
        ):  # TLS and SCTP have no half of a connection
            self._ended = True
            return True
        peer.end(self._loop.time())
        self.pump()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is gone, for any reason."""
        self.fault = exc
        for timer in (self._timer, self._stalled):
            if timer is not None:
                timer.cancel()
        self._timer = self._stalled = None
        if (peer := self.peer) is not None:
            peer.end(self._loop.time())
            events, peer.events = peer.events, []
            for event in events:
                self._owner.handle(self, event)
            self.peer = None
        self._owner.lost(self)
        self.over()

    def pause_writing(self) -> None:
        """The peer does not read: stop reading from it, and give it a while."""
        self._stalled = self._loop.call_later(self._owner.context.limits.stalled_write_s, self._give_up)
        self._set_reading()

    def resume_writing(self) -> None:
        """The peer reads again."""
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
        self._set_reading()
        if self._next_turn is None:
            self._go_on()

    # sctp.Receiver

    def restarted(self) -> None:
        """The other end restarted the association: as if it had gone and another one had come (RFC 6733 5.6)."""
        peer = self.peer
        if peer is None:
            return
        self._owner.context.counts.sctp_restarts[peer.traffic.label] += 1
        peer.traffic.report("association_restarted", "restarted", address=self.address)
        peer.drop("restarted", self._loop.time())
        events, peer.events = peer.events, []
        for event in events:
            self._owner.handle(self, event)
        self.peer = None
        if self.dialed is not None:
            self.abort()  # whose CER is due is plain only where the other end connects to us
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._stalled is not None:
            self.resume_writing()
        self.since, self.opened = time.time(), 0.0
        self.peer = self._owner.accept(self)
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

    def paths(self) -> Mapping[str, bool]:
        """Addresses of the peer, and whether each is reached; none over a transport that knows no paths."""
        found: Mapping[str, bool] | None = (
            self._transport.get_extra_info("paths") if self._transport is not None else None
        )
        return found or {}

    def retransmitted(self) -> int:
        """DATA chunks that were sent again since the last call; 0 over a transport that does not tell."""
        so_far = self._transport.get_extra_info("retransmissions", 0) if self._transport is not None else 0
        before, self._retransmissions = self._retransmissions, max(so_far, self._retransmissions)
        return self._retransmissions - before

    def has_unread(self) -> bool:
        """True if bytes have come that nobody has read yet."""
        end = self._raw or (self._transport.get_extra_info("socket") if self._transport is not None else None)
        try:
            return end is not None and fcntl.ioctl(end.fileno(), termios.FIONREAD, bytes(4)) != bytes(4)
        except OSError:
            return False

    def expect(self, connection: socket.socket) -> None:
        """Its TLS handshake begins; `abort` ends it, too. Raises OSError if the other end is gone already."""
        self._see(connection.getpeername())
        self._raw = connection

    def over(self) -> None:
        """The connection does not exist: the handshake failed, or the transport is gone."""
        self._raw = None
        if not self.closed.done():
            self.closed.set_result(None)

    def new_peer(self, identify: IdentifyPeer) -> Peer:
        """A peer that speaks on this connection."""
        return Peer(
            self._owner.context, identify, addresses=self.locals, now=self._loop.time(), first_id=random.getrandbits(32),
            secure=self.certificate_names() is not None, remote=self.address,
        )  # fmt: skip

    def pump(self) -> None:
        """Do what the peer wants done: hand out its events, write its bytes, close, set its timer."""
        peer, transport = self.peer, self._transport
        if peer is None or transport is None:
            return
        closed: Closed | None = None
        while True:
            out = peer.take()
            if out:
                transport.write(out)
            if not peer.events:
                break
            events, peer.events = peer.events, []
            for event in events:
                if isinstance(event, Closed):
                    closed = event
                self._owner.handle(self, event)
        if closed is not None:
            self._close(transport, closed)
            return
        self._set_timer(peer)
        self._set_reading()
        if peer.more and self._next_turn is None:
            self._next_turn = self._loop.call_soon(self._after_others)

    def abort(self) -> None:
        """Close at once, even if something is unsent."""
        if self._transport is not None:
            self._transport.abort()
        elif self._raw is not None:
            with suppress(OSError):
                self._raw.shutdown(socket.SHUT_RDWR)

    def certificate_names(self) -> Sequence[str] | None:
        """Names in the certificate of the other end; None without TLS, empty without a certificate."""
        return certificate_names(self._transport) if self._transport is not None else None

    # Inside

    def _see(self, address: Sequence[Any]) -> None:
        host, port = address[:2]
        self.source = source_address(host)
        self.address = address_text([host], port)

    def _turn(self, peer: Peer, data: bytes | memoryview) -> bool:
        """Handle a turn's share of what came; returns whether more is left."""
        before = peer.traffic.answers
        peer.receive(data, self._loop.time())
        self.pump()
        answered = peer.traffic.answers - before
        if answered:
            counts = self._owner.context.counts
            counts.durations.add(time.perf_counter() - self._read_at, answered)
            counts.last_request[peer.traffic.label] = time.time()
        if self._ended and not peer.more:
            peer.end(self._loop.time())
            self.pump()
        return peer.more

    def _go_on(self) -> None:
        """The next turn, unless the peer leaves answers unread: then when it has read them."""
        self._next_turn = None
        if (peer := self.peer) is None or not peer.more or self._stalled is not None:
            return
        following = self._next_turn = self._loop.call_soon(self._go_on)  # what is read meanwhile comes before it
        if not self._turn(peer, b""):
            following.cancel()
            self._next_turn = None

    def _after_others(self) -> None:
        """Let others have their turn: what a read itself calls soon would come before the reads of the next poll."""
        self._next_turn = self._loop.call_soon(self._go_on)

    def _rested(self) -> None:
        self._resting = False
        self._set_reading()

    def _set_reading(self) -> None:
        """Read only while what is read can be dealt with at once."""
        peer, transport = self.peer, self._transport
        if peer is None or transport is None or transport.is_closing():
            return
        wanted = (
            self._stalled is None and not self._resting and not peer.more and peer.state is not State.WAIT_ADMISSION
        )
        if wanted is not self._reading:
            self._reading = wanted
            (transport.resume_reading if wanted else transport.pause_reading)()

    def _set_timer(self, peer: Peer) -> None:
        due = peer.deadline()
        if due is None or (self._timer is not None and self._timer_at <= due):
            return  # A timer that comes too early finds nothing to do, and sets the right one.
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = due
        self._timer = self._loop.call_at(due, self._timer_ran_out)

    def _timer_ran_out(self) -> None:
        self._timer = None
        if self.peer is not None:
            if self.peer.deadline() is not None:
                # The loop's clock is that of the iteration's start, which may lie a little before the timer's time.
                self.peer.timer(max(self._loop.time(), self._timer_at))
            self.pump()

    def _give_up(self) -> None:
        self._stalled = None
        if self.peer is not None:
            self._owner.context.counts.errors["stalled_write"] += 1
            self.peer.traffic.report("connection_fault", "stalled_write", detail="the peer does not read its answers")
        self.abort()

    def _close(self, transport: asyncio.Transport, closed: Closed) -> None:
        if self._timer is not None:
            self._timer.cancel()
        # What is still unsent may go out, but not for ever, however slowly the peer reads it.
        self._timer = self._loop.call_later(self._owner.context.limits.stalled_write_s, self.abort)
        if closed.reset:
            reset(transport)
        else:
            transport.close()

"""Base class of connections with peers in any protocol. It limits the time of a connection in each iteration of the event loop.

A protocol derives from PeerConnection. Requests are answered in the callback that read them, or under load in the next turn of
the loop. All connections together have a fraction of a millisecond per turn, so that connections of other protocols are not
delayed. Memory is bounded: while a peer does not read its answers, nothing is read from it, and after a while the connection is
closed.
"""

import asyncio
import itertools
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Generic, Protocol, TypeVar, cast

from eir.wire.peers.rate import NO_LIMITS, Limit
from eir.wire.peers.settings import Limits, PeerSettings, Requester
from eir.wire.transport.endpoint import address_text
from eir.wire.transport.settings import source_address
from eir.wire.transport.stream import Handshake, certificate_names

TURN_S = 0.00015
"""Seconds that all connections together may take in one turn of the loop.

A Diameter peer of the same process waits at most that long, and its own checks take as long; a longer turn would save some
reads and writes.
"""
_numbers = itertools.count()
"""Numbers of connections, over all protocols in the process."""
STALLED_WRITE = "stalled_write"
"""Reason of the end of a connection whose peer did not read its answers."""


class Turns:
    """Scheduler that limits the time which each connection uses in one iteration of the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.waiting: OrderedDict[PeerConnection[Any], None] = OrderedDict()
        """Connections with unhandled bytes, in the order of their turns."""
        self._until = 0.0
        """Time when this turn ends."""
        self._next: asyncio.Handle | None = None

    def request(self, link: "PeerConnection[Any]") -> None:
        """Let a connection handle received bytes: now, or under load in a later iteration of the event loop.

        Afterwards the connection reads only if it can buffer more (`wants_bytes`).
        """
        if link in self.waiting:
            link.set_reading()
            return
        now = time.perf_counter()
        if self._next is None:
            self._until = now + TURN_S
            self._next = self._loop.call_soon(self._turn)
        if self.waiting or now >= self._until:
            self._wait(link)
        else:
            self._run(link, self._until)

    def is_waiting(self, link: "PeerConnection[Any]") -> bool:
        """Return true if a connection waits until a later iteration of the event loop."""
        return link in self.waiting

    def _wait(self, link: "PeerConnection[Any]") -> None:
        self.waiting[link] = None
        link.set_reading()

    def _run(self, link: "PeerConnection[Any]", until: float) -> None:
        if link.work(lambda: time.perf_counter() >= until):
            self._wait(link)
        else:
            link.set_reading()

    def _turn(self) -> None:
        """Let waiting connections handle their bytes, for at most TURN_S in this iteration of the event loop."""
        self._next = None
        now = time.perf_counter()
        self._until = now + TURN_S
        while self.waiting and now < self._until:
            link, _ = self.waiting.popitem(last=False)
            self._run(link, self._until)
            now = time.perf_counter()
        if self.waiting:
            self._next = self._loop.call_soon(self._turn)


class Alarm:
    """Timer that calls one function at the earliest of several deadlines.

    `ring` receives the time. If no deadline has passed yet, it sets the next one.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, ring: Callable[[float], None]) -> None:
        self._loop = loop
        self._ring = ring
        self._timer: asyncio.TimerHandle | None = None
        self._at = 0.0

    def set(self, due: float | None) -> None:
        """Set the alarm to the time `due` (loop's clock), unless it is already set to an earlier time. Without `due`, do nothing."""
        if due is None or (self._timer is not None and self._at <= due):
            return  # an early timer finds nothing due, and sets the next deadline
        self.cancel()
        self._at = due
        self._timer = self._loop.call_at(due, self._ran_out)

    def cancel(self) -> None:
        """Cancel the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ran_out(self) -> None:
        self._timer = None
        # The loop's time is the start of the iteration, which may be slightly before the timer's time.
        self._ring(max(self._loop.time(), self._at))


class ConnectionOwner(Protocol):
    """Interface of a connection's owner: limits, scheduler, and a callback."""

    limits: Limits
    turns: Turns

    def lost(self, link: Any) -> None:
        """Handle the end of the connection `link`."""


Owner = TypeVar("Owner", bound=ConnectionOwner)


class PeerConnection(asyncio.BaseProtocol, Generic[Owner]):
    """Base class of a connection with a peer.

    A protocol implements the start (`begin`), received bytes (`data_received`) and the scheduled work (`work`).
    """

    def __init__(self, owner: Owner, loop: asyncio.AbstractEventLoop) -> None:
        self.owner = owner
        self.loop = loop
        self.transport: asyncio.Transport | None = None
        self.number = next(_numbers)
        """Number of the connection, unique in the process."""
        self.since = 0.0
        """Unix time when the connection was made."""
        self.address = ""
        self.source: IPv4Address | IPv6Address = IPv4Address(0)
        """`ip:port` and IP address of the other end."""
        self.settings: PeerSettings | None = None
        """Entry of the peer table; None before the identification, or if no entry matches."""
        self.requester = Requester("")
        self.rates: Sequence[Limit] = NO_LIMITS
        """Limits on its requests."""
        self.stalled: asyncio.TimerHandle | None = None
        """Timer while the peer does not read: when the connection is closed."""
        self.over = ""
        """Reason for which the node ended the connection."""
        self.closed: asyncio.Future[None] = loop.create_future()
        """Future that is done when the connection has ended."""
        self.reading = True
        self._closing: asyncio.TimerHandle | None = None

    # Implemented by a protocol

    def begin(self) -> bool:
        """Start the protocol on a new connection; return False if the owner must close the connection at once."""
        raise NotImplementedError

    def data_received(self, data: bytes) -> None:
        """Handle bytes that were received from the peer."""
        raise NotImplementedError

    def work(self, enough: Callable[[], bool]) -> bool:
        """Answer received requests until `enough` returns true; return true if requests remain."""
        raise NotImplementedError

    def leave(self) -> None:
        """Announce the end of the connection by the protocol's own message, and close it."""
        raise NotImplementedError

    def tick(self, now: float) -> None:
        """Close the connection if one of its time limits has passed. A server calls this periodically after `Server.watch`."""

    def wants_bytes(self) -> bool:
        """Return true if the connection can handle or buffer more received bytes."""
        raise NotImplementedError

    def ended(self) -> None:
        """Release the protocol's resources after the end of the connection. The owner has handled the end before this call."""

    @property
    def tally(self) -> tuple[int, int]:
        """Number of requests, and number of answers, on this connection so far."""
        raise NotImplementedError

    @property
    def end(self) -> str:
        """Reason for the end of the connection; empty if the peer closed it."""
        return self.over

    @property
    def outgoing(self) -> bool:
        """True if the node opened the connection, false if the peer did."""
        return False

    @property
    def is_open(self) -> bool:
        """True if the peer is identified and may send requests."""
        return self.settings is not None

    # asyncio.BaseProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the address of the other end, and start the protocol."""
        self.transport = cast("asyncio.Transport", transport)
        self.since = time.time()
        try:
            self._locate(transport.get_extra_info("peername"))
        except (TypeError, ValueError):
            self.transport.abort()  # the other end closed before the loop handled the connection
            return
        self.transport.set_write_buffer_limits(high=self.owner.limits.write_buffer_bytes)
        if not self.begin():
            self.transport.abort()

    def eof_received(self) -> bool:
        """Handle the end of the received stream. If the result is true, the transport stays open for remaining answers."""
        return False

    def connection_lost(self, _exc: Exception | None) -> None:
        """Handle the end of the transport: cancel the timers and inform the owner."""
        self.gone()  # first, so that waiting tasks continue even after a fault below
        for timer in (self._closing, self.stalled):
            if timer is not None:
                timer.cancel()
        self.owner.lost(self)
        self.ended()

    def pause_writing(self) -> None:
        """Stop reading from a peer that does not read its answers, and start the timer that closes its connection."""
        self.stalled = self.loop.call_later(self.owner.limits.stalled_write_s, self.close_stalled)
        self.set_reading()

    def resume_writing(self) -> None:
        """Cancel the timer that would close the connection, and read requests again. The peer now reads its answers."""
        if self.stalled is not None:
            self.stalled.cancel()
            self.stalled = None
        self.set_reading()
        self.request_turn()

    # Calls of a protocol and of the owner

    def expect(self, connection: socket.socket) -> None:
        """Store the socket of a connection before its TLS handshake, so that `abort` can close the connection during the handshake.

        Raises:
            OSError: if the other end has closed.
        """
        self._locate(connection.getpeername())
        self.transport = Handshake(connection)

    def gone(self) -> None:
        """Mark the connection as ended. The transport calls this also after a failed handshake."""
        if not self.closed.done():
            self.closed.set_result(None)

    def identified(self, settings: PeerSettings, requester: Requester, rates: Sequence[Limit]) -> None:
        """Store the identity of the peer: entry in the peer table, requester, and rate limits."""
        self.settings, self.requester, self.rates = settings, requester, rates

    @property
    def names(self) -> Sequence[str] | None:
        """Names in the certificate of the peer; None without TLS, empty if the peer has sent no certificate."""
        return certificate_names(self.transport) if self.transport is not None else None

    def paths(self) -> Mapping[str, bool]:
        """Return for each SCTP address of the peer whether it is reachable; empty for TCP."""
        paths: Mapping[str, bool] | None = (
            self.transport.get_extra_info("paths") if self.transport is not None else None
        )
        return paths or {}

    def request_turn(self) -> None:
        """Handle received bytes: now, or under load in a later iteration of the event loop."""
        self.owner.turns.request(self)

    def close(self) -> None:
        """Close the connection. Unsent bytes are still sent, for at most `stalled_write_s`."""
        if self.transport is not None and not self.transport.is_closing():
            self._closing = self.loop.call_later(self.owner.limits.stalled_write_s, self.abort)
            self.transport.close()

    def abort(self) -> None:
        """Close the connection at once, and discard unsent bytes."""
        if self.transport is not None:
            self.transport.abort()

    def close_stalled(self) -> None:
        """Close a connection whose peer has read no answers for `stalled_write_s`."""
        self.over = STALLED_WRITE
        self.abort()

    def set_reading(self) -> None:
        """Read from the peer if the connection can handle more bytes; otherwise pause reading."""
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        wanted = self.stalled is None and self.wants_bytes()
        if wanted is not self.reading:
            self.reading = wanted
            (transport.resume_reading if wanted else transport.pause_reading)()

    def _locate(self, address: Sequence[Any]) -> None:
        host, port = address[:2]
        self.source = source_address(host)
        self.address = address_text([host], port)

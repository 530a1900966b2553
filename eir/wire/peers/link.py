"""One connection with a peer on the event loop, in any protocol: its source, its turns, and the cost of a slow reader.

A protocol derives from PeerConnection. Requests are answered in the callback that read them, or in the next turn of the loop where there
are many: all connections together have a fraction of a millisecond for each turn, so that those of other protocols beside them are
served as if they were alone. Memory is bounded: nothing is read while the peer leaves its answers unread, and such a peer is dropped
after a while.
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
"""Time (s) that all connections together may take in one turn of the loop. A Diameter peer beside them waits no longer
than that, and its own checks take as long; a longer turn would save some reads and writes."""
_numbers = itertools.count()
"""Numbers of connections, over all protocols in the process."""
STALLED_WRITE = "stalled_write"
"""End of a connection whose peer left unread what was written."""


class Turns:
    """Shares out turns of the loop among connections, one after the other."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: OrderedDict[PeerConnection[Any], None] = OrderedDict()
        self._until = 0.0
        """The time when this turn ends."""
        self._next: asyncio.Handle | None = None

    def come(self, link: "PeerConnection[Any]") -> None:
        """Have a connection work now or in its turn. Afterwards it reads on only if it has room (`wants_bytes`)."""
        if link in self._waiting:
            link.set_reading()
            return
        now = time.perf_counter()
        if self._next is None:
            self._until = now + TURN_S
            self._next = self._loop.call_soon(self._turn)
        if self._waiting or now >= self._until:
            self._wait(link)
        else:
            self._run(link, self._until)

    def is_waiting(self, link: "PeerConnection[Any]") -> bool:
        """True if a connection is among those whose turn comes."""
        return link in self._waiting

    def _wait(self, link: "PeerConnection[Any]") -> None:
        self._waiting[link] = None
        link.set_reading()

    def _run(self, link: "PeerConnection[Any]", until: float) -> None:
        if link.work(lambda: time.perf_counter() >= until):
            self._wait(link)
        else:
            link.set_reading()

    def _turn(self) -> None:
        """The next turn of the loop has come."""
        self._next = None
        now = time.perf_counter()
        self._until = now + TURN_S
        while self._waiting and now < self._until:
            link, _ = self._waiting.popitem(last=False)
            self._run(link, self._until)
            now = time.perf_counter()
        if self._waiting:
            self._next = self._loop.call_soon(self._turn)


class Alarm:
    """Timer of the earliest deadline. `ring` gets the time; where nothing is due any more, it sets the next deadline."""

    def __init__(self, loop: asyncio.AbstractEventLoop, ring: Callable[[float], None]) -> None:
        self._loop = loop
        self._ring = ring
        self._timer: asyncio.TimerHandle | None = None
        self._at = 0.0

    def set(self, due: float | None) -> None:
        """Ring at this time of the loop's clock, or earlier; None: nothing is due."""
        if due is None or (self._timer is not None and self._at <= due):
            return  # a timer that comes too early finds nothing to do, and sets the right one
        self.cancel()
        self._at = due
        self._timer = self._loop.call_at(due, self._ran_out)

    def cancel(self) -> None:
        """Do not ring."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ran_out(self) -> None:
        self._timer = None
        # The loop's clock is that of the iteration's start, which may lie a little before the timer's time.
        self._ring(max(self._loop.time(), self._at))


class ConnectionOwner(Protocol):
    """Callbacks of a connection's owner."""

    limits: Limits
    turns: Turns

    def lost(self, link: Any) -> None:
        """The connection is gone."""


Owner = TypeVar("Owner", bound=ConnectionOwner)


class PeerConnection(asyncio.BaseProtocol, Generic[Owner]):
    """The connection. A protocol says what it begins with (`begin`), what it does with bytes (`data_received`) and in its turn (`work`)."""

    def __init__(self, owner: Owner, loop: asyncio.AbstractEventLoop) -> None:
        self.owner = owner
        self.loop = loop
        self.transport: asyncio.Transport | None = None
        self.number = next(_numbers)
        self.since = 0.0
        """Unix time of the connection's beginning."""
        self.address = ""
        self.source: IPv4Address | IPv6Address = IPv4Address(0)
        """`ip:port` and IP address of the other end."""
        self.settings: PeerSettings | None = None
        """Entry of the peer table; None: not identified yet, or no entry fits."""
        self.requester = Requester("")
        self.rates: Sequence[Limit] = NO_LIMITS
        """Limits on its requests."""
        self.stalled: asyncio.TimerHandle | None = None
        """While the peer leaves unread what was written: when that ends."""
        self.over = ""
        """Reason for which we ended the connection."""
        self.closed: asyncio.Future[None] = loop.create_future()
        """Done when the connection is gone."""
        self.reading = True
        self._closing: asyncio.TimerHandle | None = None

    # what a protocol gives

    def begin(self) -> bool:
        """The connection stands: whether it is wanted; if not, it is closed at once."""
        raise NotImplementedError

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        raise NotImplementedError

    def work(self, enough: Callable[[], bool]) -> bool:
        """Answer what has come, until it is enough; whether there is more to do now."""
        raise NotImplementedError

    def leave(self) -> None:
        """Send the peer away, in the way that its protocol has."""
        raise NotImplementedError

    def tick(self, now: float) -> None:
        """End what takes too long; for a server that watches its connections."""

    def wants_bytes(self) -> bool:
        """True if there is room to read more."""
        raise NotImplementedError

    def ended(self) -> None:
        """The transport is gone, and the owner knows it."""

    @property
    def tally(self) -> tuple[int, int]:
        """Requests and answers so far."""
        raise NotImplementedError

    @property
    def end(self) -> str:
        """The reason why the connection is over; empty: the other end closed it."""
        return self.over

    @property
    def outgoing(self) -> bool:
        """We made the connection."""
        return False

    @property
    def is_open(self) -> bool:
        """The peer is known, and may ask."""
        return self.settings is not None

    # asyncio.BaseProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Find out where it comes from, and whether it is wanted."""
        self.transport = cast("asyncio.Transport", transport)
        self.since = time.time()
        try:
            self._locate(transport.get_extra_info("peername"))
        except (TypeError, ValueError):
            self.transport.abort()  # the other end was gone before the loop came to it
            return
        self.transport.set_write_buffer_limits(high=self.owner.limits.write_buffer_bytes)
        if not self.begin():
            self.transport.abort()

    def eof_received(self) -> bool:
        """The peer will send nothing more; the transport closes unless True is returned."""
        return False

    def connection_lost(self, _exc: Exception | None) -> None:
        """The transport is gone, for any reason."""
        self.gone()  # first: whatever goes wrong below, who waits for it learns of it
        for timer in (self._closing, self.stalled):
            if timer is not None:
                timer.cancel()
        self.owner.lost(self)
        self.ended()

    def pause_writing(self) -> None:
        """The peer does not read: stop reading from it, and give it a while."""
        self.stalled = self.loop.call_later(self.owner.limits.stalled_write_s, self.give_up)
        self.set_reading()

    def resume_writing(self) -> None:
        """The peer reads again."""
        if self.stalled is not None:
            self.stalled.cancel()
            self.stalled = None
        self.set_reading()
        self.go_on()

    # what a protocol and the owner call

    def expect(self, connection: socket.socket) -> None:
        """Its TLS handshake begins; `abort` ends it, too. Raises OSError if the other end is gone already."""
        self._locate(connection.getpeername())
        self.transport = Handshake(connection)

    def gone(self) -> None:
        """The connection does not exist: the handshake failed, or the transport is gone."""
        if not self.closed.done():
            self.closed.set_result(None)

    def identified(self, settings: PeerSettings, requester: Requester, rates: Sequence[Limit]) -> None:
        """Its entry of the peer table was found, and with it who asks and the limits of its requests."""
        self.settings, self.requester, self.rates = settings, requester, rates

    @property
    def names(self) -> Sequence[str] | None:
        """Names in the certificate of the other end; None without TLS, empty without a certificate."""
        return certificate_names(self.transport) if self.transport is not None else None

    def paths(self) -> Mapping[str, bool]:
        """Addresses of the peer, and whether each is reached; none over a transport that knows no paths."""
        found: Mapping[str, bool] | None = (
            self.transport.get_extra_info("paths") if self.transport is not None else None
        )
        return found or {}

    def go_on(self) -> None:
        """Work on what has come, now or in its turn."""
        self.owner.turns.come(self)

    def close(self) -> None:
        """Close; what is still unsent may go out, but not for ever, however slowly the peer reads it."""
        if self.transport is not None and not self.transport.is_closing():
            self._closing = self.loop.call_later(self.owner.limits.stalled_write_s, self.abort)
            self.transport.close()

    def abort(self) -> None:
        """Close at once, even if something is unsent."""
        if self.transport is not None:
            self.transport.abort()

    def give_up(self) -> None:
        """The peer has left unread what was written for too long."""
        self.over = STALLED_WRITE
        self.abort()

    def set_reading(self) -> None:
        """Read from the peer, or not, as there is room."""
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

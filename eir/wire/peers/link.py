"""One connection of a client on the event loop, in any protocol: its source, its turns, and the cost of a slow reader.

A protocol derives from Link. Requests are answered in the callback that read them, or in the next turn of the loop where there are
many: all connections together have a fraction of a millisecond for each turn, so that those of other protocols beside them are
served as if they were alone. Memory is bounded: nothing is read while the client leaves its answers unread, and such a client is
dropped after a while.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Protocol, cast

from eir.wire.peers.rate import Limit
from eir.wire.peers.settings import Limits, PeerSettings, Requester
from eir.wire.transport.endpoint import address_text
from eir.wire.transport.settings import source_address
from eir.wire.transport.stream import certificate_names

TURN_S = 0.00015
"""Time (s) that all connections together may take in one turn of the loop. A Diameter peer beside them waits no longer
than that, and its own checks take as long; a longer turn would save some reads and writes."""


class Turns:
    """Shares out turns of the loop among connections, one after the other."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[Link] = deque()
        self._until = 0.0
        """The time when this turn ends."""
        self._next: asyncio.Handle | None = None

    def come(self, link: "Link") -> None:
        """Have a connection work now or in its turn. Afterwards it reads on only if it has room (`Link.wants_bytes`)."""
        if link.waits:
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

    def _wait(self, link: "Link") -> None:
        link.waits = True
        self._waiting.append(link)
        link.set_reading()

    def _run(self, link: "Link", until: float) -> None:
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
            link = self._waiting.popleft()
            link.waits = False
            self._run(link, self._until)
            now = time.perf_counter()
        if self._waiting:
            self._next = self._loop.call_soon(self._turn)


class Owner(Protocol):
    """Callbacks of a connection's owner."""

    limits: Limits
    turns: Turns

    def lost(self, link: Any) -> None:
        """The connection is gone."""


class Link(asyncio.Protocol):
    """The connection. A protocol says what it begins with (`begin`), what it does with bytes (`data_received`) and in its turn (`work`)."""

    rates: Sequence[Limit]
    """The limits of its requests, once it is known whose it is."""

    def __init__(self, owner: Owner, loop: asyncio.AbstractEventLoop) -> None:
        self.owner = owner
        self.loop = loop
        self.transport: asyncio.Transport | None = None
        self.waits = False
        """It is among those whose turn comes."""
        self.since = 0.0
        self.address = ""
        self.source: IPv4Address | IPv6Address = IPv4Address(0)
        self.names: Sequence[str] | None = None
        """The names in the other end's certificate; None without TLS."""
        self.settings: PeerSettings | None = None
        self.requester = Requester("")
        self.stalled: asyncio.TimerHandle | None = None
        """While the client leaves unread what was written: when that ends."""
        self.unread = False
        """The connection ended because the client did so for too long."""
        self.closed: asyncio.Future[None] = loop.create_future()
        """Done when the connection is gone."""
        self._closing: asyncio.TimerHandle | None = None
        self._reading = True

    # what a protocol gives

    def begin(self) -> bool:
        """The connection stands: whether it is wanted; if not, it is closed at once."""
        raise NotImplementedError

    def work(self, enough: Callable[[], bool]) -> bool:
        """Answer what has come, until it is enough; whether there is more to do now."""
        raise NotImplementedError

    def leave(self) -> None:
        """Send the client away, in the way that its protocol has."""
        raise NotImplementedError

    def tick(self, now: float) -> None:
        """End what takes too long; for a server that watches its connections."""

    def wants_bytes(self) -> bool:
        """True if there is room to read more."""
        raise NotImplementedError

    def has_work(self) -> bool:
        """True if something waits to be answered or sent."""
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
        raise NotImplementedError

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Find out where it comes from, and whether it is wanted."""
        self.transport = cast("asyncio.Transport", transport)
        self.since = time.time()
        try:
            host, port = transport.get_extra_info("peername")[:2]
            self.address, self.source = address_text([host], port), source_address(host)
        except (TypeError, ValueError):
            self.transport.abort()  # the other end was gone before the loop came to it
            return
        self.transport.set_write_buffer_limits(high=self.owner.limits.write_buffer_bytes)
        self.names = certificate_names(self.transport)
        if not self.begin():
            self.transport.abort()

    def connection_lost(self, _exc: Exception | None) -> None:
        """The transport is gone, for any reason."""
        if not self.closed.done():
            self.closed.set_result(None)  # first: whatever goes wrong below, who waits for it learns of it
        for timer in (self._closing, self.stalled):
            if timer is not None:
                timer.cancel()
        self.owner.lost(self)
        self.ended()

    def pause_writing(self) -> None:
        """The client does not read: stop reading from it, and give it a while."""
        self.stalled = self.loop.call_later(self.owner.limits.stalled_write_s, self._give_up)
        self.set_reading()

    def resume_writing(self) -> None:
        """The client reads again."""
        if self.stalled is not None:
            self.stalled.cancel()
            self.stalled = None
        self.set_reading()
        if self.has_work():
            self.owner.turns.come(self)

    # what a protocol and the owner call

    def close(self) -> None:
        """Close; what is still unsent may go out, but not for ever, however slowly the client reads it."""
        if self.transport is not None and not self.transport.is_closing():
            self._closing = self.loop.call_later(self.owner.limits.stalled_write_s, self.abort)
            self.transport.close()

    def abort(self) -> None:
        """Close at once, even if something is unsent."""
        if self.transport is not None:
            self.transport.abort()

    def _give_up(self) -> None:
        self.unread = True
        self.abort()

    def set_reading(self) -> None:
        """Read from the client, or not, as there is room."""
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        wanted = self.stalled is None and self.wants_bytes()
        if wanted is not self._reading:
            self._reading = wanted
            (transport.resume_reading if wanted else transport.pause_reading)()

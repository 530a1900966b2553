"""One connection of an AMF on the event loop: what comes in goes to the HTTP/2 connection, what it has to say goes out.

Requests are answered in the callback that read them, or in the next turn of the loop where there are many: all connections together
have a fraction of a millisecond for each turn, so that those of other protocols beside them are served as if they were alone.
Memory is bounded: nothing is read while the client leaves its answers unread, and such a client is dropped after a while.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Protocol, cast

from eir.diameter.capabilities import source_address
from eir.diameter.rate import NO_LIMITS
from eir.diameter.settings import Limits, PeerSettings
from eir.diameter.transport.endpoint import address_text
from eir.diameter.transport.stream import certificate_names
from eir.n5g.requester import Requester
from eir.web.http2 import Connection
from eir.web.http2_message import Request, Response

TURN_S = 0.00015
"""What all connections may take of one turn of the loop: a Diameter peer beside them waits no longer than that, and its own checks
take as long; a longer turn would save some reads and writes."""
AHEAD_BYTES = 1 << 16
"""What a connection whose turn has not come may have ready; no more is read from it then."""


class Turns:
    """Shares out turns of the loop among connections, one after the other."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[Link] = deque()
        self._until = 0.0
        """When this turn's time is over."""
        self._next: asyncio.Handle | None = None

    def come(self, link: "Link") -> None:
        """A connection has something to do: it does it now, or when its turn comes."""
        if link.waits:
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

    def _run(self, link: "Link", until: float) -> None:
        if link.work(lambda: time.perf_counter() >= until):
            self._wait(link)

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
    """What a connection's owner does for it."""

    limits: Limits
    turns: Turns

    def accept(self, link: "Link", names: Sequence[str] | None, protocol: str | None) -> Connection | None:
        """A connection stands, with these names in the other end's certificate: what speaks on it, or None to close it at once."""

    def respond(self, link: "Link", request: Request) -> Response:
        """Answer a request."""

    def answered(self, link: "Link", count: int, seconds: float) -> None:
        """So many requests were answered, each after this time."""

    def lost(self, link: "Link") -> None:
        """The connection is gone."""


class Link(asyncio.Protocol):
    """The connection."""

    def __init__(self, owner: Owner, loop: asyncio.AbstractEventLoop) -> None:
        self._owner = owner
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._closing: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._read_at = 0.0
        self._reading = True
        self._ended = False
        self.http: Connection | None = None
        """None before the owner has accepted the connection, and once it is over."""
        self.waits = False
        """It is among those whose turn comes."""
        self.since = 0.0
        self.address = ""
        self.source: IPv4Address | IPv6Address = IPv4Address(0)
        self.names: Sequence[str] | None = None
        """Of the other end's certificate; None without TLS."""
        self.settings: PeerSettings | None = None
        self.requester = Requester("")
        self.rates = NO_LIMITS
        self.closed: asyncio.Future[None] = loop.create_future()
        """Done when the connection is gone."""

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask the owner whether the connection is wanted."""
        self._transport = cast("asyncio.Transport", transport)
        self.since = time.time()
        try:
            host, port = transport.get_extra_info("peername")[:2]
            self.address, self.source = address_text([host], port), source_address(host)
        except (TypeError, ValueError):
            self._transport.abort()  # the other end was gone before the loop came to it
            return
        self._transport.set_write_buffer_limits(high=self._owner.limits.write_buffer_bytes)
        tls = transport.get_extra_info("ssl_object")
        self.http = self._owner.accept(self, certificate_names(self._transport), None if tls is None else tls.selected_alpn_protocol() or "")
        if self.http is None:
            self._transport.abort()
            return
        self.flush()

    def data_received(self, data: bytes) -> None:
        """Hand the bytes over."""
        if self.http is not None:
            self._read_at = time.perf_counter()
            self.http.receive(data, self._loop.time())
            self._owner.turns.come(self)
            if self.waits:
                self._set_reading()

    def eof_received(self) -> bool:
        """The client will send nothing more; what it asked before is answered, then the transport closes."""
        self._ended = self.http is not None and self.http.more
        return self._ended

    def connection_lost(self, _exc: Exception | None) -> None:
        """The transport is gone, by whatever cause."""
        for timer in (self._closing, self._stalled):
            if timer is not None:
                timer.cancel()
        self._owner.lost(self)
        self.http = None
        if not self.closed.done():
            self.closed.set_result(None)

    def pause_writing(self) -> None:
        """The client does not read: stop reading from it, and give it a while."""
        self._stalled = self._loop.call_later(self._owner.limits.stalled_write_s, self.abort)
        self._set_reading()

    def resume_writing(self) -> None:
        """The client reads again."""
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
        self._set_reading()
        if self.http is not None and self.http.more:
            self._owner.turns.come(self)

    # what Turns and the owner call

    def work(self, enough: Callable[[], bool]) -> bool:
        """Answer what has come, until it is enough; whether there is more to do now."""
        http = self.http
        if http is None or self._stalled is not None or (self._transport is not None and self._transport.is_closing()):
            return False
        before = http.answers
        http.work(self._loop.time(), enough)
        self.flush()
        answered = http.answers - before
        if answered:
            self._owner.answered(self, answered, time.perf_counter() - self._read_at)
        more = http.more and not http.over and self._stalled is None
        if self._ended and not more and self._transport is not None:
            self._transport.close()
        return more

    def flush(self) -> None:
        """Send what the connection has to say; close the transport if it is over."""
        http, transport = self.http, self._transport
        if http is None or transport is None:
            return
        if out := http.take():
            transport.write(out)
        if http.over and not transport.is_closing():
            # What is still unsent may go out, but not for ever, however slowly the client reads it.
            self._closing = self._loop.call_later(self._owner.limits.stalled_write_s, self.abort)
            transport.close()
            return
        self._set_reading()

    def abort(self) -> None:
        """Close at once, whatever is unsent."""
        if self._transport is not None:
            self._transport.abort()

    def _set_reading(self) -> None:
        http, transport = self.http, self._transport
        if http is None or transport is None or transport.is_closing():
            return
        wanted = self._stalled is None and not http.more and not (self.waits and http.unread > AHEAD_BYTES)
        if wanted is not self._reading:
            self._reading = wanted
            (transport.resume_reading if wanted else transport.pause_reading)()

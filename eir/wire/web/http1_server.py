"""Connections of an HTTP/1.1 server on the event loop: what comes in goes to `http1.Conversation`, answers go out.

No client gets the loop or the memory for itself: requests, time and connections are bounded, and between two requests of one
connection others have their turn. Knows nothing of what it serves, and accepts nothing: a connection's protocol is made by `link`.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeAlias, cast

from eir.wire.web.http1 import Conversation, Request, Response

LOST, SLOW, NO_HTTP, TOO_MANY = "lost", "slow", "no_http", "too_many"
"""Reasons for which the server ended a connection: it was gone, it took too long, its bytes are not HTTP, others
came."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLimits:
    """Limits on a client's use of the server."""

    request_s: float = 30.0
    """A connection is closed if it brings no whole request in this time, in whatever small pieces, or does not take the
    answer in it."""
    idle_s: float | None = None
    """Seconds that a connection may wait between an answer and the next request, for which request_s begins with its
    first byte; None: request_s, all in all."""
    connection_s: float = 3600.0
    """Seconds that a connection may last, however busy it is."""
    requests_max: int = 1000
    """Requests on one connection; the answer to the last one says that it closes."""
    connections_max: int = 100
    """Connections at once of clients that have not authenticated, and as many again of clients that have. For a further
    one, a connection of the same kind is closed, if possible one that waits for no answer: the oldest of the address that
    has most of these. So strangers close no connection of an authenticated client, and keep no new client out."""
    body_bytes_max: int = 64 << 20
    """Bytes of an answer."""
    request_body_max: int | None = None
    """Bytes of a request's body; a longer one is answered 413. None: bodies are read and thrown away."""


DEFAULT = HttpLimits()
Answer: TypeAlias = Response | Awaitable[Response]


class HttpConnections:
    """All connections of a server.

    `respond` gets a request, with the address that it came from, and must not raise; `refuse` makes the answer to what is no request,
    by its status, and where that is None such a connection is closed without one; `ended` is told of connections that the client did
    not end, and why.
    """

    def __init__(
        self, respond: Callable[[Request], Answer], *, limits: HttpLimits = DEFAULT,
        refuse: Callable[[int], Response] | None = None, ended: Callable[[str, str], None] = lambda *_: None,
    ) -> None:  # fmt: skip
        self.respond, self.refuse, self.limits, self.ended = respond, refuse, limits, ended
        self.links: dict[HttpConnection, None] = {}
        """The oldest first."""
        self.tasks: set[asyncio.Future[Response]] = set()
        """Answers that are being made, where that takes a task."""
        self._lost = asyncio.Event()

    def link(self) -> "HttpConnection":
        """The protocol of one more connection."""
        return HttpConnection(self, asyncio.get_running_loop())

    def take(self, link: "HttpConnection") -> None:
        """One more connection stands."""
        self.make_room(authenticated=False)
        self.links[link] = None

    def make_room(self, *, authenticated: bool) -> None:
        """Close a connection of this kind if there are as many as there may be, before one more becomes such."""
        same = [link for link in self.links if link.authenticated == authenticated]
        if len(same) >= self.limits.connections_max:
            closable = [link for link in same if not link.answering] or same
            ((most, _),) = Counter(link.address for link in closable).most_common(1)
            next(link for link in closable if link.address == most).end(TOO_MANY)

    def lost(self, link: "HttpConnection") -> None:
        """A connection is gone."""
        self.links.pop(link, None)
        self._lost.set()

    async def close(self) -> None:
        """Close what is connected."""
        for link in list(self.links):
            link.end("")
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def drain(self, within_s: float) -> None:
        """Answer what was asked, for a while, and close."""
        for link in list(self.links):
            link.leave()
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while self.links:
                    self._lost.clear()
                    await self._lost.wait()
        await self.close()


class HttpConnection(asyncio.Protocol):
    """One connection."""

    def __init__(self, owner: HttpConnections, loop: asyncio.AbstractEventLoop) -> None:
        self._owner, self._loop = owner, loop
        self._conversation = Conversation(owner.limits.requests_max, owner.limits.request_body_max)
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._last_s = 0.0
        """The time when the connection has to be over."""
        self._due_s = 0.0
        """The time when the awaited event has to happen: a request comes, or the client takes its answer."""
        self._next: asyncio.Handle | None = None
        self._stalled = self._leaving = self._told = False
        self._idle = False
        """Nothing has come since the last answer, and that is no fault."""
        self.answering = False
        """A request is being answered."""
        self.authenticated = False
        """The client has shown that it may use the service."""
        self.address = ""
        """The client's address, without the port."""

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for a request."""
        self._transport = cast("asyncio.Transport", transport)
        try:
            self.address = str(transport.get_extra_info("peername")[0])
        except (TypeError, IndexError):
            self._transport.abort()  # the other end was gone before the loop came to it
            return
        now, limits = self._loop.time(), self._owner.limits
        self._last_s, self._due_s = now + limits.connection_s, now + limits.request_s
        self._owner.take(self)
        self._timer = self._loop.call_at(min(self._due_s, self._last_s), self._look)

    def data_received(self, data: bytes) -> None:
        """Take what came. While a request is answered, or the answer is not taken, nothing more is read."""
        self._conversation.receive(data)
        if self._idle:
            self._idle = False
            self._due_s = self._loop.time() + self._owner.limits.request_s
        if self.answering or self._stalled or self._next is not None:
            if self._transport is not None:
                self._transport.pause_reading()
        else:
            self._go_on()

    def eof_received(self) -> bool:
        """The client will send nothing more; what it asked before is answered."""
        self._conversation.receive(b"")
        if not self.answering and self._next is None:
            self._go_on()
        return self.answering or self._next is not None

    def pause_writing(self) -> None:
        """The client does not take its answers: it is asked nothing more, and has its time."""
        self._stalled = True
        self._due_s = self._loop.time() + self._owner.limits.request_s

    def resume_writing(self) -> None:
        """It does again."""
        self._stalled = False
        if not self.answering and self._next is None:
            self._go_on()

    def connection_lost(self, _exc: Exception | None) -> None:
        """The transport is gone, for any reason."""
        for handle in (self._timer, self._next):
            if handle is not None:
                handle.cancel()
        self._owner.lost(self)
        self._transport = None

    # what the owner calls

    def end(self, why: str) -> None:
        """Close at once; `why` is told, once."""
        self._owner.links.pop(self, None)
        if why and not self._told:
            self._told = True
            self._owner.ended(self.address, why)
        if self._transport is not None:
            self._transport.abort()

    def leave(self) -> None:
        """Close once what was asked is answered."""
        self._leaving = True
        if not self.answering and self._transport is not None:
            self._transport.close()

    # inside

    def _go_on(self) -> None:
        """Answer the next request, if there is one."""
        self._next = None
        if self._transport is None or self.answering or self._stalled:
            return
        request = self._conversation.next_request()
        if request is None:
            self._wait_or_close()
            return
        self._due_s = self._last_s
        self.answering = True
        answer = self._owner.respond(request._replace(address=self.address))
        if isinstance(answer, Response):
            self._answered(answer)
            return
        future = asyncio.ensure_future(answer)
        self._owner.tasks.add(future)
        future.add_done_callback(self._made)

    def _made(self, future: "asyncio.Future[Response]") -> None:
        self._owner.tasks.discard(future)
        if not future.cancelled():
            self._answered(future.result())

    def _answered(self, response: Response) -> None:
        self.answering = False
        if self._transport is None:
            return
        self._transport.write(self._conversation.answer(response))
        if response.authenticated and not self.authenticated:
            self._owner.make_room(authenticated=True)
            self.authenticated = True
        if self._conversation.over or self._leaving:
            self._finish()
            return
        limits = self._owner.limits
        self._idle = limits.idle_s is not None
        self._due_s = self._loop.time() + (limits.idle_s or limits.request_s)
        self._next = self._loop.call_soon(self._go_on)

    def _wait_or_close(self) -> None:
        """Wait for the rest of an incomplete request, or answer the fault in it."""
        conversation, transport = self._conversation, self._transport
        if transport is None:
            return
        if not conversation.over:
            if out := conversation.go_on():
                transport.write(out)
            transport.resume_reading()
            return
        if conversation.fault and not self._told:
            self._told = True
            self._owner.ended(self.address, NO_HTTP)
            if self._owner.refuse is not None:
                transport.write(conversation.refuse(self._owner.refuse(conversation.fault)))
        self._finish()

    def _finish(self) -> None:
        """Close once what was written is on its way, which may take its time and no longer."""
        if self._transport is not None:
            self._due_s = self._loop.time() + self._owner.limits.request_s
            self._transport.close()

    def _look(self) -> None:
        """End what takes too long."""
        now = self._loop.time()
        due = min(self._due_s, self._last_s)
        if now >= due:
            self.end("" if self._idle else SLOW)
        else:
            self._timer = self._loop.call_at(min(due, now + self._owner.limits.request_s), self._look)

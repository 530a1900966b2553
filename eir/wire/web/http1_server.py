"""Connections of an HTTP/1.1 server on the event loop. `http1.Conversation` has the protocol without I/O.

Limits on requests, time and connections keep one client from occupying the loop or the memory. Between two requests of one
connection the loop serves others. The owner opens the listeners and calls `create_connection` for each connection.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeAlias, cast

from eir.wire.transport.stream import certificate_names
from eir.wire.web.http1 import Conversation, HttpRequest, HttpResponse

LOST, SLOW, NO_HTTP, TOO_MANY = "lost", "slow", "no_http", "too_many"
"""Reasons for closing a connection: lost, too slow, not HTTP, replaced by a newer one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLimits:
    """Limits on each client of an HTTP/1.1 server: time, number of requests and connections, sizes."""

    request_s: float = 30.0
    """Maximum seconds until a request is complete, and until the client has read the response."""
    idle_s: float | None = None
    """Maximum seconds between a response and the first byte of the next request, from which `request_s` counts; None: `request_s`
    counts from the response."""
    connection_s: float = 3600.0
    """Maximum seconds that a connection lasts."""
    requests_max: int = 1000
    """Maximum number of requests on one connection; the last response closes the connection."""
    unauthenticated_max: int = 10
    """Maximum number of requests on a connection whose client has not authenticated."""
    connections_max: int = 100
    """Maximum number of connections of clients that have not authenticated, and of clients that have. A further connection replaces one of the
    same kind, if possible one without a pending response: the oldest of the address with most such connections. So unauthenticated
    clients can neither close connections of authenticated clients nor keep new clients out."""
    body_bytes_max: int = 64 << 20
    """Maximum size of a response's body in bytes."""
    request_body_max: int | None = None
    """Maximum size of a request's body in bytes; a longer one is answered 413. None: bodies are discarded."""


DEFAULT = HttpLimits()
Answer: TypeAlias = HttpResponse | Awaitable[HttpResponse]


class HttpConnections:
    """All connections of an HTTP/1.1 server.

    `respond` returns the response to a request, whose address is set; it must not raise. `refuse` returns the response to an
    invalid request by status; None: the connection is closed without a response. `ended` is called with address and reason if
    the server closes a connection.
    """

    def __init__(
        self, respond: Callable[[HttpRequest], Answer], *, limits: HttpLimits = DEFAULT,
        refuse: Callable[[int], HttpResponse] | None = None, ended: Callable[[str, str], None] = lambda *_: None,
    ) -> None:  # fmt: skip
        self.respond, self.refuse, self.limits, self.ended = respond, refuse, limits, ended
        self.links: dict[HttpConnection, None] = {}
        """Open connections, the oldest first."""
        self.tasks: set[asyncio.Future[HttpResponse]] = set()
        """Tasks that compute responses."""
        self._removed = asyncio.Event()

    def create_connection(self) -> "HttpConnection":
        """Create the asyncio protocol object of a new connection."""
        return HttpConnection(self, asyncio.get_running_loop())

    def add(self, link: "HttpConnection") -> None:
        """Add an open connection of an unauthenticated client. If `connections_max` unauthenticated connections are open, close one."""
        self.make_room(authenticated=False)
        self.links[link] = None

    def make_room(self, *, authenticated: bool) -> None:
        """If the limit is reached, close a connection of the client address with the most connections.

        Connections of authenticated clients and other connections are counted separately, each up to `connections_max`.
        """
        same = [link for link in self.links if link.authenticated == authenticated]
        if len(same) >= self.limits.connections_max:
            closable = [link for link in same if not link.answering] or same
            ((most, _),) = Counter(link.address for link in closable).most_common(1)
            next(link for link in closable if link.address == most).abort(TOO_MANY)

    def remove(self, link: "HttpConnection") -> None:
        """Remove a closed connection."""
        self.links.pop(link, None)
        self._removed.set()

    async def close(self) -> None:
        """Close all connections at once."""
        for link in list(self.links):
            link.abort("")
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def drain(self, within_s: float) -> None:
        """Answer the pending requests within `within_s`, then close all connections."""
        for link in list(self.links):
            link.drain()
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while self.links:
                    self._removed.clear()
                    await self._removed.wait()
        await self.close()


class HttpConnection(asyncio.Protocol):
    """HTTP/1.1 connection of one client, as an asyncio protocol."""

    def __init__(self, owner: HttpConnections, loop: asyncio.AbstractEventLoop) -> None:
        self._owner, self._loop = owner, loop
        limits = owner.limits
        self._conversation = Conversation(limits.requests_max, limits.request_body_max, limits.unauthenticated_max)
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._last_s = 0.0
        """Deadline of the connection."""
        self._due_s = 0.0
        """Deadline of the awaited event: a complete request, or a client that reads its response."""
        self._next: asyncio.Handle | None = None
        self._stalled = self._draining = self._reported = False
        self._idle = False
        """True while the connection rightly waits for its next request."""
        self.answering = False
        """True while a response is computed."""
        self.address = ""
        """Address of the client, without the port."""
        self._names: Sequence[str] = ()

    @property
    def authenticated(self) -> bool:
        """True after the client has authenticated."""
        return self._conversation.authenticated

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Add the connection to its owner and wait for a request."""
        self._transport = cast("asyncio.Transport", transport)
        try:
            self.address = str(transport.get_extra_info("peername")[0])
        except (TypeError, IndexError):
            self._transport.abort()  # the client has already closed the connection
            return
        self._names = certificate_names(self._transport) or ()
        now, limits = self._loop.time(), self._owner.limits
        self._last_s, self._due_s = now + limits.connection_s, now + limits.request_s
        self._owner.add(self)
        self._timer = self._loop.call_at(min(self._due_s, self._last_s), self._check_deadline)

    def data_received(self, data: bytes) -> None:
        """Parse bytes that were received from the client.

        Reading pauses while a response is computed, or while the client does not read its response.
        """
        self._conversation.receive(data)
        if self._idle:
            self._idle = False
            self._due_s = self._loop.time() + self._owner.limits.request_s
        if self.answering or self._stalled or self._next is not None:
            if self._transport is not None:
                self._transport.pause_reading()
        else:
            self._answer_next()

    def eof_received(self) -> bool:
        """Answer the complete requests; return whether the connection stays open for a response."""
        self._conversation.receive(b"")
        if not self.answering and self._next is None:
            self._answer_next()
        return self.answering or self._stalled or self._next is not None

    def pause_writing(self) -> None:
        """Stop answering a client that does not read its responses."""
        self._stalled = True

    def resume_writing(self) -> None:
        """Continue to answer, because the client reads its responses again."""
        self._stalled = False
        if not self.answering and self._next is None:
            self._set_deadline()
            self._answer_next()

    def connection_lost(self, _exc: Exception | None) -> None:
        """Cancel the timers and remove the connection from its owner."""
        for handle in (self._timer, self._next):
            if handle is not None:
                handle.cancel()
        self._owner.remove(self)
        self._transport = None

    # called by the owner

    def abort(self, reason: str) -> None:
        """Close the connection at once. Report `reason`, unless it is empty or another reason was reported before."""
        self._owner.links.pop(self, None)
        if reason and not self._reported:
            self._reported = True
            self._owner.ended(self.address, reason)
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()

    def drain(self) -> None:
        """Close the connection after the pending response. If no response is pending, close it at once."""
        self._draining = True
        if not self.answering and self._transport is not None:
            self._transport.close()

    # internal

    def _answer_next(self) -> None:
        """Answer the next complete request, or wait for more bytes."""
        self._next = None
        if self._stalled or self._transport is None:
            return
        request = self._conversation.next_request()
        if request is None:
            self._wait_or_close()
            return
        self._due_s = self._last_s
        self.answering = True
        answer = self._owner.respond(request._replace(address=self.address, names=self._names))
        if isinstance(answer, HttpResponse):
            self._send(answer)
            return
        future = asyncio.ensure_future(answer)
        self._owner.tasks.add(future)
        future.add_done_callback(self._response_done)

    def _response_done(self, future: "asyncio.Future[HttpResponse]") -> None:
        self._owner.tasks.discard(future)
        if not future.cancelled():
            self._send(future.result())

    def _send(self, response: HttpResponse) -> None:
        self.answering = False
        if self._transport is None:
            return
        if response.authenticated and not self.authenticated:
            self._owner.make_room(authenticated=True)
        self._transport.write(self._conversation.answer(response))
        if self._conversation.over or self._draining:
            self._finish()
            return
        self._set_deadline()
        self._next = self._loop.call_soon(self._answer_next)

    def _set_deadline(self) -> None:
        """Set the time by which the client must act: `idle_s` for an idle client, otherwise `request_s`.

        A client that has begun a request, or does not read its response, is not idle.
        """
        limits = self._owner.limits
        idle_s = None if self._stalled or self._conversation.has_begun_request() else limits.idle_s
        self._idle = idle_s is not None
        self._due_s = self._loop.time() + (limits.request_s if idle_s is None else idle_s)

    def _wait_or_close(self) -> None:
        """Wait for more bytes, or close the connection if no further request can follow. An invalid request first gets an error."""
        conversation, transport = self._conversation, self._transport
        if transport is None:
            return
        if not conversation.over:
            if out := conversation.interim_response():
                transport.write(out)
            transport.resume_reading()
            return
        if conversation.fault and not self._reported:
            self._reported = True
            self._owner.ended(self.address, NO_HTTP)
            if self._owner.refuse is not None:
                transport.write(conversation.refuse(self._owner.refuse(conversation.fault)))
        self._finish()

    def _finish(self) -> None:
        """Close the connection when all written bytes are sent, or after `request_s`."""
        if self._transport is not None:
            self._due_s = self._loop.time() + self._owner.limits.request_s
            self._transport.close()

    def _check_deadline(self) -> None:
        """Close a connection whose deadline has passed; otherwise schedule the next check."""
        now = self._loop.time()
        due = min(self._due_s, self._last_s)
        if now >= due:
            self.abort("" if self._idle else SLOW)
        else:
            self._timer = self._loop.call_at(min(due, now + self._owner.limits.request_s), self._check_deadline)

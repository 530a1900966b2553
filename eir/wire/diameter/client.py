"""Diameter client: connect to a node, exchange capabilities, send requests, await answers, disconnect.

A thin layer over Peer and DiameterConnection. Answers are returned as received, including redirects (RFC 6733 6.1.8), which are
never followed. `Servers` uses several servers: each request goes to the first healthy server, and to the next one if no answer
arrives (RFC 6733 5.5.4).
"""

import asyncio
import itertools
import os
import random
import ssl
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from eir.errors import EirError, silent
from eir.wire.diameter.application import Application
from eir.wire.diameter.avp import encode_text
from eir.wire.diameter.dictionary import SESSION_ID
from eir.wire.diameter.link import DiameterConnection
from eir.wire.diameter.message import T_FLAG, Answer
from eir.wire.diameter.peer import Answered, Closed, DisconnectCause, Event, Leaving, Opened, Peer
from eir.wire.diameter.result import TOO_BUSY, UNABLE_TO_DELIVER
from eir.wire.diameter.serve import NodeContext
from eir.wire.peers.counts import Counts
from eir.wire.peers.link import Turns
from eir.wire.peers.settings import APPLICATIONS, Identity, Limits, PeerSettings
from eir.wire.transport import begin
from eir.wire.transport.endpoint import TCP, TLS, Endpoint, endpoint
from eir.wire.transport.settings import SctpSettings
from eir.wire.transport.stream import fault_text

if TYPE_CHECKING:
    from eir.wire.diameter.capabilities import Capabilities

UNOPENED = {
    **dict.fromkeys(
        ("message_length", "message_too_long", "version"), "what answers at this port does not speak Diameter"
    ),
    "peer_closed": "no CEA arrived; check that the port is for Diameter and that the EIR admits this address",
}
"""Advice by the reason for which a connection ended before it was open."""
SERVER = PeerSettings(label="server", lenient=frozenset({APPLICATIONS}))


class Sending(NamedTuple):
    """Identifiers of a request: Session-Id and end-to-end identifier. A repeated request keeps them (RFC 6733 3, 8.8)."""

    session: str
    end_to_end: int
    again: bool = False
    """True if the request was sent before on another connection and may have been received (T bit)."""


_sessions = itertools.count(random.getrandbits(31))


def new_sending(origin_host: str) -> Sending:
    """Create the Session-Id and the end-to-end identifier of a new request."""
    # RFC 6733 8.8: <DiameterIdentity>;<high 32 bits>;<low 32 bits>;<optional value>, globally unique.
    session = f"{origin_host};{int(time.time())};{next(_sessions) & 0xFFFFFFFF};{os.getpid()}"
    # RFC 6733 3: the low 12 bits of the time, and 20 random bits.
    return Sending(session, (int(time.time()) & 0xFFF) << 20 | random.getrandbits(20))


class Client:
    """Connection to one Diameter server, created by `connect`. Several requests may be pending at the same time."""

    def __init__(self, context: NodeContext) -> None:
        self.context = context
        self.limits = context.limits
        self._loop = asyncio.get_running_loop()
        self.turns = Turns(self._loop)
        self._link: DiameterConnection | None = None
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self.waiting: dict[int, asyncio.Future[Answer]] = {}
        """Unanswered requests by hop-by-hop identifier."""
        self.peer: Capabilities | None = None
        """Contents of the server's CEA; None before the connection is open."""
        self.closed_by = ""
        """Reason for the end of the connection; empty while it is open."""

    def certificate_names(self) -> Sequence[str] | None:
        """Return the names in the server's TLS certificate, or None for a connection without TLS.

        The caller can compare the names with the Origin-Host and Origin-Realm in the server's CEA (`self.peer`).
        """
        return None if self._link is None else self._link.names

    async def request(
        self, command: int, avps: bytes, *, timeout_s: float = 5.0, sending: Sending | None = None
    ) -> Answer:
        """Send a request and return its answer. `avps` follow the Session-Id and the client's Origin AVPs.

        `sending`: identity of a repeated request; None: a new request.

        Raises:
            TimeoutError: if no answer arrives in time.
            EirError: if the connection is closed.
        """
        link, peer = self._link, self._link.peer if self._link is not None else None
        if link is None or peer is None or self.closed_by:
            raise EirError(f"the connection is closed ({self.closed_by or 'never opened'})")
        sending = sending or new_sending(self.context.identity.host)
        head = encode_text(SESSION_ID, sending.session) + peer.traffic.names.origin
        hop_by_hop = peer.ask(command, head + avps, sending.end_to_end, T_FLAG if sending.again else 0)
        waiting: asyncio.Future[Answer] = self._loop.create_future()
        self.waiting[hop_by_hop] = waiting
        link.pump()
        try:
            async with asyncio.timeout(timeout_s):
                return await waiting
        finally:
            self.waiting.pop(hop_by_hop, None)
            peer.forget(hop_by_hop)

    async def close(self, timeout_s: float = 2.0) -> None:
        """Disconnect by DPR (DO_NOT_WANT_TO_TALK_TO_YOU); wait at most `timeout_s` until the connection is closed."""
        link = self._link
        if link is None:
            return
        if link.peer is not None:
            link.peer.stop(DisconnectCause.DO_NOT_WANT_TO_TALK_TO_YOU, self._loop.time())
            link.pump()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await asyncio.shield(link.closed)
        link.abort()
        await link.closed

    # transport.Owner

    def accept(self, link: DiameterConnection) -> Peer:
        """Send the CER on a connected transport, and return the connection's state machine."""
        peer = link.new_peer(lambda _: SERVER)
        peer.connect(SERVER, self._loop.time())
        return peer

    def handle(self, link: DiameterConnection, event: Event) -> None:
        """Wake the task that waits for this event."""
        capabilities = link.peer.capabilities if link.peer is not None else None
        match event:
            case Opened() if capabilities is not None and not self._opened.done():
                self.peer = capabilities
                self._opened.set_result(None)
            case Answered(hop_by_hop, answer):
                waiting = self.waiting.get(hop_by_hop)
                if waiting is not None and not waiting.done():
                    waiting.set_result(answer)
            case Leaving():
                # RFC 6733 5.4: pending requests are still answered; new ones must not be sent.
                self.closed_by = self.closed_by or "disconnected by a DPR"
            case Closed(reason, detail):
                self._over(detail or reason)
            case _:
                pass

    def lost(self, link: DiameterConnection) -> None:
        """Fail all pending requests, because the transport is closed."""
        del link
        self._over("peer_closed")

    # Inside

    async def open(self, to: Endpoint, tls: ssl.SSLContext | None, sctp: SctpSettings, timeout_s: float) -> None:
        """Connect and exchange capabilities, as described for `connect`."""
        try:
            async with asyncio.timeout(timeout_s):
                link = DiameterConnection(self, self._loop)
                await begin.connect(link, to, tls, sctp)
                self._link = link
                await self._opened
        except TimeoutError:
            await self.close(0)
            raise EirError(f"{to.where} did not answer within {timeout_s:g} s") from None
        except OSError as e:
            raise EirError(f"cannot connect to {to.where}: {fault_text(e, secure=tls is not None)}") from None
        except EirError:
            await self.close(0)
            raise

    def _over(self, why: str) -> None:
        self.closed_by = self.closed_by or why
        if not self._opened.done():
            advice = f" ({UNOPENED[why]})" if why in UNOPENED else ""
            self._opened.set_exception(EirError(f"the connection was not accepted: {why}{advice}"))
        for waiting in self.waiting.values():
            if not waiting.done():
                waiting.set_exception(EirError(f"the connection was closed before the answer: {self.closed_by}"))


async def connect(
    host: str, port: int, application: Application, *, origin_host: str, origin_realm: str, product_name: str = "client",
    timeout_s: float = 5.0, tls: ssl.SSLContext | None = None, counts: Counts | None = None, scheme: str = TCP,
    sctp: SctpSettings | None = None,
) -> Client:  # fmt: skip
    """Connect to a Diameter node as a client, and send a CER under the identity given by the keyword arguments.

    With `scheme` SCTP, `host` may hold several addresses, separated by commas. The client sends requests whether or not the
    node offers the application.

    Raises:
        EirError: if the node cannot be reached, or answers the CER with another result than 2001.
    """
    client = Client(NodeContext(
        identity=Identity(host=origin_host, realm=origin_realm, product_name=product_name, origin_state_id=int(time.time())),
        limits=Limits(cer_timeout_s=timeout_s), application=application, counts=counts or Counts(), report=silent,
        jitter=lambda: 0.0,
    ))  # fmt: skip
    to = Endpoint(TLS if tls is not None else scheme, tuple(host.split(",")), port)
    await client.open(to, tls, sctp or SctpSettings(), timeout_s)
    return client


ELSEWHERE = frozenset({UNABLE_TO_DELIVER, TOO_BUSY})
"""Results after which the request goes to another server, if there is one (RFC 6733 7.1.3)."""


@dataclass(slots=True)
class _Server:
    to: Endpoint
    client: Client | None = None
    left_until: float = 0.0
    """Time until which other servers come first, because this one failed."""
    connecting: asyncio.Lock = field(default_factory=asyncio.Lock)

    def avoid(self, pause_s: float) -> None:
        """Mark this server as failed for `pause_s` seconds. Meanwhile requests go to servers without this mark, if there are any."""
        self.left_until = time.monotonic() + pause_s


class Servers:
    """Client of several servers of one application. Each request goes to the first working server of the list.

    A server is connected at its first request and stays connected.
    """

    def __init__(
        self, urls: Sequence[str], application: Application, *, origin_host: str, origin_realm: str, product_name: str = "client",
        timeout_s: float = 2.0, pause_s: float = 30.0, tls: ssl.SSLContext | None = None, sctp: SctpSettings | None = None,
    ) -> None:  # fmt: skip
        """Store the settings of the connections. The first request to a server opens the connection.

        `timeout_s`: limit for a connection, and for each answer. `pause_s`: time for which a failed server is used last.

        Raises:
            EirError: if a URL is wrong.
        """
        self._servers = [_Server(endpoint(url)) for url in urls]
        if tls is None and any(server.to.scheme == TLS for server in self._servers):
            raise EirError("a URL of the form tls:// needs a context for TLS")
        self._application, self._host, self._realm, self._product = application, origin_host, origin_realm, product_name
        self._timeout_s, self._pause_s, self._tls, self._sctp = timeout_s, pause_s, tls, sctp
        self.counts = Counts()

    async def request(self, command: int, avps: bytes) -> Answer:
        """Send a request to one server after another, until an answer is neither 3002 (unable to deliver) nor 3004 (too busy); return this answer.

        If all answers have one of these results, the last answer is returned. A request that a server may have received is
        repeated with the T bit, the same Session-Id and the same end-to-end id.

        Raises:
            EirError: if no server answers, with the failure of each attempt.
        """
        sending, failures, last = new_sending(self._host), list[str](), None
        now = time.monotonic()
        for server in sorted(self._servers, key=lambda server: server.left_until > now):
            try:
                client = await self._connected(server)
                answer = client.request(command, avps, timeout_s=self._timeout_s, sending=sending)
                sending = sending._replace(again=True)
                last = await answer
                if not ELSEWHERE.intersection(last.result_codes):
                    return last
                failures.append(f"{server.to} answered {last.result_codes[0]}")
            except TimeoutError:
                # The connection stays open: other answers may follow, and the watchdog decides whether it is lost (RFC 3539 3.4).
                failures.append(f"{server.to} did not answer within {self._timeout_s:g} s")
                server.avoid(self._pause_s)
            except EirError as e:
                failures.append(f"{server.to}: {e}")
                server.avoid(self._pause_s)
        if last is not None:
            return last
        raise EirError("; ".join(failures) or "there is no server to ask")

    async def close(self) -> None:
        """Disconnect from all servers."""
        await asyncio.gather(*(server.client.close() for server in self._servers if server.client is not None))

    async def _connected(self, server: _Server) -> Client:
        async with server.connecting:
            if server.client is not None and server.client.closed_by:
                await server.client.close(0)
                server.client = None
            if server.client is None:
                server.client = await connect(
                    ",".join(server.to.hosts), server.to.port, self._application, origin_host=self._host, origin_realm=self._realm,
                    product_name=self._product, timeout_s=self._timeout_s, tls=self._tls if server.to.scheme == TLS else None,
                    counts=self.counts, scheme=server.to.scheme, sctp=self._sctp,
                )  # fmt: skip
            return server.client

"""Diameter client: connect to a node, exchange capabilities, send requests, await answers, disconnect.

A thin layer over Peer and DiameterConnection. Answers are returned as received, including redirects (RFC 6733 6.1.8), which are
never followed. No request is repeated.
"""

import asyncio
import itertools
import os
import random
import ssl
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from eir.errors import EirError, silent
from eir.wire.diameter.application import Application
from eir.wire.diameter.avp import encode_text
from eir.wire.diameter.dictionary import SESSION_ID
from eir.wire.diameter.link import DiameterConnection
from eir.wire.diameter.message import Answer
from eir.wire.diameter.peer import Answered, Closed, DisconnectCause, Event, Leaving, Opened, Peer
from eir.wire.diameter.serve import NodeContext
from eir.wire.peers.counts import Counts
from eir.wire.peers.link import Turns
from eir.wire.peers.settings import APPLICATIONS, Identity, Limits, PeerSettings
from eir.wire.transport import begin
from eir.wire.transport.endpoint import TCP, TLS, Endpoint
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


_sessions = itertools.count(random.getrandbits(31))


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

    async def request(self, command: int, avps: bytes, *, timeout_s: float = 5.0) -> Answer:
        """Send a request and return its answer. `avps` follow the Session-Id and the client's Origin AVPs.

        Raises:
            TimeoutError: if no answer arrives in time.
            EirError: if the connection is closed.
        """
        link, peer = self._link, self._link.peer if self._link is not None else None
        if link is None or peer is None or self.closed_by:
            raise EirError(f"the connection is closed ({self.closed_by or 'never opened'})")
        # RFC 6733 8.8: <DiameterIdentity>;<high 32 bits>;<low 32 bits>;<optional value>, globally unique.
        session = f"{self.context.identity.host};{int(time.time())};{next(_sessions) & 0xFFFFFFFF};{os.getpid()}"
        hop_by_hop = peer.ask(command, encode_text(SESSION_ID, session) + peer.traffic.names.origin + avps)
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

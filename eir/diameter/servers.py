"""The asking side with several servers: each request goes to the first that is well, and to the next if no answer comes (RFC 6733 5.5.4).

A layer over client; like that it hands answers on as they came.
"""

import asyncio
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from eir.diameter.application import Application
from eir.diameter.client import Client, connect, new_sending
from eir.diameter.message import Answer
from eir.diameter.result import TOO_BUSY, UNABLE_TO_DELIVER
from eir.errors import EirError
from eir.peers.counts import Counts
from eir.peers.settings import SctpSettings
from eir.peers.transport.endpoint import TLS, Endpoint, endpoint

ELSEWHERE = frozenset({UNABLE_TO_DELIVER, TOO_BUSY})
"""Results with which a request belongs to another server, if there is one (RFC 6733 7.1.3)."""


@dataclass(slots=True)
class _Server:
    to: Endpoint
    client: Client | None = None
    left_until: float = 0.0
    """Asked after the others until then, since it failed."""
    connecting: asyncio.Lock = field(default_factory=asyncio.Lock)


class Servers:
    """Servers of one application, the preferred one first. Connections are made as they are needed, and kept."""

    def __init__(
        self, urls: Sequence[str], application: Application, *, origin_host: str, origin_realm: str, product_name: str = "client",
        timeout_s: float = 2.0, pause_s: float = 30.0, tls: ssl.SSLContext | None = None, sctp: SctpSettings | None = None,
    ) -> None:  # fmt: skip
        """`timeout_s`: for a connection, and for each answer; one that fails is asked last for `pause_s`. Raises EirError for a wrong URL."""
        self._servers = [_Server(endpoint(url)) for url in urls]
        if tls is None and any(server.to.scheme == TLS for server in self._servers):
            raise EirError("a URL of the form tls:// needs a context for TLS")
        self._application, self._host, self._realm, self._product = application, origin_host, origin_realm, product_name
        self._timeout_s, self._pause_s, self._tls, self._sctp = timeout_s, pause_s, tls, sctp
        self.counts = Counts()

    async def request(self, command: int, avps: bytes) -> Answer:
        """Ask until somebody answers: the first answer, but for one that says that another server should be asked.

        What may have been received already goes out again with the T bit, the same Session-Id and end-to-end id. Raises EirError if
        nobody answers, with what became of each attempt.
        """
        sending, said, last = new_sending(self._host), list[str](), None
        now = time.monotonic()
        for server in sorted(self._servers, key=lambda server: server.left_until > now):
            try:
                client = await self._connected(server)
                asked = client.request(command, avps, timeout_s=self._timeout_s, sending=sending)
                sending = sending._replace(again=True)
                last = await asked
                if not ELSEWHERE.intersection(last.result_codes):
                    return last
                said.append(f"{server.to} answered {last.result_codes[0]}")
            except TimeoutError:
                # Its connection stays: other answers may be on their way, and the watchdog decides whether it is lost (RFC 3539 3.4).
                said.append(f"{server.to} did not answer within {self._timeout_s:g} s")
                server.left_until = time.monotonic() + self._pause_s
            except EirError as e:
                said.append(f"{server.to}: {e}")
                server.left_until = time.monotonic() + self._pause_s
        if last is not None:
            return last
        raise EirError("; ".join(said) or "there is no server to ask")

    async def close(self) -> None:
        """Disconnect from all."""
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

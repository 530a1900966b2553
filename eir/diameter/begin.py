"""The beginning of a connection over any transport: the one place that tells transports apart."""

import asyncio
import socket
import ssl

from eir.diameter.link import Link
from eir.peers.settings import SctpSettings
from eir.peers.transport import sctp, stream
from eir.peers.transport.endpoint import SCTP, TLS, Endpoint


async def accept(
    link: Link, connection: socket.socket, tls: ssl.SSLContext | None = None, timeout_s: float | None = None
) -> None:
    """Put an accepted connection on the loop; with `tls` a handshake comes first, in `timeout_s` at most. Raises OSError."""
    if connection.proto == socket.IPPROTO_SCTP:
        sctp.SctpTransport(asyncio.get_running_loop(), connection, link)
    else:
        await stream.accept(link, connection, tls, timeout_s)


async def connect(link: Link, to: Endpoint, tls: ssl.SSLContext | None, sctp_settings: SctpSettings) -> None:
    """Connect; `tls` is for an endpoint that wants a handshake. Raises OSError."""
    if to.scheme == SCTP:
        await sctp.connect(link, to, sctp_settings)
    else:
        await stream.connect(link, to.hosts[0], to.port, tls if to.scheme == TLS else None)

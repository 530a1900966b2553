"""Start of a connection over TCP, TLS or SCTP: listen, accept, connect. Other modules do not distinguish transports.

The owner decides about an accepted connection before the TLS handshake, which costs more than a message.
"""

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import cast

from eir.wire.transport import sctp, sctp_options, stream
from eir.wire.transport.endpoint import SCTP, TLS, Endpoint
from eir.wire.transport.sctp import DIAMETER, Carried, SctpProtocol
from eir.wire.transport.settings import SctpSettings

BACKLOG = 1024
ACCEPTS_MAX = 64
"""Maximum number of connections accepted in one turn of the loop."""
PAUSE_S = 1.0
"""Seconds without accepting after the host has run out of files or memory."""
OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
UNSUPPORTED = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})
"""Errors for an address that this host cannot bind, such as IPv6 if it is disabled."""


class SocketListener:
    """Listening sockets of one address, or of all addresses that a host name resolves to.

    `accepted` is called with each connection and owns it. `failed` is called if the host has no resources for a connection; the
    listener accepts again after a pause.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, listening: Sequence[socket.socket], accepted: Callable[[socket.socket], None],
        failed: Callable[[OSError], None],
    ) -> None:  # fmt: skip
        self._loop = loop
        self._listening = listening
        self._accepted = accepted
        self._failed = failed
        self._pause: asyncio.TimerHandle | None = None
        self.resume()

    @property
    def address(self) -> tuple[str, int]:
        """Address and port of the first listening socket."""
        host, port = self._listening[0].getsockname()[:2]
        return str(host), int(port)

    def apply(self, settings: SctpSettings) -> None:
        """Apply new SCTP settings to connections that the listener will accept. Raises OSError."""
        for listening in self._listening:
            if listening.proto == socket.IPPROTO_SCTP:
                sctp_options.prepare(listening, settings)

    def pause(self) -> None:
        """Stop accepting until `resume`; new connections wait in the kernel's queue."""
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        for listening in self._listening:
            self._loop.remove_reader(listening)

    def resume(self) -> None:
        """Accept connections, at the start or after `pause`."""
        self._pause = None
        for listening in self._listening:
            self._loop.add_reader(listening, self._accept, listening)

    def close(self) -> None:
        """Stop accepting and close the sockets."""
        self.pause()
        for listening in self._listening:
            listening.close()
        self._listening = ()

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(ACCEPTS_MAX):
            try:
                connection, _ = listening.accept()
            except BlockingIOError:
                return
            except OSError as e:
                if e.errno in OUT_OF_RESOURCES:
                    # The queue stays readable: without a pause the loop would only retry.
                    self.pause()
                    self._pause = self._loop.call_later(PAUSE_S, self.resume)
                    self._failed(e)
                    return
                continue  # the peer has already closed the connection
            connection.setblocking(False)
            self._accepted(connection)


async def open_listener(
    at: Endpoint,
    accepted: Callable[[socket.socket], None],
    failed: Callable[[OSError], None],
    sctp_settings: SctpSettings,
) -> SocketListener:
    """Open a listener on an address, or on all addresses that a host name resolves to. Raises OSError."""
    loop = asyncio.get_running_loop()
    sockets = [await sctp.listening_socket(at, sctp_settings)] if at.scheme == SCTP else await listening_sockets(at)
    return SocketListener(loop, sockets, accepted, failed)


async def listening_sockets(at: Endpoint) -> list[socket.socket]:
    """Open TCP sockets that listen on an address, or on all addresses that a host name resolves to. Raises OSError."""
    resolved = await stream.addresses(at.hosts[0], at.port, socket.AI_PASSIVE)
    listening: list[socket.socket] = []
    fault: OSError | None = None
    for family, address in dict.fromkeys((family, address) for family, _, _, _, address in resolved):
        # With port 0 all addresses of a name have the port that the kernel chose for the first one.
        bound = listening[0].getsockname()[1] if listening else address[1]
        try:
            listening.append(socket.create_server((address[0], bound), family=family, backlog=BACKLOG))
        except OSError as e:
            fault = e
            if e.errno not in UNSUPPORTED:
                break
    else:
        if listening:
            for each in listening:
                each.setblocking(False)
            return listening
    for each in listening:
        each.close()
    raise fault or OSError(errno.EADDRNOTAVAIL, "no address")


async def accept(protocol: asyncio.BaseProtocol, connection: socket.socket, carried: Carried = DIAMETER) -> None:
    """Attach a protocol object to an accepted socket without TLS. The object then receives the bytes of the connection. Raises OSError.

    For SCTP, `protocol` must be a sctp.SctpProtocol; `carried`: properties of its messages over SCTP.
    """
    if connection.proto == socket.IPPROTO_SCTP:
        sctp.SctpTransport(asyncio.get_running_loop(), connection, cast("SctpProtocol", protocol), carried)
    else:
        await stream.accept(protocol, connection)


async def connect(
    protocol: asyncio.BaseProtocol, to: Endpoint, tls: ssl.SSLContext | None, sctp_settings: SctpSettings, carried: Carried = DIAMETER
) -> None:  # fmt: skip
    """Connect a protocol to an endpoint over the transport in its URL. Raises OSError.

    `tls` is used only if the endpoint's scheme is `tls`; `carried`: as in `accept`.
    """
    if to.scheme == SCTP:
        await sctp.connect(cast("SctpProtocol", protocol), to, sctp_settings, carried)
    else:
        await stream.connect(protocol, to.hosts[0], to.port, tls if to.scheme == TLS else None)

"""The beginning of a connection over any transport: listening, accepting, connecting. The one place that tells transports apart.

The node is asked before anything is made of a connection that came in, since a TLS handshake costs more than a message does. Knows no
peer.
"""

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import cast

from eir.wire.transport import sctp, sctp_options, stream
from eir.wire.transport.endpoint import SCTP, TLS, Endpoint
from eir.wire.transport.sctp import DIAMETER, Carried, Receiver
from eir.wire.transport.settings import SctpSettings

BACKLOG = 1024
ACCEPTS_MAX = 64
"""Connections accepted in one turn of the loop."""
PAUSE_S = 1.0
"""The pause in accepting while there are too many open files."""
OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
UNSUPPORTED = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})
"""An address of a name that this host cannot have, IPv6 where it is switched off for one."""


class Listener:
    """Listening sockets of one address, or of one name's; each connection goes to `accepted`, whose it is from then on.

    `failed` is told when none can be accepted for want of resources; after a pause it is tried again.
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
        """The address that it listens on; the first one if there are several."""
        host, port = self._listening[0].getsockname()[:2]
        return str(host), int(port)

    def configure(self, settings: SctpSettings) -> None:
        """Take over settings for connections accepted from now on; they matter to SCTP only. Raises OSError."""
        for listening in self._listening:
            if listening.proto == socket.IPPROTO_SCTP:
                sctp_options.prepare(listening, settings)

    def hold(self) -> None:
        """Accept nothing until `resume`; new connections wait in the kernel's queue."""
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        for listening in self._listening:
            self._loop.remove_reader(listening)

    def resume(self) -> None:
        """Accept again."""
        self._pause = None
        for listening in self._listening:
            self._loop.add_reader(listening, self._accept, listening)

    def close(self) -> None:
        """Accept nothing any more."""
        self.hold()
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
                    # The queue stays readable: without a pause the loop would do nothing else.
                    self.hold()
                    self._pause = self._loop.call_later(PAUSE_S, self.resume)
                    self._failed(e)
                    return
                continue  # the other end is gone again
            connection.setblocking(False)
            self._accepted(connection)


async def open_listener(
    at: Endpoint,
    accepted: Callable[[socket.socket], None],
    failed: Callable[[OSError], None],
    sctp_settings: SctpSettings,
) -> Listener:
    """A listener at an address, or at all addresses of a name. Raises OSError if it cannot be had."""
    loop = asyncio.get_running_loop()
    sockets = [await sctp.listening_socket(at, sctp_settings)] if at.scheme == SCTP else await listening_sockets(at)
    return Listener(loop, sockets, accepted, failed)


async def listening_sockets(at: Endpoint) -> list[socket.socket]:
    """Sockets that listen over TCP at an address, or at all addresses of a name. Raises OSError if they cannot be had."""
    found = await stream.addresses(at.hosts[0], at.port, socket.AI_PASSIVE)
    listening: list[socket.socket] = []
    fault: OSError | None = None
    for family, address in dict.fromkeys((family, address) for family, _, _, _, address in found):
        # With port 0 a name's further addresses have the port that the first one was given.
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


async def accept(
    protocol: asyncio.BaseProtocol, connection: socket.socket, tls: ssl.SSLContext | None = None, timeout_s: float | None = None,
    carried: Carried = DIAMETER,
) -> None:  # fmt: skip
    """Put an accepted connection on the loop; with `tls` a handshake comes first, in `timeout_s` at most. Raises OSError.

    What takes connections over SCTP implements sctp.Receiver; `carried`: how SCTP carries its messages.
    """
    if connection.proto == socket.IPPROTO_SCTP:
        sctp.SctpTransport(asyncio.get_running_loop(), connection, cast("Receiver", protocol), carried)
    else:
        await stream.accept(protocol, connection, tls, timeout_s)


async def connect(
    protocol: asyncio.BaseProtocol, to: Endpoint, tls: ssl.SSLContext | None, sctp_settings: SctpSettings, carried: Carried = DIAMETER
) -> None:  # fmt: skip
    """Connect; `tls` is for an endpoint that wants a handshake. Otherwise as `accept`."""
    if to.scheme == SCTP:
        await sctp.connect(cast("Receiver", protocol), to, sctp_settings, carried)
    else:
        await stream.connect(protocol, to.hosts[0], to.port, tls if to.scheme == TLS else None)

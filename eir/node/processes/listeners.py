"""Listeners of a node: `Listeners` in the manager opens the sockets, `Acceptor` in the answering process accepts connections from them.

While the answering process restarts, new connections wait in the sockets' queues.
"""

import asyncio
import errno
import socket
from collections import deque
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import NamedTuple

from eir.config.settings import Listener
from eir.errors import EirError, Report
from eir.interfaces.interface import Context
from eir.node.processes.channel import Channel
from eir.wire.peers.gate import Counted, SourceCounts, network_of
from eir.wire.peers.settings import setting_for
from eir.wire.transport import sctp, sctp_options
from eir.wire.transport.begin import SocketListener, listening_sockets
from eir.wire.transport.endpoint import SCTP, address_text, is_http, listening_at
from eir.wire.transport.sctp_options import LOAD_ADVICE, MISSING
from eir.wire.transport.settings import SctpSettings, source_address

LISTEN_ADVICE = {
    errno.EACCES: "a port below 1024 requires the capability CAP_NET_BIND_SERVICE; grant it, or choose another port",
    errno.EADDRINUSE: "is another node running there?",
    errno.EADDRNOTAVAIL: "no interface of this host has that address",
    **dict.fromkeys(MISSING, f"{LOAD_ADVICE}; or sctp.optional: true starts without it"),
}
"""Advice for a listener that cannot be opened, by error number."""

STRANGERS_MAX, STRANGERS_PER_S = 32, 20
"""Limits on connections from addresses without an entry in the peer table that are answered 403 over HTTP: number at the same time,
and number per second. Further connections are closed without an answer."""


class OpenListener(NamedTuple):
    """One listening socket of a listener; a host name may resolve to several."""

    interface: str
    url: str
    socket: socket.socket

    @property
    def key(self) -> tuple[str, str]:
        """Interface and URL, which identify the listener in a configuration."""
        return self.interface, self.url


class Listeners:
    """Listening sockets of a node, which stay open while a process that accepts connections from them restarts."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._sockets: list[OpenListener] = []

    async def open(self, listeners: Sequence[Listener], settings: SctpSettings) -> list[OpenListener]:
        """Open those listeners that are not open, and return their sockets, which `apply` then adds.

        If the kernel has no SCTP and `sctp.optional` is set, SCTP listeners are skipped.

        Raises:
            EirError: if a listener cannot be opened; no socket stays open then.
        """
        opened: list[OpenListener] = []
        known = {each.key for each in self._sockets}
        for each in listeners:
            if (each.protocol, each.url) in known:
                continue
            try:
                sockets = await _listening_sockets(each.url, settings)
            except OSError as e:
                if settings.optional and e.errno in MISSING:
                    self._report(
                        "listener_missing", reason="no_sctp", level="warning", address=each.url, detail=LOAD_ADVICE
                    )
                    continue
                for other in opened:
                    other.socket.close()
                raise cannot_listen(each.url, e) from None
            opened += [OpenListener(each.protocol, each.url, listening) for listening in sockets]
        return opened

    def apply(self, opened: Sequence[OpenListener], listeners: Sequence[Listener], settings: SctpSettings) -> None:
        """Add the listeners that `open` has returned, and close those that are not in `listeners`.

        Open SCTP listeners get the new SCTP settings for connections that they will accept. Raises OSError.
        """
        for (interface, _), first in {each.key: each for each in reversed(opened)}.items():
            self._report("listening", address=_bound(first), interface=interface)
        wanted = {(each.protocol, each.url) for each in listeners}
        for each in self._sockets:
            if each.key not in wanted:
                each.socket.close()
        self._sockets = [each for each in self._sockets if each.key in wanted] + [*opened]
        for each in self._sockets:
            if each.socket.proto == socket.IPPROTO_SCTP:
                sctp_options.prepare(each.socket, settings)

    def addresses(self, interfaces: Collection[str]) -> list[str]:
        """Return the open listeners of these interfaces, as URLs with their bound addresses."""
        bound = {each.key: _bound(each) for each in reversed(self._sockets) if each.interface in interfaces}
        return list(bound.values())[::-1]

    def send(self, channel: Channel, interfaces: Collection[str]) -> None:
        """Send all sockets of these interfaces to a process, which accepts connections from them."""
        send_listeners(channel, [each for each in self._sockets if each.interface in interfaces])

    def close(self) -> None:
        """Close all sockets."""
        for each in self._sockets:
            each.socket.close()
        self._sockets.clear()


def send_listeners(channel: Channel, opened: Sequence[OpenListener]) -> None:
    """Send listening sockets to a process, which accepts connections from them."""
    for each in opened:
        channel.notify("listen", each.interface, each.url, carrying=[each.socket])


async def _listening_sockets(url: str, settings: SctpSettings) -> list[socket.socket]:
    at = listening_at(url)
    return [await sctp.listening_socket(at, settings)] if at.scheme == SCTP else await listening_sockets(at)


def _bound(listener: OpenListener) -> str:
    """Return the URL of a listener with its bound address. SCTP listeners keep all addresses of the URL."""
    wanted = listening_at(listener.url)
    host, port = listener.socket.getsockname()[:2]
    hosts = wanted.hosts if wanted.scheme == SCTP else (str(host),)
    return f"{listener.url.partition('://')[0]}://{wanted._replace(hosts=hosts, port=int(port)).where}"


Serve = Callable[[socket.socket, str, str, Callable[[], None]], None]
"""Function that serves an accepted connection. Its arguments are the connection, the interface and URL of its listener, and a function to call at its end."""


class Acceptor:
    """Acceptor of the answering process: it enforces the limits on the number of connections over all interfaces."""

    def __init__(self, context: Context, serve: Serve) -> None:
        self._serve = serve
        self._listeners: list[tuple[str, str, SocketListener]] = []
        """Interface and URL of each listener, with the sockets."""
        self._connections = SourceCounts()
        """Open connections. Those with the source None are only answered with a 403."""
        self._stranger_times: deque[float] = deque(maxlen=STRANGERS_PER_S)
        """Times of the last connections from unknown addresses that were answered 403."""
        self.apply(context)

    def apply(self, context: Context) -> None:
        """Apply a new peer table and new limits. Open connections are not affected."""
        self._peers, self._limits = context.shared.peers, context.shared.limits
        self._counts, self._report = context.counts, context.report

    def listen(self, interface: str, url: str, descriptor: int | None) -> None:
        """Accept connections from a listening socket.

        Raises:
            EirError: if this process had no file descriptor left for the socket.
        """
        if descriptor is None:
            raise EirError(f"no file descriptor is left for {url}; raise LimitNOFILE=")
        listening = socket.socket(fileno=descriptor)
        accept = partial(self._accept, interface, url)
        listener = SocketListener(asyncio.get_running_loop(), [listening], accept, self._cannot_accept)
        self._listeners.append((interface, url, listener))

    def close_except(self, listeners: Sequence[Listener]) -> None:
        """Stop accepting connections from all other listeners. Open connections are not affected."""
        wanted = {(each.protocol, each.url) for each in listeners}
        for interface, url, listener in self._listeners:
            if (interface, url) not in wanted:
                listener.close()
        self._listeners = [each for each in self._listeners if each[:2] in wanted]

    def _accept(self, interface: str, url: str, connection: socket.socket) -> None:
        try:
            host, port = connection.getpeername()[:2]
        except OSError:
            connection.close()
            return  # the client has closed the connection
        source = source_address(host)
        known = self._connections.total - self._connections[None]
        refused = self._connections.refusal(source, self._peers, self._limits, known)
        counted: Counted = network_of(source)
        if refused == "source" and is_http(url) and self._may_answer_stranger():
            refused = counted = None  # the server counts and logs the rejection
        if refused is None:
            self._connections.add(counted)
            self._serve(connection, interface, url, partial(self._connections.remove, counted))
            return
        connection.close()
        self._counts.peers_refused[refused] += 1
        address = address_text([host], port)
        self._report("peer_refused", reason=refused, level="warning", address=address, setting=setting_for(refused))

    def _may_answer_stranger(self) -> bool:
        """Return true if the limits permit another response 403 to an HTTP client at an unknown address.

        With a 403 an AMF learns the reason at once. After a closed connection it would wait for seconds.
        """
        now = asyncio.get_running_loop().time()
        times = self._stranger_times
        is_too_fast = len(times) == STRANGERS_PER_S and now - times[0] < 1
        if is_too_fast or self._connections[None] >= STRANGERS_MAX:
            return False
        times.append(now)
        return True

    def _cannot_accept(self, fault: OSError) -> None:
        self._counts.errors["accept_failed"] += 1
        reason = errno.errorcode.get(fault.errno or 0, "other")
        self._report("accept_failed", level="error", reason=reason, detail=fault.strerror)


def cannot_listen(where: str, fault: OSError) -> EirError:
    """Return the error for a listener that cannot be opened, with advice. The error ends the node."""
    message = f"cannot listen on {where}: {fault.strerror or fault}"
    advice = LISTEN_ADVICE.get(fault.errno or 0)
    return EirError(f"{message} ({advice})" if advice else message)

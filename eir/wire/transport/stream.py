"""TCP and TLS connections on the transports of the event loop."""

import asyncio
import errno
import os
import socket
import ssl
import struct
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from eir.wire.transport.tls import names_of_peer

NO_TLS = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST"})
"""OpenSSL's reasons for bytes that are not TLS."""
ENDED = (ConnectionResetError, BrokenPipeError, ssl.SSLEOFError)
"""Errors of a connection that the peer has closed."""

EACH_S = 2.0
"""Seconds within which an address must answer before the next address of the name is tried."""
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER on, 0 seconds: closing sends a RST."""


class Handshake(asyncio.Transport):
    """Connection during its TLS handshake. Only `abort` and `get_extra_info("socket")` work."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__({"socket": connection})
        self._socket = connection

    def abort(self) -> None:
        """End the handshake by shutting down the socket."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)


class Handshakes:
    """TLS handshakes of incoming connections.

    One handshake begins in each turn of the loop, once the client's first message has arrived. A handshake costs as much as a
    hundred messages, so other connections are served between two handshakes.
    """

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        """Handshakes whose first message has arrived, the oldest first."""

    async def accept(
        self, protocol: asyncio.BaseProtocol, connection: socket.socket, tls: ssl.SSLContext, timeout_s: float
    ) -> None:
        """Attach a protocol to an accepted socket after a TLS handshake.

        `timeout_s`: maximum seconds until the client's first message, and for the handshake.

        Raises:
            OSError: if the handshake fails.
        """
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        loop.add_reader(connection, self._arrived, connection, turn)
        try:
            async with asyncio.timeout(timeout_s):
                await turn
        except TimeoutError:
            raise ConnectionAbortedError(errno.ETIMEDOUT, f"it sent nothing within {timeout_s:g} s") from None
        finally:
            loop.remove_reader(connection)
        await loop.connect_accepted_socket(lambda: protocol, connection, ssl=tls, ssl_handshake_timeout=timeout_s)

    def _arrived(self, connection: socket.socket, turn: "asyncio.Future[None]") -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(connection)
        self._waiting.append(turn)
        if len(self._waiting) == 1:
            loop.call_soon(self._begin)

    def _begin(self) -> None:
        turn = self._waiting.popleft()
        if not turn.done():  # otherwise the wait was cancelled, or its time is over
            turn.set_result(None)
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._begin)


async def accept(protocol: asyncio.BaseProtocol, connection: socket.socket) -> None:
    """Attach a protocol to an accepted socket. Raises OSError."""
    await asyncio.get_running_loop().connect_accepted_socket(lambda: protocol, connection)


async def connect(protocol: asyncio.BaseProtocol, host: str, port: int, tls: ssl.SSLContext | None = None) -> None:
    """Connect a protocol to a host, with a TLS handshake if `tls` is given. Raises OSError."""
    connection = await connected(host, port)
    await asyncio.get_running_loop().create_connection(
        lambda: protocol, sock=connection, ssl=tls, server_hostname=host if tls else None
    )


async def addresses(host: str, port: int, flags: int = 0) -> Sequence[tuple[int, int, int, str, Any]]:
    """Resolve a host name with `getaddrinfo`. Raises OSError, also for an invalid name."""
    try:
        return await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    except UnicodeError:
        raise socket.gaierror(socket.EAI_NONAME, f"{host:.100} is not a valid name of a host") from None


async def connected(host: str, port: int, each_s: float = EACH_S) -> socket.socket:
    """Resolve a host name, connect a TCP socket to the first address that accepts, and return the socket. Raises OSError.

    `each_s`: seconds before the next address is tried, for addresses behind a firewall or over broken IPv6.
    """
    loop = asyncio.get_running_loop()
    resolved = await addresses(host, port)
    fault: OSError = OSError(errno.EADDRNOTAVAIL, "no address")
    for at, (family, kind, protocol, _, address) in enumerate(resolved, 1):
        try:
            connection = socket.socket(family, kind, protocol)
        except OSError as e:  # IPv6 may be switched off
            fault = e
            continue
        connection.setblocking(False)
        try:
            async with asyncio.timeout(each_s if at < len(resolved) else None):
                await loop.sock_connect(connection, address)
        except OSError as e:
            connection.close()
            fault = e
        except BaseException:
            connection.close()
            raise
        else:
            return connection
    raise fault


def fault_text(fault: Exception, *, secure: bool) -> str:
    """Return a readable reason why a connection failed or ended.

    `secure`: the connection uses TLS, so the peer may have rejected the handshake.
    """
    reason = str(getattr(fault, "reason", None) or "")
    if secure and (isinstance(fault, ENDED) or "_ALERT_" in reason):
        alert = reason.replace("_", " ").lower() if "_ALERT_" in reason else "it closed the connection"
        return f"the other end ended the TLS handshake ({alert}); check that it trusts this certificate"
    if reason in NO_TLS:
        return "the other end does not send TLS; check whether it uses this port without TLS"
    if isinstance(fault, OSError) and not isinstance(fault, ssl.SSLError | socket.gaierror) and (fault.errno or 0) > 0:
        return os.strerror(fault.errno or 0)
    return str(
        getattr(fault, "verify_message", None)
        or reason
        or getattr(fault, "strerror", None)
        or str(fault)
        or type(fault).__name__
    )


def reset(transport: asyncio.Transport) -> None:
    """Close a connection at once with a RST, so that the peer detects an abnormal end."""
    with suppress(OSError, AttributeError):
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    transport.abort()


def certificate_names(transport: asyncio.Transport) -> Sequence[str] | None:
    """Return the names in the peer's certificate; None without TLS, empty if the peer sent no certificate."""
    tls = transport.get_extra_info("ssl_object")
    return names_of_peer(tls.getpeercert() or {}) if tls is not None else None

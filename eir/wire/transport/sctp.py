"""SCTP (RFC 9260): listening and connecting sockets, and a transport for asyncio protocols.

The loop's own transports join waiting messages, or set TCP options on the socket. This transport sends each message of the
carried protocol as one SCTP message (RFC 6733 2.1). It delivers received data as a byte stream, like TCP, so that a peer may
split its messages. All parts of a message must come over the same SCTP stream, since two streams have no common order. Received
payload protocol identifiers are ignored.
"""

import asyncio
import errno
import os
import select
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

from eir.wire.transport import sctp_options as sctp
from eir.wire.transport import stream
from eir.wire.transport.endpoint import Endpoint
from eir.wire.transport.sctp_options import AssociationChange, Notification, Option
from eir.wire.transport.settings import SctpSettings, source_address


class SocketReadiness:
    """Watcher of a socket. It calls `ready` while the socket has an error, or is readable or writable and `want` has selected that event.

    uvloop stops watching a descriptor after POLLERR without a call, so that the end of an association would go unnoticed.
    Therefore the loop watches an epoll instance, which never has an error, and the epoll instance watches the socket.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, watched: socket.socket, ready: Callable[[], None]) -> None:
        self._loop = loop
        self._watched = watched
        self._wanted = 0
        self._epoll = select.epoll(1)
        loop.add_reader(self._epoll.fileno(), ready)

    def want(self, *, read: bool, write: bool) -> None:
        """Set the events to watch for: readable, writable, both or none."""
        wanted = (select.EPOLLIN if read else 0) | (select.EPOLLOUT if write else 0)
        if wanted == self._wanted:
            return
        if not wanted:
            self._epoll.unregister(self._watched)
        elif not self._wanted:
            self._epoll.register(self._watched, wanted)
        else:
            self._epoll.modify(self._watched, wanted)
        self._wanted = wanted

    def close(self) -> None:
        """Stop watching the socket. The caller closes the socket only after this call."""
        if not self._epoll.closed:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()


BACKLOG = 1024
READ_BYTES = 65_536
"""Approximate number of bytes that one turn of the loop reads from one connection."""
_ABORT = struct.pack("ii", 1, 0)
"""SO_LINGER on, 0 seconds: closing sends an ABORT (RFC 6458 4.1.4)."""


class Carried(NamedTuple):
    """Properties of a protocol over SCTP. Each message of the protocol contains its own length."""

    ppid: int
    """Payload protocol identifier of sent messages."""
    head: int
    """Number of octets of a message up to the end of its length field."""
    length: Callable[[bytes | memoryview, int], int]
    """Function that returns the length of the message at a position."""
    unordered: bool
    """True if messages are sent unordered, so that a lost packet delays no other message."""
    stream: Callable[[memoryview, int], int] | None = None
    """Function that returns the stream for a message, given the number of streams; None: stream 0."""


DIAMETER = Carried(sctp.PPID_DIAMETER, 4, lambda octets, at: int.from_bytes(octets[at + 1 : at + 4]), unordered=True)


class SctpProtocol(Protocol):
    """Interface of a protocol over SCTP: the methods of asyncio.Protocol, and callbacks for restarts and paths."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Handle the start of the connection, as in asyncio.Protocol."""

    def data_received(self, data: bytes) -> None: ...  # noqa: D102
    def eof_received(self) -> bool | None: ...  # noqa: D102
    def connection_lost(self, exc: Exception | None) -> None: ...  # noqa: D102
    def pause_writing(self) -> None: ...  # noqa: D102
    def resume_writing(self) -> None: ...  # noqa: D102

    def restarted(self) -> None:
        """Reset the state of the connection, because the peer has restarted the association."""

    def path_changed(self, address: str, *, up: bool) -> None:
        """Handle a change of a path: the path to this address of the peer has failed, or works again (`up`)."""


class SctpTransport(asyncio.Transport):
    """asyncio transport of an SCTP association, on a connected, non-blocking one-to-one socket (RFC 6458 4).

    Additional names of `get_extra_info`: `local_addresses`, `paths` (whether the path is up, by address of the peer), and
    `retransmissions` (number of retransmitted DATA chunks).
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connection: socket.socket,
        protocol: SctpProtocol,
        carried: Carried = DIAMETER,
    ) -> None:
        """Create the transport and call `connection_made`. Raises OSError if the association has ended."""
        peername = connection.getpeername()
        super().__init__({"socket": connection, "peername": peername, "sockname": connection.getsockname()})
        self._loop = loop
        self._socket = connection
        self._protocol = protocol
        self._carried = carried
        self._streams = sctp.streams(connection) if carried.stream is not None else 1
        if carried is not DIAMETER:
            self._order(unordered=False)
        addresses = sctp.addresses_of(connection, Option.GET_PEER_ADDRS)
        # The primary path works; other paths are confirmed by a heartbeat (RFC 9260 5.4).
        self._paths: dict[str, bool | None] = dict.fromkeys(addresses) | {str(source_address(peername[0])): True}
        """State of the path to each address: up (True), lost (False), or not confirmed yet (None)."""
        self._unsent: deque[bytes] = deque()
        self._unsent_bytes = 0
        self._high_bytes = 65_536
        self._write_paused = False
        self._reading = False
        self._spoken = False
        """True if a message was sent since the start of the association."""
        self._unordered = False
        self._closing = False
        self._ended = False
        self._retransmissions = 0
        self._partial = PartialMessage(carried)
        self._readiness = SocketReadiness(loop, connection, self._ready)
        protocol.connection_made(self)
        self.resume_reading()

    # asyncio.Transport

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return information on the transport by name: a name of asyncio, or an additional name from the docstring of SctpTransport."""
        match name:
            case "paths":
                return {address: bool(up) for address, up in self._paths.items()}
            case "retransmissions":
                if not self._ended:
                    self._retransmissions = max(self._retransmissions, sctp.retransmissions(self._socket) or 0)
                return self._retransmissions
            case "local_addresses":
                return sctp.addresses_of(self._socket, Option.GET_LOCAL_ADDRS)
        return super().get_extra_info(name, default)

    def is_closing(self) -> bool:
        """Return whether the transport is closing or closed, so that it no longer reads or sends."""
        return self._closing

    def is_reading(self) -> bool:
        """Return whether the transport is reading; `pause_reading` stops it."""
        return self._reading

    def pause_reading(self) -> None:
        """Stop reading until `resume_reading`."""
        self._reading = False
        self._watch()

    def resume_reading(self) -> None:
        """Start or continue to read."""
        self._reading = not self._closing
        self._watch()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set the buffer size in bytes (`high`) above which the transport pauses the protocol.

        The protocol resumes when at most a quarter of `high` is buffered.
        """
        del low
        self._high_bytes = 65_536 if high is None else high

    def get_write_buffer_size(self) -> int:
        """Return the number of buffered bytes, which the kernel has not accepted yet."""
        return self._unsent_bytes

    def can_write_eof(self) -> bool:
        """Return False: SCTP has no half-closed state (RFC 9260 1.5.1)."""
        return False

    def write(self, data: "bytes | bytearray | memoryview[Any]") -> None:
        """Send complete messages, each as one SCTP message.

        Messages that the kernel does not accept at once are buffered.
        """
        if self._closing:
            return
        self._spoken = True
        octets = bytes(data)
        at = self._send(octets, 0) if not self._unsent else 0
        if at < len(octets) and not self._ended:
            self._unsent.append(octets[at:])
            self._unsent_bytes += len(octets) - at
            self._watch()
            if self._unsent_bytes > self._high_bytes and not self._write_paused:
                self._write_paused = True
                self._protocol.pause_writing()

    def close(self) -> None:
        """Shut down the association (RFC 9260 9.2) after all messages are sent."""
        if not self._closing:
            self._closing = True
            self.pause_reading()
            if not self._unsent:
                self._end(None)

    def abort(self) -> None:
        """End the association at once with an ABORT (RFC 9260 9.1) and discard unsent messages."""
        if not self._ended:
            with suppress(OSError):
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
            self._end(None)

    # Called by the loop

    def _ready(self) -> None:
        if self._unsent:
            self._writable()
        if self._reading:
            self._readable()

    def _readable(self) -> None:
        parts: list[bytes] = []
        fault: OSError | None = None
        ended = False
        try:
            ended = self._receive(parts)
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as e:
            fault = e
        if parts and not self._closing:
            if self._spoken and self._carried.unordered and not self._unordered:
                self._order(unordered=True)
            self._protocol.data_received(b"".join(parts))
        if fault is not None:
            self._end(fault)
        elif ended and not self._closing:
            self.pause_reading()
            if not self._protocol.eof_received():
                self.close()

    def _receive(self, parts: list[bytes]) -> bool:
        """Read the SCTP messages that have arrived, and append their contents to `parts`. Raises OSError.

        Each message needs one `recvmsg`, whose ancillary data announces the next message. Returns whether the peer has shut
        down.
        """
        size = 0
        while size < READ_BYTES and self._reading:
            data, ancillary, flags, _ = self._socket.recvmsg(READ_BYTES, sctp.ANCILLARY_BYTES)
            if flags & sctp.NOTIFICATION:
                if (event := sctp.notification(data)) is not None:
                    self._handle_notification(event, parts)
            elif data:
                if self._partial.octets or len(data) != self._carried.length(data, 0):
                    self._partial.add(data, sctp.stream_of(ancillary))
                parts.append(data)
                size += len(data)
            else:
                return True
            if flags & sctp.END_OF_RECORD and not sctp.has_next(ancillary):
                break
        return False

    def _writable(self) -> None:
        while self._unsent:
            octets = self._unsent[0]
            at = self._send(octets, 0)
            if self._ended:
                return
            self._unsent_bytes -= at
            if at < len(octets):
                self._unsent[0] = octets[at:]
                break
            self._unsent.popleft()
        if self._write_paused and self._unsent_bytes <= self._high_bytes // 4:
            self._write_paused = False
            self._protocol.resume_writing()
        if not self._unsent and not self._ended:
            self._watch()
            if self._closing:
                self._end(None)

    # Internal

    def _watch(self) -> None:
        if not self._ended:
            self._readiness.want(read=self._reading, write=bool(self._unsent))

    def _send(self, octets: bytes, at: int) -> int:
        """Send messages from offset `at` on until the kernel accepts no more.

        Returns the offset of the first unsent message.
        """
        send, view, length, stream = self._socket.send, memoryview(octets), self._carried.length, self._carried.stream
        try:
            while at < len(octets):
                end = at + length(octets, at)
                if stream is None:
                    send(view[at:end])
                else:
                    number = stream(view[at:end], self._streams)
                    self._socket.sendmsg([view[at:end]], sctp.over_stream(number, self._carried.ppid))
                at = end
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as e:
            self._end(e)
        return at

    def _order(self, *, unordered: bool) -> None:
        # RFC 6733 2.1: unordered, so that a lost packet delays no other message; but in order until the peer has completed the capabilities
        # exchange, as its first message after ours shows.
        self._unordered = unordered
        with suppress(OSError):  # the association has ended, as the next read or write reports
            sctp.set_options(self._socket, sctp.send_layout(unordered=unordered, ppid=self._carried.ppid))

    def _handle_notification(self, event: Notification, parts: list[bytes]) -> None:
        if event.change is AssociationChange.RESTART:
            parts.clear()  # the restarted peer does not expect answers to its earlier requests
            self._unsent.clear()
            self._unsent_bytes = 0
            self._partial = PartialMessage(self._carried)
            self._spoken = False
            self._order(unordered=False)
            self._protocol.restarted()
            return
        if event.change is AssociationChange.LOST:
            raise ConnectionResetError(
                errno.ECONNRESET, "the association was aborted, or the peer does not answer any more"
            )
        up, before = event.change is AssociationChange.PATH_UP, self._paths.get(event.address)
        self._paths[event.address] = up
        if up is not before and not (up and before is None):  # the first confirmation of a path is not reported
            self._protocol.path_changed(event.address, up=up)

    def _end(self, fault: Exception | None) -> None:
        """Stop reading and sending, and schedule `connection_lost`. The kernel shuts the association down in the background."""
        if self._ended:
            return
        self.get_extra_info("retransmissions")
        self._ended = self._closing = True
        self._reading = False
        self._readiness.close()
        self._unsent.clear()
        self._unsent_bytes = 0
        self._loop.call_soon(self._lost_connection, fault)

    def _lost_connection(self, fault: Exception | None) -> None:
        try:
            self._protocol.connection_lost(fault)
        finally:
            self._socket.close()


class PartialMessage:
    """Received message that is incomplete: the number of octets still expected, and the SCTP stream."""

    __slots__ = ("_carried", "_head", "_stream", "octets")

    def __init__(self, carried: Carried) -> None:
        self._carried = carried
        self.octets = 0
        self._head = b""
        """Start of a message whose length field is incomplete."""
        self._stream: int | None = None

    def add(self, data: bytes, stream: int | None) -> None:
        """Update the number of octets that the incomplete message still lacks, after `data` was received on an SCTP stream.

        Raises:
            OSError: if the data continue a message that began on another stream.
        """
        if self.octets and stream != self._stream:
            raise ConnectionAbortedError(errno.EBADMSG, "the parts of a message came on two streams of SCTP")
        data = self._head + data
        at = 0 if self._head else self.octets
        self._head, self._stream = b"", stream
        head = self._carried.head
        while len(data) - at >= head and (size := self._carried.length(data, at)):
            at += size
        if len(data) - at >= head:
            self.octets = 0  # the protocol closes the connection after a length of 0
        elif at < len(data):
            self._head, self.octets = data[at:], head
        else:
            self.octets = at - len(data)


# Sockets


async def connect(protocol: SctpProtocol, to: Endpoint, settings: SctpSettings, carried: Carried = DIAMETER) -> None:
    """Connect a protocol to a peer, over the first address that answers. Raises OSError.

    The association has paths to all addresses of the peer.
    """
    loop = asyncio.get_running_loop()
    addresses = await _resolve(to)
    connection = _new_socket((*addresses, *settings.local_addresses), settings)
    try:
        if settings.local_addresses:
            sctp.bind(connection, settings.local_addresses, 0)
        with suppress(BlockingIOError):
            sctp.set_options(connection, sctp.connect_layout(addresses, to.port))
        await _connected(loop, connection)
        SctpTransport(loop, connection, protocol, carried)
    except BaseException:
        connection.close()
        raise


async def _connected(loop: asyncio.AbstractEventLoop, connection: socket.socket) -> None:
    writable = asyncio.Event()
    readiness = SocketReadiness(loop, connection, writable.set)
    try:
        readiness.want(read=False, write=True)
        await writable.wait()
    finally:
        readiness.close()
    if error := connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        raise OSError(error, os.strerror(error))


async def listening_socket(at: Endpoint, settings: SctpSettings) -> socket.socket:
    """Open a socket that listens on all addresses of an endpoint. Raises OSError."""
    addresses = await _resolve(at)
    listening = _new_socket(addresses, settings)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sctp.bind(listening, addresses, at.port)
        listening.listen(BACKLOG)
    except BaseException:
        listening.close()
        raise
    return listening


def _new_socket(addresses: Sequence[str], settings: SctpSettings) -> socket.socket:
    """Create a non-blocking socket for these addresses; dual-stack if they are of both IP versions."""
    family = socket.AF_INET6 if any(":" in each for each in addresses) else socket.AF_INET
    connection = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_SCTP)
    try:
        connection.setblocking(False)
        if all(":" in each for each in addresses):
            connection.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sctp.prepare(connection, settings)
    except BaseException:
        connection.close()
        raise
    return connection


async def _resolve(where: Endpoint) -> tuple[str, ...]:
    """Resolve the hosts of an endpoint to addresses. Raises OSError."""
    resolved = [await stream.addresses(host, where.port) for host in where.hosts]
    return tuple(dict.fromkeys(str(address[0]) for each in resolved for _, _, _, _, address in each))

"""SCTP (RFC 9260): sockets that listen and connect, and a transport of our own on the loop's readers and writers.

The loop's own transports join what waits to be sent, which merges messages, or set TCP options on the socket. Here each
message of Diameter, or of what else is carried, goes out by one `send`, as one SCTP message (RFC 6733 2.1). What comes in is taken as a stream of bytes, like TCP's, so that a
peer may cut its messages as it likes, as long as all parts of one come over the same stream of SCTP: over two they may come in any
order. Payload protocol identifiers of others are not looked at.
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
from eir.wire.transport.sctp_options import Change, Notification, Option
from eir.wire.transport.settings import SctpSettings, source_address


class Readiness:
    """Calls `ready` while one of the wanted events is possible; an error of the socket counts as any of them.

    uvloop gives a descriptor up when poll says POLLERR of it, and calls nobody: the end of an association would go unnoticed.
    So the loop watches an epoll instance, which never is in error, and that one watches the socket.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, watched: socket.socket, ready: Callable[[], None]) -> None:
        self._loop = loop
        self._watched = watched
        self._wanted = 0
        self._epoll = select.epoll(1)
        loop.add_reader(self._epoll.fileno(), ready)

    def want(self, *, read: bool, write: bool) -> None:
        """Wait for these events from now on; for nothing at all if both are false."""
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
        """Call nobody any more; to be called before the socket is closed."""
        if not self._epoll.closed:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()


BACKLOG = 1024
READ_BYTES = 65_536
"""Bytes, roughly, that one turn of the loop reads from one connection."""
_ABORT = struct.pack("ii", 1, 0)
"""SO_LINGER on, 0 seconds: closing sends an ABORT (RFC 6458 4.1.4)."""


class Carried(NamedTuple):
    """The payload of SCTP: messages that contain their own length. Each goes out as one message of SCTP."""

    ppid: int
    """Payload protocol identifier of sent messages."""
    head: int
    """Octets of a message up to the end of its length."""
    length: Callable[[bytes | memoryview, int], int]
    """The length of the message at a place."""
    unordered: bool
    """A lost packet is to hold up no other message."""
    stream: Callable[[memoryview, int], int] | None = None
    """The stream for a message, by the number of streams; None: stream 0."""


DIAMETER = Carried(sctp.PPID_DIAMETER, 4, lambda octets, at: int.from_bytes(octets[at + 1 : at + 4]), unordered=True)


class Receiver(Protocol):
    """The protocol of an SCTP transport: an asyncio.Protocol that is told of the association, too."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol, as for all but the last two."""

    def data_received(self, data: bytes) -> None: ...  # noqa: D102
    def eof_received(self) -> bool | None: ...  # noqa: D102
    def connection_lost(self, exc: Exception | None) -> None: ...  # noqa: D102
    def pause_writing(self) -> None: ...  # noqa: D102
    def resume_writing(self) -> None: ...  # noqa: D102

    def restarted(self) -> None:
        """The peer restarted the association and knows nothing of what was said before; forget that here too."""

    def path_changed(self, address: str, *, up: bool) -> None:
        """A path to the peer, by its address there, was lost or is back."""


class SctpTransport(asyncio.Transport):
    """One association, by a one-to-one socket (RFC 6458 4) that is connected and does not block.

    `get_extra_info` knows, besides what any transport does: `local_addresses`, `paths` (address of the peer → whether it is
    reached), and `retransmissions` (DATA chunks sent again so far).
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connection: socket.socket,
        protocol: Receiver,
        carried: Carried = DIAMETER,
    ) -> None:
        """Raises OSError if the association is gone already."""
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
        # The one that the association was made over is known to work, others once they have answered a heartbeat (RFC 9260 5.4).
        self._paths: dict[str, bool | None] = dict.fromkeys(addresses) | {str(source_address(peername[0])): True}
        """The state of the path to each address: reached (True), lost (False), or not heard of yet (None)."""
        self._unsent: deque[bytes] = deque()
        self._unsent_bytes = 0
        self._high_bytes = 65_536
        self._write_paused = False
        self._reading = False
        self._spoken = False
        """Something was sent since the association began."""
        self._unordered = False
        self._closing = False
        self._ended = False
        self._retransmissions = 0
        self._owed = _Owed(carried)
        self._readiness = Readiness(loop, connection, self._ready)
        protocol.connection_made(self)
        self.resume_reading()

    # asyncio.Transport

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """See the class."""
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
        """True if nothing more is read or accepted for sending."""
        return self._closing

    def is_reading(self) -> bool:
        """True if incoming data is read."""
        return self._reading

    def pause_reading(self) -> None:
        """Read nothing until `resume_reading`."""
        self._reading = False
        self._watch()

    def resume_reading(self) -> None:
        """Read again."""
        self._reading = not self._closing
        self._watch()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Above `high` bytes the protocol is paused, until a quarter of that is left."""
        del low
        self._high_bytes = 65_536 if high is None else high

    def get_write_buffer_size(self) -> int:
        """Bytes that the kernel has not taken yet."""
        return self._unsent_bytes

    def can_write_eof(self) -> bool:
        """SCTP has no half of a connection (RFC 9260 1.5.1): who shuts down takes nothing more."""
        return False

    def write(self, data: "bytes | bytearray | memoryview[Any]") -> None:
        """Send whole messages, each as one message of SCTP; what the kernel does not take at once waits."""
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
        """Shut down in order (RFC 9260 9.2) once everything is sent."""
        if not self._closing:
            self._closing = True
            self.pause_reading()
            if not self._unsent:
                self._end(None)

    def abort(self) -> None:
        """End the association at once, by ABORT (RFC 9260 9.1), even if something is unsent."""
        if not self._ended:
            with suppress(OSError):
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
            self._end(None)

    # What the loop calls

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
        """Read what is there: one `recvmsg` for each message, which also says whether there is another one. Raises OSError.

        Returns whether the other end has shut down.
        """
        size = 0
        while size < READ_BYTES and self._reading:
            data, ancillary, flags, _ = self._socket.recvmsg(READ_BYTES, sctp.ANCILLARY_BYTES)
            if flags & sctp.NOTIFICATION:
                if (told := sctp.notification(data)) is not None:
                    self._tell(told, parts)
            elif data:
                if self._owed.octets or len(data) != self._carried.length(data, 0):
                    self._owed.take(data, sctp.stream_of(ancillary))
                parts.append(data)
                size += len(data)
            else:
                return True
            if flags & sctp.END_OF_RECORD and not sctp.another_is_there(ancillary):
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

    # Inside

    def _watch(self) -> None:
        if not self._ended:
            self._readiness.want(read=self._reading, write=bool(self._unsent))

    def _send(self, octets: bytes, at: int) -> int:
        """Send messages from this position on until the kernel takes no more; returns the position behind those it took."""
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
        # RFC 6733 2.1: unordered, so that a lost packet holds up no other message; in order until the peer has seen the exchange of
        # capabilities through, which its first message after ours shows.
        self._unordered = unordered
        with suppress(OSError):  # it is gone, as the next read or write will find
            sctp.put(self._socket, sctp.send_layout(unordered=unordered, ppid=self._carried.ppid))

    def _tell(self, told: Notification, parts: list[bytes]) -> None:
        if told.change is Change.RESTART:
            parts.clear()  # an answer to what was asked before would be one that nobody has asked for now
            self._unsent.clear()
            self._unsent_bytes = 0
            self._owed = _Owed(self._carried)
            self._spoken = False
            self._order(unordered=False)
            self._protocol.restarted()
            return
        if told.change is Change.LOST:
            raise ConnectionResetError(
                errno.ECONNRESET, "the association was aborted, or the peer does not answer any more"
            )
        up, before = told.change is Change.PATH_UP, self._paths.get(told.address)
        self._paths[told.address] = up
        if up is not before and not (up and before is None):  # that a path is there at all is no news
            self._protocol.path_changed(told.address, up=up)

    def _end(self, fault: Exception | None) -> None:
        """The association is over for us; the kernel shuts it down in the background."""
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


class _Owed:
    """The rest of a message that is still to come, and its stream."""

    __slots__ = ("_carried", "_head", "_stream", "octets")

    def __init__(self, carried: Carried) -> None:
        self._carried = carried
        self.octets = 0
        self._head = b""
        """The beginning of a message, while its length has not come."""
        self._stream: int | None = None

    def take(self, data: bytes, stream: int | None) -> None:
        """More has come. Raises OSError if it came on another stream than what it would complete."""
        if self.octets and stream != self._stream:
            raise ConnectionAbortedError(errno.EBADMSG, "the parts of a message came on two streams of SCTP")
        data = self._head + data
        at = 0 if self._head else self.octets
        self._head, self._stream = b"", stream
        head = self._carried.head
        while len(data) - at >= head and (size := self._carried.length(data, at)):
            at += size
        if len(data) - at >= head:
            self.octets = 0  # nothing can follow a length of 0: whoever reads it closes the connection
        elif at < len(data):
            self._head, self.octets = data[at:], head
        else:
            self.octets = at - len(data)


# Sockets


async def connect(protocol: Receiver, to: Endpoint, settings: SctpSettings, carried: Carried = DIAMETER) -> None:
    """Connect to a peer by whichever of its addresses answers first; all of them are paths to it. Raises OSError."""
    loop = asyncio.get_running_loop()
    addresses = await _resolve(to)
    connection = _new_socket((*addresses, *settings.local_addresses), settings)
    try:
        if settings.local_addresses:
            sctp.bind(connection, settings.local_addresses, 0)
        with suppress(BlockingIOError):
            sctp.put(connection, sctp.connect_layout(addresses, to.port))
        await _connected(loop, connection)
        SctpTransport(loop, connection, protocol, carried)
    except BaseException:
        connection.close()
        raise


async def _connected(loop: asyncio.AbstractEventLoop, connection: socket.socket) -> None:
    writable = asyncio.Event()
    readiness = Readiness(loop, connection, writable.set)
    try:
        readiness.want(read=False, write=True)
        await writable.wait()
    finally:
        readiness.close()
    if error := connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        raise OSError(error, os.strerror(error))


async def listening_socket(at: Endpoint, settings: SctpSettings) -> socket.socket:
    """A socket that listens at all these addresses at once. Raises OSError if they cannot be had."""
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
    """A socket for addresses of this kind, which does not block; one for both versions of IP if there are both."""
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
    """The addresses of an endpoint, those of its names included. Raises OSError."""
    found = [await stream.addresses(host, where.port) for host in where.hosts]
    return tuple(dict.fromkeys(str(address[0]) for each in found for _, _, _, _, address in each))

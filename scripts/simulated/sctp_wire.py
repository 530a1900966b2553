"""SCTP client by plain sockets: a reader and a writer like those of TCP streams, and raw messages with their ancillary data."""

import asyncio
import select
import socket
import struct
from contextlib import suppress
from typing import NamedTuple

SCTP = socket.IPPROTO_SCTP
BINDX_ADD, CONNECTX, NODELAY, RECVRCVINFO, DEFAULT_SNDINFO = 100, 110, 3, 32, 34
PIECE = 50_000


def packed(addresses, port):
    return b"".join(
        struct.pack("=H2s4s8x", socket.AF_INET, port.to_bytes(2), socket.inet_aton(each)) for each in addresses
    )


def sctp_socket(*addresses, port=0):
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM, SCTP)
    made.setblocking(False)
    made.setsockopt(SCTP, NODELAY, 1)
    if addresses:
        made.setsockopt(SCTP, BINDX_ADD, packed(addresses, port))
    return made


def send_over(made, *, stream, ppid):
    """Send over this stream from now on, with this payload protocol."""
    made.setsockopt(SCTP, DEFAULT_SNDINFO, struct.pack("=HH4sIi", stream, 0, ppid.to_bytes(4), 0, 0))


async def connected(port, *hosts, **bound):
    made = sctp_socket(*bound.pop("addresses", ()), **bound)
    try:
        await asyncio.get_running_loop().sock_connect(made, ((hosts or ("127.0.0.1",))[0], port))
    except OSError:
        made.close()
        raise
    return made


class Server:
    """A listener as `accepting` gives it; who made it closes its connections."""

    def __init__(self, made, host):
        self._socket, self._made = sctp_socket(host), made

    async def __aenter__(self):
        self._socket.listen(16)
        asyncio.get_running_loop().add_reader(self._socket, self._accept)
        return self._socket.getsockname()[:2]

    def _accept(self):
        accepted, _ = self._socket.accept()
        accepted.setblocking(False)
        accepted.setsockopt(SCTP, NODELAY, 1)
        self._made(*streams(accepted))

    async def __aexit__(self, *_):
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()


async def open_connection(host, port):
    """As asyncio.open_connection."""
    return streams(await connected(port, host))


def streams(connected):
    reader = asyncio.StreamReader()
    return reader, Writer(connected, reader)


class Writer:
    """As much of a StreamWriter as tests use; it is its own transport."""

    def __init__(self, connected, reader):
        self.socket = connected
        self.transport = self
        self._reader = reader
        self._loop = asyncio.get_running_loop()
        self._waiting = []
        self._epoll = select.epoll()  # uvloop would give the socket up at its first error
        self._epoll.register(connected, select.EPOLLIN)
        self._loop.add_reader(self._epoll.fileno(), self._read)

    def _read(self):
        try:
            data = self.socket.recv(65536)
        except BlockingIOError:
            return
        except OSError as e:
            self._reader.set_exception(e)
            self.close()
            return
        if data:
            self._reader.feed_data(data)
        else:
            self._stop_reading()
            self._reader.feed_eof()

    def _stop_reading(self):
        if not self._epoll.closed:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()

    def write(self, data):
        if not self._waiting and len(data) <= PIECE:
            with suppress(BlockingIOError):
                self.socket.send(data)
                return
        self._waiting.append(data)

    def is_closing(self):
        return self.socket.fileno() < 0

    def get_extra_info(self, name):
        return {"socket": self.socket, "sockname": self.socket.getsockname()}[name]

    def write_eof(self):
        self.socket.shutdown(socket.SHUT_WR)

    async def drain(self):
        waiting, self._waiting = self._waiting, []
        for data in waiting:
            for at in range(0, len(data), PIECE):
                await self._loop.sock_sendall(self.socket, data[at : at + PIECE])

    def close(self):
        if self.socket.fileno() >= 0:
            self._stop_reading()
            self.socket.close()

    def abort(self):
        if self.socket.fileno() >= 0:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close()

    async def wait_closed(self):
        pass


class Received(NamedTuple):
    """One SCTP message."""

    data: bytes
    stream: int
    unordered: bool
    ppid: int
    whole: bool


async def receive(connected):
    """The next message, with what came beside it (RECVRCVINFO is to be on)."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            data, ancillary, flags, _ = connected.recvmsg(65536, 256)
        except BlockingIOError:
            readable = asyncio.Event()
            loop.add_reader(connected, readable.set)
            try:
                await readable.wait()
            finally:
                loop.remove_reader(connected)
            continue
        if not data:
            return None
        stream, _, info, ppid = struct.unpack_from("=HHHxx4s", ancillary[0][2])
        return Received(data, stream, bool(info & 1), int.from_bytes(ppid), bool(flags & socket.MSG_EOR))

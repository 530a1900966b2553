"""Diameter messages: an encoder and a decoder that share no code with the node's."""

import asyncio
import struct
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from . import sctp_wire
from .patience import PATIENCE_S
from .tcp_server import accepting

APP = 16777252
TGPP = 10415
HOST, REALM = "mme.localdomain", "localdomain"
EIR = "eir.localdomain"
VECTORS = Path(__file__).parent / "vectors"


def vector(name):
    return bytes.fromhex((VECTORS / f"{name}.hex").read_text().replace("\n", ""))


def avp(code, data=b"", vendor=0, flags=0x40, length=None):
    data = data.encode() if isinstance(data, str) else data
    head = struct.pack(">I", vendor) if vendor else b""
    flags |= 0x80 if vendor else 0
    size = 8 + len(head) + len(data)
    return struct.pack(">II", code, flags << 24 | (size if length is None else length)) + head + data + bytes(-size % 4)


def u32(code, value, vendor=0, flags=0x40):
    return avp(code, struct.pack(">I", value), vendor, flags)


def message(command, avps=b"", flags=0xC0, app=APP, ids=(0x11111111, 0x22222222), version=1, length=None):
    length = 20 + len(avps) if length is None else length
    return struct.pack(">IIIII", version << 24 | length, flags << 24 | command, app, *ids) + avps


class Avp(NamedTuple):
    code: int
    vendor: int
    flags: int
    data: bytes
    raw: bytes


def walk(octets):
    """Strict: what we send has to be well formed to the last byte."""
    found = []
    while octets:
        code, word = struct.unpack(">II", octets[:8])
        flags, size = word >> 24, word & 0xFFFFFF
        head = 12 if flags & 0x80 else 8
        whole = size + -size % 4
        assert head <= size <= whole <= len(octets), "an AVP of ours is malformed"
        vendor = struct.unpack(">I", octets[8:12])[0] if flags & 0x80 else 0
        assert octets[size:whole] == bytes(whole - size), "padding is not zero"
        found.append(Avp(code, vendor, flags, octets[head:size], octets[:whole]))
        octets = octets[whole:]
    return found


class Message:
    def __init__(self, octets):
        first, second, self.app, self.hop_by_hop, self.end_to_end = struct.unpack(">IIIII", octets[:20])
        assert first == 1 << 24 | len(octets)
        self.octets = octets
        self.flags, self.command = second >> 24, second & 0xFFFFFF
        self.is_request = bool(self.flags & 0x80)
        self.error = bool(self.flags & 0x20)
        # A Proxy-Info is copied as it came, and may be anything.
        self.avps = walk(octets[20:])

    def every(self, code, vendor=0):
        return [found for found in self.avps if (found.code, found.vendor) == (code, vendor)]

    def data(self, code, vendor=0):
        found = self.every(code, vendor)
        assert len(found) <= 1, f"AVP {code} stands {len(found)} times"
        return found[0].data if found else None

    def number(self, code, vendor=0):
        data = self.data(code, vendor)
        return None if data is None else int.from_bytes(data)

    @property
    def result(self):
        """2001, or 10415:5422; there is exactly one of the two."""
        code, experimental = self.data(268), self.data(297)
        assert (code is None) != (experimental is None)
        if code is not None:
            return int.from_bytes(code)
        inside = {found.code: int.from_bytes(found.data) for found in walk(experimental)}
        return f"{inside[266]}:{inside[298]}"


VSAI = avp(260, u32(266, TGPP) + u32(258, APP))
SESSION = f"{HOST};1;2;test"


def terminal(imei="35123456789012", version="34", extra=b""):
    inside = b"" if imei is None else avp(1402, imei, TGPP)
    inside += b"" if version is None else avp(1403, version, TGPP)
    return avp(1401, inside + extra, TGPP)


def ecr(imei="35123456789012", *, drop=(), extra=b"", flags=0xC0, ids=(0x11111111, 0x22222222), **put):
    """An ECR; `drop` names parts to leave out, `put` gives other bytes for parts, `extra` stands at the end."""
    parts = {
        "session": avp(263, SESSION),
        "vsai": VSAI,
        "state": u32(277, 1),
        "host": avp(264, HOST),
        "realm": avp(296, REALM),
        "to_realm": avp(283, REALM),
        "terminal": terminal(imei),
        "user": avp(1, "001010123456789"),
    } | put
    return message(324, b"".join(octets for name, octets in parts.items() if name not in drop) + extra, flags, ids=ids)


def cer(host=HOST, realm=REALM, *, drop=(), extra=b"", flags=0x80, ids=(0x33333333, 0x44444444), **put):
    parts = {
        "host": avp(264, host),
        "realm": avp(296, realm),
        "address": avp(257, b"\0\1\x0a\0\0\1"),
        "vendor": u32(266, 0),
        "product": avp(269, "test", flags=0),
        "state_id": u32(278, 100),
        "app": VSAI,
    } | put
    return message(257, b"".join(octets for name, octets in parts.items() if name not in drop) + extra, flags, 0, ids)


def dwr(host=HOST, ids=(0x55555555, 0x66666666), flags=0x80, extra=b""):
    return message(280, avp(264, host) + avp(296, REALM) + extra, flags, 0, ids)


def dpr(cause=0, host=HOST, ids=(0x77777777, 0x88888888)):
    avps = avp(264, host) + avp(296, REALM) + (b"" if cause is None else u32(273, cause))
    return message(282, avps, 0x80, 0, ids)


def answer_to(request, code=2001, extra=b"", flags=0, host=HOST, realm=REALM):
    """An answer to a request of the node's (a wire.Message)."""
    avps = u32(268, code) + avp(264, host) + avp(296, realm) + extra
    return message(request.command, avps, flags, request.app, (request.hop_by_hop, request.end_to_end))


class Connection:
    """A client that does what it is told; it counts whole messages, as the node's counters do."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer
        self.sent, self.received, self.solicited = Counter(), Counter(), 0

    async def send(self, *messages, uncounted=b""):
        for octets in messages:
            self.sent["request" if octets[4] & 0x80 else "answer"] += 1
        self.writer.write(b"".join(messages) + uncounted)
        await self.writer.drain()

    async def read(self):
        async with asyncio.timeout(PATIENCE_S):
            head = await self.reader.readexactly(4)
            octets = head + await self.reader.readexactly(int.from_bytes(head[1:]) - 4)
        found = Message(octets)
        self.received["request" if found.is_request else "answer"] += 1
        return found

    async def ask(self, octets):
        """Send a request, and give its answer; the node's watchdog, which may come first on a slow host, has its answer too."""
        await self.send(octets)
        while (found := await self.read()).is_request and found.command == 280:
            await self.answer(found)
        return found

    async def answer(self, request, **kwargs):
        self.solicited += 1
        await self.send(answer_to(request, **kwargs))

    async def open(self, octets=None):
        cea = await self.ask(cer() if octets is None else octets)
        assert cea.result == 2001
        return cea

    async def end(self):
        """Wait for the node to close; returns the messages that came before. A reset is an end too."""
        came = []
        try:
            while True:
                came.append(await self.read())
        except (asyncio.IncompleteReadError, ConnectionError):
            return came

    async def close(self):
        self.writer.close()
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self.writer.wait_closed()
        except ConnectionError:
            pass


class Listener:
    """A node that others connect to: `accept` gives the next connection."""

    def __init__(self, host="127.0.0.1", *, scheme="tcp", tls=None):
        self.host = host
        self._scheme = scheme
        self._tls = tls if scheme == "tls" else None

    async def __aenter__(self):
        self.waiting = asyncio.Queue()
        self.made = []
        if self._scheme == "sctp":
            self._server = sctp_wire.Server(self._made, self.host)
        else:
            self._server = accepting(self._made, self.host, tls=self._tls)
        _, self.port = await self._server.__aenter__()
        return self

    async def __aexit__(self, *_):
        for connection in self.made:
            await connection.close()
        await self._server.__aexit__(None, None, None)

    def _made(self, reader, writer):
        connection = Connection(reader, writer)
        self.made.append(connection)
        self.waiting.put_nowait(connection)

    async def accept(self):
        async with asyncio.timeout(PATIENCE_S):
            return await self.waiting.get()


async def until(condition):
    """Wait for a condition that the loop will bring about."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - the conditions are of counters and lists, which have no event to wait for
            await asyncio.sleep(0.002)

"""Fastest Diameter server in Python on uvloop: `floor.py PORT REALM` only frames messages and sends constant answers.

The first message of a connection gets one constant answer (a CEA), each further message another (an ECA), whatever it contains. The
server copies no identifier, looks up nothing and counts nothing. One write sends all answers to one read.
"""

import asyncio
import struct
import sys

import uvloop

S13, TGPP = 16777252, 10415


def avp(code: int, data: bytes, vendor: int = 0) -> bytes:
    """Return one AVP with the M bit."""
    head = struct.pack("!II", code, (0xC0 if vendor else 0x40) << 24 | 8 + 4 * bool(vendor) + len(data))
    return head + (struct.pack("!I", vendor) if vendor else b"") + data + bytes(-len(data) & 3)


def message(flags: int, command: int, application: int, avps: bytes) -> bytes:
    """Return one message with identifiers 0."""
    return struct.pack("!IIIII", 1 << 24 | 20 + len(avps), flags << 24 | command, application, 0, 0) + avps


def number(code: int, value: int, vendor: int = 0) -> bytes:
    """Return an AVP with a number of 32 bits."""
    return avp(code, struct.pack("!I", value), vendor)


class Floor(asyncio.Protocol):
    """Server of one connection."""

    def __init__(self, cea: bytes, eca: bytes) -> None:
        self._first, self._answer = cea, eca
        self._rest = b""
        self._write = lambda _: None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport's write."""
        self._write = transport.write  # type: ignore[attr-defined]  # a stream's has it

    def data_received(self, data: bytes) -> None:
        """Count the complete messages, and send this number of answers."""
        if self._rest:
            data = self._rest + data
        position, size, count = 0, len(data), 0
        while position + 4 <= size:
            length = int.from_bytes(data[position + 1 : position + 4])
            if position + length > size:
                break
            position += length
            count += 1
        self._rest = data[position:]
        if count:
            first, self._first = self._first, self._answer
            self._write(first + self._answer * (count - 1))


async def main(port: int, realm: str) -> None:
    """Serve until the process is ended."""
    origin = avp(264, f"floor.{realm}".encode()) + avp(296, realm.encode())
    eca = message(
        0x40, 324, S13, avp(263, b"x" * 40) + number(268, 2001) + number(277, 1) + origin + number(1445, 0, TGPP)
    )  # as long as a real one
    cea = message(0, 257, 0, number(268, 2001) + origin)
    server = await asyncio.get_running_loop().create_server(lambda: Floor(cea, eca), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), sys.argv[2]))

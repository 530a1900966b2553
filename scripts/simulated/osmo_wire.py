"""GSUP over IPA: an encoder and a decoder that share no code with the node's, an MSC, and an HLR with scripted behaviour."""

import asyncio
import struct

from .patience import PATIENCE_S
from .tcp_server import accepting

ID_GET = bytes.fromhex("0011fe0401080107010201030104010501010100")
ID_RESP = bytes.fromhex(
    "004efe05000708302f302f300000130730303a30303a30303a30303a30303a303000000202000002030000020400"
    "0011056f736d6f2d6d73632d312e31332e30000005014d5343000007004d53432d3100"
)  # fmt: skip
"""The identity that an OsmoMSC with `ipa-name MSC-1` gives."""
ID_ACK, PING, PONG = (bytes.fromhex(f"0001fe{kind}") for kind in ("06", "00", "01"))
IMSI = "001010000000001"
CHECK = bytes.fromhex("0019ee0530010800010100000000f1500807941045022373150a0101")
"""IMSI 001010000000001, IMEI 49015420323751."""
ACK, NACK = (bytes.fromhex(f"000fee0532010800010100000000f15101{result}") for result in ("00", "01"))


def ipa(stream, payload):
    return struct.pack(">HB", len(payload), stream) + payload


def tbcd(digits):
    padded = digits.replace("*", "a") + "f" * (len(digits) % 2)
    return bytes.fromhex("".join(padded[at + 1] + padded[at] for at in range(0, len(padded), 2)))


def gsup(kind, *elements):
    return ipa(0xEE, bytes([5, kind]) + b"".join(bytes([tag, len(value)]) + value for tag, value in elements))


def check(imei, imsi=IMSI):
    """CHECK-IMEI as an OsmoMSC sends it, whatever digits there are."""
    device = tbcd(imei)
    return gsup(0x30, (1, tbcd(imsi)), (0x50, bytes([len(device)]) + device), (0x0A, b"\1"))


def update_location(imsi=IMSI, number=0):
    return gsup(0x04, (1, tbcd(imsi)), (0x28, b"\2"), (0x77, number.to_bytes(4)))


def frames(octets):
    """Whole frames, and what is left."""
    found = []
    while len(octets) >= 3 and len(octets) >= (size := 3 + int.from_bytes(octets[:2])):
        found.append(octets[:size])
        octets = octets[size:]
    return found, octets


def is_gsup(frame):
    return frame[2:4] == b"\xee\x05"


class End:
    """One end of a connection: frames out, frames in."""

    def __init__(self, reader, writer):
        self.reader, self.writer, self.found, self.rest = reader, writer, [], b""
        self.ended = False

    @classmethod
    async def to(cls, port, **options):
        return cls(*await asyncio.open_connection("127.0.0.1", port, **options))

    def send(self, *octets):
        self.writer.write(b"".join(octets))
        return self

    async def read(self):
        """Read once; False at the end."""
        try:
            data = await self.reader.read(1 << 16)
        except ConnectionError:
            data = b""
        found, self.rest = frames(self.rest + data)
        self.found += found
        self.ended = not data
        return bool(data)

    async def until(self, condition, *, patience_s=PATIENCE_S):
        """Read until it holds of the frames that came; False if the connection ended first."""
        async with asyncio.timeout(patience_s):
            while not condition(self.found):
                if not await self.read():
                    return condition(self.found)
        return True

    async def next(self, wanted=is_gsup):
        """Take the next GSUP frame (or other) out of those that come."""
        await self.until(lambda found: any(map(wanted, found)))
        at = next((at for at, each in enumerate(self.found) if wanted(each)), None)
        return None if at is None else self.found.pop(at)

    def close(self):
        self.writer.transport.abort()


class Msc(End):
    """A client that says who it is when it is asked."""

    async def read(self):
        more = await super().read()
        while ID_GET in self.found:
            self.found.remove(ID_GET)
            self.send(ID_RESP, ID_ACK, PING)
        return more


class Hlr:
    """An HLR of the test's own: asks who is there as an OsmoHLR does, answers what `answer` makes of each GSUP message, keeps all of them."""

    def __init__(self, answer=lambda _: b"", *, asks=True):
        self.answer, self.asks = answer, asks
        self.ends, self.messages, self.names = [], [], []
        self.port, self._server = 0, None
        self.runs = asyncio.Event()
        """Cleared: it hangs, as one that was stopped by SIGSTOP. The kernel still accepts connections for it."""
        self.runs.set()

    async def start(self):
        self._server = accepting(self._serve, port=self.port)
        _, self.port = await self._server.__aenter__()
        return self

    async def _serve(self, reader, writer):
        end = End(reader, writer)
        self.ends.append(end)
        await self.runs.wait()
        if self.asks:
            end.send(ID_GET)
        while await end.read():
            await self.runs.wait()
            for frame in end.found:
                if frame == PING:
                    end.send(PONG)
                elif frame[2:4] == b"\xfe\x05":
                    self.names.append(frame)
                elif frame[2] != 0xFE:
                    self.messages.append(frame)
                    if said := self.answer(frame):
                        end.send(said)
            end.found.clear()
        end.close()

    async def stop(self):
        """Be gone, as one that was killed."""
        self.ends.clear()
        await self._server.__aexit__(None, None, None)

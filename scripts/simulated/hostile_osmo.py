"""OsmoMSCs whose messages are wrong in GSUP or in the frames below it, and a correct OsmoMSC beside them.

The seed alone determines the messages.
"""

from . import osmo_wire as wire
from .hostile import Asking, Fuzzer, OctetMutator
from .node import LISTED, UNLISTED

ME = (1, wire.tbcd(wire.IMSI))
GOOD = [
    wire.CHECK, wire.check(LISTED), wire.check(f"{UNLISTED}1"), wire.check("12"), wire.update_location(), wire.gsup(0x30, ME), wire.gsup(0x06, ME),
    wire.gsup(0x12, ME), wire.gsup(0x32, ME, (0x51, b"\0")), wire.ID_RESP, wire.ID_ACK, wire.PING, wire.PONG, wire.ipa(0xEE, b"\x00ctrl"),
    wire.ipa(0xFD, b"sccp"), wire.ipa(0xFE, b"\x04"),
]  # fmt: skip
RESULTS = (0x31, 0x32)


def accepted(frame):
    """An HLR's answer: it accepts each location update."""
    return wire.gsup(0x06, ME) if frame[4:5] == b"\x04" else b""


class Mutator(OctetMutator):
    """Frames that are wrong in one layer."""

    OCTETS = (*OctetMutator.OCTETS, 0x05, 0x06, 0x0A, 0x28, 0x31, 0x32, 0x50, 0x51, 0xEE)

    def __init__(self, seed, *, survives=0.97):
        super().__init__(seed)
        self._survives = survives

    def message(self):
        """The next one: wrong behind the frame's header, or anywhere in it."""
        good = self.random.choice(GOOD)
        if self.random.random() < 0.5:
            return wire.ipa(good[2], self.mutated(good[3:]))
        whole = self.mutated(good)
        if self.random.random() > self._survives:
            return whole
        whole = whole.ljust(3, b"\0")
        return wire.ipa(whole[2], whole[3:])

    def stream(self):
        """Some of them, and half the time with changes across all of it."""
        octets = b"".join([wire.ID_RESP, *(self.message() for _ in range(self.random.randrange(20)))])
        return self.mutated(octets) if self.random.random() < 0.5 else octets


class GsupFuzzer(Fuzzer):
    """Clients over IPA."""

    good = wire.CHECK

    def __init__(self, node, where):
        self.node, self.where = node, where

    def mutator(self, seed, **more):
        return Mutator(seed, **more)

    def first(self, _):
        return wire.ID_RESP

    def last(self, _, sent):
        return wire.check(UNLISTED, _imsi(sent))

    async def look(self, reader, sent, found):
        awaited = wire.gsup(0x32, (1, wire.tbcd(_imsi(sent))), (0x51, b"\0"))
        while True:
            head = await reader.readexactly(3)
            frame = head + await reader.readexactly(int.from_bytes(head[:2]))
            found.answers += wire.is_gsup(frame) and frame[4] in RESULTS
            if frame == awaited:
                return


def _imsi(number):
    """One that no other question has."""
    return f"00101{number:010}"


class Steady(Asking):
    """An MSC that does all right."""

    async def opened(self, where):
        return await wire.Msc.to(where[1])

    async def check(self, connection, number, imei, *, listed):
        imsi = _imsi(number)
        said = await connection.send(wire.check(imei, imsi)).next()
        return None if said == wire.gsup(0x32, (1, wire.tbcd(imsi)), (0x51, bytes([listed]))) else f"{said}"

    async def closed(self, connection):
        connection.close()

"""MSCs whose messages are wrong in one layer (M3UA, SCCP, TCAP), and a correct MSC beside them.

A message is good but for the layer that is fuzzed, so that what is below lets it pass. The seed alone determines the messages.
"""

from eir.wire.ss7 import m3ua, sccp
from eir.wire.ss7.m3ua import MessageKind, ParameterTag, parameter

from . import m3ua_wire as wire
from .hostile import Asking, Fuzzer, OctetMutator
from .msc import Msc

LAYERS = ("m3ua", "sccp", "tcap")
BEGINS = [bytes.fromhex(vector) for vector in wire.VECTORS.values()]
CONTEXT = parameter(ParameterTag.ROUTING_CONTEXT, bytes((0, 0, 0, 9)))
MANAGEMENT = [
    m3ua.message(MessageKind.ASPUP), m3ua.message(MessageKind.ASPUP, parameter(ParameterTag.ASP_IDENTIFIER, bytes(4))), m3ua.message(MessageKind.ASPAC),
    m3ua.message(MessageKind.ASPAC, parameter(ParameterTag.TRAFFIC_MODE, bytes((0, 0, 0, 2))), CONTEXT), m3ua.message(MessageKind.DAUD, parameter(ParameterTag.AFFECTED, bytes((0, 0, 8, 9)))),
    m3ua.message(MessageKind.DUNA, parameter(ParameterTag.AFFECTED, bytes((0, 0, 8, 9)))), m3ua.message(MessageKind.SCON, parameter(ParameterTag.AFFECTED, bytes((0, 0, 8, 9)))),
    m3ua.message(MessageKind.DUPU, parameter(ParameterTag.AFFECTED, bytes((0, 0, 8, 9))), parameter(ParameterTag.USER_CAUSE, bytes((0, 1, 0, 3)))),
    m3ua.message(MessageKind.NTFY, parameter(ParameterTag.STATUS, bytes((0, 1, 0, 3)))), m3ua.error(m3ua.Error.PROTOCOL_ERROR), m3ua.message(MessageKind.BEAT, parameter(ParameterTag.HEARTBEAT, b"x")),
]  # fmt: skip
UP, ACTIVE = m3ua.message(MessageKind.ASPUP), m3ua.message(MessageKind.ASPAC)
LENGTH_KEPT = 0.99
"""Share of messages of M3UA whose length is right: what comes after another one is lost with its connection."""


class Mutator(OctetMutator):
    """Messages that are wrong in one layer."""

    def message(self):
        """The next one."""
        chance, layer = self.random, self.random.choice(LAYERS)
        begin = chance.choice(BEGINS)
        data = self.mutated(begin) if layer == "tcap" else begin
        called = (
            wire.address(ssn=9, pc=wire.EIR) if chance.random() < 0.5 else wire.address(ssn=9, title="491790000009")
        )
        unit = wire.udt(
            data,
            called=called,
            kind=chance.choice((sccp.UDT, sccp.UDT, sccp.XUDT)),
            protocol_class=chance.choice((0, 0x80)),
        )
        unit = self.mutated(unit) if layer == "sccp" else unit
        if layer != "m3ua":
            return wire.data(unit)
        whole = self.mutated(chance.choice(MANAGEMENT) if chance.random() < 0.5 else wire.data(unit))
        if chance.random() > LENGTH_KEPT or len(whole) < m3ua.HEADER_BYTES:
            return whole
        return whole[:4] + len(whole).to_bytes(4) + whole[8:]

    def stream(self):
        """Some of them behind a good ASPUP, and half the time with changes across all of it."""
        octets = b"".join([UP, *(self.message() for _ in range(self.random.randrange(20)))])
        return self.mutated(octets) if self.random.random() < 0.5 else octets


class MapFuzzer(Fuzzer):
    """MSCs over M3UA."""

    goodbye, good = m3ua.message(MessageKind.ASPDN), wire.data(wire.udt(BEGINS[0]))

    def __init__(self, node, where):
        self.node, self.where = node, where

    def mutator(self, seed, **_):
        return Mutator(seed)

    def first(self, _):
        return UP + ACTIVE

    def last(self, _, sent):
        """A heartbeat; some of what is fuzzed takes the association down, so that it is brought up behind it."""
        return m3ua.message(MessageKind.BEAT, parameter(ParameterTag.HEARTBEAT, sent.to_bytes(8))) + UP + ACTIVE

    async def look(self, reader, sent, found):
        awaited = m3ua.message(MessageKind.BEAT_ACK, parameter(ParameterTag.HEARTBEAT, sent.to_bytes(8)))
        while True:
            head = await reader.readexactly(m3ua.HEADER_BYTES)
            octets = head + await reader.readexactly(int.from_bytes(head[4:]) - len(head))
            said = m3ua.parameters(octets)
            if octets[2:4] == MessageKind.DATA.to_bytes(2):
                payload = m3ua.transfer(said).payload
                if payload[0] in {sccp.UDT, sccp.XUDT}:
                    found.answers += sccp.unitdata(payload, "itu").data[0] in {0x64, 0x67}  # End or Abort
            if octets == awaited:
                return


class Steady(Asking):
    """An MSC that does all right."""

    async def opened(self, where):
        return await Msc.to(*where)

    async def check(self, connection, number, imei, *, listed):
        said = await connection.ask(f"{imei}0", version=3 - number % 3)
        return None if said == ("black" if listed else "white") else said

"""MSC: an ASP on a real connection, whose TCAP and MAP are the vectors or pycrate's."""

import asyncio
import itertools

from pycrate_asn1dir import TCAP_MAPv2v3

from eir.interfaces.map import checkimei as codec
from eir.wire.ss7 import m3ua, sccp
from eir.wire.ss7.m3ua import MessageKind, ParameterTag, parameter

from . import m3ua_wire as wire
from .patience import PATIENCE_S

CONTEXT = (0, 4, 0, 0, 1, 0, 13)
DIALOGUE_AS = (0, 0, 17, 773, 1, 1, 1)
PDU = TCAP_MAPv2v3.TCAP_MAP_Messages.TCAP_MAP_Message


class Msc:
    """Connected to a node (as IPSP) or to a gateway (as ASP), and active."""

    def __init__(self, reader, writer, *, context=None, pc=wire.MSC, title=wire.TITLE):
        self.reader, self.writer = reader, writer
        self.context, self.pc = context, pc
        self.calling = wire.address(ssn=8, pc=None if title else pc, title=title)
        self.seen, self.answers, self.returned, self.rest = [], {}, [], b""
        self.numbers = itertools.count(1)
        self.changed = asyncio.Event()
        self.reading = asyncio.create_task(self.read())

    @classmethod
    async def to(cls, host, port, *, local=None, **settings):
        return await cls.over(await asyncio.open_connection(host, port, local_addr=local and (local, 0)), **settings)

    @classmethod
    async def over(cls, streams, *, identifier=None, up=True, **settings):
        self = cls(*streams, **settings)
        if up:
            said = (
                () if identifier is None else (parameter(ParameterTag.ASP_IDENTIFIER, identifier.to_bytes(4, "big")),)
            )
            self.send(m3ua.message(MessageKind.ASPUP, *said))
            await self.until(lambda: self.kinds(MessageKind.ASPUP_ACK))
            context = (
                ()
                if self.context is None
                else (parameter(ParameterTag.ROUTING_CONTEXT, self.context.to_bytes(4, "big")),)
            )
            self.send(m3ua.message(MessageKind.ASPAC, *context))
            await self.until(lambda: self.kinds(MessageKind.ASPAC_ACK))
        return self

    async def read(self):
        while octets := await self.reader.read(65536):
            found, self.rest = m3ua.split(self.rest + octets, 65536)
            for each in found:
                self.take(each)
            self.changed.set()
        self.seen.append(b"END")
        self.changed.set()

    def take(self, octets):
        self.seen.append(octets)
        kind = int.from_bytes(octets[2:4])
        if kind == MessageKind.BEAT:
            self.send(
                m3ua.message(
                    MessageKind.BEAT_ACK,
                    parameter(ParameterTag.HEARTBEAT, m3ua.parameters(octets)[ParameterTag.HEARTBEAT]),
                )
            )
        elif kind == MessageKind.DATA:
            payload = m3ua.transfer(m3ua.parameters(octets)).payload
            if payload[0] in {sccp.UDTS, sccp.XUDTS}:
                self.returned.append(payload)
            else:
                unit = sccp.unitdata(payload, "itu")
                at = unit.data.index(b"\x49") + 1
                self.answers[unit.data[at + 1 : at + 1 + unit.data[at]]] = unit

    def kinds(self, kind):
        return [each for each in self.seen if each[2:4] == kind.to_bytes(2, "big")]

    def send(self, *octets):
        self.writer.write(b"".join(octets))

    async def until(self, condition):
        async with asyncio.timeout(PATIENCE_S):
            while not (found := condition()):
                self.changed.clear()
                await self.changed.wait()
        return found

    async def begin(self, data, *, otid, dpc=wire.EIR, sls=0, **more):
        """Send a Begin; the unitdata that its answer came in."""
        unit = wire.udt(data, calling=self.calling, **more)
        self.send(wire.data(unit, opc=self.pc, dpc=dpc, sls=sls, context=self.context))
        await self.until(lambda: otid in self.answers)
        return self.answers.pop(otid)

    async def ask(self, imei, *, version=3, dpc=wire.EIR, sls=0):
        """The status that a device gets, by pycrate's encoder and decoder: for example `black`, `error 7` or `refused`."""
        otid = next(self.numbers).to_bytes(4, "big")
        PDU.set_val(("begin", {"otid": otid, **_dialogue(version), "components": [("basicROS", ("invoke", {
            "invokeId": ("present", 1), "opcode": ("local", 43), "argument": _argument(version, imei),
        }))]}))  # fmt: skip
        unit = await self.begin(PDU.to_ber(), otid=otid, dpc=dpc, sls=sls)
        PDU.from_ber(unit.data)
        return _said(PDU.get_val(), unit.data)

    async def close(self):
        self.writer.close()
        self.reading.cancel()


def _dialogue(version):
    if version == 1:
        return {}
    request = ("dialogueRequest", {"protocol-version": (1, 1), "application-context-name": (*CONTEXT, version)})
    return {
        "dialoguePortion": {"direct-reference": DIALOGUE_AS, "encoding": ("single-ASN1-type", ("DialoguePDU", request))}
    }


def _argument(version, imei):
    octets = codec.packed(imei)
    if version == 3:
        return (("MAP-MS-DataTypes", "CheckIMEI-Arg"), {"imei": octets, "requestedEquipmentInfo": (0b10, 2)})
    return (("MAPv2-CommonDataTypes", "IMEI"), octets)


def _said(value, octets):
    kind, inside = value
    if kind == "abort":
        return "refused" if b"\xa2\3\2\1\1" in octets else "aborted"
    name, what = inside["components"][0][1] if inside["components"][0][0] == "basicROS" else inside["components"][0]
    if name == "returnError":
        return f"error {what['errcode'][1]}"
    if name == "reject":
        return "reject"
    found = octets[octets.index(b"\2\1\x2b") + 3 :]
    return {0: "white", 1: "black", 2: "grey"}[found[found.index(b"\x0a\1") + 2]]

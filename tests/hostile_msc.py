"""MSCs whose messages are wrong in one layer (M3UA, SCCP, TCAP), and one beside them that does all right: for tests and `scripts/soak fuzz`.

A message is good but for the layer that is fuzzed, so that what is below lets it pass. By seed, nothing else.
"""

import asyncio
import contextlib
import random
import time
from dataclasses import dataclass, field

import m3ua_wire as wire
from hostile import BATCH, LOST_S, PAUSE_S
from msc import Msc
from node import LISTED, UNLISTED

from eir.ss7 import m3ua, sccp
from eir.ss7.m3ua import Kind, Tag, parameter

LAYERS = ("m3ua", "sccp", "tcap")
BEGINS = [bytes.fromhex(vector) for vector in wire.VECTORS.values()]
CONTEXT = parameter(Tag.ROUTING_CONTEXT, bytes((0, 0, 0, 9)))
MANAGEMENT = [
    m3ua.message(Kind.ASPUP), m3ua.message(Kind.ASPUP, parameter(Tag.ASP_IDENTIFIER, bytes(4))), m3ua.message(Kind.ASPAC),
    m3ua.message(Kind.ASPAC, parameter(Tag.TRAFFIC_MODE, bytes((0, 0, 0, 2))), CONTEXT), m3ua.message(Kind.DAUD, parameter(Tag.AFFECTED, bytes((0, 0, 8, 9)))),
    m3ua.message(Kind.DUNA, parameter(Tag.AFFECTED, bytes((0, 0, 8, 9)))), m3ua.message(Kind.SCON, parameter(Tag.AFFECTED, bytes((0, 0, 8, 9)))),
    m3ua.message(Kind.DUPU, parameter(Tag.AFFECTED, bytes((0, 0, 8, 9))), parameter(Tag.USER_CAUSE, bytes((0, 1, 0, 3)))),
    m3ua.message(Kind.NTFY, parameter(Tag.STATUS, bytes((0, 1, 0, 3)))), m3ua.error(m3ua.Error.PROTOCOL_ERROR), m3ua.message(Kind.BEAT, parameter(Tag.HEARTBEAT, b"x")),
]  # fmt: skip
OCTETS = (0, 1, 2, 3, 4, 7, 8, 0x0B, 0x1F, 0x30, 0x40, 0x7F, 0x80, 0x81, 0x84, 0xA1, 0xBF, 0xFE, 0xFF)
LENGTH_KEPT = 0.99
"""Share of messages of M3UA whose length is right: what comes after another one is lost with its connection."""


class Mutator:
    """Messages that are wrong in one layer."""

    def __init__(self, seed, layers=LAYERS):
        self.random, self.layers = random.Random(f"{seed}"), layers

    def message(self):
        """The next one."""
        chance, layer = self.random, self.random.choice(self.layers)
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

    def mutated(self, octets):
        """Some octets changed, left out, doubled or put in."""
        chance, found = self.random, bytearray(octets)
        for _ in range(chance.choice((1, 1, 1, 2, 4))):
            at = chance.randrange(len(found) + 1)
            way = chance.randrange(6)
            if way == 0 and at < len(found):
                found[at] ^= 1 << chance.randrange(8)
            elif way == 1 and at < len(found):
                found[at] = chance.choice(OCTETS)
            elif way == 2:
                del found[at : at + chance.choice((1, 1, 2, 8))]
            elif way == 3:
                found[at:at] = found[at : at + chance.choice((1, 2, 8, 32))]
            elif way == 4:
                found[at:at] = bytes(chance.choices(OCTETS, k=chance.choice((1, 2, 4))))
            else:
                del found[at:]
        return bytes(found)


async def fuzz_messages(where, count, seed, found, *, connections=4, layers=LAYERS):
    """Send `count` fuzzed messages to a node's (host, port) over a few connections, each of which is opened again when it is lost."""
    share = -(-count // connections)
    await asyncio.gather(*(
        _fuzz_connection(where, Mutator(f"{seed}/{number}", layers), share, found) for number in range(connections)
    ))  # fmt: skip


async def _fuzz_connection(where, mutator, count, found):
    sent = 0
    while sent < count:
        reader, writer = await asyncio.open_connection(*where)
        found.connections += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, TimeoutError):
            writer.write(m3ua.message(Kind.ASPUP) + m3ua.message(Kind.ASPAC))
            while sent < count:
                batch = [mutator.message() for _ in range(min(BATCH, count - sent))]
                sent += len(batch)
                found.messages += len(batch)
                # The echo of its heartbeat says that all before it was read; some of what is fuzzed takes the association down.
                beat = parameter(Tag.HEARTBEAT, sent.to_bytes(8))
                writer.write(
                    b"".join(batch)
                    + m3ua.message(Kind.BEAT, beat)
                    + m3ua.message(Kind.ASPUP)
                    + m3ua.message(Kind.ASPAC)
                )
                async with asyncio.timeout(LOST_S):
                    await writer.drain()
                    await _look(reader, m3ua.message(Kind.BEAT_ACK, beat), found)
        writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def _look(reader, awaited, found):
    """Read up to the heartbeat's echo; each answer is held to the form of its layers."""
    while True:
        head = await reader.readexactly(m3ua.HEADER_BYTES)
        octets = head + await reader.readexactly(int.from_bytes(head[4:]) - len(head))
        said = m3ua.parameters(octets)
        if octets[2:4] == Kind.DATA.to_bytes(2):
            payload = m3ua.transfer(said).payload
            if payload[0] in {sccp.UDT, sccp.XUDT}:
                found.answers += sccp.unitdata(payload, "itu").data[0] in {0x64, 0x67}  # End or Abort
        if octets == awaited:
            return


async def fuzz_sessions(where, count, seed, found, *, at_once=16):
    """Run `count` streams of fuzzed messages, cut anywhere, whose connections end at any time."""
    numbers = iter(range(count))

    async def one_after_the_other():
        for number in numbers:
            mutator = Mutator(f"{seed}/session/{number}")
            with contextlib.suppress(OSError):
                await _session(where, mutator)
            found.sessions += 1

    await asyncio.gather(*(one_after_the_other() for _ in range(at_once)))


async def _session(where, mutator):
    chance = mutator.random
    _, writer = await asyncio.open_connection(*where)
    octets = b"".join([m3ua.message(Kind.ASPUP), *(mutator.message() for _ in range(chance.randrange(20)))])
    if chance.random() < 0.5:
        octets = mutator.mutated(octets)
    try:
        while octets and not writer.transport.is_closing():
            size = chance.choice((1, 7, 100, 1000))
            writer.write(octets[:size])
            octets = octets[size:]
            await asyncio.sleep(0)
    finally:
        if chance.random() < 0.5:
            writer.transport.abort()
        else:
            writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@dataclass
class Steady:
    """An MSC that asks all the time, and holds every answer to its question."""

    answers: int = 0
    wrong: list = field(default_factory=list)
    answer_s: list = field(default_factory=list)

    async def ask(self, where, over):
        """Ask until `over` is set."""
        msc = await Msc.to(*where)
        while not over.is_set():
            imei, status = ((LISTED, "black"), (UNLISTED, "white"))[self.answers % 2]
            began = time.perf_counter()
            said = await msc.ask(f"{imei}0", version=3 - self.answers % 3)
            self.answer_s.append(time.perf_counter() - began)
            self.answers += 1
            if said != status:
                self.wrong.append(f"{self.answers} about {imei}: {said}")
            await asyncio.sleep(PAUSE_S)
        await msc.close()

    def lines(self):
        """For people."""
        worst, p99 = max(self.answer_s) * 1000, sorted(self.answer_s)[int(len(self.answer_s) * 0.99)] * 1000
        yield f"steady MSC: {self.answers:,} answers, {len(self.wrong)} wrong; p99 {p99:.1f} ms, worst {worst:.0f} ms"

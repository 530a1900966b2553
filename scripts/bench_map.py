"""Checks/s over MAP, against an echo and pycrate.

All run in one process, from octets to octets, and are measured in processor time; the cost of TCP or SCTP in the kernel is not included.
The questions have MAP version 3 and come from one MSC; 1 % are about listed devices.
"""

import argparse
import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

from benchmark.measure import add_options, at_least, finish, say

from eir.checks.checker import Checker
from eir.checks.settings import PolicySettings, Rule, Status
from eir.cli.output import table
from eir.errors import silent
from eir.interfaces.map import checkimei as codec
from eir.interfaces.map.server import MapServer
from eir.interfaces.map.settings import Ss7Settings
from eir.lists.images.index import Index
from eir.wire.peers.counts import Counts
from eir.wire.peers.rate import NO_LIMITS, RateLimits
from eir.wire.peers.settings import Limits, PeerSettings, Requester
from eir.wire.ss7 import m3ua, sccp, tcap
from eir.wire.ss7.asp import Association
from eir.wire.ss7.m3ua import MessageKind, Transfer
from eir.wire.transport.settings import SctpSettings

PYCRATE_TIMES, ECHO_SHARE = 5, 0.15
BATCH = 100
MSC, EIR = 2057, 2058
Answering = Callable[[Any, Transfer], Transfer | None]


def main(arguments: Sequence[str]) -> int:
    """Run the part `map` of scripts/bench."""
    parser = argparse.ArgumentParser(
        prog="bench map", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add_options(parser, seconds=2, turns=3)
    options = parser.parse_args(arguments)
    return asyncio.run(_measure(options))


async def _measure(options: argparse.Namespace) -> int:
    seconds, turns = (0.05, 1) if options.quick else (options.seconds, options.turns)
    peers = (PeerSettings(label="msc", gt="4917"),)
    policy = PolicySettings(rules=(Rule(imei=("00101001000001",), answer=Status.BLACKLISTED),))
    checker = Checker(policy, Index({}), now=datetime.now(UTC))
    shared = SimpleNamespace(peers=peers, limits=Limits(), policy=policy, overload_answer=None, sctp=SctpSettings())
    context: Any = SimpleNamespace(
        shared=shared, checker=checker, counts=Counts(), rates=RateLimits(Limits()), report=silent
    )
    server = MapServer(Ss7Settings(point_code="1-1-2"), context)
    answering: dict[str, Answering] = {"this node": server.transferred, "echo": _echo, "pycrate": _pycrate()}
    found: dict[str, float] = {}
    for _ in range(turns):
        for name, answer in answering.items():
            say(f"{name}")
            found[name] = max(found.get(name, 0.0), _rate(answer, seconds))
    measured = {
        "answers_per_cpu_second": {name: round(rate) for name, rate in found.items()},
        "wrong_answers": _wrong(server),
    }
    targets = (
        at_least("times pycrate", PYCRATE_TIMES, round(found["this node"] / found["pycrate"], 1)),
        at_least("of the echo", ECHO_SHARE, round(found["this node"] / found["echo"], 2)),
    )
    rows = [{"server": name, "a_cpu_second": f"{rate:,.0f}"} for name, rate in found.items()]
    return finish("map", measured, targets, options, table(rows, ("server", "a_cpu_second"), width=None))


def _question(number: int) -> bytes:
    imei = "001010010000010" if number % 100 == 0 else f"00101003{number:06d}0"
    asked = tcap.invoke(b"\1", codec.CHECK_IMEI, codec.argument(3, imei))
    kind, title = sccp.e164("491700000001", "itu")
    calling = sccp.encoded_address("itu", ssn=8, kind=kind, title=title, by_ssn=False)
    begin = tcap.begin(number.to_bytes(4), tcap.request(codec.context_of(3)), asked)
    unit = sccp.encoded(sccp.UDT, 0, sccp.encoded_address("itu", pc=EIR, ssn=9), calling, begin)
    return m3ua.data(Transfer(MSC, EIR, number & 0x0F, unit))


def _link() -> Any:
    association = Association(0.0, dials=False)
    association.receive(m3ua.message(MessageKind.ASPUP) + m3ua.message(MessageKind.ASPAC), 0.0)
    association.messages_to_send()
    return SimpleNamespace(
        association=association, requester=Requester("near"), source=None, settings=None, rates=NO_LIMITS, gateway=None
    )


def _rate(answer: Answering, seconds: float) -> float:
    """Return answers per second of processor time."""
    link, octets, answered = _link(), b"".join(map(_question, range(BATCH))), 0
    began = time.process_time()
    while time.process_time() - began < seconds:
        for transfer in link.association.receive(octets, 0.0):
            link.association.send(answer(link, transfer))
        answered += len(link.association.messages_to_send())
    return answered / (time.process_time() - began)


def _wrong(server: MapServer) -> int:
    """Return the number of answers that differ from the policy's."""
    link, wrong = _link(), 0
    for number, transfer in enumerate(link.association.receive(b"".join(map(_question, range(BATCH))), 0.0)):
        answer = server.transferred(link, transfer)
        wrong += answer is None or answer.payload[-1] != (1 if number % 100 == 0 else 0)
    return wrong


def _echo(_: Any, transfer: Transfer) -> Transfer:
    unit = sccp.unitdata(transfer.payload, "itu")
    payload = sccp.encoded(unit.kind, 0, unit.calling.octets, unit.called.octets, unit.data)
    return transfer._replace(opc=transfer.dpc, dpc=transfer.opc, payload=payload)


def _pycrate() -> Answering:
    from pycrate_asn1dir import TCAP_MAPv2v3  # noqa: PLC0415 - its modules take a second to load

    pdu = TCAP_MAPv2v3.TCAP_MAP_Messages.TCAP_MAP_Message
    end = tcap.end(
        b"\0\0\0\1",
        tcap.response(codec.context_of(3), accepted=True),
        tcap.result(b"\1", codec.CHECK_IMEI, codec.result(3, 0)),
    )
    pdu.from_ber(end)
    said = pdu.get_val()

    def answer(_: Any, transfer: Transfer) -> Transfer:
        unit = sccp.unitdata(transfer.payload, "itu")
        pdu.from_ber(unit.data)
        pdu.set_val((said[0], said[1] | {"dtid": pdu.get_val()[1]["otid"]}))
        payload = sccp.encoded(unit.kind, 0, unit.calling.octets, unit.called.octets, pdu.to_ber())
        return transfer._replace(opc=transfer.dpc, dpc=transfer.opc, payload=payload)

    return answer

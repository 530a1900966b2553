"""checkIMEI (eir/interfaces/map/): what each request must get, the vectors whole and damaged; pycrate and tshark judge what goes out.

Clauses: A is TS 29.002, Q is Q.773 and Q.774, P is this project's policy where no clause decides.
"""

import asyncio
import time
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from clock import Clock
from pycrate_asn1dir import TCAP_MAPv2v3
from simulated import m3ua_wire as wire
from simulated.patience import PATIENCE_S
from simulated.store_content import fill
from simulated.tcp_server import accepting

from eir.checks.checker import Checker
from eir.checks.settings import PolicySettings, Rule, Status
from eir.device import device_key
from eir.errors import EirError
from eir.interfaces.map import checkimei as codec
from eir.interfaces.map.link import CARRIED, PIECE_BYTES, SigtranConnection
from eir.interfaces.map.server import MapServer
from eir.interfaces.map.service import MapReply, MapService
from eir.interfaces.map.settings import GatewaySettings, Ss7Settings
from eir.lists.images.index import Index
from eir.lists.table.columns import rows_of
from eir.wire.peers.counts import Counts
from eir.wire.peers.rate import RateLimits
from eir.wire.peers.settings import Limits, PeerSettings, Requester
from eir.wire.ss7 import m3ua, sccp, tcap
from eir.wire.ss7.asp import AssociationState
from eir.wire.transport.endpoint import endpoint
from eir.wire.transport.settings import SctpSettings

NOW = datetime(2026, 11, 28, 12, 0, tzinfo=UTC)
LISTED, FREE, TEST_IMSI = "00101001000001", "00101003000003", "001010000000001"
MSC = Requester("msc", wire.TITLE)
RULES = (
    Rule(list="stolen", answer=Status.BLACKLISTED),
    Rule(imei=("35809101685355",), answer=Status.BLACKLISTED),
    Rule(imsi=("26201",), answer=Status.UNKNOWN),
    Rule(imsi=("72434", "00101"), answer=Status.GREYLISTED),
    Rule(origin_host=("491799",), answer=Status.GREYLISTED),
)


def service(*, answers=None, fallback=Status.WHITELISTED, tags=(), broken=False, **policy):
    index = Index({"stolen": "devices"})
    fill(index, "stolen", rows_of([device_key(LISTED)]))
    checker = Checker(PolicySettings(**{"rules": RULES} | policy), index, now=NOW)
    made = MapService(None if broken else checker)
    made.configure(answers or {}, fallback, tags)
    made.checker = checker
    return made


def el(tag, *contents):
    octets = b"".join(contents)
    return (
        tag.to_bytes((tag.bit_length() + 7) // 8 or 1)
        + (bytes((len(octets),)) if len(octets) < 0x80 else b"\x81" + bytes((len(octets),)))
        + octets
    )


def begin(version, *components, otid=b"\0\0\0\1", context=None):
    dialogue = b"" if version == 1 and context is None else tcap.request(context or codec.context_of(version))
    return tcap.begin(otid, dialogue, b"".join(components))


def invoke(parameter=None, *, operation=43, number=b"\1"):
    return tcap.invoke(number, operation, codec.argument(1, FREE + "0") if parameter is None else parameter)


def linked(parameter, linked_id=b"\x81\0"):
    """An invocation with a linkedId, by default the empty one that OTC's MAP stack writes."""
    return el(0xA1, el(2, b"\1"), linked_id, el(2, b"\x2b"), parameter)


def imei(text=FREE + "0"):
    return el(4, codec.packed(text))


def imsi(text=TEST_IMSI):
    return codec.packed(text)


INFO = el(3, b"\6\x80")


def read(reply):
    """What an answer says, by our own reader: kind, dialogue, and outcomes."""
    if reply.octets is None:
        return None, None, []
    message = tcap.read(reply.octets)
    dialogue = None if message.dialogue is None else tcap.apdu(reply.octets, message.dialogue)
    return message, dialogue, [] if message.components is None else tcap.outcomes(reply.octets, message.components)


BY = {"a305a103020102": "refused: context", "a305a203020102": "refused: version", "6403800100": "ended here", "6403800101": "not understood"}  # fmt: skip
"""The last octets of an Abort with a dialogue portion (Q.773 4.2.3): the diagnostic of a refusal, and who ends a dialogue."""


def said(octets, version, of=None, asks=MSC):  # noqa: PLR0911
    """The status, `error N`, `reject KIND.CODE`, `abort CAUSE`, one of BY (a refusal with the version that it names), or None."""
    reply = (of or service()).answer(octets, asks)
    message, dialogue, found = read(reply)
    if message is None:
        return None
    if message.kind == tcap.ABORT:
        if message.cause is not None:
            return f"abort {message.cause}"
        (by,) = [by for last, by in BY.items() if reply.octets.hex().endswith(last)]
        return f"{by}, {codec.version_of(dialogue.context)}" if dialogue.kind == tcap.AARE else by
    (outcome,) = found or [None]
    if outcome is None:
        return "empty"
    if outcome.error is not None:
        return f"error {outcome.error}"
    if outcome.problem is not None:
        return f"reject {outcome.problem.tag & 3}.{outcome.problem.code}"
    assert outcome.operation == 43
    assert (dialogue is None) == (version == 1)
    assert dialogue is None or (dialogue.accepted and codec.version_of(dialogue.context) == version)
    status = codec.status_of(reply.octets, version, outcome.parameters)
    return {0: "white", 1: "black", 2: "grey", None: "none"}[status]


SUBSCRIBER = el(4, imsi())
EXTENSION = el(0x30, el(0xA0, el(0x30, el(6, b"\x2a\x03"), SUBSCRIBER)))
WRONG = el(4, b"\x91\x94\x71\x00\x00\x00\x01")
"""An MSISDN."""


def v3(*parts):
    return el(0x30, *parts)


REQUESTS = [
    # what goes in, version, what comes out, clause
    ("listed, v1", begin(1, invoke(imei(LISTED + "0"))), 1, "black", "A8.7"),
    ("listed, v2", begin(2, invoke(imei(LISTED + "0"))), 2, "black", "A8.7"),
    ("listed, v3", begin(3, invoke(v3(imei(LISTED + "0"), INFO))), 3, "black", "A8.7"),
    ("14 digits", begin(2, invoke(imei(LISTED))), 2, "black", "A17.7.8"),
    ("14 digits and fillers up to 8 octets", begin(2, invoke(el(4, codec.packed(LISTED) + b"\xff"))), 2, "black", "A17.7.8"),
    ("an IMSI of 14 digits, likewise", begin(2, invoke(imei() + el(0, codec.packed(TEST_IMSI[:14]) + b"\xff"))), 2, "grey", "A17.7.8"),
    ("IMEISV", begin(2, invoke(imei(LISTED + "77"))), 2, "black", "A17.7.8"),
    ("free", begin(3, invoke(v3(imei(), INFO))), 3, "white", "A8.7"),
    ("the context of version 1 in a dialogue", begin(1, invoke(), context=codec.context_of(1)), 0, "white", "A17.3.3"),
    ("Huawei's IMSI, v2", begin(2, invoke(imei() + el(0, imsi()))), 2, "grey", "P"),
    ("Huawei's IMSI, v1", begin(1, invoke(imei() + el(0, imsi()))), 1, "grey", "P"),
    ("IMSI as an octet string, v2", begin(2, invoke(imei() + el(4, imsi()))), 2, "grey", "P"),
    ("IMSI behind the argument, v3", begin(3, invoke(v3(imei(), INFO) + el(0, imsi()))), 3, "grey", "P"),
    ("IMSI past the end, v3", begin(3, invoke(v3(imei(), INFO, el(4, imsi())))), 3, "grey", "A8.7: ..."),
    ("IMSI in the extension container", begin(3, invoke(v3(imei(), INFO, EXTENSION))), 3, "grey", "A17.7.11"),
    ("an MSISDN there is no IMSI", begin(3, invoke(v3(imei(), INFO, el(0x30, el(0xA0, el(0x30, el(6, b"\x2a\x03"), WRONG)))))), 3, "white", "P"),
    ("in a sequence, v2", begin(2, invoke(el(0x30, imei(), el(4, imsi())))), 2, "grey", "P"),
    ("unknown, v3", begin(3, invoke(v3(imei(), INFO, el(4, imsi("262010000000001"))))), 3, "error 7", "A17.6.1"),
    ("unknown, v1", begin(1, invoke(imei() + el(0, imsi("262010000000001")))), 1, "error 7", "A17.6.1"),
    ("unknown extensions", begin(3, invoke(v3(imei(), INFO, el(0xA5, el(0x9F21, b"x")), el(0x9F55, b"y")))), 3, "white", "A8.7: ..."),
    ("status and bmuef", begin(3, invoke(v3(imei(LISTED + "0"), el(3, b"\6\xc0")))), 3, "black", "A17.7.1"),
    ("bmuef alone", begin(3, invoke(v3(imei(), el(3, b"\6\x40")))), 3, "none", "A17.7.1"),
    ("unknown bits", begin(3, invoke(v3(imei(), el(3, b"\0\xff")))), 3, "white", "A17.7.1"),
    ("an IMEI of letters", begin(2, invoke(el(4, b"\xaa" * 8))), 2, "white", "P: bad_identity"),
    ("an empty IMEI", begin(2, invoke(el(4))), 2, "white", "P: bad_identity"),
    ("no argument, v2", begin(2, invoke(b"")), 2, "white", "P: no_identity"),
    ("no argument, v3", begin(3, invoke(b"")), 3, "error 35", "A17.6.1"),
    ("no IMEI, v3", begin(3, invoke(v3(INFO))), 3, "white", "P: no_identity"),
    ("no requestedEquipmentInfo", begin(3, invoke(v3(imei()))), 3, "error 35", "A17.6.1"),
    ("requestedEquipmentInfo cut", begin(3, invoke(v3(imei(), el(3, b"\6")))), 3, "reject 1.2", "Q3.3"),
    ("a number as argument", begin(2, invoke(el(2, b"\1"))), 2, "reject 1.2", "Q3.3"),
    ("an octet string as argument of v3", begin(3, invoke(imei())), 3, "reject 1.2", "Q3.3"),
    ("a sequence that is cut", begin(3, invoke(el(0x30, b"\4\x09\0"))), 3, "reject 1.2", "Q3.3"),
    ("another operation", begin(2, invoke(operation=44)), 2, "reject 1.1", "Q3.3"),
    ("a global operation", begin(2, el(0xA1, el(2, b"\1"), el(6, b"\x2a\3"))), 2, "reject 1.1", "Q3.3"),
    ("a link to nothing", begin(2, el(0xA1, el(2, b"\1"), el(0x80, b"\2"), el(2, b"\x2b"))), 2, "reject 1.5", "Q3.3"),
    ("an empty linkedId, v1", begin(1, linked(imei(LISTED + "0"))), 1, "black", "X.880 in Q.773 (06/97)"),
    ("an empty linkedId, v3", begin(3, linked(v3(imei(LISTED + "0"), INFO, el(4, imsi())))), 3, "black", "X.880 in Q.773 (06/97)"),
    ("an empty linkedId and a listed subscriber, v2", begin(2, linked(imei() + el(0, imsi()))), 2, "grey", "X.880 in Q.773 (06/97)"),
    ("an absent linkedId that is not empty", begin(2, linked(imei(), el(0x81, b"\2"))), 2, "reject 0.1", "X.880: NULL"),
    ("an empty linkedId twice", begin(2, linked(imei(), el(0x81) * 2)), 2, "reject 0.1", "Q3.3"),
    ("an empty linkedId behind the operation", begin(2, el(0xA1, el(2, b"\1"), el(2, b"\x2b"), el(0x81), imei())), 2, "reject 1.2", "Q3.3"),
    ("an empty linkedId and no operation", begin(2, el(0xA1, el(2, b"\1"), el(0x81))), 2, "reject 0.1", "Q3.3"),
    ("no operation", begin(2, el(0xA1, el(2, b"\1"))), 2, "reject 0.1", "Q3.3"),
    ("no number", begin(2, el(0xA1, el(4, b"\1"))), 2, "reject 0.1", "Q3.3"),
    ("a component that is none", begin(2, el(0xB1, el(2, b"\1"))), 2, "reject 0.0", "Q3.3"),
    ("a component that is cut", begin(2, b"\xa1\x09\2\1\1"), 2, "reject 0.2", "Q3.3"),
    ("a result nobody waits for", begin(2, el(0xA2, el(2, b"\1"))), 2, "reject 2.0", "Q3.3"),
    ("an error nobody waits for", begin(2, el(0xA3, el(2, b"\1"), el(2, b"\1"))), 2, "reject 3.0", "Q3.3"),
    ("a reject", begin(2, el(0xA4, el(2, b"\1"), el(0x80, b"\0"))), 2, "empty", "Q3.2.2"),
    ("no component", begin(3), 3, "ended here", "Q: no transaction is kept"),
    ("another context", begin(3, invoke(), context=bytes.fromhex("04000001000003")), 3, "refused: context, None", "Q4.2.3"),
    ("version 4", begin(3, invoke(), context=codec.CONTEXT + b"\4"), 3, "refused: context, 3", "A25.6.1"),
    ("another protocol version", begin(3, invoke()).replace(b"\x80\2\7\x80", b"\x80\2\7\0", 1), 3, "refused: version, 3", "Q4.2.3"),
    ("a dialogue portion without a dialogue PDU", tcap.begin(b"\1", el(0x6B, el(0x28, el(6, b"\0\x11"), el(0xA0))), el(0x6C, invoke())), 3, "not understood", "Q3.2.1"),
    ("Continue", el(0x65, el(0x48, b"\1"), el(0x49, b"\2")), 2, "abort 1", "Q3.3.3"),
    ("End", el(0x64, el(0x49, b"\2")), 2, None, "Q3.3.3"),
    ("Abort", el(0x67, el(0x49, b"\2")), 2, None, "Q3.3.3"),
    ("Unidirectional", el(0x61, el(0x6C, invoke())), 2, None, "Q3.2.1"),
    ("Begin without an id", el(0x62, el(0x6C, invoke())), 2, None, "Q3.3.3.1"),
    ("an id of 5 octets", el(0x62, el(0x48, b"12345"), el(0x6C, invoke())), 2, None, "Q3.3.3.1"),
    ("another type of message", el(0x66, el(0x48, b"\1")), 2, "abort 0", "Q3.3.3.1"),
    ("a part that has no place", el(0x62, el(0x48, b"\1"), el(0x49, b"\1"), el(0x6C, invoke())), 2, "abort 3", "Q3.3.3.1"),
    ("octets behind the end", begin(2, invoke()) + b"\0", 2, "abort 2", "Q3.3.3.1"),
    ("a length that is wrong", el(0x62, el(0x48, b"\1"), b"\x6c\x50"), 2, "abort 2", "Q3.3.3.1"),
    ("nothing", b"", 2, None, "P"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("octets", "version", "wanted", "clause"), [row[1:] for row in REQUESTS], ids=[row[0] for row in REQUESTS]
)
def test_what_each_request_gets(octets, version, wanted, clause):
    if version == 0:  # version 1, which needs no dialogue, and may have one
        _message, dialogue, found = read(service().answer(octets, MSC))
        assert dialogue.accepted
        assert codec.version_of(dialogue.context) == 1
        assert not found[0].error
        return
    assert said(octets, version) == wanted, clause


def test_the_end_that_two_decoders_agreed_on():
    """Of the facts: tshark says accepted, returnResultLast, prohibitedListed."""
    wanted = "64434904000000016b2a2828060700118605010101a01d611b80020780a109060704000001000d03a203020100a305a1030201006c0fa20d020101300802012b30030a0101"
    assert service().answer(bytes.fromhex(wire.V3), MSC).octets.hex() == wanted


def test_the_policy_decides_the_answer_without_a_device():
    strict = service(bad_identity=None, no_identity=None)
    assert said(begin(2, invoke(el(4, b"\xaa" * 8))), 2, strict) == "error 35"
    assert said(begin(2, invoke(b"")), 2, strict) == "error 35"
    assert said(begin(2, invoke(b"")), 2, service(no_identity=Status.BLACKLISTED)) == "black"
    assert strict.checker.identity_errors == {("bad", "msc"): 1, ("none", "msc"): 1}


def test_further_tags_of_an_imsi():
    deep = el(0xA7, el(0x30, el(0x9F21, imsi())))
    for parameter in (v3(imei(), INFO, el(0x85, imsi())), v3(imei(), INFO, deep)):
        octets = begin(3, invoke(parameter))
        assert said(octets, 3) == "white"
        assert said(octets, 3, service(tags=(0x85, 0x9F21))) == "grey"


def test_who_asks_and_what_they_get():
    octets = begin(2, invoke())
    assert said(octets, 2, asks=Requester("msc", "491799")) == "grey", "origin_host is the title"
    assert (
        said(begin(2, invoke(imei(LISTED))), 2, service(answers={"msc": {Status.BLACKLISTED: Status.GREYLISTED}}))
        == "grey"
    )


def test_a_fault_of_ours_gets_what_a_bad_identity_gets():
    for fallback, wanted in ((Status.WHITELISTED, "white"), (Status.BLACKLISTED, "black"), (None, "error 34")):
        of, told = service(fallback=fallback, broken=True), []
        of.failed = told.append
        assert said(begin(3, invoke(v3(imei(), INFO))), 3, of) == wanted
        assert len(told) == 1


def test_above_a_limit():
    of = service()
    for status, wanted in ((Status.GREYLISTED, 2), (None, None)):
        reply = of.answer(bytes.fromhex(wire.V3), MSC, lambda version, status=status: of.component_of(version, status))
        _, _, (outcome,) = read(reply)
        assert outcome.error == (34 if wanted is None else None)
    assert of.checker.checks().total() == 0


async def test_a_limit_counts_invocations_and_not_messages():
    server = map_server(rate_max=12)  # 2 at once
    link, out = stands(server)
    link.data_received(m3ua.message(m3ua.MessageKind.ASPUP) + m3ua.message(m3ua.MessageKind.ASPAC))
    link.work(lambda: False)
    several = begin(2, *(invoke(imei(LISTED), number=bytes((number,))) for number in range(1, 9)))
    with Clock().standing():
        for wanted in ([None] * 2 + [34] * 6, [34] * 8, [34]):
            link.data_received(wire.data(wire.udt(several if len(wanted) > 1 else bytes.fromhex(wire.V2))))
            del out[:]
            link.work(lambda: False)
            (answer,), _ = m3ua.split(b"".join(out), 65536)
            unit = sccp.unitdata(m3ua.transfer(m3ua.parameters(answer)).payload, "itu")
            assert [each.error for each in read(MapReply(unit.data, ""))[2]] == wanted
    assert server.node_counts.shed == {("near", "rate_max"): 15}
    link.connection_lost(None)


def context(report=lambda *_, **__: None, rate_max=None, **limits):
    """A server with one peer."""
    peers, limits = (PeerSettings(label="near", rate_max=rate_max),), Limits(**limits)
    shared = SimpleNamespace(
        peers=peers, limits=limits, policy=PolicySettings(), overload_answer=None, sctp=SctpSettings()
    )
    return SimpleNamespace(
        shared=shared, checker=service().checker, counts=Counts(), rates=RateLimits(limits), report=report
    )


def map_server(report=lambda *_, **__: None, rate_max=None, **limits):
    """The SIGTRAN side of a server, with one peer."""
    server = MapServer(Ss7Settings(point_code="1-1-2"), context(report, rate_max, **limits))
    server.turns = SimpleNamespace(request=lambda _: None)
    return server


def stands(server):
    """A connection, and what it writes; `aborted` is in it when it is ended."""
    link, out = SigtranConnection(server, server.loop), []
    link.transport = SimpleNamespace(
        write=out.append, is_closing=lambda: False, pause_reading=lambda: None, resume_reading=lambda: None,
        abort=lambda: out.append("aborted"),
    )  # fmt: skip
    link.association = server.accept(link)
    return link, out


async def test_mscs_are_sent_away_when_there_is_no_point_code_more():
    """The section is gone and the listener open until a restart: nobody asks in vain meanwhile."""
    refused = []
    server = map_server(lambda event, *, reason, **_: refused.append((event, reason)))
    link, late = (SigtranConnection(server, server.loop) for _ in range(2))
    association = link.association = server.accept(link)
    association.receive(m3ua.message(m3ua.MessageKind.ASPUP) + m3ua.message(m3ua.MessageKind.ASPAC), 0.0)
    association.messages_to_send()
    server.apply(Ss7Settings(), context())
    assert [m3ua.kind_of(each) for each in association.messages_to_send()] == [m3ua.MessageKind.ASPIA]
    assert server.accept(late) is None
    assert refused == [("peer_refused", "draining")]


async def test_what_is_about_the_association_has_its_turns_as_questions_have():
    """A flood of it on one connection holds up no other: a piece of what has come is taken apart, and then others have their turn."""
    link, out = stands(map_server())
    beat, question = m3ua.message(m3ua.MessageKind.BEAT), wire.data(wire.udt(bytes.fromhex(wire.V3)))
    sent = m3ua.message(m3ua.MessageKind.ASPUP) + m3ua.message(m3ua.MessageKind.ASPAC) + beat * 1000 + question
    link.data_received(sent)
    turns = 1
    while link.work(lambda: True):
        turns += 1
        assert len(b"".join(out)) <= turns * PIECE_BYTES
    assert turns >= len(sent) // PIECE_BYTES
    assert b"".join(out).count(m3ua.message(m3ua.MessageKind.BEAT_ACK)) == 1000
    assert link.tally == (1, 1)
    link.connection_lost(None)


async def test_an_association_that_is_restarted_begins_again_and_its_counters_go_on():
    server = map_server()
    link, out = stands(server)
    for times in (1, 2):
        link.data_received(m3ua.message(m3ua.MessageKind.ASPUP) + wire.data(b""))
        link.work(lambda: False)
        assert out.pop(0).startswith(m3ua.message(m3ua.MessageKind.ASPUP_ACK))
        assert server.counters()["eir_sigtran_errors_total"] == {("not_active",): times}
        link.restarted()
        assert link.association.state == AssociationState.DOWN
    server.draining = True
    link.restarted()
    link.connection_lost(None)
    assert out[-1] == "aborted"
    assert not server.links
    assert server.counters()["eir_sigtran_errors_total"] == {("not_active",): 2}


async def test_a_silent_msc_is_disconnected_after_its_time_limit():
    told = []
    server = map_server(lambda event, *, reason, **_: told.append((event, reason)), cer_timeout_s=0.01)
    listener = await server.loop.create_server(lambda: SigtranConnection(server, server.loop), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*listener.sockets[0].getsockname())
    assert await asyncio.wait_for(reader.read(), PATIENCE_S) == b""
    writer.close()
    listener.close()
    assert told == [("connection_fault", "cer_timeout")]


@pytest.mark.parametrize(("variant", "code", "ours"), [("itu", "1-1-2", "0a08"), ("ansi", "1-1-2", "020101")])
async def test_who_tests_whether_the_subsystem_is_there_hears_that_it_is(variant, code, ours):
    """Q.714 5.3.4 (SST, SSA): a gateway that had lost us sends no more questions before that."""
    server = MapServer(Ss7Settings(point_code=code, variant=variant), context())
    link = SigtranConnection(server, server.loop)
    link.association = server.accept(link)
    management = wire.address(ssn=1, variant=variant)

    def said(octets, at=ours):
        payload = wire.udt(bytes.fromhex(octets[:4] + at + octets[4:]), called=management, calling=management)
        answer = server.transferred(link, m3ua.Transfer(wire.MSC, server.point_code, 0, payload))
        return answer and (answer.opc, answer.dpc, sccp.unitdata(answer.payload, variant))

    for subsystem in ("09", "01"):  # ours, and SCCP itself (5.2.3)
        opc, dpc, unit = said(f"03{subsystem}00")
        assert (opc, dpc, unit.called.octets, unit.calling.octets) == (
            server.point_code,
            wire.MSC,
            management,
            management,
        )
        assert unit.data == bytes.fromhex(f"01{subsystem}{ours}00")
    assert said("030800") is None  # another subsystem
    assert said("030900", at="0b08" if variant == "itu" else "030101") is None  # another point code
    assert said("010900") is None
    assert said("0309") is None
    server.disable("near")
    assert said("030900") is None


def test_several_invocations_each_get_an_answer():
    reply = service().answer(
        begin(2, invoke(number=b"\1"), invoke(imei(LISTED), number=b"\2"), invoke(number=b"\2")), MSC
    )
    _, _, found = read(reply)
    assert [codec.status_of(reply.octets, 2, each.parameters) for each in found[:2]] == [0, 1]
    assert found[2].problem == tcap.DUPLICATE_ID
    reply = service().answer(begin(2, *(invoke(number=bytes((number,))) for number in range(20))), MSC)
    assert len(read(reply)[2]) == tcap.COMPONENTS_MAX + 1


def test_the_vectors():
    for name, vector in wire.VECTORS.items():
        octets = bytes.fromhex(vector)
        assert said(octets, int(name[1]) if name[0] == "v" else 2) == ("grey" if name == "huawei" else "black")


def test_damaged_vectors_get_an_answer_or_a_drop():
    of, results = service(), set()
    of.failed = lambda fault: pytest.fail(repr(fault))
    for vector in wire.VECTORS.values():
        whole = bytes.fromhex(vector)
        for at in range(len(whole)):
            for octets in (
                whole[:at],
                *(whole[:at] + bytes((whole[at] ^ 1 << bit,)) + whole[at + 1 :] for bit in range(8)),
            ):
                reply = of.answer(octets, MSC)
                results.add(reply.result)
                if reply.octets is not None:
                    read(reply)
                else:
                    assert reply.result.startswith("tcap_")
    assert {
        "whitelisted",
        "greylisted",
        "blacklisted",
        "reject",
        "context_not_supported",
        "tcap_badly_formatted",
        "tcap_dialogue",
    } <= results


# judges


def test_pycrate_reads_every_answer_and_asks_as_well():
    """A codec that nobody here wrote: it decodes each answer of the table whole, and its own requests are answered right."""
    pdu = TCAP_MAPv2v3.TCAP_MAP_Messages.TCAP_MAP_Message
    for what, octets, *_ in REQUESTS:
        reply = service().answer(octets, MSC)
        if reply.octets is not None:
            pdu.from_ber(reply.octets)
            kind, value = pdu.get_val()
            assert kind in {"end", "abort"}, what
            assert pdu.to_ber()
            assert value.get("dtid") or value.get("destTransactionID"), what
    for name, vector in wire.VECTORS.items():
        if name == "huawei":
            continue  # pycrate drops its IMSI
        pdu.from_ber(bytes.fromhex(vector))
        written = pdu.to_ber()
        assert said(written, int(name[1])) == "black", name


def test_tshark_objects_to_nothing(tmp_path):
    """Each answer of the table as a whole packet, from M3UA to MAP."""
    answers = [
        reply.octets for _, octets, *_ in REQUESTS if (reply := service().answer(octets, MSC)).octets is not None
    ]
    shown = wire.opinion(tmp_path, [wire.data(wire.udt(each)) for each in answers])
    assert shown.count("MTP 3 User Adaptation Layer") == len(answers)
    for wrong in ("Malformed", "Dissector bug", "BER Error", "Expert Info (Error"):
        assert wrong not in shown, shown[shown.index(wrong) - 3000 : shown.index(wrong) + 200]
    assert "prohibitedListed (1)" in shown or "blackListed (1)" in shown


@pytest.mark.parametrize(
    ("streams", "of_sls"), [(1, [0, 0, 0, 0]), (2, [1, 1, 1, 1]), (4, [1, 2, 3, 1]), (16, [1, 2, 3, 4]), (17, [1, 2, 3, 4])]
)  # fmt: skip
def test_the_sls_of_a_message_selects_its_stream(streams, of_sls):
    """RFC 4666 1.4.7: messages of one SLS stay in order, and stream 0 has no DATA message if there are others."""
    stream = CARRIED.stream
    for context in (None, 7):  # the routing context comes before the protocol data
        sent = [memoryview(wire.data(b"x", sls=sls, context=context)) for sls in range(4)]
        assert [stream(each, streams) for each in sent] == of_sls
    last = memoryview(wire.data(b"x", sls=255))
    assert stream(last, streams) == (0 if streams == 1 else 1 + 255 % (streams - 1))
    for kind in (m3ua.MessageKind.ASPUP, m3ua.MessageKind.BEAT):
        assert stream(memoryview(m3ua.message(kind)), streams) == 0
    without_data = memoryview(m3ua.message(m3ua.MessageKind.DATA))
    assert stream(without_data, streams) == min(1, streams - 1)


async def test_a_gateway_is_dialled_with_the_settings_of_sctp(monkeypatch):
    dialled = asyncio.get_running_loop().create_future()

    async def connect(_link, to, tls, settings, carried):
        dialled.set_result((to.where, tls, settings, carried))
        await asyncio.Event().wait()

    monkeypatch.setattr("eir.interfaces.map.server.begin.connect", connect)
    made, gateway = context(), GatewaySettings(label="stp", connect="sctp://192.0.2.1,192.0.2.2:2905")
    made.shared.sctp = SctpSettings(local_addresses=("192.0.2.9",))
    server = MapServer(Ss7Settings(point_code="1-1-2", gateways=(gateway,)), made)
    server.dial()
    assert await dialled == (endpoint(gateway.connect).where, None, made.shared.sctp, CARRIED)
    await server.drain(0)


async def test_the_probe_names_a_port_on_which_nobody_listens():
    from eir.interfaces.map import INTERFACE

    with pytest.raises(EirError, match=r"^cannot connect to 127\.0\.0\.1:9: Connection refused$"):
        await INTERFACE.probe_of(f"map://127.0.0.1:9?to_point_code={wire.EIR}").ask([LISTED])


async def test_the_probe_falls_back():
    """An EIR of version 1 alone: the probe comes down to it once, and asks so from then on."""
    from eir.interfaces.map import INTERFACE
    from eir.wire.ss7 import sccp
    from eir.wire.ss7.asp import Association

    of, asked = service(), []

    async def serve(reader, writer):
        end = Association(0.0, dials=False)
        while octets := await reader.read(65536):
            for each in end.receive(octets, 0.0):
                unit = sccp.unitdata(each.payload, "itu")
                version = 1 if b"\x6b\x1e" not in unit.data else unit.data[unit.data.index(codec.CONTEXT) + 6]
                asked.append(version)
                answer = of.answer(unit.data, MSC).octets
                if version > 1:
                    otid = tcap.read(unit.data).otid
                    answer = tcap.abort_dialogue(
                        otid, tcap.response(codec.context_of(version), accepted=False, diagnostic=2)
                    )
                end.send(
                    each._replace(
                        opc=each.dpc,
                        dpc=each.opc,
                        payload=sccp.encoded(9, 0, unit.calling.octets, unit.called.octets, answer),
                    )
                )
            writer.write(b"".join(end.messages_to_send()))

    async with accepting(serve) as address:
        probe = INTERFACE.probe_of("map://{}:{}?to_point_code={}&gt={}".format(*address, wire.EIR, wire.TITLE))
        began = time.perf_counter()
        found = await probe.ask([LISTED, FREE], imsi="262010000000001")
        took_ms = (time.perf_counter() - began) * 1000
        assert all(0 < each.round_trip_ms < took_ms for each in found)
        assert [each.status for each in found] == ["blacklisted", "unknown"]
        assert asked == [3, 2, 1, 1]


def test_the_first_octet_of_a_tag_tells_whether_it_is_constructed():
    assert [codec._first(tag) for tag in (0x30, 0x9F21, 0xBF8101, 0x3F818201)] == [0x30, 0x9F, 0xBF, 0x3F]

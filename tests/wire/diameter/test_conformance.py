"""Every row of the conformance table for framing, AVPs, routing and peers, over TCP, TLS and SCTP against a node.

The application is the real one, over a real index and policy, with `no_identity: error` and `bad_identity: error`. After
each case nothing is pending, no task is left, and the counters are equal to the messages that went over the wire.
"""

import asyncio
import ipaddress
import resource
import socket
import struct
import time
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import uvloop
from clock import Clock, counted
from simulated import sctp_wire
from simulated.certificates import Authority
from simulated.lanes import Kept
from simulated.patience import PATIENCE_S
from simulated.store_content import put
from simulated.wire import (
    APP,
    EIR,
    HOST,
    REALM,
    SESSION,
    TGPP,
    VSAI,
    Connection,
    Listener,
    avp,
    cer,
    dpr,
    dwr,
    ecr,
    message,
    terminal,
    u32,
    until,
    vector,
    walk,
)

from eir.checks.checker import Checker
from eir.checks.settings import PolicySettings, Rule, Status
from eir.device import device_key
from eir.interfaces.s13.application import ECR, S13, s13_application
from eir.interfaces.s13.dictionary import DICTIONARY
from eir.interfaces.s13.service import REPLIES, S13Service
from eir.lists.images.index import Index
from eir.lists.log.change import Head
from eir.lists.table.columns import rows_of
from eir.wire.diameter.client import connect
from eir.wire.diameter.message import Reply
from eir.wire.diameter.node import Identity, Limits, Node, PeerSettings
from eir.wire.diameter.peer import Peer
from eir.wire.diameter.serve import TOO_BUSY_REPLY, NodeContext
from eir.wire.diameter.states import State
from eir.wire.diameter.watchdog import WatchdogStatus as Watch
from eir.wire.peers.counts import Counts
from eir.wire.transport.settings import TlsSettings
from eir.wire.transport.tls import load_tls, read_tls

LISTED = "35209900176148"  # its Luhn digit is 1
UNLISTED = "35123456789012"
IDENTITY = Identity(host=EIR, realm=REALM, aliases=("hss.localdomain",), realms=("second.realm",), origin_state_id=77)
PEER = PeerSettings(label="mme", realm=REALM, sources=(ipaddress.ip_network("127.0.0.0/8"),))


def checker(**policy) -> Checker:
    """Over one list that holds LISTED."""
    index = Index({"stolen": "devices"})
    key = device_key(LISTED)
    state = Head(kind="devices", serial=1, generation=1, highest_serial=1, release="")
    put(index, "stolen", state, rows_of([key]))
    settings = PolicySettings(
        **{"rules": (Rule(list="stolen", answer=Status.BLACKLISTED),), "no_identity": None, "bad_identity": None}
        | policy
    )
    return Checker(settings, index, now=datetime.now(UTC))


def service(**policy) -> S13Service:
    """The real application over it."""
    return S13Service(checker(**policy))


TRANSPORTS = ("tcp", "tls", "sctp")


@dataclass
class Over:
    """What the case that runs goes over."""

    scheme: str = "tcp"
    authority: Authority | None = None

    def tls(self):
        """What a node proves itself with over TLS."""
        assert self.authority is not None
        return load_tls(read_tls(TlsSettings(**{key: Path(file) for key, file in self.authority.write(EIR).items()})))

    def context(self, *names):
        assert self.authority is not None
        return self.authority.peer(*(names or (f"*.{REALM}", "other")))


OVER = Over()


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def over(authority):
    """Has what follows run over a transport."""

    def set_scheme(scheme):
        OVER.scheme, OVER.authority = scheme, authority

    yield set_scheme
    OVER.scheme, OVER.authority = "tcp", None


def params(case, name, transports):
    """The case over each of these transports."""
    return [
        pytest.param(
            case, scheme, id=f"{name}-{scheme}", marks=[pytest.mark.sctp, pytest.mark.long] * (scheme == "sctp")
        )
        for scheme in transports
    ]


@dataclass
class Reports:
    seen: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def __call__(self, event, **fields):
        self.seen.append((event, fields))

    def settings(self):
        return {fields["setting"] for _, fields in self.seen if fields.get("setting")}


@dataclass
class Setup:
    node: Node
    host: str
    port: int
    counts: Counts
    reports: Reports
    connections: list[Connection] = field(default_factory=list)

    def counts_of(self, state: str) -> int:
        return [row.state for row in self.node.status()].count(state)

    async def connect(self, **kwargs) -> Connection:
        if OVER.scheme == "sctp":
            streams = await sctp_wire.open_connection(self.host, self.port)
        else:
            if OVER.scheme == "tls":
                kwargs = {"ssl": OVER.context()} | kwargs
            streams = await asyncio.open_connection(self.host, self.port, **kwargs)
        connection = Connection(*streams)
        self.connections.append(connection)
        return connection

    async def open(self, octets=None) -> Connection:
        connection = await self.connect()
        await connection.open(octets)
        return connection


@asynccontextmanager
async def running(
    application=None,
    peers=(PEER,),
    limits=None,
    identity=IDENTITY,
    *,
    exact=True,
    tls=None,
    overload=TOO_BUSY_REPLY,
    sctp=None,
    timing=None,
    **policy,
):
    """A node on a free port. At the end: nothing pending, no task left, counters equal to the messages on the wire."""
    tasks = asyncio.all_tasks()
    if OVER.scheme == "tls" and tls is None:
        tls = OVER.tls()
    counts, reports = Counts(), Reports()
    node = Node(
        identity, peers, limits or Limits(), replace(S13, answer=application or service(**policy).answer), counts=counts,
        report=reports, tls=tls, overload=overload, sctp=sctp, **(timing or {}),
    )  # fmt: skip
    host, port = await node.listen(f"{'tls' if tls else OVER.scheme}://127.0.0.1:0")
    setup = Setup(node, host, port, counts, reports)
    try:
        yield setup
        assert node.pending == 0
        for connection in setup.connections:
            await connection.close()
        await until(lambda: not node.status() or all(row.address is None for row in node.status()))
    finally:
        for connection in setup.connections:
            await connection.close()
        await node.drain(5)
    assert asyncio.all_tasks() == tasks
    if exact:
        sent = sum((connection.sent for connection in setup.connections), Counter())
        received = sum((connection.received for connection in setup.connections), Counter())
        assert by_direction(counts, "in") == sent
        assert by_direction(counts, "out") == received
        solicited = sum(connection.solicited for connection in setup.connections)
        assert received["answer"] + counts.dropped.total() == sent.total() - solicited


@asynccontextmanager
async def no_time():
    """Stop the clock, so that the requests that a limit grants do not depend on the speed of the host."""
    with Clock().standing() as clock:
        yield clock


def by_direction(counts, direction):
    total = Counter()
    for (_, _, kind, way), number in counts.messages.items():
        if way == direction:
            total[kind] += number
    return total


def check_answer(request, answer):
    """What every answer holds, whatever it says."""
    flags = request[4]
    assert answer.octets[4] & 0x90 == 0, "R and T are clear"
    assert answer.flags & 0x40 == flags & 0x40, "P is copied"
    assert answer.octets[5:20] == request[5:20], "command, application and both ids are copied"
    assert (answer.data(264), answer.data(296)) == (EIR.encode(), REALM.encode())
    assert not any(answer.every(code) for code in (283, 293, 282, 301)), "no Destination-*, Route-Record, DRMP"
    result = answer.result
    if answer.error:
        assert 3000 <= result < 4000 or (result >= 5000 and not answer.every(263))
    else:
        assert not (isinstance(result, int) and 3000 <= result < 4000)
    if answer.command == 324 and answer.app == APP and not answer.error:
        assert answer.avps[0].code == 263, "Session-Id comes first"
        assert answer.number(277) == 1, "Auth-Session-State"
        assert len(answer.every(1445, TGPP)) == (result == 2001)


# Rows where one request has one answer


@dataclass(frozen=True)
class Case:
    row: int
    what: str
    request: bytes
    result: int | str = 2001
    status: int | None = None
    """Equipment-Status."""
    failed: bytes | None = None
    """What the Failed-AVP holds, to the byte."""
    error: bool = False
    """The E bit."""
    lenient: str | None = None
    policy: dict[str, Any] = field(default_factory=dict)
    setting: str | None = None
    """The report has to name it."""


def deep(code, vendor, levels):
    octets = b""
    for _ in range(levels):
        octets = avp(code, octets, vendor)
    return octets


IMEI_EXAMPLE = avp(1401, avp(1402, "0" * 14, TGPP), TGPP)
PROXIES = [
    avp(284, avp(280, "proxy1.example") + avp(33, b"\0\1\2\3\xff")),
    avp(284, b"\xff" * 13),  # nobody looks inside
]
KNOWN = [
    avp(701, b"\x21\x43", TGPP), avp(628, u32(266, TGPP) + u32(629, 1, TGPP) + u32(630, 1, TGPP), TGPP),
    avp(621, avp(622, bytes(8))), avp(650, u32(651, 1)), u32(301, 3), avp(1602, bytes(7), TGPP), u32(1032, 1004, TGPP),
    avp(1443, bytes(4), TGPP), avp(1718, bytes(4), TGPP),
]  # fmt: skip
SECOND = terminal("11111111111111")

NUMBER, NUMBER_TBCD, CELL = "491701234567", bytes.fromhex("947110325476"), b"cell-xy"

CASES = [
    Case(7, "R and E", ecr(flags=0xE0), 3008, error=True),
    Case(8, "reserved bits", ecr(flags=0xCF), status=0),
    Case(9, "unknown command in S13", message(325, avp(263, SESSION)), 3001, error=True),
    Case(9, "324 in application 0", message(324, avp(263, SESSION), app=0), 3001, error=True),
    Case(9, "an accounting request in application 0", message(271, avp(263, SESSION), app=0), 3001, error=True),
    Case(9, "a DWR in S13", message(280, avp(264, HOST)), 3001, error=True),
    Case(10, "S6a", message(316, avp(263, SESSION), app=16777251), 3007, error=True),
    Case(10, "relay", message(324, avp(263, SESSION), app=0xFFFFFFFF), 3007, error=True),
    Case(11, "in Vendor-Specific-Application-Id", ecr(vsai=avp(260, u32(266, TGPP) + u32(258, 16777251))), 5004,
         failed=avp(260, u32(258, 16777251))),
    Case(11, "Auth-Application-Id", ecr(extra=u32(258, 1)), 5004, failed=u32(258, 1)),
    Case(11, "Acct-Application-Id", ecr(extra=u32(259, 3)), 5004, failed=u32(259, 3)),
    Case(11, "the same id", ecr(extra=u32(258, APP)), status=0),
    Case(13, "ECR without P", ecr(flags=0x80), status=0),
    Case(13, "DWR with P", dwr(flags=0xC0)),
    Case(14, "T", ecr(flags=0xD0), status=0),
    Case(14, "T from a real MME", vector("ecr-tbit"), status=0),
    Case(15, "unknown AVP of length 4", ecr(extra=avp(9999, b"", length=4)), 5014, failed=avp(9999)),
    Case(15, "length 0", ecr(extra=avp(9999, b"", length=0)), 5014, failed=avp(9999)),
    Case(15, "V and length 8", ecr(extra=avp(1402, b"", TGPP, length=8)), 5014,
         failed=struct.pack(">III", 1402, 0xC0 << 24 | 12, 0)),
    Case(15, "Auth-Session-State of length 7", ecr(state=avp(277, bytes(4), length=7)), 5014, failed=u32(277, 0)),
    Case(15, "the Session-Id itself", ecr(session=avp(263, SESSION, length=3)), 5014, failed=avp(263), error=True),
    Case(15, "inside a group", ecr(terminal=avp(1401, avp(1402, b"", TGPP, length=5), TGPP)), 5014,
         failed=avp(1401, struct.pack(">III", 1402, 0xC0 << 24 | 12, 0), TGPP)),
    Case(15, "half a header", ecr(extra=b"\0\0\x27\x0f"), 5014, failed=avp(9999, flags=0)),
    Case(16, "past the message", ecr(extra=avp(1, b"0010", length=200)), 5014, failed=avp(1)),
    Case(16, "16 MB", ecr(extra=avp(277, bytes(4), length=0xFFFFFF)), 5014, failed=u32(277, 0)),
    Case(16, "past its group", ecr(terminal=avp(1401, avp(1402, b"35", TGPP, length=40), TGPP)), 5014,
         failed=avp(1401, avp(1402, b"", TGPP), TGPP)),
    Case(16, "a group past the message", ecr(extra=avp(1401, b"", TGPP, length=100), drop=("terminal",)), 5014,
         failed=avp(1401, b"", TGPP)),
    Case(17, "3 bytes", ecr(state=avp(277, bytes(3))), 5014, failed=avp(277, bytes(3))),
    Case(17, "value 7", ecr(state=u32(277, 7)), 5004, failed=u32(277, 7)),
    Case(18, "unknown with M", ecr(extra=avp(9999, b"abcde")), 5001, failed=avp(9999, b"abcde"),
         setting="lenient: [unknown_m]"),
    Case(18, "unknown of a vendor with M", ecr(extra=avp(1, b"x", 99999)), 5001, failed=avp(1, b"x", 99999)),
    Case(18, "unknown with M in a group", ecr(terminal=terminal(extra=avp(9999, b"x"))), 5001,
         failed=avp(1401, avp(9999, b"x"), TGPP)),
    Case(18, "unknown with M, lenient", ecr(extra=avp(9999, b"abcde")), status=0, lenient="unknown_m"),
    Case(18, "unknown without M", ecr(extra=avp(9999, b"abcde", flags=0) + avp(7, b"y", 99999, flags=0)), status=0),
    Case(18, "all known ones with M", ecr(extra=b"".join(KNOWN)), status=0),
    Case(18, "all known ones without M", ecr(extra=b"".join(o[:4] + bytes([o[4] & 0xBF]) + o[5:] for o in KNOWN)), status=0),
    Case(18, "our own AVPs without M", ecr(
        session=avp(263, SESSION, flags=0), state=u32(277, 1, flags=0), host=avp(264, HOST, flags=0),
        realm=avp(296, REALM, flags=0), to_realm=avp(283, REALM, flags=0), user=avp(1, "00101", flags=0),
        terminal=avp(1401, avp(1402, UNLISTED, TGPP, 0), TGPP, 0), drop=("vsai",)), status=0),
    Case(18, "inside Proxy-Info", ecr(extra=avp(284, avp(9999, b"x") + b"\0")), status=0),
    Case(19, "Session-Id", ecr(drop=("session",)), 5005, failed=avp(263, b"\0"), error=True),
    Case(19, "Auth-Session-State", ecr(drop=("state",)), 5005, failed=u32(277, 0)),
    Case(19, "Origin-Host", ecr(drop=("host",)), 5005, failed=avp(264, b"\0")),
    Case(19, "Origin-Realm", ecr(drop=("realm",)), 5005, failed=avp(296, b"\0")),
    Case(19, "Destination-Realm", ecr(drop=("to_realm",)), 5005, failed=avp(283, b"\0")),
    Case(19, "Vendor-Id of its group", ecr(vsai=avp(260, u32(258, APP))), 5005, failed=avp(260, u32(266, 0))),
    Case(20, "Terminal-Information missing", ecr(drop=("terminal",)), 5005, failed=IMEI_EXAMPLE),
    Case(20, "without IMEI and MEID", ecr(terminal=terminal(None)), 5005, failed=IMEI_EXAMPLE),
    Case(20, "missing, by policy", ecr(drop=("terminal",)), status=0, policy={"no_identity": Status.WHITELISTED}),
    Case(20, "a real MME's, by policy", vector("ecr-noimei"), status=2, policy={"no_identity": Status.GREYLISTED}),
    Case(20, "empty, by policy", ecr(terminal=terminal(None)), status=1, policy={"no_identity": Status.BLACKLISTED}),
    Case(20, "MEID only", ecr(terminal=avp(1401, avp(1471, "A0000012345678", TGPP), TGPP)), status=0),
    Case(21, "Terminal-Information twice", ecr(extra=SECOND), 5009, failed=SECOND),
    Case(21, "three times", ecr(extra=SECOND + terminal("2" * 14)), 5009, failed=SECOND),
    *(
        Case(22, what, ecr(terminal=avp(1401, avp(1402, imei, TGPP), TGPP)), 5004,
             failed=avp(1401, avp(1402, imei, TGPP), TGPP))
        for what, imei in {
            "empty": b"", "letters": b"35123456789abc", "bad UTF-8": b"3512345678901\xff", "13 digits": b"3512345678901",
            "17 digits": b"35123456789012345", "other scripts' digits": "\u0663512345678901".encode(),
        }.items()
    ),
    Case(22, "letters, by policy", ecr("35123456789abc"), status=2, policy={"bad_identity": Status.GREYLISTED}),
    Case(23, "no User-Name", ecr(drop=("user",)), status=0),
    Case(24, "Terminal-Information", ecr(terminal=deep(1401, TGPP, 8192)), 5014, failed=avp(1401, b"", TGPP)),
    Case(24, "Failed-AVP", ecr(extra=deep(279, 0, 8192)), 5014, failed=avp(279)),
    Case(24, "Supported-Features without M", ecr(extra=deep(628, TGPP, 9)), 5014, failed=avp(628, b"", TGPP)),
    Case(24, "an unknown group is no group", ecr(extra=avp(9999, deep(279, 0, 4000), flags=0)), status=0),
    Case(26, "both ids", ecr(vsai=avp(260, u32(266, TGPP) + u32(258, APP) + u32(259, APP))), 5009,
         failed=u32(258, APP) + u32(259, APP)),
    Case(26, "no id", ecr(vsai=avp(260, u32(266, TGPP))), 5005, failed=u32(258, 0) + u32(259, 0)),
    Case(26, "none at all", ecr(drop=("vsai",)), status=0),
    Case(27, "ours", ecr(extra=avp(293, EIR)), status=0),
    Case(27, "ours in capitals", ecr(extra=avp(293, EIR.upper())), status=0),
    Case(27, "an alias", ecr(extra=avp(293, "hss.localdomain")), status=0),
    Case(27, "ours, another realm", ecr(extra=avp(293, EIR), to_realm=avp(283, "elsewhere")), status=0),
    Case(28, "realm not served", ecr(to_realm=avp(283, "elsewhere")), 3003, error=True, setting="identity.realms"),
    Case(28, "a second realm of ours", ecr(to_realm=avp(283, "Second.Realm")), status=0),
    Case(29, "another's, realm served", ecr(extra=avp(293, "other.localdomain")), 3002, error=True,
         setting="lenient: [destination], or identity.aliases"),
    Case(29, "another's, no realm", ecr(extra=avp(293, "other.localdomain"), drop=("to_realm",)), 3002, error=True),
    Case(29, "another's, realm not served", ecr(extra=avp(293, "other"), to_realm=avp(283, "elsewhere")), 3003, error=True),
    Case(29, "another's, lenient", ecr(extra=avp(293, "other.localdomain")), status=0, lenient="destination"),
    Case(30, "14 digits", ecr(LISTED), status=1),
    Case(30, "15, Luhn", ecr(LISTED + "1"), status=1),
    Case(30, "15, spare 0", ecr(LISTED + "0"), status=1),
    Case(30, "16", ecr(LISTED + "77"), status=1),
    Case(31, "unknown", ecr(), "10415:5422", policy={"default": Status.UNKNOWN}),
    Case(43, "DWR with another Origin-Host", dwr("other.localdomain")),
    *(
        Case(60, f"{what} {'with' if flags else 'without'} M", ecr(extra=avp(code, data, TGPP, flags)), status=0)
        for flags in (0x40, 0)
        for what, code, data in (("MSISDN", 701, NUMBER_TBCD), ("an MSISDN that is none", 701, b"\xab"), ("a cell", 1602, CELL))
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("case", "scheme"), [param for case in CASES for param in params(case, f"{case.row}-{case.what}", TRANSPORTS)]
)
def test_answer(case, scheme, over):
    over(scheme)
    uvloop.run(ask_twice(case))  # the loop that the server runs on


async def ask_twice(case):
    peer = replace(PEER, lenient=frozenset({case.lenient} if case.lenient else ()))
    async with running(peers=(peer,), **case.policy) as setup:
        connection = await setup.open()
        for _ in range(2):  # the connection stays, and the same question has the same answer
            answer = await connection.ask(case.request)
            check_answer(case.request, answer)
            assert (answer.result, answer.error) == (case.result, case.error)
            assert answer.number(1445, TGPP) == case.status
            assert answer.data(279) == case.failed
        assert (await connection.ask(dwr())).result == 2001
        if case.setting:
            assert case.setting in setup.reports.settings()


# Rows that need more than one request

ROWS = []


def row(number, what, over=TRANSPORTS, *, run=uvloop.run):
    """A case of a row of the table; `over`: the transports that it is about. `run`: `counted` for one that moves its clock."""

    def register(case):
        ROWS.extend(params(lambda: run(case()), f"{number}-{what}", over))
        return case

    return register


@pytest.mark.parametrize(("case", "scheme"), ROWS)
def test_row(case, scheme, over):
    over(scheme)
    case()


@row(1, "Message Length 0 and below 20")
async def _():
    for length in (0, 1, 4, 16, 19):
        async with running() as setup:
            connection = await setup.open()
            before = time.process_time()
            await connection.send(uncounted=message(324, length=length) * 2)
            with pytest.raises(ConnectionResetError):
                await connection.reader.read()
            assert time.process_time() - before < 1
            assert setup.counts.errors["message_length"] == 1
        async with running() as setup:  # as the first message
            connection = await setup.connect()
            await connection.send(uncounted=message(257, length=length))
            assert await connection.end() == []


@row(2, "Message Length not a multiple of 4")
async def _():
    whole = ecr()
    for length in (len(whole) - 1, len(whole) + 1, 21):
        async with running() as setup:
            connection = await setup.open()
            wrong = whole[:1] + length.to_bytes(3) + whole[4:]
            await connection.send(wrong)
            (answer,) = await connection.end()
            check_answer(wrong, answer)
            assert (answer.result, answer.error) == (5015, length == 21)
        async with running() as setup:  # an answer: closed without a word
            connection = await setup.open()
            await connection.send(wrong[:4] + b"\0" + wrong[5:])
            assert await connection.end() == []


@row(3, "Message Length over the limit")
async def _():
    async with running() as setup:
        connection = await setup.open()
        await connection.send(uncounted=message(324, length=0xFFFFFC))
        assert await connection.end() == []
        assert "message_too_long" in {fields.get("reason") for _, fields in setup.reports.seen}
    async with running(limits=Limits(max_message_bytes=4096)) as setup:
        connection = await setup.open()
        await connection.ask(ecr(extra=avp(9999, bytes(3000), flags=0)))
        await connection.send(uncounted=ecr(extra=avp(9999, bytes(5000), flags=0)))
        assert await connection.end() == []


@row(4, "split at every byte, and many in one segment")
async def _():
    whole = ecr(LISTED)
    async with running() as setup:
        connection = await setup.open()
        wanted = (await connection.ask(whole)).octets
        for cut in range(1, len(whole)):
            await connection.send(uncounted=whole[:cut])
            await asyncio.sleep(0)
            await connection.send(uncounted=whole[cut:])
            connection.sent["request"] += 1
            assert (await connection.read()).octets == wanted
        await connection.send(*[whole] * 500)
        assert {(await connection.read()).octets for _ in range(500)} == {wanted}
        for octet in whole:
            await connection.send(uncounted=bytes([octet]))
        connection.sent["request"] += 1
        assert (await connection.read()).octets == wanted


@row(5, "truncated, then the end of the stream", ["tcp", "sctp"])
async def _():
    for cut in (1, 3, 19, 20, 100):
        async with running() as setup:
            connection = await setup.open()
            await connection.send(uncounted=ecr()[:cut])
            connection.writer.write_eof()
            if OVER.scheme == "tcp":  # SCTP has no half of a connection: who shut it down hears no end
                assert await connection.end() == []
            await until(lambda setup=setup: setup.counts.errors["truncated"] == 1)


@row(5, "a message that never ends")
async def _():
    async with running(limits=Limits(partial_message_timeout_s=0.2)) as setup:
        connection = await setup.open()
        await connection.send(uncounted=ecr()[:100])
        assert await connection.end() == []
        assert setup.counts.errors["partial_message"] == 1


@row(6, "version 2")
async def _():
    async with running() as setup:
        connection = await setup.open()
        wrong = b"\2" + ecr()[1:]
        await connection.send(wrong)
        (answer,) = await connection.end()
        check_answer(wrong, answer)
        assert (answer.result, answer.octets[0]) == (5011, 1)
    async with running() as setup:  # a CER
        connection = await setup.connect()
        wrong = b"\2" + cer()[1:]
        await connection.send(wrong)
        (answer,) = await connection.end()
        assert (answer.result, answer.octets[0], answer.error) == (5011, 1, False)


@row(12, "answers that nobody asked for")
async def _():
    async with running() as setup:
        connection = await setup.open()
        stray = [
            message(command, u32(268, 2001), 0, app)
            for command, app in ((324, APP), (280, 0), (257, 0), (282, 0), (9, 9))
        ]
        await connection.send(*stray)
        assert (await connection.ask(dwr())).command == 280
        assert setup.counts.dropped == {"unsolicited_answer": len(stray)}


@row(14, "one set of ids, two questions")
async def _():
    async with running() as setup:
        connection = await setup.open()
        first, second = await connection.ask(ecr(LISTED)), await connection.ask(ecr(UNLISTED))
        assert [answer.number(1445, TGPP) for answer in (first, second)] == [1, 0]
        assert first.hop_by_hop == second.hop_by_hop


@row(18, "every AVP of the dictionary, with M and without")
async def _():
    async with running() as setup:
        connection = await setup.open()
        elsewhere = {key: definition for key, definition in DICTIONARY.avps.items() if key not in ECR.rules}
        assert len(elsewhere) > 300
        for key, definition in elsewhere.items():
            for flags in (0x40, 0):
                extra = avp(key & 0xFFFFFFFF, bytes(definition.type.least_bytes), key >> 32, flags)
                assert (await connection.ask(ecr(extra=extra))).number(1445, TGPP) == 0, definition.name


@row(25, "Proxy-Info, ids and P, nothing else")
async def _():
    extra = PROXIES[0] + avp(282, "relay.example") + u32(301, 2, flags=0) + PROXIES[1] + avp(293, EIR)
    for flags in (0x80, 0xC0, 0xD0):
        request = ecr(extra=extra, flags=flags, ids=(0xDEADBEEF, 0xCAFEBABE))
        async with running() as setup:
            connection = await setup.open()
            answer = await connection.ask(request)
            check_answer(request, answer)
            assert [proxy.raw for proxy in answer.every(284)] == PROXIES
            assert answer.data(263) == SESSION.encode()


@row(32, "any fault of our own")
async def _():
    def explode(request):
        raise [ZeroDivisionError, KeyError, RecursionError, MemoryError][request.hop_by_hop % 4]

    async with running(explode) as setup:
        connection = await setup.open()
        for hop_by_hop in range(4):
            request = ecr(ids=(hop_by_hop, 1))
            answer = await connection.ask(request)
            check_answer(request, answer)
            assert (answer.result, answer.error) == (5012, False)
        assert setup.counts.errors["internal"] == 4
        assert all("35123456789012" not in str(fields) for _, fields in setup.reports.seen)
    for nonsense in (None, Reply(result_code=-1), Reply(result_code="2001"), Reply(avps=None)):
        async with running(lambda _, nonsense=nonsense: nonsense) as setup:
            connection = await setup.open()
            assert (await connection.ask(ecr())).result == 5012
            assert (await connection.ask(dwr())).result == 2001


@row(33, "the load limit", run=counted)
async def _():
    async with running(peers=(replace(PEER, rate_max=8.0),)) as setup, no_time():
        connection = await setup.open()
        requests = [ecr(ids=(number, number)) for number in range(50)]
        await connection.send(*requests, dwr())
        answers = [await connection.read() for _ in range(51)]
        assert (answers[-1].command, answers[-1].result) == (280, 2001)
        shed = [answer for answer in answers[:-1] if answer.result == 3004]
        assert all(answer.error for answer in shed)
        assert 0 < len(answers[:-1]) - len(shed) < 10
        assert setup.counts.shed == {("mme", "rate_max"): len(shed)}
        for request, answer in zip(requests, answers, strict=False):
            check_answer(request, answer)
        connection.writer.write(dpr())
        connection.sent["request"] += 1
        assert (await connection.read()).command == 282


@row(33, "the load limit: lower priorities go first", run=counted)
async def _():
    async with running(peers=(replace(PEER, rate_max=80.0),)) as setup, no_time():
        connection = await setup.open()
        requests = [
            ecr(extra=u32(301, (0, 15)[number % 2]), ids=(number, number)) for number in range(60)
        ]  # RFC 7944: 0 is the highest
        await connection.send(*requests)
        passed = Counter()
        for number, request in enumerate(requests):
            answer = await connection.read()
            check_answer(request, answer)
            passed[number % 2] += answer.result == 2001
        assert passed[0] >= passed[1] + 5
        assert setup.counts.shed == {("mme", "rate_max"): 60 - passed.total()}


@row(33, "the load limit, with a status for an answer", run=counted)
async def _():
    async with running(peers=(replace(PEER, rate_max=8.0),), overload=REPLIES[Status.GREYLISTED]) as setup, no_time():
        connection = await setup.open()
        requests = [ecr(ids=(number, number)) for number in range(20)]
        await connection.send(*requests, ecr(drop=("session",)), dwr())
        answers = [await connection.read() for _ in range(22)]
        for request, answer in zip(requests, answers, strict=False):
            check_answer(request, answer)
        statuses = [answer.number(1445, TGPP) for answer in answers[:20]]
        assert statuses == sorted(statuses)
        assert statuses.count(2) == setup.counts.shed["mme", "rate_max"] - 1 > 10
        # A status needs a request that can have one: what is wrong with it comes first.
        assert (answers[20].result, answers[20].error) == (5005, True)
        assert answers[21].command == 280


@asynccontextmanager
async def over_tls(name):
    """A node that listens for TLS, and the context of a client with a certificate for this name."""
    async with running() as setup:
        yield setup, OVER.context(name)


@row(34, "a source that no entry takes", ["tcp", "sctp"])
async def _():
    other = replace(PEER, sources=(ipaddress.ip_network("192.0.2.0/24"),))
    async with running(peers=(other,)) as setup:
        connection = await setup.connect()
        assert await connection.end() == []
        assert setup.counts.peers_refused == {"source": 1}


@row("34a", "64 peers of one network in the same moment, each with its CER at once or a round trip later", run=counted)
async def _():
    names = [f"mme{number}.localdomain" for number in range(64)]
    for pause_s in (0, 0.1):
        async with running() as setup, no_time() as clock:
            made = await asyncio.gather(*(setup.connect() for _ in names))
            clock.forward(pause_s)
            opened = await asyncio.gather(*(one.open(cer(name)) for one, name in zip(made, names, strict=True)))
            assert [cea.result for cea in opened] == [2001] * 64
            assert setup.node.connected() == {"mme": 64}
            assert not setup.counts.peers_refused


@row("34a", "a source that says nothing is closed, and a line names the setting")
async def _():
    async with running(limits=Limits(source_unidentified_max=4, cer_timeout_s=3)) as setup:
        good = await setup.open()
        silent = [await setup.connect() for _ in range(12)]
        assert [await one.end() for one in silent] == [[]] * 12
        assert setup.counts.peers_refused["source_unidentified_max"] >= 8
        lines = [fields for event, fields in setup.reports.seen if event == "peer_refused"]
        assert {"reason": "source_unidentified_max", "setting": "limits.source_unidentified_max"}.items() <= lines[
            0
        ].items()
        assert lines[0]["address"]
        assert (await good.ask(ecr())).result == 2001


@row("34a", "peers that the table names have room beside the limit", ["tcp"])
async def _():
    names = [f"mme{number}.localdomain" for number in range(24)]
    here = (ipaddress.ip_network("127.0.0.1"),)
    for named in (
        [replace(PEER, label=name, host=name, sources=here) for name in names],
        [replace(PEER, sources=here, connections=24)],
    ):
        async with running(peers=(*named, PEER), limits=Limits(source_unidentified_max=2, unidentified_max=2)) as setup:
            made = [await setup.connect() for _ in names]
            strangers = [await setup.connect(local_addr=("127.0.1.1", 0)) for _ in range(6)]
            assert [await one.end() for one in strangers[:4]] == [[]] * 4  # which came after the others
            for one, name in zip(made, names, strict=True):
                await one.open(cer(name))


@row("34b", "a peer that closes at once after our CEA expects another name of ours")
async def _():
    shown = replace(PEER, as_host="other.localdomain")
    for peer, name in ((PEER, EIR), (shown, "other.localdomain")):
        async with running(peers=(peer,)) as setup:
            await (await setup.open()).close()
            await until(lambda setup=setup: "peer_closed" in dict(setup.reports.seen))
            told = dict(setup.reports.seen)["peer_closed"]
            assert (told["level"], told["origin_host"], told["setting"]) == (
                "warning",
                name,
                "peers: as: {host, realm}",
            )
            assert name in told["detail"]
            (row,) = setup.node.status()
            assert name in row.last_error
            good = await setup.open()
            (row,) = setup.node.status()
            assert row.last_error is None
            await good.ask(ecr())
            setup.reports.seen.clear()
            await good.close()  # it was content
            await until(lambda setup=setup: "peer_closed" in dict(setup.reports.seen))
            assert "level" not in dict(setup.reports.seen)["peer_closed"]


@row(35, "the first message is no CER")
async def _():
    for first in (dwr(), ecr(), dpr(), message(257, flags=0, app=0), message(257, flags=0x80, app=APP)):
        async with running() as setup:
            connection = await setup.connect()
            await connection.send(first)
            assert await connection.end() == []
            assert setup.counts.peers_refused == {"not_cer": 1}


@row(35, "no CER in time", run=counted)
async def _():
    async with running() as setup:
        clock = Clock()
        silent, slow = await setup.connect(), await setup.connect()
        await slow.send(uncounted=cer()[:50])
        await until(lambda: setup.counts_of("wait_cer") == 2)
        clock.forward(Limits().cer_timeout_s)
        assert await silent.end() == await slow.end() == []
        assert setup.counts.peers_refused == {"cer_timeout": 2}


@row(36, "an unknown peer, and one with our own name")
async def _():
    for octets in (cer(realm="elsewhere"), cer(EIR)):
        async with running() as setup:
            connection = await setup.connect()
            await connection.send(octets)
            (cea,) = await connection.end()
            check_answer(octets, cea)
            assert (cea.result, cea.error, cea.command) == (3010, True, 257)


@row(36, "a TLS name that is not the peer's", ["tls"])
async def _():
    async with over_tls("mme2.localdomain") as (setup, context):
        connection = await setup.connect(ssl=context)
        await connection.send(cer())
        (cea,) = await connection.end()
        check_answer(cer(), cea)
        assert (cea.result, cea.error, cea.command) == (3010, True, 257)
        assert "tls_names" in setup.reports.settings()


@row(37, "a defective CER")
async def _():
    for octets, result, failed in (
        (cer(drop=("host",), extra=avp(9, b"", flags=0)), 5005, avp(264, b"\0")),
        (cer(drop=("realm",)), 5005, avp(296, b"\0")),
        (cer(drop=("address",)), 5005, avp(257, bytes(6))),
        (cer(drop=("vendor",)), 5005, u32(266, 0)),
        (cer(drop=("product",)), 5005, avp(269, b"\0", flags=0)),
        (cer(""), 5004, avp(264)),
        (cer("h" * 256), 5004, avp(264, "h" * 256)),
        (cer("h\u00e4st"), 5004, avp(264, "h\u00e4st")),
        (cer(address=avp(257, b"\0\1\x0a")), 5004, avp(257, b"\0\1\x0a")),
        (cer(vendor=avp(266, b"\0")), 5014, avp(266, b"\0")),
        (cer(app=avp(260, u32(266, 1)[:-4], length=12)), 5014, avp(260, u32(266, 0, flags=0))),
        (cer(extra=avp(9999, b"x")), 5001, avp(9999, b"x")),
        (cer(extra=u32(278, 1)), 5009, u32(278, 1)),
        (cer(extra=avp(1, b"", length=99)), 5014, avp(1)),
    ):
        async with running() as setup:
            connection = await setup.connect()
            await connection.send(octets)
            (cea,) = await connection.end()
            assert (cea.result, cea.error) == (result, False)
            assert cea.data(279) == failed
            check_cea(cea)


@row(38, "no common application, and those that are taken all the same")
async def _():
    s6a = avp(260, u32(266, TGPP) + u32(258, 16777251))
    async with running() as setup:
        connection = await setup.connect()
        await connection.send(cer(app=s6a))
        (cea,) = await connection.end()
        assert (cea.result, cea.error) == (5010, False)
        assert "lenient: [applications]" in setup.reports.settings()
    for octets, lenient in (
        (cer(app=s6a), "applications"), (vector("cer"), "applications"), (vector("cer-relay"), None),
        (cer(app=u32(258, 0xFFFFFFFF)), None), (cer(app=u32(258, APP)), None), (cer(app=b""), "applications"),
        (cer(app=avp(260, u32(258, APP) + u32(259, 3))), None),
    ):  # fmt: skip
        async with running(peers=(replace(PEER, lenient=frozenset({lenient} - {None})),)) as setup:
            connection = await setup.connect()
            check_cea(await connection.open(octets))
            assert (await connection.ask(vector("ecr"))).number(1445, TGPP) == 0


@row(39, "Inband-Security-Id", ["tcp", "sctp"])
async def _():
    async with running() as setup:
        connection = await setup.connect()
        await connection.send(cer(extra=u32(299, 1)))
        (cea,) = await connection.end()
        assert (cea.result, cea.error) == (5017, False)
    for extra in (b"", u32(299, 0), u32(299, 1) + u32(299, 0)):
        async with running() as setup:
            await setup.open(cer(extra=extra))


@row(39, "Inband-Security-Id over TLS", ["tls"])
async def _():
    for extra in (b"", u32(299, 0), u32(299, 1)):
        async with over_tls(HOST) as (setup, context):
            connection = await setup.connect(ssl=context)
            check_cea(await connection.open(cer(extra=extra)))
            assert (await connection.ask(ecr(LISTED))).number(1445, TGPP) == 1


@row(40, "Host-IP-Address behind NAT")
async def _():
    async with running() as setup:
        await setup.open(
            cer(address=avp(257, b"\0\1\xc0\0\2\1") + avp(257, b"\0\2" + bytes(16)) + avp(257, b"\0\x08" + b"12345"))
        )


@row(41, "a CER on an open connection")
async def _():
    async with running() as setup:
        connection = await setup.open()
        answer = await connection.ask(cer(ids=(1, 2)))
        assert (answer.result, answer.command, answer.error) == (5012, 257, False)
        assert (await connection.ask(ecr(LISTED))).number(1445, TGPP) == 1
        await connection.send(cer())  # the one that opened it: its CEA is out already
        assert (await connection.ask(ecr(LISTED))).number(1445, TGPP) == 1
        assert setup.counts.dropped == {"cer_repeated": 1}


@row(41, "a CER that is sent again while it is judged has one CEA")
async def _():
    for again in (b"", cer(ids=(1, 2))):
        async with running() as setup:
            old, new = await setup.open(), await setup.connect()
            await new.send(cer())
            assert (await old.read()).command == 280
            await new.send(cer(), *[again] * bool(again), ecr(LISTED))
            await old.close()
            wanted = [(257, 2001), *[(257, 5012)] * bool(again), (324, 2001)]
            assert [(answer.command, answer.result) for answer in [await new.read() for _ in wanted]] == wanted
            assert setup.counts.dropped == {"cer_repeated": 1}
            await new.close()


@row(42, "one too many: the old one lives")
async def _():
    async with running() as setup:
        old, new = await setup.open(), await setup.connect()
        await new.send(cer())
        probe = await old.read()
        assert (probe.is_request, probe.command) == (True, 280)
        await old.answer(probe)
        (cea,) = await new.end()
        assert (cea.result, cea.error) == (5012, False)
        assert "connections" in setup.reports.settings()
        assert (await old.ask(ecr())).result == 2001


@row(42, "one too many: the old one is silent")
async def _():
    async with running(limits=Limits(duplicate_probe_s=0.2)) as setup:
        old, new = await setup.open(), await setup.connect()
        await new.send(cer(), ecr(LISTED))  # the question waits for the CEA
        assert (await new.read()).result == 2001
        assert (await new.read()).number(1445, TGPP) == 1
        assert [probe.command for probe in await old.end()] == [280]
        new.writer.close()


@row(42, "one too many: the peer has restarted")
async def _():
    async with running() as setup:
        old, new = await setup.open(), await setup.connect()
        assert (await new.ask(cer(state_id=u32(278, 101)))).result == 2001
        assert await old.end() == []


@row(42, "as many as are allowed, and those of other hosts")
async def _():
    async with running(peers=(replace(PEER, connections=3),)) as setup:
        for host in (HOST, HOST, HOST, "mme2.localdomain"):
            await setup.open(cer(host))
        assert setup.node.connected() == {"mme": 4}


def listener_over():
    """Something else that a node, or a client of ours, connects to."""
    return Listener(scheme=OVER.scheme, tls=OVER.authority and OVER.authority.server(f"*.{REALM}"))


@asynccontextmanager
async def connecting(**changes):
    """A node that connects to us, and what it connects to."""
    async with listener_over() as listener:
        changes = {
            "host": HOST,
            "connect": f"{OVER.scheme}://127.0.0.1:{listener.port}",
            "reconnect_after_s": 0.1,
        } | changes
        peer = replace(PEER, **changes)
        async with running(peers=(peer,)) as setup:
            yield setup, listener
            setup.connections += listener.made


@row(42, "election: we win, the node of the higher name")
async def _():
    async with connecting(host="dra.localdomain") as (setup, listener):
        ours = await listener.accept()
        await ours.read()  # its CER stays without an answer
        theirs = await setup.connect()
        assert (await theirs.ask(cer("dra.localdomain"))).result == 2001  # dra < eir: the node's own attempt goes
        assert await ours.end() == []
        assert (await theirs.ask(ecr())).result == 2001


@row(42, "election: we lose")
async def _():
    for succeeds in (True, False):
        async with connecting() as (setup, listener):
            ours = await listener.accept()
            request = await ours.read()
            theirs = await setup.connect()
            await theirs.send(cer())  # eir < mme: it waits for the CEA on the other connection
            await until(lambda setup=setup: setup.counts_of("wait_admission") == 1)
            if succeeds:
                await ours.answer(request, extra=VSAI)
                (cea,) = await theirs.end()
                assert (cea.result, cea.error) == (4003, False)
                assert (await ours.ask(ecr())).result == 2001
            else:
                await ours.answer(request, code=4003)
                assert (await theirs.read()).result == 2001
                assert (await theirs.ask(ecr())).result == 2001


@row(47, "we connect, then the peer does: our connection yields, and answers what it was asked")
async def _():
    async with connecting() as (setup, listener):
        ours = await listener.accept()
        await ours.answer(await ours.read(), extra=VSAI)
        await until(lambda: setup.node.connected() == {"mme": 1})
        theirs = await setup.open()
        left = await ours.read()
        assert (left.command, left.is_request, left.number(273)) == (282, True, 0)
        assert (await ours.ask(ecr(LISTED))).number(1445, TGPP) == 1
        await ours.answer(left)
        assert await ours.end() == []
        assert (await theirs.ask(ecr(LISTED))).number(1445, TGPP) == 1
        assert len(listener.made) == 1


@row(47, "a peer that may refuse our CER is left to come by itself first")
async def _():
    async with listener_over() as left_alone, connecting(host="other.localdomain") as (setup, listener):
        shy = replace(
            PEER,
            host=HOST,
            connect=f"{OVER.scheme}://127.0.0.1:{left_alone.port}",
            reconnect_after_s=0.1,
            lenient=frozenset({"applications"}),
        )
        setup.node.reconfigure([shy, *setup.node.peers])
        for attempt in range(3):  # another one is connected to, again and again
            connection = await listener.accept()
            await connection.read()
            if attempt == 2:
                setup.node.reconfigure([shy])  # no fourth attempt
            await connection.close()
        assert left_alone.made == []
        await setup.open(cer(app=b""))


@row("47a", "a peer that is sent away and may come back gets REBOOTING, whichever side connects", ["tcp"])
async def _():
    for connects in (False, True):
        for leaves in ("disabled", "removed", "drained"):
            async with connecting() as (setup, listener):
                if connects:
                    connection = await listener.accept()
                    await connection.answer(await connection.read(), extra=VSAI)
                    await until(lambda setup=setup: setup.node.connected() == {"mme": 1})
                else:
                    setup.node.reconfigure([PEER])
                    connection = await setup.open()
                if leaves == "disabled":
                    setup.node.disable("mme")
                elif leaves == "removed":
                    setup.node.reconfigure([])
                else:
                    draining = asyncio.create_task(setup.node.drain(2))
                while (request := await connection.read()).command == 257:
                    pass
                assert (request.command, request.number(273)) == (282, 0)
                await connection.answer(request)
                assert await connection.end() == []
                if leaves == "drained":
                    await draining


@row(43, "a DWR before the CEA")
async def _():
    async with running() as setup:
        connection = await setup.connect()
        await connection.send(dwr())
        assert await connection.end() == []
    async with running(limits=Limits(close_after_dpa_s=0.2)) as setup:
        connection = await setup.open()
        for octets, command in ((dwr("other.localdomain"), 280), (dpr(host="other.localdomain"), 282)):
            answer = await connection.ask(octets)
            assert (answer.command, answer.result) == (command, 2001)
        assert setup.counts.errors == {"other_origin_host": 2}
        assert await connection.end() == []


@row(44, "requests and DWRs are answered in every state")
async def _():
    counts = Counts()
    context = NodeContext(
        identity=IDENTITY, limits=Limits(), application=s13_application(service()), counts=counts,
        report=Reports(), jitter=lambda: 0.0,
    )  # fmt: skip
    for failed, waits, wanted in (
        (False, 0, Watch.OKAY), (False, 1, Watch.OKAY), (False, 2, Watch.SUSPECT), (True, 0, Watch.REOPEN), (True, 1, Watch.REOPEN),
    ):  # fmt: skip
        peer = Peer(context, lambda _: PEER, addresses=("127.0.0.1",), now=0.0, first_id=1)
        peer.receive(cer(), 0.0)
        peer.admit(0.0, failed_before=failed)
        peer.data_to_send()
        now = 0.0
        for _ in range(waits):
            now += 30
            assert peer.deadline() == now
            peer.timer(now)
        peer.data_to_send()
        assert peer.watchdog.status is wanted
        peer.receive(ecr(LISTED) + dwr(), now)
        out = peer.data_to_send()
        assert out.count(struct.pack(">II", 268, 0x40 << 24 | 12) + struct.pack(">I", 2001)) == 2


@row(44, "SUSPECT, DOWN and REOPEN as a peer sees them", ["tcp"], run=counted)
async def _():
    async with running(timing={"jitter": lambda: 0.0}) as setup:
        clock = Clock()

        def watchdog():
            return [row.watchdog for row in setup.node.status()]

        silent = await setup.open()
        clock.forward(PEER.watchdog_s)
        assert (await silent.read()).command == 280
        clock.forward(PEER.watchdog_s)
        await until(lambda: watchdog() == ["suspect"])
        assert (await silent.ask(ecr(LISTED))).number(1445, TGPP) == 1
        assert watchdog() == ["okay"]  # any message is a sign of life
        clock.forward(PEER.watchdog_s)
        await until(lambda: watchdog() == ["suspect"])
        assert (await silent.ask(dwr())).result == 2001
        clock.forward(PEER.watchdog_s)
        await until(lambda: watchdog() == ["suspect"])
        clock.forward(PEER.watchdog_s)
        assert await silent.end() == []
        assert setup.counts.errors == {"watchdog": 1}
        back = await setup.open()
        for answered in range(3):
            if answered:  # the first one comes at once
                clock.forward(PEER.watchdog_s)
            asked = await back.read()
            assert (asked.command, asked.is_request, watchdog()) == (280, True, ["reopen"])
            assert (await back.ask(ecr(LISTED))).number(1445, TGPP) == 1
            assert (await back.ask(dwr())).result == 2001
            assert watchdog() == ["reopen"]
            await back.answer(asked)
            await until(lambda answered=answered: by_direction(setup.counts, "in")["answer"] == answered + 1)
            assert watchdog() == ["okay" if answered == 2 else "reopen"]


@row(44, "a silent peer is asked by DWR, then closed")
async def _():
    report = Reports()
    context = NodeContext(
        identity=IDENTITY, limits=Limits(), application=s13_application(service()), counts=Counts(),
        report=report, jitter=lambda: 0.0,
    )  # fmt: skip
    peer = Peer(context, lambda _: PEER, addresses=("127.0.0.1",), now=0.0, first_id=1)
    peer.receive(cer(), 0.0)
    peer.admit(0.0)
    peer.data_to_send()
    for now, sent, state in ((30.0, 280, State.OPEN), (60.0, None, State.OPEN), (90.0, None, State.CLOSED)):
        peer.timer(now)
        out = peer.data_to_send()
        assert (int.from_bytes(out[5:8]) if out else None, peer.state) == (sent, state)


@row(45, "DPR with requests in flight", run=counted)
async def _():
    for cause in (0, 1, 2, 9, None):
        async with running(limits=Limits(close_after_dpa_s=30)) as setup:
            clock = Clock()
            connection = await setup.open()
            await connection.send(ecr(LISTED), ecr(UNLISTED), dpr(cause), ecr(LISTED))
            answers = [await connection.read() for _ in range(4)]
            assert [answer.command for answer in answers] == [324, 324, 282, 324]
            assert {answer.result for answer in answers} == {2001}
            clock.forward(15)  # we leave the closing to the peer for a while
            assert (await connection.ask(ecr(LISTED))).number(1445, TGPP) == 1
            clock.forward(15)
            assert await connection.end() == []


@row(46, "drain", run=counted)
async def _():
    async with running() as setup:
        clock = Clock()
        polite, mute = await setup.open(), await setup.open(cer("mme2.localdomain"))
        idle = await setup.connect()
        draining = asyncio.create_task(setup.node.drain(30))
        request = await polite.read()
        assert (request.command, request.number(273)) == (282, 0)
        assert (await polite.ask(ecr(LISTED))).number(1445, TGPP) == 1  # answered until the close
        await polite.answer(request)
        assert await polite.end() == []
        clock.forward(30)
        assert [message.command for message in await mute.end()] == [282]
        assert await idle.end() == []
        async with asyncio.timeout(PATIENCE_S):
            await draining
        with pytest.raises(ConnectionRefusedError):
            await setup.connect()


@row(47, "we connect: a good CEA, requests both ways of arrival, and the attempt after")
async def _():
    async with connecting() as (setup, listener):
        for _ in range(3):
            connection = await listener.accept()
            request = await connection.read()
            assert (request.command, request.is_request, request.data(264)) == (257, True, EIR.encode())
            check_cea(request)
            await connection.answer(request, extra=VSAI)
            assert (await connection.ask(ecr(LISTED))).number(1445, TGPP) == 1
            if len(listener.made) < 3:
                await connection.close()
        assert setup.counts.peers_refused == {}


@row(47, "we connect: a CEA from another Origin-Host, or that says no")
async def _():
    for kwargs, reason in (({"host": "other.localdomain"}, "cea_origin_host"), ({"code": 3010}, "cea_result")):
        async with connecting(reconnect_after_s=60) as (setup, listener):
            connection = await listener.accept()
            await connection.answer(await connection.read(), extra=VSAI, **kwargs)
            assert await connection.end() == []
            assert setup.counts.peers_refused == {reason: 1}


@row(47, "BUSY and DO_NOT_WANT: no new attempt before reconnect_after")
async def _():
    for cause in (1, 2):
        async with connecting(reconnect_after_s=0.5) as (_, listener):
            connection = await listener.accept()
            await connection.answer(await connection.read(), extra=VSAI)
            left = time.monotonic()
            assert (await connection.ask(dpr(cause))).result == 2001
            await connection.close()
            connection = await listener.accept()
            assert time.monotonic() - left > 0.4
            await connection.answer(await connection.read(), extra=VSAI)
            assert (await connection.ask(dwr())).result == 2001


@row(48, "a peer that flaps")
async def _():
    async with running() as setup:
        await (
            await setup.open(cer("first.localdomain"))
        ).close()  # after that one the loop has all files of its own, too
        before = open_files()
        for turn in range(100):
            connection = await setup.open(cer(f"mme{turn % 7}.localdomain", state_id=u32(278, turn + 1)))
            await connection.ask(ecr())
            if turn % 2:
                connection.writer.transport.abort()
            else:
                await connection.close()
        await until(lambda: setup.node.connected() == {"mme": 0} and open_files() <= before)
        assert setup.counts.answers["mme", "2001"] == 201


@row(48, "RST in mid-answer")
async def _():
    async with running(exact=False) as setup:
        for turn in range(20):
            connection = await setup.open(cer(state_id=u32(278, turn + 1)))
            linger = struct.pack("ii", 1, 0)
            connection.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            await connection.send(
                *[ecr()] * (200 if OVER.scheme == "sctp" else 2000)
            )  # a system call for each answer, there
            connection.writer.transport.abort()
        await until(lambda: setup.node.connected() == {"mme": 0})
        incoming, outgoing = by_direction(setup.counts, "in"), by_direction(setup.counts, "out")
        assert incoming["request"] == outgoing["answer"] > 20


@row(49, "a peer that never reads", ["tcp", "sctp"])
async def _():
    limits = Limits(stalled_write_s=0.3, write_buffer_bytes=16384)
    async with running(limits=limits, exact=False) as setup:
        raw = sctp_wire.sctp_socket() if OVER.scheme == "sctp" else socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(raw, (setup.host, setup.port))
        await loop.sock_sendall(raw, cer())
        good = await setup.open(cer("mme2.localdomain"))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        burst = ecr() * 100
        with pytest.raises(ConnectionError):  # noqa: PT012 - how often it may ask before it is dropped is the kernel's matter
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    await loop.sock_sendall(raw, burst)
        assert setup.counts.errors["stalled_write"] == 1
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000
        assert (await good.ask(ecr())).result == 2001
        raw.close()


@row(50, "what our probe is told is reported, not followed")
async def _():
    two = u32(268, 2001) + avp(297, u32(266, TGPP) + u32(298, 5422))
    for flags, avps, codes, experimental in (
        (0x20, u32(268, 3006) + avp(292, "aaa://elsewhere"), [3006], []), (0x20, u32(268, 3002), [3002], []),
        (0, two, [2001], [(TGPP, 5422)]), (0, u32(268, 2001) * 2, [2001, 2001], []),
    ):  # fmt: skip
        async with listener_over() as listener:
            names = {"origin_host": HOST, "origin_realm": REALM}
            tls = OVER.context() if OVER.scheme == "tls" else None
            asking = asyncio.create_task(
                connect(listener.host, listener.port, S13, **names, scheme=OVER.scheme, tls=tls)
            )
            connection = await listener.accept()
            await connection.answer(await connection.read(), extra=VSAI, host=EIR)
            client = await asking
            answering = asyncio.create_task(client.request(324, b""))
            asked = await connection.read()
            await connection.send(message(324, avps, flags, ids=(asked.hop_by_hop, asked.end_to_end)))
            answer = await answering
            assert (answer.result_codes, answer.experimental_results) == (codes, experimental)
            assert answer.is_error is bool(flags)
            closing = asyncio.create_task(client.close())
            await connection.answer(await connection.read())
            await closing


def recording(label="mme", access=None):
    """The application, and the record of its checks."""
    kept, asked = Kept(), checker()
    asked.sightings, asked.accesses = kept, {label: access} if access else {}
    return S13Service(asked).answer, kept


@row(59, "a 3GPP AAA server in its own realm, without RAT information", ["tcp"])
async def _():
    host, realm = "aaa1.aaa.test", "aaa.test"
    application, kept = recording("aaa", "wlan")
    async with running(application, peers=(replace(PEER, label="aaa", realm=realm, access="wlan"),)) as setup:
        connection = await setup.open(cer(host, realm))
        for imei, status in ((LISTED, 1), (UNLISTED, 0)):
            request = ecr(imei, host=avp(264, host), realm=avp(296, realm), extra=u32(258, APP), drop=("vsai",))
            answer = await connection.ask(request)
            check_answer(request, answer)
            assert (answer.result, answer.number(1445, TGPP)) == (2001, status)
    assert kept.accesses == {"wlan"}
    assert sorted((peer, sent_by, device) for _, _, peer, _, sent_by, _, device, *_ in kept.rows) == [
        ("aaa", host, UNLISTED),
        ("aaa", host, LISTED),
    ]


@row(60, "the number is recorded, the cell is not", ["tcp"])
async def _():
    application, kept = recording()
    async with running(application) as setup:
        connection = await setup.open()
        for flags in (0x40, 0):
            extra = avp(701, NUMBER_TBCD, TGPP, flags) + avp(1602, CELL, TGPP, flags)
            with_both, without = await connection.ask(ecr(extra=extra)), await connection.ask(ecr())
            assert with_both.octets == without.octets
    assert kept.accesses == {None}
    assert sorted((msisdn, count) for (*_, msisdn), count in kept.rows.items()) == [("", 2), (NUMBER, 2)]
    assert CELL.decode() not in str(kept.rows)


@row(51, "our CEA")
async def _():
    values = set()
    async with running(identity=replace(IDENTITY, firmware_revision=12, vendor_id=5)) as setup:
        for host in ("a.localdomain", "b.localdomain"):
            connection = await setup.connect()
            octets = cer(host)
            cea = await connection.ask(octets)
            check_answer(octets, cea)
            check_cea(cea)
            values.add(cea.number(278))
            assert (cea.number(266), cea.number(267)) == (5, 12)
        assert values == {77}


def check_cea(cea):
    assert cea.data(257) == b"\0\1" + bytes([127, 0, 0, 1])
    assert (cea.data(269), cea.number(265), cea.number(278)) == (b"eir", TGPP, 77)
    assert cea.number(266) is not None
    assert [found.raw for found in walk(cea.data(260))] == [u32(266, TGPP), u32(258, APP)]
    assert not cea.every(299)


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


def test_every_row_is_here():
    rows = {str(case.row) for case in CASES} | {case.id.partition("-")[0] for case in ROWS}
    assert rows >= {*map(str, range(1, 52)), "34a", "34b", "47a", "59", "60"}

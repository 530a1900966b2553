"""The probe: what it asks, what it makes of any answer, and that it follows none (conformance row 50). Real sockets."""

import asyncio
import time
from contextlib import asynccontextmanager

import pytest
import trustme
from simulated import wire
from simulated.node import LISTED, UNLISTED
from simulated.tcp_server import accepting
from simulated.wire import APP, EIR, REALM, TGPP, VSAI, answer_to, avp, u32, walk

from eir.errors import EirError, UsageError
from eir.interfaces.s13 import INTERFACE

STATE = u32(277, 1)
UNKNOWN_DEVICE = avp(297, u32(266, TGPP) + u32(298, 5422))


def status(value):
    return u32(1445, value, TGPP)


class Fake:
    """An EIR that does what the test says: `respond` makes the bytes that answer an ECR; None: silence, b"": it hangs up."""

    def __init__(self, respond, cea=None):
        self._respond = respond
        self._cea = cea
        self.seen = []
        self.connections = 0

    async def __call__(self, reader, writer):
        self.connections += 1
        try:
            while True:
                head = await reader.readexactly(4)
                message = wire.Message(head + await reader.readexactly(int.from_bytes(head[1:]) - 4))
                self.seen.append(message)
                if not message.is_request:  # the DPA: who sent the DPR closes (RFC 6733 5.4)
                    return
                answer = self._answer(message)
                if answer == b"":
                    return
                writer.write(answer or b"")
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def _answer(self, message):
        if message.command == 257:
            return self._cea(message) if self._cea else answer_to(message, extra=VSAI, host=EIR, realm=REALM)
        if message.command != 324:
            return answer_to(message, host=EIR, realm=REALM)
        return self._respond(message)

    def asked(self):
        return [message for message in self.seen if message.command == 324]


def probe_of(address, timeout_s=5.0, **more):
    names = {"origin_host": wire.HOST, "origin_realm": REALM} | more
    query = "&".join(f"{name}={value}" for name, value in names.items())
    return INTERFACE.probe_of("s13://{}:{}?{}".format(*address, query), timeout_s)


@asynccontextmanager
async def fake(respond, cea=None, timeout_s=0.3, **more):
    made = Fake(respond, cea)
    async with accepting(made) as address:
        made.probe = probe_of(address, timeout_s, **more)
        yield made


def eca(*avps, flags=0x40):
    """Answers an ECR by these AVPs after Session-Id."""

    def respond(message):
        session = next(found.raw for found in message.avps if found.code == 263)
        origin = avp(264, EIR) + avp(296, REALM)
        return wire.message(
            324, session + b"".join(avps) + origin, flags, APP, (message.hop_by_hop, message.end_to_end)
        )

    return respond


OK = u32(268, 2001)
ANSWERS = [
    # what comes, status, result, experimental result, what is said of it
    ("white", eca(OK, STATE, status(0)), "whitelisted", 2001, None, None),
    ("black", eca(OK, STATE, status(1)), "blacklisted", 2001, None, None),
    ("grey", eca(OK, STATE, status(2)), "greylisted", 2001, None, None),
    ("unknown", eca(UNKNOWN_DEVICE, STATE), "unknown", None, 5422, None),
    ("no Auth-Session-State", eca(OK, status(0)), "whitelisted", 2001, None, None),
    ("an AVP more", eca(OK, STATE, status(0), avp(4711, b"x", 4712)), "whitelisted", 2001, None, None),
    ("too busy", eca(u32(268, 3004), flags=0x60), None, 3004, None, None),
    ("5012", eca(u32(268, 5012), STATE), None, 5012, None, None),
    ("another vendor's 5422", eca(avp(297, u32(266, 1) + u32(298, 5422)), STATE), None, None, 5422, None),
    ("5422 as Result-Code", eca(u32(268, 5422), STATE), None, 5422, None, None),
    ("redirected", eca(u32(268, 3006), avp(292, "aaa://127.0.0.1:9"), flags=0x60), None, 3006, None, "redirected to aaa://127.0.0.1:9; not followed"),
    ("E beside 2001", eca(OK, STATE, status(1), flags=0x60), None, 2001, None, "the E bit is set beside 2001"),
    ("two results", eca(OK, UNKNOWN_DEVICE, STATE, status(0)), None, 2001, 5422, "2 results in one answer: 2001, 10415:5422"),
    ("two Result-Codes", eca(OK, u32(268, 5012), STATE, status(0)), None, 2001, None, "2 results in one answer: 2001, 5012"),
    ("no result", eca(STATE, status(0)), None, None, None, "no result in the answer"),
    ("no status", eca(OK, STATE), None, 2001, None, "no Equipment-Status beside 2001"),
    ("two statuses", eca(OK, STATE, status(0), status(1)), None, 2001, None, "2 Equipment-Statuses beside 2001"),
    ("status 3", eca(OK, STATE, status(3)), None, 2001, None, "Equipment-Status 00000003 is not one of 0, 1 and 2 (TS 29.272 7.3.51)"),
    ("an empty status", eca(OK, STATE, avp(1445, b"", TGPP)), None, 2001, None, "Equipment-Status of no bytes is not one of 0, 1 and 2 (TS 29.272 7.3.51)"),
    ("a long status", eca(OK, STATE, avp(1445, bytes(8), TGPP)), None, 2001, None, f"Equipment-Status {'0' * 16} is not one of 0, 1 and 2 (TS 29.272 7.3.51)"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("respond", "found", "result", "experimental", "fault"),
    [case[1:] for case in ANSWERS],
    ids=[case[0] for case in ANSWERS],
)
async def test_an_answer_is_reported_as_it_came(respond, found, result, experimental, fault):
    async with fake(respond) as eir:
        began = time.monotonic()
        (finding,) = await eir.probe.ask([LISTED])
        took_ms = (time.monotonic() - began) * 1000
    assert (finding.status, finding.result_code, finding.experimental_result_code, finding.fault) == (
        found,
        result,
        experimental,
        fault,
    )
    assert 0 < finding.round_trip_ms < took_ms
    assert len(eir.asked()) == 1  # nothing is followed, nothing repeated
    assert eir.connections == 1
    assert [message.command for message in eir.seen] == [257, 324, 282]


async def test_an_ecr_is_what_an_mme_sends():
    async with fake(eca(OK, STATE, status(0))) as eir:
        await eir.probe.ask([LISTED, "x"], imsi="001010123456789", software_version="34")
        await eir.probe.ask([UNLISTED])
    first, second, third = eir.asked()
    assert (first.flags, first.app) == (0xC0, APP)
    assert first.avps[0].code == 263
    assert first.data(263).startswith(f"{wire.HOST};".encode())
    assert first.data(263) != second.data(263)
    assert first.hop_by_hop != second.hop_by_hop
    assert first.end_to_end != second.end_to_end
    assert {found.code: found.data for found in walk(first.data(260))} == {266: TGPP.to_bytes(4), 258: APP.to_bytes(4)}
    assert [first.data(code) for code in (277, 264, 296, 283, 1)] == [
        b"\0\0\0\1", wire.HOST.encode(), REALM.encode(), REALM.encode(), b"001010123456789",
    ]  # fmt: skip
    assert [(found.code, found.vendor, found.data) for found in walk(first.data(1401, TGPP))] == [
        (1402, TGPP, LISTED.encode()), (1403, TGPP, b"34"),
    ]  # fmt: skip
    assert walk(second.data(1401, TGPP))[0].data == b"x"
    async with fake(eca(OK, STATE, status(0))) as eir:
        await eir.probe.ask(["A0000000000001"])
    (terminal,) = [walk(message.data(1401, TGPP)) for message in eir.asked()]
    assert [(found.code, found.data) for found in terminal] == [(1471, b"A0000000000001")]
    assert third.data(1) is None
    assert [found.code for found in walk(third.data(1401, TGPP))] == [1402]


async def test_silence_is_reported_and_the_next_is_asked_all_the_same():
    quiet = {"first": True}

    def respond(message):
        if quiet.pop("first", False):
            return None
        return eca(OK, STATE, status(0))(message)

    async with fake(respond) as eir:
        silent, answered = await eir.probe.ask([LISTED, UNLISTED])
    assert (silent.status, silent.result_code, silent.round_trip_ms, silent.fault) == (
        None,
        None,
        None,
        "no answer within 0.3 s",
    )
    assert answered.status == "whitelisted"


async def test_a_late_answer_is_not_taken_for_the_next():
    held = []

    def respond(message):
        held.append(message)
        if len(held) == 1:
            return None
        return eca(OK, STATE, status(1))(held[0]) + eca(OK, STATE, status(0))(message)

    async with fake(respond) as eir:
        _, answered = await eir.probe.ask([LISTED, UNLISTED])
    assert answered.status == "whitelisted"


async def test_an_eir_that_hangs_up_leaves_what_was_answered():
    answers = iter([eca(OK, STATE, status(1)), lambda _: b""])

    def respond(message):
        return next(answers)(message)

    async with fake(respond) as eir:
        first, second, third = await eir.probe.ask([LISTED, UNLISTED, UNLISTED])
    assert first.status == "blacklisted"
    assert second.round_trip_ms is third.round_trip_ms is None
    assert second.fault.startswith("no answer: the connection was closed")
    assert second.fault.endswith("; not asked about the 1 after it")
    assert (third.imei, third.fault) == (UNLISTED, None)
    assert len(eir.asked()) == 2


@pytest.mark.parametrize(
    ("respond", "error"),
    [
        (eca(u32(268, 3004), flags=0x60), "3004 DIAMETER_TOO_BUSY"),
        (eca(u32(268, 5004), avp(281, "no IMEI"), STATE), "5004 DIAMETER_INVALID_AVP_VALUE: no IMEI"),
        (eca(u32(268, 5999), STATE), "5999"),
        (eca(avp(297, u32(266, 1) + u32(298, 5422)), STATE), "5422 of vendor 1"),
        (eca(OK, STATE, status(0)), None),
        (eca(OK, STATE), None),
    ],
)  # fmt: skip
async def test_an_error_is_named(respond, error):
    async with fake(respond) as eir:
        (finding,) = await eir.probe.ask([LISTED])
    assert finding.error == error
    assert "error" not in finding.as_json()


@pytest.mark.parametrize(
    ("cea", "says"),
    [
        (
            lambda m: answer_to(m, 3010, flags=0x20, host=EIR),
            "3010 DIAMETER_UNKNOWN_PEER: .*origin_realm.*under its `peers`",
        ),
        (lambda m: answer_to(m, 5010, host=EIR), "5010 DIAMETER_NO_COMMON_APPLICATION$"),
        (lambda _: b"", r"peer_closed \(no CEA arrived"),
        (lambda _: None, "did not answer within 0.3 s"),
        (lambda _: b"\0" * 40, "does not speak Diameter"),
    ],
    ids=["3010", "5010", "hangs up", "silence", "no Diameter"],
)
async def test_a_connection_that_is_not_taken_is_an_error_with_its_reason(cea, says):
    async with fake(None, cea) as eir:
        with pytest.raises(EirError, match=says):
            await eir.probe.ask([LISTED])
    assert not eir.asked()


async def test_many_questions_are_summed_up():
    values = iter([0, 1, 1, 0] * 2)

    def respond(message):
        if message.data(1401, TGPP) and walk(message.data(1401, TGPP))[0].data == b"x":
            return None
        return eca(OK, STATE, status(next(values)))(message)

    async with fake(respond) as eir:
        found = await eir.probe.ask_many([LISTED, "x"], count=7, rate=None)
        assert [walk(message.data(1401, TGPP))[0].data for message in eir.asked()] == [LISTED.encode(), b"x"] * 3 + [
            LISTED.encode()
        ]
    assert (found.asked, found.answered, found.answers) == (7, 4, {"none": 3, "whitelisted": 2, "blacklisted": 2})
    assert found.fault == "no answer within 0.3 s"
    assert (
        0
        < found.round_trip_ms["min"]
        <= found.round_trip_ms["median"]
        <= found.round_trip_ms["p99"]
        <= found.round_trip_ms["max"]
    )
    assert found.seconds > 0.9
    assert found.as_text().splitlines()[1].split() == ["3", "none"]


async def test_a_rate_is_kept_whether_answers_come_or_not():
    async with fake(lambda _: None, timeout_s=1.0) as eir:
        found = await eir.probe.ask_many([LISTED], count=20, rate=100)
    assert (found.asked, found.answered, found.round_trip_ms) == (20, 0, {})
    assert 19 / 100 <= found.seconds - 1 < 15, "all were asked before the first was given up"


async def test_many_questions_end_with_the_connection():
    answered = iter([True, True])

    async with fake(lambda message: eca(OK, STATE, status(0))(message) if next(answered, False) else b"") as eir:
        found = await eir.probe.ask_many([LISTED], count=10, rate=None)
    assert (found.asked, found.answered) == (3, 2)
    assert "7 were not asked about" in found.fault


async def test_the_realm_asked_is_the_eirs_unless_another_is_wanted():
    def cea(message):
        return answer_to(message, extra=VSAI, host=EIR, realm="its.own.realm")

    for more, realm in (({}, b"its.own.realm"), ({"destination_realm": "wanted.realm"}, b"wanted.realm")):
        async with fake(eca(OK, STATE, status(0)), cea, **more) as eir:
            await eir.probe.ask([LISTED])
        assert [message.data(283) for message in eir.asked()] == [realm]


async def test_against_a_node_of_ours(site):
    site.load([LISTED])
    node = site.start()
    findings = await probe_of(node.address).ask([LISTED, f"{LISTED}1", f"{LISTED}34", UNLISTED, "nonsense"])
    assert [finding.status for finding in findings] == ["blacklisted"] * 3 + ["whitelisted"] * 2
    assert node.status()["checks"] == 5


async def test_after_a_dpr_nothing_more_is_asked():
    def respond(message):
        return eca(OK, STATE, status(1))(message) + wire.dpr(host=EIR)

    for rate in (None, 1000):
        async with fake(respond) as eir:
            found = await eir.probe.ask_many([LISTED], count=10_000, rate=rate)
            after = [message.command for message in eir.seen]
        assert 324 not in after[after.index(282) :]
        assert found.asked == found.answered < 10_000
        assert "the connection was closed (disconnected by a DPR)" in found.fault
    async with fake(respond) as eir:
        answered, *others = await eir.probe.ask([LISTED, UNLISTED, LISTED])
        assert [message.command for message in eir.seen] == [257, 324, 282]
    assert (answered.status, [finding.round_trip_ms for finding in others]) == ("blacklisted", [None, None])
    assert "DPR" in others[0].fault


async def test_tls_goes_over_tcp_only(tmp_path):
    authority, files = trustme.CA(), {name: tmp_path / name for name in ("ca", "cert", "key")}
    issued = authority.issue_cert("mme.example")
    authority.cert_pem.write_to_path(files["ca"])
    issued.cert_chain_pems[0].write_to_path(files["cert"])
    issued.private_key_pem.write_to_path(files["key"])
    with pytest.raises(UsageError, match="DTLS over SCTP is not offered"):
        await probe_of(("127.0.0.1", 1), transport="sctp", **files).ask([LISTED])


async def test_a_host_behind_an_agent_is_asked_for():
    far = {"destination_realm": "far.example", "destination_host": "eir2.far.example"}
    async with fake(eca(OK, STATE, status(0)), **far) as eir:
        await eir.probe.ask([LISTED])
    ((host, realm),) = [(message.data(293), message.data(283)) for message in eir.asked()]
    assert (host, realm) == (b"eir2.far.example", b"far.example")

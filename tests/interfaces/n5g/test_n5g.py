"""N5g-eir's translator (eir/interfaces/n5g/): the standard's API description as tables; who asks; what each header does.

The tables are TS 29.511 6.1 and TS 29.500 5.2.7; every response is held to the schemas of TS 29.511 A.2 and TS 29.571.
"""

import asyncio
import json
import time
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from ipaddress import ip_address, ip_network
from types import SimpleNamespace

import pytest
from simulated.http2_wire import HELLO, frames, get, statuses
from simulated.lanes import Kept
from simulated.node import until_async
from simulated.patience import PATIENCE_S
from simulated.store_content import fill

from eir.checks.checker import Checker
from eir.checks.question import Question
from eir.checks.settings import PolicySettings, Rule, Status
from eir.device import device_key
from eir.interfaces.n5g import sbi
from eir.interfaces.n5g.link import N5gConnection
from eir.interfaces.n5g.service import N5gService
from eir.lists.images.index import Index
from eir.lists.table.columns import rows_of
from eir.wire.peers.link import Turns
from eir.wire.peers.settings import PeerSettings, Requester, realm_of, requester
from eir.wire.web.http2 import Http2Connection
from eir.wire.web.http2_limits import Http2Limits
from eir.wire.web.http2_message import Http2Request, Http2Response, Shapes

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
BLACK, GREY, WHITE, UNKNOWN = Status.BLACKLISTED, Status.GREYLISTED, Status.WHITELISTED, Status.UNKNOWN
LISTED, FREE = "00101001000001", "00101003000003"
MAC, EUI = "mac-00-11-22-33-AA-bb", "eui-00-11-22-33-44-55-66-77"
RESOURCE = b"/n5g-eir-eic/v1/equipment-status"
AMF = Requester("amf", "amf1.5gc.mnc001.mcc001.3gppnetwork.org", "5gc.mnc001.mcc001.3gppnetwork.org")
RULES = (
    Rule(list="stolen", answer=BLACK),
    Rule(imsi=("26201",), answer=UNKNOWN),
    Rule(software_version=("77",), answer=GREY),
    Rule(origin_host=("amf7.example.org",), answer=GREY),
)


def service(now=time.time, listed=None, **policy):
    index = Index({"stolen": "devices"})
    fill(index, "stolen", rows_of([device_key(LISTED) if listed is None else listed]))
    checker = Checker(PolicySettings(**{"rules": RULES} | policy), index, now=NOW)
    made = N5gService(checker, now)
    made.checker = checker
    return made


def ask(query, *headers, method="GET", path=RESOURCE, asks=AMF, fault=None, of=None):
    """Status, document and headers of the response, held to the schemas."""
    whole = path + (b"?" + query if isinstance(query, bytes) else b"?" + query.encode() if query is not None else b"")
    reply = (of or service()).answer(Http2Request(method, whole, dict(headers), fault), asks)
    response, document = reply.response, json.loads(reply.response.body)
    found = dict(response.headers)
    if response.status == 200:
        assert found[b"content-type"] == b"application/json"
        assert document.keys() == {"status"}  # EirResponseData
        assert document["status"] in {"WHITELISTED", "BLACKLISTED", "GREYLISTED"}
        assert reply.result == "200"
    else:
        assert found[b"content-type"] == b"application/problem+json"
        held_to_problem_details(document, response.status)
        assert reply.result == str(response.status) + (f":{document['cause']}" if "cause" in document else "")
    return response.status, document, found


def held_to_problem_details(document, status):
    """TS 29.571 5.2.4.1, as far as it says what something is."""
    assert document.keys() <= {
        "type",
        "title",
        "status",
        "detail",
        "instance",
        "cause",
        "invalidParams",
        "supportedFeatures",
    }
    assert document["status"] == status
    assert all(isinstance(document.get(name, ""), str) for name in ("title", "detail", "cause"))
    for each in document.get("invalidParams", ()):
        assert each.keys() <= {"param", "reason"}
        assert each["param"].startswith("query ")
    assert document.get("invalidParams") != []  # minItems: 1


ANSWERED = [
    (f"pei=imei-{LISTED}9", "BLACKLISTED"), (f"pei=imei-{LISTED}0", "BLACKLISTED"), (f"pei=imeisv-{LISTED}01", "BLACKLISTED"),
    (f"pei=imeisv-{LISTED}77", "BLACKLISTED"), (f"pei=imei-{FREE}0", "WHITELISTED"), (f"pei=imeisv-{FREE}77", "GREYLISTED"),
    (f"pei={MAC}", "WHITELISTED"), (f"pei={MAC}-untrusted", "WHITELISTED"), (f"pei={EUI}", "WHITELISTED"),
    (f"pei=imei-{FREE}0&supi=imsi-001010000000001&gpsi=msisdn-4912345&supported-features=1F", "WHITELISTED"),
    (f"supported-features=&gpsi=extid-a@b.c&supi=nai-x@y&pei=imei-{LISTED}0", "BLACKLISTED"),
    (f"pei=imei-{FREE}0&supi=other-kind&gpsi=anything", "WHITELISTED"),
    (f"pei=imei%2D{LISTED}0", "BLACKLISTED"), (f"&&pei=imei-{LISTED}0&=&x&y=%FF&pei2=imei-1", "BLACKLISTED"),
    ("pei=imei-00101001000001", "BLACKLISTED"), ("pei=imeisv-001010010000010", "BLACKLISTED"), ("pei=something-else", "WHITELISTED"),
]  # fmt: skip
"""Query → status. Unknown parameters are ignored (TS 29.500 5.2.9); the last one is by `bad_identity`, since every text is a PEI."""

MALFORMED = [
    ("imei-123", "123"), ("imei-0010100100000AB", "0010100100000AB"), ("imeisv-00101001000001012", "00101001000001012"), ("imei-", ""), ("", ""), ("whatever", "whatever"),
    ("mac-00-11-22-33-44", None), ("mac-00-11-22-33-44-5G", None), ("eui-00-11-22-33-44-55-66", None), ("%FF%FE", "\ufffd\ufffd"),
    (f"imei-{FREE}0%0A", f"{FREE}0\n"), ("imei-" + "%D9%A1" * 15, "\N{ARABIC-INDIC DIGIT ONE}" * 15), ("imei-" + "1" * 100, "1" * 100),
]  # fmt: skip
"""PEI that is neither IMEI nor IMEISV, nor a valid MAC address or EUI-64 → the text that an ECR has in its AVP IMEI; None: the whole PEI."""

INCORRECT, OPTIONAL, MISSING = (
    "MANDATORY_QUERY_PARAM_INCORRECT",
    "OPTIONAL_QUERY_PARAM_INCORRECT",
    "MANDATORY_QUERY_PARAM_MISSING",
)
ERRORS = [
    (None, 400, MISSING, "pei"), ("", 400, MISSING, "pei"), ("PEI=imei-001010010000010", 400, MISSING, "pei"), ("supi=imsi-001010000000001", 400, MISSING, "pei"),
    (f"pei=imei-{FREE}0&pei=imei-{FREE}0", 400, INCORRECT, "pei"),
    (f"pei=imei-{FREE}0&supi=imsi-12", 400, OPTIONAL, "supi"), (f"pei=imei-{FREE}0&supi=imsi-00101000000000a", 400, OPTIONAL, "supi"),
    (f"pei=imei-{FREE}0&supi=%FF", 400, OPTIONAL, "supi"), (f"%67psi=%C3&pei=imei-{FREE}0", 400, OPTIONAL, "gpsi"),
    (f"pei=imei-{FREE}0&supi=", 400, OPTIONAL, "supi"), (f"pei=imei-{FREE}0&gpsi=msisdn-x", 400, OPTIONAL, "gpsi"),
    (f"pei=imei-{FREE}0&gpsi=extid-nobody", 400, OPTIONAL, "gpsi"), (f"pei=imei-{FREE}0&supported-features=xyz", 400, OPTIONAL, "supported-features"),
    (f"pei=imei-{FREE}0&supi=imsi-262011234567890", 404, "ERROR_EQUIPMENT_UNKNOWN", None),
]  # fmt: skip
"""Query → status, cause, the parameter that invalidParams names."""


@pytest.mark.parametrize(("query", "wanted"), ANSWERED)
def test_answers(query, wanted):
    assert ask(query)[:2] == (200, {"status": wanted})


@pytest.mark.parametrize(
    ("gpsi", "recorded"),
    [("msisdn-4917012345678", "4917012345678"), ("msisdn%2D49170", "49170"), ("extid-4917012345678@b.c", ""), ("4917012345678", "")],
)  # fmt: skip
def test_the_number_of_a_gpsi_is_recorded_and_changes_no_answer(gpsi, recorded):
    """Row 61 of the conformance table: in the usual form of a request, and in another one."""
    for device in (LISTED, FREE):
        for query in (f"pei=imei-{device}0&supi=imsi-001010000000001", f"&pei=imeisv-{device}01"):
            of = service()
            of.checker.sightings = kept = Kept()
            assert ask(f"{query}&gpsi={gpsi}", of=of)[:2] == ask(query, of=of)[:2]
            assert {msisdn for *_, msisdn in kept.rows} == {"", recorded}


@pytest.mark.parametrize(("query", "status", "cause", "param"), ERRORS)
def test_errors(query, status, cause, param):
    found, document, _ = ask(query)
    assert (found, document["cause"]) == (status, cause)
    assert [each["param"] for each in document.get("invalidParams", ())] == ([f"query {param}"] if param else [])


GOOD = f"pei=imei-{FREE}0"
OTHERS = [
    ({"path": b"/"}, 404, "RESOURCE_URI_STRUCTURE_NOT_FOUND"), ({"path": RESOURCE + b"/"}, 404, "RESOURCE_URI_STRUCTURE_NOT_FOUND"),
    ({"path": b"/n5g-eir-eic/v1/other"}, 404, "RESOURCE_URI_STRUCTURE_NOT_FOUND"), ({"path": b"/n5g-eir-eic"}, 404, "RESOURCE_URI_STRUCTURE_NOT_FOUND"),
    ({"path": b"/n5g-eir-eic/v2/equipment-status"}, 400, "INVALID_API"), ({"path": b"/nudm-sdm/v1/x"}, 400, "INVALID_API"),
    *(({"method": method}, 405, None) for method in ("POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")),
    ({"fault": "headers"}, 431, None), ({"fault": "body"}, 413, None),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "status", "cause"), OTHERS)
def test_what_is_asked_of_the_wrong_place_or_in_the_wrong_way(changes, status, cause):
    found, document, headers = ask(GOOD, **changes)
    assert (found, document.get("cause")) == (status, cause)
    assert headers.get(b"allow") == (b"GET" if status == 405 else None)  # RFC 9110 15.5.6


def test_a_uri_may_be_long_and_not_too_long():
    padding = "&x=" + "y" * (2048 - len(RESOURCE) - len(GOOD) - 4)
    assert ask(GOOD + padding)[0] == 200
    assert ask(GOOD + padding + "y")[0] == 414


@pytest.mark.parametrize(
    ("accept", "good"),
    [(b"application/json", True), (b"*/*", True), (b"application/*;q=0.5", True), (b"text/html, application/json;q=0.1", True), (b"", True),
     (b"application/problem+json, application/json", True), (b"text/html", False), (b"application/json;q=0, */*", False), (b"application/json;q=0", False),
     (b"image/*,*/*;q=0.8", True), (b"application/json;q=x", False),
     (b"application/json;q=0, application/*", False), (b"application/*, application/json;q=0", False), (b"application/*;q=0, */*", False),
     (b"application/*;q=0, application/json;q=0.1", True), (b"image/*, " * 40 + b"*/*", True), (b"image/*, " * 60 + b"*/*", False),
     (b"," * 10_000, False)],
)  # fmt: skip
def test_accept(accept, good):
    assert ask(GOOD, (b"accept", accept))[0] == (200 if good else 406)


@pytest.mark.parametrize(
    ("ago_ms", "most", "late"),
    [(500, b"1000", False), (1500, b"1000", True), (-500, b"0", False), (100_000, b"1000", False), (1500, b"x", False)],
)
def test_a_request_that_its_client_has_given_up(ago_ms, most, late):
    """TS 29.500 6.11.2; a clock that is a minute off is not believed."""
    sent = datetime(2019, 8, 4, 8, 49, 37, 845_000, tzinfo=UTC).timestamp()
    of = service(now=lambda: sent + ago_ms / 1000)
    headers = ((sbi.SENDER_TIMESTAMP, b"Sun, 04 Aug 2019 08:49:37.845 GMT"), (sbi.MAX_RSP_TIME, most))
    status, document, _ = ask(GOOD, *headers, of=of)
    assert (status, document.get("cause")) == ((504, "TIMED_OUT_REQUEST") if late else (200, None))


@pytest.mark.parametrize(
    "text",
    [
        b"", b"Sun, 04 Aug 2019 08:49:37 CET", b"Sun, 04 Foo 2019 08:49:37.1 GMT", b"Sun, 34 Aug 2019 08:49:37.1 GMT", b"x" * 50,
        b"Sun, 04 Aug 2019 08:49:inf GMT", b"Sun, 04 Aug 2019 08:49:1e999 GMT", b"Sun, 04 Aug 2019 08:49:nan GMT",
    ],
)  # fmt: skip
def test_no_time(text):
    assert sbi.moment(text) is None


def test_priorities_are_held_for_the_same_as_those_of_diameter():
    """TS 29.500 6.8.4: 24 unless it says; RFC 7944 9.1: 10."""
    said = [sbi.priority_of({sbi.MESSAGE_PRIORITY: b"%d" % priority}) for priority in range(32)]
    assert said == sorted(said)
    assert (said[0], said[24], said[31]) == (0, 10, 15)
    assert {sbi.priority_of({sbi.MESSAGE_PRIORITY: value}) for value in (b"", b"32", b"-1", b"x", b"240")} | {
        sbi.priority_of({})
    } == {10}


class TestPolicy:
    def test_other_identifiers_have_their_own_key_and_are_counted(self):
        for status in (BLACK, GREY):
            of = service(no_imei=status)
            assert ask(f"pei={MAC}", of=of)[1] == {"status": status.value.upper()}
            assert of.checker.checks() == {(status, "", "no_imei", "n5g"): 1}
            assert not of.checker.identity_errors
        assert ask(f"pei={EUI}", of=service(no_imei=UNKNOWN))[0] == 404

    @pytest.mark.parametrize(("pei", "imei"), MALFORMED)
    def test_a_malformed_pei_is_decided_as_a_malformed_imei_on_s13(self, pei, imei):
        """Row 72 of the conformance table."""
        imei = pei if imei is None else imei
        rules = (*RULES, Rule(identifier=("malformed",), imsi=("00101",), answer=UNKNOWN))
        of = service(bad_identity=GREY, rules=rules)
        assert ask(f"pei={pei}", of=of)[1] == {"status": "GREYLISTED"}
        assert of.checker.identity_errors == {("bad", "amf"): 1}
        assert ask(f"pei={pei}&supi=imsi-001010000000001", of=of)[1]["cause"] == "ERROR_EQUIPMENT_UNKNOWN"
        found, document, _ = ask(f"pei={pei}", of=service(bad_identity=None))
        assert (found, document["cause"], document["invalidParams"][0]["param"]) == (400, INCORRECT, "query pei")
        s13 = Question(imei=imei)
        if (key := s13.any_device()) is not None:
            assert ask(f"pei={pei}", of=service(bad_identity=GREY, listed=key))[1] == {"status": "BLACKLISTED"}
        assert of.checker.check(s13).rule == "bad_identity"

    def test_the_subscriber_decides(self):
        assert ask(f"pei=imeisv-{FREE}01&supi=imsi-262011234567890")[0] == 404
        assert ask(f"pei=imeisv-{FREE}01&supi=imsi-262021234567890")[0] == 200

    def test_who_asks_decides(self):
        assert ask(GOOD, asks=Requester("amf", "AMF7.example.org", "example.org"))[1] == {"status": "GREYLISTED"}

    def test_a_peer_may_be_answered_something_else(self):
        of = service()
        of.configure({"amf": {UNKNOWN: GREY, BLACK: WHITE}})
        assert ask(f"pei=imei-{LISTED}0", of=of)[1] == {"status": "WHITELISTED"}
        assert ask(f"{GOOD}&supi=imsi-262011234567890", of=of)[1] == {"status": "GREYLISTED"}
        assert ask(f"pei=imei-{LISTED}0", of=of, asks=Requester("other"))[1] == {"status": "BLACKLISTED"}

    def test_it_is_counted_by_its_protocol(self):
        of = service()
        ask(GOOD, of=of)
        ask(f"pei=imei-{LISTED}0", (b"accept", b"*/*"), of=of)
        assert of.checker.checks() == {(WHITE, "", "default", "n5g"): 1, (BLACK, "stolen", "1", "n5g"): 1}


class TestRequester:
    HERE, THERE = ip_address("10.0.0.1"), ip_address("192.0.2.1")
    MME = PeerSettings(label="mme", realm="epc.example.org", sources=(ip_network("10.0.0.0/8"),))
    AMF1 = PeerSettings(label="amf1", host="amf1.5gc.example.org")
    CORE = PeerSettings(label="core", realm="5gc.example.org")
    BY_NAME = PeerSettings(label="by-name", tls_names=("x.partner.example",))
    NEAR = PeerSettings(label="near", sources=(ip_network("10.0.0.0/8"),))

    def label(self, peers, names, source=HERE):
        found = requester(peers, names, source)
        return found and (found[1].label, found[1].host)

    def test_without_tls_the_address_alone_decides(self):
        assert self.label([self.MME, self.NEAR], None) == ("near", "")
        assert self.label([self.MME], None) == ("mme", "")
        assert self.label([self.MME, self.NEAR], None, self.THERE) is None

    def test_with_tls_the_certificate_does(self):
        peers = [self.MME, self.AMF1, self.CORE, self.BY_NAME]
        assert self.label(peers, ["amf1.5gc.example.org"]) == ("amf1", "amf1.5gc.example.org")
        assert self.label(peers, ["amf2.5gc.example.org"]) == ("core", "amf2.5gc.example.org")
        assert self.label(peers, ["x.partner.example", "y.example"]) == ("by-name", "x.partner.example")
        assert self.label(peers, ["amf.elsewhere.example"]) is None
        assert self.label(peers, []) is None
        assert self.label([self.NEAR], ["amf.elsewhere.example"]) == ("near", "amf.elsewhere.example")

    def test_realms(self):
        assert realm_of("amf1.region.amf.5gc.mnc001.mcc001.3gppnetwork.org") == "5gc.mnc001.mcc001.3gppnetwork.org"
        assert (realm_of("amf1.example.org"), realm_of("amf1")) == ("example.org", "")


class Owner:
    """Takes every connection, and answers everything with 404."""

    limits = SimpleNamespace(write_buffer_bytes=65_536, stalled_write_s=1)

    def __init__(self, loop):
        self.turns = Turns(loop)

    def accept(self, _link, _protocol):
        return Http2Connection(lambda _: Http2Response(404, (), b""), Http2Limits(), Shapes(), 0.0)

    def answered(self, *_):
        pass

    def lost(self, _link):
        pass


@asynccontextmanager
async def connection_behind_others():
    """Yield the client's two streams and the server's side of a connection whose turn has not come."""
    loop = asyncio.get_running_loop()
    owner, links = Owner(loop), []

    def made():
        links.append(N5gConnection(owner, loop))
        return links[-1]

    async with await loop.create_server(made, "127.0.0.1", 0) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(HELLO)
        await until_async(lambda: links and links[0].http.unread == 0)
        (link,) = links
        owner.turns.waiting[link] = None
        yield reader, writer, link
        writer.close()


async def test_a_request_before_the_end_of_the_stream_is_answered_in_its_turn():
    async with connection_behind_others() as (reader, writer, link):
        writer.write(get(1, "/"))
        writer.write_eof()
        await until_async(lambda: link._ended)
        link.owner.turns.waiting.clear()
        link.owner.turns.request(link)
        async with asyncio.timeout(PATIENCE_S):
            assert statuses(frames(await reader.read())[0]) == {1: 404}


async def test_of_a_connection_whose_turn_has_not_come_only_so_much_is_read():
    async with connection_behind_others() as (_, writer, link):
        writer.write(bytes(16 << 20))
        await until_async(lambda: not link.transport.is_reading())
        await asyncio.sleep(0.1)
        assert link.http.unread < 1 << 20
        link.abort()

"""A node that AMFs ask over HTTP/2, from outside: curl, nghttp2's clients, TLS, hostile clients beside good ones, limits, drain."""

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import ssl
import subprocess

import pytest
from amf import at
from simulated import http2_wire as wire
from simulated.certificates import VERSIONS, Authority
from simulated.hostile import Steady, at_rest, beside, memory_mb, settled
from simulated.http2_wire import ATTACKS, HELLO, RESOURCE, asking, bodies, frames, goaways, statuses
from simulated.luhn import check_digit
from simulated.node import LISTED, TRACKED, UNLISTED, Site, children, until, until_async
from simulated.patience import FACTOR, PATIENCE_S, PROGRAM_S
from simulated.wire import EIR, REALM, TGPP, ecr

from eir.node.observe.control import ask as control
from eir.wire.peers.settings import Limits

AMF = "amf1.5gc.mnc001.mcc001.3gppnetwork.org"
PEERS = [
    {"name": "mme", "realm": REALM, "from": ["127.0.0.0/8"]}, {"name": "amf", "host": AMF}, {"name": "near", "from": ["127.0.0.0/8"], "expected": False},
]  # fmt: skip
AMFS = [{"name": "mme", "host": "mme1.localdomain"}, {"name": "amf", "from": ["127.0.0.0/8"]}]
WORDS = {"BLACKLISTED": 1, "GREYLISTED": 2, "WHITELISTED": 0}


def curl(url, *options, status=0):
    """HTTP version, status and body, by curl."""
    done = subprocess.run(
        ["curl", "-s", "--max-time", "10", "-w", "\n%{http_version} %{http_code}", *options, url],
        capture_output=True,
        text=True,
        check=False,
    )
    assert status is None or done.returncode == status, done
    body, _, told = done.stdout.rpartition("\n")
    return (*told.split(), body)


class Client:
    """Raw frames over a real connection."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer
        self.found, self.rest = [], b""

    @classmethod
    async def to(cls, node, tls=None):
        host, _, port = at(node, "https" if tls else "http").partition("://")[2].rpartition(":")
        return cls(*await asyncio.open_connection(host, int(port), ssl=tls))

    def send(self, octets):
        self.writer.write(octets)
        return self

    async def until(self, condition, *, patience_s=PATIENCE_S):
        """Read until it holds; False if the connection ended first."""
        async with asyncio.timeout(patience_s):
            while not condition(self.found):
                try:
                    data = await self.reader.read(65536)
                except ConnectionError:
                    return False
                if not data:
                    return condition(self.found)
                found, self.rest = frames(self.rest + data)
                self.found += found
        return True

    async def ask(self, stream, imei):
        """The status that a device gets."""
        assert await self.send(asking(stream, imei)).until(lambda found: stream in bodies(found))
        return json.loads(bodies(self.found)[stream])["status"]


@pytest.fixture
async def to():
    """Makes clients, which are closed at the end: `await to(node)`."""
    made = []

    async def to(node, tls=None):
        made.append(await Client.to(node, tls))
        return made[-1]

    yield to
    for client in made:
        client.writer.transport.abort()
        with contextlib.suppress(OSError, ssl.SSLError):
            await client.writer.wait_closed()


@pytest.fixture(scope="module")
def shared(tmp_path_factory, publisher):
    """A node with every kind of listener, for tests that leave it as it is."""
    folder = tmp_path_factory.mktemp("n5g")
    with Site(folder / "site", publisher) as site:
        site.authority = Authority(folder / "tls")
        site.configure(
            peers=PEERS, n5g={"listen": ["http://127.0.0.1:0", "https://127.0.0.1:0"]}, tls=site.authority.write(EIR, "127.0.0.1"),
        )  # fmt: skip
        site.tune(Limits, partial_message_timeout_s=2, stalled_write_s=2, cer_timeout_s=2, close_after_dpa_s=2)
        site.load([LISTED])
        site.load([TRACKED], list_name="tracked")
        site.start(prefix=["env"])
        yield site


@pytest.fixture
def own(site):
    """A host of the test's own, over HTTP without TLS."""
    site.configure(peers=PEERS, n5g={"listen": "http://127.0.0.1:0"})
    site.load([LISTED])
    return site


def test_an_audit(shared):
    manifest = shared.release([LISTED, UNLISTED], serial=2)
    document = json.loads(shared.eir("audit", manifest, f"n5g{at(shared.node)[4:]}", "--all", "--json").stdout)
    assert (document["asked"], document["as_listed"], document["share"]) == (2, 1, 0.5)
    assert {(each["imei"][:14], each["got"]) for each in document["exceptions"]} == {(UNLISTED, "whitelisted")}


def test_curl(shared):
    url = at(shared.node) + RESOURCE
    prior = "--http2-prior-knowledge"
    for pei, wanted in (
        (f"imei-{LISTED}1", "BLACKLISTED"),
        (f"imeisv-{LISTED}42", "BLACKLISTED"),
        (f"imeisv-{TRACKED}00", "GREYLISTED"),
        (f"imei-{UNLISTED}0", "WHITELISTED"),
    ):
        assert curl(f"{url}?pei={pei}&supi=imsi-001010000000001", prior) == (
            "2",
            "200",
            json.dumps({"status": wanted}, separators=(",", ":")),
        )
    assert curl(url, prior)[1] == "400"
    assert curl(url, prior, "-X", "DELETE")[1] == "405"
    assert curl(f"{url}?pei=imei-{LISTED}1", prior, "-X", "GET", "--data", "x" * 10_000)[1] == "200"
    (shared.folder / "body").write_bytes(bytes(200_000))
    assert (
        curl(f"{url}?pei=imei-{LISTED}1", prior, "-X", "GET", "--data-binary", f"@{shared.folder / 'body'}")[1] == "413"
    )
    assert curl(f"{url}?pei=imei-{LISTED}1", prior, "-H", f"x: {'y' * 30_000}")[1] == "431"
    assert curl(f"{url}?pei=imei-{LISTED}1&x={'y' * 3000}", prior)[1] == "414"
    assert curl(f"{url}?pei=imei-{LISTED}1", "--http1.1")[1] == "505"


def test_nghttp_and_h2load(shared):
    url = f"{at(shared.node)}{RESOURCE}?pei=imei-{LISTED}1"
    done = subprocess.run(
        ["nghttp", "-v", "-m", "3", url], capture_output=True, text=True, timeout=PROGRAM_S, check=True
    )
    assert done.stdout.count('{"status":"BLACKLISTED"}') == 3
    done = subprocess.run(
        ["h2load", "-n", "4000", "-c", "4", "-m", "100", url],
        capture_output=True,
        text=True,
        timeout=PROGRAM_S,
        check=True,
    )
    assert "4000 succeeded, 0 failed, 0 errored, 0 timeout" in done.stdout


@pytest.mark.parametrize("version", [VERSIONS.TLSv1_2, VERSIONS.TLSv1_3])
async def test_mutual_tls(shared, version, to):
    context = shared.authority.peer(AMF, lowest=version, highest=version)
    context.set_alpn_protocols(["h2"])
    client = await to(shared.node, context)
    assert client.writer.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
    client.send(HELLO)
    assert await client.ask(1, f"{LISTED}1") == "BLACKLISTED"
    assert await client.ask(3, f"{UNLISTED}1") == "WHITELISTED"
    (row,) = [row for row in shared.json("peers") if row["label"] == "amf" and row["address"]]
    assert (row["host"], row["realm"], row["state"], row["protocol"], row["requests"]) == (
        AMF,
        "5gc.mnc001.mcc001.3gppnetwork.org",
        "open",
        "n5g",
        2,
    )
    assert shared.node.metrics()["eir_peer_up{peer=amf}"] == 1


async def test_who_has_no_certificate_or_one_of_nobody_here_is_refused(own, to):
    """On a node of its own, because lines of refusals are limited. The first line of each reason always comes."""
    authority, other = Authority(own.folder / "tls"), Authority(own.folder / "other")
    own.configure(n5g={"listen": "https://127.0.0.1:0"}, tls=authority.write(EIR, "127.0.0.1"))
    node = own.start()
    for context in (other.peer(AMF), authority.peer(), other.peer(AMF, trusts=authority)):
        context.set_alpn_protocols(["h2"])
        with contextlib.suppress(OSError):
            assert not await (await to(node, context)).send(HELLO).until(lambda found: found)
    old = authority.peer(AMF)
    old.set_alpn_protocols(["http/1.1"])
    with contextlib.suppress(ssl.SSLError, ConnectionError):
        assert not await (await to(node, old)).until(lambda found: found)
    await until_async(lambda: {line["reason"] for line in node.lines("peer_refused")} >= {"tls_handshake", "alpn"})
    first, *_ = node.lines("peer_refused", protocol="n5g", reason="tls_handshake")
    assert "check that it trusts this certificate" in first["detail"]


def test_it_is_seen_and_counted_as_its_own_protocol(shared):
    curl(f"{at(shared.node)}{RESOURCE}?pei=imei-{LISTED}1", "--http2-prior-knowledge")
    curl(f"{at(shared.node)}{RESOURCE}?pei=mac-00-11-22-33-44-55", "--http2-prior-knowledge")
    metrics = shared.node.metrics()
    assert metrics["eir_checks_total{list=stolen,protocol=n5g,rule=1,status=blacklisted}"] >= 1
    assert metrics["eir_checks_total{list=,protocol=n5g,rule=no_imei,status=whitelisted}"] >= 1
    assert metrics["eir_sbi_responses_total{peer=near,result=200}"] >= 2
    assert shared.node.get("/ready") == (200, "ready\n")


@pytest.mark.long
async def test_hostile_clients_are_sent_away_and_nobody_beside_them_notices(own, to):
    """Every attack at once, with a Diameter peer and an h2load client beside it that get right answers in time."""
    own.tune(Limits, partial_message_timeout_s=2, stalled_write_s=2, cer_timeout_s=4 * FACTOR)  # each begins in time
    node, steady = own.start(prefix=["env"]), Steady()
    before, memory = at_rest(node), memory_mb(node.pid)
    ended = {}

    async def attack(name):
        it = ATTACKS[name]
        client = await to(node)
        client.send(it.first)
        reading = asyncio.create_task(client.until(lambda _: False, patience_s=PATIENCE_S))
        with contextlib.suppress(ConnectionError):
            for n in range(100_000):
                client.send(it.again(n))
                if n % 50 == 49 or it.patient:
                    await client.writer.drain()
                    await asyncio.sleep(0.05 if it.patient else 0)
                if reading.done():
                    break
        await reading
        ended[name] = True

    async with beside(node, steady):
        good = await asyncio.create_subprocess_exec(
            "h2load",
            "-n",
            "3000",
            "-c",
            "2",
            "-m",
            "10",
            f"{at(node)}{RESOURCE}?pei=imei-{LISTED}1",
            stdout=asyncio.subprocess.PIPE,
        )
        await asyncio.gather(*map(attack, ATTACKS))
        said, _ = await good.communicate()
    assert set(ended) == set(ATTACKS)
    assert b"3000 succeeded, 0 failed, 0 errored, 0 timeout" in said
    assert (steady.wrong, steady.waited_s < 30) == ([], True)
    await until_async(
        lambda: (
            {line["reason"] for line in node.lines("connection_fault", protocol="n5g")}
            >= {attack.reason for attack in ATTACKS.values()}
        )
    )
    await settled(node, before)
    assert memory_mb(node.pid) - memory < 25
    assert not node.lines("fault")


@pytest.mark.long
async def test_both_protocols_give_the_same_verdict(shared, connect, to):
    chance = random.Random(20261126)
    near = [f"{int(LISTED) + n:014d}" for n in range(-20, 20)]
    imeis = [*near, *(f"{chance.randrange(10**14):014d}" for _ in range(150)), LISTED, TRACKED, *[LISTED] * 10]
    diameter, http = await connect(shared.node), await to(shared.node)
    http.send(HELLO)
    for n, imei in enumerate(imeis):
        version = f"{chance.randrange(100):02d}"
        forms = (f"imei-{imei}{check_digit(imei)}", f"imei-{imei}0", f"imeisv-{imei}{version}")
        http.send(wire.get(1 + 2 * n, f"{RESOURCE}?pei={chance.choice(forms)}"))
    wanted = [(await diameter.ask(ecr(imei))).number(1445, TGPP) for imei in imeis]
    assert await http.until(lambda found: len(bodies(found)) == len(imeis))
    assert [WORDS[json.loads(bodies(http.found)[1 + 2 * n])["status"]] for n in range(len(imeis))] == wanted
    assert sum(status == 1 for status in wanted) == 12


async def test_a_drain_sends_amfs_elsewhere(own, to):
    node = own.start()
    client = (await to(node)).send(HELLO)
    assert await client.ask(1, f"{LISTED}1") == "BLACKLISTED"
    node.signal(signal.SIGTERM)
    assert await client.until(lambda found: len(goaways(found)) == 1)
    client.send(asking(3, f"{LISTED}1"))  # was under way
    ping = next(payload for kind, flags, _, payload in client.found if kind == wire.PING and not flags)
    client.send(wire.frame(wire.PING, wire.ACK, 0, ping))
    assert await client.until(lambda found: len(goaways(found)) == 2)
    assert goaways(client.found) == [(2**31 - 1, 0), (3, 0)]
    assert statuses(client.found)[3] == 200
    assert await client.until(lambda _: False) is False
    assert await asyncio.to_thread(node.wait) == 0


async def test_a_client_may_have_several_connections(own, to):
    """At least two (TS 29.500 5.2.2), whatever its entry allows over Diameter."""
    own.configure(peers=[{"name": "amf", "from": ["127.0.0.0/8"], "connections": 1}])
    node = own.start()
    clients = [(await to(node)).send(HELLO) for _ in range(4)]
    for stream in (1, 3):
        assert [await client.ask(stream, f"{LISTED}1") for client in clients] == ["BLACKLISTED"] * 4
    assert [row["requests"] for row in own.json("peers") if row["address"]] == [2] * 4


async def test_checks_of_amfs_are_on_record_and_no_log_line_has_a_whole_identifier(own, to):
    imsi, number = "001010123456789", "4917012345678"
    own.configure(sightings={"window_s": 3600, "subscribers": "full"})
    node = own.start()
    client = (await to(node)).send(HELLO)
    for n, pei in enumerate((f"imeisv-{LISTED}07", f"imei-{UNLISTED}0", "mac-00-11-22-33-44-55", "nonsense", "imei-x")):
        client.send(wire.get(1 + 2 * n, f"{RESOURCE}?pei={pei}&supi=imsi-{imsi}&gpsi=msisdn-{number}"))
    assert await client.until(lambda found: len(bodies(found)) == 5)
    (seen,) = own.json("seen", LISTED)["sightings"]
    assert (seen["status"], seen["list"], seen["subscriber"], seen["protocol"], seen["checks"]) == (
        "blacklisted",
        "stolen",
        imsi,
        "n5g",
        1,
    )
    assert own.json("seen", LISTED)["software_versions"] == ["07"]
    assert own.json("seen", UNLISTED)["sightings"][0]["protocol"] == "n5g"
    assert own.json("seen", f"+{number}")["checks"] == 5
    log = json.dumps(node.lines())
    assert not [identifier for identifier in (LISTED, UNLISTED, imsi, number, "00-11-22-33-44-55") if identifier in log]


async def test_limits_are_those_of_all_protocols(own, to):
    """429 for the peer's own limit, 503 for that of all together, each with Retry-After; the higher priority goes first."""
    own.configure(
        peers=[{"name": "mme", "host": "mme.localdomain"}, {"name": "amf", "from": ["127.0.0.0/8"], "rate_max": 40}]
    )
    node = own.start()
    client = (await to(node)).send(HELLO)
    path = f"{RESOURCE}?pei=imei-{LISTED}1"
    for n in range(60):
        client.send(wire.get(1 + 2 * n, path, ("3gpp-sbi-message-priority", "31" if n < 30 else "0")))
    assert await client.until(lambda found: len(statuses(found)) == 60)
    found = [statuses(client.found)[1 + 2 * n] for n in range(60)]
    assert set(found) == {200, 429}
    assert found[29:31] == [429, 200]  # what the last have left is for the first
    block = next(payload for kind, _, stream, payload in client.found if kind == wire.HEADERS and stream == 1 + 2 * 29)
    assert b"\x1f\x26\x011" in block  # retry-after (53 of RFC 7541 A): 1
    problem = json.loads(bodies(client.found)[1 + 2 * 29])
    assert (problem["status"], problem["cause"]) == (429, "NF_CONGESTION")
    assert node.metrics()["eir_shed_total{peer=amf,reason=rate_max}"] == found.count(429)
    own.configure(peers=[{"name": "amf", "from": ["127.0.0.0/8"]}], limits={"rate_max": 0.1})
    control(own.state, "reload")
    for n in range(60, 64):
        client.send(wire.get(1 + 2 * n, path))
    assert await client.until(lambda found: len(statuses(found)) == 64)
    assert statuses(client.found)[1 + 2 * 63] == 503
    own.configure(overload_answer="whitelisted")
    control(own.state, "reload")
    await client.ask(201, f"{LISTED}1")  # the limit begins anew
    assert await client.ask(203, f"{LISTED}1") == "WHITELISTED"


async def test_a_peer_out_of_service_and_a_peer_that_a_reload_takes_away(own, to):
    node = own.start()
    client = (await to(node)).send(HELLO)
    assert await client.ask(1, f"{LISTED}1") == "BLACKLISTED"
    control(own.state, "peer_disable", name="near")
    assert await client.until(goaways)
    assert not await (await to(node)).send(HELLO + asking(1, f"{LISTED}1")).until(lambda found: 1 in statuses(found))
    control(own.state, "peer_enable", name="near")
    other = (await to(node)).send(HELLO)
    assert await other.ask(1, f"{LISTED}1") == "BLACKLISTED"
    own.configure(peers=[{"name": "mme", "realm": REALM, "from": ["192.0.2.0/24"]}])
    control(own.state, "reload")
    assert await other.until(goaways)


def test_an_address_that_no_entry_allows_gets_an_error(own):
    """Conformance 34c: an AMF whose connection is closed instead waits for seconds."""
    own.configure(peers=[{"name": "far", "from": ["192.0.2.0/24"]}])
    node = own.start()
    url = f"{at(node)}{RESOURCE}?pei=imei-{LISTED}1"
    version, status, body = curl(url, "--http2-prior-knowledge")
    assert (version, status) == ("2", "403")
    assert json.loads(body) == {
        "title": "Forbidden",
        "status": 403,
        "detail": "no entry of the peer table matches this client",
    }
    (line,) = until(lambda: node.lines("peer_refused"))
    assert (line["reason"], line["setting"], line["protocol"]) == ("source", "peers: from", "n5g")
    assert line["address"].startswith("127.0.0.1:")
    assert [row["label"] for row in control(own.state, "peers")] == ["far"]
    metrics = node.metrics()
    assert metrics["eir_peers_refused_total{reason=source}"] == 1
    assert not any(name.startswith("eir_checks_total{") for name in metrics)
    host, _, port = at(node).removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port))) as stranger:  # of many requests at once one is answered
        stranger.sendall(HELLO + b"".join(asking(stream, f"{LISTED}1") for stream in range(1, 41, 2)))
        until(lambda: node.metrics()["eir_sbi_responses_total{peer=other,result=403}"] > 1)
    assert node.metrics()["eir_sbi_responses_total{peer=other,result=403}"] == 2
    for _ in range(60):  # a flood of them is closed, as over Diameter
        curl(url, "--http2-prior-knowledge", status=None)
    assert node.metrics()["eir_peers_refused_total{reason=source}"] == 62
    own.configure(peers=PEERS)
    control(own.state, "reload")
    assert curl(url, "--http2-prior-knowledge")[1] == "200"


def test_requests_and_connections_of_amfs_that_connect_for_each_are_counted(own):
    node = own.start()
    for _ in range(5):
        curl(f"{at(node)}{RESOURCE}?pei=imei-{LISTED}1", "--http2-prior-knowledge")

    def near():
        return [row for row in control(own.state, "peers") if row["label"] == "near"]

    (row,) = until(lambda: near() if [row["connections"] for row in near()] == [5] else None)
    assert (row["protocol"], row["state"], row["requests"], row["answers"], row["address"]) == (
        "n5g",
        "ended",
        5,
        5,
        None,
    )
    assert row["last_seen"] is not None
    assert "near" in own.eir("peers").stdout


@pytest.mark.long
def test_an_idle_libcurl_is_sent_away_in_order_and_its_next_request_is_answered(own):
    """It answers no PING while it asks nothing, for longer here than the node waits; another --rate than this is a test of nothing."""
    own.configure(peers=AMFS)
    node = own.start()
    url = f"{at(node)}{RESOURCE}?pei=imei-{LISTED}1"
    assert (
        curl(url, "--http2-prior-knowledge", "--max-time", "300", "--rate", "40/h", url)[-1].count("BLACKLISTED") == 2
    )
    (first, _) = until(lambda: found if len(found := node.lines("peer_closed", protocol="n5g")) == 2 else None)
    assert (first["reason"], first["level"]) == ("idle", "info")
    assert node.lines("connection_fault") == []
    assert "eir_peer_up{peer=amf}" not in node.metrics()


async def test_an_amf_without_a_connection_is_not_away(own, to):
    """It connects when it has something to ask. A peer that was never there is away, and so is an AMF that was ended for a fault."""
    own.configure(peers=AMFS)
    node = own.start()

    def up():
        return {label: node.metrics().get(f"eir_peer_up{{peer={label}}}") for label in ("amf", "mme")}

    assert up() == {"amf": 0, "mme": 0}
    clients = [(await to(node)).send(HELLO) for _ in range(2)]
    for client in clients:
        assert await client.ask(1, f"{LISTED}1") == "BLACKLISTED"
    assert up() == {"amf": 1, "mme": 0}
    clients[0].writer.close()
    await until_async(lambda: node.status()["peers"] == {"amf": 1, "mme": 0})
    assert up() == {"amf": 1, "mme": 0}
    clients[1].writer.close()
    await until_async(lambda: up() == {"amf": None, "mme": 0})
    assert node.status()["peers"] == {"mme": 0}
    os.kill(children(node.pid)["answering"], signal.SIGKILL)
    await until_async(node.is_restarted)
    assert up() == {"amf": None, "mme": 0}
    bad = (await to(node)).send(HELLO + wire.frame(wire.DATA, 0, 0, b""))
    assert await bad.until(lambda _: False) is False
    await until_async(lambda: up() == {"amf": 0, "mme": 0})
    good = (await to(node)).send(HELLO)
    assert await good.ask(1, f"{LISTED}1") == "BLACKLISTED"
    good.send(wire.frame(wire.GOAWAY, 0, 0, bytes(8)))
    await until_async(lambda: up() == {"amf": None, "mme": 0})


async def test_an_entry_whose_client_asks_over_diameter_too_is_away_without_it(own, to, connect):
    own.configure(peers=[{"name": "amf", "from": ["127.0.0.0/8"]}])
    node = own.start()
    amf = (await to(node)).send(HELLO)
    assert await amf.ask(1, f"{LISTED}1") == "BLACKLISTED"
    amf.writer.close()
    await until_async(lambda: node.status()["peers"] == {})
    mme = await connect(node)
    assert node.status()["peers"] == {"amf": 1}
    await mme.close()
    await until_async(lambda: node.status()["peers"] == {"amf": 0})
    assert node.metrics()["eir_peer_up{peer=amf}"] == 0


async def test_a_client_that_reads_nothing_is_dropped(own):
    own.tune(Limits, stalled_write_s=1, write_buffer_bytes=4096)
    node = own.start(prefix=["env"])
    memory = memory_mb(node.pid)
    host, _, port = at(node).partition("://")[2].rpartition(":")
    deaf = socket.socket()
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    deaf.connect((host, int(port)))
    deaf.settimeout(PATIENCE_S)
    octets, long = HELLO, ("3gpp-sbi-correlation-info", "x" * 8000)  # which comes back
    with contextlib.suppress(OSError):
        for n in range(2000):
            await asyncio.to_thread(deaf.sendall, octets)
            octets = wire.get(1 + 2 * n, f"{RESOURCE}?pei=imei-{LISTED}1", long)
    await until_async(lambda: node.status()["peers"].get("near", 0) == 0)
    deaf.close()
    assert memory_mb(node.pid) - memory < 25


def test_the_probe_asks_as_an_amf(shared):
    node, files = shared.node, shared.authority.write(AMF, stem="amf")
    clear, secure = f"n5g{at(node)[4:]}", f"n5g{at(node, 'https')[5:]}"
    files = f"ca={files['ca']}&cert={files['certificate']}&key={files['key']}"
    for target in (clear, f"{secure}?{files}"):
        found = shared.json("probe", target, LISTED, f"{TRACKED}00", UNLISTED, "mac-00-11-22-33-44-55")
        assert [row["status"] for row in found] == ["blacklisted", "greylisted", "whitelisted", "whitelisted"]
        assert {row["result_code"] for row in found} == {200}
    found = shared.json("probe", clear, "x", LISTED, "--software-version", "07")
    assert [row["status"] for row in found] == ["whitelisted", "blacklisted"]
    summary = shared.json("probe", clear, LISTED, UNLISTED, "--count", "10")
    assert (summary["answers"], summary["fault"]) == ({"blacklisted": 5, "whitelisted": 5}, None)
    part = f"{secure}?{files.partition('&')[0]}"
    assert "ca, cert and key are needed, all three" in shared.eir("probe", part, LISTED, status=2).stderr


def test_check_prints_the_answer_that_goes_over_the_wire(shared):
    (shared.folder / "other.yaml").write_text(
        shared.path.read_text().replace("policy:", "policy:\n  default: unknown", 1)
    )
    config = ["--store", "-c", shared.folder / "other.yaml"]
    found = shared.json("check", LISTED, "--protocol", "n5g")
    assert (found["status"], found["rule"], found["protocol"], found["answer"]) == (
        "blacklisted",
        1,
        "n5g",
        "200 BLACKLISTED",
    )
    assert shared.json("check", UNLISTED, "--protocol", "n5g", *config)["answer"] == "404 ERROR_EQUIPMENT_UNKNOWN"
    assert shared.json("check", UNLISTED, "--protocol", "s13", *config)["answer"] == "Experimental-Result 5422"
    assert shared.json("check", UNLISTED, "--protocol", "map", *config)["answer"] == "error 7, unknownEquipment"
    assert shared.json("check", LISTED, "--protocol", "map")["answer"] == "equipmentStatus 1, BLACKLISTED"
    assert shared.json("check", "mac-00-11-22-33-44-55", "--protocol", "n5g")["rule"] == "no_imei"
    found = shared.eir("check", "imei-12", "--protocol", "n5g", "--json", status=2)
    assert json.loads(found.stdout)["rule"] == "bad_identity"


@pytest.mark.long
async def test_handshakes_that_do_not_go_on_end_and_keep_nobody_out(shared, to):
    """Nothing, half a ClientHello, or HTTP/2 without TLS, from many connections at once."""
    host, _, port = at(shared.node, "https").partition("://")[2].rpartition(":")
    halves = [b"", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", HELLO]
    waiting = [await asyncio.open_connection(host, int(port)) for _ in range(60)]
    for number, (_, writer) in enumerate(waiting):
        writer.write(halves[number % 3])
    client = (await to(shared.node)).send(HELLO)
    assert await client.ask(1, f"{LISTED}1") == "BLACKLISTED"
    async with asyncio.timeout(PATIENCE_S):
        for reader, writer in waiting:
            with contextlib.suppress(ConnectionError):
                await reader.read()
            writer.close()

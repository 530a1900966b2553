"""A node of a 5G core as its NRF and its AMFs see it: access tokens, a change of keys under load, registration, drain."""

import asyncio
import json
import os
import time
from datetime import UTC, datetime
from ipaddress import ip_address
from types import SimpleNamespace

import pytest
import yaml
from amf import RESOURCE, Amf, at
from nrf_server import Nrf
from simulated.certificates import Authority
from simulated.issuer import AMF, Issuer, jwks
from simulated.node import LISTED, UNLISTED, until, until_async
from simulated.wire import EIR, REALM

from eir.checks.checker import Checker
from eir.checks.settings import PolicySettings
from eir.interfaces.n5g.link import N5gConnection
from eir.interfaces.n5g.server import N5gServer
from eir.interfaces.n5g.settings import SERVICE, N5gSettings, NrfSettings
from eir.lists.images.index import Index
from eir.node.observe.control import ControlError, ask
from eir.wire.peers.counts import Counts
from eir.wire.peers.rate import RateLimits
from eir.wire.peers.settings import Limits, PeerSettings
from eir.wire.web.denials import TokenSettings
from eir.wire.web.http2_message import Http2Request
from eir.wire.web.tokens import Tokens, load_keys, read_keys

PEERS = [
    {"name": "mme", "realm": REALM, "from": ["127.0.0.0/8"], "expected": False},
    {"name": "amf", "from": ["127.0.0.0/8"], "expected": False},
]
AMF_HOST = "amf1.5gc.mnc001.mcc001.3gppnetwork.org"
IMEI, FREE = f"{LISTED}1", f"{UNLISTED}0"


@pytest.fixture
def nrf():
    made = Nrf()
    yield made
    made.stop()


@pytest.fixture
async def amf():
    """Makes AMFs, which are closed at the end: `await amf(node)`."""
    made = []

    async def to(node):
        made.append(await Amf.to(at(node)))
        return made[-1]

    yield to
    for each in made:
        await each.close()


def give(site, *issuers):
    """What the issuer of tokens publishes; never half of it."""
    (site.folder / "new").write_bytes(jwks(*issuers))
    (site.folder / "new").replace(site.folder / "jwks")


def serve(site, n5g, *rules, **more):
    """A node with one list that is there."""
    rules = [{"list": "stolen", "answer": "blacklisted"}, *rules]
    n5g = {"listen": "http://127.0.0.1:0", **n5g}
    site.configure(peers=PEERS, lists={"stolen": {"signers": "signers"}}, policy={"rules": rules}, n5g=n5g, **more)
    site.load([LISTED])
    return site.start()


def reload(site, n5g):
    """As `eir reload` does, without the cost of a process."""
    site.configure(n5g={"listen": "http://127.0.0.1:0", **n5g})
    return ask(site.state, "reload")


async def in_force(node, times):
    await until_async(lambda: len(node.lines("keys_in_force")) == times)


@pytest.mark.long
async def test_access_tokens_and_a_change_of_keys_under_load(site, amf):
    old, new, other = Issuer(), Issuer("RS256", "key-2"), Issuer(kid="key-1")
    give(site, old)
    node = serve(site, {"tokens": {"jwks": "jwks"}}, {"origin_host": AMF, "answer": "greylisted"})
    assert not node.lines("no_access_tokens")
    asks = [await amf(node) for _ in range(4)]
    now = time.time()

    # The token says who asks: a rule about that AMF holds for it, and not for another.
    for each in asks:
        assert (await each.ask(IMEI, old.token(now))).document == {"status": "BLACKLISTED"}
        assert (await each.ask(FREE, old.token(now))).document == {"status": "GREYLISTED"}
        assert (await each.ask(FREE, old.token(now, sub="another"))).document == {"status": "WHITELISTED"}

    # What is refused, and how; the client's own mark of its request comes back with every answer.
    mark = {"3gpp-sbi-correlation-info": "imsi-001010000000001"}
    assert (await asks[0].ask(IMEI, old.token(now), **mark)).headers.items() >= mark.items()
    assert mark.keys().isdisjoint((await asks[0].ask(IMEI, old.token(now))).headers)
    for token, status, challenge in (
        (None, 401, 'Bearer realm="n5g-eir-eic", scope="n5g-eir-eic"'),
        (old.token(now, exp=now - 1), 401, 'error="invalid_token", error_description="the access token has expired"'),
        (
            old.token(now, aud="AMF"),
            401,
            'error="invalid_token", error_description="the access token is for another audience"',
        ),
        (
            other.token(now),
            401,
            'error="invalid_token", error_description="the signature of the access token is wrong"',
        ),
        (old.token(now, scope="nudm-sdm"), 403, 'error="insufficient_scope"'),
    ):
        answer = await asks[0].ask(IMEI, token, **mark)
        assert answer.status == answer.document["status"] == status
        assert answer.headers.items() >= mark.items()
        assert answer.headers["content-type"] == "application/problem+json"
        assert challenge in answer.headers["www-authenticate"]
    refused = {"no_token", "expired", "audience", "signature", "scope"}
    await until_async(lambda: {line["reason"] for line in node.lines("token_refused", peer="amf")} == refused)
    assert node.metrics()["eir_sbi_responses_total{peer=amf,result=401:expired}"] == 1

    # A change of keys: published, used, the old one taken away. Nobody is refused meanwhile.
    signs, going, answered = [old], True, 0

    async def asking(one):
        nonlocal answered
        while going:
            answer = await one.ask(FREE, signs[-1].token(now, jti=answered))
            assert answer.document == {"status": "GREYLISTED"}, answer
            answered += 1

    before = old.token(now)
    assert (await asks[0].ask(IMEI, before)).status == 200
    load = [asyncio.create_task(asking(each)) for each in asks]
    give(site, old, new)
    await in_force(node, 1)
    signs.append(new)
    seen = answered
    await until_async(lambda: answered > seen + 20)
    give(site, new)
    await in_force(node, 2)
    # A file that is no use changes nothing.
    (site.folder / "jwks").write_text("{")
    await until_async(lambda: node.lines("keys_refused"))
    going = False
    await asyncio.gather(*load)
    assert (await asks[0].ask(IMEI, before)).status == 401  # its key has gone, and with it what was known of it
    assert node.metrics()["eir_process_restarts_total{process=answering}"] == 0


async def test_bad_tokens_of_one_amf_keep_no_other_of_its_entry_out(tmp_path):
    issuer, peers = Issuer(), (PeerSettings(label="amf"),)
    (tmp_path / "jwks").write_bytes(jwks(issuer))
    settings = TokenSettings(jwks=(tmp_path / "jwks",), keys=(), issuer=(), audience=("5G_EIR",))
    tokens = Tokens(settings, load_keys(read_keys(settings)), scope=SERVICE, now=time.time, ticks=lambda: 0.0)
    server = N5gServer(N5gSettings(), SimpleNamespace(
        shared=SimpleNamespace(peers=peers, limits=Limits(), overload_answer=None), tls=None, keys={},
        checker=Checker(PolicySettings(), Index({}), now=datetime.now(UTC)), counts=Counts(), rates=RateLimits(Limits()),
        report=lambda *_, **__: None,
    ))  # fmt: skip
    server.tokens = tokens
    one, another = N5gConnection(server, server.loop), N5gConnection(server, server.loop)
    for link, source in ((one, "10.20.0.1"), (another, "10.20.0.2")):
        link.source = ip_address(source)
        assert server.identify(link) is None
    now = time.time()

    def status(link, **claims):
        headers = {b"authorization": f"Bearer {issuer.token(now, **claims)}".encode()}
        return server.respond(link, Http2Request("GET", f"{RESOURCE}?pei=imei-{IMEI}".encode(), headers)).status

    assert {status(one, aud="AMF", jti=number) for number in range(150)} == {401, 429}
    assert (status(one), status(another)) == (429, 200)


@pytest.mark.long
def test_the_probe_and_the_audit_bring_a_token(site, tmp_path):
    issuer, authority = Issuer(), Authority(tmp_path / "tls")
    give(site, issuer)
    files = authority.write(AMF_HOST, stem="amf")
    node = serve(
        site, {"listen": ["http://127.0.0.1:0", "https://127.0.0.1:0"], "tokens": {"jwks": "jwks"}}, {"origin_host": AMF, "answer": "greylisted"},
        tls=authority.write(EIR, "127.0.0.1"),
    )  # fmt: skip
    now, manifest = time.time(), site.release([LISTED], serial=2)
    good, answer, old = (tmp_path / name for name in ("good", "answer", "old"))
    good.write_text(issuer.token(now) + "\n")
    answer.write_text(json.dumps({"access_token": issuer.token(now), "token_type": "Bearer", "expires_in": 3600}))
    old.write_text(issuer.token(now, exp=now - 1))
    for scheme, options in (
        ("http", ""),
        ("https", f"&ca={files['ca']}&cert={files['certificate']}&key={files['key']}"),
    ):
        where = f"n5g{at(node, scheme).removeprefix(scheme)}?"
        target, late, bare = (f"{where}token={good}{options}", f"{where}token={old}{options}", f"{where}{options[1:]}")
        for token in (good, answer):
            found = site.json("probe", f"{where}token={token}{options}", LISTED, UNLISTED)
            assert [row["status"] for row in found] == ["blacklisted", "greylisted"]
        assert site.json("probe", target, LISTED, "--count", "5")["answers"] == {"blacklisted": 5}
        refused = site.eir("probe", bare, LISTED)
        assert (
            "answered by the error 401 an access token is needed; the EIR requires an access token: ?token=FILE"
            in refused.stderr
        )
        refused = site.eir("probe", late, LISTED)
        assert "answered by the error 401 the access token has expired" in refused.stderr
        assert "?token" not in refused.stderr
        assert json.loads(site.eir("audit", manifest, target, "--json").stdout)["share"] == 1.0
        document = json.loads(site.eir("audit", manifest, bare, "--json").stdout)
        assert (document["share"], document["exceptions"][0]["got"]) == (0.0, "401")


@pytest.mark.parametrize(
    ("target", "content", "said"),
    [
        ("n5g://127.0.0.1:9", None, "cannot be read: No such file or directory"), ("n5g://127.0.0.1:9", b"", "has no access token"),
        ("n5g://127.0.0.1:9", b"a.b.c\nx: y", "has no access token"), ("n5g://127.0.0.1:9", b"a b", "has no access token"),
        ("n5g://127.0.0.1:9", b"\xff", "has no access token"), ("n5g://127.0.0.1:9", b"{", "has no access token"),
        ("n5g://127.0.0.1:9", b'{"access_token": 7}', "has no access token"), ("n5g://127.0.0.1:9", b"{" * 20_000, "has no access token"),
        ("n5g://127.0.0.1:9", b"a" * 100_000, "has no access token"), ("s13://127.0.0.1:9", b"a.b.c", "unknown parameter token; expected origin_host, "),
    ],
    ids=lambda value: str(value)[:20],
)  # fmt: skip
def test_a_token_that_cannot_be_sent_is_no_token(tmp_path, eir, target, content, said):
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    url = f"{target}?token={file}"
    for command in (["probe", url, LISTED], ["audit", "x.manifest.json", url]):
        done = eir(*command)
        assert done.status == 2
        assert said in done.err
        assert "a.b.c" not in done.err


async def test_a_node_and_its_nrf(site, amf, nrf, constants):
    constants({"eir.interfaces.n5g.nrf.PAUSE_S": 0.1})
    site.tune(NrfSettings, heartbeat_s=1)
    node = serve(site, {"nrf": {"uri": nrf.uri, "plmns": "00101"}})
    profile = until(lambda: next(iter(nrf.profiles.values()), None))
    port = int(at(node).rpartition(":")[2])
    assert profile["nfServices"][0]["ipEndPoints"] == [{"ipv4Address": "127.0.0.1", "transport": "TCP", "port": port}]
    assert (profile["nfStatus"], profile["nfServices"][0]["oauth2Required"]) == ("REGISTERED", False)
    assert 0 <= profile["load"] <= 100
    until(lambda: node.lines("no_access_tokens"))
    instance = profile["nfInstanceId"]
    assert (site.state / "nf-instance-id").read_text().strip() == instance
    until(lambda: node.status()["nrf"]["registered"] == nrf.uri)
    assert node.metrics()[f"eir_nrf_registered{{nrf={nrf.uri}}}"] == 1
    until(lambda: nrf.counts["PATCH"])

    # It forgets the node, and hears of it again; then it restarts, and is away meanwhile: the node answers.
    nrf.forget()
    until(lambda: instance in nrf.profiles)
    nrf.stop()
    until(lambda: node.status()["nrf"]["registered"] is None)
    assert "not registered with any NRF" in node.status()["summary"]
    assert node.status()["ready"] == "ready"
    client = await amf(node)
    assert (await client.ask(IMEI)).document == {"status": "BLACKLISTED"}
    await client.close()
    again = Nrf(nrf.port)
    try:
        until(lambda: instance in again.profiles)

        # A reload that names another NRF goes over to it, and a drain takes leave before anybody is sent away.
        other = Nrf()
        reload(site, {"nrf": {"uri": [other.uri], "capacity": 7}})
        assert again.counts["DELETE"] == 1
        until(lambda: instance in other.profiles)
        assert other.profiles[instance]["capacity"] == 7
        until(lambda: node.status()["nrf"]["registered"] == other.uri)  # else there is nothing to take leave of
        node.end()
        assert (other.counts["DELETE"], other.profiles) == (1, {})
        lines = [line["event"] for line in node.lines()]
        assert lines.index("stopping") < len(lines) - 1 - lines[::-1].index("nrf_deregistered") < lines.index("stopped")
        other.stop()
    finally:
        again.stop()


async def test_a_node_that_no_nrf_takes_serves_and_ends_all_the_same(site, amf, nrf):
    nrf.silent = True
    node = serve(site, {"nrf": {"uri": [nrf.uri, "http://127.0.0.1:9"]}})
    assert (await (await amf(node)).ask(IMEI)).document == {"status": "BLACKLISTED"}
    until(lambda: "not registered with any NRF" in node.status()["summary"])
    assert node.status()["state"] == "WARNING"
    node.end()


async def test_a_reload_that_begins_to_ask_for_tokens(site, amf):
    node, issuer = serve(site, {}), Issuer()
    one = await amf(node)
    assert (await one.ask(IMEI)).status == 200
    give(site, issuer)
    reload(site, {"tokens": {"jwks": "jwks", "audience": "another"}})
    assert (await one.ask(IMEI)).status == 401
    assert (await one.ask(IMEI, issuer.token(time.time()))).status == 401
    told = await until_async(
        lambda: (
            {line["reason"]: line for line in node.lines("token_refused")}
            if len(node.lines("token_refused")) > 1
            else None
        )
    )
    assert "n5g.tokens" in told["no_token"]["setting"]
    assert told["audience"]["setting"] == "n5g.tokens.audience"
    assert told["audience"]["address"].startswith("127.0.0.1:")
    # The node's own instance is an audience, whatever else is.
    instance = (site.state / "nf-instance-id").read_text().strip()
    assert (await one.ask(IMEI, issuer.token(time.time(), aud=[instance]))).status == 200
    os.truncate(site.folder / "jwks", 0)
    with pytest.raises(ControlError, match="not a JWK set"):
        ask(site.state, "reload")
    good = issuer.token(time.time(), aud=[instance])
    assert (await one.ask(IMEI, good)).status == 200
    site.path.write_text(yaml.safe_dump({name: each for name, each in site.settings.items() if name != "n5g"}))
    assert ask(site.state, "reload") == "reloaded"  # an open connection stays, and to no others than before
    assert [(await one.ask(IMEI, token)).status for token in (None, good)] == [401, 200]
    reload(site, {})
    assert (await one.ask(IMEI)).status == 200

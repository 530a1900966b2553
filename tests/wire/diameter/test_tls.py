"""TLS as an operator has it: `eir serve` with certificates in files, peers with good ones and with all sorts of bad ones.

Real handshakes by OpenSSL on both sides; a node. Clauses: RFC 6733 5.3, 13.1; RFC 6125 6.4.
"""

import asyncio
import os
import shutil
import signal
import ssl
import subprocess
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st
from simulated.certificates import VERSIONS, Authority, days
from simulated.hostile import processes
from simulated.node import LISTED, children, until, until_async
from simulated.patience import FACTOR, PATIENCE_S
from simulated.tcp_server import accepting
from simulated.wire import EIR, HOST, REALM, TGPP, VSAI, Connection, avp, cer, dwr, ecr, u32

from eir.errors import FileError
from eir.wire.diameter.capabilities import Capabilities, certificate_fits
from eir.wire.peers.settings import Limits, PeerSettings
from eir.wire.transport.settings import TlsSettings
from eir.wire.transport.tls import first_certificate, load_tls, names_of_peer, read_tls

BLACK = 1


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path / "authority")


@pytest.fixture
def stranger(tmp_path):
    """An authority that the node does not know."""
    return Authority(tmp_path / "stranger")


def configure(site, tls, **changes):
    """A node that listens for TLS first, and for TCP beside it."""
    site.configure(listen=["tls://127.0.0.1:0", "tcp://127.0.0.1:0"], tls=tls, **changes)
    return site


@pytest.fixture
def secure(site, authority):
    """A host whose node listens for TLS; it has the list `stolen`."""
    site.load([LISTED])
    return configure(site, authority.write(EIR))


@pytest.fixture
def single(site, authority):
    site.load([LISTED])
    return configure(site, authority.write(EIR))


@pytest.fixture
async def call():
    """Connects over TLS: `await call(node, context)`; closed at the end."""
    made = []

    async def call(node, context, *, opened=True, host=HOST, realm=REALM, **kwargs):
        connection = Connection(*await asyncio.open_connection(*node.address, ssl=context, **kwargs))
        made.append(connection)
        if opened:
            await connection.open(cer(host, realm))
        return connection

    yield call
    for connection in made:
        connection.writer.transport.abort()
        await connection.close()


async def status(connection, imei=LISTED):
    return (await connection.ask(ecr(imei))).number(1445, TGPP)


def shown(connection):
    """The names in the certificate that the node showed."""
    return names_of_peer(connection.writer.get_extra_info("peercert"))


async def test_good_certificates_on_both_sides(secure, authority, call):
    node = secure.start()
    connection = await call(node, authority.peer(HOST), opened=False)
    await connection.open(cer(extra=u32(299, 1)))  # Inband-Security-Id is ignored inside TLS (row 39)
    assert shown(connection) == [EIR]
    assert await status(connection) == BLACK
    assert (await connection.ask(dwr())).result == 2001
    ends = datetime.fromtimestamp(node.metrics()["eir_tls_certificate_expires_timestamp_seconds"], UTC)
    assert abs(ends - datetime.now(UTC) - timedelta(days=100)) < timedelta(hours=1)
    assert node.status()["listening"][0].startswith("tls://")


REFUSED = {
    "no certificate": lambda ours, _: ours.peer(),
    "another authority": lambda ours, theirs: theirs.peer(HOST, trusts=ours),
    "signed by itself": lambda ours, theirs: theirs.peer(HOST, trusts=ours),
    "expired": lambda ours, _: ours.peer(HOST, not_after=days(-1)),
    "not valid yet": lambda ours, _: ours.peer(HOST, not_before=days(1)),
    "TLS 1.1": lambda ours, _: old(ours.peer(HOST), VERSIONS.TLSv1_1),
    "TLS 1.0": lambda ours, _: old(ours.peer(HOST), VERSIONS.TLSv1),
    "a listener that it does not trust": lambda ours, theirs: ours.peer(HOST, trusts=theirs),
}


def old(context, version):
    with pytest.warns(DeprecationWarning, match="deprecated"):
        context.minimum_version = context.maximum_version = version
    context.set_ciphers("ALL:@SECLEVEL=0")  # or it is the client's OpenSSL that says no
    return context


async def test_handshakes_that_must_fail(secure, authority, stranger, call):
    node = secure.start()
    good = await call(node, authority.peer(HOST))
    for what, make in REFUSED.items():
        with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
            await (await call(node, make(authority, stranger), opened=False)).open()
        assert await status(good) == BLACK, what
    handshakes = "eir_peers_refused_total{reason=tls_handshake}"
    await until_async(lambda: node.metrics().get(handshakes) == len(REFUSED))
    lines = await until_async(lambda: node.lines("peer_refused", reason="tls_handshake"))
    assert {line["level"] for line in lines} == {"warning"}
    await until_async(lambda: node.status()["peers"] == {"mme": 1})


async def test_what_is_no_tls_at_a_tls_listener_and_tls_at_one_for_tcp(secure, authority, call):
    node = secure.start()
    good = await call(node, authority.peer(HOST))
    for octets in (cer(), b"GET / HTTP/1.1\r\n\r\n", bytes(100)):
        plain = Connection(*await asyncio.open_connection(*node.address))
        await plain.send(uncounted=octets)
        async with asyncio.timeout(PATIENCE_S):
            answer = await plain.reader.read()
        assert answer[:1] in {b"", b"\x15"}  # at most a TLS alert
        await plain.close()
    host, _, port = node.status()["listening"][1].partition("://")[2].rpartition(":")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await asyncio.open_connection(host, int(port), ssl=authority.peer(HOST))
    assert await status(good) == BLACK


async def test_a_certificate_of_another_peer(secure, authority, call):
    node = secure.start()
    impostor = await call(node, authority.peer("mme2.localdomain"), opened=False)
    await impostor.send(cer())
    (cea,) = await impostor.end()
    assert (cea.result, cea.error, cea.command) == (3010, True, 257)
    (line,) = await until_async(lambda: node.lines("peer_refused", reason="tls_name"))
    assert line["setting"] == "tls_names"
    assert "mme2.localdomain" in line["detail"]


async def test_names_that_the_peer_table_gives(secure, authority, call):
    secure.configure(peers=[
        {"name": "mme", "realm": REALM, "host": HOST, "tls_names": ["dra.example", "*.pool.example"]},
        {"name": "rest", "realm": REALM},
    ])  # fmt: skip
    node = secure.start()
    for names in (["dra.example"], ["x.example", "DRA.example"], ["*.pool.example"], ["*.example"]):
        connection = await call(node, authority.peer(*names))
        assert await status(connection) == BLACK
        await connection.close()
        await until_async(lambda: node.status()["peers"] == {"mme": 0, "rest": 0})
    for names, host in ((["mme.pool.example"], HOST), ([HOST], HOST), (["dra.example"], "mme3.localdomain")):
        connection = await call(node, authority.peer(*names), opened=False)
        await connection.send(cer(host))
        assert [cea.result for cea in await connection.end()] == [3010]
    assert await status(await call(node, authority.peer("*.localdomain"), host="mme3.localdomain")) is not None


async def test_a_reload_parts_with_peers_whose_certificate_is_no_longer_wanted(secure, authority, call):
    node = secure.start()
    stays, goes = (
        await call(node, authority.peer(HOST)),
        await call(node, authority.peer("mme2.localdomain"), host="mme2.localdomain"),
    )
    secure.configure(peers=[
        {"name": "mme", "realm": REALM, "host": HOST}, {"name": "rest", "realm": REALM, "tls_names": ["dra.example"]},
    ])  # fmt: skip
    node.signal(signal.SIGHUP)
    asked = await goes.read()
    assert (asked.command, asked.number(273)) == (282, 0)
    await goes.answer(asked, host="mme2.localdomain")
    assert await goes.end() == []
    assert await status(stays) == BLACK


async def test_a_reload_takes_new_certificates_and_drops_nobody(secure, authority, stranger, call):
    node = secure.start()
    before = await call(node, authority.peer(HOST))
    # From the other authority, into the same files: what its peers show is taken from now on, and nothing else.
    shutil.copy(stranger.pem, authority.pem)
    stranger.write(EIR, "new.localdomain", folder=authority.folder, not_after=days(50))
    node.signal(signal.SIGHUP)
    await until_async(lambda: node.lines("reloaded"))
    assert await status(before) == BLACK
    await before.ask(dwr())
    with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
        await call(node, authority.peer("mme2.localdomain", trusts=stranger), host="mme2.localdomain")
    after = await call(node, stranger.peer("mme2.localdomain"), host="mme2.localdomain")
    assert shown(after) == [EIR, "new.localdomain"]
    assert await status(before) == BLACK
    ends = datetime.fromtimestamp(node.metrics()["eir_tls_certificate_expires_timestamp_seconds"], UTC)
    assert ends < datetime.now(UTC) + timedelta(days=51)


async def test_a_successor_of_the_answering_process_has_the_files_as_they_were_read(secure, authority, call):
    """They may be half written by then, and nobody has asked for a reload yet."""
    node = secure.start()
    for file in authority.folder.iterdir():
        file.write_text("half written")
    os.kill(children(node.pid)["answering"], signal.SIGKILL)
    await until_async(node.is_restarted)
    for name in ("mme1.localdomain", "mme2.localdomain"):
        assert await status(await call(node, authority.peer(name), host=name)) == BLACK


async def test_a_pair_that_does_not_match_changes_nothing_and_is_an_error(secure, authority, stranger, call):
    node = secure.start()
    good = await call(node, authority.peer(HOST))
    key, theirs = secure.settings["tls"]["key"], stranger.write(EIR)["key"]
    for other, says in (
        (theirs, "is not the private key of"),
        (secure.path, "contains no private key"),
        ("nowhere", "cannot be read"),
    ):
        secure.configure(tls=secure.settings["tls"] | {"key": str(other)})
        refused = await asyncio.to_thread(secure.eir, "reload", status=2)
        assert f"{secure.path}:" in refused.stderr
        assert says in refused.stderr
        node.signal(signal.SIGHUP)
        await until_async(lambda says=says: [line for line in node.lines("reload_refused") if says in line["detail"]])
        again = await call(node, authority.peer("mme2.localdomain"), host="mme2.localdomain")
        assert shown(again) == [EIR]
        await again.close()
        assert await status(good) == BLACK
    assert node.lines("reloaded") == []
    assert "nowhere" in (await asyncio.to_thread(secure.eir, "config", status=2)).stderr
    shutil.copy(theirs, key)  # the files themselves
    secure.configure(tls=secure.settings["tls"] | {"key": key})
    assert "is not the private key of" in (await asyncio.to_thread(secure.eir, "reload", status=2)).stderr


async def test_revoked_certificates(single, authority, call):
    good, bad = (authority.write(name, stem=name)["certificate"] for name in (HOST, "mme2.localdomain"))
    single.configure(tls=single.settings["tls"] | {"crl": str(authority.revoke(bad))})
    node = single.start()
    contexts = []
    for certificate in (good, bad):
        context = authority.peer()
        context.load_cert_chain(certificate, Path(certificate).with_suffix(".key"))
        contexts.append(context)
    connection = await call(node, contexts[0])
    with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
        await call(node, contexts[1], host="mme2.localdomain")
    await until_async(lambda: [line["detail"] for line in node.lines("peer_refused")] == ["certificate revoked"])
    authority.revoke(good, bad)
    await asyncio.to_thread(single.eir, "reload")
    assert await status(connection) == BLACK
    with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
        await call(node, contexts[0], host="mme3.localdomain")


async def test_half_handshakes_hold_nothing_up(single, authority, call):
    single.configure(limits={"source_unidentified_max": 8})
    single.tune(Limits, cer_timeout_s=2 * FACTOR, close_after_dpa_s=1)
    node = single.start()
    good = await call(node, authority.peer(HOST))
    silent = [Connection(*await asyncio.open_connection(*node.address)) for _ in range(40)]
    for connection in silent[::2]:
        await connection.send(
            uncounted=b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
        )  # the beginning of a ClientHello
    assert await status(await call(node, authority.peer("mme2.localdomain"), host="mme2.localdomain")) == BLACK
    for connection in silent:
        await connection.end()  # in time, or the test is over
        await connection.close()
    assert await status(good) == BLACK
    assert node.metrics()["eir_peers_refused_total{reason=source_unidentified_max}"] >= 30
    await until_async(lambda: node.status()["peers"] == {"mme": 2})
    until(lambda: sockets(node) == 2 + 3)  # two peers, three listeners


def sockets(node):
    """Internet sockets that the node's processes have open, by what the kernel lists for their network."""
    found = {link for pid in processes(node.pid) for link in links(Path(f"/proc/{pid}/fd"))}
    own = {link.removeprefix("socket:[").rstrip("]") for link in found if link.startswith("socket:")}
    rows = [line.split() for line in Path(f"/proc/{node.pid}/net/tcp").read_text().splitlines()[1:]]
    return sum(row[9] in own for row in rows)


def links(folder):
    for path in folder.iterdir():
        try:
            yield str(path.readlink())
        except OSError:
            continue  # closed since


class Listener:
    """A peer that the node connects to over TLS; `accept` gives the next connection."""

    def __init__(self):
        self.waiting = asyncio.Queue()

    def __call__(self, *ends):
        self.waiting.put_nowait(Connection(*ends))

    async def accept(self):
        async with asyncio.timeout(PATIENCE_S):
            return await self.waiting.get()


@asynccontextmanager
async def listening(authority, *names, issuer=None):
    """A peer's listener that wants certificates of `authority`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    (issuer or authority).issue(*names).configure_cert(context)
    authority.ca.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    listener = Listener()
    async with accepting(listener, tls=context) as (_, port):
        yield listener, port


async def test_the_node_connects_over_tls(secure, authority):
    async with listening(authority, "dra.localdomain") as (listener, port):
        secure.configure(peers=[
            {"name": "dra", "host": "dra.localdomain", "realm": REALM, "connect": f"tls://127.0.0.1:{port}", "reconnect_after_s": 1}
        ])  # fmt: skip
        node = await asyncio.to_thread(secure.start)
        connection = await listener.accept()
        request = await connection.read()
        assert shown(connection) == [EIR]
        assert (request.command, request.data(264)) == (257, EIR.encode())
        await connection.answer(request, extra=VSAI, host="dra.localdomain")
        answer = await connection.ask(ecr(LISTED, extra=avp(282, "mme.localdomain")))
        assert answer.number(1445, TGPP) == BLACK
        await connection.close()
        again = await listener.accept()  # Tc later
        await again.answer(await again.read(), extra=VSAI, host="dra.localdomain")
        await until_async(lambda: node.status()["peers"] == {"dra": 1})


@pytest.mark.parametrize("what", ["a name that is not the peer's", "another authority"])
async def test_the_node_does_not_talk_to_an_impostor(single, authority, stranger, what):
    named = what.startswith("a name")
    async with listening(
        authority, "other.localdomain" if named else "dra.localdomain", issuer=None if named else stranger
    ) as (listener, port):
        single.configure(
            peers=[{"name": "dra", "host": "dra.localdomain", "realm": REALM, "connect": f"tls://127.0.0.1:{port}"}]
        )
        node = await asyncio.to_thread(single.start)
        if named:
            connection = await listener.accept()
            await connection.answer(await connection.read(), extra=VSAI, host="dra.localdomain")
            assert await connection.end() == []
            await until_async(lambda: node.lines("peer_refused", reason="tls_name"))
        else:
            (line,) = await until_async(lambda: node.lines("connect_failed"))
            assert "unable to get local issuer certificate" in line["detail"]
        assert node.status()["peers"] == {"dra": 0}


@pytest.mark.parametrize(
    ("names", "host", "realm", "tls_names", "fits"),
    [
        (["a.b.c"], "a.b.c", "b.c", (), True),
        (["A.B.c"], "a.b.C", "B.C", (), True),
        (["a.b.c"], "a.b.c", "c", (), True),
        (["a.b.c"], "a.b.c", "a.b.c", (), True),
        (["a.b.c"], "a.b.c", "d", (), False),  # the realm is nobody's word
        (["a.b.c", "d"], "a.b.c", "d", (), True),
        (["a.b.c"], "a.b.c", "xb.c", (), False),
        (["a.b.c"], "x.b.c", "b.c", (), False),
        (["*.b.c"], "a.b.c", "b.c", (), True),
        (["*.b.c"], "a.x.b.c", "b.c", (), False),  # RFC 6125 6.4.3: one label
        (["*.b.c"], "b.c", "b.c", (), False),
        (["a*.b.c"], "ab.b.c", "b.c", (), False),
        (["a.*.c"], "a.b.c", "c", (), False),
        (["*"], "a", "a", (), False),
        (["*."], "a", "a", (), False),
        ([], "a.b.c", "b.c", (), False),
        ([""], "", "", (), True),  # no CER gets that far: an empty Origin-Host is a 5004
        (["dra.x"], "a.b.c", "d", ("dra.x",), True),
        (["a.b.c"], "a.b.c", "b.c", ("dra.x",), False),
        (["*.x"], "a.b.c", "b.c", ("dra.x",), True),
        (["*.x"], "a.b.c", "b.c", ("*.x",), True),
        (["dra.x"], "a.b.c", "b.c", ("*.x",), False),
    ],
)
def test_whose_certificate_it_is(names, host, realm, tls_names, fits):
    said = Capabilities(host, realm, None, frozenset(), frozenset())
    assert certificate_fits(names, said, PeerSettings(label="p", tls_names=tls_names)) is fits


GOOD = ssl.PEM_cert_to_DER_cert(trustme.CA().issue_cert("a.example").cert_chain_pems[0].bytes().decode())


def test_a_chain_that_is_damaged_behind_its_first_certificate_is_named(authority):
    files = {name: Path(file) for name, file in authority.write(EIR).items()}
    with files["certificate"].open("a") as chain:
        chain.write("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    with pytest.raises(FileError, match=r"eir\.pem and .*eir\.key: ") as caught:
        load_tls(read_tls(TlsSettings(**files)))
    assert caught.value.key == "certificate"


def shaken(server, client, session=None):
    """The client's end after a handshake without a network."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = client.wrap_bio(down, up, session=session), server.wrap_bio(up, down, server_side=True)
    for _ in range(5):
        for end in ends:
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()
    ends[1].write(b"x")
    assert ends[0].read(1) == b"x"  # behind any tickets
    return ends[0]


@pytest.mark.parametrize("version", [VERSIONS.TLSv1_2, VERSIONS.TLSv1_3])
def test_no_session_is_taken_up_again(authority, version):
    """Else a certificate that was revoked meanwhile would go on being good."""
    tls = load_tls(read_tls(TlsSettings(**{name: Path(file) for name, file in authority.write(EIR).items()})))
    client = authority.peer(HOST, lowest=version, highest=version)
    for server in (tls.accepting, tls.http2, tls.passwords):
        assert not shaken(server, client, shaken(server, client).session).session_reused


class TestCertificate:
    def test_names_and_ends_are_those_of_openssl(self, tmp_path):
        for days_valid, subject in ((3, "/O=Operator/CN=mme.example"), (20_000, "/CN=a.example/OU=x")):
            command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", tmp_path / "k",
                       "-out", tmp_path / "c", "-days", str(days_valid), "-subj", subject]  # fmt: skip
            subprocess.run(command, check=True, capture_output=True)
            found = first_certificate((tmp_path / "c").read_bytes())
            assert found.names == (subject.partition("CN=")[2].partition("/")[0],)
            said = subprocess.run(
                ["openssl", "x509", "-in", tmp_path / "c", "-noout", "-enddate"],
                check=True,
                capture_output=True,
                text=True,
            )
            assert found.not_after == datetime.strptime(said.stdout.strip(), "notAfter=%b %d %H:%M:%S %Y GMT").replace(
                tzinfo=UTC
            )

    def test_alternative_names_come_before_the_common_name(self, authority):
        issued = authority.issue("a.example", "*.b.example", "192.0.2.1", common_name="c.example")
        pem = issued.cert_chain_pems[0].bytes()
        assert first_certificate(b"text before\n" + pem + b"text after").names == ("a.example", "*.b.example")

    @given(st.binary(max_size=60))
    def test_what_is_no_certificate(self, octets):
        for made in (octets, b"\x30" + bytes([len(octets)]) + octets):
            with pytest.raises(ValueError, match="certificate"):
                first_certificate(ssl.DER_cert_to_PEM_cert(made).encode())

    @given(st.data())
    def test_a_damaged_one(self, data):
        octets = bytearray(GOOD)
        for _ in range(data.draw(st.integers(1, 4))):
            octets[data.draw(st.integers(0, len(octets) - 1))] = data.draw(st.integers(0, 255))
        with suppress(ValueError):  # or it is one that says something else
            first_certificate(ssl.DER_cert_to_PEM_cert(octets).encode())

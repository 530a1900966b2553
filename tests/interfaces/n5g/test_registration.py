"""The registration over HTTP/2 (eir/interfaces/n5g/registration.py), with an NRF that does what the test says."""

import asyncio
import contextlib
import socket
import ssl
import uuid
from types import SimpleNamespace

import pytest
import trustme
from nrf_server import Nrf
from simulated.store_content import until
from simulated.tcp_server import accepting
from test_nrf import GOOD, INSTANCE, settings_of

from eir.interfaces.interface import NodeLoad
from eir.interfaces.n5g.registration import Registrar, own_instance
from eir.interfaces.n5g.settings import N5gSettings
from eir.schema import DETAILS
from eir.wire.transport.settings import TlsSettings
from eir.wire.transport.tls import read_tls

LISTENER = "http://127.0.0.1:7777"


@pytest.fixture
def nrfs():
    made = []

    def make(*arguments, **more):
        made.append(Nrf(*arguments, **more))
        return made[-1]

    yield make
    for each in made:
        each.stop()


def files_of(ca, folder):
    """A certificate of ours by this authority, with its key."""
    own = ca.issue_cert("eir.example.org")
    for name, content in (("cert", own.cert_chain_pems[0]), ("key", own.private_key_pem), ("ca", ca.cert_pem)):
        content.write_to_path(folder / name)
    return read_tls(TlsSettings(certificate=folder / "cert", key=folder / "key", ca=folder / "ca"))


def test_nf_instance_id_stays_that_of_the_folder(tmp_path):
    made = own_instance(tmp_path)
    assert uuid.UUID(made).version == 4
    assert own_instance(tmp_path) == made
    (tmp_path / "nf-instance-id").write_text("cut o")
    assert own_instance(tmp_path) != made


@contextlib.asynccontextmanager
async def registering(*uri, standing=lambda: GOOD, tls=None, ask_s=3.0, **more):
    nrf = settings_of(*uri, heartbeat_s=1, instance=INSTANCE, **more)
    it = Registrar(standing, lambda *_, **__: None, ask_s)
    await it.apply(
        N5gSettings(listen=(LISTENER,), nrf=nrf), SimpleNamespace(state=None), tls, [LISTENER, "tcp://127.0.0.1:3868"]
    )
    yield it
    assert not it._task.done()
    await it.close()
    assert (it.status(), it.numbers()) == ({}, {})


async def test_a_life_with_an_nrf(nrfs):
    nrf = nrfs()
    load = 7
    async with registering(nrf.uri, standing=lambda: NodeLoad(serving=True, load=load)) as it:
        await until(lambda: INSTANCE in nrf.profiles)
        assert nrf.profiles[INSTANCE]["nfServices"][0]["ipEndPoints"] == [
            {"ipv4Address": "127.0.0.1", "transport": "TCP", "port": 7777}
        ]
        load = 55
        await until(lambda: nrf.profiles[INSTANCE]["load"] == 55)
        nrf.forget()
        await until(lambda: INSTANCE in nrf.profiles)
        await until(lambda: it.status()["nrf"]["registered"] == nrf.uri)
        assert it.numbers()["eir_nrf_registered"] == {(nrf.uri,): 1.0}
    assert INSTANCE not in nrf.profiles
    assert [method for method, _, _ in nrf.asked].count("DELETE") == 1
    assert not nrf.asked[0][1].startswith("//")


async def test_an_nrf_goes_and_another_is_there(nrfs):
    one, two = nrfs(), nrfs()
    async with registering(one.uri, two.uri, ask_s=0.5) as it:
        await until(lambda: INSTANCE in one.profiles)
        one.silent = True  # it takes connections, and does nothing
        await until(lambda: INSTANCE in two.profiles)
        await until(lambda: it.status()["nrf"]["registered"] == two.uri)
    assert INSTANCE not in two.profiles


@pytest.mark.parametrize("status", [307, 308])
async def test_an_nrf_that_sends_the_node_to_another(nrfs, status):
    one, two = nrfs(), nrfs()
    one.redirect = status, two.uri
    async with registering(one.uri) as it:
        await until(lambda: INSTANCE in two.profiles)
        await until(lambda: two.counts["PATCH"] >= 2)
        assert it.status()["nrf"]["registered"] == one.uri
        assert not one.profiles
        # After 308 the first is asked no more.
        assert (one.counts["PATCH"] > 0) is (status == 307)
    assert (two.profiles, two.counts["DELETE"]) == ({}, 1)


async def test_nrfs_that_send_the_node_to_each_other(nrfs):
    one, two, three = nrfs(), nrfs(), nrfs()
    one.redirect, two.redirect = (307, two.uri), (307, one.uri)
    async with registering(one.uri, three.uri) as it:
        await until(lambda: INSTANCE in three.profiles)
        await until(lambda: it.status()["nrf"]["registered"] == three.uri)
    assert (one.counts["PUT"], two.counts["PUT"]) == (3, 3)


async def test_an_nrf_restarts_on_the_same_port(nrfs):
    nrf = nrfs()
    async with registering(nrf.uri) as it:
        await until(lambda: INSTANCE in nrf.profiles)
        nrf.stop()
        await until(lambda: it.status()["nrf"]["last_error"] is not None)
        assert "Connection refused" in it.status()["nrf"]["last_error"]
        again = nrfs(nrf.port)
        await until(lambda: INSTANCE in again.profiles)


async def test_a_base_path_and_an_nrf_over_tls(nrfs, tmp_path):
    ca, other = trustme.CA(), trustme.CA()
    tls = files_of(ca, tmp_path)

    def context(authority, name):
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(name).configure_cert(made)
        made.verify_mode = ssl.CERT_REQUIRED
        ca.configure_trust(made)
        made.set_alpn_protocols(["h2"])
        return made

    good, stranger, misnamed = (
        nrfs(ssl=context(ca, "127.0.0.1")),
        nrfs(ssl=context(other, "127.0.0.1")),
        nrfs(ssl=context(ca, "10.0.0.1")),
    )
    async with registering(stranger.uri, misnamed.uri, f"{good.uri}/nrf/", tls=tls) as it:
        await until(lambda: good.asked)
        assert good.asked[0][1] == f"/nrf/nnrf-nfm/v1/nf-instances/{INSTANCE}"
        assert not stranger.asked
        assert not misnamed.asked
        await until(lambda: it.status()["nrf"]["registered"] == f"{good.uri}/nrf/")


@pytest.mark.parametrize(("scheme", "port"), [("http", 80), ("https", 443)])
async def test_an_nrf_without_a_port_is_at_that_of_its_scheme(tmp_path, scheme, port):
    try:
        listening = socket.create_server(("127.0.0.9", port))
    except OSError as e:  # these ports take a privilege, and another program may have them
        pytest.skip(str(e))
    tls = files_of(trustme.CA(), tmp_path)
    with listening:
        listening.setblocking(False)
        async with registering(f"{scheme}://127.0.0.9", tls=tls):
            connection, _ = await asyncio.get_running_loop().sock_accept(listening)
            connection.close()


@pytest.mark.parametrize(
    "said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0" * 100, b"", "goaway", "long"], ids=lambda value: str(value)[:12]
)
async def test_a_server_that_is_no_nrf(said):
    from h2.config import H2Configuration
    from h2.connection import H2Connection

    async def serve(reader, writer):
        await reader.read(100)
        if isinstance(said, bytes):
            writer.write(said)
        else:
            h2 = H2Connection(H2Configuration(client_side=False))
            h2.initiate_connection()
            if said == "goaway":
                h2.close_connection(last_stream_id=0)
            writer.write(h2.data_to_send())
        writer.close()

    async with accepting(serve) as (_, port), registering(uri := f"http://127.0.0.1:{port}") as it:
        await until(lambda: it.status()["nrf"]["last_error"])
        assert it.status()["nrf"]["registered"] is None
        assert it.numbers()["eir_nrf_requests_total"] == {(uri, "register", "no_answer"): 1.0}


async def test_a_reload_registers_again_what_has_changed_and_nothing_without_a_listener(nrfs, tmp_path):
    nrf, told = nrfs(), []
    it = Registrar(lambda: GOOD, lambda event, **_: told.append(event))
    settings = N5gSettings(listen=(LISTENER,), nrf=settings_of(nrf.uri, instance=INSTANCE))
    await it.apply(settings, SimpleNamespace(state=tmp_path), None, ["tcp://127.0.0.1:3868"])
    assert (it.status(), told) == ({}, ["no_access_tokens"])
    for wanted in (settings_of(nrf.uri, instance=INSTANCE, capacity=7), settings_of(nrf.uri, instance=None)):
        before = set(nrf.profiles)
        await it.apply(N5gSettings(listen=(LISTENER,), nrf=wanted), SimpleNamespace(state=tmp_path), None, [LISTENER])
        assert it.numbers()[DETAILS] == {("EirNotRegistered", "", "not asked yet"): 1.0}
        await until(lambda before=before: set(nrf.profiles) - before)
        await until(lambda: it.status()["nrf"]["registered"] == nrf.uri)
        assert it.numbers()["eir_nrf_registered"] == {(nrf.uri,): 1.0}
    assert set(nrf.profiles) == {own_instance(tmp_path)}
    await it.apply(N5gSettings(), SimpleNamespace(state=tmp_path), None, [LISTENER])
    assert (nrf.profiles, it.status()) == ({}, {})
    await it.close()
    await it.apply(settings, SimpleNamespace(state=tmp_path), None, [LISTENER])
    assert it.status() == {}
    assert told.count("no_access_tokens") == 1

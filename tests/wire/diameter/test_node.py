"""The node on real sockets: limits on connections, reconfiguration, peers in and out of service, elections, TLS, draining."""

import asyncio
import gc
import os
import resource
import socket
import ssl
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_network
from pathlib import Path
from types import SimpleNamespace

import pytest
import trustme
import uvloop
from clock import Clock
from simulated import wire
from simulated.patience import PATIENCE_S
from simulated.tcp_server import accepting
from simulated.wire import Connection, Listener, cer, dpr, dwr, ecr, until

from eir.errors import EirError
from eir.interfaces.s13.application import S13
from eir.wire.diameter.admission import Admission
from eir.wire.diameter.link import REST_BYTES, DiameterConnection
from eir.wire.diameter.message import Reply
from eir.wire.diameter.node import Identity, Limits, Node, PeerSettings, watchdog_jitter
from eir.wire.peers.counts import DURATION_BUCKETS_S, Counts
from eir.wire.transport.stream import fault_text
from eir.wire.transport.tls import Certificate, Tls

WHITE = Reply(2001, avps=wire.u32(277, 1) + wire.u32(1445, 0, wire.TGPP))
IDENTITY = Identity(host=wire.EIR, realm=wire.REALM, origin_state_id=77)
MME = PeerSettings(label="mme", realm=wire.REALM)


class Running:
    def __init__(self, node):
        self.node, self.counts, self.made = node, node.context.counts, []
        self.address = None

    async def connect(self, **kwargs):
        connection = Connection(*await asyncio.open_connection(*self.address, **kwargs))
        self.made.append(connection)
        return connection

    async def open(self, octets=None, **kwargs):
        connection = await self.connect(**kwargs)
        await connection.open(octets)
        return connection


@asynccontextmanager
async def running(*peers, limits=None, url="tcp://127.0.0.1:0", application=lambda _: WHITE, **kwargs):
    reported = []
    node = Node(
        IDENTITY, peers or (MME,), limits or Limits(), replace(S13, answer=application), counts=Counts(),
        report=lambda event, **fields: reported.append((event, fields)), **kwargs,
    )  # fmt: skip
    setup = Running(node)
    setup.reported = reported
    tasks = asyncio.all_tasks()
    try:
        setup.address = await node.listen(url)
        yield setup
    finally:
        for connection in setup.made:
            await connection.close()
        await node.drain(2)
    assert asyncio.all_tasks() <= tasks


async def test_a_peer_that_is_not_expected_counts_only_while_it_is_there():
    async with running(replace(MME, expected=False), PeerSettings(label="sgsn", host="sgsn.example")) as setup:
        assert setup.node.connected() == {"sgsn": 0}
        assert [row.label for row in setup.node.status()] == ["mme", "sgsn"]
        await setup.open()
        assert setup.node.connected() == {"sgsn": 0, "mme": 1}


async def test_status_and_counts():
    sgsn = PeerSettings(label="sgsn", host="sgsn.example")
    async with running(MME, sgsn) as setup:
        before = time.time()
        connection, silent = await setup.open(), await setup.connect()
        await connection.ask(ecr())
        await until(lambda: len(setup.node.status()) == 3)
        first, second, third = setup.node.status()
        assert (first.label, first.host, first.realm, first.state) == ("mme", wire.HOST, wire.REALM, "open")
        assert (first.requests, first.answers, first.watchdog) == (1, 1, "okay")
        assert before - 1 < first.since < time.time() + 1
        assert first.address.startswith("127.0.0.1:")
        assert (second.label, second.host, second.state) == ("other", None, "wait_cer")
        assert (third.label, third.host, third.state, third.address) == ("sgsn", "sgsn.example", "down", None)
        assert (third.since, third.last_seen, third.direction) == (None, None, "in")
        assert first.since <= first.last_seen < time.time() + 1
        assert setup.node.connected() == {"mme": 1, "sgsn": 0}
        await silent.close()
        counts = setup.counts
        assert counts.last_request.keys() == {"mme"}
        assert sum(counts.durations.buckets) == 1
        assert 0 < counts.durations.total_s < 60
        assert len(counts.durations.buckets) == len(DURATION_BUCKETS_S) + 1


@pytest.mark.parametrize("url", ["udp://127.0.0.1:1", "127.0.0.1:3868", "tcp://", "tls://127.0.0.1:0"])
async def test_listeners_that_cannot_be(url):
    async with running() as setup:
        with pytest.raises(EirError):
            await setup.node.listen(url)
        with pytest.raises(OSError, match="in use"):
            await setup.node.listen("tcp://{}:{}".format(*setup.address))


async def test_ipv6():
    async with running(replace(MME, sources=(ip_network("::1/128"),)), url="tcp://[::1]:0") as setup:
        connection = await setup.connect()
        cea = await connection.open()
        assert cea.data(257) == b"\0\2" + bytes(15) + b"\1"
        assert setup.node.status()[0].address.startswith("[::1]:")


async def test_we_connect_over_ipv6():
    async with (
        Listener("::1") as listener,
        running(replace(MME, host=wire.HOST, connect=f"tcp://[::1]:{listener.port}")) as setup,
    ):
        connection = await listener.accept()
        request = await connection.read()
        assert request.data(257) == b"\0\2" + bytes(15) + b"\1"
        await connection.answer(request, extra=wire.VSAI)
        assert (await connection.ask(ecr())).result == 2001
        assert setup.node.status()[0].address == f"[::1]:{listener.port}"


async def test_no_more_connections_than_the_limit():
    async with running(limits=Limits(connections_max=2)) as setup:
        first, second, third = await setup.open(), await setup.open(cer("b.localdomain")), await setup.connect()
        assert await third.end() == []
        assert setup.counts.peers_refused == {"connections_max": 1}
        assert ("peer_refused", "limits.connections_max") in [
            (event, fields.get("setting")) for event, fields in setup.reported
        ]
        await first.close()
        await until(lambda: len(setup.node.status()) == 1)
        await setup.open(cer("c.localdomain"))
        assert (await second.ask(ecr())).result == 2001


async def test_a_connection_that_cannot_be_accepted_is_counted_and_waits():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with running() as setup:
        with socket.socket() as client:
            client.setblocking(False)
            gc.collect()  # so that no descriptor gets free meanwhile
            free = os.dup(client.fileno())
            os.close(free)
            resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
            try:
                await asyncio.get_running_loop().sock_connect(client, setup.address)
                await until(lambda: setup.counts.errors["accept_failed"])
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            (reason,) = {fields["reason"] for event, fields in setup.reported if event == "accept_failed"}
            assert reason == "EMFILE"
            await until(lambda: len(setup.node.links) == 1)


async def test_a_flood_of_silent_connections_leaves_room():
    async with running(limits=Limits(unidentified_max=10)) as setup:
        flood = [await setup.connect() for _ in range(40)]
        good = await setup.open()
        for connection in flood[:30]:
            assert await connection.end() == []
        assert setup.counts.peers_refused["unidentified_max"] >= 30
        assert (await good.ask(ecr())).result == 2001


async def test_a_peer_that_left_comes_back_at_once():
    async with running() as setup:
        old = await setup.open()
        await old.ask(dpr())
        new = await setup.open()
        assert (await old.ask(ecr())).result == 2001
        assert (await new.ask(ecr())).result == 2001


# Reconfiguration


async def test_what_the_new_table_allows_stays():
    roaming = PeerSettings(label="roaming", realm="roaming")
    async with running(MME, roaming) as setup:
        stays, goes, silent = await setup.open(), await setup.open(cer("x.roaming", "roaming")), await setup.connect()
        setup.node.reconfigure([replace(MME, label="mme2", lenient=frozenset({"unknown_m"}))])
        request = await goes.read()
        assert (request.command, request.number(273)) == (282, 0)
        await goes.answer(request)
        assert await goes.end() == []
        assert (await stays.ask(ecr(extra=wire.avp(9999)))).result == 2001
        assert setup.counts.answers["mme2", "2001"] == 1
        await silent.open(cer("b.localdomain"))
        assert setup.node.connected() == {"mme2": 2}


async def test_sources_are_held_to_the_new_table_too():
    async with running() as setup:
        silent, opened = await setup.connect(), await setup.open()
        setup.node.reconfigure([replace(MME, sources=(ip_network("192.0.2.0/24"),))])
        assert await silent.end() == []
        assert (await opened.read()).command == 282
        assert await (await setup.connect()).end() == []


async def test_other_names_of_ours_mean_a_new_connection():
    async with running() as setup:
        connection = await setup.open()
        setup.node.reconfigure([MME], replace(IDENTITY, aliases=("alias",)), Limits(max_message_bytes=8192))
        assert (await connection.ask(ecr(extra=wire.avp(293, "alias")))).result == 2001
        assert setup.node.context.limits.max_message_bytes == 8192
        setup.node.reconfigure([MME], replace(IDENTITY, host="eir2.localdomain"))
        request = await connection.read()
        assert (request.command, request.number(273), request.data(264)) == (282, 0, wire.EIR.encode())
        new = await setup.connect()
        assert (await new.open()).data(264) == b"eir2.localdomain"
        assert setup.node.identity.host == "eir2.localdomain"


async def test_rates_follow_the_table():
    async with running(replace(MME, rate_max=4.0)) as setup:
        connection = await setup.open()
        await connection.send(*[ecr()] * 10)
        assert [(await connection.read()).result for _ in range(10)].count(3004) >= 8
        setup.node.reconfigure([MME])
        await connection.send(*[ecr()] * 10)
        assert [(await connection.read()).result for _ in range(10)] == [2001] * 10
        setup.node.reconfigure([MME], limits=Limits(rate_max=4.0))
        other = await setup.open(cer("b.localdomain"))
        for each in (connection, other):
            await each.send(*[ecr()] * 10)
        results = [(await each.read()).result for each in (connection, other) for _ in range(10)]
        assert results.count(2001) <= 2
        assert setup.counts.shed["mme", "rate_max_all"] == results.count(3004)


async def test_the_overload_answer_is_configurable():
    async with running(replace(MME, rate_max=4.0), overload=WHITE, application=lambda _: Reply(5012)) as setup:
        connection = await setup.open()
        await connection.send(*[ecr()] * 5)
        assert [(await connection.read()).result for _ in range(5)] == [5012, *[2001] * 4]


# In and out of service


async def test_disable_and_enable():
    async with running() as setup:
        connection = await setup.open()
        setup.node.disable("mme")
        request = await connection.read()
        assert (request.command, request.number(273)) == (282, 0)
        await connection.answer(request)
        assert await connection.end() == []
        await until(lambda: setup.node.status()[0].state == "disabled")
        refused = await setup.connect()
        await refused.send(cer())
        (cea,) = await refused.end()
        assert (cea.result, cea.error) == (3010, True)
        setup.node.enable("mme")
        await setup.open()


async def test_a_disabled_peer_is_not_connected_to():
    async with Listener() as listener:
        peer = replace(MME, host=wire.HOST, connect=f"tcp://127.0.0.1:{listener.port}", reconnect_after_s=0.02)
        async with running(peer) as setup:
            connection = await listener.accept()
            await connection.answer(await connection.read(), extra=wire.VSAI)
            await connection.ask(dwr())
            setup.node.disable("mme")
            request = await connection.read()
            await connection.answer(request)
            assert await connection.end() == []
            await connection.close()
            setup.node.enable("mme")
            again = await listener.accept()
            assert (await again.read()).command == 257
            assert len(listener.made) == 2


async def test_attempts_come_after_tc_and_its_jitter(monkeypatch):
    """RFC 6733 2.1: nodes that lost the same agent do not all come back to it in the same moment."""
    loop, clock, waits = asyncio.get_running_loop(), Clock(), []
    call_later = loop.call_later

    def recorded(delay, *what, **context):
        if 500 < delay < 2000:
            waits.append(delay)
        return call_later(delay, *what, **context)

    monkeypatch.setattr(loop, "call_later", recorded)
    async with Listener() as listener:
        peer = replace(MME, host=wire.HOST, connect=f"tcp://127.0.0.1:{listener.port}", reconnect_after_s=1000)
        async with running(peer):
            for attempt in range(1, 9):
                await (await listener.accept()).close()
                await until(lambda attempt=attempt: len(waits) == attempt)
                clock.forward(waits[-1])
    assert all(900 <= each <= 1100 for each in waits)
    assert len(set(waits)) == 8


def test_watchdogs_have_two_seconds_of_jitter():
    drawn = [watchdog_jitter() for _ in range(1000)]
    assert -2 <= min(drawn) < -1.8
    assert 1.8 < max(drawn) <= 2


async def test_attempts_that_fail_are_repeated():
    async with Listener() as listener:
        port = listener.port
    peer = replace(MME, host=wire.HOST, connect=f"tcp://127.0.0.1:{port}", reconnect_after_s=0.02)
    async with running(peer) as setup:
        await until(lambda: len([event for event, _ in setup.reported if event == "connect_failed"]) > 2)
        # Meanwhile the peer may connect to us, and then nothing is attempted any more.
        connection = await setup.open()
        failed = len(setup.reported)
        assert (await connection.ask(ecr())).result == 2001
        assert len([event for event, _ in setup.reported[failed:] if event == "connect_failed"]) <= 1
        (row,) = setup.node.status()
        assert (row.direction, row.last_error) == ("in", None)
        await connection.close()
        await until(lambda: setup.node.status()[0].address is None)
        (row,) = setup.node.status()
        assert (row.state, row.direction) == ("down", "out")
        assert time.time() - 5 < row.last_seen < time.time() + 1
        await until(lambda: "Connect" in (setup.node.status()[0].last_error or ""))


async def test_after_a_cea_that_refuses_us_its_own_connection_has_its_time():
    async with Listener() as listener:
        peer = replace(MME, host=wire.HOST, connect=f"tcp://127.0.0.1:{listener.port}", reconnect_after_s=0.02)
        async with running(peer) as setup:
            for refusals in (1, 2):
                again = await listener.accept()
                await again.answer(await again.read(), code=4003)  # that may soon be over: after Tc
                await again.close()
                assert len(listener.made) == refusals
            refused = await listener.accept()
            await refused.answer(await refused.read(), code=5010)
            assert await refused.end() == []
            (_, told), *_ = [(event, told) for event, told in setup.reported if told.get("reason") == "cea_result"]
            assert (told["entry"], told["address"]) == ("mme", f"127.0.0.1:{listener.port}")
            assert "5010" in told["detail"]
            assert "leave out connect" in told["setting"]
            await asyncio.sleep(0.3)
            assert len(listener.made) == 3
            await setup.open()  # its own, meanwhile
            (row,) = setup.node.status()
            assert row.direction == "in"
    async with Listener() as listener:
        peer = replace(peer, connect=f"tcp://127.0.0.1:{listener.port}")
        async with running(peer, stay_away_s=0.3):
            refused = await listener.accept()
            await refused.answer(await refused.read(), code=5010)
            await refused.close()
            begun = time.monotonic()
            await (await listener.accept()).read()
            assert time.monotonic() - begun > 0.2


async def test_a_peer_that_would_refuse_us_is_left_to_connect_by_itself():
    """It shows no S13 in its CER: our own CER would get 5010, after which freeDiameter gives us up."""
    async with Listener() as listener:
        connect = f"tcp://127.0.0.1:{listener.port}"
        async with running(replace(MME, host=wire.HOST, connect=connect, lenient=frozenset({"applications"}))) as setup:
            await setup.open(cer(app=b""))
            setup.node.disable("mme")
            request = await setup.made[-1].read()
            await setup.made[-1].answer(request)
            assert await setup.made[-1].end() == []
            setup.node.enable("mme")
            await asyncio.sleep(0.2)
            assert listener.made == []
            await setup.open(cer(app=b""))


async def test_a_peer_whose_cer_shows_no_s13_is_left_to_connect_by_itself():
    """Its CER is rejected, so that it comes again; a CER of ours would get 5010, after which freeDiameter gives us up."""
    async with Listener() as listener, Listener() as other:
        connect, again = (f"tcp://127.0.0.1:{each.port}" for each in (listener, other))
        peer = replace(MME, host=wire.HOST, connect=connect, reconnect_after_s=0.01)
        beside = PeerSettings(label="beside", host="beside.example", connect=again, reconnect_after_s=0.01)
        async with running(peer, beside, dials=False) as setup:
            assert (await (await setup.connect()).ask(cer(app=b""))).result == 5010
            setup.node.dial()
            for _ in range(10):
                attempt = await other.accept()
                await attempt.answer(await attempt.read(), code=4003)
            assert listener.made == []
            setup.node.reconfigure([replace(peer, lenient=frozenset({"applications"})), beside])
            await setup.open(cer(app=b""))
            assert listener.made == []


async def test_a_peer_whose_cea_shows_no_s13_is_left_to_connect_by_itself():
    async with Listener() as listener, Listener() as other:
        connect, again = (f"tcp://127.0.0.1:{each.port}" for each in (listener, other))
        peer = replace(MME, host=wire.HOST, connect=connect, reconnect_after_s=0.01)
        beside = PeerSettings(label="beside", host="beside.example", connect=again, reconnect_after_s=0.01)
        async with running(peer, beside):
            attempt = await listener.accept()
            await attempt.answer(await attempt.read(), extra=b"")
            assert await attempt.end() == []
            for _ in range(10):
                attempt = await other.accept()
                await attempt.answer(await attempt.read(), code=4003)
            assert len(listener.made) == 1


async def test_every_refusal_is_the_last_error_of_its_entry():
    async with running(replace(MME, label="strict", host="strict.example", realm=None), MME) as setup:

        def errors():
            return {row.label: row.last_error for row in setup.node.status()}

        refused = await setup.connect()
        await refused.ask(cer("strict.example", app=b""))
        await until(lambda: "no application" in (errors()["strict"] or ""))
        assert errors()["mme"] is None
        await setup.open()
        late = await setup.connect()
        await late.ask(cer("second.localdomain", app=b""))
        await until(lambda: "no application" in (errors()["mme"] or ""))  # beside the one that is open
        assert set(setup.node.refusals()) == {"strict", "mme"}
        await setup.open(cer("second.localdomain"))
        assert errors()["mme"] is None


@pytest.mark.parametrize("extra", [b"", wire.avp(9999)], ids=["well-formed", "malformed"])
async def test_a_stranger_is_no_error_of_the_entry_that_comes_nearest(extra):
    """The log names that entry; the peer itself has done nothing."""
    near = replace(MME, label="near", host="near.example")
    async with running(near) as setup:
        stranger = await setup.connect()
        await stranger.send(cer("near.example", "other.example", extra=extra))
        await stranger.end()
        event, told = setup.reported[-1]
        assert (event, told["entry"]) == ("peer_refused", "near")
        assert [(row.label, row.last_error) for row in setup.node.status()] == [("near", None)]
        assert setup.node.refusals() == {}


async def test_every_peer_that_is_refused_is_logged_with_its_address_and_entry():
    table = [
        replace(MME, label="mme1", host="mme1.example"), replace(MME, label="far", realm="far.example", sources=(ip_network("192.0.2.0/24"),)),
        replace(MME, label="strict", host="strict.example", realm=None),
    ]  # fmt: skip
    refused = {
        ("mme1.example", "other.example", b""): ("unknown_peer", "mme1"), ("x", "far.example", b""): ("unknown_peer", "far"),
        ("nobody", "nowhere", b""): ("unknown_peer", None), ("strict.example", "any", wire.u32(299, 1)): ("no_common_security", "strict"),
    }  # fmt: skip
    async with running(*table) as setup:
        for (host, realm, extra), (reason, entry) in refused.items():
            connection = await setup.connect()
            here, port = connection.writer.get_extra_info("sockname")
            await connection.send(cer(host, realm, extra=extra))
            await connection.end()
            event, told = setup.reported[-1]
            shown = event, told["reason"], told.get("entry"), told["address"], told["host"], told["realm"]
            assert shown == ("peer_refused", reason, entry, f"{here}:{port}", host, realm)
        details = [
            told["detail"].partition("; ")[2] for _, told in setup.reported if told.get("reason") == "unknown_peer"
        ]
        assert details == ["mme1 would, but for its realm", "far would, but for its from", ""]
        connection = await setup.open(cer("strict.example", "any"))
        await connection.ask(ecr(extra=wire.avp(9999), host=wire.avp(264, "behind.example")))
        event, told = setup.reported[-1]
        assert (event, told["peer"], told["host"]) == ("request_refused", "strict", "behind.example")


async def test_a_reload_that_takes_a_leniency_from_a_connected_peer_is_logged():
    mme = replace(MME, lenient=frozenset({"applications", "destination"}))
    async with running(mme) as setup:
        connection = await setup.open(cer(app=b""))
        port = connection.writer.get_extra_info("sockname")[1]
        for lenient, taken in (
            ({"destination"}, "applications"),
            ({"destination"}, None),
            (set(), "destination"),
            ({"applications"}, None),
        ):
            before = len(setup.reported)
            setup.node.reconfigure([replace(mme, lenient=frozenset(lenient))])
            told = [
                (event, fields["peer"], fields["lenient"], fields["connected"])
                for event, fields in setup.reported[before:]
            ]
            assert told == ([("lenience_taken", "mme", taken, f"{wire.HOST} at 127.0.0.1:{port}")] if taken else [])
        assert (await connection.ask(ecr())).result == 2001


# TLS


def contexts():
    """What a node listens with, a function that gives contexts of clients whose authority it knows, and an authority that it does not."""
    authority, stranger = trustme.CA(), trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.verify_mode = ssl.CERT_REQUIRED
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(server)

    def client(name=None, issuer=authority):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        authority.configure_trust(context)
        if name is not None:
            issuer.issue_cert(name).configure_cert(context)
        return context

    return (
        Tls(server, client(wire.EIR), server, server, Certificate((wire.EIR,), datetime.now(UTC), datetime.now(UTC))),
        client,
        stranger,
    )


async def test_tls_before_the_cer():
    server, client, stranger = contexts()
    async with running(url="tls://127.0.0.1:0", tls=server) as setup:
        connection = await setup.connect(ssl=client(wire.HOST))
        await connection.open(cer(extra=wire.u32(299, 1)))  # row 39: ignored over TLS
        assert (await connection.ask(ecr())).result == 2001
        impostor = await setup.connect(ssl=client("other.localdomain"))
        await impostor.send(cer("mme2.localdomain"))
        (cea,) = await impostor.end()
        assert (cea.result, cea.error) == (3010, True)
        assert "tls_names" in [fields.get("setting") for _, fields in setup.reported]
        for context in (client(), client(wire.HOST, stranger)):
            with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
                await (await setup.connect(ssl=context)).open()
        assert (await connection.ask(ecr())).result == 2001


async def test_plain_text_at_a_tls_listener():
    server, _, _ = contexts()
    async with running(url="tls://127.0.0.1:0", tls=server) as setup:
        connection = await setup.connect()
        await connection.send(uncounted=cer())
        connection.writer.write_eof()
        async with asyncio.timeout(PATIENCE_S):
            await connection.reader.read()
        assert setup.node.status()[0].state == "down"
        ((event, told),) = setup.reported
        assert (event, told["reason"]) == ("peer_refused", "tls_handshake")
        assert "does not send TLS" in told["detail"]


async def test_a_listener_without_mutual_authentication_takes_nobody():
    server, client, _ = contexts()
    server.accepting.verify_mode = ssl.CERT_NONE
    async with running(url="tls://127.0.0.1:0", tls=server) as setup:
        connection = await setup.connect(ssl=client())
        await connection.send(cer())
        assert [cea.result for cea in await connection.end()] == [3010]


async def test_we_connect_over_tls():
    server, _, _ = contexts()
    made = asyncio.Queue()
    async with accepting(lambda *ends: made.put_nowait(Connection(*ends)), tls=server.accepting) as (_, port):
        peer = replace(MME, host=wire.HOST, connect=f"tls://127.0.0.1:{port}", tls_names=("127.0.0.1",))
        async with running(peer, tls=server) as setup:
            connection = await made.get()
            await connection.answer(await connection.read(), extra=wire.VSAI)
            # The listener's certificate is for an IP address, and no DNS name of it is the peer's.
            assert await connection.end() == []
            assert setup.counts.peers_refused == {"tls_name": 1}


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_handshake_that_the_other_end_ends_is_logged_in_both_directions(version):
    ours, _, stranger = contexts()
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.maximum_version, theirs.verify_mode = version, ssl.CERT_REQUIRED
    stranger.configure_trust(theirs)
    stranger.issue_cert(wire.HOST).configure_cert(theirs)
    stranger.configure_trust(ours.connecting)
    ours.connecting.check_hostname = False
    async with accepting(lambda *_: None, tls=theirs) as (_, port):
        peer = replace(MME, host=wire.HOST, connect=f"tls://127.0.0.1:{port}")
        async with running(peer, url="tls://127.0.0.1:0", tls=ours) as setup:
            await until(lambda: setup.node.status()[0].last_error)
            (event, told) = setup.reported.pop()
            assert (event, told["peer"], told["address"].removeprefix("tls://")) == (
                "connect_failed",
                "mme",
                f"127.0.0.1:{port}",
            )
            assert told["detail"] == setup.node.status()[0].last_error
            assert told["detail"].startswith("the other end ended the TLS handshake")
            distrusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            distrusting.maximum_version = version
            with pytest.raises(ssl.SSLError):
                await setup.connect(ssl=distrusting)
            await until(lambda: setup.reported)
            ((event, told),) = setup.reported
            assert (event, told["reason"], told["address"].partition(":")[0]) == (
                "peer_refused",
                "tls_handshake",
                "127.0.0.1",
            )
            assert told["detail"].startswith("the other end ended the TLS handshake")


def test_errors_of_openssl_in_a_handshake():
    alert, chain, plain = ssl.SSLError(), ssl.SSLCertVerificationError(), ssl.SSLError()
    alert.reason, chain.verify_message, plain.reason = (
        "TLSV1_ALERT_UNKNOWN_CA",
        "unable to get issuer certificate",
        "WRONG_VERSION_NUMBER",
    )
    assert fault_text(alert, secure=True).startswith("the other end ended the TLS handshake (tlsv1 alert unknown ca)")
    assert fault_text(chain, secure=True) == "unable to get issuer certificate"
    assert "does not send TLS" in fault_text(plain, secure=True)
    assert fault_text(ConnectionRefusedError(111, "Connection refused"), secure=True) == "Connection refused"
    assert fault_text(ConnectionResetError(), secure=False) == "ConnectionResetError"


# Draining


async def test_drain_does_not_wait_for_ever():
    async with running(limits=Limits(close_after_dpa_s=3600)) as setup:
        await setup.open()
        async with asyncio.timeout(PATIENCE_S):
            await setup.node.drain(0.1)
        assert [row.state for row in setup.node.status()] == ["down"]
        await setup.node.drain(0.1)


async def test_drain_ends_attempts():
    async with Listener() as listener:
        peer = replace(MME, host=wire.HOST, connect=f"tcp://127.0.0.1:{listener.port}")
        async with running(peer) as setup:
            connection = await listener.accept()
            await setup.node.drain(1)
            assert [message.command for message in await connection.end()] == [257]


# Fairness


class Transport(asyncio.Transport):
    """One that tells what is done to it; the other end takes nothing."""

    def __init__(self):
        super().__init__({"peername": ("127.0.0.1", 4000), "sockname": ("127.0.0.1", 3868)})
        self.written, self.done = b"", []

    def write(self, data):
        self.written += data

    def set_write_buffer_limits(self, high=None, low=None):
        pass

    def is_closing(self):
        return bool({"close", "abort"} & set(self.done))

    def __getattribute__(self, name):
        if name in {"close", "abort", "pause_reading", "resume_reading"}:
            return lambda: self.done.append(name)
        return super().__getattribute__(name)


async def test_a_peer_that_reads_a_little_at_the_end_is_not_waited_for_for_ever():
    async with running(limits=Limits(stalled_write_s=0.02)) as setup:
        link, transport = DiameterConnection(setup.node, asyncio.get_running_loop()), Transport()
        link.connection_made(transport)
        link.data_received(cer())
        assert setup.node.connected() == {"mme": 1}
        link.pause_writing()
        assert transport.done == ["pause_reading"]
        link.peer.drop("test", 0.0)
        link.pump()
        assert transport.done[-1] == "close"
        link.resume_writing()
        await until(lambda: transport.done[-1] == "abort")
        link.connection_lost(None)


async def test_a_connection_with_much_input_lets_the_others_be_read_first():
    """One large message, so that nothing else stops the reading."""
    async with running(limits=Limits(max_message_bytes=4 * REST_BYTES)) as setup:
        link, transport = DiameterConnection(setup.node, asyncio.get_running_loop()), Transport()
        link.connection_made(transport)
        link.data_received(cer())
        message = ecr(extra=wire.avp(999, bytes(2 * REST_BYTES), flags=0))
        link.data_received(message[:REST_BYTES])
        rests = link.wants_bytes()
        link.set_reading()
        await asyncio.sleep(0)
        found = [rests, *transport.done, link.wants_bytes()]
        link.connection_lost(None)
    assert found == [False, "pause_reading", "resume_reading", True]


async def test_connections_are_read_into_one_place_and_keep_what_is_theirs():
    async with running() as setup:
        links = [DiameterConnection(setup.node, asyncio.get_running_loop()) for _ in range(2)]
        for link in links:
            link.connection_made(Transport())
        halves = [(request[:50], request[50:]) for request in (cer(host="mme1.example"), cer(host="mme2.example"))]
        for parts in zip(*halves, strict=True):
            for link, part in zip(links, parts, strict=True):
                link.get_buffer(-1)[: len(part)] = part
                link.buffer_updated(len(part))
        assert [link.peer.capabilities.host for link in links] == ["mme1.example", "mme2.example"]
        for link in links:
            link.connection_lost(None)


async def test_loops_of_two_threads_read_into_two_places():
    """An application may run a node in one thread and clients in others."""

    async def place():
        return DiameterConnection(SimpleNamespace(), asyncio.get_running_loop()).get_buffer(-1)

    here, there = await place(), await asyncio.to_thread(asyncio.run, place())
    here[:2], there[:2] = b"me", b"it"
    assert (bytes(here[:2]), bytes(there[:2])) == (b"me", b"it")


async def test_what_waited_for_the_admission_is_answered_however_much_it_is():
    class Later(Admission):
        """Decides later, as after an election."""

        def arrived(self, claim):
            for order in super().arrived(claim):
                asyncio.get_running_loop().call_later(0.02, setup.node._obey, order)
            return ()

    async with running(limits=Limits(turn_messages=8)) as setup:
        setup.node._admission = Later()
        connection = await setup.connect()
        await connection.send(cer(), *[ecr()] * 100)
        assert [(await connection.read()).command for _ in range(101)] == [257, *[324] * 100]


async def test_what_came_before_the_end_is_answered():
    async with running(limits=Limits(turn_messages=8)) as setup:
        connection = await setup.open()
        await connection.send(*[ecr()] * 1000)
        connection.writer.write_eof()
        assert len(await connection.end()) == 1000


def buffers():
    """What the kernel takes of unread answers at most."""
    return int(Path("/proc/sys/net/ipv4/tcp_wmem").read_text().split()[2]) + 65_536


async def test_nothing_is_done_for_a_peer_that_does_not_read():
    limits = Limits(write_buffer_bytes=4096, stalled_write_s=0.5, turn_messages=8)
    asked = []
    async with running(limits=limits, application=lambda request: asked.append(request.hop_by_hop) or WHITE) as setup:
        with socket.socket() as raw:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            raw.connect(setup.address)
            raw.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(raw, cer())
            with suppress(ConnectionError):
                while True:  # until it is dropped
                    await loop.sock_sendall(raw, ecr() * 100)
        await until(lambda: setup.node.connected() == {"mme": 0})
        assert setup.counts.errors["stalled_write"] == 1
        # What it is answered fits into the kernel's buffers and ours; what it asks beyond is not looked at.
        answer = 160
        assert len(asked) * answer < 4096 + 8 * answer + buffers()


async def test_the_loud_one_does_not_keep_others_waiting():
    async with running(limits=Limits(turn_messages=8)) as setup:
        loud, quiet = await setup.open(), await setup.open(cer("quiet.localdomain"))
        order = []

        async def read(connection, name, number):
            for _ in range(number):
                await connection.read()
                order.append(name)

        await loud.send(*[ecr()] * 2000)
        await quiet.send(ecr())
        await asyncio.gather(read(loud, "loud", 2000), read(quiet, "quiet", 1))
        assert order.index("quiet") < 1900


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_who_asks_during_a_turn_is_answered_before_the_next_one(loop):
    async def asked():
        order = []

        def answer(request):
            order.append(request.hop_by_hop)
            if len(order) == 1:
                os.write(quiet.writer.get_extra_info("socket").fileno(), ecr(ids=(9, 9)))
            return WHITE

        async with running(limits=Limits(turn_messages=1), application=answer) as setup:
            loud, quiet = await setup.open(), await setup.open(cer("quiet.localdomain"))
            await loud.send(*[ecr(ids=(number, number)) for number in (1, 2, 3)])
            await quiet.read()
            for _ in range(3):
                await loud.read()
        return order

    with asyncio.Runner(loop_factory=loop) as runner:
        assert runner.run(asked()) == [1, 9, 2, 3]

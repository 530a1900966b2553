"""The asking side against a node of ours, and against answers that no node of ours gives (row 50 of the conformance table)."""

import asyncio
import ssl
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime

import pytest
import trustme
from simulated import wire
from simulated.tcp_server import accepting

from eir.errors import EirError
from eir.interfaces.s13.application import S13
from eir.wire.diameter.client import connect
from eir.wire.diameter.message import Reply
from eir.wire.diameter.node import Identity, Limits, Node, PeerSettings
from eir.wire.peers.counts import Counts
from eir.wire.transport.tls import Certificate, Tls

WHITE = Reply(2001, avps=wire.u32(277, 1) + wire.u32(1445, 0, wire.TGPP))
IDENTITY = Identity(host=wire.EIR, realm=wire.REALM, origin_state_id=77)
AS = {"origin_host": wire.HOST, "origin_realm": wire.REALM, "timeout_s": 2.0}


@asynccontextmanager
async def node(url="tcp://127.0.0.1:0", tls=None, **kwargs):
    made = Node(
        IDENTITY, [PeerSettings(label="mme", realm=wire.REALM, **kwargs)], Limits(), replace(S13, answer=lambda _: WHITE), counts=Counts(),
        report=lambda *_, **__: None, tls=tls,
    )  # fmt: skip
    tasks = asyncio.all_tasks()
    try:
        yield await made.listen(url)
    finally:
        await made.drain(1)
    assert asyncio.all_tasks() == tasks


@asynccontextmanager
async def stranger(respond):
    """A server that answers each message by what `respond` makes of it, or not at all."""

    async def serve(reader, writer):
        try:
            while True:
                head = await reader.readexactly(4)
                octets = head + await reader.readexactly(int.from_bytes(head[1:]) - 4)
                writer.write(respond(wire.Message(octets)))
        except asyncio.IncompleteReadError:
            writer.close()

    async with accepting(serve) as address:
        yield address


def courteous(answers):
    """Responds to base commands as one should, and to an ECR by these AVPs (and flags)."""

    def respond(message):
        if message.command != 324:
            return wire.answer_to(message, extra=wire.VSAI if message.command == 257 else b"", host=wire.EIR)
        flags, avps = answers
        return wire.message(324, avps, flags, wire.APP, (message.hop_by_hop, message.end_to_end))

    return respond


async def test_ask():
    counts = Counts()
    async with node() as (host, port):
        client = await connect(host, port, S13, **AS, counts=counts)
        assert client.peer.realm == wire.REALM
        avps = b"".join([wire.VSAI, wire.u32(277, 1), wire.avp(283, wire.REALM), wire.terminal()])
        answers = await asyncio.gather(*(client.request(324, avps) for _ in range(50)))
        assert [answer.result_codes for answer in answers] == [[2001]] * 50
        assert len({answer.first.get(263).data for answer in answers}) == 50, "each has a session of its own"
        assert not client.waiting
        await client.close()
        with pytest.raises(EirError, match="closed"):
            await client.request(324, avps)
        await client.close()
    assert counts.messages["server", "ME-Identity-Check", "answer", "in"] == 50


@pytest.mark.parametrize(
    ("flags", "avps", "codes", "experimental"),
    [
        (0x20, wire.u32(268, 3006) + wire.avp(292, "aaa://elsewhere"), [3006], []),
        (0x20, wire.u32(268, 3002), [3002], []),
        (
            0,
            wire.u32(268, 2001) + wire.avp(297, wire.u32(266, wire.TGPP) + wire.u32(298, 5422)),
            [2001],
            [(wire.TGPP, 5422)],
        ),
        (0, wire.u32(268, 2001) * 2, [2001, 2001], []),
        (0, b"", [], []),
        (0, wire.avp(9999, b"", length=3), [], []),
    ],
)
async def test_strange_answers_are_reported_not_followed(flags, avps, codes, experimental):
    async with stranger(courteous((flags, avps))) as (host, port):
        client = await connect(host, port, S13, **AS)
        answer = await client.request(324, b"")
        assert (answer.is_error, answer.result_codes, answer.experimental_results) == (bool(flags), codes, experimental)
        await client.close()


async def test_no_answer():
    def mute(message):
        return b"" if message.command == 324 else courteous(None)(message)

    async with stranger(mute) as (host, port):
        client = await connect(host, port, S13, **AS)
        with pytest.raises(TimeoutError):
            await client.request(324, b"", timeout_s=0.05)
        assert not client.waiting
        await client.close()


async def test_an_answer_with_another_id_is_nobodys():
    def confused(message):
        if message.command != 324:
            return courteous(None)(message)
        return wire.message(324, wire.u32(268, 2001), 0, wire.APP, (message.hop_by_hop ^ 1, 0))

    async with stranger(confused) as (host, port):
        client = await connect(host, port, S13, **AS)
        with pytest.raises(TimeoutError):
            await client.request(324, b"", timeout_s=0.05)
        await client.close()


async def test_the_other_end_closes():
    def hang_up(message):
        return b"\1\0\0\0" if message.command == 324 else courteous(None)(message)

    async with stranger(hang_up) as (host, port):
        client = await connect(host, port, S13, **AS)
        with pytest.raises(EirError, match="before the answer"):
            await client.request(324, b"")
        await client.close()


async def test_a_request_to_the_client_is_refused():
    asked = wire.ecr(ids=(9, 9))
    answers = []

    def curious(message):
        if not message.is_request:
            answers.append((message.result, message.error))
            return b""
        return courteous((0, wire.u32(268, 2001)))(message) + (asked if message.command == 257 else b"")

    async with stranger(curious) as (host, port):
        client = await connect(host, port, S13, **AS)
        await wire.until(lambda: answers)
        await client.close()
    assert answers == [(3001, True)]


async def test_connections_that_come_to_nothing():
    async with node() as (host, port):
        with pytest.raises(EirError, match="Result-Code 3010"):
            await connect(host, port, S13, **(AS | {"origin_realm": "elsewhere"}))
    with pytest.raises(EirError, match="cannot connect"):
        await connect(host, port, S13, **AS)
    async with stranger(lambda _: b"") as (host, port):
        with pytest.raises(EirError, match=r"did not answer within 0\.1 s"):
            await connect(host, port, S13, **(AS | {"timeout_s": 0.1}))
    async with stranger(lambda _: b"HTTP/1.1 400 Bad Request\r\n\r\n") as (host, port):
        with pytest.raises(EirError, match="message_too_long"):
            await connect(host, port, S13, **AS)


async def test_tls():
    authority = trustme.CA()
    mine, yours = authority.issue_cert(wire.HOST), authority.issue_cert("127.0.0.1")
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    server.verify_mode = ssl.CERT_REQUIRED
    yours.configure_cert(server)
    mine.configure_cert(client)
    for context in (server, client):
        authority.configure_trust(context)
    tls = Tls(server, client, server, server, Certificate((), datetime.now(UTC), datetime.now(UTC)))
    async with node("tls://127.0.0.1:0", tls) as (host, port):
        made = await connect(host, port, S13, **AS, tls=client)
        assert (await made.request(324, wire.avp(283, wire.REALM))).result_codes == [5005]
        await made.close()
        # The certificate is another's (conformance table, row 36).
        with pytest.raises(EirError, match="Result-Code 3010"):
            await connect(host, port, S13, **(AS | {"origin_host": "mme2.localdomain"}), tls=client)
    async with node("tls://127.0.0.1:0", tls, tls_names=(wire.HOST,)) as (host, port):
        made = await connect(host, port, S13, **(AS | {"origin_host": "mme2.localdomain"}), tls=client)
        await made.close()

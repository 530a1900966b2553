"""One client that sends faster than it is served: the memory that it takes, and the notices that it causes, are limited."""

import asyncio
import socket
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from types import SimpleNamespace

from clock import Clock
from simulated.node import until_async
from simulated.osmo_wire import CHECK, ID_RESP, PING, PONG, End, ipa, is_gsup

from eir.checks.checker import Checker
from eir.checks.settings import PolicySettings
from eir.interfaces.gsup.ipa import id_resp
from eir.interfaces.gsup.link import AHEAD_BYTES, NAMES_MAX
from eir.interfaces.gsup.server import GsupServer
from eir.interfaces.gsup.settings import GsupSettings
from eir.lists.images.index import Index
from eir.wire.peers.counts import Counts
from eir.wire.peers.rate import RateLimits
from eir.wire.peers.settings import Limits, PeerSettings

READ_BYTES = 1 << 18
"""Most bytes that the event loop reads at once."""


@asynccontextmanager
async def serving(report=lambda *_, **__: None, **settings):
    """A server with these settings of GSUP, and a function that connects a client of it."""
    checker = Checker(PolicySettings(rules=()), Index({}), now=datetime.now(UTC))
    peers, limits = (PeerSettings(label="msc"),), Limits()
    context = SimpleNamespace(
        shared=SimpleNamespace(peers=peers, limits=limits, overload_answer=None), checker=checker, counts=Counts(),
        rates=RateLimits(limits), report=report,
    )  # fmt: skip

    class Named(GsupServer):
        """Collects the names of clients that it has handled."""

        def _doubt(self, newest):
            self.told.append(newest.name)
            super()._doubt(newest)

    server = Named(GsupSettings(**settings), context)
    server.told = []
    tasks, clients = [], []

    async def connect():
        with socket.create_server(("127.0.0.1", 0)) as listener:
            client = await End.to(listener.getsockname()[1])
            accepted, _ = listener.accept()
        accepted.setblocking(False)
        tasks.append(asyncio.create_task(server.serve(accepted)))
        clients.append(client)
        return client

    try:
        yield server, connect
    finally:
        for client in clients:
            client.close()
        await asyncio.gather(*tasks)
        await server.drain(1)


async def answered(client):
    """Wait until all that the client sent so far was handled."""
    count = client.found.count(PONG)
    await client.send(PING).until(lambda found: found.count(PONG) > count)


async def test_a_client_that_sends_faster_than_it_is_served_takes_a_limited_amount_of_memory():
    count = 150_000
    async with serving() as (server, connect):
        fast = await connect()
        reading = asyncio.create_task(fast.until(lambda found: sum(map(is_gsup, found[-1:])) and len(found) > count))
        fast.send(CHECK * count)
        most = 0
        while not reading.done():
            most = max([most, *(link.frames.unread for link in server.links.values())])
            await asyncio.sleep(0)
        assert await reading
        assert most <= AHEAD_BYTES + READ_BYTES
        assert len(CHECK) * count > 10 * (AHEAD_BYTES + READ_BYTES)


async def test_a_name_that_is_repeated_is_handled_once():
    async with serving() as (server, connect):
        other, client = await connect(), await connect()
        await answered(other.send(ID_RESP))
        for _ in range(100):
            client.send(ID_RESP)
        await answered(client)
        await answered(other)
        assert server.told == ["MSC-1"] * 2
        assert other.found.count(PING) == 1


async def test_a_client_without_a_name_is_open_with_its_first_message():
    events = []
    async with serving(lambda event, **_: events.append(event)) as (_, connect):
        client = await connect()
        await answered(client)
        assert "peer_open" not in events
        await answered(client.send(ipa(0xEE, b"\x05\x12x") * 2))
        assert events.count("peer_open") == 1
        await answered(client.send(ID_RESP))
        assert events.count("peer_open") == 1


async def test_a_client_of_many_names_is_sent_away():
    async with serving() as (server, connect):
        client = await connect()
        client.send(*(id_resp(f"MSC-{number}") for number in range(NAMES_MAX)))
        await answered(client)
        client.send(id_resp("MSC-1"))
        assert not await client.until(lambda _: False)
        assert server.told == [f"MSC-{number}" for number in range(NAMES_MAX)]
        await until_async(lambda: server.errors == {"names": 1})


async def test_names_that_are_repeated_over_new_connections_keep_no_dead_one_alive():
    async with serving() as (server, connect):
        clock = Clock()
        dead = await connect()
        dead.send(ID_RESP)
        await until_async(lambda: server.told)
        for _ in range(6):
            clock.forward(server.limits.duplicate_probe_s / 2)
            await answered((await connect()).send(ID_RESP))
        assert not await dead.until(lambda _: False)
        assert set(server.errors) == {"duplicate_silent"}


async def test_frames_of_every_size_pass_whatever_the_reads():
    """The pieces in which bytes come change nothing."""
    async with serving() as (_, connect):
        client = await connect()
        for size in (1, 7, 1000, 60_000):
            octets = (ipa(0xEE, b"\x05\x12" + bytes(size)) + PING) * 3
            for at in range(0, len(octets), 4099):
                client.send(octets[at : at + 4099])
                await asyncio.sleep(0)
        assert await client.until(lambda found: found.count(PONG) == 12)

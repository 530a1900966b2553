"""A running node among hostile peers, in seconds; `scripts/soak fuzz`, `flap`, `attacks` and `overload` do the same for minutes, with figures.

Besides them, floods and slowness of every kind: whatever comes, a good peer is served, nothing is left afterwards, nothing has grown.
"""

import asyncio
import contextlib
import os
import re
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from simulated.hostile import Steady, accounts, at_rest, beside, descriptors, memory_mb, seconds_of_processor, settled
from simulated.node import LISTED, until_async
from simulated.patience import PATIENCE_S, PROGRAM_S
from simulated.wire import REALM, SESSION, TGPP, Connection, Message, avp, cer, dwr, ecr, message, u32

from eir.node.observe.control import ask as control
from eir.wire.peers.settings import Limits

SCRIPTS = Path(__file__).parents[3] / "scripts"


def soak(*arguments):
    """A part of scripts/soak in its short form; what it printed."""
    done = subprocess.run(
        [sys.executable, SCRIPTS / "soak", *map(str, arguments)], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
        timeout=PROGRAM_S, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.long
class TestSoak:
    def test_fuzz(self):
        said = soak("fuzz", "--messages", 3000, "--sessions", 75, "--seed", 5)
        assert said.startswith("seed 5\n")
        assert "3,000 fuzzed messages" in said
        assert "75 fuzzed sessions" in said

    @pytest.mark.parametrize("protocol", ["map", "gsup"])
    def test_fuzz_of_2g_and_3g(self, protocol):
        said = soak("fuzz", "--protocol", protocol, "--messages", 1500, "--sessions", 25, "--seed", 5)
        assert said.startswith("seed 5\n1,500 fuzzed messages")
        assert "25 fuzzed sessions" in said

    def test_flap(self):
        """An answer is late after 30 s here: shorter times are for a longer run on a quiet machine."""
        said = soak("flap", "--peers", 30, "--seconds", 2, "--arrivals", 101, "--late", 30)
        assert int(re.search(r"30 peers came ([\d,]+) times", said)[1].replace(",", "")) > 100

    def test_network(self):
        said = soak("network", "--turns", 13, "--mmes", 24, "--seed", 3)
        assert "'restart_redis': 1" in said
        assert "'kill_redis_that_rewrites': 1" in said
        assert "0 promises not kept" in said

    def test_attacks(self):
        """Every interface is flooded, alone and all at once, while processes are killed; latency and memory are for a longer run."""
        said = soak("attacks", "--quick", "--mmes", 16, "--seed", 3)
        assert "'kill_the_services': 2" in said
        assert "0 promises not kept" in said

    def test_overload(self):
        """Every answer is right, above the limit some are turned away, each peer is served; times are for a longer run."""
        said = soak("overload", "--quick")
        assert "at 10 times rate_max" in said
        assert "offered 10 times what a node can do" in said


@pytest.fixture
async def crowd():
    """Raw sockets by the hundred, closed at the end."""
    made = []

    async def connect(node, count=1, source=None):
        loop = asyncio.get_running_loop()
        fresh = []
        for _ in range(count):
            one = socket.socket()
            one.setblocking(False)
            if source:
                one.bind((source, 0))
            made.append(one)
            fresh.append(one)
        await asyncio.gather(*(loop.sock_connect(one, node.address) for one in fresh))
        return fresh

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 30_000) if hard != resource.RLIM_INFINITY else 30_000, hard))
    yield connect
    for one in made:
        one.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def loaded(site):
    site.load([LISTED])
    return site


async def gone(one):
    """Wait until the other side has closed."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(PATIENCE_S):
            while await loop.sock_recv(one, 65536):
                pass


@pytest.mark.long
async def test_thousands_of_connections(loaded, crowd):
    node = loaded.start(prefix=["env"])
    before, memory = at_rest(node), []
    for _ in range(2):  # the first flood also takes what the processes keep for the next one
        steady = Steady()
        async with beside(node, steady):
            flood = []
            for _ in range(10):
                flood += await crowd(node, 400)
            status = await asyncio.to_thread(node.status)
            assert status["peers"] == {"mme": 1}
            files = await asyncio.to_thread(descriptors, node.pid)
            assert files.total() < before[0].total() + Limits().source_connections_max + 20
        for one in flood:
            one.close()
        assert (steady.wrong, steady.waited_s < 30) == ([], True)
        await settled(node, before)
        memory.append(memory_mb(node.pid))
    # By the limit; where the machine is slow, by the CER timeout before a later one pushed it out.
    refused = sum(n for name, n in node.metrics().items() if name.startswith("eir_peers_refused_total{"))
    assert refused > 7800
    assert memory[1] - memory[0] < 10


async def test_a_flood_from_one_network_leaves_room_for_the_others(loaded, crowd):
    loaded.configure(limits={"connections_max": 60, "source_connections_max": 40, "source_unidentified_max": 120})
    node = loaded.start()
    loop = asyncio.get_running_loop()
    for number, one in enumerate(await crowd(node, 50, "127.0.1.1")):
        with contextlib.suppress(ConnectionError):
            await loop.sock_sendall(one, cer(f"mme{number}.localdomain"))  # all of them are known here, and too many
    await until_async(lambda: node.metrics().get("eir_peers_refused_total{reason=source_connections_max}") == 10)
    await until_async(lambda: node.status()["peers"] == {"mme": 40})
    for number, one in enumerate(await crowd(node, 30, "127.0.2.1")):
        with contextlib.suppress(ConnectionError):
            await loop.sock_sendall(one, cer(f"sgsn{number}.localdomain"))
    await until_async(lambda: node.status()["peers"] == {"mme": 60})
    await until_async(lambda: node.metrics().get("eir_peers_refused_total{reason=connections_max}") == 10)


async def test_silent_clients_are_limited(loaded, crowd):
    loaded.configure(limits={"unidentified_max": 6, "source_unidentified_max": 4})
    loaded.tune(Limits, cer_timeout_s=60)
    node = loaded.start()

    def silent():
        return [
            row["address"].partition(":")[0] for row in control(loaded.state, "peers") if row["state"] == "wait_cer"
        ]

    def refused(reason):
        return node.metrics().get(f"eir_peers_refused_total{{reason={reason}}}")

    await crowd(node, 30, "127.0.1.1")
    await until_async(lambda: refused("source_unidentified_max") == 26)  # all thirty have been accepted
    assert silent() == ["127.0.1.1"] * 4
    for number in range(30):
        await crowd(node, 1, f"127.0.{2 + number}.1")
    await until_async(lambda: refused("unidentified_max") == 28)
    assert len(silent()) == 6
    assert refused("source_unidentified_max") == 26


async def test_mmes_that_all_come_back_at_once_are_let_in(loaded, crowd):
    """As after an outage: 64 of one network, each with its CER as soon as it is connected."""
    node = loaded.start()
    loop = asyncio.get_running_loop()

    async def come(number):
        (one,) = await crowd(node, 1, "127.0.1.1")
        await loop.sock_sendall(one, cer(f"mme{number}.localdomain"))
        return Message(await loop.sock_recv(one, 4096)).result

    assert await asyncio.gather(*map(come, range(64))) == [2001] * 64
    assert node.lines("peer_refused") == []


@pytest.mark.long
async def test_who_takes_his_time_is_not_pushed_out_by_a_neighbours_flood(loaded, crowd):
    """A CER comes a round trip after the connection; a flood from the same network has come meanwhile."""
    loaded.configure(limits={"unidentified_max": 30, "source_unidentified_max": 20})
    loaded.tune(Limits, cer_timeout_s=60)
    node = loaded.start()
    loop = asyncio.get_running_loop()
    slow = await crowd(node, 1, "127.0.1.1")
    for last in (2, 3):
        await crowd(node, 100, f"127.0.1.{last}")
    await crowd(node, 100, "127.0.2.1")
    await until_async(
        lambda: sum(n for name, n in node.metrics().items() if name.startswith("eir_peers_refused_total{")) == 271
    )
    for number, one in enumerate(slow):
        await loop.sock_sendall(one, cer(f"mme{number}.localdomain"))
        assert Message(await loop.sock_recv(one, 4096)).result == 2001


async def test_strangers_by_the_hundred_take_nobodys_place(loaded, crowd):
    """Closed at accept (row 34)."""
    loaded.configure(
        peers=[{"name": "mme", "realm": REALM, "from": ["127.0.3.0/24"]}],
        limits={"connections_max": 8},
    )
    node = loaded.start()
    (good,) = await crowd(node, 1, "127.0.3.1")
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(good, cer())
    assert await loop.sock_recv(good, 4096)
    for one in await crowd(node, 300, "127.0.4.1"):
        await gone(one)
    await loop.sock_sendall(good, dwr())
    assert await loop.sock_recv(good, 4096)
    refused = {name: n for name, n in node.metrics().items() if name.startswith("eir_peers_refused_total{")}
    assert refused == {"eir_peers_refused_total{reason=source}": 300}
    assert (await until_async(lambda: node.lines("peer_refused")))[0]["setting"] == "peers: from"


@pytest.mark.long
async def test_more_connections_than_open_files(loaded, crowd):
    wide = {
        "connections_max": 4000,
        "source_connections_max": 4000,
        "unidentified_max": 4000,
        "source_unidentified_max": 4000,
    }
    loaded.configure(limits=wide)
    node = loaded.start(prefix=["prlimit", "--nofile=200"])
    assert (await until_async(lambda: node.lines("open_files")))[0]["limit"] == "200"
    before, steady = at_rest(node), Steady()
    async with beside(node, steady):
        flood = await crowd(node, 400)
        await until_async(
            lambda: (
                max(descriptors(node.pid).values()) > 190
                and node.lines("accept_failed", reason="EMFILE", level="error")
            )
        )
        used = seconds_of_processor(node.pid)
        began = time.monotonic()
        await asyncio.sleep(1)
        # Nobody can be accepted, and that is no reason to try all the time.
        assert (seconds_of_processor(node.pid) - used) / (time.monotonic() - began) < 0.6
        for one in flood:
            one.close()
        await until_async(lambda: descriptors(node.pid).total() <= before[0].total() + 1)
    assert steady.wrong == []
    await settled(node, before)
    assert node.metrics()["eir_diameter_errors_total{reason=accept_failed}"] >= 1
    assert await fresh_answer(node) == 1


async def fresh_answer(node):
    """A peer that comes now is served."""
    connection = Connection(*await asyncio.open_connection(*node.address))
    await connection.open(cer("fresh.localdomain"))
    answer = await connection.ask(ecr(LISTED))
    await connection.close()
    return answer.number(1445, TGPP)


SLOW = {
    "a byte at a time": lambda: (bytes([octet]) for octet in ecr()),
    "half a header": lambda: (ecr()[:10],),
    "half a message": lambda: (ecr()[:100],),
    "a length and nothing else": lambda: (message(324, length=131072)[:20],),
}


async def test_messages_that_never_end(loaded, connect):
    loaded.tune(Limits, partial_message_timeout_s=0.5, close_after_dpa_s=1)
    node = loaded.start()
    before = at_rest(node)
    good = await connect(node)

    async def send_slowly(what, pieces):
        slow = [await connect(node, f"{what.replace(' ', '-')}{number}.localdomain") for number in range(10)]
        for piece in pieces():
            for connection in slow:
                with contextlib.suppress(ConnectionError):
                    await connection.send(uncounted=piece)
            await asyncio.sleep(0.005)
        for connection in slow:
            assert [answer.command for answer in await connection.end()] in ([], [324]), what
            await connection.close()

    await asyncio.gather(*(send_slowly(*slow) for slow in SLOW.items()))
    assert (await good.ask(ecr(LISTED))).number(1445, TGPP) == 1
    await good.close()
    await settled(node, before)


LONG = {
    "a Session-Id of 100 kB": (ecr(LISTED, session=avp(263, "s" * 100_000)), 2001),
    "a User-Name of 100 kB": (ecr(LISTED, user=avp(1, "1" * 100_000)), 2001),
    "a thousand AVPs": (ecr(LISTED, extra=avp(9999, flags=0) * 1000), 2001),
    "sixteen thousand AVPs": (ecr(LISTED, extra=avp(9999, flags=0) * 16_000), 5012),
    "sixteen thousand Proxy-Info": (ecr(LISTED, extra=avp(284) * 16_000), 5012),
    "groups of groups of groups": (ecr(LISTED, extra=avp(279, avp(279, avp(279, avp(279) * 10) * 10) * 10)), 5012),
    "groups side by side": (ecr(LISTED, extra=avp(279, avp(9, flags=0) * 400) * 30), 5012),
    "groups stacked to the limit of a message": (
        ecr(LISTED, extra=b"".join(avp(279, length=8 * (16_000 - n)) for n in range(16_000))),
        5014,
    ),
    "an AVP of 100 kB that nobody knows": (ecr(LISTED, extra=avp(9999, bytes(100_000))), 5001),
    "a Destination-Host of 100 kB": (ecr(LISTED, extra=avp(293, "h" * 100_000)), 3002),
    "an IMEI of 100 kB": (ecr("3" * 100_000), 2001),
    "an unknown application's message of 100 kB": (message(9, bytes(100_000), app=99), 3007),
}


@pytest.mark.long
async def test_long_messages_cost_little_and_leave_nothing(loaded, connect):
    node = loaded.start(prefix=["env"])
    before = at_rest(node)
    good, hostile = await connect(node), await connect(node, "hostile.localdomain")
    memory = memory_mb(node.pid)
    for what, (octets, result) in LONG.items():
        used = seconds_of_processor(node.pid)
        for _ in range(30):
            await hostile.send(octets)
        for _ in range(30):
            assert (await hostile.read()).result == result, what
        assert seconds_of_processor(node.pid) - used < 1, what
        assert (await good.ask(ecr(LISTED))).number(1445, TGPP) == 1
    assert memory_mb(node.pid) - memory < 15
    for connection in (good, hostile):
        await connection.close()
    await settled(node, before)


async def test_messages_of_any_size_do_not_keep_others_waiting(loaded, connect):
    """One peer sends what costs most for its bytes, as fast as it is taken; the other's answers and watchdogs come all the same."""
    node = loaded.start()
    quiet = await connect(node)
    for octets in (
        message(9, app=9),
        ecr(extra=avp(9999, flags=0) * 900),
        ecr(extra=avp(284) * 900),
        ecr(session=avp(263, SESSION * 40)),
    ):
        loud = await connect(node, f"loud{len(octets)}.localdomain")
        over = asyncio.Event()

        async def push(loud=loud, octets=octets, over=over):
            while not over.is_set():
                loud.writer.write(octets * (1 + 100_000 // len(octets)))
                await loud.writer.drain()

        async def drain(loud=loud):
            with contextlib.suppress(ConnectionError):
                while await loud.reader.read(1 << 20):
                    pass

        tasks = [asyncio.create_task(push()), asyncio.create_task(drain())]
        used = []
        for _ in range(20):
            before = seconds_of_processor(node.pid)
            assert (await quiet.ask(ecr(LISTED))).number(1445, TGPP) == 1
            assert (await quiet.ask(dwr())).result == 2001
            used.append(seconds_of_processor(node.pid) - before)
        over.set()
        loud.writer.transport.abort()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert sorted(used)[10] < 0.1, "little is done for the loud one before the quiet one's turn comes"
        assert max(used) < 1


@pytest.mark.long
async def test_storms_of_resets(loaded, crowd):
    node = loaded.start()
    before, steady = at_rest(node), Steady()
    loop = asyncio.get_running_loop()
    async with beside(node, steady):
        for turn in range(30):
            for number, one in enumerate(await crowd(node, 20)):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes((1, 0, 0, 0, 0, 0, 0, 0)))
                with contextlib.suppress(ConnectionError):
                    host = f"storm{number}.localdomain"
                    await loop.sock_sendall(one, cer(host, state_id=u32(278, turn + 1)) + ecr(host=avp(264, host)) * 50)
                one.close()
    assert steady.wrong == []
    await settled(node, before)
    incoming, outgoing, drops, own = accounts(node)
    assert outgoing + drops <= incoming <= outgoing + drops + own


@pytest.mark.long
async def test_peers_that_never_read(loaded, crowd):
    loaded.tune(Limits, write_buffer_bytes=65536, stalled_write_s=2)
    node = loaded.start(prefix=["env"])
    before, steady = at_rest(node), Steady()
    memory = memory_mb(node.pid)
    loop = asyncio.get_running_loop()
    async with beside(node, steady):
        mute = await crowd(node, 20)

        async def ask(number, one):
            host = f"mute{number}.localdomain"
            with contextlib.suppress(ConnectionError):
                await loop.sock_sendall(one, cer(host))
                while True:
                    await loop.sock_sendall(one, ecr(session=avp(263, "s" * 20_000), host=avp(264, host)) * 20)

        async with asyncio.timeout(PATIENCE_S):
            most = asyncio.create_task(highest(node, memory + 60))
            await asyncio.gather(*(ask(number, one) for number, one in enumerate(mute)))
            most.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await most
    assert steady.wrong == []
    assert node.metrics()["eir_diameter_errors_total{reason=stalled_write}"] == 20
    await settled(node, before)
    assert memory_mb(node.pid) - memory < 15


async def highest(node, most_mb):
    """Follow the node's memory; more than this, and it was not bounded."""
    while True:
        assert memory_mb(node.pid) < most_mb
        await asyncio.sleep(0.1)


async def test_nobody_is_anybody_by_asking_often(loaded, connect):
    """Names of all kinds in CERs make no counters, and refused ones no growth."""
    node = loaded.start()
    await connect(node)
    samples = len(node.metrics())
    for number in range(60):
        stranger = Connection(*await asyncio.open_connection(*node.address))
        await stranger.send(cer(f"stranger{number}.example", f"realm{number}.example"))
        assert [cea.result for cea in await stranger.end()] == [3010]
        await stranger.close()
    assert len(node.metrics()) - samples < 10
    assert len(node.lines("peer_refused")) < 20, "log lines are limited for each reason"

"""Hostile Diameter peers, and a correct peer beside them; tests and `scripts/soak` differ only in size."""

import asyncio
import contextlib
import itertools
import os
import random
import socket
import struct
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial, reduce
from operator import or_
from pathlib import Path

from . import sctp_wire
from .mutations import Mutator
from .node import LISTED, UNLISTED, until_async
from .wire import TGPP, Connection, Message, avp, cer, dpr, dwr, ecr, u32

STEADY = "steady.localdomain"
PAUSE_S = 0.005
"""Between the questions of the steady peer."""
WATCHDOG_EVERY = 20
"""Questions for each DWR."""
BATCH = 40
"""Fuzzed messages in one write."""
LOOKED_AT = 16
"""One in this many answers to fuzzed messages is looked at."""
SYNCHRONOUS = 0x53594E43
LOST_S = 0.5
"""A message that says that it is longer than it is has swallowed the DWR behind it."""
SURVIVES = 0.9995
"""Share of fuzzed messages whose frame is good; what comes after another one is lost with its connection."""
RESET = struct.pack("ii", 1, 0)


async def connected(node):
    """A reader and a writer, over the transport of the node's first listener."""
    scheme, _, where = node.status()["listening"][0].partition("://")
    host, _, port = where.rpartition(":")
    return await (sctp_wire if scheme == "sctp" else asyncio).open_connection(host, int(port))


@contextlib.asynccontextmanager
async def visiting(opened):
    """A connection that either end may end at any time, and that is gone afterwards."""
    reader, writer = await opened()
    try:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            yield reader, writer
    finally:
        writer.transport.abort()


class Lateness:
    """The greatest lateness of this loop after a timer while a block ran."""

    def __enter__(self):
        self.most_s = 0.0
        self._next()
        return self

    def __exit__(self, *_):
        self._look()
        self._timer.cancel()

    def _next(self):
        self._due_at = time.monotonic() + PAUSE_S
        self._timer = asyncio.get_running_loop().call_later(PAUSE_S, self._due)

    def _due(self):
        self._look()
        self._next()

    def _look(self):
        self.most_s = max(self.most_s, time.monotonic() - self._due_at)


@dataclass
class Asking:
    """A client that asks all the time, and holds every answer to its question; of which protocol, a class of it says."""

    answers: int = 0
    wrong: list = field(default_factory=list)
    answer_s: list = field(default_factory=list)
    waited_s: float = 0.0
    """The longest wait for an answer to a check, less how late this loop itself was meanwhile: attackers share it."""

    async def opened(self, where):
        """A connection, on which questions are asked."""
        raise NotImplementedError

    async def check(self, connection, number, imei, *, listed):
        """Ask one question; what is wrong with the answer, or None."""
        raise NotImplementedError

    async def besides(self, connection, number):
        """Do what else such a client does now and then."""

    async def closed(self, connection):
        """Leave."""
        await connection.close()

    async def ask(self, where, over):
        """Ask until `over` is set."""
        connection = await self.opened(where)
        for number in itertools.count():
            if over.is_set():
                break
            imei, listed = ((LISTED, True), (UNLISTED, False))[number % 2]
            began = time.perf_counter()
            with Lateness() as lateness:
                fault = await self.check(connection, number, imei, listed=listed)
            self.answer_s.append(time.perf_counter() - began)
            self.waited_s = max(self.waited_s, self.answer_s[-1] - lateness.most_s)
            self.answers += 1
            if fault is not None:
                self.wrong.append(f"{number} about {imei}: {fault}")
            await self.besides(connection, number)
            await asyncio.sleep(PAUSE_S)
        await self.closed(connection)

    def lines(self):
        """For people."""
        worst, p99 = max(self.answer_s) * 1000, sorted(self.answer_s)[int(len(self.answer_s) * 0.99)] * 1000
        yield f"steady client: {self.answers:,} answers, {len(self.wrong)} wrong; p99 {p99:.1f} ms, worst {worst:.0f} ms"


@dataclass
class Steady(Asking):
    """The one of S13, with its watchdogs."""

    host: str = STEADY
    watchdog_s: list = field(default_factory=list)

    async def opened(self, where):
        connection = Connection(*await connected(where))
        await connection.open(cer(self.host))
        return connection

    async def check(self, connection, number, imei, *, listed):
        ids, session = (number, ~number & 0xFFFFFFFF), f"{self.host};{number}"
        answer = await connection.ask(ecr(imei, host=avp(264, self.host), session=avp(263, session), ids=ids))
        found = (answer.command, answer.hop_by_hop, answer.end_to_end, answer.data(263), answer.number(1445, TGPP))
        return None if found == (324, *ids, session.encode(), int(listed)) else answer.octets.hex()

    async def besides(self, connection, number):
        if number % WATCHDOG_EVERY == 0:
            began = time.perf_counter()
            answer = await connection.ask(dwr(self.host, ids=(number, ~number & 0xFFFFFFFF)))
            self.watchdog_s.append(time.perf_counter() - began)
            if (answer.command, answer.hop_by_hop, answer.result) != (280, number, 2001):
                self.wrong.append(f"DWA to {number}: {answer.octets.hex()}")

    def lines(self):
        yield from super().lines()
        yield f"               {len(self.watchdog_s)} watchdogs, worst after {max(self.watchdog_s) * 1000:.0f} ms"


@contextlib.asynccontextmanager
async def beside(where, steady):
    """While a steady client asks, of whatever protocol; what goes wrong with it goes wrong here."""
    over = asyncio.Event()
    asking = asyncio.create_task(steady.ask(where, over))
    try:
        await until_async(lambda: steady.answers or asking.done())
        yield
    finally:
        over.set()
        await asking


# Fuzzing


@dataclass
class Fuzzed:
    """The messages that were sent, and the answers that came back."""

    messages: int = 0
    sessions: int = 0
    answers: int = 0
    connections: int = 0


class OctetMutator:
    """Changes octets without regard to what they mean. By seed, nothing else."""

    OCTETS = (0, 1, 2, 3, 4, 7, 8, 0x0B, 0x1F, 0x30, 0x40, 0x7F, 0x80, 0x81, 0x84, 0xA1, 0xBF, 0xFE, 0xFF)
    """Those that mean something."""

    def __init__(self, seed):
        self.random = random.Random(f"{seed}")

    def mutated(self, octets):
        """Some octets changed, left out, doubled or put in."""
        chance, found = self.random, bytearray(octets)
        for _ in range(chance.choice((1, 1, 1, 2, 4))):
            at = chance.randrange(len(found) + 1)
            way = chance.randrange(6)
            if way == 0 and at < len(found):
                found[at] ^= 1 << chance.randrange(8)
            elif way == 1 and at < len(found):
                found[at] = chance.choice(self.OCTETS)
            elif way == 2:
                del found[at : at + chance.choice((1, 1, 2, 8))]
            elif way == 3:
                found[at:at] = found[at : at + chance.choice((1, 2, 8, 32))]
            elif way == 4:
                found[at:at] = bytes(chance.choices(self.OCTETS, k=chance.choice((1, 2, 4))))
            else:
                del found[at:]
        return bytes(found)


class Fuzzer:
    """Fuzzes a node as clients of one protocol do. A class derived from it for each protocol says how such a client begins and ends."""

    node = where = None
    """The node, and the place that a steady client asks at."""
    goodbye = good = b""
    """The end of a connection in good order, and a good message."""
    pieces = staticmethod(lambda octets, _: [octets])
    """Cut of the octets for the transport."""

    async def connected(self):
        """A reader and a writer."""
        return await asyncio.open_connection(*self.where)

    def mutator(self, seed, **more):
        """Makes the messages: `message()`, `stream()` (what a session may send) and `random`."""
        raise NotImplementedError

    def first(self, number):
        """The octets with which a connection begins."""
        raise NotImplementedError

    def last(self, number, sent):
        """The octets behind a batch, whose answer says that all before it was read."""
        raise NotImplementedError

    async def look(self, reader, sent, found):
        """Read up to that answer; count the others, and hold them to their form."""
        raise NotImplementedError


async def fuzz_messages(fuzzer, count, seed, found, *, connections=4):
    """Send `count` fuzzed messages over a few connections, each of which is opened again when it is lost."""
    share = -(-count // connections)
    await asyncio.gather(*(_fuzz_connection(fuzzer, number, share, seed, found) for number in range(connections)))


async def _fuzz_connection(fuzzer, number, count, seed, found):
    mutator, sent = fuzzer.mutator(f"{seed}/{number}", survives=SURVIVES), 0
    while sent < count:
        reader, writer = await fuzzer.connected()
        found.connections += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, TimeoutError):
            writer.write(fuzzer.first(number))
            while sent < count:
                batch = [mutator.message() for _ in range(min(BATCH, count - sent))]
                sent += len(batch)
                found.messages += len(batch)
                # Without what is behind them, most would be lost with a connection that ends.
                for piece in fuzzer.pieces(b"".join(batch) + fuzzer.last(number, sent), mutator.random):
                    writer.write(piece)
                async with asyncio.timeout(LOST_S):
                    await writer.drain()
                    await fuzzer.look(reader, sent, found)
        writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def fuzz_sessions(fuzzer, count, seed, found, *, at_once=16):
    """Run `count` fuzzed sessions: streams of messages good and bad, in pieces, that end in every way."""
    numbers = iter(range(count))

    async def one_after_the_other():
        for number in numbers:
            with contextlib.suppress(OSError):
                await _fuzz_session(fuzzer, fuzzer.mutator(f"{seed}/session/{number}"))
            found.sessions += 1

    await asyncio.gather(*(one_after_the_other() for _ in range(at_once)))


async def _fuzz_session(fuzzer, mutator):
    chance = mutator.random
    async with visiting(fuzzer.connected) as (reader, writer):
        octets = mutator.stream()
        while octets and not writer.transport.is_closing():
            size = chance.choice((1, 7, 100, 1000, 100_000))
            writer.write(octets[:size])
            async with asyncio.timeout(LOST_S):
                await writer.drain()
            octets = octets[size:] if size > 7 or chance.random() < 0.9 else octets[size + 4 :]
            if chance.random() < 0.3:
                await asyncio.sleep(0)
        await _leave(reader, writer, chance, fuzzer)


class S13Fuzzer(Fuzzer):
    """Peers over Diameter."""

    goodbye, good = dpr(), ecr()

    def __init__(self, node):
        self.node = self.where = node
        self.pieces = cuts if node.status()["listening"][0].startswith("sctp") else Fuzzer.pieces

    async def connected(self):
        return await connected(self.node)

    def mutator(self, seed, **more):
        return Mutator(seed, **more)

    def first(self, number):
        return cer(f"fuzz{number}.localdomain", state_id=u32(278, time.time_ns() >> 20 & 0xFFFFFFFF))

    def last(self, number, sent):
        return dwr(f"fuzz{number}.localdomain", ids=(sent, SYNCHRONOUS))

    async def look(self, reader, sent, found):
        while True:
            head = await reader.readexactly(4)
            octets = head + await reader.readexactly(int.from_bytes(head[1:]) - 4)
            found.answers += 1
            if found.answers % LOOKED_AT == 0:
                Message(octets)
            if octets[12:20] == sent.to_bytes(4) + SYNCHRONOUS.to_bytes(4):
                return


def cuts(octets, chance):
    """The bytes in pieces cut anywhere, each of which is a message of SCTP."""
    places = sorted(chance.sample(range(len(octets)), chance.choice((0, 1, 5, 50))))
    return [octets[begin:end] for begin, end in itertools.pairwise([0, *places, len(octets)]) if begin < end]


async def _leave(reader, writer, chance, fuzzer):
    """End a connection in one of the ways that connections end."""
    way = chance.randrange(5)
    if way == 0:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    elif way == 1:
        writer.write_eof()
        await _drained(reader)
    elif way == 2:
        writer.write(fuzzer.goodbye)
        await _drained(reader)
    elif way == 3:
        writer.write(fuzzer.good[: chance.randrange(1, 100)])
    if way in {0, 4}:
        writer.transport.abort()
    else:
        writer.close()
    await writer.wait_closed()


async def _drained(reader):
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.05):
            await reader.read()


# Flapping


async def flap(node, hosts, seconds, seed, *, arrivals=0):
    """Let so many peers come, ask and go, in every way and without a pause to speak of; returns how often they came.

    They go on for so many seconds, and after that until they came so often.
    """
    end, came = time.monotonic() + seconds, 0

    async def peer(number):
        nonlocal came
        chance = random.Random(f"{seed}/{number}")
        while time.monotonic() < end or came < arrivals:
            with contextlib.suppress(OSError):  # it may not be let in
                async with visiting(partial(connected, node)) as (reader, writer):
                    came += 1
                    host = f"flap{number}.localdomain"
                    connection = Connection(reader, writer)
                    if chance.random() < 0.9:
                        await connection.send(cer(host, state_id=u32(278, time.time_ns() >> 20 & 0xFFFFFFFF)))
                        if chance.random() < 0.8:
                            await connection.read()
                        await connection.send(*[ecr(host=avp(264, host))] * chance.choice((0, 1, 1, 20)))
                    await _leave(reader, writer, chance, S13Fuzzer)
            await asyncio.sleep(chance.random() * 0.1)

    await asyncio.gather(*(peer(number) for number in range(hosts)))
    return came


# What a node has


def processes(pid):
    """A process and all that came of it."""
    found = [pid]
    for each in found:
        with contextlib.suppress(OSError):
            threads = Path(f"/proc/{each}/task").iterdir()
            found += [int(child) for thread in threads for child in (thread / "children").read_text().split()]
    return found


def memory_mb(pid):
    """Memory that only the node's processes have, shared or not: 10^6 bytes.

    The node must be a program of its own (`Site.start(prefix=["env"])`): a forked one shares memory with its parent. Pages of files are left out: other programs that map the same libraries change a process's share of them.
    """
    total = 0
    for each in processes(pid):
        fields = dict(line.split(":") for line in Path(f"/proc/{each}/smaps_rollup").read_text().splitlines()[1:])
        total += sum(int(fields[name].split()[0]) for name in ("Pss_Anon", "Pss_Shmem"))
    return total * 1.024e-3


def descriptors(pid):
    """Open files of each of a node's processes, by its name; without the spare one (/dev/null) that libuv keeps from the first connection on."""
    found = Counter()
    for each in processes(pid):
        count = 0
        for path in Path(f"/proc/{each}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                count += str(path.readlink()) != os.devnull
        found[Path(f"/proc/{each}/comm").read_text()] += count
    return found


def seconds_of_processor(pid):
    """Time that a node's processes have computed."""
    tick = os.sysconf("SC_CLK_TCK")
    stats = [Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split() for each in processes(pid)]
    return sum(int(stat[11]) + int(stat[12]) for stat in stats) / tick


def state(node):
    """The state that has to return once everybody has left: descriptors of each process, tasks, connections."""
    said = node.status()
    return descriptors(node.pid), said["tasks"], sum(said["peers"].values())


def at_rest(node):
    """The most that it has within half a second, once that is what it had in the half second before: what the start began is over."""
    before, now = None, _most(node)
    while before != now:
        before, now = now, _most(node)
    return now


def _most(node):
    """The most within half a second: each question about it takes a descriptor of its own for a moment."""
    seen = []
    for _ in range(10):
        seen.append(state(node))
        time.sleep(0.05)
    files, tasks, connections = zip(*seen, strict=True)
    return reduce(or_, files), max(tasks), max(connections)


async def settled(node, before, *, patience_s=180):
    """Wait until the node has no more than it had."""
    end = time.monotonic() + patience_s
    while True:
        now = await asyncio.to_thread(state, node)
        if now[0] <= before[0] and now[1:] == before[1:]:
            return
        assert time.monotonic() < end, f"descriptors, tasks, connections: {before} before, {now} now"
        await asyncio.sleep(0.05)


def accounts(node):
    """(messages in, answers out, drops), answers to requests of the node's own aside."""
    samples = node.metrics()
    ways = {"in": 0, "out": 0}
    own = 0
    for name, value in samples.items():
        if name.startswith("eir_diameter_messages_total{"):
            ways["in"] += value if "direction=in" in name else 0
            ways["out"] += value if "direction=out" in name and "kind=answer" in name else 0
            own += value if "direction=out" in name and "kind=request" in name else 0
    drops = sum(value for name, value in samples.items() if name.startswith("eir_diameter_drops_total{"))
    return ways["in"], ways["out"], drops, own

"""All interfaces under attack for ten minutes: no answer is wrong or missing, memory stays bounded, and no flood slows the MMEs down much.

64 MMEs, two AMFs, MSCs over GSUP and MAP, a register, a bank and a reader of the page are served meanwhile. In the first half each flood
(scripts/attackers.py) runs alone after a pause, so that the latency of the MMEs shows its cost. In the second half all floods run at
once, while processes are killed, Redis is restarted and killed, and deltas are loaded. An answer may be missing
only on a connection of a process that was killed.
"""

import argparse
import asyncio
import base64
import contextlib
import json
import os
import random
import re
import secrets
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import soak_network as network
from attackers import FLOODS
from benchmark.servers import redis_program
from simulated.certificates import Authority
from simulated.issuer import Issuer, jwks
from simulated.luhn import check_digit
from simulated.node import Publisher, Site, children
from simulated.register import Client, basic, device, trusting
from simulated.servers import Server, free_port
from simulated.wire import EIR
from soak_network import ANSWER_S, HELD, NEVER, PAUSE_S, TC_S

from eir.errors import EirError
from eir.interfaces.device_authenticity.device_authenticity import PATH as AUTHENTICITY_PATH
from eir.interfaces.gsup import INTERFACE as GSUP
from eir.interfaces.map import INTERFACE as MAP
from eir.wire.web.passwords import user_line

ATTACKERS = Path(__file__).resolve().parent / "attackers.py"
ROUNDS = 3
"""Number of times that each flood runs alone."""
P99_TIMES = 3.0
"""Maximum ratio of the p99 of the MMEs' latency under a flood to that without it."""
MEMORY_TIMES = 1.5
"""Maximum ratio of a process's memory at the end to that after MEMORY_FROM_S."""
MEMORY_FROM_S = 60.0
IN_FORCE_S = 20.0
"""Maximum time from the answer to the register until its row is in force."""
LONGEST_S = {"live": 1.0, "feed": 5.0, "device-authenticity": 5.0, "page": 5.0}
"""Maximum response time over HTTP under one flood; a kubelet waits 1 s for /live."""
BETWEEN_S = 2.0
"""Pause between two turns of the second half."""
IMSI = "001010000000001"
PASSWORD, AUDIENCE, SCOPE = "correct horse battery", "eir", "openid device-authenticity:check-status"
CHECKS = frozenset({"s13", "n5g", "gsup", "map"})
"""Kinds of questions that the answering process answers."""


class Figures(network.Figures):
    """Results of all questions."""

    def __init__(self) -> None:
        super().__init__()
        self.may_cut: Collection[str] = ()
        """Kinds of questions whose connections may end now, because their process was killed."""
        self.store_away = False
        """Redis may be away: an interface that needs it may answer 503."""
        self.times: list[float] = []
        """Seconds that the MMEs waited for their answers."""
        self.longest: Counter[str] = Counter()
        """Longest response time in seconds by client."""
        self.fed: list[tuple[float, str]] = []
        """Time and device of each row that was answered."""

    def answered(self, client: str, seconds: float) -> None:
        """Count an answer with its response time."""
        super().answered(client, seconds)
        self.longest[client] = max(self.longest[client], seconds)
        if client.startswith("mme"):
            self.times.append(seconds)

    def lost(self, kind: str) -> None:
        """Count a question without an answer, which is a fault unless its process was killed."""
        super().lost(kind)
        if kind not in self.may_cut:
            self.broken.append(
                f"a question over {kind} has no answer, and nobody killed a process that had its connection"
            )


class Prober:
    """MSC that reconnects after each loss, and asks steadily. `connect` returns a function that asks."""

    def __init__(
        self, name: str, kind: str, connect: Callable[[], AbstractAsyncContextManager[Any]], figures: Figures,
        device: Callable[[], tuple[str, bool] | None],
    ) -> None:  # fmt: skip
        self.name, self._kind, self._connect, self._figures, self._device = name, kind, connect, figures, device
        figures.served[name] = 0

    async def run(self) -> None:
        """Run as this client until cancelled."""
        while True:
            with contextlib.suppress(OSError, EirError):
                async with self._connect() as ask:
                    await self._live(ask)
            await asyncio.sleep(TC_S)

    async def _live(self, ask: Callable[[str, str], Any]) -> None:
        """Ask until a question has no answer."""
        while True:
            if not await self._ask(ask):
                return
            await asyncio.sleep(PAUSE_S)

    async def _ask(self, ask: Callable[[str, str], Any]) -> bool:
        """Ask one question; return true if it was answered."""
        if (drawn := self._device()) is None:
            return True
        imei, listed = drawn
        began = time.perf_counter()
        answer = await ask(imei, IMSI)
        self._figures.asked[self._kind] += 1
        if answer == "none":
            self._figures.lost(self._kind)
            return False
        if answer != ("blacklisted" if listed else "whitelisted"):
            self._figures.broken.append(f"{self.name}: {imei} answered {answer}")
        self._figures.answered(self.name, time.perf_counter() - began)
        return True


class Web:
    """Client over HTTP/1.1 that sends one request after another, and repeats each until it is answered."""

    def __init__(self, kind: str, url: str, who: str, figures: Figures, pause_s: float = PAUSE_S) -> None:
        self.kind, self._url, self._who, self._figures, self._pause_s = kind, url, who, figures, pause_s
        figures.served[kind] = 0

    async def run(self) -> None:
        """Run as this client until cancelled."""
        requests = self.requests()
        request = next(requests)
        while True:
            with contextlib.suppress(OSError):
                client = await Client.to(self._url, self._who, trusting())
                try:
                    while await self._send(client, request):
                        request = next(requests)
                        await asyncio.sleep(self._pause_s)
                finally:
                    client.writer.transport.abort()
            await asyncio.sleep(TC_S)

    def requests(self) -> Iterator[tuple[str, str, bytes]]:
        """Yield method, target and body of each request."""
        raise NotImplementedError

    def check(self, target: str, body: bytes, status: int, document: bytes) -> bool:
        """Return true if an answer is right."""
        raise NotImplementedError

    async def _send(self, client: Client, request: tuple[str, str, bytes]) -> bool:
        """Send one request; return true if it was answered and the connection stays open."""
        figures, (method, target, body) = self._figures, request
        figures.asked[self.kind] += 1
        began = time.perf_counter()
        try:
            answer = await client.ask(method, target, body, Content_Type="application/json")
        except (OSError, EOFError, TimeoutError):
            figures.lost(self.kind)
            return False
        if answer.status == 503 and figures.store_away:
            return False
        if not self.check(target, body, answer.status, answer.body):
            figures.broken.append(
                f"{self.kind}: {method} {target} {body!r} answered {answer.status} {answer.body[:200]!r}"
            )
        figures.answered(self.kind, time.perf_counter() - began)
        if answer.headers.get("connection") == "close":
            client.writer.close()
            fresh = await Client.to(self._url, self._who, trusting())
            client.reader, client.writer = fresh.reader, fresh.writer
        return True


class Register(Web):
    """National register: each row is about another device."""

    def requests(self) -> Iterator[tuple[str, str, bytes]]:
        """Yield one row after another."""
        for number in range(1 << 31):
            self._device = f"{36_100_000 + number // 1000:08d}{number % 1000:06d}"
            yield "POST", device(self._device), b""

    def check(self, target: str, body: bytes, status: int, document: bytes) -> bool:  # noqa: ARG002
        """Return true if the row was accepted; it must be in force soon."""
        self._figures.fed.append((time.monotonic(), self._device))
        return status in {201, 208}


class Bank(Web):
    """Client of DeviceAuthenticity."""

    def __init__(self, *arguments: Any, chance: random.Random, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._chance = chance

    def requests(self) -> Iterator[tuple[str, str, bytes]]:
        """Yield questions about listed and other devices."""
        while True:
            first = self._chance.choice(self._chance.choice((HELD, NEVER)))
            yield "POST", AUTHENTICITY_PATH, json.dumps({"imei": f"{first}{check_digit(first)}"}).encode()

    def check(self, target: str, body: bytes, status: int, document: bytes) -> bool:  # noqa: ARG002
        """Return true if the status is that of the device."""
        listed = json.loads(body)["imei"][:14] in HELD
        return status == 200 and (json.loads(document)["operationalStatus"] != "unknown") is listed


class Reader(Web):
    """Person with the password of the page."""

    def requests(self) -> Iterator[tuple[str, str, bytes]]:
        """Yield the page, again and again."""
        while True:
            yield "GET", "/", b""

    def check(self, target: str, body: bytes, status: int, document: bytes) -> bool:  # noqa: ARG002
        """Return true if the answer is the page."""
        return status == 200 and b"stolen" in document


class Kubelet(Web):
    """Probe of the node's liveness."""

    def requests(self) -> Iterator[tuple[str, str, bytes]]:
        """Yield the probe, again and again."""
        while True:
            yield "GET", "/live", b""

    def check(self, target: str, body: bytes, status: int, document: bytes) -> bool:  # noqa: ARG002
        """Return true if the node lives."""
        return (status, document) == (200, b"live\n")


class Turn(NamedTuple):
    """Disturbance of the node while it is under attack."""

    do: Callable[[], None]
    may_cut: Collection[str] = ()
    """Kinds of questions that may remain without an answer."""
    store_away: bool = False


class World(network.World):
    """The node, its Redis, and their disturbances."""

    def attacked_turns(self) -> Sequence[Turn]:
        """Return the disturbances of the second half, in order."""
        answering = Turn(self.kill_the_answering_process, CHECKS)
        return (
            Turn(self.load), answering, Turn(self.restart_redis, store_away=True), Turn(self.kill_the_feed, {"services"}), Turn(self.load),
            Turn(self.kill_the_follower), answering, Turn(self.kill_device_authenticity, {"device-authenticity"}), Turn(self.kill_redis, store_away=True),
        )  # fmt: skip

    def load(self) -> None:
        """Load the next release: first all devices that are always listed, then deltas with one more device."""
        if not self.serial:
            super().load()
            return
        self.serial += 1
        self.in_force = self.serial
        added = self.loader.folder / "releases" / f"stolen-{self.serial}-added.csv"
        added.write_text(f"imei\n36000000{self.serial:06d}\n")
        self.loader.eir("load", self.loader.release(added, serial=self.serial, base=self.serial - 1))

    def kill_the_feed(self) -> None:
        """Kill the process that receives a register's rows."""
        os.kill(children(self.site.node.pid)["services"], signal.SIGKILL)

    def kill_device_authenticity(self) -> None:
        """Kill the process that answers banks and shops."""
        os.kill(children(self.site.node.pid)["device-auth"], signal.SIGKILL)


class Memory:
    """Memory of the processes of a node: after each had run for a while, and now."""

    def __init__(self, node: Any) -> None:
        self._node = node
        self._since: dict[tuple[str, int], float] = {}
        self._first: dict[tuple[str, int], int] = {}

    def look(self) -> None:
        """Record new processes, and the memory of those that have run for MEMORY_FROM_S."""
        now = time.monotonic()
        for process in self._processes():
            if now - self._since.setdefault(process, now) >= MEMORY_FROM_S and process not in self._first:
                self._first[process] = _resident_kb(process[1])

    def grown(self) -> dict[str, tuple[float, float]]:
        """Return the memory in MB of each process that still runs: at first and now."""
        now = {process: _resident_kb(process[1]) for process in self._processes() if process in self._first}
        return {name: (self._first[name, pid] / 1024, kb / 1024) for (name, pid), kb in now.items() if kb}

    def _processes(self) -> list[tuple[str, int]]:
        return [("manager", self._node.pid), *children(self._node.pid).items()]


def _resident_kb(pid: int) -> int:
    """Return the resident memory of a process; 0 if it has ended."""
    with contextlib.suppress(OSError):
        found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
        return int(found[1]) if found else 0
    return 0


@contextlib.asynccontextmanager
async def flooding(names: Sequence[str], place: str, sent: Counter[str]) -> AsyncIterator[None]:
    """Run floods, each in a process of its own; add the number of their messages to `sent`."""
    started = [
        await asyncio.create_subprocess_exec(
            sys.executable, ATTACKERS, name, place, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for name in names
    ]
    try:
        for each in started:
            assert each.stdout is not None  # noqa: S101 - it is a pipe
            await each.stdout.readline()
        yield
    finally:
        for name, each in zip(names, started, strict=True):
            out, _ = await each.communicate(b"")  # which closes its standard input
            if each.returncode:
                raise RuntimeError(f"the attackers of {name} ended with {each.returncode}")
            sent.update({f"{name}: {kind}": count for kind, count in json.loads(out).items()})


def main(arguments: list[str]) -> int:
    """Run the part `attacks` of scripts/soak."""
    parser = argparse.ArgumentParser(
        prog="soak attacks", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--mmes", type=int, default=64)
    parser.add_argument(
        "--floods",
        nargs="+",
        choices=FLOODS,
        default=list(FLOODS),
        metavar="FLOOD",
        help=f"only some of {', '.join(FLOODS)}",
    )
    parser.add_argument("--log", type=Path, help="file for a copy of the node's log")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="each flood and each turn once; latency and memory have no limits",
    )
    parser.add_argument(
        "--seed", type=int, default=secrets.randbits(32), help="seed of all random values (default: random)"
    )
    options = parser.parse_args(arguments)
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="eir-soak-") as name:
        folder = Path(name)
        (folder / "publisher").mkdir()
        users = re.findall(r"^user .+$", network.PAGE.read_text(), re.MULTILINE)
        acl = "\n".join([*users, "user operator on >secret +ping"]).replace(">PASSWORD", ">secret")
        (folder / "users.acl").write_text(f"{acl}\n")
        persistent = ("--aclfile", str(folder / "users.acl"), "--appendonly", "yes", "--appendfsync", "always")
        with Server(redis_program(), *persistent) as server:
            url = server.url.replace("//", "//loader:secret@")
            publisher = Publisher(folder / "publisher")
            with Site(folder / "loader", publisher) as loader, Site(folder / "site", publisher) as site:
                policy = {
                    "lists": {"stolen": {"signers": "signers"}, "own": {"local": True}},
                    "policy": {"rules": [{"list": name, "answer": "blacklisted"} for name in ("stolen", "own")]},
                }
                loader.configure(store=url, **policy)
                place = _configure(site, folder, store=url, **policy)
                figures, chance = Figures(), random.Random(options.seed)
                ports = place["s13"], place["n5g"]
                world = World(site, loader, server, figures=figures, chance=chance, ports=ports)
                world.load()
                memory = Memory(site.start())
                sent, ratios = asyncio.run(_soak(world, memory, place, options))
                broken = [*figures.broken, *network._history(world)]  # noqa: SLF001 - the other network soak
                grown = memory.grown()
                if options.log is not None:
                    options.log.write_text(site.node.text())
    _print_counts(figures, sent)
    broken += [
        f"the flood {name} sent nothing" for name in ratios if not any(kind.startswith(f"{name}: ") for kind in sent)
    ]
    broken += [fault for fault in _judged(ratios, grown) if not options.quick]
    for each in broken[:20]:
        print(f"not kept: {each}", file=sys.stderr)
    print(f"{len(broken)} promises not kept")
    return 1 if broken else 0


def _configure(site: Site, folder: Path, **policy: Any) -> dict[str, Any]:
    """Write the configuration of a node with every interface; return the values that clients and attackers need."""
    interfaces = ("s13", "n5g", "gsup", "map", "feed", "feed-plain", "authenticity", "page")
    ports = dict(zip(interfaces, (free_port() for _ in interfaces), strict=True))
    issuer = Issuer()
    (site.folder / "users").write_text("".join(user_line(user, PASSWORD) + "\n" for user in ("register", "attacker")))
    (site.folder / "jwks").write_bytes(jwks(issuer))
    (site.folder / "password").write_text(f"{PASSWORD}\n")
    site.configure(
        **policy, listen=[f"tcp://127.0.0.1:{ports['s13']}"], n5g={"listen": f"http://127.0.0.1:{ports['n5g']}"},
        gsup={"listen": f"tcp://127.0.0.1:{ports['gsup']}"}, ss7={"point_code": "1-1-2", "listen": [f"tcp://127.0.0.1:{ports['map']}"]},
        peers=[{"name": "near", "from": ["127.0.0.0/24"], "connections": 2}, {"name": "attacker", "from": ["127.0.8.0/24"]}],
        tls=Authority(folder / "tls").write(EIR, "127.0.0.1"), http=f"127.0.0.1:{ports['page']}",
        page={"from": [], "password_file": "password"},
        feed={
            "listen": [f"https://127.0.0.1:{ports['feed']}", f"http://127.0.0.1:{ports['feed-plain']}"],
            "users": "users", "from": "127.0.0.0/8", "lists": {"block": "own"},
        },
        device_authenticity={
            "listen": f"http://127.0.0.1:{ports['authenticity']}", "from": "127.0.0.0/8", "tokens": {"jwks": "jwks", "audience": AUDIENCE},
        },
    )  # fmt: skip
    bank, flood = (issuer.token(time.time(), aud=AUDIENCE, scope=SCOPE, sub=sub) for sub in ("bank", "flood"))
    known = {"user": "attacker", "password": PASSWORD, "token": flood, "control": str(site.state / "control.sock")}
    return {**ports, **known, "bank": bank}


def _clients(world: World, place: Mapping[str, Any], options: argparse.Namespace) -> list[Any]:
    """Return all clients that must be served."""
    figures, chance = world.figures, world.chance

    def drawn() -> tuple[str, bool]:
        listed = chance.random() < 0.5
        return chance.choice(HELD if listed else NEVER), listed

    def fed() -> tuple[str, bool] | None:
        rows = figures.fed
        old = [row for row in rows[-2000:] if row[0] < time.monotonic() - IN_FORCE_S]
        return (chance.choice(old)[1], True) if old else drawn()

    def osmo(name: str) -> AbstractAsyncContextManager[Any]:
        return GSUP.probe_of(f"gsup://127.0.0.1:{place['gsup']}?name={name}", timeout_s=ANSWER_S).asking()

    def sgsn() -> AbstractAsyncContextManager[Any]:
        url = f"map://127.0.0.1:{place['map']}?point_code=1-1-3&to_point_code=1-1-2"
        return MAP.probe_of(url, timeout_s=ANSWER_S).asking()

    reader = f"Basic {base64.b64encode(f'x:{PASSWORD}'.encode()).decode()}"
    return [
        *(network.Mme(number, place["s13"], figures, chance) for number in range(options.mmes)),
        *(network.Asker(number, place["n5g"], figures, chance) for number in range(2)),
        Prober("msc", "gsup", partial(osmo, "MSC-1"), figures, drawn),
        Prober("witness", "gsup", partial(osmo, "MSC-2"), figures, fed),
        Prober("sgsn", "map", sgsn, figures, drawn),
        Register("feed", f"https://127.0.0.1:{place['feed']}", basic("register", PASSWORD), figures, 0.3),
        Bank(
            "device-authenticity",
            f"http://127.0.0.1:{place['authenticity']}",
            f"Bearer {place['bank']}",
            figures,
            0.5,
            chance=chance,
        ),
        Reader("page", f"http://127.0.0.1:{place['page']}", reader, figures, 1.0),
        Kubelet("live", f"http://127.0.0.1:{place['page']}", "", figures, 0.5),
    ]


async def _soak(
    world: World, memory: Memory, place: Mapping[str, Any], options: argparse.Namespace
) -> tuple[Counter[str], dict[str, list[tuple[float, float]]]]:
    """Run both halves; return the messages of the attackers, and the p99 in ms without and with each flood, round by round."""
    figures, sent = world.figures, Counter[str]()
    running = [asyncio.create_task(client.run()) for client in _clients(world, place, options)]
    looking = asyncio.create_task(_look(memory))
    known = json.dumps(place)
    begun = time.monotonic()
    await world.settle("the start")
    ratios: dict[str, list[tuple[float, float]]] = {name: [] for name in options.floods}
    rounds = 1 if options.quick else ROUNDS
    slice_s = 1.0 if options.quick else options.seconds / 2 / (2 * rounds * len(ratios))
    for number in range(rounds):
        for name, found in ratios.items():
            await asyncio.to_thread(world.load)
            await world.settle("a delta")
            calm = await _p99_ms(figures, slice_s)
            async with flooding([name], known, sent):
                found.append((calm, await _p99_ms(figures, slice_s)))
            print(
                f"{time.monotonic() - begun:4.0f} s: {name}: p99 {calm:.1f} ms, {found[-1][1]:.1f} ms under the flood",
                flush=True,
            )
        print(
            f"round {number + 1}: {figures.asked.total():,} asked, {len(figures.broken)} promises not kept", flush=True
        )
    for kind, limit in LONGEST_S.items():
        print(f"{kind}: longest response time {figures.longest[kind]:.2f} s", flush=True)
        if figures.longest[kind] > limit and not options.quick:
            figures.broken.append(f"{kind}: an answer took {figures.longest[kind]:.1f} s; at most {limit:g} s")
    async with flooding(list(ratios), known, sent):
        await _all_at_once(world, options)
    looking.cancel()
    for task in running:
        task.cancel()
    for ended in await asyncio.gather(*running, return_exceptions=True):
        if isinstance(ended, Exception):
            figures.broken.append(f"a client ended: {ended!r}")
    return sent, ratios


async def _all_at_once(world: World, options: argparse.Namespace) -> None:
    """Kill, restart and load in turn until the time is over."""
    figures, turns = world.figures, world.attacked_turns()
    begun, done = time.monotonic(), 0
    while (
        done < len(turns) if options.quick else time.monotonic() - begun < options.seconds / 2
    ) and not figures.broken:
        turn = turns[done % len(turns)]
        figures.may_cut, figures.store_away = turn.may_cut, turn.store_away
        await asyncio.to_thread(turn.do)
        name = turn.do.__name__
        await world.settle(name)
        figures.may_cut, figures.store_away = (), False
        figures.turns[name] += 1
        done += 1
        print(
            f"{time.monotonic() - begun:4.0f} s: {done} turns under all floods, {figures.asked.total():,} asked",
            flush=True,
        )
        await asyncio.sleep(0 if options.quick else BETWEEN_S)


async def _look(memory: Memory) -> None:
    while True:
        memory.look()
        await asyncio.sleep(1)


async def _p99_ms(figures: Figures, seconds: float) -> float:
    """Return the p99 of the response times of the MMEs from now on."""
    figures.times = []
    await asyncio.sleep(seconds)
    return statistics.quantiles(figures.times, n=100)[98] * 1000


def _print_counts(figures: Figures, sent: Counter[str]) -> None:
    print(f"{dict(figures.asked)} asked; without an answer: {dict(figures.cut)}; {dict(figures.turns)}")
    print(f"attackers sent {dict(sent)}")


def _judged(ratios: Mapping[str, Sequence[tuple[float, float]]], grown: Mapping[str, tuple[float, float]]) -> list[str]:
    """Print latency and memory; return the broken promises about them."""
    broken = []
    for name, found in ratios.items():
        ratio = statistics.median(under / calm for calm, under in found)
        calm, under = (statistics.median(each) for each in zip(*found, strict=True))
        print(f"{name}: p99 {calm:.1f} ms without it, {under:.1f} ms under it; ratio {ratio:.2f}")
        if ratio > P99_TIMES:
            broken.append(f"the flood {name} makes the p99 of the MMEs {ratio:.1f} times as high")
    for name, (first, last) in grown.items():
        print(f"memory of {name}: {first:.0f} MB after a minute, {last:.0f} MB at the end")
        if last > MEMORY_TIMES * first:
            broken.append(f"the memory of {name} grew from {first:.0f} MB to {last:.0f} MB")
    return broken


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""64 MMEs and two AMFs for ten minutes, while node, processes and Redis are restarted, killed and attacked by turns: no answer is wrong.

An answer may be missing only on a connection that was cut, and the history is complete afterwards. Redis has its AOF and the user file of
deploy/REDIS.md. After each turn every MME and every AMF is served again before the next turn begins.
"""

import argparse
import asyncio
import contextlib
import os
import random
import re
import signal
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from benchmark.servers import redis_program
from parts import report, seeded
from simulated.node import Publisher, Site, children
from simulated.servers import Server, free_port
from simulated.wire import REALM

from eir.errors import EirError
from eir.interfaces import INTERFACES

PAGE = Path(__file__).resolve().parent.parent / "deploy" / "REDIS.md"
HELD = [f"{35_209_900 + n:08d}{n * 31:06d}" for n in range(200)]
"""Devices that are always listed."""
NEVER = [f"{35_209_900 + n:08d}{n * 31 + 7:06d}" for n in range(200)]
CHECKS = frozenset({"s13", "n5g", "gsup", "map"})
"""Kinds of questions that the answering process answers."""
ANSWER_S = 20.0
"""Time after which an answer on an open connection is lost; generous, for busy hosts."""
SETTLE_S, TC_S, PAUSE_S = 60.0, 0.3, 0.1
IMSI = "001010000000001"
EVERY_EVENT = "1000000"
"""`eir history` shows the newest 50 events if no number is given."""
URLS = {each.name: each for each in INTERFACES}


class Figures:
    """Results of all questions."""

    def __init__(self) -> None:
        self.asked, self.cut, self.turns, self.served = (Counter[str]() for _ in range(4))
        """Questions; those without an answer on connections that ended; turns; answers by client."""
        self.longest: Counter[str] = Counter()
        """Longest response time in seconds by client."""
        self.times: list[float] = []
        """Seconds that the MMEs waited for their answers."""
        self.broken: list[str] = []
        self.may_cut: Collection[str] = ()
        """Kinds of questions that may lose their connections at present."""
        self.may_refuse = False
        """Redis or the journal's writer may be away: an interface that needs them may answer 503."""

    def answered(self, client: str, seconds: float) -> None:
        """Count an answer with its response time."""
        self.served[client] += 1
        self.longest[client] = max(self.longest[client], seconds)
        if client.startswith("mme"):
            self.times.append(seconds)

    def lost(self, kind: str, seconds: float) -> None:
        """Count a question without an answer, which is a fault unless its connection may have been cut."""
        self.cut[kind] += 1
        if seconds >= ANSWER_S:
            self.broken.append(f"a question over {kind} has no answer within {ANSWER_S:g} s")
        elif kind not in self.may_cut:
            self.broken.append(f"a question over {kind} has no answer, and nobody cut its connection")


class Prober:
    """MME, AMF or MSC that reconnects after each loss, and asks steadily. `draw` returns a device and whether it is listed."""

    def __init__(self, name: str, url: str, figures: Figures, draw: Callable[[], tuple[str, bool]]) -> None:
        self.name, self._url, self._figures, self._draw = name, url, figures, draw
        self._kind = url.partition(":")[0]
        figures.served[name] = 0

    async def run(self) -> None:
        """Run as this client until cancelled."""
        while True:
            with contextlib.suppress(OSError, EirError):
                async with URLS[self._kind].probe_of(self._url, ANSWER_S).asking(imsi=IMSI) as ask:
                    while await self._ask(ask):  # noqa: ASYNC110 - the pause is that of a client
                        await asyncio.sleep(PAUSE_S)
            await asyncio.sleep(TC_S)

    async def _ask(self, ask: Callable[[str], Any]) -> bool:
        """Ask one question; return true if it was answered."""
        imei, listed = self._draw()
        began = time.perf_counter()
        answer = await ask(imei)
        seconds = time.perf_counter() - began
        self._figures.asked[self._kind] += 1
        if answer == "none":
            self._figures.lost(self._kind, seconds)
            return False
        if answer != ("blacklisted" if listed else "whitelisted"):
            self._figures.broken.append(f"{self.name}: {imei} answered {answer}")
        self._figures.answered(self.name, seconds)
        return True


class Turn(NamedTuple):
    """Disturbance of the node, and the kinds of questions that it may leave without an answer."""

    do: Callable[[], None]
    may_cut: Collection[str] = ()
    may_refuse: bool = False


class World:
    """The node, its Redis, and their disturbances."""

    def __init__(self, site: Site, loader: Site, server: Server, seed: int) -> None:
        self.site, self.loader, self.server = site, loader, server
        self.figures, self.chance, self.ports = Figures(), random.Random(seed), list[int]()
        self.serial = self.in_force = 0

    def draw(self) -> tuple[str, bool]:
        """Return a device, and whether it is listed."""
        listed = self.chance.random() < 0.5
        return self.chance.choice(HELD if listed else NEVER), listed

    def cores(self, mmes: int, s13: int, n5g: int) -> list[Prober]:
        """Return MMEs and two AMFs."""
        urls = [
            (f"mme{n}", f"s13://127.0.0.1:{s13}?origin_host=mme{n}.{REALM}&origin_realm={REALM}") for n in range(mmes)
        ]
        urls += [(f"amf{n}", f"n5g://127.0.0.1:{n5g}") for n in range(2)]
        return [Prober(*each, self.figures, self.draw) for each in urls]

    def turns(self) -> Sequence[Turn]:
        """Return all disturbances, in order."""
        return [Turn(do, CHECKS) for do in (
            self.load, self.restart_node, self.kill_the_answering_process, self.restart_redis, self.attack, self.kill_node, self.load, self.reload,
            self.kill_redis, self.roll_back, self.kill_the_follower, self.kill_redis_that_rewrites, self.attack,
        )]  # fmt: skip

    def load(self) -> None:
        """Load the next release: all devices that are always listed, and one more."""
        self.serial += 1
        self.in_force = self.serial
        self.loader.eir("load", self.loader.release([*HELD, f"36000000{self.serial:06d}"], serial=self.serial))

    def roll_back(self) -> None:
        """Roll the last release back."""
        self.loader.eir("rollback", "stolen")
        self.in_force -= 1

    def restart_node(self) -> None:
        """Stop the node, and start it again."""
        self.site.node.end()
        self.site.start()

    def kill_node(self) -> None:
        """Kill the manager; its children end without it."""
        self.site.node.process.kill()
        self.site.node.process.wait()
        self.site.start()

    def kill(self, process: str) -> None:
        """Kill a process of the node."""
        os.kill(children(self.site.node.pid)[process], signal.SIGKILL)

    def kill_the_answering_process(self) -> None:
        """Kill the answering process with all its connections."""
        self.kill("answering")

    def kill_the_follower(self) -> None:
        """Kill the process that follows Redis."""
        self.kill("follower")

    def reload(self) -> None:
        """Reload the configuration."""
        self.site.eir("reload")

    def restart_redis(self) -> None:
        """Stop Redis, and start it again."""
        self.server.process.terminate()
        self.server.process.wait()
        self.server.start()

    def kill_redis(self) -> None:
        """Kill Redis, and start it again."""
        self.server.process.kill()
        self.server.process.wait()
        self.server.start()

    def kill_redis_that_rewrites(self) -> None:
        """Kill Redis while it rewrites its AOF."""
        self.server.command("AUTH", "operator", "secret", then=("BGREWRITEAOF",))
        self.kill_redis()

    def attack(self) -> None:
        """Open connections that send nothing, and connections that send random bytes, on all listeners."""
        with contextlib.ExitStack() as stack:
            for number in range(300):
                one = stack.enter_context(socket.socket())
                one.bind(("127.0.9.1", 0))
                with contextlib.suppress(OSError):
                    one.connect(("127.0.0.1", self.ports[number % len(self.ports)]))
                    if number % 3:
                        one.send(self.chance.randbytes(self.chance.randrange(1, 400)))

    async def settle(self, what: str) -> None:
        """Wait until all clients are served again, from the lists that Redis has."""
        figures, before, end = self.figures, dict(self.figures.served), time.monotonic() + SETTLE_S
        while time.monotonic() < end:
            missing = [name for name, count in figures.served.items() if count < before[name] + 3]
            status = {} if missing else await asyncio.to_thread(self.site.node.status)
            if (
                status
                and status["lists"].get("stolen", {}).get("serial") == self.in_force
                and status["ready"] == "ready"
            ):
                return
            await asyncio.sleep(0.05)
        figures.broken.append(f"after {what}: not served: {missing[:3]}; {status.get('summary')}")

    async def disturb(self, turns: Sequence[Turn], seconds: float, count: int, pause_s: float = 0) -> None:
        """Disturb the node by turns, `count` times or until the time is over, and wait after each until all clients are served."""
        figures, begun, done = self.figures, time.monotonic(), 0
        while (done < count if count else time.monotonic() - begun < seconds) and not figures.broken:
            turn = turns[done % len(turns)]
            figures.may_cut, figures.may_refuse = turn.may_cut, turn.may_refuse
            await asyncio.to_thread(turn.do)
            await self.settle(turn.do.__name__)
            figures.may_cut, figures.may_refuse = (), False
            figures.turns[turn.do.__name__] += 1
            done += 1
            print(f"{time.monotonic() - begun:4.0f} s: {done} turns, {figures.asked.total():,} asked", flush=True)
            await asyncio.sleep(pause_s)

    @contextlib.asynccontextmanager
    async def serving(self, clients: Sequence[Any]) -> Any:
        """Run clients meanwhile."""
        running = [asyncio.create_task(client.run()) for client in clients]
        await self.settle("the start")
        yield
        for task in running:
            task.cancel()
        for ended in await asyncio.gather(*running, return_exceptions=True):
            if isinstance(ended, Exception):
                self.figures.broken.append(f"a client ended: {ended!r}")

    def conclude(self) -> int:
        """Verify history and log, and print the results; return the exit status."""
        figures = self.figures
        for name, site in (("the loader", self.loader), ("the node", self.site)):
            events = site.json("history", "stolen", "--limit", EVERY_EVENT)
            loads = {each["serial"] for each in events if each["what"] == "load"}
            if loads != set(range(1, self.serial + 1)):
                figures.broken.append(f"the history as {name} sees it has {len(loads)} loads of {self.serial}")
            verified = site.eir("history", "--verify", status=None)
            if verified.returncode:
                figures.broken.append(f"the history is not valid: {verified.stdout}{verified.stderr}")
        log = self.site.node.text()
        for word in ("Traceback", "event=fault", "event=process_hung"):
            figures.broken += [f"the log has {line}" for line in log.splitlines() if word in line][:3]
        refused = [
            line for line in self.site.node.lines("peer_refused") if line.get("address", "").startswith("127.0.0.1:")
        ]
        figures.broken += [f"an MME was refused: {line}" for line in refused if line["reason"] != "duplicate"]
        print(
            f"{dict(figures.asked)} asked; without an answer: {dict(figures.cut)}; {dict(figures.turns)}; {self.serial} loads"
        )
        return report(figures.broken)


Made = TypeVar("Made", bound=World)


@contextlib.contextmanager
def world(
    options: argparse.Namespace, kind: type[World] = World, **lists: Any
) -> Iterator[tuple[World, dict[str, Any]]]:
    """Start a Redis with the users of the page, and make a node's host and a loader's host; yield them, and the settings of both."""
    with tempfile.TemporaryDirectory(prefix="eir-soak-") as name:
        folder = Path(name)
        (folder / "publisher").mkdir()
        users = re.findall(r"^user .+$", PAGE.read_text(), re.MULTILINE)
        acl = "\n".join([*users, "user operator on >secret +bgrewriteaof +ping"]).replace(">PASSWORD", ">secret")
        (folder / "users.acl").write_text(f"{acl}\n")
        publisher = Publisher(folder / "publisher")
        with (
            Server(
                redis_program(),
                "--aclfile",
                str(folder / "users.acl"),
                "--appendonly",
                "yes",
                "--appendfsync",
                "always",
            ) as server,
            Site(folder / "loader", publisher) as loader,
            Site(folder / "site", publisher) as site,
        ):
            lists = {"stolen": {"signers": "signers"}, **lists}
            rules = [{"list": name, "answer": "blacklisted"} for name in lists]
            settings = {
                "store": server.url.replace("//", "//loader:secret@"),
                "lists": lists,
                "policy": {"rules": rules},
            }
            loader.configure(**settings)
            made = kind(site, loader, server, options.seed)
            made.load()
            yield made, settings


def parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options of both soaks of a network."""
    made = argparse.ArgumentParser(prog=f"soak {name}", description=doc)
    made.add_argument("--seconds", type=float, default=600)
    made.add_argument("--mmes", type=int, default=64)
    return made


def main(arguments: list[str]) -> int:
    """Run the part `network` of scripts/soak."""
    options_of = parser("network", __doc__)
    options_of.add_argument("--turns", type=int, default=0, help="number of turns; 0: until the time is over")
    options = seeded(options_of, arguments)
    with world(options, World) as (made, settings):
        made.ports = [free_port(), free_port()]
        made.site.configure(
            **settings, listen=[f"tcp://127.0.0.1:{made.ports[0]}"], n5g={"listen": f"http://127.0.0.1:{made.ports[1]}"},
            peers=[{"name": "mme", "realm": REALM, "from": ["127.0.0.0/8"], "connections": 2}],
        )  # fmt: skip
        made.site.start()

        async def soak() -> None:
            async with made.serving(made.cores(options.mmes, *made.ports)):
                await made.disturb(made.turns(), options.seconds, options.turns)

        asyncio.run(soak())
        return made.conclude()

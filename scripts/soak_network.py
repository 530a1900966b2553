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
import secrets
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from benchmark.servers import redis_program
from simulated.amf import Amf
from simulated.luhn import check_digit
from simulated.node import Publisher, Site, children
from simulated.servers import Server, free_port
from simulated.wire import APP, REALM, TGPP, Connection, answer_to, cer, ecr

PAGE = Path(__file__).resolve().parent.parent / "deploy" / "REDIS.md"
HELD = [f"{35_209_900 + n:08d}{n * 31:06d}" for n in range(200)]
"""Devices that are always listed."""
NEVER = [f"{35_209_900 + n:08d}{n * 31 + 7:06d}" for n in range(200)]
ANSWER_S = 20.0
"""Time after which an answer on an open connection is lost; generous, for busy hosts."""
SETTLE_S = 60.0
TC_S = 0.3
PAUSE_S = 0.1


class Figures:
    """Results of all questions."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.cut: Counter[str] = Counter()
        """Questions without an answer on connections that ended."""
        self.turns: Counter[str] = Counter()
        self.broken: list[str] = []
        self.served: dict[str, int] = {}
        """Answers by client."""

    def answered(self, client: str, seconds: float) -> None:  # noqa: ARG002 - for parts that measure
        """Count an answer with its response time."""
        self.served[client] += 1

    def lost(self, kind: str) -> None:
        """Count a question without an answer on a connection that ended."""
        self.cut[kind] += 1


class Mme:
    """MME that reconnects after each loss, asks steadily, and answers watchdogs and DPRs."""

    def __init__(self, number: int, port: int, figures: Figures, chance: random.Random) -> None:
        self.name = f"mme{number}.{REALM}"
        self._port, self._figures, self._chance = port, figures, chance
        figures.served[self.name] = 0

    async def run(self) -> None:
        """Run as this client until cancelled."""
        while True:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                connection = Connection(*await asyncio.open_connection("127.0.0.1", self._port))
                try:
                    await self._live(connection)
                finally:
                    connection.writer.transport.abort()
            await asyncio.sleep(TC_S * self._chance.uniform(0.9, 1.1))

    async def _live(self, connection: Connection) -> None:
        cea = await connection.ask(cer(self.name))
        if cea.result != 2001:
            return  # the connection before this one is not over yet
        leaving = False
        for number in range(1 << 31):
            listed = self._chance.random() < 0.5
            imei = self._chance.choice(HELD if listed else NEVER)
            await connection.send(ecr(imei, ids=(number, number)))
            self._figures.asked["s13"] += 1
            began = time.perf_counter()
            try:
                while True:
                    async with asyncio.timeout(ANSWER_S):
                        came = await connection.read()
                    if not came.is_request:
                        break
                    await connection.send(answer_to(came, host=self.name))
                    leaving = leaving or came.command == 282
            except TimeoutError:
                self._figures.broken.append(f"{self.name}: no answer to question {number} in {ANSWER_S:g} s")
                return
            except (asyncio.IncompleteReadError, OSError):
                self._figures.lost("s13, by a DPR" if leaving else "s13")
                raise
            if (came.app, came.hop_by_hop, came.number(1445, TGPP)) != (APP, number, int(listed)):
                self._figures.broken.append(
                    f"{self.name}: {imei} answered {came.number(1445, TGPP)} ({came.data(268)!r})"
                )
            self._figures.answered(self.name, time.perf_counter() - began)
            if leaving:
                return
            await asyncio.sleep(PAUSE_S)


class Asker:
    """AMF that asks steadily."""

    def __init__(self, number: int, port: int, figures: Figures, chance: random.Random) -> None:
        self.name = f"amf{number}"
        self._url, self._figures, self._chance = f"http://127.0.0.1:{port}", figures, chance
        figures.served[self.name] = 0

    async def run(self) -> None:
        """Run as this client until cancelled."""
        while True:
            with contextlib.suppress(OSError):
                await self._live(await Amf.to(self._url))
            await asyncio.sleep(TC_S)

    async def _live(self, amf: Amf) -> None:
        while True:
            listed = self._chance.random() < 0.5
            first = self._chance.choice(HELD if listed else NEVER)
            self._figures.asked["n5g"] += 1
            began = time.perf_counter()
            try:
                async with asyncio.timeout(ANSWER_S):
                    answer = await amf.ask(f"{first}{check_digit(first)}")
            except TimeoutError:
                self._figures.broken.append(f"{self.name}: no answer in {ANSWER_S:g} s")
                return
            except Exception:  # noqa: BLE001 - a GOAWAY, a closed connection: whatever the library makes of it
                self._figures.lost("n5g")
                return
            if (answer.status, answer.document) != (200, {"status": "BLACKLISTED" if listed else "WHITELISTED"}):
                self._figures.broken.append(f"{self.name}: {first} answered {answer.status} {answer.document}")
            self._figures.answered(self.name, time.perf_counter() - began)
            await asyncio.sleep(PAUSE_S)


class World:
    """The node, its Redis, and their disturbances."""

    def __init__(
        self,
        site: Site,
        loader: Site,
        server: Server,
        *,
        figures: Figures,
        chance: random.Random,
        ports: tuple[int, int],
    ) -> None:
        self.site, self.loader, self.server, self.figures, self.chance, self.ports = (
            site,
            loader,
            server,
            figures,
            chance,
            ports,
        )
        self.serial = self.in_force = 0
        self.turns = (
            self.load, self.restart_node, self.kill_the_answering_process, self.restart_redis, self.attack, self.kill_node, self.load, self.reload,
            self.kill_redis, self.roll_back, self.kill_the_follower, self.kill_redis_that_rewrites, self.attack,
        )  # fmt: skip

    def load(self) -> None:
        """Load the next release: all devices that are always listed, and one more."""
        self.serial += 1
        self.in_force = self.serial
        manifest = self.loader.release([*HELD, f"36000000{self.serial:06d}"], serial=self.serial)
        self.loader.eir("load", manifest)

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

    def kill_the_answering_process(self) -> None:
        """Kill the answering process with all its connections."""
        os.kill(children(self.site.node.pid)["answering"], signal.SIGKILL)

    def kill_the_follower(self) -> None:
        """Kill the process that follows Redis."""
        os.kill(children(self.site.node.pid)["follower"], signal.SIGKILL)

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
        """Open connections that send nothing, and connections that send random bytes, on both listeners."""
        made = []
        for number in range(300):
            one = socket.socket()
            one.bind(("127.0.9.1", 0))
            made.append(one)
            with contextlib.suppress(OSError):
                one.connect(("127.0.0.1", self.ports[number % 2]))
                if number % 3:
                    one.send(self.chance.randbytes(self.chance.randrange(1, 400)))
        for one in made:
            one.close()

    async def settle(self, what: str) -> None:
        """Wait until all clients are served again, from the lists that Redis has."""
        begun, before = time.monotonic(), dict(self.figures.served)
        while missing := [name for name, count in self.figures.served.items() if count < before[name] + 3]:
            if time.monotonic() - begun > SETTLE_S:
                self.figures.broken.append(
                    f"after {what}: {len(missing)} are not served again, {missing[0]} among them"
                )
                return
            await asyncio.sleep(0.05)
        while True:
            status = await asyncio.to_thread(self.site.node.status)
            if status["lists"].get("stolen", {}).get("serial") == self.in_force and status["ready"] == "ready":
                return
            if time.monotonic() - begun > SETTLE_S:
                self.figures.broken.append(f"after {what}: {status['summary']}")
                return
            await asyncio.sleep(0.05)


def main(arguments: list[str]) -> int:
    """Run the part `network` of scripts/soak."""
    parser = argparse.ArgumentParser(
        prog="soak network", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--mmes", type=int, default=64)
    parser.add_argument("--turns", type=int, default=0, help="number of turns; 0: until the time is over")
    parser.add_argument(
        "--seed", type=int, default=secrets.randbits(32), help="seed of all random values (default: random)"
    )
    options = parser.parse_args(arguments)
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="eir-soak-") as name:
        folder = Path(name)
        (folder / "publisher").mkdir()
        users = re.findall(r"^user .+$", PAGE.read_text(), re.MULTILINE)
        acl = "\n".join([*users, "user operator on >secret +bgrewriteaof +ping"]).replace(">PASSWORD", ">secret")
        (folder / "users.acl").write_text(f"{acl}\n")
        persistent = ("--aclfile", str(folder / "users.acl"), "--appendonly", "yes", "--appendfsync", "always")
        with Server(redis_program(), *persistent) as server:
            url = server.url.replace("//", "//loader:secret@")
            publisher = Publisher(folder / "publisher")
            with Site(folder / "loader", publisher) as loader, Site(folder / "site", publisher) as site:
                ports = free_port(), free_port()
                policy = {
                    "lists": {"stolen": {"signers": "signers"}},
                    "policy": {"rules": [{"list": "stolen", "answer": "blacklisted"}]},
                }
                loader.configure(store=url, **policy)
                site.configure(
                    **policy, store=url, listen=[f"tcp://127.0.0.1:{ports[0]}"], n5g={"listen": f"http://127.0.0.1:{ports[1]}"},
                    peers=[{"name": "mme", "realm": REALM, "from": ["127.0.0.0/8"], "connections": 2}],
                )  # fmt: skip
                figures, chance = Figures(), random.Random(options.seed)
                world = World(site, loader, server, figures=figures, chance=chance, ports=ports)
                world.load()
                site.start()
                asyncio.run(_soak(world, options))
                broken = [*figures.broken, *_history(world)]
    print(f"{dict(figures.asked)} asked; without an answer on connections that were cut: {dict(figures.cut)}")
    print(f"{dict(figures.turns)}; {world.serial} loads")
    for each in broken[:20]:
        print(f"not kept: {each}", file=sys.stderr)
    print(f"{len(broken)} promises not kept")
    return 1 if broken else 0


async def _soak(world: World, options: argparse.Namespace) -> None:
    figures = world.figures
    clients = [Mme(number, world.ports[0], figures, world.chance) for number in range(options.mmes)]
    clients += [Asker(number, world.ports[1], figures, world.chance) for number in range(2)]
    running = [asyncio.create_task(client.run()) for client in clients]
    begun, done = time.monotonic(), 0
    await world.settle("the start")
    while (
        done < options.turns if options.turns else time.monotonic() - begun < options.seconds
    ) and not figures.broken:
        turn = world.turns[done % len(world.turns)]
        await asyncio.to_thread(turn)
        await world.settle(turn.__name__)
        figures.turns[turn.__name__] += 1
        done += 1
        if done % len(world.turns) == 0:
            print(f"{done} turns in {time.monotonic() - begun:.0f} s, {figures.asked.total():,} asked", flush=True)
    for task in running:
        task.cancel()
    for ended in await asyncio.gather(*running, return_exceptions=True):
        if isinstance(ended, Exception):
            figures.broken.append(f"a client ended: {ended!r}")


EVERY_EVENT = 1_000_000
"""`eir history` shows the newest 50 events if no number is given."""


def _history(world: World) -> list[str]:
    """Return the faults of the history, the log and the list at the end."""
    found = []
    for name, site in (("the loader", world.loader), ("the node", world.site)):
        loads = [
            each["serial"]
            for each in site.json("history", "stolen", "--limit", str(EVERY_EVENT))
            if each["what"] == "load"
        ]
        if sorted(set(loads)) != list(range(1, world.serial + 1)):
            found.append(f"the history as {name} sees it has the loads {loads} of {world.serial}")
        verified = site.eir("history", "--verify", status=None)
        if verified.returncode:
            found.append(f"the history is not valid: {verified.stdout}{verified.stderr}")
    refused = [
        line for line in world.site.node.lines("peer_refused") if line.get("address", "").startswith("127.0.0.1:")
    ]
    found += [f"an MME was refused: {line}" for line in refused if line["reason"] != "duplicate"]
    log = world.site.node.text()
    for word in ("Traceback", "event=fault", "event=process_hung"):
        found += [f"the log has {line}" for line in log.splitlines() if word in line][:3]
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

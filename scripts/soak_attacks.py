"""All interfaces under attack for ten minutes: no answer is wrong or missing, memory stays bounded, and no flood slows the MMEs down much.

64 MMEs, two AMFs, MSCs over GSUP and MAP, a register, a bank and a reader of the page are served meanwhile. In the first half each flood
(scripts/simulated/floods.py) runs alone after a pause, so that the latency of the MMEs shows its cost. In the second half all floods run at
once, while processes are killed, Redis is restarted and killed, and deltas are loaded. An answer may be missing
only on a connection of a process that was killed.
"""

import argparse
import asyncio
import base64
import contextlib
import json
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from parts import seeded
from simulated.certificates import Authority
from simulated.floods import FLOODS
from simulated.issuer import Issuer, jwks
from simulated.luhn import check_digit
from simulated.node import children
from simulated.register import Client, basic, device, trusting
from simulated.servers import free_port
from simulated.wire import EIR
from soak_network import CHECKS, HELD, TC_S, Figures, Prober, Turn, World, parser, world

from eir.interfaces.device_authenticity.device_authenticity import PATH as AUTHENTICITY_PATH
from eir.wire.web.passwords import user_line

ROUNDS = 3
"""Number of times that each flood runs alone."""
P99_TIMES = 3.0
"""Maximum ratio of the p99 of the MMEs' latency under a flood to that without it."""
MEMORY_TIMES, MEMORY_FROM_S = 1.5, 60.0
"""Maximum ratio of a process's memory at the end to that after MEMORY_FROM_S."""
IN_FORCE_S = 20.0
"""Maximum time from the answer to the register until its row is in force."""
LONGEST_S = {"live": 1.0, "feed": 5.0, "device-authenticity": 5.0, "page": 5.0}
"""Maximum response time over HTTP under one flood; a kubelet waits 1 s for /live."""
BETWEEN_S = 2.0
"""Pause between two turns of the second half."""
PASSWORD, AUDIENCE, SCOPE = "correct horse battery", "eir", "openid device-authenticity:check-status"
SERVICES = {"feed", "device-authenticity"}
"""Kinds of requests that the services process answers."""

Request = tuple[str, str, bytes]
"""Method, target and body."""


class Web:
    """Client over HTTP/1.1 that sends one request after another, and repeats each until it is answered.

    `right` returns true if an answer (status, body) to a request is right.
    """

    def __init__(
        self, kind: str, url: str, who: str, figures: Figures, *, requests: Iterator[Request], right: Callable[[Request, int, bytes], bool],
        pause_s: float,
    ) -> None:  # fmt: skip
        self._kind, self._url, self._who, self._figures, self._pause_s = kind, url, who, figures, pause_s
        self._requests, self._right = requests, right
        figures.served[kind] = 0

    async def run(self) -> None:
        """Run as this client until cancelled."""
        request = next(self._requests)
        while True:
            with contextlib.suppress(OSError):
                client = await Client.to(self._url, self._who, trusting())
                try:
                    while await self._send(client, request):
                        request = next(self._requests)
                        await asyncio.sleep(self._pause_s)
                finally:
                    client.writer.transport.abort()
            await asyncio.sleep(TC_S)

    async def _send(self, client: Client, request: Request) -> bool:
        """Send one request; return true if it was answered."""
        figures = self._figures
        figures.asked[self._kind] += 1
        began = time.perf_counter()
        try:
            answer = await client.ask(*request, Content_Type="application/json")
        except (OSError, EOFError, TimeoutError):
            figures.lost(self._kind, 0)
            return False
        if answer.status == 503 and figures.may_refuse:
            return False
        if not self._right(request, answer.status, answer.body):
            figures.broken.append(f"{self._kind}: {request} answered {answer.status} {answer.body[:200]!r}")
        figures.answered(self._kind, time.perf_counter() - began)
        if answer.headers.get("connection") == "close":
            client.writer.close()
            fresh = await Client.to(self._url, self._who, trusting())
            client.reader, client.writer = fresh.reader, fresh.writer
        return True


class Attacked(World):
    """Node with all interfaces, and its disturbances."""

    def turns(self) -> Sequence[Turn]:
        """Return the disturbances of the second half, in order."""
        answering, services = Turn(self.kill_the_answering_process, CHECKS), Turn(self.kill_the_services, SERVICES)
        restarted, killed = (Turn(do, may_refuse=True) for do in (self.restart_redis, self.kill_redis))
        return (
            Turn(self.load),
            answering,
            restarted,
            services,
            Turn(self.load),
            Turn(self.kill_the_follower, may_refuse=True),
            answering,
            services,
            killed,
        )

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

    def kill_the_services(self) -> None:
        """Kill the process that answers registers, banks and shops."""
        self.kill("services")

    def memory(self) -> dict[tuple[str, int], float]:
        """Return the resident memory of each process in MB, by name and process id."""
        found = {}
        for name, pid in [("manager", self.site.node.pid), *children(self.site.node.pid).items()]:
            with contextlib.suppress(OSError):
                resident = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
                found[name, pid] = int(resident[1]) / 1024 if resident else 0.0
        return found

    async def watch_memory(self, first: dict[tuple[str, int], float]) -> None:
        """Record the memory of each process when it has run for MEMORY_FROM_S."""
        since: dict[tuple[str, int], float] = {}
        while True:
            for process, megabytes in self.memory().items():
                if time.monotonic() - since.setdefault(process, time.monotonic()) >= MEMORY_FROM_S:
                    first.setdefault(process, megabytes)
            await asyncio.sleep(1)

    async def p99_ms(self, seconds: float) -> float:
        """Return the p99 of the response times of the MMEs from now on."""
        self.figures.times = []
        await asyncio.sleep(seconds)
        return statistics.quantiles(self.figures.times, n=100)[98] * 1000

    def configure(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Write the configuration with every interface; return the values that clients and attackers need."""
        site, interfaces = self.site, ("s13", "n5g", "gsup", "map", "feed", "feed-plain", "authenticity", "page")
        ports = dict(zip(interfaces, (free_port() for _ in interfaces), strict=True))
        issuer = Issuer()
        (site.folder / "users").write_text(
            "".join(user_line(user, PASSWORD) + "\n" for user in ("register", "attacker"))
        )
        (site.folder / "jwks").write_bytes(jwks(issuer))
        (site.folder / "password").write_text(f"{PASSWORD}\n")
        site.configure(
            **settings, listen=[f"tcp://127.0.0.1:{ports['s13']}"], n5g={"listen": f"http://127.0.0.1:{ports['n5g']}"},
            gsup={"listen": f"tcp://127.0.0.1:{ports['gsup']}"}, ss7={"point_code": "1-1-2", "listen": [f"tcp://127.0.0.1:{ports['map']}"]},
            peers=[{"name": "near", "from": ["127.0.0.0/24"], "connections": 2}, {"name": "attacker", "from": ["127.0.8.0/24"]}],
            tls=Authority(site.folder / "tls").write(EIR, "127.0.0.1"), http=f"127.0.0.1:{ports['page']}",
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

    def clients(self, place: Mapping[str, Any], mmes: int) -> list[Any]:
        """Return all clients that must be served."""
        figures, chance, fed = self.figures, self.chance, list[tuple[float, str]]()

        def draw_fed() -> tuple[str, bool]:
            old = [row for row in fed[-2000:] if row[0] < time.monotonic() - IN_FORCE_S]
            return (chance.choice(old)[1], True) if old else self.draw()

        def rows() -> Iterator[Request]:
            for number in range(1 << 31):
                imei = f"{36_100_000 + number // 1000:08d}{number % 1000:06d}"
                yield "POST", device(imei), b""
                fed.append((time.monotonic(), imei))  # the next request comes when this one is answered

        def questions() -> Iterator[Request]:
            while True:
                first, _ = self.draw()
                yield "POST", AUTHENTICITY_PATH, json.dumps({"imei": f"{first}{check_digit(first)}"}).encode()

        def as_listed(request: Request, status: int, body: bytes) -> bool:
            listed = json.loads(request[2])["imei"][:14] in HELD
            return status == 200 and (json.loads(body)["operationalStatus"] != "unknown") is listed

        def again(target: str) -> Iterator[Request]:
            while True:
                yield "GET", target, b""

        gsup, page = f"gsup://127.0.0.1:{place['gsup']}?name=MSC-", f"http://127.0.0.1:{place['page']}"
        reader = f"Basic {base64.b64encode(f'x:{PASSWORD}'.encode()).decode()}"
        return [
            *self.cores(mmes, place["s13"], place["n5g"]),
            Prober("msc", f"{gsup}1", figures, self.draw),
            Prober("witness", f"{gsup}2", figures, draw_fed),
            Prober("sgsn", f"map://127.0.0.1:{place['map']}?point_code=1-1-3&to_point_code=1-1-2", figures, self.draw),
            Web("feed", f"https://127.0.0.1:{place['feed']}", basic("register", PASSWORD), figures, requests=rows(), right=lambda _, status, __: status in {201, 208}, pause_s=0.3),
            Web("device-authenticity", f"http://127.0.0.1:{place['authenticity']}", f"Bearer {place['bank']}", figures, requests=questions(), right=as_listed, pause_s=0.5),
            Web("page", page, reader, figures, requests=again("/"), right=lambda _, status, body: status == 200 and (b"stolen" in body or bool(figures.may_cut)), pause_s=1.0),
            Web("live", page, "", figures, requests=again("/live"), right=lambda _, status, body: (status, body) == (200, b"live\n"), pause_s=0.5),
        ]  # fmt: skip


@contextlib.asynccontextmanager
async def flooding(names: Sequence[str], place: Mapping[str, Any], sent: Counter[str]) -> AsyncIterator[None]:
    """Run floods, each in a process of its own; add the number of their messages to `sent`."""
    started = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-m", "simulated.floods", name, json.dumps(place), cwd=Path(__file__).parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )
        for name in names
    ]  # fmt: skip
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


async def _soak(made: Attacked, place: Mapping[str, Any], options: argparse.Namespace) -> None:
    """Run both halves, and add the broken promises about latency and memory."""
    figures, sent, first = made.figures, Counter[str](), dict[tuple[str, int], float]()
    slowed: dict[str, list[tuple[float, float]]] = {name: [] for name in FLOODS}
    """p99 in ms without and with each flood, round by round."""
    rounds = 1 if options.quick else ROUNDS
    slice_s = 1.0 if options.quick else options.seconds / 2 / (2 * rounds * len(FLOODS))
    async with made.serving(made.clients(place, options.mmes)):
        watching = asyncio.create_task(made.watch_memory(first))
        for _ in range(rounds):
            for name, found in slowed.items():
                await asyncio.to_thread(made.load)
                await made.settle("a delta")
                calm = await made.p99_ms(slice_s)
                async with flooding([name], place, sent):
                    found.append((calm, await made.p99_ms(slice_s)))
                print(
                    f"{name}: p99 {calm:.1f} ms, {found[-1][1]:.1f} ms under the flood; {len(figures.broken)} promises not kept",
                    flush=True,
                )
        longest = {kind: round(figures.longest[kind], 2) for kind in LONGEST_S}
        async with flooding(list(FLOODS), place, sent):
            await made.disturb(
                made.turns(),
                options.seconds / 2,
                len(made.turns()) if options.quick else 0,
                0 if options.quick else BETWEEN_S,
            )
        watching.cancel()
    print(f"attackers sent {dict(sent)}")
    figures.broken += [
        f"the flood {name} sent nothing" for name in FLOODS if not any(kind.startswith(f"{name}: ") for kind in sent)
    ]
    ratios = {name: statistics.median(under / calm for calm, under in found) for name, found in slowed.items()}
    print("p99 under a flood to that without it: " + ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items()))
    now = made.memory()
    grown = {name: (megabytes, now[name, pid]) for (name, pid), megabytes in first.items() if (name, pid) in now}
    print(f"longest response times in s: {longest}; memory in MB after a minute and at the end: {grown}")
    if not options.quick:
        figures.broken += [
            f"{kind}: an answer took {longest[kind]:.1f} s; at most {limit:g} s"
            for kind, limit in LONGEST_S.items()
            if longest[kind] > limit
        ]
        figures.broken += [
            f"the flood {name} makes the p99 of the MMEs {ratio:.1f} times as high"
            for name, ratio in ratios.items()
            if ratio > P99_TIMES
        ]
        figures.broken += [
            f"the memory of {name} grew from {a:.0f} MB to {b:.0f} MB"
            for name, (a, b) in grown.items()
            if b > MEMORY_TIMES * a
        ]


def main(arguments: list[str]) -> int:
    """Run the part `attacks` of scripts/soak."""
    options_of = parser("attacks", __doc__)
    options_of.add_argument(
        "--quick", action="store_true", help="each flood and each turn once; latency and memory have no limits"
    )
    options = seeded(options_of, arguments)
    with world(options, Attacked, own={"local": True}) as (made, settings):
        place = made.configure(settings)
        made.site.start()
        asyncio.run(_soak(made, place, options))
        return made.conclude()

"""Ten times the limit, and ten times the capacity: served peers keep their latency, and a quiet peer is not delayed by a loud one.

The generator compares each answer with its request. First with a `rate_max`: p99 of the answered checks at ten times the limit, compared
with that at 70 % of it. Then without: three peers offer a node more than twice its capacity, then a fourth peer offers ten times as
much as each of them (together ten times the capacity). Compared is the p99 of the three, without and with the fourth; a watchdog is
sent meanwhile.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple, Self

from benchmark import network
from benchmark.build import program
from benchmark.measure import Cores, cores, say
from benchmark.questions import QUICK_QUESTIONS, scattered, write_questions
from benchmark.servers import REALM, Server, free_port, on_cores
from benchmark.site import Site
from simulated.wire import Connection, cer, dwr

RATE_MAX = 2000.0
QUIET, LOUDER = 3, 10
OFFERED = 10
"""Offered load as a multiple of the node's capacity."""
WINDOW = 256
"""Maximum number of unanswered requests of a quiet peer, which it keeps constant."""
RATIO_MAX = 2.0
WATCHDOG_EVERY_S, TW_S = 0.1, 6.0
"""Shortest Tw that RFC 3539 3.4.1 permits."""


class Asker(NamedTuple):
    """One generator."""

    name: str
    rate: float
    window: int = 4096
    connections: int = 1


def main(arguments: list[str]) -> int:
    """Run the part `overload` of scripts/soak."""
    parser = argparse.ArgumentParser(
        prog="soak overload", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=5, help="seconds of a run (5)")
    parser.add_argument("--turns", type=int, default=5, help="number of turns (5)")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one short turn: tests the counts; its times are not valid",
    )
    options = parser.parse_args(arguments)
    if options.quick:
        options.seconds, options.turns = 0.5, 1
    program("load")
    network.enter()
    on = cores()
    with tempfile.TemporaryDirectory(prefix="eir-soak-") as made:
        folder = Path(made)
        site, listed = Site(folder / "site"), scattered(20_000, 1_000)
        site.load(site.release(listed.keys))
        questions = folder / "questions"
        write_questions(questions, listed, count=QUICK_QUESTIONS, hits=0.01)
        with site.server("limited", free_port(), cores=on.server, limits={"rate_max": RATE_MAX}) as server:
            kept = _limited(Run(server, questions, on, options.seconds), options.turns, timed=not options.quick)
        with site.server("open", free_port(), cores=on.server) as server:
            kept &= _crowded(Run(server, questions, on, options.seconds), options.turns, timed=not options.quick)
    return 0 if kept else 1


class Run:
    """One server, and its load."""

    def __init__(self, server: Server, questions: Path, on: Cores, seconds: float) -> None:
        self.server, self._questions, self._on, self._seconds = server, questions, on, seconds

    def ask(self, *askers: Asker) -> list[dict[str, Any]]:
        """Return the results of each generator; all run at once."""
        with on_cores(self._on.generator):
            started = [subprocess.Popen(self._command(asker), stdout=subprocess.PIPE, text=True) for asker in askers]
        found = []
        for process in started:
            out, _ = process.communicate()
            if process.returncode:
                raise RuntimeError(f"the generator did not get on with the node: {self.server.log()[-2000:]}")
            found.append(json.loads(out))
        return found

    def _command(self, asker: Asker) -> list[str]:
        words = {
            "port": self.server.port, "realm": REALM, "name": asker.name, "connections": asker.connections, "window": asker.window,
            "rate": asker.rate, "warmup": 0.5, "seconds": self._seconds, "questions": self._questions, "shed": 3004,
        }  # fmt: skip
        return [str(program("load")), *(f"{name}={value}" for name, value in words.items())]


def _p99_ms(found: dict[str, Any]) -> float:
    return float(found["latency_us"]["p99"]) / 1000


def _limited(run: Run, turns: int, *, timed: bool) -> bool:
    calm, pressed, accepted, wrong, early = [], [], [], 0, 0
    turned_away = []
    for _ in range(turns):
        (below,) = run.ask(Asker("mme", 0.7 * RATE_MAX, connections=4))
        (above,) = run.ask(Asker("mme", OFFERED * RATE_MAX, connections=4))
        calm.append(_p99_ms(below))
        pressed.append(_p99_ms(above))
        accepted.append(above["answers_per_s"])
        wrong += sum(below["errors"].values()) + sum(above["errors"].values())
        early += below["shed"]
        turned_away.append(above["shed"])
        say(
            f"rate_max {RATE_MAX:g}: p99 {calm[-1]:.2f} ms at 70 %, {pressed[-1]:.2f} ms at {OFFERED} times, {above['shed']} turned away"
        )
    ratio = statistics.median(b / a for a, b in zip(calm, pressed, strict=True))
    print(
        f"at {OFFERED} times rate_max ({RATE_MAX:g}/s): {statistics.median(accepted):.0f}/s answered, p99 {statistics.median(pressed):.2f} ms; "
        f"at 70 %: {statistics.median(calm):.2f} ms; ratio {ratio:.2f}"
    )
    return _hold(("no wrong answer", not wrong), ("above the limit some are turned away", all(turned_away))) & _hold(
        ("nobody turned away below the limit", not early),
        (f"what is answered keeps its p99 within {RATIO_MAX:g} times", ratio <= RATIO_MAX),
        ("as many are answered as the limit says", abs(statistics.median(accepted) / RATE_MAX - 1) < 0.1),
        matter=timed,
    )


def _crowded(run: Run, turns: int, *, timed: bool) -> bool:
    (best,) = run.ask(Asker("mme", 0, WINDOW, QUIET + 1))
    able = best["answers_per_s"]
    quiet_rate = OFFERED * able / (QUIET + LOUDER)
    quiet = [Asker(f"quiet{number}-", quiet_rate, WINDOW) for number in range(QUIET)]
    loud = Asker("loud", LOUDER * quiet_rate, LOUDER * WINDOW)
    say(f"the node can do {able:,.0f}/s; {QUIET} peers offer {quiet_rate:,.0f}/s each, the loud one {loud.rate:,.0f}/s")
    without, beside, shares, wrong, served = [], [], [], sum(best["errors"].values()), True
    with Watchdog(run.server.port) as watchdog:
        for _ in range(turns):
            alone = run.ask(*quiet)
            all_of_them = run.ask(*quiet, loud)
            without.append(max(map(_p99_ms, alone)))
            beside.append(max(map(_p99_ms, all_of_them[:-1])))
            shares.append(all_of_them[-1]["answers_per_s"] / sum(found["answers_per_s"] for found in all_of_them))
            wrong += sum(sum(found["errors"].values()) for found in (*alone, *all_of_them))
            served &= all(found["answered"] for found in all_of_them)
            say(
                f"p99 of the quiet {without[-1]:.2f} ms, {beside[-1]:.2f} ms beside the loud one, which gets {shares[-1]:.0%}"
            )
    ratio = statistics.median(b / a for a, b in zip(without, beside, strict=True))
    print(
        f"offered {OFFERED} times what a node can do ({able:,.0f}/s), by {QUIET + 1} peers: p99 of the quiet ones "
        f"{statistics.median(beside):.2f} ms, without the loud one {statistics.median(without):.2f} ms; ratio {ratio:.2f}; "
        f"the loud one gets {statistics.median(shares):.0%}; {len(watchdog.took_s)} watchdogs, worst after {max(watchdog.took_s) * 1000:.0f} ms"
    )
    return _hold(("no wrong answer", not wrong), ("each peer is answered", served)) & _hold(
        (f"the quiet peers keep their p99 within {RATIO_MAX:g} times", ratio <= RATIO_MAX),
        (f"each DWA before Tw ({TW_S:g} s)", max(watchdog.took_s) < TW_S),
        matter=timed,
    )


class Watchdog:
    """Peer that only sends DWRs, in a thread of its own."""

    def __init__(self, port: int) -> None:
        self.took_s: list[float] = []
        self._port = port
        self._over = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._ask()))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    async def _ask(self) -> None:
        host = f"watchdog.{REALM}"
        connection = Connection(*await asyncio.open_connection("127.0.0.1", self._port))
        await connection.open(cer(host, REALM))
        while not self._over.is_set():
            asked = time.perf_counter()
            await connection.ask(dwr(host))
            self.took_s.append(time.perf_counter() - asked)
            await asyncio.sleep(WATCHDOG_EVERY_S)
        await connection.close()


def _hold(*promises: tuple[str, bool], matter: bool = True) -> bool:
    """Print each broken promise; return true if none is broken, or if they do not `matter`, as in a short run."""
    for promise, kept in promises:
        if not kept:
            print(f"not kept: {promise}", file=sys.stderr)
    return not matter or all(kept for _, kept in promises)

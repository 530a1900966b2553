"""Latency of checks over Diameter at a steady rate, alone and while the same core serves clients of another interface."""

import asyncio
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, NamedTuple

from eir.cli.output import table
from eir.interfaces.s13 import INTERFACE as S13

from . import feeder
from .measure import Load, Target, Times, ask, at_most, percentile
from .servers import PATIENCE_S, REALM, Server, on_cores

DIAMETER = Load(4, 4096, 2_000.0, on_wire=True)
"""Latency is measured on the wire, since the generator shares its core with the clients."""
BESIDE_FIRST = 100_000_000
"""First device of questions beside checks: other devices than in the measurement alone, so that each is new."""
MARGIN_S = 2.0


class Clients(NamedTuple):
    """Clients of an interface of the node, run by benchmark.feeder."""

    url: str
    connections: int
    out: Path
    """File for the answers of the clients."""
    on: set[int]

    @contextmanager
    def asking(self, rate: float, how: Times) -> Iterator[None]:
        """Run the clients meanwhile, at this number of requests per second, or as fast as answers come (0)."""
        with self._start(rate, how.seconds + how.warmup + MARGIN_S, BESIDE_FIRST) as clients:
            try:
                yield
            finally:
                clients.terminate()

    def answered(self, rate: float, seconds: float) -> dict[str, Any]:
        """Return the answers that the clients received meanwhile."""
        with self._start(rate, seconds) as clients:
            clients.wait()
        return dict(json.loads(self.out.read_text()))

    def _start(self, rate: float, seconds: float, first: int = 0) -> subprocess.Popen[bytes]:
        words = [feeder.__file__, self.url, self.connections, rate, seconds, first, self.out]
        with on_cores(self.on):
            return subprocess.Popen([sys.executable, *map(str, words)], stdin=subprocess.DEVNULL)


class Mme(NamedTuple):
    """MME in a process of its own that asks about these devices in turn, again and again."""

    port: int
    on: set[int]
    imsi: str
    devices: Sequence[int]
    pause_s: float
    """Interval between two checks, in seconds."""

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Run the clients meanwhile, at this number of requests per second, or as fast as answers come (0)."""
        context = multiprocessing.get_context("spawn")
        answered = context.Event()
        process = context.Process(target=_ask, args=(self, answered), daemon=True)
        process.start()
        try:
            answered.wait(PATIENCE_S)
            yield
        finally:
            alive = process.is_alive()
            process.terminate()
            process.join()
        if not alive:
            raise RuntimeError("the MME beside the load did not ask to the end")


def _ask(mme: Mme, answered: Event) -> None:
    """Ask until ended."""
    os.sched_setaffinity(0, mme.on)

    async def ask_in_turn() -> None:
        url = f"s13://127.0.0.1:{mme.port}?origin_host=beside.{REALM}&origin_realm={REALM}"
        async with S13.probe_of(url).asking(imsi=mme.imsi) as check:
            due = time.monotonic()
            while True:
                for device in mme.devices:
                    await check(f"{device:014d}")
                    answered.set()
                    due += mme.pause_s
                    await asyncio.sleep(max(due - time.monotonic(), 0))

    asyncio.run(ask_in_turn())


class Latency:
    """99th percentiles (us) of checks over Diameter, alone and beside other work, by turn."""

    def __init__(self, eir: Server, questions: Path, how: Times, on: set[int]) -> None:
        self._eir, self._questions, self._how, self._on = eir, questions, how, on
        self.alone: list[float] = []
        self.beside: list[float] = []

    def measure(self, beside: AbstractContextManager[object]) -> str:
        """Measure one turn, alone and within `beside`, and return both figures as a text."""
        self.alone.append(self._p99_us())
        with beside:
            self.beside.append(self._p99_us())
        return f"p99 of checks {self.alone[-1]:,.0f} us alone, {self.beside[-1]:,.0f} us beside"

    def _p99_us(self) -> float:
        found = ask(self._eir, DIAMETER, self._questions, self._how, self._on)
        if faults := sum(found["errors"].values()):
            raise RuntimeError(f"{faults} answers over Diameter were wrong")
        return percentile("p99")(found)


def latency_report(turns: Iterable[Latency], work: str, times_max: float) -> tuple[dict[str, float], Target, str]:
    """Return the medians over the turns, the target of their ratio, and a line of text."""
    pairs = [pair for each in turns for pair in zip(each.alone, each.beside, strict=True)]
    alone_us, beside_us = (round(statistics.median(figures), 1) for figures in zip(*pairs, strict=True))
    target = at_most(f"p99 of Diameter beside {work}, times its own", times_max, round(beside_us / alone_us, 2))
    text = f"Diameter at {DIAMETER.rate:,.0f}/s: p99 {alone_us:,.0f} us alone, {beside_us:,.0f} us beside {work}\n"
    return {"alone_us": alone_us, "beside_us": beside_us}, target, text


def clients_report(answered: Sequence[Mapping[str, Any]], unit: str, good: str) -> tuple[dict[str, Any], str]:
    """Return the figures of clients as a part of the document, and as a table. `good`: status of a right answer."""
    rows = [
        {
            f"{unit}_per_s": round(turn["answers_per_s"]),
            "p50_ms": round(turn["p50_ms"], 1),
            "p99_ms": round(turn["p99_ms"], 1),
        }
        for turn in answered
    ]
    statuses = sum((Counter(turn["answers"]) for turn in answered), Counter[str]())
    document = {"measured": rows, "wrong_answers": statuses.total() - statuses[good], "answered": dict(statuses)}
    return document, table(rows, tuple(rows[0]), width=None)

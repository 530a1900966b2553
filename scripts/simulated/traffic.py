"""Traffic beside a load: clients that check without a pause, a watchdog, and peers that connect and disconnect. Each verifies its answers.

For tests and for `scripts/soak`; the figures are what both print.
"""

import asyncio
import itertools
import time
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from .node import COMMAND
from .wire import HOST, REALM, TGPP, Connection, avp, cer, dpr, dwr, ecr

BATCH_S = 0.005
"""Pause between the batches of the steady client."""
WATCHDOG_S = 0.05
CONNECT_S = 0.1
AFTER_S = 1.0
"""Traffic goes on this long after the new list was seen."""


@dataclass(slots=True)
class Figures:
    """The observations of the traffic."""

    answers: int = 0
    wrong: list[str] = field(default_factory=list)
    connections: int = 0
    refused: list[str] = field(default_factory=list)
    answer_s: list[float] = field(default_factory=list)
    watchdog_s: list[float] = field(default_factory=list)
    load_s: float = 0.0
    in_force_s: float = 0.0
    """From the load's end to the first answer by the new list; below 0: before it."""
    slice_ms: float = 0.0
    """The longest time that the switch held the loop, as the node measured it."""

    def lines(self):
        """For people."""
        p50, p99 = np.percentile(self.answer_s, (50, 99)) * 1000
        yield f"{self.answers} answers, {len(self.wrong)} wrong; p50 {p50:.2f} ms, p99 {p99:.2f} ms, worst {max(self.answer_s) * 1000:.1f} ms"
        yield f"{self.connections} new connections, {len(self.refused)} refused"
        yield f"{len(self.watchdog_s)} watchdogs answered, worst after {max(self.watchdog_s) * 1000:.1f} ms"
        yield f"load took {self.load_s:.1f} s, in force {self.in_force_s:+.2f} s after its end"
        yield f"longest slice of the switch on the loop: {self.slice_ms:.2f} ms"


def lists_of(entries, seed):
    """Keys of two lists that differ in a hundredth: (old, new), each sorted; TACs of 250 devices on average."""
    numbers = np.random.default_rng(seed)
    tacs = numbers.choice(10**8, max(1, entries // 250), replace=False)
    spare = entries // 50 + entries // 100
    keys = np.unique(numbers.choice(tacs, entries + spare) * 10**6 + numbers.integers(0, 10**6, entries + spare))
    keys = numbers.permutation(keys)[: entries + entries // 100]
    return np.sort(keys[: -(entries // 100)]), np.sort(keys[entries // 100 :])


def write_list(path, keys):
    """A file of the layout `eir`."""
    pl.DataFrame({"imei": keys}).with_columns(pl.col("imei").cast(pl.String).str.zfill(14)).write_csv(path)


async def connect(node, host):
    client = Connection(*await asyncio.open_connection(*node.address))
    await client.open(cer(host))
    return client


class Traffic:
    """Those who ask while a list is switched from `old` to `new` (sorted keys)."""

    def __init__(self, node, old, new):
        self.node = node
        self.figures = Figures()
        self.over, self.switched = asyncio.Event(), asyncio.Event()
        self.switched_at = 0.0
        self._both = np.intersect1d(old, new, assume_unique=True)
        self._only = {
            "old": np.setdiff1d(old, new, assume_unique=True),
            "new": np.setdiff1d(new, old, assume_unique=True),
        }
        self._listed = np.union1d(old, new)
        self._numbers = np.random.default_rng(1)

    def _questions(self):
        """One device of each kind: listed in both, in the old list only, in the new one only, in neither."""
        one = self._numbers.choice
        other = int(one(self._both))
        while (at := np.searchsorted(self._listed, other)) < len(self._listed) and self._listed[at] == other:
            other = (other + 1) % 10**14
        return [
            ("both", one(self._both)),
            ("old", one(self._only["old"])),
            ("new", one(self._only["new"])),
            ("neither", other),
        ]

    async def steady(self):
        """Ask for ever; each answer is by the old list until the first that is by the new one, and by that from then on."""
        client = await connect(self.node, HOST)
        for batch in itertools.count():
            if self.over.is_set():
                break
            asked = self._questions()
            sent = time.perf_counter()
            await client.send(
                *(
                    ecr(f"{key:014d}", ids=(batch, n), session=avp(263, f"{HOST};{batch};{n}"))
                    for n, (_, key) in enumerate(asked)
                )
            )
            for n, (kind, key) in enumerate(asked):
                answer = await client.read()
                self.figures.answer_s.append(time.perf_counter() - sent)
                self._judge(answer, n, kind, key)
            await asyncio.sleep(BATCH_S)
        await client.close()

    def _judge(self, answer, number, kind, key):
        self.figures.answers += 1
        status = answer.number(1445, TGPP)
        if kind in self._only and not self.switched.is_set() and status == (kind == "new"):
            self.switched_at = time.monotonic()
            self.switched.set()
        by_new = self.switched.is_set()
        expected = {"both": 1, "neither": 0, "old": int(not by_new), "new": int(by_new)}[kind]
        if (answer.end_to_end, answer.result, status) != (number, 2001, expected):
            self.figures.wrong.append(f"{key:014d} ({kind}): {answer.result}, {status}, not {expected}")

    async def watchdog(self):
        """A peer that asks only whether we live."""
        host = f"watchdog.{REALM}"
        client = await connect(self.node, host)
        while not self.over.is_set():
            sent = time.perf_counter()
            answer = await client.ask(dwr(host))
            assert (answer.command, answer.result) == (280, 2001)
            self.figures.watchdog_s.append(time.perf_counter() - sent)
            await asyncio.sleep(WATCHDOG_S)
        await client.close()

    async def newcomers(self):
        """Peers that connect and leave."""
        while not self.over.is_set():
            host = f"newcomer{self.figures.connections}.{REALM}"
            try:
                client = await connect(self.node, host)
                await client.ask(dpr(host=host))
                await client.close()
            except (OSError, AssertionError, TimeoutError, asyncio.IncompleteReadError) as error:
                self.figures.refused.append(repr(error))
            self.figures.connections += 1
            await asyncio.sleep(CONNECT_S)


async def load_beside_traffic(site, node, manifest, old, new):
    """Load the release with traffic on the node; `old` and `new` are the sorted keys before and after. Returns Figures."""
    traffic = Traffic(node, old, new)
    figures = traffic.figures
    async with asyncio.TaskGroup() as tasks:
        for task in (traffic.steady, traffic.watchdog, traffic.newcomers):
            tasks.create_task(task())
        began = time.monotonic()
        process = await asyncio.create_subprocess_exec(
            *COMMAND, "load", str(manifest), env=site.environment(), cwd=site.folder, stderr=asyncio.subprocess.PIPE
        )
        _, said = await process.communicate()
        assert process.returncode == 0, said.decode()
        ended = time.monotonic()
        async with asyncio.timeout(180):
            await traffic.switched.wait()
        await asyncio.sleep(AFTER_S)
        traffic.over.set()
    figures.load_s, figures.in_force_s = ended - began, traffic.switched_at - ended
    figures.slice_ms = (await asyncio.to_thread(node.metrics))["eir_switch_longest_slice_seconds"] * 1000
    return figures

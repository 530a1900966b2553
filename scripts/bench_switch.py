"""Latency during the switch of a list of 10 million entries.

The switch is a rollback. Both releases are in the store, so only the work of the node is measured: reading the other release and changing
to it, beside 20,000 checks a second on the same core. The measurement is about as long as this work. With --redis the lists are in a
Redis on the generator's core. Latency begins when a request arrives at the node's socket and ends when its answer arrives at the
generator's, by the kernel's clock; the delay of the generator itself is shown. At the end a node with two workers switches too, and the
private memory of its workers is shown: they share the image of the list.
"""

import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
from benchmark.measure import (
    COLUMNS,
    Load,
    Results,
    ask,
    at_most,
    begin,
    finish,
    own_options,
    percentile,
    rows,
    say,
    wrong_answers,
)
from benchmark.questions import QUICK_QUESTIONS, Scattered, scattered, write_list, write_questions
from benchmark.servers import Server, free_port, memory_mb, redis
from benchmark.site import LIST, Site, at_rest, await_serial

from eir.cli.output import table
from eir.lists.changes.undo import plan_rollback
from eir.lists.log.writer import ListWriter
from eir.lists.record.settings import DEVICES
from eir.lists.stores.open import SQLITE, open_store

ENTRIES, QUICK_ENTRIES, TACS, QUESTIONS = 10_000_000, 100_000, 250_000, 500_000
STEADY = Load(4, 4096, 20_000.0, on_wire=True)
P99_TIMES_MAX = 1.3
LOOK_S = 0.02


def main(arguments: Sequence[str]) -> int:
    """Run the part `switch` of scripts/bench."""
    own = own_options()
    own.add_argument("--entries", type=int, help=f"entries of each release ({ENTRIES:,})")
    own.add_argument("--rate", type=float, default=STEADY.rate, help=f"checks per second ({STEADY.rate:g})")
    own.add_argument("--workers", type=int, default=1, help="workers of the node, all on the same core (1)")
    own.add_argument("--redis", action="store_true", help="the lists are in a Redis of the bench's own")
    options, on, how = begin("switch", __doc__, arguments, own, seconds=1)
    entries = options.entries or (QUICK_ENTRIES if options.quick else ENTRIES)
    load = STEADY._replace(rate=options.rate)
    results: Results = {}
    took: list[float] = []
    with tempfile.TemporaryDirectory(prefix="eir-bench-") as made, ExitStack() as running:
        folder, store = Path(made), SQLITE
        if options.redis:
            server = running.enter_context(redis(log=folder / "redis.log", cores=on.generator))
            for thread in Path(f"/proc/{server.pids[0]}/task").iterdir():
                os.sched_setscheduler(int(thread.name), os.SCHED_IDLE, os.sched_param(0))
            store = f"redis://127.0.0.1:{server.port}"
        site = Site(folder / "site", loader_cores=on.generator, store=store)
        first, second = (scattered(entries, TACS, seed) for seed in (14, 15))
        # Whichever is in force, a device in neither is white: only these are asked about.
        both = Scattered(np.union1d(first.keys, second.keys), np.union1d(first.tacs, second.tacs))
        write_questions(folder / "questions", both, count=QUICK_QUESTIONS if options.quick else QUESTIONS, hits=0)
        site.load(site.release(first.keys))
        other = site.folder / "other.csv"
        write_list(other, second.keys)
        with site.server("eir", free_port(), cores=on.server, workers=options.workers) as server:
            for turn in range(how.turns):
                site.load(site.release(other, turn + 2))
                await_serial(site.state, turn + 2)
                asyncio.run(at_rest(site.store, site.state))
                server.rest()
                quiet = ask(server, load, folder / "questions", how, on.generator)
                busy = ask(
                    server,
                    load,
                    folder / "questions",
                    how,
                    on.generator,
                    meanwhile=partial(_roll_back, site, server, on.generator, how.seconds, took),
                )
                for name, found in (("quiet", quiet), ("during the switch", busy)):
                    results.setdefault((name, str(load)), []).append(found)
                say(
                    f"turn {turn + 1}: p99 {quiet['latency_us']['p99']:.0f} us, then {busy['latency_us']['p99']:.0f} us"
                )
        with site.server("two workers", free_port(), cores=on.server, workers=2) as server:
            own_mb = [_own_mb(server.workers)]
            site.load(site.release(other, how.turns + 2))
            await_serial(site.state, how.turns + 2)
            server.rest()  # what was in force before is freed
            own_mb.append(_own_mb(server.workers))
    value = percentile("p99")
    pairs = zip(results["during the switch", str(load)], results["quiet", str(load)], strict=True)
    times_quiet = [round(value(busy) / value(quiet), 2) for busy, quiet in pairs]
    target = at_most("p99 during the switch, times the quiet one", P99_TIMES_MAX, statistics.median(times_quiet))
    measured = {
        "measured": rows(results), "p99_times_quiet": times_quiet, "followed_s": took, "entries": entries, "own_mb": own_mb,
        "generator_late_us_p99": [round(found["late_us_p99"]) for found in results["during the switch", str(load)]],
        "on_wire": all(found["on_wire"] for each in results.values() for found in each), "wrong_answers": wrong_answers(results),
    }  # fmt: skip
    text = "\n".join((
        f"by turn, p99 in times of the quiet one: {times_quiet}; the node had followed after s: {took}",
        f"how late the generator itself was in 1 of 100 cases while the list was switched, us: {measured['generator_late_us_p99']}",
        f"memory of its own of each of two workers: {own_mb[0]} MB after the start, {own_mb[1]} MB after a full switch", "",
    ))  # fmt: skip
    return finish("switch", measured, [target], options, table(rows(results), COLUMNS, width=None) + text)


def _roll_back(site: Site, server: Server, cores: set[int], measured_s: float, took: list[float]) -> None:
    """Roll the list's last release back in the store, on the generator's spare cores, and note the time until the node has followed.

    During the measurement the node is not asked for its status, which would need time of one core, and the maps of its workers, which show
    that they have followed, are not read, which would need time of the other.
    """
    mapped = _mapped(server)

    async def roll_back() -> None:
        store = open_store(site.store, site.state)
        try:
            planned = await plan_rollback(store, LIST)
            await ListWriter(store, LIST, DEVICES, "bench").write(planned.make)
        finally:
            await store.close()

    def aside() -> None:
        os.sched_setaffinity(0, cores)  # of this thread
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        asyncio.run(roll_back())
        time.sleep(measured_s)
        while not all(now - before for now, before in zip(_mapped(server), mapped, strict=True)):
            time.sleep(LOOK_S)

    began = time.perf_counter()
    with ThreadPoolExecutor(max_workers=1) as thread:
        thread.submit(aside).result()
    took.append(round(time.perf_counter() - began, 2))


def _mapped(server: Server) -> list[set[str]]:
    """Return the images of lists that each worker has mapped, as inodes."""
    maps = [Path(f"/proc/{pid}/maps").read_text().splitlines() for pid in server.workers]
    return [{line.split()[4] for line in lines if "/memfd:eir-list" in line} for lines in maps]


def _own_mb(workers: Sequence[int]) -> float:
    return max(memory_mb(pid)["own"] for pid in workers)

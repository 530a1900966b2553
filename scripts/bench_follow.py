"""Delay from Redis to all workers of two nodes.

The nodes are real `eir serve` processes; the bench starts its own redis-server. The delay begins when Redis confirms to the loader that
the list is in force, and ends when the last worker answers from that list. The table also shows the time that the loader needed to write
the release, and the processor time of nodes and Redis for a switch. Where nodes and Redis share few cores, the processor time decides the
delay, and it hardly varies on a busy machine.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmark.questions import scattered
from benchmark.servers import redis_program
from benchmark.site import LIST, at_rest
from simulated.hostile import seconds_of_processor
from simulated.node import Publisher, Site
from simulated.servers import Server
from simulated.store_content import Lists

from eir.lists.stores.redis import RedisStore
from eir.lists.table.columns import rows_of
from eir.lists.table.table import table_of
from eir.node.observe.control import ask

ENTRIES, TACS = 10_000_000, 250_000
SWITCH_S_MAX, ENTRY_S_MAX = 2.0, 0.05
LOCAL = "local"
START_S = 120
POLL_S, POLL_PART = 0.002, 0.02
"""A node is asked again after this time (s), or after this part of the elapsed time, so that the question costs little of
the measured time."""


def main(arguments: Sequence[str]) -> int:
    """Run the part `follow` of scripts/bench; exit status 1 if a median is over its limit."""
    parser = argparse.ArgumentParser(
        prog="bench follow", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--entries", type=int, default=ENTRIES)
    parser.add_argument("--tacs", type=int, default=TACS, help="number of TACs of the entries")
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2, help="of each node")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument(
        "--quick", action="store_true", help="100,000 entries, 2 turns: tests that it works; the figures are not valid"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    if options.quick:
        options.entries, options.tacs, options.turns = 100_000, 2_500, 2
    with tempfile.TemporaryDirectory(prefix="eir-bench-") as folder, Server(redis_program()) as server:
        found = asyncio.run(_measure(server, Path(folder), options))
    medians = {what: statistics.median(seconds) for what, seconds in found.items()}
    if options.json:
        print(json.dumps({"entries": options.entries, "tacs": options.tacs, "turns": found, "medians": medians}))
    else:
        print(
            f"{options.entries:,} entries over {options.tacs:,} TACs; {options.nodes} nodes of {options.workers} workers, "
            f"{len(os.sched_getaffinity(0))} cores; seconds"
        )
        for what, seconds in found.items():
            print(f"  {what:<48}{medians[what]:>8.3f}   of {' '.join(f'{each:.3f}' for each in seconds)}")
    late = max(medians[SWITCH], medians[DELTA]) > SWITCH_S_MAX or medians[ENTRY] > ENTRY_S_MAX
    return int(late and not options.quick)


WRITE, SWITCH = "a full release is written", "every worker has it"
NODES, REDIS = "  processor time of the nodes", "  processor time of Redis"
ENTRY, DELTA = "every worker has a single entry of a local list", "every worker has a single change of the large list"


async def _measure(server: Server, folder: Path, options: argparse.Namespace) -> dict[str, list[float]]:
    (folder / "publisher").mkdir()
    publisher = Publisher(folder / "publisher")
    found: dict[str, list[float]] = {WRITE: [], SWITCH: [], NODES: [], REDIS: [], ENTRY: [], DELTA: []}
    with ExitStack() as stack:
        store = RedisStore(server.url)
        lists = Lists(store)
        releases = [table_of(rows_of(scattered(options.entries, options.tacs, seed).keys)) for seed in (14, 15)]
        change = await lists.load(releases[0], 1, LIST)
        await lists.load((), name=LOCAL)
        sites = [stack.enter_context(Site(folder / f"node-{number}", publisher)) for number in range(options.nodes)]
        for site in sites:
            site.configure(
                store=server.url, workers=options.workers, lists={LIST: {"signers": "signers"}, LOCAL: {"local": True}},
                policy={"rules": [{"list": name, "answer": "blacklisted"} for name in (LIST, LOCAL)]},
            )  # fmt: skip
            await asyncio.to_thread(site.start)
        await _reached(sites, LIST, change.generation, START_S)
        await _at_rest(sites, server.url)

        def worked() -> tuple[float, float]:
            return sum(seconds_of_processor(site.node.pid) for site in sites), seconds_of_processor(server.process.pid)

        for turn in range(options.turns):
            began = time.perf_counter()
            change = await lists.load(releases[(turn + 1) % 2], turn + 2, LIST)
            found[WRITE].append(time.perf_counter() - began)
            before = worked()
            found[SWITCH].append(await _time(_reached(sites, LIST, change.generation)))
            for part, now, then in zip((NODES, REDIS), worked(), before, strict=True):
                found[part].append(now - then)
            await _at_rest(sites, server.url)
            change = await lists.change([35_000_000_000_000 + turn], name=LOCAL)
            found[ENTRY].append(await _time(_reached(sites, LOCAL, change.generation)))
            change = await lists.change([35_000_000_000_000 + turn], name=LIST, what="load")
            found[DELTA].append(await _time(_reached(sites, LIST, change.generation)))
            await _at_rest(sites, server.url)
            print(
                f"turn {turn + 1}: " + ", ".join(f"{seconds[-1]:.3f} s" for seconds in found.values()), file=sys.stderr
            )
        await store.close()
    return found


async def _at_rest(sites: Sequence[Site], store: str) -> None:
    for site in sites:
        await at_rest(store, site.state, LIST)


async def _time(what: Awaitable[Any]) -> float:
    began = time.perf_counter()
    await what
    return time.perf_counter() - began


async def _reached(sites: Sequence[Site], name: str, generation: int, patience_s: float = 60.0) -> None:
    """Wait until every worker of every node has the generation."""

    def holds(site: Site) -> bool:
        said = ask(site.state, "status")
        return bool(said["in_step"]) and said["lists"].get(name, {}).get("generation") == generation

    began = time.perf_counter()

    async def reached(site: Site) -> None:
        while not await asyncio.to_thread(holds, site):  # noqa: ASYNC110  # another process makes it true
            await asyncio.sleep(max(POLL_S, POLL_PART * (time.perf_counter() - began)))

    async with asyncio.timeout(patience_s):
        await asyncio.gather(*(reached(site) for site in sites))

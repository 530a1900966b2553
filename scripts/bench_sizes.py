"""Load, memory, start and answers/s with 1,000 to 100 million entries.

Entries are scattered evenly over 250,000 TACs. Questions draw from the same TACs by Zipf's law; 1 % are about listed devices, then
50 %. All nodes run at once, and answer in turns. The table shows the resident memory of the answering process, the
memory of all processes of a node (shared memory counted once), and the private memory of the answering process. A
node is ready when its list's image is made from the store's pages.
"""

import argparse
import asyncio
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmark.measure import (
    Cores,
    Load,
    Target,
    answers_per_s,
    ask,
    at_least,
    at_most,
    begin,
    finish,
    in_turns,
    median,
    own_options,
    percentile,
    ratio,
    say,
    times,
    wrong_answers,
)
from benchmark.questions import QUICK_QUESTIONS, scattered, write_questions
from benchmark.servers import free_port, memory_mb, redis_program
from benchmark.site import Site, at_rest
from simulated.servers import Server

from eir.cli.output import table
from eir.lists.record.settings import DEVICES, PAIRS

SIZES = (1_000, 1_000_000, 10_000_000, 100_000_000)
QUICK_SIZES = (1_000, 100_000)
TACS, QUESTIONS = 250_000, 1_000_000
LOAD, WITH_HITS = LOADS = Load(4, 256), Load(4, 256, hits=0.5)
OF_SMALLEST_MIN, NODE_MB_MAX, SMALL_NODE_MB_MAX, READY_S_MAX = 0.9, 800, 200, 5
COLUMNS = (
    "entries", "load_s", "store_mb", "ready_s", "resident_mb", "node_mb", "own_mb", "answers_per_s", "of_smallest", "with_hits_of_smallest",
    "cpu_us_per_answer", "p99_us",
)  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    """Run the part `sizes` of scripts/bench."""
    own = own_options()
    own.add_argument(
        "--entries", type=int, nargs="+", metavar="N", help=f"sizes ({', '.join(f'{size:,}' for size in SIZES)})"
    )
    own.add_argument(
        "--pairs",
        action="store_true",
        help="a list of pairs: each device is allowed with one SIM, and blocked with any other",
    )
    own.add_argument("--redis", action="store_true", help="the store of each node is a Redis of the bench's own")
    own.add_argument(
        "--work",
        type=Path,
        help="folder for the files, 25 bytes per entry or 80 per pair (default: a temporary folder)",
    )
    options, on, how = begin("sizes", __doc__, arguments, own)
    sizes = options.entries or (QUICK_SIZES if options.quick else SIZES)
    with tempfile.TemporaryDirectory(dir=options.work, prefix="eir-bench-") as made, ExitStack() as running:
        folder = Path(made)
        found = [_prepare(folder / f"{size}", size, on, options, running) for size in sizes]
        servers = []
        for row, size in zip(found, sizes, strict=True):
            site: Site = row.pop("site")
            server = running.enter_context(site.server(f"{size:,} entries", free_port(), cores=on.server))
            servers.append(server)
        # Each is asked about its own list's devices, but all about the same TACs.
        results = {}
        for _ in range(how.turns):
            for server, size in zip(servers, sizes, strict=True):
                for load in LOADS:
                    asked = in_turns(
                        [server], [load], _questions(folder / f"{size}", load), how._replace(turns=1), on.generator
                    )
                    for key, runs in asked.items():
                        results.setdefault(key, []).extend(runs)
        for row, server in zip(found, servers, strict=True):
            row["resident_mb"] = memory_mb(server.answering[0])["resident"]
            row["answers_per_s"] = round(median(results, server.name, LOAD, answers_per_s))
            row["cpu_us_per_answer"] = round(
                median(results, server.name, LOAD, lambda found: float(found["server_us_per_answer"])), 2
            )
            row["p99_us"] = round(median(results, server.name, LOAD, percentile("p99")), 1)
            for column, load in (("of_smallest", LOAD), ("with_hits_of_smallest", WITH_HITS)):
                row[column] = ratio(results, server.name, servers[0].name, load, answers_per_s)["median"]
    smallest, largest = found[0], found[-1]
    what = f"{largest['entries']:,} entries"
    targets: list[Target] = [
        at_least(f"{what}: answers a second, of those with {sizes[0]:,}", OF_SMALLEST_MIN, largest["of_smallest"]),
        at_least(f"{what}: the same with {WITH_HITS.hits:.0%} hits", OF_SMALLEST_MIN, largest["with_hits_of_smallest"]),
        at_most(f"{what}: memory of a node", NODE_MB_MAX, largest["node_mb"], " MB"),
        at_most(f"{sizes[0]:,} entries: memory of a node", SMALL_NODE_MB_MAX, smallest["node_mb"], " MB"),
        at_most(f"{what}: ready from the store", READY_S_MAX, largest["ready_s"], " s"),
    ]
    if options.pairs:
        targets = []  # which are those of a list of devices
    shown = [{**row, "entries": f"{row['entries']:,}"} for row in found]
    measured = {"measured": found, "wrong_answers": wrong_answers(results)}
    return finish("sizes", measured, targets, options, table(shown, COLUMNS, width=None))


def _prepare(folder: Path, size: int, on: Cores, options: argparse.Namespace, running: ExitStack) -> dict[str, Any]:
    """Make a site with a list of that size; return its costs, and its memory after some questions."""
    say(f"{size:,} entries: writing")
    listed, redis_server = scattered(size, TACS), None
    site = Site(folder, loader_cores=on.generator, kind=PAIRS if options.pairs else DEVICES)
    if options.redis:
        redis_server = running.enter_context(Server(redis_program()))
        site.store = redis_server.url
        empty_mb = _used_mb(redis_server)
    for load in LOADS:
        write_questions(
            _questions(folder, load), listed, count=QUICK_QUESTIONS if options.quick else QUESTIONS, hits=load.hits
        )
    manifest = site.release(listed.keys)
    say(f"{size:,} entries: loading")
    load_s = site.load(manifest)
    for data in folder.glob("*.csv"):
        data.unlink()
    if redis_server:
        store_mb = _used_mb(redis_server) - empty_mb
    else:
        store_mb = sum(file.stat().st_size for file in site.state.iterdir()) / 1e6
    with site.server("memory", free_port(), cores=on.server) as server:
        ask(server, LOAD, _questions(folder, LOAD), times(options), on.generator)
        own_mb = max(memory_mb(pid)["own"] for pid in server.answering)
        node_mb = sum(memory_mb(pid)["share"] for pid in server.pids)
        ready_s = server.ready_s
        asyncio.run(at_rest(site.store, site.state))
    return {
        "site": site, "entries": size, "load_s": round(load_s, 1), "store_mb": round(store_mb, 1), "ready_s": round(ready_s, 2),
        "node_mb": round(node_mb, 1), "own_mb": own_mb,
    }  # fmt: skip


def _used_mb(server: Server) -> float:
    return int(server.command("INFO", "memory").partition(b"used_memory:")[2].split()[0]) / 1e6


def _questions(folder: Path, load: Load) -> Path:
    return folder / f"questions-{load.hits}"

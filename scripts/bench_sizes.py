"""The size of a list: load, memory, start and answers a second with 1 thousand, 1 million, 10 million and 100 million entries.

Entries are scattered evenly over 250,000 TACs; questions draw their TACs from the same by Zipf's law, and 1 % are about
listed devices. All nodes run at once, and are asked in turns. Memory is that of one worker of a node that has one (resident),
and of each worker of a node that has two, which share what they have not written to (share, own). A node answers as soon as it is
ready, and prepares for full speed beside that (rest: how long that took while nobody asked); it is measured after.
"""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmark import network
from benchmark.build import program
from benchmark.measure import (
    Cores,
    Load,
    Picture,
    Target,
    add_options,
    answers_per_s,
    ask,
    at_least,
    at_most,
    cores,
    finish,
    in_turns,
    median,
    percentile,
    ratio,
    say,
    times,
    wrong_answers,
)
from benchmark.plot import Curves, Series
from benchmark.questions import QUICK_QUESTIONS, scattered, write_questions
from benchmark.servers import free_port, memory_mb
from benchmark.site import Site

from eir.commands.table import table

SIZES = (1_000, 1_000_000, 10_000_000, 100_000_000)
QUICK_SIZES = (1_000, 100_000)
TACS, QUESTIONS, HITS = 250_000, 1_000_000, 0.01
LOAD = Load(4, 256)
OF_SMALLEST_MIN, RESIDENT_MB_MAX, READY_S_MAX = 0.9, 600, 5
COLUMNS = (
    "entries", "load_s", "store_mb", "ready_s", "rest_s", "resident_mb", "share_mb", "own_mb", "answers_per_s", "of_smallest", "cpu_us_per_answer", "p99_us",
)  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    """The part `sizes` of scripts/bench."""
    parser = argparse.ArgumentParser(prog="bench sizes", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--entries", type=int, nargs="+", metavar="N", help=f"sizes ({', '.join(f'{size:,}' for size in SIZES)})")
    parser.add_argument("--work", type=Path, help="where files go (25 bytes an entry); a temporary folder if not given")
    add_options(parser, picture=True)
    options = parser.parse_args(arguments)
    program("load")
    network.enter()
    sizes = options.entries or (QUICK_SIZES if options.quick else SIZES)
    on, how = cores(), times(options)
    with tempfile.TemporaryDirectory(dir=options.work, prefix="eir-bench-") as made, ExitStack() as running:
        folder = Path(made)
        found = [_prepare(folder / f"{size}", size, on, options) for size in sizes]
        servers = []
        for row, size in zip(found, sizes, strict=True):
            site: Site = row.pop("site")
            server = running.enter_context(site.server(f"{size:,} entries", free_port(), cores=on.server))
            row["ready_s"] = min(row["ready_s"], round(server.ready_s, 2))
            row["rest_s"] = round(server.rest_s, 1)
            servers.append(server)
        # Each is asked about its own list's devices, but all about the same TACs.
        results = {}
        for _ in range(how.turns):
            for server, size in zip(servers, sizes, strict=True):
                asked = in_turns([server], [LOAD], folder / f"{size}" / "questions", how._replace(turns=1), on.generator)
                for key, runs in asked.items():
                    results.setdefault(key, []).extend(runs)
        for row, server in zip(found, servers, strict=True):
            row["resident_mb"] = memory_mb(server.workers[0])["resident"]
            row["answers_per_s"] = round(median(results, server.name, LOAD, answers_per_s))
            row["cpu_us_per_answer"] = round(median(results, server.name, LOAD, lambda found: float(found["server_us_per_answer"])), 2)
            row["p99_us"] = round(median(results, server.name, LOAD, percentile("p99")), 1)
            row["of_smallest"] = ratio(results, server.name, servers[0].name, LOAD, answers_per_s)["median"]
    largest = found[-1]
    what = f"{largest['entries']:,} entries"
    targets: list[Target] = [
        at_least(f"{what}: answers a second, of those with {sizes[0]:,}", OF_SMALLEST_MIN, largest["of_smallest"]),
        at_most(f"{what}: resident memory of a worker", RESIDENT_MB_MAX, largest["resident_mb"], " MB"),
        at_most(f"{what}: ready from the store", READY_S_MAX, largest["ready_s"], " s"),
    ]
    shown = [{**row, "entries": f"{row['entries']:,}"} for row in found]
    measured = {"measured": found, "wrong_answers": wrong_answers(results)}
    return finish("sizes", measured, targets, options, table(shown, COLUMNS, width=None), picture=picture(found))


def picture(measured: Sequence[Mapping[str, Any]]) -> Picture:
    """Throughput and memory of a worker over the size of the list, of what `--json` has as measured."""

    def points(*columns: str) -> list[tuple[float, list[float]]]:
        return [(row["entries"], [row[column] for column in columns]) for row in measured]

    return Picture("One worker, by the number of entries in its list", (
        Curves(title="Answers a second", axis="4 connections, 256 requests under way on each", x_axis="entries", series=(Series("answers/s", 0),), points=points("answers_per_s")),
        Curves(
            title="Memory of a worker", axis="MB; resident where it is the only one, its share where it is one of two", x_axis="entries",
            series=(Series("resident", 0), Series("share", 1)), points=points("resident_mb", "share_mb"),
        ),
    ))  # fmt: skip


def _prepare(folder: Path, size: int, on: Cores, options: argparse.Namespace) -> dict[str, Any]:
    """A site with a list of that size, and what it took to get there; its memory with two workers, after some questions."""
    say(f"{size:,} entries: writing")
    site, listed = Site(folder, loader_cores=on.generator), scattered(size, TACS)
    write_questions(folder / "questions", listed, count=QUICK_QUESTIONS if options.quick else QUESTIONS, hits=HITS)
    manifest = site.release(listed.keys)
    say(f"{size:,} entries: loading")
    load_s = site.load(manifest)
    for data in folder.glob("*.csv"):
        data.unlink()
    store_mb = sum(file.stat().st_size for file in site.state.iterdir()) / 1e6
    with site.server("two workers", free_port(), cores=on.server, workers=2) as server:
        ask(server, LOAD, folder / "questions", times(options), on.generator)
        each = [memory_mb(pid) for pid in server.workers]
        ready_s = server.ready_s
    return {
        "site": site, "entries": size, "load_s": round(load_s, 1), "store_mb": round(store_mb, 1), "ready_s": round(ready_s, 2),
        "share_mb": max(memory["share"] for memory in each), "own_mb": max(memory["own"] for memory in each),
    }  # fmt: skip

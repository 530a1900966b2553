"""Answers/s and latency, by connections, window and rate.

The node has one core, all metrics, and a list of 100,000 devices; 1 % of the questions are about these. `echo` is a C
program that answers without reading the request; `floor` does the same in Python on uvloop. The generator runs on another core. It
compares each answer of the node and of the echo with its request.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmark import network
from benchmark.build import program
from benchmark.measure import (
    COLUMNS,
    Load,
    add_options,
    answers_per_s,
    at_most,
    cores,
    finish,
    in_turns,
    median,
    percentile,
    ratio,
    rows,
    times,
    wrong_answers,
)
from benchmark.servers import echo, floor, free_port
from benchmark.site import loaded

from eir.cli.output import table

QUESTIONS = 500_000
CONNECTIONS, WINDOWS = (1, 4, 16), (1, 16, 256)
RATES = (5_000.0, 20_000.0)
STEADY = Load(4, 4096, 20_000.0)
P99_ABOVE_FLOOR_MS = 1.0


def main(arguments: Sequence[str]) -> int:
    """Run the part `ecr` of scripts/bench."""
    parser = argparse.ArgumentParser(
        prog="bench ecr", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--connections", type=int, nargs="+", default=CONNECTIONS, metavar="N")
    parser.add_argument("--windows", type=int, nargs="+", metavar="N", help="unanswered requests on each connection")
    parser.add_argument(
        "--rates", type=float, nargs="*", default=RATES, metavar="R", help="requests per second over four connections"
    )
    parser.add_argument("--only", action="store_true", help="the node alone, without the other servers")
    add_options(parser, seconds=2, turns=3)
    options = parser.parse_args(arguments)
    program("load")
    start_echo = echo()
    network.enter()
    loads = [Load(count, window) for count in options.connections for window in options.windows or WINDOWS]
    loads += [Load(4, STEADY.window, rate) for rate in options.rates]
    on, how = cores(), times(options)
    with tempfile.TemporaryDirectory(prefix="eir-bench-") as made:
        folder = Path(made)
        site, _, questions = loaded(folder, options, questions=QUESTIONS)
        with (
            site.server("eir", free_port(), cores=on.server) as eir,
            floor(free_port(), log=folder / "floor.log", cores=on.server) as bare,
            start_echo(free_port(), log=folder / "echo.log", cores=on.server) as fast,
        ):
            servers = [eir] if options.only else [eir, bare, fast]
            results = in_turns(servers, loads, questions, how, on.generator)
    targets = []
    ratios = {}
    if not options.only:
        ratios = {str(load): ratio(results, "eir", "floor", load, answers_per_s) for load in loads if not load.rate}
        if STEADY in loads:
            ours, theirs = (median(results, name, STEADY, percentile("p99")) / 1000 for name in ("eir", "floor"))
            found = round(ours - theirs, 3)
            targets.append(at_most("p99 at 20,000/s above the floor's", P99_ABOVE_FLOOR_MS, found, " ms"))
    measured = {"measured": rows(results), "of_floor": ratios, "wrong_answers": wrong_answers(results)}
    text = table(rows(results), COLUMNS, width=None)
    text += "".join(
        f"of what the floor answers, {load}: {found['median']:.2f} {found['turns']}\n" for load, found in ratios.items()
    )
    return finish("ecr", measured, targets, options, text)

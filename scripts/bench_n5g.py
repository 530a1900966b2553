"""Answers/s over HTTP/2, against a bare server and Starlette; latency of Diameter.

The node has one core, all metrics, and a list of 100,000 devices; 1 % of the questions are about these. nghttp2's h2load
runs on another core, with 4 connections and 100 concurrent requests on each.
"""

import argparse
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from benchmark import http2
from benchmark.beside import Latency, latency_report
from benchmark.build import Missing
from benchmark.measure import (
    Target,
    at_least,
    begin,
    finish,
    own_options,
    say,
)
from benchmark.servers import Server, free_port, on_cores
from benchmark.site import LIST, loaded

from eir.cli.output import table

QUESTIONS = 100_000
OF_BARE, OF_APPLICATION = 0.5, 10.0
P99_TIMES = 2.0


def main(arguments: Sequence[str]) -> int:
    """Run the part `n5g` of scripts/bench."""
    own = own_options()
    own.add_argument("--no-application", action="store_true", help="leave out Starlette under Hypercorn")
    options, on, how = begin("n5g", __doc__, arguments, own, turns=3, fetch=_fetch)
    start_application: Callable[..., Server] | None = None
    missing = {}
    try:
        start_application = None if options.no_application else http2.application()
    except Missing as e:
        missing["starlette"] = str(e)
        say(f"without starlette: {e}")
    with tempfile.TemporaryDirectory(prefix="eir-bench-") as made, ExitStack() as running:
        folder = Path(made)
        site, _, questions = loaded(folder, options, questions=QUESTIONS)
        paths = http2.questions(folder / "paths", questions)
        http_port = free_port()
        eir = site.server("eir", free_port(), cores=on.server, n5g={"listen": [f"http://127.0.0.1:{http_port}"]})
        bare = http2.bare(free_port(), log=folder / "bare.log", cores=on.server)
        ports = {"eir": http_port, "bare": bare.port}
        servers = [eir, bare]
        if start_application is not None:
            data = site.folder / f"{LIST}-1.csv"
            servers.append(start_application(free_port(), data, log=folder / "starlette.log", cores=on.server))
            ports["starlette"] = servers[-1].port
        for server in servers:
            running.enter_context(server)
        rates: dict[str, list[float]] = {name: [] for name in ports}
        for turn in range(how.turns):
            for name, port in ports.items():
                rates[name].append(http2.answers_per_s(port, paths, how, on.generator))
                say(f"turn {turn + 1}: {name} {rates[name][-1]:,.0f}/s")
        words = http2.command(
            http_port, paths, connections=4, streams=100, seconds=how.seconds + how.warmup + 2, warmup=0.0
        )
        latency = Latency(eir, questions, how, on.generator)
        for turn in range(how.turns):
            p99_text = latency.measure(_asking(words, on.generator))
            say(f"turn {turn + 1}: {p99_text}")
    medians = {name: statistics.median(found) for name, found in rates.items()}
    ratios = {
        name: round(statistics.median(ours / theirs for ours, theirs in zip(rates["eir"], found, strict=True)), 2)
        for name, found in rates.items() if name != "eir"
    }  # fmt: skip
    p99, p99_target, p99_text = latency_report([latency], "a full HTTP/2 load", P99_TIMES)
    targets: list[Target] = [
        at_least("answers a second, times those of a bare server on the same library", OF_BARE, ratios["bare"])
    ]
    if "starlette" in ratios:
        targets.append(
            at_least("answers a second, times those of Starlette under Hypercorn", OF_APPLICATION, ratios["starlette"])
        )
    targets.append(p99_target)
    rows = [{"server": name, "answers_per_s": round(rate)} for name, rate in medians.items()]
    text = table(rows, ("server", "answers_per_s"), width=None) + p99_text
    measured = {
        "measured": rows,
        "ratios": ratios,
        "turns": rates,
        "diameter_p99": p99,
        "missing": missing,
        "wrong_answers": 0,
    }
    return finish("n5g", measured, targets, options, text)


def _fetch(options: argparse.Namespace) -> None:
    """Install h2load, and Starlette unless it is not wanted or cannot be installed."""
    http2.tools("h2load", part="--test")
    if not options.no_application:
        with suppress(Missing):
            http2.application()


@contextmanager
def _asking(words: Sequence[str], on: set[int]) -> Iterator[None]:
    """Run h2load at full rate meanwhile."""
    with on_cores(on):
        asking = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        asking.terminate()
        asking.wait()

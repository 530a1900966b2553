"""Rows of a register on one core, as many as are taken and 5,000 a second; and the latency of checks beside these.

The node has one worker and its feed on one core, over SQLite on the disk of the folder for temporary files, and a list of 100,000
devices beside the one that is fed. Each row is about another device, over 10,000 TACs, and 201 says that it is durable.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmark import feeder, network
from benchmark.build import program
from benchmark.measure import (
    Load,
    Target,
    Times,
    add_options,
    ask,
    at_least,
    at_most,
    cores,
    finish,
    percentile,
    say,
    times,
)
from benchmark.questions import QUICK_QUESTIONS, scattered, write_questions
from benchmark.servers import Server, free_port, on_cores
from benchmark.site import LIST, Site

from eir.commands.table import table
from eir.sources.feed_users import user_line

ENTRIES, TACS, QUESTIONS = 100_000, 20_000, 100_000
CONNECTIONS, RATE = 256, 5000.0
P99_TIMES = 1.5
DIAMETER = Load(4, 4096, 2_000.0)
"""A steady rate of checks, whose latency is looked at."""


def main(arguments: Sequence[str]) -> int:
    """The part `feed` of scripts/bench."""
    parser = argparse.ArgumentParser(
        prog="bench feed", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add_options(parser, seconds=5, turns=3)
    options = parser.parse_args(arguments)
    program("load")
    network.enter()
    on, how = cores(), times(options)
    with tempfile.TemporaryDirectory(prefix="eir-bench-") as made:
        folder = Path(made)
        site, listed = Site(folder / "site"), scattered(ENTRIES, TACS)
        release = site.release(listed.keys)
        write_questions(folder / "questions", listed, count=QUICK_QUESTIONS if options.quick else QUESTIONS, hits=0.01)
        (site.folder / "users").write_text(user_line(feeder.USER, feeder.PASSWORD))
        fed: list[dict[str, Any]] = []
        alone, beside = [], []
        for turn in range(how.turns):
            port = free_port()
            url = f"http://127.0.0.1:{port}"
            shutil.rmtree(site.state, ignore_errors=True)  # each turn begins with an empty list
            site.load(release)
            lists = {LIST: {"signers": "signers"}, "fed": {"local": True}}
            rules = [{"list": name, "answer": "blacklisted"} for name in lists]
            feed = {"listen": url, "users": "users", "from": "127.0.0.0/8", "lists": {"block": "fed"}}
            with site.server(
                "eir", free_port(), cores=on.server, lists=lists, policy={"rules": rules}, feed=feed
            ) as eir:
                alone.append(_p99_us(eir, folder / "questions", how, on.generator))
                beside.append(_beside(eir, url, folder, how, on.generator))
                with _feeding(url, 0, how.seconds, folder / "fed", on.generator) as feeding:
                    feeding.wait()
                fed.append(json.loads((folder / "fed").read_text()))
            say(
                f"turn {turn + 1}: {fed[-1]['rows_per_s']:,.0f} rows/s; p99 of checks {alone[-1]:,.0f} us alone, {beside[-1]:,.0f} us beside {RATE:,.0f} rows/s"
            )
    wrong = sum(count for found in fed for status, count in found["rows"].items() if status != "201")
    most = statistics.median(found["rows_per_s"] for found in fed)
    p99 = {"alone_us": round(statistics.median(alone), 1), "beside_us": round(statistics.median(beside), 1)}
    targets: list[Target] = [
        at_least("rows a second that are taken, on the core of the worker", RATE, round(most)),
        at_most(
            f"p99 of Diameter beside {RATE:,.0f} rows a second, times its own",
            P99_TIMES,
            round(p99["beside_us"] / p99["alone_us"], 2),
        ),
    ]
    rows = [
        {
            "rows_per_s": round(found["rows_per_s"]),
            "p50_ms": round(found["p50_ms"], 1),
            "p99_ms": round(found["p99_ms"], 1),
        }
        for found in fed
    ]
    text = table(rows, ("rows_per_s", "p50_ms", "p99_ms"), width=None)
    text += f"Diameter at {DIAMETER.rate:,.0f}/s: p99 {p99['alone_us']:,.0f} us alone, {p99['beside_us']:,.0f} us beside {RATE:,.0f} rows a second\n"
    return finish("feed", {"measured": rows, "diameter_p99": p99, "wrong_answers": wrong}, targets, options, text)


def _p99_us(eir: Server, asked: Path, how: Times, on: set[int]) -> float:
    found = ask(eir, DIAMETER, asked, how, on)
    if faults := sum(found["errors"].values()):
        raise RuntimeError(f"{faults} answers over Diameter were wrong")
    return percentile("p99")(found)


def _beside(eir: Server, url: str, folder: Path, how: Times, on: set[int]) -> float:
    """The same while a register sends its rows."""
    with _feeding(url, RATE, how.seconds + how.warmup + 2, folder / "beside", on) as feeding:
        try:
            return _p99_us(eir, folder / "questions", how, on)
        finally:
            feeding.terminate()


def _feeding(url: str, rate: float, seconds: float, out: Path, on: set[int]) -> subprocess.Popen[bytes]:
    with on_cores(on):
        words = [sys.executable, feeder.__file__, url, CONNECTIONS, rate, seconds, out]
        return subprocess.Popen([str(word) for word in words], stdin=subprocess.DEVNULL)

"""Throughput and latency with and without the record of checks.

Two nodes of one worker with the same list answer the same questions in turns. The process that writes the record shares the core of the
worker. This is the worst case: on a larger machine the process has another core. Checks that were not recorded are counted and shown.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from urllib.request import urlopen

from benchmark.measure import (
    COLUMNS,
    Load,
    answers_per_s,
    at_least,
    at_most,
    begin,
    finish,
    in_turns,
    percentile,
    ratio,
    rows,
    wrong_answers,
)
from benchmark.questions import QUICK_QUESTIONS, scattered, write_questions
from benchmark.servers import free_port
from benchmark.site import Site

from eir.cli.output import table
from eir.node.observe.control import ask as control

ENTRIES, TACS, QUESTIONS = 100_000, 20_000, 500_000
LOADS = (Load(4, 256), Load(4, 16), Load(1, 1))
STEADY = Load(4, 4096, 20_000.0)
WITH, WITHOUT = "with sightings", "without"
THROUGHPUT_MIN, P99_MAX = 0.9, 1.2


def main(arguments: Sequence[str]) -> int:
    """Run the part `sightings` of scripts/bench."""
    options, on, how = begin("sightings", __doc__, arguments)
    with tempfile.TemporaryDirectory(prefix="eir-bench-") as made:
        folder, listed = Path(made), scattered(ENTRIES, TACS)
        sites = {name: Site(folder / name.split()[0]) for name in (WITH, WITHOUT)}
        for site in sites.values():
            site.load(site.release(listed.keys))
        write_questions(folder / "questions", listed, count=QUICK_QUESTIONS if options.quick else QUESTIONS, hits=0.01)
        with (
            sites[WITH].server(WITH, free_port(), cores=on.server, sightings={"window_s": 5}) as kept,
            sites[WITHOUT].server(WITHOUT, free_port(), cores=on.server) as bare,
        ):
            results = in_turns([kept, bare], (*LOADS, STEADY), folder / "questions", how, on.generator)
            fate = _fate(sites[WITH].state)
    throughput = {str(load): ratio(results, WITH, WITHOUT, load, answers_per_s) for load in LOADS}
    p99 = ratio(results, WITH, WITHOUT, STEADY, percentile("p99"))
    targets = [
        at_least(f"throughput with sightings to without, {load}", THROUGHPUT_MIN, found["median"])
        for load, found in throughput.items()
    ]
    targets.append(at_most(f"99th percentile with sightings to without, {STEADY}", P99_MAX, p99["median"]))
    measured = {
        "measured": rows(results), "throughput_ratio": throughput, "p99_ratio": p99, "checks": fate, "wrong_answers": wrong_answers(results),
    }  # fmt: skip
    text = table(rows(results), COLUMNS, width=None) + "".join(
        f"{name}: {count:,.0f}\n" for name, count in fate.items()
    )
    return finish("sightings", measured, targets, options, text)


def _fate(state: Path) -> dict[str, float]:
    """Return the number of checks on record, and of those that were not recorded, by reason."""
    control(state, "write_checks")
    page = urlopen(f"http://{control(state, 'status')['http']}/metrics").read().decode()
    lines = (line.split() for line in page.splitlines() if line.startswith("eir_sightings_") and "bytes" not in line)
    return {name.removeprefix("eir_sightings_"): float(value) for name, value in lines}

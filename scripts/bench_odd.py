"""Latency of 64 peers beside a peer with unusual requests.

The express lane leaves unusual requests to the general path, which needs many times as long for each. Here these have a priority and
twelve unknown AVPs. They come at an even rate, and in groups of eleven. Latency begins when a request arrives at the server's socket and
ends when its answer arrives at the generator; a delay of the generator itself is not included.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmark.measure import (
    COLUMNS,
    Case,
    Load,
    at_most,
    begin,
    compared,
    finish,
    percentile,
    ratio,
    rows,
    wrong_answers,
)
from benchmark.servers import REALM, free_port
from benchmark.site import loaded

from eir.cli.output import table

QUESTIONS = 200_000
SECONDS, TURNS = 1, 21
"""Many short turns: where the host stops for some milliseconds, this alone decides the 99th percentile of a turn."""
GOOD = Load(64, 32, rate=20_000, on_wire=True, late_max_s=0.0001)
ODD_HOST, ODD_RATE_MAX, ODD_RATE, AT_ONCE = f"mme{GOOD.connections + 1}.{REALM}", 1_000, 1_100, 11
"""The odd peer asks a little faster than its limit permits, so that it is at its limit all the time."""
ALONE = "alone"
BESIDE = {
    "beside odd requests": {"odd": ODD_RATE},
    f"beside {AT_ONCE} odd requests at once": {"odd": ODD_RATE, "odd_at_once": AT_ONCE},
}
P99_TIMES_MAX = 1.5


def main(arguments: Sequence[str]) -> int:
    """Run the part `odd` of scripts/bench."""
    options, on, how = begin("odd", __doc__, arguments, seconds=SECONDS, turns=TURNS)
    p99 = percentile("p99")
    with tempfile.TemporaryDirectory(prefix="eir-bench-") as made:
        site, _, questions = loaded(Path(made), options, questions=QUESTIONS)
        peers = [
            {"name": "odd", "host": ODD_HOST, "realm": REALM, "rate_max": ODD_RATE_MAX},
            {"name": "mme", "realm": REALM},
        ]
        with site.server("eir", free_port(), cores=on.server, peers=peers) as server:
            cases = [Case(name, server, odd=odd) for name, odd in ({ALONE: {}} | BESIDE).items()]
            results = compared(cases, [GOOD], questions, how, on.generator)
    times_alone = {name: ratio(results, name, ALONE, GOOD, p99) for name in BESIDE}
    measured: dict[str, Any] = {
        "measured": rows(results),
        "p99_times_alone": times_alone,
        "wrong_answers": wrong_answers(results),
    }
    targets = [
        at_most(f"p99 {name}: times that alone", P99_TIMES_MAX, times["median"]) for name, times in times_alone.items()
    ]
    return finish("odd", measured, targets, options, table(rows(results), COLUMNS, width=None))

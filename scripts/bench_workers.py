"""Cost of an answer by number of workers.

The generator asks over two connections for each worker, with full windows. A machine with two cores can only show that the cost of an
answer stays the same, since the generator needs a core; on a larger machine the answers per second rise.
"""

import os
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmark.measure import (
    COLUMNS,
    Load,
    Results,
    ask,
    at_most,
    begin,
    finish,
    own_options,
    ratio,
    rows,
    say,
    wrong_answers,
)
from benchmark.servers import free_port
from benchmark.site import loaded

from eir.cli.output import table
from eir.node.observe.control import ask as control

ENTRIES, TACS, QUESTIONS = 1_000_000, 50_000, 500_000
LOAD = Load(4, 256)
COST_MAX = 1.15
LOOKS = 20


def main(arguments: Sequence[str]) -> int:
    """Run the part `workers` of scripts/bench."""
    own = own_options()
    own.add_argument(
        "--workers", type=int, nargs="+", help="numbers of workers (default: 1, 2, 4, … up to the number of cores)"
    )
    options, _, how = begin("workers", __doc__, arguments, own)
    ours = sorted(os.sched_getaffinity(0))
    numbers = options.workers or [1, *(2**n for n in range(1, 7) if 2**n <= max(2, len(ours) - 1))]
    results: Results = {}
    spread: dict[str, list[int]] = {}
    with tempfile.TemporaryDirectory(prefix="eir-bench-") as made:
        folder = Path(made)
        site, _, questions = loaded(folder, options, entries=ENTRIES, tacs=TACS, questions=QUESTIONS)
        for turn in range(how.turns):
            for number in numbers:
                # The generator keeps the last core for itself as long as the workers leave it one.
                on = set(ours[:number])
                with site.server(f"workers: {number}", free_port(), cores=on, workers=number) as server:
                    load = Load(max(LOAD.connections, 2 * number), LOAD.window)
                    look = partial(_look, site.state, load.connections, spread.setdefault(server.name, []))
                    found = ask(server, load, questions, how, {ours[-1]}, meanwhile=look)
                    results.setdefault((server.name, str(load)), []).append(found)
                    say(
                        f"turn {turn + 1}: {server.name} {found['answers_per_s']:,.0f}/s, {found['server_us_per_answer']:.2f} us an answer"
                    )
    costs = {
        number: ratio(
            _by_workers(results),
            f"workers: {number}",
            f"workers: {numbers[0]}",
            "",
            lambda found: float(found["server_us_per_answer"]),
        )
        for number in numbers
    }
    targets = [
        at_most(f"cost of an answer, {number} workers to {numbers[0]}", COST_MAX, costs[number]["median"])
        for number in numbers[1:2]
    ]
    measured = {
        "measured": rows(results), "cost_ratio": costs, "connections_by_worker": spread, "wrong_answers": wrong_answers(results),
    }  # fmt: skip
    text = table(rows(results), COLUMNS, width=None)
    text += "".join(f"{name}: connections by worker {held}\n" for name, held in spread.items())
    return finish("workers", measured, targets, options, text)


def _look(state: Path, connections: int, held: list[int]) -> None:
    """Note the number of connections of each worker once all are open, or after a second."""
    for _ in range(LOOKS):
        counts = Counter(row.get("worker", 0) for row in control(state, "peers") if row["address"] is not None)
        held[:] = sorted(counts.values())
        if sum(held) == connections:
            return
        time.sleep(1 / LOOKS)


def _by_workers(results: Results) -> Results:
    """Return the document without the load, which depends on the number of workers."""
    return {(server, ""): runs for (server, _), runs in results.items()}

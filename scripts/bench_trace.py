"""Throughput and latency with and without a trace.

The subscriber's phone is asked about ten times a second in both cases. `eir trace` runs as for an operator, on the generator's core.
"""

import json
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from benchmark.beside import Mme
from benchmark.measure import (
    COLUMNS,
    Case,
    Load,
    answers_per_s,
    at_least,
    at_most,
    begin,
    compared,
    finish,
    percentile,
    ratio,
    rows,
    wrong_answers,
)
from benchmark.servers import PATIENCE_S, free_port, on_cores
from benchmark.site import EIR, loaded

from eir.cli.output import table

QUESTIONS = 500_000
FULL = Load(4, 256)
STEADY = Load(4, 4096, 50_000.0, on_wire=True)
WITH, WITHOUT = "with a trace", "without"
THROUGHPUT_MIN, P99_MAX = 0.95, 1.2
IMEI, IMSI, PAUSE_S = 101007_000009, "999990000000001", 0.1
"""Traced phone, its SIM (of another test network than the generator's), and the interval between two of its checks."""


def main(arguments: Sequence[str]) -> int:
    """Run the part `trace` of scripts/bench."""
    options, on, how = begin("trace", __doc__, arguments)
    with tempfile.TemporaryDirectory(prefix="eir-bench-") as made:
        folder = Path(made)
        site, _, questions = loaded(folder, options, questions=QUESTIONS)
        told = folder / "told"
        with (
            site.server("eir", free_port(), cores=on.server) as server,
            Mme(server.port, on.generator, IMSI, [IMEI], PAUSE_S).asking(),
        ):
            trace = partial(_trace, site.folder / f"eir-{server.port}.yaml", told, on.generator)
            cases = [Case(WITHOUT, server), Case(WITH, server, trace)]
            results = compared(cases, (FULL, STEADY), questions, how, on.generator)
        checks = sum(json.loads(line)["kind"] == "check" for line in told.read_text().splitlines())
    throughput = ratio(results, WITH, WITHOUT, FULL, answers_per_s)
    p99 = ratio(results, WITH, WITHOUT, STEADY, percentile("p99"))
    targets = [
        at_least(f"throughput with a trace to without, {FULL}", THROUGHPUT_MIN, throughput["median"]),
        at_most(f"99th percentile with a trace to without, {STEADY}", P99_MAX, p99["median"]),
    ]
    measured = {
        "measured": rows(results), "throughput_ratio": throughput, "p99_ratio": p99, "told": checks, "wrong_answers": wrong_answers(results),
    }  # fmt: skip
    text = table(rows(results), COLUMNS, width=None) + f"{checks:,} checks of the subscriber were told\n"
    return finish("trace", measured, targets, options, text)


@contextmanager
def _trace(config: Path, told: Path, on: set[int]) -> Iterator[None]:
    """Trace the subscriber meanwhile, at least until one check is reported; append the checks to the file."""
    before = told.stat().st_size if told.exists() else 0
    command = [*EIR, "trace", "-c", config, "--imsi", IMSI, "--reason", "bench", "--for", "60m", "--json"]
    with told.open("a") as out, on_cores(on), subprocess.Popen(command, stdout=out, stderr=subprocess.PIPE) as trace:
        begun = trace.stderr.readline() if trace.stderr else b""
        if not begun.startswith(b"tracing"):
            raise RuntimeError(f"no trace: {begun.decode()}")
        try:
            yield
            give_up = time.monotonic() + PATIENCE_S
            while told.stat().st_size == before:
                if time.monotonic() > give_up or trace.poll() is not None:
                    raise RuntimeError("the trace told no check of the subscriber")
                time.sleep(PAUSE_S)
        finally:
            trace.send_signal(signal.SIGINT)

"""Answers/s over HTTP/2, against a bare server; latency of Diameter.

The node has one core, all metrics, and a list of 100,000 devices; 1 % of the questions are about these. nghttp2's h2load
runs on another core, with 4 connections and 100 concurrent requests on each.
"""

import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmark.beside import Latency, latency_report
from benchmark.build import HERE, tools
from benchmark.measure import at_least, begin, finish, say
from benchmark.servers import Server, free_port, on_cores
from benchmark.site import loaded

from eir.cli.output import table

QUESTIONS = 100_000
OF_BARE, P99_TIMES = 0.5, 2.0
RESOURCE = "/n5g-eir-eic/v1/equipment-status"


def main(arguments: Sequence[str]) -> int:
    """Run the part `n5g` of scripts/bench."""
    options, on, how = begin("n5g", __doc__, arguments, turns=3, fetch=lambda _: tools("h2load", part="--test"))
    with tempfile.TemporaryDirectory(prefix="eir-bench-") as made:
        folder = Path(made)
        site, _, questions = loaded(folder, options, questions=QUESTIONS)
        paths = folder / "paths"
        with paths.open("w") as out:
            for number, line in enumerate(questions.read_text().splitlines()):
                out.write(f"http://eir{RESOURCE}?pei=imei-{line[:14]}0&supi=imsi-{1010000000000 + number:015d}\n")
        port, bare_port = free_port(), free_port()
        bare = [sys.executable, HERE / "http2_bare.py", str(bare_port)]
        with (
            site.server("eir", free_port(), cores=on.server, n5g={"listen": [f"http://127.0.0.1:{port}"]}) as eir,
            Server("bare h2", bare, bare_port, log=folder / "bare.log", cores=on.server),
        ):
            rates: dict[str, list[float]] = {"eir": [], "bare": []}
            for turn in range(how.turns):
                for name, at in (("eir", port), ("bare", bare_port)):
                    rates[name].append(_answers_per_s(_load(at, paths, how.seconds, how.warmup), on.generator))
                    say(f"turn {turn + 1}: {name} {rates[name][-1]:,.0f}/s")
            words = _load(port, paths, how.seconds + how.warmup + 2, 0)
            latency = Latency(eir, questions, how, on.generator)
            for turn in range(how.turns):
                say(f"turn {turn + 1}: {latency.measure(_asking(words, on.generator))}")
    ratio = round(statistics.median(a / b for a, b in zip(rates["eir"], rates["bare"], strict=True)), 2)
    p99, p99_target, p99_text = latency_report([latency], "a full HTTP/2 load", P99_TIMES)
    targets = [
        at_least("answers a second, times those of a bare server on the same library", OF_BARE, ratio),
        p99_target,
    ]
    rows = [{"server": name, "answers_per_s": round(statistics.median(found))} for name, found in rates.items()]
    measured = {"measured": rows, "ratio": ratio, "turns": rates, "diameter_p99": p99}
    return finish("n5g", measured, targets, options, table(rows, ("server", "answers_per_s"), width=None) + p99_text)


def _load(port: int, paths: Path, seconds: float, warmup: float) -> Sequence[str]:
    """Return the command of the generator for a run of this duration."""
    times = [f"--duration={max(1, round(seconds))}", f"--warm-up-time={max(1, round(warmup))}"]
    return ["h2load", *times, "-c4", "-m100", "-i", str(paths), "-B", f"http://127.0.0.1:{port}"]


def _answers_per_s(words: Sequence[str], on: set[int]) -> float:
    """Run the generator; return answers per second, which all must have status 200."""
    with on_cores(on):
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    found = re.search(r"finished in .*?, ([0-9.]+) req/s", done.stdout)
    if found is None or not re.search(r"status codes: [1-9][0-9]* 2xx, 0 3xx, 0 4xx, 0 5xx", done.stdout):
        raise RuntimeError(done.stdout[-1000:] + done.stderr[-1000:])
    return float(found[1])


@contextmanager
def _asking(words: Sequence[str], on: set[int]) -> Iterator[None]:
    """Run the generator at full rate meanwhile."""
    with on_cores(on):
        asking = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        asking.terminate()
        asking.wait()

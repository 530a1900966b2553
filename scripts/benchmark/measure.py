"""Measurement of servers in turns (A B A B): medians, and ratios within each turn."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from eir.cli.output import table

from . import network
from .build import program
from .servers import REALM, Server, on_cores

WHITELISTED = "0"
FEW_HITS = 0.01
SETTLE_S = 0.2
"""Pause after the connection: OTP drops requests that come before its peer is known."""
SHORT_S, ATTEMPTS_OF_SHORT = 1, 3
"""On a busy host a run as short as that of `--quick` may get no processor time at all; such a run is repeated."""
COLUMNS = (
    "server",
    "load",
    "answers_per_s",
    "p50_us",
    "p99_us",
    "cpu_us_per_answer",
    "server_share",
    "generator_share",
    "errors",
)

Read = TypeVar("Read")
Results = dict[tuple[str, str], list[dict[str, Any]]]
"""(server, load) → results of the generator in each turn."""


class Load(NamedTuple):
    """Load: connections, window, and rate of the questions."""

    connections: int
    window: int
    rate: float = 0
    """Requests per second over all connections; 0: as many as the windows allow."""
    behind: int = 0
    """Number of MMEs behind each connection, which is an agent's and sends their requests in turn; 0: the connection is an MME's."""
    hits: float = FEW_HITS
    """Share of questions about listed devices."""
    vary: bool = False
    """True: Session-Ids of each MME behind an agent have several lengths, as where they end in a counter."""
    on_wire: bool = False
    """With a rate: latency begins when a request arrives at the server's socket and ends when its answer arrives at the generator's."""

    def __str__(self) -> str:
        what = f"{self.connections} at {self.rate:g}/s" if self.rate else f"{self.connections} x {self.window}"
        what += f" of {self.behind} MMEs" if self.behind else ""
        what += ", Session-Ids of several lengths" if self.vary else ""
        return f"{what}, {self.hits:.0%} hits" if self.behind or self.hits != FEW_HITS else what


class Case(NamedTuple):
    """Server under one condition, which is compared with others in turns."""

    name: str
    server: Server
    beside: Callable[[], AbstractContextManager[object]] = nullcontext
    """Other work of the machine or of the server during a run."""


class Times(NamedTuple):
    """Duration of the runs, and number of turns."""

    seconds: float
    warmup: float
    turns: int


class Cores(NamedTuple):
    """Cores of server and generator; one core each if the machine has two."""

    server: set[int]
    generator: set[int]


def add_options(parser: argparse.ArgumentParser, *, seconds: float = 3, turns: int = 5) -> None:
    """Add the options of all parts."""
    parser.add_argument("--seconds", type=float, default=seconds, help=f"seconds of a run ({seconds:g})")
    parser.add_argument("--warmup", type=float, default=1, help="seconds before counting begins (1)")
    parser.add_argument("--turns", type=int, default=turns, help=f"number of turns ({turns})")
    parser.add_argument(
        "--quick", action="store_true", help="one short turn: tests that all works; the figures are not valid"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON document instead of a table")


def own_options() -> argparse.ArgumentParser:
    """Return an empty parser for a part's own options, which `begin` adds to those of all parts."""
    return argparse.ArgumentParser(add_help=False)


def begin(
    name: str,
    doc: str | None,
    arguments: Sequence[str],
    *own: argparse.ArgumentParser,
    seconds: float = 3,
    turns: int = 5,
    fetch: Callable[[argparse.Namespace], object] = lambda _: None,
) -> tuple[argparse.Namespace, Cores, Times]:
    """Build the generator, enter a network of the part's own, and return the options, cores and times of the part.

    `own`: parser of the part's own options, without help (`own_options`). `fetch`: function that
    installs further programs; nothing can be fetched later.
    """
    parser = argparse.ArgumentParser(
        prog=f"bench {name}", description=doc, formatter_class=argparse.RawTextHelpFormatter, parents=own
    )
    add_options(parser, seconds=seconds, turns=turns)
    options = parser.parse_args(arguments)
    program("load")
    fetch(options)
    network.enter()
    return options, cores(), times(options)


def times(options: argparse.Namespace) -> Times:
    """Return the times that the options give."""
    return Times(0.2, 0.1, 1) if options.quick else Times(options.seconds, options.warmup, options.turns)


def cores() -> Cores:
    """Return the first core of this process for the server, and the last for the generator."""
    ours = sorted(os.sched_getaffinity(0))
    if len(ours) == 1:
        say("one core only: the generator takes its share of it")
    return Cores({ours[0]}, {ours[-1]})


def say(text: str) -> None:
    """Report progress to a person."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def ask(
    server: Server,
    load: Load,
    questions: Path,
    how: Times,
    on: set[int],
    *,
    meanwhile: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Run the generator against a server; return its results. `meanwhile` is called when counting begins."""
    words = {
        "port": server.port, "realm": REALM, "connections": load.connections, "window": load.window, "rate": load.rate, "on_wire": int(load.on_wire), "behind": load.behind, "vary": int(load.vary), "settle": SETTLE_S,
        "warmup": how.warmup, "seconds": how.seconds, "questions": questions, "server": ",".join(map(str, server.pids)),
        "constant": int(server.constant), "always": "" if server.lists else WHITELISTED,
    }  # fmt: skip
    command = [program("load"), *(f"{name}={value}" for name, value in words.items())]
    for _ in range(ATTEMPTS_OF_SHORT - 1 if how.seconds < SHORT_S else 0):
        if (found := _run(command, server, how, on, meanwhile))["answers_per_s"]:
            return found
        say(f"no answer of {server.name} within {how.seconds:g} s: once more")
    return _run(command, server, how, on, meanwhile)


def _run(
    command: list[str], server: Server, how: Times, on: set[int], meanwhile: Callable[[], None] | None
) -> dict[str, Any]:
    """Run the generator once."""
    with on_cores(on):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    if meanwhile is not None:
        time.sleep(SETTLE_S + how.warmup)
        meanwhile()
    out, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"the generator did not get on with {server.name}: {server.log()[-2000:]}")
    found = dict(json.loads(out))
    found["lists"] = server.lists
    found["server_share"] = round(found["server_s"] / found["seconds"], 3)
    return found


def in_turns(servers: Sequence[Server], loads: Iterable[Load], questions: Path, how: Times, on: set[int]) -> Results:
    """Measure each load for each server in turn, `how.turns` times."""
    return compared([Case(server.name, server) for server in servers], loads, questions, how, on)


def compared(cases: Sequence[Case], loads: Iterable[Load], questions: Path, how: Times, on: set[int]) -> Results:
    """Measure each load for each case in turn, `how.turns` times."""
    results: Results = {}
    for load in loads:
        for turn in range(how.turns):
            for case in cases:
                with case.beside():
                    found = ask(case.server, load, questions, how, on)
                results.setdefault((case.name, str(load)), []).append(found)
                latency = found["latency_us"]
                rate = f"{found['answers_per_s']:,.0f}/s"
                say(
                    f"{load}, turn {turn + 1}: {case.name} {rate}, p50 {latency['p50']:.0f} us, p99 {latency['p99']:.0f} us"
                )
    return results


def answers_per_s(found: Mapping[str, Any]) -> float:
    """Return the throughput of a run."""
    return float(found["answers_per_s"])


def percentile(name: str) -> Callable[[Mapping[str, Any]], float]:
    """Return a percentile of the latency of a run, in us."""
    return lambda found: float(found["latency_us"][name])


def median(results: Results, server: str, load: object, value: Callable[[Mapping[str, Any]], float]) -> float:
    """Return the median over the turns."""
    return statistics.median(map(value, results[server, str(load)]))


def ratio(
    results: Results, ours: str, theirs: str, load: object, value: Callable[[Mapping[str, Any]], float]
) -> dict[str, Any]:
    """Return the ratio of `ours` to `theirs`: the median of the turns' ratios, and these ratios."""
    pairs = zip(results[ours, str(load)], results[theirs, str(load)], strict=True)
    each = [round(value(a) / value(b), 3) if value(b) else 0.0 for a, b in pairs]
    return {"median": round(statistics.median(each), 3), "turns": each}


def wrong_answers(results: Results) -> int:
    """Return the faults in answers of the node; faults of other servers are in the table."""
    return sum(
        count for runs in results.values() for found in runs if found["lists"] for count in found["errors"].values()
    )


def rows(results: Results) -> list[dict[str, Any]]:
    """Return one row for each server and load, with medians."""
    made = []
    for (server, load), runs in results.items():
        errors = sum(count for found in runs for count in found["errors"].values())
        values = {
            name: statistics.median(found[name] for found in runs)
            for name in ("answers_per_s", "server_share", "generator_share")
        }
        made.append({
            "server": server, "load": load, "answers_per_s": round(values["answers_per_s"]),
            "p50_us": round(statistics.median(map(percentile("p50"), runs)), 1),
            "p99_us": round(statistics.median(map(percentile("p99"), runs)), 1),
            "cpu_us_per_answer": round(statistics.median(found["server_us_per_answer"] for found in runs), 2),
            "server_share": round(values["server_share"], 2), "generator_share": round(values["generator_share"], 4), "errors": errors,
        })  # fmt: skip
    return made


class Target(NamedTuple):
    """Target: wanted value, measured value, and whether the target is met."""

    what: str
    wanted: str
    found: float
    holds: bool


def at_least(what: str, bound: float, found: float) -> Target:
    """Return a target with a lower limit."""
    return Target(what, f"at least {bound:g}", found, found >= bound)


def at_most(what: str, bound: float, found: float, unit: str = "") -> Target:
    """Return a target with an upper limit."""
    return Target(what, f"at most {bound:g}{unit}", found, found <= bound)


def finish(
    name: str,
    measured: Mapping[str, Any],
    targets: Sequence[Target],
    options: argparse.Namespace,
    text: str,
) -> int:
    """Print the document or the tables; return exit status 1 if a target was missed or an answer was wrong."""
    wrong = int(measured.get("wrong_answers", 0))
    document = {
        "part": name, "quick": options.quick, "machine": machine(), **measured, "targets": [target._asdict() for target in targets],
    }  # fmt: skip
    if options.json:
        print(json.dumps(document, indent=1))
    else:
        print(text)
        shown = [{**target._asdict(), "holds": "yes" if target.holds else "no"} for target in targets]
        print(table(shown, ("what", "wanted", "found", "holds"), width=None) if shown else "", end="")
    if wrong:
        say(f"{wrong} answers were wrong")
    missed = any(not target.holds for target in targets) and not options.quick
    return int(bool(wrong or missed))


def machine() -> dict[str, Any]:
    """Return a description of the machine."""
    model = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "processors": os.cpu_count(), "model": model[0] if model else platform.machine(), "python": platform.python_version(),
        "kernel": platform.release(), "load_average": round(os.getloadavg()[0], 2),
    }  # fmt: skip

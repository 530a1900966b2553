"""A node against OTP's diameter, freeDiameter and python-diameter.

Each of the others is the smallest S13 server that its stack allows: it looks up nothing, counts nothing, and answers WHITELISTED to all
requests. The node has all metrics, and a list. The C echo and the bare uvloop server are measured too. The clients are four
MMEs, one MME that waits for each answer, and two agents that forward the requests of many MMEs. Each turn restarts all servers, since
the memory layout of a process is fixed at its start and affects its speed.
"""

import argparse
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from benchmark import network
from benchmark.build import Missing, program
from benchmark.measure import (
    COLUMNS,
    Load,
    Results,
    Target,
    add_options,
    answers_per_s,
    at_least,
    at_most,
    cores,
    finish,
    in_turns,
    percentile,
    ratio,
    rows,
    say,
    times,
    wrong_answers,
)
from benchmark.peers import PEERS
from benchmark.questions import QUICK_QUESTIONS, scattered, write_questions
from benchmark.servers import echo, floor, free_port
from benchmark.site import Site

from eir.cli.output import table

ENTRIES, TACS, QUESTIONS = 100_000, 20_000, 500_000
HITS = (0.01, 0.5)
BUSY, BUSY_WITH_HITS = (Load(4, 256, hits=hits) for hits in HITS)
ALONE = Load(1, 1)
AGENTS = [
    Load(2, window, behind=behind, hits=hits)
    for behind, windows in ((64, (1, 8, 64, 512)), (1000, (64, 512)))
    for window in windows
    for hits in HITS
]
AGENTS += [Load(2, 512, behind=behind, hits=hits, vary=True) for behind in (64, 1000) for hits in HITS]
"""The load of agents: the requests of many MMEs, mixed."""
SHOWN = Load(2, 64, behind=64, hits=0.5)
"""Traffic of `--quick`: the kind that is hardest to answer fast."""
WIDE = 64
"""Smallest window for which the targets for agents hold."""
AGENTS_TIMES_OTP = {64: 25.0, 1000: 15.0}
"""Minimum ratio of the node's answers per second to those of OTP, by number of MMEs behind each agent."""
TIMES_OTP = {BUSY: 60.0, BUSY_WITH_HITS: 40.0} | {
    load: AGENTS_TIMES_OTP[load.behind] for load in AGENTS if load.window >= WIDE
}
"""Minimum ratio of the node's answers per second to those of OTP."""
TIMES_FASTER = {"freediameter": 7.0, "python-diameter": 20.0}
"""The same for other servers, with the load `BUSY`."""
P50_OF = {"otp": 1.0, "freediameter": 1.0, "echo": 1.15}
"""Maximum ratio of the node's latency with one request at a time to that of another server."""

OF_ECHO, LIKE = 0.45, 0.9
"""Minimum ratios of answers per second of an agent's MMEs at `WIDEST`: to those of the C echo; and with a thousand MMEs to those with 64."""
WIDEST = 512


def main(arguments: Sequence[str]) -> int:
    """Run the part `peers` of scripts/bench."""
    parser = argparse.ArgumentParser(
        prog="bench peers", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--peer", choices=PEERS, action="append", help="only this one (default: all)")
    add_options(parser)
    options = parser.parse_args(arguments)
    program("load")
    start_echo = echo()
    starts, missing = {}, {}
    for name in options.peer or PEERS:
        try:
            starts[name] = PEERS[name]()
        except Missing as e:
            missing[name] = str(e)
            say(f"without {name}: {e}")
    network.enter()
    on, how = cores(), times(options)
    with tempfile.TemporaryDirectory(prefix="eir-bench-") as made:
        folder = Path(made)
        site, listed = Site(folder / "site"), scattered(ENTRIES, TACS)
        site.load(site.release(listed.keys))
        for hits in HITS:
            write_questions(
                folder / f"questions-{hits}", listed, count=QUICK_QUESTIONS if options.quick else QUESTIONS, hits=hits
            )
        servers = [
            site.server("eir", free_port(), cores=on.server),
            floor(free_port(), log=folder / "floor.log", cores=on.server),
            start_echo(free_port(), log=folder / "echo.log", cores=on.server),
            *(start(free_port(), log=folder / f"{name}.log", cores=on.server) for name, start in starts.items()),
        ]
        loads = (BUSY, BUSY_WITH_HITS, ALONE, *([SHOWN] if options.quick else AGENTS))
        results: Results = {}
        for turn in range(how.turns):
            say(f"turn {turn + 1} of {how.turns}")
            with ExitStack() as running:
                for server in servers:
                    running.enter_context(server)
                for load in loads:
                    found = in_turns(
                        servers, (load,), folder / f"questions-{load.hits}", how._replace(turns=1), on.generator
                    )
                    for asked, runs in found.items():
                        results.setdefault(asked, []).extend(runs)
    faster = {
        str(load): {server.name: ratio(results, "eir", server.name, load, answers_per_s) for server in servers[1:]}
        for load in (BUSY, BUSY_WITH_HITS, *AGENTS)
        if ("eir", str(load)) in results
    }
    p50 = {server.name: ratio(results, "eir", server.name, ALONE, percentile("p50")) for server in servers[1:]}
    targets: list[Target] = [
        at_least(f"answers a second, {load}, times {name}'s", wanted, faster[str(load)][name]["median"])
        for name, load, wanted in (
            *(("otp", *each) for each in TIMES_OTP.items()),
            *((name, BUSY, least) for name, least in TIMES_FASTER.items()),
        )
        if name in faster.get(str(load), ())
    ]
    wide = [load for load in AGENTS if load.window == WIDEST and str(load) in faster]
    targets += [
        at_least(f"answers a second, {load}, times the echo's", OF_ECHO, faster[str(load)]["echo"]["median"])
        for load in wide
    ]
    few = {load: load._replace(behind=64) for load in wide if load.behind != 64}
    targets += [
        at_least(f"answers a second, {load}, times those of 64", LIKE, _between(results, load, fewer))
        for load, fewer in few.items()
    ]
    targets += [
        at_most(f"p50, {ALONE}, times {name}'s", wanted, p50[name]["median"])
        for name, wanted in P50_OF.items()
        if name in p50
    ]
    measured = {
        "measured": rows(results), "answers_per_s_ratio": faster, "p50_ratio": p50, "missing": missing, "wrong_answers": wrong_answers(results),
    }  # fmt: skip
    text = table(rows(results), COLUMNS, width=None)
    text += f"{ALONE}: " + ", ".join(f"{found['median']:.2f} times {name}'s p50" for name, found in p50.items()) + "\n"
    for load, ratios in faster.items():
        text += (
            f"{load}: "
            + ", ".join(f"{found['median']:.2f} times {name}'s answers" for name, found in ratios.items())
            + "\n"
        )
    return finish("peers", measured, targets, options, text)


def _between(results: Results, load: Load, other: Load) -> float:
    """Return the median over turns of the node's answers at one load, divided by its answers at another."""
    mine, others = (results["eir", str(each)] for each in (load, other))
    return median(answers_per_s(one) / answers_per_s(two) for one, two in zip(mine, others, strict=True))

"""`bench ecr --transport sctp`: the node over SCTP, compared with the node over TCP, freeDiameter and OTP over SCTP, and a C echo.

All share one processor with the generator, in a user-mode kernel (scripts/sctp) if the host's kernel has no SCTP. A system call costs
much more there than on a real kernel, reading the clock included, and SCTP needs one for each message. strace counts the system calls.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from parts import enter_sctp

from eir.cli.output import table

from . import network
from .build import Missing, program, tools
from .measure import (
    COLUMNS,
    Load,
    Target,
    Times,
    answers_per_s,
    ask,
    at_least,
    at_most,
    cores,
    finish,
    in_turns,
    ratio,
    rows,
    say,
    times,
    wrong_answers,
)
from .peers import PEERS
from .questions import QUICK_QUESTIONS, scattered, write_questions
from .servers import Server, echo, free_port
from .site import Site

ENTRIES, TACS, QUESTIONS = 100_000, 20_000, 200_000
WINDOWS = (1, 8, 64)
OF_TCP = 0.8
"""Minimum ratio to the node's own rate over TCP, with one request at a time."""
CALLS_OF_EACH = 1.02
"""Maximum number of receive calls, and of send calls, per answer; the part above 1 is for capabilities exchange and end."""
RECEIVE, SEND = ("recvmsg", "recvfrom"), ("sendmsg", "sendto")
STACKS = ("freediameter", "otp")

Ratios = Mapping[str, Mapping[str, Any]]
"""Ratios by load, as `ratio` returns them."""


def measure(options: argparse.Namespace) -> int:
    """Run the measurement; return the exit status."""
    loads = [Load(1, window) for window in options.windows or WINDOWS]
    program("load")
    start_echo = echo()
    starts, missing = {}, {}
    try:
        tools("strace")
    except Missing as e:
        sys.exit(f"bench: {e}")
    for name in () if options.only else STACKS:
        try:
            starts[name] = PEERS[name]()
        except Missing as e:
            missing[name] = str(e)
            say(f"without {name}: {e}")
    _enter()
    on, how = cores(), times(options)
    with tempfile.TemporaryDirectory(prefix="eir-bench-") as made, ExitStack() as running:
        folder = Path(made)
        site, listed = Site(folder / "site"), scattered(ENTRIES, TACS)
        site.load(site.release(listed.keys))
        write_questions(folder / "questions", listed, count=QUICK_QUESTIONS if options.quick else QUESTIONS, hits=0.01)
        other = Site(folder / "other")
        other.load(other.release(listed.keys))
        eir = site.server("eir", free_port(), cores=on.server, sctp=True)
        servers = [
            eir,
            other.server("eir, TCP", free_port(), cores=on.server),
        ]
        if not options.only:
            servers += [
                start_echo(free_port(), log=folder / "echo.log", cores=on.server, sctp=True),
                start_echo(free_port(), log=folder / "echo-tcp.log", cores=on.server, name="echo, TCP"),
                *(
                    start(free_port(), log=folder / f"{name}.log", cores=on.server, sctp=True)
                    for name, start in starts.items()
                ),
            ]
        for server in servers:
            running.enter_context(server)
        results = in_turns(servers, loads, folder / "questions", how, on.generator)
        calls = {str(load): _calls(eir, load, folder, how, on.generator) for load in loads}
    of_tcp = {
        who: {str(load): ratio(results, who, f"{who}, TCP", load, answers_per_s) for load in loads}
        for who in ("eir", "echo")
        if not options.only or who == "eir"
    }
    of_peers = {
        name: {str(load): ratio(results, "eir", name, load, answers_per_s) for load in loads} for name in starts
    }
    found = {
        "measured": rows(results),
        "of_tcp": of_tcp,
        "of_peers": of_peers,
        "system_calls": calls,
        "missing": missing,
        "wrong_answers": wrong_answers(results),
    }
    return finish("ecr", found, _targets(loads, of_tcp["eir"], of_peers, calls), options, _text(found))


def _targets(
    loads: Sequence[Load], of_tcp: Ratios, of_peers: Mapping[str, Ratios], calls: Mapping[str, Mapping[str, float]]
) -> list[Target]:
    alone = str(Load(1, 1))
    targets = (
        [at_least(f"answers a second, {alone}, of those over TCP", OF_TCP, of_tcp[alone]["median"])]
        if alone in of_tcp
        else []
    )
    targets += [
        at_least(
            f"answers a second, {load}, times the better stack's",
            1.0,
            min(found[str(load)]["median"] for found in of_peers.values()),
        )
        for load in loads
        if of_peers
    ]
    return targets + [
        at_most(f"{what} for each answer, {load}", CALLS_OF_EACH, round(sum(found.get(name, 0) for name in which), 3))
        for load, found in calls.items()
        for what, which in (("receives", RECEIVE), ("sends", SEND))
    ]


def _text(found: Mapping[str, Any]) -> str:
    text = table(found["measured"], COLUMNS, width=None)
    for who, ratios in found["of_tcp"].items():
        text += "".join(
            f"{who} over SCTP, of its answers over TCP, {load}: {each['median']:.2f} {each['turns']}\n"
            for load, each in ratios.items()
        )
    for load, calls in found["system_calls"].items():
        text += f"system calls for each answer, {load}: {', '.join(f'{name} {number:.2f}' for name, number in calls.items())}\n"
    return text


def _enter() -> None:
    """Run this program again in a network namespace of a kernel with SCTP; returns at once inside one."""
    if network.INSIDE not in os.environ:
        os.environ[network.INSIDE] = "own"  # as a kernel that is started for this has
        enter_sctp()
        del os.environ[network.INSIDE]
    network.enter()


def _calls(server: Server, load: Load, folder: Path, how: Times, on: set[int]) -> dict[str, float]:
    """Return the system calls of the answering process per answer, by name, if at least one per ten answers."""
    (answering,) = server.answering
    counted = folder / "calls"
    with subprocess.Popen(
        ["strace", "-f", "-c", "-o", counted, "-p", str(answering)],
        stderr=subprocess.PIPE,
        text=True,
    ) as tracer:
        assert tracer.stderr is not None  # noqa: S101  # as it is asked for
        tracer.stderr.readline()  # it is attached
        found = ask(server, load, folder / "questions", how, on)
        tracer.send_signal(signal.SIGINT)
        tracer.communicate()
    return {
        name: round(calls / found["answered"], 3)
        for name, calls in _read(counted.read_text().splitlines())
        if calls * 10 > found["answered"]
    }


def _read(lines: Sequence[str]) -> list[tuple[str, int]]:
    """Return (name, calls) of strace's table: share, seconds, microseconds, calls, errors or none, name."""
    cells = [line.split() for line in lines[2:]]
    return [(row[-1], int(row[3])) for row in cells if len(row) >= 5 and row[3].isdigit() and row[-1] != "total"]

"""Distribution of a check's processor time (py-spy).

py-spy samples the worker 500 times a second while four connections with full windows ask it. A sample belongs to the line of the
innermost frame of the project's code; time in the C code of the event loop is reading and polling. A share becomes microseconds by
the processor time of an answer in a run without py-spy.
"""

import linecache
import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from subprocess import PIPE, Popen
from typing import NamedTuple

from benchmark.build import ROOT, python
from benchmark.measure import Load, Results, ask, begin, finish, say, wrong_answers
from benchmark.servers import floor, free_port
from benchmark.site import loaded

from eir.cli.output import table

ENTRIES, TACS, QUESTIONS = 1_000_000, 50_000, 500_000
LOAD = Load(4, 256)
PY_SPY = "py-spy==0.4.3"
SAMPLES_PER_S = 500
LOOK_MIN_S = 2
"""Each stage must appear, on a busy host too."""


class Place(NamedTuple):
    """Code that belongs to a stage: a file of eir/, and a pattern for its line or the name of its function."""

    stage: str
    file: str
    line: str = ""
    function: str = ""


READ, TIMERS, OTHER = "read and poll", "timers and state", "other"
PLACES = (
    Place("look up", "lists/images/"),
    Place("metrics", "checks/checker.py", function="count|note|_observe"),
    Place("decide", "checks/"),
    Place("metrics", "interfaces/s13/lane.py", r"tally|note|results|\bcount\("),
    Place("lane", "interfaces/s13/lane.py"),
    Place("metrics", "node/observe/log.py"),
    Place("metrics", "device.py"),
    Place("metrics", "wire/peers/counts.py"),
    Place("metrics", "wire/diameter/traffic.py", function="by_lane|received|_count_answer"),
    Place("metrics", "wire/diameter/framing.py", r"answered|results", "_express"),
    Place("metrics", "wire/diameter/link.py", r"counts|perf_counter|time\.time"),
    Place("write", "wire/diameter/link.py", r"transport\.write"),
    Place("write", "wire/transport/", r"transport\.write"),
    Place("encode", "wire/diameter/peer.py", r"join", "data_to_send"),
    Place("frame", "wire/diameter/framing.py"),
    Place("frame", "wire/diameter/peer.py"),
    Place("frame", "wire/diameter/message.py"),
    Place(TIMERS, "wire/diameter/link.py"),
    Place(TIMERS, "wire/transport/"),
    Place(TIMERS, "wire/diameter/watchdog.py"),
    Place("store", "lists/stores/"),
    Place("general path", "interfaces/s13/"),
    Place("general path", "wire/diameter/"),
)
"""The first place that fits a sample counts."""
ORDER = (
    READ,
    "frame",
    "lane",
    "look up",
    "decide",
    "encode",
    "write",
    "metrics",
    "general path",
    TIMERS,
    "store",
    OTHER,
)


def main(arguments: Sequence[str]) -> int:
    """Run the part `profile` of scripts/bench."""
    options, on, how = begin("profile", __doc__, arguments, seconds=5, turns=3, fetch=lambda _: python(PY_SPY))
    spy = python(PY_SPY).with_name("py-spy")
    look_s = max(LOOK_MIN_S, round(how.seconds))
    samples: Counter[str] = Counter()
    results: Results = {}
    with tempfile.TemporaryDirectory(prefix="eir-bench-") as made:
        folder = Path(made)
        site, _, questions = loaded(folder, options, entries=ENTRIES, tacs=TACS, questions=QUESTIONS)
        with (
            site.server("eir", free_port(), cores=on.server) as eir,
            floor(free_port(), log=folder / "floor.log", cores=on.server) as bare,
        ):
            for turn in range(how.turns):
                for server in (eir, bare):
                    found = ask(server, LOAD, questions, how, on.generator)
                    results.setdefault((server.name, str(LOAD)), []).append(found)
                stacks = folder / f"stacks-{turn}"
                command = [
                    spy,
                    "record",
                    "--pid",
                    str(eir.workers[0]),
                    "--rate",
                    str(SAMPLES_PER_S),
                    "--format",
                    "raw",
                    "--output",
                    stacks,
                ]
                with Popen([*command, "--duration", str(look_s)], stdout=PIPE, stderr=PIPE, text=True) as profiler:
                    # It takes a moment to find its way through the process; the questions go on for longer than it looks.
                    longer = how._replace(warmup=1, seconds=look_s + 1)
                    found = ask(eir, LOAD, questions, longer, on.generator)
                    _, said = profiler.communicate()
                if profiler.returncode:
                    say(f"py-spy failed: {said.strip()}")
                    return 1
                samples += _by_stage(stacks.read_text())
                say(f"turn {turn + 1}: {found['answers_per_s']:,.0f}/s under the profiler")
    total = sum(samples.values())
    whole = _cost(results, "eir")
    stages = [
        {"stage": stage, "share": round(samples[stage] / total, 3), "us": round(samples[stage] / total * whole, 3)}
        for stage in ORDER
        if samples[stage]
    ]
    floor_us = _cost(results, "floor")
    measured = {
        "stages": stages, "us_per_check": whole, "floor_us": floor_us, "samples": total, "wrong_answers": wrong_answers(results),
    }  # fmt: skip
    text = table(stages, ("stage", "share", "us"), width=None)
    text += f"processor time of a check: {whole:.2f} us; of the floor's answer: {floor_us:.2f} us ({total} samples)\n"
    return finish("profile", measured, [], options, text)


def _cost(results: Results, name: str) -> float:
    """Return the processor time of an answer in us: the lowest of the turns, since that has the least disturbance."""
    return round(min(found["server_us_per_answer"] for found in results[name, str(LOAD)]), 3)


def _by_stage(stacks: str) -> Counter[str]:
    """Return the number of samples of each stage.

    A line has the frames, outermost first, separated by `;`, then a blank and a count.
    """
    seen: Counter[str] = Counter()
    for line in stacks.splitlines():
        frames, _, count = line.rpartition(" ")
        if "_bootstrap (threading" in frames:
            continue  # Threads that wait for work of the store's or the log's.
        if "data_received" in frames or "_run_next_turn" in frames:
            seen[_stage(frames.split(";"))] += int(count)
        elif frames.split(";")[-1].startswith("Runner.run"):
            seen[READ] += int(count)
        else:
            seen["store" if "stores/" in frames else TIMERS] += int(count)  # what the loop does beside answers
    return seen


def _stage(frames: Sequence[str]) -> str:
    for frame in reversed(frames):
        found = re.fullmatch(r"(.*) \(.*?\beir/(.*):(\d+)\)", frame)
        if found is None:
            continue
        function, file, number = found.groups()
        text = linecache.getline(str(ROOT / "eir" / file), int(number))
        for place in PLACES:
            if (
                file.startswith(place.file)
                and re.search(place.line, text)
                and re.search(rf"(^|\.)({place.function})", function)
            ):
                return place.stage
        return OTHER
    return OTHER

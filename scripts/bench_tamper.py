"""Phones with a tampered identity: how many of those planted are found, how many honest ones with them, and how long it takes.

Two generators make networks (scripts/benchmark/world.py and world_other.py say what they assume); the numbers of the second are
drawn anew for each run, whose seed is printed. Beside the analysis stands what DIRBS's rules find in the same data, at the thresholds of
its sample. --speed judges a record of so many sightings, made of a smaller one by giving every device and subscriber others' numbers.
"""

import argparse
import json
import resource
import secrets
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import duckdb
import yaml
from benchmark import world, world_other
from benchmark.measure import Target, add_options, at_least, at_most, finish, say
from benchmark.world import World

from eir.analysis.conditions import TamperSettings
from eir.analysis.duck import duck
from eir.analysis.judge import judge
from eir.analysis.schema import files
from eir.commands.table import table

SUBSCRIBERS, OTHER_SUBSCRIBERS, QUICK_SUBSCRIBERS = 50_000, 20_000, 800
ROWS_EACH, COPIES_MAX = 10_000_000, 10
"""Of the record that a larger one is made of; there are ten ways to change the first two digits under one check digit."""
MEMORY_MB_MAX, SECONDS_MAX = 4096, 120
NOT_LISTED = "gsma_not_found"
DIRBS = ("duplicate_threshold", "duplicate_daily_avg", "transient_imei", NOT_LISTED, "is_test_tac")
NETWORK = ("network", "devices", "reported", "precision", "dirbs_reported", "dirbs_precision", f"without_{NOT_LISTED}", "wrongly")
BANDS = ((2, "2"), (3, "3"), (6, "4 to 6"), (20, "7 to 20"), (1000, "more"))
WANTED = {"clone, 2 copies": 0.8, "clone, 3 copies": 0.8, "clone, 4 to 6 copies": 0.95, "clone, 7 to 20 copies": 0.95, "clone, more copies": 0.95, "box": 0.95}
PRECISION_MIN = 0.98
MISSED_ON_PURPOSE = "free"
"""A free number of a real TAC: nothing in the record contradicts it."""


def main(arguments: Sequence[str]) -> int:
    """The part `tamper` of scripts/bench."""
    parser = argparse.ArgumentParser(prog="bench tamper", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--subscribers", type=int, metavar="N", help=f"of the first network ({SUBSCRIBERS:,}), 30 days of 5 checks")
    parser.add_argument("--others", type=int, metavar="N", default=3, help="networks of the second kind (3)")
    parser.add_argument("--seed", type=int, metavar="N", help="of the first of these; drawn if not given")
    parser.add_argument("--speed", type=int, metavar="ROWS", default=0, help="also judge a record of so many sightings, such as 100000000")
    parser.add_argument("--work", type=Path, help="where files go (60 bytes a sighting); a temporary folder if not given")
    add_options(parser)
    options = parser.parse_args(arguments)
    size = options.subscribers or (QUICK_SUBSCRIBERS if options.quick else SUBSCRIBERS)
    seed = options.seed if options.seed is not None else secrets.randbelow(10**6)
    say(f"seed {seed}")
    rows: list[dict[str, Any]] = []
    targets: list[Target] = []
    document: dict[str, Any] = {"seed": seed}
    with tempfile.TemporaryDirectory(dir=options.work, prefix="eir-bench-") as made:
        folder = Path(made)
        one = folder / "one"
        one.mkdir()
        found = _judged("first", world.make(one, size, seed=seed))
        rows += found["kinds"]
        every = [found]
        for number in range(1 if options.quick else options.others):
            other = folder / f"other{number}"
            other.mkdir()
            every.append(_judged(f"other, seed {seed + number}", world_other.make(other, min(size, OTHER_SUBSCRIBERS), seed=seed + number)))
            rows += every[-1]["kinds"]
        targets += _targets(every)
        document |= {"measured": rows, "precision": {each["network"]: {"ours": each["precision"], "dirbs": each["dirbs_precision"]} for each in every}, "wrongly_reported": {each["network"]: each["wrongly"] for each in every}}
        if options.speed:
            document["speed"] = took = _speed(folder / "large", options.speed, seed)
            targets += [at_most(f"seconds for {took['sightings']:,} sightings", SECONDS_MAX, took["seconds"]), at_most("memory, MB", MEMORY_MB_MAX, took["memory_mb"])]
    text = table(rows, ("network", "kind", "planted", "found", "recall", "dirbs"), width=None) + "\n" + table(
        [{key: each[key] for key in NETWORK} for each in every], NETWORK, width=None,
    )  # fmt: skip
    if options.speed:
        text += "\n" + table([document["speed"]], ("sightings", "devices", "seconds", "cpu_seconds", "memory_mb"), width=None)
    return finish("tamper", document, targets, options, f"{text}\n")


def _judged(name: str, made: World) -> dict[str, Any]:
    """What is found in a network, by kind, and what DIRBS's rules find."""
    say(f"{name}: {made.rows:,} sightings")
    settings = TamperSettings(tac_db=made.tac_db)
    with duck(files(made.folder), since=made.since, until=made.until, memory=settings.memory, threads=2) as engine:
        judged = judge(engine, settings, since=made.since, until=made.until)
        names = ", ".join(f"'{rule}'" for rule in DIRBS)
        by_rule: defaultdict[str, set[int]] = defaultdict(set)
        for device, rule in engine.rows(f"SELECT device, name FROM marks WHERE name IN ({names})"):  # noqa: S608 - names of ours
            by_rule[rule].add(device)
        theirs = set().union(*by_rule.values())
        without = set().union(*(devices for rule, devices in by_rule.items() if rule != NOT_LISTED))
    ours = {finding.device for finding in judged.findings}
    kinds: defaultdict[str, set[int]] = defaultdict(set)
    for device, (kind, copies) in made.truth.items():
        kinds[f"clone, {next(label for most, label in BANDS if copies <= most)} copies" if kind == "clone" else kind].add(device)
    return {
        "network": name, "devices": judged.devices, "reported": len(ours), "precision": _precision(ours, made.truth), "dirbs_reported": len(theirs),
        "dirbs_precision": _precision(theirs, made.truth), f"without_{NOT_LISTED}": _precision(without, made.truth), "wrongly": [f"{what} {count}" for what, count in Counter(made.hard.get(device, "plain") for device in ours - made.truth.keys()).most_common()],
        "kinds": [
            {"network": name, "kind": kind, "planted": len(planted), "found": len(planted & ours), "recall": round(len(planted & ours) / len(planted), 3), "dirbs": round(len(planted & theirs) / len(planted), 3)}
            for kind, planted in sorted(kinds.items())
        ],
    }  # fmt: skip


def _precision(found: set[int], truth: Iterable[int]) -> float:
    return round(len(found & set(truth)) / len(found), 4) if found else 1.0


def _targets(every: Sequence[dict[str, Any]]) -> list[Target]:
    """Over all networks: recall of each kind, and precision of the reports."""
    planted: Counter[str] = Counter()
    found: Counter[str] = Counter()
    for row in (row for each in every for row in each["kinds"]):
        planted[row["kind"]] += row["planted"]
        found[row["kind"]] += row["found"]
    reported = sum(each["reported"] for each in every)
    right = sum(each["reported"] * each["precision"] for each in every)
    recalls = [at_least(f"recall: {kind}", bound, round(found[kind] / planted[kind], 3)) for kind, bound in WANTED.items() if planted[kind]]
    return [*recalls, at_least("precision", PRECISION_MIN, round(right / reported, 3) if reported else 1.0)]


def _speed(folder: Path, rows: int, seed: int) -> dict[str, Any]:
    """Judge a large record by the command itself, on two cores."""
    folder.mkdir()
    made, total = _large(folder, rows, seed)
    config = folder / "eir.yaml"
    config.write_text(yaml.safe_dump({
        "identity": {"host": "eir.example", "realm": "example"}, "peers": [{"realm": "example", "from": "127.0.0.0/8"}], "state": str(folder),
        "tamper": {"tac_db": str(made.tac_db)},
    }))  # fmt: skip
    say(f"judging {total:,} sightings")
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    command = ["taskset", "-c", "0,1", sys.executable, "-m", "eir", "tamper", "report", "-c", str(config), "--until", f"{made.until:%Y-%m-%d}", "--json"]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE)  # what it says on standard error is shown as it comes
    if done.returncode:
        raise SystemExit(f"bench: eir tamper report ended with {done.returncode}")
    seconds, after = time.monotonic() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "sightings": total, "devices": len(json.loads(done.stdout)), "seconds": round(seconds, 1), "memory_mb": after.ru_maxrss // 1024,
        "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
    }  # fmt: skip


def _large(folder: Path, rows: int, seed: int) -> tuple[World, int]:
    """A network, and copies of it whose devices and subscribers have numbers of their own; what they do stays the same. Returns the rows of all."""
    times = min(COPIES_MAX, max(1, round(rows / ROWS_EACH)))
    made = world.make(folder, max(800, round(rows / times / 150)), seed=seed)
    tacs = made.tac_db.read_text().splitlines()
    originals = sorted(folder.glob("sightings/*/*-made.parquet"))
    with duckdb.connect() as connection, made.tac_db.open("a") as out:
        connection.execute("SET threads = 2; SET preserve_insertion_order = true")
        for number in range(1, times):
            others = [_other_body(body, number) for body in range(100)]
            out.writelines(f"{others[int(line[:2])]:02d}{line[2:]}\n" for line in tacs[1:])
            body = f"list_extract({others}, 1 + CAST(device // 1000000000000 AS INTEGER))"
            for path in originals:
                connection.execute(f"""
                    COPY (SELECT * REPLACE (
                        CASE WHEN device IN (0, 11111111111111) THEN device ELSE {body} * 1000000000000 + device % 1000000000000 END AS device,
                        CASE WHEN device IS NULL OR device IN (0, 11111111111111) THEN imei ELSE format('{{:02d}}', {body}) || SUBSTRING(imei, 3) END AS imei,
                        '{number:02d}' || SUBSTRING(subscriber, 3) AS subscriber
                    ) FROM read_parquet('{path}')) TO '{path.with_name(f"{path.stem}{number}.parquet")}' (FORMAT parquet, COMPRESSION zstd)
                """)  # noqa: S608 - names of ours
    return made, made.rows * times


def _other_body(body: int, number: int) -> int:
    """Two first digits that leave the check digit as it is: another second one (doubled there), and the first that goes with it."""
    first, second = divmod(body, 10)
    other = (second + number) % 10
    return (first + _doubled(second) - _doubled(other)) % 10 * 10 + other


def _doubled(digit: int) -> int:
    return digit * 2 // 10 + digit * 2 % 10

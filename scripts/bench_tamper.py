"""Tampered phones found and honest phones reported, against DIRBS's rules.

Each row of scripts/simulated/networks.py is a network of 12,000 subscribers under one assumption; networks_shared.py has networks of
several operators; world_facts.py is one more generator, to which nothing was fitted. The same networks are also judged by DIRBS's rules (thresholds of its sample configuration) and by the rule of Cambodia's register: more than two SIMs within a minute.
--fit prints the weights of eir/sightings/conditions.py, from networks of other seeds at 1, 3 and 8 checks a day. --attacks adds attacking peers to a network of
each row (scripts/simulated/attacks.py). --speed measures a record of the given number of sightings: copies of a smaller record with
other identifiers, beside COUNT(DISTINCT subscriber) of each device.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from math import log, sqrt
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
from benchmark.measure import Target, add_options, at_least, at_most, finish, say
from benchmark.site import EIR, Site
from simulated import attacks, networks, networks_shared, world_facts
from simulated.network_record import World

from eir.cli.output import table
from eir.lists.record.settings import TYPES
from eir.sightings.conditions import COLUMNS, Tac, TamperSettings
from eir.sightings.engine import Duck, duck
from eir.sightings.judge import judge
from eir.sightings.schema import FILES, FOLDER

QUICK_SUBSCRIBERS = 1500
FITTED, JUDGED = 100, 900
"""First seed of the networks for fitting the weights, and first seed of those for judging them."""
HELD_OUT = "generator from facts"
ROWS_EACH, COPIES_MAX = 10_000_000, 10
"""Rows of the record from which a larger one is made, and maximum number of its copies."""
MEMORY_MB_MAX, TIMES_MAX = 1024, 4
"""Maximum memory, and maximum processor time as a multiple of the time of COUNT(DISTINCT subscriber)."""
BANDS = ((2, "2"), (3, "3"), (1000, "4 and more"))
RARE = 0.004
"""Second share of tampered devices for which precision is given."""
SHARED = next(iter(networks_shared.ROWS))
"""Network that sets the threshold."""
PAIRS_MIN = {"physics": 0.9, "pools, sticky": 0.6, "three refurbishers": 0.6, "one MME": 0.6, SHARED: 0.4}
FOUR_MIN = {"small operator": 0.75, SHARED: 0.9, "several operators, half of the MMEs": 0.0}
HONEST_MAX, HONEST_SHARED_MAX = 5, 3
"""Maximum number of reported honest devices per 10,000."""
PRIOR = 0.005
"""Share of tampered devices that the fit assumes (in Pakistan's register 0.88 million of about 190 million IMEIs were cloned)."""
FIT_ROWS = ("physics", "pools, sticky", "pools, random", "one MME", "small operator", "jugglers 3 %, swift, IMSIs 2 %")
RATES = (1.0, 3.0, 8.0)
"""Checks a day of the networks that weights are fitted to."""
HIGH = 0.99
"""Score whose true share of tampered devices is printed."""
VICTIMS_MAX, LOST_MAX = 2, 0.05
THEIRS = {
    "dirbs": """
        WITH usage AS (SELECT device, subscriber, BIT_OR(1::HUGEINT << day) AS days FROM sightings WHERE device IS NOT NULL AND subscriber IS NOT NULL GROUP BY 1, 2)
        SELECT device FROM usage GROUP BY device HAVING COUNT(*) >= 10
        UNION SELECT device FROM usage GROUP BY device HAVING BIT_COUNT(BIT_OR(days)) >= 5 AND SUM(BIT_COUNT(days)) >= 3.1 * BIT_COUNT(BIT_OR(days))
    """,
    "cambodia": """
        SELECT DISTINCT device FROM (
          SELECT sightings.device, COUNT(DISTINCT sightings.subscriber) OVER (
            PARTITION BY sightings.device ORDER BY sightings.time RANGE BETWEEN INTERVAL 60 SECONDS PRECEDING AND CURRENT ROW
          ) AS sims
          FROM sightings JOIN (SELECT device FROM uses GROUP BY device HAVING COUNT(subscriber) > 2) AS shared ON sightings.device = shared.device
        ) AS within WHERE sims > 2
    """,
}
"""Rules of registers, as SQL on the tables of a judgement."""


def main(arguments: Sequence[str]) -> int:
    """Run the part `tamper` of scripts/bench."""
    parser = argparse.ArgumentParser(
        prog="bench tamper", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--subscribers", type=int, metavar="N", help="subscribers of each network (12,000)")
    parser.add_argument(
        "--rows",
        nargs="*",
        metavar="ROW",
        default=[*networks.ROWS, *networks_shared.ROWS, HELD_OUT],
        help="of: " + "; ".join([*networks.ROWS, *networks_shared.ROWS, HELD_OUT]).replace("%", "%%"),
    )
    parser.add_argument(
        "--seeds", type=int, metavar="N", default=1, help="number of networks of each row (1), judged together"
    )
    parser.add_argument("--seed", type=int, metavar="N", default=JUDGED, help=f"seed of the first network ({JUDGED})")
    parser.add_argument(
        "--fit", action="store_true", help=f"print weights fitted to networks from seed {FITTED} on, and end"
    )
    parser.add_argument("--attacks", action="store_true", help="also attack a network of each row, of the first seed")
    parser.add_argument(
        "--speed",
        type=int,
        metavar="ROWS",
        default=0,
        help="also judge a record of this number of sightings, such as 100000000",
    )
    parser.add_argument(
        "--work", type=Path, help="folder for the files, 60 bytes per sighting (default: a temporary folder)"
    )
    add_options(parser)
    options = parser.parse_args(arguments)
    if options.quick:
        options.subscribers = options.subscribers or QUICK_SUBSCRIBERS
        options.rows = [HELD_OUT, next(iter(networks.ROWS))]
    if options.fit:
        print(table(fitted(options), ("weight", "value"), width=None))
        return 0
    every = [_judged(name, made) for name, made in _made(options)]
    together, high = precisions(every), _high(every)
    rows = [row for each in every for row in each["kinds"]]
    document: dict[str, Any] = {
        "measured": rows,
        "networks": [{key: value for key, value in each.items() if key != "kinds"} for each in every],
        "high": high,
        "precision": together,
    }
    targets = _targets(every, together) if every else []
    text = table(rows, ("network", "kind", "planted", "found", "recall", "interval", *THEIRS), width=None) + "\n" + table(
        document["networks"], ("network", "devices", "reported", "found", "wrong", *(f"{name}_precision" for name in THEIRS), "seconds", "wrongly"), width=None,
    ) + "\n" + table(
        together, ("network", "networks", "precision", "precision_interval", "precision_least", "precision_rare", "honest_reported", "honest_of_10000", "honest_interval", "honest_most"), width=None,
    ) + "\n" + table([high], ("score", "devices", "tampered", "share", "interval"), width=None)  # fmt: skip
    if options.attacks:
        document["attacks"] = attacked = []
        for name, made in _made(argparse.Namespace(**vars(options) | {"seeds": 1})):
            attacked += _attacked(name, made)
        for each in attacked:
            what = f"{each['network']}, attack {each['attack']}"
            targets += [
                at_most(f"{what}: victims exported", 0, each["victims_exported"]), at_most(f"{what}: victims reported", VICTIMS_MAX, each["victims_reported"]),
                at_most(f"{what}: tampered devices lost, share", LOST_MAX, each["lost"]),
            ]  # fmt: skip
        text += "\n" + table(
            attacked,
            ("network", "attack", "checks", "victims_reported", "victims_exported", "lost", "left_out"),
            width=None,
        )
    if options.speed:
        with tempfile.TemporaryDirectory(dir=options.work, prefix="eir-bench-") as folder:
            document["speed"] = took = _speed(Path(folder), options.speed, options.seed)
        targets += [
            at_most(
                f"processor time for {took['sightings']:,} sightings, as a multiple of COUNT(DISTINCT)",
                TIMES_MAX,
                took["times"],
            ),
            at_most("memory, MB", MEMORY_MB_MAX, took["memory_mb"]),
        ]
        text += "\n" + table(
            [took],
            ("sightings", "devices", "seconds", "cpu_seconds", "count_cpu_seconds", "times", "memory_mb"),
            width=None,
        )
    return finish("tamper", document, targets, options, f"{text}\n")


def _made(options: argparse.Namespace, first: int | None = None) -> Iterator[tuple[str, World]]:
    """Yield each network, one at a time."""
    for name in options.rows:
        for seed in range(
            first if first is not None else options.seed, (first if first is not None else options.seed) + options.seeds
        ):
            with tempfile.TemporaryDirectory(dir=options.work, prefix="eir-bench-") as made:
                folder = Path(made)
                if name == HELD_OUT:
                    rates = world_facts.FactRates(phones=options.subscribers or 12_000)
                    yield name, world_facts.build_fact_world(folder, rates, seed=seed)
                elif name in networks_shared.ROWS:
                    shared = networks_shared.ROWS[name]
                    yield (
                        name,
                        networks_shared.make(
                            folder, replace(shared, people=options.subscribers or shared.people), seed=seed
                        ),
                    )
                else:
                    row = networks.ROWS[name]
                    yield (
                        name,
                        networks.make(
                            folder, replace(row, subscribers=options.subscribers or row.subscribers), seed=seed
                        ),
                    )


@contextmanager
def _engine(made: World) -> Iterator[tuple[Duck, Any, float]]:
    """Judge a network; return the engine, its findings at any score, and the duration."""
    settings = TamperSettings(report_min=0)
    with duck(
        str(made.folder / FOLDER / FILES), since=made.since, until=made.until, memory=settings.memory, threads=1
    ) as engine:
        begin = time.monotonic()
        judged = judge(engine, settings, since=made.since, until=made.until, tacs=made.tacs)
        yield engine, judged, time.monotonic() - begin


def _judged(name: str, made: World) -> dict[str, Any]:
    """Return the findings in a network by kind, beside those of the rules of registers."""
    say(f"{name}: {made.rows:,} sightings")
    with _engine(made) as (engine, judged, seconds):
        theirs = {rule: {device for (device,) in engine.rows(select)} for rule, select in THEIRS.items()}
        seen = {device for (device,) in engine.rows("SELECT DISTINCT device FROM uses")}
    least = TamperSettings().report_min
    told = {finding.device: finding.score for finding in judged.findings}
    ours = {device for device, score in told.items() if score >= least}
    kinds: defaultdict[str, set[int]] = defaultdict(set)
    truth = {
        device: what for device, what in made.truth.items() if device in seen
    }  # days are missing, and with them some devices
    for device, (kind, copies) in truth.items():
        kinds[
            f"clone, {next(label for most, label in BANDS if copies <= most)} copies" if kind == "clone" else kind
        ].add(device)
    clones = {device for device, (kind, _) in truth.items() if kind in {"clone", "taken"}}
    honest = judged.devices - len(truth)
    wrong = ours - truth.keys()
    return {
        "network": name, "devices": judged.devices, "honest": honest, "clones": len(clones), "reported": len(ours), "left_out": list(judged.left_out), "seconds": round(seconds, 1),
        "found": len(ours & clones), "wrong": len(wrong), "wrongly": [f"{what} {count}" for what, count in Counter(made.hard.get(device, "plain") for device in wrong).most_common()],
        **{f"{rule}_precision": _share(len(found & truth.keys()), len(found)) for rule, found in theirs.items()},
        "high": sum(score >= HIGH for score in told.values()), "high_tampered": sum(score >= HIGH and device in truth for device, score in told.items()),
        "kinds": [
            {
                "network": name, "kind": kind, "planted": len(planted), "found": len(planted & ours), "recall": _share(len(planted & ours), len(planted)),
                "interval": wilson(len(planted & ours), len(planted)), **{rule: _share(len(planted & found), len(planted)) for rule, found in theirs.items()},
            } for kind, planted in sorted(kinds.items())
        ],
    }  # fmt: skip


def precisions(every: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return precision and number of reported honest devices of each row's networks together, and of the worst single network."""
    together: list[dict[str, Any]] = []
    for name in dict.fromkeys(each["network"] for each in every):
        mine = [each for each in every if each["network"] == name]
        honest, clones, found, wrong = (
            sum(each[what] for each in mine) for what in ("honest", "clones", "found", "wrong")
        )
        rare = found / clones * RARE * honest
        together.append({
            "network": name, "networks": len(mine), "precision": _share(found, found + wrong), "precision_interval": wilson(found, found + wrong, digits=3),
            "precision_least": min(_share(each["found"], each["found"] + each["wrong"]) for each in mine), "precision_rare": _share(rare, rare + wrong), "honest": honest, "honest_reported": wrong, "honest_of_10000": round(wrong / honest * 10_000, 1),
            "honest_interval": wilson(wrong, honest, of=10_000, digits=1), "honest_most": round(max(each["wrong"] / each["honest"] for each in mine) * 10_000, 1),
        })  # fmt: skip
    return together


def _high(every: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the share of tampered devices among those with a score of HIGH or more."""
    devices, tampered = (sum(each[what] for each in every) for what in ("high", "high_tampered"))
    return {"score": HIGH, "devices": devices, "tampered": tampered, "share": _share(tampered, devices), "interval": wilson(tampered, devices, digits=3)}  # fmt: skip


def _attacked(name: str, made: World) -> list[dict[str, Any]]:
    """Return the effect of each attack: how many of a hundred honest phones are reported and exported, and the share of lost true findings."""
    checks = attacks.record(made)
    after = attacks.victims(made, checks, JUDGED)
    before = _reported(made)[0].keys() & made.truth.keys()
    found = []
    with tempfile.TemporaryDirectory(prefix="eir-bench-") as folder:
        agents = attacks.behind_agents(made, Path(folder))
        for attack, rows_of in {
            **attacks.PLANTED,
            **attacks.BLINDING,
            "an MME behind two agents": attacks.by_agents,
        }.items():
            say(f"{name}, attacked: {attack}")
            attacked = agents if rows_of is attacks.by_agents else made
            rows = rows_of(
                checks, attacks.clones(made) if attack in attacks.BLINDING else after, np.random.default_rng(JUDGED)
            )
            planted = attacks.plant(attacked, rows)
            reported, left_out = _reported(attacked)
            planted.unlink()
            victims = [reported[device] for device in after if device in reported]
            found.append({
                "network": name, "attack": attack, "checks": len(rows), "victims_reported": len(victims), "victims_exported": sum(score >= TamperSettings().export_min for score in victims),
                "lost": round(len(before - reported.keys()) / max(len(before), 1), 3), "left_out": list(left_out),
            })  # fmt: skip
    return found


def _reported(made: World) -> tuple[dict[int, float], tuple[str, ...]]:
    least = TamperSettings().report_min
    with _engine(made) as (_, judged, _):
        return {finding.device: finding.score for finding in judged.findings if finding.score >= least}, judged.left_out


def _share(part: float, whole: float) -> float:
    return round(part / whole, 3) if whole else 1.0


def wilson(part: int, whole: int, *, z: float = 1.96, of: int = 1, digits: int = 2) -> str:
    """Return Wilson's interval (95 %) of a share."""
    if not whole:
        return f"0 to {of}"
    share = part / whole
    middle, half = (
        (share + z * z / 2 / whole) / (1 + z * z / whole),
        z / (1 + z * z / whole) * sqrt(share * (1 - share) / whole + z * z / 4 / whole**2),
    )
    return f"{max(middle - half, 0) * of:.{digits}f} to {min(middle + half, 1) * of:.{digits}f}"


def fitted(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return weights by ridge regression of log odds (Newton's method), from networks that are not used for judging, and the intercept that keeps the threshold.

    With this intercept 3 of 10,000 honest devices reach `tamper.report_min` in the networks of the generator that reports most of them.
    """
    parts: list[tuple[Any, Any, Any]] = []
    honest = Counter[str]()
    generators: list[str] = []
    for name, made in _fit_networks(options):
        say(f"{name}: {made.rows:,} sightings")
        with _engine(made) as (engine, judged, _):
            rows = engine.rows(f"SELECT device, {', '.join(COLUMNS)} FROM evidence")  # noqa: S608 - names of ours
        clones = sum(kind == "clone" for kind, _ in made.truth.values())
        kept = [row for row in rows if made.truth.get(row[0], ("clone", 0))[0] == "clone" and made.hard.get(row[0]) != "a batch of modules"]  # fmt: skip
        is_clone = np.array([row[0] in made.truth for row in kept])
        others = judged.devices - len(made.truth)
        weight = np.where(is_clone, PRIOR / (1 - PRIOR) * others / clones, 1.0)
        parts.append((np.array([[1.0, *map(float, row[1:])] for row in kept]), is_clone, weight))
        honest[name] += others
        generators.append(name)
    columns, is_clone, weight = (np.concatenate([part[at] for part in parts]) for at in range(3))
    ridge = np.diag([0.0, *[0.5] * len(COLUMNS)])
    weights = np.zeros(len(COLUMNS) + 1)
    for _ in range(60):
        chance = 1 / (1 + np.exp(-columns @ weights))
        step = np.linalg.solve(
            (columns * (weight * chance * (1 - chance) + 1e-9)[:, None]).T @ columns + ridge,
            columns.T @ (weight * (is_clone - chance)) - ridge @ weights,
        )
        weights += step * min(1, 3 / max(np.abs(step).max(), 1e-9))
    threshold = -30.0
    for name, others in honest.items():
        odds = np.concatenate([part[0][~part[1]] @ weights for part, of in zip(parts, generators, strict=True) if of == name])  # fmt: skip
        allowed = int(others * HONEST_SHARED_MAX / 10_000)
        threshold = max(threshold, float(np.sort(odds)[::-1][allowed]) if len(odds) > allowed else -30.0)
    least = TamperSettings().report_min
    weights[0] += log(least / (1 - least)) - threshold
    return [{"weight": name, "value": round(float(value), 2)} for name, value in zip(["intercept", *COLUMNS], weights, strict=True)]  # fmt: skip


def _fit_networks(options: argparse.Namespace) -> Iterator[tuple[str, World]]:
    """Yield the networks for the fit: of several operators and of one at each of RATES, and rows of one assumption each."""
    people = options.subscribers or 12_000
    makers: list[tuple[str, Any]] = []
    for rate in RATES:
        shared, own = (
            replace(networks_shared.ROWS[SHARED], a_day=rate, people=people),
            replace(networks.ROWS["physics"], a_day=rate, subscribers=people),
        )
        makers += [(f"{SHARED}, {rate:g} checks a day", partial(networks_shared.make, rules=shared))] * 2
        makers += [(f"physics, {rate:g} checks a day", partial(networks.make, network=own))]
    for name in FIT_ROWS:
        makers += [(name, partial(networks.make, network=replace(networks.ROWS[name], subscribers=people)))]
    for number, (name, make) in enumerate(makers):
        for seed in range(options.seeds):
            with tempfile.TemporaryDirectory(dir=options.work, prefix="eir-bench-") as folder:
                yield name, make(Path(folder), seed=FITTED + seed + 50 * (number % 2))


def _targets(every: Sequence[dict[str, Any]], together: Sequence[dict[str, Any]]) -> list[Target]:
    """Return the targets, by row, its networks together.

    These are recall of pairs, of four and more copies, and of SIM boxes; precision; and reported honest devices.
    """
    planted: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for row in (row for each in every for row in each["kinds"]):
        kind = "box" if row["kind"].startswith("box") else row["kind"]
        planted[kind] += row["planted"]
        right[kind] += row["found"]
    overall = {"clone, 2 copies": 0.7, "clone, 3 copies": 0.85, "clone, 4 and more copies": 0.95, "box": 0.95}
    found = [at_least(f"recall: {kind}", bound, _share(right[kind], planted[kind])) for kind, bound in overall.items()]
    found += [at_least("precision", 0.95, round(sum(each["precision"] for each in together) / len(together), 3))]
    for all_of_them in together:
        name = all_of_them["network"]
        mine = [each for each in every if each["network"] == name]
        counted: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
        for row in (row for each in mine for row in each["kinds"]):
            kind = "box" if row["kind"].startswith("box") else row["kind"]
            counted[kind][0] += row["found"]
            counted[kind][1] += row["planted"]
        recall = {kind: _share(*both) for kind, both in counted.items()}
        wanted = {
            "clone, 2 copies": PAIRS_MIN.get(name, 0.0),
            "clone, 3 copies": 0.7 if name == SHARED else 0.0,
            "clone, 4 and more copies": FOUR_MIN.get(name, 0.97),
            "box": 0.95,
        }
        found += [
            at_least(f"{name}: recall of {kind}", bound, recall[kind])
            for kind, bound in wanted.items()
            if bound and kind in recall
        ]
        found += [
            at_least(f"{name}: precision", 0.95, all_of_them["precision"]), at_least(f"{name}: precision at {RARE:.1%}", 0.9, all_of_them["precision_rare"]),
            at_most(f"{name}: honest of 10,000", HONEST_SHARED_MAX if name == SHARED else HONEST_MAX, all_of_them["honest_of_10000"]),
        ]  # fmt: skip
    return found


def _speed(folder: Path, rows: int, seed: int) -> dict[str, Any]:
    """Judge a large record by the command itself, on two cores."""
    site = Site(folder / "site", kind=TYPES)
    site.state.mkdir()
    with ProcessPoolExecutor(1) as apart:  # a child's peak of memory includes that of its parent before exec
        made, total = apart.submit(_large, site.state, rows, seed).result()
    listed = site.folder / "tacs.csv"
    with listed.open("w") as out:
        out.write("tac,device_type,date\n")
        out.writelines(f"{tac:08d},{kind},{allocated}\n" for tac, allocated, kind in made.tacs)
    site.load(site.release(listed))
    say(f"judging {total:,} sightings")
    begin, until = time.monotonic(), f"{made.until:%Y-%m-%d}"
    command = ["taskset", "-c", "0,1", *EIR, "tamper", "report", "-c", site.configure(0), "--until", until, "--json"]
    with (folder / "report").open("w+") as report:
        _, status, usage = os.wait4(subprocess.Popen(command, stdout=report).pid, 0)
        report.seek(0)
        if status:
            raise SystemExit(f"bench: eir tamper report ended with {os.waitstatus_to_exitcode(status)}")
        found = json.load(report)
    seconds, spent = time.monotonic() - begin, usage.ru_utime + usage.ru_stime
    began = time.process_time()
    with duckdb.connect() as connection:
        connection.execute("SET threads = 2")
        files = str(site.state / FOLDER / FILES)
        connection.execute(f"SELECT COUNT(*), SUM(n) FROM (SELECT device, COUNT(DISTINCT subscriber) AS n FROM read_parquet('{files}') GROUP BY device)").fetchall()  # noqa: S608 - a path of ours  # fmt: skip
    plain = time.process_time() - began
    return {
        "sightings": total, "devices": len(found), "seconds": round(seconds, 1), "memory_mb": usage.ru_maxrss // 1024,
        "cpu_seconds": round(spent, 1), "count_cpu_seconds": round(plain, 1), "times": round(spent / plain, 1),
    }  # fmt: skip


def _large(folder: Path, rows: int, seed: int) -> tuple[World, int]:
    """Write a network and copies of it, whose devices and subscribers have other identifiers and the same behaviour; return the number of all rows."""
    times = min(COPIES_MAX, max(1, round(rows / ROWS_EACH)))
    rates = world_facts.FactRates(phones=max(800, round(rows / times / 90)))
    made: World = world_facts.build_fact_world(folder, rates, seed=seed)
    with duckdb.connect() as connection:
        connection.execute("SET threads = 2; SET preserve_insertion_order = true")
        for path in sorted(folder.glob("sightings/*/*-made.parquet")):
            for number in range(times):
                device = f"CASE WHEN device = 0 THEN 0 ELSE (device + {number} * 1000000000000) % 100000000000000 END"
                connection.execute(f"""
                    COPY (SELECT * REPLACE ({device} AS device, format('{{:014d}}', {device}) AS imei, md5(concat(subscriber, {number})) AS subscriber)
                    FROM read_parquet('{path}')) TO '{path.with_name(f"{path.stem}{number}.parquet")}' (FORMAT parquet, COMPRESSION zstd)
                """)  # noqa: S608 - names of ours
            path.unlink()
    tacs = [Tac((tac + 10**6 * number) % 10**8, *more) for number in range(times) for tac, *more in made.tacs]
    return replace(made, tacs=tuple(tacs)), made.rows * times

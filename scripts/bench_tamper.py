"""Tampered phones found and honest phones reported, against DIRBS's rules.

Each row of scripts/simulated/networks.py is a network of 12,000 subscribers under one assumption; networks_shared.py has networks of
several operators; world.py, world_other.py and world_facts.py are three more generators, to which nothing was fitted. The same networks are
also judged by DIRBS's rules (thresholds of its sample configuration) and by the rule of Cambodia's register: more than two SIMs within a minute.
--fit prints the weights of eir/sightings/conditions.py, from networks of other seeds. --attacks adds attacking peers to a network of
each row (scripts/simulated/attacks.py). --speed measures a record of the given number of sightings: copies of a smaller record with
other identifiers.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import log, sqrt
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
from benchmark.measure import Target, add_options, at_least, at_most, finish, say
from benchmark.site import Site
from simulated import attacks, networks, networks_shared, world, world_facts, world_other
from simulated.world import World

from eir.cli.table import table
from eir.lists.record.settings import TYPES
from eir.sightings.conditions import PRIOR, WEIGHTS, Tac, TamperSettings
from eir.sightings.engine import Duck, duck
from eir.sightings.judge import Judgement, judge
from eir.sightings.schema import FILES, FOLDER

QUICK_SUBSCRIBERS = 1500
FITTED, JUDGED = 100, 900
"""First seed of the networks for fitting the weights, and first seed of those for judging them."""
HELD_OUT = ("first generator", "second generator", "generator from facts")
ROWS_EACH, COPIES_MAX = 10_000_000, 10
"""Rows of the record from which a larger one is made; for one check digit there are ten ways to change the first two
digits."""
MEMORY_MB_MAX, SECONDS_MAX = 1536, 120
BAND_MIN = 30
"""Minimum number of devices in a band of the score that is judged."""
BANDS = ((2, "2"), (3, "3"), (1000, "4 and more"))
UNDETECTABLE = {"free"}
"""Kind of tampering: a free serial number of a real TAC, which nothing in the record contradicts."""
RARE = 0.004
"""Second share of tampered devices for which precision is given."""
SHARED = next(iter(networks_shared.ROWS))
"""Network that sets the threshold."""
PAIRS_MIN = {"physics": 0.9, "pools, sticky": 0.6, "three refurbishers": 0.6, "one MME": 0.6, SHARED: 0.4}
FOUR_MIN = {"small operator": 0.75, SHARED: 0.9, "several operators, half of the MMEs": 0.0}
HONEST_MAX, HONEST_SHARED_MAX = 5, 3
"""Maximum number of reported honest devices per 10,000."""
PAIRS_EXPORTED_MIN, RIVAL_DAYS = 0.7, (2, 10, 20, 30)
"""Minimum share of the copies' pairs in an export; days for which a rival uses the owner's IMEI."""
VICTIMS_MAX, LOST_MAX = 2, 0.05
THEIRS = {
    "dirbs": """
        SELECT device FROM devices WHERE subscribers >= 10
        UNION SELECT device FROM (SELECT device, SUM(day_count) AS uses, BIT_COUNT(BIT_OR(days)) AS seen FROM usage WHERE subscriber IS NOT NULL GROUP BY device) AS a WHERE seen >= 5 AND uses >= 3.1 * seen
        UNION SELECT device FROM usage WHERE subscriber IS NOT NULL GROUP BY device HAVING MAX(day_count) = 1 AND COUNT(*) >= 10 AND BIT_COUNT(BIT_OR(days)) >= 20
    """,
    "cambodia": """
        SELECT DISTINCT device FROM (
          SELECT sightings.device, COUNT(DISTINCT sightings.subscriber) OVER (
            PARTITION BY sightings.device ORDER BY sightings.time RANGE BETWEEN INTERVAL 60 SECONDS PRECEDING AND CURRENT ROW
          ) AS sims
          FROM sightings JOIN devices ON sightings.device = devices.device WHERE devices.subscribers > 2
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
        default=[*networks.ROWS, *networks_shared.ROWS, *HELD_OUT],
        help="of: " + "; ".join([*networks.ROWS, *networks_shared.ROWS, *HELD_OUT]).replace("%", "%%"),
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
        options.rows = [HELD_OUT[0], next(iter(networks.ROWS))]
    if options.fit:
        print(table(fitted(options), ("weight", "value"), width=None))
        return 0
    every = [_judged(name, made) for name, made in _made(options)]
    bands, together = reliability(every), precisions(every)
    rows = [row for each in every for row in each["kinds"]]
    document: dict[str, Any] = {
        "measured": rows,
        "networks": [
            {key: value for key, value in each.items() if key not in {"kinds", "told", "exports"}} for each in every
        ],
        "reliability": bands,
        "precision": together,
    }
    targets = _targets(every, together, bands)
    for generator in dict.fromkeys(map(_generator, options.rows)):
        document[f"reliability, {generator}"] = mine = reliability(
            each for each in every if _generator(each["network"]) == generator
        )
        targets += [
            at_most(f"{generator}: reliability from {band['score']}", 0.15, round(abs(band["said"] - band["was"]), 3))
            for band in mine
            if band["devices"] >= BAND_MIN
        ]
    document["exports"] = exports = [each["exports"] for each in every if each["exports"]]
    if exports:
        written, wanted = (sum(each[what] for each in exports) for what in ("written", "copies"))
        targets += [
            at_most("exported rows that block an owner", 0, sum(each["owners"] for each in exports)),
            at_least("share of copies' pairs that are exported", PAIRS_EXPORTED_MIN, _share(written, wanted)),
        ]
    text = table(rows, ("network", "kind", "planted", "found", "recall", "interval", *THEIRS), width=None) + "\n" + table(
        document["networks"], ("network", "devices", "reported", "found", "wrong", *(f"{name}_precision" for name in THEIRS), "seconds", "wrongly"), width=None,
    ) + "\n" + table(
        together, ("network", "networks", "precision", "precision_interval", "precision_least", "precision_rare", "honest_reported", "honest_of_10000", "honest_interval", "honest_most"), width=None,
    ) + "\n" + table(bands, ("score", "devices", "said", "was"), width=None) + "\n" + table(exports, ("network", "copies", "written", "share", "interval", "owners"), width=None)  # fmt: skip
    if options.attacks:
        document["attacks"] = attacked = []
        document["rival"] = rivals = []
        for name, made in _made(argparse.Namespace(**vars(options) | {"seeds": 1})):
            attacked += _attacked(name, made)
            rivals += _rivals(name, made)
        for each in attacked:
            what = f"{each['network']}, attack {each['attack']}"
            targets += [
                at_most(f"{what}: victims exported", 0, each["victims_exported"]), at_most(f"{what}: victims reported", VICTIMS_MAX, each["victims_reported"]),
                at_most(f"{what}: tampered devices lost, share", LOST_MAX, each["lost"]),
            ]  # fmt: skip
        targets += [
            at_most(f"{each['network']}, a rival for {each['days']} days: owners blocked", 0, each["owners"])
            for each in rivals
        ]
        text += "\n" + table(
            attacked,
            ("network", "attack", "checks", "victims_reported", "victims_exported", "lost", "left_out"),
            width=None,
        )
        text += "\n" + table(rivals, ("network", "days", "found", "rivals_blocked", "owners"), width=None)
    if options.speed:
        with tempfile.TemporaryDirectory(dir=options.work, prefix="eir-bench-") as folder:
            document["speed"] = took = _speed(Path(folder), options.speed, options.seed)
        targets += [
            at_most(f"seconds for {took['sightings']:,} sightings", SECONDS_MAX, took["seconds"]),
            at_most("memory, MB", MEMORY_MB_MAX, took["memory_mb"]),
        ]
        text += "\n" + table([took], ("sightings", "devices", "seconds", "cpu_seconds", "memory_mb"), width=None)
    return finish("tamper", document, targets, options, f"{text}\n")


def _made(options: argparse.Namespace, first: int | None = None) -> Iterator[tuple[str, World]]:
    """Yield each network, one at a time."""
    for name in options.rows:
        for seed in range(
            first if first is not None else options.seed, (first if first is not None else options.seed) + options.seeds
        ):
            with tempfile.TemporaryDirectory(dir=options.work, prefix="eir-bench-") as made:
                folder = Path(made)
                if name == HELD_OUT[0]:
                    yield name, world.make(folder, options.subscribers or 12_000, seed=seed)
                elif name == HELD_OUT[1]:
                    yield name, world_other.make(folder, options.subscribers or 12_000, seed=seed)
                elif name == HELD_OUT[2]:
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


def _generator(row: str) -> str:
    """Return the generator of a row."""
    return row if row in HELD_OUT else "several operators" if row in networks_shared.ROWS else "networks"


@contextmanager
def _engine(made: World) -> Iterator[tuple[Duck, Any, float]]:
    """Judge a network; return the engine, its findings at any score, and the duration."""
    settings = TamperSettings(report_min=0)
    with duck(
        str(made.folder / FOLDER / FILES), since=made.since, until=made.until, memory=settings.memory, threads=1
    ) as engine:
        begin = time.monotonic()
        judged = judge(engine, settings, since=made.since, until=made.until, tacs=made.tacs, keep_users=True)
        yield engine, judged, time.monotonic() - begin


def _judged(name: str, made: World) -> dict[str, Any]:
    """Return the findings in a network by kind, beside those of the rules of registers."""
    say(f"{name}: {made.rows:,} sightings")
    with _engine(made) as (engine, judged, seconds):
        theirs = {rule: {device for (device,) in engine.rows(select)} for rule, select in THEIRS.items()}
        seen = {device for (device,) in engine.rows("SELECT device FROM devices")}
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
        **{f"{rule}_precision": _share(len(found & truth.keys()), len(found)) for rule, found in theirs.items()}, "exports": _exports(name, made, judged),
        "told": [
            (told.get(device, 0.0), device in truth, device in clones)
            for device in {*(told.keys() - truth.keys()), *clones, *kinds["never_allocated"]}
        ],
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


def _exports(name: str, made: World, judged: Judgement) -> dict[str, Any]:
    """Return the number of pairs of copies in an export of devices from `tamper.export_min` on, and of rows that block an owner; empty if the network has no such truth."""
    if not isinstance(made, networks_shared.Market):
        return {}
    sure = [
        finding
        for finding in judged.findings
        if finding.score >= TamperSettings().export_min and finding.device in made.copies
    ]
    copies = sum(len(made.copies[finding.device]) for finding in sure)
    written = sum(len(made.copies[finding.device] & set(finding.users)) for finding in sure)
    return {
        "network": name, "copies": copies, "written": written, "share": _share(written, copies), "interval": wilson(written, copies),
        "owners": sum(len(made.owners.get(finding.device, frozenset()) & set(finding.users)) for finding in sure),
    }  # fmt: skip


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


def _rivals(name: str, made: World) -> list[dict[str, Any]]:
    """Return the number of owners that an export blocks after somebody programmed their IMEI into a phone for some days, and the number of such phones."""
    checks, found = attacks.record(made), []
    after = attacks.victims(made, checks, JUDGED + 1)
    owners = dict(
        checks.filter(pl.col("device").is_in(after)).group_by("device").agg(pl.col("subscriber").first()).iter_rows()
    )
    for days in RIVAL_DAYS:
        planted = attacks.plant(made, attacks.rival(checks, after, np.random.default_rng(JUDGED), days=days))
        with _engine(made) as (_, judged, _):
            sure = [
                each for each in judged.findings if each.device in owners and each.score >= TamperSettings().export_min
            ]
        planted.unlink()
        blocked = sum(owners[each.device] in each.users for each in sure)
        found.append(
            {
                "network": name,
                "days": days,
                "found": len(sure),
                "rivals_blocked": sum(len(each.users) for each in sure) - blocked,
                "owners": blocked,
            }
        )
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


def reliability(every: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the bands of the score: predicted and true shares. Clones are weighted by the base rate, identifiers without a TAC by one."""
    sums: defaultdict[int, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0, 0.0])
    for each in every:
        clone = PRIOR / (1 - PRIOR) * each["honest"] / max(each["clones"], 1)
        for score, is_tampered, is_clone in each["told"]:
            weight = clone if is_clone else 1.0
            for band in {min(int(score * 10), 9), *([95] if score >= TamperSettings().export_min else [])}:
                total = sums[band]
                total[0] += 1
                total[1] += weight
                total[2] += weight * score
                total[3] += weight * is_tampered
    return [
        {
            "score": "0.95 and more" if band == 95 else f"{band / 10:.1f} to {band / 10 + 0.1:.1f}",
            "devices": int(devices),
            "said": round(said / weight, 3),
            "was": round(was / weight, 3),
        }
        for band, (devices, weight, said, was) in sorted(sums.items())
    ]


def fitted(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return weights by ridge regression of log odds (Newton's method), from networks that are not used for judging."""
    names = [name for name in WEIGHTS if name in _columns()]
    parts: list[tuple[Any, Any, Any]] = []
    for name, made in _made(options, FITTED):
        if name in HELD_OUT or name.endswith("half of the MMEs"):
            continue
        say(f"{name}: {made.rows:,} sightings")
        with _engine(made) as (engine, judged, _):
            rows = engine.rows(f"SELECT device, {', '.join(names[1:])} FROM evidence")  # noqa: S608 - names of ours
        clones = sum(kind == "clone" for kind, _ in made.truth.values())
        kept = [
            row
            for row in rows
            if made.truth.get(row[0], ("clone", 0))[0] == "clone" and made.hard.get(row[0]) != "a batch of modules"
        ]
        is_clone = np.array([row[0] in made.truth for row in kept])
        weight = np.where(is_clone, PRIOR / (1 - PRIOR) * (judged.devices - len(made.truth)) / clones, 1.0)
        parts.append((np.array([[1.0, *map(float, row[1:])] for row in kept]), is_clone, weight))
    columns, is_clone, weight = (np.concatenate([part[at] for part in parts]) for at in range(3))
    ridge = np.diag([0.0, *[0.5] * (len(names) - 1)])
    weights = np.zeros(len(names))
    for _ in range(60):
        chance = 1 / (1 + np.exp(-columns @ weights))
        step = np.linalg.solve(
            (columns * (weight * chance * (1 - chance) + 1e-9)[:, None]).T @ columns + ridge,
            columns.T @ (weight * (is_clone - chance)) - ridge @ weights,
        )
        weights += step * min(1, 3 / max(np.abs(step).max(), 1e-9))
    weights[0] -= log(PRIOR / (1 - PRIOR))
    return [{"weight": name, "value": round(float(value), 2)} for name, value in zip(names, weights, strict=True)]


def _columns() -> set[str]:
    """Return the names of the fitted weights: the columns of the table `evidence` without the first."""
    by_hand = {"certain", "likely", "no_body", "alone", "both"}
    return WEIGHTS.keys() - by_hand


def _targets(
    every: Sequence[dict[str, Any]], together: Sequence[dict[str, Any]], bands: Sequence[dict[str, Any]]
) -> list[Target]:
    """Return the targets, by row, its networks together.

    These are recall of pairs, of four and more copies, and of SIM boxes; precision; reported honest devices; and each tenth of the score.
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
    return [
        *found,
        *(
            at_most(f"reliability from {band['score']}", 0.1, round(abs(band["said"] - band["was"]), 3))
            for band in bands
            if band["devices"] >= BAND_MIN
        ),
    ]


def _speed(folder: Path, rows: int, seed: int) -> dict[str, Any]:
    """Judge a large record by the command itself, on two cores."""
    site = Site(folder / "site", kind=TYPES)
    site.state.mkdir()
    made, total = _large(site.state, rows, seed)
    listed = site.folder / "tacs.csv"
    with listed.open("w") as out:
        out.write("tac,device_type,allocation_date\n")
        out.writelines(f"{tac:08d},{kind},{allocated}\n" for tac, allocated, kind in made.tacs)
    site.load(site.release(listed))
    config = site.configure(0)
    say(f"judging {total:,} sightings")
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    command = [
        "taskset",
        "-c",
        "0,1",
        sys.executable,
        "-m",
        "eir",
        "tamper",
        "report",
        "-c",
        str(config),
        "--until",
        f"{made.until:%Y-%m-%d}",
        "--json",
    ]
    done = subprocess.run(
        command, check=False, stdout=subprocess.PIPE
    )  # what it says on standard error is shown as it comes
    if done.returncode:
        raise SystemExit(f"bench: eir tamper report ended with {done.returncode}")
    seconds, after = time.monotonic() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "sightings": total, "devices": len(json.loads(done.stdout)), "seconds": round(seconds, 1), "memory_mb": after.ru_maxrss // 1024,
        "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
    }  # fmt: skip


def _large(folder: Path, rows: int, seed: int) -> tuple[World, int]:
    """Write a network and copies of it, whose devices and subscribers have other identifiers and the same behaviour; return the number of all rows."""
    times = min(COPIES_MAX, max(1, round(rows / ROWS_EACH)))
    made = world.make(folder, max(800, round(rows / times / 150)), seed=seed)
    tacs = list(made.tacs)
    originals = sorted(folder.glob("sightings/*/*-made.parquet"))
    with duckdb.connect() as connection:
        connection.execute("SET threads = 2; SET preserve_insertion_order = true")
        for number in range(1, times):
            others = [_other_body(body, number) for body in range(100)]
            tacs += [Tac(others[tac // 10**6] * 10**6 + tac % 10**6, *more) for tac, *more in made.tacs]
            body = f"list_extract({others}, 1 + CAST(device // 1000000000000 AS INTEGER))"
            for path in originals:
                connection.execute(f"""
                    COPY (SELECT * REPLACE (
                        CASE WHEN device IN (0, 11111111111111) THEN device ELSE {body} * 1000000000000 + device % 1000000000000 END AS device,
                        CASE WHEN device IS NULL OR device IN (0, 11111111111111) THEN imei ELSE format('{{:02d}}', {body}) || SUBSTRING(imei, 3) END AS imei,
                        '{number:02d}' || SUBSTRING(subscriber, 3) AS subscriber
                    ) FROM read_parquet('{path}')) TO '{path.with_name(f"{path.stem}{number}.parquet")}' (FORMAT parquet, COMPRESSION zstd)
                """)  # noqa: S608 - names of ours
    return replace(made, tacs=tuple(tacs)), made.rows * times


def _other_body(body: int, number: int) -> int:
    """Return two first digits that do not change the check digit: another second digit (which is doubled), and the first that fits it."""
    first, second = divmod(body, 10)
    other = (second + number) % 10
    return (first + _doubled(second) - _doubled(other)) % 10 * 10 + other


def _doubled(digit: int) -> int:
    return digit * 2 // 10 + digit * 2 % 10

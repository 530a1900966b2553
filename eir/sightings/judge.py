"""From sightings to findings: which devices carry an identity that was tampered with, how sure that is, and why.

One judgement a device: the share of all devices that are tampered with, as log odds, and what each condition adds to it or takes from it.
README.md argues that, and what it was fitted to. Runs the SQL on an engine that it is handed.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from eir.device import key_text
from eir.sightings.conditions import (
    CONDITIONS,
    HOLDS_FROM,
    MODULES,
    PRIOR,
    SAID,
    WEIGHTS,
    Tac,
    TamperSettings,
)
from eir.sightings.engine import SQL, TABLES, Engine, number
from eir.sightings.trust import distrusted

DAYS_MAX = 62
"""Days of one judgement: each is a bit of a 64-bit number."""
SCORE_MAX = 0.999
LIKELY_ODDS = -2.6
"""Log odds from which a device counts as suspicious where peers are judged: a chance of one in fourteen. A planted SIM makes some victims likely and the others nearly so."""
SHIFT_MAX, SHIFT_PRIOR = 1.0, 20.0
"""Log odds by which decisions shift their condition at most, and how many decisions against all odds it takes for that."""
CLEAR_DAYS = 7
"""Days for which a later subscriber of a device has to be later than the first one, to be a newcomer for certain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One device."""

    device: int
    score: float
    """Score from 0 to 1."""
    conditions: tuple[str, ...]
    """Names, the one that speaks loudest first; none where an operator's word is all there is."""
    subscribers: int
    copies: int
    """Subscribers that come back on another day; 0 where none does."""
    first_seen: datetime
    last_seen: datetime
    evidence: str
    honest: str
    """Grounds for an honest explanation, if any; else empty."""
    confirmed: bool = False
    """An operator said so."""
    users: tuple[str, ...] = ()
    """Subscribers who hold copies: those who came later than the owner can have come, while an earlier one went on."""
    distrusted: tuple[str, ...] = ()
    """Origins and peers that are not trusted and without whose word the device is no finding."""

    @property
    def imei(self) -> str:
        """Its 14 digits."""
        return key_text(self.device)

    @property
    def sure(self) -> str:
        """The score in words."""
        return (
            "confirmed"
            if self.confirmed
            else next(
                (f"{said * 100:.0f} of 100 like it" for least, said in SAID if self.score >= least), "less than even"
            )
        )

    def as_json(self) -> dict[str, Any]:
        """Return the finding for scripts."""
        return {
            "imei": self.imei, "score": self.score, "conditions": list(self.conditions), "subscribers": self.subscribers,
            "first_seen": as_text(self.first_seen), "last_seen": as_text(self.last_seen), "evidence": self.evidence,
            "honest": self.honest, "sure": self.sure, "copies": self.copies, "confirmed": self.confirmed, "distrusted": list(self.distrusted),
        }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """All that was found."""

    since: datetime
    until: datetime
    sightings: int
    devices: int
    subscribers: int
    findings: tuple[Finding, ...]
    """The highest score first; without those that an operator cleared."""
    doubted: tuple[Finding, ...]
    """Devices that would be findings by the word of distrusted origins and peers; they are listed apart and never exported."""
    left_out: tuple[str, ...]
    """Origins and peers whose word does not count."""
    places: int
    """Pairs of origins that are known to be two places; 0: place says nothing."""
    has_imsis: bool
    """True if subscribers on record are named by their IMSIs, and not by keyed hashes."""
    reliability: tuple[tuple[float, float, int, int, int], ...]
    """Bands of the score: from which on, the share of tampered devices there in made networks, and here how many devices have such a score, how many
    of them an operator confirmed, and how many he cleared."""
    batches: tuple[tuple[str, int], ...]
    """Numbers of many modules, which a maker may have given to a whole batch: IMEI, subscribers; they are no findings."""
    malformed: tuple[tuple[str, int, int], ...]
    """Origins of checks whose identifier names no device: origin, sightings, subscribers; the most first."""


def judge(
    engine: Engine, settings: TamperSettings, *, since: datetime, until: datetime, tacs: Iterable[Tac] = (), warn: Callable[[str], None] = lambda _: None,
    progress: Callable[[str, int, int], None] = lambda *_: None, keep_users: bool = False, cases: Mapping[int, bool] = {},
) -> Judgement:  # fmt: skip
    """Judge the sightings of an engine.

    `tacs`: those that are allocated; none: what needs them is not looked for. `cases`: devices that an operator confirmed (True) or cleared.
    `warn` is told of peers that are left out; `keep_users`: findings name the subscribers of their devices.
    """
    places = [(origin, *place) for origin, place in settings.origins.items()]
    engine.fill("places", "origin VARCHAR, latitude DOUBLE, longitude DOUBLE", places)
    allocated = [(tac, day, int(bool(MODULES.search(kind)))) for tac, day, kind in tacs]
    engine.fill("allocations", "tac BIGINT, allocated DATE, is_module INTEGER", allocated)
    engine.fill("confirmed", "device BIGINT", [(device,) for device, confirmed in cases.items() if confirmed])
    _look(engine, set(), progress)
    untrusted = _untrusted(engine)
    doubted: list[Finding] = []
    if untrusted:
        warn(
            f"{', '.join(sorted(untrusted))}: too many devices would be tampered with by its word alone; findings that rest on it are listed apart (--distrusted)"
        )
        _score(engine, cases, settings.report_min)
        doubted = [
            replace(finding, distrusted=tuple(sorted(untrusted)))
            for finding in _findings(engine, cases, (since, until), keep_users=False)
        ]
        _look(engine, untrusted, progress)
    _score(engine, cases, settings.report_min)
    findings = [
        finding
        for finding in _findings(engine, cases, (since, until), keep_users=keep_users)
        if cases.get(finding.device, True)
    ]
    known = {finding.device for finding in findings}
    return Judgement(
        since=since, until=until, devices=number(engine, "SELECT COUNT(*) FROM devices"), sightings=number(engine, "SELECT COALESCE(SUM(checks), 0) FROM devices"),
        subscribers=number(engine, "SELECT COUNT(DISTINCT subscriber) FROM usage"), findings=_sorted(findings), doubted=_sorted(each for each in doubted if each.device not in known and cases.get(each.device, True)),
        left_out=tuple(sorted(untrusted)),
        has_imsis=number(engine, "SELECT COUNT(*) FROM usage WHERE LENGTH(subscriber) IN (14, 15)") > 0,
        reliability=_reliability(engine, cases, settings.report_min),
        places=number(engine, "SELECT COUNT(*) FROM ways WHERE is_apart = 1 AND origin < other"),
        batches=tuple((key_text(device), who) for device, who in engine.rows("SELECT device, subscribers FROM batches ORDER BY 2 DESC, 1")),
        malformed=tuple((str(origin), int(seen), int(who)) for origin, seen, who in engine.rows("""
            SELECT COALESCE(origin_host, ''), SUM(checks), COUNT(DISTINCT subscriber) FROM sightings
            WHERE device IS NULL AND NOT imei IS NULL GROUP BY 1 ORDER BY 2 DESC, 1
        """)),
    )  # fmt: skip


def _reliability(
    engine: Engine, cases: Mapping[int, bool], least_score: float
) -> tuple[tuple[float, float, int, int, int], ...]:
    rows = engine.rows(f"SELECT device, score FROM scores WHERE score >= {least_score}")
    told = Counter(
        (next((least for least, _ in SAID if score >= least), 0), cases.get(device)) for device, score in rows
    )
    return tuple(
        (
            least,
            said,
            sum(told[least, verdict] for verdict in (None, True, False)),
            told[least, True],
            told[least, False],
        )
        for least, said in SAID
    )


def _sorted(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(findings, key=lambda finding: (-finding.score, finding.device)))


def _look(engine: Engine, untrusted: Iterable[str], progress: Callable[[str, int, int], None]) -> None:
    """Create all tables, the evidence of each condition for each device (`marks`), and their sum with the condition that weighs most (`summed`)."""
    engine.fill("distrusted", "voice VARCHAR", [(voice,) for voice in sorted(untrusted)])
    stages = [*TABLES, *CONDITIONS]
    for done, name in enumerate(stages):
        progress("judging", done + 1, len(stages))
        if name == "watched":
            _make_box(engine)
        path = TABLES.get(name, SQL / "conditions" / f"{name}.sql")
        engine.define(name, path.read_text("utf-8").format_map(WEIGHTS))
    marks = " UNION ALL ".join(
        f"SELECT device, '{name}' AS name, CAST(says AS DOUBLE) AS says, evidence FROM {name}" for name in CONDITIONS
    )
    engine.define("marks", f"SELECT * FROM ({marks}) AS told WHERE NOT device IN (SELECT batches.device FROM batches)")
    # Ports of a box are one body each, so that what speaks for one body, or what a list says of a number, is weighed by itself.
    alone = "MAX(CASE WHEN name IN ('sim_box', 'tac', 'placeholder') THEN says ELSE -30 END)"
    engine.define(
        "summed",
        f"""
        SELECT device, {math.log(PRIOR / (1 - PRIOR))} + GREATEST(SUM(says), {alone}) AS odds, MIN(CASE WHEN place = 1 THEN name END) AS loudest
        FROM (SELECT device, name, says, ROW_NUMBER() OVER (PARTITION BY device ORDER BY says DESC, name) AS place FROM marks) AS ranked
        GROUP BY device
    """,
    )


def _score(engine: Engine, cases: Mapping[int, bool], least_score: float) -> None:
    """Create the table `scores`: devices from a score on, and all that an operator confirmed."""
    decided: defaultdict[str, list[tuple[float, bool]]] = defaultdict(list)
    engine.fill("decided", "device BIGINT", [(device,) for device in cases])
    for device, odds, loudest in engine.rows(
        "SELECT summed.device, summed.odds, summed.loudest FROM summed JOIN decided ON summed.device = decided.device"
    ):
        decided[loudest].append((odds, cases[device]))
    shifts = "".join(f" WHEN '{name}' THEN {calibrated(told):.6f}" for name, told in sorted(decided.items()))
    shift = f"CASE loudest{shifts} ELSE 0.0 END" if shifts else "0.0"
    engine.define(
        "scores",
        f"""
        SELECT device, score FROM (SELECT device, ROUND(1 / (1 + EXP(-LEAST(GREATEST(odds + {shift}, -30), 30))), 3) AS score FROM summed) AS judged
        WHERE score >= {least_score} OR device IN (SELECT confirmed.device FROM confirmed)
        UNION ALL
        SELECT devices.device, 0 AS score FROM devices JOIN confirmed ON devices.device = confirmed.device
        WHERE NOT devices.device IN (SELECT summed.device FROM summed)
    """,
    )


def calibrated(told: Iterable[tuple[float, bool]]) -> float:
    """Return the shift of one condition's log odds by its decisions: log odds of each device, and whether it was confirmed.

    This is one step of Newton's method, with a prior as strong as `SHIFT_PRIOR` and at most `SHIFT_MAX` long. Each further confirmation
    raises the shift or leaves it, and each further clearance lowers it or leaves it.
    """
    missed, information = 0.0, SHIFT_PRIOR
    for odds, was in told:
        chance = 1 / (1 + math.exp(-max(min(odds, 30), -30)))
        missed += was - chance
        information += chance * (1 - chance)
    return max(min(missed / information, SHIFT_MAX), -SHIFT_MAX)


def _make_box(engine: Engine) -> None:
    """The table `box`: the largest set of devices and SIMs that go round among one another, each device with four such SIMs, each SIM with two such devices.

    They hold little else: four fifths of a device's checks, and half of a SIM's.
    """
    engine.define("box", """
        SELECT usage.device, usage.subscriber, usage.checks, devices.checks AS device_checks, sims.checks AS sim_checks
        FROM usage JOIN devices ON usage.device = devices.device
        JOIN (SELECT subscriber, SUM(checks) AS checks FROM usage GROUP BY subscriber HAVING COUNT(*) >= 2) AS sims ON usage.subscriber = sims.subscriber
        WHERE devices.subscribers >= 4
    """)  # fmt: skip
    before, left = -1, number(engine, "SELECT COUNT(*) FROM box")
    while before != left:
        engine.define("box", """
            SELECT device, subscriber, checks, device_checks, sim_checks
            FROM (
              SELECT
                box.*, COUNT(*) OVER by_device AS sims, COUNT(*) OVER by_sim AS devices, SUM(checks) OVER by_device AS of_device, SUM(checks) OVER by_sim AS of_sim
              FROM box
              WINDOW by_device AS (PARTITION BY device), by_sim AS (PARTITION BY subscriber)
            ) AS counted
            WHERE sims >= 4 AND devices >= 2 AND of_device * 3 >= device_checks * 2 AND of_sim * 2 >= sim_checks
        """)  # fmt: skip
        before, left = left, number(engine, "SELECT COUNT(*) FROM box")


def _untrusted(engine: Engine) -> set[str]:
    """Return the origins and peers whose word does not count, by the devices that they make suspicious and the ordinary phones that they carry."""
    told = engine.rows(f"""
        SELECT DISTINCT steps.device, CAST(steps.subscriber AS VARCHAR) AS subscriber, claims.origin, claims.peer
        FROM steps JOIN summed ON steps.device = summed.device JOIN claims ON steps.claim = claims.claim
        WHERE summed.odds > {LIKELY_ODDS}
    """)
    boxes = engine.rows("""
        SELECT DISTINCT witnessed.device, witnessed.subscriber, witnessed.peer
        FROM witnessed JOIN sim_box ON witnessed.device = sim_box.device
        WHERE NOT witnessed.device IN (SELECT members.device FROM members) AND NOT witnessed.subscriber IS NULL
    """)
    carried = engine.rows(
        "SELECT carried.device, claims.origin, claims.peer, carried.share FROM carried JOIN claims ON carried.claim = claims.claim"
    )
    share = max((int(each[3]) for each in carried), default=1)
    found = set[str]()
    for at, column in ((0, "origin"), (1, "peer")):
        ordinary: defaultdict[int, set[str]] = defaultdict(set)
        for device, *voices, _ in carried:
            ordinary[device].add(voices[at])
        sent = {
            voice: int(checks) for voice, checks in engine.rows(f"SELECT {column}, SUM(checks) FROM claims GROUP BY 1")
        }
        mine = [(device, subscriber, voices[at]) for device, subscriber, *voices in told]
        found |= distrusted([*mine, *(boxes if at else ())], map(sorted, ordinary.values()), share=share, sent=sent)
    return found


def _findings(
    engine: Engine, cases: Mapping[int, bool], window: tuple[datetime, datetime], *, keep_users: bool
) -> Iterable[Finding]:
    marks: defaultdict[int, list[tuple[float, str, str]]] = defaultdict(list)
    for device, name, says, evidence in engine.rows(
        "SELECT marks.device, marks.name, marks.says, marks.evidence FROM marks JOIN scores ON marks.device = scores.device"
    ):
        marks[device].append((-says, name, evidence))
    held: defaultdict[int, list[Held]] = defaultdict(list)
    if keep_users:
        for device, *row in engine.rows(
            "SELECT usage.device, usage.subscriber, usage.first_seen, usage.last_seen, usage.day_count FROM usage JOIN scores ON usage.device = scores.device WHERE usage.day_count >= 2 AND NOT usage.subscriber IS NULL"
        ):
            held[device].append(Held(*row))
    for device, score, subscribers, regulars, first, last, honest in engine.rows("""
        SELECT scores.device, scores.score, devices.subscribers, devices.regulars, devices.first_seen, devices.last_seen, COALESCE(honest.words, '')
        FROM scores JOIN devices ON scores.device = devices.device LEFT JOIN honest ON scores.device = honest.device
        ORDER BY 2 DESC, 1
    """):
        told = sorted(marks[device])
        holding = [(name, evidence) for says, name, evidence in told if -says >= HOLDS_FROM] or [
            each[1:] for each in told[:1]
        ]
        confirmed = cases.get(device, False)
        yield Finding(
            device=device, score=SCORE_MAX if confirmed else min(score, SCORE_MAX), conditions=tuple(name for name, _ in holding), subscribers=subscribers, copies=regulars,
            first_seen=first, last_seen=last, evidence="; ".join(evidence for _, evidence in holding), honest=honest,
            confirmed=confirmed, users=newcomers(held[device], *window),
        )  # fmt: skip


def as_text(moment: datetime) -> str:
    """A moment of the record as JSON has it."""
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


class Held(NamedTuple):
    """A subscriber's time with a device."""

    subscriber: str
    first_seen: datetime
    last_seen: datetime
    days: int


def newcomers(held: Sequence[Held], since: datetime, until: datetime) -> tuple[str, ...]:
    """Return the subscribers of a copied number that are certain to hold copies, in order; none where the owner may be among them.

    The owner is the first in the record, or was there from the beginning and was just not checked for some days. A newcomer came `CLEAR_DAYS` later, while
    one of those went on: a buyer comes after the owner. It has been seen on every other day since then: an owner may come back from where no MME reports. Nothing is clear if a newcomer held the device for more days than all of them, or if the device itself came
    `CLEAR_DAYS` after the record begins (`since`).
    """
    begin = min((each.first_seen for each in held), default=None)
    if begin is None or begin - since > timedelta(days=CLEAR_DAYS):
        return ()
    early = [each for each in held if each.first_seen - begin <= timedelta(days=CLEAR_DAYS)]
    late = [each for each in held if each not in early]
    if max((each.days for each in late), default=0) >= max(each.days for each in early):
        return ()
    last = max(each.last_seen for each in early)
    return tuple(
        sorted(
            each.subscriber
            for each in late
            if each.first_seen < last and each.days * 2 >= (until - each.first_seen).days
        )
    )

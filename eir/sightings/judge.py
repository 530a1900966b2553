"""Analysis of the record: it finds devices with a tampered identity, with a score and evidence for each.

The log odds of a device are the prior share of tampered devices plus the weight of each condition. README.md explains the model
and its fit. The SQL runs on the engine that the caller passes.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

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
from eir.sightings.engine import SQL, TABLES, Engine, scalar
from eir.sightings.holders import copies_by_device
from eir.sightings.trust import find_distrusted

DAYS_MAX = 62
"""Maximum number of days of one judgement: each day is a bit of a 64-bit number."""
SCORE_MAX = 0.999
LIKELY_ODDS = -2.6
"""Log odds from which a device is suspicious when peers are judged (a chance of 1 in 14). A planted SIM makes some victims likely findings and the others nearly so."""
SHIFT_MAX, SHIFT_PRIOR = 1.0, 20.0
"""Maximum shift of a condition's log odds by decisions, and the number of decisions against all odds that reach it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Finding: a device whose identity was probably tampered with."""

    device: int
    score: float
    """Score from 0 to 1."""
    conditions: tuple[str, ...]
    """Names of conditions, that with the highest weight first; empty if only an operator's decision exists."""
    subscribers: int
    copies: int
    """Number of subscribers that were seen on more than one day."""
    first_seen: datetime
    last_seen: datetime
    evidence: str
    honest: str
    """Reason for an honest explanation, or empty."""
    confirmed: bool = False
    """True if an operator confirmed the device."""
    users: tuple[str, ...] = ()
    """Subscribers who certainly hold copies."""
    distrusted: tuple[str, ...] = ()
    """Distrusted origins and peers without whose checks the device would not be a finding."""

    @property
    def imei(self) -> str:
        """First 14 digits of the IMEI."""
        return key_text(self.device)

    @property
    def sure(self) -> str:
        """Score as text: `confirmed`, or how many of 100 devices with this score are tampered with."""
        return (
            "confirmed"
            if self.confirmed
            else next(
                (f"{share * 100:.0f} of 100 like it" for least, share in SAID if self.score >= least), "less than even"
            )
        )

    def as_json(self) -> dict[str, Any]:
        """Return the finding as a JSON document for scripts."""
        return {
            "imei": self.imei, "score": self.score, "conditions": list(self.conditions), "subscribers": self.subscribers,
            "first_seen": as_text(self.first_seen), "last_seen": as_text(self.last_seen), "evidence": self.evidence,
            "honest": self.honest, "sure": self.sure, "copies": self.copies, "confirmed": self.confirmed, "distrusted": list(self.distrusted),
        }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """Result of one analysis: findings, and counts of the analysed record."""

    since: datetime
    until: datetime
    sightings: int
    devices: int
    subscribers: int
    findings: tuple[Finding, ...]
    """Findings, the highest score first, without devices that an operator cleared."""
    doubted: tuple[Finding, ...]
    """Devices that are findings only because of distrusted origins and peers; they are listed separately and never exported."""
    left_out: tuple[str, ...]
    """Distrusted origins and peers."""
    places: int
    """Number of pairs of origins that are known to be at different places; if 0, places are not evidence."""
    has_imsis: bool
    """True if the record has IMSIs of subscribers, not keyed hashes."""
    reliability: tuple[tuple[float, float, int, int, int], ...]
    """Score bands: lower bound, share of tampered devices in simulated networks, and the number of devices here: all, confirmed, cleared."""
    batches: tuple[tuple[str, int], ...]
    """IMEIs of many modules, which a maker may have given to a whole batch: IMEI, number of subscribers; they are not findings."""
    malformed: tuple[tuple[str, int, int], ...]
    """Origins of checks whose identifier is not a device: origin, sightings, subscribers; most sightings first."""


def judge(
    engine: Engine, settings: TamperSettings, *, since: datetime, until: datetime, tacs: Iterable[Tac] = (), warn: Callable[[str], None] = lambda _: None,
    progress: Callable[[str, int, int], None] = lambda *_: None, keep_users: bool = False, cases: Mapping[int, bool] = {},
) -> Judgement:  # fmt: skip
    """Analyse the sightings in an engine's tables, and return the findings.

    Args:
        engine: engine with the table `sightings`.
        settings: thresholds and places.
        since: start of the sightings.
        until: end of the sightings.
        tacs: allocated TACs; if empty, conditions that need them are skipped.
        warn: receives a warning about distrusted peers.
        progress: receives a stage, the tables done and their number.
        keep_users: include the subscribers in findings.
        cases: devices that an operator confirmed (True) or cleared.
    """
    places = [(origin, *place) for origin, place in settings.origins.items()]
    engine.fill("places", "origin VARCHAR, latitude DOUBLE, longitude DOUBLE", places)
    allocated = [(tac, day, int(bool(MODULES.search(kind)))) for tac, day, kind in tacs]
    engine.fill("allocations", "tac BIGINT, allocated DATE, is_module INTEGER", allocated)
    engine.fill("confirmed", "device BIGINT", [(device,) for device, confirmed in cases.items() if confirmed])
    _build_tables(engine, set(), progress)
    untrusted = _find_untrusted(engine)
    doubted: list[Finding] = []
    if untrusted:
        warn(
            f"{', '.join(sorted(untrusted))}: distrusted, because too many devices would be tampered with only by its reports; --distrusted lists these findings"
        )
        _score(engine, cases, settings.report_min)
        doubted = [
            replace(finding, distrusted=tuple(sorted(untrusted)))
            for finding in _findings(engine, cases, (since, until), keep_users=False)
        ]
        _build_tables(engine, untrusted, progress)
    _score(engine, cases, settings.report_min)
    findings = [
        finding
        for finding in _findings(engine, cases, (since, until), keep_users=keep_users)
        if cases.get(finding.device, True)
    ]
    known = {finding.device for finding in findings}
    return Judgement(
        since=since, until=until, devices=scalar(engine, "SELECT COUNT(*) FROM devices"), sightings=scalar(engine, "SELECT COALESCE(SUM(checks), 0) FROM devices"),
        subscribers=scalar(engine, "SELECT COUNT(DISTINCT subscriber) FROM usage"), findings=_sorted(findings), doubted=_sorted(each for each in doubted if each.device not in known and cases.get(each.device, True)),
        left_out=tuple(sorted(untrusted)),
        has_imsis=scalar(engine, "SELECT COUNT(*) FROM usage WHERE LENGTH(subscriber) IN (14, 15)") > 0,
        reliability=_reliability(engine, cases, settings.report_min),
        places=scalar(engine, "SELECT COUNT(*) FROM ways WHERE is_apart = 1 AND origin < other"),
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
    counts = Counter(
        (next((least for least, _ in SAID if score >= least), 0), cases.get(device)) for device, score in rows
    )
    return tuple(
        (
            least,
            share,
            sum(counts[least, verdict] for verdict in (None, True, False)),
            counts[least, True],
            counts[least, False],
        )
        for least, share in SAID
    )


def _sorted(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(findings, key=lambda finding: (-finding.score, finding.device)))


def _build_tables(engine: Engine, untrusted: Iterable[str], progress: Callable[[str, int, int], None]) -> None:
    """Build the tables of the analysis up to `summed`, which has the log odds of each device.

    The table `marks` has the evidence of each condition. The table `summed` also names the condition with the highest
    weight.
    """
    engine.fill("distrusted", "voice VARCHAR", [(voice,) for voice in sorted(untrusted)])
    stages = [*TABLES, *CONDITIONS]
    for done, name in enumerate(stages):
        progress("judging", done + 1, len(stages))
        if name == "watched":
            _build_box(engine)
        path = TABLES.get(name, SQL / "conditions" / f"{name}.sql")
        engine.define(name, path.read_text("utf-8").format_map(WEIGHTS))
    marks = " UNION ALL ".join(
        f"SELECT device, '{name}' AS name, CAST(says AS DOUBLE) AS says, evidence FROM {name}" for name in CONDITIONS
    )
    engine.define("marks", f"SELECT * FROM ({marks}) AS told WHERE NOT device IN (SELECT batches.device FROM batches)")
    # Each port of a SIM box is one phone, so evidence for one phone must not outweigh the box, the TAC list or a placeholder.
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
    """Build the table `scores`: devices with a score of at least `least_score`, and all confirmed devices."""
    decided: defaultdict[str, list[tuple[float, bool]]] = defaultdict(list)
    engine.fill("decided", "device BIGINT", [(device,) for device in cases])
    for device, odds, loudest in engine.rows(
        "SELECT summed.device, summed.odds, summed.loudest FROM summed JOIN decided ON summed.device = decided.device"
    ):
        decided[loudest].append((odds, cases[device]))
    shifts = "".join(
        f" WHEN '{name}' THEN {calibration_shift(decisions):.6f}" for name, decisions in sorted(decided.items())
    )
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


def calibration_shift(decisions: Iterable[tuple[float, bool]]) -> float:
    """Return the correction of a condition's log odds that follows from the operators' decisions.

    `decisions`: for each device its log odds, and True if the device was confirmed.

    This is one step of Newton's method with a prior of strength `SHIFT_PRIOR`, limited to `SHIFT_MAX`. A further
    confirmation never lowers the shift, and a further clearance never raises it.
    """
    missed, information = 0.0, SHIFT_PRIOR
    for odds, was in decisions:
        chance = 1 / (1 + math.exp(-max(min(odds, 30), -30)))
        missed += was - chance
        information += chance * (1 - chance)
    return max(min(missed / information, SHIFT_MAX), -SHIFT_MAX)


def _build_box(engine: Engine) -> None:
    """Build the table `box`: the largest set of devices and SIMs that are used like a SIM box.

    In this set each device has at least four of the SIMs, and each SIM at least two of the devices. At least two thirds
    of a device's checks and half of a SIM's checks are within the set.
    """
    engine.define("box", """
        SELECT usage.device, usage.subscriber, usage.checks, devices.checks AS device_checks, sims.checks AS sim_checks
        FROM usage JOIN devices ON usage.device = devices.device
        JOIN (SELECT subscriber, SUM(checks) AS checks FROM usage GROUP BY subscriber HAVING COUNT(*) >= 2) AS sims ON usage.subscriber = sims.subscriber
        WHERE devices.subscribers >= 4
    """)  # fmt: skip
    before, count = -1, scalar(engine, "SELECT COUNT(*) FROM box")
    while before != count:
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
        before, count = count, scalar(engine, "SELECT COUNT(*) FROM box")


def _find_untrusted(engine: Engine) -> set[str]:
    """Return the distrusted origins and peers: they make many devices suspicious, but report few ordinary phones."""
    claims = engine.rows(f"""
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
    untrusted = set[str]()
    for at, column in ((0, "origin"), (1, "peer")):
        ordinary: defaultdict[int, set[str]] = defaultdict(set)
        for device, *voices, _ in carried:
            ordinary[device].add(voices[at])
        sent = {
            voice: int(checks) for voice, checks in engine.rows(f"SELECT {column}, SUM(checks) FROM claims GROUP BY 1")
        }
        mine = [(device, subscriber, voices[at]) for device, subscriber, *voices in claims]
        untrusted |= find_distrusted(
            [*mine, *(boxes if at else ())], map(sorted, ordinary.values()), share=share, sent=sent
        )
    return untrusted


def _findings(
    engine: Engine, cases: Mapping[int, bool], window: tuple[datetime, datetime], *, keep_users: bool
) -> Iterable[Finding]:
    marks: defaultdict[int, list[tuple[float, str, str]]] = defaultdict(list)
    for device, name, says, evidence in engine.rows(
        "SELECT marks.device, marks.name, marks.says, marks.evidence FROM marks JOIN scores ON marks.device = scores.device"
    ):
        marks[device].append((-says, name, evidence))
    copies = copies_by_device(engine, *window) if keep_users else {}
    for device, score, subscribers, regulars, first, last, honest in engine.rows("""
        SELECT scores.device, scores.score, devices.subscribers, devices.regulars, devices.first_seen, devices.last_seen, COALESCE(honest.words, '')
        FROM scores JOIN devices ON scores.device = devices.device LEFT JOIN honest ON scores.device = honest.device
        ORDER BY 2 DESC, 1
    """):
        ranked = sorted(marks[device])
        holding = [(name, evidence) for says, name, evidence in ranked if -says >= HOLDS_FROM] or [
            each[1:] for each in ranked[:1]
        ]
        confirmed = cases.get(device, False)
        yield Finding(
            device=device, score=SCORE_MAX if confirmed else min(score, SCORE_MAX), conditions=tuple(name for name, _ in holding), subscribers=subscribers, copies=regulars,
            first_seen=first, last_seen=last, evidence="; ".join(evidence for _, evidence in holding), honest=honest,
            confirmed=confirmed, users=copies.get(device, ()),
        )  # fmt: skip


def as_text(moment: datetime) -> str:
    """Format a time of the record in ISO 8601, as in JSON documents."""
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"

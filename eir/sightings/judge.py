"""Analysis of the record of checks: finds devices with a tampered identity, each with a score and evidence.

The log odds of a device are the prior share of tampered devices plus the weight of each condition. README.md explains the model
and its fit. The SQL runs on the engine that the caller passes.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
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
        """Score as text: `confirmed`, or how many of 100 devices with the same score are tampered with."""
        if self.confirmed:
            return "confirmed"
        for least, share in SAID:
            if self.score >= least:
                return f"{share * 100:.0f} of 100 like it"
        return "less than even"

    def as_json(self) -> dict[str, Any]:
        """Return the finding as a JSON document for scripts."""
        return {
            "imei": self.imei, "score": self.score, "conditions": list(self.conditions), "subscribers": self.subscribers,
            "first_seen": as_text(self.first_seen), "last_seen": as_text(self.last_seen), "evidence": self.evidence,
            "honest": self.honest, "sure": self.sure, "copies": self.copies, "confirmed": self.confirmed, "distrusted": list(self.distrusted),
        }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """Result of one analysis: findings, and numbers that describe the analysed record."""

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
    window = since, until
    _fill_inputs(engine, settings, tacs, cases)
    _build_tables(engine, set(), progress)
    untrusted = _find_untrusted(engine)
    doubted: list[Finding] = []
    if untrusted:
        names = ", ".join(sorted(untrusted))
        warn(
            f"{names}: distrusted, because too many devices would be tampered with only by its reports; --distrusted lists these findings"
        )
        _score(engine, cases, settings.report_min)
        doubted = _findings(engine, cases, window, distrusted=untrusted)
        _build_tables(engine, untrusted, progress)
    _score(engine, cases, settings.report_min)
    findings = _findings(engine, cases, window, keep_users=keep_users)
    known = {finding.device for finding in findings}
    other_doubted = tuple(finding for finding in doubted if finding.device not in known)
    devices, sightings = engine.rows("SELECT COUNT(*), COALESCE(SUM(checks), 0) FROM devices")[0]
    subscribers = scalar(engine, "SELECT COUNT(DISTINCT subscriber) FROM usage")
    imsis = scalar(engine, "SELECT COUNT(*) FROM usage WHERE LENGTH(subscriber) IN (14, 15)")
    places = scalar(engine, "SELECT COUNT(*) FROM ways WHERE is_apart = 1 AND origin < other")
    return Judgement(
        since=since,
        until=until,
        devices=int(devices),
        sightings=int(sightings),
        subscribers=subscribers,
        findings=tuple(findings),
        doubted=other_doubted,
        left_out=tuple(sorted(untrusted)),
        has_imsis=imsis > 0,
        reliability=_reliability(engine, cases, settings.report_min),
        places=places,
        batches=_batches(engine),
        malformed=_malformed(engine),
    )


def _fill_inputs(engine: Engine, settings: TamperSettings, tacs: Iterable[Tac], cases: Mapping[int, bool]) -> None:
    """Create the tables of the analysis that do not come from the record of checks.

    The table `places` has latitude and longitude of each Origin-Host in `tamper.origins`. The table `allocations` has the
    allocated TACs. The table `confirmed` has the devices that an operator confirmed as tampered with.
    """
    places = [(origin, *place) for origin, place in settings.origins.items()]
    engine.fill("places", "origin VARCHAR, latitude DOUBLE, longitude DOUBLE", places)
    allocated = [(tac, day, int(bool(MODULES.search(kind)))) for tac, day, kind in tacs]
    engine.fill("allocations", "tac BIGINT, allocated DATE, is_module INTEGER", allocated)
    confirmed = [(device,) for device, is_confirmed in cases.items() if is_confirmed]
    engine.fill("confirmed", "device BIGINT", confirmed)


def _batches(engine: Engine) -> tuple[tuple[str, int], ...]:
    rows = engine.rows("SELECT device, subscribers FROM batches ORDER BY 2 DESC, 1")
    return tuple((key_text(device), subscribers) for device, subscribers in rows)


def _malformed(engine: Engine) -> tuple[tuple[str, int, int], ...]:
    # Checks without an identifier are subtracted: most files have none, and the statistics of a file show that without a read.
    rows = engine.rows("""
        SELECT COALESCE(origin, ''), SUM(checks), COUNT(DISTINCT subscriber)
        FROM (
          SELECT origin, subscriber, SUM(checks) AS checks
          FROM (
            SELECT origin, subscriber, checks FROM seen WHERE device IS NULL
            UNION ALL
            SELECT origin_host AS origin, subscriber, -CAST(checks AS BIGINT) AS checks FROM sightings WHERE device IS NULL AND imei IS NULL
          ) AS differences
          GROUP BY origin, subscriber
        ) AS malformed
        WHERE checks > 0
        GROUP BY 1 ORDER BY 2 DESC, 1
    """)
    return tuple((str(origin), int(checks), int(subscribers)) for origin, checks, subscribers in rows)


def _reliability(
    engine: Engine, cases: Mapping[int, bool], least_score: float
) -> tuple[tuple[float, float, int, int, int], ...]:
    counts: Counter[tuple[float, bool | None]] = Counter()
    for device, score in engine.rows(f"SELECT device, score FROM scores WHERE score >= {least_score}"):
        band = next((least for least, _ in SAID if score >= least), 0.0)
        counts[band, cases.get(device)] += 1
    bands = []
    for band, share in SAID:
        undecided, confirmed, cleared = (counts[band, verdict] for verdict in (None, True, False))
        bands.append((band, share, undecided + confirmed + cleared, confirmed, cleared))
    return tuple(bands)


def _build_tables(engine: Engine, untrusted: Collection[str], progress: Callable[[str, int, int], None]) -> None:
    """Build the tables of the analysis. The last one, `summed`, has the log odds of each device.

    The table `marks` has the evidence of each condition. The table `summed` also names the condition with the highest
    weight.
    """
    engine.fill("distrusted", "reporter VARCHAR", [(reporter,) for reporter in sorted(untrusted)])
    stages = [*TABLES, *CONDITIONS]
    for done, name in enumerate(stages):
        progress("judging", done + 1, len(stages))
        if name == "seen" and untrusted:
            continue  # it does not depend on the distrusted peers
        if name == "witnessed":
            _build_box(engine)
        path = TABLES.get(name, SQL / "conditions" / f"{name}.sql")
        engine.define(name, path.read_text("utf-8").format_map(WEIGHTS))
    marks = " UNION ALL ".join(
        f"SELECT device, '{name}' AS name, CAST(says AS DOUBLE) AS says, evidence FROM {name}" for name in CONDITIONS
    )
    engine.define(
        "marks", f"SELECT * FROM ({marks}) AS all_marks WHERE NOT device IN (SELECT batches.device FROM batches)"
    )
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
    rows = engine.rows(
        "SELECT summed.device, summed.odds, summed.loudest FROM summed JOIN decided ON summed.device = decided.device"
    )
    for device, odds, condition in rows:
        decided[condition].append((odds, cases[device]))
    shift = "0.0"
    if decided:
        shifts = [f"WHEN '{name}' THEN {calibration_shift(each):.6f}" for name, each in sorted(decided.items())]
        shift = f"CASE loudest {' '.join(shifts)} ELSE 0.0 END"
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
    """Return the correction to add to the log odds of devices with the same main condition, computed from operators' decisions.

    `decisions`: for each device its log odds, and True if the device was confirmed.

    This is one step of Newton's method with a prior of strength `SHIFT_PRIOR`, limited to `SHIFT_MAX`. A further
    confirmation never lowers the shift, and a further clearance never raises it.
    """
    missed, information = 0.0, SHIFT_PRIOR
    for odds, was_confirmed in decisions:
        bounded = max(min(odds, 30), -30)
        chance = 1 / (1 + math.exp(-bounded))
        missed += was_confirmed - chance
        information += chance * (1 - chance)
    return max(min(missed / information, SHIFT_MAX), -SHIFT_MAX)


def _build_box(engine: Engine) -> None:
    """Build the table `box`: the largest set of devices and SIMs with the usage pattern of a SIM box.

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
    """Return the origins and peers to ignore. They make many devices suspicious by their reports, but report few ordinary phones."""
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
    share = max((int(share) for *_, share in carried), default=1)
    untrusted = set[str]()
    for at, column in ((0, "origin"), (1, "peer")):
        ordinary: defaultdict[int, set[str]] = defaultdict(set)
        for device, *origin_and_peer, _ in carried:
            ordinary[device].add(origin_and_peer[at])
        checks = engine.rows(f"SELECT {column}, SUM(checks) FROM claims GROUP BY 1")
        sent = {reporter: int(count) for reporter, count in checks}
        reports = [(device, subscriber, origin_and_peer[at]) for device, subscriber, *origin_and_peer in claims]
        if column == "peer":
            reports += boxes
        untrusted |= find_distrusted(reports, map(sorted, ordinary.values()), share=share, sent=sent)
    return untrusted


def _findings(
    engine: Engine,
    cases: Mapping[int, bool],
    window: tuple[datetime, datetime],
    *,
    keep_users: bool = False,
    distrusted: Iterable[str] = (),
) -> list[Finding]:
    """Return the findings about scored devices, the highest score first, without devices that an operator has cleared."""
    marks: defaultdict[int, list[tuple[float, str, str]]] = defaultdict(list)
    rows = engine.rows(
        "SELECT marks.device, marks.name, marks.says, marks.evidence FROM marks JOIN scores ON marks.device = scores.device"
    )
    for device, name, odds, evidence in rows:
        marks[device].append((-odds, name, evidence))
    copies = copies_by_device(engine, *window) if keep_users else {}
    rows = engine.rows("""
        SELECT scores.device, scores.score, devices.subscribers, devices.regulars, devices.first_seen, devices.last_seen, COALESCE(honest.words, '')
        FROM scores JOIN devices ON scores.device = devices.device LEFT JOIN honest ON scores.device = honest.device
    """)
    findings = []
    for device, score, subscribers, regulars, first, last, honest in rows:
        confirmed = cases.get(device)
        if confirmed is False:
            continue
        ranked = sorted(marks[device])
        holding = [mark for mark in ranked if -mark[0] >= HOLDS_FROM] or ranked[:1]
        finding = Finding(
            device=device,
            score=SCORE_MAX if confirmed else min(score, SCORE_MAX),
            conditions=tuple(name for _, name, _ in holding),
            subscribers=subscribers,
            copies=regulars,
            first_seen=first,
            last_seen=last,
            evidence="; ".join(evidence for *_, evidence in holding),
            honest=honest,
            confirmed=bool(confirmed),
            users=copies.get(device, ()),
            distrusted=tuple(sorted(distrusted)),
        )
        findings.append(finding)
    return sorted(findings, key=lambda finding: (-finding.score, finding.device))


def as_text(moment: datetime) -> str:
    """Format a time of the record as ISO 8601, for JSON documents."""
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"

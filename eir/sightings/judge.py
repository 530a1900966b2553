"""Analysis of the record of checks: finds devices with a tampered identity, each with a score and evidence.

`analysis.sql` builds the tables. README.md explains the model and its fit.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

from eir.device import key_text
from eir.sightings.conditions import (  # fmt: skip
    CERTAIN,
    COLUMNS,
    CONDITIONS,
    INTERCEPT,
    LIKELY,
    MODULES,
    NO_BODY,
    Tac,
    TamperSettings,
)
from eir.sightings.engine import TABLES, Duck
from eir.sightings.spark import Spark

Engine: TypeAlias = Duck | Spark
SCORE_MAX = 0.999
HOLDS_FROM = 0.5
"""Log odds from which a finding names a condition."""
SUSPICIOUS = "-1.2e0"
"""Log odds from which a device is suspicious when reporters are judged."""
MODEL = " ".join([f"{INTERCEPT}e0", *(f"+ ({weight}e0) * {column}" for column, (_, weight) in COLUMNS.items())])
"""SQL expression of a shared device's log odds."""


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
    says: tuple[tuple[str, float, str], ...] = ()
    """Condition, log odds and evidence of all conditions."""
    confirmed: bool = False
    """True if an operator confirmed the device."""

    @property
    def imei(self) -> str:
        """First 14 digits of the IMEI."""
        return key_text(self.device)

    def as_json(self) -> dict[str, Any]:
        """Return the finding as a JSON document for scripts."""
        return {
            "imei": self.imei, "score": self.score, "conditions": list(self.conditions), "subscribers": self.subscribers,
            "first_seen": as_text(self.first_seen), "last_seen": as_text(self.last_seen), "evidence": self.evidence,
            "copies": self.copies, "confirmed": self.confirmed,
        }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """Result of one analysis: findings, and numbers that describe the analysed record."""

    since: datetime
    until: datetime
    sightings: int
    devices: int
    findings: tuple[Finding, ...]
    """Findings, the highest score first, without devices that an operator cleared."""
    left_out: tuple[str, ...]
    """Origins and peers whose reports were left out."""
    places: int
    """Number of pairs of origins that are known to be at different places; if 0, places are not evidence."""
    batches: tuple[tuple[str, int], ...]
    """IMEIs of modules with ten regular SIMs or more: IMEI, number of SIMs; most SIMs first. They are not findings."""
    malformed: tuple[tuple[str, int], ...]
    """Origins of checks whose identifier is not a device, with the number of rows; most rows first."""


def judge(
    engine: Engine, settings: TamperSettings, *, since: datetime, until: datetime, tacs: Iterable[Tac] = (), warn: Callable[[str], None] = lambda _: None,
    progress: Callable[[str, int, int], None] = lambda *_: None, cases: Mapping[int, bool] = {},
) -> Judgement:  # fmt: skip
    """Analyse the sightings in an engine's tables, and return the findings.

    Args:
        engine: engine with the table `sightings`.
        settings: thresholds.
        since: start of the sightings.
        until: end of the sightings.
        tacs: allocated TACs; if empty, conditions that need them are skipped.
        warn: receives a warning about origins and peers that are left out.
        progress: receives a stage, the tables done and their number.
        cases: devices that an operator confirmed (True) or cleared.
    """
    allocated = [(tac, day, int(bool(MODULES.search(kind)))) for tac, day, kind in tacs]
    engine.fill("allocations", "tac BIGINT, allocated DATE, is_module INTEGER", allocated)
    engine.fill("confirmed", "device BIGINT", [(device,) for device, is_confirmed in cases.items() if is_confirmed])
    left_out: list[str] = []
    _build_tables(engine, left_out, progress)
    # The worst is left out first. Its reports then make no device suspicious, so that it cannot discredit the other reporters of its victims.
    while liar := engine.rows("SELECT name FROM liar"):
        left_out.append(liar[0][0])
        engine.define("liar", _select("liar", left_out))
    left_out.sort()
    if left_out:
        warn(f"{', '.join(left_out)}: distrusted, because too many devices would be tampered with by these reports alone; they are left out")  # fmt: skip
        _build_tables(engine, left_out, progress)
    devices, sightings = engine.rows("SELECT COUNT(DISTINCT device), COALESCE(SUM(n), 0) FROM uses")[0]
    ((places,),) = engine.rows("SELECT COUNT(*) FROM ways WHERE is_apart = 1 AND a < b")
    batches = engine.rows("SELECT device, subscribers FROM batches ORDER BY 2 DESC, 1")
    malformed = engine.rows("SELECT COALESCE(origin_host, ''), COUNT(*) FROM sightings WHERE device IS NULL AND NOT imei IS NULL GROUP BY 1 ORDER BY 2 DESC, 1")  # fmt: skip
    return Judgement(
        since=since, until=until, devices=int(devices), sightings=int(sightings), findings=tuple(_findings(engine, cases, settings.report_min)),
        left_out=tuple(left_out), places=int(places), batches=tuple((key_text(device), int(sims)) for device, sims in batches),
        malformed=tuple((str(origin), int(rows)) for origin, rows in malformed),
    )  # fmt: skip


def _build_tables(engine: Engine, left_out: Sequence[str], progress: Callable[[str, int, int], None]) -> None:
    for done, name in enumerate(TABLES, 1):
        progress("judging", done, len(TABLES))
        engine.define(name, _select(name, left_out))


def _select(table: str, left_out: Sequence[str]) -> str:
    """Return the SELECT of a table of the analysis, without the reports of some origins and peers."""
    names = ", ".join("'" + name.replace("'", "''") + "'" for name in left_out)
    return TABLES[table].format(
        believed=f"NOT COALESCE(origin_host, '') IN ({names}) AND NOT COALESCE(peer, '') IN ({names})" if names else "TRUE",
        believed_source=f"NOT origin IN ({names}) AND NOT peer IN ({names})" if names else "TRUE",
        model=MODEL, suspicious=SUSPICIOUS, certain=f"{CERTAIN}e0", no_body=f"{NO_BODY}e0", likely=f"{LIKELY}e0",
    )  # fmt: skip


def _findings(engine: Engine, cases: Mapping[int, bool], least_score: float) -> list[Finding]:
    """Return the findings about scored devices, the highest score first, without devices that an operator has cleared."""
    bounded = min(max(least_score, 1e-15), 1 - 1e-15)
    least = math.log(bounded / (1 - bounded))
    engine.define("chosen", f"""
        SELECT uses.device, MAX(scores.odds) AS odds, COUNT(uses.subscriber) AS subscribers, MIN(first_seen) AS first_seen, MAX(last_seen) AS last_seen,
          SUM(CASE WHEN NOT subscriber IS NULL AND CAST(first_seen AS DATE) < CAST(last_seen AS DATE) THEN 1 ELSE 0 END) AS regulars
        FROM uses LEFT JOIN scores ON uses.device = scores.device
        WHERE scores.odds >= {least} OR uses.device IN (SELECT confirmed.device FROM confirmed)
        GROUP BY uses.device
    """)  # fmt: skip
    says = _evidence(engine)
    findings = []
    for device, odds, subscribers, first, last, regulars in engine.rows("SELECT * FROM chosen"):
        confirmed = cases.get(device)
        if confirmed is False:
            continue
        ranked = sorted(says[device], key=lambda each: (-each[1], each[0]))
        holding = [each for each in ranked if each[1] >= HOLDS_FROM] or ranked[:1]
        score = SCORE_MAX if confirmed else min(round(1 / (1 + math.exp(-max(odds, -30))), 3), SCORE_MAX)
        findings.append(Finding(
            device=device, score=score, conditions=tuple(name for name, *_ in holding), subscribers=int(subscribers), copies=int(regulars), first_seen=first,
            last_seen=last, evidence="; ".join(evidence for *_, evidence in holding), says=tuple(ranked), confirmed=bool(confirmed),
        ))  # fmt: skip
    return sorted(findings, key=lambda finding: (-finding.score, finding.device))


def _evidence(engine: Engine) -> Mapping[int, list[tuple[str, float, str]]]:
    """Return condition, log odds and evidence of each condition of the devices in the table `chosen`."""
    says = defaultdict[int, list[tuple[str, float, str]]](list)
    rows = engine.rows(f"""
        SELECT evidence.device, two, one, two_v, one_v, members, changes, days, {", ".join(COLUMNS)} FROM evidence JOIN chosen ON evidence.device = chosen.device
    """)  # fmt: skip
    for device, two, one, two_v, one_v, members, changes, days, *values in rows:
        odds = defaultdict[str, float](float, alternates=INTERCEPT)
        for (condition, weight), value in zip(COLUMNS.values(), values, strict=True):
            odds[condition] += weight * float(value)
        texts = {
            "conflict": f"days on which a SIM goes on where it was, and not where the device was: {two} (days that show one phone: {one})" if two or one else "",
            "version_alternates": f"days on which the software version goes back with the SIM: {two_v} (days that show one phone: {one_v})" if two_v or one_v else "",
            "alternates": f"SIMs that came back: {members}; they change {changes} times on {days} days",
        }  # fmt: skip
        says[device] += [(name, round(odds[name], 6), text) for name, text in texts.items() if text]
    ((newest,),) = engine.rows("SELECT MAX(allocated) FROM allocations")
    fixed = {
        "sim_box": "SIMs go round through such devices, with little other traffic", "placeholder": CONDITIONS["placeholder"],
        "tac": f"its TAC is not in the list, whose newest is of {newest or 'no day'}",
    }  # fmt: skip
    for device, name, log_odds in engine.rows("SELECT fixed.device, name, fixed.odds FROM fixed JOIN chosen ON fixed.device = chosen.device"):  # fmt: skip
        says[device].append((name, log_odds, fixed[name]))
    return says


def as_text(moment: datetime) -> str:
    """Format a time of the record as ISO 8601, for JSON documents."""
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"

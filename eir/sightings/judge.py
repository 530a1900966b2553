"""From sightings to findings: which devices carry an identity that was tampered with, how sure that is, and why.

One judgement a device: the share of all devices that are tampered with, as log odds, and what each condition adds to it or takes from it.
README.md argues that, and what it was fitted to. Runs the SQL on an engine that it is handed.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
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
from eir.sightings.engine import SQL, TABLES, Engine, number

DAYS_MAX = 62
"""Days of one judgement: each is a bit of a 64-bit number."""
SCORE_MAX = 0.999
LIES_MIN, LIES_TIMES, LIES_SHARE = 12, 10, 0.05
"""A peer is not believed that alone speaks for a subscriber of so many likely devices, for its checks so many times as often as others, by this share of its checks."""
LIKELY_ODDS = -2.6
"""Log odds from which a device counts there: a chance of one in fourteen. What a liar says makes some of its victims likely and the others nearly so, and all of them tell of it."""
SMALL, SMALL_SHARE = 0.01, 0.2
"""A peer that sends less than this share of all checks is not believed either if this share of its own speaks so for likely devices."""


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
    """Its subscribers who came back, where they were asked for."""

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
            "honest": self.honest, "sure": self.sure, "copies": self.copies, "confirmed": self.confirmed,
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
    left_out: tuple[str, ...]
    """Peers whose word was not believed."""
    places: int
    """Pairs of origins far enough apart to tell something; 0: what place says is nil."""
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
    _look(engine, [], progress)
    unbelieved = not_believed(engine)
    if unbelieved:
        warn(
            f"{', '.join(unbelieved)}: too many devices would be tampered with by its word alone; what it says is left out"
        )
        _look(engine, unbelieved, progress)
    engine.fill("confirmed", "device BIGINT", [(device,) for device, confirmed in cases.items() if confirmed])
    shift = calibrated(engine.rows("SELECT device, odds FROM summed"), cases)
    engine.define(
        "scores",
        f"""
        SELECT device, score FROM (SELECT device, ROUND(1 / (1 + EXP(-LEAST(GREATEST(odds + {shift:.6f}, -30), 30))), 3) AS score FROM summed) AS judged
        WHERE score >= {settings.report_min} OR device IN (SELECT confirmed.device FROM confirmed)
        UNION ALL
        SELECT devices.device, 0 AS score FROM devices JOIN confirmed ON devices.device = confirmed.device
        WHERE NOT devices.device IN (SELECT summed.device FROM summed)
    """,
    )
    return Judgement(
        since=since, until=until, devices=number(engine, "SELECT COUNT(*) FROM devices"), sightings=number(engine, "SELECT COALESCE(SUM(checks), 0) FROM devices"),
        subscribers=number(engine, "SELECT COUNT(DISTINCT subscriber) FROM usage"), findings=tuple(sorted((finding for finding in _findings(engine, cases, keep_users=keep_users) if cases.get(finding.device, True)), key=lambda finding: (-finding.score, finding.device))), left_out=tuple(unbelieved),
        reliability=_reliability(engine, cases, settings.report_min),
        places=number(engine, "SELECT COUNT(*) FROM travel WHERE fastest_s > 300"),
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


def _look(engine: Engine, unbelieved: list[str], progress: Callable[[str, int, int], None]) -> None:
    """Make all tables, and of them what each condition says of each device (`marks`), and all together (`summed`)."""
    engine.fill("liars", "peer VARCHAR", [(peer,) for peer in unbelieved])
    stages = [*TABLES, *CONDITIONS]
    for done, name in enumerate(stages):
        progress("judging", done + 1, len(stages))
        if name == "watched":
            _make_box(engine)
        path = TABLES.get(name, SQL / "conditions" / f"{name}.sql")
        engine.define(name, path.read_text("utf-8").format_map(WEIGHTS))
        if name == "pace":  # made of millions of moves, which nothing else needs
            engine.fill("moves", "a INTEGER, b INTEGER, gap_s DOUBLE", [])
    marks = " UNION ALL ".join(
        f"SELECT device, '{name}' AS name, CAST(says AS DOUBLE) AS says, evidence FROM {name}" for name in CONDITIONS
    )
    engine.define("marks", f"SELECT * FROM ({marks}) AS told WHERE NOT device IN (SELECT batches.device FROM batches)")
    # Ports of a box are one body each, so that what speaks for one body, or what a list says of a number, is weighed by itself.
    alone = "MAX(CASE WHEN name IN ('sim_box', 'tac', 'placeholder') THEN says ELSE -30 END)"
    engine.define(
        "summed",
        f"SELECT device, {math.log(PRIOR / (1 - PRIOR))} + GREATEST(SUM(says), {alone}) AS odds FROM marks GROUP BY device",
    )


def calibrated(odds: Iterable[tuple[int, float]], cases: Mapping[int, bool]) -> float:
    """Return how far log odds are shifted for operators' cases to be as many as the scores say.

    This is cautious: as if the model were right in four more.
    """
    told = [(odd, cases[device]) for device, odd in odds if device in cases]
    shift = 0.0
    for _ in range(50):
        chances = [1 / (1 + math.exp(-max(min(odd + shift, 30), -30))) for odd, _ in told]
        slope = sum(chance * (1 - chance) for chance in chances) + 1
        shift += (sum(was - chance for (_, was), chance in zip(told, chances, strict=True)) - shift) / slope
    return shift


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


def not_believed(engine: Engine) -> list[str]:
    """The peers that an engine's record gives reason not to believe, in order; their checks are to be left out of the next look.

    What they say of others' devices is not what comes of serving phones: such a peer sends checks of all kinds, and one that is after somebody's device
    little but what makes it look like several phones.
    """
    # A box is at one place, with dozens of devices: of those only the checks count.
    alone = engine.rows(f"""
        SELECT device, peer, SUM(checks) AS checks, MAX(is_copied) AS is_copied
        FROM (
          SELECT steps.device, MIN(claims.peer) AS peer, COUNT(*) AS checks, CASE WHEN steps.device IN (SELECT sim_box.device FROM sim_box) THEN 0 ELSE 1 END AS is_copied
          FROM steps JOIN summed ON steps.device = summed.device JOIN claims ON steps.claim = claims.claim
          WHERE summed.odds > {LIKELY_ODDS}
          GROUP BY steps.device, steps.subscriber
          HAVING MIN(claims.peer) = MAX(claims.peer)
          UNION ALL
          SELECT witnessed.device, MIN(witnessed.peer) AS peer, SUM(witnessed.checks) AS checks, 0 AS is_copied
          FROM witnessed JOIN sim_box ON witnessed.device = sim_box.device
          WHERE NOT witnessed.device IN (SELECT members.device FROM members)
          GROUP BY witnessed.device, witnessed.subscriber
          HAVING MIN(witnessed.peer) = MAX(witnessed.peer)
        ) AS spoken
        GROUP BY device, peer
    """)
    sent = {peer: int(checks) for peer, checks in engine.rows("SELECT peer, SUM(checks) FROM claims GROUP BY peer")}
    return liars(alone, sent)


def liars(alone: Iterable[tuple[int, str, int, int]], sent: Mapping[str, int]) -> list[str]:
    """Peers that are not to be believed for what they alone say: of a likely device, peer, checks, and whether it would be a copy (1) or a box (0).

    `sent`: peer → all its checks. Where two peers speak for the same devices, the one is judged first that says more for its checks, and then
    these devices tell nothing against the other. Where there is one peer, its word is all there is.
    """
    told = list(alone)
    copied = {device for device, _, _, is_copied in told if is_copied}
    everything, found = sum(sent.values()), list[str]()
    while True:
        said: defaultdict[str, dict[int, tuple[int, int]]] = defaultdict(dict)
        for device, peer, checks, is_copied in told:
            said[peer][device] = checks, is_copied
        for peer in sorted(said, key=lambda peer: (-len(said[peer]) / sent[peer], peer)):
            mine = {device for device, (_, is_copied) in said[peer].items() if is_copied}
            others = max(len(copied - mine), LIES_MIN / 2)
            share = sum(checks for checks, _ in said[peer].values()) / sent[peer]
            is_often = (
                len(mine) >= LIES_MIN
                and share >= LIES_SHARE
                and len(mine) * (everything - sent[peer]) > LIES_TIMES * sent[peer] * others
            )
            is_most = sent[peer] < SMALL * (everything - sent[peer]) and share >= SMALL_SHARE
            if is_often or is_most:
                found.append(peer)
                told = [each for each in told if each[0] not in said[peer]]
                break
        else:
            return sorted(found)


def _findings(engine: Engine, cases: Mapping[int, bool], *, keep_users: bool) -> Iterable[Finding]:
    marks: defaultdict[int, list[tuple[float, str, str]]] = defaultdict(list)
    for device, name, says, evidence in engine.rows(
        "SELECT marks.device, marks.name, marks.says, marks.evidence FROM marks JOIN scores ON marks.device = scores.device"
    ):
        marks[device].append((-says, name, evidence))
    users: defaultdict[int, list[str]] = defaultdict(list)
    if keep_users:
        for device, subscriber in engine.rows(
            "SELECT members.device, members.subscriber FROM members JOIN scores ON members.device = scores.device ORDER BY 1, 2"
        ):
            users[device].append(subscriber)
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
            confirmed=confirmed, users=tuple(users[device]),
        )  # fmt: skip


def as_text(moment: datetime) -> str:
    """A moment of the record as JSON has it."""
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"

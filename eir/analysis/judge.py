"""From sightings to findings: which devices carry an identity that was tampered with, how sure that is, and why.

Each condition is a witness that is wrong with a chance of one minus its weight times the strength of what it saw; the score is the
chance that at least one of them is right. README.md argues the weights. Runs the SQL on an engine that it is handed.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from eir.analysis.conditions import CONDITIONS, DELAYS, PARAMETERS, TamperSettings
from eir.analysis.engine import SQL, TABLES, Engine, number
from eir.analysis.tacs import read_tacs
from eir.device import key_text
from eir.errors import SetupFault

SAMPLE_DEVICES = 60_000
"""Devices of one subscriber that show how fast phones move: so many, or one more than half of it, are looked at check by check."""
ROUNDS_MAX = 30
"""Of taking away what has too few partners."""
TURN_CHECKS_MIN = 3
"""Checks of a SIM in a device that are more than a try."""
COPIES_MAX = 50
"""Subscribers of a device above which nobody asks which is the genuine one."""
DAYS_MAX = 62
"""Days of one judgement: each is a bit of a 64-bit number."""


class Genuine(NamedTuple):
    """Which of the copies is likely the genuine one."""

    subscriber: str
    why: str
    sure: str
    """`likely` or `possibly`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One device."""

    device: int
    score: float
    """From 0 to 1."""
    conditions: tuple[str, ...]
    subscribers: int
    copies: int
    """Subscribers that come back day after day; 0 where none does."""
    first_seen: datetime
    last_seen: datetime
    evidence: str
    genuine: Genuine | None
    users: tuple[str, ...] = ()
    """All its subscribers, where they were asked for."""

    @property
    def imei(self) -> str:
        """Its 14 digits."""
        return key_text(self.device)

    @property
    def sure(self) -> str:
        """The score in a word."""
        return "certain" if self.score >= 0.95 else "very likely" if self.score >= 0.85 else "likely"

    def as_json(self) -> dict[str, Any]:
        """For scripts."""
        genuine = self.genuine._asdict() if self.genuine else None
        return {
            "imei": self.imei, "score": self.score, "conditions": list(self.conditions), "subscribers": self.subscribers,
            "first_seen": _time(self.first_seen), "last_seen": _time(self.last_seen), "evidence": self.evidence,
            "sure": self.sure, "copies": self.copies, "genuine": genuine,
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
    """The highest score first."""
    matched: dict[str, int]
    """How many devices each condition held for; also those that were left out."""
    left_out: tuple[str, ...]
    """Conditions that held for too large a share of all devices."""
    malformed: tuple[tuple[str, int, int], ...]
    """Origins of checks whose identifier names no device: origin, sightings, subscribers; the most first."""
    by_day: tuple[tuple[int, int], ...]
    """Day of the window, and how many reported devices were seen on it."""


def judge(engine: Engine, settings: TamperSettings, *, since: datetime, until: datetime, warn: Callable[[str], None] = lambda _: None, progress: Callable[[str, int, int], None] = lambda *_: None, keep_users: bool = False) -> Judgement:
    """Judge the sightings of an engine.

    `warn` is told of conditions that are left out; `keep_users`: findings name all subscribers of their devices. Raises SetupFault for a list of TACs that cannot be read.
    """
    prepare(engine, settings, until=until)
    steps = len(TABLES) + len(CONDITIONS) + 1
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        progress("judging", done, steps)

    for name, path in TABLES.items():
        if name == "sampled":
            _set_sample(engine)
        engine.define(name, path.read_text("utf-8"))
        advance()
    _make_box(engine, settings)
    advance()
    devices = number(engine, "SELECT COUNT(*) FROM devices")
    matched, left_out = {}, []
    engine.fill("marks", "device BIGINT, name VARCHAR, strength DOUBLE, weight DOUBLE, evidence VARCHAR", [])
    for name in CONDITIONS:
        engine.define("found", (SQL / "conditions" / f"{name}.sql").read_text("utf-8"))
        matched[name] = number(engine, "SELECT COUNT(*) FROM found")
        # A handful of devices is no share of anything.
        if matched[name] > max(settings.max_allowed_matching_ratio * devices, 10) and settings.weights[name]:
            left_out.append(name)
            warn(f"{name} holds for {matched[name]:,} of {devices:,} devices, more than max_allowed_matching_ratio: it is left out")
        else:
            engine.define("marks", f"SELECT * FROM marks UNION ALL SELECT device, '{name}', strength, {settings.weights[name]}, evidence FROM found")  # noqa: S608 - a name of ours
        advance()
    engine.define("scores", f"""
        SELECT device, 1 - EXP(SUM(LN(GREATEST(1 - weight * strength, 0.0001)))) AS score
        FROM marks GROUP BY device HAVING 1 - EXP(SUM(LN(GREATEST(1 - weight * strength, 0.0001)))) >= {settings.report_min}
    """)  # noqa: S608 - a number of ours
    return Judgement(
        since=since, until=until, devices=devices, sightings=number(engine, "SELECT COALESCE(SUM(checks), 0) FROM devices"),
        subscribers=number(engine, "SELECT COUNT(DISTINCT subscriber) FROM usage"), findings=tuple(_findings(engine, keep_users=keep_users)), matched=matched,
        left_out=tuple(left_out), by_day=_by_day(engine),
        malformed=tuple((str(origin), int(seen), int(who)) for origin, seen, who in engine.rows("""
            SELECT COALESCE(origin_host, ''), SUM(checks), COUNT(DISTINCT subscriber) FROM sightings
            WHERE device IS NULL AND NOT imei IS NULL GROUP BY 1 ORDER BY 2 DESC, 1
        """)),
    )  # fmt: skip


def prepare(engine: Engine, settings: TamperSettings, *, until: datetime) -> None:
    """Make the small tables that the SQL knows beside the sightings: parameters, and lists from the configuration."""
    given: dict[str, Any] = {name: float(getattr(settings, name)) for name in PARAMETERS}
    try:
        tacs = read_tacs(settings.tac_db) if settings.tac_db else []
    except (OSError, ValueError) as e:
        raise SetupFault(f"tamper.tac_db: {e}") from None
    columns = ", ".join(f"{value} AS {name}" for name, value in given.items())
    flags = f"{int(bool(tacs))} AS has_tac_db, {int(bool(settings.home))} AS has_home, TIMESTAMP '{until:%Y-%m-%d %H:%M:%S}' AS until"
    engine.define("settled", f"SELECT {columns}, {flags}")
    engine.define("parameters", "SELECT settled.*, 1 AS sample_one_of FROM settled")
    engine.fill("places", "origin VARCHAR, latitude DOUBLE, longitude DOUBLE", [(origin, *place) for origin, place in settings.origins.items()])
    engine.fill("delays", "body BIGINT, days BIGINT", list(DELAYS.items()))
    engine.fill("barred", "tac BIGINT", [(int(tac),) for tac in settings.barred_tacs])
    engine.fill("home", "prefix VARCHAR", [(prefix,) for prefix in settings.home])
    engine.fill("tac_db", "tac BIGINT, allocated DATE, has_nr INTEGER", tacs)


def _set_sample(engine: Engine) -> None:
    one_of = max(1, number(engine, "SELECT COUNT(*) FROM devices") // SAMPLE_DEVICES)
    engine.define("parameters", f"SELECT settled.*, {one_of} AS sample_one_of FROM settled")  # noqa: S608 - a number of ours


def _make_box(engine: Engine, settings: TamperSettings) -> None:
    """The table `box`: devices with their subscribers, where both have partners enough, counting only those who have enough themselves."""
    # Where two devices are enough, a try is not: a shop has two phones for its customers' SIMs.
    kinds = ((settings.box_partners, settings.box_partners, 1), (settings.box_turns, 2, TURN_CHECKS_MIN))
    for kind, (of_device, of_subscriber, checks) in enumerate(kinds):
        engine.define("core", f"SELECT device, subscriber, 0 AS subscriber_devices FROM usage WHERE checks >= {checks}")  # noqa: S608 - a number of ours
        left = -1
        for _ in range(ROUNDS_MAX):
            engine.define("counted", """
                SELECT device, subscriber, COUNT(*) OVER (PARTITION BY device) AS device_subscribers, COUNT(*) OVER (PARTITION BY subscriber) AS subscriber_devices
                FROM core
            """)  # fmt: skip
            engine.define("core", f"SELECT device, subscriber, subscriber_devices FROM counted WHERE device_subscribers >= {of_device} AND subscriber_devices >= {of_subscriber}")  # noqa: S608 - numbers of ours
            before, left = left, number(engine, "SELECT COUNT(*) FROM core")
            if left in {0, before}:
                break
        engine.define("box", f"SELECT * FROM {'box UNION SELECT * FROM core' if kind else 'core'}")  # noqa: S608 - names of ours


def _findings(engine: Engine, *, keep_users: bool) -> Iterable[Finding]:
    marks: defaultdict[int, list[tuple[float, str, str]]] = defaultdict(list)
    for device, name, told, evidence in engine.rows("""
        SELECT marks.device, marks.name, marks.weight * marks.strength, marks.evidence FROM marks JOIN scores ON marks.device = scores.device
    """):
        marks[device].append((-told, name, evidence))
    genuine = _genuine(engine)
    users: defaultdict[int, list[str]] = defaultdict(list)
    for device, subscriber in engine.rows("SELECT usage.device, usage.subscriber FROM usage JOIN scores ON usage.device = scores.device ORDER BY 1, 2") if keep_users else ():
        users[device].append(subscriber)
    for device, score, subscribers, regulars, first, last in engine.rows("""
        SELECT scores.device, ROUND(scores.score, 3), devices.subscribers, COALESCE(regulars.regulars, 0), devices.first_seen, devices.last_seen
        FROM scores JOIN devices ON scores.device = devices.device LEFT JOIN regulars ON scores.device = regulars.device
        ORDER BY 2 DESC, 1
    """):
        told = sorted(marks[device])
        yield Finding(
            device=device, score=min(score, 0.999), conditions=tuple(name for _, name, _ in told), subscribers=subscribers, copies=regulars,
            first_seen=first, last_seen=last, evidence="; ".join(evidence for weight, _, evidence in told if weight < 0) or told[0][2],
            genuine=genuine.get(device), users=tuple(users[device]),
        )  # fmt: skip


class _User(NamedTuple):
    """What speaks for one of the subscribers of a device."""

    subscriber: str
    first_seen: datetime
    days: int
    usual_version: int
    """1: its software version is what the model usually has; 0: it is not, or none is known."""


def _genuine(engine: Engine) -> dict[int, Genuine]:
    users: defaultdict[int, list[_User]] = defaultdict(list)
    for device, *user in engine.rows(f"""
        SELECT usage.device, usage.subscriber, usage.first_seen, usage.day_count, COALESCE(fits.usual, 0)
        FROM usage JOIN scores ON usage.device = scores.device JOIN devices ON usage.device = devices.device
        LEFT JOIN (
          SELECT detail.device, detail.subscriber, MAX(CASE WHEN models.devices * 20 >= models.of_devices THEN 1 ELSE 0 END) AS usual
          FROM detail JOIN scores ON detail.device = scores.device
          JOIN models ON CAST(FLOOR(detail.device / 1000000) AS BIGINT) = models.tac AND detail.version = models.version
          WHERE models.of_devices >= 20
          GROUP BY detail.device, detail.subscriber
        ) AS fits ON usage.device = fits.device AND usage.subscriber = fits.subscriber
        WHERE devices.subscribers BETWEEN 2 AND {COPIES_MAX}
    """):  # noqa: S608 - a number of ours
        users[device].append(_User(*user))
    return {device: chosen for device, each in users.items() if (chosen := choose_genuine(each))}


def choose_genuine(users: "list[_User]") -> Genuine | None:
    """Of a device's subscribers the one who is likely its owner: there well before all others, or alone with the model's usual firmware."""
    first, second, *_ = sorted(users, key=lambda user: user.first_seen)
    fitting = [user for user in users if user.usual_version]
    lead_days = (second.first_seen - first.first_seen).days
    alone = fitting[0] if len(fitting) == 1 and len(users) > 1 else None
    if lead_days >= 2 and first.days > 2 and (alone is None or alone == first):
        why = f"was there {lead_days} days before any other"
        return Genuine(first.subscriber, f"{why}, and alone has its model's usual software version" if alone else why, "likely" if alone or lead_days >= 7 else "possibly")
    if alone is not None and alone.days > 2:
        return Genuine(alone.subscriber, "alone has its model's usual software version", "possibly")
    return None


def _by_day(engine: Engine) -> tuple[tuple[int, int], ...]:
    seen = [0] * (DAYS_MAX + 1)
    for days, count in engine.rows("SELECT days, COUNT(*) FROM (SELECT detail.device, BIT_OR(detail.days) AS days FROM detail JOIN scores ON detail.device = scores.device GROUP BY detail.device) AS each_one GROUP BY days"):
        for day in range(DAYS_MAX + 1):
            seen[day] += count * (days >> day & 1)
    last = max((day for day, count in enumerate(seen) if count), default=-1)
    return tuple(enumerate(seen[: last + 1]))


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"

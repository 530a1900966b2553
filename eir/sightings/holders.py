"""Search for subscribers whose phone certainly has a copied IMEI. An export then blocks them, but not the owner of the IMEI.

An export must never block the owner of the genuine phone. Two facts show a copy: a software version that phones of this model
do not have, and an arrival while a phone of this model was already in use. Without versions an owner who was absent in the first
days cannot be told from a copy, so such a device is only tracked.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from eir.sightings.engine import SQL, Engine

CLEAR_DAYS = 7
"""Days after the first subscriber from which a later subscriber certainly is a newcomer, and lead in days of a clear longest holder."""
FIRST_LEAD = timedelta(days=1)
"""Lead of a clear first subscriber."""
LATE_SHARE_MAX = 0.03
"""Maximum share of ordinary phones that appear after `CLEAR_DAYS`. Beyond this share the record has gaps, such as an MME that starts to report, and arrivals are no evidence."""
MODEL_PHONES_MIN, VERSION_SHARE_MIN, VERSION_DISTANCE = 3, 0.03, 2
"""Minimum number of ordinary phones of a known model, minimum share of these phones that have a version of the model, and maximum distance of an update from such a version."""

LOT_MIN = 3
"""Minimum number of phones with one IMEI and one foreign version that are a lot of copies. Only these are blocked if no early subscriber has a version of the model, because then the owner may be among the others."""


class SubscriberPeriod(NamedTuple):
    """Use of a device by one subscriber: first and last check, count of days, and software versions."""

    subscriber: str
    first_seen: datetime
    last_seen: datetime
    days: int
    is_of_model: bool | None = None
    """True if the phone has a software version of the model, False if all its versions are far from those, None if unknown."""
    versions: tuple[int, ...] = ()


def find_copies(
    periods: Sequence[SubscriberPeriod], since: datetime, until: datetime, *, has_gaps: bool
) -> tuple[str, ...]:
    """Return, sorted, the subscribers who use a device's IMEI and whose phones are certainly copies of the device.

    Args:
        periods: subscribers of the device.
        since: start of the record.
        until: end of the record.
        has_gaps: True if arrivals in the record are no evidence.
    """
    if not periods:
        return ()
    begin = min(each.first_seen for each in periods)
    early = [each for each in periods if each.first_seen - begin <= timedelta(days=CLEAR_DAYS)]
    foreign = [each for each in periods if each.is_of_model is False]
    is_owner_left = any(each.is_of_model for each in early)
    suspects = foreign if is_owner_left else _phones_of_lots(foreign)
    copies = {each.subscriber for each in suspects} - _protected(periods, is_owner_left=is_owner_left)
    if not has_gaps and begin - since <= timedelta(days=CLEAR_DAYS):
        copies |= _newcomers(periods, early, until)
    return tuple(sorted(copies))


def _phones_of_lots(periods: Sequence[SubscriberPeriod]) -> list[SubscriberPeriod]:
    """Return the subscribers whose phone has a common software version: at least `LOT_MIN` phones with this IMEI have this version."""
    phones = Counter(version for each in periods for version in each.versions)
    return [each for each in periods if any(phones[version] >= LOT_MIN for version in each.versions)]


def _protected(periods: Sequence[SubscriberPeriod], *, is_owner_left: bool) -> set[str]:
    """Return the subscribers who may own the genuine device. They never count as users of a copy.

    These are the first subscriber and the subscriber with the most days, if their lead over the next subscriber is large enough.
    Without a possible owner (`is_owner_left` False), both count without a lead.
    """
    first, *later = sorted(periods, key=lambda each: each.first_seen)
    longest, *shorter = sorted(periods, key=lambda each: -each.days)
    protected = set[str]()
    if not is_owner_left or not later or later[0].first_seen - first.first_seen >= FIRST_LEAD:
        protected.add(first.subscriber)
    if not is_owner_left or not shorter or longest.days - shorter[0].days >= CLEAR_DAYS:
        protected.add(longest.subscriber)
    return protected


def _newcomers(periods: Sequence[SubscriberPeriod], early: Collection[SubscriberPeriod], until: datetime) -> set[str]:
    """Return the subscribers who first used an IMEI while a genuine phone with this IMEI was already in use.

    A newcomer came `CLEAR_DAYS` later, while the earlier phone was still in use, because a buyer comes after the owner has
    stopped. It has been seen on every other day since then, because an owner may return from a place where no MME reports,
    but on fewer days than the earlier phone.
    """
    genuine = [each for each in early if each.is_of_model]
    if not genuine:
        return set()
    last_seen, days = max(each.last_seen for each in genuine), max(each.days for each in genuine)
    return {
        each.subscriber
        for each in periods
        if each not in early
        and each.first_seen < last_seen
        and (until - each.first_seen).days <= each.days * 2
        and each.days < days
    }


def copies_by_device(engine: Engine, since: datetime, until: datetime) -> dict[int, tuple[str, ...]]:
    """Return for each device of the table `scores` the subscribers who certainly use a copy of the device."""
    engine.define("models", (SQL / "pairs" / "models.sql").read_text("utf-8"))
    models = defaultdict[int, dict[int, int]](dict)
    for tac, version, phones in engine.rows("SELECT tac, version, phones FROM models"):
        if version.isdigit():
            models[tac][int(version)] = phones
    usual = {tac: _usual_versions(phones_by_version) for tac, phones_by_version in models.items()}
    versions = defaultdict[tuple[int, str], list[int]](list)
    for device, subscriber, version in engine.rows(_VERSIONS):
        if version.isdigit():
            versions[device, subscriber].append(int(version))
    periods = defaultdict[int, list[SubscriberPeriod]](list)
    for device, tac, subscriber, first_seen, last_seen, days in engine.rows(_PERIODS):
        known = versions[device, subscriber]
        is_of_model = _is_of_model(known, usual.get(tac, ()))
        periods[device].append(SubscriberPeriod(subscriber, first_seen, last_seen, days, is_of_model, tuple(known)))
    has_gaps = _has_gaps(engine, since)
    return {device: find_copies(held, since, until, has_gaps=has_gaps) for device, held in periods.items()}


_VERSIONS = """
    SELECT DISTINCT seen.device, seen.subscriber, seen.version
    FROM seen JOIN scores ON seen.device = scores.device
    JOIN claims ON seen.origin = claims.origin AND seen.peer = claims.peer
    WHERE claims.is_believed = 1 AND seen.version > '00' AND NOT seen.subscriber IS NULL
"""
_PERIODS = """
    SELECT usage.device, devices.tac, usage.subscriber, usage.first_seen, usage.last_seen, usage.day_count
    FROM usage JOIN scores ON usage.device = scores.device JOIN devices ON usage.device = devices.device
    WHERE usage.day_count >= 2 AND NOT usage.subscriber IS NULL
"""


def _usual_versions(phones_by_version: Mapping[int, int]) -> tuple[int, ...]:
    """Return the software versions that ordinary phones of one model (TAC) have; empty if too few such phones are known."""
    phones = sum(phones_by_version.values())
    if phones < MODEL_PHONES_MIN:
        return ()
    return tuple(version for version, count in phones_by_version.items() if count >= phones * VERSION_SHARE_MIN)


def _is_of_model(versions: Sequence[int], usual: Sequence[int]) -> bool | None:
    """Compare a phone's software `versions` with a model's `usual` versions; return whether the phone is of this model, None if unknown."""
    if not versions or not usual:
        return None
    if not set(versions).isdisjoint(usual):
        return True
    distance = min(abs(version - other) for version in versions for other in usual)
    return None if distance <= VERSION_DISTANCE else False


def _has_gaps(engine: Engine, since: datetime) -> bool:
    """Return True if many ordinary phones first appear late in the record. A late first check is then no evidence of a copy."""
    clear = since + timedelta(days=CLEAR_DAYS)
    ((late, phones),) = engine.rows(f"""
        SELECT COALESCE(SUM(CASE WHEN first_seen >= TIMESTAMP '{clear:%Y-%m-%d %H:%M:%S}' THEN 1 ELSE 0 END), 0), COUNT(*)
        FROM devices
        WHERE subscribers = 1 AND BIT_COUNT(days) >= 5
    """)  # noqa: S608 - a time of ours
    return bool(late > phones * LATE_SHARE_MAX)

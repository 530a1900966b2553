"""Sheet of one device for an investigator, and the SIMs of devices to export. Both read the tables of a judgement."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from eir.device import key_text
from eir.sightings.conditions import CONDITIONS
from eir.sightings.judge import Engine, Judgement, as_text

EXAMPLES, SAMPLE = 20, 400
"""Maximum number of changes of place on a sheet, and of subscribers and checks."""


def sheet(engine: Engine, found: Judgement, device: int, decisions: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Build the sheet of one device: all evidence down to single checks. `engine` must still have the tables of the judgement."""
    rank, finding = next(
        ((rank, each) for rank, each in enumerate(found.findings, 1) if each.device == device), (None, None)
    )

    def rows(select: str, *names: str) -> list[dict[str, Any]]:
        return [{name: as_text(value) if isinstance(value, datetime) else value for name, value in zip(names, row, strict=True)} for row in engine.rows(select)]  # fmt: skip

    places = engine.rows(f"""
        SELECT t, there.origin, here.origin, gap FROM changes JOIN origins AS there ON changes.dev_o = there.o JOIN origins AS here ON changes.o = here.o
        WHERE device = {device} AND NOT two IS NULL ORDER BY gap, t LIMIT {EXAMPLES}
    """)
    return {
        "imei": key_text(device), "since": as_text(found.since), "until": as_text(found.until), "rank": rank,
        "finding": finding.as_json() if finding else None,
        "says": [{"condition": name, "means": CONDITIONS[name], "log_odds": round(odds, 2), "evidence": text} for name, odds, text in (finding.says if finding else ())],
        "subscribers": rows(f"""
            SELECT subscriber, MIN(home), CAST(SUM(checks) AS BIGINT), COUNT(DISTINCT day), MIN(time), MAX(last) FROM sightings WHERE device = {device} GROUP BY subscriber ORDER BY 3 DESC, 1 LIMIT {SAMPLE}
        """, "subscriber", "home", "checks", "days", "first_seen", "last_seen"),
        "two_places": [{"time": as_text(datetime.fromtimestamp(at, UTC)), "from": there, "to": here, "gap_s": round(gap)} for at, there, here, gap in places],
        "checks": rows(f"""
            SELECT time, subscriber, origin_host, peer, software_version FROM sightings WHERE device = {device} ORDER BY 1, 2, 3 LIMIT {SAMPLE}
        """, "time", "subscriber", "origin_host", "peer", "software_version"),
        "left_out": list(found.left_out), "decisions": [each for each in decisions if each["imei"][:14] == key_text(device)],
    }  # fmt: skip


def other_sims(engine: Engine, owners: Mapping[int, Collection[str]]) -> Mapping[int, Sequence[str]]:
    """Return for each device all its IMSIs on record, except those of its owner. Hashes of subscribers are left out.

    `owners`: devices with the IMSIs of their owner, as a person named them.
    """
    engine.fill("owned", "device BIGINT", [(device,) for device in owners])
    sims = defaultdict[int, list[str]](list)
    for device, subscriber in engine.rows("SELECT uses.device, uses.subscriber FROM uses JOIN owned ON uses.device = owned.device WHERE NOT subscriber IS NULL ORDER BY 1, 2"):  # fmt: skip
        if is_imsi(subscriber) and subscriber not in owners[device]:
            sims[device].append(subscriber)
    return sims


def is_imsi(subscriber: str) -> bool:
    """Return True if the recorded name of a subscriber is an IMSI, not a hash."""
    return subscriber.isdigit() and len(subscriber) in {14, 15}

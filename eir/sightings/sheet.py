"""Output of findings: the sheet of one device for an investigator, and rows for a list that `eir publish` can sign.

`sheet` and `other_sims` read the tables of a judgement.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from eir.device import key_text
from eir.sightings.conditions import CONDITIONS
from eir.sightings.engine import Engine
from eir.sightings.judge import Judgement, as_text

LAYOUTS: Mapping[str, tuple[str, ...]] = {
    "eir": ("imei", "imsi", "reason", "date"),
    "dirbs-notifications": ("imei", "imsi", "msisdn", "block_date", "reasons"),
}
"""Layouts of exported files with their columns. In rows without IMSIs the layout `eir` has no column `imsi`."""
ROWS = ("tracked", "pairs", "devices")
"""Choices for the export: IMEIs to track, pairs of confirmed devices with named owners, confirmed IMEIs."""
EXAMPLES, SAMPLE = 20, 400


def sheet(engine: Engine, found: Judgement, device: int, decisions: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Build the sheet of one device: all evidence down to single checks. `engine` must still have the tables of the judgement."""
    finding = next((each for each in found.findings if each.device == device), None)
    rank = found.findings.index(finding) + 1 if finding else None
    says = finding.says if finding else ()
    return {
        "imei": key_text(device), "since": as_text(found.since), "until": as_text(found.until), "rank": rank,
        "finding": finding.as_json() if finding else None,
        "says": [{"condition": name, "means": CONDITIONS[name], "log_odds": round(odds, 2), "evidence": text} for name, odds, text in says],
        "subscribers": [
            {"subscriber": who, "home": home, "checks": int(checks), "days": days, "first_seen": as_text(first), "last_seen": as_text(last)}
            for who, home, checks, days, first, last in engine.rows(f"""
                SELECT subscriber, MIN(home), SUM(checks), COUNT(DISTINCT day), MIN(time), MAX(last) FROM sightings WHERE device = {device} GROUP BY subscriber ORDER BY 3 DESC, 1 LIMIT {SAMPLE}
            """)
        ],
        "two_places": [
            {"time": as_text(datetime.fromtimestamp(at, UTC)), "from": there, "to": here, "gap_s": round(gap)}
            for at, there, here, gap in engine.rows(f"""
                SELECT t, there.origin, here.origin, gap FROM changes JOIN origins AS there ON changes.dev_o = there.o JOIN origins AS here ON changes.o = here.o
                WHERE device = {device} AND NOT two IS NULL ORDER BY gap, t LIMIT {EXAMPLES}
            """)
        ],
        "checks": [
            {"time": as_text(time), "subscriber": who, "origin_host": origin, "peer": peer, "software_version": version}
            for time, who, origin, peer, version in engine.rows(f"""
                SELECT time, subscriber, origin_host, peer, software_version FROM sightings WHERE device = {device} ORDER BY 1, 2, 3 LIMIT {SAMPLE}
            """)
        ],
        "left_out": list(found.left_out), "decisions": [each for each in decisions if each["imei"][:14] == key_text(device)],
    }  # fmt: skip


def other_sims(engine: Engine, owners: Mapping[int, Collection[str]]) -> dict[int, list[str]]:
    """Return for each device all its IMSIs on record, except those of its owner. Hashes of subscribers are left out.

    `owners`: devices with the IMSIs of their owner, as a person named them.
    """
    engine.fill("owned", "device BIGINT", [(device,) for device in owners])
    rows = engine.rows("SELECT uses.device, uses.subscriber FROM uses JOIN owned ON uses.device = owned.device ORDER BY 1, 2")  # fmt: skip
    sims: dict[int, list[str]] = {}
    for device, subscriber in rows:
        if subscriber and is_imsi(subscriber) and subscriber not in owners[device]:
            sims.setdefault(device, []).append(subscriber)
    return sims


def export_rows(rows: Iterable[tuple[str, str, str]], layout: str, day: str, *, has_imsi: bool) -> Iterator[list[str]]:
    """Yield the header and the rows of a data file for `eir publish`. `rows`: IMEI, IMSI or an empty text, condition.

    A list has at most 255 reasons, so a reason must not include values of a device.
    """
    columns = [name for name in LAYOUTS[layout] if has_imsi or layout != "eir" or name != "imsi"]
    yield columns
    for imei, imsi, why in rows:
        reason = f"tampered: {why}"
        values = {"imei": imei, "imsi": imsi, "msisdn": "", "reason": reason, "date": day, "block_date": day, "reasons": reason}  # fmt: skip
        yield [values[name] for name in columns]


def is_imsi(subscriber: str) -> bool:
    """Return True if the recorded name of a subscriber is an IMSI, not a hash."""
    return subscriber.isdigit() and len(subscriber) in {14, 15}

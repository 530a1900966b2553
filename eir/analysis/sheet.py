"""The sheet of one device: what a finding rests on, check by check, for whoever has to decide or to explain it. Reads the tables of a judgement."""

from collections.abc import Iterable
from typing import Any

from eir.analysis.conditions import CONDITIONS, PRIOR
from eir.analysis.engine import Engine
from eir.analysis.judge import Judgement, as_text
from eir.device import key_text

RULES = "3"
"""Version of the conditions and their weights."""
EXAMPLES, SAMPLE = 20, 400


def sheet(engine: Engine, found: Judgement, device: int, decisions: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """All that is known of a device, for `as_json` and for the page; `engine` has judged it just now."""
    finding = next((each for each in found.findings if each.device == device), None)
    said = engine.rows(f"SELECT name, says, evidence FROM marks WHERE device = {device} ORDER BY 2 DESC")
    users = engine.rows(
        f"SELECT subscriber, home, checks, day_count, first_seen, last_seen FROM usage WHERE device = {device} ORDER BY 3 DESC, 1 LIMIT {SAMPLE}"
    )
    steps = engine.rows(f"""
        SELECT steps.time, members.subscriber, claims.origin, claims.peer, steps.version
        FROM steps JOIN members ON steps.device = members.device AND steps.subscriber = members.number JOIN claims ON steps.claim = claims.claim
        WHERE steps.device = {device} ORDER BY 1, 2 LIMIT {SAMPLE}
    """)
    conflicts = engine.rows(f"""
        SELECT switches.time, here.origin, there.origin, switches.gap_s, switches.fastest_s, switches.known
        FROM switches JOIN located AS here ON switches.before_origin = here.number JOIN located AS there ON switches.origin = there.number
        WHERE switches.device = {device} AND switches.is_conflict = 1 ORDER BY switches.fastest_s - switches.gap_s DESC, 1 LIMIT {EXAMPLES}
    """)
    orders = engine.rows(f"SELECT a, b, runs, expected, deviation FROM orders WHERE device = {device}")
    return {
        "imei": key_text(device), "since": as_text(found.since), "until": as_text(found.until), "rules": RULES, "base_rate": PRIOR,
        "finding": finding.as_json() if finding else None,
        "says": [{"condition": name, "means": CONDITIONS[name], "log_odds": round(says, 2), "evidence": evidence} for name, says, evidence in said],
        "against": [*([finding.honest] if finding and finding.honest else []), *([] if found.places else ["all checks come from one place, so place says nothing"])],
        "subscribers": [
            {"subscriber": who, "home": home, "checks": checks, "days": days, "first_seen": as_text(first), "last_seen": as_text(last)}
            for who, home, checks, days, first, last in users
        ],
        "order": [{"checks": [int(a), int(b)], "runs": int(runs), "expected": round(expected, 1), "deviation": round(deviation, 1)} for a, b, runs, expected, deviation in orders],
        "too_soon": [
            {"time": as_text(time), "from": here, "to": there, "gap_s": round(gap), "needed_s": round(needed), "known": known}
            for time, here, there, gap, needed, known in conflicts
        ],
        "checks": [
            {"time": as_text(time), "subscriber": who, "origin_host": origin, "peer": peer, "software_version": version} for time, who, origin, peer, version in steps
        ],
        "left_out": list(found.left_out), "decisions": [each for each in decisions if each["imei"][:14] == key_text(device)],
    }  # fmt: skip

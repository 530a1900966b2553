"""Output of findings: HTML pages, the sheet of one device, and rows for a list that `eir publish` can sign.

A page is one file with charts and a table, without external resources, light or dark as the browser prefers. `page` is for a
fraud desk and names devices. `public_page` is for a yearly report: it has only counts, none below ten. `sheet` reads the tables
of a judgement.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from html import escape
from itertools import chain
from typing import Any

from eir.device import key_text
from eir.sightings.cases import CONFIRMED
from eir.sightings.conditions import CONDITIONS, PRIOR, SAID
from eir.sightings.engine import Engine
from eir.sightings.figures import BELOW, FEW, hidden_rows
from eir.sightings.judge import Finding, Judgement, as_text

ROWS_MAX = 2000
RULES = "5"
"""Version of the conditions and their weights."""
EXAMPLES, SAMPLE = 20, 400
EXPORTS = ("eir", "dirbs-notifications")
ROWS = ("pairs", "tracked", "devices")
"""Choices for the export: pairs of copies, IMEIs to track, confirmed IMEIs."""
CERTAIN = SAID[0][0]
BANDS = (
    (1, 1, "one, or not known"),
    (2, 2, "2"),
    (3, 3, "3"),
    (4, 6, "4 to 6"),
    (7, 20, "7 to 20"),
    (21, 10**9, "more than 20"),
)
"""Numbers of copies: from, to, label."""
BAR_PX, GAP_PX, LABEL_PX, WIDTH_PX = 18, 8, 330, 720

STYLE = """
:root{color-scheme:light dark;--page:#fbfbf9;--card:#fff;--ink:#1c1e21;--soft:#5b6168;--line:#dcdfe3;--bar:#2563a8;--strong:#a8321f}
@media (prefers-color-scheme:dark){:root{--page:#15171a;--card:#1e2125;--ink:#e8eaed;--soft:#a3abb4;--line:#363b42;--bar:#6ea8e6;--strong:#f08b78}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1180px;margin:0 auto;padding:24px 20px 60px}
h1{font-size:26px;line-height:1.25;margin:0 0 4px}
h2{font-size:17px;margin:0 0 12px}
p{margin:0 0 12px;max-width:75ch}
.soft,figcaption,th{color:var(--soft)}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:20px 0}
.figures div,section,figure{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:14px 16px;margin:0}
.figures b{display:block;font-size:24px;font-variant-numeric:tabular-nums}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(480px,100%),1fr));gap:16px;margin:16px 0}
section{margin:16px 0;overflow-x:auto}
svg{width:100%;height:auto;display:block}
svg text{fill:var(--ink);font:13px system-ui,sans-serif}
svg .soft{fill:var(--soft)}
svg .bar{fill:var(--bar)}
@media print{:root{color-scheme:light;--page:#fff;--card:#fff;--ink:#000;--soft:#000;--line:#777;--bar:#777}figure,tr{break-inside:avoid}svg .bar{stroke:#000}}
table{border-collapse:collapse;width:100%;font-size:14px}
th{text-align:left;font-weight:600;white-space:nowrap}
th,td{padding:6px 12px 6px 0;border-bottom:1px solid var(--line);vertical-align:top}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
td time{white-space:nowrap}
td code{font:13px ui-monospace,monospace;white-space:nowrap}
.certain{color:var(--strong);font-weight:600}
"""


HEAD = "<tr><th>IMEI<th class=n>Score<th class=n>Subscribers<th>First seen<th>Last seen<th>Evidence<th>For an honest explanation"

SHEET = (
    ("What each condition says, in log odds", "says"), ("Changes after which a SIM goes on where it was, and not where the device was", "too_soon"), ("Order of the two busiest subscribers", "order"),
    ("Subscribers", "subscribers"), ("Decisions", "decisions"), ("Checks", "checks"),
)  # fmt: skip


def page(found: Judgement) -> str:
    """Render the page for a fraud desk: every device with its score and evidence."""
    findings = found.findings
    charts = [
        bars("What was found", "devices for which each condition holds", _by_condition(findings)),
        bars("How many phones share an identity", "devices by their regular subscribers", _by_copies(findings)),
        bars("Models", "reported devices by TAC, the ten with most", dict(Counter(finding.imei[:8] for finding in findings).most_common(10))),
    ]  # fmt: skip
    rows = "".join(map(_row, findings[:ROWS_MAX]))
    more = (
        f"<p class=soft>{len(findings) - ROWS_MAX:,} more are in the CSV and JSON forms.</p>"
        if len(findings) > ROWS_MAX
        else ""
    )
    malformed = "".join(
        f"<tr><td>{escape(origin) or 'not named'}<td class=n>{seen:,}<td class=n>{who:,}"
        for origin, seen, who in found.malformed[:20]
    )
    wrong = (
        section(
            "Checks that name no device",
            f"<table><tr><th>Origin<th class=n>Checks<th class=n>Subscribers{malformed}</table>",
        )
        if malformed
        else ""
    )
    notes = (
        f"<p><b>Not trusted:</b> {escape(', '.join(found.left_out))}: too many devices would be tampered with by its word alone.</p>"
        if found.left_out
        else ""
    )
    if not found.places:
        notes += "<p>No two origins are known to be two places, so place says nothing.</p>"
    doubted = (
        section(
            f"Devices that rest on the word of {', '.join(found.left_out)}, which is not trusted",
            f"<table><thead>{HEAD}</thead><tbody>{''.join(map(_row, found.doubted[:ROWS_MAX]))}</tbody></table>",
        )
        if found.doubted
        else ""
    )
    bands = "".join(
        f"<tr><td>{least:.2f} and more<td class=n>{share:.0%}<td class=n>{devices:,}<td class=n>{confirmed:,}<td class=n>{cleared:,}"
        for least, share, devices, confirmed, cleared in found.reliability
    )
    reliability = section(
        "What the score means",
        "<p class=soft>The score is the share of such devices that are tampered with: first as in made networks that "
        "nothing was fitted to, then as your own decisions about the same condition shift it, by 1 in log odds at most.</p><table><tr><th>Score, up to the line above<th class=n>Tampered with, in made networks"
        f"<th class=n>Devices here<th class=n>Confirmed by you<th class=n>Cleared by you{bands}</table>",
    )
    table = (
        f"<table><thead>{HEAD}</thead><tbody>{rows}</tbody></table>{more}" if findings else "<p>Nothing was found.</p>"
    )  # fmt: skip
    return _document(
        "Devices with a tampered identity",
        found,
        f"""
<div class=figures>{_figure(len(findings), "devices reported")}{_figure(sum(finding.score >= CERTAIN for finding in findings), "of them 0.95 and more")}{_figure(found.devices, "devices seen")}{_figure(found.subscribers, "subscribers")}{_figure(found.sightings, "checks")}</div>
{notes}<div class=charts>{"".join(charts)}</div>
{section("Devices, the likeliest first", table)}{doubted}{reliability}{wrong}""",
    )


def public_page(found: Judgement) -> str:
    """Render the page for a yearly report. It has no identifiers, places or days, and no counts below 10."""
    findings = found.findings
    by_condition = {label: FEW if count < BELOW else count for label, count in _by_condition(findings).items()}
    copies = _by_copies(findings)
    by_copies: dict[str, int | str] = {**copies, **hidden_rows(copies, len(findings))}
    figures = "".join(_figure(count, what) for count, what in (
        (len(findings), "devices with a tampered identity"), (found.devices, "devices seen"), (found.subscribers, "subscribers"), (found.sightings, "checks"),
    ))  # fmt: skip
    return _document(
        "Tampered device identities",
        found,
        f"""
<div class=figures>{figures}</div>
<div class=charts>{bars("What was found", "devices for which each condition holds", by_condition)}{bars("How many phones share an identity", "devices by their regular subscribers", by_copies)}</div>
<p class=soft>Counts below {BELOW} are not given, nor one from which such a count could be worked out. No device, subscriber or place is named.</p>""",
    )


def sheet(engine: Engine, found: Judgement, device: int, decisions: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Build the sheet of one device: all evidence down to single checks, for scripts and for the page.

    `engine` must still have the tables of the judgement.
    """
    finding = next((each for each in found.findings if each.device == device), None)
    return {
        "imei": key_text(device), "since": as_text(found.since), "until": as_text(found.until), "rules": RULES, "base_rate": PRIOR,
        "finding": finding.as_json() if finding else None,
        "says": [
            {"condition": name, "means": CONDITIONS[name], "log_odds": round(says, 2), "evidence": evidence}
            for name, says, evidence in engine.rows(f"SELECT name, says, evidence FROM marks WHERE device = {device} ORDER BY 2 DESC")
        ],
        "against": [*([finding.honest] if finding and finding.honest else []), *([] if found.places else ["no two origins are known to be two places, so place says nothing"])],
        "subscribers": [
            {"subscriber": who, "home": home, "checks": checks, "days": days, "first_seen": as_text(first), "last_seen": as_text(last)}
            for who, home, checks, days, first, last in engine.rows(f"""
                SELECT subscriber, home, checks, day_count, first_seen, last_seen FROM usage WHERE device = {device} ORDER BY 3 DESC, 1 LIMIT {SAMPLE}
            """)
        ],
        "order": [
            {"checks": [int(a), int(b)], "runs": int(runs), "expected": round(expected, 1), "deviation": round(deviation, 1)}
            for a, b, runs, expected, deviation in engine.rows(f"SELECT a, b, runs, expected, deviation FROM orders WHERE device = {device}")
        ],
        "too_soon": [
            {"time": as_text(time), "from": here, "to": there, "gap_s": round(gap)}
            for time, here, there, gap in engine.rows(f"""
                SELECT returns.time, here.origin, there.origin, returns.gap_s
                FROM returns JOIN located AS here ON returns.before_origin = here.number JOIN located AS there ON returns.origin = there.number
                WHERE returns.device = {device} AND returns.is_two = 1 ORDER BY returns.gap_s, 1 LIMIT {EXAMPLES}
            """)
        ],
        "checks": [
            {"time": as_text(time), "subscriber": who, "origin_host": origin, "peer": peer, "software_version": version}
            for time, who, origin, peer, version in engine.rows(f"""
                SELECT steps.time, members.subscriber, claims.origin, claims.peer, steps.version
                FROM steps JOIN members ON steps.device = members.device AND steps.subscriber = members.number JOIN claims ON steps.claim = claims.claim
                WHERE steps.device = {device} ORDER BY 1, 2 LIMIT {SAMPLE}
            """)
        ],
        "left_out": list(found.left_out), "decisions": [each for each in decisions if each["imei"][:14] == key_text(device)],
    }  # fmt: skip


def sheet_page(made: Mapping[str, Any]) -> str:
    """Render the sheet of one device as an HTML page."""
    finding = made["finding"]
    score = (
        f"<p><b>{finding['score']:.3f}</b>: {escape(finding['sure'])}. Of all devices {made['base_rate']:.1%} are tampered with before anything is seen.</p>"
        if finding
        else "<p>It is no finding.</p>"
    )
    parts = [
        (title, "".join(f"<th>{escape(name.replace('_', ' '))}" for name in rows[0]), "".join(f"<tr>{''.join(f'<td>{escape(str(value))}' for value in row.values())}" for row in rows))
        for title, name in SHEET for rows in [made[name]] if rows
    ]  # fmt: skip
    tables = "".join(section(title, f"<table><tr>{head}{body}</table>") for title, head, body in parts)
    against = "".join(f"<p>For an honest explanation: {escape(text)}</p>" for text in made["against"])
    notes = f"<p>Not trusted: {escape(', '.join(made['left_out']))}</p>" if made["left_out"] else ""
    return html_page(
        f"Device {made['imei']}",
        f"{made['since'][:10]} to {made['until'][:10]}, rules {made['rules']}",
        f"{score}{against}{notes}{tables}",
    )


def export_rows(
    findings: Iterable[Finding], layout: str, made: datetime, confirmed: Iterable[str] = (), *, kind: str
) -> Iterator[Sequence[str]]:
    """Yield the header and the rows of a data file with findings, for `eir publish`.

    `kind`: `pairs` for one row for each IMEI and IMSI of a copy of a confirmed device, `tracked` for one row for each finding, `devices` for
    one row for each confirmed device.

    `confirmed`: further devices, for which only an operator's decision exists. The reason is the condition that weighs
    most: a list has at most 255 reasons, so a reason must not include values of a device.
    """
    day = f"{made:%Y%m%d}"
    is_eir, has_imsi = layout == "eir", kind == "pairs"
    yield (
        (("imei", "imsi", "reason", "date") if has_imsi else ("imei", "reason", "date"))
        if is_eir
        else ("imei", "imsi", "msisdn", "block_date", "reasons")
    )
    rows: Iterator[tuple[str, str, str]] = (
        (finding.imei, imsi, (*finding.conditions, CONFIRMED)[0])
        for finding in findings
        if kind == "tracked" or finding.confirmed
        for imsi in (filter(is_imsi, finding.users) if has_imsi else ("",))
    )
    for imei, imsi, why in chain(rows, () if has_imsi else ((imei, "", CONFIRMED) for imei in confirmed)):
        reason = f"tampered: {why}"
        yield (
            ((imei, imsi, reason, day) if has_imsi else (imei, reason, day))
            if is_eir
            else (imei, imsi, "", day, reason)
        )


def is_imsi(subscriber: str) -> bool:
    """Return True if the recorded name of a subscriber is an IMSI, not a hash."""
    return subscriber.isdigit() and len(subscriber) in {14, 15}


def _by_condition(findings: Iterable[Finding]) -> dict[str, int]:
    counted = Counter(name for finding in findings for name in finding.conditions)
    return {CONDITIONS[name]: count for name, count in counted.most_common()}


def _by_copies(findings: Sequence[Finding]) -> dict[str, int]:
    return {label: sum(low <= max(finding.copies, 1) <= high for finding in findings) for low, high, label in BANDS}


def section(title: str, content: str) -> str:
    """Render a section of a page. A table that is wider than the screen can be scrolled with keys."""
    return f'<section tabindex=0 aria-label="{escape(title)}"><h2>{escape(title)}</h2>{content}</section>'


def _figure(count: int, label: str) -> str:
    text = FEW if 0 < count < BELOW and label.startswith("devices with") else f"{count:,}"
    return f"<div><b>{text}</b>{escape(label)}</div>"


def bars(title: str, caption: str, counts: Mapping[str, int | str]) -> str:
    """Render a bar chart as SVG with a text alternative. A hidden count, which is replaced by a text, has no bar."""
    numbers = {label: count if isinstance(count, int) else 0 for label, count in counts.items()}
    most = max(numbers.values(), default=0) or 1
    texts = {label: count_text(count) for label, count in counts.items()}
    drawn = []
    for number, (label, count) in enumerate(numbers.items()):
        top = number * (BAR_PX + GAP_PX)
        wide = count / most * (WIDTH_PX - LABEL_PX - 90)
        drawn.append(
            f'<text x="{LABEL_PX - 8}" y="{top + 14}" text-anchor="end">{escape(label if len(label) <= 48 else f"{label[:47]}…")}<title>{escape(label)}</title></text>'
            f'<rect class="bar" x="{LABEL_PX}" y="{top}" width="{wide:.1f}" height="{BAR_PX}" rx="2"/>'
            f'<text class="soft" x="{LABEL_PX + wide + 6:.1f}" y="{top + 14}">{escape(texts[label])}</text>'
        )
    high = max(len(counts), 1) * (BAR_PX + GAP_PX)
    read = "; ".join(f"{label}: {count}" for label, count in texts.items()) or "nothing"
    return f'<figure><h2>{escape(title)}</h2><svg viewBox="0 0 {WIDTH_PX} {high}" role="img" aria-label="{escape(f"{title}: {read}")}">{"".join(drawn)}</svg><figcaption>{escape(caption)}</figcaption></figure>'


def count_text(count: int | str) -> str:
    """Format a count of devices for a page. If the count is hidden, `count` is already a text, and is returned unchanged."""
    return count if isinstance(count, str) else f"{count:,}"


def _row(finding: Finding) -> str:
    return (
        f"<tr><td><code>{finding.imei}</code><td class=n><span{' class=certain' * (finding.score >= CERTAIN)}>{finding.score:.3f}</span><td class=n>{finding.subscribers:,}"
        f"<td><time>{finding.first_seen:%Y-%m-%d}</time><td><time>{finding.last_seen:%Y-%m-%d}</time><td>{escape(finding.evidence)}<td>{escape(finding.honest)}"
    )


def _document(title: str, found: Judgement, body: str) -> str:
    return html_page(title, f"{found.since:%d %B %Y} to {found.until:%d %B %Y}", body)


def html_page(title: str, time: str, body: str) -> str:
    """Render a whole HTML page. `time`: line below the title."""
    return f"""<!doctype html>
<html lang=en><head><meta charset=utf-8><meta name=viewport content="width=device-width,initial-scale=1"><meta name=referrer content=no-referrer>
<meta http-equiv=Content-Security-Policy content="default-src 'none'; style-src 'unsafe-inline'"><title>{escape(title)}</title><style>{STYLE}</style></head>
<body><main><h1>{escape(title)}</h1><p class=soft>{escape(time)}</p>{body}</main></body></html>
"""

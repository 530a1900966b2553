"""Web page for people, at / of the HTTP address: status of the node, peers, lists, checks, history and refused releases.

The page is one document without external resources. Its only script fetches the page again, and replaces the sections that
change. All text from the wire or from files is escaped, and its identifiers are shortened (`privacy`). The manager passes the
content (PageContent).
"""

import re
from base64 import b64encode
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from hashlib import sha256
from html import escape
from typing import Any, NamedTuple

from eir.checks.periods import AHEAD_DAYS
from eir.device import MCC_MNC_DIGITS, shorten, shorten_in_text
from eir.lists.log.change import Head
from eir.lists.log.journal import JournalEvent
from eir.lists.record.settings import FIRST_SEEN, SUBSCRIBERS
from eir.node.observe.alerts import TRAFFIC_MIN, PeerTraffic
from eir.node.observe.conditions import Trouble
from eir.node.observe.lately import MINUTES, Minute
from eir.node.observe.metrics import Snapshot
from eir.node.observe.status import NOT_LISTENING
from eir.wire.peers.counts import DURATION_BUCKETS_S
from eir.wire.web.http1 import HttpResponse

REFRESH_S = 30
ROWS_MAX, REFUSALS_MAX, EVENTS_SHOWN = 200, 10, 5
DETAIL_MAX = 200
"""Maximum number of characters of the text of an event."""
SILENT_S = 600
"""Seconds without a check after which a connected peer is silent."""
SILENT_SHOWN = 10
"""Maximum number of silent peers that the text above the table names."""
ROWS_SHOWN = 20
"""Number of visible rows of a table; further rows are folded."""
RUNBOOK = "/runbook"
"""Path of the page with the advice on each alert."""
HTML = "text/html; charset=utf-8"
STATUSES = ("whitelisted", "greylisted", "blacklisted", "unknown")
BAR_W, CHART_H = 10, 90
"""Width of a bar and height of a chart, in units of the SVG."""
FIRST = {
    "OK": "The node answers.", "WARNING": "The node answers, but has faults:", "CRITICAL": "The node has critical faults:",
}  # fmt: skip
STARTING = "The node is starting and does not answer yet:"

STYLE = """
:root{color-scheme:light dark;--page:#fbfbf9;--card:#fff;--ink:#1c1e21;--soft:#565c63;--line:#dcdfe3;--link:#1d5c9e;
--whitelisted:#2563a8;--greylisted:#a86a00;--blacklisted:#b3261e;--unknown:#6b4fa0}
@media (prefers-color-scheme:dark){:root{--page:#15171a;--card:#1e2125;--ink:#e8eaed;--soft:#a9b1ba;--line:#363b42;--link:#8fc0f2;
--whitelisted:#6ea8e6;--greylisted:#e0a94a;--blacklisted:#f08b78;--unknown:#b9a2ec}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
main{max-width:1100px;margin:0 auto;padding:20px 16px 48px}
h1{font-size:24px;line-height:1.25;margin:0 0 8px}
h2{font-size:17px;margin:0 0 10px}
section{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:14px 16px;margin:14px 0}
.soft,figcaption{color:var(--soft)}
ul{margin:0;padding-left:20px}
figure{margin:0}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(420px,100%),1fr));gap:20px;align-items:end}
svg{width:100%;height:96px;display:block;border:solid var(--line);border-width:1px 0}
path{fill:none;stroke:var(--line);vector-effect:non-scaling-stroke}
figcaption{font-size:15px}figcaption span{white-space:nowrap}
.top,.ticks{font-size:13px;color:var(--soft)}
.ticks{display:flex;justify-content:space-between}
.facts{display:flex;flex-wrap:wrap;gap:0 16px;font-size:14px}
.whitelisted{fill:var(--whitelisted)}.greylisted{fill:var(--greylisted)}.blacklisted{fill:var(--blacklisted)}.unknown{fill:var(--unknown)}
.key{display:inline-block;width:12px;height:12px;margin-right:4px;border:0}
table{border-collapse:collapse;width:100%;font-size:15px}
th{text-align:left;font-weight:600;color:var(--soft);white-space:nowrap}
td:first-child{min-width:6em}
th,td{padding:5px 12px 5px 0;border-bottom:1px solid var(--line);vertical-align:top}
form{display:flex;flex-wrap:wrap;gap:8px;align-items:end}
label{display:block}
input,button{font:inherit;padding:6px 10px;border:1px solid var(--soft);border-radius:6px;background:var(--page);color:var(--ink);max-width:100%}
summary{cursor:pointer;padding:6px 0;color:var(--link)}
.away{position:sticky;top:0;margin:0;padding:8px 16px;background:var(--blacklisted);color:var(--page);text-align:center}
pre{white-space:pre-wrap;margin:12px 0 0;font:14px/1.5 ui-monospace,monospace}
a{color:var(--link)}
@media (max-width:640px){thead{position:absolute;left:-9999px}tr{display:block;border-bottom:1px solid var(--line);padding:6px 0}
td{display:flex;gap:8px;border:0;padding:2px 0}td::before{content:attr(data-is);flex:0 0 7.5em;color:var(--soft)}}
"""
SCRIPT = """
const away=document.querySelector(".away");
let since;
setInterval(async()=>{
try{
const answer=await fetch("/",{cache:"no-store",signal:AbortSignal.timeout(PERIOD)});
if(!answer.ok)throw answer.status;
const now=new DOMParser().parseFromString(await answer.text(),"text/html");
for(const part of document.querySelectorAll(".live")){
const fresh=now.getElementById(part.id);
for(const folded of part.querySelectorAll("details[open]"))now.getElementById(folded.id)?.setAttribute("open","");
part.replaceWith(fresh);
}
document.title=now.title;
since=undefined;
away.hidden=true;
}catch{
since??=new Date().toISOString().slice(11,16);
away.textContent=`The node is not reached since ${since} UTC. This page shows what it was before.`;
away.hidden=false;
}
},PERIOD);
addEventListener("beforeprint",()=>{for(const folded of document.querySelectorAll("details"))folded.open=true});
""".replace("PERIOD", str(REFRESH_S * 1000))
POLICY = (
    f"default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; script-src 'sha256-{b64encode(sha256(SCRIPT.encode()).digest()).decode()}'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = (
    ("Content-Security-Policy", POLICY), ("Cache-Control", "no-store"), ("Referrer-Policy", "no-referrer"), ("X-Content-Type-Options", "nosniff"),
)  # fmt: skip


class DiskSpace(NamedTuple):
    """Space of a disk in bytes."""

    free: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PageContent:
    """Content of the web page for people: status, peers, lists, checks, history and refused releases of the node."""

    host: str
    """Origin-Host of the node."""
    status: Mapping[str, Any]
    """Document of `eir status`."""
    troubles: Mapping[str, Trouble]
    """Conditions of the status that hold, by text."""
    peers: Sequence[Mapping[str, Any]]
    """Rows of `eir peers`."""
    traffic: Mapping[str, PeerTraffic]
    """Traffic of the last minutes, by peer label."""
    lists: Mapping[str, Head]
    """Lists in force, and the record of first sightings."""
    changes: Mapping[str, JournalEvent]
    """Last event that changed each list, by list."""
    events: Sequence[JournalEvent]
    """Newest events of the history, the oldest first."""
    refusals: Sequence[JournalEvent]
    """Refused releases, the oldest first."""
    minutes: Sequence[Minute]
    """Minutes of the last hour."""
    percentiles: tuple[float | None, float | None]
    """Median and 99th percentile (s) of the durations of the last hour's checks, as in `Minute`."""
    ending: Mapping[str, int] | None = None
    """Number of periods of grace that end on a day, for each of the next days; None without a record of first sightings."""
    metrics: Snapshot
    """Metrics of the node."""
    store: str
    """Kind of the store, such as `sqlite`."""
    disk: DiskSpace | None
    """Space of the disk with the state folder; None if unknown."""
    imei: str = ""
    """Identifier that the client sent to check, or an empty text."""
    imsi: str = ""
    """IMSI that the client sent with it, or an empty text."""
    answer: str = ""
    """Output of `eir check` for this identifier and this IMSI."""
    full_identifiers: bool = False
    """True to show whole IMEIs and IMSIs (privacy.identifiers: full)."""
    now: datetime

    def shorten(self, text: str, *, subscribers: bool = False) -> str:
        """Shorten the identifiers in a text, unless whole identifiers are shown. `subscribers`: as for `shorten_in_text`."""
        return text if self.full_identifiers else shorten_in_text(text, subscribers=subscribers)


def page(shown: PageContent) -> HttpResponse:
    """Render the web page as an HTTP response."""
    status = shown.status
    first = STARTING if NOT_LISTENING in status["troubles"] else FIRST[status["state"]]
    troubles = "".join(_trouble(text, shown.troubles.get(text)) for text in status["troubles"])
    trouble_list = f"<ul>{troubles}</ul>" if troubles else ""
    node = f"{escape(shown.host)}, eir {escape(status['version'])}"
    head = f"""<h1>{escape(first)}</h1>{trouble_list}
<p class=soft>{node}, up for {_lasting(status["uptime_s"])}; {status["checks"]:,} checks since then</p>
<p class="soft facts">{_facts(shown)}</p>"""
    foot = f"""{shown.now:%Y-%m-%d %H:%M:%S} UTC. <a href="/metrics">Metrics</a>, <a href="/ready">readiness</a>, <a href="{RUNBOOK}">advice on alerts</a>. Times are UTC."""
    body = "\n".join(
        [
            f"<div class=live id=state>{head}</div>",
            _ask(shown),
            _section("hour", "Checks of the last hour", _charts(shown)),
            _section("lists", "Lists", _lists(shown)),
            _ending(shown),
            _section("peers", "Peers", _peers(shown)),
            _section("history", "Last entries of the history", _history(shown)),
            _section("refused", "Refused lately", _refused(shown)),
            f'<p class="soft live" id=foot>{foot}</p><script>{SCRIPT}</script>',
        ]
    )
    return _document(f"{status['state']}: {shown.host}", body)


def runbook(markdown: str) -> HttpResponse:
    """Render the web page with the runbook's advice on each alert.

    `markdown`: text of deploy/RUNBOOK.md, whose table "By alert" has the advice.
    """
    rows = re.findall(r"^\| (`Eir.+?) \| (.+) \|$", markdown, re.MULTILINE)
    body = "".join(f"<section><h2>{_inline(names)}</h2><p>{_inline(advice)}</p></section>" for names, advice in rows)
    return _document("Advice on alerts", f"<h1>Advice on alerts</h1>{body}")


def _inline(markdown: str) -> str:
    """Render a cell of a Markdown table as HTML: code, anchors, and the text of links."""
    text = re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", markdown)
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text, quote=False))
    return re.sub(r'&lt;a id="(\w+)"&gt;&lt;/a&gt;', r"<a id=\1></a>", text)


def _document(title: str, body: str) -> HttpResponse:
    return HttpResponse(200, HTML, f"""<!doctype html>
<html lang=en><head><meta charset=utf-8><meta name=viewport content="width=device-width,initial-scale=1"><title>{escape(title)}</title>
<style>{STYLE}</style></head><body><p class=away role=alert hidden></p><main>{body}</main></body></html>
""".encode(), HEADERS)  # fmt: skip


def _section(name: str, head: str, body: str) -> str:
    """Render a section of the page that the page's script refreshes."""
    return f"<section class=live id={name}><h2>{head}</h2>{body}</section>"


def _trouble(text: str, trouble: Trouble | None) -> str:
    """Render a warning of `eir status`, with the time since which it holds, and a link to the advice on its alert."""
    if trouble is None:
        return f"<li>{escape(text)}"
    alert = trouble.condition.alert
    link = f' <a href="{RUNBOOK}#{alert.lower()}">{alert}</a>' if alert else ""
    return f"<li>{escape(text)} <span class=soft>since {_at(trouble.since)}</span>{link}"


def _facts(shown: PageContent) -> str:
    """Render one line about the store, the disk, the records and the certificate."""
    is_up, record_bytes, expires = (
        next(iter(shown.metrics.get(name, {}).values()), None)
        for name in ("eir_store_up", "eir_sightings_bytes", "eir_tls_certificate_expires_timestamp_seconds")
    )
    disk = "unknown"
    if shown.disk is not None:
        disk = f"{_size(shown.disk.free)} free ({100 * shown.disk.free / shown.disk.total:.0f} %)"
    facts = {
        f"Store ({shown.store})": "answers" if is_up else "does not answer",
        "Disk": disk,
        "Record of checks": "off" if record_bytes is None else _size(record_bytes),
    }
    learned = [state for state in shown.lists.values() if state.kind == FIRST_SEEN]
    if learned:
        facts["First sightings"] = f"{learned[0].entries:,} devices"
    facts["Certificate"] = "none" if expires is None else f"expires {_at(expires)[:10]}"
    return " ".join(f"<span>{escape(name)}: {text}</span>" for name, text in facts.items())


def _ask(shown: PageContent) -> str:
    """Render the form for a check, and the answer. The fields of the form are empty, so that the page has no whole identifier."""
    answer = ""
    if shown.imei:
        text = shown.answer
        if not shown.full_identifiers:
            text = _without(text, shown.imsi, shorten(shown.imsi, MCC_MNC_DIGITS))
            text = _without(shown.shorten(text), shown.imei, shorten(shown.imei))
        answer = f"<pre>{escape(text)}</pre>"
    fields = "".join(
        f"<label>{label}<br><input name={name} autocomplete=off maxlength=40></label>"
        for label, name in (("IMEI, IMEISV or MEID", "imei required"), ("IMSI, if known", "imsi"))
    )
    return (
        "<section><h2>What would a device be answered?</h2>"
        f"<form action=/ method=post>{fields}<button>Check</button></form>{answer}</section>"
    )


def _without(text: str, identifier: str, short: str) -> str:
    """Replace an identifier in a text by its short form; an identifier whose short form is `…` alone identifies nothing and stays."""
    return text if short == "…" else text.replace(identifier, short)


def _charts(shown: PageContent) -> str:
    if not shown.minutes:
        return "<p>The first minute is not over yet.</p>"
    begin = shown.now - timedelta(minutes=MINUTES)
    ticks = [f"{begin + timedelta(minutes=after):%H:%M}" for after in range(0, MINUTES + 1, 15)]
    return f"<div class=charts>{_checks_chart(shown.minutes, ticks)}{_durations_chart(shown, ticks)}</div>"


def _checks_chart(minutes: Sequence[Minute], ticks: Sequence[str]) -> str:
    """Render the checks of each minute as one bar, with a part for each status."""
    total: Counter[str] = Counter()
    for minute in minutes:
        total.update(minute.checks)
    totals = {status: f"{total[status]:,} {status}" for status in [*STATUSES, *sorted(total)] if total[status]}
    most = max(sum(minute.checks.values()) for minute in minutes)
    bars = []
    for column, minute in enumerate(minutes, MINUTES - len(minutes)):
        top = float(CHART_H)
        for status in STATUSES:
            height = CHART_H * minute.checks.get(status, 0) / (most or 1)
            top -= height
            bars.append(_bar(status, column, top, height))
    keys = "".join(_key(status, text) for status, text in totals.items())
    label = f"Checks a minute. Sum of the hour: {', '.join(totals.values()) or 'none'}"
    caption = f"Checks a minute. Sum of the hour:<br>{keys or 'none'}"
    return _figure(bars, label=label, caption=caption, highest=f"{most:,}", ticks=ticks)


def _durations_chart(shown: PageContent, ticks: Sequence[str]) -> str:
    """Render a chart of check durations. Each minute has a bar for the 99th percentile, and in front of this bar one for the median."""
    minutes = shown.minutes
    longest = max((minute.p99_s for minute in minutes if minute.p99_s is not None), default=0.0)
    highest = min(longest, DURATION_BUCKETS_S[-1])
    bars = []
    for column, minute in enumerate(minutes, MINUTES - len(minutes)):
        for duration_s, colour in ((minute.p99_s, "greylisted"), (minute.median_s, "whitelisted")):
            height = CHART_H * min(duration_s, highest) / highest if duration_s else 0.0
            bars.append(_bar(colour, column, CHART_H - height, height))
    median_s, p99_s = shown.percentiles
    text = "No checks."
    if median_s is not None and p99_s is not None:
        text = f"Half of the checks took {_at_most(median_s)}, 99 of 100 {_at_most(p99_s)}."
    caption = f"{text}<br>{_key('whitelisted', 'half')}{_key('greylisted', '99 of 100')}"
    return _figure(bars, label=text, caption=caption, highest=_ms(highest), ticks=ticks)


def _at_most(seconds: float) -> str:
    """Format an upper bound of durations; infinity stands for a bound above the highest bound of the histogram."""
    highest = DURATION_BUCKETS_S[-1]
    return f"at most {_ms(seconds)}" if seconds <= highest else f"more than {_ms(highest)}"


def _bar(colour: str, column: int, top: float, height: float) -> str:
    """Render a bar of a chart; nothing for a bar of height 0. `colour`: status that determines the colour."""
    if not height:
        return ""
    return f'<rect class={colour} x={column * BAR_W} y="{top:.1f}" width={BAR_W - 1} height="{height:.1f}"/>'


def _figure(
    bars: Iterable[str], *, label: str, caption: str, highest: str, ticks: Sequence[str], columns: int = MINUTES
) -> str:
    """Render a chart. `label`: text for screen readers. `highest`: value at the top. `ticks`: times on the axis, at equal distances."""
    width = columns * BAR_W
    lines = "".join(f"M{width * each / (len(ticks) - 1):g} 0v{CHART_H}" for each in range(1, len(ticks) - 1))
    svg = f'<svg viewBox="0 0 {width} {CHART_H}" preserveAspectRatio=none role=img aria-label="{escape(label)}"><path d="{lines}"/>{"".join(bars)}</svg>'
    axis = "".join(f"<span>{tick}</span>" for tick in ticks)
    return f"<figure><figcaption>{caption}</figcaption><div class=top>{highest}</div>{svg}<div class=ticks>{axis}</div></figure>"


def _key(name: str, caption: str) -> str:
    return f'<span><svg class=key viewBox="0 0 12 12" aria-hidden=true><rect class={name} width=12 height=12 /></svg>{caption}</span> '


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:,g} ms"


def _size(count: float) -> str:
    """Format a number of bytes."""
    for unit, length in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= length:
            return f"{count / length:,.1f} {unit}"
    return f"{count:g} bytes"


def _table(name: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Render a table of texts in HTML. On a narrow screen each row becomes a card.

    Rows after the first ROWS_SHOWN are folded.
    """
    shown = rows[:ROWS_SHOWN]
    folded = rows[ROWS_SHOWN:]
    text = _plain_table(heads, shown)
    if folded:
        text += f"<details id={name}-more><summary>{len(folded)} more</summary>{_plain_table(heads, folded)}</details>"
    return text


def _plain_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th scope=col>{name}" for name in heads)
    body = "".join(f"<tr>{''.join(map(_cell, heads, row))}" for row in rows)
    return f"<table><thead><tr>{head}</thead><tbody>{body}</table>"


def _cell(head: str, text: str) -> str:
    return f'<td data-is="{head}"><span>{escape(text) or "-"}</span>'


def _peers(shown: PageContent) -> str:
    """Render the peers for the web page: first those without a connection or with an error, then silent peers."""
    if not shown.peers:
        return "<p>None is configured.</p>"

    def rank(peer: Mapping[str, Any]) -> int:
        if peer["state"] != "open" or peer["last_error"]:
            return 0
        return 1 if _is_silent(peer, shown.now) else 2

    silent = list(dict.fromkeys(str(peer["label"]) for peer in shown.peers if _is_silent(peer, shown.now)))
    names = ", ".join(silent[:SILENT_SHOWN])
    more = f" and {len(silent) - SILENT_SHOWN} more" if len(silent) > SILENT_SHOWN else ""
    text = f"<p>Silent for {SILENT_S // 60} min or longer: {escape(names)}{more}.</p>" if silent else ""
    rows = [_peer(peer, shown) for peer in sorted(shown.peers, key=rank)[:ROWS_MAX]]
    heads = ("Peer", "State", "Address", "Checks/s", "Errors", "Last seen", "Last error")
    note = f"<p class=soft>Checks/s and errors: average of the peer in the last {TRAFFIC_MIN} min.</p>"
    return text + _table("peers", heads, rows) + note


def _is_silent(peer: Mapping[str, Any], now: datetime) -> bool:
    """Return true if a peer is connected, and has sent no check for SILENT_S."""
    return peer["state"] == "open" and now.timestamp() - (peer["last_seen"] or 0) >= SILENT_S


def _peer(peer: Mapping[str, Any], shown: PageContent) -> Sequence[str]:
    traffic = shown.traffic.get(peer["label"], PeerTraffic(0.0, 0.0))
    state = f"{peer['protocol'] or ''} {peer['state']}".lstrip()
    return (
        str(peer["label"]),
        f"{state}, silent" if _is_silent(peer, shown.now) else state,
        str(peer["address"] or ""),
        f"{traffic.checks_per_s:,.1f}",
        f"{100 * traffic.error_share:.1f} %",
        _ago(shown.now, peer["last_seen"]),
        shown.shorten(str(peer["last_error"] or "")),
    )


def _lists(shown: PageContent) -> str:
    """Render the lists for the web page: first the lists that a warning names. The record of first sightings is left out."""
    lists = [name for name, state in shown.lists.items() if state.kind != FIRST_SEEN]
    if not lists:
        return "<p>None was ever loaded.</p>"
    affected = {subject for each in shown.troubles.values() for subject in each.subjects}
    troubled_first = sorted(lists, key=lambda name: name not in affected)
    rows = [_list(name, shown.lists[name], shown.changes.get(name)) for name in troubled_first]
    return _table("lists", ("List", "Serial", "Entries", "Issued", "Expires", "Signed by", "Changed"), rows)


def _list(name: str, state: Head, change: JournalEvent | None) -> Sequence[str]:
    principals = [signer.partition(" SHA256:")[0] for signer in state.signers]
    changed = _at(state.loaded_at)
    if change is not None:
        changed = f"{_at(change.time)} {change.what} by {change.who}"
    serial = str(state.serial or f"change {state.generation}")
    entries = f"{state.entries:,}"
    return name, serial, entries, _at(state.issued), _at(state.expires), ", ".join(principals), changed


def _ending(shown: PageContent) -> str:
    """Render a chart with a bar for each day: number of devices whose period of grace ends on this day.

    If the node records no first sightings, the function returns an empty element.
    """
    if shown.ending is None:
        return "<div class=live id=ending></div>"
    return _section("ending", "Periods of grace that end", _ends_by_day(shown.ending, shown.now.date()))


def _ends_by_day(ending: Mapping[str, int], today: date) -> str:
    caption = f"{sum(ending.values()):,} periods end in the next {AHEAD_DAYS} days"
    if not ending:
        return f"<p>{caption}.</p>"
    fullest = max(ending, key=lambda day: ending[day])
    most = ending[fullest]
    caption += f", most of them on {fullest}: {most:,}"
    bars = []
    for day, count in ending.items():
        height = max(CHART_H * count / most, 1.0)
        days_ahead = (date.fromisoformat(day) - today).days
        bars.append(_bar("greylisted", days_ahead, CHART_H - height, height))
    rows = [(day, f"{count:,}") for day, count in ending.items()]
    table = _plain_table(("Last day", "Devices"), rows)
    by_day = f"<details id=ending-days><summary>By day</summary>{table}</details>"
    ticks = [f"{today + timedelta(days=after):%d %b}" for after in range(0, AHEAD_DAYS + 1, AHEAD_DAYS // 3)]
    chart = _figure(bars, label=caption, caption=f"{caption}.", highest=f"{most:,}", ticks=ticks, columns=AHEAD_DAYS)
    return chart + by_day


def _history(shown: PageContent) -> str:
    rows = []
    for event in reversed(shown.events[-EVENTS_SHOWN:]):
        change = " ".join(str(each) for each in (event.what, event.list, event.serial) if each)
        rows.append((_at(event.time), change, event.who, _detail(event, shown)))
    return _table("history", ("Time", "Entry", "By", "Detail"), rows) if rows else "<p>None.</p>"


def _detail(event: JournalEvent, shown: PageContent) -> str:
    """Return the first line of an event's text, with shortened identifiers."""
    first_line, _, _ = event.detail.partition("\n")
    state = shown.lists.get(event.list or "")
    text = shown.shorten(first_line, subscribers=state is not None and state.kind == SUBSCRIBERS)
    return text if len(text) <= DETAIL_MAX else f"{text[:DETAIL_MAX]}…"


def _refused(shown: PageContent) -> str:
    rows = [
        (_at(event.time), f"release of {event.list or 'an unknown list'}", _detail(event, shown))
        for event in shown.refusals[-REFUSALS_MAX:]
    ]
    failed = [peer for peer in shown.peers if peer.get("last_error")]
    rows += [
        (_at(peer["last_error_at"]), f"peer {peer['label']}", shown.shorten(str(peer["last_error"])))
        for peer in failed[:REFUSALS_MAX]
    ]
    rows.sort(reverse=True)
    return _table("refused", ("Time", "What", "Why"), rows) if rows else "<p>Nothing.</p>"


def _at(time: str | float | None) -> str:
    """Format a time, given as ISO text or in Unix seconds."""
    if not time:
        return ""
    at = datetime.fromisoformat(time) if isinstance(time, str) else datetime.fromtimestamp(time, UTC)
    return f"{at:%Y-%m-%d %H:%M}"


def _ago(now: datetime, time: float | None) -> str:
    if not time:
        return ""
    seconds = max(int(now.timestamp() - time), 0)
    return f"{_lasting(seconds)} ago"


def _lasting(seconds: int) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"

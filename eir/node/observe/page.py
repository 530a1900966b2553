"""Web page for people, at / of the HTTP address: status of the node, peers, lists, checks and refused releases.

The page is one document without external resources. Its only script fetches the page again, and replaces the sections that
change. All text from the wire or from files is escaped. The supervisor passes the content (PageContent).
"""

import re
from base64 import b64encode
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from hashlib import sha256
from html import escape
from typing import Any

from eir.checks.periods import AHEAD_DAYS
from eir.lists.record.store import Event, ListState
from eir.node.observe.alerts import alert_of
from eir.node.observe.lately import MINUTES, Minute
from eir.node.observe.status import NOT_LISTENING
from eir.wire.web.http1 import HttpResponse

REFRESH_S = 30
ROWS_MAX, REFUSALS_MAX = 200, 10
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
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(420px,100%),1fr));gap:20px}
svg{width:100%;height:auto;display:block;border-bottom:1px solid var(--line)}
.whitelisted{fill:var(--whitelisted)}.greylisted{fill:var(--greylisted)}.blacklisted{fill:var(--blacklisted)}.unknown{fill:var(--unknown)}
.key{display:inline-block;width:12px;height:12px;margin-right:4px}
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


@dataclass(frozen=True, slots=True, kw_only=True)
class PageContent:
    """Content of the web page for people: status, peers, lists, checks and refused releases of the node."""

    host: str
    """Origin-Host of the node."""
    status: Mapping[str, Any]
    """Document of `eir status`."""
    peers: Sequence[Mapping[str, Any]]
    """Rows of `eir peers`."""
    lists: Mapping[str, ListState]
    """Lists in force."""
    changes: Mapping[str, Event]
    """Last event that changed each list, by list."""
    refusals: Sequence[Event]
    """Refused releases, the oldest first."""
    minutes: Sequence[Minute]
    """Minutes of the last hour."""
    ending: Mapping[str, int] | None = None
    """Number of periods of grace that end on a day, for each of the next days; None without a record of first sightings."""
    asked: str = ""
    """Identifier that the client sent to check, or an empty text."""
    answer: str = ""
    """Output of `eir check` for this identifier."""
    now: datetime


def page(shown: PageContent) -> HttpResponse:
    """Render the web page as an HTTP response."""
    status = shown.status
    first = STARTING if NOT_LISTENING in status["troubles"] else FIRST[status["state"]]
    troubles = "".join(map(_trouble, status["troubles"]))
    trouble_list = f"<ul>{troubles}</ul>" if troubles else ""
    node = f"{escape(shown.host)}, eir {escape(status['version'])}"
    head = f"""<h1>{escape(first)}</h1>{trouble_list}
<p class=soft>{node}, up for {_lasting(status["uptime_s"])}; {status["checks"]:,} checks since then</p>"""
    foot = f"""{shown.now:%Y-%m-%d %H:%M:%S} UTC. <a href="/metrics">Metrics</a>, <a href="/ready">readiness</a>, <a href="{RUNBOOK}">advice on alerts</a>. Times are UTC."""
    body = "\n".join(
        [
            f"<div class=live id=state>{head}</div>",
            _ask(shown),
            _section("hour", "Checks of the last hour", _charts(shown.minutes)),
            _section("lists", "Lists", _lists(shown)),
            _ending(shown),
            _section("peers", "Peers", _peers(shown)),
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


def _trouble(text: str) -> str:
    """Render a warning of `eir status`, with a link to the advice on its alert."""
    alert = alert_of(text)
    link = f' <a href="{RUNBOOK}#{alert.lower()}">{alert}</a>' if alert else ""
    return f"<li>{escape(text)}{link}"


def _ask(shown: PageContent) -> str:
    answer = f"<pre>{escape(shown.answer)}</pre>" if shown.asked else ""
    return (
        "<section><h2>What would a device be answered?</h2><form action=/ method=post><label>IMEI, IMEISV or MEID<br>"
        f'<input name=imei inputmode=text autocomplete=off maxlength=40 value="{escape(shown.asked)}"></label><button>Check</button></form>{answer}</section>'
    )


def _charts(minutes: Sequence[Minute]) -> str:
    if not minutes:
        return "<p>The first minute is not over yet.</p>"
    return f"<div class=charts>{_checks_chart(minutes)}{_durations_chart(minutes)}</div>"


def _checks_chart(minutes: Sequence[Minute]) -> str:
    """Render the checks of each minute as one bar, with a part for each status."""
    total: Counter[str] = Counter()
    for minute in minutes:
        total.update(minute.checks)
    statuses = [*STATUSES, *sorted(total.keys() - {*STATUSES})]
    totals = ", ".join(f"{total[status]:,} {status}" for status in statuses if total[status]) or "none"
    most = max(sum(minute.checks.values()) for minute in minutes)
    bars = []
    for column, minute in enumerate(minutes, MINUTES - len(minutes)):
        top = float(CHART_H)
        for status in STATUSES:
            height = CHART_H * minute.checks.get(status, 0) / (most or 1)
            top -= height
            bars.append(_bar(status, column, top, height))
    keys = "".join(_key(status, status) for status in STATUSES if total[status])
    return _figure(f"Checks a minute: {totals}", bars, f"{totals}; {most or 1:,} in the busiest minute. {keys}")


def _durations_chart(minutes: Sequence[Minute]) -> str:
    """Render a chart of check durations. Each minute has a bar for the 99th percentile, and in front of this bar one for the median."""
    longest = max((minute.p99_s for minute in minutes if minute.p99_s is not None), default=0.0)
    bars = []
    for column, minute in enumerate(minutes, MINUTES - len(minutes)):
        for duration_s, colour in ((minute.p99_s, "greylisted"), (minute.median_s, "whitelisted")):
            height = CHART_H * duration_s / longest if duration_s and longest else 0.0
            bars.append(_bar(colour, column, CHART_H - height, height))
    median_key = _key("whitelisted", "")
    percentile_key = _key("greylisted", "")
    caption = f"The most that half of a minute's checks took {median_key}and 99 of 100 {percentile_key}: {_ms(longest)} in the slowest minute."
    return _figure(f"Time that checks took, {_ms(longest)} at most", bars, caption)


def _bar(colour: str, column: int, top: float, height: float) -> str:
    """Render a bar of a chart; nothing for a bar of height 0. `colour`: status that determines the colour."""
    if not height:
        return ""
    return f'<rect class={colour} x={column * BAR_W} y="{top:.1f}" width={BAR_W - 1} height="{height:.1f}"/>'


def _figure(label: str, bars: Iterable[str], caption: str, columns: int = MINUTES) -> str:
    """Render a chart. `label`: text for screen readers."""
    svg = f'<svg viewBox="0 0 {columns * BAR_W} {CHART_H}" role=img aria-label="{escape(label)}">{"".join(bars)}</svg>'
    return f"<figure>{svg}<figcaption>{caption}</figcaption></figure>"


def _key(name: str, caption: str) -> str:
    return f'<span><svg class=key viewBox="0 0 12 12" aria-hidden=true style="width:12px;display:inline-block;border:0"><rect class={name} width=12 height=12 /></svg>{caption}</span> '


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms"


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
    """Render the peers for the web page: first those without a connection or with an error."""
    if not shown.peers:
        return "<p>None is configured.</p>"
    troubled_first = sorted(shown.peers, key=lambda peer: peer["state"] == "open" and not peer["last_error"])
    rows = [_peer(peer, shown.now) for peer in troubled_first[:ROWS_MAX]]
    return _table("peers", ("Peer", "State", "Address", "Requests", "Last seen", "What is wrong"), rows)


def _peer(peer: Mapping[str, Any], now: datetime) -> Sequence[str]:
    return (
        str(peer["label"]),
        f"{peer['protocol'] or ''} {peer['state']}".lstrip(),
        str(peer["address"] or ""),
        f"{peer['requests']:,}",
        _ago(now, peer["last_seen"]),
        str(peer["last_error"] or ""),
    )


def _lists(shown: PageContent) -> str:
    """Render the lists for the web page: first the lists that a warning names."""
    if not shown.lists:
        return "<p>None was ever loaded.</p>"
    troubles = "\n".join(shown.status["troubles"])
    troubled_first = sorted(shown.lists, key=lambda name: f"list {name} " not in troubles)
    rows = [_list(name, shown.lists[name], shown.changes.get(name)) for name in troubled_first]
    return _table("lists", ("List", "Serial", "Entries", "Issued", "Expires", "Signed by", "Changed"), rows)


def _list(name: str, state: ListState, change: Event | None) -> Sequence[str]:
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
    return _figure(caption, bars, f"{caption}.", AHEAD_DAYS) + by_day


def _refused(shown: PageContent) -> str:
    rows = []
    for event in shown.refusals[-REFUSALS_MAX:]:
        first_line, _, _ = event.detail.partition("\n")
        rows.append((_at(event.time), f"release of {event.list or 'an unknown list'}", first_line))
    failed = [peer for peer in shown.peers if peer.get("last_error")]
    rows += [
        (_at(peer["last_error_at"]), f"peer {peer['label']}", str(peer["last_error"])) for peer in failed[:REFUSALS_MAX]
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

"""Page for people, at / of the HTTP address: status of the node, peers, lists, checks and refused releases.

One document without external resources; its only script reloads it. All text from the wire or from files is escaped. The
supervisor passes the content (PageContent).
"""

from base64 import b64encode
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from html import escape
from typing import Any

from eir.lists.record.store import Event, ListState
from eir.node.observe.alerts import alert_of
from eir.node.observe.lately import MINUTES, Minute
from eir.wire.web.http1 import HttpResponse

REFRESH_S = 30
ROWS_MAX, REFUSALS_MAX = 200, 10
HTML = "text/html; charset=utf-8"
STATUSES = ("whitelisted", "greylisted", "blacklisted", "unknown")
BAR_W, HIGH = 10, 90
FIRST = {
    "OK": "The node answers.", "WARNING": "The node answers, and someone should look:", "CRITICAL": "The node is not ready:",
}  # fmt: skip

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
pre{white-space:pre-wrap;margin:12px 0 0;font:14px/1.5 ui-monospace,monospace}
a{color:var(--link)}
@media (max-width:640px){thead{position:absolute;left:-9999px}tr{display:block;border-bottom:1px solid var(--line);padding:6px 0}
td{display:flex;gap:8px;border:0;padding:2px 0}td::before{content:attr(data-is);flex:0 0 7.5em;color:var(--soft)}}
"""
SCRIPT = f'setTimeout(()=>{{if(!document.querySelector("input").value)location.replace("/")}},{REFRESH_S * 1000})'
POLICY = (
    f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{b64encode(sha256(SCRIPT.encode()).digest()).decode()}'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = (
    ("Content-Security-Policy", POLICY), ("Cache-Control", "no-store"), ("Referrer-Policy", "no-referrer"), ("X-Content-Type-Options", "nosniff"),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class PageContent:
    """Content of the page."""

    host: str
    """Name of the host."""
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
    asked: str = ""
    """Identifier in the form of the request; empty: none."""
    answer: str = ""
    """Output of `eir check` for this identifier."""
    now: datetime


def page(shown: PageContent) -> HttpResponse:
    """Render the page."""
    status = shown.status
    body = f"""<h1>{escape(FIRST[status["state"]])}</h1>{_troubles(status["troubles"])}
<p class=soft>{escape(shown.host)}, eir {escape(status["version"])}, up for {_lasting(status["uptime_s"])}; {status["checks"]:,} checks since then</p>
{_ask(shown)}
<section><h2>Checks of the last hour</h2>{_charts(shown.minutes)}</section>
<section><h2>Peers</h2>{_peers(shown)}</section>
<section><h2>Lists</h2>{_lists(shown)}</section>
<section><h2>Refused lately</h2>{_refused(shown)}</section>
<p class=soft>{shown.now:%Y-%m-%d %H:%M:%S} UTC. <a href="/metrics">Metrics</a>, <a href="/ready">readiness</a>. Times are UTC. Advice: deploy/RUNBOOK.md, "By alert".</p>"""
    return HttpResponse(200, HTML, f"""<!doctype html>
<html lang=en><head><meta charset=utf-8><meta name=viewport content="width=device-width,initial-scale=1"><title>{escape(status['state'])}: {escape(shown.host)}</title>
<style>{STYLE}</style></head><body><main>{body}</main><script>{SCRIPT}</script></body></html>
""".encode(), HEADERS)  # fmt: skip


def _troubles(troubles: Iterable[str]) -> str:
    def item(trouble: str) -> str:
        alert = alert_of(trouble)
        return f"<li>{escape(trouble)}{f' <span class=soft>({alert})</span>' if alert else ''}"

    items = "".join(map(item, troubles))
    return f"<ul>{items}</ul>" if items else ""


def _ask(shown: PageContent) -> str:
    answer = f"<pre>{escape(shown.answer)}</pre>" if shown.asked else ""
    return (
        "<section><h2>What would a device be answered?</h2><form action=/ method=post><label>IMEI, IMEISV or MEID<br>"
        f'<input name=imei inputmode=text autocomplete=off maxlength=40 value="{escape(shown.asked)}"></label><button>Check</button></form>{answer}</section>'
    )


def _charts(minutes: Sequence[Minute]) -> str:
    if not minutes:
        return "<p>The first minute is not over yet.</p>"
    total: Counter[str] = Counter()
    for minute in minutes:
        total.update(minute.checks)
    totals = (
        ", ".join(f"{total[name]:,} {name}" for name in (*STATUSES, *sorted(total.keys() - {*STATUSES})) if total[name])
        or "none"
    )
    most = max(sum(minute.checks.values()) for minute in minutes) or 1
    bars, slow = [], []
    longest = max((minute.p99_s for minute in minutes if minute.p99_s is not None), default=0.0)
    for at, minute in enumerate(minutes, MINUTES - len(minutes)):
        top = float(HIGH)
        for name in STATUSES:
            high = HIGH * minute.checks.get(name, 0) / most
            top -= high
            bars.append(
                f'<rect class={name} x={at * BAR_W} y="{top:.1f}" width={BAR_W - 1} height="{high:.1f}"/>'
                if high
                else ""
            )
        for share, name in ((minute.p99_s, "greylisted"), (minute.median_s, "whitelisted")):
            high = HIGH * share / longest if share and longest else 0.0
            slow.append(
                f'<rect class={name} x={at * BAR_W} y="{HIGH - high:.1f}" width={BAR_W - 1} height="{high:.1f}"/>'
                if high
                else ""
            )
    keys = "".join(_key(name, name) for name in STATUSES if total[name])
    times = f"The most that half of a minute's checks took {_key('whitelisted', '')}and 99 of 100 {_key('greylisted', '')}: {_ms(longest)} in the slowest minute."
    return (
        f"<div class=charts>{_figure(f'Checks a minute: {totals}', bars, f'{totals}; {most:,} in the busiest minute. {keys}')}"
        f"{_figure(f'Time that checks took, {_ms(longest)} at most', slow, times)}</div>"
    )


def _figure(read: str, drawn: Iterable[str], caption: str) -> str:
    return f'<figure><svg viewBox="0 0 {MINUTES * BAR_W} {HIGH}" role=img aria-label="{escape(read)}">{"".join(drawn)}</svg><figcaption>{caption}</figcaption></figure>'


def _key(name: str, caption: str) -> str:
    return f'<span><svg class=key viewBox="0 0 12 12" aria-hidden=true style="width:12px;display:inline-block;border:0"><rect class={name} width=12 height=12 /></svg>{caption}</span> '


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Render a table of texts; on a narrow screen each row becomes a card."""
    body = "".join(
        "<tr>"
        + "".join(
            f'<td data-is="{head}"><span>{escape(cell) or "-"}</span>' for head, cell in zip(heads, row, strict=True)
        )
        for row in rows
    )
    return f"<table><thead><tr>{''.join(f'<th scope=col>{head}' for head in heads)}</thead><tbody>{body}</table>"


def _peers(shown: PageContent) -> str:
    rows = [
        (str(each["label"]), f"{each['protocol'] or ''} {each['state']}".lstrip(), str(each["address"] or ""), f"{each['requests']:,}", _ago(shown.now, each["last_seen"]), str(each["last_error"] or ""))
        for each in shown.peers[:ROWS_MAX]
    ]  # fmt: skip
    return (
        _table(("Peer", "State", "Address", "Requests", "Last seen", "What is wrong"), rows)
        if rows
        else "<p>None is configured.</p>"
    )


def _lists(shown: PageContent) -> str:
    rows = []
    for name, state in shown.lists.items():
        change = shown.changes.get(name)
        changed = f"{_at(change.time)} {change.what} by {change.who}" if change is not None else _at(state.loaded_at)
        signers = ", ".join(signer.partition(" SHA256:")[0] for signer in state.signers)
        rows.append(
            (
                name,
                str(state.serial or f"change {state.generation}"),
                f"{state.entries:,}",
                _at(state.issued),
                _at(state.expires),
                signers,
                changed,
            )
        )
    return (
        _table(("List", "Serial", "Entries", "Issued", "Expires", "Signed by", "Changed"), rows)
        if rows
        else "<p>None was ever loaded.</p>"
    )


def _refused(shown: PageContent) -> str:
    events = [
        (_at(event.time), f"release of {event.list or 'an unknown list'}", event.detail.partition("\n")[0])
        for event in reversed(shown.refusals[-REFUSALS_MAX:])
    ]
    peers = [
        (_at(each["last_error_at"]), f"peer {each['label']}", str(each["last_error"]))
        for each in shown.peers
        if each.get("last_error")
    ][:REFUSALS_MAX]
    rows = sorted([*events, *peers], reverse=True)
    return _table(("Time", "What", "Why"), rows) if rows else "<p>Nothing.</p>"


def _at(time: str | float | None) -> str:
    if not time:
        return ""
    return (
        f"{datetime.fromisoformat(time) if isinstance(time, str) else datetime.fromtimestamp(time, UTC):%Y-%m-%d %H:%M}"
    )


def _ago(now: datetime, time: float | None) -> str:
    return f"{_lasting(max(int(now.timestamp() - time), 0))} ago" if time else ""


def _lasting(seconds: int) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"

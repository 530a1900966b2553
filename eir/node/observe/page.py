"""Web page for people, at / of the HTTP address: status of the node, peers, lists, checks, history and refused releases.

The page is one document without external resources; its template is in the folder `pages`. Its only script fetches the page again, and replaces the sections that
change. All text from the wire or from files is escaped, and its identifiers are shortened (`privacy`). The manager passes the
content (PageContent).
"""

import re
from base64 import b64encode
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cache
from hashlib import sha256
from html import escape
from pathlib import Path
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

SCRIPT = (
    Path(__file__).with_name("pages").joinpath("refresh.js").read_text("utf-8").replace("PERIOD", str(REFRESH_S * 1000))
)
"""The page's only script."""
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


class Bar(NamedTuple):
    """Bar of a chart, in units of the SVG."""

    colour: str
    """Status that determines the colour."""
    x: int
    top: float
    height: float


class Chart(NamedTuple):
    """Chart with bars over an axis of times."""

    label: str
    """Text for screen readers."""
    text: str
    keys: Sequence[tuple[str, str]] | None
    """Colour and text of each key below the text; None for a chart without keys."""
    highest: str
    """Value at the top."""
    ticks: Sequence[str]
    """Times on the axis, at equal distances."""
    bars: Sequence[Bar]
    width: int = MINUTES * BAR_W


class PeriodEnds(NamedTuple):
    """Ends of periods of grace by day."""

    caption: str
    chart: Chart | None = None
    rows: Sequence[tuple[str, str]] = ()


@cache
def _templates() -> Any:
    from eir.templates import page_templates  # noqa: PLC0415 - 0.1 s, which the start of a node does not spend

    return page_templates(__file__)


def _render(name: str, **values: Any) -> HttpResponse:
    text = _templates().get_template(f"pages/{name}.html").render(**values)
    return HttpResponse(200, HTML, text.encode(), HEADERS)


def page(shown: PageContent) -> HttpResponse:
    """Render the web page as an HTTP response."""
    status = shown.status
    first = STARTING if NOT_LISTENING in status["troubles"] else FIRST[status["state"]]
    return _render(
        "status", title=f"{status['state']}: {shown.host}", first=first, troubles=[_trouble(text, shown.troubles.get(text)) for text in status["troubles"]],
        host=shown.host, version=status["version"], up=_lasting(status["uptime_s"]), checks=f"{status['checks']:,}", facts=_facts(shown),
        answer=_answer(shown), charts=_charts(shown), lists=_lists(shown), ends=_ends(shown), peers=_peers(shown), silent=_silent(shown),
        history=_history(shown), refused=_refused(shown), now=f"{shown.now:%Y-%m-%d %H:%M:%S}", script=SCRIPT, runbook=RUNBOOK,
        silent_min=SILENT_S // 60, traffic_min=TRAFFIC_MIN, rows_shown=ROWS_SHOWN, chart_h=CHART_H, bar_w=BAR_W,
    )  # fmt: skip


def runbook(markdown: str) -> HttpResponse:
    """Render the web page with the runbook's advice on each alert.

    `markdown`: text of deploy/RUNBOOK.md, whose table "By alert" has the advice.
    """
    rows = re.findall(r"^\| (`Eir.+?) \| (.+) \|$", markdown, re.MULTILINE)
    return _render(
        "runbook", title="Advice on alerts", rows=[(_inline(names), _inline(advice)) for names, advice in rows]
    )


def _inline(markdown: str) -> Any:
    """Render a cell of a Markdown table as HTML: code, anchors, and the text of links."""
    from markupsafe import Markup  # noqa: PLC0415 - as jinja2

    text = re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", markdown)
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text, quote=False))
    return Markup(re.sub(r'&lt;a id="(\w+)"&gt;&lt;/a&gt;', r"<a id=\1></a>", text))  # noqa: S704 - escaped above


def _trouble(text: str, trouble: Trouble | None) -> tuple[str, str, str]:
    """Return a warning of `eir status`, the time since which it holds, and the name of its alert."""
    return (text, "", "") if trouble is None else (text, _at(trouble.since), trouble.condition.alert or "")


def _facts(shown: PageContent) -> Mapping[str, str]:
    """Return texts about the store, the disk, the records and the certificate."""
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
    return facts


def _answer(shown: PageContent) -> str:
    """Return the answer to the form for a check, without whole identifiers. Its fields are always empty for the same reason."""
    if not shown.imei or shown.full_identifiers:
        return shown.answer
    text = _without(shown.answer, shown.imsi, shorten(shown.imsi, MCC_MNC_DIGITS))
    return _without(shown.shorten(text), shown.imei, shorten(shown.imei))


def _without(text: str, identifier: str, short: str) -> str:
    """Replace an identifier in a text by its short form; an identifier whose short form is `…` alone identifies nothing and stays."""
    return text if short == "…" else text.replace(identifier, short)


def _charts(shown: PageContent) -> Sequence[Chart]:
    if not shown.minutes:
        return ()
    begin = shown.now - timedelta(minutes=MINUTES)
    ticks = [f"{begin + timedelta(minutes=after):%H:%M}" for after in range(0, MINUTES + 1, 15)]
    return _checks_chart(shown.minutes, ticks), _durations_chart(shown, ticks)


def _checks_chart(minutes: Sequence[Minute], ticks: Sequence[str]) -> Chart:
    """Return a chart with the checks of each minute as one bar, with a part for each status."""
    total: Counter[str] = Counter()
    for minute in minutes:
        total.update(minute.checks)
    totals = {status: f"{total[status]:,} {status}" for status in [*STATUSES, *sorted(total)] if total[status]}
    most = max(sum(minute.checks.values()) for minute in minutes)
    bars: list[Bar] = []
    for column, minute in enumerate(minutes, MINUTES - len(minutes)):
        top = float(CHART_H)
        for status in STATUSES:
            height = CHART_H * minute.checks.get(status, 0) / (most or 1)
            top -= height
            bars += _bar(status, column, top, height)
    text = "Checks a minute. Sum of the hour:"
    return Chart(f"{text} {', '.join(totals.values()) or 'none'}", text, [*totals.items()], f"{most:,}", ticks, bars)


def _durations_chart(shown: PageContent, ticks: Sequence[str]) -> Chart:
    """Return a chart of check durations. Each minute has a bar for the 99th percentile, and in front of this bar one for the median."""
    minutes = shown.minutes
    longest = max((minute.p99_s for minute in minutes if minute.p99_s is not None), default=0.0)
    highest = min(longest, DURATION_BUCKETS_S[-1])
    bars: list[Bar] = []
    for column, minute in enumerate(minutes, MINUTES - len(minutes)):
        for duration_s, colour in ((minute.p99_s, "greylisted"), (minute.median_s, "whitelisted")):
            height = CHART_H * min(duration_s, highest) / highest if duration_s else 0.0
            bars += _bar(colour, column, CHART_H - height, height)
    median_s, p99_s = shown.percentiles
    text = "No checks."
    if median_s is not None and p99_s is not None:
        text = f"Half of the checks took {_at_most(median_s)}, 99 of 100 {_at_most(p99_s)}."
    return Chart(text, text, [("whitelisted", "half"), ("greylisted", "99 of 100")], _ms(highest), ticks, bars)


def _at_most(seconds: float) -> str:
    """Format an upper bound of durations; infinity stands for a bound above the highest bound of the histogram."""
    highest = DURATION_BUCKETS_S[-1]
    return f"at most {_ms(seconds)}" if seconds <= highest else f"more than {_ms(highest)}"


def _bar(colour: str, column: int, top: float, height: float) -> Sequence[Bar]:
    """Return a bar of a chart; none for a bar of height 0."""
    return [Bar(colour, column * BAR_W, top, height)] if height else []


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:,g} ms"


def _size(count: float) -> str:
    """Format a number of bytes."""
    for unit, length in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= length:
            return f"{count / length:,.1f} {unit}"
    return f"{count:g} bytes"


def _peers(shown: PageContent) -> Sequence[Sequence[str]]:
    """Return the rows of peers: first those without a connection or with an error, then silent peers."""

    def rank(peer: Mapping[str, Any]) -> int:
        if peer["state"] != "open" or peer["last_error"]:
            return 0
        return 1 if _is_silent(peer, shown.now) else 2

    return [_peer(peer, shown) for peer in sorted(shown.peers, key=rank)[:ROWS_MAX]]


def _silent(shown: PageContent) -> str:
    """Return the names of silent peers as a text."""
    silent = list(dict.fromkeys(str(peer["label"]) for peer in shown.peers if _is_silent(peer, shown.now)))
    more = f" and {len(silent) - SILENT_SHOWN} more" if len(silent) > SILENT_SHOWN else ""
    return ", ".join(silent[:SILENT_SHOWN]) + more


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


def _lists(shown: PageContent) -> Sequence[Sequence[str]]:
    """Return the rows of lists: first the lists that a warning names. The record of first sightings is left out."""
    lists = [name for name, state in shown.lists.items() if state.kind != FIRST_SEEN]
    affected = {subject for each in shown.troubles.values() for subject in each.subjects}
    troubled_first = sorted(lists, key=lambda name: name not in affected)
    return [_list(name, shown.lists[name], shown.changes.get(name)) for name in troubled_first]


def _list(name: str, state: Head, change: JournalEvent | None) -> Sequence[str]:
    principals = [signer.partition(" SHA256:")[0] for signer in state.signers]
    changed = _at(state.loaded_at)
    if change is not None:
        changed = f"{_at(change.time)} {change.what} by {change.who}"
    serial = str(state.serial or f"change {state.generation}")
    entries = f"{state.entries:,}"
    return name, serial, entries, _at(state.issued), _at(state.expires), ", ".join(principals), changed


def _ends(shown: PageContent) -> PeriodEnds | None:
    """Return a chart with a bar for each day: number of devices whose period of grace ends on this day. None without first sightings."""
    if shown.ending is None:
        return None
    ending, today = shown.ending, shown.now.date()
    caption = f"{sum(ending.values()):,} periods end in the next {AHEAD_DAYS} days"
    if not ending:
        return PeriodEnds(caption)
    fullest = max(ending, key=lambda day: ending[day])
    most = ending[fullest]
    caption += f", most of them on {fullest}: {most:,}"
    bars: list[Bar] = []
    for day, count in ending.items():
        height = max(CHART_H * count / most, 1.0)
        bars += _bar("greylisted", (date.fromisoformat(day) - today).days, CHART_H - height, height)
    ticks = [f"{today + timedelta(days=after):%d %b}" for after in range(0, AHEAD_DAYS + 1, AHEAD_DAYS // 3)]
    chart = Chart(caption, f"{caption}.", None, f"{most:,}", ticks, bars, AHEAD_DAYS * BAR_W)
    return PeriodEnds(caption, chart, [(day, f"{count:,}") for day, count in ending.items()])


def _history(shown: PageContent) -> Sequence[Sequence[str]]:
    rows = []
    for event in reversed(shown.events[-EVENTS_SHOWN:]):
        change = " ".join(str(each) for each in (event.what, event.list, event.serial) if each)
        rows.append((_at(event.time), change, event.who, _detail(event, shown)))
    return rows


def _detail(event: JournalEvent, shown: PageContent) -> str:
    """Return the first line of an event's text, with shortened identifiers."""
    first_line, _, _ = event.detail.partition("\n")
    state = shown.lists.get(event.list or "")
    text = shown.shorten(first_line, subscribers=state is not None and state.kind == SUBSCRIBERS)
    return text if len(text) <= DETAIL_MAX else f"{text[:DETAIL_MAX]}…"


def _refused(shown: PageContent) -> Sequence[Sequence[str]]:
    rows = [
        (_at(event.time), f"release of {event.list or 'an unknown list'}", _detail(event, shown))
        for event in shown.refusals[-REFUSALS_MAX:]
    ]
    failed = [peer for peer in shown.peers if peer.get("last_error")]
    rows += [
        (_at(peer["last_error_at"]), f"peer {peer['label']}", shown.shorten(str(peer["last_error"])))
        for peer in failed[:REFUSALS_MAX]
    ]
    return sorted(rows, reverse=True)


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

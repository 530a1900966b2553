"""Status of a node: its readiness, the document of `eir status`, and log lines about changes.

The manager receives the report of the answering process. NodeHealth evaluates it, with the warnings of the manager's parts. The
module does no I/O, and its clock is an argument.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from eir import __version__
from eir.errors import Report
from eir.interfaces.s13.lane import COMPILED, LANE
from eir.lists.log.change import Head
from eir.node.observe import metrics
from eir.node.observe.alerts import Alerts
from eir.node.observe.conditions import CONDITIONS, CRITICAL, WARNING, Trouble
from eir.schema import DETAILS
from eir.wire.peers.status import Failure

if TYPE_CHECKING:
    from eir.interfaces.interface import Attendant

CODES = {"OK": 0, WARNING: 1, CRITICAL: 2}
"""Exit status of `eir status` by state, in the form of a Nagios plugin."""
READY, DEGRADED, NOT_READY = "ready", "degraded", "not ready"
NOT_LISTENING = "not listening yet"
"""Reason of a starting node for being not ready."""
REFUSED_S = 300.0
"""Seconds for which a refusal is a warning although another peer with the same label is connected."""
REMIND_S = 3600.0
"""Seconds between two log lines about a list past its `expires`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnsweringReport:
    """Status of the answering process, as it reports it to the manager."""

    missing: Sequence[str]
    """Lists of the rules in force that have never been loaded."""
    lists: Mapping[str, Head]
    """Lists in force."""
    checks: int
    connected: Mapping[str, int]
    """Number of open connections by peer label."""
    tasks: int = 0
    """Number of tasks on the event loop of the process."""
    load: float = 0.0
    """Share of one processor that the process used in the last second."""
    refused: Mapping[str, Failure] = field(default_factory=dict)
    """Last refusal after which no connection of the peer was opened, by peer label."""
    newest: Mapping[str, float] = field(default_factory=dict)
    """Unix time at which the newest open connection was opened, by peer label."""
    left: Sequence[str] = ()
    """Labels of peers that connect only for requests, and whose last connection ended in order."""
    reasons: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Chosen reasons by which the images of lists were built, by list."""


class Readiness(NamedTuple):
    """Readiness of the node for traffic, and the reasons if the node is degraded or not ready."""

    word: str
    """`ready`, `degraded` (the node answers, but a condition with `degrades` holds) or `not ready`."""
    why: Sequence[str]
    """Reasons for `degraded` or `not ready`."""


class Running(NamedTuple):
    """Addresses on which a node listens, and whether the node is stopping."""

    listening: Sequence[str] = ()
    """Open Diameter listeners, as URLs."""
    http: str | None = None
    """Address of the HTTP pages."""
    interfaces: Mapping[str, Sequence[str]] = {}
    """Addresses of the other interfaces, by name."""
    is_stopping: bool = False


class NodeHealth:
    """Computation of a node's status. It keeps the previous state for log lines and reminders."""

    def __init__(
        self,
        *,
        pid: int,
        running: Callable[[], Running],
        snapshots: Callable[[], Iterable[metrics.Snapshot]],
        attendants: Sequence["Attendant"] = (),
        report: Report,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Create the status of a node that starts now.

        `pid`: process that receives signals. `snapshots`: function that returns the metrics of all parts of the manager.
        """
        self._pid = pid
        self._running = running
        self._snapshots = snapshots
        self._degrading = Alerts([each for each in CONDITIONS if each.degrades])
        self._attendants = attendants
        self._report = report
        self._now = now
        self.started = now()
        self._in_force: set[str] = set()
        """Lists that have been in force since the start."""
        self._was_ready = False
        self._logged: Readiness | None = None
        """Readiness in the last log line."""
        self._reminder = ExpiryReminder()

    def readiness(self, answering: AnsweringReport | None) -> Readiness:
        """Return the readiness of the node, and the reasons if the node is degraded or not ready.

        A node does not become ready before each of its lists was loaded. If a reload adds a list that was never loaded, a ready
        node only becomes degraded, because it answers other checks as before.
        """
        troubles = self._degrading.troubles(self.snapshot(answering), self._now())
        self._in_force.update(answering.lists if answering else ())
        not_ready = [each.text for each in troubles if self._is_fatal(each)]
        running = self._running()
        if not running.listening:
            not_ready.append(NOT_LISTENING)
        if running.is_stopping:
            not_ready.append("stopping")
        self._was_ready = self._was_ready or not not_ready
        degraded = [each.text for each in troubles if each.text not in not_ready]
        return Readiness(NOT_READY if not_ready else DEGRADED if degraded else READY, not_ready + degraded)

    def _is_fatal(self, trouble: Trouble) -> bool:
        """Return true if the node cannot answer while the condition holds: without the answering process, or without a list that it needs."""
        if trouble.condition.alert == "EirListMissing":
            return not self._was_ready or not self._in_force.isdisjoint(trouble.subjects)
        return trouble.condition.alert == "EirDown"

    def snapshot(self, answering: AnsweringReport | None) -> metrics.Snapshot:
        """Return the metrics of the manager, of its parts, and about the answering process's report, by metric name and label values."""
        refusals = self._refusals(answering) if answering else {}
        own: metrics.Snapshot = {
            "eir_start_timestamp_seconds": {(): self.started},
            "eir_answering_up": {(): float(answering is not None)},
            "eir_list_missing": {(name,): 1.0 for name in (answering.missing if answering else ())},
            "eir_peer_refused": dict.fromkeys(((label,) for label in refusals), 1.0),
            DETAILS: metrics.details("EirConnectionRefused", refusals),
        }
        return metrics.merge([own, *self._snapshots()])

    def log_readiness(self, answering: AnsweringReport | None) -> None:
        """Log a change of the node's readiness or of its reasons. The first line has the version."""
        readiness = self.readiness(answering)
        if self._running().is_stopping or readiness == self._logged:
            return
        first = self._logged is None
        self._logged = readiness
        ready = readiness.word == READY
        event = "ready" if ready else "serving" if first else readiness.word.replace(" ", "_")
        self._report(
            event, level="info" if ready else "warning", reason="; ".join(readiness.why) or None,
            version=__version__ if first else None, lane=LANE if first else None,
            detail="no compiled lane: a check costs many times as much" if first and not COMPILED else None,
        )  # fmt: skip

    def remind(self, answering: AnsweringReport | None) -> None:
        """Log each list whose release is past its `expires`, at once and then every REMIND_S."""
        states = answering.lists if answering else {}
        now = datetime.fromtimestamp(self._now(), UTC)
        for name in self._reminder.due(states, now=now, monotonic=time.monotonic()):
            expires = states[name].expires
            self._report("list_expired", level="warning", list=name, expires=expires, detail="it stays in force")

    def document(self, answering: AnsweringReport | None, troubles: Sequence[Trouble] = ()) -> dict[str, Any]:
        """Return the document of `eir status`: Nagios state and code, a summary line, and data about lists, peers and checks.

        The state is CRITICAL if the node is not ready, or if one of the conditions in `troubles` is critical.

        `troubles`: conditions that hold.
        """
        readiness = self.readiness(answering)
        running = self._running()
        lists = answering.lists if answering else {}
        peers = dict(answering.connected) if answering else {}
        checks = answering.checks if answering else 0
        warnings = list(dict.fromkeys([*readiness.why, *(each.text for each in troubles)]))
        word = WARNING if warnings else "OK"
        if readiness.word == NOT_READY or any(each.condition.severity == CRITICAL for each in troubles):
            word = CRITICAL
        entries = sum(state.entries for state in lists.values())
        totals = f"{len(lists)} lists, {entries} entries, {sum(peers.values())} connections, {checks} checks"
        if not COMPILED:
            totals += "; no compiled lane, so a check costs many times as much"
        summary = "; ".join([*warnings, totals])
        document = {
            "state": word.upper(), "code": CODES[word], "summary": summary, "troubles": warnings, "ready": readiness.word, "version": __version__, "lane": LANE,
            "pid": self._pid, "uptime_s": round(self._now() - self.started),
            "tasks": answering.tasks if answering else 0, "listening": running.listening, "http": running.http,
            "lists": {name: _list_figures(state) for name, state in lists.items()}, "peers": peers, "checks": checks,
        }  # fmt: skip
        for attendant in self._attendants:
            document |= attendant.status()
        if running.interfaces:
            document["interfaces"] = running.interfaces
        return document

    def _refusals(self, answering: AnsweringReport) -> dict[str, str]:
        """Return the reason why each peer's last connection was refused, by peer label.

        A peer is left out if a connection of this peer was opened after the refusal. A peer with an earlier open connection is
        left out REFUSED_S after the refusal.
        """
        refusals = {}
        for label, failure in answering.refused.items():
            opened = answering.newest.get(label, 0.0)
            is_recent = not opened or self._now() - failure.at < REFUSED_S
            if is_recent and failure.at > opened:
                refusals[label] = failure.text
        return refusals


def merged_peers(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Merge the rows of `eir peers` from all protocols.

    The result has a row for each connection, and for each entry of the peer table without a connection. All ended connections of
    an AMF's entry are one row.
    """
    by_label: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_label.setdefault(row["label"], []).append(row)
    merged = [row for row in rows if row["address"] is not None]
    for same in by_label.values():
        merged += _unconnected_row(same)
    for row in merged:
        # Each protocol's server knows only its own connections.
        same = by_label[row["label"]]
        row["last_seen"] = max((each["last_seen"] for each in same if each["last_seen"]), default=None)
        row["last_error_at"], row["last_error"] = _last_error(same)
    return merged


def _unconnected_row(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Select the rows of a peer that have no open connection, and merge them into at most one row of `eir peers`.

    This row sums all ended connections. A row without any connection is returned only if the peer has no other row.
    """
    without_address = [row for row in rows if row["address"] is None]
    ended = [row for row in without_address if row.get("connections")]
    if ended:
        totals = {name: sum(row[name] for row in ended) for name in ("connections", "requests", "answers")}
        return [ended[-1] | totals]
    return without_address[-1:] if len(without_address) == len(rows) else []


def _last_error(rows: Sequence[Mapping[str, Any]]) -> tuple[float | None, str | None]:
    """Return time and text of a peer's last error, without errors before the start of the peer's newest open connection."""
    opened_at = max((row["since"] for row in rows if row["state"] == "open"), default=0.0)
    errors = []
    for row in rows:
        error_at = row["last_error_at"] or 0.0
        if row["last_error"] and error_at >= opened_at:
            errors.append((row["last_error_at"], row["last_error"]))
    return max(errors, default=(None, None))


def _list_figures(state: Head) -> dict[str, Any]:
    return {
        "serial": state.serial, "generation": state.generation, "digest": state.content, "entries": state.entries,
        "expires": state.expires,
    }  # fmt: skip


def expired(states: Mapping[str, Head], now: datetime) -> list[str]:
    """Return the names of lists whose release is past its expiry time (`expires`). Local lists never expire."""
    return [name for name, state in states.items() if state.expires and datetime.fromisoformat(state.expires) <= now]


class ExpiryReminder:
    """Schedule of the log lines about expired lists."""

    __slots__ = ("_reported_at",)

    def __init__(self) -> None:
        self._reported_at: dict[str, float] = {}

    def due(self, states: Mapping[str, Head], *, now: datetime, monotonic: float) -> list[str]:
        """Return the expired lists that must be logged now: each list at once, then every REMIND_S until its next release.

        `monotonic`: time on the monotonic clock.
        """
        past = expired(states, now)
        self._reported_at = {name: at for name, at in self._reported_at.items() if name in past}
        due = []
        for name in past:
            reported_at = self._reported_at.get(name)
            if reported_at is None or monotonic - reported_at >= REMIND_S:
                due.append(name)
                self._reported_at[name] = monotonic
        return due

"""Status of a node: its readiness, the document of `eir status`, and log lines about changes.

The supervisor collects the reports of the workers. NodeHealth evaluates them, with the warnings of the supervisor's parts. The
module does no I/O, and its clock is an argument.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from eir import __version__
from eir.errors import Report
from eir.interfaces.s13.lane import COMPILED, LANE
from eir.lists.log.change import Head
from eir.node.observe.alerts import CRITICAL_ALERTS, Trouble, alert_of
from eir.node.observe.status_texts import StatusText
from eir.wire.peers.status import Failure

if TYPE_CHECKING:
    from eir.interfaces.interface import Attendant

OK, WARNING, CRITICAL = (0, "OK"), (1, "WARNING"), (2, "CRITICAL")
"""Exit status and word of `eir status`, in the form of a Nagios plugin."""
READY, DEGRADED, NOT_READY = "ready", "degraded", "not ready"
NOT_LISTENING = "not listening yet"
"""Reason of a starting node for being not ready."""
PEERLESS_S = 60.0
"""Seconds after the start in which a peer without a connection causes no warning, because a peer reconnects after its Tc, usually 30 s."""
AWAY_SHOWN = 10
"""Maximum number of peers in the warning about peers without a connection."""
REFUSED_S = 300.0
"""Seconds for which a refusal is a warning although another peer with the same label is connected."""
REMIND_S = 3600.0
"""Seconds between two log lines about a list past its `expires`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReport:
    """Status of one worker, as the worker reports it to the supervisor."""

    missing: Sequence[str]
    """Lists of the rules in force that have never been loaded."""
    lists: Mapping[str, Head]
    """Lists in force."""
    overridden: bool
    """True if the policy's override is in force."""
    checks: int
    connected: Mapping[str, int]
    """Number of open connections by peer label."""
    tasks: int = 0
    """Number of tasks on the event loop of the worker."""
    load: float = 0.0
    """Share of one processor that the worker used in the last second."""
    shedding: Sequence[str]
    """Labels of peers whose requests were rejected by a rate limit in the last seconds."""
    disabled: Sequence[str]
    """Labels of peers that are out of service."""
    refused: Mapping[str, Failure] = field(default_factory=dict)
    """Last refusal after which no connection of the peer was opened, by peer label."""
    newest: Mapping[str, float] = field(default_factory=dict)
    """Unix time at which the newest open connection was opened, by peer label."""
    lost_paths: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Addresses of a peer that SCTP does not reach, by peer label."""
    warnings: Mapping[str, str] = field(default_factory=dict)
    """Warnings of the protocols other than Diameter, by peer label."""


class Readiness(NamedTuple):
    """Readiness of the node for traffic, and the reasons if the node is degraded or not ready."""

    word: str
    """`ready`, `degraded` (the node answers but has a warning of `losses`) or `not ready`."""
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


Warnings = Callable[[], Sequence[str]]
"""Function that returns the current warnings of one part of the supervisor."""


class NodeHealth:
    """Computation of a node's status. It keeps the previous state for log lines and reminders."""

    def __init__(
        self,
        *,
        workers: int,
        pid: int,
        running: Callable[[], Running],
        is_store_up: Callable[[], bool],
        losses: Sequence[Warnings] = (),
        warnings: Sequence[Warnings] = (),
        attendants: Sequence["Attendant"] = (),
        report: Report,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Create the status of a node that starts now.

        `workers`: configured number of workers. `pid`: process that receives signals. A warning of `losses` makes the node
        degraded; a warning of `warnings` does not.
        """
        self._workers = workers
        self._pid = pid
        self._running = running
        self._is_store_up = is_store_up
        self._losses = losses
        self._warnings_of_parts = warnings
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

    def readiness(self, reports: Sequence[WorkerReport]) -> Readiness:
        """Return the readiness of the node, and the reasons if the node is degraded or not ready.

        A node does not become ready before each of its lists was loaded. If a reload adds a list that was never loaded, a ready
        node only becomes degraded, because it answers other checks as before.
        """
        missing = dict.fromkeys(name for report in reports for name in report.missing)
        never = {name: StatusText.LIST_MISSING.format(name) for name in missing}
        self._in_force.update(name for report in reports for name in report.lists)
        not_ready = [text for name, text in never.items() if not self._was_ready or name in self._in_force]
        if not reports:
            not_ready.append(StatusText.NO_WORKER.text)
        running = self._running()
        if not running.listening:
            not_ready.append(NOT_LISTENING)
        if running.is_stopping:
            not_ready.append("stopping")
        self._was_ready = self._was_ready or not not_ready
        degraded = [text for text in never.values() if text not in not_ready]
        if 0 < len(reports) < self._workers:
            degraded.append(StatusText.WORKERS_MISSING.format(len(reports), self._workers))
        if reports and not self._is_store_up():
            degraded.append(StatusText.STORE_AWAY.text)
        degraded += [text for part in self._losses for text in part()]
        return Readiness(NOT_READY if not_ready else DEGRADED if degraded else READY, not_ready + degraded)

    def log_readiness(self, reports: Sequence[WorkerReport]) -> None:
        """Log a change of the node's readiness or of its reasons. The first line has the version."""
        readiness = self.readiness(reports)
        if self._running().is_stopping or readiness == self._logged:
            return
        first = self._logged is None
        self._logged = readiness
        ready = readiness.word == READY
        event = "ready" if ready else "serving" if first else readiness.word.replace(" ", "_")
        self._report(
            event, level="info" if ready else "warning", reason="; ".join(readiness.why) or None, workers=len(reports),
            version=__version__ if first else None, lane=LANE if first else None,
            detail="no compiled lane: a check costs many times as much" if first and not COMPILED else None,
        )  # fmt: skip

    def remind(self, reports: Sequence[WorkerReport]) -> None:
        """Log each list whose release is past its `expires`, at once and then every REMIND_S."""
        states = {name: state for report in reports for name, state in report.lists.items()}
        now = datetime.fromtimestamp(self._now(), UTC)
        for name in self._reminder.due(states, now=now, monotonic=time.monotonic()):
            expires = states[name].expires
            self._report("list_expired", level="warning", list=name, expires=expires, detail="it stays in force")

    def document(self, reports: Sequence[WorkerReport], alerts: Sequence[Trouble] = ()) -> dict[str, Any]:
        """Return the document of `eir status`: Nagios state and code, a summary line, and data about workers, lists, peers and checks.

        The state is CRITICAL if the node is not ready, or if the alert of a warning is critical.

        `alerts`: alerts whose conditions hold. An alert that another warning names already is left out.
        """
        readiness = self.readiness(reports)
        running = self._running()
        lists = _oldest_lists(reports)
        peers = _connections(reports)
        warnings = [*readiness.why, *self._warnings(reports, lists, peers)]
        named = {alert_of(text) for text in warnings}
        unnamed = [each for each in alerts if each.alert not in named]
        warnings += [each.text for each in unnamed]
        named.update(each.alert for each in unnamed)
        code, word = WARNING if warnings else OK
        if readiness.word == NOT_READY or named & CRITICAL_ALERTS:
            code, word = CRITICAL
        checks = sum(report.checks for report in reports)
        entries = sum(state.entries for state in lists.values())
        totals = f"{len(lists)} lists, {entries} entries, {sum(peers.values())} connections, {checks} checks"
        if not COMPILED:
            totals += "; no compiled lane, so a check costs many times as much"
        summary = "; ".join([*warnings, totals])
        in_step = all(report.lists == reports[0].lists for report in reports)
        document = {
            "state": word, "code": code, "summary": summary, "troubles": warnings, "ready": readiness.word, "version": __version__, "lane": LANE,
            "pid": self._pid, "uptime_s": round(self._now() - self.started), "workers": len(reports),
            "tasks": sum(report.tasks for report in reports), "in_step": in_step, "listening": running.listening, "http": running.http,
            "lists": {name: _list_figures(state) for name, state in lists.items()}, "peers": peers, "checks": checks,
        }  # fmt: skip
        for attendant in self._attendants:
            document |= attendant.status()
        if running.interfaces:
            document["interfaces"] = running.interfaces
        return document

    def _warnings(
        self, reports: Sequence[WorkerReport], lists: Mapping[str, Head], peers: Mapping[str, int]
    ) -> list[str]:
        """Return the warnings for `eir status` that do not affect the readiness of the node."""
        now = datetime.fromtimestamp(self._now(), UTC)
        warnings = [StatusText.LIST_EXPIRED.format(name) for name in expired(lists, now)]
        for warnings_of_part in self._warnings_of_parts:
            warnings += warnings_of_part()
        if any(report.overridden for report in reports):
            warnings.append(StatusText.OVERRIDE_ACTIVE.text)
        for attendant in self._attendants:
            warnings += attendant.warnings()
        shedding = dict.fromkeys(label for report in reports for label in report.shedding)
        warnings += [StatusText.SHEDDING.format(label) for label in shedding]
        disabled = dict.fromkeys(label for report in reports for label in report.disabled)
        warnings += [f"peer {label} is disabled" for label in disabled]
        for label, text in self._refusals(reports).items():
            warnings.append(StatusText.PEER_REFUSED.format(label, text))
        by_label = {label: text for report in reports for label, text in report.warnings.items()}
        warnings += by_label.values()
        paths = {label: addresses for report in reports for label, addresses in report.lost_paths.items()}
        for label, addresses in paths.items():
            warnings.append(StatusText.PATHS_LOST.format(label, ", ".join(addresses)))
        away = [label for label, connections in peers.items() if not connections and label not in disabled]
        if self._now() - self.started >= PEERLESS_S:
            warnings += _absence_warnings(peers, away)
        return warnings

    def _refusals(self, reports: Sequence[WorkerReport]) -> dict[str, str]:
        """Return the reason why each peer's last connection was refused, by peer label.

        A peer is left out if a worker has opened a connection of this peer after the refusal. A peer with an earlier open
        connection is left out REFUSED_S after the refusal.
        """
        opened_at: dict[str, float] = {}
        for report in reports:
            for label, at in report.newest.items():
                opened_at[label] = max(at, opened_at.get(label, 0.0))
        refusals: dict[str, Failure] = {}
        for report in reports:
            for label, failure in report.refused.items():
                opened = opened_at.get(label, 0.0)
                previous = refusals[label].at if label in refusals else 0.0
                is_recent = not opened or self._now() - failure.at < REFUSED_S
                if is_recent and failure.at > max(opened, previous):
                    refusals[label] = failure
        return {label: failure.text for label, failure in refusals.items()}


def _oldest_lists(reports: Sequence[WorkerReport]) -> dict[str, Head]:
    """Return for each list the oldest version that any worker still has in force."""
    lists: dict[str, Head] = {}
    for report in reports:
        for name, state in report.lists.items():
            other = lists.get(name, state)
            lists[name] = min(other, state, key=lambda each: (each.serial, each.generation))
    return lists


def _connections(reports: Sequence[WorkerReport]) -> dict[str, int]:
    """Return the number of connections of each peer to all workers."""
    connections: dict[str, int] = {}
    for report in reports:
        for label, number in report.connected.items():
            connections[label] = connections.get(label, 0) + number
    return connections


def _absence_warnings(peers: Mapping[str, int], away: Sequence[str]) -> list[str]:
    """Return a warning if no peer has a connection, or if the peers in `away` have none.

    `peers`: number of connections by label.
    """
    if peers and not any(peers.values()):
        return [StatusText.NO_PEERS.format(len(peers))]
    if not away:
        return []
    names = ", ".join(away[:AWAY_SHOWN])
    if len(away) > AWAY_SHOWN:
        names += f" and {len(away) - AWAY_SHOWN} more"
    return [StatusText.PEERS_LOST.format(names)]


def merged_peers(by_worker: Sequence[tuple[int, Sequence[dict[str, Any]]]]) -> list[dict[str, Any]]:
    """Merge the rows of `eir peers` from all workers.

    The result has a row for each connection, and for each entry of the peer table without a connection. All ended connections of
    an AMF's entry are one row.
    """
    rows = [{**row, "worker": number} for number, answer in by_worker for row in answer]
    by_label: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_label.setdefault(row["label"], []).append(row)
    merged = [row for row in rows if row["address"] is not None]
    for same in by_label.values():
        merged += _unconnected_row(same)
    for row in merged:
        # Each worker knows only its own connections, and only one worker connects to peers.
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

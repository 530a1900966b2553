"""Status of a node, from the reports of its workers: readiness, document of `eir status`, and log lines about changes.

No I/O; the clock is an argument. The supervisor collects the workers' reports; NodeHealth calls the parts of the supervisor.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from eir import __version__
from eir.errors import Report
from eir.interfaces.s13.lane import COMPILED, LANE
from eir.lists.record.store import ListState
from eir.node.observe.alerts import Trouble, alert_of
from eir.node.observe.status_texts import StatusText
from eir.wire.peers.status import Failure

if TYPE_CHECKING:
    from eir.interfaces.interface import Attendant

OK, WARNING, CRITICAL = (0, "OK"), (1, "WARNING"), (2, "CRITICAL")
"""Exit status and word of `eir status`, in the form of a Nagios plugin."""
READY, DEGRADED, NOT_READY = "ready", "degraded", "not ready"
NOT_LISTENING = "not listening yet"
"""Reason for not being ready while a node starts."""
PEERLESS_S = 60.0
"""Seconds after the start in which an absent peer causes no warning: peers reconnect within their Tc, usually 30 s."""
AWAY_SHOWN = 10
"""Maximum number of peers without a connection that the status names."""
REFUSED_S = 300.0
"""Seconds for which the refusal of one peer is a warning while other peers with its label are connected."""
REMIND_S = 3600.0
"""Seconds between two reminders of a list past its `expires`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReport:
    """Status of one worker, as the worker reports it to the supervisor."""

    missing: Sequence[str]
    """Lists that the rules in force use and that have never been loaded."""
    lists: Mapping[str, ListState]
    """Lists in force."""
    overridden: bool
    checks: int
    connected: Mapping[str, int]
    """Number of open connections by peer label."""
    tasks: int = 0
    """Number of tasks on its event loop."""
    load: float = 0.0
    """Share of a processor that it used in the last second."""
    shedding: Sequence[str]
    """Peers whose requests were rejected by a rate limit in the last seconds."""
    disabled: Sequence[str]
    """Peers that are out of service."""
    refused: Mapping[str, Failure] = field(default_factory=dict)
    """Last refusal since a connection was opened, by peer label."""
    newest: Mapping[str, float] = field(default_factory=dict)
    """Unix time at which the newest open connection began, by peer label."""
    lost_paths: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Addresses of a peer that SCTP does not reach at present, by peer label."""
    warnings: Mapping[str, str] = field(default_factory=dict)
    """Warnings of the protocols other than Diameter, by peer label."""


class Readiness(NamedTuple):
    """Readiness of the node for traffic, and the reasons if it is not ready or degraded."""

    word: str
    """`ready`, `degraded` (the node answers but has a warning of `losses`) or `not ready`."""
    why: Sequence[str]


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
    """Evaluator of a node's status. It keeps earlier reports for readiness, log lines and reminders."""

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

        `workers`: configured number of workers. `pid`: process that receives signals. A warning of `losses` degrades the node; a
        warning of `warnings` does not.
        """
        self._workers, self._pid = workers, pid
        self._running, self._is_store_up = running, is_store_up
        self._losses, self._warnings_of_parts, self._attendants = losses, warnings, attendants
        self._report, self._now = report, now
        self.started = now()
        self._in_force: set[str] = set()
        """Lists that have been in force since the start."""
        self._was_ready = False
        self._logged: Readiness | None = None
        """Readiness in the last log line."""
        self._reminder = ExpiryReminder()

    def readiness(self, reports: Sequence[WorkerReport]) -> Readiness:
        """Return the readiness of the node, and the reasons if it is not ready or degraded.

        A list that was never loaded keeps a node from becoming ready. If a reload adds such a list, a ready node stays ready,
        because it answers other checks as before.
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
        """Log the readiness of the node if it or its reasons have changed.

        The first line reports the start of service.
        """
        readiness = self.readiness(reports)
        if self._running().is_stopping or readiness == self._logged:
            return
        first, self._logged = self._logged is None, readiness
        ready = readiness.word == READY
        event = "ready" if ready else "serving" if first else readiness.word.replace(" ", "_")
        self._report(
            event, level="info" if ready else "warning", reason="; ".join(readiness.why) or None, workers=len(reports),
            version=__version__ if first else None, lane=LANE if first else None,
            detail="no compiled lane: a check costs many times as much" if first and not COMPILED else None,
        )  # fmt: skip

    def remind(self, reports: Sequence[WorkerReport]) -> None:
        """Log each list whose release has expired, at once and then every REMIND_S."""
        states = {name: state for report in reports for name, state in report.lists.items()}
        now = datetime.fromtimestamp(self._now(), UTC)
        for name in self._reminder.due(states, now=now, monotonic=time.monotonic()):
            expires = states[name].expires
            self._report("list_expired", level="warning", list=name, expires=expires, detail="it stays in force")

    def document(self, reports: Sequence[WorkerReport], alerts: Sequence[Trouble] = ()) -> dict[str, Any]:
        """Return the document of `eir status`: Nagios state and code, a summary line, and numbers.

        `alerts`: alerts whose conditions hold. An alert is left out if another text already leads to it.
        """
        readiness, running = self.readiness(reports), self._running()
        lists: dict[str, ListState] = {}
        peers: dict[str, int] = {}
        for report in reports:
            for name, state in report.lists.items():
                lists[name] = min(lists.get(name, state), state, key=lambda of: (of.serial, of.generation))
            for label, number in report.connected.items():
                peers[label] = peers.get(label, 0) + number
        warnings = [*readiness.why, *self._warnings(reports, lists, peers)]
        named = {alert_of(text) for text in warnings}
        warnings += [each.text for each in alerts if each.alert not in named]
        code, word = CRITICAL if readiness.word == NOT_READY else WARNING if warnings else OK
        checks = sum(report.checks for report in reports)
        entries = sum(state.entries for state in lists.values())
        figures = f"{len(lists)} lists, {entries} entries, {sum(peers.values())} connections, {checks} checks"
        figures += "" if COMPILED else "; no compiled lane, so a check costs many times as much"
        return {
            "state": word, "code": code, "summary": "; ".join([*warnings, figures]), "troubles": warnings, "ready": readiness.word, "version": __version__, "lane": LANE,
            "pid": self._pid, "uptime_s": round(self._now() - self.started), "workers": len(reports),
            "tasks": sum(report.tasks for report in reports), "in_step": all(report.lists == reports[0].lists for report in reports),
            "listening": running.listening, "http": running.http, "lists": {name: _list_figures(state) for name, state in lists.items()},
            "peers": peers, "checks": checks, **{name: value for each in self._attendants for name, value in each.status().items()},
            **({"interfaces": running.interfaces} if running.interfaces else {}),
        }  # fmt: skip

    def _warnings(
        self, reports: Sequence[WorkerReport], lists: Mapping[str, ListState], peers: Mapping[str, int]
    ) -> list[str]:
        """Return the warnings that do not affect the readiness of the node."""
        warnings = [
            StatusText.LIST_EXPIRED.format(name) for name in expired(lists, datetime.fromtimestamp(self._now(), UTC))
        ]
        warnings += [text for part in self._warnings_of_parts for text in part()]
        if any(report.overridden for report in reports):
            warnings.append(StatusText.OVERRIDE_ACTIVE.text)
        warnings += [text for each in self._attendants for text in each.warnings()]
        shedding = dict.fromkeys(label for report in reports for label in report.shedding)
        warnings += [StatusText.SHEDDING.format(label) for label in shedding]
        disabled = dict.fromkeys(label for report in reports for label in report.disabled)
        warnings += [f"peer {label} is disabled" for label in disabled]
        warnings += [StatusText.PEER_REFUSED.format(label, text) for label, text in self._refusals(reports).items()]
        warnings += {label: text for report in reports for label, text in (report.warnings or {}).items()}.values()
        paths = {label: addresses for report in reports for label, addresses in (report.lost_paths or {}).items()}
        warnings += [StatusText.PATHS_LOST.format(label, ", ".join(addresses)) for label, addresses in paths.items()]
        away = [label for label, connections in peers.items() if not connections and label not in disabled]
        if self._now() - self.started < PEERLESS_S or not peers:
            pass
        elif not any(peers.values()):
            warnings.append(StatusText.NO_PEERS.format(len(peers)))
        elif away:
            more = f" and {len(away) - AWAY_SHOWN} more" if len(away) > AWAY_SHOWN else ""
            names = ", ".join(away[:AWAY_SHOWN])
            warnings.append(StatusText.PEERS_LOST.format(f"{names}{more}"))
        return warnings

    def _refusals(self, reports: Sequence[WorkerReport]) -> dict[str, str]:
        """Return the text of the last refusal of each peer that has opened no connection to any worker since."""
        newest = {label: 0.0 for report in reports for label in report.refused or ()}
        for report in reports:
            newest |= {label: max(at, newest[label]) for label, at in (report.newest or {}).items() if label in newest}
        refusals: dict[str, Failure] = {}
        for report in reports:
            for label, failure in (report.refused or {}).items():
                lately = not newest[label] or self._now() - failure.at < REFUSED_S
                if failure.at > max(newest[label], refusals[label].at if label in refusals else 0.0) and lately:
                    refusals[label] = failure
        return {label: failure.text for label, failure in refusals.items()}


def merged_peers(by_worker: Sequence[tuple[int, Sequence[dict[str, Any]]]]) -> list[dict[str, Any]]:
    """Merge the rows of `eir peers` from all workers.

    The result has each connection, and one row for each entry of the peer table without a connection. Ended connections of AMFs
    share one row per entry.
    """
    rows = [{**row, "worker": number} for number, answer in by_worker for row in answer]
    by_label: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_label.setdefault(row["label"], []).append(row)
    shown = [row for row in rows if row["address"] is not None]
    for same in by_label.values():
        if over := [row for row in same if row.get("connections") and row["address"] is None]:
            shown.append(
                over[-1] | {name: sum(row[name] for row in over) for name in ("connections", "requests", "answers")}
            )
        elif all(row["address"] is None for row in same):
            shown.append(same[-1])
    for row in shown:
        # Each worker knows only its own connections, and only one worker connects to peers.
        same = by_label[row["label"]]
        row["last_seen"] = max((each["last_seen"] for each in same if each["last_seen"]), default=None)
        newest = max((each["since"] for each in same if each["state"] == "open"), default=0.0)
        errors = [
            (each["last_error_at"], each["last_error"])
            for each in same
            if each["last_error"] and (each["last_error_at"] or 0.0) >= newest
        ]
        row["last_error_at"], row["last_error"] = max(errors, default=(None, None))
    return shown


def _list_figures(state: ListState) -> dict[str, Any]:
    return {
        "serial": state.serial, "generation": state.generation, "digest": state.content_digest, "entries": state.entries,
        "expires": state.expires,
    }  # fmt: skip


def expired(states: Mapping[str, ListState], now: datetime) -> list[str]:
    """Return the names of lists whose release is past its `expires`. A local list has no `expires`."""
    return [name for name, state in states.items() if state.expires and datetime.fromisoformat(state.expires) <= now]


class ExpiryReminder:
    """Schedule of the log lines about expired lists."""

    __slots__ = ("_reported_at",)

    def __init__(self) -> None:
        self._reported_at: dict[str, float] = {}

    def due(self, states: Mapping[str, ListState], *, now: datetime, monotonic: float) -> list[str]:
        """Return the expired lists to log now: at once, then every REMIND_S until a new release.

        `monotonic`: time on the monotonic clock.
        """
        past = expired(states, now)
        self._reported_at = {name: at for name, at in self._reported_at.items() if name in past}
        due = [
            name for name in past if name not in self._reported_at or monotonic - self._reported_at[name] >= REMIND_S
        ]
        self._reported_at.update(dict.fromkeys(due, monotonic))
        return due

"""Status of a node, from what its workers report: readiness, the status document, and a log line when either changes.

No I/O and no clock but the one that it is given; the front asks the workers and shows what this makes of it.
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
from eir.wire.diameter.status import Failure

if TYPE_CHECKING:
    from eir.interfaces.interface import Attendant

OK, WARNING, CRITICAL = (0, "OK"), (1, "WARNING"), (2, "CRITICAL")
"""Exit status and word of `eir status`, as Nagios wants them."""
READY, DEGRADED, NOT_READY = "ready", "degraded", "not ready"
PEERLESS_S = 60.0
"""Time after the start within which an absent peer is no warning: peers come back within their Tc, usually 30 s."""
AWAY_SHOWN = 10
"""Peers without a connection that are named."""
CERTIFICATE_S = 14 * 86400.0
"""Time before its end from which on the node's own certificate is a warning, as it is an alert."""
REFUSED_S = 300.0
"""Time for which the refusal of one peer of a label is a warning while others of that label are connected."""
REMIND_S = 3600.0
"""Interval between two reminders of a list that is past its `expires`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Following:
    """Status of the follower."""

    store_up: bool
    lost: Mapping[str, str]
    """Lists of which the store shows less than is in force → what it shows."""
    from_copy: Sequence[str]
    """Lists in force that came from the node's last good copy and that the store has not confirmed yet."""
    in_step_at: float
    """Time at which it last knew that what is in force is what the store holds (time.monotonic)."""
    copy_faults: Mapping[str, str] = field(default_factory=dict)
    """Lists whose last good copy could not be kept, read or written back → why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReport:
    """Status of one worker."""

    missing: Sequence[str]
    """Lists that rules in force look into and that have never been loaded."""
    lists: Mapping[str, ListState]
    """Lists in force."""
    overridden: bool
    checks: int
    connected: Mapping[str, int]
    """Open connections by peer label."""
    tasks: int = 0
    """Tasks on its event loop."""
    load: float = 0.0
    """Part of a processor that it took in the last second."""
    shedding: Sequence[str]
    """Peers of which requests were turned away by a rate limit in the last seconds."""
    disabled: Sequence[str]
    """Peers that are out of service."""
    refused: Mapping[str, Failure] = field(default_factory=dict)
    """The last refusal since a connection was opened, by peer label."""
    newest: Mapping[str, float] = field(default_factory=dict)
    """Unix time at which the newest open connection began, by peer label."""
    lost_paths: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Addresses of a peer that SCTP does not reach at present, by peer label."""
    warnings: Mapping[str, str] = field(default_factory=dict)
    """Warnings of the protocols besides Diameter, by peer label."""


class Readiness(NamedTuple):
    """Readiness of the node for traffic, and the reasons."""

    word: str
    """`ready`, `degraded` (it answers, but someone should look) or `not ready`."""
    why: Sequence[str]


class Status:
    """A node's status over time.

    `pid` is the process that signals go to, `workers` how many there should be; `following` says how the follower is now.
    """

    def __init__(
        self,
        *,
        workers: int,
        pid: int,
        following: Callable[[], Following],
        report: Report,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._workers = workers
        self._following = following
        self._pid = pid
        self._report = report
        self._now = now
        self.started = now()
        self.listening: list[str] = []
        """Diameter listeners that are open, as URLs."""
        self.interfaces: dict[str, list[str]] = {}
        """Addresses of the interfaces besides the checks, by their name."""
        self.http: str | None = None
        """Address of the pages."""
        self.stopping = False
        self.attendants: Sequence[Attendant] = ()
        """Parts of interfaces in the supervisor."""
        self.sources: Callable[[], Sequence[str]] = tuple
        """Warnings about the sources of lists."""
        self.gone: Callable[[], Sequence[str]] = tuple
        """Local lists that were in force before, and of which the store holds nothing."""
        self.older: Callable[[], Mapping[str, tuple[int, int]]] = dict
        """Lists → the highest serial that the store knows of, and a higher one that was accepted here before."""
        self.troubles: Callable[[], Sequence[str]] = tuple
        """Faults of the interfaces besides the checks."""
        self.store_newer: str | None = None
        """Reason why nothing is changed in the store, if its data have the form of a newer eir."""
        self.config_fault: str | None = None
        """The fault of the configuration on disk; the one in force is an earlier one."""
        self.certificate_ends: datetime | None = None
        """End of the node's own certificate; None without TLS."""
        self.history_differs = ""
        """Reason why the store's history does not continue this node's copy of it."""
        self.unrecorded: Sequence[str] = ()
        """Lists in the store of which no record says who put them there."""
        self._in_force: set[str] = set()
        """Lists that were in force at some time since the start."""
        self._was_ready = False
        self._told: Readiness | None = None
        """The readiness that the log told last."""

    def readiness(self, reports: Sequence[WorkerReport]) -> Readiness:
        """Return whether the node is ready, and why not.

        A list that was never loaded keeps a node from becoming ready. One that a reload adds to a ready node leaves it
        ready: everything else is answered as before.
        """
        missing = dict.fromkeys(name for report in reports for name in report.missing)
        never = {name: f"list {name} has never been loaded" for name in missing}
        self._in_force.update(name for report in reports for name in report.lists)
        not_ready = [text for name, text in never.items() if not self._was_ready or name in self._in_force]
        if not reports:
            not_ready.append("no worker answers")
        if not self.listening:
            not_ready.append("not listening yet")
        if self.stopping:
            not_ready.append("stopping")
        self._was_ready = self._was_ready or not not_ready
        degraded = [text for text in never.values() if text not in not_ready]
        if 0 < len(reports) < self._workers:
            degraded.append(f"{len(reports)} of {self._workers} workers answer")
        how = self._following()
        if reports and not how.store_up:
            degraded.append("the store is away; answers go on from memory")
        degraded += [
            f"the store lost list {name} (it shows {shown}); the memory stays in force"
            for name, shown in how.lost.items()
        ]
        degraded += [
            f"the store lost list {name}, which was in force here before: restore a backup" for name in self.gone()
        ]
        degraded += [
            f"the store lost list {name} as it was: serial {highest} is the highest that it knows of, and {before} was accepted here before; load the newest release again"
            for name, (highest, before) in self.older().items()
        ]
        degraded += [f"list {name} is this node's last good copy" for name in how.from_copy]
        degraded += [f"the last good copy of list {name} is not kept ({why})" for name, why in how.copy_faults.items()]
        if self.store_newer is not None:
            degraded.append(self.store_newer)
        return Readiness(NOT_READY if not_ready else DEGRADED if degraded else READY, not_ready + degraded)

    def tell(self, reports: Sequence[WorkerReport]) -> None:
        """One log line if the readiness, or the reason for it, is another than the last line told; the first says that it serves."""
        found = self.readiness(reports)
        if self.stopping or found == self._told:
            return
        first, self._told = self._told is None, found
        ready = found.word == READY
        event = "ready" if ready else "serving" if first else found.word.replace(" ", "_")
        self._report(
            event, level="info" if ready else "warning", reason="; ".join(found.why) or None, workers=len(reports),
            version=__version__ if first else None, lane=LANE if first else None,
            detail="no compiled lane: a check costs many times as much" if first and not COMPILED else None,
        )  # fmt: skip

    def document(self, reports: Sequence[WorkerReport], alerts: Sequence[Trouble] = ()) -> dict[str, Any]:
        """Return what `eir status` shows: a Nagios state with its code, one line, and the figures behind it.

        `alerts`: conditions of alerts that hold. A condition is left out if another text already leads to its alert.
        """
        found = self.readiness(reports)
        lists: dict[str, ListState] = {}
        peers: dict[str, int] = {}
        for report in reports:
            for name, state in report.lists.items():
                lists[name] = min(lists.get(name, state), state, key=lambda of: (of.serial, of.generation))
            for label, number in report.connected.items():
                peers[label] = peers.get(label, 0) + number
        warnings = [*found.why, *self._warnings(reports, lists, peers)]
        named = {alert_of(text) for text in warnings}
        warnings += [each.text for each in alerts if each.alert not in named]
        code, word = CRITICAL if found.word == NOT_READY else WARNING if warnings else OK
        checks = sum(report.checks for report in reports)
        entries = sum(state.entries for state in lists.values())
        figures = f"{len(lists)} lists, {entries} entries, {sum(peers.values())} connections, {checks} checks"
        figures += "" if COMPILED else "; no compiled lane here, so that a check costs many times as much"
        return {
            "state": word, "code": code, "summary": "; ".join([*warnings, figures]), "troubles": warnings, "ready": found.word, "version": __version__, "lane": LANE,
            "pid": self._pid, "uptime_s": round(self._now() - self.started), "workers": len(reports),
            "tasks": sum(report.tasks for report in reports), "in_step": all(report.lists == reports[0].lists for report in reports),
            "listening": self.listening, "http": self.http, "lists": {name: _shown(state) for name, state in lists.items()},
            "peers": peers, "checks": checks, **{name: value for each in self.attendants for name, value in each.status().items()}, **({"interfaces": self.interfaces} if self.interfaces else {}),
        }  # fmt: skip

    def _warnings(
        self, reports: Sequence[WorkerReport], lists: Mapping[str, ListState], peers: Mapping[str, int]
    ) -> list[str]:
        """Return what someone should look at, besides what makes the node less than ready."""
        warnings = [
            f"list {name} is past its expiry" for name in expired(lists, datetime.fromtimestamp(self._now(), UTC))
        ]
        if self.config_fault is not None:
            warnings.append(
                f"the configuration on disk has a fault, and the one in force is an earlier one: {self.config_fault}"
            )
        if (ends := self.certificate_ends) is not None and ends.timestamp() - self._now() < CERTIFICATE_S:
            warnings.append(f"the node's certificate ends at {ends:%Y-%m-%dT%H:%M:%SZ}")
        if self.history_differs:
            warnings.append("the store's history does not continue this node's copy (eir history --verify)")
        warnings += [
            f"no record says who put list {name} into the store (eir history {name})" for name in self.unrecorded
        ]
        warnings += self.sources()
        warnings += self.troubles()
        if any(report.overridden for report in reports):
            warnings.append("the policy's override answers everything alike")
        warnings += [text for each in self.attendants for text in each.warnings()]
        shedding = dict.fromkeys(label for report in reports for label in report.shedding)
        warnings += [f"requests of {label} are above a rate limit and turned away" for label in shedding]
        disabled = dict.fromkeys(label for report in reports for label in report.disabled)
        warnings += [f"peer {label} is disabled" for label in disabled]
        warnings += [
            f"{label} was refused, or refused the node: {text}" for label, text in self._refusals(reports).items()
        ]
        warnings += {label: text for report in reports for label, text in (report.warnings or {}).items()}.values()
        paths = {label: addresses for report in reports for label, addresses in (report.lost_paths or {}).items()}
        warnings += [f"{label} is not reached at {', '.join(addresses)} (SCTP)" for label, addresses in paths.items()]
        away = [label for label, connections in peers.items() if not connections and label not in disabled]
        if self._now() - self.started < PEERLESS_S or not peers:
            pass
        elif not any(peers.values()):
            warnings.append(f"0 of {len(peers)} peers connected")
        elif away:
            more = f" and {len(away) - AWAY_SHOWN} more" if len(away) > AWAY_SHOWN else ""
            warnings.append(f"no connection of {', '.join(away[:AWAY_SHOWN])}{more}")
        return warnings

    def _refusals(self, reports: Sequence[WorkerReport]) -> dict[str, str]:
        """The last refusal of each peer that has opened no connection since, whichever worker saw it."""
        newest = {label: 0.0 for report in reports for label in report.refused or ()}
        for report in reports:
            newest |= {label: max(at, newest[label]) for label, at in (report.newest or {}).items() if label in newest}
        found: dict[str, Failure] = {}
        for report in reports:
            for label, failure in (report.refused or {}).items():
                lately = not newest[label] or self._now() - failure.at < REFUSED_S
                if failure.at > max(newest[label], found[label].at if label in found else 0.0) and lately:
                    found[label] = failure
        return {label: failure.text for label, failure in found.items()}


def merged_peers(by_worker: Sequence[tuple[int, Sequence[dict[str, Any]]]]) -> list[dict[str, Any]]:
    """Rows of `eir peers` out of each worker's: all connections, and for each entry that no worker has one of a row.

    Connections of AMFs that are over have a row for each entry.
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
        # Each worker has seen its own connections, and one of them connects to peers.
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


def _shown(state: ListState) -> dict[str, Any]:
    return {
        "serial": state.serial, "generation": state.generation, "digest": state.content_digest, "entries": state.entries,
        "expires": state.expires,
    }  # fmt: skip


def expired(states: Mapping[str, ListState], now: datetime) -> list[str]:
    """The names of the lists whose release is past its `expires`; a local list has none."""
    return [name for name, state in states.items() if state.expires and datetime.fromisoformat(state.expires) <= now]


class ExpiryReminder:
    """Remembers when each expired list was last reported."""

    __slots__ = ("_said",)

    def __init__(self) -> None:
        self._said: dict[str, float] = {}

    def due(self, states: Mapping[str, ListState], *, now: datetime, monotonic: float) -> list[str]:
        """The expired lists to report now: at once, then each REMIND_S of the monotonic clock, until a release renews them."""
        past = expired(states, now)
        self._said = {name: said for name, said in self._said.items() if name in past}
        found = [name for name in past if name not in self._said or monotonic - self._said[name] >= REMIND_S]
        self._said.update(dict.fromkeys(found, monotonic))
        return found

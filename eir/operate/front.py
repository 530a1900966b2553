"""What a node shows, and how it is steered: /metrics, /live, /ready, and the commands of the control socket.

One for a node, whether one worker answers or several: it asks a `Crew` for figures and hands commands on. Nothing here is on
the path of a check.
"""

import asyncio
import errno
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from eir import __version__
from eir.config import Config
from eir.errors import ConfigError, EirError, Report
from eir.operate import metrics
from eir.operate.control import ControlServer, asker
from eir.web.http1 import HttpServer, Response

OK, WARNING, CRITICAL = (0, "OK"), (1, "WARNING"), (2, "CRITICAL")
"""Exit status and word of `eir status`, as Nagios wants them."""

LISTEN_ADVICE = {
    errno.EACCES: "a port below 1024 takes the capability CAP_NET_BIND_SERVICE, or choose another port",
    errno.EADDRINUSE: "is another node running there?",
    errno.EADDRNOTAVAIL: "no interface of this host has that address",
}
"""What to do about a listener that cannot be had."""
READINESS_EACH_S = 1.0
"""Between two looks for a change of readiness."""
PEERLESS_S = 60.0
"""How long after the start it is no warning that nobody is connected: peers come back within their Tc, usually 30 s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReport:
    """How one worker is; plain values, since it may come from another process."""

    missing: Sequence[str]
    """Lists that rules in force look into and that have never been loaded."""
    lists: Mapping[str, Mapping[str, Any]]
    """Name → serial, generation, digest of the content, entries, expires of each list in force."""
    store_up: bool
    lost: Mapping[str, str]
    """Lists of which the store shows less than is in force → what it shows."""
    from_copy: Sequence[str]
    """Lists in force that came from the node's last good copy and that the store has not confirmed yet."""
    overridden: bool
    checks: int
    connected: Mapping[str, int]
    """Open connections by peer label."""
    tasks: int = 0
    """Tasks on its event loop."""
    shedding: Sequence[str]
    """Peers of which requests were turned away by a rate limit in the last seconds."""
    disabled: Sequence[str]
    """Peers that are out of service."""


class Crew(Protocol):
    """The workers of the node."""

    async def snapshot(self) -> metrics.Snapshot:
        """All numbers, of all workers."""

    async def reports(self) -> Sequence[WorkerReport]:
        """How each worker is; empty while none runs."""

    async def peers(self) -> list[dict[str, Any]]:
        """All connections, and the entries of the peer table that have none."""

    async def reload(self, who: str) -> str:
        """Take over the configuration file as it is now; raises ConfigError and changes nothing if it is bad."""

    async def set_peer(self, label: str, *, enabled: bool) -> bool:
        """Put a peer in or out of service; False if there is none with this label."""


class Front:
    """The HTTP pages and the control socket of a node. `stop` begins its end; `pid` is the process that signals go to."""

    def __init__(
        self, config: Config, crew: Crew, *, report: Report, stop: Callable[[str], None], pid: int | None = None
    ) -> None:
        self._config = config
        self._crew = crew
        self._report = report
        self._stop = stop
        self._pid = pid or os.getpid()
        self._started = time.time()
        self.listening: list[str] = []
        """Diameter listeners that are open, as URLs."""
        self.stopping = False
        self._held: set[str] = set()
        """Lists that were in force since the start."""
        self._was_ready = False
        self._told: tuple[str, list[str]] | None = None
        """The readiness that the log's last line about it told."""
        self._http_address: str | None = None
        self._unknown: set[str] = set()
        """Metrics without a place in the table, of which the log has told."""
        self._http = HttpServer({"/metrics": self._metrics, "/live": _live, "/ready": self._ready}, report=report)
        self._control = ControlServer(
            config.state,
            {
                "ping": lambda _: "pong",
                "status": lambda _: self.status(),
                "peers": lambda _: crew.peers(),
                "reload": lambda _: self._reload(),
                "drain": self._drain,
                "peer_disable": lambda arguments: self._set_peer(arguments, enabled=False),
                "peer_enable": lambda arguments: self._set_peer(arguments, enabled=True),
            },
            report=report,
        )

    async def open(self) -> None:
        """Open the control socket, then the HTTP listener. Raises EirError."""
        await self._control.listen()
        if self._config.http is None:
            return
        host, _, port = self._config.http.rpartition(":")
        try:
            bound, port_bound = await self._http.listen(host.strip("[]"), int(port))
        except OSError as e:
            await self._control.close()
            raise cannot_listen(f"http {self._config.http}", e) from None
        self._http_address = f"[{bound}]:{port_bound}" if ":" in bound else f"{bound}:{port_bound}"
        self._report("listening", address=f"http://{self._http_address}", pages="/metrics /live /ready")

    async def close(self) -> None:
        """Close both."""
        await self._http.close()
        await self._control.close()

    async def announce(self) -> None:
        """Say in the log that the node listens: `ready`, or `serving` and what it lacks."""
        reports = await self._crew.reports()
        word, why = self._told = self._readiness(reports)
        if word == "ready":
            self._report("ready", workers=len(reports), version=__version__)
        else:
            self._report("serving", level="warning", reason="; ".join(why), workers=len(reports), version=__version__)

    async def watch(self) -> None:
        """From then on say each change in the log, until cancelled."""
        while True:
            await asyncio.sleep(READINESS_EACH_S)
            try:
                await self.tell_change()
            except Exception as e:  # noqa: BLE001 - the outermost loop of this task: it says so, and looks again
                self._report("fault", reason="readiness", level="error", detail=repr(e))

    async def tell_change(self) -> None:
        """One line if the readiness, or the reason for it, is another than the last line told."""
        reports = await self._crew.reports()
        word, why = found = self._readiness(reports)
        if self.stopping or found == self._told:
            return
        self._told = found
        if word == "ready":
            self._report("ready", workers=len(reports))
        else:
            self._report(word.replace(" ", "_"), level="warning", reason="; ".join(why), workers=len(reports))

    # ---- pages ----

    async def _metrics(self) -> Response:
        snapshot = await self._crew.snapshot()
        for name in metrics.unknown(snapshot):
            if name not in self._unknown:
                self._unknown.add(name)
                self._report("metric_unknown", level="error", reason=name, detail="not in the table of metrics; the page leaves it out")
        # Rendering takes milliseconds with many peers: beside the loop, not in it.
        body = await asyncio.to_thread(metrics.exposition, snapshot)
        return Response(200, metrics.CONTENT_TYPE, body)

    async def _ready(self) -> Response:
        word, why = self._readiness(await self._crew.reports())
        status = 503 if word == "not ready" else 200
        return Response(status, "text/plain; charset=utf-8", "\n".join([word, *why, ""]).encode())

    def _readiness(self, reports: Sequence[WorkerReport]) -> tuple[str, list[str]]:
        """`ready`, `degraded` (it answers, but someone should look) or `not ready`, and why.

        A list that was never loaded keeps a node from becoming ready. One that a reload brings to a node that is ready does
        not end that: everything else is answered as before.
        """
        missing = dict.fromkeys(name for report in reports for name in report.missing)
        never = {name: f"list {name} has never been loaded" for name in missing}
        self._held.update(name for report in reports for name in report.lists)
        not_ready = [text for name, text in never.items() if not self._was_ready or name in self._held]
        if not reports:
            not_ready.append("no worker answers")
        if not self.listening:
            not_ready.append("not listening yet")
        if self.stopping:
            not_ready.append("stopping")
        self._was_ready = self._was_ready or not not_ready
        away = not all(report.store_up for report in reports)
        degraded = [text for text in never.values() if text not in not_ready]
        if 0 < len(reports) < self._config.workers:
            degraded.append(f"{len(reports)} of {self._config.workers} workers answer")
        degraded += ["the store is away; answers go on from memory"] if away else []
        lost = {name: shown for report in reports for name, shown in report.lost.items()}
        degraded += [f"the store lost list {name} (it shows {shown}); the memory stays in force" for name, shown in lost.items()]
        copies = dict.fromkeys(name for report in reports for name in report.from_copy)
        degraded += [f"list {name} is this node's last good copy" for name in copies]
        word = "not ready" if not_ready else "degraded" if degraded else "ready"
        return word, not_ready + degraded

    # ---- commands ----

    async def status(self) -> dict[str, Any]:
        """How the node is: a Nagios state with its code, one line, and the figures behind it."""
        reports = await self._crew.reports()
        word, why = self._readiness(reports)
        lists: dict[str, Mapping[str, Any]] = {}
        peers: dict[str, int] = {}
        for report in reports:
            for name, found in report.lists.items():
                lists[name] = min(lists.get(name, found), found, key=lambda of: (of["serial"], of["generation"]))
            for label, number in report.connected.items():
                peers[label] = peers.get(label, 0) + number
        now = datetime.now(UTC)
        past = [name for name, found in lists.items() if found["expires"] and datetime.fromisoformat(found["expires"]) <= now]
        warnings = why + [f"list {name} is past its expiry" for name in past]
        if any(report.overridden for report in reports):
            warnings.append("the policy's override answers everything alike")
        shedding = dict.fromkeys(label for report in reports for label in report.shedding)
        warnings += [f"requests of {label} are above a rate limit and turned away" for label in shedding]
        disabled = dict.fromkeys(label for report in reports for label in report.disabled)
        warnings += [f"peer {label} is disabled" for label in disabled]
        if peers and not any(peers.values()) and time.time() - self._started >= PEERLESS_S:
            warnings.append(f"0 of {len(peers)} peers connected")
        code, state = CRITICAL if word == "not ready" else WARNING if warnings else OK
        checks = sum(report.checks for report in reports)
        entries = sum(found["entries"] for found in lists.values())
        figures = f"{len(lists)} lists, {entries} entries, {sum(peers.values())} connections, {checks} checks"
        return {
            "state": state,
            "code": code,
            "summary": "; ".join([*warnings, figures]),
            "ready": word,
            "version": __version__,
            "pid": self._pid,
            "uptime_s": round(time.time() - self._started),
            "workers": len(reports),
            "tasks": sum(report.tasks for report in reports),
            "in_step": all(report.lists == reports[0].lists for report in reports),
            "listening": self.listening,
            "http": self._http_address,
            "lists": lists,
            "peers": peers,
            "checks": checks,
        }

    async def _reload(self) -> str:
        who = await asker()
        try:
            said = await self._crew.reload(who)
        except (EirError, OSError) as e:
            tell_refusal(self._report, e, who)
            raise
        missing = dict.fromkeys(name for report in await self._crew.reports() for name in report.missing)
        return "; ".join([said, *(f"list {name} has never been loaded: load it first" for name in missing)])

    def _drain(self, _: Mapping[str, Any]) -> str:
        self._stop("drain")
        return "draining: DPR to each peer, then the end"

    async def _set_peer(self, arguments: Mapping[str, Any], *, enabled: bool) -> str:
        label = str(arguments.get("name"))
        if not await self._crew.set_peer(label, enabled=enabled):
            known = ", ".join(dict.fromkeys(row["label"] for row in await self._crew.peers()))
            raise EirError(f"no peer {label}; there are: {known or 'none'}")
        self._report("peer_enabled" if enabled else "peer_disabled", peer=label, level="warning", who=await asker())
        return f"{label} is in service" if enabled else f"{label} is out of service until `eir peer enable {label}` or a restart"


def cannot_listen(where: str, fault: OSError) -> EirError:
    """What ends a node that cannot have one of its listeners."""
    advice = LISTEN_ADVICE.get(fault.errno or 0)
    return EirError(f"cannot listen on {where}: {fault.strerror or fault}{f' ({advice})' if advice else ''}")


def tell_refusal(report: Report, fault: EirError | OSError, who: str) -> None:
    """A reload that changed nothing: one line for each thing that is wrong."""
    for problem in fault.problems if isinstance(fault, ConfigError) else (fault,):
        report("reload_refused", level="error", reason="configuration", detail=str(problem), who=who)


def _live() -> Response:
    return Response(200, "text/plain; charset=utf-8", b"live\n")

"""Workers, as the supervisor manages them: their settings, calls to workers, and the table of all connections of peers.

The table decides which connections of a peer may stay open (eir.wire.diameter.admission). For this, the workers report events of
their connections, and receive orders. The counters of an ended worker are kept here.
"""

import asyncio
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from eir.checks.explain import Explanation
from eir.checks.question import Question
from eir.checks.trace import TraceFilter
from eir.errors import EirError, Report
from eir.lists.images.image import Image
from eir.node.observe import metrics
from eir.node.observe.status import WorkerReport, merged_peers
from eir.node.processes.accept import Acceptor
from eir.node.processes.channel import Channel, ChannelError, Handlers
from eir.node.processes.child import START_S, Child, Process, Start
from eir.node.processes.configuration import Loaded
from eir.node.processes.setup import Listed, send_list
from eir.node.processes.worker import Configured
from eir.wire.diameter.admission import Admission, Claim, Order
from eir.wire.peers.gate import Counted, SourceCounts
from eir.wire.peers.link import process_of
from eir.wire.peers.rate import memory_file

if TYPE_CHECKING:
    from eir.node.processes.following import Followed
    from eir.wire.web.tokens import KeyFiles


@dataclass(slots=True, eq=False)
class _Worker:
    """Supervisor's data about a running worker: process, open connections, and whether the worker accepts connections."""

    child: Child
    process: Process
    started: bool = False
    """True if the worker has its lists and accepts connections."""
    leaving: bool = False
    """True if the worker was stopped, so that it accepts no further connections."""
    connections: SourceCounts = field(default_factory=SourceCounts)
    """Open connections of the worker."""
    named: set[int] = field(default_factory=set)
    """Numbers of the worker's connections in the admission table."""

    def start(self) -> None:
        """Record that this worker has its lists and accepts connections."""
        self.started = True

    def leave(self) -> None:
        """Record that this worker was stopped and accepts no further connections."""
        self.leaving = True

    @property
    def number(self) -> int:
        """Number of the worker, from 0."""
        return self.child.number or 0

    @property
    def channel(self) -> Channel:
        """Channel to the worker."""
        return self.process.channel


class Workers:
    """All workers of the node, as the supervisor handles them.

    `loaded`: function that returns the settings in force. `traced`: function that receives each record of a trace. After the end
    of a worker, the acceptor pauses until the successor has started.
    """

    def __init__(
        self, wanted: int, start: Start, loaded: Callable[[], Loaded], lists: "Followed", acceptor: Acceptor, *,
        origin_state_id: int, sightings: socket.socket | None, traced: Callable[[dict[str, Any]], None], report: Report,
    ) -> None:  # fmt: skip
        """Create the `Child` object of each worker. No process is started yet.

        `sightings`: socket over which workers send checks to the recorder.
        """
        self._granted = memory_file(wanted)
        """Memory in which the workers count requests for their common limits per second."""
        carried = [self._granted] if sightings is None else [self._granted, sightings]
        self.children: list[Child] = []
        for number in range(wanted):
            name = f"worker-{number}"
            self.children.append(Child(
                name, partial(start, name, "eir.node.processes.worker:run", number, origin_state_id, carrying=carried), report=report,
                greet=partial(self._greet, number), handlers=lambda process: self._handlers(self._workers[process.pid]),
                left=self._leave, serves=True, number=number,
            ))  # fmt: skip
        self.changed = asyncio.Event()
        """Set after a worker has started to serve, or has ended."""
        lists.deliver_to(self.distribute, self.complete, self.reject_first_seen)
        self._loaded = loaded
        self._lists = lists
        self._acceptor = acceptor
        self._traced = traced
        self._report = report
        self._workers: dict[int, _Worker] = {}
        """Workers by process id."""
        self._admission = Admission()
        self._not_away: set[str] = set()
        """Labels of peers that do not count as away: their last client ended in order, and connects only for requests."""
        self._disabled: set[str] = set()
        """Labels of peers that are out of service."""
        self._dials = False
        self._sought: TraceFilter | None = None
        """Filter of the running trace; None: no trace runs."""

    @property
    def all_started(self) -> bool:
        """True if every configured worker accepts connections."""
        started = [worker for worker in self._workers.values() if worker.started]
        return len(started) == len(self._workers) == len(self.children)

    def _configured(self, number: int, loaded: Loaded) -> Configured:
        config, tls, keys = loaded
        dials = self._dials and number == 0
        return Configured(config, sorted(self._disabled), tls, keys, dials=dials, sought=self._sought)

    def _greet(self, number: int, process: Process) -> None:
        process.channel.notify("configure", self._configured(number, self._loaded()))
        self._workers[process.pid] = _Worker(self.children[number], process)
        self._lists.send_all(process.channel)

    def _leave(self, process: Process) -> None:
        worker = self._workers.pop(process.pid)
        for source in worker.connections.elements():
            self._acceptor.remove(source)
        for number in worker.named:
            self._order(self._admission.closed(number))
        self._change()
        self._acceptor.pause()

    def _change(self) -> None:
        if self.all_started:
            self._acceptor.resume()
        self.changed.set()

    def end(self) -> None:
        """Stop all workers. Each worker ends its connections in order."""
        for worker in self._workers.values():
            worker.leave()
            worker.channel.notify("end")

    def close(self) -> None:
        """Free the memory that the workers share."""
        self._granted.close()

    def pass_connection(self, listener: int, source: Counted, connection: socket.socket) -> bool:
        """Pass a connection to the worker with the fewest connections; return false if no worker accepts it.

        Workers that do not answer the supervisor in time come last.
        """
        ready = [worker for worker in self._workers.values() if worker.started and not worker.leaving]
        ready.sort(key=lambda worker: (worker.child.is_late, worker.connections.total, worker.number))
        for worker in ready:
            if worker.channel.try_notify("connection", listener, source, carrying=[connection]):
                worker.connections.add(source)
                return True
        return False

    def distribute(self, listed: Listed, image: Image) -> None:
        """Send a list to every worker, which puts it in force."""
        for worker in self._workers.values():
            send_list(worker.channel, listed, image)

    def reject_first_seen(self, peer: str, keys: list[int]) -> None:
        """Let every worker remove these devices from its queue of new devices, because their first sightings are not recorded.

        `peer`: label of the peer above its limit.
        """
        for worker in self._workers.values():
            worker.channel.notify("first_seen_rejected", peer, keys)

    def complete(self) -> None:
        """Inform every worker that it has received all lists."""
        for worker in self._workers.values():
            worker.channel.notify("complete")

    # Calls of workers

    def _handlers(self, worker: _Worker) -> Handlers:
        def started() -> None:
            worker.start()
            self._change()

        def gone(source: Counted) -> None:
            worker.connections.remove(source)
            self._acceptor.remove(source)

        def reported(what: str, connection: int, *details: Any) -> None:
            """Pass the event `what` of a Diameter connection to the admission, and send the resulting orders to the workers."""
            worker.named.add(connection)
            if what == "closed":
                worker.named.discard(connection)
            self._order(getattr(self._admission, what)(connection, *details))

        def arrived(claim: Claim) -> None:
            worker.named.add(claim.connection)
            self._not_away.discard(claim.label)
            self._order(self._admission.arrived(claim))

        def client_named(protocol: str, name: str) -> None:
            """Send the name of a new GSUP client to all other workers. Each tests whether its own client with this name still answers."""
            for other in self._workers.values():
                if other is not worker:
                    other.channel.try_notify("doubt", protocol, name)

        return {
            "started": started, "leaving": worker.leave, "gone": gone, "reported": reported, "arrived": arrived,
            "may_dial": self._admission.may_dial, "stay_away": self._admission.stay_away, "traced": self._traced,
            "client_named": client_named, "connection_ended": self._note_end, "first_seen": self._lists.note_first_seen,
        }  # fmt: skip

    def _note_end(self, label: str, is_away: bool) -> None:
        """Record whether a peer counts as absent (`is_away`) after its connection has ended. A warning names absent peers."""
        if is_away:
            self._not_away.discard(label)
        else:
            self._not_away.add(label)

    def _order(self, orders: Sequence[Order]) -> None:
        """Send orders about connections, such as to close a connection. Each order goes to the worker that has the connection."""
        for order in orders:
            worker = self._workers.get(process_of(order.connection))
            if worker is not None:
                worker.channel.notify("order", order)

    # Calls to workers

    async def _ask_all(
        self, what: str, arguments: Callable[[_Worker], tuple[Any, ...]] | None = None, faults: list[str] | None = None
    ) -> list[tuple[_Worker, Any]]:
        """Call a handler of every started worker; return the answer of each worker that has answered.

        A failure is logged, unless the worker was stopped. A call with `arguments` changes settings, so it also goes to workers
        that are starting, with the time limit of a start. The texts of failures are appended to `faults`.
        """
        workers = [worker for worker in self._workers.values() if worker.started or arguments is not None]
        calls = []
        for worker in workers:
            values = () if arguments is None else arguments(worker)
            patience_s = 0.0 if worker.started else START_S
            calls.append(worker.channel.ask(what, *values, patience_s=patience_s))
        answers = await asyncio.gather(*calls, return_exceptions=True)
        given = []
        for worker, answer in zip(workers, answers, strict=True):
            if not isinstance(answer, BaseException):
                given.append((worker, answer))
            elif not isinstance(answer, ChannelError):
                raise answer
            elif not (worker.leaving and worker.channel.gone.is_set()):  # a stopped worker cannot answer
                self._report("worker_failed", level="warning", reason=what, worker=worker.number, detail=str(answer))
                if faults is not None:
                    faults.append(str(answer))
        return given

    async def snapshot(self) -> metrics.Snapshot:
        """Return the metrics of all workers, including the counters of ended workers."""
        for worker, answer in await self._ask_all("snapshot"):
            worker.child.count(answer)
        merged = self.figures()
        if "eir_peer_up" in merged:
            up = merged["eir_peer_up"].items()
            merged["eir_peer_up"] = {(label,): value for (label,), value in up if value or label not in self._not_away}
        return merged

    def figures(self) -> metrics.Snapshot:
        """Return the sum of all workers' counters as last reported, about 1 s old. The call sends no request to workers."""
        return metrics.merge([child.snapshot() for child in self.children])

    async def reports(self) -> list[WorkerReport]:
        """Return the status report of each worker, and send each worker the lists that it lacks."""
        reports = []
        for worker, report in await self._ask_all("report"):
            self._lists.send_missing(worker.channel, report.lists)
            peers = report.connected.items()
            connected = {label: count for label, count in peers if count or label not in self._not_away}
            reports.append(replace(report, connected=connected))
        return reports

    async def explain(self, question: Question) -> Explanation:
        """Return the answer that a check would get at present, and the reasons, from the first worker that has its lists.

        Raises:
            EirError: if no worker has its lists, or the worker rejects the question.
        """
        for worker in self._workers.values():
            if worker.started:
                explanation: Explanation = await worker.channel.ask("explain", question)
                return explanation
        raise EirError("no worker has its lists yet; try again in a moment")

    async def peers(self) -> list[dict[str, Any]]:
        """Return the rows of `eir peers`: all connections, and entries of the peer table without a connection."""
        answers = await self._ask_all("peers")
        return merged_peers([(worker.number, rows) for worker, rows in answers])

    async def prepare(self, loaded: Loaded) -> None:
        """Let all workers prepare new settings, so that either all workers can apply them, or none does.

        Raises:
            EirError: if a worker cannot prepare the settings or does not answer. Nothing has changed then.
        """
        workers = list(self._workers.values())
        faults: list[str] = []
        ready = await self._ask_all("prepare", lambda worker: (self._configured(worker.number, loaded),), faults)
        failed = len(workers) - len(ready)
        if failed:
            reasons = "".join(f": {fault}" for fault in dict.fromkeys(faults)) or "; see event=worker_failed in the log"
            raise EirError(
                f"{failed} of {len(workers)} workers did not prepare the reload, so nothing changed{reasons}"
            )

    async def apply_prepared(self) -> None:
        """Let all workers apply the prepared settings. A worker that fails is killed: its successor starts with the settings."""
        workers = list(self._workers.values())  # workers that start later have the settings already
        answers = await self._ask_all("take_over", lambda _: ())
        done = {worker.process for worker, _ in answers}
        for worker in workers:
            if worker.process not in done:
                worker.process.kill()

    async def set_peer(self, label: str, *, enabled: bool) -> None:
        """Put a peer into service, or take it out of service, in all workers, also in workers that start later."""
        if enabled:
            self._disabled.discard(label)
        else:
            self._disabled.add(label)
        await self._ask_all("set_peer", lambda _: (label, enabled))

    async def set_keys(self, keys: "Mapping[str, KeyFiles | None]") -> None:
        """Let all workers verify access tokens with new keys."""
        await self._ask_all("set_keys", lambda _: (keys,))

    async def trace(self, sought: TraceFilter | None) -> None:
        """Let all workers report the checks that match the filter `sought`. Without a filter, workers report no checks."""
        self._sought = sought
        await self._ask_all("trace", lambda _: (sought,))

    def dial(self) -> None:
        """Let worker 0 connect to peers, now and after each of its restarts."""
        self._dials = True
        for worker in self._workers.values():
            if worker.number == 0:
                worker.channel.notify("dial")

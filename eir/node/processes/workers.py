"""Supervisor's side of the workers: their settings, requests to them, and the common table of peers' connections.

The table decides which connections of a peer may be open (eir.wire.diameter.admission): workers report events of their
connections, and receive orders. The counters of a worker outlive it here.
"""

import asyncio
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from eir.checks.explain import Explanation
from eir.checks.question import Question
from eir.checks.trace import TraceFilter
from eir.errors import EirError, Report
from eir.lists.images.image import Image
from eir.node.observe import metrics
from eir.node.observe.status import WorkerReport, merged_peers
from eir.node.processes.accept import Acceptor
from eir.node.processes.channel import Channel, ChannelError, Handlers
from eir.node.processes.child import Child
from eir.node.processes.configuration import Loaded
from eir.node.processes.setup import Listed, send_list
from eir.node.processes.starter import START_S, Process, Start
from eir.node.processes.worker import Configured, run
from eir.wire.diameter.admission import Admission, Claim, Order
from eir.wire.peers.rate import memory_file

if TYPE_CHECKING:
    from eir.node.processes.following import Followed
    from eir.wire.web.tokens import KeyFiles


@dataclass(slots=True, eq=False)
class _Worker:
    """Supervisor's state of one running worker."""

    child: Child
    process: Process
    started: bool = False
    """True if the worker has its lists and accepts connections."""
    leaving: bool = False
    """True if the worker accepts no further connections, because it was stopped."""
    connections: set[int] = field(default_factory=set)
    """Numbers of the connections that it has."""
    named: set[tuple[int, int]] = field(default_factory=set)
    """Its connections in the admission table, as (pid, number in the worker)."""

    def start(self) -> None:
        """Record that the worker has its lists and accepts connections."""
        self.started = True

    def leave(self) -> None:
        """Record that the worker accepts no further connections."""
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
    """All workers of the node, from the supervisor's side.

    `loaded` returns the settings in force. After the end of a worker, the acceptor pauses until its successor has started.
    `traced` receives each record of a trace.
    """

    def __init__(
        self, wanted: int, start: Start, loaded: Callable[[], Loaded], lists: "Followed", acceptor: Acceptor, *,
        origin_state_id: int, sightings: socket.socket | None, traced: Callable[[dict[str, Any]], None], report: Report,
    ) -> None:  # fmt: skip
        """Create the workers' child processes; no worker is started yet.

        `sightings`: socket over which workers send checks to the recorder.
        """
        self._granted = memory_file(wanted)
        """Memory in which the workers share the limits on requests per second."""
        carried = [self._granted, *filter(None, (sightings,))]
        self.children = [
            Child(
                f"worker-{number}",
                partial(start, f"worker-{number}", run, number, origin_state_id, carrying=carried),
                report=report,
                greet=partial(self._greet, number),
                handlers=lambda process: self._handlers(self._workers[process.pid]),
                left=self._leave,
                serves=True,
                number=number,
            )
            for number in range(wanted)
        ]
        self.changed = asyncio.Event()
        """Set when a worker came, started or ended."""
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
        """Labels of peers without a connection that are not away: their last client connects only for requests, and ended in order."""
        self._disabled: set[str] = set()
        """Labels of peers that are out of service."""
        self._dials = False
        self._sought: TraceFilter | None = None
        """Checks that are traced."""

    @property
    def all_started(self) -> bool:
        """True if every configured worker accepts connections."""
        return len(self._workers) == len(self.children) and all(worker.started for worker in self._workers.values())

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
        for connection in worker.connections:
            self._acceptor.gone(connection)
        for name in list(worker.named):
            self._order(self._admission.closed(name))
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

    def pass_connection(self, listener: int, number: int, connection: socket.socket) -> bool:
        """Pass a connection to the worker with the fewest connections; return false if no worker accepts it.

        Workers that answer the supervisor in time come first.
        """
        ready = [worker for worker in self._workers.values() if worker.started and not worker.leaving]
        for worker in sorted(ready, key=lambda worker: (worker.child.is_late, len(worker.connections), worker.number)):
            if worker.channel.try_notify("connection", listener, number, carrying=[connection]):
                worker.connections.add(number)
                return True
        return False

    def distribute(self, listed: Listed, image: Image) -> None:
        """Send a list to every worker, which puts it in force."""
        for worker in self._workers.values():
            send_list(worker.channel, listed, image)

    def reject_first_seen(self, peer: str, keys: list[int]) -> None:
        """Let every worker remove devices from its list of new devices, because their first sighting is not recorded.

        `peer`: label of the peer above its limit.
        """
        for worker in self._workers.values():
            worker.channel.notify("first_seen_rejected", peer, keys)

    def complete(self) -> None:
        """Inform every worker that all lists of the follower have been sent."""
        for worker in self._workers.values():
            worker.channel.notify("complete")

    # Calls of workers

    def _handlers(self, worker: _Worker) -> Handlers:
        def started() -> None:
            worker.start()
            self._change()

        def leaving() -> None:
            worker.leave()

        def gone(number: int) -> None:
            worker.connections.discard(number)
            self._acceptor.gone(number)

        def reported(what: str, connection: int, *details: Any) -> None:
            """Pass an event of a worker's connection to the admission, and send the resulting orders to workers."""
            name = worker.process.pid, connection
            worker.named.add(name)
            if what == "closed":
                worker.named.discard(name)
            self._order(getattr(self._admission, what)(name, *details))

        def arrived(claim: Claim) -> None:
            name = worker.process.pid, cast("int", claim.connection)
            worker.named.add(name)
            self._not_away.discard(claim.label)
            self._order(self._admission.arrived(replace(claim, connection=name)))

        def client_named(protocol: str, name: str) -> None:
            """Send a client's name to all other workers, because only one client of the node may use the name."""
            for other in self._workers.values():
                if other is not worker:
                    other.channel.try_notify("doubt", protocol, name)

        return {
            "started": started, "leaving": leaving, "gone": gone, "reported": reported, "arrived": arrived,
            "may_dial": self._admission.may_dial, "stay_away": self._admission.stay_away, "traced": self._traced,
            "said_name": client_named, "connection_ended": self._note_end, "first_seen": self._lists.note_first_seen,
        }  # fmt: skip

    def _note_end(self, label: str, is_away: bool) -> None:
        """Record whether a peer counts as away after the end of its last connection.

        `is_away`: True if it does.
        """
        if is_away:
            self._not_away.discard(label)
        else:
            self._not_away.add(label)

    def _order(self, orders: Sequence[Order]) -> None:
        """Send each order to the worker that has the order's connection."""
        for order in orders:
            pid, connection = cast("tuple[int, int]", order.connection)
            if (worker := self._workers.get(pid)) is not None:
                worker.channel.notify("order", replace(order, connection=connection))

    # Calls to workers

    async def _ask_all(
        self, what: str, arguments: Callable[[_Worker], tuple[Any, ...]] | None = None
    ) -> list[tuple[_Worker, Any]]:
        """Call a handler of every started worker, and return each worker with its answer.

        A failure is logged, unless the worker was stopped. A call with `arguments` changes something: it also goes to a worker
        that is starting, with the time limit of a start.
        """
        workers = [worker for worker in self._workers.values() if worker.started or arguments is not None]
        answers = await asyncio.gather(
            *(
                worker.channel.ask(
                    what, *(arguments(worker) if arguments else ()), patience_s=0.0 if worker.started else START_S
                )
                for worker in workers
            ),
            return_exceptions=True,
        )
        given = []
        for worker, answer in zip(workers, answers, strict=True):
            if not isinstance(answer, BaseException):
                given.append((worker, answer))
            elif not isinstance(answer, ChannelError):
                raise answer
            elif not (worker.leaving and worker.channel.gone.is_set()):  # the end of the worker ends the call
                self._report("worker_failed", level="warning", reason=what, worker=worker.number, detail=str(answer))
        return given

    async def snapshot(self) -> metrics.Snapshot:
        """Return the metrics of all workers, including the counters of ended workers."""
        for worker, answer in await self._ask_all("snapshot"):
            worker.child.count(answer)
        merged = self.figures()
        if (up := merged.get("eir_peer_up")) is not None:
            merged["eir_peer_up"] = {
                labels: value for labels, value in up.items() if value or labels[0] not in self._not_away
            }
        return merged

    def figures(self) -> metrics.Snapshot:
        """Return the last counters of all workers without a call to them. They are at most about 1 s old."""
        return metrics.merge([child.snapshot() for child in self.children])

    async def reports(self) -> list[WorkerReport]:
        """Return the status report of each worker, and send each worker the lists that it lacks."""
        reports = []
        for worker, report in await self._ask_all("report"):
            self._lists.send_missing(worker.channel, report.lists)
            connected = {
                label: count for label, count in report.connected.items() if count or label not in self._not_away
            }
            reports.append(replace(report, connected=connected))
        return reports

    async def explain(self, question: Question) -> Explanation:
        """Return the answer to a question and its reasons, from the first worker that has its lists.

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
        return merged_peers([(worker.number, rows) for worker, rows in await self._ask_all("peers")])

    async def prepare(self, loaded: Loaded) -> None:
        """Let all workers prepare new settings, so that either all of them apply the settings, or none.

        Raises:
            EirError: if a worker cannot prepare it or does not answer; nothing has changed then.
        """
        workers = list(self._workers.values())
        ready = await self._ask_all("prepare", lambda worker: (self._configured(worker.number, loaded),))
        if len(ready) < len(workers):
            raise EirError(
                f"{len(workers) - len(ready)} of {len(workers)} workers did not prepare the reload, so nothing changed; see event=worker_failed in the log"
            )

    async def apply_prepared(self) -> None:
        """Let all workers apply the prepared settings.

        A worker that does not apply them is killed, because its successor starts with them.
        """
        asked = list(self._workers.values())  # new workers have started with it
        done = {worker.process for worker, _ in await self._ask_all("take_over", lambda _: ())}
        for worker in asked:
            if worker.process not in done:
                worker.process.kill()

    async def set_peer(self, label: str, *, enabled: bool) -> None:
        """Put a peer into service, or take it out of service, in all workers.

        Workers that start later receive this setting too.
        """
        if enabled:
            self._disabled.discard(label)
        else:
            self._disabled.add(label)
        await self._ask_all("set_peer", lambda _: (label, enabled))

    async def set_keys(self, keys: "Mapping[str, KeyFiles | None]") -> None:
        """Let all workers verify access tokens with new keys."""
        await self._ask_all("set_keys", lambda _: (keys,))

    async def trace(self, sought: TraceFilter | None) -> None:
        """Let all workers report the checks that match the trace `sought`. None: no checks."""
        self._sought = sought
        await self._ask_all("trace", lambda _: (sought,))

    def dial(self) -> None:
        """Let the worker with number 0, also after its restart, make the outgoing connections to peers."""
        self._dials = True
        for worker in self._workers.values():
            if worker.number == 0:
                worker.channel.notify("dial")

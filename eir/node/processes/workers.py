"""The workers as the supervisor sees them: what each has, what each is asked, and the one table of peers' connections.

The table says which connections of a peer are wanted (eir.wire.diameter.admission); workers tell what happens on theirs, and get
its orders. What a worker has counted outlives it here.
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
from eir.node.processes.setup import Listed, hand_over
from eir.node.processes.starter import START_S, Process, Start
from eir.node.processes.worker import Configured, run
from eir.wire.diameter.admission import Admission, Claim, Order
from eir.wire.peers.rate import memory_file

if TYPE_CHECKING:
    from eir.node.processes.following import Followed
    from eir.wire.web.tokens import KeyFiles


@dataclass(slots=True, eq=False)
class _Worker:
    """One worker."""

    child: Child
    process: Process
    started: bool = False
    """The worker has its lists and takes connections."""
    leaving: bool = False
    """It takes none any more: somebody has told it to end."""
    connections: set[int] = field(default_factory=set)
    """Numbers of those that were handed to it and are not gone."""
    named: set[tuple[int, int]] = field(default_factory=set)
    """Its connections in the admission table: (pid, the worker's number for it)."""

    def start(self) -> None:
        """Note that the worker takes connections."""
        self.started = True

    def leave(self) -> None:
        """Note that the worker takes no further connection."""
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
    """All workers of the node.

    `loaded` returns the settings in force. A worker that ends has the acceptor pause until its successor is there. `traced` is called with
    each record of a trace.
    """

    def __init__(
        self, wanted: int, start: Start, loaded: Callable[[], Loaded], lists: "Followed", acceptor: Acceptor, *,
        origin_state_id: int, sightings: socket.socket | None, traced: Callable[[dict[str, Any]], None], report: Report,
    ) -> None:  # fmt: skip
        """`sightings`: the end of a socket over which workers send their checks to the recorder."""
        self._granted = memory_file(wanted)
        """Over it the workers share the limits on requests a second."""
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
        """A worker came, started or ended."""
        lists.deliver_to(self.put_in_force, self.complete)
        self._loaded, self._lists, self._acceptor, self._traced, self._report = loaded, lists, acceptor, traced, report
        self._workers: dict[int, _Worker] = {}
        """Workers by process id."""
        self._admission = Admission()
        self._not_away: set[str] = set()
        """Labels of peers whose last connection was that of a client that connects when it has a request, and ended in order."""
        self._disabled: set[str] = set()
        """Labels of peers that are out of service."""
        self._dials = False
        self._sought: TraceFilter | None = None
        """The checks that are traced."""

    @property
    def all_started(self) -> bool:
        """Every worker that there should be takes connections."""
        return len(self._workers) == len(self.children) and all(worker.started for worker in self._workers.values())

    def _configured(self, number: int, loaded: Loaded) -> Configured:
        config, tls, keys = loaded
        dials = self._dials and number == 0
        return Configured(config, sorted(self._disabled), tls, keys, dials=dials, sought=self._sought)

    def _greet(self, number: int, process: Process) -> None:
        process.channel.tell("configure", self._configured(number, self._loaded()))
        self._workers[process.pid] = _Worker(self.children[number], process)
        self._lists.hand_all(process.channel)

    def _leave(self, process: Process) -> None:
        worker = self._workers.pop(process.pid)
        for connection in worker.connections:
            self._acceptor.gone(connection)
        for name in list(worker.named):
            self._order(self._admission.closed(name))
        self._change()
        self._acceptor.hold()

    def _change(self) -> None:
        if self.all_started:
            self._acceptor.resume()
        self.changed.set()

    def end(self) -> None:
        """Have all of them send their peers away and end."""
        for worker in self._workers.values():
            worker.leave()
            worker.channel.tell("end")

    def close(self) -> None:
        """Free the memory that workers share."""
        self._granted.close()

    def hand_over(self, listener: int, number: int, connection: socket.socket) -> bool:
        """Give a connection to the worker that has the fewest, of those that are well if there are any; False if no worker takes it."""
        ready = [worker for worker in self._workers.values() if worker.started and not worker.leaving]
        for worker in sorted(ready, key=lambda worker: (worker.child.is_late, len(worker.connections), worker.number)):
            if worker.channel.hand("connection", listener, number, carrying=[connection]):
                worker.connections.add(number)
                return True
        return False

    def put_in_force(self, listed: Listed, image: Image) -> None:
        """Have every worker take over a list."""
        for worker in self._workers.values():
            hand_over(worker.channel, listed, image)

    def complete(self) -> None:
        """Tell every worker that it has all lists that there are as yet."""
        for worker in self._workers.values():
            worker.channel.tell("complete")

    # ---- what workers tell and ask ----

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
            """Something happened to a connection, by the worker's number for it: the table decides what comes of it."""
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

        def said_name(protocol: str, name: str) -> None:
            """A client has said a name that only one may have."""
            for other in self._workers.values():
                if other is not worker:
                    other.channel.hand("doubt", protocol, name)

        return {
            "started": started, "leaving": leaving, "gone": gone, "reported": reported, "arrived": arrived,
            "may_dial": self._admission.may_dial, "stay_away": self._admission.stay_away, "traced": self._traced,
            "said_name": said_name, "connection_ended": self._note_end,
        }  # fmt: skip

    def _note_end(self, label: str, is_away: bool) -> None:
        """Remember whether a peer whose connection has ended counts as away without one."""
        if is_away:
            self._not_away.discard(label)
        else:
            self._not_away.add(label)

    def _order(self, orders: Sequence[Order]) -> None:
        """Send each order to the worker that has the connection."""
        for order in orders:
            pid, connection = cast("tuple[int, int]", order.connection)
            if (worker := self._workers.get(pid)) is not None:
                worker.channel.tell("order", replace(order, connection=connection))

    # ---- what they are asked ----

    async def _ask_all(
        self, what: str, arguments: Callable[[_Worker], tuple[Any, ...]] | None = None
    ) -> list[tuple[_Worker, Any]]:
        """Return every started worker's answer; log the reason if a worker gives none, unless the worker was told to end.

        What has `arguments` changes something: a worker that is still at its start is asked too, and has as long as a start may take.
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
            elif not (worker.leaving and worker.channel.gone.is_set()):  # the end cuts off a question
                self._report("worker_failed", level="warning", reason=what, worker=worker.number, detail=str(answer))
        return given

    async def snapshot(self) -> metrics.Snapshot:
        """Return all numbers of all workers, including those that have ended."""
        for worker, answer in await self._ask_all("snapshot"):
            worker.child.count(answer)
        merged = self.figures()
        if (up := merged.get("eir_peer_up")) is not None:
            merged["eir_peer_up"] = {
                labels: value for labels, value in up.items() if value or labels[0] not in self._not_away
            }
        return merged

    def figures(self) -> metrics.Snapshot:
        """Return the counters of all workers as they last told them, within a second or so; nobody is asked."""
        return metrics.merge([child.snapshot() for child in self.children])

    async def reports(self) -> list[WorkerReport]:
        """Return the status of each worker."""
        found = []
        for worker, report in await self._ask_all("report"):
            self._lists.hand_missing(worker.channel, report.lists)
            connected = {
                label: count for label, count in report.connected.items() if count or label not in self._not_away
            }
            found.append(replace(report, connected=connected))
        return found

    async def explain(self, question: Question) -> Explanation:
        """Return what the first worker that has its lists would answer.

        Raises EirError if no worker has them, or if it refuses.
        """
        for worker in self._workers.values():
            if worker.started:
                explanation: Explanation = await worker.channel.ask("explain", question)
                return explanation
        raise EirError("no worker has its lists yet: ask again in a moment")

    async def peers(self) -> list[dict[str, Any]]:
        """All connections, and the entries of the peer table that have none."""
        return merged_peers([(worker.number, rows) for worker, rows in await self._ask_all("peers")])

    async def prepare(self, loaded: Loaded) -> None:
        """Have all workers do what may fail of another configuration: either all take it over then, or none.

        Raises EirError if one cannot, or says nothing; then nothing has changed.
        """
        workers = list(self._workers.values())
        ready = await self._ask_all("prepare", lambda worker: (self._configured(worker.number, loaded),))
        if len(ready) < len(workers):
            raise EirError(
                f"{len(workers) - len(ready)} of {len(workers)} workers did not take it over, so none did; the log says why (worker_failed)"
            )

    async def take_over(self) -> None:
        """Have them take over what they have prepared. One that does not is ended: the worker in its place begins with it."""
        asked = list(self._workers.values())  # who comes meanwhile has begun with it
        done = {worker.process for worker, _ in await self._ask_all("take_over", lambda _: ())}
        for worker in asked:
            if worker.process not in done:
                worker.process.kill()

    async def set_peer(self, label: str, *, enabled: bool) -> None:
        """Put a peer in or out of service in every worker, and in those that start later."""
        if enabled:
            self._disabled.discard(label)
        else:
            self._disabled.add(label)
        await self._ask_all("set_peer", lambda _: (label, enabled))

    async def set_keys(self, keys: "Mapping[str, KeyFiles | None]") -> None:
        """Have every worker check access tokens with these keys."""
        await self._ask_all("set_keys", lambda _: (keys,))

    async def trace(self, sought: TraceFilter | None) -> None:
        """Have every worker report these checks (None: no check)."""
        self._sought = sought
        await self._ask_all("trace", lambda _: (sought,))

    def dial(self) -> None:
        """Have the first worker connect to peers, and its successors."""
        self._dials = True
        for worker in self._workers.values():
            if worker.number == 0:
                worker.channel.tell("dial")

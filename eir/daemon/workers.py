"""The workers as the front sees them: what each has, what each is asked, and the one table of peers' connections.

The table says which connections of a peer are wanted (eir.diameter.admission); workers tell what happens on theirs, and get
its orders. What a worker has counted outlives it here.
"""

import asyncio
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, cast

from eir.checks.explain import Explanation
from eir.checks.question import Question
from eir.daemon.children import kill
from eir.daemon.faults import call_failed
from eir.daemon.handing import Complete, Connection, Handing, Listed
from eir.daemon.rpc import Handlers, RpcError, RpcLink, Unanswered, pass_on
from eir.daemon.worker import Configured
from eir.diameter.admission import Admission, Claim, Order
from eir.errors import EirError, Report
from eir.lists.amended import ListImage
from eir.lists.store import ListState
from eir.operate import metrics
from eir.operate.status import WorkerReport, merged_peers

if TYPE_CHECKING:
    from eir.n5g.tokens import KeyFiles

FIGURES_S = 1.0
"""What workers have counted is taken this often, so that a worker that ends leaves it behind."""
HUNG_QUESTIONS = 4
"""A process that leaves so many questions in a row without an answer is killed: a worker's peers find one that does. Not a time,
since a host that stood still has every process late once."""


@dataclass(slots=True, eq=False)
class _Worker:
    """One worker."""

    number: int
    pid: int
    link: RpcLink
    packets: socket.socket
    handing: Handing
    started: bool = False
    """It has its lists and takes connections."""
    connections: set[int] = field(default_factory=set)
    """Numbers of those that were handed to it and are not gone."""
    named: set[tuple[int, int]] = field(default_factory=set)
    """Its connections in the admission table: (pid, the worker's number for it)."""
    figures: metrics.Snapshot = field(default_factory=dict)
    """As they were last seen."""


class Lists(Protocol):
    """Where the lists are that workers get (eir.daemon.followed)."""

    def hand_all(self, handing: Handing) -> None:
        """Hand on what there is."""

    def hand_missing(self, handing: Handing, there: Mapping[str, ListState]) -> None:
        """Hand on what a worker that has these states does not have."""


class Workers:
    """All workers of the node.

    `configured` gives what a worker of this number is to be handed; `gone` is told of each connection that is over, and
    `changed` is called when a worker has come, has started or is no more.
    """

    def __init__(
        self, wanted: int, configured: Callable[[int], Configured], lists: Lists, *, gone: Callable[[int], None], changed: Callable[[], None],
        report: Report,
    ) -> None:  # fmt: skip
        self._wanted = wanted
        self._configured = configured
        self._lists = lists
        self._connection_gone = gone
        self._changed = changed
        self._report = report
        self._workers: dict[int, _Worker] = {}
        """By process id."""
        self._admission = Admission()
        self._left: metrics.Snapshot = {}
        """Counters of workers that are no more."""

    @property
    def all_started(self) -> bool:
        """Every worker that there should be takes connections."""
        return len(self._workers) == self._wanted and all(worker.started for worker in self._workers.values())

    @property
    def none_left(self) -> bool:
        """No worker runs."""
        return not self._workers

    async def attend(self, number: int, pid: int, stream: socket.socket, packets: socket.socket) -> None:
        """Hand a new worker its configuration, and listen to it until it is gone."""
        link = await RpcLink.over(stream)
        link.tell("configure", self._configured(number))
        worker = self._workers[pid] = _Worker(number, pid, link, packets, Handing(packets))
        self._lists.hand_all(worker.handing)

        def take(figures: metrics.Snapshot) -> None:
            worker.figures = worker.figures | figures

        keeping = asyncio.create_task(watch(pid, link, take, self._report, worker=number, ready=lambda: worker.started))
        try:
            await link.serve(self._handlers(worker), failed=call_failed(self._report, of_worker=number))
        finally:
            keeping.cancel()
            del self._workers[pid]
            worker.handing.close()
            link.close()
            packets.close()
            self._left = metrics.merge([self._left, metrics.outliving(worker.figures)])
            for connection in worker.connections:
                self._connection_gone(connection)
            for name in list(worker.named):
                self._order(self._admission.closed(name))
            self._changed()

    def end(self) -> None:
        """Have all of them end."""
        for worker in self._workers.values():
            kill(worker.pid, signal.SIGTERM)

    def hand_over(self, listener: int, number: int, connection: socket.socket) -> bool:
        """Give a connection to the worker that has the fewest; False if no worker takes it."""
        ready = [worker for worker in self._workers.values() if worker.started]
        for worker in sorted(ready, key=lambda worker: (len(worker.connections), worker.number)):
            with suppress(OSError):  # it is gone, or has too many waiting
                pass_on(worker.packets, Connection(listener, number), connection.fileno())
                worker.connections.add(number)
                return True
        return False

    def pass_on(self, what: Listed | Complete, image: ListImage | None) -> None:
        """Have every worker take over a list, or know that there is no other one."""
        for worker in self._workers.values():
            worker.handing.put(what, image)

    # ---- what workers tell and ask ----

    def _handlers(self, worker: _Worker) -> Handlers:
        def started() -> None:
            worker.started = True
            self._changed()

        def gone(number: int) -> None:
            worker.connections.discard(number)
            self._connection_gone(number)

        def reported(what: str, connection: int, *details: Any) -> None:
            """Something happened to a connection, by the worker's number for it: the table decides what comes of it."""
            name = worker.pid, connection
            worker.named.add(name)
            if what == "closed":
                worker.named.discard(name)
            self._order(getattr(self._admission, what)(name, *details))

        def arrived(claim: Claim) -> None:
            name = worker.pid, cast("int", claim.connection)
            worker.named.add(name)
            self._order(self._admission.arrived(replace(claim, connection=name)))

        return {
            "started": started, "gone": gone, "reported": reported, "arrived": arrived,
            "may_dial": lambda host: not self._admission.is_open(host),
        }  # fmt: skip

    def _order(self, orders: Sequence[Order]) -> None:
        """Send each order to the worker that has the connection."""
        for order in orders:
            pid, connection = cast("tuple[int, int]", order.connection)
            if (worker := self._workers.get(pid)) is not None:
                worker.link.tell("order", replace(order, connection=connection))

    # ---- what they are asked ----

    async def _ask_all(self, what: str, arguments: Callable[[_Worker], tuple[Any, ...]] | None = None) -> list[tuple[_Worker, Any]]:
        """Every started worker's answer; of one that has none, or says no, the log says why.

        What has `arguments` changes something: a worker that is still reading its lists is told, and does it once it has.
        """
        workers = [worker for worker in self._workers.values() if worker.started]
        for worker in self._workers.values():
            if arguments is not None and not worker.started:
                worker.link.tell(what, *arguments(worker))
        answers = await asyncio.gather(
            *(worker.link.ask(what, *(arguments(worker) if arguments else ())) for worker in workers), return_exceptions=True
        )
        given = []
        for worker, answer in zip(workers, answers, strict=True):
            if not isinstance(answer, BaseException):
                given.append((worker, answer))
            elif isinstance(answer, RpcError):
                self._report("worker_failed", level="warning", reason=what, worker=worker.number, detail=str(answer))
            else:
                raise answer
        return given

    async def snapshot(self) -> metrics.Snapshot:
        """All numbers of all workers, of those that are no more too."""
        for worker, answer in await self._ask_all("snapshot"):
            worker.figures = answer
        return metrics.merge([self._left, *(worker.figures for worker in self._workers.values())])

    async def reports(self) -> list[WorkerReport]:
        """How each worker is."""
        found = []
        for worker, report in await self._ask_all("report"):
            self._lists.hand_missing(worker.handing, report.lists)
            found.append(report)
        return found

    async def explain(self, question: Question) -> Explanation:
        """What the first worker that has its lists would answer. Raises EirError if none has them, or it says no."""
        for worker in self._workers.values():
            if worker.started:
                explanation: Explanation = await worker.link.ask("explain", question)
                return explanation
        raise EirError("no worker has its lists yet: ask again in a moment")

    async def peers(self) -> list[dict[str, Any]]:
        """All connections, and the entries of the peer table that have none."""
        return merged_peers([(worker.number, rows) for worker, rows in await self._ask_all("peers")])

    async def configure(self) -> None:
        """Hand all workers their configuration again. Raises EirError if one did not take it over."""
        asked = sum(worker.started for worker in self._workers.values())
        taken = await self._ask_all("configure", lambda worker: (self._configured(worker.number),))
        if len(taken) < asked:
            raise EirError(f"{asked - len(taken)} of {asked} workers did not take it over; the log says why (worker_failed)")

    async def set_peer(self, label: str, *, enabled: bool) -> None:
        """Put a peer in or out of service in every worker."""
        await self._ask_all("set_peer", lambda _: (label, enabled))

    async def set_keys(self, keys: "KeyFiles | None") -> None:
        """Have every worker check access tokens with these keys."""
        await self._ask_all("set_keys", lambda _: (keys,))

    def dial(self) -> None:
        """Have the worker that connects to peers begin."""
        for worker in self._workers.values():
            if worker.number == 0:
                worker.link.tell("dial")


async def watch(
    pid: int, link: RpcLink, take: Callable[[metrics.Snapshot], None], report: Report, *, ready: Callable[[], bool] = lambda: True, **who: Any
) -> None:  # fmt: skip
    """Take what a process has counted again and again, once it is ready, and kill it if it answers no more. `who`: as the log says it."""
    unanswered = 0
    while unanswered < HUNG_QUESTIONS:
        await asyncio.sleep(FIGURES_S)
        if not ready():
            continue
        try:
            take(await link.ask("counters"))
            unanswered = 0
        except Unanswered:
            unanswered += 1
        except RpcError as e:
            report("worker_failed", level="warning", reason="counters", detail=str(e), **who)
    report("worker_hung", level="error", unanswered=unanswered, **who)
    kill(pid, signal.SIGKILL)

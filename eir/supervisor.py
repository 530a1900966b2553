"""N workers that are one node: who starts them, who gets which connection, and whose figures are one truth.

Three kinds of process. The supervisor reads the lists once and forks the others, so that they share its memory; it has no
event loop and no thread, which is what makes forking at any time safe, and starts again whatever worker ends unasked. The
dispatcher accepts connections and hands each to the worker with the fewest; it keeps the one table that says which
connections of a peer are wanted, and serves /metrics and the control socket. The workers answer.
"""

import asyncio
import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import uvloop

from eir import __version__, metrics
from eir.channel import Channel, ChannelError, Ends, hand_over, pair, take_over
from eir.config import Config, load_config
from eir.diameter.admission import Admission, Admit, Claim, Drop, Order, Probe, Refuse
from eir.diameter.node import endpoint
from eir.errors import ConfigError, EirError, StoreError
from eir.front import Front, WorkerReport
from eir.lists.index import Index
from eir.log import Log
from eir.server import (
    DRAIN_S,
    Worker,
    kinds_of,
    listener_url,
    next_origin_state_id,
    prepare_state_folder,
    report_warnings,
)
from eir.stores.follow import Follower
from eir.stores.open import open_store

RESTART_S, RESTART_MAX_S = 0.1, 30.0
"""Pause before a worker that ended unasked is started again; it doubles up to the second."""
STEADY_S = 60.0
"""A worker that ran this long starts again with the first pause."""
END_S = DRAIN_S + 4.0
"""How long the processes have to end after SIGTERM, before they are killed."""
KEEP_S = 1.0
"""Workers' figures are taken this often, so that a worker that ends leaves them behind."""
BACKLOG = 1024
ORDERS = {order.__name__: order for order in (Admit, Refuse, Probe, Drop)}


def run(config: Config) -> int:
    """Serve with `config.workers` workers until SIGTERM or SIGINT; returns the exit status.

    Raises EirError if the node cannot start.
    """
    prepare_state_folder(config.state)
    return Supervisor(config).run()


# ---- the supervisor ----


@dataclass(slots=True)
class _Child:
    """A process that was forked; `worker` is None for the dispatcher."""

    worker: int | None
    started: float
    pause_s: float = RESTART_S


class Supervisor:
    """Forks, restarts and stops the processes of a node."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._origin_state_id = next_origin_state_id(config.state / "origin-state-id")
        self._index = Index(kinds_of(config))
        self._log = Log(time.monotonic, level=config.log_level, in_background=False)
        report_warnings(config, self._log)
        self._children: dict[int, _Child] = {}
        self._due: list[tuple[float, int, float]] = []
        """Workers to start again: when, which, and the pause that it had."""
        self._restarts = 0
        self._stopping = False
        self._ours, self._dispatchers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        """Over it the dispatcher gets its ends of the workers' channels."""

    def run(self) -> int:
        """See run."""
        try:
            asyncio.run(self._fill())
        except StoreError as e:
            self._log.report("store_away", level="error", reason=e.cause, detail=str(e))
        gc.collect()
        gc.freeze()  # shared with the children: a collection there must not write into it
        signals = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD}
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        dispatcher = self._fork(None, lambda: Dispatcher(self._config, self._dispatchers).serve())
        for worker in range(self._config.workers):
            self._start(worker)
        while True:
            wait_s = max(0.0, min((due for due, _, _ in self._due), default=time.monotonic() + 3600) - time.monotonic())
            arrived = signal.sigtimedwait(signals, wait_s)
            if arrived is not None and arrived.si_signo in {signal.SIGTERM, signal.SIGINT}:
                return self._stop()
            if arrived is not None and arrived.si_signo == signal.SIGHUP:
                _kill(dispatcher, signal.SIGHUP)
            for pid, status in self._reap():
                if pid == dispatcher:
                    self._stop()
                    return status or 1
            self._start_due()

    async def _fill(self) -> None:
        store = open_store(self._config.store, self._config.state)
        try:
            await Follower(store, self._index, report=self._log.report, on_switch=lambda *_: None).start()
        finally:
            await store.close()

    def _start(self, worker: int, pause_s: float = RESTART_S) -> None:
        with suppress(ConfigError, OSError):  # a bad file is no reason not to start again; the dispatcher names what is wrong
            self._config = load_config(self._config.path)
        here, there = pair()
        pid = self._fork(worker, lambda: work(self._config, self._origin_state_id, self._index, worker, there), pause_s)
        hello = f"{worker} {pid} {self._restarts}".encode()
        socket.send_fds(self._ours, [hello], [here.stream.fileno(), here.packets.fileno()])
        here.close()
        there.close()

    def _fork(self, worker: int | None, main: Callable[[], Coroutine[Any, Any, int]], pause_s: float = RESTART_S) -> int:
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid:
            self._children[pid] = _Child(worker, time.monotonic(), pause_s)
            return pid
        status = 1
        try:
            self._ours.close()
            if worker is not None:
                self._dispatchers.close()
            signal.pthread_sigmask(signal.SIG_SETMASK, set())
            status = uvloop.run(main())
        except EirError as e:
            print(f"eir: {e}", file=sys.stderr)
        except BaseException as e:  # noqa: BLE001 - the outermost frame of the process: say what it was and end
            print(f"eir: a process of the node ends: {type(e).__name__}: {e}", file=sys.stderr)
        finally:
            sys.stderr.flush()
            os._exit(status)

    def _reap(self) -> list[tuple[int, int]]:
        """Processes that have ended, with their exit status; workers that were not told to are set down to start again."""
        ended = []
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            child = self._children.pop(pid)
            ended.append((pid, os.waitstatus_to_exitcode(status)))
            if child.worker is not None and not self._stopping:
                ran_s = time.monotonic() - child.started
                pause_s = RESTART_S if ran_s > STEADY_S else child.pause_s
                self._due.append((time.monotonic() + pause_s, child.worker, min(2 * pause_s, RESTART_MAX_S)))
                self._log.report(
                    "worker_ended", level="error", worker=child.worker, status=ended[-1][1], ran_s=round(ran_s), restart_in_s=pause_s
                )
        return ended

    def _start_due(self) -> None:
        now = time.monotonic()
        due, self._due = [entry for entry in self._due if entry[0] <= now], [entry for entry in self._due if entry[0] > now]
        for _, worker, pause_s in due:
            self._restarts += 1
            self._start(worker, pause_s)

    def _stop(self) -> int:
        """End all processes in order; 0 if each ended by itself."""
        self._stopping = True
        for pid in self._children:
            _kill(pid, signal.SIGTERM)
        give_up = time.monotonic() + END_S
        while self._children and time.monotonic() < give_up:
            signal.sigtimedwait({signal.SIGCHLD}, 0.1)
            self._reap()
        late = list(self._children)
        for pid in late:
            _kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        return 1 if late else 0


def _kill(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


# ---- a worker ----


async def work(config: Config, origin_state_id: int, index: Index, number: int, ends: Ends) -> int:
    """One worker: answers on the connections that it is handed, until SIGTERM or until the dispatcher is gone."""
    log = Log(time.monotonic, level=config.log_level, full_identifiers=config.full_identifiers)
    channel = await Channel.over(ends.stream)
    worker = Worker(config, log, origin_state_id, desk=FarDesk(channel), index=index, dials=number == 0)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for ending in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(ending, stop.set)
    tasks: set[asyncio.Task[None]] = set()

    async def serve(connection: socket.socket) -> None:
        try:
            await worker.node.take(connection)
        finally:
            channel.send({"did": "gone"})

    def handed() -> None:
        while (given := take_over(ends.packets)) is not None:
            task = asyncio.create_task(serve(given[1]))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    async def listen() -> None:
        async for message in channel.messages():
            _heed(worker, channel, message)
        stop.set()

    try:
        await worker.start()
        loop.add_reader(ends.packets, handed)
        listening = asyncio.create_task(listen())
        channel.send({"did": "started"})
        await stop.wait()
        loop.remove_reader(ends.packets)
        await worker.stop()
        listening.cancel()
    finally:
        channel.close()
        log.close()
    return 0


def _heed(worker: Worker, channel: Channel, message: Mapping[str, Any]) -> None:
    """Do what the dispatcher orders, answer what it asks."""
    if "order" in message:
        worker.node.obey(ORDERS[message["order"]](**message["values"]))
        return
    question = dict(message)
    try:
        match message["ask"]:
            case "snapshot":
                result: Any = metrics.as_json(worker.snapshot())
            case "report":
                result = asdict(worker.report())
            case "peers":
                result = worker.peers()
            case "reload":
                result = worker.reload()
            case "set_peer":
                result = worker.set_peer(message["label"], enabled=message["enabled"])
            case unknown:
                raise ChannelError(f"no question {unknown}")
    except (EirError, OSError) as e:
        channel.answer(question, error=str(e))
    else:
        channel.answer(question, result)


class FarDesk:
    """A worker's desk: what happens goes to the dispatcher, whose orders come back over the channel."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def arrived(self, claim: Claim) -> None:
        """See Admission.arrived."""
        self._channel.send({"did": "arrived", "claim": asdict(claim)})

    async def may_dial(self, host: str) -> bool:
        """Whether no worker has a connection of the peer."""
        try:
            return bool(await self._channel.ask("may_dial", host=host))
        except ChannelError:
            return False

    def dialing(self, connection: int, host: str, our_host: str) -> None:
        """See Admission.dialing."""
        self._channel.send({"did": "dialing", "connection": connection, "host": host, "our_host": our_host})

    def opened(self, connection: int, host: str, origin_state_id: int) -> None:
        """See Admission.opened."""
        self._channel.send({"did": "opened", "connection": connection, "host": host, "origin_state_id": origin_state_id})

    def alive(self, connection: int) -> None:
        """See Admission.alive."""
        self._channel.send({"did": "alive", "connection": connection})

    def closed(self, connection: int, reason: str) -> None:
        """See Admission.closed."""
        self._channel.send({"did": "closed", "connection": connection, "reason": reason})


# ---- the dispatcher ----


@dataclass(slots=True, eq=False)
class _Hand:
    """A worker as the dispatcher sees it."""

    number: int
    pid: int
    channel: Channel
    packets: socket.socket
    started: bool = False
    """It has its lists and takes connections."""
    connections: int = 0
    """Handed to it and not gone."""
    names: set[tuple[int, int]] = field(default_factory=set)
    """Its connections in the admission table: (pid, the worker's number for it)."""
    figures: metrics.Snapshot = field(default_factory=dict)
    """As they were last seen."""


class Dispatcher:
    """Accepts, hands over, admits, and speaks for the workers (front.Crew)."""

    def __init__(self, config: Config, supervisor: socket.socket) -> None:
        self._config = config
        self._supervisor = supervisor
        self._log = Log(time.monotonic, level=config.log_level, full_identifiers=config.full_identifiers)
        self._front = Front(config, self, report=self._log.report, stop=self._begin_stop)
        self._stop = asyncio.Event()
        self._changed = asyncio.Event()
        """A worker came, started or went."""
        self._hands: dict[int, _Hand] = {}
        """By worker number."""
        self._admission = Admission()
        self._listeners: list[socket.socket] = []
        self._left: metrics.Snapshot = {}
        """Counters of workers that are no more."""
        self._restarts = 0
        self._disabled: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self) -> int:
        """Start, run until SIGTERM, stop. Returns the exit status; raises EirError if a listener cannot be had."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._begin_stop, signal.Signals(number).name)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._spawn(self._reload_and_say()))
        try:
            await self._front.open()
            self._supervisor.setblocking(False)
            loop.add_reader(self._supervisor, self._take_workers)
            self._spawn(self._keep_figures())
            if await self._workers_started():
                self._listen(loop)
                self._log.report("ready", workers=len(self._hands), version=__version__)
            await self._stop.wait()
            for listener in self._listeners:
                loop.remove_reader(listener)
                listener.close()
            await self._workers_gone()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._front.close()
            self._log.report("stopped")
            self._log.close()
        return 0

    def _begin_stop(self, cause: str) -> None:
        if cause == "drain":
            os.kill(os.getppid(), signal.SIGTERM)  # which sends it to us too
            return
        self._log.report("stopping", reason=cause)
        self._front.stopping = True
        self._stop.set()
        self._changed.set()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _workers_started(self) -> bool:
        """Wait until every worker has its lists (or, if it may serve without, has looked for them); False if stopped."""
        while not self._stop.is_set():
            hands = self._hands.values()
            if len(hands) == self._config.workers and all(hand.started for hand in hands):
                refusing = self._config.boot_without_lists == "refuse"
                if not refusing or not any(report.missing for report in await self.reports()):
                    return True
            self._changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(KEEP_S / 4):
                    await self._changed.wait()
        return False

    async def _workers_gone(self) -> None:
        while self._hands:
            self._changed.clear()
            await self._changed.wait()

    # ---- connections ----

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        for number, url in enumerate(self._config.listen):
            host, port, _ = endpoint(url)
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            try:
                listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
            except OSError as e:
                raise EirError(f"cannot listen on {url}: {e.strerror or e} (is another node running there?)") from None
            listener.setblocking(False)
            self._listeners.append(listener)
            loop.add_reader(listener, self._accept, listener, number)
            bound = listener.getsockname()
            self._front.listening.append(listener_url(url, bound[0], bound[1]))
            self._log.report("listening", address=self._front.listening[-1])

    def _accept(self, listener: socket.socket, number: int) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:
            return  # whoever connected is gone again
        with connection:
            ready = [hand for hand in self._hands.values() if hand.started]
            total = sum(hand.connections for hand in ready)
            if not ready or total >= self._config.limits.connections_max:
                self._log.report("peer_refused", reason="connections_max" if ready else "no_worker", level="warning")
                return
            hand = min(ready, key=lambda hand: (hand.connections, hand.number))
            if hand_over(hand.packets, number, connection):
                hand.connections += 1

    # ---- workers ----

    def _take_workers(self) -> None:
        """The supervisor has started workers: take our ends of their channels."""
        while True:
            try:
                hello, descriptors, _, _ = socket.recv_fds(self._supervisor, 64, 2)
            except BlockingIOError:
                return
            if not hello:
                asyncio.get_running_loop().remove_reader(self._supervisor)
                return
            number, pid, self._restarts = map(int, hello.split())
            stream, packets = (socket.socket(fileno=descriptor) for descriptor in descriptors)
            stream.setblocking(False)
            packets.setblocking(False)
            self._spawn(self._follow(number, pid, stream, packets))

    async def _follow(self, number: int, pid: int, stream: socket.socket, packets: socket.socket) -> None:
        """Heed one worker until it is gone."""
        channel = await Channel.over(stream)
        hand = self._hands[number] = _Hand(number, pid, channel, packets)
        self._changed.set()
        try:
            async for message in channel.messages():
                self._heed(hand, message)
        finally:
            if self._hands.get(number) is hand:
                del self._hands[number]
            channel.close()
            packets.close()
            self._left = metrics.merge([self._left, metrics.outliving(hand.figures)])
            for name in list(hand.names):
                self._order(self._admission.closed(name))
            self._changed.set()

    def _heed(self, hand: _Hand, message: Mapping[str, Any]) -> None:
        """What a worker tells or asks."""
        if "ask" in message:
            hand.channel.answer(dict(message), not self._admission.is_open(message["host"]))
            return
        name = (hand.pid, message.get("connection", -1))
        match message["did"]:
            case "started":
                hand.started = True
                for label in self._disabled:
                    self._spawn(self._ask_quietly(hand, label))
                self._changed.set()
            case "gone":
                hand.connections -= 1
            case "arrived":
                claim = dict(message["claim"])
                name = (hand.pid, claim.pop("connection"))
                hand.names.add(name)
                self._order(self._admission.arrived(Claim(name, **claim)))
            case "dialing":
                hand.names.add(name)
                self._order(self._admission.dialing(name, message["host"], message["our_host"]))
            case "opened":
                hand.names.add(name)
                self._order(self._admission.opened(name, message["host"], message["origin_state_id"]))
            case "alive":
                self._order(self._admission.alive(name))
            case "closed":
                hand.names.discard(name)
                self._order(self._admission.closed(name, message["reason"]))

    def _order(self, orders: Sequence[Order]) -> None:
        """Send each order to the worker that has the connection."""
        for order in orders:
            values = asdict(order)
            pid, values["connection"] = values["connection"]
            for hand in self._hands.values():
                if hand.pid == pid:
                    hand.channel.send({"order": type(order).__name__, "values": values})

    async def _ask_quietly(self, hand: _Hand, label: str) -> None:
        with suppress(ChannelError):
            await hand.channel.ask("set_peer", label=label, enabled=False)

    async def _ask_all(self, what: str, **arguments: Any) -> list[tuple[_Hand, Any]]:
        """Every started worker's answer; one that is going away just now has none."""
        hands = [hand for hand in self._hands.values() if hand.started]
        answers = await asyncio.gather(*(hand.channel.ask(what, **arguments) for hand in hands), return_exceptions=True)
        return [(hand, answer) for hand, answer in zip(hands, answers, strict=True) if not isinstance(answer, BaseException)]

    async def _keep_figures(self) -> None:
        while True:
            await self._take_figures()
            await asyncio.sleep(KEEP_S)

    async def _take_figures(self) -> None:
        for hand, answer in await self._ask_all("snapshot"):
            hand.figures = metrics.from_json(answer)

    async def _reload_and_say(self) -> None:
        try:
            await self.reload()
        except ConfigError as e:
            for problem in e.problems:
                self._log.report("reload_refused", level="error", reason="configuration", detail=str(problem))
        except (EirError, OSError) as e:
            self._log.report("reload_refused", level="error", reason="configuration", detail=str(e))

    # front.Crew

    async def snapshot(self) -> metrics.Snapshot:
        """All numbers, of all workers, those that are no more included."""
        await self._take_figures()
        merged = metrics.merge([self._left, *(hand.figures for hand in self._hands.values())])
        merged["eir_worker_restarts_total"] = {(): float(self._restarts)}
        return merged

    async def reports(self) -> Sequence[WorkerReport]:
        """How each worker is."""
        return [WorkerReport(**answer) for _, answer in await self._ask_all("report")]

    async def peers(self) -> list[dict[str, Any]]:
        """All connections of all workers, and the entries of the peer table that no worker has a connection of."""
        rows = [{**row, "worker": hand.number} for hand, answer in await self._ask_all("peers") for row in answer]
        there = {row["label"] for row in rows if row["address"] is not None}
        alone = {row["label"]: row for row in rows if row["address"] is None and row["label"] not in there}
        return [row for row in rows if row["address"] is not None] + list(alone.values())

    async def reload(self) -> str:
        """Have every worker take over the configuration file; a bad one is refused before any is asked."""
        new = load_config(self._config.path)
        said = [answer for _, answer in await self._ask_all("reload")]
        self._log.set_level(new.log_level)
        return str(said[0]) if said else "no worker runs; the next ones start with the new configuration"

    async def set_peer(self, label: str, *, enabled: bool) -> bool:
        """Put a peer in or out of service in every worker, those that start later included."""
        known = any(answer for _, answer in await self._ask_all("set_peer", label=label, enabled=enabled))
        if enabled:
            self._disabled.discard(label)
        elif known:
            self._disabled.add(label)
        return known

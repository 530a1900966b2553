"""The dispatcher of a node with several workers: who gets which connection, and whose figures are one truth.

A process of its own. It accepts connections and hands each to the worker with the fewest; it keeps the one table that says
which connections of a peer are wanted (diameter/admission.py), gathers the workers' plain counts, and serves /metrics and
the control socket (front.py). It is on the path of no check: a worker reads and answers its connections by itself.
"""

import asyncio
import errno
import itertools
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from eir.config import Config, load_config
from eir.daemon.channel import Channel, ChannelError, Unanswered, hand_over
from eir.daemon.intake import Intake
from eir.daemon.server import listener_url
from eir.daemon.signals import heed
from eir.diameter.admission import Admission, Claim, Order
from eir.diameter.capabilities import may_connect, source_address
from eir.diameter.gate import Network, network_of
from eir.diameter.settings import setting_for
from eir.diameter.transport.listen import BACKLOG, OUT_OF_RESOURCES, PAUSE_S
from eir.diameter.transport.stream import endpoint
from eir.errors import EirError
from eir.operate import metrics
from eir.operate.front import Front, WorkerReport, cannot_listen, tell_refusal
from eir.operate.log import Log

KEEP_S = 1.0
"""Workers' figures are taken this often, so that a worker that ends leaves them behind."""
HUNG_QUESTIONS = 4
"""A worker that leaves so many questions in a row without an answer is killed: its peers find one that does. Not a time, since
a host that stood still has every worker late once."""
HOLD_S = 2.0
"""How long new connections wait, when a worker has ended, for the one that takes its place: so that its peers, which come
back at once, do not all end up with the others."""


@dataclass(slots=True, eq=False)
class _Hand:
    """A worker as the dispatcher sees it."""

    number: int
    pid: int
    channel: Channel
    packets: socket.socket
    started: bool = False
    """It has its lists and takes connections."""
    connections: dict[int, Network] = field(default_factory=dict)
    """Handed to it and not gone: number → network that it comes from."""
    names: set[tuple[int, int]] = field(default_factory=set)
    """Its connections in the admission table: (pid, the worker's number for it)."""
    figures: metrics.Snapshot = field(default_factory=dict)
    """As they were last seen."""


class Dispatcher:
    """Accepts, hands over, admits, and speaks for the workers (front.Crew)."""

    def __init__(self, config: Config, supervisor: socket.socket) -> None:
        self._config = config
        self._supervisor = supervisor
        self._supervisor_pid = os.getppid()
        self._log = Log(time.monotonic, level=config.log_level, full_identifiers=config.full_identifiers)
        self._front = Front(config, self, report=self._log.report, stop=self._begin_stop, pid=self._supervisor_pid)
        self._intake = Intake(config, report=self._log.report)
        self._stop = asyncio.Event()
        self._changed = asyncio.Event()
        """A worker came, started or went."""
        self._hands: dict[int, _Hand] = {}
        """By worker number."""
        self._admission = Admission()
        self._listeners: dict[socket.socket, int] = {}
        """With their place in the configuration's `listen`."""
        self._held: asyncio.TimerHandle | None = None
        """While nothing is accepted: when that ends."""
        self._limits, self._peers = config.limits, config.peers
        """As they were reloaded."""
        self._sources: Counter[Network] = Counter()
        """Connections by source network, of all workers."""
        self._numbers = itertools.count()
        self._refused: Counter[str] = Counter()
        self._accepts_failed = 0
        """For want of descriptors or memory."""
        """Connections that were handed to nobody, by reason."""
        self._left: metrics.Snapshot = {}
        """Counters of workers that are no more."""
        self._restarts = 0
        self._reloaded = False
        self._disabled: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self) -> int:
        """Start, run until SIGTERM, stop. Returns the exit status; raises EirError if a listener cannot be had."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._begin_stop, signal.Signals(number).name)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._spawn(self._reload_and_say()))
        heed()
        try:
            await self._front.open()
            self._supervisor.setblocking(False)
            loop.add_reader(self._supervisor, self._take_workers)
            self._spawn(self._intake.run())
            if await self._workers_started():
                self._listen()
                await self._front.announce()
                self._spawn(self._front.watch())
            await self._stop.wait()
            self._hold(None)
            for listener in self._listeners:
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
        """Begin the node's end: by the supervisor, who ends all processes, this one included."""
        if self._front.stopping:
            return
        self._log.report("stopping", reason=cause)
        self._front.stopping = True
        if os.getppid() == self._supervisor_pid:
            os.kill(self._supervisor_pid, signal.SIGTERM)
        self._stop.set()
        self._changed.set()

    def _orphaned(self) -> None:
        """The supervisor was killed: nobody else is left to end the workers."""
        self._begin_stop("the supervisor is gone")
        for hand in self._hands.values():
            _kill(hand.pid, signal.SIGTERM)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _workers_started(self) -> bool:
        """Wait until every worker has its lists (or, if it may serve without, has looked for them); False if stopped."""
        while not self._stop.is_set():
            if self._all_started():
                refusing = self._config.boot_without_lists == "refuse"
                if not refusing or not any(report.missing for report in await self.reports()):
                    return True
            self._changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(KEEP_S / 4):
                    await self._changed.wait()
        return False

    def _all_started(self) -> bool:
        return len(self._hands) == self._config.workers and all(hand.started for hand in self._hands.values())

    async def _workers_gone(self) -> None:
        while self._hands:
            self._changed.clear()
            await self._changed.wait()

    # ---- connections ----

    def _listen(self) -> None:
        for number, url in enumerate(self._config.listen):
            host, port, _ = endpoint(url)
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            try:
                listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
            except OSError as e:
                raise cannot_listen(url, e) from None
            listener.setblocking(False)
            self._listeners[listener] = number
            bound = listener.getsockname()
            self._front.listening.append(listener_url(url, bound[0], bound[1]))
            self._log.report("listening", address=self._front.listening[-1])
        self._accept_again()

    def _hold(self, pause_s: float | None) -> None:
        """Accept nothing for a while (None: for good); whoever connects waits in the listener's queue."""
        loop = asyncio.get_running_loop()
        if self._held is not None:
            self._held.cancel()
        for listener in self._listeners:
            loop.remove_reader(listener)
        self._held = loop.call_later(pause_s, self._accept_again) if pause_s is not None else None

    def _accept_again(self) -> None:
        if self._held is not None:
            self._held.cancel()
            self._held = None
        if not self._stop.is_set():
            for listener, number in self._listeners.items():
                asyncio.get_running_loop().add_reader(listener, self._accept, listener, number)

    def _accept(self, listener: socket.socket, number: int) -> None:
        try:
            connection, address = listener.accept()
        except OSError as e:
            if e.errno in OUT_OF_RESOURCES:
                self._accepts_failed += 1
                self._log.report("accept_failed", level="error", reason=errno.errorcode[e.errno], detail=e.strerror)
                self._hold(PAUSE_S)
            return  # else whoever connected is gone again
        with connection:
            source = source_address(address[0])
            refused = self._refuses(source) or self._hand_over(number, connection, network_of(source))
        if refused is not None:
            self._refused[refused] += 1
            host, port = address[:2]
            where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            self._log.report("peer_refused", reason=refused, level="warning", address=where, setting=setting_for(refused))

    def _refuses(self, source: IPv4Address | IPv6Address) -> str | None:
        """Why a connection is not wanted, as Node says it: here all connections are seen, and in a worker its own."""
        if not may_connect(self._peers, source):
            return "source"
        if sum(len(hand.connections) for hand in self._hands.values()) >= self._limits.connections_max:
            return "connections_max"
        if self._sources[network_of(source)] >= self._limits.source_connections_max:
            return "source_connections_max"
        return None

    def _hand_over(self, listener: int, connection: socket.socket, network: Network) -> str | None:
        """Give a connection to the worker that has the fewest; says why that cannot be."""
        ready = [hand for hand in self._hands.values() if hand.started]
        for hand in sorted(ready, key=lambda hand: (len(hand.connections), hand.number)):
            name = next(self._numbers) & 0xFFFFFFFF
            if hand_over(hand.packets, listener, name, connection):
                hand.connections[name] = network
                self._sources[network] += 1
                return None
        return "no_worker"

    def _gone(self, hand: _Hand, number: int) -> None:
        network = hand.connections.pop(number, None)
        if network is not None:
            self._sources[network] -= 1
            if not self._sources[network]:
                del self._sources[network]

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
                self._orphaned()
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
        keeping = asyncio.create_task(self._keep_figures(hand))
        self._changed.set()
        try:
            async for message in channel.messages():
                try:
                    self._heed(hand, message)
                except Exception as e:  # noqa: BLE001 - the outermost loop of what a worker says: the next word counts as much
                    what = str(message.get("ask") or message.get("did"))
                    self._log.report("fault", reason=what, level="error", of_worker=number, detail=repr(e))
        finally:
            keeping.cancel()
            if self._hands.get(number) is hand:
                del self._hands[number]
            channel.close()
            packets.close()
            self._left = metrics.merge([self._left, metrics.outliving(hand.figures)])
            for connection in list(hand.connections):
                self._gone(hand, connection)
            for name in list(hand.names):
                self._order(self._admission.closed(name))
            if hand.started and self._listeners and not self._stop.is_set():
                self._hold(HOLD_S)
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
                self._spawn(self._catch_up(hand))
                if self._held is not None and self._all_started():
                    self._accept_again()
                self._changed.set()
            case "gone":
                self._gone(hand, message["number"])
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

    async def _catch_up(self, hand: _Hand) -> None:
        """Tell a new worker what the others have been told since the node's start."""
        with suppress(ChannelError):
            for label in self._disabled:
                await hand.channel.ask("set_peer", label=label, enabled=False)
            if self._reloaded:  # perhaps after this one had read the file
                await hand.channel.ask("reload", who="start")

    async def _ask_all(self, what: str, **arguments: Any) -> list[tuple[_Hand, Any]]:
        """Every started worker's answer; of one that has none, or says no, the log says why."""
        hands = [hand for hand in self._hands.values() if hand.started]
        answers = await asyncio.gather(*(hand.channel.ask(what, **arguments) for hand in hands), return_exceptions=True)
        given = []
        for hand, answer in zip(hands, answers, strict=True):
            if not isinstance(answer, BaseException):
                given.append((hand, answer))
            elif isinstance(answer, ChannelError):
                self._log.report("worker_failed", level="warning", reason=what, worker=hand.number, detail=str(answer))
            else:
                raise answer
        return given

    async def _keep_figures(self, hand: _Hand) -> None:
        """Take a worker's figures again and again, and end it if it answers no more."""
        unanswered = 0
        while unanswered < HUNG_QUESTIONS:
            await asyncio.sleep(KEEP_S)
            if not hand.started:
                continue
            try:
                hand.figures = metrics.from_json(await hand.channel.ask("snapshot"))
                unanswered = 0
            except Unanswered:
                unanswered += 1
            except ChannelError as e:
                self._log.report("worker_failed", level="warning", reason="snapshot", worker=hand.number, detail=str(e))
        self._log.report("worker_hung", level="error", worker=hand.number, unanswered=unanswered)
        _kill(hand.pid, signal.SIGKILL)

    async def _reload_and_say(self) -> None:
        try:
            await self.reload("SIGHUP")
        except (EirError, OSError) as e:
            tell_refusal(self._log.report, e, "SIGHUP")

    # front.Crew

    async def snapshot(self) -> metrics.Snapshot:
        """All numbers, of all workers, those that are no more included."""
        for hand, answer in await self._ask_all("snapshot"):
            hand.figures = metrics.from_json(answer)
        ours: metrics.Snapshot = {"eir_peers_refused_total": {(reason,): count for reason, count in self._refused.items()}}
        if self._accepts_failed:
            ours["eir_diameter_errors_total"] = {("accept_failed",): self._accepts_failed}
        merged = metrics.merge([self._left, ours, *(hand.figures for hand in self._hands.values())])
        merged["eir_worker_restarts_total"] = {(): float(self._restarts)}
        return merged

    async def reports(self) -> Sequence[WorkerReport]:
        """How each worker is."""
        return [WorkerReport(**answer) for _, answer in await self._ask_all("report")]

    async def peers(self) -> list[dict[str, Any]]:
        """All connections of all workers, and the entries of the peer table that no worker has a connection of."""
        rows = [{**row, "worker": hand.number} for hand, answer in await self._ask_all("peers") for row in answer]
        by_label: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            by_label.setdefault(row["label"], []).append(row)
        shown = [row for row in rows if row["address"] is not None]
        shown += [same[-1] for same in by_label.values() if all(row["address"] is None for row in same)]
        for row in shown:
            # Each worker has seen its own connections, and one of them connects to peers.
            same = by_label[row["label"]]
            row["last_seen"] = max((each["last_seen"] for each in same if each["last_seen"]), default=None)
            is_open = any(each["state"] == "open" for each in same)
            row["last_error"] = None if is_open else next((each["last_error"] for each in same if each["last_error"]), None)
        return shown

    async def reload(self, who: str) -> str:
        """Have every worker take over the configuration file; a bad one is refused before any is asked."""
        new = load_config(self._config.path)
        self._limits, self._peers = new.limits, new.peers
        self._log.set_level(new.log_level)
        self._reloaded = True
        asked = sum(hand.started for hand in self._hands.values())
        said = [answer for _, answer in await self._ask_all("reload", who=who)]
        if len(said) < asked:
            raise EirError(f"{asked - len(said)} of {asked} workers did not take it over; the log says why (worker_failed)")
        return str(said[0]) if said else "no worker runs; the next ones start with the new configuration"

    async def set_peer(self, label: str, *, enabled: bool) -> bool:
        """Put a peer in or out of service in every worker, those that start later included."""
        known = any(answer for _, answer in await self._ask_all("set_peer", label=label, enabled=enabled))
        if enabled:
            self._disabled.discard(label)
        elif known:
            self._disabled.add(label)
        return known


def _kill(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)

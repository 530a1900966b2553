"""A worker: answers on the connections that it is handed, and leaves to the front what concerns the whole node.

It is forked with the lists as the supervisor read them, gets its configuration from the front, follows the store by itself,
and does nothing else: no listener, no page, no command is here. What is decided over all connections of a peer is the front's
to decide; what happens goes there over a link, and orders come back.
"""

import asyncio
import gc
import itertools
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple

from eir.checks.checker import Checker
from eir.config import Config
from eir.daemon import state_folder
from eir.daemon.rpc import Ends, Handlers, RpcError, RpcLink, take_over
from eir.daemon.setup import kinds_of, limits_of, missing_lists, overload_of, tell_in_force
from eir.daemon.signals import deliver
from eir.diameter.admission import Claim, Order
from eir.diameter.counts import DURATION_BUCKETS_S, Counts
from eir.diameter.node import Node
from eir.diameter.rate import Grants
from eir.diameter.transport.tls import Tls, TlsFiles, load_tls
from eir.errors import StoreError
from eir.follow.follower import Follower
from eir.lists.clock import TrustedClock
from eir.lists.index import Index
from eir.lists.store import ListState, ListStore
from eir.operate import metrics
from eir.operate.log import Log
from eir.operate.status import WorkerReport
from eir.s13.application import s13_application
from eir.s13.lane import Lane
from eir.s13.service import S13Service
from eir.stores.open import open_copy, open_store

DRAIN_S = 8.0
"""How long peers have to close after our DPR (RFC 6733 5.4 gives them no time; the peer machine closes after 5 s)."""
TICK_S = 1.0
FOLD_EVERY_TICKS = 10
KEEP_CLOCK_EVERY_TICKS = 60
CLOCK_JUMPED = "the clock is hours ahead of what this node saw last; rows with an end go by that for an hour"


@dataclass(frozen=True, slots=True)
class Inherited:
    """What a worker has from before it was forked."""

    number: int
    origin_state_id: int
    index: Index
    """With the lists as the supervisor read them."""
    grants: Grants
    ends: Ends
    """Of the link to the front."""


class Configured(NamedTuple):
    """What the front hands to a worker, at its birth and at each reload, so that no two workers go by two different files."""

    config: Config
    disabled: Sequence[str]
    """Labels of the peers that are out of service."""
    tls: TlsFiles | None
    dials: bool
    """This worker connects to peers that have a `connect`, which is one worker's business."""


async def work(inherited: Inherited) -> int:
    """Be a worker until SIGTERM, or until the front is gone. Returns the exit status."""
    loop = asyncio.get_running_loop()
    log = Log(time.monotonic, worker=inherited.number)
    stop = asyncio.Event()
    for ending in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(ending, stop.set)
    deliver()
    link = await RpcLink.over(inherited.ends.stream)
    born: asyncio.Future[Worker] = loop.create_future()
    handlers: dict[str, Callable[..., Any]] = {}

    def configure(configured: Configured) -> None:
        if born.done():
            born.result().configure(configured)
            return
        try:
            worker = built(configured, inherited, link, log)
        except Exception as e:  # noqa: BLE001 - whatever it is: it ends the process, which says so
            born.set_exception(e)
        else:
            handlers.update(worker.handlers())
            born.set_result(worker)

    def failed(what: str, fault: Exception) -> None:
        log.report("fault", reason=what, level="error", detail=repr(fault))

    handlers["configure"] = configure
    serving = asyncio.create_task(link.serve(handlers, failed=failed))
    serving.add_done_callback(lambda _: stop.set())
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((born, stopped), return_when=asyncio.FIRST_COMPLETED)
        if born.done():
            await born.result().run(inherited.ends.packets, stop)
    finally:
        for task in (serving, stopped):
            task.cancel()
        link.close()
        log.close()
    return 0


def built(configured: Configured, inherited: Inherited, link: RpcLink, log: Log) -> "Worker":
    """The parts of a worker, put together."""
    config, index = configured.config, inherited.index
    log.configure(level=config.log_level, full_identifiers=config.full_identifiers)
    index.reconfigure(kinds_of(config))  # lists may have come since the supervisor made it
    counts, clock = Counts(), state_folder.read_clock(config.state)
    store, copy = open_store(config.store, config.state, report=log.report, check=False), open_copy(config.store, config.state)
    follower = Follower(
        store, index, report=log.report,
        on_switch=lambda name, state: tell_in_force(log.report, name, state, longest_slice_ms=round(follower.longest_slice_s * 1000, 3)),
        copy=copy, heal=config.heal, who=f"{socket.gethostname()}:{os.getpid()}", clock=clock,
    )  # fmt: skip
    checker = Checker(
        config.policy, index, now=datetime.now(UTC), note_check=log.note_check, note_observed=log.note_observed, report=log.report
    )
    tls = None if configured.tls is None else load_tls(configured.tls)
    service = S13Service(checker, config.peers)
    node = Node(
        replace(config.identity, origin_state_id=inherited.origin_state_id), config.peers, limits_of(config),
        s13_application(service, partial(Lane, checker, replies=service.replies)),
        counts=counts, report=log.report, admission=RemoteAdmission(link), dials=configured.dials, overload=overload_of(config),
        tls=tls, grants=inherited.grants, sctp=config.sctp,
    )  # fmt: skip
    for label in configured.disabled:
        node.disable(label)
    stores = (store,) if copy is None else (store, copy)
    return Worker(
        config=config, log=log, link=link, counts=counts, index=index, checker=checker, follower=follower, stores=stores, clock=clock,
        service=service, node=node, tls=tls,
    )  # fmt: skip


@dataclass(slots=True, eq=False, kw_only=True)
class Worker:
    """The parts of a worker at work."""

    config: Config
    log: Log
    link: RpcLink
    counts: Counts
    index: Index
    checker: Checker
    follower: Follower
    stores: Sequence[ListStore]
    clock: TrustedClock
    service: S13Service
    node: Node
    tls: Tls | None
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    shed_told: Counter[tuple[str, str]] = field(default_factory=Counter)
    """What was shed up to the last line about it."""
    shed_lately: Counter[tuple[str, str]] = field(default_factory=Counter)
    """What that line told."""

    def handlers(self) -> Handlers:
        """What the front tells and asks."""
        return {
            "order": self.node.obey, "dial": self.node.dial, "counters": self.counters, "snapshot": self.snapshot, "report": self.report,
            "peers": self.peers, "set_peer": self.set_peer,
        }  # fmt: skip

    async def run(self, packets: socket.socket, stop: asyncio.Event) -> None:
        """Get the lists, answer until told to stop, send the peers away, let go of everything."""
        try:
            await self.follower.start()
        except StoreError as e:
            self.log.report("store_away", level="error", reason=e.cause, detail=str(e))
        gc.collect()
        gc.freeze()  # what the start made stays: no collection walks it again
        following = [asyncio.create_task(self.follower.run()), asyncio.create_task(self._tick())]
        loop = asyncio.get_running_loop()
        loop.add_reader(packets, self._handed, packets)
        self.link.tell("started")
        await stop.wait()
        loop.remove_reader(packets)
        await self.node.drain(DRAIN_S)
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)
        await asyncio.to_thread(state_folder.keep_clock, self.clock, self.config.state)
        for store in self.stores:
            await store.close()
        self._tell_shed()

    # ---- connections ----

    def _handed(self, packets: socket.socket) -> None:
        while (given := take_over(packets)) is not None:
            listener, number, connection = given
            if connection is None:
                self.node.starved()
                self.link.tell("gone", number)
                continue
            task = asyncio.create_task(self._serve(connection, number, self.config.listen[listener]))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def _serve(self, connection: socket.socket, number: int, listener: str) -> None:
        try:
            await self.node.take(connection, secure=listener.startswith("tls:"))
        finally:
            self.link.tell("gone", number)

    # ---- what goes on beside the checks ----

    async def _tick(self) -> None:
        for tick in itertools.count():
            try:
                await self._look(tick)
            except Exception as e:  # noqa: BLE001 - the outermost loop of this task: it says so, and looks again
                self.log.report("fault", reason="tick", level="error", detail=repr(e))
            await asyncio.sleep(TICK_S)

    async def _look(self, tick: int) -> None:
        if tick % FOLD_EVERY_TICKS == 0:
            self._tell_shed()
            self.log.fold()
        self.checker.tick(datetime.now(UTC))
        if tick % KEEP_CLOCK_EVERY_TICKS == 0:
            if self.clock.jumped:
                self.log.report("clock_jumped", level="warning", detail=CLOCK_JUMPED)
            await asyncio.to_thread(state_folder.keep_clock, self.clock, self.config.state)

    def _tell_shed(self) -> None:
        """One line for each peer and limit about what was turned away since the last ones."""
        self.shed_lately = self.counts.shed - self.shed_told
        self.shed_told = self.counts.shed.copy()
        for (peer, reason), count in self.shed_lately.items():
            self.log.report("shed", peer=peer, reason=reason, level="warning", count=count)

    # ---- what the front tells ----

    def configure(self, configured: Configured) -> None:
        """Take over another configuration, except for what takes a restart. Raises EirError and changes nothing if it cannot."""
        new = configured.config
        tls = self.tls if configured.tls is None else load_tls(configured.tls)  # a listener for TLS that is open stays so until a restart
        self.index.reconfigure(kinds_of(new))
        self.checker.reconfigure(new.policy, datetime.now(UTC))
        identity = replace(new.identity, origin_state_id=self.node.identity.origin_state_id)
        self.service.configure(new.peers)
        self.node.reconfigure(new.peers, identity, limits_of(new), overload=overload_of(new), tls=tls, sctp=new.sctp)
        self.log.configure(level=new.log_level, full_identifiers=new.full_identifiers)
        self.config, self.tls = new, tls

    def set_peer(self, label: str, enabled: bool) -> None:
        """Put a peer in or out of service."""
        self.node.enable(label) if enabled else self.node.disable(label)

    # ---- what the front asks ----

    def _loaded(self) -> dict[str, ListState]:
        return {name: held.state for name, held in self.index.lists.items() if held.state is not None}

    def counters(self) -> metrics.Snapshot:
        """What this worker has counted, which outlives it."""
        counts = self.counts
        self.node.count_retransmissions()
        return {
            "eir_checks_total": self.checker.checks(),
            "eir_observed_total": self.checker.observed,
            "eir_identity_errors_total": self.checker.identity_errors,
            "eir_check_duration_seconds": metrics.histogram(DURATION_BUCKETS_S, counts.durations.buckets, counts.durations.total_s),
            "eir_diameter_messages_total": counts.messages,
            "eir_diameter_answers_total": counts.answers,
            "eir_diameter_errors_total": metrics.by_label(counts.errors),
            "eir_diameter_drops_total": metrics.by_label(counts.dropped),
            "eir_peers_refused_total": metrics.by_label(counts.peers_refused),
            "eir_shed_total": counts.shed,
            "eir_sctp_retransmissions_total": metrics.by_label(counts.sctp_retransmissions),
            "eir_sctp_restarts_total": metrics.by_label(counts.sctp_restarts),
            "eir_store_errors_total": metrics.by_label(self.follower.errors),
        }

    def snapshot(self) -> metrics.Snapshot:
        """All numbers of this worker, for a scrape."""
        follower, states = self.follower, self._loaded()
        connected, disabled = self.node.connected(), self.node.disabled()
        return self.counters() | {
            "eir_peer_up": {(label,): float(number > 0) for label, number in connected.items()},
            "eir_peer_disabled": {(label,): float(label in disabled) for label in connected},
            "eir_peer_last_request_timestamp_seconds": metrics.by_label(self.counts.last_request),
            "eir_sctp_paths": self.node.paths(),
            "eir_list_entries": {(name,): state.entries for name, state in states.items()},
            "eir_list_serial": {(name,): state.serial for name, state in states.items()},
            "eir_list_issued_timestamp_seconds": metrics.times({name: state.issued for name, state in states.items()}),
            "eir_list_expires_timestamp_seconds": metrics.times({name: state.expires for name, state in states.items()}),
            "eir_store_up": {(): float(follower.up)},
            "eir_store_lost_data": {(name,): float(name in follower.lost) for name in states},
            "eir_follow_lag_seconds": {(): follower.lag_s},
            "eir_switch_longest_slice_seconds": {(): follower.longest_slice_s},
            "eir_override_active": {(): float(self.checker.policy.overridden)},
        }

    def report(self) -> WorkerReport:
        """How the worker is."""
        states = self._loaded()
        lately = (self.counts.shed - self.shed_told) + self.shed_lately
        return WorkerReport(
            missing=missing_lists(self.config, states), lists=states, store_up=self.follower.up, lost=dict(self.follower.lost),
            from_copy=sorted(self.follower.from_copy), overridden=self.checker.policy.overridden,
            checks=self.checker.checks().total(), connected=self.node.connected(), tasks=len(asyncio.all_tasks()),
            shedding=list(dict.fromkeys(peer for peer, _ in lately)), disabled=self.node.disabled(),
        )  # fmt: skip

    def peers(self) -> list[dict[str, Any]]:
        """All connections, and the entries of the peer table that have none."""
        return [asdict(peer) for peer in self.node.status()]


class RemoteAdmission:
    """The front's AdmissionControl: what happens is told there, and its orders come back over the link."""

    def __init__(self, link: RpcLink) -> None:
        self._link = link

    async def may_dial(self, host: str) -> bool:
        """Whether no worker has a connection of the peer."""
        with suppress(RpcError):
            return bool(await self._link.ask("may_dial", host))
        return False

    def arrived(self, claim: Claim) -> Sequence[Order]:
        """See Admission.arrived."""
        self._link.tell("arrived", claim)
        return ()

    def dialing(self, connection: int, host: str, our_host: str) -> Sequence[Order]:
        """See Admission.dialing."""
        return self._tell("dialing", connection, host, our_host)

    def opened(self, connection: int, host: str, origin_state_id: int) -> Sequence[Order]:
        """See Admission.opened."""
        return self._tell("opened", connection, host, origin_state_id)

    def alive(self, connection: int) -> Sequence[Order]:
        """See Admission.alive."""
        return self._tell("alive", connection)

    def closed(self, connection: int, reason: str) -> Sequence[Order]:
        """See Admission.closed."""
        return self._tell("closed", connection, reason)

    def _tell(self, *what: Any) -> Sequence[Order]:
        self._link.tell("reported", *what)
        return ()

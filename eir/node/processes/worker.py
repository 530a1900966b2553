"""Worker: the process that answers the checks on its connections.

The worker receives its configuration, its connections and its lists from the supervisor. It opens no listener, page or store.
The image of a new list is mapped beside the image in force, and then one reference changes. The supervisor decides which
connections of a peer may stay open: the worker reports events of its connections, and receives orders.
"""

import asyncio
import ctypes
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, NamedTuple

from eir.checks.checker import Checker
from eir.checks.explain import Explanation, answer
from eir.checks.new_devices import NewDevices
from eir.checks.policy import compile_policy
from eir.checks.question import Question
from eir.checks.trace import TraceFilter, Tracer
from eir.config import Config
from eir.config.settings import Listener
from eir.errors import EirError
from eir.interfaces import INTERFACES
from eir.interfaces.interface import Context, Interface
from eir.interfaces.s13.server import S13Server
from eir.interfaces.s13.service import PROTOCOL as S13
from eir.lists.images.index import Index
from eir.lists.log.change import Head
from eir.lists.record.clock import DIFFERENCE_MAX_S, TrustedClock
from eir.node.observe import metrics
from eir.node.observe.status import WorkerReport
from eir.node.processes import state_folder
from eir.node.processes.channel import Channel, ChannelError, Handlers
from eir.node.processes.process import ThisProcess, run_process
from eir.node.processes.recorder import buffer_for
from eir.node.processes.setup import kinds_of, limits_of, missing_lists
from eir.node.processes.takeover import Takeover
from eir.schema import DETAILS
from eir.sightings.buffer import Buffer
from eir.wire.diameter.admission import Claim, Order
from eir.wire.peers.counts import DURATION_BUCKETS_S, Counts
from eir.wire.peers.gate import Counted
from eir.wire.peers.rate import Grants, RateLimits, shared_memory
from eir.wire.transport.endpoint import is_secure
from eir.wire.transport.tls import TlsFiles, load_tls
from eir.wire.web.verifier import tokens_of

if TYPE_CHECKING:
    from eir.wire.web.tokens import KeyFiles

DRAIN_S = 8.0
"""Seconds that peers have to close after the node's DPR (RFC 6733 5.4 gives no time; the state machine closes after 5 s)."""
TICK_S = 1.0
FOLD_S = 10.0
SAVE_CLOCK_S = 60.0
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Options of glibc's mallopt(3)."""
KEPT_BYTES, BUFFER_BYTES = 4 << 20, 1 << 20
"""Values of these options in bytes: maximum free memory at the end of the heap, and size from which a buffer has its own pages."""
DIGEST_DIGITS = 12
"""Number of hexadecimal digits of a content digest in a metric, because a float has 53 bits."""
STAYS_CONNECTED = {each.name: each.stays for each in INTERFACES}
"""True by interface name if clients stay connected. A client of another interface is not away while it has no connection."""
CLOCK_JUMPED = "the clock is hours ahead of what this node saw last; rows with an end go by that for an hour"
CLOCK_BEHIND = (
    "the clock is {:,.0f} s behind the time of this node, which never goes back; rows with an end go by the later time"
)


class Configured(NamedTuple):
    """Settings for a worker, as the supervisor sends them at its start and at each reload.

    They contain the contents of files, so that all workers use the same contents.
    """

    config: Config
    disabled: Sequence[str]
    """Labels of the peers that are out of service."""
    tls: TlsFiles | None
    keys: "Mapping[str, KeyFiles | None]"
    """Keys that verify access tokens, by interface."""
    dials: bool
    """True for the one worker that connects to peers with a `connect`."""
    sought: TraceFilter | None = None
    """Filter of the running trace; None: no trace runs."""


def run(end: socket.socket, number: int, origin_state_id: int, grants: int, sender: int | None = None) -> int:
    """Run a worker until it is stopped or its channel closes; return the exit status.

    `grants`: descriptor of the memory in which all workers count requests for the rate limits. `sender`: descriptor of the
    socket to the recorder.
    """
    memory = Grants(shared_memory(grants), number)
    os.close(grants)
    _set_malloc_options()
    sightings = None if sender is None else socket.socket(fileno=sender)
    return run_process(end, partial(_work, origin_state_id, memory, sightings), worker=number)


def _set_malloc_options() -> None:
    """Set the C library to keep freed memory for the next messages instead of returning it to the kernel.

    By default glibc returns more than 128 KiB of free memory at the end of the heap to the kernel. A full window needs more, and
    the page faults would cost as much as the answers. Other C libraries have no such setting.
    """
    with suppress(AttributeError):
        set_option = ctypes.CDLL(None).mallopt
        set_option(M_TRIM_THRESHOLD, KEPT_BYTES)
        set_option(M_MMAP_THRESHOLD, BUFFER_BYTES)


async def _work(origin_state_id: int, grants: Grants, sender: socket.socket | None, process: ThisProcess) -> None:
    created: asyncio.Future[Worker] = asyncio.get_running_loop().create_future()
    handlers: dict[str, Callable[..., Any]] = {"end": process.stop.set}

    def configure(configured: Configured) -> None:
        try:
            worker = build_worker(configured, process, origin_state_id=origin_state_id, grants=grants, sender=sender)
        except Exception as e:  # noqa: BLE001 - a fault ends the process and is logged
            created.set_exception(e)
        else:
            handlers.update(worker.handlers())
            created.set_result(worker)

    handlers["configure"] = configure
    process.serve(handlers)
    stopped = asyncio.create_task(process.stop.wait())
    await asyncio.wait((created, stopped), return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if created.done():
        await created.result().run()


def build_worker(
    configured: Configured,
    process: ThisProcess,
    *,
    origin_state_id: int,
    grants: Grants,
    sender: socket.socket | None,
) -> "Worker":
    """Build a worker, with its servers and shared objects, from its settings."""
    config = configured.config
    if any(each.tokens and config.of(each).listen for each in INTERFACES):
        import eir.wire.web.tokens  # noqa: F401, PLC0415 - takes 0.5 s, which must not delay checks after a reload
    counts = Counts()
    log = process.log
    channel = process.channel
    log.configure(level=config.log_level, full_identifiers=config.full_identifiers)
    clock = state_folder.read_clock(config.state)
    index = Index(kinds_of(config), lambda: clock.now(time.time(), time.monotonic()))
    sightings = buffer_for(config, sender)
    new_devices = None
    if index.first_seen is not None and config.first_seen is not None:
        new_devices = NewDevices(index.first_seen, config.first_seen.new_per_peer)
    checker = Checker(
        config.policy, index, now=datetime.now(UTC), note_check=log.note_check, note_observed=log.note_observed, report=log.report,
        sightings=sightings, probes=probes_of(config), accesses=accesses_of(config), new_devices=new_devices,
    )  # fmt: skip
    tls = None if configured.tls is None else load_tls(configured.tls)
    tracer = Tracer(
        lambda question: worker.explain(question), lambda record: channel.notify("traced", record),  # noqa: PLW0108 - see below
        lambda trace_filter: worker.node.exclude_traced(trace_filter), time.time,  # noqa: PLW0108 - the worker does not exist yet
    )  # fmt: skip
    identity = replace(config.identity, origin_state_id=origin_state_id)
    limits = limits_of(config)
    shared = replace(config, identity=identity, limits=limits)
    context = Context(
        shared=shared, tls=tls, keys=configured.keys, checker=checker, counts=counts,
        rates=RateLimits(config.peers, limits, grants), report=log.report, tracer=tracer, admission=RemoteAdmission(channel),
        dials=configured.dials, announce=partial(channel.try_notify, "client_named"),
    )  # fmt: skip
    servers = {each.name: resolve_name(each.server)(config.of(each), context) for each in INTERFACES if each.server}
    worker = Worker(
        config=config, process=process, context=context, index=index, clock=clock, servers=servers, sightings=sightings,
        lists=Takeover(index, process, servers[S13].renew), new_devices=new_devices,
    )  # fmt: skip
    for label in configured.disabled:
        worker.set_peer(label, enabled=False)
    worker.trace(configured.sought)
    if configured.dials:
        worker.dial()
    return worker


def probes_of(config: Config) -> frozenset[tuple[str, str]]:
    """Return the peers that are probes, as pairs of protocol and label. A probe's checks are about no real phone."""
    probes = set()
    for interface in INTERFACES:
        for peer in config.peers:
            is_probe = peer.probe or (interface.stays and peer.is_probe)
            if interface.server and is_probe:
                probes.add((interface.name, peer.label))
    return frozenset(probes)


def accesses_of(config: Config) -> dict[str, str]:
    """Return the access network of each peer that has one, by label."""
    return {peer.label: peer.access for peer in config.peers if peer.access is not None}


@dataclass(slots=True, eq=False, kw_only=True)
class Worker:
    """Running worker: its servers, lists and settings, and the functions that the supervisor calls."""

    config: Config
    process: ThisProcess
    context: Context
    index: Index
    clock: TrustedClock
    servers: Mapping[str, Any]
    """Server of each interface, by interface name."""
    sightings: Buffer | None
    lists: Takeover
    new_devices: NewDevices | None
    prepared: tuple[Config, Context] | None = None
    """Configuration of a reload after all steps that may fail."""
    shed_logged: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Number of shed requests at the last log lines about them, by peer label and limit."""
    worked: tuple[float, float] = (0.0, 0.0)
    """Time of the last measurement of the load, and the processor time at that moment, in seconds."""
    load: float = 0.0
    """Share of one processor that the worker used between the last two measurements."""
    shed_last: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Number of shed requests that the last log lines reported."""

    @property
    def node(self) -> S13Server:
        """Diameter node of the worker. The supervisor decides about this node's connections."""
        node: S13Server = self.servers[S13]
        return node

    def handlers(self) -> Handlers:
        """Return the functions that the supervisor may call: map from name to function."""
        return {
            "connection": self.connection, "put_in_force": self.lists.enqueue, "complete": self.lists.complete,
            "prepare": self.prepare, "take_over": self.apply_prepared, "order": self.node.obey, "dial": self.dial,
            "counters": self.counters, "snapshot": self.snapshot, "report": self.report, "peers": self.peers, "set_peer": self.set_peer,
            "set_keys": self.set_keys, "explain": self.explain, "trace": self.trace,
            "doubt": lambda protocol, name: self.servers[protocol].doubt(name), "first_seen_rejected": self.reject_first_seen,
        }  # fmt: skip

    async def run(self) -> None:
        """Put lists in force and answer checks until stopped, then end all connections in order."""
        jobs = self.process.jobs
        jobs.spawn(self.lists.run())
        jobs.spawn(self.lists.free())
        jobs.start("fold", FOLD_S, self._fold)
        jobs.start("tick", TICK_S, self._tick)
        jobs.start("clock", SAVE_CLOCK_S, self._save_clock)
        await self.process.stop.wait()
        self._send_first_seen()
        self.process.channel.notify("leaving")
        await asyncio.gather(*(server.drain(DRAIN_S) for server in self.servers.values()))
        if self.sightings is not None:
            self.sightings.flush()
        await asyncio.to_thread(state_folder.save_clock, self.clock, self.config.state)
        self._log_shed()

    # Objects from the supervisor

    def connection(self, listener: int, source: Counted, descriptor: int | None) -> None:
        """Serve a connection that the supervisor has passed, and report its end.

        `source`: network for which the supervisor counts the connection. `descriptor`: None if this process had no descriptor left.
        """
        if descriptor is None:
            self.node.starved()
            self.process.channel.notify("gone", source)
            return
        connection = socket.socket(fileno=descriptor)
        if self.process.stop.is_set():
            connection.close()
            self.process.channel.notify("gone", source)
            return
        connection.setblocking(False)
        self.process.jobs.spawn(self._serve(connection, source, self.config.listeners[listener]))

    async def _serve(self, connection: socket.socket, source: Counted, listener: Listener) -> None:
        try:
            end = await self.servers[listener.protocol].serve(connection, secure=is_secure(listener.url))
            if end is not None:
                is_away = STAYS_CONNECTED[listener.protocol] or not end.in_order
                self.process.channel.notify("connection_ended", end.label, is_away)
        finally:
            self.process.channel.notify("gone", source)

    # Jobs

    async def _tick(self) -> None:
        began, cpu_before_s = self.worked
        now = time.monotonic()
        cpu_s = time.process_time()
        self.worked = now, cpu_s
        self.load = min(1.0, (cpu_s - cpu_before_s) / (now - began))
        self.context.checker.tick(datetime.now(UTC))
        self.context.tracer.refill()
        await self._settle_first_seen()
        self.index.now()  # detects a jump of the clock also while no lookup needs the time

    async def _fold(self) -> None:
        self._log_shed()
        self.process.log.fold()

    async def _save_clock(self) -> None:
        if self.clock.jumped:
            self.process.log.report("clock_jumped", level="warning", detail=CLOCK_JUMPED)
        elif (behind_s := self.clock.difference_s(time.time())) > DIFFERENCE_MAX_S:
            self.process.log.report("clock_jumped", level="warning", detail=CLOCK_BEHIND.format(behind_s))
        await asyncio.to_thread(state_folder.save_clock, self.clock, self.config.state)

    async def _settle_first_seen(self) -> None:
        """Remove recorded devices from the queue of new devices, then send the supervisor all devices that are still unsent."""
        if self.new_devices is None:
            return
        for _ in self.new_devices.remove_recorded():
            await asyncio.sleep(0)
        self._send_first_seen()

    def _send_first_seen(self) -> None:
        """Send the supervisor the devices that this worker saw for the first time.

        The supervisor passes them to the follower process, which writes them to the record of first sightings.
        """
        if self.new_devices is None:
            return
        sightings = self.new_devices.pop_sightings()
        if sightings:
            self.process.channel.notify("first_seen", sightings)

    def reject_first_seen(self, peer: str, keys: list[int]) -> None:
        """Remove devices from the queue of new devices, because their first sightings are not recorded.

        `peer`: label of the peer above its limit.
        """
        if self.new_devices is not None:
            self.new_devices.reject(peer, keys)

    def _log_shed(self) -> None:
        """Log the number of requests that rate limits have rejected since the last call: one line for each peer and limit."""
        self.shed_last = self.context.counts.shed - self.shed_logged
        self.shed_logged = self.context.counts.shed.copy()
        for (peer, reason), count in self.shed_last.items():
            self.process.log.report("shed", peer=peer, reason=reason, level="warning", count=count)

    # Calls of the supervisor that change something

    def prepare(self, configured: Configured) -> None:
        """Prepare new settings: do all steps that may fail, but apply nothing yet.

        Raises:
            EirError: if the configuration cannot be applied.
        """
        new = configured.config
        context = self.context
        tls = context.tls  # an open TLS listener stays open until a restart
        if configured.tls is not None:
            tls = load_tls(configured.tls)
        needs_first_seen = any(rule.has_first_seen for rule in new.policy.rules)
        if needs_first_seen and self.index.first_seen is None:
            raise EirError(
                "rules that ask for the first sighting take a restart, since this node started without 'first_seen'"
            )
        index = Index(kinds_of(new))
        compile_policy(new.policy, index, observed=lambda _: None, now=datetime.now(UTC))
        for keys in configured.keys.values():
            tokens_of(keys, None, "")
        identity = replace(new.identity, origin_state_id=context.shared.identity.origin_state_id)
        shared = replace(new, identity=identity, limits=limits_of(new))
        self.prepared = new, replace(context, shared=shared, tls=tls, keys=configured.keys)

    def apply_prepared(self) -> None:
        """Apply the prepared settings, except keys that need a restart."""
        if self.prepared is None:
            raise EirError("this worker has prepared no reload")
        new, context = self.prepared
        self.prepared = None
        self.index.apply(kinds_of(new))
        context.checker.apply(new.policy, datetime.now(UTC))
        context.checker.probes = probes_of(new)
        context.checker.accesses = accesses_of(new)
        self._apply(new, context, INTERFACES)
        self.process.log.configure(level=new.log_level, full_identifiers=new.full_identifiers)

    def _apply(self, config: Config, context: Context, interfaces: Iterable[Interface]) -> None:
        for each in interfaces:
            if each.server:
                self.servers[each.name].apply(config.of(each), context)
        self.config = config
        self.context = context

    def dial(self) -> None:
        """Start outgoing connections to peers, in all protocols. The supervisor calls this in one worker only."""
        for server in self.servers.values():
            server.dial()

    def set_peer(self, label: str, enabled: bool) -> None:
        """Put a peer into service, or take it out of service, in all protocols."""
        for server in self.servers.values():
            if enabled:
                server.enable(label)
            else:
                server.disable(label)

    def set_keys(self, keys: "Mapping[str, KeyFiles | None]") -> None:
        """Verify access tokens with new keys from now on.

        Raises:
            FileError: if the keys are invalid; nothing has changed then.
        """
        changed = [each for each in INTERFACES if keys.get(each.name) != self.context.keys.get(each.name)]
        self._apply(self.config, replace(self.context, keys=keys), changed)

    def trace(self, sought: TraceFilter | None) -> None:
        """Report the checks that match this filter from now on. None: report no checks."""
        self.context.tracer.apply(sought)
        self.context.checker.traced = None if sought is None else self.context.tracer.check

    # Calls of the supervisor that return something

    def _loaded(self) -> dict[str, Head]:
        return {name: held.state for name, held in self.index.lists.items() if held.state is not None}

    def counters(self) -> metrics.Snapshot:
        """Return the worker's counters that the supervisor keeps after the worker's end."""
        counts = self.context.counts
        checker = self.context.checker
        durations = counts.durations
        counters: metrics.Snapshot = {
            "eir_checks_total": checker.checks(),
            "eir_observed_total": checker.observed,
            "eir_identity_errors_total": checker.identity_errors,
            "eir_check_duration_seconds": metrics.histogram(DURATION_BUCKETS_S, durations.buckets, durations.total_s),
            "eir_peers_refused_total": metrics.by_label(counts.peers_refused),
            "eir_shed_total": counts.shed,
            "eir_sctp_retransmissions_total": metrics.by_label(counts.sctp_retransmissions),
            "eir_sctp_restarts_total": metrics.by_label(counts.sctp_restarts),
        }
        for server in self.servers.values():
            counters |= server.counters()
        if self.new_devices is not None:
            counters["eir_first_seen_unrecorded_checks_total"] = metrics.by_label(self.new_devices.unrecorded)
        if self.sightings is not None:
            counters["eir_sightings_dropped_total"] = metrics.by_label(self.sightings.dropped)
        return counters

    def snapshot(self) -> metrics.Snapshot:
        """Return the counters and gauges of this worker by metric name and label values."""
        states = self._loaded()
        connected = self.connected()
        disabled = self.disabled()
        digests = {name: int(state.content[:DIGEST_DIGITS], 16) for name, state in states.items()}
        issued = {name: state.issued for name, state in states.items()}
        expires = {name: state.expires for name, state in states.items()}
        paths: dict[str, list[str]] = {}
        """Addresses of connected peers that SCTP does not reach, by peer label."""
        for server in self.servers.values():
            for label, address, is_up in server.paths():
                if not is_up:
                    paths.setdefault(label, []).append(address)
        own: metrics.Snapshot = {
            "eir_peer_up": {(label,): float(number > 0) for label, number in connected.items()},
            "eir_clock_difference_seconds": {(): self.clock.difference_s(time.time())},
            "eir_peer_disabled": {(label,): float(label in disabled) for label in connected},
            "eir_peer_last_request_timestamp_seconds": metrics.by_label(self.context.counts.last_request),
            "eir_sctp_paths": self.paths(),
            "eir_list_entries": {(name,): state.entries for name, state in states.items()},
            "eir_list_pending": {(name,): self.index.lists[name].pending for name in states},
            "eir_list_serial": {(name,): state.serial for name, state in states.items()},
            "eir_list_content_digest": metrics.by_label(digests),
            "eir_list_issued_timestamp_seconds": metrics.times(issued),
            "eir_list_expires_timestamp_seconds": metrics.times(expires),
            "eir_switch_longest_slice_seconds": {(): self.lists.longest_slice_s},
            "eir_override_active": {(): float(self.context.checker.policy.overridden)},
            DETAILS: metrics.details(
                "EirPathLost", {label: ", ".join(addresses) for label, addresses in paths.items()}
            ),
        }
        return metrics.merge([self.counters(), *(server.gauges() for server in self.servers.values()), own])

    def report(self) -> WorkerReport:
        """Return the status report of this worker for `eir status`."""
        states = self._loaded()
        return WorkerReport(
            missing=missing_lists(self.config, states), lists=states, checks=self.context.checker.checks().total(), connected=self.connected(), tasks=len(asyncio.all_tasks()),
            load=self.load, refused=self.node.refusals(), newest=self.node.newest(),
        )  # fmt: skip

    def explain(self, question: Question) -> Explanation:
        """Return the answer that a check would get at present, and the reasons. The call is not counted as a check."""
        return answer(question, self.config.policy, self.config.lists_and_record, self.index, now=datetime.now(UTC))

    def peers(self) -> list[dict[str, Any]]:
        """Return this worker's rows of `eir peers`: its connections, and entries of the peer table for peers that are not connected to it.

        A row of an entry without a connection may have no protocol.
        """
        return [asdict(row) for server in self.servers.values() for row in server.status()]

    def disabled(self) -> list[str]:
        """Return the labels of peers and gateways that are out of service."""
        disabled = {label for server in self.servers.values() for label in server.disabled()}
        return [label for label in dict.fromkeys(self.config.labels) if label in disabled]

    def paths(self) -> Counter[tuple[str, str]]:
        """Return the number of SCTP paths in all protocols, by peer label and state (`up` or `down`)."""
        paths: Counter[tuple[str, str]] = Counter()
        for server in self.servers.values():
            for label, _, up in server.paths():
                paths[label, "up"] += up
                paths[label, "down"] += not up
        return paths

    def connected(self) -> dict[str, int]:
        """Return the number of open connections by peer label, over all protocols.

        An expected peer without a connection has 0.
        """
        by_label: Counter[str] = Counter()
        for server in self.servers.values():
            by_label.update(server.connected())
        return dict(by_label)


class RemoteAdmission:
    """Proxy in a worker for the supervisor's admission control. It reports the events of Diameter connections to the supervisor.

    The supervisor's orders arrive later, as calls of `Node.obey`.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def may_dial(self, host: str | None, label: str, now: float) -> bool:
        """Ask the supervisor whether an outgoing connection is permitted; return false if the supervisor does not answer."""
        with suppress(ChannelError):
            return bool(await self._channel.ask("may_dial", host, label, now))
        return False

    def stay_away(self, label: str, until: float) -> None:
        """Report to the supervisor that no worker may connect to the peer with this label before `until`."""
        self._channel.notify("stay_away", label, until)

    def arrived(self, claim: Claim) -> Sequence[Order]:
        """Report to the supervisor that a connection has sent a valid CER."""
        self._channel.notify("arrived", claim)
        return ()

    def dialing(self, connection: int, host: str, our_host: str) -> Sequence[Order]:
        """Report to the supervisor that the node has begun to connect to a peer."""
        return self._notify("dialing", connection, host, our_host)

    def opened(self, connection: int, host: str, origin_state_id: int) -> Sequence[Order]:
        """Report to the supervisor that an outgoing connection has opened."""
        return self._notify("opened", connection, host, origin_state_id)

    def alive(self, connection: int) -> Sequence[Order]:
        """Report to the supervisor that a connection has answered the DWR of a `ProbeOldest` order."""
        return self._notify("alive", connection)

    def closed(self, connection: int, reason: str) -> Sequence[Order]:
        """Report to the supervisor that a connection or an attempt has ended."""
        return self._notify("closed", connection, reason)

    def _notify(self, *what: Any) -> Sequence[Order]:
        self._channel.notify("reported", *what)
        return ()

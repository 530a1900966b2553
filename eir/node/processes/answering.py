"""Answering process: it accepts the connections of all protocols, opens those that the node dials, and answers the checks.

The manager passes its configuration, its listening sockets and its lists. The process opens no page and no store. The image of a
new list is mapped beside the image in force. Then one reference changes, and the memory of the old image is freed in steps.
"""

import asyncio
import ctypes
import gc
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from eir.checks.checker import Checker
from eir.checks.explain import Explanation, answer
from eir.checks.new_devices import NewDevices
from eir.checks.question import Question
from eir.checks.trace import TraceFilter, Tracer
from eir.config import Config
from eir.errors import detail_of
from eir.interfaces import INTERFACES
from eir.interfaces.interface import Context, Interface
from eir.interfaces.s13.server import S13Server
from eir.interfaces.s13.service import PROTOCOL as S13
from eir.lists.images.image import Image, ImageError
from eir.lists.images.index import Index
from eir.lists.log.change import Head
from eir.lists.record.clock import DIFFERENCE_MAX_S, TrustedClock
from eir.node.observe import metrics
from eir.node.observe.status import AnsweringReport, merged_peers
from eir.node.processes import state_folder
from eir.node.processes.channel import Handlers
from eir.node.processes.configuration import Configured
from eir.node.processes.listeners import Acceptor
from eir.node.processes.process import ThisProcess, run_process
from eir.node.processes.recorder import buffer_for
from eir.node.processes.setup import Listed, kinds_of, missing_lists
from eir.schema import DETAILS
from eir.sightings.buffer import Buffer
from eir.wire.peers.counts import DURATION_BUCKETS_S, Counts
from eir.wire.peers.rate import RateLimits
from eir.wire.transport.endpoint import is_secure
from eir.wire.transport.tls import load_tls

if TYPE_CHECKING:
    from eir.wire.web.tokens import KeyFiles

DRAIN_S = 8.0
"""Seconds that peers have to close after the node's DPR (RFC 6733 5.4 gives no time; the state machine closes after 5 s)."""
PAUSE_S = 0.001
"""Seconds between two steps of freeing an image's memory."""
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


def run(end: socket.socket, origin_state_id: int, sender: int | None = None) -> int:
    """Run the answering process until it is stopped or its channel closes; return the exit status.

    `sender`: descriptor of the socket to the recorder.
    """
    _set_malloc_options()
    sightings = None if sender is None else socket.socket(fileno=sender)
    return run_process(end, partial(_work, origin_state_id, sightings))


def _set_malloc_options() -> None:
    """Set the C library to keep freed memory for the next messages instead of returning it to the kernel.

    By default glibc returns more than 128 KiB of free memory at the end of the heap to the kernel. A full window needs more, and
    the page faults would cost as much as the answers. Other C libraries have no such setting.
    """
    with suppress(AttributeError):
        set_option = ctypes.CDLL(None).mallopt
        set_option(M_TRIM_THRESHOLD, KEPT_BYTES)
        set_option(M_MMAP_THRESHOLD, BUFFER_BYTES)


async def _work(origin_state_id: int, sender: socket.socket | None, process: ThisProcess) -> None:
    created: asyncio.Future[AnsweringProcess] = asyncio.get_running_loop().create_future()
    handlers: dict[str, Callable[..., Any]] = {"end": process.stop.set}

    def configure(configured: Configured) -> None:
        try:
            answering = build(configured, process, origin_state_id=origin_state_id, sender=sender)
        except Exception as e:  # noqa: BLE001 - a fault ends the process and is logged
            created.set_exception(e)
        else:
            handlers.update(answering.handlers())
            created.set_result(answering)

    handlers["configure"] = configure
    process.serve(handlers)
    stopped = asyncio.create_task(process.stop.wait())
    await asyncio.wait((created, stopped), return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if created.done():
        await created.result().run()


def build(
    configured: Configured, process: ThisProcess, *, origin_state_id: int, sender: socket.socket | None
) -> "AnsweringProcess":
    """Build the answering process, with its servers and shared objects, from its settings."""
    config = configured.config
    if any(each.tokens and config.of(each).listen for each in INTERFACES):
        import eir.wire.web.tokens  # noqa: F401, PLC0415 - takes 0.5 s, which must not delay checks after a reload
    counts = Counts()
    log = process.log
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
        lambda question: answering.explain(question), lambda record: process.channel.notify("traced", record),  # noqa: PLW0108 - see below
        lambda trace_filter: answering.node.exclude_traced(trace_filter), time.time,  # noqa: PLW0108 - the object does not exist yet
    )  # fmt: skip
    identity = replace(config.identity, origin_state_id=origin_state_id)
    context = Context(
        shared=replace(config, identity=identity), tls=tls, keys=configured.keys, checker=checker, counts=counts,
        rates=RateLimits(config.limits), report=log.report, tracer=tracer,
    )  # fmt: skip
    servers = {each.name: resolve_name(each.server)(config.of(each), context) for each in INTERFACES if each.server}
    answering = AnsweringProcess(
        config=config, process=process, context=context, index=index, clock=clock, servers=servers, sightings=sightings,
        new_devices=new_devices, left=set(configured.left),
    )  # fmt: skip
    for label in configured.disabled:
        answering.set_peer(label, enabled=False)
    answering.trace(configured.sought)
    return answering


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
class AnsweringProcess:
    """Servers, lists and settings of the answering process, and the functions that the manager calls."""

    config: Config
    process: ThisProcess
    context: Context
    index: Index
    clock: TrustedClock
    servers: Mapping[str, Any]
    """Server of each interface, by interface name."""
    sightings: Buffer | None
    new_devices: NewDevices | None
    left: set[str]
    """Labels of peers that do not count as away: their last client ended in order, and connects only for requests."""
    acceptor: Acceptor = field(init=False)
    steps: asyncio.Queue[Callable[[], object]] = field(default_factory=asyncio.Queue)
    """Lists to put in force, then the begin of the work, in the order of the manager's messages."""
    replaced: asyncio.Queue[Image] = field(default_factory=asyncio.Queue)
    """Replaced images, whose memory is not freed yet."""
    longest_slice_s: float = 0.0
    """Longest time in seconds for which the switch of a list blocked the loop."""
    shed_logged: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Number of shed requests at the last log lines about them, by peer label and limit."""
    worked: tuple[float, float] = (0.0, 0.0)
    """Time of the last measurement of the load, and the processor time at that moment, in seconds."""
    load: float = 0.0
    """Share of one processor that the process used between the last two measurements."""
    shed_last: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Number of shed requests that the last log lines reported."""

    def __post_init__(self) -> None:
        self.acceptor = Acceptor(self.context, self._serve)

    @property
    def node(self) -> S13Server:
        """Diameter node of the process."""
        node: S13Server = self.servers[S13]
        return node

    def handlers(self) -> Handlers:
        """Return the functions that the manager may call: map from name to function."""
        return {
            "put_in_force": self.switch_list, "complete": lambda: self.steps.put_nowait(self._begin),
            "listen": lambda *listener: self.steps.put_nowait(partial(self.acceptor.listen, *listener)),
            "dial": lambda: self.steps.put_nowait(self._dial), "apply": self.apply, "counters": self.counters, "snapshot": self.snapshot,
            "report": self.report, "peers": self.peers, "set_peer": self.set_peer, "set_keys": self.set_keys, "explain": self.explain,
            "trace": self.trace, "first_seen_rejected": self.reject_first_seen,
        }  # fmt: skip

    async def run(self) -> None:
        """Put lists in force and answer checks until stopped, then end all connections in order."""
        jobs = self.process.jobs
        jobs.spawn(self._run_steps())
        jobs.spawn(self._free())
        jobs.start("fold", FOLD_S, self._fold)
        jobs.start("tick", TICK_S, self._tick)
        jobs.start("clock", SAVE_CLOCK_S, self._save_clock)
        await self.process.stop.wait()
        self._send_first_seen()
        self.acceptor.close_except([])
        await asyncio.gather(*(server.drain(DRAIN_S) for server in self.servers.values()))
        if self.sightings is not None:
            self.sightings.flush()
        await asyncio.to_thread(state_folder.save_clock, self.clock, self.config.state)
        self._log_shed()

    # Lists and connections

    def switch_list(self, listed: Listed, memory: int | None) -> None:
        """Map the shared memory of a list, and queue the switch to the list."""
        if memory is None:
            return  # the manager sends the list again
        try:
            image = Image.map(memory)
        except (ImageError, OSError) as e:
            self.process.log.report("image_failed", level="error", list=listed.name, detail=str(e))
        else:
            self.steps.put_nowait(partial(self._switch, listed, image))

    async def _run_steps(self) -> None:
        """Run the queued steps as they arrive, until cancelled."""
        while True:
            step = await self.steps.get()
            try:
                step()
            except Exception as e:  # noqa: BLE001 - outermost loop of this task: it logs the fault and continues
                self.process.log.report("fault", reason="lists", level="error", detail=detail_of(e))

    def _begin(self) -> None:
        """Report to the manager that this process has the lists of its start."""
        gc.collect()
        gc.freeze()  # the garbage collector then skips the objects of the start, which stay
        self.process.channel.notify("started")

    def _switch(self, listed: Listed, image: Image) -> None:
        """Put a list in force, unless the same version of the list is in force already."""
        entries = self.index.lists.get(listed.name)
        if entries is None or entries.kind != listed.kind:
            return
        if (entries.state, entries.reasons) == (listed.state, listed.reasons):
            return
        began = time.perf_counter()
        before = self.index.switch(listed.name, listed.state, image, listed.reasons)
        self.node.renew()
        self._note_slice(began)
        if before is not None:
            self.replaced.put_nowait(before)

    async def _free(self) -> None:
        """Free the memory of replaced lists in small parts with pauses, until cancelled."""
        while True:
            image = await self.replaced.get()
            done = 0
            while done < len(image.buffer):
                began = time.perf_counter()
                done = image.drop(done)
                self._note_slice(began)
                await asyncio.sleep(PAUSE_S)
            del image

    def _note_slice(self, began: float) -> None:
        self.longest_slice_s = max(self.longest_slice_s, time.perf_counter() - began)

    def _serve(self, connection: socket.socket, protocol: str, url: str, closed: Callable[[], None]) -> None:
        """Serve an accepted connection. `closed`: function to call at its end."""

        async def serve() -> None:
            try:
                end = await self.servers[protocol].serve(connection, secure=is_secure(url))
                if end is not None and not STAYS_CONNECTED[protocol] and end.in_order:
                    self.left.add(end.label)
                elif end is not None:
                    self.left.discard(end.label)
            finally:
                closed()

        self.process.jobs.spawn(serve())

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
        """Remove recorded devices from the queue of new devices, then send the manager all devices that are still unsent."""
        if self.new_devices is None:
            return
        for _ in self.new_devices.remove_recorded():
            await asyncio.sleep(0)
        self._send_first_seen()

    def _send_first_seen(self) -> None:
        """Send the manager the devices that this process saw for the first time.

        The manager passes them to the follower process, which writes them to the record of first sightings.
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

    # Calls of the manager that change something

    def apply(self, configured: Configured) -> None:
        """Apply new settings, except keys that need a restart. The manager has validated them."""
        new, context = configured.config, self.context
        tls = context.tls if configured.tls is None else load_tls(configured.tls)
        identity = replace(new.identity, origin_state_id=context.shared.identity.origin_state_id)
        context = replace(context, shared=replace(new, identity=identity), tls=tls, keys=configured.keys)
        self.index.apply(kinds_of(new))
        context.checker.apply(new.policy, datetime.now(UTC))
        context.checker.probes = probes_of(new)
        context.checker.accesses = accesses_of(new)
        self.acceptor.close_except(new.listeners)
        self._apply(new, context, INTERFACES)
        self.process.log.configure(level=new.log_level, full_identifiers=new.full_identifiers)

    def _apply(self, config: Config, context: Context, interfaces: Iterable[Interface]) -> None:
        for each in interfaces:
            if each.server:
                self.servers[each.name].apply(config.of(each), context)
        self.acceptor.apply(context)
        self.config = config
        self.context = context

    def _dial(self) -> None:
        """Start outgoing connections to peers, in all protocols."""
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

    # Calls of the manager that return something

    def _loaded(self) -> dict[str, Head]:
        return {name: held.state for name, held in self.index.lists.items() if held.state is not None}

    def counters(self) -> metrics.Snapshot:
        """Return the counters that the manager keeps after the end of this process."""
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
        """Return the counters and gauges of this process by metric name and label values."""
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
            "eir_switch_longest_slice_seconds": {(): self.longest_slice_s},
            "eir_override_active": {(): float(self.context.checker.policy.overridden)},
            DETAILS: metrics.details(
                "EirPathLost", {label: ", ".join(addresses) for label, addresses in paths.items()}
            ),
        }
        return metrics.merge([self.counters(), *(server.gauges() for server in self.servers.values()), own])

    def report(self) -> AnsweringReport:
        """Return the status report of this process for `eir status`."""
        states = self._loaded()
        return AnsweringReport(
            missing=missing_lists(self.config, states), lists=states, checks=self.context.checker.checks().total(), connected=self.connected(), tasks=len(asyncio.all_tasks()),
            load=self.load, refused=self.node.refusals(), newest=self.node.newest(), left=sorted(self.left), reasons={name: self.index.lists[name].reasons for name in states},
        )  # fmt: skip

    def explain(self, question: Question) -> Explanation:
        """Return the answer that a check would get at present, and the reasons. The call is not counted as a check."""
        return answer(question, self.config.policy, self.config.lists_and_record, self.index, now=datetime.now(UTC))

    def peers(self) -> list[dict[str, Any]]:
        """Return the rows of `eir peers`: all connections, and entries of the peer table without a connection.

        A row of an entry without a connection may have no protocol.
        """
        return merged_peers([asdict(row) for server in self.servers.values() for row in server.status()])

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

        An expected peer without a connection has 0, unless its last connection ended in order.
        """
        by_label: Counter[str] = Counter()
        for server in self.servers.values():
            by_label.update(server.connected())
        return {label: number for label, number in by_label.items() if number or label not in self.left}

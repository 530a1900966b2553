"""The front, the first process of a node: starts the others, accepts connections for them, and is where the node is seen and steered.

It is on the path of no check. It reads the configuration and hands on what it read, keeps the one table that says which connections
of a peer are wanted (workers.py), watches the drop folder, and serves the pages and the control socket. Signals to the node are its
to act on. The others end when it does.
"""

import asyncio
import os
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import uvloop

from eir import __version__
from eir.checks.question import Question
from eir.config import Config, changed_settings, digests, load_config, needs_restart, take_over
from eir.device import typed
from eir.errors import ConfigError, EirError, SetupFault, StoreError, detail_of, silent
from eir.interfaces import INTERFACES
from eir.interfaces.interface import Attendant, Interface, Standing
from eir.interfaces.s13.lane import LANE
from eir.lists.follow.history import HistoryKeeper
from eir.lists.record.clock import STOOD_STILL, in_time
from eir.lists.record.store import CHAINS, FEED, FORCED, MAIN, REFUSED, Event, Outcome
from eir.lists.stores.open import SQLITE, open_copy, open_store
from eir.node.observe import metrics
from eir.node.observe.alerts import Alerts
from eir.node.observe.control import (
    PING,
    RUN,
    RUN_ACCEPTS,
    RUNNING,
    STOPPING,
    Arguments,
    ControlServer,
    Looking,
    asker,
)
from eir.node.observe.http import HttpServer, pages
from eir.node.observe.lately import EVERY_S, Lately, Rhythms
from eir.node.observe.log import ENDING, READY, Log, report_faults, tell_service
from eir.node.observe.page import Shown, page
from eir.node.observe.status import NOT_READY, ExpiryReminder, Status, WorkerReport
from eir.node.processes import deliver, interfaces, state_folder, worker
from eir.node.processes.accept import Acceptor, cannot_listen
from eir.node.processes.child import Children
from eir.node.processes.drop_folder import DropFolder
from eir.node.processes.following import Followed
from eir.node.processes.priority import BESIDE_NICE, give_way
from eir.node.processes.pulling import Acknowledging, Pulling
from eir.node.processes.recorder import Recorded
from eir.node.processes.setup import (
    ConfigFile,
    changed_lists,
    prepare,
    reload_event,
    report_warnings,
)
from eir.node.processes.starter import END_S, Process, Starter, call_itself
from eir.node.processes.state_folder import as_owner_of
from eir.node.processes.tracing import Tracing
from eir.node.processes.worker import Configured
from eir.node.processes.workers import Workers
from eir.wire.peers.rate import memory_file
from eir.wire.transport.endpoint import address_text
from eir.wire.transport.tls import TlsFiles, load_tls, read_tls
from eir.wire.web.access import PAGE, PageAccess
from eir.wire.web.denials import keys_of
from eir.wire.web.http1 import Request, Response

if TYPE_CHECKING:
    from eir.wire.web.tokens import KeyFiles

HOLD_S = 2.0
"""Time for which new connections wait, when a worker has ended, for the one that replaces it, so that its peers, which
reconnect at once, do not all move to the other workers."""
KEYS_S = 1.0
"""Interval between two looks at the keys of access tokens."""
LOOK_S = 1.0
"""Interval between two looks at the status of the workers."""
ASKED_MAX = 40
"""Characters of an identifier that the page asks about."""
WRONG_PASSWORD_S = 1.0
"""Delay of the answer to a wrong password."""
EVENTS_MAX = 200
"""Most events of the history that the page looks through."""
LIMIT_MAX = 1 << 62
"""Largest number of events that a request for the history may name."""
OUTCOMES_S = 5.0
"""Interval between two looks at the outcomes of releases."""
STOP_S = 25.0
"""Time that the end of the node may take, whatever hangs: systemd gives it 30 s (deploy/systemd/eir.service)."""
ACCEPTS: Mapping[str, Arguments] = {
    "check": {**dict.fromkeys(Question._fields, str | None), "unproven": bool | None}, "history": {"list": str | None, "limit": int | None, "since": str | None, "chain": str | None},
    "forget": {"subscribers": list}, "trace": {"imei": str | None, "imsi": str | None, "lasts_s": int | float, "reason": str | None},
    "trace_read": {"number": int | None}, "trace_end": {"number": int | None}, "peer_disable": {"name": str}, "peer_enable": {"name": str},
}  # fmt: skip
"""Arguments of the commands of the control socket."""
UNKNOWN_LIST = "unknown"
"""Label of releases that were refused before a verified manifest named a list."""


def run(config: Config, *, reload_on_change: bool = False) -> int:
    """Run a node until SIGTERM or SIGINT; returns its exit status.

    `reload_on_change`: have it take over the configuration file whenever that is another one.
    Raises EirError if it cannot start, SetupFault for what does not go away by itself.
    """
    with as_owner_of(config.state):
        state_folder.prepare(config.state)
        held = state_folder.hold(config.state)
        try:
            prepare(config)
            starter = Starter(__name__, keeps=[held], owned=config.state)
            starter.fork()
            starter.stay()
            call_itself("front")
            give_way(BESIDE_NICE)
            state_id = state_folder.next_origin_state_id(config.state)
            front = Front(config, starter, state_id, reload_on_change=reload_on_change, on_stop=end_within)
            return uvloop.run(front.serve())
        finally:
            os.close(held)


def end_within(stop_s: float = STOP_S) -> None:
    """End this process after that time if it has not ended by then: by a thread, since a disk may hold up the loop and all other threads."""

    def overdue() -> None:
        detail = f"it did not end within {stop_s:g} s; what it waited for is left undone"
        Log(time.monotonic, in_background=False).report(
            "killed", level="error", reason="drain", process="front", pid=os.getpid(), detail=detail
        )
        os._exit(1)

    timer = threading.Timer(stop_s, overdue)
    timer.daemon = True
    timer.start()


class Front:
    """Puts the parts of the front together, starts them in order, and takes them down in order."""

    def __init__(
        self,
        config: Config,
        starter: Starter,
        origin_state_id: int = 0,
        *,
        reload_on_change: bool = False,
        hold_s: float = HOLD_S,
        end_s: float = END_S,
        on_stop: Callable[[], None] = lambda: None,
    ) -> None:
        """`hold_s`: see HOLD_S. `end_s`: time that the other processes have to end; `on_stop` is called when that begins."""
        self._config, self._starter, self._origin_state_id = config, starter, origin_state_id
        self._reload_on_change, self._hold_s, self._end_s, self._on_stop = reload_on_change, hold_s, end_s, on_stop
        self._log = Log(time.monotonic, level=config.log_level, full_identifiers=config.full_identifiers)
        report = self._log.report
        self._stop, self._changed = asyncio.Event(), asyncio.Event()
        """The second: a worker came, started or went."""
        self._acceptor = Acceptor(config.peers, config.limits, config.sctp, report=report)
        starter.report = report
        self._children = Children(report=report)
        self._granted = memory_file(config.workers)
        """Over it the workers share the limits on requests a second."""
        self._followed = Followed(config, starter.start, report=report)
        self._recorded = None if config.sightings is None else Recorded(config, config.sightings, starter.start, report)
        self._workers = Workers(
            config.workers, self._start_worker, self._configured, self._followed, gone=self._acceptor.gone, changed=self._workers_changed,
            left=self._hold_connections, traced=self._traced, report=report,
        )  # fmt: skip
        self._followed.changed, self._followed.all_there = self._workers.put_in_force, self._workers.complete
        self._history = HistoryKeeper(
            copy := open_copy(config.store, config.state), writes=config.heal or copy is None, who=f"node on {socket.gethostname()}", report=report, clock=state_folder.read_clock(config.state)
        )  # fmt: skip
        self._tracing = Tracing(self._workers.trace, self._history.add, report)
        self._status = Status(
            workers=config.workers, pid=os.getpid(), following=lambda: self._followed.how, report=report
        )
        self._lately, self._alerts, self._rhythms = Lately(), Alerts(), Rhythms()
        self._looking, self._access = Looking(config.path), PageAccess(ticks=time.monotonic)
        self._http = HttpServer(
            {"/": self._page, **pages(self.snapshot, self._workers.reports, self._status, report=report)},
            report=report,
            forms={"/"},
        )
        self._control = ControlServer(config.state, self._commands(), accepts=ACCEPTS, report=report)
        path = config.control_read
        self._control_read = (
            None
            if path is None
            else ControlServer(
                path.parent, {RUN: self._looking.run}, accepts=RUN_ACCEPTS, name=path.name, report=report
            )
        )
        self._interfaces = [
            interfaces.ServiceProcess(each, starter.start, report=report)
            for each in INTERFACES
            if each.service and config.of(each).listen
        ]
        """Interfaces that the configuration names; a reload adds none."""
        self._drop_folder = DropFolder(config, starter.start, report=report)
        self._pulling = Pulling(config, starter.start, report=report)
        self._acknowledging = Acknowledging(config, starter.start, report=report)
        self._status.sources = lambda: self._pulling.warnings(time.time())
        self._status.gone, self._status.older = lambda: self._acknowledging.gone, lambda: self._acknowledging.older
        self._outcomes: tuple[Outcome, ...] = ()
        self._events: Sequence[Event] = ()
        """The newest of the history, for the page."""
        self._reload_failed = self._dialing = False
        self._needs_restart: Sequence[str] = ()
        """Keys whose values in the last file that was reloaded wait for a restart."""
        self._reloading = asyncio.Lock()  # what a worker has prepared is one configuration
        self._file = ConfigFile(config.path, config.digest)
        self._expiry = ExpiryReminder()
        self._tls = self._read_tls(config)
        self._keys = _read_keys(config, {})
        self._keys_fault: str | None = None
        """The fault of the present key files that was last logged."""
        self._standing = Standing(serving=False, load=0)
        self._attendants: list[tuple[Interface, Attendant]] = [
            (each, resolve_name(each.attendant)(lambda: self._standing, report))
            for each in INTERFACES
            if each.attendant
        ]
        self._status.attendants = [attendant for _, attendant in self._attendants]
        self._disabled: set[str] = set()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def serve(self) -> int:
        """Start, run until SIGTERM, stop. Returns the exit status; raises EirError if a listener cannot be had."""
        loop = asyncio.get_running_loop()
        report_faults(self._log.report)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._begin_stop, signal.Signals(number).name)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._spawn(self._reload_by_signal()))
        deliver()
        killed = False
        try:
            await self._open()
            if not self._status.stopping:
                self._start()
                await self._start_interfaces()
            self._spawn(self._drop_folder.run())
            self._spawn(self._pulling.run())
            self._spawn(self._again(OUTCOMES_S, "outcomes", self._read_outcomes))
            self._spawn(self._again(EVERY_S, "lately", self._note_minute))
            if await self._workers_started():
                self._status.listening = await self._acceptor.listen(
                    [each.url for each in self._config.listeners], self._workers.hand_over
                )
                for address in self._status.listening:
                    self._log.report("listening", address=address)
                self._dialing = True
                self._workers.dial()
                await self._look()
                tell_service(READY, f"STATUS=answers on {', '.join(self._status.listening)}")
                self._spawn(self._again(LOOK_S, "status", self._look))
                self._spawn(self._again(KEYS_S, "keys", self._look_at_keys))
                self._spawn(self._again(LOOK_S, "configuration", self._look_at_file))
                await self._attend()
            await self._stop.wait()
            self._acceptor.close()
            for attendant in self._status.attendants:
                await attendant.close()
        finally:
            self._begin_stop("the start failed")
            killed = not await self._end_processes()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._acknowledging.stop()
            await self._starter.close()
            self._granted.close()
            await self._history.close()
            await self._http.close()
            await self._control.close()
            if self._control_read is not None:
                await self._control_read.close()
            self._log.report("stopped")  # by the last process that there is
            self._log.close()
        return int(killed)

    async def _end_processes(self) -> bool:
        """Have all other processes end: nobody connects to a node any more whose peers are sent away. True if none had to be killed."""
        self._workers.end()
        self._followed.child.stop()
        if self._recorded is not None:
            self._recorded.end()
        for each in self._interfaces:
            each.stop()
        return await self._children.end(self._end_s)

    async def _open(self) -> None:
        """Open the control socket and that of who may only look, then the pages. Raises EirError."""
        await self._control.listen()
        if self._control_read is not None:
            try:
                await self._control_read.listen()
            except OSError as e:
                raise SetupFault(
                    f"control_read {self._config.control_read}: {e.strerror}; its folder has to be the node's user's, with mode 2750 and the group of those who may look"
                ) from None
        if self._config.http is None:
            return
        host, _, port = self._config.http.rpartition(":")
        try:
            address, bound = await self._http.listen(host.strip("[]"), int(port))
            self._status.http = address_text([address], bound)
        except OSError as e:
            raise cannot_listen(f"http {self._config.http}", e) from None
        self._log.report("listening", address=f"http://{self._status.http}", pages="/ /metrics /live /ready")

    def _begin_stop(self, cause: str) -> None:
        """Begin the node's end."""
        if self._status.stopping:
            return
        self._log.report("stopping", reason=cause)
        tell_service(ENDING)
        self._status.stopping = True
        self._on_stop()
        self._children.stop()
        self._stop.set()
        self._changed.set()

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _again(self, pause_s: float, what: str, look: Callable[[], Awaitable[None]]) -> None:
        """Do something again and again, until cancelled."""
        while True:
            try:
                await look()
            except Exception as e:  # noqa: BLE001 - the outermost loop of this task: it says so, and looks again
                self._log.report("fault", reason=what, level="error", detail=detail_of(e))
            await asyncio.sleep(pause_s)

    # ---- workers ----

    def _configured(self, number: int) -> Configured:
        dials = self._dialing and number == 0
        return Configured(
            self._config, sorted(self._disabled), self._tls, self._keys, dials=dials, sought=self._tracing.sought
        )

    def _start(self) -> None:
        """Start all other processes, and keep them running until the node ends."""
        recorder = () if self._recorded is None else (self._recorded.child,)
        for child in (*recorder, self._followed.child, *self._workers.children):
            self._children.keep(child)

    async def _start_interfaces(self) -> None:
        """Open what is beside the checks, and keep its processes running. Raises EirError if a listener cannot be had."""
        beside = (self._drop_folder.troubles, *(each.troubles for each in self._interfaces))
        self._status.troubles = lambda: [text for troubles in beside for text in troubles()]
        for each in self._interfaces:
            name = each.interface.name
            self._status.interfaces[name] = await each.open(interfaces.Configured(self._config, self._tls))
            self._children.keep(each.child)

    async def _start_worker(self, number: int) -> Process:
        shared = (self._granted,) if self._recorded is None else (self._granted, self._recorded.sender)
        return await self._starter.start(f"worker-{number}", worker.run, number, self._origin_state_id, carrying=shared)

    def _hold_connections(self) -> None:
        if not self._status.stopping:
            self._acceptor.hold(self._hold_s)

    def _traced(self, record: dict[str, Any]) -> None:
        self._tracing.take(record)

    def _workers_changed(self) -> None:
        if self._workers.all_started:
            self._acceptor.resume()
        self._changed.set()

    async def _workers_started(self) -> bool:
        """Wait until every worker has its lists (or, if it may serve without, has looked for them); False if stopped."""
        told = False
        while not self._stop.is_set():
            if self._workers.all_started:
                missing = dict.fromkeys(name for report in await self._workers.reports() for name in report.missing)
                boot = self._config.boot_without_lists
                if missing and not told:
                    self._log.report("lists_missing", level="warning", lists=",".join(missing), boot_without_lists=boot)
                    if boot == "refuse":  # a start that waits for a release would hold back whoever is to load it
                        tell_service(
                            READY, f"STATUS=opens no listener before these lists are loaded: {', '.join(missing)}"
                        )
                    told = True
                if not missing or boot != "refuse":
                    return True
            self._changed.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), LOOK_S / 4)
        return False

    # ---- interfaces ----

    async def _attend(self) -> None:
        """Have the attendants of interfaces go by the configuration in force, once listeners are open."""
        for each, attendant in self._attendants:
            if self._status.listening and not self._status.stopping:
                await attendant.apply(self._config.of(each), self._config, self._tls, self._status.listening)

    async def _look_at_keys(self) -> None:
        """Have access tokens checked with other keys, if the files say others; a fault in them changes nothing."""
        try:
            keys = _read_keys(self._config, self._keys)
        except EirError as e:
            if str(e) != self._keys_fault:
                self._log.report("keys_refused", level="error", detail=str(e))
            self._keys_fault = str(e)
            return
        self._keys_fault = None
        if keys != self._keys:
            changed = [found for name, found in keys.items() if found != self._keys[name]]
            self._keys = keys
            await self._workers.set_keys(keys)
            for found in changed:
                files = ",".join(file for _, file, _ in found.contents) if found else None
                self._log.report("keys_in_force", files=files)

    # ---- what is looked at again and again ----

    async def _look_at_file(self) -> None:
        """Look whether the configuration on disk was written, and take it over if that is wanted."""
        changed = await self._file.look()
        self._status.config_fault = self._file.fault
        if changed and self._reload_on_change:
            with suppress(EirError, OSError):  # the log has said what is wrong
                await self._reload("file")

    async def _look(self) -> None:
        await self._tracing.look()
        reports = await self._workers.reports()
        self._status.tell(reports)
        self._acknowledging.look(reports, self._pulling.rejected)
        serving = self._status.readiness(reports).word != NOT_READY
        load = max((report.load for report in reports), default=0)
        self._standing = Standing(serving=serving, load=round(100 * load))
        states = {name: state for report in reports for name, state in report.lists.items()}
        for name in self._expiry.due(states, now=datetime.now(UTC), monotonic=time.monotonic()):
            self._log.report(
                "list_expired", level="warning", list=name, expires=states[name].expires, detail="it stays in force"
            )

    async def _read_outcomes(self) -> None:
        """Read what became of releases, and see to the history; the front keeps no connection to the store for that."""
        report = self._log.report if self._config.store == SQLITE else silent  # of Redis the follower tells
        store = open_store(self._config.store, self._config.state, report=report, check=False)
        try:
            self._status.store_newer = await in_time(store.newer())
            await self._history.look(store, self._config.history, [*self._config.lists])
            self._status.history_differs, self._status.unrecorded = self._history.differs, self._history.unrecorded
            outcomes = tuple(await in_time(store.outcomes()))
            if outcomes != self._outcomes or not self._events:
                # The rows of a feed displace no load from the page.
                events = [await in_time(store.history(limit=EVENTS_MAX, chain=chain)) for chain in CHAINS]
                self._events = sorted((event for each in events for event in each), key=lambda event: event.time)
            self._outcomes = outcomes
            await self._rhythms.look(self._outcomes, store)
        except StoreError as e:
            if e.cause == STOOD_STILL:
                self._log.report("stood_still", level="warning", detail=str(e))
            else:
                self._log.report("store_error", level="warning", reason=e.cause, detail=str(e))
        finally:
            await store.close()

    async def snapshot(self) -> metrics.Snapshot:
        """All numbers of the node, for a scrape."""
        # What the operator does to a local list is in the history too, and is no release, but what was forced is to be seen; a
        # release that is offered for it is refused.
        local = {name for name, settings in self._config.lists.items() if settings.local}
        counted = [each for each in self._outcomes if each.outcome in {FORCED, REFUSED} or each.list not in local]
        ledgers = self._history.ledgers
        waiting, failures, ends = self._drop_folder.waiting, self._acceptor.failures, self._status.certificate_ends
        ours: metrics.Snapshot = {
            "eir_peers_refused_total": metrics.by_label(self._acceptor.refused),
            "eir_diameter_errors_total": {("accept_failed",): failures} if failures else {},
            "eir_releases_total": {(each.list or UNKNOWN_LIST, each.outcome): each.count for each in counted},
            **{
                f"eir_release_last_{outcome}_timestamp_seconds": metrics.times(
                    {each.list or UNKNOWN_LIST: each.last for each in counted if each.outcome == outcome}
                )
                for outcome in (FORCED, REFUSED)
            },
            "eir_history_last_record": {(): ledgers[MAIN].number},
            "eir_history_last_digest": {(): int(ledgers[MAIN].digest[:12], 16)},
            "eir_history_bytes": {(chain,): ledgers[chain].bytes for chain in CHAINS},
            "eir_history_max_bytes": {
                (MAIN,): self._config.history.max_bytes,
                (FEED,): self._config.history.feed_max_bytes,
            },
            "eir_history_differs": {(): float(bool(self._history.differs))},
            "eir_store_lost_data": dict.fromkeys(
                ((name,) for name in (*self._acknowledging.gone, *self._acknowledging.older)), 1.0
            ),
            "eir_list_unrecorded": {(name,): float(name in self._history.unrecorded) for name in self._config.lists},
            **self._rhythms.snapshot(),
            **self._pulling.numbers(),
            **self._acknowledging.numbers(),
            **metrics.of_processes(os.getpid()),
            "eir_inbox_usable": {} if waiting is None else {(): float(self._drop_folder.usable)},
            "eir_inbox_waiting_releases": {} if waiting is None else {(): waiting},
            "eir_config_last_reload_successful": {(): float(not self._reload_failed)},
            "eir_clients_refused_total": {(PAGE, reason): count for reason, count in self._access.refused.items()},
            "eir_config_needs_restart": {(key,): 1.0 for key in self._needs_restart},
            "eir_start_timestamp_seconds": {(): self._status.started},
            "eir_tls_certificate_expires_timestamp_seconds": {(): ends.timestamp()} if ends else {},
            "eir_worker_restarts_total": {(): float(self._children.restarts)},
            "eir_build_info": {(__version__, LANE): 1.0},
            **{name: samples for each in self._status.attendants for name, samples in each.numbers().items()},
        }
        recorded = {} if self._recorded is None else self._recorded.snapshot()
        parts = [ours, recorded, self._followed.snapshot(), await self._workers.snapshot()]
        return metrics.merge([*parts, *(each.snapshot() for each in self._interfaces)])

    # ---- the page for people ----

    async def _note_minute(self) -> None:
        self._lately.note(self._workers.figures())
        self._alerts.note(await self.snapshot(), time.time())

    async def _page(self, request: Request) -> Response:
        """The page, for those who may see it; with an `imei`, in its form or behind its path, also what that device would be answered."""

        def report(reason: str) -> None:
            self._log.report("client_refused", reason=reason, level="warning", interface=PAGE, address=request.address)

        if (refused := self._access.refusal(request, self._config.page, report)) is not None:
            if refused.status == 401 and "authorization" in request.headers:
                await asyncio.sleep(WRONG_PASSWORD_S)
            return refused
        (reports, status), events = await self._reports_and_status(), self._events
        lists = reports[0].lists if reports else {}
        changes = {event.list: event for event in events if event.list is not None and event.outcome != REFUSED}
        form = request.body.decode("latin-1") if request.method == "POST" else request.query
        asked = typed(parse_qs(form).get("imei", [""])[0])[:ASKED_MAX]
        return page(Shown(
            host=self._config.identity.host, status=status, peers=await self._workers.peers(), lists=lists,
            changes=changes, refusals=[event for event in events if event.outcome == REFUSED], minutes=self._lately.minutes(),
            asked=asked, answer=await self._looking.answer(asked), now=datetime.now(UTC),
        ))._replace(authenticated=True)  # fmt: skip

    # ---- commands ----

    def _commands(self) -> dict[str, Callable[[dict[str, Any]], Any]]:
        return {
            PING: lambda _: STOPPING if self._status.stopping else RUNNING,
            "status": lambda _: self._show_status(),
            "lists": lambda _: self._in_force(),
            "check": self._check,
            "peers": lambda _: self._workers.peers(),
            "reload": lambda _: self._reload_by_command(),
            "drain": self._drain,
            "history": self._show_history,
            "record": lambda _: self._write_record(),
            "forget": self._forget,
            "trace": self._tracing.begin,
            "trace_read": self._tracing.read,
            "trace_end": self._tracing.end,
            "peer_disable": lambda arguments: self._set_peer(arguments, enabled=False),
            "peer_enable": lambda arguments: self._set_peer(arguments, enabled=True),
        }

    async def _show_status(self) -> dict[str, Any]:
        return (await self._reports_and_status())[1]

    async def _reports_and_status(self) -> tuple[Sequence[WorkerReport], dict[str, Any]]:
        """Return the reports of the workers, and the document of `eir status` by them and by the node's metrics."""
        reports, snapshot = await asyncio.gather(self._workers.reports(), self.snapshot())
        return reports, self._status.document(reports, self._alerts.troubles(snapshot, time.time()))

    async def _in_force(self) -> dict[str, Any]:
        """Return the state that the node answers from, for commands that compare it with file and store."""
        reports = await self._workers.reports()
        if not reports:
            raise EirError("no worker has its lists yet: ask again in a moment")
        return {
            "pid": os.getpid(), "configuration": digests(self._config.shown),
            "in_step": all(report.lists == reports[0].lists for report in reports),
            "lists": {name: asdict(state) for name, state in reports[0].lists.items()}, "since": self._acknowledging.since(reports[0].lists),
            "rejected": {name: asdict(each) for name, each in self._pulling.rejected.items()},
        }  # fmt: skip

    async def _check(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        question = Question(**{name: value for name, value in arguments.items() if value is not None})
        answer = await self._workers.explain(question)
        return {**await self._in_force(), "answer": answer.as_fields()}

    async def _show_history(self, arguments: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return records from this node's copy of the history, for when the store is away."""
        name, limit, since, chain = (arguments.get(each) for each in ("list", "limit", "since", "chain"))
        if limit is not None and not 0 <= limit <= LIMIT_MAX:
            raise EirError(f"history limit {limit}: expected 0 to {LIMIT_MAX}")
        events = await self._history.events(name, limit=limit, since=since, chain=chain)
        return [asdict(event) for event in events]

    async def _write_record(self) -> bool:
        """Have what was seen up to now written; whether there is a record."""
        if self._recorded is not None:
            await self._recorded.write()
        return self._recorded is not None

    async def _forget(self, arguments: Mapping[str, Any]) -> bool:
        """Have subscribers forgotten that a running node remembers; whether there is a record."""
        if self._recorded is not None:
            await self._recorded.forget([str(each) for each in arguments["subscribers"]])
        return self._recorded is not None

    def _drain(self, _: Mapping[str, Any]) -> str:
        self._begin_stop("drain")
        return "draining: DPR to each peer, then the end"

    async def _set_peer(self, arguments: Mapping[str, Any], *, enabled: bool) -> str:
        label = str(arguments.get("name"))
        known = self._config.labels
        if label not in known:
            raise EirError(f"no peer {label}; there are: {', '.join(known) or 'none'}")
        if enabled:
            self._disabled.discard(label)
        else:
            self._disabled.add(label)
        await self._workers.set_peer(label, enabled=enabled)
        self._log.report("peer_enabled" if enabled else "peer_disabled", peer=label, level="warning", who=await asker())
        return (
            f"{label} is in service"
            if enabled
            else f"{label} is out of service until `eir peer enable {label}` or a restart"
        )

    # ---- reload ----

    async def _reload_by_signal(self) -> None:
        with suppress(EirError, OSError):  # the log has said what is wrong
            await self._reload("SIGHUP")

    async def _reload_by_command(self) -> str:
        # Who asks waits so long and no longer; a reload that has begun is not left half done for that.
        before = await self._workers.reports()
        said: str = await asyncio.shield(self._spawn(self._reload(await asker())))
        return "; ".join([said, *changed_lists(self._config, before, await self._workers.reports())])

    async def _reload(self, who: str) -> str:
        """Read the configuration file and have every worker take it over; a bad one changes nothing.

        `who` asked for it, as the log shows. One that comes meanwhile waits. Raises EirError or OSError, having told the log what is
        wrong.
        """
        async with self._reloading:
            if self._status.stopping:
                raise EirError("the node is stopping")
            return await self._reload_now(who)

    async def _reload_now(self, who: str) -> str:
        try:
            new = load_config(self._config.path)
            tls = self._read_tls(new)
            keys = _read_keys(new, self._keys)
        except (EirError, OSError) as e:
            self._reload_failed = True
            for problem in e.problems if isinstance(e, ConfigError) else (e,):
                self._log.report("reload_refused", level="error", reason="configuration", detail=str(problem), who=who)
            raise
        report_warnings(new, self._log.report)
        before, waiting = self._config, needs_restart(self._config, new)
        now = take_over(before, new)
        tls = tls or self._tls  # a listener for TLS that is open stays so until a restart
        self._reload_failed = True  # until every worker has taken it over
        await self._workers.prepare(lambda number: self._configured(number)._replace(config=now, tls=tls, keys=keys))
        self._config, self._tls, self._keys = now, tls, keys
        await self._workers.take_over()
        self._reload_failed, self._needs_restart = False, waiting
        changed = changed_settings(before, now)
        self._acceptor.configure(now.peers, now.limits, now.sctp)
        self._log.configure(level=now.log_level, full_identifiers=now.full_identifiers)
        self._followed.configure(now)
        self._drop_folder.configure(now)
        self._pulling.configure(now)
        for each in self._interfaces:
            each.configure(interfaces.Configured(now, tls))
        self._acknowledging.configure(now)
        await self._attend()
        if changed:
            self._history.add(reload_event(new.digest, who, changed))
        self._log.report(
            "reloaded", level="warning" if waiting else "info", who=who, changed=",".join(changed) or "nothing",
            needs_restart=",".join(waiting) or None,
        )  # fmt: skip
        return "reloaded" + (f"; these need a restart: {', '.join(waiting)}" if waiting else "")

    def _read_tls(self, config: Config) -> TlsFiles | None:
        """Read the files of TLS, for all workers, and tell of the certificate. Raises TlsError."""
        if config.tls is None:
            return None
        files = read_tls(config.tls)
        names, _, ends = load_tls(files).certificate
        self._status.certificate_ends = ends
        self._log.report("certificate", names=",".join(names), expires=ends.isoformat(), file=config.tls.certificate)
        return files


def _read_keys(config: Config, before: "Mapping[str, KeyFiles | None]") -> "dict[str, KeyFiles | None]":
    """Read the keys that access tokens are checked with, by interface; those of one that listens no more stay. Raises KeysError."""
    return {
        each.name: keys_of(each.tokens(settings, config), before.get(each.name))
        if (settings := config.of(each)).listen
        else before.get(each.name)
        for each in INTERFACES
        if each.tokens
    }

"""Manager: the first process of a node. It starts the other processes, and serves status and commands.

The manager runs no code of a protocol. It reads the configuration and opens the listening sockets, and passes both to the other
processes. These end when the manager ends.
"""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from eir.config import Config
from eir.config.settings import Listener
from eir.node.observe import metrics
from eir.node.observe.control import ReadOnlyRunner
from eir.node.observe.lately import EVERY_S
from eir.node.observe.log import ENDING, READY, Log, notify_service, report_faults
from eir.node.observe.status import NodeHealth, Running
from eir.node.processes import deliver, state_folder
from eir.node.processes.answered import ANSWERING
from eir.node.processes.attendants import Attendants
from eir.node.processes.child import END_S, Starter
from eir.node.processes.commands import Commands, ControlSockets
from eir.node.processes.configuration import Configuration, Loaded
from eir.node.processes.history_watch import HistoryWatch
from eir.node.processes.listeners import Listeners, OpenListener
from eir.node.processes.others import OtherProcesses
from eir.node.processes.overview import Overview
from eir.node.processes.process import Jobs, run_loop
from eir.node.processes.program import set_process_name
from eir.node.processes.reload import Reload
from eir.node.processes.setup import prepare
from eir.node.processes.sources import Sources
from eir.node.processes.state_folder import as_owner_of
from eir.node.processes.tracing import Tracing
from eir.node.processes.web import Web

POLL_S = 1.0
"""Seconds between two polls of the answering process, the configuration file and key files."""
STARTED_S = 0.25
"""Maximum seconds between two polls of the answering process during the start."""
STOP_S = 25.0
"""Maximum seconds for stopping the node, even if a part hangs; systemd permits 30 s (deploy/systemd/eir.service)."""


def run(config: Config, *, reload_on_change: bool = False) -> int:
    """Run a node until SIGTERM or SIGINT; return its exit status.

    `reload_on_change`: True to reload also when the configuration file changes.

    Raises:
        EirError: if the node cannot start.
        SetupFault: for a fault that a restart cannot remove.
    """
    with as_owner_of(config.state):
        state_folder.prepare(config.state)
        held = state_folder.lock(config.state)
        try:
            prepare(config)
            set_process_name("manager")
            state_id = state_folder.next_origin_state_id(config.state)
            starter = Starter(config.state, keeps=[held])
            manager = Manager(config, starter, state_id, reload_on_change=reload_on_change, on_stop=end_within)
            return run_loop(manager.serve())
        finally:
            os.close(held)


def end_within(stop_s: float = STOP_S) -> None:
    """Kill this process if it has not ended `stop_s` seconds later.

    A thread does this, because a disk may block the loop and all other threads.
    """

    def kill() -> None:
        log = Log(time.monotonic, in_background=False)
        detail = f"it did not end within {stop_s:g} s; its remaining work is abandoned"
        log.report("killed", level="error", reason="drain", process="manager", pid=os.getpid(), detail=detail)
        os._exit(1)

    timer = threading.Timer(stop_s, kill)
    timer.daemon = True
    timer.start()


class Manager:
    """Manager of a node. It starts and stops its parts in order."""

    def __init__(
        self,
        config: Config,
        starter: Starter,
        origin_state_id: int = 0,
        *,
        reload_on_change: bool = False,
        end_s: float = END_S,
        on_stop: Callable[[], None] = lambda: None,
    ) -> None:
        """Create the parts of the manager. No process is started yet.

        `end_s`: maximum seconds for the end of the other processes. `on_stop`: function that is called when the node begins to stop.
        """
        self._on_stop = on_stop
        self._log = Log(time.monotonic, level=config.log_level, full_identifiers=config.full_identifiers)
        report = self._log.report
        self._stop = asyncio.Event()
        self._jobs = Jobs(report)
        configuration = Configuration(config, report=report)
        self._configuration = configuration
        self._listeners = Listeners(report)
        self._is_listening = False
        """True once the answering process may accept connections."""
        self._others = OtherProcesses(
            configuration, starter, self._listeners, origin_state_id=origin_state_id, end_s=end_s,
            traced=lambda record: self._tracing.add(record), report=report,  # noqa: PLW0108 - tracing does not exist yet
        )  # fmt: skip
        answered = self._others.answered

        def settings() -> Config:
            return configuration.config

        followed = self._others.followed
        self._history = HistoryWatch(settings, followed)
        self._tracing = Tracing(answered.trace, followed.record, report)
        self._sources = Sources(settings, self._jobs, followed.record, report=report)
        self._attendants = Attendants(report)
        status = NodeHealth(
            pid=os.getpid(), running=self._running, snapshots=self._snapshots,
            attendants=self._attendants.all, report=report,
        )  # fmt: skip
        self.overview = Overview(answered, status, lambda: followed.status.ending)
        self.reload = Reload(
            configuration, answered, listeners=self._listeners, wanted=self._wanted, apply=self._apply, record=followed.record, is_stopping=self._stop.is_set,
            on_change=reload_on_change, jobs=self._jobs, report=report,
        )  # fmt: skip
        read_only = ReadOnlyRunner(config.path)
        self._web = Web(settings, self.overview, followed, read_only, report=report)
        commands = Commands(
            configuration, self.overview, self.reload, sources=self._sources, followed=followed,
            recorded=self._others.recorded, tracing=self._tracing, stop=self._begin_stop, is_stopping=self._stop.is_set,
            report=report,
        )  # fmt: skip
        self._control = ControlSockets(configuration, commands.by_name(), read_only, report=report)

    async def serve(self) -> int:
        """Start the node, run until SIGTERM, and stop the node; return the exit status.

        Raises:
            EirError: if a listener cannot be opened.
        """
        loop = asyncio.get_running_loop()
        report_faults(self._log.report)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._begin_stop, signal.Signals(number).name)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._jobs.spawn(self.reload.reload_and_log("SIGHUP")))
        deliver()
        killed = False
        try:
            await self._control.open()
            await self._web.open()
            if not self._stop.is_set():
                self._others.start()
                await self._open_listeners()
                self._others.start_services()
            self._sources.start()
            self._jobs.start("lately", EVERY_S, self.overview.end_minute)
            if await self._has_lists():
                await self._listen()
            await self._stop.wait()
            self._listeners.close()
            await self._attendants.close()
        finally:
            self._begin_stop("the start failed")
            killed = not await self._others.end()
            await self._jobs.close()
            await self._others.close()
            await self._web.close()
            await self._control.close()
            self._log.report("stopped")  # after all other processes have ended
            self._log.close()
        return int(killed)

    async def _has_lists(self) -> bool:
        """Wait until the answering process has its lists; return false if the node is stopped meanwhile.

        With `boot_without_lists` other than `refuse`, missing lists do not delay the start.
        """
        answered = self._others.answered
        is_reported = False
        while not self._stop.is_set():
            report = await answered.report()
            if report is not None:
                if report.missing and not is_reported:
                    self._report_missing(report.missing)
                    is_reported = True
                if not report.missing or self._configuration.config.boot_without_lists != "refuse":
                    return True
            answered.changed.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(answered.changed.wait(), STARTED_S)
        return False

    def _report_missing(self, lists: Sequence[str]) -> None:
        """Log the lists that have never been loaded. If the start of the node waits for these lists, inform the service manager."""
        boot = self._configuration.config.boot_without_lists
        self._log.report("lists_missing", level="warning", lists=",".join(lists), boot_without_lists=boot)
        if boot == "refuse":  # the service manager may delay the loader until the node has started
            notify_service(READY, f"STATUS=opens no listener before these lists are loaded: {', '.join(lists)}")

    async def _listen(self) -> None:
        """Open the listeners, connect to peers, and start the repeated jobs that the node runs while it serves peers.

        Raises:
            EirError: if a listener cannot be opened.
        """
        self._is_listening = True
        await self._open_listeners()
        self._others.answered.open()
        await self._poll()
        notify_service(READY, f"STATUS=answers on {', '.join(self._addresses)}")
        self._jobs.start("status", POLL_S, self._poll, delay_s=POLL_S)
        self._jobs.start("keys", POLL_S, self.reload.poll_keys)
        self._jobs.start("configuration", POLL_S, self.reload.poll_file)
        self._jobs.start("trace", POLL_S, self._tracing.end_if_due)
        await self._attendants.apply(self._configuration.loaded, self._addresses)

    async def _open_listeners(self) -> None:
        """Open the listeners of the configuration in force, as `_wanted`.

        Raises:
            EirError: if a listener cannot be opened.
        """
        async with self.reload.lock:
            config = self._configuration.config
            listeners = self._wanted(config)
            opened = await self._listeners.open(listeners, config.sctp)
            self._listeners.apply(opened, listeners, config.sctp)

    def _wanted(self, config: Config) -> Sequence[Listener]:
        """Return the listeners that are to be open at present: those of checks only once the answering process has its lists."""
        return (*config.service_listeners, *(config.listeners if self._is_listening else ()))

    def _begin_stop(self, cause: str) -> None:
        """Begin to stop the node. `cause`: reason in the log."""
        if self._stop.is_set():
            return
        self._log.report("stopping", reason=cause)
        notify_service(ENDING)
        self._stop.set()
        self._on_stop()
        self._others.stop()

    async def _apply(self, loaded: Loaded, opened: Sequence[OpenListener]) -> None:
        """Apply new settings to all processes and parts. `opened`: listeners that are new."""
        config = loaded.config
        self._log.configure(level=config.log_level, full_identifiers=config.full_identifiers)
        await self._others.apply(loaded, opened)
        self._sources.apply()
        if self._is_listening and not self._stop.is_set():
            await self._attendants.apply(loaded, self._addresses)

    async def _poll(self) -> None:
        """Request the answering process's report; pass it to the status, the acknowledgements and the interfaces' tasks in the manager.

        The status logs the readiness and the expired lists. The interfaces' tasks (attendants) report readiness and load to
        other servers.
        """
        status = self.overview.status
        report = await self._others.answered.report()
        status.log_readiness(report)
        if report is not None:
            self._sources.acknowledge(report.lists)
        self._attendants.note(status.readiness(report), report)
        status.remind(report)

    @property
    def _addresses(self) -> list[str]:
        """URLs of the open listeners of the answering process; empty while the node waits for its lists."""
        return self._listeners.addresses(ANSWERING)

    def _running(self) -> Running:
        return Running(self._addresses, self._web.address, self._others.services.addresses(), self._stop.is_set())

    def _snapshots(self) -> list[metrics.Snapshot]:
        parts = (self._configuration, self._history, self._sources, self._web, self._attendants)
        snapshots = [part.snapshot() for part in parts]
        return snapshots + self._others.snapshots()

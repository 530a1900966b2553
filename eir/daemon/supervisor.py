"""N workers that are one node: who starts them, and who starts them again.

Three kinds of process. The supervisor, here, reads the lists once and forks the others, so that they share its memory; it
has no event loop and no thread, which is what makes forking at any time safe. The dispatcher (dispatcher.py) accepts
connections and hands each to the worker with the fewest; it keeps the one table that says which connections of a peer are
wanted, and speaks for the workers. The workers (member.py) answer. If the dispatcher ends, the node ends; if the supervisor
is killed, the dispatcher ends the node.
"""

import asyncio
import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import uvloop

from eir.config import Config, load_config, take_over
from eir.daemon.channel import Ends, pair
from eir.daemon.dispatcher import Dispatcher
from eir.daemon.member import work
from eir.daemon.server import (
    DRAIN_S,
    allow_open_files,
    clock_of,
    kinds_of,
    next_origin_state_id,
    prepare_state_folder,
    report_warnings,
    tell_in_force,
)
from eir.daemon.signals import HELD, STOPPING, is_told_to_stop
from eir.diameter.rate import Grants, shared_memory
from eir.errors import ConfigError, EirError, StoreError
from eir.follow.follower import Follower
from eir.lists.index import Index
from eir.operate.log import Log
from eir.stores.open import open_copy, open_store

RESTART_S, RESTART_MAX_S = 0.1, 30.0
"""Pause before a worker that ended unasked is started again; it doubles up to the second."""
STEADY_S = 60.0
"""A worker that ran this long starts again with the first pause."""
END_S = DRAIN_S + 4.0
"""How long the processes have to end after SIGTERM, before they are killed."""
IDLE_S = 3600.0
SIFT_S = 2.0
"""How long the start waits for what answers many checks at once (eir.lists.sift) to be prepared: workers share what is, and
prepare the rest, of lists beyond some fifty million entries, each for itself."""


def run(config: Config) -> int:
    """Serve with `config.workers` workers until SIGTERM or SIGINT; returns the exit status.

    Raises EirError if the node cannot start.
    """
    prepare_state_folder(config.state)
    return Supervisor(config).run()


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
        self._granted = shared_memory(config.workers)
        """Over it the workers share the limits on requests a second."""
        self._log = Log(time.monotonic, level=config.log_level, in_background=False)
        report_warnings(config, self._log)
        allow_open_files(config, self._log)
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
        if is_told_to_stop():
            self._log.report("stopped")
            return 0
        signals = HELD | {signal.SIGCHLD}
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        dispatcher = self._fork(None, lambda: Dispatcher(self._config, self._dispatchers).serve())
        self._dispatchers.close()
        for worker in range(self._config.workers):
            self._start(worker)
        while True:
            wait_s = max(0.0, min((due for due, _, _ in self._due), default=time.monotonic() + IDLE_S) - time.monotonic())
            arrived = signal.sigtimedwait(signals, wait_s)
            if arrived is not None and arrived.si_signo in STOPPING:
                return self._stop()
            if arrived is not None and arrived.si_signo == signal.SIGHUP:
                _kill(dispatcher, signal.SIGHUP)
            for pid, status in self._reap():
                if pid == dispatcher:
                    self._log.report("dispatcher_ended", level="error", status=status)
                    self._stop()
                    return 1
            self._start_due()

    async def _fill(self) -> None:
        store, copy = open_store(self._config.store, self._config.state), open_copy(self._config.store, self._config.state)
        try:
            await Follower(
                store, self._index, report=self._log.report, on_switch=lambda name, state: tell_in_force(self._log, name, state),
                copy=copy, clock=clock_of(self._config.state),
            ).start()  # fmt: skip
        finally:
            for each in (store, copy):
                if each is not None:
                    await each.close()
        deadline = time.perf_counter() + SIFT_S
        for entries in self._index.lists.values():
            entries.sift(deadline)

    def _start(self, worker: int, pause_s: float = RESTART_S) -> None:
        config = self._config_now()
        here, there = pair()
        grants = Grants(self._granted, worker)
        main = partial(work, config, self._origin_state_id, self._index, grants, there, number=worker)
        pid = self._fork(worker, main, pause_s, theirs=here)
        hello = f"{worker} {pid} {self._restarts}".encode()
        with suppress(OSError):  # the dispatcher has ended: the loop of `run` will know in a moment
            socket.send_fds(self._ours, [hello], [here.stream.fileno(), here.packets.fileno()])
        here.close()
        there.close()

    def _config_now(self) -> Config:
        """The configuration as the other workers have it by now: the file's, but for what takes a restart of the node."""
        try:
            new = load_config(self._config.path)
        except (ConfigError, OSError):  # a bad file is no reason not to start; the dispatcher names what is wrong
            return self._config
        self._config = take_over(self._config, new)
        return self._config

    def _fork(
        self,
        worker: int | None,
        main: Callable[[], Coroutine[Any, Any, int]],
        pause_s: float = RESTART_S,
        *,
        theirs: Ends | None = None,
    ) -> int:
        """Start a process that runs `main`; returns its id. `theirs`: what it is not to hold, or it would never see it closed."""
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid:
            self._children[pid] = _Child(worker, time.monotonic(), pause_s)
            return pid
        status = 1
        try:
            self._ours.close()
            if theirs is not None:
                theirs.close()
            if worker is not None:
                # A terminal that is closed sends SIGHUP to all; it is the supervisor's to make a reload of it.
                signal.signal(signal.SIGHUP, signal.SIG_IGN)
            with suppress(OSError):  # what `ps` and `top` show
                Path("/proc/self/comm").write_text("eir-dispatcher" if worker is None else f"eir-worker-{worker}")
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
            self._log.report("killed", level="error", pid=pid, reason="drain", detail=f"it did not end within {END_S:g} s")
            _kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        return 1 if late else 0


def _kill(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)

"""The first process of a node: forks the others, starts workers again, ends all of them in order.

A node has one shape, however many workers it has. The supervisor, here, reads the lists once and forks the others, so that
they share its memory; it has no event loop and no thread, which is what makes forking at any time safe. The front (front.py)
accepts connections and hands each to a worker, and is where the node is seen and steered. The workers (worker.py) answer. If
the front ends, the node ends; if the supervisor is killed, the front ends the node.
"""

import asyncio
import gc
import os
import signal
import socket
import time
from contextlib import suppress
from functools import partial

import uvloop

from eir.config import Config
from eir.daemon import state_folder
from eir.daemon.children import SETUP_STATUS, Children, kill
from eir.daemon.front import Front
from eir.daemon.rpc import Ends, pair
from eir.daemon.setup import allow_open_files, kinds_of, report_warnings, tell_in_force
from eir.daemon.signals import BLOCKED, STOPPING, is_told_to_stop
from eir.daemon.worker import DRAIN_S, Inherited, work
from eir.diameter.rate import Grants, shared_memory
from eir.errors import SetupFault, StoreError
from eir.follow.follower import Follower
from eir.lists.index import Index
from eir.operate.log import Log
from eir.stores.open import open_copy, open_store

END_S = DRAIN_S + 4.0
"""How long the processes have to end after SIGTERM, before they are killed."""
SIFT_S = 2.0
"""How long the start waits for what answers many checks at once (eir.lists.sift) to be prepared: workers share what is, and
prepare the rest, of lists beyond some fifty million entries, each for itself."""
FRONT_NICE = 5
"""A scrape, a status and a delivery wait for the checks where they share a processor, and not the other way round."""


def run(config: Config) -> int:
    """Run a node until SIGTERM or SIGINT; returns its exit status.

    Raises EirError if it cannot start, SetupFault for what does not go away by itself.
    """
    state_folder.prepare(config.state)
    held = state_folder.hold(config.state)
    try:
        return Supervisor(config).run()
    finally:
        os.close(held)


class Supervisor:
    """Forks, restarts and stops the processes of a node."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._origin_state_id = state_folder.next_origin_state_id(config.state)
        self._index = Index(kinds_of(config))
        self._granted = shared_memory(config.workers)
        """Over it the workers share the limits on requests a second."""
        self._log = Log(time.monotonic, level=config.log_level, in_background=False)
        report_warnings(config, self._log.report)
        allow_open_files(config, self._log.report)
        self._children = Children(report=self._log.report)
        self._ours, self._fronts = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        """Over it the front gets its ends of the workers' links."""

    def run(self) -> int:
        """See run."""
        try:
            asyncio.run(self._fill())
        except StoreError as e:
            if e.cause == "url":
                raise SetupFault(str(e)) from None
            self._log.report("store_away", level="error", reason=e.cause, detail=str(e))
        gc.collect()
        gc.freeze()  # shared with the children: a collection there must not write into it
        if is_told_to_stop():
            self._log.report("stopped")
            return 0
        signals = BLOCKED | {signal.SIGCHLD}
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        front = self._children.fork("front", partial(self._front, os.getpid()))
        self._fronts.close()
        for number in range(self._config.workers):
            self._start(number)
        while True:
            arrived = signal.sigtimedwait(signals, self._children.wait_s)
            if arrived is not None and arrived.si_signo in STOPPING:
                return 0 if self._children.stop(END_S) else 1
            if arrived is not None and arrived.si_signo == signal.SIGHUP:
                kill(front, signal.SIGHUP)
            for ended in self._children.reap():
                if ended.pid == front:
                    self._log.report("front_ended", level="error", status=ended.status)
                    self._children.stop(END_S)
                    return SETUP_STATUS if ended.status == SETUP_STATUS else 1
            self._children.start_due()

    async def _fill(self) -> None:
        """Read the lists, for all workers."""
        config = self._config
        store, copy = open_store(config.store, config.state), open_copy(config.store, config.state)
        try:
            await Follower(
                store, self._index, report=self._log.report, on_switch=partial(tell_in_force, self._log.report), copy=copy,
                clock=state_folder.read_clock(config.state),
            ).start()  # fmt: skip
        finally:
            for each in (store, copy):
                if each is not None:
                    await each.close()
        deadline = time.perf_counter() + SIFT_S
        for entries in self._index.lists.values():
            entries.sift(deadline)

    def _front(self, our_pid: int) -> int:
        self._ours.close()
        with suppress(OSError):  # a filter of system calls may be stricter than ours
            os.nice(FRONT_NICE)
        return uvloop.run(Front(self._config, self._fronts, our_pid).serve())

    def _start(self, number: int) -> None:
        """Start a worker, and give the front its ends of the worker's link."""
        here, there = pair()
        pid = self._children.fork(f"worker-{number}", partial(self._worker, number, here, there), restart=partial(self._start, number))
        hello = f"{number} {pid} {self._children.restarts}".encode()
        with suppress(OSError):  # the front has ended: the loop of `run` will know in a moment
            socket.send_fds(self._ours, [hello], [here.stream.fileno(), here.packets.fileno()])
        here.close()
        there.close()

    def _worker(self, number: int, fronts: Ends, ends: Ends) -> int:
        # What is the others' is not to be held here, or they would never see it closed.
        self._ours.close()
        fronts.close()
        # A terminal that is closed sends SIGHUP to all; it is the supervisor's to make a reload of it.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        return uvloop.run(work(Inherited(number, self._origin_state_id, self._index, Grants(self._granted, number), ends)))

"""The first process of a node: forks the others, starts workers again, ends all of them in order.

A node has one shape, however many workers it has. The supervisor, here, forks the others, which share its memory; it has no
event loop and no thread, which is what makes forking at any time safe. The front (front.py) accepts connections and hands each to
a worker, and is where the node is seen and steered. The workers (worker.py) answer, from lists that the follower (following.py)
makes. One more process (recorder.py) writes what they hand it, where checks are to be on record. If the front ends, the node ends;
if the supervisor is killed, the front ends the node.
"""

import gc
import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import uvloop

from eir.config import Config
from eir.daemon import state_folder
from eir.daemon.children import SETUP_STATUS, Children, kill
from eir.daemon.following import FOLLOWER, follow
from eir.daemon.front import Front
from eir.daemon.priority import give_way
from eir.daemon.recorder import Record, keep_record
from eir.daemon.rpc import Ends, pair
from eir.daemon.setup import allow_open_files, report_warnings
from eir.daemon.signals import BLOCKED, STOPPING, is_told_to_stop
from eir.daemon.worker import DRAIN_S, Inherited, work
from eir.diameter.rate import Grants, shared_memory
from eir.errors import SetupFault, StoreError
from eir.operate.log import Log
from eir.operate.owner import as_owner_of
from eir.stores.open import open_copy, open_store

END_S = DRAIN_S + 4.0
"""How long the processes have to end after SIGTERM, before they are killed."""
BESIDE_NICE = 5
"""Of front and follower: a scrape, a delivery and a list that is taken over wait for the checks where they share a processor, and not
the other way round."""


def run(config: Config) -> int:
    """Run a node until SIGTERM or SIGINT; returns its exit status.

    Raises EirError if it cannot start, SetupFault for what does not go away by itself.
    """
    with as_owner_of(config.state):
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
        self._granted = shared_memory(config.workers)
        """Over it the workers share the limits on requests a second."""
        self._log = Log(time.monotonic, level=config.log_level, in_background=False)
        report_warnings(config, self._log.report)
        allow_open_files(config, self._log.report)
        self._children = Children(report=self._log.report)
        self._ours, self._fronts = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        """Over it the front gets its ends of the workers' links."""
        self._record = None if config.sightings is None else Record.made()

    def run(self) -> int:
        """See run."""
        self._prepare()
        gc.collect()
        gc.freeze()  # shared with the children: a collection there must not write into it
        status = 0 if is_told_to_stop() else self._see_to_them()
        self._log.report("stopped")  # by the last process that there is
        return status

    def _see_to_them(self) -> int:
        """Fork all processes, and see to them until the node ends; returns its exit status."""
        signals = BLOCKED | {signal.SIGCHLD}
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        front = self._children.fork("front", partial(self._front, os.getpid()))
        self._fronts.close()
        self._start_recorder()
        self._start_follower()
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

    def _prepare(self) -> None:
        """Have at hand what all processes share. Raises SetupFault for a store that can be none."""
        config = self._config
        if config.n5g.listen:
            # What checks access tokens takes half a second to load, which no worker is to spend when a reload brings n5g.tokens.
            import eir.n5g.tokens  # noqa: F401, PLC0415 - so that it is there
        try:
            open_store(config.store, config.state)
            open_copy(config.store, config.state)
        except StoreError as e:
            raise SetupFault(str(e)) from None

    def _front(self, our_pid: int) -> int:
        self._ours.close()
        give_way(BESIDE_NICE)
        return uvloop.run(Front(self._config, self._fronts, our_pid, self._record).serve())

    def _start_recorder(self) -> None:
        """Start what writes the checks down, if anything does."""
        if self._record is not None:
            main = partial(self._recorder, self._record, os.getpid())
            self._children.fork("sightings", main, restart=self._start_recorder, serves=False)

    def _recorder(self, record: Record, our_pid: int) -> int:
        self._ours.close()
        return uvloop.run(keep_record(self._config, record, our_pid))

    def _start_follower(self) -> None:
        """Start what follows the store; workers answer while it is away."""
        self._fork_linked("follower", FOLLOWER, self._follower, self._start_follower, serves=False)

    def _follower(self, ends: Ends) -> int:
        give_way(BESIDE_NICE)
        return uvloop.run(follow(self._config, ends))

    def _start(self, number: int) -> None:
        """Start a worker."""
        self._fork_linked(f"worker-{number}", number, partial(self._worker, number), partial(self._start, number))

    def _fork_linked(self, name: str, number: int, main: Callable[[Ends], int], restart: Callable[[], None], *, serves: bool = True) -> None:
        """Fork a process, and give the front its ends of the link to it."""
        here, there = pair()

        def run() -> int:
            # What is the others' is not to be held here, or they would never see it closed.
            self._ours.close()
            here.close()
            # A terminal that is closed sends SIGHUP to all; it is the supervisor's to make a reload of it.
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            return main(there)

        pid = self._children.fork(name, run, restart=restart, serves=serves)
        hello = f"{number} {pid} {self._children.restarts}".encode()
        with suppress(OSError):  # the front has ended: the loop of `run` will know in a moment
            socket.send_fds(self._ours, [hello], [here.stream.fileno(), here.packets.fileno()])
        here.close()
        there.close()

    def _worker(self, number: int, ends: Ends) -> int:
        return uvloop.run(work(Inherited(number, self._origin_state_id, Grants(self._granted, number), ends, self._record)))

"""The starter, which starts every process of a node but the first, and does nothing else.

The starter is forked while the first process has neither an event loop nor a thread, and has neither itself, so it can
fork safely at any time. It has read all modules, which its children share with it. A process that it starts becomes the
child of the process that asked, which talks to it over a channel. If the starter is killed, a fresh one takes its place
the next time that something is to be started. One that does not answer is killed.
"""

import asyncio
import ctypes
import gc
import importlib
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from eir.errors import ConfigError, EirError, Report, SetupFault, silent
from eir.node.observe.log import with_priority
from eir.node.processes import block, deliver
from eir.node.processes.channel import (
    Channel,
    ChannelError,
    HasDescriptor,
    Message,
    Receiver,
    Unanswered,
    pair,
    parts_of,
)
from eir.node.processes.state_folder import as_owner_of

NAME = "starter"
SETUP_STATUS = 2
"""Exit status of a process that met a fault which does not go away by itself."""
START_S = 60.0
"""Longest time that a start may take on a busy host, including the modules of a fresh starter."""
END_S = 12.0
"""Time that a process has to end once its channel has: a worker's peers are given 8 s to close (eir.node.processes.worker)."""
PR_SET_CHILD_SUBREAPER = 36
"""prctl(2): be the parent of those descendants whose parent has ended."""

_BEGIN = "import json, sys; sys.path[:] = json.loads(sys.argv[2]); from eir.node.processes.starter import begin; begin(int(sys.argv[1]), *sys.argv[3:])"
"""Program of a fresh starter: it runs with the modules of this process, wherever they were found."""


class _StarterGone(ChannelError):
    """The starter ended before it answered."""


class Process:
    """A process that was started, and the channel to it."""

    def __init__(self, name: str, pid: int, channel: Channel) -> None:
        self.name, self.pid, self.channel = name, pid, channel
        self._status: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        try:
            self._descriptor = os.pidfd_open(pid)
        except OSError:  # it has ended, and its parent is another process: there was no time to become that
            self._status.set_result(None)
        else:
            asyncio.get_running_loop().add_reader(self._descriptor, self._reap)

    async def ended(self) -> int | None:
        """Wait for its end: the exit status, negative: the signal that ended it; None: nobody knows it."""
        return await asyncio.shield(self._status)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send it a signal, if it has not ended."""
        if not self._status.done():
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def _reap(self) -> None:
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)
        try:
            _, status = os.waitpid(self.pid, 0)
        except ChildProcessError:
            self._status.set_result(None)
        else:
            self._status.set_result(os.waitstatus_to_exitcode(status))


Start: TypeAlias = Callable[..., Awaitable[Process]]
"""Starts a process, as Starter.start."""


class Starter:
    """Starts processes, one at a time. To be made before there is an event loop, and used on one."""

    def __init__(self, *modules: str, keeps: Sequence[int] = (), owned: Path | None = None) -> None:
        """`modules`: what a fresh starter reads, for all that it starts. `keeps`: descriptors that all have open. `owned`: see as_owner_of."""
        self._fresh = partial(_launch, modules, keeps, owned)
        self._report: Report = silent
        self._forked: tuple[int, socket.socket] | None = None
        self._process: Process | None = None
        self._one = asyncio.Lock()
        self._attending: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, NAME)

    def fork(self) -> None:
        """Have a starter that shares the memory of this process, which may have neither an event loop nor a thread yet."""
        gc.collect()
        gc.freeze()  # shared with all children: a collection there must not write into it
        ours, theirs = pair()
        if not (pid := os.fork()):
            ours.close()
            _serve(theirs)
        theirs.close()
        self._forked = pid, ours

    def log_to(self, report: Report) -> None:
        """Log the end of a starter from now on."""
        self._report = report

    def stay(self) -> None:
        """Have a fresh starter begin with the priority that this process has now, whatever it does with its own later."""
        self._thread.submit(int).result()  # a thread keeps what it began with

    async def start(
        self,
        name: str,
        main: Callable[..., int],
        *arguments: Any,
        carrying: Sequence[HasDescriptor] = (),
        within_s: float = START_S,
    ) -> Process:
        """Start a process that is called eir-NAME in `ps` and `top`, and ends with what `main` returns.

        `main`, which can be pickled, gets its end of the channel, the arguments, and a descriptor for each of `carrying`. Raises
        ChannelError if it cannot be started, or has not been `within_s`.
        """
        call = pickle.dumps((main, arguments), pickle.HIGHEST_PROTOCOL)
        async with self._one:
            try:
                return await self._started(name, call, carrying, within_s)
            except _StarterGone:  # killed before it answered: what it may have started ends with its channel
                return await self._started(name, call, carrying, within_s)

    async def _started(self, name: str, call: bytes, carrying: Sequence[HasDescriptor], within_s: float) -> Process:
        """Have a starter that runs start it. Raises as `start`, _StarterGone if that starter is gone before it answers."""
        try:
            starter = self._process
            if starter is None or starter.channel.gone.is_set():
                starter = await self._begun()
            ours, theirs = pair()
        except OSError as e:  # no descriptor, no memory, or no process more
            raise ChannelError(f"no process can be started: {e}") from None
        with theirs:
            _adopt(True)
            try:
                pid = await starter.channel.ask("start", name, call, carrying=(theirs, *carrying), patience_s=within_s)
            except BaseException as e:
                ours.close()
                if isinstance(e, Unanswered):
                    starter.kill()
                elif isinstance(e, ChannelError) and starter.channel.gone.is_set():
                    raise _StarterGone(str(e)) from None
                raise
            finally:
                _adopt(False)
        return Process(name, pid, Channel(ours))

    async def close(self) -> None:
        """Have the starter end; what it has started goes on."""
        if self._process is not None and self._attending is not None:
            attending, self._attending = self._attending, None
            self._process.kill()
            await attending
        elif self._forked is not None:
            self._forked[1].close()
        self._thread.shutdown()

    async def _begun(self) -> Process:
        """Return the starter, and attend to it from now on; start a fresh one if necessary."""
        if self._forked is not None:
            (pid, ours), self._forked = self._forked, None
        else:
            launch = asyncio.get_running_loop().run_in_executor
            pid, ours = await launch(self._thread, self._fresh)
        self._process = Process(NAME, pid, Channel(ours))
        self._attending = asyncio.get_running_loop().create_task(self._attend(self._process))
        return self._process

    async def _attend(self, process: Process) -> None:
        await process.channel.serve({}, failed=lambda *_: None)
        if self._process is process:
            self._process = None
        process.channel.close()
        status = await process.ended()
        if self._attending is not None:
            self._report("process_ended", level="error", process=NAME, status=status)


def _adopt(ours: bool) -> None:
    """Have what the starter starts become children of this process, so that it sees them end.

    Off at other times: it is to adopt no strangers.
    """
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, int(ours))


def _launch(modules: Sequence[str], keeps: Sequence[int], owned: Path | None) -> tuple[int, socket.socket]:
    ours, theirs = pair()
    with theirs:
        words = [sys.executable, "-c", _BEGIN, str(theirs.fileno()), json.dumps(sys.path), str(owned or ""), *modules]
        begun = subprocess.Popen(words, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno(), *keeps])
    begun.returncode = 0  # its end is seen elsewhere
    return begun.pid, ours


# In the starter


def begin(number: int, owned: str, *modules: str) -> NoReturn:
    """Be a fresh starter, with one end of the channel as descriptor `number`."""
    block()
    for module in modules:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()
    with as_owner_of(Path(owned)) if owned else nullcontext():
        _serve(socket.socket(fileno=number))


def _serve(end: socket.socket) -> NoReturn:
    """Be the starter, until the channel ends."""
    call_itself(NAME)
    os.set_inheritable(end.fileno(), False)
    receiver = Receiver(end)
    with suppress(ConnectionError):
        while (heard := receiver.next()) is not None:
            (_, (name, call), number, _), descriptors = heard
            answer: tuple[int | None, str | None]
            try:
                if None in descriptors:
                    raise OSError("the starter has no descriptor left")  # noqa: TRY301 - as other faults of the system
                answer = _fork(end, name, call, [number for number in descriptors if number is not None]), None
            except OSError as e:
                answer = None, str(e)
            for descriptor in descriptors:
                if descriptor is not None:
                    os.close(descriptor)
            for part in parts_of(Message(None, answer, number)):
                end.send(part)
    os._exit(0)


def _fork(end: socket.socket, name: str, call: bytes, descriptors: Sequence[int]) -> int:
    """Fork a process and let go of it: by a process between that ends at once. Returns its id. Raises OSError."""
    read, write = os.pipe()
    try:
        if not (between := os.fork()):
            try:
                pid = os.fork()
            except OSError:
                os._exit(1)
            if not pid:
                for descriptor in (read, write):
                    os.close(descriptor)
                end.close()
                _run(name, call, descriptors)
            os.write(write, pid.to_bytes(4))
            os._exit(0)
        _, status = os.waitpid(between, 0)
        if status:
            raise OSError("no process can be forked")
        return int.from_bytes(os.read(read, 4))
    finally:
        for descriptor in (read, write):
            os.close(descriptor)


# In the process that was started


def _run(name: str, call: bytes, descriptors: Sequence[int]) -> NoReturn:
    """Be that process: run what it is for and end, whatever happens. A terminal's signals are the first process's to act on."""
    status = 1
    try:
        call_itself(name)
        for number in (signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        deliver()
        main, arguments = pickle.loads(call)  # noqa: S301 - from a process of ours
        status = main(socket.socket(fileno=descriptors[0]), *arguments, *descriptors[1:])
    except (SetupFault, ConfigError) as e:
        status = SETUP_STATUS
        print(with_priority("error", f"eir: {e}"), file=sys.stderr)
    except EirError as e:
        print(with_priority("error", f"eir: {e}"), file=sys.stderr)
    except BaseException as e:  # noqa: BLE001 - the outermost frame of the process: say what it was and end
        print(with_priority("error", f"eir: the process {name} ends: {type(e).__name__}: {e}"), file=sys.stderr)
    finally:
        sys.stderr.flush()
        os._exit(status)


def call_itself(name: str) -> None:
    """Have this process called eir-NAME in `ps` and `top`."""
    with suppress(OSError):
        Path("/proc/self/comm").write_text(f"eir-{name}")

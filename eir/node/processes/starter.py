"""Starter: the process that starts all processes of a node except the manager.

The manager forks the starter before it has an event loop or a thread. The starter has neither, so it can fork safely at any
time. It has loaded all modules, whose memory its children share. A started process becomes the child of the process that requested
it, and has a channel to that process. A starter that does not answer is killed, and the next start launches a new starter.
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
    ChannelMessage,
    HasDescriptor,
    Receiver,
    Unanswered,
    pair,
    parts_of,
)
from eir.node.processes.state_folder import as_owner_of

NAME = "starter"
SETUP_STATUS = 2
"""Exit status of a process that has ended for a SetupFault, which a restart cannot remove."""
START_S = 60.0
"""Maximum seconds of a start, on a busy host and by a new starter that loads its modules."""
END_S = 12.0
"""Seconds after the close of its channel at which a process is killed; the answering process waits 8 s for its peers (eir.node.processes.answering)."""
PR_SET_CHILD_SUBREAPER = 36
"""prctl(2): become the parent of descendants whose parent has ended."""

_BEGIN = "import json, sys; sys.path[:] = json.loads(sys.argv[2]); from eir.node.processes.starter import begin; begin(int(sys.argv[1]), *sys.argv[3:])"
"""Program of a new starter, which uses the module path of this process."""


class _StarterGone(ChannelError):
    """Error: the starter ended before it answered."""


class Process:
    """Started process, with the channel to it."""

    def __init__(self, name: str, pid: int, channel: Channel) -> None:
        self.name = name
        self.pid = pid
        self.channel = channel
        self._status: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        try:
            self._descriptor = os.pidfd_open(pid)
        except OSError:  # the process has ended already, and another process has become its parent
            self._status.set_result(None)
        else:
            asyncio.get_running_loop().add_reader(self._descriptor, self._reap)

    async def ended(self) -> int | None:
        """Wait until the process has ended; return its exit status.

        A negative status is the number of the signal that ended the process. None: the status is unknown.
        """
        return await asyncio.shield(self._status)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to the process, unless it has ended. `number`: signal, SIGKILL by default."""
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
"""Function that starts a process, such as Starter.start."""


class Starter:
    """Client of the starter process, which starts one process at a time.

    It must be created before the event loop, and used on one loop only.
    """

    def __init__(self, *modules: str, keeps: Sequence[int] = (), owned: Path | None = None) -> None:
        """Create a client of the starter. The starter process is started later.

        `modules`: modules that a new starter loads for its children. `keeps`: descriptors that stay open in all these processes.
        `owned`: folder for as_owner_of.
        """
        self._fresh = partial(_launch, modules, keeps, owned)
        self._report: Report = silent
        self._forked: tuple[int, socket.socket] | None = None
        self._process: Process | None = None
        self._one = asyncio.Lock()
        self._attending: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, NAME)

    def fork(self) -> None:
        """Fork this process to start the first starter. The starter shares the memory of this process.

        This process must have neither an event loop nor a thread.
        """
        gc.collect()
        gc.freeze()  # garbage collection of the children must not write to the shared memory
        ours, theirs = pair()
        pid = os.fork()
        if not pid:
            ours.close()
            _serve(theirs)
        theirs.close()
        self._forked = pid, ours

    def log_to(self, report: Report) -> None:
        """Set the function that logs the unexpected end of a starter."""
        self._report = report

    def stay(self) -> None:
        """Launch all future starters at this process's present priority, even if its priority changes later."""
        self._thread.submit(int).result()  # starts the thread that launches starters, which keeps its priority

    async def start(
        self,
        name: str,
        main: Callable[..., int],
        *arguments: Any,
        carrying: Sequence[HasDescriptor] = (),
        within_s: float = START_S,
    ) -> Process:
        """Start a process that runs `main`; its exit status is the result of `main`.

        The process has the name eir-NAME in `ps` and `top`. `main` must be picklable. Its arguments are its end of the channel,
        `arguments`, and the descriptor of each object in `carrying`.

        Raises:
            ChannelError: if the process cannot be started within `within_s`.
        """
        call = pickle.dumps((main, arguments), pickle.HIGHEST_PROTOCOL)
        async with self._one:
            try:
                return await self._started(name, call, carrying, within_s)
            except _StarterGone:  # a process that it has started ends with its channel
                return await self._started(name, call, carrying, within_s)

    async def _started(self, name: str, call: bytes, carrying: Sequence[HasDescriptor], within_s: float) -> Process:
        """Request a new process from the starter, and return it. A starter that has ended is replaced first.

        Raises:
            ChannelError: as `start`.
            _StarterGone: if the starter ends before it answers.
        """
        try:
            starter = self._process
            if starter is None or starter.channel.gone.is_set():
                starter = await self._open_starter()
            ours, theirs = pair()
        except OSError as e:  # no descriptor, memory or process is available
            raise ChannelError(f"no process can be started: {e}") from None
        with theirs:
            _set_subreaper(True)
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
                _set_subreaper(False)
        return Process(name, pid, Channel(ours))

    async def close(self) -> None:
        """End the starter process. Processes that it has started continue."""
        if self._process is not None and self._attending is not None:
            attending = self._attending
            self._attending = None
            self._process.kill()
            await attending
        elif self._forked is not None:
            self._forked[1].close()
        self._thread.shutdown()

    async def _open_starter(self) -> Process:
        """Return the starter process that was forked before, or else launch a new one and return it."""
        if self._forked is not None:
            pid, ours = self._forked
            self._forked = None
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


def _set_subreaper(on: bool) -> None:
    """Make this process a child subreaper (it then adopts orphaned descendants), or an ordinary process again.

    A subreaper becomes the parent of the process that its starter forks, so that it can wait for the end of that process. It is a
    subreaper only during a start, so that it becomes the parent of no other process.
    """
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, int(on))


def _launch(modules: Sequence[str], keeps: Sequence[int], owned: Path | None) -> tuple[int, socket.socket]:
    ours, theirs = pair()
    with theirs:
        words = [sys.executable, "-c", _BEGIN, str(theirs.fileno()), json.dumps(sys.path), str(owned or ""), *modules]
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno(), *keeps])
    process.returncode = 0  # Process waits for its end
    return process.pid, ours


# In the starter


def begin(number: int, owned: str, *modules: str) -> NoReturn:
    """Run a newly launched starter process. `number`: descriptor of its channel."""
    block()
    for module in modules:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()
    with as_owner_of(Path(owned)) if owned else nullcontext():
        _serve(socket.socket(fileno=number))


def _serve(end: socket.socket) -> NoReturn:
    """Run the starter until its channel closes: fork a process for each request."""
    set_process_name(NAME)
    os.set_inheritable(end.fileno(), False)
    receiver = Receiver(end)
    with suppress(ConnectionError):
        while (heard := receiver.next()) is not None:
            (_, (name, call), number, _), descriptors = heard
            answer: tuple[int | None, str | None]
            try:
                if None in descriptors:
                    raise OSError("the starter has no file descriptor left")  # noqa: TRY301 - handled like other faults of the system
                present = [descriptor for descriptor in descriptors if descriptor is not None]
                answer = _fork(end, name, call, present), None
            except OSError as e:
                answer = None, str(e)
            for descriptor in descriptors:
                if descriptor is not None:
                    os.close(descriptor)
            for part in parts_of(ChannelMessage(None, answer, number)):
                end.send(part)
    os._exit(0)


def _fork(end: socket.socket, name: str, call: bytes, descriptors: Sequence[int]) -> int:
    """Fork a process twice, and return the process id of the grandchild, which runs `call`.

    The child between them ends at once, so that the requesting process adopts the grandchild.

    Raises:
        OSError: if the fork fails.
    """
    read, write = os.pipe()
    try:
        between = os.fork()
        if not between:
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


# In the started process


def _run(name: str, call: bytes, descriptors: Sequence[int]) -> NoReturn:
    """Run the main function of the new process, and exit with the status that it returns.

    Signals of a terminal are ignored, because the manager handles them.
    """
    status = 1
    try:
        set_process_name(name)
        for number in (signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        deliver()
        main, arguments = pickle.loads(call)  # noqa: S301 - from a process of this node
        channel_end = socket.socket(fileno=descriptors[0])
        status = main(channel_end, *arguments, *descriptors[1:])
    except (SetupFault, ConfigError) as e:
        status = SETUP_STATUS
        print(with_priority("error", f"eir: {e}"), file=sys.stderr)
    except EirError as e:
        print(with_priority("error", f"eir: {e}"), file=sys.stderr)
    except BaseException as e:  # noqa: BLE001 - outermost frame of the process: log the exception and exit
        print(with_priority("error", f"eir: the process {name} ends: {type(e).__name__}: {e}"), file=sys.stderr)
    finally:
        sys.stderr.flush()
        os._exit(status)


def set_process_name(name: str) -> None:
    """Set this process's name in `ps` and `top` to eir-NAME."""
    with suppress(OSError):
        Path("/proc/self/comm").write_text(f"eir-{name}")

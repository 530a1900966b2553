"""Loads in processes of their own, so that what a release makes go wrong ends such a process and nothing else.

`Loads` starts a process that forks another for each load. It is a fresh one, with neither a thread nor a store, because SQLite's
locks and the threads of polars do not live through a fork, and it reads the modules of a load once. A load may take so much memory
and so much time, and is the first that the kernel ends when the host's memory runs out. All end with the process that began them.
"""

import asyncio
import ctypes
import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Generic, NoReturn, TypeAlias, TypeVar, cast

from eir.errors import EirError, ReleaseRefused, refused_by
from eir.lists.delivered import Progress
from eir.lists.inbox import CRASH, KILLED

Job = TypeVar("Job")
Result = TypeVar("Result")
Work: TypeAlias = Callable[[Job, Progress], Awaitable[Result]]
Said: TypeAlias = tuple[type[BaseException] | None, Any, dict[str, Any]]
"""What a load says in the end: a result, or an exception as its class, its arguments and its attributes."""

LOAD_S_MAX = 900
"""How long a load may take: a hundred million rows take 10 s on a quiet machine."""
MESSAGE_BYTES_MAX = 1 << 17
OOM_SCORE = 1000
"""In /proc/PID/oom_score_adj: the kernel ends this process before any other (proc(5))."""
PR_SET_PDEATHSIG = 1
"""prctl(2): the signal that a process gets when its parent ends."""
PROGRESS, END, EXIT = "progress", "end", "exit"


_BEGIN = "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); from eir.daemon.loader import serve; serve()"
"""What the process that forks runs: with the modules of this one, wherever they were found."""


class Loads(Generic[Job, Result]):
    """Has loads made, one at a time, from the `with` on. To be used from the main thread, with whose end they end."""

    def __init__(self, work: Work[Job, Result], memory_max: int) -> None:
        """`work`: what a load is; it and its jobs can be pickled. `memory_max`: bytes that it may take beside the program itself."""
        self._work = work
        self._memory_max = memory_max
        self._forker: _Forker | None = None

    def __enter__(self) -> "Loads[Job, Result]":
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _started(self) -> "_Forker":
        """The process that forks; another one if it has ended."""
        if self._forker is None or self._forker.process.poll() is not None:
            self._end()
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                self._forker = _Forker(subprocess.Popen(
                    [sys.executable, "-c", _BEGIN], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=[theirs.fileno()]
                ), ours)  # fmt: skip
                self._forker.tell(sys.path)
                self._forker.tell((theirs.fileno(), os.getpid(), self._memory_max, self._work))
        return self._forker

    def _end(self) -> None:
        """With the load that goes on, if there is one."""
        if self._forker is not None:
            self._forker.process.kill()
            self._forker.process.communicate()
            self._forker.ours.close()

    async def make(self, job: Job, progress: Progress | None = None) -> Result:
        """What `work` gives for this job, or raises.

        Raises ReleaseRefused besides: `memory` past memory_max, `time` past LOAD_S_MAX, `fault` for an exception that is neither
        EirError nor OSError, `killed` if somebody ended the process with SIGKILL, `crash` if anything else did.
        """
        said, status = await asyncio.to_thread(self._started().made, job, progress or (lambda *_: None))
        if said is None:
            raise _end_of(status, self._memory_max)
        kind, value, attributes = said
        if kind is None:
            return value  # type: ignore[no-any-return]  # it came through a socket
        error = kind.__new__(kind, *value)
        for name, attribute in attributes.items():
            setattr(error, name, attribute)
        raise error


@dataclass(frozen=True, slots=True)
class _Forker:
    """The process that forks one for each load."""

    process: subprocess.Popen[bytes]
    """Its standard input takes jobs."""
    ours: socket.socket
    """Over it a load says what it does, and its process how it ended, a packet each."""

    def tell(self, value: object) -> None:
        """Hand something over. Nothing happens if the process has ended: then it says nothing either."""
        with suppress(BrokenPipeError):
            cast("IO[bytes]", self.process.stdin).write(pickle.dumps(value))
            cast("IO[bytes]", self.process.stdin).flush()

    def made(self, job: object, progress: Progress) -> tuple[Said | None, int]:
        """What a load said in the end (None: nothing), and its exit status; negative: the signal that ended it."""
        said: Said | None = None
        self.tell(job)
        with suppress(ConnectionError):
            while octets := self.ours.recv(MESSAGE_BYTES_MAX):
                what, value = pickle.loads(octets)  # noqa: S301 - from a process of ours
                if what == PROGRESS:
                    progress(*value)
                elif what == END:
                    said = value
                else:
                    return said, value
        return said, self.process.wait()


def _end_of(status: int, memory_max: int) -> ReleaseRefused:
    """Why a load that said nothing ended."""
    if status == -signal.SIGKILL:
        return ReleaseRefused(KILLED, "the process that loaded it was killed; by the kernel, if the host's memory ran out (journalctl -k)")
    if status == -signal.SIGALRM:
        return ReleaseRefused("time", f"its load took more than {LOAD_S_MAX} s: split the release into a full one and deltas")
    by = f"signal {-status}" if status < 0 else f"status {status}"
    detail = f"the process that loaded it ended with {by}: was limits.load_memory ({memory_max} bytes) too little?"
    return ReleaseRefused(CRASH, detail)


# In the process that forks


def serve() -> NoReturn:
    """Be that process, until there are no more jobs."""
    jobs = sys.stdin.buffer
    number, parent, memory_max, work = pickle.load(jobs)  # noqa: S301 - from a process of ours
    out, us = socket.socket(fileno=number), os.getpid()
    _belong_to(parent)
    try:
        while True:
            job = pickle.load(jobs)  # noqa: S301 - as above
            import eir.lists.reader  # noqa: F401, PLC0415 - takes a fifth of a second, and there may be nothing to load

            if not (pid := os.fork()):
                _load(work, job, out, memory_max, parent=us)
            _, status = os.waitpid(pid, 0)
            out.send(pickle.dumps((EXIT, os.waitstatus_to_exitcode(status))))
    except (EOFError, ConnectionError):
        sys.exit(0)


def _belong_to(parent: int) -> None:
    """End with the parent, and by a signal at once."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before that was set
        os._exit(0)


# In the process of a load


def _load(work: Work[Job, Result], job: Job, out: socket.socket, memory_max: int, *, parent: int) -> NoReturn:
    """Be that process: do the work, say what came of it, end."""
    status = 1
    try:
        _belong_to(parent)
        _confine(memory_max)

        def progress(*done: Any) -> None:
            out.send(pickle.dumps((PROGRESS, done)))

        out.send(pickle.dumps((END, _said(work, job, progress, memory_max))))
        status = 0
    finally:
        os._exit(status)


def _confine(memory_max: int) -> None:
    """Take no more than that much memory from here on, and no more than LOAD_S_MAX; be the first to go."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(LOAD_S_MAX)
    has = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()  # data and stack: proc(5)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = has + memory_max
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    with suppress(OSError):  # where /proc cannot be written to
        Path("/proc/self/oom_score_adj").write_text(f"{OOM_SCORE}\n")


def _said(work: Work[Job, Result], job: Job, progress: Progress, memory_max: int) -> Said:
    async def run() -> object:
        return await work(job, progress)

    error: Exception
    try:
        return None, asyncio.run(run()), {}
    except MemoryError:
        detail = f"its load takes more memory than limits.load_memory allows ({memory_max} bytes): raise that, or split the release"
        error = ReleaseRefused("memory", detail)
    except Exception as fault:  # noqa: BLE001 - the outermost frame: what goes wrong here is a refusal of what was loaded
        error = fault if isinstance(fault, (EirError, OSError)) else refused_by(fault)
    return type(error), error.args, vars(error)

"""Work in a process of its own, such as a load, so that a fault caused by a release ends only this process.

The process gets its work by standard input, and prints lines of JSON: calls of its caller's functions, then the result. It ends when its
caller closes standard input, or has ended. A load has a limit of memory and of time. If the host's memory runs out, the
kernel kills a load before any other process.
"""

import asyncio
import json
import os
import pickle
import resource
import select
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from eir.errors import EirError, detail_of
from eir.node.processes.program import spawn

Emit: TypeAlias = Callable[..., None]
"""Function that calls a function of the caller: its name, then arguments that are JSON."""
Work: TypeAlias = Callable[..., Awaitable[Any]]
"""Function that such a process runs, whose result is JSON. Its last argument is an Emit."""

LOAD_S_MAX = 900
"""Maximum duration of work with a limit of memory in seconds; a load of 100 million rows takes 10 s on an idle machine."""
OOM_SCORE = 1000
"""Value of /proc/PID/oom_score_adj for a load, so that the kernel kills it before any other process (proc(5))."""
END_S, LOAD_END_S = 5.0, 2.0
"""Seconds after which the process is killed if it does not end after its standard input was closed; the second value for work with a limit of memory."""
GROWN_BYTES_MAX = 256 << 20
"""Memory that a process may keep after a work; a process that has more ends, and the next work gets a new one."""
RESULT, ERROR = "result", "error"


class NoOutcome(EirError):
    """Error: a process ended without a result."""

    def __init__(self, status: int) -> None:
        super().__init__(f"it ended with {f'signal {-status}' if status < 0 else f'status {status}'}")
        self.status = status


class WorkProcess:
    """Process that does one work after the other. It is started for the first work, and again for the next work after it has ended.

    Args:
        name: name of the process in `ps` and `top`, after `eir-`.
        owned: folder for as_owner_of.
        memory_max: maximum bytes of a work in addition to the program; with this limit a work also ends after LOAD_S_MAX.
        nice: nice value.
    """

    def __init__(self, name: str, *, owned: Path, memory_max: int | None = None, nice: int = 0) -> None:
        arguments = [] if memory_max is None else [str(memory_max)]
        self._spawn = partial(
            spawn, name, f"{__name__}:run_works", *arguments, owned=owned, nice=nice, pipe=asyncio.subprocess.PIPE
        )
        self._end_s = END_S if memory_max is None else LOAD_END_S
        self._process: asyncio.subprocess.Process | None = None

    async def run(
        self, work: Work, *arguments: Any, handlers: Mapping[str, Callable[..., object]] | None = None
    ) -> Any:
        """Run `work` with these arguments in the process, and return its result.

        Args:
            work: function of a module; it and its arguments must be picklable.
            arguments: arguments of the work.
            handlers: functions that the work may call, by name.

        Raises:
            NoOutcome: if the process ends without a result.
            EirError: if the work raises an EirError or an OSError.
        """
        try:
            return await self._run(pickle.dumps((work, arguments)), handlers or {})
        except BaseException:
            await self.close()
            raise

    async def _run(self, job: bytes, handlers: Mapping[str, Callable[..., object]]) -> Any:
        if self._process is None:
            self._process = await self._spawn()
        process = self._process
        assert process.stdin is not None  # noqa: S101 - for mypy
        assert process.stdout is not None  # noqa: S101 - as above
        process.stdin.write(job)
        while line := await process.stdout.readline():
            called, *values = json.loads(line)
            if called == ERROR:
                raise EirError(*values)
            if called == RESULT:
                result, is_large = values
                if is_large:
                    await self.close()
                return result
            handlers[called](*values)
        raise NoOutcome(await process.wait())

    async def close(self) -> None:
        """End the process: close its standard input, and kill the process if it does not end in time."""
        if self._process is None:
            return
        process, self._process = self._process, None
        assert process.stdin is not None  # noqa: S101 - for mypy
        process.stdin.close()
        try:
            async with asyncio.timeout(self._end_s):
                await process.communicate()
        except TimeoutError:
            with suppress(ProcessLookupError):
                process.kill()
            await process.communicate()


async def run_apart(
    name: str, work: Work, *arguments: Any, owned: Path, nice: int = 0,
    handlers: Mapping[str, Callable[..., object]] | None = None,
) -> Any:  # fmt: skip
    """Run one work in a process of its own, as WorkProcess does, and return its result."""
    process = WorkProcess(name, owned=owned, nice=nice)
    try:
        return await process.run(work, *arguments, handlers=handlers)
    finally:
        await process.close()


# In such a process


def run_works(memory: str | None = None) -> int:
    """Do the works that standard input has, until it ends; return the exit status. `memory`: maximum bytes of a work; None: no limit."""
    lines = os.fdopen(os.dup(1), "w", encoding="ascii", buffering=1)
    os.dup2(2, 1)  # what a library prints is no line of this protocol

    def emit(called: str, *values: Any) -> None:
        lines.write(f"{json.dumps([called, *values])}\n")

    present = _data_bytes()
    with suppress(EOFError):
        while True:
            work, arguments = pickle.load(sys.stdin.buffer)  # noqa: S301 - from the caller
            if memory is not None:
                _confine(int(memory))
            try:
                result = asyncio.run(_run(work, (*arguments, emit), at_once=memory is not None))
                emit(RESULT, result, _data_bytes() > present + GROWN_BYTES_MAX)
            except (EirError, OSError) as error:
                emit(ERROR, str(error))
            except asyncio.CancelledError:
                return 1
            except Exception as fault:  # noqa: BLE001 - outermost frame of a work; a traceback might show an identifier
                emit(ERROR, detail_of(fault))
            signal.alarm(0)
    return 0


async def _run(work: Work, arguments: tuple[Any, ...], *, at_once: bool) -> Any:
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(work(*arguments))
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    threading.Thread(target=_end_with_caller, args=(loop, task, at_once), daemon=True).start()
    return await task


def _end_with_caller(loop: asyncio.AbstractEventLoop, task: asyncio.Future[Any], at_once: bool) -> None:
    """Cancel the work when the caller closes standard input, and end this process.

    `at_once`: end without waiting for the work, which may block the loop. A store tolerates the end of a load at any point.
    """
    watch = select.poll()
    watch.register(sys.stdin.fileno(), 0)
    watch.poll()
    if not at_once:
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(task.cancel)
        time.sleep(END_S)
    os._exit(1)


def _confine(memory_max: int) -> None:
    """Limit memory and duration of a work; if the host runs out of memory, the kernel kills this process first."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(LOAD_S_MAX)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = _data_bytes() + memory_max
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    with suppress(OSError):  # /proc may be read-only
        Path("/proc/self/oom_score_adj").write_text(f"{OOM_SCORE}\n")


def _data_bytes() -> int:
    """Return the size of this process's data and stack (proc(5))."""
    return int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()

"""Tasks that each run in a process of their own, so that a fault caused by a release ends only that process.

Such a process does one task, sends the outcome, and ends; it also ends with the process that ordered the work. A load has a
limit of memory and of time, and the kernel kills it first if the host's memory runs out.
"""

import asyncio
import os
import resource
import select
import signal
import socket
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from eir.errors import EirError, ReleaseRefused, Report, refused_by, silent
from eir.lists.rows.delivered import Progress
from eir.lists.sources.inbox import CRASH, KILLED
from eir.node.observe.log import call_failed
from eir.node.processes.channel import Channel, ChannelMessage, Handlers, parts_of
from eir.node.processes.starter import Process, Start

Work: TypeAlias = Callable[..., Awaitable[Any]]
"""Function for a process of its own: receives its arguments and, after them, the channel to the process that ordered the work."""

LOAD_S_MAX = 900
"""Maximum duration of a load in seconds; 100 million rows take 10 s on an idle machine."""
OOM_SCORE = 1000
"""Value of /proc/PID/oom_score_adj: the kernel kills this process before any other (proc(5))."""
END_S = 5.0
"""Seconds that such a process has to end after its caller has stopped waiting."""
PROGRESS, OUTCOME = "progress", "outcome"
LOAD_PROCESS = "load"
"""Name of the process of a load in `ps` and `top`."""


class Outcome(NamedTuple):
    """Outcome of a task in another process: a result or an exception.

    An exception passes between processes as class, arguments and attributes.
    """

    kind: type[BaseException] | None
    value: Any
    attributes: dict[str, Any]

    def result(self) -> Any:
        """Return the result of the task, or raise its exception."""
        if self.kind is None:
            return self.value
        error = self.kind.__new__(self.kind, *self.value)
        for name, attribute in self.attributes.items():
            setattr(error, name, attribute)
        raise error


class SaidNothing(EirError):
    """Error: a process ended without sending an outcome."""

    def __init__(self, status: int | None) -> None:
        super().__init__(
            f"it ended with {f'signal {-status}' if status is not None and status < 0 else f'status {status}'}"
        )
        self.status = status


def progress_over(channel: Channel) -> Progress:
    """Return a function that sends the progress of a task to the process that ordered the task."""
    return lambda *done: channel.notify(PROGRESS, *done)


async def outcome_of(work: Awaitable[Any]) -> Outcome:
    """Await the work, and return its result or exception as an Outcome.

    An exception other than EirError and OSError means that the loaded content is refused.
    """
    try:
        return Outcome(None, await work, {})
    except (EirError, OSError) as error:
        return Outcome(type(error), error.args, vars(error))
    except MemoryError:
        raise
    except Exception as fault:  # noqa: BLE001 - the outermost frame of such a process
        refused = refused_by(fault)
        return Outcome(type(refused), refused.args, vars(refused))


async def done_apart(
    start: Start,
    name: str,
    work: Work,
    *arguments: Any,
    memory_max: int | None = None,
    nice: int = 0,
    handlers: Handlers | None = None,
    report: Report = silent,
) -> Any:
    """Run `work` with these arguments in a new process, and return its result.

    The work and its arguments must be picklable. `memory_max`: bytes that the work may use in addition to the program; such
    work may run for LOAD_S_MAX. `nice`: nice value. `handlers`: calls that the work may make.

    Raises:
        SaidNothing: if the process ends without an outcome.
        Exception: the exception of the work.
    """
    process = await start(name, _do, work, arguments, memory_max, nice)
    outcomes: list[Outcome] = []
    try:
        await process.channel.serve({OUTCOME: outcomes.append, **(handlers or {})}, failed=call_failed(report))
        status = await process.ended()
    finally:
        process.channel.close()
        await _end(process)
    if not outcomes:
        raise SaidNothing(status)
    return outcomes[0].result()


async def load_apart(
    start: Start, work: Work, *arguments: Any, memory_max: int, nice: int = 0, progress: Progress | None = None
) -> Any:
    """Load a release in a new process, as `done_apart` does, within limits of memory and time.

    Raises:
        ReleaseRefused: `memory` above memory_max, `time` above LOAD_S_MAX, `fault` for an exception other than EirError and
            OSError, `killed` after SIGKILL, `crash` after another end.
    """
    try:
        return await done_apart(
            start,
            LOAD_PROCESS,
            work,
            *arguments,
            memory_max=memory_max,
            nice=nice,
            handlers={PROGRESS: progress or (lambda *_: None)},
        )
    except SaidNothing as nothing:
        raise _end_of(nothing, memory_max) from None


def _end_of(nothing: SaidNothing, memory_max: int) -> ReleaseRefused:
    """Return the rejection of a release whose load ended without an outcome, with the probable reason."""
    if nothing.status == -signal.SIGKILL:
        return ReleaseRefused(
            KILLED, "the process of the load was killed, probably because the host lacked memory (journalctl -k)"
        )
    if nothing.status == -signal.SIGALRM:
        return ReleaseRefused(
            "time", f"its load took more than {LOAD_S_MAX} s: split the release into a full one and deltas"
        )
    detail = f"the process of the load: {nothing}; limits.load_memory ({memory_max} bytes) is probably too low"
    return ReleaseRefused(CRASH, detail)


async def _end(process: Process) -> None:
    """Wait for the end of a process whose channel is closed; kill the process after END_S."""
    try:
        async with asyncio.timeout(END_S):
            await process.ended()
    except TimeoutError:
        process.kill()
        await process.ended()


# In such a process


def _do(end: socket.socket, work: Work, arguments: tuple[Any, ...], memory_max: int | None, nice: int) -> int:
    """Run the work in this new process, and send its outcome to the process that ordered it."""
    with suppress(OSError):  # a filter of system calls may be stricter than this program
        os.setpriority(os.PRIO_PROCESS, 0, max(nice, os.getpriority(os.PRIO_PROCESS, 0)))
    if memory_max is not None:
        # The work may block the loop, so another thread watches the channel.
        threading.Thread(target=_end_with, args=(end.fileno(),), daemon=True).start()
        _confine(memory_max)
    try:
        outcome = asyncio.run(_done(end.dup(), work, arguments))
    except MemoryError:
        detail = f"its load takes more memory than limits.load_memory allows ({memory_max} bytes): raise that, or split the release"
        refused = ReleaseRefused("memory", detail)
        outcome = Outcome(type(refused), refused.args, vars(refused))
    end.setblocking(True)
    with suppress(ConnectionError):
        for part in parts_of(ChannelMessage(OUTCOME, (outcome,), None)):
            end.send(part)
    return 0


async def _done(end: socket.socket, work: Work, arguments: tuple[Any, ...]) -> Outcome:
    channel = Channel(end)
    serving = asyncio.create_task(channel.serve({}, failed=lambda *_: None))
    working = asyncio.create_task(outcome_of(work(*arguments, channel)))
    await asyncio.wait((serving, working), return_when=asyncio.FIRST_COMPLETED)
    if not working.done():  # the caller waits no more
        working.cancel()
        await asyncio.wait((working,))
        os._exit(1)
    serving.cancel()
    return working.result()


def _end_with(descriptor: int) -> None:
    """End this process at once when the other end of the channel is closed.

    A store tolerates the end of a load at any point.
    """
    watch = select.poll()
    watch.register(descriptor, 0)
    watch.poll()
    os._exit(1)


def _confine(memory_max: int) -> None:
    """Limit the memory and the duration of this process.

    If the host's memory runs out, the kernel kills this process first.
    """
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(LOAD_S_MAX)
    has = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()  # data and stack: proc(5)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = has + memory_max
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    with suppress(OSError):  # /proc may be read-only
        Path("/proc/self/oom_score_adj").write_text(f"{OOM_SCORE}\n")

"""Tasks in a process of their own, such as loads, so that a fault caused by a release ends only this process.

The process runs one task, sends the outcome to its caller, and ends. It also ends with its caller. A load has a limit of memory
and of time. If the host's memory runs out, the kernel kills a load before any other process.
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
"""Function that such a process runs. Its last argument is the channel to the caller."""

LOAD_S_MAX = 900
"""Maximum duration of a load in seconds; 100 million rows take 10 s on an idle machine."""
OOM_SCORE = 1000
"""Value of /proc/PID/oom_score_adj for a load, so that the kernel kills it before any other process (proc(5))."""
END_S = 5.0
"""Seconds after which the process is killed if it does not end after its channel was closed."""
PROGRESS, OUTCOME = "progress", "outcome"
LOAD_PROCESS = "load"
"""Name of the process of a load in `ps` and `top`."""


class Outcome(NamedTuple):
    """Outcome of a task in a process of its own: result, or exception in the form of class, arguments and attributes."""

    kind: type[BaseException] | None
    value: Any
    attributes: dict[str, Any]

    def result(self) -> Any:
        """Return the result of the finished task, or raise the task's exception."""
        if self.kind is None:
            return self.value
        error = self.kind.__new__(self.kind, *self.value)
        for name, attribute in self.attributes.items():
            setattr(error, name, attribute)
        raise error


class NoOutcome(EirError):
    """Error: a process ended without sending an outcome."""

    def __init__(self, status: int | None) -> None:
        is_signal = status is not None and status < 0
        end = f"signal {-(status or 0)}" if is_signal else f"status {status}"
        super().__init__(f"it ended with {end}")
        self.status = status


def progress_over(channel: Channel) -> Progress:
    """Return a function that sends the progress of a task over the channel to the process that requested the task."""
    return lambda *done: channel.notify(PROGRESS, *done)


async def outcome_of(work: Awaitable[Any]) -> Outcome:
    """Await the work, and return its result or exception as an Outcome.

    An exception other than EirError and OSError becomes a ReleaseRefused.
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


async def run_apart(
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

    The work and its arguments must be picklable. `memory_max`: maximum bytes of the work in addition to the program; with this
    limit the work also ends after LOAD_S_MAX. `nice`: nice value. `handlers`: functions that the work may call.

    Raises:
        NoOutcome: if the process ends without an outcome.
        Exception: the exception of the work.
    """
    process = await start(name, _run_task, work, arguments, memory_max, nice)
    outcomes: list[Outcome] = []
    all_handlers = {OUTCOME: outcomes.append, **(handlers or {})}
    try:
        await process.channel.serve(all_handlers, failed=call_failed(report))
        status = await process.ended()
    finally:
        process.channel.close()
        await _end(process)
    if not outcomes:
        raise NoOutcome(status)
    return outcomes[0].result()


async def load_apart(
    start: Start, work: Work, *arguments: Any, memory_max: int, nice: int = 0, progress: Progress | None = None
) -> Any:
    """Load a release in a new process, as `run_apart` does, within limits of memory and time.

    Raises:
        ReleaseRefused: `memory` above memory_max, `time` above LOAD_S_MAX, `fault` for an exception other than EirError and
            OSError, `killed` after SIGKILL, `crash` after another end.
    """
    handlers = {PROGRESS: progress or (lambda *_: None)}
    try:
        return await run_apart(
            start, LOAD_PROCESS, work, *arguments, memory_max=memory_max, nice=nice, handlers=handlers
        )
    except NoOutcome as fault:
        raise _refusal_after(fault, memory_max) from None


def _refusal_after(fault: NoOutcome, memory_max: int) -> ReleaseRefused:
    """Return the rejection of a release whose load ended without an outcome, with the probable reason."""
    if fault.status == -signal.SIGKILL:
        detail = "the process of the load was killed, probably because the host lacked memory (journalctl -k)"
        return ReleaseRefused(KILLED, detail)
    if fault.status == -signal.SIGALRM:
        detail = f"its load took more than {LOAD_S_MAX} s: split the release into a full one and deltas"
        return ReleaseRefused("time", detail)
    detail = f"the process of the load: {fault}; limits.load_memory ({memory_max} bytes) is probably too low"
    return ReleaseRefused(CRASH, detail)


async def _end(process: Process) -> None:
    """Wait for the end of a process whose channel is closed already, and kill the process after END_S."""
    try:
        async with asyncio.timeout(END_S):
            await process.ended()
    except TimeoutError:
        process.kill()
        await process.ended()


# In such a process


def _run_task(end: socket.socket, work: Work, arguments: tuple[Any, ...], memory_max: int | None, nice: int) -> int:
    """Run a task in this new process, and send its outcome to the caller."""
    with suppress(OSError):  # a filter of system calls may forbid it
        present = os.getpriority(os.PRIO_PROCESS, 0)
        os.setpriority(os.PRIO_PROCESS, 0, max(nice, present))
    if memory_max is not None:
        # The work may block the loop, so another thread watches the channel.
        threading.Thread(target=_end_with_caller, args=(end.fileno(),), daemon=True).start()
        _confine(memory_max)
    try:
        outcome = asyncio.run(_run_work(end.dup(), work, arguments))
    except MemoryError:
        detail = f"its load takes more memory than limits.load_memory allows ({memory_max} bytes): raise that, or split the release"
        refused = ReleaseRefused("memory", detail)
        outcome = Outcome(type(refused), refused.args, vars(refused))
    end.setblocking(True)
    with suppress(ConnectionError):
        for part in parts_of(ChannelMessage(OUTCOME, (outcome,), None)):
            end.send(part)
    return 0


async def _run_work(end: socket.socket, work: Work, arguments: tuple[Any, ...]) -> Outcome:
    channel = Channel(end)
    serving = asyncio.create_task(channel.serve({}, failed=lambda *_: None))
    working = asyncio.create_task(outcome_of(work(*arguments, channel)))
    await asyncio.wait((serving, working), return_when=asyncio.FIRST_COMPLETED)
    if not working.done():  # the caller has closed the channel
        working.cancel()
        await asyncio.wait((working,))
        os._exit(1)
    serving.cancel()
    return working.result()


def _end_with_caller(descriptor: int) -> None:
    """End this process at once when the caller closes the channel. A store tolerates the end of a load at any point."""
    watch = select.poll()
    watch.register(descriptor, 0)
    watch.poll()
    os._exit(1)


def _confine(memory_max: int) -> None:
    """Limit memory and duration of this process; if the host runs out of memory, the kernel kills this process first."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(LOAD_S_MAX)
    page_counts = Path("/proc/self/statm").read_text().split()
    present = int(page_counts[5]) * resource.getpagesize()  # data and stack: proc(5)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = present + memory_max
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    with suppress(OSError):  # /proc may be read-only
        Path("/proc/self/oom_score_adj").write_text(f"{OOM_SCORE}\n")

"""Work in processes of its own, so that what a release makes go wrong ends such a process and nothing else.

Such a process does one thing, says what came of it, and ends; or with whoever had it done. A load may take so much memory and so much
time, and is the first that the kernel ends when the host's memory runs out.
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
from eir.node.processes.channel import Channel, Handlers, Message, parts_of
from eir.node.processes.starter import Process, Start

Work: TypeAlias = Callable[..., Awaitable[Any]]
"""Work to do: called with its arguments and, after them, the channel to the process that ordered it."""

LOAD_S_MAX = 900
"""Longest time that a load may take: a hundred million rows take 10 s on a quiet machine."""
OOM_SCORE = 1000
"""Value of /proc/PID/oom_score_adj: the kernel ends this process before any other (proc(5))."""
END_S = 5.0
"""Time that such a process has to end when nobody waits for its work any more."""
PROGRESS, OUTCOME = "progress", "outcome"
LOAD_PROCESS = "load"
"""Name of such a process in `ps` and `top`."""


class Outcome(NamedTuple):
    """The outcome of work, as it passes between processes.

    A result, or an exception as its class, its arguments and its attributes.
    """

    kind: type[BaseException] | None
    value: Any
    attributes: dict[str, Any]

    def result(self) -> Any:
        """The result; or the exception is raised."""
        if self.kind is None:
            return self.value
        error = self.kind.__new__(self.kind, *self.value)
        for name, attribute in self.attributes.items():
            setattr(error, name, attribute)
        raise error


class SaidNothing(EirError):
    """A process ended without a word of what came of its work."""

    def __init__(self, status: int | None) -> None:
        super().__init__(
            f"it ended with {f'signal {-status}' if status is not None and status < 0 else f'status {status}'}"
        )
        self.status = status


def progress_over(channel: Channel) -> Progress:
    """Tells whoever has the work done how far it is."""
    return lambda *done: channel.tell(PROGRESS, *done)


async def outcome_of(work: Awaitable[Any]) -> Outcome:
    """Return the outcome of work.

    An exception that is neither EirError nor OSError means that what was loaded is refused.
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
    """Run `work` with these arguments in a process of its own, which ends with this call; return or raise what it does.

    The work and its arguments must be picklable. `memory_max`: bytes that it may take beside the program itself, and
    then it may run for LOAD_S_MAX. `nice`: its nice value. `handlers`: what it may tell and ask. Raises SaidNothing if the
    process ends without a word.
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
    """The same for a load.

    Raises ReleaseRefused besides: `memory` past memory_max, `time` past LOAD_S_MAX, `fault` for an exception that is neither
    EirError nor OSError, `killed` if somebody ended the process with SIGKILL, `crash` if anything else did.
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
    """Return the reason why a load ended that said nothing."""
    if nothing.status == -signal.SIGKILL:
        return ReleaseRefused(
            KILLED, "the process that loaded it was killed; by the kernel, if the host's memory ran out (journalctl -k)"
        )
    if nothing.status == -signal.SIGALRM:
        return ReleaseRefused(
            "time", f"its load took more than {LOAD_S_MAX} s: split the release into a full one and deltas"
        )
    detail = f"the process that loaded it: {nothing}: was limits.load_memory ({memory_max} bytes) too little?"
    return ReleaseRefused(CRASH, detail)


async def _end(process: Process) -> None:
    """Wait for the end of a process whose channel has ended, and kill it if it takes too long."""
    try:
        async with asyncio.timeout(END_S):
            await process.ended()
    except TimeoutError:
        process.kill()
        await process.ended()


# In such a process


def _do(end: socket.socket, work: Work, arguments: tuple[Any, ...], memory_max: int | None, nice: int) -> int:
    """Be that process: do the work, say what came of it, end."""
    with suppress(OSError):  # a filter of system calls may be stricter than ours
        os.setpriority(os.PRIO_PROCESS, 0, max(nice, os.getpriority(os.PRIO_PROCESS, 0)))
    if memory_max is not None:
        # The work may leave the loop no turn, so that nothing else would notice.
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
        for part in parts_of(Message(OUTCOME, (outcome,), None)):
            end.send(part)
    return 0


async def _done(end: socket.socket, work: Work, arguments: tuple[Any, ...]) -> Outcome:
    channel = Channel(end)
    serving = asyncio.create_task(channel.serve({}, failed=lambda *_: None))
    working = asyncio.create_task(outcome_of(work(*arguments, channel)))
    await asyncio.wait((serving, working), return_when=asyncio.FIRST_COMPLETED)
    if not working.done():  # nobody waits for its outcome any more
        working.cancel()
        await asyncio.wait((working,))
        os._exit(1)
    serving.cancel()
    return working.result()


def _end_with(descriptor: int) -> None:
    """End at once when the other end of the channel is gone: a store takes a load that ends in the middle."""
    watch = select.poll()
    watch.register(descriptor, 0)
    watch.poll()
    os._exit(1)


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

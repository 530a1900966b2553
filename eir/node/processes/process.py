"""Main function of each process with a channel to the manager: log, channel, jobs, signals and end.

Each kind of process calls `run_process` with its work.
"""

import asyncio
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from pkgutil import resolve_name
from typing import Any, TypeAlias

import uvloop

from eir.errors import Report, detail_of
from eir.node.observe.log import Log, call_failed, report_faults
from eir.node.processes.channel import Channel, Handlers, Receiver

Work: TypeAlias = Callable[[], Awaitable[float | None]]
"""One run of a job. It returns the seconds until the next run if they differ from the job's interval."""


class Jobs:
    """Runner of repeated jobs and of single tasks. `close` cancels all of them."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._jobs: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, name: str, interval_s: float, work: Work, *, delay_s: float = 0.0) -> None:
        """Run the function `work` after `delay_s`, then repeatedly, each time `interval_s` after the end of the last run.

        A failed run is logged under `name`.
        """
        self._jobs[name] = self.spawn(self._repeat(name, interval_s, work, delay_s))

    def stop(self, name: str) -> None:
        """Cancel the job with this name, even during a run."""
        self._jobs.pop(name).cancel()

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a coroutine once, as a task."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """Cancel all jobs and tasks, and wait for their end."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _repeat(self, name: str, interval_s: float, work: Work, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        while True:
            pause_s = None
            try:
                pause_s = await work()
            except Exception as e:  # noqa: BLE001 - outermost loop of all jobs: it logs the fault and continues
                self._report("fault", reason=name, level="error", detail=detail_of(e))
            await asyncio.sleep(interval_s if pause_s is None else pause_s)


class ThisProcess:
    """Running process of a node: its log, its channel to the manager, and its jobs."""

    def __init__(self, end: socket.socket) -> None:
        """Create the log, the channel to the manager, and the jobs of this process."""
        self.log = Log(time.monotonic)
        self.channel = Channel(end)
        self.stop = asyncio.Event()
        """Set when the process must end."""
        self.status = 0
        """Exit status."""
        self.jobs = Jobs(self.log.report)

    def serve(self, handlers: Handlers, *, outlives: bool = False) -> None:
        """Handle the calls of the manager.

        When the channel to the manager closes, the process stops, unless `outlives` is true.
        """
        serving = self.jobs.spawn(self.channel.serve(handlers, failed=call_failed(self.log.report)))
        if not outlives:
            serving.add_done_callback(lambda _: self.stop.set())

    def work(self, name: str, work: Coroutine[None, None, None]) -> None:
        """Run the main work of this process, and stop the process when the work ends.

        An exception is logged under `name`, and the exit status is 1.
        """
        self.jobs.spawn(self._work(name, work))

    def fail(self, name: str, fault: Exception) -> None:
        """Log an exception, and stop the process with exit status 1."""
        self.log.report("fault", reason=name, level="error", detail=detail_of(fault))
        self.status = 1
        self.stop.set()

    async def until_stopped(self) -> None:
        """Wait until the process must end, then cancel all its tasks and jobs."""
        await self.stop.wait()
        await self.jobs.close()

    async def _work(self, name: str, work: Coroutine[None, None, None]) -> None:
        try:
            await work
        except Exception as e:  # noqa: BLE001 - a fault ends the process and is logged
            self.fail(name, e)
        finally:
            self.stop.set()


Main: TypeAlias = Callable[[ThisProcess], Awaitable[None]]
"""Work of a process; it returns when the process may end."""


def run(main: str, descriptor: str) -> int:
    """Run the function `main` with the arguments that the manager sends first; return its result, the exit status.

    `main`: function as MODULE:FUNCTION. `descriptor`: end of the channel to the manager.
    """
    function = resolve_name(main)
    end = socket.socket(fileno=int(descriptor))
    first = Receiver(end).next()
    if first is None:
        return 0  # the manager has ended
    status: int = function(end, *first[0].arguments)
    return status


def run_process(end: socket.socket, main: Main) -> int:
    """Run the main function of this process on a new event loop; return the exit status.

    `end`: end of the channel to the manager.
    """
    return run_loop(_run(end, main))


def run_loop(main: Coroutine[None, None, int]) -> int:
    """Run the main function of a process on a new event loop; return the exit status.

    If uvloop cannot close the loop because no file descriptor is left, its error is ignored: `main` has logged the cause, or raises it.
    """
    runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    try:
        return runner.run(main)
    finally:
        with suppress(RuntimeError):
            runner.close()


async def _run(end: socket.socket, main: Main) -> int:
    process = ThisProcess(end)
    report_faults(process.log.report)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, process.stop.set)
    try:
        await main(process)
    finally:
        process.stop.set()
        await process.until_stopped()
        process.channel.close()
        process.log.close()
    return process.status

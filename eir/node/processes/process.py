"""Main function of each process that the starter starts: log, channel to the manager, signals and end.

Each kind of process calls `run_process` with its work.
"""

import asyncio
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import TypeAlias

import uvloop

from eir.errors import detail_of
from eir.node.observe.log import Log, call_failed, report_faults
from eir.node.processes.channel import Channel, Handlers
from eir.node.processes.jobs import Jobs
from eir.node.processes.priority import lower_priority


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


def run_process(end: socket.socket, main: Main, *, nice: int = 0) -> int:
    """Run the main function of this process on a new event loop; return the exit status.

    `end`: end of the channel to the manager. `nice`: increase of the nice value.
    """
    lower_priority(nice)
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

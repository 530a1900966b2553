"""Jobs of a process: functions that run repeatedly at an interval, with common error handling."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeAlias

from eir.errors import Report, detail_of

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

"""Priorities of the node's processes on a shared processor: checks come before all other work."""

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

POLL_S = 2.0
"""Seconds between two checks of the progress of a process at idle priority."""
SHARE = 0.1
"""Minimum share of the time in which the process could run that it did run; below this share its priority is restored."""
BESIDE_NICE = 5
"""Nice value of manager and follower, so that checks come before scrapes, deliveries and switches of lists."""
AGAIN_S = 60.0
"""Seconds at normal priority before a starved process lowers its priority again."""
TASKS = Path("/proc/self/task")
T = TypeVar("T")


def lower_priority(nice: int) -> None:
    """Increase the nice value of this process, so that processes that answer checks come first."""
    with suppress(OSError):  # a filter of system calls may forbid it
        os.nice(nice)


def set_idle_priority(thread: int = 0) -> None:
    """Set a thread to idle priority, so that it runs only on a free processor.

    Unlike with a nice value, a check need not wait for the end of the thread's time slice. `thread`: thread id; 0: this thread.
    """
    with suppress(OSError):  # a filter forbids it, or the thread has ended
        os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))


def restore_priority() -> None:
    """Restore the normal priority of all threads of this process, if permitted."""
    for thread in _threads():
        with suppress(OSError):  # not permitted, or the thread has ended
            os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))


def restore_priority_of(pid: int) -> None:
    """Restore the normal priority of the process `pid`, if permitted. The process may get too little processor time to do so itself."""
    with suppress(OSError):  # the process has ended
        threads = [int(each.name) for each in Path(f"/proc/{pid}/task").iterdir()]
        for thread in threads:
            with suppress(OSError):
                if os.sched_getscheduler(thread) == os.SCHED_IDLE:
                    os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))


class IdlePriority:
    """Context manager for heavy work: the process runs at idle priority meanwhile.

    If other programs starve the process, its priority is restored for `again_s` seconds, at most until the work ends. If the
    process could not restore its priority, which RLIMIT_NICE (LimitNICE= of a unit) must permit, the priority is not lowered.
    """

    def __init__(self, again_s: float = AGAIN_S) -> None:
        """Test whether this process is permitted to restore a lowered priority. Its priority is not changed.

        `again_s`: seconds at normal priority before a starved process lowers its priority again.
        """
        self._again_s = again_s
        self._depth = 0
        self._timer: asyncio.TimerHandle | None = None
        with ThreadPoolExecutor(1) as thread:
            self.permitted = thread.submit(can_restore).result()
            """True if the process may restore its priority."""

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Keep this process at idle priority during a `with` block. Blocks may overlap."""
        self._depth += 1
        if self._depth == 1 and self.permitted:
            self._lower()
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                self._restore()

    def end(self) -> None:
        """Restore the normal priority for the rest of the process's life, also for work that begins later."""
        self.permitted = False
        self._restore()

    def _lower(self) -> None:
        for thread in _threads():
            set_idle_priority(thread)
        self._check_later()

    def _check_later(self) -> None:
        ran, waited = ran_and_waited()
        self._timer = asyncio.get_running_loop().call_later(POLL_S, self._check, ran, waited)

    def _check(self, ran: int, waited: int) -> None:
        now_ran, now_waited = ran_and_waited()
        if is_starved(now_ran - ran, now_waited - waited) or self._is_restored():
            restore_priority()
            self._timer = asyncio.get_running_loop().call_later(self._again_s, self._lower)
        else:
            self._check_later()

    def _is_restored(self) -> bool:
        """Return true if the manager has restored the normal priority of the threads (`restore_priority_of`)."""
        with suppress(OSError):  # a thread has ended
            return any(os.sched_getscheduler(thread) == os.SCHED_OTHER for thread in _threads())
        return False

    def _restore(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            restore_priority()


class IdleThread:
    """Thread for work at a lower priority than checks. If other programs starve the process, its priority is restored."""

    def __init__(self, name: str, aside: IdlePriority) -> None:
        """Start the thread. `aside`: context manager that lowers the priority of the process while the thread works."""
        self._executor = ThreadPoolExecutor(1, name)
        thread = self._executor.submit(threading.get_native_id).result()
        self._aside = aside
        if not aside.permitted:
            set_idle_priority(thread)  # for the whole life of the thread

    async def run(self, work: Callable[[], T]) -> T:
        """Run a function in the idle thread and return its result."""
        with self._aside():
            return await asyncio.get_running_loop().run_in_executor(self._executor, work)


async def stay_idle(aside: IdlePriority) -> None:
    """Run this process at idle priority until cancelled."""
    with aside():
        await asyncio.Event().wait()


def can_restore() -> bool:
    """Return true if a thread may lower and then restore its priority. The test does both to the calling thread."""
    try:
        (TASKS.parent / "schedstat").read_text()  # a kernel may have no schedstat
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    except OSError:
        return False
    return True


def _threads() -> list[int]:
    return [int(each.name) for each in TASKS.iterdir()]


def is_starved(ran: int, waited: int) -> bool:
    """Return true if a process got less than SHARE of the time in which it could run.

    Args:
        ran: time (ns) that the process ran.
        waited: time (ns) that it waited for a processor.
    """
    return ran < SHARE * (ran + waited)


def ran_and_waited() -> tuple[int, int]:
    """Return the time (ns) that the threads of this process ran, and the time (ns) that they waited for a processor."""
    times = list(map(_schedstat, _threads()))
    return sum(ran for ran, _ in times), sum(waited for _, waited in times)


def _schedstat(thread: int) -> tuple[int, int]:
    try:
        ran, waited, _ = (TASKS / str(thread) / "schedstat").read_text().split()
    except (FileNotFoundError, ProcessLookupError):  # the thread has ended
        return 0, 0
    return int(ran), int(waited)

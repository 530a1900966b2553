"""Priorities of the node's processes on a shared processor: checks come before all other work."""

import asyncio
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

LOOK_S = 2.0
"""Seconds between two checks whether a process at idle priority makes progress."""
SHARE = 0.1
"""Minimum share of the processor time, of the time in which the process could run; below it the priority is restored."""
BESIDE_NICE = 5
"""Nice value of supervisor and follower: on a shared processor, scrapes, deliveries and switches of lists wait for checks."""
AGAIN_S = 60.0
"""Seconds after a restored priority until a process lowers its priority again."""
TASKS = Path("/proc/self/task")
T = TypeVar("T")


def lower_priority(nice: int) -> None:
    """Increase the nice value of this process, so that processes that answer checks come first."""
    with suppress(OSError):  # a filter of system calls may be stricter than this program
        os.nice(nice)


def set_idle_priority(thread: int = 0) -> None:
    """Set a thread to idle priority, so that it runs only on a free processor.

    `thread`: thread id; 0: this thread. A check then does not wait for the end of a time slice, as it would with a mere nice
    value.
    """
    with suppress(OSError):  # as above; or the thread has ended
        os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))


def restore_priority(policies: Mapping[int, int] = MappingProxyType({})) -> None:
    """Restore the normal priority of all threads of this process, if permitted.

    `policies`: previous policies of threads that had another one than SCHED_OTHER.
    """
    for thread in _threads():
        with suppress(OSError):  # not permitted, or the thread has ended
            os.sched_setscheduler(thread, policies.get(thread, os.SCHED_OTHER), os.sched_param(0))


def restore_priority_of(pid: int) -> None:
    """Restore the normal priority of another process's threads, if permitted.

    That process may get no processor time to do so itself.
    """
    with suppress(OSError):  # the process has ended
        for thread in [int(each.name) for each in Path(f"/proc/{pid}/task").iterdir()]:
            with suppress(OSError):
                if os.sched_getscheduler(thread) == os.SCHED_IDLE:
                    os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))


class Aside:
    """Context manager that gives the process idle priority during heavy work.

    If other programs starve the process, its priority is restored. Nothing happens if the priority could not be restored:
    without privilege a limit decides (RLIMIT_NICE, in a unit LimitNICE=).
    """

    def __init__(self, *threads: int) -> None:
        """Create the context manager for the threads of the work.

        `threads`: threads of the work; without any, all threads that exist at the beginning of the work.
        """
        self._chosen = threads
        self._depth = 0
        self._policies: dict[int, int] = {}
        """Scheduling policies of the threads before."""
        self._timer: asyncio.TimerHandle | None = None
        self.starved = asyncio.Event()
        """Set when the idle priority starved the process, so that its priority was restored."""
        with ThreadPoolExecutor(1) as thread:
            self.permitted = thread.submit(_comes_back).result()
            """True if the process may restore its priority."""

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Run a `with` block at idle priority. Blocks may overlap."""
        self._depth += 1
        if self._depth == 1 and self.permitted:
            for thread in self._threads():
                with suppress(OSError):  # the thread has ended
                    self._policies[thread] = os.sched_getscheduler(thread)
                set_idle_priority(thread)
            self.starved.clear()
            self._check_later()
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                self._restore()

    def _threads(self) -> Sequence[int]:
        return self._chosen or _threads()

    def _check_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(LOOK_S, self._check, *_ran_and_waited(self._threads()))

    def _check(self, ran: int, waited: int) -> None:
        now_ran, now_waited = _ran_and_waited(self._threads())
        if now_ran - ran < SHARE * (now_ran - ran + now_waited - waited) or self._is_back():
            self.starved.set()
            self._restore()
        else:
            self._check_later()

    def _is_back(self) -> bool:
        """Return whether another process has restored this process's priority by `restore_priority_of`."""
        with suppress(OSError):  # a thread has ended
            return any(os.sched_getscheduler(thread) == os.SCHED_OTHER for thread in self._threads())
        return False

    def _restore(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            restore_priority(self._policies)
            self._policies.clear()


class IdleThread:
    """Thread for work at a lower priority than checks. If other programs starve the thread, its priority is restored."""

    def __init__(self, name: str) -> None:
        """Start the thread."""
        self._executor = ThreadPoolExecutor(1, name)
        thread = self._executor.submit(threading.get_native_id).result()
        self._aside = Aside(thread)
        if not self._aside.permitted:
            set_idle_priority(thread)  # permanently

    async def run(self, work: Callable[[], T]) -> T:
        """Run work in the thread and return its result."""
        with self._aside():
            return await asyncio.get_running_loop().run_in_executor(self._executor, work)


async def stay_idle(aside: Aside, again_s: float = AGAIN_S) -> None:
    """Run the process at idle priority until cancelled.

    Each time other programs starve the process, it runs at normal priority for `again_s`.
    """
    while True:
        with aside():
            await aside.starved.wait()
        await asyncio.sleep(again_s)


def _comes_back() -> bool:
    """Return true if a thread may restore its priority after lowering it.

    Runs in a thread of its own, whose priority this test changes.
    """
    try:
        (TASKS.parent / "schedstat").read_text()  # a kernel may have no schedstat
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    except OSError:
        return False
    return True


def _threads() -> list[int]:
    return [int(each.name) for each in TASKS.iterdir()]


def _ran_and_waited(threads: Iterable[int]) -> tuple[int, int]:
    """Return two times in ns: for how long these threads ran, and for how long they waited for a processor."""
    times = list(map(_schedstat, threads))
    return sum(ran for ran, _ in times), sum(waited for _, waited in times)


def _schedstat(thread: int) -> tuple[int, int]:
    try:
        ran, waited, _ = (TASKS / str(thread) / "schedstat").read_text().split()
    except (FileNotFoundError, ProcessLookupError):  # the thread has ended
        return 0, 0
    return int(ran), int(waited)

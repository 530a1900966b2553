"""Priorities of processes that share a processor: checks come before everything else that a node does."""

import asyncio
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType

LOOK_S = 2.0
"""Interval at which a process that stands back looks whether it makes progress."""
SHARE = 0.1
"""The process takes part again if it got less than this part of the time in which it could have run."""
BESIDE_NICE = 5
"""Nice value of supervisor and follower: where they share a processor with checks, a scrape, a delivery and the takeover of
a list wait for the checks, and not the other way round."""
AGAIN_S = 60.0
"""A process whose work all stands back tries it again so long after it had to take part."""
TASKS = Path("/proc/self/task")


def give_way(nice: int) -> None:
    """Give this process a smaller share of the processor than those that answer."""
    with suppress(OSError):  # a filter of system calls may be stricter than ours
        os.nice(nice)


def stand_back(thread: int = 0) -> None:
    """Have a thread, by default this one, run only where nobody else wants the processor.

    A check that comes then need not wait for the end of a time slice, as it would behind a process that is merely nice.
    """
    with suppress(OSError):  # as above; or the thread has ended
        os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))


def take_part(policies: Mapping[int, int] = MappingProxyType({})) -> None:
    """Have all threads of this process stand back no longer, where that is permitted.

    `policies`: those of threads that had an unusual one before.
    """
    for thread in _threads():
        with suppress(OSError):  # it may not, or has ended
            os.sched_setscheduler(thread, policies.get(thread, os.SCHED_OTHER), os.sched_param(0))


def bring_back(pid: int) -> None:
    """Have the threads of another process stand back no longer, where that is permitted: it may get no time to do so itself."""
    with suppress(OSError):  # it has ended
        for thread in [int(each.name) for each in Path(f"/proc/{pid}/task").iterdir()]:
            with suppress(OSError):
                if os.sched_getscheduler(thread) == os.SCHED_IDLE:
                    os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))


class Aside:
    """Has this process stand back while it does heavy work, and take part again where other programs leave it nothing.

    Nothing happens where it could not come back: without privilege a limit decides (RLIMIT_NICE, in a unit LimitNICE=).
    """

    def __init__(self, *threads: int) -> None:
        """`threads`: those that do the work; none: all that there are when it begins."""
        self._chosen = threads
        self._depth = 0
        self._policies: dict[int, int] = {}
        """Scheduling policies of the threads before they stood back."""
        self._timer: asyncio.TimerHandle | None = None
        self.starved = asyncio.Event()
        """Standing back left the process nothing, so that it takes part."""
        with ThreadPoolExecutor(1) as thread:
            self.permitted = thread.submit(_comes_back).result()
            """True if the process could come back."""

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Stand back for the time of a `with`; parts of the work may overlap."""
        self._depth += 1
        if self._depth == 1 and self.permitted:
            for thread in self._threads():
                with suppress(OSError):  # it has ended
                    self._policies[thread] = os.sched_getscheduler(thread)
                stand_back(thread)
            self.starved.clear()
            self._look_later()
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                self._take_part()

    def _threads(self) -> Sequence[int]:
        return self._chosen or _threads()

    def _look_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(LOOK_S, self._look, *_ran_and_waited(self._threads()))

    def _look(self, ran: int, waited: int) -> None:
        now_ran, now_waited = _ran_and_waited(self._threads())
        if now_ran - ran < SHARE * (now_ran - ran + now_waited - waited) or self._is_back():
            self.starved.set()
            self._take_part()
        else:
            self._look_later()

    def _is_back(self) -> bool:
        """Return whether another process has brought this one back (`bring_back`)."""
        with suppress(OSError):  # a thread has ended
            return any(os.sched_getscheduler(thread) == os.SCHED_OTHER for thread in self._threads())
        return False

    def _take_part(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            take_part(self._policies)
            self._policies.clear()


async def stay_aside(aside: Aside, again_s: float = AGAIN_S) -> None:
    """Stand back for as long as this task goes on; each time that this leaves the process nothing, take part for `again_s`."""
    while True:
        with aside():
            await aside.starved.wait()
        await asyncio.sleep(again_s)


def _comes_back() -> bool:
    """True if a thread may stand back and come back, tried in a thread that is not needed afterwards."""
    try:
        (TASKS.parent / "schedstat").read_text()  # a kernel may count nothing
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    except OSError:
        return False
    return True


def _threads() -> list[int]:
    return [int(each.name) for each in TASKS.iterdir()]


def _ran_and_waited(threads: Iterable[int]) -> tuple[int, int]:
    """Return how long these threads ran, and how long they waited for a processor (ns)."""
    found = list(map(_schedstat, threads))
    return sum(ran for ran, _ in found), sum(waited for _, waited in found)


def _schedstat(thread: int) -> tuple[int, int]:
    try:
        ran, waited, _ = (TASKS / str(thread) / "schedstat").read_text().split()
    except (FileNotFoundError, ProcessLookupError):  # the thread has ended
        return 0, 0
    return int(ran), int(waited)

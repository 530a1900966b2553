"""Priorities of processes that share a processor: checks come before everything else that a node does."""

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

LOOK_S = 1.0
"""Interval at which it is looked whether those who stand back get anything done."""
SHARE = 0.1
"""They take part again if they got less than this part of the time in which they could have run."""
BESIDE_NICE = 5
"""Nice value of front and follower: where they share a processor with checks, a scrape, a delivery and the takeover of
a list wait for the checks, and not the other way round."""
AGAIN_S = 10.0
"""Interval between two tries to stand back, for a process that had to take part meanwhile."""
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


async def stay_aside(
    *threads: int,
    look_s: float = LOOK_S,
    again_s: float = AGAIN_S,
    counted: Callable[[Iterable[int]], tuple[int, int]] | None = None,
) -> None:
    """Have threads of this process run only where nobody else wants the processor, for as long as this task goes on.

    `threads`: those that do the work; none: all that there are. Where that leaves them nothing, seen each `look_s` seconds, they take
    part for the rest of `again_s` seconds. Those that could not come back (without privilege a limit decides: RLIMIT_NICE, in a unit
    LimitNICE=) go on as they are, unless they are named: these stand back for good. `counted`: how long threads ran and waited (ns), by
    another count than the kernel's.
    """
    with ThreadPoolExecutor(1) as trial:
        if not trial.submit(_comes_back).result():
            for thread in threads:
                stand_back(thread)
            return
    while True:
        ends = time.monotonic() + again_s
        policies: dict[int, int] = {}
        chosen = threads or _threads()
        try:
            for thread in chosen:
                with suppress(OSError):  # it has ended
                    policies[thread] = os.sched_getscheduler(thread)
                stand_back(thread)
            await _nothing_left(chosen, look_s, ends, counted or ran_and_waited)
        finally:
            take_part(policies)
        await asyncio.sleep(max(0.0, ends - time.monotonic()))


async def _nothing_left(
    threads: Sequence[int], look_s: float, ends: float, counted: Callable[[Iterable[int]], tuple[int, int]]
) -> None:
    """Return once these threads got next to nothing of the processor while they waited for it, at the latest when the time `ends`."""
    ran, waited = counted(threads)
    while time.monotonic() < ends:
        await asyncio.sleep(look_s)
        before_ran, before_waited = ran, waited
        ran, waited = counted(threads)
        got = ran - before_ran
        if got < SHARE * (got + waited - before_waited):
            return


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


def ran_and_waited(threads: Iterable[int]) -> tuple[int, int]:
    """Return how long these threads ran, and how long they waited for a processor (ns)."""
    found = list(map(_schedstat, threads))
    return sum(ran for ran, _ in found), sum(waited for _, waited in found)


def _schedstat(thread: int) -> tuple[int, int]:
    try:
        ran, waited, _ = (TASKS / str(thread) / "schedstat").read_text().split()
    except (FileNotFoundError, ProcessLookupError):  # the thread has ended
        return 0, 0
    return int(ran), int(waited)

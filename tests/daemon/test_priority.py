"""Work that answers nobody stands back behind checks, and comes back (eir/daemon/priority.py)."""

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from node import until_async

from eir.daemon import priority
from eir.daemon.priority import TASKS, stay_aside

COMES_BACK = priority._comes_back()
"""Without privilege RLIMIT_NICE decides; then nothing stands back."""
ASIDE = {os.SCHED_IDLE} if COMES_BACK else {os.SCHED_OTHER}
TAKES_PART = {os.SCHED_OTHER}


def policies():
    return {os.sched_getscheduler(int(task.name)) for task in TASKS.iterdir()}


@pytest.fixture
def another_thread():
    for task in TASKS.iterdir():  # a thread of an earlier test may have begun while that stood back
        with suppress(ProcessLookupError):
            os.sched_setscheduler(int(task.name), os.SCHED_OTHER, os.sched_param(0))
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    yield
    end.set()
    thread.join()


@pytest.fixture
async def aside():
    """Begins tasks of stay_aside, and ends them."""
    tasks = []

    def begin(*threads, **times):
        tasks.append(asyncio.create_task(stay_aside(*threads, **times)))
        return tasks[-1]

    yield begin
    await ended(*tasks)


async def ended(*tasks):
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def reached(wanted):
    await until_async(lambda: policies() == wanted)


@pytest.mark.usefixtures("another_thread")
class TestStayAside:
    async def test_all_threads_stand_back_as_long_as_the_task_goes_on(self, aside):
        assert policies() == TAKES_PART
        task = aside()
        await reached(ASIDE)
        await ended(task)
        assert policies() == TAKES_PART

    async def test_who_gets_on_stays_aside(self, aside):
        looked = iter(range(1000))
        aside(look_s=0.001, counted=lambda _threads: (50 * (n := next(looked)), 50 * n))
        await until_async(lambda: next(looked) > 100 or not COMES_BACK)
        assert policies() == ASIDE

    async def test_who_gets_nowhere_takes_part_and_stands_back_again_later(self, aside):
        looked = iter(range(100_000))
        aside(look_s=0.01, again_s=0.1, counted=lambda _threads: (n := next(looked), 99 * n))
        for wanted in (ASIDE, TAKES_PART, ASIDE, TAKES_PART):
            await reached(wanted)

    async def test_of_threads_that_are_named_only_those_stand_back(self, aside):
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(threading.get_native_id).result()
            task = aside(other)
            await until_async(lambda: os.sched_getscheduler(other) == os.SCHED_IDLE)
            assert os.sched_getscheduler(0) == os.SCHED_OTHER
            await ended(task)
            assert policies() == (TAKES_PART if COMES_BACK else {*TAKES_PART, os.SCHED_IDLE})

    async def test_only_those_that_are_named_stand_back_if_they_could_not_come_back(self, aside, monkeypatch):
        monkeypatch.setattr(priority, "_comes_back", lambda: False)
        await aside()
        assert policies() == TAKES_PART
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(threading.get_native_id).result()
            await aside(other)
            assert os.sched_getscheduler(other) == os.SCHED_IDLE


async def test_the_processor_is_counted_of_all_threads():
    ran, waited = priority.ran_and_waited([int(task.name) for task in TASKS.iterdir()])

    def spin():
        sum(range(3_000_000))

    await asyncio.gather(asyncio.to_thread(spin), asyncio.to_thread(spin))
    now_ran, now_waited = priority.ran_and_waited([int(task.name) for task in TASKS.iterdir()])
    assert now_ran - ran > 10_000_000
    assert now_waited >= waited


@pytest.mark.usefixtures("another_thread")
def test_all_threads_take_part_again():
    if not COMES_BACK:
        pytest.skip("this process may not come back")
    for task in TASKS.iterdir():
        priority.stand_back(int(task.name))
    assert policies() == {os.SCHED_IDLE}
    priority.take_part()
    assert policies() == TAKES_PART

"""Heavy work of the follower stands back behind checks, and comes back (eir/node/processes/priority.py)."""

import asyncio
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from types import SimpleNamespace

import pytest
from simulated.node import until_async

from eir.node.processes import child, priority
from eir.node.processes.priority import TASKS, IdlePriority, IdleThread, stay_idle

COMES_BACK = priority.can_restore()
"""Without privilege RLIMIT_NICE decides; then nothing stands back."""
ASIDE = {os.SCHED_IDLE} if COMES_BACK else {os.SCHED_OTHER}
TAKES_PART = {os.SCHED_OTHER}


def policies():
    found = set()
    for task in TASKS.iterdir():
        with suppress(ProcessLookupError):  # a thread of an earlier test may end meanwhile
            found.add(os.sched_getscheduler(int(task.name)))
    return found


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


@pytest.mark.usefixtures("another_thread")
class TestAside:
    async def test_all_threads_stand_back_for_the_time_of_the_work(self):
        aside = IdlePriority()
        assert policies() == TAKES_PART
        with aside():
            assert policies() == ASIDE
        assert policies() == TAKES_PART

    async def test_parts_of_the_work_overlap(self):
        aside = IdlePriority()
        with aside():
            with aside():
                pass
            assert policies() == ASIDE
        assert policies() == TAKES_PART

    async def test_work_that_fails_ends_it_too(self):
        aside = IdlePriority()
        with pytest.raises(ValueError, match="none"), aside():
            int("none")
        assert policies() == TAKES_PART

    async def test_who_stands_back_always_does_so_again_after_it_took_part(self, monkeypatch):
        looked = iter(range(1000))
        monkeypatch.setattr(priority, "POLL_S", 0.001)
        monkeypatch.setattr(priority, "ran_and_waited", lambda: (0, next(looked)))
        task = asyncio.create_task(stay_idle(IdlePriority(again_s=0.05)))
        for found in (ASIDE, TAKES_PART, ASIDE, TAKES_PART):
            await until_async(lambda found=found: policies() == found)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        assert policies() == TAKES_PART

    @pytest.mark.skipif(not COMES_BACK, reason="without privilege nothing stands back")
    async def test_who_was_brought_back_takes_part_for_a_while(self, monkeypatch):
        monkeypatch.setattr(priority, "POLL_S", 0.001)
        aside = IdlePriority(again_s=0.2)
        with aside():
            assert policies() == ASIDE
            priority.restore_priority_of(os.getpid())
            began = time.monotonic()
            assert policies() == TAKES_PART
            await until_async(lambda: policies() == ASIDE)
            assert time.monotonic() - began >= 0.2
            priority.restore_priority_of(os.getpid())
        assert policies() == TAKES_PART
        await asyncio.sleep(0.3)
        assert policies() == TAKES_PART, "no timer is left"

    async def test_after_the_end_no_work_stands_back(self):
        aside = IdlePriority()
        with aside():
            aside.end()
            assert policies() == TAKES_PART
        with aside():
            assert policies() == TAKES_PART

    async def test_work_that_ends_leaves_other_work_at_idle_priority(self):
        aside = IdlePriority()
        search, disk = (IdleThread(name, aside) for name in ("search", "disk"))
        until = threading.Event()
        searching = asyncio.create_task(search.run(until.wait))
        await disk.run(policies)
        assert policies() == ASIDE
        until.set()
        await searching
        assert policies() == TAKES_PART

    async def test_nothing_stands_back_that_could_not_come_back(self):
        aside = IdlePriority()
        aside.permitted = False
        with aside():
            assert policies() == TAKES_PART


def test_a_kernel_without_statistics_of_its_scheduler_restores_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(priority, "TASKS", tmp_path / "task")
    assert priority.can_restore() is False


@pytest.mark.parametrize(("ran", "waited", "starved"), [(1, 99, True), (10, 90, False), (50, 50, False), (0, 0, False)])
def test_a_process_is_starved_below_a_share_of_its_time(ran, waited, starved):
    assert priority.is_starved(ran, waited) == starved


async def test_the_processor_is_counted_of_all_threads():
    ran, waited = priority.ran_and_waited()

    def spin():
        sum(range(3_000_000))

    await asyncio.gather(asyncio.to_thread(spin), asyncio.to_thread(spin))
    now_ran, now_waited = priority.ran_and_waited()
    assert now_ran - ran > 10_000_000
    assert now_waited >= waited


@pytest.mark.usefixtures("another_thread")
def test_all_threads_take_part_again():
    if not COMES_BACK:
        pytest.skip("this process may not come back")
    for task in TASKS.iterdir():
        priority.set_idle_priority(int(task.name))
    assert policies() == {os.SCHED_IDLE}
    priority.restore_priority()
    assert policies() == TAKES_PART


@pytest.fixture
def standing_back():
    """A process that runs only where nobody else wants the processor."""
    program = "import os; os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0)); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline()
        yield process
        process.communicate(b"\n")


@pytest.mark.skipif(not COMES_BACK, reason="without privilege nothing stands back")
async def test_a_process_that_stands_back_and_answers_late_takes_part(standing_back):
    """Where workers want every processor, it gets no time to notice that, and would be killed as one that hangs."""
    found = asyncio.Event()

    async def ask(_what):
        await until_async(lambda: os.sched_getscheduler(standing_back.pid) == os.SCHED_OTHER)
        found.set()
        return {}

    async def serve(_handlers, **_):
        await asyncio.Event().wait()

    assert os.sched_getscheduler(standing_back.pid) == os.SCHED_IDLE
    channel = SimpleNamespace(ask=ask, serve=serve)
    process = SimpleNamespace(pid=standing_back.pid, channel=channel, kill=standing_back.kill)
    watching = asyncio.create_task(child.Child("feed", None, report=lambda *_, **__: None).attend(process))
    await found.wait()
    assert standing_back.poll() is None
    watching.cancel()

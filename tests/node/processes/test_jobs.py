"""Jobs: what runs again and again, one failing, one that says when it runs next, one that is stopped in the middle of a run."""

import asyncio

import pytest
from simulated.node import until_async
from simulated.patience import PATIENCE_S

from eir.node.processes.process import Jobs

NEVER_S = 3600.0


class Work:
    """Work of a job, which counts its runs."""

    def __init__(self, pause_s=None, fault=None):
        self.runs = 0
        self.pause_s, self.fault = pause_s, fault

    async def __call__(self):
        self.runs += 1
        if self.fault is not None:
            raise self.fault
        return self.pause_s


@pytest.fixture
def lines():
    return []


@pytest.fixture
async def jobs(lines):
    made = Jobs(lambda event, **fields: lines.append((event, fields["reason"], fields["detail"])))
    yield made
    await made.close()


async def test_a_job_that_fails_is_logged_and_runs_again(jobs, lines):
    failing, other = Work(fault=ValueError("no number")), Work()
    jobs.start("failing", 0, failing)
    jobs.start("other", 0, other)
    await until_async(lambda: failing.runs > 2 and other.runs > 2)
    event, reason, detail = lines[0]
    assert (event, reason) == ("fault", "failing")
    assert "ValueError" in detail
    assert {reason for _, reason, _ in lines} == {"failing"}


async def test_a_run_may_return_the_time_of_the_next_one(jobs):
    soon, late = Work(pause_s=0), Work(pause_s=NEVER_S)
    jobs.start("soon", NEVER_S, soon)
    jobs.start("late", 0, late)
    await until_async(lambda: soon.runs > 2)
    assert late.runs == 1


async def test_a_job_that_is_stopped_ends_in_the_middle_of_its_run(jobs):
    began, ended = asyncio.Event(), asyncio.Event()

    async def work():
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    jobs.start("one", 0, work)
    await began.wait()
    jobs.stop("one")
    await asyncio.wait_for(ended.wait(), PATIENCE_S)
    again = Work(pause_s=NEVER_S)
    jobs.start("one", 0, again)
    await until_async(lambda: again.runs == 1)


async def test_the_end_waits_for_all_work(jobs):
    begun, ended = [], []

    async def work():
        begun.append(True)
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(True)

    jobs.start("job", NEVER_S, work)
    jobs.spawn(work())
    await until_async(lambda: len(begun) == 2)
    await jobs.close()
    assert ended == [True, True]

"""Schedule of pulls, and what the results of pulls leave, without processes. Pulls themselves: lists/sources/test_publisher_folder.py."""

import fcntl
from types import SimpleNamespace

import pytest

from eir.lists.log.journal import REFUSED
from eir.lists.sources.source import ELSEWHERE, LOADED, UNCHANGED, UNREACHED, WAITING, Turn
from eir.node.processes import acknowledging, sources
from eir.node.processes.acknowledging import AGAIN_S, backoff_s
from eir.node.processes.loading import PULLS_FOLDER, process_once
from eir.node.processes.sources import BESIDE_S, SPREAD, Sources

EVERY_S = 60.0


class Jobs(list):
    """Jobs that are started or stopped, and never run."""

    def start(self, name, interval_s, work, *, delay_s):
        self.work = work
        self.append((name, interval_s, delay_s))

    def stop(self, name):
        self.append((name, None, None))


@pytest.fixture
def jobs():
    return Jobs()


@pytest.fixture
def lists():
    return {"stolen": SimpleNamespace(source=SimpleNamespace(every_s=EVERY_S)), "own": SimpleNamespace(source=None)}


@pytest.fixture
def made(jobs, lists, tmp_path):
    config = SimpleNamespace(lists=lists, state=tmp_path, inbox=None)
    return Sources(lambda: config, jobs, None, report=lambda *_, **__: None)


def test_each_source_has_a_job_that_begins_within_a_second(made, jobs, lists):
    made.apply()
    made.apply()
    ((name, interval_s, delay_s),) = jobs
    assert (name, interval_s) == ("pull stolen", EVERY_S)
    assert 0.0 <= delay_s <= 1.0
    lists["stolen"].source = None
    made.apply()
    assert jobs[1:] == [("pull stolen", None, None)]


async def test_a_list_that_another_process_of_this_host_pulls_is_left_to_it(tmp_path):
    folder = tmp_path / PULLS_FOLDER / "stolen"
    folder.mkdir(parents=True)
    with (folder / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        turn = await process_once(SimpleNamespace(state=tmp_path, load_memory=0), "stolen", "", emit=pytest.fail)
    assert (turn.outcome, turn.detail) == (ELSEWHERE, "another process on this host is doing it")


async def test_the_pause_doubles_with_each_failure_up_to_that_of_the_source(made, jobs, monkeypatch):
    outcomes = [
        WAITING,
        UNREACHED,
        REFUSED,
        UNREACHED,
        UNREACHED,
        UNREACHED,
        LOADED,
        WAITING,
        ELSEWHERE,
        WAITING,
        UNCHANGED,
    ]
    spreads = []

    async def result(name):
        return Turn(list=name, outcome=outcomes[len(spreads)])

    monkeypatch.setattr(made, "_turn", result)
    monkeypatch.setattr(acknowledging.random, "random", lambda: 0.0)
    monkeypatch.setattr(sources.random, "uniform", lambda *span: spreads.append(span) or 0.0)
    made.apply()
    spreads.clear()
    pauses = [await jobs.work() for _ in outcomes]
    assert pauses == [
        AGAIN_S, 2 * AGAIN_S, 4 * AGAIN_S, 8 * AGAIN_S, 16 * AGAIN_S, EVERY_S, EVERY_S, AGAIN_S, BESIDE_S, AGAIN_S, EVERY_S,
    ]  # fmt: skip
    assert set(spreads) == {(-SPREAD, SPREAD)}


@pytest.mark.parametrize(("failures", "most_s"), [(1, AGAIN_S), (2, 2 * AGAIN_S), (100, EVERY_S)])
def test_half_of_a_pause_is_by_chance(failures, most_s):
    drawn = [backoff_s(failures, EVERY_S) / most_s for _ in range(500)]
    assert 0.5 <= min(drawn) < 0.6
    assert 0.9 < max(drawn) <= 1.0


@pytest.mark.parametrize(
    ("rejected", "then", "kept"),
    [
        (7, {"outcome": LOADED}, False),
        (7, {"outcome": UNCHANGED}, False),
        (7, {"outcome": ELSEWHERE}, True),
        (7, {"outcome": WAITING, "reached": True}, True),
        (7, {"outcome": WAITING, "reached": True, "reason": "base"}, False),
        (7, {"outcome": UNREACHED, "reason": "base"}, True),
        (None, {"outcome": WAITING, "reached": True}, False),
        (None, {"outcome": UNREACHED}, True),
    ],
)
def test_a_rejection_stays_until_something_later_is_accepted(made, rejected, then, kept):
    made.apply()
    refusal = Turn(list="stolen", outcome=REFUSED, reason="range", rejected=rejected)
    made.count(refusal)
    first = made.rejected["stolen"]
    assert (first.serial, first.reason) == (rejected, "range")
    made.count(refusal)
    assert made.rejected["stolen"] is first, "the time is that of the first"
    made.count(Turn(list="stolen", **then))
    assert ("stolen" in made.rejected) is kept

"""Child processes: how they end, start again, and are ended. Real forks, nothing of the register in them."""

import signal
import time

import pytest
from node import until

from eir.daemon import children
from eir.daemon.children import Children, Ended
from eir.errors import ConfigError, EirError, Problem, SetupFault


@pytest.fixture(autouse=True)
def blocked():
    """Children's ends are waited for, as the supervisor does."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


@pytest.fixture
def told():
    return []


@pytest.fixture
def parent(told):
    return Children(report=lambda event, **fields: told.append((event, fields)))


def ended(parent):
    return until(parent.reap)


def stands_still():
    time.sleep(60)
    return 0


def raises(fault):
    def main():
        raise fault

    return main


@pytest.mark.parametrize(
    ("main", "status", "said"),
    [
        (lambda: 0, 0, ""),
        (lambda: 7, 7, ""),
        (raises(EirError("no room")), 1, "eir: no room\n"),
        (raises(SetupFault("no folder")), 2, "eir: no folder\n"),
        (raises(ConfigError((Problem("eir.yaml", 3, "unknown key"),))), 2, "eir: eir.yaml:3: unknown key\n"),
        (raises(ZeroDivisionError("by 0")), 1, "eir: the process one ends: ZeroDivisionError: by 0\n"),
    ],
)
def test_what_a_process_ends_with(parent, capfd, main, status, said):
    pid = parent.fork("one", main)
    assert ended(parent) == [Ended("one", pid, status)]
    assert capfd.readouterr().err == said


def test_a_process_that_is_not_to_be_started_again_is_not(parent, told):
    parent.fork("front", lambda: 1)
    ended(parent)
    assert (parent.wait_s > 60, told) == (True, [])


def test_the_pause_before_a_restart_doubles_until_a_process_runs_steadily(parent, told, monkeypatch):
    monkeypatch.setattr(children, "RESTART_S", 0.01)

    def start():
        parent.fork("worker-0", lambda: 1, restart=start)

    start()
    for restarts in range(4):
        if restarts == 3:
            monkeypatch.setattr(children, "STEADY_S", -1.0)
        assert ended(parent)[0].status == 1
        until(lambda: parent.wait_s == 0)
        parent.start_due()
        assert parent.restarts == restarts + 1
    assert parent.stop(5)
    assert [(event, fields["process"], fields["restart_in_s"]) for event, fields in told] == [
        ("process_ended", "worker-0", pause) for pause in (0.01, 0.02, 0.04, 0.01)
    ]


def test_while_no_other_runs_one_is_started_again_soon(parent, monkeypatch):
    """However often they died: the pauses of two that die again and again never leave nobody for longer than that."""
    monkeypatch.setattr(children, "RESTART_S", 30.0)
    parent.fork("front", stands_still)
    parent.fork("worker-0", lambda: 1, restart=lambda: None)
    pid = parent.fork("worker-1", stands_still, restart=lambda: None)
    assert ended(parent)[0].name == "worker-0"
    assert 29 < parent.wait_s <= 30
    children.kill(pid, signal.SIGKILL)
    assert ended(parent)[0].name == "worker-1"
    assert parent.wait_s <= children.ALONE_S
    assert parent.stop(5)


def test_stop_ends_all_and_starts_none_again(parent, told):
    parent.fork("front", stands_still)
    parent.fork("worker-0", stands_still, restart=pytest.fail)
    assert parent.stop(5)
    assert (parent.reap(), told) == ([], [])


def test_the_oldest_is_told_first_and_may_tell_the_others(parent, monkeypatch):
    """So the listeners are closed before the first peer is sent away."""
    first, later = parent.fork("front", stands_still), parent.fork("worker-0", stands_still)
    told = []
    send = children.kill
    monkeypatch.setattr(children, "kill", lambda pid, number: (told.append((pid, first in parent._running)), send(pid, number)))
    assert parent.stop(5)
    assert told == [(first, True), (later, False)]


def test_a_process_that_outlives_its_time_is_killed(parent, told, tmp_path):
    deaf = tmp_path / "deaf"

    def hears_nothing():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        deaf.touch()
        return stands_still()

    pid = parent.fork("worker-0", hears_nothing, restart=pytest.fail)
    parent.fork("worker-1", stands_still)
    until(deaf.exists)
    assert not parent.stop(3)  # long enough for the other one to end on a busy host
    ((event, fields),) = told
    assert (event, fields["process"], fields["pid"]) == ("killed", "worker-0", pid)
    with pytest.raises(ProcessLookupError):
        children.os.kill(pid, 0)

"""Every cell of the watchdog table of RFC 3539, appendix A, with a clock of our own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eir.wire.diameter.watchdog import TABLE, Watchdog, WatchdogAction, WatchdogEvent, WatchdogStatus

I, O, S, D, R = (  # noqa: E741 - as in the RFC
    WatchdogStatus.INITIAL,
    WatchdogStatus.OKAY,
    WatchdogStatus.SUSPECT,
    WatchdogStatus.DOWN,
    WatchdogStatus.REOPEN,
)
TW = 30.0


def watchdog(status, *, pending=False, num_dwa=0, jitter=lambda: 0.0):
    made = Watchdog(TW, 0.0, jitter, status)
    made.pending = pending
    made.num_dwa = num_dwa
    return made


# RFC 3539 appendix A, in its order: state, event, actions → new state. Timer rows by Pending and NumDWA.
ROWS = [
    (O, "dwa", WatchdogAction.NONE, O, True), (O, "other", WatchdogAction.NONE, O, True),
    (S, "dwa", WatchdogAction.NONE, O, True), (S, "other", WatchdogAction.NONE, O, True),
    (R, "dwa", WatchdogAction.NONE, R, False), (R, "dwa, NumDWA 1", WatchdogAction.NONE, R, False),
    (R, "dwa, NumDWA 2", WatchdogAction.NONE, O, False), (R, "other", WatchdogAction.NONE, R, False),
    (I, "dwa", WatchdogAction.NONE, I, False), (I, "other", WatchdogAction.NONE, I, False),
    (D, "dwa", WatchdogAction.NONE, D, False), (D, "other", WatchdogAction.NONE, D, False),
    (O, "timer, pending", WatchdogAction.NONE, S, True), (O, "timer", WatchdogAction.SEND, O, True),
    (S, "timer", WatchdogAction.CLOSE, D, True), (S, "timer, pending", WatchdogAction.CLOSE, D, True),
    (I, "timer", WatchdogAction.CONNECT, I, True), (D, "timer", WatchdogAction.CONNECT, D, True),
    (R, "timer, pending, NumDWA -1", WatchdogAction.CLOSE, D, True), (R, "timer, pending", WatchdogAction.NONE, R, True),
    (R, "timer", WatchdogAction.SEND, R, True),
    (O, "down", WatchdogAction.CLOSE, D, True), (S, "down", WatchdogAction.CLOSE, D, True), (R, "down", WatchdogAction.CLOSE, D, True),
    (I, "up", WatchdogAction.NONE, O, True), (D, "up", WatchdogAction.SEND, R, True),
]  # fmt: skip


@pytest.mark.parametrize(("status", "event", "action", "then", "sets_timer"), ROWS)
def test_row(status, event, action, then, sets_timer):
    what, _, given_state = event.partition(", ")
    num_dwa = int(given_state.rpartition(" ")[2]) if "NumDWA" in given_state else 0
    dog = watchdog(status, pending="pending" in given_state or what == "dwa", num_dwa=num_dwa)
    before = dog.deadline
    if what == "timer":
        found = dog.timer(before)
    else:
        event = {
            "dwa": WatchdogEvent.DWA,
            "other": WatchdogEvent.OTHER,
            "up": WatchdogEvent.CONNECTED,
            "down": WatchdogEvent.DISCONNECTED,
        }[what]
        found = dog.handle(event, 7.0)
    assert (found, dog.status) == (action, then)
    assert (dog.deadline != before) is sets_timer
    if what == "dwa":
        assert not dog.pending
    if action is WatchdogAction.SEND:
        assert dog.pending


def test_every_cell_is_there():
    assert set(TABLE) == {(status, event) for status in WatchdogStatus for event in WatchdogEvent}


def test_tw_has_a_least_value_and_jitter():
    assert Watchdog(1.0, 100.0, lambda: 0.0).deadline == 106
    assert Watchdog(30.0, 100.0, lambda: -2.0).deadline == 128
    drawn = iter([1.0, -1.0, 2.0])
    dog = Watchdog(30.0, 0.0, lambda: next(drawn), WatchdogStatus.OKAY)
    assert dog.deadline == 31
    dog.handle(WatchdogEvent.OTHER, 10.0)
    assert dog.deadline == 41
    dog.timer(41.0)
    assert dog.deadline == 41 + 29


def test_retime():
    dog = watchdog(O)
    dog.retime(TW, 10.0)
    assert dog.deadline == TW
    dog.retime(10.0, 10.0)
    assert dog.deadline == 20
    dog.retime(2.0, 10.0)
    assert dog.deadline == 16


def test_a_silent_peer_is_asked_suspected_and_closed():
    dog = watchdog(I)
    dog.handle(WatchdogEvent.CONNECTED, 0.0)
    assert [(dog.timer(now), dog.status) for now in (30.0, 60.0, 90.0)] == [
        (WatchdogAction.SEND, O), (WatchdogAction.NONE, S), (WatchdogAction.CLOSE, D),
    ]  # fmt: skip


def test_a_failed_peer_has_to_answer_three_times():
    dog = watchdog(D)
    assert dog.handle(WatchdogEvent.CONNECTED, 0.0) is WatchdogAction.SEND
    for now in (30.0, 60.0):
        dog.handle(WatchdogEvent.DWA, now - 1)
        assert dog.status is R
        assert dog.timer(now) is WatchdogAction.SEND
    dog.handle(WatchdogEvent.DWA, 61.0)
    assert dog.status is O


def test_a_reopening_peer_that_misses_twice_is_closed():
    dog = watchdog(D)
    dog.handle(WatchdogEvent.CONNECTED, 0.0)
    assert (dog.timer(30.0), dog.status) == (WatchdogAction.NONE, R)
    assert (dog.timer(60.0), dog.status) == (WatchdogAction.CLOSE, D)


def test_a_late_answer_starts_the_count_anew():
    dog = watchdog(D)
    dog.handle(WatchdogEvent.CONNECTED, 0.0)
    dog.timer(30.0)
    answers = 0
    while dog.status is R:
        dog.handle(WatchdogEvent.DWA, 31.0)
        answers += 1
    assert answers == 4


@given(
    st.lists(st.tuples(st.sampled_from(["timer", *WatchdogEvent]), st.floats(0.1, 20))), st.sampled_from(WatchdogStatus)
)
def test_any_order_of_events(steps, status):
    dog = watchdog(status, jitter=lambda: 1.5)
    now = 0.0
    for event, wait in steps:
        now += wait
        if event == "timer":
            now = max(now, dog.deadline)
            before, pending = dog.status, dog.pending
            action = dog.timer(now)
            assert dog.deadline > now
            assert action is not WatchdogAction.SEND or (not pending and before in {O, R})
        elif event in {WatchdogEvent.CONNECTED, WatchdogEvent.DISCONNECTED, WatchdogEvent.DWA, WatchdogEvent.OTHER}:
            action = dog.handle(event, now)
        else:
            continue
        assert (action is WatchdogAction.CLOSE) <= (dog.status is D)
        assert dog.deadline <= now + TW + 2

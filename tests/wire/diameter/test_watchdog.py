"""Every cell of the watchdog table of RFC 3539, appendix A, with a clock of our own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eir.wire.diameter.watchdog import TABLE, Action, Event, Status, Watchdog

I, O, S, D, R = Status.INITIAL, Status.OKAY, Status.SUSPECT, Status.DOWN, Status.REOPEN  # noqa: E741 - as in the RFC
TW = 30.0


def watchdog(status, *, pending=False, num_dwa=0, jitter=lambda: 0.0):
    made = Watchdog(TW, 0.0, jitter, status)
    made.pending = pending
    made.num_dwa = num_dwa
    return made


# RFC 3539 appendix A, in its order: state, event, actions → new state. Timer rows by Pending and NumDWA.
ROWS = [
    (O, "dwa", Action.NONE, O, True), (O, "other", Action.NONE, O, True),
    (S, "dwa", Action.NONE, O, True), (S, "other", Action.NONE, O, True),
    (R, "dwa", Action.NONE, R, False), (R, "dwa, NumDWA 1", Action.NONE, R, False),
    (R, "dwa, NumDWA 2", Action.NONE, O, False), (R, "other", Action.NONE, R, False),
    (I, "dwa", Action.NONE, I, False), (I, "other", Action.NONE, I, False),
    (D, "dwa", Action.NONE, D, False), (D, "other", Action.NONE, D, False),
    (O, "timer, pending", Action.NONE, S, True), (O, "timer", Action.SEND, O, True),
    (S, "timer", Action.CLOSE, D, True), (S, "timer, pending", Action.CLOSE, D, True),
    (I, "timer", Action.CONNECT, I, True), (D, "timer", Action.CONNECT, D, True),
    (R, "timer, pending, NumDWA -1", Action.CLOSE, D, True), (R, "timer, pending", Action.NONE, R, True),
    (R, "timer", Action.SEND, R, True),
    (O, "down", Action.CLOSE, D, True), (S, "down", Action.CLOSE, D, True), (R, "down", Action.CLOSE, D, True),
    (I, "up", Action.NONE, O, True), (D, "up", Action.SEND, R, True),
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
        event = {"dwa": Event.DWA, "other": Event.OTHER, "up": Event.CONNECTED, "down": Event.DISCONNECTED}[what]
        found = dog.handle(event, 7.0)
    assert (found, dog.status) == (action, then)
    assert (dog.deadline != before) is sets_timer
    if what == "dwa":
        assert not dog.pending
    if action is Action.SEND:
        assert dog.pending


def test_every_cell_is_there():
    assert set(TABLE) == {(status, event) for status in Status for event in Event}


def test_tw_has_a_least_value_and_jitter():
    assert Watchdog(1.0, 100.0, lambda: 0.0).deadline == 106
    assert Watchdog(30.0, 100.0, lambda: -2.0).deadline == 128
    drawn = iter([1.0, -1.0, 2.0])
    dog = Watchdog(30.0, 0.0, lambda: next(drawn), Status.OKAY)
    assert dog.deadline == 31
    dog.handle(Event.OTHER, 10.0)
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
    dog.handle(Event.CONNECTED, 0.0)
    assert [(dog.timer(now), dog.status) for now in (30.0, 60.0, 90.0)] == [
        (Action.SEND, O), (Action.NONE, S), (Action.CLOSE, D),
    ]  # fmt: skip


def test_a_failed_peer_has_to_answer_three_times():
    dog = watchdog(D)
    assert dog.handle(Event.CONNECTED, 0.0) is Action.SEND
    for now in (30.0, 60.0):
        dog.handle(Event.DWA, now - 1)
        assert dog.status is R
        assert dog.timer(now) is Action.SEND
    dog.handle(Event.DWA, 61.0)
    assert dog.status is O


def test_a_reopening_peer_that_misses_twice_is_closed():
    dog = watchdog(D)
    dog.handle(Event.CONNECTED, 0.0)
    assert (dog.timer(30.0), dog.status) == (Action.NONE, R)
    assert (dog.timer(60.0), dog.status) == (Action.CLOSE, D)


def test_a_late_answer_starts_the_count_anew():
    dog = watchdog(D)
    dog.handle(Event.CONNECTED, 0.0)
    dog.timer(30.0)
    answers = 0
    while dog.status is R:
        dog.handle(Event.DWA, 31.0)
        answers += 1
    assert answers == 4


@given(st.lists(st.tuples(st.sampled_from(["timer", *Event]), st.floats(0.1, 20))), st.sampled_from(Status))
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
            assert action is not Action.SEND or (not pending and before in {O, R})
        elif event in {Event.CONNECTED, Event.DISCONNECTED, Event.DWA, Event.OTHER}:
            action = dog.handle(event, now)
        else:
            continue
        assert (action is Action.CLOSE) <= (dog.status is D)
        assert dog.deadline <= now + TW + 2

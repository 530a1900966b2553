"""The time by which rows end: it never goes back and does not believe a jump at once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eir.record.clock import BELIEVED_AFTER_S, JUMP_S, TrustedClock

START = 1_700_000_000.0

WALKS = {
    "even": ([(0, 0), (1, 1), (2, 2)], [0, 1, 2]),
    "a step back keeps the time": ([(0, 0), (10, 10), (5, 11), (11, 17)], [0, 10, 10, 11]),
    "small steps ahead are taken": ([(0, 0), (60, 1), (61, 2)], [0, 60, 61]),
    "a jump ahead is not": ([(0, 0), (JUMP_S * 5, 1), (JUMP_S * 5 + 1, 2)], [0, 1, 2]),
    "a jump that is taken back": ([(0, 0), (10**7, 1), (2, 2), (3, 3)], [0, 1, 2, 3]),
    "a jump that is kept is believed": (
        [(0, 0), (10**7, 1), (10**7 + BELIEVED_AFTER_S, 1 + BELIEVED_AFTER_S)],
        [0, 1, 10**7 + BELIEVED_AFTER_S],
    ),
}


@pytest.mark.parametrize("name", WALKS)
def test_walks(name):
    shown, expected = WALKS[name]
    clock = TrustedClock()
    assert [clock.now(START + wall, monotonic) - START for wall, monotonic in shown] == expected


def test_a_clock_that_is_behind_the_last_time_seen():
    clock = TrustedClock(START)
    assert clock.now(0, 5) == START
    assert clock.now(1, 6) == START
    assert clock.now(START + 100, 7) == START + 100


def test_a_start_with_a_clock_that_is_far_ahead_of_the_last_time_seen():
    clock = TrustedClock(START)
    assert clock.now(START + 86400, 5) == START
    assert clock.jumped
    assert clock.now(START + 86401, 6) == START + 1
    assert clock.now(START + 86400 + BELIEVED_AFTER_S, 5 + BELIEVED_AFTER_S) == START + 86400 + BELIEVED_AFTER_S
    assert TrustedClock(START).now(START + JUMP_S, 5) == START + JUMP_S  # a restart


def test_it_says_that_it_does_not_believe_a_jump():
    clock = TrustedClock()
    clock.now(START, 0)
    assert not clock.jumped
    clock.now(START + 10**6, 1)
    assert clock.jumped
    clock.now(START + 2, 2)
    assert not clock.jumped


@given(st.lists(st.tuples(st.floats(0, 2e9), st.floats(0, 1e5))))
def test_it_never_goes_back(shown):
    clock, monotonic, last = TrustedClock(), 0.0, 0.0
    for wall, passed in shown:
        monotonic += passed
        now = clock.now(wall, monotonic)
        assert now >= last
        last = now

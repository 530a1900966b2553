"""The time by which rows end never goes back and does not believe a jump at once; a process that was stopped has not waited for the store."""

import asyncio

import pytest
from clock import Clock
from hypothesis import given
from hypothesis import strategies as st

from eir.errors import StoreError
from eir.lists.record.clock import ACCEPTED_AFTER_S, JUMP_S, TrustedClock, await_store

START = 1_700_000_000.0

WALKS = {
    "even": ([(0, 0), (1, 1), (2, 2)], [0, 1, 2]),
    "a step back keeps the time": ([(0, 0), (10, 10), (5, 11), (11, 17)], [0, 10, 10, 11]),
    "small steps ahead are taken": ([(0, 0), (60, 1), (61, 2)], [0, 60, 61]),
    "a jump ahead is not": ([(0, 0), (JUMP_S * 5, 1), (JUMP_S * 5 + 1, 2)], [0, 1, 2]),
    "a jump that is taken back": ([(0, 0), (10**7, 1), (2, 2), (3, 3)], [0, 1, 2, 3]),
    "a jump that is kept is believed": (
        [(0, 0), (10**7, 1), (10**7 + ACCEPTED_AFTER_S, 1 + ACCEPTED_AFTER_S)],
        [0, 1, 10**7 + ACCEPTED_AFTER_S],
    ),
}


def test_the_difference_to_a_clock_that_was_set_back():
    clock = TrustedClock()
    clock.now(START, 0)
    clock.now(START - 3600, 5)
    assert (clock.difference_s(START - 3600), clock.difference_s(START + 1)) == (3600, 1)


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
    assert clock.now(START + 86400 + ACCEPTED_AFTER_S, 5 + ACCEPTED_AFTER_S) == START + 86400 + ACCEPTED_AFTER_S
    assert TrustedClock(START).now(START + JUMP_S, 5) == START + JUMP_S  # a restart


def test_a_jump_of_the_clock_is_reported():
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


async def test_a_store_that_does_not_answer_is_given_up():
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(StoreError, match=r"within 0\.1 s") as raised:
        await await_store(asyncio.sleep(60), 0.1, tick_s=0.02)
    assert raised.value.cause == "timeout"
    assert loop.time() - began > 0.09


async def test_while_the_process_stands_still_no_time_passes():
    clock = Clock()

    async def late():
        await asyncio.sleep(0.05)
        clock.forward(30)  # as SIGSTOP does
        await asyncio.sleep(0.05)
        return "there"

    assert await await_store(late(), 5) == "there"


async def test_what_failed_while_the_process_stood_still_is_not_the_stores():
    clock = Clock()

    async def given_up(still_s):
        await asyncio.sleep(0.05)
        clock.forward(still_s)
        raise StoreError("timeout", "the client waited too long")

    for still_s, cause in ((1.5, "stood_still"), (0.0, "timeout")):
        with pytest.raises(StoreError, match="the client waited too long") as raised:
            await await_store(given_up(still_s), 60, stopped_s=1.0)
        assert raised.value.cause == cause


async def test_answers_and_errors_of_the_store_pass_and_no_task_remains():
    async def refused():
        await asyncio.sleep(0)
        raise StoreError("refused", "no")

    with pytest.raises(StoreError, match="no"):
        await await_store(refused(), 0.1)
    waiting = asyncio.create_task(await_store(asyncio.sleep(60), 60))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting

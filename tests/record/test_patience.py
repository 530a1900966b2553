"""How long the store is waited for: a process that was stopped finds its answers late, and that is not the store's fault."""

import asyncio
import time

import pytest
from clock import TURN_S, Clock

from eir.errors import StoreError
from eir.record.clock import in_time


async def test_a_store_that_does_not_answer_is_given_up():
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(StoreError, match=r"within 0\.1 s") as raised:
        await in_time(asyncio.sleep(60), 0.1, tick_s=0.02)
    assert raised.value.cause == "timeout"
    assert loop.time() - began > 0.09


async def test_a_host_that_stands_still_takes_no_time_from_a_test():
    loop = asyncio.get_running_loop()
    began = loop.time()
    time.sleep(10 * TURN_S)  # noqa: ASYNC251
    await asyncio.sleep(0)
    assert loop.time() - began <= 2 * TURN_S


async def test_while_the_process_stands_still_no_time_passes():
    clock = Clock()

    async def late():
        await asyncio.sleep(0.05)
        clock.forward(30)  # as SIGSTOP does
        await asyncio.sleep(0.05)
        return "there"

    assert await in_time(late(), 5) == "there"


async def test_what_failed_while_the_process_stood_still_is_not_the_stores():
    clock = Clock()

    async def given_up(still_s):
        await asyncio.sleep(0.05)
        clock.forward(still_s)
        raise StoreError("timeout", "the client waited too long")

    for still_s, cause in ((1.5, "stood_still"), (0.0, "timeout")):
        with pytest.raises(StoreError, match="the client waited too long") as raised:
            await in_time(given_up(still_s), 60, stopped_s=1.0)
        assert raised.value.cause == cause


async def test_what_the_store_says_goes_through_and_nothing_is_left():
    async def refused():
        await asyncio.sleep(0)
        raise StoreError("refused", "no")

    with pytest.raises(StoreError, match="no"):
        await in_time(refused(), 0.1)
    waiting = asyncio.create_task(in_time(asyncio.sleep(60), 60))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting

"""Between dispatcher and worker: messages, questions, and connections handed over. Both ends in one process, real sockets."""

import asyncio
import os
import resource
import socket
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire import until

from eir.daemon import channel
from eir.daemon.channel import Channel, ChannelError, hand_over, pair, take_over


@asynccontextmanager
async def ends():
    """Two channels that are each other's other end."""
    here, there = pair()
    first, second = await Channel.over(here.stream), await Channel.over(there.stream)
    try:
        yield first, second
    finally:
        for each in (first, second):
            each.close()
        here.packets.close()
        there.packets.close()


async def answering(side, answer):
    """Answer what the other side asks; collect what it tells."""
    told = []
    async for message in side.messages():
        if "ask" in message:
            answer(message)
        else:
            told.append(message)
    return told


async def hears(side):
    """Read what comes, so that answers reach whoever asked."""
    async for _ in side.messages():
        pass


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(st.lists(st.dictionaries(st.text().filter(lambda key: key != "answer"), json_values), max_size=20))
@settings(max_examples=25, deadline=None)
def test_what_is_sent_arrives_in_order(messages):
    async def carry():
        async with ends() as (here, there):
            for message in messages:
                here.send(message)
            here.close()
            return [message async for message in there.messages()]

    assert asyncio.run(carry()) == messages


async def test_a_message_longer_than_any_buffer():
    async with ends() as (here, there):
        here.send({"did": "x" * 3_000_000})
        here.close()
        assert [len(message["did"]) async for message in there.messages()] == [3_000_000]


async def test_questions_may_cross_and_be_answered_in_any_order():
    async with ends() as (here, there):
        waiting = []

        def later(question):
            waiting.append(question)
            if len(waiting) == 3:
                for each in reversed(waiting):
                    there.answer(each, each["value"] * 2)

        tasks = [
            asyncio.create_task(answering(there, later)),
            asyncio.create_task(answering(here, lambda question: here.answer(question, "other way"))),
        ]
        asked = await asyncio.gather(*(here.ask("double", value=value) for value in (1, 2, 3)), there.ask("what"))
        assert asked == [2, 4, 6, "other way"]
        here.send({"did": "end"})
        here.close()
        assert await tasks[0] == [{"did": "end"}]
        tasks[1].cancel()


async def test_a_question_that_is_answered_by_no():
    async with ends() as (here, there):
        reading = [asyncio.create_task(hears(here))]
        reading.append(asyncio.create_task(answering(there, lambda question: there.answer(question, error="no such thing"))))
        with pytest.raises(ChannelError, match="no such thing"):
            await here.ask("thing")
        for task in reading:
            task.cancel()


async def test_no_answer_in_time(monkeypatch):
    monkeypatch.setattr(channel, "ANSWER_S", 0.05)
    async with ends() as (here, there):
        heard = []
        reading = [asyncio.create_task(hears(here)), asyncio.create_task(answering(there, heard.append))]
        with pytest.raises(ChannelError, match=r"no answer to thing in 0\.05 s"):
            await here.ask("thing")
        there.answer(heard[0], "too late")  # and it is nobody's
        monkeypatch.setattr(channel, "ANSWER_S", 5)
        late = asyncio.create_task(here.ask("another"))
        await until(lambda: len(heard) == 2)
        there.answer(heard[1], "in time")
        assert await late == "in time"
        for task in reading:
            task.cancel()


async def test_an_end_that_is_gone():
    async with ends() as (here, there):
        reading = asyncio.create_task(hears(here))
        asked = asyncio.create_task(here.ask("thing"))
        await asyncio.sleep(0)
        there.close()
        with pytest.raises(ChannelError, match="gone"):
            await asked
        await reading
        for _ in range(3):
            here.send({"did": "nothing"})  # lost, and no error


@pytest.fixture
def packets():
    """Both ends of the pair that carries connections."""
    here, there = pair()
    yield here.packets, there.packets
    here.close()
    there.close()


@pytest.fixture
def connection():
    """Both ends of a TCP connection: the client's, and the one that was accepted."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        accepted, _ = listener.accept()
        with accepted:
            yield client, accepted


def test_a_connection_changes_hands(packets, connection):
    client, accepted = connection
    assert take_over(packets[1]) is None
    assert hand_over(packets[0], 7, 1 << 31, accepted)
    accepted.close()  # the copy on its way keeps it open
    client.sendall(b"early")
    handed = take_over(packets[1])
    assert handed[:2] == (7, 1 << 31)
    with handed.connection as taken:
        assert not taken.getblocking()
        assert taken.recv(9) == b"early"
        taken.send(b"back")
        assert client.recv(9) == b"back"
    assert client.recv(9) == b""
    assert take_over(packets[1]) is None


def test_nobody_to_hand_to(packets, connection):
    packets[1].close()
    assert not hand_over(packets[0], 0, 0, connection[1])
    assert take_over(packets[0]) is None


def test_one_that_takes_nothing(packets, connection):
    for _ in range(10_000):
        if not hand_over(packets[0], 0, 0, connection[1]):
            break
    else:
        pytest.fail("there is room without end")


def test_no_descriptor_left_to_take_with(packets, connection):
    client, accepted = connection
    assert hand_over(packets[0], 3, 10, accepted)
    assert hand_over(packets[0], 4, 11, accepted)
    accepted.close()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        assert take_over(packets[1]) == (3, 10, None)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    handed = take_over(packets[1])
    assert handed[:2] == (4, 11)
    handed.connection.close()
    assert client.recv(1) == b""

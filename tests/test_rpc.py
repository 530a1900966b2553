"""Between front and worker: calls, questions, and connections handed over. Both ends in one process, real sockets."""

import asyncio
import os
import resource
import socket
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eir.daemon import rpc
from eir.daemon.rpc import RpcError, RpcLink, pair, pass_on, take_over
from eir.errors import EirError


@asynccontextmanager
async def ends():
    """Two links that are each other's other end."""
    here, there = pair()
    first, second = await RpcLink.over(here.stream), await RpcLink.over(there.stream)
    try:
        yield first, second
    finally:
        for each in (first, second):
            each.close()
        here.packets.close()
        there.packets.close()


@asynccontextmanager
async def serving(side, *, faults=None, **handlers):
    """Have one side's calls handled; faults of handlers are collected."""
    task = asyncio.create_task(side.serve(handlers, failed=lambda what, fault: (faults if faults is not None else []).append((what, fault))))
    try:
        yield task
    finally:
        task.cancel()


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(st.lists(values, max_size=20))
@settings(max_examples=25)
def test_what_is_told_arrives_in_order(told):
    async def carry():
        async with ends() as (here, there):
            heard = []
            for each in told:
                here.tell("hear", each)
            here.close()
            await there.serve({"hear": heard.append}, failed=pytest.fail)
            return heard

    assert asyncio.run(carry()) == told


async def test_a_call_longer_than_any_buffer():
    async with ends() as (here, there):
        heard = []
        here.tell("hear", "x" * 3_000_000)
        here.close()
        await there.serve({"hear": heard.append}, failed=pytest.fail)
        assert list(map(len, heard)) == [3_000_000]


async def test_questions_may_cross():
    async with ends() as (here, there), serving(there, double=lambda value: value * 2), serving(here, what=lambda: "other way"):
        asked = await asyncio.gather(*(here.ask("double", value) for value in (1, 2, 3)), there.ask("what"))
        assert asked == [2, 4, 6, "other way"]


async def test_a_question_that_is_answered_by_no():
    def refuse():
        raise EirError("no such thing")

    async with ends() as (here, there), serving(there, thing=refuse), serving(here):
        with pytest.raises(RpcError, match="no such thing"):
            await here.ask("thing")


async def test_a_handler_that_fails_costs_nobody_the_next_call():
    faults = []
    async with ends() as (here, there), serving(there, faults=faults, divide=lambda by: 1 // by), serving(here):
        with pytest.raises(RpcError, match=r"divide failed \(ZeroDivisionError\)"):
            await here.ask("divide", 0)
        with pytest.raises(RpcError, match="surprise failed"):
            await here.ask("surprise")
        assert await here.ask("divide", 1) == 1
    assert [(what, type(fault)) for what, fault in faults] == [("divide", ZeroDivisionError), ("surprise", KeyError)]


async def test_no_answer_in_time(monkeypatch):
    async with ends() as (here, there), serving(here):
        monkeypatch.setattr(rpc, "ANSWER_S", 0.05)
        with pytest.raises(RpcError, match=r"no answer to double in 0\.05 s"):
            await here.ask("double", 1)
        monkeypatch.setattr(rpc, "ANSWER_S", 5)
        asked = asyncio.create_task(here.ask("double", 2))
        async with serving(there, double=lambda value: value * 2):  # answers the first one too, which is nobody's by now
            assert await asked == 4


async def test_an_end_that_is_gone():
    async with ends() as (here, there):
        reading = asyncio.create_task(here.serve({}, failed=pytest.fail))
        asked = asyncio.create_task(here.ask("thing"))
        await asyncio.sleep(0)
        there.close()
        with pytest.raises(RpcError, match="gone"):
            await asked
        await reading
        for _ in range(3):
            here.tell("nothing")  # lost, and no error


@pytest.fixture
def packets():
    """Both ends of the pair that carries descriptors."""
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
    pass_on(packets[0], (7, "as said"), accepted.fileno())
    accepted.close()  # the copy on its way keeps it open
    client.sendall(b"early")
    what, (descriptor,) = take_over(packets[1])
    assert what == (7, "as said")
    with socket.socket(fileno=descriptor) as taken:
        assert taken.recv(9) == b"early"
        taken.send(b"back")
        assert client.recv(9) == b"back"
    assert client.recv(9) == b""
    assert take_over(packets[1]) is None


def test_what_has_no_descriptor(packets):
    pass_on(packets[0], None)
    pass_on(packets[0], {"of": "x" * 205_000})
    assert take_over(packets[1]) == (None, [])
    assert take_over(packets[1]) == ({"of": "x" * 205_000}, [])


def test_nobody_to_hand_to(packets, connection):
    packets[1].close()
    with pytest.raises(BrokenPipeError):
        pass_on(packets[0], 0, connection[1].fileno())
    assert take_over(packets[0]) is None


def test_one_that_takes_nothing(packets, connection):
    with pytest.raises(BlockingIOError):
        [pass_on(packets[0], 0, connection[1].fileno()) for _ in range(10_000)]


def test_no_descriptor_left_to_take_with(packets, connection):
    client, accepted = connection
    pass_on(packets[0], 3, accepted.fileno())
    pass_on(packets[0], 4, accepted.fileno())
    accepted.close()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        assert take_over(packets[1]) == (3, [])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    what, (taken,) = take_over(packets[1])
    assert what == 4
    os.close(taken)
    assert client.recv(1) == b""

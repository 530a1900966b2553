"""Between two processes of a node: calls, questions, and descriptors that go along. Both ends in one process, real sockets."""

import asyncio
import os
import resource
import socket
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated.node import until_async

from eir.errors import EirError
from eir.node.processes.channel import WAITING_MAX, Channel, ChannelError, pair


@asynccontextmanager
async def ends():
    """Two channels that are each other's other end."""
    first, second = map(Channel, pair())
    try:
        yield first, second
    finally:
        for each in (first, second):
            each.close()


@asynccontextmanager
async def serving(side, *, faults=None, **handlers):
    """Have one side's calls handled; faults of handlers are collected."""
    task = asyncio.create_task(
        side.serve(handlers, failed=lambda what, fault: (faults if faults is not None else []).append((what, fault)))
    )
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
def test_messages_arrive_in_order(told):
    async def carry():
        async with ends() as (here, there):
            heard = []
            for each in told:
                here.notify("hear", each)
            here.close()
            await there.serve({"hear": heard.append}, failed=pytest.fail)
            return heard

    assert asyncio.run(carry()) == told


async def test_the_last_message_arrives_although_an_earlier_one_was_left_unread():
    async with ends() as (here, there):
        heard = []
        there.notify("nobody reads this")
        here.notify("hear", "last words")
        here.close()
        await there.serve({"hear": heard.append}, failed=pytest.fail)
        assert heard == ["last words"]


async def test_a_call_longer_than_any_buffer():
    async with ends() as (here, there):
        heard = []
        here.notify("hear", "x" * 3_000_000)
        here.notify("hear", "y")
        async with serving(there, hear=heard.append):
            await until_async(lambda: len(heard) == 2)
        assert list(map(len, heard)) == [3_000_000, 1]


async def test_questions_may_cross():
    async with (
        ends() as (here, there),
        serving(there, double=lambda value: value * 2),
        serving(here, what=lambda: "other way"),
    ):
        asked = await asyncio.gather(*(here.ask("double", value) for value in (1, 2, 3)), there.ask("what"))
        assert asked == [2, 4, 6, "other way"]


async def test_a_question_that_is_answered_by_no():
    def refuse():
        raise EirError("no such thing")

    async with ends() as (here, there), serving(there, thing=refuse), serving(here):
        with pytest.raises(ChannelError, match="no such thing"):
            await here.ask("thing")


async def test_a_handler_that_fails_costs_nobody_the_next_call():
    faults = []
    async with ends() as (here, there), serving(there, faults=faults, divide=lambda by: 1 // by), serving(here):
        with pytest.raises(ChannelError, match=r"divide failed \(ZeroDivisionError\)"):
            await here.ask("divide", 0)
        with pytest.raises(ChannelError, match="surprise failed"):
            await here.ask("surprise")
        assert await here.ask("divide", 1) == 1
    assert [(what, type(fault)) for what, fault in faults] == [("divide", ZeroDivisionError), ("surprise", KeyError)]


async def test_an_answer_that_takes_its_time_keeps_nobody_waiting():
    may = asyncio.Event()

    async def wait():
        await may.wait()
        return "at last"

    async with ends() as (here, there), serving(there, wait=wait, double=lambda value: value * 2), serving(here):
        asked = asyncio.create_task(here.ask("wait", patience_s=None))
        assert await here.ask("double", 1) == 2
        may.set()
        assert await asked == "at last"


async def test_what_is_done_for_an_end_that_is_gone_is_given_up():
    given_up = []

    async def wait():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            given_up.append(True)
            raise

    async with ends() as (here, there):
        here.notify("wait")
        here.close()
        await there.serve({"wait": wait}, failed=pytest.fail)
        await until_async(lambda: given_up)


async def test_no_answer_in_time():
    async with ends() as (here, there), serving(here):
        with pytest.raises(ChannelError, match=r"no answer to double in 0\.05 s"):
            await here.ask("double", 1, patience_s=0.05)
        asked = asyncio.create_task(here.ask("double", 2))
        async with serving(
            there, double=lambda value: value * 2
        ):  # answers the first one too, which is nobody's by now
            assert await asked == 4


async def test_an_end_that_is_gone():
    async with ends() as (here, there):
        reading = asyncio.create_task(here.serve({}, failed=pytest.fail))
        asked = asyncio.create_task(here.ask("thing"))
        await asyncio.sleep(0)
        there.close()
        with pytest.raises(ChannelError, match="closed the channel"):
            await asked
        await reading
        for _ in range(3):
            here.notify("nothing")  # lost, and no error


@pytest.fixture
def connection():
    """Both ends of a TCP connection: the client's, and the one that was accepted."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        accepted, _ = listener.accept()
        with accepted:
            yield client, accepted


async def test_a_connection_changes_hands(connection):
    client, accepted = connection
    async with ends() as (here, there):
        taken = []
        assert here.try_notify("take", "as said", carrying=[accepted])
        accepted.close()  # the copy on its way keeps it open
        client.sendall(b"early")
        async with serving(there, take=lambda *what: taken.append(what)):
            await until_async(lambda: taken)
        ((said, descriptor),) = taken
        assert said == "as said"
        with socket.socket(fileno=descriptor) as ours:
            assert ours.recv(9) == b"early"
            ours.send(b"back")
            assert client.recv(9) == b"back"
        assert client.recv(9) == b""


async def test_descriptors_go_with_a_call_of_any_length(connection):
    async with ends() as (here, there):
        taken = []
        here.notify("take", "x" * 300_000, carrying=connection)
        async with serving(there, take=lambda *what: taken.append(what)):
            await until_async(lambda: taken)
        ((said, *descriptors),) = taken
        assert len(said) == 300_000
        for descriptor, original in zip(descriptors, connection, strict=True):
            assert os.fstat(descriptor).st_ino == os.fstat(original.fileno()).st_ino
            os.close(descriptor)


async def test_nobody_to_hand_to(connection):
    async with ends() as (here, there):
        there.close()
        assert not here.try_notify("take", carrying=[connection[1]])


async def test_one_that_takes_nothing(connection):
    async with ends() as (here, there):
        while here.try_notify("take", carrying=[connection[1]]):
            pass
        here.notify("take")  # waits
        taken = []
        async with serving(there, take=taken.append):
            assert not here.try_notify("take", carrying=[connection[1]]), "it would come before what waits"


async def test_of_what_waits_under_one_name_the_last_is_sent():
    async with ends() as (here, there):
        heard = []
        for number in range(10_000):
            here.notify("hear", "a", number, latest="a")
            here.notify("hear", "b", number, latest="b")
        here.notify("hear", "c", 0)
        async with serving(there, hear=lambda *what: heard.append(what)):
            await until_async(lambda: heard[-1:] == [("c", 0)])
        assert heard[-3:] == [("a", 9_999), ("b", 9_999), ("c", 0)]
        assert len(heard) < 19_000


async def test_a_call_that_cannot_be_sent_at_once_takes_no_memory():
    """So calls that a flood of a peer causes cannot fill the memory of either end."""
    async with ends() as (here, there):
        handed = 0
        while here.try_notify("hear", handed):
            handed += 1
        here.notify("hear", "waits")
        assert not any(here.try_notify("hear", handed) for _ in range(1000))
        assert len(here._waiting) + len(here._parts) == 1
        heard = []
        async with serving(there, hear=heard.append):
            await until_async(lambda: heard[-1:] == ["waits"])
        assert heard == [*range(handed), "waits"]


async def test_an_end_that_takes_nothing_is_given_up_before_it_fills_the_memory():
    async with ends() as (here, there):
        async with serving(here) as serving_here:
            asked = asyncio.create_task(here.ask("hear", patience_s=None))
            await asyncio.sleep(0)
            most = 0
            for number in range(2 * WAITING_MAX):
                here.notify("hear", number)
                most = max(most, len(here._waiting))
            assert most == WAITING_MAX
            assert here.gone.is_set()
            with pytest.raises(ChannelError, match="closed the channel"):
                await asked
            await serving_here
        assert there.gone.is_set() is False


async def test_no_descriptor_left_to_take_with(connection):
    client, accepted = connection
    async with ends() as (here, there):
        taken = []
        for number in (3, 4):
            here.notify("take", number, carrying=[accepted])
        accepted.close()
        there_soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest_free = os.dup(0)
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
        try:
            heard = there._receiver.next()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (there_soft, hard))
        assert (heard[0].arguments, heard[1]) == ((3,), [None])
        async with serving(there, take=lambda *what: taken.append(what)):
            await until_async(lambda: taken)
        ((number, descriptor),) = taken
        assert number == 4
        os.close(descriptor)
        assert client.recv(1) == b""

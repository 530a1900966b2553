"""The trace that a manager keeps, without an answering process: who begins, reads and ends it, in whatever order."""

import asyncio

import pytest
from simulated.node import until_async

from eir.checks.trace import TraceFilter
from eir.errors import EirError
from eir.node.processes import tracing
from eir.node.processes.tracing import Tracing

DEVICE, OTHER = "00101001000001", "00101002000002"


class Played:
    """A Tracing, and the answering process that it tells what to look for: it answers when the test says so."""

    def __init__(self):
        self.sought, self.recorded, self.lines = [], [], []
        self.answers = asyncio.Event()
        self.answers.set()
        self.under_way = None
        """Records of the trace that is over, which the process sends before it answers."""
        self.renew()

    def renew(self, **times):
        """Another one, with these times."""
        self.tracing = Tracing(self._seek, self.recorded.append, lambda event, **_: self.lines.append(event), **times)

    async def _seek(self, sought):
        self.sought.append(sought)
        await self.answers.wait()
        if sought is None and self.under_way is not None:
            self.tracing.add(self.under_way)

    async def begin(self, imei=DEVICE, lasts_s=60.0):
        return await self.tracing.begin({"imei": imei, "lasts_s": lasts_s, "reason": "complaint 17"})

    async def read(self, number):
        return await self.tracing.read({"number": number})


@pytest.fixture
async def played(monkeypatch):
    async def asker():
        await asyncio.sleep(0)  # who asked is looked up in a thread
        return "somebody"

    monkeypatch.setattr(tracing, "asker", asker)
    return Played()


async def test_two_who_begin_in_one_moment(played):
    """One gets it, the other is told who has it."""
    first, second = await asyncio.gather(played.begin(), played.begin(OTHER), return_exceptions=True)
    assert isinstance(second, EirError), second
    assert "one trace at a time" in str(second)
    assert played.sought == [TraceFilter(int(DEVICE), "")]
    assert len(played.recorded) == 1
    played.tracing.add({"kind": "check"})
    assert await played.read(first) == {"records": [{"kind": "check"}], "over": False}


async def test_a_reader_of_a_trace_that_is_over_gets_nothing_of_the_next_one_and_does_not_end_it(played):
    """Its command was stopped for a while, and its trace has ended meanwhile."""
    first = await played.begin(lasts_s=1e-9)
    second = await played.begin(OTHER)
    played.tracing.add({"kind": "check"})
    assert await played.read(first) == {"records": [], "over": True}
    await played.tracing.end({"number": first})
    assert await played.read(second) == {"records": [{"kind": "check"}], "over": False}
    await played.tracing.end({"number": second})
    assert (played.sought[-1], played.tracing.sought) == (None, None)
    assert await played.read(second) == {"records": [], "over": True}


async def test_late_records_of_an_ended_trace_are_not_shown_in_the_next_one(played):
    first = await played.begin()
    played.answers.clear()
    played.under_way = {"kind": "check"}
    ending = asyncio.create_task(played.tracing.end({"number": first}))
    beginning = asyncio.create_task(played.begin(OTHER))
    await until_async(lambda: played.sought[1:])
    played.answers.set()
    await ending
    second = await beginning
    played.tracing.add({"kind": "another"})
    assert await played.read(second) == {"records": [{"kind": "another"}], "over": False}


async def test_a_reader_that_is_gone(played):
    """The trace ends, whether the reader went after it had begun or before it heard that it had."""
    played.renew(idle_s=-1.0)
    await played.begin()
    await played.tracing.end_if_due()
    assert (played.sought[-1], played.lines) == (None, ["traced", "trace_ended"])
    played.answers.clear()
    beginning = asyncio.create_task(played.begin())
    await until_async(lambda: played.sought[-1] is not None)
    beginning.cancel()
    await asyncio.gather(beginning, return_exceptions=True)
    played.answers.set()
    await played.tracing.end_if_due()
    assert (played.sought[-1], played.tracing.sought) == (None, None)


async def test_a_reader_that_waits_hears_at_once_that_it_is_over(played):
    played.renew(read_s=float("inf"))
    number = await played.begin()
    reading = asyncio.create_task(played.read(number))
    await asyncio.sleep(0)
    await played.tracing.end({"number": number})
    assert await reading == {"records": [], "over": True}

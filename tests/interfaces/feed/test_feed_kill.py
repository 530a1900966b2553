"""kill -9 at every step of what a register feeds: each row that was answered is there, and a row that is sent again is taken.

A child feeds two lists over several transactions and writes down each answer at once; it kills itself when it is about to do a step
(tests/doomed.py). What a node has afterwards is proved by generation, digest and history.
"""

import asyncio
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

import pytest
from doomed import CASES, fork
from simulated.patience import PROGRAM_S

from eir.interfaces.feed.feed_writer import FeedWriter
from eir.lists.changes.local import ADD, REMOVE, added_by
from eir.lists.changes.local_entries import parse_entries
from eir.lists.follow.follower import Follower
from eir.lists.images.index import Index
from eir.lists.record.history import chain_faults
from eir.lists.record.settings import DEVICES, PAIRS, ListSettings

LISTS = {
    name: ListSettings(name=name, kind=kind, local=True) for name, kind in (("blocked", DEVICES), ("bound", PAIRS))
}
DEVICES_FED = [f"3500000{n % 3}00000{n}" for n in range(8)]
IMSI = "001010000000001"
TESTS = Path(__file__).parents[2]
SHORT_STEP = 9
"""The short form dies at each ninth step: once or twice in each transaction."""


def rows():
    """What is sent, burst by burst: (what, list, entry)."""
    devices = parse_entries(DEVICES, DEVICES_FED)
    pairs = parse_entries(PAIRS, DEVICES_FED[:3], imsis=[IMSI])
    yield [(ADD, "blocked", entry) for entry in devices[:5]] + [(ADD, "bound", entry) for entry in pairs]
    yield [(REMOVE, "blocked", entry) for entry in devices[:2]] + [(ADD, "blocked", entry) for entry in devices[5:]]
    yield [(ADD, "blocked", devices[0]), (REMOVE, "bound", pairs[0])]


def borders():
    """How many rows are there after each transaction: one of a burst has the rows that do the same to the same list."""
    number = 0
    for burst in rows():
        before = None
        for what, name, _ in burst:
            if (what, name) != before:
                yield number
            number, before = number + 1, (what, name)
    yield number


async def feed(store, answered):
    """Send all of it, each burst when the one before is answered; `answered` is told each row's number and status."""
    writer = FeedWriter(store, LISTS, now=lambda: datetime.now(UTC), failed=fail)
    working, numbers = asyncio.create_task(writer.run()), count()

    def send(what, name, entry):
        number, made = next(numbers), asyncio.get_running_loop().create_future()

        def done(status):
            answered(number, status)
            made.set_result(status)

        writer.add(what, entry, name=name, who="register", reason="fed", done=done)
        return made

    for burst in rows():
        await asyncio.gather(*(send(*row) for row in burst))
    working.cancel()
    await store.close()


def fail(fault):
    raise fault


def die_at(case, step, answers):
    """A child that feeds and dies at a step; what it was answered, by the row's number, and whether it got through."""

    def work():
        with answers.open("wb", buffering=0) as file:
            asyncio.run(feed(case.doomed(step), lambda number, status: file.write(f"{number} {status}\n".encode())))

    _, status = os.waitpid(fork(work), 0)
    assert status in {0, signal.SIGKILL}, f"step {step}"
    said = dict(map(int, line.split()) for line in answers.read_text().splitlines())
    return said, status == 0


def held(case):
    """What a node that starts now answers from, by list; proved, and what the history says."""

    async def run():
        store, index = case.open(), Index({name: each.kind for name, each in LISTS.items()})
        follower = Follower(store, index, report=lambda *_, **__: None, on_switch=lambda *_: None)
        await follower.start()
        assert not follower.errors, follower.errors
        await store.append_pending()
        records = [record async for batch in store.records() for record in batch]
        assert not list(chain_faults(records, await store.folds(), await store.ledger()))
        for name, settings in LISTS.items():
            state = await store.state(name)
            events = await store.history(name)
            assert len(events) == (state.generation if state else 0), "each transaction is on record, once"
            assert {entry[1:] for entry in there(index, name)} <= set(added_by(events, settings.kind))
        found = {name: there(index, name) for name in LISTS}
        await store.close()
        return found

    def there(index, name):
        wanted, lists = {entry for burst in rows() for _, each, entry in burst if each == name}, index.lists[name]
        if lists.state is None:
            return set()
        return {
            entry for entry in wanted if (lists.binds(entry.key, entry.imsi) if entry.imsi else lists.holds(entry.key))
        }

    return asyncio.run(run())


def after(numbers):
    """What is there once the rows with these numbers were taken."""
    found, number = {name: set() for name in LISTS}, count()
    for burst in rows():
        for what, name, entry in burst:
            if next(number) in numbers:
                (found[name].add if what == ADD else found[name].discard)(entry)
    return found


def each_step(kind, folder, stride):
    """Run by the process that forks; prints how many rows were answered before each death."""
    sent = sum(map(len, rows()))
    for step in count(1, stride):
        room = Path(folder) / str(step)
        room.mkdir()
        case = CASES[kind](room)
        answered, through = die_at(case, step, room / "answers")
        found = held(case)
        assert found in [after(range(number)) for number in borders() if number >= len(answered)], f"step {step}"
        print(len(answered))
        again, whole = die_at(case, 0, room / "again")
        assert whole
        assert len(again) == sent, "what is sent again is taken"
        assert held(case) == after(range(sent))
        if through:
            return


@pytest.mark.long
@pytest.mark.parametrize("stride", [SHORT_STEP, 1])
@pytest.mark.parametrize("kind", CASES)
def test_each_row_that_was_answered_is_there(kind, stride, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", f"import test_feed_kill; test_feed_kill.each_step({kind!r}, {str(tmp_path)!r}, {stride})"],
        cwd=Path(__file__).parent, env=os.environ | {"PYTHONPATH": f"{TESTS}:{TESTS.parent / 'scripts'}"}, capture_output=True, text=True, timeout=PROGRAM_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answered = [*map(int, done.stdout.split())]
    assert answered == sorted(answered)
    assert (answered[0], answered[-1]) == (0, sum(map(len, rows())))
    assert len(set(answered)) > 3

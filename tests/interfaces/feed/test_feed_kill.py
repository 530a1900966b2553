"""kill -9 at every step of what a register feeds: each row that was answered is there, and a row that is sent again is taken.

A child feeds two lists over several transactions and writes down each answer at once; it kills itself when it is about to do a step
(tests/doomed.py). What the store has afterwards is proved by the digests of base, changes and head.
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
from eir.lists.changes.local_entries import parse_entries
from eir.lists.changes.local_rows import ADD, REMOVE, keys_of_entry
from eir.lists.changes.local_writer import LocalWriter
from eir.lists.log.reader import read_content
from eir.lists.record.kept_content import changes_of_rows
from eir.lists.record.settings import DEVICES, PAIRS, ListSettings
from eir.lists.table.columns import SECONDS

LISTS = {
    name: ListSettings(name=name, kind=kind, local=True) for name, kind in (("blocked", DEVICES), ("bound", PAIRS))
}
DEVICES_FED = [f"3500000{n % 3}00000{n}" for n in range(8)]
IMSI = "001010000000001"
TESTS = Path(__file__).parents[2]
SHORT_STEP = 9
"""The short form dies at each ninth step: once or twice in each transaction."""


def rows_sent():
    """What is sent, burst by burst: (what, list, entry)."""
    devices = parse_entries(DEVICES, DEVICES_FED)
    pairs = parse_entries(PAIRS, DEVICES_FED[:3], imsis=[IMSI])
    yield [(ADD, "blocked", entry) for entry in devices[:5]] + [(ADD, "bound", entry) for entry in pairs]
    yield [(REMOVE, "blocked", entry) for entry in devices[:2]] + [(ADD, "blocked", entry) for entry in devices[5:]]
    yield [(ADD, "blocked", devices[0]), (REMOVE, "bound", pairs[0])]


def borders():
    """How many rows are there after each transaction: one of a burst has the rows that do the same to the same list."""
    number = 0
    for burst in rows_sent():
        before = None
        for what, name, _ in burst:
            if (what, name) != before:
                yield number
            number, before = number + 1, (what, name)
    yield number


async def feed(store, answered):
    """Send all of it, each burst when the one before is answered; `answered` is told each row's number and status."""
    local = LocalWriter(store, LISTS, now=lambda: datetime.now(UTC), is_recorded=recorded)
    writer = FeedWriter(local, failed=fail)
    working, numbers = asyncio.create_task(writer.run()), count()

    def send(what, name, entry):
        number, made = next(numbers), asyncio.get_running_loop().create_future()

        def done(status):
            answered(number, status)
            made.set_result(status)

        writer.add(what, entry, name=name, who="register", reason="fed", done=done)
        return made

    for burst in rows_sent():
        await asyncio.gather(*(send(*row) for row in burst))
    working.cancel()
    await store.close()


def fail(fault):
    raise fault


async def recorded(*_):
    return True


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
    """Entries of each list in the store, as a node that starts now reads them: verified by every digest, each transaction once in the log."""

    async def run():
        store = case.open()
        heads = await store.heads()
        found = {name: set() for name in LISTS}
        for name, head in heads.items():
            content = await read_content(store, name, head)
            log = await store.log(name, 0)
            assert [entry.change.generation for entry in log] == [*range(1, head.generation + 1)]
            rows = content.table.rows()
            assert len(await changes_of_rows(store, name, rows)) == len(rows), "the log says who added each row"
            present = {*zip(rows.keys.tolist(), rows.column(SECONDS).tolist(), strict=True)}
            wanted = {entry for burst in rows_sent() for _, each, entry in burst if each == name}
            found[name] = {entry for entry in wanted if keys_of_entry(entry) in present}
            assert len(found[name]) == len(present)
        await store.close()
        return found

    return asyncio.run(run())


def after(numbers):
    """What is there once the rows with these numbers were taken."""
    found, number = {name: set() for name in LISTS}, count()
    for burst in rows_sent():
        for what, name, entry in burst:
            if next(number) in numbers:
                (found[name].add if what == ADD else found[name].discard)(entry)
    return found


def each_step(kind, folder, stride):
    """Run by the process that forks; prints how many rows were answered before each death."""
    sent = sum(map(len, rows_sent()))
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
    assert (answered[0], answered[-1]) == (0, sum(map(len, rows_sent())))
    assert len(set(answered)) > 3

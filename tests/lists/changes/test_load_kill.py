"""kill -9 at every step of a load: wholly the old list or wholly the new one, and the next load succeeds.

A process that has everything imported forks a child for each load (it loads no release itself: polars' threads do not live
through a fork). The child kills itself when it is about to do a step, or is killed from outside at some time: at store
level before each statement or command of a switch, at release level at each report of progress.
"""

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from doomed import CASES, Die, fork
from simulated.patience import PROGRAM_S
from simulated.releases import NAME, NOW, Agency
from simulated.store_content import event, pages_of, state

from eir.lists.changes.load import load_release
from eir.lists.follow.follower import Follower
from eir.lists.images.index import Index
from eir.lists.record.history import chain_faults

OLD = [f"{35_000_000 + n:08d}{n:06d}" for n in range(50)]
NEW = [f"{35_000_000 + n:08d}{n + 1:06d}" for n in range(5, 55)]
ANY_TIME = 8
TESTS = Path(__file__).parents[2]


def load(store, manifest, lists, progress=None):
    async def run():
        try:
            return await load_release(manifest, lists, store, who="tester@host", now=NOW, force=True, progress=progress)
        finally:
            await store.close()

    return asyncio.run(run())


def put(store, rows):
    async def run():
        try:
            pages = pages_of(map(int, rows))
            current = await store.state(NAME)
            seen = 0 if current is None else current.generation
            await store.replace(
                NAME, state(pages, serial=seen + 1), pages, seen=seen, event=event(NAME, serial=seen + 1)
            )
        finally:
            await store.close()

    return asyncio.run(run())


def in_force(case):
    """What a node that starts now answers from: the keys, proved by generation and digest."""

    async def run():
        store, index = case.open(), Index({NAME: "devices"})
        follower = Follower(store, index, report=lambda *_, **__: None, on_switch=lambda *_: None)
        await follower.start()
        assert not follower.errors, follower.errors
        await check_history(store)
        await store.close()
        return list(index.lists[NAME])

    return asyncio.run(run())


async def check_history(store):
    """Each load that is or was in force is on record, once, and the record holds."""
    generation = (await store.state(NAME)).generation
    serials = [each.serial for each in await store.history(NAME)]
    assert serials == sorted({*serials})
    assert len(serials) == generation
    await store.append_pending()
    records = [record async for batch in store.records() for record in batch]
    assert len(records) == generation
    assert not list(chain_faults(records, await store.folds(), await store.ledger()))


def each_step(level, kind, folder):
    """Run by the process that forks; prints what came of it. Steps: 1, 2, … until a load gets through, then some times."""
    case = CASES[kind](folder)
    agency = Agency(Path(folder))
    rows = [OLD, NEW]
    keys = [[int(row) for row in sorted(each)] for each in rows]

    def begin(number, at=0):
        if level == "store":
            return fork(lambda: put(case.doomed(at) if at else case.open(), rows[number]))
        manifest = agency.release(rows[number], serial=agency.serial + 1)
        die = Die(at)
        return fork(lambda: load(case.open(), manifest, agency.lists, lambda stage, *_: die(stage)))

    def load_whole(number):
        _, status = os.waitpid(begin(number), 0)
        assert status == 0, "a load that nobody kills succeeds"
        assert in_force(case) == keys[number]

    load_whole(0)
    outcomes = {"old": 0, "new": 0}
    now, step, at_any_time, delays = 0, 0, 0, random.Random(3)
    while at_any_time < ANY_TIME:
        step += 1
        child = begin(1 - now, 0 if at_any_time else step)
        if at_any_time:
            time.sleep(delays.random() / (5 if level == "release" else 20))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert status in {0, signal.SIGKILL}, f"step {step}"
        at_any_time += bool(at_any_time) or status == 0
        found = in_force(case)
        assert found in keys, f"step {step}: neither the old list nor the new one"
        outcomes["old" if found == keys[now] else "new"] += 1
        if found == keys[now]:
            load_whole(1 - now)
        now = 1 - now
    print(outcomes["old"], outcomes["new"], step)


@pytest.mark.long
@pytest.mark.parametrize("level", ["store", "release"])
@pytest.mark.parametrize("kind", CASES)
def test_every_step(kind, level, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", f"import test_load_kill; test_load_kill.each_step({level!r}, {kind!r}, {str(tmp_path)!r})"],
        cwd=Path(__file__).parent, env=os.environ | {"PYTHONPATH": f"{TESTS}:{TESTS.parent / 'scripts'}"}, capture_output=True, text=True, timeout=PROGRAM_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    old, new, steps = map(int, done.stdout.split())
    assert old + new == steps > ANY_TIME + 3
    assert old > 3
    assert new > 0  # killed after the switch, or not in time

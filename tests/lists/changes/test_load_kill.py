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
from simulated.releases import NAME, NOW, Agency, load_release

from eir.lists.log.change import NO_CHANGE, first_break
from eir.lists.log.reader import read_content
from eir.lists.log.writer import ListUpdate, ListWriter
from eir.lists.table.columns import rows_of
from eir.lists.table.table import table_of

OLD = [f"{35_000_000 + n:08d}{n:06d}" for n in range(50)]
NEW = [f"{35_000_000 + n:08d}{n + 1:06d}" for n in range(5, 55)]
ANY_TIME = 8
TESTS = Path(__file__).parents[2]


def load(store, manifest, lists, progress):
    async def run():
        try:
            return await load_release(manifest, lists, store, now=NOW, force=True, progress=progress)
        finally:
            await store.close()

    return asyncio.run(run())


def put(store, rows):
    """Write these rows as a release, whole with a base and parts."""

    async def run():
        try:
            writer = ListWriter(store, NAME, "devices", "tester@host", keep=1)

            def make(content):
                serial = content.head.serial + 1
                table = table_of(rows_of([int(row) for row in rows]))
                return ListUpdate(what="load", table=table, state={"serial": serial, "highest_serial": serial})

            await writer.write(make)
        finally:
            await store.close()

    return asyncio.run(run())


def in_force(case):
    """What a node that starts now reads: the keys, proved by every digest; and each load is in the log once."""

    async def run():
        store = case.open()
        head = (await store.heads())[NAME]
        content = await read_content(store, NAME, head)
        changes = [entry.change for entry in await store.log(NAME, 0)]
        await store.close()
        assert first_break(changes, NO_CHANGE) is None
        serials = [change.serial for change in changes]
        assert serials == sorted({*serials})
        assert (len(changes), changes[-1].digest) == (head.generation, head.digest)
        return content.table.rows().keys.tolist()

    return asyncio.run(run())


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

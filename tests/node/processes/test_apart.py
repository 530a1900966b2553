"""Loads in processes of their own: what comes back from them, what ends them, and that it ends nothing else."""

import asyncio
import faulthandler
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard
from simulated.node import COMMAND, LISTED, children, is_gone, until_async
from simulated.releases import sign

from eir.errors import ReleaseRefused, StoreError
from eir.node.processes.apart import OOM_SCORE, load_apart, run_apart
from eir.node.processes.starter import Starter

MEMORY = 128 << 20


def score():
    return Path("/proc/self/oom_score_adj").read_text().strip()


async def work(job, channel):  # noqa: C901  # a row a job
    """A load that does what its job says."""
    match job:
        case "result":
            channel.notify("progress", "read", 1, 2)
            return {"pid": os.getpid(), "score": score()}
        case int():
            faulthandler.disable()
            os.kill(os.getpid(), job)
        case "hold":
            return len(bytearray(MEMORY // 2))
        case "grow":
            return [bytearray(16 << 20) for _ in range(9)]
        case "busy":
            while True:
                pass
        case "sleep":
            await asyncio.sleep(60)
        case "fault":
            raise KeyError("35209900176148")
        case "store":
            raise StoreError("full", "no space")
        case "disk":
            raise FileNotFoundError(2, "No such file")
        case "refuse":
            raise ReleaseRefused("serial", "not above 2", list_name="stolen", serial=2)
    return None


class Loads:
    """Has loads made, and knows the processes that made them."""

    def __init__(self, starter):
        self.starter = starter
        self.started = []

    async def start(self, *what):
        self.started.append(await self.starter.start(*what))
        return self.started[-1]

    async def make(self, job, progress=None):
        return await load_apart(self.start, work, job, memory_max=MEMORY, progress=progress)

    async def is_at_work(self):
        """The last one has begun; it says nothing of that."""
        pid = (await until_async(lambda: self.started))[-1].pid
        await until_async(lambda: Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == str(OOM_SCORE))


@pytest.fixture
async def loads():
    starter = Starter(__name__)
    yield Loads(starter)
    await starter.close()


async def test_a_load_returns_its_result(loads):
    seen = []
    said = await loads.make("result", lambda *done: seen.append(done))
    assert (said["pid"], said["score"], seen) == (loads.started[0].pid, str(OOM_SCORE), [("read", 1, 2)])
    again = await loads.make("result")
    assert again["pid"] != said["pid"]
    assert is_gone(said["pid"])
    assert score() != str(OOM_SCORE)


@pytest.mark.long(
    short=[
        "refuse-serial-not above 2",
        "grow-memory-limits.load_memory allows (134217728 bytes)",
        "6-crash-ended with signal 6",
    ]
)
@pytest.mark.parametrize(
    ("job", "reason", "detail"),
    [
        ("refuse", "serial", "not above 2"),
        ("grow", "memory", f"limits.load_memory allows ({MEMORY} bytes)"),
        ("fault", "fault", "KeyError"),
        (signal.SIGKILL, "killed", "journalctl -k"),
        (signal.SIGABRT, "crash", "ended with signal 6"),
        (signal.SIGSEGV, "crash", "ended with signal 11"),
        (signal.SIGALRM, "time", "more than 900 s"),
    ],
)
async def test_what_goes_wrong_is_a_refusal(loads, job, reason, detail):
    with pytest.raises(ReleaseRefused) as caught:
        await loads.make(int(job) if isinstance(job, signal.Signals) else job)
    assert caught.value.reason == reason
    assert detail in caught.value.detail
    assert "35209900176148" not in caught.value.detail
    assert (caught.value.list_name, caught.value.serial) == (("stolen", 2) if job == "refuse" else (None, None))
    assert await loads.make("hold") == MEMORY // 2  # the next one is made


async def test_what_is_no_fault_of_the_release_comes_through(loads):
    with pytest.raises(StoreError, match="no space") as caught:
        await loads.make("store")
    assert caught.value.cause == "full"
    with pytest.raises(FileNotFoundError) as missing:
        await loads.make("disk")
    assert missing.value.strerror == "No such file"


@pytest.mark.parametrize("job", ["sleep", "busy"])
async def test_a_load_ends_with_those_who_asked_for_it(loads, job):
    task = asyncio.create_task(loads.make(job))
    await loads.is_at_work()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await loads.started[0].ended() == 1, "by itself, and not because it was killed in the end"


ASKS = """
import asyncio, os, sys
sys.path[:0] = {folders!r}
from simulated.node import children
from test_apart import Loads, Starter

async def ask():
    loads = Loads(Starter("test_apart"))
    asking = asyncio.create_task(loads.make({job!r}))
    await loads.is_at_work()
    print(loads.started[0].pid, children(os.getpid())['starter'], flush=True)
    await asking

asyncio.run(ask())
"""


@pytest.mark.parametrize("job", ["sleep", "busy"])
async def test_where_those_who_asked_for_it_were_killed(job):
    code = ASKS.format(folders=[str(Path(__file__).parent), str(Path(__file__).parents[3] / "scripts")], job=job)
    asking = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=subprocess.PIPE)
    pids = [int(pid) for pid in (await asking.stdout.readline()).split()]
    asking.kill()
    await asking.communicate()
    assert len(pids) == 2
    await until_async(lambda: all(is_gone(pid) for pid in pids))


async def test_where_the_starter_was_killed(loads):
    """What it has started goes on, and there is another one for the next."""
    task = asyncio.create_task(loads.make("sleep"))
    await loads.is_at_work()
    before = children(os.getpid())["starter"]
    os.kill(before, signal.SIGKILL)
    await until_async(lambda: is_gone(before))
    assert (await loads.make("result"))["pid"] == loads.started[1].pid
    assert not is_gone(loads.started[0].pid)
    loads.started[0].kill(signal.SIGTERM)
    with pytest.raises(ReleaseRefused, match="ended with signal 15"):
        await task


async def test_what_is_no_load_is_held_to_no_limit(loads):
    said = await run_apart(loads.start, "inbox", work, "result", handlers={"progress": lambda *_: None})
    assert said["score"] == score()


def released(site, name, content, rows):
    """A signed release of one file that claims so many rows."""
    document = json.loads(site.release([LISTED]).read_bytes())
    document["files"] = [{
        "name": name, "role": "entries", "layout": "eir", "bytes": len(content), "rows": rows, "sha256": hashlib.sha256(content).hexdigest(),
    }]  # fmt: skip
    manifest = site.folder / "releases" / "stolen-1.manifest.json"
    manifest.with_name(name).write_bytes(content)
    manifest.write_text(json.dumps(document))
    sign(manifest, site.publisher.key)
    return manifest


MEASURED = """import resource, subprocess, sys
status = subprocess.run(sys.argv[1:]).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_maxrss, used.ru_utime + used.ru_stime)
sys.exit(status)"""
MILLION = zstandard.compress(b"35209900176148\n" * 10**6)
BOMB = zstandard.compress(b"imei\n") + MILLION * 200
LONG_RANGES = b"imei_from,imei_to\n" + b"".join(
    b"%08d000001,%08d999998\n" % (tac, tac + 998) for tac in range(10**7, 10**7 + 2000 * 999, 999)
)


@pytest.mark.long(short=["ranges.csv-content3-2000-range"])
@pytest.mark.parametrize(
    ("name", "content", "rows", "reason"),
    [
        ("bomb.csv.zst", BOMB, 200_000_000, "too_large"),
        ("bomb.csv.zst", BOMB, 150_000_000, "expanded"),
        ("bomb.csv.zst", BOMB, 1_000_000, "rows"),
        ("ranges.csv", LONG_RANGES, 2000, "range"),
    ],
)
def test_small_releases_that_would_cost_much(site, name, content, rows, reason):
    """Refused within 10 s of a processor and 300 MB, whatever they claim."""
    assert len(content) < 300_000
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *COMMAND, "load", released(site, name, content, rows)], env=site.environment(), cwd=site.folder,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert f"refused ({reason})" in done.stderr
    kilobytes, seconds = map(float, done.stdout.split())
    assert kilobytes < 300_000
    assert seconds < 10
    assert [event["detail"].partition(":")[0] for event in site.json("history")] == [reason]


def test_a_load_by_hand_is_held_to_the_memory_that_is_configured(site):
    site.configure(limits={"load_memory": "128MiB"})
    manifest = released(site, "many.csv", b"imei\n", 12_000_000)
    refused = site.eir("load", manifest, status=1).stderr
    assert "refused (too_large): its 12000000 rows take 240000000 bytes" in refused
    assert "limits.load_memory is 134217728: raise it" in refused

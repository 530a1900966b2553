"""Work in processes of its own: what comes back, what ends it, and that it ends nothing else."""

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

from eir.errors import EirError, StoreError
from eir.node.processes import apart, loading
from eir.node.processes.apart import OOM_SCORE, NoOutcome, WorkProcess, run_apart

MEMORY = 128 << 20


def score():
    return Path("/proc/self/oom_score_adj").read_text().strip()


async def work(job, emit):  # a row a job
    """Work that does what its job says."""
    match job:
        case "result":
            print("what a library prints is no result")
            emit("progress", "read", 1, 2)
            return {"pid": os.getpid(), "score": score()}
        case int():
            faulthandler.disable()
            os.kill(os.getpid(), job)
        case "keep":
            apart.kept = bytearray(MEMORY // 2)
            apart.GROWN_BYTES_MAX = MEMORY // 4
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
    return None


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a job in a process of its own, with a limit of memory as a load has it."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))

    async def by(job, *, memory_max=MEMORY, progress=lambda *_: None):
        process = WorkProcess("load", owned=tmp_path, memory_max=memory_max)
        try:
            return await process.run(work, job, handlers={"progress": progress})
        finally:
            await process.close()

    return by


@pytest.fixture
async def process(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    made = WorkProcess("load", owned=tmp_path, memory_max=MEMORY)
    yield made
    await made.close()


async def test_one_process_does_one_work_after_the_other(process):
    """After an error, an end or a work that leaves much memory behind, the next work has a process of its own."""
    handlers = {"progress": lambda *_: None}

    async def pid():
        return (await process.run(work, "result", handlers=handlers))["pid"]

    first = await pid()
    assert await pid() == first
    with pytest.raises(EirError, match="no space"):
        await process.run(work, "store")
    second = await pid()
    assert second != first
    with pytest.raises(NoOutcome):
        await process.run(work, int(signal.SIGKILL))
    third = await pid()
    assert third != second
    await process.run(work, "keep")
    assert await pid() != third
    assert is_gone(third)


async def load_process():
    return await until_async(lambda: children(os.getpid()).get("load"))


async def test_work_returns_its_result(run):
    seen = []
    said = await run("result", progress=lambda *done: seen.append(done))
    assert (said["score"], seen) == (str(OOM_SCORE), [("read", 1, 2)])
    again = await run("result")
    assert again["pid"] != said["pid"]
    assert is_gone(said["pid"])
    assert score() != str(OOM_SCORE)


async def test_work_that_is_no_load_is_held_to_no_limit(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    said = await run_apart("inbox", work, "result", owned=tmp_path, handlers={"progress": lambda *_: None})
    assert said["score"] == score()


@pytest.mark.parametrize(("job", "says"), [("store", "no space"), ("disk", "No such file"), ("fault", "KeyError")])
async def test_an_error_comes_through_as_its_text(run, job, says):
    with pytest.raises(EirError, match=says) as caught:
        await run(job)
    assert "35209900176148" not in str(caught.value)


@pytest.mark.long(short=["6"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT, signal.SIGSEGV])
async def test_an_end_without_a_result_is_named(run, number):
    with pytest.raises(NoOutcome, match=f"ended with signal {int(number)}") as caught:
        await run(int(number))
    assert caught.value.status == -number


@pytest.mark.parametrize(
    ("number", "reason", "detail"),
    [
        (signal.SIGKILL, "killed", "journalctl -k"), (signal.SIGABRT, "crash", "ended with signal 6"),
        (signal.SIGALRM, "time", "more than 900 s"),
    ],
)  # fmt: skip
def test_an_end_of_a_load_is_a_refusal(number, reason, detail):
    refused = loading._refusal_after(NoOutcome(-number), MEMORY)
    assert (refused.reason, detail in refused.detail) == (reason, True)


@pytest.mark.parametrize("job", ["sleep", "busy"])
async def test_work_ends_with_those_who_asked_for_it(run, job):
    task = asyncio.create_task(run(job))
    pid = await load_process()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert is_gone(pid)


ASKS = """
import asyncio, os, sys
from pathlib import Path
from test_apart import WorkProcess, children, until_async, work
async def ask():
    asking = asyncio.create_task(WorkProcess("load", owned=Path("."), memory_max={memory_max}).run(work, {job!r}))
    print(await until_async(lambda: children(os.getpid()).get("load")), flush=True)
    await asking
asyncio.run(ask())
"""


@pytest.mark.parametrize(("job", "memory_max"), [("sleep", None), ("busy", MEMORY)])
async def test_where_those_who_asked_for_it_were_killed(run, job, memory_max):  # noqa: ARG001 - for its environment
    code = ASKS.format(job=job, memory_max=memory_max)
    asking = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=subprocess.PIPE)
    pid = int(await asking.stdout.readline())
    asking.kill()
    await asking.communicate()
    await until_async(lambda: is_gone(pid))


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
        ("bomb.csv.zst", BOMB, 100_000_000, "expanded"),
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

"""Processes: how they are started, end, start again, and are ended. Real ones, nothing of the register in them."""

import asyncio
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from simulated.node import children, is_gone, until, until_async
from simulated.patience import PATIENCE_S

from eir.errors import ConfigError, EirError, Problem, SetupFault
from eir.node.processes import child
from eir.node.processes.channel import Channel, pair
from eir.node.processes.child import Child, Children, Starter
from eir.node.processes.process import run_process


def ends(_, status):
    return status


def raises(_, kind, *about):
    raise kind(*about)


def waits(end, *_):
    """Until its channel ends."""
    end.recv(1)
    return 0


def stands_still(end):
    end.send(b"x")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(60)
    return 0


def loses_its_descriptors(end):
    async def main(process):
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        process.fail("one", SetupFault("no file descriptor is left"))

    return run_process(end, main)


def answers(end):
    async def main(process):
        process.serve({"counters": lambda: {"eir_checks_total": {(): 1.0}}})
        await process.until_stopped()

    return run_process(end, main)


def open_in(pid):
    found = []
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed since
            found.append(str(each.readlink()))
    return found


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """A starter of processes that can import this file."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    return Begun(tmp_path)


class Begun(Starter):
    async def start(self, name, main, *arguments, **how):
        return await super().start(name, f"{__name__}:{main.__name__}", *arguments, **how)


@pytest.mark.long(short=["ends-given1-7-", r"raises-given5-1-eir: the process one ends: ZeroDivisionError: by 0\n"])
@pytest.mark.parametrize(
    ("main", "given", "status", "said"),
    [
        (ends, [0], 0, ""),
        (ends, [7], 7, ""),
        (raises, [EirError, "no room"], 1, "eir: no room\n"),
        (raises, [SetupFault, "no folder"], 2, "eir: no folder\n"),
        (raises, [ConfigError, (Problem("eir.yaml", 3, "unknown key"),)], 2, "eir: eir.yaml:3: unknown key\n"),
        (raises, [ZeroDivisionError, "by 0"], 1, "eir: the process one ends: ZeroDivisionError: by 0\n"),
    ],
)
async def test_what_a_process_ends_with(begun, capfd, main, given, status, said):
    process = await begun.start("one", main, *given)
    assert await process.ended() == status
    assert capfd.readouterr().err == said
    process.channel.close()


async def test_a_process_that_has_no_descriptor_at_its_end_logs_only_the_cause(begun, capfd):
    process = await begun.start("one", loses_its_descriptors)
    assert await process.ended() == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert "event=fault" in line
    assert "no file descriptor is left" in line
    process.channel.close()


async def test_a_process_is_ours_has_its_name_and_ends_with_its_channel(begun):
    process = await begun.start("one", waits)
    await until_async(lambda: children(os.getpid()).get("one") == process.pid)
    process.channel.close()
    assert await process.ended() == 0
    assert is_gone(process.pid)


async def test_it_has_what_was_handed_to_it_and_nothing_of_the_starter_or_of_others(begun):
    ours, theirs = pair()
    with ours, theirs:
        other = await begun.start("other", waits, carrying=[ours, theirs])
        process = await begun.start("one", waits, carrying=[theirs])
        mine = os.fstat(theirs.fileno()).st_ino
        # That, and its channel, once it has closed what is the starter's.
        await until_async(lambda: sum(each.startswith("socket:") for each in open_in(process.pid)) == 2)
        assert sum(each == f"socket:[{mine}]" for each in open_in(process.pid)) == 1
    for each in (other, process):
        each.channel.close()
        assert await each.ended() == 0


async def test_a_process_has_its_nice_value_and_a_lower_one_of_its_parent_does_not_count(begun):
    process = await begun.start("one", waits, nice=7)
    await until_async(lambda: os.getpriority(os.PRIO_PROCESS, process.pid) == 7)
    process.channel.close()
    assert await process.ended() == 0


def test_a_process_whose_parent_has_ended_ends(tmp_path, begun):  # noqa: ARG001 - for its environment
    code = (
        "import asyncio, os, test_child\n"
        "from pathlib import Path\n"
        f"async def go(): print((await test_child.Begun(Path({str(tmp_path)!r})).start('one', test_child.waits)).pid, flush=True); os._exit(0)\n"
        "asyncio.run(go())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    until(lambda: is_gone(int(done.stdout)))


class Kept:
    """Children of a node, their log lines, and their processes."""

    def __init__(self, begun):
        self.told = []
        self.renew()
        self.starter = begun
        self.started = []
        self.heard = []

    def renew(self, restart_s=0.01, **times):
        """Other children, with these times."""
        self.report = lambda event, **fields: self.told.append((event, fields))
        self.children = Children(report=self.report, restart_s=restart_s, **times)

    def keep(self, name, main, *arguments, **how):
        async def start():
            self.started.append(await self.starter.start(name, main, *arguments))
            return self.started[-1]

        self.child = self.build(name, start, **how)
        self.children.start(self.child)

    def build(self, name, start, **how):
        return Child(name, start, report=self.report, **how)


@pytest.fixture
async def kept(begun):
    made = Kept(begun)
    yield made
    for process in made.started:
        process.channel.close()
    await made.children.end(10)


async def test_the_pause_before_a_restart_doubles_until_a_process_runs_steadily(kept):
    for steady_s, pauses in ((60.0, (0.01, 0.02, 0.04)), (-1.0, (0.01, 0.01, 0.01))):
        kept.renew(steady_s=steady_s)
        kept.keep("one", ends, 1, serves=True)
        await until_async(lambda: kept.children.restarts.total() >= 3)
        assert await kept.children.end(60)
        told = [(event, fields["process"], fields["status"], fields["restart_in_s"]) for event, fields in kept.told]
        assert told[:3] == [("process_ended", "one", 1, pause) for pause in pauses]
        kept.told.clear()


async def test_the_pause_of_a_process_that_serves_has_a_limit(kept, monkeypatch):
    monkeypatch.setattr(child, "SERVING_RESTART_MAX_S", 0.02)
    kept.keep("answering", ends, 1, serves=True)
    await until_async(lambda: kept.children.restarts["answering"] >= 4)
    assert [fields["restart_in_s"] for _, fields in kept.told][:4] == [0.01, 0.02, 0.02, 0.02]


async def test_a_process_that_gives_no_sign_of_life_is_killed_and_another_comes(kept, monkeypatch):
    monkeypatch.setattr(child, "COUNTERS_S", 0.02)
    kept.keep("follower", answers)
    await until_async(kept.child.snapshot)
    kept.started[0].channel.answer_s = 0.1
    os.kill(kept.started[0].pid, signal.SIGSTOP)
    await until_async(lambda: len(kept.started) == 2)
    assert [(event, fields["process"]) for event, fields in kept.told] == [
        ("process_hung", "follower"),
        ("process_ended", "follower"),
    ]
    assert kept.told[1][1]["status"] == -signal.SIGKILL


async def test_a_start_for_which_the_host_has_no_room_is_tried_again(kept):
    """It has no descriptor left for a while."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        kept.keep("one", waits, serves=True)
        await until_async(lambda: len(kept.told) > 1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    await until_async(lambda: kept.started)
    assert [event for event, _ in kept.told][:2] == ["start_failed", "process_ended"]


async def test_the_end_starts_none_again(kept):
    kept.keep("follower", waits)
    kept.keep("one", waits, serves=True)
    await until_async(lambda: len(kept.started) == 2)
    kept.children.stop()
    for process in kept.started:
        process.channel.close()
    assert await kept.children.end(60)
    assert (len(kept.started), kept.told) == (2, [])


async def test_the_end_waits_for_no_child_that_does_not_run(kept):
    """One that is to be started again in an hour, and one whose start hangs."""
    kept.renew(restart_s=3600.0)
    kept.keep("one", ends, 1, serves=True)
    kept.children.start(kept.build("other", asyncio.Event().wait))
    await until_async(lambda: kept.told)
    assert await kept.children.end(0.2)
    assert not kept.children._keeping


async def test_a_process_that_outlives_its_time_is_killed(kept):
    kept.keep("one", stands_still)
    await until_async(lambda: len(kept.started) == 1)
    pid = kept.started[0].pid
    assert not await kept.children.end(0.2)
    ((event, fields),) = kept.told
    assert (event, fields["process"], fields["pid"]) == ("killed", "one", pid)
    assert is_gone(pid)


async def test_a_fault_in_seeing_to_a_process_ends_it_and_another_comes(kept):
    greeted = []

    async def start():
        kept.started.append(await kept.starter.start("one", waits))
        return kept.started[-1]

    def greet(process):
        greeted.append(process)
        if len(greeted) == 1:
            raise ValueError("35123456789012")

    kept.children.start(kept.build("one", start, greet=greet))
    await until_async(lambda: len(greeted) == 2)
    assert is_gone(greeted[0].pid)
    assert [event for event, _ in kept.told] == ["fault", "process_ended"]
    assert kept.told[0][1]["detail"].startswith(f"ValueError at {__file__}:"), "the text may hold an identifier"


async def test_the_end_is_a_good_one_where_only_the_record_had_to_be_killed(kept):
    """It may wait for a receiver of events: systemd would start a drained node again."""
    kept.keep("sightings", stands_still, is_spared=True)
    await until_async(lambda: len(kept.started) == 1)
    assert await kept.children.end(0.2)
    assert [event for event, _ in kept.told] == ["killed"]


class WaitsForADisk:
    """A process that no signal ends before its disk answers."""

    name, pid = "follower", 1 << 22

    def __init__(self):
        ours, self.theirs = pair()
        self.channel, self.disk, self.killed = Channel(ours), asyncio.Event(), []

    async def ended(self):
        await self.disk.wait()
        return -signal.SIGKILL

    def kill(self, number=signal.SIGKILL):
        self.killed.append(number)


async def test_the_end_waits_for_no_process_that_not_even_the_kernel_ends(kept):
    kept.renew(killed_s=0.01)
    process = WaitsForADisk()

    async def start():
        kept.started.append(process)
        return process

    kept.children.start(kept.build("follower", start, is_spared=True))
    await until_async(lambda: kept.started)
    try:
        async with asyncio.timeout(PATIENCE_S):
            assert await kept.children.end(0.05)
    finally:
        process.disk.set()
        process.theirs.close()
    assert process.killed == [signal.SIGKILL]


def test_a_node_whose_end_is_overdue_ends_whatever_hangs():
    """In a process of its own: the thread that is to end it would end the tests."""
    code = "import threading; from eir.node.processes.manager import end_within; end_within(0.01); threading.Event().wait()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert done.returncode == 1
    assert "event=killed reason=drain process=manager" in done.stderr

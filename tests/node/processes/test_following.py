"""The process that follows, and how lists get from it to the process that answers: when either hangs, ends or misses one."""

import asyncio
import os
import signal
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from simulated.node import LISTED, UNLISTED, children, until, until_async
from simulated.store_content import state
from simulated.wire import HOST
from test_answering import BLACK, WHITE, ask, crew, loaded  # noqa: F401  # fixtures
from test_manager import PID, PlayedProcess, lines, serving  # noqa: F401  # a fixture

from eir.lists.images.image import Image
from eir.lists.images.table_image import image_of
from eir.lists.table.columns import rows_of
from eir.lists.table.table import table_of
from eir.node.processes.channel import Channel, pair
from eir.node.processes.following import Following
from eir.node.processes.setup import Listed, send_list

FOLLOWING = Following(store_up=True, lost={}, from_copy=(), in_step_at=0.0)


def listed(name, *keys, serial=1, kind="devices"):
    table = table_of(rows_of(keys))
    return Listed(name, kind, state(table, serial=serial, generation=serial)), image_of(table)


class TestOnTheWay:
    """Over a channel, both ends in this process."""

    async def test_a_list_arrives_as_it_was(self):
        what, image = listed("a", 1, 2)
        here, there = map(Channel, pair())
        found = []
        send_list(here, what, image)
        here.close()
        await there.serve({"put_in_force": lambda *given: found.append(given)}, failed=pytest.fail)
        there.close()
        ((said, descriptor),) = found
        assert said == what
        again = Image.map(descriptor)
        assert list(again.keys(0.0)) == [1, 2]
        assert os.fstat(again.descriptor).st_ino == os.fstat(image.descriptor).st_ino, "the same memory"


class PlayedFollower:
    """The follower as the manager sees it."""

    async def start(self, starter):
        self.configured, self.given = [], []
        self.counted = {"eir_store_errors_total": {("timeout",): 3.0}}
        handlers = {
            "apply": self.configured.append, "counters": lambda: self.counted, "put_in_force": self.put_in_force,
            "complete": lambda: self.given.append("complete"),
        }  # fmt: skip
        self.process = PlayedProcess("follower", PID + 7, handlers)
        self.channel = self.process.there
        self.channel.notify("following", FOLLOWING)
        self.channel.notify("counted", self.counted)
        starter.played["follower"].put_nowait(self.process)
        await until_async(lambda: self.given and self.given[-1] == "complete")
        return self

    def put_in_force(self, what, *descriptors):
        self.given.append(what)
        for descriptor in descriptors:
            os.close(descriptor)

    async def end(self):
        self.process.end()


def names(player):
    """What it was given, each once: a list comes again where the manager asks what is there before it was taken."""
    return list(
        dict.fromkeys((what.name, what.state.serial) if isinstance(what, Listed) else what for what in player.lists)
    )


class TestManager:
    """With an answering process and a follower that a test plays."""

    @asynccontextmanager
    async def followed(self, site):
        async with serving(site, lists={name: {"signers": "signers"} for name in "ab"}) as node:
            follower = await PlayedFollower().start(node.starter)
            try:
                yield node, follower
            finally:
                await follower.end()

    @pytest.fixture(autouse=True)
    def heard(self, lines):  # noqa: F811  # a fixture
        return lines

    async def test_the_process_gets_every_list_and_a_successor_too(self, site):
        async with self.followed(site) as (node, follower):
            send_list(follower.channel, *listed("a", 1))
            send_list(follower.channel, *listed("b", 2))
            follower.channel.notify("complete")
            await until_async(lambda: names(node.player) == [("a", 1), ("b", 1), "complete"])
            send_list(follower.channel, *listed("a", 3, serial=2))
            await until_async(lambda: names(node.player)[3:] == [("a", 2)])
            await node.player.end()
            successor = await node.successor()
            await until_async(lambda: len(names(successor)) == 3)
            assert (sorted(names(successor)[:2]), names(successor)[2]) == ([("a", 2), ("b", 1)], "complete")

    async def test_what_the_process_does_not_have_is_handed_over_again(self, site):
        async with self.followed(site) as (node, follower):
            late = node.player
            late.misses = True
            send_list(follower.channel, *listed("a", 1))
            await until_async(lambda: names(late))
            before, late.misses = len(late.lists), False
            await until_async(lambda: len(late.lists) > before)
            assert set(names(late)) == {("a", 1)}

    async def test_a_list_that_the_configuration_does_not_have_or_has_as_another_kind(self, site):
        async with self.followed(site) as (node, follower):
            send_list(follower.channel, *listed("c", 1))
            send_list(follower.channel, *listed("a", 1, kind="pairs"))
            send_list(follower.channel, *listed("b", 1))
            await until_async(lambda: names(node.player) == [("b", 1)])

    async def test_a_list_that_the_manager_cannot_take_over_is_handed_in_again(self, site, heard):
        """A new follower hands the list in again, so that nobody answers by the list before for long."""
        async with self.followed(site) as (node, follower):
            one, other = pair()
            with one, other:
                follower.channel.notify("put_in_force", listed("a", 1)[0], carrying=[one])  # which is no memory
                await until_async(lambda: follower.process.killed)
            assert "image_failed" in {event for event, *_ in heard}
            await follower.end()
            successor = await PlayedFollower().start(node.starter)
            assert successor.given == ["complete"]
            send_list(successor.channel, *listed("a", 1))
            await until_async(lambda: names(node.player) == [("a", 1)])
            await successor.end()

    async def test_a_follower_in_the_place_of_another_gets_what_is_in_force_and_goes_on_counting(self, site, heard):
        async with self.followed(site) as (node, follower):
            send_list(follower.channel, *listed("a", 1))
            follower.channel.notify("complete")
            await until_async(lambda: len(names(node.player)) == 2)
            await until_async(lambda: _errors(node, 3))
            await follower.end()
            await until_async(lambda: any(event == "process_ended" for event, *_ in heard))
            found = await node.manager.overview.snapshot()
            assert found["eir_store_errors_total"] == {("timeout",): 3.0}
            assert (found["eir_store_up"], found["eir_store_lost_data"]) == ({(): 1.0}, {("a",): 0.0})
            again = await PlayedFollower().start(node.starter)
            try:
                assert [what.name for what in again.given if isinstance(what, Listed)] == ["a"]
                await until_async(lambda: _errors(node, 6))
            finally:
                await again.end()


def memory_of_lists(pid):
    """The memory files with lists that a process has mapped, by inode."""
    rows = [line.split() for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    return {row[4] for row in rows if row[5:6] == ["/memfd:eir-list"]}


MAPS_LATE = """
from pathlib import Path

import eir.node.processes.answering as answering
from eir.lists.images.image import Image, ImageError

class Late(Image):
    pass

def late(descriptor):
    image = Image.map(descriptor)
    if not Path({!r}).exists():
        raise ImageError("not yet")
    return image

Late.map = late
answering.Image = Late
"""
"""Body of a sitecustomize.py by which the answering process fails to map lists until a file is there."""


class TestNode:
    """Real processes."""

    async def test_processes_map_the_same_memory_and_a_new_one_has_it_at_once(self, crew, connect):  # noqa: F811  # a fixture
        running = crew.start()
        pids = children(running.pid) | {"manager": running.pid}
        shared = memory_of_lists(pids["answering"])
        assert len(shared) == 1
        assert memory_of_lists(running.pid) == memory_of_lists(pids["follower"]) == shared
        os.kill(pids["follower"], signal.SIGSTOP)
        os.kill(pids["answering"], signal.SIGKILL)
        await until_async(lambda: children(running.pid).get("answering", pids["answering"]) != pids["answering"])
        await until_async(lambda: memory_of_lists(children(running.pid)["answering"]) == shared)
        for host in (HOST, "mme2.localdomain"):
            assert await ask(await connect(running, host), LISTED, host) == BLACK
        os.kill(pids["follower"], signal.SIGCONT)

    async def test_a_follower_that_is_killed_comes_back_and_follows_on(self, crew, connect):  # noqa: F811  # a fixture
        running = crew.start()
        mme = await connect(running)
        killed = children(running.pid)["follower"]
        until(lambda: running.lines("list_in_force", serial="1"))  # a thread writes it
        os.kill(killed, signal.SIGKILL)
        assert [await ask(mme, imei) for imei in (LISTED, UNLISTED)] == [BLACK, WHITE]
        await asyncio.to_thread(crew.load, [UNLISTED], serial=2)
        until(lambda: running.lines("list_in_force", serial="2"))
        await until_async(lambda: _is(ask(mme, UNLISTED), BLACK))
        assert await ask(mme, LISTED) == WHITE
        assert running.metrics()["eir_process_restarts_total{process=answering}"] == 0
        assert [line["status"] for line in running.lines("process_ended", process="follower")] == ["-9"]
        assert [line["serial"] for line in running.lines("list_in_force")] == ["1", "2"], (
            "what was in force was not read again"
        )
        assert running.get("/ready") == (200, "ready\n")

    async def test_a_follower_that_hangs_is_replaced(self, crew, connect, altered):  # noqa: F811  # a fixture
        altered(
            "import eir.node.processes.channel, eir.node.processes.child\neir.node.processes.channel.ANSWER_S, eir.node.processes.child.HUNG_QUESTIONS = 0.2, 2\n"
        )
        running = crew.start()
        mme = await connect(running)
        os.kill(children(running.pid)["follower"], signal.SIGSTOP)
        await asyncio.to_thread(crew.load, [UNLISTED], serial=2)
        await until_async(lambda: running.lines("process_hung", process="follower"))
        await until_async(lambda: _is(ask(mme, UNLISTED), BLACK))

    async def test_a_list_that_could_not_be_mapped_is_handed_over_again(self, crew, connect, altered):  # noqa: F811  # a fixture
        may = crew.folder / "may"
        altered(MAPS_LATE.format(str(may)))
        running = crew.start()
        until(lambda: running.lines("lists_missing", lists="stolen"))
        may.touch()
        until(lambda: running.get("/ready") == (200, "ready\n"))
        assert running.lines("image_failed", list="stolen", detail="not yet")
        assert await ask(await connect(running), LISTED) == BLACK

    async def test_old_lists_are_let_go_although_nobody_asks(self, crew, connect):  # noqa: F811  # a fixture
        running = crew.start()
        mme = await connect(running)
        assert await ask(mme, LISTED) == BLACK
        pids = children(running.pid) | {"manager": running.pid}
        for serial in (2, 3):
            before = memory_of_lists(pids["answering"])
            await asyncio.to_thread(crew.load, [UNLISTED] if serial == 2 else [LISTED], serial=serial)
            for process in ("answering", "manager", "follower"):
                await until_async(
                    lambda p=process, old=before: (
                        (found := memory_of_lists(pids[p])) and len(found) == 1 and found != old
                    )
                )


async def _errors(node, wanted):
    return (await node.manager.overview.snapshot()).get("eir_store_errors_total") == {("timeout",): wanted}


async def _is(answer, wanted):
    return await answer == wanted

"""kill -9 of each kind of process, at each moment of a node's life: what is said of it in eir/README.md is what happens."""

import asyncio
import os
import re
import signal
from importlib import import_module
from inspect import signature
from pathlib import Path
from pkgutil import iter_modules

import pytest
from simulated.node import LISTED, TRACKED, children, is_gone, until, until_async
from simulated.wire import answer_to
from test_answering import BLACK, GREY, REALM, ROW, ask, crew, loaded  # noqa: F401  # fixtures

import eir.node.processes
from eir.node.observe.control import ControlError
from eir.node.observe.control import ask as control
from eir.wire.peers.settings import Limits
from eir.wire.web.passwords import user_line

KINDS = ("manager", "answering", "follower", "recorder")
"""Each kind that there is at any time; loads and turns come and go: tests/node/processes/test_apart.py and tests/lists/sources/test_inbox.py."""
COMES_BACK = ("answering", "follower", "recorder")
PAGE = Path(__file__).parents[3] / "eir" / "README.md"


@pytest.fixture
def node(crew, kind):  # noqa: F811  # a fixture
    """A host, with a record where that is about to lose its process; not serving yet."""
    record = {"sightings": {"window_s": 0.2}} if kind == "recorder" else {}
    crew.tune(Limits, close_after_dpa_s=2, duplicate_probe_s=0.5)
    crew.configure(policy={"rules": [ROW, {"list": "tracked", "answer": "greylisted"}]}, **record)
    return crew


def pid_of(running, kind):
    return running.pid if kind == "manager" else children(running.pid).get(kind)


def is_answering(running):
    return "the answering process does not answer" not in running.status()["troubles"]


async def killed(running, kind):
    """Kill it; the processes that there were."""
    there = children(running.pid)
    pid = await until_async(lambda: pid_of(running, kind))
    os.kill(pid, signal.SIGKILL)
    return there | {kind: pid}


async def goes_on(running, kind, there):
    """It is replaced, if it is to be, and nothing else is."""
    if kind in COMES_BACK:
        await until_async(lambda: children(running.pid).get(kind) not in {None, there[kind]})
        await until_async(lambda: running.lines("process_ended", process=kind, status=-9))
    for other, pid in there.items():
        if other not in {kind, "inbox", "load"}:
            assert pid_of(running, other) == pid, f"{other} is another one"


async def is_over(running, there):
    """The node has ended by the signal, and nothing of it is left."""
    assert await asyncio.to_thread(running.wait) == -signal.SIGKILL
    await until_async(lambda: all(is_gone(pid) for pid in there.values()))


async def answered(running, connect, imei, status):
    async def is_answered():
        try:
            client = await connect(running)
            return await ask(client, imei) == status
        except (OSError, EOFError, asyncio.IncompleteReadError, ControlError):
            return False

    await until_async(is_answered)


@pytest.mark.parametrize("kind", KINDS)
class TestKilled:
    @pytest.mark.long(short=["manager"])
    async def test_at_the_start(self, node, connect, kind):
        running = node.start(ready=False)
        there = await killed(running, kind)
        if kind == "manager":
            await is_over(running, there)
            running = node.start()
        await until_async(lambda: running.status()["listening"] and is_answering(running))
        await answered(running, connect, LISTED, BLACK)
        if kind == "recorder":
            await until_async(lambda: running.metrics()["eir_sightings_total"] > 0)

    @pytest.mark.long(short=["follower"])
    async def test_at_a_reload(self, node, connect, kind):
        """The node goes by the new configuration then, or by the old one."""
        running = node.start()
        node.configure(policy={"rules": [{**ROW, "answer": "greylisted"}]})
        reload = asyncio.create_task(asyncio.to_thread(_reloaded, node))
        there = await killed(running, kind)
        taken = await reload
        if kind == "manager":
            await is_over(running, there)
            running, taken = node.start(), True
        else:
            await goes_on(running, kind, there)
            await until_async(lambda: is_answering(running))
        await answered(running, connect, LISTED, GREY if taken else BLACK)

    @pytest.mark.long(short=["answering"])
    async def test_at_a_switch(self, node, connect, kind):
        running = node.start()
        load = asyncio.create_task(asyncio.to_thread(node.load, [TRACKED], list_name="tracked"))
        there = await killed(running, kind)
        await load
        if kind == "manager":
            await is_over(running, there)
            running = node.start()
        else:
            await goes_on(running, kind, there)
        await answered(running, connect, TRACKED, GREY)
        await answered(running, connect, LISTED, BLACK)

    @pytest.mark.long(short=["recorder"])
    async def test_at_the_stop(self, node, connect, kind):
        running = node.start()
        client = await connect(running)
        there = children(running.pid)
        running.signal(signal.SIGTERM)
        asked = await client.read()
        assert (asked.command, asked.number(273)) == (282, 0)
        victim = running.pid if kind == "manager" else there[kind]
        os.kill(victim, signal.SIGKILL)
        if kind != "answering":
            assert await ask(client, LISTED) == BLACK
            await client.send(answer_to(asked))
        assert await client.end() == []
        assert await asyncio.to_thread(running.wait) == (-signal.SIGKILL if kind == "manager" else 0)
        await until_async(lambda: all(is_gone(pid) for pid in there.values()))


def _reloaded(site):
    try:
        control(site.state, "reload")
    except ControlError:
        return False
    return True


def test_the_table_of_processes_is_what_a_node_starts(site):
    """By a node with every interface that has a process; the processes that come and go have their names from constants."""
    rows = [line.strip("| ").split(" | ") for line in _lines_of("### Processes")]
    table = {name: cells for cells in rows for name in re.findall(r"`eir-([a-z-]+)", cells[0])}
    package = eir.node.processes
    modules = {each.name: import_module(f"{package.__name__}.{each.name}") for each in iter_modules(package.__path__)}
    apart = {value for module in modules.values() for name, value in vars(module).items() if name.endswith("_PROCESS")}
    started = _started(site, table.keys() - apart - {"manager"})
    assert table.keys() == {"manager", *started, *apart}
    of = {name: re.findall(r"`eir/node/processes/(\w+)\.py`", cells[1])[-1] for name, cells in table.items()}
    assert len(set(of.values())) == 7
    for name, module in of.items():
        main = getattr(modules[module], "run", lambda: None)
        assert ("end" in signature(main).parameters) == (name in started), module


def _started(site, expected):
    """The names of the processes that a node has as soon as these are among them."""
    (site.folder / "users").write_text(f"{user_line('register', 'correct horse battery')}\n")
    feed = {"listen": "http://127.0.0.1:0", "users": "users", "from": "127.0.0.0/8", "lists": {"block": "own"}}
    rules = [{"list": "own", "answer": "blacklisted"}]
    site.configure(lists={"own": {"local": True}}, policy={"rules": rules}, sightings={"window_s": 0.2}, feed=feed)
    running = site.start()
    return until(lambda: expected <= (names := _names(running)) and names)


def _names(running):
    return {name.rstrip("-0123456789") for name in children(running.pid)}


def _lines_of(heading):
    """The rows of the table below it."""
    section = PAGE.read_text().partition(f"{heading}\n")[2].partition("\n#")[0]
    return [line for line in section.splitlines() if line.startswith("|")][2:]

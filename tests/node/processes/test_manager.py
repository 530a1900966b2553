"""The manager of a node in this process, with an answering process that a test plays: it is slow, silent, or not there."""

import asyncio
import os
import socket
from collections import defaultdict
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from nrf_server import Nrf
from simulated.certificates import Authority
from simulated.node import until_async
from simulated.wire import EIR

from eir.config import load_config
from eir.errors import EirError
from eir.node.observe.control import ask
from eir.node.observe.status import AnsweringReport
from eir.node.processes import child, manager
from eir.node.processes.channel import Channel, pair
from eir.node.processes.manager import Manager

REPORT = AnsweringReport(missing=(), lists={}, checks=0, connected={})
PID = 1 << 22
"""Of no process."""


class PlayedStarter:
    """Gives out the processes that a test plays, once there are any."""

    def __init__(self):
        self.played = defaultdict(asyncio.Queue)

    async def start(self, name, *_, **__):
        return await self.played[name].get()


class PlayedProcess:
    """A process as the manager sees it, and the other end of its channel."""

    def __init__(self, name, pid, handlers, *, ends=True):
        """`ends`: with its channel."""
        self.name, self.pid = name, pid
        ours, theirs = pair()
        self.channel, self.there = Channel(ours), Channel(theirs)
        self.killed = []
        self.over = asyncio.Event()
        self.serving = asyncio.create_task(
            self.there.serve(handlers, failed=lambda what, fault: pytest.fail(f"{what}: {fault}"))
        )
        self.ends = ends
        self.serving.add_done_callback(lambda task: self.over.set() if self.ends and not task.cancelled() else None)

    async def ended(self):
        await self.over.wait()
        return 0

    def kill(self, number=9):
        self.killed.append(number)

    def hang(self):
        """Read nothing any more, as a process that was stopped."""
        self.serving.cancel()

    def end(self):
        self.there.close()
        self.over.set()


class Played:
    """Answering process for the manager, which collects the messages that it receives."""

    def __init__(self):
        self.configured = []
        self.told = []
        self.listening = []
        self.lists = []
        self.in_force = {}
        self.misses = False
        """What it is handed is lost on it."""
        self.refuses = False
        """It fails to apply a reload."""
        self.checks = 0

    async def start(self, starter, *, started=True):
        self.handlers = {
            "configure": self.configured.append, **dict.fromkeys(("counters", "snapshot"), lambda: {"eir_checks_total": {("whitelisted", ""): self.checks}}),
            "report": lambda: replace(REPORT, lists=dict(self.in_force)), "peers": list, "dial": lambda: self.told.append("dial"),
            "set_peer": lambda *what: self.told.append(what), "apply": self.apply, "listen": self.listen,
            "put_in_force": self.put_in_force, "complete": lambda: self.lists.append("complete"), "end": self.finish,
        }  # fmt: skip
        self.process = PlayedProcess("answering", PID, self.handlers)
        starter.played[self.process.name].put_nowait(self.process)
        await until_async(lambda: self.configured)
        if started:
            self.process.there.notify("started")

    def apply(self, configured):
        if self.refuses:
            raise EirError("it broke")
        self.configured.append(configured)

    def listen(self, _, url, descriptor):
        self.listening.append((url, socket.socket(fileno=descriptor)))

    def put_in_force(self, what, *descriptors):
        self.lists.append(what)
        for descriptor in descriptors:
            os.close(descriptor)
        if not self.misses:
            self.in_force[what.name] = what.state

    def finish(self):
        self.process.end()

    def hang(self):
        self.process.hang()

    async def end(self):
        self.process.end()
        for _, listening in self.listening:
            listening.close()


class Node:
    """A manager with such a process, serving."""

    def __init__(self, site, starter, made, player):
        self.site = site
        self.starter = starter
        self.manager = made
        self.player = player
        self.clients = []

    @property
    def address(self):
        host, _, port = self.listening[0].partition("://")[2].rpartition(":")
        return host, int(port)

    async def ask(self, what, **arguments):
        """As a command asks."""
        return await asyncio.to_thread(ask, self.site.state, what, **arguments)

    async def has_lost(self):
        """Wait until it has noticed the end of the process."""

        async def noticed():
            return "the answering process does not answer" in (await self.ask("status"))["troubles"]

        await until_async(noticed)

    async def come(self, host=None):
        """A client's connection."""
        self.clients.append(await asyncio.open_connection(host or self.address[0], self.address[1]))
        return self.clients[-1][0]

    async def successor(self, **how):
        """Another process in the place of the one that has ended."""
        await self.has_lost()
        self.player = Played()
        await self.player.start(self.starter, **how)
        return self.player


@pytest.fixture
def lines(monkeypatch):
    """Events of the manager's log, as (event, reason); it asks the process often."""
    told = []
    monkeypatch.setattr(child, "COUNTERS_S", 0.05)
    monkeypatch.setattr(
        manager.Log, "report", lambda _, event, *, reason=None, **fields: told.append((event, reason, fields))
    )
    return told


@pytest.fixture
async def node(site, lines):
    """A manager with a played answering process that has started."""
    assert lines == []
    async with serving(site) as made:
        yield made


@asynccontextmanager
async def serving(site, *, end_s=60, on_stop=lambda: None, **changes):
    site.configure(**{"http": "off", "lists": {}, "policy": {}} | changes)
    site.state.mkdir()
    starter = PlayedStarter()
    made = Manager(load_config(site.path), starter, end_s=end_s, on_stop=on_stop)
    task = asyncio.create_task(made.serve())
    player = Played()
    node = Node(site, starter, made, player)
    try:
        await player.start(starter)
        node.task = task

        async def listens():
            return task.done() or (await node.ask("status"))["listening"]

        node.listening = await until_async(listens)
        yield node
        for _, writer in node.clients:
            writer.close()
    finally:
        if not task.done():
            await asyncio.to_thread(ask, site.state, "drain")
        await node.player.end()
        await task


@pytest.mark.parametrize("how", ["it says nothing", "it says no"])
async def test_a_process_that_fails_to_apply_a_reload_is_restarted_with_the_new_configuration(node, lines, how):
    bad = node.player
    if how == "it says no":
        bad.refuses = True
    else:
        bad.process.channel.answer_s = 0.2
        bad.hang()
    node.site.configure(policy={"default": "greylisted"})
    assert await node.ask("reload") == "reloaded"
    assert set(bad.process.killed) == {9}  # by the reload, and by the watch for signs of life
    assert [fields["process"] for event, reason, fields in lines if (event, reason) == ("call_failed", "apply")] == [
        "answering"
    ]
    await bad.end()
    assert (await node.successor()).configured[0].config.policy.default == "greylisted"


async def test_a_follower_that_fails_to_apply_a_reload_is_restarted(node, lines):
    def apply(config):
        if config.policy.default == "greylisted":
            raise EirError("it broke")

    follower = PlayedProcess("follower", PID + 9, {"apply": apply, "complete": lambda: None, "counters": dict})
    node.starter.played["follower"].put_nowait(follower)
    await until_async(node.starter.played["follower"].empty)
    node.site.configure(policy={"default": "greylisted"})
    assert await node.ask("reload") == "reloaded"
    assert (follower.killed, node.player.process.killed) == ([9], [])
    assert [fields["detail"] for event, reason, fields in lines if (event, reason) == ("call_failed", "apply")] == [
        "it broke"
    ]
    follower.end()


async def test_two_reloads_in_one_moment_are_taken_one_after_the_other(node):
    """The process applies both, and is ended for neither."""
    node.site.configure(policy={"default": "greylisted"})
    assert await asyncio.gather(node.ask("reload"), node.ask("reload")) == ["reloaded"] * 2
    assert [each.config.policy.default for each in node.player.configured] == [
        "whitelisted",
        "greylisted",
        "greylisted",
    ]
    assert node.player.process.killed == []
    assert (await node.manager.overview.snapshot())["eir_config_last_reload_successful"] == {(): 1.0}


async def test_a_reload_goes_on_when_who_asked_waits_no_longer(node):
    """The node does not stand between two configurations."""
    asked, goes_on = asyncio.Event(), asyncio.Event()

    async def apply(_):
        asked.set()
        await goes_on.wait()

    node.player.handlers["apply"] = apply
    node.site.configure(policy={"default": "greylisted"})
    command = asyncio.create_task(node.manager.reload.reload_for("tester"))
    await asked.wait()
    command.cancel()
    with pytest.raises(asyncio.CancelledError):
        await command
    goes_on.set()

    async def reloaded():
        return (await node.manager.overview.snapshot())["eir_config_last_reload_successful"] == {(): 1.0}

    await until_async(reloaded)


async def test_a_reload_registers_the_listener_that_it_opens(node):
    nrf = {"uri": "http://127.0.0.1:1", "plmns": ["00101"]}
    assert "nrf" not in await node.ask("status")
    node.site.configure(n5g={"listen": "http://127.0.0.1:0", "nrf": nrf})
    assert await node.ask("reload") == "reloaded"
    await until_async(lambda: len(node.player.listening) == 2)
    assert (await node.ask("status"))["nrf"]["registered"] is None  # no NRF is there


async def test_an_nrf_sees_the_certificate_of_a_reload(site):
    ours, other = Authority(site.folder / "ours"), Authority(site.folder / "other")
    context = other.server("127.0.0.1")
    ours.issue("127.0.0.1").configure_cert(context)  # the node trusts ours, and the NRF only the other one
    context.set_alpn_protocols(["h2"])
    nrf = Nrf(ssl=context)
    n5g = {"listen": "http://127.0.0.1:0", "nrf": {"uri": nrf.uri, "plmns": ["00101"]}}
    async with serving(site, tls=ours.write(EIR), n5g=n5g) as node:

        async def refused():
            return (await node.ask("status"))["nrf"]["last_error"]

        await until_async(refused)
        assert not nrf.profiles
        other.write(EIR, folder=ours.folder)
        await node.ask("reload")
        await until_async(lambda: nrf.profiles)
    nrf.stop()


async def test_no_reload_begins_once_the_node_stops(node):
    node.player.handlers["end"] = lambda: None  # it takes its time
    await node.ask("drain")
    with pytest.raises(EirError, match="stopping"):
        await node.ask("reload")


async def test_a_question_that_the_end_of_the_process_cuts_off_is_no_fault(site, lines):
    """The node asks it each second, and a process that has sent its peers away ends with the question unanswered."""
    async with serving(site) as node:
        asked, player = asyncio.Event(), node.player

        async def report():
            asked.set()
            await asyncio.Event().wait()

        player.handlers["report"] = report
        player.handlers["end"] = player.process.there.close
        player.process.ends = False  # a process is there a while longer than its channel
        await asked.wait()
        await node.ask("drain")
        await node.has_lost()
        player.process.end()
        assert await node.task == 0
    assert [(event, reason) for event, reason, _ in lines if event == "call_failed"] == []


async def test_a_process_that_dies_with_an_unanswered_question_is_reported(node, lines):
    dying = node.player
    dying.handlers["set_peer"] = lambda *_: dying.process.end()
    await node.ask("peer_disable", name="mme")
    told = [(reason, fields["process"]) for event, reason, fields in lines if event == "call_failed"]
    assert told == [("set_peer", "answering")]


async def test_a_successor_gets_the_settings_that_the_manager_read_even_if_the_file_has_changed(node):
    first = node.player
    await first.end()
    node.site.configure(policy={"default": "blacklisted"})  # and nobody has asked for a reload
    successor = await node.successor()
    assert successor.configured[0].config.policy.default == "whitelisted"
    assert successor.configured[0].config == first.configured[0].config


async def test_a_successor_gets_the_listeners_in_which_connections_wait(node):
    first = node.player
    await until_async(lambda: first.told == ["dial"])
    await first.end()
    await node.come()
    successor = await node.successor()
    await until_async(lambda: successor.told == ["dial"])
    ((_, listening),) = successor.listening
    with listening.accept()[0] as connection:
        assert connection.getpeername() == node.clients[0][1].get_extra_info("sockname")


async def test_a_reload_that_comes_while_the_process_reads_its_lists(node):
    await node.player.end()
    late = await node.successor(started=False)
    node.site.configure(policy={"default": "greylisted"})
    assert await node.ask("reload") == "reloaded"
    await until_async(lambda: len(late.configured) == 2)
    assert late.configured[-1].config.policy.default == "greylisted"


@pytest.mark.parametrize("started", [True, False])
async def test_a_process_that_answers_nothing_is_ended(node, lines, started):
    """Also before it has its lists."""
    player = node.player
    if not started:
        await player.end()
        player = await node.successor(started=False)
    player.process.channel.answer_s = 0.05
    player.hang()
    await until_async(lambda: player.process.killed)
    assert [fields["process"] for event, _, fields in lines if event == "process_hung"] == ["answering"]


async def test_the_counters_of_a_process_outlive_it(node):
    node.player.checks = 7
    assert (await node.manager.overview.snapshot())["eir_checks_total"] == {("whitelisted", ""): 7}
    await node.player.end()
    await node.has_lost()
    assert (await node.manager.overview.snapshot())["eir_checks_total"] == {("whitelisted", ""): 7}


async def test_a_peer_out_of_service_is_so_for_a_successor(node):
    assert "out of service" in await node.ask("peer_disable", name="mme")
    assert node.player.told[-1] == ("mme", False)
    await node.player.end()
    assert (await node.successor()).configured[0].disabled == ["mme"]
    with pytest.raises(EirError, match="no peer nobody; there are: mme"):
        await node.ask("peer_enable", name="nobody")


async def test_a_host_name_is_listened_on_at_all_its_addresses(site, monkeypatch):
    def resolved(_, port, *_args, **_options):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in ("127.0.0.2", "127.0.0.3")]

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    async with serving(site, listen=["tcp://eir.example:0"]) as node:
        assert node.address[0] == "127.0.0.2"
        monkeypatch.undo()
        for address in ("127.0.0.2", "127.0.0.3"):
            await node.come(address)
        await until_async(lambda: len(node.player.listening) == 2)
        for _, listening in node.player.listening:
            listening.accept()[0].close()


async def test_a_follower_that_does_not_end_in_time_is_no_fault_of_the_end(site, lines):
    """It may be making a large list, and answers nobody: systemd would start a drained node again."""
    stopped = []
    async with serving(site, end_s=0.5, on_stop=lambda: stopped.append(True)) as node:
        follower = PlayedProcess("follower", PID + 9, {"apply": lambda _: None, "complete": lambda: None}, ends=False)
        follower.kill = follower.over.set
        node.starter.played["follower"].put_nowait(follower)
        await until_async(
            lambda: [name for name, queue in node.starter.played.items() if name == "follower" and queue.empty()]
        )
        await node.ask("drain")
        assert await node.task == 0
        follower.end()
    assert [fields["process"] for event, _, fields in lines if event == "killed"] == ["follower"]
    assert stopped == [True]

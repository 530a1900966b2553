"""The supervisor of a node in this process, with workers that a test plays: what it does when one of them is slow, silent, or not there."""

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
from simulated.patience import PATIENCE_S
from simulated.wire import EIR

from eir.config import load_config
from eir.errors import EirError
from eir.node.observe.control import ask
from eir.node.observe.status import WorkerReport
from eir.node.processes import child, supervisor
from eir.node.processes.channel import Channel, pair
from eir.node.processes.supervisor import Supervisor

REPORT = WorkerReport(missing=(), lists={}, checks=0, connected={})
PID = 1 << 22
"""Of no process."""


class PlayedStarter:
    """Gives out the processes that a test plays, once there are any."""

    def __init__(self):
        self.played = defaultdict(asyncio.Queue)

    async def start(self, name, *_, **__):
        return await self.played[name].get()


class PlayedProcess:
    """A process as the supervisor sees it, and the other end of its channel."""

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
    """A worker as the supervisor sees it; what it is told is collected."""

    def __init__(self, number):
        self.number = number
        self.configured = []
        self.prepared = []
        self.told = []
        self.connections = []
        self.lists = []
        self.in_force = {}
        self.misses = False
        """What it is handed is lost on it."""
        self.refuses = set()
        """What it answers by no."""
        self.checks = 0

    async def start(self, starter, *, started=True):
        self.handlers = {
            "configure": self.configured.append, **dict.fromkeys(("counters", "snapshot"), lambda: {"eir_checks_total": {("whitelisted", ""): self.checks}}),
            "report": lambda: replace(REPORT, lists=dict(self.in_force)), "peers": list, "dial": lambda: self.told.append("dial"),
            "set_peer": lambda *what: self.told.append(what), "order": self.told.append, "prepare": self.prepare, "take_over": self.take_over,
            "connection": lambda listener, source, descriptor: self.connections.append((listener, source, descriptor)),
            "put_in_force": self.put_in_force, "complete": lambda: self.lists.append("complete"), "end": self.finish,
        }  # fmt: skip
        self.process = PlayedProcess(f"worker-{self.number}", PID + self.number, self.handlers)
        starter.played[self.process.name].put_nowait(self.process)
        await until_async(lambda: self.configured)
        if started:
            self.process.there.notify("started")

    def prepare(self, configured):
        if "prepare" in self.refuses:
            raise EirError("its files are not good")
        self.prepared = [configured]

    def take_over(self):
        if "take_over" in self.refuses:
            raise EirError("it broke")
        self.configured.append(self.prepared.pop())

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
        for _, _, descriptor in self.connections:
            os.close(descriptor)
        self.connections.clear()


class Node:
    """A supervisor with two such workers, serving."""

    def __init__(self, site, starter, made, players):
        self.site = site
        self.starter = starter
        self.supervisor = made
        self.workers = players
        self.clients = []

    @property
    def address(self):
        host, _, port = self.listening[0].partition("://")[2].rpartition(":")
        return host, int(port)

    async def ask(self, what, **arguments):
        """As a command asks."""
        return await asyncio.to_thread(ask, self.site.state, what, **arguments)

    async def has_lost(self, workers):
        """Wait until it has noticed the end of so many workers."""

        async def noticed():
            return (await self.ask("status"))["workers"] == len(self.workers) - workers

        await until_async(noticed)

    async def come(self, host=None):
        """A client's connection."""
        self.clients.append(await asyncio.open_connection(host or self.address[0], self.address[1]))
        return self.clients[-1][0]

    async def successor(self, number, **how):
        """Another worker in the place of one that has ended."""
        await self.has_lost(1)
        self.workers[number] = Played(number)
        await self.workers[number].start(self.starter, **how)
        return self.workers[number]


@pytest.fixture
def lines(monkeypatch):
    """Events of the supervisor's log, as (event, reason); it asks its workers often."""
    told = []
    monkeypatch.setattr(child, "COUNTERS_S", 0.05)
    monkeypatch.setattr(
        supervisor.Log, "report", lambda _, event, *, reason=None, **fields: told.append((event, reason, fields))
    )
    return told


@pytest.fixture
async def node(site, lines):
    """A supervisor with two played workers that have started."""
    assert lines == []
    async with serving(site) as made:
        yield made


@asynccontextmanager
async def serving(site, *, hold_s=60, end_s=60, on_stop=lambda: None, **changes):
    site.configure(**{"workers": 2, "http": "off", "lists": {}, "policy": {}} | changes)
    site.state.mkdir()
    starter = PlayedStarter()
    made = Supervisor(load_config(site.path), starter, hold_s=hold_s, end_s=end_s, on_stop=on_stop)
    task = asyncio.create_task(made.serve())
    players = [Played(0), Played(1)]
    try:
        for player in players:
            await player.start(starter)
        node = Node(site, starter, made, players)
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
        for player in players:
            await player.end()
        await task


async def test_workers_get_connections_in_turn_and_the_first_one_dials(node):
    for count in range(1, 5):
        await node.come()
        await until_async(lambda n=count: sum(len(player.connections) for player in node.workers) == n)
    assert [len(player.connections) for player in node.workers] == [2, 2]
    assert [player.told for player in node.workers] == [["dial"], []]
    assert [player.configured[0].dials for player in node.workers] == [False, False]


async def test_a_worker_that_sends_its_peers_away_gets_none_of_them_back(node):
    """It has the fewest connections then, and would close each at once."""
    leaving, other = node.workers
    leaving.process.there.notify("leaving")
    # Answered in order, so that the supervisor knows.
    await leaving.process.there.ask("may_dial", "mme.example.org", "mme", 0.0)
    for count in range(1, 5):
        await node.come()
        await until_async(lambda n=count: len(other.connections) == n)
    assert leaving.connections == []


async def test_a_connection_that_arrives_while_no_worker_is_ready(site, lines):
    """It is refused, counted and told of when no worker comes back within a time."""
    async with serving(site, hold_s=0.1) as node:
        for player in node.workers:
            await player.end()
        await node.has_lost(2)
        reader = await node.come()
        assert await asyncio.wait_for(reader.read(), PATIENCE_S) == b""
        refused = [(event, reason) for event, reason, _ in lines if event == "peer_refused"]
        assert refused == [("peer_refused", "no_worker")]
        assert (await node.supervisor.overview.snapshot())["eir_peers_refused_total"] == {("no_worker",): 1}


async def test_a_connection_that_waits_goes_to_the_worker_that_comes_back(node):
    await node.workers[1].end()
    await node.has_lost(1)
    await node.come()
    assert node.workers[0].connections == []
    await node.successor(1)
    await until_async(lambda: sum(len(player.connections) for player in node.workers) == 1)


@pytest.mark.parametrize(
    ("how", "reason"), [("it says nothing", "no answer to prepare"), ("it says no", "its files are not good")]
)
async def test_a_reload_that_one_of_two_workers_cannot_take_over(node, lines, how, reason):
    """The other one does not either, the caller is told, and the worker that comes in its place goes by what was in force."""
    bad, other = node.workers
    if how == "it says no":
        bad.refuses.add("prepare")
    else:
        bad.process.channel.answer_s = 0.2
        bad.hang()
    node.site.configure(policy={"default": "greylisted"})
    with pytest.raises(EirError, match=f"1 of 2 workers did not prepare the reload, so nothing changed: .*{reason}"):
        await node.ask("reload")
    assert [configured.config.policy.default for configured in other.configured] == ["whitelisted"]
    assert [fields["worker"] for event, reason, fields in lines if (event, reason) == ("worker_failed", "prepare")] == [
        0
    ]
    assert (await node.supervisor.overview.snapshot())["eir_config_last_reload_successful"] == {(): 0.0}
    await bad.end()
    successor = await node.successor(0)
    ((config, disabled, *_, dials, _),) = successor.configured
    assert (config.policy.default, disabled, dials) == ("whitelisted", [], True)


async def test_a_worker_that_fails_after_all_have_prepared_is_restarted_with_the_new_configuration(node):
    bad, other = node.workers
    bad.refuses.add("take_over")
    node.site.configure(policy={"default": "greylisted"})
    assert await node.ask("reload") == "reloaded"
    assert other.configured[-1].config.policy.default == "greylisted"
    assert (bad.process.killed, other.process.killed) == ([9], [])
    await bad.end()
    assert (await node.successor(0)).configured[0].config.policy.default == "greylisted"


async def test_two_reloads_in_one_moment_are_taken_one_after_the_other(node):
    """Every worker takes over both, and none is ended for either."""
    node.site.configure(policy={"default": "greylisted"})
    assert await asyncio.gather(node.ask("reload"), node.ask("reload")) == ["reloaded"] * 2
    for player in node.workers:
        assert [each.config.policy.default for each in player.configured] == ["whitelisted", "greylisted", "greylisted"]
        assert player.process.killed == []
    assert (await node.supervisor.overview.snapshot())["eir_config_last_reload_successful"] == {(): 1.0}


async def test_a_worker_that_comes_while_others_take_over_stays(node):
    """It has begun with the new configuration."""
    dying, slow = node.workers
    asked, goes_on = asyncio.Event(), asyncio.Event()

    async def take_over():
        asked.set()
        await goes_on.wait()

    slow.handlers["take_over"] = take_over
    node.site.configure(policy={"default": "greylisted"})
    reload = asyncio.create_task(node.ask("reload"))
    await asked.wait()
    await dying.end()
    successor = await node.successor(0)
    goes_on.set()
    assert await reload == "reloaded"
    assert [each.config.policy.default for each in successor.configured] == ["greylisted"]
    assert (successor.process.killed, slow.process.killed) == ([], [])


async def test_a_reload_goes_on_when_who_asked_waits_no_longer(node):
    """The node does not stand between two configurations."""
    slow, asked, goes_on = node.workers[0], asyncio.Event(), asyncio.Event()

    async def take_over():
        asked.set()
        await goes_on.wait()

    slow.handlers["take_over"] = take_over
    node.site.configure(policy={"default": "greylisted"})
    command = asyncio.create_task(node.supervisor.reload.reload_for("tester"))
    await asked.wait()
    command.cancel()
    with pytest.raises(asyncio.CancelledError):
        await command
    goes_on.set()

    async def reloaded():
        return (await node.supervisor.overview.snapshot())["eir_config_last_reload_successful"] == {(): 1.0}

    await until_async(reloaded)
    assert node.workers[1].configured[-1].config.policy.default == "greylisted"


async def test_a_reload_registers_nothing_that_a_restart_has_to_open_first(node):
    """No NRF sends AMFs where nobody listens yet."""
    nrf = {"uri": "http://127.0.0.1:1", "endpoints": ["http://192.0.2.1:7777"], "plmns": ["00101"]}
    node.site.configure(n5g={"listen": "http://127.0.0.1:7777", "nrf": nrf})
    assert "n5g.listen" in await node.ask("reload")
    assert "eir_nrf_registered" not in await node.supervisor.overview.snapshot()


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
    for player in node.workers:
        player.handlers["end"] = lambda: None  # they take their time
    await node.ask("drain")
    with pytest.raises(EirError, match="stopping"):
        await node.ask("reload")


async def test_a_question_that_the_end_of_a_worker_cuts_off_is_no_fault(site, lines):
    """The node asks its workers each second, and one that has sent its peers away ends with the question unanswered."""
    async with serving(site) as node:
        asked = set()
        for player in node.workers:

            async def report(number=player.number):
                asked.add(number)
                await asyncio.Event().wait()

            player.handlers["report"] = report
            player.handlers["end"] = player.process.there.close
            player.process.ends = False  # a process is there a while longer than its channel
        await until_async(lambda: len(asked) == 2)
        await node.ask("drain")
        await node.has_lost(2)
        for player in node.workers:
            player.process.end()
        assert await node.task == 0
    assert [(event, reason) for event, reason, _ in lines if event == "worker_failed"] == []


async def test_a_worker_that_dies_with_an_unanswered_question_is_reported(node, lines):
    dying = node.workers[0]
    dying.handlers["set_peer"] = lambda *_: dying.process.end()
    await node.ask("peer_disable", name="mme")
    told = [(reason, fields["worker"]) for event, reason, fields in lines if event == "worker_failed"]
    assert told == [("set_peer", 0)]


async def test_a_worker_gets_the_settings_that_the_supervisor_read_even_if_the_file_has_changed(node):
    await node.workers[1].end()
    node.site.configure(policy={"default": "blacklisted"})  # and nobody has asked for a reload
    await node.successor(1)
    assert node.workers[1].configured[0].config.policy.default == "whitelisted"
    assert node.workers[1].configured[0].config == node.workers[0].configured[0].config


async def test_a_reload_that_comes_while_a_worker_reads_its_lists(node):
    """It is asked as the others are."""
    await node.workers[1].end()
    late = await node.successor(1, started=False)
    node.site.configure(policy={"default": "greylisted"})
    assert await node.ask("reload") == "reloaded"
    await until_async(lambda: len(late.configured) == 2)
    assert late.configured[-1].config.policy.default == "greylisted"


async def test_a_worker_that_answers_nothing_gets_no_connection_and_is_ended(node, lines):
    node.workers[1].process.channel.answer_s = 0.05
    node.workers[1].hang()
    await until_async(lambda: node.workers[1].process.killed)
    assert node.workers[0].process.killed == []
    assert [fields["worker"] for event, _, fields in lines if event == "worker_hung"] == [1]
    for _ in range(4):
        await node.come()
    await until_async(lambda: len(node.workers[0].connections) == 4)


async def test_a_worker_that_hangs_before_it_has_its_lists_is_ended(node, lines):
    await node.workers[1].end()
    late = await node.successor(1, started=False)
    late.process.channel.answer_s = 0.05
    late.hang()
    await until_async(lambda: late.process.killed)
    assert [fields["worker"] for event, _, fields in lines if event == "worker_hung"] == [1]


async def test_what_a_worker_has_counted_outlives_it(node):
    node.workers[0].checks, node.workers[1].checks = 3, 4
    assert (await node.supervisor.overview.snapshot())["eir_checks_total"] == {("whitelisted", ""): 7}
    await node.workers[1].end()
    await node.has_lost(1)
    assert (await node.supervisor.overview.snapshot())["eir_checks_total"] == {("whitelisted", ""): 7}


async def test_a_peer_out_of_service_is_so_for_workers_to_come(node):
    assert "out of service" in await node.ask("peer_disable", name="mme")
    assert [player.told[-1] for player in node.workers] == [("mme", False)] * 2
    await node.workers[1].end()
    assert (await node.successor(1)).configured[0].disabled == ["mme"]
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
        await until_async(lambda: node.workers[0].connections and node.workers[1].connections)


async def test_a_follower_that_does_not_end_in_time_is_no_fault_of_the_end(site, lines):
    """It may be making a large list, and answers nobody: systemd would start a drained node again."""
    stopped = []
    async with serving(site, end_s=0.5, on_stop=lambda: stopped.append(True)) as node:
        follower = PlayedProcess(
            "follower", PID + 9, {"configure": lambda _: None, "complete": lambda: None}, ends=False
        )
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

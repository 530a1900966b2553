"""The front of a node in this process, with workers that a test plays: what it does when one of them is slow, silent, or not there."""

import asyncio
import os
import socket
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from node import until_async

from eir.config import load_config
from eir.daemon import front, rpc, workers
from eir.daemon.front import Front
from eir.daemon.handing import Connection
from eir.daemon.rpc import RpcLink, pair, take_over
from eir.errors import EirError
from eir.operate.status import WorkerReport

REPORT = WorkerReport(
    missing=(), lists={}, overridden=False, checks=0, connected={}, shedding=(), disabled=()
)
PID = 1 << 22
"""Of no process."""


class Played:
    """A worker as the front sees it; what it is told is collected."""

    def __init__(self, number):
        self.number = number
        self.configured = []
        self.told = []
        self.connections = []
        self.lists = []
        self.in_force = {}
        self.misses = False
        """What it is handed is lost on it."""
        self.silent = False
        self.checks = 0

    async def start(self, supervisor, *, started=True):
        self.running = True
        here, self.ends = pair()
        socket.send_fds(supervisor, [f"{self.number} {PID + self.number} 0".encode()], [here.stream.fileno(), here.packets.fileno()])
        here.close()
        self.link = await RpcLink.over(self.ends.stream)
        handlers = {
            "configure": self.configured.append, **dict.fromkeys(("counters", "snapshot"), lambda: {"eir_checks_total": {("whitelisted", ""): self.checks}}),
            "report": lambda: replace(REPORT, lists=dict(self.in_force)), "peers": list, "dial": lambda: self.told.append("dial"),
            "set_peer": lambda *what: self.told.append(what), "order": self.told.append,
        }  # fmt: skip
        self.reading = asyncio.create_task(self.link.serve(handlers, failed=lambda what, fault: pytest.fail(f"{what}: {fault}")))
        asyncio.get_running_loop().add_reader(self.ends.packets, self.take)
        await until_async(lambda: self.configured)
        if started:
            self.link.tell("started")

    def take(self):
        while (given := take_over(self.ends.packets)) is not None:
            what, descriptors = given
            if isinstance(what, Connection):
                self.connections.append((what, *descriptors))
                continue
            self.lists.append(what)
            for descriptor in descriptors:
                os.close(descriptor)
                if not self.misses:
                    self.in_force[what.name] = what.state

    def hang(self):
        """Read nothing any more, as a process that was stopped."""
        self.reading.cancel()

    async def end(self):
        if not self.running:
            return
        self.running = False
        asyncio.get_running_loop().remove_reader(self.ends.packets)
        self.reading.cancel()
        for _, descriptor in self.connections:
            os.close(descriptor)
        self.link.close()
        self.ends.close()


class Node:
    """A front with two such workers, serving."""

    def __init__(self, site, supervisor, made, players):
        self.site = site
        self.supervisor = supervisor
        self.front = made
        self.workers = players
        self.clients = []

    @property
    def address(self):
        host, _, port = self.front._status.listening[0].partition("://")[2].rpartition(":")
        return host, int(port)

    async def come(self, host=None):
        """A client's connection."""
        self.clients.append(await asyncio.open_connection(host or self.address[0], self.address[1]))
        return self.clients[-1][0]

    async def successor(self, number, **how):
        """Another worker in the place of one that has ended."""
        await until_async(lambda: not self.front._workers.all_started)
        self.workers[number] = Played(number)
        await self.workers[number].start(self.supervisor, **how)
        return self.workers[number]


@pytest.fixture
def lines(monkeypatch):
    """Events of the front's log, as (event, reason)."""
    told = []
    monkeypatch.setattr(front.Log, "report", lambda _, event, *, reason=None, **fields: told.append((event, reason, fields)))
    return told


@pytest.fixture
async def node(site, lines):
    """A front with two played workers that have started."""
    assert lines == []
    async with serving(site) as made:
        yield made


@asynccontextmanager
async def serving(site, **changes):
    site.configure(**{"workers": 2, "http": "off", "lists": {}, "policy": {}} | changes)
    site.state.mkdir()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    made = Front(load_config(site.path), theirs, os.getpid())
    task = asyncio.create_task(made.serve())
    players = [Played(0), Played(1)]
    try:
        for player in players:
            await player.start(ours)
        await until_async(lambda: made._status.listening or task.done())
        node = Node(site, ours, made, players)
        yield node
        for _, writer in node.clients:
            writer.close()
    finally:
        made._begin_stop("the test is over")
        for player in players:
            await player.end()
        await task
        ours.close()
        theirs.close()


async def test_workers_get_connections_in_turn_and_the_first_one_dials(node):
    for count in range(1, 5):
        await node.come()
        await until_async(lambda n=count: sum(len(player.connections) for player in node.workers) == n)
    assert [len(player.connections) for player in node.workers] == [2, 2]
    assert [player.told for player in node.workers] == [["dial"], []]
    assert [player.configured[0].dials for player in node.workers] == [False, False]


async def test_a_connection_that_arrives_while_no_worker_is_ready(node, lines, monkeypatch):
    """It waits for a worker to come back, and is refused, counted and told of when none does."""
    monkeypatch.setattr(front, "HOLD_S", 0.3)
    for player in node.workers:
        await player.end()
    await until_async(lambda: node.front._workers.none_left)
    reader = await node.come()
    with pytest.raises(TimeoutError):  # it waits
        await asyncio.wait_for(reader.read(), 0.1)
    assert await asyncio.wait_for(reader.read(), 5) == b""
    assert [(event, reason) for event, reason, _ in lines if event == "peer_refused"] == [("peer_refused", "no_worker")]
    assert (await node.front.snapshot())["eir_peers_refused_total"] == {("no_worker",): 1}


async def test_a_connection_that_waits_goes_to_the_worker_that_comes_back(node, monkeypatch):
    monkeypatch.setattr(front, "HOLD_S", 60)
    await node.workers[1].end()
    await until_async(lambda: not node.front._workers.all_started)
    await node.come()
    await node.successor(1)
    await until_async(lambda: sum(len(player.connections) for player in node.workers) == 1)


async def test_a_reload_that_one_of_two_workers_does_not_answer(node, lines, monkeypatch):
    """The other one has taken it over, the caller is told, and the worker that comes in its place has it too."""
    monkeypatch.setattr(rpc, "ANSWER_S", 0.2)
    silent, other = node.workers
    silent.hang()
    node.site.configure(policy={"default": "greylisted"})
    with pytest.raises(EirError, match="1 of 2 workers did not take it over"):
        await node.front._reload("who asked")
    assert [configured.config.policy.default for configured in other.configured] == ["whitelisted", "greylisted"]
    assert [fields["worker"] for event, reason, fields in lines if (event, reason) == ("worker_failed", "configure")] == [0]
    await silent.end()
    successor = await node.successor(0)
    ((config, disabled, _, _, dials),) = successor.configured
    assert (config.policy.default, disabled, dials) == ("greylisted", [], True)


async def test_a_worker_gets_what_the_front_read_whatever_the_file_says_by_then(node):
    await node.workers[1].end()
    node.site.configure(policy={"default": "blacklisted"})  # and nobody has asked for a reload
    await node.successor(1)
    assert node.workers[1].configured[0].config.policy.default == "whitelisted"
    assert node.workers[1].configured[0].config == node.workers[0].configured[0].config


async def test_a_reload_that_comes_while_a_worker_reads_its_lists(node):
    """It is told, and does it once it can; nobody waits for it."""
    await node.workers[1].end()
    late = await node.successor(1, started=False)
    node.site.configure(policy={"default": "greylisted"})
    assert await node.front._reload("who asked") == "reloaded"
    await until_async(lambda: len(late.configured) == 2)
    assert late.configured[-1].config.policy.default == "greylisted"


async def test_a_worker_that_answers_nothing_is_ended(node, lines, monkeypatch):
    monkeypatch.setattr(rpc, "ANSWER_S", 0.05)
    monkeypatch.setattr(workers, "FIGURES_S", 0.05)
    killed = []
    monkeypatch.setattr(workers, "kill", lambda pid, _: killed.append(pid))
    node.workers[1].hang()
    await until_async(lambda: killed)
    assert killed == [PID + 1]
    assert [fields["worker"] for event, _, fields in lines if event == "worker_hung"] == [1]


async def test_what_a_worker_has_counted_outlives_it(node):
    node.workers[0].checks, node.workers[1].checks = 3, 4
    assert (await node.front.snapshot())["eir_checks_total"] == {("whitelisted", ""): 7}
    await node.workers[1].end()
    await until_async(lambda: not node.front._workers.all_started)
    assert (await node.front.snapshot())["eir_checks_total"] == {("whitelisted", ""): 7}


async def test_a_peer_out_of_service_is_so_for_workers_to_come(node):
    assert "out of service" in await node.front._set_peer({"name": "mme"}, enabled=False)
    assert [player.told[-1] for player in node.workers] == [("mme", False)] * 2
    await node.workers[1].end()
    assert (await node.successor(1)).configured[0].disabled == ["mme"]
    with pytest.raises(EirError, match="no peer nobody; there are: mme"):
        await node.front._set_peer({"name": "nobody"}, enabled=True)


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

"""Redis hangs, refuses, or is slow: checks go on from memory, each cause is counted, and afterwards every node is level."""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from fleet import HELD, LIST, OPTIONS, Fleet
from proxy import Proxy
from simulated.hostile import descriptors
from simulated.node import until
from simulated.servers import Server

FREEZE_S = 5
MORE = 5
"""Tasks, and open files of a process, on top of those of a node at rest, while and after its store hangs: less than one each second."""
LATENCY_S = 0.5
CUTS = 8
OTHERS, LOADING_US = 4_000, 60_000_000


def test_frozen(server, fleet):
    tasks = [node.status()["tasks"] for node in fleet.nodes]
    files = [descriptors(node.pid) for node in fleet.nodes]
    with fleet.witness() as witness:
        began = time.monotonic()
        server.pause()
        try:
            until(
                lambda: (
                    fleet.up() == [0, 0] and fleet.degraded("the store is away") and time.monotonic() > began + FREEZE_S
                )
            )
            assert all(fleet.failures("timeout"))
            witness.goes_on()
            assert_no_more(fleet, tasks, files)
        finally:
            server.resume()
        fleet.settle()
        fleet.load_and_follow()
        witness.goes_on()
    assert_no_more(fleet, tasks, files)


def assert_no_more(fleet, tasks, files):
    """Nothing queues up for a store that does not answer."""
    for node, tasks_before, files_before in zip(fleet.nodes, tasks, files, strict=True):
        assert node.status()["tasks"] < tasks_before + MORE
        assert all(now < files_before[name] + MORE for name, now in descriptors(node.pid).items())


def locked_out(server):
    server.command("ACL", "SETUSER", "eir", "off")
    server.command("CLIENT", "KILL", "USER", "eir")


def let_in(server):
    server.command("ACL", "SETUSER", "eir", "on")


def read_only(server):
    """A replica that has nothing: what a node would write back is refused."""
    server.command("REPLICAOF", "127.0.0.1", 1)
    server.command("CONFIG", "SET", "replica-read-only", "no")
    server.command("FLUSHALL")
    server.command("CONFIG", "SET", "replica-read-only", "yes")


def full(server):
    server.command("CONFIG", "SET", "maxmemory", 1)
    server.command("FLUSHALL")


def loading(server):
    for at in range(0, OTHERS, 500):
        server.command("MSET", *[text for n in range(at, at + 500) for text in (f"other:{n}", "x" * 100)])
    server.command("SAVE")
    server.kill()
    server.options = (*OPTIONS, "--key-load-delay", str(LOADING_US // OTHERS))
    server.launch()


def loaded(server):
    server.command("CONFIG", "SET", "key-load-delay", 0)
    server.await_answer()
    server.options = OPTIONS
    (server.folder / "dump.rdb").unlink()


def cut_off(server):
    server.command("REPLICAOF", "127.0.0.1", 1)
    server.command("CONFIG", "SET", "replica-serve-stale-data", "no")


def its_own_master(server):
    server.command("CONFIG", "SET", "replica-serve-stale-data", "yes")
    server.command("REPLICAOF", "NO", "ONE")


CAUSES = {
    "noauth": (locked_out, let_in),
    "noperm": (
        lambda server: server.command("ACL", "SETUSER", "eir", "-hmget"),
        lambda server: server.command("ACL", "SETUSER", "eir", "+@all"),
    ),
    "loading": (loading, loaded),
    "masterdown": (cut_off, its_own_master),
    "heal_readonly": (read_only, its_own_master),
    "heal_oom": (full, lambda server: server.command("CONFIG", "SET", "maxmemory", 0)),
}
"""Cause as the metric has it → how Redis comes to it, and out of it. `refused` and `timeout` are in tests of their own."""


@pytest.mark.long(short=["noperm"])
@pytest.mark.parametrize("cause", CAUSES)
def test_each_cause_is_counted(server, fleet, cause):
    begin, end = CAUSES[cause]
    before = fleet.failures(cause)
    with fleet.witness() as witness:
        begin(server)
        try:
            until(lambda: fleet.noticed(cause, before))
            lost = cause.startswith("heal")
            until(lambda: fleet.degraded("the store lost data" if lost else "the store is away"))
            assert fleet.lost_data() == [lost, lost]
            witness.goes_on()
        finally:
            end(server)
        fleet.settle()
        assert fleet.lost_data() == [False, False]
        witness.goes_on()
    assert all("secret" not in node.text() for node in fleet.nodes)


@pytest.mark.long
def test_latency_and_cut_connections(redis_program, tmp_path, publisher):
    """500 ms between a word and its answer, then connections that end at any moment, also during a load."""
    with ExitStack() as stack:
        server = stack.enter_context(Server(redis_program, *OPTIONS))
        proxy = stack.enter_context(Proxy(server.port))
        fleet = stack.enter_context(
            Fleet(tmp_path, publisher, f"redis://eir:secret@127.0.0.1:{proxy.port}", held=HELD[:500])
        )
        fleet.looked_at = fleet.at(server.port)
        with fleet.witness() as witness:
            proxy.delay_s = LATENCY_S / 2
            fleet.load()
            until(fleet.is_level)
            witness.goes_on(200)  # far more than there would be if each waited for the store
            proxy.delay_s = 0.0
            for _ in range(CUTS):
                proxy.cut()
                witness.goes_on(20)
            fleet.settle()
            with ThreadPoolExecutor(1) as pool:
                loading = pool.submit(fleet.load_and_follow)
                for _ in range(CUTS):
                    proxy.cut()
                    witness.goes_on(20)
                loading.result()
            witness.goes_on()


class TestStart:
    """A node that starts while Redis is away."""

    def test_with_a_copy_it_serves_and_is_degraded(self, server, fleet):
        site = fleet.site(f"late-{fleet.serial}", fleet.url)
        with site:
            node = site.start()
            until(lambda: node.get("/ready") == (200, "ready\n"))
            until(lambda: node.status()["lists"][LIST]["serial"] == fleet.serial and site.is_copied())
            node.end()
            server.kill()
            node = site.start()
            code, text = node.get("/ready")
            assert (code, text.splitlines()[0]) == (200, "degraded")
            assert f"{LIST} (this node's last good copy is in force)" in text
            assert node.status()["lists"][LIST]["serial"] == fleet.serial
            assert node.metrics()[f"eir_list_serial{{list={LIST}}}"] == fleet.serial
            server.start()
            until(lambda: node.get("/ready") == (200, "ready\n"))
        fleet.settle()

    @pytest.mark.long
    @pytest.mark.parametrize("boot", ["serve", "refuse"])
    def test_without_one(self, server, fleet, boot):
        server.kill()
        with fleet.site(f"bare-{boot}", fleet.url, boot_without_lists=boot) as site:
            node = site.start(ready=boot == "serve")
            until(lambda: node.lines("lists_missing"))
            code, text = node.get("/ready")
            assert (code, text.splitlines()[0]) == (503, "not ready")
            assert f"list {LIST} has never been loaded" in text
            assert bool(node.status()["listening"]) == (boot == "serve")
            server.start()
            until(lambda: node.get("/ready") == (200, "ready\n"))
        fleet.settle()

"""Faults in the middle of a load, at a place that a proxy between the loader and Redis picks: wholly the old list or the new."""

import re
import subprocess
import sys
from contextlib import contextmanager

import pytest
from conftest import Calm
from fleet import HELD, LIST
from proxy import Proxy
from simulated.node import until
from simulated.patience import PROGRAM_S

STAGING, SWITCHING = b"\r\nRPUSH\r\n", b"\r\nEVAL\r\n"
"""What a loader says to stage a base, and to put it in force."""
CODE = "from eir.__main__ import main; from eir.lists.stores import redis_url; "
CODE += f"redis_url.ANSWER_TIMEOUT_S = {PROGRAM_S}; main()"
PATIENT = [sys.executable, "-c", CODE]
"""Program that waits for an answer of Redis until the proxy passes it on."""


@pytest.fixture(scope="module")
def calm(tmp_path_factory, publisher, redis_program):
    """A list so small that a device more and one less is more than a tenth of it: each load stages a base."""
    made = Calm(redis_program, tmp_path_factory.mktemp("fleet"), publisher, held=HELD[:3], kept=3)
    yield made
    made.close()


@pytest.fixture
def proxy(server):
    with Proxy(server.port) as one:
        yield one


@contextmanager
def a_load_that_stops(fleet, proxy, word):
    """A load of the next release, stopped before that word; it goes on after the `with`, to its end. Gives its process."""
    site = fleet.site(f"loader-{fleet.serial + 1}-{proxy.port}", fleet.at(proxy.port))
    manifest = fleet.publish(site=site)
    fleet.begin()
    proxy.stop_before(word)
    with site.popen("load", manifest, program=PATIENT, stderr=subprocess.PIPE) as load:
        try:
            proxy.wait_until_stopped()
            yield load
        finally:
            proxy.go()
            load.said = load.communicate(timeout=PROGRAM_S)[1]


def fails(fleet, load, *why):
    """The load ends with status 1 and says why; nothing of it is ever answered from."""
    assert load.returncode == 1, load.said
    assert all(re.search(each, load.said) for each in why), load.said
    fleet.truth.failed()


@pytest.mark.long
@pytest.mark.parametrize("word", [STAGING, SWITCHING])
def test_redis_is_killed(server, fleet, proxy, word):
    with fleet.witness() as witness:
        with a_load_that_stops(fleet, proxy, word) as load:
            server.kill()
        fails(fleet, load, "Redis")
        until(lambda: fleet.degraded("the store is away"))
        server.start()
        fleet.settle()
        witness.goes_on()
        fleet.load_and_follow()
        witness.goes_on()


@pytest.mark.long
def test_the_staged_base_vanishes(server, fleet, proxy):
    before = fleet.stored()
    with fleet.witness() as witness:
        with a_load_that_stops(fleet, proxy, SWITCHING) as load:
            server.command("DEL", *staged(server))
        fails(fleet, load, "no longer in the store", "nothing was written")
        assert fleet.stored() == before
        fleet.settle()
        witness.goes_on()
        fleet.load_and_follow()
        witness.goes_on()


@pytest.mark.long
@pytest.mark.parametrize("word", [STAGING, SWITCHING])
def test_redis_is_flushed(server, fleet, proxy, word):
    """The release begins the list again, because its serial is higher than all others, unless a node has written the list back before."""
    with fleet.witness() as witness:
        with a_load_that_stops(fleet, proxy, word) as load:
            server.command("FLUSHALL")
        if load.returncode:
            fails(fleet, load, "no longer in the store", "nothing was written")
        else:
            fleet.serial += 1
        fleet.settle()
        witness.goes_on()
        fleet.load_and_follow()
        witness.goes_on()


def staged(server):
    """Parts that no change names."""
    keys = re.findall(rb"eir:\S+", server.command("KEYS", f"eir:{{{LIST}}}:base:*"))
    return {key for key in keys if not server.command("TTL", key).startswith(b":-")}


@pytest.mark.long
def test_another_loader_is_faster(fleet, proxy):
    """Both have the same serial; the one that comes too late is told why, and nothing of it remains."""
    with fleet.witness() as witness:
        with a_load_that_stops(fleet, proxy, SWITCHING) as load:
            fleet.truth.failed()  # the other's content is the same: it may come, and from the other
            fleet.load_and_follow()
            witness.goes_on()
        assert load.returncode == 1
        assert "refused (serial)" in load.said, load.said
        fleet.settle()


@pytest.mark.long
def test_a_loader_is_killed_and_leaves_nothing(server, fleet, proxy):
    """What it had filled expires; until then it is in nobody's way."""
    before = staged(server)
    with fleet.witness() as witness:
        with a_load_that_stops(fleet, proxy, SWITCHING) as load:
            load.kill()
            proxy.cut()  # what it said last is lost with it
        fleet.truth.failed()
        (left,) = staged(server) - before
        assert 0 < int(server.command("TTL", left)[1:]) <= 600
        fleet.load_and_follow()
        witness.goes_on()
    server.command("DEL", left)

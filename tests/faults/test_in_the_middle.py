"""Faults in the middle of a load, at a place that a proxy between the loader and Redis picks: wholly the old list or the new."""

import re
import subprocess
from contextlib import contextmanager

import pytest
from fleet import LIST
from proxy import Proxy
from simulated.node import until
from simulated.patience import PROGRAM_S

STAGING, CHECKING, SWITCHING = b"HSET", b"\r\nHLEN\r\n", b"\r\nEXEC\r\n"
"""What a loader says while it fills a set, before it looks at the set that it filled, and to put it in force."""


@pytest.fixture
def proxy(server):
    with Proxy(server.port) as one:
        yield one


@contextmanager
def a_load_that_stops(fleet, proxy, word, times=1):
    """A load of the next release, stopped before that word; it goes on after the `with`, to its end. Gives its process."""
    site = fleet.site(f"loader-{fleet.serial + 1}-{proxy.port}", fleet.at(proxy.port))
    manifest = fleet.publish(site=site)
    fleet.begin()
    proxy.stop_before(word, times)
    with site.popen("load", manifest, stderr=subprocess.PIPE) as load:
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
@pytest.mark.parametrize(("word", "times"), [(STAGING, 2), (CHECKING, 4), (SWITCHING, 1)])
def test_redis_is_killed(server, fleet, proxy, word, times):
    with fleet.witness() as witness:
        with a_load_that_stops(fleet, proxy, word, times) as load:
            server.kill()
        fails(fleet, load, "Redis")
        until(lambda: fleet.degraded("the store is away"))
        server.start()
        fleet.settle()
        witness.goes_on()
        fleet.load_and_follow()
        witness.goes_on()


@pytest.mark.long
@pytest.mark.parametrize(("word", "times"), [(STAGING, 2), (CHECKING, 4), (SWITCHING, 1)])
@pytest.mark.parametrize("how", ["evicted", "flushed"])
def test_the_staged_set_vanishes(server, fleet, proxy, word, times, how):
    before = fleet.stored()
    with fleet.witness() as witness:
        with a_load_that_stops(fleet, proxy, word, times) as load:
            if how == "flushed":
                server.command("FLUSHALL")
            else:
                for key in staged(server):
                    server.command("DEL", key)
        fails(fleet, load, "no longer in Redis", "nothing was written")
        if how == "evicted":
            assert fleet.stored() == before
        fleet.settle()
        witness.goes_on()
        fleet.load_and_follow()
        witness.goes_on()


def staged(server):
    """Sets of pages that are not in force."""
    in_force = server.command("HGET", f"eir:{{{LIST}}}:state", "set").split(b"\r\n")[1]
    keys = re.findall(rb"eir:\S+", server.command("KEYS", f"eir:{{{LIST}}}:set:*"))
    return {key for key in keys if key.rpartition(b":")[2] != in_force}


@pytest.mark.long
def test_another_loader_is_faster(fleet, proxy):
    """Both have the same serial; the one that comes too late is told why, and nothing of it remains."""
    with fleet.witness() as witness:
        with a_load_that_stops(fleet, proxy, SWITCHING) as load:
            fleet.truth.failed()  # the other's content is the same: it may come, and from the other
            fleet.load_and_follow()
            witness.goes_on()
        assert load.returncode == 1
        assert "refused (conflict)" in load.said, load.said
        fleet.settle()
        assert "conflict" in fleet.loader.json("history", LIST)[-1]["detail"]


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

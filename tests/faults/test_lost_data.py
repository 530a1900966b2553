"""The store loses what it had: nodes notice, go on from memory, say so, and write the list back from a copy that is proved."""

import subprocess

import pytest
from fleet import LIST
from simulated.node import until
from simulated.patience import PROGRAM_S


def on_record(site):
    """The changes of the list, as the node's journal has them: kind and serial."""
    return [(event["what"], event["serial"]) for event in site.json("history", LIST, "-n", "1000")]


def test_flushall(server, fleet):
    before = fleet.failures("lost_data")
    records = [on_record(site) for site in fleet.sites]
    with fleet.witness() as witness:
        server.command("FLUSHALL")
        until(lambda: fleet.noticed("lost_data", before))
        fleet.settle()
        witness.goes_on()
        fleet.load_and_follow()
        witness.goes_on()
    for site, record in zip(fleet.sites, records, strict=True):
        until(
            lambda site=site, record=record: (
                on_record(site) == [*record, ("heal", fleet.serial - 1), ("load", fleet.serial)]
            )
        )
        until(lambda site=site: site.eir("history", "--verify", status=None).returncode == 0)


@pytest.mark.long
def test_killed_and_restarted_empty(server, fleet):
    with fleet.witness() as witness:
        server.kill()
        until(lambda: fleet.degraded("the store is away") and all(fleet.failures("refused")))
        assert fleet.up() == [0, 0]
        witness.goes_on()
        server.start()
        until(lambda: fleet.up() == [1, 1])
        fleet.settle()
        fleet.load_and_follow()
        witness.goes_on()


@pytest.mark.long
def test_an_old_release_after_a_flush_is_refused(server, fleet):
    """Signed, unexpired, and once in force: nothing but what the nodes remember speaks against it."""
    fleet.load_and_follow()
    old = fleet.publish(fleet.serial - 1)
    (node, *_) = fleet.sites
    with fleet.witness() as witness:
        # Before anyone has healed the store: on a host with a node the loader asks that node's copy.
        server.command("FLUSHALL")
        done = node.eir("load", old, status=1)
        assert "refused (serial)" in done.stderr
        fleet.settle()
        # Afterwards the store tells.
        assert "refused (serial)" in fleet.loader.eir("load", old, status=1).stderr
        witness.goes_on()
        # On a host without a node, right after the flush, or healed already: either way no node follows it.
        server.command("FLUSHALL")
        fleet.loader.eir("load", old, status=None)
        fleet.settle()
        witness.goes_on()


@pytest.mark.long
def test_evicted(server, fleet, calm):
    """`maxmemory` with an eviction policy, and others who fill the memory until the list is gone.

    Records of the history may be gone too, which only an operator can accept. So the next test gets another server.
    """
    used = int(server.command("INFO", "memory").partition(b"used_memory:")[2].split()[0])
    before = fleet.failures("lost_data")
    with fleet.witness() as witness:
        server.command("CONFIG", "SET", "maxmemory-policy", "allkeys-random")
        server.command("CONFIG", "SET", "maxmemory", used + (1 << 20))
        number = 0
        while fleet.stored() is not None and not fleet.noticed("lost_data", before):
            server.command("MSET", *[text for n in range(number, number + 500) for text in (f"other:{n}", "x" * 1000)])
            number += 500
        until(lambda: fleet.noticed("lost_data", before))
        witness.goes_on()
        server.command("CONFIG", "SET", "maxmemory", 0)
        fleet.settle()
        fleet.load_and_follow()
        witness.goes_on()
    calm.close()


@pytest.mark.long
def test_the_names_of_lists_are_lost(server, fleet):
    """A key of its own, in a cluster on another node perhaps: a node that finds no list adds its name again, and changes nothing."""
    before, failures = fleet.stored(), fleet.failures("lost_data")
    with fleet.witness() as witness:
        server.command("DEL", "eir:lists")
        until(lambda: LIST.encode() in server.command("SMEMBERS", "eir:lists"))
        assert fleet.noticed("lost_data", failures)
        fleet.settle()
        assert fleet.stored() == before
        fleet.load_and_follow()
        witness.goes_on()


@pytest.mark.long
def test_two_loaders_with_the_same_serial(fleet):
    """One wins, the other is told why, whichever is faster."""
    other = fleet.site("other-loader", fleet.url)
    with fleet.witness() as witness:
        releases = [(site, fleet.publish(site=site)) for site in (fleet.loader, other)]
        fleet.begin()
        commands = [site.popen("load", manifest, stderr=subprocess.PIPE) for site, manifest in releases]
        said = [command.communicate(timeout=PROGRAM_S)[1] for command in commands]
        fleet.serial += 1
        assert sorted(command.returncode for command in commands) == [0, 1], said
        lost = said[[command.returncode for command in commands].index(1)]
        assert "refused (serial)" in lost or "refused (conflict)" in lost, lost
        fleet.settle()
        witness.goes_on()

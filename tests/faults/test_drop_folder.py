"""Two nodes with one Redis watch the same drop folder: each release is loaded once, and by the other when a node has died."""

import os
import shutil
import signal

import pytest
from fleet import LIST, Fleet
from simulated.hostile import processes
from simulated.node import until
from simulated.servers import Server


@pytest.mark.long
def test_one_of_two_nodes_loads_and_the_other_when_that_one_died(redis_program, tmp_path, publisher):
    drop = tmp_path / "drop"
    drop.mkdir()
    with Server(redis_program) as server, Fleet(tmp_path / "hosts", publisher, server.url, inbox=str(drop)) as fleet:
        with fleet.witness() as witness:
            deliver(fleet, drop)
            witness.goes_on()
        died, site = fleet.nodes.pop(0), fleet.sites.pop(0)
        for pid in processes(died.pid):
            os.kill(pid, signal.SIGKILL)
        died.wait()
        assert site.node is died
        with fleet.witness() as witness:
            deliver(fleet, drop)
            witness.goes_on()
        events = fleet.loader.json("history", LIST)
        assert [(event["serial"], event["what"]) for event in events] == [(1, "load"), (2, "load"), (3, "load")]
        assert events[-1]["who"].startswith("inbox of")
        until(lambda: sorted(path.name for path in drop.iterdir()) == ["accepted", "refused"])


def deliver(fleet, drop):
    """Put the next release into the folder, and see it reach every node."""
    manifest = fleet.publish()
    fleet.begin()
    for file in manifest.parent.glob(f"{LIST}-{fleet.serial + 1}.*"):
        shutil.copy(file, drop)
    fleet.serial += 1
    until(lambda: fleet.stored().serial == fleet.serial)
    fleet.settle()

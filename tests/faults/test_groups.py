"""Redis under Sentinel loses its master to a replica that lags; a cluster loses the node that has the list."""

from contextlib import ExitStack

import pytest
from fleet import LIST, Fleet
from groups import Cluster, Watched
from proxy import Proxy
from simulated.node import until
from simulated.patience import PATIENCE_S, PROGRAM_S


@pytest.mark.long
def test_a_failover_to_a_replica_that_lags(redis_program, tmp_path, publisher):
    """The promoted replica shows an older list: it is not followed, and a node writes the newer one back to it."""
    with ExitStack() as stack:
        link = stack.enter_context(Proxy(0))

        def linked(port):
            link.target = port
            return link.port

        group = stack.enter_context(Watched(redis_program, link=linked))
        fleet = stack.enter_context(Fleet(tmp_path, publisher, group.url))
        with fleet.witness() as witness:
            fleet.load_and_follow()
            before = fleet.failures("lost_data")
            link.hold_replicas()  # the replica gets no more, and the master does not know
            site = fleet.loader
            manifest = fleet.publish()
            fleet.begin()
            assert "no replica had the change" in site.eir("load", manifest, timeout=PROGRAM_S).stderr
            fleet.serial += 1
            fleet.settle()
            group.master.kill()
            until(group.promoted, patience_s=PATIENCE_S)
            until(lambda: fleet.noticed("lost_data", before))
            fleet.settle()
            witness.goes_on()
            fleet.load_and_follow()
            witness.goes_on()
        assert "heal" in [event["what"] for event in fleet.loader.json("history", LIST)]


@pytest.mark.long
def test_a_cluster_node_is_lost(redis_program, tmp_path, publisher):
    """It comes back with nothing, as a node without persistence does."""
    with Cluster(redis_program) as group, Fleet(tmp_path, publisher, group.url) as fleet, fleet.witness() as witness:
        fleet.load_and_follow()
        owner = group.owner(f"eir:{{{LIST}}}:head")
        before = fleet.failures("lost_data")
        owner.kill()
        until(lambda: fleet.degraded("the store is away"))
        assert fleet.up() == [0, 0]
        assert any(fleet.noticed(cause, [0, 0]) for cause in ("refused", "clusterdown"))
        witness.goes_on()
        owner.start()
        until(group.agrees)
        until(lambda: fleet.noticed("lost_data", before))
        fleet.settle()
        witness.goes_on()
        fleet.load_and_follow()
        witness.goes_on()


@pytest.mark.long
def test_a_cluster_node_without_the_list_is_lost(redis_program, tmp_path, publisher):
    """A cluster that does not insist on all its slots goes on with the others; so does the list that they have."""
    with (
        Cluster(redis_program, "--cluster-require-full-coverage", "no", nodes=4) as group,
        Fleet(tmp_path, publisher, group.url, nodes=1) as fleet,
    ):
        needed = {group.owner(key) for key in (f"eir:{{{LIST}}}:head", "eir:lists")}
        other = next(node for node in group.nodes if node not in needed)
        with fleet.witness() as witness:
            other.kill()
            fleet.load_and_follow()
            witness.goes_on()

"""Debian's osmo-msc and osmo-hlr with a node between them, and a phone that attaches over A: what it is told, and what becomes of faults."""

import os
from contextlib import contextmanager

import osmocom
import pytest
from in_kernel import REPORTS
from simulated import agent
from simulated.node import LISTED, TRACKED, UNLISTED, until

IMSI = "001010000000001"
ACCEPTED, ILLEGAL = (5, 2), (5, 4, osmocom.ME_ILLEGAL)


INSTALLED = pytest.mark.skipif(bool(osmocom.missing()), reason=f"not installed: {', '.join(osmocom.missing())}")


@contextmanager
def attaching(site, folder, mode, transport):
    """A node between MSC and HLR, and a BSC."""
    site.configure(
        peers=[{"name": "msc", "host": "MSC-1", "from": ["127.0.0.0/8"], "early": mode == "early"}],
        gsup={"listen": "tcp://127.0.0.1:4222", "hlr": f"tcp://{osmocom.HLR}:4222"},
    )
    site.load([LISTED])
    site.load([TRACKED], list_name="tracked")
    node = site.start()
    with osmocom.core(folder, IMSI, mode, transport) as core:
        until(lambda: node.lines("peer_open", host="MSC-1"))
        with osmocom.Bsc(transport) as bsc:
            bsc.reset()
            told = [bsc.location_update(IMSI, imei) for imei in (LISTED, UNLISTED, TRACKED, LISTED)]
            assert told == [ILLEGAL, ACCEPTED, ACCEPTED, ILLEGAL], core.log("osmo-msc")
            assert node.metrics()["eir_gsup_answers_total{peer=msc,result=nack}"] == 2
            yield core, bsc


@pytest.mark.long(short=["early"])
@INSTALLED
@pytest.mark.parametrize("mode", ["1", "early"])
def test_a_phone_attaches_or_is_refused(site, tmp_path, mode):
    if agent.in_a_network_of_its_own(f"{__file__}::test_a_phone_attaches_or_is_refused[{mode}]", always=True):
        return
    with attaching(site, tmp_path, mode, osmocom.TCP) as (core, bsc):
        go_through(site, core, bsc, mode)


@pytest.mark.long
@INSTALLED
@pytest.mark.sctp
def test_a_phone_attaches_or_is_refused_over_sctp(site, tmp_path):
    """MSC, STP and BSC speak over the kernel's SCTP, and nothing turns it into TCP."""
    name = "test_a_phone_attaches_or_is_refused_over_sctp"
    if REPORTS not in os.environ and agent.in_a_network_of_its_own(f"{__file__}::{name}", always=True):
        return
    with attaching(site, tmp_path, "1", osmocom.SCTP):
        pass


def go_through(site, core, bsc, mode):
    """What becomes of faults."""
    node = site.node
    # The HLR is killed: a phone is told to try again, none that it is illegal but for its IMEI; then it attaches again.
    core.end("osmo-hlr")
    until(lambda: node.lines("hlr_away"))
    told = bsc.location_update(IMSI, UNLISTED)
    assert told is not None
    assert told != ILLEGAL
    assert told != ACCEPTED
    if mode == "early":
        assert bsc.location_update(IMSI, LISTED) == ILLEGAL
        return
    core.start_hlr()
    until(lambda: node.lines("hlr_back"))
    assert bsc.location_update(IMSI, UNLISTED) == ACCEPTED

    # The node is killed, and comes back: the MSC finds it by itself.
    node.process.kill()
    node.wait()
    told = bsc.location_update(IMSI, LISTED)
    assert told not in {ACCEPTED, ILLEGAL}
    again = site.start()
    until(lambda: again.lines("peer_open", host="MSC-1"))
    until(lambda: again.metrics().get("eir_gsup_hlr_up{peer=msc}"))
    assert [bsc.location_update(IMSI, imei) for imei in (LISTED, UNLISTED)] == [ILLEGAL, ACCEPTED]

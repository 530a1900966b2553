"""freeDiameter as agent and as MME, that goes and comes back: out of service and in, out of the table and in, both sides connecting."""

import time
from pathlib import Path

import pytest
from diameter.node.application import RequestTimeout
from pymme import connected
from simulated.agent import DRA, DRA_REALM, EIR_REALM, in_a_network_of_its_own, relay
from simulated.node import LISTED, UNLISTED, Site, until
from simulated.patience import FACTOR
from simulated.servers import free_port

from eir.node.observe.control import ask as control

EIR = "eir1.eir.test"
TABLE = [{"name": "dra", "host": DRA, "realm": DRA_REALM}]
BACK_S = 120 * FACTOR
"""Every check is to be answered again within this time."""
TC_S = 3

pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]


@pytest.fixture
def eir(tmp_path, publisher):
    """One host, not yet started."""
    with Site(tmp_path / EIR, publisher) as site:
        site.configure(
            identity={"host": EIR, "realm": EIR_REALM}, peers=TABLE, lists={"stolen": {"signers": "signers"}},
            policy={"rules": [{"list": "stolen", "answer": "blacklisted"}]},
        )  # fmt: skip
        site.load([LISTED])
        yield site


def answered(mme):
    """Whether checks are answered, and right."""
    for imei, status in ((LISTED, 1), (UNLISTED, 0)):
        try:
            answer = mme.ask(imei)
        except RequestTimeout:
            return False
        if answer.result_code != 2001:  # the agent's 3002: it has no connection to a node
            return False
        assert answer.equipment_status == status
    return True


def back(node, condition):
    """Wait until it holds, and the peer is there again; it is to be so in time."""
    until(lambda: condition() and node.status()["peers"] == {"dra": 1}, patience_s=BACK_S)


def gone(node):
    until(lambda: not any(node.status()["peers"].values()))
    time.sleep(0.5)  # as a person would: it has begun to wait for its next attempt


@pytest.mark.long
def test_an_agent_comes_back_to_service_and_into_the_table(eir, tmp_path):
    if in_a_network_of_its_own(f"{Path(__file__)}::test_an_agent_comes_back_to_service_and_into_the_table"):
        return
    node = eir.start()
    with (
        relay(tmp_path, {EIR: node}, tc_s=TC_S) as port,
        connected(("127.0.0.1", port), DRA, DRA_REALM, EIR_REALM) as mme,
    ):
        assert answered(mme)
        control(eir.state, "peer_disable", name="dra")
        gone(node)
        assert not answered(mme)
        control(eir.state, "peer_enable", name="dra")
        back(node, lambda: answered(mme))
        eir.configure(peers=[{"name": "other", "host": "other.example"}])
        control(eir.state, "reload")
        gone(node)
        assert not answered(mme)
        eir.configure(peers=TABLE)
        control(eir.state, "reload")
        back(node, lambda: answered(mme))


@pytest.mark.long
def test_an_agent_that_we_connect_to_as_well(eir, tmp_path):
    if in_a_network_of_its_own(f"{Path(__file__)}::test_an_agent_that_we_connect_to_as_well"):
        return
    port = free_port()
    eir.configure(peers=[TABLE[0] | {"connect": f"tcp://127.0.0.1:{port}", "reconnect_after_s": 1}])
    node = eir.start()
    with (
        relay(tmp_path, {EIR: node}, tc_s=TC_S, port=port),
        connected(("127.0.0.1", port), DRA, DRA_REALM, EIR_REALM) as mme,
    ):
        assert answered(mme)
        for _ in range(2):
            control(eir.state, "peer_disable", name="dra")
            gone(node)
            control(eir.state, "peer_enable", name="dra")
            back(node, lambda: answered(mme))


@pytest.mark.long
def test_an_mme_that_refuses_our_connection_comes_in_by_its_own(eir, tmp_path):
    """It offers no S13, so it would answer our CER with 5010, and would not come any more."""
    if in_a_network_of_its_own(f"{Path(__file__)}::test_an_mme_that_refuses_our_connection_comes_in_by_its_own"):
        return
    port = free_port()
    mme = TABLE[0] | {"lenient": ["applications"]}
    eir.configure(peers=[mme])
    node = eir.start()
    with relay(tmp_path, {EIR: node}, tc_s=TC_S, port=port, relays=False):
        eir.configure(peers=[mme | {"connect": f"tcp://127.0.0.1:{port}", "reconnect_after_s": 1}])
        control(eir.state, "reload")
        control(eir.state, "peer_disable", name="dra")
        gone(node)
        control(eir.state, "peer_enable", name="dra")
        back(node, lambda: True)
        eir.configure(listen=["tcp://{}:{}".format(*node.address)])
        node.end()
        node = eir.start()  # which knows nothing of it, and does not connect before it had its time
        back(node, lambda: True)
        assert node.lines("peer_refused") == node.lines("connect_failed") == []
        node.end()
        eir.configure(peers=[TABLE[0] | {"connect": f"tcp://127.0.0.1:{port}", "reconnect_after_s": 1}])
        node = eir.start()
        (line,) = until(lambda: node.lines("peer_refused", reason="cea_result"))
        assert "5010" in line["detail"]
        assert "leave out connect" in line["setting"]
        assert (line["entry"], line["address"]) == ("dra", f"127.0.0.1:{port}")


@pytest.mark.long
def test_an_mme_whose_cer_is_rejected_comes_again_until_the_entry_forgives_it(eir, tmp_path):
    """It offers no S13. At a CER of ours it would give the node up until it is restarted."""
    if in_a_network_of_its_own(
        f"{Path(__file__)}::test_an_mme_whose_cer_is_rejected_comes_again_until_the_entry_forgives_it"
    ):
        return
    port = free_port()
    dialed = TABLE[0] | {"connect": f"tcp://127.0.0.1:{port}", "reconnect_after_s": 1}
    eir.configure(peers=TABLE)
    node = eir.start()

    def rejected():
        return len(node.lines("peer_refused", reason="no_common_application"))

    with relay(tmp_path, {EIR: node}, tc_s=TC_S, port=port, relays=False, expect=0):
        until(rejected)
        eir.configure(peers=[dialed])
        control(eir.state, "reload")
        before = rejected()
        until(lambda: rejected() > before, patience_s=BACK_S)
        eir.configure(peers=[dialed | {"lenient": ["applications"]}])
        control(eir.state, "reload")
        back(node, lambda: True)
        assert node.lines("connect_failed") == node.lines("peer_refused", reason="cea_result") == []

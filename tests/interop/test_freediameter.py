"""freeDiameter as an agent between python-diameter's client and two EIR nodes, one of which stops while requests flow."""

import itertools
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from diameter.node.application import RequestTimeout
from dissect import capturing
from pymme import connected
from simulated.agent import DRA, DRA_REALM, EIR_REALM, in_a_network_of_its_own, relay
from simulated.node import LISTED, UNLISTED, Site, until

EIRS = ("eir1.eir.test", "eir2.eir.test")
ASKING = 4
"""Requests at a time."""

# python-diameter's threads raise, at a socket that was closed under them for one; that is theirs to mend.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]


@pytest.fixture
def nodes(tmp_path, publisher):
    """Two nodes of one realm with the same list."""
    sites = {}
    for name in EIRS:
        site = sites[name] = Site(tmp_path / name, publisher)
        site.configure(
            identity={"host": name, "realm": EIR_REALM}, peers=[{"name": "dra", "host": DRA, "realm": DRA_REALM}],
            lists={"stolen": {"signers": "signers"}}, policy={"rules": [{"list": "stolen", "answer": "blacklisted"}]},
        )  # fmt: skip
        site.load([LISTED])
        site.start()
    yield {name: site.node for name, site in sites.items()}
    for site in sites.values():
        site.node.end()


@pytest.mark.long(short=["9"])
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_one_of_two_nodes_stops_while_requests_flow(nodes, tmp_path, how):
    if in_a_network_of_its_own(f"{Path(__file__)}::test_one_of_two_nodes_stops_while_requests_flow"):
        return
    stopped = EIRS[0]
    counted = dict.fromkeys((*EIRS, "after the stop"), 0)
    lock, end = threading.Lock(), threading.Event()
    wrong, lost = [], []

    with (
        relay(tmp_path, nodes) as port,
        capturing(tmp_path / "relay.pcapng", port, *(n.address[1] for n in nodes.values())) as capture,
    ):
        with connected(("127.0.0.1", port), DRA, DRA_REALM, EIR_REALM) as mme, ThreadPoolExecutor(ASKING) as threads:

            def flow():
                for imei, status in itertools.cycle([(LISTED, 1), (UNLISTED, 0)]):
                    if end.is_set():
                        return
                    try:
                        answer = mme.ask(imei)
                    except RequestTimeout:
                        lost.append(imei)
                        continue
                    with lock:
                        if (answer.result_code, answer.equipment_status) != (2001, status):
                            wrong.append((imei, answer.result_code))
                        counted[answer.origin_host.decode()] += 1
                        counted["after the stop"] += nodes[stopped].process.returncode is not None

            flows = [threads.submit(flow) for _ in range(ASKING)]
            until(lambda: min(counted[name] for name in EIRS) >= 50)
            nodes[stopped].signal(how)
            assert nodes[stopped].wait() == (0 if how is signal.SIGTERM else -signal.SIGKILL)
            until(lambda: counted["after the stop"] >= 200)
            end.set()
            for each in flows:
                each.result(30)
        print(f"{how.name}: answered {counted}, lost {lost}")
    assert wrong == []
    # SIGTERM loses nothing; SIGKILL at most what was on its way on the dead link.
    assert len(lost) <= (0 if how is signal.SIGTERM else ASKING)
    assert capture.objections() == []
    assert {(code, request) for code in (257, 324, 282) for request in (True, False)} <= set(capture.commands())

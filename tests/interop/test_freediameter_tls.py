"""freeDiameter over TLS, directly to a node, both with certificates: it is GnuTLS on the other side, and Wireshark reads along."""

from pathlib import Path

import pytest
from dissect import capturing
from pymme import connected
from simulated.agent import DRA, DRA_REALM, EIR_REALM, in_a_network_of_its_own, relay
from simulated.certificates import Authority
from simulated.node import LISTED, UNLISTED, Site, until

EIR = "eir1.eir.test"
QUESTIONS = 50

pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path / "authority")


@pytest.fixture
def node(tmp_path, publisher, authority):
    """A node that freeDiameter may reach over TLS only."""
    with Site(tmp_path / EIR, publisher) as site:
        site.configure(
            identity={"host": EIR, "realm": EIR_REALM}, listen=["tls://127.0.0.1:0"], tls=authority.write(EIR),
            peers=[{"name": "dra", "host": DRA, "realm": DRA_REALM}],
        )  # fmt: skip
        site.load([LISTED])
        yield site.start()


@pytest.mark.long
def test_an_agent_over_tls_with_certificates_on_both_sides(node, authority, tmp_path):
    if in_a_network_of_its_own(f"{Path(__file__)}::test_an_agent_over_tls_with_certificates_on_both_sides"):
        return
    theirs = authority.write(DRA, stem="dra")
    with (
        # From before the handshake, without which nobody can read what comes after it.
        capturing(tmp_path / "tls.pcapng", secure=[node.address[1]], keys=tmp_path / "keys") as capture,
        relay(tmp_path, {EIR: node}, tls=theirs) as port,
        connected(("127.0.0.1", port), DRA, DRA_REALM, EIR_REALM) as mme,
    ):
        for number in range(QUESTIONS):
            imei, status = ((LISTED, 1), (UNLISTED, 0))[number % 2]
            answer = mme.ask(imei)
            assert (answer.result_code, answer.equipment_status, answer.origin_host.decode()) == (2001, status, EIR)
    assert capture.objections() == []
    assert capture.unanswered() == []
    inside = capture.commands("tls && diameter")
    assert {(code, request) for code in (257, 282) for request in (True, False)} <= set(inside)
    assert inside.count((324, True)) == inside.count((324, False)) == QUESTIONS
    # Nothing of it in the clear: on that port there is TLS, and data inside it.
    assert capture.read(f"tcp.port == {node.address[1]} && diameter && !tls", "frame.number") == []


@pytest.mark.long
@pytest.mark.parametrize("what", ["another authority", "another name"])
def test_an_agent_that_is_not_whom_it_should_be(node, authority, tmp_path, what):
    if in_a_network_of_its_own(f"{Path(__file__)}::test_an_agent_that_is_not_whom_it_should_be"):
        return
    # freeDiameter itself refuses to start with a certificate that is not its own authority's, or not its own name's.
    issuer = authority if what == "another name" else Authority(tmp_path / "other")
    name = DRA if what == "another authority" else "dra2.dra.test"
    theirs = issuer.write(DRA, name, stem="dra")
    if what == "another name":
        node.site.configure(peers=[{"name": "dra", "host": DRA, "realm": DRA_REALM, "tls_names": ["dra9.dra.test"]}])
        node.site.eir("reload")
    with relay(tmp_path, {EIR: node}, tls=theirs, expect=0):
        reason = "tls_name" if what == "another name" else "tls_handshake"
        until(lambda: node.lines("peer_refused", reason=reason))
        assert node.status()["peers"] == {"dra": 0}

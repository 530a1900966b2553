"""`eir serve` over SCTP: Erlang/OTP as an MME, freeDiameter as an agent, our own probe, and Wireshark's opinion of it all.

Runs in a kernel of scripts/sctp where this one has no SCTP.
"""

import subprocess

import pytest
from agent import DRA, DRA_REALM, EIR_REALM, has_an_address, relay
from dissect import capturing
from node import LISTED, TRACKED, UNLISTED, children, until
from pymme import connected
from test_otp import MME, ask, ebin  # noqa: F401 - a fixture
from wire import EIR, HOST, REALM

pytestmark = [pytest.mark.sctp, pytest.mark.timeout(300), pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")]


@pytest.fixture(scope="module", autouse=True)
def address():
    """freeDiameter does not start on a host whose only addresses are loopback's."""
    if not has_an_address():
        for command in ("ip link add eir0 type dummy", "ip addr add 192.0.2.1/24 dev eir0", "ip link set eir0 up"):
            subprocess.run(command.split(), check=True)


@pytest.fixture(scope="module")
def node(shared):
    """A node with two workers and two addresses."""
    shared.configure(
        listen=["sctp://127.0.0.1,127.0.0.2:0"], workers=2, identity={"host": EIR, "realm": REALM, "realms": [EIR_REALM]},
        peers=[
            {"name": "dra", "host": DRA, "realm": DRA_REALM}, {"name": "mme", "realm": REALM, "from": ["127.0.0.0/8"], "connections": 4},
        ],
    )  # fmt: skip
    shared.load([LISTED])
    shared.load([TRACKED], list_name="tracked")
    return shared.start()


def test_otp_is_answered_and_nothing_is_malformed(node, ebin, tmp_path):  # noqa: F811 - the fixture
    port = node.address[1]
    imeis = [f"352099001{n:05d}" for n in range(500)]
    with capturing(tmp_path / "otp.pcapng", sctp=[port]) as capture:
        status, found, done = ask(ebin, node, LISTED, TRACKED, *imeis, over="sctp:")
        assert status == 0, done
        assert found == [(LISTED, "2001", "1"), (TRACKED, "2001", "2"), *((imei, "2001", "0") for imei in imeis)]
        until(lambda: node.status()["peers"]["mme"] == 0)
    assert {(code, request) for code in (257, 324, 282) for request in (True, False)} <= set(capture.commands())
    assert capture.objections() == []
    # RFC 6733 2.1: PPID 46 on all that is ours, and one message in each DATA chunk.
    ours = [
        (ppid, command)
        for ppids, commands in capture.read(f"sctp.srcport == {port} && diameter", "sctp.data_payload_proto_id", "diameter.cmd.code")
        for ppid, command in zip(ppids.split(","), commands.split(","), strict=True)
    ]
    assert {ppid for ppid, _ in ours} == {"46"}
    assert sum(command == "324" for _, command in ours) == 502


def test_freediameter_as_an_agent(node, tmp_path):
    port = node.address[1]
    with capturing(tmp_path / "relay.pcapng", sctp=[port]) as capture, relay(tmp_path, {EIR: node}, sctp=True) as agent:
        with connected(("127.0.0.1", agent), DRA, DRA_REALM, EIR_REALM) as mme:
            for imei, status in ((LISTED, 1), (TRACKED, 2), (UNLISTED, 0)) * 10:
                answer = mme.ask(imei)
                assert (answer.result_code, answer.equipment_status) == (2001, status)
        paths = {row["label"]: row["paths"] for row in node_peers(node)}
        assert set(paths["dra"].values()) == {True}
        metrics = node.metrics()
        assert metrics["eir_sctp_paths{peer=dra,state=up}"] == len(paths["dra"])
        assert metrics["eir_sctp_paths{peer=dra,state=down}"] == 0
    assert {(code, request) for code in (257, 324, 282) for request in (True, False)} <= set(capture.commands())
    assert capture.objections() == []


def node_peers(node):
    from eir.operate.control import ask as control

    return control(node.site.state, "peers")


def test_our_own_probe_and_both_workers(node, shared):
    port = node.address[1]
    found = shared.json("probe", f"sctp://127.0.0.1,127.0.0.2:{port}", LISTED, UNLISTED, "--origin-host", HOST, "--origin-realm", REALM)
    assert [(row["imei"], row["status"]) for row in found] == [(LISTED, "blacklisted"), (UNLISTED, "whitelisted")]
    assert node.status()["listening"] == [f"sctp://127.0.0.1,127.0.0.2:{port}"]
    assert {"worker-0", "worker-1"} <= set(children(node.pid))

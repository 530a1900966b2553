"""`eir serve` over SCTP: Erlang/OTP as an MME and freeDiameter as an agent, over one path and over two, our own probe, and Wireshark's opinion.

over_sctp.py does it all in one run, in a kernel of scripts/sctp where this one has no SCTP; the tests look at what it left.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from dissect import Capture
from in_kernel import ROOT, has_sctp
from over_sctp import AGENTS, IMEIS, NEAR, OTP, OURS, PORT, THEIRS
from simulated.node import LISTED, TRACKED, UNLISTED
from simulated.patience import PROGRAM_S
from test_otp import ebin  # noqa: F401 - a fixture

pytestmark = pytest.mark.long

CLIENTS = (*OTP, *AGENTS)
PATHS = {"otp-one": 1, "otp-two": 2, "agent-two": 2}
"""Addresses of the peer that the node has to reach; the agent over one path has those of the whole host."""
NETWORK = "ip link set lo up && ip link add eir0 type dummy && ip addr add 192.0.2.1/24 dev eir0 && ip link set eir0 up"
"""freeDiameter does not start on a host whose only addresses are loopback's."""
WANTED = [[LISTED, "2001", "1"], [TRACKED, "2001", "2"], *([imei, "2001", "0"] for imei in IMEIS[2:])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, ebin):  # noqa: F811 - the fixture
    made = tmp_path_factory.mktemp("over-sctp")
    kernel = ["unshare", "-nm"]
    if not has_sctp():
        if shutil.which("linux.uml") is None:
            pytest.skip("no SCTP in this kernel, and no user-mode-linux to run it in")
        kernel = [ROOT / "scripts" / "sctp"]
    run = [sys.executable, Path(__file__).with_name("over_sctp.py"), made, ebin]
    done = subprocess.run(
        [*kernel, "sh", "-c", f'{NETWORK} && exec "$@"', "sh", *run],
        capture_output=True,
        text=True,
        timeout=PROGRAM_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return made


@pytest.fixture(scope="module")
def found(folder):
    return json.loads((folder / "found.json").read_text())


@pytest.fixture(scope="module")
def capture(folder):
    return Capture(folder / "capture.pcapng", [], sctp=[PORT])


@pytest.fixture(scope="module")
def messages(capture):
    """(SCTP port of the client, from the node, PPID, command, is a request, Origin-Host) of each message."""
    found = []
    names = (
        "sctp.srcport",
        "sctp.dstport",
        "sctp.data_payload_proto_id",
        "diameter.cmd.code",
        "diameter.flags.request",
        "diameter.Origin-Host",
    )
    for source, target, *columns in capture.read("diameter", *names):
        is_ours = source == str(PORT)
        for ppid, command, request, host in zip(*(column.split(",") for column in columns), strict=True):
            found.append((target if is_ours else source, is_ours, ppid, int(command), request in {"1", "True"}, host))
    return found


@pytest.mark.parametrize("client", CLIENTS)
def test_every_answer_is_right(found, client):
    assert found["answers"][client] == WANTED


@pytest.mark.parametrize("client", CLIENTS)
def test_each_kind_of_message_went_both_ways(messages, client):
    name = {**OTP, **AGENTS}[client][0]
    (port,) = {
        port
        for port, is_ours, _, command, request, host in messages
        if (command, request, is_ours, host) == (257, True, False, name)
    }
    own = [(command, request, is_ours) for at, is_ours, _, command, request, _ in messages if at == port]
    for command, from_client in ((257, True), (324, True), (282, True)):
        assert {(command, True, not from_client), (command, False, from_client)} <= set(own)
    assert any((280, True, ours) in own and (280, False, not ours) in own for ours in (True, False))
    assert own.count((324, False, True)) == len(IMEIS)


def test_nothing_is_malformed_and_each_data_chunk_is_a_message_of_diameter(capture, messages):
    assert capture.objections() == []
    # RFC 6733 2.1: PPID 46 on all that is ours. It came once for each DATA chunk, and as often as there are messages.
    assert {ppid for _, is_ours, ppid, *_ in messages if is_ours} == {"46"}


def test_the_node_knows_the_paths(found):
    paths = {row["label"]: row["paths"] for row in found["peers"] if row["paths"]}
    for client, number in PATHS.items():
        assert list(paths[client].values()) == [True] * number
        assert found["metrics"][f"eir_sctp_paths{{peer={client},state=up}}"] == number
        assert found["metrics"][f"eir_sctp_paths{{peer={client},state=down}}"] == 0
    assert set(paths["otp-two"]) == set(paths["agent-two"]) == set(THEIRS)
    assert set(paths["agent-one"].values()) == {True}
    assert found["ends"] == dict.fromkeys(OTP, 0)


def test_our_own_probe_and_the_listeners(found):
    assert [(row["imei"], row["status"]) for row in found["probe"]] == [
        (LISTED, "blacklisted"),
        (UNLISTED, "whitelisted"),
    ]
    assert found["listening"] == [f"sctp://{','.join(addresses)}:{PORT}" for addresses in (NEAR, OURS)]

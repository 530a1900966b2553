"""Erlang/OTP's diameter as an MME with `eir serve` over TCP: its dictionary is compiled from s13.dia and reads answers strictly."""

import os
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest
from dissect import capturing
from simulated.node import LISTED, TRACKED, UNLISTED, until
from simulated.patience import PATIENCE_S, PROGRAM_S
from simulated.servers import free_port
from simulated.wire import REALM

from eir.node.observe.control import ask as control

HERE = Path(__file__).parent
MME = "mme.otp.localdomain"


@pytest.fixture(scope="module")
def ebin(tmp_path_factory):
    """The compiled dictionary and MME."""
    folder = tmp_path_factory.mktemp("ebin")
    for command in (
        ["diameterc", "-o", folder, HERE / "s13.dia"],
        ["erlc", "-o", folder, folder / "s13.erl"],
        ["erlc", "-Wall", "-Werror", "-o", folder, HERE / "mme.erl"],
    ):
        subprocess.run(command, check=True, cwd=folder)
    return folder


def ask(ebin, node, *imeis, realm=REALM):
    """(IMEI, result, status) for each, as OTP read the answers."""
    command = [
        "erl",
        "-noshell",
        "-pa",
        ebin,
        "-run",
        "mme",
        "main",
        "-extra",
        str(node.address[1]),
        MME,
        realm,
        REALM,
        *imeis,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PROGRAM_S, check=False)
    return done.returncode, [tuple(line.split(" ", 2)) for line in done.stdout.splitlines()], done


@contextmanager
def asking(ebin, node, **environment):
    """A function that has OTP ask about one IMEI and gives the result and the status; its connections go and come meanwhile."""
    command = ["erl", "-noshell", "-pa", ebin, "-run", "mme", "main", "-extra", str(node.address[1]), MME, REALM, REALM]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | environment
    )

    def ask_about(imei):
        process.stdin.write(f"{imei}\n")
        process.stdin.flush()
        return tuple(process.stdout.readline().split()[1:])

    try:
        yield ask_about
    finally:
        process.stdin.close()
        process.wait(PATIENCE_S)
        process.stdout.close()


@pytest.mark.long
@pytest.mark.parametrize("both", [False, True])
def test_it_comes_back(site, ebin, both):
    """Out of service and in, out of the table and in; `both`: we connect to it as well, whose election OTP does not know."""
    site.load([LISTED])
    port = free_port()
    table = [
        {"name": "mme", "host": MME, "realm": REALM}
        | ({"connect": f"tcp://127.0.0.1:{port}", "reconnect_after_s": 1} if both else {})
    ]
    site.configure(peers=table)
    node = site.start()

    def answered():
        return [mme(imei) for imei in (LISTED, UNLISTED)] == [("2001", "1"), ("2001", "0")]

    def gone_and_back(go, come):
        go()
        until(lambda: not any(node.status()["peers"].values()) and not answered())
        come()
        until(answered)

    def reload(peers):
        site.configure(peers=peers)
        control(site.state, "reload")

    with asking(ebin, node, **({"MME_LISTEN": str(port)} if both else {})) as mme:
        until(answered)
        gone_and_back(
            lambda: control(site.state, "peer_disable", name="mme"),
            lambda: control(site.state, "peer_enable", name="mme"),
        )
        gone_and_back(lambda: reload([{"name": "other", "host": "other.example"}]), lambda: reload(table))


def test_it_understands_every_answer(site, ebin, tmp_path):
    site.load([LISTED], list_name="stolen")
    site.load([TRACKED], list_name="tracked")
    rules = [*site.settings["policy"]["rules"], {"tac": ["35332812"], "answer": "unknown"}]
    site.configure(policy={"rules": rules, "bad_identity": "error", "no_identity": "error"})
    node = site.start()
    with capturing(tmp_path / "otp.pcapng", node.address[1]) as capture:
        status, found, done = ask(
            ebin, node, LISTED, f"{LISTED}1", TRACKED, UNLISTED, "35332812000001", "nonsense", "-"
        )
        assert status == 0, done
        assert found == [
            (LISTED, "2001", "1"), (f"{LISTED}1", "2001", "1"), (TRACKED, "2001", "2"), (UNLISTED, "2001", "0"),
            ("35332812000001", "10415:5422", "-"), ("nonsense", "5004", "-"),
            ("-", "5005", "-"),
        ]  # fmt: skip
        until(lambda: node.status()["peers"] == {"mme": 0})
    assert {(code, request) for code in (257, 324, 282) for request in (True, False)} <= set(capture.commands())
    assert capture.objections() == []
    assert capture.unanswered() == []


def test_many_at_once_each_get_their_own_answer(site, ebin):
    imeis = [f"352099001{n:05d}" for n in range(500)]
    site.load(imeis[::2])
    status, found, done = ask(ebin, site.start(), *imeis)
    assert status == 0, done
    assert found == [(imei, "2001", str(1 - n % 2)) for n, imei in enumerate(imeis)]


def test_a_realm_that_is_not_configured_gets_3010(site, ebin):
    status, _, done = ask(ebin, site.start(), LISTED, realm="stranger.example")
    assert status == 1
    assert "3010" in done.stdout

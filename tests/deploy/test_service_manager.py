"""What the service manager is told: the node is up once it answers, and goes when it goes (sd_notify(3))."""

import os
import socket

import pytest
from simulated.node import LISTED
from simulated.patience import PATIENCE_S


@pytest.fixture
def manager(tmp_path):
    """A service manager's socket; `told` gives what came, as lines, up to one that begins so."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as link:
        link.bind(str(tmp_path / "notify"))
        link.settimeout(PATIENCE_S)

        def told(begins):
            lines = []
            while not any(line.startswith(begins) for line in lines):
                lines += link.recv(4096).decode().splitlines()
            return lines

        yield tmp_path / "notify", told


def serve(site, address):
    with (site.folder / "serve.log").open("w") as log:
        return site.popen("serve", env=site.environment(NOTIFY_SOCKET=str(address)), stderr=log)


def test_ready_is_sent_when_the_node_answers_and_stopping_before_its_end(site, manager):
    address, told = manager
    site.configure(
        lists={"stolen": {"signers": "signers"}}, policy={"rules": [{"list": "stolen", "answer": "blacklisted"}]}
    )
    site.load([LISTED])
    node = serve(site, address)
    lines = told("READY=1")
    (status,) = (line for line in lines if line.startswith("STATUS=answers on tcp://127.0.0.1:"))
    host, _, port = status.rpartition("/")[2].rpartition(":")
    socket.create_connection((host, int(port))).close()
    site.eir("drain")
    assert "READY=1" not in told("STOPPING=1")
    assert node.wait(PATIENCE_S) == 0


def test_a_node_that_cannot_start_never_reports_ready(site, manager):
    address, told = manager
    with socket.create_server(("127.0.0.1", 0)) as taken:
        site.configure(listen=[f"tcp://127.0.0.1:{taken.getsockname()[1]}"], boot_without_lists="serve")
        node = serve(site, address)
        assert node.wait(PATIENCE_S) != 0
    log = (site.folder / "serve.log").read_text()
    assert "Address already in use" in log, log
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
        last.sendto(b"the end", str(address))
    assert "READY=1" not in told("the end")


def test_one_that_waits_for_a_release_holds_nobody_back_who_is_to_load_it(site, manager):
    address, told = manager
    site.configure(boot_without_lists="refuse")
    node = serve(site, address)
    assert any(
        line.startswith("STATUS=opens no listener before these lists are loaded: stolen") for line in told("READY=1")
    )
    node.terminate()
    assert node.wait(PATIENCE_S) == 0


def test_an_address_in_the_abstract_namespace(monkeypatch):
    from eir.node.observe.log import READY, notify_service

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as link:
        link.bind(f"\0eir-test-{os.getpid()}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@eir-test-{os.getpid()}")
        notify_service(READY, "STATUS=x")
        assert link.recv(100) == b"READY=1\nSTATUS=x"
    notify_service(READY)  # and nobody listens

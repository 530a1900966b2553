"""A node and a loader that reach Redis by TLS with a client certificate and a password, which nobody gets to see."""

from contextlib import ExitStack
from pathlib import Path

import pytest
import trustme
from fleet import LIST, USER, Fleet
from simulated.node import until
from simulated.servers import Server, free_port

PASSWORD = "secret"
"""That of fleet.USER."""


@pytest.fixture
def guarded(redis_program, tmp_path):
    """A server that wants TLS, a client's certificate and a user's password, and the options of its URL."""
    authority, port = trustme.CA(), free_port()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    for name, issued in (("server", authority.issue_cert("127.0.0.1")), ("client", authority.issue_cert("eir@host"))):
        issued.private_key_pem.write_to_path(tmp_path / f"{name}.key")
        for at, part in enumerate(issued.cert_chain_pems):
            part.write_to_path(tmp_path / f"{name}.pem", append=at > 0)
    tls = {
        "port": port,
        "cert-file": tmp_path / "server.pem",
        "key-file": tmp_path / "server.key",
        "ca-cert-file": tmp_path / "ca.pem",
    }
    options = [text for name, value in tls.items() for text in (f"--tls-{name}", str(value))]
    with Server(redis_program, *options, "--tls-auth-clients", "yes", *USER.split()):
        yield f"rediss://eir@127.0.0.1:{port}?ca_file={tmp_path}/ca.pem&cert_file={tmp_path}/client.pem&key_file={tmp_path}/client.key"


@pytest.mark.long(short=["file"])
@pytest.mark.parametrize("where", ["file", "environment"])
def test_a_password_from(guarded, where, tmp_path, publisher, monkeypatch):
    url = guarded
    if where == "file":
        (tmp_path / "password").write_text(f"{PASSWORD}\n")
        url += "&password_file=../../password"  # from the folder of the configuration
    else:
        monkeypatch.setenv("EIR_REDIS_PASSWORD", PASSWORD)
    with ExitStack() as stack:
        loader, site = (
            stack.enter_context(Fleet.host(tmp_path / "sites" / name, publisher, url)) for name in ("loader", "node")
        )
        loader.load(["35209900176148"], list_name=LIST)
        node = site.start(prefix=["env"])
        until(lambda: node.get("/ready") == (200, "ready\n"))
        assert node.status()["lists"][LIST]["serial"] == 1
        shown = [
            site.eir("config").stdout,
            node.text(),
            Path(f"/proc/{node.pid}/cmdline").read_text(),
            *(loader.eir(*command).stdout for command in (("lists", "--json"), ("history", "--json"))),
        ]
        assert not [text for text in shown if PASSWORD in text]


def test_one_in_the_url_is_not_shown(guarded, tmp_path, publisher):
    with Fleet.host(tmp_path / "sites" / "node", publisher, guarded.replace("eir@", "eir:wrong-one@")) as site:
        node = site.start()
        until(lambda: node.metrics().get("eir_store_errors_total{cause=noauth}"))
        assert "rediss://eir:***@" in site.eir("config").stdout
        assert (
            "wrong-one" not in node.text() + site.eir("lists", "--store", status=1).stderr + site.eir("config").stdout
        )

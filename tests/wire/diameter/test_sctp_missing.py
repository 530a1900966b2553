"""A host whose kernel has no SCTP: what the start and `eir config` say, and how a node starts all the same."""

import in_kernel
import pytest
from simulated.node import until
from simulated.patience import PATIENCE_S

pytestmark = pytest.mark.skipif(in_kernel.has_sctp(), reason="this kernel has SCTP")


def test_a_start_prints_advice(site):
    site.configure(listen=["tcp://127.0.0.1:0", "sctp://127.0.0.1,127.0.0.2:0"])
    assert "this kernel has no SCTP: as root, modprobe sctp" in site.eir("config").stderr
    done = site.eir("serve", status=1)
    said = "cannot listen on sctp://127.0.0.1,127.0.0.2:0: "
    assert said in done.stderr
    assert "modprobe sctp" in done.stderr
    assert "sctp.optional: true" in done.stderr


def test_an_optional_listener_is_left_out(site):
    site.configure(listen=["sctp://127.0.0.1:0", "tcp://127.0.0.1:0"], sctp={"optional": True})
    node = site.start()
    assert [url.partition(":")[0] for url in node.status()["listening"]] == ["tcp"]
    (line,) = until(lambda: node.lines("listener_missing"), patience_s=PATIENCE_S)
    assert (line["address"], line["reason"]) == ("sctp://127.0.0.1:0", "no_sctp")


def test_the_probe_prints_the_advice_too(site):
    url = "s13://127.0.0.1?transport=sctp"
    assert "cannot connect to 127.0.0.1:3868" in site.eir("probe", url, "35209900176148", status=1).stderr

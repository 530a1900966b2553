"""URLs of listeners and peers."""

import pytest

from eir.errors import EirError
from eir.wire.transport.endpoint import Endpoint, endpoint


@pytest.mark.parametrize(
    ("url", "found", "shown"),
    [
        ("tcp://10.0.0.1", Endpoint("tcp", ("10.0.0.1",), 3868), "tcp://10.0.0.1:3868"),
        ("tls://dra.example.org", Endpoint("tls", ("dra.example.org",), 5868), "tls://dra.example.org:5868"),
        ("tcp://[::1]:0", Endpoint("tcp", ("::1",), 0), "tcp://[::1]:0"),
        ("sctp://10.0.0.1", Endpoint("sctp", ("10.0.0.1",), 3868), "sctp://10.0.0.1:3868"),
        (
            "sctp://10.0.0.1,[2001:db8::1]:4000",
            Endpoint("sctp", ("10.0.0.1", "2001:db8::1"), 4000),
            "sctp://10.0.0.1,[2001:db8::1]:4000",
        ),
    ],
)
def test_a_url_is_an_endpoint(url, found, shown):
    assert endpoint(url) == found
    assert str(found) == shown
    assert endpoint(shown) == found


@pytest.mark.parametrize(
    "url",
    [
        "", "10.0.0.1:3868", "udp://10.0.0.1", "tcp://", "tcp://:3868", "tcp://a,b:1", "tls://a,b", "sctp://", "sctp://a,", "sctp://,a",
        "sctp://a:1,b:1", "tcp://a:99999", "tcp://a:x", "sctp://[::1",
        "tcp://mme..example:3868", f"sctp://10.0.0.1,{'a' * 64}.example:3868",
    ],
)  # fmt: skip
def test_anything_else_is_not(url):
    with pytest.raises(EirError, match=r"expected tcp://host:port, tls://host:port or sctp://host,host:port, got"):
        endpoint(url)

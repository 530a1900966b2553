"""Where to listen or to connect to, as a configuration writes it. Imports eir.errors."""

from typing import NamedTuple
from urllib.parse import urlsplit

from eir.errors import EirError

PORTS = {"tcp": 3868, "tls": 5868}
"""The transports that there are, and their ports (RFC 6733 2.1)."""


class Endpoint(NamedTuple):
    """One end of a connection."""

    host: str
    port: int
    secure: bool
    """A TLS handshake comes first."""


def endpoint(url: str) -> Endpoint:
    """What `tcp://host:port` or `tls://host:port` says. Raises EirError for anything else."""
    parts = urlsplit(url)
    if parts.scheme not in PORTS or not parts.hostname:
        raise EirError(f"expected tcp://host:port or tls://host:port, got {url}")
    port = PORTS[parts.scheme] if parts.port is None else parts.port
    return Endpoint(parts.hostname, port, secure=parts.scheme == "tls")

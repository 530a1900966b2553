"""Endpoint of a listener or a peer, parsed from a URL: transport, one or several addresses, and port."""

from collections.abc import Sequence
from ipaddress import ip_address
from typing import NamedTuple
from urllib.parse import urlsplit

from eir.errors import EirError

TCP, TLS, SCTP = "tcp", "tls", "sctp"
PORTS = {TCP: 3868, TLS: 5868, SCTP: 3868}
"""Default ports (RFC 6733 2.1, 13.1)."""
HTTP_TRANSPORTS = {"http": TCP, "https": TLS}
HTTP_PORTS = {"http": 80, "https": 443}
"""Default ports of HTTP (RFC 9110 4.2)."""
ANY = frozenset({"0.0.0.0", "::"})  # noqa: S104 - recognizes listeners on all addresses
FORMS = "tcp://host:port, tls://host:port or sctp://host,host:port"


class Endpoint(NamedTuple):
    """Parsed URL of a listener or peer: transport, addresses and port."""

    scheme: str
    hosts: tuple[str, ...]
    """Names or addresses, IPv6 without brackets; several only with SCTP, as one multihomed endpoint (RFC 9260 3.3.2.1)."""
    port: int

    @property
    def where(self) -> str:
        """Hosts and port in the form of a URL."""
        return address_text(self.hosts, self.port)

    def __str__(self) -> str:
        """Return the endpoint as a URL."""
        return f"{self.scheme}://{self.where}"


def address_text(hosts: Sequence[str], port: int) -> str:
    """Format hosts and port as in a URL: commas between hosts, and brackets around an IPv6 address."""
    return f"{','.join(f'[{host}]' if ':' in host else host for host in hosts)}:{port}"


def may_be_host(text: str) -> bool:
    """Return whether the text is a valid host name. Example of an invalid name: `mme..example`."""
    try:
        return bool(text.encode("idna"))
    except UnicodeError:
        return False


def hosts_and_port(text: str) -> tuple[tuple[str, ...], int | None]:
    """Split a text `HOST,HOST:PORT` into hosts and port. The port may be missing. Raises ValueError."""
    parts = [urlsplit(f"//{each}") for each in text.split(",")]
    hosts = tuple(part.hostname or "" for part in parts)
    *others, port = (part.port for part in parts)
    if any(others) or not all(map(may_be_host, hosts)) or any(mark in text for mark in "/?#@"):
        raise ValueError
    return hosts, port


def endpoint(url: str) -> Endpoint:
    """Parse a URL of the form `tcp://`, `tls://` or `sctp://`; each has a default port. Raises EirError."""
    scheme, _, rest = url.partition("://")
    try:
        hosts, port = hosts_and_port(rest)
    except ValueError:
        hosts, port = (), None
    if scheme not in PORTS or not hosts or (len(hosts) > 1 and scheme != SCTP):
        raise EirError(f"expected {FORMS}, got {url}")
    return Endpoint(scheme, hosts, PORTS[scheme] if port is None else port)


def is_http(url: str) -> bool:
    """Return whether the URL of a listener has the scheme http or https."""
    return url.partition("://")[0] in HTTP_TRANSPORTS


def is_secure(url: str) -> bool:
    """Return whether connections to this listener begin with a TLS handshake."""
    return url.startswith(("https:", "tls:"))


def is_loopback(url: str) -> bool:
    """Return whether the URL's host is a loopback address, so that only programs on this host can connect."""
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listening_at(url: str) -> Endpoint:
    """Parse the URL of a listener: a URL with the scheme tcp, tls, sctp, http or https. Raises EirError."""
    scheme, _, rest = url.partition("://")
    if scheme not in HTTP_TRANSPORTS:
        return endpoint(url)
    at = endpoint(f"{HTTP_TRANSPORTS[scheme]}://{rest}")
    return at if urlsplit(url).port is not None else at._replace(port=HTTP_PORTS[scheme])

"""The endpoint of a listener or a peer: a URL with the transport, one or several addresses, and the port.

Opens nothing.
"""

from collections.abc import Sequence
from ipaddress import ip_address
from typing import NamedTuple
from urllib.parse import urlsplit

from eir.errors import EirError

TCP, TLS, SCTP = "tcp", "tls", "sctp"
PORTS = {TCP: 3868, TLS: 5868, SCTP: 3868}
"""RFC 6733 2.1, 13.1."""
HTTP_TRANSPORTS = {"http": TCP, "https": TLS}
HTTP_PORTS = {"http": 80, "https": 443}
"""RFC 9110 4.2."""
ANY = frozenset({"0.0.0.0", "::"})  # noqa: S104 - what listens at all addresses is found by it
FORMS = "tcp://host:port, tls://host:port or sctp://host,host:port"


class Endpoint(NamedTuple):
    """The parts of a URL."""

    scheme: str
    hosts: tuple[str, ...]
    """Names or addresses, IPv6 without brackets; more than one only with SCTP, which makes one endpoint of them (RFC 9260 3.3.2.1)."""
    port: int

    @property
    def where(self) -> str:
        """Hosts and port, as they stand in the URL."""
        return address_text(self.hosts, self.port)

    def __str__(self) -> str:
        """The URL."""
        return f"{self.scheme}://{self.where}"


def address_text(hosts: Sequence[str], port: int) -> str:
    """Hosts with their port as a URL has them: several with commas between them, an IPv6 address in brackets."""
    return f"{','.join(f'[{host}]' if ':' in host else host for host in hosts)}:{port}"


def may_be_host(text: str) -> bool:
    """False for what no host can be called, such as `mme..example`."""
    try:
        return bool(text.encode("idna"))
    except UnicodeError:
        return False


def endpoint(url: str) -> Endpoint:
    """The endpoint that a URL names; without a port it is the transport's own. Raises EirError for another form."""
    scheme, _, rest = url.partition("://")
    *others, last = rest.split(",")
    try:
        parts = [urlsplit(f"//{each}") for each in (*others, last)]
        hosts, ports = tuple(part.hostname or "" for part in parts), [part.port for part in parts]
    except ValueError:
        hosts, ports = (), []
    if (
        scheme not in PORTS
        or not all(map(may_be_host, hosts))
        or any(ports[:-1])
        or len(hosts) != (1 if scheme != SCTP else max(len(hosts), 1))
    ):
        raise EirError(f"expected {FORMS}, got {url}")
    return Endpoint(scheme, hosts, PORTS[scheme] if ports[-1] is None else ports[-1])


def is_http(url: str) -> bool:
    """True if the listener is one of HTTP, and not one of Diameter."""
    return url.partition("://")[0] in HTTP_TRANSPORTS


def is_secure(url: str) -> bool:
    """True if connections to this listener, of any protocol, begin with a TLS handshake."""
    return url.startswith(("https:", "tls:"))


def is_loopback(url: str) -> bool:
    """True if only programs on this host reach the listener."""
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listening_at(url: str) -> Endpoint:
    """Return the address of a listener of any protocol. Raises EirError for another form."""
    scheme, _, rest = url.partition("://")
    if scheme not in HTTP_TRANSPORTS:
        return endpoint(url)
    at = endpoint(f"{HTTP_TRANSPORTS[scheme]}://{rest}")
    return at if urlsplit(url).port is not None else at._replace(port=HTTP_PORTS[scheme])

"""Settings of SCTP and TLS, and parser for the address of a socket."""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class SctpSettings:
    """Settings for the detection of a lost path or peer over SCTP (RFC 9260 6.3, 8, 16).

    The defaults are for links within a core network, with round trips below 50 ms. Those of RFC 9260 (1 s to 60 s) are for the Internet, and
    longer than a phone waits.
    """

    local_addresses: tuple[str, ...] = ()
    """Source addresses of outgoing connections; empty: all addresses of the host."""
    rto_initial_s: float = 0.5
    """Initial retransmission timeout in seconds, before the first measured round trip."""
    rto_min_s: float = 0.3
    """Minimum retransmission timeout in seconds. It is above the 200 ms by which a peer may delay a SACK, to avoid needless retransmissions."""
    rto_max_s: float = 1.0
    """Maximum retransmission timeout in seconds; the timeout doubles each time."""
    heartbeat_s: float = 5.0
    """Seconds between two heartbeats on an idle path."""
    path_retransmissions: int = 4
    """Consecutive timeouts after which a path is lost (Path.Max.Retrans)."""
    association_retransmissions: int = 8
    """Consecutive timeouts on all paths after which the association is lost (Association.Max.Retrans)."""
    optional: bool = False
    """True if the node starts without its SCTP listeners on a kernel without SCTP."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsSettings:
    """PEM files with the node's certificate, its key and the trusted authorities of peers; minimum TLS version."""

    certificate: Path
    """File with the certificate of the node, followed by its intermediate certificates."""
    key: Path
    """File with the private key, without a passphrase."""
    ca: Path
    """File with the trusted authorities of peers' certificates."""
    crl: Path | None = None
    """File with the revocation lists of these authorities; None: revocation is not checked."""
    min_version: str = "1.2"
    """Minimum TLS version, `1.2` or `1.3` (RFC 6733 13.1; RFC 8996 deprecates versions before 1.2)."""


def source_address(text: str) -> IPv4Address | IPv6Address:
    """Parse the IP address of a socket. An IPv4-mapped IPv6 address of a dual-stack socket becomes IPv4."""
    address = ip_address(text.partition("%")[0])
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address

"""Settings of transports: SCTP and TLS; and the address of a socket."""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class SctpSettings:
    """Settings that detect a lost path or peer over SCTP (RFC 9260 6.3, 8, 16).

    The defaults are for links within a core network, with round trips below 50 ms. Those of RFC 9260 (1 s at least, 60 s at most) are
    for the Internet, and no phone waits that long.
    """

    local_addresses: tuple[str, ...] = ()
    """Addresses that the node connects from; empty: all that the host has."""
    rto_initial_s: float = 0.5
    """Retransmission timeout before a round trip was measured."""
    rto_min_s: float = 0.3
    """The minimum (s). It is above the 200 ms that a peer may take for a SACK, or data that arrived would be sent
    again."""
    rto_max_s: float = 1.0
    """The greatest: it doubles with each timeout."""
    heartbeat_s: float = 5.0
    """Seconds between two heartbeats on a path that carries nothing."""
    path_retransmissions: int = 4
    """Timeouts in a row after which a path counts as lost (Path.Max.Retrans)."""
    association_retransmissions: int = 8
    """Timeouts in a row, over all paths, after which the peer does (Association.Max.Retrans)."""
    optional: bool = False
    """A kernel without SCTP keeps no node from starting: its listeners for SCTP are left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsSettings:
    """The node's own certificate, and its requirements for those of its peers. Files are PEM."""

    certificate: Path
    """The node's own certificate, then those of the authorities between it and one that peers know."""
    key: Path
    """Its private key, without a passphrase."""
    ca: Path
    """Certificates of the authorities that peers' certificates have to come from."""
    crl: Path | None = None
    """Certificates that those authorities have revoked; None: nothing is looked up."""
    min_version: str = "1.2"
    """`1.2` or `1.3` (RFC 6733 13.1; TLS before 1.2: RFC 8996)."""


def source_address(text: str) -> IPv4Address | IPv6Address:
    """A socket's address. An IPv4 address that a dual-stack socket shows as IPv6 is returned as IPv4."""
    address = ip_address(text.partition("%")[0])
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address

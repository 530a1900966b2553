"""Source address of a connection, the peer table entries that accept it, and the names in a certificate.

Opens nothing.
"""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address

from eir.peers.settings import PeerSettings


def source_address(text: str) -> IPv4Address | IPv6Address:
    """A socket's address. An IPv4 address that a dual-stack socket shows as IPv6 is returned as IPv4."""
    address = ip_address(text.partition("%")[0])
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address


def may_connect(peers: Sequence[PeerSettings], source: IPv4Address | IPv6Address) -> bool:
    """True if any entry of the peer table takes connections from there."""
    return any(is_from(settings, source) and (settings.sources or not settings.is_titled) for settings in peers)


def is_from(settings: PeerSettings, source: IPv4Address | IPv6Address) -> bool:
    """True if an entry of the peer table takes connections from there."""
    return not settings.sources or any(source in network for network in settings.sources)


def holds(names: Sequence[str], wanted: str) -> bool:
    """True if a certificate has a name by RFC 6125 6.4: without case, a star for the whole first label and nothing else."""
    name = wanted.lower()
    beyond_first = name.partition(".")[2]
    return any(held.lower() == name or (bool(beyond_first) and held.lower() == f"*.{beyond_first}") for held in names)

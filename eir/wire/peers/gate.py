"""Limits on the number of unidentified connections, in total and for each source network.

A node has a Gate. The manager, which accepts connections for several nodes, counts with SourceCounts.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_network
from typing import Generic, Protocol, TypeVar

from eir.wire.peers.settings import Limits, PeerSettings, may_connect
from eir.wire.transport.settings import source_address

NETWORK_BITS = {4: 24, 6: 64}
"""Number of leading bits of an address that identify its source network, by IP version."""
GRACE_S = 1.0
"""Seconds that a connection beyond a limit has to send its CER; half of `cer_timeout_s` if that is shorter.

After an outage all peers of a network connect at the same moment, and each sends its CER one round trip later.
"""
CROWD = 3
"""Multiple of a limit up to which connections are tolerated for that time; further connections are closed at once."""

Address = IPv4Address | IPv6Address
Network = tuple[int, int]
"""IP version, and the leading bits."""
Counted = Network | None
"""Source network for which a connection counts; None: an address without an entry in the peer table."""


class Arrival(Protocol):
    """Connection whose peer is not identified yet."""

    source: Address

    def has_unread(self) -> bool:
        """Return true if the socket holds bytes that the node has not read."""


A = TypeVar("A", bound=Arrival)


def network_of(source: Address) -> Network:
    """Return the network of an address for limits per network: IPv4 /24 or IPv6 /64, the usual range of one customer."""
    return source.version, int(source) >> source.max_prefixlen - NETWORK_BITS[source.version]


def client_key(address: str) -> str:
    """Return the key for limits on one client: its IPv4 address, or its IPv6 /64 network."""
    try:
        source = source_address(address)
    except ValueError:
        return address
    return str(IPv6Network((source, NETWORK_BITS[6]), strict=False) if source.version == 6 else source)


class SourceCounts:
    """Number of open incoming connections, in total and from each source network."""

    def __init__(self) -> None:
        self.total = 0
        """Number of connections from all sources."""
        self._by_source: Counter[Counted] = Counter()

    def __getitem__(self, source: Counted) -> int:
        return self._by_source[source]

    def refusal(self, source: Address, peers: Sequence[PeerSettings], limits: Limits, connections: int) -> str | None:
        """Return the reason to reject a further connection from a source, or None to accept the connection.

        The reason is `source`, or the name of the exceeded limit.
        """
        if not may_connect(peers, source):
            return "source"
        if connections >= limits.connections_max:
            return "connections_max"
        full = self._by_source[network_of(source)] >= limits.source_connections_max
        return "source_connections_max" if full else None

    def add(self, source: Counted) -> None:
        """Count a new connection."""
        self.total += 1
        self._by_source[source] += 1

    def remove(self, source: Counted) -> None:
        """Subtract 1 from the number of open connections, in total and from the source network `source`."""
        self.total -= 1
        self._by_source[source] -= 1
        if not self._by_source[source]:
            del self._by_source[source]

    def elements(self) -> Iterable[Counted]:
        """Return the source of each connection."""
        return self._by_source.elements()


class Gate(Generic[A]):
    """Counter of a node's incoming connections. For each surplus unidentified connection it calls `drop` with the name of the exceeded limit."""

    def __init__(self, drop: Callable[[A, str], None]) -> None:
        self._drop = drop
        self.sources = SourceCounts()
        self._peers: Sequence[PeerSettings] = ()
        self._limits = Limits()
        self._unidentified: dict[A, float] = {}
        """Connections without a valid CER, the oldest first, with the time of their arrival on the loop's clock."""
        self._soon: asyncio.Handle | None = None
        self._later: asyncio.TimerHandle | None = None
        """Next checks of their number."""

    def enter(self, link: A, peers: Sequence[PeerSettings], limits: Limits) -> None:
        """Add an accepted connection to two counts: of its source network, and of unidentified connections."""
        loop = asyncio.get_running_loop()
        self._peers, self._limits = peers, limits
        self.sources.add(network_of(link.source))
        self._unidentified[link] = loop.time()
        if self._soon is None and len(self._unidentified) > min(
            limits.source_unidentified_max, limits.unidentified_max
        ):
            # A loop may accept many connections before it reads from any: read each one first.
            self._soon = loop.call_soon(loop.call_soon, self._trim)

    def identified(self, link: A) -> None:
        """Count a connection as identified, because its peer has sent a valid CER."""
        self._unidentified.pop(link, None)

    def leave(self, link: A) -> None:
        """Subtract an ended connection from all counts."""
        self._unidentified.pop(link, None)
        self.sources.remove(network_of(link.source))
        if not self._unidentified and self._later is not None:
            self._later.cancel()
            self._later = None

    def _trim(self) -> None:
        """Close connections that have sent no CER and exceed a limit.

        A well-behaved peer sends its CER at once; the connections of a flood send none.
        """
        for check in (self._soon, self._later):
            if check is not None:
                check.cancel()
        self._soon = self._later = None
        by_network: dict[Network, list[A]] = {}
        for link in self._unidentified:
            by_network.setdefault(network_of(link.source), []).append(link)
        spared: set[A] = set()
        limits = self._limits
        # A network's limit above the limit for all networks has no effect.
        for links in by_network.values() if limits.source_unidentified_max <= limits.unidentified_max else ():
            spared |= self._thin(links, limits.source_unidentified_max, "source_unidentified_max")
        # Connections that are tolerated for a moment do not count for the limit of all networks.
        spared |= self._thin(
            [link for link in self._unidentified if link not in spared], limits.unidentified_max, "unidentified_max"
        )
        if spared:
            self._later = asyncio.get_running_loop().call_later(self._grace_s, self._trim)

    @property
    def _grace_s(self) -> float:
        return min(GRACE_S, self._limits.cer_timeout_s / 2)

    def _thin(self, links: Sequence[A], most: int, reason: str) -> set[A]:
        """Close connections above the limit `most`. Return the connections above the limit that stay open for a short time.

        They stay open for that time, because their CERs may be unread or on their way.
        """
        if len(links) <= most:
            return set()
        most += named_connections(self._peers, links)
        beyond, at_once = len(links) - most, len(links) - CROWD * most
        now, spared = asyncio.get_running_loop().time(), set()
        for place, link in enumerate(_surplus(links, beyond)):
            if (place < at_once or now - self._unidentified[link] >= self._grace_s) and not link.has_unread():
                del self._unidentified[link]
                self._drop(link, reason)
            else:
                spared.add(link)
        return spared


def named_connections(peers: Sequence[PeerSettings], links: Sequence[A]) -> int:
    """Return how many connections the peer table permits to known peers that may connect from the source networks of `links`.

    A known peer has an entry with its host or with its single address.
    """
    networks = {ip_network((link.source, NETWORK_BITS[link.source.version]), strict=False) for link in links}
    by_version = {version: [each for each in networks if each.version == version] for version in NETWORK_BITS}
    count = 0
    for settings in peers:
        here = [
            source for source in settings.sources if any(source.overlaps(each) for each in by_version[source.version])
        ]
        if settings.host is not None:
            count += settings.connections if here or not settings.sources else 0
        else:
            count += settings.connections * sum(source.num_addresses == 1 for source in here)
    return count


def _surplus(links: Sequence[A], count: int) -> list[A]:
    """Choose the connections that must close, at most `count`, and return them. `links`: open connections, the oldest first.

    Each choice is the oldest connection of the address that has the most connections at that moment.
    """
    so_far: Counter[Address] = Counter()
    ranked = []
    for link in reversed(links):
        so_far[link.source] += 1
        ranked.append((so_far[link.source], link))
    ranked.reverse()
    return [link for _, link in sorted(ranked, key=lambda each: -each[0])[: max(0, count)]]

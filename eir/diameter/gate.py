"""Which connections are let in at all, before they have said who they are: by how many there are, and from where they come.

A node has a Gate. A process that accepts connections for several nodes counts by Sources.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from ipaddress import IPv4Address, IPv6Address

from eir.diameter.capabilities import may_connect
from eir.diameter.settings import Limits, PeerSettings
from eir.diameter.transport.link import Link

NETWORK_BITS = {4: 24, 6: 64}
"""By IP version: bits of an address that name its source network."""

Address = IPv4Address | IPv6Address
Network = tuple[int, int]
"""IP version, and those bits."""


def network_of(source: Address) -> Network:
    """The source network that limits count by: what one customer, or one site, usually has of addresses."""
    return source.version, int(source) >> source.max_prefixlen - NETWORK_BITS[source.version]


class Sources:
    """Connections that others made, by source network."""

    def __init__(self) -> None:
        self._by_network: Counter[Network] = Counter()

    def refusal(self, source: Address, peers: Sequence[PeerSettings], limits: Limits, connections: int) -> str | None:
        """Why one more is not wanted beside so many `connections`: `source`, or the limit that it would exceed."""
        if not may_connect(peers, source):
            return "source"
        if connections >= limits.connections_max:
            return "connections_max"
        full = self._by_network[network_of(source)] >= limits.source_connections_max
        return "source_connections_max" if full else None

    def add(self, source: Address) -> None:
        """Count a connection."""
        self._by_network[network_of(source)] += 1

    def remove(self, source: Address) -> None:
        """It is gone."""
        network = network_of(source)
        self._by_network[network] -= 1
        if not self._by_network[network]:
            del self._by_network[network]


class Gate:
    """The connections of a node that others made. `drop` closes one, for the limit that it is told."""

    def __init__(self, drop: Callable[[Link, str], None]) -> None:
        self._drop = drop
        self.sources = Sources()
        self._unidentified: dict[Link, bool] = {}
        """Those of which no good CER has come yet, the oldest first."""
        self._trimming: asyncio.Handle | None = None

    def enter(self, link: Link, limits: Limits) -> None:
        """A connection was let in."""
        self.sources.add(link.source)
        self._unidentified[link] = True
        if self._trimming is None and len(self._unidentified) > min(limits.source_unidentified_max, limits.unidentified_max):
            # A loop may accept many before it reads from any: each gets a chance to be read first.
            loop = asyncio.get_running_loop()
            self._trimming = loop.call_soon(loop.call_soon, self._trim, limits)

    def identified(self, link: Link) -> bool:
        """Its CER came, or it is about to go: it does not count as unidentified any more. False if it did not before."""
        return self._unidentified.pop(link, False)

    def leave(self, link: Link) -> None:
        """A connection is gone."""
        self._unidentified.pop(link, None)
        self.sources.remove(link.source)

    def _trim(self, limits: Limits) -> None:
        """Close connections without a CER beyond a limit: a good peer sends its CER at once, a flood does not."""
        self._trimming = None
        by_network: dict[Network, list[Link]] = {}
        for link in self._unidentified:
            by_network.setdefault(network_of(link.source), []).append(link)
        for links in by_network.values():
            for link in _surplus(links, limits.source_unidentified_max):
                self._drop(link, "source_unidentified_max")
        for link in _surplus(self._unidentified, limits.unidentified_max):
            self._drop(link, "unidentified_max")


def _surplus(links: Collection[Link], most: int) -> list[Link]:
    """Which of these connections, the oldest first, have to go: of the address that has the most of them its oldest, again and again."""
    by_address: dict[Address, deque[Link]] = {}
    for link in links:
        by_address.setdefault(link.source, deque()).append(link)
    return [max(by_address.values(), key=len).popleft() for _ in range(len(links) - most)]

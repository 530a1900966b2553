"""The clients of one protocol in a worker: their connections, who each is, limits, counts, drain.

A protocol derives from Server. Listeners are the supervisor's; a connection that was accepted is handed to `take`.
"""

import asyncio
import socket
import ssl
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from eir.errors import Report
from eir.wire.peers.counts import Counts
from eir.wire.peers.link import Link, Turns
from eir.wire.peers.rate import RateLimits
from eir.wire.peers.settings import Limits, PeerSettings, Requester
from eir.wire.transport import begin
from eir.wire.transport.sctp import DIAMETER, Carried
from eir.wire.transport.stream import fault_text

TICK_S = 0.5
"""Seconds between checks for what takes too long."""
ENDED = "ended"
"""The state of connections that are over, in `eir peers`."""
PEER_CLOSED, STALLED_WRITE = "peer_closed", "stalled_write"
GOOD_ENDS = frozenset({"left", "drained", "idle", PEER_CLOSED})


@dataclass(slots=True)
class _Ended:
    """Connections of a peer that are over: many clients make one for each request."""

    requester: Requester
    """The requester of the last one."""
    connections: int = 0
    requests: int = 0
    answers: int = 0
    in_order: bool = True
    """Neither side was at fault at the end of the last one."""


class End(NamedTuple):
    """End of the last connection of a peer, of those that are over."""

    label: str
    in_order: bool
    """Neither side was at fault."""


L = TypeVar("L", bound=Link)


class Server(Generic[L]):
    """Answers clients over one protocol. `rates` are the node's limits, which all protocols draw from together."""

    carried: Carried = DIAMETER
    """The way SCTP carries the protocol, for one that goes over it."""

    def __init__(self, protocol: str, *, counts: Counts, rates: RateLimits, report: Report) -> None:
        self.protocol = protocol
        """The protocol's name in metrics."""
        self.report = report
        self.loop = asyncio.get_running_loop()
        self.turns = Turns(self.loop)
        self.peers: tuple[PeerSettings, ...] = ()
        self.limits = Limits()
        self.errors: Counter[str] = Counter()
        """Connections that were ended for a fault, and faults of our own, by reason."""
        self.links: set[L] = set()
        self.draining = False
        self.node_counts = counts
        """Counts of all protocols together."""
        self._tls: ssl.SSLContext | None = None
        self._rates = rates
        self._ended: dict[str, _Ended] = {}
        """Connections that are over, by peer label."""
        self._disabled: set[str] = set()
        self._tick: asyncio.TimerHandle | None = None

    # what a protocol gives

    def link(self) -> L:
        """A connection that is to come."""
        raise NotImplementedError

    def who(self, link: L) -> tuple[PeerSettings, Requester] | None:
        """The peer table's entry for a client, and the requester; None if no entry takes the client."""
        raise NotImplementedError

    def counters(self) -> Mapping[str, Mapping[Any, float]]:
        """Counters of this protocol alone: metric → labels → number."""
        raise NotImplementedError

    def gauges(self) -> Mapping[str, Mapping[Any, float]]:
        """Gauges of this protocol alone: metric → labels → number."""
        return {}

    def standing(self, link: L) -> Mapping[str, Any]:  # noqa: ARG002 - a protocol whose connections have states tells of them
        """Further fields of a connection for `eir peers`: at least its state."""
        return {"state": "open"}

    def warnings(self) -> Mapping[str, str]:
        """Return warnings for `eir status`, by peer label."""
        return {}

    def paths(self) -> Sequence[tuple[str, str, bool]]:
        """Return the paths of SCTP: peer label, address, and whether it is reached."""
        return ()

    # what the daemon calls

    def doubt(self, name: str) -> None:
        """A client of another worker has said this name."""

    def dial(self) -> None:
        """Connect to whom the protocol connects to, from now on."""

    def use(self, peers: Sequence[PeerSettings], limits: Limits, tls: ssl.SSLContext | None = None) -> None:
        """Take over new settings; connections that they still allow stay, the others are sent away."""
        self.peers, self.limits, self._tls = tuple(peers), limits, tls
        for link in list(self.links):
            if not self.identify(link):
                link.leave()

    async def take(self, connection: socket.socket, *, secure: bool = False) -> End | None:
        """Serve a connection that was accepted, until it is gone, and return its end; None if no entry takes the client.

        `secure`: the connection begins with a TLS handshake.
        """
        link = self.link()
        if secure and self._tls is None:
            connection.close()
            return None
        try:
            await begin.accept(link, connection, self._tls if secure else None, self.limits.cer_timeout_s, self.carried)
        except OSError as e:
            connection.close()
            if secure and not link.closed.done():
                self.refused("tls_handshake", detail=fault_text(e, secure=True))
            return None
        await link.closed
        ended = self._ended.get(link.requester.label)
        return None if link.settings is None or ended is None else End(link.requester.label, ended.in_order)

    async def drain(self, timeout_s: float) -> None:
        """Tell each client to go elsewhere, answer what is under way, and close, after `timeout_s` at most."""
        self.draining = True
        for link in list(self.links):
            link.leave()
        if closing := [link.closed for link in self.links]:
            await asyncio.wait(closing, timeout=timeout_s)
        for link in (rest := list(self.links)):
            link.abort()
        if rest:
            await asyncio.wait([link.closed for link in rest])
        if self._tick is not None:
            self._tick.cancel()

    def disable(self, label: str) -> None:
        """Turn a peer away until `enable`."""
        self._disabled.add(label)
        for link in list(self.links):
            if link.requester.label == label:
                link.leave()

    def enable(self, label: str) -> None:
        """Take a peer again that was disabled."""
        self._disabled.discard(label)

    def disabled(self) -> Collection[str]:
        """Labels that are turned away, some of which no entry may have."""
        return self._disabled

    def connected(self) -> Counter[str]:
        """Connections by peer label."""
        return Counter(link.requester.label for link in self.links if link.settings is not None)

    def status(self) -> list[Mapping[str, Any]]:
        """A row of `eir peers` for each connection, and one for those of each peer that are over."""
        last = self.node_counts.last_request
        return [
            *(
                self._row(
                    link.requester, address=link.address, since=link.since, connections=1, requests=link.tally[0],
                    answers=link.tally[1], **self.standing(link), last_seen=max(link.since, last.get(link.requester.label, 0.0)),
                )
                for link in self.links if link.settings is not None
            ),
            *(
                self._row(
                    ended.requester, address=None, state=ENDED, since=None, connections=ended.connections, requests=ended.requests,
                    answers=ended.answers, last_seen=last.get(label),
                )
                for label, ended in self._ended.items()
            ),
        ]  # fmt: skip

    # what a protocol calls

    def identify(self, link: L) -> bool:
        """Return whether an entry takes the client and its peer is in service; set the requester and its limits."""
        found = self.who(link)
        if found is None:
            return False
        link.settings, link.requester = found
        link.rates = self._rates.of(link.settings, self.loop.time())
        return link.requester.label not in self._disabled

    def watch(self) -> None:
        """Look at each connection again and again from now on (`Link.tick`), so that what takes too long ends."""
        if self._tick is None:
            self._tick = self.loop.call_later(TICK_S, self._look)

    def opened(self, link: L) -> None:
        """Tell of a connection whose client the peer table has."""
        asks = link.requester
        self.report("peer_open", peer=asks.label, protocol=self.protocol, host=asks.host or None, address=link.address)

    def answered(self, link: L, count: int, seconds: float) -> None:
        """Count this many answered requests, each with this duration."""
        self.node_counts.durations.add(seconds, count)
        self.node_counts.last_request[link.requester.label] = time.time()

    def refused(self, reason: str, **fields: object) -> None:
        """Count and tell of a connection that is not wanted."""
        self.node_counts.peers_refused[reason] += 1
        told = {name: value for name, value in fields.items() if value is not None}
        self.report("peer_refused", peer=None, protocol=self.protocol, reason=reason, level="warning", **told)

    def lost(self, link: L) -> None:
        """Forget a connection, and say why it ended."""
        if link not in self.links:
            return
        self.links.discard(link)
        if link.settings is None:
            return  # it was told of as refused
        requests, answers = link.tally
        ended = self._ended.setdefault(link.requester.label, _Ended(link.requester))
        ended.requester = link.requester
        ended.connections += 1
        ended.requests += requests
        ended.answers += answers
        why = STALLED_WRITE if link.unread else link.end or PEER_CLOSED
        ended.in_order = why in GOOD_ENDS
        if ended.in_order:
            self.report(
                "peer_closed", peer=link.requester.label, protocol=self.protocol, reason=why, address=link.address
            )
        else:
            self.errors[why] += 1
            self.report(
                "connection_fault",
                peer=link.requester.label,
                protocol=self.protocol,
                reason=why,
                level="warning",
                address=link.address,
            )

    def _look(self) -> None:
        now = self.loop.time()
        for link in list(self.links):
            link.tick(now)
        self._tick = self.loop.call_later(TICK_S, self._look)

    def _row(self, who: Requester, **more: Any) -> Mapping[str, Any]:
        return {
            "label": who.label, "host": who.host or None, "realm": who.realm or None, "protocol": self.protocol, "watchdog": "none", "paths": {},
            "direction": "in", "last_error": None, "last_error_at": None, **more,
        }  # fmt: skip

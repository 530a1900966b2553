"""Base class of a protocol's server: connections, identification of peers, rejections, counters, drain.

A protocol derives from Server. `serve` receives an accepted connection; its protocol calls `admit` before it reads from it.
"""

import asyncio
import socket
import ssl
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from eir.errors import Report, place_of
from eir.wire.peers.counts import Counts
from eir.wire.peers.link import PeerConnection, Turns
from eir.wire.peers.rate import DEFAULT_PRIORITY, Limit, RateLimits, refusing
from eir.wire.peers.settings import Limits, PeerSettings, Requester, setting_for
from eir.wire.peers.status import PeerStatus
from eir.wire.transport import begin
from eir.wire.transport.sctp import DIAMETER
from eir.wire.transport.stream import Handshakes, fault_text

TICK_S = 0.5
"""Seconds between two checks for expired limits of time."""
ENDED = "ended"
"""State of ended connections in `eir peers`."""
PEER_CLOSED = "peer_closed"
GOOD_ENDS = frozenset({"left", "drained", "idle", PEER_CLOSED})
DRAINING, SOURCE, DISABLED, UNKNOWN_PEER = "draining", "source", "disabled", "unknown_peer"
"""Reasons for which a connection is rejected in any protocol; UNKNOWN_PEER: an entry matches its address, but none its name."""


@dataclass(slots=True)
class _Ended:
    """Counts of the ended connections of one peer, and of their requests and answers, for one row of `eir peers`.

    The connections share a row, because many clients open a new connection for each request.
    """

    requester: Requester
    """Requester of the last one."""
    connections: int = 0
    requests: int = 0
    answers: int = 0
    in_order: bool = True
    """True if the last one ended without a fault."""

    def add(self, requester: Requester, tally: tuple[int, int], why: str) -> None:
        """Add an ended connection to the sums. `tally`: number of its requests, and number of its answers. `why`: reason of its end."""
        self.requester = requester
        self.connections += 1
        self.requests += tally[0]
        self.answers += tally[1]
        self.in_order = why in GOOD_ENDS


class End(NamedTuple):
    """End of a connection: label of the peer, and whether the connection ended without a fault."""

    label: str
    in_order: bool
    """True if it ended without a fault."""


C = TypeVar("C", bound=PeerConnection[Any])


class Server(Generic[C]):
    """Server of one protocol for its peers. `rates`: rate limits of the node, which all protocols share."""

    carried = DIAMETER
    """SCTP parameters of the protocol."""

    def __init__(self, protocol: str, *, counts: Counts, rates: RateLimits, report: Report) -> None:
        self.protocol = protocol
        """Name of the protocol in metrics."""
        self.report = report
        self.loop = asyncio.get_running_loop()
        self.turns = Turns(self.loop)
        self._handshakes = Handshakes()
        self.peers: tuple[PeerSettings, ...] = ()
        self.limits = Limits()
        self.errors: Counter[str] = Counter()
        """Connections closed for a fault, and faults of this program, by reason."""
        self.links: dict[int, C] = {}
        """All connections by number, the oldest first."""
        self.draining = False
        self.node_counts = counts
        """Counters of all protocols together."""
        self._tls: ssl.SSLContext | None = None
        self._rates = rates
        self._ended: dict[str, _Ended] = {}
        """Ended connections, by peer label."""
        self._disabled: set[str] = set()
        self._tick: asyncio.TimerHandle | None = None

    # Implemented by a protocol

    def link(self) -> C:
        """Create the protocol object for a new connection."""
        raise NotImplementedError

    def who(self, link: C) -> tuple[PeerSettings, Requester] | None:
        """Return the client's entry in the peer table, and its identity for checks (Requester); None if no entry matches."""
        raise NotImplementedError

    def counters(self) -> Mapping[str, Mapping[Any, float]]:
        """Return the protocol's own counters by metric name and label values."""
        raise NotImplementedError

    def gauges(self) -> Mapping[str, Mapping[Any, float]]:
        """Return the protocol's own gauges by metric name and label values."""
        return {}

    def standing(self, link: C) -> Mapping[str, Any]:  # noqa: ARG002 - for protocols whose connections have states
        """Return the protocol-specific fields of a connection's row in `eir peers`, at least `state`."""
        return {"state": "open"}

    def may_shake_hands(self, link: C) -> bool:  # noqa: ARG002 - for protocols that reject connections before the handshake
        """Return whether the TLS handshake of a connection may begin."""
        return True

    def send_away(self, link: C, why: str) -> None:  # noqa: ARG002 - for protocols whose connections end for a named reason
        """End a connection in the orderly way of its protocol, so that the peer sends its requests to a different node."""
        link.leave()

    def reconsider(self, link: C) -> None:
        """Apply new settings to a connection, or end the connection if the settings do not permit it."""
        if self.identify(link) is not None:
            self.send_away(link, "removed")

    def dial_all(self) -> None:
        """Start the outgoing connections that the settings require, and stop outgoing connections that the settings no longer have."""

    # Calls of the owner

    def dial(self) -> None:
        """Start the outgoing connections of the protocol. The server opens no outgoing connection before this call."""

    def use(self, peers: Sequence[PeerSettings], limits: Limits, tls: ssl.SSLContext | None = None) -> None:
        """Apply new settings, and close the connections that the new settings do not permit."""
        self.peers, self.limits, self._tls = tuple(peers), limits, tls
        for link in list(self.links.values()):
            self.reconsider(link)

    async def serve(self, connection: socket.socket, *, secure: bool = False) -> End | None:
        """Serve an accepted connection until its end; return its `End`, or None if its peer is not in the peer table.

        `secure`: the connection begins with a TLS handshake.
        """
        link = self.link()
        try:
            await (self._shake_hands(link, connection) if secure else begin.accept(link, connection, self.carried))
        except OSError:
            connection.close()
            return None
        await link.closed
        if link.settings is None:
            return None
        ended = self._ended.get(link.requester.label)  # only of protocols whose clients connect for requests
        return End(link.requester.label, ended is not None and ended.in_order)

    async def drain(self, timeout_s: float) -> None:
        """Ask all peers to disconnect, answer pending requests, and close remaining connections after `timeout_s`."""
        self.draining = True
        for link in list(self.links.values()):
            self.send_away(link, "drained")
        if closing := [link.closed for link in self.links.values()]:
            await asyncio.wait(closing, timeout=timeout_s)
        for link in (rest := list(self.links.values())):
            link.abort()
        if rest:
            await asyncio.wait([link.closed for link in rest])
        if self._tick is not None:
            self._tick.cancel()

    def disable(self, label: str) -> None:
        """Take a peer out of service: end its connections, and reject it until `enable`."""
        self._disabled.add(label)
        for link in list(self.links.values()):
            if link.requester.label == label:
                self.send_away(link, DISABLED)
        self.dial_all()

    def enable(self, label: str) -> None:
        """Put a disabled peer into service again."""
        self._disabled.discard(label)
        self.dial_all()

    def disabled(self) -> Collection[str]:
        """Return the labels of disabled peers, including labels whose peer table entry was removed."""
        return self._disabled

    def connected(self) -> Counter[str]:
        """Return the number of open connections by peer label."""
        return Counter(link.requester.label for link in self.links.values() if link.is_open)

    def paths(self) -> Sequence[tuple[str, str, bool]]:
        """Return the SCTP paths to connected peers, each as label, address, and whether the address is reachable."""
        return [
            (link.requester.label, *path)
            for link in self.links.values() if link.is_open
            for path in link.paths().items()
        ]  # fmt: skip

    def status(self) -> list[PeerStatus]:
        """Return the rows of `eir peers`: one for each connection, and one per peer for all its ended connections."""
        rows = [self.row(link) for link in self.links.values() if link.settings is not None]
        for label, ended in self._ended.items():
            host, realm = ended.requester.host or None, ended.requester.realm or None
            tally = {"connections": ended.connections, "requests": ended.requests, "answers": ended.answers}
            rows.append(self.absent(label, ENDED, host=host, realm=realm, **tally))
        return rows

    # Calls of a protocol

    def refusal(self, link: C, fault: str | None = None) -> str | None:
        """Identify the peer of a connection; return the reason why the connection must be rejected, or None if it is accepted.

        `fault`: reason that the protocol has found before.
        """
        return DRAINING if self.draining else fault or self.identify(link)

    def admit(self, link: C) -> bool:
        """Accept a connection, or count and log its rejection; return whether the connection is accepted."""
        if (reason := self.refusal(link)) is not None:
            self.refused(reason, address=link.address, setting=setting_for(reason))
            return False
        self.enter(link)
        return True

    def enter(self, link: C) -> None:
        """Add a connection to the table of connections."""
        self.links[link.number] = link

    def identify(self, link: C) -> str | None:
        """Store the peer's entry in the connection; return the reason to reject the peer, or None to accept it."""
        identity = self.who(link)
        if identity is None:
            return SOURCE
        link.identified(*identity, self._rates.of(identity[0], self.loop.time()))
        return DISABLED if link.requester.label in self._disabled else None

    def past_limit(self, label: str, rates: Sequence[Limit], priority: int = DEFAULT_PRIORITY) -> str:
        """Return the reason of the first rate limit that a request exceeds, or an empty text.

        A request above a limit is counted as shed.
        """
        limit = refusing(rates, self.loop.time(), priority)
        if limit is None:
            return ""
        self.node_counts.shed[label, limit.reason] += 1
        return limit.reason

    def watch(self) -> None:
        """Start a periodic call of `PeerConnection.tick` for each connection, every TICK_S, to enforce time limits."""
        if self._tick is None:
            self._tick = self.loop.call_later(TICK_S, self._check_timers)

    def opened(self, link: C) -> None:
        """Log that a connection is open and its peer identified."""
        asks = link.requester
        host, realm = asks.host or None, asks.realm or None
        self.report("peer_open", peer=asks.label, protocol=self.protocol, host=host, realm=realm, address=link.address)

    def answered(self, link: C, count: int, seconds: float) -> None:
        """Count `count` answered requests of a connection, each with a duration of `seconds`."""
        self.node_counts.durations.add(seconds, count)
        self.node_counts.last_request[link.requester.label] = time.time()

    def refused(self, reason: str, *, level: str = "warning", **fields: object) -> None:
        """Count and log a rejected connection."""
        self.node_counts.peers_refused[reason] += 1
        known = {name: value for name, value in fields.items() if value is not None}
        self.report("peer_refused", peer=None, protocol=self.protocol, reason=reason, level=level, **known)

    def failed(self, fault: Exception, peer: str | None = None) -> None:
        """Count and log an internal error: an unexpected exception of this program."""
        self.errors["internal"] += 1
        self.report("fault", peer=peer, reason="internal", level="error", detail=place_of(fault))

    def lost(self, link: C) -> None:
        """Remove an ended connection, and log the reason of its end."""
        if self.links.pop(link.number, None) is None or link.settings is None:
            return  # without an entry, only the rejection is logged
        why = link.end or PEER_CLOSED
        ended = self._ended.setdefault(link.requester.label, _Ended(link.requester))
        ended.add(link.requester, link.tally, why)
        about = {"peer": link.requester.label, "protocol": self.protocol, "reason": why, "address": link.address}
        if ended.in_order:
            self.report("peer_closed", **about)
        else:
            self.errors[why] += 1
            self.report("connection_fault", level="warning", **about)

    def row(self, link: C) -> PeerStatus:
        """Return the row of `eir peers` for one connection."""
        asks, (requests, answers) = link.requester, link.tally
        shown: dict[str, Any] = {
            "label": asks.label, "host": asks.host or None, "realm": asks.realm or None, "protocol": self.protocol, "address": link.address,
            "connections": 1, "since": link.since, "requests": requests, "answers": answers, "paths": link.paths(),
            "direction": "out" if link.outgoing else "in",
            "last_seen": max(link.since, self.node_counts.last_request.get(asks.label, 0.0)),
        }  # fmt: skip
        return PeerStatus(**{**shown, **self.standing(link)})

    def absent(self, label: str, state: str, **more: Any) -> PeerStatus:
        """Return the row of `eir peers` for a configured peer that has no connection."""
        last_seen = self.node_counts.last_request.get(label)
        return PeerStatus(**{"label": label, "protocol": self.protocol, "state": state, "last_seen": last_seen} | more)

    # inside

    async def _shake_hands(self, link: C, connection: socket.socket) -> None:
        """Perform the TLS handshake of a new connection, unless limits on handshakes reject it.

        Raises:
            OSError: if the handshake fails.
        """
        link.expect(connection)
        if self._tls is None or not self.may_shake_hands(link):
            raise ConnectionRefusedError
        try:
            await self._handshakes.accept(link, connection, self._tls, self.limits.cer_timeout_s)
        except OSError as e:
            if not link.closed.done():
                # The connection never began, so it does not report its end.
                self.refused("tls_handshake", address=link.address, detail=fault_text(e, secure=True))
                self.lost(link)
                link.gone()
            raise

    def _check_timers(self) -> None:
        now = self.loop.time()
        for link in list(self.links.values()):
            link.tick(now)
        self._tick = self.loop.call_later(TICK_S, self._check_timers)

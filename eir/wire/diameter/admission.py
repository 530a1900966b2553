"""Admission: decides which connections of one peer may be open at the same time (RFC 6733 2.1, 5.6, 5.6.4).

No I/O, no clock, no sockets.

A node reports the events of its connections, and executes the returned orders.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

from eir.wire.diameter.result import ELECTION_LOST, UNABLE_TO_COMPLY

FAILED_MAX = 1024
"""Maximum number of peers with a remembered watchdog failure; the oldest is dropped."""


@dataclass(frozen=True, slots=True)
class Admit:
    """Order of the admission control: answer the CER with success."""

    connection: int
    failed_before: bool
    """True if the watchdog closed the peer's last connection, so that this one begins in REOPEN (RFC 3539)."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """Order of the admission control: answer the CER with an error, and close the connection."""

    connection: int
    result_code: int
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class ProbeOldest:
    """Order of the admission control: send a DWR on the peer's oldest connection at once, before the watchdog's timer is due.

    If the DWA arrives, the owner calls `alive`; if not, it closes the connection with the reason `duplicate_silent`.
    """

    connection: int


@dataclass(frozen=True, slots=True)
class Drop:
    """Order of the admission control: close the connection at once."""

    connection: int
    reason: str


@dataclass(frozen=True, slots=True)
class Yield:
    """Order of the admission control: send a DPR on an outgoing connection, because the peer's own connection replaces it."""

    connection: int


Order = Admit | Refuse | ProbeOldest | Drop | Yield


@dataclass(frozen=True, slots=True)
class Claim:
    """Connection that has sent a valid CER and waits for the decision of the admission."""

    connection: int
    host: str
    """Origin-Host of the peer."""
    connections_max: int
    origin_state_id: int
    """0 if the CER has no Origin-State-Id."""
    label: str = ""
    """Label of the peer's entry in the peer table."""


class Attempt(NamedTuple):
    """Outgoing connection whose CEA has not arrived yet."""

    connection: int
    our_host: str
    """Origin-Host of the node on this connection."""


class Admission:
    """State of the admission: open connections of every peer, and connections that wait for a decision.

    The methods handle one event each, and return the orders for the connections.
    """

    def __init__(self) -> None:
        self.connections: dict[str, OrderedDict[int, int]] = {}
        """Connections by host in lower case, the oldest first, with the Origin-State-Id of their CER."""
        self.hosts: dict[int, str] = {}
        """Host of each open connection."""
        self.labels: dict[int, str] = {}
        """Label of each open incoming connection."""
        self.probed: dict[int, Claim] = {}
        """Claims that wait for the place of an oldest connection, by that connection, which was sent a DWR."""
        self.attempts: dict[str, Attempt] = {}
        """Attempts to connect to peers, by host."""
        self.waiting: dict[int, Claim] = {}
        """Connections that wait for the end of an election."""
        self._ours: set[int] = set()
        """Open outgoing connections."""
        self.failed: OrderedDict[str, bool] = OrderedDict()
        self._not_before: dict[str, float] = {}
        """Time before which the node does not connect to a peer that offered no common application, by label."""

    def is_open(self, host: str) -> bool:
        """Return true if the peer has an open connection."""
        return bool(self.connections.get(host.lower()))

    def may_dial(self, host: str | None, label: str, now: float) -> bool:
        """Return True if the node may connect now to a peer whose entry in the peer table has this label.

        The node must not connect while the peer (without a host: any peer of the entry) has a connection to the node, nor before
        the time of `stay_away`.
        """
        if now < self._not_before.get(label, now):
            return False
        return label not in self.labels.values() if host is None else not self.is_open(host)

    def stay_away(self, label: str, until: float) -> None:
        """Forbid outgoing connections to the peer with this label before `until`.

        The peer offers no common application, so it would reject the node's CER. `until`: time on the monotonic clock of the
        host.
        """
        self._not_before[label] = until

    def arrived(self, claim: Claim) -> list[Order]:
        """Return the orders for an incoming connection that has sent a valid CER. During an election with its peer the list is empty."""
        host = claim.host.lower()
        attempt = self.attempts.get(host)
        if attempt is None:
            return self._orders_for_claim(claim)
        # 5.6.4: both ends connect at the same time, and the CEA has not arrived yet.
        if attempt.our_host.lower() > host:
            # Win-Election: I-Disc, R-Snd-CEA.
            del self.attempts[host]
            return [Drop(attempt.connection, "election"), *self._orders_for_claim(claim)]
        self.waiting[claim.connection] = claim
        return []

    def dialing(self, connection: int, host: str, our_host: str) -> list[Order]:
        """Record that the node has begun to connect to the peer `host`; a call of `opened` or `closed` ends the attempt."""
        self.attempts[host.lower()] = Attempt(connection, our_host)
        return []

    def opened(self, connection: int, host: str, origin_state_id: int) -> list[Order]:
        """Add an outgoing connection that has opened; return the orders that refuse waiting incoming connections of the same peer (R-Disc).

        The outgoing connection has won the election.
        """
        host = host.lower()
        self.attempts.pop(host, None)
        self.failed.pop(host, None)
        self._add(connection, host, origin_state_id)
        self._ours.add(connection)
        lost = (claim.connection for claim in self._end_election(host))
        return [Refuse(other, ELECTION_LOST, "election_lost", "our own connection is open") for other in lost]

    def alive(self, connection: int) -> list[Order]:
        """Return the order to refuse the new connection that waits for the place of `connection`, because `connection` answered a DWR."""
        claim = self.probed.pop(connection, None)
        return [_one_too_many(claim.connection)] if claim is not None else []

    def closed(self, connection: int, reason: str = "") -> list[Order]:
        """Remove an ended connection or connection attempt; return the orders for waiting connections of the same peer.

        If the `reason` is `watchdog`, the peer's next connection begins in REOPEN (RFC 3539).
        """
        self.waiting.pop(connection, None)
        self._ours.discard(connection)
        self.probed = {oldest: claim for oldest, claim in self.probed.items() if claim.connection != connection}
        orders: list[Order] = []
        host = self.hosts.pop(connection, None)
        self.labels.pop(connection, None)
        if host is not None:
            connections = self.connections[host]
            del connections[connection]
            if not connections:
                del self.connections[host]
            if reason == "watchdog":
                self.failed[host] = True
                if len(self.failed) > FAILED_MAX:
                    self.failed.popitem(last=False)
        waiting = self.probed.pop(connection, None)
        if waiting is not None:
            orders += self._orders_for_claim(waiting)
        for dialed, attempt in list(self.attempts.items()):
            if attempt.connection == connection:
                # The attempt failed: decide on the peer's own connection, if it waits (I-Peer-Disc).
                del self.attempts[dialed]
                orders += [order for claim in self._end_election(dialed) for order in self._orders_for_claim(claim)]
        return orders

    def _end_election(self, host: str) -> list[Claim]:
        """End the election with a peer: remove and return the incoming connections that waited for its result."""
        ended = [claim for claim in self.waiting.values() if claim.host.lower() == host]
        for claim in ended:
            del self.waiting[claim.connection]
        return ended

    def _orders_for_claim(self, claim: Claim) -> list[Order]:
        """Return the orders for a connection that has sent a valid CER. They depend on the number of open connections of its peer.

        At the limit, an outgoing connection is closed by a DPR and the claim admitted. If no connection is outgoing, the claim
        replaces the oldest connection, unless that connection answers a DWR.
        """
        connections = self.connections.get(claim.host.lower()) or OrderedDict()
        if len(connections) < claim.connections_max:
            return self._admit(claim)
        oldest, known = next(iter(connections.items()))
        if claim.origin_state_id > known > 0:
            # RFC 6733 8.16: the peer has restarted and has lost its old connection, and a connection that waits for
            # its place.
            waiting = self.probed.pop(oldest, None)
            refused = [_one_too_many(waiting.connection)] if waiting is not None else []
            return [*refused, *self.closed(oldest), Drop(oldest, "restarted"), *self._admit(claim)]
        if (ours := next((name for name in connections if name in self._ours), None)) is not None:
            # Some peers conclude from the refusal of their own attempt that the node is dead, even if another
            # connection is open.
            return [*self.closed(ours), *self._admit(claim), Yield(ours)]
        if oldest in self.probed:
            return [_one_too_many(claim.connection)]
        self.probed[oldest] = claim
        return [ProbeOldest(oldest)]

    def _admit(self, claim: Claim) -> list[Order]:
        host = claim.host.lower()
        self._add(claim.connection, host, claim.origin_state_id)
        self.labels[claim.connection] = claim.label
        return [Admit(claim.connection, self.failed.pop(host, False))]

    def _add(self, connection: int, host: str, origin_state_id: int) -> None:
        self.connections.setdefault(host, OrderedDict())[connection] = origin_state_id
        self.hosts[connection] = host


def _one_too_many(connection: int) -> Refuse:
    return Refuse(connection, UNABLE_TO_COMPLY, "duplicate", "its other connection is alive")

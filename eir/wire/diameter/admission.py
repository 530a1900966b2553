"""Admission: the connections that a peer may have open at once (RFC 6733 2.1, 5.6, 5.6.4).

No I/O, no clock, no sockets.

One decides for a whole node: where a node has several workers it stands in a process of its own, each worker tells it what
happens, and does what it orders. A connection is named by whatever its owner calls it.
"""

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from eir.wire.diameter.result import ELECTION_LOST, UNABLE_TO_COMPLY

FAILED_MAX = 1024
"""Peers of which it is remembered that their watchdog gave them up; the oldest is forgotten."""

Name = Hashable


@dataclass(frozen=True, slots=True)
class Admit:
    """Answer the CER: the connection is wanted."""

    connection: Name
    failed_before: bool
    """The peer's last connection was given up by its watchdog (RFC 3539: it is REOPEN at first)."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """Answer the CER by an error, and close."""

    connection: Name
    result_code: int
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Probe:
    """Send a DWR out of turn; tell `alive` if its answer comes, and drop the connection (`duplicate_silent`) if not."""

    connection: Name


@dataclass(frozen=True, slots=True)
class Drop:
    """Close the connection at once."""

    connection: Name
    reason: str


@dataclass(frozen=True, slots=True)
class Yield:
    """Send a DPR: a connection that we made leaves its place to the peer's own."""

    connection: Name


Order = Admit | Refuse | Probe | Drop | Yield


@dataclass(frozen=True, slots=True)
class Claim:
    """The claim of a good CER."""

    connection: Name
    host: str
    """Origin-Host of the peer."""
    connections_max: int
    origin_state_id: int
    """0 if the CER has no Origin-State-Id."""
    label: str = ""
    """The entry of the peer table that it is by."""


class Attempt(NamedTuple):
    """A connection that we make."""

    connection: Name
    our_host: str
    """The Origin-Host that we show on it."""


class AdmissionControl(Protocol):
    """The place where a node reports its connections and gets its orders.

    Orders come at once, or by `Node.obey` if admission is decided elsewhere.
    """

    def arrived(self, claim: Claim) -> Sequence[Order]:
        """See Admission.arrived."""

    async def may_dial(self, host: str | None, label: str, now: float) -> bool:
        """Return whether the node may connect to a peer of the entry with this label.

        The node may not while the peer (without a host: any peer of the entry) has a connection anywhere in the node, nor before
        the time of `stay_away`.
        """

    def stay_away(self, label: str, until: float) -> None:
        """See Admission.stay_away."""

    def dialing(self, connection: int, host: str, our_host: str) -> Sequence[Order]:
        """See Admission.dialing."""

    def opened(self, connection: int, host: str, origin_state_id: int) -> Sequence[Order]:
        """See Admission.opened."""

    def alive(self, connection: int) -> Sequence[Order]:
        """See Admission.alive."""

    def closed(self, connection: int, reason: str) -> Sequence[Order]:
        """See Admission.closed."""


class Admission:
    """The open connections of every peer, and those that wait to be. Each call returns what is to be done."""

    def __init__(self) -> None:
        self.connections: dict[str, OrderedDict[Name, int]] = {}
        """Host in lower case → connections, the oldest first, each with the Origin-State-Id of its CER."""
        self.hosts: dict[Name, str] = {}
        """The host of each open connection."""
        self.labels: dict[Name, str] = {}
        """The entry of the peer table of each that a peer made."""
        self.probed: dict[Name, Claim] = {}
        """Oldest connections that were asked for a sign of life → the one that waits for their place."""
        self.attempts: dict[str, Attempt] = {}
        """Peers that we are connecting to, by host."""
        self.waiting: dict[Name, Claim] = {}
        """Connections that wait for the end of an election."""
        self._ours: set[Name] = set()
        """Open connections that we made."""
        self.failed: OrderedDict[str, bool] = OrderedDict()
        self._not_before: dict[str, float] = {}
        """Label of each entry whose peer showed none of our applications → time before which the node does not connect to the peer."""

    def is_open(self, host: str) -> bool:
        """True if the peer has an open connection."""
        return bool(self.connections.get(host.lower()))

    async def may_dial(self, host: str | None, label: str, now: float) -> bool:
        """See AdmissionControl.may_dial."""
        if now < self._not_before.get(label, now):
            return False
        return label not in self.labels.values() if host is None else not self.is_open(host)

    def stay_away(self, label: str, until: float) -> None:
        """Keep the node from connecting to the peer of an entry: the peer would reject our CER as we rejected its own.

        `until`: time on the monotonic clock of the host.
        """
        self._not_before[label] = until

    def arrived(self, claim: Claim) -> list[Order]:
        """A good CER came."""
        host = claim.host.lower()
        attempt = self.attempts.get(host)
        if attempt is None:
            return self._weigh(claim)
        # 5.6.4: we connect to it while it connects to us, and have not heard its CEA yet.
        if attempt.our_host.lower() > host:
            # Win-Election: I-Disc, R-Snd-CEA.
            del self.attempts[host]
            return [Drop(attempt.connection, "election"), *self._weigh(claim)]
        self.waiting[claim.connection] = claim
        return []

    def dialing(self, connection: Name, host: str, our_host: str) -> list[Order]:
        """We are connecting to this peer; until `opened` or `closed`."""
        self.attempts[host.lower()] = Attempt(connection, our_host)
        return []

    def opened(self, connection: Name, host: str, origin_state_id: int) -> list[Order]:
        """A connection that we made is open: it has won, and the peer's own attempts go (R-Disc)."""
        host = host.lower()
        self.attempts.pop(host, None)
        self.failed.pop(host, None)
        self._add(connection, host, origin_state_id)
        self._ours.add(connection)
        lost = (claim.connection for claim in self._end_election(host))
        return [Refuse(other, ELECTION_LOST, "election_lost", "our own connection is open") for other in lost]

    def alive(self, connection: Name) -> list[Order]:
        """A probed connection answered its DWR: the one that waits for its place does not get it."""
        claim = self.probed.pop(connection, None)
        return [_one_too_many(claim.connection)] if claim is not None else []

    def closed(self, connection: Name, reason: str = "") -> list[Order]:
        """A connection is gone, or an attempt failed. The `reason` `watchdog` is a failure by RFC 3539."""
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
            orders += self._weigh(waiting)
        for dialed, attempt in list(self.attempts.items()):
            if attempt.connection == connection:
                # Our attempt came to nothing: the peer's own connection, if it waits, is weighed (I-Peer-Disc).
                del self.attempts[dialed]
                orders += [order for claim in self._end_election(dialed) for order in self._weigh(claim)]
        return orders

    def _end_election(self, host: str) -> list[Claim]:
        """Release and return the claims that waited for the end of the election with this peer."""
        ended = [claim for claim in self.waiting.values() if claim.host.lower() == host]
        for claim in ended:
            del self.waiting[claim.connection]
        return ended

    def _weigh(self, claim: Claim) -> list[Order]:
        """One connection too many: one that we made makes room, or else the oldest does unless it proves that it lives."""
        there = self.connections.get(claim.host.lower()) or OrderedDict()
        if len(there) < claim.connections_max:
            return self._admit(claim)
        oldest, known = next(iter(there.items()))
        if claim.origin_state_id > known > 0:
            # RFC 6733 8.16: the peer has restarted since, and knows nothing of its old connection, nor of one that waits.
            waiting = self.probed.pop(oldest, None)
            refused = [_one_too_many(waiting.connection)] if waiting is not None else []
            return [*refused, *self.closed(oldest), Drop(oldest, "restarted"), *self._admit(claim)]
        if (ours := next((name for name in there if name in self._ours), None)) is not None:
            # Some peers take the refusal of their own attempt for our death, whatever stands beside it.
            return [*self.closed(ours), *self._admit(claim), Yield(ours)]
        if oldest in self.probed:
            return [_one_too_many(claim.connection)]
        self.probed[oldest] = claim
        return [Probe(oldest)]

    def _admit(self, claim: Claim) -> list[Order]:
        host = claim.host.lower()
        self._add(claim.connection, host, claim.origin_state_id)
        self.labels[claim.connection] = claim.label
        return [Admit(claim.connection, self.failed.pop(host, False))]

    def _add(self, connection: Name, host: str, origin_state_id: int) -> None:
        self.connections.setdefault(host, OrderedDict())[connection] = origin_state_id
        self.hosts[connection] = host


def _one_too_many(connection: Name) -> Refuse:
    return Refuse(connection, UNABLE_TO_COMPLY, "duplicate", "its other connection is alive")

"""The node's counters: plain numbers that someone else turns into metrics.

The label of a connection that has not identified itself yet is OTHER, and so is every name from the wire that is not in
the dictionary: what a stranger sends must not create counters.
"""

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

OTHER = "other"

DURATION_BUCKETS_S = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
"""Upper bounds of the histogram of check durations; one more bucket holds longer ones."""


@dataclass(slots=True)
class Durations:
    """A histogram of how long requests took, from the read that brought them to the write of their answers."""

    buckets: list[int] = field(default_factory=lambda: [0] * (len(DURATION_BUCKETS_S) + 1))
    """Requests for each bound of DURATION_BUCKETS_S (not cumulative), and at the end those above the last."""
    total_s: float = 0.0

    def add(self, seconds: float, requests: int) -> None:
        """Count `requests` that took `seconds` each."""
        self.buckets[bisect_left(DURATION_BUCKETS_S, seconds)] += requests
        self.total_s += seconds * requests


@dataclass(slots=True)
class Counts:
    """All counters of a node."""

    messages: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)
    """(peer label, command name, `request` | `answer`, `in` | `out`)."""
    answers: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Answers sent: (peer label, result), a result being `2001`, or `10415:5422` for an Experimental-Result."""
    errors: Counter[str] = field(default_factory=Counter)
    """Faults seen on the wire, by reason; each answer that is an error, and each connection closed for a fault."""
    peers_refused: Counter[str] = field(default_factory=Counter)
    """Connections refused before they were open, by reason."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Messages that got no answer, by reason."""
    shed: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Requests refused for load: (peer label, reason)."""
    sctp_restarts: Counter[str] = field(default_factory=Counter)
    """Associations that a peer restarted, by its label."""
    sctp_retransmissions: Counter[str] = field(default_factory=Counter)
    """DATA chunks that were sent again, by peer label."""
    last_request: dict[str, float] = field(default_factory=dict)
    """Peer label → Unix time of its last application request."""
    durations: Durations = field(default_factory=Durations)

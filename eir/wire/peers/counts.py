"""Counters of the node as plain numbers. Another module converts them to metrics.

OTHER is the label of a connection before its identification, and of every name from the wire that is not in the dictionary, so
that strangers cannot create counters.
"""

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

OTHER = "other"

DURATION_BUCKETS_S = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
"""Upper bounds (s) of the histogram of check durations; one more bucket holds longer ones."""


@dataclass(slots=True)
class Durations:
    """Histogram of the durations of requests, from the read of the request to the write of its answer."""

    buckets: list[int] = field(default_factory=lambda: [0] * (len(DURATION_BUCKETS_S) + 1))
    """Number of requests for each bound of DURATION_BUCKETS_S (not cumulative), and at the end of those above the last."""
    total_s: float = 0.0

    def add(self, seconds: float, requests: int) -> None:
        """Count `requests` that took `seconds` each."""
        self.buckets[bisect_left(DURATION_BUCKETS_S, seconds)] += requests
        self.total_s += seconds * requests


@dataclass(slots=True)
class Counts:
    """Counters of a node: messages, answers, faults, rejected connections, and durations."""

    messages: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)
    """Messages by peer label, command name, `request` or `answer`, and `in` or `out`."""
    answers: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Answers sent, by peer label and result: `2001`, or `10415:5422` for an Experimental-Result."""
    errors: Counter[str] = field(default_factory=Counter)
    """Faults of peers by reason: each error answer, and each connection closed for a fault."""
    peers_refused: Counter[str] = field(default_factory=Counter)
    """Connections rejected before they were open, by reason."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Messages without an answer, by reason."""
    shed: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Requests rejected for load, by peer label and reason."""
    sctp_restarts: Counter[str] = field(default_factory=Counter)
    """SCTP associations restarted by a peer, by its label."""
    sctp_retransmissions: Counter[str] = field(default_factory=Counter)
    """Retransmitted SCTP DATA chunks, by peer label."""
    last_request: dict[str, float] = field(default_factory=dict)
    """Unix time of the last application request, by peer label."""
    durations: Durations = field(default_factory=Durations)

"""Rows of `eir peers`. A row shows a connection, or the reason why a peer has no connection."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerStatus:
    """Row of `eir peers`: a connection, the ended connections of a peer, or a configured peer without connection."""

    label: str
    host: str | None = None
    """Name of the peer, in Diameter its Origin-Host; None before its identification."""
    realm: str | None = None
    protocol: str | None
    """Interface; None without a connection, because the peer may use any protocol."""
    address: str | None = None
    """`ip:port` of the peer; None without a connection."""
    connections: int = 0
    state: str
    """State of the connection in lower case (`open`, `wait_cer`, …); `down`, `disabled` or `ended` without one."""
    since: float | None = None
    """Unix time when the connection was made; None without one."""
    requests: int = 0
    """Number of application requests received."""
    answers: int = 0
    """Number of answers sent to them."""
    watchdog: str = "none"
    """okay, suspect, down, reopen or initial (RFC 3539 3.4.1); none if the protocol has no watchdog."""
    paths: Mapping[str, bool] = field(default_factory=dict)
    """Addresses of the peer with SCTP paths, and whether each is reachable; empty over TCP."""
    direction: str = "in"
    """`out` if the node makes the connection, `in` if the peer makes it."""
    last_error: str | None = None
    """Last reason for which the peer was rejected, rejected the node, or was not reached; None if a connection was opened later."""
    last_error_at: float | None = None
    """Unix time of the last error."""
    last_seen: float | None = None
    """Unix time of the last request, or of a later beginning or end of a connection; None: never."""


class Failure(NamedTuple):
    """Last failure of a connection to a peer, and whether the node or the peer has rejected the connection."""

    at: float
    """Unix time."""
    text: str
    refusal: bool
    """True if one of the two has rejected the other, so that an equal attempt would fail too."""

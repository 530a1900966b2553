"""A row of `eir peers`: one connection, or a peer that has none; and why it has none."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerStatus:
    """One connection as `eir peers` shows it, the connections of a peer that are over, or a configured peer that has none."""

    label: str
    host: str | None = None
    """Name that the peer has shown, of Diameter its Origin-Host; None before it has."""
    realm: str | None = None
    protocol: str | None
    """The interface; None without a connection, where nobody knows which protocol the peer will speak."""
    address: str | None = None
    """`ip:port` of the peer's side; None without a connection."""
    connections: int = 0
    state: str
    """The connection's state in lower case (`open`, `wait_cer`, …); `down`, `disabled` or `ended` without one."""
    since: float | None = None
    """Unix time since when the connection stands; None without one."""
    requests: int = 0
    """Application requests received."""
    answers: int = 0
    """Answers to them sent."""
    watchdog: str = "none"
    """okay, suspect, down, reopen or initial (RFC 3539 3.4.1); none where the protocol has no such watchdog."""
    paths: Mapping[str, bool] = field(default_factory=dict)
    """Addresses of the peer that SCTP has paths to, and whether each is reached; empty over TCP."""
    direction: str = "in"
    """`out` where we connect to the peer, `in` where it connects to us."""
    last_error: str | None = None
    """The last reason why the peer was refused, refused us, or could not be reached; None if an open connection began
    later."""
    last_error_at: float | None = None
    """Unix time of that."""
    last_seen: float | None = None
    """Unix time of the last request, or of the beginning or end of a connection if that is later; None: never so far."""


class Failure(NamedTuple):
    """The reason why a peer, by its label, had no connection."""

    at: float
    """Unix time."""
    text: str
    refusal: bool
    """One of the two has refused the other: an attempt like it will fare no better."""

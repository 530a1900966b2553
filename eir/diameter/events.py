"""Events that a Peer reports to its owner, the node or a client. Data only."""

from dataclasses import dataclass
from enum import IntEnum

from eir.diameter.capabilities import Capabilities
from eir.diameter.message import Answer
from eir.peers.settings import PeerSettings


class DisconnectCause(IntEnum):
    """RFC 6733 5.4.3."""

    REBOOTING = 0
    BUSY = 1
    DO_NOT_WANT_TO_TALK_TO_YOU = 2


@dataclass(frozen=True, slots=True)
class Arrived:
    """A good CER came; the owner calls `admit` or `refuse`, now or later."""

    capabilities: Capabilities
    settings: PeerSettings


@dataclass(frozen=True, slots=True)
class Opened:
    """The capabilities are exchanged."""


@dataclass(frozen=True, slots=True)
class Leaving:
    """A DPR went one way or the other: the connection still answers, but the peer may open another in its place."""


@dataclass(frozen=True, slots=True)
class Alive:
    """The peer answered a DWR of ours."""


@dataclass(frozen=True, slots=True)
class Answered:
    """The answer to a request that was sent by `ask`."""

    hop_by_hop: int
    answer: Answer


@dataclass(frozen=True, slots=True)
class Closed:
    """The connection is over: write what is left, then close the transport."""

    reason: str
    detail: str
    reset: bool
    """Do not wait for anything: the peer's bytes make no sense."""
    entry: str | None = None
    """The entry of the peer table by which, or nearly, the peer was refused."""


Event = Arrived | Opened | Leaving | Alive | Answered | Closed

"""The node: listeners, the peer table, limits on connections, drain and reconfiguration (RFC 6733 2, 5)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from eir.diameter.answer import Reply
from eir.diameter.counts import Counts
from eir.diameter.message import Request
from eir.diameter.settings import Identity, Limits, PeerSettings, Report

__all__ = ["Application", "Counts", "Identity", "Limits", "Node", "PeerSettings", "PeerStatus", "Reply", "Report", "Request"]

Application = Callable[[Request], Reply]
"""Answers one request, synchronously. Raises DiameterError for a fault of the request; anything else becomes a 5012."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerStatus:
    """One connection as `eir peers` shows it, or a configured peer that has none."""

    label: str
    host: str | None
    """Origin-Host; None before the CER."""
    realm: str | None
    address: str | None
    """`ip:port` of the peer's side; None without a connection."""
    state: str
    """The peer's state in lower case (`open`, `wait_cer`, …), `down`, or `disabled`."""
    since: float
    """Unix time since when the connection stands; 0 without one."""
    requests: int
    """Application requests received."""
    answers: int
    """Answers to them sent."""
    watchdog: str
    """okay, suspect, down, reopen or initial (RFC 3539 3.4.1)."""


class Node:
    """One Diameter node on the running event loop."""

    def __init__(
        self,
        identity: Identity,
        peers: Sequence[PeerSettings],
        limits: Limits,
        application: Application,
        *,
        counts: Counts,
        report: Report,
        application_id: int = 16777252,
    ) -> None:
        raise NotImplementedError

    async def listen(self, url: str) -> tuple[str, int]:
        """Open a listener at `tcp://host:port` (port 0: any free one) and return its address and port."""
        raise NotImplementedError

    def reconfigure(
        self, peers: Sequence[PeerSettings], identity: Identity | None = None, limits: Limits | None = None
    ) -> None:
        """Take over new settings; connections that they still allow stay, others are sent a DPR and closed."""
        raise NotImplementedError

    async def drain(self, timeout_s: float) -> None:
        """Stop accepting, tell each peer by DPR (REBOOTING), answer until they close, at most `timeout_s`."""
        raise NotImplementedError

    def status(self) -> list[PeerStatus]:
        """All connections, and the configured peers that have none."""
        raise NotImplementedError

    @property
    def connected(self) -> dict[str, int]:
        """Open connections by peer label; 0 for each configured peer that has none."""
        raise NotImplementedError

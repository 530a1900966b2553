"""What a node tells of its peers: one row for each connection, and for each entry of the peer table that has none."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from eir.diameter.counts import OTHER
from eir.diameter.peer import Peer
from eir.diameter.settings import PeerSettings
from eir.diameter.transport.link import Link


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerStatus:
    """One connection as `eir peers` shows it, or a configured peer that has none."""

    label: str
    host: str | None
    """Origin-Host; None before the CER."""
    realm: str | None
    address: str | None = None
    """`ip:port` of the peer's side; None without a connection."""
    state: str
    """The connection's state in lower case (`open`, `wait_cer`, …); `down` or `disabled` without one."""
    since: float | None = None
    """Unix time since when the connection stands; None without one."""
    requests: int = 0
    """Application requests received."""
    answers: int = 0
    """Answers to them sent."""
    watchdog: str = "initial"
    """okay, suspect, down, reopen or initial (RFC 3539 3.4.1)."""
    paths: dict[str, bool] = field(default_factory=dict)
    """Addresses of the peer that SCTP has paths to, and whether each is reached; empty over TCP."""
    direction: str
    """`out` where we connect to the peer, `in` where it connects to us."""
    last_error: str | None = None
    """Why we have no connection to a peer that we connect to; None since one is open."""
    last_seen: float | None = None
    """Unix time of the last request, or of the beginning or end of a connection if that is later; None: never so far."""


def peer_rows(
    links: Iterable[Link], peers: Sequence[PeerSettings], *, disabled: Collection[str], last_seen: Mapping[str, float],
    failures: Mapping[str, str],
) -> list[PeerStatus]:  # fmt: skip
    """All connections, and the entries of the peer table that have none; mappings and `disabled` are by label."""
    rows = [_row_of(link, link.peer) for link in links if link.peer is not None]
    there = {row.label for row in rows}
    rows += [
        PeerStatus(
            label=settings.label, host=settings.host, realm=settings.realm,
            state="disabled" if settings.label in disabled else "down", direction="in" if settings.connect is None else "out",
        )
        for settings in peers
        if settings.label not in there
    ]  # fmt: skip
    is_open = {row.label for row in rows if row.state == "open"}
    return [
        replace(row, last_seen=last_seen.get(row.label), last_error=None if row.label in is_open else failures.get(row.label))
        for row in rows
    ]


def _row_of(link: Link, peer: Peer) -> PeerStatus:
    said, settings, watchdog = peer.capabilities, peer.settings, peer.watchdog
    return PeerStatus(
        label=settings.label if settings is not None else OTHER, host=said.host if said is not None else None,
        realm=said.realm if said is not None else None, address=link.address, state=peer.state.name.lower(), since=link.since,
        requests=peer.traffic.requests, answers=peer.traffic.answers,
        watchdog=watchdog.status.name.lower() if watchdog is not None else "initial",
        paths=dict(link.paths()), direction="in" if link.dialed is None else "out",
    )  # fmt: skip

"""A node's report on its peers: one row for each connection, and for each entry of the peer table that has none."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from eir.wire.diameter.link import Link
from eir.wire.diameter.peer import Peer
from eir.wire.diameter.states import State
from eir.wire.peers.counts import OTHER
from eir.wire.peers.settings import PeerSettings


class Failure(NamedTuple):
    """The reason why a peer, by its label, had no connection."""

    at: float
    """Unix time."""
    text: str
    refusal: bool
    """One of the two has refused the other: an attempt like it will fare no better."""


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
    """The last reason why the peer was refused, refused us, or could not be reached; None if an open connection began
    later."""
    last_error_at: float | None = None
    """Unix time of that."""
    last_seen: float | None = None
    """Unix time of the last request, or of the beginning or end of a connection if that is later; None: never so far."""


def peer_rows(
    links: Collection[Link], peers: Sequence[PeerSettings], *, disabled: Collection[str], last_seen: Mapping[str, float],
    failures: Mapping[str, Failure],
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
        if settings.label not in there and not settings.is_titled
    ]  # fmt: skip
    opened = newest(links)
    late = {label: failure for label, failure in failures.items() if failure.at > opened.get(label, 0.0)}
    return [
        replace(
            row, last_seen=last_seen.get(row.label), last_error=late[row.label].text if row.label in late else None,
            last_error_at=late[row.label].at if row.label in late else None,
        )
        for row in rows
    ]  # fmt: skip


def newest(links: Iterable[Link]) -> dict[str, float]:
    """Label of each peer that is connected → Unix time at which its newest open connection began."""
    found: dict[str, float] = {}
    for link in links:
        if link.peer is not None and link.peer.state is State.OPEN:
            found[link.peer.traffic.label] = max(found.get(link.peer.traffic.label, 0.0), link.opened)
    return found


def _row_of(link: Link, peer: Peer) -> PeerStatus:
    said, settings, watchdog = peer.capabilities, peer.settings, peer.watchdog
    return PeerStatus(
        label=settings.label if settings is not None else OTHER, host=said.host if said is not None else None,
        realm=said.realm if said is not None else None, address=link.address, state=peer.state.name.lower(), since=link.since,
        requests=peer.traffic.requests, answers=peer.traffic.answers,
        watchdog=watchdog.status.name.lower() if watchdog is not None else "initial",
        paths=dict(link.paths()), direction="in" if link.dialed is None else "out",
    )  # fmt: skip

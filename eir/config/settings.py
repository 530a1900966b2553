"""The settings in a configuration file: frozen dataclasses that the parts define, and plain values.

Knows neither file nor YAML.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from eir.checks.settings import PolicySettings, Status
from eir.errors import Problem
from eir.interfaces.feed.settings import FeedSettings
from eir.interfaces.fraud_check.settings import FraudSettings
from eir.interfaces.gsup.settings import GsupSettings
from eir.interfaces.map.settings import Ss7Settings
from eir.interfaces.n5g.settings import N5gSettings
from eir.lists.record.settings import HistorySettings, Layout, ListSettings
from eir.sightings.conditions import TamperSettings
from eir.sightings.settings import SightingsSettings
from eir.wire.peers.settings import Identity, Limits, PeerSettings
from eir.wire.transport.settings import SctpSettings, TlsSettings
from eir.wire.web.access import PageSettings


class Listener(NamedTuple):
    """Somewhere that peers connect to."""

    protocol: str
    """Name in metrics of the protocol that is spoken there."""
    spot: tuple[str | int, ...]
    """Place in the file."""
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything that is configured, checked; keys.py says what each is for. Paths are absolute; None: it was left out, or is off.

    May be pickled: a process hands it on as it was read.
    """

    path: Path
    """The file that it came from."""
    identity: Identity
    """Its `origin_state_id` is 0: the node gives itself one at each start."""
    listen: tuple[str, ...]
    """URLs, each with its port."""
    peers: tuple[PeerSettings, ...]
    tls: TlsSettings | None
    sctp: SctpSettings
    n5g: N5gSettings
    feed: FeedSettings
    fraud_check: FraudSettings
    numbers: Path | None
    """The table of eir.lists.rows.msisdn."""
    gsup: GsupSettings
    ss7: Ss7Settings
    limits: Limits
    load_memory: int
    """Bytes that a load may take."""
    overload_answer: Status | None
    """The answer to a request past a `rate_max`; None: 3004."""
    state: Path
    control_read: Path | None
    store: str
    """`sqlite`, or a URL of eir.lists.stores.redis_url; it may hold a password."""
    heal: bool
    boot_without_lists: str
    lists: Mapping[str, ListSettings]
    """Each with the layouts below."""
    history: HistorySettings
    layouts: Mapping[str, Layout]
    inbox: Path | None
    inbox_patience_s: float
    policy: PolicySettings
    sightings: SightingsSettings | None
    """None: nothing of what checks show is kept."""
    http: str | None
    """host:port; None: neither the page nor /metrics, /live and /ready are served."""
    page: PageSettings
    """Access to the page for people."""
    workers: int
    tamper: TamperSettings
    full_identifiers: bool
    log_level: str
    warnings: tuple[Problem, ...] = ()
    digest: str = field(default="", compare=False)
    """SHA-256 of the bytes that it was read from."""
    shown: dict[str, Any] = field(repr=False, compare=False)
    """The same by the file's own keys, as JSON knows it; defaults are filled in, passwords hidden."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the labels of the entries of the peer table, and of the gateways of SIGTRAN."""
        return (*(peer.label for peer in self.peers), *(gateway.label for gateway in self.ss7.gateways))

    @property
    def listeners(self) -> tuple[Listener, ...]:
        """All listeners, those of Diameter first; the processes of a node speak of one by its place here."""
        sections: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
            ("s13", ("listen",), self.listen),
            ("n5g", ("n5g", "listen"), self.n5g.listen),
            ("gsup", ("gsup", "listen"), self.gsup.listen),
            ("map", ("ss7", "listen"), self.ss7.listen),
        )  # a new protocol that listens is a row here
        return tuple(
            Listener(protocol, (*key, at), url) for protocol, key, urls in sections for at, url in enumerate(urls)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Whereabouts:
    """Places of a node and its lists: enough for a command that looks or steers, and puts nothing new in force."""

    path: Path
    state: Path
    store: str
    lists: Mapping[str, ListSettings]
    """Lists that could be read; empty for a file that is not YAML."""
    shown: dict[str, Any] = field(repr=False, compare=False)
    """As Config.shown."""
    problems: tuple[Problem, ...] = ()
    """Faults elsewhere in the file."""

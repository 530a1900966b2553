"""Settings of a node: its identity, its peers and its limits; and who a client is by the peer table: its entry, and its name.

The entry goes by the source address and the names in the client's certificate. Without TLS nobody has shown a name, so that the address
alone decides. With TLS the name is the certificate's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import NamedTuple

APPLICATIONS, UNKNOWN_M, DESTINATION = "applications", "unknown_m", "destination"
LENIENCES = frozenset({APPLICATIONS, UNKNOWN_M, DESTINATION})
"""Faults that a peer may be forgiven: a CER without a common application, unknown AVPs with the M bit, a foreign
Destination-Host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The names that the node answers to, and its description in a CER or CEA (RFC 6733 5.3)."""

    host: str
    realm: str
    """Origin-Host and Origin-Realm."""
    aliases: tuple[str, ...] = ()
    """Further host names that are this node when a Destination-Host holds them."""
    realms: tuple[str, ...] = ()
    """Further realms that the node serves."""
    product_name: str = "eir"
    vendor_id: int = 0
    """IANA enterprise number, or 0 (RFC 6733 5.3.3)."""
    origin_state_id: int
    """One value for each Origin-Host, higher after each restart of the node (RFC 6733 8.16)."""
    firmware_revision: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerSettings:
    """One entry of the peer table; the first that fits host, realm and source address of a connection is the peer's."""

    label: str
    """The peer's name in counters, logs and commands."""
    host: str | None = None
    realm: str | None = None
    """Origin-Host and Origin-Realm that the peer must show; None: any."""
    sources: tuple[IPv4Network | IPv6Network, ...] = ()
    """Networks that it may connect from; empty: any."""
    connect: str | None = None
    """`tcp://host:port`, `tls://host:port` or `sctp://host,host:port` that the node connects to; None: it only listens."""
    gt: str | None = None
    """First digits of the global title that an MSC or SGSN calls from."""
    point_code: str | None = None
    """Its point code; with one of these two the entry is for MAP alone."""
    tls_names: tuple[str, ...] = ()
    """Names that the peer's certificate may carry instead of its Origin-Host."""
    connections: int = 1
    """Open connections at once for each Origin-Host."""
    rate_max: float | None = None
    """Application requests a second that are answered, over all connections of the entry; None: no limit."""
    watchdog_s: float = 30
    """Tw of RFC 3539; 6 at least."""
    reconnect_after_s: float = 30
    """Tc of RFC 6733 2.1: the pause before a new attempt to connect."""
    lenient: frozenset[str] = frozenset()
    """Faults that it is forgiven; see LENIENCES."""
    as_host: str | None = None
    as_realm: str | None = None
    """Origin-Host and Origin-Realm that the node shows to this peer; None: the identity's."""
    expected: bool = True
    """It should be connected; one that only comes now and then (a probe) is not counted while it is away."""
    probe: bool = False
    """Its requests are about nobody's phone."""
    early: bool = False
    """It asks before it has authenticated the subscriber."""
    answers: tuple[tuple[str, str], ...] = ()
    """Pairs of answers: the application answers this peer with the second instead of the first, in its own words."""

    @property
    def is_titled(self) -> bool:
        """True for a peer that is known by its name in SS7, so that no other protocol's connection fits."""
        return self.gt is not None or self.point_code is not None

    @property
    def is_probe(self) -> bool:
        """A probe or an auditor, by either setting."""
        return self.probe or not self.expected


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits on a peer's use of the node; past one, a message is refused or a connection closed, and counted."""

    max_message_bytes: int = 131_072
    """Longest message; above 98 kB, so that 8,192 nested groups still get an answer and not a closed connection."""
    max_avps: int = 1_024
    """AVPs in one message, those inside groups counted too."""
    max_depth: int = 8
    """Groups inside groups."""
    cer_timeout_s: float = 10
    """Seconds from the accept to a complete CER, and from our CER to the CEA."""
    partial_message_timeout_s: float = 10
    """Seconds from the first byte of a message to its last."""
    turn_messages: int = 512
    """Requests on one connection before other connections get their turn, as many as a lane answers. Anything else
    counts as several of them, according to the time it takes, so that any turn is about a millisecond or two."""
    write_buffer_bytes: int = 262_144
    """Unsent answers, above which the node stops reading from the peer."""
    stalled_write_s: float = 10
    """Seconds that a peer may leave answers unread before it is dropped."""
    close_after_dpa_s: float = 5
    """Seconds from our DPA to our closing of the connection, and from our DPR when no DPA comes (RFC 6733 5.4)."""
    duplicate_probe_s: float = 2
    """Seconds that a peer's oldest connection has for its DWA when the peer opens one too many."""
    connections_max: int = 1_024
    """Connections at once, those that have not sent a CER yet included."""
    unidentified_max: int = 128
    """Connections at once that have not sent a CER yet, those in a TLS handshake included."""
    source_connections_max: int = 256
    """Connections at once from one source network (IPv4 /24, IPv6 /64)."""
    source_unidentified_max: int = 32
    """Connections at once from one source network that have not sent a CER yet."""
    rate_max: float | None = None
    """Application requests a second that are answered, over all peers; None: no limit."""


_REMEDIES = {limit.name: f"limits.{limit.name}" for limit in fields(Limits)} | {
    "source": "peers: from",
    "avp_unsupported": f"lenient: [{UNKNOWN_M}]",
    "destination": f"lenient: [{DESTINATION}], or identity.aliases",
    "realm_not_served": "identity.realms",
    "no_common_application": f"lenient: [{APPLICATIONS}]",
    "unknown_peer": "peers: an entry with this host or realm, and this address in its `from`",
    "too_many_avps": "limits.max_avps",
    "avp_depth": "limits.max_depth",
    "message_too_long": "limits.max_message_bytes",
    "cer_timeout": "limits.cer_timeout_s",
    "partial_message": "limits.partial_message_timeout_s",
    "stalled_write": "limits.stalled_write_s",
    "duplicate": "connections",
    "tls_name": "tls_names",
    "no_common_security": "a listener of the form tls://",
    "tls_hello": "a listener of the form tls://, or TLS switched off at the peer",
    "cea_result": "peers: leave out connect, if the peer connects to us",
}


def setting_for(reason: str) -> str | None:
    """The setting that would have taken what was refused for this reason, if there is one."""
    return _REMEDIES.get(reason)


def may_connect(peers: Sequence[PeerSettings], source: IPv4Address | IPv6Address) -> bool:
    """True if any entry of the peer table takes connections from there."""
    return any(is_from(settings, source) and (settings.sources or not settings.is_titled) for settings in peers)


def is_from(settings: PeerSettings, source: IPv4Address | IPv6Address) -> bool:
    """True if an entry of the peer table takes connections from there."""
    return not settings.sources or any(source in network for network in settings.sources)


def holds(names: Sequence[str], wanted: str) -> bool:
    """True if a certificate has a name by RFC 6125 6.4: without case, a star for the whole first label and nothing else."""
    name = wanted.lower()
    beyond_first = name.partition(".")[2]
    return any(held.lower() == name or (bool(beyond_first) and held.lower() == f"*.{beyond_first}") for held in names)


CORE = "5gc.mnc"
"""The beginning of the domain of an operator's 5G core (TS 23.003 28.2)."""


class Requester(NamedTuple):
    """The requester, as a question names it."""

    label: str
    """Label of its entry of the peer table."""
    host: str = ""
    """Its name; empty: it has shown none."""
    realm: str = ""


def requester(
    peers: Sequence[PeerSettings], names: Sequence[str] | None, source: IPv4Address | IPv6Address
) -> tuple[PeerSettings, Requester] | None:
    """The entry of a client, and who it is, by the names of its certificate (None: there is no TLS); None: there is no entry for it.

    Without TLS the first entry for the address that wants no name is preferred to one that does.
    """
    there = [settings for settings in peers if is_from(settings, source) and not settings.is_titled]
    if names is None:
        nameless = [settings for settings in there if settings.host is None and settings.realm is None]
        found = next(iter((*nameless, *there)), None)
        return None if found is None else (found, Requester(found.label))
    for settings in there:
        if (name := _name(settings, names)) is not None:
            return settings, Requester(settings.label, name, realm_of(name))
    return None


def realm_of(name: str) -> str:
    """The realm of a host of this name: its operator's 5G core, or its parent domain."""
    core = name.lower().find(CORE)
    return name[core:] if core >= 0 else name.partition(".")[2]


def _name(settings: PeerSettings, names: Sequence[str]) -> str | None:
    """The name of a client that an entry fits; None: the certificate is not one that the entry allows."""
    own = names[0] if names else ""
    if settings.tls_names:
        allowed = any(holds(names, name) for name in settings.tls_names)
        return (settings.host or own) if allowed else None
    if settings.host is not None:
        return settings.host if holds(names, settings.host) else None
    if settings.realm is not None:
        realm = settings.realm.lower()
        return next((name for name in names if name.lower() == realm or name.lower().endswith(f".{realm}")), None)
    return own

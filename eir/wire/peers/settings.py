"""Settings of a node (identity, peer table, limits), and identification of a client by the peer table.

The entry depends on the source address and the names in the client's certificate. Without TLS only the address decides, because
the client's name is not proved. With TLS the name is that of the certificate.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import NamedTuple

APPLICATIONS, UNKNOWN_M, DESTINATION = "applications", "unknown_m", "destination"
LENIENCES = frozenset({APPLICATIONS, UNKNOWN_M, DESTINATION})
"""Faults of a peer that can be tolerated: a CER without a common application, unknown AVPs with the M bit, a foreign Destination-Host."""

WLAN = "wlan"
"""Access network of phones that attach over Wi-Fi (3GPP TS 23.402)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Names of the node, and the product data in its CER or CEA (RFC 6733 5.3)."""

    host: str
    realm: str
    """Origin-Host and Origin-Realm."""
    aliases: tuple[str, ...] = ()
    """Further values of Destination-Host that mean this node."""
    realms: tuple[str, ...] = ()
    """Further realms that the node serves."""
    product_name: str = "eir"
    vendor_id: int = 0
    """IANA enterprise number, or 0 (RFC 6733 5.3.3)."""
    origin_state_id: int
    """Value for each Origin-Host that increases with each restart of the node (RFC 6733 8.16)."""
    firmware_revision: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerSettings:
    """Entry of the peer table.

    The first entry that matches host, realm and source address of a connection applies.
    """

    label: str
    """Name of the peer in counters, logs and commands."""
    host: str | None = None
    realm: str | None = None
    """Origin-Host and Origin-Realm of the peer; None: any."""
    sources: tuple[IPv4Network | IPv6Network, ...] = ()
    """Networks from which the peer may connect; empty: any."""
    connect: str | None = None
    """`tcp://host:port`, `tls://host:port` or `sctp://host,host:port` to which the node connects; None: the peer connects."""
    gt: str | None = None
    """First digits of the global title of an MSC or SGSN."""
    point_code: str | None = None
    """Point code of an MSC or SGSN. With `gt` or `point_code`, the entry is for MAP only."""
    tls_names: tuple[str, ...] = ()
    """Names that the peer's certificate may have instead of its Origin-Host."""
    connections: int = 1
    """Maximum number of open connections for each Origin-Host."""
    rate_max: float | None = None
    """Maximum number of application requests per second over all connections of the entry; None: no limit."""
    watchdog_s: float = 30
    """Tw of RFC 3539 in seconds; at least 6."""
    reconnect_after_s: float = 30
    """Tc of RFC 6733 2.1: seconds before a new attempt to connect."""
    lenient: frozenset[str] = frozenset()
    """Tolerated faults; see LENIENCES."""
    as_host: str | None = None
    as_realm: str | None = None
    """Origin-Host and Origin-Realm of the node for this peer; None: those of the identity."""
    expected: bool = True
    """True if the peer should always be connected; false for a peer that connects only sometimes, such as a probe."""
    probe: bool = False
    """True if its requests are about no real phone."""
    early: bool = False
    """True if it sends checks before it has authenticated the subscriber."""
    access: str | None = None
    """Access network of its phones, for the record of sightings; None: not named."""
    answers: tuple[tuple[str, str], ...] = ()
    """Pairs of statuses of the application: this peer receives the second one instead of the first."""

    @property
    def is_titled(self) -> bool:
        """True if the entry identifies its peer by an SS7 address. Such an entry applies to MAP only."""
        return self.gt is not None or self.point_code is not None

    @property
    def is_probe(self) -> bool:
        """True if the peer is a probe or an auditor, according to its settings `probe` and `expected`."""
        return self.probe or not self.expected


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits on peers. If a limit is exceeded, the message is rejected or the connection closed, and the event is counted."""

    max_message_bytes: int = 131_072
    """Longest message in bytes; above 98 kB, so that 8,192 nested groups receive an answer instead of a closed connection."""
    max_avps: int = 1_024
    """Maximum number of AVPs in one message, including those inside groups."""
    max_depth: int = 8
    """Maximum depth of groups inside groups."""
    cer_timeout_s: float = 10
    """Seconds from the accept to a complete CER, and from the node's CER to the CEA."""
    partial_message_timeout_s: float = 10
    """Seconds from the first byte of a message to its last."""
    turn_messages: int = 512
    """Number of requests on one connection before other connections have their turn.

    A message that the lane does not answer counts as several, by its duration, so that any turn takes 1 to 2 ms.
    """
    write_buffer_bytes: int = 262_144
    """Number of unsent bytes of answers above which the node stops reading from the peer."""
    stalled_write_s: float = 10
    """Seconds that a peer may leave answers unread before its connection is closed."""
    close_after_dpa_s: float = 5
    """Seconds from the node's DPA until it closes the connection, and from its DPR without a DPA (RFC 6733 5.4)."""
    duplicate_probe_s: float = 2
    """Seconds that a peer's oldest connection has for its DWA when the peer opens one too many."""
    connections_max: int = 1_024
    """Maximum number of connections, including those before their CER."""
    unidentified_max: int = 128
    """Maximum number of connections before their CER, including TLS handshakes."""
    source_connections_max: int = 256
    """Maximum number of connections from one source network (IPv4 /24, IPv6 /64)."""
    source_unidentified_max: int = 32
    """Maximum number of connections before their CER from one source network."""
    rate_max: float | None = None
    """Maximum number of application requests per second over all peers; None: no limit."""


_REMEDIES = {
    **{
        limit: f"limits.{limit}"
        for limit in (
            "connections_max",
            "unidentified_max",
            "source_connections_max",
            "source_unidentified_max",
            "rate_max",
        )
    },
    "source": "peers: from",
    "avp_unsupported": f"lenient: [{UNKNOWN_M}]",
    "destination": f"lenient: [{DESTINATION}], or identity.aliases",
    "realm_not_served": "identity.realms",
    "no_common_application": f"lenient: [{APPLICATIONS}]",
    "unknown_peer": "peers: an entry with this host or realm, and this address in its `from`",
    "duplicate": "connections",
    "tls_name": "tls_names",
    "no_common_security": "a listener of the form tls://",
    "tls_hello": "a listener of the form tls://, or TLS switched off at the peer",
    "cea_result": "peers: leave out connect, if the peer connects to us",
}


def setting_for(reason: str) -> str | None:
    """Return the configuration key whose change would avoid a rejection with this reason, or None."""
    return _REMEDIES.get(reason)


def may_connect(peers: Sequence[PeerSettings], source: IPv4Address | IPv6Address) -> bool:
    """Return true if any entry of the peer table accepts connections from this address."""
    return any(is_from(settings, source) and (settings.sources or not settings.is_titled) for settings in peers)


def is_from(settings: PeerSettings, source: IPv4Address | IPv6Address) -> bool:
    """Return true if this entry of the peer table accepts connections from this address."""
    return not settings.sources or any(source in network for network in settings.sources)


def holds(names: Sequence[str], wanted: str) -> bool:
    """Return true if a certificate with these names is valid for the host name `wanted` (RFC 6125 6.4).

    Names are compared without case; `*` stands for the first label.
    """
    name = wanted.lower()
    beyond_first = name.partition(".")[2]
    return any(held.lower() == name or (bool(beyond_first) and held.lower() == f"*.{beyond_first}") for held in names)


CORE = "5gc.mnc"
"""Beginning of the domain of an operator's 5G core (TS 23.003 28.2)."""


class Requester(NamedTuple):
    """Identity of a request's sender for checks: label, name and realm."""

    label: str
    """Label of its entry in the peer table."""
    host: str = ""
    """Name of the client; empty: unknown."""
    realm: str = ""


def requester(
    peers: Sequence[PeerSettings], names: Sequence[str] | None, source: IPv4Address | IPv6Address
) -> tuple[PeerSettings, Requester] | None:
    """Return the client's entry in the peer table, and its identity for checks (Requester); None if no entry matches.

    `names`: names in the client's certificate; None without TLS. Without TLS, the first entry for the address that requires no
    name is preferred to one that does.
    """
    matching = [settings for settings in peers if is_from(settings, source) and not settings.is_titled]
    if names is None:
        nameless = [settings for settings in matching if settings.host is None and settings.realm is None]
        entry = next(iter((*nameless, *matching)), None)
        return None if entry is None else (entry, Requester(entry.label))
    for settings in matching:
        if (name := _name(settings, names)) is not None:
            return settings, Requester(settings.label, name, realm_of(name))
    return None


def realm_of(name: str) -> str:
    """Return the realm of a host name: if `5gc.mnc` (5G core) is in the name, the part that begins there, otherwise the parent domain."""
    core = name.lower().find(CORE)
    return name[core:] if core >= 0 else name.partition(".")[2]


def _name(settings: PeerSettings, names: Sequence[str]) -> str | None:
    """Return the client's name according to one entry of the peer table, or None if the entry rejects the client's certificate."""
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

"""Classes that describe an interface to the program. Each interface has one description, its object `INTERFACE`.

Configuration, manager, answering process, metrics and commands go through eir.interfaces.INTERFACES and know none by name. Each
command reads the configuration, so that an interface's folder imports little: servers and services are named as `module:class`,
and a node imports them before it starts its processes, which share their memory. Other functions import heavy modules when they
are called.
"""

from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import unquote

from eir.checks.question import Question
from eir.checks.settings import PolicySettings, Status
from eir.errors import Report, UsageError
from eir.lists.changes.local_writer import IsRecorded
from eir.lists.log.journal import JournalEvent
from eir.lists.record.settings import FirstSeenSettings, LastDeviceSettings, ListSettings
from eir.schema import CLAIM, FILE, Document, Family, Findings, Key, Section, Spot, Unexpected, did_you_mean, many, url
from eir.wire.peers.settings import Identity, Limits, PeerSettings
from eir.wire.transport.endpoint import HTTP_PORTS, hosts_and_port
from eir.wire.transport.settings import SctpSettings, TlsSettings

if TYPE_CHECKING:
    from eir.checks.checker import Checker
    from eir.checks.trace import Tracer
    from eir.interfaces.probing import Probe
    from eir.wire.peers.counts import Counts
    from eir.wire.peers.rate import RateLimits
    from eir.wire.transport.tls import Tls, TlsFiles
    from eir.wire.web.denials import TokenSettings
    from eir.wire.web.http1 import HttpRequest, HttpResponse
    from eir.wire.web.http1_server import Answer
    from eir.wire.web.tokens import KeyFiles

REQUEST_BODY_MAX = 4096
"""Maximum size in bytes of the body of a request to a service that needs only small ones."""
LISTEN_HTTP = url(HTTP_PORTS, "http://127.0.0.1:7777")
TLS_KEYS = (
    Key("ca", FILE, None, "file with the authorities of the EIR's certificate, in PEM; with cert and key it turns TLS on"),
    Key("cert", FILE, None, "file with the certificate of the probe, in PEM"),
    Key("key", FILE, None, "file with its private key, in PEM"),
)  # fmt: skip
"""Parameters of a probe over TLS; see eir.interfaces.probing.Probe.tls."""


def token_keys(section: str, audience: Any, audience_says: str, issuer_is: str = "") -> tuple[Key, ...]:
    """Return the configuration keys for access tokens in a section: accepted public keys, issuers and audiences."""
    return (
        Key(f"{section}.jwks", many(FILE), (), "files of JWK sets with the issuers' public keys"),
        Key(f"{section}.keys", many(FILE), (), "PEM files of the issuers' public keys or certificates"),
        Key(f"{section}.issuer", many(CLAIM, may_be_empty=True), (), f"accepted issuers (claim `iss`{issuer_is}); default: any issuer with one of the keys"),
        Key(f"{section}.audience", many(CLAIM), audience, f"accepted audiences (claim `aud`); {audience_says}"),
    )  # fmt: skip


Samples = Mapping[str, Mapping[Any, float]]
"""Values by metric name and label values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedSettings:
    """Settings of the node that several interfaces use."""

    identity: Identity
    """Identity of the node; its `origin_state_id` is 0 in a configuration, and set at each start."""
    listen: tuple[str, ...]
    """URLs of the Diameter listeners, each with its port."""
    peers: tuple[PeerSettings, ...]
    tls: TlsSettings | None
    sctp: SctpSettings
    numbers: Path | None
    """File of eir.lists.rows.msisdn."""
    limits: Limits
    overload_answer: Status | None
    """Status for requests above a `rate_max`; None: Result-Code 3004."""
    state: Path
    store: str
    """`sqlite`, or a URL of eir.lists.stores.redis_url, which may contain a password."""
    lists: Mapping[str, ListSettings]
    """Lists by name."""
    first_seen: FirstSeenSettings | None = None
    """None: no record of first sightings is kept."""
    last_device: LastDeviceSettings | None = None
    """None: no list of the last devices of SIMs is kept."""
    policy: PolicySettings

    @property
    def lists_and_record(self) -> Mapping[str, ListSettings]:
        """Settings of all lists by name, including the record of first sightings, which the store keeps like a list."""
        return self.lists if self.first_seen is None else {**self.lists, self.first_seen.list: self.first_seen.as_list}


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Settings and objects that all servers of a node share."""

    shared: SharedSettings
    tls: "Tls | None"
    keys: "Mapping[str, KeyFiles | None]"
    """Keys that verify access tokens, by interface; None: no token is required."""
    checker: "Checker"
    counts: "Counts"
    rates: "RateLimits"
    report: Report
    tracer: "Tracer"


class NodeLoad(NamedTuple):
    """Readiness of the node for traffic, and its load in percent."""

    serving: bool
    load: int
    """Load in percent."""


class Attendant(Protocol):
    """Background task of an interface in the manager, such as the registration of the node at an NRF."""

    async def apply(
        self, settings: Any, shared: SharedSettings, tls: "TlsFiles | None", listening: Sequence[str]
    ) -> None:
        """Apply settings to the interface's task in the manager, at the start and at each reload.

        `listening`: URLs of the open listeners of all interfaces.
        """

    async def close(self) -> None:
        """Stop the interface's task in the manager."""

    def status(self) -> Mapping[str, Any]:
        """Return the interface's fields in the document of `eir status`."""

    def numbers(self) -> Samples:
        """Return the metrics of the interface's task in the manager, by name and label values."""


class NodeCalls(NamedTuple):
    """Functions of the node that a service may call."""

    is_recorded: IsRecorded
    record_event: Callable[[JournalEvent], Awaitable[None]]
    """Function that records an event in the journal of this host, and raises EirError if the journal cannot be written."""
    write_checks: Callable[[], Awaitable[None]]
    """Function that writes all checks so far to the record of checks on the disk, if the node keeps one."""


class Service(Protocol):
    """HTTP/1.1 service of an interface. One process serves all of them (eir.node.processes.services)."""

    request_body_max: int
    """Maximum size of a request's body in bytes."""
    reads_certificates: bool
    """True if a client may identify itself by a certificate of the authorities in `tls.ca`."""

    peers: PeerSettings
    """Peers that may connect, by address."""
    faults: Mapping[str, str]
    """Faults of unusable files, by file; their earlier content stays in use."""

    def apply(self, settings: Any, shared: SharedSettings) -> None:
        """Apply new settings of the node and of this interface to the HTTP service."""

    def respond(self, request: "HttpRequest") -> "Answer":
        """Return the response to an HTTP request, or an awaitable of the response. This method never raises an exception."""

    def refuse(self, status: int) -> "HttpResponse":
        """Return the error response to bytes that are not an HTTP request."""

    def work(self) -> Coroutine[Any, Any, None]:
        """Run the service's background work until cancelled."""

    def read_files(self) -> Callable[[], None]:
        """Read the configured files that have changed. Runs in a thread. Raises EirError.

        Returns a function that applies their content; it is called on the loop.
        """

    def counters(self) -> Samples:
        """Return the service's counters by metric name and label values."""

    async def close(self) -> None:
        """Close the store and release all other resources of the service."""


def _nothing(_settings: Any, _shared: SharedSettings, _document: Document) -> Findings:
    yield from ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """Description of one interface: its name, settings, servers, probe and metrics.

    The `settings` of its functions are the object of its section, or without a section the shared settings.

    `listen` in its settings are the URLs of its listeners, each with its port. The interface has
    either a server in the answering process (`server`), which calls the checker, or a service in the services process (`service`).
    """

    name: str
    """Name in metrics, logs, `eir peers` and `eir check --protocol`."""
    section: str = ""
    """Name of its section in the configuration."""
    keys: tuple[Key, ...]
    sections: tuple[Section, ...] = ()
    check: Callable[[Any, SharedSettings, Document], Findings] = _nothing
    """Returns faults that concern several values."""
    warn: Callable[[Any, SharedSettings, Document], Findings] = _nothing
    """Returns probable mistakes in valid settings."""
    labels: Callable[[Any], Sequence[str]] = lambda _: ()
    """Returns the names of its outgoing connections that are not in the peer table."""
    connects: Callable[[Any], Mapping[Spot, str]] = lambda _: {}
    """Returns the URLs to which it connects, by their place in the file."""
    families: tuple[Family, ...] = ()
    state_files: tuple[str, ...] = ()
    """Names of its files in the state folder that no program can create again, so that a backup has them."""

    server: str = ""
    """Server in the answering process: class derived from eir.wire.peers.server.Server, created with (settings, Context), with a method `apply` for new ones."""
    stays: bool = True
    """True if clients stay connected. Otherwise they connect for each request, and `expected: false` does not make a client a probe."""
    tokens: "Callable[[Any, SharedSettings], TokenSettings | None] | None" = None
    """Returns the rules for access tokens of clients; the manager reads the keys. None: clients never have a token."""
    settings_after_reload: Callable[[Any, Any], Any] = lambda _old, new: new
    """Return the settings after a reload, from the old and the new ones."""
    attendant: str = ""
    """Class of its Attendant, created with a function that returns the node's NodeLoad, and a Report."""
    attendant_families: tuple[Family, ...] = ()

    service: str = ""
    """Class of its Service, created with (settings, SharedSettings, Report, NodeCalls)."""

    client: str = ""
    """Kind of client with its article: `an MME`."""
    words: Callable[[Status], str] = str
    """Returns the text of an answer on the wire."""
    question: Callable[[str, str, str, str, str], Question] | None = None
    """Returns the question of a client about (IMEI, IMSI, software version, Origin-Host, Origin-Realm). Raises EirError.

    None: eir.checks.explain.question_of.
    """
    probe: str = ""
    """Function that connects an eir.interfaces.probing.Probe; empty: no client of the interface sends checks."""
    probe_keys: tuple[Key, ...] = ()
    """Parameters in the query of the URL of `eir probe`."""

    def probe_of(self, url: str, timeout_s: float = 5.0, configured: Mapping[str, Any] | None = None) -> "Probe":
        """Parse the URL of an EIR, NAME://HOST[:PORT][?PARAMETER=VALUE&…], and return its probe.

        Args:
            url: the URL; NAME is that of this interface.
            timeout_s: seconds until a connection, and until each answer.
            configured: configuration of this host as `eir config` shows it, for missing parameters.

        Raises:
            UsageError: for an invalid URL or an unknown parameter.
        """
        from eir.interfaces.probing import Probe  # noqa: PLC0415 - only a probe needs it

        where, _, query = url.partition("://")[2].partition("?")
        try:
            hosts, port = hosts_and_port(where)
        except ValueError:
            raise UsageError(f"{url}: expected {self.name}://HOST or {self.name}://HOST:PORT") from None
        kinds = {key.path: key.kind for key in self.probe_keys}
        values = {key.path: key.default for key in self.probe_keys}
        for parameter in query.split("&") if query else ():
            name, _, value = parameter.partition("=")
            if name not in kinds:
                known = ", ".join(kinds) or "none"
                raise UsageError(f"{url}: unknown parameter {name}; expected {known}{did_you_mean(name, kinds)}")
            try:
                values[name] = kinds[name].read(unquote(value))
            except Unexpected as e:
                raise UsageError(f"{name}: {e}") from None
            except ValueError:
                raise UsageError(f"{name}: expected {kinds[name].form_with_example}, got {unquote(value)}") from None
        return Probe(resolve_name(self.probe), hosts, port, values, timeout_s, configured or {})

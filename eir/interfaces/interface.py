"""An interface: everything that the program needs of one protocol, as one object that its folder exports as `INTERFACE`.

Configuration, supervisor, workers, metrics and commands go through eir.interfaces.INTERFACES and know none by name. Each command reads the
configuration, so that an interface's folder imports little: servers and services are named as `module:class`, and a node imports them
before it starts its processes, which share their memory. Other functions import heavy modules when they are called.
"""

from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from eir.checks.question import Question
from eir.checks.settings import PolicySettings, Status
from eir.errors import Report
from eir.lists.record.settings import ListSettings
from eir.schema import CLAIM, FILE, Document, Family, Findings, Key, Section, Spot, many, url
from eir.wire.peers.settings import Identity, Limits, PeerSettings
from eir.wire.transport.endpoint import HTTP_PORTS
from eir.wire.transport.settings import SctpSettings, TlsSettings

if TYPE_CHECKING:
    from eir.checks.checker import Checker
    from eir.checks.trace import Tracer
    from eir.interfaces.probing import Captured, Wanted
    from eir.wire.diameter.admission import AdmissionControl
    from eir.wire.peers.counts import Counts
    from eir.wire.peers.rate import RateLimits
    from eir.wire.transport.tls import Tls, TlsFiles
    from eir.wire.web.denials import TokenSettings
    from eir.wire.web.http1 import HttpRequest, HttpResponse
    from eir.wire.web.http1_server import Answer
    from eir.wire.web.tokens import KeyFiles

LISTEN_HTTP = url(HTTP_PORTS, "http://127.0.0.1:7777")


def token_keys(section: str, audience: Any, audience_says: str, issuer_is: str = "") -> tuple[Key, ...]:
    """Return the keys of a section of rules for access tokens."""
    return (
        Key(f"{section}.jwks", many(FILE), (), "files of JWK sets with the issuers' public keys; reloaded when they change"),
        Key(f"{section}.keys", many(FILE), (), "PEM files of such public keys (see `jwks`), or of certificates; reloaded when they change"),
        Key(f"{section}.issuer", many(CLAIM, may_be_empty=True), (), f"accepted issuers (claim `iss`{issuer_is}); if left out, any issuer that has one of the keys"),
        Key(f"{section}.audience", many(CLAIM), audience, f"accepted audiences (claim `aud`); {audience_says}"),
    )  # fmt: skip


Samples = Mapping[str, Mapping[Any, float]]
"""Metric → label values → number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedSettings:
    """Settings that interfaces share."""

    identity: Identity
    """Its `origin_state_id` is 0 in a configuration: the node gives itself one at each start."""
    listen: tuple[str, ...]
    """Listeners for Diameter as URLs, each with its port."""
    peers: tuple[PeerSettings, ...]
    tls: TlsSettings | None
    sctp: SctpSettings
    numbers: Path | None
    """The table of eir.lists.rows.msisdn."""
    limits: Limits
    overload_answer: Status | None
    """The answer to a request past a `rate_max`; None: 3004."""
    state: Path
    store: str
    """`sqlite`, or a URL of eir.lists.stores.redis_url; it may hold a password."""
    lists: Mapping[str, ListSettings]
    """Each with the declared layouts."""
    policy: PolicySettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Settings in force and parts of a worker, for the servers in it."""

    shared: SharedSettings
    """`limits` are this worker's share of the node's."""
    tls: "Tls | None"
    keys: "Mapping[str, KeyFiles | None]"
    """Interface → keys that its access tokens are verified with; None: no token is required."""
    checker: "Checker"
    counts: "Counts"
    rates: "RateLimits"
    report: Report
    tracer: "Tracer"
    admission: "AdmissionControl"
    dials: bool
    """The servers of this worker connect to peers."""
    announce: Callable[[str, str], object]
    """Sends a protocol and a name that only one client of it may have to all other workers."""


class Standing(NamedTuple):
    """Readiness of the node, and its load."""

    serving: bool
    load: int
    """Percent."""


class Attendant(Protocol):
    """Work of an interface in the supervisor, such as a registration elsewhere."""

    async def apply(
        self, settings: Any, shared: SharedSettings, tls: "TlsFiles | None", listening: Sequence[str]
    ) -> None:
        """Apply settings; called at the start and at each reload. `listening`: URLs of the open listeners of all interfaces."""

    async def close(self) -> None:
        """Stop."""

    def status(self) -> Mapping[str, Any]:
        """Return fields of the document of `eir status`."""

    def warnings(self) -> Sequence[str]:
        """Return warnings of `eir status`."""

    def numbers(self) -> Samples:
        """Return the metrics."""


class Service(Protocol):
    """Interface over HTTP/1.1 in a process of its own. Made there, on the event loop."""

    peers: PeerSettings
    """Peers that may connect, by address."""
    faults: Mapping[str, str]
    """Unusable files → reason; their earlier content stays in use."""

    def apply(self, settings: Any, shared: SharedSettings) -> None:
        """Apply other settings."""

    def respond(self, request: "HttpRequest") -> "Answer":
        """Return the answer to a request; never raise."""

    def refuse(self, status: int) -> "HttpResponse":
        """Return the answer to bytes that are not a request."""

    def work(self) -> Coroutine[Any, Any, None]:
        """Work beside the answers, until cancelled."""

    def look(self) -> Callable[[], None]:
        """Read files that the configuration names and that have changed; in a thread. Raises EirError.

        Returns a function that puts their content in force; it is called on the loop.
        """

    def counters(self) -> Samples:
        """Return the counters."""

    async def close(self) -> None:
        """Release everything."""


def _nothing(_settings: Any, _shared: SharedSettings, _document: Document) -> Findings:
    yield from ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """One interface. A function gets as `settings` what its section builds; without a section, the shared settings.

    Its settings have `listen`: URLs of its listeners, each with its port. That key takes a restart, and all others are live. It has either a
    server in each worker (`server`), which asks the checker, or a service in a process of its own (`service`).
    """

    name: str
    """Name in metrics, logs, `eir peers`, `eir check --protocol`, and of its process."""
    section: str = ""
    """Name of its section in the configuration."""
    keys: tuple[Key, ...]
    sections: tuple[Section, ...] = ()
    check: Callable[[Any, SharedSettings, Document], Findings] = _nothing
    """Finds faults that no single value shows."""
    warn: Callable[[Any, SharedSettings, Document], Findings] = _nothing
    """Finds what is probably not meant, in settings without a fault."""
    labels: Callable[[Any], Sequence[str]] = lambda _: ()
    """Names of connections that it makes besides those of the peer table."""
    connects: Callable[[Any], Mapping[Spot, str]] = lambda _: {}
    """URLs that it connects to, by their place in the file."""
    families: tuple[Family, ...] = ()

    server: str = ""
    """The server of a worker: an eir.wire.peers.server.Server that is made with (settings, Context), and has a method `apply` for others."""
    stays: bool = True
    """Clients stay connected. Otherwise they connect for each request, and `expected: false` makes no probe of one."""
    tokens: "Callable[[Any, SharedSettings], TokenSettings | None] | None" = None
    """Return the rules for access tokens of clients; the supervisor reads the keys. None: clients never have one."""
    take_over: Callable[[Any, Any], Any] = lambda _old, new: new
    """Return the settings after a reload, from the old and the new ones; listeners stay open until a restart."""
    attendant: str = ""
    """An Attendant that is made with a function that returns the node's Standing, and a Report."""
    attendant_families: tuple[Family, ...] = ()
    alerts: tuple[tuple[str, str], ...] = ()
    """Part of a warning's text, and the alert whose entry in the runbook has advice."""

    service: str = ""
    """A Service that is made with (settings, SharedSettings, Report)."""

    client: str = ""
    """A client, with its article: `an MME`."""
    words: Callable[[Status], str] | None = None
    """Return in words what goes over the wire; None: `eir check --protocol` does not offer it."""
    question: Callable[[str, str, str, str, str], Question] | None = None
    """Return the question of a client about (IMEI, IMSI, software version, Origin-Host, Origin-Realm). Raises EirError.

    None: as eir.checks.explain.question_of.
    """
    schemes: tuple[str, ...] = ()
    """Schemes of the URLs that `eir probe` asks over it."""
    probe: "Callable[[Wanted], tuple[Any, Any]] | None" = None
    """Return the module that asks (as eir.interfaces.probing.Probe does), and its target. Raises UsageError."""
    capture: "Callable[[Path, Sequence[int], Any], Captured] | None" = None
    """Read a capture file; the ports are those that the EIR listens on, if given."""

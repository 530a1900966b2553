"""The configuration: one YAML file → frozen dataclasses that the parts define, or every fault with file and line.

`TABLE` is the reference: each key, its unit, its default, and whether a reload takes it over; a new key is a new row (and
a line in config/eir.yaml and in the README, which tests compare with it). What no single value can tell is checked by the
functions in `CHECKS` and `WARNINGS`. Imported by server and cli only; nothing below them sees a file.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from eir.device import TAC_DIGITS
from eir.diameter.capabilities import holds
from eir.diameter.settings import LENIENCES, Identity, Limits, PeerSettings, TlsSettings
from eir.diameter.tls import VERSIONS, TlsError, load_tls
from eir.errors import ConfigError, Problem, StoreError
from eir.lists.release import is_list_name
from eir.lists.settings import DEVICES, PAIRS, SUBSCRIBERS, ListSettings
from eir.policy import Override, PolicySettings, Rule, Status
from eir.schema import (
    FILE_BYTES_MAX,
    REQUIRED,
    Document,
    Key,
    Kind,
    Spot,
    byte_size,
    did_you_mean,
    flag,
    many,
    mask_password,
    number,
    one_of,
    percentage,
    read_document,
    seconds,
    show_values,
    text,
    whole,
)
from eir.stores.open import SQLITE

DIAMETER_PORTS = {"tcp": 3868, "tls": 5868}
"""RFC 6733 2.1, 13.1."""
WATCHDOG_MIN_S = 6
"""RFC 3539 3.4.1: Tw must not be below 6 seconds."""
LABEL_MAX, NAME_MAX = 63, 255
"""Octets in a label and in a whole domain name (RFC 1035 2.3.4)."""
ERROR = "error"
"""Instead of a status: the protocol error that the standard gives."""
TOO_BUSY = "3004"
"""Instead of a status: DIAMETER_TOO_BUSY (RFC 6733 7.1.3)."""
CERTIFICATE_SOON = timedelta(days=14)
"""So long before its end a certificate is warned of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything that is configured, checked. Paths are absolute."""

    path: Path
    """The file that it came from."""
    identity: Identity
    """Less its `origin_state_id`, which is 0: the node gives itself one at each start."""
    listen: tuple[str, ...]
    """URLs, each with its port."""
    peers: tuple[PeerSettings, ...]
    tls: TlsSettings | None
    """None: no TLS."""
    limits: Limits
    overload_answer: Status | None
    """What a request past a `rate_max` gets; None: 3004."""
    state: Path
    store: str
    """`sqlite`, or a URL of eir.stores.redis_url; it may hold a password."""
    heal: bool
    boot_without_lists: str
    """serve or refuse."""
    lists: Mapping[str, ListSettings]
    inbox: Path | None
    """The drop folder; None: there is none."""
    inbox_patience_s: float
    policy: PolicySettings
    http: str | None
    """host:port; None: no pages."""
    workers: int
    full_identifiers: bool
    """Logs show whole IMEIs and IMSIs."""
    log_level: str
    """debug, info, warning or error."""
    warnings: tuple[Problem, ...] = ()
    values: Mapping[str, Any] = field(repr=False, compare=False)
    """The same by the file's own keys, for `render`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Whereabouts:
    """Where a node and its lists are found: all that a command needs that looks, or steers, and puts nothing new in force."""

    path: Path
    state: Path
    store: str
    lists: Mapping[str, ListSettings]
    """Those that could be read; none from a file that is no YAML."""
    problems: tuple[Problem, ...] = ()
    """What is wrong in the file elsewhere."""


# Kinds of values that only this file has


def _diameter_identity(written: str) -> str:
    """A DiameterIdentity: a fully qualified domain name (RFC 6733 4.3.1)."""
    if "://" in written or ":" in written:
        raise ValueError("expected a name alone, without aaa:// and without a port")
    if not written.isascii():
        raise ValueError("expected ASCII; write an internationalised name in its xn-- form")
    label = rf"[A-Za-z0-9_](?:[A-Za-z0-9_-]{{0,{LABEL_MAX - 2}}}[A-Za-z0-9_])?"
    if len(written) > NAME_MAX or not re.fullmatch(rf"{label}(?:\.{label})*", written):
        raise ValueError
    return written


def _address(written: str, default_port: int | None) -> str:
    """host:port of an address or a name; IPv6 in brackets. Raises ValueError."""
    parts = urlsplit(f"//{written}")
    host, port = parts.hostname, parts.port if parts.port is not None else default_port
    if not host or port is None or parts.netloc != written or "@" in written:
        raise ValueError
    if "[" in written:
        return f"[{ip_address(host)}]:{port}"
    if re.fullmatch(r"[0-9.]+", host):
        return f"{ip_address(host)}:{port}"
    return f"{_diameter_identity(host)}:{port}"


def _diameter_url(written: str) -> str:
    scheme, found, rest = written.partition("://")
    if not found or scheme not in DIAMETER_PORTS:
        raise ValueError
    try:
        return f"{scheme}://{_address(rest, DIAMETER_PORTS[scheme])}"
    except ValueError:
        raise ValueError from None


def _certificate_name(written: str) -> str:
    return f"*.{_diameter_identity(written[2:])}" if written.startswith("*.") else _diameter_identity(written)


def _connect_url(written: str) -> str:
    url = _diameter_url(written)
    if url.endswith(":0"):
        raise ValueError
    return url


def _http_address(written: str) -> str | None:
    if written.lower() in {"off", "no", "false"}:
        return None
    try:
        return _address(written, None)
    except ValueError:
        raise ValueError from None


def _network(written: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(written)
    except ValueError:
        try:
            around = ip_network(written, strict=False)
        except ValueError:
            raise ValueError from None
        address = written.partition("/")[0]
        raise ValueError(
            f"it has bits set that its mask leaves out, expected the network {around} or the one address {address}"
        ) from None


def _moment(written: str) -> datetime:
    try:
        moment = datetime.fromisoformat(written)
    except ValueError:
        raise ValueError from None
    if moment.tzinfo is None:
        raise ValueError("expected one with a time zone such as 2026-11-25T06:00:00Z")
    return moment.astimezone(UTC)


def _path(written: str) -> Path:
    if not written.strip() or "\0" in written:
        raise ValueError
    return Path(written)


def _store_url(written: str) -> str:
    if written == SQLITE:
        return written
    if "://" not in written:
        raise ValueError
    from eir.stores.redis_url import parse_url  # noqa: PLC0415  # 0.2 s that the embedded store does not cost

    try:
        parse_url(written, with_secrets=False)
    except StoreError as error:
        raise ValueError(str(error)) from None
    return written


def _tac(written: str) -> str:
    if re.fullmatch(rf"[0-9]{{{TAC_DIGITS}}}|[0-9]{{1,{TAC_DIGITS - 1}}}\*", written, re.ASCII):
        return written.rstrip("*")
    raise ValueError


IDENTITY = Kind(expected="a domain name such as mme1.example.org", read=_diameter_identity)
CERTIFICATE_NAME = Kind(expected="a domain name such as dra.example.org, or *.example.org", read=_certificate_name)
LISTEN = Kind(
    expected="tcp://ADDRESS:PORT or tls://ADDRESS:PORT such as tcp://0.0.0.0:3868 or tls://[::]:5868", read=_diameter_url
)
CONNECT = Kind(
    expected="tcp://ADDRESS:PORT or tls://ADDRESS:PORT such as tcp://10.20.0.1:3868 or tls://dra1.example.org:5868",
    read=_connect_url,
)
HTTP = Kind(expected="ADDRESS:PORT such as 127.0.0.1:9868, or off", read=_http_address, may_be_empty=True)
NETWORK = Kind(expected="a network such as 10.1.0.0/16, or an address", read=_network)
MOMENT = Kind(
    expected="a time with its zone such as 2026-11-25T06:00:00Z", read=_moment,
    show=lambda moment: moment.isoformat().replace("+00:00", "Z"),
)  # fmt: skip
TAC = Kind(
    expected="8 digits (a TAC), or fewer and a star (all TACs that begin with them)", read=_tac,
    show=lambda tac: tac if len(tac) == TAC_DIGITS else f"{tac}*",
)  # fmt: skip
SOFTWARE_VERSION = text("two digits", r"[0-9]{2}")
IMSI_PREFIX = text("the first 1 to 15 digits of IMSIs", r"[0-9]{1,15}")
FILE = Kind(expected="the path of a file", read=_path)
FOLDER = Kind(expected="the path of a folder", read=_path)
STORE = Kind(
    expected="sqlite, redis://HOST[:PORT][/DB] or rediss:// (TLS), redis+sentinel://HOST,…/SERVICE, or redis+cluster://HOST,…",
    read=_store_url, show=mask_password,
)  # fmt: skip
RULE_NAME = text("a letter, and up to 63 letters, digits, '.', '_', '-' or ':'", r"[A-Za-z][A-Za-z0-9._:-]{0,63}")
PEER_NAME = text("1 to 64 letters, digits, '.', '_', '-' or ':'", r"[A-Za-z0-9._:-]{1,64}")
LIST_NAME = text("the name of a list under `lists`", r".{1,200}")
STATUS = one_of({status.value: status for status in Status})
STATUS_OR_TOO_BUSY = one_of({TOO_BUSY: TOO_BUSY, **{status.value: status for status in Status}})
STATUS_OR_ERROR = one_of({**{status.value: status for status in Status}, ERROR: ERROR})

PAIR_CONDITIONS = ("device_bound_elsewhere", "subscriber_bound_elsewhere")
LIST_CONDITIONS = ("list", "not_list", *PAIR_CONDITIONS)
"""Keys of a rule that name a list."""

LIMITS = Limits()

WORKERS_MAX = 64


def _read_workers(written: str) -> int:
    """A number of workers; `auto` is the processors that this process may use."""
    if written == "auto":
        return min(len(os.sched_getaffinity(0)), WORKERS_MAX)
    return int(whole(1, WORKERS_MAX).read(written))


_WORKERS = Kind(expected=f"a whole number from 1 to {WORKERS_MAX}, or auto", read=_read_workers, show=int, bare=True)

TABLE = (
    Key("identity.host", IDENTITY, REQUIRED, "Origin-Host: the node's own name"),
    Key("identity.realm", IDENTITY, REQUIRED, "Origin-Realm: the realm that it belongs to and serves"),
    Key("identity.aliases", many(IDENTITY, may_be_empty=True), (), "further host names that are this node when a Destination-Host holds them"),
    Key("identity.realms", many(IDENTITY, may_be_empty=True), (), "further realms that it serves"),
    Key("listen", many(LISTEN), ("tcp://127.0.0.1:3868",), "where peers connect to; the port is 3868, or 5868 for tls, unless it is given", live=False),
    Key("peers[].name", PEER_NAME, None, "what metrics, logs and commands call the peer; else its host, its realm, or its first network"),
    Key("peers[].host", IDENTITY, None, "Origin-Host that it has to show; any if left out"),
    Key("peers[].realm", IDENTITY, None, "Origin-Realm that it has to show; any if left out"),
    Key("peers[].from", many(NETWORK), (), "networks that it may connect from; any address if left out"),
    Key("peers[].connect", CONNECT, None, "where we connect to the peer; it connects to us if left out"),
    Key("peers[].tls_names", many(CERTIFICATE_NAME), (), "names of which its certificate has to have one, over TLS; its Origin-Host if left out, and its Origin-Realm where the host does not end in that"),
    Key("peers[].reconnect_after_s", seconds(1, 3600), 30, "pause before we connect to it again (Tc of RFC 6733)"),
    Key("peers[].connections", whole(1, 64), 1, "connections that one Origin-Host may hold at once"),
    Key("peers[].watchdog_s", seconds(WATCHDOG_MIN_S, 3600), 30, "silence after which a DWR goes out (Tw of RFC 3539)"),
    Key("peers[].rate_max", number(0.1, 1e6, "requests a second"), None, "requests of the peer that are answered; those above get `overload_answer`; no limit if left out"),
    Key("peers[].lenient", many(one_of({name: name for name in sorted(LENIENCES)}), may_be_empty=True), (), "what the peer is forgiven: a CER without a common application, unknown AVPs with the M bit, another node's name as Destination-Host"),
    Key("peers[].as.host", IDENTITY, None, "Origin-Host that we show to this peer; identity.host if left out"),
    Key("peers[].as.realm", IDENTITY, None, "Origin-Realm that we show to this peer; identity.realm if left out"),
    Key("limits.max_message_bytes", byte_size(4096, 1 << 23), LIMITS.max_message_bytes, "longest message; a longer one closes the connection before it is read"),
    Key("limits.max_avps", whole(32, 65536), LIMITS.max_avps, "AVPs in one message, those inside groups counted too"),
    Key("limits.max_depth", whole(2, 64), LIMITS.max_depth, "groups inside groups"),
    Key("limits.cer_timeout_s", seconds(0.1, 3600), LIMITS.cer_timeout_s, "time from the accept to a complete CER"),
    Key("limits.partial_message_timeout_s", seconds(0.1, 3600), LIMITS.partial_message_timeout_s, "time from the first byte of a message to its last"),
    Key("limits.turn_messages", whole(1, 65536), LIMITS.turn_messages, "work on one connection before others get their turn, in checks of the usual kind (others count for more)"),
    Key("limits.write_buffer_bytes", byte_size(4096, 1 << 28), LIMITS.write_buffer_bytes, "unsent answers above which nothing more is read from the peer"),
    Key("limits.stalled_write_s", seconds(0.1, 3600), LIMITS.stalled_write_s, "time that a peer may leave answers unread before it is dropped"),
    Key("limits.close_after_dpa_s", seconds(0.1, 60), LIMITS.close_after_dpa_s, "time from our DPA to our closing of the connection"),
    Key("limits.duplicate_probe_s", seconds(0.1, 60), LIMITS.duplicate_probe_s, "time that a peer's oldest connection has for its DWA when the peer opens one too many"),
    Key("limits.connections_max", whole(1, 65536), LIMITS.connections_max, "connections at once"),
    Key("limits.unidentified_max", whole(1, 65536), LIMITS.unidentified_max, "connections at once that have not sent a CER yet; above, the oldest of the address with most of them goes"),
    Key("limits.source_connections_max", whole(1, 65536), LIMITS.source_connections_max, "connections at once from one network of addresses (IPv4 /24, IPv6 /64)"),
    Key("limits.source_unidentified_max", whole(1, 65536), LIMITS.source_unidentified_max, "of those, the ones that have not sent a CER yet; above, the oldest of the address with most of them goes"),
    Key("limits.rate_max", number(0.1, 1e6, "requests a second"), None, "requests of all peers together that are answered; those above get `overload_answer`; no limit if left out"),
    Key("overload_answer", STATUS_OR_TOO_BUSY, TOO_BUSY, "what a request above a rate_max gets, at once: 3004 (too busy), or a status without a look at any list"),
    Key("tls.certificate", FILE, REQUIRED, "the node's certificate in PEM, and behind it those of authorities between it and one that peers know"),
    Key("tls.key", FILE, REQUIRED, "its private key in PEM, without a passphrase"),
    Key("tls.ca", FILE, REQUIRED, "certificates in PEM of the authorities that peers' certificates have to come from"),
    Key("tls.crl", FILE, None, "revocation lists of those authorities, in PEM; nothing is looked up if left out"),
    Key("tls.min_version", one_of({version: version for version in VERSIONS}), "1.2", "lowest version of TLS"),
    Key("state", FOLDER, Path("var"), "folder of the SQLite file, the last good copies and the control socket", live=False),
    Key("store", STORE, SQLITE, "where lists are kept", live=False),
    Key("heal", flag(), True, "if the store lost a list that this node has a newer copy of, write the copy back to it", live=False),
    Key("boot_without_lists", one_of({"serve": "serve", "refuse": "refuse"}), "serve", "start without any copy of a list: serve answers by the rest of the policy (/ready says 503), refuse opens no listener", live=False),
    Key("lists.*.kind", one_of({kind: kind for kind in (DEVICES, PAIRS, SUBSCRIBERS)}), DEVICES, "what the list holds: devices (identifiers, TACs, ranges), pairs (a device with its SIM, by IMSI), or subscribers (IMSIs)"),
    Key("lists.*.signers", FILE, None, "OpenSSH allowed_signers file of those whose releases are accepted for this list; required unless the list is local"),
    Key("lists.*.local", flag(), False, "instead of signers: changed by eir add and eir remove, and by no release"),
    Key("lists.*.revoked", FILE, None, "revoked keys, as ssh-keygen -Y verify -r takes them; nothing is revoked if left out"),
    Key("lists.*.threshold", whole(1, 16), 1, "different keys, of different signers, that have to sign a release"),
    Key("lists.*.shrink_max", percentage(100), 0.20, "part of the devices in force that a release may take away (a TAC counts as a million)"),
    Key("lists.*.growth_max", percentage(100_000), 0.20, "part of the devices in force that a release may add"),
    Key("lists.*.range_tacs_max", whole(1, 10**8), 1000, "TACs that one range may span"),
    Key("lists.*.bad_rows_max", whole(0, 10**9), 100, "rows that are no identifier; one more refuses the release"),
    Key("inbox", FOLDER, None, "drop folder: signed releases that arrive in it are loaded, and moved to its accepted/ or refused/; none is watched if left out", live=False),
    Key("inbox_patience_s", seconds(1, 30 * 86400), 3600, "how long a release in the drop folder may stay incomplete, and a file that no release names", live=False),
    Key("policy.rules[].name", RULE_NAME, None, "what metrics and logs call the rule; its number if left out"),
    Key("policy.rules[].answer", STATUS, REQUIRED, "status that the rule gives if all its conditions hold"),
    Key("policy.rules[].observe", flag(), False, "count and log what the rule would have answered, and go on with the next"),
    Key("policy.rules[].list", LIST_NAME, None, "condition: in this list is the device, the device with this SIM (pairs), or the SIM (subscribers); waits for the list's first load"),
    Key("policy.rules[].not_list", LIST_NAME, None, "condition: not in this list; waits for the list's first load"),
    Key("policy.rules[].device_bound_elsewhere", LIST_NAME, None, "condition: this list of pairs has the device, but not with this SIM"),
    Key("policy.rules[].subscriber_bound_elsewhere", LIST_NAME, None, "condition: this list of pairs has the SIM, but not with this device"),
    Key("policy.rules[].tac", many(TAC), (), "condition: the device's Type Allocation Code"),
    Key("policy.rules[].software_version", many(SOFTWARE_VERSION), (), "condition: the device's Software-Version"),
    Key("policy.rules[].imsi", many(IMSI_PREFIX), (), "condition: the subscriber's IMSI begins so (roamers by MCC and MNC)"),
    Key("policy.rules[].origin_host", many(IDENTITY), (), "condition: the Origin-Host that asks"),
    Key("policy.rules[].origin_realm", many(IDENTITY), (), "condition: the Origin-Realm that asks"),
    Key("policy.default", STATUS, Status.WHITELISTED, "status if no rule holds"),
    Key("policy.no_identity", STATUS_OR_ERROR, Status.WHITELISTED, "for a request without IMEI and MEID; error is 5005"),
    Key("policy.bad_identity", STATUS_OR_ERROR, Status.WHITELISTED, "for a request whose IMEI or MEID is none; error is 5004"),
    Key("policy.override.answer", STATUS, REQUIRED, "the one status that everything gets while the section is there"),
    Key("policy.override.until", MOMENT, None, "when the override ends by itself"),
    Key("http", HTTP, "127.0.0.1:9868", "where /metrics, /live and /ready are", live=False),
    Key("workers", _WORKERS, 1, "processes that answer; `auto`: one for each processor", live=False),
    Key("log.level", one_of({level: level for level in ("debug", "info", "warning", "error")}), "info", "least level of lines that are written"),
    Key("privacy.identifiers", one_of({"short": "short", "full": "full"}), "short", "IMEI and IMSI in logs: their first and last digits, or whole"),
)  # fmt: skip

OPTIONAL = frozenset({"policy.override", "tls"})
"""Sections that may be left out although a key in them is required."""


def load_config(path: Path) -> Config:
    """Read and check a configuration. Raises ConfigError with all that is wrong in it, in file order."""
    document, problems = _read(path)
    if problems:
        raise ConfigError(problems)
    values = document.values
    warnings = sorted((problem for check in WARNINGS for problem in check(document)), key=lambda problem: problem.line)
    return Config(
        path=path,
        identity=Identity(**values["identity"], origin_state_id=0),
        listen=values["listen"],
        peers=tuple(_peer(peer) for peer in values["peers"]),
        tls=None if values["tls"] is None else TlsSettings(**values["tls"]),
        limits=Limits(**values["limits"]),
        overload_answer=None if values["overload_answer"] == TOO_BUSY else values["overload_answer"],
        state=values["state"],
        store=values["store"],
        heal=values["heal"],
        boot_without_lists=values["boot_without_lists"],
        lists={name: ListSettings(name=name, **settings) for name, settings in values["lists"].items()},
        inbox=values["inbox"],
        inbox_patience_s=values["inbox_patience_s"],
        policy=_policy(values["policy"]),
        http=values["http"],
        workers=values["workers"],
        full_identifiers=values["privacy"]["identifiers"] == "full",
        log_level=values["log"]["level"],
        warnings=tuple(warnings),
        values=values,
    )


def load_whereabouts(path: Path) -> Whereabouts:
    """Where node and lists are, also by a file that is wrong elsewhere: the node that runs has long taken over a good one.

    Raises ConfigError where the file cannot be read, or where `state` or `store` are what is wrong.
    """
    try:
        document, problems = _read(path)
    except ConfigError as e:
        return _whereabouts_by_lines(path, e)
    if document.faulty("state") or document.faulty("store"):
        raise ConfigError(problems)
    values = document.values
    lists = {name: ListSettings(name=name, **settings) for name, settings in values["lists"].items()}
    return Whereabouts(path=path, state=values["state"], store=values["store"], lists=lists, problems=problems)


def _whereabouts_by_lines(path: Path, error: ConfigError) -> Whereabouts:
    """`state` and `store` of a file that is no YAML as a whole: the lines that begin with them still say it."""
    try:
        lines = path.read_bytes()[:FILE_BYTES_MAX].splitlines()
    except OSError:
        raise error from None
    read: dict[str, Any] = {}
    for key in (key for key in TABLE if key.path in {"state", "store"}):
        found = [line for line in lines if line.startswith(f"{key.path}:".encode())]
        try:
            written = [yaml.safe_load(line)[key.path] for line in found] or [str(key.default)]
            (read[key.path],) = map(key.kind.read, written)
        except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError):
            raise error from None
    folder = path.absolute().parent
    return Whereabouts(
        path=path, state=folder / read["state"], store=_with_files(read["store"], folder), lists={}, problems=error.problems
    )


def _read(path: Path) -> tuple[Document, tuple[Problem, ...]]:
    """The document with absolute paths, and all that is wrong in it, in file order. Raises ConfigError for what is no YAML."""
    document = read_document(path, TABLE, optional=OPTIONAL)
    values = document.values
    folder = path.absolute().parent
    values["state"] = folder / values["state"]
    values["store"] = _with_files(values["store"], folder)
    if values["inbox"] is not None:
        values["inbox"] = folder / values["inbox"]
    for section, names in [(settings, ("signers", "revoked")) for settings in values["lists"].values()] + [
        (values["tls"] or {}, ("certificate", "key", "ca", "crl"))
    ]:
        for name in names:
            if section.get(name) is not None:
                section[name] = folder / section[name]
    problems = [*document.problems, *(problem for check in CHECKS for problem in check(document))]
    return document, tuple(sorted(problems, key=lambda problem: problem.line))


def _with_files(store: str, folder: Path) -> str:
    """The store's URL, the files that it names being found from the configuration's folder."""
    if store == SQLITE:
        return store
    from eir.stores.redis_url import with_files_in  # noqa: PLC0415  # 0.2 s that the embedded store does not cost

    return with_files_in(store, folder)


def render_json(config: Config) -> dict[str, Any]:
    """What is in force as JSON knows it, by the file's own keys, defaults filled in and passwords hidden."""
    return show_values(config.values, TABLE)


def render(config: Config) -> str:
    """What is in force as YAML; read again, it gives the same configuration."""
    return str(yaml.safe_dump(render_json(config), sort_keys=False, allow_unicode=True, width=120))


def _label(peer: Mapping[str, Any]) -> str:
    return str(peer["name"] or peer["host"] or peer["realm"] or next(iter(peer["from"]), ""))


def _peer(peer: Mapping[str, Any]) -> PeerSettings:
    return PeerSettings(
        label=_label(peer),
        host=peer["host"],
        realm=peer["realm"],
        sources=peer["from"],
        connect=peer["connect"],
        tls_names=peer["tls_names"],
        reconnect_after_s=peer["reconnect_after_s"],
        rate_max=peer["rate_max"],
        connections=peer["connections"],
        watchdog_s=peer["watchdog_s"],
        lenient=frozenset(peer["lenient"]),
        as_host=peer["as"]["host"],
        as_realm=peer["as"]["realm"],
    )


def _policy(policy: Mapping[str, Any]) -> PolicySettings:
    override = policy["override"]
    return PolicySettings(
        rules=tuple(Rule(**rule) for rule in policy["rules"]),
        default=policy["default"],
        no_identity=None if policy["no_identity"] == ERROR else policy["no_identity"],
        bad_identity=None if policy["bad_identity"] == ERROR else policy["bad_identity"],
        override=None if override is None else Override(**override),
    )


# What no single value can tell. Each function yields problems; values with a fault of their own read as their default.


def _check_peers(document: Document) -> Iterator[Problem]:
    identity = document.values["identity"]
    ours = {name.lower() for name in (identity["host"], *identity["aliases"]) if name}
    names: dict[str, int] = {}
    for at, peer in enumerate(document.values["peers"]):
        spot = ("peers", at)
        if not document.faulty(*spot) and not (peer["host"] or peer["realm"] or peer["from"]):
            yield document.problem("a peer that anyone could be; expected at least one of host, realm and from", *spot)
        if peer["host"] and peer["host"].lower() in ours:
            yield document.problem(f"the peer's host {peer['host']} is the node's own name; expected another's", *spot, "host")
        label = _label(peer)
        if label in names:
            yield document.problem(
                f"metrics and commands would call this peer '{label}', like the entry in line {names[label]}; "
                "expected a 'name' of its own",
                *spot, "name",
            )  # fmt: skip
        elif label:
            names[label] = document.line(*spot)


def _check_listen(document: Document) -> Iterator[Problem]:
    listen = document.values["listen"]
    for at, url in enumerate(listen):
        if url in listen[:at] and not url.endswith(":0"):
            yield document.problem(f"{url} stands twice in 'listen'", "listen", at)


def _check_tls(document: Document) -> Iterator[Problem]:
    """What TLS has to have; its files are read as a start or a reload would read them."""
    tls = document.values["tls"]
    if tls is not None:
        if not document.faulty("tls"):
            try:
                load_tls(TlsSettings(**tls))
            except TlsError as e:
                yield document.problem(str(e), "tls", e.key)
        return
    spots: dict[Spot, str] = {("listen", at): url for at, url in enumerate(document.values["listen"])}
    spots |= {("peers", at, "connect"): peer["connect"] or "" for at, peer in enumerate(document.values["peers"])}
    for spot, url in spots.items():
        if url.startswith("tls:") and not document.faulty("tls"):
            yield document.problem(f"{url} needs the section 'tls' with certificate, key and ca", *spot)


def _warn_tls(document: Document) -> Iterator[Problem]:
    values = document.values
    if values["tls"] is None:
        return
    certificate = load_tls(TlsSettings(**values["tls"])).certificate
    now, file, spot = datetime.now(UTC), values["tls"]["certificate"], ("tls", "certificate")
    if now < certificate.not_before:
        yield document.problem(f"the certificate {file} is not valid before {certificate.not_before:%Y-%m-%d %H:%M} UTC", *spot)
    if certificate.not_after - now < CERTIFICATE_SOON:
        verb = "has ended" if certificate.not_after <= now else "ends"
        yield document.problem(f"the certificate {file} {verb} on {certificate.not_after:%Y-%m-%d %H:%M} UTC", *spot)
    shown = [values["identity"]["host"], *(peer["as"]["host"] for peer in values["peers"] if peer["as"]["host"])]
    for host in dict.fromkeys(shown):
        if not holds(certificate.names, host):
            names = ", ".join(certificate.names) or "nobody"
            yield document.problem(
                f"the certificate {file} is for {names}, not for {host}: peers that compare it with our Origin-Host refuse us", *spot
            )


def _check_lists(document: Document) -> Iterator[Problem]:
    for name, settings in document.values["lists"].items():
        spot = ("lists", name)
        if not is_list_name(name):
            yield document.problem(f"'{name}' is no name for a list; expected 1 to 64 letters, digits, '.', '_' and '-'", *spot)
        if settings["local"]:
            for key in ("signers", "revoked"):
                if settings[key] is not None:
                    yield document.problem(
                        f"{name} is local, so no release changes it; leave '{key}' out, or 'local'", *spot, key
                    )
            continue
        if settings["signers"] is None and not document.faulty(*spot):
            yield document.problem(
                f"nothing may change the list {name}; expected signers (an allowed_signers file), or local: true", *spot
            )
        if settings["signers"] is not None and (wrong := _unusable(settings["signers"])):
            yield document.problem(
                f"the signers file of {name} {wrong}: {settings['signers']}; put the publishers' public keys there, one a line: "
                'NAME namespaces="eir-release" ssh-ed25519 AAAA… (the allowed_signers form of ssh-keygen)',
                *spot, "signers",
            )  # fmt: skip
        if settings["revoked"] is not None and (wrong := _unusable(settings["revoked"])):
            yield document.problem(
                f"the file of revoked keys of {name} {wrong}: {settings['revoked']}; put the revoked public keys there, "
                "or leave 'revoked' out if there is none",
                *spot, "revoked",
            )  # fmt: skip


def _warn_signers(document: Document) -> Iterator[Problem]:
    for name, settings in document.values["lists"].items():
        if settings["local"]:
            continue
        lines = [line for line in settings["signers"].read_bytes().splitlines() if line.strip() and not line.lstrip().startswith(b"#")]
        many_each = any(b"cert-authority" in line for line in lines)
        if len(lines) < settings["threshold"] and not (lines and many_each):
            yield document.problem(
                f"{settings['signers']} holds {len(lines)} keys, and a release of {name} needs {settings['threshold']}: none will load",
                "lists", name, "signers",
            )  # fmt: skip


def _unusable(path: Path) -> str | None:
    """What is wrong with a file that has to hold something; OpenSSH passes everything if the revocation list is empty."""
    try:
        if not path.is_file():
            return "does not exist" if not path.exists() else "is not a file"
        with path.open("rb") as stream:
            return None if stream.read(4096).strip() else "is empty"
    except OSError as e:
        return f"cannot be read ({e.strerror})"


def _check_rules(document: Document) -> Iterator[Problem]:
    lists = document.values["lists"]
    conditions = [name for name in (f.name for f in fields(Rule)) if name not in {"name", "answer", "observe"}]
    names = Counter(rule["name"] for rule in document.values["policy"]["rules"] if rule["name"])
    for at, rule in enumerate(document.values["policy"]["rules"]):
        spot = ("policy", "rules", at)
        if not document.faulty(*spot) and not any(rule[name] for name in conditions):
            yield document.problem(
                f"a rule without a condition answers every device; expected one of {', '.join(conditions)}, or policy.default", *spot
            )
        if names[rule["name"]] > 1:
            yield document.problem(f"two rules have the name '{rule['name']}'", *spot, "name")
        for name in LIST_CONDITIONS:
            if rule[name] is None:
                continue
            if rule[name] not in lists:
                advice = did_you_mean(rule[name], list(lists)) or f"; lists are: {', '.join(lists) or 'none'}"
                yield document.problem(f"the rule's list '{rule[name]}' is not under 'lists'{advice}", *spot, name)
            elif name in PAIR_CONDITIONS and (kind := lists[rule[name]]["kind"]) != PAIRS:
                yield document.problem(
                    f"'{rule[name]}' is a list of {kind}; what is bound to what only a list of pairs says", *spot, name
                )


def _warn_unused_lists(document: Document) -> Iterator[Problem]:
    rules = document.values["policy"]["rules"]
    used = {rule[name] for rule in rules for name in LIST_CONDITIONS}
    for name in document.values["lists"]:
        if name not in used:
            yield document.problem(f"no rule uses the list '{name}': it is loaded and answers nothing", "lists", name)


def _warn_peers(document: Document) -> Iterator[Problem]:
    peers = document.values["peers"]
    if not peers:
        yield document.problem("no peer is configured under 'peers': every connection will be refused", "peers")
    for at, peer in enumerate(peers):
        first = next((before for before, other in enumerate(peers[:at]) if _covers(other, peer)), None)
        if first is not None:
            yield document.problem(
                f"this peer is never reached: the entry in line {document.line('peers', first)} fits whatever it fits",
                "peers", at,
            )  # fmt: skip


def _covers(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether every connection that fits the second entry fits the first."""
    names = all(first[name] is None or (second[name] or "").lower() == first[name].lower() for name in ("host", "realm"))
    return names and (
        not first["from"]
        or (bool(second["from"]) and all(any(_inside(net, around) for around in first["from"]) for net in second["from"]))
    )


def _inside(network: IPv4Network | IPv6Network, around: IPv4Network | IPv6Network) -> bool:
    if isinstance(network, IPv4Network):
        return isinstance(around, IPv4Network) and network.subnet_of(around)
    return isinstance(around, IPv6Network) and network.subnet_of(around)


def _warn_open_doors(document: Document) -> Iterator[Problem]:
    """Names in a CER are claims: without TLS only the address tells who is there."""
    if all(re.match(r"tls:|tcp://(127\.|\[::1\]|localhost:)", url) for url in document.values["listen"]):
        return
    for at, peer in enumerate(document.values["peers"]):
        if not peer["from"]:
            yield document.problem(
                f"whoever reaches the listener can claim to be peer '{_label(peer)}'; 'from' would say where it connects from",
                "peers", at,
            )  # fmt: skip


def _warn_override(document: Document) -> Iterator[Problem]:
    override = document.values["policy"]["override"]
    if override is None:
        return
    if override["until"] is None:
        yield document.problem(f"the override answers {override['answer']} to everything, and has no 'until'", "policy", "override")
    elif override["until"] <= datetime.now(UTC):
        yield document.problem("the override is over and does nothing", "policy", "override", "until")


CHECKS = (_check_peers, _check_listen, _check_tls, _check_lists, _check_rules)
"""What makes a configuration unusable."""
WARNINGS = (_warn_peers, _warn_open_doors, _warn_tls, _warn_unused_lists, _warn_signers, _warn_override)
"""What is probably not meant."""

"""Checks of a whole configuration: faults and probable mistakes that concern several values or files.

A check receives the configuration that was built from the document, and the document, which knows the lines. In the
configuration, an invalid value is replaced by its default or None. Checks read the files that the configuration names,
and change nothing.
"""

import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from eir.checks.conditions import CONDITIONS
from eir.config.settings import Config
from eir.errors import FileError, StoreError
from eir.interfaces import INTERFACES
from eir.lists.record.settings import BOUND, DEVICES, PAIRS, TYPES, is_list_name
from eir.lists.releases.foreign import LAYOUTS
from eir.lists.releases.openssh import distinct_signers
from eir.lists.rows.layout import ACTION, SUBJECTS
from eir.lists.stores.open import SQLITE
from eir.schema import Document, Findings, Spot, did_you_mean
from eir.sightings.settings import OFF
from eir.wire.peers.settings import APPLICATIONS, PeerSettings, holds
from eir.wire.transport.endpoint import is_loopback, is_secure
from eir.wire.transport.sctp_options import LOAD_ADVICE, is_supported
from eir.wire.transport.tls import load_tls, read_tls
from eir.wire.web.denials import TokenSettings
from eir.wire.web.verifier import keys_of

CERTIFICATE_SOON = timedelta(days=14)
"""Remaining validity below which the certificate of the node causes a warning."""
SIGNER = 'NAME namespaces="eir-release" ssh-ed25519 AAAA… (the allowed_signers form of ssh-keygen)'
KEY = re.compile(rb"\s(sk-)?(ssh|ecdsa)-\S+\s+\S")
"""Type and start of a public key in a line of a signers file."""
FILES = {
    "signers": ("signers file", f"write the publishers' public keys there, one per line: {SIGNER}"),
    "revoked": (
        "file of revoked keys",
        "write the revoked public keys there, or leave 'revoked' out if no key is revoked",
    ),
}
"""Files of a list by key: name, and advice for an unusable file."""

SECRET_FILES = {"password_file", "sentinel_password_file", "key_file"}
"""Files named by `store` that must be private."""

LOCAL = re.compile(r"\w+://(127\.|\[::1\]|localhost:)")
"""Start of the URL of a listener on a loopback address."""

Network = IPv4Network | IPv6Network
Check = Callable[[Config, Document], Findings]


def _check_peers(config: Config, document: Document) -> Findings:
    ours = {name.lower() for name in (config.identity.host, *config.identity.aliases) if name}
    lines: dict[str, int] = {}
    for at, peer in enumerate(config.peers):
        spot = ("peers", at)
        is_selective = peer.host or peer.realm or peer.sources or peer.is_titled
        if not is_selective and not document.faulty(*spot):
            yield "the entry matches every client; expected at least one of host, realm, from, gt and point_code", spot
        if peer.host and peer.host.lower() in ours:
            yield f"the peer's host {peer.host} is the node's own name; expected another name", (*spot, "host")
        if peer.label in lines:
            other = f"the entry in line {lines[peer.label]}"
            text = f"this peer would have the name '{peer.label}' in metrics and commands, like {other}"
            yield f"{text}; expected a 'name' of its own", (*spot, "name")
        elif peer.label:
            lines[peer.label] = document.line(*spot)


def _check_listen(config: Config, _: Document) -> Findings:
    before: dict[str, str] = {}
    for _name, (*key, at), url in (*config.listeners, *config.service_listeners):
        name = ".".join(map(str, key))
        if url in before and not url.endswith(":0"):
            text = f"{url} is also in '{before[url]}'; expected another port"
            if before[url] == name:
                text = f"{url} stands twice in '{name}'"
            yield text, (*key, at)
        before.setdefault(url, name)


def _check_service_listeners(config: Config, _: Document) -> Findings:
    for listener in config.service_listeners:
        if not is_secure(listener.url) and not is_loopback(listener.url):
            text = f"{listener.url} would send passwords and tokens in clear text"
            yield f"{text}; expected https://, or http:// on a loopback address", listener.spot


def _connects(config: Config) -> dict[Spot, str]:
    """Return the URLs to which the node connects, as a map: position of the key in the configuration file → URL."""
    urls: dict[Spot, str | None] = {("peers", at, "connect"): peer.connect for at, peer in enumerate(config.peers)}
    for each in INTERFACES:
        urls |= each.connects(config.of(each))
    return {spot: url for spot, url in urls.items() if url}


def _warn_sctp(config: Config, _: Document) -> Findings:
    urls = {listener.spot: listener.url for listener in config.listeners} | _connects(config)
    over_sctp = {spot: url for spot, url in urls.items() if url.startswith("sctp:")}
    if over_sctp and not is_supported():
        for spot, url in over_sctp.items():
            yield f"{url} does not work on this host: {LOAD_ADVICE}", spot


def _check_tls(config: Config, document: Document) -> Findings:
    """Find TLS files that cannot be loaded, and URLs that need the missing section `tls`."""
    if document.faulty("tls"):
        return
    if config.tls is not None:
        try:
            load_tls(read_tls(config.tls))
        except FileError as e:
            yield str(e), ("tls", e.key)
        return
    listeners = (*config.listeners, *config.service_listeners)
    urls: dict[Spot, str] = {listener.spot: listener.url for listener in listeners}
    urls |= _connects(config)
    for spot, url in urls.items():
        if is_secure(url):
            yield f"{url} needs the section 'tls' with certificate, key and ca", spot


def _check_tokens(config: Config, document: Document) -> Findings:
    """Find keys of access tokens that cannot be loaded."""
    for section, settings in config.interfaces.items():
        tokens = getattr(settings, "tokens", None)
        if not isinstance(tokens, TokenSettings) or document.faulty(section, "tokens"):
            continue
        if not (tokens.jwks or tokens.keys):
            yield "no keys to verify access tokens; expected jwks or keys", (section, "tokens")
            continue
        try:
            keys_of(tokens)
        except FileError as e:
            yield str(e), (section, "tokens", e.key)


def _check_numbers(config: Config, document: Document) -> Findings:
    if config.numbers is None or document.faulty("numbers"):
        return
    fault = _unusable(config.numbers)
    if fault:
        yield f"the table of numbers {fault}: {config.numbers}; expected lines of MSISDN,IMSI", ("numbers",)


def _check_store(config: Config, document: Document) -> Findings:
    if document.faulty("store"):
        return
    try:
        _store_files(config)
    except StoreError as e:
        yield str(e), ("store",)


def _store_files(config: Config) -> Mapping[str, Path]:
    if config.store == SQLITE:
        return {}
    from eir.lists.stores.redis_url import files_of  # noqa: PLC0415  # 0.2 s, only for Redis

    return files_of(config.store)


def _warn_secrets(config: Config, _: Document) -> Findings:
    """Warn about files with secrets that every user of the host can read."""
    secrets: list[tuple[Path | None, Spot]] = []
    for option, file in _store_files(config).items():
        if option in SECRET_FILES:
            secrets.append((file, ("store",)))
    if config.tls is not None:
        secrets.append((config.tls.key, ("tls", "key")))
    for name, settings in config.lists.items():
        source = settings.source
        if source is not None:
            spot = ("lists", name, "source")
            secrets += [(source.key, (*spot, "key")), (source.token, (*spot, "token"))]
    for secret, place in secrets:
        if secret is not None and secret.stat().st_mode & stat.S_IROTH:
            yield f"{secret} is readable by everyone on this host: chmod o-r {secret}", place


def _warn_tls(config: Config, _: Document) -> Findings:
    if config.tls is None:
        return
    certificate = load_tls(read_tls(config.tls)).certificate
    now = datetime.now(UTC)
    file, spot = config.tls.certificate, ("tls", "certificate")
    if now < certificate.not_before:
        yield f"the certificate {file} is not valid before {certificate.not_before:%Y-%m-%d %H:%M} UTC", spot
    if certificate.not_after - now < CERTIFICATE_SOON:
        verb = "has ended" if certificate.not_after <= now else "ends"
        yield f"the certificate {file} {verb} on {certificate.not_after:%Y-%m-%d %H:%M} UTC", spot
    names = ", ".join(certificate.names) or "no name"
    further_hosts = [peer.as_host for peer in config.peers if peer.as_host]
    for host in dict.fromkeys((config.identity.host, *further_hosts)):
        if not holds(certificate.names, host):
            text = f"the certificate {file} is for {names}, not for {host}"
            yield f"{text}: peers that compare it with the node's Origin-Host refuse the node", spot


def _check_lists(config: Config, document: Document) -> Findings:
    for name, settings in config.lists.items():
        spot = ("lists", name)
        if not is_list_name(name):
            yield f"'{name}' cannot be the name of a list; expected 1 to 64 letters, digits, '.', '_' and '-'", spot
        if not (settings.local or settings.signers or document.faulty(*spot)):
            text = f"the list {name} has no signers and is not local"
            yield f"{text}; expected signers (an allowed_signers file), or local: true", spot
        if settings.dates and settings.kind in BOUND:
            text = f"{name} is a list of {settings.kind}, which stores no dates of entries; leave 'dates' out"
            yield text, (*spot, "dates")
        for key, (label, advice) in FILES.items():
            file: Path | None = getattr(settings, key)
            if not file:
                continue
            if settings.local:
                yield f"{name} is local, so no release changes it; leave '{key}' out, or 'local'", (*spot, key)
                continue
            fault = _unusable(file)
            if fault:
                yield f"the {label} of {name} {fault}: {file}; {advice}", (*spot, key)


def _check_reasons(config: Config, _: Document) -> Findings:
    for name, settings in config.lists.items():
        spot = ("lists", name, "reasons")
        if settings.reasons and settings.kind == TYPES:
            text = f"{name} is a list of {TYPES}, whose entries have no reasons"
            yield f"{text}; leave 'reasons' out, and name the types in a rule's device_type", spot
        if settings.reasons and config.first_seen is not None and name in config.policy.registering:
            text = f"{name} registers devices for a period of grace, with any reason"
            yield f"{text}; leave 'reasons' out, and load entries with other reasons into another list", spot


def _check_sources(config: Config, document: Document) -> Findings:
    for name, settings in config.lists.items():
        source, spot = settings.source, ("lists", name, "source")
        if source is None or document.faulty(*spot):
            continue
        if settings.local:
            yield f"{name} is local, so no release changes it; leave 'source' out, or 'local'", spot
        if (source.certificate is None) != (source.key is None):
            yield f"certificate and key of the source of {name} need each other; expected both or none", spot
        for key in ("ca", "certificate", "key", "token"):
            file: Path | None = getattr(source, key)
            fault = _unusable(file) if file else None
            if fault:
                yield f"the {key} of the source of {name} {fault}: {file}", (*spot, key)


def _unusable(path: Path) -> str | None:
    """Return the fault of a file that must exist and must not be empty; None if the file is usable.

    If the revocation list is empty, OpenSSH accepts every key.
    """
    try:
        if not path.is_file():
            return "does not exist" if not path.exists() else "is not a file"
        with path.open("rb") as stream:
            return None if stream.read(4096).strip() else "is empty"
    except OSError as e:
        return f"cannot be read ({e.strerror})"


def _warn_signers(config: Config, _: Document) -> Findings:
    for name, settings in config.lists.items():
        if settings.signers is None:
            continue
        lines = []
        for number, line in enumerate(map(bytes.strip, settings.signers.read_bytes().splitlines()), start=1):
            if KEY.search(line):
                lines.append(line)
            elif line and not line.startswith(b"#"):
                text = f"line {number} of {settings.signers} has no public key, so OpenSSH ignores the line"
                yield f"{text}; expected {SIGNER}", ("lists", name, "signers")
        principals = {}
        for at, line in enumerate(lines):
            first_field = line.split()[0].decode(errors="replace")
            principals[str(at)] = first_field.strip('"').split(",")
        persons = len(distinct_signers(principals))
        has_authority = any(b"cert-authority" in line for line in lines)
        if persons < settings.threshold and not has_authority:
            owners = f" of {persons} persons" if persons < len(lines) else ""
            keys = f"{settings.signers} holds {len(lines)} keys{owners}"
            text = f"{keys}, and a release of {name} needs {settings.threshold}: none will load"
            yield text, ("lists", name, "signers")


def check_layouts(config: Config, document: Document) -> Findings:
    """Find faults in the section `layouts` (layouts of data files) that involve several keys, such as two equal columns."""
    for name, layout in config.layouts.items():
        spot = ("layouts", name)
        if document.faulty(*spot):
            continue
        if name in LAYOUTS:
            yield f"the layout {name} is built in; expected another name", spot
        if not layout.subjects:
            subjects = " or ".join("+".join(roles) for allowed in SUBJECTS.values() for roles in allowed)
            yield f"the layout {name} has no column that identifies a row; expected columns with {subjects}", spot
        columns = layout.columns.values()
        if len({type(column) for column in columns}) > 1:
            yield f"columns of {name} by name and by position; expected one or the other", (*spot, "columns")
        if len(set(columns)) < len(columns):
            yield f"two columns of {name} are the same", (*spot, "columns")
        needs = (ACTION in layout.columns, bool(layout.added), bool(layout.removed))
        if any(needs) and not all(needs):
            yield f"columns.action, added and removed of {name} need each other; expected all three or none", spot
        codes = ", ".join(sorted(layout.added & layout.removed))
        if codes:
            yield f"{codes} is in both added and removed of {name}", (*spot, "removed")


def _check_rules(config: Config, document: Document) -> Findings:
    names = Counter(rule.name for rule in config.policy.rules)
    has_types = any(each.kind == TYPES for each in config.lists.values())
    for at, rule in enumerate(config.policy.rules):
        spot = ("policy", "rules", at)
        has_condition = any(getattr(rule, condition) for condition in CONDITIONS)
        if not has_condition and not document.faulty(*spot):
            expected = f"expected one of {', '.join(CONDITIONS)}, or policy.default"
            yield f"a rule without a condition answers every device; {expected}", spot
        if rule.name and names[rule.name] > 1:
            yield f"two rules have the name '{rule.name}'", (*spot, "name")
        if rule.device_type and not has_types:
            yield "no list of kind device_types is configured", (*spot, "device_type")
        for condition, needs in CONDITIONS.items():
            name = getattr(rule, condition) if needs.names_list else None
            if name is None:
                continue
            fault = _fault_of_list(config, name, pairs_only=needs.pairs_only)
            if fault is not None:
                yield fault, (*spot, condition)


def _fault_of_list(config: Config, name: str, *, pairs_only: bool) -> str | None:
    """Return the fault of a list that a rule names; None if the rule can use the list."""
    if name not in config.lists:
        advice = did_you_mean(name, config.lists) or f"; lists are: {', '.join(config.lists) or 'none'}"
        return f"the rule's list '{name}' is not under 'lists'{advice}"
    kind = config.lists[name].kind
    if kind == TYPES:
        return f"'{name}' is a list of {TYPES}, which the condition device_type asks"
    if pairs_only and kind != PAIRS:
        return f"'{name}' is a list of {kind}; expected a list of pairs"
    return None


def _check_first_seen(config: Config, document: Document) -> Findings:
    record = config.first_seen
    if record is None:
        for at, rule in enumerate(config.policy.rules):
            if rule.has_first_seen and not document.faulty("first_seen"):
                text = "a rule asks for the first sighting, and nothing records it; expected the section 'first_seen'"
                yield text, ("policy", "rules", at)
        return
    for rule in config.policy.rules:
        days = rule.first_seen_within or 0
        if days > record.remember:
            text = f"a device that was not seen for {record.remember} days would begin a second period"
            yield f"{text}; expected at least {days}d, the longest first_seen_within", ("first_seen", "remember")
    if record.list in config.lists:
        text = f"the record of first sightings cannot be the list '{record.list}', which releases change"
        yield f"{text}; expected another name", ("first_seen", "list")


def _check_last_device(config: Config, document: Document) -> Findings:
    record, spot = config.last_device, ("last_device",)
    if record is None or document.faulty(*spot) or document.faulty("sightings"):
        return
    if config.sightings is None or config.sightings.subscribers == OFF:
        yield (
            "the last devices come from the record of checks; expected 'sightings' with subscribers: hashed or full",
            spot,
        )
    fault = record.key_file and _unusable(record.key_file)
    if fault:
        advice = "write one secret there on all nodes, such as the output of `openssl rand -hex 32`"
        yield f"the key of the SIMs {fault}: {record.key_file}; {advice}", (*spot, "key_file")
    if record.list in config.lists_and_record:
        text = f"the list of last devices cannot be '{record.list}', which is another list; expected another name"
        yield text, (*spot, "list")


def _warn_first_seen(config: Config, _: Document) -> Findings:
    if config.first_seen is not None and not any(rule.has_first_seen for rule in config.policy.rules):
        yield "no rule has first_seen_within or first_seen_before: no sighting is recorded", ("first_seen",)


def _warn_registering(config: Config, _: Document) -> Findings:
    """Warn of lists that register no device, and of rules whose period of grace has no end for registered devices."""
    rules = config.policy.rules
    if not any(rule.has_first_seen for rule in rules):
        return
    registering = set(config.registering)
    decided = set[str]()
    """Lists of which no device reaches the following rules."""
    for at, rule in enumerate(rules):
        spot = ("policy", "rules", at)
        name = rule.registered
        if (
            name
            and not rule.registers
            and not rule.observe
            and config.lists[name].kind == DEVICES
            and name not in registering
        ):
            text = f"the list '{name}' registers no device for a period of grace, because this rule has a further condition"
            yield f"{text}; expected a rule whose only condition is the list, if its devices are registered", spot
        if rule.list and [*rule.conditions] == ["list"] and not rule.observe:
            decided.add(rule.list)
        if rule.has_first_seen:
            for other in sorted(registering - decided - {rule.not_list}):
                text = f"the period of grace of this rule has no end for devices in '{other}', which are registered"
                yield f"{text}; expected the rule with the condition list: {other} before this rule", spot


def _check_sightings(config: Config, document: Document) -> Findings:
    sightings, spot = config.sightings, ("sightings",)
    if sightings is None or document.faulty(*spot):
        return
    if sightings.webhook is not None:
        file = sightings.webhook.key_file
        fault = _unusable(file)
        if fault:
            advice = "write a secret there that the receiver also has, such as the output of `openssl rand -hex 32`"
            text = f"the key of the webhook's signatures {fault}: {file}; {advice}"
            yield text, (*spot, "webhook", "key_file")
    used = {name for rule in config.policy.rules for name in rule.lists}
    for name in sightings.watch:
        if name not in used:
            advice = did_you_mean(name, used) or "; a rule with observe: true is enough"
            yield f"no rule uses the list '{name}', so its devices cause no event{advice}", (*spot, "watch")


def _warn_unused_lists(config: Config, _: Document) -> Findings:
    uses_types = config.sightings is not None or any(rule.device_type for rule in config.policy.rules)
    used = {name for rule in config.policy.rules for name in rule.lists}
    for name, settings in config.lists.items():
        is_used = name in used or (uses_types and settings.kind == TYPES)
        if not is_used:
            yield f"no rule uses the list '{name}': it has no effect", ("lists", name)


def _warn_peers(config: Config, document: Document) -> Findings:
    if not config.peers:
        yield "no peer is configured under 'peers': every connection will be refused", ("peers",)
    for at, peer in enumerate(config.peers):
        first = next((before for before, other in enumerate(config.peers[:at]) if _covers(other, peer)), None)
        if first is not None:
            line = document.line("peers", first)
            yield f"this entry never applies: the entry in line {line} matches first", ("peers", at)
        if peer.connect is not None and APPLICATIONS in peer.lenient:
            text = "a peer without S13 refuses the node's connection, and may then not connect itself"
            yield f"{text}; leave out 'connect'", ("peers", at, "connect")


def _covers(first: PeerSettings, second: PeerSettings) -> bool:
    """Return True if each connection that matches the second peer entry also matches the first one."""
    if first.is_titled != second.is_titled:
        return False
    if first.gt is not None and not (second.gt or "").startswith(first.gt):
        return False
    if first.point_code not in {None, second.point_code}:
        return False
    for wanted, name in ((first.host, second.host), (first.realm, second.realm)):
        if wanted is not None and (name or "").lower() != wanted.lower():
            return False
    if not first.sources:
        return True
    return bool(second.sources) and all(_is_within(network, first.sources) for network in second.sources)


def _is_within(network: Network, networks: Iterable[Network]) -> bool:
    return any(network[0] in each and network[-1] in each for each in networks)


def _warn_open_doors(config: Config, _: Document) -> Findings:
    """Warn about peer entries without `from` if a listener has no TLS, because the names in a CER are then unverified."""
    urls = [each.url for each in config.listeners]
    if all(is_secure(url) or LOCAL.match(url) for url in urls):
        return
    for at, peer in enumerate(config.peers):
        if not peer.sources and not peer.is_titled:
            claim = f"any client of the listener can claim to be peer '{peer.label}'"
            yield f"{claim}; restrict its addresses by 'from'", ("peers", at)


def _warn_override(config: Config, _: Document) -> Findings:
    override, spot = config.policy.override, ("policy", "override")
    if override is None:
        return
    if override.until is None:
        yield f"the override answers {override.answer} to every check, and has no 'until'", spot
    elif override.until <= datetime.now(UTC):
        yield "the override has ended; remove it", (*spot, "until")


def _warn_not_served(config: Config, document: Document) -> Findings:
    """Warn about each interface whose section lacks its first key, without which the node does not serve the interface."""
    for each in INTERFACES:
        first_key = each.keys[0].path.rpartition(".")[2]
        if each.section and (each.section,) in document.lines and not getattr(config.of(each), first_key):
            yield f"the section '{each.section}' has no effect without the key '{first_key}'", (each.section,)


def _of_interfaces(name: str) -> Check:
    """Return a check of the configuration that calls the function `name` of each protocol interface."""

    def check(config: Config, document: Document) -> Findings:
        for each in INTERFACES:
            check_interface = getattr(each, name)
            yield from check_interface(config.of(each), config, document)

    return check


CHECKS: tuple[Check, ...] = (
    _check_peers, _of_interfaces("check"), _check_listen, _check_tls, _check_tokens, _check_service_listeners, _check_numbers, _check_store, _check_lists,
    _check_reasons, _check_sources, check_layouts, _check_rules, _check_first_seen, _check_last_device, _check_sightings,
)  # fmt: skip
"""Checks whose findings are faults."""
WARNINGS: tuple[Check, ...] = (
    _warn_peers, _warn_open_doors, _warn_tls, _warn_secrets, _warn_sctp, _warn_unused_lists, _warn_signers, _warn_override,
    _warn_first_seen, _warn_registering, _warn_not_served, _of_interfaces("warn"),
)  # fmt: skip
"""Checks whose findings are warnings about probable mistakes."""

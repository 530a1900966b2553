"""The reference: each key of the configuration, its unit, its default, what it is for, and whether a reload takes it over.

A new key is one row here, or in its interface's folder, a field of that name in what its section builds, and a line in config/eir.yaml;
config/REFERENCE.md is then made by `eir config --reference` (tests compare them). A new section is its keys, and a row in SECTIONS.
"""

from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from eir import schema
from eir.checks.question import SUSPECT
from eir.checks.settings import Override, PolicySettings, Rule, Status
from eir.config import kinds
from eir.config.reader import tree
from eir.interfaces import INTERFACES
from eir.lists.record.settings import (
    DEVICES,
    KINDS,
    LOAD_MEMORY,
    HistorySettings,
    Layout,
    ListSettings,
    Record,
    Source,
)
from eir.lists.record.store import KEEP
from eir.lists.rows.layout import SUBJECTS
from eir.lists.stores.open import SQLITE
from eir.schema import REQUIRED, Key, Section
from eir.sightings.conditions import Place, TamperSettings
from eir.sightings.settings import FULL, HASHED, OFF, SightingsSettings, Webhook
from eir.wire.peers.settings import LENIENCES, Identity, Limits, PeerSettings
from eir.wire.transport.settings import SctpSettings, TlsSettings
from eir.wire.transport.tls import VERSIONS
from eir.wire.web.access import LOOPBACK, PageSettings

WATCHDOG_MIN_S = 6
"""RFC 3539 3.4.1: Tw must not be below 6 seconds."""
LIMITS, SCTP, HISTORY, SIGHTINGS, TAMPER, SOURCE = (
    Limits(),
    SctpSettings(),
    HistorySettings(),
    SightingsSettings(),
    TamperSettings(),
    Source(url=""),
)


def _peer(*, name: str | None, lenient: tuple[str, ...], sources: tuple[Any, ...], **names: Any) -> PeerSettings:
    """A peer is called by its name, else by the first thing that it is recognised by."""
    label = name or names["host"] or names["realm"] or next(iter(sources), "")
    return PeerSettings(label=str(label), lenient=frozenset(lenient), sources=sources, **names)


def _given(**values: Any) -> tuple[tuple[str, Any], ...]:
    """Return the values that a section gives, by key."""
    return tuple((name, value) for name, value in values.items() if value is not None)


def _limits(*, load_memory: int, **of_peers: Any) -> dict[str, Any]:
    """Return the limits of what a peer may take of the node, and of what a load may take of the host."""
    return {"limits": Limits(**of_peers), "load_memory": load_memory}


def _origin(*, name: str, place: tuple[float, float] | None) -> Place:  # noqa: ARG001 - the section's key
    return Place(*(place or (0.0, 0.0)))  # without one the fault is told already


def _layout(
    *, columns: tuple[tuple[str, str | int], ...], added: tuple[str, ...], removed: tuple[str, ...], reasons: tuple[tuple[str, str], ...],
    **more: Any,
) -> Layout:  # fmt: skip
    """A layout is for the kinds of list that its columns identify something for."""
    there = dict(columns)
    subjects = {
        kind: tuple(each for each in allowed if there.keys() >= set(each)) for kind, allowed in SUBJECTS.items()
    }
    return Layout(
        columns=there, subjects={kind: found for kind, found in subjects.items() if found}, declared=True, reasons=dict(reasons),
        names=any(isinstance(column, str) for column in there.values()), added=frozenset(added), removed=frozenset(removed), **more,
    )  # fmt: skip


COLUMNS = {
    "imei": "the column with an IMEI, IMEISV or MEID",
    "identifier": "the column with whatever a phone calls itself: an IMEI, or 1 to 20 octets that are not one",
    "tac": "the column with a TAC",
    "device_type": "the column with the type of device that a TAC is for",
    "imei_from": "the column with the first IMEI of a range",
    "imei_to": "the column with its last one; a row without it is about one device",
    "imsi": "the column with an IMSI: with `imei` in a list of pairs, alone in a list of subscribers",
    "reason": "the column with the reason, or a code for it",
    "until": "the column with a row's end",
    "date": "the column with a row's date, on which nothing depends; in a list of device types the day on which the TAC was allocated",
    "action": "the column with the codes that `added` and `removed` name",
}
"""Roles that a column of a data file may have."""

SECTIONS = (
    Section("identity", partial(Identity, origin_state_id=0)),
    Section("peers[]", _peer),
    Section("peers[].answers", _given),
    Section("limits", _limits),
    Section("tls", TlsSettings, optional=True),
    *(section for each in INTERFACES for section in each.sections),
    Section("sctp", SctpSettings),
    Section("lists.*", ListSettings),
    Section("lists.*.source", Source, optional=True, short="url"),
    Section("history", HistorySettings),
    Section("layouts.*", _layout),
    Section("layouts.*.columns", _given),
    Section("layouts.*.header", Record, optional=True),
    Section("layouts.*.trailer", Record, optional=True),
    Section(
        "tamper",
        TamperSettings,
        gone={
            "tac_db": "TACs come in a signed list now: under 'lists', tacs: {kind: device_types, signers: FILE}, to which `eir publish --list tacs` and `eir load` bring the file",
        },
    ),
    Section("tamper.origins.*", _origin),
    Section("page", PageSettings),
    Section("policy", PolicySettings),
    Section("policy.rules[]", Rule),
    Section("policy.override", Override, optional=True),
    Section("sightings", SightingsSettings, optional=True, live=False),
    Section("sightings.webhook", Webhook, optional=True),
)
"""Sections and what is built from each; the values of any other go to the section around it."""

TABLE = (
    Key("identity.host", schema.IDENTITY, REQUIRED, "Origin-Host: the node's own name"),
    Key("identity.realm", schema.IDENTITY, REQUIRED, "Origin-Realm: the realm that it belongs to and serves"),
    Key("identity.aliases", schema.many(schema.IDENTITY, may_be_empty=True), (), "further host names that are this node when a Destination-Host holds them"),
    Key("identity.realms", schema.many(schema.IDENTITY, may_be_empty=True), (), "further realms that it serves"),
    *(key for each in INTERFACES if not each.section for key in each.keys),
    Key("peers[].name", schema.PEER_NAME, None, "what metrics, logs and commands call the peer; else its host, its realm, or its first network"),
    Key("peers[].host", schema.IDENTITY, None, "the Origin-Host that it must show; any if left out"),
    Key("peers[].realm", schema.IDENTITY, None, "the Origin-Realm that it must show; any if left out"),
    Key("peers[].from", schema.many(schema.NETWORK), (), "networks that it may connect from; any address if left out", field="sources"),
    Key("peers[].gt", kinds.GLOBAL_TITLE, None, "first digits of the global title that an MSC or SGSN calls from (MAP); the entry is for MAP alone then"),
    Key("peers[].point_code", schema.POINT_CODE, None, "point code of an MSC or SGSN (MAP), likewise"),
    Key("peers[].connect", kinds.CONNECT, None, "where we connect to the peer; it connects to us if left out"),
    Key("peers[].tls_names", schema.many(kinds.CERTIFICATE_NAME), (), "names, one of which its certificate must carry (over TLS); if left out its Origin-Host, and its Origin-Realm too where the host does not end in that"),
    Key("peers[].reconnect_after_s", schema.seconds(1, 3600), 30, "pause before we connect to it again (Tc of RFC 6733)"),
    Key("peers[].connections", schema.whole(1, 64), 1, "connections that one Origin-Host may hold at once"),
    Key("peers[].watchdog_s", schema.seconds(WATCHDOG_MIN_S, 3600), 30, "silence after which a DWR goes out (Tw of RFC 3539)"),
    Key("peers[].rate_max", schema.number(0.1, 1e6, "requests a second"), None, "requests of the peer that are answered; those above get `overload_answer`; no limit if left out"),
    Key("peers[].lenient", schema.many(schema.word(*sorted(LENIENCES)), may_be_empty=True), (), "what the peer is forgiven: a CER without a common application, unknown AVPs with the M bit, another node's name as Destination-Host"),
    Key("peers[].as.host", schema.IDENTITY, None, "Origin-Host that we show to this peer; identity.host if left out", field="as_host"),
    Key("peers[].as.realm", schema.IDENTITY, None, "Origin-Realm that we show to this peer; identity.realm if left out", field="as_realm"),
    Key("peers[].expected", schema.FLAG, True, "alert while this peer is away; false for a probe, whose checks then count as a probe's"),
    Key("peers[].probe", schema.FLAG, False, "it is a probe or an auditor: its checks are answered, but are no sightings, and leave `eir tamper` and `EirBlockingJumped` alone"),
    Key("peers[].early", schema.FLAG, False, "it asks before it has authenticated the SIM (OsmoMSC's `check-imei-rqd early`): rules with `authenticated` are left out"),
    *(Key(f"peers[].answers.{status}", kinds.STATUS, None, f"what the peer gets instead of {status}; metrics and log keep what the policy said") for status in Status if status != Status.WHITELISTED),
    Key("limits.max_message_bytes", schema.byte_size(4096, 1 << 23), LIMITS.max_message_bytes, "longest message; a longer one closes the connection before it is read"),
    Key("limits.max_avps", schema.whole(32, 65536), LIMITS.max_avps, "AVPs in one message, those inside groups counted too"),
    Key("limits.max_depth", schema.whole(2, 64), LIMITS.max_depth, "groups inside groups"),
    Key("limits.cer_timeout_s", schema.seconds(0.1, 3600), LIMITS.cer_timeout_s, "time from the accept to a complete CER"),
    Key("limits.partial_message_timeout_s", schema.seconds(0.1, 3600), LIMITS.partial_message_timeout_s, "time from the first byte of a message to its last"),
    Key("limits.turn_messages", schema.whole(1, 65536), LIMITS.turn_messages, "messages handled on one connection before others get their turn; one that is not a usual check counts for more"),
    Key("limits.write_buffer_bytes", schema.byte_size(4096, 1 << 28), LIMITS.write_buffer_bytes, "unsent answers above which nothing more is read from the peer"),
    Key("limits.stalled_write_s", schema.seconds(0.1, 3600), LIMITS.stalled_write_s, "time that a peer may leave answers unread before it is dropped"),
    Key("limits.close_after_dpa_s", schema.seconds(0.1, 60), LIMITS.close_after_dpa_s, "time from our DPA to our closing of the connection"),
    Key("limits.duplicate_probe_s", schema.seconds(0.1, 60), LIMITS.duplicate_probe_s, "time that a peer's oldest connection has for its DWA when the peer opens one too many"),
    Key("limits.connections_max", schema.whole(1, 65536), LIMITS.connections_max, "connections at once"),
    Key("limits.unidentified_max", schema.whole(1, 65536), LIMITS.unidentified_max, "connections at once that have not sent a CER yet, besides those of peers that `peers` names by host or address; above, and a second after it came, the oldest of the address with most of them goes"),
    Key("limits.source_connections_max", schema.whole(1, 65536), LIMITS.source_connections_max, "connections at once from one network of addresses (IPv4 /24, IPv6 /64)"),
    Key("limits.source_unidentified_max", schema.whole(1, 65536), LIMITS.source_unidentified_max, "of those, the ones that have not sent a CER yet; the same holds for them"),
    Key("limits.rate_max", schema.number(0.1, 1e6, "requests a second"), None, "requests of all peers together that are answered; those above get `overload_answer`; no limit if left out"),
    Key("limits.load_memory", schema.byte_size(128 << 20, 1 << 44), LOAD_MEMORY, "memory that a load may take, in the drop folder or by hand: at least 12 bytes for each row; a release that takes more is refused, and no check notices"),
    Key("overload_answer", kinds.STATUS_OR_TOO_BUSY, kinds.TOO_BUSY, "what a request above a rate_max gets, at once: 3004 (too busy), or a status without a look at any list"),
    Key("tls.certificate", schema.FILE, REQUIRED, "the node's certificate in PEM, followed by those of authorities between it and one that peers know"),
    Key("tls.key", schema.FILE, REQUIRED, "its private key in PEM, without a passphrase"),
    Key("tls.ca", schema.FILE, REQUIRED, "certificates in PEM of the authorities that issue peers' certificates"),
    Key("tls.crl", schema.FILE, None, "revocation lists of those authorities, in PEM; nothing is looked up if left out"),
    Key("tls.min_version", schema.word(*VERSIONS), "1.2", "lowest version of TLS"),
    *(key for each in INTERFACES if each.section and each.server for key in each.keys),
    Key("sctp.local_addresses", schema.many(kinds.ADDRESS), (), "addresses that the node connects from over SCTP; all that the host has if left out"),
    Key("sctp.rto_initial_s", schema.seconds(0.05, 60), SCTP.rto_initial_s, "retransmission timeout before a round trip was measured"),
    Key("sctp.rto_min_s", schema.seconds(0.05, 60), SCTP.rto_min_s, "the least retransmission timeout; not below the time that peers take for a SACK, usually 200 ms"),
    Key("sctp.rto_max_s", schema.seconds(0.05, 60), SCTP.rto_max_s, "the greatest; it doubles with each timeout"),
    Key("sctp.heartbeat_s", schema.seconds(0.5, 3600), SCTP.heartbeat_s, "between two heartbeats on a path that carries nothing"),
    Key("sctp.path_retransmissions", schema.whole(1, 20), SCTP.path_retransmissions, "timeouts in a row after which a path counts as lost (Path.Max.Retrans); another one is taken after the first timeout"),
    Key("sctp.association_retransmissions", schema.whole(1, 60), SCTP.association_retransmissions, "timeouts in a row, over all paths, after which the connection is lost (Association.Max.Retrans)"),
    Key("sctp.optional", schema.FLAG, SCTP.optional, "start without listeners for SCTP if the kernel has no SCTP; otherwise that is an error"),
    Key("state", schema.FOLDER, Path("var"), "folder of the SQLite file, the last good copies and the control socket", live=False),
    Key("control_read", schema.FILE, None, "a second control socket, for who may only look (`$EIR_CONTROL`), of its folder's group; none if left out", live=False),
    Key("store", kinds.STORE, SQLITE, "where lists are kept", live=False),
    Key("heal", schema.FLAG, True, "if the store lost a list that this node has a newer copy of, write the copy back to it", live=False),
    Key("boot_without_lists", schema.word("serve", "refuse"), "serve", "start without any copy of a list: serve answers by the rest of the policy (/ready says 503), refuse opens no listener", live=False),
    Key("lists.*.kind", schema.word(*KINDS), DEVICES, "what the list holds: devices (identifiers, TACs, ranges), pairs (a device with its SIM, by IMSI), subscribers (IMSIs), or device_types (TACs with their type)"),
    Key("lists.*.signers", schema.FILE, None, "OpenSSH allowed_signers file of those whose releases are accepted for this list; required unless the list is local"),
    Key("lists.*.local", schema.FLAG, False, "instead of signers: changed by eir add and eir remove, and by no release"),
    Key("lists.*.revoked", schema.FILE, None, "revoked keys, as ssh-keygen -Y verify -r takes them; nothing is revoked if left out"),
    Key("lists.*.threshold", schema.whole(1, 16), 1, "how many different keys, of different signers, must sign a release"),
    Key("lists.*.shrink_max", schema.percentage(100), 0.20, "share of the devices in force that one change may take away without --force (a TAC counts as a million)"),
    Key("lists.*.growth_max", schema.percentage(100_000), 0.20, "share of the devices in force that one change may add without --force"),
    Key("lists.*.change_min", schema.whole(0, 10**9), 1000, "devices: a change that takes away fewer, or adds fewer, is within shrink_max or growth_max, whatever part of the list they are"),
    Key("lists.*.serial_step_max", schema.whole(1, 10**15), 1_000_000, "how far a release's serial may be above the highest that was ever accepted; a list's first release may have any up to 10^16"),
    Key("lists.*.range_tacs_max", schema.whole(1, 10**8), 1000, "TACs that one range may span"),
    Key("lists.*.bad_rows_max", schema.whole(0, 10**9), 100, "rows without a valid identifier that a release may have; with one more it is refused"),
    Key("lists.*.keep", schema.whole(1, 100), KEEP, "releases before the one in force, or changes of a local list, that `eir rollback` can go back"),
    Key("lists.*.source.url", kinds.SOURCE, REQUIRED, "folder of the publisher from which releases are pulled: what `eir publish --to` keeps; `source: URL` alone does where nothing else is to be said; http for this host's own addresses only"),
    Key("lists.*.source.ca", schema.FILE, None, "certificates in PEM of the authorities that its certificate may come from; those that the host trusts if left out"),
    Key("lists.*.source.certificate", schema.FILE, None, "the certificate that we show it, in PEM; none if left out"),
    Key("lists.*.source.key", schema.FILE, None, "the private key of that, without a passphrase"),
    Key("lists.*.source.token", schema.FILE, None, "holds a token that it is sent (Authorization: Bearer)"),
    Key("lists.*.source.every", schema.seconds(1, 86400), SOURCE.every_s, "time between two looks at its index; after a look that failed it is asked again sooner", field="every_s"),
    Key("lists.*.source.acknowledge", schema.FLAG, False, "post to it, signed with a key of the node's own, which serial and content of the list are in force since when, and the reason of a rejection (`eir acknowledge --key` says the public key)"),
    Key("lists.*.source.patience", schema.seconds(1, 30 * 86400), SOURCE.patience_s, "how long the source may not be reached (`EirSourceUnreached`), or offer a serial above the one in force (`EirListBehind`), until that is an alert", field="patience_s"),
    Key("history.keep", schema.days(1, 36500), HISTORY.keep, "how long the record of what was done is kept; a running node forgets what is older"),
    Key("history.max_bytes", schema.byte_size(1 << 20, 1 << 40), HISTORY.max_bytes, "size that this record may reach before `keep`; above 80 % of it `EirHistoryNearlyFull` fires, and nothing is deleted"),
    Key("history.feed_max_bytes", schema.byte_size(1 << 20, 1 << 40), HISTORY.feed_max_bytes, "maximum size of the separate record of rows that registers feed (`feed`); above it the oldest are deleted"),
    Key("layouts.*.encoding", kinds.ENCODING, "utf-8", "how an agency's own data files are written"),
    Key("layouts.*.separator", kinds.SEPARATOR, ",", "what stands between the fields of a row; fields may stand in double quotes"),
    *(Key(f"layouts.*.columns.{name}", kinds.COLUMN, None, says) for name, says in COLUMNS.items()),
    Key("layouts.*.dates", kinds.DATES, None, "how dates are written; if left out: 20261231, 2026-12-31 or 2026-12-31T12:00:00Z"),
    Key("layouts.*.added", schema.many(kinds.CODE), (), "codes in the column `action` of rows that are in the list, or come into it"),
    Key("layouts.*.removed", schema.many(kinds.CODE), (), "codes of rows that are not in it, or leave it"),
    Key("layouts.*.reasons", schema.many(kinds.CODE_AND_REASON), (), "the reasons that codes stand for; other texts stay as they are"),
    Key("layouts.*.header.begins", kinds.CODE, REQUIRED, "text that the header record begins with"),
    Key("layouts.*.header.count", kinds.POSITION, None, "which of its fields says how many rows there are; a release with more or fewer is refused"),
    Key("layouts.*.header.date", kinds.POSITION, None, "which of its fields has to be a date"),
    Key("layouts.*.skip", schema.whole(0, 100), 0, "lines behind that record, or at the file's begin, that mean nothing (a line with names, where columns have positions)"),
    Key("layouts.*.trailer.begins", kinds.CODE, REQUIRED, "what the record behind all other lines begins with"),
    Key("layouts.*.trailer.count", kinds.POSITION, None, "as in the header record"),
    Key("layouts.*.trailer.date", kinds.POSITION, None, "as in the header record"),
    *(key for each in INTERFACES if each.service for key in each.keys),
    Key("numbers", schema.FILE, None, "table of MSISDN,IMSI, a line each, by which a row or a command may name a subscriber by the number; read again whenever the file changes"),
    Key("inbox", schema.FOLDER, None, "drop folder: signed releases that arrive in it are loaded, and moved to its accepted/ or refused/; no folder is watched if left out", live=False),
    Key("inbox_patience_s", schema.seconds(1, 30 * 86400), 3600, "how long a release in the drop folder may stay incomplete, and a file that no release names", live=False),
    Key("policy.rules[].name", kinds.RULE_NAME, None, "what metrics and logs call the rule; its number if left out"),
    Key("policy.rules[].answer", kinds.STATUS, REQUIRED, "status that the rule gives if all its conditions hold"),
    Key("policy.rules[].observe", schema.FLAG, False, "count and log what the rule would have answered, and go on with the next"),
    Key("policy.rules[].authenticated", schema.FLAG, None, "leave the rule out where anybody may have named the SIM: for a peer that is `early`; beside a condition"),
    Key("policy.rules[].list", schema.LIST_NAME, None, "condition: in this list is the device, the device with this SIM (pairs), or the SIM (subscribers); waits for the list's first load"),
    Key("policy.rules[].not_list", schema.LIST_NAME, None, "condition: not in this list; waits for the list's first load"),
    Key("policy.rules[].device_bound_elsewhere", schema.LIST_NAME, None, "condition: this list of pairs has the device, but not with this SIM"),
    Key("policy.rules[].subscriber_bound_elsewhere", schema.LIST_NAME, None, "condition: this list of pairs has the SIM, but not with this device"),
    Key("policy.rules[].imei", schema.many(kinds.IMEI), (), "condition: these devices, by number (for an emergency, as it needs no list and no store)"),
    Key("policy.rules[].tac", schema.many(kinds.TAC), (), "condition: the device's Type Allocation Code"),
    Key("policy.rules[].device_type", schema.many(kinds.DEVICE_TYPE), (), "condition: what a list of kind device_types says of the device's TAC, such as Smartphone or Module"),
    Key("policy.rules[].software_version", schema.many(kinds.SOFTWARE_VERSION), (), "condition: the device's Software-Version"),
    Key("policy.rules[].imsi", schema.many(kinds.IMSI_PREFIX), (), "condition: how the subscriber's IMSI begins (roamers, by MCC and MNC)"),
    Key("policy.rules[].identifier", schema.many(schema.word(*SUSPECT)), (), "condition: what is wrong with the identifier as it was sent"),
    Key("policy.rules[].origin_host", schema.many(schema.IDENTITY), (), "condition: the Origin-Host that asks"),
    Key("policy.rules[].origin_realm", schema.many(schema.IDENTITY), (), "condition: the Origin-Realm that asks"),
    Key("policy.default", kinds.STATUS, Status.WHITELISTED, "status if no rule holds"),
    Key("policy.no_identity", kinds.STATUS_OR_ERROR, Status.WHITELISTED, "for a request without IMEI and MEID; error is 5005"),
    Key("policy.bad_identity", kinds.STATUS_OR_ERROR, Status.WHITELISTED, "for a request whose IMEI or MEID is not valid; error is 5004"),
    Key("policy.no_imei", kinds.STATUS, Status.WHITELISTED, "for a device that N5g-eir names by a MAC address or an EUI-64 instead of an IMEI"),
    Key("policy.override.answer", kinds.STATUS, REQUIRED, "the one status that everything gets while the section is there"),
    Key("policy.override.until", kinds.MOMENT, None, "when the override ends by itself"),
    Key("sightings.keep", schema.seconds(3600, 3650 * 86400), SIGHTINGS.keep_s, "how long a check stays on record; nothing is kept without the section", field="keep_s"),
    Key("sightings.max_bytes", schema.byte_size(1 << 20, 1 << 50), SIGHTINGS.max_bytes, "size of the record above which the oldest of it goes, of a peer that has more than half of it first"),
    Key("sightings.subscribers", schema.word(HASHED, FULL, OFF), SIGHTINGS.subscribers, "what is kept of a SIM: a keyed hash, the IMSI, or nothing but its first 6 digits"),
    Key("sightings.rotate", schema.seconds(86400, 3650 * 86400), SIGHTINGS.rotate_s, "age at which the key of the hashes gives way to a new one; a SIM has another hash from then on", field="rotate_s"),
    Key("sightings.window_s", schema.seconds(0.1, 3600), SIGHTINGS.window_s, "checks that are alike become one row within this time, and a file is written at its end"),
    Key("sightings.rate_max", schema.number(1, 1e7, "checks a second"), SIGHTINGS.rate_max, "most checks recorded a second, by all workers together; above it, `whitelisted` checks are left out first"),
    Key("sightings.events_max", schema.number(0.1, 1e5, "events a second"), SIGHTINGS.events_max, "events that go out; more are dropped and counted"),
    Key("sightings.watch", schema.many(schema.LIST_NAME), (), "lists that a rule looks into, of which a change of SIM (for a list of subscribers: of device) is an event of its own"),
    Key("sightings.webhook.url", kinds.HTTP_URL, REQUIRED, "where events are posted to: checks that were not simply whitelisted, and changes"),
    Key("sightings.webhook.key_file", schema.FILE, REQUIRED, "holds the key of their signatures (HMAC-SHA256)"),
    Key("sightings.stream", kinds.STREAM, None, "key of a stream in the Redis of `store` that events go to as well"),
    Key("tamper.report_min", schema.percentage(100), TAMPER.report_min, "score from which a device is reported"),
    Key("tamper.export_min", schema.percentage(100), TAMPER.export_min, "score from which a device is exported"),
    Key("tamper.memory", schema.byte_size(256 << 20, 1 << 44), TAMPER.memory, "memory that `eir tamper` may take; more is done on the disk, in the folder for temporary files"),
    Key("tamper.origins.*.place", kinds.PLACE, REQUIRED, "where the Origin-Host that the entry is called by serves; two origins within 30 km are one place, and farther ones two"),
    Key("http", kinds.HTTP, "127.0.0.1:9868", "where the page for people (/), /metrics, /live and /ready are", live=False),
    Key("page.from", schema.many(schema.NETWORK, may_be_empty=True), LOOPBACK, "networks from which the page for people, at / of the `http` address, is shown without a password, if it is asked for by an address and not by a name", field="sources"),
    Key("page.password_file", schema.FILE, None, "holds the password with which it is shown to all others; to nobody else if left out"),
    Key("workers", kinds.WORKERS, 1, "processes that answer; `auto`: one for each processor", live=False),
    Key("log.level", schema.word("debug", "info", "warning", "error"), "info", "lowest level of lines that are written", field="log_level"),
    Key("privacy.identifiers", schema.one_of({"short": False, "full": True}), False, "IMEI and IMSI in logs: their first and last digits, or whole", field="full_identifiers"),
)  # fmt: skip

ROOT = tree(SECTIONS, TABLE)
"""The table as the reader walks it."""


INTRODUCTION = """\
# Every key of the configuration

`eir config --reference` prints this page, and with `--json` the same as data; `eir config` prints the values in force. `[]` stands for each
entry of a list, `*` for a name of your own. A reload does not take over a key that is marked "restart".
[README.md](README.md) names the pages that have worked examples.
"""


def reference() -> list[dict[str, Any]]:
    """One row for each key, in the order of the sample: key, what its value may be, default, what it is for, restart."""
    whole = {section.path for section in SECTIONS if not section.live}
    return [
        {
            "key": key.path, "value": key.kind.expected, "required": key.required, "default": _default(key), "says": key.says,
            "restart": not key.live or key.path.partition(".")[0] in whole,
        }
        for key in TABLE
    ]  # fmt: skip


def reference_page() -> str:
    """The reference in Markdown, one table for each section of the file."""
    parts = [INTRODUCTION]
    for name, rows in groupby(reference(), lambda row: row["key"].partition(".")[0].removesuffix("[]")):
        parts += [f"## {name}\n", "| Key | Value | Default | What it is for |\n|---|---|---|---|"]
        parts += [
            f"| `{row['key']}` | {row['value']} | {_shown(row)} | {row['says']}{' (restart)' if row['restart'] else ''} |"
            for row in rows
        ]
        parts.append("")
    return "\n".join(parts)


def _default(key: Key) -> Any:
    """Return the default as the file would write it; None if it does not exist or the key is required."""
    if key.default is REQUIRED or key.default is None or key.default == ():
        return None
    return list(map(key.kind.show, key.default)) if key.kind.many else key.kind.show(key.default)


def _shown(row: dict[str, Any]) -> str:
    if row["required"]:
        return "required"
    value = row["default"]
    if value is None:
        return "none"
    words = [
        str(each).lower() if isinstance(each, bool) else str(each)
        for each in (value if isinstance(value, list) else [value])
    ]
    return f"`{', '.join(words)}`"

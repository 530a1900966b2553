"""Table of the configuration keys: unit, default and meaning of each key, and whether a reload applies it.

To add a key, add one row here (or in the folder of its interface), a field of that name in the class that its section
builds, and a line in tests/config/every_key.yaml. Then make config/REFERENCE.md with `eir config --reference` (tests compare them).
To add a section, add its keys and a row in SECTIONS.
"""

from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from eir import schema
from eir.checks.settings import Override, PolicySettings, Rule, Status
from eir.config import kinds
from eir.config.reader import tree
from eir.interfaces import INTERFACES
from eir.lists.record.settings import (
    DEVICES,
    KEEP,
    KINDS,
    LOAD_MEMORY,
    FirstSeenSettings,
    HistorySettings,
    Layout,
    ListSettings,
    RecordFormat,
    SourceSettings,
)
from eir.lists.rows.layout import SUBJECTS
from eir.lists.stores.open import SQLITE
from eir.schema import REQUIRED, Key, Section
from eir.sightings.conditions import TamperSettings
from eir.sightings.settings import FULL, HASHED, OFF, SightingsSettings, Webhook
from eir.wire.peers.settings import LENIENCES, WLAN, Identity, Limits, PeerSettings
from eir.wire.transport.settings import SctpSettings, TlsSettings
from eir.wire.transport.tls import VERSIONS
from eir.wire.web.access import LOOPBACK, PageSettings

WATCHDOG_MIN_S = 6
"""Minimum of Tw in seconds (RFC 3539 3.4.1)."""
LIMITS, SCTP, HISTORY, SIGHTINGS, TAMPER, SOURCE, FIRST_SIGHTINGS = (
    Limits(),
    SctpSettings(),
    HistorySettings(),
    SightingsSettings(),
    TamperSettings(),
    SourceSettings(url=""),
    FirstSeenSettings(),
)


def _peer_settings(
    *, name: str | None, lenient: tuple[str, ...], sources: tuple[Any, ...], **names: Any
) -> PeerSettings:
    """Build the settings of one peer from the keys of its section in `peers`.

    The label, which logs and metrics show, is the key `name`; if `name` is not set, `host`, else `realm`, else the first of `sources`.
    """
    label = name or names["host"] or names["realm"] or next(iter(sources), "")
    return PeerSettings(label=str(label), lenient=frozenset(lenient), sources=sources, **names)


def _given(**values: Any) -> tuple[tuple[str, Any], ...]:
    """Return the keys that the file sets in a section, with their values."""
    return tuple((name, value) for name, value in values.items() if value is not None)


FIXED_LIMITS = (
    "max_message_bytes", "max_avps", "max_depth", "cer_timeout_s", "partial_message_timeout_s", "turn_messages", "write_buffer_bytes", "stalled_write_s",
    "close_after_dpa_s", "duplicate_probe_s",
)  # fmt: skip
FIXED_SCTP = (
    "rto_initial_s", "rto_min_s", "rto_max_s", "heartbeat_s", "path_retransmissions", "association_retransmissions",
)  # fmt: skip
"""Limits and SCTP settings that no key changes; their values are the defaults of the dataclasses."""


def _limits(*, load_memory: int, **of_peers: Any) -> dict[str, Any]:
    """Split the section `limits` into the limits on one peer and the memory limit (`load_memory`) for loading a release."""
    return {"limits": Limits(**of_peers), "load_memory": load_memory}


def _layout(
    *, columns: tuple[tuple[str, str | int], ...], added: tuple[str, ...], removed: tuple[str, ...], reasons: tuple[tuple[str, str], ...],
    **more: Any,
) -> Layout:  # fmt: skip
    """Build the layout of a data file from the keys of its section in `layouts`. The columns determine the kinds of list that a file can fill."""
    by_role = dict(columns)
    subjects = {}
    for kind, allowed in SUBJECTS.items():
        present = tuple(roles for roles in allowed if by_role.keys() >= set(roles))
        if present:
            subjects[kind] = present
    has_names = any(isinstance(column, str) for column in by_role.values())
    return Layout(
        columns=by_role, subjects=subjects, declared=True, reasons=dict(reasons), names=has_names, added=frozenset(added), removed=frozenset(removed),
        **more,
    )  # fmt: skip


COLUMNS = {
    "imei": "column of an IMEI, IMEISV or MEID",
    "identifier": "column of any identifier that a phone sends: an IMEI, or 1 to 20 other octets",
    "tac": "column of a TAC",
    "device_type": "column of the device type of a TAC",
    "imei_from": "column of the first IMEI of a range",
    "imei_to": "column of the last IMEI of a range; if empty, the row is one device",
    "imsi": "column that holds an IMSI, in a list of subscribers or, beside the column `imei`, in a list of pairs",
    "reason": "column of the reason, or of its code",
    "until": "column of the time at which the entry ends",
    "date": "column of the date on which the entry was reported, for lists with `dates`; in a list of device types it is the allocation date of the TAC",
    "action": "column of the code that adds (`added`) or removes (`removed`) the entry",
}
"""Possible roles of a column in a data file."""

SECTIONS = (
    Section(
        "",
        dict,
        gone={
            "fraud_check": "DeviceAuthenticity replaced CAMARA's IMEI Fraud Check: rename the section to 'device_authenticity', and give the tokens its scope",
        },
    ),
    Section("identity", partial(Identity, origin_state_id=0)),
    Section("peers[]", _peer_settings),
    Section("peers[].answers", _given),
    Section("limits", _limits, gone=schema.fixed(LIMITS, FIXED_LIMITS)),
    Section("tls", TlsSettings, optional=True),
    *(section for each in INTERFACES for section in each.sections),
    Section("sctp", SctpSettings, gone=schema.fixed(SCTP, FIXED_SCTP)),
    Section("lists.*", ListSettings),
    Section("lists.*.source", SourceSettings, optional=True, short="url"),
    Section("first_seen", FirstSeenSettings, optional=True, live=False),
    Section("history", HistorySettings),
    Section("layouts.*", _layout),
    Section("layouts.*.columns", _given),
    Section("layouts.*.header", RecordFormat, optional=True),
    Section("layouts.*.trailer", RecordFormat, optional=True),
    Section(
        "tamper",
        TamperSettings,
        gone={
            "tac_db": "TACs come in a signed list now: under 'lists', tacs: {kind: device_types, signers: FILE}, to which `eir publish --list tacs` and `eir load` bring the file",
            "origins": "the record itself shows which origins are one place: remove the key",
        },
    ),
    Section("page", PageSettings),
    Section("policy", PolicySettings),
    Section("policy.rules[]", Rule),
    Section("policy.override", Override, optional=True),
    Section(
        "sightings",
        SightingsSettings,
        optional=True,
        live=False,
        gone={"stream": "events go to a receiver over HTTP, see sightings.webhook"},
    ),
    Section("sightings.webhook", Webhook, optional=True),
)
"""Sections with their builders; the values of any other section belong to the section around it."""

TABLE = (
    Key("identity.host", schema.IDENTITY, REQUIRED, "Origin-Host of the node"),
    Key("identity.realm", schema.IDENTITY, REQUIRED, "Origin-Realm of the node; the node also serves this realm"),
    Key("identity.aliases", schema.many(schema.IDENTITY, may_be_empty=True), (), "further host names that the node accepts as Destination-Host"),
    Key("identity.realms", schema.many(schema.IDENTITY, may_be_empty=True), (), "further realms that the node serves"),
    *(key for each in INTERFACES if not each.section for key in each.keys),
    Key("peers[].name", schema.PEER_NAME, None, "name of the peer in metrics, logs and commands; default: its host, its realm or its first network"),
    Key("peers[].host", schema.IDENTITY, None, "Origin-Host that the peer must send; any if left out"),
    Key("peers[].realm", schema.IDENTITY, None, "Origin-Realm that the peer must send; any if left out"),
    Key("peers[].from", schema.many(schema.NETWORK), (), "networks from which the peer may connect; any if left out", field="sources"),
    Key("peers[].gt", kinds.GLOBAL_TITLE, None, "first digits of the calling global title of an MSC or SGSN; the entry then applies to MAP only"),
    Key("peers[].point_code", schema.POINT_CODE, None, "point code of an MSC or SGSN; the entry then applies to MAP only"),
    Key("peers[].connect", kinds.CONNECT, None, "address to which the node connects; if left out, the peer connects to the node"),
    Key("peers[].tls_names", schema.many(kinds.CERTIFICATE_NAME), (), "accepted names in the peer's certificate; default: the peer's Origin-Host, and the peer's Origin-Realm if the host is outside that realm"),
    Key("peers[].reconnect_after_s", schema.seconds(1, 3600), 30, "pause before the node connects to the peer again (Tc of RFC 6733)"),
    Key("peers[].connections", schema.whole(1, 64), 1, "maximum number of simultaneous connections of one Origin-Host"),
    Key("peers[].watchdog_s", schema.seconds(WATCHDOG_MIN_S, 3600), 30, "silence after which the node sends a DWR (Tw of RFC 3539)"),
    Key("peers[].rate_max", schema.number(0.1, 1e6, "requests a second"), None, "maximum number of requests of this peer answered per second; others get `overload_answer`; unlimited if left out"),
    Key("peers[].lenient", schema.many(schema.word(*sorted(LENIENCES)), may_be_empty=True), (), "faults that the node accepts from the peer: a CER without a common application (applications), another node's name as Destination-Host (destination), unknown AVPs with the M bit (unknown_m)"),
    Key("peers[].as.host", schema.IDENTITY, None, "Origin-Host that the node sends to this peer; `identity.host` if left out", field="as_host"),
    Key("peers[].as.realm", schema.IDENTITY, None, "Origin-Realm that the node sends to this peer; `identity.realm` if left out", field="as_realm"),
    Key("peers[].expected", schema.FLAG, True, "whether an alert fires while this peer is disconnected; false also makes the peer a `probe`, unless it is an AMF"),
    Key("peers[].probe", schema.FLAG, False, "whether the peer is a probe, whose checks are answered, but not recorded as sightings"),
    Key("peers[].early", schema.FLAG, False, "whether the peer sends its check before it has authenticated the SIM (OsmoMSC's `check-imei-rqd early`); rules with `authenticated` are skipped for this peer"),
    Key("peers[].access", schema.word(WLAN), None, "access network of this peer's phones, recorded with each check: wlan for a 3GPP AAA server, which asks for phones that attach over Wi-Fi; not recorded if left out"),
    *(Key(f"peers[].answers.{status}", kinds.STATUS, None, f"status sent to this peer instead of {status}") for status in Status if status != Status.WHITELISTED),
    Key("limits.connections_max", schema.whole(1, 65536), LIMITS.connections_max, "maximum number of simultaneous connections"),
    Key("limits.unidentified_max", schema.whole(1, 65536), LIMITS.unidentified_max, "maximum number of simultaneous connections without a CER, not counting peers that `peers` names by host or address; above this number, the node closes connections that are 1 s old, first the oldest of the address with most connections"),
    Key("limits.source_connections_max", schema.whole(1, 65536), LIMITS.source_connections_max, "maximum number of simultaneous connections from one network (IPv4 /24, IPv6 /64)"),
    Key("limits.source_unidentified_max", schema.whole(1, 65536), LIMITS.source_unidentified_max, "maximum number of simultaneous connections without a CER from one network (IPv4 /24, IPv6 /64); counted and closed as in `unidentified_max`"),
    Key("limits.rate_max", schema.number(0.1, 1e6, "requests a second"), None, "maximum number of requests of all peers answered per second; others get `overload_answer`; unlimited if left out"),
    Key("limits.load_memory", schema.byte_size(128 << 20, 1 << 44), LOAD_MEMORY, "maximum memory for loading a release, which needs at least 12 bytes per row; a larger release is rejected"),
    Key("overload_answer", kinds.STATUS_OR_TOO_BUSY, kinds.TOO_BUSY, "answer to a request above a `rate_max`, sent without evaluating any list: 3004 (DIAMETER_TOO_BUSY), or a status"),
    Key("tls.certificate", schema.FILE, REQUIRED, "PEM file of the node's certificate, followed by the intermediate certificates"),
    Key("tls.key", schema.FILE, REQUIRED, "PEM file of the node's private key, without a passphrase"),
    Key("tls.ca", schema.FILE, REQUIRED, "PEM file of the authorities that issue peers' certificates"),
    Key("tls.crl", schema.FILE, None, "PEM file of revocation lists of the authorities in `ca`; revocation is not checked if left out"),
    Key("tls.min_version", schema.word(*VERSIONS), "1.2", "lowest TLS version"),
    *(key for each in INTERFACES if each.section and each.server for key in each.keys),
    Key("sctp.local_addresses", schema.many(kinds.ADDRESS), (), "addresses from which the node connects over SCTP; default: all addresses of the host"),
    Key("sctp.optional", schema.FLAG, SCTP.optional, "whether the node starts without its SCTP listeners if the kernel has no SCTP; false makes that an error"),
    Key("state", schema.FOLDER, Path("var"), "folder of the SQLite file, the last good copies and the control socket", live=False),
    Key("control_read", schema.FILE, None, "file of a read-only control socket (`$EIR_CONTROL`), which belongs to the group of its folder", live=False),
    Key("store", kinds.STORE, SQLITE, "store of the lists", live=False),
    Key("heal", schema.FLAG, True, "whether the node writes its copy of a list back to a store that lost the list or has an older one", live=False),
    Key("boot_without_lists", schema.word("serve", "refuse"), "serve", "behaviour if a list has no copy at the start: `serve` evaluates the rules of other lists (/ready responds 503); `refuse` opens no listener until all lists are loaded", live=False),
    Key("lists.*.kind", schema.word(*KINDS), DEVICES, "kind of entries: devices (identifiers, TACs, ranges), pairs (device and IMSI), subscribers (IMSIs), or device_types (TACs with their type)"),
    Key("lists.*.signers", schema.FILE, None, "OpenSSH allowed_signers file for releases of this list; required unless the list is local"),
    Key("lists.*.local", schema.FLAG, False, "whether the list changes by `eir add` and `eir remove` instead of signed releases"),
    Key("lists.*.revoked", schema.FILE, None, "file of revoked keys, for `ssh-keygen -Y verify -r`; no revocation if left out"),
    Key("lists.*.threshold", schema.whole(1, 16), 1, "number of signers that must sign a release, each with a key of its own"),
    Key("lists.*.shrink_max", schema.percentage(100), 0.20, "maximum share of the devices in force that one change may remove without --force; a TAC counts as a million devices"),
    Key("lists.*.growth_max", schema.percentage(100_000), 0.20, "maximum share of the devices in force that one change may add without --force"),
    Key("lists.*.change_min", schema.whole(0, 10**9), 1000, "number of devices; `shrink_max` does not limit a change that removes fewer, `growth_max` does not limit a change that adds fewer"),
    Key("lists.*.serial_step_max", schema.whole(1, 10**15), 1_000_000, "maximum difference between a release's serial and the highest serial ever accepted"),
    Key("lists.*.range_tacs_max", schema.whole(1, 10**8), 1000, "maximum number of TACs in one range"),
    Key("lists.*.bad_rows_max", schema.whole(0, 10**9), 100, "maximum number of rows without a valid identifier; a release with more is rejected"),
    Key("lists.*.keep", schema.whole(1, 100), KEEP, "number of earlier releases, or of earlier changes of a local list, to which `eir rollback` can go back"),
    Key("lists.*.dates", schema.FLAG, False, "whether the date of each entry is stored: from column `date` of data files, or from rows sent to `feed`"),
    Key("lists.*.source.url", kinds.SOURCE, REQUIRED, "URL of the folder of `eir publish --to`; http only for the host's own addresses; short form: the section `source: URL`"),
    Key("lists.*.source.ca", schema.FILE, None, "PEM file of authorities for the server's certificate; default: the host's authorities"),
    Key("lists.*.source.certificate", schema.FILE, None, "PEM file of the client certificate"),
    Key("lists.*.source.key", schema.FILE, None, "PEM file of the client certificate's private key, without a passphrase"),
    Key("lists.*.source.token", schema.FILE, None, "file of the token in the header Authorization: Bearer"),
    Key("lists.*.source.every", schema.seconds(1, 86400), SOURCE.every_s, "time between two polls of the index; shorter after a failed poll", field="every_s"),
    Key("lists.*.source.acknowledge", schema.FLAG, False, "whether the node posts signed acknowledgements to the folder"),
    Key("lists.*.source.patience", schema.seconds(1, 30 * 86400), SOURCE.patience_s, "time after which an unreachable source raises `EirSourceUnreached`, and a list behind the source's serial raises `EirListBehind`", field="patience_s"),
    Key("first_seen.list", kinds.RECORD_NAME, FIRST_SIGHTINGS.list, "name of the record of first sightings, not the name of a list; checks add devices to this record if a rule has `first_seen_within` or `first_seen_before`"),
    Key("first_seen.remember", schema.days(1, 3650), FIRST_SIGHTINGS.remember, "time without a sighting after which the node forgets a device, up to 32 days late; a forgotten device is new at its next sighting"),
    Key("first_seen.new_per_peer", kinds.PER_DAY, FIRST_SIGHTINGS.new_per_peer, "maximum number of new devices per peer and day (UTC) that a node records; a further device is recorded only if a second peer or subscriber sends it"),
    Key("history.keep", schema.days(1, 36500), HISTORY.keep, "maximum age of records of the history"),
    Key("history.max_bytes", schema.byte_size(1 << 20, 1 << 40), HISTORY.max_bytes, "expected maximum size of the history; above 80 % of it `EirHistoryNearlyFull` fires; no record is deleted"),
    Key("history.feed_max_bytes", schema.byte_size(1 << 20, 1 << 40), HISTORY.feed_max_bytes, "maximum size of the history of rows sent to `feed`; above this size its oldest records are deleted"),
    Key("layouts.*.encoding", kinds.ENCODING, "utf-8", "character encoding of the data files"),
    Key("layouts.*.separator", kinds.SEPARATOR, ",", "separator of the fields of a row; fields may be in double quotes"),
    *(Key(f"layouts.*.columns.{name}", kinds.COLUMN, None, says) for name, says in COLUMNS.items()),
    Key("layouts.*.dates", kinds.DATES, None, "form of dates; if left out: 20261231, 2026-12-31 or 2026-12-31T12:00:00Z"),
    Key("layouts.*.added", schema.many(kinds.CODE), (), "codes in the column `action` of rows that add an entry"),
    Key("layouts.*.removed", schema.many(kinds.CODE), (), "codes in the column `action` of rows that remove an entry; a full release ignores these rows"),
    Key("layouts.*.reasons", schema.many(kinds.CODE_AND_REASON), (), "reason for each code in the column `reason`; other reasons stay unchanged"),
    Key("layouts.*.header.begins", kinds.CODE, REQUIRED, "text at the start of the header record"),
    Key("layouts.*.header.count", kinds.POSITION, None, "position of the header record's field that holds the number of rows; a file with more or fewer rows is rejected"),
    Key("layouts.*.header.date", kinds.POSITION, None, "position of the header record's field that must be a date"),
    Key("layouts.*.skip", schema.whole(0, 100), 0, "number of lines to skip after the header record, or at the start of the file"),
    Key("layouts.*.trailer.begins", kinds.CODE, REQUIRED, "text at the start of the trailer record, which is the last line"),
    Key("layouts.*.trailer.count", kinds.POSITION, None, "as in the header record"),
    Key("layouts.*.trailer.date", kinds.POSITION, None, "as in the header record"),
    *(key for each in INTERFACES if each.service for key in each.keys),
    Key("numbers", schema.FILE, None, "CSV file of MSISDN,IMSI, with the IMSI of each phone number that rows of `feed` or commands contain"),
    Key("inbox", schema.FOLDER, None, "drop folder: the node loads signed releases from it and moves them to its accepted/ or refused/", live=False),
    Key("inbox_patience_s", schema.seconds(1, 30 * 86400), 3600, "time after which an incomplete release, or a file that no release names, moves to refused/", live=False),
    Key("policy.rules[].name", kinds.RULE_NAME, None, "name of the rule in metrics and logs; default: its number"),
    Key("policy.rules[].answer", kinds.STATUS, REQUIRED, "status if all conditions of the rule hold"),
    Key("policy.rules[].observe", schema.FLAG, False, "whether the rule only counts and logs its answer; the next rule is then evaluated"),
    Key("policy.rules[].authenticated", schema.FLAG, None, "whether the rule is skipped for peers with `early: true`; the rule also needs at least one condition, such as `imsi`"),
    Key("policy.rules[].list", schema.LIST_NAME, None, "condition: this list has the device, the device with this SIM (pairs), or the SIM (subscribers); does not hold before the first load"),
    Key("policy.rules[].not_list", schema.LIST_NAME, None, "condition: this list lacks the device, the pair or the SIM; does not hold before the first load"),
    Key("policy.rules[].device_bound_elsewhere", schema.LIST_NAME, None, "condition: this list of pairs has the device, but not with this SIM"),
    Key("policy.rules[].subscriber_bound_elsewhere", schema.LIST_NAME, None, "condition: this list of pairs has the SIM, but not with this device"),
    Key("policy.rules[].imei", schema.many(kinds.IMEI), (), "condition: the device has one of these numbers; the rule needs no list"),
    Key("policy.rules[].tac", schema.many(kinds.TAC), (), "condition: Type Allocation Code of the device"),
    Key("policy.rules[].device_type", schema.many(kinds.DEVICE_TYPE), (), "condition: type of the device's TAC in a list of kind device_types"),
    Key("policy.rules[].software_version", schema.many(kinds.SOFTWARE_VERSION), (), "condition: Software-Version of the device"),
    Key("policy.rules[].imsi", schema.many(kinds.IMSI_PREFIX), (), "condition: the IMSI begins with these digits, such as the MCC and MNC of a roamer"),
    Key("policy.rules[].identifier", schema.many(kinds.FAULT), (), "condition: fault of the identifier that the device sent"),
    Key("policy.rules[].origin_host", schema.many(schema.IDENTITY), (), "condition: Origin-Host of the request"),
    Key("policy.rules[].origin_realm", schema.many(schema.IDENTITY), (), "condition: Origin-Realm of the request"),
    Key("policy.rules[].first_seen_within", schema.days(1, 3650), None, "condition: the first sighting of the device is at most this many days ago; a device without a sighting counts as seen now; needs `first_seen`"),
    Key("policy.rules[].first_seen_before", kinds.DAY, None, "condition: the first sighting of the device is before this day; a device without a sighting counts as seen now; needs `first_seen`"),
    Key("policy.default", kinds.STATUS, Status.WHITELISTED, "status if no rule holds"),
    Key("policy.no_identity", kinds.STATUS_OR_ERROR, Status.WHITELISTED, "answer to a request without IMEI and MEID; error is 5005"),
    Key("policy.bad_identity", kinds.STATUS_OR_ERROR, Status.WHITELISTED, "answer to a request with an invalid IMEI or MEID; error is 5004"),
    Key("policy.no_imei", kinds.STATUS, Status.WHITELISTED, "answer to a request over N5g-eir with a MAC address or an EUI-64 instead of an IMEI"),
    Key("policy.override.answer", kinds.STATUS, REQUIRED, "status of every check while the override is in force"),
    Key("policy.override.until", kinds.MOMENT, None, "end of the override; no end if left out"),
    Key("sightings.keep", schema.seconds(3600, 3650 * 86400), SIGHTINGS.keep_s, "maximum age of recorded checks", field="keep_s"),
    Key("sightings.max_bytes", schema.byte_size(1 << 20, 1 << 50), SIGHTINGS.max_bytes, "maximum size of the record; above it the oldest checks are deleted"),
    Key("sightings.subscribers", schema.word(HASHED, FULL, OFF), SIGHTINGS.subscribers, "recorded form of the SIM and its number: keyed hashes (hashed), IMSI and number (full), or only the first 6 digits of the IMSI (off)"),
    Key("sightings.rotate", schema.seconds(86400, 3650 * 86400), SIGHTINGS.rotate_s, "maximum age of the key of the hashes", field="rotate_s"),
    Key("sightings.window_s", schema.seconds(0.1, 3600), SIGHTINGS.window_s, "time within which equal checks become one row; at the end of that time the rows are written to a file"),
    Key("sightings.rate_max", schema.number(1, 1e7, "checks a second"), SIGHTINGS.rate_max, "maximum number of checks recorded per second by all workers; above it, `whitelisted` checks are left out first"),
    Key("sightings.events_max", schema.number(0.1, 1e5, "events a second"), SIGHTINGS.events_max, "maximum number of events sent per second; more are dropped and counted"),
    Key("sightings.watch", schema.many(schema.LIST_NAME), (), "lists of watched devices or subscribers: a device's new SIM, or a subscriber's new device, is an event; a rule must use each list"),
    Key("sightings.webhook.url", kinds.HTTP_URL, REQUIRED, "URL to which events are posted"),
    Key("sightings.webhook.key_file", schema.FILE, REQUIRED, "file of the key that signs the events (HMAC-SHA256)"),
    Key("tamper.report_min", schema.percentage(100), TAMPER.report_min, "minimum confidence score of a reported device"),
    Key("tamper.export_min", schema.percentage(100), TAMPER.export_min, "minimum confidence score of an exported device"),
    Key("tamper.memory", schema.byte_size(256 << 20, 1 << 44), TAMPER.memory, "maximum memory of `eir tamper`; above it DuckDB writes to a temporary folder"),
    Key("http", kinds.HTTP, "127.0.0.1:9868", "address of the status page (/), /metrics, /live and /ready", live=False),
    Key("page.from", schema.many(schema.NETWORK, may_be_empty=True), LOOPBACK, "networks from which the status page (/ at `http`) needs no password, if the host in the URL is an IP address", field="sources"),
    Key("page.password_file", schema.FILE, None, "file of the status page's password for clients outside `from`; without the file they are rejected"),
    Key("workers", kinds.WORKERS, 1, "number of processes that answer; `auto`: one per processor", live=False),
    Key("log.level", schema.word("debug", "info", "warning", "error"), "info", "lowest level of log lines", field="log_level"),
    Key("privacy.identifiers", schema.one_of({"short": False, "full": True}), False, "form of IMEI and IMSI in logs and on the web page: first and last digits (short), or whole (full)", field="full_identifiers"),
)  # fmt: skip

ROOT = tree(SECTIONS, TABLE)
"""Table of keys as a tree of sections for the reader."""


INTRODUCTION = """\
# Every key of the configuration

For engineers who look up the values, the default and the meaning of a key. [README.md](README.md) names the pages with worked examples.
`eir config --reference` prints this page, with `--json` as data. `eir config` prints the values in force.

`[]` stands for each entry of a list, `*` for a name of your choice. Write several values as a YAML list. A key with the default `-` may be left out; an interface without `listen` is not
served. Seconds and bytes may have a unit (`500ms`, `2m`, `64KiB`). A changed key marked "restart" takes effect at the next start. A reload applies all other
keys. The node reads changed user files, token key files and the file `numbers` without a reload.
"""


def reference() -> list[dict[str, Any]]:
    """Return the rows of the configuration reference in the order of the sample file: key, value, default, meaning, restart."""
    restarted = {section.path for section in SECTIONS if not section.live}
    rows = []
    for key in TABLE:
        section = key.path.partition(".")[0]
        needs_restart = not key.live or section in restarted
        rows.append({
            "key": key.path, "value": key.kind.form, "required": key.required, "default": _default(key), "says": key.says,
            "restart": needs_restart,
        })  # fmt: skip
    return rows


def reference_page() -> str:
    """Render the configuration reference in Markdown, with one table for each section of the configuration file."""
    parts = [INTRODUCTION]
    for name, rows in groupby(reference(), lambda row: row["key"].partition(".")[0].removesuffix("[]")):
        parts += [f"## {name}\n", "| Key | Value | Default | Meaning |\n|---|---|---|---|"]
        for row in rows:
            meaning = f"{row['says']} (restart)" if row["restart"] else row["says"]
            parts.append(f"| `{row['key']}` | {row['value']} | {_default_text(row)} | {meaning} |")
        parts.append("")
    return "\n".join(parts)


def _default(key: Key) -> Any:
    """Return the default of a key as the configuration file writes it; None if the key is required or has no default."""
    if key.default is REQUIRED or key.default is None or key.default == ():
        return None
    show = key.kind.show
    return [*map(show, key.default)] if key.kind.many else show(key.default)


def _default_text(row: dict[str, Any]) -> str:
    if row["required"]:
        return "required"
    value = row["default"]
    if value is None:
        return "-"
    values = value if isinstance(value, list) else [value]
    words = [str(each).lower() if isinstance(each, bool) else str(each) for each in values]
    return f"`{', '.join(words)}`"

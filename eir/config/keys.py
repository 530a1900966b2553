"""The reference: each key of the configuration, its unit, its default, what it is for, and whether a reload takes it over.

A new key is one row here, a field of that name in what its section builds, a line in config/eir.yaml and one in the
reference (tests compare the three). A new section is its keys, and a row in SECTIONS. Data only.
"""

from functools import partial
from pathlib import Path
from typing import Any

from eir.checks.policy import Override, PolicySettings, Rule, Status
from eir.config import kinds
from eir.config.reader import REQUIRED, Key, Section, tree
from eir.diameter.settings import LENIENCES, Identity, Limits, PeerSettings, SctpSettings, TlsSettings
from eir.diameter.transport.tls import VERSIONS
from eir.lists.layout import SUBJECTS
from eir.lists.settings import DEVICES, LOAD_MEMORY, PAIRS, SUBSCRIBERS, Layout, ListSettings, Record
from eir.stores.open import SQLITE

WATCHDOG_MIN_S = 6
"""RFC 3539 3.4.1: Tw must not be below 6 seconds."""
LIMITS, SCTP = Limits(), SctpSettings()


def _peer(*, name: str | None, lenient: tuple[str, ...], sources: tuple[Any, ...], **names: Any) -> PeerSettings:
    """A peer is called by its name, else by the first thing that it is recognised by."""
    label = name or names["host"] or names["realm"] or next(iter(sources), "")
    return PeerSettings(label=str(label), lenient=frozenset(lenient), sources=sources, **names)


def _given(**values: Any) -> tuple[tuple[str, Any], ...]:
    """What a section says at all, by its keys."""
    return tuple((name, value) for name, value in values.items() if value is not None)


def _limits(*, load_memory: int, **of_peers: Any) -> dict[str, Any]:
    """What a peer may take of the node, and beside it what a load may take of the host."""
    return {"limits": Limits(**of_peers), "load_memory": load_memory}


def _layout(
    *, columns: tuple[tuple[str, str | int], ...], added: tuple[str, ...], removed: tuple[str, ...], reasons: tuple[tuple[str, str], ...],
    **more: Any,
) -> Layout:  # fmt: skip
    """A layout is for the kinds of list that its columns identify something for."""
    there = dict(columns)
    subjects = {kind: tuple(each for each in allowed if there.keys() >= set(each)) for kind, allowed in SUBJECTS.items()}
    return Layout(
        columns=there, subjects={kind: found for kind, found in subjects.items() if found}, declared=True, reasons=dict(reasons),
        names=any(isinstance(column, str) for column in there.values()), added=frozenset(added), removed=frozenset(removed), **more,
    )  # fmt: skip


COLUMNS = {
    "imei": "the column with an IMEI, IMEISV or MEID",
    "tac": "the column with a TAC",
    "imei_from": "the column with the first IMEI of a range",
    "imei_to": "the column with its last one; a row without it is about one device",
    "imsi": "the column with an IMSI: with `imei` in a list of pairs, alone in a list of subscribers",
    "reason": "the column with the reason, or a code for it",
    "until": "the column with a row's end",
    "date": "the column with a row's date, on which nothing depends",
    "action": "the column with the codes that `added` and `removed` name",
}
"""What a column of a data file may be."""

SECTIONS = (
    Section("identity", partial(Identity, origin_state_id=0)),
    Section("peers[]", _peer),
    Section("peers[].answers", _given),
    Section("limits", _limits),
    Section("tls", TlsSettings, optional=True),
    Section("sctp", SctpSettings),
    Section("lists.*", ListSettings),
    Section("layouts.*", _layout),
    Section("layouts.*.columns", _given),
    Section("layouts.*.header", Record, optional=True),
    Section("layouts.*.trailer", Record, optional=True),
    Section("policy", PolicySettings),
    Section("policy.rules[]", Rule),
    Section("policy.override", Override, optional=True),
)
"""What is built of which sections; the values of any other go to what is around it."""

TABLE = (
    Key("identity.host", kinds.IDENTITY, REQUIRED, "Origin-Host: the node's own name"),
    Key("identity.realm", kinds.IDENTITY, REQUIRED, "Origin-Realm: the realm that it belongs to and serves"),
    Key("identity.aliases", kinds.many(kinds.IDENTITY, may_be_empty=True), (), "further host names that are this node when a Destination-Host holds them"),
    Key("identity.realms", kinds.many(kinds.IDENTITY, may_be_empty=True), (), "further realms that it serves"),
    Key("listen", kinds.many(kinds.LISTEN), ("tcp://127.0.0.1:3868",), "where peers connect to; the port is 3868, or 5868 for tls, unless it is given; sctp may have several addresses, with commas between them", live=False),
    Key("peers[].name", kinds.PEER_NAME, None, "what metrics, logs and commands call the peer; else its host, its realm, or its first network"),
    Key("peers[].host", kinds.IDENTITY, None, "the Origin-Host that it must show; any if left out"),
    Key("peers[].realm", kinds.IDENTITY, None, "the Origin-Realm that it must show; any if left out"),
    Key("peers[].from", kinds.many(kinds.NETWORK), (), "networks that it may connect from; any address if left out", field="sources"),
    Key("peers[].connect", kinds.CONNECT, None, "where we connect to the peer; it connects to us if left out"),
    Key("peers[].tls_names", kinds.many(kinds.CERTIFICATE_NAME), (), "names, one of which its certificate must carry (over TLS); if left out its Origin-Host, and its Origin-Realm too where the host does not end in that"),
    Key("peers[].reconnect_after_s", kinds.seconds(1, 3600), 30, "pause before we connect to it again (Tc of RFC 6733)"),
    Key("peers[].connections", kinds.whole(1, 64), 1, "connections that one Origin-Host may hold at once"),
    Key("peers[].watchdog_s", kinds.seconds(WATCHDOG_MIN_S, 3600), 30, "silence after which a DWR goes out (Tw of RFC 3539)"),
    Key("peers[].rate_max", kinds.number(0.1, 1e6, "requests a second"), None, "requests of the peer that are answered; those above get `overload_answer`; no limit if left out"),
    Key("peers[].lenient", kinds.many(kinds.word(*sorted(LENIENCES)), may_be_empty=True), (), "what the peer is forgiven: a CER without a common application, unknown AVPs with the M bit, another node's name as Destination-Host"),
    Key("peers[].as.host", kinds.IDENTITY, None, "Origin-Host that we show to this peer; identity.host if left out", field="as_host"),
    Key("peers[].as.realm", kinds.IDENTITY, None, "Origin-Realm that we show to this peer; identity.realm if left out", field="as_realm"),
    Key("peers[].expected", kinds.FLAG, True, "it should be connected: no alert and no warning while a peer is away of which this is false, such as a probe"),
    *(Key(f"peers[].answers.{status}", kinds.STATUS, None, f"what the peer gets instead of {status}; metrics and log keep what the policy said") for status in Status if status != Status.WHITELISTED),
    Key("limits.max_message_bytes", kinds.byte_size(4096, 1 << 23), LIMITS.max_message_bytes, "longest message; a longer one closes the connection before it is read"),
    Key("limits.max_avps", kinds.whole(32, 65536), LIMITS.max_avps, "AVPs in one message, those inside groups counted too"),
    Key("limits.max_depth", kinds.whole(2, 64), LIMITS.max_depth, "groups inside groups"),
    Key("limits.cer_timeout_s", kinds.seconds(0.1, 3600), LIMITS.cer_timeout_s, "time from the accept to a complete CER"),
    Key("limits.partial_message_timeout_s", kinds.seconds(0.1, 3600), LIMITS.partial_message_timeout_s, "time from the first byte of a message to its last"),
    Key("limits.turn_messages", kinds.whole(1, 65536), LIMITS.turn_messages, "work on one connection before others get their turn, in checks of the usual kind (others count for more)"),
    Key("limits.write_buffer_bytes", kinds.byte_size(4096, 1 << 28), LIMITS.write_buffer_bytes, "unsent answers above which nothing more is read from the peer"),
    Key("limits.stalled_write_s", kinds.seconds(0.1, 3600), LIMITS.stalled_write_s, "time that a peer may leave answers unread before it is dropped"),
    Key("limits.close_after_dpa_s", kinds.seconds(0.1, 60), LIMITS.close_after_dpa_s, "time from our DPA to our closing of the connection"),
    Key("limits.duplicate_probe_s", kinds.seconds(0.1, 60), LIMITS.duplicate_probe_s, "time that a peer's oldest connection has for its DWA when the peer opens one too many"),
    Key("limits.connections_max", kinds.whole(1, 65536), LIMITS.connections_max, "connections at once"),
    Key("limits.unidentified_max", kinds.whole(1, 65536), LIMITS.unidentified_max, "connections at once that have not sent a CER yet; above, the oldest of the address with most of them goes"),
    Key("limits.source_connections_max", kinds.whole(1, 65536), LIMITS.source_connections_max, "connections at once from one network of addresses (IPv4 /24, IPv6 /64)"),
    Key("limits.source_unidentified_max", kinds.whole(1, 65536), LIMITS.source_unidentified_max, "of those, the ones that have not sent a CER yet; above, the oldest of the address with most of them goes"),
    Key("limits.rate_max", kinds.number(0.1, 1e6, "requests a second"), None, "requests of all peers together that are answered; those above get `overload_answer`; no limit if left out"),
    Key("limits.load_memory", kinds.byte_size(128 << 20, 1 << 44), LOAD_MEMORY, "memory that a load may take, in the drop folder or by hand: at least 12 bytes for each row; a release that takes more is refused, and no check notices"),
    Key("overload_answer", kinds.STATUS_OR_TOO_BUSY, kinds.TOO_BUSY, "what a request above a rate_max gets, at once: 3004 (too busy), or a status without a look at any list"),
    Key("tls.certificate", kinds.FILE, REQUIRED, "the node's certificate in PEM, followed by those of authorities between it and one that peers know"),
    Key("tls.key", kinds.FILE, REQUIRED, "its private key in PEM, without a passphrase"),
    Key("tls.ca", kinds.FILE, REQUIRED, "certificates in PEM of the authorities that issue peers' certificates"),
    Key("tls.crl", kinds.FILE, None, "revocation lists of those authorities, in PEM; nothing is looked up if left out"),
    Key("tls.min_version", kinds.word(*VERSIONS), "1.2", "lowest version of TLS"),
    Key("sctp.local_addresses", kinds.many(kinds.ADDRESS), (), "addresses that the node connects from over SCTP; all that the host has if left out"),
    Key("sctp.rto_initial_s", kinds.seconds(0.05, 60), SCTP.rto_initial_s, "retransmission timeout before a round trip was measured"),
    Key("sctp.rto_min_s", kinds.seconds(0.05, 60), SCTP.rto_min_s, "the least retransmission timeout; not below the time that peers take for a SACK, usually 200 ms"),
    Key("sctp.rto_max_s", kinds.seconds(0.05, 60), SCTP.rto_max_s, "the greatest; it doubles with each timeout"),
    Key("sctp.heartbeat_s", kinds.seconds(0.5, 3600), SCTP.heartbeat_s, "between two heartbeats on a path that carries nothing"),
    Key("sctp.path_retransmissions", kinds.whole(1, 20), SCTP.path_retransmissions, "timeouts in a row after which a path counts as lost (Path.Max.Retrans); another one is taken after the first timeout"),
    Key("sctp.association_retransmissions", kinds.whole(1, 60), SCTP.association_retransmissions, "timeouts in a row, over all paths, after which the connection is lost (Association.Max.Retrans)"),
    Key("sctp.optional", kinds.FLAG, SCTP.optional, "start without listeners for SCTP if the kernel has no SCTP; otherwise that is an error"),
    Key("state", kinds.FOLDER, Path("var"), "folder of the SQLite file, the last good copies and the control socket", live=False),
    Key("store", kinds.STORE, SQLITE, "where lists are kept", live=False),
    Key("heal", kinds.FLAG, True, "if the store lost a list that this node has a newer copy of, write the copy back to it", live=False),
    Key("boot_without_lists", kinds.word("serve", "refuse"), "serve", "start without any copy of a list: serve answers by the rest of the policy (/ready says 503), refuse opens no listener", live=False),
    Key("lists.*.kind", kinds.word(DEVICES, PAIRS, SUBSCRIBERS), DEVICES, "what the list holds: devices (identifiers, TACs, ranges), pairs (a device with its SIM, by IMSI), or subscribers (IMSIs)"),
    Key("lists.*.signers", kinds.FILE, None, "OpenSSH allowed_signers file of those whose releases are accepted for this list; required unless the list is local"),
    Key("lists.*.local", kinds.FLAG, False, "instead of signers: changed by eir add and eir remove, and by no release"),
    Key("lists.*.revoked", kinds.FILE, None, "revoked keys, as ssh-keygen -Y verify -r takes them; nothing is revoked if left out"),
    Key("lists.*.threshold", kinds.whole(1, 16), 1, "how many different keys, of different signers, must sign a release"),
    Key("lists.*.shrink_max", kinds.percentage(100), 0.20, "share of the devices in force that one change may take away without --force (a TAC counts as a million)"),
    Key("lists.*.growth_max", kinds.percentage(100_000), 0.20, "share of the devices in force that one change may add without --force"),
    Key("lists.*.change_min", kinds.whole(0, 10**9), 1000, "devices: a change that takes away fewer, or adds fewer, is within shrink_max or growth_max, whatever part of the list they are"),
    Key("lists.*.serial_step_max", kinds.whole(1, 10**15), 1_000_000, "how far a release's serial may be above the highest that was ever accepted; a list's first release may have any up to 10^16"),
    Key("lists.*.range_tacs_max", kinds.whole(1, 10**8), 1000, "TACs that one range may span"),
    Key("lists.*.bad_rows_max", kinds.whole(0, 10**9), 100, "rows without a valid identifier that a release may have; with one more it is refused"),
    Key("layouts.*.encoding", kinds.ENCODING, "utf-8", "how an agency's own data files are written"),
    Key("layouts.*.separator", kinds.SEPARATOR, ",", "what stands between the fields of a row; fields may stand in double quotes"),
    *(Key(f"layouts.*.columns.{name}", kinds.COLUMN, None, says) for name, says in COLUMNS.items()),
    Key("layouts.*.dates", kinds.DATES, None, "how dates are written; if left out: 20261231, 2026-12-31 or 2026-12-31T12:00:00Z"),
    Key("layouts.*.added", kinds.many(kinds.CODE), (), "codes in the column `action` of rows that are in the list, or come into it"),
    Key("layouts.*.removed", kinds.many(kinds.CODE), (), "codes of rows that are not in it, or leave it"),
    Key("layouts.*.reasons", kinds.many(kinds.CODE_AND_REASON), (), "the reasons that codes stand for; other texts stay as they are"),
    Key("layouts.*.header.begins", kinds.CODE, REQUIRED, "what the record before all other lines begins with"),
    Key("layouts.*.header.count", kinds.POSITION, None, "which of its fields says how many rows there are; a release with more or fewer is refused"),
    Key("layouts.*.header.date", kinds.POSITION, None, "which of its fields has to be a date"),
    Key("layouts.*.skip", kinds.whole(0, 100), 0, "lines behind that record, or at the file's begin, that mean nothing (a line with names, where columns have positions)"),
    Key("layouts.*.trailer.begins", kinds.CODE, REQUIRED, "what the record behind all other lines begins with"),
    Key("layouts.*.trailer.count", kinds.POSITION, None, "as in the header record"),
    Key("layouts.*.trailer.date", kinds.POSITION, None, "as in the header record"),
    Key("inbox", kinds.FOLDER, None, "drop folder: signed releases that arrive in it are loaded, and moved to its accepted/ or refused/; no folder is watched if left out", live=False),
    Key("inbox_patience_s", kinds.seconds(1, 30 * 86400), 3600, "how long a release in the drop folder may stay incomplete, and a file that no release names", live=False),
    Key("policy.rules[].name", kinds.RULE_NAME, None, "what metrics and logs call the rule; its number if left out"),
    Key("policy.rules[].answer", kinds.STATUS, REQUIRED, "status that the rule gives if all its conditions hold"),
    Key("policy.rules[].observe", kinds.FLAG, False, "count and log what the rule would have answered, and go on with the next"),
    Key("policy.rules[].list", kinds.LIST_NAME, None, "condition: in this list is the device, the device with this SIM (pairs), or the SIM (subscribers); waits for the list's first load"),
    Key("policy.rules[].not_list", kinds.LIST_NAME, None, "condition: not in this list; waits for the list's first load"),
    Key("policy.rules[].device_bound_elsewhere", kinds.LIST_NAME, None, "condition: this list of pairs has the device, but not with this SIM"),
    Key("policy.rules[].subscriber_bound_elsewhere", kinds.LIST_NAME, None, "condition: this list of pairs has the SIM, but not with this device"),
    Key("policy.rules[].tac", kinds.many(kinds.TAC), (), "condition: the device's Type Allocation Code"),
    Key("policy.rules[].software_version", kinds.many(kinds.SOFTWARE_VERSION), (), "condition: the device's Software-Version"),
    Key("policy.rules[].imsi", kinds.many(kinds.IMSI_PREFIX), (), "condition: how the subscriber's IMSI begins (roamers, by MCC and MNC)"),
    Key("policy.rules[].origin_host", kinds.many(kinds.IDENTITY), (), "condition: the Origin-Host that asks"),
    Key("policy.rules[].origin_realm", kinds.many(kinds.IDENTITY), (), "condition: the Origin-Realm that asks"),
    Key("policy.default", kinds.STATUS, Status.WHITELISTED, "status if no rule holds"),
    Key("policy.no_identity", kinds.STATUS_OR_ERROR, Status.WHITELISTED, "for a request without IMEI and MEID; error is 5005"),
    Key("policy.bad_identity", kinds.STATUS_OR_ERROR, Status.WHITELISTED, "for a request whose IMEI or MEID is not valid; error is 5004"),
    Key("policy.override.answer", kinds.STATUS, REQUIRED, "the one status that everything gets while the section is there"),
    Key("policy.override.until", kinds.MOMENT, None, "when the override ends by itself"),
    Key("http", kinds.HTTP, "127.0.0.1:9868", "where /metrics, /live and /ready are", live=False),
    Key("workers", kinds.WORKERS, 1, "processes that answer; `auto`: one for each processor", live=False),
    Key("log.level", kinds.word("debug", "info", "warning", "error"), "info", "lowest level of lines that are written", field="log_level"),
    Key("privacy.identifiers", kinds.one_of({"short": False, "full": True}), False, "IMEI and IMSI in logs: their first and last digits, or whole", field="full_identifiers"),
)  # fmt: skip

ROOT = tree(SECTIONS, TABLE)
"""The table as the reader walks it."""

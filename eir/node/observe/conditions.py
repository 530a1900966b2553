"""Table of all conditions that need an operator's attention.

The table is the one source of `eir status`, of the readiness, of the warnings on the web page, and of deploy/prometheus/alerts.yml,
which `scripts/alerts` writes. A node evaluates the expressions on its own metrics (alerts.py).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from eir.node.observe import promql

CRITICAL, WARNING, INFO = "critical", "warning", "info"
"""Severities. CRITICAL: phones are rejected, or blocked phones pass; WARNING: this may follow; INFO: `eir status` leaves it out."""
SUBJECTS_SHOWN = 10
"""Maximum number of subjects (lists, peers, …) that the text of a condition names."""
REGULAR_DIAMETER = "2001|10415:5422"
REGULAR_N5G = "200|404:ERROR_EQUIPMENT_UNKNOWN"
REGULAR_MAP = "whitelisted|blacklisted|greylisted|unknown|context_not_supported"
"""Results that are no errors, by protocol, as regular expressions."""


@dataclass(frozen=True)
class NodeCondition:
    """Row of the table of conditions."""

    alert: str
    """Name of the alert, whose row in deploy/RUNBOOK.md has the remedy; empty for a condition without an alert."""
    severity: str
    expression: str
    """PromQL expression, which Prometheus and the node evaluate."""
    text: str
    """Text in `eir status`. `{}` stands for all subjects, `{each}` for one subject; each subject then has its own text."""
    summary: str
    """Text of the alert in Prometheus."""
    description: str = ""
    """Further text of the alert in Prometheus."""
    lasting: str = "0s"
    """Time for which the expression must hold before the alert fires."""
    wait_s: float = 0.0
    """Seconds for which the expression must hold before `eir status` has the text; at least 1 minute shorter than `lasting`."""
    degrades: bool = False
    """True if the node is not `ready` while the expression holds."""

    @cached_property
    def _evaluate(self) -> promql.Expression:
        return promql.parse(self.expression)

    def subjects(self, metrics: promql.Metrics) -> Sequence[str]:
        """Return the subjects for which the expression holds: lists, peers, reasons; an empty text for the node itself."""
        return [" ".join(value for _, value in labels if value) for labels in self._evaluate(metrics)]

    def troubles(self, since: Mapping[str, float], details: Mapping[str, str]) -> "Iterator[Trouble]":
        """Yield the texts of this condition for `eir status`, each with its subjects.

        `since`: Unix time since which the condition holds, by subject. `details`: details by subject; an empty subject is the node.
        """
        names = {subject: f"{subject} ({details[subject]})" if subject in details else subject for subject in since}
        if "{each}" in self.text:
            for subject, at in since.items():
                yield Trouble(self, self.text.format(each=names[subject]), [subject], at)
        elif since:
            shown = list(names.values())[:SUBJECTS_SHOWN]
            if len(names) > len(shown):
                shown.append(f"{len(names) - len(shown)} more")
            text = ": ".join([self.text.format(", ".join(shown)), *filter(None, [details.get("")])])
            yield Trouble(self, text, list(since), min(since.values()))


class Trouble(NamedTuple):
    """Text of `eir status` about a condition that holds now."""

    condition: NodeCondition
    text: str
    subjects: Sequence[str]
    """Affected lists, peers or other subjects."""
    since: float
    """Unix time since which the condition holds."""


NODE_CONDITIONS = (
    NodeCondition(
        "EirDown", CRITICAL, 'up{job="eir"} == 0 or max by (instance) (eir_answering_up) == 0',
        "the answering process does not answer",
        "{{ $labels.instance }} does not answer",
        lasting="1m", degrades=True,
        description="Most MMEs reject every phone while they reach no EIR.",
    ),
    # The second half sees the very first error, which increase() does not.
    NodeCondition(
        "EirInternalErrors", CRITICAL, 'increase(eir_diameter_errors_total{reason="internal"}[5m]) > 0 or (eir_diameter_errors_total{reason="internal"} unless eir_diameter_errors_total{reason="internal"} offset 5m)',
        "an internal error occurred, and its request was answered 5012 (event=fault)",
        "{{ $labels.instance }} failed on a request and answered 5012",
        description="The log has one line for each kind of fault, with its place in the program (event=fault).",
    ),
    NodeCondition(
        "EirSlow", WARNING, 'sum by (instance) (rate(eir_check_duration_seconds_bucket{le="0.05"}[5m])) < 0.99 * sum by (instance) (rate(eir_check_duration_seconds_bucket{le="+Inf"}[5m]))',
        "more than 1 % of the checks took longer than 50 ms in the last 5 minutes",
        "More than 1 % of the checks on {{ $labels.instance }} take longer than 50 ms",
        lasting="5m", wait_s=240,
    ),
    NodeCondition(
        "EirReloadFailed", WARNING, "eir_config_last_reload_successful == 0",
        "the changed configuration was refused; the previous one is in force",
        "{{ $labels.instance }} refused its changed configuration; the previous one is in force",
        description="`eir config` prints the errors. The node may not start with this file.",
    ),
    NodeCondition(
        "EirRestartNeeded", WARNING, "max by (instance, key) (eir_config_needs_restart) == 1",
        "keys whose new values need a restart: {}",
        "{{ $labels.instance }} needs a restart for the new value of {{ $labels.key }}",
        lasting="15m",
        description="The configuration was reloaded, but this key keeps its old value until a restart.",
    ),
    NodeCondition(
        "EirFilesRunOut", WARNING, "eir_process_open_fds > 0.9 * eir_process_max_fds",
        "processes with over 90 % of their permitted files open: {}",
        "The process {{ $labels.process }} of {{ $labels.instance }} has {{ $value }} open files, over 90 % of its limit",
        lasting="1m",
        description="At the limit the node accepts no more connections.",
    ),
    NodeCondition(
        "EirProcessRestarted", WARNING, "sum by (instance, process) (increase(eir_process_restarts_total[15m])) > 0",
        "processes that ended unexpectedly in the last 15 minutes and were restarted: {}",
        "The process {{ $labels.process }} of {{ $labels.instance }} ended unexpectedly and was restarted",
    ),
    NodeCondition(
        "EirPasswordGuessed", WARNING, 'sum by (instance) (increase(eir_clients_refused_total{interface="page",reason="locked_out"}[10m])) > 0',
        "the page locked out an address after wrong passwords in the last 10 minutes (event=client_refused)",
        "{{ $labels.instance }} locked out an address that tried passwords for its page",
        description="The log has the address (event=client_refused).",
    ),
)  # fmt: skip
PEER_CONDITIONS = (
    NodeCondition(
        "EirPeerLost", WARNING, "eir_peer_up == 0 unless on (instance, peer) eir_peer_disabled == 1 unless on (instance) time() - eir_start_timestamp_seconds < 60",
        "peers without a connection: {}",
        "{{ $labels.peer }} has no connection to {{ $labels.instance }}",
        lasting="2m",
    ),
    NodeCondition(
        "", WARNING, "eir_peer_disabled == 1",
        "peer {each} is disabled",
        "",
    ),
    NodeCondition(
        "EirNoPeers", CRITICAL, "sum by (instance) (eir_peer_up) == 0 unless on (instance) time() - eir_start_timestamp_seconds < 60",
        "no peer is connected",
        "No peer is connected to {{ $labels.instance }}",
        lasting="2m",
    ),
    NodeCondition(
        "EirNotRegistered", WARNING, "max by (instance) (eir_nrf_registered) == 0",
        "not registered with any NRF; AMFs that know the node are still answered",
        "{{ $labels.instance }} is not registered with any NRF",
        lasting="3m",
    ),
    NodeCondition(
        "EirFeedFails", WARNING, 'sum by (instance, user, result) (increase(eir_feed_rows_total{result=~"422|5.."}[15m])) > 0',
        "rows of a register were rejected in the last 15 minutes, by sender and HTTP status: {}",
        "{{ $labels.instance }} rejects rows of {{ $labels.user }} (HTTP {{ $labels.result }})",
    ),
    NodeCondition(
        "EirInterfaceFaulty", WARNING, "max by (instance, interface, part) (eir_interface_faulty) > 0",
        "interfaces whose process does not run, or whose file cannot be used: {}",
        "The interface {{ $labels.interface }} of {{ $labels.instance }} has a fault: {{ $labels.part }}",
        lasting="1m",
    ),
    NodeCondition(
        "EirDeviceAuthenticityFails", WARNING, 'sum by (instance, result) (increase(eir_device_authenticity_total{result=~"5.."}[15m])) > 0',
        "requests to DeviceAuthenticity failed in the last 15 minutes with HTTP status {}",
        "{{ $labels.instance }} answers requests for DeviceAuthenticity with HTTP {{ $labels.result }}",
    ),
    NodeCondition(
        "EirPathLost", WARNING, 'sum by (instance, peer) (eir_sctp_paths{state="down"}) > 0',
        "peers with SCTP paths that are down: {}",
        "{{ $value }} SCTP paths between {{ $labels.instance }} and {{ $labels.peer }} are down",
        lasting="1m",
    ),
    NodeCondition(
        "EirPeerSilent", INFO, "eir_peer_up == 1 and on (instance, peer) time() - eir_peer_last_request_timestamp_seconds > 6 * 3600",
        "peers without a request for 6 h: {}",
        "{{ $labels.peer }} is connected to {{ $labels.instance }}, but has sent no request for 6 h",
    ),
    NodeCondition(
        "EirPeersRefused", WARNING, "sum by (instance, reason) (rate(eir_peers_refused_total[10m])) > 0",
        "connections were refused in the last 10 minutes: {} (event=peer_refused)",
        "{{ $labels.instance }} has refused connections for 10 minutes: {{ $labels.reason }}",
        lasting="10m", wait_s=540,
        description="The log has the address, and the setting that would accept it (event=peer_refused).",
    ),
    NodeCondition(
        "EirConnectionRefused", WARNING, "max by (instance, peer) (eir_peer_refused) == 1",
        "peers that were refused, or refused the node: {}",
        "The last connection between {{ $labels.instance }} and {{ $labels.peer }} was refused",
        lasting="10m",
        description="`eir peers` has the reason.",
    ),
    NodeCondition(
        "EirErrorAnswers", CRITICAL, f'sum by (instance, peer) (rate(eir_diameter_answers_total{{result!~"{REGULAR_DIAMETER}"}}[5m])) > 0.01 * sum by (instance, peer) (rate(eir_diameter_answers_total[5m]))',
        "peers with errors in more than 1 % of their answers: {}",
        "More than 1 % of the answers to {{ $labels.peer }} are errors ({{ $labels.instance }})",
        lasting="5m", wait_s=240,
        description="Most MMEs reject a phone whose check ends in an error. eir_diameter_answers_total has the result codes.",
    ),
    NodeCondition(
        "EirErrorResponses", CRITICAL, f'sum by (instance, peer) (rate(eir_sbi_responses_total{{result!~"{REGULAR_N5G}"}}[5m])) > 0.01 * sum by (instance, peer) (rate(eir_sbi_responses_total[5m])) or sum by (instance, peer) (rate(eir_map_answers_total{{result!~"{REGULAR_MAP}"}}[5m])) > 0.01 * sum by (instance, peer) (rate(eir_map_answers_total[5m]))',
        "peers with errors in more than 1 % of their responses: {}",
        "More than 1 % of the responses to {{ $labels.peer }} are errors ({{ $labels.instance }})",
        lasting="5m", wait_s=240,
        description="An AMF or MSC may reject a phone whose check ends in an error. eir_sbi_responses_total and eir_map_answers_total have the results.",
    ),
    NodeCondition(
        "EirHlrAway", CRITICAL, 'min by (instance, peer) (eir_gsup_hlr_up) == 0 or sum by (instance, peer) (rate(eir_gsup_not_passed_total{reason!="no_hlr"}[5m])) > 0',
        "peers whose HLR did not answer in the last 5 minutes, so that phones could not attach: {}",
        "{{ $labels.instance }} cannot reach the HLR for {{ $labels.peer }}: phones of {{ $labels.peer }} cannot attach",
        lasting="1m",
    ),
    NodeCondition(
        "EirShedding", WARNING, "sum by (instance, peer, reason) (rate(eir_shed_total[5m])) > 0",
        "peers whose requests above a rate limit were rejected in the last 5 minutes: {}",
        "{{ $labels.instance }} rejects requests of {{ $labels.peer }} above a rate limit ({{ $labels.reason }})",
        lasting="1m",
    ),
    NodeCondition(
        "EirCertificateExpires", WARNING, "eir_tls_certificate_expires_timestamp_seconds - time() < 14 * 86400",
        "the node's certificate expires within 14 days",
        "The certificate of {{ $labels.instance }} expires in {{ $value | humanizeDuration }}",
        description="After that, no peer accepts the certificate, and a lost TLS connection cannot be opened again.",
    ),
    NodeCondition(
        "EirIdentityErrors", WARNING, 'sum by (instance, peer, kind) (rate(eir_identity_errors_total[10m])) > on (instance, peer) group_left () 0.01 * sum by (instance, peer) (rate(eir_diameter_messages_total{command="ME-Identity-Check",kind="request",direction="in"}[10m]))',
        "peers without a valid IMEI in more than 1 % of their requests: {}",
        "More than 1 % of the requests from {{ $labels.peer }} have no valid IMEI ({{ $labels.kind }}, {{ $labels.instance }})",
        lasting="10m", wait_s=540,
        description="`none`: the request has no identifier; `bad`: its identifier is invalid. No list contains such a device.",
    ),
)  # fmt: skip
LIST_CONDITIONS = (
    NodeCondition(
        "EirNoLists", CRITICAL, 'up{job="eir"} == 1 unless on (instance) eir_list_serial',
        "no list is in force, so no check finds a listed device",
        "{{ $labels.instance }} has no list in force",
        lasting="1m",
    ),
    NodeCondition(
        "EirListMissing", CRITICAL, 'max by (list) (eir_list_missing) == 1 or count by (list) (eir_list_serial) < on () group_left () count(up{job="eir"} == 1)',
        "list {each} has never been loaded",
        "A running node does not have the list {{ $labels.list }}",
        lasting="2m", degrades=True,
    ),
    NodeCondition(
        "EirListsDiffer", WARNING, "max by (list) (eir_list_serial) > min by (list) (eir_list_serial)",
        "nodes answer from different releases of {}",
        "Nodes answer from different releases of {{ $labels.list }}",
        lasting="2m",
    ),
    # Local lists have serial 0. A node that does not follow yet has another serial, which EirListsDiffer reports.
    NodeCondition(
        "EirListContentDiffers", WARNING, "max by (list) (eir_list_content_digest) > min by (list) (eir_list_content_digest) unless max by (list) (eir_list_serial) > min by (list) (eir_list_serial)",
        "nodes have different entries of {}",
        "Nodes have the same serial of {{ $labels.list }}, but different entries",
        lasting="2m",
        description="A local change was not made on every node, or a node does not follow its store.",
    ),
    NodeCondition(
        "EirReleaseOverdue", WARNING, "time() - max by (list) (eir_release_last_accepted_timestamp_seconds) > 1.5 * max by (list) (eir_release_interval_seconds) + 3600",
        "lists whose next release is overdue: {}",
        "The next release of {{ $labels.list }} is overdue: the last one came {{ $value | humanizeDuration }} ago",
        description="The list stays in force. Check whether a release was refused (`eir history`). Otherwise ask the publisher.",
    ),
    NodeCondition(
        "EirListExpiresSoon", WARNING, "0 < eir_list_expires_timestamp_seconds - time() < 3 * 86400",
        "lists that expire within 3 days: {}",
        "{{ $labels.list }} expires in {{ $value | humanizeDuration }} ({{ $labels.instance }})",
    ),
    NodeCondition(
        "EirListExpired", CRITICAL, "eir_list_expires_timestamp_seconds - time() <= 0",
        "list {each} is past its expiry",
        "{{ $labels.list }} is past its expiry, but stays in force ({{ $labels.instance }})",
    ),
    NodeCondition(
        "EirReleaseRefused", WARNING, "time() - eir_release_last_refused_timestamp_seconds < 3600",
        "lists with a refused release in the last hour (eir history): {}",
        "A release for {{ $labels.list }} was refused in the last hour",
        description="`eir history` has the reason. The list in force has not changed.",
    ),
    NodeCondition(
        "EirForced", WARNING, "time() - max by (list) (eir_release_last_forced_timestamp_seconds) < 86400",
        "lists for which an operator lifted a limit in the last day (eir history): {}",
        "An operator lifted a limit of {{ $labels.list }} in the last day",
        description="`eir history` has the user and the limit. The forced list may block phones that it should not.",
    ),
    NodeCondition(
        "EirInboxUnusable", CRITICAL, "eir_inbox_usable == 0",
        "the drop folder cannot be used (eir inbox)",
        "{{ $labels.instance }} cannot use its drop folder, so no release is loaded from it",
        lasting="2m",
    ),
    NodeCondition(
        "EirInboxWaiting", WARNING, "eir_inbox_waiting_releases > 0",
        "releases wait in the drop folder (event=release_waiting)",
        "{{ $value }} releases wait in the drop folder of {{ $labels.instance }}",
        lasting="15m", wait_s=840,
        description="The log has the reason for each release (event=release_waiting).",
    ),
    NodeCondition(
        "EirSourceUnreached", WARNING, "time() - eir_source_reached_timestamp_seconds > eir_source_patience_seconds",
        "lists whose source is not reached: {} (eir pull)",
        "{{ $labels.instance }} has not reached the source of {{ $labels.list }} for {{ $value | humanizeDuration }}",
        lasting="1m",
        description="`eir pull` prints the reason. The list in force has not changed.",
    ),
    NodeCondition(
        "EirListBehind", WARNING, "time() - eir_source_ahead_timestamp_seconds > eir_source_patience_seconds",
        "lists behind their source for longer than `source.patience`: {} (eir pull)",
        "{{ $labels.list }} on {{ $labels.instance }} has been behind its source for {{ $value | humanizeDuration }}",
        lasting="1m",
        description="The source offers a newer release, which is not in force. `eir pull` prints the reason.",
    ),
    # A node tries again after five minutes at most.
    NodeCondition(
        "EirAcknowledgementsNotTaken", WARNING, 'sum by (instance, list) (increase(eir_source_acknowledgements_total{outcome="not_given"}[30m])) > 0 unless sum by (instance, list) (increase(eir_source_acknowledgements_total{outcome="given"}[30m])) > 0',
        "lists whose source does not accept acknowledgements: {} (event=acknowledgement_not_given)",
        "The source of {{ $labels.list }} does not accept acknowledgements of {{ $labels.instance }}",
        lasting="30m", wait_s=1740,
        description="The publisher sees this node as late or silent. The log has the reason (event=acknowledgement_not_given).",
    ),
    NodeCondition(
        "EirStoreAway", WARNING, "eir_store_up == 0",
        "the store is away; the node answers from memory",
        "{{ $labels.instance }} cannot reach its store; it answers from memory",
        lasting="30s", degrades=True,
    ),
    # A node that may heal the store does so within seconds.
    NodeCondition(
        "EirStoreLostData", WARNING, "max by (instance, list) (eir_store_lost_data) == 1",
        "lists of which the store lost data: {}",
        "The store lost data of {{ $labels.list }}; {{ $labels.instance }} answers from memory",
        lasting="1m", degrades=True,
        description="A node that starts now has at most its own last good copy. Load the newest release again.",
    ),
    NodeCondition(
        "EirHistoryDiffers", CRITICAL, "max by (instance) (eir_history_differs) == 1",
        "in the last day the store replaced changes that this node held, or the node's journal was damaged (eir history --verify)",
        "The store replaced changes that {{ $labels.instance }} held, or the journal of this node was damaged",
        lasting="1m",
        description="A failover of Redis lost changes, or someone overwrote them. The journal has both chains. `eir history --verify` prints the difference.",
    ),
    NodeCondition(
        "EirChangesLost", CRITICAL, "max by (instance, list) (eir_list_lost_changes) == 1",
        "lists of which the store lost changes: {} (event=lost_changes_kept)",
        "The store lost changes of {{ $labels.list }}, which {{ $labels.instance }} wrote to a file",
        lasting="1m", degrades=True,
        description="Devices that these changes blocked may be free. Apply the changes in the file (event=lost_changes_kept), then delete it.",
    ),
    NodeCondition(
        "EirHistoryNearlyFull", WARNING, 'max by (instance) (eir_history_bytes{chain="main"} / eir_history_max_bytes{chain="main"}) > 0.8',
        "the history uses more than 80 % of history.max_bytes",
        "The history of {{ $labels.instance }} uses {{ $value | humanizePercentage }} of history.max_bytes",
        lasting="1m",
        description="No record is deleted before `history.keep` ends. Raise `history.max_bytes` if the disk has room, or shorten `history.keep`.",
    ),
    NodeCondition(
        "EirListUnrecorded", CRITICAL, "max by (instance, list) (eir_list_unrecorded) == 1",
        "lists in force whose newest change the history lacks: {} (eir history)",
        "The history of {{ $labels.instance }} lacks the newest change of {{ $labels.list }}",
        lasting="1m",
        description="The node cannot write its journal. The list is in force. Check the free disk space and `event=journal_failed`.",
    ),
    NodeCondition(
        "EirCopyFailed", WARNING, "max by (instance, list) (eir_copy_failed) == 1 or max by (instance, list) (eir_list_from_copy) == 1",
        "lists whose last good copy cannot be written or read, or is in force without the store: {}",
        "{{ $labels.instance }} cannot write or read its last good copy of {{ $labels.list }}, or answers from it",
        lasting="1m", degrades=True,
        description="The log has the reason (event=copy_failed). Without the copy the node cannot start while the store is away.",
    ),
    NodeCondition(
        "EirClockDiffers", WARNING, "eir_clock_difference_seconds > 60",
        "the host's clock and the time of the node differ by more than 1 minute (event=clock_jumped)",
        "The clock of {{ $labels.instance }} and the time of the node differ by {{ $value | humanizeDuration }}",
        description="Rows with an end and periods of grace go by the time of the node. Check NTP.",
    ),
    NodeCondition(
        "EirFollowLag", WARNING, "eir_follow_lag_seconds > 30",
        "the node has been behind its store for more than 30 s",
        "{{ $labels.instance }} has been behind its store for {{ $value | humanizeDuration }}",
        lasting="1m",
    ),
    NodeCondition(
        "EirOverrideActive", WARNING, "eir_override_active == 1",
        "the policy's override gives every check the same answer",
        "The policy's override is on: {{ $labels.instance }} gives every check the same answer",
    ),
    # Three times as many blocked as in the day before, more than one in a hundred, and thirty at least: the list may be wrong.
    # Probes and auditors ask about listed phones on purpose.
    # A phone that was blocked keeps its SIM invalid until it is switched off, so a rollback must come soon.
    NodeCondition(
        "EirBlockingJumped", CRITICAL, 'sum(rate(eir_checks_total{status="blacklisted",probe=""}[10m])) / sum(rate(eir_checks_total{probe=""}[10m])) > (3 * sum(rate(eir_checks_total{status="blacklisted",probe=""}[1d] offset 10m)) / sum(rate(eir_checks_total{probe=""}[1d] offset 10m)) or vector(0)) > 0.01 and sum(increase(eir_checks_total{status="blacklisted",probe=""}[10m])) >= 30',
        "the share of blocked checks is more than three times that of the day before",
        "{{ $value | humanizePercentage }} of all checks are blocked, more than three times the share of the day before",
        lasting="5m", wait_s=240,
    ),
    NodeCondition(
        "EirSightingsDropped", WARNING, "sum by (instance, reason) (increase(eir_sightings_dropped_total[10m])) > 0",
        "checks are missing in the record: {}",
        "Checks are missing in the record of {{ $labels.instance }} ({{ $labels.reason }})",
        lasting="10m", wait_s=540,
    ),
    NodeCondition(
        "EirFirstSightingsRefused", CRITICAL, "max by (instance) (eir_first_seen_refused_devices) > 0",
        "rows in the store's record of first sightings break a bound and are left out (event=first_seen_refused)",
        "The store's record of first sightings has rows that {{ $labels.instance }} leaves out: they break a bound",
        degrades=True,
    ),
    NodeCondition(
        "EirFirstSightingsUnrecorded", WARNING, "sum by (instance, peer) (increase(eir_first_seen_unrecorded_checks_total[10m])) > 0",
        "peers with more new devices than `first_seen.new_per_peer`; further devices are not recorded: {}",
        "{{ $labels.instance }} records no more new devices of {{ $labels.peer }} today: first_seen.new_per_peer is reached",
        lasting="5m", wait_s=240,
    ),
    NodeCondition(
        "EirEventsDropped", WARNING, "sum by (instance, to, reason) (increase(eir_events_dropped_total[10m])) > 0",
        "receivers that events do not reach: {}",
        "Events of {{ $labels.instance }} do not reach the {{ $labels.to }} ({{ $labels.reason }})",
        lasting="5m", wait_s=240,
    ),
)  # fmt: skip
GROUPS = {"eir-nodes": NODE_CONDITIONS, "eir-peers": PEER_CONDITIONS, "eir-lists": LIST_CONDITIONS}
"""Conditions by the group of deploy/prometheus/alerts.yml."""
CONDITIONS = (*NODE_CONDITIONS, *PEER_CONDITIONS, *LIST_CONDITIONS)

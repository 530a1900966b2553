"""Table of all metrics, and resource usage of the node's processes from the kernel.

Only this module imports the Prometheus library. Parts count in plain integers and dicts. The manager builds a `Snapshot`
from the counts. `merge` combines the snapshots of several processes, and `exposition` renders a snapshot for a scrape.
"""

import operator
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from eir.interfaces import INTERFACES
from eir.schema import DETAILS, Family

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

Labels = tuple[str, ...]
Snapshot = dict[str, Mapping[Any, float]]
"""Metric name → label values → value.

The label of a histogram is the upper bound of a cumulative bucket, or `sum`.
"""


CHECK_METRICS = (
    Family("eir_checks_total", "counter", ("status", "list", "rule", "protocol", "probe"), "Answered checks, by status, deciding list and rule, and protocol; `probe` is set only for checks of probes"),
    Family("eir_observed_total", "counter", ("rule", "status"), "Checks that a rule with `observe: true` would have answered"),
    Family("eir_identity_errors_total", "counter", ("kind", "peer"), "Requests without a device identifier (none), or with an invalid one (bad)"),
    Family("eir_check_duration_seconds", "histogram", (), "Time (s) from the read that completed a request to the write of its answer"),
    *(family for each in INTERFACES if each.server for family in each.families),
    *(family for each in INTERFACES for family in each.attendant_families),
)  # fmt: skip
PEER_METRICS = (
    Family("eir_peer_up", "gauge", ("peer",), "1 if the peer has an open connection; absent for an AMF without one", "max"),
    Family("eir_peer_disabled", "gauge", ("peer",), "1 if the peer is out of service by `eir peer disable`", "max"),
    Family("eir_peer_last_request_timestamp_seconds", "gauge", ("peer",), "Time of the peer's last request", "max"),
    Family("eir_peers_refused_total", "counter", ("reason",), "Refused connections and capabilities exchanges"),
    Family("eir_peer_refused", "gauge", ("peer",), "1 if the last connection of the peer was refused by the node or by the peer", "max"),
    Family("eir_shed_total", "counter", ("peer", "reason"), "Requests that got the overload answer instead of a check"),
    Family("eir_sctp_paths", "gauge", ("peer", "state"), "Number of SCTP paths to the addresses of connected peers, by state: up or down"),
    Family("eir_sctp_retransmissions_total", "counter", ("peer",), "Retransmitted SCTP DATA chunks"),
    Family("eir_sctp_restarts_total", "counter", ("peer",), "SCTP associations that the peer restarted"),
)  # fmt: skip
LIST_METRICS = (
    Family("eir_first_seen_devices_total", "counter", ("change",), "Devices added to the record of first sightings (new; left_list: no longer registered; merged: from another node or an import), or removed from this record (listed: now registered; unseen: for the time `remember`), or changed by `eir first-seen undo` (undone)"),
    Family("eir_last_device_changes_total", "counter", ("change",), "SIMs that a node recorded in another device (changed), and rows that it removed from the list of last devices because they ended long ago (removed)"),
    Family("eir_last_device_unrecorded_checks_total", "counter", ("peer",), "Checks whose new SIM has no last device, because the peer exceeded `last_device.new_per_peer`"),
    Family("eir_first_seen_refused_devices", "gauge", (), "Devices whose row in the store's record of first sightings breaks a bound, and is left out", "max"),
    Family("eir_first_seen_unrecorded_checks_total", "counter", ("peer",), "Checks whose new device is not recorded, because the peer exceeded `first_seen.new_per_peer`"),
    Family("eir_list_entries", "gauge", ("list",), "Number of entries of the list in force; a TAC counts as 1, and each listed device of this TAC also as 1", "min"),
    Family("eir_list_missing", "gauge", ("list",), "1 for a list of a rule in force that has never been loaded", "max"),
    Family("eir_list_pending", "gauge", ("list",), "Number of entries of the list whose begin is later than now", "min"),
    Family("eir_list_serial", "gauge", ("list",), "Serial of the release in force", "min"),
    Family("eir_list_content_digest", "gauge", ("list",), "First 48 bits of the content digest of the list: equal for equal lists", "min"),
    Family("eir_list_issued_timestamp_seconds", "gauge", ("list",), "Time of issue of the release in force", "min"),
    Family("eir_list_expires_timestamp_seconds", "gauge", ("list",), "Time of expiry of the release in force (it stays in force)", "min"),
    Family("eir_release_last_accepted_timestamp_seconds", "gauge", ("list",), "Time at which a release of the list was last put in force", "max"),
    Family("eir_release_interval_seconds", "gauge", ("list",), "Median time (s) between the last releases of the list; absent before the fourth release", "max"),
    Family("eir_release_last_refused_timestamp_seconds", "gauge", ("list",), "Time at which a release of the list was last refused", "max"),
    Family("eir_release_last_forced_timestamp_seconds", "gauge", ("list",), "Time at which an operator last lifted a limit of the list (`--force`, `reset-serial`)", "max"),
    Family("eir_releases_total", "counter", ("list", "outcome"), "Releases by outcome, from the node's journal; `forced`: an operator lifted a limit", "max"),
)  # fmt: skip
SOURCE_METRICS = (
    *(family for each in INTERFACES if each.service for family in each.families),
    Family("eir_clients_refused_total", "counter", ("interface", "reason"), "Connections of clients (not peers) that the node refused, or closed for a fault; `page`: requests with a wrong password"),
    Family("eir_interface_faulty", "gauge", ("interface", "part"), "1 if the interface has no running process (process), or cannot use its file (users, tokens, numbers, files)", "max"),
    Family("eir_inbox_usable", "gauge", (), "1 if the node can process the drop folder; absent without a drop folder", "min"),
    Family("eir_inbox_waiting_releases", "gauge", (), "Number of waiting releases in the drop folder; absent without a drop folder", "max"),
    Family("eir_source_reached_timestamp_seconds", "gauge", ("list",), "Time at which the node last received a valid index from the list's source; before the first index, the node's start", "max"),
    Family("eir_source_patience_seconds", "gauge", ("list",), "Value (s) of `lists.*.source.patience`", "max"),
    Family("eir_source_ahead_timestamp_seconds", "gauge", ("list",), "Time at which the source first offered a serial above the one in force; absent if it offers none", "max"),
    Family("eir_source_serial", "gauge", ("list",), "Newest serial offered by the source", "max"),
    Family("eir_source_pulls_total", "counter", ("list", "outcome"), "Polls of the source: loaded, unchanged, refused, waiting, unreached, or elsewhere (another node is pulling)"),
    Family("eir_source_faults_total", "counter", ("list", "reason"), "Failed polls of the source, by reason"),
    Family("eir_source_acknowledgements_total", "counter", ("list", "outcome"), "Acknowledgements: given (accepted by the source), or not_given"),
    Family("eir_source_bytes_total", "counter", ("list",), "Bytes fetched from the source"),
)  # fmt: skip
STORE_METRICS = (
    Family("eir_store_up", "gauge", (), "1 if the store answers", "min"),
    Family("eir_store_errors_total", "counter", ("cause",), "Failures of the store"),
    Family("eir_store_lost_data", "gauge", ("list",), "1 if the store lost the list, or has an older state of it than the node put in force", "max"),
    Family("eir_copy_failed", "gauge", ("list",), "1 if the last good copy of the list cannot be read, written or written back", "max"),
    Family("eir_list_from_copy", "gauge", ("list",), "1 if the list in force comes from the last good copy of the node, and the store has not confirmed it", "max"),
    Family("eir_history_last_record", "gauge", (), "Number of the newest line of the node's journal", "max"),
    Family("eir_history_last_digest", "gauge", (), "First 48 bits of the SHA-256 of the newest line of the node's journal", "max"),
    Family("eir_history_bytes", "gauge", ("chain",), "Size (bytes) of the node's journal: main, and the rows of registers (feed)", "max"),
    Family("eir_history_max_bytes", "gauge", ("chain",), "Value (bytes) of `history.max_bytes` (main) and `history.feed_max_bytes` (feed)", "max"),
    Family("eir_history_differs", "gauge", (), "1 if, in the last day, the store replaced changes that this node held, or the node's journal was damaged", "max"),
    Family("eir_list_lost_changes", "gauge", ("list",), "1 if the node wrote changes that the store lost to a file, and did not apply them again", "max"),
    Family("eir_list_unrecorded", "gauge", ("list",), "1 if the node's journal lacks the newest change of the list in force", "max"),
    Family("eir_clock_difference_seconds", "gauge", (), "Difference (s) between the host's clock and the time of the node, by which rows and periods of grace end", "max"),
    Family("eir_follow_lag_seconds", "gauge", (), "Time (s) since the node last verified that it holds the content of the store", "max"),
    Family("eir_switch_longest_slice_seconds", "gauge", (), "Longest time (s) for which a list's switch to new content blocked the event loop", "max"),
    Family("eir_override_active", "gauge", (), "1 if the policy's override answers every check", "max"),
)  # fmt: skip
RECORD_METRICS = (
    Family("eir_sightings_total", "counter", (), "Checks written to the record of checks"),
    Family("eir_sightings_dropped_total", "counter", ("reason",), "Checks missing in the record: above `rate_max` (rate), recorder too slow (buffer), or disk fault (disk)"),
    Family("eir_sightings_bytes", "gauge", (), "Size (bytes) of the record of checks"),
    Family("eir_events_total", "counter", ("to",), "Events accepted by the receiver (webhook)"),
    Family("eir_events_dropped_total", "counter", ("to", "reason"), "Events lost: above `events_max` (rate), receiver down too long (queue), or refused by the receiver (refused)"),
)  # fmt: skip
PROCESS_METRICS = (
    Family("eir_tls_certificate_expires_timestamp_seconds", "gauge", (), "Time at which the node's own certificate expires; absent without TLS", "min"),
    Family("eir_config_last_reload_successful", "gauge", (), "0 from a refused reload, or while the configuration file has an error, else 1", "min"),
    Family("eir_config_needs_restart", "gauge", ("key",), "1 for each configuration key whose new value waits for a restart", "max"),
    Family("eir_answering_up", "gauge", (), "1 if the answering process has its lists and answers the manager", "min"),
    Family("eir_process_restarts_total", "counter", ("process",), "Restarts of the process after an unexpected end"),
    Family("eir_process_resident_memory_bytes", "gauge", ("process",), "Memory (bytes) of the process, including memory shared with others", "max"),
    Family("eir_process_cpu_seconds_total", "counter", ("process",), "Processor time (s) of the process", "max"),
    Family("eir_process_open_fds", "gauge", ("process",), "Number of open files and connections of the process", "max"),
    Family("eir_process_max_fds", "gauge", ("process",), "Maximum number of open files of the process; absent without a limit", "min"),
    Family("eir_start_timestamp_seconds", "gauge", (), "Time of the node's start", "max"),
    Family("eir_build_info", "gauge", ("version", "lane"), "Always 1; `version`: running version; `lane`: fast path for Diameter checks, `compiled`, or `none` (slow)", "max"),
)  # fmt: skip

FAMILIES = (
    *CHECK_METRICS,
    *PEER_METRICS,
    *LIST_METRICS,
    *SOURCE_METRICS,
    *STORE_METRICS,
    *RECORD_METRICS,
    *PROCESS_METRICS,
)
"""All metrics, in the order of a scrape."""

_FAMILY = {family.name: family for family in FAMILIES}
_MERGE: dict[str, Callable[[float, float], float]] = {"sum": operator.add, "min": min, "max": max}


def merge(snapshots: Iterable[Snapshot]) -> Snapshot:
    """Merge the metrics of several processes by sum, minimum or maximum, as `Family.merge` specifies.

    A metric without a row in FAMILIES is summed.
    """
    merged: dict[str, dict[Labels, float]] = {}
    for snapshot in snapshots:
        for name, samples in snapshot.items():
            family = _FAMILY.get(name)
            combine = _MERGE[family.merge if family else "sum"]
            into = merged.setdefault(name, {})
            for labels, value in samples.items():
                into[labels] = combine(into[labels], value) if labels in into else value
    return dict(merged)


def lasting_counters(snapshot: Snapshot) -> Snapshot:
    """Return the counters that are kept after a process has ended. The counters of the next process are added to them.

    Gauges, and values that are not summed, are left out.
    """
    return {
        name: samples
        for name, samples in snapshot.items()
        if name in _FAMILY and _FAMILY[name].kind != "gauge" and _FAMILY[name].merge == "sum"
    }


def by_label(values: Mapping[str, float]) -> dict[Labels, float]:
    """Convert a map (label value → number) to samples of a metric that has one label."""
    return {(label,): value for label, value in values.items()}


def times(values: Mapping[str, str | None]) -> dict[Labels, float]:
    """Convert a map (label value → ISO time) to samples of a metric that has one label.

    The samples are Unix times in seconds. Label values without a time are left out.
    """
    return {(label,): datetime.fromisoformat(text).timestamp() for label, text in values.items() if text}


def histogram(bounds: Sequence[float], counts: Sequence[int], total: float) -> dict[Labels, float]:
    """Convert the counts of a histogram to its samples.

    `counts`: number of values for each bound, and for values above the last bound. `total`: sum of all values.
    """
    samples: dict[Labels, float] = {}
    below = 0
    labels = [*(f"{bound:g}" for bound in bounds), "+Inf"]
    for bound, count in zip(labels, counts, strict=True):
        below += count
        samples[bound,] = below
    samples["sum",] = total
    return samples


def details(alert: str, by_subject: Mapping[str, str]) -> dict[Labels, float]:
    """Convert details of an alert's condition to samples of DETAILS. `by_subject`: text by subject; an empty subject is the node."""
    return {(alert, subject, text): 1.0 for subject, text in by_subject.items() if text}


def unknown(snapshot: Snapshot) -> list[str]:
    """Return names of metrics without a row in FAMILIES, which is an error of the program."""
    return sorted(snapshot.keys() - _FAMILY.keys() - {DETAILS})


def exposition(snapshot: Snapshot) -> bytes:
    """Render metrics in Prometheus' text format (CONTENT_TYPE). Metrics without a row in FAMILIES are left out."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_SnapshotCollector(snapshot))
    return generate_latest(registry)


class _SnapshotCollector(Collector):
    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        for family in FAMILIES:
            samples = self._snapshot.get(family.name, {})
            if family.kind == "histogram" and not samples:
                continue  # a histogram needs buckets; any other metric is rendered without samples, for its help text
            yield _metric(family, samples)


def _metric(family: Family, samples: Mapping[Labels, float]) -> Metric:
    if family.kind == "histogram":
        buckets = [(le, value) for (le,), value in samples.items() if le != "sum"]
        return HistogramMetricFamily(family.name, family.help, buckets=buckets, sum_value=samples["sum",])
    shape = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    metric = shape(family.name, family.help, labels=family.labels)
    for labels, value in samples.items():
        metric.add_metric(labels, value)
    return metric


PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
TICKS = os.sysconf("SC_CLK_TCK")
"""Number of units of processor time per second in /proc/PID/stat."""
PREFIX = "eir-"
"""Prefix of the names of child processes (`eir/node/processes/program.py`)."""
_OPEN_MAX = re.compile(r"^Max open files\s+(\d+)", re.MULTILINE)


class Usage(NamedTuple):
    """Resources that one process uses: memory, processor time, open files."""

    resident_bytes: int
    """Resident memory, including memory that is shared with other processes."""
    cpu_s: float
    """Processor time since the start of the process, user and system."""
    open_files: int
    open_files_max: int | None
    """None: there is no limit."""


def usage_metrics(manager: int) -> Snapshot:
    """Return the metrics about resource usage of the node's processes. `manager`: process id of the manager."""
    used = usage(manager)
    limits = {name: each.open_files_max for name, each in used.items() if each.open_files_max}
    return {
        "eir_process_resident_memory_bytes": by_label({name: each.resident_bytes for name, each in used.items()}),
        "eir_process_cpu_seconds_total": by_label({name: each.cpu_s for name, each in used.items()}),
        "eir_process_open_fds": by_label({name: each.open_files for name, each in used.items()}),
        "eir_process_max_fds": by_label(limits),
    }


def usage(manager: int) -> Mapping[str, Usage]:
    """Return memory, processor time and open files of the manager and of each child process, by process name.

    A process that ends during the call is left out.
    """
    used: dict[str, Usage] = {}
    with suppress(OSError):
        used["manager"] = _usage(manager)
    for child in _children(manager):
        with suppress(OSError):
            name = Path(f"/proc/{child}/comm").read_text().strip()
            if name.startswith(PREFIX):
                used[name.removeprefix(PREFIX)] = _usage(child)
    return used


def _children(pid: int) -> Iterator[int]:
    """Yield the process ids of a process's children."""
    with suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            children = (thread / "children").read_text()
            yield from map(int, children.split())


def _usage(pid: int) -> Usage:
    folder = Path(f"/proc/{pid}")
    _, _, after_name = (folder / "stat").read_text().rpartition(")")  # the name in parentheses may contain blanks
    fields = after_name.split()
    cpu_ticks = int(fields[11]) + int(fields[12])
    resident_pages = int(fields[21])
    open_files = sum(1 for _ in (folder / "fd").iterdir())
    limit = _OPEN_MAX.search((folder / "limits").read_text())
    open_files_max = int(limit[1]) if limit else None
    return Usage(resident_pages * PAGE_BYTES, cpu_ticks / TICKS, open_files, open_files_max)

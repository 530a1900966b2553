"""Every metric, on one page, and what the kernel reports of a node's processes; the only module that knows Prometheus.

Parts count in plain integers and dicts. The daemon makes a `Snapshot` of those: metric name → label values →
number. Snapshots of several workers merge as the table says, and `exposition` renders one for a scrape.
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
from eir.schema import Family

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

Labels = tuple[str, ...]
Snapshot = dict[str, Mapping[Any, float]]
"""Metric name → label values → value. A histogram has its cumulative buckets under its upper bounds and `sum`."""


FAMILIES: tuple[Family, ...] = (
    Family("eir_checks_total", "counter", ("status", "list", "rule", "protocol", "probe"), "Checks answered, by status, the list and the rule that decided, and the protocol that asked; `probe` stands only where a probe asked"),
    Family("eir_observed_total", "counter", ("rule", "status"), "Checks that a rule with `observe: true` would have answered"),
    Family("eir_identity_errors_total", "counter", ("kind", "peer"), "Requests without an identifier of a device (none), or with one that is not valid (bad)"),
    Family("eir_check_duration_seconds", "histogram", (), "From the read that completed a request to the write of its answer"),
    *(family for each in INTERFACES if each.server for family in each.families),
    *(family for each in INTERFACES for family in each.attendant_families),
    Family("eir_peer_up", "gauge", ("peer",), "Open connections of the peer: 0 none, 1 at least one; absent while an AMF has none that closed its last one in order", "max"),
    Family("eir_peer_disabled", "gauge", ("peer",), "Out of service by `eir peer disable`: 0 no, 1 yes", "max"),
    Family("eir_peer_last_request_timestamp_seconds", "gauge", ("peer",), "When the peer last sent a request", "max"),
    Family("eir_peers_refused_total", "counter", ("reason",), "Connections and capabilities exchanges that were refused"),
    Family("eir_shed_total", "counter", ("peer", "reason"), "Requests answered by the overload answer instead of a check"),
    Family("eir_sctp_paths", "gauge", ("peer", "state"), "Paths of SCTP to the addresses of connected peers, by state: up or down"),
    Family("eir_sctp_retransmissions_total", "counter", ("peer",), "DATA chunks of SCTP that were sent again"),
    Family("eir_sctp_restarts_total", "counter", ("peer",), "Associations of SCTP that the peer restarted"),
    Family("eir_list_entries", "gauge", ("list",), "Entries of the list in force (a whole TAC counts as one, each device listed on its own as another)", "min"),
    Family("eir_list_serial", "gauge", ("list",), "Serial of the release in force", "min"),
    Family("eir_list_content_digest", "gauge", ("list",), "First 48 bits of the digest of the list's content, as a number: equal where lists are equal", "min"),
    Family("eir_list_issued_timestamp_seconds", "gauge", ("list",), "When the release in force was issued", "min"),
    Family("eir_list_expires_timestamp_seconds", "gauge", ("list",), "When the release in force expires (it stays in force)", "min"),
    Family("eir_release_last_accepted_timestamp_seconds", "gauge", ("list",), "When a release for the list was last put in force", "max"),
    Family("eir_release_interval_seconds", "gauge", ("list",), "The list's own rhythm: the median time between its last releases; nothing before the fourth", "max"),
    Family("eir_release_last_refused_timestamp_seconds", "gauge", ("list",), "When a release for the list was last refused", "max"),
    Family("eir_release_last_forced_timestamp_seconds", "gauge", ("list",), "When a limit of the list was last lifted by hand (`--force`, `reset-serial`)", "max"),
    Family("eir_releases_total", "counter", ("list", "outcome"), "Releases by outcome, read from the history; `forced`: with a limit lifted by hand, changes of a local list too", "max"),
    *(family for each in INTERFACES if each.service for family in each.families),
    Family("eir_clients_refused_total", "counter", ("interface", "reason"), "Connections to an interface beside the checks that were refused, or ended for a fault; `page`: requests for the page without the right password"),
    Family("eir_interface_faulty", "gauge", ("interface", "part"), "1 while an interface beside the checks has no process, or cannot use a file that it goes by: users, tokens, numbers", "max"),
    Family("eir_inbox_usable", "gauge", (), "1 while the drop folder can be read and written, and passes over it do not fail; nothing without one", "min"),
    Family("eir_inbox_waiting_releases", "gauge", (), "Releases in the drop folder that are not complete, or wait for their base or for this host; nothing without one", "max"),
    Family("eir_source_reached_timestamp_seconds", "gauge", ("list",), "When the index of the list's source last came and was believed; the node's start before that", "max"),
    Family("eir_source_patience_seconds", "gauge", ("list",), "How long the source may not be reached, or the list be behind it, until that is an alert (lists.*.source.patience)", "max"),
    Family("eir_source_ahead_timestamp_seconds", "gauge", ("list",), "When the source first offered a serial above the one in force; absent while it offers none", "max"),
    Family("eir_source_serial", "gauge", ("list",), "Newest serial that the source offers", "max"),
    Family("eir_source_pulls_total", "counter", ("list", "outcome"), "Looks at the source: loaded, unchanged, refused, waiting, unreached, or elsewhere while another node was at it"),
    Family("eir_source_faults_total", "counter", ("list", "reason"), "Looks at the source that ended with a fault, by its reason"),
    Family("eir_source_acknowledgements_total", "counter", ("list", "outcome"), "Acknowledgements of what is in force: given to the source, or not_given"),
    Family("eir_source_bytes_total", "counter", ("list",), "Bytes that were fetched from the source"),
    Family("eir_store_up", "gauge", (), "1 while the store answers", "min"),
    Family("eir_store_errors_total", "counter", ("cause",), "Failures of the store by cause"),
    Family("eir_store_lost_data", "gauge", ("list",), "1 while the store shows less of the list than is in force from memory, or was in force here before", "max"),
    Family("eir_copy_failed", "gauge", ("list",), "1 while the node's last good copy of the list cannot be read, written or written back", "max"),
    Family("eir_history_last_record", "gauge", (), "Number of the newest record of the history in the store", "max"),
    Family("eir_history_last_digest", "gauge", (), "First 48 bits of the SHA-256 of that record, as a number: equal where histories are equal", "max"),
    Family("eir_history_bytes", "gauge", ("chain",), "Size of the history in the store: main, and the rows of registers (feed)", "max"),
    Family("eir_history_max_bytes", "gauge", ("chain",), "history.max_bytes (main), history.feed_max_bytes (feed)", "max"),
    Family("eir_history_differs", "gauge", (), "1 while the history in the store does not continue this node's copy of it", "max"),
    Family("eir_list_unrecorded", "gauge", ("list",), "1 while no record of the history says who put the list into the store", "max"),
    Family("eir_follow_lag_seconds", "gauge", (), "Time since the node last knew that it holds what the store holds", "max"),
    Family("eir_switch_longest_slice_seconds", "gauge", (), "Longest time that taking over a list held the loop", "max"),
    Family("eir_override_active", "gauge", (), "1 while the policy's override answers everything alike", "max"),
    Family("eir_sightings_total", "counter", (), "Checks that are on record, in files"),
    Family("eir_sightings_dropped_total", "counter", ("reason",), "Checks that are not on record: above `rate_max` (rate), not taken in time by the process that writes (buffer), or by the disk (disk)"),
    Family("eir_sightings_bytes", "gauge", (), "Size of the record"),
    Family("eir_events_total", "counter", ("to",), "Events that a receiver took: webhook or stream"),
    Family("eir_events_dropped_total", "counter", ("to", "reason"), "Events that a receiver did not get: above `events_max` (rate), the oldest while it was away (queue), or it said no for good (refused)"),
    Family("eir_tls_certificate_expires_timestamp_seconds", "gauge", (), "When the node's own certificate ends; nothing without TLS", "min"),
    Family("eir_config_last_reload_successful", "gauge", (), "0 from a reload that was refused until one that was taken over, else 1", "min"),
    Family("eir_config_needs_restart", "gauge", ("key",), "1 for each key of the configuration whose new value waits for a restart since the last reload", "max"),
    Family("eir_worker_restarts_total", "counter", (), "Workers that ended unasked and were started again"),
    Family("eir_process_resident_memory_bytes", "gauge", ("process",), "Memory of the process, what it shares with others included", "max"),
    Family("eir_process_cpu_seconds_total", "counter", ("process",), "Processor time of the process", "max"),
    Family("eir_process_open_fds", "gauge", ("process",), "Open files and connections of the process", "max"),
    Family("eir_process_max_fds", "gauge", ("process",), "How many the process may open; nothing without a limit", "min"),
    Family("eir_start_timestamp_seconds", "gauge", (), "When the node started", "max"),
    Family("eir_build_info", "gauge", ("version", "lane"), "The version that runs, and whether it has the `compiled` express lane, or `none`: then a check costs many times as much", "max"),
)  # fmt: skip

_FAMILY = {family.name: family for family in FAMILIES}
_MERGE: dict[str, Callable[[float, float], float]] = {"sum": operator.add, "min": min, "max": max}


def merge(snapshots: Iterable[Snapshot]) -> Snapshot:
    """One truth out of several workers' snapshots, by the `merge` column of the table; a name that is not in it is summed."""
    merged: dict[str, dict[Labels, float]] = {}
    for snapshot in snapshots:
        for name, samples in snapshot.items():
            family = _FAMILY.get(name)
            combine, into = _MERGE[family.merge if family else "sum"], merged.setdefault(name, {})
            for labels, value in samples.items():
                into[labels] = combine(into[labels], value) if labels in into else value
    return dict(merged)


def outliving(snapshot: Snapshot) -> Snapshot:
    """Return what stays of a worker that has ended: its own counters.

    Its gauges, and what all workers read alike, go.
    """
    return {
        name: samples
        for name, samples in snapshot.items()
        if name in _FAMILY and _FAMILY[name].kind != "gauge" and _FAMILY[name].merge == "sum"
    }


def by_label(values: Mapping[str, float]) -> dict[Labels, float]:
    """The samples of a metric that has one label."""
    return {(label,): value for label, value in values.items()}


def times(values: Mapping[str, str | None]) -> dict[Labels, float]:
    """The samples of a metric with one label, from ISO times to Unix seconds; left out are those that have no time."""
    return {(label,): datetime.fromisoformat(text).timestamp() for label, text in values.items() if text}


def histogram(bounds: Sequence[float], counts: Sequence[int], total: float) -> dict[Labels, float]:
    """The samples of a histogram: `counts` has one number for each bound and one for what lies above the last."""
    samples: dict[Labels, float] = {}
    below = 0
    for bound, count in zip((*(f"{b:g}" for b in bounds), "+Inf"), counts, strict=True):
        below += count
        samples[bound,] = below
    samples["sum",] = total
    return samples


def unknown(snapshot: Snapshot) -> list[str]:
    """Names in a snapshot that are not in the table, and that no page shows: a fault of ours that must not cost the page."""
    return sorted(snapshot.keys() - _FAMILY.keys())


def exposition(snapshot: Snapshot) -> bytes:
    """The snapshot in Prometheus' text format (CONTENT_TYPE); what `unknown` names in it is left out."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_SnapshotCollector(snapshot))
    return generate_latest(registry)


class _SnapshotCollector(Collector):
    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        for family in FAMILIES:
            samples = self._snapshot.get(family.name, {})
            if (
                samples or family.kind != "histogram"
            ):  # a name stands there from the start; a histogram is nothing without buckets
                yield _render(family, samples)


def _render(family: Family, samples: Mapping[Labels, float]) -> Metric:
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
"""Units per second in which the kernel counts processor time."""
PREFIX = "eir-"
"""Prefix of the names of child processes, see daemon/starter.py."""
_OPEN_MAX = re.compile(r"^Max open files\s+(\d+)", re.MULTILINE)


class Usage(NamedTuple):
    """Resources that one process uses."""

    resident_bytes: int
    """Shared memory included, which each of the processes that share it shows."""
    cpu_s: float
    """Processor time since its start, the kernel's for it included."""
    open_files: int
    open_files_max: int | None
    """None: there is no limit."""


def of_processes(first: int) -> Snapshot:
    """Return the result of `usage` as metrics."""
    used = usage(first)
    return {
        "eir_process_resident_memory_bytes": by_label({name: each.resident_bytes for name, each in used.items()}),
        "eir_process_cpu_seconds_total": by_label({name: each.cpu_s for name, each in used.items()}),
        "eir_process_open_fds": by_label({name: each.open_files for name, each in used.items()}),
        "eir_process_max_fds": by_label(
            {name: each.open_files_max for name, each in used.items() if each.open_files_max}
        ),
    }


def usage(first: int) -> Mapping[str, Usage]:
    """Return what a process and its children use, by name: `front` is the first one.

    One that ends meanwhile is left out.
    """
    found: dict[str, Usage] = {}
    with suppress(OSError):
        found["front"] = _usage(first)
    with suppress(OSError):
        for thread in Path(f"/proc/{first}/task").iterdir():
            for child in (thread / "children").read_text().split():
                with suppress(OSError):
                    name = Path(f"/proc/{child}/comm").read_text().strip()
                    if name.startswith(PREFIX):
                        found[name.removeprefix(PREFIX)] = _usage(int(child))
    return found


def _usage(pid: int) -> Usage:
    folder = Path(f"/proc/{pid}")
    after_name = (folder / "stat").read_text().rpartition(")")[2].split()  # the name may hold blanks
    utime, stime, resident_pages = int(after_name[11]), int(after_name[12]), int(after_name[21])
    limit = _OPEN_MAX.search((folder / "limits").read_text())
    return Usage(
        resident_pages * PAGE_BYTES,
        (utime + stime) / TICKS,
        sum(1 for _ in (folder / "fd").iterdir()),
        int(limit[1]) if limit else None,
    )

"""Recent events of a node: checks by minute in the last hour; time of each list's last release, and interval of its releases.

The manager passes a snapshot of the answering process's counters each minute. The head of a list has the times of its newest releases.
"""

from collections import Counter, deque
from collections.abc import Mapping
from datetime import datetime
from itertools import pairwise
from statistics import median
from typing import NamedTuple

from eir.lists.log.change import Head
from eir.node.observe import metrics
from eir.node.observe.metrics import Labels, Snapshot

MINUTES = 60
EVERY_S = 60.0
CHECKS, DURATIONS = "eir_checks_total", "eir_check_duration_seconds"


class Minute(NamedTuple):
    """Count of the checks in one minute by status, and two percentiles of their durations."""

    checks: Mapping[str, int]
    """Checks by status."""
    median_s: float | None
    """Upper bound (s) of the duration of 50 % of the checks; infinite above the highest bound; None: there were no checks."""
    p99_s: float | None
    """Upper bound (s) of the duration of 99 % of the checks."""


class _Sample(NamedTuple):
    checks: Counter[str]
    durations: Mapping[Labels, float]


class RecentChecks:
    """Checks of the last hour, by minute."""

    def __init__(self) -> None:
        self._samples: deque[_Sample] = deque(maxlen=MINUTES + 1)

    def end_minute(self, snapshot: Snapshot) -> None:
        """End the current minute, and store its counters. The caller calls this every EVERY_S."""
        checks: Counter[str] = Counter()
        for (status, *_), count in snapshot.get(CHECKS, {}).items():
            checks[status] += int(count)
        self._samples.append(_Sample(checks, dict(snapshot.get(DURATIONS, {}))))

    def minutes(self) -> list[Minute]:
        """Return the checks of each complete minute of the last hour, oldest first."""
        minutes = []
        for before, after in pairwise(self._samples):
            checks = dict(after.checks - before.checks)
            minutes.append(Minute(checks, *_percentiles(before.durations, after.durations)))
        return minutes

    def percentiles(self) -> tuple[float | None, float | None]:
        """Return the median and the 99th percentile of the durations of the last hour's checks, as in `Minute`."""
        if not self._samples:
            return None, None
        return _percentiles(self._samples[0].durations, self._samples[-1].durations)


def _percentiles(before: Mapping[Labels, float], after: Mapping[Labels, float]) -> tuple[float | None, float | None]:
    """Return the median and the 99th percentile of durations between two samples of a histogram, as upper bounds in seconds."""
    below = {float(bound): count - before.get((bound,), 0.0) for (bound,), count in after.items() if bound != "sum"}
    total = max(below.values(), default=0.0)
    if not total:
        return None, None

    def percentile(share: float) -> float:
        return next(bound for bound, count in sorted(below.items()) if count >= share * total)

    return percentile(0.5), percentile(0.99)


LOADS_MIN = 4
"""Minimum number of loads from which an interval is computed."""


def release_metrics(heads: Mapping[str, Head]) -> Snapshot:
    """Return the metrics about the times of the releases of lists: time of the last one, and median interval. `heads`: lists in force."""
    times = {name: [datetime.fromisoformat(time).timestamp() for time in head.releases] for name, head in heads.items()}
    intervals = {
        name: median(later - earlier for earlier, later in pairwise(each)) for name, each in times.items() if len(each) >= LOADS_MIN
    }  # fmt: skip
    return {
        "eir_release_last_accepted_timestamp_seconds": metrics.by_label({name: each[-1] for name, each in times.items() if each}),
        "eir_release_interval_seconds": metrics.by_label(intervals),
    }  # fmt: skip

"""Recent events of a node: checks by minute in the last hour; time of each list's last release, and interval of its releases.

The supervisor passes a snapshot of the workers' counters each minute. Releases are read from the history.
"""

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from datetime import datetime
from itertools import pairwise
from statistics import median
from typing import NamedTuple

from eir.lists.log.store import LogStore
from eir.lists.record.clock import await_store
from eir.lists.record.store import ACCEPTED, FORCED, MAIN, OutcomeCount
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


LOADS_MIN, LOADS = 4, 12
"""Minimum and maximum number of loads from which an interval is computed; the most recent loads count."""
EVENTS = 1000
"""Maximum number of records of the history that are read per list."""
IN_FORCE = {ACCEPTED, FORCED}
"""Outcomes of a load that put a release in force."""


class ReleaseTimes:
    """Time of the last release of each list, and median interval between its releases.

    After each release that is put in force, both are computed again from the history.
    """

    def __init__(self) -> None:
        self._interval_s: dict[str, float] = {}
        self._last: dict[str, float] = {}
        self._seen: dict[str, int] = {}
        """Number of releases put in force up to the last read of the history, by list."""

    async def update(self, outcomes: Iterable[OutcomeCount], store: LogStore) -> None:
        """Read the store's history for each list that has had a new release since the last call, and update the list's release times.

        Raises:
            StoreError: if the store cannot be read.
        """
        releases: Counter[str] = Counter()
        for each in outcomes:
            if each.list and each.outcome in IN_FORCE:
                releases[each.list] += each.count
        for name, count in releases.items():
            if self._seen.get(name) == count:
                continue
            events = await await_store(store.history(name, limit=EVENTS, chain=MAIN))
            loads = (event.time for event in events if event.what == "load" and event.outcome in IN_FORCE)
            times = sorted(datetime.fromisoformat(time).timestamp() for time in loads)[-LOADS:]
            if times:
                self._last[name] = times[-1]
            if len(times) >= LOADS_MIN:
                self._interval_s[name] = median(later - earlier for earlier, later in pairwise(times))
            self._seen[name] = count

    def snapshot(self) -> metrics.Snapshot:
        """Return the samples of the metrics about release times, by metric name and label values."""
        return {
            "eir_release_last_accepted_timestamp_seconds": metrics.by_label(self._last),
            "eir_release_interval_seconds": metrics.by_label(self._interval_s),
        }

"""Recent history of a node: checks of the last hour by minute, and the usual interval between releases of each list.

The supervisor passes a snapshot of the workers' counters each minute; releases come from the history. No clock: alerts compare
the times.
"""

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from datetime import datetime
from itertools import pairwise
from statistics import median
from typing import NamedTuple

from eir.lists.record.clock import await_store
from eir.lists.record.store import ACCEPTED, FORCED, MAIN, ListStore, OutcomeCount
from eir.node.observe import metrics
from eir.node.observe.metrics import Labels, Snapshot

MINUTES = 60
EVERY_S = 60.0
CHECKS, DURATIONS = "eir_checks_total", "eir_check_duration_seconds"


class Minute(NamedTuple):
    """Number of checks in one minute, and their durations."""

    checks: Mapping[str, int]
    """Checks by status."""
    median_s: float | None
    """Upper bound (s) of the duration of 50 % of the checks; None: there were no checks."""
    p99_s: float | None
    """Upper bound (s) of the duration of 99 % of the checks."""


class _Sample(NamedTuple):
    checks: Counter[str]
    durations: Mapping[Labels, float]


class Lately:
    """Counters of checks at each minute of the last hour."""

    def __init__(self) -> None:
        self._samples: deque[_Sample] = deque(maxlen=MINUTES + 1)

    def note(self, snapshot: Snapshot) -> None:
        """Store the current counters. The caller calls this every EVERY_S."""
        checks: Counter[str] = Counter()
        for (status, *_), count in snapshot.get(CHECKS, {}).items():
            checks[status] += int(count)
        self._samples.append(_Sample(checks, dict(snapshot.get(DURATIONS, {}))))

    def minutes(self) -> list[Minute]:
        """Return the full minutes of the last hour, the oldest first."""
        return [
            Minute(
                {status: count for status, count in (after.checks - before.checks).items() if count},
                *_percentiles(before.durations, after.durations),
            )
            for before, after in pairwise(self._samples)
        ]


def _percentiles(before: Mapping[Labels, float], after: Mapping[Labels, float]) -> tuple[float | None, float | None]:
    """Return upper bounds of the median and the 99th percentile of durations between two samples of a histogram."""
    below = [(float(bound), count - before.get((bound,), 0.0)) for (bound,), count in after.items() if bound != "sum"]
    total = max((count for _, count in below), default=0.0)
    if not total:
        return None, None
    finite = [bound for bound, _ in below if bound != float("inf")]

    def within(share: float) -> float:
        return next((min(bound, max(finite)) for bound, count in sorted(below) if count >= share * total), max(finite))

    return within(0.5), within(0.99)


LOADS_MIN, LOADS = 4, 12
"""Number of loads from which an interval is computed, and number of most recent loads that count."""
EVENTS = 1000
"""Number of events of the history that are searched for loads."""
PUT = {ACCEPTED, FORCED}


class Rhythms:
    """Time of the last release, and usual interval between releases, of each list.

    Both are read from the history again whenever a release has been put in force.
    """

    def __init__(self) -> None:
        self._interval_s: dict[str, float] = {}
        self._last: dict[str, float] = {}
        self._seen: dict[str, int] = {}
        """Number of loads put in force when the history was last read, by list."""

    async def update(self, outcomes: Iterable[OutcomeCount], store: ListStore) -> None:
        """Read the history of each list for which a release has been put in force since the last call.

        Raises:
            StoreError: if the store cannot be read.
        """
        puts: Counter[str] = Counter()
        for each in outcomes:
            if each.list and each.outcome in PUT:
                puts[each.list] += each.count
        for name, count in puts.items():
            if self._seen.get(name) == count:
                continue
            events = await await_store(store.history(name, limit=EVENTS, chain=MAIN))
            loads = (event.time for event in events if event.what == "load" and event.outcome in PUT)
            if times := sorted(datetime.fromisoformat(time).timestamp() for time in loads)[-LOADS:]:
                self._last[name] = times[-1]
            if len(times) >= LOADS_MIN:
                self._interval_s[name] = median(later - earlier for earlier, later in pairwise(times))
            self._seen[name] = count

    def snapshot(self) -> metrics.Snapshot:
        """Return the metrics: time of the last release and median interval between releases, by list."""
        return {
            "eir_release_last_accepted_timestamp_seconds": metrics.by_label(self._last),
            "eir_release_interval_seconds": metrics.by_label(self._interval_s),
        }

"""The recent past of a node: the answers of the last hour, minute by minute, and the rhythm in which releases of each list come.

Answers come from what workers count anyway, as snapshots that the supervisor hands in each minute; releases are read from the history.
No clock: an alert compares.
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
    """One of them."""

    checks: Mapping[str, int]
    """Checks by status."""
    median_s: float | None
    """Upper bound of the time that half of the checks took at most; None: there were no checks."""
    p99_s: float | None
    """The same for 99 of 100."""


class _Sample(NamedTuple):
    checks: Counter[str]
    durations: Mapping[Labels, float]


class Lately:
    """The last hour."""

    def __init__(self) -> None:
        self._samples: deque[_Sample] = deque(maxlen=MINUTES + 1)

    def note(self, snapshot: Snapshot) -> None:
        """Take what has been counted up to now; to be called each EVERY_S."""
        checks: Counter[str] = Counter()
        for (status, *_), count in snapshot.get(CHECKS, {}).items():
            checks[status] += int(count)
        self._samples.append(_Sample(checks, dict(snapshot.get(DURATIONS, {}))))

    def minutes(self) -> list[Minute]:
        """The minutes that are over, the oldest first."""
        return [
            Minute(
                {status: count for status, count in (after.checks - before.checks).items() if count},
                *_percentiles(before.durations, after.durations),
            )
            for before, after in pairwise(self._samples)
        ]


def _percentiles(before: Mapping[Labels, float], after: Mapping[Labels, float]) -> tuple[float | None, float | None]:
    """The bounds within which half, and 99 of 100, of what was counted between two samples of a histogram lie."""
    below = [(float(bound), count - before.get((bound,), 0.0)) for (bound,), count in after.items() if bound != "sum"]
    total = max((count for _, count in below), default=0.0)
    if not total:
        return None, None
    finite = [bound for bound, _ in below if bound != float("inf")]

    def within(share: float) -> float:
        return next((min(bound, max(finite)) for bound, count in sorted(below) if count >= share * total), max(finite))

    return within(0.5), within(0.99)


LOADS_MIN, LOADS = 4, 12
"""Loads from which a list has a rhythm, and how many of the last ones count."""
EVENTS = 1000
"""Number of events of the history in which loads are looked for."""
PUT = {ACCEPTED, FORCED}


class Rhythms:
    """The rhythm of each list, read again when something was put in force."""

    def __init__(self) -> None:
        self._interval_s: dict[str, float] = {}
        self._last: dict[str, float] = {}
        self._seen: dict[str, int] = {}
        """Number of loads put in force when the history was last read, by list."""

    async def look(self, outcomes: Iterable[OutcomeCount], store: ListStore) -> None:
        """Read the history of those lists of which the outcomes have changed. Raises StoreError."""
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
        """As metrics: when the last release came, and the median time between the last ones."""
        return {
            "eir_release_last_accepted_timestamp_seconds": metrics.by_label(self._last),
            "eir_release_interval_seconds": metrics.by_label(self._interval_s),
        }

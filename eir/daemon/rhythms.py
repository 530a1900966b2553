"""The interval between releases of each list and the time of the last one, read from the history.

Knows no clock: an alert compares.
"""

from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from itertools import pairwise
from statistics import median

from eir.operate import metrics
from eir.record.patience import in_time
from eir.record.store import ACCEPTED, FORCED, ListStore, Outcome

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

    async def look(self, outcomes: Iterable[Outcome], store: ListStore) -> None:
        """Read the history of those lists of which the outcomes have changed. Raises StoreError."""
        puts: Counter[str] = Counter()
        for each in outcomes:
            if each.list and each.outcome in PUT:
                puts[each.list] += each.count
        for name, count in puts.items():
            if self._seen.get(name) == count:
                continue
            events = await in_time(store.history(name, limit=EVENTS))
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

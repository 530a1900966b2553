"""The answers of the last hour, minute by minute: checks by answer, and how long they took.

From what workers count anyway. No I/O and no clock: the front hands in a snapshot each minute.
"""

from collections import Counter, deque
from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple

from eir.operate.metrics import Labels, Snapshot

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

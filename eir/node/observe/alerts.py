"""Evaluation of the table of conditions (conditions.py) on the metrics of one node, over time.

While a critical or warning alert fires, `eir status` has at least its severity. The module does no I/O, and its clock is an argument.
"""

from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from eir.node.observe.conditions import (
    CONDITIONS,
    INFO,
    REGULAR_DIAMETER,
    REGULAR_MAP,
    REGULAR_N5G,
    NodeCondition,
    Trouble,
)
from eir.node.observe.metrics import FAMILIES, Labels, Snapshot
from eir.schema import DETAILS

EVERY_S = 60.0
"""Seconds between two calls of `Alerts.end_minute`."""
WINDOW_MIN, DAY_MIN = 30, 24 * 60
"""Minutes for which increases of counters are stored, and minutes for which numbers of checks are stored."""
TRAFFIC_MIN = 5
"""Number of the last complete minutes for which the traffic of peers is computed."""
CHECKS = "eir_checks_total"
MESSAGES, CHECK_REQUEST = "eir_diameter_messages_total", ("ME-Identity-Check", "request", "in")
DIAMETER_ANSWERS = "eir_diameter_answers_total"
REGULAR = {
    DIAMETER_ANSWERS: REGULAR_DIAMETER.split("|"), "eir_sbi_responses_total": REGULAR_N5G.split("|"),
    "eir_map_answers_total": REGULAR_MAP.split("|"), "eir_gsup_answers_total": ("ack", "nack"),
}  # fmt: skip
"""Results that are no errors, by the metric that counts the answers to peers."""
_COUNTERS = {family.name for family in FAMILIES if family.kind != "gauge"}


class PeerTraffic(NamedTuple):
    """Traffic of one peer in the last TRAFFIC_MIN complete minutes."""

    checks_per_s: float
    error_share: float
    """Number of error answers, divided by the number of all answers."""


class RecentMetrics:
    """Current metrics of a node, and the increase of the node's counters in each past minute."""

    def __init__(self) -> None:
        self.now = 0.0
        """Unix time of the metrics."""
        self._metrics: Snapshot = {}
        self._noted: Snapshot = {}
        """Counters at the end of the last minute; empty in the first minute, because counters start at 0."""
        self._rises: deque[Snapshot] = deque(maxlen=WINDOW_MIN)
        """Increases of counters in each minute, without counters that did not increase."""
        self._checks: deque[Mapping[Labels, float]] = deque(maxlen=DAY_MIN + 10)
        """Increases of CHECKS in each minute, with only the labels `status` and `probe`."""

    def update(self, snapshot: Snapshot, now: float) -> None:
        """Store the node's current metrics in place of the previous ones.

        Of the Diameter messages, which have the most samples, only requests for a check are stored.
        """
        messages = snapshot.get(MESSAGES, {})
        requests = {labels: count for labels, count in messages.items() if labels[1:] == CHECK_REQUEST}
        self._metrics = {**snapshot, MESSAGES: requests, "up": {("eir",): 1.0}}
        self.now = now

    def end_minute(self) -> None:
        """End the current minute, and store the increases of all counters in that minute."""
        rises = self._rises_since_noted()
        self._rises.append(rises)
        checks: dict[Labels, float] = defaultdict(float)
        for labels, count in rises.get(CHECKS, {}).items():
            checks[*labels[:1], "", "", "", *labels[4:]] += count
        self._checks.append(checks)
        self._noted = {name: dict(samples) for name, samples in self._metrics.items() if name in _COUNTERS}

    def values(self, name: str, offset_s: float = 0.0) -> Mapping[Labels, float]:
        """Return the samples of a metric; with `offset_s`, the counters above 0 that the metric had `offset_s` seconds ago."""
        samples = self._metrics.get(name, {})
        if not offset_s:
            return samples
        rises = self.rises(name, offset_s)
        return {labels: value - rises[labels] for labels, value in samples.items() if value > rises[labels]}

    def rises(self, name: str, window_s: float, offset_s: float = 0.0) -> Mapping[Labels, float]:
        """Return the increase of a counter in the `window_s` seconds that ended `offset_s` seconds ago, in whole minutes.

        Without an offset the current minute counts too.
        """
        total = defaultdict(float, dict.fromkeys(self._metrics.get(name, {}), 0.0))
        current = {} if offset_s else self._rises_since_noted((name,)).get(name, {})
        past = self._checks if name == CHECKS else [minute.get(name, {}) for minute in self._rises]
        begin = int(offset_s // EVERY_S)
        for minute in (current, *islice(reversed(past), begin, begin + int(window_s // EVERY_S))):
            for labels, rise in minute.items():
                total[labels] += rise
        return total

    def traffic(self) -> dict[str, PeerTraffic]:
        """Return the traffic of each peer that had a message in the last TRAFFIC_MIN complete minutes, by peer label."""
        minutes = list(islice(reversed(self._rises), TRAFFIC_MIN))
        checks: dict[str, float] = defaultdict(float)
        answers: dict[str, float] = defaultdict(float)
        errors: dict[str, float] = defaultdict(float)
        for minute in minutes:
            for (peer, *_), count in minute.get(MESSAGES, {}).items():
                checks[peer] += count
            for name, regular in REGULAR.items():
                for (peer, result), count in minute.get(name, {}).items():
                    answers[peer] += count
                    errors[peer] += 0 if result in regular else count
                    checks[peer] += 0 if name == DIAMETER_ANSWERS else count  # those include DWAs
        seconds = len(minutes) * EVERY_S
        return {
            peer: PeerTraffic(checks[peer] / seconds, errors[peer] / answers[peer] if answers[peer] else 0.0)
            for peer in checks.keys() | answers.keys()
        }

    def _rises_since_noted(self, names: Iterable[str] = _COUNTERS) -> Snapshot:
        """Return the increase of each counter since the end of the last complete minute, without unchanged counters.

        If the value of a counter has decreased, the counter has restarted at 0.
        """
        rises: Snapshot = {}
        for name in names:
            before = self._noted.get(name, {})
            risen: dict[Labels, float] = {}
            for labels, value in self._metrics.get(name, {}).items():
                rise = value - before.get(labels, 0.0)
                if rise:
                    risen[labels] = rise if rise > 0 else value
            if risen:
                rises[name] = risen
        return rises


class Alerts:
    """Evaluation of conditions over time. The caller calls `end_minute` every EVERY_S."""

    def __init__(self, conditions: Sequence[NodeCondition] = CONDITIONS) -> None:
        self._conditions = [each for each in conditions if each.severity != INFO]
        self._recent = RecentMetrics()
        self._since: dict[tuple[str, str], float] = {}
        """Unix time since which an expression holds for a subject, by expression and subject."""

    def end_minute(self, snapshot: Snapshot, now: float) -> None:
        """End the current minute: evaluate all conditions, and store the increases of the counters."""
        self.troubles(snapshot, now)
        self._recent.end_minute()

    def troubles(self, snapshot: Snapshot, now: float) -> list[Trouble]:
        """Return the conditions that hold now and have held for their `wait_s`."""
        self._recent.update(snapshot, now)
        details: dict[str, dict[str, str]] = defaultdict(dict)
        for alert, subject, text in snapshot.get(DETAILS, {}):
            details[alert][subject] = text
        before, self._since = self._since, {}
        troubles: list[Trouble] = []
        for condition in self._conditions:
            held = {}
            for subject in condition.subjects(self._recent):
                key = condition.expression, subject
                since = self._since[key] = before.get(key, now)
                if now - since >= condition.wait_s:
                    held[subject] = since
            troubles += condition.troubles(held, details[condition.alert])
        return troubles

    def traffic(self) -> dict[str, PeerTraffic]:
        """Return the traffic of each peer in the last minutes, by peer label."""
        return self._recent.traffic()

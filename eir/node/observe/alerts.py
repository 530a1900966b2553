"""Alert conditions of deploy/prometheus/alerts.yml, evaluated on one node's metrics for `eir status`.

While a critical or warning alert fires, the status is not OK. A rule holds no later than the alert of its name fires: its
windows are at least as long as those of the alert, and its wait is one minute shorter. Alerts that compare nodes have no rule,
nor does the alert for a node that does not answer. No I/O; the clock is an argument.
"""

import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import NamedTuple, TypeAlias

from eir.interfaces import INTERFACES
from eir.node.observe.metrics import FAMILIES, Labels, Snapshot
from eir.node.observe.status_texts import StatusText
from eir.wire.web.access import LOCKED_OUT, PAGE

EVERY_S = 60.0
"""Seconds between two calls of `Alerts.note`."""
WINDOW_MIN, DAY_MIN = 30, 24 * 60
"""Minutes for which rises of counters are stored; rises of checks are stored for a day."""
SUBJECTS_SHOWN = 10
"""Maximum number of subjects in one text."""

CHECKS, DURATIONS = "eir_checks_total", "eir_check_duration_seconds"
_LABELS = {family.name: ("le",) if family.kind == "histogram" else family.labels for family in FAMILIES}
MESSAGES, CHECK_REQUEST = "eir_diameter_messages_total", ("ME-Identity-Check", "request", "in")
_COUNTERS = {family.name for family in FAMILIES if family.kind != "gauge"}

Where: TypeAlias = Callable[[Mapping[str, str]], bool]


class Trouble(NamedTuple):
    """Alert whose condition holds now, and the text for the status."""

    alert: str
    text: str


class Figures:
    """Current metrics of a node, and the increases of its counters in each past minute."""

    def __init__(self) -> None:
        self.now = 0.0
        """Unix time of the metrics."""
        self._metrics: Snapshot = {}
        self._noted: Snapshot = {}
        """Counters at the last full minute; empty after the start, when all counters are 0."""
        self._rises: deque[Snapshot] = deque(maxlen=WINDOW_MIN)
        """Rises of each minute, without counters that did not rise."""
        self._checks: deque[tuple[float, float]] = deque(maxlen=DAY_MIN + 10)
        """Number of blocked checks and of all checks in each minute, without checks of probes."""

    def update(self, snapshot: Snapshot, now: float) -> None:
        """Replace the current metrics.

        Only check requests remain of the Diameter messages, the metric with the most samples.
        """
        requests = {
            labels: count for labels, count in snapshot.get(MESSAGES, {}).items() if labels[1:] == CHECK_REQUEST
        }
        self._metrics, self.now = {**snapshot, MESSAGES: requests}, now

    def note(self) -> None:
        """End the current minute: store the increases of all counters since the previous minute."""
        self._rises.append(self._rises_since_noted())
        self._checks.append(self.blocked(0))
        self._noted = {name: dict(samples) for name, samples in self._metrics.items() if name in _COUNTERS}

    def values(self, name: str, by: str = "", where: Where = lambda _: True) -> dict[str, float]:
        """Return the sum of a metric's values for each value of the label `by`.

        Without `by`: one sum under an empty key, if the metric has any sample.
        """
        return _sums(name, self._metrics.get(name, {}), by, where)

    def rises(self, name: str, minutes: int, by: str = "", where: Where = lambda _: True) -> dict[str, float]:
        """Return the increase of a counter over the last minutes, for each value of the label `by`."""
        recent = islice(reversed(self._rises), minutes)
        total: Counter[str] = Counter()
        for rise in (self._rises_since_noted((name,)), *recent):
            total.update(_sums(name, rise.get(name, {}), by, where))
        return dict(total)

    def blocked(self, minutes: int) -> tuple[float, float]:
        """Return the number of blocked checks and the number of all checks in the last minutes.

        Checks of probes are left out.
        """
        now = _sums(CHECKS, self._rises_since_noted((CHECKS,)).get(CHECKS, {}), "status", _equal("probe", ""))
        past = [(now.get("blacklisted", 0.0), sum(now.values())), *islice(reversed(self._checks), minutes)]
        return sum(blocked for blocked, _ in past), sum(checks for _, checks in past)

    def blocked_before(self, minutes: int) -> tuple[float, float]:
        """Return the number of blocked checks and the number of all checks in the day before the last minutes."""
        past = list(islice(reversed(self._checks), minutes, None))
        return sum(blocked for blocked, _ in past), sum(checks for _, checks in past)

    def _rises_since_noted(self, names: Iterable[str] = _COUNTERS) -> Snapshot:
        """Return the increases of counters since the end of the last full minute.

        A counter with a lower value than before has restarted at 0.
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


def _equal(label: str, value: str) -> Where:
    return lambda labels: labels.get(label, "") == value


def _sums(name: str, samples: Mapping[Labels, float], by: str, where: Where) -> dict[str, float]:
    sums: dict[str, float] = {}
    names = _LABELS[name]
    for values, value in samples.items():
        labels = dict(zip(names, values, strict=False))
        if where(labels):
            key = labels[by] if by else ""
            sums[key] = sums.get(key, 0.0) + value
    return sums


class AlertRule(NamedTuple):
    """Rule for one alert: condition, text, and the time for which the condition must hold."""

    alert: str
    text: str
    """Text of the warning; `{}` stands for the subjects."""
    subjects: Callable[[Figures], Iterable[str]]
    """Function that returns the subjects for which the condition holds: lists, peers, reasons; an empty text for the node itself."""
    wait_s: float = 0.0
    """Seconds for which the condition must hold."""


def _is(name: str, by: str = "", value: float = 1.0) -> Callable[[Figures], Iterable[str]]:
    """Return the condition that a gauge has this value. It is evaluated for each value of the label `by`."""
    return lambda figures: [each for each, now in figures.values(name, by).items() if now == value]


def _rose(name: str, minutes: int, by: str = "", where: Where = lambda _: True) -> Callable[[Figures], Iterable[str]]:
    """Return the condition that a counter increased in the last minutes.

    It is evaluated for each value of the label `by`.
    """
    return lambda figures: figures.rises(name, minutes, by, where)


def _share(name: str, by: str, fine: set[str], minutes: int = 5) -> Callable[[Figures], Iterable[str]]:
    """Return the condition that more than 1 % of the answers in the last minutes are errors.

    It is evaluated for each value of the label `by`. `fine`: values of the label `result` that are no errors.
    """

    def subjects(figures: Figures) -> Iterator[str]:
        every = figures.rises(name, minutes, by)
        for each, count in figures.rises(name, minutes, by, lambda labels: labels["result"] not in fine).items():
            if count > 0.01 * every[each]:
                yield each

    return subjects


def _slow(figures: Figures) -> Iterable[str]:
    within = figures.rises(DURATIONS, 5, "le")
    every = within.pop("+Inf", 0.0)
    fast = max((count for bound, count in within.items() if bound != "sum" and float(bound) <= 0.05), default=0.0)
    return [""] if fast < 0.99 * every else []


def _without_files(figures: Figures) -> Iterable[str]:
    most = figures.values("eir_process_max_fds", "process")
    used = figures.values("eir_process_open_fds", "process")
    return [process for process, count in used.items() if process in most and count > 0.9 * most[process]]


def _lost(figures: Figures) -> Iterable[str]:
    disabled = figures.values("eir_peer_disabled", "peer")
    return [peer for peer, up in figures.values("eir_peer_up", "peer").items() if not up and not disabled.get(peer)]


def _without_identity(figures: Figures) -> Iterator[str]:
    asked = figures.rises(MESSAGES, 10, "peer")
    for kind in ("none", "bad"):
        bad = figures.rises("eir_identity_errors_total", 10, "peer", _equal("kind", kind))
        yield from (peer for peer, count in bad.items() if peer in asked and count > 0.01 * asked[peer])


def _hlr_away(figures: Figures) -> Iterable[str]:
    late = figures.rises("eir_gsup_not_passed_total", 5, "peer", lambda labels: labels["reason"] != "no_hlr")
    return dict.fromkeys([*_is("eir_gsup_hlr_up", "peer", 0)(figures), *late])


def _within(name: str, after_s: float, until_s: float) -> Callable[[Figures], Iterable[str]]:
    """Return the condition that a list's time in this metric is between `after_s` and `until_s` from now."""
    return lambda figures: [
        each for each, at in figures.values(name, "list").items() if after_s < at - figures.now <= until_s
    ]


def _overdue(figures: Figures) -> Iterable[str]:
    interval = figures.values("eir_release_interval_seconds", "list")
    last = figures.values("eir_release_last_accepted_timestamp_seconds", "list")
    return [each for each, s in interval.items() if each in last and figures.now - last[each] > 1.5 * s + 3600]


def _past_patience(name: str) -> Callable[[Figures], Iterable[str]]:
    """Return the condition for lists whose time in this metric is longer ago than permitted.

    The limit is the list's `source.patience`.
    """

    def subjects(figures: Figures) -> Iterable[str]:
        patience = figures.values("eir_source_patience_seconds", "list")
        since = figures.values(name, "list")
        return [each for each, s in patience.items() if each in since and figures.now - since[each] > s]

    return subjects


def _history_full(figures: Figures) -> Iterable[str]:
    size, limit = (
        figures.values(name, "chain").get("main", 0.0) for name in ("eir_history_bytes", "eir_history_max_bytes")
    )
    return [""] if size > 0.8 * limit else []


def _not_acknowledged(figures: Figures) -> Iterable[str]:
    given, not_given = (
        figures.rises("eir_source_acknowledgements_total", 30, "list", _equal("outcome", word))
        for word in ("given", "not_given")
    )
    return not_given.keys() - given.keys()


def _blocking_jumped(figures: Figures) -> Iterable[str]:
    blocked, checks = figures.blocked(10)
    blocked_before, checks_before = figures.blocked_before(10)
    usual = 3 * blocked_before / checks_before if checks_before else 0.0
    return [""] if blocked >= 30 and blocked / checks > max(usual, 0.01) else []


def _fails(labels: Mapping[str, str]) -> bool:
    return labels["result"].startswith("5")


FINE = {"2001", "10415:5422"}, {"200", "404:ERROR_EQUIPMENT_UNKNOWN"}
FINE_MAP = {"whitelisted", "blacklisted", "greylisted", "unknown", "context_not_supported"}
"""Results that are no errors: of Diameter, of N5g-eir, of MAP."""

RULES: tuple[AlertRule, ...] = (
    AlertRule("EirInternalErrors", "an internal error occurred, and its request was answered 5012 (event=fault)", _rose("eir_diameter_errors_total", 5, where=_equal("reason", "internal"))),
    AlertRule("EirSlow", "more than 1 % of the checks took longer than 50 ms in the last 5 minutes", _slow, 240),
    AlertRule("EirReloadFailed", "the last reload was refused; the previous configuration is in force", _is("eir_config_last_reload_successful", value=0)),
    AlertRule("EirRestartNeeded", "keys whose new values need a restart: {}", _is("eir_config_needs_restart", "key")),
    AlertRule("EirFilesRunOut", "processes with over 90 % of their permitted files open: {}", _without_files),
    AlertRule("EirWorkerRestarted", "a worker ended unexpectedly in the last 15 minutes and was restarted", _rose("eir_worker_restarts_total", 15)),
    AlertRule("EirPasswordGuessed", "the page locked out an address after wrong passwords in the last 15 minutes (event=client_refused)", _rose("eir_clients_refused_total", 15, where=lambda labels: (labels["interface"], labels["reason"]) == (PAGE, LOCKED_OUT))),
    AlertRule("EirPeerLost", "no connection for 2 minutes: {}", _lost, 60),
    AlertRule("EirNoPeers", "no peer is connected", _is("eir_peer_up", value=0), 60),
    AlertRule("EirNotRegistered", "not registered with any NRF", _is("eir_nrf_registered", value=0), 120),
    AlertRule("EirFeedFails", "rows of a register were rejected in the last 15 minutes with HTTP status {}", _rose("eir_feed_rows_total", 15, "result", lambda labels: labels["result"] == "422" or _fails(labels))),
    AlertRule("EirInterfaceFaulty", "interfaces whose process does not run, or whose file cannot be used: {}", lambda figures: [each for each, faults in figures.values("eir_interface_faulty", "interface").items() if faults]),
    AlertRule("EirDeviceAuthenticityFails", "requests to DeviceAuthenticity failed in the last 15 minutes with HTTP status {}", _rose("eir_device_authenticity_total", 15, "result", _fails)),
    AlertRule("EirPathLost", "peers with SCTP paths that are down: {}", lambda figures: [each for each, down in figures.values("eir_sctp_paths", "peer", _equal("state", "down")).items() if down]),
    AlertRule("EirPeersRefused", "connections were refused in the last 10 minutes: {} (event=peer_refused)", _rose("eir_peers_refused_total", 10, "reason"), 540),
    AlertRule("EirErrorAnswers", "peers with errors in more than 1 % of their answers: {}", _share("eir_diameter_answers_total", "peer", FINE[0]), 240),
    AlertRule("EirErrorResponses", "peers with errors in more than 1 % of their responses: {}", lambda figures: dict.fromkeys([*_share("eir_sbi_responses_total", "peer", FINE[1])(figures), *_share("eir_map_answers_total", "peer", FINE_MAP)(figures)]), 240),
    AlertRule("EirHlrAway", "peers whose HLR did not answer in the last 5 minutes, so that phones could not attach: {}", _hlr_away),
    AlertRule("EirShedding", "peers whose requests above a rate limit were rejected in the last 5 minutes: {}", _rose("eir_shed_total", 5, "peer")),
    AlertRule("EirCertificateExpires", "the node's certificate expires within 14 days", lambda figures: [each for each, ends in figures.values("eir_tls_certificate_expires_timestamp_seconds").items() if ends - figures.now < 14 * 86400]),
    AlertRule("EirIdentityErrors", "peers without a valid IMEI in more than 1 % of their requests: {}", _without_identity, 540),
    AlertRule("EirNoLists", "no list is in force, so no check finds a listed device", lambda figures: [] if figures.values("eir_list_serial") else [""]),
    AlertRule("EirReleaseOverdue", "lists whose next release is overdue: {}", _overdue),
    AlertRule("EirListExpiresSoon", "lists that expire within 3 days: {}", _within("eir_list_expires_timestamp_seconds", 0, 3 * 86400)),
    AlertRule("EirListExpired", "lists past their expiry: {}", _within("eir_list_expires_timestamp_seconds", float("-inf"), 0)),
    AlertRule("EirReleaseRefused", "lists with a refused release in the last hour (eir history): {}", _within("eir_release_last_refused_timestamp_seconds", -3600, float("inf"))),
    AlertRule("EirForced", "lists for which an operator lifted a limit in the last day (eir history): {}", _within("eir_release_last_forced_timestamp_seconds", -86400, float("inf"))),
    AlertRule("EirInboxUnusable", "the drop folder cannot be used", _is("eir_inbox_usable", value=0), 60),
    AlertRule("EirInboxWaiting", "releases wait in the drop folder (event=release_waiting)", lambda figures: [each for each, waiting in figures.values("eir_inbox_waiting_releases").items() if waiting], 840),
    AlertRule("EirListBehind", "lists behind their source for longer than `source.patience`: {} (eir pull)", _past_patience("eir_source_ahead_timestamp_seconds")),
    AlertRule("EirSourceUnreached", "lists whose source is not reached: {} (eir pull)", _past_patience("eir_source_reached_timestamp_seconds")),
    AlertRule("EirAcknowledgementsNotTaken", "lists whose source does not accept acknowledgements: {} (event=acknowledgement_not_given)", _not_acknowledged, 1740),
    AlertRule("EirStoreAway", "the store is away; the node answers from memory", _is("eir_store_up", value=0)),
    AlertRule("EirStoreLostData", "lists of which the store lost data: {}", _is("eir_store_lost_data", "list")),
    AlertRule("EirHistoryDiffers", "the store's history does not continue this node's copy (eir history --verify)", _is("eir_history_differs")),
    AlertRule("EirHistoryNearlyFull", "the history uses more than 80 % of history.max_bytes", _history_full),
    AlertRule("EirListUnrecorded", "lists in the store without a record of their load: {} (eir history)", _is("eir_list_unrecorded", "list")),
    AlertRule("EirCopyFailed", "lists whose last good copy cannot be written or read: {} (event=copy_failed)", _is("eir_copy_failed", "list")),
    AlertRule("EirFollowLag", "the node has been behind its store for more than 30 s", lambda figures: [each for each, lag in figures.values("eir_follow_lag_seconds").items() if lag > 30]),
    AlertRule("EirOverrideActive", "the policy's override gives every check the same answer", _is("eir_override_active")),
    AlertRule("EirBlockingJumped", "the share of blocked checks is more than three times that of the day before", _blocking_jumped, 240),
    AlertRule("EirSightingsDropped", "checks are missing in the record: {}", _rose("eir_sightings_dropped_total", 10, "reason"), 540),
    AlertRule("EirFirstSightingsUnrecorded", "peers with more new devices than `first_seen.new_per_peer`; further devices are not recorded: {}", _rose("eir_first_seen_unrecorded_checks_total", 10, "peer"), 240),
    AlertRule("EirEventsDropped", "receivers that events do not reach: {}", _rose("eir_events_dropped_total", 10, "to"), 240),
)  # fmt: skip


class Alerts:
    """Evaluation of all alert rules over time. The caller calls `note` every EVERY_S."""

    def __init__(self) -> None:
        self._figures = Figures()
        self._since: dict[tuple[str, str], float] = {}
        """Unix time since when a rule holds for a subject."""

    def note(self, snapshot: Snapshot, now: float) -> None:
        """End the current minute: evaluate all rules, and store the increases of the counters."""
        self.troubles(snapshot, now)
        self._figures.note()

    def troubles(self, snapshot: Snapshot, now: float) -> list[Trouble]:
        """Return the alerts whose conditions hold now, from the current metrics and the past minutes."""
        self._figures.update(snapshot, now)
        since, self._since = self._since, {}
        troubles = []
        for rule in RULES:
            subjects = []
            for subject in rule.subjects(self._figures):
                begin = self._since[rule.alert, subject] = since.get((rule.alert, subject), now)
                if now - begin >= rule.wait_s:
                    subjects.append(subject)
            if subjects:
                more = [f"{len(subjects) - SUBJECTS_SHOWN} more"] if len(subjects) > SUBJECTS_SHOWN else []
                troubles.append(Trouble(rule.alert, rule.text.format(", ".join([*subjects[:SUBJECTS_SHOWN], *more]))))
        return troubles


TEXTS = (
    *((rule.text, rule.alert) for rule in RULES),
    *((each.text, each.alert) for each in StatusText),
    *((text, alert) for interface in INTERFACES for text, alert in interface.alerts),
)
"""Each text of the status that an alert explains, with `{}` for a value, and the name of the alert."""
_PATTERNS = [(re.compile(".*".join(map(re.escape, text.split("{}"))), re.DOTALL), alert) for text, alert in TEXTS]


def alert_of(status_text: str) -> str | None:
    """Return the name of the alert whose entry in the runbook explains a text of the status, or None."""
    return next((alert for pattern, alert in _PATTERNS if pattern.fullmatch(status_text)), None)

"""Rules for `eir status`: the conditions of the alerts in deploy/prometheus/alerts.yml, evaluated on the metrics of one node.

While a critical or warning alert fires, the status has at least its severity. For this, the windows of a rule are at least as
long as those of its alert, and its wait is one minute shorter, unless its text names the wait. Alerts that compare nodes have no
rule, and neither has EirDown. The module does no I/O, and its clock is an argument.
"""

import re
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple, TypeAlias

from eir.interfaces import INTERFACES
from eir.lists.record.clock import DIFFERENCE_MAX_S
from eir.node.observe.metrics import FAMILIES, Labels, Snapshot
from eir.node.observe.status_texts import StatusText
from eir.wire.web.access import LOCKED_OUT, PAGE

CRITICAL_ALERTS = frozenset({
    "EirDown", "EirInternalErrors", "EirNoPeers", "EirErrorAnswers", "EirErrorResponses", "EirHlrAway", "EirNoLists", "EirListMissing",
    "EirListExpired", "EirInboxUnusable", "EirHistoryDiffers", "EirChangesLost", "EirListUnrecorded", "EirBlockingJumped",
    "EirFirstSightingsRefused",
})  # fmt: skip
"""Alerts of severity `critical` in deploy/prometheus/alerts.yml: while one of their texts is in `eir status`, the state is CRITICAL."""
EVERY_S = 60.0
"""Seconds between two calls of `Alerts.end_minute`."""
WINDOW_MIN, DAY_MIN = 30, 24 * 60
"""Minutes for which increases of counters are stored, and minutes for which numbers of checks are stored."""
SUBJECTS_SHOWN = 10
"""Maximum number of subjects (lists, peers, …) that the text of a rule names."""

TRAFFIC_MIN = 5
"""Number of the last complete minutes for which the traffic of peers is computed."""
CHECKS, DURATIONS = "eir_checks_total", "eir_check_duration_seconds"
_LABELS = {family.name: ("le",) if family.kind == "histogram" else family.labels for family in FAMILIES}
MESSAGES, CHECK_REQUEST = "eir_diameter_messages_total", ("ME-Identity-Check", "request", "in")
_COUNTERS = {family.name for family in FAMILIES if family.kind != "gauge"}

Where: TypeAlias = Callable[[Mapping[str, str]], bool]
"""Selection of samples by their labels."""


class Trouble(NamedTuple):
    """Alert whose condition holds now, and its text in `eir status`."""

    alert: str
    text: str


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
        self._checks: deque[tuple[float, float]] = deque(maxlen=DAY_MIN + 10)
        """Number of blocked checks and of all checks in each minute, without checks of probes."""

    def update(self, snapshot: Snapshot, now: float) -> None:
        """Store the node's current metrics in place of the previous ones.

        Of the Diameter messages, which have the most samples, only requests for a check are stored.
        """
        messages = snapshot.get(MESSAGES, {})
        requests = {labels: count for labels, count in messages.items() if labels[1:] == CHECK_REQUEST}
        self._metrics = {**snapshot, MESSAGES: requests}
        self.now = now

    def end_minute(self) -> None:
        """End the current minute, and store the increases of all counters in that minute."""
        self._rises.append(self._rises_since_noted())
        self._checks.append(self.blocked(0))
        self._noted = {name: dict(samples) for name, samples in self._metrics.items() if name in _COUNTERS}

    def values(self, name: str, by: str = "", where: Where = lambda _: True) -> dict[str, float]:
        """Add up the samples of a metric for each value of the label `by`. `where`: labels that the samples must have.

        Without `by` the result has one sum, whose key is empty; it is empty for a metric without samples.
        """
        return _sums(name, self._metrics.get(name, {}), by, where)

    def rises(self, name: str, minutes: int, by: str = "", where: Where = lambda _: True) -> dict[str, float]:
        """Return the increase of a counter in the last minutes, for each value of the label `by`."""
        past = islice(reversed(self._rises), minutes)
        total: Counter[str] = Counter()
        for rise in (self._rises_since_noted((name,)), *past):
            total.update(_sums(name, rise.get(name, {}), by, where))
        return dict(total)

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

    def blocked(self, minutes: int) -> tuple[float, float]:
        """Return two numbers for the last `minutes`: blocked checks and all checks. Checks of probes are not counted."""
        samples = self._rises_since_noted((CHECKS,)).get(CHECKS, {})
        by_status = _sums(CHECKS, samples, "status", _equal("probe", ""))
        current = (by_status.get("blacklisted", 0.0), sum(by_status.values()))
        return _totals([current, *islice(reversed(self._checks), minutes)])

    def blocked_before(self, minutes: int) -> tuple[float, float]:
        """Return two numbers for the day that ended `minutes` ago: blocked checks and all checks."""
        return _totals(list(islice(reversed(self._checks), minutes, None)))

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


def _totals(minutes: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Add up the blocked checks and all checks of several minutes. The argument has a pair (blocked, all) for each minute."""
    return sum(blocked for blocked, _ in minutes), sum(checks for _, checks in minutes)


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


Condition: TypeAlias = Callable[[RecentMetrics], Iterable[str]]
"""Function that returns the subjects for which a condition holds: lists, peers, reasons; an empty text for the node itself."""


class AlertRule(NamedTuple):
    """Rule of one alert: condition, and text in `eir status` while it holds."""

    alert: str
    text: str
    """Text of the warning; `{}` stands for the subjects."""
    subjects: Condition
    wait_s: float = 0.0
    """Seconds for which the condition must hold before the status has the text."""

    def text_for(self, subjects: Sequence[str]) -> str:
        """Return the alert's text for `eir status`, with the names of at most SUBJECTS_SHOWN affected peers, lists or other subjects."""
        names = list(subjects[:SUBJECTS_SHOWN])
        left_out = len(subjects) - len(names)
        if left_out:
            names.append(f"{left_out} more")
        return self.text.format(", ".join(names))


def _is(name: str, by: str = "", value: float = 1.0) -> Condition:
    """Return an alert condition: a gauge equals `value`. It yields the affected values of the label `by`, such as peers."""
    return lambda recent: [subject for subject, now in recent.values(name, by).items() if now == value]


def _exceeds(name: str, limit: float, by: str = "", where: Where = lambda _: True) -> Condition:
    """Return an alert condition: a gauge is above `limit`. It yields the affected values of the label `by`, such as peers."""
    return lambda recent: [subject for subject, now in recent.values(name, by, where).items() if now > limit]


def _rose(name: str, minutes: int, by: str = "", where: Where = lambda _: True) -> Condition:
    """Return an alert condition: a counter rose in the last `minutes`. It yields the affected values of the label `by`, such as peers."""
    return lambda recent: recent.rises(name, minutes, by, where)


def _errors(name: str, regular: set[str]) -> Condition:
    """Return an alert condition: more than 1 % of the answers to a peer in the last 5 minutes were errors. It yields the affected peers.

    `regular`: values of the label `result` that are no errors.
    """

    def peers(recent: RecentMetrics) -> Iterator[str]:
        answers = recent.rises(name, 5, "peer")
        errors = recent.rises(name, 5, "peer", lambda labels: labels["result"] not in regular)
        for peer, count in errors.items():
            if count > 0.01 * answers[peer]:
                yield peer

    return peers


def _either(first: Condition, second: Condition) -> Condition:
    """Return an alert condition that holds if at least one of two conditions holds."""
    return lambda recent: dict.fromkeys([*first(recent), *second(recent)])


def _slow_checks(recent: RecentMetrics) -> Iterable[str]:
    checks = recent.rises(DURATIONS, 5, "le")
    total = checks.pop("+Inf", 0.0)
    checks.pop("sum", None)
    fast = max((count for bound, count in checks.items() if float(bound) <= 0.05), default=0.0)
    return [""] if fast < 0.99 * total else []


def _processes_near_file_limit(recent: RecentMetrics) -> Iterator[str]:
    limits = recent.values("eir_process_max_fds", "process")
    for process, count in recent.values("eir_process_open_fds", "process").items():
        if process in limits and count > 0.9 * limits[process]:
            yield process


def _lost_peers(recent: RecentMetrics) -> Iterable[str]:
    disabled = recent.values("eir_peer_disabled", "peer")
    return [peer for peer, up in recent.values("eir_peer_up", "peer").items() if not up and not disabled.get(peer)]


def _peers_without_identity(recent: RecentMetrics) -> Iterator[str]:
    requests = recent.rises(MESSAGES, 10, "peer")
    for kind in ("none", "bad"):
        errors = recent.rises("eir_identity_errors_total", 10, "peer", _equal("kind", kind))
        for peer, count in errors.items():
            if peer in requests and count > 0.01 * requests[peer]:
                yield peer


def _within(name: str, after_s: float, until_s: float) -> Condition:
    """Return an alert condition: a list's time in the metric `name` is from now + `after_s` to now + `until_s`. It yields these lists."""

    def lists(recent: RecentMetrics) -> Iterator[str]:
        for name_of_list, at in recent.values(name, "list").items():
            if after_s < at - recent.now <= until_s:
                yield name_of_list

    return lists


def _overdue_lists(recent: RecentMetrics) -> Iterator[str]:
    last = recent.values("eir_release_last_accepted_timestamp_seconds", "list")
    for name, interval_s in recent.values("eir_release_interval_seconds", "list").items():
        if name in last and recent.now - last[name] > 1.5 * interval_s + 3600:
            yield name


def _exceeds_patience(name: str) -> Condition:
    """Return an alert condition: the age of a list's time in the metric `name` exceeds `source.patience`. It yields these lists."""

    def lists(recent: RecentMetrics) -> Iterator[str]:
        since = recent.values(name, "list")
        for name_of_list, patience_s in recent.values("eir_source_patience_seconds", "list").items():
            if name_of_list in since and recent.now - since[name_of_list] > patience_s:
                yield name_of_list

    return lists


def _full_history(recent: RecentMetrics) -> Iterable[str]:
    size = recent.values("eir_history_bytes", "chain").get("main", 0.0)
    limit = recent.values("eir_history_max_bytes", "chain").get("main", 0.0)
    return [""] if size > 0.8 * limit else []


def _lists_not_acknowledged(recent: RecentMetrics) -> Iterable[str]:
    acknowledgements = "eir_source_acknowledgements_total"
    accepted = recent.rises(acknowledgements, 30, "list", _equal("outcome", "given"))
    failed = recent.rises(acknowledgements, 30, "list", _equal("outcome", "not_given"))
    return failed.keys() - accepted.keys()


def _jump_of_blocking(recent: RecentMetrics) -> Iterable[str]:
    blocked, checks = recent.blocked(10)
    blocked_before, checks_before = recent.blocked_before(10)
    share_before = blocked_before / checks_before if checks_before else 0.0
    has_jumped = blocked >= 30 and blocked / checks > max(3 * share_before, 0.01)
    return [""] if has_jumped else []


def _missing_lists(recent: RecentMetrics) -> Iterable[str]:
    return [] if recent.values("eir_list_serial") else [""]


def _expiring_certificate(recent: RecentMetrics) -> Iterable[str]:
    expiries = recent.values("eir_tls_certificate_expires_timestamp_seconds").values()
    return ["" for expires in expiries if expires - recent.now < 14 * 86400]


def _is_lockout(labels: Mapping[str, str]) -> bool:
    return labels["interface"] == PAGE and labels["reason"] == LOCKED_OUT


def _is_server_error(labels: Mapping[str, str]) -> bool:
    return labels["result"].startswith("5")


def _is_rejected_row(labels: Mapping[str, str]) -> bool:
    return labels["result"] == "422" or _is_server_error(labels)


def _is_hlr_fault(labels: Mapping[str, str]) -> bool:
    return labels["reason"] != "no_hlr"


REGULAR_DIAMETER = {"2001", "10415:5422"}
REGULAR_N5G = {"200", "404:ERROR_EQUIPMENT_UNKNOWN"}
REGULAR_MAP = {"whitelisted", "blacklisted", "greylisted", "unknown", "context_not_supported"}
"""Results that are no errors, by protocol."""
DIAMETER_ANSWERS = "eir_diameter_answers_total"
REGULAR = {
    DIAMETER_ANSWERS: REGULAR_DIAMETER, "eir_sbi_responses_total": REGULAR_N5G, "eir_map_answers_total": REGULAR_MAP,
    "eir_gsup_answers_total": {"ack", "nack"},
}  # fmt: skip
"""Results that are no errors, by the metric that counts the answers to peers."""

NODE_RULES = (
    AlertRule("EirInternalErrors", "an internal error occurred, and its request was answered 5012 (event=fault)", _rose("eir_diameter_errors_total", 5, where=_equal("reason", "internal"))),
    AlertRule("EirSlow", "more than 1 % of the checks took longer than 50 ms in the last 5 minutes", _slow_checks, 240),
    AlertRule("EirReloadFailed", "the last reload was refused; the previous configuration is in force", _is("eir_config_last_reload_successful", value=0)),
    AlertRule("EirRestartNeeded", "keys whose new values need a restart: {}", _is("eir_config_needs_restart", "key")),
    AlertRule("EirFilesRunOut", "processes with over 90 % of their permitted files open: {}", _processes_near_file_limit),
    AlertRule("EirWorkerRestarted", "a worker ended unexpectedly in the last 15 minutes and was restarted", _rose("eir_worker_restarts_total", 15)),
    AlertRule("EirPasswordGuessed", "the page locked out an address after wrong passwords in the last 15 minutes (event=client_refused)", _rose("eir_clients_refused_total", 15, where=_is_lockout)),
)  # fmt: skip
PEER_RULES = (
    AlertRule("EirPeerLost", "no connection for 2 minutes: {}", _lost_peers, 120),
    AlertRule("EirNoPeers", "no peer is connected", _is("eir_peer_up", value=0), 60),
    AlertRule("EirNotRegistered", "not registered with any NRF", _is("eir_nrf_registered", value=0), 120),
    AlertRule("EirFeedFails", "rows of a register were rejected in the last 15 minutes with HTTP status {}", _rose("eir_feed_rows_total", 15, "result", _is_rejected_row)),
    AlertRule("EirInterfaceFaulty", "interfaces whose process does not run, or whose file cannot be used: {}", _exceeds("eir_interface_faulty", 0, "interface")),
    AlertRule("EirDeviceAuthenticityFails", "requests to DeviceAuthenticity failed in the last 15 minutes with HTTP status {}", _rose("eir_device_authenticity_total", 15, "result", _is_server_error)),
    AlertRule("EirPathLost", "peers with SCTP paths that are down: {}", _exceeds("eir_sctp_paths", 0, "peer", _equal("state", "down"))),
    AlertRule("EirPeersRefused", "connections were refused in the last 10 minutes: {} (event=peer_refused)", _rose("eir_peers_refused_total", 10, "reason"), 540),
    AlertRule("EirErrorAnswers", "peers with errors in more than 1 % of their answers: {}", _errors("eir_diameter_answers_total", REGULAR_DIAMETER), 240),
    AlertRule("EirErrorResponses", "peers with errors in more than 1 % of their responses: {}", _either(_errors("eir_sbi_responses_total", REGULAR_N5G), _errors("eir_map_answers_total", REGULAR_MAP)), 240),
    AlertRule("EirHlrAway", "peers whose HLR did not answer in the last 5 minutes, so that phones could not attach: {}", _either(_is("eir_gsup_hlr_up", "peer", 0), _rose("eir_gsup_not_passed_total", 5, "peer", _is_hlr_fault))),
    AlertRule("EirShedding", "peers whose requests above a rate limit were rejected in the last 5 minutes: {}", _rose("eir_shed_total", 5, "peer")),
    AlertRule("EirCertificateExpires", "the node's certificate expires within 14 days", _expiring_certificate),
    AlertRule("EirIdentityErrors", "peers without a valid IMEI in more than 1 % of their requests: {}", _peers_without_identity, 540),
)  # fmt: skip
LIST_RULES = (
    AlertRule("EirNoLists", "no list is in force, so no check finds a listed device", _missing_lists),
    AlertRule("EirReleaseOverdue", "lists whose next release is overdue: {}", _overdue_lists),
    AlertRule("EirListExpiresSoon", "lists that expire within 3 days: {}", _within("eir_list_expires_timestamp_seconds", 0, 3 * 86400)),
    AlertRule("EirListExpired", "lists past their expiry: {}", _within("eir_list_expires_timestamp_seconds", float("-inf"), 0)),
    AlertRule("EirReleaseRefused", "lists with a refused release in the last hour (eir history): {}", _within("eir_release_last_refused_timestamp_seconds", -3600, float("inf"))),
    AlertRule("EirForced", "lists for which an operator lifted a limit in the last day (eir history): {}", _within("eir_release_last_forced_timestamp_seconds", -86400, float("inf"))),
    AlertRule("EirInboxUnusable", "the drop folder cannot be used", _is("eir_inbox_usable", value=0), 60),
    AlertRule("EirInboxWaiting", "releases wait in the drop folder (event=release_waiting)", _exceeds("eir_inbox_waiting_releases", 0), 840),
    AlertRule("EirListBehind", "lists behind their source for longer than `source.patience`: {} (eir pull)", _exceeds_patience("eir_source_ahead_timestamp_seconds")),
    AlertRule("EirSourceUnreached", "lists whose source is not reached: {} (eir pull)", _exceeds_patience("eir_source_reached_timestamp_seconds")),
    AlertRule("EirAcknowledgementsNotTaken", "lists whose source does not accept acknowledgements: {} (event=acknowledgement_not_given)", _lists_not_acknowledged, 1740),
    AlertRule("EirStoreAway", "the store is away; the node answers from memory", _is("eir_store_up", value=0)),
    AlertRule("EirStoreLostData", "lists of which the store lost data: {}", _is("eir_store_lost_data", "list")),
    AlertRule("EirHistoryDiffers", "the store replaced changes that this node held, or the node's journal was damaged (eir history --verify)", _is("eir_history_differs")),
    AlertRule("EirHistoryNearlyFull", "the history uses more than 80 % of history.max_bytes", _full_history),
    AlertRule("EirChangesLost", "lists of which the store lost changes: {} (event=lost_changes_kept)", _is("eir_list_lost_changes", "list")),
    AlertRule("EirListUnrecorded", "lists in force whose newest change the history lacks: {} (eir history)", _is("eir_list_unrecorded", "list")),
    AlertRule("EirCopyFailed", "lists whose last good copy cannot be written or read: {} (event=copy_failed)", _is("eir_copy_failed", "list")),
    AlertRule("EirClockDiffers", "the host's clock and the time of the node differ by more than 1 minute (event=clock_jumped)", _exceeds("eir_clock_difference_seconds", DIFFERENCE_MAX_S)),
    AlertRule("EirFollowLag", "the node has been behind its store for more than 30 s", _exceeds("eir_follow_lag_seconds", 30)),
    AlertRule("EirOverrideActive", "the policy's override gives every check the same answer", _is("eir_override_active")),
    AlertRule("EirBlockingJumped", "the share of blocked checks is more than three times that of the day before", _jump_of_blocking, 240),
    AlertRule("EirSightingsDropped", "checks are missing in the record: {}", _rose("eir_sightings_dropped_total", 10, "reason"), 540),
    AlertRule("EirFirstSightingsRefused", "rows in the store's record of first sightings break a bound and are left out (event=first_seen_refused)", _exceeds("eir_first_seen_refused_devices", 0)),
    AlertRule("EirFirstSightingsUnrecorded", "peers with more new devices than `first_seen.new_per_peer`; further devices are not recorded: {}", _rose("eir_first_seen_unrecorded_checks_total", 10, "peer"), 240),
    AlertRule("EirEventsDropped", "receivers that events do not reach: {}", _rose("eir_events_dropped_total", 10, "to"), 240),
)  # fmt: skip
RULES = (*NODE_RULES, *PEER_RULES, *LIST_RULES)


class Alerts:
    """Evaluation of all rules over time. The caller calls `end_minute` every EVERY_S."""

    def __init__(self) -> None:
        self._recent = RecentMetrics()
        self._since: dict[tuple[str, str], float] = {}
        """Unix time since which a rule holds for a subject, by alert and subject."""

    def end_minute(self, snapshot: Snapshot, now: float) -> None:
        """End the current minute: evaluate all rules, and store the increases of the counters."""
        self.troubles(snapshot, now)
        self._recent.end_minute()

    def troubles(self, snapshot: Snapshot, now: float) -> list[Trouble]:
        """Return the alerts whose conditions hold now."""
        self._recent.update(snapshot, now)
        before = self._since
        self._since = {}
        troubles = []
        for rule in RULES:
            subjects = []
            for subject in rule.subjects(self._recent):
                key = rule.alert, subject
                self._since[key] = before.get(key, now)
                if now - self._since[key] >= rule.wait_s:
                    subjects.append(subject)
            if subjects:
                troubles.append(Trouble(rule.alert, rule.text_for(subjects)))
        return troubles

    def since(self, status_text: str) -> float | None:
        """Return the Unix time since which the alert of a text of `eir status` holds; None if no rule holds for the text.

        If the text names subjects of the alert, the earliest time of these subjects counts.
        """
        words = {word.strip(",:;()") for word in status_text.split()}
        alert = alert_of(status_text)
        times = {subject: at for (name, subject), at in self._since.items() if name == alert}
        named = [at for subject, at in times.items() if subject in words]
        return min(named or times.values(), default=None)

    def traffic(self) -> dict[str, PeerTraffic]:
        """Return the traffic of each peer in the last minutes, by peer label."""
        return self._recent.traffic()


TEXTS = (
    *((rule.text, rule.alert) for rule in RULES),
    *((each.text, each.alert) for each in StatusText),
    *((text, alert) for interface in INTERFACES for text, alert in interface.alerts),
)
"""Each text of the status that an alert explains, with `{}` for a value, and the name of the alert."""
_PATTERNS = [(re.compile(".*".join(map(re.escape, text.split("{}"))), re.DOTALL), alert) for text, alert in TEXTS]


def alert_of(status_text: str) -> str | None:
    """Return the name of the alert to which a text of `eir status` belongs; None if the text belongs to no alert."""
    return next((alert for pattern, alert in _PATTERNS if pattern.fullmatch(status_text)), None)

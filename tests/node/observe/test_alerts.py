"""No alert fires while `eir status` is OK: each critical and warning alert has its condition in the status, by the same metrics.

The metrics are those of deploy/prometheus/alerts_test.yml, by which promtool shows that the alert fires at that time.
"""

import os
import re
import signal
from collections import defaultdict
from pathlib import Path

import pytest
import yaml
from simulated.node import LISTED, TRACKED, children, until
from test_status import reports, status_of

from eir.node.observe.alerts import CHECKS, EVERY_S, RULES, SUBJECTS_SHOWN, TEXTS, Alerts, RecentMetrics, alert_of
from eir.node.observe.metrics import FAMILIES
from eir.node.observe.status_texts import StatusText

PROMETHEUS = Path(__file__).parents[3] / "deploy" / "prometheus"
SEVERE = {
    alert["alert"]: alert
    for group in yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]
    for alert in group["rules"]
    if alert["labels"]["severity"] != "info"
}
STATES = {alert: rule["labels"]["severity"].upper() for alert, rule in SEVERE.items()}
"""State of `eir status` while an alert fires."""
EXAMPLES = yaml.safe_load((PROMETHEUS / "alerts_test.yml").read_text())["tests"]
BETWEEN_NODES = {"EirListsDiffer", "EirListContentDiffers", "EirListMissing"}
"""Alerts that compare nodes: the metrics of one node do not show their conditions."""
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
FAMILY = {family.name: family for family in FAMILIES}


def seconds(text):
    return sum(int(number) * SECONDS[unit] for number, unit in re.findall(r"(\d+)([smhd])", text))


def samples(text):
    """Parse promtool's notation of a series; a missing sample is None."""
    values = []
    for token in text.split():
        first, step, times = re.fullmatch(r"(_|-?[\d.]+)([+-][\d.]+)?(?:x(\d+))?", token).groups()
        if first == "_":
            values += [None] * int(times or 1)
        else:
            values += [float(first) + number * float(step or 0) for number in range(int(times or 0) + 1)]
    return values


def snapshots(example):
    """Return the metrics of each node of an example by the time in seconds: instance → time → snapshot."""
    step, found = seconds(example["interval"]), defaultdict(lambda: defaultdict(dict))
    for row in example["input_series"]:
        name, text = re.fullmatch(r"(\w+)\{(.*)\}", row["series"]).groups()
        labels = dict(re.findall(r'(\w+)="([^"]*)"', text))
        family = FAMILY.get(name.removesuffix("_bucket"))
        if family is None:  # `up`, which Prometheus makes
            continue
        names = family.labels or (("le",) if family.kind == "histogram" else ())
        key = tuple(labels.get(each, "") for each in names)
        for number, value in enumerate(samples(row["values"])):
            for at in range(number * step, (number + 1) * step):
                if value is not None and at % 60 == 0:
                    found[labels["instance"]][at].setdefault(family.name, {})[key] = value
    return found


def status_at(metrics, end):
    """Return the document of `eir status` of a node that had these metrics."""
    alerts = Alerts()
    for at in range(0, end, 60):
        if at in metrics:
            alerts.end_minute(metrics[at], at)
    status = status_of()
    healthy = status.document(reports())
    assert (healthy["state"], healthy["troubles"]) == ("OK", [])
    return status.document(reports(), alerts.troubles(metrics[end], end))


def cases():
    """(alert, example, time, instances of which at least one has to show the condition) of each time at which an alert fires."""
    for example in EXAMPLES:
        for case in example["alert_rule_test"]:
            for fired in case["exp_alerts"]:
                if case["alertname"] in SEVERE:
                    yield case["alertname"], example, seconds(case["eval_time"]), fired["exp_labels"].get("instance")


def nodes_of(example, alert):
    """Return the metrics of an example's nodes, each of which has a list unless it is the lack of one that counts."""
    nodes = snapshots(example)
    for metrics in nodes.values():
        for snapshot in metrics.values() if alert != "EirNoLists" else ():
            snapshot.setdefault("eir_list_serial", {("any",): 1.0})
    return nodes


@pytest.mark.parametrize("alert", sorted(SEVERE.keys() - BETWEEN_NODES - {"EirDown"}))
def test_while_an_alert_fires_the_status_of_its_node_is_not_ok_and_names_its_condition(alert):
    shown = 0
    for name, example, at, instance in cases():
        if name == alert:
            nodes = nodes_of(example, alert)
            if alert == "EirNoLists":  # the node has no series of its own
                nodes.setdefault(instance, {at: {}})
            found = [status_at(nodes[each], at) for each in ([instance] if instance else nodes)]
            assert any(
                each["state"] in {STATES[alert], "CRITICAL"}
                for each in found
                if alert in map(alert_of, each["troubles"])
            ), found
            shown += 1
    assert shown


@pytest.mark.parametrize(("text", "alert"), TEXTS)
def test_the_status_is_as_severe_as_the_alert_of_its_text(text, alert):
    for part in ("losses", "warnings"):
        found = status_of(**{part: [lambda: [text.format(*range(9))]]}).document(reports())
        assert (found["state"], found["ready"] == "ready") == (STATES[alert], part == "warnings")
        assert found["code"] == {"WARNING": 1, "CRITICAL": 2}[found["state"]]


def test_each_alert_of_one_node_has_a_rule_that_holds_a_minute_before_it_fires():
    """A status between two calls of `end_minute` is at most a minute behind."""
    assert sorted(rule.alert for rule in RULES) == sorted(SEVERE.keys() - BETWEEN_NODES - {"EirDown"})
    for rule in RULES:
        if minutes := re.search(r"for (\d+) minutes", rule.text):  # the status has another text of this alert before
            assert rule.wait_s == 60 * int(minutes[1])
            continue
        assert rule.wait_s <= max(0, seconds(SEVERE[rule.alert].get("for", "0s")) - EVERY_S), rule.alert


class Windows(RecentMetrics):
    """Metrics without samples, and the numbers of minutes for which a rule asks."""

    def __init__(self):
        super().__init__()
        self.minutes = set()

    def rises(self, name, minutes, *how):
        self.minutes.add(minutes)
        return super().rises(name, minutes, *how)


def test_each_rule_and_its_alert_count_the_same_minutes():
    for rule in RULES:
        windows, alert = Windows(), SEVERE[rule.alert]
        list(rule.subjects(windows))
        said = re.findall(r"in the last (\d+) minutes", rule.text) or re.findall(r"\[(\d+)m\]", alert["expr"])
        assert windows.minutes <= set(map(int, said)), rule.alert


def test_each_minute_of_blocked_checks_counts_once():
    recent = RecentMetrics()
    kinds = [{"status": "blacklisted"}, {"status": "whitelisted"}, {"status": "blacklisted", "probe": "yes"}]
    for minute in range(1, 5):
        samples = {tuple(kind.get(label, "") for label in FAMILY[CHECKS].labels): 10.0 * minute for kind in kinds}
        recent.update({CHECKS: samples}, 60 * minute)
        if minute < 4:
            recent.end_minute()
    assert [recent.blocked(minutes) for minutes in (0, 1, 9)] == [(10, 20), (20, 40), (40, 80)]
    assert [recent.blocked_before(minutes) for minutes in (0, 1, 9)] == [(30, 60), (20, 40), (0, 0)]


def test_no_rule_holds_where_its_alert_is_quiet():
    """Alerts that wait (`for`) are left out if their rule does not."""
    waits = {rule.alert: rule.wait_s for rule in RULES}
    quiet = set()
    for example in EXAMPLES:
        for case in example["alert_rule_test"]:
            alert, at = case["alertname"], seconds(case["eval_time"]) // 60 * 60
            if case["exp_alerts"] or alert not in waits or ("for" in SEVERE[alert] and not waits[alert]):
                continue
            for instance, metrics in nodes_of(example, alert).items():
                if at in metrics:
                    assert alert not in map(alert_of, status_at(metrics, at)["troubles"]), (alert, instance, at)
                    quiet.add(alert)
    assert len(quiet) > len(RULES) / 2


@pytest.mark.parametrize("alert", sorted(BETWEEN_NODES))
def test_an_alert_without_a_rule_compares_nodes(alert):
    assert "instance" not in SEVERE[alert]["expr"]
    ((_, example, _, instance), *_) = [case for case in cases() if case[0] == alert]
    assert instance is None
    assert len(snapshots(example)) >= 2


def test_a_node_that_does_not_answer_is_critical(site):
    """EirDown."""
    assert site.eir("status", status=2).stdout.startswith("EIR CRITICAL - no node runs")


def test_a_node_without_lists_is_not_ok(site):
    site.configure(lists={}, policy={"rules": []})
    node = site.start()
    said = site.eir("status", status=2).stdout
    assert said.startswith("EIR CRITICAL - no list is in force, so no check finds a listed device; 0 lists")
    site.configure(lists={"own": {"local": True}}, policy={"rules": [{"list": "own", "answer": "blacklisted"}]})
    site.eir("reload")
    assert "no list is in force" in site.eir("status", status=2).stdout
    site.eir("add", "own", LISTED, "--reason", "test")
    until(lambda: node.status()["state"] == "OK")


def test_a_node_that_lacks_nothing_is_ok(site):
    site.load([LISTED])
    site.load([TRACKED], list_name="tracked")
    node = site.start()
    until(lambda: node.status()["lists"])
    assert node.status()["troubles"] == []


def test_a_refused_release_and_a_dead_worker_are_troubles_for_a_while(site):
    """Provoked on a node: neither is a state of the node, both are alerts."""
    site.load([LISTED])
    site.load([TRACKED], list_name="tracked")
    node = site.start()
    site.eir("load", site.release([LISTED]), status=1)
    until(lambda: "EirReleaseRefused" in map(alert_of, node.status()["troubles"]))
    os.kill(children(node.pid)["worker-0"], signal.SIGKILL)
    until(lambda: "EirWorkerRestarted" in map(alert_of, node.status()["troubles"]))


def test_many_subjects_are_cut():
    paths = {
        "eir_sctp_paths": {(f"mme{number}", "down"): 1.0 for number in range(SUBJECTS_SHOWN + 3)},
        "eir_list_serial": {("l",): 1.0},
    }
    ((alert, text),) = Alerts().troubles(paths, 0.0)
    assert (alert, text[-12:]) == ("EirPathLost", "mme9, 3 more")


@pytest.mark.parametrize(("errors", "alerts"), [(10, []), (11, ["EirErrorAnswers"])])
def test_errors_are_a_trouble_above_one_in_a_hundred_answers(errors, alerts):
    trouble, names = Alerts(), FAMILY["eir_diameter_answers_total"].labels
    for minute in range(8):
        counts = {"2001": 1000.0 - errors, "5012": float(errors)}
        answers = {
            tuple({"peer": "mme", "result": result}.get(label, "") for label in names): minute * count
            for result, count in counts.items()
        }
        snapshot = {"eir_diameter_answers_total": answers, "eir_list_serial": {("l",): 1.0}}
        found = trouble.troubles(snapshot, 60.0 * minute)
    assert [alert for alert, _ in found if alert == "EirErrorAnswers"] == alerts


def test_since_when_an_alert_holds():
    """Of the subjects that a text names, the earliest time counts: of `a` not that of `ab`."""
    alerts, expired = Alerts(), "eir_list_expires_timestamp_seconds"
    alerts.troubles({expired: {("ab",): 100.0, ("a",): 300.0}, "eir_store_up": {(): 0.0}}, 200.0)
    alerts.troubles({expired: {("ab",): 100.0, ("a",): 300.0}, "eir_store_up": {(): 0.0}}, 400.0)
    assert alerts.since("list ab is past its expiry") == 200.0
    assert alerts.since("list a is past its expiry") == 400.0
    assert alerts.since("lists past their expiry: ab, a") == 200.0
    assert alerts.since(StatusText.STORE_AWAY.text) == 200.0
    alerts.troubles({"eir_store_up": {(): 1.0}}, 500.0)
    assert alerts.since(StatusText.STORE_AWAY.text) is None
    assert alerts.since("peer mme is disabled") is None


def test_the_traffic_of_each_peer_in_the_last_5_minutes():
    """Answers of Diameter include those to watchdogs, which are no checks."""
    recent = RecentMetrics()
    assert recent.traffic() == {}
    for minute in range(1, 11):
        checks = 600.0 * max(0, minute - 5)
        recent.update({
            "eir_diameter_messages_total": {
                ("mme", "ME-Identity-Check", "request", "in"): checks, ("mme", "Device-Watchdog", "request", "in"): 2.0 * minute,
            },
            "eir_diameter_answers_total": {("mme", "2001"): 0.9 * checks, ("mme", "5012"): 0.1 * checks, ("idle", "2001"): 2.0 * minute},
            "eir_sbi_responses_total": {("amf", "200"): 54.0 * minute, ("amf", "500"): 6.0 * minute},
            "eir_map_answers_total": {("msc", "unknown"): 60.0 * minute},
            "eir_gsup_answers_total": {("osmo", "ack"): 60.0 * minute, ("osmo", "nack"): 60.0 * minute},
        }, 60.0 * minute)  # fmt: skip
        recent.end_minute()
    assert recent.traffic() == {
        "mme": (10.0, pytest.approx(0.1)), "idle": (0.0, 0.0), "amf": (1.0, 0.1), "msc": (1.0, 0.0), "osmo": (2.0, 0.0),
    }  # fmt: skip

"""Status, alerts, page and readiness agree on every condition of the table.

The metrics are those of deploy/prometheus/alerts_test.yml, by which promtool shows that the alert fires at that time.
"""

import os
import re
import signal
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import yaml
from simulated.node import LISTED, TRACKED, children, until
from test_page import shown as page_content
from test_status import AWAY, answering, status_of
from troubles import alerts_of

from eir.node.observe import promql
from eir.node.observe.alerts import CHECKS, EVERY_S, Alerts, RecentMetrics
from eir.node.observe.conditions import CONDITIONS, CRITICAL, INFO, SUBJECTS_SHOWN, WARNING
from eir.node.observe.metrics import FAMILIES
from eir.node.observe.page import page
from eir.node.observe.status import READY
from eir.schema import DETAILS

ROOT = Path(__file__).parents[3]
PROMETHEUS = ROOT / "deploy" / "prometheus"
SEVERE = {each.alert: each for each in CONDITIONS if each.alert and each.severity != INFO}
EXAMPLES = yaml.safe_load((PROMETHEUS / "alerts_test.yml").read_text())["tests"]
BETWEEN_NODES = {"EirListsDiffer", "EirListContentDiffers"}
"""Alerts that compare nodes: the metrics of one node do not show their conditions."""
NO_STATUS = {
    "EirDown": ["a node that is gone, and one that is there"],
    "EirListMissing": ["no list at all, a list that one node lacks, releases that differ"],
}
"""Examples of alerts that no node's status can name: a node is gone, or nodes are compared."""
FAMILY = {family.name: family for family in FAMILIES}


def seconds(text):
    return sum(int(number) * promql.SECONDS[unit] for number, unit in re.findall(r"(\d+)([smhd])", text))


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


def shown_at(metrics, end):
    """Return document, web page and word of readiness of a node that had these metrics."""
    alerts = Alerts()
    for at in range(0, end, 60):
        if at in metrics:
            alerts.end_minute(metrics[at], at)
    status = status_of(lambda: metrics[end])
    healthy = status_of().document(answering())
    assert (healthy["state"], healthy["troubles"]) == ("OK", [])
    troubles = alerts.troubles(metrics[end], end)
    document = status.document(answering(), troubles)
    content = page_content(status=document, troubles={each.text: each for each in troubles})
    return document, page(content).body.decode(), status.readiness(answering()).word


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


@pytest.mark.parametrize("alert", sorted(SEVERE.keys() - BETWEEN_NODES))
def test_while_an_alert_fires_status_page_and_readiness_of_its_node_name_the_condition(alert):
    shown = 0
    for name, example, at, instance in cases():
        if name != alert or example["name"] in NO_STATUS.get(alert, ()):
            continue
        nodes = nodes_of(example, alert)
        if alert == "EirNoLists":  # the node has no series of its own
            nodes.setdefault(instance, {at: {}})
        named = []
        for each in [instance] if instance else nodes:
            document, text, word = shown_at(nodes[each], at)
            if alert in alerts_of(document):
                named.append(each)
                conditions = [each for each in CONDITIONS if each.alert == alert]
                assert document["state"] in {conditions[0].severity.upper(), "CRITICAL"}
                assert f"/runbook#{alert.lower()}" in text
                assert (word != READY) >= all(condition.degrades for condition in conditions)
        assert named, (alert, example["name"], at)
        shown += 1
    assert shown


def fields(condition):
    return condition.alert, condition.expression


@pytest.mark.parametrize("condition", CONDITIONS, ids=fields)
def test_the_parts_of_a_condition_agree(condition):
    assert condition.severity in {CRITICAL, WARNING, INFO}
    assert condition.wait_s <= max(0, promql.seconds(condition.lasting) - EVERY_S)  # a status is at most a minute old
    windows = set(re.findall(r"\[(\d+)m\]", condition.expression))
    assert set(re.findall(r"in the last (\d+) minutes", condition.text)) <= windows
    assert set(re.findall(r"\beir_\w+", condition.expression)) <= {
        name + end for name in FAMILY for end in ("", "_bucket")
    }
    promql.parse(condition.expression)


def test_the_rules_of_prometheus_are_those_of_the_table():
    run = subprocess.run(
        [sys.executable, ROOT / "scripts" / "alerts", "--check"], capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stderr) == (0, "")


def test_text_after_an_expression_is_an_error():
    with pytest.raises(ValueError, match="cannot parse '\\)'"):
        promql.parse("eir_store_up == 0)")


def test_each_minute_of_blocked_checks_counts_once():
    recent = RecentMetrics()
    kinds = [{"status": "blacklisted"}, {"status": "whitelisted"}, {"status": "blacklisted", "probe": "yes"}]
    for minute in range(1, 5):
        samples = {
            tuple(kind.get(label, "") for label in FAMILY[CHECKS].labels)[: 5 if "probe" in kind else 4]: 10.0 * minute
            for kind in kinds
        }
        recent.update({CHECKS: samples}, 60 * minute)
        if minute < 4:
            recent.end_minute()
    for begin, wanted in (("", {0: (10, 20), 1: (20, 40), 9: (40, 80)}), (" offset 2m", {1: (10, 20), 9: (10, 20)})):
        for minutes, counts in wanted.items():
            window_s, offset_s = 60.0 * minutes, 120.0 if begin else 0.0
            rises = recent.rises(CHECKS, window_s, offset_s)
            blocked = sum(rise for labels, rise in rises.items() if labels[0] == "blacklisted" and not labels[-1])
            checks = sum(rise for labels, rise in rises.items() if not labels[-1])
            assert (blocked, checks) == counts


def test_no_condition_holds_where_its_alert_is_quiet():
    """Alerts that wait (`for`) are left out if their status does not."""
    rushed = {each.alert for each in CONDITIONS if each.lasting != "0s" and not each.wait_s}
    quiet = set()
    for example in EXAMPLES:
        for case in example["alert_rule_test"]:
            alert, at = case["alertname"], seconds(case["eval_time"]) // 60 * 60
            if case["exp_alerts"] or alert not in SEVERE or alert in rushed:
                continue
            for instance, metrics in nodes_of(example, alert).items():
                if at in metrics:
                    document, *_ = shown_at(metrics, at)
                    assert alert not in alerts_of(document), (alert, instance, at)
                    quiet.add(alert)
    assert len(quiet) > len(SEVERE) / 3, len(quiet)


@pytest.mark.parametrize("alert", sorted(BETWEEN_NODES))
def test_an_alert_that_compares_nodes_holds_on_no_single_node(alert):
    assert "instance" not in SEVERE[alert].expression
    example, at, instance = next(case[1:] for case in cases() if case[0] == alert)
    assert instance is None
    nodes = snapshots(example)
    assert len(nodes) >= 2
    for metrics in nodes.values():
        assert alert not in alerts_of(shown_at(metrics, at)[0])


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


def test_a_refused_release_and_a_dead_process_are_troubles_for_a_while(site):
    """Provoked on a node: neither is a state of the node, both are alerts."""
    site.load([LISTED])
    site.load([TRACKED], list_name="tracked")
    node = site.start()
    site.eir("load", site.release([LISTED]), status=1)
    until(lambda: "EirReleaseRefused" in alerts_of(node.status()))
    os.kill(children(node.pid)["answering"], signal.SIGKILL)
    until(lambda: "EirProcessRestarted" in alerts_of(node.status()))


def test_many_subjects_are_cut():
    paths = {
        "eir_sctp_paths": {(f"mme{number}", "down"): 1.0 for number in range(SUBJECTS_SHOWN + 3)},
        "eir_list_serial": {("l",): 1.0},
    }
    (trouble,) = Alerts().troubles(paths, 0.0)
    assert (trouble.condition.alert, trouble.text[-12:]) == ("EirPathLost", "mme9, 3 more")


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
    assert [each.condition.alert for each in found if each.condition.alert == "EirErrorAnswers"] == alerts


def test_since_when_a_condition_holds():
    alerts, expired, expiry = Alerts(), "eir_list_expires_timestamp_seconds", {("ab",): 100.0, ("a",): 300.0}

    def since(metrics, now):
        return {each.text: each.since for each in alerts.troubles(metrics, now)}

    metrics = {expired: expiry, "eir_store_up": {(): 0.0}, "eir_list_serial": {("a",): 1.0}}
    since(metrics, 200.0)
    assert since(metrics, 400.0) == {
        "list ab is past its expiry": 200.0, "list a is past its expiry": 400.0, AWAY: 200.0,
    }  # fmt: skip
    assert AWAY not in since(metrics | {"eir_store_up": {(): 1.0}}, 500.0)
    assert since(metrics, 600.0)[AWAY] == 600.0


@pytest.mark.parametrize(
    ("details", "text"),
    [
        ({}, "lists of which the store lost data: a, b"),
        ({("EirStoreLostData", "b", "it shows serial 1"): 1.0}, "lists of which the store lost data: a, b (it shows serial 1)"),
        ({("EirStoreLostData", "", "all of it"): 1.0}, "lists of which the store lost data: a, b: all of it"),
    ],
)  # fmt: skip
def test_details_stand_in_the_text(details, text):
    metrics = {"eir_store_lost_data": {("a",): 1.0, ("b",): 1.0}, "eir_list_serial": {("a",): 1.0}, DETAILS: details}
    assert [each.text for each in Alerts().troubles(metrics, 0.0)] == [text]


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

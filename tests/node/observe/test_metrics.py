"""The metrics' page: names, kinds and merging by the table, in Prometheus' own format."""

import os
import subprocess
from datetime import datetime
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from eir.lists.log.change import Head
from eir.node.observe.lately import release_metrics
from eir.node.observe.metrics import (
    FAMILIES,
    TICKS,
    exposition,
    histogram,
    lasting_counters,
    merge,
    unknown,
    usage_metrics,
)

ROOT = Path("/")
BY_NAME = {family.name: family for family in FAMILIES}


def one_of_each():
    """A snapshot with one sample of each metric."""
    bounds = (0.001, 0.1)
    return {
        family.name: histogram(bounds, [3, 1, 1], 0.75)
        if family.kind == "histogram"
        else {tuple("abcd"[: len(family.labels)]): 2.0}
        for family in FAMILIES
    }


def parsed(text):
    return {family.name: family for family in text_string_to_metric_families(text)}


def test_every_sample_is_there_with_its_labels():
    text = exposition(one_of_each()).decode()
    found = parsed(text)
    for family in FAMILIES:
        shown = found[family.name.removesuffix("_total") if family.kind == "counter" else family.name]
        assert (shown.type, shown.documentation) == (family.kind, family.help)
        if family.kind != "histogram":
            (sample,) = shown.samples
            assert (sample.name, sample.value, sample.labels) == (
                family.name,
                2.0,
                dict(zip(family.labels, "abcd", strict=False)),
            )


@pytest.mark.parametrize("snapshot", [one_of_each(), {}], ids=["full", "empty"])
def test_promtool_has_no_objection(snapshot):
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=exposition(snapshot), capture_output=True, check=False
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


def test_names_are_there_without_samples():
    text = exposition({}).decode()
    for family in FAMILIES:
        if family.kind != "histogram":
            assert f"# TYPE {family.name} {family.kind}\n" in text


def test_a_histogram_is_cumulative_with_count_and_sum():
    samples = {
        (sample.name, sample.labels.get("le")): sample.value
        for sample in parsed(exposition(one_of_each()).decode())["eir_check_duration_seconds"].samples
    }
    name = "eir_check_duration_seconds"
    assert samples == {
        (f"{name}_bucket", "0.001"): 3, (f"{name}_bucket", "0.1"): 4, (f"{name}_bucket", "+Inf"): 5,
        (f"{name}_count", None): 5, (f"{name}_sum", None): 0.75,
    }  # fmt: skip


def test_a_histogram_needs_a_count_above_its_last_bound():
    with pytest.raises(ValueError, match="shorter"):
        histogram((1.0,), [1], 0.0)


def test_a_label_value_of_any_text_is_escaped():
    text = exposition({"eir_peer_up": {('a"b\\c\nd',): 1.0}}).decode()
    (sample,) = parsed(text)["eir_peer_up"].samples
    assert sample.labels["peer"] == 'a"b\\c\nd'


def test_a_name_that_is_not_in_the_table_costs_no_page():
    snapshot = {"eir_surprise": {("x",): 1.0}, "eir_store_up": {(): 1.0}}
    assert unknown(snapshot) == ["eir_surprise"]
    text = exposition(merge([snapshot, snapshot])).decode()
    assert "eir_store_up 1.0" in text
    assert "surprise" not in text
    assert lasting_counters(snapshot) == {}


def test_processes_become_one_truth():
    a = {
        "eir_checks_total": {("blacklisted", "x", "1", "s13"): 3.0}, "eir_list_serial": {("x",): 7.0}, "eir_peer_up": {("m",): 0.0, ("n",): 0.0},
        "eir_follow_lag_seconds": {(): 0.5}, "eir_store_up": {(): 1.0}, "eir_check_duration_seconds": {("1",): 2.0, ("sum",): 0.5},
    }  # fmt: skip
    b = {
        "eir_checks_total": {("blacklisted", "x", "1", "s13"): 4.0, ("greylisted", "y", "late", "s13"): 1.0}, "eir_list_serial": {("x",): 6.0},
        "eir_peer_up": {("m",): 1.0}, "eir_follow_lag_seconds": {(): 0.1}, "eir_store_up": {(): 0.0},
        "eir_check_duration_seconds": {("1",): 5.0, ("sum",): 0.25},
    }  # fmt: skip
    assert merge([a, b]) == merge([b, a]) == {
        "eir_checks_total": {("blacklisted", "x", "1", "s13"): 7.0, ("greylisted", "y", "late", "s13"): 1.0}, "eir_list_serial": {("x",): 6.0},
        "eir_peer_up": {("m",): 1.0, ("n",): 0.0}, "eir_follow_lag_seconds": {(): 0.5}, "eir_store_up": {(): 0.0},
        "eir_check_duration_seconds": {("1",): 7.0, ("sum",): 0.75},
    }  # fmt: skip
    assert merge([]) == {}


@pytest.mark.parametrize(
    ("name", "how"),
    # The design's words: counters and histograms summed, serials the lowest, lag and timestamps the highest, peer_up the highest.
    [
        ("eir_checks_total", "sum"), ("eir_check_duration_seconds", "sum"), ("eir_shed_total", "sum"), ("eir_list_serial", "min"),
        ("eir_follow_lag_seconds", "max"), ("eir_peer_last_request_timestamp_seconds", "max"),
        ("eir_release_last_refused_timestamp_seconds", "max"), ("eir_release_last_forced_timestamp_seconds", "max"), ("eir_peer_up", "max"), ("eir_override_active", "max"),
        # read from the one history by each process, so that a sum would count each release once for each process
        ("eir_releases_total", "max"),
    ],
)  # fmt: skip
def test_how_each_merges(name, how):
    assert BY_NAME[name].merge == how


def test_processor_time_is_that_of_user_and_system_in_seconds():
    def used():
        times = os.times()
        return times.user, times.system

    while min(used()) < 20 / TICKS:  # system calls use both kinds
        ROOT.stat()
    before = sum(used())
    shown = usage_metrics(os.getpid())["eir_process_cpu_seconds_total"]["manager",]
    assert before - 2 / TICKS <= shown <= sum(used()) + 2 / TICKS


def test_release_times_are_those_of_the_head():
    """The interval counts from the fourth release on, so that an overdue one is not one of a list that has just begun."""
    hours = [f"2026-12-01T{hour:02d}:00:00Z" for hour in (1, 2, 3, 9)]
    heads = {"hourly": Head(releases=tuple(hours)), "new": Head(releases=tuple(hours[:3])), "own": Head()}
    found = release_metrics(heads)
    assert found["eir_release_interval_seconds"] == {("hourly",): 3600.0}
    last = found["eir_release_last_accepted_timestamp_seconds"]
    assert last == {
        (name,): datetime.fromisoformat(time).timestamp() for name, time in (("hourly", hours[3]), ("new", hours[2]))
    }

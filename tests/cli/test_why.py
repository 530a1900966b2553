"""`eir why`: what was answered at a time, and which release, row, person and reason stood behind it, when all of them have changed since."""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from simulated.node import LISTED, TRACKED, UNLISTED, until
from simulated.wire import HOST, REALM

from eir.checks.explain import question_of
from eir.checks.settings import PolicySettings
from eir.cli.why import ANSWER, answer_history, format_sheet
from eir.device import device_key
from eir.interfaces.s13 import INTERFACE
from eir.lists.log.journal import Journal, JournalEvent
from eir.lists.stores.open import JOURNAL

IMSI = "001010123456789"
NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
TRICKY = "00101009000009"
"""Its reason holds what would clear a terminal."""


def ask(node, *imeis, imsi=None):
    url = "s13://{}:{}?origin_host={}&origin_realm={}".format(*node.address, HOST, REALM)
    return [each.status for each in asyncio.run(INTERFACE.probe_of(url, timeout_s=10.0).ask(imeis, imsi=imsi))]


def now():
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def next_second():
    """Events have whole seconds: what comes next is in another one."""
    begun = int(time.time())
    until(lambda: int(time.time()) > begun)


@pytest.fixture(scope="module")
def told(shared):
    """Two releases of one list, a local list, and checks before, between and after; times between them."""
    shared.configure(
        sightings={"subscribers": "hashed", "window_s": 1},
        lists={**shared.settings["lists"], "here": {"local": True}, "bound": {"local": True, "kind": "pairs"}},
        policy={"rules": [{"list": "here", "answer": "greylisted"}, {"list": "stolen", "answer": "blacklisted"}]},
    )
    shared.load([TRACKED], list_name="tracked")
    shared.load(["imei,reason", f"{LISTED},stolen in transit", f"{UNLISTED},"])
    shared.eir("add", "here", TRACKED, "--reason", "a test phone")
    for imsi in (IMSI, "001010987654321"):
        shared.eir("add", "bound", LISTED, "--imsi", imsi, "--reason", "bound")
    times = {"before": now()}
    next_second()
    node = shared.start()
    with shared:
        assert ask(node, LISTED, TRACKED, imsi=IMSI) == ["blacklisted", "greylisted"]
        next_second()
        times["blocked"] = now()
        next_second()
        shared.load(["imei,reason", f"{UNLISTED},lost", f"{TRICKY},lost \x1b[2J"], serial=2)
        until(lambda: node.status()["lists"]["stolen"]["serial"] == 2)
        assert ask(node, LISTED, imsi=IMSI) == ["whitelisted"]
        shared.configure(policy={"rules": [{"list": "stolen", "answer": "blacklisted"}]})
        next_second()
        shared.eir("reload")
        until(lambda: any(event["what"] == "reload" for event in shared.json("history")))
        yield shared, times


@pytest.fixture
async def explained(tmp_path):
    """The history of an answer at 12:00 to a device that no list names, with reloads before and after."""
    journal = Journal(
        tmp_path / JOURNAL, keep=timedelta(days=9), max_bytes=1 << 20, feed_max_bytes=1 << 20, report=print
    )
    journal.open()
    for hour, what, detail in (
        (11, "reload", "changed: policy"), (13, "reload", "changed: policy"), (14, "reload", "changed: log"),
        (15, "reload", "changed: http, peers"), (16, "reload", "changed: policy, log"), (17, "trace", "changed: policy"),
    ):  # fmt: skip
        journal.append_event(
            JournalEvent(time=f"2026-11-24T{hour}:00:00Z", who="tester@host", what=what, detail=detail)
        )
    journal.close()
    config = SimpleNamespace(lists={}, lists_and_record={}, policy=PolicySettings(), state=tmp_path)
    question = question_of(LISTED, imsi="", software_version="", origin_host="", origin_realm="")
    return await answer_history(config, None, question, device_key(LISTED), NOON)


def test_reloads_since_then_are_those_that_changed_policy_or_peers(explained):
    assert [(each.time[11:13], each.detail) for each in explained.reloads] == [
        ("13", "changed: policy"), ("15", "changed: http, peers"), ("16", "changed: policy, log"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "list_name", "line"),
    [
        ("2", "stolen", "  by rule 2, list stolen"), (12, None, "  by rule 12"), ("default", None, "  by the policy's default"),
        ("override", None, "  by the policy's override"),
    ],
)  # fmt: skip
def test_the_sheet_names_the_rule(explained, rule, list_name, line):
    row = dict.fromkeys(ANSWER, "") | {"first": NOON.isoformat(), "last": NOON.isoformat(), "checks": 1}
    sheet = format_sheet(LISTED, NOON, [row | {"rule": rule, "list": list_name}], [], explained)
    assert line in sheet.splitlines()
    assert "2026-11-24 15:00:00Z tester@host applied a changed configuration: changed: http, peers" in sheet


def test_what_was_answered_then_and_what_stood_behind_it(told):
    site, times = told
    said = site.json("why", LISTED, "--imsi", IMSI, "--at", times["blocked"])
    (answer,) = said["answers"]
    assert (answer["status"], answer["rule"], answer["list"], answer["peer"], answer["checks"]) == (
        "blacklisted",
        "2",
        "stolen",
        "mme",
        1,
    )
    stolen = next(each for each in said["lists"] if each["list"] == "stolen")
    assert stolen["decided"]
    assert (stolen["serial"], stolen["loaded_by"]) == (1, "test@localhost")
    assert stolen["signers"][0].startswith("agency@publisher.example SHA256:")
    (row,) = stolen["rows"]
    assert (row["row"], row["reason"], row["who"]) == (LISTED, "stolen in transit", "test@localhost")
    assert [(each["what"], each["serial"]) for each in stolen["since"]] == [("load", 2)]
    bound = next(each for each in said["lists"] if each["list"] == "bound")
    assert [row["imsi"] for row in bound["rows"]] == [IMSI]
    assert [each["detail"] for each in said["reloads"]] == ["changed: policy"]
    assert said["now"]["status"] == "whitelisted"


def test_no_reason_steers_the_terminal(told):
    site, _ = told
    shown = site.eir("check", TRICKY, "--store").stdout
    assert "lost \\x1b[2J" in shown
    assert "\x1b" not in shown


def test_the_sheet_explains_the_answer_in_words(told):
    site, times = told
    sheet = site.eir("why", LISTED, "--at", times["blocked"]).stdout
    assert f"row {LISTED}: reason stolen in transit" in sheet
    assert "serial 1, in force since" in sheet
    assert "applied a changed configuration" in sheet
    assert "now, by file and store: whitelisted" in sheet


def test_without_a_time_it_is_the_last_check(told):
    site, _ = told
    said = site.json("why", LISTED)
    assert said["answers"][0]["status"] == "whitelisted"
    stolen = next(each for each in said["lists"] if each["list"] == "stolen")
    assert (stolen["serial"], stolen["rows"], stolen["decided"]) == (2, [], False)


def test_who_put_an_entry_there_by_hand(told):
    site, _ = told
    said = site.json("why", TRACKED)
    here = next(each for each in said["lists"] if each["decided"])
    assert (here["list"], here["what"]) == ("here", "add")
    assert here["rows"][0]["reason"] == "a test phone"


def test_a_check_that_is_not_on_record_is_reported_with_the_content_of_the_lists(told):
    site, times = told
    assert "no check of" in site.eir("why", LISTED, "--at", times["before"], status=1).stderr
    done = site.eir("why", UNLISTED, status=1)
    assert f"row {UNLISTED}: reason lost" in done.stdout
    assert site.eir("why", LISTED, "--imsi", "001010000000001", status=1).stderr.startswith("eir: no check of")


@pytest.mark.parametrize("arguments", [("35",), (LISTED, "--at", "soon"), (LISTED, "--imsi", "1")])
def test_wrong_usage(told, arguments):
    site, _ = told
    site.eir("why", *arguments, status=2)

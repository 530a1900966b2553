"""Log lines: one an event, whatever stands in it; few of a kind; none for a normal check, and no whole identifier."""

import os
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated.node import fields
from simulated.patience import PROGRAM_S

from eir.node.observe.log import BURST, FOLDS_MAX, INTERVAL_S, VALUE_MAX, Log, logfmt

IMEI, IMSI, HOST = "35209900176148", "001010123456789", "mme2.example"


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def made(capfd, clock):
    """A log with a clock of ours; `lines()` ends it and gives its lines as dictionaries."""

    def make(**options):
        log = Log(clock, **options)

        def lines():
            log.close()
            return [fields(line) for line in capfd.readouterr().err.splitlines()]

        return log, lines

    return make


def test_a_line_has_time_level_event_and_fields(made):
    log, lines = made()
    log.report("peer_open", peer="mme", host="mme.example.org", level="warning", nothing=None, number=3)
    (line,) = lines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line == {"level": "warning", "event": "peer_open", "peer": "mme", "host": "mme.example.org", "number": "3"}


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), st.text(), max_size=5))
def test_whatever_a_value_holds_it_stays_one_line_and_readable(values):
    line = logfmt(values)
    assert len(line.splitlines()) <= 1
    found = fields(line)
    assert list(found) == list(values)
    for name, value in values.items():
        if all(c.isprintable() or ord(c) < 256 for c in value):
            assert found[name] == value


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("plain", "plain"), ("", '""'), ("two words", '"two words"'), ('a"b', '"a\\x22b"'), ("a=b", '"a=b"'),
        ("line\nbreak", '"line\\x0abreak"'), ("\x1b[2J", '"\\x1b[2J"'), ("back\\slash", "back\\slash"), ("35209900…48", "35209900…48"),
    ],
)  # fmt: skip
def test_values(value, shown):
    assert logfmt({"v": value}) == f"v={shown}"


def test_a_value_has_an_end():
    assert len(logfmt({"host": "h" * 100_000})) < VALUE_MAX + 10


def test_levels(made):
    log, lines = made(level="warning")
    for level in ("debug", "info", "warning", "error"):
        log.report(f"a_{level}", level=level)
    log.configure(level="debug", full_identifiers=False)
    log.report("another_debug", level="debug")
    assert [line["event"] for line in lines()] == ["a_warning", "a_error", "another_debug"]


def test_an_event_that_always_counts_is_not_limited(made):
    log, lines = made()
    for _ in range(BURST + 1):
        log.report("reloaded")
    assert [line.get("suppressed") for line in lines()] == [None] * (BURST + 1)


def test_a_flood_of_one_kind_is_limited_and_what_was_left_out_is_counted(made, clock):
    log, lines = made()
    for _ in range(1000):
        log.report("refused", peer="a", reason="x")
    log.report("refused", peer="b", reason="x")
    log.report("refused", peer="a", reason="y")
    clock.now += INTERVAL_S
    log.report("refused", peer="a", reason="x")
    log.report("refused", peer="a", reason="x")
    found = lines()
    of_a = [line for line in found if (line["peer"], line["reason"]) == ("a", "x")]
    assert len(of_a) == BURST + 1
    assert [line.get("suppressed") for line in of_a] == [None] * BURST + [str(1000 - BURST)]
    assert len(found) == BURST + 3  # other kinds have a limit of their own


def test_the_limit_recovers_to_the_burst_and_no_further(made, clock):
    log, lines = made()
    log.report("x")
    clock.now += 1000 * INTERVAL_S
    for _ in range(BURST + 10):
        log.report("x")
    assert len(lines()) == 1 + BURST


def test_names_from_the_wire_do_not_grow_memory(made):
    log, lines = made()
    for number in range(FOLDS_MAX + 10):
        log.note_check(("blacklisted", "stolen", "1", f"p{number}"), HOST, IMEI, IMSI)
    found = lines()
    assert len(found) == FOLDS_MAX + 1
    assert [line["count"] for line in found if line["peer"] == "other"] == ["10"]


@pytest.mark.parametrize(("full", "imei", "imsi"), [(False, "35209900…48", "00101…89"), (True, IMEI, IMSI)])
def test_blocked_checks_are_folded_with_the_latest_as_an_example(made, full, imei, imsi):
    log, lines = made(full_identifiers=full)
    for _ in range(41):
        log.note_check(("blacklisted", "stolen", "by-theft", "dra"), "mme1.example", "99999999999999", "")
    log.note_check(("blacklisted", "stolen", "by-theft", "dra"), HOST, IMEI, IMSI)
    log.note_check(("greylisted", "", "2", "mme"), HOST, IMEI, "")
    log.fold()
    log.fold()  # nothing new
    log.note_observed(3, "blacklisted")
    log.note_observed(3, "blacklisted")
    blocked, grey, observed = lines()
    assert {name: blocked[name] for name in ("event", "status", "list", "rule", "peer", "count", "host", "imei", "imsi")} == {
        "event": "checks", "status": "blacklisted", "list": "stolen", "rule": "by-theft", "peer": "dra", "count": "42", "host": HOST, "imei": imei,
        "imsi": imsi,
    }  # fmt: skip
    assert (grey["count"], "list" in grey, "imsi" in grey) == ("1", False, False)
    assert (observed["event"], observed["rule"], observed["status"], observed["count"]) == (
        "observed",
        "3",
        "blacklisted",
        "2",
    )


def test_a_check_without_an_identifier_has_none_in_its_line(made):
    log, lines = made()
    log.note_check(("greylisted", "", "no_identity", "mme"), HOST, "", "")
    (line,) = lines()
    assert "imei" not in line
    assert "imsi" not in line


def test_what_people_do_has_a_line_each_time(made):
    log, lines = made()
    for _ in range(3 * BURST):
        for event in ("override", "override_ended", "reloaded"):
            log.report(event, who="operator")
    assert len(lines()) == 9 * BURST


STUCK = """
import sys, time
from eir.node.observe import log
log.QUEUE_LINES, log.CLOSE_S = 10, 0.2
made = log.Log(time.monotonic)
for number in range(2000):
    made.report(f"event_{number}", detail="x" * 1000)
print("reported", flush=True)
made.close()
"""


@pytest.mark.parametrize("reader", ["stopped", "gone"])
def test_a_reader_that_does_not_read_holds_up_neither_reports_nor_the_end(reader):
    ours, theirs = os.pipe()
    if reader == "gone":
        os.close(ours)
    process = subprocess.Popen([sys.executable, "-c", STUCK], stdout=subprocess.PIPE, stderr=theirs, text=True)
    os.close(theirs)
    out, _ = process.communicate(timeout=PROGRAM_S)
    assert (process.returncode, out) == (0, "reported\n")
    if reader == "stopped":
        assert b"event=event_0 " in os.read(ours, 200)
        os.close(ours)


def test_without_a_thread_lines_are_written_at_once(capfd, clock):
    log = Log(clock, in_background=False)
    log.report("forked")
    assert "event=forked" in capfd.readouterr().err
    log.close()


@pytest.mark.parametrize("in_background", [True, False])
def test_the_journal_gets_the_priority_of_each_line_and_no_time(in_background):
    """JOURNAL_STREAM names standard error by device and inode; any other file gets a time and no priority."""
    script = f"""
import os, sys, time
if sys.argv[1] == "journal":
    opened = os.fstat(2)
    os.environ["JOURNAL_STREAM"] = f"{{opened.st_dev}}:{{opened.st_ino}}"
from eir.node.observe.log import Log
log = Log(time.monotonic, level="debug", in_background={in_background})
for level in ("error", "warning", "info", "debug"):
    log.report("ready", reason=level, level=level, detail="one\\ntwo")
log.close()
"""

    def lines(where):
        done = subprocess.run(
            [sys.executable, "-c", script, where], capture_output=True, text=True, check=True,
            env={**os.environ, "JOURNAL_STREAM": "1:2"},
        )  # fmt: skip
        return done.stderr.splitlines()

    assert [line.partition(" ")[0] for line in lines("journal")] == [
        "<3>level=error", "<4>level=warning", "<6>level=info", "<7>level=debug",
    ]  # fmt: skip
    assert [line[:5] for line in lines("file")] == ["time="] * 4

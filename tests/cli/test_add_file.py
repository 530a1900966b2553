"""`eir add --file`: thousands of rows as one change of a local list, checked and limited as the rows of a release are."""

import gzip
import hashlib
import json
import os
import pty
import subprocess
from contextlib import suppress

import pytest
from simulated.luhn import check_digit
from simulated.node import LISTED, TRACKED, UNLISTED, Site

ROWS = 5_000
LISTS = {
    "many": {"local": True, "change_min": 10_000},
    "own": {"local": True, "bad_rows_max": 2, "range_tacs_max": 2},
    "old": {"local": True},
    "new": {"local": True},
    "few": {"local": True},
    "bad": {"local": True, "bad_rows_max": 20},
    "small": {"local": True, "change_min": 10},
    "wide": {"local": True, "change_min": 10**7},
    "piped": {"local": True},
    "any": {"local": True},
    "foreign": {"local": True},
    "bound": {"kind": "pairs", "local": True},
    "sims": {"kind": "subscribers", "local": True},
    "types": {"kind": "device_types", "local": True},
    "signed": {"signers": "signers"},
}

LAYOUTS = {
    "register": {
        "separator": ";", "columns": {"imei": "Gerät", "reason": "Grund"}, "reasons": ["10=lost"], "header": {"begins": "HDR", "count": 2},
        "trailer": {"begins": "TRL"},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def host(tmp_path_factory, publisher):
    with Site(tmp_path_factory.mktemp("added") / "site", publisher) as site:
        site.configure(lists=LISTS, policy={"rules": [{"list": "many", "answer": "blacklisted"}]}, layouts=LAYOUTS)
        site.eir("add", "any", TRACKED, "--reason", "x")  # creates the store
        yield site


def imei(number):
    digits = f"{35_000_000 + number % 7:08d}{number:06d}"
    return digits + str(check_digit(digits))


def put(host, *rows):
    path = host.folder / "rows.csv"
    path.write_text("".join(f"{row}\n" for row in rows))
    return path


def add(host, name, *rows, options=(), status=0):
    return host.eir("add", name, "--file", put(host, *rows), "--reason", "recalled", *options, status=status)


def entries(host, name):
    """Entries of a list with their reasons and ends."""
    rows = host.json("show", name, "-n", "10000", status=None)["entries"]
    return {"+".join(filter(None, (row["entry"], row["imsi"]))): (row["reason"], row["until"]) for row in rows}


def details(host, name):
    return [event["detail"] for event in host.json("history", name) if event["what"] == "add"]


def test_thousands_of_rows_are_one_change_with_their_reasons_and_ends(host):
    rows = [f"{imei(n)},{'stolen' if n % 2 else ''},{'' if n % 3 else '2031-12-31'}" for n in range(ROWS)]
    done = add(host, "many", "imei,reason,until", *rows, options=["--until", "2041-12-31"])
    assert done.stdout == f"many: {ROWS:,} devices come, 0 go; entries now: {ROWS:,}\n"
    found = entries(host, "many")
    assert len(found) == ROWS
    for n in (0, 1, 2, 3, ROWS - 1):
        year = 2042 if n % 3 else 2032
        assert found[imei(n)[:14]] == ("stolen" if n % 2 else "recalled", f"{year}-01-01T00:00:00Z")
    digest = hashlib.sha256((host.folder / "rows.csv").read_bytes()).hexdigest()
    assert details(host, "many") == [
        f"recalled, until 2042-01-01T00:00:00Z; {ROWS} entries of rows.csv: a file with SHA-256 {digest}"
    ]
    assert host.json("check", imei(7))["status"] == "blacklisted"
    again = add(host, "many", "imei", imei(3), imei(ROWS + 1), status=1)
    assert f"nothing was changed: 1 of 2 are in many already: {imei(3)[:14]}" in again.stderr
    add(host, "many", "imei,until", f"{imei(3)},", options=["--replace"])
    assert entries(host, "many")[imei(3)[:14]] == ("recalled", None)


def test_a_file_of_few_rows_is_named_row_by_row(host):
    add(host, "few", LISTED, UNLISTED)
    assert details(host, "few") == [f"recalled: {UNLISTED}, {LISTED}"]
    assert host.json("show", "few", LISTED)["entries"][0]["who"]


def test_growth_is_limited_as_that_of_a_release(host):
    add(host, "small", LISTED)
    rows = [imei(n) for n in range(30)]
    done = add(host, "small", *rows, status=1)
    assert "growth_max" in done.stderr
    assert "devices come" in add(host, "small", *rows, options=["--dry-run", "--force"]).stdout
    assert imei(3)[:14] not in entries(host, "small")
    add(host, "small", *rows, options=["--force"])
    assert imei(3)[:14] in entries(host, "small")


def test_bad_rows_ranges_and_ends_are_checked_as_those_of_a_release(host):
    done = add(host, "own", "imei", LISTED, "one", "two", "three", status=1)
    assert done.stderr.startswith("refused (bad_rows): 3 bad rows at least, 2 are allowed (bad_rows_max)\nrows.csv:3: ")
    done = add(host, "own", "imei_from,imei_to", "35000000000000,35000009999999", status=1)
    assert done.stderr.startswith("refused (range): ranges over 2 TACs (range_tacs_max)")
    done = add(
        host, "own", "imei_from,imei_to", "35000000000000,35000000999999", "35000001000000,35000001999990", status=1
    )
    assert done.stderr.startswith("refused (rows): rows.csv has 999,992 entries, and the maximum is 100,000")
    done = add(host, "own", "imei,until", f"{LISTED},2020-12-31", status=1)
    assert (
        done.stderr
        == "refused (rows): rows.csv has no entry that is in force\n1 entries have expired and were left out\n"
    )
    assert add(host, "own", "colour", "red", status=1).stderr.startswith("refused (layout): ")
    assert add(host, "own", "imei", status=1).stderr == "refused (rows): rows.csv holds no row\n"
    assert host.json("history", "own") == [], "nothing of it was a change"
    wrong = LISTED + str((check_digit(LISTED) + 5) % 10)
    done = add(host, "own", "imei", wrong, "one")
    assert "warning: a bad row was left out: rows.csv:3: " in done.stderr
    assert "warning: 1 IMEIs of 15 digits end in a wrong check digit" in done.stderr
    assert [*entries(host, "own")] == [LISTED]
    done = add(host, "bad", "imei", UNLISTED, *["one"] * 11)
    assert done.stderr.count("a bad row was left out: ") == 10
    assert done.stderr.endswith("\nwarning: 11 bad rows in all\n")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("", ["refused (layout): rows.csv: the file is empty; give one of "]),
        ("\n\n", ["refused (layout): rows.csv: its first line is blank; give one of "]),
        ("ime", ["refused (layout): rows.csv: no layout fits its first line (the file ends within it and may be truncated); give one of "]),
        ("colour\n", ["refused (layout): rows.csv: no layout fits its first line (no column is named imei, or as in another layout); "]),
        ("imei\r35209900176148\r", ["refused (layout): rows.csv: its lines end with CR alone; save it with LF or CRLF; "]),
        ("35209900176148\r35332811002233", ["refused (layout): rows.csv: its lines end with CR alone; save it with LF or CRLF; "]),
        ("imei\n", ["refused (rows): rows.csv holds no row"]),
        ("imei\none\n\ntwo\n", ["refused (rows): rows.csv has no entry that is in force", "rows.csv:2: no IMEI", "rows.csv:4: no IMEI"]),
        ("imei\n3520990017614", [
            "refused (rows): rows.csv has no entry that is in force", "rows.csv:2: no IMEI", "rows.csv does not end with a newline: it may be truncated",
        ]),
        ("imei,until\n35209900176148,2020-12-31\nx,\n", [
            "refused (rows): rows.csv has no entry that is in force", "rows.csv:3: no IMEI", "1 entries have expired",
        ]),
    ],
)  # fmt: skip
def test_a_file_without_a_good_row_is_named_with_all_its_causes(host, content, named):
    path = put(host)
    path.write_bytes(content.encode())
    done = host.eir("add", "bad", "--file", path, "--reason", "x", status=1)
    lines = done.stderr.splitlines()
    assert len(lines) == len(named)
    assert all(line.startswith(begin) for line, begin in zip(lines, named, strict=True)), lines


def test_causes_are_named_also_where_the_change_is_refused(host):
    add(host, "any", UNLISTED)
    path = put(host)
    path.write_text(f"imei\n{UNLISTED}\n35209900")
    done = host.eir("add", "any", "--file", path, "--reason", "x", status=1)
    bad, unended, refused = done.stderr.splitlines()
    assert bad.startswith("warning: a bad row was left out: rows.csv:3: no IMEI")
    assert unended == "warning: rows.csv does not end with a newline: it may be truncated"
    assert "nothing was changed: 1 of 1 are in any already" in refused


def test_a_list_goes_into_another_one_with_its_reasons_and_ends(host):
    """`eir export` also has rows that ended."""
    add(host, "old", "imei,reason,until", f"{imei(1)},stolen,", f"{imei(2)},lost,2031-12-31", f"{imei(3)},found,")
    host.eir("remove", "old", imei(3), "--reason", "x")
    rows = host.eir("export", "old").stdout.splitlines()
    done = add(host, "new", *rows, f"{imei(4)},gone,2020-01-01")
    assert entries(host, "new") == entries(host, "old")
    assert done.stderr == "warning: 1 entries have expired and were left out\n"


def test_other_kinds_of_lists_take_files_too(host):
    add(host, "bound", "imei,imsi", f"{LISTED},001010000000001", f"{LISTED},001010000000002")
    assert set(entries(host, "bound")) == {f"{LISTED}+001010000000001", f"{LISTED}+001010000000002"}
    add(host, "sims", "imsi,reason", "001010000000001,box")
    assert entries(host, "sims") == {"001010000000001": ("box", None)}
    add(host, "wide", "tac", "35999999")
    assert entries(host, "wide") == {"35999999*": ("recalled", None)}


def test_foreign_files_are_read_also_compressed(host):
    """By their header, and by a declared layout; a file of additions and removals is for `eir publish`."""
    path = host.folder / "20261120_120000_blacklist.csv.gz"
    path.write_bytes(gzip.compress(f"imei,block_date,reasons\r\n{imei(21)},20261101,stolen\r\n*#06#,,\r\n".encode()))
    host.eir("add", "foreign", "--file", path, "--reason", "x")
    rows = ("HDR;1", "Gerät;Grund", f"{imei(22)};10", "TRL")
    host.eir("add", "foreign", "--file", put(host, *rows), "--layout", "register", "--reason", "x")
    assert entries(host, "foreign") == {imei(21)[:14]: ("stolen", None), imei(22)[:14]: ("lost", None)}
    refused = add(host, "foreign", "imei,reporting_date,status", f"{imei(23)},20261101,recovered", status=1).stderr
    assert "rows of layout lsds are additions and removals; publish them as a release" in refused


@pytest.mark.parametrize(
    "arguments",
    [
        ("own",), ("own", LISTED, "--file", "rows.csv"), ("own", "--file", "rows.csv", "--tac"), ("bound", "--file", "rows.csv", "--imsi", "1"),
        ("own", LISTED, "--layout", "imei"), ("none", "--file", "rows.csv"), ("own", "--file", "rows.csv", "--until", "soon"),
    ],
)  # fmt: skip
def test_wrong_usage(host, arguments):
    put(host, LISTED)
    host.eir("add", *arguments, "--reason", "x", status=2)


def test_a_list_that_takes_no_entries_of_ours_refuses_the_file(host):
    for name in ("signed", "types"):
        assert add(host, name, "imei", LISTED, status=1).stderr


def test_standard_input_is_a_file(host):
    done = host.eir("add", "piped", "--file", "-", "--reason", "x", "--json", input=f"imei\n{UNLISTED}\n")
    assert json.loads(done.stdout)["come"] == 1


@pytest.mark.long
def test_a_terminal_shows_progress_and_a_pipe_none(host):
    file = put(host, *(imei(n) for n in range(ROWS, ROWS + 100)))
    command = ("add", "many", "--file", file, "--reason", "x", "--dry-run")
    assert host.eir(*command).stderr == ""
    ours, theirs = pty.openpty()
    process = host.popen(*command, stdout=subprocess.DEVNULL, stderr=theirs, env=host.environment(TERM="xterm"))
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # the end of a terminal
        while piece := os.read(ours, 1 << 16):
            shown += piece
    os.close(ours)
    assert process.wait() == 0
    assert b"read" in shown
    assert b"write" in shown

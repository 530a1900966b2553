"""Commands about periods of grace, with and without a node: import, export for a register that notifies people, ends per day."""

import json
import re
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest
from simulated.node import Site, until

TODAY = datetime.now(UTC).date()
LEFT, REGISTERED = "35000000000001", "86123456789012"
SOON, AMNESTY, LATER, NEW = "35209900176148", "35332811002233", "49015420323751", "35000000000009"
FIRST = {SOON: TODAY - timedelta(50), AMNESTY: TODAY - timedelta(200), LATER: TODAY - timedelta(20)}
UNTIL = {SOON: TODAY + timedelta(10), AMNESTY: TODAY + timedelta(30), LATER: TODAY + timedelta(40)}


@contextmanager
def host(folder, publisher):
    """A host with rules on periods of grace, a registered device, and a file of first sightings."""
    with Site(folder, publisher) as made:
        amnesty = {"first_seen_before": str(TODAY - timedelta(100)), "first_seen_within": "230d"}
        made.configure(
            lists={"registered": {"local": True}, "stolen": {"local": True}}, first_seen={"remember": "300d"},
            policy={
                "rules": [
                    {"list": "stolen", "answer": "blacklisted"}, {"list": "registered", "answer": "whitelisted"},
                    {"imsi": "286", "first_seen_within": "120d", "answer": "greylisted"}, {**amnesty, "answer": "greylisted"},
                    {"first_seen_within": "60d", "answer": "greylisted"},
                ],
                "default": "blacklisted",
            },
        )  # fmt: skip
        made.eir("add", "registered", REGISTERED, "--reason", "tax paid")
        made.eir("add", "stolen", SOON, "--reason", "stolen")
        rows = "".join(f"{device},{first},of an earlier EIR\n" for device, first in FIRST.items())
        made.old = made.folder / "old.csv"
        made.old.write_text(
            f"imei,first_seen,remark\n{rows}{LEFT},left-list,\n{REGISTERED},2026-01-01,\n{LEFT[:-1]},2026-01-01,\n"
        )
        yield made


@pytest.fixture(scope="module")
def imported(tmp_path_factory, publisher):
    """Such a host with a node that runs while the file is imported; `said`: output of the import."""
    with host(tmp_path_factory.mktemp("grace") / "site", publisher) as made:
        made.start()
        made.said = made.json("first-seen", "import", made.old)
        yield made


def rows_of(text):
    return [line.split(",") for line in text.splitlines()]


def test_a_node_follows_an_import_and_shows_the_ends_of_periods(imported):
    site = imported
    fault = "no IMEI (14 to 16 digits) and no MEID (14 hexadecimal digits); got 13 characters"
    assert site.said == {
        "source": "old.csv", "dry_run": False, "import": 1, "devices": 5, "new": 4, "earlier": 0, "registered": 1, "over": 1, "begun": 3, "bad_rows": 1, "complaints": [f"old.csv:7: {fault}"],
    }  # fmt: skip
    ends = [{"day": str(UNTIL[each]), "devices": 1} for each in (SOON, AMNESTY, LATER)]

    def record():
        return next((row for row in site.json("lists") if row.get("ends")), None)

    found = until(record)
    assert (found["kind"], found["entries"], found["ends"]) == ("first_seen", 4, ends)
    shown = site.eir("lists").stdout
    assert "Periods of grace that end in the next 90 days: 3" in shown
    assert all(re.search(rf"^{end['day']} +1$", shown, re.MULTILINE) for end in ends)
    page = site.node.get("/")[1]
    assert "3 periods end in the next 90 days, most of them on" in page
    assert page.count("<rect class=greylisted") >= 3
    assert all(f"<span>{end['day']}</span>" in page for end in ends)
    assert site.json("check", LATER)["until"] == str(UNTIL[LATER])


def test_a_file_without_a_good_row_is_a_failure(imported):
    (imported.folder / "bad.csv").write_text("imei,first_seen\nx,2026-01-01\n")
    assert imported.json("first-seen", "import", "bad.csv", status=1)["bad_rows"] == 1


def test_a_reload_reports_the_record_as_no_list_that_left_the_configuration(imported):
    """A reload reads the rules again; the record of first sightings is configured, though not under `lists`."""
    assert "no longer configured" not in imported.eir("reload").stdout


def test_a_restore_merges_the_record(imported, tmp_path):
    site = imported
    site.eir("backup", tmp_path / "eir.tar")
    earlier = str(FIRST[SOON] - timedelta(days=1))
    with Site(tmp_path / "new", site.publisher) as new:
        new.configure(**{name: site.settings[name] for name in ("lists", "policy", "first_seen")})
        (new.folder / "later.csv").write_text(f"imei,first_seen\n{NEW},2026-11-01\n{SOON},{earlier}\n")
        new.eir("first-seen", "import", new.folder / "later.csv")
        for _ in range(2):  # the record in the store is newer than that of the backup
            new.eir("restore", tmp_path / "eir.tar")
            days = {row[0]: row[1] for row in rows_of(new.eir("export", "first-seen").stdout)}
            assert days[NEW] == "2026-11-01", "a device that is not in the backup stays"
            assert days[SOON] == earlier, "the earliest day counts"
            assert days[LATER] == str(FIRST[LATER])


def test_an_import_of_a_wrong_file_bars_a_phone_until_it_is_taken_back(imported):
    site = imported
    before = site.eir("export", "first-seen").stdout
    wrong = site.folder / "wrong.csv"
    wrong.write_text(
        f"imei,first_seen\n{LATER},{TODAY - timedelta(61)}\n{NEW},{TODAY - timedelta(61)}\n{NEW},1970-01-01\n"
    )
    shown = site.eir("first-seen", "import", wrong, "--dry-run").stdout
    assert shown.startswith(
        "dry run, nothing was written: first-seen: 2 devices: 1 new on record, 1 with an earlier day"
    )
    assert "periods of grace: 2 over, 0 begun" in shown
    assert site.eir("export", "first-seen").stdout == before
    site.eir("first-seen", "import", wrong)
    until(lambda: site.json("check", LATER)["status"] == "blacklisted")
    undone = site.eir("first-seen", "undo").stdout
    assert "undo of the import of wrong.csv" in undone
    assert "1 devices removed from the record, 1 with their day before the import, 0 left" in undone
    until(lambda: site.json("check", LATER)["until"] == str(UNTIL[LATER]))
    assert site.eir("export", "first-seen").stdout == before
    history = site.eir("history", "first-seen+import").stdout
    assert ("import of wrong.csv" in history, "undo of the import of wrong.csv" in history) == (True, True)
    assert "has been taken back already" in site.eir("first-seen", "undo", status=1).stderr
    assert all("dates" not in row["list"] for row in site.json("lists"))


def test_what_is_exported(imported):
    site = imported
    everything = site.eir("export", "first-seen")
    expected = {device: [device, str(FIRST[device]), str(UNTIL[device])] for device in sorted(FIRST)}
    assert rows_of(everything.stdout) == [["imei", "first_seen", "until"], [LEFT, "left-list", ""], *expected.values()]
    assert everything.stderr.splitlines()[-1] == "first-seen: 4 of 4 devices"
    span = ["--ends-from", UNTIL[SOON] + timedelta(1), "--ends-to", UNTIL[AMNESTY]]
    assert rows_of(site.eir("export", "first-seen", *span).stdout)[1:] == [expected[AMNESTY]]
    assert rows_of(site.eir("export", "first-seen", "--ends-from", UNTIL[LATER]).stdout)[1:] == [expected[LATER]]
    columns = ("imei", "first_seen", "until")
    document = json.loads(site.eir("export", "first-seen", "--ends-to", UNTIL[SOON], "--json").stdout)
    assert document == [dict(zip(columns, expected[SOON], strict=True))]
    again = site.folder / "again.csv"
    site.eir("export", "first-seen", "--out", again)
    assert site.json("first-seen", "import", again)["devices"] == 4


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["first-seen", "import"], 2, "FILE or --from-sightings is needed"),
        (["first-seen", "import", "nowhere.csv"], 1, "nowhere.csv: No such file"),
        (["export", "first-seen", "--ends-from", "tomorrow"], 2, "expected a day (UTC) such as 2027-01-29"),
        (["export", "first-seen", "--only", "tac"], 2, "--layout and --only are for lists"),
        (["export", "registered", "--json"], 2, "are for the record of first sightings"),
        (["export", "registered", "--ends-to", "2027-01-29"], 2, "are for the record of first sightings"),
    ],
)
def test_wrong_use(imported, words, status, said):
    assert said in imported.eir(*words, status=status).stderr


def test_the_record_of_checks_as_the_source(tmp_path, publisher):
    with host(tmp_path / "site", publisher) as site:
        log = site.folder / "checks.csv"
        log.write_text(
            f"time,imei\n2026-11-02T10:00:00Z,{LATER}\n2026-11-01T23:00:00Z,{LATER}\n2026-11-03T10:00:00Z,{REGISTERED}\n2026-11-03T10:00:00Z,0\n"
        )
        site.eir("sightings", "import", log)
        site.configure(first_seen={"list": "seen-here"})
        assert site.eir("first-seen", "import", "--from-sightings").stdout == (
            "seen-here: 2 devices: 1 new on record, 0 with an earlier day, 0 unchanged, 1 left out because a list registers them; periods of grace: 0 over, 1 begun; import 1\n"
        )
        assert rows_of(site.eir("export", "seen-here").stdout)[1][:2] == [LATER, "2026-11-01"]
        shown = site.eir("history", "seen-here+import").stdout
        assert "import of the record of checks" in shown

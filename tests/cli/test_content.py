"""`eir show` and `eir export`, as real processes: what is in a list, page by page, and the whole of it as a release again."""

import json
import re

import pytest
from simulated.node import Site

REASONS = ["imei,reason,until", "00101001000001,stolen,", "00101001000003,lost,2031-01-01", "00101002000005,stolen,"]
LISTS = {
    "stolen": {"signers": "signers"},
    "own": {"kind": "devices", "local": True},
    "bound": {"kind": "pairs", "signers": "signers"},
    "sims": {"kind": "subscribers", "local": True},
    "ended": {"signers": "signers"},
    "dated": {"signers": "signers", "dates": True},
    "mine": {"local": True, "dates": True},
}
DATED = [
    "imei,reason,date",
    "00101007000001,stolen,2026-11-20",
    "00101007000002,lost,",
    "00101007000003,stolen,20261121",
]


@pytest.fixture(scope="module")
def host(tmp_path_factory, publisher):
    with Site(tmp_path_factory.mktemp("content") / "site", publisher) as site:
        site.configure(
            lists=LISTS, policy={"rules": [{"list": name, "answer": "blacklisted"} for name in ("stolen", "dated")]}
        )
        site.load(REASONS)
        site.load(DATED, list_name="dated")
        site.load([*REASONS[:2], "00101001000002,lost,2026-01-31"], list_name="ended")
        site.load(
            ["imei,imsi,until", "00101001000001,001010000000001,", "00101001000001,001010000000002,2031-01-01"],
            list_name="bound",
        )
        site.eir("add", "own", "00101009", "--tac", "--reason", "model: cloned", "--force")
        site.eir("add", "own", "001010090000011", "00101003000001", "--reason", "seen twice", "--until", "14d")
        site.eir("add", "sims", "001010000000009", "--reason", "box")
        yield site


def entries(host, *arguments):
    return [(row["entry"], row["reason"]) for row in host.json("show", *arguments)["entries"]]


def test_a_list_page_by_page(host):
    first = host.json("show", "stolen", "-n", 2)
    assert [(row["entry"], row["reason"], row["until"]) for row in first["entries"]] == [
        ("00101001000001", "stolen", None), ("00101001000003", "lost", "2031-01-02T00:00:00Z"),
    ]  # fmt: skip
    assert (first["list"], first["serial"], first["total"], first["skipped"]) == ("stolen", 1, 3, 0)
    assert re.fullmatch(r"agency@publisher\.example SHA256:\S+", *first["entries"][0]["signers"])
    assert entries(host, "stolen", "--skip", 2) == [("00101002000005", "stolen")]
    said = host.eir("show", "stolen", "-n", 2)
    assert said.stdout.splitlines()[0].split() == ["entry", "reason", "until", "who", "time"]
    assert said.stderr == "from the store, no node answers here\n1 more: --skip 2, or eir export stolen\n"
    said = host.eir("show", "stolen", "-n", 1, "--skip", 1)
    assert said.stderr.endswith("\n1 more: --skip 2, or eir export stolen\n")
    assert "more" not in host.eir("show", "stolen", "--skip", 2).stderr
    assert host.json("show", "bound", "-n", 1)["total"] == 2, "pairs of one device are rows of their own"


def test_one_device_and_a_tac(host):
    assert entries(host, "stolen", "001010010000031") == [("00101001000003", "lost")]
    assert entries(host, "stolen", "00101001") == [("00101001000001", "stolen"), ("00101001000003", "lost")]
    assert entries(host, "own", "00101009000001") == [("00101009*", "model: cloned"), ("00101009000001", "seen twice")]
    assert entries(host, "own", "00101009000002") == [("00101009*", "model: cloned")]
    assert [(row["entry"], row["imsi"]) for row in host.json("show", "bound", "00101001000001")["entries"]] == [
        ("00101001000001", "001010000000001"), ("00101001000001", "001010000000002"),
    ]  # fmt: skip
    assert entries(host, "sims", "001010000000009") == [("001010000000009", "box")]


def test_an_entry_that_has_expired_is_shown_as_expired(host):
    lasting, ended = host.eir("show", "ended").stdout.splitlines()[1:]
    assert "  2026-02-01T00:00:00Z, ended  " in ended
    assert "ended" not in lasting


def test_who_added_an_operators_entry(host):
    whole, single = host.json("show", "own", "00101009000001")["entries"]
    events = {event["detail"].partition(":")[0]: event for event in host.json("history", "own")}
    assert (whole["who"], whole["time"]) == (events["model"]["who"], events["model"]["time"])
    assert single["time"] >= whole["time"]
    assert (whole["ended"], whole["whole_tac"], single["until"] is None) == (False, True, False)


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (("stolen", "00101001000002"), 1, "00101001000002 is not in stolen"),
        (("stolen", "--skip", "3"), 1, "stolen has no further entries"),
        (("stolen", "0010100"), 2, "0010100 is not in stolen, and is not an IMEI"),
        (("sims", "12"), 2, "12: an IMSI has"),
        (("stollen",), 2, "no list stollen"),
    ],
)
def test_what_is_not_there(host, arguments, status, says):
    assert says in host.eir("show", *arguments, status=status).stderr


@pytest.mark.parametrize("name", ["stolen", "bound", "sims", "own"])
def test_an_export_published_again_has_the_same_digest(host, name, tmp_path):
    digest = {row["list"]: row["digest"] for row in host.json("lists")}[name]
    out = tmp_path / "out.csv"
    assert host.eir("export", name, "-o", out).stdout == ""
    assert out.read_text() == host.eir("export", name).stdout
    with Site(tmp_path / "again", host.publisher) as again:
        again.configure(lists={name: {"kind": LISTS[name].get("kind", "devices"), "signers": "signers"}}, policy={})
        again.load(out, list_name=name)
        assert [row["digest"] for row in again.json("lists")] == [digest]


def dates(host, name):
    return {row["entry"]: row["date"] for row in host.json("show", name)["entries"]}


def test_dates_of_entries(host, tmp_path):
    expected = {"00101007000001": "2026-11-20", "00101007000002": None, "00101007000003": "2026-11-21"}
    assert dates(host, "dated") == expected
    shown = host.eir("show", "dated").stdout.splitlines()
    assert (shown[0].split(), shown[1].split()[:3]) == (
        ["entry", "date", "reason", "until", "who", "time"], ["00101007000001", "2026-11-20", "stolen"],
    )  # fmt: skip
    assert "  reported: 2026-11-20\n" in host.eir("check", "00101007000001").stdout
    assert [host.json("check", device)["date"] for device in expected] == [*expected.values()]
    why = json.loads(host.eir("why", "00101007000001", "--json", status=1).stdout)
    assert [row["date"] for each in why["lists"] for row in each["rows"] or ()] == ["2026-11-20"]
    exported, saved = tmp_path / "dated.csv", tmp_path / "backup"
    host.eir("export", "dated", "-o", exported)
    host.eir("add", "mine", "--file", exported, "--reason", "from there")
    assert dates(host, "mine") == expected
    host.eir("add", "mine", "00101007000009", "--reason", "by hand")
    host.eir("rollback", "mine")
    assert dates(host, "mine") == expected
    assert "(as in the store)" not in host.eir("backup", saved).stdout
    with Site(tmp_path / "again", host.publisher) as again:
        again.configure(lists=LISTS, policy={})
        again.load(exported, list_name="dated")
        assert dates(again, "dated") == expected
        restored = again.eir("restore", saved, "--force").stdout
        assert "+dates" not in restored
        assert dates(again, "mine") == expected
        assert all("+dates" not in (row["list"] or "") for row in again.json("history"))


def test_layouts_and_usage(host, tmp_path):
    assert "has no place for reasons and ends" in host.eir("export", "stolen", "--layout", "imei", status=1).stderr
    assert "expected eir, imei, dirbs-blacklist" in host.eir("export", "stolen", "--layout", "gsma", status=2).stderr
    out = tmp_path / "there.csv"
    out.write_text("as it was\n")
    host.eir("export", "stolen", "--layout", "imei", "-o", out, status=1)
    assert (out.read_text(), [path.name for path in tmp_path.iterdir()]) == ("as it was\n", ["there.csv"])
    assert host.eir("export", "own", "--only", "tac").stdout.splitlines()[1].startswith("00101009,model: cloned")
    assert json.loads(host.eir("show", "stolen", "--json").stdout)["kind"] == "devices"

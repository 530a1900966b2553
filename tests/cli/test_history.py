"""`eir history`: events of the journal and of the store's log, verification, export to another node, and import."""

import json

import pytest
from simulated.node import LISTED, TRACKED, UNLISTED, Site

LISTS = {"stolen": {"signers": "signers"}, "own": {"local": True}}
POLICY = {"rules": [{"list": "stolen", "answer": "blacklisted"}, {"list": "own", "answer": "greylisted"}]}


@pytest.fixture
def site(tmp_path, publisher):
    """A host with two releases, a refused one, and a local change."""
    with Site(tmp_path / "site", publisher) as made:
        made.configure(lists=LISTS, policy=POLICY)
        made.eir("load", made.release([LISTED]))
        made.eir("load", made.release([LISTED, UNLISTED], serial=2))
        made.eir("load", made.release([LISTED], serial=2), status=1)
        made.eir("add", "own", TRACKED, "--reason", "lost")
        yield made


def whats(site, *arguments):
    return [event["what"] for event in site.json("history", *arguments)]


def journal_file(site):
    (path,) = (site.state / "journal").glob("main-*")
    return path


def test_events_are_shown_by_list_time_number_and_chain(site):
    assert sorted(whats(site)) == ["add", "load", "load", "refuse"]
    assert whats(site, "own") == ["add"]
    assert [event["serial"] for event in site.json("history", "stolen") if event["what"] == "load"] == [1, 2]
    assert len(whats(site, "-n", "2")) == 2
    assert len(whats(site, "--since", "1h")) == 4
    assert whats(site, "--since", "2999-01-01") == []
    assert whats(site, "--chain", "feed") == []
    (added,) = site.json("history", "own")
    assert (added["rows"][0]["imei"][:14], added["rows"][0]["reason"]) == (TRACKED[:14], "lost")
    assert "no list other" in site.eir("history", "other", status=2).stderr
    for arguments in (("--chain", "all"), ("--with", "x"), ("own", "file"), ("own", "--export", "file")):
        site.eir("history", *arguments, status=2)


def test_a_host_without_a_journal_reads_the_log_of_the_store(site):
    for path in (site.state / "journal").iterdir():
        path.unlink()
    done = site.eir("history", "--json")
    assert "this host has no journal" in done.stderr
    assert sorted(event["what"] for event in json.loads(done.stdout)) == ["add", "load", "load"]
    assert "this host has no journal" in site.eir("history", "--verify").stdout
    assert "has no journal" in site.eir("history", "--export", "x.jsonl", status=1).stderr


def test_without_the_store_the_journal_is_shown(site):
    site.configure(lists=LISTS, policy=POLICY, store="redis://127.0.0.1:1")
    done = site.eir("history", "--json")
    assert "the store does not answer" in done.stderr
    assert len(json.loads(done.stdout)) == 4
    assert "was not compared with the store" in site.eir("history", "--verify").stderr


def test_the_verification_names_file_and_line_of_a_fault(site):
    assert "history is valid" in site.eir("history", "--verify").stdout
    path = journal_file(site)
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"serial":1,', b'"serial":9,', 1))
    assert f"{path.name}:2: the line before, 1, was changed" in site.eir("history", "--verify", status=1).stderr
    path.write_bytes(b"".join(line for line in content.splitlines(keepends=True) if b'"line":2,' not in line))
    document = json.loads(site.eir("history", "--verify", "--json", status=1).stdout)
    assert not document["whole"]
    assert any("change 2" in fault or "line 3 is where line 2 was" in fault for fault in document["faults"])


def test_an_export_is_compared_and_imported_on_another_node(site, tmp_path, publisher):
    site.eir("history", "--export", tmp_path / "theirs.jsonl")
    assert "is equal" in site.eir("history", "--verify", "--with", tmp_path / "theirs.jsonl").stdout
    with Site(tmp_path / "new", publisher) as new:
        new.configure(lists={**LISTS, "mine": {"local": True}}, policy=POLICY)
        new.eir("add", "mine", TRACKED, "--reason", "found")
        new.eir("history", "import", tmp_path / "theirs.jsonl")
        assert sorted(whats(new)) == ["add", "add", "import", "load", "load"]  # rejections are events of the node
        assert "history is valid" in new.eir("history", "--verify").stdout
        altered = (tmp_path / "theirs.jsonl").read_bytes().replace(b'"serial":1,', b'"serial":9,', 1)
        (tmp_path / "altered.jsonl").write_bytes(altered)
        assert "nothing was imported" in new.eir("history", "import", tmp_path / "altered.jsonl", status=1).stderr
        assert "is no export of a journal" in new.eir("history", "import", new.path, status=1).stderr
        assert len(whats(new)) == 5
    done = site.eir("history", "--verify", "--with", tmp_path / "altered.jsonl", status=1)
    assert "altered.jsonl: main-" in done.stderr


def test_a_node_records_events_of_commands(site):
    node = site.start()
    site.eir("history", "--export", "theirs.jsonl")
    site.eir("add", "own", UNLISTED, "--reason", "lost")
    assert whats(site, "own") == ["add", "add"]
    site.eir("history", "import", "theirs.jsonl")
    assert "import" in whats(site)
    assert "history is valid" in site.eir("history", "--verify").stdout
    node.end()

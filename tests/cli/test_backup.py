"""`eir backup` and `eir restore`: everything comes back, from and to both kinds of store, and nothing behind what nodes have."""

import io
import json
import os
import subprocess
import tarfile

import pytest
from node import COMMAND, LISTED, UNLISTED, Site, until
from servers import Server, programs

LISTS = {"stolen": {"signers": "signers"}, "own": {"local": True}}
POLICY = {"rules": [{"list": "stolen", "answer": "blacklisted"}, {"list": "own", "answer": "greylisted"}]}
THIRD = "35332811002233"


@pytest.fixture(scope="module")
def redis():
    if "redis" not in programs():
        pytest.skip("redis-server is not installed")
    with Server(programs()["redis"]) as server:
        yield server


@pytest.fixture(params=["sqlite", "redis"])
def store(request):
    """A store's URL; Redis is empty."""
    if request.param == "sqlite":
        return "sqlite"
    server = request.getfixturevalue("redis")
    server.command("FLUSHALL")
    return server.url


def made(folder, publisher, store):
    """A host with lists, a rollback that is possible, and keys."""
    site = Site(folder, publisher)
    site.configure(lists=LISTS, policy=POLICY, store=store)
    site.eir("load", site.release([LISTED]))
    site.eir("load", site.release([LISTED, UNLISTED], serial=2))
    site.eir("add", "own", THIRD, "--reason", "lost")
    site.eir("acknowledge", "--key")
    return site


def names(file):
    with tarfile.open(file) as tar:
        return tar.getnames()


def facts(site):
    lists = [{name: row[name] for name in ("list", "serial", "entries", "digest")} for row in site.json("lists")]
    history = [event["detail"] for event in site.json("history", "-n", "100") if event["what"] in {"load", "add"}]
    return lists, history, site.eir("acknowledge", "--key").stdout


@pytest.mark.long(short=["sqlite-redis"])
@pytest.mark.parametrize("into", ["sqlite", "redis"])
def test_a_host_comes_back_from_its_backup(tmp_path, publisher, store, into, request):
    site = made(tmp_path / "site", publisher, store)
    site.start()
    file = tmp_path / "eir.tar"
    said = site.json("backup", file)
    site.node.end()
    before = facts(site)
    assert file.stat().st_mode & 0o777 == 0o600
    assert said["lists"]["stolen"]["serial"] == 2
    assert not [path for path in site.state.iterdir() if path.name.startswith(".backup")]
    if into == "redis":
        server = request.getfixturevalue("redis")
        server.command("FLUSHALL")
    with Site(tmp_path / "new", publisher) as new:
        new.configure(lists=LISTS, policy=POLICY, store="sqlite" if into == "sqlite" else server.url)
        assert "nothing was changed" in new.eir("restore", "--dry-run", file).stdout
        assert not new.state.exists()
        new.eir("restore", file)
        assert facts(new) == before
        event = new.json("history", "-n", "1")[-1]
        assert (event["what"], said["made"] in event["detail"]) == ("restore", True)
        if (store, into) == ("sqlite", "sqlite"):
            new.eir("rollback", "stolen", "--dry-run")
        assert "history is valid" in new.eir("history", "--verify").stdout
        new.start()
        until(lambda: new.node.status()["state"] == "OK")
        assert new.json("check", UNLISTED)["status"] == "blacklisted"
        assert "refused (serial)" in new.eir("load", new.release([LISTED], serial=2), status=1).stderr
        new.eir("load", new.release([LISTED], serial=3))


@pytest.mark.long(short=["sqlite"])
def test_nothing_goes_behind_what_nodes_have_unless_it_is_forced(tmp_path, publisher, store):
    with made(tmp_path / "site", publisher, store) as site:
        file = tmp_path / "eir.tar"
        site.eir("backup", file)
        assert "as in the store" in site.eir("restore", file).stdout
        site.eir("load", site.release([THIRD], serial=3))
        site.start()
        before = facts(site)
        refused = site.eir("restore", file, status=1)
        assert "nothing was changed: the backup is older than the lists of the nodes: stolen: " in refused.stderr
        assert "serial 3" in refused.stderr
        assert facts(site) == before
        site.eir("restore", "--force", file)
        until(lambda: site.node.status()["lists"]["stolen"]["serial"] == 2)
        assert site.json("check", UNLISTED)["status"] == "blacklisted"
        until(
            lambda: site.node.status()["summary"].startswith(
                "lists for which an operator lifted a limit in the last day"
            )
        )
        assert [event["what"] for event in site.json("history", "stolen", "-n", "1")] == ["restore"]
        assert "history is valid" in site.eir("history", "--verify").stdout


@pytest.mark.long
def test_what_was_in_force_here_counts_though_the_store_is_gone(tmp_path, publisher):
    with made(tmp_path / "site", publisher, "sqlite") as site:
        file = tmp_path / "eir.tar"
        site.eir("backup", file)
        site.eir("load", site.release([THIRD], serial=3))
        for path in site.state.glob("lists.sqlite*"):
            path.unlink()
        refused = site.eir("restore", file, status=1)
        assert "stolen: serial 3 was in force on this node, and the backup's highest is 2" in refused.stderr
        assert not (site.state / "lists.sqlite").exists()
        site.eir("restore", "--force", file)
        site.start()
        until(lambda: site.node.status()["lists"]["stolen"]["serial"] == 2)


def test_a_key_that_is_there_stays(tmp_path, publisher):
    with made(tmp_path / "site", publisher, "sqlite") as site, Site(tmp_path / "new", publisher) as new:
        file = tmp_path / "eir.tar"
        site.eir("backup", file)
        new.configure(lists=LISTS, policy=POLICY)
        new.state.mkdir(mode=0o750)
        own = new.eir("acknowledge", "--key").stdout
        assert "acknowledgement.key differs from the backup and stays" in new.eir("restore", file).stderr
        assert new.eir("acknowledge", "--key").stdout == own
        new.eir("restore", file, "--force")
        theirs = site.eir("acknowledge", "--key").stdout
        assert new.eir("acknowledge", "--key").stdout.split()[2:] == theirs.split()[2:]
        assert (new.state / "acknowledgement.key").stat().st_mode & 0o777 == 0o600


@pytest.mark.long
def test_the_record_of_checks_goes_along_if_it_is_wanted(tmp_path, publisher):
    with made(tmp_path / "site", publisher, "sqlite") as site, Site(tmp_path / "new", publisher) as new:
        site.configure(lists=LISTS, policy=POLICY, sightings={"subscribers": "hashed"})
        (site.folder / "log.csv").write_text(f"time,imei,imsi\n2026-11-20T10:00:00Z,{UNLISTED},001010000000001\n")
        site.eir("sightings", "import", "log.csv")
        site.eir("backup", tmp_path / "without.tar")
        site.eir("backup", tmp_path / "with.tar", "--sightings")
        assert not [name for name in names(tmp_path / "without.tar") if "parquet" in name]
        new.configure(lists=LISTS, policy=POLICY, sightings={"subscribers": "hashed"})
        new.eir("restore", tmp_path / "with.tar")
        assert len(new.json("seen", "001010000000001", "--since", "3000d")) == len(
            site.json("seen", "001010000000001", "--since", "3000d")
        )
        assert "sightings.key" in names(tmp_path / "without.tar")


@pytest.mark.long
def test_through_pipes(tmp_path, publisher):
    with made(tmp_path / "site", publisher, "sqlite") as site, Site(tmp_path / "new", publisher) as new:
        new.configure(lists=LISTS, policy=POLICY)
        backup = subprocess.run(
            [*COMMAND, "backup", "-"], env=site.environment(), cwd=site.folder, check=True, capture_output=True
        )
        subprocess.run(
            [*COMMAND, "restore", "-"], env=new.environment(), cwd=new.folder, check=True, input=backup.stdout
        )
        assert facts(new) == facts(site)


def rewritten(file, to, change):
    """Copy a backup, with each member's content changed by a function of name and content; None leaves the member out."""
    with tarfile.open(file) as old, tarfile.open(to, "w") as new:
        for member in old:
            content = change(member.name, old.extractfile(member).read())
            if content is not None:
                member.size = len(content)
                new.addfile(member, io.BytesIO(content))


def damaged_list(name, content):
    """A bit of the SQLite file that is not its header."""
    if name != "lists.sqlite":
        return content
    at = content.index(b"agency@publisher.example")
    return content[:at] + b"X" + content[at + 1 :]


@pytest.mark.long(short=["<lambda>-is damaged: in-force.json", "<lambda>-incomplete0"])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda name, content: content[:-1] if name == "in-force.json" else content, "is damaged: in-force.json"),
        (damaged_list, "is damaged: lists.sqlite"),
        (lambda name, content: None if name == "backup.json" else content, "incomplete"),
        (lambda name, content: None if name in {"clock", "lists.sqlite"} else content, "incomplete"),
        (
            lambda name, content: (
                content.replace(b"eir-backup/1", b"eir-backup/9") if name == "backup.json" else content
            ),
            "eir-backup/9",
        ),
        (lambda name, content: b"{" if name == "backup.json" else content, "is not a complete backup"),
    ],
)
def test_a_damaged_backup_changes_nothing(tmp_path, publisher, change, says):
    with made(tmp_path / "site", publisher, "sqlite") as site, Site(tmp_path / "new", publisher) as new:
        site.eir("backup", tmp_path / "eir.tar")
        rewritten(tmp_path / "eir.tar", tmp_path / "bad.tar", change)
        new.configure(lists=LISTS, policy=POLICY)
        assert says in new.eir("restore", tmp_path / "bad.tar", status=1).stderr
        assert not (new.state / "lists.sqlite").exists()


def test_what_is_no_backup_is_refused(tmp_path, publisher):
    with Site(tmp_path / "site", publisher) as site:
        (tmp_path / "text").write_text("no tar")
        with tarfile.open(tmp_path / "other.tar", "w") as tar:
            member = tarfile.TarInfo("../evil")
            tar.addfile(member, io.BytesIO())
        whole = tmp_path / "link.tar"
        with tarfile.open(whole, "w") as tar:
            member = tarfile.TarInfo("lists.sqlite")
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(member)
        for name in ("text", "other.tar", "link.tar", "none.tar"):
            site.eir("restore", tmp_path / name, status=1)
        assert not (tmp_path / "evil").exists()
        assert "does not exist; load a list first" in site.eir("backup", tmp_path / "x.tar", status=1).stderr
        assert not (tmp_path / "x.tar").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="gives the state folder to somebody else")
def test_root_backs_up_and_restores_as_the_owner(tmp_path, publisher):
    with made(tmp_path / "site", publisher, "sqlite") as site, Site(tmp_path / "new", publisher) as new:
        for path in (site.state, *site.state.iterdir()):
            os.chown(path, 65534, 65534)
        site.eir("backup", tmp_path / "eir.tar")
        new.configure(lists=LISTS, policy=POLICY)
        new.state.mkdir(mode=0o750)
        os.chown(new.state, 65534, 65534)
        new.eir("restore", tmp_path / "eir.tar")
        owners = {path.name: path.stat().st_uid for path in new.state.iterdir()}
        assert set(owners.values()) == {65534}, json.dumps(owners)

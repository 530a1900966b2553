"""`eir backup` and `eir restore`: everything comes back, from and to both kinds of store, and nothing behind what nodes have."""

import hashlib
import io
import json
import os
import sqlite3
import subprocess
import tarfile

import pytest
import zstandard
from simulated.node import LISTED, UNLISTED, Site, until
from simulated.servers import Server, programs

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
    site.eir("add", "own", THIRD, "--reason", "lost", "--first")
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
        backup = site.eir("backup", "-", text=False)
        new.eir("restore", "-", text=False, input=backup.stdout)
        assert facts(new) == facts(site)


@pytest.fixture(scope="module")
def members(tmp_path_factory, publisher):
    """Members of a real backup by their names, without the manifest; and the facts of its manifest."""
    folder = tmp_path_factory.mktemp("backed-up")
    with made(folder / "site", publisher, "sqlite") as site:
        site.eir("backup", folder / "eir.tar")
    with tarfile.open(folder / "eir.tar") as tar:
        contents = {name: tar.extractfile(name).read() for name in tar.getnames()}
    facts = json.loads(contents.pop("backup.json"))
    return contents, facts


@pytest.fixture(scope="module")
def host(tmp_path_factory, publisher):
    """A host with a list of its own, which a refused backup must leave as it is."""
    with Site(tmp_path_factory.mktemp("host") / "site", publisher) as site:
        site.configure(lists=LISTS, policy=POLICY)
        site.eir("add", "own", THIRD, "--reason", "lost")
        yield site


def facts_of(contents, facts, **changes):
    """A manifest that fits these members."""
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    sizes = {name: len(content) for name, content in contents.items()}
    return {**facts, "bytes": sizes, "files": digests, **changes}


def packed(contents, manifest, last=()):
    """The bytes of an archive with these members; `last`: names and contents of further ones."""
    archive = io.BytesIO()
    if not isinstance(manifest, bytes):
        manifest = json.dumps(manifest).encode()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in (("backup.json", manifest), *contents.items(), *last):
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    return archive.getvalue()


def is_refused(host, archive, *says, prefix=()):
    """Restore an archive: exit status 1, a message, and no file of the host differs."""
    file = archive
    if isinstance(archive, bytes):
        file = host.folder / "hostile.tar"
        file.write_bytes(archive)

    def files():
        return {path: path.is_file() and path.read_bytes() for path in host.state.rglob("*")}

    before = files()
    stderr = host.eir("restore", "--force", file, status=1, prefix=prefix).stderr
    assert stderr.startswith(f"eir: {file} ")
    for part in says:
        assert part in stderr
    assert files() == before


def changed_bit(content):
    """A changed byte of a list."""
    at = content.index(b"agency@publisher.example")
    return content[:at] + b"X" + content[at + 1 :]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"in-force.json": lambda content: content[:-1]}, "in-force.json"),
        ({"lists/stolen": changed_bit}, "its member lists/stolen is damaged"),
        ({"lists/stolen": None}, "and its manifest lists/stolen"),
    ],
)
def test_a_damaged_backup_changes_nothing(host, members, change, says):
    contents, facts = members
    damaged = {
        name: change[name] and change[name](content) if name in change else content
        for name, content in contents.items()
    }
    kept = {name: content for name, content in damaged.items() if content is not None}
    is_refused(host, packed(kept, facts), "is not a complete backup", says)


def test_a_backup_that_was_cut_short_changes_nothing(host, members):
    whole = packed(*members)
    for size in (0, 100, 512, 700, len(whole) // 2):
        is_refused(host, whole[:size], "is not a complete backup")


UNNAMED = "further content after the members"


def test_each_member_is_one_that_the_manifest_names_and_eir_writes(host, members):
    contents, facts = members
    is_refused(host, packed(contents, facts, [("clock", b"1\n")]), UNNAMED)
    is_refused(host, packed(contents, facts, [("signers", b"")]), UNNAMED)
    is_refused(host, packed({**contents, "sightings/2026-01-01/00-1-a.parquet": b""}, facts), UNNAMED)
    for name in (
        "../evil",
        "/etc/evil",
        "sightings/../evil.parquet",
        "lists.sqlite",
        "lists/../own",
        "lists/",
        "lists/a/b",
        "lists/.own",
        "backup.json",
        "",
    ):
        known = {**contents, name: b"x"}
        is_refused(host, packed(known, facts_of(known, facts)), f"its manifest names {name!r} of 1 bytes")
    is_refused(host, packed(dict(reversed(contents.items())), facts), "and its manifest")


DEEP = b"[" * 200_000


@pytest.mark.parametrize(
    "change",
    [
        DEEP, b'{"format": "eir-backup/3", "files": ' + DEEP, b"{", b"\xff", b"", b"[]", b"1", b"null", b'"x"', b"9" * 5000, b'{"a": 1e999}',
        {"format": None}, {"format": ["eir-backup/3"]}, {"files": None}, {"files": []}, {"files": {"lists/own": 1}}, {"bytes": None}, {"bytes": {}}, {"bytes": []},
        {"made": None}, {"made": 5}, {"made": "today"}, {"made": "\ud800"}, {"node": None}, {"node": 5}, {"node": ["x"]}, {"node": "\x1b[2J"}, {"node": "\ud800"},
        {"journal": None}, {"journal": {}}, {"journal": {"digest": "", "faults": "x"}}, {"journal": {"digest": "", "faults": 1e999}},
        *({"bytes": {"lists/own": size}} for size in (None, True, -1, 1.5, "5", 10**30, [5])),
    ],
    ids=lambda change: repr(change)[:40],
)  # fmt: skip
def test_an_invalid_manifest_is_refused(host, members, change):
    contents, facts = members
    if isinstance(change, dict):
        change = {
            name: {**facts[name], **value} if name == "bytes" and value else value for name, value in change.items()
        }
    is_refused(host, packed(contents, change if isinstance(change, bytes) else {**facts, **change}))


def test_a_backup_of_another_format_is_refused(host, members):
    contents, facts = members
    is_refused(
        host,
        packed(contents, {**facts, "format": "eir-backup/9"}),
        "eir-backup/9",
        "restore it by the version that wrote it",
        "eir load",
    )


HUGE = 5 << 30
LIMITS = ("prlimit", "--fsize=67108864", "--data=1200000000")
"""64 MB for a file and 1.2 GB of memory, far more than the restore of a small backup needs."""


def with_header(host, header, before=b"", size=HUGE):
    """An archive that goes on with zeros for 5 GB, which need no room on the disk."""
    file = host.folder / "huge.tar"
    file.write_bytes(before + header.tobuf(tarfile.GNU_FORMAT))
    os.truncate(file, file.stat().st_size + size)
    return file


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.GNUTYPE_SPARSE, tarfile.REGTYPE])
@pytest.mark.parametrize("place", ["first", "second"])
def test_a_large_header_takes_no_memory(host, members, kind, place):
    contents, facts = members
    header = tarfile.TarInfo("backup.json" if place == "first" else next(iter(contents)))
    header.type, header.size = kind, HUGE
    before = b"" if place == "first" else packed({}, facts).rstrip(b"\0")
    before += b"\0" * (-len(before) % tarfile.BLOCKSIZE)
    is_refused(host, with_header(host, header, before), "is not a complete backup", prefix=LIMITS)


def test_a_sparse_member_does_not_fill_the_disk(host, members):
    contents, facts = members
    sizes = {**facts["bytes"], "lists/own": 1 << 40}
    manifest = json.dumps({**facts, "bytes": sizes}).encode()
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
        sparse = b"1\n0\n0\n".ljust(tarfile.BLOCKSIZE, b"\0")
        for name, content in {"backup.json": manifest, **contents, "lists/own": sparse}.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            if name == "lists/own":
                header.pax_headers = {
                    "GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": name, "GNU.sparse.realsize": str(1 << 40)
                }  # fmt: skip
            tar.addfile(header, io.BytesIO(content))
    is_refused(host, archive.getvalue(), "bytes on the disk of", prefix=LIMITS)
    small = archive.getvalue().replace(manifest, json.dumps(facts).encode().ljust(len(manifest)))
    is_refused(host, small, "not a plain file", prefix=LIMITS)


def records_of(content):
    """The records of a list in a backup: line and content of each."""
    found, at = [], 0
    while at < len(content):
        end = content.index(b"\n", at)
        line = json.loads(content[at:end])
        at = end + 1 + line["bytes"]
        found.append((line, content[end + 1 : at]))
    return found


def joined(found):
    return b"".join(json.dumps(line).encode() + b"\n" + content for line, content in found)


def with_content(found, kind, change):
    """The records with one changed content of this kind, of the right size."""
    at = next(at for at, (line, _) in enumerate(found) if line["kind"] == kind)
    content = change(found[at][1])
    return joined([*found[:at], (found[at][0] | {"bytes": len(content)}, content), *found[at + 1 :]])


def with_line(found, at, **fields):
    """The records with other fields in one line."""
    return joined([*found[:at], (found[at][0] | fields, found[at][1]), *found[at + 1 :]])


def flipped(content):
    return content[:-1] + bytes([content[-1] ^ 1])


def replaced(old, new):
    return lambda content: content.replace(old, new, 1)


def bomb(content):
    """Blocks that a decoder would expand to gigabytes."""
    return content[:4] + zstandard.compress(bytes(1 << 30)) if len(content) > 4 else content


@pytest.mark.parametrize(
    ("alter", "says"),
    [
        (lambda _: b"", "does not lead to its head"),
        (lambda _: b"no list", "list own: "),
        (lambda found: joined(found)[:-1], "longer than the file"),
        (lambda _: DEEP + b"\n", "list own: "),
        (lambda _: b"[]\n", "list own: "),
        (lambda found: joined(found[1:]), "at the wrong place"),
        (lambda found: joined([found[0], *found]), "at the wrong place"),
        (lambda found: joined([found[0], *found[2:]]), "at the wrong place"),
        (lambda found: joined(found[:2]), "damaged in the store: the base"),
        (lambda found: with_line(found, 0, kind="other"), "at the wrong place"),
        *((lambda found, size=size: with_line(found, 1, bytes=size), "list own: ") for size in (-1, 10**12, True, None, "5", 1.5)),
        (lambda found: with_content(found, "head", lambda _: b"[]"), "a head must have the fields"),
        (lambda found: with_content(found, "head", lambda _: DEEP), "list own: "),
        (lambda found: with_content(found, "head", replaced(b'"entries":1', b'"entries":2')), "entries differs"),
        (lambda found: with_content(found, "head", replaced(b'"reasons":["","lost"', b'"reasons":["","sold"')), "differs"),
        (lambda found: with_content(found, "change", replaced(b'"who":"', b'"who":"x')), "does not lead to its head"),
        (lambda found: with_content(found, "change", lambda _: b"{}"), "a change must have the fields"),
        (lambda found: with_content(found, "part", flipped), "another digest"),
        (lambda found: with_content(found, "part", bomb), "another digest"),
    ],
)  # fmt: skip
def test_a_damaged_list_is_refused(host, members, alter, says):
    contents, facts = members
    altered = {**contents, "lists/own": alter(records_of(contents["lists/own"]))}
    is_refused(host, packed(altered, facts_of(altered, facts)), "is damaged", says, prefix=LIMITS)


@pytest.mark.parametrize(
    "alter",
    [lambda _: b"", lambda _: b"{}", lambda content: content.replace(b'"serial":1', b'"serial":9', 1),
     lambda content: b"".join(line for line in content.splitlines(keepends=True) if b'"line":2' not in line),
     lambda content: content.replace(b"main-000000000001", b"main-000000000002")],
)  # fmt: skip
def test_a_damaged_journal_is_refused(host, members, alter):
    contents, facts = members
    altered = {**contents, "journal.jsonl": alter(contents["journal.jsonl"])}
    is_refused(host, packed(altered, facts_of(altered, facts)), "is damaged")


def test_a_journal_with_a_fault_does_not_prevent_a_backup(tmp_path, publisher):
    with made(tmp_path / "site", publisher, "sqlite") as site, Site(tmp_path / "new", publisher) as new:
        (path,) = (site.state / "journal").glob("main-*")
        path.write_bytes(path.read_bytes().replace(b'"serial":1,', b'"serial":9,', 1))
        assert "warning: the journal has 1 faults" in site.eir("backup", tmp_path / "eir.tar").stderr
        new.configure(lists=LISTS, policy=POLICY)
        new.eir("restore", tmp_path / "eir.tar")
        assert "was changed" in new.eir("history", "--verify", status=1).stderr


def test_a_journal_stays_and_that_of_the_backup_is_kept_beside_it(tmp_path, publisher):
    with made(tmp_path / "site", publisher, "sqlite") as site, Site(tmp_path / "new", publisher) as new:
        site.eir("backup", tmp_path / "eir.tar")
        new.configure(lists={**LISTS, "mine": {"local": True}}, policy=POLICY)
        new.eir("add", "mine", THIRD, "--reason", "lost")
        new.eir("restore", tmp_path / "eir.tar")
        history = new.json("history", "-n", "100")
        assert sorted(event["what"] for event in history) == ["add", "add", "import", "load", "load", "restore"]
        assert "history is valid" in new.eir("history", "--verify").stdout
        (witness,) = (new.state / "journal").glob("witness-*")
        new.eir("restore", tmp_path / "eir.tar")
        assert [*(new.state / "journal").glob("witness-*")] == [witness]
        before = len(site.json("history", "-n", "100"))
        site.eir("add", "own", UNLISTED, "--reason", "lost")
        site.eir("restore", tmp_path / "eir.tar", status=1)
        site.eir("restore", "--force", tmp_path / "eir.tar")
        assert not [*(site.state / "journal").glob("witness-*")]  # this journal continues that of the backup
        assert len(site.json("history", "-n", "100")) > before + 1
        assert "history is valid" in site.eir("history", "--verify").stdout


@pytest.mark.parametrize("content", [b"[]", DEEP, b'{"own": [1e999, "", ""]}', b"1"])
def test_a_damaged_file_of_marks_counts_as_empty(members, tmp_path, publisher, content):
    contents, facts = members
    altered = {**contents, "in-force.json": content}
    (tmp_path / "eir.tar").write_bytes(packed(altered, facts_of(altered, facts)))
    with Site(tmp_path / "new", publisher) as new:
        new.configure(lists=LISTS, policy=POLICY)
        new.eir("restore", tmp_path / "eir.tar")
        assert new.json("lists")


def test_a_killed_command_leaves_no_keys_and_the_next_one_removes_its_folder(host, members):
    def rooms():
        return [*host.state.glob(".backup-*")]

    whole = packed(*members)
    with host.popen("restore", "-", text=False, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        process.stdin.write(whole[: whole.index(b"lists/stolen\0")])
        process.stdin.flush()
        (room,) = until(rooms)
        until((room / "lists" / "own").exists)
        assert not [path.name for path in room.rglob("*") if "key" in path.name]
        host.eir("backup", host.folder / "beside.tar")
        assert rooms() == [room]  # a command that runs keeps its folder
        process.kill()
    assert rooms() == [room]
    host.eir("restore", "--dry-run", host.folder / "beside.tar")
    assert not rooms()


def test_a_store_that_lost_a_list_or_has_a_damaged_head_is_not_backed_up(tmp_path, publisher):
    with made(tmp_path / "site", publisher, "sqlite") as site:
        database = site.state / "lists.sqlite"
        (site.state / "whole").write_bytes(database.read_bytes())
        site.load([THIRD], serial=3)
        with sqlite3.connect(database) as db:
            db.execute("UPDATE heads SET head = '{' WHERE list = 'own'")
        db.close()
        assert "the head of list own is damaged" in site.eir("backup", tmp_path / "x.tar", status=1).stderr
        site.start()
        until(lambda: site.is_copied({"stolen": 3}))
        site.node.end()
        for path in site.state.glob("lists.sqlite-*"):
            path.unlink()
        (site.state / "whole").replace(database)
        refused = site.eir("backup", tmp_path / "x.tar", status=1).stderr
        assert "stolen: this node's copy has serial 3 (generation 3), and the backup 2 (2)" in refused
        with sqlite3.connect(database) as db:
            db.execute("DELETE FROM heads WHERE list = 'stolen'")
        db.close()
        assert "stolen: the store has no such list" in site.eir("backup", tmp_path / "x.tar", status=1).stderr
        assert not (tmp_path / "x.tar").exists()


def test_a_damaged_head_is_restored_with_force(tmp_path, publisher):
    with made(tmp_path / "site", publisher, "sqlite") as site:
        site.eir("backup", tmp_path / "x.tar")
        before = json.loads(site.eir("lists", "--json").stdout)
        site.eir("add", "own", UNLISTED, "--reason", "lost")
        with sqlite3.connect(site.state / "lists.sqlite") as db:
            db.execute("UPDATE heads SET head = '{'")
        db.close()
        assert "the head of list own is damaged" in site.eir("restore", tmp_path / "x.tar", status=1).stderr
        site.eir("restore", "--force", tmp_path / "x.tar")
        after = json.loads(site.eir("lists", "--json").stdout)
        for one, other in zip(before, after, strict=True):
            assert {one[key] == other[key] for key in ("list", "serial", "entries", "digest")} == {True}
            assert other["loaded"] >= one["loaded"]
        assert UNLISTED not in site.eir("export", "own").stdout


def test_an_existing_file_is_not_replaced(host):
    file = host.folder / "mine.tar"
    file.write_text("mine")
    assert "exists already" in host.eir("backup", file, status=1).stderr
    assert file.read_text() == "mine"
    (host.folder / "link.tar").symlink_to("nowhere")
    assert "give another name" in host.eir("backup", host.folder / "link.tar", status=1).stderr


def test_what_is_no_backup_is_refused(host, tmp_path, publisher):
    link = tarfile.TarInfo("lists/own")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    for archive in (b"no tar", b"", tarfile.TarInfo("../evil").tobuf(), link.tobuf(), b"\0" * 10240):
        is_refused(host, archive, "is not a complete backup")
    with Site(tmp_path / "site", publisher) as site:
        assert "none.tar: No such file" in site.eir("restore", tmp_path / "none.tar", status=1).stderr
        assert not site.state.exists()
        site.state.mkdir()
        assert "has no list; load one first" in site.eir("backup", tmp_path / "x.tar", status=1).stderr
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

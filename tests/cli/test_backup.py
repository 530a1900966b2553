"""`eir backup` and `eir restore`: everything comes back, from and to both kinds of store, and nothing behind what nodes have."""

import hashlib
import io
import json
import os
import sqlite3
import subprocess
import tarfile
from contextlib import closing

import pytest
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
    """A bit of the SQLite file that is not its header."""
    at = content.index(b"agency@publisher.example")
    return content[:at] + b"X" + content[at + 1 :]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"in-force.json": lambda content: content[:-1]}, "in-force.json"),
        ({"lists.sqlite": changed_bit}, "its member lists.sqlite is damaged"),
        ({"lists.sqlite": None}, "end of file header"),
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
    for name in ("../evil", "/etc/evil", "sightings/../evil.parquet", "lists.sqlite-wal", "backup.json", ""):
        known = {**contents, name: b"x"}
        is_refused(host, packed(known, facts_of(known, facts)), f"its manifest names {name!r} of 1 bytes")
    is_refused(host, packed(dict(reversed(contents.items())), facts), "and its manifest")
    few = {name: content for name, content in contents.items() if name != "lists.sqlite"}
    is_refused(host, packed(few, facts_of(few, facts)), "does not name lists.sqlite")


DEEP = b"[" * 200_000


@pytest.mark.parametrize(
    "change",
    [
        DEEP, b'{"format": "eir-backup/2", "files": ' + DEEP, b"{", b"\xff", b"", b"[]", b"1", b"null", b'"x"', b"9" * 5000, b'{"a": 1e999}',
        {"format": None}, {"format": ["eir-backup/2"]}, {"files": None}, {"files": []}, {"files": {"lists.sqlite": 1}}, {"bytes": None}, {"bytes": {}}, {"bytes": []},
        {"made": None}, {"made": 5}, {"made": "today"}, {"made": "\ud800"}, {"node": None}, {"node": 5}, {"node": ["x"]}, {"node": "\x1b[2J"}, {"node": "\ud800"},
        *({"bytes": {"lists.sqlite": size}} for size in (None, True, -1, 1.5, "5", 10**30, [5])),
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
    sizes = {**facts["bytes"], "lists.sqlite": 1 << 40}
    manifest = json.dumps({**facts, "bytes": sizes}).encode()
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
        sparse = b"1\n0\n0\n".ljust(tarfile.BLOCKSIZE, b"\0")
        for name, content in {"backup.json": manifest, **contents, "lists.sqlite": sparse}.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            if name == "lists.sqlite":
                header.pax_headers = {
                    "GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": name, "GNU.sparse.realsize": str(1 << 40)
                }  # fmt: skip
            tar.addfile(header, io.BytesIO(content))
    is_refused(host, archive.getvalue(), "bytes on the disk of", prefix=LIMITS)
    small = archive.getvalue().replace(manifest, json.dumps(facts).encode().ljust(len(manifest)))
    is_refused(host, small, "not a plain file", prefix=LIMITS)


def altered_lists(tmp_path, contents, *statements):
    """The members, with statements executed on the SQLite file."""
    path = tmp_path / "altered.sqlite"
    path.write_bytes(contents["lists.sqlite"])
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA writable_schema = ON")
        for statement in statements:
            db.execute(statement)
    return {**contents, "lists.sqlite": path.read_bytes()}


ENDLESS = "WITH RECURSIVE endless AS (SELECT 1 AS id UNION ALL SELECT id + 1 FROM endless) SELECT"
COLUMNS = "id INTEGER PRIMARY KEY, keys BLOB NOT NULL"


@pytest.mark.parametrize(
    ("statements", "says"),
    [
        (["CREATE TRIGGER spy AFTER INSERT ON records BEGIN DELETE FROM pages; END"], "it has the trigger 'spy', which eir does not write"),
        (["CREATE VIEW spied AS SELECT * FROM lists"], "it has the view 'spied', which eir does not write"),
        (["CREATE TABLE more (x)"], "it has the table 'more', which eir does not write"),
        (["CREATE INDEX mine ON lists (made)"], "it has the index 'mine'"),
        (["DROP TABLE pages", f"CREATE VIEW pages AS {ENDLESS} id, x'00' AS keys, x'' AS extra FROM endless"], "it has the view 'pages'"),
        (["DROP TABLE pages"], "its table pages is missing or has other columns"),
        (["DROP TABLE pages", f"CREATE TABLE pages ({COLUMNS}, extra BLOB NOT NULL DEFAULT x'{'00' * 9999}')"], "its table pages"),
        (["DROP TABLE pages", f"CREATE TABLE pages ({COLUMNS}, extra BLOB NOT NULL AS (zeroblob(1000000000)))"], "its table pages"),
        (["UPDATE lists SET state = CAST(state AS BLOB)"], "its table lists has a value of another type"),
        (["UPDATE lists SET name = NULL WHERE name = 'own'"], "its table lists has a value of another type"),
        (["UPDATE records SET text = x'00'"], "its table records has a value of another type"),
        (["UPDATE lists SET name = '../own' WHERE name = 'own'"], "'../own' is not the name of a list"),
        (["UPDATE lists SET state = '[]'"], "is not a JSON object"),
        ([f"UPDATE lists SET state = '{DEEP.decode()}'"], "is not JSON"),
        (["UPDATE records SET text = json_set(text, '$.before', json('[]'))"], "invalid value"),
        (["UPDATE records SET text = json_set(text, '$.number', json('[]'))"], "history is damaged"),
        (["UPDATE pages SET keys = x'00'"], "digest"),
        (["UPDATE pages SET keys = zeroblob(140000000) WHERE id = (SELECT min(id) FROM pages)"], "too big"),
        (["PRAGMA application_id = 1"], "another program"),
        (["PRAGMA user_version = 1"], "form 1"),
        (["PRAGMA user_version = 99"], "newer eir"),
    ],
    ids=lambda value: value[-1][:50] if isinstance(value, list) else "",
)  # fmt: skip
def test_a_hostile_sqlite_file_is_refused(host, members, tmp_path, statements, says):
    contents, facts = members
    altered = altered_lists(tmp_path, contents, *statements)
    is_refused(host, packed(altered, facts_of(altered, facts)), says)


def varint(content, at):
    """A number of SQLite of up to 8 bytes (fileformat2.html 1.6), and the place behind it."""
    value = 0
    while True:
        value = value << 7 | content[at] & 127
        at += 1
        if content[at - 1] < 128:
            return value, at


def sharing_overflow(contents, tmp_path):
    """The SQLite file with 60 pages of 160 kB each, all of whose content is in the same pages of the file."""
    count, blob = 60, 4092 * 40 + 500
    grown = altered_lists(
        tmp_path,
        contents,
        f"INSERT INTO pages SELECT value, zeroblob(600), x'' FROM json_each('{[*range(1 << 60, (1 << 60) + count)]}')",
        *(f"UPDATE pages SET keys = zeroblob({blob}) WHERE id = {(1 << 60) + number}" for number in range(count)),
    )
    content = bytearray(grown["lists.sqlite"])
    shared = None
    for page in range(4096, len(content), 4096):
        if content[page] != 13:  # not a leaf of a table
            continue
        for cell in range(int.from_bytes(content[page + 3 : page + 5])):
            at = page + int.from_bytes(content[page + 8 + 2 * cell : page + 10 + 2 * cell])
            size, at = varint(content, at)
            _, at = varint(content, at)
            if size > blob:
                at += 489 + (size - 489) % 4092
                shared = shared or int.from_bytes(content[at : at + 4])
                content[at : at + 4] = shared.to_bytes(4)
    end = shared + 41
    content[28:40] = end.to_bytes(4) + bytes(8)  # number of pages; no free ones
    return {**contents, "lists.sqlite": bytes(content[: end * 4096])}


def test_rows_that_share_their_content_do_not_fill_the_disk(host, members, tmp_path):
    contents, facts = members
    altered = sharing_overflow(contents, tmp_path)
    with closing(sqlite3.connect(tmp_path / "altered.sqlite")) as db:
        (tmp_path / "altered.sqlite").write_bytes(altered["lists.sqlite"])
        assert db.execute("SELECT sum(length(keys)) FROM pages").fetchone()[0] > 10 * len(altered["lists.sqlite"])
    is_refused(host, packed(altered, facts_of(altered, facts)), "cannot be copied: database or disk is full")


def test_what_is_no_sqlite_file_is_refused(host, members):
    contents, facts = members
    for content in (b"", b"no SQLite file" * 1000, contents["lists.sqlite"][:8192]):
        altered = {**contents, "lists.sqlite": content}
        is_refused(host, packed(altered, facts_of(altered, facts)), "lists.sqlite")


def test_a_restored_file_has_the_schema_of_the_program(members, tmp_path, publisher):
    """Its tables may be declared in another way; the texts of the declarations are not restored."""
    contents, facts = members
    spied = (
        "UPDATE sqlite_master SET sql = replace(sql, 'TEXT NOT NULL', 'TEXT CHECK (1) NOT NULL') WHERE name = 'claims'"
    )
    altered = altered_lists(tmp_path, contents, spied)
    (tmp_path / "eir.tar").write_bytes(packed(altered, facts_of(altered, facts)))
    with Site(tmp_path / "new", publisher) as new:
        new.configure(lists=LISTS, policy=POLICY)
        (tmp_path / "disk").mkdir()
        new.state.symlink_to(tmp_path / "disk")
        new.eir("restore", tmp_path / "eir.tar")
        with closing(sqlite3.connect(new.state / "lists.sqlite")) as db:
            assert not db.execute("SELECT 1 FROM sqlite_master WHERE sql LIKE '%CHECK%'").fetchall()
        assert new.json("lists")


@pytest.mark.parametrize("content", [b"[]", DEEP, b'{"own": [1e999, "", ""]}', b"1"])
def test_a_damaged_file_of_marks_counts_as_empty(members, tmp_path, publisher, content):
    contents, facts = members
    altered = {**contents, "in-force.json": content}
    (tmp_path / "eir.tar").write_bytes(packed(altered, facts_of(altered, facts)))
    with Site(tmp_path / "new", publisher) as new:
        new.configure(lists=LISTS, policy=POLICY)
        new.eir("restore", tmp_path / "eir.tar")
        assert new.json("lists")


def test_views_of_an_operator_are_not_in_a_backup(tmp_path, publisher):
    with made(tmp_path / "site", publisher, "sqlite") as site, Site(tmp_path / "new", publisher) as new:
        with closing(sqlite3.connect(site.state / "lists.sqlite")) as db:
            db.execute("CREATE VIEW mine AS SELECT name FROM lists")
        site.eir("backup", tmp_path / "eir.tar")
        new.configure(lists=LISTS, policy=POLICY)
        new.eir("restore", tmp_path / "eir.tar")
        assert facts(new) == facts(site)


def test_a_killed_command_leaves_no_keys_and_the_next_one_removes_its_folder(host, members):
    def rooms():
        return [*host.state.glob(".backup-*")]

    whole = packed(*members)
    with host.popen("restore", "-", text=False, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        process.stdin.write(whole[:-20_000])
        process.stdin.flush()
        (room,) = until(rooms)
        until((room / "lists.sqlite").exists)
        assert not [path.name for path in room.rglob("*") if "key" in path.name]
        host.eir("backup", host.folder / "beside.tar")
        assert rooms() == [room]  # a command that runs keeps its folder
        process.kill()
    assert rooms() == [room]
    host.eir("restore", "--dry-run", host.folder / "beside.tar")
    assert not rooms()


def test_an_existing_file_is_not_replaced(host):
    file = host.folder / "mine.tar"
    file.write_text("mine")
    assert "exists already" in host.eir("backup", file, status=1).stderr
    assert file.read_text() == "mine"
    (host.folder / "link.tar").symlink_to("nowhere")
    assert "give another name" in host.eir("backup", host.folder / "link.tar", status=1).stderr


def test_what_is_no_backup_is_refused(host, tmp_path, publisher):
    link = tarfile.TarInfo("lists.sqlite")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    for archive in (b"no tar", b"", tarfile.TarInfo("../evil").tobuf(), link.tobuf(), b"\0" * 10240):
        is_refused(host, archive, "is not a complete backup")
    with Site(tmp_path / "site", publisher) as site:
        assert "none.tar: No such file" in site.eir("restore", tmp_path / "none.tar", status=1).stderr
        assert not site.state.exists()
        site.state.mkdir()
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

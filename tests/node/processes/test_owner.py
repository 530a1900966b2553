"""Root in another user's state folder: nothing that lies there has root write elsewhere, and what root makes is that user's."""

import os
import shutil
import sqlite3
import subprocess
import threading
from pathlib import Path

import pytest
from simulated.node import COMMAND, LISTED, UNLISTED

from eir.node.processes.state_folder import as_owner_of

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="as root, in a folder that is somebody else's")
NOBODY = 65534
SEEN = f"time,imei,imsi\n2026-11-20T10:00:00Z,{UNLISTED},001010000000001\n"


@pytest.fixture
def victim(tmp_path):
    """A folder of root's with a file that is not to change, and one that is empty."""
    folder = tmp_path / "root"
    folder.mkdir()
    (folder / "precious").write_text("all of it\n")
    (folder / "empty").touch()
    (folder / "day").mkdir()
    return folder


def untouched(victim):
    kept = {path.name: path.read_text() for path in victim.iterdir() if path.is_file()}
    return kept == {"precious": "all of it\n", "empty": ""} and not any((victim / "day").iterdir())


@pytest.fixture
def theirs(site):
    """A site whose state folder is nobody's."""
    site.configure(sightings={"subscribers": "hashed"})
    site.state.mkdir(mode=0o750)
    os.chown(site.state, NOBODY, NOBODY)
    (site.folder / "log.csv").write_text(SEEN)
    return site


def plant(folder, name, target):
    (folder / name).symlink_to(target)
    os.chown(folder / name, NOBODY, NOBODY, follow_symlinks=False)


def owners(folder):
    return {(path.lstat().st_uid, path.lstat().st_gid) for path in folder.rglob("*")}


@pytest.mark.parametrize("target", ["precious", "new"])
def test_the_link_of_a_file_that_is_written_beside_another_is_not_followed(theirs, victim, target):
    """Its name is known to who knows the process: the shell has it, and makes the link just before."""
    environment = theirs.environment()
    subprocess.run(
        ["sh", "-c", f'ln -s "{victim}/{target}" "{theirs.state}/.sightings.key.$$.tmp"; exec "$@"', "sh", *COMMAND, "sightings", "import", "log.csv"],
        cwd=theirs.folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert untouched(victim)


@pytest.mark.long(short=["sightings.key-precious"])
@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("lists.sqlite", "empty"), ("lists.sqlite", "new"), ("lists.sqlite-wal", "precious"), ("lists.sqlite-journal", "precious"),
        ("sightings", "day"), ("sightings.key", "precious"), ("lock", "new"), ("clock", "precious"), ("images", "day"),
        ("control.sock", "precious"), ("origin-state-id.new", "precious"),
    ],
)  # fmt: skip
def test_no_link_in_the_folder_has_root_write_elsewhere(theirs, victim, name, target):
    plant(theirs.state, name, victim / target)
    mode = (victim / "precious").stat().st_mode
    theirs.eir("load", theirs.release([LISTED]), status=None)
    theirs.eir("sightings", "import", "log.csv", status=None)
    assert untouched(victim)
    theirs.eir("sightings", "forget", "--imsi", "001010000000001", status=None)
    served = theirs.popen("serve", stderr=subprocess.PIPE)
    for line in served.stderr:  # until it serves; one that cannot start ends
        if "event=listening" in line:
            served.terminate()
    served.wait()
    served.stderr.close()
    assert untouched(victim)
    assert (victim / "precious").stat().st_mode == mode


def test_a_folder_that_is_a_link_is_of_who_placed_it(theirs, victim):
    shutil.rmtree(theirs.state)
    plant(theirs.folder, theirs.state.name, victim / "day")
    theirs.eir("load", theirs.release([LISTED]), status=1)
    theirs.eir("sightings", "import", "log.csv", status=None)
    assert untouched(victim)


def test_what_root_makes_there_is_the_owners_and_a_node_of_roots_runs(theirs):
    theirs.eir("load", theirs.release([LISTED]))
    theirs.eir("sightings", "import", "log.csv")
    theirs.configure(inbox="inbox")
    (theirs.folder / "inbox").mkdir()
    os.chown(theirs.folder / "inbox", NOBODY, NOBODY)
    node = theirs.start()
    assert node.status()["lists"]["stolen"]["serial"] == 1
    assert theirs.json("check", LISTED)["status"] == "blacklisted"
    node.end()
    assert owners(theirs.state) == {(NOBODY, NOBODY)}
    assert (theirs.state / "sightings.key").stat().st_mode & 0o777 == 0o600
    with sqlite3.connect(theirs.state / "lists.sqlite") as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_root_reads_what_the_owner_may_not_and_is_root_again_afterwards(tmp_path):
    theirs, secret = tmp_path / "theirs", tmp_path / "secret"
    theirs.mkdir()
    os.chown(theirs, NOBODY, NOBODY)
    secret.write_text("secret")
    secret.chmod(0o600)
    made, groups = [], os.getgroups()

    def beside():
        made.append((theirs / "beside").write_text(""))

    with as_owner_of(theirs), as_owner_of(theirs / "not made yet"):
        assert secret.read_text() == "secret"
        with pytest.raises(PermissionError):
            secret.write_text("")
        with pytest.raises(PermissionError):
            (tmp_path / "new").touch()
        thread = threading.Thread(target=beside)
        thread.start()
        thread.join()
        assert subprocess.run(["cat", secret], capture_output=True, check=True).stdout == b"secret"
    secret.write_text("root's again")
    assert owners(theirs) == {(NOBODY, NOBODY)}
    with as_owner_of(tmp_path):
        (tmp_path / "new").touch()
    assert os.getgroups() == groups


def test_the_key_of_the_hashes_is_nobodys_to_remove_who_may_not_read_it(theirs):
    """Whoever removed it would destroy all hashes of the record."""
    theirs.eir("sightings", "import", "log.csv")
    done = theirs.eir(
        "seen", "001010000000001", status=1, prefix=("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"),
    )  # fmt: skip
    assert "run the command as the node's user" in done.stderr
    assert "remove" not in done.stderr
    (theirs.state / "sightings.key").write_text("damaged")
    assert "restore it from a backup" in theirs.eir("seen", "001010000000001", status=1).stderr


def test_an_import_makes_the_state_folder(site):
    (site.folder / "log.csv").write_text(SEEN)
    assert f"chown -R USER {site.state}" in site.eir("sightings", "import", "log.csv").stderr
    assert site.state.stat().st_mode & 0o777 == 0o750
    assert site.json("seen", UNLISTED)["checks"] == 1
    assert Path(site.state, "sightings.key").exists()

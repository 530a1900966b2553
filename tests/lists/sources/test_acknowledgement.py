"""What a node says that it has in force: signed, compared with what the releases make, and held against the node."""

import json
import os
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from simulated.node import until
from simulated.publisher_folder import ROWS, Register
from simulated.releases import make_key, precede_openssh
from simulated.servers import free_port

from eir.errors import EirError, ReleaseRefused
from eir.lists.releases.openssh import sign_document
from eir.lists.sources.acknowledgement import (
    BEHIND,
    DIFFERS,
    IN_STEP,
    LATE,
    NAMESPACE,
    OLD,
    REJECTS,
    Acknowledgement,
    ListStatement,
    Rejection,
    load_key,
    node_status,
    node_statuses,
    read_acknowledgement,
    sign_acknowledgement,
    signer_line,
)
from eir.lists.sources.folder_writer import load_index

NOW = datetime.now(UTC).replace(microsecond=0)
HOUR = timedelta(hours=1)


def text(moment):
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def said(**changes):
    """A statement about the list."""
    given = {"serial": 1, "release": "1" * 64, "content": "0" * 64, "since": text(NOW)}
    return ListStatement(**given | changes)


def signed(key, *, node="eir.one", made=NOW, name="stolen", **changes):
    """The acknowledgement of a node with one statement."""
    return sign_acknowledgement(Acknowledgement(node=node, made=text(made), lists={name: said(**changes)}), key)


def _of_another_format(acknowledgement):
    """Return the document of an acknowledgement, without signature, with another format."""
    members = json.loads(acknowledgement.split(b"-----")[0])
    return json.dumps(members | {"format": "x"}).encode() + b"\n"


@pytest.fixture
def register(tmp_path, keys):
    made = Register(tmp_path / "register", keys[0], methods=("PUT",))
    with made.web:
        made.publish(ROWS[:20], ahead_s=-7200)
        made.publish(added=ROWS[20:22], ahead_s=-7000)
        made.publish(added=ROWS[22:24])
        yield made


def test_how_nodes_stand(register):
    index = load_index(register.folder)
    first, second, third = (index.content_of(serial) for serial in (1, 2, 3))

    def status(what, made=NOW):
        return node_status(index, "eir.one", text(made), what, NOW, HOUR)

    for what, state, behind in (
        (said(serial=3, content=third), IN_STEP, 0), (said(serial=2, content=second), LATE, 1), (said(serial=1, content=first), BEHIND, 2),
        (said(serial=3, content=second), DIFFERS, 0), (said(serial=4, content=first), DIFFERS, 0), (said(serial=0), BEHIND, 3),
        (said(serial=2, content=second, rejected=Rejection(reason="growth", at=text(NOW), serial=3)), REJECTS, 1),
        (said(serial=3, content=third, rejected=Rejection(reason="untrusted_signer", at=text(NOW))), REJECTS, 0),
        (said(serial=3, content=third, rejected=Rejection(reason="growth", at=text(NOW), serial=3)), IN_STEP, 0),
        (said(serial=3, content=second, rejected=Rejection(reason="growth", at=text(NOW), serial=4)), DIFFERS, 0),
    ):  # fmt: skip
        found = status(what)
        assert (found.state, found.behind) == (state, behind), what
    assert status(said(serial=3, content=third), NOW - timedelta(days=3)).state == OLD
    rejected = Rejection(reason="growth", at=text(NOW), serial=3)
    assert (
        status(said(serial=2, content=second, rejected=rejected)).detail
        == f"it rejected serial 3 at {text(NOW)}: growth"
    )
    rejected = Rejection(reason="index", at=text(NOW))
    assert (
        status(said(serial=2, content=second, rejected=rejected)).detail
        == f"it rejected the index at {text(NOW)}: index"
    )


def test_only_what_a_node_has_signed_itself_counts(register, tmp_path):
    nodes, keys = register.folder / "nodes", [make_key(tmp_path, name) for name in ("one", "two")]
    nodes.write_text(
        "".join(f"{signer_line(key, f'eir.{key.name}')}\n" for key in keys) + f"{signer_line(keys[1], 'eir.three')}\n"
    )
    room = register.folder / "acknowledgements"
    room.mkdir()
    third = {"serial": 3, "content": load_index(register.folder).content_of(3)}
    (room / "eir.one.ack").write_bytes(signed(keys[0], **third))
    (room / "eir.two.ack").write_bytes(signed(keys[0], node="eir.two", **third))
    (room / "eir.four.ack").write_bytes(b"{}\n")
    os.mkfifo(room / "eir.five.ack")
    (room / "eir.six.ack").write_bytes(signed(keys[0], **third))  # the first's own
    (room / "eir.seven.ack").write_bytes(signed(keys[0], node="eir.seven", name="other"))
    with nodes.open("a") as file:
        file.write("".join(f"{signer_line(keys[0], f'eir.{name}')}\n" for name in ("six", "seven")))
    found = {each.node: (each.state, each.behind) for each in node_statuses(register.folder, now=NOW, within=HOUR)}
    assert found == {
        "eir.one": ("in step", 0),
        "eir.two": ("unproven", 3),
        "eir.three": ("never", 3),
        "eir.four": ("unproven", 3),
        "eir.five": ("unproven", 3),
        "eir.six": ("unproven", 3),
        "eir.seven": ("unproven", 3),
    }


def test_what_is_no_acknowledgement(tmp_path):
    key = make_key(tmp_path, "one")
    nodes, file = tmp_path / "nodes", tmp_path / "eir.one.ack"
    nodes.write_text(f"{signer_line(key, 'eir.one')}\n")

    def read(content):
        file.write_bytes(content)
        return read_acknowledgement(file, nodes, NOW)

    content = signed(key)
    for damaged in (
        content.replace(b"eir.one", b"eir.two"),
        content[:-40],
        sign_document(b'{"format": "x"}\n', key, NAMESPACE),
        sign_document(_of_another_format(content), key, NAMESPACE),
        sign_document(content.split(b"-----")[0].replace(b'"stolen"', b'"../x"'), key, NAMESPACE),
        sign_document(content.split(b"-----")[0].replace(b'"lists": {', b'"lists": {"x": 7, '), key, NAMESPACE),
        signed(key, made=NOW + HOUR),
        signed(key, release="x"),
        *(
            signed(key, rejected=Rejection(**{"reason": "growth", "at": text(NOW)} | wrong))
            for wrong in (
                {"reason": "no word"},
                {"reason": "\x1b[2J"},
                {"reason": 60 * "a"},
                {"reason": None},
                {"serial": 0},
                {"serial": True},
                {"at": "soon"},
            )
        ),
        sign_document(content.split(b"-----")[0].replace(b'"rejected": null', b'"rejected": 7'), key, NAMESPACE),
        sign_document(content.split(b"-----")[0], key),
    ):
        with pytest.raises(ReleaseRefused):
            read(damaged)
    assert read(content) == Acknowledgement(node="eir.one", made=text(NOW), lists={"stolen": said()})
    for rejected in (
        Rejection(reason="growth", at=text(NOW), serial=3),
        Rejection(reason="untrusted_signer", at=text(NOW)),
    ):
        assert read(signed(key, rejected=rejected, release=None)).lists == {
            "stolen": said(rejected=rejected, release=None)
        }
    with pytest.raises(
        ReleaseRefused, match=r"the format 'x', and this version reads 'eir-acknowledgement/2': .* versions"
    ):
        read(sign_document(_of_another_format(content), key, NAMESPACE))


def test_files_of_nodes_without_a_key_are_not_read(register, tmp_path, monkeypatch):
    """Each check of a signature takes 50 ms, and anybody may be able to put files there."""
    key = make_key(tmp_path, "one")
    (register.folder / "nodes").write_text(f"{signer_line(key, 'eir.one')}\n")
    room = register.folder / "acknowledgements"
    room.mkdir()
    content = signed(key, serial=3, content=load_index(register.folder).content_of(3))
    for name in ("one", *(f"stranger-{n}" for n in range(30))):
        (room / f"eir.{name}.ack").write_bytes(content)
    calls = tmp_path / "calls"
    precede_openssh(monkeypatch, tmp_path / "bin", f"echo >> {calls}")
    found = node_statuses(register.folder, now=NOW, within=HOUR)
    assert len(calls.read_text()) < 5, "of 31 files"
    assert (found[0].node, found[0].state, len(found)) == ("eir.one", "in step", 31)
    assert {(each.state, each.known, each.detail) for each in found[1:]} == {
        ("unproven", False, f"it has no key in {register.folder / 'nodes'}")
    }


def test_the_file_of_a_stranger_is_shown_and_fails_no_command(site, register, tmp_path):
    key = make_key(tmp_path, "one")
    (register.folder / "nodes").write_text(f"{signer_line(key, 'eir.one')}\n")
    room = register.folder / "acknowledgements"
    room.mkdir()
    held = signed(key, serial=3, content=load_index(register.folder).content_of(3), made=datetime.now(UTC))
    (room / "eir.one.ack").write_bytes(held)
    (room / "eir.stranger.ack").write_text("anything")
    done = site.eir("acknowledged", register.folder, "--within", "10000d")
    assert re.search(r"eir\.stranger +stolen +unproven", done.stdout)
    (room / "eir.one.ack").write_text("broken")
    site.eir("acknowledged", register.folder, "--within", "10000d", status=1)
    (register.folder / "nodes").write_text("")
    assert "no node has a key in the file of nodes" in site.eir("acknowledged", register.folder, status=1).stderr


def test_the_key_of_a_node_is_printed_before_its_state_folder_exists(site):
    assert not site.state.exists()
    line = site.eir("acknowledge", "--key").stdout
    assert line.startswith(site.settings["identity"]["host"])
    assert site.eir("acknowledge", "--key").stdout == line
    assert site.state.stat().st_mode & 0o777 == 0o750


@pytest.mark.long
def test_a_node_acknowledges_what_it_rejects(site, tmp_path, publisher):
    """A wrong key, before any release is in force and behind one: the publisher learns it and its reason."""
    register, other = Register(tmp_path / "register", publisher.key, methods=("PUT",)), make_key(tmp_path, "other")
    with register.web:
        source = {"url": register.web.url, "every": "1s", "acknowledge": True}
        site.configure(lists={"tracked": {"local": True}, "stolen": {"signers": "signers", "source": source}})
        host = site.settings["identity"]["host"]
        room, name = register.folder / "acknowledgements", f"acknowledgements/{host}.ack"
        room.mkdir()

        def given(status):
            """The row about the node, as it was posted last."""
            (room / f"{host}.ack").write_bytes(register.web.given.get(name, b""))
            (row,) = json.loads(site.eir("acknowledged", register.folder, "--json", status=None).stdout)
            return (row["state"], row["serial"], row["detail"].rpartition(": ")[2]) == status and row

        register.publish(ROWS[:20], key=other)
        node = site.start(ready=False)
        (register.folder / "nodes").write_text(site.eir("acknowledge", "--key").stdout)
        row = until(lambda: given(("rejects", 0, "untrusted_signer")))
        assert re.fullmatch(r"it rejected the index at \S+: untrusted_signer", row["detail"])
        assert "rejects" in site.eir("acknowledged", register.folder, "--within", "1h", status=1).stdout
        register.publish(ROWS[:20], new_key=True)
        until(lambda: given(("in step", 2, "")))
        site.eir("acknowledged", register.folder)
        register.publish(added=ROWS[20:22], key=other, new_key=True)
        until(lambda: given(("rejects", 2, "untrusted_signer")))
        content, pulls = register.web.given[name], "eir_source_pulls_total{list=stolen,outcome=refused}"
        refused = node.metrics()[pulls]
        until(lambda: node.metrics()[pulls] >= refused + 2)
        assert register.web.given[name] == content, "the same rejection is given once"
        site.eir("acknowledge", "--out", tmp_path / "files")
        assert b'"reason": "untrusted_signer"' in (tmp_path / "files" / f"{host}.ack").read_bytes()
        strict = {"shrink_max": "0%", "growth_max": "0%", "change_min": 0}
        site.configure(lists={
            "tracked": {"local": True}, "stolen": {"signers": "signers", "source": source, **strict},
        })  # fmt: skip
        site.eir("reload")
        register.publish(["001010000000001", *ROWS[:19]])
        row = until(lambda: given(("rejects", 2, "shrink")) or given(("rejects", 2, "growth")))
        assert row["detail"].startswith("it rejected serial 4 at ")


def test_a_node_acknowledges_and_is_held_to_it(site, tmp_path, publisher):
    """It pulls, posts what is in force, and its answers are those of the list that it has signed for."""
    register = Register(tmp_path / "register", publisher.key, methods=("PUT",))
    with register.web:
        register.publish(ROWS[:20])
        source = {"url": register.web.url, "every": "1s", "acknowledge": True}
        away = {"url": f"http://127.0.0.1:{free_port()}/", "every": "1h"}
        site.configure(lists={
            "tracked": {"signers": "signers", "source": away}, "stolen": {"signers": "signers", "source": source},
        })  # fmt: skip
        site.load(ROWS[:1], list_name="tracked")
        node = site.start(ready=False)
        host = site.settings["identity"]["host"]
        name = f"acknowledgements/{host}.ack"
        until(lambda: b'"serial": 1' in register.web.given.get(name, b""))
        register.publish(added=ROWS[20:22])
        until(lambda: b'"serial": 2' in register.web.given[name])
        line = site.eir("acknowledge", "--key").stdout
        (register.folder / "nodes").write_text(line)
        room = register.folder / "acknowledgements"
        room.mkdir()
        (room / f"{host}.ack").write_bytes(register.web.given[name])
        (row,) = json.loads(site.eir("acknowledged", register.folder, "--json").stdout)
        assert (row["node"], row["state"], row["serial"], row["behind"]) == (host, "in step", 2, 0)
        until(lambda: node.metrics().get("eir_source_acknowledgements_total{list=stolen,outcome=given}", 0) >= 2)
        audit = site.json(
            "audit",
            room / f"{host}.ack",
            f"s13{node.status()['listening'][0][3:]}?origin_host=mme.localdomain&origin_realm=localdomain",
            "--all",
            "--rate",
            1000,
        )
        assert (audit["serial"], audit["asked"], audit["as_listed"]) == (2, 22, 22)
        by_hand = site.eir("acknowledge", status=1).stderr
        assert "Failed to connect" in by_hand
        assert "accepted by its source" in by_hand, "a source that is away stops no other"
        assert "eir acknowledge --out FOLDER" in by_hand
        site.eir("acknowledge", "stolen", "--out", tmp_path / "files")
        assert [path.name for path in (tmp_path / "files").iterdir()] == [f"{host}.ack"]
        since = [
            json.loads(content.split(b"-----")[0])["lists"]["stolen"]["since"]
            for content in (register.web.given[name], next((tmp_path / "files").iterdir()).read_bytes())
        ]
        assert since[0] == since[1]
        node.end()
        register.publish(added=ROWS[22:24], ahead_s=-7200)
        (row,) = json.loads(site.eir("acknowledged", register.folder, "--within", "1h", "--json", status=1).stdout)
        assert (row["state"], row["behind"], row["late_s"] >= 7200) == ("behind", 1, True)


def test_a_folder_that_is_none_and_a_key_that_cannot_be_made_are_named(tmp_path):
    (tmp_path / "nodes").touch()
    with pytest.raises(EirError, match="is no folder of `eir publish --to`"):
        node_statuses(tmp_path, now=NOW, within=HOUR)
    with pytest.raises(EirError, match=r"cannot be made: .*No such file or directory"):
        load_key(tmp_path / "nowhere")


def test_two_processes_that_create_the_key_at_once_have_the_same_one(tmp_path, monkeypatch):
    precede_openssh(monkeypatch, tmp_path / "bin", f'{shutil.which("ssh-keygen")} "$@" || exit 1')
    key = load_key(tmp_path)
    assert (key.stat().st_size > 0, key.with_name(f"{key.name}.pub").exists()) == (True, True)


@pytest.mark.long
def test_the_soak_in_its_short_form():
    """Nodes, a folder that changes, and a server that fails; for as long as an hour has minutes: scripts/soak sources."""
    soak = Path(__file__).parents[3] / "scripts" / "soak"
    run = [sys.executable, soak, "sources", "--changes", "1", "--minute", "1", "--nodes", "2", "--seed", "3"]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done
    assert "all nodes in step" in done.stdout

"""The state folder: one node at a time, and what it keeps there."""

import json
import os
import signal
import socket
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from full_disk import no_file_above
from simulated.node import LISTED, until
from typer.main import get_command

from eir import __version__
from eir.cli.app import EXAMPLES, command_line
from eir.errors import EirError, SetupFault, silent
from eir.lists.log.change import Head
from eir.lists.record.in_force import IN_FORCE_FILE, load_in_force, save_mark
from eir.node.observe.alerts import Alerts
from eir.node.observe.control import RUNNING, SOCKET_NAME, STOPPING
from eir.node.processes import state_folder
from eir.node.processes.acknowledging import Acknowledging


def test_a_folder_is_made_with_its_parents_and_not_for_all_to_see(tmp_path):
    state_folder.prepare(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o750
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupFault, match="cannot be created: Not a directory"):
        state_folder.prepare(tmp_path / "file" / "var")


def test_one_node_holds_it_until_its_last_process_has_ended(tmp_path):
    """A child that was forked meanwhile holds it too, as the processes of a node do when the first one is killed."""
    held = state_folder.lock(tmp_path)
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        os.close(theirs)
        os.read(ours, 1)
        os._exit(0)
    os.close(ours)
    os.close(held)
    with pytest.raises(EirError, match="a node already runs"):
        state_folder.lock(tmp_path, 0.3)
    threading.Timer(0.1, os.close, [theirs]).start()
    os.close(state_folder.lock(tmp_path))
    os.waitpid(child, 0)


def _answer(listener, answers):
    """Answer so many commands as a node does."""
    for answer in answers:
        with listener.accept()[0] as link:
            link.recv(1 << 16)
            link.sendall(json.dumps({"ok": True, "result": answer}).encode() + b"\n")


def test_a_running_node_is_reported_at_once_and_the_end_of_an_ending_node_is_awaited(tmp_path):
    held = state_folder.lock(tmp_path)
    answers = [STOPPING, STOPPING, RUNNING]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{tmp_path / SOCKET_NAME}")
        listener.listen()
        node = threading.Thread(target=_answer, args=(listener, answers))
        node.start()
        with pytest.raises(EirError, match="a node already runs"):
            state_folder.lock(tmp_path)
        node.join()
    os.close(held)


def form_after_a_start(folder):
    state_folder.write_form(folder)
    return (folder / "form").read_text()


@pytest.mark.parametrize("left", [None, "", "\0\0\0\0", "junk 0.0.1", f"{state_folder.FORM} 0.0.1\n"])
def test_a_folder_gets_this_programs_form(tmp_path, left):
    """A file that a power cut has left broken is no reason not to start."""
    if left is not None:
        (tmp_path / "form").write_text(left)
    assert form_after_a_start(tmp_path) == f"{state_folder.FORM} {__version__}\n"


@pytest.mark.parametrize("left", ["form", "copy.sqlite"])
def test_an_older_folder_is_refused_with_the_way_to_its_lists(site, left):
    site.state.mkdir()
    (site.state / left).write_text("1 0.0.1\n" if left == "form" else "")
    said = " ".join(site.eir("serve", status=2).stderr.split())
    assert (
        f"this is eir {__version__}, which knows form {state_folder.FORM}; write each list to a file with that version (eir export)"
        in said
    )
    assert "(eir load, eir add --file)" in said


def test_an_older_program_leaves_a_newer_folder_alone_and_names_both(site):
    site.state.mkdir()
    (site.state / "form").write_text("99 9.0.0\n")
    said = site.eir("serve", status=2).stderr
    assert "has form 99, written by eir 9.0.0; this is eir" in said
    assert f"eir {__version__}, which knows form {state_folder.FORM}" in said
    assert {path.name for path in site.state.iterdir()} <= {"form", "lock"}


BECAUSE = ("--reason", "x")
OPENS = {
    "check": [LISTED], "why": [LISTED], "load": ["x.manifest.json"], "inbox": [], "pull": [], "acknowledge": ["--key"], "show": ["stolen"],
    "export": ["stolen"], "history": [], "rollback": ["stolen"], "add": ["stolen", LISTED, *BECAUSE], "remove": ["stolen", LISTED, *BECAUSE],
    "audit": ["RELEASE", "--sightings"], "seen": [LISTED], "lists": [], "lists abandon": ["own", *BECAUSE], "lists reset-serial": ["stolen", "--to", "1", *BECAUSE],
    "sightings": [], "sightings forget": ["--imsi", "001010123456789"], "sightings import": ["x.csv"], "sightings export": [],
    "backup": ["eir.tar"], "restore": ["eir.tar"], "tamper report": [], "tamper show": [LISTED], "tamper confirm": [LISTED, *BECAUSE], "tamper clear": [LISTED, *BECAUSE], "tamper forget-decision": [LISTED, *BECAUSE], "tamper export": [], "figures": ["--month", "2026-11"], "first-seen import": ["x.csv"], "first-seen undo": [],
}  # fmt: skip
"""The commands that open the state folder, with arguments."""
LEAVES = {
    "serve",  # as the test above says
    *("status", "peers", "reload", "drain", "trace", "peer disable", "peer enable"),  # the node that runs is asked, whatever its version
    *("init", "config", "publish", "offer", "probe", "acknowledged", "feed user", "desk user"),
}  # fmt: skip
"""The others."""


def test_every_command_is_one_that_opens_the_folder_or_one_that_does_not():
    assert {*EXAMPLES} == {*OPENS, *LEAVES}


def test_commands_of_an_older_program_leave_a_newer_folder_alone_and_name_both_too(site):
    site.state.mkdir()
    release = str(site.release([LISTED]))
    (site.state / "form").write_text("99 9.0.0\n")
    for command, arguments in OPENS.items():
        line = [*command.split(), "-c", str(site.path), *(release if each == "RELEASE" else each for each in arguments)]
        with pytest.raises(EirError, match=r"has form 99, written by eir 9\.0\.0; this is eir") as refused:
            get_command(command_line())(line, standalone_mode=False)
        assert not isinstance(refused.value, SetupFault), command  # exit status 1
    assert [path.name for path in site.state.iterdir()] == ["form"]


def test_the_origin_state_id_rises_at_each_start_for_any_time_of_the_clock(tmp_path):
    now = int(time.time())
    assert state_folder.next_origin_state_id(tmp_path) >= now
    ahead = now + 100_000
    (tmp_path / "origin-state-id").write_text(f"{ahead}\n")
    assert [state_folder.next_origin_state_id(tmp_path) for _ in range(2)] == [ahead + 1, ahead + 2]
    (tmp_path / "origin-state-id").write_text("junk")
    assert now <= state_folder.next_origin_state_id(tmp_path) < ahead


def test_a_disk_without_room_costs_no_file(tmp_path):
    first = state_folder.next_origin_state_id(tmp_path)
    with no_file_above(3):
        assert state_folder.next_origin_state_id(tmp_path) > first
    assert [path.name for path in tmp_path.iterdir()] == [state_folder.ORIGIN_STATE_ID_FILE]
    assert (tmp_path / state_folder.ORIGIN_STATE_ID_FILE).read_text() == f"{first}\n"


def test_a_stopped_node_keeps_its_state_folder(site, altered):
    """Stopped for a while, as in a debugger: a second one does not take the socket from it, and it goes on after."""
    altered("from eir.node.processes import state_folder\nstate_folder.lock.__defaults__ = (2.0,)\n")
    site.configure(lists={}, policy={})
    node = site.start()
    node.signal(signal.SIGSTOP)
    try:
        assert "a node already runs" in site.eir("serve", status=1).stderr
    finally:
        node.signal(signal.SIGCONT)
    assert until(lambda: node.status()["ready"] == "ready")


def test_a_store_that_was_put_back_is_noticed_by_its_serials(tmp_path):
    """An older backup of the SQLite file lacks newer rows, and the node would pass those devices without a warning."""
    config = SimpleNamespace(state=tmp_path, lists={"stolen": SimpleNamespace(local=False, source=None)})

    def older(serial, highest, resets=0):
        """As a node that starts sees a store with this list."""
        state = replace(
            Head(), kind="devices", serial=serial, generation=1, highest_serial=highest, serial_resets=resets
        )
        node = Acknowledging(lambda: config, None, report=silent)
        node.update({"stolen": state})
        metrics = {"eir_list_serial": {("stolen",): 1.0}} | node.snapshot()
        return [each.text for each in Alerts().troubles(metrics, 0.0)]

    def warning(highest, before):
        why = f"its highest serial is {highest}, but this node accepted {before}: load the newest release again"
        return [f"lists of which the store lost data: stolen ({why})"]

    assert older(3, 3) == []
    for _ in range(2):
        assert older(1, 1) == warning(1, 3)
    assert older(1, 3) == [], "a rollback"
    assert older(2, 2) == warning(2, 3)
    assert older(1, 1, resets=1) == [], "an operator has set the highest serial back"
    assert older(4, 4, resets=1) == []
    (tmp_path / IN_FORCE_FILE).write_text('{"stolen": [7, "", "2026-11-20T00:00:00Z"]}')
    assert load_in_force(tmp_path)["stolen"].mark == (0, 7), "as versions before wrote it"
    assert older(6, 6) == warning(6, 7)


def test_a_node_keeps_a_serial_that_a_load_has_stored(tmp_path):
    """The load stores it before the answering process has the release, and the node writes the same file meanwhile."""
    config = SimpleNamespace(state=tmp_path, lists={})
    node = Acknowledging(lambda: config, None, report=silent)

    def look(**serials):
        lists = {
            name: replace(Head(), kind="devices", serial=serial, generation=serial, highest_serial=serial)
            for name, serial in serials.items()
        }
        node.update(lists)
        return {name: entry.mark[1] for name, entry in load_in_force(tmp_path).items()}

    assert look(stolen=6) == {"stolen": 6}
    save_mark(tmp_path, "stolen", (0, 7))
    save_mark(tmp_path, "other", (0, 3))
    assert look(stolen=6, third=1) == {"stolen": 7, "other": 3, "third": 1}
    save_mark(tmp_path, "stolen", (0, 2))
    assert load_in_force(tmp_path)["stolen"][:2] == (6, Head().content)
    assert look(stolen=7, other=3, third=1) == {"stolen": 7, "other": 3, "third": 1}
    assert all(entry.since for entry in load_in_force(tmp_path).values())

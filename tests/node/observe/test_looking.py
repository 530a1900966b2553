"""Who may only look: the second control socket (`control_read`), which runs what looks and nothing else."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from simulated.node import LISTED, UNLISTED, Site, run_eir
from simulated.wire import REALM

from eir.cli.app import command_line
from eir.errors import EirError
from eir.node.observe.control import READ_ONLY, ControlError, ReadOnlyRunner, ask, refusal

HELP_DESK = 4242
"""A group."""
SEEN = f"time,imei\n2026-11-20T10:00:00Z,{UNLISTED}\n"


@pytest.fixture(scope="module")
def watched(tmp_path_factory, publisher):
    """A node with such a socket, in a folder of the help desk's."""
    folder = tmp_path_factory.mktemp("looking")
    (folder / "look").mkdir()
    (folder / "look").chmod(0o2750)
    if os.geteuid() == 0:
        os.chown(folder / "look", -1, HELP_DESK)
    with Site(folder / "site", publisher) as site:
        site.configure(
            control_read=str(folder / "look" / "socket"),
            sightings={"subscribers": "full"},
            lists={"stolen": {"signers": "signers"}},
            policy={"rules": [{"list": "stolen", "answer": "blacklisted"}]},
            peers=[{"name": "mme", "realm": REALM, "from": ["127.0.0.0/8"], "expected": False}],
        )
        site.load([LISTED])
        (site.folder / "log.csv").write_text(SEEN)
        site.eir("sightings", "import", "log.csv")
        site.start()
        yield site


def looks(site, *arguments, prefix=(), cwd="/", **changes):
    """A command of somebody who has nothing but the socket."""
    environment = {name: value for name, value in site.environment().items() if name != "EIR_CONFIG"}
    environment |= {"EIR_CONTROL": site.settings["control_read"]} | changes
    return run_eir(*arguments, env=environment, cwd=cwd, status=None, prefix=prefix)


@pytest.mark.parametrize(
    "command",
    [
        ("check", LISTED, "--json"), ("show", "stolen", UNLISTED), ("history", "--verify"), ("peers", "--json"), ("seen", UNLISTED, "--json"), ("seen", "12345"),
        ("lists",), ("check", "--help"), ("check", LISTED, "--imsi"),
        *(pytest.param(command, marks=pytest.mark.long) for command in (
            ("check", UNLISTED), ("show", "stolen"), ("history", "stolen", "-n", "1", "--json"), ("seen", LISTED), ("show", "nothing"),
            ("lists", "--json", "--store"), ("history", "--since=3000d"),
        )),
    ],
)  # fmt: skip
def test_a_read_only_user_gets_the_output_of_the_operator(watched, command):
    """The same on standard output and standard error, and the same exit status."""
    done, own = looks(watched, *command), watched.eir(*command, status=None)
    assert (done.returncode, done.stdout, done.stderr) == (own.returncode, own.stdout, own.stderr)


def test_status_is_for_nagios(watched, tmp_path):
    done = looks(watched, "status")
    assert (done.returncode, done.stdout.partition(" - ")[0]) == (
        watched.eir("status", status=None).returncode,
        "EIR OK",
    )
    away = looks(watched, "status", EIR_CONTROL=str(tmp_path / "socket"))
    assert (away.returncode, away.stdout) == (
        2,
        f"EIR CRITICAL - no node runs with control_read: {tmp_path / 'socket'}\n",
    )
    assert looks(watched, "peers", EIR_CONTROL=str(tmp_path / "socket")).returncode == 1


@pytest.mark.parametrize(
    "command",
    [
        ("peer", "disable", "mme"), ("drain",), ("reload",), ("add", "stolen", LISTED), ("sightings", "forget", "--imsi", "1"), ("serve",), ("config",),
        ("history", "--export", "/tmp/x"), ("history", "--export=/tmp/x"), ("history", "import", "/tmp/x"), ("history", "--json", "import", "/tmp/x"),
        ("history", "--verify", "--with", "/tmp/x"), ("check", LISTED, "-c", "/etc/passwd"), ("status", "-c/etc/passwd"),
        ("show", "stolen", "-o", "/tmp/x"), ("check", "--", LISTED), ("-c", "x", "status"), (), ("seen", UNLISTED, "--config=x"),
        ("lists", "reset-serial", "stolen", "--reason", "x"), ("lists", "--json", "reset-serial", "stolen"), ("lists", "reset-serial"),
    ],
)  # fmt: skip
def test_who_may_only_look_changes_nothing(watched, command):
    assert refusal(command) is not None
    with pytest.raises(ControlError, match="read-only users"):
        ask(Path(watched.settings["control_read"]).parent, "run", at="socket", arguments=command)


@pytest.mark.skipif(os.geteuid() != 0, reason="drops the capabilities of root")
@pytest.mark.parametrize("can_read", [False, True])
def test_a_command_that_is_not_for_read_only_users_is_named(watched, tmp_path, can_read):
    """Whether this user may read the configuration or not."""
    held_back = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all")
    (tmp_path / "config").mkdir()
    file = tmp_path / "config" / "eir.yaml"
    file.write_text(watched.path.read_text().replace("signers: signers", f"signers: {watched.folder}/signers"))
    state = tmp_path / "config" / "var"
    state.mkdir()
    (file if not can_read else state).chmod(0)
    log = tmp_path / "rows.csv"
    log.write_text(f"imei\n{UNLISTED}\n")
    for command in (
        ("trace", "--imei", LISTED, "--reason", "a case"), ("reload",), ("drain",), ("peer", "disable", "mme"),
        *([] if can_read else [("add", "own", "--file", str(log), "--reason", "x"), ("figures",)]),
    ):  # fmt: skip
        done = looks(watched, *command, prefix=held_back, cwd=tmp_path)
        assert done.stderr == f"eir: {command[0]}: not for read-only users, who may run: {', '.join(READ_ONLY)}\n"
        assert (done.returncode, done.stdout) == (1, "")
    assert (
        "Permission denied" in looks(watched, "drain", prefix=held_back, cwd=tmp_path, EIR_CONTROL="").stderr
        or can_read
    )


@pytest.mark.parametrize("command", ["peer_disable", "drain", "reload", "status", "record"])
def test_the_socket_has_no_command_of_the_other_one(watched, command):
    with pytest.raises(ControlError, match="there are: run"):
        ask(Path(watched.settings["control_read"]).parent, command, at="socket", name="mme")


def test_no_option_gets_through_that_is_not_meant_to():
    """Of each command's options all are either let through or among those that name a file, or belong to what changes something."""
    for word in READ_ONLY:
        command = typer.main.get_command(command_line(word)).commands[word]
        options = {option for parameter in command.params for option in parameter.opts if option.startswith("-")}
        assert READ_ONLY[word] - {"-h", "--help"} <= options
        assert options - READ_ONLY[word] <= {"-c", "--config", "--export", "--reason", "--with"}


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes somebody of the group, and somebody who is not")
def test_the_group_of_its_folder_may_look_and_nobody_else(watched):
    path = Path(watched.settings["control_read"])
    assert (path.stat().st_gid, stat.S_IMODE(path.stat().st_mode)) == (HELP_DESK, 0o660)

    def as_user(group):
        # What reads the program from wherever the tests run; it opens no socket.
        reads = (
            "--inh-caps=+dac_read_search",
            "--ambient-caps=+dac_read_search",
            "--bounding-set=-all,+dac_read_search",
        )
        return ("setpriv", "--reuid=65534", f"--regid={group}", "--clear-groups", *reads)

    assert looks(watched, "status", prefix=as_user(HELP_DESK)).returncode == 0
    other = looks(watched, "status", prefix=as_user(65534))
    assert (other.returncode, other.stdout) == (
        3,
        f"EIR UNKNOWN - may not open the control socket in {path.parent}; users in the group of {path.parent} may\n",
    )
    steers = "import sys, pathlib; from eir.node.observe.control import ask; ask(pathlib.Path(sys.argv[1]), 'peer_disable', name='mme')"
    steering = subprocess.run(
        [*as_user(HELP_DESK), sys.executable, "-c", steers, watched.state], capture_output=True, text=True, check=False, cwd="/"
    )  # fmt: skip
    assert "ControlDenied: may not open the control socket" in steering.stderr
    assert watched.json("peers")[0]["state"] != "DISABLED"


def test_it_is_gone_with_the_node_and_takes_no_files_place(site, tmp_path):
    place = tmp_path / "look"
    place.mkdir()
    (place / "socket").write_text("precious")
    site.configure(control_read=str(place / "socket"))
    done = site.eir("serve", status=2)
    assert f"control_read {place / 'socket'}: the path exists and is not a socket" in done.stderr
    assert (place / "socket").read_text() == "precious"
    (place / "socket").unlink()
    site.start().end()
    assert not (place / "socket").exists()


async def test_a_command_that_runs_too_long_or_prints_too_much_is_ended(site):
    site.load([LISTED])
    with pytest.raises(EirError, match="request less"):
        await ReadOnlyRunner(site.path, out_bytes_max=10).run({"arguments": ["show", "stolen"]})
    with pytest.raises(EirError, match=r"status: no answer in 0.001 s"):
        await ReadOnlyRunner(site.path, time_s=0.001).run({"arguments": ["status"]})

"""Lines of deploy/FIRST-DAY.md and then of deploy/CONNECT.md, as a new user runs them beside an installed node, in an own folder and as an own user."""

import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from pages import Installation
from simulated.agent import in_a_network_of_its_own
from simulated.node import until
from simulated.patience import PROGRAM_S
from simulated.servers import free_port

ROOT = Path(__file__).parents[2]
SOMEBODY = pwd.getpwnam("nobody")
"""Another user than the one who runs the tests; OpenSSH wants one that is in the table of users."""
INSTALLED = ("3868", "9868")
"""Ports of a node as deploy/INSTALL.md installs it."""
PORTS = (
    *INSTALLED, "13868", "13869", "15868", "15869", "16379", "18080", "18443", "19868", "19869", "23867", "23868", "29868",
)  # fmt: skip
BLOCKS = Installation.first_day
BEGIN, *REST = Installation.first_hour
OPENED = "soon sh -c 'eir peers -c first/eir.yaml | grep -qw open'\n"
LISTED, FREE, FIRST = "00101008000001", "00101009000009", "00101006000001"


def another_user(folder):
    """What makes a command another user's; nothing where this user may not, or where that user could not read the program."""
    become = ["setpriv", f"--reuid={SOMEBODY.pw_uid}", f"--regid={SOMEBODY.pw_gid}", "--clear-groups"]
    tried = [
        *become,
        "sh",
        "-c",
        f"{sys.executable} -c 'from eir.cli import app; app.command_line()'",
    ]  # by a shell, which has lost what root may
    able = os.geteuid() == 0 and not subprocess.run(tried, capture_output=True, cwd=ROOT, check=False).returncode
    if able:
        os.chown(folder, SOMEBODY.pw_uid, SOMEBODY.pw_gid)
    return become if able else []


def answers(said):
    """(device, status) of each row that `eir probe` printed."""
    return [(row.split()[0], row.split()[2]) for row in said.splitlines() if re.match("[0-9]{14} ", row)]


@pytest.fixture
def folder():
    made = Path(tempfile.mkdtemp(prefix="eir-day-"))
    made.chmod(0o755)
    yield made
    for file in made.glob("day/*/pid"):  # Redis stands on its own; what else is left is the shell's
        with suppress(OSError, ValueError):
            os.kill(int(file.read_text()), signal.SIGKILL)
    shutil.rmtree(made)


@pytest.mark.long
@pytest.mark.skipif(not shutil.which("redis-server"), reason="redis-server is not installed")
def test_the_lines_of_the_pages_have_the_described_effect_one_page_after_the_other(folder):
    if in_a_network_of_its_own(
        f"{__file__}::test_the_lines_of_the_pages_have_the_described_effect_one_page_after_the_other"
    ):
        return
    shutil.copytree(ROOT / "config", folder / "config")
    (folder / "deploy").mkdir()
    for name in ("REDIS.md", "REGULATOR.md"):
        shutil.copy(ROOT / "deploy" / name, folder / "deploy")
    (folder / "bin").mkdir()
    (folder / "bin" / "eir").write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m eir "$@"\n')
    (folder / "bin" / "eir").chmod(0o755)
    marked = "".join(f"echo '== {number}'\n{block}" for number, block in enumerate(BLOCKS))
    marked += "echo '== hour'\nmkdir hour && cd hour\n" + BEGIN + OPENED + "".join(REST)
    installed = folder / "config" / "eir.yaml"
    sample = f"{installed.read_text()}\nhttp: 127.0.0.1:{INSTALLED[1]}\nstate: {folder}/installed\n"
    ports = {port: str(free_port()) for port in PORTS}
    sample, marked = (re.sub(r"\b\d{4,5}\b", lambda at: ports.get(at[0], at[0]), text) for text in (sample, marked))
    installed.write_text(sample)
    (folder / "day.sh").write_text(f"set -euo pipefail\n{marked}")
    environment = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "HOME": str(folder), "LANG": "C.UTF-8"}
    become = another_user(folder)
    usual = {"cwd": folder, "env": environment, "start_new_session": True, "stdin": subprocess.DEVNULL}
    with (folder / "installed.log").open("w") as log:
        service = subprocess.Popen([*become, "eir", "serve", "-c", installed], stderr=log, **usual)
    shell = None
    try:
        until(lambda: f"http://127.0.0.1:{ports[INSTALLED[1]]}" in (folder / "installed.log").read_text())
        with (folder / "out").open("w") as log:
            shell = subprocess.Popen([*become, "bash", "day.sh"], stdout=log, stderr=subprocess.STDOUT, **usual)
        shell.wait(PROGRAM_S)  # for the shell alone: if a line fails, nodes go on
    finally:
        for process in filter(None, (shell, service)):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    out = (folder / "out").read_text()
    assert shell.returncode == 0, out
    said = re.split(r"^== \w+\n", out, flags=re.MULTILINE)[1:]
    assert len(said) == len(BLOCKS) + 1, out
    _, _, configured, loaded, probed, fed, pulled, undone, emergency, exported, hour = said
    assert "warning" not in configured, configured
    assert re.search(r"^stolen-national +devices +3 ", loaded, re.MULTILINE), "the second node follows"
    assert answers(probed) == [(LISTED, "blacklisted"), (FREE, "whitelisted")] * 2, probed
    assert "added\n" in fed, fed
    assert "00101010000004: blacklisted" in fed, fed
    assert "register at 127.0.0.1 by the feed of" in fed, fed
    assert "00101010000003: greylisted" in pulled, pulled
    assert "stolen-national-4.manifest.json: refused (shrink): 100 devices come" in undone, undone
    assert "serial 1 is in force again" in undone
    assert re.search(r"rollback +stolen-national", undone), undone
    assert emergency.count(f"{LISTED}: blacklisted\n  by rule 1 (emergency): imei 001010080000010\n") == 2, emergency
    assert emergency.count("the node answers from memory, because its store does not answer") == 2
    assert answers(emergency)[-2:] == [(LISTED, "blacklisted"), (FIRST, "blacklisted")], emergency
    rows = (folder / "day" / "export.csv").read_text()
    assert FIRST in rows
    assert LISTED not in rows, "rolled back"
    assert exported.count("draining") == 2
    assert answers(hour) == [("00101001000001", "blacklisted"), (FREE, "whitelisted")], hour
    assert hour.count("draining") == 1, hour
    commands = re.sub(r"<<END\n.*?^END\n", "", BEGIN, flags=re.MULTILINE | re.DOTALL).splitlines()
    assert len(commands) < 11, "the page's first hour is a few lines"
    until(lambda: "event=stopped" in (folder / "day" / "b.log").read_text())
    assert "store_unprotected" not in (folder / "day" / "a.log").read_text()

"""`scripts/demo --country`, in a copy of the repository: each step shows what it promises, and no process stays."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from simulated.patience import PROGRAM_S
from simulated.servers import programs

ROOT = Path(__file__).parents[2]
STOLEN, COPIED = "35209900176148", "35209900881234"
OWNER, HOLDER = "001010000000001", "001010000000002"

pytestmark = pytest.mark.skipif("redis" not in programs(), reason="redis-server is not installed")


def steps_of(folder):
    """Run a demo in a copy of the repository; return the output of each step by its first word."""
    for name in ("scripts", "config", "deploy", "eir", "pyproject.toml", "README.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy(ROOT / name, folder / name)
    # The environment of this test run takes the part of the one that the demo would make.
    tools = folder / ".venv" / "bin"
    tools.mkdir(parents=True)
    for name, what in (("python", ""), ("eir", "-m eir")):
        (tools / name).write_text(f'#!/bin/sh\nexec {sys.executable} {what} "$@"\n')
        (tools / name).chmod(0o755)
    (folder / ".venv" / "installed[analysis]").touch()
    bare = {name: value for name, value in os.environ.items() if name not in {"EIR_CONFIG", "COLUMNS", "FORCE_COLOR"}}
    done = subprocess.run(
        ["scripts/demo", "--country"], cwd=folder, env=bare, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        check=False, timeout=PROGRAM_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    left = [entry.name for entry in Path("/proc").iterdir() if entry.name.isdigit() and is_in(entry, folder)]
    assert left == []
    return dict(re.findall(r"^== (\w+).*\n((?:(?!== ).*\n)*)", done.stdout, re.MULTILINE))


@pytest.mark.long
@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_a_country_on_one_machine(tmp_path):
    """Of two operators with three nodes, one ends up as the one that does not apply the list."""
    steps = steps_of(tmp_path)
    assert steps["Publish"].count("in step") == 3
    assert re.findall(rf"{STOLEN} +- +(\w+)", steps["Ask"]) == ["whitelisted"] * 3
    assert re.findall(rf"{STOLEN} +- +(\w+)", steps["Refuse"]) == ["blacklisted"] * 9  # three protocols each
    assert COPIED in re.findall(r"^([0-9]{14})  ", steps["Find"], re.MULTILINE)
    assert f"{COPIED},{HOLDER},tampered" in steps["Export"]
    assert (
        re.findall(rf"{COPIED} +([0-9]+) +(\w+)", steps["Block"])
        == [(HOLDER, "blacklisted"), (OWNER, "whitelisted")] * 3
    )
    assert steps["Take"].count("the store is away") == 2
    assert re.findall(rf"{STOLEN} +- +(\w+)", steps["Take"]) == ["blacklisted"] * 2
    assert "heal" in steps["Take"]
    totals = {
        name: int(devices) for name, devices in re.findall(r"^(\w+) +- +- +(\d+) ", steps["Figures"], re.MULTILINE)
    }
    assert min(totals[name] for name in ("refused", "returned", "copies_found")) >= 20, (
        "two operators with ten devices each"
    )
    assert "withheld" not in steps["Figures"]
    assert (tmp_path / "var/demo-country/register/country.html").stat().st_size > 1000
    asked = re.findall(r"(\d+) of (\d+) devices answered as listed", steps["Audit"])
    assert [int(listed) / int(devices) for listed, devices in asked] == [1, 0]


def is_in(process, folder):
    """Whether the process works in that folder."""
    try:
        return (process / "cwd").readlink().is_relative_to(folder)
    except OSError:
        return False

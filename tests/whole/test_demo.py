"""`scripts/demo --redis`, in a copy of the repository: a block reaches both nodes, and nothing that it started stays."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from servers import programs

ROOT = Path(__file__).parents[2]
PATIENCE_S = 600
DEVICE = "001010070000003"

pytestmark = pytest.mark.skipif("redis" not in programs(), reason="redis-server is not installed")


def test_the_demo_goes_as_it_says(tmp_path):
    for name in ("scripts", "config", "eir", "pyproject.toml", "README.md"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy(ROOT / name, tmp_path / name)
    # The environment of this test run takes the part of the one that the demo would make.
    tools = tmp_path / ".venv" / "bin"
    tools.mkdir(parents=True)
    for name, what in (("python", ""), ("eir", "-m eir")):
        (tools / name).write_text(f'#!/bin/sh\nexec {sys.executable} {what} "$@"\n')
        (tools / name).chmod(0o755)
    (tmp_path / ".venv" / "installed[analysis]").touch()
    bare = {name: value for name, value in os.environ.items() if name not in {"EIR_CONFIG", "COLUMNS", "FORCE_COLOR"}}
    done = subprocess.run(
        ["scripts/demo", "--redis"], cwd=tmp_path, env=bare, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        check=False, timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    steps = dict(re.findall(r"^== (\w+).*\n((?:(?!== ).*\n)*)", done.stdout, re.MULTILINE))
    assert re.findall(rf"{DEVICE} +- +(\w+)", steps["Ask"]) == ["whitelisted", "whitelisted"]
    assert re.findall(rf"{DEVICE} +- +(\w+)", steps["Block"]) == ["blacklisted", "blacklisted"]
    assert steps["Take"].count("the store is away") == 2
    assert re.findall(rf"{DEVICE} +- +(\w+)", steps["Take"]) == ["blacklisted", "blacklisted"]
    assert "heal" in steps["Redis"]
    left = [entry.name for entry in Path("/proc").iterdir() if entry.name.isdigit() and is_in(entry, tmp_path)]
    assert left == []


def is_in(process, folder):
    """Whether the process works in that folder."""
    try:
        return (process / "cwd").readlink().is_relative_to(folder)
    except OSError:
        return False

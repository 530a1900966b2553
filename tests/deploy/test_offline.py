"""The installation without the Internet by the lines of deploy/INSTALL.md, in a network namespace that has none. `scripts/soak newcomer` is the long form."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from shlex import quote

import pytest
from pages import ROOT, Installation
from simulated.patience import PROGRAM_S

WHEELS = Path(sys.prefix) / "wheels"
"""Made by `scripts/setup --test`, by the page's own line."""
ALONE = ["unshare", "--net", *([] if os.geteuid() == 0 else ["--map-root-user"])]
ABLE = shutil.which("unshare") and not subprocess.run([*ALONE, "true"], capture_output=True, check=False).returncode


def alone(lines, folder):
    """Run the lines in the folder without a network: status and what they say."""
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "bin" / "sudo").write_text('#!/bin/sh\nexec "$@"\n')
    (folder / "bin" / "sudo").chmod(0o755)
    environment = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "HOME": str(folder), "LANG": "C.UTF-8"}
    done = subprocess.run(
        [*ALONE, "sh", "-euc", lines.replace("/opt/", f"{quote(str(folder))}/opt/")], cwd=folder / "clone", env=environment,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=PROGRAM_S,
    )  # fmt: skip
    return done.returncode, done.stdout


@pytest.fixture
def clone(tmp_path):
    """A clone in a folder, with the fetched files as the page has them brought, and an empty environment in opt/eir."""
    made = tmp_path / "clone"
    made.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, made)
    shutil.copytree(ROOT / "eir", made / "eir", ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    shutil.copytree(ROOT / "deploy", made / "deploy")
    (made / "wheels").symlink_to(WHEELS)
    (tmp_path / "opt").mkdir()
    (line,) = (line for line in Installation.service.splitlines() if "-m venv" in line)
    code, said = alone(line.replace("python3", sys.executable), tmp_path)
    assert code == 0, said
    return tmp_path


@pytest.mark.long
@pytest.mark.skipif(not ABLE, reason="no network namespace may be made here")
@pytest.mark.skipif(not WHEELS.exists(), reason="the tests run in an environment that scripts/test --long has not made")
def test_the_lines_without_the_internet_install_without_a_network(clone):
    code, said = alone("/opt/eir/bin/pip install --retries 0 '.[analysis]'", clone)
    assert code != 0, f"there is a network: {said}"
    code, said = alone(Installation.offline, clone)
    assert code == 0, said
    code, said = alone(
        "cd /; /opt/eir/bin/eir --version; /opt/eir/bin/eir load --help >/dev/null; /opt/eir/bin/python -c 'import duckdb, eir.interfaces.s13._lane as lane; print(lane.__file__)'",
        clone,
    )
    assert code == 0, said
    assert f"{clone}/opt/eir" in said, said


def test_what_the_page_replaces_is_a_line_of_its_installation():
    assert Installation.FROM_THE_INDEX in Installation.service
    assert all(
        "--require-hashes -r deploy/requirements.lock" in block
        for block in (Installation.locked, Installation.fetch, Installation.offline)
    )

"""What is installed: a wheel of what is there and nothing else, and a lock that has all that it needs, with hashes."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from simulated.patience import PROGRAM_S

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "deploy" / "requirements.lock").read_text()


def name_of(requirement):
    return re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-").replace(".", "-")


def copy_sources(folder):
    """Copy the files from which a wheel is built."""
    (folder / "deploy").mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "deploy/RUNBOOK.md"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "eir", folder / "eir", ignore=shutil.ignore_patterns("__pycache__", "*.so"))


@pytest.mark.long
def test_a_wheel_holds_what_is_there_and_nothing_that_is_gone(tmp_path):
    copy_sources(tmp_path)
    gone = tmp_path / "build" / "lib" / "eir" / "operate" / "gone.py"
    gone.parent.mkdir(parents=True)
    gone.write_text("")
    build = "import setuptools.build_meta as backend; print(backend.build_wheel('dist'))"
    subprocess.run([sys.executable, "-c", build], cwd=tmp_path, check=True, capture_output=True, timeout=PROGRAM_S)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if name.startswith("eir/")}
    there = {
        str(path.relative_to(tmp_path))
        for path in (tmp_path / "eir").rglob("*")
        if path.suffix in {".py", ".pyi", ".json", ".service", ".sql", ".html", ".css", ".js"}
        or path.name == "py.typed"
    }
    compiled = {"eir/interfaces/s13/_lane.abi3.so"} if shutil.which("gcc") else set()
    assert names - there == compiled | {"eir/node/processes/RUNBOOK.md"}
    assert there <= names
    assert wheel.name.endswith("-cp311-abi3-linux_x86_64.whl") or not compiled


def test_without_a_compiler_the_installation_goes_through(tmp_path):
    copy_sources(tmp_path)
    build = "import setuptools.build_meta as backend; print(backend.build_wheel('dist'))"
    done = subprocess.run(
        [sys.executable, "-c", build],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
        timeout=PROGRAM_S,
        env={**os.environ, "CC": "/bin/false"},
    )
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".so")]
        assert "eir/interfaces/s13/lane.py" in archive.namelist()
    assert "optional" in done.stdout + done.stderr or "failed" in done.stdout + done.stderr


def test_nothing_installs_a_strangers_program():
    """`eir` on the package index is somebody else's: the distribution has a name of its own, and all lines install from the clone."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (project["name"], list(project["scripts"])) == ("eir-register", ["eir"])
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    texts = [ROOT / name for name in listed if Path(name).suffix in {"", ".md", ".py", ".yaml", ".service", ".toml"}]
    assert not [
        path
        for path in texts
        if path.is_file()
        and re.search(
            r"install[^\n]*[ '\"]eir\[|install ['\"]?eir['\"]?$", path.read_text(errors="replace"), re.MULTILINE
        )
    ]


@pytest.mark.parametrize("page", ["deploy/INSTALL.md"])
def test_the_analysis_works_after_the_installation_of_the_pages(page):
    text = (ROOT / page).read_text()
    assert "/opt/eir/bin/pip install '.[analysis]'\n" in text
    assert "duckdb" in LOCK
    assert "'/src[analysis]'" in (ROOT / "deploy" / "Containerfile").read_text()


def test_each_version_in_the_lock_is_fixed_and_has_hashes():
    entries = re.split(r"\n(?=[a-z])", re.sub(r"^#.*\n", "", LOCK, flags=re.MULTILINE))
    assert len(entries) > 20
    for entry in entries:
        first, *hashes = entry.replace("\\\n", " ").split("--hash=")
        assert re.fullmatch(r"[a-z0-9-]+==[\w.]+ *(;.*)?", first.strip()), first
        assert hashes, first
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", each.strip()) for each in hashes), first


def test_all_that_is_needed_is_in_the_lock():
    locked = {name_of(line) for line in LOCK.splitlines() if re.match(r"[a-z]", line)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project_of, extras = project["project"], project["project"]["optional-dependencies"]
    needed, left = set(), [*project_of["dependencies"], *extras["analysis"], *project["build-system"]["requires"]]
    while left:
        requirement = left.pop()
        marker = Requirement(requirement).marker
        if (name := name_of(requirement)) in needed or (marker is not None and not marker.evaluate({"extra": ""})):
            continue
        needed.add(name)
        left += requires(name) or []
    assert needed - locked == set()


@pytest.mark.skipif(not (ROOT / ".venv" / "installed[test]").exists(), reason="the tests run in another environment")
@pytest.mark.parametrize("what", [(), ("--bench",), ("--redis",)])
def test_what_the_tests_run_fetches_nothing_after_setup_for_tests(what):
    """Tests run the demo and the benches, which begin with `scripts/setup`."""
    away = {
        **os.environ,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": "",
        "http_proxy": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
    }
    done = subprocess.run(
        [ROOT / "scripts" / "setup", *what], env=away, capture_output=True, text=True, check=False, timeout=PROGRAM_S
    )
    assert (done.returncode, done.stderr) == (0, "")

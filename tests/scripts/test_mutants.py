"""`scripts/soak mutants`: which faults it draws, which tests it asks, and what it says, over a small tree of the test's own."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faults import Fault, changes_nothing, faults_of
from soak_mutants import ROOT, concerned, draw

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"

SUM = '''"""Adds."""

LIMIT = 7


def add(left: int = 0, right: int = 0) -> int:
    """1 < 2 and 3."""
    if left > LIMIT and not right:
        raise ValueError(f"{left + 1} is too much")
    return left + right
'''
SHORT = """def add(left, right):
    if left > 7:
        raise ValueError(left)
    return left + right
"""
BESIDE = """import subprocess, sys

PROGRAM = "from eir.sums import add; raise SystemExit(add(2, 3) != 5)"


def test_add():
    # a program of its own, without the environment of the test
    assert subprocess.run([sys.executable, "-P", "-c", PROGRAM], env={}).returncode == 0


"""
USED = "from eir.sums import add\n\n\ndef twice(value):\n    return add(value, value)\n"


def drawn(folder, name, text):
    path = folder / name
    path.write_text(text)
    return [
        (fault.line, fault.kind, fault.applied(text).splitlines()[fault.line - 1].strip())
        for fault in faults_of(folder, path)
    ]


def test_faults_in_python(tmp_path):
    assert drawn(tmp_path, "sums.py", SUM) == [
        (3, "constant", "LIMIT = 8"),
        (6, "constant", "def add(left: int = 1, right: int = 0) -> int:"),
        (6, "constant", "def add(left: int = 0, right: int = 1) -> int:"),
        (8, "comparison", "if left >= LIMIT and not right:"),
        (8, "and/or", "if left > LIMIT or not right:"),
        (8, "negation", "if left > LIMIT and right:"),
        (9, "dropped statement", "pass"),
        (10, "arithmetic", "return left - right"),
    ]


@pytest.mark.parametrize(
    ("line", "faults"),
    [
        (
            "if (a->b <= c && !d[2]) {",
            ["if (a->b < c && !d[2]) {", "if (a->b <= c || !d[2]) {", "if (a->b <= c && !d[3]) {"],
        ),
        ("\tforget(all);", [";"]),
        ("x = y << 3; /* a < b && 1 */", ["x = y << 4; /* a < b && 1 */"]),
        ('#include "a<b.h"', []),
        ("return a != '<' ? b : \"1 < 2\";", ["return a == '<' ? b : \"1 < 2\";"]),
    ],
)
def test_faults_in_c(tmp_path, line, faults):
    assert [instead for _, _, instead in drawn(tmp_path, "lane.c", line + "\n")] == faults


def test_faults_in_sql(tmp_path):
    found = drawn(tmp_path, "core.sql", "SELECT 'a < b' -- and 1\nFROM usage WHERE checks >= 3 AND device <> 'x'\n")
    assert [instead.removeprefix("FROM usage WHERE ") for _, _, instead in found] == [
        "checks > 3 AND device <> 'x'", "checks >= 4 AND device <> 'x'", "checks >= 3 OR device <> 'x'", "checks >= 3 AND device = 'x'",
    ]  # fmt: skip


@pytest.mark.parametrize(("instead", "nothing"), [("2", False), ("1", True), ("(1)", True), ("1 +", True)])
def test_a_fault_that_leaves_no_program_or_the_same_one(instead, nothing):
    assert changes_nothing(Fault("eir/sums.py", 1, "constant", 4, 5, instead), "x = 1\n") is nothing


@pytest.mark.long
def test_every_file_of_the_program_has_tests_that_are_asked():
    files = [
        path
        for path in (ROOT / "eir").rglob("*")
        if path.suffix in {".py", ".c", ".h", ".sql"} and path.stem[:2] != "__"
    ]
    unheard = [
        path
        for path in files
        if next(faults_of(ROOT, path), None) and not concerned(ROOT, path.relative_to(ROOT).as_posix())
    ]
    assert len(files) > 100
    assert not unheard
    assert concerned(ROOT, "eir/lists/record/clock.py")[0] == "tests/lists/record/test_clock.py"


def test_the_seed_decides_the_draw():
    of = ROOT / "eir" / "checks"
    first, again, other = (draw(ROOT, of, seed) for seed in (1, 1, 2))
    assert first == again != other
    assert sorted(map(hash, first)) == sorted(map(hash, other))


@pytest.fixture
def tree(tmp_path):
    """A program of two files, tests that look at part of it, and one that fails whatever happens."""
    for name, text in {
        "eir/__init__.py": "", "eir/sums.py": SHORT, "eir/used.py": USED,
        "tests/test_sums.py": BESIDE + "def test_red():\n    from eir.sums import add\n\n    assert add(1, 1) == 3\n",
        "tests/test_used.py": "from eir.used import twice\n\n\ndef test_twice():\n    assert twice(4) == 8\n",
    }.items():  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return tmp_path


def soak(tree, *arguments):
    return subprocess.Popen(
        [sys.executable, SCRIPTS / "soak", "mutants", "eir/sums.py", "--root", tree, *map(str, arguments)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.long
def test_a_mutant_that_no_test_noticed_is_reported_with_file_line_and_diff(tree):
    before = {path: path.read_bytes() for path in tree.rglob("*.py")}
    with soak(tree, "--faults", 100, "--seed", 1, "--json", "--at-once", 2) as run:
        out, progress = run.communicate()
    assert run.returncode == 1, progress
    said = json.loads(out)
    found = {(fault["line"], fault["kind"]): fault for fault in said["faults"]}
    noticed = {spot: fault["noticed_by"] for spot, fault in found.items() if fault["noticed_by"]}
    assert noticed == {(4, "arithmetic"): "tests/test_sums.py::test_add"}
    assert (said["noticed"], said["possible"], said["seed"]) == (1, 4, 1)
    missed = found[3, "dropped statement"]
    assert missed["diff"].splitlines()[-3:] == [
        "-        raise ValueError(left)",
        "+        pass",
        "     return left + right",
    ]
    assert missed["tests"] == ["tests/test_sums.py", "tests/test_used.py"]
    assert missed["unsteady"] == ["tests/test_sums.py::test_red"], (
        "a test that fails without the fault has noticed nothing"
    )
    assert len(progress.splitlines()) == 5
    assert {path: path.read_bytes() for path in tree.rglob("*.py")} == before


@pytest.mark.long
def test_nothing_is_left_of_a_run_that_is_ended(tree, tmp_path_factory, monkeypatch):
    temporary = tmp_path_factory.mktemp("t")
    began = tree / "began"
    slow = f"import pathlib, time\nimport eir.sums\n\n\ndef test_slow():\n    pathlib.Path({str(began)!r}).touch()\n    time.sleep(300)\n"
    (tree / "tests/test_sums.py").write_text(slow)
    monkeypatch.setenv("TMPDIR", str(temporary))
    with soak(tree, "--faults", 3) as run:
        while not began.exists() and run.poll() is None:
            time.sleep(0.01)
        run.send_signal(signal.SIGTERM)
        run.communicate()
    assert run.returncode == 128 + signal.SIGTERM
    assert not list(temporary.iterdir())

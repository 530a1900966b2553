"""`scripts/soak mutants`: the faults that it draws, the tests that it runs, and its output, over a small tree of the test's own."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from soak_mutants import ROOT, Fault, concerned, draw, faults_of

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"

SUM = '''"""Adds."""

NAME, LIMIT = "é", 7


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


def drawn(folder, name, text):
    path = folder / name
    path.write_text(text)
    return [
        fault.applied()
        .encode("latin-1")
        .decode()
        .splitlines()[path.read_text("latin-1").count("\n", 0, fault.start)]
        .strip()
        for fault in faults_of(path)
    ]


def test_faults_in_python(tmp_path):
    assert drawn(tmp_path, "sums.py", SUM) == [
        'NAME, LIMIT = "é", 8',
        "def add(left: int = 1, right: int = 0) -> int:",
        "def add(left: int = 0, right: int = 1) -> int:",
        "if left >= LIMIT and not right:",
        "if left > LIMIT or not right:",
        "if left > LIMIT and right:",
        "pass",
        "return left - right",
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
    assert drawn(tmp_path, "lane.c", line + "\n") == faults


def test_faults_in_sql(tmp_path):
    found = drawn(tmp_path, "core.sql", "SELECT 'a < b' -- and 1\nFROM usage WHERE checks >= 3 AND device <> 'x'\n")
    assert [line.removeprefix("FROM usage WHERE ") for line in found] == [
        "checks > 3 AND device <> 'x'", "checks >= 4 AND device <> 'x'", "checks >= 3 OR device <> 'x'", "checks >= 3 AND device = 'x'",
    ]  # fmt: skip


@pytest.mark.long
def test_every_file_of_the_program_has_tests():
    files = [path for path in (ROOT / "eir").rglob("*.py") if path.stem[:2] != "__"]
    assert len(files) > 100
    assert not [path for path in files if not concerned(ROOT, path) and faults_of(path)]
    assert concerned(ROOT, ROOT / "eir/lists/record/clock.py")[0] == ROOT / "tests/lists/record/test_clock.py"


def test_the_seed_decides_the_draw():
    of = ROOT / "eir" / "checks" / "policy.py"
    first, again, other = (draw(of, seed) for seed in (1, 1, 2))
    assert first == again != other
    assert sorted(first) == sorted(other)
    assert all(isinstance(fault, Fault) for fault in first)


@pytest.fixture
def tree(tmp_path):
    """A program, a test of a part of it, and one that always fails."""
    for name, text in {
        "eir/__init__.py": "", "eir/sums.py": SHORT,
        "tests/test_sums.py": BESIDE + "def test_red():\n    from eir.sums import add\n\n    assert add(1, 1) == 3\n",
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
def test_a_fault_that_no_test_notices_is_reported_with_its_diff(tree):
    before = {path: path.read_bytes() for path in tree.rglob("*.py")}
    with soak(tree, "--faults", 100, "--seed", 1) as run:
        out, errors = run.communicate()
    assert run.returncode == 1, errors
    assert out.startswith("seed 1\n")
    assert out.endswith("1 of 4 faults noticed\n"), "a test that fails without the fault notices nothing"
    (noticed,) = [part for part in out.split("\n\n") if "\nnoticed by" in f"\n{part}"]
    assert "noticed by tests/test_sums.py::test_add:" in noticed
    assert noticed.endswith("-    return left + right\n+    return left - right")
    assert "-        raise ValueError(left)\n+        pass" in out
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

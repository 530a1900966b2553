"""The compiled lane in a build with sanitizers: nothing is read or written where it should not be, whatever comes."""

import os
import shutil
import struct
import subprocess
import sys
import sysconfig
from contextlib import nullcontext
from pathlib import Path

import pytest
from simulated.patience import PROGRAM_S

from eir.checks.program import LISTS_MAX, VERDICTS_MAX
from eir.interfaces.s13.lane import COMPILED, CONSTANTS

ROOT = Path(__file__).parents[3]
SOURCES, HARNESS = ROOT / "eir" / "interfaces" / "s13", ROOT / "tests" / "fuzz" / "lane.py"
FLAGS = [
    "-g",
    "-O1",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
    "-fPIC",
    "-shared",
]
WARNINGS = ["-Wall", "-Wextra", "-Wconversion", "-Wno-sign-conversion", "-Werror"]
SECONDS = os.environ.get("EIR_FUZZ_SECONDS", "2")


def test_the_lane_and_the_program_have_the_same_constants():
    """Else the lane stands aside, and so do its tests."""
    compiled = pytest.importorskip("eir.interfaces.s13._lane", reason="no C compiler was there")
    assert {name: getattr(compiled, name, None) for name in CONSTANTS} == CONSTANTS
    assert COMPILED


@pytest.mark.parametrize(
    ("verdicts", "program", "is_one"),
    [
        (1, (0,), True), (1, (), False), (1, (1,), False), (1, (4 << 32,), False), (2, (1, 0, 0), True), (2, (2, 0, 0), False), (2, (1, 1, 0), False),
        (2, (1, 2, 9, 0, 0), False), (2, (1, 2, 0, 0, 0), True),
    ],
)  # fmt: skip
def test_a_program_that_cannot_be_one_is_refused(verdicts, program, is_one):
    """Its last word is a verdict that there is; each rule has a verdict, and conditions that are known and end where it says."""
    lane = pytest.importorskip("eir.interfaces.s13._lane", reason="no C compiler was there")
    with nullcontext() if is_one else pytest.raises(ValueError, match="not the program of a policy"):
        lane.Lane(struct.pack(f"={len(program)}Q", *program), verdicts, (), b"", b"", 0, 0)


def test_the_limits_of_lists_and_verdicts_are_inclusive():
    lane = pytest.importorskip("eir.interfaces.s13._lane", reason="no C compiler was there")
    absent = (None, lane.DEVICES, b"", 0)
    for lists, verdicts, fits in (
        (LISTS_MAX, VERDICTS_MAX, True), (LISTS_MAX + 1, VERDICTS_MAX, False), (LISTS_MAX, VERDICTS_MAX + 1, False),
    ):  # fmt: skip
        with (
            nullcontext() if fits else pytest.raises(ValueError, match="more lists or verdicts than the lane can have")
        ):
            lane.Lane(struct.pack("=Q", 0), verdicts, (absent,) * lists, b"", b"", 0, 0)


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    if shutil.which("gcc") is None:
        pytest.skip("no C compiler")
    made = tmp_path_factory.mktemp("lane") / "_lane.so"
    command = ["gcc", *FLAGS, *WARNINGS, f"-I{sysconfig.get_paths()['include']}", "-o", made, *SOURCES.glob("_*.c")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return made


@pytest.mark.long
def test_no_byte_too_far(build):
    asan = subprocess.run(
        ["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    environment = {
        **os.environ,
        "LD_PRELOAD": asan,
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "PYTHONMALLOC": "malloc",
    }
    done = subprocess.run(
        [sys.executable, HARNESS, build, SECONDS, "14"],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=PROGRAM_S + float(SECONDS),
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert int(done.stdout.split()[0]) > 0


@pytest.mark.long
@pytest.mark.usefixtures("build")
def test_a_byte_too_far_is_seen(tmp_path):
    """The harness sees a fault that is there: a message is taken although its last bytes are not."""
    found = 0
    for source in SOURCES.glob("_*.[ch]"):
        text = source.read_text()
        found += text.count("length > left || ")
        (tmp_path / source.name).write_text(text.replace("length > left || ", ""))
    assert found == 1
    made = tmp_path / "_lane.so"
    subprocess.run(
        ["gcc", *FLAGS, f"-I{sysconfig.get_paths()['include']}", "-o", made, *tmp_path.glob("_*.c")], check=True
    )
    asan = subprocess.run(
        ["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    environment = {**os.environ, "LD_PRELOAD": asan, "ASAN_OPTIONS": "detect_leaks=0", "PYTHONMALLOC": "malloc"}
    done = subprocess.run(
        [sys.executable, HARNESS, made, SECONDS, "14"],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=PROGRAM_S,
    )
    assert "ERROR: AddressSanitizer: heap-" in done.stderr

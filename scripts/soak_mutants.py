"""Faults that are put into the code, one at a time, are noticed by the tests that concern the file.

A seed draws the faults over a folder or a file of eir/: comparisons, and/or, arithmetic, constants, deleted statements. Each is tried
in a copy of the tree. A test notices a fault if it fails with it and passes without it. Exit status 1 if fewer faults than --at-least
were noticed. A fault that changes no behaviour cannot be noticed: read the diffs.
"""

import argparse
import ast
import difflib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from itertools import count, pairwise
from pathlib import Path
from typing import NamedTuple

from parts import seeded

ROOT = Path(__file__).resolve().parent.parent
ASIDE = shutil.ignore_patterns(".*", "__pycache__", "build", "*.egg-info")
TEST_LIMIT_S, FAULT_LIMIT_S = 60, 300
COMPILED = {".c", ".h"}
SWAPS = {
    "<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==", "=": "<>", "<>": "=", "&&": "||", "||": "&&",
    "AND": "OR", "OR": "AND", "and": "or", "or": "and", "is": "is not", "is not": "is", "in": "not in", "not in": "in",
    "+": "-", "-": "+", "*": "//", "//": "*", "%": "//", "<<": ">>", ">>": "<<", "&": "|", "|": "&",
}  # fmt: skip
OPERATORS = {
    ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!=", ast.Is: "is", ast.IsNot: "is not", ast.In: "in",
    ast.NotIn: "not in", ast.And: "and", ast.Or: "or", ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.FloorDiv: "//", ast.Mod: "%",
    ast.LShift: "<<", ast.RShift: ">>", ast.BitAnd: "&", ast.BitOr: "|",
}  # fmt: skip
NUMBER = r"(?<![\w.])\d+(?![\w.])"
IN_TEXT = {
    ".c": rf"(?<![<>=!-])(?:<=|>=|==|!=|<|>)(?![<>=])|&&|\|\||{NUMBER}|(?m:(?<=^)[ \t]+(?!return\b|goto\b|case\b|break\b)[\w>.\[\]*-]+ ?(?:\(|[+|&-]?= )[^;{{}}\n]*;$)",
    ".sql": rf"(?<![<>=!])(?:<=|>=|<>|!=|=|<|>)(?![<>=])|\b(?:AND|OR|and|or)\b|{NUMBER}",
}
"""Pattern of the places that can have a fault, by the kind of file."""
WITHOUT = {
    ".c": r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'|(?m:^\s*#(?:include|if|endif|else|define)\b[^\n]*)',
    ".sql": r"/\*.*?\*/|--[^\n]*|'[^']*'",
}
"""Pattern of comments, texts and directives, which get no fault."""


class Fault(NamedTuple):
    """One replacement in one file; positions are in bytes, as a text in Latin-1 has them."""

    file: Path
    start: int
    end: int
    instead: str

    def applied(self) -> str:
        """Return the file's text with the fault."""
        text = self.file.read_text("latin-1")
        return text[: self.start] + self.instead + text[self.end :]

    def diff(self) -> str:
        """Return the lines that differ."""
        texts = [text.splitlines() for text in (self.file.read_text("latin-1"), self.applied())]
        return "\n".join(difflib.unified_diff(*texts, str(self.file), "fault", lineterm="", n=1))


def faults_of(file: Path) -> list[Fault]:
    """Return all possible faults of a file, in its order."""
    text = file.read_text("latin-1")
    found = _in_python(text) if file.suffix == ".py" else _in_text(text, ".sql" if file.suffix == ".sql" else ".c")
    return sorted(fault for place in found if not _changes_nothing(fault := Fault(file, *place), text))


def _changes_nothing(fault: Fault, text: str) -> bool:
    """Return true if a fault in a Python file gives an invalid program, or the same program."""
    try:
        return fault.file.suffix == ".py" and ast.dump(ast.parse(fault.applied())) == ast.dump(ast.parse(text))
    except SyntaxError:
        return True


def _in_text(text: str, kind: str) -> Iterator[tuple[int, int, str]]:
    bare = re.sub(WITHOUT[kind], lambda found: re.sub(r"[^\n]", "\x00", found[0]), text, flags=re.DOTALL)
    for found in re.finditer(IN_TEXT[kind], bare):
        word = found[0]
        yield *found.span(), str(int(word) + 1) if word.isdigit() else SWAPS.get(word, ";")


def _in_python(text: str) -> Iterator[tuple[int, int, str]]:  # noqa: C901 - one case for each kind
    lines = [0]
    for line in text.encode("latin-1").splitlines(keepends=True):
        lines.append(lines[-1] + len(line))

    def span(node: ast.AST) -> tuple[int, int]:
        return (
            lines[node.lineno - 1] + node.col_offset,  # type: ignore[attr-defined]
            lines[node.end_lineno - 1] + node.end_col_offset,  # type: ignore[attr-defined]
        )

    def between(before: ast.AST, after: ast.AST, operator: ast.AST) -> Iterator[tuple[int, int, str]]:
        start, end = span(before)[1], span(after)[0]
        if (word := OPERATORS.get(type(operator))) and (at := text.find(word, start, end)) >= 0:
            yield at, at + len(word), SWAPS[word]

    for node in _live(ast.parse(text.encode("latin-1"))):  # positions are in bytes
        match node:
            case ast.Compare(left, ops, comparators):
                for before, op, after in zip([left, *comparators], ops, comparators, strict=False):
                    yield from between(before, after, op)
            case ast.BoolOp(op, values):
                for before, after in pairwise(values):
                    yield from between(before, after, op)
            case ast.BinOp(left, op, right):
                yield from between(left, right, op)
            case ast.UnaryOp(ast.Not(), operand):
                yield span(node)[0], span(operand)[0], ""
            case ast.Constant(bool(value)):
                yield *span(node), str(not value)
            case ast.Constant(int(value) | float(value)):
                yield *span(node), str(value + 1)
            case (
                ast.Expr() | ast.AugAssign() | ast.Raise() | ast.Break() | ast.Continue()
                | ast.Assign(targets=[ast.Attribute() | ast.Subscript()])
            ):  # fmt: skip
                yield *span(node), "pass"


def _live(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes but annotations, decorators, docstrings and other texts without effect."""
    for name, value in ast.iter_fields(tree):
        for child in value if isinstance(value, list) else [value]:
            is_text = isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
            if not isinstance(child, ast.AST) or isinstance(child, ast.JoinedStr) or is_text:
                continue
            if name not in {"annotation", "returns", "decorator_list"}:
                yield child
                yield from _live(child)


def draw(where: Path, seed: int) -> list[Fault]:
    """Return all faults of a folder or file in an order that depends on the seed."""
    files = [where] if where.is_file() else sorted(where.rglob("*"))
    found = [fault for file in files if file.suffix in {".py", ".c", ".h", ".sql"} for fault in faults_of(file)]
    random.Random(seed).shuffle(found)
    return found


def concerned(root: Path, file: Path) -> list[Path]:
    """Return the test files that concern a file: of its name, then of its folder, then those that name its module."""
    module, tests = file.with_suffix("").relative_to(root), sorted((root / "tests").rglob("test_*.py"))
    named = re.compile(
        rf"\b{re.escape('.'.join(module.parts))}\b|\bfrom {re.escape('.'.join(module.parts[:-1]))} import .*\b{module.name}\b"
    )
    folder = root / "tests" / Path(*module.parts[1:-1])
    groups = (
        [test for test in tests if test.name == f"test_{file.stem.strip('_')}.py"],
        [test for test in tests if test.parent == folder],
        [test for test in tests if named.search(test.read_text())],
    )
    return list(dict.fromkeys(test for group in groups for test in group))


class Copy:
    """Copy of the tree, in which one fault at a time is tried."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self.tree = root, folder / "t"
        self._changes = count(1)
        shutil.copytree(root, self.tree, ignore=ASIDE, symlinks=True)
        make_environment(self.tree)
        (folder / "x").mkdir()
        self._environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self._environment["TMPDIR"] = str(folder / "x")

    def notices(self, fault: Fault) -> str:
        """Return the first test that fails with the fault and passes without it; empty: none."""
        path, text, unsteady = (
            self.tree / fault.file.relative_to(self.root),
            fault.file.read_text("latin-1"),
            list[str](),
        )
        tests = [test.relative_to(self.root).as_posix() for test in concerned(self.root, fault.file)]
        try:
            while self._write(path, fault.applied()) and (failed := self._failed(tests, unsteady)):
                self._write(path, text)
                if not self._failed([failed], []):
                    return failed
                unsteady.append(failed)
        finally:
            self._write(path, text)
        return ""

    def _write(self, path: Path, text: str) -> bool:
        """Write a file, and compile it; return false if the compiler rejects it."""
        path.write_text(text, "latin-1")
        os.utime(path, (at := next(self._changes), at))  # else Python might keep the compiled file of the same second
        build = ["setup.py", "-q", "build_ext", "--inplace", "--force"]
        return path.suffix not in COMPILED or self._run(build, TEST_LIMIT_S)[0] == 0

    def _failed(self, tests: list[str], but: list[str]) -> str:
        """Return the first test that fails; empty: none."""
        options = [
            "-m",
            "pytest",
            "-x",
            "-q",
            "-rfE",
            "--tb=no",
            "-p",
            "no:cacheprovider",
            "--timeout",
            str(TEST_LIMIT_S),
        ]
        deselected = [part for test in but for part in ("--deselect", test)]
        status, text = self._run([*options, *deselected, *tests], FAULT_LIMIT_S)
        found = re.search(r"^(?:FAILED|ERROR) (\S+?\.py(?:::.*?)?)(?: - .*)?$", text, re.MULTILINE)
        # 0: all passed; 5: no test ran; None: the time was over. An import that ends the process gives another status.
        return found[1] if found else "" if status in {0, 5, None} else tests[0]

    def _run(self, arguments: list[str], limit_s: float) -> tuple[int | None, str]:
        """Return exit status, None if the limit was exceeded, and output; end all processes of the group."""
        with tempfile.TemporaryFile("w+") as out:
            running = subprocess.Popen(
                [self.tree / ".venv/bin/python", *arguments], cwd=self.tree, env=self._environment, stdin=subprocess.DEVNULL, stdout=out,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            try:
                status = running.wait(limit_s)
            except subprocess.TimeoutExpired:
                status = None
            finally:
                if running.poll() is None:
                    os.killpg(running.pid, signal.SIGKILL)
                    running.wait()
            out.seek(0)
            return status, out.read()


def make_environment(tree: Path) -> None:
    """Create `.venv` in a copy of the tree: links to the packages of this environment, and the program of the copy.

    PYTHONPATH cannot replace it: tests set PYTHONPATH themselves, and start forked commands without it.
    """
    own, packages, programs = tree / ".venv", Path(sysconfig.get_path("purelib")), Path(sys.executable).parent
    inside = own / packages.relative_to(sys.prefix)
    inside.mkdir(parents=True)
    for path in packages.iterdir():
        if not path.name.startswith("__editable__"):
            (inside / path.name).symlink_to(path)
    (inside / "tree.pth").write_text(f"{tree}\n")
    (own / programs.name).mkdir()
    begins = f"#!{sys.prefix}/".encode()
    for path in filter(Path.is_file, programs.iterdir()):
        program, content = own / programs.name / path.name, path.read_bytes()
        if content.startswith(begins):
            program.write_bytes(content.replace(begins, f"#!{own}/".encode(), 1))
            program.chmod(0o755)
        else:
            program.symlink_to(path)
    for path in (Path(sys.prefix) / "pyvenv.cfg", Path(sys.prefix) / "share"):
        if path.exists():
            (own / path.name).symlink_to(path)


def main(arguments: list[str]) -> int:
    """Run the part `mutants` of scripts/soak."""
    parser = argparse.ArgumentParser(prog="soak mutants", description=__doc__)
    parser.add_argument("where", metavar="FOLDER", help="folder or file of the repository that gets the faults")
    parser.add_argument("--faults", type=int, default=20)
    parser.add_argument("--at-least", type=float, default=90.0, help="minimum percentage of noticed faults")
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    options = seeded(parser, arguments)
    root = options.root.resolve()
    drawn = draw(root / options.where, options.seed)[: options.faults]
    if not drawn:
        parser.error(f"no fault can be drawn in {options.where}")
    noticed = 0
    with tempfile.TemporaryDirectory(prefix="eirm") as folder:
        copy = Copy(root, Path(folder))
        for fault in drawn:
            by = copy.notices(fault)
            noticed += bool(by)
            print(f"noticed by {by}:" if by else "NOT NOTICED:", f"{fault.diff()}\n", sep="\n", flush=True)
    print(f"{noticed} of {len(drawn)} faults noticed")
    return int(noticed < len(drawn) * options.at_least / 100)

"""Small faults in a source file of Python, C or SQL: comparisons, constants, and/or, arithmetic, deleted statements.

Each fault is one replacement in the text, so that its diff has one or two lines. Docstrings, annotations, decorators and texts of
messages are not changed, since no test can notice a change there.
"""

import ast
import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

SUFFIXES = {".py", ".c", ".h", ".sql"}

_COMPARISONS = {
    ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">"), ast.Eq: ("==", "!="), ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"), ast.IsNot: ("is not", "is"), ast.In: ("in", "not in"), ast.NotIn: ("not in", "in"),
}  # fmt: skip
_ARITHMETIC = {
    ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "//"), ast.FloorDiv: ("//", "*"), ast.Mod: ("%", "//"),
    ast.LShift: ("<<", ">>"), ast.RShift: (">>", "<<"), ast.BitAnd: ("&", "|"), ast.BitOr: ("|", "&"),
}  # fmt: skip
_NUMBER = ("constant", r"(?<![\w.])\d+(?![\w.])", lambda found: str(int(found[0]) + 1))
_IN_TEXT = {
    ".c": (
        ("comparison", r"(?<![<>=!-])(<=|>=|==|!=|<|>)(?![<>=])", lambda found: _SWAPS[found[0]]),
        ("and/or", r"&&|\|\|", lambda found: _SWAPS[found[0]]),
        _NUMBER,
        ("dropped statement", r"(?m)(?<=^)(\s+)(?!return\b|goto\b|case\b|break\b)[\w>.\[\]*-]+ ?(\(|[+|&-]?= )[^;{}]*;$", lambda found: f"{found[1]};"),
    ),
    ".sql": (
        ("comparison", r"(?<![<>=!])(<=|>=|<>|!=|=|<|>)(?![<>=])", lambda found: _SWAPS[found[0]]),
        ("and/or", r"\b(?:AND|OR|and|or)\b", lambda found: _SWAPS[found[0]]),
        _NUMBER,
    ),
}  # fmt: skip
_SWAPS = {
    "<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==", "=": "<>", "<>": "=", "&&": "||", "||": "&&",
    "AND": "OR", "OR": "AND", "and": "or", "or": "and",
}  # fmt: skip
_ASIDE = {
    ".c": r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'|(?m:^\s*#(?:include|if|endif|else|define)\b[^\n]*)',
    ".sql": r"/\*.*?\*/|--[^\n]*|'[^']*'",
}
"""Pattern of comments, texts and directives, which get no fault."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One replacement in one file."""

    file: str
    """Path from the root of the repository."""
    line: int
    kind: str
    start: int
    end: int
    """Start and end of the replaced text, in characters."""
    instead: str

    def applied(self, text: str) -> str:
        """Return the file's text with the fault."""
        return text[: self.start] + self.instead + text[self.end :]

    def diff(self, text: str) -> str:
        """Return the lines that differ."""
        lines = difflib.unified_diff(
            text.splitlines(), self.applied(text).splitlines(), self.file, self.file, lineterm="", n=1
        )
        return "\n".join(lines)


def faults_of(root: Path, path: Path) -> Iterator[Fault]:
    """Return all possible faults of a file, in its order."""
    text, name = path.read_text(), path.relative_to(root).as_posix()
    found = _in_python(text) if path.suffix == ".py" else _in_text(text, ".c" if path.suffix == ".h" else path.suffix)
    for kind, start, end, instead in sorted(found, key=lambda fault: fault[1]):
        yield Fault(name, text.count("\n", 0, start) + 1, kind, start, end, instead)


def changes_nothing(fault: Fault, text: str) -> bool:
    """Return true if a fault in a Python file gives an invalid program, or the same program."""
    if not fault.file.endswith(".py"):
        return False
    try:
        return ast.dump(ast.parse(fault.applied(text))) == ast.dump(ast.parse(text))
    except SyntaxError:
        return True


_Found = Iterator[tuple[str, int, int, str]]


def _in_text(text: str, suffix: str) -> _Found:
    bare = re.sub(_ASIDE[suffix], lambda found: re.sub(r"[^\n]", "\x00", found[0]), text, flags=re.DOTALL)
    for kind, pattern, instead in _IN_TEXT[suffix]:
        for found in re.finditer(pattern, bare):
            if "\x00" not in found[0] or kind == "dropped statement":
                yield kind, found.start(), found.end(), instead(found)


def _in_python(text: str) -> _Found:  # noqa: C901 - one case for each kind
    at = _Places(text)
    for node in _live(ast.parse(text)):
        match node:
            case ast.Compare(left, ops, comparators):
                for before, op, after in zip([left, *comparators], ops, comparators, strict=False):
                    yield from at.between("comparison", before, after, *_COMPARISONS[type(op)])
            case ast.BoolOp(op, values):
                names = ("and", "or") if isinstance(op, ast.And) else ("or", "and")
                for before, after in pairwise(values):
                    yield from at.between("and/or", before, after, *names)
            case ast.BinOp(left, op, right) if type(op) in _ARITHMETIC and not _is_text(left) and not _is_text(right):
                yield from at.between("arithmetic", left, right, *_ARITHMETIC[type(op)])
            case ast.UnaryOp(ast.Not(), operand):
                yield "negation", *at.span(node)[:1], at.span(operand)[0], ""
            case ast.Constant(bool(value)):
                yield "constant", *at.span(node), str(not value)
            case ast.Constant(int(value) | float(value)):
                yield "constant", *at.span(node), str(value + 1)
            case ast.Expr() | ast.AugAssign() | ast.Raise() | ast.Break() | ast.Continue():
                yield "dropped statement", *at.span(node), "pass"
            case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
                yield "dropped statement", *at.span(node), "pass"


def _live(tree: ast.AST) -> Iterator[ast.AST]:
    """Return all nodes but annotations, decorators, docstrings and other texts without effect."""
    for name, value in ast.iter_fields(tree):
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or name in {"annotation", "returns", "type_params", "decorator_list"}:
                continue
            if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
                continue
            if isinstance(child, ast.JoinedStr):  # before Python 3.12 its parts have no places
                continue
            yield child
            yield from _live(child)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str | bytes))


class _Places:
    """Positions of nodes in a text, in characters."""

    def __init__(self, text: str) -> None:
        self._text, self._lines, self._starts = text, text.splitlines(keepends=True), [0]
        for line in self._lines:
            self._starts.append(self._starts[-1] + len(line))

    def span(self, node: ast.AST) -> tuple[int, int]:
        """Return the first character of a node, and the one behind its last."""
        return self._at(node.lineno, node.col_offset), self._at(node.end_lineno, node.end_col_offset)  # type: ignore[attr-defined]

    def between(self, kind: str, before: ast.AST, after: ast.AST, word: str, instead: str) -> _Found:
        """Return the operator between two nodes; empty if a comment is there."""
        start, end = self.span(before)[1], self.span(after)[0]
        pattern = r"\s+".join(map(re.escape, word.split()))
        found = re.search(rf"\b{pattern}\b" if word[0].isalpha() else pattern, self._text[start:end])
        if found is not None and "#" not in self._text[start:end]:
            yield kind, start + found.start(), start + found.end(), instead

    def _at(self, line: int, octet: int) -> int:
        return self._starts[line - 1] + len(self._lines[line - 1].encode()[:octet].decode())

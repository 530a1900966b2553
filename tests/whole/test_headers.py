"""Module headers and the READMEs beside the code name only modules and files that exist, and claim nothing about imports."""

import ast
import re
from functools import cache

import pytest
from pages import ROOT

from eir.config.keys import TABLE

MODULES = sorted((ROOT / "eir").rglob("*.py"))
HEADERS = {str(path.relative_to(ROOT)): ast.get_docstring(ast.parse(path.read_text())) or "" for path in MODULES}
READMES = {
    str(path.relative_to(ROOT)): re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    for path in sorted((ROOT / "eir").rglob("README.md"))
}
FILE = re.compile(r"(?<![\w./<>{}*-])[\w/.-]*\w\.(?:pyi?|c)\b")
DOTTED = re.compile(r"(?<![\w./@-])[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+")
FOLDERS = {path.parent.relative_to(ROOT) for path in MODULES}
PACKAGES = {part for folder in FOLDERS for part in folder.parts} | {path.stem for path in MODULES}
SETTINGS = {re.sub(r"\[\]|\.\*.*", "", key.path) for key in TABLE} | {"redis.asyncio"}
"""Dotted names that are no modules of ours."""
EXTERNAL = "polars|duckdb|pyspark"
CLAIM = re.compile(
    rf"\b(?:may import|imports (?!{EXTERNAL})(?:nothing|only|no module|eir\.|\w+ (?:alone|and)))", re.IGNORECASE
)


@cache
def names_in(path):
    """What a module, or a class in it, defines."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                found.add(node.name)
            case ast.Name(ctx=ast.Store()):
                found.add(node.id)
            case ast.alias():
                found.add(node.asname or node.name)
    return found


def is_there(dotted, folder):
    """True for a module, or a name in one, as seen from a folder: by its full name, or by one that leaves out folders around it."""
    parts = dotted.split(".")
    for around in (ROOT, ROOT / "eir", *(ROOT / each for each in (folder, *folder.parents))):
        path, rest = around, list(parts)
        while rest and (path / rest[0]).is_dir():
            path /= rest.pop(0)
        if not rest and (path / "__init__.py").exists():
            return True
        if rest and (path / f"{rest[0]}.py").exists():
            if set(rest[1:]) <= names_in(path / f"{rest[0]}.py"):
                return True
        elif rest and path != around and set(rest) <= names_in(path / "__init__.py"):
            return True
    return False


def wrong_names(name, text):
    """Names of files and modules in a text that stand for nothing."""
    folder = (ROOT / name).parent.relative_to(ROOT)
    files = {each for each in FILE.findall(text) if not (ROOT / each).exists() and not (ROOT / folder / each).exists()}
    dotted = {each for each in DOTTED.findall(text) if not FILE.fullmatch(each)}
    modules = {
        each for each in dotted
        if each.split(".")[0] in PACKAGES and not each.endswith((".md", ".yaml", ".json", ".toml", ".sql")) and each not in SETTINGS
        and not is_there(each, folder)
    }  # fmt: skip
    return files | modules


@pytest.mark.parametrize("texts", [HEADERS, READMES], ids=["headers", "readmes"])
def test_names_of_modules_and_files_are_those_of_today(texts):
    wrong = {name: sorted(found) for name, text in texts.items() if (found := wrong_names(name, text))}
    assert not wrong


def test_it_sees_what_it_looks_for():
    here = "eir/lists/changes/load.py"
    assert wrong_names(here, "by eir.lists.release, lists.load and gone.py, not eir.lists.changes.load or local.py") == {
        "eir.lists.release", "lists.load", "gone.py",
    }  # fmt: skip
    assert wrong_names(here, "eir.lists.changes.load.Gone and load.Gone, not eir.device.device_key") == {
        "eir.lists.changes.load.Gone", "load.Gone",
    }  # fmt: skip
    assert all(
        CLAIM.search(text)
        for text in (
            "Imports nothing of ours.",
            "Data only; imports no module of eir.",
            "May import rows.",
            "Imports eir.errors alone.",
        )
    )
    assert not CLAIM.search("Imports polars, which takes a fifth of a second")


def test_headers_claim_nothing_about_imports():
    """import-linter holds what may be imported (pyproject.toml); who reads a header would have to believe it."""
    assert [name for name, text in HEADERS.items() if CLAIM.search(text)] == []

"""Plain English, in the words that were mended before and came back: who does what, in the order of an English sentence."""

import ast
import re
import subprocess

import pytest
import words
from pages import ROOT

FILES = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
CODE = [name for name in FILES if name.endswith(".py") and not name.startswith("tests/")]
PAGES = [name for name in FILES if name.endswith((".md", ".yml", ".yaml", ".json"))]
INVERTED = re.compile(r"(What|Whether|Of|By|Who|Where|Which|How)\b")
TRANSLATED = re.compile(r"\b(is|are) none\b(?! of\b)|\banew\b")


def docstrings(text):
    """(line, text) of each string that stands as a statement: docstrings, and those of attributes and constants."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value


def test_it_sees_what_it_looks_for():
    text = '"""Read it."""\nLIMIT = 1\n"""Of one file."""\n'
    assert [line for line, said in docstrings(text) if INVERTED.match(said)] == [3]
    assert TRANSLATED.search("a date that is none")
    assert not TRANSLATED.search("its code is none of A, B")


def test_docstrings_begin_with_what_they_are_about():
    wrong = [
        f"{name}:{line}: {said.splitlines()[0]}"
        for name in CODE
        for line, said in docstrings((ROOT / name).read_text())
        if INVERTED.match(said)
    ]
    assert wrong == []


@pytest.mark.parametrize("names", [CODE, PAGES], ids=["code", "pages"])
def test_no_sentence_is_a_translation(names):
    wrong = [
        f"{name}:{number}: {line.strip()}"
        for name in names
        for number, line in enumerate((ROOT / name).read_text().splitlines(), 1)
        if TRANSLATED.search(line)
    ]
    assert wrong == []


LIMITS = {
    words.VAGUE_NAMES: 4,
    "class names used twice or more": 0,
    "public names and modules without a docstring, of 100": 4.7,
    "'what' in 1,000 words of docstrings": 1.1,
    "'what' in 1,000 words of pages": 0.1,
    "'say' and 'tell' in 1,000 words of docstrings": 0.3,
    "'say' and 'tell' in 1,000 words of pages": 0.05,
    "other phrases with a better form": 1,
}
"""Highest values of the measures. They may only fall: lower one when the measure has fallen."""
SLACK = 3


@pytest.mark.parametrize("name", LIMITS)
def test_a_measure_of_the_language_only_falls(name):
    value = words.measure()[name]
    assert value <= LIMITS[name], f"{name}: run tests/whole/words.py; better forms: {words.BETTER}"
    assert LIMITS[name] <= value + SLACK, f"{name}: lower its limit to {value}"


def test_all_measures_have_a_limit():
    assert words.measure().keys() == LIMITS.keys()

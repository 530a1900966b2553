"""Measures of the language of eir/ and of the pages. `python tests/whole/words.py` prints them."""

import ast
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VAGUE_NAMES = "functions with a vague name"
VAGUE = frozenset(
    [
        "take",
        "tell",
        "look",
        "put",
        "keep",
        "give",
        "hold",
        "see",
        "say",
        "said",
        "found",
        "made",
        "shown",
        "told",
        "have",
        "let",
        "go",
        "what",
        "whose",
        "stuff",
        "thing",
        "do",
    ]
)
"""First words of function names that nobody would search for."""
BETTER = {
    r"what(?:ever)?": "the noun itself: 'the value', 'limits on one peer'",
    r"says?|said|tells?|told": "sends, returns, logs, names, states",
    r"anew": "again",
    r"whoever|whichever": "any client, any of the two",
    r"besides": "in addition to, other than",
    r"nobody's|nobody": "no client, only the owner",
    r"of which": "a sentence of its own",
    r"lets? go of": "releases, closes",
    r"stands? back": "lowers its priority",
    r"hands? (?:it|them|on|over)": "passes, sends",
    r"as it should be": "correct, complete",
    r"is there no more|are there no more": "does not exist, was removed",
}
"""Phrases that a reader has to read twice, and better ones."""


def _files(*patterns: str) -> list[str]:
    done = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.split()


def _prose(text: str) -> str:
    """Return the text without code blocks and inline code."""
    return re.sub(r"`[^`]*`", "X", re.sub(r"```.*?```", " ", text, flags=re.DOTALL))


@cache
def modules() -> list[tuple[str, ast.Module]]:
    """Return name and syntax tree of each module of eir/."""
    return [(name, ast.parse((ROOT / name).read_text())) for name in _files("eir/*.py")]


@cache
def docstrings() -> list[tuple[str, str]]:
    """Return place and text of each docstring of eir/."""
    return list(_docstrings())


def _docstrings() -> Iterator[tuple[str, str]]:
    for name, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text:
                    yield f"{name}:{getattr(node, 'lineno', 1)}", _prose(text)


@cache
def pages() -> list[tuple[str, str]]:
    """Return name and text of each page, other than those of the tests and the changelog."""
    names = [name for name in _files("*.md") if not name.startswith(("tests/", "CHANGELOG"))]
    return [(name, _prose((ROOT / name).read_text())) for name in names]


def per_thousand(pattern: str, texts: list[tuple[str, str]]) -> float:
    """Return how often the pattern occurs in 1,000 words."""
    whole = "\n".join(text for _, text in texts)
    count = len(re.findall(rf"\b(?:{pattern})\b", whole, re.IGNORECASE))
    return round(1000 * count / len(re.findall(r"[A-Za-z']+", whole)), 2)


def places(pattern: str) -> list[str]:
    """Return where the pattern occurs in docstrings and pages."""
    texts = [*docstrings(), *pages()]
    return [place for place, text in texts if re.search(rf"\b(?:{pattern})\b", text, re.IGNORECASE)]


@cache
def measure() -> dict[str, float]:
    """Return all measures by name."""
    functions: list[str] = []
    classes: Counter[str] = Counter()
    public = documented = 0
    for _, tree in modules():
        public += 1
        documented += ast.get_docstring(tree) is not None
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                classes[node.name] += 1
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                functions.append(node.name.strip("_"))
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.name[0] != "_":
                public += 1
                documented += ast.get_docstring(node) is not None
    texts, page_texts = docstrings(), pages()
    what, say, *odd = BETTER
    return {
        VAGUE_NAMES: sum(name.split("_")[0] in VAGUE for name in functions),
        "class names used twice or more": sum(count > 1 for count in classes.values()),
        "public names and modules without a docstring, of 100": round(100 * (1 - documented / public), 1),
        "'what' in 1,000 words of docstrings": per_thousand(what, texts),
        "'what' in 1,000 words of pages": per_thousand(what, page_texts),
        "'say' and 'tell' in 1,000 words of docstrings": per_thousand(say, texts),
        "'say' and 'tell' in 1,000 words of pages": per_thousand(say, page_texts),
        "other phrases with a better form": sum(len(places(pattern)) for pattern in odd),
    }


if __name__ == "__main__":
    for name, value in measure().items():
        print(f"{value:>8}  {name}")

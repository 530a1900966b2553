"""Check of the language of docstrings and pages, and of the links and form of pages, a step of scripts/test."""

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VAGUE = {"take", "tell", "look", "put", "keep", "give", "hold", "see", "say", "said", "found", "made", "shown", "told", "have", "let", "go", "what", "whose", "stuff", "thing", "do"}  # fmt: skip
"""First words of function names that nobody would search for."""
VAGUE_MAX = 4
PHRASES = {
    r"what(?:ever)?": (12, "the noun itself: 'the value', 'limits on one peer'"),
    r"says?|said|tells?|told": (4, "sends, returns, logs, names, states"),
    r"anew|is there no more|are there no more|whoever|whichever|besides|nobody's|nobody|of which|as it should be|lets? go of|stands? back|hands? (?:it|them|on|over)": (
        1, "again; was removed; any client; in addition to; no client; a sentence of its own; correct; releases; lowers its priority; passes",
    ),
}  # fmt: skip
"""Phrases that a reader has to read twice: how often docstrings and pages may have them, and better ones. The numbers may only fall."""
INVERTED = re.compile(r"(What|Whether|Of|By|Who|Where|Which|How)\b")
TRANSLATED = re.compile(r"\b(is|are) none\b(?! of\b)|\banew\b")
FILE = re.compile(r"(?<![\w./<>{}*-])[\w/.-]*\w\.(?:pyi?|c)\b")
EVERYDAY = {"API", "CSV", "GB", "HTTP", "HTTPS", "IP", "JSON", "KB", "MB", "OK", "RFC", "SQL", "TCP", "TS", "URI", "URL", "UTC", "UUID", "XML", "YAML"}  # fmt: skip
"""Abbreviations that readers know, and those of standards."""
NO_ABBREVIATIONS = {"CRITICAL", "WARNING", "UNKNOWN", "POST", "PUT", "DELETE", "GOAWAY", "PING", "REBOOTING", "CHECK", "DATA", "AUTH", "RSA", "EC", "SIGHUP", "SIGTERM", "ADDRESS", "DAY", "DB", "DD", "HOST", "MM", "NAME", "PATH", "PORT", "SERVICE", "YYYY", "YYYYMMDD"}  # fmt: skip
"""Words of protocols, and words that stand for a value."""
README_BYTES, PAGE_WORDS, DECISION_LINES = 12_000, 5_000, 30


@cache
def _files(*patterns: str) -> list[str]:
    done = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in done.stdout.split() if (ROOT / name).exists()]


@cache
def _pages() -> dict[str, str]:
    """Return the text of each page by its name."""
    return {name: (ROOT / name).read_text() for name in _files("*.md")}


def _prose(text: str) -> str:
    """Return the text without code blocks and inline code."""
    return re.sub(r"`[^`]*`", "X", re.sub(r"```.*?```", " ", text, flags=re.DOTALL))


def _code_faults() -> Iterator[str]:  # noqa: C901 - one walk for all
    """Yield vague and repeated names, phrases that are read twice, and files in module headers that do not exist."""
    texts, vague, classes = dict[str, str](), list[str](), Counter[str]()
    for name in _files("eir/*.py"):
        tree = ast.parse((ROOT / name).read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                classes[node.name] += 1
            elif (
                isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.strip("_").split("_")[0] in VAGUE
            ):
                vague.append(f"{name}:{node.lineno} {node.name}")
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                texts[f"{name}:{getattr(node, 'lineno', 1)}"] = _prose(ast.get_docstring(node) or "")
        for file in FILE.findall(ast.get_docstring(tree) or ""):
            if not (ROOT / file).exists() and not (ROOT / name).with_name(file).exists():
                yield f"{name}: {file} does not exist"
    if len(vague) > VAGUE_MAX:
        yield f"{len(vague)} functions with a vague name, at most {VAGUE_MAX}: {vague}"
    yield from (f"two classes are called {name}" for name, count in classes.items() if count > 1)
    texts |= {name: _prose(text) for name, text in _pages().items() if not name.startswith(("tests/", "CHANGELOG"))}
    for pattern, (most, better) in PHRASES.items():
        places = [
            place for place, text in texts.items() for _ in re.findall(rf"\b(?:{pattern})\b", text, re.IGNORECASE)
        ]
        if len(places) > most:
            yield f"{pattern}: {len(places)}, at most {most}; better: {better}; in {places}"


def _sentence_faults() -> Iterator[str]:
    """Yield docstrings that begin with a question word or a preposition, and phrases that are translations."""
    for name in _files("*.py", "*.md", "*.yml", "*.yaml", "*.json"):
        if name.startswith("tests/") and name.endswith(".py"):
            continue
        text = (ROOT / name).read_text()
        for number, line in enumerate(text.splitlines(), 1):
            if TRANSLATED.search(line) and name != "scripts/language.py":
                yield f"{name}:{number}: {line.strip()}"
        for node in ast.walk(ast.parse(text)) if name.endswith(".py") else ():
            if (
                isinstance(node, ast.Expr)
                and isinstance(node.value, ast.Constant)
                and INVERTED.match(str(node.value.value))
            ):
                yield f"{name}:{node.lineno}: begin with the head noun or the verb: {str(node.value.value).splitlines()[0]}"


def _page_faults() -> Iterator[str]:
    """Yield faults of the glossary, abbreviations without an explanation, and a README that is too long."""
    pages = _pages()
    if len(pages["README.md"].encode()) >= README_BYTES:
        yield f"README.md: longer than {README_BYTES} bytes"
    rows = re.findall(r"^\| ([^|]+?) \|", pages["config/GLOSSARY.md"], re.MULTILINE)
    terms = [row for row in rows[1:] if set(row) - set("-: ")]
    if terms != sorted(terms, key=str.lower):
        yield "config/GLOSSARY.md: not in alphabetical order"
    others = "\n".join(page for name, page in pages.items() if name != "config/GLOSSARY.md")
    for cell in terms:
        if not any(re.search(rf"\b{re.escape(term)}s?\b", others) for term in cell.split(", ")):
            yield f"config/GLOSSARY.md: no page has the term {cell}"
    explained = {word for cell in terms for term in cell.split(", ") for word in re.split("[ -]", term)}
    names = {Path(other).stem for other in pages} | {"FIRST"}  # pages are called by them
    for name, page in pages.items():
        if not re.match(r"README|(config|deploy)/(?!GLOSSARY)", name):
            continue
        text = re.sub(r"^```.*?^```|`[^`]*`|\]\([^)]*\)|[\w/-]+\.md", "", page, flags=re.MULTILINE | re.DOTALL)
        for short in {found.removesuffix("s") for found in re.findall(r"\b[A-Z][A-Z0-9]+s?\b", text)} - names:
            is_spelt = len(short) > 2 and re.search(r"\b" + r"\w*[ -]".join(short), page, re.IGNORECASE)
            if short not in explained | EVERYDAY | NO_ABBREVIATIONS and not is_spelt:
                yield f"{name}: {short} is neither in the glossary nor spelt out"


def _link_faults() -> Iterator[str]:
    """Yield links between pages that lead nowhere, and pages that no page reachable from the first links."""
    texts, links = _pages(), dict[str, set[str]]()
    for name, page in texts.items():
        links[name] = set()
        for target in re.findall(r"\]\(([^)\s]+)\)", page):
            path, _, anchor = target.partition("#")
            file = (ROOT / name).parent / path if path else ROOT / name
            if target.startswith(("http:", "https:", "/")):
                yield f"{name}: {target}: links between pages are relative"
            elif not file.exists() or (anchor and anchor not in _anchors(file.read_text())):
                yield f"{name}: the link {target} leads nowhere"
            else:
                links[name].add(file.resolve().relative_to(ROOT).as_posix())
    reached, edge = {"README.md"}, {"README.md"}
    while edge:
        edge = {target for name in edge for target in links[name] if target in texts} - reached
        reached |= edge
    yield from (f"{name}: no page links it" for name in sorted(texts.keys() - reached))


def _anchors(page: str) -> set[str]:
    """Return the names under which links reach the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in headings}


def _form_faults() -> Iterator[str]:
    """Yield pages that their folder's index omits, pages that do not name their readers or are too long, and decisions of another form."""
    decisions = 0
    for name, page in _pages().items():
        folder, _, file = name.rpartition("/")
        if folder in {"config", "deploy"} and file != "README.md":
            if f"| [{file}]({file}) |" not in (ROOT / folder / "README.md").read_text():
                yield f"{folder}/README.md: no row of {file}"
            if file in {"REFERENCE.md", "GLOSSARY.md"}:
                continue
            if not re.match(r"# .*\n\nFor ", page):
                yield f"{name}: begin with the readers: For …"
            if len(page.split()) >= PAGE_WORDS:
                yield f"{name}: longer than {PAGE_WORDS} words"
        if folder == "eir/decisions" and file != "README.md":
            decisions += 1
            parts = re.findall(r"^## (.*)$", page, re.MULTILINE)
            if parts != ["Context", "Outcome", "Consequences"] or len(page.splitlines()) > DECISION_LINES:
                yield f"{name}: a decision has Context, Outcome and Consequences, and at most {DECISION_LINES} lines"
            if not file.startswith(f"{decisions:04d}"):
                yield f"{name}: decisions are numbered without gaps"


def main() -> int:
    """Print all faults; return the exit status."""
    checks = (_code_faults, _sentence_faults, _page_faults, _link_faults, _form_faults)
    faults = [fault for check in checks for fault in check()]
    print("\n".join(faults) or "No fault of language.")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())

"""Check of the language of docstrings, headers and pages, and of the links and form of pages, a step of scripts/test. With `--measure` print the measures alone."""

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from eir.config.keys import TABLE

ROOT = Path(__file__).resolve().parents[1]
VAGUE_NAMES = "functions with a vague name"
VAGUE = {"take", "tell", "look", "put", "keep", "give", "hold", "see", "say", "said", "found", "made", "shown", "told", "have", "let", "go", "what", "whose", "stuff", "thing", "do"}  # fmt: skip
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

LIMITS = {
    VAGUE_NAMES: 4,
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
INVERTED = re.compile(r"(What|Whether|Of|By|Who|Where|Which|How)\b")
TRANSLATED = re.compile(r"\b(is|are) none\b(?! of\b)|\banew\b")
FILE = re.compile(r"(?<![\w./<>{}*-])[\w/.-]*\w\.(?:pyi?|c)\b")
DOTTED = re.compile(r"(?<![\w./@-])[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+")
SETTINGS = {re.sub(r"\[\]|\.\*.*", "", key.path) for key in TABLE} | {"redis.asyncio"}
"""Dotted names that are no modules of this program."""
EXTERNAL = "polars|duckdb|pyspark"
CLAIM = re.compile(
    rf"\b(?:may import|imports (?!{EXTERNAL})(?:nothing|only|no module|eir\.|\w+ (?:alone|and)))", re.IGNORECASE
)
EVERYDAY = {"API", "CSV", "GB", "HTTP", "HTTPS", "IP", "JSON", "KB", "MB", "OK", "RFC", "SQL", "TCP", "TS", "URI", "URL", "UTC", "UUID", "XML", "YAML"}  # fmt: skip
"""Abbreviations that readers know, and those of standards."""
NO_ABBREVIATIONS = {"CRITICAL", "WARNING", "UNKNOWN", "POST", "PUT", "DELETE", "GOAWAY", "PING", "REBOOTING", "CHECK", "DATA", "AUTH", "RSA", "EC", "SIGHUP", "SIGTERM", "ADDRESS", "DAY", "DB", "DD", "HOST", "MM", "NAME", "PATH", "PORT", "SERVICE", "YYYY", "YYYYMMDD"}  # fmt: skip
"""Words of protocols, and words that stand for a value."""
README_BYTES = 12_000
PAGE_WORDS = 5_000
DECISION_LINES = 30


@cache
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


@cache
def page_texts() -> dict[str, str]:
    """Return the text of each page of the repository by its name."""
    return {name: (ROOT / name).read_text() for name in _files("*.md")}


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


@cache
def _names_in(path: Path) -> set[str]:
    """Return the names that a module, or a class in it, defines."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                found.add(node.name)
            case ast.Name(ctx=ast.Store()):
                found.add(node.id)
            case ast.alias():
                found.add(node.asname or node.name)
    return found


def _is_there(dotted: str, folder: Path) -> bool:
    """Return True for a module, or a name in one, by its full name or by one that leaves out folders around `folder`."""
    parts = dotted.split(".")
    for around in (ROOT, ROOT / "eir", *(ROOT / each for each in (folder, *folder.parents))):
        path, rest = around, list(parts)
        while rest and (path / rest[0]).is_dir():
            path /= rest.pop(0)
        if not rest and (path / "__init__.py").exists():
            return True
        if rest and (path / f"{rest[0]}.py").exists():
            if set(rest[1:]) <= _names_in(path / f"{rest[0]}.py"):
                return True
        elif rest and path != around and set(rest) <= _names_in(path / "__init__.py"):
            return True
    return False


@cache
def _packages() -> set[str]:
    """Return the names of all folders and modules of eir/."""
    paths = [Path(each) for each in _files("eir/*.py")]
    return {part for path in paths for part in path.parent.parts} | {path.stem for path in paths}


def _wrong_names(name: str, text: str) -> list[str]:
    """Return the names of files and modules in a text that do not exist."""
    folder = (ROOT / name).parent.relative_to(ROOT)
    files = {each for each in FILE.findall(text) if not (ROOT / each).exists() and not (ROOT / folder / each).exists()}
    packages = _packages()
    modules = {
        each
        for each in DOTTED.findall(text)
        if not FILE.fullmatch(each)
        and each.split(".")[0] in packages
        and not each.endswith((".md", ".yaml", ".json", ".toml", ".sql"))
        and each not in SETTINGS
        and not _is_there(each, folder)
    }
    return sorted(files | modules)


def _header_faults() -> Iterator[str]:
    """Yield names in module headers and in READMEs beside the code that do not exist, and claims about imports."""
    texts = {name: ast.get_docstring(tree) or "" for name, tree in modules()}
    for name, text in texts.items():
        if CLAIM.search(text):
            yield f"{name}: import-linter checks imports (pyproject.toml); remove the claim"
    for name in _files("eir/*README.md"):
        texts[name] = re.sub(r"```.*?```", "", (ROOT / name).read_text(), flags=re.DOTALL)
    for name, text in texts.items():
        for wrong in _wrong_names(name, text):
            yield f"{name}: {wrong} does not exist"


def _sentence_faults() -> Iterator[str]:
    """Yield docstrings that begin with a question word or a preposition, and phrases that are translations."""
    for name in _files("*.py", "*.md", "*.yml", "*.yaml", "*.json"):
        if name.startswith("tests/") and name.endswith(".py"):
            continue
        text = (ROOT / name).read_text()
        for number, line in enumerate(text.splitlines(), 1):
            if TRANSLATED.search(line) and name != "scripts/language.py":
                yield f"{name}:{number}: {line.strip()}"
        tree = dict(modules()).get(name) or (ast.parse(text) if name.endswith(".py") else None)
        for node in ast.walk(tree) if tree else ():
            if (
                isinstance(node, ast.Expr)
                and isinstance(node.value, ast.Constant)
                and INVERTED.match(str(node.value.value))
            ):
                yield f"{name}:{node.lineno}: begin with the head noun or the verb: {str(node.value.value).splitlines()[0]}"


def _measure_faults() -> Iterator[str]:
    """Yield measures above their limit, and limits far above their measure."""
    for name, value in measure().items():
        if value > LIMITS[name]:
            yield f"{name}: {value}, at most {LIMITS[name]}; better forms: {BETTER}"
        elif LIMITS[name] > value + SLACK:
            yield f"{name}: lower its limit to {value}"


def _page_faults() -> Iterator[str]:
    """Yield faults of the glossary, abbreviations without an explanation, and a README that is too long."""
    all_pages = page_texts()
    if len(all_pages["README.md"].encode()) >= README_BYTES:
        yield f"README.md: longer than {README_BYTES} bytes"
    rows = re.findall(r"^\| ([^|]+?) \|", all_pages["config/GLOSSARY.md"], re.MULTILINE)
    terms = [row for row in rows[1:] if set(row) - set("-: ")]
    if terms != sorted(terms, key=str.lower):
        yield "config/GLOSSARY.md: not in alphabetical order"
    others = "\n".join(page for name, page in all_pages.items() if name != "config/GLOSSARY.md")
    for cell in terms:
        if not any(re.search(rf"\b{re.escape(term)}s?\b", others) for term in cell.split(", ")):
            yield f"config/GLOSSARY.md: no page has the term {cell}"
    explained = {word for cell in terms for term in cell.split(", ") for word in re.split("[ -]", term)}
    names = {Path(other).stem for other in all_pages} | {"FIRST"}  # pages are called by them
    for name, page in all_pages.items():
        if not re.match(r"README|(config|deploy)/(?!GLOSSARY)", name):
            continue
        text = re.sub(r"^```.*?^```|`[^`]*`|\]\([^)]*\)|[\w/-]+\.md", "", page, flags=re.MULTILINE | re.DOTALL)
        for short in {found.removesuffix("s") for found in re.findall(r"\b[A-Z][A-Z0-9]+s?\b", text)} - names:
            spelt = r"\b" + r"\w*[ -]".join(short)
            is_spelt = len(short) > 2 and re.search(spelt, page, re.IGNORECASE)
            if short not in explained | EVERYDAY | NO_ABBREVIATIONS and not is_spelt:
                yield f"{name}: {short} is neither in the glossary nor spelt out"


def _link_faults() -> Iterator[str]:
    """Yield links between pages that lead nowhere, and pages that no page reachable from the first links."""
    texts = page_texts()
    links: dict[str, set[str]] = {}
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
    for name, page in page_texts().items():
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
    if sys.argv[1:] == ["--measure"]:
        for name, value in measure().items():
            print(f"{value:>8}  {name}")
        return 0
    checks = (_header_faults, _sentence_faults, _measure_faults, _page_faults, _link_faults, _form_faults)
    faults = [fault for check in checks for fault in check()]
    print("\n".join(faults) or "No fault of language.")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())

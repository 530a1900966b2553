"""Version of the program: its place, the version of a build without a tag, and the steps from a commit to a release.

The version is in eir/__init__.py, from which the wheel takes it. The Helm chart repeats it for installations from a clone.
"""

import re
from collections.abc import Iterable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import NamedTuple

PROGRAM, CHART, CHANGES = Path("eir/__init__.py"), Path("deploy/chart/Chart.yaml"), Path("CHANGELOG.md")
NUMBER = re.compile(r"(\d+)\.(\d+)\.(\d+)")
STANDS = {
    PROGRAM: re.compile(r'(?<=^__version__ = ").*(?="$)', re.MULTILINE),
    CHART: re.compile(r"(?<=^version: ).*$|(?<=^appVersion: ).*$", re.MULTILINE),
}
"""The places in a file that the version stands at."""
OPEN = "## Unreleased"
"""The heading in CHANGELOG.md of what no release has yet."""


class Broken(Exception):
    """Something is not as a release needs it."""


class Version(NamedTuple):
    """A release, or a build on the way to one."""

    number: str
    build: str = ""
    """The time of the commit, as digits; empty for a release."""

    @property
    def debian(self) -> str:
        """The form in which dpkg puts a build before its release."""
        return f"{self.number}~{self.build}" if self.build else self.number

    @property
    def python(self) -> str:
        """The form in which pip does that (PEP 440)."""
        return f"{self.number}.dev{self.build}" if self.build else self.number

    @property
    def chart(self) -> str:
        """The form in which Helm does that (SemVer), which is a tag of an image too."""
        return f"{self.number}-dev.{self.build}" if self.build else self.number


def version_of(source: Path, tag: str | None, epoch: str) -> Version:
    """The version of a commit's files. Without a tag it is a build on the way to the next release.

    Raises Broken if the tag is another's, or the page of changes does not say when it was released.
    """
    (number,) = STANDS[PROGRAM].findall((source / PROGRAM).read_text())
    is_released = number in released((source / CHANGES).read_text())
    if tag is None:
        build = f"{datetime.fromtimestamp(int(epoch), UTC):%Y%m%d%H%M%S}"
        return Version(_next(number) if is_released else number, build)
    if tag != f"v{number}":
        raise Broken(f"the tag {tag} is at a commit of version {number}")
    if not is_released:
        raise Broken(f"{CHANGES} does not say when {number} was released")
    return Version(number)


def stamp(source: Path, version: Version) -> None:
    """Write a version into a commit's files, wherever it stands in them."""
    for path, said in ((PROGRAM, version.python), (CHART, version.chart)):
        text = (source / path).read_text()
        (source / path).write_text(STANDS[path].sub(said, text))


def prepare(root: Path, number: str, day: date) -> Iterable[str]:
    """Make a working copy what a release is tagged at; returns the commands that remain. Raises Broken."""
    page = (root / CHANGES).read_text()
    (current,) = STANDS[PROGRAM].findall((root / PROGRAM).read_text())
    if not NUMBER.fullmatch(number):
        raise Broken(f"{number} is no version; expected three numbers such as 0.2.0")
    if number in released(page) or _key(number) < _key(current):
        raise Broken(f"{number} is not after {current}")
    if not re.search(rf"^{OPEN}\n+- ", page, re.MULTILINE):
        raise Broken(f"{CHANGES} has nothing below {OPEN!r}")
    (root / CHANGES).write_text(page.replace(f"{OPEN}\n", f"{OPEN}\n\n## {number}, {day}\n", 1))
    stamp(root, Version(number))
    return (
        f"git commit --all --message 'Version {number}'",
        f"git tag --annotate v{number} --message 'Version {number}'",
        f"scripts/release v{number} --check --key KEY",
    )


def released(page: str) -> set[str]:
    """The versions for which the page of changes has a day."""
    return set(re.findall(r"^## (\d+\.\d+\.\d+), \d{4}-\d\d-\d\d$", page, re.MULTILINE))


def _key(number: str) -> tuple[int, ...]:
    return tuple(map(int, number.split(".")))


def _next(number: str) -> str:
    major, minor, patch = _key(number)
    return f"{major}.{minor}.{patch + 1}"

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
"""File → patterns of the places with the version."""
OPEN = "## Unreleased"
"""Heading of CHANGELOG.md for changes without a release."""


class Broken(Exception):
    """Error: a file does not fit a release."""


class Version(NamedTuple):
    """Release, or a build before one."""

    number: str
    build: str = ""
    """Time of the commit, as digits; empty for a release."""

    @property
    def debian(self) -> str:
        """Return the form of a version in which dpkg sorts a build before its release."""
        return f"{self.number}~{self.build}" if self.build else self.number

    @property
    def python(self) -> str:
        """Return the form of a version in which pip sorts a build before its release (PEP 440)."""
        return f"{self.number}.dev{self.build}" if self.build else self.number

    @property
    def chart(self) -> str:
        """Return the form of a version in which Helm sorts a build before its release (SemVer); it is also a tag of an image."""
        return f"{self.number}-dev.{self.build}" if self.build else self.number


def version_of(source: Path, tag: str | None, epoch: str) -> Version:
    """Return the version of a commit's files; without a tag, of a build before the next release.

    Raises Broken if the tag is another's, or CHANGELOG.md has no date for it.
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
    """Write a version into all files of a commit that contain it."""
    for path, said in ((PROGRAM, version.python), (CHART, version.chart)):
        text = (source / path).read_text()
        (source / path).write_text(STANDS[path].sub(said, text))


def prepare(root: Path, number: str, day: date) -> Iterable[str]:
    """Prepare a working copy for the tag of a release; return the remaining commands. Raises Broken."""
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
    """Return the versions that have a date in CHANGELOG.md."""
    return set(re.findall(r"^## (\d+\.\d+\.\d+), \d{4}-\d\d-\d\d$", page, re.MULTILINE))


def _key(number: str) -> tuple[int, ...]:
    return tuple(map(int, number.split(".")))


def _next(number: str) -> str:
    major, minor, patch = _key(number)
    return f"{major}.{minor}.{patch + 1}"

"""The version: one place says it, what a build is called, and how a commit becomes a release that `scripts/release` takes."""

import itertools
import re
import shutil
import subprocess
import sys
import tarfile
from datetime import date
from pathlib import Path

import pytest
import releasing
import versions
import yaml
from versions import Broken, Version

from eir import __version__

ROOT = Path(__file__).parents[2]
EPOCH = "1700000000"


@pytest.fixture
def source(tmp_path):
    """What of a commit says its version, with one change that no release has."""
    for path in (*versions.STANDS, versions.CHANGES):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    versions.stamp(tmp_path, Version("0.1.0"))
    (tmp_path / versions.CHANGES).write_text("# Changelog\n\n## Unreleased\n\n- A change.\n")
    return tmp_path


def test_the_project_takes_it_from_the_program():
    said = subprocess.run(
        [sys.executable, "setup.py", "--version"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert said.stdout.split()[-1] == __version__
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    assert [line for line in lines if line.startswith("version =")] == ['version = { attr = "eir.__version__" }']


def test_every_version_of_the_changelog_has_its_day_and_the_first_is_this_programs():
    page = (ROOT / versions.CHANGES).read_text()
    headings = re.findall(r"^## .*$", page, re.MULTILINE)
    assert headings[0] == versions.OPEN
    assert [heading.split()[1].strip(",") for heading in headings[1:]] == sorted(
        versions.released(page), key=lambda number: tuple(map(int, number.split("."))), reverse=True
    )
    assert len(headings) == 1 or headings[1].startswith(f"## {__version__}, ")


def test_before_the_first_release_the_changelog_is_one_short_entry():
    page = (ROOT / versions.CHANGES).read_text()
    if versions.released(page):
        return
    assert len(re.findall(r"^- ", page, re.MULTILINE)) == 1
    assert len(page.split()) <= 150


def test_a_commit_that_was_prepared_is_taken_by_its_tag(source):
    for each in ("0.1.0", "0.2.0"):
        remain = versions.prepare(source, each, date(2026, 12, 1))
        assert f"git tag --annotate v{each}" in "\n".join(remain)
        assert versions.version_of(source, f"v{each}", EPOCH) == Version(each)
        page = (source / versions.CHANGES).read_text()
        assert page.startswith(f"# Changelog\n\n## Unreleased\n\n## {each}, 2026-12-01\n\n- A change.\n")
        (source / versions.CHANGES).write_text(page.replace("## Unreleased\n", "## Unreleased\n\n- A change.\n"))
    chart = yaml.safe_load((source / versions.CHART).read_text())
    assert (chart["version"], chart["appVersion"]) == ("0.2.0", "0.2.0")
    assert '__version__ = "0.2.0"\n' in (source / versions.PROGRAM).read_text()


@pytest.mark.parametrize(
    ("number", "page", "why"),
    [
        ("1.0", "## Unreleased\n\n- A change.\n", "is no version"),
        ("0.0.9", "## Unreleased\n\n- A change.\n", "is not after 0.1.0"),
        ("0.1.0", "## Unreleased\n\n- A change.\n\n## 0.1.0, 2026-12-01\n", "is not after 0.1.0"),
        ("0.1.0", "## Unreleased\n\n## 0.0.1, 2026-12-01\n\n- A change.\n", "has nothing below '## Unreleased'"),
    ],
)
def test_what_would_be_no_release_is_not_prepared(source, number, page, why):
    (source / versions.CHANGES).write_text(page)
    before = {path: (source / path).read_text() for path in versions.STANDS}
    with pytest.raises(Broken, match=why):
        versions.prepare(source, number, date(2026, 12, 1))
    assert before == {path: (source / path).read_text() for path in versions.STANDS}


def test_a_tag_of_another_commit_or_of_one_that_was_not_prepared_is_refused(source):
    with pytest.raises(Broken, match="does not say when"):
        versions.version_of(source, "v0.1.0", EPOCH)
    with pytest.raises(Broken, match=r"is at a commit of version 0\.1\.0"):
        versions.version_of(source, "v0.2.0", EPOCH)


def test_a_build_comes_before_its_release_and_after_the_one_before(source):
    build = versions.version_of(source, None, EPOCH)
    assert build == Version("0.1.0", "20231114221320")
    versions.prepare(source, "0.1.0", date(2026, 12, 1))
    later = versions.version_of(source, None, EPOCH)
    order = [build, Version("0.1.0"), later, Version("0.1.1")]
    for one, other in itertools.pairwise(order):
        subprocess.run(["dpkg", "--compare-versions", one.debian, "lt", other.debian], check=True)
    versions.stamp(source, later)
    assert '__version__ = "0.1.1.dev20231114221320"\n' in (source / versions.PROGRAM).read_text()


def test_the_chart_of_a_build_is_the_same_twice_and_runs_that_build(source, tmp_path):
    helm = shutil.which("helm", path=str(Path(sys.executable).parent))
    shutil.copytree(ROOT / "deploy", source / "deploy", symlinks=True, dirs_exist_ok=True)
    shutil.copy(ROOT / "LICENSE", source)
    version = Version("0.1.1", "20231114221320")
    versions.stamp(source, version)
    made = [releasing.chart(source, version.chart, folder, int(EPOCH)) for folder in (tmp_path, source / "deploy")]
    assert releasing.digest(made[0]) == releasing.digest(made[1])
    with tarfile.open(made[0]) as archive:
        assert archive.extractfile("eir/LICENSE").read() == (ROOT / "LICENSE").read_bytes()
        about = yaml.safe_load(archive.extractfile("eir/Chart.yaml"))
    assert about["annotations"] == {"artifacthub.io/license": "Apache-2.0"}
    if helm is None:
        pytest.skip("Helm comes with scripts/setup --test, on x86-64")
    done = subprocess.run(
        [helm, "template", "eir", made[0], "--set", "identity.realm=a.example,monitoring.prometheusRule=true"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert 'image: "eir:0.1.1-dev.20231114221320"' in done.stdout
    assert "alert: EirDown" in done.stdout

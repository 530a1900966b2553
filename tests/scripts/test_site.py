"""scripts/site: the website has each page and a search, and a broken link is an error."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from simulated.patience import PROGRAM_S

ROOT = Path(__file__).parents[2]


def run(*command):
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=PROGRAM_S)


def test_the_navigation_has_each_page_once():
    pages = run("git", "ls-files", "*.md").stdout.split()
    named = re.findall(r"[\w./-]+\.md$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(named) == sorted(pages)


@pytest.mark.long
def test_the_site_has_a_search_over_all_pages_and_rejects_broken_links():
    done = run("scripts/site")
    assert done.returncode == 0, done.stdout + done.stderr
    site = ROOT / "var" / "site"
    found = {
        each["location"].partition("#")[0] for each in json.loads((site / "html" / "search.json").read_text())["items"]
    }
    expected = {str(page.relative_to(site / "pages").with_suffix(".html")) for page in (site / "pages").rglob("*.md")}
    assert found == {page.replace("README.html", "index.html") for page in expected}
    assert all((site / "html" / page).is_file() for page in found)
    assert (site / "html" / "scripts" / "drawings" / "network.svg").is_file()
    tour = site / "pages" / "deploy" / "TOUR.md"
    tour.write_text(tour.read_text() + "\n[a](NOWHERE.md), [b](RUNBOOK.md#nowhere), [c](RUNBOOK.md#eirdown)\n")
    done = run(".venv/site/bin/zensical", "build", "--strict", "--config-file", "mkdocs.yml")
    assert done.returncode != 0
    assert "2 issues found" in done.stdout + done.stderr

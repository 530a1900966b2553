"""Code blocks of the pages, as readers copy them."""

import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).parent.parent


def section(page: str, heading: str) -> str:
    """Return the text below a heading, up to the next of its level or above."""
    level = heading.partition(" ")[0]
    pattern = rf"^{re.escape(heading)}\n(.*?)(?=^#{{2,{len(level)}}} |\Z)"
    return re.findall(pattern, page, re.MULTILINE | re.DOTALL)[0]


def blocks(text: str, language: str = "sh") -> list[str]:
    """Return the blocks of code in this language; those in a list are indented."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```", text, re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(block) for _, block in found]


class Installation:
    """The lines of deploy/INSTALL.md that install and upgrade a node, those of deploy/FIRST-DAY.md, and the first hour of deploy/CONNECT.md."""

    PAGE = (ROOT / "deploy" / "INSTALL.md").read_text()
    FIRST_DAY = (ROOT / "deploy" / "FIRST-DAY.md").read_text()
    CONNECT = (ROOT / "deploy" / "CONNECT.md").read_text()
    FROM_THE_INDEX = "sudo /opt/eir/bin/pip install '.[analysis]'\n"
    """The line that others take the place of."""
    service, alias, locked, fetch, offline, package = blocks(section(PAGE, "## Installation"))
    (upgrade,) = blocks(section(PAGE, "## Upgrade"))
    first_day = blocks(FIRST_DAY)
    first_hour = blocks(section(CONNECT, "## The first hour"))

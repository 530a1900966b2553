"""Pages in Chromium: what axe-core (WCAG 2 and good practice) finds in them, by the reader's colours and at any width."""

import json
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path

import pytest
from simulated.patience import PROGRAM_S

AXE = Path(__file__).parents[1] / ".venv" / "share" / "axe.min.js"
LOOKS = """<script src=axe.min.js></script><script>addEventListener('load',()=>axe.run().then(({violations})=>{
frameElement.dataset.found=JSON.stringify({ground:getComputedStyle(document.body).backgroundColor,
wide:[document.documentElement.scrollWidth,innerWidth],
broken:[...document.querySelectorAll('th')].filter(each=>{const text=document.createRange();text.selectNodeContents(each);
return text.getClientRects().length>1}).map(each=>each.textContent),
wrong:violations.flatMap(({id,nodes})=>nodes.map(({html})=>[id,html]))})}))</script></body>"""

in_chromium = pytest.mark.skipif(
    not (shutil.which("chromium") and AXE.exists()),
    reason="scripts/setup --test fetches axe-core; or there is no Chromium",
)


def looked_at(folder, pages, *, frames=(("light", 1200), ("dark", 320))):
    """Each page (its HTML) in a frame of each scheme and width: colour of the ground, width of content and frame, headings in more than one line, what is wrong.

    A window of the browser has 500 pixels at least; a frame has what it is given.
    """
    shutil.copy(AXE, folder)
    outer = []
    for number, page in enumerate(pages):
        (folder / f"{number}.html").write_text(re.sub("<meta http-equiv=[^>]*>", "", page).replace("</body>", LOOKS))
        outer += [
            f'<iframe title="{escape(f"{number} {scheme} {width}")}" src={number}.html width={width} height=1400 style="color-scheme:{scheme}"></iframe>'
            for scheme, width in frames
        ]
    (folder / "frames.html").write_text(f"<!doctype html><html lang=en><body>{''.join(outer)}</body></html>")
    dom = dom_after((folder / "frames.html").as_uri(), folder)
    found = [json.loads(unescape(each)) for each in re.findall(r'data-found="([^"]*)"', dom)]
    assert len(found) == len(outer), dom
    return found


def dom_after(url, folder, seconds=60):
    """Return the elements of the page at a URL after some seconds of the browser's virtual time."""
    return subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", f"--user-data-dir={folder / 'profile'}",
         f"--virtual-time-budget={seconds * 1000}", "--dump-dom", url],
        check=True, capture_output=True, text=True, timeout=PROGRAM_S,
    ).stdout  # fmt: skip

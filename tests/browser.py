"""Pages in Chromium: what axe-core (WCAG 2 and good practice) finds in them, by the reader's colours and at any width."""

import json
import os
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


class Driven:
    """Chromium that a test drives: pages, forms and keys, over the pipe of its developer tools.

    `folder`: folder for its profile. `width`: width of the window in pixels.
    """

    def __init__(self, folder, width=1200):
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()
        command = [
            "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={folder / 'profile'}", "about:blank",
        ]  # fmt: skip
        pipes = f'exec 3<&{to_browser} 4>&{from_browser}; exec "$@"'
        self._process = subprocess.Popen(
            ["bash", "-c", pipes, "-", *command], pass_fds=[to_browser, from_browser], stderr=subprocess.DEVNULL
        )
        os.close(to_browser)
        os.close(from_browser)
        self._read, self._number, self._session, self._loads = b"", 0, None, 0
        (page,) = [each for each in self.call("Target.getTargets")["targetInfos"] if each["type"] == "page"]
        self._session = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        self.call("Page.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.call("Browser.close", session=None)
        self._process.wait(PROGRAM_S)
        os.close(self._in)
        os.close(self._out)

    def call(self, method, *, session=True, **parameters):
        """Call a method of the developer tools and return its result. Loads of pages meanwhile are counted."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if session and self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def open(self, url):
        """Open a page and wait until it is loaded."""
        self.after_load(lambda: self.call("Page.navigate", url=url))

    def after_load(self, act):
        """Do something that loads another page, and wait until the page is loaded."""
        loads = self._loads
        act()
        while self._loads == loads:
            self._next()

    def run(self, script):
        """Evaluate a script in the page; return its value."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def fill(self, within, **fields):
        """Set fields of the form with this selector."""
        for name, value in fields.items():
            self.run(f"document.querySelector({json.dumps(f'{within} [name={name}]')}).value = {json.dumps(value)}")

    def submit(self, within, **fields):
        """Fill a form, submit it by its button, and wait for the next page."""
        self.fill(within, **fields)
        self.after_load(lambda: self.run(f"document.querySelector({json.dumps(f'{within} button')}).click()"))

    def press(self, key, code):
        """Press a key. `code`: its Windows code, 9 for Tab and 13 for Enter."""
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)

    def type(self, text):
        """Type a text into the field with the focus."""
        self.call("Input.insertText", text=text)

    @property
    def text(self):
        """Visible text of the page."""
        return self.run("document.body.innerText")

    def faults(self):
        """Return what axe-core finds wrong in the page, and how much wider the page is than the window."""
        self.run(AXE.read_text())
        violations = self.run("axe.run().then(({violations}) => violations.map(({id, nodes}) => [id, nodes[0].html]))")
        wider = self.run("document.documentElement.scrollWidth - innerWidth")
        return violations, max(wider, 0)

    def _next(self):
        while b"\0" not in self._read:
            self._read += os.read(self._in, 1 << 16)
        first, _, self._read = self._read.partition(b"\0")
        message = json.loads(first)
        self._loads += message.get("method") == "Page.loadEventFired"
        return message

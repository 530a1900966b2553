"""The desk on a node: log in, search, block, undo, with a user's rights, and what other sites and stolen cookies achieve."""

import asyncio
import http.client
import re
from urllib.parse import urlencode

import pytest
from browser import Driven, in_chromium
from simulated.node import until
from simulated.patience import FACTOR
from simulated.wire import HOST, REALM, TGPP, Connection, cer, ecr

from eir.wire.web.passwords import user_line

PASSWORD = "correct horse battery"
IMEI = "001015000000001"
WHITE, BLACK = 0, 1


class Browser:
    """Client of the page with its cookie: it sends a form as a browser does, with the token of the last page."""

    def __init__(self, address):
        self.address, self.cookie, self.token, self.text = address, "", "", ""

    def send(self, method, path, fields=None, **headers):
        link = http.client.HTTPConnection(*self.address)
        body = urlencode(fields) if isinstance(fields, dict) else fields
        all_headers = {"Cookie": self.cookie} if self.cookie else {}
        if fields is not None:
            all_headers |= {
                "Content-Type": "application/x-www-form-urlencoded",
                "Origin": f"http://{self.address[0]}:{self.address[1]}",
            }
        link.request(method, path, body, all_headers | headers)
        answer = link.getresponse()
        self.text = answer.read().decode()
        if cookie := answer.getheader("Set-Cookie"):
            self.cookie = cookie.partition(";")[0]
        if token := re.search(r'name="token" value="([^"]+)"', self.text):
            self.token = token[1]
        location = answer.getheader("Location")
        link.close()
        return self.send("GET", location) if location else answer.status

    def get(self, path="/desk"):
        return self.send("GET", path)

    def post(self, path, **fields):
        return self.send("POST", path, {"token": self.token, **fields})

    def log_in(self, user):
        return self.send("POST", "/desk/login", {"user": user, "password": PASSWORD})


@pytest.fixture
def host(site):
    site.configure(
        lists={"own": {"local": True}}, policy={"rules": [{"list": "own", "answer": "blacklisted"}]},
        desk={"listen": "http://127.0.0.1:0", "users": "users"},
    )  # fmt: skip
    users = site.folder / "users"
    users.write_text("\n".join((user_line("anna", PASSWORD, "change", ["own"]), user_line("vera", PASSWORD, "view"))))
    users.chmod(0o640)
    site.start()
    return site


def desk_of(host):
    """Return the address of the desk's listener."""
    host_name, _, port = host.node.status()["interfaces"]["desk"][0].partition("://")[2].rpartition(":")
    return host_name, int(port)


def test_a_session_ends_with_the_password_and_with_the_user(host):
    address, users = desk_of(host), host.folder / "users"
    vera, anna = Browser(address), Browser(address)
    vera.log_in("vera")
    anna.log_in("anna")
    assert vera.get("/desk/lists") == anna.get("/desk/lists") == 200
    assert "Add a row" not in vera.text, "a viewer has no forms"
    assert vera.post("/desk/add", list="own", id=IMEI, reason="stolen") == 403
    users.write_text(user_line("vera", "another password", "view"))
    until(lambda: vera.get("/desk/lists") == 200 and "Log in" in vera.text)
    assert vera.log_in("vera") == 403
    assert anna.get("/desk/lists") == 403, "the file has no line for the user any more"


def test_a_phone_is_blocked_and_freed_again(host):
    browser = Browser(desk_of(host))
    assert browser.get() == 200
    assert "Log in" in browser.text
    assert browser.log_in("anna") == 200
    assert browser.post("/desk/add", list="own", id=IMEI, reason="stolen", case="A-1") == 200, browser.text
    assert "case A-1" in browser.text
    assert browser.post("/desk/search", imei=IMEI) == 200
    assert "blacklisted" in browser.text
    browser.get("/desk/changes")
    assert browser.post("/desk/undo", list="own", change="1") == 200
    assert "is undone" in browser.text


def status_over_s13(node, imei=IMEI):
    """Return the Equipment-Status of a device."""

    async def ask():
        client = Connection(*await asyncio.open_connection(*node.address))
        await client.open(cer(HOST, REALM))
        answer = await client.ask(ecr(imei))
        await client.close()
        return answer.number(1445, TGPP)

    return asyncio.run(ask())


@in_chromium
def test_in_a_browser_a_phone_is_blocked_refused_and_freed_again(host, tmp_path):
    with Driven(tmp_path) as browser:
        browser.open("http://{}:{}/desk".format(*desk_of(host)))
        browser.submit("main form", user="anna", password=PASSWORD)
        browser.submit("main form", imei=IMEI)
        assert "whitelisted" in browser.text
        browser.submit("form[action='/desk/add']", reason="stolen", case="A-17")
        assert "is in the list own" in browser.text
        until(lambda: status_over_s13(host.node) == BLACK, patience_s=2 * FACTOR)
        browser.submit("form[action='/desk/undo']")
        assert "is undone" in browser.text
        until(lambda: status_over_s13(host.node) == WHITE, patience_s=2 * FACTOR)
        browser.submit("header form")
        assert "Password" in browser.text
    with Driven(tmp_path) as browser:
        browser.open("http://{}:{}/desk".format(*desk_of(host)))
        browser.submit("main form", user="vera", password=PASSWORD)
        browser.submit("main form", imei=IMEI)
        assert not browser.run("document.querySelector(\"form[action='/desk/add']\")")


@in_chromium
def test_everybody_can_use_it_by_keyboard_and_on_a_narrow_screen(host, tmp_path):
    """WCAG 2 by axe-core on each page, at 320 px, in light and dark; the log-in and a search by keys alone."""
    host.eir("add", "own", IMEI, "--reason", "x" * 150)
    address = "http://{}:{}/desk".format(*desk_of(host))
    with Driven(tmp_path, width=320) as browser:
        browser.open(address)
        assert browser.faults() == ([], 0)
        for _ in range(2):  # the link to the content, then the field
            browser.press("Tab", 9)
        browser.type("anna")
        browser.press("Tab", 9)
        browser.type(PASSWORD)
        browser.after_load(lambda: browser.press("Enter", 13))
        browser.run("document.querySelector('[name=imei]').focus()")
        browser.type(IMEI)
        browser.after_load(lambda: browser.press("Enter", 13))
        assert "blacklisted" in browser.text
        for scheme in ("light", "dark"):
            browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            assert browser.faults() == ([], 0)
            for page in ("/lists", "/changes", "/nothing"):
                browser.open(f"{address}{page}")
                assert browser.faults() == ([], 0), page


def test_forged_forms_change_nothing(host):
    browser = Browser(desk_of(host))
    browser.log_in("anna")
    row = {"list": "own", "id": IMEI, "reason": "stolen"}
    assert browser.send("POST", "/desk/add", row) == 403, "without the token"
    assert browser.send("POST", "/desk/add", {**row, "token": "x" * 32}) == 403
    for origin in ("http://evil.example", "null", ""):
        assert browser.send("POST", "/desk/add", {**row, "token": browser.token}, Origin=origin) == 403
        assert browser.send("POST", "/desk/login", {"user": "anna", "password": PASSWORD}, Origin=origin) == 403
    assert browser.send("GET", f"/desk/add?{urlencode({**row, 'token': browser.token})}") == 404
    stolen = browser.cookie
    assert browser.post("/desk/logout") == 200
    browser.cookie = stolen
    assert browser.post("/desk/add", **row) == 200
    assert "Password" in browser.text, "the session has ended on the server"
    assert host.json("lists")[0]["entries"] in {0, None}
    assert len(host.node.lines("desk_refused", reason="token")) == 2


def test_markup_in_reasons_and_names_is_text(host):
    browser = Browser(desk_of(host))
    browser.log_in("anna")
    markup = "<script>alert(1)</script>\"'><img src=x>"
    assert browser.post("/desk/add", list="own", id=IMEI, reason=markup, case=markup) == 200
    for path in ("/desk/changes", "/desk/lists"):
        assert browser.get(path) == 200
        assert "<script" not in browser.text
        assert "<img" not in browser.text
    assert browser.post("/desk/search", imei=IMEI) == 200
    assert "&lt;script&gt;" in browser.text
    assert "<img" not in browser.text
    assert browser.post("/desk/search", imei=markup) == 422
    assert "<script" not in browser.text
    assert browser.send("POST", "/desk/login", {"user": markup, "password": markup}) == 403
    assert "<script" not in browser.text


def test_guesses_are_limited_by_address_and_hold_nobody_up(host):
    """20 wrong passwords, then 429; a user who has logged in goes on."""
    browser, guesser = Browser(desk_of(host)), Browser(desk_of(host))
    browser.log_in("anna")
    statuses = [guesser.send("POST", "/desk/login", {"user": "anna", "password": f"guess {at}"}) for at in range(22)]
    assert (statuses[0], statuses[-1]) == (403, 429)
    assert browser.get("/desk/lists") == 200


def test_a_file_is_previewed_and_added(host):
    browser = Browser(desk_of(host))
    browser.log_in("anna")
    browser.get("/desk/lists")

    def upload(content):
        fields = {"token": browser.token, "list": "own", "reason": "stolen"}
        parts = [
            f'--B\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in fields.items()
        ]
        parts.append(
            f'--B\r\nContent-Disposition: form-data; name="file"; filename="rows.csv"\r\n\r\n{content}\r\n--B--\r\n'
        )
        return browser.send("POST", "/desk/file", "".join(parts), **{"Content-Type": "multipart/form-data; boundary=B"})

    assert upload(f"imei\n{IMEI}\nnonsense\n") == 200
    assert "rows.csv:3" in browser.text
    assert "nothing was changed" in browser.text
    first = re.search(r'name="sha256" value="([^"]+)"', browser.text)[1]
    assert upload("imei\n001015000000019\n") == 200, "the preview of another file, in another tab"
    assert browser.post("/desk/file/add", list="own", reason="stolen", sha256=first) == 409
    assert host.json("lists")[0]["entries"] in {0, None}
    assert upload(f"imei\n{IMEI}\nnonsense\n") == 200
    assert browser.post("/desk/file/add", list="own", reason="stolen", case="F-1", sha256=first) == 200
    assert "case F-1" in browser.text
    assert upload("imei\nnonsense\n") == 422
    assert upload("x" * (130 << 10)) == 413

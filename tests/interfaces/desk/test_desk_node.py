"""The desk on a node: log in, search, block, undo, with a user's rights, and what other sites and stolen cookies achieve."""

import http.client
import re
from urllib.parse import urlencode

import pytest
from simulated.node import until

from eir.wire.web.passwords import user_line

PASSWORD = "correct horse battery"
IMEI = "001015000000001"


class Browser:
    """Client of the page with its cookie: it sends a form as a browser does, with the token of the last page."""

    def __init__(self, address):
        self.address, self.cookie, self.token, self.text = address, "", "", ""

    def send(self, method, path, fields=None, **headers):
        link = http.client.HTTPConnection(*self.address)
        body = None if fields is None else urlencode(fields)
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
    browser, users = Browser(desk_of(host)), host.folder / "users"
    browser.log_in("vera")
    assert browser.get("/desk/lists") == 200
    assert "Add a row" not in browser.text, "a viewer has no forms"
    assert browser.post("/desk/add", list="own", id=IMEI, reason="stolen") == 403
    users.write_text(user_line("vera", "another password", "view"))
    until(lambda: browser.get("/desk/lists") == 200 and "Log in" in browser.text)
    assert browser.log_in("vera") == 403
    users.write_text(user_line("anna", PASSWORD, "change", ["own"]))
    until(lambda: browser.log_in("anna") == 200)
    assert browser.get("/desk/lists") == 200
    users.write_text(user_line("vera", PASSWORD, "view"))
    until(lambda: browser.get("/desk/lists") == 403)


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

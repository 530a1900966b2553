"""Sessions and forms of the desk's page, without a node."""

import pytest
from test_desk_operations import ANNA

from eir.interfaces.clients import RequestRefused
from eir.interfaces.desk import sessions
from eir.interfaces.desk.page import COOKIE, FIELDS_MAX, DeskPage, _read_form
from eir.interfaces.desk.sessions import IDLE_S, OF_USER_MAX, Sessions
from eir.wire.web.http1 import HttpRequest


class Clock:
    """Monotonic clock that a test sets."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_a_session_ends_after_15_idle_minutes_and_each_request_begins_them_again(clock):
    opened = Sessions(clock)
    cookie = opened.open("anna", b"salt")
    for _ in range(3):
        clock.now += IDLE_S
        assert opened.find(cookie).user == "anna"
    clock.now += IDLE_S + 1
    assert opened.find(cookie) is None
    clock.now = 0
    assert opened.find(cookie) is None, "an ended session does not come back"


def test_the_session_that_was_idle_longest_makes_room_for_a_further_one(clock, monkeypatch):
    monkeypatch.setattr(sessions, "SESSIONS_MAX", OF_USER_MAX + 1)
    opened, cookies = Sessions(clock), []
    bert = opened.open("bert", b"salt")
    for _ in range(OF_USER_MAX):
        clock.now += 1
        cookies.append(opened.open("anna", b"salt"))
    clock.now += 1
    assert opened.find(cookies[0]), "used again"
    cookies.append(opened.open("anna", b"salt"))
    assert opened.find(cookies[1]) is None, "one user has at most OF_USER_MAX sessions"
    assert opened.find(cookies[0])
    assert opened.find(cookies[-1])
    clock.now += 1
    opened.find(bert)
    carl = opened.open("carl", b"salt")
    assert opened.find(cookies[2]) is None, "all users together have at most SESSIONS_MAX"
    assert opened.find(bert)
    assert opened.find(carl)


async def test_a_certificate_opens_a_session_whose_cookie_other_sites_cannot_use(clock):
    page = DeskPage(
        None, Sessions(clock), log_in=None, user_of=lambda name, _: ANNA._replace(name=name),
        certified=lambda request: {"anna.example": "anna"}.get("".join(request.names)),
    )  # fmt: skip

    async def get(names=(), **headers):
        return (await page.respond(HttpRequest("GET", "/desk", "", headers, names=names)))[0]

    shown = dict((await get(("other.example",))).headers)
    assert "Set-Cookie" not in shown
    assert shown["Referrer-Policy"] == "same-origin"
    assert "default-src 'none'" in shown["Content-Security-Policy"]
    redirect = await get(names=("anna.example",))
    cookie, *attributes = dict(redirect.headers)["Set-Cookie"].split("; ")
    assert (redirect.status, attributes) == (303, ["Path=/", "Secure", "HttpOnly", "SameSite=Strict"])
    assert cookie.startswith(f"{COOKIE}=")
    assert b"Log out anna" in (await get(cookie=cookie)).body
    clock.now += IDLE_S + 1
    assert b"Password" in (await get(cookie=cookie)).body


def read(body, content_type="multipart/form-data; boundary=B"):
    return _read_form(HttpRequest("POST", "/desk/login", "", {"content-type": content_type}, "192.0.2.1", body))


def part(text, content):
    return b"--B\r\nContent-Disposition: form-data; %b\r\n\r\n%b\r\n" % (text.encode(), content)


def test_a_form_has_its_fields_and_its_file_as_the_browser_sent_them():
    content = b"imei\r\n\r\n--x\r\n \xff\x00"
    body = part('name="reason"', "für".encode()) + part('name="file"; filename="ö \'.csv"', content) + b"--B--\r\n"
    for boundary, text in ((b"B", "boundary=B"), (b"C=?", 'charset=utf-8; boundary="C=?"')):
        form = read(body.replace(b"--B", b"--" + boundary), f"multipart/form-data; {text}")
        assert form == ({"reason": "für"}, ("ö '.csv", content))


def test_parts_in_parts_are_content():
    """The form of the log-in is read before its sender is known: no form may take seconds."""
    nested = b"".join(
        b"--N%d\r\nContent-Type: multipart/mixed; boundary=N%d\r\n\r\n" % (at, at + 1) for at in range(2000)
    )
    assert read(part('name="user"', nested) + b"--B--\r\n")[0] == {"user": nested.decode()}
    assert read(nested, "multipart/form-data; boundary=N0") == ({}, ("", b""))


def test_further_fields_are_ignored_and_a_form_without_a_boundary_is_refused():
    assert len(read(b"".join(part(f'name="{at}"', b"") for at in range(1000)))[0]) == FIELDS_MAX
    for content_type in ("multipart/form-data", "multipart/form-data; boundary="):
        with pytest.raises(RequestRefused, match="cannot be read"):
            read(part('name="user"', b"anna"), content_type)

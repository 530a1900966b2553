"""Page `/desk`: log in, search a device, change rows of local lists, undo a change, add a file of rows.

Pages are templates in the folder `pages`, without scripts. Each form has the token of its session, and must come from the page's own origin. A
search is a POST, so that no address in the history of a browser names a device.
"""

import base64
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qs

from eir.interfaces.clients import RequestRefused
from eir.interfaces.desk.operations import (
    DeskOperations,
    DeskUser,
    Precondition,
    RowValues,
    is_by,
)
from eir.interfaces.desk.sessions import Session, Sessions
from eir.templates import page_templates
from eir.wire.web.http1 import HttpRequest, HttpResponse

COOKIE: Final = "__Host-eir-desk"
FIELDS_MAX: Final = 20
BOUNDARY: Final = re.compile(r"""boundary="?([\w'()+,./:=?-]{1,70})""", re.ASCII)
PART_NAME: Final = re.compile(rb';\s*(name|filename)="([^"]*)"')
HTML: Final = "text/html; charset=utf-8"
HEADERS: Final = (
    ("Content-Security-Policy", "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"),
    ("Referrer-Policy", "same-origin"), ("X-Content-Type-Options", "nosniff"), ("Cache-Control", "no-store"),
)  # fmt: skip
"""Headers of each response of the page."""
CHANGES_SHOWN = 50
ROOT = "/desk"


class Visit(NamedTuple):
    """Request of a user who has logged in."""

    user: DeskUser
    session: Session
    form: Mapping[str, str]
    """Fields of the form; empty for a GET."""
    file: tuple[str, bytes]
    """Name and content of an uploaded file."""


Handler = Callable[[Visit], Awaitable[HttpResponse]]


class DeskPage:
    """Handler of the requests below `/desk`.

    Args:
        operations: operations of the desk.
        sessions: sessions of users.
        log_in: authenticates a request with an Authorization header, and returns the name of the user; it raises RequestRefused.
        user_of: returns the user of a request by name; it raises RequestRefused if the user has no rights any more.
        certified: returns the user whom a client certificate identifies; None without one.
    """

    def __init__(
        self, operations: DeskOperations, sessions: Sessions, *, log_in: Callable[[HttpRequest], Awaitable[str]],
        user_of: Callable[[str, HttpRequest], DeskUser], certified: Callable[[HttpRequest], str | None],
    ) -> None:  # fmt: skip
        self._operations, self._sessions = operations, sessions
        self._log_in, self._user_of, self._certified = log_in, user_of, certified
        self._templates = page_templates(__file__)
        self._templates.filters.update(desk_check=_check_cells, desk_change=_change_cells, desk_list=_list_cells)
        self._style = self._templates.get_template("pages/style.css").render().encode()
        self._handlers: Mapping[tuple[str, str], Handler] = {
            ("GET", ""): self._start, ("POST", "/search"): self._search, ("GET", "/lists"): self._lists, ("POST", "/add"): self._add,
            ("POST", "/remove"): self._remove, ("GET", "/changes"): self._changes, ("POST", "/undo"): self._undo, ("POST", "/file"): self._preview,
            ("POST", "/file/add"): self._add_file,
        }  # fmt: skip

    async def respond(self, request: HttpRequest) -> tuple[HttpResponse, str]:
        """Return the response to a request, and the name of its user; the name is empty before the log-in.

        Raises:
            RequestRefused: if the request is refused.
            RequestRefused: if the log-in fails.
            StoreError: if a list cannot be read or written.
        """
        path = request.path.removeprefix(ROOT).rstrip("/")
        if (request.method, path) == ("GET", "/style.css"):
            return HttpResponse(200, "text/css; charset=utf-8", self._style, HEADERS), ""
        if request.method == "POST" and not _is_same_origin(request):
            raise RequestRefused(403, "origin", "this form was sent by another site")
        session = self._sessions.find(_cookie(request))
        if session is None or (request.method, path) == ("POST", "/login"):
            return await self._before_log_in(request, path)
        return await self._in_session(request, path, session)

    async def _before_log_in(self, request: HttpRequest, path: str) -> tuple[HttpResponse, str]:
        """Log a user in by a form or a certificate; show the form for any other request."""
        if (request.method, path) == ("POST", "/login"):
            form, _ = _read_form(request)
            credentials = base64.b64encode(f"{form.get('user', '')}:{form.get('password', '')}".encode()).decode()
            name = await self._log_in(request._replace(headers={"authorization": f"Basic {credentials}"}))
        else:
            certified = self._certified(request)
            if certified is None:
                return (_redirect("") if path else self.show(200, "login")), ""
            name = certified
        user = self._user_of(name, request)
        return _redirect("", cookie=self._sessions.open(user.name, user.salt)), user.name

    async def _in_session(self, request: HttpRequest, path: str, session: Session) -> tuple[HttpResponse, str]:
        """Respond to a request of a user who has logged in."""
        form, file = _read_form(request) if request.method == "POST" else ({}, ("", b""))
        if request.method == "POST" and not session.has_sent(form.get("token", "")):
            raise RequestRefused(403, "token", "this form is not of your session; open the page again")
        user = self._user_of(session.user, request)
        is_log_out = (request.method, path) == ("POST", "/logout")
        if is_log_out or user.salt != session.salt:  # another password ends the session
            self._sessions.end(_cookie(request))
            return _redirect("", cookie=""), user.name
        handler = self._handlers.get((request.method, path))
        if handler is None:
            raise RequestRefused(404, "path", "there is no such page")
        return await handler(Visit(user, session, form, file)), user.name

    def action(self, path: str) -> str:
        """Return the last part of a page's path for metrics: `other` for a path that no page has, `start` for the first page."""
        action = path.removeprefix(ROOT).rstrip("/")
        known = {each for _, each in self._handlers} | {"/style.css", "/login", "/logout"}
        return action.strip("/") or "start" if action in known else "other"

    def show(self, status: int, page: str, **values: Any) -> HttpResponse:
        """Render a page. `values`: names of its template."""
        values = {"user": None, "message": "", "token": "", **values}
        text = self._templates.get_template(f"pages/{page}.html").render(values)
        return HttpResponse(status, HTML, text.encode(), HEADERS, authenticated=values["user"] is not None)

    def show_error(self, request: HttpRequest, status: int, text: str) -> HttpResponse:
        """Render the page of a refused request, with the user's menu if the session goes on."""
        session = self._sessions.find(_cookie(request))
        if session is None:
            return self.show(status, "login", message=text)
        return self.show(status, "error", user=session.user, token=session.token, text=text)

    # Pages

    def _page(self, visit: Visit, page: str, **values: Any) -> HttpResponse:
        message, visit.session.message = visit.session.message, ""
        return self.show(200, page, user=visit.user.name, token=visit.session.token, message=message, **values)

    async def _start(self, visit: Visit) -> HttpResponse:
        return self._page(visit, "search", imei="", imsi="", found=None, lists=())

    async def _search(self, visit: Visit) -> HttpResponse:
        imei, imsi = (visit.form.get(name, "").strip() for name in ("imei", "imsi"))
        if not imei and not imsi:
            raise RequestRefused(422, "identifier", "enter an IMEI, an IMSI or a number")
        found = await self._operations.find(visit.user, imei, imsi)
        listed = {row["list"] for row in found["rows"] if row["id"][:14] == imei[:14]}
        lists = [
            each for each in await self._changeable(visit) if each["name"] not in listed and each["kind"] == "devices"
        ]
        return self._page(visit, "search", imei=imei, imsi=imsi, found=found, lists=lists if imei else ())

    async def _changeable(self, visit: Visit) -> list[dict[str, Any]]:
        return [each for each in await self._operations.lists(visit.user) if each["changeable"]]

    async def _lists(self, visit: Visit) -> HttpResponse:
        lists = await self._operations.lists(visit.user)
        return self._page(visit, "lists", lists=lists, changeable=[each for each in lists if each["changeable"]])

    async def _add(self, visit: Visit) -> HttpResponse:
        name, identifier = visit.form.get("list", ""), visit.form.get("id", "").strip()
        written = await self._operations.write_row(visit.user, name, identifier, _values(visit.form))
        state = "is in" if written.changed else "was already in"
        return self._done(visit, f"{identifier} {state} the list {name}.")

    async def _remove(self, visit: Visit) -> HttpResponse:
        name, identifier, tag = (visit.form.get(each, "") for each in ("list", "id", "tag"))
        written = await self._operations.remove_row(
            visit.user, name, identifier, _values(visit.form), expected=Precondition(tag)
        )
        state = "is no longer" if written.changed else "was not"
        return self._done(visit, f"{identifier} {state} in the list {name}.")

    async def _changes(self, visit: Visit) -> HttpResponse:
        changes = (await self._operations.changes(limit=CHANGES_SHOWN))[::-1]
        for each in changes:
            each["undoable"] = is_by(each["who"], visit.user) and visit.user.may_change(each["list"])
        return self._page(visit, "changes", changes=changes)

    async def _undo(self, visit: Visit) -> HttpResponse:
        name, number = visit.form.get("list", ""), visit.form.get("change", "")
        if not number.isdecimal() or len(number) > 9:
            raise RequestRefused(422, "change", "expected the number of a change")
        await self._operations.undo(visit.user, name, int(number))
        return self._done(visit, f"Change {number} of the list {name} is undone.")

    async def _preview(self, visit: Visit) -> HttpResponse:
        name, values = visit.form.get("list", ""), _values(visit.form)
        file, content = visit.session.file = visit.file
        found = self._operations.parse_file(visit.user, name, content, file or "rows.csv")
        report = await self._operations.add_file(visit.user, name, found, values, dry_run=True)
        return self._page(
            visit,
            "preview",
            list=name,
            values=values._asdict(),
            text=report.as_text(),
            warnings=found.warnings,
            file=found.name,
            sha256=found.sha256,
        )

    async def _add_file(self, visit: Visit) -> HttpResponse:
        name, (file, content) = visit.form.get("list", ""), visit.session.file
        found = self._operations.parse_file(visit.user, name, content, file or "rows.csv")
        if found.sha256 != visit.form.get("sha256"):
            raise RequestRefused(409, "file", "another file was uploaded after this preview; upload the file again")
        report = await self._operations.add_file(visit.user, name, found, _values(visit.form), dry_run=False)
        visit.session.file = "", b""
        return self._done(visit, f"{report.as_text()}.")

    def _done(self, visit: Visit, message: str) -> HttpResponse:
        visit.session.message = message
        return _redirect("/changes")


def _check_cells(row: Mapping[str, Any]) -> list[Any]:
    """Return the cells of a check in the table of a search."""
    return [row[name] for name in ("first", "last", "checks", "status", "origin_host", "subscriber")]


def _change_cells(row: Mapping[str, Any]) -> list[Any]:
    return [row[name] for name in ("time", "list", "what", "who", "detail")]


def _list_cells(row: Mapping[str, Any]) -> list[Any]:
    return [row["name"], row["kind"], row["entries"], row["serial"], "yes" if row["changeable"] else "no"]


def _values(form: Mapping[str, str]) -> RowValues:
    return RowValues(*(form.get(name, "").strip() for name in RowValues._fields))


def _redirect(path: str, *, cookie: str | None = None) -> HttpResponse:
    """Return a redirect to another page. `cookie`: value of a new session; empty to delete the cookie; None to leave it."""
    headers = [*HEADERS, ("Location", f"{ROOT}{path}")]
    if cookie is not None:
        ends = "" if cookie else "; Max-Age=0"
        headers.append(("Set-Cookie", f"{COOKIE}={cookie}; Path=/; Secure; HttpOnly; SameSite=Strict{ends}"))
    return HttpResponse(303, HTML, b"", headers, authenticated=bool(cookie))


def _cookie(request: HttpRequest) -> str:
    """Return the value of the session's cookie; empty without one."""
    for part in request.headers.get("cookie", "").split(";"):
        name, _, value = part.strip().partition("=")
        if name == COOKIE:
            return value
    return ""


def _is_same_origin(request: HttpRequest) -> bool:
    """Return True if a form was sent by this page: browsers send the header Origin with each POST."""
    origin, host = request.headers.get("origin", ""), request.headers.get("host", "")
    return bool(host) and origin.partition("://")[2].lower() == host.lower()


def _read_form(request: HttpRequest) -> tuple[dict[str, str], tuple[str, bytes]]:
    """Parse the fields of a form and its file. Raises RequestRefused (400)."""
    content_type = request.headers.get("content-type", "")
    if content_type.startswith("multipart/form-data"):
        return _read_multipart(content_type, request.body)
    try:
        fields = parse_qs(request.body.decode(), keep_blank_values=True, max_num_fields=FIELDS_MAX)
    except ValueError:
        raise RequestRefused(400, "form", "the form cannot be read") from None
    return {name: values[0] for name, values in fields.items()}, ("", b"")


def _read_multipart(content_type: str, body: bytes) -> tuple[dict[str, str], tuple[str, bytes]]:
    """Parse a form with a file as browsers send it (RFC 7578). The time is linear, because parts within a part are content."""
    boundary = BOUNDARY.search(content_type)
    if boundary is None:
        raise RequestRefused(400, "form", "the form cannot be read")
    fields, file = dict[str, str](), ("", b"")
    for part in (b"\r\n" + body).split(f"\r\n--{boundary[1]}".encode(), FIELDS_MAX)[1:]:
        head, _, content = part.partition(b"\r\n\r\n")
        names = {name: value.decode("utf-8", "replace") for name, value in PART_NAME.findall(head)}
        if b"filename" in names:
            file = names[b"filename"], content
        elif b"name" in names:
            fields[names[b"name"]] = content.decode("utf-8", "replace")
    return fields, file

"""JSON of the desk below `/v1/` for programs: lists, entries, devices, changes. `openapi.json` is its document.

The service authenticates a request by password, token or certificate; cookies do not count. Errors are problem details (RFC 9457).
"""

import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, unquote

from eir.interfaces.clients import RequestRefused
from eir.interfaces.desk.operations import DeskOperations, DeskUser, Precondition, RowValues, tag_of
from eir.lists.rows.layout import until_seconds
from eir.wire.peers.rate import Buckets
from eir.wire.web.http1 import HttpRequest, HttpResponse

API_ROOT: Final = "/v1/"
DOCUMENT_PATH: Final = f"{API_ROOT}openapi.json"
JSON: Final = "application/json"
RATE_MAX, BURST = 20.0, 100.0
"""Requests of one user: maximum per second, and maximum number at once."""
VALUES: Final = frozenset(RowValues._fields)
HEADERS: Final = (("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff"))
DOCUMENT: Final = HttpResponse(200, JSON, Path(__file__).with_name("openapi.json").read_bytes(), HEADERS)
"""Response with the OpenAPI document."""

Handle = Callable[..., Awaitable[HttpResponse]]
"""Function that answers a request. Its arguments are the user, the request and the parameters in the path."""


def is_public(request: HttpRequest) -> bool:
    """Return True for a request for the OpenAPI document, which needs no user."""
    return request.path == DOCUMENT_PATH and request.method in {"GET", "HEAD"}


def problem(status: int, reason: str, detail: str, headers: Sequence[tuple[str, str]] = ()) -> HttpResponse:
    """Return the problem details of an error (RFC 9457). `reason`: word for programs."""
    fields = {"title": HTTPStatus(status).phrase, "status": status, "reason": reason, "detail": detail}
    return HttpResponse(status, "application/problem+json", json.dumps(fields).encode(), (*headers, *HEADERS))


class DeskApi:
    """Handler of the requests of authenticated users below `/v1/`."""

    def __init__(self, operations: DeskOperations) -> None:
        self._operations = operations
        self._rates = Buckets(RATE_MAX, BURST)
        self._paths: Mapping[tuple[str, ...], Mapping[str, Handle]] = {
            ("lists",): {"GET": self._lists},
            ("lists", "", "entries", ""): {"GET": self._entry, "PUT": self._write_entry, "DELETE": self._remove_entry},
            ("devices", ""): {"GET": self._device},
            ("changes",): {"GET": self._changes},
        }
        """Function of each path below `/v1/` and method. An empty word is a parameter."""

    async def respond(self, request: HttpRequest, user: DeskUser) -> HttpResponse:
        """Return the response to a request.

        Raises:
            RequestRefused: if the request is refused.
            EirError: as the functions of DeskOperations.
        """
        now = time.monotonic()
        if not self._rates.of(user.name, now).try_spend(now):
            raise RequestRefused(429, "rate", f"more than {RATE_MAX:g} requests a second; send the request again later")
        try:
            parts = [unquote(each, errors="strict") for each in request.path.removeprefix(API_ROOT).split("/")]
        except UnicodeDecodeError:
            raise RequestRefused(404, "path", "the path is not UTF-8") from None
        for path, handlers in self._paths.items():
            if len(path) == len(parts) and all(word in {"", part} for word, part in zip(path, parts, strict=True)):
                handle = handlers.get("GET" if request.method == "HEAD" else request.method)
                if handle is None:
                    allowed = ", ".join(handlers)
                    return problem(405, "method", f"expected {allowed}", [("Allow", allowed)])
                return await handle(user, request, *(part for word, part in zip(path, parts, strict=True) if not word))
        raise RequestRefused(404, "path", f"no such path; {DOCUMENT_PATH} has the paths")

    async def _lists(self, user: DeskUser, request: HttpRequest) -> HttpResponse:
        _query(request)
        return _json({"lists": await self._operations.lists(user)})

    async def _entry(self, _: DeskUser, request: HttpRequest, name: str, identifier: str) -> HttpResponse:
        _query(request)
        return _row(await self._operations.row(name, identifier))

    async def _write_entry(self, user: DeskUser, request: HttpRequest, name: str, identifier: str) -> HttpResponse:
        _query(request)
        values, expected = _values(_object(request)), _precondition(request)
        written = await self._operations.write_row(user, name, identifier, values, expected=expected)
        return _row(written.row or {}, 201 if written.created else 200)

    async def _remove_entry(self, user: DeskUser, request: HttpRequest, name: str, identifier: str) -> HttpResponse:
        values, expected = _values(_query(request, "reason", "case")), _precondition(request)
        await self._operations.remove_row(user, name, identifier, values, expected=expected)
        return HttpResponse(204, JSON, b"", HEADERS, authenticated=True)

    async def _device(self, user: DeskUser, request: HttpRequest, imei: str) -> HttpResponse:
        _query(request)
        found = await self._operations.find(user, imei)
        return _json({key: value for key, value in found.items() if key != "imsi"})

    async def _changes(self, _: DeskUser, request: HttpRequest) -> HttpResponse:
        since = _query(request, "since").get("since")
        try:
            is_time = since is None or until_seconds(since, "YYYY-MM-DDThh:mm:ssZ")
        except ValueError:
            is_time = False
        if not is_time:
            raise RequestRefused(422, "time", f"{since}: expected a time such as 2026-12-02T08:00:00Z")
        return _json({"changes": await self._operations.changes(since=since or "")})


def _json(document: Any, status: int = 200, headers: Sequence[tuple[str, str]] = ()) -> HttpResponse:
    return HttpResponse(status, JSON, json.dumps(document).encode(), (*headers, *HEADERS), authenticated=True)


def _row(row: Mapping[str, str], status: int = 200) -> HttpResponse:
    return _json(row, status, [("ETag", f'"{tag_of(row)}"')])


def _query(request: HttpRequest, *known: str) -> dict[str, str]:
    """Return the parameters in the query of a request. Raises RequestRefused (400) for an unknown or a repeated parameter."""
    try:
        pairs = (
            parse_qsl(request.query, keep_blank_values=True, strict_parsing=True, errors="strict")
            if request.query
            else []
        )
    except ValueError:
        raise RequestRefused(400, "query", "expected NAME=VALUE&NAME=VALUE") from None
    given = dict(pairs)
    if len(given) < len(pairs) or not given.keys() <= {*known}:
        raise RequestRefused(400, "query", f"expected {', '.join(known) or 'no parameter'}, each at most once")
    return given


def _object(request: HttpRequest) -> dict[str, Any]:
    """Return the JSON object in the body of a request. Raises RequestRefused."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != JSON:
        raise RequestRefused(415, "media", f"expected a body of type {JSON}")
    try:
        document = json.loads(request.body)
    except (ValueError, RecursionError):
        raise RequestRefused(400, "json", "the body is not JSON") from None
    if not isinstance(document, dict) or not all(isinstance(value, str) for value in document.values()):
        raise RequestRefused(422, "values", "expected a JSON object whose values are texts")
    return document


def _values(given: Mapping[str, str]) -> RowValues:
    """Return the values of a row. Raises RequestRefused (422)."""
    if not given.keys() <= VALUES or "reason" not in given:
        raise RequestRefused(422, "values", f"expected reason, and no other fields than {', '.join(sorted(VALUES))}")
    return RowValues(**given)


def _precondition(request: HttpRequest) -> Precondition:
    """Return the precondition in the headers of a request (RFC 9110 13.1). Raises RequestRefused (400)."""
    tag, absent = (request.headers.get(name) for name in ("if-match", "if-none-match"))
    if absent not in {None, "*"} or (tag and absent):
        raise RequestRefused(400, "precondition", "expected If-None-Match: *, without If-Match")
    if tag is not None and (len(tag) < 3 or tag[0] != '"' or tag.find('"', 1) != len(tag) - 1):
        raise RequestRefused(400, "precondition", 'expected If-Match: "TAG", with one entity tag of a response')
    return Precondition("" if tag is None else tag[1:-1], is_absent=absent is not None)

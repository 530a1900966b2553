"""Feed: answers the HTTP requests of a national register. Each request adds one entry to a local list, or removes one.

The register authenticates with a password over TLS, or with an access token.
"""

import asyncio
from collections import Counter
from typing import Final

from eir.device import device_key, imsi_key
from eir.errors import Report
from eir.interfaces.clients import NOBODY, Clients, RequestRefused
from eir.interfaces.feed.feed_rows import FeedRow, read_row
from eir.interfaces.feed.feed_writer import FeedWriter
from eir.interfaces.feed.settings import TAC_ROLES, FeedSettings
from eir.lists.changes.local_entries import Entry
from eir.lists.record.settings import DEVICES, PAIRS, SUBSCRIBERS
from eir.lists.rows.layout import tac_key
from eir.wire.web.http1 import HttpRequest, HttpResponse
from eir.wire.web.http1_server import Answer

TEXT: Final = "text/plain; charset=utf-8"
_DONE: Final = {
    status: HttpResponse(status, TEXT, text, authenticated=True)
    for status, text in ((201, b"added\n"), (202, b"removed\n"), (204, b""), (208, b"there already\n"))
}


class Feed:
    """Handler of a national register's HTTP requests: authenticates the sender, and adds a row to a local list or removes it.

    `host`: name of this node for the history.
    """

    def __init__(
        self, settings: FeedSettings, clients: Clients, writer: FeedWriter, *, host: str, report: Report
    ) -> None:
        self._clients, self._writer, self._host, self._report = clients, writer, host, report
        self.answers: Counter[tuple[str, str, str]] = Counter()
        """Number of answers by (user, word of the path, status)."""
        self.apply(settings)

    def apply(self, settings: FeedSettings) -> None:
        """Apply new settings: the local lists for each role. A role is a word in the path of a request, such as `allowed-tac`."""
        self._lists = {role: names for role, names in settings.lists.by_role.items() if names}
        self._roles = frozenset(self._lists)

    def respond(self, request: HttpRequest) -> Answer:
        """Return the answer to a request, at once or as an awaitable."""
        user = self._clients.known_user(request)
        return self._admitted(request) if user is None else self._answered(request, user)

    async def _admitted(self, request: HttpRequest) -> HttpResponse:
        """Authenticate the sender of a request by password or token, and return the HTTP answer to the request."""
        try:
            user = await self._clients.user(request)
        except RequestRefused as e:
            return self._refused(request, e, NOBODY)
        answer = self._answered(request, user)
        return answer if isinstance(answer, HttpResponse) else await answer

    def _answered(self, request: HttpRequest, user: str) -> Answer:
        future: asyncio.Future[HttpResponse] = asyncio.get_running_loop().create_future()

        def done(outcome: int | RequestRefused) -> None:
            if isinstance(outcome, RequestRefused):
                response = self._refused(request, outcome, user)
            else:
                self.answers[self._clients.label(user), row.role, str(outcome)] += 1
                response = _DONE[outcome]
            if not future.done():  # the client may have disconnected
                future.set_result(response)

        try:
            row = read_row(request.method, request.path, self._roles)
            name, entry = self._entry(row)
            who = f"{user} at {request.address} by the feed of {self._host}"
            self._writer.add(
                row.what, entry, name=name, who=who, reason=f"fed by {user}", done=done, day=row.day, begin=row.begin
            )
        except RequestRefused as e:
            return self._refused(request, e, user)
        return future

    def _entry(self, row: FeedRow) -> tuple[str, Entry]:
        """Return the name of the local list that a row changes, and the entry to add or remove. Raises RequestRefused."""
        imsi = row.imsi
        if row.msisdn and not imsi:
            known = self._clients.numbers.imsi(row.msisdn)
            if known is None and not self._clients.has_all_numbers:
                raise RequestRefused(503, "number", "the table of numbers cannot be read; send the row again later")
            if known is None:
                raise RequestRefused(422, "number", "the IMSI of this MSISDN is unknown; send the IMSI")
            imsi = known
        kind = PAIRS if row.device and imsi else SUBSCRIBERS if imsi else DEVICES
        name = next(
            (
                each
                for each in self._lists[row.role]
                if each in self._writer.local.lists and self._writer.local.lists[each].kind == kind
            ),
            None,
        )
        if name is None:
            raise RequestRefused(422, "no_list", f"no list of {kind} is configured for {row.role}")
        if kind == SUBSCRIBERS:
            return name, Entry(imsi, imsi_key(imsi))
        if row.role in TAC_ROLES:
            return name, Entry(row.device, tac_key(row.device), whole_tac=True)
        return name, Entry(f"{row.device}+{imsi}", device_key(row.device), imsi_key(imsi)) if imsi else Entry(
            row.device, device_key(row.device)
        )

    def _refused(self, request: HttpRequest, why: RequestRefused, user: str) -> HttpResponse:
        role = request.path.removeprefix("/").split("/")[1:2]
        word = role[0] if role and role[0] in self._roles else "other"
        self.answers[self._clients.label(user), word, str(why.status)] += 1
        self._report(
            "feed_refused", reason=why.reason, level="warning", user=user, address=request.address, status=why.status, detail=why.detail,
            setting="feed.lists" if why.reason in {"no_list", "path"} else "numbers" if why.reason == "number" else None,
        )  # fmt: skip
        headers = self._clients.refusal_headers(why)
        if why.status == 405:
            headers.append(("Allow", "POST, DELETE"))
        text = f"{why.reason}: {why.detail}\n".encode()
        return HttpResponse(why.status, TEXT, text, headers, authenticated=user != NOBODY)


def no_request(status: int) -> HttpResponse:
    """Return the error response to bytes that are not an HTTP request."""
    return HttpResponse(status or 400, TEXT, b"no_http: this is no request\n")

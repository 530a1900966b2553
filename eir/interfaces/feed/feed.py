"""Feed: answers the HTTP requests of a national register. Each request adds one entry to a local list, or removes one.

The register authenticates with a password over TLS, or with an access token.
"""

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Final

from eir.device import device_key, imsi_key
from eir.errors import Report
from eir.interfaces.feed.feed_rows import FeedRow, RowRefused, read_row
from eir.interfaces.feed.feed_users import TOO_MANY, Users
from eir.interfaces.feed.feed_writer import FeedWriter
from eir.interfaces.feed.settings import FEED_SCOPE, TAC_ROLES, FeedSettings
from eir.lists.changes.local_entries import Entry
from eir.lists.record.settings import DEVICES, PAIRS, SUBSCRIBERS
from eir.lists.rows.layout import tac_key
from eir.lists.rows.msisdn import NO_NUMBERS, Numbers
from eir.wire.web.denials import TOO_MANY_REQUESTS, denials
from eir.wire.web.http1 import HttpRequest, HttpResponse
from eir.wire.web.http1_server import Answer

if TYPE_CHECKING:
    from eir.wire.web.tokens import Tokens

TEXT: Final = "text/plain; charset=utf-8"
NOBODY: Final = "-"
"""User in the log and metrics for a request that was refused before authentication."""
TOKEN_USERS_MAX: Final = 100
"""Maximum number of token holders with a label of their own in metrics; further ones are `other`."""
FILES: Final = "files"
"""Reason for refusing every request: neither the users nor the keys of tokens could be read."""
RETRY_AFTER_S: Final = 5
STATUSES: Final = {"no_password": 401, "wrong_password": 401, TOO_MANY: TOO_MANY_REQUESTS}
CHALLENGE: Final = ("WWW-Authenticate", f'Basic realm="{FEED_SCOPE}", charset="UTF-8"')
SAID: Final = {
    "no_password": "a user and a password are needed", "wrong_password": "the user or the password is wrong",
    TOO_MANY: "too many wrong passwords from this address",
}  # fmt: skip
_DONE: Final = {
    status: HttpResponse(status, TEXT, text, authenticated=True)
    for status, text in ((201, b"added\n"), (202, b"removed\n"), (204, b""), (208, b"there already\n"))
}


class Feed:
    """Handler of a national register's HTTP requests: authenticates the sender, and adds a row to a local list or removes it.

    `host`: name of this node for the history. Users, tokens and numbers are set later, when their files have been read.
    """

    def __init__(self, settings: FeedSettings, writer: FeedWriter, *, host: str, report: Report) -> None:
        self.users: Users | None = None
        self.tokens: Tokens | None = None
        self.numbers: Numbers = NO_NUMBERS
        self.has_all_numbers = True
        """False while the table of numbers is unreadable: an unknown number may be in it."""
        self._writer, self._host, self._report = writer, host, report
        self.answers: Counter[tuple[str, str, str]] = Counter()
        """Number of answers by (user, word of the path, status)."""
        self.apply(settings)
        self._token_users: set[str] = set()

    def apply_tokens(self, tokens: "Tokens | None") -> None:
        """Replace the verifier of access tokens. Without a verifier, the feed accepts no access tokens."""
        self.tokens = tokens

    def apply_users(self, users: Users | None) -> None:
        """Replace the table of users who log in with a password. Without a table, the feed accepts no passwords."""
        self.users = users

    def apply_numbers(self, numbers: Numbers, *, has_all: bool) -> None:
        """Replace the table of phone numbers (MSISDN) and their IMSIs.

        `has_all`: False if the newest table cannot be read.
        """
        self.numbers, self.has_all_numbers = numbers, has_all

    def apply(self, settings: FeedSettings) -> None:
        """Apply new settings: the local lists for each role. A role is a word in the path of a request, such as `allowed-tac`."""
        self._lists = {role: names for role, names in settings.lists.by_role.items() if names}
        self._roles = frozenset(self._lists)

    def respond(self, request: HttpRequest) -> Answer:
        """Return the answer to a request, at once or as an awaitable."""
        authorization = request.headers.get("authorization", "")
        if self.users is not None and (user := self.users.known(authorization, request.address)) is not None:
            return self._answered(request, user)
        return self._admitted(request, authorization)

    async def _admitted(self, request: HttpRequest, authorization: str) -> HttpResponse:
        """Authenticate the sender of a request by password or token, and return the HTTP answer to the request."""
        try:
            user = await self._user(authorization, request.address)
        except RowRefused as e:
            return self._refused(request, e, NOBODY)
        answer = self._answered(request, user)
        return answer if isinstance(answer, HttpResponse) else await answer

    async def _user(self, authorization: str, address: str) -> str:
        scheme = authorization.partition(" ")[0].lower()
        if self.tokens is not None and (scheme == "bearer" or self.users is None):
            subject = self.tokens.subject(authorization.encode("latin-1", "replace") or None, address)
            if isinstance(subject, str):
                return subject
            raise RowRefused(subject.status, subject.reason, subject.detail)
        if self.users is None:
            raise RowRefused(503, FILES, "the file of users cannot be read; send the row again later")
        user, wrong = await self.users.user(authorization, address)
        if wrong:
            raise RowRefused(STATUSES[wrong], wrong, SAID[wrong])
        return user

    def _answered(self, request: HttpRequest, user: str) -> Answer:
        future: asyncio.Future[HttpResponse] = asyncio.get_running_loop().create_future()

        def done(outcome: int | RowRefused) -> None:
            if isinstance(outcome, RowRefused):
                response = self._refused(request, outcome, user)
            else:
                self.answers[self._label(user), row.role, str(outcome)] += 1
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
        except RowRefused as e:
            return self._refused(request, e, user)
        return future

    def _entry(self, row: FeedRow) -> tuple[str, Entry]:
        """Return the name of the local list that a row changes, and the entry to add or remove. Raises RowRefused."""
        imsi = row.imsi
        if row.msisdn and not imsi:
            known = self.numbers.imsi(row.msisdn)
            if known is None and not self.has_all_numbers:
                raise RowRefused(503, "number", "the table of numbers cannot be read; send the row again later")
            if known is None:
                raise RowRefused(422, "number", "the IMSI of this MSISDN is unknown; send the IMSI")
            imsi = known
        kind = PAIRS if row.device and imsi else SUBSCRIBERS if imsi else DEVICES
        name = next(
            (
                each
                for each in self._lists[row.role]
                if each in self._writer.lists and self._writer.lists[each].kind == kind
            ),
            None,
        )
        if name is None:
            raise RowRefused(422, "no_list", f"no list of {kind} is configured for {row.role}")
        if kind == SUBSCRIBERS:
            return name, Entry(imsi, imsi_key(imsi))
        if row.role in TAC_ROLES:
            return name, Entry(row.device, tac_key(row.device), whole_tac=True)
        return name, Entry(f"{row.device}+{imsi}", device_key(row.device), imsi_key(imsi)) if imsi else Entry(
            row.device, device_key(row.device)
        )

    def _refused(self, request: HttpRequest, why: RowRefused, user: str) -> HttpResponse:
        role = request.path.removeprefix("/").split("/")[1:2]
        word = role[0] if role and role[0] in self._roles else "other"
        self.answers[self._label(user), word, str(why.status)] += 1
        self._report(
            "feed_refused", reason=why.reason, level="warning", user=user, address=request.address, status=why.status, detail=why.detail,
            setting="feed.lists" if why.reason in {"no_list", "path"} else "numbers" if why.reason == "number" else None,
        )  # fmt: skip
        headers: list[tuple[str, str]] = []
        if why.status == 401:
            if self.users is not None:
                headers.append(CHALLENGE)
            if self.tokens is not None:
                headers.append(
                    (
                        "WWW-Authenticate",
                        denials(FEED_SCOPE)[why.reason if why.reason in denials(FEED_SCOPE) else "no_token"].challenge,
                    )
                )
        if why.status == 403:
            headers.append(("WWW-Authenticate", denials(FEED_SCOPE)["scope"].challenge))
        if why.status == 405:
            headers.append(("Allow", "POST, DELETE"))
        if why.status in {503, TOO_MANY_REQUESTS}:
            headers.append(("Retry-After", str(RETRY_AFTER_S)))
        text = f"{why.reason}: {why.detail}\n".encode()
        return HttpResponse(why.status, TEXT, text, headers, authenticated=user != NOBODY)

    def _label(self, user: str) -> str:
        """Return the label of a user in metrics. Above TOKEN_USERS_MAX token holders, the label is `other`."""
        if user == NOBODY or (self.users is not None and self.users.has(user)):
            return user
        if user in self._token_users or len(self._token_users) < TOKEN_USERS_MAX:
            self._token_users.add(user)
            return user
        return "other"


def no_request(status: int) -> HttpResponse:
    """Return the error response to bytes that are not an HTTP request."""
    return HttpResponse(status or 400, TEXT, b"no_http: this is no request\n")

"""Clients of an HTTP interface that changes lists: they log in with a password or an access token.

The owner calls `read_files` regularly, so that changed files of users, token keys and phone numbers apply.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from eir.disk import WatchedFile
from eir.errors import EirError, Report
from eir.lists.rows.msisdn import NO_NUMBERS, Numbers, read_numbers
from eir.wire.web.denials import TOO_MANY_REQUESTS, denials
from eir.wire.web.http1 import HttpRequest
from eir.wire.web.passwords import FEED_USER, TOO_MANY, Users, read_users
from eir.wire.web.verifier import keys_of, tokens_of

if TYPE_CHECKING:
    from eir.interfaces.interface import SharedSettings
    from eir.wire.web.tokens import KeyFiles, Tokens

NOBODY: Final = "-"
"""User in the log and metrics for a request that was refused before authentication."""
TOKEN_USERS_MAX: Final = 100
"""Maximum number of token holders with a label of their own in metrics; further ones are `other`."""
FILES: Final = "files"
"""Reason for refusing every request: neither the users nor the keys of tokens could be read."""
RETRY_AFTER_S: Final = 5
USERS, TOKENS, NUMBERS = "users", "tokens", "numbers"
"""Names of the files in status and metrics."""
STATUSES: Final = {"no_password": 401, "wrong_password": 401, TOO_MANY: TOO_MANY_REQUESTS}
TEXTS: Final = {
    "no_password": "a user and a password are needed", "wrong_password": "the user or the password is wrong",
    TOO_MANY: "too many wrong passwords from this address",
}  # fmt: skip


class RequestRefused(Exception):
    """Rejection of a request: HTTP status, label for metrics and log, and text for the sender."""

    def __init__(self, status: int, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.status, self.reason, self.detail = status, reason, detail


class Clients:
    """Users, access tokens and phone numbers of one HTTP interface.

    Args:
        scope: required scope of an access token; also the realm of passwords.
        report: log of the process.
        command: command that prints the lines of the file of users.
    """

    def __init__(self, scope: str, *, report: Report, command: str = FEED_USER) -> None:
        self._scope, self._report, self._command = scope, report, command
        self.users: Users | None = None
        """Users who log in with a password; None: no passwords are accepted."""
        self.tokens: Tokens | None = None
        """Verifier of access tokens; None: no tokens are accepted."""
        self.numbers: Numbers = NO_NUMBERS
        """Phone numbers (MSISDN) and their IMSIs."""
        self.faults: Mapping[str, str] = {}
        """Faults of unusable files; their earlier content stays in use."""
        self._keys: KeyFiles | None = None
        self._token_users: set[str] = set()

    @property
    def has_all_numbers(self) -> bool:
        """False while the table of numbers is unreadable: an unknown number may be in it."""
        return NUMBERS not in self.faults

    def apply(self, settings: Any, shared: "SharedSettings") -> None:
        """Apply new settings (`users`, `tokens` of a section). The next call of `read_files` reads all configured files again."""
        self._watched = settings.tokens, WatchedFile(settings.users), WatchedFile(shared.numbers)
        self.faults = {}

    def read_files(self) -> Callable[[], None]:
        """Read those configured files that have changed. Return a function that applies their contents.

        A fault of one file does not affect the others. The returned function must run on the event loop.
        """
        tokens, users, numbers = watched = self._watched
        contents: dict[str, Any] = {}
        faults: dict[str, str] = {}

        def read(file: str, reading: Callable[[], Any]) -> None:
            try:
                contents[file] = reading()
            except EirError as e:
                faults[file] = str(e)

        read(TOKENS, lambda: keys_of(tokens, self._keys))
        for file, of, reader in (
            (USERS, users, partial(read_users, command=self._command)),
            (NUMBERS, numbers, read_numbers),
        ):
            if of.path is not None and of.changed():
                read(file, partial(reader, of.path))

        def use() -> None:
            if watched is self._watched:  # the settings are still the same
                self.faults = {file: why for file, why in self.faults.items() if file not in contents} | faults
                self._use(contents)

        return use

    def known_user(self, request: HttpRequest) -> str | None:
        """Return the user of a request whose password was verified before; None for any other request."""
        return self.users.known(request.headers.get("authorization", ""), request.address) if self.users else None

    async def user(self, request: HttpRequest) -> str:
        """Authenticate the sender of a request by password or token, and return the name of the user.

        Raises:
            RequestRefused: if the sender is not authenticated.
        """
        authorization = request.headers.get("authorization", "")
        scheme = authorization.partition(" ")[0].lower()
        if self.tokens is not None and (scheme == "bearer" or self.users is None):
            subject = self.tokens.subject(authorization.encode("latin-1", "replace") or None, request.address)
            if isinstance(subject, str):
                return subject
            raise RequestRefused(subject.status, subject.reason, subject.detail)
        if self.users is None:
            raise RequestRefused(503, FILES, "the file of users cannot be read; send the request again later")
        user, wrong = await self.users.user(authorization, request.address)
        if wrong:
            raise RequestRefused(STATUSES[wrong], wrong, TEXTS[wrong])
        return user

    def refusal_headers(self, why: RequestRefused) -> list[tuple[str, str]]:
        """Return the headers of the response to a refused request: how to authenticate, and when to send the request again."""
        headers, known = [], denials(self._scope)
        if why.status == 401 and self.users is not None:
            headers.append(("WWW-Authenticate", f'Basic realm="{self._scope}", charset="UTF-8"'))
        if why.status == 401 and self.tokens is not None:
            reason = why.reason if why.reason in known else "no_token"
            headers.append(("WWW-Authenticate", known[reason].challenge))
        if why.status == 403 and why.reason in known:
            headers.append(("WWW-Authenticate", known[why.reason].challenge))
        if why.status in {503, TOO_MANY_REQUESTS}:
            headers.append(("Retry-After", str(RETRY_AFTER_S)))
        return headers

    def label(self, user: str) -> str:
        """Return the label of a user in metrics. Above TOKEN_USERS_MAX token holders, the label is `other`."""
        if user == NOBODY or (self.users is not None and self.users.has(user)):
            return user
        if user in self._token_users or len(self._token_users) < TOKEN_USERS_MAX:
            self._token_users.add(user)
            return user
        return "other"

    def _use(self, contents: Mapping[str, Any]) -> None:
        """Apply the contents of changed files. `contents`: kind of the file → content."""
        _, users, numbers = self._watched
        if TOKENS in contents and (keys := contents[TOKENS]) != self._keys:
            self._keys = keys
            self.tokens = tokens_of(keys, self.tokens, self._scope)
        if users.path is None:
            self.users = None
        elif USERS in contents:
            self.users = self.users or Users(contents[USERS], ticks=time.monotonic)
            self.users.apply(contents[USERS])
        if numbers.path is None:
            self.numbers = NO_NUMBERS
        elif NUMBERS in contents:
            self.numbers = contents[NUMBERS]
            self._report("numbers_in_force", numbers=len(self.numbers.numbers), file=numbers.path)

"""Sessions of users at the page of the desk, in the memory of one node. A session belongs to this node and ends with its process."""

import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

IDLE_S = 900.0
"""Seconds without a request after which a session ends."""
SESSIONS_MAX, OF_USER_MAX = 1_000, 10
"""Maximum numbers of sessions, and of one user; a further one ends the one that was idle longest."""


@dataclass(slots=True)
class Session:
    """Session of a user who has logged in."""

    user: str
    salt: bytes
    """Salt of the password with which the user logged in."""
    used_at: float
    """Time of the last request."""
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    """Token of each form, which proves that a form comes from this page."""
    message: str = ""
    """Text that the next page shows."""
    file: tuple[str, bytes] = ("", b"")
    """Name and content of the file that was uploaded last, until its rows are added."""

    def has_sent(self, token: str) -> bool:
        """Return True if a form has the token of this session."""
        return hmac.compare_digest(self.token.encode(), token.encode())


class Sessions:
    """All sessions of a node by the value of their cookie. `ticks`: monotonic clock in seconds."""

    def __init__(self, ticks: Callable[[], float]) -> None:
        self._ticks = ticks
        self._sessions: dict[str, Session] = {}

    def open(self, user: str, salt: bytes) -> str:
        """Open a session and return the value of its cookie."""
        of_user = [cookie for cookie, each in self._sessions.items() if each.user == user]
        if len(of_user) >= OF_USER_MAX:
            self._end_oldest(of_user)
        if len(self._sessions) >= SESSIONS_MAX:
            self._end_oldest(list(self._sessions))
        cookie = secrets.token_urlsafe(32)
        self._sessions[cookie] = Session(user, salt, self._ticks())
        return cookie

    def find(self, cookie: str) -> Session | None:
        """Return the session of a cookie; None for a cookie without a session, or if the session has ended."""
        session = self._sessions.get(cookie)
        if session is None or self._ticks() - session.used_at > IDLE_S:
            self.end(cookie)
            return None
        session.used_at = self._ticks()
        return session

    def end(self, cookie: str) -> None:
        """End a session."""
        self._sessions.pop(cookie, None)

    def _end_oldest(self, cookies: list[str]) -> None:
        self.end(min(cookies, key=lambda cookie: self._sessions[cookie].used_at))

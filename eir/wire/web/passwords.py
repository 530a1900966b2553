"""Users with passwords (RFC 7617): reader of a file with hashed passwords, and verifier of Authorization headers.

A line is `NAME:scrypt:N:R:P:SALT:HASH` (RFC 7914; salt and hash in Base64), created by `eir feed user NAME`. A line of `eir desk user NAME`
also has `:ROLE:LIST,LIST` (names of lists percent-encoded). A verified header is cached by a keyed digest, so that a row costs a dictionary lookup. Any other header costs one scrypt hash, in a thread and
one at a time. The number of wrong passwords per address is limited. A cached header is valid only for its address: otherwise an
address above its limit could continue to try passwords against the cache.
"""

import asyncio
import base64
import hashlib
import hmac
import os
import re
import secrets
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import quote, unquote

from eir.errors import EirError
from eir.wire.peers.gate import client_key
from eir.wire.peers.rate import HIGHEST_PRIORITY, Buckets

N, R, P = 1 << 14, 8, 1
"""Cost of a new password: 16 MB and about 50 ms."""
MEMORY_MAX: Final = 64 << 20
SALT_BYTES, HASH_BYTES = 16, 32
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
PASSWORD_CHARS: Final = range(12, 257)
FILE_BYTES_MAX: Final = 1 << 20
USERS_MAX: Final = 1000
HEADER_CHARS_MAX: Final = 1024
REMEMBERED_MAX: Final = 1024
BAD_BURST: Final = 20
BAD_A_SECOND: Final = 1 / 60
"""Bucket of wrong passwords per address; if it is empty, requests of the address receive 429 unless their header is cached."""

VIEW, CHANGE = "view", "change"
"""Roles of users: one who reads, and one who also changes lists."""
FEED_USER, DESK_USER = "eir feed user NAME", "eir desk user NAME"
"""Commands that print a line of a file of users, without and with a role."""
NO_PASSWORD, WRONG, TOO_MANY = "no_password", "wrong_password", "too_many"
"""Reasons for refusing a request."""


class UsersError(EirError):
    """Error for an unusable file of users, or an invalid user name or password."""


class Hashed(NamedTuple):
    """Hash of a user's password, with its scrypt parameters, and the rights of the user."""

    n: int
    r: int
    p: int
    salt: bytes
    hash: bytes
    role: str = ""
    """VIEW or CHANGE; empty if the file has no roles."""
    lists: tuple[str, ...] = ()
    """Names of the lists that the user may change."""

    def fits(self, password: bytes) -> bool:
        """Return whether `password` has this hash."""
        computed = hashlib.scrypt(
            password, salt=self.salt, n=self.n, r=self.r, p=self.p, dklen=len(self.hash), maxmem=MEMORY_MAX
        )
        return hmac.compare_digest(computed, self.hash)


def check_name(name: str) -> None:
    """Raise UsersError if a user name is invalid."""
    if not NAME.fullmatch(name):
        raise UsersError(f"{name}: a user's name has 1 to 64 letters, digits, '.', '_' and '-'")


def user_line(name: str, password: str, role: str = "", lists: Sequence[str] = ()) -> str:
    """Return the line of the file of users for this user and password, with a role and lists for a file of the desk. Raises UsersError."""
    check_name(name)
    if len(password) not in PASSWORD_CHARS or not password.isprintable():
        raise UsersError(f"a password has {PASSWORD_CHARS[0]} to {PASSWORD_CHARS[-1]} printable characters")
    salt = secrets.token_bytes(SALT_BYTES)
    computed = hashlib.scrypt(password.encode(), salt=salt, n=N, r=R, p=P, dklen=HASH_BYTES, maxmem=MEMORY_MAX)
    rights = [role, ",".join(quote(each, safe="") for each in lists)] if role else []
    return ":".join((name, "scrypt", str(N), str(R), str(P), _text(salt), _text(computed), *rights))


def read_users(path: Path, command: str = FEED_USER) -> dict[str, Hashed]:
    """Read a file of users; return each user's hashed password by name. `command`: command that prints its lines.

    Raises UsersError with the number of an invalid line, but without its text; also for a file with roles that everyone can read.
    """
    try:
        with path.open("rb") as stream:
            octets = stream.read(FILE_BYTES_MAX + 1)
            is_open = os.fstat(stream.fileno()).st_mode & stat.S_IROTH
    except OSError as e:
        raise UsersError(f"{path} cannot be read: {e.strerror}") from None
    if is_open and command == DESK_USER:
        raise UsersError(f"{path} is readable by everyone on this host: chmod o-r {path}")
    users: dict[str, Hashed] = {}
    for at, line in enumerate(octets.splitlines(), 1):
        if line.strip() and not line.startswith(b"#"):
            try:
                name, hashed = _user(line.decode("ascii").strip(), has_role=command == DESK_USER)
            except ValueError:
                raise UsersError(f"{path}:{at}: expected a line of `{command}`") from None
            if name in users:
                raise UsersError(f"{path}:{at}: the user {name} has two lines; remove one")
            users[name] = hashed
    if len(octets) > FILE_BYTES_MAX or len(users) > USERS_MAX:
        raise UsersError(f"{path}: more than {USERS_MAX} users")
    if not users:
        raise UsersError(f"{path} has no user; `{command}` prints a line")
    return users


def _user(line: str, *, has_role: bool) -> tuple[str, Hashed]:
    """Parse the line of a user. Raises ValueError."""
    line, role, lists = line.rsplit(":", 2) if has_role else (line, "", "")
    name, kind, n, r, p, salt, digest = line.split(":")
    hashed = Hashed(
        int(n), int(r), int(p), base64.b64decode(salt, validate=True), base64.b64decode(digest, validate=True), role,
        tuple(unquote(each) for each in lists.split(",") if each),
    )  # fmt: skip
    costs = 1 < hashed.n <= 1 << 18 and not hashed.n & (hashed.n - 1) and 0 < hashed.r <= 16 and 0 < hashed.p <= 16
    if (
        kind != "scrypt"
        or not NAME.fullmatch(name)
        or not costs
        or role not in {"", VIEW, CHANGE}
        or has_role != bool(role)
        or 128 * hashed.n * hashed.r >= MEMORY_MAX
        or len(hashed.hash) < HASH_BYTES
    ):
        raise ValueError
    return name, hashed


class Users:
    """Verifier of user names and passwords with a cache of verified passwords. `ticks`: monotonic clock in seconds."""

    def __init__(self, users: Mapping[str, Hashed], *, ticks: Callable[[], float]) -> None:
        self._ticks = ticks
        self._key = secrets.token_bytes(32)
        self._one = asyncio.Lock()
        self._bad_ones = Buckets(BAD_A_SECOND, BAD_BURST)
        """Buckets of wrong passwords by address."""
        self._users: dict[str, Hashed] = {}
        self._good: dict[bytes, str] = {}
        """Cache of users by the digest of a verified header with its address."""
        self.apply(users)

    def apply(self, users: Mapping[str, Hashed]) -> None:
        """Replace the users. If the line of a user in the file is unchanged, the cached password of this user stays valid."""
        before, self._users = self._users, dict(users)
        self._good = {digest: name for digest, name in self._good.items() if self._users.get(name) == before.get(name)}
        # Verifying an unknown user takes as long as verifying a known one.
        self._nobody = Hashed(N, R, P, secrets.token_bytes(SALT_BYTES), secrets.token_bytes(HASH_BYTES))

    def line(self, name: str) -> Hashed | None:
        """Return the line of a user: password and rights."""
        return self._users.get(name)

    def has(self, name: str) -> bool:
        """Return whether there is a user with this name."""
        return name in self._users

    def known(self, authorization: str, address: str) -> str | None:
        """Return the user name of an Authorization header from the cache; None if the cache lacks this header from this address."""
        return self._good.get(self._digest(authorization, address))

    async def user(self, authorization: str, address: str) -> tuple[str, str]:
        """Verify an Authorization header; return the name of the user, and the reason for a refusal.

        One of the two is empty. A wrong password counts for the limit of the address.
        """
        digest = self._digest(authorization, address)
        name, password = _credentials(authorization)
        if not name:
            return "", NO_PASSWORD
        async with self._one:
            if digest not in self._good:
                bad_ones = self._bad_ones.of(client_key(address), self._ticks())
                if not bad_ones.room(self._ticks(), HIGHEST_PRIORITY):
                    return "", TOO_MANY
                while True:
                    hashed = self._users.get(name)
                    fits = await asyncio.to_thread((hashed or self._nobody).fits, password)
                    if hashed == self._users.get(
                        name
                    ):  # else the file was reloaded meanwhile: repeat with its new line
                        break
                if not fits or hashed is None:
                    bad_ones.spend(1)
                    return "", WRONG
                if len(self._good) >= REMEMBERED_MAX:
                    del self._good[next(iter(self._good))]
                self._good[digest] = name
        return name, ""

    def _digest(self, authorization: str, address: str) -> bytes:
        content = f"{address} {authorization}".encode("latin-1", "replace")
        return hashlib.blake2b(content, key=self._key, digest_size=32).digest()


def _credentials(authorization: str) -> tuple[str, bytes]:
    """Parse user name and password of an Authorization header. The name is empty if the header has no password."""
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic" or len(authorization) > HEADER_CHARS_MAX:
        return "", b""
    try:
        name, colon, password = base64.b64decode(encoded.strip(), validate=True).partition(b":")
        return (name.decode("ascii"), password) if colon else ("", b"")
    except ValueError:
        return "", b""


def _text(octets: bytes) -> str:
    return base64.b64encode(octets).decode("ascii")

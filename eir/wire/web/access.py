"""Access to a page: by the client's address, or by a password (HTTP Basic, RFC 7617)."""

import base64
import binascii
import hmac
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Final

from eir.wire.peers.gate import client_key
from eir.wire.peers.rate import HIGHEST_PRIORITY, Buckets
from eir.wire.web.http1 import Request, Response

TEXT = "text/plain; charset=utf-8"
LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
PASSWORD_BYTES_MAX = 1024
WRONG_BURST: Final = 20
WRONG_A_SECOND: Final = 1 / 60
"""Wrong passwords of one address; beyond that, none of its passwords is compared."""
PAGE: Final = "page"
"""Label of the page as an interface, in metrics and log."""
WRONG, LOCKED_OUT = "wrong_password", "locked_out"
"""Reasons for which a password was refused."""
CHALLENGE: Final = Response(
    401, TEXT, b"a password is wanted\n", (("WWW-Authenticate", 'Basic realm="eir", charset="UTF-8"'),)
)
TOO_MANY: Final = Response(429, TEXT, b"too many wrong passwords from this address\n", (("Retry-After", "60"),))


@dataclass(frozen=True, slots=True)
class PageSettings:
    """Rules for access to the page for people."""

    sources: Sequence[IPv4Network | IPv6Network] = LOOPBACK
    """Networks in which nobody is asked for a password."""
    password_file: Path | None = None
    """Holds the password of all others; None: they may not."""


class PageAccess:
    """Decides who may see the page. `ticks`: seconds that never go back."""

    def __init__(self, *, ticks: Callable[[], float]) -> None:
        self._ticks = ticks
        self._wrong = Buckets(WRONG_A_SECOND, WRONG_BURST)
        """Wrong passwords by address."""
        self.refused: Counter[str] = Counter()
        """Requests with a password that were refused, by reason."""

    def refusal(
        self, request: Request, settings: PageSettings, refused: Callable[[str], object] = lambda _: None
    ) -> Response | None:
        """Return the response to a client that may not see the page; None if it may.

        `refused` is called with the reason if a password was refused.
        """
        if _is_at(request.address, settings) and _is_address(request.headers.get("host", "")):
            return None
        if settings.password_file is None:
            return Response(
                403, TEXT, b"not from this address, or by this name: see page.from and page.password_file\n"
            )
        authorization = request.headers.get("authorization")
        if not authorization:
            return CHALLENGE
        wrong = self._wrong.of(client_key(request.address), self._ticks())
        if not wrong.room(self._ticks(), HIGHEST_PRIORITY):
            reason, response = LOCKED_OUT, TOO_MANY
        elif _is_password(authorization, settings.password_file):
            return None
        else:
            wrong.spend(1)
            reason, response = WRONG, CHALLENGE
        self.refused[reason] += 1
        refused(reason)
        return response


def _is_password(authorization: str, file: Path) -> bool:
    """True if a header carries the password of a file; an empty file has none."""
    try:
        with file.open("rb") as stream:
            wanted = stream.read(PASSWORD_BYTES_MAX).strip()
    except OSError:
        return False
    return bool(wanted) and hmac.compare_digest(_password(authorization), wanted)


def _is_at(address: str, settings: PageSettings) -> bool:
    try:
        at = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    return any(at in network for network in settings.sources if network.version == at.version)


def _is_address(host: str) -> bool:
    """True if a page was asked for by an address.

    A page asked for by a name may be one that a stranger's page leads a browser to.
    """
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    if name == "localhost":
        return True
    try:
        ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def _password(authorization: str) -> bytes:
    """The password in the header; empty if there is no password."""
    scheme, _, said = authorization.partition(" ")
    if scheme.lower() != "basic":
        return b""
    try:
        return base64.b64decode(said, validate=True).partition(b":")[2]
    except (binascii.Error, ValueError):
        return b""

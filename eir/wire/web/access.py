"""Access control of the node's web page: by the client's address, or by a password (HTTP Basic, RFC 7617)."""

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
from eir.wire.web.http1 import HttpRequest, HttpResponse

TEXT = "text/plain; charset=utf-8"
LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
PASSWORD_BYTES_MAX = 1024
WRONG_BURST: Final = 20
WRONG_A_SECOND: Final = 1 / 60
"""Wrong passwords per address before the server refuses further passwords of this address without comparing them."""
PAGE: Final = "page"
"""Interface label of the page in metrics and log."""
WRONG, LOCKED_OUT = "wrong_password", "locked_out"
"""Reasons for refusing a password."""
CHALLENGE: Final = HttpResponse(
    401, TEXT, b"a password is wanted\n", (("WWW-Authenticate", 'Basic realm="eir", charset="UTF-8"'),)
)
TOO_MANY: Final = HttpResponse(429, TEXT, b"too many wrong passwords from this address\n", (("Retry-After", "60"),))


@dataclass(frozen=True, slots=True)
class PageSettings:
    """Settings for access to the node's web page: networks without a password, and the password file."""

    sources: Sequence[IPv4Network | IPv6Network] = LOOPBACK
    """Networks whose clients need no password."""
    password_file: Path | None = None
    """File with the password for all other clients; None: they have no access."""


class PageAccess:
    """Access control of the node's web page. `ticks`: monotonic clock in seconds."""

    def __init__(self, *, ticks: Callable[[], float]) -> None:
        self._ticks = ticks
        self._wrong = Buckets(WRONG_A_SECOND, WRONG_BURST)
        """Buckets of wrong passwords by address."""
        self.refused: Counter[str] = Counter()
        """Number of refused requests with a password, by reason."""

    def refusal(
        self, request: HttpRequest, settings: PageSettings, refused: Callable[[str], object] = lambda _: None
    ) -> HttpResponse | None:
        """Return the response that denies a client access to the page, or None if the client has access.

        `refused` is called with the reason if a password is refused.
        """
        if _is_at(request.address, settings) and _is_address(request.headers.get("host", "")):
            return None
        if settings.password_file is None:
            return HttpResponse(
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
    """Return whether an Authorization header contains the password in the file. An empty file rejects every password."""
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
    """Return whether the Host header is an IP address or `localhost`.

    Another name may be DNS rebinding: a foreign page that makes a browser request this one.
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
    """Return the password in a Basic Authorization header, or empty bytes."""
    scheme, _, credentials = authorization.partition(" ")
    if scheme.lower() != "basic":
        return b""
    try:
        return base64.b64decode(credentials, validate=True).partition(b":")[2]
    except (binascii.Error, ValueError):
        return b""

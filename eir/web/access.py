"""Access to a page: by the client's address, or by a password (HTTP Basic, RFC 7617). Imports eir.web alone."""

import base64
import binascii
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path

from eir.web.http1 import Request, Response

TEXT = "text/plain; charset=utf-8"
LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
PASSWORD_BYTES_MAX = 1024


@dataclass(frozen=True, slots=True)
class PageSettings:
    """Rules for access to the page for people."""

    sources: Sequence[IPv4Network | IPv6Network] = LOOPBACK
    """Networks in which nobody is asked for a password."""
    password_file: Path | None = None
    """Holds the password of all others; None: they may not."""


def refusal(request: Request, settings: PageSettings) -> Response | None:
    """The response to a client that may not see the page; None: it may."""
    if _is_at(request.address, settings) and _is_address(request.headers.get("host", "")):
        return None
    if settings.password_file is None:
        return Response(403, TEXT, b"not from this address, or by this name: see page.from and page.password_file\n")
    try:
        with settings.password_file.open("rb") as file:
            wanted = file.read(PASSWORD_BYTES_MAX).strip()
    except OSError:
        wanted = b""
    if wanted and hmac.compare_digest(_password(request.headers.get("authorization", "")), wanted):
        return None
    return Response(401, TEXT, b"a password is wanted\n", (("WWW-Authenticate", 'Basic realm="eir", charset="UTF-8"'),))


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

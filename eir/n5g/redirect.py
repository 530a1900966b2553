"""Redirects of a client by a server (TS 29.500 6.10.9, RFC 9110 15.4): which are followed. Pure; imports eir.errors."""

from collections.abc import Collection
from typing import Final
from urllib.parse import urldefrag, urljoin, urlsplit

from eir.errors import EirError

TEMPORARY, PERMANENT = 307, 308
REDIRECTS: Final = frozenset({TEMPORARY, PERMANENT})
"""Redirects of a 5G core: the same request, to another place."""
HOPS_MAX: Final = 5
"""Most redirects of one request, so that servers which send it round and round are left."""
URL_CHARS_MAX: Final = 2048


class NotFollowed(EirError):
    """A redirect that leads nowhere; says why."""


def led_to(url: str, location: str | None, hops: int, hosts: Collection[str] | None = None) -> str:
    """The URL that the Location in the answer to a request for `url` names, after `hops` redirects before. Raises NotFollowed.

    Only to these `hosts`, by name or address in lower case (None: any), so that nobody has the node ask whom he likes. Not from https to http: what was meant for the holder of a certificate would be told to whoever listens.
    """
    if not location:
        raise NotFollowed("no Location")
    if len(location) > URL_CHARS_MAX or not (location.isascii() and location.isprintable()) or " " in location:
        raise NotFollowed("its Location is no URL")
    if hops >= HOPS_MAX:
        raise NotFollowed(f"more than {HOPS_MAX} in a row")
    try:
        to = urlsplit(urldefrag(urljoin(url, location)).url)
        host, port = to.hostname or "", to.port
        host.encode("idna")
    except ValueError:
        host = ""
    if not host or port == 0 or to.scheme not in {"http", "https"} or "@" in to.netloc:
        raise NotFollowed(f"{location} is no URL of a server")
    if to.scheme == "http" and urlsplit(url).scheme == "https":
        raise NotFollowed(f"{location} is without TLS")
    if hosts is not None and host.lower() not in hosts:
        raise NotFollowed(f"{host} is not among the hosts that n5g.nrf names (n5g.nrf.redirects)")
    return to.geturl()

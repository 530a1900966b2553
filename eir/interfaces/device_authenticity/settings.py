"""Settings of the interface DeviceAuthenticity."""

from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import Final

from eir.wire.web.denials import TokenSettings

NAME: Final = "device-authenticity"
"""Name of the interface and of its process."""
AUTHENTICITY_SCOPE: Final = "device-authenticity:check-status"
"""Required scope of an access token (CAMARA)."""
RATE_MAX: Final = 10.0
UNKNOWN, ALLOWED, ERROR = NOT_LISTED = "unknown", "allowed", "error"
"""Answers about a device for which no rule holds; ERROR: 404 IDENTIFIER_NOT_FOUND."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthenticitySettings:
    """Settings of the section `device_authenticity`."""

    listen: tuple[str, ...] = ()
    """URLs `http://host:port` or `https://host:port`, each with its port; empty: the interface is disabled."""
    sources: tuple[IPv4Network | IPv6Network, ...] = ()
    """Networks that may connect; empty: any."""
    rate_max: float = RATE_MAX
    """Maximum number of requests per second of each client."""
    not_listed: str = UNKNOWN
    """One of NOT_LISTED."""
    tokens: TokenSettings | None = None
    """Rules for access tokens; None: every token is refused."""

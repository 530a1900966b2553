"""Settings of the section `desk`."""

from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Final

from eir.wire.web.denials import TokenSettings

NAME: Final = "desk"
"""Name of the interface and of its process."""
DESK_SCOPE: Final = "eir-desk"
"""Required scope of an access token; also the realm of passwords."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeskSettings:
    """Settings of the section `desk`."""

    listen: tuple[str, ...] = ()
    """URLs `http://host:port` or `https://host:port`, each with its port; empty: the desk is disabled."""
    users: Path | None = None
    """File of users with roles (eir.wire.web.passwords)."""
    sources: tuple[IPv4Network | IPv6Network, ...] = ()
    """Networks that may connect; empty: any."""
    tls_names: tuple[tuple[str, str], ...] = ()
    """Names in client certificates, each with the user whom it identifies."""
    tokens: TokenSettings | None = None
    """Rules for access tokens; None: not accepted."""

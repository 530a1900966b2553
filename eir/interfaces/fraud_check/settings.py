"""Settings of IMEI Fraud Check."""

from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import Final

from eir.wire.web.denials import TokenSettings

NAME: Final = "fraud-check"
"""Name of the interface and of its process."""
FRAUD_SCOPE: Final = "imei-fraud-check:check-status"
"""Required scope of an access token (CAMARA)."""
RATE_MAX: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FraudSettings:
    """Section `fraud_check`."""

    listen: tuple[str, ...] = ()
    """URLs `http://host:port` or `https://host:port`, each with its port; empty: the interface is disabled."""
    sources: tuple[IPv4Network | IPv6Network, ...] = ()
    """Networks that may connect; empty: any."""
    rate_max: float = RATE_MAX
    """Maximum number of requests per second of each client."""
    tokens: TokenSettings | None = None
    """Rules for access tokens; None: every token is refused."""

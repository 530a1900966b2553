"""Settings of IMEI Fraud Check."""

from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import Final

from eir.wire.web.denials import TokenSettings

NAME: Final = "fraud-check"
"""Name of the interface and of its process."""
FRAUD_SCOPE: Final = "imei-fraud-check:check-status"
"""The scope that an access token has to have (CAMARA)."""
RATE_MAX: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FraudSettings:
    """The section `fraud_check`."""

    listen: tuple[str, ...] = ()
    """`http://host:port` or `https://host:port`, each with its port; empty: nobody is answered."""
    sources: tuple[IPv4Network | IPv6Network, ...] = ()
    """Networks that may connect; empty: any."""
    rate_max: float = RATE_MAX
    """Requests a second of each client."""
    tokens: TokenSettings | None = None
    """None: nobody has a good token."""

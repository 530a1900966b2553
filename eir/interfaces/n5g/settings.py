"""Settings and names of N5g-eir."""

from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from eir.wire.web.denials import TokenSettings

SERVICE: Final = "n5g-eir-eic"
"""The service's name, which is its scope too (TS 29.511 6.1.9)."""
NF_TYPE: Final = "5G_EIR"
"""TS 29.510 6.1.6.3.3."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NrfSettings:
    """NRFs with which the node registers, and its profile there."""

    uri: tuple[str, ...]
    """API roots of NRFs, the preferred one first."""
    instance: str | None
    """NF instance id; None: the one that the node has given itself."""
    endpoints: tuple[str, ...]
    """URLs by which AMFs reach the service; empty: those on which it listens."""
    fqdn: str | None
    plmns: tuple[str, ...]
    """MCC and MNC, as digits; empty: the PLMN that the NRF serves."""
    capacity: int
    priority: int
    heartbeat_s: float
    """Interval that is asked for; the NRF decides."""
    redirects: tuple[str, ...] | None = None
    """Hosts that an NRF may send the node to, besides those of `uri`; None: any."""

    @property
    def redirect_hosts(self) -> frozenset[str] | None:
        """All hosts that a redirect may lead to, by name or address in lower case; None: any."""
        if self.redirects is None:
            return None
        return frozenset(urlsplit(uri).hostname or "" for uri in self.uri) | {
            host.strip("[]").lower() for host in self.redirects
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class N5gSettings:
    """The section `n5g`."""

    listen: tuple[str, ...] = ()
    """`http://host:port` or `https://host:port`, each with its port."""
    tokens: TokenSettings | None = None
    """None: no access token is asked for."""
    nrf: NrfSettings | None = None
    """None: the node is registered nowhere."""

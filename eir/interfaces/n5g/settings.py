"""Settings of the section `n5g`, and names of the service."""

from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from eir.wire.web.denials import TokenSettings

SERVICE: Final = "n5g-eir-eic"
"""Name of the service, and of its scope (TS 29.511 6.1.9)."""
NF_TYPE: Final = "5G_EIR"
"""NF type (TS 29.510 6.1.6.3.3)."""
NF_INSTANCE_FILE: Final = "nf-instance-id"
"""File in the state folder with the node's own NF instance id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NrfSettings:
    """Settings of the node's registration at an NRF: URIs of NRFs, and contents of the node's NF profile."""

    uri: tuple[str, ...]
    """API roots of NRFs, the preferred one first."""
    instance: str | None
    """NF instance id; None: the node's own."""
    endpoints: tuple[str, ...]
    """URLs at which AMFs reach the service; empty: those on which it listens."""
    fqdn: str | None
    plmns: tuple[str, ...]
    """MCC and MNC as digits; empty: the PLMN of the NRF."""
    capacity: int
    priority: int
    heartbeat_s: float = 10.0
    """Requested interval in seconds; the NRF decides."""
    redirects: tuple[str, ...] | None = None
    """Further hosts to which an NRF may redirect the node; None: any."""

    @property
    def redirect_hosts(self) -> frozenset[str] | None:
        """Hosts to which an NRF may redirect the node, in lower case. None means that every host is permitted."""
        if self.redirects is None:
            return None
        return frozenset(urlsplit(uri).hostname or "" for uri in self.uri) | {
            host.strip("[]").lower() for host in self.redirects
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class N5gSettings:
    """Settings of the section `n5g`."""

    listen: tuple[str, ...] = ()
    """`http://host:port` or `https://host:port`, each with its port."""
    tokens: TokenSettings | None = None
    """None: no access token is required."""
    nrf: NrfSettings | None = None
    """None: no registration."""

"""Settings of the section `ss7` (SIGTRAN)."""

from dataclasses import dataclass
from typing import Final

from eir.wire.ss7.sccp import ITU, point_code

PORT: Final = 2905
"""Port of M3UA (RFC 4666 9.2)."""
SSN_EIR: Final = 9
"""Subsystem number of an EIR (TS 23.003 8.2)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """Settings of a signalling gateway. The node connects to it as an ASP."""

    label: str
    """Name of the gateway in metrics, logs and commands."""
    connect: str
    """`sctp://host,host:port` or `tcp://host:port`."""
    routing_context: int | None = None
    mode: str = "loadshare"
    asp_identifier: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ss7Settings:
    """Settings of the section `ss7`."""

    point_code: str | None = None
    """Point code of the node, in the notation of the configuration; None: no SIGTRAN."""
    variant: str = ITU
    gateways: tuple[GatewaySettings, ...] = ()
    listen: tuple[str, ...] = ()
    """URLs at which an MSC may connect as IPSP, each with its port."""
    imsi_tags: tuple[int, ...] = ()
    """Further tags of an IMSI in a request."""

    @property
    def number(self) -> int | None:
        """Point code of the node as a number; None without the section `ss7`.

        Raises:
            ValueError: if it is invalid in the variant.
        """
        return None if self.point_code is None else point_code(self.point_code, self.variant)

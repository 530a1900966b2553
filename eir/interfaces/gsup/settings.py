"""Settings of GSUP. Data only."""

from dataclasses import dataclass
from typing import Final

PORT: Final = 4222
"""Port of an HLR; IANA has not assigned one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GsupSettings:
    """The section `gsup`."""

    listen: tuple[str, ...] = ()
    """`tcp://host:port`, each with its port."""
    hlr: str | None = None
    """`tcp://host:port` of the HLR that everything but CHECK-IMEI goes to; None: no HLR."""
    store: bool = False
    """A CHECK-IMEI that is permitted goes to the HLR too, which may say no."""

"""What GSUP is told. Data only."""

from dataclasses import dataclass
from typing import Final

PORT: Final = 4222
"""Where an HLR listens; IANA has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GsupSettings:
    """The section `gsup`."""

    listen: tuple[str, ...] = ()
    """`tcp://host:port`, each with its port."""
    hlr: str | None = None
    """`tcp://host:port` of the HLR that everything but CHECK-IMEI goes to; None: there is none."""
    store: bool = False
    """A CHECK-IMEI that is permitted goes to the HLR too, which may say no."""

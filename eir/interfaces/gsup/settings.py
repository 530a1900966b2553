"""Settings of the section `gsup`."""

from dataclasses import dataclass
from typing import Final

PORT: Final = 4222
"""Port of an HLR; it is not assigned by IANA."""
HLR_AWAY: Final = "the HLR of {} is away ({}): its phones cannot attach"
"""Warning for `eir status`: peer label and fault."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GsupSettings:
    """Settings of the section `gsup`."""

    listen: tuple[str, ...] = ()
    """`tcp://host:port`, each with its port."""
    hlr: str | None = None
    """`tcp://host:port` of the HLR that receives all messages except CHECK-IMEI; None: no HLR."""
    store: bool = False
    """True if the HLR also receives the CHECK-IMEI of a permitted device, and may reject it."""

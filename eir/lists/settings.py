"""What the configuration says of a list. Imports nothing of ours."""

from dataclasses import dataclass
from pathlib import Path

DEVICES, PAIRS, SUBSCRIBERS = "devices", "pairs", "subscribers"
"""Kinds of list."""
LOAD_MEMORY = 2 << 30
"""Bytes that a load may take, unless it is configured otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListSettings:
    """A list as the configuration declares it."""

    name: str
    kind: str = DEVICES
    signers: Path | None = None
    """An OpenSSH allowed_signers file: whose releases may change the list. None: nobody's."""
    revoked: Path | None = None
    """A key revocation list, or public keys one a line."""
    threshold: int = 1
    """Distinct keys, of distinct persons (lists.persons), that must have signed."""
    local: bool = False
    """Changed by an operator's commands instead of releases."""
    shrink_max: float = 0.20
    growth_max: float = 0.20
    """Fractions of the devices in force that one change may take away, and that it may add."""
    change_min: int = 1000
    """Devices that go or come: fewer are within both limits, whatever part of the list they are."""
    range_tacs_max: int = 1000
    """TACs that one range may span."""
    serial_step_max: int = 1_000_000
    """How far above the highest serial ever accepted the next one may be."""
    bad_rows_max: int = 100
    """Rows of a release that may be wrong; they are left out."""

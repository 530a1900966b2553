"""Settings of the section `sightings` of the configuration."""

from dataclasses import dataclass
from pathlib import Path

HASHED, FULL, OFF = "hashed", "full", "off"
"""Choices for storing a subscriber: a keyed hash, the IMSI, or only the first six digits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """HTTP receiver to which the node posts events."""

    url: str
    key_file: Path
    """File with the key of the signatures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SightingsSettings:
    """Settings of the record of checks and of events."""

    keep_s: float = 90 * 86400
    max_bytes: int = 20 * 10**9
    subscribers: str = HASHED
    rotate_s: float = 365 * 86400
    """Seconds after which a new key replaces the key of the hashes."""
    window_s: float = 300
    """Seconds within which similar checks become one row; a file is written at the end."""
    rate_max: float = 100_000
    """Maximum number of recorded checks per second."""
    events_max: float = 100
    """Maximum number of events per second."""
    webhook: Webhook | None = None
    watch: tuple[str, ...] = ()
    """Lists for which a change of SIM or device is an event."""

"""Settings of sightings. Imports nothing of ours."""

from dataclasses import dataclass
from pathlib import Path

HASHED, FULL, OFF = "hashed", "full", "off"
"""Choices of what is kept of a subscriber: a keyed hash, the IMSI, or nothing but the first six digits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """Receiver to which events are posted."""

    url: str
    key_file: Path
    """Holds the key of the signatures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SightingsSettings:
    """The record of checks, and what goes out of it at once."""

    keep_s: float = 90 * 86400
    max_bytes: int = 20 * 10**9
    subscribers: str = HASHED
    rotate_s: float = 365 * 86400
    """Age at which the key of the hashes gives way to a new one."""
    window_s: float = 300
    """Checks that are alike become one row within this time; a file is written at its end."""
    rate_max: float = 100_000
    """Checks a second that are kept, of all workers together."""
    events_max: float = 100
    """Events a second that go out."""
    webhook: Webhook | None = None
    stream: str | None = None
    """Key of a stream in the Redis of the store."""
    watch: tuple[str, ...] = ()
    """Lists of which a change of SIM or device is an event."""

"""The conditions by which sightings are judged, what each weighs, and what the configuration says of them.

Each is a file of SQL, `sql/conditions/NAME.sql`, that gives devices, what that says for or against several phones (in log odds, natural
logarithm), and its evidence in words. Data only; imports nothing of ours.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import NamedTuple

CONDITIONS: Mapping[str, str] = {
    "conflict": "subscribers that stay at two places",
    "alternates": "subscribers that come in turn as those of several phones",
    "version_alternates": "software versions that go back with the subscriber",
    "sim_box": "a SIM box",
    "tac": "a TAC that speaks against it",
    "placeholder": "an identifier that stands for none",
}
"""Name → what it means, in the order of the report."""

WEIGHTS: Mapping[str, float] = {
    # Fitted by `scripts/bench tamper --fit` to networks of seeds that judge nothing: log odds for each unit of a column of `evidence`.
    "intercept": 1.97, "places": 2.2, "versions_two": 2.41, "versions_one": -4.73, "blocks": -1.41, "lockstep": -1.04, "uneven": -1.08,
    "switches": 3.42, "members": 1.46, "busy": 2.57,
    # Set by hand. Exported; reported and never exported by itself; and a body that no TAC of the list has, of which made networks say nothing but that
    # they are made up.
    "certain": 14.0, "likely": 7.8, "no_body": 9.0,
}  # fmt: skip
"""Values that replace the names in braces in the SQL of the conditions."""
PRIOR, HOLDS_FROM = 0.005, 0.5
"""Share of devices that are tampered with, before anything was seen: in Pakistan's register 0.88 million of some 190 million IMEIs were cloned. Log
odds from which a condition is named in a finding."""
SAID = ((0.95, 0.97), (0.9, 0.9), (0.8, 0.8), (0.7, 0.75), (0.6, 0.55))
"""Score from which on, up to the one before → share of such devices that were tampered with, at least, in made networks that nothing was fitted to."""


MODULES = re.compile(r"module|iot|m2m|modem|vehicle|router|dongle", re.IGNORECASE)
"""Device types of which whole batches were given one IMEI, as registers have found."""


class Tac(NamedTuple):
    """A TAC that is allocated, as a list of device types has it."""

    tac: int
    allocated: date | None
    device_type: str


class Place(NamedTuple):
    """Place of an origin, in degrees."""

    latitude: float
    longitude: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TamperSettings:
    """Settings by which sightings are judged."""

    report_min: float = 0.85
    """Score from which a device is reported."""
    export_min: float = 0.95
    """Score from which it is exported."""
    memory: int = 3 << 30
    """Bytes that the engine may take; more is done on the disk."""
    origins: Mapping[str, Place] = field(default_factory=dict)

"""Conditions that indicate a tampered device identity, with their weights and settings.

Each condition is an SQL file, `sql/conditions/NAME.sql`, that returns devices, the log odds (natural logarithm) for several
phones with this identity, and the evidence as text. Data only.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import NamedTuple

CONDITIONS: Mapping[str, str] = {
    "conflict": "subscribers that stay at two places",
    "alternates": "subscribers that alternate as on several phones",
    "version_alternates": "software versions that go back with the subscriber",
    "sim_box": "a SIM box",
    "tac": "a TAC that was never allocated",
    "placeholder": "a placeholder instead of an identifier",
}
"""Meaning of each condition, in the order of the report."""

WEIGHTS: Mapping[str, float] = {
    # Fitted by `scripts/bench tamper --fit` to networks of seeds that judge nothing: log odds for each unit of a column of `evidence`.
    "intercept": 1.97, "places": 2.2, "versions_two": 2.41, "versions_one": -4.73, "blocks": -1.41, "lockstep": -1.04, "uneven": -1.08,
    "switches": 3.42, "members": 1.46, "busy": 2.57,
    # Set by hand: enough for an export; enough for a report but not for an export; a TAC that the list does not have, for
    # which simulated networks give no realistic value.
    "certain": 14.0, "likely": 7.8, "no_body": 9.0,
    # Correction of `alternates`, set by the scores of fitting networks: reduction if all shared devices have subscribers of several
    # networks, and maximum increase by evidence of place and version.
    "alone": 2.4, "both": 1.5,
}  # fmt: skip
"""Values for the names in braces in the SQL of the conditions."""
PRIOR, HOLDS_FROM = 0.005, 0.5
"""Prior share of tampered devices (in Pakistan's register 0.88 million of about 190 million IMEIs were cloned), and log odds from which a finding names a condition."""
SAID = ((0.95, 0.97), (0.9, 0.9), (0.8, 0.8), (0.7, 0.75), (0.6, 0.55))
"""Lower bound of a score band → least share of tampered devices in that band, in simulated networks that no weight was fitted to."""


MODULES = re.compile(r"module|iot|m2m|modem|vehicle|router|dongle", re.IGNORECASE)
"""Device types for which registers have found whole batches with one IMEI."""


class Tac(NamedTuple):
    """Entry of a list of device types: an allocated TAC (type allocation code), with date and device type."""

    tac: int
    allocated: date | None
    device_type: str


class Place(NamedTuple):
    """Geographic position of an origin, such as an MME, in degrees."""

    latitude: float
    longitude: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TamperSettings:
    """Settings for the search for tampered device identities."""

    report_min: float = 0.85
    """Score from which a device is reported."""
    export_min: float = 0.95
    """Score from which a device is exported."""
    memory: int = 3 << 30
    """Memory of the engine in bytes; it uses the disk beyond that."""
    origins: Mapping[str, Place] = field(default_factory=dict)

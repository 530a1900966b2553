"""Conditions that indicate a tampered device identity, with the weights of their evidence, and the settings of the analysis. Data only."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
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
"""Meaning of each condition."""

COLUMNS: Mapping[str, tuple[str, float]] = {
    "places": ("conflict", 1.54), "versions_two": ("version_alternates", 3.25), "versions_one": ("version_alternates", -8.34), "blocks": ("alternates", -2.0),
    "lockstep": ("alternates", -1.02), "switches": ("alternates", 2.78), "several": ("alternates", 1.88), "uneven": ("alternates", -1.17), "busy": ("alternates", 1.1),
}  # fmt: skip
"""Columns of the table `evidence`: condition, and log odds for each unit (fitted by `scripts/bench tamper --fit`)."""
INTERCEPT = -2.88
"""Log odds of a shared device without evidence."""
CERTAIN, NO_BODY, LIKELY = 8.7, 3.7, 2.5
"""Log odds of a SIM box or placeholder, of a TAC without any listed TAC of its body (enough for an export), and of another unlisted TAC (enough for a report)."""

MODULES = re.compile(r"module|iot|m2m|modem|vehicle|router|dongle", re.IGNORECASE)
"""Device types for which registers have found whole batches with one IMEI."""


class Tac(NamedTuple):
    """Entry of a list of device types: an allocated TAC (type allocation code), with date and device type."""

    tac: int
    allocated: date | None
    device_type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TamperSettings:
    """Settings for the search for tampered device identities."""

    report_min: float = 0.85
    """Score from which a device is reported."""
    export_min: float = 0.95
    """Score from which a device is exported."""
    memory: int = 3 << 30
    """Memory of the engine in bytes; it uses the disk beyond that."""

"""The conditions by which sightings are judged, as a table, and what the configuration says of them.

Each is a file of SQL, `sql/conditions/NAME.sql`, that gives devices, each with a strength from 0 to 1 and its evidence in words. Data
only; imports nothing of ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple


class Condition(NamedTuple):
    """One condition."""

    name: str
    weight: float
    """How far it is to be trusted alone at full strength, from 0 to 1; README.md says why. 0: it is shown, and decides nothing."""
    says: str


DIRBS = (
    Condition("duplicate_threshold", 0, "at least `duplicate_threshold` subscribers"),
    Condition("duplicate_daily_avg", 0, "at least `duplicate_daily_avg` subscribers on an average day"),
    Condition("transient_imei", 0, "at least `transient_subscribers`, each on one day alone"),
    Condition("gsma_not_found", 0, "a TAC that the list of TACs lacks"),
    Condition("is_test_tac", 0.5, "a TAC for tests"),
    Condition("is_barred_tac", 1, "a TAC that is barred"),
    Condition("inconsistent_rat", 0.5, "seen in 5G, for which its model has no bands"),
    Condition("stolen", 0, "answered blacklisted"),
    Condition("roamers", 0, "all its subscribers are of other networks"),
)
"""What a register that runs DIRBS would find, by its names; there is one more, `malformed_imei`, of identifiers that name no device."""
OURS = (
    Condition("conflict", 0.99, "two subscribers at two places at once"),
    Condition("alternates", 0.95, "subscribers that alternate within hours"),
    Condition("crowded", 0.95, "more regular subscribers than a phone has SIMs"),
    Condition("version_alternates", 0.95, "software versions that go back"),
    Condition("version_unknown", 0.4, "a software version that its model does not have"),
    Condition("sim_box", 0.98, "many SIMs that go round through many devices"),
    Condition("cycling", 0.98, "a subscriber who uses up identities"),
    Condition("serial_run", 0.4, "serial numbers one after the other"),
    Condition("check_digit", 0.6, "a wrong check digit where others of its origin are right"),
    Condition("not_allocated", 0.98, "a TAC that was never allocated"),
    Condition("allocated_later", 0.9, "a TAC that was allocated after it was first seen"),
    Condition("placeholder", 1, "an identifier that stands for none"),
)
CONDITIONS = {condition.name: condition for condition in (*DIRBS, *OURS)}


class Place(NamedTuple):
    """Where an origin is, in degrees."""

    latitude: float
    longitude: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TamperSettings:
    """How sightings are judged; the numbers are parameters of the conditions."""

    report_min: float = 0.7
    """Score from which a device is reported."""
    max_allowed_matching_ratio: float = 0.1
    """Share of all devices above which what a condition finds is not used."""
    memory: int = 3 << 30
    """Bytes that the engine may take; more is done on the disk."""
    weights: Mapping[str, float] = field(default_factory=lambda: {name: condition.weight for name, condition in CONDITIONS.items()})
    tac_db: Path | None = None
    """TACs that are allocated: pipe separated, with the columns TAC, Bands and Allocation_Date."""
    barred_tacs: tuple[str, ...] = ()
    home: tuple[str, ...] = ()
    """First digits of the IMSIs of the operator's own subscribers."""
    origins: Mapping[str, Place] = field(default_factory=dict)
    speed_max: float = 300
    """km/h: faster goes no phone."""
    far_s: float = 3600
    """Time between two origins of which neither the distance nor enough moves are known."""
    moves_min: int = 20
    """Moves between two origins that must be on record before they tell how fast a phone goes."""
    return_s: float = 7200
    return_days: int = 3
    together_s: float = 120
    together_share: float = 0.15
    regular_days: int = 3
    crowded_a_day: float = 2.3
    cycling_devices: int = 5
    box_partners: int = 4
    box_turns: int = 8
    run_min: int = 8
    model_devices_min: int = 200
    new_model_devices: int = 5
    duplicate_threshold: int = 10
    duplicate_daily_avg: float = 3.1
    duplicate_days_min: int = 5
    transient_days: int = 20
    transient_subscribers: int = 10


PARAMETERS = (
    "speed_max", "far_s", "moves_min", "return_s", "return_days", "together_s", "together_share", "regular_days", "crowded_a_day", "cycling_devices",
    "run_min", "model_devices_min", "new_model_devices", "duplicate_threshold", "duplicate_daily_avg", "duplicate_days_min",
    "transient_days", "transient_subscribers",
)  # fmt: skip
"""Settings that the SQL knows by their names, as the columns of the one row of `parameters`."""
DELAYS = {0: 32, 1: 40, 35: 20, 86: 19, 91: 20, 99: 69}
"""Days that a reporting body takes to tell of a TAC, by its two digits (DIRBS's sample)."""

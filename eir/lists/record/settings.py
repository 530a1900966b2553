"""Settings of a list and of its data files."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

DEVICES, PAIRS, SUBSCRIBERS, TYPES = "devices", "pairs", "subscribers", "device_types"
KINDS = (DEVICES, PAIRS, SUBSCRIBERS, TYPES)
"""Kinds of list."""
FIRST_SEEN = "first_seen"
"""Kind of the record of first sightings, which checks write and no configuration declares."""
LAST_DEVICE = "last_device"
"""Kind of the list of the last devices of SIMs, which checks write and no configuration declares."""
LEARNED_KINDS = frozenset({FIRST_SEEN, LAST_DEVICE})
"""Kinds of list that checks write, and whose rows merge."""
BOUND = (PAIRS, TYPES)
"""Kinds of list that bind a key to other keys: a device to its IMSIs, or a TAC (by its lowest key) to its device types."""
_LIST_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
KEEP = 5
"""Default number of previous releases to which a rollback can return."""
LOAD_MEMORY = 2 << 30
"""Default memory of a load in bytes."""


def is_list_name(name: str) -> bool:
    """Return True for a valid list name: at most 64 letters, digits, `.`, `_` and `-`."""
    return _LIST_NAME.fullmatch(name) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordFormat:
    """Format of the header record or trailer record in a data file."""

    begins: str
    """Text at the begin of the record's line."""
    count: int | None = None
    """Position, from 1, of the field with the number of rows."""
    date: int | None = None
    """Position, from 1, of a field with a date."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Layout of data files: the file format and the meaning of each column."""

    name: str
    columns: Mapping[str, str | int]
    """Name in lower case, or position from 1, of the column for each field of a row (`imei`, `reason` …; see eir.lists.rows.layout)."""
    subjects: Mapping[str, tuple[tuple[str, ...], ...]]
    """Columns that may identify a row, for each kind of list."""
    declared: bool = False
    """True if the configuration declares the layout. Each column is then required, and other columns are ignored."""
    names: bool = True
    """True if the first line has the names of the columns."""
    separator: str = ","
    encoding: str = "utf-8"
    header: RecordFormat | None = None
    """Format of the record before all other lines; None if there is no such record."""
    skip: int = 0
    """Number of lines to skip after the header record."""
    trailer: RecordFormat | None = None
    """Format of the record after all other lines; None if there is no such record."""
    dates: str | None = None
    """Format of dates, such as DD.MM.YYYY; None for the default formats."""
    added: frozenset[str] = frozenset()
    removed: frozenset[str] = frozenset()
    """Codes in the columns `action` and `change` that add or remove a row. A code in `removed` has priority."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """Code in a data file → reason."""
    junk: bool = False
    """True if rows whose identifier is not valid are skipped and counted, but are no bad rows: networks report such texts."""
    by_pair: bool = False
    """True if a device has one row for each of its IMSIs, even in a list of devices."""
    underscores: bool = False
    """True if a space in a column name is equal to an underscore."""

    @property
    def lines_before(self) -> int:
        """Number of lines to skip before the line with column names, or before the rows if the file has no column names."""
        return (self.header is not None) + self.skip


@dataclass(frozen=True, slots=True, kw_only=True)
class HistorySettings:
    """Limits on the size and age of the history. Rejections have a fixed limit (eir.lists.log.journal)."""

    keep: int = 3650
    """Days for which records are stored."""
    max_bytes: int = 256 << 20
    """Size in bytes of the main chain above which an alert is raised, although `keep` has not passed."""
    feed_max_bytes: int = 256 << 20
    """Size in bytes of the feed's chain above which its oldest records are deleted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSettings:
    """Publisher's folder on a web server, from which a node pulls the releases of a list."""

    url: str
    """URL with a slash at the end."""
    ca: Path | None = None
    """File of certificate authorities; None for the certificate authorities of this host."""
    certificate: Path | None = None
    key: Path | None = None
    token: Path | None = None
    """File with a bearer token."""
    every_s: float = 300.0
    patience_s: float = 3600.0
    """Seconds without a successful connection after which an alert is raised."""
    acknowledge: bool = False
    """True if the node sends an acknowledgement of the content in force to the source."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListSettings:
    """Settings of a list in the configuration."""

    name: str
    kind: str = DEVICES
    signers: Path | None = None
    """OpenSSH allowed_signers file with the signers whose releases may change the list; None: releases cannot change it."""
    revoked: Path | None = None
    """File of revoked keys: an OpenSSH key revocation list, or one public key in each line."""
    threshold: int = 1
    """Number of distinct keys of distinct persons that must have signed (openssh.distinct_signers)."""
    local: bool = False
    """True if operators' commands change the list instead of releases."""
    shrink_max: float = 0.20
    growth_max: float = 0.20
    """Largest fraction of the devices in force that one change may remove (`shrink_max`) or add (`growth_max`)."""
    change_min: int = 1000
    """Number of changed devices below which `shrink_max` and `growth_max` do not apply."""
    range_tacs_max: int = 1000
    """Maximum number of TACs of one range."""
    serial_step_max: int = 1_000_000
    """Maximum difference between the next serial and the highest serial ever accepted."""
    bad_rows_max: int = 100
    """Maximum number of bad rows of a release; bad rows are skipped."""
    keep: int = KEEP
    """Number of previous releases, or changes of a local list, to which a rollback can return."""
    dates: bool = False
    """True if the date of each entry is stored."""
    reasons: tuple[str, ...] = ()
    """Reasons of the rows that match in a check; other rows do not match. Empty: all rows match."""
    source: SourceSettings | None = None
    """Source from which releases are pulled; None if they are delivered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstSeenSettings:
    """Settings of the record of first sightings."""

    list: str = "first-seen"
    """Name of the record, under which stores keep it like a list."""
    remember: int = 400
    """Days without a sighting after which a device is forgotten."""
    new_per_peer: int = 20_000
    """Maximum number of new devices per peer and day that a node records."""

    @property
    def as_list(self) -> ListSettings:
        """Settings of the record of first sightings in the form of list settings, for code that handles the record like a list."""
        return ListSettings(name=self.list, kind=FIRST_SEEN, local=True)


CHANGE_KINDS = FIRST, DEVICE, MODEL = "first", "device", "model"
"""Kinds of change of a SIM: its first device, another device of the same TAC, or of another TAC."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LastDeviceSettings:
    """Settings of the list of the last devices of SIMs."""

    list: str = "last-device"
    """Name of the list."""
    remember: int = 400
    """Days without a sighting after which a SIM is forgotten."""
    key_file: Path | None = None
    """File with the key of the hashes of SIMs; None: a key that the list has in the store."""
    new_per_peer: int = 1_000_000
    """Maximum number of new SIMs per peer and day that a node records."""
    events: tuple[str, ...] = (DEVICE, MODEL)
    """Kinds of change that cause an event."""

"""Settings of a list, and of the files that it comes in. Imports nothing of ours."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

DEVICES, PAIRS, SUBSCRIBERS, TYPES = "devices", "pairs", "subscribers", "device_types"
KINDS = (DEVICES, PAIRS, SUBSCRIBERS, TYPES)
"""Kinds of list."""
BOUND = (PAIRS, TYPES)
"""Those that bind one thing to another: a device to its SIMs; a TAC, by the first of its devices, to what kind of device it is of."""
_LIST_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
LOAD_MEMORY = 2 << 30
"""Bytes that a load may take, unless it is configured otherwise."""


def is_list_name(name: str) -> bool:
    """True for a name that a list may have: letters, digits, `.`, `_` and `-`, 64 at most."""
    return _LIST_NAME.fullmatch(name) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A line before or behind the rows of a file that says something of the file."""

    begins: str
    """Text that the line begins with."""
    count: int | None = None
    """Position, from 1, of the field that says how many rows the file has."""
    date: int | None = None
    """Position of a field that holds a date."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A dialect of data files: how a file is written, and which of its columns says what."""

    name: str
    columns: Mapping[str, str | int]
    """The column's name in lower case, or its position from 1, for each field of a row (`imei`, `reason` …; see
    eir.lists.rows.layout)."""
    subjects: Mapping[str, tuple[tuple[str, ...], ...]]
    """The columns that may identify the subject of a row, for each kind of list."""
    declared: bool = False
    """The configuration declares it: every column must be there, and other columns are ignored."""
    names: bool = True
    """The first line holds the names of the columns."""
    separator: str = ","
    encoding: str = "utf-8"
    header: Record | None = None
    """A record before all other lines."""
    skip: int = 0
    """Lines behind it that are skipped."""
    trailer: Record | None = None
    """A record behind all other lines."""
    dates: str | None = None
    """The form of dates, such as DD.MM.YYYY; None: the usual ones."""
    added: frozenset[str] = frozenset()
    removed: frozenset[str] = frozenset()
    """Codes in the columns `action` and `change`: a row is removed if either says so."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """Reasons by the code that stands for them."""
    junk: bool = False
    """Networks report texts that are not identifiers, and here they are normal: skipped and counted."""
    by_pair: bool = False
    """A device has a row for each of its SIMs, also where it is read for itself."""
    underscores: bool = False
    """In the names of columns a space is as good as an underscore."""
    answers: bool = False
    """Each line is an answer of GSMA Device Check (lists.device_check); of several about one device the one with the latest action counts."""

    @property
    def lines_before(self) -> int:
        """Lines before the names of the columns, or before the rows if there are no names."""
        return (self.header is not None) + self.skip


@dataclass(frozen=True, slots=True, kw_only=True)
class HistorySettings:
    """Limits on the history. Refusals, which anyone can cause, are limited separately."""

    keep: int = 3650
    """Days."""
    max_bytes: int = 256 << 20
    """Size that the main chain may reach before `keep` without an alert."""
    feed_max_bytes: int = 256 << 20
    """Size of the feed's chain, above which its oldest records go."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A publisher's folder on a web server, from which a list is pulled."""

    url: str
    """It ends with a slash."""
    ca: Path | None = None
    """None: the authorities that this host trusts."""
    certificate: Path | None = None
    key: Path | None = None
    token: Path | None = None
    """Holds a bearer token."""
    every_s: float = 300.0
    patience_s: float = 3600.0
    """Seconds for which it may be unreachable before that is an alert."""
    acknowledge: bool = False
    """True if the source is told what the node has in force."""


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
    """A change of fewer devices is within both limits, whatever share of the list they are."""
    range_tacs_max: int = 1000
    """TACs that one range may span."""
    serial_step_max: int = 1_000_000
    """The most by which the next serial may exceed the highest serial ever accepted."""
    bad_rows_max: int = 100
    """Rows of a release that may be wrong; they are left out."""
    keep: int = 5
    """Releases before the one in force, or changes of a local list, that a rollback can go back."""
    source: Source | None = None
    """The source that its releases are pulled from; None: they are brought."""
    layouts: Mapping[str, Layout] = field(default_factory=dict)
    """The layouts that the configuration declares, besides the built-in ones; the same for all lists."""

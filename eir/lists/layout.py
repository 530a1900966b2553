"""CSV dialects: which columns a file has, what identifies a row, and what is wrong with one that does not.

What is here reads a line at a time and is the measure for lists.reader, which reads whole files at once and leaves to this
module only the rows that need explaining.
May import eir.device, eir.errors and lists.settings; knows neither manifests nor stores, nor polars: a server reads no files.
"""

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from eir.device import SNR_KEYS, TAC_DIGITS, device_key, imei_key, imsi_key, is_digits
from eir.errors import IdentifierError, ReleaseRefused
from eir.lists.settings import DEVICES, PAIRS, SUBSCRIBERS

BOM = b"\xef\xbb\xbf"

BY_IMEI, BY_TAC, BY_RANGE, BY_IMSI, BY_PAIR = ("imei",), ("tac",), ("imei_from", "imei_to"), ("imsi",), ("imei", "imsi")
"""What a row is about, by the columns that identify it."""


def tac_key(text: str) -> int:
    """The lowest key under a TAC. Raises IdentifierError unless the text is 8 digits."""
    if len(text) != TAC_DIGITS or not is_digits(text):
        raise IdentifierError(f"a TAC has {TAC_DIGITS} digits; got {len(text)} characters")
    return int(text) * SNR_KEYS


_KEY_OF: Mapping[str, Callable[[str], int]] = {
    "imei": device_key, "tac": tac_key, "imei_from": imei_key, "imei_to": imei_key, "imsi": imsi_key,
}  # fmt: skip
"""The columns that identify, and how each is read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A CSV dialect."""

    header: bool = True
    subjects: Mapping[str, tuple[tuple[str, ...], ...]]
    """For each kind of list, which columns may identify what a row is about."""
    reason: str | None = None
    until: str | None = None
    """The columns that say why, and when an entry ends."""
    junk: bool = False
    """Networks report texts that are not identifiers, and here they are normal: skipped and counted."""


LAYOUTS: Mapping[str, Layout] = {
    "eir": Layout(
        subjects={DEVICES: (BY_IMEI, BY_TAC, BY_RANGE), PAIRS: (BY_PAIR,), SUBSCRIBERS: (BY_IMSI,)}, reason="reason", until="until"
    ),
    "imei": Layout(header=False, subjects={DEVICES: (BY_IMEI,)}),
    "dirbs-blacklist": Layout(subjects={DEVICES: (BY_IMEI,)}, reason="reasons", junk=True),
    "dirbs-notifications": Layout(subjects={DEVICES: (BY_IMEI,), PAIRS: (BY_PAIR,)}, reason="reasons", junk=True),
    # An exception is for one SIM in one device: as a device's alone it would exempt the device from everything.
    "dirbs-exceptions": Layout(subjects={PAIRS: (BY_PAIR,)}, junk=True),
}
_DIRBS_HEADERS = {
    "imei,block_date,reasons": "dirbs-blacklist",
    "imei,imsi,msisdn,block_date,reasons": "dirbs-notifications",
    "imei,imsi,msisdn,block_date,reasons,amnesty_granted": "dirbs-notifications",
    "imei,imsi,msisdn": "dirbs-exceptions",
}
_NO_SEPARATOR = "\x1f"  # in the layout `imei` the whole line is the identifier


@dataclass(frozen=True, slots=True)
class Plan:
    """Where in a row of one file to look for what."""

    subject: tuple[str, ...]
    columns: tuple[int, ...]
    """Positions of the subject's columns."""
    reason: int | None
    until: int | None
    junk: bool
    separator: str

    def positions(self) -> tuple[int, ...]:
        """All columns that are read."""
        return self.columns + tuple(position for position in (self.reason, self.until) if position is not None)


def plan_of(name: str, layout: str, kind: str, begin: bytes) -> tuple[Plan, bytes]:
    """Which columns to read from a file that begins with these lines, and the rows among them. Raises as `plan_for`."""
    begin = begin.removeprefix(BOM)
    header, rows = begin.split(b"\n", 1) if layout_named(name, layout).header else (b"", begin)
    return plan_for(name, layout, kind, header), rows


def plan_for(name: str, layout: str, kind: str, header: bytes) -> Plan:
    """Which columns to read from a file with this header line. Raises ReleaseRefused (`layout`)."""
    dialect = layout_named(name, layout)
    allowed = dialect.subjects.get(kind)
    if allowed is None:
        kinds = " or ".join(dialect.subjects)
        raise ReleaseRefused("layout", f"{name}: layout {layout} is for lists of {kinds}, not of {kind}")
    if not dialect.header:
        return Plan(allowed[0], (0,), None, None, dialect.junk, _NO_SEPARATOR)
    names = _header_names(header)
    if len(set(names)) < len(names):
        raise ReleaseRefused("layout", f"{name}:1: a column name stands twice in the header")
    present = {column for column in names if column in _KEY_OF}
    # Of the columns that identify in a DIRBS file the list's kind says which are meant; elsewhere all of them are.
    subject = next((each for each in allowed if present == set(each) or (dialect.junk and present.issuperset(each))), None)
    if subject is None:
        expected = " or ".join("+".join(columns) for columns in allowed)
        found = "+".join(sorted(present)) or "none of them"
        raise ReleaseRefused("layout", f"{name}:1: a header with {expected} is expected for {kind}; it has {found}{separator_hint(header)}")
    at: dict[str | None, int] = {column: position for position, column in enumerate(names)}
    columns = tuple(at[column] for column in subject)
    return Plan(subject, columns, at.get(dialect.reason), at.get(dialect.until), dialect.junk, ",")


def kinds_for(name: str, layout: str, header: bytes) -> list[str]:
    """The kinds of list that a file with this header line may be for. Raises ReleaseRefused (`layout`) if it fits none."""
    found, faults = [], []
    for kind in layout_named(name, layout).subjects:
        try:
            plan_for(name, layout, kind, header)
            found.append(kind)
        except ReleaseRefused as fault:
            faults.append(fault)
    if not found:
        raise faults[0]
    return found


def separator_hint(header: bytes) -> str:
    """What to say of a header as spreadsheets of some countries write it; nothing for any other."""
    for separator, called in ((b";", "semicolons"), (b"\t", "tabs")):
        if separator in header and b"," not in header:
            return f" (its columns are separated by {called}; save it with commas)"
    return ""


def guess_layout(first_line: bytes) -> str | None:
    """The layout of a file that begins with this line; None if nothing known fits."""
    names = _header_names(first_line)
    if (dirbs := _DIRBS_HEADERS.get(",".join(names))) is not None:
        return dirbs
    if _KEY_OF.keys() & set(names):
        return "eir"
    try:
        device_key(names[0] if len(names) == 1 else "")
    except IdentifierError:
        return None
    return "imei"


def until_seconds(text: str) -> int:
    """Unix seconds of `20261231`, `2026-12-31` (that day's end, UTC) or `2026-12-31T12:00:00Z`; 0 if empty; else ValueError."""
    if not text:
        return 0
    if len(text) == len("2026-12-31T12:00:00Z") and text.endswith("Z"):
        moment = datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    else:
        day = "%Y%m%d" if len(text) == len("20261231") and is_digits(text) else "%Y-%m-%d"
        moment = datetime.strptime(text, day).replace(tzinfo=UTC)
        try:
            moment += timedelta(days=1)
        except OverflowError:
            raise ValueError("the last day that there is") from None
    return max(1, int(moment.timestamp()))


def layout_named(name: str, layout: str) -> Layout:
    """The dialect that a manifest names for the file `name`. Raises ReleaseRefused (`layout`)."""
    if layout not in LAYOUTS:
        raise ReleaseRefused("layout", f"{name}: layout {layout!r} is not known; known are {', '.join(LAYOUTS)}")
    return LAYOUTS[layout]


def _header_names(header: bytes) -> list[str]:
    try:
        text = header.removeprefix(BOM).decode("utf-8").rstrip("\r\n")
        return [column.strip().lower() for column in next(csv.reader([text], strict=True), [])]
    except (UnicodeDecodeError, csv.Error):
        return []


def fields_of(line: bytes, plan: Plan) -> list[str | None]:
    """The plan's fields of one line, None for those that it does not have; all None if it is not a line of CSV."""
    positions = plan.positions()
    try:
        fields = next(csv.reader([line.decode("utf-8", "replace")], delimiter=plan.separator, strict=True), [])
    except csv.Error:
        fields = []
    return [fields[position] if position < len(fields) else None for position in positions]


def complaint(line: bytes, plan: Plan) -> str:
    """What is wrong with one row, read by Python alone."""
    fields = fields_of(line, plan)
    identity, until = fields[: len(plan.columns)], fields[-1] if plan.until is not None else None
    if None in identity:
        return "the row has no " + "+".join(plan.subject) + "; one row a line, quotes closed, is expected"
    try:
        keys = [_KEY_OF[column](text or "") for column, text in zip(plan.subject, identity, strict=True)]
        until_seconds(until or "")
    except IdentifierError as error:
        return str(error)
    except ValueError:
        return "until is not like 20261231, 2026-12-31 or 2026-12-31T12:00:00Z"
    if plan.subject != BY_RANGE:
        return "the row cannot be read"
    first, last = keys
    return "imei_from is above imei_to" if first > last else f"the range holds {-(-(last - first + 1) // SNR_KEYS)} TACs"

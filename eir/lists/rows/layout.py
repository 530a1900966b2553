"""Layout `eir` of data files: its columns, the columns that identify a row, and messages about bad rows.

Nodes load only this layout. eir.lists.releases.foreign has the layouts of other files, which publishers convert.

This module parses one line at a time. Its result is the reference for eir.lists.rows.reader, which parses whole files and uses
this module only for messages about bad rows.
"""

import csv
import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import TypeAlias

from eir.device import SNR_KEYS, TAC_DIGITS, any_key, device_key, device_type_key, imei_key, imsi_key, is_digits
from eir.errors import IdentifierError, ReleaseRefused
from eir.lists.record.first_days import LEFT_LIST, WAS_LISTED
from eir.lists.record.settings import DEVICES, PAIRS, SUBSCRIBERS, TYPES, Layout

EPOCH = date(1970, 1, 1)
FIRST_SEEN_MIN = date(2000, 1, 1)
"""Earliest first day of a device in a file. An earlier day is a mistake, such as the time 0 of another program."""
DAY_SECONDS = 86_400
TIME_MAX = (1 << 32) - 1
"""Latest begin and end of a row in Unix seconds, in the year 2106; a later end counts as no end."""
BOM = b"\xef\xbb\xbf"

Columns: TypeAlias = tuple[str, ...]
BY_IMEI: Columns = ("imei",)
"""Subject of a row: the columns that identify its entry. The names that begin with BY_ are the subjects of all layouts."""
BY_ODD: Columns = ("identifier",)
BY_TAC: Columns = ("tac",)
BY_RANGE: Columns = ("imei_from", "imei_to")
BY_IMSI: Columns = ("imsi",)
BY_PAIR: Columns = ("imei", "imsi")
BY_TYPE: Columns = ("tac", "device_type")
BY_FIRST_SEEN: Columns = ("imei", "first_seen")
"""Subject in files of first sightings, which are not releases."""
SUBJECTS = {DEVICES: (BY_IMEI, BY_ODD, BY_TAC, BY_RANGE), PAIRS: (BY_PAIR,), SUBSCRIBERS: (BY_IMSI,), TYPES: (BY_TYPE,)}
"""Subjects by kind of list."""
REASON = "reason"
BEGIN = "begin"
"""Column with the time from which the entry is in force."""
UNTIL = "until"
"""Column with the expiry."""
DATE = "date"
"""Column with the date of the entry; for a device type the allocation date of the TAC."""
ACTION = "action"
"""Column of a foreign layout with a code that adds or removes the entry."""
CHANGE = "change"
"""Second column with such a code. The row removes the entry if one of both codes does."""


def tac_key(text: str) -> int:
    """Return the lowest key of a TAC.

    Raises:
        IdentifierError: if the text is not 8 digits.
    """
    if len(text) != TAC_DIGITS or not is_digits(text):
        raise IdentifierError(f"a TAC has {TAC_DIGITS} digits; got {len(text)} characters")
    return int(text) * SNR_KEYS


def day_key(text: str) -> int:
    """Parse a day such as `2026-11-30` to days since 1970-01-01, or LEFT_LIST to WAS_LISTED.

    Raises:
        IdentifierError: if the text has another form, or the day is before FIRST_SEEN_MIN or after today (UTC).
    """
    if text == LEFT_LIST:
        return WAS_LISTED
    with suppress(ValueError):
        day = date.fromisoformat(text)
        today = datetime.now(UTC).date()
        if len(text) == len("2026-11-30") and FIRST_SEEN_MIN <= day <= today:
            return (day - EPOCH).days
    raise IdentifierError(f"first_seen is not a day from {FIRST_SEEN_MIN} to today (UTC), such as 2026-11-30")


_IDENTIFIES: Mapping[str, Callable[[str], int]] = {
    "imei": device_key, "identifier": any_key, "tac": tac_key, "imei_from": imei_key, "imei_to": imei_key, "imsi": imsi_key,
    "device_type": device_type_key,
}  # fmt: skip
"""Parser of each column that identifies an entry of a release."""
KEY_OF = {**_IDENTIFIES, "first_seen": day_key}
"""Parser of each column that identifies an entry of a release or of the record of first sightings."""

EIR = Layout(name="eir", columns={name: name for name in (*_IDENTIFIES, REASON, BEGIN, UNTIL, DATE)}, subjects=SUBJECTS)


@dataclass(frozen=True, slots=True)
class Plan:
    """Positions of the needed columns in one data file."""

    subject: tuple[str, ...]
    """Columns that identify the entry of a row."""
    at: Mapping[str, int]
    """Position, from 0, of each column to read. The columns of the subject are first, in their order."""
    layout: Layout
    width: int = 0
    """Number of columns in the header; 0 for a file without a header."""

    @property
    def may_be_open(self) -> bool:
        """True if a row of the file may lack the end of its range. A row without an end lists only the first identifier."""
        return self.layout.declared and self.subject == BY_RANGE


def plan_for(name: str, layout: Layout, kind: str, header: bytes, *, dates: bool = False) -> Plan:
    """Return the positions of the columns in a data file with this header (plan).

    Args:
        name: name of the file for messages.
        layout: layout of the file.
        kind: kind of the list.
        header: header line of the file.
        dates: include the column `date` also for another kind of list than device types.

    Raises:
        ReleaseRefused: `layout`, if the header does not fit.
    """
    subjects = layout.subjects.get(kind)
    if subjects is None:
        kinds = " or ".join(layout.subjects)
        raise ReleaseRefused("layout", f"{name}: layout {layout.name} is for lists of {kinds}, not of {kind}")
    where = f"{name}:{layout.lines_before + 1}"
    names = header_names(header, layout.separator) if layout.names else []
    if layout.underscores:
        names = [column.replace(" ", "_") for column in names]
    at = _positions(layout, names, header, where)
    present = at.keys() & KEY_OF.keys()
    # A file in a publisher's own format may have more identifying columns than the kind of list needs.
    more_allowed = layout.junk or layout.declared
    for subject in subjects:
        if present == set(subject) or (more_allowed and present.issuperset(subject)):
            break
    else:
        expected = " or ".join("+".join(columns) for columns in subjects)
        header_columns = "+".join(sorted(present)) or "none of them"
        fault = f"a header with {expected} is expected for {kind}; it has {header_columns}{separator_hint(header)}"
        raise ReleaseRefused("layout", f"{where}: {fault}")
    columns = [*subject, REASON, BEGIN, UNTIL, ACTION, CHANGE]
    if subject == BY_TYPE:
        at[REASON] = at["device_type"]  # the list stores the text of the type as the reason, for display
    if dates or subject == BY_TYPE:
        columns.append(DATE)
    return Plan(subject, {column: at[column] for column in columns if column in at}, layout, len(names))


def _positions(layout: Layout, names: Sequence[str], header: bytes, where: str) -> dict[str, int]:
    """Return the position of each column of a layout in a file whose header has these names.

    Raises:
        ReleaseRefused: `layout`, if a declared column is missing or a column name occurs twice.
    """
    needed = set(layout.columns.values()) if layout.declared else set(names)
    for name in names:
        if name in needed and names.count(name) > 1:
            raise ReleaseRefused("layout", f"{where}: a column name occurs twice in the header: {name!r}")
    at: dict[str, int] = {}
    for column, name_or_number in layout.columns.items():
        if isinstance(name_or_number, int):
            at[column] = name_or_number - 1
        elif name_or_number in names:
            at[column] = names.index(name_or_number)
        elif layout.declared:
            missing = f"the header has no column {name_or_number!r}, which layout {layout.name} declares for {column}"
            raise ReleaseRefused("layout", f"{where}: {missing}{separator_hint(header, layout.separator)}")
    return at


def separator_hint(header: bytes, separator: str = ",") -> str:
    """Return a hint for a header that a spreadsheet wrote in UTF-16 or with another separator; otherwise an empty text."""
    if header.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        return " (it is in UTF-16; save it as CSV in UTF-8)"
    if separator.encode() in header:
        return ""
    advice = "save it with commas" if separator == "," else f"{separator!r} is expected"
    for other_separator, label in ((b";", "semicolons"), (b"\t", "tabs"), (b",", "commas")):
        if other_separator in header:
            return f" (its columns are separated by {label}; {advice})"
    return ""


_DATE_PARTS = {"YYYY": "%Y", "MM": "%m", "Mon": "%b", "DD": "%d", "hh": "%H", "mm": "%M", "ss": "%S"}
_DATE_PART = re.compile("|".join(_DATE_PARTS))


def is_date_form(form: str) -> bool:
    """Return True if a text describes a valid form of dates, such as `DD.MM.YYYY hh:mm`.

    A form has YYYY, DD, and either MM or Mon. It may also have hh and mm, and ss. The parts are separated by punctuation.
    """
    parts = _DATE_PART.findall(form)
    part_set = set(parts)
    separators = _DATE_PART.sub("", form)
    if len(part_set) != len(parts) or re.fullmatch(r"[ ./:_TZ-]*", separators) is None:
        return False
    has_one_month = ("MM" in parts) != ("Mon" in parts)
    has_whole_time = ("hh" in parts) == ("mm" in parts)
    return part_set > {"YYYY", "DD"} and has_one_month and has_whole_time


@lru_cache(1 << 12)
def until_seconds(text: str, form: str | None = None) -> int:
    """Parse the expiry of an entry to Unix seconds; return 0 if the text is empty.

    A date without a time of day is the end of that day in UTC.

    Args:
        text: date or time in the form `form`.
        form: form of the date, as in a Layout. None: a form of USUAL_DATES.

    Raises:
        ValueError: if the text has another form.
    """
    if not text:
        return 0
    if form is None:
        form = _usual_form(text)
    if len(text) != len(form) or not text.isascii():
        raise ValueError("a date in another form")
    directives = _DATE_PART.sub(lambda part: _DATE_PARTS[part[0]], form)
    moment = datetime.strptime(text, directives).replace(tzinfo=UTC)
    if "hh" not in form:
        try:
            moment += timedelta(days=1)
        except OverflowError:
            raise ValueError("the last day that there is") from None
    return max(1, int(moment.timestamp()))


def begin_seconds(text: str, form: str | None = None) -> int:
    """Parse the begin of an entry, in a form of `until_seconds`, to Unix seconds; return 0 if the text is empty.

    A date without a time of day is the begin of that day in UTC.

    Raises:
        ValueError: if the text has another form, or the time is after TIME_MAX.
    """
    has_time = "hh" in (form or "") or (form is None and text.endswith("Z"))
    begin = until_seconds(text, form)
    if text and not has_time:
        begin = max(1, begin - DAY_SECONDS)
    if begin > TIME_MAX:
        raise ValueError("a begin that no list can store")
    return begin


def _usual_form(text: str) -> str:
    if len(text) == len("2026-12-31T12:00:00Z") and text.endswith("Z"):
        return "YYYY-MM-DDThh:mm:ssZ"
    if len(text) == len("20261231") and is_digits(text):
        return "YYYYMMDD"
    return "YYYY-MM-DD"


def header_names(header: bytes, separator: str = ",") -> list[str]:
    """Return the names of the columns in a header line, in lower case; an empty list if the line is not valid CSV."""
    return [column.strip().lower() for column in csv_fields(header.removeprefix(BOM).rstrip(b"\r\n"), separator)]


def csv_fields(line: bytes, separator: str) -> list[str]:
    """Return the fields of one CSV line, or an empty list if the line is not valid CSV."""
    text = line.decode("utf-8", "replace")
    try:
        return next(csv.reader([text], delimiter=separator, strict=True), [])
    except csv.Error:
        return []


def fields_of(line: bytes, plan: Plan) -> dict[str, str | None]:
    """Return the fields of one line by the names of its columns.

    A missing field has the value None, and so have all fields of a line that is not valid CSV.
    """
    fields = dict(enumerate(csv_fields(line, plan.layout.separator)))
    return {column: fields.get(position) for column, position in plan.at.items()}


def row_fault(line: bytes, plan: Plan) -> str:
    """Return a message that explains why a row is invalid."""
    layout = plan.layout
    fields = fields_of(line, plan)
    if plan.may_be_open:
        fields["imei_to"] = fields["imei_to"] or fields["imei_from"]
    if None in (fields[column] for column in plan.subject):
        columns = "+".join(plan.subject)
        return f"the row has no {columns}; expected one row per line, with closed quotes"
    try:
        keys = [KEY_OF[column](fields[column] or "") for column in plan.subject]
    except IdentifierError as error:
        return str(error)
    if fault := _time_fault(fields, layout):
        return fault
    codes = {(fields[column] or "").strip() for column in (ACTION, CHANGE) if column in fields}
    if not codes <= layout.added | layout.removed:
        added = ", ".join(sorted(filter(None, layout.added)))
        removed = ", ".join(sorted(filter(None, layout.removed)))
        return f"its code is none of {added} (added) and {removed} (removed)"
    if plan.subject != BY_RANGE:
        return "the row cannot be read"
    return _range_fault(*keys)


def _time_fault(fields: Mapping[str, str | None], layout: Layout) -> str:
    """Return the fault of a row's begin and expiry; empty if they are valid."""
    times = {}
    for column, parse in ((UNTIL, until_seconds), (BEGIN, begin_seconds)):
        try:
            times[column] = parse(fields.get(column) or "", layout.dates)
        except ValueError:
            return f"{column} is not like {layout.dates or USUAL_DATES}"
    return "begin is not before until" if 0 < times[UNTIL] <= times[BEGIN] else ""


def _range_fault(first: int, last: int) -> str:
    if first > last:
        return "imei_from is above imei_to"
    tacs = -(-(last - first + 1) // SNR_KEYS)
    return f"the range holds {tacs} TACs"


USUAL_DATES = "20261231, 2026-12-31 or 2026-12-31T12:00:00Z"

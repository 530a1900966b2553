"""Layouts of data files: their columns, the columns that identify a row, and messages about bad rows.

This module reads one line at a time and is the reference for eir.lists.rows.reader, which reads whole files and calls this
module only to explain bad rows.

A file of GSMA Device Check answers has one JSON object of the service in each line (`deviceid`, `responsestatus`,
`blockliststatus`, and in `imeihistory` the actions of networks, each with `action`, `date`, `reasoncode` and
`reasoncodedesc`). The last action in the history counts.
"""

import csv
import difflib
import io
import json
import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

from eir.device import SNR_KEYS, TAC_DIGITS, any_key, device_key, device_type_key, imei_key, imsi_key, is_digits
from eir.errors import IdentifierError, ReleaseRefused
from eir.lists.record.settings import DEVICES, PAIRS, SUBSCRIBERS, TYPES, Layout

INSERT, REMOVE = "insert", "remove"
"""Codes of the rows: the device is blocked, or is unblocked."""
_LISTS = {"block": True, "blacklist": True, "general": False, "greylist": False}
"""First word of an action, and whether it concerns the list of blocked devices. Older versions use `Blacklist`."""
_STATES = {"Yes": INSERT, "No": REMOVE}
EPOCH = date(1970, 1, 1)
_BAD_ROW = ("", "", "", "0")


def is_device_check_answer(line: bytes) -> bool:
    """Return True if the first line of a file is a GSMA Device Check answer (JSON)."""
    return line.startswith(b"{") and b'"deviceid"' in line and b'"responsestatus"' in line


def device_check_rows(lines: bytes) -> bytes:
    """Convert lines with Device Check answers to CSV rows `device,code,reason,Unix seconds`.

    Blank lines are skipped.

    The device is empty if the line is not a usable answer.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for line in lines.split(b"\n")[:-1]:
        if line.strip():
            writer.writerow(_row(line))
        else:
            out.write("\n")
    return out.getvalue().encode("utf-8", "replace")


def _row(line: bytes) -> tuple[str, ...]:
    try:
        answer = json.loads(line.decode("utf-8", "replace"))
        if (
            not isinstance(answer, dict)
            or answer.get("responsestatus") != "success"
            or not isinstance(answer.get("deviceid"), str)
        ):
            return _BAD_ROW
        return (_one_line(answer["deviceid"]), *_last(answer))
    except (ValueError, RecursionError):
        return _BAD_ROW


def _last(answer: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return code, reason and time of the last action in a Device Check answer.

    Raises:
        ValueError: if the answer cannot be read.
    """
    actions, history = [], answer.get("imeihistory") or []
    if not isinstance(history, list):
        raise ValueError("no list of actions")  # noqa: TRY004 - callers expect ValueError for every fault of an answer
    for at, action in enumerate(history):
        which, _, code = str(action.get("action") if isinstance(action, dict) else "").lower().rpartition(" ")
        if code not in {INSERT, REMOVE} or which not in _LISTS:
            raise ValueError("an unknown action")
        if _LISTS[which]:
            actions.append(
                (_seconds(action.get("date")), at, code, action.get("reasoncodedesc") or action.get("reasoncode") or "")
            )
    if not actions:  # the device has no history: only its status may be set
        return _STATES.get(str(answer.get("blockliststatus", answer.get("blackliststatus"))), ""), "", "0"
    seconds, _, code, reason = max(actions)
    return code, _one_line(str(reason)), str(seconds)


def _seconds(date: Any) -> int:
    """Parse a time such as `2014-08-02 12:05:24.0` to Unix seconds.

    The service does not state a time zone; UTC is assumed.
    """
    moment = datetime.fromisoformat(str(date).strip())
    return max(1, int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()))


def _one_line(text: str) -> str:
    return " ".join(text.split())


BOM = b"\xef\xbb\xbf"

BY_IMEI, BY_ODD, BY_TAC, BY_RANGE, BY_IMSI, BY_PAIR, BY_TYPE = (
    ("imei",),
    ("identifier",),
    ("tac",),
    ("imei_from", "imei_to"),
    ("imsi",),
    ("imei", "imsi"),
    ("tac", "device_type"),
)
"""Subjects of rows: the columns that identify them."""
BY_FIRST_SEEN = ("imei", "first_seen")
"""Columns of the record of first sightings, whose files are no releases."""
SUBJECTS = {DEVICES: (BY_IMEI, BY_ODD, BY_TAC, BY_RANGE), PAIRS: (BY_PAIR,), SUBSCRIBERS: (BY_IMSI,), TYPES: (BY_TYPE,)}
REASON, UNTIL, DATE, ACTION = "reason", "until", "date", "action"
"""Columns for the reason, the end, the date (for a device type: of the TAC's allocation), and the code for add or remove."""
ALLOCATED, CHANGE, WHEN = "allocation_date", "change", "when"
"""Column with the allocation date of a TAC; second column with a code for add or remove; column with Unix seconds, by which the latest row of a device counts."""


def tac_key(text: str) -> int:
    """Return the lowest key of a TAC.

    Raises:
        IdentifierError: if the text is not 8 digits.
    """
    if len(text) != TAC_DIGITS or not is_digits(text):
        raise IdentifierError(f"a TAC has {TAC_DIGITS} digits; got {len(text)} characters")
    return int(text) * SNR_KEYS


def day_key(text: str) -> int:
    """Parse a day such as `2026-11-30`, not after today (UTC), to days since 1970-01-01.

    Raises:
        IdentifierError: for any other text.
    """
    with suppress(ValueError):
        day, today = (date.fromisoformat(text) - EPOCH).days, (datetime.now(UTC).date() - EPOCH).days
        if len(text) == len("2026-11-30") and 0 <= day <= today:
            return day
    raise IdentifierError("first_seen is not a day from 1970-01-01 to today (UTC), such as 2026-11-30")


_IDENTIFIES: Mapping[str, Callable[[str], int]] = {
    "imei": device_key, "identifier": any_key, "tac": tac_key, "imei_from": imei_key, "imei_to": imei_key, "imsi": imsi_key,
    "device_type": device_type_key,
}  # fmt: skip
"""Columns that identify a row of a release, and the function that parses each."""
_KEY_OF = {**_IDENTIFIES, "first_seen": day_key}
COLUMNS = (*_IDENTIFIES, REASON, UNTIL, DATE, ACTION)
"""All columns that a file may have."""

_DIRBS = {"imei": "imei", "imsi": "imsi", REASON: "reasons", DATE: "block_date"}
_TACS = {"tac": "tac", "device_type": "device_type", DATE: ALLOCATED}
_NO_SEPARATOR = "\x1f"  # in the layout `imei` the whole line is the identifier

LAYOUTS: Mapping[str, Layout] = {layout.name: layout for layout in (
    Layout(name="eir", columns={name: name for name in (*_IDENTIFIES, REASON, UNTIL, DATE) if name != "device_type"}, subjects=SUBJECTS),
    Layout(name="imei", columns={"imei": 1}, names=False, separator=_NO_SEPARATOR, subjects={DEVICES: (BY_IMEI,)}),
    Layout(name="dirbs-blacklist", columns=_DIRBS, subjects={DEVICES: (BY_IMEI,)}, junk=True),
    Layout(name="dirbs-notifications", columns=_DIRBS, subjects={DEVICES: (BY_IMEI,), PAIRS: (BY_PAIR,)}, junk=True, by_pair=True),
    # An exception covers one IMSI in one device; in a list of devices it would exempt the device for every IMSI.
    Layout(name="dirbs-exceptions", columns={"imei": "imei", "imsi": "imsi"}, subjects={PAIRS: (BY_PAIR,)}, junk=True),
    # A pending case must not be blocked yet, and a case without a status counts as closed (DIRBS-Core, StolenListSchema).
    Layout(
        name="lsds", columns={"imei": "imei", DATE: "reporting_date", ACTION: "status", CHANGE: "change_type"}, subjects={DEVICES: (BY_IMEI,)},
        added=frozenset({"", "blacklist", "add", "update"}), removed=frozenset({"pending", "recovered", "remove"}),
    ),
    Layout(name="tacs", columns=_TACS | {UNTIL: UNTIL}, subjects={TYPES: (BY_TYPE,)}, underscores=True),
    Layout(name="gsma-tacs", columns=_TACS, subjects={TYPES: (BY_TYPE,)}, separator="|", underscores=True, dates="DD-Mon-YYYY"),
    Layout(
        name="gsma-device-check", columns={"imei": 1, ACTION: 2, REASON: 3, WHEN: 4}, names=False, subjects={DEVICES: (BY_IMEI,)},
        added=frozenset({INSERT}), removed=frozenset({REMOVE}), answers=True,
    ),
)}  # fmt: skip
"""Built-in layouts."""
_HEADERS = {
    "imei,block_date,reasons": "dirbs-blacklist",
    "imei,imsi,msisdn,block_date,reasons": "dirbs-notifications",
    "imei,imsi,msisdn,block_date,reasons,amnesty_granted": "dirbs-notifications",
    "imei,imsi,msisdn": "dirbs-exceptions",
    "imei,reporting_date,status": "lsds",
    "imei,reporting_date,status,change_type": "lsds",
}


@dataclass(frozen=True, slots=True)
class Plan:
    """Positions of the needed columns in the rows of one data file."""

    subject: tuple[str, ...]
    at: Mapping[str, int]
    """Positions, from 0, of the columns to read: first those of the subject in their order, then the others."""
    layout: Layout
    width: int = 0
    """Number of columns in the header; 0 without a header."""

    @property
    def may_be_open(self) -> bool:
        """True if the layout allows a range without an end, which stands for its first identifier only."""
        return self.layout.declared and self.subject == BY_RANGE


def plan_of(name: str, layout: Layout, kind: str, begin: bytes, *, dates: bool = False) -> tuple[Plan, bytes]:
    """Return the plan (column positions) of a file that begins with these lines, and the lines after the header.

    Raises:
        ReleaseRefused: `layout`, as `plan_for`.
    """
    begin = begin.removeprefix(BOM)
    header, _, rows = begin.partition(b"\n") if layout.names else (b"", b"", begin)
    return plan_for(name, layout, kind, header, dates=dates), rows


def plan_for(name: str, layout: Layout, kind: str, header: bytes, *, dates: bool = False) -> Plan:
    """Return the plan (column positions) of a file with this header line.

    If `dates` is set, the plan includes the column `date`, which has an effect only in a list of device types.

    Raises:
        ReleaseRefused: `layout`, if the header does not fit.
    """
    allowed = layout.subjects.get(kind)
    if allowed is None:
        kinds = " or ".join(layout.subjects)
        raise ReleaseRefused("layout", f"{name}: layout {layout.name} is for lists of {kinds}, not of {kind}")
    where, names = f"{name}:{layout.lines_before + 1}", _header_names(header, layout.separator) if layout.names else []
    if layout.underscores:
        names = [column.replace(" ", "_") for column in names]
    looked_for = set(layout.columns.values()) if layout.declared else set(names)
    if twice := next((column for column in names if column in looked_for and names.count(column) > 1), None):
        raise ReleaseRefused("layout", f"{where}: a column name occurs twice in the header: {twice!r}")
    at: dict[str, int] = {}
    for ours, theirs in layout.columns.items():
        if isinstance(theirs, int):
            at[ours] = theirs - 1
        elif theirs in names:
            at[ours] = names.index(theirs)
        elif layout.declared:
            missing = f"the header has no column {theirs!r}, which layout {layout.name} declares for {ours}"
            raise ReleaseRefused("layout", f"{where}: {missing}{separator_hint(header, layout.separator)}")
    present = at.keys() & _KEY_OF.keys()
    # A publisher's own format may have more identifying columns than the kind of list needs; elsewhere all of them must fit.
    chosen = layout.junk or layout.declared
    subject = next((each for each in allowed if present == set(each) or (chosen and present.issuperset(each))), None)
    if subject is None:
        expected = " or ".join("+".join(columns) for columns in allowed)
        header_columns = "+".join(sorted(present)) or "none of them"
        raise ReleaseRefused(
            "layout",
            f"{where}: a header with {expected} is expected for {kind}; it has {header_columns}{separator_hint(header)}",
        )
    if subject == BY_TYPE:
        at[REASON] = at["device_type"]  # keeps the type's text for display
    optional = [REASON, UNTIL, ACTION, CHANGE, WHEN, *([DATE] if dates or subject == BY_TYPE else [])]
    return Plan(subject, {column: at[column] for column in (*subject, *optional) if column in at}, layout, len(names))


def kinds_for(name: str, layout: Layout, header: bytes) -> list[str]:
    """Return the kinds of list for which a file with this header line can be used.

    Raises:
        ReleaseRefused: `layout`, if no kind fits.
    """
    kinds, faults = [], []
    for kind in layout.subjects:
        try:
            plan_for(name, layout, kind, header)
            kinds.append(kind)
        except ReleaseRefused as fault:
            faults.append(fault)
    if not kinds:
        raise faults[0]
    return kinds


def unknown_columns(header: bytes, layout: Layout) -> list[str]:
    """Return warnings about unknown columns of a file in the layout `eir`.

    Files in other layouts may have columns that are ignored.
    """
    known = layout.columns
    strange = [column for column in _header_names(header, ",") if column not in known] if layout.name == "eir" else []
    near = {column: difflib.get_close_matches(column, known, n=1) for column in strange}
    return [f"{column!r}" + (f"; did you mean {near[column][0]!r}?" if near[column] else "") for column in strange]


def separator_hint(header: bytes, separator: str = ",") -> str:
    """Return a hint if a header is in UTF-16 or has another separator; otherwise return an empty text.

    Some spreadsheets write such files.
    """
    if header.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        return " (it is in UTF-16; save it as CSV in UTF-8)"
    for separator_byte, label in ((b";", "semicolons"), (b"\t", "tabs"), (b",", "commas")):
        if separator_byte in header and separator.encode() not in header:
            return f" (its columns are separated by {label}; " + (
                "save it with commas)" if separator == "," else f"{separator!r} is expected)"
            )
    return ""


def guess_layout(first_line: bytes) -> str | None:
    """Return the name of the built-in layout for a file with this first line, or None if no layout fits."""
    if is_device_check_answer(first_line):
        return "gsma-device-check"
    names = _header_names(first_line, ",")
    if (known := _HEADERS.get(",".join(names)) or _layout_of_types(first_line)) is not None:
        return known
    if _IDENTIFIES.keys() & set(names):
        return "eir"
    try:
        device_key(names[0] if len(names) == 1 else "")
    except IdentifierError:
        return None
    return "imei"


def _layout_of_types(header: bytes) -> str | None:
    """Return the name of the layout for a file of device types with this header, or None for another file."""
    by_comma, by_bar = (
        {name.replace(" ", "_") for name in _header_names(header, separator)} for separator in (",", "|")
    )
    if {*BY_TYPE} <= by_comma <= {*BY_TYPE, ALLOCATED, UNTIL}:
        return "tacs"
    return "gsma-tacs" if {*BY_TYPE} <= by_bar else None


_DATE_PARTS = {"YYYY": "%Y", "MM": "%m", "Mon": "%b", "DD": "%d", "hh": "%H", "mm": "%M", "ss": "%S"}
_DATE_PART = re.compile("|".join(_DATE_PARTS))


def is_date_form(form: str) -> bool:
    """Return True if a text is a valid form of dates, such as `DD.MM.YYYY hh:mm`.

    A form has YYYY, MM or Mon, and DD, optionally hh, mm and ss, separated by punctuation.
    """
    parts = _DATE_PART.findall(form)
    signs = _DATE_PART.sub("", form)
    complete = (
        {"YYYY", "DD"} < set(parts)
        and ("MM" in parts) != ("Mon" in parts)
        and {"hh", "mm"}.intersection(parts) in ({"hh", "mm"}, set())
    )
    return complete and len(set(parts)) == len(parts) and re.fullmatch(r"[ ./:_TZ-]*", signs) is not None


def until_seconds(text: str, form: str | None = None) -> int:
    """Parse the expiry date of an entry to Unix seconds; return 0 if the text is empty.

    A date means the end of that day in UTC.

    Args:
        text: date, such as `20261231`, `2026-12-31` or `2026-12-31T12:00:00Z` without a `form`.
        form: form of the date, as in a Layout.

    Raises:
        ValueError: if the text has another form.
    """
    if not text:
        return 0
    if form is None and len(text) == len("2026-12-31T12:00:00Z") and text.endswith("Z"):
        form = "YYYY-MM-DDThh:mm:ssZ"
    elif form is None:
        form = "YYYYMMDD" if len(text) == len("20261231") and is_digits(text) else "YYYY-MM-DD"
    if len(text) != len(form) or not text.isascii():
        raise ValueError("a date in another form")
    moment = datetime.strptime(text, _DATE_PART.sub(lambda part: _DATE_PARTS[part[0]], form)).replace(tzinfo=UTC)
    if "hh" not in form:
        try:
            moment += timedelta(days=1)
        except OverflowError:
            raise ValueError("the last day that there is") from None
    return max(1, int(moment.timestamp()))


def find_layout(name: str, layout: str, declared: Mapping[str, Layout]) -> Layout:
    """Return the layout with this name, from the built-in layouts or those of the configuration.

    `name` is the name of the file for messages.

    Raises:
        ReleaseRefused: `layout`, if the layout is unknown.
    """
    known = {**declared, **LAYOUTS}
    if layout not in known:
        advice = "the configuration may declare others (layouts)"
        raise ReleaseRefused(
            "layout", f"{name}: layout {layout!r} is unknown; expected one of {', '.join(known)}; {advice}"
        )
    return known[layout]


def _header_names(header: bytes, separator: str) -> list[str]:
    try:
        text = header.removeprefix(BOM).decode("utf-8").rstrip("\r\n")
        return [column.strip().lower() for column in next(csv.reader([text], strict=True, delimiter=separator), [])]
    except (UnicodeDecodeError, csv.Error):
        return []


def csv_fields(line: bytes, separator: str) -> list[str]:
    """Return the fields of one CSV line, or an empty list if the line is not valid CSV."""
    try:
        return next(csv.reader([line.decode("utf-8", "replace")], delimiter=separator, strict=True), [])
    except csv.Error:
        return []


def fields_of(line: bytes, plan: Plan) -> dict[str, str | None]:
    """Return the fields of one line by the names of the plan's columns.

    A missing field is `None`; if the line is not valid CSV, all fields are `None`.
    """
    fields = csv_fields(line, plan.layout.separator)
    return {column: fields[position] if position < len(fields) else None for column, position in plan.at.items()}


def row_fault(line: bytes, plan: Plan) -> str:
    """Return a message about the fault of a bad row."""
    fields, layout = fields_of(line, plan), plan.layout
    if plan.may_be_open:
        fields["imei_to"] = fields["imei_to"] or fields["imei_from"]
    if None in (fields[column] for column in plan.subject) or (layout.answers and not fields["imei"]):
        expectation = "one answer of Device Check a line, a JSON object with its deviceid, responsestatus success, and dated actions"
        return (
            f"{expectation}, is expected"
            if layout.answers
            else f"the row has no {'+'.join(plan.subject)}; expected one row per line, with closed quotes"
        )
    try:
        keys = [_KEY_OF[column](fields[column] or "") for column in plan.subject]
        until_seconds(fields.get(UNTIL) or "", layout.dates)
    except IdentifierError as error:
        return str(error)
    except ValueError:
        return f"until is not like {layout.dates or USUAL_DATES}"
    if any(
        (fields[column] or "").strip() not in layout.added | layout.removed
        for column in (ACTION, CHANGE)
        if column in fields
    ):
        known = [", ".join(sorted(filter(None, codes))) for codes in (layout.added, layout.removed)]
        return f"its code is none of {known[0]} (added) and {known[1]} (removed)"
    if plan.subject != BY_RANGE:
        return "the row cannot be read"
    first, last = keys
    return (
        "imei_from is above imei_to" if first > last else f"the range holds {-(-(last - first + 1) // SNR_KEYS)} TACs"
    )


USUAL_DATES = "20261231, 2026-12-31 or 2026-12-31T12:00:00Z"

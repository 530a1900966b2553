"""Layouts of foreign data files, which `eir publish` and `eir add --file` convert to the layout `eir`.

The configuration may declare further layouts (`layouts`).
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from eir.device import device_key
from eir.errors import IdentifierError, ReleaseRefused
from eir.lists.record.reasons import Reasons
from eir.lists.record.settings import DEVICES, PAIRS, TYPES, Layout
from eir.lists.releases.records import split_records
from eir.lists.rows.layout import (
    ACTION,
    BY_IMEI,
    BY_PAIR,
    BY_TYPE,
    CHANGE,
    DATE,
    EIR,
    KEY_OF,
    REASON,
    UNTIL,
    header_names,
    plan_for,
    separator_hint,
)
from eir.lists.rows.listed_rows import ListedRows
from eir.lists.table.columns import SECONDS, is_first, join

if TYPE_CHECKING:
    from eir.lists.rows.reader import RowPart, Tally

ALLOCATED = "allocation_date"
"""Column of foreign files of device types with the allocation date of a TAC."""
_DIRBS = {"imei": "imei", "imsi": "imsi", REASON: "reasons", DATE: "block_date"}
_TACS = {"tac": "tac", "device_type": "device_type", DATE: ALLOCATED}
_NO_SEPARATOR = "\x1f"  # a character that no line contains: in the layout `imei` the whole line is the identifier

LAYOUTS: Mapping[str, Layout] = {layout.name: layout for layout in (
    EIR,
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
)}  # fmt: skip
"""Built-in layouts by name."""
_HEADERS = {
    "imei,block_date,reasons": "dirbs-blacklist",
    "imei,imsi,msisdn,block_date,reasons": "dirbs-notifications",
    "imei,imsi,msisdn,block_date,reasons,amnesty_granted": "dirbs-notifications",
    "imei,imsi,msisdn": "dirbs-exceptions",
    "imei,reporting_date,status": "lsds",
    "imei,reporting_date,status,change_type": "lsds",
}


def find_layout(name: str, begin: bytes, layout: str | None, declared: Mapping[str, Layout]) -> Layout:
    """Return the built-in or declared layout of a data file.

    Args:
        name: name of the file for messages.
        begin: begin of the file, at least its first line.
        layout: name of the layout; None: guessed from the first line among the built-in layouts.
        declared: layouts of the configuration by name. A built-in layout of the same name has priority.

    Raises:
        ReleaseRefused: `layout`, if the layout is unknown, or none fits.
    """
    known = {**declared, **LAYOUTS}
    layout_name = layout or guess_layout(begin.partition(b"\n")[0])
    if layout_name is None:
        raise ReleaseRefused("layout", f"{name}: {_layout_fault(begin)}; give one of {', '.join(known)} (--layout)")
    if layout_name not in known:
        expected = f"expected one of {', '.join(known)}; the configuration may declare others (layouts)"
        raise ReleaseRefused("layout", f"{name}: layout {layout_name!r} is unknown; {expected}")
    return known[layout_name]


def guess_layout(first_line: bytes) -> str | None:
    """Return the name of the built-in layout for a file with this first line, or None if no layout fits."""
    names = header_names(first_line)
    joined = [name.replace(" ", "_") for name in names]
    if known := _HEADERS.get(",".join(names)):
        return known
    if {*BY_TYPE} <= {*joined} and (ALLOCATED in joined or joined != names):
        return "tacs"
    if {*BY_TYPE} <= {name.replace(" ", "_") for name in header_names(first_line, "|")}:
        return "gsma-tacs"
    if EIR.columns.keys() & KEY_OF.keys() & {*names}:
        return EIR.name
    try:
        device_key(",".join(names))
    except IdentifierError:
        return None
    return "imei"


def _layout_fault(content: bytes) -> str:
    """Return the reason for which no built-in layout fits a file. `content`: beginning of the file, at least its first line."""
    if not content:
        return "the file is empty"
    first_line, line_end, _ = content.partition(b"\n")
    if not first_line.strip():
        return "its first line is blank"
    if b"\r" in first_line.rstrip(b"\r"):
        return "its lines end with CR alone; save it with LF or CRLF"
    hint = separator_hint(first_line) or " (no column is named imei, or as in another layout)"
    if not line_end:
        hint = " (the file ends within it and may be truncated)"
    return f"no layout fits its first line{hint}"


def kinds_for(name: str, layout: Layout, header: bytes) -> list[str]:
    """Return the kinds of list into which a file with this header line can be loaded.

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
    """Return a warning for each unknown column of a file in the layout `eir`; files in other layouts may have unknown columns."""
    if layout.name != "eir":
        return []
    warnings = []
    for column in header_names(header):
        if column not in layout.columns:
            similar = difflib.get_close_matches(column, layout.columns, n=1)
            hint = f"; did you mean {similar[0]!r}?" if similar else ""
            warnings.append(f"{column!r}{hint}")
    return warnings


def read_file(
    chunks: Iterable[bytes], *, name: str, layout: Layout, kind: str, reasons: Reasons, tally: "Tally"
) -> Iterator["RowPart"]:
    """Yield the rows of a data file in any layout. Arguments and errors as `read_rows`.

    Raises:
        ReleaseRefused: also `rows`, if the header or trailer record has another number of rows.
    """
    from eir.lists.rows.reader import read_rows  # noqa: PLC0415 - its import takes a while, and the configuration imports this module

    lines, counts = split_records(chunks, name, layout)
    count = 0
    for part in read_rows(
        lines, name=name, layout=layout, kind=kind, reasons=reasons, tally=tally, first_line=1 + layout.lines_before
    ):
        count += part.row_count
        yield part
    for record, promised in counts.items():
        if promised != count:
            raise ReleaseRefused("rows", f"{name} has {count} rows; its {record} says {promised}")


def add_latest(parts: Sequence["RowPart"], rows: Mapping[str, ListedRows]) -> None:
    """Add the last row about each entry to the rows of its role. A full release omits rows that remove their entry."""
    every = join([part.rows for part in parts])
    lasts = np.concatenate([part.rows.keys if part.lasts is None else part.lasts for part in parts])
    removes = np.concatenate([part.removes for part in parts if part.removes is not None])
    entry = (lasts, every.column(SECONDS), every.keys)
    order = np.lexsort(entry)
    is_latest = np.append(is_first(*(column[order] for column in entry)), True)[1:]
    for role, is_of_role in zip(rows, (~removes, removes), strict=False):
        where = order[is_latest & is_of_role[order]]
        rows[role].add(every.select(where), lasts[where])

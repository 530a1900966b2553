"""Public statistics of one month: counts of devices by list, reason, maker and peer. Small counts are suppressed.

Three steps make sure that no published number stands for fewer than ten devices, and that none can be computed from the others:

- A count below ten is not given. Neither is its number of attempts.
- In each table beside a total, further counts are withheld, the smallest first, until the hidden rows are at least two and have at
  least ten devices together by the difference of the total and the visible rows.
- All counts are rounded to tens.

A figure whose source does not cover the whole month has no numbers: a 0 would claim that nothing happened. The document states the covered
days. Reasons and makers below ten devices are one row, because a reason is free text and there are thousands of TACs. A merged figure is the
sum of published figures, so it discloses nothing that these do not. No I/O.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

from eir.errors import EirError

FORMAT = "eir-figures/1"
BELOW = 10
"""Number of devices below which a count is suppressed, and to which counts are rounded."""
FEW, WITHHELD = f"fewer than {BELOW}", "withheld"
LIST, REASON, MAKER, PEER, CONDITION = "list", "reason", "maker", "peer", "condition"
FOLDED = frozenset({REASON, MAKER})
"""Dimensions whose small rows are one row."""
ROWS_MAX = 30
"""Maximum number of rows of such a dimension, in addition to the row of all others."""
OTHER, UNKNOWN = "all others", "not known"
DEVICES, ATTEMPTS = "devices", "attempts"
"""Numbers of a row: devices, and attempts (checks) of these devices."""
COLUMNS = ("figure", "by", "name", DEVICES, ATTEMPTS)
_MONTH = re.compile(r"[0-9]{4}-(0[1-9]|1[0-2])")
_IDENTIFIER = re.compile(r"[0-9][0-9 -]{4,}[0-9]")

Value: TypeAlias = int | str
"""Rounded number, or FEW or WITHHELD."""
Document: TypeAlias = Mapping[str, Any]
"""JSON object: the figures of a month, one figure, or one row."""
Maker: TypeAlias = Callable[[int], str]
"""Function that returns the name of the maker of a TAC."""
Counts: TypeAlias = dict[str, Counter[str]]
"""Name of each row of a table → the numbers of the row (DEVICES, ATTEMPTS)."""


class Figure(NamedTuple):
    """Figure that is published each month: a total, and a table for each dimension, such as list or maker."""

    title: str
    dimensions: tuple[str, ...]
    numbers: tuple[str, ...] = (DEVICES,)


FIGURES: Mapping[str, Figure] = {
    "listed": Figure("Devices added to lists", (LIST, REASON, MAKER)),
    "unlisted": Figure("Devices removed from lists", (LIST, REASON, MAKER)),
    "refused": Figure("Devices refused", (LIST, REASON, MAKER, PEER), (DEVICES, ATTEMPTS)),
    "returned": Figure("Devices that came back after they were unlisted", (LIST, MAKER, PEER)),
    "grace_begun": Figure("Periods of grace that began", (MAKER,)),
    "grace_ended": Figure("Periods of grace that ended", (MAKER,)),
    "copies_found": Figure("Copied identities found", (CONDITION, MAKER)),
    "copies_confirmed": Figure("Copied identities confirmed by a person", (MAKER,)),
}
"""Name of each figure → its definition, in the order of the output."""


@dataclass(slots=True)
class FigureTally:
    """Exact counts of one published figure: the total, and a count for each row (name) of each table (dimension)."""

    total: Counter[str] = field(default_factory=Counter)
    by: dict[str, Counts] = field(default_factory=lambda: defaultdict(lambda: defaultdict(Counter)))

    def add(self, devices: int, **names: str) -> None:
        """Add `devices` to the total count of devices, and to one row of each dimension in `names` (dimension → row's name)."""
        self.total[DEVICES] += devices
        for dimension, name in names.items():
            self.by[dimension][name][DEVICES] += devices


class Coverage(NamedTuple):
    """Period that a source of figures covers: begin, and time after its end (UTC)."""

    begin: datetime
    end: datetime

    def holds(self, begin: datetime, end: datetime) -> bool:
        """Return True if the source covers the whole period from `begin` until before `end`."""
        return self.begin <= begin and end <= self.end

    def days(self, begin: datetime, end: datetime) -> list[str] | None:
        """Return the first and the last day of the period that the source covers; None if it covers none."""
        first, last = max(self.begin, begin), min(self.end, end) - timedelta(microseconds=1)
        return [f"{first:%Y-%m-%d}", f"{last:%Y-%m-%d}"] if first <= last else None


def record_coverage(days: Sequence[datetime], now: datetime, *, is_recording: bool) -> Coverage | None:
    """Return the period that a record of checks covers; None for a record without files.

    Args:
        days: days that have files, in order.
        now: present time.
        is_recording: True if the node records now. Then the record covers days without files too, because no check came on them.
    """
    if not days:
        return None
    return Coverage(days[0], now if is_recording else min(days[-1] + timedelta(days=1), now))


def document(
    operator: str, month: str, tallies: Mapping[str, FigureTally], covered: Mapping[str, list[str] | None] = MappingProxyType({})
) -> Document:  # fmt: skip
    """Build the document of a month's figures for publication.

    Args:
        operator: name of the operator.
        month: month, such as `2026-11`.
        tallies: counts of each figure whose source covers the whole month. A figure without a tally is null.
        covered: for each figure whose source does not, the first and the last day that it covers; None for no day.
    """
    figures: dict[str, Document | None] = dict.fromkeys(FIGURES)
    for name, tally in tallies.items():
        figures[name] = _published(FIGURES[name], tally)
    return {**_document([operator], month, figures), "covered": {**covered}}


def _document(names: Iterable[str], month: str, figures: Mapping[str, Document | None]) -> Document:
    """Build the document of one or more operators' figures."""
    ordered = sorted(names)
    return {
        "format": FORMAT,
        "month": month,
        "operators": len(ordered),
        "names": ordered,
        "figures": figures,
        "covered": {},
    }


def _published(figure: Figure, tally: FigureTally) -> Document:
    by = {dimension: _rows(figure, tally, dimension) for dimension in figure.dimensions}
    text = FEW if 0 < tally.total[DEVICES] < BELOW else ""
    return {"operators": 1, **_values(figure, tally.total, text), "by": by}


def _rows(figure: Figure, tally: FigureTally, dimension: str) -> list[Document]:
    counts = tally.by[dimension]
    if dimension in FOLDED:
        counts = _fold(counts)
    devices = {name: numbers[DEVICES] for name, numbers in counts.items()}
    texts = hidden_rows(devices, tally.total[DEVICES])
    rows = [{"name": name, **_values(figure, counts[name], texts.get(name, ""))} for name in counts]
    return sorted(rows, key=_place)


def _fold(counts: Counts) -> Counts:
    """Shorten a table to its largest rows: at most ROWS_MAX, each with at least BELOW devices. Add up all other rows in the row OTHER."""
    ranked = sorted(sorted(counts), key=lambda name: counts[name][DEVICES], reverse=True)
    largest = {name for name in ranked[:ROWS_MAX] if counts[name][DEVICES] >= BELOW}
    rows: Counts = defaultdict(Counter)
    for name, numbers in counts.items():
        row = name if name in largest else OTHER
        rows[row] += numbers
    return rows


def hidden_rows(counts: Mapping[str, int], total: int) -> dict[str, str]:
    """Choose the rows of a table whose counts must be hidden; return the text that replaces each count.

    Args:
        counts: number of devices of each row. A row of 0 is not hidden.
        total: number of devices that is published beside the table.
    """
    texts = {name: FEW for name, devices in counts.items() if 0 < devices < BELOW}
    rest = total - sum(devices for devices in counts.values() if devices >= BELOW)
    for name in sorted(sorted(counts, reverse=True), key=counts.__getitem__):
        is_safe = not texts or (len(texts) > 1 and rest >= BELOW)
        if counts[name] >= BELOW and not is_safe:
            texts[name] = WITHHELD
            rest += counts[name]
    return texts


def _values(figure: Figure, numbers: Counter[str], text: str) -> dict[str, Value]:
    """Return the numbers of a row for publication, rounded. If `text` is not empty, it replaces the number of devices."""
    if text:
        return {**dict.fromkeys(figure.numbers, WITHHELD), DEVICES: text}
    return {each: (numbers[each] + BELOW // 2) // BELOW * BELOW for each in figure.numbers}


def _place(row: Document) -> tuple[int, str]:
    """Return the sort key of a table row: most devices first, hidden counts last. Rows with equal counts are sorted by name."""
    devices = row[DEVICES]
    return (-devices if isinstance(devices, int) else 0), row["name"]


def public_text(text: str) -> str:
    """Replace each long number in a free text by `…`, because it could identify a device, a case or a person.

    A long number has at least 6 characters: digits, with spaces or hyphens between them.
    """
    return _IDENTIFIER.sub("…", text)


def present_figures(found: Document) -> dict[str, Document]:
    """Return the figures of a month's document that have data, in the order of FIGURES."""
    return {name: part for name, part in found["figures"].items() if part is not None}


def table_rows(found: Document) -> Iterator[dict[str, Any]]:
    """Yield a month's figures as rows with COLUMNS: for each figure first its total, then its rows by dimension."""
    for figure, part in present_figures(found).items():
        total = {**part, "name": ""}
        for dimension, rows in {"": [total], **part["by"]}.items():
            for row in rows:
                yield {"figure": figure, "by": dimension, "name": row["name"], DEVICES: row[DEVICES], ATTEMPTS: row.get(ATTEMPTS, "")}  # fmt: skip


# Several operators


COUNT_MAX = 10**12
"""Numbers of a file must be below this."""


def read_document(found: Any) -> Document:
    """Check the parsed JSON of a file, and return its figures; members that this program does not know are left out.

    Raises:
        ValueError: if the file has no figures of this format, or numbers that cannot be published.
    """
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(f"no figures of the form {FORMAT}; eir figures --json writes them")
    try:
        names, month, parts = found["names"], found["month"], found["figures"]
        if not isinstance(names, list) or not names:
            raise ValueError("names: expected a list of operators")
        if not _MONTH.fullmatch(str(month)):
            raise ValueError("month: expected a month such as 2026-11")
        figures = {name: None if parts.get(name) is None else _read_figure(name, parts[name]) for name in FIGURES}
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"no figures of the form {FORMAT}: {error} is missing or has another type") from None
    return _document(map(_read_name, names), month, figures)


def _read_figure(name: str, part: Document) -> Document:
    figure = FIGURES[name]
    by = {
        dimension: [
            {"name": _read_name(row["name"]), **_read_values(figure, row, name)} for row in part["by"][dimension]
        ]
        for dimension in figure.dimensions
    }
    operators = part["operators"]
    if type(operators) is not int or not 0 < operators < COUNT_MAX:
        raise ValueError(f"{name}: operators: expected a whole number from 1")
    return {"operators": operators, **_read_values(figure, part, name), "by": by}


def _read_values(figure: Figure, row: Document, name: str) -> dict[str, Value]:
    return {each: _read_value(row[each], f"{name}: {each}") for each in figure.numbers}


def _read_name(name: Any) -> str:
    """Return a name; half of a surrogate pair is no text, because UTF-8 cannot encode it."""
    if not isinstance(name, str) or name.encode(errors="ignore").decode() != name:
        raise ValueError("name: expected a text")
    return name


def _read_value(value: Any, place: str) -> Value:
    if value is None:
        return WITHHELD
    if isinstance(value, str) and value in {FEW, WITHHELD}:
        return value
    if type(value) is int and (value == 0 or BELOW <= value < COUNT_MAX):
        return value
    raise ValueError(f"{place}: expected null, 0, a whole number from {BELOW} below 10^12, `{FEW}` or `{WITHHELD}`")


def merge(documents: Sequence[Document]) -> Document:
    """Add up the monthly figures of several operators. If an operator's number is hidden, the sum is withheld.

    Raises:
        EirError: if the months differ, or an operator occurs twice.
    """
    months = sorted({each["month"] for each in documents})
    if len(months) != 1:
        raise EirError(f"the files are of several months: {', '.join(months)}; merge the files of one month")
    names = Counter(name for each in documents for name in each["names"])
    if twice := [name for name, files in names.items() if files > 1]:
        raise EirError(f"several files have figures of {', '.join(twice)}; merge one file of each operator")
    figures: dict[str, Document | None] = dict.fromkeys(FIGURES)
    for name, figure in FIGURES.items():
        present = [each["figures"].get(name) for each in documents]
        if parts := [part for part in present if part is not None]:
            by = {dimension: _merged_rows(figure, parts, dimension) for dimension in figure.dimensions}
            counted = sum(part["operators"] for part in parts)
            figures[name] = {"operators": counted, **_sums(figure, parts), "by": by}
    return _document(names, months[0], figures)


def _merged_rows(figure: Figure, parts: Sequence[Document], dimension: str) -> list[Document]:
    rows: dict[str, Document] = {}
    for part in parts:
        for row in part["by"][dimension]:
            name = row["name"]
            rows[name] = {"name": name, **_sums(figure, [rows[name], row])} if name in rows else row
    return sorted(rows.values(), key=_place)


def _sums(figure: Figure, rows: Sequence[Document]) -> dict[str, Value]:
    return {each: _sum([row[each] for row in rows]) for each in figure.numbers}


def _sum(values: Sequence[Any]) -> Value:
    """Return the sum of the values. If one of several values is hidden, return WITHHELD; if the only value is hidden, return its text."""
    if not {FEW, WITHHELD}.isdisjoint(values):
        return str(values[0]) if len(values) == 1 else WITHHELD
    return sum(map(int, values))

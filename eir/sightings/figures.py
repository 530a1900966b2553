"""Figures of a month for the public: counts of devices by list, reason, maker and peer, with small counts suppressed.

Three steps make sure that no published number stands for fewer than ten devices, and that none can be computed from the others:

- A count below ten is not given. Neither is its number of attempts.
- In each table beside a total, further counts are withheld, the smallest first, until the hidden rows are at least two and have at
  least ten devices together by the difference of the total and the visible rows.
- All counts are rounded to tens.

Reasons and makers below ten devices are one row, because a reason is free text and there are thousands of TACs. A merged figure is the
sum of published figures, so it discloses nothing that these do not. No I/O.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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
"""Maximum number of rows of such a dimension, besides the row of all others."""
OTHER, UNKNOWN = "all others", "not known"
DEVICES, ATTEMPTS = "devices", "attempts"
COLUMNS = ("figure", "by", "name", DEVICES, ATTEMPTS)
_IDENTIFIER = re.compile(r"[0-9][0-9 -]{4,}[0-9]")

Value: TypeAlias = int | str
"""Rounded number, or FEW or WITHHELD."""


class Figure(NamedTuple):
    """Definition of a figure: title, tables (dimensions), and whether it counts attempts."""

    title: str
    dimensions: tuple[str, ...]
    has_attempts: bool = False


FIGURES: Mapping[str, Figure] = {
    "listed": Figure("Devices added to lists", (LIST, REASON, MAKER)),
    "unlisted": Figure("Devices removed from lists", (LIST, REASON, MAKER)),
    "refused": Figure("Devices refused", (LIST, REASON, MAKER, PEER), has_attempts=True),
    "returned": Figure("Devices that came back after they were unlisted", (LIST, MAKER, PEER)),
    "grace_begun": Figure("Periods of grace that began", (MAKER,)),
    "grace_ended": Figure("Periods of grace that ended", (MAKER,)),
    "copies_found": Figure("Copied identities found", (CONDITION, MAKER)),
    "copies_confirmed": Figure("Copied identities confirmed by a person", (MAKER,)),
}
"""Name of each figure → its definition, in the order of the output."""


@dataclass(slots=True)
class Count:
    """Number of devices, and of the attempts (checks) of these devices."""

    devices: int = 0
    attempts: int = 0

    def add(self, devices: int, attempts: int = 0) -> None:
        """Add to the numbers of devices and attempts."""
        self.devices += devices
        self.attempts += attempts


@dataclass(slots=True)
class FigureTally:
    """Exact counts of one figure: in total, and by the names of each dimension."""

    total: Count = field(default_factory=Count)
    by: dict[str, dict[str, Count]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(Count)))

    def add(self, devices: int, **names: str) -> None:
        """Count devices once in the total, and once in the row of each name."""
        self.total.add(devices)
        for dimension, name in names.items():
            self.by[dimension][name].add(devices)


def document(month: str, tallies: Mapping[str, FigureTally | None]) -> dict[str, Any]:
    """Build the document of a month's figures for publication. A tally of None means that this node has no data."""
    figures = {
        name: None if (tally := tallies.get(name)) is None else _published(FIGURES[name], tally) for name in FIGURES
    }
    return {"format": FORMAT, "month": month, "operators": 1, "figures": figures}


def _published(figure: Figure, tally: FigureTally) -> dict[str, Any]:
    total = tally.total
    text = FEW if 0 < total.devices < BELOW else ""
    return {
        "operators": 1,
        **_cells(figure, total, text),
        "by": {each: _rows(figure, total, each, tally.by.get(each, {})) for each in figure.dimensions},
    }


def _rows(figure: Figure, total: Count, dimension: str, counts: Mapping[str, Count]) -> list[dict[str, Any]]:
    rows = sorted(_folded(counts) if dimension in FOLDED else counts.items(), key=_order)
    shown = [row for row in rows if row[1].devices >= BELOW]
    withheld = list[tuple[str, Count]]()
    while len(shown) + len(withheld) < len(rows) and shown:
        rest = total.devices - sum(count.devices for _, count in shown)
        if len(rows) - len(shown) > 1 and rest >= BELOW:
            break
        withheld.append(shown.pop())
    texts = dict.fromkeys((name for name, _ in shown), "") | dict.fromkeys((name for name, _ in withheld), WITHHELD)
    hidden = sorted(row for row in rows if row not in shown)
    return [{"name": name, **_cells(figure, count, texts.get(name, FEW))} for name, count in (*shown, *hidden)]


def _order(row: tuple[str, Count]) -> tuple[int, str]:
    name, count = row
    return -count.devices, name


def _folded(counts: Mapping[str, Count]) -> Iterator[tuple[str, Count]]:
    """Yield the largest rows, and one row with the sum of all other rows."""
    rest = Count()
    for place, (name, count) in enumerate(sorted(counts.items(), key=_order)):
        if place < ROWS_MAX and count.devices >= BELOW and name != OTHER:
            yield name, count
        else:
            rest.add(count.devices, count.attempts)
    if rest.devices:
        yield OTHER, rest


def _cells(figure: Figure, count: Count, text: str) -> dict[str, Value]:
    """Return the rounded numbers of a row, or `text` in place of hidden numbers."""
    cells: dict[str, Value] = {DEVICES: text or _rounded(count.devices)}
    if figure.has_attempts:
        cells[ATTEMPTS] = WITHHELD if text else _rounded(count.attempts)
    return cells


def _rounded(number: int) -> int:
    return (number + BELOW // 2) // BELOW * BELOW


def public_text(text: str) -> str:
    """Replace in a free text all digits that may identify a device, a case or a person."""
    return _IDENTIFIER.sub("…", text)


# Several operators


def merge(documents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Add up several operators' figures of one month. A sum is withheld if one of its numbers is hidden.

    Raises:
        EirError: if the months differ.
    """
    months = sorted({str(each["month"]) for each in documents})
    if len(months) != 1:
        raise EirError(f"the files are of several months: {', '.join(months)}; merge the files of one month")
    figures = {
        name: _merged(FIGURES[name], [part for each in documents if (part := each["figures"].get(name)) is not None])
        for name in FIGURES
    }
    operators = sum(int(each["operators"]) for each in documents)
    return {"format": FORMAT, "month": months[0], "operators": operators, "figures": figures}


def _merged(figure: Figure, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    if not parts:
        return None
    by = {}
    for dimension in figure.dimensions:
        rows: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        for row in (row for part in parts for row in part["by"][dimension]):
            rows[str(row["name"])].append(row)
        merged_rows = [{"name": name, **_sums(figure, same)} for name, same in rows.items()]
        by[dimension] = sorted(merged_rows, key=_place)
    return {"operators": sum(int(part["operators"]) for part in parts), **_sums(figure, parts), "by": by}


def _sums(figure: Figure, rows: Iterable[Mapping[str, Any]]) -> dict[str, Value]:
    rows = [*rows]
    names = (DEVICES, ATTEMPTS) if figure.has_attempts else (DEVICES,)
    return {name: _sum([row[name] for row in rows]) for name in names}


def _sum(values: Sequence[Value]) -> Value:
    numbers = [value for value in values if type(value) is int]
    if len(numbers) == len(values):
        return sum(numbers)
    if not {FEW, WITHHELD}.issuperset(value for value in values if type(value) is not int):
        raise ValueError(values)
    return values[0] if len(values) == 1 else WITHHELD


def _place(row: Mapping[str, Any]) -> tuple[int, str]:
    devices = row[DEVICES]
    return (-devices if isinstance(devices, int) else 0), row["name"]


def check_document(found: Any, place: str) -> dict[str, Any]:
    """Check a document of figures that was read from the file `place`, and return it without unknown members.

    Raises:
        EirError: if it is no such document.
    """
    try:
        if found["format"] == FORMAT:
            return merge([found])
    except (AttributeError, KeyError, TypeError, ValueError):
        pass
    raise EirError(f"{place}: no figures of the form {FORMAT}; eir figures --json writes them")


def table_rows(found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a document as a table with COLUMNS: each figure with its total, then by each dimension."""
    for name, figure in FIGURES.items():
        part = found["figures"].get(name)
        if part is None:
            continue
        yield {"figure": name, "by": "", "name": "", DEVICES: part[DEVICES], ATTEMPTS: part.get(ATTEMPTS, "")}
        for dimension in figure.dimensions:
            for row in part["by"][dimension]:
                yield {
                    "figure": name,
                    "by": dimension,
                    "name": row["name"],
                    DEVICES: row[DEVICES],
                    ATTEMPTS: row.get(ATTEMPTS, ""),
                }

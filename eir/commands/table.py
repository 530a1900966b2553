"""Tables for people: rows of named values in columns, whole words always, however narrow the terminal. Imports nothing of ours.

In a pipe a row is a line. On a terminal too narrow for that the last column goes on below, and where the others alone are too
wide, each row becomes a record of `name  value` lines.
"""

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.cells import cell_len

GAP = "  "
BESIDE_MIN = 24
"""Columns that are left for the last cell if it is to be folded beside the others, not below them."""
INDENT = "    "
NOTHING = "-"

Form = Callable[[Any], str]


def table(
    rows: Iterable[Mapping[str, Any]], columns: Sequence[str], *, width: int | None, forms: Mapping[str, Form] | None = None
) -> str:
    """The rows as text, each line ended; `width` is the terminal's, None for a pipe.

    `forms` says for a column how a value that is there is shown, where that is not its text.
    """
    values = [[row.get(column) for column in columns] for row in rows]
    cells = [[_cell(value, (forms or {}).get(column)) for value, column in zip(row, columns, strict=True)] for row in values]
    heads = [column.replace("_", " ") for column in columns]
    right = [all(isinstance(row[at], int | float | None) for row in values) and bool(values) for at in range(len(columns))]
    widest = [max((cell_len(row[at]) for row in cells), default=0) for at in range(len(columns))]
    gaps = len(GAP) * (len(columns) - 1)
    sizes = [max(size, len(head)) for size, head in zip(widest, heads, strict=True)]
    if width is None or sum(sizes) + gaps <= width:
        return _lines([heads, *cells], sizes, right)
    sizes = [max(size, *map(len, head.split())) for size, head in zip(widest, heads, strict=True)]
    if sum(sizes) + gaps <= width:
        return _lines([*_head(heads, sizes), *cells], sizes, right)
    before_last = sum(sizes[:-1]) + gaps
    if before_last + max(map(len, heads[-1].split())) > width:
        return _records(heads, cells)
    # The last column holds the longest texts by the caller's choice: it is the one that is folded.
    room = width - before_last
    beside = room >= BESIDE_MIN
    folded = []
    for row in cells:
        first, *more = textwrap.wrap(row[-1], room, break_on_hyphens=False) if beside else [""]
        folded.append([*row[:-1], first])
        folded += [[*[""] * (len(row) - 1), line] for line in more]
        if not beside:
            folded += [[f"{INDENT}{line}"] for line in textwrap.wrap(row[-1], width - len(INDENT), break_on_hyphens=False)]
    return _lines([*_head(heads, [*sizes[:-1], max(room, len(heads[-1]))]), *folded], sizes, right)


def minute(value: str | float) -> str:
    """A time, ISO 8601 or Unix seconds, to the minute; UTC, as the Z says."""
    if not value:
        return NOTHING
    moment = datetime.fromisoformat(value) if isinstance(value, str) else datetime.fromtimestamp(value, UTC)
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%MZ}"


def second(value: str) -> str:
    """A time, ISO 8601, to the second; UTC, as the Z says."""
    return f"{datetime.fromisoformat(value).astimezone(UTC):%Y-%m-%d %H:%M:%SZ}"


def _cell(value: Any, form: Form | None) -> str:
    if value is None or value in ("", []):
        return NOTHING
    if isinstance(value, list):
        return ", ".join(_cell(each, form) for each in value)
    text = form(value) if form is not None else str(value)
    # Names come from the wire and from files: none of them is to steer a terminal.
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def _head(heads: Sequence[str], sizes: Sequence[int]) -> list[list[str]]:
    """The names of the columns, folded at blanks, standing on the first row."""
    folded = [textwrap.wrap(head, size, break_long_words=False) for head, size in zip(heads, sizes, strict=True)]
    height = max(map(len, folded))
    return [[([""] * (height - len(head)) + head)[line] for head in folded] for line in range(height)]


def _lines(rows: Iterable[Sequence[str]], sizes: Sequence[int], right: Sequence[bool]) -> str:
    return "".join(
        GAP.join(
            _padded(cell, size, at_right=to_right) for cell, size, to_right in zip(row, sizes, right, strict=False)
        ).rstrip() + "\n"
        for row in rows
    )  # fmt: skip


def _padded(text: str, size: int, *, at_right: bool) -> str:
    padding = " " * (size - cell_len(text))
    return padding + text if at_right else text + padding


def _records(heads: Sequence[str], cells: Iterable[Sequence[str]]) -> str:
    size = max(map(len, heads))
    return "\n".join(
        "".join(f"{head:<{size}}{GAP}{cell}\n" for head, cell in zip(heads, row, strict=True)) for row in cells
    )

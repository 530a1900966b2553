"""Formatting of tables for terminals and pipes, without splitting words on narrow terminals.

In a pipe, each row is a line. On a terminal that is too narrow, the heads are folded, then the last column, which continues below the row if
it has too little room. If the other columns alone are too wide, all columns are folded. If that is not enough, each row becomes a record of
`name  value` lines. rich does the layout; this module computes the column widths, since rich may split a word.
"""

import textwrap
from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from eir.cli.output import cell

GAP = 2
"""Number of blanks between columns."""
FOLDED_MIN = 24
"""Minimum width in characters of the last column to fold it beside the others, not below them."""
FOLDS_MAX = 3
"""Maximum number of lines of a cell if all columns are folded; above it, records are easier to read."""
INDENT = "    "


def table(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str], *, width: int | None, short: Sequence[str] = ()
) -> str:
    """Format rows as a table, with a newline after each line.

    `width`: columns of the terminal; None for a pipe. `short`: columns to use before each row becomes a record of
    lines.
    """
    values = [[row.get(column) for column in columns] for row in rows]
    cells = [[cell(value, column) for value, column in zip(row, columns, strict=True)] for row in values]
    heads = [column.replace("_", " ") for column in columns]
    words = [max(map(cell_len, head.split())) for head in heads]
    widest = [max((cell_len(row[at]) for row in cells), default=0) for at in range(len(heads))]
    sizes = [max(size, cell_len(head)) for size, head in zip(widest, heads, strict=True)]
    gaps = GAP * (len(heads) - 1)
    below: list[list[str]] = []
    if width is not None and sum(sizes) + gaps > width:
        sizes = [max(size, word) for size, word in zip(widest, words, strict=True)]
        room = width - sum(sizes[:-1]) - gaps
        longest = max((cell_len(word) for row in cells for word in row[-1].split()), default=0)
        least = [
            max([word, *(cell_len(part) for row in cells for part in row[at].split())]) for at, word in enumerate(words)
        ]
        if room < words[-1] or longest > width - len(INDENT):
            spare = width - gaps - sum(least)
            for at in sorted(range(len(sizes)), key=lambda at: sizes[at] - least[at]):
                sizes[at] = min(sizes[at], least[at] + max(spare, 0))
                spare -= sizes[at] - least[at]
            folds = max(
                (len(textwrap.wrap(row[at], size)) for row in cells for at, size in enumerate(sizes)), default=0
            )
            if (spare < 0 or folds > FOLDS_MAX) and short:
                return table(rows, short, width=width)
            if spare < 0 or folds > FOLDS_MAX:
                size = max(map(cell_len, heads)) + GAP
                return "\n".join(
                    "".join(f"{head:<{size}}{each}\n" for head, each in zip(heads, row, strict=True)) for row in cells
                )
            room = sizes[-1]
        if sizes[-1] > room and max(longest, FOLDED_MIN) > room:
            below = [
                textwrap.wrap(row[-1], width, initial_indent=INDENT, subsequent_indent=INDENT, break_on_hyphens=False)
                for row in cells
            ]
            cells = [[*row[:-1], ""] for row in cells]
        sizes[-1] = min(sizes[-1], room)
    grid = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="")
    for at, head in enumerate(heads):
        numbers = bool(values) and all(isinstance(row[at], int | float | None) for row in values)
        grid.add_column(Text(head), width=sizes[at], justify="right" if numbers else "left", overflow="fold")
    for row in cells:
        grid.add_row(*map(Text, row))
    console = Console(file=StringIO(), width=sum(sizes) + GAP * len(sizes), color_system=None, force_terminal=False)
    with console.capture() as shown:
        console.print(grid)
    lines = shown.get().splitlines()
    if below:  # and so each row is one line
        lines[-len(below) :] = [
            each for line, more in zip(lines[-len(below) :], below, strict=True) for each in (line, *more)
        ]
    return "".join(f"{line.rstrip()}\n" for line in lines)

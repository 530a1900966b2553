"""Formatting of tables for terminals and pipes, without splitting words on narrow terminals.

In a pipe, each row is a line. On a terminal that is too narrow, the heads are folded, then the last column, which continues below the row if
it has too little room. If the other columns alone are too wide, all columns are folded. If that is not enough, each row becomes a record of
`name  value` lines. rich folds cells; this module computes the column widths, since rich may split a word.
"""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from operator import le
from typing import Any, TypeAlias

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

GAP = 2
"""Number of blanks between columns."""
FOLDED_MIN = 24
"""Minimum width in characters of the last column to fold it beside the others, not below them."""
FOLDS_MAX = 3
"""Maximum number of lines of a cell if all columns are folded; above it, records are easier to read."""
INDENT = "    "
Cells: TypeAlias = Sequence[Sequence[str]]
"""Texts of the cells, by row and column."""


def render_table(
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str],
    form: Callable[[Any, str], str],
    *,
    width: int | None,
    short: Sequence[str] = (),
) -> str:
    """Format rows as a table, with a newline after each line.

    `form`: function that formats a value for a column. `width`: columns of the terminal; None for a pipe. `short`: columns to use before each row becomes a record of
    lines.
    """
    values = [[row.get(column) for column in columns] for row in rows]
    cells = [[*map(form, row, columns)] for row in values]
    heads = [column.replace("_", " ") for column in columns]
    widest = _widths(cells, heads, _width)
    sizes = [max(size, _width(head)) for size, head in zip(widest, heads, strict=True)]
    gaps = GAP * (len(heads) - 1)
    below: list[list[str]] = []
    if width is not None and sum(sizes) + gaps > width:
        head_words = [_longest_word(head) for head in heads]
        sizes = list(map(max, widest, head_words))
        room = width - sum(sizes[:-1]) - gaps
        longest = max((_longest_word(row[-1]) for row in cells), default=0)
        if room < head_words[-1] or longest > width - len(INDENT):
            least = list(map(max, head_words, _widths(cells, heads, _longest_word)))
            if not _fold(sizes, least, width - gaps) or _lines_of_highest(cells, sizes) > FOLDS_MAX:
                return render_table(rows, short, form, width=width) if short else _records(cells, heads)
            room = sizes[-1]
        if sizes[-1] > room and max(longest, FOLDED_MIN) > room:
            below = [_wrapped_below(row[-1], width) for row in cells]
            cells = [[*row[:-1], ""] for row in cells]
        sizes[-1] = min(sizes[-1], room)
    is_numeric = [all(isinstance(row[at], int | float | None) for row in values) for at in range(len(heads))]
    lines = _layout(cells, heads, sizes, is_numeric)
    if below:  # each row is one line, because its last cell is empty
        first = len(lines) - len(below)
        lines_of_rows = zip(lines[first:], below, strict=True)
        lines[first:] = [each for line, more in lines_of_rows for each in (line, *more)]
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _width(text: str) -> int:
    return len(text) if text.isascii() else cell_len(text)


def _longest_word(text: str) -> int:
    return max(map(_width, text.split()), default=0)


def _widths(cells: Cells, heads: Sequence[str], width_of: Callable[[str], int]) -> list[int]:
    """Return the greatest width of a cell in each column, without the head."""
    return [max((width_of(row[at]) for row in cells), default=0) for at in range(len(heads))]


def _fold(sizes: list[int], least: Sequence[int], room: int) -> bool:
    """Reduce column widths so that their sum is at most `room`; return False if this is impossible.

    No width falls below its minimum in `least`.
    """
    spare = room - sum(least)
    for at in sorted(range(len(sizes)), key=lambda at: sizes[at] - least[at]):
        sizes[at] = min(sizes[at], least[at] + max(spare, 0))
        spare -= sizes[at] - least[at]
    return spare >= 0


def _lines_of_highest(cells: Cells, sizes: Sequence[int]) -> int:
    """Return how many text lines the highest cell of a table needs, if its columns have the widths `sizes`."""
    heights = [len(textwrap.wrap(text, size)) for row in cells for text, size in zip(row, sizes, strict=True)]
    return max(heights, default=0)


def _records(cells: Cells, heads: Sequence[str]) -> str:
    """Format each row as several lines, one for each column with its head and value."""
    size = max(map(_width, heads)) + GAP
    records = []
    for row in cells:
        lines = [f"{head:<{size}}{text}\n" for head, text in zip(heads, row, strict=True)]
        records.append("".join(lines))
    return "\n".join(records)


def _padded(text: str, size: int, is_number: bool) -> str:
    blanks = " " * (size - _width(text))
    return f"{blanks}{text}" if is_number else f"{text}{blanks}"


def _wrapped_below(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, initial_indent=INDENT, subsequent_indent=INDENT, break_on_hyphens=False)


def _layout(cells: Cells, heads: Sequence[str], sizes: Sequence[int], is_numeric: Sequence[bool]) -> list[str]:
    """Return the lines of the table; numeric columns are aligned to the right."""
    if all(map(le, _widths([heads, *cells], heads, _width), sizes)):  # no cell is folded: rich needs 200 µs for a row
        aligned = [is_number and bool(cells) for is_number in is_numeric]
        return [(" " * GAP).join(map(_padded, row, sizes, aligned)) for row in [heads, *cells]]
    grid = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="")
    for head, size, is_number in zip(heads, sizes, is_numeric, strict=True):
        grid.add_column(Text(head), width=size, justify="right" if is_number and cells else "left", overflow="fold")
    for row in cells:
        grid.add_row(*map(Text, row))
    console = Console(file=StringIO(), width=sum(sizes) + GAP * len(sizes), color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(grid)
    return capture.get().splitlines()

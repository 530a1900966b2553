"""Parser of a data file for a local list. All rows of the file are added to the list in one atomic change."""

import hashlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from eir.errors import ReleaseRefused
from eir.lists.record.reasons import Reasons
from eir.lists.record.settings import ListSettings
from eir.lists.rows.layout import LAYOUTS, find_layout, guess_layout, layout_fault
from eir.lists.rows.listed_rows import ListedRows
from eir.lists.table.columns import TableRows
from eir.lists.table.table import in_force

if TYPE_CHECKING:
    from eir.lists.rows.reader import Tally

ROWS_MAX = 100_000
"""Maximum number of rows of one file, and of their entries; more entries need a release."""
BYTES_MAX = 64 << 20
PIECE_BYTES = 8 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRows:
    """Rows of a data file for a local list."""

    name: str
    sha256: str
    rows: TableRows
    """Rows in force, with indexes in `texts`."""
    texts: tuple[str, ...]
    """Reason texts by index."""
    warnings: Sequence[str]
    """Bad rows, rows that were left out because they have ended, and probable mistakes."""


def parse_file_rows(
    content: bytes, name: str, settings: ListSettings, *, now_s: int, layout: str | None = None, force: bool = False,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> FileRows:  # fmt: skip
    """Parse a data file into rows of a local list.

    Args:
        content: content of the file.
        name: name of the file for messages.
        settings: settings of the list.
        now_s: Unix seconds; rows that have ended by then are left out.
        layout: layout of the file; None: guessed from the first line.
        force: lift the limit on ranges.
        progress: receives the bytes done and the total.

    Raises:
        ReleaseRefused: with the causes of a load, or `rows` if the file is too large or has no entry in force.
    """
    from eir.lists.rows.reader import Tally, read_rows  # noqa: PLC0415 - its import takes a while, and each command imports this module

    layout_name = _layout_name(content, name, settings, layout)
    collected, reasons = ListedRows(), Reasons()
    tally = Tally(
        bad_rows_max=settings.bad_rows_max, range_tacs_max=settings.range_tacs_max, check_digits=True, dates=settings.dates,
    )  # fmt: skip
    count = read_rows(
        pieces_of_lines(io.BytesIO(content), len(content), progress), name=name, layout=layout_name, kind=settings.kind,
        rows=collected, reasons=reasons, tally=tally, declared=settings.layouts,
    )  # fmt: skip
    if tally.wide and not force:
        limit = (
            f"ranges over {settings.range_tacs_max} TACs (range_tacs_max); if they are intended, add them with --force"
        )
        raise ReleaseRefused("range", "\n".join((limit, *tally.wide)))
    every = collected.pop()
    if len(every) > ROWS_MAX:
        raise ReleaseRefused(
            "rows", f"{name} has {len(every):,} entries, and the maximum is {ROWS_MAX:,}; publish a release instead"
        )
    rows = in_force(every, now_s)
    warnings = _file_warnings(content, name, tally, ended=len(every) - len(rows))
    bad = [f"a bad row was left out: {each}" for each in tally.complaints]
    if not len(rows):
        fault = f"{name} has no entry that is in force" if count else f"{name} holds no row"
        raise ReleaseRefused("rows", "\n".join((fault, *tally.complaints, *warnings)))
    if tally.wrong_check_digits:
        warnings.append(f"{tally.wrong_check_digits:,} IMEIs of 15 digits end in a wrong check digit")
    return FileRows(
        name=os.fsencode(name).decode("utf-8", "backslashreplace"), sha256=hashlib.sha256(content).hexdigest(),
        rows=rows, texts=reasons.texts or ("",), warnings=[*bad, *warnings],
    )  # fmt: skip


def _file_warnings(content: bytes, name: str, tally: "Tally", *, ended: int) -> list[str]:
    """Return the warnings about a data file. `ended`: number of its rows that have ended."""
    warnings = list[str]()
    if tally.bad > len(tally.complaints):
        warnings.append(f"{tally.bad:,} bad rows in all")
    if ended:
        warnings.append(f"{ended:,} entries have expired and were left out")
    if content and not content.endswith(b"\n"):
        warnings.append(f"{name} does not end with a newline: it may be truncated")
    return warnings


def _layout_name(content: bytes, name: str, settings: ListSettings, layout: str | None) -> str:
    """Return the name of a data file's layout: the argument `layout` if it is given, else a layout guessed from the first line.

    Raises:
        ReleaseRefused: `layout` if there is no layout for entries of a local list, `rows` if the file is too large.
    """
    layout_name = layout or guess_layout(content.partition(b"\n")[0])
    if layout_name is None:
        raise ReleaseRefused("layout", f"{name}: {layout_fault(content)}; give one of {', '.join(LAYOUTS)} (--layout)")
    if find_layout(name, layout_name, settings.layouts).added:
        raise ReleaseRefused(
            "layout", f"{name}: rows of layout {layout_name} are additions and removals; publish them as a release"
        )
    if content.count(b"\n") > ROWS_MAX + 1 or len(content) > BYTES_MAX:
        raise ReleaseRefused(
            "rows", f"{name} has more than {ROWS_MAX:,} rows or {BYTES_MAX >> 20} MiB; publish a release instead"
        )
    return layout_name


def pieces_of_lines(stream: BinaryIO, size: int, progress: Callable[[int, int], None]) -> Iterator[bytes]:
    """Yield the content of a file in pieces that end at a line end, and report the progress after each piece.

    `size`: bytes of the file.
    """
    while piece := stream.read(PIECE_BYTES):
        piece += stream.readline()
        if not piece.endswith(b"\n"):
            piece += b"\n"
        yield piece
        progress(stream.tell(), size)

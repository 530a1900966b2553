"""Parser of a data file for a local list. All rows of the file are added to the list in one atomic change."""

import hashlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eir.errors import ReleaseRefused
from eir.lists.changes.local_rows import FILE
from eir.lists.record.reasons import Reasons
from eir.lists.record.settings import Layout, ListSettings
from eir.lists.releases.foreign import find_layout, read_file
from eir.lists.rows.delivered import Progress, read_lines, sum_progress
from eir.lists.rows.listed_rows import ListedRows
from eir.lists.table.columns import TableRows
from eir.lists.table.table import not_ended

if TYPE_CHECKING:
    from eir.lists.rows.reader import Tally

ROWS_MAX = 100_000
"""Maximum number of rows of one file, and of their entries; more entries need a release."""
BYTES_MAX = 64 << 20


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

    @property
    def source(self) -> str:
        """Name and SHA-256 of the file, by which a change names it (RowsEdit.source)."""
        return f"{self.name}: {FILE}{self.sha256}"


def parse_file_rows(
    content: bytes, name: str, settings: ListSettings, *, now_s: int, layout: str | None = None, force: bool = False,
    declared: Mapping[str, Layout] | None = None, progress: Progress = lambda *_: None,
) -> FileRows:  # fmt: skip
    """Parse a data file, which may be compressed, into rows of a local list.

    Args:
        content: content of the file.
        name: name of the file for messages.
        settings: settings of the list.
        now_s: Unix seconds; rows that have ended by then are left out.
        layout: layout of the file; None: guessed from the first line.
        force: lift the limit on ranges.
        declared: layouts of the configuration by name.
        progress: receives the stage `read`, in bytes.

    Raises:
        ReleaseRefused: with the causes of a load, or `rows` if the file is too large or has no entry in force.
    """
    from eir.lists.rows.reader import Tally  # noqa: PLC0415 - its import takes a while, and each command imports this module

    size = len(content)
    begin = read_lines(name, io.BytesIO(content), size).begin()
    file_layout = find_layout(name, begin, layout, declared or {})
    if file_layout.added:
        fault = f"rows of layout {file_layout.name} are additions and removals; publish them as a release"
        raise ReleaseRefused("layout", f"{name}: {fault}")
    collected, reasons, count = ListedRows(), Reasons(), 0
    tally = Tally(
        bad_rows_max=settings.bad_rows_max, range_tacs_max=settings.range_tacs_max, check_digits=True, dates=settings.dates,
    )  # fmt: skip
    lines = read_lines(name, io.BytesIO(content), size, sum_progress(progress, "read", size))
    for part in read_file(lines, name=name, layout=file_layout, kind=settings.kind, reasons=reasons, tally=tally):
        count += part.row_count
        if count > ROWS_MAX or size > BYTES_MAX:
            limit = f"{ROWS_MAX:,} rows or {BYTES_MAX >> 20} MiB"
            raise ReleaseRefused("rows", f"{name} has more than {limit}; publish a release instead")
        collected.add(part.rows, part.lasts)
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
    rows = not_ended(every, now_s)
    warnings = [*_file_warnings(name, tally, len(every) - len(rows), is_unended=lines.is_unended)]
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


def _file_warnings(name: str, tally: "Tally", ended: int, *, is_unended: bool) -> Iterator[str]:
    """Yield warnings about a data file. `ended`: number of its rows that have ended."""
    if tally.bad > len(tally.complaints):
        yield f"{tally.bad:,} bad rows in all"
    if ended:
        yield f"{ended:,} entries have expired and were left out"
    if is_unended:
        yield f"{name} does not end with a newline: it may be truncated"

"""Entries of a local list out of a data file: thousands of rows for one change, read as the rows of a release are."""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eir.errors import ReleaseRefused
from eir.lists.changes.local import Entry, Said
from eir.lists.record.entries import entries_of
from eir.lists.record.reasons import Reasons
from eir.lists.record.settings import ListSettings
from eir.lists.rows.build import Rows, build_pages
from eir.lists.rows.layout import LAYOUTS, guess_layout, layout_named, separator_hint

if TYPE_CHECKING:
    from eir.lists.rows.reader import Tally

ROWS_MAX = 100_000
"""Rows of one file, and entries that they make: more belong in a release."""
BYTES_MAX = 64 << 20
PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsFile:
    """The entries that a data file names."""

    name: str
    sha256: str
    entries: Sequence[Entry]
    said: Mapping[tuple[int, int, bool], Said]
    """Reason and end of the entries whose row gives one of them."""
    ended: int
    """Entries that were left out, since their end is over."""
    tally: "Tally"


def parse_rows_file(
    content: bytes, name: str, settings: ListSettings, *, now_s: float, layout: str | None = None, force: bool = False,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> RowsFile:  # fmt: skip
    """Parse a data file for a list with these settings.

    `now_s`: Unix seconds by which an end is over; `layout`: its layout; None: guessed from the first line. `force`: lift the limit on ranges. `progress`: called with the bytes that are read
    and with all bytes. Raises ReleaseRefused: as a load, and `rows` for a file that is too large.
    """
    from eir.lists.rows.reader import Tally, read_rows  # noqa: PLC0415 - its import takes a while, and each command imports this module

    begin = content.partition(b"\n")[0]
    found = layout or guess_layout(begin)
    if found is None:
        hint = separator_hint(begin) or " (none of its columns is named imei)"
        raise ReleaseRefused(
            "layout", f"{name}: no layout fits its first line{hint}; give one of {', '.join(LAYOUTS)} (--layout)"
        )
    if layout_named(name, found, settings.layouts).added:
        raise ReleaseRefused("layout", f"{name}: rows of layout {found} add and remove; publish a release of them")
    if content.count(b"\n") > ROWS_MAX + 1 or len(content) > BYTES_MAX:
        raise ReleaseRefused(
            "rows", f"{name} has more than {ROWS_MAX:,} rows or {BYTES_MAX >> 20} MiB; publish a release of them"
        )
    rows, reasons = Rows(), Reasons()
    tally = Tally(bad_rows_max=settings.bad_rows_max, range_tacs_max=settings.range_tacs_max, check_digits=True)
    read_rows(
        _pieces(content, progress), name=name, layout=found, kind=settings.kind, rows=rows, reasons=reasons, tally=tally,
        declared=settings.layouts,
    )  # fmt: skip
    if tally.wide and not force:
        limit = f"ranges over {settings.range_tacs_max} TACs (range_tacs_max); if they are meant, add them with --force"
        raise ReleaseRefused("range", "\n".join((limit, *tally.wide)))
    built = build_pages(rows)
    if built.entries > ROWS_MAX:
        raise ReleaseRefused(
            "rows", f"{name} makes {built.entries:,} entries, and {ROWS_MAX:,} are the most; publish a release of them"
        )
    entries, said, ended = [], dict[tuple[int, int, bool], Said](), 0
    for listed in entries_of(built.pages):
        if 0 < listed.until <= now_s:
            ended += 1
            continue
        sim = f"+{str(listed.imsi)[1:]}" if listed.imsi else ""
        entry = Entry(listed.text(settings.kind) + sim, listed.key, listed.imsi, listed.whole_tac)
        entries.append(entry)
        if listed.reason or listed.until:
            said[entry[1:]] = Said(_text(reasons, listed.reason), listed.until)
    if not entries:
        raise ReleaseRefused("rows", f"{name} has no entry that is in force")
    safe_name = os.fsencode(name).decode("utf-8", "backslashreplace")
    return RowsFile(
        name=safe_name, sha256=hashlib.sha256(content).hexdigest(), entries=entries, said=said, ended=ended, tally=tally
    )


def _text(reasons: Reasons, byte: int) -> str:
    """Return the text of a row's reason; empty for none."""
    return reasons.texts[byte] if byte else ""


def _pieces(content: bytes, progress: Callable[[int, int], None]) -> Iterator[bytes]:
    """Yield the content in pieces that end with a newline each."""
    whole, at = content if content.endswith(b"\n") or not content else content + b"\n", 0
    while at < len(whole):
        end = whole.find(b"\n", min(at + PIECE_BYTES, len(whole) - 1)) + 1
        yield whole[at:end]
        at = end
        progress(at, len(whole))

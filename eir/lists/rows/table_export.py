"""Export of a list to a data file, from which a release with the same content can be published."""

from collections.abc import Callable, Mapping, Sequence
from typing import TextIO

import numpy as np

from eir.device import MEID_BASE, SNR_KEYS
from eir.errors import EirError
from eir.lists.log.change import Head
from eir.lists.record.listed_entries import display_order, first_keys, is_whole
from eir.lists.record.settings import DEVICES
from eir.lists.rows.layout import BEGIN, DATE, EIR, REASON, UNTIL
from eir.lists.table.columns import Numbers, TableRows
from eir.lists.table.table import Table

IMEI, DIRBS_BLACKLIST = "imei", "dirbs-blacklist"
EXPORTS = (EIR.name, IMEI, DIRBS_BLACKLIST)
"""Layouts in which `eir export` writes a list."""
RANGES_MAX = 100_000
"""Maximum number of entries of a list with whole TACs and single identifiers that are written as ranges to one file. A load of ranges is slower than a load of single identifiers."""
_LOST: Mapping[str, str] = {
    "identifier": "identifiers that are no IMEI",
    "tac": "whole TACs",
    "imei_from": "whole TACs",
    BEGIN: "begins",
    UNTIL: "ends",
    REASON: "reasons",
    DATE: "dates",
}
"""Columns that another layout than `eir` may lack, with the lost content for a message."""
_IN_DIRBS = (REASON, DATE)
"""Columns that the layout `dirbs-blacklist` has and the layout `imei` lacks."""


def export_table(
    head: Head, table: Table, layout: str, out: TextIO, *, only_tacs: bool | None = None,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> int:  # fmt: skip
    """Write a list as a CSV file and return the number of rows.

    Args:
        head: head of the list.
        table: content of the list.
        layout: one of EXPORTS.
        out: file that receives the rows.
        only_tacs: True to write only whole TACs, False to write only single identifiers, None for both.
        progress: receives the number of written rows and the number of all rows.

    Raises:
        EirError: before a row is written, if the layout lacks a column that the list needs, or if one file cannot have
            all entries. `imei` has identifiers only. `dirbs-blacklist` has neither whole TACs nor times. Both are for
            lists of devices only.
    """
    from eir.lists.rows.row_writer import csv_text, frames_of, to_dirbs  # noqa: PLC0415 - its import takes a while, and the command line imports this module

    rows = display_order(table.rows())
    if only_tacs is not None:
        rows = rows.select(is_whole(rows) == only_tacs)
    rows, lasts = as_ranges(rows)
    release_day = (head.issued or head.loaded_at or "")[:10].replace("-", "")
    done = 0
    for frame in frames_of(head.kind, rows, head.reasons, lasts):
        if layout != EIR.name:
            _refuse_loss(head.kind, frame.columns, layout)
        written = to_dirbs(frame, release_day) if layout == DIRBS_BLACKLIST else frame
        out.write(csv_text(written, header=not done and layout != IMEI))
        done += len(frame)
        progress(done, len(rows))
    return len(rows)


def as_ranges(rows: TableRows) -> tuple[TableRows, Numbers | None]:
    """Return the rows with the first key of each whole TAC, and the last key of each row; None if all rows are single identifiers.

    Raises:
        EirError: if one file cannot have all rows.
    """
    whole = is_whole(rows)
    if not whole.any():
        return rows, None
    keys = first_keys(rows)
    if not whole.all():
        content = ""
        if keys.max() >= MEID_BASE:
            content = "MEIDs with letters, or what is no IMEI,"
        elif len(rows) > RANGES_MAX:
            content = f"{len(rows):,} entries"
        if content:
            raise EirError(
                f"the list holds whole TACs beside {content}, which no one file can hold: write two, the first with --only imei and the second "
                "with --only tac, and publish both"
            )
    return TableRows(keys, rows.columns), keys + np.where(whole, np.uint64(SNR_KEYS - 1), np.uint64(0))


def _refuse_loss(kind: str, columns: Sequence[str], layout: str) -> None:
    """Raise EirError if a layout lacks one of the columns that a list needs."""
    lost = [_LOST[column] for column in columns if column in _LOST]
    if layout == DIRBS_BLACKLIST:
        lost = [_LOST[column] for column in columns if column in _LOST and column not in _IN_DIRBS]
    if kind != DEVICES:
        lost = [kind]
    if lost:
        losses = " and ".join(lost)
        raise EirError(
            f"the layout {layout} has no place for {losses}, which the list holds; the layout {EIR.name} has"
        )

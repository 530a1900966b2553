"""Import of first sightings: from a file of another EIR, from the record of checks, or from a backup.

Imported first days are a list of their own beside the record (IMPORT), since nodes accept only recent first days in the record itself. In
the image both lists merge: the earliest day of a device counts. Devices that a list registers are left out. An import is one change, so
a killed import changes nothing, and running nodes follow it. Its ID is the generation of this change. The change has the rows that it
replaces among its removed rows, so `undo_import` takes back exactly what the import changed.
"""

import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from eir.errors import EirError, StoreError
from eir.lists.log.change import LEARN, Change
from eir.lists.log.reader import LoggedList, empty_content, read_content, read_rows
from eir.lists.log.store import LogEntry, LogStore
from eir.lists.log.writer import ListUpdate, ListWriter
from eir.lists.record.first_days import (
    DAY_S,
    IMPORT,
    different_keys,
    first_days,
    merged_tables,
    rows_of_devices,
    select_keys,
    sighted_rows,
)
from eir.lists.record.reasons import Reasons
from eir.lists.record.registered import is_registered
from eir.lists.record.settings import DEVICES, FIRST_SEEN, Layout
from eir.lists.rows.delivered import Progress, read_lines, sum_progress
from eir.lists.rows.layout import BY_FIRST_SEEN
from eir.lists.rows.listed_rows import ListedRows
from eir.lists.table.columns import SECONDS, Numbers, TableRows, matches, rows_of
from eir.lists.table.table import Table, merge

if TYPE_CHECKING:
    from eir.lists.rows.reader import Tally

LAYOUT = Layout(
    name="first-seen", columns={name: name for name in BY_FIRST_SEEN}, subjects={FIRST_SEEN: (BY_FIRST_SEEN,)}
)
"""Layout of the files of `eir export first-seen`, whose other columns are ignored."""
IMPORTED, UNDO = "import", "undo"
"""Kinds of changes that this module writes."""
OVER_SHARE, OVER_MIN = 0.2, 1000
"""Limit on the periods of grace that an import may end without `force`: this share of the devices on record. Fewer than OVER_MIN periods
exceed no limit."""

IsOver = Callable[[Numbers], Numbers]
"""Function that returns from the first days of devices a mask of those whose period of grace is over today."""


class DaysFile(NamedTuple):
    """Content of a file with first sightings."""

    rows: TableRows
    tally: "Tally"
    """Counts of rows, and the bad rows that were left out."""


class DaysImport(NamedTuple):
    """Result of an import of first sightings."""

    devices: int
    """Number of different devices in the import."""
    new: int
    """Number of imported devices that were not on record."""
    earlier: int
    """Number of devices on record to which the import gave an earlier first day."""
    registered: int
    """Number of devices that were left out because a list registers them."""
    over: int = 0
    """Number of periods of grace that the import ends. A device that is not on record has a period until the import."""
    begun: int = 0
    """Number of periods of grace that the import begins: new devices on record whose period is not over."""

    def as_text(self) -> str:
        """Format the result of the import in one line."""
        known = self.devices - self.new - self.earlier - self.registered
        return (
            f"{self.devices:,} devices: {self.new:,} new on record, {self.earlier:,} with an earlier day, {known:,} unchanged, "
            f"{self.registered:,} left out because a list registers them; periods of grace: {self.over:,} over, {self.begun:,} begun"
        )


class DaysUndo(NamedTuple):
    """Result of the undo of an import of first sightings."""

    import_id: int
    detail: str
    """Description of the import."""
    imported: str
    """Time of the import."""
    removed: int
    """Number of devices that were not on record before the import, and were removed again."""
    later: int
    """Number of devices that got the first day back that they had before the import."""
    changed: int
    """Number of devices of the import whose first day is another one since, so that the undo leaves them as they are."""

    def as_text(self) -> str:
        """Format the result of the undo in one line."""
        return (
            f"undo of the {self.detail.partition(':')[0]} at {self.imported}: {self.removed:,} devices removed from the record, "
            f"{self.later:,} with their day before the import, {self.changed:,} left as changed since"
        )


def seen_now(keys: Numbers, firsts: Numbers, now: datetime) -> TableRows:
    """Build rows of devices in any order, each with its first day, and the day of `now` as its last. The earliest day of a device counts."""
    return sighted_rows(keys.astype("<u8"), firsts, int(now.timestamp()) // DAY_S)


def read_days(file: Path, now: datetime, progress: Progress = lambda *_: None) -> DaysFile:
    """Read a file with the columns `imei` and `first_seen`. The last sighting of each device is set to the day of `now`.

    `progress` receives the stage `read`, in bytes.

    Raises:
        ReleaseRefused: `layout`, if a column is missing.
        OSError: if the file cannot be read.
    """
    from eir.lists.rows import reader  # noqa: PLC0415 - its import takes a while, for this command alone

    rows, tally = ListedRows(), reader.Tally(bad_rows_max=sys.maxsize, range_tacs_max=0)
    with file.open("rb") as stream:
        size = file.stat().st_size
        lines = read_lines(file.name, stream, size, sum_progress(progress, "read", size))
        for part in reader.read_rows(
            lines, name=file.name, layout=LAYOUT, kind=FIRST_SEEN, reasons=Reasons(), tally=tally
        ):
            rows.add(part.rows)
    pairs = rows.pop()
    return DaysFile(seen_now(pairs.keys, pairs.column(SECONDS), now), tally)


async def read_record(store: LogStore, name: str) -> LoggedList:
    """Read a list of first sightings; empty if the store lacks it.

    Raises:
        EirError: if a list has the name of the record.
        StoreError: if the store fails.
    """
    head = (await store.heads()).get(name)
    if head is None:
        return empty_content(FIRST_SEEN)
    if head.kind != FIRST_SEEN:
        raise EirError(
            f"{name} is a list of {head.kind} in the store, and the name of the record of first sightings in the configuration: give one of them another name"
        )
    return await read_content(store, name, head)


async def read_merged(store: LogStore, name: str) -> Table:
    """Read the record of first sightings with the imported days.

    Raises:
        EirError: if a list has the name of the record.
        StoreError: if the store fails.
    """
    return merged_tables((await read_record(store, name)).table, (await read_record(store, name + IMPORT)).table)


async def import_days(
    rows: TableRows, name: str, store: LogStore, *, registering: Sequence[str], source: str, who: str, now: datetime,
    is_over: IsOver | None = None, dry_run: bool = False, force: bool = False,
) -> tuple[DaysImport, Change | None]:  # fmt: skip
    """Import devices beside the record of first sightings in the store; return the result, and the change if there was anything to change.

    Args:
        rows: imported devices (`seen_now`).
        name: name of the record.
        store: store of the record and of the lists.
        registering: names of the lists whose devices are left out.
        source: name of the file or record for the history.
        who: user for the history.
        now: time of the import.
        is_over: function for the number of periods of grace; None: no period is counted or limited.
        dry_run: compute the result, and write nothing.
        force: lift the limit on periods of grace that the import ends.

    Raises:
        GenerationConflict: if other writers changed the imported days at each attempt.
        EirError: if a list has the name of the record, or if the import ends too many periods of grace.
        StoreError: if the store fails.
    """
    heads, record = await store.heads(), await read_record(store, name)
    tables = [
        (await read_content(store, each, heads[each])).table
        for each in registering
        if each in heads and heads[each].kind == DEVICES
    ]
    listed = is_registered(tables, rows.keys, int(now.timestamp()))
    result = DaysImport(len(rows), 0, 0, 0)

    def make(content: LoggedList) -> ListUpdate | None:
        nonlocal result
        imported = rows_of_devices(content.table, rows.keys)
        before = merge(rows_of_devices(record.table, rows.keys), imported)
        at = matches(rows, before)
        is_new = (at < 0) & ~listed
        firsts = np.full(len(rows), int(now.timestamp()) // DAY_S)
        firsts[at >= 0] = first_days(before)[at[at >= 0]]
        is_earlier = (at >= 0) & (first_days(rows) < firsts) & ~listed
        over, begun = _count_periods(firsts, first_days(rows), is_new, is_new | is_earlier, is_over)
        result = DaysImport(len(rows), int(is_new.sum()), int(is_earlier.sum()), int(listed.sum()), over, begun)
        written = rows.select(is_new | is_earlier)
        if dry_run or not len(written):
            return None
        on_record = len(merged_tables(record.table, content.table))
        most = max(OVER_MIN - 1, int(OVER_SHARE * on_record))
        if over > most and not force:
            share = f"{OVER_SHARE:.0%} of the {on_record:,} devices on record, but at least {OVER_MIN - 1:,}"
            raise EirError(
                f"the import would end {over:,} periods of grace, and an import may end {most:,} ({share}): "
                "check the days of the file (--dry-run), then use --force"
            )
        return ListUpdate(
            what=IMPORTED, added=written, removed=select_keys(imported, written.keys), lifted=("periods",) * (over > most),
            detail=f"import of {source}: {result.as_text()}",
        )  # fmt: skip

    change = await ListWriter(store, name + IMPORT, FIRST_SEEN, who, now=lambda: now).write(make)
    return result, change


def _count_periods(
    before: Numbers, after: Numbers, is_new: Numbers, is_written: Numbers, is_over: IsOver | None
) -> tuple[int, int]:
    """Return the number of periods of grace that an import ends, and that it begins. `before`, `after`: first day of each device."""
    if is_over is None:
        return 0, 0
    had_period, has_period = ~is_over(before), ~is_over(after)
    return int((had_period & ~has_period & is_written).sum()), int((is_new & has_period).sum())


async def undo_import(
    name: str, store: LogStore, *, who: str, now: datetime, import_id: int | None = None
) -> tuple[DaysUndo, Change | None]:
    """Take an import of first sightings back: exactly the days that it changed, where they have not changed since.

    Args:
        name: name of the record.
        store: store of the record.
        who: user for the history.
        now: time of the undo.
        import_id: ID of the import; None for the last one.

    Raises:
        EirError: if no such import can be taken back.
        GenerationConflict: if other writers changed the imported days at each attempt.
        StoreError: if the store fails.
    """
    entry, undone_before = await _import_of(name, store, import_id)
    written, replaced = await _rows_of(name + IMPORT, store, entry)
    for other in undone_before:
        days, earlier = await _rows_of(name + IMPORT, store, other)
        keys = np.setdiff1d(days.keys, different_keys(days, select_keys(replaced, days.keys)), assume_unique=True)
        replaced = merge(select_keys(replaced, keys, without=True), select_keys(earlier, keys))
    record, result = await read_record(store, name), DaysUndo(0, "", "", 0, 0, 0)

    def make(content: LoggedList) -> ListUpdate | None:
        nonlocal result
        present = rows_of_devices(content.table, written.keys)
        firsts = first_days(written)
        at = matches(written, present)
        is_same = at >= 0
        is_same[is_same] = first_days(present)[at[is_same]] == firsts[is_same]
        undone = written.select(is_same)
        restored = select_keys(replaced, undone.keys)
        after = merge(rows_of_devices(record.table, undone.keys), restored)
        at = matches(undone, after)
        changed = int((first_days(after)[at[at >= 0]] <= first_days(undone)[at >= 0]).sum())
        removed = int((at < 0).sum())
        made = entry.change
        result = DaysUndo(
            made.generation,
            made.detail,
            made.time,
            removed,
            len(undone) - removed - changed,
            len(written) - len(undone) + changed,
        )
        return ListUpdate(
            what=UNDO, added=restored, removed=rows_of(undone.keys), continues=made.digest, detail=result.as_text()
        )

    change = await ListWriter(store, name + IMPORT, FIRST_SEEN, who, now=lambda: now).write(make)
    return result, change


async def _import_of(name: str, store: LogStore, import_id: int | None) -> tuple[LogEntry, Sequence[LogEntry]]:
    """Return the import to take back, and the imports before it, newest first, that were taken back after it."""
    entries = await store.log(name + IMPORT, 0)
    undone = {entry.change.continues: entry.change.generation for entry in entries if entry.change.what == UNDO}
    made = [entry for entry in entries if entry.change.what == IMPORTED]
    imports = [entry for entry in made if import_id in {None, entry.change.generation}]
    if imports and imports[-1].change.digest not in undone:
        newest = imports[-1].change.generation
        before = [each for each in made if each.change.generation < newest < undone.get(each.change.digest, 0)]
        return imports[-1], before[::-1]
    what = "no import can be taken back" if import_id is None else f"import {import_id} cannot be taken back"
    last = f"; the {imports[-1].change.detail.partition(':')[0]} has been taken back already" if imports else ""
    raise EirError(f"{name}: {what}{last} (eir history {name}{IMPORT})")


async def _rows_of(name: str, store: LogStore, entry: LogEntry) -> tuple[TableRows, TableRows]:
    """Return the added and the removed rows of a change.

    Raises:
        EirError: if the rows are not stored.
        StoreError: if the store fails.
    """
    try:
        return (await read_rows(store, name, entry)).decoded(name)
    except StoreError as error:
        if error.cause != "gone":
            raise
        generation = entry.change.generation
        raise EirError(
            f"{name}: the rows of generation {generation} are no longer stored, so no undo can use them"
        ) from None


async def undo_sightings(
    name: str, store: LogStore, generation: int, *, who: str, now: datetime
) -> tuple[int, Change | None]:
    """Remove the devices of a change from the record itself; return the number of removed devices. Nodes write the rows again that they had accepted.

    Raises:
        EirError: if the rows of this change are not stored.
        StoreError: if the store fails.
    """
    entries = [entry for entry in await store.log(name, generation - 1) if entry.change.generation == generation]
    if not entries:
        raise EirError(f"{name}: the store has no change of generation {generation} (eir history {name})")
    added, _ = await _rows_of(name, store, entries[0])

    def make(content: LoggedList) -> ListUpdate | None:
        gone = rows_of_devices(content.table, added.keys)
        detail = f"undo of generation {generation}"
        return ListUpdate(what=LEARN, removed=rows_of(gone.keys), detail=detail) if len(gone) else None

    change = await ListWriter(store, name, FIRST_SEEN, who, now=lambda: now).write(make)
    return (0 if change is None else change.removed), change

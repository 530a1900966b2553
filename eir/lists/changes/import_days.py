"""Import of first sightings into the record of first sightings: from a file of another EIR, or from the record of checks.

The earliest day of a device counts. Devices that a list registers are left out. The import is one write of the store, on the
condition that the record has not changed since it was read; otherwise the import starts again. So a killed import changes nothing,
and running nodes follow an import like a change of another node.

Before this write the import stores its days, and the days that they replace, as a second list (`dates_name`). From this list
`undo_import` takes the last import back, and each node takes it back in its memory. `ListState.serial_resets` of the record counts
the undone imports, so a node detects an undo while it was away.
"""

import asyncio
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from eir.errors import EirError, GenerationConflict, StoreChanged
from eir.lists.changes.rows_file import pieces_of_lines
from eir.lists.images.day_images import registered
from eir.lists.images.imaging import image_of
from eir.lists.images.index import DeviceList
from eir.lists.log.change import utc_text
from eir.lists.pages.content import Keys, as_corrupt
from eir.lists.pages.first_days import DAY_S, NOTHING, FirstDays, by_page, decode_days, encode_days, merge, periods
from eir.lists.pages.pages import PAGE_KEYS, Page, Sections, amended_digest, content_digest, decode_sections
from eir.lists.record.dates import IMPORTED_DAYS, dates_name
from eir.lists.record.reasons import Reasons
from eir.lists.record.settings import DEVICES, FIRST_SEEN, Layout
from eir.lists.record.store import ACCEPTED, FORCED, NO_LIST, SIGHTED, Event, ListState, ListStore
from eir.lists.rows.build import Rows
from eir.lists.rows.layout import BY_FIRST_SEEN

if TYPE_CHECKING:
    from eir.lists.rows.reader import Tally

LAYOUT = Layout(
    name="first-seen", columns={name: name for name in BY_FIRST_SEEN}, subjects={FIRST_SEEN: (BY_FIRST_SEEN,)}
)
"""Layout of the files of `eir export first-seen`, whose other columns are ignored."""
TRIES_MAX = 20
"""Maximum number of attempts of an import while nodes change the record."""
PAUSE_MAX_S = 0.2
OVER_SHARE, OVER_MIN = 0.2, 1000
"""Limit on the periods of grace that an import may end without `force`: this share of the devices on record. Fewer than OVER_MIN periods
exceed no limit."""
ABSENT = 0xFFFF
"""In the days that an import replaced: first day of a device that was not on record."""
UNDONE = 1
"""Serial of the list of imported days after the import has been taken back."""

Progress = Callable[[int, int], None]
IsOver = Callable[[NDArray[np.uint16]], NDArray[np.bool_]]
"""Function that returns from the first days of devices a mask of those whose period of grace is over today."""


class DaysFile(NamedTuple):
    """Content of a file with first sightings."""

    days: FirstDays
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


class ImportedDays(NamedTuple):
    """Days that an import wrote, and the days that they replaced, of the same devices."""

    before: FirstDays
    """First day of each device before the import; ABSENT: the device was not on record."""
    written: FirstDays

    def restore(self, days: FirstDays) -> FirstDays:
        """Return devices of the record as they were before the import. A device whose first day has changed since stays as it is."""
        _, at, mine = np.intersect1d(days.keys, self.written.keys, assume_unique=True, return_indices=True)
        is_unchanged = days.firsts[at] == self.written.firsts[mine]
        at, replaced = at[is_unchanged], self.before.firsts[mine[is_unchanged]]
        firsts, is_kept = days.firsts.copy(), np.ones(len(days.keys), bool)
        firsts[at] = replaced
        is_kept[at[replaced == ABSENT]] = False
        return days._replace(firsts=firsts).where(is_kept)


class DaysUndo(NamedTuple):
    """Result of the undo of an import of first sightings."""

    source: str
    """File or record of the import."""
    imported: str
    """Time of the import."""
    removed: int
    """Number of devices that were not on record before the import, and were removed again."""
    later: int
    """Number of devices that got the first day back that they had before the import."""
    changed: int
    """Number of devices of the import whose first day has changed since, so that the undo leaves them as they are."""

    def as_text(self) -> str:
        """Format the result of the undo in one line."""
        return (
            f"undo of the import of {self.source} at {self.imported}: {self.removed:,} devices removed from the record, "
            f"{self.later:,} with their day before the import, {self.changed:,} left as changed since"
        )


def seen_now(keys: Keys, firsts: Keys, now: datetime) -> FirstDays:
    """Convert devices, each with its first day, to first sightings. The last sighting of each device is set to the day of `now`.

    Args:
        keys: devices in any order; a device may occur several times.
        firsts: first day of each device; the earliest day of a device counts.
        now: time of the import.
    """
    today = int(now.timestamp()) // DAY_S
    return merge([FirstDays(keys, firsts.astype(np.uint16), periods(today, keys))])


def read_days(file: Path, now: datetime, progress: Progress = lambda *_: None) -> DaysFile:
    """Read a file with the columns `imei` and `first_seen`. The last sighting of each device is set to the day of `now`.

    `progress` receives the bytes done and the total.

    Raises:
        ReleaseRefused: `layout`, if a column is missing.
        OSError: if the file cannot be read.
    """
    from eir.lists.rows.reader import Tally, read_rows  # noqa: PLC0415 - its import takes a while, for this command alone

    rows, tally = Rows(), Tally(bad_rows_max=sys.maxsize, range_tacs_max=0)
    with file.open("rb") as stream:
        pieces = pieces_of_lines(stream, file.stat().st_size, progress)
        read_rows(
            pieces, name=file.name, layout=LAYOUT.name, kind=FIRST_SEEN, rows=rows, reasons=Reasons(), tally=tally,
            declared={LAYOUT.name: LAYOUT},
        )  # fmt: skip
    keys, days, *_ = rows.pairs.in_order()
    return DaysFile(seen_now(keys, days, now), tally)


async def import_days(
    days: FirstDays, name: str, store: ListStore, *, registering: Sequence[str], source: str, who: str, now: datetime,
    is_over: IsOver | None = None, dry_run: bool = False, force: bool = False,
) -> DaysImport:  # fmt: skip
    """Merge imported devices into the record of first sightings in the store.

    Args:
        days: imported devices.
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
        GenerationConflict: if nodes changed the record at each of TRIES_MAX attempts.
        EirError: if a list has the name of the record, or if the import ends too many periods of grace.
        StoreError: if the store fails.
    """
    today = int(now.timestamp()) // DAY_S
    numbers = np.unique(days.keys // np.uint64(PAGE_KEYS)).tolist()
    for _ in range(TRIES_MAX):
        with as_corrupt("the store has a damaged page"):
            lists = [await _load(store, each, numbers, now) for each in registering]
            listed = registered(lists, days.keys)
            stored = await store.some_pages(name, numbers)
            change = _merge(name, stored, days.where(~listed), now)
        over, begun = _count_periods(change.days, is_over, today)
        report = DaysImport(
            devices=len(days.keys), new=change.new, earlier=change.earlier, registered=int(listed.sum()), over=over, begun=begun
        )  # fmt: skip
        most = max(OVER_MIN - 1, int(OVER_SHARE * change.on_record))
        is_excess = over > most
        if dry_run or not change.pages:
            return report
        if is_excess and not force:
            share = f"{OVER_SHARE:.0%} of the {change.on_record:,} devices on record, but at least {OVER_MIN - 1:,}"
            raise EirError(
                f"the import would end {over:,} periods of grace, and an import may end {most:,} ({share}): "
                "check the days of the file (--dry-run), then use --force"
            )
        detail = f"import of {source}: {report.as_text()}"
        outcome = FORCED if is_excess else ACCEPTED
        event = Event(time=utc_text(now), who=who, what=SIGHTED, list=name, outcome=outcome, detail=detail)
        try:
            if len(change.days.written.keys):
                await _write_imported(store, name, change.days, source=source, now=now)
            await store.amend(name, change.state, change.pages, seen=change.state.generation, keep=0, event=event)
        except (GenerationConflict, StoreChanged):
            await asyncio.sleep(random.uniform(0, PAUSE_MAX_S))  # noqa: S311  # separates writers; not for secrets
            continue
        return report
    raise GenerationConflict(f"nodes changed {name} {TRIES_MAX} times while days were imported: try again")


async def undo_import(name: str, store: ListStore, *, who: str, now: datetime) -> DaysUndo:
    """Take the last import of first sightings back: exactly the days that it wrote, where they have not changed since.

    Args:
        name: name of the record.
        store: store of the record.
        who: user for the history.
        now: time of the undo.

    Raises:
        EirError: if no import can be taken back.
        GenerationConflict: if nodes changed the record at each of TRIES_MAX attempts.
        StoreError: if the store fails.
    """
    beside, imported = await read_imported(store, name)
    if beside is None or beside.serial == UNDONE:
        undone = "" if beside is None else f"; the import of {beside.reasons[0]} has been taken back already"
        raise EirError(f"{name}: no import can be taken back{undone} (eir history {name})")
    numbers = np.unique(imported.written.keys // np.uint64(PAGE_KEYS)).tolist()
    for _ in range(TRIES_MAX):
        with as_corrupt("the store has a damaged page"):
            stored, pages = await store.some_pages(name, numbers)
            before = decode_days(pages)
        if stored is None:
            raise EirError(f"the store has no record {name}: nothing was changed")
        after = imported.restore(before)
        removed = len(before.keys) - len(after.keys)
        later = int((after.firsts != before.where(np.isin(before.keys, after.keys, assume_unique=True)).firsts).sum())
        changed = len(imported.written.keys) - removed - later
        report = DaysUndo(beside.reasons[0], beside.loaded_at or "", removed, later, changed)
        event = Event(time=utc_text(now), who=who, what=SIGHTED, list=name, outcome=ACCEPTED, detail=report.as_text())
        encoded = {page.number: page for page in encode_days(after)}
        new_pages = [encoded.get(page.number, Page(page.number, b"")) for page in pages]
        state = replace(
            stored, content_digest=amended_digest(stored.content_digest, pages, new_pages), entries=stored.entries - removed,
            devices=stored.devices - removed, serial_resets=stored.serial_resets + 1, loaded_at=utc_text(now),
        )  # fmt: skip
        try:
            await store.amend(name, state, new_pages, seen=stored.generation, keep=0, event=event)
        except (GenerationConflict, StoreChanged):
            await asyncio.sleep(random.uniform(0, PAUSE_MAX_S))  # noqa: S311  # separates writers; not for secrets
            continue
        await store.amend(dates_name(name), replace(beside, serial=UNDONE), [], seen=beside.generation, keep=0)
        return report
    raise GenerationConflict(f"nodes changed {name} {TRIES_MAX} times while an import was taken back: try again")


async def read_imported(store: ListStore, name: str) -> tuple[ListState | None, ImportedDays]:
    """Read the days of the last import into the record `name`, and the state of their list; None if the store has no import.

    `ListState.serial` of the list is UNDONE if the import has been taken back.

    Raises:
        StoreError: if the store fails, or the days are damaged.
    """
    state: ListState | None = None
    halves: list[tuple[Page, Page]] = []
    with as_corrupt("the store has a damaged page"):
        async for state, pages in store.pages(dates_name(name)):  # noqa: B007  # the last state is that of the whole list
            halves += map(_split_page, pages)
        return state, ImportedDays(
            *(decode_days(half) for half in zip(*halves, strict=True)) if halves else (NOTHING, NOTHING)
        )


async def _write_imported(store: ListStore, name: str, imported: ImportedDays, *, source: str, now: datetime) -> None:
    """Store the days of an import in place of those of the import before."""
    pages = [
        Page(before.number, before.keys, Sections(sightings=_sightings(before) + _sightings(written)).encode())
        for before, written in zip(encode_days(imported.before), encode_days(imported.written), strict=True)
    ]
    state = replace(
        NO_LIST, kind=IMPORTED_DAYS, content_digest=content_digest(pages), entries=len(imported.written.keys),
        devices=len(imported.written.keys), reasons=(source,), loaded_at=utc_text(now),
    )  # fmt: skip
    stored = await store.state(dates_name(name))
    await store.replace(dates_name(name), state, pages, seen=0 if stored is None else stored.generation, keep=0)


def _sightings(page: Page) -> bytes:
    return decode_sections(page.extra).sightings


def _split_page(page: Page) -> tuple[Page, Page]:
    """Split a page of imported days into a page of the record before the import, and a page of the written days."""
    column = _sightings(page)
    half = len(column) // 2
    before, written = (Sections(sightings=part).encode() for part in (column[:half], column[half:]))
    return Page(page.number, page.keys, before), Page(page.number, page.keys, written)


def _count_periods(days: ImportedDays, is_over: IsOver | None, today: int) -> tuple[int, int]:
    """Return the number of periods of grace that an import ends, and that it begins."""
    if is_over is None:
        return 0, 0
    is_new = days.before.firsts == ABSENT
    firsts = np.where(is_new, np.uint16(today), days.before.firsts)
    had_period, has_period = ~is_over(firsts), ~is_over(days.written.firsts)
    return int((had_period & ~has_period).sum()), int((is_new & has_period).sum())


class _Change(NamedTuple):
    """Change of the record of first sightings by an import: changed pages and counts."""

    state: ListState
    """State after the change, but with the generation before the change."""
    pages: Sequence[Page]
    """Changed pages."""
    new: int
    earlier: int
    """Numbers of devices, as in DaysImport."""
    days: ImportedDays
    """New devices and devices with an earlier day."""
    on_record: int
    """Number of devices on record before the import."""


def _merge(name: str, stored: tuple[ListState | None, Sequence[Page]], added: FirstDays, now: datetime) -> _Change:
    """Merge imported devices into stored pages of the record of first sightings, and return the change.

    Raises:
        EirError: if a list has the name of the record.
        ValueError: if a page is damaged.
    """
    stored_state, stored_pages = stored
    state = stored_state or NO_LIST
    if state.kind not in {"", FIRST_SEEN}:
        raise EirError(
            f"{name} is a list of {state.kind} in the store, and the name of the record of first sightings in the configuration: give one of them another name"
        )
    before = decode_days(stored_pages)
    after = merge((before, added))
    new = len(after.keys) - len(before.keys)
    was_on_record = np.isin(after.keys, before.keys, assume_unique=True)
    is_earlier = after.firsts[was_on_record] < before.firsts
    old = by_page(before)
    pages: list[Page] = []
    for (number, days), page in zip(by_page(after).items(), encode_days(after), strict=True):
        if number not in old or not days.is_same(old[number]):
            pages.append(page)
    changed = {page.number for page in pages}
    replaced = [page for page in stored_pages if page.number in changed]
    firsts = np.full(len(after.keys), ABSENT, np.uint16)
    firsts[was_on_record] = before.firsts
    is_written = after.firsts < firsts
    written = after.where(is_written)
    following = replace(
        state, kind=FIRST_SEEN, content_digest=amended_digest(state.content_digest, replaced, pages),
        entries=state.entries + new, devices=state.devices + new, loaded_at=utc_text(now),
    )  # fmt: skip
    imported = ImportedDays(written._replace(firsts=firsts[is_written]), written)
    return _Change(following, pages, new, int(is_earlier.sum()), imported, state.devices)


async def _load(store: ListStore, name: str, numbers: Sequence[int], now: datetime) -> DeviceList:
    """Read pages of a list of registered devices from the store; return the devices on these pages as a list in memory.

    `numbers`: page numbers. If the store lacks the list, or has a list of another kind, the result is empty.
    """
    devices = DeviceList(name, DEVICES, now.timestamp)
    state, pages = await store.some_pages(name, numbers)
    if state is not None and state.kind == DEVICES:
        devices.replace(state, image_of(pages))
    return devices

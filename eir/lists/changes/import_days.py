"""Import of first sightings into the record of first sightings: from a file of another EIR, or from the record of checks.

The earliest day of a device counts. Devices that a list registers are left out. The import is one write of the store, on the
condition that the record has not changed since it was read; otherwise the import starts again. So a killed import changes nothing,
and running nodes follow an import like a change of another node.
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

from eir.errors import EirError, GenerationConflict, StoreChanged
from eir.lists.changes.rows_file import pieces_of_lines
from eir.lists.images.day_images import registered
from eir.lists.images.imaging import image_of
from eir.lists.images.index import DeviceList
from eir.lists.pages.content import Keys, as_corrupt
from eir.lists.pages.first_days import DAY_S, FirstDays, by_page, decode_days, encode_days, merge, periods
from eir.lists.pages.pages import PAGE_KEYS, Page, amended_digest
from eir.lists.record.reasons import Reasons
from eir.lists.record.settings import DEVICES, FIRST_SEEN, Layout
from eir.lists.record.store import ACCEPTED, NO_LIST, SIGHTED, Event, ListState, ListStore, utc_text
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

Progress = Callable[[int, int], None]


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

    def as_text(self) -> str:
        """Format the result of the import in one line."""
        known = self.devices - self.new - self.earlier - self.registered
        return (
            f"{self.devices:,} devices: {self.new:,} new on record, {self.earlier:,} with an earlier day, {known:,} unchanged, "
            f"{self.registered:,} left out because a list registers them"
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
    days: FirstDays, name: str, store: ListStore, *, registering: Sequence[str], source: str, who: str, now: datetime
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

    Raises:
        GenerationConflict: if nodes changed the record at each of TRIES_MAX attempts.
        EirError: if a list has the name of the record.
        StoreError: if the store fails.
    """
    numbers = np.unique(days.keys // np.uint64(PAGE_KEYS)).tolist()
    for _ in range(TRIES_MAX):
        with as_corrupt("the store has a damaged page"):
            lists = [await _load(store, each, numbers, now) for each in registering]
            listed = registered(lists, days.keys)
            stored = await store.some_pages(name, numbers)
            change = _merge(name, stored, days.where(~listed), now)
        report = DaysImport(
            devices=len(days.keys), new=change.new, earlier=change.earlier, registered=int(listed.sum())
        )
        if not change.pages:
            return report
        detail = f"import of {source}: {report.as_text()}"
        event = Event(time=utc_text(now), who=who, what=SIGHTED, list=name, outcome=ACCEPTED, detail=detail)
        try:
            await store.amend(name, change.state, change.pages, seen=change.state.generation, keep=0, event=event)
        except (GenerationConflict, StoreChanged):
            await asyncio.sleep(random.uniform(0, PAUSE_MAX_S))  # noqa: S311  # separates writers; not for secrets
            continue
        return report
    raise GenerationConflict(f"nodes changed {name} {TRIES_MAX} times while days were imported: try again")


class _Change(NamedTuple):
    """Change of the record of first sightings by an import: changed pages and counts."""

    state: ListState
    """State after the change, but with the generation before the change."""
    pages: Sequence[Page]
    """Changed pages."""
    new: int
    earlier: int
    """Numbers of devices, as in DaysImport."""


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
    following = replace(
        state, kind=FIRST_SEEN, content_digest=amended_digest(state.content_digest, replaced, pages),
        entries=state.entries + new, devices=state.devices + new, loaded_at=utc_text(now),
    )  # fmt: skip
    return _Change(following, pages, new, int(is_earlier.sum()))


async def _load(store: ListStore, name: str, numbers: Sequence[int], now: datetime) -> DeviceList:
    """Read pages of a list of registered devices from the store; return the devices on these pages as a list in memory.

    `numbers`: page numbers. If the store lacks the list, or has a list of another kind, the result is empty.
    """
    devices = DeviceList(name, DEVICES, now.timestamp)
    state, pages = await store.some_pages(name, numbers)
    if state is not None and state.kind == DEVICES:
        devices.replace(state, image_of(pages))
    return devices

"""Entries of a list for commands, decoded from the list's pages: present or past entries.

Past entries come from the history and from the releases that are stored for a rollback.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import repeat
from types import MappingProxyType
from typing import NamedTuple

from eir.device import SNR_KEYS, TAC_DIGITS, key_text
from eir.errors import StoreChanged
from eir.lists.pages.content import as_corrupt, decode, decode_pairs, has_pairs
from eir.lists.pages.dates import decode_page_days
from eir.lists.pages.first_days import DAY_S
from eir.lists.pages.pages import PAGE_KEYS, Page
from eir.lists.record.dates import kept_dates
from eir.lists.record.history import is_of, is_refusal
from eir.lists.record.settings import SUBSCRIBERS
from eir.lists.record.store import Event, ListState, ListStore, Release, utc_text

NO_DATES: Mapping[int, Page] = MappingProxyType({})
READ_AGAIN_MAX = 5
"""Maximum number of reads of a list that changes while it is read."""


class ListEntry(NamedTuple):
    """Entry of a list, decoded from a page."""

    key: int
    """Key of the device or the subscriber; for a whole TAC its lowest key."""
    imsi: int = 0
    """Key of a pair's subscriber; 0 in other lists."""
    whole_tac: bool = False
    reason: int = 0
    """Index of the reason in ListState.reasons."""
    until: int = 0
    """End in Unix seconds; 0 for none."""
    date: int = 0
    """Unix seconds of the day on which the entry was reported or, in a list of device types, the TAC was allocated; 0 if unknown."""

    def text(self, kind: str) -> str:
        """Format the identifier or TAC of the entry as in a data file for this kind of list."""
        if kind == SUBSCRIBERS:
            return imsi_text(self.key)
        return f"{self.key // SNR_KEYS:0{TAC_DIGITS}d}" if self.whole_tac else key_text(self.key)


def imsi_text(key: int) -> str:
    """Convert the key of an IMSI (eir.device.imsi_key) back to its digits."""
    return str(key)[1:]


def until_text(until: int) -> str:
    """Format the expiry of an entry as in data files; an empty text if the entry does not expire."""
    return utc_text(datetime.fromtimestamp(until, UTC)) if until else ""


def date_text(date: int) -> str:
    """Format the date of an entry as in data files; empty for none."""
    return until_text(date)[: len("2026-12-31")]


async def read_pages(
    store: ListStore, name: str, is_selected: Callable[[Page], bool] = lambda _: True
) -> tuple[ListState | None, Sequence[Page]]:
    """Return the state of a list and the selected pages, in ascending order and of the same generation.

    Raises:
        StoreError: if the list cannot be read.
    """
    for _ in range(READ_AGAIN_MAX):
        with suppress(StoreChanged):
            state: ListState | None = None
            pages: list[Page] = []
            async for state, batch in store.pages(name):  # noqa: B007  # the last one is returned
                pages += filter(is_selected, batch)
            return state, sorted(pages)
    raise StoreChanged(f"list {name} changed {READ_AGAIN_MAX} times while it was read: try again")


def entries_of(pages: Iterable[Page], dates: Mapping[int, Page] = NO_DATES) -> Iterator[ListEntry]:
    """Yield the entries of pages. For each page, the whole TAC is first, then the identifiers by ascending key.

    `dates`: pages of dates by number (eir.lists.record.dates).

    Raises:
        StoreError: if a page is damaged.
    """
    for page in pages:
        with as_corrupt(f"page {page.number} is damaged"):
            yield from _entries_of(page, dates.get(page.number))


def _entries_of(page: Page, dates: Page | None) -> Iterator[ListEntry]:
    first, tac = page.number * PAGE_KEYS, page.tac
    found = None if dates is None else decode_page_days(page, dates)
    if tac is not None:
        yield ListEntry(first, 0, True, tac.reason, tac.until, found.tac * DAY_S if found else 0)
    if has_pairs(page):
        for low, paired in decode_pairs(page).items():
            yield from (
                ListEntry(first + low, imsi, False, paired.reason, end, paired.date)
                for imsi, end in paired.imsis.items()
            )
    else:
        content = decode(page)
        days = found.days.tolist() if found else repeat(0, len(content.low))
        rows = zip(content.low.tolist(), content.reasons.tolist(), content.until.tolist(), days, strict=True)
        yield from (ListEntry(first + low, 0, False, reason, end, day * DAY_S) for low, reason, end, day in rows)


RESET = "reset-serial"
"""Event that leaves the entries of a list as they were."""


class Past(NamedTuple):
    """State of a list at a past time, and later changes."""

    event: Event | None
    """Event that led to this state; None if the list had not been loaded, or if the history does not reach back so far."""
    release: Release | None
    """Release of that event, if it is still stored or in force."""
    rows: Sequence[ListEntry] | None
    """Entries of a key that had not ended; None if the pages are no longer stored."""
    since: Sequence[Event]
    """Changes of the list after that time, oldest first."""


async def load_past(store: ListStore, name: str, key: int | None, moment: datetime) -> Past:
    """Return the state of a list at a past time, and the entries for `key` unless it is `None`.

    Raises:
        StoreError: if the store cannot be read.
    """
    events = [event for event in await store.history(name) if not is_refusal(event) and event.what != RESET]
    at = utc_text(moment)
    before, since = [event for event in events if event.time <= at], [event for event in events if event.time > at]
    if not before:
        return Past(None, None, None, since)
    event = before[-1]
    release = next((release for release in await store.releases(name) if is_of(event, release.state)), None)
    rows: Sequence[ListEntry] | None = None
    if release is not None and key is not None:
        pages = await store.kept_pages(name, release.state.generation, [key // PAGE_KEYS])
        dates = await kept_dates(store, name, release.state, [key // PAGE_KEYS])
        rows = (
            None
            if pages is None
            else [
                each
                for each in entries_of(pages, dates)
                if _covers(each, key) and not 0 < each.until <= moment.timestamp()
            ]
        )
    return Past(event, release, rows, since)


def _covers(entry: ListEntry, key: int) -> bool:
    return entry.key == key or (entry.whole_tac and entry.key // PAGE_KEYS == key // PAGE_KEYS)

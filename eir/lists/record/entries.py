"""Entries of a list, decoded from its pages for commands.

Past entries are found by the history in the releases that are stored for a rollback.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import repeat
from types import MappingProxyType
from typing import NamedTuple

from eir.device import SNR_KEYS, TAC_DIGITS, key_text
from eir.device import imsi_text  # noqa: F401 - until its users import it from eir.device
from eir.errors import StoreChanged
from eir.lists.log.change import utc_text
from eir.lists.pages.content import as_corrupt, decode, decode_pairs, has_pairs
from eir.lists.pages.dates import decode_page_days
from eir.lists.pages.pages import PAGE_KEYS, Page
from eir.lists.record.dates import kept_dates
from eir.lists.record.first_days import DAY_S
from eir.lists.record.history import is_event_of, is_refusal
from eir.lists.record.settings import SUBSCRIBERS
from eir.lists.record.store import Event, ListState, ListStore, Release

NO_DATES: Mapping[int, Page] = MappingProxyType({})
READ_AGAIN_MAX = 5
"""Maximum number of reads of a list while it changes."""


class ListEntry(NamedTuple):
    """Entry of a list: an identifier or a TAC with reason, expiry and date."""

    key: int
    """Key of the device or the subscriber; for a whole TAC its lowest key."""
    imsi: int = 0
    """Key of a pair's subscriber; 0 in other lists."""
    whole_tac: bool = False
    """True if the entry is a whole TAC, False if it is a single identifier."""
    reason: int = 0
    """Index of the reason in ListState.reasons."""
    until: int = 0
    """Expiry in Unix seconds; 0 if the entry does not expire."""
    date: int = 0
    """Day in Unix seconds on which the entry was reported or, in a list of device types, the TAC was allocated; 0 if unknown."""
    begin: int = 0
    """Unix seconds from which the entry is in force; 0 for an entry without begin."""

    def text(self, kind: str) -> str:
        """Format the identifier or TAC of the entry, as a data file for this kind of list has it."""
        if kind == SUBSCRIBERS:
            return imsi_text(self.key)
        if self.whole_tac:
            return f"{self.key // SNR_KEYS:0{TAC_DIGITS}d}"
        return key_text(self.key)


def until_text(until: int) -> str:
    """Format the expiry of an entry as in data files; empty if the entry does not expire."""
    return utc_text(datetime.fromtimestamp(until, UTC)) if until else ""


def date_text(date: int) -> str:
    """Format the date of an entry as in data files; empty if the date is unknown."""
    return until_text(date)[: len("2026-12-31")]


async def read_pages(
    store: ListStore, name: str, is_selected: Callable[[Page], bool] = lambda _: True
) -> tuple[ListState | None, Sequence[Page]]:
    """Read the state of a list and its selected pages in ascending order. The state and the pages have the same generation.

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
    """Yield the entries on pages: for each page first the whole TAC, then the identifiers in ascending order.

    `dates`: pages of dates by number (eir.lists.record.dates).

    Raises:
        StoreError: if a page is damaged.
    """
    for page in pages:
        with as_corrupt(f"page {page.number} is damaged"):
            yield from _entries_of(page, dates.get(page.number))


def _entries_of(page: Page, dates: Page | None) -> Iterator[ListEntry]:
    first_key, tac = page.number * PAGE_KEYS, page.tac
    page_days = None if dates is None else decode_page_days(page, dates)
    if tac is not None:
        day = 0 if page_days is None else page_days.tac
        yield ListEntry(first_key, 0, True, tac.reason, tac.until, day * DAY_S)
    if has_pairs(page):
        for low, pair in decode_pairs(page).items():
            for imsi, end in pair.imsis.items():
                yield ListEntry(first_key + low, imsi, False, pair.reason, end, pair.date)
        return
    content = decode(page)
    days = repeat(0, len(content.low)) if page_days is None else page_days.days.tolist()
    rows = zip(content.low.tolist(), content.reasons.tolist(), content.until.tolist(), days, strict=True)
    for low, reason, end, day in rows:
        yield ListEntry(first_key + low, 0, False, reason, end, day * DAY_S)


RESET = "reset-serial"
"""`what` of an event that does not change the entries of a list."""


class Past(NamedTuple):
    """State of a list at a past time, and the changes of the list since then."""

    event: Event | None
    """Event that led to the state; None if the list had not been loaded, or if the event is no longer in the history."""
    release: Release | None
    """Release of that event; None if the store no longer has the release."""
    rows: Sequence[ListEntry] | None
    """Entries of a key that had not expired at that time; None if the pages are no longer stored."""
    since: Sequence[Event]
    """Changes of the list after that time, oldest first."""


async def load_past(store: ListStore, name: str, key: int | None, moment: datetime) -> Past:
    """Return the state of a list at a past time, with the entries that it had for `key`. Without a key, no entries are read.

    Raises:
        StoreError: if the store cannot be read.
    """
    events = await store.history(name)
    changes = [event for event in events if not is_refusal(event) and event.what != RESET]
    time_text = utc_text(moment)
    before = [event for event in changes if event.time <= time_text]
    since = [event for event in changes if event.time > time_text]
    if not before:
        return Past(None, None, None, since)
    event = before[-1]
    releases = await store.releases(name)
    release = next((release for release in releases if is_event_of(event, release.state)), None)
    if release is None or key is None:
        return Past(event, release, None, since)
    number = key // PAGE_KEYS
    pages = await store.kept_pages(name, release.state.generation, [number])
    dates = await kept_dates(store, name, release.state, [number])
    if pages is None:
        return Past(event, release, None, since)
    rows = []
    for entry in entries_of(pages, dates):
        is_for_key = entry.whole_tac or entry.key == key
        has_expired = 0 < entry.until <= moment.timestamp()
        if is_for_key and not has_expired:
            rows.append(entry)
    return Past(event, release, rows, since)

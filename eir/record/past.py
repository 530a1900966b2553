"""The state of a list at a past time, by the history and by the releases that a rollback could bring back."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from eir.pages.pages import PAGE_KEYS
from eir.record.entries import Listed, entries_of
from eir.record.history import is_of, is_refusal
from eir.record.store import Event, ListStore, Release, utc_text

RESET = "reset-serial"
"""The one change that leaves a list as it was."""


class Past(NamedTuple):
    """A list as it was at a time."""

    event: Event | None
    """The event that made it so; None: it had not been loaded, or the history does not reach back so far."""
    release: Release | None
    """The release that came of that event, if it is kept or still in force."""
    rows: Sequence[Listed] | None
    """The entries under which a key was listed, ended ones left out; None: the pages are kept no longer."""
    since: Sequence[Event]
    """Changes of the list after that time, oldest first."""


async def past(store: ListStore, name: str, key: int | None, moment: datetime) -> Past:
    """The state of a list at a time, with its rows for a key (None: no key is asked for). Raises StoreError."""
    events = [event for event in await store.history(name) if not is_refusal(event) and event.what != RESET]
    at = utc_text(moment)
    before, since = [event for event in events if event.time <= at], [event for event in events if event.time > at]
    if not before:
        return Past(None, None, None, since)
    event = before[-1]
    release = next((release for release in await store.releases(name) if is_of(event, release.state)), None)
    rows: Sequence[Listed] | None = None
    if release is not None and key is not None:
        pages = await store.kept_pages(name, release.state.generation, [key // PAGE_KEYS])
        rows = (
            None
            if pages is None
            else [each for each in entries_of(pages) if _names(each, key) and not 0 < each.until <= moment.timestamp()]
        )
    return Past(event, release, rows, since)


def _names(entry: Listed, key: int) -> bool:
    return entry.key == key or (entry.whole_tac and entry.key // PAGE_KEYS == key // PAGE_KEYS)

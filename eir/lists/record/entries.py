"""The entries of a list, as people look at them: pages unfolded into rows, now or as they were at a past time.

The past is read by the history, and by the releases that a rollback could bring back.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import NamedTuple

from eir.device import SNR_KEYS, TAC_DIGITS, key_text
from eir.errors import StoreChanged, StoreError
from eir.lists.pages.content import decode, decode_pairs, has_pairs
from eir.lists.pages.pages import PAGE_KEYS, Page
from eir.lists.record.history import is_of, is_refusal
from eir.lists.record.settings import SUBSCRIBERS
from eir.lists.record.store import Event, ListState, ListStore, Release, utc_text

READ_AGAIN_MAX = 5
"""Times that a list is read again because it changed while it was read."""


class Listed(NamedTuple):
    """One entry of a list."""

    key: int
    """The key of the device or the subscriber; the lowest one under a whole TAC."""
    imsi: int = 0
    """The key of a pair's subscriber; 0 in other lists."""
    whole_tac: bool = False
    reason: int = 0
    """The byte that stands for its text, see ListState.reasons."""
    until: int = 0
    """Unix seconds at which it ends; 0: it does not."""
    date: int = 0
    """Unix seconds of the day on which a TAC in a list of device types was allocated; 0: not known."""

    def text(self, kind: str) -> str:
        """The listed identifier or TAC, as a data file of this kind of list has it."""
        if kind == SUBSCRIBERS:
            return imsi_text(self.key)
        return f"{self.key // SNR_KEYS:0{TAC_DIGITS}d}" if self.whole_tac else key_text(self.key)


def imsi_text(key: int) -> str:
    """The IMSI that a key stands for (see eir.device.imsi_key)."""
    return str(key)[1:]


def until_text(until: int) -> str:
    """The end of an entry as data files have it; empty for none."""
    return utc_text(datetime.fromtimestamp(until, UTC)) if until else ""


async def read_pages(
    store: ListStore, name: str, wanted: Callable[[Page], bool] = lambda _: True
) -> tuple[ListState | None, Sequence[Page]]:
    """A list's state and those of its pages that are wanted, by rising number, as of one moment. Raises StoreError."""
    for _ in range(READ_AGAIN_MAX):
        with suppress(StoreChanged):
            state: ListState | None = None
            pages: list[Page] = []
            async for state, batch in store.pages(name):  # noqa: B007  # the last one is returned
                pages += filter(wanted, batch)
            return state, sorted(pages)
    raise StoreChanged(f"list {name} changed {READ_AGAIN_MAX} times while it was read: try again")


def entries_of(pages: Iterable[Page]) -> Iterator[Listed]:
    """The entries of these pages, page by page: first the whole TAC, then by rising key. Raises StoreError if one is damaged."""
    for page in pages:
        try:
            yield from _entries_of(page)
        except ValueError as error:
            raise StoreError("corrupt", f"page {page.number} is damaged: {error}") from error


def _entries_of(page: Page) -> Iterator[Listed]:
    first, tac = page.number * PAGE_KEYS, page.tac
    if tac is not None:
        yield Listed(first, 0, True, tac.reason, tac.until)
    if has_pairs(page):
        for low, paired in decode_pairs(page).items():
            yield from (
                Listed(first + low, imsi, False, paired.reason, end, paired.date) for imsi, end in paired.imsis.items()
            )
    else:
        content = decode(page)
        rows = zip(content.low.tolist(), content.reasons.tolist(), content.until.tolist(), strict=True)
        yield from (Listed(first + low, 0, False, reason, end) for low, reason, end in rows)


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

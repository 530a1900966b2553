"""Dates of a list in a store: a list of their own beside it, with the pages of eir.lists.pages.dates.

So dates have a content digest of their own, the list's digest stays as it is, and a node that does not know dates follows the list as
before. Dates are written before their list: a load that is cut off between both is repeated. Until the list is written, days of its
changed pages are unknown. A change by a program that does not know dates has the same effect on the pages that it changes.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from eir.lists.pages.content import as_corrupt, decode
from eir.lists.pages.dates import decode_page_days
from eir.lists.pages.pages import EMPTY_DIGEST, PAGE_KEYS, Page, amended_digest, content_digest
from eir.lists.record.store import ListState, ListStore

DATES = "dates"
"""Kind of such a list."""
_SUFFIX = "+dates"
"""End of its name, which no configured list can have."""


def dates_name(name: str) -> str:
    """Return the name under which a store has the dates of a list."""
    return name + _SUFFIX


def is_dates(name: str) -> bool:
    """Return True for the name of the dates of a list."""
    return name.endswith(_SUFFIX)


async def read_dates(store: ListStore, name: str, numbers: Sequence[int]) -> Mapping[int, Page]:
    """Return the pages of dates of a list that have these numbers, by number.

    Raises:
        StoreError: if the store cannot be read.
    """
    _, dates = await read_dates_and_state(store, name, numbers)
    return dates


async def read_dates_and_state(
    store: ListStore, name: str, numbers: Sequence[int]
) -> tuple[ListState | None, Mapping[int, Page]]:
    """Return the state of the dates of a list, and their pages that have these numbers, of the same moment.

    Raises:
        StoreError: if the store cannot be read.
    """
    state, dates = await store.some_pages(dates_name(name), numbers)
    return state, {page.number: page for page in dates}


async def write_dates(
    store: ListStore, name: str, pages: Iterable[Page], *, replaced: Iterable[Page] | None, seen: ListState | None = None,
    state: ListState, keep: int,
) -> None:  # fmt: skip
    """Write dates of a list before the list itself.

    Args:
        store: store of the list.
        name: name of the list.
        pages: pages of dates; an empty page deletes one.
        replaced: pages of dates that these replace; None: `pages` are those of the whole list.
        seen: state with which the replaced pages were read.
        state: state of the list to which the dates belong, as it will be written.
        keep: number of earlier releases of the list that are stored.

    Raises:
        GenerationConflict: if the dates have changed since.
    """
    present = await store.state(dates_name(name)) if replaced is None else seen
    present_digest = EMPTY_DIGEST if present is None else present.content_digest
    written = list(pages)
    digest = content_digest(written) if replaced is None else amended_digest(present_digest, replaced, written)
    if digest == present_digest == EMPTY_DIGEST:
        return
    following = ListState(
        kind=DATES, serial=0, generation=0, highest_serial=0, release_digest=state.content_digest, content_digest=digest,
        loaded_at=state.loaded_at,
    )  # fmt: skip
    write = store.replace if replaced is None else store.amend
    await write(dates_name(name), following, written, seen=0 if present is None else present.generation, keep=keep)


async def roll_back_dates(store: ListStore, name: str, target: ListState) -> None:
    """Restore the dates that belong to a kept state of a list, if they are kept too."""
    states = [release.state for release in await store.releases(dates_name(name))]
    wanted = next((state for state in states if _belongs(state, target)), None)
    if wanted is not None and wanted is not states[0]:
        await store.rollback(dates_name(name), seen=states[0].generation, to=wanted.generation)


async def kept_dates(store: ListStore, name: str, target: ListState, numbers: Sequence[int]) -> Mapping[int, Page]:
    """Return the numbered pages of dates that belong to a kept state of a list; empty if they are not kept."""
    for release in await store.releases(dates_name(name)):
        if _belongs(release.state, target):
            pages = await store.kept_pages(dates_name(name), release.state.generation, numbers)
            return {page.number: page for page in pages or ()}
    return {}


def _belongs(dates: ListState, state: ListState) -> bool:
    return (dates.release_digest, dates.loaded_at) == (state.content_digest, state.loaded_at)


async def day_of(store: ListStore, name: str, key: int, *, now: float = 0) -> int:
    """Return the day of a key in a list, read from the store; 0 for none.

    The day of the identifier's own row has priority over that of its TAC, as the reason has (eir.lists.record.reasons.reason_of).

    Raises:
        StoreError: if the list cannot be read.
    """
    number = key // PAGE_KEYS
    dates = await read_dates(store, name, [number])
    _, pages = await store.some_pages(name, [number])
    if not dates or not pages:
        return 0
    with as_corrupt(f"page {number} is damaged"):
        low, _, until, tac = decode(pages[0])
        found = decode_page_days(pages[0], dates[number])
    entries = [(int(found.days[at]), until[at]) for at in np.flatnonzero(low == key % PAGE_KEYS)]
    if tac is not None:
        entries.append((found.tac, tac.until))
    return next((day for day, end in entries if day and (not end or end > now)), 0)

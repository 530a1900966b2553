"""Dates of a list's entries. They form a second list in the store, and eir.lists.pages.dates defines the pages of this list.

The second list has a content digest of its own. So the digest of the first list does not depend on dates, and a node of a version
without dates can follow the first list. Dates are written before their list. If a load is interrupted between both writes, it is
repeated. Until the list is written, the days of its changed pages are unknown. If a program of a version without dates changes pages,
the days of these pages are unknown too.
"""

from collections.abc import Iterable, Mapping, Sequence

from eir.lists.pages.pages import EMPTY_DIGEST, Page, amended_digest, content_digest
from eir.lists.record.store import NO_LIST, ListState, ListStore

DATES = "dates"
"""Kind of a list of dates."""
IMPORTED_DAYS = "imported_days"
"""Kind of the list beside the record of first sightings: the days of the last import, for an undo (eir.lists.changes.import_days)."""
_SUFFIX = "+dates"
"""End of the name of a list of either kind. No configured list can have such a name."""


def dates_name(name: str) -> str:
    """Return the name of the list of dates that a store has beside the list `name`."""
    return name + _SUFFIX


def is_dates(name: str) -> bool:
    """Return True if a list with this name is a list of dates, or of the days of an import."""
    return name.endswith(_SUFFIX)


async def read_dates(
    store: ListStore, name: str, numbers: Sequence[int]
) -> tuple[ListState | None, Mapping[int, Page]]:
    """Read the pages of dates with these page numbers, and the state of the list of dates, in one consistent read.

    Raises:
        StoreError: if the store cannot be read.
    """
    state, dates = await store.some_pages(dates_name(name), numbers)
    return state, {page.number: page for page in dates}


async def write_dates(
    store: ListStore, name: str, pages: Iterable[Page], *, replaced: Iterable[Page] | None, seen: ListState | None = None,
    state: ListState, keep: int,
) -> None:  # fmt: skip
    """Write the pages of dates for a new version of a list. The caller writes the list itself afterwards.

    Args:
        store: store of the list.
        name: name of the list.
        pages: pages of dates; an empty page deletes the page with its number.
        replaced: pages of dates that `pages` replace; None: `pages` are the dates of the whole list.
        seen: state of the dates with which the replaced pages were read.
        state: state of the list that will be written after its dates.
        keep: number of earlier releases of the list that are stored.

    Raises:
        GenerationConflict: if the dates have changed since they were read.
    """
    new_pages = list(pages)
    if replaced is None:
        present = await store.state(dates_name(name)) or NO_LIST
        digest = content_digest(new_pages)
        write = store.replace
    else:
        present = seen or NO_LIST
        digest = amended_digest(present.content_digest, replaced, new_pages)
        write = store.amend
    if digest == present.content_digest == EMPTY_DIGEST:
        return
    new_state = ListState(
        kind=DATES, serial=0, generation=0, highest_serial=0, release_digest=state.content_digest, content_digest=digest,
        loaded_at=state.loaded_at,
    )  # fmt: skip
    await write(dates_name(name), new_state, new_pages, seen=present.generation, keep=keep)


async def roll_back_dates(store: ListStore, name: str, target: ListState) -> None:
    """For a rollback of a list, restore the dates of the earlier release `target`. If the store has none, nothing changes."""
    releases = await store.releases(dates_name(name))
    for release in releases:
        if _belongs(release.state, target):
            present = releases[0].state
            if release.state is not present:
                await store.rollback(dates_name(name), seen=present.generation, to=release.state.generation)
            return


async def kept_dates(store: ListStore, name: str, target: ListState, numbers: Sequence[int]) -> Mapping[int, Page]:
    """Return the pages of dates that belong to an earlier release (`target`), by page number; empty if the store lacks them."""
    for release in await store.releases(dates_name(name)):
        if _belongs(release.state, target):
            pages = await store.kept_pages(dates_name(name), release.state.generation, numbers)
            return {page.number: page for page in pages or ()}
    return {}


def _belongs(dates: ListState, state: ListState) -> bool:
    return dates.release_digest == state.content_digest and dates.loaded_at == state.loaded_at

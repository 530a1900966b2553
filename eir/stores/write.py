"""What a write changes: the one path of replace, amend, rollback and restore, for every store. Imports eir.lists and errors.

A store keeps pages in sets. Its record of a list (`Stored`) says which set is in force and what a rollback brings back:
another whole set, or only the pages that a delta touched, as they were before it. `decide` says what a write makes of that
record and of the sets (`Write`), and does none of it. The store makes it so in one transaction or not at all, provided that
its record is still the one on which this was decided.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterable, AsyncIterator, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from eir.errors import GenerationConflict, NothingToRollBack
from eir.lists.pages import Page
from eir.lists.store import Change, ListState, Mark

S = TypeVar("S", bound=Hashable)
"""What a store calls a set of pages."""
Batches = AsyncIterable[Sequence[Page]]

CHANGE_PAGES_MAX = 1 << 16
"""A change of more pages is logged as one that replaced all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is to come into force."""

    state: ListState
    pages: Sequence[Page] | None = None
    """Those that replace the pages of the same number (one that is `gone` goes); None: the whole list, in a set of its own."""
    exact: bool = False
    """Generation and highest serial are to be as `state` says."""
    keep: bool | None = True
    """What was in force before is kept for a rollback; None: what is kept for one stays."""


@dataclass(frozen=True, slots=True)
class Kept(Generic[S]):
    """What a rollback brings back."""

    state: ListState
    page_set: S
    whole: bool
    """The set has the whole list; False: the pages that the last delta touched, an empty one where there was none."""

    def wanted(self, pages: Sequence[Page]) -> Wanted:
        """What a rollback wants; `pages`: those in the set if that is not whole."""
        return Wanted(state=self.state, pages=None if self.whole else pages, keep=False)


@dataclass(frozen=True, slots=True)
class Stored(Generic[S]):
    """A store's record of a list."""

    state: ListState
    page_set: S
    kept: Kept[S] | None
    lost: bool = False
    """The pages are gone: there is no such list, but its next generation and its highest serial go on from here."""

    @property
    def generation(self) -> int:
        """What a caller sees; 0: there is no list."""
        return 0 if self.lost else self.state.generation

    @property
    def page_sets(self) -> tuple[S, ...]:
        """All that the record points to."""
        return (self.page_set,) if self.kept is None else (self.page_set, self.kept.page_set)


@dataclass(frozen=True, slots=True)
class Write(Generic[S]):
    """What is to be so after a write."""

    after: Stored[S]
    put: Sequence[Page]
    """These replace the pages of the same number in the set in force; what they replace goes to a kept set that is not whole."""
    dropped: tuple[S, ...]
    """Sets that nothing points to any more."""
    change: Change | None
    """The next entry of the log of changes."""
    new_log: bool
    """The log begins with that entry; others in it are of a list that is no longer."""


class PageSetStore(ABC):
    """The part of eir.lists.store.ListStore that is the same in every store: states, and the four writes."""

    @abstractmethod
    async def _stored(self, name: str) -> Stored[Any] | None:
        """The record of a list."""

    @abstractmethod
    async def _check_room(self, name: str, pages: Sequence[Page], *, amends: bool) -> None:
        """Raise StoreError if there is no room for a write of these pages, which is the whole list unless it `amends`."""

    @abstractmethod
    async def _write(self, name: str, seen: int, wanted: Wanted | None, whole: Batches | None = None) -> ListState:
        """Put in force what is wanted (None: undo the last release) and return the state as stored. `whole`: the list to stage."""

    async def state(self, name: str) -> ListState | None:
        stored = await self._stored(name)
        return None if stored is None or stored.lost else stored.state

    async def previous(self, name: str) -> ListState | None:
        """Whether the pages are still there may show only in the rollback."""
        stored = await self._stored(name)
        return None if stored is None or stored.lost or stored.kept is None else stored.kept.state

    async def replace(self, name: str, state: ListState, pages: Sequence[Page], *, seen: int) -> ListState:
        await self._check_room(name, pages, amends=False)
        return await self._write(name, seen, Wanted(state=state), one_batch(pages))

    async def amend(self, name: str, state: ListState, pages: Sequence[Page], *, seen: int) -> ListState:
        """Where there is no list yet, the pages are all of it."""
        if not seen:
            return await self.replace(name, state, pages, seen=seen)
        await self._check_room(name, pages, amends=True)
        return await self._write(name, seen, Wanted(state=state, pages=pages))

    async def rollback(self, name: str, *, seen: int) -> ListState:
        return await self._write(name, seen, None)

    async def reset_serial(self, name: str, to: int, *, seen: int) -> ListState:
        state = await self.state(name)
        if state is None:
            raise GenerationConflict(f"there is no list {name}")
        after = replace(state, generation=seen + 1, highest_serial=to, serial_resets=state.serial_resets + 1)
        return await self._write(name, seen, Wanted(state=after, pages=(), exact=True, keep=None))

    async def restore(self, name: str, state: ListState, batches: Batches, *, seen: int, whole: bool = True) -> None:
        """Where there is no list yet, the pages are all of it."""
        whole = whole or not seen
        pages = None if whole else [page async for batch in batches for page in batch]
        await self._write(name, seen, Wanted(state=state, pages=pages, exact=True, keep=False), batches if whole else None)


async def one_batch(pages: Sequence[Page]) -> AsyncIterator[Sequence[Page]]:
    """Pages that are at hand, for what takes batches."""
    yield pages


def check_generation(name: str, stored: Stored[S] | None, seen: int) -> None:
    """Raise GenerationConflict if the list is not at the generation that the writer saw."""
    current = 0 if stored is None else stored.generation
    if current != seen:
        raise GenerationConflict(f"list {name} is at generation {current}, not {seen}: someone else changed it meanwhile")


def last_kept(name: str, stored: Stored[S] | None) -> Kept[S]:
    """What a rollback brings back. Raises NothingToRollBack."""
    if stored is None or stored.lost or stored.kept is None:
        raise NothingToRollBack(f"no release of list {name} before the one in force is kept")
    return stored.kept


def decide(stored: Stored[S] | None, wanted: Wanted, own: S) -> Write[S]:
    """What comes of a write. `own`: the set with the whole list that is wanted; else an empty one, for what is to be kept."""
    state, pages, kept, seen = wanted.state, wanted.pages, None, 0
    generation = 0
    if stored is not None:
        seen, generation = stored.generation, stored.state.generation
    if not wanted.exact:
        resets, highest = _mark(stored, wanted)
        state = replace(state, generation=generation + 1, highest_serial=highest, serial_resets=resets)
    if stored is not None and not stored.lost:
        if wanted.keep is None:
            kept = stored.kept
        elif wanted.keep:
            kept = Kept(stored.state, stored.page_set if pages is None else own, whole=pages is None)
    after = Stored(state, own if stored is None or pages is None else stored.page_set, kept)
    touched = None if pages is None or len(pages) > CHANGE_PAGES_MAX else tuple(page.number for page in pages)
    return Write(
        after,
        put=pages or (),
        dropped=() if stored is None else tuple(each for each in stored.page_sets if each not in after.page_sets),
        change=Change(seen, state.generation, touched) if state.generation > seen else None,
        new_log=not seen or state.generation <= seen or (wanted.exact and pages is None),
    )


def _mark(stored: Stored[S] | None, wanted: Wanted) -> Mark:
    """The mark after a write: of a rollback that in force, since a serial that was set back may stand in what was kept."""
    if stored is None:
        return wanted.state.serial_resets, max(wanted.state.serial, wanted.state.highest_serial)
    if not wanted.keep:
        return stored.state.mark
    marks = (stored.state.mark, wanted.state.mark)
    resets = max(marks)[0]
    return resets, max(wanted.state.serial, *(highest for number, highest in marks if number == resets))


def without_gap(steps: Iterable[Change], after: int, current: int) -> Sequence[Change] | None:
    """The steps from generation `after` on, if they lead to the current one without a gap; None if they do not."""
    found = list(steps)
    reached = [after, *(step.after for step in found)]
    unbroken = all(step.before == start for step, start in zip(found, reached, strict=False))
    return found if unbroken and after <= current <= reached[-1] else None


def portions(pages: Sequence[Page], pages_max: int, bytes_max: int) -> Iterator[Sequence[Page]]:
    """Pages in portions of at most so many pages, each of which may pass `bytes_max` by its last page."""
    start = size = 0
    for at, page in enumerate(pages):
        if at > start and (size >= bytes_max or at - start >= pages_max):
            yield pages[start:at]
            start, size = at, 0
        size += len(page.keys) + len(page.extra)
    if start < len(pages):
        yield pages[start:]

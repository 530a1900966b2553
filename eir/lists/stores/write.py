"""The effects of a write: the one path of replace, amend, rollback and restore, for every store.

A store keeps pages in sets. Its record of a list (`Stored`) says which set is in force and what a rollback brings back,
step by step: another whole set, or only the pages that a delta touched, as they were before it. `decide` says what a write makes of that
record and of the sets (`Write`), and does none of it. The store makes it so in one transaction or not at all, provided that
its record is still the one on which this was decided, and that it has room, less a reserve (`check_room`).
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterable, AsyncIterator, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from eir.errors import GenerationConflict, NothingToRollBack, StoreChanged, StoreError
from eir.lists.pages.pages import Page
from eir.lists.record.history import content_of
from eir.lists.record.store import KEEP, Change, Event, ListState, Mark, Release

S = TypeVar("S", bound=Hashable)
"""A store's name for a set of pages."""
Batches = AsyncIterable[Sequence[Page]]

CHANGE_PAGES_MAX = 1 << 16
"""A change of more pages is logged as one that replaced all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The list that is to come into force."""

    state: ListState
    pages: Sequence[Page] = ()
    """Pages that replace those of the same number; one that is `gone` is removed."""
    whole: bool = False
    """The pages are put into a set of their own, which has all the rest of the list."""
    exact: bool = False
    """Generation and highest serial are to be as `state` says."""
    keep: int | None = KEEP
    """Number of releases to keep for a rollback, including the one that was in force before; None: leave the kept ones
    as they are."""
    event: Event | None = None
    """The event of this write, for the history."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Undo:
    """A rollback that is wanted: to the kept release of generation `to`, or to the last one."""

    to: int | None = None
    event: Event | None = None


@dataclass(frozen=True, slots=True)
class Kept(Generic[S]):
    """A release that a rollback brings back."""

    state: ListState
    page_set: S
    whole: bool
    """The set has the whole list; False: the pages that the release after it touched, an empty one where there was none."""
    made: Event | None = None
    """The event that brought it into force."""


@dataclass(frozen=True, slots=True)
class Stored(Generic[S]):
    """A store's record of a list."""

    state: ListState
    page_set: S
    kept: tuple[Kept[S], ...] = ()
    """Releases, newest first; each was in force before the one that stands before it."""
    made: Event | None = None
    """The event that brought this into force."""
    lost: bool = False
    """The pages are gone: there is no such list, but its next generation and its highest serial go on from here."""

    @property
    def generation(self) -> int:
        """The generation that a caller sees; 0: the list does not exist."""
        return 0 if self.lost else self.state.generation

    @property
    def page_sets(self) -> tuple[S, ...]:
        """All sets that the record points to."""
        return (self.page_set, *(kept.page_set for kept in self.kept))


@dataclass(frozen=True, slots=True)
class Write(Generic[S]):
    """The state after a write."""

    after: Stored[S]
    put: Sequence[Page]
    """Pages that replace those of the same number in the set in force."""
    aside: S | None
    """The set that receives the pages that they replace."""
    dropped: tuple[S, ...]
    """Sets that nothing points to any more."""
    change: Change | None
    """The next entry of the log of changes."""
    new_log: bool
    """The log begins with that entry; others in it are of a list that is no longer."""
    event: Event | None = None
    """The next one of the history."""


class PageSetStore(ABC):
    """The part of eir.lists.record.store.ListStore that is the same in every store: states, and the four writes."""

    @abstractmethod
    async def _stored(self, name: str) -> Stored[Any] | None:
        """The record of a list."""

    @abstractmethod
    async def _check_room(self, name: str, pages: Sequence[Page], *, amends: bool) -> None:
        """Raise StoreError if there is no room for a write of these pages, which is the whole list unless it `amends`."""

    @abstractmethod
    async def _write(self, name: str, seen: int, wanted: Wanted | Undo, batches: Batches | None = None) -> ListState:
        """Put in force what is wanted and return the state as stored. `batches`: the whole list, to be staged."""

    @abstractmethod
    async def _pages_in(self, stored: Stored[Any], page_set: Any, numbers: Sequence[int]) -> Sequence[Page] | None:
        """Those of the numbered pages that are in a set, gone ones too; None if the set does not exist any more."""

    async def state(self, name: str) -> ListState | None:
        stored = await self._stored(name)
        return None if stored is None or stored.lost else stored.state

    async def releases(self, name: str) -> Sequence[Release]:
        """The releases in force and kept. Missing pages of a kept one may not show until the rollback."""
        stored = await self._stored(name)
        if stored is None or stored.lost:
            return ()
        return [Release(stored.state, stored.made), *(Release(kept.state, kept.made) for kept in stored.kept)]

    async def kept_pages(self, name: str, generation: int, numbers: Sequence[int]) -> Sequence[Page] | None:
        """The pages of a kept release.

        A page that the set of a partial release lacks is the same in the next release.
        """
        stored = await self._stored(name)
        if stored is None or stored.lost:
            return None
        steps = [
            (stored.state, stored.page_set, True),
            *((kept.state, kept.page_set, kept.whole) for kept in stored.kept),
        ]
        at = next((at for at, (state, *_) in enumerate(steps) if state.generation == generation), None)
        if at is None:
            return None
        found: dict[int, Page] = {}
        for _, page_set, whole in reversed(steps[: at + 1]):
            pages = await self._pages_in(stored, page_set, [number for number in numbers if number not in found])
            if pages is None:
                return None
            found |= {page.number: page for page in pages}
            if whole:
                break
        if await self._stored(name) != stored:
            raise StoreChanged(f"list {name} changed while what is kept of it was read")
        return [page for page in found.values() if not page.gone]

    async def replace(
        self,
        name: str,
        state: ListState,
        pages: Sequence[Page],
        *,
        seen: int,
        keep: int = KEEP,
        event: Event | None = None,
    ) -> ListState:
        await self._check_room(name, pages, amends=False)
        return await self._write(name, seen, Wanted(state=state, whole=True, keep=keep, event=event), one_batch(pages))

    async def amend(
        self,
        name: str,
        state: ListState,
        pages: Sequence[Page],
        *,
        seen: int,
        keep: int = KEEP,
        event: Event | None = None,
    ) -> ListState:
        """Amend the list. If it does not exist yet, the pages are all of it."""
        if not seen:
            return await self.replace(name, state, pages, seen=seen, keep=keep, event=event)
        await self._check_room(name, pages, amends=True)
        return await self._write(name, seen, Wanted(state=state, pages=pages, keep=keep, event=event))

    async def rollback(self, name: str, *, seen: int, to: int | None = None, event: Event | None = None) -> ListState:
        return await self._write(name, seen, Undo(to=to, event=event))

    async def reset_serial(self, name: str, to: int, *, seen: int, event: Event | None = None) -> ListState:
        state = await self.state(name)
        if state is None:
            raise GenerationConflict(f"there is no list {name}")
        after = replace(state, generation=seen + 1, highest_serial=to, serial_resets=state.serial_resets + 1)
        return await self._write(name, seen, Wanted(state=after, exact=True, keep=None, event=event))

    async def restore(
        self,
        name: str,
        state: ListState,
        batches: Batches,
        *,
        seen: int,
        whole: bool = True,
        event: Event | None = None,
    ) -> None:
        """Restore the list. If it does not exist yet, the pages are all of it."""
        whole = whole or not seen
        pages = () if whole else [page async for batch in batches for page in batch]
        wanted = Wanted(state=state, pages=pages, whole=whole, exact=True, keep=0, event=event)
        await self._write(name, seen, wanted, batches if whole else None)


async def one_batch(pages: Sequence[Page]) -> AsyncIterator[Sequence[Page]]:
    """The given pages as a single batch."""
    yield pages


def check_generation(name: str, stored: Stored[S] | None, seen: int) -> None:
    """Raise GenerationConflict if the list is not at the generation that the writer saw."""
    current = 0 if stored is None else stored.generation
    if current != seen:
        raise GenerationConflict(
            f"list {name} is at generation {current}, not {seen}: someone else changed it meanwhile"
        )


def steps_back(name: str, stored: Stored[S] | None, to: int | None) -> tuple[Kept[S], ...]:
    """The steps of a rollback, newest first; the last one is the release that it brings back.

    Raises NothingToRollBack.
    """
    kept = () if stored is None or stored.lost else stored.kept
    for at, each in enumerate(kept, 1):
        if to is None or each.state.generation == to:
            return kept[:at]
    what = "before the one in force" if to is None else f"of generation {to}"
    raise NothingToRollBack(f"no release of list {name} {what} is kept")


def decide_undo(
    stored: Stored[S], steps: Sequence[Kept[S]], pages: Sequence[Sequence[Page]], event: Event | None
) -> Write[S]:
    """The write that a rollback makes. `pages`: for each step the pages of its set, empty if that set is whole."""
    *_, target = steps
    whole = [at for at, step in enumerate(steps) if step.whole]
    under = whole[-1] if whole else 0  # what came after the last whole set needs no look
    found = {page.number: page for each in pages[under:] for page in each}
    wanted = Wanted(state=target.state, pages=list(found.values()), whole=bool(whole), keep=None, event=event)
    write = decide(stored, wanted, steps[under].page_set)
    after = replace(write.after, kept=stored.kept[len(steps) :], made=target.made)
    return replace(write, after=after, dropped=_dropped(stored, after))


def decide(stored: Stored[S] | None, wanted: Wanted, own: S, change_pages_max: int = CHANGE_PAGES_MAX) -> Write[S]:
    """The write that puts `wanted` in force.

    `own`: the set with the whole list that is wanted; else an empty one, for the pages to be kept. `change_pages_max`: a change of more
    pages is logged as one of all.
    """
    state, whole, seen = wanted.state, wanted.whole or stored is None, 0
    event = None if wanted.event is None else replace(wanted.event, content=content_of(state))
    kept: tuple[Kept[S], ...] = ()
    generation, aside, made = 0, None, event
    if stored is not None:
        seen, generation = stored.generation, stored.state.generation
    if not wanted.exact:
        resets, highest = _mark(stored, wanted)
        state = replace(state, generation=generation + 1, highest_serial=highest, serial_resets=resets)
    if stored is not None and not stored.lost:
        if wanted.keep is None:
            kept, made = stored.kept, stored.made
        elif wanted.keep:
            aside = None if whole else own
            last = Kept(stored.state, stored.page_set if aside is None else aside, whole, stored.made)
            kept = (last, *stored.kept)[: wanted.keep]
    after = Stored(state, own if stored is None or whole else stored.page_set, kept, made)
    touched = None if whole or len(wanted.pages) > change_pages_max else tuple(page.number for page in wanted.pages)
    return Write(
        after, wanted.pages, aside, _dropped(stored, after),
        change=Change(seen, state.generation, touched) if state.generation > seen else None,
        new_log=not seen or state.generation <= seen or (wanted.exact and whole), event=event,
    )  # fmt: skip


def _dropped(stored: Stored[S] | None, after: Stored[S]) -> tuple[S, ...]:
    return () if stored is None else tuple(each for each in stored.page_sets if each not in after.page_sets)


def _mark(stored: Stored[S] | None, wanted: Wanted) -> Mark:
    """The mark after a write: of a rollback that in force, since a serial that was set back may stand in what was kept."""
    if stored is None:
        return wanted.state.serial_resets, max(wanted.state.serial, wanted.state.highest_serial)
    if wanted.keep is None:
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
    """Portions of at most this many pages, each of which may exceed `bytes_max` by its last page."""
    start = size = 0
    for at, page in enumerate(pages):
        if at > start and (size >= bytes_max or at - start >= pages_max):
            yield pages[start:at]
            start, size = at, 0
        size += len(page.keys) + len(page.extra)
    if start < len(pages):
        yield pages[start:]


SMALL_BYTES = 1 << 20
"""A write that needs no more may use the reserve: the history, an operator's entries, a rollback."""
_MB = 1 << 20


def check_room(cause: str, where: str, advice: str, *, needs: int, free: int, reserve: int) -> None:
    """Refuse a write before it begins. Raises StoreError (`cause`) with the figures, all in bytes, and `advice` what to do."""
    if needs > SMALL_BYTES and needs > free - reserve:
        kept = f"{free // _MB:,} MB are free, of which {reserve // _MB:,} MB are kept for the history, removals and rollback"
        raise StoreError(
            cause, f"{where}: this needs about {-(-needs // _MB):,} MB, and {kept}; nothing was changed: {advice}"
        )

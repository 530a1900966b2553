"""Effects of a write (replace, amend, rollback or restore), computed in the same way for every store.

A store keeps pages in sets. Its record of a list (`Stored`) names the set in force, and for each release to which a rollback
can return, either a whole set or only the pages that the next delta replaced. `decide` computes the new record and the
changes of the sets (`Write`) without side effects. The store applies them in one transaction, if its record is unchanged and
there is room, less a reserve (`check_room`).
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterable, AsyncIterator, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from eir.errors import GenerationConflict, NothingToRollBack, StoreChanged, StoreError
from eir.lists.pages.pages import Page
from eir.lists.record.history import content_of
from eir.lists.record.store import KEEP, Event, ListChange, ListState, Mark, Release

S = TypeVar("S", bound=Hashable)
"""Store's identifier for a set of pages."""
Batches = AsyncIterable[Sequence[Page]]

CHANGE_PAGES_MAX = 1 << 16
"""Maximum number of pages of a change that are logged; a larger change is logged as one of all pages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteRequest:
    """Request to put content in force: a state with all pages or the changed pages of a list."""

    state: ListState
    pages: Sequence[Page] = ()
    """Pages that replace those with the same numbers; an empty page is removed."""
    whole: bool = False
    """True if a new set has the whole list."""
    exact: bool = False
    """True if generation and highest serial must be those of `state`."""
    keep: int | None = KEEP
    """Number of releases to keep for a rollback, including the previous one; None: leave the kept releases unchanged."""
    event: Event | None = None
    """Event of this write for the history."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Undo:
    """Request for a rollback to the kept release of generation `to`, or to the previous release."""

    to: int | None = None
    event: Event | None = None


@dataclass(frozen=True, slots=True)
class Kept(Generic[S]):
    """Earlier release that the store keeps for a rollback."""

    state: ListState
    page_set: S
    whole: bool
    """True if the set has the whole list; False if it has only the pages that the next release replaced (empty for a new page)."""
    made: Event | None = None
    """Event that put the release in force."""


@dataclass(frozen=True, slots=True)
class Stored(Generic[S]):
    """Store's record of a list: the state in force, its set of pages, and the kept releases."""

    state: ListState
    page_set: S
    kept: tuple[Kept[S], ...] = ()
    """Kept releases, newest first."""
    made: Event | None = None
    """Event that put the present state in force."""
    lost: bool = False
    """True if the pages are lost: the list does not exist, but its next generation and its highest serial continue from here."""

    @property
    def generation(self) -> int:
        """Generation of the list as callers see it: 0 if the list does not exist."""
        return 0 if self.lost else self.state.generation

    @property
    def page_sets(self) -> tuple[S, ...]:
        """All sets of pages that the record refers to."""
        return (self.page_set, *(kept.page_set for kept in self.kept))


@dataclass(frozen=True, slots=True)
class Write(Generic[S]):
    """Effects of a write on the store: new record, pages to replace, sets to delete, and log entries."""

    after: Stored[S]
    put: Sequence[Page]
    """Pages that replace those with the same numbers in the set in force."""
    aside: S | None
    """Set that receives the replaced pages."""
    dropped: tuple[S, ...]
    """Sets that are no longer used."""
    change: ListChange | None
    """Next entry of the change log."""
    new_log: bool
    """True if the log begins with that entry, because older entries are of a lost list."""
    event: Event | None = None
    """Next event of the history."""


class PageSetStore(ABC):
    """Base class of all stores, with the methods of ListStore about states and the four kinds of writes."""

    @abstractmethod
    async def _stored(self, name: str) -> Stored[Any] | None:
        """Return the store's record of a list; None if the list has no record."""

    @abstractmethod
    async def _check_room(self, name: str, pages: Sequence[Page], *, amends: bool) -> None:
        """Raise StoreError if the store has no room for these pages.

        `amends`: the pages are changed pages, not a whole list.
        """

    @abstractmethod
    async def _write(
        self, name: str, seen: int, request: WriteRequest | Undo, batches: Batches | None = None
    ) -> ListState:
        """Put the list content of a request in force, and return the stored state.

        `batches`: pages of the whole list, which are staged first.
        """

    @abstractmethod
    async def _pages_in(self, stored: Stored[Any], page_set: Any, numbers: Sequence[int]) -> Sequence[Page] | None:
        """Return the numbered pages that a set contains, including pages that are stored empty.

        If the set no longer exists, the result is `None`.
        """

    async def state(self, name: str) -> ListState | None:
        stored = await self._stored(name)
        return None if stored is None or stored.lost else stored.state

    async def releases(self, name: str) -> Sequence[Release]:
        """Return the release in force and the kept releases, newest first.

        Missing pages of a kept release may be noticed only by a rollback.
        """
        stored = await self._stored(name)
        if stored is None or stored.lost:
            return ()
        return [Release(stored.state, stored.made), *(Release(kept.state, kept.made) for kept in stored.kept)]

    async def kept_pages(self, name: str, generation: int, numbers: Sequence[int]) -> Sequence[Page] | None:
        """Return the numbered pages of a kept release; None if the release is no longer stored.

        If the set of a partial release lacks a page, the page is the same in the next release.
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
        pages_by_number: dict[int, Page] = {}
        for _, page_set, whole in reversed(steps[: at + 1]):
            pages = await self._pages_in(
                stored, page_set, [number for number in numbers if number not in pages_by_number]
            )
            if pages is None:
                return None
            pages_by_number |= {page.number: page for page in pages}
            if whole:
                break
        if await self._stored(name) != stored:
            raise StoreChanged(f"list {name} changed while what is kept of it was read")
        return [page for page in pages_by_number.values() if not page.is_empty]

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
        return await self._write(
            name, seen, WriteRequest(state=state, whole=True, keep=keep, event=event), one_batch(pages)
        )

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
        """Put changed pages of a list in force. If the list does not exist, the pages are the whole list."""
        if not seen:
            return await self.replace(name, state, pages, seen=seen, keep=keep, event=event)
        await self._check_room(name, pages, amends=True)
        return await self._write(name, seen, WriteRequest(state=state, pages=pages, keep=keep, event=event))

    async def rollback(self, name: str, *, seen: int, to: int | None = None, event: Event | None = None) -> ListState:
        return await self._write(name, seen, Undo(to=to, event=event))

    async def reset_serial(self, name: str, to: int, *, seen: int, event: Event | None = None) -> ListState:
        state = await self.state(name)
        if state is None:
            raise GenerationConflict(f"there is no list {name}")
        after = replace(state, generation=seen + 1, highest_serial=to, serial_resets=state.serial_resets + 1)
        return await self._write(name, seen, WriteRequest(state=after, exact=True, keep=None, event=event))

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
        """Put a list in force with exactly this state. If the list does not exist, the pages are the whole list."""
        whole = whole or not seen
        pages = () if whole else [page async for batch in batches for page in batch]
        request = WriteRequest(state=state, pages=pages, whole=whole, exact=True, keep=0, event=event)
        await self._write(name, seen, request, batches if whole else None)


async def one_batch(pages: Sequence[Page]) -> AsyncIterator[Sequence[Page]]:
    """Yield the given pages as a single batch."""
    yield pages


def check_generation(name: str, stored: Stored[S] | None, seen: int) -> None:
    """Raise GenerationConflict if the list is no longer at the generation that the writer has read."""
    current = 0 if stored is None else stored.generation
    if current != seen:
        raise GenerationConflict(
            f"list {name} is at generation {current}, not {seen}: another process changed it meanwhile"
        )


def rollback_steps(name: str, stored: Stored[S] | None, to: int | None) -> tuple[Kept[S], ...]:
    """Return the kept releases that a rollback passes through, newest first; the last one is its target.

    Raises:
        NothingToRollBack: if the target is not kept.
    """
    kept = () if stored is None or stored.lost else stored.kept
    for at, each in enumerate(kept, 1):
        if to is None or each.state.generation == to:
            return kept[:at]
    which = "before the one in force" if to is None else f"of generation {to}"
    raise NothingToRollBack(f"no release of list {name} {which} is kept")


def decide_undo(
    stored: Stored[S], steps: Sequence[Kept[S]], pages: Sequence[Sequence[Page]], event: Event | None
) -> Write[S]:
    """Compute the effects of a rollback.

    `pages`: for each step the pages in its set, empty if the set has the whole list.
    """
    *_, target = steps
    whole = [at for at, step in enumerate(steps) if step.whole]
    under = whole[-1] if whole else 0  # steps newer than the last whole set have no effect
    pages_by_number = {page.number: page for each in pages[under:] for page in each}
    request = WriteRequest(
        state=target.state, pages=list(pages_by_number.values()), whole=bool(whole), keep=None, event=event
    )
    write = decide(stored, request, steps[under].page_set)
    after = replace(write.after, kept=stored.kept[len(steps) :], made=target.made)
    return replace(write, after=after, dropped=_unreferenced_sets(stored, after))


def decide(
    stored: Stored[S] | None, request: WriteRequest, own: S, change_pages_max: int = CHANGE_PAGES_MAX
) -> Write[S]:
    """Compute the effects of a write without side effects.

    Args:
        stored: present record; None for a new list.
        request: content to put in force.
        own: set with the whole list, or an empty set that receives the replaced pages.
        change_pages_max: maximum number of pages of a change that are logged.
    """
    state, whole, seen = request.state, request.whole or stored is None, 0
    event = None if request.event is None else replace(request.event, content=content_of(state))
    kept: tuple[Kept[S], ...] = ()
    generation, aside, made = 0, None, event
    if stored is not None:
        seen, generation = stored.generation, stored.state.generation
    if not request.exact:
        resets, highest = _next_mark(stored, request)
        state = replace(state, generation=generation + 1, highest_serial=highest, serial_resets=resets)
    if stored is not None and not stored.lost:
        if request.keep is None:
            kept, made = stored.kept, stored.made
        elif request.keep:
            aside = None if whole else own
            last = Kept(stored.state, stored.page_set if aside is None else aside, whole, stored.made)
            kept = (last, *stored.kept)[: request.keep]
    after = Stored(state, own if stored is None or whole else stored.page_set, kept, made)
    touched = None if whole or len(request.pages) > change_pages_max else tuple(page.number for page in request.pages)
    return Write(
        after, request.pages, aside, _unreferenced_sets(stored, after),
        change=ListChange(seen, state.generation, touched) if state.generation > seen else None,
        new_log=not seen or state.generation <= seen or (request.exact and whole), event=event,
    )  # fmt: skip


def _unreferenced_sets(stored: Stored[S] | None, after: Stored[S]) -> tuple[S, ...]:
    return () if stored is None else tuple(each for each in stored.page_sets if each not in after.page_sets)


def _next_mark(stored: Stored[S] | None, request: WriteRequest) -> Mark:
    """Return a list's number of serial resets and highest serial after a write.

    A rollback keeps the present mark, because the mark of a kept release may be lower after a reset.
    """
    if stored is None:
        return request.state.serial_resets, max(request.state.serial, request.state.highest_serial)
    if request.keep is None:
        return stored.state.mark
    marks = (stored.state.mark, request.state.mark)
    resets = max(marks)[0]
    return resets, max(request.state.serial, *(highest for number, highest in marks if number == resets))


def contiguous_changes(steps: Iterable[ListChange], after: int, current: int) -> Sequence[ListChange] | None:
    """Return the changes that lead from generation `after` to `current`; None if some are missing."""
    changes = list(steps)
    reached = [after, *(step.after for step in changes)]
    unbroken = all(step.before == start for step, start in zip(changes, reached, strict=False))
    return changes if unbroken and after <= current <= reached[-1] else None


def portions(pages: Sequence[Page], pages_max: int, bytes_max: int) -> Iterator[Sequence[Page]]:
    """Split pages into portions of at most `pages_max` pages and about `bytes_max` bytes.

    The last page of a portion may exceed `bytes_max`.
    """
    start = size = 0
    for at, page in enumerate(pages):
        if at > start and (size >= bytes_max or at - start >= pages_max):
            yield pages[start:at]
            start, size = at, 0
        size += len(page.keys) + len(page.extra)
    if start < len(pages):
        yield pages[start:]


SMALL_BYTES = 1 << 20
"""Bytes up to which a write may use the reserve: the history, an operator's entries, a rollback."""
_MB = 1 << 20


def check_room(cause: str, where: str, advice: str, *, needs: int, free: int, reserve: int) -> None:
    """Raise StoreError (`cause`) if a write needs more than the free bytes minus the reserve.

    The message has the sizes and `advice`.
    """
    if needs > SMALL_BYTES and needs > free - reserve:
        free_text = f"{free // _MB:,} MB are free, of which {reserve // _MB:,} MB are kept for the history, removals and rollback"
        raise StoreError(
            cause, f"{where}: this needs about {-(-needs // _MB):,} MB, and {free_text}; nothing was changed: {advice}"
        )

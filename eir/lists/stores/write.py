"""Computation of a write (replace, amend, rollback or restore) without I/O, the same for every store.

A store keeps pages in sets. Its record of a list (`Stored`) names the set in force. For each release to which a rollback can
return, the record also names a set: either all pages of the release, or only the pages that the next delta replaced. `plan_write`
computes the new record and the changes of the sets (`Write`) without side effects. The store applies these changes in one
transaction, if its record is unchanged. It first checks that the disk or memory has room for them (`check_room`).
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterable, AsyncIterator, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from eir.errors import GenerationConflict, NothingToRollBack, StoreChanged, StoreError
from eir.lists.pages.pages import Page
from eir.lists.record.history import content_of
from eir.lists.record.store import KEEP, Event, ListChange, ListState, Mark, Release

S = TypeVar("S", bound=Hashable)
"""Store's identifier for a set of pages."""
T = TypeVar("T")
Batches = AsyncIterable[Sequence[Page]]

CHANGE_PAGES_MAX = 1 << 16
"""Maximum number of page numbers in an entry of the change log; a larger change is logged as a change of all pages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteRequest:
    """Request to put a list state in force, with all pages of the list or only the changed pages."""

    state: ListState
    pages: Sequence[Page] = ()
    """Changed pages, which replace the pages with the same numbers; an empty page is removed."""
    whole: bool = False
    """True if the request replaces the whole list by a new set."""
    exact: bool = False
    """True if `state` is stored with its generation and highest serial; otherwise the store sets both."""
    keep: int | None = KEEP
    """Number of releases to keep for a rollback, including the previous one; None: leave the kept releases unchanged."""
    event: Event | None = None
    """Event of this write for the history."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RollbackRequest:
    """Request for a rollback to the stored release of generation `to`, or, without `to`, to the previous release."""

    to: int | None = None
    event: Event | None = None


@dataclass(frozen=True, slots=True)
class Kept(Generic[S]):
    """Earlier release of a list that the store keeps for a rollback."""

    state: ListState
    page_set: S
    whole: bool
    """True if the set has the whole list; False if it has only the pages that the next release replaced.

    A page that the next release added is empty in the set.
    """
    made: Event | None = None
    """Event that put the release in force."""


@dataclass(frozen=True, slots=True)
class Stored(Generic[S]):
    """Store's row of a list: the state in force, its page set, and the kept releases."""

    state: ListState
    page_set: S
    kept: tuple[Kept[S], ...] = ()
    """Kept releases, newest first."""
    made: Event | None = None
    """Event that put the present state in force."""
    lost: bool = False
    """True if the pages are lost. The list then does not exist, but its generation and highest serial continue."""

    @property
    def generation(self) -> int:
        """Generation of the list; 0 if the list does not exist."""
        return 0 if self.lost else self.state.generation

    @property
    def page_sets(self) -> tuple[S, ...]:
        """Page sets of the list: first the one in force, then those of the releases kept for a rollback."""
        kept_sets = (kept.page_set for kept in self.kept)
        return (self.page_set, *kept_sets)


@dataclass(frozen=True, slots=True)
class Write(Generic[S]):
    """Computed write: the changes that the store must make to a list."""

    after: Stored[S]
    """New record of the list."""
    pages: Sequence[Page]
    """Pages that replace the pages with the same numbers in the set in force."""
    replaced_set: S | None
    """Set that receives the replaced pages, for a rollback."""
    unused_sets: tuple[S, ...]
    """Sets to delete."""
    change: ListChange | None
    """Next entry of the change log."""
    clears_log: bool
    """True if older entries of the change log must be deleted, because they do not lead to the new state."""
    event: Event | None = None
    """Next event of the history."""


class PageSetStore(ABC):
    """Base class of all stores. It implements the methods of ListStore about states and writes."""

    @abstractmethod
    async def _stored(self, name: str) -> Stored[Any] | None:
        """Read the store's row of a list; None if the list does not exist."""

    @abstractmethod
    async def _check_room(self, name: str, pages: Sequence[Page], *, amends: bool) -> None:
        """Raise StoreError if the disk or memory of the store has no room for these pages.

        `amends`: True for changed pages, False for a whole list.
        """

    @abstractmethod
    async def _write(
        self, name: str, seen: int, request: WriteRequest | RollbackRequest, batches: Batches | None = None
    ) -> ListState:
        """Apply a write request, and return the stored state.

        `batches`: pages of the whole list, which are staged first; None for a change of some pages.
        """

    @abstractmethod
    async def _pages_in(self, stored: Stored[Any], page_set: Any, numbers: Sequence[int]) -> Sequence[Page] | None:
        """Return the pages of a page set with these numbers, including empty pages; None if the set no longer exists."""

    async def state(self, name: str) -> ListState | None:
        stored = await self._stored(name)
        return None if stored is None or stored.lost else stored.state

    async def releases(self, name: str) -> Sequence[Release]:
        """Return the release in force and the kept releases, newest first.

        The pages of the kept releases are not verified. A rollback fails if pages are missing.
        """
        stored = await self._stored(name)
        if stored is None or stored.lost:
            return ()
        kept = [Release(release.state, release.made) for release in stored.kept]
        return [Release(stored.state, stored.made), *kept]

    async def kept_pages(self, name: str, generation: int, numbers: Sequence[int]) -> Sequence[Page] | None:
        """Return the pages with these page numbers from a release that is kept for a rollback; None if the release is no longer stored.

        If a set with replaced pages lacks a page, the page is the same in the next release.
        """
        stored = await self._stored(name)
        if stored is None or stored.lost:
            return None
        in_force = Kept(stored.state, stored.page_set, whole=True)
        newer_releases: list[Kept[Any]] = []
        for release in (in_force, *stored.kept):
            newer_releases.append(release)
            if release.state.generation == generation:
                break
        else:
            return None
        pages_by_number: dict[int, Page] = {}
        for release in reversed(newer_releases):
            missing = [number for number in numbers if number not in pages_by_number]
            pages = await self._pages_in(stored, release.page_set, missing)
            if pages is None:
                return None
            pages_by_number |= {page.number: page for page in pages}
            if release.whole:
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
        request = WriteRequest(state=state, whole=True, keep=keep, event=event)
        return await self._write(name, seen, request, one_batch(pages))

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
        """Put changed pages of a list in force. If the list does not exist, `pages` must be all its pages."""
        if not seen:
            return await self.replace(name, state, pages, seen=seen, keep=keep, event=event)
        await self._check_room(name, pages, amends=True)
        request = WriteRequest(state=state, pages=pages, keep=keep, event=event)
        return await self._write(name, seen, request)

    async def rollback(self, name: str, *, seen: int, to: int | None = None, event: Event | None = None) -> ListState:
        request = RollbackRequest(to=to, event=event)
        return await self._write(name, seen, request)

    async def reset_serial(self, name: str, to: int, *, seen: int, event: Event | None = None) -> ListState:
        state = await self.state(name)
        if state is None:
            raise GenerationConflict(f"there is no list {name}")
        resets = state.serial_resets + 1
        after = replace(state, generation=seen + 1, highest_serial=to, serial_resets=resets)
        request = WriteRequest(state=after, exact=True, keep=None, event=event)
        return await self._write(name, seen, request)

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
        """Put a list in force with exactly this state. `batches`: all pages; if `whole` is False, the changed pages of an existing list."""
        if whole or not seen:
            request = WriteRequest(state=state, whole=True, exact=True, keep=0, event=event)
            await self._write(name, seen, request, batches)
            return
        pages = [page async for batch in batches for page in batch]
        request = WriteRequest(state=state, pages=pages, exact=True, keep=0, event=event)
        await self._write(name, seen, request)


async def one_batch(batch: Sequence[T]) -> AsyncIterator[Sequence[T]]:
    """Yield the given pages or records as a single batch."""
    yield batch


def check_generation(name: str, stored: Stored[S] | None, seen: int) -> None:
    """Raise GenerationConflict if the list's generation has changed since the writer read it (`seen`)."""
    current = 0 if stored is None else stored.generation
    if current != seen:
        raise GenerationConflict(
            f"list {name} is at generation {current}, not {seen}: another process changed it meanwhile"
        )


def rollback_steps(name: str, stored: Stored[S] | None, to: int | None) -> tuple[Kept[S], ...]:
    """Return the kept releases that a rollback goes through, from the newest to its target.

    Raises:
        NothingToRollBack: if the target is not kept.
    """
    kept = () if stored is None or stored.lost else stored.kept
    for count, release in enumerate(kept, 1):
        if to is None or release.state.generation == to:
            return kept[:count]
    target = "before the one in force" if to is None else f"of generation {to}"
    raise NothingToRollBack(f"no release of list {name} {target} is kept")


def plan_rollback(
    stored: Stored[S], steps: Sequence[Kept[S]], pages: Sequence[Sequence[Page]], event: Event | None
) -> Write[S]:
    """Compute the write that a rollback makes, without side effects.

    Args:
        stored: present record.
        steps: result of `rollback_steps`.
        pages: for each step the pages in its set, empty if the set has the whole list.
        event: event of the rollback for the history.
    """
    target = steps[-1]
    base, is_whole = 0, False
    for number, step in enumerate(steps):
        if step.whole:  # the sets of newer steps have no effect
            base, is_whole = number, True
    pages_by_number = {page.number: page for step_pages in pages[base:] for page in step_pages}
    changed = list(pages_by_number.values())
    request = WriteRequest(state=target.state, pages=changed, whole=is_whole, keep=None, event=event)
    write = plan_write(stored, request, steps[base].page_set)
    after = replace(write.after, kept=stored.kept[len(steps) :], made=target.made)
    return replace(write, after=after, unused_sets=_unused_sets(stored, after))


def plan_write(stored: Stored[S] | None, request: WriteRequest, page_set: S) -> Write[S]:
    """Compute the write that a request makes, without side effects.

    Args:
        stored: present record; None for a new list.
        request: content to put in force.
        page_set: set with the whole list, or an empty set that receives the replaced pages.
    """
    is_whole = request.whole or stored is None
    seen = 0 if stored is None else stored.generation
    state = request.state
    if not request.exact:
        generation = 0 if stored is None else stored.state.generation
        resets, highest = _next_mark(stored, request)
        state = replace(state, generation=generation + 1, highest_serial=highest, serial_resets=resets)
    event = None if request.event is None else replace(request.event, content=content_of(state))
    made = event
    kept: tuple[Kept[S], ...] = ()
    replaced_set: S | None = None
    if stored is not None and not stored.lost:
        if request.keep is None:
            kept, made = stored.kept, stored.made
        elif request.keep:
            last_set = stored.page_set
            if not is_whole:
                last_set = replaced_set = page_set
            last = Kept(stored.state, last_set, is_whole, stored.made)
            kept = (last, *stored.kept)[: request.keep]
    set_in_force = page_set if stored is None or is_whole else stored.page_set
    after = Stored(state, set_in_force, kept, made)
    change = None
    if state.generation > seen:
        is_logged_whole = is_whole or len(request.pages) > CHANGE_PAGES_MAX
        numbers = None if is_logged_whole else tuple(page.number for page in request.pages)
        change = ListChange(seen, state.generation, numbers)
    clears_log = not seen or change is None or (request.exact and is_whole)
    return Write(after, request.pages, replaced_set, _unused_sets(stored, after), change, clears_log, event)


def _unused_sets(stored: Stored[S] | None, after: Stored[S]) -> tuple[S, ...]:
    page_sets = () if stored is None else stored.page_sets
    return tuple(page_set for page_set in page_sets if page_set not in after.page_sets)


def _next_mark(stored: Stored[S] | None, request: WriteRequest) -> Mark:
    """Return the mark of a list (number of serial resets, highest serial) after a write.

    A rollback keeps the present mark, because the mark of a kept release may be lower after a reset.
    """
    state = request.state
    if stored is None:
        return state.serial_resets, max(state.serial, state.highest_serial)
    if request.keep is None:
        return stored.state.mark
    resets = max(stored.state.serial_resets, state.serial_resets)
    highest = state.serial
    for mark_resets, mark_serial in (stored.state.mark, state.mark):
        if mark_resets == resets:
            highest = max(highest, mark_serial)
    return resets, highest


def contiguous_changes(changes: Sequence[ListChange], after: int, current: int) -> Sequence[ListChange] | None:
    """Return the changes if they lead from generation `after` to `current` or beyond; None if changes are missing."""
    generation = after
    for change in changes:
        if change.before != generation:
            return None
        generation = change.after
    return changes if after <= current <= generation else None


def portions(pages: Sequence[Page], pages_max: int, bytes_max: int) -> Iterator[Sequence[Page]]:
    """Split pages into portions of at most `pages_max` pages and about `bytes_max` bytes.

    The last page of a portion may exceed `bytes_max`.
    """
    start = size = 0
    for end, page in enumerate(pages):
        is_full = size >= bytes_max or end - start >= pages_max
        if end > start and is_full:
            yield pages[start:end]
            start, size = end, 0
        size += len(page.keys) + len(page.extra)
    if start < len(pages):
        yield pages[start:]


SMALL_BYTES = 1 << 20
"""Size in bytes up to which a write may use the reserve, such as one of the history, of an operator's entries, or a rollback."""
_MB = 1 << 20


def check_room(cause: str, where: str, advice: str, *, needs: int, free: int, reserve: int) -> None:
    """Raise StoreError (`cause`) if a write needs more bytes than are free above the reserve.

    Args:
        cause: cause of the error.
        where: store, for the message.
        advice: remedy, for the message.
        needs: size of the write in bytes.
        free: free bytes.
        reserve: bytes that must stay free, unless the write is small (SMALL_BYTES).
    """
    if needs <= SMALL_BYTES or needs <= free - reserve:
        return
    needs_text = f"{-(-needs // _MB):,} MB"
    free_text = (
        f"{free // _MB:,} MB are free, of which {reserve // _MB:,} MB are kept for the history, removals and rollback"
    )
    raise StoreError(cause, f"{where}: this needs about {needs_text}, and {free_text}; nothing was changed: {advice}")

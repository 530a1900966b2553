"""Last good copy of a node: a store on its own disk with the lists that were last in force.

The copy follows the lists in force. A node starts from it if the store is unreachable, and writes it back to a store that lost
its data. In both directions the content digest verifies the pages. If several nodes write back, only the first write succeeds,
because writes are conditional on the generation. Only a list in force is written back: an outdated copy would restore an older
list.

This module also has the pauses that the copy and the follower share, and the lower priority during work on large lists.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import Enum, auto

from eir.errors import GenerationConflict, Report, StoreChanged, StoreError
from eir.lists.follow.history import restore_history
from eir.lists.pages.pages import Page, amended_digest, digest_text
from eir.lists.record.clock import STORE_TIMEOUT_S
from eir.lists.record.dates import dates_name
from eir.lists.record.store import ACCEPTED, Event, ListState, ListStore, utc_text
from eir.lists.stores.write import one_batch


@dataclass(frozen=True, slots=True)
class Pauses:
    """Pauses and time limits of a follower in seconds; the defaults are those of a node."""

    wait_s: float = 1.0
    """Maximum time between two reads of the states, even without a notification of the store."""
    answer_s: float = STORE_TIMEOUT_S
    """Time limit for one answer of the store."""
    retry_s: float = 1.0
    """Pause before the store, or a copy, is tried again after an error."""
    unproved_s: float = 1.0
    """Pause before a list that could not be verified is read again; it doubles."""
    unproved_max_s: float = 60.0
    unreadable_s: float = 5.0
    """Pause before a damaged state is read again, because it may be long."""
    full_s: float = 60.0
    """Pause before a list is copied again after the disk was full, because each try writes until it fails."""


PAUSES = Pauses()


LARGE_ENTRIES = 100_000
"""Number of entries from which building a list takes so long that checks could be delayed."""

Heavy = Callable[[], AbstractContextManager[None]]
"""Function that returns a context manager, which is entered during such work."""


def while_large(heavy: Heavy, *states: ListState | None, often: bool = False) -> AbstractContextManager[None]:
    """Return the context manager for work on a list: `heavy()` if the list is large or changes often, else no effect.

    `states` are states of the list. For a small list, the context does nothing.
    """
    return (
        heavy()
        if often or any(state is not None and state.entries >= LARGE_ENTRIES for state in states)
        else nullcontext()
    )


class Relation(Enum):
    """Relation of a list's state in the store to the state in force on the node."""

    SAME = auto()
    NEWER = auto()
    LOST = auto()
    """The store has lost data, so its state is not followed."""


def relation(held: ListState | None, stored: ListState | None) -> Relation:
    """Return the relation of a list's state in the store to its state on the node: same, newer, or lost.

    The store has lost data if the generation is lower, or the same with another content. The same applies to a lower
    highest serial, because only an operator's reset lowers it, and resets are counted. A serial above all accepted ones
    is a new signed release: it is followed even if the store lost its generations. The held content is also followed if
    it was loaded again into such a store.
    """
    if stored is None:
        return Relation.SAME if held is None else Relation.LOST
    if held is None:
        return Relation.NEWER
    if stored.mark != held.mark:
        return Relation.NEWER if stored.mark > held.mark else Relation.LOST
    if stored.generation != held.generation:
        same = (stored.serial, stored.content_digest) == (held.serial, held.content_digest)
        return Relation.NEWER if same or stored.generation > held.generation else Relation.LOST
    return Relation.SAME if stored.content_digest == held.content_digest else Relation.LOST


@dataclass(frozen=True, slots=True)
class _CopyRequest:
    """Request to write a list that came into force to the last good copy."""

    state: ListState
    pages: Sequence[Page] | None
    """Pages that differ from the previous state; None if the list must be read whole."""
    due: float = 0.0
    """Earliest time of the write (time.monotonic)."""


@dataclass(frozen=True, slots=True)
class _HealRequest:
    """Request to write a list back to the store, because the store lost it."""

    held: ListState
    """State in force."""
    stored: ListState | None
    """State in the store."""


class CopyKeeper:
    """Writer of a node's last good copy, which processes one request after the other in `run`.

    Only the last request for each list counts.

    `failed` receives faults by cause and list. `who` names this node in the history.
    """

    def __init__(
        self,
        store: ListStore,
        copy: ListStore,
        report: Report,
        failed: Callable[[str, Exception, str], None],
        who: str,
        *,
        pauses: Pauses = PAUSES,
    ) -> None:
        self.store, self.copy = store, copy
        self.faults: dict[str, str] = {}
        """Lists whose copy could not be read, written or written back at the last try, with the reason."""
        self._fault_count = 0
        """Number of faults so far."""
        self._report, self._failed, self._who, self._pauses = report, failed, who, pauses
        self._requests: dict[str, _CopyRequest | _HealRequest] = {}
        self._has_requests = asyncio.Event()

    def request_copy(self, name: str, state: ListState, pages: Sequence[Page] | None) -> None:
        """Request that a list which came into force is written to the last good copy.

        `pages`: pages that changed; None if the whole list must be written.
        """
        if isinstance(self._requests.get(name), _CopyRequest):
            # Two pending changes are not merged; the whole list is read instead. This is rare.
            pages = None
        self._requests[name] = _CopyRequest(state, pages)
        self._has_requests.set()

    def request_heal(self, name: str, held: ListState, stored: ListState | None) -> None:
        """Request that a list's copy is written back to the store, if the copy equals the list in force (`held`)."""
        before = self._requests.get(name)
        # A pending copy with pages in memory is written first; one that must read the store is no longer possible.
        if not isinstance(before, _CopyRequest) or before.pages is None:
            self._requests[name] = _HealRequest(held, stored)
            self._has_requests.set()

    async def run(self, heavy: Heavy) -> None:
        """Process requests until the task is cancelled."""
        while True:
            await self._has_requests.wait()
            self._has_requests.clear()
            pause_s = math.inf
            for name, request in tuple(self._requests.items()):
                left_s = request.due - time.monotonic() if isinstance(request, _CopyRequest) else 0.0
                if left_s <= 0 and await self._try(name, request, heavy):
                    if self._requests.get(name) is request:
                        del self._requests[name]
                else:
                    pause_s = min(pause_s, left_s if left_s > 0 else self._pauses.retry_s)
            if pause_s < math.inf:
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await self._has_requests.wait()
                self._has_requests.set()

    def fail(self, name: str, cause: str, error: Exception) -> None:
        """Count and report a fault of a list's copy. The fault stays set until a request for this list succeeds."""
        self.faults[name] = str(error) or type(error).__name__
        self._fault_count += 1
        self._failed(cause, error, name)

    async def _try(self, name: str, request: _CopyRequest | _HealRequest, heavy: Heavy) -> bool:
        """Run `_process`; if it causes no new fault, clear the earlier fault of the list."""
        before = self._fault_count
        is_done = await self._process(name, request, heavy)
        if is_done and self._fault_count == before:
            self.faults.pop(name, None)
        return is_done

    async def _process(self, name: str, request: _CopyRequest | _HealRequest, heavy: Heavy) -> bool:
        """Process a request; return False if it must be retried.

        If the store still lacks data, the follower repeats its request.
        """
        keeps = isinstance(request, _CopyRequest)
        kind = "copy" if keeps else "heal"
        try:
            copied = await self.copy.state(name)
            if not self._is_called_for(name, request, copied):
                return True
            with while_large(heavy, copied, request.state if isinstance(request, _CopyRequest) else request.held):
                if isinstance(request, _CopyRequest):
                    await self._write_copy(name, request, copied)
                elif copied is not None:
                    await self._write_back(name, copied, request.stored)
        except StoreChanged:
            pass  # the follower will read the newer state and send a new request
        except GenerationConflict:
            return not keeps  # another node wrote first, perhaps an older state
        except StoreError as error:
            self.fail(name, f"{kind}_{error.cause}", error)
            if error.cause == "full" and isinstance(request, _CopyRequest) and self._requests.get(name) is request:
                self._requests[name] = replace(request, due=time.monotonic() + self._pauses.full_s)
            return not keeps
        except Exception as error:  # noqa: BLE001  # the outermost loop of this task: counts, logs and continues
            self.fail(name, "copy_internal", error)
            return False
        return True

    def _is_called_for(self, name: str, request: _CopyRequest | _HealRequest, copied: ListState | None) -> bool:
        if isinstance(request, _CopyRequest):
            return relation(copied, request.state) is Relation.NEWER
        held = request.held
        if copied is not None and (copied.serial, copied.content_digest) == (held.serial, held.content_digest):
            return relation(copied, request.stored) is Relation.LOST
        if relation(copied, held) is Relation.NEWER:
            behind = f"list {name}: this node's copy is older than what is in force and is not written back; load the release again"
            self.fail(name, "heal_behind", StoreError("behind", behind))
        return False

    async def _write_copy(self, name: str, request: _CopyRequest, copied: ListState | None) -> None:
        await _copy_dates(self.store, self.copy, name)
        seen, state = 0 if copied is None else copied.generation, request.state
        if request.pages is not None and copied is not None:
            _, before = await self.copy.some_pages(name, [page.number for page in request.pages])
            if amended_digest(copied.content_digest, before, request.pages) == state.content_digest:
                await self.copy.restore(name, state, one_batch(request.pages), seen=seen, whole=False)
                return
        await self.copy.restore(name, state, verified_pages(self.store, name, state), seen=seen)

    async def _write_back(self, name: str, copied: ListState, stored: ListState | None) -> None:
        async for _ in verified_pages(self.copy, name, copied):
            pass  # verified before the first write, so that a damaged copy cannot harm the store
        seen = 0 if stored is None else stored.generation
        # Above the store's generation, so that nodes which follow the store follow this state too.
        state = replace(copied, generation=copied.generation if copied.generation > seen else seen + 1)
        stored_text = "nothing" if stored is None else f"generation {stored.generation}, serial {stored.serial}"
        detail = f"generation {state.generation} from this node's copy; the store showed {stored_text}"
        healed = Event(
            time=utc_text(datetime.now(UTC)), who=self._who, what="heal", outcome=ACCEPTED, detail=detail,
            list=name, serial=state.serial, digest=state.release_digest,
        )  # fmt: skip
        await restore_history(
            self.store, self.copy, self._who
        )  # before the first record of a history that has lost all others
        await _copy_dates(self.copy, self.store, name)
        await self.store.restore(name, state, verified_pages(self.copy, name, copied), seen=seen, event=healed)
        self._report("store_healed", level="warning", list=name, detail=detail)


async def _copy_dates(source: ListStore, target: ListStore, of: str) -> None:
    """Copy the dates of a list (eir.lists.record.dates) if `target` has older ones: only the changed pages, if they are known."""
    name = dates_name(of)
    state, there = await source.state(name), await target.state(name)
    if state is None or relation(there, state) is not Relation.NEWER:
        return
    seen = 0 if there is None else there.generation
    changes = await source.changes(name, seen) if there is not None else None
    if there is not None and changes is not None and all(change.pages is not None for change in changes):
        numbers = sorted({number for change in changes for number in change.pages or ()})
        read, present = await source.some_pages(name, numbers)
        _, before = await target.some_pages(name, numbers)
        gone = set(numbers) - {page.number for page in present}
        pages = [*present, *(Page(number, b"") for number in gone)]
        if read is not None and amended_digest(there.content_digest, before, present) == read.content_digest:
            await target.restore(name, read, one_batch(pages), seen=seen, whole=False)
            return
    await target.restore(name, state, verified_pages(source, name, state), seen=seen)


async def verified_pages(source: ListStore, name: str, state: ListState) -> AsyncIterator[Sequence[Page]]:
    """Yield the pages of a list in this state, and verify their digest at the end.

    Raises:
        StoreChanged: if the list has another generation.
        StoreError: `digest`, at the end, if the digest differs.
    """
    total, exists = 0, False
    async for stored, batch in source.pages(name):
        exists = True
        if stored.generation != state.generation:
            raise StoreChanged(f"list {name} is at generation {stored.generation}, no longer at {state.generation}")
        total += sum(page.digest() for page in batch)
        yield batch
    if not exists:
        raise StoreChanged(f"list {name} is no longer in the store")
    if (computed := digest_text(total)) != state.content_digest:
        raise StoreError("digest", f"list {name}: pages have the digest {computed}, not {state.content_digest}")

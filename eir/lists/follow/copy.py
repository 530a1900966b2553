"""Last good copy of a node: a store on its own disk with the lists that were in force last.

The copy follows the lists in force. A node starts from the copy if the store is unreachable, and writes the copy back to a store
that lost its data. In both directions the content digest verifies the pages. If several nodes write back, only the first write
succeeds, because writes are conditional on the generation. The copy of a list is written back only if the same content is in force:
an outdated copy would restore an older list.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import Enum, auto

from eir.errors import GenerationConflict, Report, StoreChanged, StoreError
from eir.lists.follow.history import restore_history
from eir.lists.follow.pauses import PAUSES, Heavy, Pauses, while_large
from eir.lists.log.change import utc_text
from eir.lists.pages.pages import Page, amended_digest, digest_text
from eir.lists.record.dates import dates_name
from eir.lists.record.store import ACCEPTED, Event, ListState, ListStore
from eir.lists.stores.write import one_batch


class Relation(Enum):
    """Result of the comparison of a list in the store with the list in force on the node: same, newer, or data lost in the store."""

    SAME = auto()
    NEWER = auto()
    LOST = auto()
    """The store has lost data, so its state is not followed."""


def relation(held: ListState | None, stored: ListState | None) -> Relation:
    """Compare a list's state in the store (`stored`) with its state in force on the node (`held`).

    The store has lost data if its highest serial or its generation is lower, or if it has another content in the same
    generation. Only an operator's reset lowers the highest serial, and resets are counted. Two states are followed
    although the generation is lower: a higher serial, which is that of a new signed release, and the held content, which
    was loaded again into a store that lost its generations.
    """
    if stored is None:
        return Relation.SAME if held is None else Relation.LOST
    if held is None:
        return Relation.NEWER
    if stored.mark != held.mark:
        return Relation.NEWER if stored.mark > held.mark else Relation.LOST
    has_same_content = stored.content_digest == held.content_digest
    if stored.generation == held.generation:
        return Relation.SAME if has_same_content else Relation.LOST
    is_reloaded = has_same_content and stored.serial == held.serial
    return Relation.NEWER if is_reloaded or stored.generation > held.generation else Relation.LOST


@dataclass(frozen=True, slots=True)
class _CopyRequest:
    """Request to write the content of a list that has come into force to the node's last good copy."""

    state: ListState
    pages: Sequence[Page] | None
    """Pages that differ from the previous state; None if the list must be read whole."""
    due: float = 0.0
    """Earliest time of the write (time.monotonic)."""


@dataclass(frozen=True, slots=True)
class _HealRequest:
    """Request to write a list back to the store that has lost it."""

    held: ListState
    """State in force."""
    stored: ListState | None
    """State in the store."""


class CopyKeeper:
    """Task that writes a node's last good copy by requests, in order. A new request for a list replaces a waiting one for this list.

    Args:
        store: store that the node follows.
        copy: node's last good copy.
        report: logs events.
        failed: receives the cause, the error and the list of each fault.
        who: name of this node in the history.
        pauses: pauses before retries.
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
        self.store = store
        self.copy = copy
        self.faults: dict[str, str] = {}
        """Lists whose last request failed because the copy could not be read, written or written back, with the reason."""
        self._fault_count = 0
        """Number of faults so far."""
        self._report = report
        self._failed = failed
        self._who = who
        self._pauses = pauses
        self._requests: dict[str, _CopyRequest | _HealRequest] = {}
        self._has_requests = asyncio.Event()

    def request_copy(self, name: str, state: ListState, pages: Sequence[Page] | None) -> None:
        """Request that the new content of a list is written to the node's last good copy.

        `pages`: pages that changed; None if the whole list must be written.
        """
        if isinstance(self._requests.get(name), _CopyRequest):
            # Two pending changes are not merged; the whole list is read instead. This is rare.
            pages = None
        self._requests[name] = _CopyRequest(state, pages)
        self._has_requests.set()

    def request_heal(self, name: str, held: ListState, stored: ListState | None) -> None:
        """Queue a request to restore a list that the store has lost, from the last good copy. The copy must equal the list in force."""
        before = self._requests.get(name)
        if isinstance(before, _CopyRequest) and before.pages is not None:
            return  # this copy has its pages in memory and is written first; another one can no longer read the store
        self._requests[name] = _HealRequest(held, stored)
        self._has_requests.set()

    async def run(self, heavy: Heavy) -> None:
        """Process requests for the last good copy until the task is cancelled."""
        while True:
            await self._has_requests.wait()
            self._has_requests.clear()
            pause_s = math.inf
            for name, request in tuple(self._requests.items()):
                wait_s = request.due - time.monotonic() if isinstance(request, _CopyRequest) else 0.0
                if wait_s > 0:
                    pause_s = min(pause_s, wait_s)
                elif not await self._try(name, request, heavy):
                    pause_s = min(pause_s, self._pauses.retry_s)
                elif self._requests.get(name) is request:
                    del self._requests[name]
            if pause_s < math.inf:
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await self._has_requests.wait()
                self._has_requests.set()

    def fail(self, name: str, cause: str, error: Exception) -> None:
        """Count and report a fault of a list's last good copy. The fault is stored until a request for this list succeeds."""
        self.faults[name] = str(error) or type(error).__name__
        self._fault_count += 1
        self._failed(cause, error, name)

    async def _try(self, name: str, request: _CopyRequest | _HealRequest, heavy: Heavy) -> bool:
        """Process a request, and clear the list's earlier fault if this succeeds; return False if the request must be repeated."""
        before = self._fault_count
        is_done = await self._process(name, request, heavy)
        if is_done and self._fault_count == before:
            self.faults.pop(name, None)
        return is_done

    async def _process(self, name: str, request: _CopyRequest | _HealRequest, heavy: Heavy) -> bool:
        """Process a request; return False if the request must be repeated.

        If the store still lacks data, the follower repeats its request.
        """
        is_heal = isinstance(request, _HealRequest)
        try:
            copied = await self.copy.state(name)
            if not self._is_called_for(name, request, copied):
                return True
            if isinstance(request, _CopyRequest):
                with while_large(heavy, copied, request.state):
                    await self._write_copy(name, request, copied)
            elif copied is not None:
                with while_large(heavy, copied, request.held):
                    await self._write_back(name, copied, request.stored)
        except StoreChanged:
            return True  # the follower will read the newer state and send a new request
        except GenerationConflict:
            return is_heal  # another node wrote first, perhaps an older state
        except StoreError as error:
            kind = "heal" if is_heal else "copy"
            self.fail(name, f"{kind}_{error.cause}", error)
            is_pending = self._requests.get(name) is request
            if error.cause == "full" and isinstance(request, _CopyRequest) and is_pending:
                due = time.monotonic() + self._pauses.full_s
                self._requests[name] = replace(request, due=due)
            return is_heal
        except Exception as error:  # noqa: BLE001  # the outermost loop of this task: counts, logs and continues
            self.fail(name, "copy_internal", error)
            return False
        return True

    def _is_called_for(self, name: str, request: _CopyRequest | _HealRequest, copied: ListState | None) -> bool:
        """Return True if a request must still be processed.

        A copy is written if the state in the request is newer than the copy. A list is written back to the store if the copy
        equals the list in force and the store has lost data. If the copy is older than the list in force, a fault is reported.

        `copied`: state of the list in the node's last good copy; None if the copy lacks the list.
        """
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
        state = request.state
        seen = 0 if copied is None else copied.generation
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
        # The generation is above that of the store, so that nodes which follow the store follow this state too.
        state = replace(copied, generation=max(copied.generation, seen + 1))
        stored_text = "nothing" if stored is None else f"generation {stored.generation}, serial {stored.serial}"
        detail = f"generation {state.generation} from this node's copy; the store showed {stored_text}"
        healed = Event(
            time=utc_text(datetime.now(UTC)), who=self._who, what="heal", outcome=ACCEPTED, detail=detail,
            list=name, serial=state.serial, digest=state.release_digest,
        )  # fmt: skip
        # Restored first, so that a history that has lost all records does not begin with this event.
        await restore_history(self.store, self.copy, self._who)
        await _copy_dates(self.copy, self.store, name)
        await self.store.restore(name, state, verified_pages(self.copy, name, copied), seen=seen, event=healed)
        self._report("store_healed", level="warning", list=name, detail=detail)


async def _copy_dates(source: ListStore, target: ListStore, of: str) -> None:
    """Copy the dates of a list from `source` to `target` if the dates in `source` are newer. If possible, copy only changed pages."""
    name = dates_name(of)
    state = await source.state(name)
    held = await target.state(name)
    if state is None or relation(held, state) is not Relation.NEWER:
        return
    if held is not None and await _copy_changes(source, target, name, held):
        return
    seen = 0 if held is None else held.generation
    await target.restore(name, state, verified_pages(source, name, state), seen=seen)


async def _copy_changes(source: ListStore, target: ListStore, name: str, held: ListState) -> bool:
    """Copy the changed pages of a list from `source` to `target`; return False if the whole list must be copied.

    `held`: state of the list in `target`.
    """
    changes = await source.changes(name, held.generation)
    if changes is None or any(change.pages is None for change in changes):
        return False
    numbers = sorted({number for change in changes for number in change.pages or ()})
    state, present = await source.some_pages(name, numbers)
    _, before = await target.some_pages(name, numbers)
    if state is None or amended_digest(held.content_digest, before, present) != state.content_digest:
        return False
    removed = set(numbers) - {page.number for page in present}
    pages = [*present, *(Page(number, b"") for number in removed)]
    await target.restore(name, state, one_batch(pages), seen=held.generation, whole=False)
    return True


async def verified_pages(source: ListStore, name: str, state: ListState) -> AsyncIterator[Sequence[Page]]:
    """Yield all pages of a list in a store, then verify that they have the content digest of `state`.

    Raises:
        StoreChanged: if the list has another generation.
        StoreError: `digest`, at the end, if the digest differs.
    """
    total = 0
    exists = False
    async for stored, batch in source.pages(name):
        exists = True
        if stored.generation != state.generation:
            raise StoreChanged(f"list {name} is at generation {stored.generation}, no longer at {state.generation}")
        total += sum(page.digest() for page in batch)
        yield batch
    if not exists:
        raise StoreChanged(f"list {name} is no longer in the store")
    computed = digest_text(total)
    if computed != state.content_digest:
        raise StoreError("digest", f"list {name}: pages have the digest {computed}, not {state.content_digest}")

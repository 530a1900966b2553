"""A node's last good copy of the lists: a store on its own disk.

It is kept level with what is in force, serves a start without the store, and is written back to a store that lost its data.
Both ways the pages are proved by the content digest as they pass. Of several nodes that write back, the second finds the work
done: the store's writes are conditional on the generation. Only what is in force is written back: a copy that was not yet level
when the store lost its data would bring an older list to life.

Here is also what the copy and the follower share: the times by which they wait and try again, and how they stand back while work on
a large list keeps a processor busy.
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
from eir.lists.follow.history import give_back
from eir.lists.pages.pages import Page, amended_digest, digest_text
from eir.lists.record.clock import STORE_TIMEOUT_S
from eir.lists.record.store import ACCEPTED, Event, ListState, ListStore, utc_text
from eir.lists.stores.write import one_batch


@dataclass(frozen=True, slots=True)
class Pauses:
    """Seconds; the defaults are a node's."""

    wait_s: float = 1.0
    """The states are read at least this often, whatever the store tells by itself."""
    answer_s: float = STORE_TIMEOUT_S
    """One answer of the store may take so long."""
    retry_s: float = 1.0
    """Before the store, or a copy, is tried again after a fault."""
    unproved_s: float = 1.0
    """Before a list that could not be taken over is read again; it doubles."""
    unproved_max_s: float = 60.0
    unreadable_s: float = 5.0
    """Before a state that is damaged is read again: it may be long."""
    full_s: float = 60.0
    """Before a list for which the disk had no room is copied again: each try writes until it finds that."""


PAUSES = Pauses()


LARGE_ENTRIES = 100_000
"""A list with as many takes long enough to be made that checks could wait for it."""

Heavy = Callable[[], AbstractContextManager[None]]
"""Is entered for the time of such work."""


def while_large(heavy: Heavy, *states: ListState | None, often: bool = False) -> AbstractContextManager[None]:
    """The context for work on these states of a list.

    `often`: this is one of many changes, which together are as much work.
    """
    return (
        heavy()
        if often or any(state is not None and state.entries >= LARGE_ENTRIES for state in states)
        else nullcontext()
    )


class Relation(Enum):
    """The relation of the state that a store shows to the one that is held."""

    SAME = auto()
    NEWER = auto()
    LOST = auto()
    """The store has less than it had: not followed."""


def relation(held: ListState | None, stored: ListState | None) -> Relation:
    """Compare two states of a list.

    A generation that goes down, or stays while the content differs, means that the store lost what was written; so does
    a lower highest serial, which never goes down but by an operator's reset, and those are counted. A serial above all that were
    ever accepted is a signed release that is new to everyone: it is followed even from a store that lost its generations. So is
    what is held already, when it was loaded once more into such a store.
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
class _Keep:
    """A list that came into force, to be written to the copy."""

    state: ListState
    pages: Sequence[Page] | None
    """Pages that differ from the state before; None if the list must be read whole."""
    due: float = 0.0
    """Before then it is not tried (time.monotonic)."""


@dataclass(frozen=True, slots=True)
class _Heal:
    """A list that the store lost."""

    held: ListState
    """The state in force."""
    stored: ListState | None
    """The state that the store shows instead."""


class CopyKeeper:
    """Does what is asked of it one thing after another, in `run`; of several requests for a list only the last counts.

    `failed` is told of faults by cause and list. `who` marks this node in the history.
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
        """Lists whose copy could not be read, written or written back when that was last tried, and why."""
        self._told = 0
        """Faults so far."""
        self._report, self._failed, self._who, self._pauses = report, failed, who, pauses
        self._wanted: dict[str, _Keep | _Heal] = {}
        self._something = asyncio.Event()

    def keep(self, name: str, state: ListState, pages: Sequence[Page] | None) -> None:
        """Ask for a list that came into force to be copied; `pages` if only these changed."""
        if isinstance(self._wanted.get(name), _Keep):
            # Two changes in one are not merged, the whole list is read: this is rare, and the copy must be right.
            pages = None
        self._wanted[name] = _Keep(state, pages)
        self._something.set()

    def heal(self, name: str, held: ListState, stored: ListState | None) -> None:
        """Ask for the copy of a list to be written back to the store, if it is what is in force (`held`)."""
        before = self._wanted.get(name)
        # What was to be copied from the store is no longer there; pages that are at hand go to the copy first.
        if not isinstance(before, _Keep) or before.pages is None:
            self._wanted[name] = _Heal(held, stored)
            self._something.set()

    async def run(self, heavy: Heavy) -> None:
        """Work until cancelled."""
        while True:
            await self._something.wait()
            self._something.clear()
            pause_s = math.inf
            for name, wanted in tuple(self._wanted.items()):
                left_s = wanted.due - time.monotonic() if isinstance(wanted, _Keep) else 0.0
                if left_s <= 0 and await self._tried(name, wanted, heavy):
                    if self._wanted.get(name) is wanted:
                        del self._wanted[name]
                else:
                    pause_s = min(pause_s, left_s if left_s > 0 else self._pauses.retry_s)
            if pause_s < math.inf:
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await self._something.wait()
                self._something.set()

    def fail(self, name: str, cause: str, error: Exception) -> None:
        """Count and tell a fault of a list's copy, which lasts until something is done about that copy again."""
        self.faults[name] = str(error) or type(error).__name__
        self._told += 1
        self._failed(cause, error, name)

    async def _tried(self, name: str, wanted: _Keep | _Heal, heavy: Heavy) -> bool:
        """As _is_done; an earlier fault is over once it was done without another one."""
        before = self._told
        is_done = await self._is_done(name, wanted, heavy)
        if is_done and self._told == before:
            self.faults.pop(name, None)
        return is_done

    async def _is_done(self, name: str, wanted: _Keep | _Heal, heavy: Heavy) -> bool:
        """Do it; False if it should be tried again. The follower asks again for a list that the store still shows less of."""
        keeps = isinstance(wanted, _Keep)
        what = "copy" if keeps else "heal"
        try:
            copied = await self.copy.state(name)
            if not self._is_called_for(name, wanted, copied):
                return True
            with while_large(heavy, copied, wanted.state if isinstance(wanted, _Keep) else wanted.held):
                if isinstance(wanted, _Keep):
                    await self._write_copy(name, wanted, copied)
                elif copied is not None:
                    await self._write_back(name, copied, wanted.stored)
        except StoreChanged:
            pass  # the store went on, and so will the follower
        except GenerationConflict:
            return not keeps  # another node was faster, perhaps with an older state
        except StoreError as error:
            self.fail(name, f"{what}_{error.cause}", error)
            if error.cause == "full" and isinstance(wanted, _Keep) and self._wanted.get(name) is wanted:
                self._wanted[name] = replace(wanted, due=time.monotonic() + self._pauses.full_s)
            return not keeps
        except Exception as error:  # noqa: BLE001  # the outermost loop of this task: it counts, says so, and goes on
            self.fail(name, "copy_internal", error)
            return False
        return True

    def _is_called_for(self, name: str, wanted: _Keep | _Heal, copied: ListState | None) -> bool:
        if isinstance(wanted, _Keep):
            return relation(copied, wanted.state) is Relation.NEWER
        held = wanted.held
        if copied is not None and (copied.serial, copied.content_digest) == (held.serial, held.content_digest):
            return relation(copied, wanted.stored) is Relation.LOST
        if relation(copied, held) is Relation.NEWER:
            behind = f"list {name}: this node's copy is older than what is in force and is not written back; load the release again"
            self.fail(name, "heal_behind", StoreError("behind", behind))
        return False

    async def _write_copy(self, name: str, wanted: _Keep, copied: ListState | None) -> None:
        seen, state = 0 if copied is None else copied.generation, wanted.state
        if wanted.pages is not None and copied is not None:
            _, before = await self.copy.some_pages(name, [page.number for page in wanted.pages])
            if amended_digest(copied.content_digest, before, wanted.pages) == state.content_digest:
                await self.copy.restore(name, state, one_batch(wanted.pages), seen=seen, whole=False)
                return
        await self.copy.restore(name, state, _proved(self.store, name, state), seen=seen)

    async def _write_back(self, name: str, copied: ListState, stored: ListState | None) -> None:
        async for _ in _proved(self.copy, name, copied):
            pass  # proved before the store is touched, so that a damaged copy costs the store nothing
        seen = 0 if stored is None else stored.generation
        # Above what the store shows, so that those who followed that follow this too.
        state = replace(copied, generation=copied.generation if copied.generation > seen else seen + 1)
        shown = "nothing" if stored is None else f"generation {stored.generation}, serial {stored.serial}"
        detail = f"generation {state.generation} from this node's copy; the store showed {shown}"
        healed = Event(
            time=utc_text(datetime.now(UTC)), who=self._who, what="heal", outcome=ACCEPTED, detail=detail,
            list=name, serial=state.serial, digest=state.release_digest,
        )  # fmt: skip
        await give_back(
            self.store, self.copy, self._who
        )  # before the first record of a history that has lost all others
        await self.store.restore(name, state, _proved(self.copy, name, copied), seen=seen, event=healed)
        self._report("store_healed", level="warning", list=name, detail=detail)


async def _proved(source: ListStore, name: str, state: ListState) -> AsyncIterator[Sequence[Page]]:
    """The pages of a list in this state; raises before the end if it is in another, or its digest is not that."""
    total, there = 0, False
    async for found, batch in source.pages(name):
        there = True
        if found.generation != state.generation:
            raise StoreChanged(f"list {name} is at generation {found.generation}, no longer at {state.generation}")
        total += sum(page.digest() for page in batch)
        yield batch
    if not there:
        raise StoreChanged(f"list {name} is not there any more")
    if (found_digest := digest_text(total)) != state.content_digest:
        raise StoreError("digest", f"list {name}: pages have the digest {found_digest}, not {state.content_digest}")

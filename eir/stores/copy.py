"""A node's last good copy of the lists: a store on its own disk. Imports eir.lists; knows no particular store.

It is kept level with what is in force, serves a start without the store, and is written back to a store that lost its data.
Both ways the pages are proved by the content digest as they pass, and whoever is second of several workers or nodes finds
the work done: the copy's writes and the store's are conditional on the generation.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import Enum, auto

from eir.errors import GenerationConflict, StoreChanged, StoreError
from eir.lists.pages import Page, amended_digest, digest_text
from eir.lists.store import ACCEPTED, Event, ListState, ListStore
from eir.stores.report import Report

CLAIM_S = 60.0
"""How long one worker of a host has the sole right to write a list's copy, or to heal; longer than either takes."""
RETRY_S = 1.0


class Relation(Enum):
    """How what a store shows stands to what is held."""

    SAME = auto()
    NEWER = auto()
    LOST = auto()
    """The store has less than it had: not followed."""


def relation(held: ListState | None, stored: ListState | None) -> Relation:
    """Compare two states of a list.

    A generation that goes down, or stays while the content differs, means that the store lost what was written; so does
    a lower highest serial, which never goes down by itself. A serial above all that were ever accepted is a signed
    release that is new to everyone: it is followed even from a store that lost its generations. So is what is held already,
    when it was loaded anew into such a store.
    """
    if stored is None:
        return Relation.SAME if held is None else Relation.LOST
    if held is None:
        return Relation.NEWER
    if stored.highest_serial != held.highest_serial:
        return Relation.NEWER if stored.highest_serial > held.highest_serial else Relation.LOST
    if stored.generation != held.generation:
        same = (stored.serial, stored.content_digest) == (held.serial, held.content_digest)
        return Relation.NEWER if same or stored.generation > held.generation else Relation.LOST
    return Relation.SAME if stored.content_digest == held.content_digest else Relation.LOST


@dataclass(frozen=True, slots=True)
class _Keep:
    """A list that came into force, to be written to the copy."""

    state: ListState
    pages: Sequence[Page] | None
    """Those that differ from the state before; None if the list must be read whole."""


@dataclass(frozen=True, slots=True)
class _Heal:
    """A list that the store lost, and what it shows instead."""

    stored: ListState | None


class CopyKeeper:
    """Does what is asked of it one thing after another, in `run`; of several requests for a list only the last counts.

    `failed` is told of faults by cause. `who` marks this worker in claims and in the history.
    """

    def __init__(
        self, store: ListStore, copy: ListStore, *, report: Report, failed: Callable[[str, Exception], None], who: str
    ) -> None:
        self.store = store
        self.copy = copy
        self._report = report
        self._failed = failed
        self._who = who
        self._wanted: dict[str, _Keep | _Heal] = {}
        self._something = asyncio.Event()

    @property
    def idle(self) -> bool:
        """Nothing is left to do."""
        return not self._wanted

    def keep(self, name: str, state: ListState, pages: Sequence[Page] | None) -> None:
        """Ask for a list that came into force to be copied; `pages` if only these changed."""
        before = self._wanted.get(name)
        if isinstance(before, _Keep):
            # Two changes in one are read anew rather than merged: this is rare, and the copy is to be right.
            pages = None
        self._wanted[name] = _Keep(state, pages)
        self._something.set()

    def heal(self, name: str, stored: ListState | None) -> None:
        """Ask for the copy of a list to be written back to the store."""
        if not isinstance(self._wanted.get(name), _Keep):
            self._wanted[name] = _Heal(stored)
            self._something.set()

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            await self._something.wait()
            self._something.clear()
            again = False
            for name, wanted in tuple(self._wanted.items()):
                done = await (self._keep(name, wanted) if isinstance(wanted, _Keep) else self._heal(name, wanted))
                if self._wanted.get(name) is wanted:
                    if done:
                        del self._wanted[name]
                    else:
                        again = True
            if again:
                await asyncio.sleep(RETRY_S)
                self._something.set()

    async def _keep(self, name: str, wanted: _Keep) -> bool:
        """Copy a list; False if it should be tried again."""
        try:
            copied = await self.copy.state(name)
            if relation(copied, wanted.state) is not Relation.NEWER:
                return True
            if not await self.copy.claim(f"copy {name}", self._who, CLAIM_S):
                return False
            try:
                await self._write_copy(name, wanted, copied)
            finally:
                await self.copy.claim(f"copy {name}", self._who, 0)
        except GenerationConflict:
            return False  # another worker was faster, perhaps with an older state
        except StoreChanged:
            return True  # the store went on, and so will the follower
        except StoreError as error:
            self._failed(f"copy_{error.cause}", error)
            return False
        return True

    async def _write_copy(self, name: str, wanted: _Keep, copied: ListState | None) -> None:
        seen, state = 0 if copied is None else copied.generation, wanted.state
        if wanted.pages is not None and copied is not None:
            _, before = await self.copy.some_pages(name, [page.number for page in wanted.pages])
            if amended_digest(copied.content_digest, before, wanted.pages) == state.content_digest:
                await self.copy.restore(name, state, _one_batch(wanted.pages), seen=seen, whole=False)
                return
        await self.copy.restore(name, state, _proved(self.store, name, state), seen=seen)

    async def _heal(self, name: str, wanted: _Heal) -> bool:
        stored = wanted.stored
        try:
            copied = await self.copy.state(name)
            if copied is None or relation(copied, stored) is not Relation.LOST:
                return True
            if not await self.copy.claim(f"heal {name}", self._who, CLAIM_S):
                return True  # another worker of this host is at it
            try:
                await self._write_back(name, copied, stored)
            finally:
                await self.copy.claim(f"heal {name}", self._who, 0)
        except (GenerationConflict, StoreChanged):
            return True  # another node was faster; the follower looks again
        except StoreError as error:
            self._failed(f"heal_{error.cause}", error)
        return True  # if the store still shows less, the follower asks again

    async def _write_back(self, name: str, copied: ListState, stored: ListState | None) -> None:
        async for _ in _proved(self.copy, name, copied):
            pass  # proved before the store is touched, so that a damaged copy costs the store nothing
        seen = 0 if stored is None else stored.generation
        # Above what the store shows, so that those who followed that follow this too.
        state = replace(copied, generation=copied.generation if copied.generation > seen else seen + 1)
        await self.store.restore(name, state, _proved(self.copy, name, copied), seen=seen)
        detail = f"generation {state.generation} from this node's copy; the store showed " + (
            "nothing" if stored is None else f"generation {stored.generation}, serial {stored.serial}"
        )
        self._report("store_healed", level="warning", list=name, detail=detail)
        await self.store.record(
            Event(
                time=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                who=self._who,
                what="heal",
                list=name,
                serial=state.serial,
                digest=state.release_digest,
                outcome=ACCEPTED,
                detail=detail,
            )
        )


async def _one_batch(pages: Sequence[Page]) -> AsyncIterator[Sequence[Page]]:
    yield pages


async def _proved(source: ListStore, name: str, state: ListState) -> AsyncIterator[Sequence[Page]]:
    """The pages of a list in this state; raises before the end if it is in another, or its digest is not that."""
    total = 0
    async for found, batch in source.pages(name):
        if found.generation != state.generation:
            raise StoreChanged(f"list {name} is at generation {found.generation}, no longer at {state.generation}")
        total += sum(page.digest() for page in batch)
        yield batch
    if (found_digest := digest_text(total)) != state.content_digest:
        raise StoreError("digest", f"list {name}: pages have the digest {found_digest}, not {state.content_digest}")

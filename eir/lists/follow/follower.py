"""Follower: builds images (contents of lists in memory) from the changes in a store. It answers no checks.

Each list is verified before a switch: its generation by the state that was read with it, its pages by the content digest. If
the verification fails, or the store is unreachable or has lost data, the list in force stays.
"""

import asyncio
import math
import time
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager, nullcontext, suppress
from functools import partial

from eir.errors import Report, StoreChanged, StoreError
from eir.lists.follow.copy import CopyKeeper, Relation, relation
from eir.lists.follow.pauses import (
    FED,
    OFTEN,
    OFTEN_S,
    PAUSES,
    REST_FED_S,
    REST_MAX_S,
    REST_TIMES,
    Heavy,
    Pauses,
    while_large,
)
from eir.lists.images.chunks import Chunk
from eir.lists.images.image import Image
from eir.lists.images.imaging import build_image, chunks_of, image_with
from eir.lists.images.index import DeviceList, Index
from eir.lists.pages.content import as_corrupt
from eir.lists.pages.pages import Page, digest_text
from eir.lists.record.clock import STOOD_STILL, await_store
from eir.lists.record.store import NO_LIST, ListState, ListStore

PROOF_MASK = (1 << 64) - 1


class Proof:
    """Digests of a list's pages in memory, 64 bits each, by which the list is verified after its next change.

    A sum modulo 2^256 is also a sum modulo 2^64. So 64 bits of each page's digest suffice to verify an amended list
    against its content digest, although the previous pages are no longer in memory.
    """

    __slots__ = ("_amended", "_marks", "_numbers")

    def __init__(self) -> None:
        self._numbers = array("Q")
        self._marks = array("Q")
        self._amended: dict[int, int] = {}

    def extend(self, pages: Sequence[Page], marks: Sequence[int]) -> None:
        """Append the digests of further pages, while a whole list is read page by page."""
        self._numbers.extend([page.number for page in pages])
        self._marks.extend(marks)

    def __getitem__(self, number: int) -> int:
        if (mark := self._amended.get(number)) is not None:
            return mark
        at = bisect_left(self._numbers, number)
        return self._marks[at] if at < len(self._numbers) and self._numbers[at] == number else 0

    def amend(self, pages: Sequence[Page]) -> None:
        """Replace the digests of pages that a change of the list has replaced."""
        self._amended.update((page.number, page.digest() & PROOF_MASK) for page in pages)


READ_AGAIN_MAX = 5
"""Maximum number of reads of a list that changes while it is read."""
UNPROVED = frozenset({"digest", "corrupt", "image"})
"""Causes of faults that concern one list, not the store: damaged pages, or no memory for an image."""
KIND = "kind"
"""Cause of a fault: the list is of another kind than configured."""
SOME_PAGES = 500
"""Maximum number of changed pages that are read together."""
AMENDED_PAGES_MAX = 20_000
"""Maximum number of changed pages that are applied; if more pages changed, the whole list is read."""
REPORT_AGAIN_S = 60.0
"""Minimum time (s) between two equal events about a list."""


class Follower:
    """Follower of a store: updates the lists in memory (index) after each change in the store.

    Lists that are already in the index are in force.

    Args:
        store: store to follow.
        index: index to fill.
        report: logs events.
        on_switch: receives each list that came into force, its image, and the previous image if it is another one.
        copy: this node's last good copy (eir.lists.follow.copy) of a remote store.
        heal: write the copy back to a store that lost its data.
        who: name of this node in the history.
        pauses: pauses between reads and retries.
    """

    def __init__(
        self, store: ListStore, index: Index, *, report: Report, on_switch: Callable[[str, ListState, Image, Image | None], None],
        copy: ListStore | None = None, heal: bool = True, who: str = "eir", pauses: Pauses = PAUSES,
    ) -> None:  # fmt: skip
        self.up = False
        """True if the last read of the store succeeded."""
        self.errors: Counter[str] = Counter()
        """Number of failures by cause; `lost_data`: the store has lost data of a list."""
        self.lost: dict[str, str] = {}
        """Lists in force that the store has lost, with the store's state as text."""
        self.from_copy: set[str] = set()
        """Lists in force that came from the last good copy and that the store has not confirmed yet."""
        self._store = store
        self._index = index
        self._report = report
        self._on_switch = on_switch
        self._keeper = None if copy is None else CopyKeeper(store, copy, report, self._copy_failed, who, pauses=pauses)
        self._pauses = pauses
        self._heals = heal
        self._heavy: Heavy = nullcontext
        self._others = asyncio.Event()
        """Event that is set if the lists of the index have changed since the last pass."""
        self._proofs: dict[str, Proof] = {}
        self._seen: dict[str, int] = {}
        self._unreadable: dict[str, float] = {}
        """Time (time.monotonic) of the next read of each list whose state in the store is damaged."""
        self._unproved: dict[str, tuple[float, float]] = {}
        self._reported_at: dict[tuple[str, str], float] = {}
        self._lately: dict[str, tuple[int, float]] = {}
        """Number of changes of each list in a row within OFTEN_S of each other, and time (time.monotonic) of the last change."""
        self._rest_s = 0.0
        """Pause in seconds after the pass in progress."""
        self.in_step_at = time.monotonic()
        """Last time (time.monotonic) at which the lists in force were verified to be those in the store; normally at most `wait_s` ago."""

    @property
    def copy_faults(self) -> Mapping[str, str]:
        """Reason of the fault for each list whose last good copy could not be read, written, or restored to the store."""
        if self._keeper is None:
            return {}
        return {name: reason for name, reason in self._keeper.faults.items() if name in self._index.lists}

    def wake(self) -> None:
        """Read the store at once, because a new configuration has changed the lists."""
        self._others.set()

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of the configured lists that are not in memory yet."""
        return tuple(name for name, entries in self._index.lists.items() if entries.state is None)

    async def start(self) -> None:
        """Load all lists from the store or from the node's last good copy, before the node answers checks.

        If the store is unreachable or a list cannot be verified, nothing is raised: see `up`, `errors`, `missing`,
        `from_copy`.
        """
        stored: Mapping[str, ListState] | None = None
        with self._catching_faults(self._failed):  # a node must start even without its store
            stored = await self._states()
        if self._keeper is not None:
            await self._start_from_copy(self._keeper, stored)
        if stored is not None:
            with self._catching_faults(self._failed):
                await self._pass(stored)
        # The copy may lack a list in force: the previous follower ended, or the disk was full.
        for name, entries in self._index.lists.items():
            self._request_copy(name, entries.state, None)

    async def _start_from_copy(self, keeper: CopyKeeper, stored: Mapping[str, ListState] | None) -> None:
        """Load each list from the node's last good copy, unless the store has a newer version.

        The copy is on the local disk and was last in force.
        """
        for name, entries in tuple(self._index.lists.items()):
            with self._catching_faults(partial(keeper.fail, name), name, of="copy_"):
                copied = await keeper.copy.state(name)
                if copied is None or (stored is not None and relation(copied, stored.get(name)) is Relation.NEWER):
                    continue
                if self._is_of_other_kind(name, entries, copied):
                    continue
                if relation(entries.state, copied) is Relation.NEWER:
                    await self._load_whole(keeper.copy, name, entries)
                self.from_copy.add(name)

    async def run(self, heavy: Heavy = nullcontext) -> None:
        """Follow the store until the task is cancelled."""
        self._heavy = heavy
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_store())
            if self._keeper is not None:
                tasks.create_task(self._keeper.run(heavy))

    async def _follow_store(self) -> None:
        while True:
            pause_s = self._pauses.retry_s
            with self._catching_faults(self._failed):
                self._rest_s = 0.0
                self._others.clear()
                await self._pass(await self._states())
                await asyncio.sleep(self._rest_s)
                await self._wait()
                pause_s = 0.0
            await asyncio.sleep(pause_s)

    async def _wait(self) -> None:
        """Wait until a list in the store may have changed, or until a new configuration has changed the lists.

        Raises:
            StoreError: if the store fails.
        """
        wait_s = self._pauses.wait_s
        store = await_store(self._store.wait(self._seen, wait_s), self._pauses.answer_s + wait_s)
        tasks = [asyncio.create_task(store), asyncio.create_task(self._others.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if tasks[0].done():
                tasks[0].result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # One pass

    async def _states(self) -> Mapping[str, ListState]:
        """Read the states of all lists in the store, without damaged states, which must not affect other lists.

        Raises:
            StoreError: if the store fails, or no state can be read.
        """
        began = time.monotonic()
        lists = self._index.lists
        self._unreadable = {name: due for name, due in self._unreadable.items() if name in lists and due > began}
        names = [name for name in lists if name not in self._unreadable]
        results = await asyncio.gather(*map(self._state, names), return_exceptions=True)
        states: dict[str, ListState] = {}
        for name, state in zip(names, results, strict=True):
            if isinstance(state, StoreError) and state.cause == "corrupt":
                self._unreadable[name] = began + self._pauses.unreadable_s
                self._failed("corrupt", state, name)
            elif isinstance(state, BaseException):
                raise state
            elif state is not None:
                states[name] = state
        if lists and len(self._unreadable) == len(lists):
            raise StoreError("corrupt", "no list's state in the store can be read")
        return states

    async def _state(self, name: str) -> ListState | None:
        return await await_store(self._store.state(name), self._pauses.answer_s)

    async def _pass(self, states: Mapping[str, ListState]) -> None:
        if not self.up and self.errors:
            self._report("store_back")
        self.up = True
        readable = [name for name in self._index.lists if name not in self._unreadable]
        self._seen = {name: states[name].generation if name in states else 0 for name in readable}
        in_step = not self._unreadable
        for name in readable:
            in_step &= await self._follow(name, states.get(name))
        self._proofs = {name: proof for name, proof in self._proofs.items() if name in self._index.lists}
        self._lately = {name: lately for name, lately in self._lately.items() if name in self._index.lists}
        if in_step:
            self.in_step_at = time.monotonic()

    async def _follow(self, name: str, stored: ListState | None) -> bool:
        """Update one list from the store; return True if memory then equals the store."""
        entries = self._index.lists.get(name)
        if entries is None:  # the configuration was changed meanwhile
            return True
        held = entries.state
        match relation(held, stored):
            case Relation.SAME:
                self.from_copy.discard(name)
                if self.lost.pop(name, None) is not None:
                    self._reported_at.pop(("store_lost_data", name), None)
                    self._report("store_mended", list=name)
                    self._request_copy(name, held, None)  # a pending copy may have been lost with the store's data
                return True
            case Relation.LOST if held is not None:
                self._lost(name, held, stored)
                if self._keeper is not None and self._heals:
                    self._keeper.request_heal(name, held, stored)
                return False
        return await self._follow_newer(name, entries, stored)

    async def _follow_newer(self, name: str, entries: DeviceList, stored: ListState | None) -> bool:
        """Put a newer state of a list in force. Return False if this fails, or if the pause after an earlier failure has not passed."""
        not_before, pause_s = self._unproved.get(name, (0.0, self._pauses.unproved_s))
        if time.monotonic() < not_before or self._is_of_other_kind(name, entries, stored):
            return False
        began = time.monotonic()
        in_a_row, last = self._lately.get(name, (0, began))
        in_a_row = in_a_row + 1 if began - last < OFTEN_S else 1
        try:
            with while_large(self._heavy, entries.state, stored, often=in_a_row > OFTEN):
                await self._update(name, entries, stored)
        except StoreError as error:
            if error.cause not in UNPROVED:
                raise
            not_before = time.monotonic() + pause_s
            self._unproved[name] = not_before, min(2 * pause_s, self._pauses.unproved_max_s)
            self._failed(error.cause, error, name)
            return False
        now = time.monotonic()
        self._lately[name] = in_a_row, now
        if in_a_row > FED:
            self._rest_s = REST_FED_S
        else:
            self._rest_s = min(REST_MAX_S, self._rest_s + REST_TIMES * (now - began))
        self._unproved.pop(name, None)
        self.lost.pop(name, None)
        self.from_copy.discard(name)
        return True

    def _is_of_other_kind(self, name: str, entries: DeviceList, state: ListState | None) -> bool:
        """Return True if a list's kind in the store (such as devices or pairs) differs from the configured kind, and report this."""
        if state is None or state.kind == entries.kind:
            return False
        kinds = f"{name} is a list of {state.kind} in the store, and of {entries.kind} in the configuration"
        advice = f"load a full release of {entries.kind}, or correct the configuration"
        self._failed(KIND, StoreError(KIND, f"{kinds}: {advice}"), name)
        return True

    async def _update(self, name: str, entries: DeviceList, stored: ListState | None) -> None:
        held = entries.state
        if held and stored and entries.image and held.content_digest == stored.content_digest:
            if self._switch(name, entries, stored, entries.image):
                self._request_copy(name, stored, ())
            return
        for _ in range(READ_AGAIN_MAX):
            with suppress(StoreChanged):
                if held and stored and await self._apply_changes(name, entries, held, stored):
                    return
                await self._load_whole(self._store, name, entries)
                return
        raise StoreChanged(f"list {name} changed {READ_AGAIN_MAX} times while it was read")

    async def _load_whole(self, source: ListStore, name: str, entries: DeviceList) -> None:
        """Read a whole list from a store, verify it, and put it in force. If the store lacks the list, nothing changes."""
        read: ListState | None = None
        proof = Proof()
        total = 0
        chunks = list[Chunk]()
        async with aclosing(batches(source, name, self._pauses.answer_s)) as reading:
            async for read, batch in reading:  # noqa: B007  # the last state is that of the whole list
                digests = [page.digest() for page in batch]
                total += sum(digests)
                proof.extend(batch, [digest & PROOF_MASK for digest in digests])
                if batch:
                    with as_corrupt(f"a page from {batch[0].number} to {batch[-1].number} is damaged"):
                        chunks += chunks_of(batch)
        if read is None:
            return
        computed = digest_text(total)
        if computed != read.content_digest:
            raise StoreError("digest", f"list {name}: pages have the digest {computed}, not {read.content_digest}")
        image = await _build_in_thread(name, partial(build_image, chunks))
        if self._switch(name, entries, read, image):
            self._proofs[name] = proof
            if source is self._store:
                self._request_copy(name, read, None)

    async def _apply_changes(self, name: str, entries: DeviceList, held: ListState, stored: ListState) -> bool:
        """Apply the changed pages of a list in memory; return False if the whole list must be read."""
        proof = self._proofs.get(name)
        image = entries.image
        if proof is None or image is None or stored.generation < held.generation:
            return False
        try:
            steps = await await_store(self._store.changes(name, held.generation), self._pauses.answer_s) or ()
        except StoreError as error:
            if error.cause != "corrupt":
                raise
            self._failed("corrupt", error, name)
            return False
        numbers = sorted({number for step in steps for number in step.pages or ()})
        are_known = all(step.pages is not None for step in steps)
        if not are_known or not 0 < len(numbers) <= AMENDED_PAGES_MAX:
            return False
        state, pages = await read_some_pages(self._store, name, numbers, steps[-1].after, self._pauses.answer_s)
        removed = sum(proof[page.number] for page in pages)
        added = sum(page.digest() for page in pages)
        expected = int(held.content_digest, 16) - removed + added
        if (expected - int(state.content_digest, 16)) & PROOF_MASK:
            fault = "the touched pages do not make up the new digest: the whole list is read again"
            self._failed("digest", StoreError("digest", fault), name)
            return False
        new_image = await _build_in_thread(name, partial(image_with, image, pages))
        if self._switch(name, entries, state, new_image):
            proof.amend(pages)
            self._request_copy(name, state, pages)
        return True

    def _switch(self, name: str, entries: DeviceList, state: ListState, image: Image) -> bool:
        """Put a new image (content of a list in memory) in force; return False if the configuration no longer has the list."""
        if self._index.lists.get(name) is not entries:
            return False
        previous = self._index.switch(name, state, image)
        self._on_switch(name, state, image, previous)
        return True

    def _request_copy(self, name: str, state: ListState | None, pages: Sequence[Page] | None) -> None:
        if self._keeper is not None and state is not None:
            self._keeper.request_copy(name, state, pages)

    # Faults

    @contextmanager
    def _catching_faults(
        self, failed: Callable[[str, Exception], None], name: str | None = None, *, of: str = ""
    ) -> Iterator[None]:
        """Catch an exception of the `with` block, and pass its cause and the exception to `failed`, which counts and reports it.

        `of`: prefix of the cause.
        """
        try:
            yield
        except StoreError as error:
            if error.cause == STOOD_STILL:
                self._report("stood_still", level="warning", list=name, detail=str(error))
            else:
                failed(f"{of}{error.cause}", error)
        except Exception as error:  # noqa: BLE001  # the outermost loop of each task
            failed(f"{of}internal", error)

    def _lost(self, name: str, held: ListState, stored: ListState | None) -> None:
        stored_text = "nothing" if stored is None else f"generation {stored.generation}, serial {stored.serial}"
        if name not in self.lost:
            self.errors["lost_data"] += 1
        self.lost[name] = stored_text
        if self._is_due("store_lost_data", name):
            self._report(
                "store_lost_data", level="error", list=name, stored=stored_text, detail="the memory stays in force",
                held=f"generation {held.generation}, serial {held.serial}",
            )  # fmt: skip

    def _copy_failed(self, cause: str, error: Exception, name: str) -> None:
        self._failed(cause, error, name, event="copy_failed")

    def _failed(self, cause: str, error: Exception, name: str | None = None, *, event: str = "store_failed") -> None:
        """Count and report a fault of the store, or (event `copy_failed`) of the last good copy."""
        self.errors[cause] += 1
        if event == "store_failed" and name is None and cause != "changed":
            self.up = False
        if self._is_due(cause, name or ""):
            self._report(event, level="error", reason=cause, list=name, detail=str(error) or type(error).__name__)

    def _is_due(self, cause: str, name: str) -> bool:
        """Return True if the last report of this cause for a list is long enough ago."""
        now = time.monotonic()
        if now - self._reported_at.get((cause, name), -math.inf) < REPORT_AGAIN_S:
            return False
        self._reported_at[cause, name] = now
        return True


async def batches(
    source: ListStore, name: str, answer_s: float
) -> AsyncGenerator[tuple[ListState, Sequence[Page]], None]:
    """Yield a list's pages from a store in batches. The time limit of one answer applies to each batch."""
    async with aclosing(source.pages(name)) as pages:  # type: ignore[type-var]  # in each store, `pages` is a generator
        while True:
            try:
                yield await await_store(anext(pages), answer_s)
            except StopAsyncIteration:
                return


async def read_some_pages(
    source: ListStore, name: str, numbers: Sequence[int], generation: int, answer_s: float
) -> tuple[ListState, Sequence[Page]]:
    """Return the state of a list in one generation, and its pages with these numbers; a missing page is returned empty.

    Raises:
        StoreChanged: if the list has another generation.
    """
    state = NO_LIST
    pages: list[Page] = []
    for at in range(0, len(numbers), SOME_PAGES):
        part = numbers[at : at + SOME_PAGES]
        stored, existing = await await_store(source.some_pages(name, part), answer_s)
        if stored is None or stored.generation != generation:
            raise StoreChanged(f"list {name} changed while its touched pages were read")
        state = stored
        by_number = {page.number: page for page in existing}
        pages += [by_number.get(number) or Page(number, b"") for number in part]
    return state, pages


async def _build_in_thread(name: str, work: Callable[[], Image]) -> Image:
    """Build an image in a thread, so that this process can handle other requests meanwhile."""
    try:
        return await asyncio.to_thread(work)
    except OSError as error:  # a limit on memory or on the size of files
        raise StoreError("image", f"list {name}: its image cannot be built: {error.strerror or error}") from error
    except ValueError as error:
        raise StoreError("corrupt", f"list {name}: {error}") from error

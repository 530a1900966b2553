"""Follows a store's changes with images of the lists, in a process that answers nobody.

Whatever is taken over is proved first: its generation by the state that came with it, its pages by the content digest. What
cannot be proved is not taken over, and what is in force stays so, as it does when the store is away or has lost data.
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
from eir.lists.follow.copy import PAUSES, CopyKeeper, Heavy, Pauses, Relation, relation, while_large
from eir.lists.images.chunks import Chunk
from eir.lists.images.image import Image
from eir.lists.images.imaging import build_image, chunks_of, image_with
from eir.lists.images.index import DeviceList, Index
from eir.lists.pages.pages import Page, digest_text
from eir.lists.record.clock import STOOD_STILL, await_store
from eir.lists.record.store import NO_LIST, ListState, ListStore

PROOF_MASK = (1 << 64) - 1


class Proof:
    """The mark of each page in memory, the low 64 bits of its digest: 16 bytes a page. They prove a list's next state.

    A sum modulo 2^256 is also one modulo 2^64: with 64 bits of each page's digest an amended list is proved against its content
    digest, although the pages as they were are no longer at hand.
    """

    __slots__ = ("_amended", "_marks", "_numbers")

    def __init__(self) -> None:
        self._numbers = array("Q")
        self._marks = array("Q")
        self._amended: dict[int, int] = {}

    def extend(self, pages: Sequence[Page], marks: Sequence[int]) -> None:
        """The next pages of a list that is read whole; numbers ascend."""
        self._numbers.extend([page.number for page in pages])
        self._marks.extend(marks)

    def __getitem__(self, number: int) -> int:
        if (mark := self._amended.get(number)) is not None:
            return mark
        at = bisect_left(self._numbers, number)
        return self._marks[at] if at < len(self._numbers) and self._numbers[at] == number else 0

    def amend(self, pages: Sequence[Page]) -> None:
        """Take over pages that came into force."""
        self._amended.update((page.number, page.digest() & PROOF_MASK) for page in pages)


REST_TIMES, REST_MAX_S = 10, 0.1
"""After taking over changes, the follower rests this many times as long as that took, up to the maximum (s). So changes
that come in quick succession, as from a register, are taken over together, and the processor is free for checks."""
OFTEN_S, OFTEN = 1.0, 5
"""A list is fed like that if this many changes in a row came within this time (s) of each other."""
FED, REST_FED_S = 30, 0.5
"""After this many changes in a row, which are more than people make by hand, the follower rests for this time (s): with it the 99th
percentile of checks beside 5,000 rows a second is 0.7 ms, and 1.9 ms without (scripts/bench feed)."""
READ_AGAIN_MAX = 5
"""Times that a list is read again at once because it changed while it was read."""
UNPROVED = frozenset({"digest", "corrupt", "image"})
"""Causes that concern one list, not the store: its pages, or a lack of room for its image."""
KIND = "kind"
"""Cause of a list that is of another kind than the configuration says."""
SOME_PAGES = 500
"""Touched pages that are read at a time."""
AMENDED_PAGES_MAX = 20_000
"""Touched pages beyond which the list is read whole."""
SAY_AGAIN_S = 60.0
"""Pause between two events that say the same of a list."""


class Follower:
    """Fills an index from a store and keeps it there.

    `on_switch` is called with each list that came into force, its image, and the image before it if that is another one. `copy` is this
    node's last good copy (eir.lists.follow.copy), where the store itself is elsewhere: it serves a start without the store, and unless `heal` is
    False it is written back to a store that lost its data; `who` marks this node there. What the index holds already is in force.
    """

    def __init__(
        self, store: ListStore, index: Index, *, report: Report, on_switch: Callable[[str, ListState, Image, Image | None], None],
        copy: ListStore | None = None, heal: bool = True, who: str = "eir", pauses: Pauses = PAUSES,
    ) -> None:  # fmt: skip
        self.up = False
        """The store answered when it was last asked."""
        self.errors: Counter[str] = Counter()
        """Failures by cause; `lost_data`: a list was found to be less in the store than it was."""
        self.lost: dict[str, str] = {}
        """Lists in force from memory of which the store shows less, and what it shows."""
        self.from_copy: set[str] = set()
        """Lists in force that came from the last good copy and that the store has not shown since."""
        self._store, self._index, self._report, self._on_switch = store, index, report, on_switch
        self._keeper = None if copy is None else CopyKeeper(store, copy, report, self._copy_failed, who, pauses=pauses)
        self._pauses = pauses
        self._heals = heal
        self._heavy: Heavy = nullcontext
        self._others = asyncio.Event()
        """The index has other lists than at the last look."""
        self._proofs: dict[str, Proof] = {}
        self._seen: dict[str, int] = {}
        self._unreadable: dict[str, float] = {}
        """Lists whose state in the store is damaged, and when it is read again (monotonic)."""
        self._unproved: dict[str, tuple[float, float]] = {}
        self._said: dict[tuple[str, str], float] = {}
        self._lately: dict[str, tuple[int, float]] = {}
        """For each list, how many changes in a row came within OFTEN_S of each other, and when the last was taken over
        (monotonic)."""
        self._rest_s = 0.0
        """Seconds of rest after the pass in progress."""
        self.in_step_at = time.monotonic()
        """The last time (time.monotonic) at which the lists in force were certainly those in the store; up to `wait_s`
        ago is normal."""

    @property
    def copy_faults(self) -> Mapping[str, str]:
        """Lists whose last good copy could not be read, written or written back, and why."""
        return (
            {}
            if self._keeper is None
            else {name: why for name, why in self._keeper.faults.items() if name in self._index.lists}
        )

    def look(self) -> None:
        """Look at the store at once: the index has other lists, and policies go by them already."""
        self._others.set()

    @property
    def missing(self) -> tuple[str, ...]:
        """Lists of the configuration that nothing is in memory of."""
        return tuple(name for name, entries in self._index.lists.items() if entries.state is None)

    async def start(self) -> None:
        """Fill the index as fast as possible, before anyone is answered: from the store, or from the last good copy.

        Raises nothing for a store that is away or a list that cannot be proved: see `up`, `errors`, `missing`, `from_copy`.
        """
        stored: Mapping[str, ListState] | None = None
        with self._faults_told(self._failed):  # a node that would not start answers nobody
            stored = await self._states()
        if self._keeper is not None:
            await self._start_from_copy(self._keeper, stored)
        if stored is not None:
            with self._faults_told(self._failed):
                await self._pass(stored)
        # A list may be in force that no copy was made of: the follower before this one ended, or the disk was full then.
        for name, entries in self._index.lists.items():
            self._keep_copy(name, entries.state, None)

    async def _start_from_copy(self, keeper: CopyKeeper, stored: Mapping[str, ListState] | None) -> None:
        """Take lists from the copy unless the store has newer ones.

        The copy is nearer, and is what this node knew last.
        """
        for name, entries in tuple(self._index.lists.items()):
            with self._faults_told(partial(keeper.fail, name), name, of="copy_"):
                copied = await keeper.copy.state(name)
                if copied is None or (stored is not None and relation(copied, stored.get(name)) is Relation.NEWER):
                    continue
                if self._is_of_other_kind(name, entries, copied):
                    continue
                if relation(entries.state, copied) is Relation.NEWER:
                    await self._take_all(keeper.copy, name, entries)
                self.from_copy.add(name)

    async def run(self, heavy: Heavy = nullcontext) -> None:
        """Follow until cancelled."""
        self._heavy = heavy
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_store())
            if self._keeper is not None:
                tasks.create_task(self._keeper.run(heavy))

    async def _follow_store(self) -> None:
        while True:
            pause_s = self._pauses.retry_s
            with self._faults_told(self._failed):
                self._rest_s = 0.0
                self._others.clear()
                await self._pass(await self._states())
                await asyncio.sleep(self._rest_s)
                await self._wait()
                pause_s = 0.0
            await asyncio.sleep(pause_s)

    async def _wait(self) -> None:
        """Wait until a list may have changed, or there are others to follow. Raises StoreError."""
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

    # One look at the store

    async def _states(self) -> Mapping[str, ListState]:
        """The states that can be read; one that is damaged must not keep other lists from being followed.

        Raises StoreError, also if no list's state can be read.
        """
        began, lists = time.monotonic(), self._index.lists
        self._unreadable = {name: due for name, due in self._unreadable.items() if name in lists and due > began}
        names = [name for name in lists if name not in self._unreadable]
        found = await asyncio.gather(*map(self._state, names), return_exceptions=True)
        states: dict[str, ListState] = {}
        for name, state in zip(names, found, strict=True):
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
        """Bring one list up to date; True if it is now as in the store."""
        entries = self._index.lists.get(name)
        if entries is None:  # the configuration was changed meanwhile
            return True
        held = entries.state
        match relation(held, stored):
            case Relation.SAME:
                self.from_copy.discard(name)
                if self.lost.pop(name, None) is not None:
                    self._said.pop(("store_lost_data", name), None)
                    self._report("store_mended", list=name)
                    self._keep_copy(name, held, None)  # what was to be copied may have gone with the store's data
                return True
            case Relation.LOST if held is not None:
                self._lost(name, held, stored)
                if self._keeper is not None and self._heals:
                    self._keeper.heal(name, held, stored)
                return False
        not_before, pause_s = self._unproved.get(name, (0.0, self._pauses.unproved_s))
        if time.monotonic() < not_before or self._is_of_other_kind(name, entries, stored):
            return False
        began = time.monotonic()
        many, last = self._lately.get(name, (0, began))
        many = many + 1 if began - last < OFTEN_S else 1
        try:
            with while_large(self._heavy, held, stored, often=many > OFTEN):
                await self._take_over(name, entries, stored)
        except StoreError as error:
            if error.cause not in UNPROVED:
                raise
            self._unproved[name] = (time.monotonic() + pause_s, min(2 * pause_s, self._pauses.unproved_max_s))
            self._failed(error.cause, error, name)
            return False
        now = time.monotonic()
        self._lately[name] = many, now
        self._rest_s = REST_FED_S if many > FED else min(REST_MAX_S, self._rest_s + REST_TIMES * (now - began))
        self._unproved.pop(name, None)
        self.lost.pop(name, None)
        self.from_copy.discard(name)
        return True

    def _is_of_other_kind(self, name: str, entries: DeviceList, found: ListState | None) -> bool:
        """True if a list is not of the kind that the configuration says: its entries would mean something else."""
        if found is None or found.kind == entries.kind:
            return False
        kinds = f"{name} is a list of {found.kind} in the store, and of {entries.kind} in the configuration"
        advice = f"load a full release of {entries.kind}, or put the configuration right"
        self._failed(KIND, StoreError(KIND, f"{kinds}: {advice}"), name)
        return True

    async def _take_over(self, name: str, entries: DeviceList, stored: ListState | None) -> None:
        held = entries.state
        if held and stored and entries.image and held.content_digest == stored.content_digest:
            if self._switch(name, entries, stored, entries.image):
                self._keep_copy(name, stored, ())
            return
        for _ in range(READ_AGAIN_MAX):
            with suppress(StoreChanged):
                if not (held and stored and await self._take_changes(name, entries, held, stored)):
                    await self._take_all(self._store, name, entries)
                return
        raise StoreChanged(f"list {name} changed {READ_AGAIN_MAX} times while it was read")

    async def _take_all(self, source: ListStore, name: str, entries: DeviceList) -> None:
        """Read a list whole, prove it, and put it in force. Nothing happens if the source does not have it."""
        read: ListState | None = None
        proof, total, chunks = Proof(), 0, list[Chunk]()
        async with aclosing(_batches(source, name, self._pauses.answer_s)) as batches:
            async for read, batch in batches:  # noqa: B007  # the last one is what was read
                digests = [page.digest() for page in batch]
                total += sum(digests)
                proof.extend(batch, [digest & PROOF_MASK for digest in digests])
                try:
                    chunks += chunks_of(batch)
                except ValueError as error:
                    raise StoreError(
                        "corrupt", f"a page from {batch[0].number} to {batch[-1].number} is damaged: {error}"
                    ) from error
        if read is None:
            return
        if (found := digest_text(total)) != read.content_digest:
            raise StoreError("digest", f"list {name}: pages have the digest {found}, not {read.content_digest}")
        if self._switch(name, entries, read, await _made(name, partial(build_image, chunks))):
            self._proofs[name] = proof
            if source is self._store:
                self._keep_copy(name, read, None)

    async def _take_changes(self, name: str, entries: DeviceList, held: ListState, stored: ListState) -> bool:
        """Take over only the pages that were touched; False if the list must be read whole."""
        proof, image = self._proofs.get(name), entries.image
        if proof is None or image is None or stored.generation < held.generation:
            return False
        try:
            steps = await await_store(self._store.changes(name, held.generation), self._pauses.answer_s) or ()
        except StoreError as error:
            if error.cause != "corrupt":
                raise
            self._failed("corrupt", error, name)
            return False
        touched = {number for step in steps for number in step.pages or ()}
        if any(step.pages is None for step in steps) or not 0 < len(touched) <= AMENDED_PAGES_MAX:
            return False
        state, pages = await self._some_pages(name, sorted(touched), steps[-1].after)
        goes = sum(proof[page.number] for page in pages)
        comes = sum(page.digest() for page in pages)
        if (int(held.content_digest, 16) - goes + comes - int(state.content_digest, 16)) & PROOF_MASK:
            self._failed(
                "digest",
                StoreError("digest", "the touched pages do not make up the new digest: the whole list is read again"),
                name,
            )
            return False
        if self._switch(name, entries, state, await _made(name, partial(image_with, image, pages))):
            proof.amend(pages)
            self._keep_copy(name, state, pages)
        return True

    async def _some_pages(self, name: str, numbers: Sequence[int], generation: int) -> tuple[ListState, Sequence[Page]]:
        """Numbered pages as of a generation, empty ones for those that are not there. Raises StoreChanged."""
        state, there = NO_LIST, dict[int, Page]()
        for at in range(0, len(numbers), SOME_PAGES):
            part = numbers[at : at + SOME_PAGES]
            found, pages = await await_store(self._store.some_pages(name, part), self._pauses.answer_s)
            if found is None or found.generation != generation:
                raise StoreChanged(f"list {name} changed while its touched pages were read")
            state = found
            there.update((page.number, page) for page in pages)
        return state, [there.get(number) or Page(number, b"") for number in numbers]

    def _switch(self, name: str, entries: DeviceList, state: ListState, image: Image) -> bool:
        """The one moment at which a list changes; False if the configuration has let go of it."""
        if self._index.lists.get(name) is not entries:
            return False
        self._on_switch(name, state, image, self._index.switch(name, state, image))
        return True

    def _keep_copy(self, name: str, state: ListState | None, pages: Sequence[Page] | None) -> None:
        if self._keeper is not None and state is not None:
            self._keeper.keep(name, state, pages)

    # What went wrong

    @contextmanager
    def _faults_told(
        self, failed: Callable[[str, Exception], None], name: str | None = None, *, of: str = ""
    ) -> Iterator[None]:
        """A context that a fault ends; `failed` gets its cause, with `of` before it, and counts and reports it, and the task goes on."""
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
        shown = "nothing" if stored is None else f"generation {stored.generation}, serial {stored.serial}"
        if name not in self.lost:
            self.errors["lost_data"] += 1
        self.lost[name] = shown
        if self._says("store_lost_data", name):
            self._report(
                "store_lost_data", level="error", list=name, stored=shown, detail="the memory stays in force",
                held=f"generation {held.generation}, serial {held.serial}",
            )  # fmt: skip

    def _copy_failed(self, cause: str, error: Exception, name: str) -> None:
        self._failed(cause, error, name, event="copy_failed")

    def _failed(self, cause: str, error: Exception, name: str | None = None, *, event: str = "store_failed") -> None:
        """Count and tell. `copy_failed`, of the last good copy or writing it back, is no fault of the store."""
        self.errors[cause] += 1
        if event == "store_failed" and name is None and cause != "changed":
            self.up = False
        if self._says(cause, name or ""):
            self._report(event, level="error", reason=cause, list=name, detail=str(error) or type(error).__name__)

    def _says(self, what: str, name: str) -> bool:
        """True if an event is due again."""
        now = time.monotonic()
        if now - self._said.get((what, name), -math.inf) < SAY_AGAIN_S:
            return False
        self._said[what, name] = now
        return True


async def _batches(
    source: ListStore, name: str, answer_s: float
) -> AsyncGenerator[tuple[ListState, Sequence[Page]], None]:
    """The source's batches, each within the time that an answer may take."""
    async with aclosing(source.pages(name)) as batches:  # type: ignore[type-var]  # stores write it as a generator
        while True:
            try:
                yield await await_store(anext(batches), answer_s)
            except StopAsyncIteration:
                return


async def _made(name: str, work: Callable[[], Image]) -> Image:
    """An image made in a thread, so that others who ask this process meanwhile are answered."""
    try:
        return await asyncio.to_thread(work)
    except OSError as error:  # a limit on memory or on the size of files
        raise StoreError("image", f"list {name}: no image can be made of it: {error.strerror or error}") from error
    except ValueError as error:
        raise StoreError("corrupt", f"list {name}: {error}") from error

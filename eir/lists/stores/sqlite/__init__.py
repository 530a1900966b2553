"""Embedded store: one SQLite file in the state folder, for all processes of one host.

Every operation runs in a thread of the store, so a slow disk or a lock never blocks the event loop.

A release is written to a set of its own in several transactions and put in force by a small one, so that other writers wait
only briefly for the write lock. A later load deletes sets that were never finished. Readers read each batch in a transaction
of its own and compare generations, so they do not keep the write-ahead log from being reset.
"""

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from eir.errors import Report, StoreChanged, silent
from eir.lists.pages.pages import Page
from eir.lists.record.store import MAIN, Event, Fold, Ledger, ListChange, ListState, OutcomeCount, Record
from eir.lists.stores.records import VALUE_BYTES_MAX, decode_change, decode_state, newer_form
from eir.lists.stores.sqlite import history, reading, writing
from eir.lists.stores.sqlite.file import SqliteFile, checkpoint, form_of
from eir.lists.stores.write import Batches, PageSetStore, Stored, Undo, WriteRequest, contiguous_changes, portions

POLL_S = 0.1
"""Seconds between reads of the generations in `wait`; each takes about 100 us."""
PORTION_PAUSE_S = 0.005
"""Seconds between a load's transactions, in which another process can get the write lock."""

# Changes up to the generation in force, which is in each row.
READ_CHANGES = """
SELECT generation, changes.before, after, pages FROM lists LEFT JOIN changes
ON list = name AND after > :after AND after <= generation WHERE name = :name ORDER BY after
"""
CLAIM = """
INSERT INTO claims VALUES (:what, :who, :now + :ttl_s) ON CONFLICT (what)
DO UPDATE SET who = :who, until = :now + :ttl_s WHERE who = :who OR until <= :now OR until > :now + 3600
"""
"""Statement for a claim. A claim that ends in more than an hour was made before the clock was set back, and has no effect."""


class SqliteStore(PageSetStore):
    """Store of lists in one SQLite file, which implements eir.lists.record.store.ListStore.

    The file is created or opened at the first call.
    """

    def __init__(self, path: Path, *, upgrades: bool = True, report: Report = silent, **times: float) -> None:
        """Create the store; the file is opened at the first call.

        Args:
            path: the file.
            upgrades: upgrade a file of an older form and report it before; if False, it is only read.
            report: receives events that are not errors.
            times: as in SqliteFile.
        """
        self.path = path
        self._file = SqliteFile(path, upgrades=upgrades, report=report, **times)

    async def _stored(self, name: str) -> Stored[int] | None:
        return await self._file.call(writing.read_stored, name)

    async def _pages_in(self, stored: Stored[int], page_set: int, numbers: Sequence[int]) -> Sequence[Page]:  # noqa: ARG002  # a set exists as long as its record
        return await self._file.call(reading.read_set, page_set, numbers)

    async def state(self, name: str) -> ListState | None:
        return await self._file.call(writing.state_of, name)

    async def states(self) -> Mapping[str, ListState]:
        rows = await self._file.rows(
            "SELECT name, iif(length(state) > :most, '', state) FROM lists ORDER BY name", most=VALUE_BYTES_MAX
        )
        return {name: decode_state(state) for name, state in rows}

    async def _check_room(self, name: str, pages: Sequence[Page], *, amends: bool) -> None:
        await self._file.call(writing.make_room, name, pages, amends)

    async def _write(
        self, name: str, seen: int, request: WriteRequest | Undo, batches: Batches | None = None
    ) -> ListState:
        """Put the list content of a request in force in one transaction. A whole list is first staged in a new set.

        If this fails, the staged pages are deleted.
        """
        if batches is None:
            return await self._file.call(writing.commit, name, seen, request, None)
        staged = await self._file.call(writing.begin_set, name, seen)
        try:
            async for batch in batches:
                for portion in portions(batch, writing.PORTION_PAGES, writing.PORTION_BYTES):
                    await self._file.call(writing.fill, staged, portion)
                    await asyncio.sleep(PORTION_PAUSE_S)
            stored = await self._file.call(writing.commit, name, seen, request, staged)
        except BaseException:
            self._file.submit(writing.discard_set, staged)
            raise
        await self._file.call(checkpoint)
        return stored

    async def pages(self, name: str) -> AsyncIterator[tuple[ListState, Sequence[Page]]]:
        """Yield a list in batches of pages, each read in one transaction."""
        state: ListState | None = None
        first, is_last = 0, False
        while not is_last:
            batch = await self._file.call(reading.read_batch, name, first)
            if batch is None and state is None:
                return
            if batch is None or (state is not None and batch.generation != state.generation):
                raise StoreChanged(f"list {name} changed while its pages were read")
            state = state or decode_state(batch.state)
            yield state, batch.pages
            is_last = batch.is_last
            first = batch.pages[-1].number + 1 if batch.pages else 0

    async def some_pages(self, name: str, numbers: Sequence[int]) -> tuple[ListState | None, Sequence[Page]]:
        """Return the state and the numbered pages of a list, which are read in one transaction."""
        batch = await self._file.call(reading.read_some, name, numbers)
        return (None, []) if batch is None else (decode_state(batch.state), batch.pages)

    async def changes(self, name: str, after: int) -> Sequence[ListChange] | None:
        rows = await self._file.rows(READ_CHANGES, name=name, after=after)
        steps = [decode_change(*step) for _, *step in rows if step[1] is not None]
        return contiguous_changes(steps, after, rows[0][0] if rows else 0)

    async def wait(self, seen: Mapping[str, int], timeout_s: float) -> None:
        """Poll the generations each POLL_S until one differs, since SQLite does not notify other processes."""
        end = time.monotonic() + timeout_s
        while (rest_s := end - time.monotonic()) > 0:
            generations = dict(await self._file.rows("SELECT name, generation FROM lists"))
            if any(generations.get(name, 0) != generation for name, generation in seen.items()):
                return
            await asyncio.sleep(min(POLL_S, rest_s))

    async def claim(self, what: str, who: str, ttl_s: float) -> bool:
        """Write a claim that ends by this host's clock; return True if it succeeded.

        If the caller is cancelled, the claim is still written, because the caller may be releasing it.
        """
        values = {"what": what, "who": who, "ttl_s": ttl_s, "now": time.time()}
        return await asyncio.shield(self._file.call(lambda db: bool(db.execute(CLAIM, values).rowcount)))

    async def record(self, event: Event) -> None:
        """Append an event to the history in one durable transaction."""
        await self._file.call(history.record, event)

    async def settle(self) -> None:
        """Return at once, because a write and its event are in one transaction."""

    async def history(
        self, name: str | None = None, *, limit: int | None = None, since: str | None = None, chain: str | None = None
    ) -> Sequence[Event]:
        return await self._file.call(history.history, name, since, limit, chain)

    async def ledger(self, chain: str = MAIN) -> Ledger:
        return await self._file.call(history.ledger, chain)

    async def records(self, after: int = 0, chain: str = MAIN) -> AsyncIterator[Sequence[Record]]:
        while batch := await self._file.call(history.some_records, after, chain):
            yield batch
            after = batch[-1].number

    async def folds(self) -> Sequence[Fold]:
        return await self._file.call(history.folds)

    async def rewrite_history(
        self,
        batches: AsyncIterable[Sequence[Record]],
        folds: Sequence[Fold],
        *,
        after: int,
        seen: Ledger | None,
        exact: bool = False,
        chain: str = MAIN,
    ) -> None:
        """Rewrite a chain of the history in one transaction."""
        records = [record async for batch in batches for record in batch]
        rewrite = partial(history.rewrite, exact=exact, chain=chain)
        await self._file.call(rewrite, records, folds, after, seen)

    async def trim_history(self, until: str, bytes_max: int | None, event: Event | None, chain: str = MAIN) -> int:
        return await self._file.call(history.trim, until, bytes_max, event, chain)

    async def outcomes(self) -> Sequence[OutcomeCount]:
        rows = await self._file.rows("SELECT list, outcome, count, last FROM outcomes ORDER BY list, outcome")
        return [OutcomeCount(*row) for row in rows]

    async def newer(self) -> str | None:
        return await self._file.call(lambda db: newer_form(str(self.path), form_of(db)))

    async def close(self) -> None:
        await self._file.close()

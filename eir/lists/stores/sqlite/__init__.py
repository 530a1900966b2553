"""The embedded store: one SQLite file in the state folder, for all processes of one host.

Every operation runs in a thread of the store's own, so that a slow disk or a lock never holds the event loop.

A release is written to a set of its own in several transactions and put in force by one small one, so that nobody waits
long for the write lock; a set that nobody finished is collected by a later load. Readers take a batch a transaction and
compare generations: none holds the write-ahead log back while a list is read.
"""

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from eir.errors import Report, StoreChanged, silent
from eir.lists.pages.pages import Page
from eir.lists.record.store import MAIN, Change, Event, Fold, Ledger, ListState, Outcome, Record
from eir.lists.stores.records import VALUE_BYTES_MAX, decode_change, decode_state, newer_form
from eir.lists.stores.sqlite import history, reading, writing
from eir.lists.stores.sqlite.file import File, checkpoint, form_of
from eir.lists.stores.write import Batches, PageSetStore, Stored, Undo, Wanted, portions, without_gap

POLL_S = 0.1
"""Seconds between looks at the generations in `wait`; a look costs some 100 µs."""
PORTION_PAUSE_S = 0.005
"""Seconds between a load's transactions, so that another process gets the write lock in the middle of it."""

# Those up to the generation in force, which is in each row.
READ_CHANGES = """
SELECT generation, changes.before, after, pages FROM lists LEFT JOIN changes
ON list = name AND after > :after AND after <= generation WHERE name = :name ORDER BY after
"""
CLAIM = """
INSERT INTO claims VALUES (:what, :who, :now + :ttl_s) ON CONFLICT (what)
DO UPDATE SET who = :who, until = :now + :ttl_s WHERE who = :who OR until <= :now OR until > :now + 3600
"""
"""A claim that ends in more than an hour was made by a clock that went back since, and holds nobody up."""


class SqliteStore(PageSetStore):
    """Implements eir.lists.record.store.ListStore over one file, which is made if it is not there and opened when first asked."""

    def __init__(self, path: Path, *, upgrades: bool = True, report: Report = silent, **times: float) -> None:
        """`upgrades`: bring a file of an older form to this one, and tell `report` before; else it is read as it is. `times`: as of a File."""
        self.path = path
        self._file = File(path, upgrades=upgrades, report=report, **times)

    async def _stored(self, name: str) -> Stored[int] | None:
        return await self._file.call(writing.stored, name)

    async def _pages_in(self, stored: Stored[int], page_set: int, numbers: Sequence[int]) -> Sequence[Page]:  # noqa: ARG002  # a set lasts as long as the record
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

    async def _write(self, name: str, seen: int, wanted: Wanted | Undo, batches: Batches | None = None) -> ListState:
        """Write a whole list to a set of its own first, and the rest in one transaction.

        Staged pages are given up on failure.
        """
        if batches is None:
            return await self._file.call(writing.commit, name, seen, wanted, None)
        staged = await self._file.call(writing.begin_set, name, seen)
        try:
            async for batch in batches:
                for portion in portions(batch, writing.PORTION_PAGES, writing.PORTION_BYTES):
                    await self._file.call(writing.fill, staged, portion)
                    await asyncio.sleep(PORTION_PAUSE_S)
            stored = await self._file.call(writing.commit, name, seen, wanted, staged)
        except BaseException:
            self._file.submit(writing.clear, staged)
            raise
        await self._file.call(checkpoint)
        return stored

    async def pages(self, name: str) -> AsyncIterator[tuple[ListState, Sequence[Page]]]:
        """Yield the pages in batches, each read in one transaction."""
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
        """Read state and pages in one transaction."""
        batch = await self._file.call(reading.read_some, name, numbers)
        return (None, []) if batch is None else (decode_state(batch.state), batch.pages)

    async def changes(self, name: str, after: int) -> Sequence[Change] | None:
        rows = await self._file.rows(READ_CHANGES, name=name, after=after)
        steps = [decode_change(*step) for _, *step in rows if step[1] is not None]
        return without_gap(steps, after, rows[0][0] if rows else 0)

    async def wait(self, seen: Mapping[str, int], timeout_s: float) -> None:
        """Looks each POLL_S: SQLite tells nobody of a commit."""
        end = time.monotonic() + timeout_s
        while (left := end - time.monotonic()) > 0:
            generations = dict(await self._file.rows("SELECT name, generation FROM lists"))
            if any(generations.get(name, 0) != generation for name, generation in seen.items()):
                return
            await asyncio.sleep(min(POLL_S, left))

    async def claim(self, what: str, who: str, ttl_s: float) -> bool:
        """A row with an end by this host's clock. It is written although the caller is told to end: it may be what it gives back."""
        values = {"what": what, "who": who, "ttl_s": ttl_s, "now": time.time()}
        return await asyncio.shield(self._file.call(lambda db: bool(db.execute(CLAIM, values).rowcount)))

    async def record(self, event: Event) -> None:
        """One transaction; durable when it returns."""
        await self._file.call(history.record, event)

    async def settle(self) -> None:
        """Nothing: a write and its event are one transaction."""

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
        """All of it in one transaction."""
        records = [record async for batch in batches for record in batch]
        rewrite = partial(history.rewrite, exact=exact, chain=chain)
        await self._file.call(rewrite, records, folds, after, seen)

    async def trim_history(self, until: str, bytes_max: int | None, event: Event | None, chain: str = MAIN) -> int:
        return await self._file.call(history.trim, until, bytes_max, event, chain)

    async def outcomes(self) -> Sequence[Outcome]:
        rows = await self._file.rows("SELECT list, outcome, count, last FROM outcomes ORDER BY list, outcome")
        return [Outcome(*row) for row in rows]

    async def newer(self) -> str | None:
        return await self._file.call(lambda db: newer_form(str(self.path), form_of(db)))

    async def close(self) -> None:
        await self._file.close()

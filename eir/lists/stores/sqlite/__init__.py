"""Embedded store: one SQLite file in the state folder, for all processes of one host.

Every operation runs in a thread of the store, so a slow disk or a lock never blocks the event loop.

A load writes a release in several transactions to a new set of pages, and puts the set in force by a small transaction. So other
writers wait only briefly for the write lock. A later load deletes sets that were never finished. A reader reads each batch in its own
transaction and compares the generations of the batches, because a long transaction would prevent a reset of the write-ahead log.
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
from eir.lists.stores.write import (
    Batches,
    PageSetStore,
    RollbackRequest,
    Stored,
    WriteRequest,
    contiguous_changes,
    portions,
)

POLL_S = 0.1
"""Seconds between reads of the generations in `wait`. A read takes about 100 us."""
PORTION_PAUSE_S = 0.005
"""Pause in seconds after each transaction of a load, in which another process can get the write lock."""

# Changes after :after and up to the generation in force, with the generation in force in each row.
READ_CHANGES = """
SELECT generation, changes.before, after, pages FROM lists LEFT JOIN changes
ON list = name AND after > :after AND after <= generation WHERE name = :name ORDER BY after
"""
CLAIM = """
INSERT INTO claims VALUES (:what, :who, :now + :ttl_s) ON CONFLICT (what)
DO UPDATE SET who = :who, until = :now + :ttl_s WHERE who = :who OR until <= :now OR until > :now + 3600
"""
"""Statement that claims or renews a lease.

A lease that ends in more than an hour has no effect, because it was claimed before the clock was set back.
"""


class SqliteStore(PageSetStore):
    """Store of lists in one SQLite file, which implements eir.lists.record.store.ListStore.

    The first call opens the file. A missing file is created, or counts as empty if `upgrades` is False.
    """

    def __init__(self, path: Path, *, upgrades: bool = True, report: Report = silent, **times: float) -> None:
        """Create the store; the file is opened at the first call.

        Args:
            path: the file.
            upgrades: True to upgrade a file of an older format, after an event about the upgrade; False to read it only.
            report: receives events that are not errors.
            times: arguments of SqliteFile in seconds.
        """
        self.path = path
        self.file = SqliteFile(path, upgrades=upgrades, report=report, prepare=None, **times)
        """The file with its thread, for operations beyond those of a store."""

    async def _stored(self, name: str) -> Stored[int] | None:
        return await self.file.call(writing.read_stored, name)

    async def _pages_in(self, stored: Stored[int], page_set: int, numbers: Sequence[int]) -> Sequence[Page]:  # noqa: ARG002  # a set exists as long as its record
        return await self.file.call(reading.read_set, page_set, numbers)

    async def state(self, name: str) -> ListState | None:
        return await self.file.call(writing.state_of, name)

    async def states(self) -> Mapping[str, ListState]:
        statement = "SELECT name, iif(length(state) > :most, '', state) FROM lists ORDER BY name"
        rows = await self.file.rows(statement, most=VALUE_BYTES_MAX)
        return {name: decode_state(state) for name, state in rows}

    async def _check_room(self, name: str, pages: Sequence[Page], *, amends: bool) -> None:
        await self.file.call(writing.make_room, name, pages, amends)

    async def _write(
        self, name: str, seen: int, request: WriteRequest | RollbackRequest, batches: Batches | None = None
    ) -> ListState:
        """Apply a write request to a list in one transaction. If there are `batches`, their pages are stored first.

        If the write fails, the staged pages are deleted.
        """
        if batches is None:
            return await self.file.call(writing.commit, name, seen, request, None)
        staged_set = await self.file.call(writing.create_set, name, seen)
        try:
            async for batch in batches:
                for portion in portions(batch, writing.PORTION_PAGES, writing.PORTION_BYTES):
                    await self.file.call(writing.stage, staged_set, portion)
                    await asyncio.sleep(PORTION_PAUSE_S)
            state = await self.file.call(writing.commit, name, seen, request, staged_set)
        except BaseException:
            self.file.submit(writing.discard_set, staged_set)
            raise
        await self.file.call(checkpoint)
        return state

    async def pages(self, name: str) -> AsyncIterator[tuple[ListState, Sequence[Page]]]:
        """Yield a list in batches of pages, each read in one transaction."""
        batch = await self.file.call(reading.read_batch, name, 0)
        if batch is None:
            return
        state = decode_state(batch.state)
        yield state, batch.pages
        while not batch.is_last:
            next_number = batch.pages[-1].number + 1
            batch = await self.file.call(reading.read_batch, name, next_number)
            if batch is None or batch.generation != state.generation:
                raise StoreChanged(f"list {name} changed while its pages were read")
            yield state, batch.pages

    async def some_pages(self, name: str, numbers: Sequence[int]) -> tuple[ListState | None, Sequence[Page]]:
        """Return the state and the numbered pages of a list from one transaction."""
        batch = await self.file.call(reading.read_some, name, numbers)
        if batch is None:
            return None, []
        return decode_state(batch.state), batch.pages

    async def changes(self, name: str, after: int) -> Sequence[ListChange] | None:
        rows = await self.file.rows(READ_CHANGES, name=name, after=after)
        current = 0
        changes = []
        for generation, before, change_after, pages in rows:
            current = generation
            if change_after is not None:
                changes.append(decode_change(before, change_after, pages))
        return contiguous_changes(changes, after, current)

    async def wait(self, seen: Mapping[str, int], timeout_s: float) -> None:
        """Poll the lists' generations every POLL_S until one of them differs from `seen`, or until the timeout.

        SQLite does not notify other processes.
        """
        deadline = time.monotonic() + timeout_s
        while (rest_s := deadline - time.monotonic()) > 0:
            rows = await self.file.rows("SELECT name, generation FROM lists")
            generations = dict(rows)
            if any(generations.get(name, 0) != generation for name, generation in seen.items()):
                return
            await asyncio.sleep(min(POLL_S, rest_s))

    async def claim(self, what: str, who: str, ttl_s: float) -> bool:
        """Claim, renew or release a lease, which expires by the clock of this host; return True if the claim succeeded.

        If the caller is cancelled, the lease is still written, because the caller may be releasing it.
        """
        values = {"what": what, "who": who, "ttl_s": ttl_s, "now": time.time()}
        claim = self.file.call(lambda db: bool(db.execute(CLAIM, values).rowcount))
        return await asyncio.shield(claim)

    async def record(self, event: Event) -> None:
        """Append an event to the history in one durable transaction."""
        await self.file.call(history.record, event)

    async def append_pending(self) -> None:
        """Return at once: SQLite stores a list write and its history event in one transaction."""

    async def history(
        self, name: str | None = None, *, limit: int | None = None, since: str | None = None, chain: str | None = None
    ) -> Sequence[Event]:
        return await self.file.call(history.history, name, since, limit, chain)

    async def ledger(self, chain: str = MAIN) -> Ledger:
        return await self.file.call(history.ledger, chain)

    async def records(self, after: int = 0, chain: str = MAIN) -> AsyncIterator[Sequence[Record]]:
        while batch := await self.file.call(history.some_records, after, chain):
            yield batch
            after = batch[-1].number

    async def folds(self) -> Sequence[Fold]:
        return await self.file.call(history.folds)

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
        """Replace the records of a history chain after record number `after` by the records of `batches`, in one transaction."""
        records = [record async for batch in batches for record in batch]
        rewrite = partial(history.rewrite, exact=exact, chain=chain)
        await self.file.call(rewrite, records, folds, after, seen)

    async def trim_history(self, until: str, bytes_max: int | None, event: Event | None, chain: str = MAIN) -> int:
        return await self.file.call(history.trim, until, bytes_max, event, chain)

    async def outcomes(self) -> Sequence[OutcomeCount]:
        rows = await self.file.rows("SELECT list, outcome, count, last FROM outcomes ORDER BY list, outcome")
        return [OutcomeCount(*row) for row in rows]

    async def newer(self) -> str | None:
        return await self.file.call(lambda db: newer_form(str(self.path), form_of(db)))

    async def close(self) -> None:
        await self.file.close()

"""The embedded store: one SQLite file in the state folder, for all processes of one host.

Every operation runs in a thread of the store's own, so a slow disk or a lock never holds the event loop. sqlite3 gives up
the interpreter's lock for each row that it steps to, and with a busy loop beside it getting that lock back costs
milliseconds; so pages are read some hundreds at a time as one row of text, which SQL gathers without the lock, and taken
apart on the loop, where the time is counted as that of their reader.

A release is written to a set of its own in several transactions and put in force by one small one, so that nobody waits
long for the write lock; a set that nobody finished is collected by a later load. Readers take a batch a transaction and
compare generations: none holds the write-ahead log back while a list is read.
"""

import asyncio
import struct
import time
from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from eir.errors import Report, StoreChanged, silent
from eir.lists.pages.pages import NUMBER_BITS, Page
from eir.lists.record.store import MAIN, Change, Event, Fold, Ledger, ListState, Outcome, Record
from eir.lists.stores.records import VALUE_BYTES_MAX, decode_change, decode_state, newer_form
from eir.lists.stores.sqlite import history, writing
from eir.lists.stores.sqlite.file import NUMBER_MASK, File, checkpoint, find, form_of
from eir.lists.stores.write import Batches, PageSetStore, Stored, Undo, Wanted, portions, without_gap

POLL_S = 0.1
"""Seconds between looks at the generations in `wait`; a look costs some 100 µs."""
PORTION_PAUSE_S = 0.005
"""Seconds between a load's transactions, so that another process gets the write lock in the middle of it."""
READ_PAGES_MAX, READ_BYTES = 512, 1 << 16
"""Most pages and bytes that one statement reads while a list is read."""

# Many pages as one text: for each its number (16 digits), two lengths (8 digits each), keys and extra, all hexadecimal.
GATHER = "group_concat(printf('%016X%08X%08X', id & :mask, length(keys), length(extra)) || hex(keys) || hex(extra), '')"
HEAD = struct.Struct(">QII")
BOUND = {"bits": NUMBER_BITS, "mask": NUMBER_MASK, "most": VALUE_BYTES_MAX}
# What is longer than anything of ours is left on the disk, and shows in the digest.
PAGE = "id, iif(length(keys) > :most, x'', keys) AS keys, iif(length(extra) > :most, x'', extra) AS extra"
STATE = "iif(length(state) > :most, '', state)"
# Generation, state and pages, as of one moment since it is one statement.
READ_BATCH = f"""
SELECT generation, {STATE}, (SELECT {GATHER} FROM (
    SELECT {PAGE} FROM pages
    WHERE id BETWEEN (lists.page_set << :bits | :first) AND (lists.page_set << :bits | :mask) ORDER BY id LIMIT :count))
FROM lists WHERE name = :name
"""  # noqa: S608  # all parts are constants of this module
READ_SOME = f"""
SELECT {STATE}, (SELECT {GATHER} FROM (
    SELECT {PAGE} FROM pages WHERE id IN (SELECT lists.page_set << :bits | value FROM json_each(:numbers))))
FROM lists WHERE name = :name
"""  # noqa: S608  # as above
READ_IN_SET = f"""
SELECT {GATHER} FROM (SELECT {PAGE} FROM pages WHERE id IN (SELECT :page_set << :bits | value FROM json_each(:numbers)))
"""  # noqa: S608  # as above
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
        ((text,),) = await self._file.rows(READ_IN_SET, page_set=page_set, numbers=str([*numbers]), **BOUND)
        return _decode_batch(text)

    async def state(self, name: str) -> ListState | None:
        return await self._file.call(writing.state_of, name)

    async def states(self) -> Mapping[str, ListState]:
        rows = await self._file.rows(f"SELECT name, {STATE} FROM lists ORDER BY name", most=VALUE_BYTES_MAX)  # noqa: S608  # as above
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
        """Each batch is one statement, and the next one is read while the caller uses this one."""
        state: ListState | None = None
        first, count = 0, 16
        ahead = self._file.submit(find, READ_BATCH, {"name": name, "first": first, "count": count, **BOUND})
        try:
            while True:
                found = await asyncio.wrap_future(ahead)
                if not found and state is None:
                    return
                if not found or (state is not None and found[0][0] != state.generation):
                    raise StoreChanged(f"list {name} changed while its pages were read")
                ((_, record, text),) = found
                state = state or decode_state(record)
                batch = _decode_batch(text)
                last = len(batch) < count
                if not last:
                    # The next batch is read while this one is used; how much is judged by the size of this one.
                    size = len(text) // (2 * count) + 1
                    first, count = batch[-1].number + 1, min(max(READ_BYTES // size, 1), READ_PAGES_MAX)
                    ahead = self._file.submit(find, READ_BATCH, {"name": name, "first": first, "count": count, **BOUND})
                yield state, batch
                if last:
                    return
        finally:
            ahead.cancel()

    async def some_pages(self, name: str, numbers: Sequence[int]) -> tuple[ListState | None, Sequence[Page]]:
        """One statement."""
        found = await self._file.rows(READ_SOME, name=name, numbers=str(sorted(set(numbers))), **BOUND)
        return (decode_state(found[0][0]), _decode_batch(found[0][1])) if found else (None, [])

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


def _decode_batch(text: str | None) -> list[Page]:
    data = bytes.fromhex(text or "")
    pages, at, end = [], 0, len(data)
    while at < end:
        number, keys, extra = HEAD.unpack_from(data, at)
        at += HEAD.size
        middle = at + keys
        pages.append(Page(number, data[at:middle], data[middle : middle + extra]))
        at = middle + extra
    return pages

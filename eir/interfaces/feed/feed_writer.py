"""Writer of the feed's rows: groups rows into transactions of the store.

Each row is answered when its transaction is durable, and in the journal of this host. A transaction starts QUIET_S after its last row, at
most GATHER_S after its first row, or when it is full. While it is written, the next one collects rows. Rows about the same entry are written
in separate transactions, in their order of arrival. The history records the sender and the rows of each transaction.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from eir.errors import EntryRefused, StoreError
from eir.interfaces.clients import RequestRefused
from eir.interfaces.feed.feed_rows import DONE
from eir.lists.changes.local_entries import Entry
from eir.lists.changes.local_rows import ADD, RowsEdit, feed_update, keys_of_entry, rows_of_entries
from eir.lists.changes.local_writer import LocalWriter
from eir.lists.log.change import Head
from eir.lists.log.journal import JournalError
from eir.lists.table.columns import SECONDS, TableRows

GATHER_S = 0.05
QUIET_S = 0.002
"""Seconds without a further row after which a transaction starts."""
ROWS_MAX = 500
"""Maximum number of rows in a transaction: readable in the history, and below the default change_min of a list."""
WAITING_MAX = 20_000
"""Maximum number of waiting rows; a further row is answered 503 at once."""

LIMIT, STORE, BUSY, JOURNAL = "limit", "store", "busy", "journal"
"""Reasons for refusing a row."""


class Waiting(NamedTuple):
    """Row that waits to be written by a transaction of the store."""

    what: str
    """ADD or REMOVE."""
    entry: Entry
    name: str
    """Name of the list."""
    who: str
    """User in the history."""
    reason: str
    done: Callable[[int | RequestRefused], None]
    """Function that is called once with the status, or the refusal, of the row."""
    day: int = 0
    """Day of the row, for a list with dates."""
    begin: int = 0
    """Begin of the row in Unix seconds; 0: at once."""


class FeedWriter:
    """Writer of rows from external registers into local lists, many rows in each transaction.

    Args:
        local: writer of the lists.
        failed: function that is called with an exception.
        waiting_max: maximum number of queued rows.
    """

    def __init__(
        self, local: LocalWriter, *, failed: Callable[[Exception], None], waiting_max: int = WAITING_MAX
    ) -> None:
        self.local, self._failed, self._waiting_max = local, failed, waiting_max
        self._waiting: deque[Waiting] = deque()
        self._came = asyncio.Event()
        self.transactions = 0
        """Number of transactions."""

    def add(
        self,
        what: str,
        entry: Entry,
        *,
        name: str,
        who: str,
        reason: str,
        done: Callable[[int | RequestRefused], None],
        day: int = 0,
        begin: int = 0,
    ) -> None:
        """Queue one change of a local list that a national register has requested: add or remove an entry.

        Args:
            what: ADD or REMOVE.
            entry: entry to add or to remove.
            name: name of the list.
            who: user of the feed, for the history.
            reason: reason of the entry.
            done: function that is called once, after the write, with the HTTP status or the refusal of the row.
            day: day on which the device was reported; 0: unknown.
            begin: begin of an added row in Unix seconds; 0: at once.

        Raises:
            RequestRefused: if the queue is full.
        """
        if len(self._waiting) >= self._waiting_max:
            raise RequestRefused(503, BUSY, "too many rows are waiting; send the row again later")
        self._waiting.append(Waiting(what, entry, name, who, reason, done, day, begin))
        self._came.set()

    async def run(self) -> None:
        """Write the queued rows until cancelled."""
        async with asyncio.TaskGroup() as answers:
            while True:
                await self._gather()
                await self._write(self._taken(), answers)

    async def _gather(self) -> None:
        """Wait until rows are queued and the next transaction can start."""
        loop = asyncio.get_running_loop()
        while not self._waiting:
            self._came.clear()
            await self._came.wait()
        until = loop.time() + GATHER_S
        while len(self._waiting) < ROWS_MAX and loop.time() < until:
            before = len(self._waiting)
            await asyncio.sleep(QUIET_S)
            if len(self._waiting) == before:
                return

    def _taken(self) -> list[Waiting]:
        """Remove from the queue the rows that the next transactions write, and return these rows.

        They contain at most one row for each entry, so that their order is irrelevant.
        """
        rows, later, seen = list[Waiting](), list[Waiting](), set[tuple[str, int, int, bool]]()
        while self._waiting and len(rows) < ROWS_MAX:
            row = self._waiting.popleft()
            key = row.name, *row.entry[1:]
            (later if key in seen else rows).append(row)
            seen.add(key)
        self._waiting.extendleft(reversed(later))
        return rows

    async def _write(self, rows: Sequence[Waiting], answers: asyncio.TaskGroup) -> None:
        together: dict[tuple[str, str, str, str], list[Waiting]] = {}
        for row in rows:
            together.setdefault((row.name, row.who, row.what, row.reason), []).append(row)
        for same in together.values():
            await self._one(same, answers)

    async def _one(self, rows: Sequence[Waiting], answers: asyncio.TaskGroup) -> None:
        """Write rows with the same list, sender and operation in one transaction, and answer each row. `answers`: group of the tasks that answer."""
        name, who = rows[0].name, rows[0].who
        settings = self.local.lists.get(name)
        if settings is None:
            _refuse(rows, RequestRefused(503, BUSY, f"the list {name} is no longer configured"))
            return
        changed: list[TableRows] = []
        try:
            edit = _edit(rows, has_days=settings.dates)
            make = feed_update(
                edit, settings, who=who, now=self.local.now(), guard=partial(self.local.guard, name), note=lambda each: changed.__setitem__(slice(None), [each])
            )  # fmt: skip
            _, made, head = await self.local.write(edit, settings, make)
        except EntryRefused as e:
            # A row above the limits of its list must not block the others: halve the transaction until it is alone.
            if len(rows) == 1:
                _refuse(rows, RequestRefused(422, LIMIT, str(e)))
                return
            middle = len(rows) // 2
            await self._one(rows[:middle], answers)
            await self._one(rows[middle:], answers)
            return
        except StoreError as e:
            self._failed(e)
            _refuse(rows, RequestRefused(503, STORE, "the store is unavailable; send the row again later"))
            return
        except Exception as e:  # noqa: BLE001 - a fault must not leave rows of other requests without an answer
            self._failed(e)
            _refuse(rows, RequestRefused(500, "fault", "internal fault of the program"))
            return
        self.transactions += made is not None
        effective = {
            each for rows in changed for each in zip(rows.keys.tolist(), rows.column(SECONDS).tolist(), strict=True)
        }
        statuses = [DONE[row.what, keys_of_entry(row.entry) in effective] for row in rows]
        answers.create_task(self._answer(rows, statuses, head))

    async def _answer(self, rows: Sequence[Waiting], statuses: Sequence[int], head: Head) -> None:
        """Answer rows with their statuses as soon as the journal of this host has the change that led to this head of their list."""
        try:
            await self.local.check_recorded(rows[0].name, head)
        except JournalError as e:
            self._failed(e)
            detail = "the history of this host lacks the change; send the row again later"
            _refuse(rows, RequestRefused(503, JOURNAL, detail))
            return
        for row, status in zip(rows, statuses, strict=True):
            row.done(status)


def _edit(rows: Sequence[Waiting], *, has_days: bool) -> RowsEdit:
    """Return the change of a local list by rows of the same operation and reason."""
    entries = [row.entry for row in rows]
    days = [row.day for row in rows] if has_days else ()
    begins = [row.begin for row in rows] if rows[0].what == ADD else 0
    table_rows, names = rows_of_entries(entries, days=days, begins=begins)
    return RowsEdit(what=rows[0].what, rows=table_rows, reason=rows[0].reason, names=names)


def _refuse(rows: Sequence[Waiting], refusal: RequestRefused) -> None:
    for row in rows:
        row.done(refusal)

"""Rows of a feed into lists: what comes together is one transaction, and each row is answered once that is durable.

A transaction begins when for a moment no further row came, at the latest GATHER_S after its first one, or when it is full; while one
is written the next one gathers. Rows about the same entry are written one after another, in the order in which they came.
The history has a record of each transaction: who sent which rows.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from eir.errors import EntryRefused, StoreError
from eir.interfaces.feed.feed_rows import DONE, RowRefused
from eir.lists.changes.local import Edit, Entry, KnownLists, edit_differences
from eir.lists.record.settings import ListSettings
from eir.lists.record.store import ListStore

GATHER_S = 0.05
QUIET_S = 0.002
"""A row waits no longer if none follows it for this time (s)."""
ROWS_MAX = 500
"""Rows of one transaction: as many as a reader of the history can read, and below a list's change_min unless that is
set lower."""
WAITING_MAX = 20_000
"""Rows that wait; a further one is answered 503 at once."""

LIMIT, STORE, BUSY = "limit", "store", "busy"
"""Reasons for which a row was not taken."""


class Waiting(NamedTuple):
    """A row that waits for its transaction."""

    what: str
    """ADD or REMOVE."""
    entry: Entry
    name: str
    """The list's name."""
    who: str
    """The user, as in the history."""
    reason: str
    done: Callable[[int | RowRefused], None]
    """Called once, with the answer to the row's request."""


class FeedWriter:
    """Writes rows into local lists. `lists`: those of the configuration; `now`: the time; `had`: see edit_list."""

    def __init__(
        self,
        store: ListStore,
        lists: Mapping[str, ListSettings],
        *,
        now: Callable[[], datetime],
        failed: Callable[[Exception], None],
        had: KnownLists = tuple,
        waiting_max: int = WAITING_MAX,
    ) -> None:
        self._waiting_max = waiting_max
        self.lists = lists
        self._store, self._now, self._failed, self.had = store, now, failed, had
        self._waiting: deque[Waiting] = deque()
        self._came = asyncio.Event()
        self.transactions = 0
        """Transactions so far."""

    def put(
        self, what: str, entry: Entry, *, name: str, who: str, reason: str, done: Callable[[int | RowRefused], None]
    ) -> None:
        """Have a row written; `done` is called with the status of the answer. Raises Refused if too many wait."""
        if len(self._waiting) >= self._waiting_max:
            raise RowRefused(503, BUSY, "too many rows wait")
        self._waiting.append(Waiting(what, entry, name, who, reason, done))
        self._came.set()

    async def run(self) -> None:
        """Write what comes, until cancelled."""
        while True:
            await self._gather()
            try:
                await self._write(self._taken())
            except Exception as e:  # noqa: BLE001 - the outermost loop of this task: it says so, and goes on
                self._failed(e)

    async def _gather(self) -> None:
        """Wait until a transaction is to begin."""
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
        """The rows of the next transactions: of each entry one, so that they are independent of each other."""
        rows, later, seen = list[Waiting](), list[Waiting](), set[tuple[str, int, int, bool]]()
        while self._waiting and len(rows) < ROWS_MAX:
            row = self._waiting.popleft()
            key = row.name, *row.entry[1:]
            (later if key in seen else rows).append(row)
            seen.add(key)
        self._waiting.extendleft(reversed(later))
        return rows

    async def _write(self, rows: Sequence[Waiting]) -> None:
        together: dict[tuple[str, str, str, str], list[Waiting]] = {}
        for row in rows:
            together.setdefault((row.name, row.who, row.what, row.reason), []).append(row)
        for same in together.values():
            await self._one(same)

    async def _one(self, rows: Sequence[Waiting]) -> None:
        """One transaction: rows of one list and one sender that all add, or all remove."""
        name, who, what, reason = rows[0].name, rows[0].who, rows[0].what, rows[0].reason
        settings = self.lists.get(name)
        if settings is None:
            _refuse(rows, RowRefused(503, BUSY, f"the list {name} is configured no more"))
            return
        edit = Edit(what=what, entries=[row.entry for row in rows], reason=reason)
        try:
            changed = await edit_differences(edit, settings, self._store, who=who, now=self._now(), had=self.had)
        except EntryRefused as e:
            # The limits of a list are for each row: one that is past them keeps no other out.
            if len(rows) == 1:
                _refuse(rows, RowRefused(422, LIMIT, str(e)))
                return
            middle = len(rows) // 2
            await self._one(rows[:middle])
            await self._one(rows[middle:])
            return
        except StoreError as e:
            self._failed(e)
            _refuse(rows, RowRefused(503, STORE, "the store takes nothing at present: send the row again"))
            return
        except Exception:
            _refuse(rows, RowRefused(500, "fault", "the program failed over this row"))
            raise
        self.transactions += bool(changed)
        for row in rows:
            row.done(DONE[row.what, row.entry in changed])


def _refuse(rows: Sequence[Waiting], why: RowRefused) -> None:
    for row in rows:
        row.done(why)

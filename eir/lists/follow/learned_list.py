"""List that checks write, and whose rows merge, on one node.

A learned list is a list like any other (eir.lists.follow.log_follower). Each node writes the rows that the store lacks, as changes that
are computed from the stored content, in rounds. If the store has lost the list, each node appends the rows that it holds.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path

from eir.errors import Report, StoreError
from eir.lists.log.change import LEARN, Head
from eir.lists.log.reader import ChangeRows, LoggedList, empty_content
from eir.lists.log.store import LogStore
from eir.lists.log.writer import ListUpdate, ListWriter
from eir.lists.record.clock import STOOD_STILL, await_store
from eir.lists.table.table import Table, difference

ROUND_S, REST_TIMES, ROUND_MAX_S = 1.0, 20, 60.0
"""Minimum pause between two rounds in seconds; factor of the pause after a long round, to the duration of the round; maximum pause in seconds."""
WRITE_S = 120.0
"""Time limit for one write of the store in seconds."""
SAY_AGAIN_S = 60.0
FORGOTTEN_SHARE, FORGOTTEN_MIN = 20, 1000
"""Limit on unseen keys that are removed in a day: one key in FORGOTTEN_SHARE, but at least FORGOTTEN_MIN. So a clock that is years
ahead empties the list slowly enough to be noticed."""


class LearnedList:
    """List that checks write, on one node.

    Args:
        name: name of the list that each node writes.
        kind: kind of the list.
        store: store of all lists.
        path: file with the part of the list that the store lacks.
        who: name of this node in changes.
        report: logs events.
        held: returns the newest verified content of each list of this node.
    """

    def __init__(
        self, name: str, kind: str, store: LogStore, path: Path, *, who: str, report: Report, held: Callable[[], Mapping[str, LoggedList]],
    ) -> None:  # fmt: skip
        self.merging = name
        """Name of the list that each node writes. If the store has lost it, no node writes it back: each one appends the rows that the store lacks."""
        self.kinds: Mapping[str, str] = {name: kind}
        """Name and kind of each list to follow. The follower builds no image of them."""
        self.errors: Counter[str] = Counter()
        """Number of failures by cause."""
        self.changes: Counter[str] = Counter()
        """Number of added or removed keys by reason."""
        self._kind, self._store, self._path, self._who, self._report, self._held = kind, store, path, who, report, held
        self._writer = ListWriter(store, name, kind, who, now=self._now)
        self._lock = asyncio.Lock()
        self._told: dict[str, float] = {}

    async def open(self) -> None:
        """Read the file with the part that the store lacks. Call it before the follower starts."""

    async def start(self) -> None:
        """Put the list in force after the follower has started, before the node answers checks."""

    async def run(self) -> None:
        """Write sightings in rounds until the task is cancelled."""
        while True:
            began = time.monotonic()
            await self.round()
            await asyncio.sleep(min(max(ROUND_S, REST_TIMES * (time.monotonic() - began)), ROUND_MAX_S))

    async def round(self) -> None:
        """Write the rows that the store lacks. After a failure the next round tries again."""
        raise NotImplementedError

    async def note(
        self, name: str, before: LoggedList | None, content: LoggedList, changes: Sequence[ChangeRows]
    ) -> None:
        """Handle a new content of any list, before its copy is written. `changes`: all changes since `before`, or less."""

    async def append_to(self, held: LoggedList) -> LoggedList:
        """Append the held rows that the stored list `merging` lacks, and return the stored content after this."""
        async with self._lock:
            self._writer.content = empty_content(self._kind)
            await await_store(self._writer.write(partial(self._lacking, held)), WRITE_S)
            return self._writer.content

    def _lacking(self, held: LoggedList, content: LoggedList) -> ListUpdate | None:
        table = self._merged_with(content.table, held.table)
        if not any(map(len, difference(content.table, table))):
            return None
        return ListUpdate(
            what=LEARN, table=table, state={"registered": self._registered_after(held.head, content.head)},
            continues=held.head.digest, above=held.head.generation, detail="rows that the store had lost",
        )  # fmt: skip

    def _merged_with(self, table: Table, held: Table) -> Table:
        """Merge the held content into the stored one."""
        raise NotImplementedError

    def _registered_after(self, held: Head, stored: Head) -> tuple[str, ...]:
        """Return the field `registered` of the head after the held content was merged into the stored one."""
        raise NotImplementedError

    def _now(self) -> datetime:
        """Return the time of a change."""
        raise NotImplementedError

    def _content(self, name: str) -> LoggedList:
        return self._held().get(name) or empty_content(self._kind)

    async def _attempt(self, work: Awaitable[object]) -> bool:
        """Await a write of the store; report a failure, and return False."""
        try:
            await await_store(work, WRITE_S)
        except StoreError as error:
            self._failed(error.cause, error)
        except Exception as error:  # noqa: BLE001  # the outermost loop of this task
            self._failed("internal", error)
        else:
            return True
        return False

    def _failed(self, cause: str, error: Exception) -> None:
        if cause.endswith(STOOD_STILL):
            return
        self.errors[cause] += 1
        now = time.monotonic()
        if now - self._told.get(cause, -SAY_AGAIN_S) < SAY_AGAIN_S:
            return
        self._told[cause] = now
        event = "copy_failed" if cause.startswith("copy_") else "store_failed"
        detail = str(error) or type(error).__name__
        self._report(event, level="error", reason=cause, list=self.merging, detail=detail)

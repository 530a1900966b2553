"""Writer of local lists for other programs: writes a change, and verifies that the journal of this host has the change."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import TypeAlias

from eir.errors import EirError
from eir.lists.changes.local_rows import RowsEdit, write_edit
from eir.lists.log.change import Change, Head
from eir.lists.log.journal import JournalError
from eir.lists.log.store import LogStore
from eir.lists.log.writer import ComputedUpdate, ListWriter, Make
from eir.lists.record.settings import ListSettings

IsRecorded: TypeAlias = Callable[[str, str], Awaitable[bool]]
"""Function that waits until the journal of this host has the change of a list with this digest. It returns False if the journal lacks the change
after some seconds, and raises EirError if the follower does not run."""


class LocalWriter:
    """Writer of local lists. It keeps the content of each list, so that each change reads only later changes of others.

    Args:
        store: store of the lists.
        lists: configured lists.
        now: clock.
        is_recorded: function that waits until the journal of this host has a change.
        guard: function that raises StoreError (`lost`) if the store, which has this head of a list, has lost changes of the list that this
            host has.
    """

    def __init__(
        self, store: LogStore, lists: Mapping[str, ListSettings], *, now: Callable[[], datetime], is_recorded: IsRecorded,
        guard: Callable[[str, Head], None] = lambda _name, _stored: None,
    ) -> None:  # fmt: skip
        self.store, self.lists, self.now, self.is_recorded, self.guard = store, lists, now, is_recorded, guard
        self._writers: dict[tuple[str, str], ListWriter] = {}
        """Writer of each list, by its name and kind."""
        self._one = asyncio.Lock()
        """A writer computes and writes one change at a time."""

    async def write(
        self, edit: RowsEdit, settings: ListSettings, make: Make, *, dry_run: bool = False
    ) -> tuple[ComputedUpdate | None, Change | None, Head]:
        """Write a change of a list, as eir.lists.changes.local_rows.write_edit; return also the head of the list after the change."""
        writer = self._writer(settings)
        async with self._one:
            computed, made = await write_edit(edit, settings, writer, make, dry_run=dry_run)
            return computed, made, writer.content.head

    async def check_recorded(self, name: str, head: Head) -> None:
        """Wait until the journal of this host has the change that led to this head of a list.

        Raises:
            JournalError: if the journal lacks the change.
        """
        detail = "it lacks the change"
        try:
            if not head.generation or await self.is_recorded(name, head.digest):
                return
        except EirError as e:
            detail = str(e)
        raise JournalError(f"list {name}: stored, but not in the journal of this host: {detail}; see eir status")

    def _writer(self, settings: ListSettings) -> ListWriter:
        """Return the writer of a list."""
        key = settings.name, settings.kind
        if key not in self._writers:
            self._writers[key] = ListWriter(self.store, *key, "", keep=settings.keep, now=self.now)
        return self._writers[key]

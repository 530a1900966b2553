"""Earlier content of a list, as far as its log reaches back."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from eir.errors import StoreError
from eir.lists.log.change import Change, utc_text
from eir.lists.log.reader import LoggedList, oldest_readable, read_content, read_rows
from eir.lists.log.store import LogStore
from eir.lists.record.listed_entries import rows_between
from eir.lists.table.columns import NO_ROWS, SECONDS, TableRows, matches
from eir.lists.table.table import in_force

RESET = "reset-serial"


class PastContent(NamedTuple):
    """Content of a list at a past time, and the changes of the list since then."""

    change: Change | None
    """Newest change at that time; None if the list did not exist."""
    content: LoggedList | None
    """None if the list did not exist."""
    since: Sequence[Change]
    """Changes after that time, oldest first."""

    def rows_of(self, key: int, moment: datetime) -> TableRows:
        """Return the rows that listed a device, with its whole TAC, at a time. Rows that begin later are left out."""
        if self.content is None:
            return NO_ROWS
        return in_force(rows_between(self.content.table, key, key), int(moment.timestamp()))


async def read_past(store: LogStore, name: str, moment: datetime) -> PastContent:
    """Return the content of a list at a past time.

    Raises:
        StoreError: `gone` with the oldest time, if the log no longer reaches back to that time; as `read_content`.
    """
    head = (await store.heads()).get(name)
    if head is None:
        return PastContent(None, None, ())
    entries = await store.log(name, 0)
    changes = [entry.change for entry in entries if entry.change.what != RESET]
    at = utc_text(moment)
    before = [change for change in changes if change.time <= at]
    since = [change for change in changes if change.time > at]
    if not before and entries[0].change.generation == 1:
        return PastContent(None, None, since)
    oldest = await oldest_readable(store, name, entries)
    if not before or before[-1].generation < oldest:
        (time,) = [entry.change.time for entry in entries if entry.change.generation == oldest]
        raise StoreError("gone", f"list {name} at {at} is no longer stored; the oldest stored content is of {time}")
    return PastContent(before[-1], await read_content(store, name, head, before[-1].generation), since)


async def changes_of_rows(
    store: LogStore, name: str, wanted: TableRows, until: int | None = None
) -> dict[tuple[int, int], Change]:
    """Return for each row the newest change that added it, by its keys, as far as the log has the rows of its changes.

    `until`: generation of the last change that counts; None for all.

    Raises:
        StoreError: if the log cannot be read.
    """
    changes: dict[tuple[int, int], Change] = {}
    for entry in await store.log(name, 0):
        if (entry.rows is None and not entry.change.rows_id) or (until is not None and entry.change.generation > until):
            continue
        added, _ = (await read_rows(store, name, entry)).decoded(name)
        found = wanted.select(matches(wanted, added) >= 0)
        pairs = zip(found.keys.tolist(), found.column(SECONDS).tolist(), strict=True)
        changes |= dict.fromkeys(pairs, entry.change)
    return changes

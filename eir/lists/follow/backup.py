"""Backup of a store to one SQLite file with lists and history, verification of the file, and restore.

A restored list is never older than the one in the store or on the node, unless it is forced: followers keep what they have if a
store shows less (eir.lists.follow.copy). A record of first sightings is merged instead, so that no device loses its earliest day.
"""

import asyncio
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from eir.errors import StoreChanged, StoreError
from eir.lists.changes.import_days import import_days
from eir.lists.follow.copy import Relation, relation, verified_pages
from eir.lists.follow.history import rebuild_history, restore_history
from eir.lists.pages.content import as_corrupt
from eir.lists.pages.first_days import DAY_S, FirstDays, decode_days, join, periods
from eir.lists.record.dates import is_dates
from eir.lists.record.history import chain_faults, feed_faults
from eir.lists.record.settings import FIRST_SEEN
from eir.lists.record.store import (
    ACCEPTED,
    CHAINS,
    FEED,
    FORCED,
    MAIN,
    Event,
    Ledger,
    ListState,
    ListStore,
    Mark,
    Record,
    utc_text,
)
from eir.lists.stores.sqlite import SqliteStore

RESTORE = "restore"
"""Name of the event that a restore records."""
READ_AGAIN_MAX = 10
"""Times that a store is read again because it changed while it was read."""


@dataclass(frozen=True, slots=True)
class Restored:
    """Result of a restore for one list."""

    list: str
    serial: int
    entries: int
    is_written: bool
    """False if the store had it already."""


async def copy_store(store: ListStore, to: Path) -> None:
    """Copy all lists and the history of a store into a new SQLite file.

    Of a store in an SQLite file the copy also has the releases that a rollback could bring back. Raises StoreError.
    """
    if isinstance(store, SqliteStore):
        if not store.path.exists():
            raise StoreError("cannot_open", f"{store.path} does not exist; load a list first")
        await asyncio.to_thread(_vacuum, store.path, to)
        return
    for number in range(READ_AGAIN_MAX):
        copy = SqliteStore(to.with_name(f"{to.name}.{number}"))
        try:
            before = [await store.ledger(chain) for chain in CHAINS]
            for name, state in (await store.states()).items():
                await copy.restore(name, state, verified_pages(store, name, state), seen=0)
            for chain in CHAINS:
                folds = await store.folds() if chain == MAIN else ()
                await copy.rewrite_history(
                    store.records(chain=chain), folds, after=0, seen=await copy.ledger(chain), exact=True, chain=chain
                )
            is_level = before == [await store.ledger(chain) for chain in CHAINS]
        except StoreChanged:
            is_level = False
        finally:
            await copy.close()
        if is_level:
            await asyncio.to_thread(_vacuum, copy.path, to)
            return
    raise StoreChanged(f"the store changed {READ_AGAIN_MAX} times while it was read: try again")


async def verify_copy(path: Path) -> tuple[Mapping[str, ListState], Mapping[str, Ledger]]:
    """Verify the lists and history chains of a backup by their digests; return the list states and chain ledgers.

    Raises StoreError.
    """
    copy = SqliteStore(path, upgrades=False)
    try:
        states, ledgers = await copy.states(), {chain: await copy.ledger(chain) for chain in CHAINS}
        for name, state in states.items():
            async for _ in verified_pages(copy, name, state):
                pass
        main, fed = [await _all(copy, chain) for chain in CHAINS]
        faults = [
            *chain_faults(main, await copy.folds(), ledgers[MAIN]), *chain_faults(fed, (), ledgers[FEED]), *feed_faults(main, fed, ledgers[FEED]),
        ]  # fmt: skip
    finally:
        await copy.close()
    if faults:
        raise StoreError("corrupt", f"the history is damaged: {faults[0]}")
    return states, ledgers


async def behind(
    states: Mapping[str, ListState], stores: Mapping[str, ListStore | None], marks: Mapping[str, Mark]
) -> dict[str, str]:
    """Return the lists that a restore of these states would set back, each with the reason.

    `stores`: stores by their names for messages. `marks`: highest serials that were in force on this node. Raises
    StoreError.
    """
    found = {}
    for name, state in states.items():
        if state.kind == FIRST_SEEN:
            continue
        if marks.get(name, state.mark) > state.mark:
            found[name] = (
                f"serial {marks[name][1]} was in force on this node, and the backup's highest is {state.mark[1]}"
            )
        for called, store in stores.items():
            held = None if store is None else await store.state(name)
            if held is not None and relation(held, state) is Relation.LOST:
                found[name] = (
                    f"{called} has serial {held.serial} (generation {held.generation}), and the backup {state.serial} ({state.generation})"
                )
    return found


async def restore_store(
    backup: ListStore,
    store: ListStore,
    marks: Mapping[str, Mark],
    *,
    who: str,
    now: datetime,
    made: str,
    force: bool,
    registering: Sequence[str] = (),
) -> list[Restored]:
    """Restore lists from a backup to a store, after the history if that of the store is empty, damaged or cut off.

    `marks`: as for `behind`. `made`: time of the backup. `force`: also restore a list that is newer in the store or on
    nodes, as a change that nodes follow. `registering`: lists whose devices a merged record of first sightings omits.
    Raises StoreError.
    """
    _, left = await restore_history(store, backup, who, "a backup")
    if left:
        detail = f"{left}; rebuilt from its readable records"
        await rebuild_history(store, Event(time=utc_text(now), who=who, what="heal", outcome=ACCEPTED, detail=detail))
    restored = []
    for name, state in (await backup.states()).items():
        stored = await store.state(name)
        if stored is not None and relation(stored, state) is Relation.SAME:
            restored.append(Restored(name, state.serial, state.entries, is_written=False))
            continue
        if stored is not None and state.kind == FIRST_SEEN:
            days = await _read_days(backup, name, state, now)
            source = f"the backup of {made}"
            await import_days(days, name, store, registering=registering, source=source, who=who, now=now)
            restored.append(Restored(name, state.serial, state.entries, is_written=True))
            continue
        wanted = _above(state, stored, marks.get(name, state.mark)) if force else state
        detail = f"generation {wanted.generation} from the backup of {made}"
        event = Event(
            time=utc_text(now), who=who, what=RESTORE, list=name, serial=state.serial or None, digest=state.release_digest or None,
            outcome=FORCED if force else ACCEPTED, detail=detail,
        )  # fmt: skip
        seen = 0 if stored is None else stored.generation
        made_known = None if is_dates(name) else event
        await store.restore(name, wanted, verified_pages(backup, name, state), seen=seen, event=made_known)
        restored.append(Restored(name, state.serial, state.entries, is_written=True))
    return restored


async def _read_days(backup: ListStore, name: str, state: ListState, now: datetime) -> FirstDays:
    """Read a record of first sightings from a backup; its devices count as seen on the day of `now`.

    Raises:
        StoreError: if the record is damaged.
    """
    parts: list[FirstDays] = []
    async for pages in verified_pages(backup, name, state):
        with as_corrupt(name):
            parts.append(decode_days(pages))
    days = join(parts)
    return days._replace(lasts=periods(int(now.timestamp()) // DAY_S, days.keys))


def _above(state: ListState, stored: ListState | None, mark: Mark) -> ListState:
    """Return the state with a generation and a number of resets so high that every node follows it."""
    known = max(mark, NO_MARK if stored is None else stored.mark)
    generation = max(state.generation, 0 if stored is None else stored.generation + 1)
    resets = state.serial_resets if state.mark >= known else known[0] + 1
    return replace(state, generation=generation, serial_resets=resets)


NO_MARK: Mark = (0, 0)


def _vacuum(path: Path, to: Path) -> None:
    try:
        with closing(sqlite3.connect(path)) as db:
            db.execute("VACUUM INTO ?", (str(to),))
    except sqlite3.Error as error:
        raise StoreError("sqlite", f"{path} cannot be copied: {error}") from None


async def _all(store: ListStore, chain: str) -> Sequence[Record]:
    return [record async for batch in store.records(chain=chain) for record in batch]

"""Backup of a store (lists and history) in one SQLite file, verification of the file, and restore.

A restored list is never older than the list in the store or on the node, unless the restore is forced: followers keep their list if
the store has an older one (eir.lists.follow.copy). A record of first sightings is merged, so that no device loses its earliest day.
"""

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from eir.errors import StoreChanged, StoreError
from eir.lists.changes.import_days import import_days
from eir.lists.follow.copy import Relation, relation, verified_pages
from eir.lists.follow.history import read_records, rebuild_history, restore_history
from eir.lists.log.change import utc_text
from eir.lists.pages.content import as_corrupt
from eir.lists.pages.first_days import DAY_S, FirstDays, decode_days, join, periods
from eir.lists.record.dates import IMPORTED_DAYS, is_dates
from eir.lists.record.history import chain_faults, feed_faults
from eir.lists.record.settings import FIRST_SEEN
from eir.lists.record.store import (
    ACCEPTED,
    CHAINS,
    FEED,
    FORCED,
    MAIN,
    NO_LIST,
    Event,
    Ledger,
    ListState,
    ListStore,
    Mark,
)
from eir.lists.stores.records import FORM, VALUE_BYTES_MAX, check_form
from eir.lists.stores.sqlite import SqliteStore
from eir.lists.stores.sqlite.file import APPLICATION_ID, transaction
from eir.lists.stores.sqlite.writing import DB_PAGE_BYTES

RESTORE = "restore"
"""Name of the event that a restore records."""
READ_AGAIN_MAX = 10
"""Maximum number of reads of a store that changes while it is read."""
PAGES_MIN = 256
"""Pages of SQLite that a copy may always have: each table and each index has at least one."""
# Views, triggers, tables and indexes that this program does not create.
FOREIGN = (
    "SELECT type, name FROM source.sqlite_master WHERE (type, name) NOT IN (SELECT type, name FROM main.sqlite_master)"
)
# Stored columns of a table: name, type in lower case, 1 if a value is required, and default value.
COLUMNS = """
SELECT name, lower(type), "notnull" OR pk, dflt_value FROM pragma_table_xinfo(?, ?) WHERE hidden = 0 ORDER BY name
"""


@dataclass(frozen=True, slots=True)
class Restored:
    """Result of a restore for one list."""

    list: str
    serial: int
    entries: int
    is_written: bool
    """False if the store had the list already."""


async def copy_store(store: ListStore, to: Path) -> None:
    """Copy all lists and the history of a store into a new SQLite file.

    The copy of an SQLite store also has the releases that a rollback could restore.

    Raises:
        StoreError: if the store cannot be read, or changes all the time.
    """
    if isinstance(store, SqliteStore):
        if not store.path.exists():
            raise StoreError("cannot_open", f"{store.path} does not exist; load a list first")
        await copy_rows(store.path, to)
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
            copy.path.rename(to)
            return
    raise StoreChanged(f"the store changed {READ_AGAIN_MAX} times while it was read: try again")


async def copy_rows(source: Path, to: Path, *, is_ours: bool = True) -> None:
    """Copy the rows of a store's SQLite file into a new file with the schema of this program.

    Args:
        source: SQLite file, whose views, triggers and further tables are not copied.
        to: new file.
        is_ours: False for a file from a backup, in which a view, a trigger or a further table is an error.

    Raises:
        StoreError: if the file cannot be read, or was not written by this program.
    """
    copy = SqliteStore(to)
    try:
        await copy.file.call(_copy_rows, source, is_ours)
    except StoreError as error:
        reason = error.__cause__ or error
        raise StoreError(
            error.cause, f"the lists and the history in {source.name} cannot be copied: {reason}"
        ) from None
    finally:
        await copy.close()


def _copy_rows(db: sqlite3.Connection, source: Path, is_ours: bool) -> None:
    """Copy the rows of `source`, which may be hostile, into the empty tables of `db`.

    No expression of the source's schema is evaluated. The copy of a foreign file is limited to twice its size.
    """
    db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 2 * VALUE_BYTES_MAX)
    for setting in ("trusted_schema = OFF", "cell_size_check = ON", "journal_mode = OFF"):
        db.execute(f"PRAGMA {setting}")
    if not is_ours:  # our own file may have most of its rows in its write-ahead log
        db.execute(f"PRAGMA max_page_count = {PAGES_MIN + 2 * source.stat().st_size // DB_PAGE_BYTES}")
    db.execute("ATTACH DATABASE ? AS source", (str(source),))
    (form,) = db.execute("PRAGMA source.user_version").fetchone()
    if db.execute("PRAGMA source.application_id").fetchone() != (APPLICATION_ID,):
        raise StoreError("schema", "it was written by another program")
    check_form(source.name, form)
    foreign = None if is_ours else db.execute(FOREIGN).fetchone()
    if foreign is not None:
        raise StoreError("corrupt", "it has the {} {!r:.80}, which eir does not write".format(*foreign))
    tables = db.execute(
        "SELECT name FROM main.sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
    ).fetchall()
    with transaction(db):
        for (table,) in tables:
            columns = db.execute(COLUMNS, (table, "main")).fetchall()
            present = db.execute(COLUMNS, (table, "source")).fetchall()
            if not present and form < FORM:
                continue
            if present != columns:
                raise StoreError("corrupt", f"its table {table} is missing or has other columns")
            names = ", ".join(name for name, *_ in columns)
            db.execute(f"INSERT INTO main.{table} ({names}) SELECT {names} FROM source.{table} NOT INDEXED")  # noqa: S608  # names of our own
            wrong = " OR ".join(
                f"iif({name} IS NULL, {needed}, typeof({name}) <> '{kind}')" for name, kind, needed, _ in columns
            )
            if db.execute(f"SELECT 1 FROM main.{table} WHERE {wrong} LIMIT 1").fetchone():  # noqa: S608  # as above
                raise StoreError("corrupt", f"its table {table} has a value of another type")


async def verify_copy(path: Path) -> tuple[Mapping[str, ListState], Mapping[str, Ledger]]:
    """Verify the lists and history chains in a backup by their digests; return the list states and the ledgers (ends) of the chains.

    Raises:
        StoreError: if the backup is damaged or cannot be read.
    """
    copy = SqliteStore(path, upgrades=False)
    try:
        states, ledgers = await copy.states(), {chain: await copy.ledger(chain) for chain in CHAINS}
        for name, state in states.items():
            async for _ in verified_pages(copy, name, state):
                pass
        main = await read_records(copy, MAIN)
        fed = await read_records(copy, FEED)
        faults = [*chain_faults(main, await copy.folds(), ledgers[MAIN])]
        faults += chain_faults(fed, (), ledgers[FEED])
        faults += feed_faults(main, fed, ledgers[FEED])
    except (TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise StoreError("corrupt", f"a list or the history has an invalid value: {error}") from None
    finally:
        await copy.close()
    if faults:
        raise StoreError("corrupt", f"the history is damaged: {faults[0]}")
    return states, ledgers


async def behind(
    states: Mapping[str, ListState], stores: Mapping[str, ListStore | None], marks: Mapping[str, Mark]
) -> dict[str, str]:
    """Find the lists that would be replaced by an older version if the backup were restored; return the reason for each.

    Args:
        states: states of the lists in the backup.
        stores: stores by their names for messages.
        marks: highest marks that were in force on this node.

    Raises:
        StoreError: if a store cannot be read.
    """
    reasons: dict[str, str] = {}
    for name, state in states.items():
        if state.kind in {FIRST_SEEN, IMPORTED_DAYS}:
            continue
        if marks.get(name, state.mark) > state.mark:
            _, serial = marks[name]
            reasons[name] = f"serial {serial} was in force on this node, and the backup's highest is {state.mark[1]}"
        for store_name, store in stores.items():
            held = None if store is None else await store.state(name)
            if held is not None and relation(held, state) is Relation.LOST:
                newer = f"serial {held.serial} (generation {held.generation})"
                reasons[name] = f"{store_name} has {newer}, and the backup {state.serial} ({state.generation})"
    return reasons


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
    """Restore a backup to a store: first the history, if the history in the store is empty, damaged or cut off; then the lists.

    Args:
        backup: store in the backup.
        store: store to which lists are restored.
        marks: highest marks that were in force on this node.
        who: user for the history.
        now: time of the restore.
        made: time of the backup.
        force: also restore a list that is newer in the store or on nodes, as a change that nodes follow.
        registering: lists whose devices are left out of the merged record of first sightings.

    Raises:
        StoreError: if a store fails.
    """
    _, left = await restore_history(store, backup, who, "a backup")
    if left:
        detail = f"{left}; rebuilt from its readable records"
        await rebuild_history(store, Event(time=utc_text(now), who=who, what="heal", outcome=ACCEPTED, detail=detail))
    restored: list[Restored] = []
    for name, state in (await backup.states()).items():
        stored = await store.state(name)
        is_same = stored is not None and relation(stored, state) is Relation.SAME
        restored.append(Restored(name, state.serial, state.entries, is_written=not is_same))
        if is_same or (stored is not None and state.kind == IMPORTED_DAYS):
            continue  # the days of the last import in the store stay, so that an undo takes that import back
        if stored is not None and state.kind == FIRST_SEEN:
            days = await _read_days(backup, name, state, now)
            source = f"the backup of {made}"
            await import_days(days, name, store, registering=registering, source=source, who=who, now=now)
            continue
        wanted = _forced_state(state, stored, marks.get(name, state.mark)) if force else state
        detail = f"generation {wanted.generation} from the backup of {made}"
        event = Event(
            time=utc_text(now), who=who, what=RESTORE, list=name, serial=state.serial or None, digest=state.release_digest or None,
            outcome=FORCED if force else ACCEPTED, detail=detail,
        )  # fmt: skip
        seen = 0 if stored is None else stored.generation
        pages = verified_pages(backup, name, state)
        await store.restore(name, wanted, pages, seen=seen, event=None if is_dates(name) else event)
    return restored


async def _read_days(backup: ListStore, name: str, state: ListState, now: datetime) -> FirstDays:
    """Read the record of first sightings from a backup. The last sighting of each device is set to the day of `now`.

    Raises:
        StoreError: if the record is damaged.
    """
    parts: list[FirstDays] = []
    async for pages in verified_pages(backup, name, state):
        with as_corrupt(name):
            parts.append(decode_days(pages))
    days = join(parts)
    return days._replace(lasts=periods(int(now.timestamp()) // DAY_S, days.keys))


def _forced_state(state: ListState, stored: ListState | None, mark: Mark) -> ListState:
    """Return the state that a forced restore gives to a list, so that every node accepts the list as newer than its own version.

    Args:
        state: state of the list in the backup.
        stored: state of the list in the store; its generation becomes lower than that of the result.
        mark: highest mark that was in force on this node. If the backup's mark is lower than this mark or that of `stored`, the
            result counts one serial reset more than the higher of both.
    """
    present = stored or NO_LIST
    known = max(mark, present.mark)
    generation = max(state.generation, present.generation + 1)
    known_resets, _ = known
    resets = state.serial_resets if state.mark >= known else known_resets + 1
    return replace(state, generation=generation, serial_resets=resets)

"""Writer of lists in the SQLite file: fills page sets, puts them in force, and deletes unused ones."""

import json
import os
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np

from eir.errors import StoreError
from eir.lists.pages.pages import NUMBER_BITS, Page
from eir.lists.record.store import Event, ListState
from eir.lists.stores.records import VALUE_BYTES_MAX, decode_event, decode_state, encode, encode_numbers
from eir.lists.stores.sqlite.file import NUMBER_MASK, WAL_BYTES_MAX, checkpoint, transaction
from eir.lists.stores.sqlite.history import append
from eir.lists.stores.write import (
    SMALL_BYTES,
    Kept,
    RollbackRequest,
    Stored,
    Write,
    WriteRequest,
    check_generation,
    check_room,
    plan_rollback,
    plan_write,
    rollback_steps,
)

PORTION_PAGES, PORTION_BYTES = 40_000, 8 << 20
"""Maximum number of pages, and of bytes, in one transaction of a load, which holds the write lock for about 70 ms."""
SET_IDLE_S = 600
"""Seconds without a write after which a staged set may be deleted, because its load has died."""
RESERVE_BYTES = 2 * WAL_BYTES_MAX
"""Bytes that a load leaves free on the disk: WAL_BYTES_MAX for the write-ahead log, and as many for later writes."""
AMENDMENT_FACTOR = 2
"""Factor for the bytes of changed pages, because each is written to the write-ahead log and to the file."""
DB_PAGE_BYTES = 4096
"""Bytes of a page of SQLite."""
LEAF_BYTES = 4084
"""Bytes for rows in a page of SQLite."""
ROW_BYTES = 16
"""Bytes of a row without its content."""
CHANGES_MAX = 1_000
"""Maximum number of stored changes of each list."""

# A value that is longer than any record is read as empty.
READ_RECORD = """
SELECT generation, iif(length(state) > :most, '', state), page_set, iif(length(made) > :most, NULL, made) FROM lists WHERE name = :name
"""
READ_KEPT = """
SELECT generation, iif(length(state) > :most, '', state), page_set, whole, iif(length(made) > :most, NULL, made) FROM kept WHERE list = :name
ORDER BY generation DESC
"""
# Copy a page to its ID in the set of replaced pages; a page that does not exist is copied as an empty page.
KEEP = """
INSERT OR REPLACE INTO pages SELECT ?, coalesce(keys, x''), coalesce(extra, x'') FROM (SELECT 1) LEFT JOIN pages ON id = ?
"""
SIZES = """
SELECT length(keys) + length(extra) FROM pages
WHERE id IN (SELECT page_set << :bits | value FROM lists, json_each(:numbers) WHERE name = :name)
"""
DOOM = """
UPDATE sets SET doomed = 1
WHERE keep_until < ? AND NOT EXISTS (SELECT 1 FROM lists WHERE page_set = sets.id) AND NOT EXISTS (SELECT 1 FROM kept WHERE page_set = sets.id)
"""
DELETE_SOME = "DELETE FROM pages WHERE id IN (SELECT id FROM pages WHERE id BETWEEN ? AND ? LIMIT ?)"


def read_stored(db: sqlite3.Connection, name: str) -> Stored[int] | None:
    """Return the store's record of a list: the state in force, its set of pages, and the kept releases.

    Raises:
        StoreError: `corrupt`.
    """
    values = {"name": name, "most": VALUE_BYTES_MAX}
    row = db.execute(READ_RECORD, values).fetchone()
    if row is None:
        return None
    kept = []
    for generation, text, page_set, whole, made in db.execute(READ_KEPT, values):
        state = _decode_row(name, generation, text, page_set)
        kept.append(Kept(state, page_set, bool(whole), _decode_event(made)))
    generation, text, page_set, made = row
    return Stored(_decode_row(name, generation, text, page_set), page_set, tuple(kept), _decode_event(made))


def state_of(db: sqlite3.Connection, name: str) -> ListState | None:
    """Return a list's state in force; None if the list does not exist.

    Raises:
        StoreError: `corrupt`.
    """
    row = db.execute(READ_RECORD, {"name": name, "most": VALUE_BYTES_MAX}).fetchone()
    return None if row is None else _decode_row(name, *row[:3])


def _decode_row(name: str, generation: object, text: str, page_set: object) -> ListState:
    """Decode the state in a row of a list, and check the types of the row, because SQLite may store text as a number.

    Raises:
        StoreError: `corrupt`, if another program wrote the row.
    """
    state = decode_state(text)
    is_valid = type(generation) is int and generation == state.generation and type(page_set) is int
    if not is_valid:
        row_text = f"generation {generation!r:.50} and page_set {page_set!r:.50} beside a state of generation {state.generation}"
        raise StoreError("corrupt", f"list {name} has an invalid row: {row_text}")
    return state


def _decode_event(text: str | None) -> Event | None:
    return None if text is None else decode_event(text)


# Room


def make_room(db: sqlite3.Connection, name: str, pages: Sequence[Page], amends: bool) -> None:
    """Delete unused page sets; raise StoreError (`full`) if the disk then has no room for these pages."""
    sizes = [len(keys) + len(extra) for _, keys, extra in pages]
    if amends:
        numbers = json.dumps([page.number for page in pages])
        values = {"name": name, "numbers": numbers, "bits": NUMBER_BITS}
        sizes += (size for (size,) in db.execute(SIZES, values))
    needs = file_bytes(sizes)
    if amends:
        needs *= AMENDMENT_FACTOR
    if needs > SMALL_BYTES:
        _delete_unused_sets(db)
        check_disk(db, needs)


def file_bytes(sizes: Sequence[int]) -> int:
    """Estimate the bytes that rows with contents of these sizes need in the SQLite file (sqlite.org/fileformat2.html 1.6)."""
    row_bytes = np.array(sizes, np.int64) + ROW_BYTES
    share_of_leaf = DB_PAGE_BYTES / (LEAF_BYTES // row_bytes.clip(1, LEAF_BYTES))
    overflow_pages = (row_bytes // LEAF_BYTES + 1) * DB_PAGE_BYTES
    return int(np.where(row_bytes <= LEAF_BYTES, share_of_leaf, overflow_pages).sum())


def check_disk(db: sqlite3.Connection, needs: int, reserve: int = RESERVE_BYTES) -> None:
    """Raise StoreError (`full`) if a write needs more bytes than are free in the file and on the disk. `reserve`: bytes that stay free."""
    path = str(db.execute("PRAGMA database_list").fetchone()[2])
    folder = Path(path).parent
    disk = os.statvfs(folder)
    (unused_pages,) = db.execute("PRAGMA freelist_count").fetchone()
    free = int(unused_pages * DB_PAGE_BYTES + disk.f_bavail * disk.f_frsize)
    advice = f"make room on the disk of {folder}, then try again"
    check_room("full", path, advice, needs=needs, free=free, reserve=reserve)


# Staged sets and unused sets


def create_set(db: sqlite3.Connection, name: str, seen: int) -> int:
    """Create an empty page set for a new version of a list; return its ID. `seen`: generation that the writer has read."""
    _delete_unused_sets(db)
    with transaction(db):
        check_generation(name, read_stored(db, name), seen)
        return _insert_set(db)


def stage(db: sqlite3.Connection, page_set: int, pages: Sequence[Page]) -> None:
    """Add pages to a page set that is not in force yet.

    Raises:
        StoreError: `staging_lost`, if the set was deleted; `full`, if the reserve for later writes would shrink,
            because another writer used the room.
    """
    needs = file_bytes([len(keys) + len(extra) for _, keys, extra in pages])
    check_disk(db, needs, RESERVE_BYTES - WAL_BYTES_MAX)
    with transaction(db):
        _renew_set(db, page_set)
        _insert(db, page_set, pages)


def _renew_set(db: sqlite3.Connection, page_set: int) -> None:
    keep_until = time.time() + SET_IDLE_S
    update = db.execute("UPDATE sets SET keep_until = ? WHERE id = ? AND NOT doomed", (keep_until, page_set))
    if not update.rowcount:
        raise StoreError("staging_lost", "the loaded pages were deleted before the switch; load again")


def release_set(db: sqlite3.Connection, page_set: int) -> None:
    """Mark a page set as unused, so that a later load deletes it."""
    db.execute("UPDATE sets SET keep_until = 0 WHERE id = ?", (page_set,))


def discard_set(db: sqlite3.Connection, page_set: int) -> None:
    """Delete the page set of a failed load, so that its room on the disk is free at once."""
    checkpoint(db)  # on a full disk, the next transactions need the room of the write-ahead log
    release_set(db, page_set)
    _delete_unused_sets(db)
    checkpoint(db)


def _insert_set(db: sqlite3.Connection) -> int:
    keep_until = time.time() + SET_IDLE_S
    insert = db.execute("INSERT INTO sets (keep_until) VALUES (?)", (keep_until,))
    return int(insert.lastrowid or 0)


def _row_ids(page_set: int) -> tuple[int, int]:
    """Return the first and the last row ID that a page of the page set can have."""
    first = page_set << NUMBER_BITS
    return first, first | NUMBER_MASK


def _delete_unused_sets(db: sqlite3.Connection) -> None:
    """Delete all unused page sets with their pages, in several transactions."""
    with transaction(db):
        db.execute(DOOM, (time.time(),))
    for (page_set,) in db.execute("SELECT id FROM sets WHERE doomed").fetchall():
        deleted = PORTION_PAGES
        while deleted == PORTION_PAGES:
            with transaction(db):
                deleted = db.execute(DELETE_SOME, (*_row_ids(page_set), PORTION_PAGES)).rowcount
                if deleted < PORTION_PAGES:
                    db.execute("DELETE FROM sets WHERE id = ?", (page_set,))


def _insert(db: sqlite3.Connection, page_set: int, pages: Sequence[Page]) -> None:
    """Insert pages into a page set by one library call, which releases the interpreter's lock only once."""
    base = page_set << NUMBER_BITS
    rows = [(base | number, keys, extra) for number, keys, extra in pages if keys or extra]
    db.executemany("INSERT OR REPLACE INTO pages VALUES (?, ?, ?)", rows)


# The transaction that changes a list


def commit(
    db: sqlite3.Connection, name: str, seen: int, request: WriteRequest | RollbackRequest, staged_set: int | None
) -> ListState:
    """Apply a write request and append its event to the history in one transaction; return the new state.

    `staged_set`: set with the whole list; None if the request has only changed pages.
    """
    with transaction(db):
        stored = read_stored(db, name)
        check_generation(name, stored, seen)
        if isinstance(request, RollbackRequest):
            steps = rollback_steps(name, stored, request.to)
            pages = [[] if step.whole else _read_all(db, step.page_set) for step in steps]
            present = cast("Stored[int]", stored)  # rollback_steps raises if there is no record
            write = plan_rollback(present, steps, pages, request.event)
        elif staged_set is not None:
            _renew_set(db, staged_set)
            write = plan_write(stored, request, staged_set)
        else:
            replaced_set = _insert_set(db) if request.keep else 0  # 0: no page is kept
            write = plan_write(stored, request, replaced_set)
        _put_pages(db, write)
        _save_record(db, name, write.after)
        _log_change(db, name, write)
        append(db, write.event)
    return write.after.state


def _read_all(db: sqlite3.Connection, page_set: int) -> list[Page]:
    statement = "SELECT id & ?, keys, extra FROM pages WHERE id BETWEEN ? AND ?"
    rows = db.execute(statement, (NUMBER_MASK, *_row_ids(page_set)))
    return [Page(*row) for row in rows]


def _put_pages(db: sqlite3.Connection, write: Write[int]) -> None:
    """Replace pages in the page set in force; copy the replaced pages if a rollback needs them."""
    page_set = write.after.page_set
    base = page_set << NUMBER_BITS
    if write.replaced_set is not None:
        copy_base = write.replaced_set << NUMBER_BITS
        db.executemany(KEEP, ((copy_base | page.number, base | page.number) for page in write.pages))
    _insert(db, page_set, write.pages)
    removed = [(base | page.number,) for page in write.pages if page.is_empty]
    db.executemany("DELETE FROM pages WHERE id = ?", removed)
    for unused_set in write.unused_sets:
        release_set(db, unused_set)


def _save_record(db: sqlite3.Connection, name: str, record: Stored[int]) -> None:
    state = record.state
    row = (name, state.generation, encode(state), record.page_set, _text(record.made))
    db.execute("INSERT OR REPLACE INTO lists (name, generation, state, page_set, made) VALUES (?, ?, ?, ?, ?)", row)
    db.execute("DELETE FROM kept WHERE list = ?", (name,))
    for kept in record.kept:
        kept_row = (name, kept.state.generation, encode(kept.state), kept.page_set, kept.whole, _text(kept.made))
        db.execute("INSERT INTO kept VALUES (?, ?, ?, ?, ?, ?)", kept_row)


def _log_change(db: sqlite3.Connection, name: str, write: Write[int]) -> None:
    if write.clears_log:
        db.execute("DELETE FROM changes WHERE list = ?", (name,))
    change = write.change
    if change is not None:
        numbers = encode_numbers(change.pages)
        db.execute("INSERT OR REPLACE INTO changes VALUES (?, ?, ?, ?)", (name, change.before, change.after, numbers))
        db.execute("DELETE FROM changes WHERE list = ? AND after <= ?", (name, change.after - CHANGES_MAX))


def _text(made: Event | None) -> str | None:
    return None if made is None else encode(made)

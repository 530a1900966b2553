"""Writer of lists in the SQLite file: it fills sets of pages, puts them in force, and deletes unused sets."""

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
    Stored,
    Undo,
    Write,
    WriteRequest,
    check_generation,
    check_room,
    decide,
    decide_undo,
    rollback_steps,
)

PORTION_PAGES, PORTION_BYTES = 40_000, 8 << 20
"""Maximum number of pages and bytes of one transaction of a load, which holds the write lock for about 70 ms."""
SET_IDLE_S = 600
"""Seconds without a write after which a set that was being filled belongs to a load that died."""
RESERVE_BYTES = 2 * WAL_BYTES_MAX
"""Bytes that a load leaves free on the disk: for the write-ahead log, and the same again for later writes."""
AMENDED_TIMES = 2
"""Factor for the bytes of an amendment, which writes the old and the new pages, to the log and to the file."""
DB_PAGE_BYTES, LEAF_BYTES, ROW_BYTES = 4096, 4084, 16
"""Bytes of SQLite's page, its bytes for rows, and the bytes of a row besides its content."""
CHANGES_MAX = 1_000
"""Maximum number of stored changes of each list."""

# Values that are longer than any record are read as empty.
READ_RECORD = """
SELECT generation, iif(length(state) > :most, '', state), page_set, iif(length(made) > :most, NULL, made) FROM lists WHERE name = :name
"""
READ_KEPT = """
SELECT generation, iif(length(state) > :most, '', state), page_set, whole, iif(length(made) > :most, NULL, made) FROM kept WHERE list = :name
ORDER BY generation DESC
"""
# Copies a page to the id under which it is kept; a page that does not exist becomes one without keys.
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
    record = db.execute(READ_RECORD, values).fetchone()
    if record is None:
        return None
    kept = tuple(
        Kept(_state(name, *row), row[2], bool(whole), _event(by)) for *row, whole, by in db.execute(READ_KEPT, values)
    )
    *row, made = record
    return Stored(_state(name, *row), row[2], kept, _event(made))


def state_of(db: sqlite3.Connection, name: str) -> ListState | None:
    """Return the state of a list that is in force; None if the list does not exist.

    Raises:
        StoreError: `corrupt`.
    """
    row = db.execute(READ_RECORD, {"name": name, "most": VALUE_BYTES_MAX}).fetchone()
    return None if row is None else _state(name, *row[:3])


def _state(name: str, generation: object, text: str, page_set: object) -> ListState:
    """Decode the state in a row of a list, and check the types of the row.

    SQLite may return text for a number.

    Raises:
        StoreError: `corrupt`, for a row of another program.
    """
    state = decode_state(text)
    if type(generation) is not int or generation != state.generation or type(page_set) is not int:
        row_text = f"generation {generation!r:.50} and page_set {page_set!r:.50} beside a state of generation {state.generation}"
        raise StoreError("corrupt", f"list {name} has an invalid row: {row_text}")
    return state


def _event(text: str | None) -> Event | None:
    return None if text is None else decode_event(text)


# Room


def make_room(db: sqlite3.Connection, name: str, pages: Sequence[Page], amends: bool) -> None:
    """Delete unused sets, and raise StoreError (`full`) if the disk has still no room for these pages."""
    sizes = [len(keys) + len(extra) for _, keys, extra in pages]
    if amends:
        numbers = json.dumps([page.number for page in pages])
        sizes += (size for (size,) in db.execute(SIZES, {"name": name, "numbers": numbers, "bits": NUMBER_BITS}))
    needs = file_bytes(sizes) * (AMENDED_TIMES if amends else 1)
    if needs > SMALL_BYTES:
        _collect(db)
        check_room("full", *_room_advice(db), needs=needs, free=_free(db), reserve=RESERVE_BYTES)


def file_bytes(sizes: Sequence[int]) -> int:
    """Estimate the bytes that rows with these content sizes need in the file (sqlite.org/fileformat2.html 1.6)."""
    rows = np.array(sizes, np.int64) + ROW_BYTES
    in_leaf = DB_PAGE_BYTES / (LEAF_BYTES // rows.clip(1, LEAF_BYTES))
    return int(np.where(rows <= LEAF_BYTES, in_leaf, (rows // LEAF_BYTES + 1) * DB_PAGE_BYTES).sum())


def _room_advice(db: sqlite3.Connection) -> tuple[str, str]:
    """Return the path of the file and advice about a full disk, for an error message."""
    return _path(db), f"make room on the disk of {Path(_path(db)).parent}, then try again"


def _path(db: sqlite3.Connection) -> str:
    return str(db.execute("PRAGMA database_list").fetchone()[2])


def _free(db: sqlite3.Connection) -> int:
    """Return the number of unused bytes in the file plus the free bytes of the disk."""
    disk = os.statvfs(Path(_path(db)).parent)
    (unused,) = db.execute("PRAGMA freelist_count").fetchone()
    return int(unused * DB_PAGE_BYTES + disk.f_bavail * disk.f_frsize)


# Staged sets and unused sets


def begin_set(db: sqlite3.Connection, name: str, seen: int) -> int:
    """Create an empty set of pages for a list that is at generation `seen`; return the ID of the set."""
    _collect(db)
    with transaction(db):
        check_generation(name, read_stored(db, name), seen)
        return _new_set(db)


def fill(db: sqlite3.Connection, page_set: int, pages: Sequence[Page]) -> None:
    """Add pages to a staged set, which a load is filling.

    Raises:
        StoreError: `staging_lost`, if the set was deleted; `full`, if another writer used the room and the reserve
            would shrink.
    """
    needs = file_bytes([len(keys) + len(extra) for _, keys, extra in pages])
    check_room("full", *_room_advice(db), needs=needs, free=_free(db), reserve=RESERVE_BYTES - WAL_BYTES_MAX)
    with transaction(db):
        _renew_set(db, page_set)
        _insert(db, page_set, pages)


def _renew_set(db: sqlite3.Connection, page_set: int) -> None:
    values = (time.time() + SET_IDLE_S, page_set)
    if not db.execute("UPDATE sets SET keep_until = ? WHERE id = ? AND NOT doomed", values).rowcount:
        raise StoreError("staging_lost", "the loaded pages were deleted before the switch; load again")


def release_set(db: sqlite3.Connection, page_set: int) -> None:
    """Release a set of pages, so that it is deleted unless a list uses it."""
    db.execute("UPDATE sets SET keep_until = 0 WHERE id = ?", (page_set,))


def discard_set(db: sqlite3.Connection, page_set: int) -> None:
    """Delete the set of a failed load, so that its room is free at once."""
    checkpoint(db)  # on a full disk: frees the room of the log, which can then be overwritten
    release_set(db, page_set)
    _collect(db)
    checkpoint(db)


def _new_set(db: sqlite3.Connection) -> int:
    return int(db.execute("INSERT INTO sets (keep_until) VALUES (?)", (time.time() + SET_IDLE_S,)).lastrowid or 0)


def _ids(page_set: int) -> tuple[int, int]:
    """Return the first and the last possible row ID of the pages in a set."""
    return page_set << NUMBER_BITS, page_set << NUMBER_BITS | NUMBER_MASK


def _collect(db: sqlite3.Connection) -> None:
    """Delete the pages of all unused sets, in portions of one transaction each."""
    with transaction(db):
        db.execute(DOOM, (time.time(),))
    for (page_set,) in db.execute("SELECT id FROM sets WHERE doomed").fetchall():
        gone = PORTION_PAGES
        while gone == PORTION_PAGES:
            with transaction(db):
                gone = db.execute(DELETE_SOME, (*_ids(page_set), PORTION_PAGES)).rowcount
                if gone < PORTION_PAGES:
                    db.execute("DELETE FROM sets WHERE id = ?", (page_set,))


def _insert(db: sqlite3.Connection, page_set: int, pages: Sequence[Page]) -> None:
    """Insert pages into a set with one call of the library, which releases the interpreter's lock only once."""
    base = page_set << NUMBER_BITS
    rows = [(base | number, keys, extra) for number, keys, extra in pages if keys or extra]
    db.executemany("INSERT OR REPLACE INTO pages VALUES (?, ?, ?)", rows)


# The transaction that changes a list


def commit(db: sqlite3.Connection, name: str, seen: int, request: WriteRequest | Undo, staged: int | None) -> ListState:
    """Put the list content of a request in force and append its event, in one transaction; return the new state.

    `staged`: set with the whole list; None if the request has only changed pages.
    """
    with transaction(db):
        before = read_stored(db, name)
        check_generation(name, before, seen)
        if isinstance(request, Undo):
            steps = rollback_steps(name, before, request.to)
            pages = [[] if step.whole else _pages(db, step.page_set) for step in steps]
            # rollback_steps raises if there is no record.
            write = decide_undo(cast("Stored[int]", before), steps, pages, request.event)
        elif staged is not None:
            _renew_set(db, staged)
            write = decide(before, request, staged)
        else:
            write = decide(before, request, _new_set(db) if request.keep else 0)  # 0: no set is needed
        _apply(db, name, write)
        append(db, write.event)
    return write.after.state


def _pages(db: sqlite3.Connection, page_set: int) -> list[Page]:
    rows = db.execute("SELECT id & ?, keys, extra FROM pages WHERE id BETWEEN ? AND ?", (NUMBER_MASK, *_ids(page_set)))
    return [Page(*row) for row in rows]


def _apply(db: sqlite3.Connection, name: str, write: Write[int]) -> None:
    after, change = write.after, write.change
    base = after.page_set << NUMBER_BITS
    if write.aside is not None:
        db.executemany(KEEP, ((write.aside << NUMBER_BITS | page.number, base | page.number) for page in write.put))
    _insert(db, after.page_set, write.put)
    db.executemany("DELETE FROM pages WHERE id = ?", ((base | page.number,) for page in write.put if page.is_empty))
    for each in write.dropped:
        release_set(db, each)
    row = (name, after.state.generation, encode(after.state), after.page_set, _text(after.made))
    db.execute("INSERT OR REPLACE INTO lists (name, generation, state, page_set, made) VALUES (?, ?, ?, ?, ?)", row)
    db.execute("DELETE FROM kept WHERE list = ?", (name,))
    db.executemany("INSERT INTO kept VALUES (?, ?, ?, ?, ?, ?)", (
        (name, kept.state.generation, encode(kept.state), kept.page_set, kept.whole, _text(kept.made)) for kept in after.kept
    ))  # fmt: skip
    if write.new_log:
        db.execute("DELETE FROM changes WHERE list = ?", (name,))
    if change is not None:
        numbers = encode_numbers(change.pages)
        db.execute("INSERT OR REPLACE INTO changes VALUES (?, ?, ?, ?)", (name, change.before, change.after, numbers))
        db.execute("DELETE FROM changes WHERE list = ? AND after <= ?", (name, change.after - CHANGES_MAX))


def _text(made: Event | None) -> str | None:
    return None if made is None else encode(made)

"""The embedded store: one SQLite file in the state folder, for all processes of one host. Imports only eir.lists and errors.

Every operation runs in a thread of the store's own, so a slow disk or a lock never holds the event loop. sqlite3 gives up
the interpreter's lock for each row that it steps to, and with a busy loop beside it getting that lock back costs
milliseconds; so pages are read some hundreds at a time as one row of text, which SQL gathers without the lock, and taken
apart on the loop, where whoever reads them counts that time.

A release is written to a set of its own in several transactions and put in force by one small one, so that nobody waits
long for the write lock; a set that nobody finished is collected by a later load. Readers take a batch a transaction and
compare generations: none holds the write-ahead log back while a list is read.
"""

import asyncio
import dataclasses
import json
import os
import sqlite3
import struct
import threading
import time
from array import array
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Concatenate, NamedTuple, ParamSpec, TypeVar

from eir.errors import GenerationConflict, NothingToRollBack, StoreChanged, StoreError
from eir.lists.pages import Page
from eir.lists.store import HISTORY_MAX, Change, Event, ListState, Outcome
from eir.stores.records import decode_state, encode

P = ParamSpec("P")
T = TypeVar("T")

BUSY_TIMEOUT_S = 10.0
"""How long a write waits for another process's transaction; a load's own take some ten milliseconds each."""
BUSY_RETRY_S = 0.01
POLL_S = 0.1
"""Between looks at the generations in `wait`: a look costs some 100 µs."""
FOLDER_MODE, FILE_MODE = 0o750, 0o640

APPLICATION_ID = 0x45495230  # "EIR0", so that `file` and a wrong path tell
SCHEMA_VERSION = 1

NUMBER_BITS = 37
"""Page numbers stay below 2^37; the row id of a page is its set's id and its number."""
NUMBER_MASK = (1 << NUMBER_BITS) - 1

PORTION_PAGES, PORTION_BYTES = 40_000, 8 << 20
"""What one transaction of a load writes at most: it holds the write lock for about 70 ms."""
PORTION_PAUSE_S = 0.005
"""Between them, so that another process gets the write lock in the middle of a load."""
WRITE_PAGES_MAX = 512
"""What one statement writes at most."""
READ_PAGES_MAX, READ_BYTES = 512, 1 << 16
"""What one statement reads at most."""
NICE = 15
"""Of the thread that reads and writes; it holds the interpreter's lock for some microseconds at a time only."""
GENTLY = 8
"""One that is to be gentle reads so many times less, so that the processor and the interpreter are soon free again."""
SET_IDLE_S = 600
"""A set that is being filled and was not touched for so long belongs to a load that died."""
CHANGES_MAX = 1_000
"""Steps that are kept for each list."""
CHANGE_PAGES_MAX = 1 << 16
"""A step that touched more pages is kept as one that replaced all."""
WAL_BYTES_MAX = 16 << 20
"""What the write-ahead log is cut to when it starts over."""

SCHEMA = f"""
CREATE TABLE lists (
    name TEXT PRIMARY KEY, generation INTEGER NOT NULL, state TEXT NOT NULL, page_set INTEGER NOT NULL,
    before TEXT,            -- state before the last release; NULL: nothing to roll back
    before_set INTEGER,     -- its pages: all of them, or those that the last release touched (empty keys: there was none)
    before_whole INTEGER);
CREATE TABLE sets (
    id INTEGER PRIMARY KEY AUTOINCREMENT, page_count INTEGER NOT NULL DEFAULT 0,
    keep_until REAL NOT NULL,               -- for a set that no list points to: Unix seconds
    doomed INTEGER NOT NULL DEFAULT 0       -- 1: its pages are being deleted
);
CREATE TABLE pages (
    id INTEGER PRIMARY KEY, -- set << {NUMBER_BITS} | number
    keys BLOB NOT NULL, extra BLOB NOT NULL);
CREATE TABLE changes (
    list TEXT NOT NULL, before INTEGER NOT NULL, after INTEGER NOT NULL,
    pages BLOB,             -- numbers, 8 bytes each; NULL: all
    PRIMARY KEY (list, after)) WITHOUT ROWID;
CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT, time TEXT NOT NULL, who TEXT NOT NULL, what TEXT NOT NULL, list TEXT,
    serial INTEGER, digest TEXT, outcome TEXT NOT NULL, detail TEXT NOT NULL);
CREATE INDEX events_of_list ON events (list, id);
CREATE TABLE outcomes (list TEXT, outcome TEXT NOT NULL, count INTEGER NOT NULL, last TEXT NOT NULL);
CREATE UNIQUE INDEX outcomes_of_list ON outcomes (coalesce(list, ''), outcome);
CREATE TABLE claims (what TEXT PRIMARY KEY, who TEXT NOT NULL, until REAL NOT NULL);
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
"""

# Many pages as one text: for each its number (16 digits), two lengths (8 digits each), keys and extra, all hexadecimal.
GATHER = "group_concat(printf('%016X%08X%08X', id & :mask, length(keys), length(extra)) || hex(keys) || hex(extra), '')"
HEAD = struct.Struct(">QII")
HEAD_BYTES = HEAD.size

READ_BATCH = f"""
SELECT generation, state, (SELECT {GATHER} FROM (
    SELECT id, keys, extra FROM pages
    WHERE id BETWEEN (lists.page_set << :bits | :first) AND (lists.page_set << :bits | :mask) ORDER BY id LIMIT :count))
FROM lists WHERE name = :name
"""  # noqa: S608  # both parts are constants of this module
READ_SOME = f"""
SELECT {GATHER} FROM pages WHERE id IN (SELECT :set << :bits | value FROM json_each(:numbers))
"""  # noqa: S608  # as above
# Pages out of one blob, and a table of where each is: id, start and length of keys, start and length of extra.
SCATTER = """
INSERT OR REPLACE INTO pages
SELECT json_extract(value, '$[0]'), substr(?1, json_extract(value, '$[1]'), json_extract(value, '$[2]')),
    substr(?1, json_extract(value, '$[3]'), json_extract(value, '$[4]'))
FROM json_each(?2)
"""
BOUND = {"bits": NUMBER_BITS, "mask": NUMBER_MASK}

CAUSES = {
    sqlite3.SQLITE_BUSY: "busy",
    sqlite3.SQLITE_LOCKED: "busy",
    sqlite3.SQLITE_FULL: "full",
    sqlite3.SQLITE_CORRUPT: "corrupt",
    sqlite3.SQLITE_NOTADB: "corrupt",
    sqlite3.SQLITE_IOERR: "io",
    sqlite3.SQLITE_READONLY: "readonly",
    sqlite3.SQLITE_PERM: "readonly",
    sqlite3.SQLITE_CANTOPEN: "cannot_open",
}
REOPEN = frozenset({"corrupt", "io", "cannot_open", "readonly"})
"""After these the connection is of no more use."""
NO_ROOM = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN})
"""What SQLite says where a disk is full and the file cannot be opened: even a reader makes a file of shared memory beside it."""
STILL_S = 1.0
"""How long a file that was opened without one is read as it is; then it is opened anew."""


class _Row(NamedTuple):
    """A list as its table has it."""

    state: ListState
    page_set: int
    before: str | None
    before_set: int | None
    before_whole: int | None


class SqliteStore:
    """Implements eir.lists.store.ListStore over one file, which is made if it is not there.

    The file is opened by the first operation and again after a fault, or when another file has taken its place.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._db: sqlite3.Connection | None = None
        self._still: tuple[float, str] | None = None
        """Where it could be opened for reading only: until when (time.monotonic), and why."""
        self._inode: tuple[int, int] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sqlite", initializer=_step_back)

    # The contract, on the loop

    async def state(self, name: str) -> ListState | None:
        """The state in force, from one row."""
        return await self._call(_state, name)

    async def previous(self, name: str) -> ListState | None:
        """From the same row."""
        return await self._call(_previous, name)

    async def states(self) -> Mapping[str, ListState]:
        """All states."""
        return await self._call(_states)

    async def replace(self, name: str, state: ListState, pages: Sequence[Page], *, seen: int) -> ListState:
        """Staged in a set of its own, then put in force by one small transaction."""
        page_set = await self._stage(name, seen, _as_batches(pages))
        return await self._finish(page_set, _replace, name, state, page_set, seen)

    async def amend(self, name: str, state: ListState, pages: Sequence[Page], *, seen: int) -> ListState:
        """One transaction; the touched pages as they were go to a set of their own."""
        return await self._call(_amend, name, state, pages, seen)

    async def rollback(self, name: str, *, seen: int) -> ListState:
        """One transaction: points back to the set before, or puts the touched pages back."""
        return await self._call(_roll_back, name, seen)

    async def restore(
        self, name: str, state: ListState, batches: AsyncIterable[Sequence[Page]], *, seen: int, whole: bool = True
    ) -> None:
        """As `replace` (whole) or `amend`, with the state as given and nothing kept."""
        if whole:
            page_set = await self._stage(name, seen, batches)
            await self._finish(page_set, _restore, name, state, page_set, seen)
        else:
            pages = [page async for batch in batches for page in batch]
            await self._call(_restore_pages, name, state, pages, seen)

    async def pages(self, name: str, *, gently: bool = False) -> AsyncIterator[tuple[ListState, Sequence[Page]]]:
        """Each batch is one statement, and the next one is read while the caller uses this one."""
        generation, state = 0, None
        first, count = 0, 16
        part = GENTLY if gently else 1
        ahead = self._submit(_read_batch, name, first, count)
        try:
            while True:
                found = await asyncio.wrap_future(ahead)
                if found is None and state is None:
                    return
                if found is None or (state is not None and found[0] != generation):
                    raise StoreChanged(f"list {name} changed while its pages were read")
                if state is None:
                    generation, state = found[0], decode_state(found[1])
                batch = _decode_batch(found[2])
                last = len(batch) < count
                if not last:
                    # The next batch is read while this one is used; how much is judged by the size of this one.
                    size = len(found[2] or "") // (2 * count)
                    first, count = batch[-1].number + 1, min(max(READ_BYTES // part // (size + 1), 1), READ_PAGES_MAX // part)
                    ahead = self._submit(_read_batch, name, first, count)
                yield state, batch
                if last:
                    return
        finally:
            ahead.cancel()

    async def some_pages(self, name: str, numbers: Sequence[int]) -> tuple[ListState | None, Sequence[Page]]:
        """One read transaction."""
        state, texts = await self._call(_read_some, name, numbers)
        return state, [page for text in texts for page in _decode_batch(text)]

    async def changes(self, name: str, after: int) -> Sequence[Change] | None:
        """The last CHANGES_MAX steps are kept."""
        return await self._call(_changes, name, after)

    async def wait(self, seen: Mapping[str, int], timeout_s: float) -> None:
        """Looks each POLL_S: SQLite tells nobody of a commit."""
        end = time.monotonic() + timeout_s
        while (left := end - time.monotonic()) > 0:
            generations = await self._call(_generations)
            if any(generations.get(name, 0) != generation for name, generation in seen.items()):
                return
            await asyncio.sleep(min(POLL_S, left))

    async def claim(self, what: str, who: str, ttl_s: float) -> bool:
        """A row with an end by this host's clock."""
        return await self._call(_claim, what, who, ttl_s)

    async def record(self, event: Event) -> None:
        """One transaction; durable when it returns."""
        await self._call(_record, event)

    async def history(self, name: str | None = None, limit: int = HISTORY_MAX) -> Sequence[Event]:
        """From the table of events."""
        return await self._call(_history, name, limit)

    async def outcomes(self) -> Sequence[Outcome]:
        """From a table of counts."""
        return await self._call(_outcomes)

    async def close(self) -> None:
        """Close the file once what was begun is done."""
        await asyncio.wrap_future(self._thread.submit(self._disconnect))
        self._thread.shutdown(wait=False)

    # Between the loop and the thread

    def _submit(
        self, operation: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> "Future[T]":
        return self._thread.submit(lambda: self._run(operation, *args, **kwargs))

    async def _call(
        self, operation: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        return await asyncio.wrap_future(self._submit(operation, *args, **kwargs))

    def _run(
        self, operation: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """In the thread: the operation on an open connection, with sqlite3's errors as StoreError."""
        try:
            return operation(self._connection(), *args, **kwargs)
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0)
            cause, still = CAUSES.get(code & 0xFF, "error"), self._still
            if cause in REOPEN:
                self._disconnect()
            if cause == "readonly" and still is not None:
                raise StoreError("full", f"{self.path}: {still[1]}; it can be read, and not be written") from error
            raise StoreError(cause, f"{self.path}: {error}") from error
        except OSError as error:
            raise StoreError("cannot_open", f"{self.path}: {error.strerror}") from error

    async def _stage(self, name: str, seen: int, batches: AsyncIterable[Sequence[Page]]) -> int:
        """Write pages to a new set and return its id."""
        page_set = await self._call(_begin_set, name, seen)
        try:
            async for batch in batches:
                for portion in _portions(batch):
                    await self._call(_fill, page_set, portion)
                    await asyncio.sleep(PORTION_PAUSE_S)
        except BaseException:
            self._submit(_give_up, page_set)
            raise
        return page_set

    async def _finish(
        self, page_set: int, operation: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Put a staged set in force; a set that is not in force after a failure is given up."""
        try:
            result = await self._call(operation, *args, **kwargs)
        except BaseException:
            self._submit(_give_up, page_set)
            raise
        await self._call(_checkpoint)
        return result

    # In the thread

    def _connection(self) -> sqlite3.Connection:
        if self._db is not None:
            with suppress(FileNotFoundError):
                found = self.path.stat()
                if (found.st_dev, found.st_ino) == self._inode and (self._still is None or time.monotonic() < self._still[0]):
                    return self._db
            self._disconnect()
        self.path.parent.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        # SQLite gives its side files the mode of the file, and would give that the umask's.
        with suppress(FileExistsError):
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
            os.fchmod(descriptor, FILE_MODE)
            os.close(descriptor)
        try:
            db = _opened(self.path)
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF not in NO_ROOM:
                raise
            db = _opened_still(self.path, error)
            self._still = time.monotonic() + STILL_S, str(error)
        found = self.path.stat()
        self._db, self._inode = db, (found.st_dev, found.st_ino)
        return db

    def _disconnect(self) -> None:
        db, self._db, self._still = self._db, None, None
        if db is not None:
            db.close()


def _opened(path: Path) -> sqlite3.Connection:
    # One thread at a time uses it: the store's own, and on closing whichever closes.
    db = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    try:
        _prepare(db, path)
    except BaseException:
        db.close()
        raise
    return db


def _opened_still(path: Path, why: sqlite3.Error) -> sqlite3.Connection:
    """As it is on the disk, without lock, shared memory and what the write-ahead log may have on top; raises `why` if it is empty.

    A node that starts on a full disk has its lists from it. Nobody writes meanwhile: whoever has it open to write made the
    shared memory, with which it opens as always. What a killed process left half done shows in the digests.
    """
    db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True, isolation_level=None, check_same_thread=False)
    try:
        version = _version(db, path)
    except BaseException:
        db.close()
        raise
    if not version:
        db.close()
        raise why
    return db


def _version(db: sqlite3.Connection, path: Path) -> int:
    """The file's schema, 0 for one that is empty. Raises StoreError for a file that is not ours, or of a newer eir."""
    version = _scalar(db, "PRAGMA user_version")
    if version > SCHEMA_VERSION:
        raise StoreError(
            "schema", f"{path} was written by a newer eir (schema {version}, this one knows {SCHEMA_VERSION}): upgrade eir"
        )
    application = _scalar(db, "PRAGMA application_id")
    if application not in {0, APPLICATION_ID} or (version and not application):
        raise StoreError("schema", f"{path} is an SQLite file of another program")
    return version


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    version = _version(db, path)
    _use_wal(db)
    # A release that was reported as accepted survives a power cut, and with it the serial below which none is taken.
    db.execute("PRAGMA synchronous = FULL")
    db.execute(f"PRAGMA journal_size_limit = {WAL_BYTES_MAX}")
    if not version:
        with _write(db):
            if not _scalar(db, "PRAGMA user_version"):  # another process may have been faster
                for statement in SCHEMA.split(";\n"):
                    db.execute(statement)


def _use_wal(db: sqlite3.Connection) -> None:
    """Where several processes make the file at once, SQLite calls this change busy without waiting; so it is waited here."""
    end = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
            time.sleep(BUSY_RETRY_S)
        else:
            return


@contextmanager
def _write(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            with suppress(sqlite3.Error):
                db.execute("ROLLBACK")
        raise


@contextmanager
def _snapshot(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN")
    try:
        yield
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


def _scalar(db: sqlite3.Connection, statement: str, *args: object) -> int:
    (value,) = db.execute(statement, args).fetchone()
    return int(value or 0)


async def _as_batches(pages: Sequence[Page]) -> AsyncIterator[Sequence[Page]]:
    yield pages


def _portions(pages: Sequence[Page]) -> Iterator[Sequence[Page]]:
    start = size = 0
    for at, page in enumerate(pages):
        if at > start and (size >= PORTION_BYTES or at - start >= PORTION_PAGES):
            yield pages[start:at]
            start, size = at, 0
        size += len(page.keys) + len(page.extra)
    if start < len(pages):
        yield pages[start:]


def _decode_batch(text: str | None) -> list[Page]:
    if not text:
        return []
    data = bytes.fromhex(text)
    pages, at, end = [], 0, len(data)
    while at < end:
        number, keys, extra = HEAD.unpack_from(data, at)
        at += HEAD_BYTES
        middle = at + keys
        pages.append(Page(number, data[at:middle], data[middle : middle + extra]))
        at = middle + extra
    return pages


# Reading


def _row(db: sqlite3.Connection, name: str) -> _Row | None:
    found = db.execute(
        "SELECT state, page_set, before, before_set, before_whole FROM lists WHERE name = ?", (name,)
    ).fetchone()
    return None if found is None else _Row(decode_state(found[0]), *found[1:])


def _state(db: sqlite3.Connection, name: str) -> ListState | None:
    row = _row(db, name)
    return None if row is None else row.state


def _previous(db: sqlite3.Connection, name: str) -> ListState | None:
    row = _row(db, name)
    return None if row is None or row.before is None or row.before_set is None else decode_state(row.before)


def _states(db: sqlite3.Connection) -> dict[str, ListState]:
    return {name: decode_state(state) for name, state in db.execute("SELECT name, state FROM lists ORDER BY name")}


def _generations(db: sqlite3.Connection) -> dict[str, int]:
    return dict(db.execute("SELECT name, generation FROM lists").fetchall())


def _step_back() -> None:
    """Have the thread wait for its turn of the processor: on a machine of one core it would push aside who answers checks."""
    thread = threading.get_native_id()
    with suppress(OSError):  # a sandbox that forbids it
        os.sched_setscheduler(thread, os.SCHED_BATCH, os.sched_param(0))
        os.setpriority(os.PRIO_PROCESS, thread, NICE)


def _read_batch(db: sqlite3.Connection, name: str, first: int, count: int) -> tuple[int, str, str | None] | None:
    """Generation, state and some pages, as of one moment since it is one statement."""
    found: tuple[int, str, str | None] | None = db.execute(
        READ_BATCH, {"name": name, "first": first, "count": count, **BOUND}
    ).fetchone()
    return found


def _read_some(db: sqlite3.Connection, name: str, numbers: Sequence[int]) -> tuple[ListState | None, list[str | None]]:
    with _snapshot(db):
        row = _row(db, name)
        if row is None:
            return None, []
        wanted = sorted(set(numbers))
        texts = []
        for at in range(0, len(wanted), READ_PAGES_MAX):
            part = str(wanted[at : at + READ_PAGES_MAX])
            texts.append(db.execute(READ_SOME, {"set": row.page_set, "numbers": part, **BOUND}).fetchone()[0])
        return row.state, texts


def _changes(db: sqlite3.Connection, name: str, after: int) -> Sequence[Change] | None:
    with _snapshot(db):
        state = _state(db, name)
        rows = db.execute(
            "SELECT before, after, pages FROM changes WHERE list = ? AND after > ? ORDER BY after", (name, after)
        ).fetchall()
    current = 0 if state is None else state.generation
    steps = [Change(start, end, None if pages is None else tuple(array("Q", pages))) for start, end, pages in rows]
    reached = after
    for step in steps:
        if step.before != reached:
            return None
        reached = step.after
    return steps if reached == current else None


# Writing


def _check_generation(row: _Row | None, name: str, seen: int) -> None:
    current = 0 if row is None else row.state.generation
    if current != seen:
        raise GenerationConflict(f"list {name} is at generation {current}, not {seen}: someone else changed it meanwhile")


def _begin_set(db: sqlite3.Connection, name: str, seen: int) -> int:
    _collect(db)
    with _write(db):
        _check_generation(_row(db, name), name, seen)
        return _new_set(db)


def _new_set(db: sqlite3.Connection) -> int:
    return int(db.execute("INSERT INTO sets (keep_until) VALUES (?)", (time.time() + SET_IDLE_S,)).lastrowid or 0)


def _fill(db: sqlite3.Connection, page_set: int, pages: Sequence[Page]) -> None:
    with _write(db):
        alive = db.execute(
            "UPDATE sets SET page_count = page_count + ?, keep_until = ? WHERE id = ? AND NOT doomed",
            (len(pages), time.time() + SET_IDLE_S, page_set),
        ).rowcount
        if not alive:
            raise StoreError("staging_lost", "the pages that were being loaded were cleared away: load again")
        _insert(db, page_set, pages)


def _insert(db: sqlite3.Connection, page_set: int, pages: Sequence[Page]) -> None:
    """Some hundreds of pages a statement: like reading, this gives up the interpreter's lock for all of them together."""
    base = page_set << NUMBER_BITS
    for at in range(0, len(pages), WRITE_PAGES_MAX):
        table: list[tuple[int, ...]] = []
        parts: list[bytes] = []
        start = 1
        for number, keys, extra in pages[at : at + WRITE_PAGES_MAX]:
            if keys or extra:
                middle = start + len(keys)
                table.append((base | number, start, len(keys), middle, len(extra)))
                parts += (keys, extra)
                start = middle + len(extra)
        db.execute(SCATTER, (b"".join(parts), json.dumps(table)))


def _give_up(db: sqlite3.Connection, page_set: int) -> None:
    with _write(db):
        db.execute("UPDATE sets SET keep_until = 0 WHERE id = ?", (page_set,))


def _collect(db: sqlite3.Connection) -> None:
    """Delete the pages of sets that no list points to, a portion a transaction."""
    with _write(db):
        db.execute(
            "UPDATE sets SET doomed = 1 WHERE keep_until < ? AND NOT EXISTS ("
            "SELECT 1 FROM lists WHERE page_set = sets.id OR before_set = sets.id)",
            (time.time(),),
        )
    for (page_set,) in db.execute("SELECT id FROM sets WHERE doomed").fetchall():
        first, last = page_set << NUMBER_BITS, page_set << NUMBER_BITS | NUMBER_MASK
        while True:
            with _write(db):
                gone = db.execute(
                    "DELETE FROM pages WHERE id IN (SELECT id FROM pages WHERE id BETWEEN ? AND ? LIMIT ?)",
                    (first, last, PORTION_PAGES),
                ).rowcount
                if gone < PORTION_PAGES:
                    db.execute("DELETE FROM sets WHERE id = ?", (page_set,))
                    break


def _put(db: sqlite3.Connection, name: str, row: _Row) -> None:
    db.execute(
        "INSERT OR REPLACE INTO lists VALUES (?, ?, ?, ?, ?, ?, ?)",
        (name, row.state.generation, encode(row.state), *row[1:]),
    )


def _release_set(db: sqlite3.Connection, page_set: int | None) -> None:
    db.execute("UPDATE sets SET keep_until = 0 WHERE id = ?", (page_set,))


def _note_change(db: sqlite3.Connection, name: str, change: Change) -> None:
    pages = change.pages
    numbers = None if pages is None or len(pages) > CHANGE_PAGES_MAX else array("Q", pages).tobytes()
    db.execute("INSERT OR REPLACE INTO changes VALUES (?, ?, ?, ?)", (name, change.before, change.after, numbers))
    db.execute("DELETE FROM changes WHERE list = ? AND after <= ?", (name, change.after - CHANGES_MAX))


def _next_state(state: ListState, row: _Row | None) -> ListState:
    generation, highest = (row.state.generation, row.state.highest_serial) if row is not None else (0, 0)
    return dataclasses.replace(
        state, generation=generation + 1, highest_serial=max(state.serial, state.highest_serial, highest)
    )


def _check_staged(db: sqlite3.Connection, page_set: int) -> None:
    if not db.execute("SELECT 1 FROM sets WHERE id = ? AND NOT doomed", (page_set,)).fetchone():
        raise StoreError("staging_lost", "the pages that were loaded were cleared away before they came into force: load again")


def _replace(db: sqlite3.Connection, name: str, state: ListState, page_set: int, seen: int) -> ListState:
    with _write(db):
        row = _row(db, name)
        _check_generation(row, name, seen)
        _check_staged(db, page_set)
        stored = _next_state(state, row)
        if row is None:
            _put(db, name, _Row(stored, page_set, None, None, None))
        else:
            _release_set(db, row.before_set)
            _put(db, name, _Row(stored, page_set, encode(row.state), row.page_set, 1))
        _note_change(db, name, Change(seen, stored.generation, None))
    return stored


def _overwrite(db: sqlite3.Connection, page_set: int, pages: Sequence[Page]) -> None:
    base = page_set << NUMBER_BITS
    _insert(db, page_set, pages)
    db.executemany("DELETE FROM pages WHERE id = ?", ((base | page.number,) for page in pages if page.gone))


def _amend(db: sqlite3.Connection, name: str, state: ListState, pages: Sequence[Page], seen: int) -> ListState:
    with _write(db):
        row = _row(db, name)
        _check_generation(row, name, seen)
        stored = _next_state(state, row)
        page_set = _new_set(db) if row is None else row.page_set
        kept = _Row(stored, page_set, None, None, None)
        if row is not None:
            before_set = _new_set(db)
            db.executemany(
                "INSERT OR REPLACE INTO pages SELECT :to, coalesce(keys, x''), coalesce(extra, x'') "
                "FROM (SELECT 1) LEFT JOIN pages ON id = :from",
                ({"to": before_set << NUMBER_BITS | n, "from": page_set << NUMBER_BITS | n} for n, *_ in pages),
            )
            _release_set(db, row.before_set)
            kept = _Row(stored, page_set, encode(row.state), before_set, 0)
        _overwrite(db, page_set, pages)
        _put(db, name, kept)
        _note_change(db, name, Change(seen, stored.generation, tuple(page.number for page in pages)))
    return stored


def _roll_back(db: sqlite3.Connection, name: str, seen: int) -> ListState:
    with _write(db):
        row = _row(db, name)
        _check_generation(row, name, seen)
        if row is None or row.before is None or row.before_set is None:
            raise NothingToRollBack(f"no release of list {name} before the one in force is kept")
        stored = _next_state(decode_state(row.before), row)
        if row.before_whole:
            _release_set(db, row.page_set)
            _put(db, name, _Row(stored, row.before_set, None, None, None))
            touched = None
        else:
            first, last = row.before_set << NUMBER_BITS, row.before_set << NUMBER_BITS | NUMBER_MASK
            kept = db.execute("SELECT id & ?, keys, extra FROM pages WHERE id BETWEEN ? AND ?", (NUMBER_MASK, first, last))
            pages = [Page(*fields) for fields in kept]
            _overwrite(db, row.page_set, pages)
            _release_set(db, row.before_set)
            _put(db, name, _Row(stored, row.page_set, None, None, None))
            touched = tuple(page.number for page in pages)
        _note_change(db, name, Change(seen, stored.generation, touched))
    return stored


def _restore(db: sqlite3.Connection, name: str, state: ListState, page_set: int, seen: int) -> None:
    with _write(db):
        row = _row(db, name)
        _check_generation(row, name, seen)
        _check_staged(db, page_set)
        if row is not None:
            _release_set(db, row.page_set)
            _release_set(db, row.before_set)
        _put(db, name, _Row(state, page_set, None, None, None))
        db.execute("DELETE FROM changes WHERE list = ?", (name,))
        if state.generation > seen:
            _note_change(db, name, Change(seen, state.generation, None))


def _restore_pages(db: sqlite3.Connection, name: str, state: ListState, pages: Sequence[Page], seen: int) -> None:
    with _write(db):
        row = _row(db, name)
        _check_generation(row, name, seen)
        if row is not None:
            _release_set(db, row.before_set)
        page_set = _new_set(db) if row is None else row.page_set
        _overwrite(db, page_set, pages)
        _put(db, name, _Row(state, page_set, None, None, None))
        _note_change(db, name, Change(seen, state.generation, tuple(page.number for page in pages)))


def _checkpoint(db: sqlite3.Connection) -> None:
    """Empty the write-ahead log if no reader is in the way; a later write does it otherwise."""
    db.execute("PRAGMA busy_timeout = 0")
    try:
        with suppress(sqlite3.OperationalError):
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    finally:
        db.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}")


# History and claims


def _record(db: sqlite3.Connection, event: Event) -> None:
    with _write(db):
        added = db.execute(
            "INSERT INTO events (time, who, what, list, serial, digest, outcome, detail) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (event.time, event.who, event.what, event.list, event.serial, event.digest, event.outcome, event.detail),
        )
        db.execute("DELETE FROM events WHERE id <= ?", ((added.lastrowid or 0) - HISTORY_MAX,))
        db.execute(
            "INSERT INTO outcomes VALUES (?, ?, 1, ?) ON CONFLICT (coalesce(list, ''), outcome) "
            "DO UPDATE SET count = count + 1, last = max(last, excluded.last)",
            (event.list, event.outcome, event.time),
        )


def _history(db: sqlite3.Connection, name: str | None, limit: int) -> Sequence[Event]:
    rows = db.execute(
        "SELECT time, who, what, list, serial, digest, outcome, detail FROM events "
        "WHERE :name IS NULL OR list = :name ORDER BY id DESC LIMIT :limit",
        {"name": name, "limit": limit},
    ).fetchall()
    names = ("time", "who", "what", "list", "serial", "digest", "outcome", "detail")
    return [Event(**dict(zip(names, row, strict=True))) for row in reversed(rows)]


def _outcomes(db: sqlite3.Connection) -> Sequence[Outcome]:
    return [Outcome(*row) for row in db.execute("SELECT list, outcome, count, last FROM outcomes ORDER BY list, outcome")]


def _claim(db: sqlite3.Connection, what: str, who: str, ttl_s: float) -> bool:
    now = time.time()
    with _write(db):
        if ttl_s <= 0:
            return bool(db.execute("DELETE FROM claims WHERE what = ? AND who = ?", (what, who)).rowcount)
        return bool(
            db.execute(
                "INSERT INTO claims VALUES (:what, :who, :until) ON CONFLICT (what) "
                "DO UPDATE SET who = :who, until = :until WHERE who = :who OR until < :now",
                {"what": what, "who": who, "until": now + ttl_s, "now": now},
            ).rowcount
        )

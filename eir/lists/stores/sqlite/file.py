"""The file: its schema, a connection to it in a thread of its own, its faults by cause. Does not know what a list is.

Imports eir.errors, eir.lists.pages.pages and the form of eir.lists.stores.records.
"""

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, TypeVarTuple

from eir.errors import Report, StoreError, silent
from eir.lists.pages.pages import NUMBER_BITS
from eir.lists.stores.records import FORM, check_oldest, log_upgrade, newer_form

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

BUSY_TIMEOUT_S = 10.0
"""Seconds that a write waits for another process's transaction; those of a load take some ten milliseconds each."""
BUSY_RETRY_S = 0.01
WAL_BYTES_MAX = 16 << 20
"""Bytes that the write-ahead log is cut to when it starts over."""
FOLDER_MODE, FILE_MODE = 0o750, 0o640

APPLICATION_ID = 0x45495230  # "EIR0", so that `file` and a wrong path tell
NUMBER_MASK = (1 << NUMBER_BITS) - 1
"""The row id of a page is its set's id and its number."""

SCHEMA = f"""
CREATE TABLE lists (
    name TEXT PRIMARY KEY, generation INTEGER NOT NULL, state TEXT NOT NULL, page_set INTEGER NOT NULL,
    made TEXT               -- the event that brought it
);
CREATE TABLE sets (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    page_count INTEGER NOT NULL DEFAULT 0,  -- unused
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
CREATE TABLE outcomes (list TEXT, outcome TEXT NOT NULL, count INTEGER NOT NULL, last TEXT NOT NULL);
CREATE UNIQUE INDEX outcomes_of_list ON outcomes (coalesce(list, ''), outcome);
CREATE TABLE claims (what TEXT PRIMARY KEY, who TEXT NOT NULL, until REAL NOT NULL);
CREATE TABLE kept (         -- what a rollback brings back
    list TEXT NOT NULL, generation INTEGER NOT NULL, state TEXT NOT NULL,
    page_set INTEGER NOT NULL,  -- all its pages, or those that the release after it touched (empty keys: there was none)
    whole INTEGER NOT NULL, made TEXT, PRIMARY KEY (list, generation));
CREATE TABLE records (
    number INTEGER PRIMARY KEY, text TEXT NOT NULL, list TEXT GENERATED ALWAYS AS (CASE WHEN json_valid(text) THEN json_extract(text, '$.list') END) VIRTUAL);
CREATE INDEX records_of_list ON records (list, number);
CREATE TABLE refusals (key TEXT PRIMARY KEY, text TEXT NOT NULL);
CREATE TABLE ledger (id INTEGER PRIMARY KEY, text TEXT NOT NULL);
"""
SINCE_3 = """
CREATE TABLE feed_records (
    number INTEGER PRIMARY KEY, text TEXT NOT NULL, list TEXT GENERATED ALWAYS AS (CASE WHEN json_valid(text) THEN json_extract(text, '$.list') END) VIRTUAL);
CREATE INDEX feed_records_of_list ON feed_records (list, number);
"""
"""Tables that a file of form 2 lacks."""
SINCE_3_TEMPORARY = SINCE_3.replace("CREATE TABLE", "CREATE TEMP TABLE").replace("CREATE INDEX ", "CREATE INDEX temp.")
"""The same tables as temporary ones of the connection, for a file that is only read."""
NOW = f"""
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {FORM};
"""

CAUSES = {
    "BUSY": "busy", "LOCKED": "busy", "FULL": "full", "CORRUPT": "corrupt", "NOTADB": "corrupt", "IOERR": "io",
    "READONLY": "readonly", "PERM": "readonly", "CANTOPEN": "cannot_open", "TOOBIG": "corrupt",
}  # fmt: skip
"""Our causes, by the name of SQLite's error."""
REOPEN = frozenset({"corrupt", "io", "cannot_open", "readonly"})
"""Causes after which the connection is useless."""
NO_ROOM = frozenset({"full", "io", "cannot_open"})
"""Causes after which a file may not open on a full disk: even a reader creates a file of shared memory beside it."""
STILL_S = 1.0
"""Seconds for which a file that was opened without shared memory is read as it is; then it is opened again."""


class File:
    """An SQLite file of ours, which is made if it is not there.

    It is opened by the first operation and again after a fault, or when another file has taken its place. An operation is a
    function of the connection; all run in one thread, in the order in which they came.
    """

    def __init__(
        self,
        path: Path,
        *,
        upgrades: bool = True,
        report: Report = silent,
        busy_s: float = BUSY_TIMEOUT_S,
        still_s: float = STILL_S,
    ) -> None:
        self.path, self._still_s = path, still_s
        self._open = partial(
            _opened,
            path,
            partial(_prepare, path=path, upgrades=upgrades, report=report),
            busy_s=busy_s,
        )
        self._db: sqlite3.Connection | None = None
        self._still: tuple[float, str] | None = None
        """For a file that could be opened for reading only: until when (time.monotonic), and why."""
        self._inode: tuple[int, int] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sqlite")

    def submit(self, operation: Callable[[sqlite3.Connection, *Ts], T], *args: *Ts) -> "Future[T]":
        """Have an operation done, whether its result is awaited or not."""
        return self._thread.submit(lambda: self._run(operation, *args))

    async def call(self, operation: Callable[[sqlite3.Connection, *Ts], T], *args: *Ts) -> T:
        """Have an operation done and give its result. Raises StoreError."""
        return await asyncio.wrap_future(self.submit(operation, *args))

    async def rows(self, statement: str, **values: object) -> list[tuple[Any, ...]]:
        """All rows that a statement finds. Raises StoreError."""
        return await self.call(find, statement, values)

    async def close(self) -> None:
        """Close the file once what was begun is done."""
        await asyncio.wrap_future(self._thread.submit(self._disconnect))
        self._thread.shutdown(wait=False)

    # In the thread

    def _run(self, operation: Callable[[sqlite3.Connection, *Ts], T], *args: *Ts) -> T:
        try:
            return operation(self._connection(), *args)
        except sqlite3.Error as error:
            cause, still = _cause(error), self._still
            newer = (
                newer_form(str(self.path), form_of(self._db)) if cause == "readonly" and self._db is not None else None
            )
            if cause in REOPEN:
                self._disconnect()
            if newer is not None:
                raise StoreError("schema", newer) from error
            if cause == "readonly" and still is not None:
                raise StoreError("full", f"{self.path}: {still[1]}; it can be read, but not written") from error
            advice = (
                f"; nothing was changed: make room on the disk of {self.path.parent}, and do it again"
                if cause == "full"
                else ""
            )
            raise StoreError(cause, f"{self.path}: {error}{advice}") from error
        except OSError as error:
            raise StoreError("cannot_open", f"{self.path}: {error.strerror}") from error

    def _connection(self) -> sqlite3.Connection:
        if self._db is not None:
            with suppress(FileNotFoundError):
                found = self.path.stat()
                if (found.st_dev, found.st_ino) == self._inode and (
                    self._still is None or time.monotonic() < self._still[0]
                ):
                    return self._db
            self._disconnect()
        self.path.parent.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        # SQLite gives its side files the mode of the file, and would give that the umask's.
        with suppress(FileExistsError):
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
            os.fchmod(descriptor, FILE_MODE)
            os.close(descriptor)
        try:
            db = self._open()
        except sqlite3.Error as error:
            if _cause(error) not in NO_ROOM:
                raise
            db = self._open(still=error)
            self._still = time.monotonic() + self._still_s, str(error)
        found = self.path.stat()
        self._db, self._inode = db, (found.st_dev, found.st_ino)
        return db

    def _disconnect(self) -> None:
        db, self._db, self._still = self._db, None, None
        if db is not None:
            db.close()


def _cause(error: sqlite3.Error) -> str:
    """The cause of an error, by the second word of a name like SQLITE_IOERR_WRITE.

    Errors of the module sqlite3 itself have no name.
    """
    return CAUSES.get(getattr(error, "sqlite_errorname", "_").split("_")[1], "error")


def _opened(
    path: Path, prepare: Callable[[sqlite3.Connection, int], None], *, busy_s: float, still: sqlite3.Error | None = None
) -> sqlite3.Connection:
    """A connection to the file, which waits `busy_s` for a lock; `still`: why it cannot be opened as always, which is raised if it is empty.

    Then it is read as it is on the disk, without lock, shared memory and what the write-ahead log may have on top: a node
    that starts on a full disk has its lists from it. Nobody writes meanwhile, since a process that has it open for writing
    made the shared memory, with which it opens as always. What a killed process left half done shows in the digests.
    """
    uri = f"{path.absolute().as_uri()}?{'mode=rwc' if still is None else 'mode=ro&immutable=1'}"
    # One thread at a time uses it: the store's own, or the one that closes it.
    db = sqlite3.connect(uri, uri=True, timeout=busy_s, isolation_level=None, check_same_thread=False)
    try:
        version = _version(db, path)
        if still is None:
            prepare(db, version)
        elif not version:
            raise still  # noqa: TRY301  # the connection is closed as after any other fault
    except BaseException:
        db.close()
        raise
    return db


def _version(db: sqlite3.Connection, path: Path) -> int:
    """The file's form, 0 for one that is empty. Raises StoreError for a file that is not ours."""
    version = form_of(db)
    application = _pragma(db, "application_id")
    if application not in {0, APPLICATION_ID} or (version and not application):
        raise StoreError("schema", f"{path} is an SQLite file of another program")
    if version:
        check_oldest(str(path), version)
    return version


def _prepare(
    db: sqlite3.Connection,
    version: int,
    *,
    path: Path,
    upgrades: bool,
    report: Report,
) -> None:
    only_read = 0 < version < FORM and not upgrades
    if only_read:
        for statement in SINCE_3_TEMPORARY.split(";\n"):
            db.execute(statement)
    if only_read or version > FORM:
        db.execute("PRAGMA query_only = 1")
        return
    _use_wal(db)
    # A release that was reported as accepted survives a power cut, and with it the serial below which none is taken.
    db.execute("PRAGMA synchronous = FULL")
    db.execute(f"PRAGMA journal_size_limit = {WAL_BYTES_MAX}")
    if version < FORM:
        with transaction(db):
            version = _pragma(db, "user_version")  # another process may have been faster
            if version < FORM:
                if version:
                    log_upgrade(report, str(path), version)
                steps = (SINCE_3,) if version else (SCHEMA, SINCE_3)
                for statement in "".join((*steps, NOW)).split(";\n"):
                    db.execute(statement)


def _use_wal(db: sqlite3.Connection) -> None:
    """Switch to WAL mode. Waits here, since SQLite says busy at once while several processes create the file."""
    end = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if _cause(error) != "busy" or time.monotonic() > end:
                raise
            time.sleep(BUSY_RETRY_S)
        else:
            return


def form_of(db: sqlite3.Connection) -> int:
    """The version of the file's form, as in eir.lists.stores.records."""
    return _pragma(db, "user_version")


def _pragma(db: sqlite3.Connection, name: str) -> int:
    return int(db.execute(f"PRAGMA {name}").fetchone()[0])


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """Write all that is done in it, or nothing."""
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
def snapshot(db: sqlite3.Connection) -> Iterator[None]:
    """Read in it what was there at one moment."""
    db.execute("BEGIN")
    try:
        yield
    finally:
        db.execute("ROLLBACK")


def find(db: sqlite3.Connection, statement: str, values: Mapping[str, object]) -> list[tuple[Any, ...]]:
    """All rows that a statement finds."""
    return db.execute(statement, values).fetchall()


def checkpoint(db: sqlite3.Connection) -> None:
    """Empty the write-ahead log if no reader is in the way; a later write does it otherwise."""
    ((before_ms,),) = db.execute("PRAGMA busy_timeout").fetchall()
    db.execute("PRAGMA busy_timeout = 0")
    try:
        with suppress(sqlite3.OperationalError):
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    finally:
        db.execute(f"PRAGMA busy_timeout = {before_ms}")

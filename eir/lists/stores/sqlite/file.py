"""SQLite file: its schema, a connection in a thread of its own, and the causes of its errors.

The module does not depend on lists.
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
"""Seconds for which a write waits for another process's transaction. A transaction of a load takes tens of milliseconds."""
BUSY_RETRY_S = 0.01
"""Pause in seconds between two tries to switch a new file to WAL mode."""
WAL_BYTES_MAX = 16 << 20
"""Size in bytes to which the write-ahead log is truncated when it restarts."""
FOLDER_MODE, FILE_MODE = 0o750, 0o640

APPLICATION_ID = 0x45495230  # "EIR0": identifies the file for `file`, and a wrong path
NUMBER_MASK = (1 << NUMBER_BITS) - 1
"""Mask for the page number in the ID of a row; the higher bits are the ID of the set."""

SCHEMA = f"""
CREATE TABLE lists (
    name TEXT PRIMARY KEY, generation INTEGER NOT NULL, state TEXT NOT NULL, page_set INTEGER NOT NULL,
    made TEXT               -- the event that brought it
);
CREATE TABLE sets (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    page_count INTEGER NOT NULL DEFAULT 0,  -- of version 1 of the schema; nobody counts or reads it
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
"""Tables that a file of format version 2 lacks."""
SINCE_3_TEMPORARY = SINCE_3.replace("CREATE TABLE", "CREATE TEMP TABLE").replace("CREATE INDEX ", "CREATE INDEX temp.")
"""Same tables as temporary tables of the connection, for a file of version 2 that is only read."""
NOW = f"""
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {FORM};
"""

CAUSES = {
    "BUSY": "busy", "LOCKED": "busy", "FULL": "full", "CORRUPT": "corrupt", "NOTADB": "corrupt", "IOERR": "io",
    "READONLY": "readonly", "PERM": "readonly", "CANTOPEN": "cannot_open", "TOOBIG": "corrupt",
}  # fmt: skip
"""Second word of the name of an SQLite error → cause."""
REOPEN = frozenset({"corrupt", "io", "cannot_open", "readonly"})
"""Causes after which the connection is unusable."""
NO_ROOM = frozenset({"full", "io", "cannot_open"})
"""Causes that a full disk may have, because even a reader creates a file of shared memory beside the database."""
IMMUTABLE_S = 1.0
"""Seconds after which a file that was opened as immutable is opened again."""


class SqliteFile:
    """Connection to an SQLite file. A missing file is created; if `upgrades` is False, a missing file counts as empty.

    The first operation opens the connection. It is opened again after an error, or if another file has replaced the
    file. An operation is a function of the connection. All operations run in one thread, in the order of their calls.

    Args:
        path: the file.
        upgrades: True to upgrade a file of an older format, after an event about the upgrade; False to read it only.
        report: receives events that are not errors.
        busy_s: time for which a write waits for another process's transaction.
        immutable_s: time after which a file that was opened as immutable is opened again.
        prepare: function of a new connection and the format version of its file, which creates the tables; None for those of SCHEMA.
    """

    def __init__(
        self,
        path: Path,
        *,
        upgrades: bool = True,
        report: Report = silent,
        busy_s: float = BUSY_TIMEOUT_S,
        immutable_s: float = IMMUTABLE_S,
        prepare: Callable[[sqlite3.Connection, int], None] | None = None,
    ) -> None:
        self.path = path
        self._busy_s = busy_s
        self._immutable_s = immutable_s
        self._creates = upgrades
        self._prepare = prepare or partial(_prepare, path=path, upgrades=upgrades, report=report)
        self._db: sqlite3.Connection | None = None
        self._immutable: tuple[float, str] | None = None
        """For a file that was opened as immutable: time of the next open (time.monotonic), and the reason."""
        self._inode: tuple[int, int] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sqlite")

    def submit(self, operation: Callable[[sqlite3.Connection, *Ts], T], *args: *Ts) -> "Future[T]":
        """Schedule an operation in the thread of the connection. It runs even if the caller does not await its result."""
        return self._thread.submit(lambda: self._run(operation, *args))

    async def call(self, operation: Callable[[sqlite3.Connection, *Ts], T], *args: *Ts) -> T:
        """Run an operation in the thread of the connection, and return its result.

        Raises:
            StoreError: if it fails.
        """
        return await asyncio.wrap_future(self.submit(operation, *args))

    async def rows(self, statement: str, **values: object) -> list[tuple[Any, ...]]:
        """Execute an SQL statement in the thread of the connection, and return all rows.

        Raises:
            StoreError: if it fails.
        """
        return await self.call(find, statement, values)

    async def close(self) -> None:
        """Close the file after all submitted operations have run."""
        await asyncio.wrap_future(self._thread.submit(self._disconnect))
        self._thread.shutdown(wait=False)

    # In the thread

    def _run(self, operation: Callable[[sqlite3.Connection, *Ts], T], *args: *Ts) -> T:
        try:
            return operation(self._connection(), *args)
        except sqlite3.Error as error:
            raise self._store_error(error) from error
        except OSError as error:
            raise StoreError("cannot_open", f"{self.path}: {error.strerror}") from error

    def _store_error(self, error: sqlite3.Error) -> StoreError:
        """Return the StoreError for an error of SQLite; close the connection if it is unusable."""
        cause, immutable = _cause(error), self._immutable
        newer = None
        if cause == "readonly" and self._db is not None:
            newer = newer_form(str(self.path), form_of(self._db))
        if cause in REOPEN:
            self._disconnect()
        if newer is not None:
            return StoreError("schema", newer)
        if cause == "readonly" and immutable is not None:
            _, reason = immutable
            return StoreError("full", f"{self.path}: {reason}; it can be read, but not written")
        message = f"{self.path}: {error}"
        if cause == "full":
            message += f"; nothing was changed: make room on the disk of {self.path.parent}, then try again"
        return StoreError(cause, message)

    def _connection(self) -> sqlite3.Connection:
        """Return the open connection; open it if necessary."""
        if self._db is not None:
            with suppress(FileNotFoundError):
                status = self.path.stat()
                is_same_file = (status.st_dev, status.st_ino) == self._inode
                is_current = self._immutable is None or time.monotonic() < self._immutable[0]
                if is_same_file and is_current:
                    return self._db
            self._disconnect()
        if not self._creates and not self.path.exists():
            self._db = _open(":memory:", self._busy_s)
            self._prepare(self._db, 0)
            return self._db
        self.path.parent.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        # SQLite would create the file with the umask. It creates its side files with the mode of the file.
        with suppress(FileExistsError):
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
            os.fchmod(descriptor, FILE_MODE)
            os.close(descriptor)
        try:
            db = _connect(self.path, self._busy_s, self._prepare)
        except sqlite3.Error as error:
            if _cause(error) not in NO_ROOM:
                raise
            db = _connect_immutable(self.path, self._busy_s, error)
            self._immutable = time.monotonic() + self._immutable_s, str(error)
        status = self.path.stat()
        self._inode = status.st_dev, status.st_ino
        self._db = db
        return db

    def _disconnect(self) -> None:
        db = self._db
        self._db = None
        self._immutable = None
        if db is not None:
            db.close()


def _cause(error: sqlite3.Error) -> str:
    """Return the cause of an SQLite error for metrics: the second word of its name, such as SQLITE_IOERR_WRITE.

    Errors of the module sqlite3 itself have no name.
    """
    name = getattr(error, "sqlite_errorname", "_")
    return CAUSES.get(name.split("_")[1], "error")


def _connect(path: Path, busy_s: float, prepare: Callable[[sqlite3.Connection, int], None]) -> sqlite3.Connection:
    """Open a connection to the SQLite file. The connection waits up to `busy_s` for a lock.

    `prepare` is called with the connection and the format version of the file.
    """
    db = _open(_uri(path, "mode=rwc"), busy_s)
    try:
        prepare(db, _version(db, path))
    except BaseException:
        db.close()
        raise
    return db


def _connect_immutable(path: Path, busy_s: float, error: sqlite3.Error) -> sqlite3.Connection:
    """Open a read-only connection to the SQLite file without any lock, after `_connect` failed with `error`.

    The connection uses no lock, no shared memory and no write-ahead log, so that a node that starts on a full disk has
    its lists. No process writes to the file meanwhile: a writer would have created the shared memory, and `_connect`
    would have succeeded. Digests reveal an incomplete write of a killed process.

    Raises:
        sqlite3.Error: `error`, if the file is empty.
    """
    db = _open(_uri(path, "mode=ro&immutable=1"), busy_s)
    try:
        if not _version(db, path):
            raise error  # noqa: TRY301  # the connection is closed as after any other fault
    except BaseException:
        db.close()
        raise
    return db


def _uri(path: Path, options: str) -> str:
    return f"{path.absolute().as_uri()}?{options}"


def _open(uri: str, busy_s: float) -> sqlite3.Connection:
    # One thread at a time uses the connection: the store's thread, or the thread that closes it.
    return sqlite3.connect(uri, uri=True, timeout=busy_s, isolation_level=None, check_same_thread=False)


def _version(db: sqlite3.Connection, path: Path) -> int:
    """Return the format version of the SQLite file; 0 for an empty file.

    Raises:
        StoreError: for a file of another program.
    """
    version = form_of(db)
    application = _pragma(db, "application_id")
    if application not in {0, APPLICATION_ID} or (version and not application):
        raise StoreError("schema", f"{path} is an SQLite file of another program")
    if version:
        check_oldest(str(path), version)
    return version


def _prepare(db: sqlite3.Connection, version: int, *, path: Path, upgrades: bool, report: Report) -> None:
    """Set the write mode of a new connection (WAL, durable commits), and create or upgrade the tables of the file.

    `version`: format version of the file; 0 if it is empty. The connection is read-only if the format is newer than this
    program, or if it is older and `upgrades` is False.
    """
    is_older = 0 < version < FORM
    if is_older and not upgrades:
        _execute_all(db, SINCE_3_TEMPORARY)
    if version > FORM or (is_older and not upgrades):
        db.execute("PRAGMA query_only = 1")
        return
    use_durable_wal(db)
    if version < FORM:
        with transaction(db):
            version = form_of(db)  # another process may have upgraded the file meanwhile
            if version < FORM:
                if version:
                    log_upgrade(report, str(path), version)
                else:
                    _execute_all(db, SCHEMA)
                _execute_all(db, SINCE_3)
                _execute_all(db, NOW)


def _execute_all(db: sqlite3.Connection, statements: str) -> None:
    for statement in statements.split(";\n"):
        db.execute(statement)


def use_durable_wal(db: sqlite3.Connection) -> None:
    """Use a write-ahead log and durable commits.

    An accepted release must survive a power cut, and so must its serial, below which releases are rejected.
    """
    _switch_to_wal(db)
    db.execute("PRAGMA synchronous = FULL")
    db.execute(f"PRAGMA journal_size_limit = {WAL_BYTES_MAX}")


def _switch_to_wal(db: sqlite3.Connection) -> None:
    """Switch the file to WAL mode; retry while SQLite reports `busy`, because another process creates the file."""
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if _cause(error) != "busy" or time.monotonic() > deadline:
                raise
            time.sleep(BUSY_RETRY_S)
        else:
            return


def form_of(db: sqlite3.Connection) -> int:
    """Return the format version of the file (see eir.lists.stores.records)."""
    return _pragma(db, "user_version")


def _pragma(db: sqlite3.Connection, name: str) -> int:
    return int(db.execute(f"PRAGMA {name}").fetchone()[0])


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """Run the `with` block in a transaction, which is rolled back after an error."""
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
    """Run the `with` block in a read transaction, so that all its reads have the same data."""
    db.execute("BEGIN")
    try:
        yield
    finally:
        db.execute("ROLLBACK")


def find(db: sqlite3.Connection, statement: str, values: Mapping[str, object]) -> list[tuple[Any, ...]]:
    """Execute an SQL statement and return all rows."""
    return db.execute(statement, values).fetchall()


def checkpoint(db: sqlite3.Connection) -> None:
    """Empty the write-ahead log of the SQLite file. If a reader uses the log, a later write empties the log instead."""
    ((before_ms,),) = db.execute("PRAGMA busy_timeout").fetchall()
    db.execute("PRAGMA busy_timeout = 0")
    try:
        with suppress(sqlite3.OperationalError):
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    finally:
        db.execute(f"PRAGMA busy_timeout = {before_ms}")

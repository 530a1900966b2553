"""SQLite file: a connection in a thread of its own, the causes of its errors, and the room on its disk."""

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar, TypeVarTuple

from eir.errors import StoreError
from eir.lists.stores.records import LOG_FORM, check_room, other_form

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
DB_PAGE_BYTES = 4096
"""Bytes of a page of SQLite."""
RESERVE_BYTES = 2 * WAL_BYTES_MAX
"""Bytes that a load leaves free on the disk: WAL_BYTES_MAX for the write-ahead log, and as many for later writes."""

CAUSES = {
    "BUSY": "busy", "LOCKED": "busy", "FULL": "full", "CORRUPT": "corrupt", "NOTADB": "corrupt", "IOERR": "io",
    "READONLY": "readonly", "PERM": "readonly", "CANTOPEN": "cannot_open", "TOOBIG": "corrupt",
}  # fmt: skip
"""Second word of the name of an SQLite error → cause."""
REOPEN = frozenset({"corrupt", "io", "cannot_open", "readonly"})
"""Causes after which the connection is unusable."""


class SqliteFile:
    """Connection to an SQLite file. A missing file is created; if `creates` is False, a missing file counts as empty.

    The first operation opens the connection. It is opened again after an error, or if another file has replaced the
    file. An operation is a function of the connection. All operations run in one thread, in the order of their calls.

    Args:
        path: the file.
        schema: statements that create the tables of an empty file.
        creates: True to create a missing file.
        busy_s: time for which a write waits for another process's transaction.
    """

    def __init__(self, path: Path, schema: str, *, creates: bool = True, busy_s: float = BUSY_TIMEOUT_S) -> None:
        self.path = path
        self._schema = schema
        self._busy_s = busy_s
        self._creates = creates
        self._db: sqlite3.Connection | None = None
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
        return await self.call(lambda db: db.execute(statement, values).fetchall())

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
        cause = _cause(error)
        if cause in REOPEN:
            self._disconnect()
        message = f"{self.path}: {error}"
        if cause == "full":
            message += f"; nothing was changed: make room on the disk of {self.path.parent}, then try again"
        return StoreError(cause, message)

    def _connection(self) -> sqlite3.Connection:
        """Return the open connection; open it if necessary."""
        if self._db is not None:
            with suppress(FileNotFoundError):
                if _inode(self.path) == self._inode:
                    return self._db
            self._disconnect()
        if not self._creates and not self.path.exists():
            self._db = _open(":memory:", self._busy_s)
            _create_tables(self._db, self._schema)
            return self._db
        self.path.parent.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        # SQLite would create the file with the umask. It creates its side files with the mode of the file.
        with suppress(FileExistsError):
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
            os.fchmod(descriptor, FILE_MODE)
            os.close(descriptor)
        db = _connect(self.path, self._busy_s, self._schema)
        self._db, self._inode = db, _inode(self.path)
        return db

    def _disconnect(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            db.close()


def _inode(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _cause(error: sqlite3.Error) -> str:
    """Return the cause of an SQLite error for metrics: the second word of its name, such as SQLITE_IOERR_WRITE.

    Errors of the module sqlite3 itself have no name.
    """
    name = getattr(error, "sqlite_errorname", "_")
    return CAUSES.get(name.split("_")[1], "error")


def _connect(path: Path, busy_s: float, schema: str) -> sqlite3.Connection:
    """Open a connection to the SQLite file, and create the tables of an empty file. The connection waits up to `busy_s` for a lock."""
    db = _open(f"{path.absolute().as_uri()}?mode=rwc", busy_s)
    try:
        version = _version(db, path)
        use_durable_wal(db)
        if not version:
            _create_tables(db, schema)
    except BaseException:
        db.close()
        raise
    return db


def _open(uri: str, busy_s: float) -> sqlite3.Connection:
    # One thread at a time uses the connection: the store's thread, or the thread that closes it.
    return sqlite3.connect(uri, uri=True, timeout=busy_s, isolation_level=None, check_same_thread=False)


def _version(db: sqlite3.Connection, path: Path) -> int:
    """Return the format version of the SQLite file; 0 for an empty file.

    Raises:
        StoreError: `schema`, for a file of another program or of another format.
    """
    version = form_of(db)
    application = _pragma(db, "application_id")
    if application not in {0, APPLICATION_ID} or (version and not application):
        raise StoreError("schema", f"{path} is an SQLite file of another program")
    if version not in {0, LOG_FORM}:
        raise StoreError("schema", other_form(str(path), version))
    return version


def _create_tables(db: sqlite3.Connection, schema: str) -> None:
    with transaction(db):
        if not form_of(db):  # another process may have created the tables meanwhile
            for statement in (
                *schema.split(";\n"),
                f"PRAGMA application_id = {APPLICATION_ID}",
                f"PRAGMA user_version = {LOG_FORM}",
            ):
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
    """Return the format version of the file; 0 if it is empty."""
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


def checkpoint(db: sqlite3.Connection) -> None:
    """Empty the write-ahead log of the SQLite file. If a reader uses the log, a later write empties the log instead."""
    ((before_ms,),) = db.execute("PRAGMA busy_timeout").fetchall()
    db.execute("PRAGMA busy_timeout = 0")
    try:
        with suppress(sqlite3.OperationalError):
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    finally:
        db.execute(f"PRAGMA busy_timeout = {before_ms}")


def check_disk(db: sqlite3.Connection, needs: int) -> None:
    """Raise StoreError (`full`) if a write needs more bytes than are free in the file and on the disk above RESERVE_BYTES."""
    path = str(db.execute("PRAGMA database_list").fetchone()[2])
    folder = Path(path).parent
    disk = os.statvfs(folder)
    (unused_pages,) = db.execute("PRAGMA freelist_count").fetchone()
    free = int(unused_pages * DB_PAGE_BYTES + disk.f_bavail * disk.f_frsize)
    advice = f"make room on the disk of {folder}, then try again"
    check_room("full", path, advice, needs=needs, free=free, reserve=RESERVE_BYTES)

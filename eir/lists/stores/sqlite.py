"""Store of logs in one SQLite file, for one host."""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path

from eir.errors import GenerationConflict, Report, silent
from eir.lists.log.change import NO_CHANGE, Head, encode
from eir.lists.log.store import BASES_KEPT, RECORDS_KEPT, STAGED_S, LogEntry, StoredHeads
from eir.lists.stores.records import deletion, part_counts, staging_lost, stored_entries, stored_heads
from eir.lists.stores.sqlite_file import BUSY_TIMEOUT_S, SqliteFile, check_disk, checkpoint, transaction

POLL_S = 0.1
"""Seconds between two reads of the heads while `wait` waits: SQLite does not notify other processes."""
PORTION_PARTS = 8
"""Number of parts in one transaction, so that other writers wait only briefly."""
PORTION_RECORDS = 1_000
SCHEMA = """
CREATE TABLE heads (list TEXT PRIMARY KEY, digest TEXT NOT NULL, head TEXT NOT NULL);
CREATE TABLE log (
    list TEXT NOT NULL, generation INTEGER NOT NULL, change TEXT NOT NULL,
    rows BLOB,              -- NULL: deleted, or in parts
    base INTEGER NOT NULL,  -- 1: the change has a base
    PRIMARY KEY (list, generation));
CREATE TABLE parts (
    id TEXT NOT NULL, number INTEGER NOT NULL, octets BLOB NOT NULL,
    until REAL,             -- Unix seconds until which staged parts stay; NULL: a change names them
    list TEXT, generation INTEGER, PRIMARY KEY (id, number));
CREATE INDEX parts_of_changes ON parts (list, generation);
CREATE TABLE leases (task TEXT PRIMARY KEY, who TEXT NOT NULL, until REAL NOT NULL)
"""
CLAIM = """
INSERT INTO leases VALUES (:task, :who, :now + :ttl) ON CONFLICT (task)
DO UPDATE SET who = :who, until = :now + :ttl WHERE who = :who OR until <= :now OR until > :now + 3600
"""
"""Statement that claims or renews a lease. A lease that ends in more than an hour has no effect, because it was claimed before the clock was set back."""
DELETE_PARTS = """
DELETE FROM parts WHERE rowid IN (SELECT rowid FROM parts WHERE (list = :list AND generation < :oldest) OR until < :now LIMIT :most)
"""
DELETE_ROWS = """
UPDATE log SET rows = NULL WHERE rowid IN (SELECT rowid FROM log WHERE list = :list AND generation < :oldest AND rows IS NOT NULL LIMIT :most)
"""
DELETE_RECORDS = """
DELETE FROM log WHERE rowid IN (
    SELECT rowid FROM log WHERE list = :list AND generation < :oldest
    AND generation <= (SELECT generation FROM log WHERE list = :list ORDER BY generation DESC LIMIT 1 OFFSET :records)
    AND (NOT base OR generation <= (SELECT generation FROM log WHERE list = :list AND base ORDER BY generation DESC LIMIT 1 OFFSET :bases))
    LIMIT :most)
"""


class SqliteStore:
    """Store of logs in an SQLite file. It implements eir.lists.log.store.LogStore.

    Args:
        path: the file.
        creates: True to create a missing file; False to read only.
        report: receives events that are not errors.
        busy_s: as in SqliteFile.
    """

    def __init__(
        self, path: Path, *, creates: bool = True, report: Report = silent, busy_s: float = BUSY_TIMEOUT_S
    ) -> None:
        self.path = path
        self._report = report
        self._file = SqliteFile(path, SCHEMA, creates=creates, busy_s=busy_s)

    async def heads(self) -> StoredHeads:
        rows = await self._file.rows("SELECT list, head, digest FROM heads ORDER BY list")
        return stored_heads({name: (head, digest) for name, head, digest in rows})

    async def log(self, name: str, after: int) -> Sequence[LogEntry]:
        statement = "SELECT change, rows FROM log WHERE list = :list AND generation > :after ORDER BY generation"
        return stored_entries(await self._file.rows(statement, list=name, after=after))

    async def base(self, name: str, part_id: str) -> AsyncIterator[bytes]:  # noqa: ARG002 - IDs are unique
        statement = "SELECT octets FROM parts WHERE id = :id AND number >= :number ORDER BY number LIMIT :most"
        number = 0
        while rows := await self._file.rows(statement, id=part_id, number=number, most=PORTION_PARTS):
            for (octets,) in rows:
                yield octets
            number += len(rows)

    async def stage(self, name: str, part_id: str, parts: Iterable[bytes]) -> int:  # noqa: ARG002
        number, each = 0, iter(parts)
        try:
            while portion := await asyncio.to_thread(lambda: [*islice(each, PORTION_PARTS)]):
                await self._file.call(_stage, part_id, number, portion)
                number += len(portion)
        except BaseException:
            self._file.submit(_delete_staged, part_id)
            raise
        return number

    async def commit(self, name: str, head: Head, entry: LogEntry, *, seen: str, oldest: int = 0) -> None:
        await self._file.call(_commit, name, head, entry, seen)
        values = {"list": name, "oldest": oldest, "now": time.time(), "records": RECORDS_KEPT, "bases": BASES_KEPT}
        portions = ((DELETE_PARTS, PORTION_PARTS), (DELETE_ROWS, PORTION_RECORDS), (DELETE_RECORDS, PORTION_RECORDS))
        with deletion(name, self._report):
            for statement, most in portions:
                while oldest and await self._file.call(_execute, statement, values | {"most": most}):
                    pass
            if entry.change.base_id:
                await self._file.call(checkpoint)

    async def wait(self, seen: Mapping[str, str], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while (rest_s := deadline - time.monotonic()) > 0:
            if dict(await self._file.rows("SELECT list, digest FROM heads")) != dict(seen):
                return
            await asyncio.sleep(min(POLL_S, rest_s))

    async def claim(self, task: str, who: str, ttl_s: float) -> bool:
        """Claim, renew or release a lease. If the caller is cancelled, the lease is still written, because the caller may be releasing it."""
        values = {"task": task, "who": who, "ttl": ttl_s, "now": time.time()}
        return await asyncio.shield(self._file.call(_execute, CLAIM, values)) > 0

    async def close(self) -> None:
        await self._file.close()


def _stage(db: sqlite3.Connection, part_id: str, first: int, parts: Sequence[bytes]) -> None:
    """Write parts with numbers from `first` on, and renew the expiry of all parts with this ID. Before the first part, delete expired parts."""
    now = time.time()
    if not first:
        with transaction(db):
            db.execute("DELETE FROM parts WHERE until < ?", (now,))
    check_disk(db, sum(map(len, parts)))
    until = now + STAGED_S
    with transaction(db):
        db.execute("UPDATE parts SET until = ? WHERE id = ?", (until, part_id))
        rows = ((part_id, first + index, octets, until) for index, octets in enumerate(parts))
        db.executemany("INSERT INTO parts (id, number, octets, until) VALUES (?, ?, ?, ?)", rows)


def _delete_staged(db: sqlite3.Connection, part_id: str) -> None:
    checkpoint(db)  # on a full disk, the next transaction needs the room of the write-ahead log
    with transaction(db):
        db.execute("DELETE FROM parts WHERE id = ? AND until IS NOT NULL", (part_id,))
    checkpoint(db)


def _commit(db: sqlite3.Connection, name: str, head: Head, entry: LogEntry, seen: str) -> None:
    change = entry.change
    with transaction(db):
        row = db.execute("SELECT digest FROM heads WHERE list = ?", (name,)).fetchone()
        if (row[0] if row else NO_CHANGE) != seen:
            raise GenerationConflict(f"list {name} was changed by another process meanwhile")
        for part_id, count in part_counts(change):
            (staged,) = db.execute(
                "SELECT count(*) FROM parts WHERE id = ? AND until >= ?", (part_id, time.time())
            ).fetchone()
            if staged != count:
                raise staging_lost(name)
            db.execute(
                "UPDATE parts SET until = NULL, list = ?, generation = ? WHERE id = ?",
                (name, change.generation, part_id),
            )
        if not row:
            db.execute("DELETE FROM log WHERE list = ?", (name,))
        values = (name, change.generation, encode(change).decode(), entry.rows, bool(change.base_id))
        db.execute("INSERT INTO log VALUES (?, ?, ?, ?, ?)", values)
        db.execute("INSERT OR REPLACE INTO heads VALUES (?, ?, ?)", (name, head.digest, encode(head).decode()))


def _execute(db: sqlite3.Connection, statement: str, values: Mapping[str, object]) -> int:
    """Execute a statement, and return the number of changed rows."""
    return db.execute(statement, values).rowcount

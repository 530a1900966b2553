"""The history in the file: the chain, refusals, and the ledger of both. Functions of the connection.

The table `records` is the chain, number → text, in which anyone can look with SQL; `refusals` has key → text (eir.record.history),
and `ledger` in its one row what both have to hold (JSON).
"""

import sqlite3
from collections.abc import Sequence

from eir.errors import GenerationConflict
from eir.record.history import (
    FOLDS_MAX,
    appended,
    events_of,
    exchanged,
    fold_key,
    folded,
    is_counted,
    is_refusal,
    left_out,
    overdue,
    rewritten,
    trimmed,
    with_folds,
)
from eir.record.store import Event, Fold, Ledger, Record
from eir.stores.records import decode_ledger, encode
from eir.stores.sqlite.file import snapshot, transaction

BATCH = 1_000
"""Records that are read, or forgotten, at a time."""
READ = """
SELECT number, text FROM records WHERE (:name IS NULL OR list = :name) AND (:since IS NULL OR json_extract(text, '$.time') >= :since)
ORDER BY number DESC LIMIT :limit
"""
COUNT_OUTCOME = """
INSERT INTO outcomes VALUES (:list, :outcome, 1, :time) ON CONFLICT (coalesce(list, ''), outcome)
DO UPDATE SET count = count + 1, last = max(last, excluded.last)
"""


def upgrade(db: sqlite3.Connection, version: int) -> None:
    """Take over the history of version 1 of the schema, which had no chain."""
    if version == 1:
        names = ("time", "who", "what", "list", "serial", "digest", "outcome", "detail")
        for row in db.execute(f"SELECT {', '.join(names)} FROM events ORDER BY id").fetchall():  # noqa: S608  # names of our own
            append(db, Event(**dict(zip(names, row, strict=True))), counted=True)
        db.execute("DROP TABLE events")


def ledger(db: sqlite3.Connection) -> Ledger:
    """The ledger of the history."""
    found = db.execute("SELECT text FROM ledger").fetchone()
    return Ledger() if found is None else decode_ledger(found[0])


def append(db: sqlite3.Connection, event: Event | None, *, counted: bool = False) -> None:
    """Append an event, in the transaction that goes on; `counted`: it is in the outcomes already."""
    if event is None:
        return
    now = ledger(db)
    if is_refusal(event):
        found = db.execute("SELECT text FROM refusals WHERE key = ?", (fold_key(event),)).fetchone()
        fold, now = folded(now, event, None if found is None else found[0])
        now = with_folds(now, _put_folds(db, [fold]), -1)
    else:
        records, now = appended(now, [event])
        _put_records(db, records)
    _keep(db, now)
    if is_counted(event) and not counted:
        db.execute(COUNT_OUTCOME, {"list": event.list, "outcome": event.outcome, "time": event.time})


def record(db: sqlite3.Connection, event: Event) -> None:
    """Append an event."""
    with transaction(db):
        append(db, event)


def history(db: sqlite3.Connection, name: str | None, since: str | None, limit: int | None) -> list[Event]:
    """The events asked for, as of one moment."""
    with snapshot(db):
        records = [
            Record(*row)
            for row in db.execute(READ, {"name": name, "since": since, "limit": -1 if limit is None else limit})
        ]
        return events_of(records, folds(db), name, since, limit)


def some_records(db: sqlite3.Connection, after: int) -> list[Record]:
    """The next ones after a number."""
    return [
        Record(*row)
        for row in db.execute(
            "SELECT number, text FROM records WHERE number > ? ORDER BY number LIMIT ?", (after, BATCH)
        )
    ]


def folds(db: sqlite3.Connection) -> list[Fold]:
    """All refusals."""
    return [Fold(*row) for row in db.execute("SELECT key, text FROM refusals")]


def rewrite(
    db: sqlite3.Connection,
    records: Sequence[Record],
    given: Sequence[Fold],
    after: int,
    seen: Ledger | None,
    *,
    exact: bool,
) -> None:
    """Replace the records after a number; add refusals to those that are there, or replace them."""
    with transaction(db):
        if seen is None:
            for table in ("records", "refusals", "ledger"):
                db.execute(f"DELETE FROM {table}")  # noqa: S608  # names of our own
        now = ledger(db)
        if seen not in {None, now}:
            raise GenerationConflict("the history was written meanwhile")
        db.execute("DELETE FROM records WHERE number > ?", (after,))
        _put_records(db, records)
        last = db.execute("SELECT number, text FROM records ORDER BY number DESC LIMIT 1").fetchone()
        (size,) = db.execute("SELECT coalesce(sum(length(text)), 0) FROM records").fetchone()
        now = rewritten(
            now, records[0] if records and not after else None, None if last is None else Record(*last), size
        )
        gone, new = exchanged(folds(db), given, exact=exact)
        db.executemany("DELETE FROM refusals WHERE key = ?", ((fold.key,) for fold in gone))
        now = with_folds(with_folds(now, gone, -1), new)
        _keep(db, with_folds(now, _put_folds(db, new), -1))


def trim(db: sqlite3.Connection, until: str, bytes_max: int, event: Event | None) -> int:
    """Forget what is overdue, in portions; returns how many records that were."""
    count, portion = 0, BATCH
    while portion == BATCH:
        with transaction(db):
            now = ledger(db)
            gone = overdue(some_records(db, 0), now, until, bytes_max)
            portion = len(gone)
            if gone:
                told, now = trimmed(now, gone, event)
                db.execute("DELETE FROM records WHERE number <= ?", (gone[-1].number,))
                _put_records(db, told)
                _keep(db, now)
        count += portion
    return count


def _put_records(db: sqlite3.Connection, records: Sequence[Record]) -> None:
    db.executemany("INSERT INTO records (number, text) VALUES (?, ?)", records)


def _put_folds(db: sqlite3.Connection, new: Sequence[Fold]) -> Sequence[Fold]:
    """Write folds, and take out those that are too many, which it returns."""
    db.executemany("INSERT OR REPLACE INTO refusals VALUES (?, ?)", new)
    (count,) = db.execute("SELECT count(*) FROM refusals").fetchone()
    gone = left_out(folds(db)) if count > FOLDS_MAX else ()
    db.executemany("DELETE FROM refusals WHERE key = ?", ((fold.key,) for fold in gone))
    return gone


def _keep(db: sqlite3.Connection, now: Ledger) -> None:
    db.execute("INSERT OR REPLACE INTO ledger VALUES (1, ?)", (encode(now),))

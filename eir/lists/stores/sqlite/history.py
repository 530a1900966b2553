"""The history in the file: its chains, refusals, and the ledgers. Functions of the connection.

The tables `records` and `feed_records` are the chains, number → text, in which anyone can look with SQL; `refusals` has key → text
(eir.lists.record.history), and `ledger` has a row for each chain: what the chain has to hold (JSON).
"""

import sqlite3
from collections.abc import Sequence

from eir.errors import GenerationConflict
from eir.lists.record.history import (
    FOLDS_MAX,
    appended,
    completed,
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
from eir.lists.record.store import ANCHOR, FEED, MAIN, Event, Fold, Ledger, Record
from eir.lists.stores.records import decode_ledger, encode
from eir.lists.stores.sqlite.file import snapshot, transaction

BATCH = 1_000
"""Records that are read, or forgotten, at a time."""
TABLES = {MAIN: ("records", 1), FEED: ("feed_records", 2)}
"""The table of each chain, and the row of its ledger."""
READ = """
SELECT number, text FROM {} WHERE (:name IS NULL OR list = :name) AND (:since IS NULL OR json_extract(text, '$.time') >= :since)
ORDER BY number DESC LIMIT :limit
"""
COUNT_OUTCOME = """
INSERT INTO outcomes VALUES (:list, :outcome, 1, :time) ON CONFLICT (coalesce(list, ''), outcome)
DO UPDATE SET count = count + 1, last = max(last, excluded.last)
"""


def ledger(db: sqlite3.Connection, chain: str = MAIN) -> Ledger:
    """The ledger of a chain."""
    found = db.execute("SELECT text FROM ledger WHERE id = ?", (TABLES[chain][1],)).fetchone()
    return Ledger() if found is None else decode_ledger(found[0])


def append(db: sqlite3.Connection, event: Event | None) -> None:
    """Append an event, in the transaction that goes on."""
    if event is not None and event.what == ANCHOR:
        event, feed = completed(event, ledger(db, FEED))
        _keep(db, feed, FEED)
    if event is None:
        return
    now = ledger(db, event.chain)
    if is_refusal(event):
        found = db.execute("SELECT text FROM refusals WHERE key = ?", (fold_key(event),)).fetchone()
        fold, now = folded(now, event, None if found is None else found[0])
        now = with_folds(now, _put_folds(db, [fold]), -1)
    else:
        records, now = appended(now, [event], _place(db, event.chain))
        _put_records(db, records, event.chain)
    _keep(db, now, event.chain)
    if is_counted(event):
        db.execute(COUNT_OUTCOME, {"list": event.list, "outcome": event.outcome, "time": event.time})


def _place(db: sqlite3.Connection, chain: str) -> int | None:
    """Number of the newest record of MAIN, which a record of FEED holds."""
    return ledger(db).number if chain == FEED else None


def record(db: sqlite3.Connection, event: Event) -> None:
    """Append an event."""
    with transaction(db):
        append(db, event)


def history(
    db: sqlite3.Connection, name: str | None, since: str | None, limit: int | None, chain: str | None
) -> list[Event]:
    """The events asked for, as of one moment."""
    values = {"name": name, "since": since, "limit": -1 if limit is None else limit}
    with snapshot(db):
        found = {
            each: [Record(*row) for row in db.execute(READ.format(table), values)]
            for each, (table, _) in TABLES.items()
            if chain in {None, each}
        }
        refused = () if chain == FEED else folds(db)
        return events_of(found.get(MAIN, ()), refused, name, since, limit, fed=found.get(FEED, ()))


def some_records(db: sqlite3.Connection, after: int, chain: str) -> list[Record]:
    """The next ones of a chain after a number."""
    return [
        Record(*row)
        for row in db.execute(
            f"SELECT number, text FROM {TABLES[chain][0]} WHERE number > ? ORDER BY number LIMIT ?",  # noqa: S608  # names of our own
            (after, BATCH),
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
    chain: str,
) -> None:
    """Replace the records of a chain after a number; add refusals to those that are there, or replace them."""
    table, row = TABLES[chain]
    with transaction(db):
        if seen is None:
            db.execute(f"DELETE FROM {table}")  # noqa: S608  # names of our own
            db.execute("DELETE FROM ledger WHERE id = ?", (row,))
            if chain == MAIN:
                db.execute("DELETE FROM refusals")
        now = ledger(db, chain)
        if seen not in {None, now}:
            raise GenerationConflict("the history was written meanwhile")
        appends = after == now.number > 0
        db.execute(f"DELETE FROM {table} WHERE number > ?", (after,))  # noqa: S608  # as above
        _put_records(db, records, chain)
        last = db.execute(f"SELECT number, text FROM {table} ORDER BY number DESC LIMIT 1").fetchone()  # noqa: S608  # as above
        if appends:  # a copy grows by a few records, and a sum would read all that it has
            size = now.bytes + sum(len(record.text) for record in records)
        else:
            (size,) = db.execute(f"SELECT coalesce(sum(length(text)), 0) FROM {table}").fetchone()  # noqa: S608  # as above
        now = rewritten(
            now, records[0] if records and not after else None, None if last is None else Record(*last), size
        )
        if chain == MAIN:
            gone, new = exchanged(folds(db), given, exact=exact)
            db.executemany("DELETE FROM refusals WHERE key = ?", ((fold.key,) for fold in gone))
            now = with_folds(with_folds(now, gone, -1), new)
            now = with_folds(now, _put_folds(db, new), -1)
        _keep(db, now, chain)


def trim(db: sqlite3.Connection, until: str, bytes_max: int | None, event: Event | None, chain: str) -> int:
    """Forget what is overdue, in portions; returns how many records that were."""
    table, _ = TABLES[chain]
    count, portion = 0, BATCH
    while portion == BATCH:
        with transaction(db):
            now = ledger(db, chain)
            gone = overdue(some_records(db, 0, chain), now, until, bytes_max)
            portion = len(gone)
            if gone:
                told, now = trimmed(now, gone, event, _place(db, chain))
                db.execute(f"DELETE FROM {table} WHERE number <= ?", (gone[-1].number,))  # noqa: S608  # as above
                _put_records(db, told, chain)
                _keep(db, now, chain)
        count += portion
    return count


def _put_records(db: sqlite3.Connection, records: Sequence[Record], chain: str) -> None:
    db.executemany(f"INSERT INTO {TABLES[chain][0]} (number, text) VALUES (?, ?)", records)  # noqa: S608  # names of our own


def _put_folds(db: sqlite3.Connection, new: Sequence[Fold]) -> Sequence[Fold]:
    """Write folds, and take out those that are too many, which it returns."""
    db.executemany("INSERT OR REPLACE INTO refusals VALUES (?, ?)", new)
    (count,) = db.execute("SELECT count(*) FROM refusals").fetchone()
    gone = left_out(folds(db)) if count > FOLDS_MAX else ()
    db.executemany("DELETE FROM refusals WHERE key = ?", ((fold.key,) for fold in gone))
    return gone


def _keep(db: sqlite3.Connection, now: Ledger, chain: str) -> None:
    db.execute("INSERT OR REPLACE INTO ledger VALUES (?, ?)", (TABLES[chain][1], encode(now)))

"""History in the SQLite file: its chains, its rejections, and its ledgers.

All functions need a connection.

The tables `records` and `feed_records` are the chains, number → text, which can be queried with SQL. `refusals` has key → text
(eir.lists.record.history), and `ledger` has each chain's ledger (JSON).
"""

import sqlite3
from collections.abc import Sequence

from eir.errors import GenerationConflict
from eir.lists.record.history import (
    FOLDS_MAX,
    append_events,
    complete_anchor,
    events_of,
    excess_folds,
    exchange_folds,
    fold_key,
    fold_refusal,
    is_counted,
    is_refusal,
    overdue_records,
    rewritten_ledger,
    trim_records,
    with_folds,
)
from eir.lists.record.store import ANCHOR, FEED, MAIN, Event, Fold, Ledger, Record
from eir.lists.stores.records import decode_ledger, encode
from eir.lists.stores.sqlite.file import snapshot, transaction

BATCH = 1_000
"""Records that are read or deleted together."""
TABLES = {MAIN: ("records", 1), FEED: ("feed_records", 2)}
"""Table of each chain, and the row of its ledger."""
READ = """
SELECT number, text FROM {} WHERE (:name IS NULL OR list = :name) AND (:since IS NULL OR json_extract(text, '$.time') >= :since)
ORDER BY number DESC LIMIT :limit
"""
COUNT_OUTCOME = """
INSERT INTO outcomes VALUES (:list, :outcome, 1, :time) ON CONFLICT (coalesce(list, ''), outcome)
DO UPDATE SET count = count + 1, last = max(last, excluded.last)
"""


def ledger(db: sqlite3.Connection, chain: str = MAIN) -> Ledger:
    """Return the ledger of a chain of the history."""
    row = db.execute("SELECT text FROM ledger WHERE id = ?", (TABLES[chain][1],)).fetchone()
    return Ledger() if row is None else decode_ledger(row[0])


def append(db: sqlite3.Connection, event: Event | None) -> None:
    """Append an event to the history in the current transaction."""
    if event is not None and event.what == ANCHOR:
        event, feed = complete_anchor(event, ledger(db, FEED))
        _save_ledger(db, feed, FEED)
    if event is None:
        return
    now = ledger(db, event.chain)
    if is_refusal(event):
        row = db.execute("SELECT text FROM refusals WHERE key = ?", (fold_key(event),)).fetchone()
        fold, now = fold_refusal(now, event, None if row is None else row[0])
        now = with_folds(now, _insert_folds(db, [fold]), -1)
    else:
        records, now = append_events(now, [event], _place(db, event.chain))
        _insert_records(db, records, event.chain)
    _save_ledger(db, now, event.chain)
    if is_counted(event):
        db.execute(COUNT_OUTCOME, {"list": event.list, "outcome": event.outcome, "time": event.time})


def _place(db: sqlite3.Connection, chain: str) -> int | None:
    """Return the number of MAIN's newest record if the chain is FEED, else None."""
    return ledger(db).number if chain == FEED else None


def record(db: sqlite3.Connection, event: Event) -> None:
    """Append an event to the history in a transaction of its own."""
    with transaction(db):
        append(db, event)


def history(
    db: sqlite3.Connection, name: str | None, since: str | None, limit: int | None, chain: str | None
) -> list[Event]:
    """Return events of the history, all from one read transaction."""
    values = {"name": name, "since": since, "limit": -1 if limit is None else limit}
    with snapshot(db):
        records_of = {
            each: [Record(*row) for row in db.execute(READ.format(table), values)]
            for each, (table, _) in TABLES.items()
            if chain in {None, each}
        }
        refused = () if chain == FEED else folds(db)
        return events_of(records_of.get(MAIN, ()), refused, name, since, limit, fed=records_of.get(FEED, ()))


def some_records(db: sqlite3.Connection, after: int, chain: str) -> list[Record]:
    """Return up to BATCH records of a chain that follow number `after`."""
    return [
        Record(*row)
        for row in db.execute(
            f"SELECT number, text FROM {TABLES[chain][0]} WHERE number > ? ORDER BY number LIMIT ?",  # noqa: S608  # names of our own
            (after, BATCH),
        )
    ]


def folds(db: sqlite3.Connection) -> list[Fold]:
    """Return all folds, in which rejections are counted."""
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
    """Replace the records of a chain after number `after`; add the folds, or with `exact` replace all folds."""
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
        _insert_records(db, records, chain)
        last = db.execute(f"SELECT number, text FROM {table} ORDER BY number DESC LIMIT 1").fetchone()  # noqa: S608  # as above
        if appends:  # usually a few records: a sum over the table would read all of it
            size = now.bytes + sum(len(record.text) for record in records)
        else:
            (size,) = db.execute(f"SELECT coalesce(sum(length(text)), 0) FROM {table}").fetchone()  # noqa: S608  # as above
        now = rewritten_ledger(
            now, records[0] if records and not after else None, None if last is None else Record(*last), size
        )
        if chain == MAIN:
            gone, new = exchange_folds(folds(db), given, exact=exact)
            db.executemany("DELETE FROM refusals WHERE key = ?", ((fold.key,) for fold in gone))
            now = with_folds(with_folds(now, gone, -1), new)
            now = with_folds(now, _insert_folds(db, new), -1)
        _save_ledger(db, now, chain)


def trim(db: sqlite3.Connection, until: str, bytes_max: int | None, event: Event | None, chain: str) -> int:
    """Delete records that are too old or exceed `bytes_max`, in portions; return the number of deleted records."""
    table, _ = TABLES[chain]
    count, portion = 0, BATCH
    while portion == BATCH:
        with transaction(db):
            now = ledger(db, chain)
            gone = overdue_records(some_records(db, 0, chain), now, until, bytes_max)
            portion = len(gone)
            if gone:
                trim_record, now = trim_records(now, gone, event, _place(db, chain))
                db.execute(f"DELETE FROM {table} WHERE number <= ?", (gone[-1].number,))  # noqa: S608  # as above
                _insert_records(db, trim_record, chain)
                _save_ledger(db, now, chain)
        count += portion
    return count


def _insert_records(db: sqlite3.Connection, records: Sequence[Record], chain: str) -> None:
    db.executemany(f"INSERT INTO {TABLES[chain][0]} (number, text) VALUES (?, ?)", records)  # noqa: S608  # names of our own


def _insert_folds(db: sqlite3.Connection, new: Sequence[Fold]) -> Sequence[Fold]:
    """Write folds, and delete the oldest folds above the maximum; return the deleted folds."""
    db.executemany("INSERT OR REPLACE INTO refusals VALUES (?, ?)", new)
    (count,) = db.execute("SELECT count(*) FROM refusals").fetchone()
    gone = excess_folds(folds(db)) if count > FOLDS_MAX else ()
    db.executemany("DELETE FROM refusals WHERE key = ?", ((fold.key,) for fold in gone))
    return gone


def _save_ledger(db: sqlite3.Connection, now: Ledger, chain: str) -> None:
    db.execute("INSERT OR REPLACE INTO ledger VALUES (?, ?)", (TABLES[chain][1], encode(now)))

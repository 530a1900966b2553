"""History of lists in the SQLite file: chains of records, counts of refused releases, and ledgers.

The tables `records` and `feed_records` are the chains, number → text, and can be queried with SQL. The table `refusals` has
key → text (eir.lists.record.history). The table `ledger` has the ledger of each chain as JSON.
"""

import sqlite3
from collections.abc import Sequence

from eir.errors import GenerationConflict
from eir.lists.record.history import (
    FOLDS_MAX,
    append_events,
    compare_folds,
    complete_anchor,
    events_of,
    excess_folds,
    fold_key,
    fold_refusal,
    is_counted,
    is_refusal,
    overdue_records,
    replace_folds,
    rewritten_ledger,
    trim_records,
)
from eir.lists.record.store import ANCHOR, FEED, MAIN, Event, Fold, Ledger, Record
from eir.lists.stores.records import decode_ledger, encode
from eir.lists.stores.sqlite.file import snapshot, transaction

BATCH = 1_000
"""Maximum number of records that are read or deleted together."""
TABLES = {MAIN: ("records", 1), FEED: ("feed_records", 2)}
"""Chain → its table, and the ID of the row with its ledger."""
READ = """
SELECT number, text FROM {} WHERE (:name IS NULL OR list = :name) AND (:since IS NULL OR json_extract(text, '$.time') >= :since)
ORDER BY number DESC LIMIT :limit
"""
COUNT_OUTCOME = """
INSERT INTO outcomes VALUES (:list, :outcome, 1, :time) ON CONFLICT (coalesce(list, ''), outcome)
DO UPDATE SET count = count + 1, last = max(last, excluded.last)
"""


def ledger(db: sqlite3.Connection, chain: str = MAIN) -> Ledger:
    """Return the ledger (size, newest number and digest) of a chain of the history."""
    _, row_id = TABLES[chain]
    row = db.execute("SELECT text FROM ledger WHERE id = ?", (row_id,)).fetchone()
    return Ledger() if row is None else decode_ledger(row[0])


def append(db: sqlite3.Connection, event: Event | None) -> None:
    """Append an event to the history in the current transaction."""
    if event is not None and event.what == ANCHOR:
        event, feed = complete_anchor(event, ledger(db, FEED))
        _save_ledger(db, feed, FEED)
    if event is None:
        return
    new_ledger = ledger(db, event.chain)
    if is_refusal(event):
        row = db.execute("SELECT text FROM refusals WHERE key = ?", (fold_key(event),)).fetchone()
        fold, new_ledger = fold_refusal(new_ledger, event, None if row is None else row[0])
        removed = _insert_folds(db, [fold])
        new_ledger = replace_folds(new_ledger, removed)
    else:
        records, new_ledger = append_events(new_ledger, [event], _newest_main_number(db, event.chain))
        _insert_records(db, records, event.chain)
    _save_ledger(db, new_ledger, event.chain)
    if is_counted(event):
        values = {"list": event.list, "outcome": event.outcome, "time": event.time}
        db.execute(COUNT_OUTCOME, values)


def _newest_main_number(db: sqlite3.Connection, chain: str) -> int | None:
    """If `chain` is FEED, return the number of the newest record in MAIN, for new records of FEED; otherwise return None."""
    return ledger(db).number if chain == FEED else None


def record(db: sqlite3.Connection, event: Event) -> None:
    """Append an event to the history in a transaction of its own."""
    with transaction(db):
        append(db, event)


def history(
    db: sqlite3.Connection, name: str | None, since: str | None, limit: int | None, chain: str | None
) -> list[Event]:
    """Return events of the history from one read transaction, filtered as in ListStore.history."""
    values = {"name": name, "since": since, "limit": -1 if limit is None else limit}
    records: dict[str, list[Record]] = {MAIN: [], FEED: []}
    refusals: list[Fold] = []
    with snapshot(db):
        for each, (table, _) in TABLES.items():
            if chain in {None, each}:
                rows = db.execute(READ.format(table), values)
                records[each] = [Record(*row) for row in rows]
        if chain != FEED:
            refusals = folds(db)
    return events_of(records[MAIN], refusals, name, since, limit, fed=records[FEED])


def some_records(db: sqlite3.Connection, after: int, chain: str) -> list[Record]:
    """Return the next records of a chain, at most BATCH, whose record number is above `after`."""
    table, _ = TABLES[chain]
    statement = f"SELECT number, text FROM {table} WHERE number > ? ORDER BY number LIMIT ?"  # noqa: S608  # names of our own
    rows = db.execute(statement, (after, BATCH))
    return [Record(*row) for row in rows]


def folds(db: sqlite3.Connection) -> list[Fold]:
    """Return all folds of the history. A fold counts the refused releases of one day that have the same list, sender and reason."""
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
    """Replace the records of a chain after record number `after` by `records`.

    The folds `given` (counts of refusals) are added to the stored folds. If `exact`, they replace all stored folds.
    """
    table, row_id = TABLES[chain]
    with transaction(db):
        if seen is None:
            db.execute(f"DELETE FROM {table}")  # noqa: S608  # names of our own
            db.execute("DELETE FROM ledger WHERE id = ?", (row_id,))
            if chain == MAIN:
                db.execute("DELETE FROM refusals")
        present = ledger(db, chain)
        if seen not in {None, present}:
            raise GenerationConflict("the history was written meanwhile")
        db.execute(f"DELETE FROM {table} WHERE number > ?", (after,))  # noqa: S608  # as above
        _insert_records(db, records, chain)
        last_row = db.execute(f"SELECT number, text FROM {table} ORDER BY number DESC LIMIT 1").fetchone()  # noqa: S608  # as above
        if after == present.number > 0:  # usually a few records are appended: a sum would read the whole table
            size = present.bytes + sum(len(record.text) for record in records)
        else:
            (size,) = db.execute(f"SELECT coalesce(sum(length(text)), 0) FROM {table}").fetchone()  # noqa: S608  # as above
        first = records[0] if records and not after else None
        last = None if last_row is None else Record(*last_row)
        new_ledger = rewritten_ledger(present, first, last, size)
        if chain == MAIN:
            removed, added = compare_folds(folds(db), given, exact=exact)
            _delete_folds(db, removed)
            new_ledger = replace_folds(new_ledger, removed, added)
            excess = _insert_folds(db, added)
            new_ledger = replace_folds(new_ledger, excess)
        _save_ledger(db, new_ledger, chain)


def trim(db: sqlite3.Connection, until: str, bytes_max: int | None, event: Event | None, chain: str) -> int:
    """Delete the records of a chain before `until`, and further oldest records until the chain has at most `bytes_max`.

    The function returns the number of deleted records.

    The records are deleted in portions, each in one transaction.
    """
    table, _ = TABLES[chain]
    count, portion = 0, BATCH
    while portion == BATCH:
        with transaction(db):
            present = ledger(db, chain)
            oldest = some_records(db, 0, chain)
            overdue = overdue_records(oldest, present, until, bytes_max)
            portion = len(overdue)
            if overdue:
                trim_record, new_ledger = trim_records(present, overdue, event, _newest_main_number(db, chain))
                db.execute(f"DELETE FROM {table} WHERE number <= ?", (overdue[-1].number,))  # noqa: S608  # as above
                _insert_records(db, trim_record, chain)
                _save_ledger(db, new_ledger, chain)
        count += portion
    return count


def _insert_records(db: sqlite3.Connection, records: Sequence[Record], chain: str) -> None:
    table, _ = TABLES[chain]
    db.executemany(f"INSERT INTO {table} (number, text) VALUES (?, ?)", records)  # noqa: S608  # names of our own


def _insert_folds(db: sqlite3.Connection, new: Sequence[Fold]) -> Sequence[Fold]:
    """Store new folds (counts of refused releases). If there are then more than FOLDS_MAX folds, delete the oldest and return them."""
    db.executemany("INSERT OR REPLACE INTO refusals VALUES (?, ?)", new)
    (count,) = db.execute("SELECT count(*) FROM refusals").fetchone()
    if count <= FOLDS_MAX:
        return ()
    excess = excess_folds(folds(db))
    _delete_folds(db, excess)
    return excess


def _delete_folds(db: sqlite3.Connection, removed: Sequence[Fold]) -> None:
    keys = [(fold.key,) for fold in removed]
    db.executemany("DELETE FROM refusals WHERE key = ?", keys)


def _save_ledger(db: sqlite3.Connection, new_ledger: Ledger, chain: str) -> None:
    _, row_id = TABLES[chain]
    db.execute("INSERT OR REPLACE INTO ledger VALUES (?, ?)", (row_id, encode(new_ledger)))

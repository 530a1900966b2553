"""Reader of pages in the SQLite file. Each function reads in one transaction."""

import sqlite3
from collections.abc import Sequence
from math import inf
from typing import Any, NamedTuple

from eir.lists.pages.pages import NUMBER_BITS, Page
from eir.lists.stores.records import VALUE_BYTES_MAX
from eir.lists.stores.sqlite.file import NUMBER_MASK, snapshot

READ_BYTES = 1 << 18
"""Size in bytes after which a batch of a whole list ends."""
ROW_BYTES = 100
"""Bytes of memory of a page without its content."""
BOUND = {"bits": NUMBER_BITS, "mask": NUMBER_MASK, "most": VALUE_BYTES_MAX}
# A value that is longer than any page is read as empty. The content digest of the list then reveals the fault.
PAGE = "id & :mask, iif(length(keys) > :most, x'', keys), iif(length(extra) > :most, x'', extra)"
READ_STATE = "SELECT generation, iif(length(state) > :most, '', state), page_set FROM lists WHERE name = :name"
READ_BATCH = f"""
SELECT {PAGE} FROM pages WHERE id BETWEEN (:page_set << :bits | :first) AND (:page_set << :bits | :mask) ORDER BY id
"""  # noqa: S608  # all parts are constants of this module
READ_SOME = f"""
SELECT {PAGE} FROM pages WHERE id IN (SELECT :page_set << :bits | value FROM json_each(:numbers)) ORDER BY id
"""  # noqa: S608  # as above


class Batch(NamedTuple):
    """Pages and state of a list, read in one transaction."""

    generation: int
    state: str
    """JSON of the state."""
    pages: Sequence[Page]
    is_last: bool
    """True if no further page follows."""


def read_batch(db: sqlite3.Connection, name: str, first: int) -> Batch | None:
    """Return the pages from number `first` on, up to about READ_BYTES; None if the list does not exist."""
    return _read(db, name, READ_BATCH, {"first": first}, READ_BYTES)


def read_some(db: sqlite3.Connection, name: str, numbers: Sequence[int]) -> Batch | None:
    """Return the numbered pages of a list that exist; None if the list does not exist."""
    return _read(db, name, READ_SOME, {"numbers": str([*numbers])})


def read_set(db: sqlite3.Connection, page_set: int, numbers: Sequence[int]) -> list[Page]:
    """Return the pages of a page set with these numbers, without missing pages."""
    values = {"page_set": page_set, "numbers": str([*numbers]), **BOUND}
    return [Page(*row) for row in db.execute(READ_SOME, values)]


def _read(
    db: sqlite3.Connection, name: str, statement: str, values: dict[str, Any], bytes_max: float = inf
) -> Batch | None:
    with snapshot(db):
        row = db.execute(READ_STATE, {"name": name, "most": VALUE_BYTES_MAX}).fetchone()
        if row is None:
            return None
        generation, state, page_set = row
        rows = db.execute(statement, {"page_set": page_set, **values, **BOUND})
        pages: list[Page] = []
        size = 0
        for row in rows:
            if size > bytes_max:
                rows.close()
                return Batch(generation, state, pages, is_last=False)
            page = Page(*row)
            size += len(page.keys) + len(page.extra) + ROW_BYTES
            pages.append(page)
        return Batch(generation, state, pages, is_last=True)

"""Engines of the analysis, which make tables by name, with SQL.

DuckDB does it on one machine (duck.py), Spark on several (spark.py). The SQL is DuckDB's, limited to what can be
translated for others with the same result: integers, and decimal numbers that stand for doubles, ties broken by name,
no function that another engine lacks except those in FUNCTIONS. Imports no engine.
"""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

SQL = Path(__file__).parent / "sql"
TABLES = {path.stem.partition("_")[2]: path for path in sorted((SQL / "tables").glob("*.sql"))}
"""Tables that the conditions look at, in the order in which one is made from another."""

FUNCTIONS = {"instant_s": ("t", "EPOCH_US(t) / 1000000")}
"""Functions of ours in the SQL: the argument's name, and what it stands for. instant_s: Unix seconds of a moment, as a double."""


class Engine(Protocol):
    """Tables by name. All SQL that it is given is in DuckDB's dialect."""

    def define(self, name: str, select: str) -> None:
        """Make a table of a SELECT; one of that name is replaced, and may be what the SELECT reads."""

    def fill(self, name: str, columns: str, rows: Sequence[Sequence[Any]]) -> None:
        """Make a table of values; `columns` with their types."""

    def rows(self, select: str) -> list[tuple[Any, ...]]:
        """Return the rows of a SELECT."""


def number(engine: Engine, select: str) -> int:
    """The one number that a SELECT gives."""
    return int(engine.rows(select)[0][0])


def window(columns: str, source: str, since: datetime, until: datetime, without: Sequence[str] = ()) -> str:
    """The SELECT of the sightings of a time, each with the number of its day; `without`: peers whose checks are no subscribers'.

    What is early is left out: anybody may have named the SIM, so that it speaks against nobody.
    """
    asked = ", ".join("'" + peer.replace("'", "''") + "'" for peer in ("", *without))
    limits = f"time >= TIMESTAMP '{since:%Y-%m-%d %H:%M:%S}' AND time < TIMESTAMP '{until:%Y-%m-%d %H:%M:%S}' AND (peer IS NULL OR NOT peer IN ({asked})) AND COALESCE(early, FALSE) = FALSE"
    return f"SELECT {columns}, CAST(DATE_DIFF('day', DATE '{since:%Y-%m-%d}', CAST(time AS DATE)) AS INTEGER) AS day FROM {source} WHERE {limits}"  # noqa: S608 - names of ours

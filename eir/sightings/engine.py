"""Engines of the analysis, which make tables by name, with SQL: their contract, and DuckDB, which judges on one machine.

Spark does it on several (spark.py). The SQL is DuckDB's, limited to what can be translated for others with the same result: integers, and
decimal numbers that stand for doubles, ties broken by name, no function that another engine lacks except `instant_s`: Unix seconds of a
moment, as a double. What does not fit into DuckDB's memory goes to a folder of the run's own, which only its user may read. Imports
duckdb, which is installed by `pip install '.[analysis]'` in the clone.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from eir.errors import EirError, SetupFault
from eir.sightings.schema import SCHEMA

if TYPE_CHECKING:
    import duckdb

SQL = Path(__file__).parent / "sql"
TABLES = {path.stem.partition("_")[2]: path for path in sorted((SQL / "tables").glob("*.sql"))}
"""Tables that the conditions look at, in the order in which one is made from another."""


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


def window(source: str, since: datetime, until: datetime, without: Sequence[str] = ()) -> str:
    """The SELECT of the sightings of a time, each with the number of its day; `without`: peers whose checks are no subscribers'.

    What is early is left out: anybody may have named the SIM, so that it speaks against nobody.
    """
    asked = ", ".join("'" + peer.replace("'", "''") + "'" for peer in ("", *without))
    limits = f"time >= TIMESTAMP '{since:%Y-%m-%d %H:%M:%S}' AND time < TIMESTAMP '{until:%Y-%m-%d %H:%M:%S}' AND (peer IS NULL OR NOT peer IN ({asked})) AND COALESCE(early, FALSE) = FALSE"
    return f"SELECT {', '.join(SCHEMA)}, CAST(DATE_DIFF('day', DATE '{since:%Y-%m-%d}', CAST(time AS DATE)) AS INTEGER) AS day FROM {source} WHERE {limits}"  # noqa: S608 - names of ours


class Duck:
    """Tables in DuckDB (an Engine)."""

    def __init__(self, connection: "duckdb.DuckDBPyConnection") -> None:
        self._connection = connection

    def define(self, name: str, select: str) -> None:
        """As Engine.define."""
        self._connection.execute(f"CREATE OR REPLACE TABLE {name} AS {select}")

    def fill(self, name: str, columns: str, rows: Sequence[Sequence[Any]]) -> None:
        """As Engine.fill."""
        self._connection.execute(f"CREATE OR REPLACE TABLE {name} ({columns})")
        if rows:  # by columns: a list of TACs has hundreds of thousands
            self._connection.execute(
                f"INSERT INTO {name} SELECT {', '.join('UNNEST(?)' for _ in rows[0])}",
                [list(column) for column in zip(*rows, strict=True)],
            )

    def rows(self, select: str) -> list[tuple[Any, ...]]:
        """As Engine.rows."""
        return self._connection.execute(select).fetchall()


@contextmanager
def duck(
    files: str | list[str],
    *,
    since: datetime,
    until: datetime,
    memory: int,
    threads: int | None = None,
    without: Sequence[str] = (),
) -> Iterator[Duck]:
    """An engine with `sightings` from `since` to before `until` (both naive UTC), of the files that a pattern or a list names.

    `without`: peers whose checks are left out. Raises SetupFault without duckdb, and EirError where the memory or the disk does not suffice or a file cannot be read.
    """
    try:
        import duckdb  # noqa: PLC0415 - takes a while, and only an analysis on this machine needs it
    except ModuleNotFoundError:
        raise SetupFault("the analysis needs DuckDB: in the clone, pip install '.[analysis]'") from None
    with tempfile.TemporaryDirectory(prefix="eir-tamper-") as spill, duckdb.connect() as connection:
        connection.execute(f"""
            SET memory_limit = '{memory >> 20}MiB';
            SET preserve_insertion_order = false;
            SET TimeZone = 'UTC';
            SET enable_progress_bar = false;
            SET temp_directory = '{spill}';
            CREATE MACRO instant_s(t) AS EPOCH_US(t) / 1000000;
        """)
        if threads:
            connection.execute(f"SET threads = {threads}")
        # Files from before there were such columns lack them.
        source = f"(SELECT * FROM read_parquet({files!r}, union_by_name = true) UNION ALL BY NAME SELECT CAST(NULL AS VARCHAR) AS peer, CAST(NULL AS BOOLEAN) AS early WHERE FALSE) AS recorded"  # noqa: S608 - names of ours
        try:
            connection.execute(f"CREATE VIEW sightings AS {window(source, since, until, without)}")
            yield Duck(connection)
        except duckdb.OutOfMemoryException as e:
            raise EirError(
                f"the analysis needs more than it may take: tamper.memory is {memory >> 20} MiB ({str(e).splitlines()[0]})"
            ) from None
        except duckdb.Error as e:  # a full disk, a file that is damaged
            raise EirError(f"the record cannot be judged: {str(e).splitlines()[0]}") from None

"""SQL engine of the analysis on one machine: DuckDB. Spark (spark.py) is for several machines.

The SQL is DuckDB's, limited to parts with the same result on both engines: integers, doubles with an exponent (`25e-2`), ties broken
by name, functions of both, and `instant_s` (Unix seconds of a time, as a double). DuckDB writes data that exceeds its memory to a
temporary folder that only its user can read. `pip install '.[analysis]'` in the clone installs duckdb.
"""

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eir.errors import EirError, SetupFault
from eir.sightings.schema import SCHEMA

if TYPE_CHECKING:
    import duckdb

SQL = Path(__file__).with_name("analysis.sql")
TABLES: dict[str, str] = {
    name: select.strip() for name, select in re.findall(r"^-- (\w+): .*\n((?:(?!-- ).*\n)+)", SQL.read_text("utf-8"), re.MULTILINE)
}  # fmt: skip
"""Tables of the analysis with their SELECTs, in the order in which they are built. A SELECT has names in braces for values."""


def window_select(source: str, since: datetime, until: datetime, without: Sequence[str] = ()) -> str:
    """Build the SELECT of the checks in `source` from `since` to before `until`, except those of the peers `without`.

    A column `day` counts the days from `since`. Early checks are left out, because any phone can claim an IMSI before authentication.
    """
    peers = ", ".join("'" + peer.replace("'", "''") + "'" for peer in ("", *without))
    limits = f"time >= TIMESTAMP '{since:%Y-%m-%d %H:%M:%S}' AND time < TIMESTAMP '{until:%Y-%m-%d %H:%M:%S}' AND (peer IS NULL OR NOT peer IN ({peers})) AND COALESCE(early, FALSE) = FALSE"
    return f"SELECT {', '.join(SCHEMA)}, CAST(DATE_DIFF('day', DATE '{since:%Y-%m-%d}', CAST(time AS DATE)) AS INTEGER) AS day FROM {source} WHERE {limits}"  # noqa: S608 - names of ours


class Duck:
    """Engine whose tables are in DuckDB."""

    def __init__(self, connection: "duckdb.DuckDBPyConnection") -> None:
        self._connection = connection

    def define(self, name: str, select: str) -> None:
        """Create or replace the table `name` from a SELECT, which may read the table that is replaced."""
        self._connection.execute(f"CREATE OR REPLACE TABLE {name} AS {select}")

    def fill(self, name: str, columns: str, rows: Sequence[Sequence[Any]]) -> None:
        """Create a table from rows of values. `columns`: names and SQL types."""
        self._connection.execute(f"CREATE OR REPLACE TABLE {name} ({columns})")
        if rows:  # by columns: a list of TACs has hundreds of thousands
            columns_of_rows = [list(column) for column in zip(*rows, strict=True)]
            self._connection.execute(f"INSERT INTO {name} SELECT {', '.join('UNNEST(?)' for _ in rows[0])}", columns_of_rows)  # fmt: skip

    def rows(self, select: str) -> list[tuple[Any, ...]]:
        """Run a SELECT and return its rows."""
        return self._connection.execute(select).fetchall()


@contextmanager
def duck(
    files: str | list[str], *, since: datetime, until: datetime, memory: int, threads: int | None = None, without: Sequence[str] = (),
) -> Iterator[Duck]:  # fmt: skip
    """Open a DuckDB engine whose view `sightings` has the checks from `since` to before `until` (naive UTC).

    Args:
        files: pattern or list of the record's files.
        since: start.
        until: end.
        memory: memory in bytes; the engine uses the disk beyond that.
        threads: number of threads; None: DuckDB's default.
        without: labels of probes, whose checks are left out.

    Raises:
        SetupFault: if duckdb is not installed.
        EirError: if memory or disk do not suffice, or a file cannot be read.
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
        # Older files lack some columns.
        columns = ", ".join(f"CAST(NULL AS {kind}) AS {name}" for name, kind in SCHEMA.items())
        source = f"(SELECT * FROM read_parquet({files!r}, union_by_name = true) UNION ALL BY NAME SELECT {columns} WHERE FALSE) AS recorded"  # noqa: S608 - names of ours
        try:
            connection.execute(f"CREATE VIEW sightings AS {window_select(source, since, until, without)}")
            yield Duck(connection)
        except duckdb.OutOfMemoryException as e:
            raise EirError(f"the analysis needs more memory than tamper.memory ({memory >> 20} MiB); raise it ({str(e).splitlines()[0]})") from None  # fmt: skip
        except duckdb.Error as e:  # a full disk, a damaged file
            raise EirError(f"the record cannot be analysed: {str(e).splitlines()[0]}") from None

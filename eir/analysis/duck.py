"""DuckDB over the files of the record: one database in memory for one judgement, with limits on what it takes.

What does not fit into the memory goes to a folder of the run's own, which only its user may read. Imports duckdb, which is installed by
`pip install '.[analysis]'` in the clone.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

from eir.analysis.engine import FUNCTIONS, window
from eir.analysis.schema import SCHEMA
from eir.errors import EirError, SetupFault

if TYPE_CHECKING:
    import duckdb


class Duck:
    """Tables in DuckDB (an eir.analysis.engine.Engine)."""

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
    files: str | Sequence[str],
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
        connection.execute(f"SET memory_limit = '{memory >> 20}MiB'")
        connection.execute("SET preserve_insertion_order = false")
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute("SET enable_progress_bar = false")
        connection.execute(f"SET temp_directory = '{spill}'")
        if threads:
            connection.execute(f"SET threads = {threads}")
        for name, (argument, body) in FUNCTIONS.items():
            connection.execute(f"CREATE MACRO {name}({argument}) AS {body}")
        names = [files] if isinstance(files, str) else list(files)
        # Files from before there were such columns lack them.
        source = f"(SELECT * FROM read_parquet({names!r}, union_by_name = true) UNION ALL BY NAME SELECT CAST(NULL AS VARCHAR) AS peer, CAST(NULL AS BOOLEAN) AS early WHERE FALSE) AS recorded"  # noqa: S608 - names of ours
        try:
            connection.execute(f"CREATE VIEW sightings AS {window(', '.join(SCHEMA), source, since, until, without)}")
            yield Duck(connection)
        except duckdb.OutOfMemoryException as e:
            raise EirError(
                f"the analysis needs more than it may take: tamper.memory is {memory >> 20} MiB ({_first(e)})"
            ) from None
        except duckdb.Error as e:  # a full disk, a file that is damaged
            raise EirError(f"the record cannot be judged: {_first(e)}") from None


def _first(fault: Exception) -> str:
    return str(fault).splitlines()[0]

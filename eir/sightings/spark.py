"""Spark engine, for records that are too large for one machine. sqlglot translates its SQL.

Each table is written to a work folder that the whole cluster can reach, and later tables read it there; the folder is deleted
at the end. `pip install '.[spark]'` in the clone installs pyspark and sqlglot.
"""

import json
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import date, datetime
from typing import TYPE_CHECKING, Any

from eir.errors import EirError, SetupFault
from eir.sightings.engine import window_select
from eir.sightings.schema import SCHEMA

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

TYPES = {"VARCHAR": "STRING", "INTEGER": "INT", "UINTEGER": "BIGINT", "TIMESTAMP": "TIMESTAMP_NTZ"}
"""DuckDB types with another name in Spark, which reads unsigned numbers as the next larger type."""
SETTINGS = {
    "spark.app.name": "eir tamper", "spark.log.level": "ERROR", "spark.ui.enabled": "false", "spark.ui.showConsoleProgress": "false",
    "spark.sql.session.timeZone": "UTC", "spark.sql.timestampType": "TIMESTAMP_NTZ",
}  # fmt: skip
"""Settings that affect results and output; all others are in the operator's spark-defaults.conf. All times are UTC without a zone."""


class Spark:
    """Engine whose tables are in Spark."""

    def __init__(self, session: "SparkSession", work: str) -> None:
        self._session = session
        self._work = work

    def define(self, name: str, select: str) -> None:
        """Create or replace a table from a SELECT (see Duck.define)."""
        self._write_table(name, self._session.sql(translate(select)))

    def fill(self, name: str, columns: str, rows: Sequence[Sequence[Any]]) -> None:
        """Create a table from rows of values (see Duck.fill)."""
        fields = [column.split() for column in columns.split(", ")]
        layout = ", ".join(f"{field}: {TYPES.get(kind, kind)}" for field, kind in fields)
        select = f"SELECT INLINE(FROM_JSON(:rows, 'ARRAY<STRUCT<{layout}>>'))"
        # As one text: Python objects would need this version of Python on every worker.
        text = json.dumps([dict(zip((field for field, _ in fields), row, strict=True)) for row in rows], default=date.isoformat)  # fmt: skip
        self._write_table(name, self._session.sql(select, {"rows": text}))

    def rows(self, select: str) -> list[tuple[Any, ...]]:
        """Run a SELECT and return its rows."""
        return [tuple(row) for row in self._session.sql(translate(select)).collect()]

    def _write_table(self, name: str, frame: "DataFrame") -> None:
        """Write a table to the work folder, so that Spark computes it once and later SELECTs can read it."""
        path = f"{self._work}/{name}-{secrets.token_hex(8)}"
        frame.write.parquet(path)
        # With the schema given, Spark needs no job to read it.
        self._session.read.schema(frame.schema).parquet(path).createOrReplaceTempView(name)


@contextmanager
def spark(
    files: str | list[str], *, since: datetime, until: datetime, master: str, work: str, without: Sequence[str] = ()
) -> Iterator[Spark]:
    """Open a Spark engine whose view `sightings` has the checks from `since` to before `until` (see engine.duck).

    Args:
        files: pattern or list of the record's files.
        since: start.
        until: end.
        master: Spark's master: spark://HOST:PORT, yarn, k8s://…, or local[2] in this process.
        work: folder, as a path or URL that every worker reaches.
        without: labels of probes, whose checks are left out.

    Raises:
        SetupFault: if pyspark is not installed.
        EirError: if Spark fails.
    """
    try:
        import sqlglot  # noqa: F401, PLC0415 - fails before Spark is started
        from py4j.protocol import Py4JError  # noqa: PLC0415 - Spark's bridge to Java
        from pyspark.errors import PySparkException  # noqa: PLC0415 - only needed here
        from pyspark.sql import SparkSession  # noqa: PLC0415 - as above
    except ModuleNotFoundError:
        raise SetupFault("the analysis on a cluster needs Spark and sqlglot: in the clone, pip install '.[spark]'; and a Java runtime") from None  # fmt: skip
    try:
        session = SparkSession.builder.master(master).config(map=SETTINGS).getOrCreate()
    except (PySparkException, Py4JError, OSError) as e:
        raise EirError(f"Spark at {master} cannot be reached: {_first(e)}") from None
    own = f"{work.rstrip('/')}/eir-tamper-{secrets.token_hex(8)}"
    try:
        columns = ", ".join(f"{name} {TYPES.get(kind, kind)}" for name, kind in SCHEMA.items())
        recorded = session.read.schema(columns).parquet(*([files] if isinstance(files, str) else files))
        recorded.createOrReplaceTempView("recorded")
        session.sql(translate(window_select("recorded", since, until, without))).createOrReplaceTempView("sightings")
        session.sql(
            "CREATE TEMPORARY FUNCTION instant_s(t TIMESTAMP_NTZ) RETURNS DOUBLE RETURN CAST(UNIX_MICROS(t) AS DOUBLE) / 1000000"
        )
        yield Spark(session, own)
    except (PySparkException, Py4JError) as e:
        raise EirError(f"the record cannot be analysed on Spark at {master}: {_first(e)}") from None
    finally:
        with suppress(PySparkException, Py4JError, OSError):  # a lost Spark is already reported
            java = session._jvm  # noqa: SLF001 - Spark's own way to a file system of Hadoop's has no other name in Python
            path = java.org.apache.hadoop.fs.Path(own)
            path.getFileSystem(session._jsc.hadoopConfiguration()).delete(path, True)  # noqa: SLF001 - as above
            session.stop()


def translate(select: str) -> str:
    """Translate a SELECT from DuckDB's dialect to Spark's. sqlglot raises its errors for parts without a translation."""
    import sqlglot  # noqa: PLC0415 - where it is needed

    return str(sqlglot.transpile(select, read="duckdb", write="spark", unsupported_level=sqlglot.ErrorLevel.RAISE, comments=False)[0])  # fmt: skip


def _first(fault: Exception) -> str:
    first, *more = str(fault).splitlines() or [type(fault).__name__]
    return more[0].lstrip(": ") if more and first.startswith("An error occurred while calling") else first

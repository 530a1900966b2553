"""Spark over the files of the record, for what one machine does not hold: the same SQL, its dialect translated by sqlglot.

Each table is written into a work folder that all of the cluster can reach, and read from there by what builds on it; the folder of a
run goes at its end. Imports pyspark and sqlglot, which are installed by `pip install '.[spark]'` in the clone.
"""

import json
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import date, datetime
from typing import TYPE_CHECKING, Any

from eir.errors import EirError, SetupFault
from eir.sightings.engine import window
from eir.sightings.schema import SCHEMA

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from sqlglot.expressions import Expression

TYPES = {"VARCHAR": "STRING", "INTEGER": "INT", "UINTEGER": "BIGINT", "TIMESTAMP": "TIMESTAMP_NTZ"}
"""Types of DuckDB that have another name; Spark reads unsigned numbers as the next larger type."""
SETTINGS = {
    "spark.app.name": "eir tamper",
    "spark.log.level": "ERROR",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.sql.session.timeZone": "UTC",
    # Times in the files are UTC without saying so; so are all others here.
    "spark.sql.timestampType": "TIMESTAMP_NTZ",
}
"""Settings on which the results depend, and those of what people see; all others are in the operator's
spark-defaults.conf."""


class Spark:
    """Tables in Spark (an eir.sightings.engine.Engine)."""

    def __init__(self, session: "SparkSession", work: str) -> None:
        self._session = session
        self._work = work

    def define(self, name: str, select: str) -> None:
        """As Engine.define."""
        self._keep(name, self._session.sql(translated(select)))

    def fill(self, name: str, columns: str, rows: Sequence[Sequence[Any]]) -> None:
        """As Engine.fill."""
        fields = [column.split() for column in columns.split(", ")]
        layout = ", ".join(f"{field}: {TYPES.get(kind, kind)}" for field, kind in fields)
        select = f"SELECT INLINE(FROM_JSON(:rows, 'ARRAY<STRUCT<{layout}>>'))"
        # As one text, and not as Python objects: those would need this Python on every worker.
        text = json.dumps(
            [dict(zip((field for field, _ in fields), row, strict=True)) for row in rows], default=date.isoformat
        )
        self._keep(name, self._session.sql(select, {"rows": text}))

    def rows(self, select: str) -> list[tuple[Any, ...]]:
        """As Engine.rows."""
        return [tuple(row) for row in self._session.sql(translated(select)).collect()]

    def _keep(self, name: str, frame: "DataFrame") -> None:
        """Write a table down, so that what reads it does not make it again, and so that it may be replaced by what is made of it."""
        path = f"{self._work}/{name}-{secrets.token_hex(8)}"
        frame.write.parquet(path)
        # Told what is in it, Spark starts no job to find out.
        self._session.read.schema(frame.schema).parquet(path).createOrReplaceTempView(name)


@contextmanager
def spark(
    files: str | list[str], *, since: datetime, until: datetime, master: str, work: str, without: Sequence[str] = ()
) -> Iterator[Spark]:
    """An engine with `sightings` from `since` to before `until` (both naive UTC), of the files that a pattern or a list names.

    `master`: as Spark names it, spark://HOST:PORT, yarn, k8s://…, or local[2] in this process. `work`: a folder, as a path or URL that
    every worker reaches. `without`: peers whose checks are left out. Raises SetupFault without pyspark, and EirError for what Spark cannot do.
    """
    try:
        import sqlglot  # noqa: F401, PLC0415 - so that it is missed before anything is started
        from py4j.protocol import Py4JError  # noqa: PLC0415 - Spark's bridge to Java
        from pyspark.errors import PySparkException  # noqa: PLC0415 - for this alone
        from pyspark.sql import SparkSession  # noqa: PLC0415 - as above
    except ModuleNotFoundError:
        raise SetupFault(
            "the analysis on a cluster needs Spark and sqlglot: in the clone, pip install '.[spark]'; and a Java runtime"
        ) from None
    try:
        session = SparkSession.builder.master(master).config(map=SETTINGS).getOrCreate()
    except (PySparkException, Py4JError, OSError) as e:
        raise EirError(f"Spark at {master} cannot be had: {_first(e)}") from None
    own = f"{work.rstrip('/')}/eir-tamper-{secrets.token_hex(8)}"
    try:
        columns = ", ".join(f"{name} {TYPES.get(kind, kind)}" for name, kind in SCHEMA.items())
        session.read.schema(columns).parquet(*([files] if isinstance(files, str) else files)).createOrReplaceTempView(
            "recorded"
        )
        session.sql(translated(window("recorded", since, until, without))).createOrReplaceTempView("sightings")
        yield Spark(session, own)
    except (PySparkException, Py4JError) as e:
        raise EirError(f"the record cannot be judged on Spark at {master}: {_first(e)}") from None
    finally:
        with suppress(PySparkException, Py4JError, OSError):  # where Spark itself is gone, that has been said
            java = session._jvm  # noqa: SLF001 - Spark's own way to a file system of Hadoop's has no other name in Python
            path = java.org.apache.hadoop.fs.Path(own)
            path.getFileSystem(session._jsc.hadoopConfiguration()).delete(path, True)  # noqa: SLF001 - as above
            session.stop()


def translated(select: str) -> str:
    """A SELECT of DuckDB's as one of Spark's. Raises sqlglot's errors for what has no translation."""
    import sqlglot  # noqa: PLC0415 - where it is needed

    tree = sqlglot.parse_one(select, read="duckdb").transform(_changed)
    return str(tree.sql("spark", unsupported_level=sqlglot.ErrorLevel.RAISE, comments=False))


def _changed(node: "Expression") -> "Expression":
    """Translate what sqlglot cannot know: `instant_s`, and that decimal numbers stand for doubles."""
    from sqlglot import exp  # noqa: PLC0415 - where it is needed

    if isinstance(node, exp.Anonymous) and node.name.lower() == "instant_s":
        moment = node.expressions[0].transform(_changed)
        return exp.paren(exp.cast(exp.func("UNIX_MICROS", moment), "DOUBLE") / 1000000)
    if isinstance(node, exp.Literal) and not node.is_string and "." in node.name:
        return exp.cast(node.copy(), "DOUBLE")
    return node


def _first(fault: Exception) -> str:
    first, *more = str(fault).splitlines() or [type(fault).__name__]
    return more[0].lstrip(": ") if more and first.startswith("An error occurred while calling") else first

"""Conversion of checks to a polars frame with one row for each group of similar checks.

The checks come from workers' messages or from another record.

Properties with few values (decision, origin) are numbers until the rows are grouped. Importing polars takes 0.2 s, so this
module is imported only by the process that writes the record and by commands that need it.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from eir.device import MEID_BASE
from eir.sightings.buffer import CheckKind, checks_of
from eir.sightings.schema import COLUMNS, HOME_DIGITS, IDENTIFIER_CHARS_MAX
from eir.sightings.subscribers import Subscribers

os.environ.setdefault("POLARS_MAX_THREADS", "1")
import polars as pl  # reads POLARS_MAX_THREADS when it is imported

TYPES: Mapping[str, Any] = {
    "TIMESTAMP": pl.Datetime("us"),
    "UINTEGER": pl.UInt32,
    "VARCHAR": pl.String,
    "BIGINT": pl.Int64,
    "BOOLEAN": pl.Boolean,
}
FRAME: Mapping[str, Any] = {column.name: TYPES[column.kind] for column in COLUMNS}
"""Name of each column → type in polars."""
ROWS = {
    "time": pl.Int64,
    "imei": pl.String,
    "software_version": pl.String,
    "imsi": pl.String,
    "msisdn": pl.String,
    "kind": pl.UInt32,
}
"""Same for rows before grouping."""


class CheckRows(NamedTuple):
    """Frame of checks before grouping, with one check in each row."""

    frame: pl.DataFrame
    """Columns of ROWS: `time` in microseconds, `imei`, `software_version`, `imsi` and `msisdn` (empty if absent), `kind` as an index of `kinds`."""
    kinds: Sequence[CheckKind]

    def grouped(self, subscribers: Subscribers) -> pl.DataFrame:
        """Group similar checks of one hour; return a frame with one row for each group, sorted by device.

        The frame has the columns of schema.COLUMNS.
        """
        groups = self.frame.group_by(
            "imei", "software_version", "imsi", "msisdn", "kind", pl.col("time") // 3_600_000_000
        ).agg(
            pl.col("time").min().alias("first"),
            pl.col("time").max().alias("last"),
            pl.len().cast(pl.UInt32).alias("checks"),
        )
        kinds = pl.DataFrame(self.kinds, schema={name: FRAME[name] for name in CheckKind._fields}, orient="row")
        imsis = groups["imsi"]
        columns = groups.with_columns(
            pl.col("first").cast(pl.Datetime("us")).alias("time"), pl.col("last").cast(pl.Datetime("us")),
            _device(groups["imei"]), subscribers.of(imsis).alias("subscriber"), subscribers.of(groups["msisdn"]),
            pl.when(imsis != "").then(imsis.str.slice(0, HOME_DIGITS)).alias("home"),
            pl.when(is_imei(16) & (pl.col("software_version") == "")).then(pl.col("imei").str.slice(14, 2))
            .otherwise(pl.col("software_version")).alias("software_version"),
            pl.col("imei").str.slice(0, IDENTIFIER_CHARS_MAX),
            *(kinds[name].gather(groups["kind"]).alias(name) for name in CheckKind._fields),
        )  # fmt: skip
        columns = columns.with_columns(
            pl.when(pl.col(name) != "").then(pl.col(name)).alias(name)
            for name in ("imei", "software_version", "subscriber")
        )
        return columns.select(pl.col(name).cast(kind) for name, kind in FRAME.items()).sort("device", nulls_last=True)


def rows_of(messages: Iterable[bytes]) -> CheckRows:
    """Decode workers' messages and return all their checks as rows."""
    checks: list[tuple[Any, ...]] = list(chain.from_iterable(map(checks_of, messages)))
    times, kinds, imeis, imsis, versions, msisdns = ([check[at] for check in checks] for at in range(6))
    places = {kind: place for place, kind in enumerate(dict.fromkeys(kinds))}
    columns = (times, imeis, versions, imsis, msisdns, [places[kind] for kind in kinds])
    return CheckRows(pl.DataFrame(dict(zip(ROWS, columns, strict=True)), schema=ROWS), [*places])


def is_imei(*lengths: int) -> pl.Expr:
    """Return a polars expression that is true if the identifier is an IMEI of one of these lengths."""
    pattern = "|".join(f"[0-9]{{{length}}}" for length in lengths)
    return pl.col("imei").str.contains(f"^(?:{pattern})$")


def _device(identifiers: pl.Series) -> pl.Series:
    """Return the key of each identifier that is an IMEI, an IMEISV or a MEID; null for other identifiers."""
    frame = identifiers.alias("imei").to_frame()
    digits = pl.when(is_imei(14, 15, 16)).then(pl.col("imei").str.slice(0, 14)).str.to_integer(dtype=pl.Int64)
    meid = (
        pl.when(pl.col("imei").str.contains("^[0-9A-Fa-f]{14}$"))
        .then(pl.col("imei"))
        .str.to_integer(base=16, dtype=pl.Int64)
    )
    return frame.select(digits.fill_null(meid + MEID_BASE).alias("device"))["device"]

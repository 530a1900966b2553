"""Conversion of recorded checks to a polars frame that has one row for each group of similar checks.

The checks come from messages of the answering process or from another record.

Properties with few values (decision, origin) are numbers until the rows are grouped. Importing polars takes 0.2 s, so this
module is imported only by the process that writes the record and by commands that need it.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from eir.device import MEID_BASE
from eir.frames import pl
from eir.sightings.buffer import CheckKind, checks_of
from eir.sightings.schema import COLUMNS, HOME_DIGITS, IDENTIFIER_CHARS_MAX
from eir.sightings.subscribers import Subscribers

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
HOUR_US = 3600 * 10**6


class CheckRows(NamedTuple):
    """Frame of checks, with one check in each row."""

    frame: pl.DataFrame
    """Columns of ROWS: `time` in microseconds, `imei`, `software_version`, `imsi` and `msisdn` (empty if absent), `kind` as an index of `kinds`."""
    kinds: Sequence[CheckKind]

    def grouped(self, subscribers: Subscribers) -> pl.DataFrame:
        """Group similar checks of the same hour. Return a frame with one row for each group, sorted by device.

        The frame has the columns of schema.COLUMNS.
        """
        hour = pl.col("time") // HOUR_US
        first, last, checks = pl.col("time").min(), pl.col("time").max(), pl.len().cast(pl.UInt32)
        similar = self.frame.group_by("imei", "software_version", "imsi", "msisdn", "kind", hour)
        groups = similar.agg(first.alias("first"), last.alias("last"), checks.alias("checks"))
        kind_types = {name: FRAME[name] for name in CheckKind._fields}
        kinds = pl.DataFrame(self.kinds, schema=kind_types, orient="row")
        kind_columns = [kinds[name].gather(groups["kind"]).alias(name) for name in kind_types]
        imsis = groups["imsi"]
        version = pl.col("software_version")
        version_of_imeisv = pl.col("imei").str.slice(14, 2)
        columns = groups.with_columns(
            pl.col("first").cast(pl.Datetime("us")).alias("time"),
            pl.col("last").cast(pl.Datetime("us")),
            _device(groups["imei"]),
            subscribers.of(imsis).alias("subscriber"),
            subscribers.of(groups["msisdn"]),
            pl.when(imsis != "").then(imsis.str.slice(0, HOME_DIGITS)).alias("home"),
            pl.when(is_imei(16) & (version == "")).then(version_of_imeisv).otherwise(version).alias("software_version"),
            pl.col("imei").str.slice(0, IDENTIFIER_CHARS_MAX),
            *kind_columns,
        )
        columns = columns.with_columns(map(_null_if_empty, ("imei", "software_version", "subscriber")))
        typed = columns.select(pl.col(name).cast(kind) for name, kind in FRAME.items())
        return typed.sort("device", nulls_last=True)


def rows_of(messages: Iterable[bytes]) -> CheckRows:
    """Decode messages of the answering process and return all their checks as rows."""
    checks: list[tuple[Any, ...]] = []
    for message in messages:
        checks += checks_of(message)
    times, kinds, imeis, imsis, versions, msisdns = ([check[at] for check in checks] for at in range(6))
    distinct_kinds = list(dict.fromkeys(kinds))
    numbers = {kind: number for number, kind in enumerate(distinct_kinds)}
    columns = {
        "time": times,
        "imei": imeis,
        "software_version": versions,
        "imsi": imsis,
        "msisdn": msisdns,
        "kind": [numbers[kind] for kind in kinds],
    }
    return CheckRows(pl.DataFrame(columns, schema=ROWS), distinct_kinds)


def is_imei(*lengths: int) -> pl.Expr:
    """Build a polars expression that is true if the identifier consists of digits and its length is one of `lengths`."""
    pattern = "|".join(f"[0-9]{{{length}}}" for length in lengths)
    return pl.col("imei").str.contains(f"^(?:{pattern})$")


def _null_if_empty(name: str) -> pl.Expr:
    """Build a polars expression that returns a text column and replaces each empty text by null."""
    column = pl.col(name)
    return pl.when(column != "").then(column).alias(name)


def _device(identifiers: pl.Series) -> pl.Series:
    """Convert each IMEI, IMEISV or MEID to the integer key of its device. Other identifiers become null."""
    frame = identifiers.alias("imei").to_frame()
    identifier = pl.col("imei")
    is_meid = identifier.str.contains("^[0-9A-Fa-f]{14}$")
    digits = pl.when(is_imei(14, 15, 16)).then(identifier.str.slice(0, 14)).str.to_integer(dtype=pl.Int64)
    meid = pl.when(is_meid).then(identifier).str.to_integer(base=16, dtype=pl.Int64)
    device = digits.fill_null(meid + MEID_BASE).alias("device")
    return frame.select(device)["device"]

"""Messages of workers, and rows of other records, as one frame of like checks: one row for each group, by schema.COLUMNS.

What differs little (decision, origin) is a number until groups are made. Imports polars, which takes a fifth of a second, and so is
imported only in the process that writes and by commands that need it.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from eir.device import MEID_BASE
from eir.sightings.buffer import Kind, checks_of
from eir.sightings.schema import COLUMNS, HOME_DIGITS, IDENTIFIER_CHARS_MAX
from eir.sightings.subscribers import Subscribers

os.environ.setdefault("POLARS_MAX_THREADS", "1")
import polars as pl  # it reads the number of its threads when it is imported

TYPES: Mapping[str, Any] = {
    "TIMESTAMP": pl.Datetime("us"),
    "UINTEGER": pl.UInt32,
    "VARCHAR": pl.String,
    "BIGINT": pl.Int64,
    "BOOLEAN": pl.Boolean,
}
FRAME: Mapping[str, Any] = {column.name: TYPES[column.kind] for column in COLUMNS}
"""Name → type in polars."""
ROWS = {"time": pl.Int64, "imei": pl.String, "software_version": pl.String, "imsi": pl.String, "kind": pl.UInt32}
"""The same for rows that are not grouped yet."""


class Rows(NamedTuple):
    """Checks, each a row."""

    frame: pl.DataFrame
    """Columns of ROWS: `time` in microseconds, `imei`, `software_version` and `imsi` (empty: absent), `kind` as an index of `kinds`."""
    kinds: Sequence[Kind]

    def grouped(self, subscribers: Subscribers) -> pl.DataFrame:
        """A row for each group of checks that are alike within one hour, by schema.COLUMNS, in the order of devices."""
        groups = self.frame.group_by("imei", "software_version", "imsi", "kind", pl.col("time") // 3_600_000_000).agg(
            pl.col("time").min().alias("first"),
            pl.col("time").max().alias("last"),
            pl.len().cast(pl.UInt32).alias("checks"),
        )
        kinds = pl.DataFrame(self.kinds, schema={name: FRAME[name] for name in Kind._fields}, orient="row")
        imsis = groups["imsi"]
        made = groups.with_columns(
            pl.col("first").cast(pl.Datetime("us")).alias("time"), pl.col("last").cast(pl.Datetime("us")),
            _device(groups["imei"]), subscribers.of(imsis),
            pl.when(imsis != "").then(imsis.str.slice(0, HOME_DIGITS)).alias("home"),
            pl.when(imei_is(16) & (pl.col("software_version") == "")).then(pl.col("imei").str.slice(14, 2))
            .otherwise(pl.col("software_version")).alias("software_version"),
            pl.col("imei").str.slice(0, IDENTIFIER_CHARS_MAX),
            *(kinds[name].gather(groups["kind"]).alias(name) for name in Kind._fields),
        )  # fmt: skip
        made = made.with_columns(
            pl.when(pl.col(name) != "").then(pl.col(name)).alias(name)
            for name in ("imei", "software_version", "subscriber")
        )
        return made.select(pl.col(name).cast(kind) for name, kind in FRAME.items()).sort("device", nulls_last=True)


def rows_of(messages: Iterable[bytes]) -> Rows:
    """All checks of some messages of workers."""
    checks: list[tuple[Any, ...]] = list(chain.from_iterable(map(checks_of, messages)))
    times, said, imeis, imsis, versions = ([check[at] for check in checks] for at in range(5))
    places = {kind: place for place, kind in enumerate(dict.fromkeys(said))}
    columns = (times, imeis, versions, imsis, [places[kind] for kind in said])
    return Rows(pl.DataFrame(dict(zip(ROWS, columns, strict=True)), schema=ROWS), [*places])


def imei_is(*lengths: int) -> pl.Expr:
    """Return an expression that is true if the identifier is an IMEI of one of these lengths."""
    wanted = "|".join(f"[0-9]{{{length}}}" for length in lengths)
    return pl.col("imei").str.contains(f"^(?:{wanted})$")


def _device(identifiers: pl.Series) -> pl.Series:
    """Return the key (eir.device) of each identifier, from the first 14 digits or a MEID; null for any other."""
    frame = identifiers.alias("imei").to_frame()
    digits = pl.when(imei_is(14, 15, 16)).then(pl.col("imei").str.slice(0, 14)).str.to_integer(dtype=pl.Int64)
    meid = (
        pl.when(pl.col("imei").str.contains("^[0-9A-Fa-f]{14}$"))
        .then(pl.col("imei"))
        .str.to_integer(base=16, dtype=pl.Int64)
    )
    return frame.select(digits.fill_null(meid + MEID_BASE).alias("device"))["device"]

"""Messages of workers, and rows of other records, as one frame of like checks: one row for each group, by schema.COLUMNS.

What differs little (decision, origin) is a number until groups are made. Imports polars, which takes a fifth of a second, and so is
imported only in the process that writes and by commands that need it.
"""

import os
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from eir.analysis.buffer import checks_of
from eir.analysis.schema import COLUMNS, IDENTIFIER_CHARS_MAX
from eir.analysis.subscribers import Subscribers
from eir.device import MEID_BASE

os.environ.setdefault("POLARS_MAX_THREADS", "1")
import polars as pl  # it reads the number of its threads when it is imported


class Kind(NamedTuple):
    """Properties that checks may have in common, by the columns of the record; None or empty where there is nothing."""

    status: str | None
    rule: str | None = None
    list: str | None = None
    origin_host: str | None = None
    origin_realm: str | None = None
    peer: str | None = None
    protocol: str | None = None
    observed: str | None = None
    early: bool | None = None


HOME_DIGITS = 6
TYPES: Mapping[str, Any] = {
    "TIMESTAMP": pl.Datetime("us"),
    "UINTEGER": pl.UInt32,
    "VARCHAR": pl.String,
    "BIGINT": pl.Int64,
    "BOOLEAN": pl.Boolean,
}
FRAME: Mapping[str, Any] = {column.name: TYPES[column.kind] for column in COLUMNS}
"""Name → type in polars."""
_ROWS = {"time": pl.Int64, "imei": pl.String, "software_version": pl.String, "imsi": pl.String, "kind": pl.UInt32}


class Rows:
    """Checks as they come, each a row."""

    def __init__(self) -> None:
        self._kinds: dict[Kind, int] = {}
        self._frames: list[pl.DataFrame] = []

    def kind(self, kind: Kind) -> int:
        """The number that stands for a kind."""
        return self._kinds.setdefault(kind, len(self._kinds))

    def add(self, columns: Mapping[str, Any] | pl.DataFrame) -> None:
        """Take rows: `time` in microseconds, `imei`, `software_version`, `imsi` (empty: none), `kind` by its number."""
        self._frames.append(pl.DataFrame(columns, schema=_ROWS))

    def take(self, messages: Iterable[bytes]) -> None:
        """Take messages of workers."""
        rows = [
            (time_us, imei, version, imsi, kind, host, realm)
            for message in messages
            for time_us, kind, host, realm, imei, imsi, version in checks_of(message)
        ]
        known = {key: self.kind(_kind_of(*key)) for key in {row[4:] for row in rows}}
        time, imei, version, imsi = ([row[at] for row in rows] for at in range(4))
        self.add(
            {
                "time": time,
                "imei": imei,
                "software_version": version,
                "imsi": imsi,
                "kind": [known[row[4:]] for row in rows],
            }
        )

    def grouped(self, subscribers: Subscribers) -> pl.DataFrame:
        """A row for each group of checks that are alike within one hour, by schema.COLUMNS, in the order of devices."""
        rows = pl.concat(self._frames) if self._frames else pl.DataFrame(schema=_ROWS)
        groups = rows.group_by("imei", "software_version", "imsi", "kind", pl.col("time") // 3_600_000_000).agg(
            pl.col("time").min().alias("first"),
            pl.col("time").max().alias("last"),
            pl.len().cast(pl.UInt32).alias("checks"),
        )
        kinds = pl.DataFrame(
            [[said or None for said in kind] for kind in self._kinds],
            schema={name: FRAME[name] for name in Kind._fields},
            orient="row",
        )
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


def _kind_of(kind: Any, host: str, realm: str) -> Kind:
    decision, protocol, peer, observed, early = kind
    return Kind(decision.status, decision.rule, decision.list, host, realm, peer, protocol, observed, early)


def rows_of(messages: Iterable[bytes]) -> Rows:
    """All checks of some messages."""
    rows = Rows()
    rows.take(messages)
    return rows


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

"""A day of the record as the file that a national register takes each day: each device with each SIM once. Imports polars.

The columns are those of the registers that take such files: identifiers, when they were seen first that day, over which protocol and by
whom. Where no identifier came, or one that says nothing, the register's own number for that stands.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date
from pathlib import Path

from eir.analysis.files import found

os.environ.setdefault("POLARS_MAX_THREADS", "1")
import polars as pl  # it reads the number of its threads when it is imported

COLUMNS = ("imei", "imsi", "msisdn", "timestamp", "protocol", "source", "file_name", "event_time", "operator")
NO_IMEI = "888888888888888"
NEEDED = ("time", "imei", "subscriber", "protocol", "origin_host")


def rows(
    state: Path, day: date, *, operator: str, file_name: str, msisdn: Callable[[str], str]
) -> Iterator[Sequence[str | int]]:
    """The header, and a row for each device and SIM of that day (UTC), in the order of devices. `msisdn`: the number of an IMSI, empty for none.

    A SIM that is kept as a hash has no IMSI here, and of one that is not kept at all nothing is known: those rows are the devices'.
    Raises OSError, polars' errors for a file that cannot be read.
    """
    yield COLUMNS
    paths = [file.path for file in found(state) if file.path.parent.name == day.isoformat()]
    if not paths:
        return
    is_imsi = pl.col("subscriber").str.contains("^[0-9]{6,15}$")
    frame = (
        pl.scan_parquet(paths, glob=False)
        .select(NEEDED)
        .with_columns(
            imei=pl.col("imei").fill_null(NO_IMEI),
            imsi=pl.when(is_imsi).then(pl.col("subscriber")).otherwise(pl.lit("")).fill_null(""),
        )
        .sort("time")
        .group_by("imei", "imsi", maintain_order=True)
        .agg(
            pl.col("time").first(),
            pl.col("protocol").first().fill_null(""),
            pl.col("origin_host").first().fill_null(""),
        )
        .sort("imei", "imsi")
        .collect()
    )
    for imei, imsi, time, protocol, origin in frame.iter_rows():
        seen = time.replace(tzinfo=UTC)
        yield (
            imei, imsi, msisdn(imsi) if imsi else "", round(seen.timestamp() * 1000), protocol, origin, file_name, f"{seen:%Y-%m-%d %H:%M:%S}", operator,
        )  # fmt: skip

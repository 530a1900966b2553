"""All devices in the record at once: who asked about which, how often, and what was answered. Imports polars.

A day has far fewer devices than checks, and the result has one row for each device, origin and status.
"""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from eir.analysis.files import found
from eir.errors import EirError

os.environ.setdefault("POLARS_MAX_THREADS", "1")
import polars as pl  # it reads the number of its threads when it is imported

ALIKE = ("device", "origin_host", "status")
FILES_AT_ONCE = 500


def asked(state: Path, since: datetime) -> list[tuple[str, int, str, str, int]]:
    """(identifier as it was sent, device, Origin-Host, status, checks) of the sightings from `since` on. Raises EirError where a file cannot be read."""
    there = [str(file.path) for file in found(state) if file.written >= since.timestamp()]
    parts = [_read(there[at : at + FILES_AT_ONCE], since) for at in range(0, len(there), FILES_AT_ONCE)]
    return _summed(pl.concat(parts).lazy()).collect().rows() if parts else []


def _summed(rows: pl.LazyFrame) -> pl.LazyFrame:
    said: list[Any] = [pl.col("imei").first(), pl.col("checks").cast(pl.Int64).sum()]
    return rows.group_by(ALIKE).agg(said).select("imei", *ALIKE, "checks")


def _read(files: list[str], since: datetime) -> pl.DataFrame:
    """The sums of some files."""
    wanted = pl.col("device").is_not_null() & (pl.col("time") >= since.astimezone(UTC).replace(tzinfo=None))
    try:
        rows = (
            pl.scan_parquet(files, missing_columns="insert", extra_columns="ignore")
            .filter(wanted)
            .with_columns(pl.col("origin_host").fill_null(""))
        )
        return _summed(rows.select("imei", *ALIKE, "checks")).collect()
    except (pl.exceptions.PolarsError, OSError) as e:
        raise EirError(f"the record cannot be read: {e}") from None

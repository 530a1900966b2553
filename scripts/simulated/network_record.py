"""Simulated network: the record of its checks as the EIR stores them, and the truth."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import polars as pl

from eir.sightings.conditions import Tac

START = datetime(2026, 10, 27)  # noqa: DTZ001 - times in the files are UTC without a zone
START_US = int((START - datetime(1970, 1, 1)).total_seconds()) * 10**6  # noqa: DTZ001 - as above
DAY_S = 86_400
CORE = "mcc001.3gppnetwork.org"


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Simulated network."""

    folder: Path
    """State folder of a node, which contains its record."""
    tacs: tuple[Tac, ...]
    """List of TACs."""
    since: datetime
    until: datetime
    rows: int
    truth: dict[int, tuple[str, int]]
    """Tampered device → kind, and number of copies."""
    hard: dict[int, str]
    """Honest device with suspicious traffic → its kind."""


def write_checks(folder: Path, checks: pl.DataFrame, number: int = 0) -> int:
    """Write checks to the record, one file for each day; return their number.

    Args:
        folder: state folder of a node.
        checks: columns `time` (µs since START), `device`, `software_version`, `subscriber`, `home` and `origin_host`; `imei`, if it has more than 14 digits.
        number: number of the file of a day.
    """
    moment = (pl.col("time") + START_US).cast(pl.Datetime("us"))
    imei = pl.col("imei") if "imei" in checks.columns else pl.col("device").cast(pl.String).str.zfill(14)
    whole = checks.sort("time").select(
        moment.alias("time"), moment.alias("last"), pl.lit(1, pl.UInt32).alias("checks"), imei.alias("imei"), "device", "software_version", "subscriber", "home",
        "origin_host", pl.col("origin_host").alias("peer"), pl.col("origin_host").str.extract(r"(epc\..*)").alias("origin_realm"), pl.lit("s13").alias("protocol"),
        pl.lit("whitelisted").alias("status"), pl.lit("default").alias("rule"), pl.lit(None, pl.String).alias("list"), pl.lit(None, pl.String).alias("observed"),
    )  # fmt: skip
    for (day,), rows in whole.group_by(pl.col("time").dt.strftime("%Y-%m-%d"), maintain_order=True):
        target = folder / "sightings" / str(day)
        target.mkdir(parents=True, exist_ok=True)
        rows.write_parquet(target / f"00-{number}-made.parquet", compression="zstd", row_group_size=1 << 16)
    return len(whole)

"""The record of one device or one SIM: when, where, with which SIMs or in which devices. Imports polars.

Files are sorted by device, so most of each is skipped.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from eir.analysis.batches import FRAME
from eir.analysis.files import found
from eir.device import ODD_OCTETS_MAX, device_key, imsi_key, is_digits, key_text, typed
from eir.errors import EirError, IdentifierError

os.environ.setdefault("POLARS_MAX_THREADS", "1")
import polars as pl  # it reads the number of its threads when it is imported

ALIKE = (
    "imei",
    "software_version",
    "subscriber",
    "home",
    "origin_host",
    "peer",
    "origin_realm",
    "protocol",
    "early",
    "status",
    "rule",
    "list",
    "observed",
)
"""Columns that the sightings of one line have in common."""
FILES_AT_ONCE = 500
IMSI_DIGITS = 15


@dataclass(frozen=True, slots=True)
class Sought:
    """Possible meanings of an identifier."""

    device: int | None
    """Key of eir.device."""
    imsi: str | None
    odd: str | None = None
    """The digits as a phone may have sent them in place of an IMEI; None: they are an IMEI or a MEID, or no digits at all."""


def sought(identifier: str) -> Sought:
    """Tell what a person may mean: 15 digits are an IMEI or an IMSI; other digits may be what a phone sent in place of an IMEI.

    Raises IdentifierError for anything else.
    """
    identifier = typed(identifier)
    device = imsi = odd = None
    try:
        device = device_key(identifier)
    except IdentifierError as e:
        wrong = e
        if is_digits(identifier) and len(identifier) <= ODD_OCTETS_MAX:
            odd = identifier
    try:
        imsi_key(identifier)
        imsi = identifier
    except IdentifierError:
        pass
    if device is None and imsi is None and odd is None:
        raise wrong
    # Of fewer than 15 digits only an IMEI without its check digit, or an IMSI of a network with short ones: both are looked for.
    return Sought(device, imsi, odd)


def seen(state: Path, what: Sought, subscribers: Sequence[str], since: datetime | None) -> list[dict[str, Any]]:
    """The sightings of a device or SIM, alike ones in one row, the oldest first: what ALIKE names, `first`, `last`, `checks`.

    `subscribers`: all that the record may call the SIM. Raises EirError where a file cannot be read.
    """
    wanted = pl.lit(value=False)
    if what.device is not None:
        wanted |= pl.col("device") == what.device
    if what.odd is not None:
        wanted |= pl.col("imei") == what.odd
    if subscribers:
        wanted |= pl.col("subscriber").is_in(list(subscribers))
    wanted = wanted.fill_null(value=False)
    if since is not None:
        wanted &= pl.col("last") >= since.astimezone(UTC).replace(tzinfo=None)
    there = [str(file.path) for file in found(state) if since is None or file.written >= since.timestamp()]
    parts = [_read(there[at : at + FILES_AT_ONCE], wanted) for at in range(0, len(there), FILES_AT_ONCE)]
    if not parts:
        return []
    rows = (
        pl.concat(parts)
        .group_by(ALIKE)
        .agg(
            pl.col("time").min().alias("first"), pl.col("last").max(), pl.col("checks").sum(), pl.col("device").first()
        )
    )
    return [_shown(row) for row in rows.sort("first", "last").iter_rows(named=True)]


def answered(state: Path, device: int, subscribers: Sequence[str], until: datetime) -> list[dict[str, Any]]:
    """The last checks of a device that began by a time: those that were under way then, else the newest ones; as rows of `seen`.

    `subscribers`: all that the record may call the SIM, where one is meant; else checks with any count. Raises EirError as `seen` does.
    """
    last = until.astimezone(UTC).replace(tzinfo=None)
    wanted = (pl.col("device") == device) & (pl.col("time") <= last)
    if subscribers:
        wanted &= pl.col("subscriber").is_in(list(subscribers))
    hour = f"{last:%Y-%m-%d/%H}"
    there = [str(file.path) for file in found(state) if f"{file.path.parent.name}/{file.path.name[:2]}" <= hour]
    for end in range(len(there), 0, -FILES_AT_ONCE):
        rows = _read(there[max(end - FILES_AT_ONCE, 0) : end], wanted.fill_null(value=False)).sort(
            "last", "time", descending=True
        )
        if len(rows):
            chosen = rows.filter(pl.col("last") >= last)
            return [
                _shown(dict(row) | {"first": row["time"]})
                for row in (chosen if len(chosen) else rows.head(1)).iter_rows(named=True)
            ]
    return []


def _read(paths: list[str], wanted: pl.Expr) -> pl.DataFrame:
    try:
        return pl.scan_parquet(paths, glob=False, schema=FRAME, missing_columns="insert").filter(wanted).collect()
    except (pl.exceptions.PolarsError, OSError) as fault:
        said = str(fault).splitlines()[0]
        raise EirError(
            f"the record cannot be read: {said}; remove the file that is named, if it is damaged, and ask again"
        ) from None


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    device = row.pop("device")
    row.pop("time", None)
    times = {
        name: f"{row.pop(name).replace(tzinfo=UTC).isoformat(timespec='milliseconds')}".replace("+00:00", "Z")
        for name in ("first", "last")
    }
    return {**times, "checks": row.pop("checks"), "device": None if device is None else key_text(device), **row}

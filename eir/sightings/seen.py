"""The record as people and registers read it: of one device or SIM, of all devices at once, and a day as a file. Imports polars.

Files are sorted by device, so that most of each is skipped where one is looked for.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from eir.device import IMSI_LENGTHS, ODD_OCTETS_MAX, device_key, is_digits, key_text, typed
from eir.errors import EirError, IdentifierError
from eir.sightings.batches import FRAME
from eir.sightings.files import found

os.environ.setdefault("POLARS_MAX_THREADS", "1")
import polars as pl  # it reads the number of its threads when it is imported

ALIKE = tuple(name for name in FRAME if name not in {"time", "last", "checks", "device"})
"""Columns that the sightings of one line have in common."""
ASKED = ("device", "origin_host", "status")
EDR_COLUMNS = ("imei", "imsi", "msisdn", "timestamp", "protocol", "source", "file_name", "event_time", "operator")
NO_IMEI = "888888888888888"
"""A register's own number for where no identifier came, or one that says nothing."""
FILES_AT_ONCE = 500


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
    is_number = is_digits(identifier)
    # Of fewer than 15 digits only an IMEI without its check digit, or an IMSI of a network with short ones: both are looked for.
    imsi = identifier if is_number and len(identifier) in IMSI_LENGTHS else None
    try:
        return Sought(device_key(identifier), imsi)
    except IdentifierError:
        if not is_number or len(identifier) > ODD_OCTETS_MAX:
            raise
        return Sought(None, imsi, odd=identifier)


def seen(state: Path, what: Sought, subscribers: Sequence[str], since: datetime | None) -> list[dict[str, Any]]:
    """The sightings of a device or SIM, alike ones in one row, the oldest first: what ALIKE names, `first`, `last`, `checks`.

    `subscribers`: all that the record may call the SIM. Raises EirError where a file cannot be read.
    """
    meant = [("device", what.device), ("imei", what.odd), *(("subscriber", each) for each in subscribers)]
    wanted = pl.any_horizontal(False, *(pl.col(name) == value for name, value in meant if value is not None))
    if since is not None:
        wanted &= pl.col("last") >= since.astimezone(UTC).replace(tzinfo=None)
    rows = (
        _rows(state, since, lambda rows: rows.filter(wanted))
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
        rows = _read(
            there[max(end - FILES_AT_ONCE, 0) : end],
            lambda frame: frame.filter(wanted).sort("last", "time", descending=True),
        )
        if len(rows):
            chosen = rows.filter(pl.col("last") >= last)
            return [
                _shown(dict(row) | {"first": row["time"]})
                for row in (chosen if len(chosen) else rows.head(1)).iter_rows(named=True)
            ]
    return []


def asked(state: Path, since: datetime) -> list[tuple[str, int, str, str, int]]:
    """(identifier as it was sent, device, Origin-Host, status, checks) of the sightings from `since` on, one for each device, origin and status.

    Raises EirError where a file cannot be read.
    """
    wanted = pl.col("device").is_not_null() & (pl.col("time") >= since.astimezone(UTC).replace(tzinfo=None))
    origin = pl.col("origin_host").fill_null("")
    rows = _rows(state, since, lambda rows: _summed(rows.filter(wanted).with_columns(origin)), None)
    return _summed(rows.lazy()).collect().rows()


def _summed(rows: pl.LazyFrame) -> pl.LazyFrame:
    summed = rows.group_by(ASKED).agg(pl.col("imei").first(), pl.col("checks").cast(pl.Int64).sum())
    return summed.select("imei", *ASKED, "checks")


def _rows(
    state: Path,
    since: datetime | None,
    plan: Callable[[pl.LazyFrame], pl.LazyFrame],
    form: Mapping[str, Any] | None = FRAME,
) -> pl.DataFrame:
    """The rows of the files of a time, some files at once, as a plan chooses or sums them; `form`: None takes columns as the files have them."""
    there = [str(file.path) for file in found(state) if since is None or file.written >= since.timestamp()]
    parts = (_read(there[at : at + FILES_AT_ONCE], plan, form) for at in range(0, len(there), FILES_AT_ONCE))
    return pl.concat([plan(pl.LazyFrame(schema=FRAME)).collect(), *parts])  # the first is empty: there may be no file


def _read(
    paths: list[str], plan: Callable[[pl.LazyFrame], pl.LazyFrame], form: Mapping[str, Any] | None = FRAME
) -> pl.DataFrame:
    try:
        return plan(
            pl.scan_parquet(paths, glob=False, schema=form, missing_columns="insert", extra_columns="ignore")
        ).collect()
    except (pl.exceptions.PolarsError, OSError) as fault:
        raise EirError(
            f"the record cannot be read: {str(fault).splitlines()[0]}; remove the file that is named, if it is damaged, and ask again"
        ) from None


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    times = {
        name: row[name].replace(tzinfo=UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        for name in ("first", "last")
    }
    device = None if row["device"] is None else key_text(row["device"])
    return {**times, "checks": row["checks"], "device": device, **{name: row[name] for name in ALIKE}}


def daily_rows(
    state: Path, day: date, *, operator: str, file_name: str, msisdn: Callable[[str], str]
) -> Iterator[Sequence[str | int]]:
    """The file that a national register takes each day: the header, and a row for each device and SIM of that day (UTC), in the order of devices.

    `msisdn`: the number of an IMSI, empty for none.

    A SIM that is kept as a hash has no IMSI here, and of one that is not kept at all nothing is known: those rows are the devices'.
    Raises OSError, polars' errors for a file that cannot be read.
    """
    yield EDR_COLUMNS
    paths = [file.path for file in found(state) if file.path.parent.name == day.isoformat()]
    if not paths:
        return
    is_imsi = pl.col("subscriber").str.contains("^[0-9]{6,15}$")
    frame = (
        pl.scan_parquet(paths, glob=False)
        .select("time", "imei", "subscriber", "protocol", "origin_host")
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

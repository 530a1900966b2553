"""Queries of the record: checks of one device or SIM, sums over all devices, and the file of one day.

Imports polars.

Files are sorted by device, so a search for one device skips most of each file.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eir.device import IMSI_LENGTHS, ODD_OCTETS_MAX, SNR_KEYS, device_key, is_digits, key_text, strip_separators
from eir.errors import EirError, IdentifierError
from eir.frames import pl
from eir.sightings.batches import FRAME
from eir.sightings.files import list_files

Numbers = NDArray[Any]
Plan = Callable[[pl.LazyFrame], pl.LazyFrame]

ALIKE = tuple(name for name in FRAME if name not in {"time", "last", "checks", "device"})
"""Columns that are equal in all sightings of one row."""
ASKED = ("device", "origin_host", "status")
EDR_COLUMNS = ("imei", "imsi", "msisdn", "timestamp", "protocol", "source", "file_name", "event_time", "operator")
NO_IMEI = "888888888888888"
"""Register's number for a missing identifier, or one that is not an IMEI."""
FILES_AT_ONCE = 500
US_OF_DAY = 86_400 * 10**6
SEARCHED_AT_ONCE = 8
"""Number of files whose rows may all be in memory at once."""


@dataclass(frozen=True, slots=True)
class SearchTerms:
    """Identifier that a person entered, parsed for a search: as a device, as an IMSI, or as both."""

    device: int | None
    """Key of eir.device."""
    imsi: str | None
    odd: str | None = None
    """Digits that a phone may have sent instead of an IMEI; None if they are an IMEI or a MEID, or not digits."""


def parse_search(identifier: str) -> SearchTerms:
    """Parse an identifier that a person entered: an IMEI, an IMEISV, a MEID, an IMSI, or other digits.

    14 or 15 digits may be an IMEI or an IMSI, so both are searched. Other digits may have been sent instead of an IMEI.

    Raises:
        IdentifierError: for any other text.
    """
    identifier = strip_separators(identifier)
    is_number = is_digits(identifier)
    # 14 digits may be an IMEI without its check digit or a short IMSI, so both are searched.
    imsi = identifier if is_number and len(identifier) in IMSI_LENGTHS else None
    try:
        return SearchTerms(device_key(identifier), imsi)
    except IdentifierError:
        if not is_number or len(identifier) > ODD_OCTETS_MAX:
            raise
        return SearchTerms(None, imsi, odd=identifier)


def find_sightings(
    state: Path,
    what: SearchTerms,
    subscribers: Sequence[str],
    since: datetime | None,
    *,
    msisdns: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Return the sightings of a device, a SIM or a number, oldest first.

    Sightings that are equal in the columns ALIKE become one row with `first`, `last` and `checks`.

    `subscribers`: all names of the SIM in the record; `msisdns`: those of the number.

    Raises:
        EirError: if a file cannot be read.
    """
    alternatives = [pl.col("subscriber") == each for each in subscribers]
    alternatives += [pl.col("msisdn") == each for each in msisdns]
    if what.device is not None:
        alternatives.append(pl.col("device") == what.device)
    if what.odd is not None:
        alternatives.append(pl.col("imei") == what.odd)
    condition = pl.any_horizontal(False, *alternatives)
    if since is not None:
        condition &= pl.col("last") >= _naive_utc(since)
    rows = sum_files(_paths_since(state, since), lambda rows: rows.filter(condition), lambda rows: rows)
    first, last, checks = pl.col("time").min().alias("first"), pl.col("last").max(), pl.col("checks").sum()
    groups = rows.group_by(ALIKE).agg(first, last, checks, pl.col("device").first())
    return [_as_row(row) for row in groups.sort("first", "last").iter_rows(named=True)]


def find_answers(state: Path, device: int, subscribers: Sequence[str], until: datetime) -> list[dict[str, Any]]:
    """Return the last checks of a device up to a time, as rows like those of `find_sightings`.

    These are the groups of checks that were in progress at that time, or else the newest earlier group.

    `subscribers`: all names of a SIM in the record, if only its checks count.

    Raises:
        EirError: if a file cannot be read.
    """
    last = _naive_utc(until)
    condition = (pl.col("device") == device) & (pl.col("time") <= last)
    if subscribers:
        condition &= pl.col("subscriber").is_in(list(subscribers))
    hour = f"{last:%Y-%m-%d/%H}"
    paths = [str(file.path) for file in list_files(state) if f"{file.path.parent.name}/{file.path.name[:2]}" <= hour]
    for end in range(len(paths), 0, -FILES_AT_ONCE):
        rows = read_rows(
            paths[max(end - FILES_AT_ONCE, 0) : end],
            lambda frame: frame.filter(condition).sort("last", "time", descending=True),
        )
        if len(rows):
            in_progress = rows.filter(pl.col("last") >= last)
            answers = in_progress if len(in_progress) else rows.head(1)
            return [_as_row(row | {"first": row["time"]}) for row in answers.iter_rows(named=True)]
    return []


def sum_checks(state: Path, since: datetime) -> list[tuple[str, int, str, str, int]]:
    """Return how many checks there were since a time, for each combination of device, origin and status.

    The fields of a row are: identifier as sent, device, Origin-Host, status, checks.

    Raises:
        EirError: if a file cannot be read.
    """
    condition = pl.col("device").is_not_null() & (pl.col("time") >= _naive_utc(since))
    origin = pl.col("origin_host").fill_null("")

    def plan(rows: pl.LazyFrame) -> pl.LazyFrame:
        return _sum_rows(rows.filter(condition).with_columns(origin))

    return sum_files(_paths_since(state, since), plan, _sum_rows, form=None).rows()


def first_days(state: Path) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return all devices in the record of checks with the day of their first check, in days since 1970-01-01.

    Raises:
        EirError: if a file cannot be read.
    """
    rows = sum_files(_paths_since(state, None), _first_rows, _first_rows, form=None)
    days = rows["time"].to_physical() // US_OF_DAY
    return rows["device"].cast(pl.UInt64).to_numpy(), days.cast(pl.UInt64).to_numpy()


def _first_rows(rows: pl.LazyFrame) -> pl.LazyFrame:
    return rows.filter(pl.col("device").is_not_null()).group_by("device").agg(pl.col("time").min())


def _sum_rows(rows: pl.LazyFrame) -> pl.LazyFrame:
    summed = rows.group_by(ASKED).agg(pl.col("imei").first(), pl.col("checks").cast(pl.Int64).sum())
    return summed.select("imei", *ASKED, "checks")


def find_newest(state: Path, since: datetime, devices: Numbers, tacs: Numbers) -> pl.DataFrame:
    """Return the newest row since a time for each device in `devices`, and for each device with a TAC in `tacs`, sorted by device.

    Raises:
        EirError: if a file cannot be read.
    """
    recent = pl.col("last") >= _naive_utc(since)
    newest = ("last", "peer", "origin_host", "protocol", "subscriber", "home")
    wanted = pl.LazyFrame({"device": devices.astype(np.int64)})
    of_tacs = (pl.col("device") // SNR_KEYS).is_in(tacs.astype(np.int64).tolist())

    def plan(rows: pl.LazyFrame) -> pl.LazyFrame:
        rows = rows.filter(recent).select("device", *newest)
        singles = rows.join(wanted, on="device", how="semi")  # for a million devices 8 times as fast as is_in
        return newest_rows(pl.concat([singles, rows.filter(of_tacs)]) if len(tacs) else singles, newest)

    def merge(rows: pl.LazyFrame) -> pl.LazyFrame:
        return newest_rows(rows, newest)

    paths = _paths_since(state, since)
    return sum_files(paths, plan, merge, files_at_once=SEARCHED_AT_ONCE).sort("device")


def newest_rows(rows: pl.LazyFrame, columns: Sequence[str]) -> pl.LazyFrame:
    """Return the columns `columns` of each device's newest row. The first of these columns must be the time."""
    return rows.select("device", *columns).sort(columns).unique("device", keep="last")


def _paths_since(state: Path, since: datetime | None) -> list[str]:
    """Return the files of the record that may have checks since the time `since`. Without `since`, return all files."""
    return [str(file.path) for file in list_files(state) if since is None or file.written >= since.timestamp()]


def sum_files(
    paths: Sequence[str], plan: Plan, merge: Plan, *, form: Mapping[str, Any] | None = FRAME, files_at_once: int = FILES_AT_ONCE,
) -> pl.DataFrame:  # fmt: skip
    """Read files in batches, apply `plan` (a filter or a sum) to each batch, and combine the results of the batches with `merge`.

    `form`: columns and types of the frame; None keeps those of the files.

    Raises:
        EirError: if a file cannot be read.
    """
    rows = plan(pl.LazyFrame(schema=FRAME)).collect()  # there may be no file
    unmerged: list[pl.DataFrame] = []
    unmerged_rows = 0
    for at in range(0, len(paths), files_at_once):
        part = read_rows([*paths[at : at + files_at_once]], plan, form)
        unmerged.append(part)
        unmerged_rows += len(part)
        if unmerged_rows > len(rows):  # a merge costs as much as the merged rows, so it waits for as many new ones
            rows = merge(pl.concat([rows, *unmerged]).lazy()).collect()
            unmerged.clear()
            unmerged_rows = 0
    return merge(pl.concat([rows, *unmerged]).lazy()).collect() if unmerged else rows


def read_rows(paths: list[str], plan: Plan, form: Mapping[str, Any] | None = FRAME) -> pl.DataFrame:
    """Read the rows of record files, and apply `plan` (a filter or a sum). `form`: schema of the rows; None: as in the files.

    Raises:
        EirError: if a file cannot be read.
    """
    try:
        return plan(
            pl.scan_parquet(paths, glob=False, schema=form, missing_columns="insert", extra_columns="ignore")
        ).collect()
    except (pl.exceptions.PolarsError, OSError) as fault:
        raise EirError(
            f"the record cannot be read: {str(fault).splitlines()[0]}; if the named file is damaged, remove it and run the command again"
        ) from None


def _naive_utc(moment: datetime) -> datetime:
    """Convert a time to UTC without a zone, as in the files of the record."""
    return moment.astimezone(UTC).replace(tzinfo=None)


def _as_row(row: dict[str, Any]) -> dict[str, Any]:
    device = row["device"]
    document = {
        "first": _time_text(row["first"]),
        "last": _time_text(row["last"]),
        "checks": row["checks"],
        "device": None if device is None else key_text(device),
    }
    for name in ALIKE:
        document[name] = row[name]
    return document


def _time_text(moment: datetime) -> str:
    text = moment.replace(tzinfo=UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def daily_rows(
    state: Path, day: date, *, operator: str, file_name: str, msisdn: Callable[[str], str]
) -> Iterator[Sequence[str | int]]:
    """Yield the header and the rows of the daily file for a national register.

    There is one row for each device and SIM of the day (UTC), sorted by device.

    The number is that of the newest check that had one; otherwise `msisdn` maps the IMSI to its number, or to an empty
    string. The column `imsi` is empty if the record has only a hash of the IMSI or no subscriber.

    Raises:
        OSError: if a file cannot be read; also polars' errors.
    """
    yield EDR_COLUMNS
    paths = [file.path for file in list_files(state) if file.path.parent.name == day.isoformat()]
    if not paths:
        return
    is_imsi = pl.col("subscriber").str.contains("^[0-9]{6,15}$")
    is_msisdn = pl.col("msisdn").str.contains("^[0-9]{5,15}$")
    frame = (
        pl.scan_parquet(paths, glob=False, schema=FRAME, missing_columns="insert", extra_columns="ignore")
        .select("time", "imei", "subscriber", "msisdn", "protocol", "origin_host")
        .with_columns(
            imei=pl.col("imei").fill_null(NO_IMEI),
            imsi=pl.when(is_imsi).then(pl.col("subscriber")).otherwise(pl.lit("")).fill_null(""),
            msisdn=pl.when(is_msisdn).then(pl.col("msisdn")),
        )
        .sort("time")
        .group_by("imei", "imsi", maintain_order=True)
        .agg(
            pl.col("time").first(),
            pl.col("protocol").first().fill_null(""),
            pl.col("origin_host").first().fill_null(""),
            pl.col("msisdn").drop_nulls().last(),
        )
        .sort("imei", "imsi")
        .collect()
    )
    for imei, imsi, time, protocol, origin, number in frame.iter_rows():
        moment = time.replace(tzinfo=UTC)
        yield (
            imei, imsi, number or (msisdn(imsi) if imsi else ""), round(moment.timestamp() * 1000), protocol, origin, file_name, f"{moment:%Y-%m-%d %H:%M:%S}", operator,
        )  # fmt: skip

"""Import of another EIR's log into the record, from CSV or Parquet with named columns.

The log is read in pieces. Imports polars.

`time` and `imei` are required; `software_version`, `imsi`, `origin_host` and `status` are optional. A bad row is skipped and
reported by file and line, never with its identifiers. Times are ISO 8601 (UTC if there is no zone) or Unix seconds.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from eir.errors import EirError
from eir.frames import pl
from eir.sightings.batches import ROWS, CheckRows
from eir.sightings.buffer import CheckKind
from eir.sightings.files import write
from eir.sightings.subscribers import Subscribers

REQUIRED, OPTIONAL = ("time", "imei"), ("software_version", "imsi", "origin_host", "status")
STATUSES = ("whitelisted", "blacklisted", "greylisted", "unknown", "error")
STATUS_WORDS = {
    "0": "whitelisted",
    "1": "blacklisted",
    "2": "greylisted",
    "5422": "unknown",
    "white": "whitelisted",
    "black": "blacklisted",
    "grey": "greylisted",
    "gray": "greylisted",
}
"""Status words of other EIRs → ours."""
PROTOCOL = "import"
PIECE_BYTES, PIECE_ROWS = 32 << 20, 500_000
COMPLAINTS_MAX = 10
AHEAD_S = 300
"""Seconds by which another EIR's clock may be ahead."""
YEAR_US = 365 * 86400 * 10**6
EARLIEST_US, LATEST_US = 20 * YEAR_US, 200 * YEAR_US
"""Years 1990 to 2170; a number outside of them is not a time."""


@dataclass(slots=True)
class ImportReport:
    """Result of the import of a log."""

    rows: int = 0
    """Number of imported rows."""
    bad: int = 0
    complaints: list[str] = field(default_factory=list)
    """First bad rows: file, line and expectation."""
    files: list[Path] = field(default_factory=list)

    def add(self, rows: int, bad: int, complaints: Iterable[str]) -> None:
        """Add the result of one imported piece of the log to this report."""
        self.rows += rows
        self.bad += bad
        self.complaints.extend(complaints)


def import_log(
    file: Path, state: Path, subscribers: Subscribers, progress: Callable[[int, int], None] = lambda *_: None
) -> ImportReport:
    """Import a log into the record in a state folder.

    `progress` receives the number of bytes done and the total. If the import fails, all its rows are removed.
    """
    report, total = ImportReport(), file.stat().st_size
    with file.open("rb") as stream:
        pieces = _parquet(file) if stream.read(4) == b"PAR1" else _csv(file)
    try:
        for piece, line, done in pieces:
            rows = _rows(piece, file, line, report)
            report.files.extend(new_file.path for new_file in write(state, rows.grouped(subscribers)))
            progress(done, total)
    except BaseException as e:
        for path in report.files:
            path.unlink(missing_ok=True)
        if isinstance(e, pl.exceptions.PolarsError):
            raise EirError(f"{file}: {str(e).splitlines()[0]}") from None
        raise
    return report


def _rows(piece: pl.DataFrame, file: Path, line: int, report: ImportReport) -> CheckRows:
    """Return the valid rows of a piece of the log; count and report its invalid rows.

    `line` is the line of the first row of the piece.
    """
    rows = (
        piece.with_columns(pl.lit("").alias(name) for name in OPTIONAL if name not in piece.columns)
        .select(
            _time(piece.schema["time"]),
            *(pl.col(name).cast(pl.String).fill_null("").str.strip_chars() for name in ("imei", *OPTIONAL)),
        )
        .with_columns(pl.col("status").str.to_lowercase().replace(STATUS_WORDS), at=pl.int_range(pl.len()))
    )
    wrong = (
        pl.when(pl.col("time").is_null()).then(pl.lit("'time' is not a time; expected 2026-11-25T06:00:00Z or Unix seconds"))
        .when(pl.col("time") > (time.time() + AHEAD_S) * 1e6).then(pl.lit("'time' is in the future; a time without a zone is UTC"))
        .when(pl.col("imei") == "").then(pl.lit("'imei' is empty"))
        .when(~pl.col("imsi").str.contains("^(?:[0-9]{6,15})?$")).then(pl.lit("'imsi' is not an IMSI; expected 6 to 15 digits, or nothing"))
        .when(~pl.col("status").is_in(["", *STATUSES])).then(pl.lit(f"'status' is not one of {', '.join(STATUSES)}"))
    )  # fmt: skip
    rows = rows.with_columns(wrong=wrong)
    bad = rows.filter(pl.col("wrong").is_not_null()).select("at", "wrong")
    selected = bad.head(COMPLAINTS_MAX - len(report.complaints))
    good = rows.filter(pl.col("wrong").is_null())
    report.add(len(good), len(bad), [f"{file.name}:{line + at}: {fault}" for at, fault in selected.iter_rows()])
    kinds = good.select("status", "origin_host").unique().with_row_index("kind")
    good = good.join(kinds, on=["status", "origin_host"], how="left", maintain_order="left")
    return CheckRows(
        good.with_columns(msisdn=pl.lit("")).select(*ROWS),
        [CheckKind(host or None, status=status or None, protocol=PROTOCOL) for _, status, host in kinds.iter_rows()],
    )


def _time(kind: pl.DataType) -> pl.Expr:
    """Return the polars expression that converts the column `time` to microseconds; null for an invalid time."""
    column = pl.col("time")
    if isinstance(kind, pl.Datetime):
        microseconds = column.dt.timestamp("us")
    elif kind.is_numeric():
        microseconds = (column.cast(pl.Float64) * 1e6).round().cast(pl.Int64, strict=False)
    else:
        text = column.cast(pl.String).str.strip_chars()
        plain = text.str.replace(r"[Zz]$", "+00:00")
        zoned = plain.str.contains(r"[+-][0-9]{2}:?[0-9]{2}$") & plain.str.contains(":")
        iso = (
            pl.when(zoned).then(plain).otherwise(plain + "+00:00").str.replace(" ", "T", literal=True)
            .str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%:z", time_unit="us", time_zone="UTC", strict=False).dt.timestamp("us")
        )  # fmt: skip
        microseconds = pl.coalesce(
            iso, (text.cast(pl.Float64, strict=False) * 1e6).round().cast(pl.Int64, strict=False)
        )
    return pl.when((microseconds >= EARLIEST_US) & (microseconds < LATEST_US)).then(microseconds).alias("time")


def _parquet(file: Path) -> Iterator[tuple[pl.DataFrame, int, int]]:
    """Yield pieces of a Parquet file, each with the number of its first row and the bytes read so far."""
    frame = pl.scan_parquet(file, glob=False)
    names = _known_columns(file, frame.collect_schema().names())
    total = frame.select(pl.len()).collect().item()
    size = file.stat().st_size
    for at in range(0, total, PIECE_ROWS):
        yield frame.slice(at, PIECE_ROWS).select(names).collect(), at + 1, size * min(at + PIECE_ROWS, total) // total


def _csv(file: Path) -> Iterator[tuple[pl.DataFrame, int, int]]:
    """Yield pieces of a CSV file, each with the line of its first row and the bytes read so far."""
    with file.open("rb") as stream:
        head = stream.readline().decode("utf-8-sig", "replace")
        separator = max(",;\t|", key=head.count)
        columns = [name.strip().strip('"').lower() for name in head.strip().split(separator)]
        names = _known_columns(file, columns)
        line = 2
        while octets := stream.read(PIECE_BYTES):
            octets += stream.readline()
            piece = pl.read_csv(
                octets, has_header=False, new_columns=columns, separator=separator, infer_schema=False, truncate_ragged_lines=True,
                encoding="utf8-lossy", schema_overrides=dict.fromkeys(columns, pl.String),
            )  # fmt: skip
            yield piece.select(names), line, stream.tell()
            line += octets.count(b"\n")


def _known_columns(file: Path, columns: list[str]) -> list[str]:
    """Return the columns of a file that the import uses.

    Raises:
        EirError: if a required column is missing.
    """
    missing = [name for name in REQUIRED if name not in columns]
    if missing:
        raise EirError(
            f"{file}:1: no column {' and no column '.join(missing)}; expected a header with {', '.join((*REQUIRED, *OPTIONAL))}"
        )
    return [name for name in (*REQUIRED, *OPTIONAL) if name in columns]

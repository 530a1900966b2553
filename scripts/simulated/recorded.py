"""Record of checks without a node: rows of a CSV text become files of the record."""

import csv
import io
from datetime import UTC, datetime

import polars as pl

from eir.sightings.batches import ROWS, CheckRows
from eir.sightings.buffer import CheckKind
from eir.sightings.files import write
from eir.sightings.settings import SightingsSettings
from eir.sightings.subscribers import load_subscribers

TEXTS = ("imei", "software_version", "imsi", "msisdn", "origin_host", "status")


def record_checks(state, text, *, subscribers="full"):
    """Write checks into the record in a state folder. Columns of the CSV text: time, imei, and optionally those of TEXTS."""
    settings = SightingsSettings()
    state.mkdir(exist_ok=True)
    keys = load_subscribers(state, subscribers, rotate_s=settings.rotate_s, keep_s=settings.keep_s)
    rows = [
        {name: row.get(name) or "" for name in TEXTS} | {"time": _microseconds(row["time"])}
        for row in csv.DictReader(io.StringIO(text))
    ]
    kinds = sorted({(row["origin_host"], row["status"]) for row in rows})
    for row in rows:
        row["kind"] = kinds.index((row["origin_host"], row["status"]))
    frame = pl.DataFrame(rows, schema_overrides={"kind": pl.UInt32}).select(*ROWS)
    checks = [CheckKind(host or None, status=status or None, protocol="s13") for host, status in kinds]
    write(state, CheckRows(frame, checks).grouped(keys))


def _microseconds(text):
    time = datetime.fromisoformat(text)
    return round((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp() * 1e6)

"""Count of devices that were refused, and of those that were accepted again after their removal from the refusing list.

This module imports polars. The files are read some at a time. If many rows are refusals, the devices are counted in
slices, one pass over the files for each, so that memory is bounded by SLICE_ROWS groups of checks.
"""

import os
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial

from eir.device import SNR_KEYS
from eir.sightings.figures import LIST, MAKER, PEER, REASON, UNKNOWN, FigureTally, Maker
from eir.sightings.seen import newest_rows, sum_files

os.environ.setdefault("POLARS_MAX_THREADS", "1")
import polars as pl  # reads POLARS_MAX_THREADS when it is imported

REFUSED = ("blacklisted", "unknown")
"""Answers after which an MME refuses a phone."""
NO_LIST = "no list"
"""Name in place of the list of an answer that no list decided, such as that of the default."""
SLICE_ROWS = 4_000_000

NAMES = (pl.col("list").fill_null(NO_LIST), pl.col("peer").fill_null(UNKNOWN).replace("", UNKNOWN))


Reasons = Callable[[str, Sequence[int]], Sequence[str]]
"""Function that returns for a list and the keys of devices the reason of each; UNKNOWN for a device that is not listed."""


def count_refusals(
    paths: Sequence[str], begin: datetime, end: datetime, reasons: Reasons, maker: Maker
) -> tuple[FigureTally, FigureTally]:
    """Count the devices refused from `begin` to before `end` (UTC), and those of them accepted again after they left the list.

    A device came back if the list that refused it last does not have it any more, and a later answer was no refusal.

    Raises:
        EirError: if a file cannot be read.
    """
    is_within = pl.col("device").is_not_null() & (pl.col("time") >= begin) & (pl.col("time") < end)
    is_refused = pl.col("status").is_in(REFUSED)
    rows = sum_files(paths, lambda rows: rows.filter(is_within & is_refused).select(pl.len()), lambda rows: rows.sum())
    slices = 1 + rows.item() // SLICE_ROWS
    refused, returned = FigureTally(), FigureTally()
    for number in range(slices):
        is_selected = is_within & (pl.col("device") % slices == number)
        parts = sum_files(paths, partial(_refusals, chosen=is_selected & is_refused), _merge_refusals)
        if len(parts):
            others = is_selected & ~is_refused & (pl.col("status") != "error")
            devices = parts.select("device").unique()
            accepted = sum_files(paths, partial(_newest_of, chosen=others, devices=devices), _newest)
            _count_refused(refused, parts, reasons, maker)
            _count_returned(returned, parts, accepted, reasons, maker)
    return refused, returned


def _refusals(rows: pl.LazyFrame, chosen: pl.Expr) -> pl.LazyFrame:
    attempts = pl.col("checks").cast(pl.Int64).alias("attempts")
    return _merge_refusals(rows.filter(chosen).with_columns(*NAMES, attempts))


def _newest_of(rows: pl.LazyFrame, chosen: pl.Expr, devices: pl.DataFrame) -> pl.LazyFrame:
    """Return each device's newest row among those that meet the condition `chosen`. `devices`: table of the devices to include."""
    return _newest(rows.filter(chosen).join(devices.lazy(), on="device", how="semi").with_columns(*NAMES))


def _merge_refusals(rows: pl.LazyFrame) -> pl.LazyFrame:
    return rows.group_by("device", "list", "peer").agg(pl.col("attempts").sum(), pl.col("last").max())


def _newest(rows: pl.LazyFrame) -> pl.LazyFrame:
    return newest_rows(rows, ("last", "list", "peer"))


def _count_refused(tally: FigureTally, parts: pl.DataFrame, reasons: Reasons, maker: Maker) -> None:
    tally.total.update(devices=parts["device"].n_unique(), attempts=int(parts["attempts"].sum()))
    reason_rows = pl.concat([_with_reasons(str(name), of, reasons) for (name,), of in parts.group_by("list")])
    tacs = parts.with_columns((pl.col("device") // SNR_KEYS).alias(MAKER))
    for dimension, rows in ((LIST, parts), (PEER, parts), (REASON, reason_rows), (MAKER, tacs)):
        counts = rows.group_by(dimension).agg(pl.col("device").n_unique(), pl.col("attempts").sum())
        for group, devices, attempts in counts.iter_rows():
            name = maker(group) if dimension == MAKER else group
            tally.by[dimension][name].update(devices=devices, attempts=attempts)


def _with_reasons(name: str, parts: pl.DataFrame, reasons: Reasons) -> pl.DataFrame:
    """Return the devices that the list `name` refused, each with the number of attempts and the reason in the list."""
    rows = parts.group_by("device").agg(pl.col("attempts").sum()).sort("device")
    return rows.with_columns(pl.Series(REASON, reasons(name, rows["device"].to_list()), dtype=pl.String))


def _count_returned(
    tally: FigureTally, parts: pl.DataFrame, accepted: pl.DataFrame, reasons: Reasons, maker: Maker
) -> None:
    last = _newest(parts.lazy()).filter(pl.col("list") != NO_LIST).collect()
    rows = last.join(accepted.select("device", "last", "peer"), on="device", suffix="_accepted")
    rows = rows.filter(pl.col("last_accepted") > pl.col("last"))
    for (name,), of in rows.group_by("list"):
        present = reasons(str(name), of["device"].to_list())
        for device, peer, reason in zip(of["device"], of["peer_accepted"], present, strict=True):
            if reason == UNKNOWN:
                tally.add(1, **{LIST: str(name), PEER: peer, MAKER: maker(device // SNR_KEYS)})

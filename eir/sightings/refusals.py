"""Counts of devices for the monthly figures: refused devices, and devices that left the refusing list and were accepted again.

This module imports polars. The files are read some at a time. If many rows are refusals, the devices are counted in
slices, one pass over the files for each, so that memory is bounded by SLICE_ROWS groups of checks.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial

from eir.device import SNR_KEYS
from eir.frames import pl
from eir.sightings.figures import LIST, MAKER, PEER, REASON, UNKNOWN, FigureTally, Maker
from eir.sightings.seen import newest_rows, sum_files

REFUSED = ("blacklisted", "unknown")
"""Answers after which an MME refuses a phone."""
NO_LIST = "no list"
"""Name in place of the list of an answer that no list decided, such as that of the default."""
SLICE_ROWS = 4_000_000

NAMES = (pl.col("list").fill_null(NO_LIST), pl.col("peer").fill_null(UNKNOWN).replace("", UNKNOWN))

ReadReasons = Callable[[Sequence[int]], Sequence[str | None]]
"""Function that returns for the keys of devices the reason of each in one list; None for a device that is not listed."""


def count_refusals(
    paths: Sequence[str], begin: datetime, end: datetime, lists: Mapping[str, ReadReasons], maker: Maker
) -> tuple[FigureTally, FigureTally]:
    """Count the devices that were refused from `begin` to before `end` (UTC), and how many of them left the list and were accepted again.

    A device came back if the list that refused it last does not have it any more, and a later answer was no refusal.

    Args:
        paths: files of the record.
        begin: start of the period.
        end: end of the period.
        lists: reader of the reasons of each configured list of devices in the store, by its name. A list that is not in `lists` does
            not show that a device came back, because its present devices are not known.
        maker: returns the maker of a TAC.

    Raises:
        EirError: if a file cannot be read.
    """
    is_within = pl.col("device").is_not_null() & pl.col("time").is_between(begin, end, closed="left")
    is_refused = pl.col("status").is_in(REFUSED)
    rows = sum_files(paths, lambda rows: rows.filter(is_within & is_refused).select(pl.len()), pl.LazyFrame.sum)
    slices = 1 + rows.item() // SLICE_ROWS
    refused, returned = FigureTally(), FigureTally()
    for number in range(slices):
        is_selected = is_within & (pl.col("device") % slices == number)
        parts = sum_files(paths, partial(_refusals, chosen=is_selected & is_refused), _merge_refusals)
        if len(parts):
            others = is_selected & ~is_refused & (pl.col("status") != "error")
            accepted = _accepted_later(paths, parts, others)
            by_list = [_with_reasons(of, lists.get(str(name))) for (name,), of in parts.group_by("list")]
            reasons = pl.concat(by_list)
            _count_refused(refused, parts, reasons, maker)
            _count_returned(returned, accepted, reasons, maker)
    return refused, returned


def _refusals(rows: pl.LazyFrame, chosen: pl.Expr) -> pl.LazyFrame:
    attempts = pl.col("checks").cast(pl.Int64).alias("attempts")
    return _merge_refusals(rows.filter(chosen).with_columns(*NAMES, attempts))


def _merge_refusals(rows: pl.LazyFrame) -> pl.LazyFrame:
    return rows.group_by("device", "list", "peer").agg(pl.col("attempts").sum(), pl.col("last").max())


def _newest(rows: pl.LazyFrame) -> pl.LazyFrame:
    return newest_rows(rows, ("last", "list", "peer"))


def _accepted_later(paths: Sequence[str], parts: pl.DataFrame, others: pl.Expr) -> pl.DataFrame:
    """Return the refused devices whose newest answer is no refusal.

    Columns: `device`, `list` (the list that refused the device last), and `peer` (the peer of the newest answer).
    `others`: condition of the answers that are no refusals.
    """
    devices = parts.select("device").unique().lazy()

    def newest_accepted(rows: pl.LazyFrame) -> pl.LazyFrame:
        return _newest(rows.filter(others).join(devices, on="device", how="semi").with_columns(*NAMES))

    accepted = sum_files(paths, newest_accepted, _newest)
    last = _newest(parts.lazy()).collect()
    rows = last.join(accepted, on="device", suffix="_accepted")
    rows = rows.filter(pl.col("last_accepted") > pl.col("last"))
    return rows.select("device", "list", peer="peer_accepted")


def _with_reasons(parts: pl.DataFrame, read_reasons: ReadReasons | None) -> pl.DataFrame:
    """Return the devices that a list refused, each with its number of attempts and its present reason in this list.

    The reason is null for a device that is not in the list any more. Without `read_reasons`, the reason of all devices is UNKNOWN.
    `parts`: refusals by this list.
    """
    rows = parts.group_by("list", "device").agg(pl.col("attempts").sum()).sort("device")
    keys = rows["device"].to_list()
    reasons = [UNKNOWN] * len(keys) if read_reasons is None else read_reasons(keys)
    return rows.with_columns(pl.Series(REASON, reasons, dtype=pl.String))


def _count_refused(tally: FigureTally, parts: pl.DataFrame, reasons: pl.DataFrame, maker: Maker) -> None:
    tally.total.update(devices=parts["device"].n_unique(), attempts=int(parts["attempts"].sum()))
    texts = reasons.with_columns(pl.col(REASON).fill_null(UNKNOWN))
    tacs = parts.with_columns((pl.col("device") // SNR_KEYS).alias(MAKER))
    for dimension, rows in ((LIST, parts), (PEER, parts), (REASON, texts), (MAKER, tacs)):
        counts = rows.group_by(dimension).agg(pl.col("device").n_unique(), pl.col("attempts").sum())
        for group, devices, attempts in counts.iter_rows():
            name = maker(group) if dimension == MAKER else group
            tally.by[dimension][name].update(devices=devices, attempts=attempts)


def _count_returned(tally: FigureTally, accepted: pl.DataFrame, reasons: pl.DataFrame, maker: Maker) -> None:
    """Count the devices that were accepted after their last refusal by a list, and that are no longer in this list.

    Args:
        tally: receives the counts.
        accepted: accepted devices, each with the list that refused it last.
        reasons: the same and other devices, each with its reason in each list that refused it.
        maker: returns the maker of a TAC.
    """
    rows = accepted.join(reasons.filter(pl.col(REASON).is_null()), on=("list", "device"), how="semi")
    for device, name, peer in rows.iter_rows():
        tally.add(1, list=name, peer=peer, maker=maker(device // SNR_KEYS))

"""Command that writes public statistics (figures) of a month, and adds up the figures of several operators."""

import csv
import json
import sys
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from glob import glob
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from eir.checks.periods import NO_END, last_days
from eir.cli.access import DEFAULT_CONFIG, ConfigFile, Json, opened, with_store
from eir.cli.output import EXIT_USAGE, fail, print_json, print_message, show, written_to
from eir.cli.sightings import write_down
from eir.cli.tamper import allocated_tacs, judging
from eir.config import Config, load_config
from eir.device import KEY_DIGITS, MEID_BASE, SNR_KEYS, TAC_DIGITS, device_key
from eir.errors import EirError, SetupFault
from eir.lists.changes.listings import Parts, count_first_days, read_begin, read_listings, read_reasons
from eir.lists.log.change import utc_text
from eir.lists.log.store import LogStore
from eir.lists.record.first_days import DAY_S, IMPORT
from eir.lists.record.settings import DEVICES, PAIRS
from eir.sightings.cases import CONFIRMED, load_decisions
from eir.sightings.figures import (
    COLUMNS,
    FIGURES,
    UNKNOWN,
    Coverage,
    Document,
    FigureTally,
    Maker,
    document,
    merge,
    public_text,
    read_document,
    record_coverage,
    table_rows,
)
from eir.sightings.schema import FILES, FOLDER

NO_REASON, NO_TAC = "no reason given", "no TAC (MEID)"
FORMULA_BEGINS = ("=", "+", "-", "@", "\t", "\r")
"""First characters of a text that a spreadsheet computes as a formula."""
FILE_BYTES_MAX = 64 << 20
"""Maximum size of a file of figures."""
DAYS = 1 << 16
"""Number of days since 1970-01-01 that a record of first sightings can have."""


def figures(
    files: Annotated[list[Path] | None, typer.Argument(metavar="FILE", help="With --merge: files that --json wrote, one for each operator.", show_default=False)] = None,
    month: Annotated[str, typer.Option(metavar="MONTH", help="Month (UTC), such as 2026-11.", show_default="the last one")] = "",
    merged: Annotated[bool, typer.Option("--merge", help="Add the figures of several operators.")] = False,
    html_file: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a page with charts, in one file.")] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print one table as CSV.")] = False,
    record: Annotated[str | None, typer.Option(metavar="PATTERN", help="Files of checks to count instead of this node's own, such as those of all nodes.", show_default=False)] = None,
    config: ConfigFile = DEFAULT_CONFIG, as_json: Json = False,
) -> None:  # fmt: skip
    """Write the figures of a month for the public.

    The figures count devices added to lists and removed from them, refused devices and their attempts, devices that came
    back, periods of grace, and copied identities; by list, reason, maker (TAC) and peer. No identifier is printed, and no
    number that stands for fewer than ten devices. deploy/REGULATOR.md explains the rules. The command reads the record of
    checks, the history and the store. --merge adds up the files of several operators.
    """
    if merged != bool(files):
        raise fail("--merge and files go together: eir figures --merge a.json b.json", EXIT_USAGE)
    if as_csv and as_json:
        raise fail("--csv and --json: expected one of them", EXIT_USAGE)
    if files:
        found = merge([_read_document(path) for path in files])
    else:
        found = _compute_figures(opened(load_config(config)), month, record)
    if month and month != found["month"]:
        raise fail(f"--month {month}: the files are of {found['month']}", EXIT_USAGE)
    if html_file is not None:
        from eir.sightings.figures_page import figures_page  # noqa: PLC0415 - only for a page

        with written_to(html_file) as out:
            out.write(figures_page(found))
    if as_json:
        print_json(found)
    elif as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows([*map(_cell, row.values())] for row in table_rows(found))
    elif html_file is None:
        print_message(f"figures of {found['month']} (UTC)")
        show([*table_rows(found)], COLUMNS, as_json=False)


def _cell(value: Any) -> Any:
    """Return a value for a CSV file. A text that a spreadsheet would compute as a formula gets an apostrophe."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA_BEGINS) else value


def _read_document(path: Path) -> Document:
    """Read a document of figures (statistics of a month) from a file.

    Raises:
        EirError: if the file cannot be read, or has no figures.
    """
    try:
        with path.open("rb") as file:
            octets = file.read(FILE_BYTES_MAX)  # the JSON of a longer file is cut short
        return read_document(json.loads(octets))
    except OSError as error:
        raise EirError(f"{path}: {error.strerror}") from None
    except RecursionError:
        raise EirError(f"{path}: JSON that is nested too deep") from None
    except ValueError as error:
        raise EirError(f"{path}: {error}") from None


def _compute_figures(config: Config, month: str, record: str | None) -> Document:
    """Compute the figures of a month from lists and recorded checks.

    `record`: pattern for the names of the files with checks. Without a pattern, the record of this node is read.
    """
    begin, end = _period(month)
    month = f"{begin:%Y-%m}"
    now = datetime.now(UTC)
    if begin > now:
        raise fail(f"--month {month}: the month has not begun", EXIT_USAGE)
    maker = _maker_of(config)
    files = _recorded_files(config, record)
    grace = "" if config.first_seen is None else config.first_seen.list
    kinds = _blocking_lists(config)
    coverage = _with_store(config, partial(_history_coverage, names=kinds.keys(), grace=grace, now=now))
    checks = record_coverage(
        [day for day, _ in files], now, is_recording=record is None and config.sightings is not None
    )
    sources = coverage | dict.fromkeys(("refused", "returned", "copies_found", "copies_confirmed"), checks)
    covered = {
        name: source and source.days(begin, end)
        for name, source in sources.items()
        if not source or not source.holds(begin, end)
    }
    tallies: dict[str, FigureTally] = {}
    if "listed" not in covered:
        listings = _with_store(config, partial(read_listings, kinds=kinds, begin=utc_text(begin), end=utc_text(end)))
        tallies["listed"], tallies["unlisted"] = _tally_listings(listings, maker)
    if "grace_begun" not in covered:
        tallies |= _tally_grace(config, begin, end, maker)
    if "refused" not in covered:
        paths = [path for day, path in files if begin <= day < end]
        tallies["refused"], tallies["returned"] = _tally_refusals(config, paths, begin, end, maker)
        try:
            tallies["copies_found"] = _tally_copies(config, record, begin, end, maker)
            tallies["copies_confirmed"] = _tally_confirmed(config, begin, end, maker)
        except SetupFault as e:
            print_message(f"warning: copied identities are not counted: {e}")
    for name in FIGURES:
        if covered.get(name):
            print_message(f"warning: {name}: no number, because only {' to '.join(covered[name] or ())} are covered")
    return document(config.identity.realm, month, tallies, covered)


async def _history_coverage(
    store: LogStore, *, names: Collection[str], grace: str, now: datetime
) -> dict[str, Coverage | None]:
    """Return the period that the logs cover, for the figures of lists and for those of periods of grace.

    Args:
        store: store of the lists.
        names: lists whose changes are counted.
        grace: name of the record of first sightings, whose first change begins its period; empty without a record.
        now: end of the periods.
    """
    begin = await read_begin(store, names)
    lists = Coverage(datetime.fromisoformat(begin), now) if begin else None
    record = (await store.heads()).get(grace)
    periods = Coverage(datetime.fromisoformat(record.loaded_at), now) if record and record.loaded_at else None
    return {"listed": lists, "unlisted": lists, "grace_begun": periods, "grace_ended": periods}


def _period(month: str) -> tuple[datetime, datetime]:
    """Return start and end of a month such as `2026-11` in UTC. An empty text is the previous month."""
    previous = datetime.now(UTC).replace(day=1) - timedelta(days=1)
    try:
        begin = datetime.strptime(month or f"{previous:%Y-%m}", "%Y-%m").replace(tzinfo=UTC)
        end = begin + timedelta(days=31)
    except (ValueError, OverflowError):
        raise fail(f"--month {month}: expected a month such as 2026-11", EXIT_USAGE) from None
    return begin, end.replace(day=1)


def _with_store(config: Config, work: Callable[[LogStore], Any]) -> Any:
    return with_store(config, work, fresh=False, reads=True)


def _blocking_lists(config: Config) -> dict[str, str]:
    """Return the names and kinds of all lists of devices, except lists that the rules use only to allow devices."""
    allowing = config.policy.only_allowing
    return {name: kind for name, kind in _device_lists(config).items() if name not in allowing}


def _device_lists(config: Config) -> dict[str, str]:
    """Return the names and kinds of all lists of devices."""
    return {name: settings.kind for name, settings in config.lists.items() if settings.kind in {DEVICES, PAIRS}}


def _maker_of(config: Config) -> Maker:
    """Return a function that finds the maker of a TAC in the lists of device types. For an unlisted TAC, it returns the TAC as text."""
    types = {each.tac: each.device_type for each in allocated_tacs(config) if each.device_type}

    def maker(tac: int) -> str:
        if tac >= MEID_BASE // SNR_KEYS:
            return NO_TAC
        return types.get(tac, f"TAC {tac:0{TAC_DIGITS}d}")

    return maker


def _reason_name(reason: str) -> str:
    return public_text(reason) or NO_REASON


def _tally_listings(listings: Parts, maker: Maker) -> tuple[FigureTally, FigureTally]:
    """Count the devices that were added to lists, and the devices that were removed."""
    listed, unlisted = FigureTally(), FigureTally()
    for each, devices in listings.items():
        tally = listed if each.is_listed else unlisted
        reason = UNKNOWN if each.reason is None else _reason_name(each.reason)
        name = UNKNOWN if each.tac is None else maker(each.tac)
        tally.add(devices, list=each.list, reason=reason, maker=name)
    return listed, unlisted


def _tally_refusals(
    config: Config, paths: Sequence[str], begin: datetime, end: datetime, maker: Maker
) -> tuple[FigureTally, FigureTally]:
    """Count the refused devices, and the devices that were accepted again after their removal from a list."""
    from eir.sightings.refusals import count_refusals  # noqa: PLC0415 - polars, for this command alone

    def read(name: str, keys: Sequence[int]) -> list[str | None]:
        reasons = _with_store(config, partial(read_reasons, name=name, keys=keys))
        return [None if reason is None else _reason_name(reason) for reason in reasons]

    stored = _with_store(config, lambda store: store.heads())
    lists = {name: partial(read, name) for name in _device_lists(config) if name in stored}
    return count_refusals(paths, begin.replace(tzinfo=None), end.replace(tzinfo=None), lists, maker)


def _recorded_files(config: Config, record: str | None) -> list[tuple[datetime, str]]:
    """Return the day and the path of each file with checks, in order. The files of each day are in a folder of their own.

    `record`: pattern of the files to search; None: the files in the node's record of checks.
    """
    if record is None:
        write_down(config)
        record = str(config.state / FOLDER / FILES)
    files = []
    for path in glob(record):  # noqa: PTH207 - a pattern of the user
        with suppress(ValueError):  # a folder of another program
            files.append((datetime.strptime(Path(path).parent.name, "%Y-%m-%d").replace(tzinfo=UTC), path))
    return sorted(files)


def _tally_grace(config: Config, begin: datetime, end: datetime, maker: Maker) -> dict[str, FigureTally]:
    """Count by maker the devices whose period of grace began, and those whose period ended, from `begin` to before `end`.

    Returns an empty dictionary without a record of first sightings, and if no rule gives a period that ends.
    """
    first_days = np.arange(DAYS, dtype=np.uint16)
    last = last_days(config.policy, first_days)
    if config.first_seen is None or (last == NO_END).all():
        return {}
    start, stop = (int(time.timestamp()) // DAY_S for time in (begin, end))
    has_begun = (first_days >= start) & (first_days < stop) & (last != NO_END)
    has_ended = (last >= start) & (last < stop)
    names = (config.first_seen.list, f"{config.first_seen.list}{IMPORT}")
    counts = _with_store(config, partial(count_first_days, names=names, chosen=(has_begun, has_ended)))
    begun, ended = (_tally_tacs(count, maker) for count in counts)
    return {"grace_begun": begun, "grace_ended": ended}


def _tally_tacs(counts: Counter[int], maker: Maker) -> FigureTally:
    tally = FigureTally()
    for tac, devices in counts.items():
        tally.add(devices, maker=maker(tac))
    return tally


def _tally_copies(config: Config, record: str | None, begin: datetime, end: datetime, maker: Maker) -> FigureTally:
    """Count the copied identities among the devices checked in the month.

    Raises:
        SetupFault: without DuckDB.
    """
    from eir.sightings.conditions import CONDITIONS  # noqa: PLC0415 - for this command alone

    start, stop = begin.replace(tzinfo=None), end.replace(tzinfo=None)
    tally = FigureTally()
    with judging(config, start, stop, record) as (_, judgement):
        for finding in judgement.findings:
            evidence = CONDITIONS[finding.conditions[0]] if finding.conditions else CONFIRMED
            tally.add(1, condition=evidence, maker=maker(finding.device // SNR_KEYS))
    return tally


def _tally_confirmed(config: Config, begin: datetime, end: datetime, maker: Maker) -> FigureTally:
    """Count by maker the devices that an operator confirmed as tampered with, from `begin` to before `end`. The last decision on each device counts."""
    last = {each["imei"][:KEY_DIGITS]: each for each in load_decisions(config.state)}
    tally = FigureTally()
    for imei, decision in last.items():
        if decision["verdict"] == CONFIRMED and utc_text(begin) <= decision["time"] < utc_text(end):
            tally.add(1, maker=maker(device_key(imei) // SNR_KEYS))
    return tally

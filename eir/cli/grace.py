"""Commands about periods of grace: import of first sightings, and export of devices with the ends of their periods."""

import csv
import json
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, date, datetime
from functools import cache, partial
from pathlib import Path
from typing import Annotated, NamedTuple, TypeVar

import numpy as np
import typer
from numpy.typing import NDArray

from eir.checks.conditions import day_text
from eir.checks.periods import NO_END, is_over, last_days
from eir.checks.settings import PolicySettings
from eir.cli.access import DEFAULT_CONFIG, ConfigFile, Json, opened, recorded, who, with_store
from eir.cli.output import EXIT_NO, EXIT_USAGE, fail, print_message, progress, show_one, written_to
from eir.config import Config, load_config
from eir.device import key_text
from eir.errors import EirError
from eir.lists.changes.import_days import import_days, read_days, seen_now, undo_import, undo_sightings
from eir.lists.log.change import Change
from eir.lists.log.store import LogStore
from eir.lists.record.first_days import DAY_S, IMPORT, LEFT_LIST, WAS_LISTED, batches, first_days
from eir.lists.table.table import Table

COLUMNS = ("imei", "first_seen", "until")
SIGHTINGS = "the record of checks"
T = TypeVar("T")


class Ends(NamedTuple):
    """Filter for devices whose period of grace ends from day `first` to day `last`; None means no limit."""

    first: int | None
    last: int | None

    @property
    def is_any(self) -> bool:
        """True if the filter has no limit, so that it also selects devices whose period of grace does not end."""
        return self.first is None and self.last is None


def ends_of(ends_from: str, ends_to: str) -> Ends:
    """Parse the options `--ends-from` and `--ends-to`; end the command for an invalid day."""
    return Ends(_day("--ends-from", ends_from), _day("--ends-to", ends_to))


def _day(option: str, text: str) -> int | None:
    if not text:
        return None
    try:
        midnight = datetime.combine(date.fromisoformat(text), datetime.min.time(), UTC)
    except ValueError:
        raise fail(f"{option} {text}: expected a day (UTC) such as 2027-01-29", EXIT_USAGE) from None
    return int(midnight.timestamp()) // DAY_S


def import_first_seen(
    file: Annotated[Path | None, typer.Argument(metavar="FILE", help="CSV with the columns imei and first_seen (a day such as 2026-11-30, UTC), as `eir export` writes the record.", show_default=False)] = None,
    from_sightings: Annotated[bool, typer.Option("--from-sightings", help="Instead of FILE: the first check of each device in the record of checks (`sightings`).")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the result: how many periods of grace would be over, and how many would begin.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Lift the limit on periods of grace that the import ends.")] = False,
    config: ConfigFile = DEFAULT_CONFIG, as_json: Json = False,
) -> None:  # fmt: skip
    """Import first sightings from a file or from recorded checks.

    After such an import, no period of grace starts again when a network changes to this EIR. The earliest day of a device
    counts. Devices that a list registers are left out. Bad rows are left out and named by file and line; the exit status
    is 1 only if no row is good. The import is one change, so a killed import changes nothing, and `eir first-seen undo`
    takes the import back. Running nodes follow the change. An imported device counts as seen today. Without --force, an
    import may end the periods of grace of 999 devices, or of 20 % of the devices on record.
    """
    if (file is None) is not from_sightings:
        raise fail("FILE or --from-sightings is needed, and only one of them", EXIT_USAGE)
    checked, name = _with_record(config)
    bad, complaints = 0, list[str]()
    now = datetime.now(UTC)
    with progress() as advance:
        shown = advance or (lambda *_: None)
        if file is None:
            from eir.sightings.seen import first_days as first_checks  # noqa: PLC0415 - polars, for --from-sightings alone

            rows = seen_now(*first_checks(checked.state), now)
        else:
            rows, tally = read_days(file, now, shown)
            bad, complaints = tally.bad, [*tally.complaints]
        shown("write", 0, 1)
        source = SIGHTINGS if file is None else file.name
        work = partial(
            import_days, rows, name, registering=checked.registering, source=source, who=who(), now=now,
            is_over=_is_over(checked.policy, now), dry_run=dry_run, force=force,
        )  # fmt: skip
        report, change = with_store(checked, partial(_recorded, checked, name + IMPORT, work))
        shown("write", 1, 1)
    for complaint in complaints:
        print_message(f"warning: a bad row, which was left out: {complaint}")
    import_id = None if change is None else change.generation
    document = {
        "source": source,
        "dry_run": dry_run,
        "import": import_id,
        **report._asdict(),
        "bad_rows": bad,
        "complaints": complaints,
    }
    text = f"{name}: {report.as_text()}"
    if import_id is not None:
        text += f"; import {import_id}"
    if dry_run:
        text = f"dry run, nothing was written: {text}"
    if bad:
        text += f"; {bad:,} bad rows were left out"
    show_one(document, text, as_json=as_json)
    if bad and not report.devices:
        raise typer.Exit(EXIT_NO)


def _is_over(policy: PolicySettings, now: datetime) -> Callable[[NDArray[np.uint16]], NDArray[np.bool_]]:
    """Return the function that computes which first days give no period of grace at the time `now`."""
    return lambda firsts: is_over(policy, firsts, int(now.timestamp()) // DAY_S)


def undo_first_seen(
    import_id: Annotated[int | None, typer.Argument(metavar="[IMPORT]", help="Number of the import, as `eir first-seen import` and `eir history` show it; the last import if not given.", show_default=False)] = None,
    generation: Annotated[int | None, typer.Option("--generation", metavar="N", help="Instead of an import: remove the devices of a change of the record itself, whose rows break a bound (`event=first_seen_refused`). Nodes write accepted rows of these devices again.", show_default=False)] = None,
    config: ConfigFile = DEFAULT_CONFIG, as_json: Json = False,
) -> None:  # fmt: skip
    """Take an import of first sightings back.

    A device gets the first day back that it had before the import. A device that was not on record is removed, so its
    period of grace begins at its next check. A device whose first day has changed since the import stays as it is.
    Running nodes follow the change.
    """
    checked, name = _with_record(config)
    if generation is not None:
        if import_id is not None:
            raise fail("an import and --generation exclude each other", EXIT_USAGE)
        work = partial(undo_sightings, name, generation=generation, who=who(), now=datetime.now(UTC))
        devices, _ = with_store(checked, partial(_recorded, checked, name, work))
        show_one(
            {"devices": devices}, f"{name}: {devices:,} devices of generation {generation} removed", as_json=as_json
        )
        return
    undo = partial(undo_import, name, who=who(), now=datetime.now(UTC), import_id=import_id)
    report, _ = with_store(checked, partial(_recorded, checked, name + IMPORT, undo))
    show_one(report._asdict(), f"{name}: {report.as_text()}", as_json=as_json)


def _with_record(config: Path) -> tuple[Config, str]:
    """Read the configuration; return it and the name of the record of first sightings."""
    checked = opened(load_config(config))
    if checked.first_seen is None:
        raise EirError(f"{checked.path} has no section 'first_seen', so there is no record of first sightings")
    return checked, checked.first_seen.list


async def _recorded(
    config: Config, name: str, work: Callable[..., Awaitable[tuple[T, Change | None]]], store: LogStore
) -> tuple[T, Change | None]:
    """Run work that may change a list, and wait until the journal of this host has the change."""
    report, change = await work(store=store)
    if change is not None:
        await recorded(config, store, name, change)
    return report, change


def write_days(policy: PolicySettings, table: Table, ends: Ends, out: Path | None, *, as_json: bool) -> int:
    """Write a row for each device whose period of grace ends in the range `ends`; return the count of devices."""
    count = 0
    rows = _device_rows(policy, table, ends)
    with written_to(out) as file:
        if as_json:
            devices = [dict(zip(COLUMNS, row, strict=True)) for row in rows]
            json.dump(devices, file, indent=2)
            file.write("\n")
            return len(devices)
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in rows:
            writer.writerow(row)
            count += 1
    return count


def _device_rows(policy: PolicySettings, table: Table, ends: Ends) -> Iterator[tuple[str, str, str | None]]:
    """Yield identifier, first day and last day (None: no end) of each device whose period of grace ends in the range `ends`."""
    text, done = cache(day_text), 0
    with progress() as advance:
        for rows in batches(table):
            done += len(rows)
            firsts = first_days(rows).astype(np.uint16)
            lasts, keys = last_days(policy, firsts), rows.keys
            if not ends.is_any:
                wanted = (lasts != NO_END) & (lasts >= (ends.first or 0))
                if ends.last is not None:
                    wanted &= lasts <= ends.last
                keys, firsts, lasts = keys[wanted], firsts[wanted], lasts[wanted]
            for key, first, last in zip(keys.tolist(), firsts.tolist(), lasts.tolist(), strict=True):
                yield (
                    key_text(key),
                    LEFT_LIST if first == WAS_LISTED else text(first),
                    None if last == NO_END else text(last),
                )
            if advance is not None:
                advance("write", done, len(table))

"""Commands about the record of checks: its size, one device or SIM, removal of a subscriber, import, export."""

import asyncio
import csv
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eir.cli.access import DEFAULT_CONFIG, ConfigFile, Json, acting_in, ask_node, imsi_named, number_named, opened, who
from eir.cli.output import (
    EXIT_NO,
    EXIT_USAGE,
    fail,
    minute,
    moment,
    print_json,
    print_message,
    print_text,
    progress,
    show,
    show_one,
    written_to,
)
from eir.config import Config, load_config
from eir.device import imsi_key, key_text
from eir.errors import EirError, IdentifierError
from eir.lists.changes.forget_sims import forget_sims
from eir.lists.log.change import utc_text
from eir.lists.record.last_devices import key_of_form, sim_of, sim_text
from eir.lists.record.settings import LastDeviceSettings
from eir.lists.rows.msisdn import NO_NUMBERS, number_of, read_numbers
from eir.lists.stores.open import open_store
from eir.node.observe import control
from eir.node.processes.state_folder import prepare
from eir.sightings import files
from eir.sightings.settings import FULL, SightingsSettings
from eir.sightings.subscribers import load_subscribers, subscriber_names

if TYPE_CHECKING:
    from eir.sightings.seen import SearchTerms

EDR = "edr"
SEEN_COLUMNS = (
    "first",
    "last",
    "checks",
    "imei",
    "software_version",
    "subscriber",
    "home",
    "origin_host",
    "status",
    "list",
)
SEEN_COLUMNS_IF_KNOWN = ("msisdn", "access")
DEVICE_COLUMNS = ("imei", "since", "last_day")
SEEN_VALUES = ("subscriber", "msisdn", "device", "software_version", "origin_host")
"""Columns whose distinct values are members of the JSON document, in the plural."""


def sightings(context: typer.Context, config: ConfigFile = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Show the size of the record of checks."""
    if context.invoked_subcommand is not None:
        return
    checked = opened(load_config(config))
    recorded_files = files.list_files(checked.state)
    octets = sum(file.bytes for file in recorded_files)
    text = f"{len(recorded_files):,} files, {octets:,} bytes"
    first = last = None
    if recorded_files:
        first, last = _hour(recorded_files[0].path), _hour(recorded_files[-1].path)
        text += f", from {minute(first)} to {minute(last)}"
    document = {
        "kept": checked.sightings is not None, "files": len(recorded_files), "bytes": octets, "first_hour": first, "last_hour": last,
        "subscribers": checked.sightings.subscribers if checked.sightings else None,
    }  # fmt: skip
    show_one(document, f"{text}{not_kept(checked)}", as_json=as_json)


def seen(
    identifier: Annotated[str, typer.Argument(metavar="IMEI|IMSI", help="The device or the SIM; 15 digits may be either, and both are looked for. +NUMBER is the number in the request, and the SIM of that number by the table `numbers`.")],
    since: Annotated[str, typer.Option(metavar="TIME", help="From when on: 7d, 36h, or 2026-11-20.")] = "",
    config: ConfigFile = DEFAULT_CONFIG, as_json: Json = False,
) -> None:  # fmt: skip
    """Show the recorded checks of a device, a SIM or a number.

    There is one row for each SIM, software version, MME and answer. With `subscribers: hashed` a SIM or a number is shown
    as its hash. With `last_device` the last devices of the SIM follow. A running node first writes its buffered checks.
    Exit status 1 if neither a check nor a last device is on record.
    """
    checked = opened(load_config(config))
    begin = moment(since)
    terms, rows = _search(checked, identifier, begin)
    last_devices = _last_devices(checked, terms.imsi)
    if as_json:
        distinct = {f"{name}s": _distinct(rows, name) for name in SEEN_VALUES}
        print_json({
            "identifier": identifier, "device": None if terms.device is None else key_text(terms.device), "imsi": terms.imsi,
            "since": begin and utc_text(begin), "checks": sum(row["checks"] for row in rows),
            "first_seen": min((row["first"] for row in rows), default=None), "last_seen": max((row["last"] for row in rows), default=None),
            **distinct, "sightings": rows, "last_devices": last_devices,
        })  # fmt: skip
    else:
        if rows:
            known = [name for name in SEEN_COLUMNS_IF_KNOWN if _distinct(rows, name)]
            show(rows, (*SEEN_COLUMNS, *known), as_json=False)
        if last_devices:
            print_text("\nLast devices of the SIM:" if rows else "Last devices of the SIM:")
            show(last_devices, DEVICE_COLUMNS, as_json=False)
    if not rows and not last_devices:
        period = f" since {since}" if since else ""
        raise fail(f"{identifier} is not on record{period}{not_kept(checked)}")


def last_device_of(checked: Config, number: str) -> str:
    """Print and return the last device of a phone number (+NUMBER); end the command if no device is known."""
    if not number.startswith("+"):
        raise fail(f"--number {number}: expected a number such as +85512345678", EXIT_USAGE)
    terms, rows = _search(checked, number, None)
    newest = max((row for row in rows if row["device"]), key=lambda row: str(row["last"]), default=None)
    if devices := _last_devices(checked, terms.imsi):
        imei, dates = devices[-1]["imei"], f"since {devices[-1]['since']}"
    elif newest is not None:
        imei, dates = newest["device"], f"last check at {newest['last']}"
    else:
        reason = (
            "no recorded check has the number"
            if terms.imsi is None
            else f"no device of its IMSI {terms.imsi} is on record"
        )
        raise fail(
            f"{number}: the last device is not known: {reason}; give the IMEI, or the IMSI of the number in the table `numbers`"
        )
    print_message(f"{number}: last device {imei}, {dates}")
    return str(imei)


def _search(checked: Config, identifier: str, since: datetime | None) -> tuple["SearchTerms", list[dict[str, Any]]]:
    """Return the terms of a search for a device, a SIM or a number, and the recorded checks that it finds."""
    from eir.sightings.seen import SearchTerms, find_sightings, parse_search  # noqa: PLC0415 - polars, for these commands

    msisdn = ""
    try:
        if identifier.startswith("+"):
            msisdn, imsi = number_named(checked, identifier)
            terms = SearchTerms(None, imsi)
        else:
            terms = parse_search(identifier)
    except IdentifierError as e:
        raise fail(f"{identifier}: {e}", EXIT_USAGE) from None
    write_down(checked)
    names = subscriber_names(checked.state, terms.imsi) if terms.imsi else []
    msisdns = subscriber_names(checked.state, msisdn) if msisdn else []
    rows = find_sightings(checked.state, terms, names, since, msisdns=msisdns)
    return terms, rows


def _last_devices(checked: Config, imsi: str | None) -> list[dict[str, Any]]:
    """Return the last devices of a SIM that the running node knows, the present one last (LastDevices.find)."""
    if checked.last_device is None or imsi is None:
        return []
    try:
        devices: list[dict[str, Any]] = ask_node(checked, "last_devices", imsi=imsi)
    except control.ControlError as e:
        print_message(f"warning: the last devices of the SIM are not known: {e}")
        return []
    return devices


def forget(
    imsi: Annotated[str, typer.Option(metavar="N", help="The subscriber; +NUMBER by the table `numbers`, and by the number in the record.")], config: ConfigFile = DEFAULT_CONFIG, as_json: Json = False,
) -> None:  # fmt: skip
    """Remove a subscriber from the record of checks.

    The command deletes all rows of the subscriber, under each key with which the IMSI was hashed, and the entries about
    the subscriber in watched lists and in the list of last devices. A later check of the subscriber is recorded again. Copies of the files, and events
    that were already sent, are not changed. Exit status 1 if a file is damaged or if the running node may still
    remember the subscriber; everything else is then done.
    """
    checked = opened(load_config(config))
    names, damaged, remembered, forgotten = list[str](), list[Path](), "", 0
    if imsi.startswith("+"):
        msisdn, _ = number_named(checked, imsi)
        names += subscriber_names(checked.state, msisdn)
    if names and checked.numbers is None:
        print_message("warning: only rows with this number go: without a table `numbers` its IMSI is not known")
    else:
        imsi = imsi_named(checked, imsi)
        try:
            imsi_key(imsi)
        except IdentifierError as e:
            raise fail(f"--imsi {imsi}: {e}", EXIT_USAGE) from None
        names += subscriber_names(checked.state, imsi)
        if checked.last_device is not None:
            with acting_in(checked.state):
                forgotten = asyncio.run(_forget_sim(checked, checked.last_device, imsi, names))
    try:
        control.ask(checked.state, "forget", subscribers=names)
    except control.ControlAway:
        pass
    except control.ControlError as e:
        remembered = str(e)
    with acting_in(checked.state):
        rows = files.forget(checked.state, names, damaged.append)
    text = f"{rows:,} rows are gone" + f", and {forgotten} of the list of last devices" * (forgotten > 0)
    show_one({"rows": rows, "last_devices": forgotten}, text, as_json=as_json)
    if damaged:
        paths = ", ".join(map(str, damaged))
        raise fail(f"these files are damaged and may still contain the subscriber; remove them: {paths}")
    if remembered:
        raise fail(f"the running node may still have the subscriber in memory: {remembered}; run the command again")


async def _forget_sim(config: Config, settings: LastDeviceSettings, imsi: str, names: list[str]) -> int:
    """Remove a SIM from the list of last devices; return the number of removed rows, and add its name in events to `names`."""
    store = open_store(config.store, config.state, check=False)
    try:
        head = (await store.heads()).get(settings.list)
        if head is None:
            return 0
        key = key_of_form(head.registered, settings.key_file)
        sim = sim_of(imsi, key)
        names.append(sim_text(sim, key))
        return await forget_sims([sim], settings.list, store, who=who())
    finally:
        await store.close()


def import_log(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="CSV with a header, or Parquet.")], config: ConfigFile = DEFAULT_CONFIG, as_json: Json = False,
) -> None:  # fmt: skip
    """Import the log of another EIR into the record of checks.

    Columns are found by name: time, imei, and optionally software_version, imsi, origin_host, status. Bad rows are
    skipped and reported by file and line. Imported rows are kept as long as rows of today. A file that is imported
    twice counts twice. The exit status is 1 only if no row is good.
    """
    from eir.sightings.intake import import_log as import_file  # noqa: PLC0415 - polars, for this command

    checked = opened(load_config(config))
    settings = checked.sightings or SightingsSettings()
    try:
        with acting_in(checked.state), progress() as advance:
            prepare(checked.state)
            files.folder_of(checked.state)
            subscribers = load_subscribers(
                checked.state, settings.subscribers, rotate_s=settings.rotate_s, keep_s=settings.keep_s
            )
            shown = partial(advance, "read") if advance else lambda *_: None
            log = import_file(file, checked.state, subscribers, shown)
    except OSError as e:
        raise EirError(f"{e.filename or file}: {e.strerror}") from None
    for complaint in log.complaints:
        print_message(complaint)
    text = f"{log.rows:,} rows of {file.name} are on record, in {len(log.files):,} files"
    if log.bad:
        text += f"; {log.bad:,} bad rows were left out"
    document = {
        "file": str(file), "rows": log.rows, "bad_rows": log.bad, "complaints": log.complaints, "files": len(log.files)
    }  # fmt: skip
    show_one(document, text, as_json=as_json)
    if log.bad and not log.rows:
        raise typer.Exit(EXIT_NO)


def export(
    layout: Annotated[str, typer.Option("--layout", metavar="NAME", help="edr: the daily file of checks that national registers take.")] = EDR,
    day: Annotated[str, typer.Option("--day", metavar="DATE", help="Which day (UTC), such as 2026-11-27.", show_default="yesterday")] = "",
    operator: Annotated[str, typer.Option("--operator", metavar="NAME", help="What the register calls the operator.", show_default="the realm of the node")] = "",
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Where to; the standard output if left out.")] = None,
    config: ConfigFile = DEFAULT_CONFIG,
) -> None:  # fmt: skip
    """Export the checks of one day for a national register.

    There is one row for each device and SIM: imei, imsi, msisdn (of the checks, or by the table `numbers`), time of the
    first check (ms since 1970, and as a time in UTC), protocol, origin, name of the file, operator. A check without an
    IMEI has 888888888888888. IMSIs are on record only with `sightings.subscribers: full`. A running node first writes its
    buffered checks.
    """
    from eir.sightings.seen import daily_rows  # noqa: PLC0415 - polars, for this command

    if layout != EDR:
        raise fail(f"--layout {layout}: expected {EDR}", EXIT_USAGE)
    yesterday = datetime.now(UTC) - timedelta(days=1)
    try:
        exported_day = date.fromisoformat(day) if day else yesterday.date()
    except ValueError:
        raise fail(f"--day {day}: expected a day such as 2026-11-27", EXIT_USAGE) from None
    checked = recorded(opened(load_config(config)))
    if checked.sightings is not None and checked.sightings.subscribers != FULL:
        print_message(f"warning: no row has an IMSI: sightings.subscribers is {checked.sightings.subscribers}")
    operator = operator or checked.identity.realm
    numbers = NO_NUMBERS if checked.numbers is None else read_numbers(checked.numbers)
    name = f"{operator}_EIR_{exported_day:%Y%m%d}.csv" if out is None else out.name
    with written_to(out, private=True) as stream:
        rows = daily_rows(checked.state, exported_day, operator=operator, file_name=name, msisdn=number_of(numbers))
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerows(rows)


def recorded(checked: Config) -> Config:
    """Request that the node writes its buffered checks to disk, and return the configuration.

    Raises EirError if no check is on record.
    """
    write_down(checked)
    if checked.sightings is None and not files.list_files(checked.state):
        raise EirError(f"no check is on record in {checked.state}{not_kept(checked)}")
    return checked


def not_kept(checked: Config) -> str:
    """If the node records no checks, return a note for the end of a message; otherwise return an empty text."""
    if checked.sightings:
        return ""
    return f"; no check is recorded: {checked.path} has no section 'sightings'"


def write_down(checked: Config) -> None:
    """Request that the running node flushes its buffered sightings to disk.

    A stopped node has already flushed them.
    """
    if checked.sightings is not None:
        with suppress(control.ControlError):
            control.ask(checked.state, "write_checks")


def _distinct(rows: list[dict[str, Any]], name: str) -> list[Any]:
    values = [row[name] for row in rows if row[name] is not None]
    return list(dict.fromkeys(values))


def _hour(path: Path) -> str:
    return f"{path.parent.name}T{path.name[:2]}:00:00Z"

"""Commands that change a local list, entry by entry."""

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from eir.commands.access import DEFAULT_CONFIG, ConfigFile, Json, list_settings, who, with_store
from eir.commands.durations import duration
from eir.commands.output import EXIT_USAGE, fail, print_json
from eir.config import load_config
from eir.errors import IdentifierError
from eir.lists.layout import until_seconds
from eir.lists.local import ADD, REMOVE, Edit, edit_list, parse_entries

Reason = Annotated[str, typer.Option(metavar="TEXT", help="The reason, for `eir history`; of added entries also for `eir check`.")]
Imsi = Annotated[list[str] | None, typer.Option(metavar="N", help="In a list of pairs: the SIM that each device is listed with.")]
Tac = Annotated[bool, typer.Option("--tac", help="The identifiers are TACs (8 digits): all devices of a model, as one entry beside those of single devices.")]
Identifiers = Annotated[list[str], typer.Argument(metavar="IMEI", help="IMEIs, IMEISVs or MEIDs; IMSIs for a list of subscribers.")]
LocalList = Annotated[str, typer.Argument(metavar="LIST", help="A list with `local: true`.")]


def add(
    list_name: LocalList,
    identifiers: Identifiers,
    reason: Reason,
    until: Annotated[str, typer.Option(metavar="TIME", help="When the entries end: 2026-12-31 (that day included), 2026-12-31T12:00:00Z, or 14d from now.")] = "",
    imsi: Imsi = None,
    tac: Tac = False,
    replace: Annotated[bool, typer.Option("--replace", help="Give entries that are there already the new reason and end.")] = False,
    config: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Put entries into a local list.

    Running nodes follow at once. Nothing is added if one of the entries is there already.
    """
    try:
        from_now = duration(until)
        end = until_seconds(until) if from_now is None else int((datetime.now(UTC) + from_now).timestamp())
    except ValueError:
        raise fail(f"--until {until}: expected 2026-12-31, 2026-12-31T12:00:00Z, or a time from now such as 14d", EXIT_USAGE) from None
    _edit(config, list_name, ADD, identifiers, imsi or [], tacs=tac, as_json=as_json, reason=reason, until=end, replace=replace)


def remove(
    list_name: LocalList,
    identifiers: Identifiers,
    reason: Reason,
    imsi: Imsi = None,
    tac: Tac = False,
    config: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Take entries out of a local list.

    Running nodes follow at once. Nothing is removed if one of the entries is not there. When a TAC is removed, devices under it that
    are listed on their own stay; a device that is listed only by its TAC cannot be removed alone.
    """
    _edit(config, list_name, REMOVE, identifiers, imsi or [], tacs=tac, as_json=as_json, reason=reason)


def _edit(
    config: Path, list_name: str, what: str, identifiers: list[str], imsis: list[str], *, tacs: bool, as_json: bool, **details: Any
) -> None:
    checked = load_config(config)
    settings = list_settings(checked, list_name)
    try:
        entries = parse_entries(settings.kind, identifiers, imsis=imsis, tacs=tacs)
    except IdentifierError as e:
        raise fail(str(e), EXIT_USAGE) from None
    edit = Edit(what=what, entries=entries, **details)
    report = with_store(checked, lambda store: edit_list(edit, settings, store, who=who(), now=datetime.now(UTC)))
    if as_json:
        print_json(asdict(report))
    else:
        print(report.as_text())

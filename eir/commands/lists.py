"""Commands about the lists in force: what they are, the way back, and changes of a local one by hand."""

from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from eir.changes.local import ADD, REMOVE, Edit, edit_list, parse_entries
from eir.changes.rollback import roll_back
from eir.changes.serials import reset_serial as reset_highest
from eir.checks.identifier import is_wrong_digit
from eir.commands.access import (
    DEFAULT_CONFIG,
    ConfigFile,
    Json,
    imsi_named,
    list_settings,
    opened,
    whereabouts,
    who,
    with_store,
)
from eir.commands.forms import duration
from eir.commands.in_force import FromStore, Stored, asked, states_of
from eir.commands.output import EXIT_USAGE, fail, say, show, show_one
from eir.config import load_config
from eir.daemon.state_folder import in_force_before
from eir.device import KEY_DIGITS, check_digit, typed
from eir.errors import IdentifierError, StoreError
from eir.record.settings import SUBSCRIBERS
from eir.record.store import ListState, ListStore
from eir.rows.layout import until_seconds

Reason = Annotated[
    str, typer.Option(metavar="TEXT", help="The reason, for `eir history`; of added entries also for `eir check`.")
]
Imsi = Annotated[
    list[str] | None,
    typer.Option(
        metavar="N", help="In a list of pairs: the SIM that each device is listed with; +NUMBER by the table `numbers`."
    ),
]
Tac = Annotated[
    bool,
    typer.Option(
        "--tac",
        help="The identifiers are TACs (8 digits): all devices of a model, as one entry beside those of single devices.",
    ),
]
Verbatim = Annotated[
    bool,
    typer.Option(
        "--verbatim", help="The identifiers are as phones send them, and need be neither IMEI nor MEID: 1 to 20 octets."
    ),
]
Identifiers = Annotated[
    list[str],
    typer.Argument(
        metavar="IMEI",
        help="IMEIs, IMEISVs or MEIDs; IMSIs, or +NUMBER by the table `numbers`, for a list of subscribers.",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say how many devices would come and go, change nothing.")]
Force = Annotated[
    bool,
    typer.Option(
        "--force", help="Lift the list's limits on growth and shrinkage (a TAC is a million devices), nothing else."
    ),
]
LocalList = Annotated[str, typer.Argument(metavar="LIST", help="A list with `local: true`.")]


def lists(
    context: typer.Context, from_store: FromStore = False, config: ConfigFile = DEFAULT_CONFIG, as_json: Json = False
) -> None:
    """Show the lists: serial, entries, dates, signers, state.

    `state` is `in force`, `expired` (which is still in force), `never loaded`, or `damaged` (what the store holds of it cannot be
    read). `digest`, with --json, is of the content: the same for the same entries, whichever release brought them. The running node is
    asked, which answers from memory; where none runs, or with --store, the store. Where they differ, that is named.
    """
    if context.invoked_subcommand is not None:
        return
    checked = opened(whereabouts(config))

    async def found(store: ListStore) -> Stored:
        return await states_of(store, checked.lists) if checked.lists else {**await store.states()}

    node = asked(checked, "lists", store_only=from_store, as_json=as_json)
    states: Stored = (
        with_store(checked, found, fresh=False, reads=True)
        if node is None
        else dict.fromkeys(checked.lists) | dict(node.states)
    )
    kinds = {name: settings.kind for name, settings in checked.lists.items()}
    rows = [_list_row(name, kinds.get(name, ""), state) for name, state in states.items()]
    if not as_json:  # a list without releases has changes
        rows = [_with_change(row, states[row["list"]]) for row in rows]
    columns = ("list", "kind", "serial", "entries", "issued", "expires", "signers", "loaded", "state")
    show(rows, columns, as_json=as_json)


def reset_serial(
    list_name: Annotated[str, typer.Argument(metavar="LIST", help="A list, see `eir lists`.")],
    to: Annotated[int, typer.Option(metavar="N", min=0, help="The highest serial from now on: that of the last good release.")],
    reason: Annotated[str, typer.Option(metavar="TEXT", help="The reason, for `eir history`.")],
    config: ConfigFile = DEFAULT_CONFIG, as_json: Json = False,
) -> None:  # fmt: skip
    """Set the highest serial of a list back.

    This is for a list that accepted a release with a serial far too high. What is in force stays. The next release then needs a
    serial above N and is a full one; signed releases above N that were accepted before are accepted again. It is in `eir history`,
    and raises an alert for a day.
    """
    checked = opened(whereabouts(config))

    async def done(store: ListStore) -> ListState:
        return await reset_highest(list_name, store, to=to, reason=reason, who=who(), now=datetime.now(UTC))

    state = with_store(checked, done, fresh=False)
    said = f"{list_name}: the highest serial is {to} again; serial {state.serial} stays in force until a full release with one above {to}"
    show_one({"list": list_name, "serial": state.serial, "highest_serial": state.highest_serial}, said, as_json=as_json)


def _with_change(row: dict[str, Any], state: ListState | StoreError | None) -> dict[str, Any]:
    return {**row, "serial": f"change {state.generation}"} if isinstance(state, ListState) and not state.serial else row


def _list_row(name: str, kind: str, found: ListState | StoreError | None) -> dict[str, Any]:
    state = found if isinstance(found, ListState) else None
    expired = (
        state is not None and state.expires is not None and datetime.fromisoformat(state.expires) <= datetime.now(UTC)
    )
    return {
        "list": name, "kind": state.kind if state else kind,
        **{column: getattr(state, column, None) for column in ("serial", "entries", "issued", "expires")},
        "signers": list(state.signers) if state else [],
        "loaded": state and state.loaded_at, "digest": state and state.content_digest,
        "state": "never loaded" if found is None else "damaged" if state is None else f"configured as {kind}" if kind not in {"", state.kind} else "expired" if expired else "in force",
    }  # fmt: skip


def rollback(
    list_name: Annotated[str, typer.Argument(metavar="LIST", help="The list.")],
    to: Annotated[int | None, typer.Option(metavar="SERIAL", min=1, help="The release that is to be in force again; of a local list the number of the change.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be in force, change nothing.")] = False,
    config: ConfigFile = DEFAULT_CONFIG, as_json: Json = False,
) -> None:  # fmt: skip
    """Undo the last release of a list, or several.

    With --to all releases after that one are undone. Of a list without releases, a local one, the last change is undone. As many are
    kept as the list's `keep` says. A release that was undone is never accepted again.
    """
    checked = opened(whereabouts(config))
    local = not checked.lists or list_settings(checked, list_name).local  # a file that is not YAML gives no names
    now = datetime.now(UTC)
    state = with_store(
        checked, lambda store: roll_back(list_name, store, who=who(), now=now, to=to, dry_run=dry_run), fresh=False
    )
    if dry_run:
        which = (
            f"serial {state.serial}, issued {state.issued}, loaded {state.loaded_at},"
            if state.serial
            else f"change {state.generation}, of {state.loaded_at},"
        )
        said = f"{which} would be in force with {state.entries:,} entries; nothing was changed"
    elif local and not state.serial:
        said = f"{'the last change is' if to is None else f'what came after change {to} is'} undone; {state.entries:,} entries are in force"
    else:
        said = f"serial {state.serial} is in force again with {state.entries:,} entries;\n"
        said += f"the next release needs a serial above {state.highest_serial}"
    show_one(_list_row(list_name, state.kind, state), f"{list_name}: {said}", as_json=as_json)


def add(
    list_name: LocalList, identifiers: Identifiers, reason: Reason,
    until: Annotated[str, typer.Option(metavar="TIME", help="When the entries end: 2026-12-31 (that day included), 2026-12-31T12:00:00Z, or 14d from now.")] = "",
    imsi: Imsi = None, tac: Tac = False, verbatim: Verbatim = False,
    replace: Annotated[bool, typer.Option("--replace", help="Give entries that are there already the new reason and end.")] = False,
    dry_run: DryRun = False, force: Force = False, config: ConfigFile = DEFAULT_CONFIG, as_json: Json = False,
) -> None:  # fmt: skip
    """Put entries into a local list.

    Running nodes follow at once. Nothing is added if one of the entries is there already, or if more devices come than the list's
    growth_max and change_min allow.
    """
    try:
        from_now = duration(until)
        end = until_seconds(until) if from_now is None else int((datetime.now(UTC) + from_now).timestamp())
    except ValueError:
        raise fail(
            f"--until {until}: expected 2026-12-31, 2026-12-31T12:00:00Z, or a time from now such as 14d", EXIT_USAGE
        ) from None
    options = {"reason": reason, "dry_run": dry_run, "force": force, "until": end, "replace": replace}
    _edit(config, list_name, ADD, identifiers, imsi, tac=tac, verbatim=verbatim, as_json=as_json, **options)


def remove(
    list_name: LocalList, identifiers: Identifiers, reason: Reason, imsi: Imsi = None, tac: Tac = False, verbatim: Verbatim = False,
    dry_run: DryRun = False, force: Force = False, config: ConfigFile = DEFAULT_CONFIG, as_json: Json = False,
) -> None:  # fmt: skip
    """Take entries out of a local list.

    Running nodes follow at once. Nothing is removed if one of the entries is not there, or if more devices go than the list's
    shrink_max and change_min allow. When a TAC is removed, devices under it that
    are listed on their own stay; a device that is listed only by its TAC cannot be removed alone.
    """
    _edit(
        config,
        list_name,
        REMOVE,
        identifiers,
        imsi,
        tac=tac,
        verbatim=verbatim,
        as_json=as_json,
        reason=reason,
        dry_run=dry_run,
        force=force,
    )


def _edit(
    config: Path, list_name: str, what: str, identifiers: list[str], imsi: list[str] | None, *, tac: bool, verbatim: bool,
    as_json: bool, **details: Any,
) -> None:  # fmt: skip
    checked = opened(load_config(config))
    settings = list_settings(checked, list_name)
    try:
        sims = [imsi_named(checked, each) for each in imsi or []]
        named = [imsi_named(checked, each) for each in identifiers] if settings.kind == SUBSCRIBERS else identifiers
        entries = parse_entries(settings.kind, named, imsis=sims, tacs=tac, verbatim=verbatim)
    except IdentifierError as e:
        raise fail(str(e), EXIT_USAGE) from None
    edit = Edit(what=what, entries=entries, **details)

    had = partial(in_force_before, checked.state)
    report = with_store(
        checked, lambda store: edit_list(edit, settings, store, who=who(), now=datetime.now(UTC), had=had)
    )
    for wrong in (
        () if what == REMOVE or settings.kind == SUBSCRIBERS else filter(is_wrong_digit, map(typed, identifiers))
    ):
        say(f"warning: {wrong}: its check digit would be {check_digit(wrong[:KEY_DIGITS])}; was it typed wrong?")
    show_one(asdict(report), report.as_text(), as_json=as_json)

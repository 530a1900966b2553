"""Commands about the current lists: show lists and their content, roll back, and edit local lists."""

import asyncio
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer

from eir.checks.periods import AHEAD_DAYS
from eir.checks.question import has_wrong_check_digit
from eir.cli.access import (
    DEFAULT_CONFIG,
    ConfigFile,
    Json,
    ask_node,
    imsi_named,
    list_settings,
    no_list,
    opened,
    recorded,
    whereabouts,
    who,
    with_store,
)
from eir.cli.grace import ends_of, write_days
from eir.cli.in_force import STORE_S, FromStore, NodeAnswer, Stored, asked, read_as_held, states_of, taken_over
from eir.cli.output import (
    EXIT_USAGE,
    fail,
    print_json,
    print_message,
    print_text,
    progress,
    show,
    show_one,
    written_to,
)
from eir.cli.sightings import last_device_of
from eir.config import Config, Whereabouts, load_config
from eir.device import (
    KEY_DIGITS,
    ODD_BASE,
    SNR_KEYS,
    TAC_DIGITS,
    any_key,
    check_digit,
    imsi_key,
    imsi_text,
    strip_separators,
)
from eir.errors import ConfigError, IdentifierError, StoreError
from eir.lists.changes.import_days import read_merged
from eir.lists.changes.local_entries import ENTRIES_MAX, parse_entries
from eir.lists.changes.local_rows import (
    ADD,
    REMOVE,
    EditReport,
    RowsEdit,
    edit_report,
    rows_of_entries,
    rows_update,
    write_edit,
)
from eir.lists.changes.rows_file import BYTES_MAX, ROWS_MAX, parse_file_rows
from eir.lists.changes.undo import plan_rollback, serial_reset
from eir.lists.follow.list_copy import copied_head
from eir.lists.follow.write_back import abandon, refuse_lost_here
from eir.lists.log.change import RELEASE_KINDS, Change, Head
from eir.lists.log.journal import REFUSED, JournalEvent, read_events
from eir.lists.log.node_journal import ADDED, SUBJECTS, row_subject
from eir.lists.log.reader import LoggedList, empty_content, read_content
from eir.lists.log.store import LogStore
from eir.lists.log.writer import ListWriter, Make
from eir.lists.record.entries import date_text, until_text
from eir.lists.record.first_days import IMPORT
from eir.lists.record.in_force import save_mark
from eir.lists.record.kept_content import changes_of_rows
from eir.lists.record.listed_entries import display_order, entries_in, is_whole, rows_between
from eir.lists.record.reasons import check_reason, reason_at
from eir.lists.record.settings import FIRST_SEEN, PAIRS, SUBSCRIBERS, TYPES, ListSettings
from eir.lists.releases.foreign import ALLOCATED
from eir.lists.rows.layout import BEGIN, DATE, EIR, begin_seconds, tac_key, until_seconds
from eir.lists.rows.table_export import EXPORTS, export_table
from eir.lists.stores.open import COPIES, JOURNAL, SQLITE
from eir.lists.table.columns import SECONDS, TableRows
from eir.node.observe.control import ControlAway
from eir.schema import parse_duration

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
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show the number of devices that would be added and removed; change nothing.")
]
Force = Annotated[
    bool,
    typer.Option(
        "--force", help="Lift the list's limits on growth and shrinkage (a TAC is a million devices), nothing else."
    ),
]
ListName = Annotated[str, typer.Argument(metavar="LIST", help="A list, see `eir lists`.")]
LocalList = Annotated[str, typer.Argument(metavar="LIST", help="A list with `local: true`.")]


def lists(
    context: typer.Context, from_store: FromStore = False, config: ConfigFile = DEFAULT_CONFIG, as_json: Json = False
) -> None:
    """Show the lists: serial, entries, dates, signers, state.

    `state` is `in force`, `expired` (still in force), `never loaded`, `empty` (a local list), or `damaged` (the store
    cannot read the list).
    `digest`, with --json, is the digest of the content: it is equal for equal entries, independent of the release. The
    running node answers from memory. If no node runs, or with --store, the answer comes from the store. Differences
    between node and store are reported.

    A running node also counts the periods of grace that end on each of the next 90 days (`ends`, with --json). The rules
    with `first_seen_within` that have no other condition count.
    """
    if context.invoked_subcommand is not None:
        return
    checked = opened(whereabouts(config))

    async def lookup(store: LogStore) -> Stored:
        if checked.lists:
            return await states_of(store, checked.lists)
        return await states_of(store, await store.heads())

    node = asked(checked, "lists", store_only=from_store, as_json=as_json)
    states: Stored
    if node is None:
        states = with_store(checked, lookup, fresh=False, reads=True)
    else:
        states = dict.fromkeys(checked.lists) | dict(node.states)
    empty = {name: Head(kind=settings.kind) for name, settings in checked.lists.items() if settings.local}
    states = {name: state or empty.get(name) for name, state in states.items()}
    ending = _ends(node)
    kinds = {name: settings.kind for name, settings in checked.lists.items()}
    rows = [_list_row(name, kinds.get(name, ""), state) for name, state in states.items()]
    for row, state in zip(rows, states.values(), strict=True):
        if row["kind"] == FIRST_SEEN:
            row["ends"] = ending
        if not as_json:
            row["serial"] = _serial_text(state)
    columns = ("list", "kind", "serial", "entries", "issued", "expires", "signers", "loaded", "state")
    show(rows, columns, as_json=as_json)
    if ending is not None and not as_json:
        total = sum(row["devices"] for row in ending)
        print_text(f"\nPeriods of grace that end in the next {AHEAD_DAYS} days: {total:,}")
        if ending:
            show(ending, ("day", "devices"), as_json=False)


def reset_serial(
    list_name: ListName,
    to: Annotated[int, typer.Option(metavar="N", min=0, help="The highest serial from now on: that of the last good release.")],
    reason: Annotated[str, typer.Option(metavar="TEXT", help="The reason, for `eir history`.")],
    config: ConfigFile = DEFAULT_CONFIG, as_json: Json = False,
) -> None:  # fmt: skip
    """Lower the highest accepted serial of a list.

    Use this for a list that accepted a release with a serial that is far too high. The release in force stays. The next
    release must be a full one with a serial above N. Signed releases above N that were accepted before are accepted
    again. The change is recorded in `eir history`, and raises an alert for one day.
    """
    checked = opened(whereabouts(config))

    async def lower(store: LogStore) -> Head:
        head = await _write(checked, store, list_name, serial_reset(list_name, to=to, reason=reason))
        save_mark(checked.state, list_name, head.mark)
        return head

    state = with_store(checked, lower, fresh=False)
    document = {"list": list_name, "serial": state.serial, "highest_serial": state.highest_serial}
    text = f"{list_name}: the highest serial is {to} again; serial {state.serial} stays in force until a full release with a higher serial"
    show_one(document, text, as_json=as_json)


def abandon_list(
    list_name: LocalList,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="The reason, for `eir history`.")],
    config: ConfigFile = DEFAULT_CONFIG, as_json: Json = False,
) -> None:  # fmt: skip
    """Give up changes of a local list that the store has lost.

    While the store has lost changes that this host's node holds, the list cannot be changed, until a node has written them
    back. If no node shall do this, such as after the restore of an older backup, this command puts the list of the store in
    force on all nodes. The change is recorded in `eir history`.
    """
    checked = opened(load_config(config))
    settings = list_settings(checked, list_name)
    check_reason(reason)
    if not settings.local:
        raise fail(
            f"{list_name} is a signed list, of which nodes write lost releases back; expected a list with `local: true`"
        )
    held = copied_head(checked.state / COPIES, list_name)
    if held is None:
        raise fail(f"nothing was changed: this host has no copy of {list_name}; run the command on the host of a node")

    async def give_up(store: LogStore) -> Head | None:
        writer = _writer(store, settings)
        made = await abandon(writer, held, reason)
        if made is None:
            return None
        await recorded(checked, store, list_name, made)
        return writer.content.head

    state = with_store(checked, give_up, fresh=False)
    if state is None:
        raise fail(f"nothing was changed: the store has not lost {list_name}")
    text = f"{list_name}: generation {held.generation} is given up; {state.entries:,} entries of the store are in force"
    show_one(_list_row(list_name, state.kind, state), text, as_json=as_json)


async def _write(checked: Config | Whereabouts, store: LogStore, name: str, make: Make) -> Head:
    """Write a change of a list, and wait until the node on this host has recorded it; return the head after it."""
    writer = _writer(store, checked.lists.get(name) or ListSettings(name=name))
    made = await writer.write(make)
    assert made is not None  # noqa: S101 - each of these changes changes something
    await _record(checked, store, name, made)
    return writer.content.head


async def _record(checked: Config | Whereabouts, store: LogStore, name: str, made: Change) -> None:
    """Wait until the node on this host has recorded a change; with faults in the configuration, leave this to a running node."""
    try:
        config = checked if isinstance(checked, Config) else load_config(checked.path)
    except ConfigError:
        print_message(f"note: {checked.path} has errors, so the change is stored, and a running node records it")
        return
    await recorded(config, store, name, made)


def _writer(store: LogStore, settings: ListSettings) -> ListWriter:
    return ListWriter(store, settings.name, settings.kind, who(), keep=settings.keep)


def _ends(node: NodeAnswer | None) -> list[dict[str, Any]] | None:
    """Return for each of the next days the number of devices whose period of grace ends; None if no running node has answered."""
    if node is None or node.answer is None:
        return None
    return [{"day": day, "devices": devices} for day, devices in node.answer.items()]


def _serial_text(state: Head | StoreError | None) -> int | str | None:
    """Return the serial of a list for people, or `change NUMBER` for a list without releases."""
    if not isinstance(state, Head) or not state.generation:
        return None
    return state.serial or f"change {state.generation}"


def _list_row(name: str, kind: str, found: Head | StoreError | None) -> dict[str, Any]:
    state = found if isinstance(found, Head) else None
    columns = {column: getattr(state, column, None) for column in ("serial", "entries", "issued", "expires")}
    return {
        "list": name, "kind": state.kind if state else kind, **columns, "signers": list(state.signers) if state else [],
        "loaded": state and state.loaded_at, "digest": state and state.content, "state": _state_word(kind, found),
    }  # fmt: skip


def _state_word(kind: str, found: Head | StoreError | None) -> str:
    """Return the state of a list in words, such as `in force` or `expired`.

    `kind`: kind of the list in the configuration, empty if it is not configured.
    """
    if found is None:
        return "never loaded"
    if not isinstance(found, Head):
        return "damaged"
    if kind not in {"", found.kind}:
        return f"configured as {kind}"
    if not found.issued and not found.entries:
        return "empty"
    if found.expires is not None and datetime.fromisoformat(found.expires) <= datetime.now(UTC):
        return "expired"
    return "in force"


def rollback(
    list_name: ListName,
    to: Annotated[int | None, typer.Option(metavar="SERIAL", min=1, help="The release that is to be in force again; of a local list the number of the change.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be in force, change nothing.")] = False,
    config: ConfigFile = DEFAULT_CONFIG, as_json: Json = False,
) -> None:  # fmt: skip
    """Undo the last release of a list, or several releases.

    With --to, all releases after that serial are undone. For a local list, the last change is undone. The key `keep` of
    the list sets the number of releases that can be restored. A release that was undone is never accepted again.
    """
    checked = opened(whereabouts(config))
    local = not checked.lists or list_settings(checked, list_name).local  # `lists` is empty if the file is not YAML

    async def work(store: LogStore) -> Head:
        planned = await plan_rollback(store, list_name, to=to)
        if dry_run:
            return planned.content.head
        refuse_lost_here(checked.state / COPIES, list_name, (await store.heads())[list_name])
        return await _write(checked, store, list_name, planned.make)

    state = with_store(checked, work, fresh=False, reads=dry_run)
    entries = f"{state.entries:,} entries"
    if dry_run:
        version = f"change {state.generation}, of {state.loaded_at},"
        if state.serial:
            version = f"serial {state.serial}, issued {state.issued}, loaded {state.loaded_at},"
        text = f"{version} would be in force with {entries}; nothing was changed"
    elif local and not state.serial:
        undone = "the last change is" if to is None else f"what came after change {to} is"
        text = f"{undone} undone; {entries} are in force"
    else:
        text = f"serial {state.serial} is in force again with {entries};\n"
        text += f"the next release needs a serial above {state.highest_serial}"
    show_one(_list_row(list_name, state.kind, state), f"{list_name}: {text}", as_json=as_json)
    if not dry_run:
        print_message(taken_over(checked, {list_name: state}))


def add(
    list_name: LocalList, reason: Reason,
    identifiers: Annotated[list[str] | None, typer.Argument(metavar="IMEI", help="IMEIs, IMEISVs or MEIDs; IMSIs, or +NUMBER by the table `numbers`, for a list of subscribers.", show_default=False)] = None,
    rows: Annotated[Path | None, typer.Option("--file", metavar="FILE", help=f"Instead of IMEIs: a data file as `eir publish` reads it, up to {ROWS_MAX:,} rows; - for standard input. Rows without a reason, begin or end have those of the options.", show_default=False, allow_dash=True)] = None,
    layout: Annotated[str | None, typer.Option(metavar="NAME", help="With --file: its layout; guessed from the first line if not given.", show_default=False)] = None,
    begin: Annotated[str, typer.Option("--from", metavar="TIME", help="When the entries begin: 2026-12-22, 2026-12-22T12:00:00Z, or 30d from now; at once if not given.")] = "",
    until: Annotated[str, typer.Option(metavar="TIME", help="When the entries end: 2026-12-31 (that day included), 2026-12-31T12:00:00Z, or 14d from now.")] = "",
    number: Annotated[str, typer.Option("--number", metavar="+NUMBER", help="Instead of IMEIs: the last device of this number, after a question. The number must be in a recorded check or in the table `numbers`.", show_default=False)] = "",
    yes: Annotated[bool, typer.Option("--yes", help="With --number: add the device without a question.")] = False,
    imsi: Imsi = None, tac: Tac = False, verbatim: Verbatim = False,
    replace: Annotated[bool, typer.Option("--replace", help="Give entries that are there already the new reason, begin and end.")] = False,
    first: Annotated[bool, typer.Option("--first", help="Begin a list that a shared store lacks, from a host without a node.")] = False,
    dry_run: DryRun = False, force: Force = False, config: ConfigFile = DEFAULT_CONFIG, as_json: Json = False,
) -> None:  # fmt: skip
    """Add entries to a local list.

    Running nodes follow at once. Nothing is added if one of the entries exists already, or if the number of added
    devices exceeds the list's growth_max and change_min. The rows of a file are one change; the limits of a release
    (bad_rows_max, range_tacs_max) apply too. Bad rows up to bad_rows_max are left out and named; the exit status is 1
    only if no row is good.
    """
    options = _Options(
        what=ADD, reason=reason, begin=_begin(begin), until=_end(until), replace=replace, first=first, dry_run=dry_run, force=force
    )  # fmt: skip
    is_number = bool(number) and not (identifiers or rows or tac)
    if is_number:
        identifiers = [_device_of_number(config, list_name, number, asks=not (yes or dry_run))]
    if rows is None and identifiers and is_number == bool(number):
        if layout is not None:
            raise fail("--layout requires --file", EXIT_USAGE)
        _edit(config, list_name, options, identifiers, imsi, tac=tac, verbatim=verbatim, as_json=as_json)
        return
    if rows is None or identifiers or number or imsi or tac or verbatim:
        expected = (
            "expected IMEIs, or --number +NUMBER without --tac, or --file FILE without --imsi, --tac and --verbatim"
        )
        raise fail(expected, EXIT_USAGE)
    checked = opened(load_config(config))
    settings = list_settings(checked, list_name)
    with progress() as advance:
        shown = advance or (lambda *_: None)
        now_s = int(datetime.now(UTC).timestamp())
        found = parse_file_rows(
            _content(rows),
            rows.name,
            settings,
            now_s=now_s,
            layout=layout,
            force=force,
            declared=checked.layouts,
            progress=shown,
        )
        for warning in found.warnings:  # also before a change that is refused
            print_message(f"warning: {warning}")
        whole = is_whole(found.rows)
        is_named = len(found.rows) <= ENTRIES_MAX and (whole.all() or not whole.any())
        source = "" if is_named else found.source
        shown("write", 0, 1)
        report = _apply(checked, settings, options, RowsEdit(
            what=ADD, rows=found.rows, texts=found.texts, reason=reason, source=source
        ))  # fmt: skip
        shown("write", 1, 1)
    show_one(asdict(report), report.as_text(), as_json=as_json)


class _Options(NamedTuple):
    """Options of a command that changes a local list."""

    what: str
    """ADD or REMOVE."""
    reason: str
    begin: int = 0
    """Begin of added rows in Unix seconds; 0: at once."""
    until: int = 0
    replace: bool = False
    first: bool = False
    """Begin a list that a shared store lacks."""
    dry_run: bool = False
    force: bool = False


def _device_of_number(config: Path, list_name: str, number: str, *, asks: bool) -> str:
    """Return the last device of a phone number after it was shown. If `asks` is true, the user must confirm it."""
    checked = opened(load_config(config))
    if list_settings(checked, list_name).kind == SUBSCRIBERS:
        raise fail(
            f"--number adds a device, but {list_name} is a list of subscribers; give {number} in place of IMEIs",
            EXIT_USAGE,
        )
    imei = last_device_of(checked, number)
    if asks:
        typer.confirm(f"Add {imei} to {list_name}?", abort=True, err=True)
    return imei


def _content(path: Path) -> bytes:
    """Read a file, or standard input for `-`, up to one byte more than the maximum size."""
    if str(path) == "-":
        return sys.stdin.buffer.read(BYTES_MAX + 1)
    with path.open("rb") as stream:
        return stream.read(BYTES_MAX + 1)


def _begin(text: str) -> int:
    """Parse `--from` to the begin of the entries in Unix seconds; 0 if they are in force at once."""
    return _time("--from", text, begin_seconds)


def _end(text: str) -> int:
    """Parse `--until` to the end of the entries in Unix seconds; 0 if they do not end."""
    return _time("--until", text, until_seconds)


def _time(option: str, text: str, parse: Callable[[str], int]) -> int:
    with suppress(ValueError):
        moment = datetime.now(UTC) + parse_duration(text)
        return int(moment.timestamp())
    with suppress(ValueError):
        return parse(text)
    expected = "expected 2026-12-31, 2026-12-31T12:00:00Z, or a duration from now such as 14d or 36h"
    raise fail(f"{option} {text}: {expected}", EXIT_USAGE)


def remove(
    list_name: LocalList, identifiers: Identifiers, reason: Reason, imsi: Imsi = None, tac: Tac = False, verbatim: Verbatim = False,
    dry_run: DryRun = False, force: Force = False, config: ConfigFile = DEFAULT_CONFIG, as_json: Json = False,
) -> None:  # fmt: skip
    """Remove entries from a local list.

    Running nodes follow at once. Nothing is removed if one of the entries does not exist, or if the number of removed
    devices exceeds the list's shrink_max and change_min. If a TAC is removed, devices under it that have their own
    entry stay. A device that is listed only by its TAC cannot be removed alone.
    """
    options = _Options(what=REMOVE, reason=reason, dry_run=dry_run, force=force)
    _edit(config, list_name, options, identifiers, imsi, tac=tac, verbatim=verbatim, as_json=as_json)


def _edit(
    config: Path, list_name: str, options: _Options, identifiers: list[str], imsi: list[str] | None, *, tac: bool,
    verbatim: bool, as_json: bool,
) -> None:  # fmt: skip
    """Change a local list by the identifiers of a command line."""
    checked = opened(load_config(config))
    settings = list_settings(checked, list_name)
    has_devices = settings.kind != SUBSCRIBERS
    try:
        imsis = [imsi_named(checked, each) for each in imsi or []]
        typed = identifiers if has_devices else [imsi_named(checked, each) for each in identifiers]
        entries = parse_entries(settings.kind, typed, imsis=imsis, tacs=tac, verbatim=verbatim)
    except IdentifierError as e:
        raise fail(str(e), EXIT_USAGE) from None
    rows, names = rows_of_entries(entries)
    edit = RowsEdit(what=options.what, rows=rows, reason=options.reason, names=names)
    report = _apply(checked, settings, options, edit)
    if options.what == ADD and has_devices:
        for imei in filter(has_wrong_check_digit, map(strip_separators, identifiers)):
            digit = check_digit(imei[:KEY_DIGITS])
            print_message(f"warning: {imei}: its check digit would be {digit}; check the number")
    show_one(asdict(report), report.as_text(), as_json=as_json)


def _apply(checked: Config, settings: ListSettings, options: _Options, edit: RowsEdit) -> EditReport:
    """Apply a change (`edit`) with the options of the command to a local list in the store."""
    edit = replace(edit, begin=options.begin, until=options.until, replace=options.replace, force=options.force)
    guard = partial(refuse_lost_here, checked.state / COPIES, settings.name)

    async def work(store: LogStore) -> EditReport:
        if options.what == ADD and not options.first and not options.dry_run:
            await _refuse_first(checked, store, settings.name)
        make = rows_update(edit, settings, now=datetime.now(UTC), guard=guard)
        computed, made = await write_edit(edit, settings, _writer(store, settings), make, dry_run=options.dry_run)
        if made is not None:
            await recorded(checked, store, settings.name, made)
        assert computed is not None  # noqa: S101 - rows_update rejects a change without an effect
        return edit_report(settings, computed, made)

    return with_store(checked, work, reads=options.dry_run)


async def _refuse_first(checked: Config, store: LogStore, name: str) -> None:
    """End the command if a shared store lacks the list, and no node on this host can know whether the store has lost it."""
    if checked.store == SQLITE or (checked.state / COPIES).is_dir() or (await store.heads()).get(name) is not None:
        return
    try:
        ask_node(checked, "ping")
    except ControlAway:
        raise fail(
            f"nothing was changed: the store has no list {name}, and no node on this host knows whether the store lost it; "
            "if the list is new, repeat the command with --first"
        ) from None


def show_list(
    list_name: ListName,
    identifier: Annotated[str, typer.Argument(metavar="IMEI|TAC|IMSI", help="Only what lists this device, is under this TAC (8 digits), or lists this subscriber.")] = "",
    limit: Annotated[int, typer.Option("-n", "--limit", metavar="N", help="Entries to show at most.", min=1)] = 50,
    skip: Annotated[int, typer.Option(metavar="N", help="Entries to pass over: --skip 50 shows the second page.", min=0)] = 0,
    from_store: FromStore = False, config: ConfigFile = DEFAULT_CONFIG, as_json: Json = False,
) -> None:  # fmt: skip
    """Show the entries of a list with date, begin, reason and end.

    Each entry is shown with its author and time, from the log of the store or the journal of this host. For a signed list,
    these are the signers of the release in force and the user who loaded it. An expired entry has no effect, but stays in the list until a release or `eir remove`
    removes it. The list is shown as the running node has it, even if the store is unreachable. If no node runs, or with
    --store, it is shown as the store has it. Exit status 1 if there is no entry.
    """
    checked = opened(whereabouts(config))
    node = asked(checked, "lists", store_only=from_store, as_json=as_json)
    content = _as_held(checked, node, list_name)
    if content is None:
        content = with_store(checked, partial(_list_content, checked, list_name), fresh=False, reads=True)
    head = content.head
    keys = _sought(identifier, head.kind) if identifier else range(0)
    rows = display_order(rows_between(content.table, keys[0], keys[-1]) if identifier else content.table.rows())
    total = len(rows)
    rows = rows.select(np.arange(min(skip, total), min(skip + limit, total)))
    authors = _authors(checked, node, list_name, head, rows)
    shown = [*_rows(rows, head, authors)]
    if as_json:
        print_json({
            "list": list_name, "kind": head.kind, "serial": head.serial, "generation": head.generation, "digest": head.content,
            "total": total, "skipped": skip, "entries": shown,
        })  # fmt: skip
    else:
        _print_entries(shown, head.kind)
        left = total - skip - len(shown)
        if left > 0:
            print_message(f"{left:,} more: --skip {skip + len(shown)}, or eir export {list_name}")
    if shown:
        return
    if not identifier:
        raise fail(f"{list_name} has no further entries" if total else f"{list_name} is empty")
    if keys.start >= ODD_BASE and head.kind != SUBSCRIBERS:
        text = f"{identifier} is not in {list_name}, and is not an IMEI (14 to 16 digits), a MEID or a TAC (8 digits)"
        raise fail(text, EXIT_USAGE)
    raise fail(f"{identifier} is not in {list_name}")


def _print_entries(rows: Sequence[dict[str, Any]], kind: str) -> None:
    columns = ["entry"]
    if kind == PAIRS:
        columns.append("imsi")
    elif kind == TYPES:
        columns.append(ALLOCATED)
    columns += [column for column in (DATE, BEGIN) if any(row.get(column) for row in rows)]
    texts = [row | {"until": f"{row['until']}, ended"} if row["ended"] else row for row in rows]
    show(texts, (*columns, "reason", "until", "who", "time"), as_json=False)


def _as_held(checked: Whereabouts, node: NodeAnswer | None, name: str) -> LoggedList | None:
    """Read the content of a list that the running node has in force, from the node's copy or the store; None if both lack it."""
    if node is None or name not in node.states:
        return None
    content = read_as_held(checked, name, node.states[name])
    if content is None:
        print_message(
            "note: neither the store nor the node's copy has the lists of the node; this is the content of the store"
        )
    return content


def export_list(
    list_name: ListName,
    layout: Annotated[str, typer.Option(metavar="NAME", help=f"{', '.join(EXPORTS)}.")] = EIR.name,
    only: Annotated[
        str,
        typer.Option(
            metavar="imei|tac", help="Of a list of devices only the single identifiers, or only the whole TACs."
        ),
    ] = "",
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE", help="Where it goes; standard output if not given.")
    ] = None,
    ends_from: Annotated[
        str,
        typer.Option(
            metavar="DAY",
            help="Of the record of first sightings only devices whose period ends on this day (UTC) or later.",
        ),
    ] = "",
    ends_to: Annotated[str, typer.Option(metavar="DAY", help="The same, on this day or earlier.")] = "",
    config: ConfigFile = DEFAULT_CONFIG,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write the record of first sightings as one JSON document.")
    ] = False,
) -> None:
    """Export a list in force to a data file.

    `eir publish` can make a release of this file with the same content, and so with the same `digest` in `eir lists
    --json`. An existing file is replaced when the new file is complete.

    A row of the record of first sightings (`first_seen.list`) has the device, its first day, and the last day of its period
    (`until`), for the register that notifies people. The longest period counts of the rules with `first_seen_within` that
    have no other condition. If each rule has another condition, all of them count. A device in an amnesty without
    `first_seen_within` has no last day. A device that left a list has `left-list` as its first day, and no last day.
    `eir first-seen import` reads such a file.
    """
    ends = ends_of(ends_from, ends_to)
    for option, given, known in (("layout", layout, EXPORTS), ("only", only, ("imei", "tac", ""))):
        if given not in known:
            raise fail(f"--{option} {given}: expected {', '.join(filter(None, known))}", EXIT_USAGE)
    checked = opened(whereabouts(config))
    content = with_store(checked, partial(_list_content, checked, list_name), fresh=False, reads=True)
    head = content.head
    is_record = head.kind == FIRST_SEEN
    if is_record and (only or layout != EIR.name):
        raise fail(f"{list_name} is the record of first sightings: --layout and --only are for lists", EXIT_USAGE)
    if is_record:
        policy = load_config(config).policy
        written = write_days(policy, content.table, ends, out, as_json=as_json)
        print_message(f"{list_name}: {written:,} of {head.entries:,} devices")
        return
    if as_json or not ends.is_any:
        raise fail(
            f"{list_name} is a list: --ends-from, --ends-to and --json are for the record of first sightings",
            EXIT_USAGE,
        )
    only_tacs = only == "tac" if only else None
    with progress() as advance, written_to(out) as file:
        shown = partial(advance, "write") if advance else lambda *_: None
        rows = export_table(head, content.table, layout, file, only_tacs=only_tacs, progress=shown)
    print_message(f"{list_name}: {rows:,} rows, serial {head.serial}, generation {head.generation}")


async def _list_content(checked: Whereabouts, name: str, store: LogStore) -> LoggedList:
    """Read a list from the store; the record of first sightings with the imported days. For an unknown list, the command ends with an error."""
    heads = await store.heads()
    head = heads.get(name)
    if name + IMPORT in heads:
        table = await read_merged(store, name)
        return replace(
            empty_content(FIRST_SEEN), head=replace(head or Head(kind=FIRST_SEEN), entries=len(table)), table=table
        )
    if head is not None:
        return await read_content(store, name, head)
    known = dict.fromkeys((*checked.lists, *heads))
    if name in checked.lists and checked.lists[name].local:
        return empty_content(checked.lists[name].kind)
    if name in known:
        raise fail(f"the list {name} has never been loaded")
    raise no_list(name, known, checked.path)


class _Author(NamedTuple):
    """User and time of the change that added an entry."""

    who: str | None
    time: str | None


UNKNOWN = "before this journal"
"""Author of an entry that neither the log nor the journal of this host names."""


def _authors(
    checked: Whereabouts, node: NodeAnswer | None, name: str, head: Head, rows: TableRows
) -> Mapping[tuple[int, int], _Author]:
    """Return the author of each row by its keys: of a signed list that of its release, of a local list that of the change that added the row.

    The log of the store names the author, or else the journal of this host.
    """
    pairs = [*zip(rows.keys.tolist(), rows.column(SECONDS).tolist(), strict=True)]
    if not pairs:
        return {}
    try:
        authors = with_store(checked, partial(_logged_authors, name, head, rows), fresh=False, reads=True)
    except (StoreError, TimeoutError):
        if node is None:
            raise
        authors = {}  # the node answers from memory
    unknown = [keys for keys in pairs if keys not in authors]
    if unknown:
        authors |= _journalled_authors(read_events(checked.state / JOURNAL, name=name), head, unknown)
    return {keys: authors.get(keys, _Author(UNKNOWN, None)) for keys in pairs}


async def _logged_authors(name: str, head: Head, rows: TableRows, store: LogStore) -> dict[tuple[int, int], _Author]:
    """Return the authors of rows that the log in the store names."""
    async with asyncio.timeout(STORE_S):
        if not head.highest_serial:
            changes = await changes_of_rows(store, name, rows.select(np.lexsort((rows.column(SECONDS), rows.keys))))
            return {keys: _Author(change.who, change.time) for keys, change in changes.items()}
        records = [entry.change for entry in await store.log(name, 0)]
    return _by_release(records, head, zip(rows.keys.tolist(), rows.column(SECONDS).tolist(), strict=True))


def _by_release(
    records: Iterable[Change | JournalEvent], head: Head, pairs: Iterable[tuple[int, int]]
) -> dict[tuple[int, int], _Author]:
    """Return who put the release in force, for each row of a signed list."""
    releases = [each for each in records if each.what in RELEASE_KINDS and each.serial == head.serial]
    return dict.fromkeys(pairs, _Author(releases[-1].who, releases[-1].time)) if releases else {}


def _journalled_authors(
    events: Sequence[JournalEvent], head: Head, pairs: Sequence[tuple[int, int]]
) -> dict[tuple[int, int], _Author]:
    """Return the authors of rows that the journal names."""
    accepted = [event for event in events if event.outcome != REFUSED]
    if head.highest_serial:
        return _by_release(accepted, head, pairs)
    subjects = {frozenset(row_subject(head.kind, *keys).items()): keys for keys in pairs}
    authors = {}
    for event in accepted:
        for row in event.rows:
            keys = subjects.get(frozenset((column, row[column]) for column in SUBJECTS if column in row))
            if keys is not None and row["effect"] == ADDED:
                authors[keys] = _Author(event.who, event.time)
    return authors


def _sought(identifier: str, kind: str) -> range:
    """Return the keys of devices or IMSIs that an identifier denotes: one key, or 1,000,000 keys for a TAC."""
    identifier = strip_separators(identifier)
    try:
        if kind == SUBSCRIBERS:
            first, size = imsi_key(identifier), 1
        elif len(identifier) == TAC_DIGITS:
            first, size = tac_key(identifier), SNR_KEYS
        else:
            first, size = any_key(identifier), 1
    except IdentifierError as e:
        raise fail(f"{identifier}: {e}", EXIT_USAGE) from None
    return range(first, first + size)


def _rows(rows: TableRows, head: Head, authors: Mapping[tuple[int, int], _Author]) -> Iterator[dict[str, Any]]:
    """Yield the document of each row."""
    pairs = zip(rows.keys.tolist(), rows.column(SECONDS).tolist(), strict=True)
    for entry, keys in zip(entries_in(rows), pairs, strict=True):
        text, author = entry.text(head.kind), authors[keys]
        date_column = ALLOCATED if head.kind == TYPES else DATE
        has_ended = bool(entry.until) and entry.until <= datetime.now(UTC).timestamp()
        yield {
            "entry": f"{text}*" if entry.whole_tac else text, "imsi": imsi_text(entry.imsi) if head.kind == PAIRS else None,
            "whole_tac": entry.whole_tac, "reason": reason_at(head.reasons, entry.reason) or None,
            BEGIN: until_text(entry.begin) or None, "until": until_text(entry.until) or None,
            date_column: date_text(entry.date) or None, "ended": has_ended,
            "who": author.who, "time": author.time, "signers": list(head.signers),
        }  # fmt: skip

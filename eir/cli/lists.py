"""Commands about the current lists: show lists and their content, roll back, and edit local lists."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from itertools import filterfalse, islice
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from eir.checks.periods import AHEAD_DAYS
from eir.checks.question import has_wrong_check_digit
from eir.cli.access import (
    DEFAULT_CONFIG,
    ConfigFile,
    Json,
    imsi_named,
    list_settings,
    no_list,
    opened,
    whereabouts,
    who,
    with_store,
)
from eir.cli.grace import ends_of, write_days
from eir.cli.in_force import STORE_ITSELF, FromStore, NodeAnswer, Stored, asked, read_as_held, states_of, taken_over
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
from eir.config import Config, Whereabouts, load_config
from eir.device import KEY_DIGITS, ODD_BASE, SNR_KEYS, TAC_DIGITS, any_key, check_digit, imsi_key, strip_separators
from eir.errors import IdentifierError, StoreError
from eir.lists.changes.local import ADD, FILE, REMOVE, Edit, EditReport, added_by, edit_list
from eir.lists.changes.local_entries import ENTRIES_MAX, parse_entries
from eir.lists.changes.rollback import reset_serial as reset_highest
from eir.lists.changes.rollback import roll_back
from eir.lists.changes.rows_file import BYTES_MAX, ROWS_MAX, parse_rows_file
from eir.lists.log.change import Head
from eir.lists.log.store import LogStore
from eir.lists.pages.pages import PAGE_KEYS, Page
from eir.lists.record.dates import is_dates, read_dates
from eir.lists.record.entries import ListEntry, date_text, entries_of, imsi_text, read_pages, until_text
from eir.lists.record.in_force import load_in_force, save_mark
from eir.lists.record.reasons import reason_text
from eir.lists.record.settings import FIRST_SEEN, PAIRS, SUBSCRIBERS, TYPES, ListSettings
from eir.lists.record.store import Event
from eir.lists.rows.export import export
from eir.lists.rows.layout import ALLOCATED, DATE, tac_key, until_seconds
from eir.lists.rows.table_export import EIR, EXPORTS
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
        return {name: state for name, state in (await store.states()).items() if not is_dates(name)}

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
        state = await reset_highest(list_name, store, to=to, reason=reason, who=who(), now=datetime.now(UTC))
        save_mark(checked.state, list_name, state.mark)
        return state

    state = with_store(checked, lower, fresh=False)
    document = {"list": list_name, "serial": state.serial, "highest_serial": state.highest_serial}
    text = f"{list_name}: the highest serial is {to} again; serial {state.serial} stays in force until a full release with a higher serial"
    show_one(document, text, as_json=as_json)


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
    work = partial(roll_back, list_name, who=who(), now=datetime.now(UTC), to=to, dry_run=dry_run)
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
    rows: Annotated[Path | None, typer.Option("--file", metavar="FILE", help=f"Instead of IMEIs: a data file as `eir publish` reads it, up to {ROWS_MAX:,} rows; - for standard input. Rows without a reason or an end have those of the options.", show_default=False, allow_dash=True)] = None,
    layout: Annotated[str | None, typer.Option(metavar="NAME", help="With --file: its layout; guessed from the first line if not given.", show_default=False)] = None,
    until: Annotated[str, typer.Option(metavar="TIME", help="When the entries end: 2026-12-31 (that day included), 2026-12-31T12:00:00Z, or 14d from now.")] = "",
    imsi: Imsi = None, tac: Tac = False, verbatim: Verbatim = False,
    replace: Annotated[bool, typer.Option("--replace", help="Give entries that are there already the new reason and end.")] = False,
    dry_run: DryRun = False, force: Force = False, config: ConfigFile = DEFAULT_CONFIG, as_json: Json = False,
) -> None:  # fmt: skip
    """Add entries to a local list.

    Running nodes follow at once. Nothing is added if one of the entries exists already, or if the number of added
    devices exceeds the list's growth_max and change_min. The rows of a file are one change; the limits of a release
    (bad_rows_max, range_tacs_max) apply too. Bad rows up to bad_rows_max are left out and named; the exit status is 1
    only if no row is good.
    """
    options = partial(Edit, what=ADD, reason=reason, dry_run=dry_run, force=force, until=_end(until), replace=replace)
    if rows is None and identifiers:
        if layout is not None:
            raise fail("--layout requires --file", EXIT_USAGE)
        _edit(config, list_name, options, identifiers, imsi, tac=tac, verbatim=verbatim, as_json=as_json)
        return
    if rows is None or identifiers or imsi or tac or verbatim:
        raise fail("expected IMEIs, or --file FILE without --imsi, --tac and --verbatim", EXIT_USAGE)
    checked = opened(load_config(config))
    settings = list_settings(checked, list_name)
    with progress() as advance:
        shown = advance or (lambda *_: None)
        now_s = datetime.now(UTC).timestamp()
        read_progress = partial(shown, "read")
        found = parse_rows_file(
            _content(rows), rows.name, settings, now_s=now_s, layout=layout, force=force, progress=read_progress
        )
        for warning in found.warnings:  # also before a change that is refused
            print_message(f"warning: {warning}")
        has_one_kind = len({entry.whole_tac for entry in found.entries}) == 1
        is_named = has_one_kind and len(found.entries) <= ENTRIES_MAX
        source = "" if is_named else f"{found.name}: {FILE}{found.sha256}"
        shown("write", 0, 1)
        edit = options(entries=found.entries, details=found.details, source=source)
        report = _apply(checked, settings, edit)
        shown("write", 1, 1)
    show_one(asdict(report), report.as_text(), as_json=as_json)


def _content(path: Path) -> bytes:
    """Read a file, or standard input for `-`, up to one byte more than the maximum size."""
    if str(path) == "-":
        return sys.stdin.buffer.read(BYTES_MAX + 1)
    with path.open("rb") as stream:
        return stream.read(BYTES_MAX + 1)


def _end(until: str) -> int:
    """Parse `--until` to the expiry of the entries in Unix seconds; 0 if they do not expire."""
    with suppress(ValueError):
        end = datetime.now(UTC) + parse_duration(until)
        return int(end.timestamp())
    with suppress(ValueError):
        return until_seconds(until)
    raise fail(
        f"--until {until}: expected 2026-12-31, 2026-12-31T12:00:00Z, or a duration from now such as 14d or 36h",
        EXIT_USAGE,
    )


def remove(
    list_name: LocalList, identifiers: Identifiers, reason: Reason, imsi: Imsi = None, tac: Tac = False, verbatim: Verbatim = False,
    dry_run: DryRun = False, force: Force = False, config: ConfigFile = DEFAULT_CONFIG, as_json: Json = False,
) -> None:  # fmt: skip
    """Remove entries from a local list.

    Running nodes follow at once. Nothing is removed if one of the entries does not exist, or if the number of removed
    devices exceeds the list's shrink_max and change_min. If a TAC is removed, devices under it that have their own
    entry stay. A device that is listed only by its TAC cannot be removed alone.
    """
    options = partial(Edit, what=REMOVE, reason=reason, dry_run=dry_run, force=force)
    _edit(config, list_name, options, identifiers, imsi, tac=tac, verbatim=verbatim, as_json=as_json)


def _edit(
    config: Path, list_name: str, options: Callable[..., Edit], identifiers: list[str], imsi: list[str] | None, *, tac: bool,
    verbatim: bool, as_json: bool,
) -> None:  # fmt: skip
    """Change a local list by the identifiers of a command line. `options` builds the change (Edit) from the parsed entries."""
    checked = opened(load_config(config))
    settings = list_settings(checked, list_name)
    has_devices = settings.kind != SUBSCRIBERS
    try:
        imsis = [imsi_named(checked, each) for each in imsi or []]
        names = identifiers if has_devices else [imsi_named(checked, each) for each in identifiers]
        entries = parse_entries(settings.kind, names, imsis=imsis, tacs=tac, verbatim=verbatim)
    except IdentifierError as e:
        raise fail(str(e), EXIT_USAGE) from None
    edit = options(entries=entries)
    report = _apply(checked, settings, edit)
    if edit.what == ADD and has_devices:
        for imei in filter(has_wrong_check_digit, map(strip_separators, identifiers)):
            digit = check_digit(imei[:KEY_DIGITS])
            print_message(f"warning: {imei}: its check digit would be {digit}; check the number")
    show_one(asdict(report), report.as_text(), as_json=as_json)


def _apply(checked: Config, settings: ListSettings, edit: Edit) -> EditReport:
    """Apply a change (`edit`) to a local list in the store."""
    had = partial(load_in_force, checked.state)
    work = partial(edit_list, edit, settings, who=who(), now=datetime.now(UTC), had=had)
    return with_store(checked, work, reads=edit.dry_run)


class _ListContent(NamedTuple):
    """Content of a list, completely or only for one identifier."""

    state: Head
    pages: Sequence[Page]
    """Pages of the whole list, or the page of the identifier."""
    dates: Mapping[int, Page]
    """Pages of dates by number."""
    keys: range
    """Keys that the identifier covers; empty without an identifier."""
    events: Sequence[Event]


def show_list(
    list_name: ListName,
    identifier: Annotated[str, typer.Argument(metavar="IMEI|TAC|IMSI", help="Only what lists this device, is under this TAC (8 digits), or lists this subscriber.")] = "",
    limit: Annotated[int, typer.Option("-n", "--limit", metavar="N", help="Entries to show at most.", min=1)] = 50,
    skip: Annotated[int, typer.Option(metavar="N", help="Entries to pass over: --skip 50 shows the second page.", min=0)] = 0,
    from_store: FromStore = False, config: ConfigFile = DEFAULT_CONFIG, as_json: Json = False,
) -> None:  # fmt: skip
    """Show the entries of a list with date, reason and expiry.

    Each entry is shown with its author and time. For a signed list, these are the signers of the release in force and
    the user who loaded it. An expired entry has no effect, but stays in the list until a release or `eir remove`
    removes it. The list is shown as the running node has it, even if the store is unreachable. If no node runs, or with
    --store, it is shown as the store has it. Exit status 1 if there is no entry.
    """
    checked = opened(whereabouts(config))
    node = asked(checked, "lists", store_only=from_store, as_json=as_json)
    found = _as_held(checked, node, list_name, identifier)
    if found is None:
        work = partial(_list_content, checked, list_name, identifier)
        found = with_store(checked, work, fresh=False, reads=True)
    state = found.state
    entries: Iterable[ListEntry] = entries_of(found.pages, found.dates)
    if identifier:
        entries = [entry for entry in entries if _is_covered(entry, found.keys)]
        total = len(entries)
    elif state.kind == PAIRS:  # `state.entries` counts devices, and a device may have several rows
        total = sum(1 for _ in entries_of(found.pages))
    else:
        total = state.entries
    start, stop = min(skip, sys.maxsize), min(skip + limit, sys.maxsize)
    added = added_by(found.events, state.kind)
    rows = [_row(entry, found, added.get(entry[:3])) for entry in islice(entries, start, stop)]
    if as_json:
        print_json({
            "list": list_name, "kind": state.kind, "serial": state.serial, "generation": state.generation, "digest": state.content,
            "total": max(total, 0), "skipped": skip, "entries": rows,
        })  # fmt: skip
    else:
        _print_entries(rows, state.kind)
        left = total - skip - len(rows)
        if left > 0:
            print_message(f"{left:,} more: --skip {skip + len(rows)}, or eir export {list_name}")
    if rows:
        return
    if not identifier:
        raise fail(f"{list_name} has no further entries" if total else f"{list_name} is empty")
    if found.keys.start >= ODD_BASE and state.kind != SUBSCRIBERS:
        text = f"{identifier} is not in {list_name}, and is not an IMEI (14 to 16 digits), a MEID or a TAC (8 digits)"
        raise fail(text, EXIT_USAGE)
    raise fail(f"{identifier} is not in {list_name}")


def _is_covered(entry: ListEntry, keys: range) -> bool:
    """Return True if a list entry covers a key in `keys`: the entry has this key, or is for the whole TAC of these keys."""
    if entry.key in keys:
        return True
    return entry.whole_tac and keys.start - entry.key in range(SNR_KEYS)


def _print_entries(rows: Sequence[dict[str, Any]], kind: str) -> None:
    columns = ["entry"]
    if kind == PAIRS:
        columns.append("imsi")
    elif kind == TYPES:
        columns.append(ALLOCATED)
    if any(row.get(DATE) for row in rows):
        columns.append(DATE)
    texts = [row | {"until": f"{row['until']}, ended"} if row["ended"] else row for row in rows]
    show(texts, (*columns, "reason", "until", "who", "time"), as_json=False)


def _as_held(checked: Whereabouts, node: NodeAnswer | None, name: str, identifier: str) -> _ListContent | None:
    """Read the version of a list that the running node has in force, from the store or the node's copy; None if both lack it."""
    if node is None or name not in node.states:
        return None
    read = read_as_held(checked, name, node.states[name], partial(_list_content, checked, name, identifier))
    if read is None:
        print_message(
            "note: neither the store nor the node's copy has the lists of the node; this is the content of the store"
        )
        return None
    found, place = read
    if place != STORE_ITSELF:
        print_message(f"note: read from {place}")
    return found


def export_list(
    list_name: ListName,
    layout: Annotated[str, typer.Option(metavar="NAME", help=f"{', '.join(EXPORTS)}.")] = EIR,
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
    --json`. For this purpose, a reason without entries keeps its index by a row that ended in 1970 and has no effect.
    An existing file is replaced when the new file is complete.

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
    found = with_store(checked, partial(_list_content, checked, list_name, ""), fresh=False, reads=True)
    is_record = found.state.kind == FIRST_SEEN
    if is_record and (only or layout != EIR):
        raise fail(f"{list_name} is the record of first sightings: --layout and --only are for lists", EXIT_USAGE)
    if is_record:
        policy = load_config(config).policy
        written = write_days(policy, found.pages, ends, out, as_json=as_json)
        print_message(f"{list_name}: {written:,} of {found.state.entries:,} devices")
        return
    if as_json or not ends.is_any:
        raise fail(
            f"{list_name} is a list: --ends-from, --ends-to and --json are for the record of first sightings",
            EXIT_USAGE,
        )
    only_tacs = only == "tac" if only else None
    with progress() as advance, written_to(out) as file:
        shown = partial(advance, "write") if advance else lambda *_: None
        rows = export(found.state, found.pages, layout, file, dates=found.dates, only_tacs=only_tacs, progress=shown)
    print_message(f"{list_name}: {rows:,} rows, serial {found.state.serial}, generation {found.state.generation}")


async def _list_content(checked: Whereabouts, name: str, identifier: str, store: LogStore) -> _ListContent:
    """Read a list from the store, or only the pages that concern an identifier.

    For an unknown list, the command ends with an error.
    """
    state = await store.state(name)
    if state is None:
        stored = filterfalse(is_dates, await store.states())
        known = dict.fromkeys((*checked.lists, *stored))
        if name in checked.lists and checked.lists[name].local:
            return _ListContent(Head(kind=checked.lists[name].kind), (), {}, range(0), ())
        if name in known:
            raise fail(f"the list {name} has never been loaded")
        raise no_list(name, known, checked.path)
    if identifier:
        keys = _sought(identifier, state.kind)
        _, pages = await store.some_pages(name, [keys.start // PAGE_KEYS])
    else:
        keys = range(0)
        _, pages = await read_pages(store, name)
    _, dates = await read_dates(store, name, [page.number for page in pages])
    return _ListContent(state, pages, dates, keys, await store.history(name))


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


def _row(entry: ListEntry, found: _ListContent, added: Event | None) -> dict[str, Any]:
    state = found.state
    event = added
    if event is None:
        loads = [each for each in found.events if each.what in {"load", "rollback"} and each.serial == state.serial]
        event = loads[-1] if loads else None
    text = entry.text(state.kind)
    date_column = ALLOCATED if state.kind == TYPES else DATE
    has_ended = bool(entry.until) and entry.until <= datetime.now(UTC).timestamp()
    return {
        "entry": f"{text}*" if entry.whole_tac else text, "imsi": imsi_text(entry.imsi) if state.kind == PAIRS else None,
        "whole_tac": entry.whole_tac, "reason": reason_text(state, entry.reason) or None, "until": until_text(entry.until) or None,
        date_column: date_text(entry.date) or None, "ended": has_ended,
        "who": event.who if event else None, "time": event.time if event else state.loaded_at, "signers": list(state.signers),
    }  # fmt: skip

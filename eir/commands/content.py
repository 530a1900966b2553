"""Commands that look into a list: its entries, those of one device, and the whole of it as a data file."""

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from eir.changes.local import added_by
from eir.commands.access import DEFAULT_CONFIG, ConfigFile, Json, no_list, opened, whereabouts, with_store
from eir.commands.in_force import STORE_ITSELF, FromStore, Node, asked, read_as_held
from eir.commands.output import EXIT_USAGE, fail, print_json, progress, say, show, written_to
from eir.config import Whereabouts
from eir.device import ODD_BASE, SNR_KEYS, TAC_DIGITS, any_key, imsi_key, typed
from eir.errors import IdentifierError
from eir.pages.pages import PAGE_KEYS, Page
from eir.record.entries import Listed, entries_of, imsi_text, read_pages, until_text
from eir.record.reasons import reason_text
from eir.record.settings import PAIRS, SUBSCRIBERS
from eir.record.store import Event, ListState, ListStore
from eir.rows.export import EIR, EXPORTS, export
from eir.rows.layout import tac_key

ListName = Annotated[str, typer.Argument(metavar="LIST", help="A list, see `eir lists`.")]


class _Found(NamedTuple):
    """The content of a list in the store."""

    state: ListState
    pages: Sequence[Page]
    """Pages of the whole list, or the one in which the identifier is."""
    keys: range
    """Keys of the entries that are sought."""
    events: Sequence[Event]


def show_list(
    list_name: ListName,
    identifier: Annotated[str, typer.Argument(metavar="IMEI|TAC|IMSI", help="Only what lists this device, is under this TAC (8 digits), or lists this subscriber.")] = "",
    limit: Annotated[int, typer.Option("-n", "--limit", metavar="N", help="Entries to show at most.", min=1)] = 50,
    skip: Annotated[int, typer.Option(metavar="N", help="Entries to pass over: --skip 50 shows the second page.", min=0)] = 0,
    from_store: FromStore = False, config: ConfigFile = DEFAULT_CONFIG, as_json: Json = False,
) -> None:  # fmt: skip
    """Show what is in a list: entries, reasons, ends.

    Entries are shown with who put them there and when. Those of signed lists came with the release that is in force: its signers,
    and who loaded it. An entry that has ended stays in the list until a release or `eir remove` takes it out, and decides nothing.
    Exit status 1 if nothing is listed.
    The list is shown as the running node holds it, with the store away too; where none runs, or with --store, as the store does.
    """
    checked = opened(whereabouts(config))
    node = asked(checked, "lists", store_only=from_store, as_json=as_json)
    found = _as_held(checked, node, list_name, identifier) or with_store(
        checked, partial(_found, checked, list_name, identifier), fresh=False, reads=True
    )
    entries = (
        [
            entry
            for entry in entries_of(found.pages)
            if entry.key in found.keys or (entry.whole_tac and found.keys.start - entry.key in range(SNR_KEYS))
        ]
        if identifier
        else entries_of(found.pages)
    )
    shown = list(islice(entries, skip, skip + limit))
    added = added_by(found.events, found.state.kind)
    rows = [_row(entry, found, added.get(entry[:3])) for entry in shown]
    if isinstance(entries, list):
        total = len(entries)
    elif found.state.kind == PAIRS:  # a state counts devices, and each may have several rows
        total = sum(1 for _ in entries_of(found.pages))
    else:
        total = found.state.entries
    left = total - skip - len(rows)
    if as_json:
        state = found.state
        print_json({
            "list": list_name, "kind": state.kind, "serial": state.serial, "generation": state.generation, "digest": state.content_digest,
            "total": max(skip + len(rows) + left, 0), "skipped": skip, "entries": rows,
        })  # fmt: skip
    else:
        columns = ("entry", "imsi") if found.state.kind == PAIRS else ("entry",)
        told = [row | {"until": f"{row['until']}, ended"} if row["ended"] else row for row in rows]
        show(told, (*columns, "reason", "until", "who", "time"), as_json=False)
        if left > 0:
            say(f"{left:,} more: --skip {skip + len(rows)}, or eir export {list_name}")
    if not rows and found.keys.start >= ODD_BASE and found.state.kind != SUBSCRIBERS:
        raise fail(
            f"{identifier} is not in {list_name}, and is no IMEI (14 to 16 digits), no MEID and no TAC (8 digits)",
            EXIT_USAGE,
        )
    if not rows:
        raise fail(f"{identifier} is not in {list_name}" if identifier else f"no entry of {list_name} is left to show")


def _as_held(checked: Whereabouts, node: Node | None, name: str, identifier: str) -> _Found | None:
    """The list as the node holds it: out of whatever has the same content, by its digest; None if the store has to say."""
    if node is None or name not in node.states:
        return None
    if (read := read_as_held(checked, name, node.states[name], partial(_found, checked, name, identifier))) is None:
        say("note: neither the store nor the node's copy has what the node answers by; this is what the store holds")
        return None
    found, place = read
    if place != STORE_ITSELF:
        say(f"note: read from {place}")
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
    config: ConfigFile = DEFAULT_CONFIG,
) -> None:
    """Write a list that is in force as a data file.

    `eir publish` makes a release of it that has the same content: the same `digest` in `eir lists --json`. For that a reason that no entry
    has any more keeps its place, by a row with an end in 1970 that decides nothing. A file that is there already is replaced once the
    new one is whole.
    """
    for option, given, known in (("layout", layout, EXPORTS), ("only", only, ("imei", "tac", ""))):
        if given not in known:
            raise fail(f"--{option} {given}: expected {', '.join(filter(None, known))}", EXIT_USAGE)
    checked = opened(whereabouts(config))
    found = with_store(checked, partial(_found, checked, list_name, ""), fresh=False, reads=True)
    with progress() as advance, written_to(out) as file:
        rows = export(
            found.state, found.pages, layout, file, only_tacs=only == "tac" if only else None,
            progress=partial(advance, "write") if advance else lambda *_: None,
        )  # fmt: skip
    say(f"{list_name}: {rows:,} rows, serial {found.state.serial}, generation {found.state.generation}")


async def _found(checked: Whereabouts, name: str, identifier: str, store: ListStore) -> _Found:
    """The list, or the part of it that is about an identifier. Ends the command if there is no such list."""
    state = await store.state(name)
    if state is None:
        known = dict.fromkeys((*checked.lists, *await store.states()))
        raise fail(f"the list {name} has never been loaded") if name in known else no_list(name, known, checked.path)
    if identifier:
        keys = _sought(identifier, state.kind)
        _, pages = await store.some_pages(name, [keys.start // PAGE_KEYS])
    else:
        keys = range(0)
        _, pages = await read_pages(store, name)
    return _Found(state, pages, keys, await store.history(name))


def _sought(identifier: str, kind: str) -> range:
    """The keys of the entries that are about an identifier: of a device its own and its TAC's, of a TAC all under it."""
    identifier = typed(identifier)
    try:
        if kind == SUBSCRIBERS:
            return range(key := imsi_key(identifier), key + 1)
        if len(identifier) == TAC_DIGITS:
            return range(first := tac_key(identifier), first + SNR_KEYS)
        return range(key := any_key(identifier), key + 1)
    except IdentifierError as e:
        raise fail(f"{identifier}: {e}", EXIT_USAGE) from None


def _row(entry: Listed, found: _Found, added: Event | None) -> dict[str, Any]:
    state = found.state
    loaded = next(
        (
            event
            for event in reversed(found.events)
            if event.what in {"load", "rollback"} and event.serial == state.serial
        ),
        None,
    )
    event = added or loaded
    text = entry.text(state.kind)
    return {
        "entry": f"{text}*" if entry.whole_tac else text, "imsi": imsi_text(entry.imsi) if entry.imsi else None,
        "whole_tac": entry.whole_tac, "reason": reason_text(state, entry.reason) or None, "until": until_text(entry.until) or None,
        "ended": bool(entry.until and entry.until <= datetime.now(UTC).timestamp()),
        "who": event.who if event else None, "time": event.time if event else state.loaded_at, "signers": list(state.signers),
    }  # fmt: skip

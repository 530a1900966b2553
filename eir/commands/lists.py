"""Commands about the lists in force: what they are, what was done to them, and the step back."""

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from eir.commands.access import DEFAULT_CONFIG, ConfigFile, Json, list_settings, no_list, whereabouts, who, with_store
from eir.commands.output import print_json, show
from eir.lists.load import is_about, roll_back
from eir.lists.store import HISTORY_MAX, Event, ListState, ListStore

HISTORY_KEYS = ("time", "who", "what", "list", "serial", "digest", "detail")


def lists(config: ConfigFile = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Show the lists: serial, entries, dates, signers, state.

    `state` is `in force`, `expired` (which is still in force), or `never loaded`. `digest`, with --json, is of the content: the
    same for the same entries, whichever release brought them.
    """
    checked = whereabouts(config)

    async def found(store: ListStore) -> dict[str, ListState]:
        states = dict(await store.states())
        for name in checked.lists:  # one that the store does not name may be there: what names them is a key of its own in Redis
            if name not in states and (state := await store.state(name)) is not None:
                states[name] = state
        return states

    states = with_store(checked, found, fresh=False)
    kinds = {name: settings.kind for name, settings in checked.lists.items()} or {name: state.kind for name, state in states.items()}
    rows = [_list_row(name, kind, states.get(name)) for name, kind in kinds.items()]
    if not as_json:  # a list without releases has changes
        rows = [{**row, "serial": f"change {states[row['list']].generation}"} if row["serial"] == 0 else row for row in rows]
    columns = ("list", "kind", "serial", "entries", "issued", "expires", "signers", "loaded", "state")
    show(rows, columns, as_json=as_json)


def _list_row(name: str, kind: str, state: ListState | None) -> dict[str, Any]:
    if state is None:
        nothing = dict.fromkeys(("serial", "entries", "issued", "expires", "signers", "loaded", "digest"))
        return {"list": name, "kind": kind, **nothing, "signers": [], "state": "never loaded"}
    expired = state.expires is not None and datetime.fromisoformat(state.expires) <= datetime.now(UTC)
    return {
        "list": name,
        "kind": state.kind,
        "serial": state.serial,
        "entries": state.entries,
        "issued": state.issued,
        "expires": state.expires,
        "signers": list(state.signers),
        "loaded": state.loaded_at,
        "digest": state.content_digest,
        "state": "expired" if expired else "in force",
    }


def history(
    list_name: Annotated[str | None, typer.Argument(metavar="LIST", help="Only events of this list.")] = None,
    limit: Annotated[int, typer.Option("-n", "--limit", metavar="N", help="The newest N events.", min=1)] = 50,
    config: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Show who did what to the lists, oldest first.

    Refused releases are included. One that was refused before its manifest was verified belongs to no list, and is shown with the
    list that it claims to be of. `digest` is the SHA-256 of the manifest; `eir lists --json` has that of a list's content.
    """
    checked = whereabouts(config)

    async def found(store: ListStore) -> list[Event]:
        events = await store.history(None, limit if list_name is None else HISTORY_MAX)
        known = dict.fromkeys((*checked.lists, *await store.states()))
        of_list = [event for event in events if list_name is None or is_about(event, list_name)]
        if list_name is not None and list_name not in known and not any(event.list for event in of_list):
            raise no_list(list_name, known, checked.path)
        return of_list[-limit:]

    rows = [{key: getattr(event, key) for key in HISTORY_KEYS} for event in with_store(checked, found, fresh=False)]
    if not as_json:
        rows = [{**row, "detail": row["detail"].partition("\n")[0]} for row in rows]
    show(rows, ("time", "who", "what", "list", "serial", "detail"), as_json=as_json)


def rollback(
    list_name: Annotated[str, typer.Argument(metavar="LIST")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be in force, change nothing.")] = False,
    config: ConfigFile = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Undo the last release of a list.

    Of a list without releases, a local one, the last change is undone. A release that was undone is never accepted again.
    """
    checked = whereabouts(config)
    local = not checked.lists or list_settings(checked, list_name).local  # a file that is not YAML gives no names
    state = with_store(
        checked, lambda store: roll_back(list_name, store, who=who(), now=datetime.now(UTC), dry_run=dry_run), fresh=False
    )
    if as_json:
        print_json(_list_row(list_name, state.kind, state))
    elif dry_run:
        which = f"serial {state.serial}, issued {state.issued}, loaded {state.loaded_at}," if state.serial else "the list before the last change"
        print(f"{list_name}: {which} would be in force with {state.entries:,} entries; nothing was changed")
    elif local and not state.serial:
        print(f"{list_name}: the last change is undone; {state.entries:,} entries are in force")
    else:
        print(f"{list_name}: serial {state.serial} is in force again with {state.entries:,} entries;")
        print(f"the next release needs a serial above {state.highest_serial}")

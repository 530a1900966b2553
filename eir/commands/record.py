"""The command about what was done: the history, whether it is whole, and a file of it for an auditor."""

import socket
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from eir.commands.access import DEFAULT_CONFIG, ConfigFile, Json, no_list, opened, whereabouts, who, with_store
from eir.commands.output import EXIT_NO, EXIT_USAGE, MANY, fail, moment, print_json, say, show, written_to
from eir.config import Whereabouts
from eir.errors import EirError, StoreError
from eir.follow.history import adopt
from eir.operate import control
from eir.record.history import about, broken, linked, read_record, record_digest
from eir.record.reasons import check_reason
from eir.record.store import ACCEPTED, Event, Fold, Ledger, ListStore, Record, utc_text
from eir.stores.open import COPY_FILE, open_copy

KEYS = ("time", "who", "what", "list", "serial", "digest", "detail", "number", "count", "first")
NEWEST = 50
ADOPT = "adopt"
"""Stands in the place of a list's name."""
FAULTS_SHOWN = 20
READ_AGAIN_MAX = 10


class _Whole(NamedTuple):
    """The whole history, and what was found in it."""

    ledger: Ledger
    records: Sequence[Record]
    folds: Sequence[Fold]
    faults: Sequence[str]
    copied: int | None
    """Number of the newest record of this node's copy; None: it has none."""


def history(
    list_name: Annotated[str | None, typer.Argument(metavar="LIST", help="Only events of this list.")] = None,
    limit: Annotated[int | None, typer.Option("-n", "--limit", metavar="N", help="The newest N events.", min=1, show_default=f"{NEWEST}; with --since all")] = None,
    since: Annotated[str, typer.Option(metavar="TIME", help="Events from then on: 2026-11-01, 2026-11-01T12:00:00Z, or 30d for the last 30 days.")] = "",
    verify: Annotated[bool, typer.Option("--verify", help="Show nothing but whether the whole record holds: nothing in it was changed, removed or moved.")] = False,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="With `eir history adopt`: why the store's history is the right one.", show_default=False)] = "",
    export: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the record to a file instead, as it is stored: a line of JSON each, and refusals behind.")] = None,
    config: ConfigFile = DEFAULT_CONFIG, as_json: Json = False,
) -> None:  # fmt: skip
    """Show who did what to the lists, oldest first.

    Loads, rollbacks, changes by hand and reloads are records with a number, each of which holds the SHA-256 of the line of the one
    before it as `before`. Refused releases are counted by day, reason and who tried. One that was refused before its manifest was
    verified belongs to no list, and is shown with the list that it claims to be of. `digest` is the SHA-256 of the manifest;
    `eir lists --json` has that of a list's content. Exit status 1 if the record does not hold.

    `eir history adopt --reason TEXT` puts the store's history in the place of this node's copy, where the two do not continue each
    other. That is a record too; what the copy had goes to a file in the state folder.
    """
    checked = opened(whereabouts(config))
    if list_name == ADOPT and (reason or ADOPT not in checked.lists):
        _adopt(checked, reason)
        return
    if reason:
        raise fail("--reason goes with `eir history adopt`", EXIT_USAGE)
    begin = utc_text(from_then) if (from_then := moment(since)) else None
    if verify:
        _tell(with_store(checked, lambda store: _whole(checked, store), fresh=False, reads=True), as_json=as_json)
    if export is not None:
        whole = with_store(checked, lambda store: _whole(checked, store), fresh=False, reads=True)
        _export(whole, export, list_name, begin, as_json=as_json)
    if verify or export is not None:
        return

    most = min(limit, MANY) if limit else None if since else NEWEST

    async def found(store: ListStore) -> list[Event]:
        events = await store.history(list_name, limit=most, since=begin)
        named = list_name is None or list_name in checked.lists or any(event.list for event in events)
        if list_name is not None and not named and await store.state(list_name) is None:
            raise no_list(list_name, checked.lists, checked.path)
        return [*events]

    try:
        events = with_store(checked, found, fresh=False, reads=True)
    except StoreError as error:
        events = _of_the_node(checked, list_name, most, begin, error)
    rows = [{key: getattr(event, key) for key in KEYS} for event in events]
    if not as_json:
        rows = [{**row, "detail": _times(row) + row["detail"].partition("\n")[0]} for row in rows]
    show(rows, ("time", "who", "what", "list", "serial", "detail"), as_json=as_json)


def _of_the_node(
    checked: Whereabouts, list_name: str | None, limit: int | None, since: str | None, error: StoreError
) -> list[Event]:
    """Return the history in the node's copy, as the store does not answer.

    Raises the store's error if no node can tell.
    """
    try:
        rows = control.ask(checked.state, "history", list=list_name, limit=limit, since=since)
    except EirError:
        raise error from None
    say(f"warning: this is the node's copy, as the store does not answer: {error}")
    return [Event(**row) for row in rows]


def _adopt(checked: Whereabouts, reason: str) -> None:
    """Have the store's history be this node's too."""
    try:
        check_reason(reason)
    except EirError as e:
        raise fail(f"eir history adopt: {e} (--reason TEXT)", EXIT_USAGE) from None
    aside = checked.state / f"history-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.jsonl"

    async def adopted(store: ListStore) -> str:
        copy = open_copy(checked.store, checked.state) if (checked.state / COPY_FILE).exists() else None
        if copy is None:
            raise EirError("there is no copy of the history in the state folder of this host: nothing to adopt")
        try:
            ours, whole = await copy.ledger(), await _whole(checked, store)
            if not whole.faults:
                raise EirError("nothing was changed: the store's history holds, and this node's copy has the same")
            with written_to(aside) as out:
                out.writelines([f"{record.text}\n" async for batch in copy.records() for record in batch])
            detail = f"{reason}; the copy of {socket.gethostname()} had records up to {ours.number} (SHA-256 {ours.digest}), now in {aside.name}"
            await adopt(
                store,
                copy,
                Event(time=utc_text(datetime.now(UTC)), who=who(), what=ADOPT, outcome=ACCEPTED, detail=detail),
            )
            return f"the store's history is this node's too, up to record {(await copy.ledger()).number}; what the copy had is in {aside}"
        finally:
            await copy.close()

    print(with_store(checked, adopted, fresh=False))


def _times(row: dict[str, Any]) -> str:
    return f"{row['count']:,} times since {row['first']}, the last: " if row["count"] > 1 else ""


async def _whole(checked: Whereabouts, store: ListStore) -> _Whole:
    """All of the history, and what is wrong with it, also against the copy that this node keeps."""
    ours = await _copied(checked)  # first: what it has meanwhile is in the store when that is read
    ledger = await store.ledger()
    for _ in range(READ_AGAIN_MAX):
        folds, records = await store.folds(), [record async for batch in store.records() for record in batch]
        before, ledger = ledger, await store.ledger()
        if ledger == before:  # else somebody wrote meanwhile
            break
    faults = [*broken(records, folds, ledger), *(_against(records, ours) if ours else ())]
    return _Whole(ledger, records, folds, faults, None if ours is None else ours[-1].number if ours else 0)


async def _copied(checked: Whereabouts) -> list[Record] | None:
    """Return the records of this node's copy; None if there is no readable copy."""
    copy = open_copy(checked.store, checked.state) if (checked.state / COPY_FILE).exists() else None
    if copy is None:
        return None
    try:
        return [record async for batch in copy.records() for record in batch]
    except StoreError as error:
        say(f"warning: it is not compared with this node's copy: {error}")
        return None
    finally:
        await copy.close()


def _against(records: Sequence[Record], ours: Sequence[Record]) -> Iterator[str]:
    """Yield the records of this node that the store lacks or has otherwise, and a gap between the two."""
    there = {record.number: record.text for record in records}
    oldest, last = records[0].number if records else 1, ours[-1]
    yield from (
        f"record {number} is not the one that this node keeps"
        for number, text in ours
        if there.get(number, text) != text
    )
    if missing := sum(number >= oldest and number not in there for number, _ in ours):
        yield f"{missing} records that this node keeps are not in the store"
    if oldest > last.number and not (oldest == last.number + 1 and linked(records[:1], record_digest(last.text))):
        yield f"the store's records, from {oldest} on, do not continue this node's, which end with {last.number}"


def _tell(whole: _Whole, *, as_json: bool) -> None:
    """Say whether the history holds; ends the command if it does not."""
    ledger, records = whole.ledger, whole.records
    if as_json:
        print_json({
            "whole": not whole.faults, "faults": list(whole.faults), "records": len(records), "first": records[0].number if records else None,
            "last": ledger.number, "digest": ledger.digest, "refusals": ledger.refused, "copied": whole.copied,
        })  # fmt: skip
    else:
        for fault in whole.faults[:FAULTS_SHOWN]:
            say(fault)
        if len(whole.faults) > FAULTS_SHOWN:
            say(f"… and {len(whole.faults) - FAULTS_SHOWN} more")
        if not whole.faults:
            span = f"{len(records):,} records"
            with suppress(IndexError):
                span += f", {records[0].number} to {records[-1].number}, {read_record(records[0]).time} to {read_record(records[-1]).time}"
            copy = "" if whole.copied is None else f"; this node's copy, up to {whole.copied}, has the same"
            print(f"the history holds: {span}{copy}; SHA-256 of the newest: {ledger.digest}")
    if whole.faults:
        raise fail("the history does not hold") if not as_json else typer.Exit(EXIT_NO)


def _export(whole: _Whole, file: Path, list_name: str | None, since: str | None, *, as_json: bool) -> None:
    """Write records and refusals as they are stored; `since`: from the first one of that time on, without a gap."""
    events = {record.number: read_record(record) for record in whole.records}
    start = next(
        (number for number, event in events.items() if since is None or event.time >= since), whole.ledger.number + 1
    )
    texts = [text for number, text in whole.records if number >= start and list_name in {None, about(events[number])}]
    for fold in whole.folds:
        event = read_record(Record(0, fold.text))
        if list_name in {None, about(event)} and (since is None or event.time >= since):
            texts.append(fold.text)
    with written_to(file) as out:
        out.writelines(f"{text}\n" for text in texts)
    if as_json:
        print_json({"file": str(file), "lines": len(texts), "digest": whole.ledger.digest})
    else:
        say(f"{file}: {len(texts):,} lines; SHA-256 of the newest record: {whole.ledger.digest}")

"""Command that shows, verifies and exports the history of the lists."""

import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from eir.cli.access import DEFAULT_CONFIG, ConfigFile, Json, no_list, opened, whereabouts, who, with_store
from eir.cli.output import EXIT_NO, EXIT_USAGE, MANY, fail, moment, print_json, print_message, show, written_to
from eir.config import Whereabouts
from eir.errors import EirError, StoreError
from eir.lists.follow.history import adopt
from eir.lists.record.history import chain_faults, feed_faults, is_linked, list_of, read_record, record_digest
from eir.lists.record.reasons import check_reason
from eir.lists.record.store import ACCEPTED, CHAINS, FEED, MAIN, Event, Fold, Ledger, ListStore, Record, utc_text
from eir.lists.stores.open import COPY_FILE, open_copy
from eir.node.observe import control

KEYS = ("time", "who", "what", "list", "serial", "digest", "detail", "number", "chain", "count", "first")
NEWEST = 50
ADOPT = "adopt"
"""Word in the place of a list's name."""
FAULTS_SHOWN = 20
READ_AGAIN_MAX = 10


class _Whole(NamedTuple):
    """Complete history with the result of its verification."""

    ledger: Ledger
    """Records of the main chain."""
    records: Sequence[Record]
    fed: Sequence[Record]
    """Records of the feed's chain."""
    folds: Sequence[Fold]
    faults: Sequence[str]
    copied: int | None
    """Number of the newest record of this node's copy; None: it has none."""


def _known_chain(chain: str | None) -> str | None:
    if chain not in {None, *CHAINS}:
        raise fail(f"--chain {chain}: expected {' or '.join(CHAINS)}", EXIT_USAGE)
    return chain


def history(
    list_name: Annotated[str | None, typer.Argument(metavar="LIST", help="Only events of this list.")] = None,
    limit: Annotated[int | None, typer.Option("-n", "--limit", metavar="N", help="The newest N events.", min=1, show_default=f"{NEWEST}; with --since all")] = None,
    since: Annotated[str, typer.Option(metavar="TIME", help="Events from then on: 2026-11-01, 2026-11-01T12:00:00Z, or 30d for the last 30 days.")] = "",
    chain: Annotated[str | None, typer.Option(metavar="main|feed", callback=_known_chain, help="Only rows that registers fed (feed), or only all else (main).", show_default=False)] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Show nothing but whether the whole record holds: nothing in it was changed, removed or moved.")] = False,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="With `eir history adopt`: why the store's history is the right one.", show_default=False)] = "",
    export: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the record to a file instead, as it is stored: a line of JSON each, and refusals behind.")] = None,
    config: ConfigFile = DEFAULT_CONFIG, as_json: Json = False,
) -> None:  # fmt: skip
    """Show the history of the lists, oldest event first.

    Loads, rollbacks, changes by hand and reloads are records with a number. Each record has the SHA-256 of the previous record's line in
    `before`. Refused releases are counted by day, reason and sender. A release that was refused before its manifest was verified belongs to
    no list, and is shown with the list that it claims. `digest` is the SHA-256 of the manifest; `eir lists --json` has the digest of a list's
    content. Rows that registers feed have a chain and numbers of their own. Each `anchor` has the number and the digest of the newest record
    of that chain. Exit status 1 if the history has a fault.

    `eir history adopt --reason TEXT` replaces this node's copy by the store's history, if the two do not continue each other. This is a record
    too. The old copy is written to a file in the state folder.
    """
    checked = opened(whereabouts(config))
    if list_name == ADOPT and (reason or ADOPT not in checked.lists):
        _adopt(checked, reason)
        return
    if reason:
        raise fail("--reason requires `eir history adopt`", EXIT_USAGE)
    begin = utc_text(from_then) if (from_then := moment(since)) else None
    if verify:
        _print_result(
            with_store(checked, lambda store: _whole(checked, store), fresh=False, reads=True), as_json=as_json
        )
    if export is not None:
        whole = with_store(checked, lambda store: _whole(checked, store), fresh=False, reads=True)
        _export(whole, export, list_name, begin, chain, as_json=as_json)
    if verify or export is not None:
        return

    most = min(limit, MANY) if limit else None if since else NEWEST

    async def lookup(store: ListStore) -> list[Event]:
        events = await store.history(list_name, limit=most, since=begin, chain=chain)
        named = list_name is None or list_name in checked.lists or any(event.list for event in events)
        if list_name is not None and not named and await store.state(list_name) is None:
            raise no_list(list_name, checked.lists, checked.path)
        return [*events]

    try:
        events = with_store(checked, lookup, fresh=False, reads=True)
    except StoreError as error:
        events = _of_the_node(checked, error, list=list_name, limit=most, since=begin, chain=chain)
    rows = [{key: getattr(event, key) for key in KEYS} for event in events]
    if not as_json:
        rows = [{**row, "detail": _times(row) + row["detail"].partition("\n")[0]} for row in rows]
    show(rows, ("time", "who", "what", "list", "serial", "detail"), as_json=as_json)


def _of_the_node(checked: Whereabouts, error: StoreError, **asked: Any) -> list[Event]:
    """Return the history from the running node's copy, because the store does not answer.

    Raises the store's error if no node answers.
    """
    try:
        rows = control.ask(checked.state, "history", **asked)
    except EirError:
        raise error from None
    print_message(f"warning: this is the node's copy, because the store does not answer: {error}")
    return [Event(**row) for row in rows]


def _adopt(checked: Whereabouts, reason: str) -> None:
    """Replace this node's copy of the history by the history in the store."""
    try:
        check_reason(reason)
    except EirError as e:
        raise fail(f"eir history adopt: {e} (--reason TEXT)", EXIT_USAGE) from None
    aside = checked.state / f"history-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.jsonl"

    async def adopted(store: ListStore) -> str:
        copy = open_copy(checked.store, checked.state) if (checked.state / COPY_FILE).exists() else None
        if copy is None:
            raise EirError("the state folder of this host has no copy of the history, so there is nothing to adopt")
        try:
            ours = await copy.ledger()
            try:
                is_valid = not (await _whole(checked, store)).faults
            except StoreError as error:
                if error.cause != "corrupt":
                    raise
                is_valid = False
            if is_valid:
                raise EirError("nothing was changed: the store's history is valid and equals this node's copy")
            with written_to(aside) as out:
                for chain in CHAINS:
                    async for batch in copy.records(chain=chain):
                        out.writelines(f"{record.text}\n" for record in batch)
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
    """Read the complete history from the store; verify its chains, and compare it with the node's copy."""
    ours = await _copied(checked)  # first: what it has meanwhile is in the store when that is read
    ledger = await store.ledger()
    for _ in range(READ_AGAIN_MAX):
        folds, records = await store.folds(), [record async for batch in store.records() for record in batch]
        before, ledger = ledger, await store.ledger()
        if ledger == before:  # else somebody wrote meanwhile
            break
    for _ in range(READ_AGAIN_MAX):
        feed = await store.ledger(FEED)
        read = [record async for batch in store.records(chain=FEED) for record in batch]
        if (await store.ledger(FEED)).first == feed.first:  # else its oldest records were forgotten meanwhile
            break
    fed = [record for record in read if record.number <= feed.number] if await _goes_on(store, feed) else read
    copied = ours or {MAIN: {}, FEED: {}}
    faults = [*chain_faults(records, folds, ledger), *_against(records, copied[MAIN]), *_gap(records, copied[MAIN])]
    of_feed = [*chain_faults(fed, (), feed), *_against(fed, copied[FEED])]  # anchors prove what comes behind a gap
    faults += [*(f"feed: {fault}" for fault in of_feed), *feed_faults(records, fed, feed)]
    return _Whole(ledger, records, fed, folds, faults, None if ours is None else max(ours[MAIN], default=0))


async def _goes_on(store: ListStore, feed: Ledger) -> bool:
    """Return True if the chain of the feed has grown since its ledger `feed` was read."""
    return (await store.ledger(FEED)).number > feed.number


async def _copied(checked: Whereabouts) -> dict[str, dict[int, str]] | None:
    """Return the record digests of the node's copy by chain and number; None if no copy is readable."""
    copy = open_copy(checked.store, checked.state) if (checked.state / COPY_FILE).exists() else None
    if copy is None:
        return None
    try:
        return {
            chain: {number: record_digest(text) async for batch in copy.records(chain=chain) for number, text in batch}
            for chain in CHAINS
        }
    except StoreError as error:
        print_message(f"warning: the history was not compared with this node's copy: {error}")
        return None
    finally:
        await copy.close()


def _against(records: Sequence[Record], ours: Mapping[int, str]) -> Iterator[str]:
    """Yield faults: records of the node's copy that the store lacks, or has with another content."""
    there = {record.number: record_digest(record.text) for record in records}
    oldest = records[0].number if records else 1
    yield from (
        f"record {number} differs from this node's copy"
        for number, digest in ours.items()
        if there.get(number, digest) != digest
    )
    if missing := sum(number >= oldest and number not in there for number in ours):
        yield f"{missing} records of this node's copy are not in the store"


def _gap(records: Sequence[Record], ours: Mapping[int, str]) -> Iterator[str]:
    """Yield a fault if the store's records do not continue the records of the node's copy."""
    oldest, last = records[0].number if records else 1, max(ours, default=0)
    if ours and oldest > last and not (oldest == last + 1 and is_linked(records[:1], ours[last])):
        yield f"the store's records, from {oldest} on, do not continue this node's, which end with {last}"


def _print_result(whole: _Whole, *, as_json: bool) -> None:
    """Print the result of the verification; if the history has a fault, end the command with an error."""
    ledger, records = whole.ledger, whole.records
    if as_json:
        print_json({
            "whole": not whole.faults, "faults": list(whole.faults), "records": len(records), "first": records[0].number if records else None,
            "last": ledger.number, "digest": ledger.digest, "refusals": ledger.refused, "copied": whole.copied,
            "feed": {"records": len(whole.fed), **dict(zip(("first", "last"), _ends(whole.fed), strict=True))},
        })  # fmt: skip
    else:
        for fault in whole.faults[:FAULTS_SHOWN]:
            print_message(fault)
        if len(whole.faults) > FAULTS_SHOWN:
            print_message(f"… and {len(whole.faults) - FAULTS_SHOWN} more")
        if not whole.faults:
            span = f"{len(records):,} records"
            with suppress(IndexError):
                span += f", {records[0].number} to {records[-1].number}, {read_record(records[0]).time} to {read_record(records[-1]).time}"
            copy = "" if whole.copied is None else f"; this node's copy, up to {whole.copied}, is equal"
            first, last = _ends(whole.fed)
            fed = f"; {len(whole.fed):,} records of feeds, {first} to {last}" if whole.fed else ""
            print(f"the history is valid: {span}{fed}{copy}; SHA-256 of the newest: {ledger.digest}")
    if whole.faults:
        raise fail("the history is not valid") if not as_json else typer.Exit(EXIT_NO)


def _ends(records: Sequence[Record]) -> tuple[int | None, int | None]:
    """Return the numbers of the first and the last record; None for both if there is no record."""
    return (records[0].number, records[-1].number) if records else (None, None)


def _export(
    whole: _Whole, file: Path, list_name: str | None, since: str | None, chain: str | None, *, as_json: bool
) -> None:
    """Write records and rejections of the history to a file, in their stored form.

    `since`: time of the first record; all later records follow without a gap.
    """
    texts: list[str] = []
    for each, records in zip(CHAINS, (whole.records, whole.fed), strict=True):
        if chain in {None, each}:
            texts += _lines(records, list_name, since)
    for fold in whole.folds if chain != FEED else ():
        event = read_record(Record(0, fold.text))
        if list_name in {None, list_of(event)} and (since is None or event.time >= since):
            texts.append(fold.text)
    with written_to(file) as out:
        out.writelines(f"{text}\n" for text in texts)
    if as_json:
        print_json({"file": str(file), "lines": len(texts), "digest": whole.ledger.digest})
    else:
        print_message(f"{file}: {len(texts):,} lines; SHA-256 of the newest record: {whole.ledger.digest}")


def _lines(records: Sequence[Record], list_name: str | None, since: str | None) -> list[str]:
    """Return the records of a chain in their stored form, from the time `since` on and of one list."""
    events = [(record.text, read_record(record)) for record in records]
    start = next((at for at, (_, event) in enumerate(events) if since is None or event.time >= since), len(events))
    return [text for text, event in events[start:] if list_name in {None, list_of(event)}]

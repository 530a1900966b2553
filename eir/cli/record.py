"""Command that shows, verifies and exports the history of lists."""

import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from eir.cli.access import DEFAULT_CONFIG, ConfigFile, Json, no_list, opened, whereabouts, who, with_store
from eir.cli.output import EXIT_NO, EXIT_USAGE, fail, moment, print_json, print_message, show, written_to
from eir.config import Whereabouts
from eir.errors import EirError, StoreError
from eir.lists.follow.history import adopt
from eir.lists.log.change import utc_text
from eir.lists.log.store import LogStore
from eir.lists.record.history import chain_faults, feed_faults, is_linked, list_of, read_record, record_digest
from eir.lists.record.reasons import check_reason
from eir.lists.record.store import ACCEPTED, CHAINS, FEED, MAIN, Event, Fold, Ledger, Record
from eir.lists.stores.open import COPY_FILE, open_copy
from eir.node.observe import control

KEYS = ("time", "who", "what", "list", "serial", "digest", "detail", "number", "chain", "count", "first")
NEWEST = 50
ADOPT = "adopt"
"""Argument in the place of a list's name, for `eir history adopt`."""
FAULTS_SHOWN = 20
READ_AGAIN_MAX = 10


class _Whole(NamedTuple):
    """Complete history with the result of its verification."""

    ledger: Ledger
    """Number and digest of the newest record of the main chain."""
    records: Sequence[Record]
    """Records of the main chain."""
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
    start = moment(since)
    begin = None if start is None else utc_text(start)
    if verify or export is not None:
        whole = with_store(checked, partial(_whole, checked), fresh=False, reads=True)
        if verify:
            _print_result(whole, as_json=as_json)
        if export is not None:
            _export(whole, export, list_name, begin, chain, as_json=as_json)
        return
    most = None if since else NEWEST
    if limit:
        most = min(limit, sys.maxsize)
    query = {"limit": most, "since": begin, "chain": chain}
    try:
        events = with_store(checked, partial(_events, checked, list_name, query), fresh=False, reads=True)
    except StoreError as error:
        events = _of_the_node(checked, error, list=list_name, **query)
    rows = [{key: getattr(event, key) for key in KEYS} for event in events]
    if not as_json:
        for row in rows:
            row["detail"] = _detail(row)
    show(rows, ("time", "who", "what", "list", "serial", "detail"), as_json=as_json)


async def _events(
    checked: Whereabouts, list_name: str | None, query: Mapping[str, Any], store: LogStore
) -> Sequence[Event]:
    """Read events from the store. For an unknown list, the command ends with an error."""
    events = await store.history(list_name, **query)
    if list_name is not None and list_name not in checked.lists and not any(event.list for event in events):
        state = await store.state(list_name)
        if state is None:
            raise no_list(list_name, checked.lists, checked.path)
    return events


def _of_the_node(checked: Whereabouts, error: StoreError, **asked: Any) -> Sequence[Event]:
    """Return events from the running node's copy of the history, because the store does not answer.

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
    now = datetime.now(UTC)
    aside = checked.state / f"history-{now:%Y%m%dT%H%M%SZ}.jsonl"

    async def replace_copy(store: LogStore) -> str:
        copy = _open_copy(checked)
        if copy is None:
            raise EirError("the state folder of this host has no copy of the history, so there is nothing to adopt")
        try:
            before = await copy.ledger()
            if await _is_valid(checked, store):
                raise EirError("nothing was changed: the store's history is valid and equals this node's copy")
            with written_to(aside) as out:
                for chain in CHAINS:
                    async for batch in copy.records(chain=chain):
                        out.writelines(f"{record.text}\n" for record in batch)
            records = f"records up to {before.number} (SHA-256 {before.digest})"
            detail = f"{reason}; the copy of {socket.gethostname()} had {records}, now in {aside.name}"
            event = Event(time=utc_text(now), who=who(), what=ADOPT, outcome=ACCEPTED, detail=detail)
            await adopt(store, copy, event)
            after = await copy.ledger()
            return (
                f"the store's history is this node's too, up to record {after.number}; what the copy had is in {aside}"
            )
        finally:
            await copy.close()

    print(with_store(checked, replace_copy, fresh=False))


async def _is_valid(checked: Whereabouts, store: LogStore) -> bool:
    """Return True if the store's history is readable and valid, and equals the node's copy."""
    try:
        whole = await _whole(checked, store)
    except StoreError as error:
        if error.cause != "corrupt":
            raise
        return False
    return not whole.faults


def _detail(row: dict[str, Any]) -> str:
    """Return the first line of an event's detail.

    If the event counts several equal refusals, their number and the time of the first refusal precede the line.
    """
    line: str = row["detail"].partition("\n")[0]
    if row["count"] > 1:
        return f"{row['count']:,} times since {row['first']}, the last: {line}"
    return line


async def _whole(checked: Whereabouts, store: LogStore) -> _Whole:
    """Read the complete history from the store, verify its hash chains, and compare it with the node's copy."""
    copy = await _read_copy(checked)  # before the store: each record of the copy must be in the store by then
    ledger = await store.ledger()
    for _ in range(READ_AGAIN_MAX):
        folds = await store.folds()
        records = [record async for batch in store.records() for record in batch]
        before, ledger = ledger, await store.ledger()
        if ledger == before:  # the chain did not change between the two reads
            break
    for _ in range(READ_AGAIN_MAX):
        feed = await store.ledger(FEED)
        fed = [record async for batch in store.records(chain=FEED) for record in batch]
        feed_after = await store.ledger(FEED)
        if feed_after.first == feed.first:  # no old record was deleted between the two reads
            break
    if feed_after.number > feed.number:
        fed = [record for record in fed if record.number <= feed.number]
    ours = copy or {MAIN: {}, FEED: {}}
    faults = [*chain_faults(records, folds, ledger), *_differences(records, ours[MAIN]), *_gap(records, ours[MAIN])]
    # The feed's chain needs no search for a gap: anchors in the main chain prove its records.
    of_feed = [*chain_faults(fed, (), feed), *_differences(fed, ours[FEED])]
    faults += [f"feed: {fault}" for fault in of_feed]
    faults += feed_faults(records, fed, feed)
    copied = None if copy is None else max(copy[MAIN], default=0)
    return _Whole(ledger, records, fed, folds, faults, copied)


def _open_copy(checked: Whereabouts) -> LogStore | None:
    """Open the node's copy of the history; return None if there is no copy."""
    if not (checked.state / COPY_FILE).exists():
        return None
    return open_copy(checked.store, checked.state)


async def _read_copy(checked: Whereabouts) -> dict[str, dict[int, str]] | None:
    """Return the digests of the records in the node's copy of the history, by chain and number; None if the copy is unreadable."""
    copy = _open_copy(checked)
    if copy is None:
        return None
    digests: dict[str, dict[int, str]] = {chain: {} for chain in CHAINS}
    try:
        for chain in CHAINS:
            async for batch in copy.records(chain=chain):
                digests[chain].update((number, record_digest(text)) for number, text in batch)
    except StoreError as error:
        print_message(f"warning: the history was not compared with this node's copy: {error}")
        return None
    finally:
        await copy.close()
    return digests


def _differences(records: Sequence[Record], ours: Mapping[int, str]) -> Iterator[str]:
    """Yield a fault for each record that differs between the store and the node's copy.

    If the store lacks records, one more fault has their number.
    """
    stored = {record.number: record_digest(record.text) for record in records}
    oldest = records[0].number if records else 1
    missing = 0
    for number, digest in ours.items():
        if number not in stored:
            missing += number >= oldest
        elif stored[number] != digest:
            yield f"record {number} differs from this node's copy"
    if missing:
        yield f"{missing} records of this node's copy are not in the store"


def _gap(records: Sequence[Record], ours: Mapping[int, str]) -> Iterator[str]:
    """Yield a fault if the history has a gap between the last record of the node's copy and the first record in the store."""
    if not records or not ours:
        return
    oldest, last = records[0].number, max(ours)
    continues = oldest <= last or (oldest == last + 1 and is_linked(records[:1], ours[last]))
    if not continues:
        yield f"the store's records, from {oldest} on, do not continue this node's, which end with {last}"


def _print_result(whole: _Whole, *, as_json: bool) -> None:
    """Print the result of the verification; if the history has a fault, end the command with an error."""
    ledger, faults = whole.ledger, whole.faults
    first, _ = _ends(whole.records)
    feed_first, feed_last = _ends(whole.fed)
    if as_json:
        print_json({
            "whole": not faults, "faults": list(faults), "records": len(whole.records), "first": first,
            "last": ledger.number, "digest": ledger.digest, "refusals": ledger.refused, "copied": whole.copied,
            "feed": {"records": len(whole.fed), "first": feed_first, "last": feed_last},
        })  # fmt: skip
        if faults:
            raise typer.Exit(EXIT_NO)
        return
    for fault in faults[:FAULTS_SHOWN]:
        print_message(fault)
    if len(faults) > FAULTS_SHOWN:
        print_message(f"… and {len(faults) - FAULTS_SHOWN} more")
    if faults:
        raise fail("the history is not valid")
    copy = "" if whole.copied is None else f"; this node's copy, up to {whole.copied}, is equal"
    fed = f"; {len(whole.fed):,} records of feeds, {feed_first} to {feed_last}" if whole.fed else ""
    print(f"the history is valid: {_span(whole.records)}{fed}{copy}; SHA-256 of the newest: {ledger.digest}")


def _ends(records: Sequence[Record]) -> tuple[int | None, int | None]:
    """Return the number of the first and of the last record; (None, None) without records."""
    return (records[0].number, records[-1].number) if records else (None, None)


def _span(records: Sequence[Record]) -> str:
    """Format a text with the count of history records, and with the position and the time of the first and the last record."""
    text = f"{len(records):,} records"
    if not records:
        return text
    first, last = records[0], records[-1]
    return f"{text}, {first.number} to {last.number}, {read_record(first).time} to {read_record(last).time}"


def _export(
    whole: _Whole, file: Path, list_name: str | None, since: str | None, chain: str | None, *, as_json: bool
) -> None:
    """Write the history to a file: one line for each record, and one line for each stored count of equal refusals (Fold).

    `since`: time of the first record; all later records follow without a gap.
    """
    texts: list[str] = []
    for each, records in zip(CHAINS, (whole.records, whole.fed), strict=True):
        if chain in {None, each}:
            texts += _lines(records, list_name, since)
    folds = whole.folds if chain != FEED else ()
    for fold in folds:
        event = read_record(Record(0, fold.text))
        is_late = since is None or event.time >= since
        if is_late and list_name in {None, list_of(event)}:
            texts.append(fold.text)
    with written_to(file) as out:
        out.writelines(f"{text}\n" for text in texts)
    if as_json:
        print_json({"file": str(file), "lines": len(texts), "digest": whole.ledger.digest})
    else:
        print_message(f"{file}: {len(texts):,} lines; SHA-256 of the newest record: {whole.ledger.digest}")


def _lines(records: Sequence[Record], list_name: str | None, since: str | None) -> list[str]:
    """Return the stored texts of the records about one list, from the time `since` on.

    Without `list_name`, the records about all lists are returned; without `since`, the records of all times.
    """
    texts = []
    has_begun = since is None
    for record in records:
        event = read_record(record)
        has_begun = has_begun or event.time >= str(since)
        if has_begun and list_name in {None, list_of(event)}:
            texts.append(record.text)
    return texts

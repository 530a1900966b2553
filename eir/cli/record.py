"""Command that shows, verifies, exports and imports the history of lists: the journal of this host's node, and the logs in the store."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import partial
from heapq import merge
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from eir.cli.access import (
    DEFAULT_CONFIG,
    ConfigFile,
    Json,
    acting_in,
    no_list,
    opened,
    record_event,
    whereabouts,
    who,
    with_store,
)
from eir.cli.output import EXIT_NO, EXIT_USAGE, fail, moment, print_json, print_message, show
from eir.config import Config, Whereabouts, load_config
from eir.disk import open_replacement
from eir.errors import EirError, StoreError
from eir.lists.follow.list_copy import copied_heads
from eir.lists.log.change import Head, utc_text
from eir.lists.log.comparison import SeenChanges, changes_of_journal, changes_of_log, differences, log_faults
from eir.lists.log.journal import (
    FEED,
    MAIN,
    REJECTED,
    SERIES,
    JournalEvent,
    lines_of,
    paths_of,
    read_events,
    series_of,
)
from eir.lists.log.journal_export import add_witness, export_journal, newest_line, unpack_journal
from eir.lists.log.journal_faults import journal_faults
from eir.lists.log.node_journal import event_of
from eir.lists.log.reader import ChangeRows
from eir.lists.log.store import LogStore
from eir.lists.stores.open import COPIES, JOURNAL
from eir.node.observe.control import owner_advice

KEYS = ("time", "who", "what", "list", "serial", "digest", "detail", "generation", "outcome", "rows", "count", "first")
NEWEST = 50
IMPORTED = "import"
"""Argument in the place of a list's name, for `eir history import FILE`."""
CHAINS: Mapping[str | None, Sequence[str]] = {None: SERIES, MAIN: (MAIN, REJECTED), FEED: (FEED,)}
"""Series of the journal by the value of --chain."""
RECENT, RECENT_OF_LIST = 1_000, 20
"""Numbers of newest events, of all lists and of one, among which the newest recorded change of a list is found."""
FAULTS_SHOWN = 20
READ_AGAIN_MAX = 10
EXPORT_MODE = 0o640


class _Query(NamedTuple):
    """Selection of events."""

    begin: datetime | None
    """Time of the first event."""
    chain: str | None
    limit: int | None
    """Maximum number of events, the newest ones."""


class _Verification(NamedTuple):
    """Result of a verification."""

    faults: Sequence[str]
    notes: Sequence[str]
    """Parts of the history that could not be verified."""
    document: Mapping[str, Any]
    text: str


def _known_chain(chain: str | None) -> str | None:
    if chain not in CHAINS:
        raise fail(f"--chain {chain}: expected {MAIN} or {FEED}", EXIT_USAGE)
    return chain


def history(
    list_name: Annotated[str | None, typer.Argument(metavar="LIST", help="Only events of this list.")] = None,
    imported: Annotated[Path | None, typer.Argument(metavar="FILE", help="With `eir history import`: exported journal of another node.", show_default=False)] = None,
    limit: Annotated[int | None, typer.Option("-n", "--limit", metavar="N", help="The newest N events.", min=1, show_default=f"{NEWEST}; with --since all")] = None,
    since: Annotated[str, typer.Option(metavar="TIME", help="Events from then on: 2026-11-01, 2026-11-01T12:00:00Z, or 30d for the last 30 days.")] = "",
    chain: Annotated[str | None, typer.Option(metavar="main|feed", callback=_known_chain, help="Only rows that registers fed (feed), or only all else (main).", show_default=False)] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Verify the journal, and compare it with the store; show faults only.")] = False,
    witness: Annotated[Path | None, typer.Option("--with", metavar="FILE", help="With --verify: also verify and compare the exported journal of another node.", show_default=False)] = None,
    export: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the whole journal to a file, as it is stored: a line of JSON for each event.")] = None,
    config: ConfigFile = DEFAULT_CONFIG, as_json: Json = False,
) -> None:  # fmt: skip
    """Show the history of the lists, oldest event first.

    The node's journal records each change of a list that the node has seen, rejected releases, reloads, traces and imports. A host without a
    journal shows the logs of the lists in the store. Equal rejections of a day are one event with a count. `digest` is the SHA-256 of the
    manifest. Rows that registers feed are a series of their own. Exit status 1 if --verify finds a fault.

    `eir history import FILE` adds the changes of another node's exported journal that this journal lacks.
    """
    if imported is not None:
        if list_name != IMPORTED:
            raise fail(f"{imported}: expected one argument LIST, or `eir history import FILE`", EXIT_USAGE)
        _import(opened(load_config(config)), imported)
        return
    if witness is not None and not verify:
        raise fail("--with requires --verify", EXIT_USAGE)
    if export is not None and (list_name or since or chain):
        raise fail("--export writes the whole journal; give no LIST, --since or --chain", EXIT_USAGE)
    checked = opened(whereabouts(config))
    with _readable(checked):
        if verify:
            _print_result(_verify(checked, witness), as_json=as_json)
        if export is not None:
            _export(checked, export, as_json=as_json)
        if not verify and export is None:
            _show(
                checked, list_name, _Query(moment(since), chain, limit or (None if since else NEWEST)), as_json=as_json
            )


def _show(checked: Whereabouts, name: str | None, query: "_Query", *, as_json: bool) -> None:
    events = _events(checked, name, query)
    if name is not None and name not in checked.lists and not events:
        raise no_list(name, checked.lists, checked.path)
    rows = [{key: getattr(event, key) for key in KEYS} for event in events]
    if not as_json:
        for row in rows:
            row["detail"] = _detail(row)
    show(rows, ("time", "who", "what", "list", "serial", "detail"), as_json=as_json)


@contextmanager
def _readable(checked: Whereabouts) -> Iterator[None]:
    """Explain a missing permission to read the journal."""
    try:
        yield
    except PermissionError as error:
        raise EirError(f"{error.filename}: {error.strerror}{owner_advice(checked.state)}") from None


def _detail(row: Mapping[str, Any]) -> str:
    """Return the first line of an event's detail.

    If the event counts several equal rejections, their number and the time of the first one precede the line.
    """
    line: str = row["detail"].partition("\n")[0]
    if row["count"] > 1:
        return f"{row['count']:,} times since {row['first']}, the last: {line}"
    return line


# Events


def _events(checked: Whereabouts, name: str | None, query: _Query) -> Sequence[JournalEvent]:
    """Return the newest events of the journal, and the changes in the store that the journal does not have yet.

    Raises:
        StoreError: if the host has no journal, and the store does not answer.
    """
    folder = checked.state / JOURNAL
    since = "" if query.begin is None else utc_text(query.begin)
    events = read_events(folder, name=name, since=since, series=CHAINS[query.chain], limit=query.limit)
    has_journal = bool(paths_of(folder, MAIN))
    try:
        stored = with_store(checked, partial(_stored_events, folder, name), fresh=False, reads=True)
    except EirError as error:
        if not has_journal:
            raise
        print_message(f"warning: this is the journal of this host alone, because the store does not answer: {error}")
        stored = []
    else:
        if not has_journal:
            print_message("note: this host has no journal; these are the changes that the store has kept", "info")
    wanted = [event for event in stored if event.time >= since and query.chain in {None, series_of(event)}]
    merged = [*merge(events, sorted(wanted, key=attrgetter("time")), key=attrgetter("time"))]
    return merged if query.limit is None else merged[-query.limit :]


async def _stored_events(folder: Path, name: str | None, store: LogStore) -> Sequence[JournalEvent]:
    """Return the changes in the store after those of the journal, without rows. `name`: only those of this list."""
    recent = _newest_changes(folder, limit=RECENT)
    events: list[JournalEvent] = []
    for each, digest in (await store.heads()).digests.items():
        if name not in {None, each}:
            continue
        recorded = recent.get(each) or _newest_changes(folder, name=each, limit=RECENT_OF_LIST).get(each)
        if recorded is None or recorded.change != digest:
            after = 0 if recorded is None or recorded.generation is None else recorded.generation
            events += [event_of(each, ChangeRows(entry.change, None), ()) for entry in await store.log(each, after)]
    return events


def _newest_changes(folder: Path, *, limit: int, name: str | None = None) -> dict[str | None, JournalEvent]:
    """Return the newest change of each list among the newest `limit` events of a journal."""
    events = read_events(folder, name=name, series=(MAIN, FEED), limit=limit)
    return {event.list: event for event in events if event.change is not None}


# Verification


def _verify(checked: Whereabouts, witness: Path | None) -> _Verification:
    """Verify the journal, the logs in the store, and an exported journal, and compare the changes that they have."""
    folder = checked.state / JOURNAL
    notes: list[str] = []
    copied: Mapping[str, Head] = {}
    try:
        copied = copied_heads(checked.state / COPIES)  # before the journal, which then has each change of a copy
    except StoreError as error:
        notes.append(f"the journal was not compared with the copies of the lists: {error}")
    has_journal = bool(paths_of(folder, MAIN))
    faults = _faults_of(folder)
    ours = changes_of_journal(folder)
    for name, head in copied.items():
        seen = ours.get(name, SeenChanges())
        if has_journal and head.digest not in seen.generations and (seen.generations or not seen.oldest):
            faults.append(f"list {name}: change {head.generation}, which this node holds, is missing in the journal")
    try:
        of_store, stored = with_store(checked, _read_logs, fresh=False, reads=True)
    except StoreError as error:
        if error.cause == "corrupt" or not has_journal:
            raise
        of_store, stored = [], {}
        notes.append(f"the journal was not compared with the store: {error}")
    faults += [*of_store, *differences(ours, stored, "the store")]
    if witness is not None:
        with tempfile.TemporaryDirectory() as room:
            unpacked = Path(room) / JOURNAL
            unpack_journal(witness, unpacked)
            faults += [f"{witness}: {fault}" for fault in journal_faults(unpacked)]
            faults += differences(ours, changes_of_journal(unpacked), str(witness))
    lines = {series: _count_lines(folder, series) for series in SERIES}
    changes = sum(len(each.generations) for each in stored.values())
    digest = newest_line(folder)
    document = {
        "whole": not faults,
        "faults": faults,
        "notes": notes,
        "lines": lines,
        "digest": digest or None,
        "changes": changes,
    }
    journal = f"{sum(lines.values()):,} lines of the journal" if has_journal else "this host has no journal"
    also = "" if witness is None else f"; {witness} is equal"
    text = f"the history is valid: {journal}; {changes:,} changes in the store{also}; SHA-256 of the newest line: {digest or '-'}"
    return _Verification(faults, notes, document, text)


def _faults_of(folder: Path) -> list[str]:
    """Verify a journal, again if its files change meanwhile."""
    for _ in range(READ_AGAIN_MAX):
        before = [paths_of(folder, series) for series in SERIES]
        with suppress(FileNotFoundError):
            faults = [*journal_faults(folder)]
            if not faults or before == [paths_of(folder, series) for series in SERIES]:
                return faults
    raise EirError(f"{folder}: the files of the journal changed {READ_AGAIN_MAX} times while they were read; try again")


async def _read_logs(store: LogStore) -> tuple[list[str], dict[str, SeenChanges]]:
    """Return the faults of the logs in a store, and the changes of each list."""
    faults: list[str] = []
    seen: dict[str, SeenChanges] = {}
    heads = await store.heads()
    for name, digest in heads.digests.items():
        changes = [entry.change for entry in await store.log(name, 0)]
        until = next((at for at, change in enumerate(changes, 1) if change.digest == digest), None)
        changes = changes[:until]  # without the changes that were written meanwhile
        faults += log_faults(name, changes, digest)
        seen[name] = changes_of_log(changes)
    return faults, seen


def _count_lines(folder: Path, series: str) -> int:
    return sum(1 for path in paths_of(folder, series) for _ in lines_of(path))


def _print_result(verified: _Verification, *, as_json: bool) -> None:
    """Print the result of a verification; if the history has a fault, end the command with an error."""
    faults = verified.faults
    if as_json:
        print_json(verified.document)
        if faults:
            raise typer.Exit(EXIT_NO)
        return
    for note in verified.notes:
        print_message(f"warning: {note}")
    for fault in faults[:FAULTS_SHOWN]:
        print_message(fault)
    if len(faults) > FAULTS_SHOWN:
        print_message(f"… and {len(faults) - FAULTS_SHOWN} more")
    if faults:
        raise fail("the history is not valid")
    print(verified.text)


# Export and import


def _export(checked: Whereabouts, file: Path, *, as_json: bool) -> None:
    """Write the journal to a file."""
    folder = checked.state / JOURNAL
    if not paths_of(folder, MAIN):
        raise EirError(f"this host has no journal in {checked.state}; run the command on the host of a node")
    with open_replacement(file, mode=EXPORT_MODE) as out:
        exported = export_journal(folder, out)
    if as_json:
        print_json({"file": str(file), **exported._asdict()})
    else:
        print_message(f"{file}: {exported.lines:,} lines; SHA-256 of the newest line: {exported.digest}", "info")


def _import(config: Config, file: Path) -> None:
    """Add an exported journal to that of this host as a witness file, after a verification."""
    folder = config.state / JOURNAL
    with tempfile.TemporaryDirectory() as room:
        unpacked = Path(room) / JOURNAL
        unpack_journal(file, unpacked)
        faults = [*journal_faults(unpacked)]
        if faults:
            raise EirError(f"nothing was imported: {file} is damaged: {faults[0]}; export the journal again")
        digest = newest_line(unpacked)
        changes = sum(len(each.generations) for each in changes_of_journal(unpacked).values())
    if not folder.is_dir():
        raise EirError(f"this host has no journal in {config.state}; run the command on the host of a node")
    detail = f"{changes:,} changes of {file.name}, whose newest line has the SHA-256 {digest}"
    with acting_in(config.state):
        event = add_witness(file, folder, who=who(), detail=detail)
    record_event(config, event)
    print_message(f"{file}: {changes:,} changes; `eir history` shows those that this journal lacks", "info")

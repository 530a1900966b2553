"""Command that shows a past answer for a device, with the release, row, author and reason behind it."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any, NamedTuple

import typer

from eir.checks.explain import Explanation, explain, option_fault, question_of
from eir.cli.access import DEFAULT_CONFIG, ConfigFile, Json, imsi_named, opened, with_store
from eir.cli.output import EXIT_USAGE, fail, moment, printable, second, show_one
from eir.cli.sightings import not_kept, write_down
from eir.config import Config, load_config
from eir.device import device_key, imsi_key, imsi_text, strip_separators
from eir.errors import IdentifierError, StoreError
from eir.lists.follow.list_reader import ListReader
from eir.lists.log.change import Change, utc_text
from eir.lists.log.journal import JournalEvent, read_events
from eir.lists.log.node_journal import event_of
from eir.lists.log.reader import ChangeRows
from eir.lists.log.store import LogStore
from eir.lists.record.entries import ListEntry, date_text, until_text
from eir.lists.record.kept_content import RESET, changes_of_rows, read_past
from eir.lists.record.listed_entries import entries_in
from eir.lists.record.reasons import reason_at
from eir.lists.record.settings import SUBSCRIBERS
from eir.lists.stores.open import JOURNAL
from eir.sightings.subscribers import subscriber_names

POLICY = frozenset({"policy", "peers"})
"""Sections of the configuration that influence answers."""
RELOAD, LOAD = "reload", "load"
ANSWER = (
    "first",
    "last",
    "checks",
    "status",
    "rule",
    "list",
    "subscriber",
    "software_version",
    "origin_host",
    "peer",
    "protocol",
    "observed",
)


EVENT_FIELDS = ("serial", "digest", "generation", "what", "who", "time")
"""Members of a list's document that come from the event which put the list in force."""


class PastRow(NamedTuple):
    """Entry of a list at a past time."""

    entry: ListEntry
    reason: str
    change: Change | None
    """Change that added the entry; None if the log does not have it any more."""


class PastList(NamedTuple):
    """State of a list at a past time, and its changes since then."""

    kind: str
    event: JournalEvent | None
    """Event that put the state in force; None if the list did not exist, or the journal does not reach back so far."""
    loaded: JournalEvent | None
    """Event that loaded the release in force."""
    change: Change | None
    """Change that put the state in force, if its content is still stored."""
    rows: Sequence[PastRow] | None
    """Entries of the device or subscriber; None if the content is no longer stored, or none was requested."""
    gone: str
    """Reason for which the content is no longer stored, with the oldest time."""
    since: Sequence[JournalEvent]
    """Changes after that time, oldest first."""


class AnswerHistory(NamedTuple):
    """Facts that explain a past answer: past states of the lists, reloads after the answer, and the present answer."""

    lists: Mapping[str, PastList]
    """Past states of the lists by name."""
    reloads: Sequence[JournalEvent]
    """Later reloads that changed the policy or the peer table."""
    now: Explanation


def why(
    imei: Annotated[str, typer.Argument(metavar="IMEI", help="The device: IMEI (14 or 15 digits), IMEISV (16) or MEID.")],
    imsi: Annotated[str, typer.Option(metavar="N", help="Only checks with this subscriber's SIM; +NUMBER by the table `numbers`.")] = "",
    at: Annotated[str, typer.Option(metavar="TIME", help="When it was: 2026-11-20T06:00:00Z, or 2h for two hours ago; now if not given.")] = "",
    config: ConfigFile = DEFAULT_CONFIG, as_json: Json = False,
) -> None:  # fmt: skip
    """Show the answer for a device at a past time, and its reason.

    The answer comes from the record of checks: the checks in progress at TIME, or else the last check before. Lists are
    shown in their state at that time: release, signers, user who loaded it, and the row with its reason if that release
    is still stored (`keep` of the list). Later changes are shown too. Exit status 1 if no check is on record.
    """
    from eir.sightings.seen import find_answers  # noqa: PLC0415 - polars, for this command

    checked = opened(load_config(config))
    imei, imsi = strip_separators(imei), imsi_named(checked, imsi)
    question = question_of(imei, imsi=imsi, software_version="", origin_host="", origin_realm="")
    try:
        key = device_key(imei)
    except IdentifierError as e:
        raise fail(f"{imei}: {e}", EXIT_USAGE) from None
    if wrong := option_fault(question):
        raise fail(wrong, EXIT_USAGE)
    asked = moment(at, "--at") or datetime.now(UTC)
    write_down(checked)
    names = subscriber_names(checked.state, imsi) if imsi else []
    rows = [{name: row[name] for name in ANSWER} for row in find_answers(checked.state, key, names, asked)]
    then = min(datetime.fromisoformat(rows[0]["last"]), asked) if rows else asked
    work = partial(answer_history, checked, question=question, key=key, then=then)
    found = with_store(checked, work, fresh=False, reads=True)
    decided = {row["list"] for row in rows}
    lists = [_list_document(name, past, imsi=imsi, decided=name in decided) for name, past in found.lists.items()]
    reloads = [_event_document(event) for event in found.reloads]
    document = {
        "imei": imei, "imsi": imsi or None, "at": utc_text(asked), "answers": rows, "lists": lists,
        "reloads": reloads, "now": found.now.as_json(),
    }  # fmt: skip
    show_one(document, format_sheet(imei, asked, rows, lists, found), as_json=as_json)
    if not rows:
        sim = f" with {imsi}" if imsi else ""
        raise fail(f"no check of {imei}{sim} is on record up to {utc_text(asked)}{not_kept(checked)}")


async def answer_history(config: Config, store: LogStore, question: Any, key: int, then: datetime) -> AnswerHistory:
    """Return the facts that explain an answer at the time `then`: past list states, later reloads, and the answer that is given now."""
    events = read_events(config.state / JOURNAL)
    subscriber = imsi_key(question.imsi) if question.imsi else None
    lists = {}
    for name, settings in config.lists.items():
        entry = subscriber if settings.kind == SUBSCRIBERS else key
        changes = [event for event in events if event.list == name and event.change is not None]
        lists[name] = await _past_list(store, name, settings.kind, entry, then, changes)
    reloads = []
    for event in events:
        sections = event.detail.removeprefix("changed: ").split(", ")
        if event.what == RELOAD and event.time >= utc_text(then) and not POLICY.isdisjoint(sections):
            reloads.append(event)
    read = ListReader(store).content
    now = await explain(question, config.policy, config.lists_and_record, read, now=datetime.now(UTC))
    return AnswerHistory(lists, reloads, now)


async def _past_list(
    store: LogStore, name: str, kind: str, key: int | None, then: datetime, recorded: Sequence[JournalEvent]
) -> PastList:
    """Return the state of a list at a past time, with the entries that it had for `key`. `recorded`: changes in the journal."""
    if not recorded:
        recorded = [event_of(name, ChangeRows(entry.change, None), ()) for entry in await store.log(name, 0)]
    events = [event for event in recorded if event.what != RESET]
    before = [event for event in events if event.time <= utc_text(then)]
    since = [event for event in events if event.time > utc_text(then)]
    event = before[-1] if before else None
    loads = (
        each for each in reversed(before) if each.what == LOAD and event is not None and each.digest == event.digest
    )
    loaded = next(loads, event)
    try:
        past = await read_past(store, name, then)
    except StoreError as error:
        if error.cause != "gone":
            raise
        return PastList(kind, event, loaded, None, None, str(error), since)
    rows = None
    if past.content is not None and past.change is not None and key is not None:
        found = past.rows_of(key, then)
        changes = await changes_of_rows(store, name, found, past.change.generation)
        rows = [
            PastRow(entry, reason_at(past.content.head.reasons, entry.reason), changes.get((stored, entry.imsi)))
            for entry, stored in zip(entries_in(found), found.keys.tolist(), strict=True)
        ]
    return PastList(kind, event, loaded, past.change, rows, "", since)


def _list_document(name: str, past: PastList, *, imsi: str, decided: bool) -> dict[str, Any]:
    """Return the state of a list at a past time as a JSON document."""
    document: dict[str, Any] = {"list": name, "decided": decided, "loaded": past.event is not None}
    for field in EVENT_FIELDS:
        document[field] = getattr(past.event, field, None)
    loaded, change, rows = past.loaded, past.change, None
    if past.rows is not None:
        rows = [
            _row(row, past.kind, loaded)
            for row in past.rows
            if not (imsi and row.entry.imsi and imsi_text(row.entry.imsi) != imsi)
        ]
    return document | {
        "loaded_by": loaded and loaded.who, "loaded_at": loaded and loaded.time,
        "signers": [*change.signers] if change else None, "issued": change.issued if change else None, "rows": rows,
        "gone": past.gone or None, "since": [_event_document(each) for each in past.since],
    }  # fmt: skip


def _row(row: PastRow, kind: str, loaded: JournalEvent | None) -> dict[str, Any]:
    """Return an entry as a JSON document. `loaded`: event that loaded the release in force."""
    entry, source = row.entry, row.change or loaded
    text = entry.text(kind)
    return {
        "row": f"{text}*" if entry.whole_tac else text, "imsi": imsi_text(entry.imsi) if entry.imsi else None,
        "reason": row.reason or None, "date": date_text(entry.date) or None, "begin": until_text(entry.begin) or None,
        "until": until_text(entry.until) or None, "who": source and source.who, "time": source and source.time,
    }  # fmt: skip


def _event_document(event: JournalEvent) -> dict[str, Any]:
    document = {name: getattr(event, name) for name in ("time", "who", "what", "list", "serial", "generation")}
    document["detail"] = event.detail.partition("\n")[0]
    return document


def format_sheet(
    imei: str,
    asked: datetime,
    rows: Sequence[Mapping[str, Any]],
    lists: Sequence[Mapping[str, Any]],
    found: AnswerHistory,
) -> str:
    """Render a past answer and its reason as plain text, which a support agent can read out to a customer."""
    lines = [f"{imei}, as it was at {utc_text(asked)}", ""]
    for row in rows:
        lines += _answer_lines(row)
    for each in sorted(lists, key=lambda each: not each["decided"]):
        decided = " (it decided)" if each["decided"] else ""
        lines += ["", f"list {each['list']}{decided}"]
        lines += [f"  {line}" for line in _list_lines(each)]
    lines += ["", "since then"]
    for event in found.reloads:
        lines.append(f"  {second(event.time)} {event.who} applied a changed configuration: {event.detail}")
    for each in lists:
        for change in each["since"]:
            generation = f"generation {change['generation']}"
            lines.append(f"  {second(change['time'])} {change['who']}: {change['what']} {each['list']} ({generation})")
    first, *more = found.now.as_text().splitlines()
    lines.append(f"  now, by file and store: {first.partition(': ')[2]}")
    lines += [f"  {line}" for line in more]
    return "\n".join(map(printable, lines))  # a name from the wire must not begin a line


def _answer_lines(row: Mapping[str, Any]) -> list[str]:
    many = f" ({row['checks']:,} checks up to {second(row['last'])})" if row["checks"] > 1 else ""
    rule = f"rule {row['rule']}" if str(row["rule"]).isdigit() else f"the policy's {row['rule']}"
    by_list = f", list {row['list']}" if row["list"] else ""
    origin = f"{row['origin_host'] or '-'} ({row['protocol']}, peer {row['peer'] or '-'})"
    lines = [
        f"{second(row['first'])}{many}: {row['status']}",
        f"  by {rule}{by_list}",
        f"  asked by {origin}, SIM {row['subscriber'] or '-'}",
    ]
    if row["observed"]:
        lines.append(f"  observed only: {row['observed']}")
    return lines


def _list_lines(each: Mapping[str, Any]) -> list[str]:
    if not each["loaded"]:
        return ["it had not been loaded, or the journal does not reach back so far"]
    version = f"serial {each['serial']}" if each["serial"] else "changed by hand"
    since = (
        f"in force since {second(each['time'])} by {each['what']} of {each['who']} (generation {each['generation']})"
    )
    lines = [f"{version}, {since}"]
    if each["loaded_at"] != each["time"]:
        lines.append(f"loaded {second(each['loaded_at'])} by {each['loaded_by']}")
    if each["signers"]:
        lines.append(f"signed by {', '.join(each['signers'])}, issued {second(each['issued'])}")
    if each["rows"] is None:
        lines.append(each["gone"] or "no entry was requested")
    elif not each["rows"]:
        lines.append("it did not name the device")
    else:
        lines += map(_row_line, each["rows"])
    return lines


def _row_line(row: Mapping[str, Any]) -> str:
    pair = f" with SIM {row['imsi']}" if row["imsi"] else ""
    dates = f", reported {row['date']}" if row["date"] else ""
    if row["begin"]:
        dates += f", from {row['begin']}"
    if row["until"]:
        dates += f", until {row['until']}"
    source = f"put there by {row['who']}, {second(row['time'])}" if row["who"] else "put there before this journal"
    return f"row {row['row']}{pair}: reason {row['reason'] or '-'}{dates}; {source}"

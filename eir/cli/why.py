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
from eir.device import device_key, imsi_key, strip_separators
from eir.errors import IdentifierError
from eir.lists.changes.local import added_by
from eir.lists.log.change import Head, utc_text
from eir.lists.log.store import LogStore
from eir.lists.record.entries import ListEntry, Past, date_text, imsi_text, load_past, until_text
from eir.lists.record.reasons import reason_text
from eir.lists.record.settings import SUBSCRIBERS
from eir.lists.record.store import MAIN, Event
from eir.sightings.subscribers import subscriber_names

POLICY = frozenset({"policy", "peers"})
"""Sections of the configuration that influence answers."""
RELOAD = "reload"
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


EVENT_FIELDS = {
    "serial": "serial",
    "digest": "digest",
    "record": "number",
    "chain": "chain",
    "what": "what",
    "who": "who",
    "time": "time",
}
"""Members of a list's document that come from the event which put the list in force → fields of the event."""


class AnswerHistory(NamedTuple):
    """Facts that explain a past answer: past states of the lists, reloads after the answer, and the present answer."""

    lists: Mapping[str, tuple[str, Past, Sequence[Event]]]
    """Lists by name: kind, past states, and history."""
    reloads: Sequence[Event]
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
    lists = [_list_document(name, *past, imsi=imsi, decided=name in decided) for name, past in found.lists.items()]
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
    lists = {}
    subscriber = imsi_key(question.imsi) if question.imsi else None
    for name, settings in config.lists.items():
        entry = subscriber if settings.kind == SUBSCRIBERS else key
        past = await load_past(store, name, entry, then)
        lists[name] = (settings.kind, past, await store.history(name))
    reloads = []
    for event in await store.history(None, since=utc_text(then)):
        sections = event.detail.removeprefix("changed: ").split(", ")
        if event.what == RELOAD and not POLICY.isdisjoint(sections):
            reloads.append(event)
    now = await explain(question, config.policy, config.lists_and_record, store, now=datetime.now(UTC))
    return AnswerHistory(lists, reloads, now)


def _list_document(
    name: str, kind: str, then: Past, history: Sequence[Event], *, imsi: str, decided: bool
) -> dict[str, Any]:
    """Return the state of a list at a past time as a JSON document."""
    event, release = then.event, then.release
    document: dict[str, Any] = {"list": name, "decided": decided, "loaded": event is not None}
    for member, field in EVENT_FIELDS.items():
        document[member] = getattr(event, field, None)
    loaded = event
    if event is not None and release is not None and release.made is not None:
        loaded = release.made
    state = None if release is None else release.state
    rows = None
    if then.rows is not None and state is not None:
        earlier = [each for each in history if event is not None and each.time <= event.time]
        added = added_by(earlier, kind)
        entries = [entry for entry in then.rows if not (imsi and entry.imsi and imsi_text(entry.imsi) != imsi)]
        rows = [_row(entry, kind, state, added.get(entry[:3], loaded)) for entry in entries]
    return document | {
        "loaded_by": loaded and loaded.who, "loaded_at": loaded and loaded.time,
        "signers": list(state.signers) if state else None, "issued": state.issued if state else None, "rows": rows,
        "since": [_event_document(each) for each in then.since],
    }  # fmt: skip


def _row(entry: ListEntry, kind: str, state: Head, source: Event | None) -> dict[str, Any]:
    """Return an entry as a JSON document. `source`: event that added the entry."""
    text = entry.text(kind)
    return {
        "row": f"{text}*" if entry.whole_tac else text, "imsi": imsi_text(entry.imsi) if entry.imsi else None,
        "reason": reason_text(state, entry.reason) or None, "date": date_text(entry.date) or None, "until": until_text(entry.until) or None,
        "who": source and source.who, "time": source and source.time,
    }  # fmt: skip


def _event_document(event: Event) -> dict[str, Any]:
    document = {name: getattr(event, name) for name in ("time", "who", "what", "list", "serial", "number", "chain")}
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
        change = f"applied a changed configuration (record {event.number}): {event.detail}"
        lines.append(f"  {second(event.time)} {event.who} {change}")
    for each in lists:
        for change in each["since"]:
            record = _record(change["chain"], change["number"])
            lines.append(f"  {second(change['time'])} {change['who']}: {change['what']} {each['list']} ({record})")
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


def _record(chain: str, number: int | None) -> str:
    """Format the number of a history record; put the name of the chain before it unless it is the main chain."""
    return f"record {number}" if chain == MAIN else f"{chain} record {number}"


def _list_lines(each: Mapping[str, Any]) -> list[str]:
    if not each["loaded"]:
        return ["it had not been loaded, or the history does not reach back so far"]
    version = f"serial {each['serial']}" if each["serial"] else "changed by hand"
    record = _record(each["chain"], each["record"])
    lines = [f"{version}, in force since {second(each['time'])} by {each['what']} of {each['who']} ({record})"]
    if each["loaded_at"] != each["time"]:
        lines.append(f"loaded {second(each['loaded_at'])} by {each['loaded_by']}")
    if each["signers"]:
        lines.append(f"signed by {', '.join(each['signers'])}, issued {second(each['issued'])}")
    if each["rows"] is None:
        lines.append("its content is no longer kept, or no entry was requested")
    elif not each["rows"]:
        lines.append("it did not name the device")
    else:
        lines += map(_row_line, each["rows"])
    return lines


def _row_line(row: Mapping[str, Any]) -> str:
    pair = f" with SIM {row['imsi']}" if row["imsi"] else ""
    dates = f", reported {row['date']}" if row["date"] else ""
    if row["until"]:
        dates += f", until {row['until']}"
    source = f"put there by {row['who']}, {second(row['time'])}"
    return f"row {row['row']}{pair}: reason {row['reason'] or '-'}{dates}; {source}"

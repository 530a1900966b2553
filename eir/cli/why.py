"""Command that shows a past answer for a device, with the release, row, author and reason behind it."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
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
from eir.lists.record.entries import Past, date_text, imsi_text, load_past, until_text
from eir.lists.record.reasons import reason_text
from eir.lists.record.settings import SUBSCRIBERS
from eir.lists.record.store import MAIN, Event, ListStore
from eir.sightings.subscribers import subscriber_names

POLICY = ("policy", "peers")
"""Sections that influence answers."""
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


class _AnswerHistory(NamedTuple):
    """Past states of the lists, and later reloads, that explain an answer."""

    lists: Mapping[str, tuple[str, Past, Sequence[Event]]]
    """Lists by name: kind, past states, and history."""
    reloads: Sequence[Event]
    """Reloads since then that changed who is answered what."""
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
    from eir.sightings.seen import find_answers  # noqa: PLC0415 - polars, for those that need it

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
    rows = [
        {name: row[name] for name in ANSWER}
        for row in find_answers(checked.state, key, subscriber_names(checked.state, imsi) if imsi else [], asked)
    ]
    then = min(datetime.fromisoformat(rows[0]["last"]), asked) if rows else asked
    found = with_store(
        checked, lambda store: _answer_history(checked, store, question, key, then), fresh=False, reads=True
    )
    decided = {row["list"] for row in rows}
    lists = [_list(name, *of, imsi=imsi, decided=name in decided) for name, of in found.lists.items()]
    document = {
        "imei": imei, "imsi": imsi or None, "at": _text(asked), "answers": rows, "lists": lists,
        "reloads": [_event(event) for event in found.reloads], "now": found.now.as_json(),
    }  # fmt: skip
    show_one(document, _sheet(imei, asked, rows, lists, found), as_json=as_json)
    if not rows:
        raise fail(
            f"no check of {imei}{f' with {imsi}' if imsi else ''} is on record up to {_text(asked)}{not_kept(checked)}"
        )


async def _answer_history(config: Config, store: ListStore, question: Any, key: int, then: datetime) -> _AnswerHistory:
    lists = {}
    for name, settings in config.lists.items():
        subscriber = imsi_key(question.imsi) if question.imsi else None
        lists[name] = (
            settings.kind,
            await load_past(store, name, subscriber if settings.kind == SUBSCRIBERS else key, then),
            await store.history(name),
        )
    since = then.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    events = [event for event in await store.history(None, since=since) if event.what == RELOAD]
    changed = [event for event in events if set(POLICY) & set(event.detail.removeprefix("changed: ").split(", "))]
    now = await explain(question, config.policy, config.lists_and_record, store, now=datetime.now(UTC))
    return _AnswerHistory(lists, changed, now)


def _list(name: str, kind: str, then: Past, history: Sequence[Event], *, imsi: str, decided: bool) -> dict[str, Any]:
    """Return the state of a list at a past time as a JSON document."""
    event, release = then.event, then.release
    state = None if release is None else release.state
    loaded = (
        (release.made if release is not None and release.made is not None else event) if event is not None else None
    )
    added = added_by([each for each in history if event is not None and each.time <= event.time], kind)
    rows = None if then.rows is None or state is None else [
        {
            "row": f"{text}*" if entry.whole_tac else text, "imsi": imsi_text(entry.imsi) if entry.imsi else None,
            "reason": reason_text(state, entry.reason) or None, "date": date_text(entry.date) or None, "until": until_text(entry.until) or None,
            "who": by.who if (by := added.get(entry[:3])) else loaded.who if loaded else None,
            "time": by.time if by else loaded.time if loaded else None,
        }
        for entry in then.rows if not (imsi and entry.imsi and imsi_text(entry.imsi) != imsi)
        for text in [entry.text(kind)]
    ]  # fmt: skip
    return {
        "list": name, "decided": decided, "loaded": event is not None, "serial": event.serial if event else None, "digest": event.digest if event else None,
        "record": event.number if event else None, "chain": event.chain if event else None, "what": event.what if event else None, "who": event.who if event else None, "time": event.time if event else None,
        "loaded_by": loaded.who if loaded else None, "loaded_at": loaded.time if loaded else None,
        "signers": list(state.signers) if state else None, "issued": state.issued if state else None, "rows": rows,
        "since": [_event(each) for each in then.since],
    }  # fmt: skip


def _event(event: Event) -> dict[str, Any]:
    return {name: getattr(event, name) for name in ("time", "who", "what", "list", "serial", "number", "chain")} | {
        "detail": event.detail.partition("\n")[0]
    }


def _text(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _sheet(
    imei: str,
    asked: datetime,
    rows: Sequence[Mapping[str, Any]],
    lists: Sequence[Mapping[str, Any]],
    found: _AnswerHistory,
) -> str:
    """Render a past answer as plain text that can be read to a customer."""
    lines = [f"{imei}, as it was at {_text(asked)}", ""]
    for row in rows:
        many = f" ({row['checks']:,} checks up to {second(row['last'])})" if row["checks"] > 1 else ""
        lines.append(f"{second(row['first'])}{many}: {row['status']}")
        by = f"rule {row['rule']}" if str(row["rule"]).isdigit() else f"the policy's {row['rule']}"
        lines.append(f"  by {by}{', list ' + row['list'] if row['list'] else ''}")
        lines.append(
            f"  asked by {row['origin_host'] or '-'} ({row['protocol']}, peer {row['peer'] or '-'}), SIM {row['subscriber'] or '-'}"
        )
        lines += [f"  observed only: {row['observed']}"] if row["observed"] else []
    for each in sorted(lists, key=lambda each: not each["decided"]):
        lines += [
            "",
            f"list {each['list']}{' (it decided)' if each['decided'] else ''}",
            *(f"  {line}" for line in _of_list(each)),
        ]
    lines += ["", "since then"]
    lines += [
        f"  {second(event.time)} {event.who} applied a changed configuration (record {event.number}): {event.detail}"
        for event in found.reloads
    ]
    lines += [
        f"  {second(event['time'])} {event['who']}: {event['what']} {each['list']} ({_record(event['chain'], event['number'])})"
        for each in lists
        for event in each["since"]
    ]
    first, *more = found.now.as_text().splitlines()
    lines += [f"  now, by file and store: {first.partition(': ')[2]}", *(f"  {line}" for line in more)]
    return "\n".join(map(printable, lines))  # a name from the wire is not to look like a line of ours


def _record(chain: str, number: int | None) -> str:
    """Format the number of a history record, with its chain unless it is the main chain."""
    return f"record {number}" if chain == MAIN else f"{chain} record {number}"


def _of_list(each: Mapping[str, Any]) -> list[str]:
    if not each["loaded"]:
        return ["it had not been loaded, or the history does not reach back so far"]
    what = f"serial {each['serial']}" if each["serial"] else "changed by hand"
    lines = [
        f"{what}, in force since {second(each['time'])} by {each['what']} of {each['who']} ({_record(each['chain'], each['record'])})"
    ]
    if each["loaded_at"] != each["time"]:
        lines.append(f"loaded {second(each['loaded_at'])} by {each['loaded_by']}")
    if each["signers"]:
        lines.append(f"signed by {', '.join(each['signers'])}, issued {second(each['issued'])}")
    if each["rows"] is None:
        return [*lines, "its content is no longer kept, or no entry was requested"]
    for row in each["rows"]:
        pair = f" with SIM {row['imsi']}" if row["imsi"] else ""
        end = f", reported {row['date']}" if row["date"] else ""
        end += f", until {row['until']}" if row["until"] else ""
        lines.append(
            f"row {row['row']}{pair}: reason {row['reason'] or '-'}{end}; put there by {row['who']}, {second(row['time'])}"
        )
    return lines if each["rows"] else [*lines, "it did not name the device"]

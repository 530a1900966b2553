"""Hash chains of the history. Each record has the digest of the previous one, so that changes are detected.

A record is a line of JSON with its number, `before` (SHA-256 of the text of the previous record) and an event. Rows that a
register feeds are in a chain of their own, FEED, which is limited in size. Each of its records has in `after` the number of
the newest record of MAIN at that time. Anchors in MAIN hold the head of FEED, so MAIN proves FEED.

Refusals are not in a chain, because anyone can cause any number of them. They are folded by day, reason, sender and list. The
sum of their digests proves them, and the oldest folds are deleted.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from hashlib import sha256
from typing import Any

from eir.errors import StoreError
from eir.lists.pages.pages import digest_text
from eir.lists.record.store import ANCHOR, FEED, MAIN, REFUSED, Event, Fold, Ledger, ListState, Record

CLAIMS = " (claims {} {}, unverified)"
"""End of the detail of a refusal whose manifest was never verified: the list and serial that the manifest claims."""
_CLAIMED = re.compile(r" \(claims (\S+) [0-9]+, unverified\)\Z")
FOLDS_MAX = 1_000
"""Maximum number of stored folds; above it, the oldest tenth is deleted."""
CONTENT_DIGITS = 32
"""Number of hexadecimal digits of a list's content digest in the record of the event that led to it."""
_EVENT_FIELDS = tuple(field.name for field in fields(Event))
_RECORD_FIELDS = tuple(name for name in _EVENT_FIELDS if name not in {"number", "count", "first", "chain"})
_TEXTS = ("time", "who", "what", "outcome", "detail")


def record_digest(text: str) -> str:
    """Return the digest of a record, which the next record has as `before`."""
    return sha256(text.encode()).hexdigest()


def list_of(event: Event) -> str | None:
    """Return the name of the list of an event, or the unverified list name of a rejected release."""
    claim = _CLAIMED.search(event.detail) if event.list is None else None
    return claim[1] if claim else event.list


# Writing


def append_events(ledger: Ledger, events: Iterable[Event], after: int | None = None) -> tuple[list[Record], Ledger]:
    """Build the records of new events of a chain. Return the records and the updated ledger.

    For records of FEED, `after` is the number of the newest record of MAIN.
    """
    records, digest, size = [], ledger.digest, ledger.bytes
    place = {} if after is None else {"after": after}
    for number, event in enumerate(events, ledger.number + 1):
        text = _json({"number": number, "before": digest, **place, **_event_fields(event)})
        records.append(Record(number, text))
        digest, size = record_digest(text), size + len(text)
    return records, replace(ledger, number=ledger.number + len(records), digest=digest, bytes=size)


def complete_anchor(anchor: Event, feed: Ledger) -> tuple[Event | None, Ledger]:
    """Add the head of the feed's chain to an anchor; return the anchor and the new ledger of the feed's chain.

    If the last anchor has the same head, None is returned instead of the anchor.
    """
    after = replace(feed, anchored=feed.number, anchored_at=anchor.time)
    return None if feed.number == feed.anchored else replace(anchor, head=feed.number, digest=feed.digest), after


def fold_key(event: Event) -> str:
    """Return the key of the fold in which a rejection is counted."""
    parts = (event.time[:10], list_of(event) or "", event.who, event.detail.partition(":")[0])
    return sha256("\0".join(parts).encode()).hexdigest()[:32]


def fold_refusal(ledger: Ledger, event: Event, before: str | None) -> tuple[Fold, Ledger]:
    """Add a rejection to its fold; return the new fold and the ledger after it.

    `before` is the text of the present fold; None for the first rejection.
    """
    count, first = 0, event.time
    if before is not None:
        was = _read_fold(before)
        count, first = was["count"], was["first"]
    text = _json(
        {"at": ledger.refused + 1, "after": ledger.number, "count": count + 1, "first": first, **_event_fields(event)}
    )
    total = int(ledger.refusals, 16) + _number(text) - (0 if before is None else _number(before))
    return Fold(fold_key(event), text), replace(ledger, refused=ledger.refused + 1, refusals=digest_text(total))


def excess_folds(folds: Sequence[Fold]) -> Sequence[Fold]:
    """Return the oldest folds that must be deleted because there are more than FOLDS_MAX."""
    if len(folds) <= FOLDS_MAX:
        return ()
    return sorted(folds, key=lambda fold: int(_read_fold(fold.text)["at"]))[: len(folds) - FOLDS_MAX + FOLDS_MAX // 10]


def with_folds(ledger: Ledger, folds: Iterable[Fold], times: int = 1) -> Ledger:
    """Return the ledger after these folds were added, or removed if `times` is -1."""
    texts = [fold.text for fold in folds]
    refused = max([ledger.refused, *(_read_fold(text)["at"] for text in texts)])
    return replace(
        ledger, refused=refused, refusals=digest_text(int(ledger.refusals, 16) + times * sum(map(_number, texts)))
    )


def exchange_folds(
    there: Sequence[Fold], given: Sequence[Fold], *, exact: bool
) -> tuple[Sequence[Fold], Sequence[Fold]]:
    """Compare the stored folds (`there`) with a writer's folds (`given`); return folds to delete, and to store.

    If `exact` is set, they replace all stored folds; otherwise the fold with the higher count stays.
    """
    if exact:
        return there, given
    known = {fold.key: fold for fold in there}
    new = [fold for fold in given if fold.key not in known or _count(fold) > _count(known[fold.key])]
    return [known[fold.key] for fold in new if fold.key in known], new


def rewritten_ledger(ledger: Ledger, first: Record | None, last: Record | None, size: int) -> Ledger:
    """Return the ledger of a chain after a rewrite.

    `first`: first record of the chain; None if it did not change. `last`: last record of the chain. `size`: bytes of
    all records.
    """
    number, digest = (0, Ledger().digest) if last is None else (last.number, record_digest(last.text))
    return replace(
        ledger, first=ledger.first if first is None else first.number, number=number, digest=digest, bytes=size
    )


def overdue_records(records: Sequence[Record], ledger: Ledger, until: str, bytes_max: int | None) -> Sequence[Record]:
    """Return the oldest records that must be deleted: older than `until`, or too many bytes (`bytes_max`).

    The newest record of the chain always stays.
    """
    too_much = 0 if bytes_max is None else ledger.bytes - bytes_max
    for at, record in enumerate(records):
        if record.number == ledger.number or (too_much <= 0 and read_record(record).time >= until):
            return records[:at]
        too_much -= len(record.text)
    return records


def trim_records(
    ledger: Ledger, gone: Sequence[Record], event: Event | None, after: int | None = None
) -> tuple[Sequence[Record], Ledger]:
    """Build the record about a deletion of records; return it and the chain's ledger after the deletion.

    Without `event`, there is no record. `after` is that of `append_events`.
    """
    first, last = gone[0].number, gone[-1].number
    ledger = replace(ledger, first=last + 1, bytes=ledger.bytes - sum(len(record.text) for record in gone))
    if event is None:
        return (), ledger
    detail = f"{event.detail}: records {first} to {last} are forgotten, the last of {read_record(gone[-1]).time}"
    return append_events(ledger, [replace(event, detail=detail)], after)


# Reading


def read_record(record: Record, chain: str = MAIN) -> Event:
    """Parse a record and return its event.

    Raises:
        StoreError: `corrupt`.
    """
    return _event(_read(record.text), number=record.number, chain=chain)


def place_of(record: Record) -> int:
    """Return the number of the record of MAIN after which a record of FEED was written.

    Raises:
        StoreError: `corrupt`.
    """
    place = _read(record.text).get("after")
    if type(place) is not int:
        raise StoreError("corrupt", f"record {record.number} of the feed is not whole")
    return place


def events_of(
    records: Iterable[Record],
    folds: Iterable[Fold],
    name: str | None = None,
    since: str | None = None,
    limit: int | None = None,
    *,
    fed: Sequence[Record] = (),
) -> list[Event]:
    """Return the newest `limit` events of records and rejections, in the order in which they happened.

    Args:
        records: records of MAIN.
        folds: folded refusals.
        name: only events of this list.
        since: only events from this time on.
        limit: maximum number of events; None for all.
        fed: records of FEED.

    Raises:
        StoreError: `corrupt`.
    """
    placed = [((record.number, 0, "", 0), read_record(record)) for record in records]
    texts = [(fold.text, _read_fold(fold.text)) for fold in folds]
    refused = [
        (
            fields["after"],
            fields["at"],
            _event(fields, count=fields["count"], first=fields["first"] if fields["count"] > 1 else None),
        )
        for _, fields in sorted(texts, key=lambda each: (each[1]["after"], each[1]["at"]))
    ]
    rows = [(place_of(record), record.number, read_record(record, FEED)) for record in sorted(fed)]
    # Refusals after the same record have an order, and so have rows of a feed; between the two kinds, the time decides.
    for sequence in (refused, rows):
        latest = ""
        for after, at, event in sequence:
            latest = max(latest, event.time)
            placed.append(((after, 1, latest, at), event))
    selected = [
        each
        for each in placed
        if (name is None or list_of(each[1]) == name) and (since is None or each[1].time >= since)
    ]
    events = [event for _, event in sorted(selected, key=lambda each: each[0])]
    return events if limit is None else events[-limit:]


def readable_events(records: Iterable[Record], chain: str = MAIN) -> list[Event]:
    """Return the events of the records that can be parsed; damaged records are skipped."""
    events: list[Event] = []
    for record in records:
        with suppress(StoreError):
            events.append(read_record(record, chain))
    return events


def newest_change(events: Sequence[Event]) -> Event | None:
    """Return the newest event that is not a rejection, which is a list's newest change."""
    return next((event for event in reversed(events) if not is_refusal(event)), None)


def is_of(event: Event, state: ListState) -> bool:
    """Return True if the event led to this state of a list.

    Events of old versions do not have the content digest, so the digest of their release is compared.
    """
    if event.content is not None:
        return event.content == content_of(state)
    return event.digest in {None, state.release_digest}


def content_of(state: ListState) -> str:
    """Return the first digits of a list's content digest, in the form that events contain."""
    return state.content_digest[:CONTENT_DIGITS]


def is_linked(records: Sequence[Record], before: str | None) -> bool:
    """Return True if the records have no gap and each has the digest of the previous record.

    `before` is the digest that the first record must have; None for any.
    """
    start = records[0].number
    for at, (number, text) in enumerate(records, start):
        if number != at or _record_fault(number, text, before):
            return False
        before = record_digest(text)
    return True


def chain_faults(records: Iterable[Record], folds: Iterable[Fold], ledger: Ledger) -> Iterator[str]:
    """Yield the faults of a chain as messages; a valid chain has none.

    `records`: all stored records, oldest first.
    """
    expected, before = ledger.first, None if ledger.first > 1 else Ledger().digest
    for number, text in records:
        if number > expected:
            yield _missing(expected, number - 1)
            before = None  # the digest of a missing record is unknown
        if fault := _record_fault(number, text, before):
            yield fault
        expected, before = number + 1, record_digest(text)
    if expected <= ledger.number:
        yield _missing(expected, ledger.number)
    elif expected > ledger.number + 1:
        yield f"records after {ledger.number} were not written by this program"
    elif before not in {None, ledger.digest}:
        yield f"record {ledger.number}, the newest, was changed"
    if digest_text(sum(_number(fold.text) for fold in folds)) != ledger.refusals:
        yield "refusals were changed or removed"


def feed_faults(records: Iterable[Record], fed: Iterable[Record], ledger: Ledger) -> Iterator[str]:
    """Yield the faults of the feed's chain that anchors in MAIN reveal, as messages.

    `records`: those of MAIN. `fed` and `ledger`: those of the feed's chain.
    """
    anchors = {
        event.head: (event.number, event.digest)
        for event in readable_events(records)
        if event.what == ANCHOR and event.head is not None
    }
    for number, text in fed:
        anchor, digest = anchors.get(number, (None, None))
        if anchor is not None and digest != record_digest(text):
            yield f"record {number} of the feed is not the one that record {anchor} holds"
    newest = max(anchors, default=0)
    if newest > ledger.number:
        yield f"records of the feed up to {newest} are missing: record {anchors[newest][0]} holds that one"
    elif newest < ledger.first and ledger.first > 1:
        yield f"records of the feed before {ledger.first} were removed: no record of the history holds one that came later"


def _record_fault(number: int, text: str, before: str | None) -> str:
    """Return a message about the fault of a record, or an empty text if the record is valid.

    `before` is the digest of the previous record; None if it is unknown.
    """
    try:
        fields = _read(text)
    except StoreError:
        return f"record {number} was changed: it cannot be read"
    if fields.get("number") != number:
        return f"record {fields.get('number', 'without a number')} stands where record {number} was"
    if before in {None, fields.get("before")}:
        return ""
    return (
        f"record {number - 1} is not the one that record {number} was written after: it was changed"
        if number > 1
        else "record 1 was changed"
    )


def _missing(first: int, last: int) -> str:
    return f"record {first} is missing" if first == last else f"records {first} to {last} are missing"


# Texts


def _event_fields(event: Event) -> dict[str, Any]:
    return {name: value for name in _RECORD_FIELDS if (value := getattr(event, name)) is not None}


def _json(fields: dict[str, Any]) -> str:
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":"))


def _count(fold: Fold) -> int:
    return int(_read_fold(fold.text)["count"])


def _number(text: str) -> int:
    return int(record_digest(text), 16)


def _read(text: str) -> dict[str, Any]:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StoreError("corrupt", f"a record of the history is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise StoreError("corrupt", "a record of the history is not a JSON object")
    return fields


def _read_fold(text: str) -> dict[str, Any]:
    fields = _read(text)
    if (
        any(type(fields.get(name)) is not int for name in ("count", "at", "after"))
        or type(fields.get("first")) is not str
    ):
        raise StoreError("corrupt", "a refusal of the history is not whole")
    return fields


def _event(fields: dict[str, Any], **more: Any) -> Event:
    known = {key: value for key, value in fields.items() if key in _EVENT_FIELDS}
    try:
        event = Event(**{**known, **more})
    except TypeError as error:
        raise StoreError("corrupt", f"a record of the history is not whole: {error}") from error
    if not all(isinstance(getattr(event, name), str) for name in _TEXTS):
        raise StoreError("corrupt", "a record of the history has a value of a wrong type")
    return event


def is_refusal(event: Event) -> bool:
    """Return True if the event is a rejection. Rejections are counted in folds; other events are records."""
    return event.outcome == REFUSED


def is_counted(event: Event) -> bool:
    """Return True if the event is an outcome of a release or of a change of a list."""
    return event.list is not None or is_refusal(event)

"""Hash chains of the history. Each record contains the digest of the record before it, so that a later change is detected.

A record is a line of JSON with its number, `before` (SHA-256 of the text of the previous record) and an event. There are two
chains. Rows that a register feeds are in the chain FEED, which is limited in size. All other events are in the chain MAIN. Each
record of FEED has in `after` the number of the newest record of MAIN at that time. Anchors in MAIN contain number and digest of
the newest record of FEED, so MAIN proves FEED.

Refusals are not in a chain, because anyone can cause any number of refusals. A fold counts the refusals with the same day, reason,
sender and list. The ledger of MAIN has the sum of the folds' digests, which reveals a change of a fold. The oldest folds are deleted.
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
"""End of the detail of a refusal whose manifest was not verified: list and serial in the manifest."""
_CLAIMED = re.compile(r" \(claims (\S+) [0-9]+, unverified\)\Z")
FOLDS_MAX = 1_000
"""Number of stored folds above which the oldest tenth is deleted."""
CONTENT_DIGITS = 32
"""Number of hexadecimal digits of a list's content digest in an event."""
_EVENT_FIELDS = tuple(field.name for field in fields(Event))
_RECORD_FIELDS = tuple(name for name in _EVENT_FIELDS if name not in {"number", "count", "first", "chain"})
"""Fields of an event in its record or fold."""
_TEXTS = ("time", "who", "what", "outcome", "detail")
"""Fields of an event that must be texts."""


def record_digest(text: str) -> str:
    """Return the digest of a record. The next record of the chain contains this digest as `before`."""
    return sha256(text.encode()).hexdigest()


def list_of(event: Event) -> str | None:
    """Return the name of the list in an event; for a refusal of an unverified manifest, the name that the manifest claims."""
    if event.list is not None:
        return event.list
    claim = _CLAIMED.search(event.detail)
    return claim[1] if claim else None


# Writing


def append_events(ledger: Ledger, events: Iterable[Event], after: int | None = None) -> tuple[list[Record], Ledger]:
    """Build the records of new events for a chain of the history; return them, and the new ledger (end) of the chain.

    `after`: number of the newest record of MAIN, for records of FEED.
    """
    records: list[Record] = []
    number, digest, size = ledger.number, ledger.digest, ledger.bytes
    for event in events:
        number += 1
        fields: dict[str, Any] = {"number": number, "before": digest}
        if after is not None:
            fields["after"] = after
        text = _json({**fields, **_event_fields(event)})
        records.append(Record(number, text))
        digest = record_digest(text)
        size += len(text)
    return records, replace(ledger, number=number, digest=digest, bytes=size)


def complete_anchor(anchor: Event, feed: Ledger) -> tuple[Event | None, Ledger]:
    """Complete an anchor (record in the chain MAIN) with data about the chain FEED; return the anchor and the new ledger of FEED.

    The anchor gets the number and the digest of FEED's newest record. By anchors the records of FEED are verified.

    If the last anchor has the same record, the result has None in place of the anchor.
    """
    new_ledger = replace(feed, anchored=feed.number, anchored_at=anchor.time)
    if feed.number == feed.anchored:
        return None, new_ledger
    return replace(anchor, head=feed.number, digest=feed.digest), new_ledger


def fold_key(event: Event) -> str:
    """Return the key of the fold that counts a refusal. A fold counts all refusals with the same day, list, sender and reason."""
    parts = (event.time[:10], list_of(event) or "", event.who, event.detail.partition(":")[0])
    return sha256("\0".join(parts).encode()).hexdigest()[:32]


def fold_refusal(ledger: Ledger, event: Event, before: str | None) -> tuple[Fold, Ledger]:
    """Count a refusal in its fold (count of equal refusals of one day); return the new fold, and the new ledger of the chain MAIN.

    `before` is the text of the present fold; None for the first refusal.
    """
    refused = ledger.refused + 1
    total = int(ledger.refusals, 16)
    count, first = 1, event.time
    if before is not None:
        total -= _digest_number(before)
        present = _read_fold(before)
        count, first = present["count"] + 1, present["first"]
    fields = {"at": refused, "after": ledger.number, "count": count, "first": first}
    text = _json({**fields, **_event_fields(event)})
    total += _digest_number(text)
    return Fold(fold_key(event), text), replace(ledger, refused=refused, refusals=digest_text(total))


def excess_folds(folds: Sequence[Fold]) -> Sequence[Fold]:
    """Return the oldest folds (counts of equal refusals) for deletion, if there are more than FOLDS_MAX; otherwise no fold.

    After the deletion, the number of folds is a tenth below FOLDS_MAX.
    """
    excess = len(folds) - FOLDS_MAX
    if excess <= 0:
        return ()
    oldest_first = sorted(folds, key=lambda fold: int(_read_fold(fold.text)["at"]))
    return oldest_first[: excess + FOLDS_MAX // 10]


def replace_folds(ledger: Ledger, removed: Sequence[Fold], added: Sequence[Fold] = ()) -> Ledger:
    """Return the ledger of the chain MAIN after the folds (counts of equal refusals) `removed` are deleted and `added` are stored."""
    refused = ledger.refused
    for fold in (*removed, *added):
        refused = max(refused, _read_fold(fold.text)["at"])
    total = int(ledger.refusals, 16) - _digest_sum(removed) + _digest_sum(added)
    return replace(ledger, refused=refused, refusals=digest_text(total))


def compare_folds(
    stored: Sequence[Fold], given: Sequence[Fold], *, exact: bool
) -> tuple[Sequence[Fold], Sequence[Fold]]:
    """Compare the stored folds (counts of equal refusals) with the given ones; return the folds to delete, and the folds to store.

    With `exact` the given folds replace all stored folds. Otherwise, of two folds with the same key, the fold with the
    higher count stays.
    """
    if exact:
        return stored, given
    by_key = {fold.key: fold for fold in stored}
    removed, added = [], []
    for fold in given:
        present = by_key.get(fold.key)
        if present is None:
            added.append(fold)
        elif _count(fold) > _count(present):
            removed.append(present)
            added.append(fold)
    return removed, added


def rewritten_ledger(ledger: Ledger, first: Record | None, last: Record | None, size: int) -> Ledger:
    """Return the ledger (size and ends) of a chain of the history after its records were rewritten.

    Args:
        ledger: ledger before the rewrite.
        first: first record of the chain; None if it did not change.
        last: last record of the chain; None if the chain is empty.
        size: bytes of all records.
    """
    first_number = ledger.first if first is None else first.number
    number, digest = 0, Ledger().digest
    if last is not None:
        number, digest = last.number, record_digest(last.text)
    return replace(ledger, first=first_number, number=number, digest=digest, bytes=size)


def overdue_records(records: Sequence[Record], ledger: Ledger, until: str, bytes_max: int | None) -> Sequence[Record]:
    """Return the records to delete, oldest first: all records before the time `until`, and more while the chain exceeds `bytes_max`.

    The newest record of the chain always stays.
    """
    excess_bytes = 0 if bytes_max is None else ledger.bytes - bytes_max
    for count, record in enumerate(records):
        is_newest = record.number == ledger.number
        if is_newest or (excess_bytes <= 0 and read_record(record).time >= until):
            return records[:count]
        excess_bytes -= len(record.text)
    return records


def trim_records(
    ledger: Ledger, overdue: Sequence[Record], event: Event | None, after: int | None = None
) -> tuple[Sequence[Record], Ledger]:
    """Return the record that documents the deletion of a chain's oldest records, and the ledger after this deletion.

    Without `event`, there is no record. `after` is that of `append_events`.
    """
    first, last = overdue[0], overdue[-1]
    overdue_bytes = sum(len(record.text) for record in overdue)
    ledger = replace(ledger, first=last.number + 1, bytes=ledger.bytes - overdue_bytes)
    if event is None:
        return (), ledger
    numbers = f"records {first.number} to {last.number}"
    detail = f"{event.detail}: {numbers} are forgotten, the last of {read_record(last).time}"
    return append_events(ledger, [replace(event, detail=detail)], after)


# Reading


def read_record(record: Record, chain: str = MAIN) -> Event:
    """Parse a record of a chain, and return its event.

    Raises:
        StoreError: `corrupt`.
    """
    fields = _read(record.text)
    return _event(fields, number=record.number, chain=chain)


def preceding_main_number(record: Record) -> int:
    """Return the field `after` of a FEED record: the number that the newest MAIN record had when the FEED record was written.

    Raises:
        StoreError: `corrupt`.
    """
    number = _read(record.text).get("after")
    if type(number) is not int:
        raise StoreError("corrupt", f"record {record.number} of the feed is not whole")
    return number


def events_of(
    records: Iterable[Record],
    folds: Iterable[Fold],
    name: str | None = None,
    since: str | None = None,
    limit: int | None = None,
    *,
    fed: Sequence[Record] = (),
) -> list[Event]:
    """Return the newest `limit` events from records and folds (counts of refusals), in the order in which they happened.

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
    refusals = [_refusal(fold) for fold in folds]
    refusals.sort(key=lambda refusal: refusal[:2])
    rows = [(preceding_main_number(record), record.number, read_record(record, FEED)) for record in sorted(fed)]
    # Sort keys: number of the record of MAIN; 0 for that record, 1 for events after it; time and order of these events.
    # The order of refusals is known, and that of rows. Between a refusal and a row, the time decides.
    keyed = [((record.number, 0, "", 0), read_record(record)) for record in records]
    for sequence in (refusals, rows):
        latest = ""
        for after, order, event in sequence:
            latest = max(latest, event.time)
            keyed.append(((after, 1, latest, order), event))
    keyed.sort(key=lambda pair: pair[0])
    events = []
    for _, event in keyed:
        if (name is None or list_of(event) == name) and (since is None or event.time >= since):
            events.append(event)
    return events if limit is None else events[-limit:]


def _refusal(fold: Fold) -> tuple[int, int, Event]:
    """Decode a fold (count of equal refusals) to an event.

    Returns:
        Number of MAIN's newest record at the last refusal, number of this refusal among all refusals, and its event.
    """
    fields = _read_fold(fold.text)
    count = fields["count"]
    first = fields["first"] if count > 1 else None
    return fields["after"], fields["at"], _event(fields, count=count, first=first)


def readable_events(records: Iterable[Record], chain: str = MAIN) -> list[Event]:
    """Return the events of the records that can be parsed; skip damaged records."""
    events: list[Event] = []
    for record in records:
        with suppress(StoreError):
            events.append(read_record(record, chain))
    return events


def newest_change(events: Sequence[Event]) -> Event | None:
    """Return the newest event that is not a refusal. Among the events of one list, this is the list's newest change."""
    return next((event for event in reversed(events) if not is_refusal(event)), None)


def is_event_of(event: Event, state: ListState) -> bool:
    """Return True if this event has put this state of a list in force.

    An event of an old version has no content digest, so the digest of its release is compared.
    """
    if event.content is not None:
        return event.content == content_of(state)
    return event.digest in {None, state.release_digest}


def content_of(state: ListState) -> str:
    """Return the first digits of the content digest in a list's state, in the form of Event.content."""
    return state.content_digest[:CONTENT_DIGITS]


def is_linked(records: Sequence[Record], before: str | None) -> bool:
    """Return True if the records have consecutive numbers, and each has the digest of the record before it.

    `before` is the digest that the first record must have; None for any.
    """
    first = records[0].number
    for expected, (number, text) in enumerate(records, first):
        if number != expected or _record_fault(number, text, before):
            return False
        before = record_digest(text)
    return True


def chain_faults(records: Iterable[Record], folds: Iterable[Fold], ledger: Ledger) -> Iterator[str]:
    """Verify a chain of the history; yield a message about each fault.

    `records`: all stored records, oldest first.
    """
    expected = ledger.first
    before = Ledger().digest if ledger.first <= 1 else None
    for number, text in records:
        if number > expected:
            yield _missing_text(expected, number - 1)
            before = None  # the digest of a missing record is unknown
        fault = _record_fault(number, text, before)
        if fault:
            yield fault
        expected, before = number + 1, record_digest(text)
    if expected <= ledger.number:
        yield _missing_text(expected, ledger.number)
    elif expected > ledger.number + 1:
        yield f"records after {ledger.number} were not written by this program"
    elif before not in {None, ledger.digest}:
        yield f"record {ledger.number}, the newest, was changed"
    if digest_text(_digest_sum(folds)) != ledger.refusals:
        yield "refusals were changed or removed"


def feed_faults(records: Iterable[Record], fed: Iterable[Record], ledger: Ledger) -> Iterator[str]:
    """Verify the chain FEED by its anchors: records in the chain MAIN with digests of FEED records. Yield a message about each fault.

    Args:
        records: records of MAIN.
        fed: records of FEED.
        ledger: ledger of FEED.
    """
    anchors: dict[int, tuple[int | None, str | None]] = {}
    for event in readable_events(records):
        if event.what == ANCHOR and event.head is not None:
            anchors[event.head] = event.number, event.digest
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
    """Verify a record of a chain; return a message about its fault, or an empty text.

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
    if number > 1:
        return f"record {number - 1} is not the one that record {number} was written after: it was changed"
    return "record 1 was changed"


def _missing_text(first: int, last: int) -> str:
    return f"record {first} is missing" if first == last else f"records {first} to {last} are missing"


# Texts


def _event_fields(event: Event) -> dict[str, Any]:
    values = {name: getattr(event, name) for name in _RECORD_FIELDS}
    return {name: value for name, value in values.items() if value is not None}


def _json(fields: dict[str, Any]) -> str:
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":"))


def _count(fold: Fold) -> int:
    return int(_read_fold(fold.text)["count"])


def _digest_number(text: str) -> int:
    return int(record_digest(text), 16)


def _digest_sum(folds: Iterable[Fold]) -> int:
    return sum(_digest_number(fold.text) for fold in folds)


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
    are_integers = all(type(fields.get(name)) is int for name in ("count", "at", "after"))
    if not are_integers or type(fields.get("first")) is not str:
        raise StoreError("corrupt", "a refusal of the history is not whole")
    return fields


def _event(fields: dict[str, Any], **more: Any) -> Event:
    """Build an event from the JSON fields of a record or of a fold (count of equal refusals). Keyword arguments replace fields."""
    known = {name: value for name, value in fields.items() if name in _EVENT_FIELDS}
    known |= more
    try:
        event = Event(**known)
    except TypeError as error:
        raise StoreError("corrupt", f"a record of the history is not whole: {error}") from error
    if not all(isinstance(getattr(event, name), str) for name in _TEXTS):
        raise StoreError("corrupt", "a record of the history has a value of a wrong type")
    return event


def is_refusal(event: Event) -> bool:
    """Return True if the event is a refusal. Refusals are counted in folds; other events become records of a chain."""
    return event.outcome == REFUSED


def is_counted(event: Event) -> bool:
    """Return True if the metric `eir_releases_total` counts the event: a refusal, or an event of a list."""
    return event.list is not None or is_refusal(event)

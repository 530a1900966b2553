"""The history as two chains: each record holds the digest of the one before it, so that none can be changed, removed or moved unseen.

A record is a line of JSON with its number, `before` (the SHA-256 of the text of the record before it) and an event. Rows that a
register feeds are in a chain of their own, FEED, which is limited in size. Each of its records holds as `after` the number of the record
of MAIN that was the newest then, and anchors in MAIN hold its head, which proves FEED by MAIN.

Refusals are in no chain, since anyone may cause any number of them: they are folded by day, reason, sender and list, the sum of their
digests proves them, and the oldest folds go.
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
"""Ends the detail of a refusal whose manifest was never verified: the list and the serial that it names all the same."""
_CLAIMED = re.compile(r" \(claims (\S+) [0-9]+, unverified\)\Z")
FOLDS_MAX = 1_000
"""Folded refusals that are kept; beyond, a tenth of them goes, the oldest first."""
CONTENT_DIGITS = 32
"""Hexadecimal digits of the digest of a list's content, in the record of the event that made it."""
_EVENT_FIELDS = tuple(field.name for field in fields(Event))
_SAID = tuple(name for name in _EVENT_FIELDS if name not in {"number", "count", "first", "chain"})
_TEXTS = ("time", "who", "what", "outcome", "detail")


def record_digest(text: str) -> str:
    """The digest that the next record holds as `before`."""
    return sha256(text.encode()).hexdigest()


def about(event: Event) -> str | None:
    """The list that an event is about, or that a refused release claimed to be for."""
    found = _CLAIMED.search(event.detail) if event.list is None else None
    return found[1] if found else event.list


# Writing


def appended(ledger: Ledger, events: Iterable[Event], after: int | None = None) -> tuple[list[Record], Ledger]:
    """The records that events become, and the ledger after them. `after`: number of the newest record of MAIN, in records of FEED."""
    records, digest, size = [], ledger.digest, ledger.bytes
    place = {} if after is None else {"after": after}
    for number, event in enumerate(events, ledger.number + 1):
        text = _json({"number": number, "before": digest, **place, **_said(event)})
        records.append(Record(number, text))
        digest, size = record_digest(text), size + len(text)
    return records, replace(ledger, number=ledger.number + len(records), digest=digest, bytes=size)


def completed(anchor: Event, feed: Ledger) -> tuple[Event | None, Ledger]:
    """Return an anchor with the head of the feed's chain, and the ledger of that chain after it.

    The anchor is None if the last one holds the same head.
    """
    after = replace(feed, anchored=feed.number, anchored_at=anchor.time)
    return None if feed.number == feed.anchored else replace(anchor, head=feed.number, digest=feed.digest), after


def fold_key(event: Event) -> str:
    """Under which a refusal is folded."""
    parts = (event.time[:10], about(event) or "", event.who, event.detail.partition(":")[0])
    return sha256("\0".join(parts).encode()).hexdigest()[:32]


def folded(ledger: Ledger, event: Event, before: str | None) -> tuple[Fold, Ledger]:
    """The fold that a refusal makes of the one before it (None: there was none), and the ledger after it."""
    count, first = 0, event.time
    if before is not None:
        was = _read_fold(before)
        count, first = was["count"], was["first"]
    text = _json({"at": ledger.refused + 1, "after": ledger.number, "count": count + 1, "first": first, **_said(event)})
    total = int(ledger.refusals, 16) + _number(text) - (0 if before is None else _number(before))
    return Fold(fold_key(event), text), replace(ledger, refused=ledger.refused + 1, refusals=digest_text(total))


def left_out(folds: Sequence[Fold]) -> Sequence[Fold]:
    """The folds to drop if there are too many."""
    if len(folds) <= FOLDS_MAX:
        return ()
    return sorted(folds, key=lambda fold: int(_read_fold(fold.text)["at"]))[: len(folds) - FOLDS_MAX + FOLDS_MAX // 10]


def with_folds(ledger: Ledger, folds: Iterable[Fold], times: int = 1) -> Ledger:
    """The ledger with these folds added, or taken out (`times` -1)."""
    texts = [fold.text for fold in folds]
    refused = max([ledger.refused, *(_read_fold(text)["at"] for text in texts)])
    return replace(
        ledger, refused=refused, refusals=digest_text(int(ledger.refusals, 16) + times * sum(map(_number, texts)))
    )


def exchanged(there: Sequence[Fold], given: Sequence[Fold], *, exact: bool) -> tuple[Sequence[Fold], Sequence[Fold]]:
    """The folds that go and those that come when folds are given.

    If `exact`, they replace those that are there; else the one with the higher count stays.
    """
    if exact:
        return there, given
    known = {fold.key: fold for fold in there}
    new = [fold for fold in given if fold.key not in known or _count(fold) > _count(known[fold.key])]
    return [known[fold.key] for fold in new if fold.key in known], new


def rewritten(ledger: Ledger, first: Record | None, last: Record | None, size: int) -> Ledger:
    """The ledger after a chain was rewritten. `first`: where it begins from now on; None: as before."""
    number, digest = (0, Ledger().digest) if last is None else (last.number, record_digest(last.text))
    return replace(
        ledger, first=ledger.first if first is None else first.number, number=number, digest=digest, bytes=size
    )


def overdue(records: Sequence[Record], ledger: Ledger, until: str, bytes_max: int | None) -> Sequence[Record]:
    """The oldest records that are to go: those before a time, or while all take more than `bytes_max`.

    The newest one stays.
    """
    too_much = 0 if bytes_max is None else ledger.bytes - bytes_max
    for at, record in enumerate(records):
        if record.number == ledger.number or (too_much <= 0 and read_record(record).time >= until):
            return records[:at]
        too_much -= len(record.text)
    return records


def trimmed(
    ledger: Ledger, gone: Sequence[Record], event: Event | None, after: int | None = None
) -> tuple[Sequence[Record], Ledger]:
    """The record which tells that these are forgotten, if an event is to, and the ledger after it. `after`: as in `appended`."""
    first, last = gone[0].number, gone[-1].number
    ledger = replace(ledger, first=last + 1, bytes=ledger.bytes - sum(len(record.text) for record in gone))
    if event is None:
        return (), ledger
    detail = f"{event.detail}: records {first} to {last} are forgotten, the last of {read_record(gone[-1]).time}"
    return appended(ledger, [replace(event, detail=detail)], after)


# Reading


def read_record(record: Record, chain: str = MAIN) -> Event:
    """The event of a record. Raises StoreError (corrupt)."""
    return _event(_read(record.text), number=record.number, chain=chain)


def place_of(record: Record) -> int:
    """Return the number of the record of MAIN after which a record of FEED was written. Raises StoreError (corrupt)."""
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
    """The records and refusals asked for, in the order in which they happened: the newest `limit` events.

    `name`: of the list that they are about; `since`: from that time on; `fed`: records of FEED. Raises StoreError (corrupt).
    """
    found = [((record.number, 0, "", 0), read_record(record)) for record in records]
    texts = [(fold.text, _read_fold(fold.text)) for fold in folds]
    refused = [
        (
            said["after"],
            said["at"],
            _event(said, count=said["count"], first=said["first"] if said["count"] > 1 else None),
        )
        for _, said in sorted(texts, key=lambda each: (each[1]["after"], each[1]["at"]))
    ]
    rows = [(place_of(record), record.number, read_record(record, FEED)) for record in sorted(fed)]
    # Of what came after the same record, the order within refusals and within rows is known, and between them the time.
    for sequence in (refused, rows):
        latest = ""
        for after, at, event in sequence:
            latest = max(latest, event.time)
            found.append(((after, 1, latest, at), event))
    kept = [
        each for each in found if (name is None or about(each[1]) == name) and (since is None or each[1].time >= since)
    ]
    events = [event for _, event in sorted(kept, key=lambda each: each[0])]
    return events if limit is None else events[-limit:]


def readable(records: Iterable[Record], chain: str = MAIN) -> list[Event]:
    """The events of those records that can be read."""
    found: list[Event] = []
    for record in records:
        with suppress(StoreError):
            found.append(read_record(record, chain))
    return found


def newest_change(events: Sequence[Event]) -> Event | None:
    """The newest of a list's events that changed it."""
    return next((event for event in reversed(events) if not is_refusal(event)), None)


def is_of(event: Event, state: ListState) -> bool:
    """True if an event made a list's state. An event of a version without content is compared by its release."""
    if event.content is not None:
        return event.content == content_of(state)
    return event.digest in {None, state.release_digest}


def content_of(state: ListState) -> str:
    """The digits of a list's content digest that an event holds."""
    return state.content_digest[:CONTENT_DIGITS]


def linked(records: Sequence[Record], before: str | None) -> bool:
    """True if records have no gap, each written after the one before it.

    `before`: the digest that the first one holds; None: any.
    """
    start = records[0].number
    for at, (number, text) in enumerate(records, start):
        if number != at or _wrong_in(number, text, before):
            return False
        before = record_digest(text)
    return True


def broken(records: Iterable[Record], folds: Iterable[Fold], ledger: Ledger) -> Iterator[str]:
    """The faults of a history, in words; empty if it is whole. `records`: as they stand, oldest first."""
    expected, before = ledger.first, None if ledger.first > 1 else Ledger().digest
    for number, text in records:
        if number > expected:
            yield _missing(expected, number - 1)
            before = None  # what was there cannot be known
        if found := _wrong_in(number, text, before):
            yield found
        expected, before = number + 1, record_digest(text)
    if expected <= ledger.number:
        yield _missing(expected, ledger.number)
    elif expected > ledger.number + 1:
        yield f"records after {ledger.number} were not written by this program"
    elif before not in {None, ledger.digest}:
        yield f"record {ledger.number}, the newest, was changed"
    if digest_text(sum(_number(fold.text) for fold in folds)) != ledger.refusals:
        yield "refusals were changed or removed"


def unanchored(records: Iterable[Record], fed: Iterable[Record], ledger: Ledger) -> Iterator[str]:
    """The faults of the feed's chain by the anchors in MAIN, in words. `fed`, `ledger`: the feed's chain as it stands."""
    anchors = {
        event.head: (event.number, event.digest)
        for event in readable(records)
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


def _wrong_in(number: int, text: str, before: str | None) -> str:
    """The fault in the record at this number, in words.

    `before`: the digest of the one before it, if that is known.
    """
    try:
        said = _read(text)
    except StoreError:
        return f"record {number} was changed: it cannot be read"
    if said.get("number") != number:
        return f"record {said.get('number', 'without a number')} stands where record {number} was"
    if before in {None, said.get("before")}:
        return ""
    return (
        f"record {number - 1} is not the one that record {number} was written after: it was changed"
        if number > 1
        else "record 1 was changed"
    )


def _missing(first: int, last: int) -> str:
    return f"record {first} is missing" if first == last else f"records {first} to {last} are missing"


# Texts


def _said(event: Event) -> dict[str, Any]:
    return {name: value for name in _SAID if (value := getattr(event, name)) is not None}


def _json(said: dict[str, Any]) -> str:
    return json.dumps(said, ensure_ascii=False, separators=(",", ":"))


def _count(fold: Fold) -> int:
    return int(_read_fold(fold.text)["count"])


def _number(text: str) -> int:
    return int(record_digest(text), 16)


def _read(text: str) -> dict[str, Any]:
    try:
        said = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StoreError("corrupt", f"a record of the history is not JSON: {error}") from error
    if not isinstance(said, dict):
        raise StoreError("corrupt", "a record of the history is not a JSON object")
    return said


def _read_fold(text: str) -> dict[str, Any]:
    said = _read(text)
    if any(type(said.get(name)) is not int for name in ("count", "at", "after")) or type(said.get("first")) is not str:
        raise StoreError("corrupt", "a refusal of the history is not whole")
    return said


def _event(said: dict[str, Any], **more: Any) -> Event:
    known = {key: value for key, value in said.items() if key in _EVENT_FIELDS}
    try:
        event = Event(**{**known, **more})
    except TypeError as error:
        raise StoreError("corrupt", f"a record of the history is not whole: {error}") from error
    if not all(isinstance(getattr(event, name), str) for name in _TEXTS):
        raise StoreError("corrupt", "a record of the history has a value of a wrong type")
    return event


def is_refusal(event: Event) -> bool:
    """True if an event is folded with others of its kind; False if it is a record of its own."""
    return event.outcome == REFUSED


def is_counted(event: Event) -> bool:
    """True if it is an outcome of a release, or of a change of a list."""
    return event.list is not None or is_refusal(event)

"""The history in Redis: its chains as streams, refusals, and the ledgers. All under one hash tag. Knows no list.

eir:{history}:ledger       hash: ledger (JSON: what the main chain and refusals have to hold), stream (the name of the stream in force), feed and
feed_stream (the same of the feed's chain), form (of all that is here), done:LIST (the `change` of the last write of a list that the history has)
eir:{history}:records      stream, or eir:{history}:records:ID after a rewrite: entry NUMBER-0 with record
eir:{history}:feed         stream of the feed's chain, or eir:{history}:feed:ID
eir:{history}:refusals     hash: key → text, see eir.lists.record.history
eir:{history}:outcomes     hash: [list, outcome] → how often, and when last
"""

import json
import secrets
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import redis.exceptions as fault

from eir.errors import GenerationConflict, StoreError
from eir.lists.record.history import (
    FOLDS_MAX,
    appended,
    completed,
    events_of,
    exchanged,
    fold_key,
    folded,
    is_counted,
    is_refusal,
    left_out,
    overdue,
    place_of,
    read_record,
    readable,
    rewritten,
    trimmed,
    with_folds,
)
from eir.lists.record.store import ANCHOR, CHAINS, FEED, MAIN, Event, Fold, Ledger, Outcome, Record
from eir.lists.stores.records import FORM, check_form, decode_ledger, encode, log_upgrade, newer_form
from eir.lists.stores.redis.link import Link

LEDGER, RECORDS, REFUSALS = "eir:{history}:ledger", "eir:{history}:records", "eir:{history}:refusals"
FED, OUTCOMES = "eir:{history}:feed", "eir:{history}:outcomes"
FIELDS = {MAIN: ("ledger", "stream"), FEED: ("feed", "feed_stream")}
"""Fields of the hash that hold each chain's ledger and the name of its stream."""
STREAMS = {MAIN: RECORDS, FEED: FED}
"""Name of each chain's stream, unless its field names another one."""
BATCH = 500
"""Records that are read, written or forgotten at a time."""
STAGING_S = 600
WRITTEN = "the history was written meanwhile"
TRIES_MAX = 50
"""Most attempts of a write that loses to another one each time."""
About = tuple[str, bytes]
"""A list, and its `change` that an event belongs to."""
Do = Callable[..., Awaitable[Any]]
"""A function that carries out a command: the link's, or that of a transaction's connection."""


class Held(NamedTuple):
    """A chain: what it has to hold, and the stream that holds it."""

    ledger: Ledger
    stream: str


Chain = Callable[[str], Awaitable[Held]]
"""A function that returns one of the chains as they were read."""


async def read_ledger(link: Link, chain: str = MAIN) -> Held:
    """Return a chain's ledger and stream."""
    return await _whole(link, link.do, chain, _held(link, chain, await link.do("HMGET", LEDGER, *FIELDS[chain])))


async def newer(link: Link) -> str | None:
    """The reason why nothing is changed there: its form is newer than this program knows. None if it is not newer."""
    try:
        (form,) = await link.do("HMGET", LEDGER, "form")
    except StoreError as error:
        if error.cause != "corrupt":
            raise
        return None  # damaged, not newer
    return newer_form(f"Redis ({link.where})", form)


async def append(link: Link, event: Event | None, about: About | None = None) -> None:
    """Append an event, once for each change that it is about. If the answer is lost, one that is about none may be there twice."""
    if event is None:
        return
    done = f"done:{about[0]}" if about else "done:"

    async def write(pipe: Any, chain: Chain, was_done: bytes | None) -> None:
        ledger, stream = await chain(event.chain)
        # A stream of another type fails here; in EXEC the ledger would count a record that is not there.
        await pipe.execute_command("XREVRANGE", stream, "+", "-", "COUNT", 1)
        if about is not None and was_done is None and await _is_there(link, pipe, stream, event):
            pipe.multi()
            pipe.execute_command("HSET", LEDGER, done, about[1])
            await pipe.execute()
            return
        commands: list[tuple[object, ...]] = []
        if is_refusal(event):
            key = fold_key(event)
            (before,) = await pipe.execute_command("HMGET", REFUSALS, key)
            fold, ledger = folded(ledger, event, None if before is None else before.decode())
            commands.append(("HSET", REFUSALS, *fold))
            if before is None and await pipe.execute_command("HLEN", REFUSALS) >= FOLDS_MAX:
                gone = left_out([*_folds(await pipe.execute_command("HGETALL", REFUSALS)), fold])
                commands.append(("HDEL", REFUSALS, *(fold.key for fold in gone)))
                ledger = with_folds(ledger, gone, -1)
        elif event.chain == FEED:
            records, ledger = appended(ledger, [event], (await chain(MAIN)).ledger.number)
            commands += [_adding(stream, record) for record in records]
        else:
            events = [event]
            if event.what == ANCHOR:
                anchor, feed = completed(event, (await chain(FEED)).ledger)
                commands.append(("HSET", LEDGER, FIELDS[FEED][0], encode(feed)))
                events = [] if anchor is None else [anchor]
            records, ledger = appended(ledger, events)
            commands += [_adding(stream, record) for record in records]
        outcome = json.dumps([event.list, event.outcome])
        pipe.multi()
        for command in (
            *commands, ("HSET", LEDGER, FIELDS[event.chain][0], encode(ledger), "form", FORM, *((done, about[1]) if about else ())),
            *((("HINCRBY", OUTCOMES, f"count:{outcome}", 1), ("HSET", OUTCOMES, f"last:{outcome}", event.time)) if is_counted(event) else ()),
        ):  # fmt: skip
            pipe.execute_command(*command)
        await pipe.execute()

    await _watched(link, write, done, about and about[1])


async def _is_there(link: Link, pipe: Any, stream: str, event: Event) -> bool:
    """True if an event that belongs to a change is among the newest records: a lost ledger does not say so."""
    newest = _records(link, await pipe.execute_command("XREVRANGE", stream, "+", "-", "COUNT", BATCH))
    return event in readable(newest)


async def _whole(link: Link, do: Do, chain: str, held: Held) -> Held:
    """Return the chain, its ledger made again of what is there if it knows of no record: they go on, and nothing of them is lost."""
    if held.ledger.number:
        return held
    first, last, size = None, None, 0
    async for batch in _batches(link, do, held.stream, 0):
        first, last, size = first or batch[0], batch[-1], size + _size(batch)
    if last is None:
        return held
    link.report(
        "history_ledger_lost",
        level="warning",
        detail=f"Redis has dropped what the history has to hold; its {chain} chain goes on behind record {last.number}",
    )
    folds = _folds(await do("HGETALL", REFUSALS)) if chain == MAIN else ()
    return held._replace(ledger=rewritten(with_folds(Ledger(), folds), first, last, size))


async def read_records(link: Link, after: int = 0, chain: str = MAIN) -> AsyncIterator[list[Record]]:
    """The records of a chain after a number, in batches, as they stand."""
    _, stream = await read_ledger(link, chain)
    async for batch in _batches(link, link.do, stream, after):
        yield batch


async def _batches(link: Link, do: Do, stream: str, after: int) -> AsyncIterator[list[Record]]:
    """The records of a stream after a number, by what carries out a command."""
    count = 1  # most often the caller wants to see one
    while batch := _records(link, await do("XRANGE", stream, f"({after}-0" if after else "-", "+", "COUNT", count)):
        yield batch
        after, count = batch[-1].number, BATCH


async def read_folds(link: Link) -> list[Fold]:
    """All refusals."""
    with link.as_written():
        return _folds(await link.do("HGETALL", REFUSALS))


async def read_history(
    link: Link, name: str | None, since: str | None, limit: int | None, chain: str | None
) -> list[Event]:
    """The events asked for; each chain is read backwards from its end, as far as needed."""
    records: list[Record] = []
    folds: list[Fold] = []
    fed: list[Record] = []
    if chain != FEED:
        records = await _newest_of(link, MAIN, name, since=since, limit=limit)
        folds = await read_folds(link)
    if chain != MAIN:
        # Rows from before the oldest record that is shown are not shown, if there are as many records as wanted.
        oldest = records[-1].number if limit is not None and len(records) >= limit else 0
        fed = await _newest_of(link, FEED, name, since=since, limit=limit, after=oldest)
    events = events_of(records, folds, name, since, fed=fed)
    return events if limit is None else events[-limit:]


async def _newest_of(
    link: Link, chain: str, name: str | None, *, since: str | None, limit: int | None, after: int = 0
) -> list[Record]:
    """Return the newest `limit` records of a chain that fit, newest first. `after`: place in MAIN before which records of FEED are not needed."""
    _, stream = await read_ledger(link, chain)
    found: list[Record] = []
    end = "+"
    while limit is None or len(found) < limit:
        batch = _records(link, await link.do("XREVRANGE", stream, end, "-", "COUNT", min(BATCH, limit or BATCH)))
        if not batch:
            break
        events = [(record, read_record(record, chain)) for record in batch]
        found += [
            record
            for record, event in events
            if (name is None or event.list == name) and (since is None or event.time >= since)
        ]
        end = f"({batch[-1].number}-0"
        if since is not None and all(event.time < since for _, event in events):  # older ones are older still
            break
        if after and place_of(batch[-1]) < after:
            break
    return found


async def rewrite(
    link: Link,
    batches: AsyncIterable[Sequence[Record]],
    given: Sequence[Fold],
    *,
    after: int,
    seen: Ledger | None,
    exact: bool,
    chain: str,
) -> None:
    """Replace the records of a chain after a number: append if there are no such records, else write a new stream that comes into force."""
    if seen is None:
        await _clear(link, chain)
        seen = Ledger()
    now, stream = await read_ledger(link, chain)
    if now != seen:
        raise GenerationConflict(WRITTEN)
    commands: list[tuple[object, ...]]
    if after == now.number > 0:
        records = [record async for batch in batches for record in batch]
        commands = [_adding(stream, record) for record in records]
        last = records[-1] if records else await _newest(link, stream)
        ledger = rewritten(now, None, last, now.bytes + _size(records))
    else:
        new = f"{STREAMS[chain]}:{secrets.token_hex(8)}"
        commands = [("PERSIST", new), ("UNLINK", stream)]
        ledger, stream = await _staged(link, new, now, _spliced(read_records(link, chain=chain), after, batches)), new

    async def write(pipe: Any, held: Chain, _done: bytes | None) -> None:
        if (await held(chain)).ledger != seen:
            raise GenerationConflict(WRITTEN)
        gone: Sequence[Fold] = ()
        come: Sequence[Fold] = ()
        if chain == MAIN:
            gone, come = exchanged(_folds(await pipe.execute_command("HGETALL", REFUSALS)), given, exact=exact)
        becomes = with_folds(with_folds(ledger, gone, -1), come)
        pipe.multi()
        for command in (
            *commands, *(("HDEL", REFUSALS, fold.key) for fold in gone), *(("HSET", REFUSALS, *fold) for fold in come),
            ("HSET", LEDGER, FIELDS[chain][0], encode(becomes), FIELDS[chain][1], stream, "form", FORM),
        ):  # fmt: skip
            pipe.execute_command(*command)
        await pipe.execute()

    await _watched(link, write, "done:")


async def _clear(link: Link, chain: str) -> None:
    """Delete a damaged chain. With MAIN the whole hash goes, since it may be of another type; the fields of FEED come back."""
    if chain == FEED:
        await link.do("HDEL", LEDGER, *FIELDS[FEED])
        await link.do("UNLINK", FED)
        return
    fields: dict[str, bytes] = {}
    with suppress(StoreError):
        found = await link.do("HMGET", LEDGER, *FIELDS[FEED])
        fields = {name: value for name, value in zip(FIELDS[FEED], found, strict=True) if value is not None}
    await link.do("UNLINK", LEDGER, RECORDS, REFUSALS, OUTCOMES)
    if fields:
        await link.do("HSET", LEDGER, *(part for field in fields.items() for part in field), "form", FORM)


async def _spliced(
    there: AsyncIterable[Sequence[Record]], after: int, batches: AsyncIterable[Sequence[Record]]
) -> AsyncIterator[Sequence[Record]]:
    """The records up to a number, and others behind them."""
    if after:
        async for batch in there:
            yield [record for record in batch if record.number <= after]
    async for batch in batches:
        yield batch


async def _staged(link: Link, stream: str, now: Ledger, batches: AsyncIterable[Sequence[Record]]) -> Ledger:
    """Fill a stream that expires; returns what it holds."""
    first, last, size = None, None, 0
    async for batch in batches:
        for at in range(0, len(batch), BATCH):
            records = batch[at : at + BATCH]
            await link.do_all(*(_adding(stream, record) for record in records), ("EXPIRE", stream, STAGING_S))
            first, last, size = first or records[0], records[-1], size + _size(records)
    return rewritten(now, first, last, size)


def _adding(stream: str, record: Record) -> tuple[object, ...]:
    return "XADD", stream, f"{record.number}-0", "record", record.text


def _size(records: Sequence[Record]) -> int:
    return sum(len(record.text) for record in records)


async def trim(link: Link, until: str, bytes_max: int | None, event: Event, chain: str) -> int:
    """Forget what is overdue, in portions; returns how many records that were."""
    count, portion = 0, BATCH

    async def write(pipe: Any, held: Chain, _done: bytes | None) -> None:
        nonlocal portion
        ledger, stream = await held(chain)
        oldest = _records(link, await pipe.execute_command("XRANGE", stream, "-", "+", "COUNT", BATCH))
        gone = overdue(oldest, ledger, until, bytes_max)
        portion = len(gone)
        if not gone:
            return
        after = (await held(MAIN)).ledger.number if chain == FEED else None
        (record, *_), ledger = trimmed(ledger, gone, event, after)
        pipe.multi()
        pipe.execute_command("XADD", stream, "MINID", f"{ledger.first}-0", f"{record.number}-0", "record", record.text)
        pipe.execute_command("HSET", LEDGER, FIELDS[chain][0], encode(ledger), "form", FORM)
        await pipe.execute()

    while portion == BATCH:
        await _watched(link, write, "done:")
        count += portion
    return count


async def read_done(link: Link, names: Sequence[str]) -> dict[str, bytes | None]:
    """The `change` of each list's last write that the history has."""
    found = await link.do("HMGET", LEDGER, *(f"done:{name}" for name in names)) if names else []
    return dict(zip(names, found, strict=True))


async def read_outcomes(link: Link) -> list[Outcome]:
    """The number of times that each list saw each outcome, and the last time."""
    found: dict[bytes, bytes] = await link.do("HGETALL", OUTCOMES)
    counted = [field.removeprefix(b"count:") for field in sorted(found) if field.startswith(b"count:")]
    with link.as_written():
        return [
            Outcome(name, outcome, int(found[b"count:" + about]), found.get(b"last:" + about, b"").decode())
            for about in counted for name, outcome in [json.loads(about)]
        ]  # fmt: skip


async def _watched(
    link: Link,
    write: Callable[[Any, Chain, bytes | None], Awaitable[None]],
    done: str,
    change: bytes | None = None,
) -> None:
    """Have a write made on condition that the ledgers stay as they were read; again if they do not. None is made if `change` is done already."""

    async def tried(client: Any) -> bool:
        async with client.pipeline(transaction=True) as pipe:
            await pipe.watch(LEDGER, REFUSALS)
            fields = [field for chain in CHAINS for field in FIELDS[chain]]
            *found, was_done, form = await pipe.execute_command("HMGET", LEDGER, *fields, done, "form")
            if form is not None:  # the first record is written into no form
                check_form(f"Redis ({link.where})", form)
            if change is not None and was_done == change:
                return True
            if found[0] is not None:
                log_upgrade(link.report, f"the history in Redis ({link.where})", form)
            there = dict(zip(fields, found, strict=True))

            async def held(chain: str) -> Held:
                as_read = _held(link, chain, [there[field] for field in FIELDS[chain]])
                return await _whole(link, pipe.execute_command, chain, as_read)

            try:
                await write(pipe, held, was_done)
            except fault.WatchError:
                return False
            return True

    for _ in range(TRIES_MAX):
        if await link.call(LEDGER, tried):
            return
    raise StoreError("busy", f"the history was written by others {TRIES_MAX} times meanwhile")


async def _newest(link: Link, stream: str) -> Record | None:
    return next(iter(_records(link, await link.do("XREVRANGE", stream, "+", "-", "COUNT", 1))), None)


def _held(link: Link, chain: str, found: Sequence[bytes | None]) -> Held:
    ledger, stream = found
    with link.as_written():
        return Held(
            Ledger() if ledger is None else decode_ledger(ledger), STREAMS[chain] if stream is None else stream.decode()
        )


def _records(link: Link, entries: Sequence[tuple[bytes, dict[bytes, bytes]]]) -> list[Record]:
    with link.as_written():
        return [Record(int(entry.partition(b"-")[0]), said[b"record"].decode()) for entry, said in entries]


def _folds(found: dict[bytes, bytes]) -> list[Fold]:
    return [Fold(key.decode(), text.decode()) for key, text in found.items()]

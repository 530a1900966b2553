"""History in Redis: its chains as streams, its rejections, and its ledgers, all under one hash tag.

Independent of lists.

eir:{history}:ledger       hash: ledger (JSON, of the main chain and the refusals), stream (name of the stream in force), feed and
feed_stream (the same for the feed's chain), form (version of the format), done:LIST (`change` of a list's last write in the history)
eir:{history}:records      stream, or eir:{history}:records:ID after a rewrite: entry NUMBER-0 with record
eir:{history}:feed         stream of the feed's chain, or eir:{history}:feed:ID
eir:{history}:refusals     hash: key → text, see eir.lists.record.history
eir:{history}:outcomes     hash: [list, outcome] → count and last time
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
    append_events,
    complete_anchor,
    events_of,
    excess_folds,
    exchange_folds,
    fold_key,
    fold_refusal,
    is_counted,
    is_refusal,
    overdue_records,
    place_of,
    read_record,
    readable_events,
    rewritten_ledger,
    trim_records,
    with_folds,
)
from eir.lists.record.store import ANCHOR, CHAINS, FEED, MAIN, Event, Fold, Ledger, OutcomeCount, Record
from eir.lists.stores.records import FORM, check_form, decode_ledger, encode, log_upgrade, newer_form
from eir.lists.stores.redis.link import RedisClient

LEDGER, RECORDS, REFUSALS = "eir:{history}:ledger", "eir:{history}:records", "eir:{history}:refusals"
FED, OUTCOMES = "eir:{history}:feed", "eir:{history}:outcomes"
FIELDS = {MAIN: ("ledger", "stream"), FEED: ("feed", "feed_stream")}
"""Fields of the hash for each chain's ledger and the name of its stream."""
STREAMS = {MAIN: RECORDS, FEED: FED}
"""Name of each chain's stream, unless its field names another one."""
BATCH = 500
"""Records that are read, written or deleted together."""
STAGING_S = 600
WRITTEN = "the history was written meanwhile"
TRIES_MAX = 50
"""Maximum number of attempts of a write that conflicts with other writers."""
About = tuple[str, bytes]
"""List, and its `change` to which an event belongs."""
Do = Callable[..., Awaitable[Any]]
"""Function that executes a command: of the client, or of a transaction's connection."""


class StoredChain(NamedTuple):
    """Ledger of a chain, and the name of the Redis stream with its records."""

    ledger: Ledger
    stream: str


Chain = Callable[[str], Awaitable[StoredChain]]
"""Function that returns one of the chains as they were read."""


async def read_ledger(link: RedisClient, chain: str = MAIN) -> StoredChain:
    """Return the ledger and the stream name of a chain."""
    return await _recover_ledger(
        link, link.do, chain, _decode_chain(link, chain, await link.do("HMGET", LEDGER, *FIELDS[chain]))
    )


async def newer(link: RedisClient) -> str | None:
    """Return the reason why the history must not be changed because its format is newer, or None."""
    try:
        (form,) = await link.do("HMGET", LEDGER, "form")
    except StoreError as error:
        if error.cause != "corrupt":
            raise
        return None  # damaged, not newer
    return newer_form(f"Redis ({link.where})", form)


async def append(link: RedisClient, event: Event | None, about: About | None = None) -> None:
    """Append an event to the history, only once for each change of a list (`about`).

    If the answer is lost, an event without a change may be appended twice.
    """
    if event is None:
        return
    done_field = f"done:{about[0]}" if about else "done:"

    async def write(pipe: Any, chain: Chain, was_done: bytes | None) -> None:
        ledger, stream = await chain(event.chain)
        # A key of another type fails here; in EXEC the ledger would count a record that does not exist.
        await pipe.execute_command("XREVRANGE", stream, "+", "-", "COUNT", 1)
        if about is not None and was_done is None and await _is_stored(link, pipe, stream, event):
            pipe.multi()
            pipe.execute_command("HSET", LEDGER, done_field, about[1])
            await pipe.execute()
            return
        commands: list[tuple[object, ...]] = []
        if is_refusal(event):
            key = fold_key(event)
            (before,) = await pipe.execute_command("HMGET", REFUSALS, key)
            fold, ledger = fold_refusal(ledger, event, None if before is None else before.decode())
            commands.append(("HSET", REFUSALS, *fold))
            if before is None and await pipe.execute_command("HLEN", REFUSALS) >= FOLDS_MAX:
                gone = excess_folds([*_folds(await pipe.execute_command("HGETALL", REFUSALS)), fold])
                commands.append(("HDEL", REFUSALS, *(fold.key for fold in gone)))
                ledger = with_folds(ledger, gone, -1)
        elif event.chain == FEED:
            records, ledger = append_events(ledger, [event], (await chain(MAIN)).ledger.number)
            commands += [_add_command(stream, record) for record in records]
        else:
            events = [event]
            if event.what == ANCHOR:
                anchor, feed = complete_anchor(event, (await chain(FEED)).ledger)
                commands.append(("HSET", LEDGER, FIELDS[FEED][0], encode(feed)))
                events = [] if anchor is None else [anchor]
            records, ledger = append_events(ledger, events)
            commands += [_add_command(stream, record) for record in records]
        outcome = json.dumps([event.list, event.outcome])
        pipe.multi()
        for command in (
            *commands, ("HSET", LEDGER, FIELDS[event.chain][0], encode(ledger), "form", FORM, *((done_field, about[1]) if about else ())),
            *((("HINCRBY", OUTCOMES, f"count:{outcome}", 1), ("HSET", OUTCOMES, f"last:{outcome}", event.time)) if is_counted(event) else ()),
        ):  # fmt: skip
            pipe.execute_command(*command)
        await pipe.execute()

    await _transact(link, write, done_field, about and about[1])


async def _is_stored(link: RedisClient, pipe: Any, stream: str, event: Event) -> bool:
    """Return True if the event of a list's change is among the newest records of a stream.

    This is needed because a lost ledger does not show that the event was appended.
    """
    newest = _records(link, await pipe.execute_command("XREVRANGE", stream, "+", "-", "COUNT", BATCH))
    return event in readable_events(newest)


async def _recover_ledger(link: RedisClient, do: Do, chain: str, stored_chain: StoredChain) -> StoredChain:
    """Return a chain with its ledger rebuilt from the stream if Redis has lost the ledger.

    The chain then continues after its newest record.
    """
    if stored_chain.ledger.number:
        return stored_chain
    first, last, size = None, None, 0
    async for batch in _batches(link, do, stored_chain.stream, 0):
        first, last, size = first or batch[0], batch[-1], size + _size(batch)
    if last is None:
        return stored_chain
    link.report(
        "history_ledger_lost",
        level="warning",
        detail=f"Redis has evicted the ledger of the history; its {chain} chain continues after record {last.number}",
    )
    folds = _folds(await do("HGETALL", REFUSALS)) if chain == MAIN else ()
    return stored_chain._replace(ledger=rewritten_ledger(with_folds(Ledger(), folds), first, last, size))


async def read_records(link: RedisClient, after: int = 0, chain: str = MAIN) -> AsyncIterator[list[Record]]:
    """Yield the records of a chain after number `after` in batches, without verifying them."""
    async for batch in _batches(link, link.do, await _stream_of(link, chain), after):
        yield batch


async def _stream_of(link: RedisClient, chain: str) -> str:
    """Return the name of the stream with the records of a chain, which can be read without the chain's ledger."""
    try:
        (stream,) = await link.do("HMGET", LEDGER, FIELDS[chain][1])
    except StoreError as error:
        if error.cause != "corrupt":
            raise
        return STREAMS[chain]  # the key of the ledger has another type
    with link.as_written():
        return STREAMS[chain] if stream is None else str(stream.decode())


async def _batches(link: RedisClient, do: Do, stream: str, after: int) -> AsyncIterator[list[Record]]:
    """Yield the records of a stream after number `after` in batches; `do` executes the commands."""
    count = 1  # most callers need only one
    while batch := _records(link, await do("XRANGE", stream, f"({after}-0" if after else "-", "+", "COUNT", count)):
        yield batch
        after, count = batch[-1].number, BATCH


async def read_folds(link: RedisClient) -> list[Fold]:
    """Return all folds, in which rejections are counted."""
    with link.as_written():
        return _folds(await link.do("HGETALL", REFUSALS))


async def read_history(
    link: RedisClient, name: str | None, since: str | None, limit: int | None, chain: str | None
) -> list[Event]:
    """Return events of the history. Each chain is read backwards from its end, only as far as needed."""
    records: list[Record] = []
    folds: list[Fold] = []
    fed: list[Record] = []
    if chain != FEED:
        records = await _newest_of(link, MAIN, name, since=since, limit=limit)
        folds = await read_folds(link)
    if chain != MAIN:
        # If `limit` records were found, rows older than the oldest of them are not needed.
        oldest = records[-1].number if limit is not None and len(records) >= limit else 0
        fed = await _newest_of(link, FEED, name, since=since, limit=limit, after=oldest)
    events = events_of(records, folds, name, since, fed=fed)
    return events if limit is None else events[-limit:]


async def _newest_of(
    link: RedisClient, chain: str, name: str | None, *, since: str | None, limit: int | None, after: int = 0
) -> list[Record]:
    """Return the newest `limit` records of a chain that match, newest first.

    Records of FEED that are placed before record `after` of MAIN are not needed.
    """
    _, stream = await read_ledger(link, chain)
    records: list[Record] = []
    end = "+"
    while limit is None or len(records) < limit:
        batch = _records(link, await link.do("XREVRANGE", stream, end, "-", "COUNT", min(BATCH, limit or BATCH)))
        if not batch:
            break
        events = [(record, read_record(record, chain)) for record in batch]
        records += [
            record
            for record, event in events
            if (name is None or event.list == name) and (since is None or event.time >= since)
        ]
        end = f"({batch[-1].number}-0"
        if since is not None and all(event.time < since for _, event in events):  # all further records are older
            break
        if after and place_of(batch[-1]) < after:
            break
    return records


async def rewrite(
    link: RedisClient,
    batches: AsyncIterable[Sequence[Record]],
    given: Sequence[Fold],
    *,
    after: int,
    seen: Ledger | None,
    exact: bool,
    chain: str,
) -> None:
    """Replace the records of a chain after number `after`.

    If the chain has no such records, the new ones are appended. Otherwise a new stream is filled and put in force.
    """
    if seen is None:
        await _replace_damaged(link, batches, given, chain)
        return
    now, stream = await read_ledger(link, chain)
    if now != seen:
        raise GenerationConflict(WRITTEN)
    commands: list[tuple[object, ...]]
    if after == now.number > 0:
        records = [record async for batch in batches for record in batch]
        commands = [_add_command(stream, record) for record in records]
        last = records[-1] if records else await _newest(link, stream)
        ledger = rewritten_ledger(now, None, last, now.bytes + _size(records))
    else:
        new = f"{STREAMS[chain]}:{secrets.token_hex(8)}"
        commands = [("PERSIST", new), ("UNLINK", stream)]
        ledger, stream = (
            await _stage_stream(link, new, now, _splice(read_records(link, chain=chain), after, batches)),
            new,
        )

    async def write(pipe: Any, read_chain: Chain, _done: bytes | None) -> None:
        if (await read_chain(chain)).ledger != seen:
            raise GenerationConflict(WRITTEN)
        gone: Sequence[Fold] = ()
        come: Sequence[Fold] = ()
        if chain == MAIN:
            gone, come = exchange_folds(_folds(await pipe.execute_command("HGETALL", REFUSALS)), given, exact=exact)
        becomes = with_folds(with_folds(ledger, gone, -1), come)
        pipe.multi()
        for command in (
            *commands, *(("HDEL", REFUSALS, fold.key) for fold in gone), *(("HSET", REFUSALS, *fold) for fold in come),
            ("HSET", LEDGER, FIELDS[chain][0], encode(becomes), FIELDS[chain][1], stream, "form", FORM),
        ):  # fmt: skip
            pipe.execute_command(*command)
        await pipe.execute()

    await _transact(link, write, "done:")


async def _replace_damaged(
    link: RedisClient, batches: AsyncIterable[Sequence[Record]], given: Sequence[Fold], chain: str
) -> None:
    """Replace a damaged chain of the history by these records and folds, in one EXEC.

    For MAIN the whole hash is deleted, because it may be a key of a wrong type; the fields of FEED are written again.
    """
    damaged = await _stream_of(link, chain)
    new = f"{STREAMS[chain]}:{secrets.token_hex(8)}"
    ledger = with_folds(await _stage_stream(link, new, Ledger(), batches), given)
    fields: list[object] = [FIELDS[chain][0], encode(ledger), FIELDS[chain][1], new, "form", FORM]
    gone = [damaged]
    if chain == MAIN:
        gone = [LEDGER, damaged, RECORDS, REFUSALS, OUTCOMES]
        values: list[bytes | None] = [None, None]
        with suppress(StoreError):
            values = await link.do("HMGET", LEDGER, *FIELDS[FEED])
        fields += [part for field in zip(FIELDS[FEED], values, strict=True) if field[1] is not None for part in field]
    folds = [("HSET", REFUSALS, *fold) for fold in given]
    await link.do_all(("UNLINK", *gone), ("PERSIST", new), *folds, ("HSET", LEDGER, *fields), transaction=True)


async def _splice(
    existing: AsyncIterable[Sequence[Record]], after: int, batches: AsyncIterable[Sequence[Record]]
) -> AsyncIterator[Sequence[Record]]:
    """Yield the existing records up to number `after`, and then the records of `batches`."""
    if after:
        async for batch in existing:
            yield [record for record in batch if record.number <= after]
    async for batch in batches:
        yield batch


async def _stage_stream(
    link: RedisClient, stream: str, now: Ledger, batches: AsyncIterable[Sequence[Record]]
) -> Ledger:
    """Write records to a new stream that expires, and return the ledger for this stream."""
    first, last, size = None, None, 0
    async for batch in batches:
        for at in range(0, len(batch), BATCH):
            records = batch[at : at + BATCH]
            await link.do_all(*(_add_command(stream, record) for record in records), ("EXPIRE", stream, STAGING_S))
            first, last, size = first or records[0], records[-1], size + _size(records)
    return rewritten_ledger(now, first, last, size)


def _add_command(stream: str, record: Record) -> tuple[object, ...]:
    return "XADD", stream, f"{record.number}-0", "record", record.text


def _size(records: Sequence[Record]) -> int:
    return sum(len(record.text) for record in records)


async def trim(link: RedisClient, until: str, bytes_max: int | None, event: Event, chain: str) -> int:
    """Delete records that are too old or exceed `bytes_max`, in portions; return the number of deleted records."""
    count, portion = 0, BATCH

    async def write(pipe: Any, read_chain: Chain, _done: bytes | None) -> None:
        nonlocal portion
        ledger, stream = await read_chain(chain)
        oldest = _records(link, await pipe.execute_command("XRANGE", stream, "-", "+", "COUNT", BATCH))
        gone = overdue_records(oldest, ledger, until, bytes_max)
        portion = len(gone)
        if not gone:
            return
        after = (await read_chain(MAIN)).ledger.number if chain == FEED else None
        (record, *_), ledger = trim_records(ledger, gone, event, after)
        pipe.multi()
        pipe.execute_command("XADD", stream, "MINID", f"{ledger.first}-0", f"{record.number}-0", "record", record.text)
        pipe.execute_command("HSET", LEDGER, FIELDS[chain][0], encode(ledger), "form", FORM)
        await pipe.execute()

    while portion == BATCH:
        await _transact(link, write, "done:")
        count += portion
    return count


async def read_done(link: RedisClient, names: Sequence[str]) -> dict[str, bytes | None]:
    """Return for each list the ID (`change`) of its last write that is in the history."""
    changes = await link.do("HMGET", LEDGER, *(f"done:{name}" for name in names)) if names else []
    return dict(zip(names, changes, strict=True))


async def read_outcomes(link: RedisClient) -> list[OutcomeCount]:
    """Return the number of outcomes of each kind for each list, and the time of the last one."""
    values: dict[bytes, bytes] = await link.do("HGETALL", OUTCOMES)
    counted = [field.removeprefix(b"count:") for field in sorted(values) if field.startswith(b"count:")]
    with link.as_written():
        return [
            OutcomeCount(name, outcome, int(values[b"count:" + about]), values.get(b"last:" + about, b"").decode())
            for about in counted for name, outcome in [json.loads(about)]
        ]  # fmt: skip


async def _transact(
    link: RedisClient,
    write: Callable[[Any, Chain, bytes | None], Awaitable[None]],
    done: str,
    change: bytes | None = None,
) -> None:
    """Run `write` in a transaction that fails if the ledgers change meanwhile; repeat it after such a conflict.

    If `change` is already in the field `done`, nothing is written.
    """

    async def attempt(client: Any) -> bool:
        async with client.pipeline(transaction=True) as pipe:
            await pipe.watch(LEDGER, REFUSALS)
            fields = [field for chain in CHAINS for field in FIELDS[chain]]
            *values, was_done, form = await pipe.execute_command("HMGET", LEDGER, *fields, done, "form")
            if form is not None:  # the first record is written into no form
                check_form(f"Redis ({link.where})", form)
            if change is not None and was_done == change:
                return True
            if values[0] is not None:
                log_upgrade(link.report, f"the history in Redis ({link.where})", form)
            fields_read = dict(zip(fields, values, strict=True))

            async def read_chain(chain: str) -> StoredChain:
                as_read = _decode_chain(link, chain, [fields_read[field] for field in FIELDS[chain]])
                return await _recover_ledger(link, pipe.execute_command, chain, as_read)

            try:
                await write(pipe, read_chain, was_done)
            except fault.WatchError:
                return False
            return True

    for _ in range(TRIES_MAX):
        if await link.call(LEDGER, attempt):
            return
    raise StoreError("busy", f"the history changed {TRIES_MAX} times during the write; try again")


async def _newest(link: RedisClient, stream: str) -> Record | None:
    return next(iter(_records(link, await link.do("XREVRANGE", stream, "+", "-", "COUNT", 1))), None)


def _decode_chain(link: RedisClient, chain: str, values: Sequence[bytes | None]) -> StoredChain:
    ledger, stream = values
    with link.as_written():
        return StoredChain(
            Ledger() if ledger is None else decode_ledger(ledger), STREAMS[chain] if stream is None else stream.decode()
        )


def _records(link: RedisClient, entries: Sequence[tuple[bytes, dict[bytes, bytes]]]) -> list[Record]:
    """Decode entries of a stream to records; an entry that eir did not write becomes a record with a fault."""
    with link.as_written():
        return [
            Record(int(entry.partition(b"-")[0]), fields.get(b"record", b"").decode(errors="replace"))
            for entry, fields in entries
        ]


def _folds(fields: dict[bytes, bytes]) -> list[Fold]:
    return [Fold(key.decode(), text.decode()) for key, text in fields.items()]

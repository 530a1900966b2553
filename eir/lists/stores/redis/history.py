"""History of lists in Redis: chains of records as streams, counts of refused releases, and ledgers, all under one hash tag.

Of the lists, the module reads only the ID of the last write.

    eir:{history}:ledger       hash: ledger (JSON, of the main chain and the refusals); stream (name of its stream in force); feed
                               and feed_stream (the same for the feed's chain); form (version of the format); done:LIST (ID of
                               the last write of the list whose event is in the history)
    eir:{history}:records      stream, or eir:{history}:records:ID after a rewrite: entry NUMBER-0 with record
    eir:{history}:feed         stream of the feed's chain, or eir:{history}:feed:ID
    eir:{history}:refusals     hash: key → text, see eir.lists.record.history
    eir:{history}:outcomes     hash: count:[list, outcome] → count, last:[list, outcome] → time of the last outcome
"""

import json
import secrets
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import redis.exceptions as fault

from eir.errors import GenerationConflict, StoreError
from eir.lists.record.history import (
    FOLDS_MAX,
    append_events,
    compare_folds,
    complete_anchor,
    events_of,
    excess_folds,
    fold_key,
    fold_refusal,
    is_counted,
    is_refusal,
    overdue_records,
    preceding_main_number,
    read_record,
    readable_events,
    replace_folds,
    rewritten_ledger,
    trim_records,
)
from eir.lists.record.store import ANCHOR, CHAINS, FEED, MAIN, Event, Fold, Ledger, OutcomeCount, Record
from eir.lists.stores.records import FORM, check_form, decode_ledger, encode, log_upgrade, newer_form
from eir.lists.stores.redis.link import RedisClient
from eir.lists.stores.redis.reading import read_change

LEDGER, RECORDS, REFUSALS = "eir:{history}:ledger", "eir:{history}:records", "eir:{history}:refusals"
FED, OUTCOMES = "eir:{history}:feed", "eir:{history}:outcomes"
FIELDS = {MAIN: ("ledger", "stream"), FEED: ("feed", "feed_stream")}
"""Chain → fields of LEDGER with its ledger and with the name of its stream."""
STREAMS = {MAIN: RECORDS, FEED: FED}
"""Chain → name of its stream before the first rewrite."""
BATCH = 500
"""Maximum number of records that are read, written or deleted together."""
STAGING_S = 600
"""Seconds after the last record after which a staged stream expires."""
CONFLICT = "the history was written meanwhile"
TRIES_MAX = 50
"""Maximum number of attempts of a write that conflicts with other writers."""
ListWrite = tuple[str, bytes]
"""List and ID (`change`) of the write to which an event belongs."""
Command = tuple[object, ...]
"""Words of a Redis command."""
Execute = Callable[..., Awaitable[Any]]
"""Function that executes a command, either of the client or of a transaction's connection."""


class StoredChain(NamedTuple):
    """Ledger (size, newest number and digest) of a chain of the history, and the name of the Redis stream with its records."""

    ledger: Ledger
    stream: str


ReadChain = Callable[[str], Awaitable[StoredChain]]
"""Function that returns a chain as it was at the begin of the transaction."""
Queue = Callable[[Any, ReadChain, bytes | None], Awaitable[None]]
"""Function that reads, and then queues and executes the commands of a transaction.

Arguments: connection, function for the chains, and the ID of the last write in the field of the list.
"""


async def read_chain(link: RedisClient, chain: str = MAIN) -> StoredChain:
    """Return the ledger (size, newest number and digest) of a chain of the history, and the name of its Redis stream."""
    values = await link.execute("HMGET", LEDGER, *FIELDS[chain])
    return await _recover_ledger(link, link.execute, chain, _decode_chain(link, chain, values))


async def newer(link: RedisClient) -> str | None:
    """If the history has a newer format than this program supports, return the message that the program only reads it; otherwise None."""
    try:
        (form,) = await link.execute("HMGET", LEDGER, "form")
    except StoreError as error:
        if error.cause != "corrupt":
            raise
        return None  # damaged, not newer
    return newer_form(f"Redis ({link.where})", form)


async def append(link: RedisClient, event: Event | None, list_write: ListWrite | None = None) -> None:
    """Append an event to the history. If `list_write` is given, the event belongs to this list write and is appended only once.

    The next writer of the list may have appended the event already. It is then among the newest records.
    If the answer is lost, an event without `list_write` may be appended twice.
    """
    if event is None:
        return
    name, change = ("", None) if list_write is None else list_write
    done_field = f"done:{name}"

    async def queue(pipe: Any, read: ReadChain, done: bytes | None) -> None:
        is_newest = change is not None and await read_change(link, name) == change
        stored_chain = await read(event.chain)
        # A key of another type fails here; in EXEC the ledger would count a record that does not exist.
        await pipe.execute_command("XREVRANGE", stored_chain.stream, "+", "-", "COUNT", 1)
        is_unclear = change is not None and (done is None or not is_newest)
        if is_unclear and await _is_stored(link, pipe, stored_chain.stream, event):
            if is_newest:
                pipe.multi()
                pipe.execute_command("HSET", LEDGER, done_field, change)
                await pipe.execute()
            return
        commands, ledger = await _append_commands(pipe, read, event, stored_chain)
        fields: list[object] = [FIELDS[event.chain][0], encode(ledger), "form", FORM]
        if is_newest:
            fields += [done_field, change]
        commands.append(("HSET", LEDGER, *fields))
        if is_counted(event):
            outcome = json.dumps([event.list, event.outcome])
            commands.append(("HINCRBY", OUTCOMES, f"count:{outcome}", 1))
            commands.append(("HSET", OUTCOMES, f"last:{outcome}", event.time))
        await _execute(pipe, commands)

    await _transact(link, queue, done_field, change)


async def _append_commands(
    pipe: Any, read: ReadChain, event: Event, stored_chain: StoredChain
) -> tuple[list[Command], Ledger]:
    """Return the commands that append an event to its chain, and the ledger (totals and digests) that the chain then has.

    For a refusal equal to a recorded one, the commands increase its count.
    """
    ledger, stream = stored_chain
    if is_refusal(event):
        return await _fold_commands(pipe, event, ledger)
    if event.chain == FEED:
        main = await read(MAIN)
        records, ledger = append_events(ledger, [event], main.ledger.number)
        return [_add_command(stream, record) for record in records], ledger
    commands: list[Command] = []
    new_event: Event | None = event
    if event.what == ANCHOR:
        feed_chain = await read(FEED)
        new_event, feed = complete_anchor(event, feed_chain.ledger)
        commands.append(("HSET", LEDGER, FIELDS[FEED][0], encode(feed)))
    if new_event is not None:
        records, ledger = append_events(ledger, [new_event])
        commands += [_add_command(stream, record) for record in records]
    return commands, ledger


async def _fold_commands(pipe: Any, event: Event, ledger: Ledger) -> tuple[list[Command], Ledger]:
    (before,) = await pipe.execute_command("HMGET", REFUSALS, fold_key(event))
    fold, ledger = fold_refusal(ledger, event, None if before is None else before.decode())
    commands: list[Command] = [("HSET", REFUSALS, *fold)]
    if before is None and await pipe.execute_command("HLEN", REFUSALS) >= FOLDS_MAX:
        folds = await _read_folds(pipe.execute_command)
        excess = excess_folds([*folds, fold])
        commands.append(("HDEL", REFUSALS, *(fold.key for fold in excess)))
        ledger = replace_folds(ledger, excess)
    return commands, ledger


async def _execute(pipe: Any, commands: Iterable[Command]) -> None:
    """Execute Redis commands in one transaction (MULTI and EXEC)."""
    pipe.multi()
    for command in commands:
        pipe.execute_command(*command)
    await pipe.execute()


async def _is_stored(link: RedisClient, pipe: Any, stream: str, event: Event) -> bool:
    """Return True if the event is among the newest records of a stream.

    If Redis has lost the ledger, or if the list was written again, this is the only sign that the event of a write was appended.
    """
    entries = await pipe.execute_command("XREVRANGE", stream, "+", "-", "COUNT", BATCH)
    return event in readable_events(_decode_records(link, entries))


async def _recover_ledger(link: RedisClient, execute: Execute, chain: str, stored_chain: StoredChain) -> StoredChain:
    """Return a history chain with its ledger (size and end). If Redis has lost the ledger, rebuild the ledger from the chain's stream.

    The chain then continues after its newest record.
    """
    if stored_chain.ledger.number:
        return stored_chain
    first, last, size = None, None, 0
    async for batch in _read_batches(link, execute, stored_chain.stream, 0):
        first, last, size = first or batch[0], batch[-1], size + _text_size(batch)
    if last is None:
        return stored_chain
    link.report(
        "history_ledger_lost",
        level="warning",
        detail=f"Redis has evicted the ledger of the history; its {chain} chain continues after record {last.number}",
    )
    folds = await _read_folds(execute) if chain == MAIN else ()
    ledger = replace_folds(Ledger(), (), folds)
    return stored_chain._replace(ledger=rewritten_ledger(ledger, first, last, size))


async def read_records(link: RedisClient, after: int = 0, chain: str = MAIN) -> AsyncIterator[list[Record]]:
    """Yield in batches, oldest first, the records of a chain whose number is above `after`. The records are not verified."""
    stream = await _read_stream(link, chain)
    async for batch in _read_batches(link, link.execute, stream, after):
        yield batch


async def _read_stream(link: RedisClient, chain: str) -> str:
    """Return the name of the stream with the records of a history chain, even if the chain's ledger is damaged."""
    try:
        (stream,) = await link.execute("HMGET", LEDGER, FIELDS[chain][1])
    except StoreError as error:
        if error.cause != "corrupt":
            raise
        return STREAMS[chain]  # the key of the ledger has another type
    with link.decoding():
        return STREAMS[chain] if stream is None else str(stream.decode())


async def _read_batches(link: RedisClient, execute: Execute, stream: str, after: int) -> AsyncIterator[list[Record]]:
    """Yield the records of a stream after number `after` in batches."""
    count = 1  # most callers need only one
    while True:
        start = f"({after}-0" if after else "-"
        entries = await execute("XRANGE", stream, start, "+", "COUNT", count)
        batch = _decode_records(link, entries)
        if not batch:
            return
        yield batch
        after, count = batch[-1].number, BATCH


async def read_folds(link: RedisClient) -> list[Fold]:
    """Return all folds of the history. A fold counts the refused releases of one day that have the same list, sender and reason."""
    with link.decoding():
        return await _read_folds(link.execute)


async def read_history(
    link: RedisClient, name: str | None, since: str | None, limit: int | None, chain: str | None
) -> list[Event]:
    """Return events of the history, filtered as in ListStore.history. Each chain is read backwards, only as far as needed."""
    records: list[Record] = []
    folds: list[Fold] = []
    fed: list[Record] = []
    if chain != FEED:
        records = await _newest_of(link, MAIN, name, since=since, limit=limit)
        folds = await read_folds(link)
    if chain != MAIN:
        # If MAIN has `limit` matching records, rows of FEED that are older than the oldest of them are not needed.
        oldest = records[-1].number if limit is not None and len(records) >= limit else 0
        fed = await _newest_of(link, FEED, name, since=since, limit=limit, after=oldest)
    events = events_of(records, folds, name, since, fed=fed)
    return events if limit is None else events[-limit:]


async def _newest_of(
    link: RedisClient, chain: str, name: str | None, *, since: str | None, limit: int | None, after: int = 0
) -> list[Record]:
    """Return the newest `limit` records of a chain that concern a list, newest first.

    Args:
        link: client of Redis.
        chain: chain.
        name: only records of this list.
        since: only records from this time on.
        limit: number of records after which reading stops; None for all.
        after: number of a record of MAIN before which records of FEED are not needed.
    """
    stored_chain = await read_chain(link, chain)
    records: list[Record] = []
    start = "+"
    count = min(BATCH, limit or BATCH)
    while limit is None or len(records) < limit:
        entries = await link.execute("XREVRANGE", stored_chain.stream, start, "-", "COUNT", count)
        batch = _decode_records(link, entries)
        if not batch:
            break
        has_recent = False
        for record in batch:
            event = read_record(record, chain)
            if since is not None and event.time < since:
                continue
            has_recent = True
            if name is None or event.list == name:
                records.append(record)
        oldest = batch[-1]
        if not has_recent or (after and preceding_main_number(oldest) < after):  # all further records are older
            break
        start = f"({oldest.number}-0"
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
    """Replace the records of a chain after record number `after` by the records of `batches`, in one EXEC.

    If the chain ends with record `after`, the new records are appended to its stream. Otherwise they are written to a new
    stream, with copies of the records up to `after`, and the new stream is put in force.
    """
    if seen is None:
        await _replace_damaged(link, batches, given, chain)
        return
    present, stream = await read_chain(link, chain)
    if present != seen:
        raise GenerationConflict(CONFLICT)
    commands: list[Command]
    if after == present.number > 0:
        records = [record async for batch in batches for record in batch]
        commands = [_add_command(stream, record) for record in records]
        last = records[-1] if records else await _read_newest(link, stream)
        ledger = rewritten_ledger(present, None, last, present.bytes + _text_size(records))
    else:
        new_stream = f"{STREAMS[chain]}:{secrets.token_hex(8)}"
        commands = [("PERSIST", new_stream), ("UNLINK", stream)]
        new_batches = _splice(read_records(link, chain=chain), after, batches)
        ledger = await _stage_stream(link, new_stream, present, new_batches)
        stream = new_stream
    ledger_field, stream_field = FIELDS[chain]

    async def queue(pipe: Any, read: ReadChain, _done: bytes | None) -> None:
        stored_chain = await read(chain)
        if stored_chain.ledger != seen:
            raise GenerationConflict(CONFLICT)
        new_ledger, fold_commands = ledger, list[Command]()
        if chain == MAIN:
            stored_folds = await _read_folds(pipe.execute_command)
            removed, added = compare_folds(stored_folds, given, exact=exact)
            fold_commands += [("HDEL", REFUSALS, fold.key) for fold in removed]
            fold_commands += [("HSET", REFUSALS, *fold) for fold in added]
            new_ledger = replace_folds(ledger, removed, added)
        fields = (ledger_field, encode(new_ledger), stream_field, stream, "form", FORM)
        await _execute(pipe, [*commands, *fold_commands, ("HSET", LEDGER, *fields)])

    await _transact(link, queue, "done:")


async def _replace_damaged(
    link: RedisClient, batches: AsyncIterable[Sequence[Record]], given: Sequence[Fold], chain: str
) -> None:
    """Replace a damaged chain of the history by the given records and folds (counts of refusals), in one EXEC.

    For MAIN the whole hash LEDGER is deleted, because its key may have a wrong type. The fields of FEED are written
    again.
    """
    damaged_stream = await _read_stream(link, chain)
    new_stream = f"{STREAMS[chain]}:{secrets.token_hex(8)}"
    ledger = await _stage_stream(link, new_stream, Ledger(), batches)
    ledger_field, stream_field = FIELDS[chain]
    fields: list[object] = [
        ledger_field,
        encode(replace_folds(ledger, (), given)),
        stream_field,
        new_stream,
        "form",
        FORM,
    ]
    damaged_keys = [damaged_stream]
    if chain == MAIN:
        damaged_keys = [LEDGER, damaged_stream, RECORDS, REFUSALS, OUTCOMES]
        values: list[bytes | None] = []
        with suppress(StoreError):
            values = await link.execute("HMGET", LEDGER, *FIELDS[FEED])
        for name, value in zip(FIELDS[FEED], values, strict=False):
            if value is not None:
                fields += [name, value]
    commands: list[Command] = [("UNLINK", *damaged_keys), ("PERSIST", new_stream)]
    commands += [("HSET", REFUSALS, *fold) for fold in given]
    await link.execute_all(*commands, ("HSET", LEDGER, *fields), transaction=True)


async def _splice(
    existing: AsyncIterable[Sequence[Record]], after: int, batches: AsyncIterable[Sequence[Record]]
) -> AsyncIterator[Sequence[Record]]:
    """Yield the existing records with numbers up to `after`, then the records of `batches`."""
    if after:
        async for batch in existing:
            yield [record for record in batch if record.number <= after]
    async for batch in batches:
        yield batch


async def _stage_stream(
    link: RedisClient, stream: str, present: Ledger, batches: AsyncIterable[Sequence[Record]]
) -> Ledger:
    """Write history records to a new Redis stream that expires, and return the ledger (size and end) of this stream."""
    first, last, size = None, None, 0
    async for batch in batches:
        for start in range(0, len(batch), BATCH):
            records = batch[start : start + BATCH]
            commands = [_add_command(stream, record) for record in records]
            await link.execute_all(*commands, ("EXPIRE", stream, STAGING_S))
            first, last, size = first or records[0], records[-1], size + _text_size(records)
    return rewritten_ledger(present, first, last, size)


def _add_command(stream: str, record: Record) -> Command:
    return "XADD", stream, f"{record.number}-0", "record", record.text


def _text_size(records: Sequence[Record]) -> int:
    return sum(len(record.text) for record in records)


async def trim(link: RedisClient, until: str, bytes_max: int | None, event: Event, chain: str) -> int:
    """Delete the records of a chain before `until`, and further oldest records until the chain has at most `bytes_max`.

    The function returns the number of deleted records.

    The records are deleted in portions.
    """
    count, portion = 0, BATCH

    async def queue(pipe: Any, read: ReadChain, _done: bytes | None) -> None:
        nonlocal portion
        ledger, stream = await read(chain)
        entries = await pipe.execute_command("XRANGE", stream, "-", "+", "COUNT", BATCH)
        overdue = overdue_records(_decode_records(link, entries), ledger, until, bytes_max)
        portion = len(overdue)
        if not overdue:
            return
        after = None
        if chain == FEED:
            main = await read(MAIN)
            after = main.ledger.number
        (record, *_), ledger = trim_records(ledger, overdue, event, after)
        oldest_id, new_id = f"{ledger.first}-0", f"{record.number}-0"
        add = ("XADD", stream, "MINID", oldest_id, new_id, "record", record.text)
        await _execute(pipe, [add, ("HSET", LEDGER, FIELDS[chain][0], encode(ledger), "form", FORM)])

    while portion == BATCH:
        await _transact(link, queue, "done:")
        count += portion
    return count


async def read_appended(link: RedisClient, names: Sequence[str]) -> dict[str, bytes | None]:
    """Return for each list the ID of the last write that has its event in the history."""
    if not names:
        return {}
    fields = [f"done:{name}" for name in names]
    changes = await link.execute("HMGET", LEDGER, *fields)
    return dict(zip(names, changes, strict=True))


async def read_outcomes(link: RedisClient) -> list[OutcomeCount]:
    """Return the number of releases for each list and outcome, with the time of the latest release that had this outcome."""
    values: dict[bytes, bytes] = await link.execute("HGETALL", OUTCOMES)
    outcomes = []
    with link.decoding():
        for field in sorted(values):
            prefix, _, key = field.partition(b":")
            if prefix == b"count":
                name, outcome = json.loads(key)
                last = values.get(b"last:" + key, b"")
                outcomes.append(OutcomeCount(name, outcome, int(values[field]), last.decode()))
    return outcomes


async def _transact(link: RedisClient, queue: Queue, done_field: str, change: bytes | None = None) -> None:
    """Run the commands of `queue` in a transaction, and repeat it if another client changed a ledger meanwhile.

    If `change` is already in `done_field`, nothing is written.
    """
    fields = [field for chain in CHAINS for field in FIELDS[chain]]

    async def attempt(client: Any) -> bool:
        async with client.pipeline(transaction=True) as pipe:
            await pipe.watch(LEDGER, REFUSALS)
            *values, done, form = await pipe.execute_command("HMGET", LEDGER, *fields, done_field, "form")
            if form is not None:  # a history without a record has no format version
                check_form(f"Redis ({link.where})", form)
            if change is not None and done == change:
                return True
            if values[0] is not None:
                log_upgrade(link.report, f"the history in Redis ({link.where})", form)
            values_by_field = dict(zip(fields, values, strict=True))

            async def read(chain: str) -> StoredChain:
                stored_chain = _decode_chain(link, chain, [values_by_field[field] for field in FIELDS[chain]])
                return await _recover_ledger(link, pipe.execute_command, chain, stored_chain)

            try:
                await queue(pipe, read, done)
            except fault.WatchError:
                return False
            return True

    for _ in range(TRIES_MAX):
        if await link.run(LEDGER, attempt):
            return
    raise StoreError("busy", f"the history changed {TRIES_MAX} times during the write; try again")


async def _read_newest(link: RedisClient, stream: str) -> Record | None:
    entries = await link.execute("XREVRANGE", stream, "+", "-", "COUNT", 1)
    records = _decode_records(link, entries)
    return records[0] if records else None


def _decode_chain(link: RedisClient, chain: str, values: Sequence[bytes | None]) -> StoredChain:
    ledger_value, stream_value = values
    with link.decoding():
        ledger = Ledger() if ledger_value is None else decode_ledger(ledger_value)
        stream = STREAMS[chain] if stream_value is None else stream_value.decode()
    return StoredChain(ledger, stream)


def _decode_records(link: RedisClient, entries: Sequence[tuple[bytes, dict[bytes, bytes]]]) -> list[Record]:
    """Decode records of a stream. An entry that another program wrote becomes a record that is reported as faulty."""
    records = []
    with link.decoding():
        for entry_id, fields in entries:
            number = int(entry_id.partition(b"-")[0])
            text = fields.get(b"record", b"").decode(errors="replace")
            records.append(Record(number, text))
    return records


async def _read_folds(execute: Execute) -> list[Fold]:
    fields = await execute("HGETALL", REFUSALS)
    return [Fold(key.decode(), text.decode()) for key, text in fields.items()]

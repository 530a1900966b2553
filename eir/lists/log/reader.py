"""Reader of lists from their logs: content of the head or of an earlier generation, verified by every digest."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, fields, replace

from eir.errors import StoreError
from eir.lists.log.change import NO_CHANGE, Change, Head, first_break, following
from eir.lists.log.store import LogEntry, LogStore
from eir.lists.table.codec import decode, decode_change
from eir.lists.table.columns import TableRows
from eir.lists.table.digest import DigestTree, digest_tree, updated_tree
from eir.lists.table.table import EMPTY, Table, change, device_count, fold

LENGTH_BYTES = 4
"""Bytes of the length before each part in the rows of a log entry."""


@dataclass(frozen=True, slots=True)
class LoggedList:
    """Content of a list after its newest change."""

    head: Head
    table: Table
    tree: DigestTree
    since_base: tuple[Change, ...] = ()
    """Changes since the newest base, oldest first; the first one has the base."""

    @property
    def rows_since_base(self) -> int:
        """Number of rows in the log since the newest base."""
        return sum(change.added + change.removed for change in self.since_base[1:])

    @property
    def bytes_since_base(self) -> int:
        """Size of the rows in the log since the newest base."""
        return sum(change.rows_bytes for change in self.since_base[1:])


def empty_content(kind: str) -> LoggedList:
    """Return the content of a list that no store has yet."""
    return LoggedList(Head(kind=kind), EMPTY, digest_tree(EMPTY, ()))


def damaged(name: str, fault: str) -> StoreError:
    """Return the error for a list whose stored data does not have its digest."""
    return StoreError("corrupt", f"list {name} is damaged in the store: {fault}")


def _gone(name: str, generation: int) -> StoreError:
    return StoreError("gone", f"list {name}: generation {generation} is no longer stored")


async def read_content(store: LogStore, name: str, head: Head, at: int | None = None) -> LoggedList:
    """Read a list from its newest base and the changes after it. `at`: an earlier generation.

    Raises:
        StoreError: if the store fails (`corrupt`: damaged data), or no longer has the generation (`gone`).
    """
    entries = await store.log(name, head.base - 1 if at is None else 0)
    last = head.generation if at is None else at
    entries = [entry for entry in entries if entry.change.generation <= last]
    bases = [index for index, entry in enumerate(entries) if entry.change.base_id]
    if not bases or entries[-1].change.generation != last:
        raise _gone(name, last)
    first = entries[bases[-1]].change
    parts = await _read_parts(store.base(name, first.base_id), first.base)
    if parts is None and at is not None and not await _has_parts(store, name, first.base_id):
        raise _gone(name, last)
    if parts is None:
        raise damaged(name, f"the base of generation {first.generation} has another digest, or is missing")
    try:
        table = await asyncio.to_thread(decode, parts)
    except ValueError as error:
        raise damaged(name, f"the base of generation {first.generation}: {error}") from error
    tree = await asyncio.to_thread(digest_tree, table, first.reasons)
    if tree.root != first.content:
        raise damaged(name, f"the base of generation {first.generation} has another content digest than its change")
    begun = LoggedList(_after(head, first, table), table, tree, (first,))
    content = await _applied(store, name, begun, entries[bases[-1] + 1 :])
    return content if at is not None else _checked(name, content, head)


async def advance(store: LogStore, name: str, held: LoggedList, head: Head) -> LoggedList:
    """Apply the changes since the held content, and return the content of the head, whose chain contains the held change.

    If a change since then has a base in place of rows, the newest base is read.

    Raises:
        StoreError: if the store fails (`corrupt`: damaged data).
    """
    entries = [
        entry for entry in await store.log(name, held.head.generation) if entry.change.generation <= head.generation
    ]
    is_readable = held.head.digest != NO_CHANGE and entries and entries[0].change.before == held.head.digest
    if not is_readable or any(entry.rows is None and not entry.change.rows_id for entry in entries):
        return await read_content(store, name, head)
    return _checked(name, await _applied(store, name, held, entries), head)


async def step(store: LogStore, name: str, content: LoggedList, entry: LogEntry) -> LoggedList:
    """Return the content after the next change of a list.

    Raises:
        StoreError: if the store fails (`corrupt`: damaged data), or no longer has the rows and the base of the change (`gone`).
    """
    if entry.rows is None and not entry.change.rows_id:
        return await read_content(store, name, content.head, at=entry.change.generation)
    return await _applied(store, name, content, [entry])


async def oldest_readable(store: LogStore, name: str, entries: Sequence[LogEntry]) -> int:
    """Return the generation of the oldest content that the store can restore. `entries`: all log entries of the list; at least one."""
    for entry in entries:
        if entry.change.base_id and await _has_parts(store, name, entry.change.base_id):
            return entry.change.generation
    return entries[-1].change.generation


def _checked(name: str, content: LoggedList, head: Head) -> LoggedList:
    """Return the content with the stored head, if the log leads to this head."""
    known = {"base_digest", "base", "loaded_at", "releases"}
    for field in fields(Head):
        if field.name not in known and getattr(head, field.name) != getattr(content.head, field.name):
            raise damaged(
                name, f"its log does not lead to its head of generation {head.generation}: {field.name} differs"
            )
    return replace(content, head=head)


async def _applied(store: LogStore, name: str, content: LoggedList, entries: Sequence[LogEntry]) -> LoggedList:
    """Apply log entries, which must continue the content, and verify the content digest after the last one."""
    if not entries:
        return content
    changes = [entry.change for entry in entries]
    broken = first_break(changes, content.head.digest)
    if broken is not None:
        raise damaged(name, f"generation {broken.generation} does not continue the generation before it")
    rows = [await rows_of_entry(store, name, entry) for entry in entries]
    last = changes[-1]
    reasons = next((each.reasons for each in reversed(changes) if each.reasons), content.head.reasons)

    def apply() -> tuple[Table, DigestTree]:
        effect = change(content.table, *fold(rows))
        return effect.table, updated_tree(content.tree, effect.table, reasons, effect.blocks)

    table, tree = await asyncio.to_thread(apply)
    if tree.root != last.content:
        raise damaged(name, f"generation {last.generation} has another content digest than its change")
    since_base = content.since_base
    for each in changes:
        since_base = (each,) if each.base_id else (*since_base, each)
    return LoggedList(_after(replace(content.head, reasons=reasons), last, table), table, tree, since_base)


def _after(head: Head, last: Change, table: Table) -> Head:
    return following(head, last, entries=len(table), devices=device_count(table))


async def rows_of_entry(store: LogStore, name: str, entry: LogEntry) -> tuple[TableRows, TableRows]:
    """Read, verify and decode the added and the removed rows of a change.

    Raises:
        StoreError: `corrupt` for damaged rows, `gone` for rows that are deleted, or of which the change has only a base.
    """
    place = f"the rows of generation {entry.change.generation}"
    if entry.change.rows_id:
        parts = await _read_parts(store.base(name, entry.change.rows_id), entry.change.rows)
    elif entry.rows is None:
        raise _gone(name, entry.change.generation)
    else:
        parts = split_parts(entry.rows) if hashlib.sha256(entry.rows).hexdigest() == entry.change.rows else None
    if parts is None:
        raise damaged(name, f"{place} have another digest, or are missing")
    try:
        return await asyncio.to_thread(decode_change, parts)
    except ValueError as error:
        raise damaged(name, f"{place}: {error}") from error


async def _has_parts(store: LogStore, name: str, part_id: str) -> bool:
    """Return True if at least one part with this ID is stored."""
    async for _ in store.base(name, part_id):
        return True
    return False


async def _read_parts(parts: AsyncIterator[bytes], digest: str) -> list[bytes] | None:
    """Read all parts; None if they do not have this SHA-256."""
    total, octets = hashlib.sha256(), []
    async for part in parts:
        total.update(part)
        octets.append(part)
    return octets if total.hexdigest() == digest else None


def join_parts(parts: Sequence[bytes]) -> bytes:
    """Join parts to the rows of a log entry, each with its length before it."""
    return b"".join(octets for part in parts for octets in (len(part).to_bytes(LENGTH_BYTES, "little"), part))


def split_parts(rows: bytes) -> list[bytes]:
    """Split the rows of a log entry into parts; a part that is cut short stays so, and its decoder reports it."""
    parts, at = list[bytes](), 0
    while at < len(rows):
        end = at + LENGTH_BYTES + int.from_bytes(rows[at : at + LENGTH_BYTES], "little")
        parts.append(rows[at + LENGTH_BYTES : end])
        at = end
    return parts

"""Reader of lists from their logs: content of the head or of an earlier generation, verified by every digest."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

from eir.errors import StoreError
from eir.lists.log.change import NO_CHANGE, Change, Head, first_break, following
from eir.lists.log.store import LogEntry, LogSource
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


class ChangeRows(NamedTuple):
    """Change of a list with its rows."""

    change: Change
    parts: Sequence[bytes] | None
    """Encoded rows; None if they are not stored."""

    def decoded(self, name: str) -> tuple[TableRows, TableRows]:
        """Decode the added and the removed rows. `name`: list, for the error.

        Raises:
            StoreError: `corrupt`, or `gone` without rows.
        """
        if self.parts is None:
            raise _gone(name, self.change.generation)
        try:
            return decode_change(self.parts)
        except ValueError as error:
            raise damaged(name, f"{_place(self.change)}: {error}") from error


def empty_content(kind: str) -> LoggedList:
    """Return the content of a list that no store has yet."""
    return LoggedList(Head(kind=kind), EMPTY, digest_tree(EMPTY, ()))


def damaged(name: str, fault: str) -> StoreError:
    """Return the error for a list whose stored data does not have its digest."""
    return StoreError("corrupt", f"list {name} is damaged in the store: {fault}")


class SuppressUnreadable:
    """Context manager that suppresses a StoreError for data that is damaged (`corrupt`) or deleted (`gone`)."""

    def __enter__(self) -> None: ...

    def __exit__(self, _type: object, error: BaseException | None, _trace: object) -> bool:
        return isinstance(error, StoreError) and error.cause in {"corrupt", "gone"}


def _gone(name: str, generation: int) -> StoreError:
    return StoreError("gone", f"list {name}: generation {generation} is no longer stored")


async def read_content(store: LogSource, name: str, head: Head, at: int | None = None) -> LoggedList:
    """Read a list from its newest base and the changes after it. `at`: an earlier generation.

    Raises:
        StoreError: if the store fails (`corrupt`: damaged data), or no longer has the generation (`gone`).
    """
    entries = await store.log(name, head.base - 1 if at is None else 0)
    last = head.generation if at is None else at
    entries = [entry for entry in entries if entry.change.generation <= last]
    bases = [index for index, entry in enumerate(entries) if entry.change.base_id]
    if not bases or entries[-1].change.generation != last:
        raise _gone(name, last) if at is not None else damaged(name, f"its log does not lead to generation {last}")
    first = entries[bases[-1]].change
    if at is not None and not await has_parts(store, name, first.base_id):
        raise _gone(name, last)
    table, tree = await read_base(store, name, first)
    after = following(head, first, entries=len(table), devices=device_count(table))
    content = await _applied(store, name, LoggedList(after, table, tree, (first,)), entries[bases[-1] + 1 :])
    return content if at is not None else checked(name, content, head)


async def read_base(store: LogSource, name: str, first: Change) -> tuple[Table, DigestTree]:
    """Read and verify the base that a change wrote.

    Raises:
        StoreError: if the store fails (`corrupt`: the base is missing or damaged).
    """
    parts = await _read_parts(store.base(name, first.base_id), first.base)
    if parts is None:
        raise damaged(name, f"the base of generation {first.generation} has another digest, or is missing")
    try:
        table = await asyncio.to_thread(decode, parts)
    except ValueError as error:
        raise damaged(name, f"the base of generation {first.generation}: {error}") from error
    tree = await asyncio.to_thread(digest_tree, table, first.reasons)
    if tree.root != first.content:
        raise damaged(name, f"the base of generation {first.generation} has another content digest than its change")
    return table, tree


async def advance(store: LogSource, name: str, held: LoggedList, head: Head) -> LoggedList:
    """Apply the changes since the held content, and return the content of the head, whose chain contains the held change.

    If a change since then has a base in place of rows, the newest base is read.

    Raises:
        StoreError: if the store fails (`corrupt`: damaged data).
    """
    entries = entries_until(head, await store.log(name, held.head.generation))
    if held.head.digest == NO_CHANGE or not continues_by_rows(held.head, entries):
        return await read_content(store, name, head)
    return checked(name, await _applied(store, name, held, entries), head)


def entries_until(head: Head, entries: Sequence[LogEntry]) -> Sequence[LogEntry]:
    """Return the entries up to the generation of a head."""
    return [entry for entry in entries if entry.change.generation <= head.generation]


def has_rows(entry: LogEntry) -> bool:
    """Return True if the rows of an entry are stored."""
    return entry.rows is not None or bool(entry.change.rows_id)


def continues_by_rows(held: Head, entries: Sequence[LogEntry]) -> bool:
    """Return True if the entries lead from the held change on, and the rows of each are stored."""
    return bool(entries) and entries[0].change.before == held.digest and all(map(has_rows, entries))


async def step(store: LogSource, name: str, content: LoggedList, entry: LogEntry) -> LoggedList:
    """Return the content after the next change of a list.

    Raises:
        StoreError: if the store fails (`corrupt`: damaged data), or no longer has the rows and the base of the change (`gone`).
    """
    if not has_rows(entry):
        return await read_content(store, name, content.head, at=entry.change.generation)
    return await _applied(store, name, content, [entry])


async def oldest_readable(store: LogSource, name: str, entries: Sequence[LogEntry]) -> int:
    """Return the generation of the oldest content that the store can restore. `entries`: all log entries of the list; at least one."""
    for entry in entries:
        if entry.change.base_id and await has_parts(store, name, entry.change.base_id):
            return entry.change.generation
    return entries[-1].change.generation


def checked(name: str, content: LoggedList, head: Head) -> LoggedList:
    """Return the content with the stored head, if the log leads to this head.

    Raises:
        StoreError: `corrupt`.
    """
    known = {"base_digest", "base", "loaded_at", "releases"}
    for field in fields(Head):
        if field.name not in known and getattr(head, field.name) != getattr(content.head, field.name):
            raise damaged(
                name, f"its log does not lead to its head of generation {head.generation}: {field.name} differs"
            )
    return replace(content, head=head)


async def _applied(store: LogSource, name: str, content: LoggedList, entries: Sequence[LogEntry]) -> LoggedList:
    changes = [await read_rows(store, name, entry) for entry in entries]
    return await asyncio.to_thread(apply_changes, name, content, changes)


def apply_changes(name: str, content: LoggedList, changes: Sequence[ChangeRows]) -> LoggedList:
    """Apply changes, which must continue the content, and verify the content digest after the last one.

    Raises:
        StoreError: `corrupt`.
    """
    if not changes:
        return content
    broken = first_break([each.change for each in changes], content.head.digest)
    if broken is not None:
        raise damaged(name, f"generation {broken.generation} does not continue the generation before it")
    last = changes[-1].change
    reasons = next((each.change.reasons for each in reversed(changes) if each.change.reasons), content.head.reasons)
    effect = change(content.table, *fold([each.decoded(name) for each in changes]))
    tree = updated_tree(content.tree, effect.table, reasons, effect.blocks)
    if tree.root != last.content:
        raise damaged(name, f"generation {last.generation} has another content digest than its change")
    head, since_base, devices = content.head, content.since_base, device_count(effect.table)
    for each in changes:
        head = following(head, each.change, entries=len(effect.table), devices=devices)
        since_base = (each.change,) if each.change.base_id else (*since_base, each.change)
    return LoggedList(head, effect.table, tree, since_base)


async def read_rows(store: LogSource, name: str, entry: LogEntry) -> ChangeRows:
    """Read and verify the rows of a change.

    Raises:
        StoreError: `gone`, if they are deleted; `corrupt`, if they are damaged.
    """
    made = entry.change
    if made.rows_id:
        parts = await _read_parts(store.base(name, made.rows_id), made.rows)
    elif entry.rows is None:
        raise _gone(name, made.generation)
    else:
        parts = split_parts(entry.rows) if hashlib.sha256(entry.rows).hexdigest() == made.rows else None
    if parts is None:
        raise damaged(name, f"{_place(made)} have another digest, or are missing")
    return ChangeRows(made, parts)


def _place(made: Change) -> str:
    return f"the rows of generation {made.generation}"


async def has_parts(store: LogSource, name: str, part_id: str) -> bool:
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

"""Lists in a backup: each is a file with its head, the newest part of its log, and the rows and bases that a rollback needs.

A file is a sequence of records. Each record is a line of JSON with the size of the content that follows it. The reader trusts nothing: each
change, row and base has the digest that the chain up to the head states.

A restored list is never older than the list in the store or on the node, unless the restore is forced: followers keep their list if the
store has an older one. A record of first sightings is merged, so that no device loses its earliest day.
"""

import json
from collections.abc import AsyncIterator, Callable, Container, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from eir.errors import StoreChanged, StoreError
from eir.lists.changes.undo import RESTORE, restored
from eir.lists.log.change import NO_CHANGE, Change, Head, SerialMark, decode, digests_of, encode
from eir.lists.log.reader import LoggedList, SuppressUnreadable, damaged, entries_until, has_parts, read_content, step
from eir.lists.log.store import LogEntry, LogStore
from eir.lists.log.writer import ListUpdate, ListWriter, Make
from eir.lists.record.first_days import IMPORT
from eir.lists.record.settings import FIRST_SEEN
from eir.lists.table.columns import BEGINS, block_numbers, distinct, matches

READ_AGAIN_MAX = 10
"""Maximum number of reads of a list that changes while it is read."""
HEAD, CHANGE, ROWS, PART = "head", "change", "rows", "part"
"""Kinds of records. Rows follow their change; parts with an ID follow each other in their order."""
LINE_BYTES_MAX = 1 << 12
LOG_MAX = 1_000
"""Maximum number of changes that a restore writes as they are; of a longer log it writes the content alone."""
RECORD_BYTES_MAX = 1 << 28
"""Maximum size in bytes of a record's content."""


class Restored(NamedTuple):
    """Result of a restore for one list."""

    list: str
    serial: int
    entries: int
    is_written: bool
    """False if the store had the list already."""
    change: Change | None = None
    """Change that the restore has written; None if the log of the backup was written as it is."""


# Write


async def write_lists(store: LogStore, folder: Path) -> None:
    """Write each list of a store to a file in a folder.

    Raises:
        StoreError: if the store cannot be read, has a damaged list, or changes all the time.
    """
    for name in await store.heads():
        for _ in range(READ_AGAIN_MAX):
            heads = await store.heads()
            try:
                head = heads[name]
                with (folder / name).open("wb") as out:
                    await _write_list(store, name, head, out)
                await read_content(ListFile(folder / name), name, head)
                break
            except KeyError:
                raise StoreChanged(f"list {name} was removed from the store while it was read") from None
            except StoreError as error:
                is_damaged = (await store.heads()).digests.get(name) == heads.digests[name]
                if error.cause not in {"corrupt", "gone"} or is_damaged:
                    raise
        else:
            raise StoreChanged(f"list {name} changed {READ_AGAIN_MAX} times while it was read: try again")


async def _write_list(store: LogStore, name: str, head: Head, out: IO[bytes]) -> None:
    """Write a list up to its head. Changes before the oldest one from which all rows and bases are stored are left out."""
    _write_record(out, HEAD, encode(head))
    kept = list[LogEntry]()
    for entry in entries_until(head, await store.log(name, 0)):
        change = entry.change
        is_stored = (entry.rows is not None or bool(change.part_ids)) and all(
            [await has_parts(store, name, part_id) for part_id in change.part_ids]
        )
        if not is_stored:
            kept.clear()
        elif kept or change.base_id:
            kept.append(entry)
    for entry in kept:
        _write_record(out, CHANGE, encode(entry.change))
        if entry.rows is not None:
            _write_record(out, ROWS, entry.rows)
        for part_id in entry.change.part_ids:
            async for octets in store.base(name, part_id):
                _write_record(out, PART, octets, part_id)


def _write_record(out: IO[bytes], kind: str, content: bytes, part_id: str = "") -> None:
    line = {"kind": kind, "bytes": len(content)} | ({"id": part_id} if part_id else {})
    out.write(json.dumps(line, separators=(",", ":")).encode() + b"\n" + content)


# Read


class _RecordPlace(NamedTuple):
    """Place of a record's content in a file."""

    at: int
    size: int


class ListFile:
    """List in a backup, as a source of its log (eir.lists.log.store.LogSource).

    Args:
        path: file, named after the list.

    Raises:
        StoreError: `corrupt`, if the file is no list of a backup.
    """

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._path = path
        self._parts: dict[str, list[_RecordPlace]] = {}
        self.changes: list[Change] = []
        """Changes of the log, oldest first."""
        self._rows: dict[int, _RecordPlace] = {}
        """Place of the rows of a change, by its index."""
        try:
            self.head = self._read()
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            raise StoreError("corrupt", f"list {self.name}: {error}") from error

    def _read(self) -> Head:
        """Read the changes and the places of rows and parts; return the head. Raises ValueError for records in another order."""
        head: Head | None = None
        for kind, part_id, place, content in self._records():
            if kind == HEAD and head is None:
                head = decode(Head, content)
            elif kind == CHANGE and head is not None:
                self.changes.append(decode(Change, content))
            elif kind == ROWS and self.changes:
                self._rows[len(self.changes) - 1] = place
            elif kind == PART and self.changes:
                self._parts.setdefault(part_id, []).append(place)
            else:
                raise ValueError(f"the record {kind!r:.40} is at the wrong place")
        if head is None or not self.changes or self.changes[-1].digest != head.digest:
            raise ValueError("its log does not lead to its head")
        return head

    def _records(self) -> Iterator[tuple[str, str, _RecordPlace, bytes]]:
        """Yield kind, ID, place and, for heads and changes, content of each record."""
        with self._path.open("rb") as file:
            end = file.seek(0, 2)
            file.seek(0)
            while line := file.readline(LINE_BYTES_MAX):
                record: dict[str, Any] = json.loads(line)
                kind, size = record["kind"], record["bytes"]
                at = file.tell()
                if type(size) is not int or not 0 <= size <= min(RECORD_BYTES_MAX, end - at):
                    raise ValueError("a record is longer than the file")
                content = file.read(size) if kind in {HEAD, CHANGE} else b""
                file.seek(at + size)
                yield kind, str(record.get("id", "")), _RecordPlace(at, size), content

    def _content(self, place: _RecordPlace) -> bytes:
        with self._path.open("rb") as file:
            file.seek(place.at)
            return file.read(place.size)

    async def log(self, name: str, after: int) -> Sequence[LogEntry]:  # noqa: ARG002 - there is one list
        """Return the changes of the list with generations above `after`."""
        return [self.entry(at) for at, change in enumerate(self.changes) if change.generation > after]

    def entry(self, at: int) -> LogEntry:
        """Return the entry of a change by its index."""
        rows = self._rows.get(at)
        return LogEntry(self.changes[at], None if rows is None else self._content(rows))

    async def base(self, name: str, part_id: str) -> AsyncIterator[bytes]:  # noqa: ARG002 - as above
        """Yield the parts with an ID in order."""
        for octets in self.parts(part_id):
            yield octets

    def parts(self, part_id: str) -> Iterator[bytes]:
        """Yield the parts with an ID in order."""
        return (self._content(place) for place in self._parts.get(part_id, ()))


async def verified_content(file: ListFile) -> LoggedList:
    """Return the content of a list in a backup; verify every kept release.

    Raises:
        StoreError: `corrupt`.
    """
    bases = [change.generation for change in file.changes[:-1] if change.base_id]
    for generation in bases[1:]:
        await read_content(file, file.name, file.head, generation)  # with the changes since the base before
    if not file.changes[0].base_id:
        raise damaged(file.name, "its log does not begin with a base")
    return await read_content(file, file.name, file.head)


# Restore


def newer_reasons(
    heads: Mapping[str, ListFile], places: Mapping[str, Mapping[str, Head]], marks: Mapping[str, SerialMark]
) -> dict[str, str]:
    """Return the reason for each list that a restore would replace by an older version.

    Args:
        heads: lists in the backup.
        places: heads of the lists in the store and on the node, by the name of the place.
        marks: highest marks that were in force on this node.
    """
    reasons: dict[str, str] = {}
    for name, file in heads.items():
        head = file.head
        if head.kind == FIRST_SEEN:
            continue
        if marks.get(name, head.mark) > head.mark:
            _, serial = marks[name]
            reasons[name] = f"serial {serial} was in force on this node, and the backup's highest is {head.mark[1]}"
        chain = digests_of(file.changes) - {NO_CHANGE}
        for place, held_heads in places.items():
            held = held_heads.get(name)
            if held is not None and _is_older(head, chain, held):
                newer = f"serial {held.serial} (generation {held.generation})"
                reasons[name] = f"{place} has {newer}, and the backup {head.serial} ({head.generation})"
    return reasons


def _is_older(head: Head, chain: Container[str], held: Head) -> bool:
    """Return True if a list in a backup does not contain the change that the store or the node holds, and is not newer."""
    if held.digest in chain:
        return False
    return (held.mark, held.generation) >= (head.mark, head.generation)


async def restore_list(
    file: ListFile, store: LogStore, writer: Callable[[str, str], ListWriter], *, made: str, mark: SerialMark, held: Head | None, force: bool
) -> Restored:  # fmt: skip
    """Restore a list. If the store lacks the list, the log of the backup is written as it is; otherwise the content becomes a change.

    Args:
        file: list in the backup.
        store: store to which the list is restored.
        writer: creates a writer from name and kind of a list.
        made: time of the backup.
        mark: highest mark that was in force on this node.
        held: head that this node holds; None if it holds none.
        force: also restore a list that is newer in the store or on nodes, or damaged in the store, as a change that nodes follow.

    Raises:
        StoreError: if a store fails.
    """
    name, head = file.name, file.head
    heads = await store.heads()
    stored: Head | None = None
    with SuppressUnreadable() if force else nullcontext():
        stored = heads.get(name)
    is_written, change = False, None
    first = _first_to_write(file)
    if name not in heads.digests and first is not None:
        await _write_log(file, store, first)
        is_written = True
    elif stored is None or stored.digest != head.digest:
        content = await read_content(file, name, head)
        if head.kind == FIRST_SEEN and stored is not None:
            change = await _merge_days(content, name, store, writer, made)
        else:
            update = restored(content, made=made, mark=mark, force=force)
            change = await writer(name, head.kind).write(update, over_damage=force)
        is_written = change is not None
    if force and head.kind != FIRST_SEEN:
        follow = await _follow(file, store, made, mark, held)
        change = await writer(name, head.kind).write(follow) or change
    return Restored(name, head.serial, head.entries, is_written or change is not None, change)


async def _write_log(file: ListFile, store: LogStore, first: int) -> None:
    """Write the log of a backup, from the change with the index `first` on, to a store that lacks the list.

    The head after each change is that of the change, so that a restore which is killed leaves an earlier state of the list.
    """
    name, seen = file.name, NO_CHANGE
    content = await read_content(file, name, file.head, file.changes[first].generation)
    for at in range(first, len(file.changes)):
        entry = file.entry(at)
        if at > first:
            content = await step(file, name, content, entry)
        for part_id in entry.change.part_ids:
            await store.stage(name, part_id, file.parts(part_id))
        head = file.head if entry.change.digest == file.head.digest else content.head
        await store.commit(name, head, entry, seen=seen)
        seen = head.digest


def _first_to_write(file: ListFile) -> int | None:
    """Return the index of the oldest base that at most LOG_MAX changes follow; None without such a base."""
    first = max(len(file.changes) - LOG_MAX, 0)
    return next((at for at in range(first, len(file.changes)) if file.changes[at].base_id), None)


async def _follow(file: ListFile, store: LogStore, made: str, mark: SerialMark, held: Head | None) -> Make:
    """Return the function that makes every node follow a list that was restored with force; its result is None if they do already."""
    contained = digests_of(entry.change for entry in await store.log(file.name, 0))
    is_lost = held is not None and held.digest not in contained

    def make(content: LoggedList) -> ListUpdate | None:
        state = {"serial_resets": mark[0] + 1} if content.head.mark < mark else {}
        if not state and not is_lost:
            return None
        update = ListUpdate(what=RESTORE, state=state, detail=f"forced, from the backup of {made}")
        return update if held is None or not is_lost else replace(update, continues=held.digest, above=held.generation)

    return make


async def _merge_days(
    backup: LoggedList, name: str, store: LogStore, writer: Callable[[str, str], ListWriter], made: str
) -> Change | None:
    """Merge a record of first sightings into that of the store: rows that the store lacks or has with a later day become an import."""
    stored = await read_content(store, name, (await store.heads())[name])
    rows = backup.table.rows()
    present = stored.table.rows(distinct(block_numbers(rows.keys)))
    at = matches(rows, present)
    later = np.where(at < 0, np.iinfo(np.int64).max, present.column(BEGINS)[at] if len(present) else 0)
    earlier = rows.select(rows.column(BEGINS) < later)
    if not len(earlier):
        return None
    update = ListUpdate(what="import", added=earlier, detail=f"{len(earlier)} devices from the backup of {made}")
    return await writer(f"{name.removesuffix(IMPORT)}{IMPORT}", FIRST_SEEN).write(lambda _: update)

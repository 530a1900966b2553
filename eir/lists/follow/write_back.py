"""Writes of a node to a store that lost data: the held content of a list, and local changes that a failover lost.

A write-back is a change with a base above the generations of both, which names the digest that it continues. So nodes that hold this
content follow it. Of a local list it keeps the rows that the store has got since.
"""

import asyncio
import csv
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import NamedTuple

import numpy as np

from eir.disk import open_replacement
from eir.errors import StoreError
from eir.lists.changes.merged_rows import with_reasons
from eir.lists.follow.list_copy import copied_head
from eir.lists.log.change import HEAL, NO_CHANGE, TIME_FORMAT, Change, Head, digests_of, release_of
from eir.lists.log.node_journal import SUBJECTS, row_texts
from eir.lists.log.reader import ChangeRows, LoggedList, SuppressUnreadable, read_base, read_rows
from eir.lists.log.relation import effective
from eir.lists.log.store import LogEntry, LogStore
from eir.lists.log.writer import ListUpdate, ListWriter
from eir.lists.table.columns import (
    BEGINS,
    ENDS,
    NO_COLUMNS,
    NO_ROWS,
    REASONS,
    SECONDS,
    TableRows,
    block_numbers,
    distinct,
    matches,
)
from eir.lists.table.digest import digest_tree
from eir.lists.table.table import change, fold, merge

NO_MARK = (0, 0)
"""Mark of a local list."""
APPLY_AGAIN, ABANDON = "apply-again", "abandon"
"""Kinds of changes that this module writes, beside HEAL."""
APPLY_AGAIN_MAX = timedelta(days=1)
"""Age up to which a lost change is applied again."""
LOST_COLUMNS = ("change", "time", "who", "what", "effect", *SUBJECTS, "device_type", "reason", "begin", "until", "date")
"""Columns of the file with lost rows."""
APPLY_S = 60.0
"""Seconds for which a node has the lease while it applies lost changes."""


def is_lost(held: Head | None, stored: Head | None) -> bool:
    """Return True if the store has lost changes of a local list, whose head on this host's disk is `held`."""
    generation = 0 if stored is None else stored.generation
    return held is not None and held.mark == NO_MARK and generation < held.generation


def refuse_lost(name: str, held: Head | None, stored: Head | None) -> None:
    """Raise StoreError (`lost`) if the store has lost changes of a local list: a change now would begin the list again without them."""
    if held is not None and is_lost(held, stored):
        missing = f"generation {held.generation}, which this node holds"
        remedy = f"wait until a node has written it back, or give it up: eir lists abandon {name} --reason TEXT"
        raise StoreError("lost", f"list {name}: the store has lost {missing}; {remedy}")


def refuse_lost_here(copies: Path, name: str, stored: Head) -> None:
    """Raise StoreError as `refuse_lost`. `copies`: folder of this host's copies."""
    refuse_lost(name, copied_head(copies, name), stored)


async def abandon(writer: ListWriter, held: Head, reason: str) -> Change | None:
    """Give up the held content of a local list that the store has lost: the stored content goes on, and all nodes follow it.

    Raises:
        StoreError: if the store fails.
    """
    return await writer.write(
        lambda content: (
            ListUpdate(what=ABANDON, continues=held.digest, above=held.generation, detail=reason)
            if is_lost(held, content.head)
            else None
        )
    )


class LostChanges(NamedTuple):
    """Local changes that the stored chain or a write-back does not contain, oldest first."""

    applicable: Sequence[ChangeRows] = ()
    """Changes to apply again."""
    gone: Sequence[ChangeRows] = ()
    """Changes that cannot be applied: too old, without rows, or the stored log does not reach back to the common change."""
    missing: str = ""
    """Digest of a lost change that the node lacks."""
    touched: TableRows = NO_ROWS
    """Rows that the stored chain has changed since the common change."""


class WriteBack:
    """Writes of a node to one list.

    Args:
        store: store of the list.
        writer: writer of the list. It has the content after a write.
        now: clock in UTC.
    """

    def __init__(
        self, store: LogStore, writer: ListWriter, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self.writer = writer
        self.lost = LostChanges()
        """Stored changes that a write-back could not keep."""
        self._store, self._name, self._now = store, writer.name, now

    async def heal(self, held: LoggedList, seen: str, stored: Head | None, known: frozenset[str]) -> Change:
        """Write the held content to a store that has lost or damaged the list.

        Args:
            held: content that the node holds.
            seen: digest of the newest stored change; NO_CHANGE for none.
            stored: head in the store; None if it is missing or damaged.
            known: digests of the changes that the node has held.

        Raises:
            GenerationConflict: if another process was faster.
            StoreError: if the store fails, or the held content has another content digest than its head (`corrupt`).
        """
        head, table, reasons = held.head, held.table, held.head.reasons
        if (await asyncio.to_thread(digest_tree, table, reasons)).root != head.content:
            fault = "the content in memory is damaged and is not written back; restart the node"
            raise StoreError("corrupt", f"list {self._name}: {fault}")
        entries = await self._store.log(self._name, 0)
        rows = list[tuple[TableRows, TableRows]]()
        if head.mark == NO_MARK:
            rows, reasons = await self._since(entries, seen, known, reasons)
        if rows:
            table = (await asyncio.to_thread(change, table, *fold(rows))).table
        release, generation = release_of(head), 0
        if seen != NO_CHANGE:
            stored_generation = head.generation if stored is None else stored.generation
            generation = max([stored_generation, *(entry.change.generation for entry in entries)])
        if stored is not None and stored.mark > head.mark:
            release |= {"serial_resets": stored.serial_resets, "highest_serial": stored.highest_serial}
        shown = f"generation {generation}" if generation else "nothing"
        detail = (
            f"generation {head.generation} from this node's copy; the store showed {shown}; changes kept: {len(rows)}"
        )
        update = ListUpdate(what=HEAL, state=release, reasons=reasons, continues=head.digest, above=head.generation, detail=detail)  # fmt: skip
        return await self.writer.overwrite(replace(head, digest=seen, generation=generation), table, update)

    async def _since(
        self, entries: Sequence[LogEntry], seen: str, known: frozenset[str], reasons: tuple[str, ...]
    ) -> tuple[list[tuple[TableRows, TableRows]], tuple[str, ...]]:
        """Read the rows of the stored changes after the newest one that the node has held, with reasons of the node's list, which are returned too.

        A change whose rows are deleted or damaged counts as one that adds the rows of its base. `lost` has the changes without either.
        """
        chain, others, missing = _after_known(entries, seen, known)
        rows, texts = list[tuple[TableRows, TableRows]](), reasons
        gone = [ChangeRows(entry.change, None) for entry in others]
        for entry in chain:
            texts = entry.change.reasons or texts
            changed = await self._rows(entry) or await self._base_rows(entry)
            if changed is None:
                gone.append(ChangeRows(entry.change, None))
            else:
                added, reasons = with_reasons(changed[0], texts, reasons)
                rows.append((added, changed[1]))
        self.lost = LostChanges(gone=gone, missing=missing)
        return rows, reasons

    async def _rows(self, entry: LogEntry) -> tuple[TableRows, TableRows] | None:
        """Read the rows of a change; None if they are deleted or damaged."""
        with SuppressUnreadable():
            return (await read_rows(self._store, self._name, entry)).decoded(self._name)
        return None

    async def _base_rows(self, entry: LogEntry) -> tuple[TableRows, TableRows] | None:
        """Read the base of a change as added rows; None if it has none, or if the base is deleted or damaged."""
        with SuppressUnreadable():
            return (await read_base(self._store, self._name, entry.change))[0].rows(), NO_ROWS
        return None

    async def find_lost(
        self, held: Head, stored: LoggedList, entries: Sequence[LogEntry], kept: Iterable[ChangeRows]
    ) -> LostChanges:
        """Find the local changes that a stored chain lost; none, if the stored content has the effect of them all.

        Args:
            held: head that the node holds.
            stored: content in the store.
            entries: log in the store.
            kept: changes in the node's copy, newest file first.
        """
        if held.content == stored.head.content:
            return LostChanges()
        changes = [entry.change for entry in entries]
        chain = effective(changes)
        own = frozenset(change.digest for change in chain)
        applied = {change.continues for change in chain if change.what == APPLY_AGAIN}
        overtaken = {change.digest for change in changes} - own
        contained = own | digests_of(chain) - overtaken - applied - {NO_CHANGE}
        found, common = await asyncio.to_thread(_back, held.digest, contained, kept)
        missing = "" if common in contained | applied else common
        lost = [each for each in found if each.change.what != HEAL and each.change.digest not in applied]
        if not lost or self._are_contained(lost, held, stored):
            return LostChanges(missing=missing)
        begin = (self._now() - APPLY_AGAIN_MAX).strftime(TIME_FORMAT)
        after = _after(entries, common, {each.change.digest for each in found})
        read = [await self._rows(entry) for entry in after or ()]
        touched = [each for each in read if each is not None]
        is_known = after is not None and len(touched) == len(read)
        can_apply = [is_known and each.parts is not None and each.change.time >= begin for each in lost]
        changed = [(TableRows(rows.keys, (rows.columns[SECONDS], *NO_COLUMNS[1:])), NO_ROWS) for pair in touched for rows in pair]  # fmt: skip
        return LostChanges(
            [each for each, is_applicable in zip(lost, can_apply, strict=True) if is_applicable],
            [each for each, is_applicable in zip(lost, can_apply, strict=True) if not is_applicable],
            missing,
            fold(changed)[0] if changed else NO_ROWS,
        )

    def _are_contained(self, changes: Sequence[ChangeRows], held: Head, stored: LoggedList) -> bool:
        """Return True if changes together would not change the stored content."""
        if any(each.parts is None for each in changes):
            return False
        added, removed = fold([each.decoded(self._name) for each in changes])
        added, _ = with_reasons(added, held.reasons, stored.head.reasons)
        numbers = distinct(np.concatenate((block_numbers(added.keys), block_numbers(removed.keys))))
        before = stored.table.rows(numbers)
        after = merge(before.select(matches(before, removed) < 0), added)
        columns = [(rows.keys, *map(rows.column, (SECONDS, REASONS, BEGINS, ENDS))) for rows in (before, after)]
        return all(map(np.array_equal, *columns))

    async def apply_again(self, lost: LostChanges, reasons: Sequence[str]) -> Sequence[Change]:
        """Write lost changes, each as a change that names it; a row that was changed since is left out.

        The writer must have the content by which the changes were found. If another process changes the list meanwhile, the rest is not
        written.

        Args:
            lost: lost changes.
            reasons: reason texts of the list that the node holds.

        Returns:
            The written changes.

        Raises:
            StoreError: if the store fails.
        """
        written = list[Change]()
        for each in lost.applicable:
            update = partial(self._again, each, lost.touched, reasons, self.writer.content.head.digest)
            made = await self.writer.write(update)
            if made is None:
                break
            written.append(made)
        return written

    def _again(
        self, each: ChangeRows, touched: TableRows, reasons: Sequence[str], expected: str, content: LoggedList
    ) -> ListUpdate | None:
        if content.head.digest != expected:
            return None
        added, removed = (rows.select(matches(rows, touched) < 0) for rows in each.decoded(self._name))
        added, texts = with_reasons(added, reasons, content.head.reasons)
        lost = each.change
        detail = f"{lost.what} of {lost.who} at {lost.time}, which the store had lost"
        return ListUpdate(what=APPLY_AGAIN, added=added, removed=removed, reasons=texts, continues=lost.digest, above=lost.generation, detail=detail)  # fmt: skip


def _after_known(
    entries: Sequence[LogEntry], seen: str, known: frozenset[str]
) -> tuple[Sequence[LogEntry], Sequence[LogEntry], str]:
    """Return the entries after the newest one that the node has held: those that lead to the newest stored change, and those before a gap or a damaged record, with the digest that is missing there.

    Write-backs of content that the node has held are left out. `seen`: digest of the newest stored change; NO_CHANGE for an unknown one.
    """
    chain, others, missing, expected = list[LogEntry](), list[LogEntry](), "", seen
    for entry in reversed(entries):
        made = entry.change
        if made.digest != expected != NO_CHANGE:
            missing = missing or expected
        if made.digest in known:
            break
        if not (made.what == HEAL and made.continues in known):
            (others if missing else chain).append(entry)
        expected = made.before
    return chain[::-1], others[::-1], missing


def _back(digest: str, contained: frozenset[str], kept: Iterable[ChangeRows]) -> tuple[list[ChangeRows], str]:
    """Go back from a change to the first one that a chain contains; return the changes after it, oldest first, and its digest.

    Before a write-back comes the change that it continues.
    """
    lost, by_digest, more = list[ChangeRows](), dict[str, ChangeRows](), iter(kept)
    while digest not in contained:
        with suppress(StoreError):  # a damaged file ends the kept changes
            while digest not in by_digest and (each := next(more, None)) is not None:
                by_digest[each.change.digest] = each
        if digest not in by_digest:
            break
        lost.append(by_digest[digest])
        made = by_digest[digest].change
        digest = made.continues if made.what == HEAL else made.before
    return lost[::-1], digest


def _after(entries: Sequence[LogEntry], common: str, lost: set[str]) -> Sequence[LogEntry] | None:
    """Return the entries after the common change, but lost ones and those that applied one again; None if the log does not reach back."""
    for at, entry in enumerate(entries):
        if common in {entry.change.before, entry.change.continues}:
            after = [each for each in entries[at:] if each.change.continues not in lost | {common}]
            return [each for each in after if each.change.digest not in lost]
    return [] if entries and entries[-1].change.digest == common else None


def write_lost_file(path: Path, held: Head, changes: Sequence[ChangeRows]) -> None:
    """Write a file for the operator with the rows of changes that are not applied again.

    Raises:
        OSError: if the file cannot be written.
    """
    path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    with open_replacement(path, mode=0o600, durable=True) as file:
        text = TextIOWrapper(file, "utf-8", newline="")
        lines = csv.DictWriter(text, LOST_COLUMNS, lineterminator="\n")
        lines.writeheader()
        for each in changes:
            made = each.change
            about = {"change": made.digest[:16], "time": made.time, "who": made.who, "what": made.what}
            unknown = [{"effect": "unknown"}]
            rows = unknown if each.parts is None else row_texts(each, held.kind, path.name, held.reasons)
            lines.writerows({**about, **row} for row in rows)
        text.detach()

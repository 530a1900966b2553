"""Follower of lists that are logs: keeps the images of lists, and this node's copies, equal to the store. It answers no checks.

For each new state of a list the order is: journal, copy, in force. Each list fails singly: a damaged record of one list, or a full disk,
delays no other list. If a list cannot be verified, or the store has lost it, the list in force stays.
"""

import asyncio
import math
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from eir.errors import EirError, GenerationConflict, Report, StoreError
from eir.lists.follow.learned_list import LearnedList
from eir.lists.follow.list_copy import ListCopy
from eir.lists.follow.pauses import PAUSES, ChangePace, Pauses
from eir.lists.follow.write_back import APPLY_S, NO_MARK, LostChanges, WriteBack, write_lost_file
from eir.lists.log.change import HEAL, NO_CHANGE, Change, Head, digests_of, first_break
from eir.lists.log.journal import ROWS_MAX
from eir.lists.log.node_journal import NodeJournal
from eir.lists.log.reader import (
    ChangeRows,
    LoggedList,
    SuppressUnreadable,
    apply_changes,
    checked,
    continues_by_rows,
    entries_until,
    has_rows,
    read_content,
    read_rows,
)
from eir.lists.log.relation import LogRelation, overtaking, relation
from eir.lists.log.store import LogEntry, LogStore, StoredHeads
from eir.lists.log.writer import KEEP, ListWriter
from eir.lists.record.clock import STOOD_STILL, await_store
from eir.lists.record.matching import matching_table, other_reasons
from eir.lists.record.reasons import unknown_reasons
from eir.lists.table.table import Table

OF_ONE_LIST = frozenset({"corrupt", "gone", "image", "kind", "conflict", "staging_lost"})
"""Causes of faults that concern one list, not the store."""
DAMAGE_TRIES = 3
"""Number of failed reads after which a stored list counts as damaged, and is written back."""
REPORT_AGAIN_S = 60.0
"""Minimum time in seconds between two equal events about a list."""
LOST = "lost"
"""Folder in the state folder with lost changes for the operator: `NAME-DIGEST.csv`, with 16 digits of the digest."""
UNRECORDED_MAX = 1_000
"""Maximum number of changes that wait until the journal can be written; the oldest are left out."""

NO_REASONS: Mapping[str, Sequence[str]] = {}

ImageType = TypeVar("ImageType")
ResultType = TypeVar("ResultType")


@dataclass(slots=True, eq=False)
class FollowedList(Generic[ImageType]):
    """List that a node follows."""

    name: str
    kind: str
    copy: ListCopy
    reasons: Sequence[str] = ()
    """Reasons of the rows that match (ListSettings.reasons)."""
    is_read: bool = False
    """True if the copy was read."""
    held: LoggedList | None = None
    """Newest verified content."""
    image: ImageType | None = None
    in_force: Head | None = None
    """Head of the content in force. `image` is its image."""
    image_reasons: Sequence[str] = ()
    """Reasons of the rows in the image."""
    reason_faults: str = ""
    """Last reported faults of the chosen reasons."""
    pace: ChangePace = field(default_factory=ChangePace)
    unrecorded: list[ChangeRows] = field(default_factory=list)
    is_compared: bool = False
    """True if changes of the copy that the journal lacks were looked up in the store."""
    is_tried: bool = False
    """True if it was tried to put the copy in force."""
    not_before: float = 0.0
    """Time (time.monotonic) of the next read after a failure."""
    pause_s: float = 0.0
    failed_at: str = ""
    """Digest of the stored change that could not be read."""
    failures: int = 0
    heal_at: float | None = None
    """Time of the write-back."""
    copy_at: float = 0.0
    """Time before which the copy is not written, because the disk was full."""

    def has_in_force(self, head: Head) -> bool:
        """Return True if the image in force has the content after the newest change of a head, and the configured reasons."""
        is_newest = self.in_force is not None and self.in_force.digest == head.digest
        return is_newest and self.image_reasons == self.reasons


class LogFollower(Generic[ImageType]):
    """Follower of a store: puts each new state of a list in force.

    Args:
        store: store to follow.
        lists: name of each list → its kind.
        folder: state folder, for the copies.
        build: builds the image of a table; it runs in a thread.
        on_switch: receives each list that came into force: name, head, table, image, and the previous image if it is another one.
        journal: journal of the node.
        report: logs events.
        who: name of this node in changes.
        heal: write a list back to a store that has lost it.
        keep: returns the number of earlier releases of a list that stay available, for changes that this node writes.
        pauses: pauses between reads and retries.
        learned: lists that checks write. Their names are among `lists`; the follower builds no image of them.
        reasons: reasons of the rows that match, for lists in which only some rows match.
    """

    def __init__(
        self, store: LogStore, lists: Mapping[str, str], folder: Path, *, build: Callable[[Table], ImageType],
        on_switch: Callable[[str, Head, Table, ImageType, ImageType | None], None], journal: NodeJournal, report: Report,
        who: str = "eir", heal: bool = True, keep: Callable[[str], int] = lambda _: KEEP, pauses: Pauses = PAUSES,
        learned: Collection[LearnedList] = (), reasons: Mapping[str, Sequence[str]] = NO_REASONS,
    ) -> None:  # fmt: skip
        self.up = False
        """True if the last read of the store succeeded."""
        self.errors: Counter[str] = Counter()
        """Number of failures by cause; `lost_data`: the store has lost data of a list; `forked`: it has another chain."""
        self.lost: dict[str, str] = {}
        """Lists in force that the store has lost, with the store's state as text."""
        self.lost_rows: dict[str, Path] = {}
        """Lists that lost changes in a failover without their repeated application, with the file of these rows for the operator."""
        self.from_copy: set[str] = set()
        """Lists in force that came from the copy and that the store has not confirmed yet."""
        self.copy_faults: dict[str, str] = {}
        """Reason of the fault for each list whose copy could not be read or written, or written back to the store."""
        self.in_step_at = time.monotonic()
        """Last time (time.monotonic) at which the lists in force were verified to be those in the store; normally at most `wait_s` ago."""
        self._store = store
        self._timed = TimedStore(store, pauses.answer_s)
        self._folder, self._build, self._on_switch, self._journal, self._report = (
            folder,
            build,
            on_switch,
            journal,
            report,
        )
        self._who, self._heals, self._keep, self._pauses = who, heal, keep, pauses
        self._learned = learned
        self._learned_names = frozenset(name for each in learned for name in each.kinds)
        self._others = asyncio.Event()
        """Event that is set if the configured lists have changed since the last pass."""
        self._seen: Mapping[str, str] = {}
        self._reported_at: dict[tuple[str, str], float] = {}
        self._rest_s = 0.0
        self._lists: dict[str, FollowedList[ImageType]] = {}
        self.apply(lists, reasons)

    def apply(self, lists: Mapping[str, str], reasons: Mapping[str, Sequence[str]] = NO_REASONS) -> None:
        """Apply a new configuration: names, kinds and chosen reasons of its lists. A list with the same name and kind keeps its content."""
        before, self._lists = self._lists, {}
        for name, kind in lists.items():
            followed = before.get(name)
            if followed is None or followed.kind != kind:
                followed = FollowedList(name, kind, ListCopy(self._folder / "copies", name, self._report))
                for path in _lost_files(self._folder, name):
                    self.lost_rows[name] = path
            followed.reasons = reasons.get(name, ())
            self._lists[name] = followed
        for names in (self.lost, self.lost_rows, self.copy_faults):
            for name in names.keys() - lists.keys():
                del names[name]
        self.from_copy &= lists.keys()
        self._others.set()

    def accept(self, name: str, head: Head, image: ImageType, reasons: Sequence[str] = ()) -> None:
        """Accept the image of a list that is in force, when this follower takes the place of one that ended. Call it before `start`.

        `reasons`: chosen reasons by which the image was built.
        """
        followed = self._lists.get(name)
        if followed is not None and followed.kind == head.kind:
            followed.in_force, followed.image, followed.image_reasons = head, image, reasons

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of the configured lists that are not in force yet."""
        return tuple(
            name
            for name, followed in self._lists.items()
            if followed.in_force is None and name not in self._learned_names
        )

    @property
    def held(self) -> Mapping[str, LoggedList]:
        """Newest verified content of each list."""
        return {name: followed.held for name, followed in self._lists.items() if followed.held is not None}

    def image_reasons(self, name: str) -> Sequence[str]:
        """Return the chosen reasons by which the image of a list was built."""
        return self._lists[name].image_reasons

    @property
    def in_force(self) -> Mapping[str, Head]:
        """Head of each list in force."""
        return {name: followed.in_force for name, followed in self._lists.items() if followed.in_force is not None}

    # Tasks

    async def start(self) -> None:
        """Put all lists in force from the store or from the copies, before the node answers checks.

        If the store is unreachable or a list cannot be verified, nothing is raised: see `up`, `errors`, `missing`, `from_copy`.
        """
        with suppress(_StoreAway):
            await self._step()

    async def run(self) -> None:
        """Follow the store until the task is cancelled."""
        while True:
            try:
                self._others.clear()
                await self._step()
                await asyncio.sleep(self._rest_s)
                await self._wait()
            except _StoreAway:
                await asyncio.sleep(self._pauses.retry_s)

    async def record(self, name: str) -> None:
        """Record the stored changes that continue a list, before they are in force, because a process of this host waits for it.

        Raises:
            EirError: if the store cannot be read, or the journal cannot be written.
            OSError: if the disk fails.
        """
        followed = self._lists.get(name)
        held = None if followed is None else followed.held
        if held is None:
            return
        entries = await self._timed.log(name, held.head.generation)
        if continues_by_rows(held.head, entries):
            unrecorded = [entry for entry in entries if not self._journal.has(name, entry.change.digest)]
            changes = await self._changes(name, unrecorded, ROWS_MAX)
            await asyncio.to_thread(self._journal.record, name, changes, held.head.reasons)

    async def _wait(self) -> None:
        """Wait until a list in the store may have changed, or until a new configuration has changed the lists."""
        wait_s = self._pauses.wait_s
        limited = await_store(self._store.wait(self._seen, wait_s), self._pauses.answer_s + wait_s)
        tasks = [asyncio.create_task(self._of_store(limited)), asyncio.create_task(self._others.wait())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _step(self) -> None:
        """Follow each list once. A list that cannot be followed then has the newest state that the node holds in force.

        Raises:
            _StoreAway: if the store fails.
        """
        lists = tuple(self._lists.values())
        for followed in lists:
            if not followed.is_read:
                await self._read_copy(followed)
        try:
            await self._follow_all(lists)
        finally:
            for followed in lists:
                await self._settle(followed)

    async def _follow_all(self, lists: Sequence[FollowedList[ImageType]]) -> None:
        self._rest_s = 0.0
        heads = await self._of_store(self._timed.heads())
        if not self.up and self.errors:
            self._report("store_back")
        self.up = True
        self._seen = heads.digests
        is_in_step = True
        for followed in lists:
            is_in_step &= await self._of_list(
                followed, self._follow(followed, heads), heads.digests.get(followed.name, NO_CHANGE)
            )
        if is_in_step:
            self.in_step_at = time.monotonic()

    async def _settle(self, followed: FollowedList[ImageType]) -> None:
        """Put the held content in force if it is newer than the list in force."""
        held, newest = followed.held, followed.in_force
        if held is None or followed.has_in_force(held.head):
            return
        if await self._newest(followed) is held.head:
            if not followed.is_tried and newest is None:
                self.from_copy.add(followed.name)
                followed.not_before = 0.0
            followed.is_tried = True
            await self._of_list(followed, self._switch(followed, held), followed.failed_at)

    async def _of_store(self, work: Awaitable[ResultType]) -> ResultType:
        """Await work on the whole store.

        Raises:
            _StoreAway: if it fails.
        """
        try:
            return await work
        except Exception as error:
            raise self._away(error) from error

    def _away(self, error: Exception) -> "_StoreAway":
        """Count and report a failure of the whole store."""
        cause = _cause(error)
        if cause == STOOD_STILL:
            self._report("stood_still", level="warning", detail=str(error))
        else:
            self._failed(cause, error)
        return _StoreAway()

    async def _of_list(
        self, followed: FollowedList[ImageType], work: Coroutine[Any, Any, bool], seen: str = ""
    ) -> bool:
        """Await work on one list, and return its result; after a fault of this list return False, and let it wait longer each time.

        Raises:
            _StoreAway: if the store fails.
        """
        if time.monotonic() < followed.not_before:
            work.close()
            return False
        try:
            result = await work
        except Exception as error:
            cause = _cause(error)
            if isinstance(error, StoreError) and cause not in OF_ONE_LIST:
                raise self._away(error) from error
            if cause != "conflict":
                self._failed(cause, error, followed.name)
            is_same = seen == followed.failed_at
            followed.failures = (followed.failures if is_same else 0) + (cause in {"corrupt", "gone"})
            followed.failed_at = seen
            followed.pause_s = min(2 * followed.pause_s or self._pauses.unproved_s, self._pauses.unproved_max_s)
            followed.not_before = time.monotonic() + followed.pause_s
            return False
        followed.pause_s = followed.not_before = 0.0
        if result:
            followed.failures = 0
        return result

    # One list

    async def _follow(self, followed: FollowedList[ImageType], heads: StoredHeads) -> bool:
        """Update one list from the store; return True if the list in force then equals the one in the store."""
        name, newest = followed.name, await self._newest(followed)
        is_damaged = followed.failures >= DAMAGE_TRIES and followed.failed_at == heads.digests.get(name)
        stored = None
        try:
            stored = heads.get(name)
        except StoreError:
            if not is_damaged:
                raise
        if is_damaged and newest is not None:
            await self._lose(followed, newest, heads, stored, is_damaged=True)
            return False
        self._check_kind(followed, stored)
        await self._compare_journal(followed)
        found, entries = await self._relation(followed, newest, stored)
        if found is LogRelation.SAME or await self._append(followed, found):
            await self._confirm(followed)
            return True
        if found is LogRelation.LOST and newest is not None:
            await self._lose(followed, newest, heads, stored)
            return False
        if stored is None:
            return True
        followed.pace.begin()
        if found is LogRelation.FORKED and newest is not None:
            if not await self._fork(followed, newest, stored, entries):
                return False
        else:
            await self._advance(followed, stored, entries, found)
        self._rest_s = max(self._rest_s, followed.pace.end())
        await self._confirm(followed)
        return True

    def _check_kind(self, followed: FollowedList[ImageType], head: Head | None) -> None:
        if head is not None and head.kind != followed.kind:
            kinds = (
                f"{followed.name} is a list of {head.kind} in the store, and of {followed.kind} in the configuration"
            )
            advice = f"load a full release of {followed.kind}, or correct the configuration"
            raise StoreError("kind", f"{kinds}: {advice}")

    async def _newest(self, followed: FollowedList[ImageType]) -> Head | None:
        """Return the newest head that the node has: the held one, or that of the list in force if the held chain does not contain it.

        A copy is older than the list in force if the disk was full before the follower was started again.
        """
        held, in_force = followed.held, followed.in_force
        if held is None or in_force is None:
            return in_force if held is None else held.head
        is_contained = in_force.digest == held.head.digest or in_force.digest in await asyncio.to_thread(
            followed.copy.known
        )
        return held.head if is_contained else in_force

    async def _relation(
        self, followed: FollowedList[ImageType], held: Head | None, stored: Head | None
    ) -> tuple[LogRelation, Sequence[LogEntry]]:
        """Return the relation of the stored list to the newest head of the node, and the stored log as far as it was read for this."""
        has_content = followed.held is not None and held is not None and followed.held.head.digest == held.digest
        if held is None or stored is None or held.digest == stored.digest:
            found = relation(held, stored)
            return LogRelation.NEWER if found is LogRelation.SAME and held and not has_content else found, ()
        entries = entries_until(stored, await self._timed.log(followed.name, held.generation))
        changes, known = [entry.change for entry in entries], frozenset[str]()
        if held.digest not in digests_of(changes) or any(change.what == HEAL for change in changes):
            entries = entries_until(stored, await self._timed.log(followed.name, 0))
            changes = [entry.change for entry in entries]
            known = await asyncio.to_thread(followed.copy.known)
        found = relation(
            held, stored, held_past=known, stored_past=digests_of(changes),
            oldest=_oldest(changes, stored),
            has_seen_base=held.base_digest in digests_of(change for change in changes if change.base_id),
            overtaken_by=overtaking(held, changes, known),
        )  # fmt: skip
        if not has_content and (stored.mark, stored.generation) < (held.mark, held.generation):
            found = LogRelation.LOST  # the changes up to the list in force are unknown
        return found, entries

    async def _advance(
        self, followed: FollowedList[ImageType], stored: Head, entries: Sequence[LogEntry], found: LogRelation
    ) -> None:
        """Put a newer state of a list in force: by its changes if they continue the held one, otherwise from the newest base."""
        name, held = followed.name, followed.held
        if held is not None and found is LogRelation.NEWER and continues_by_rows(held.head, entries):
            changes = await self._changes(name, entries)
            if all(each.parts is not None for each in changes):
                content = await asyncio.to_thread(apply_changes, name, held, changes)
                await self._put_in_force(followed, checked(name, content, stored), changes)
                return
        content = await read_content(self._timed, name, stored)
        entries = await self._timed.log(name, 0)
        if found is LogRelation.BEHIND:
            followed.copy.note(entry.change for entry in entries_until(stored, entries)[:-1])
        unseen = await self._unseen(followed, stored, entries)
        if held is not None and _has_gap(held.head, [each.change for each in unseen]):
            self._record_gap(followed, "gap", held.head, stored)
        await self._put_in_force(followed, content, unseen)

    async def _unseen(
        self, followed: FollowedList[ImageType], stored: Head, entries: Sequence[LogEntry]
    ) -> Sequence[ChangeRows]:
        """Return the changes up to a stored head that the node has not held; without rows if these are deleted or damaged."""
        until = entries_until(stored, entries)
        known = await asyncio.to_thread(followed.copy.known)
        return await self._changes(followed.name, [each for each in until if each.change.digest not in known])

    async def _changes(
        self, name: str, entries: Iterable[LogEntry], rows_max: float = math.inf
    ) -> Sequence[ChangeRows]:
        """Read the rows of changes; return a change without rows if they are deleted, damaged, or more than `rows_max`."""
        changes = list[ChangeRows]()
        for entry in entries:
            made = entry.change
            changes.append(ChangeRows(made, None))
            if has_rows(entry) and made.added + made.removed <= rows_max:
                with SuppressUnreadable():
                    changes[-1] = await read_rows(self._timed, name, entry)
        return changes

    async def _put_in_force(
        self, followed: FollowedList[ImageType], content: LoggedList, changes: Sequence[ChangeRows]
    ) -> None:
        """Record changes in the journal, update the copy, and put the content after the changes in force."""
        for learned in self._learned:
            await learned.note(followed.name, followed.held, content, changes)
        followed.unrecorded += changes
        followed.copy.note(each.change for each in changes)
        followed.held = content
        await self._record(followed)
        await self._save_copy(followed, changes)
        await self._switch(followed, followed.held)

    async def _confirm(self, followed: FollowedList[ImageType]) -> None:
        """Note that the held list is the stored one, and finish the steps that failed before."""
        name, held = followed.name, followed.held
        if held is None:
            return
        await self._record(followed)
        await self._save_copy(followed, ())
        if not followed.has_in_force(held.head):
            await self._switch(followed, followed.held or held)
        self.from_copy.discard(name)
        followed.heal_at = None
        if self.lost.pop(name, None) is not None:
            self._reported_at.pop(("store_lost_data", name), None)
            self._report("store_mended", list=name)

    async def _switch(self, followed: FollowedList[ImageType], content: LoggedList) -> bool:
        before, image, reasons = followed.image, followed.image, followed.reasons
        head = content.head
        if followed.name in self._learned_names:
            followed.in_force = head
            return True
        has_content = followed.in_force is not None and followed.in_force.content == head.content
        if before is None or not has_content or followed.image_reasons != reasons:
            try:
                image = await asyncio.to_thread(self._build, matching_table(content.table, head.reasons, reasons))
            except OSError as error:  # a limit on memory or on the size of files
                raise StoreError(
                    "image", f"list {followed.name}: its image cannot be built: {error.strerror or error}"
                ) from error
        if (
            image is not None and self._lists.get(followed.name) is followed
        ):  # otherwise the configuration was changed meanwhile
            followed.image, followed.in_force, followed.image_reasons = image, head, reasons
            self._note_reasons(followed, content)
            self._on_switch(followed.name, head, content.table, image, None if before is image else before)
        return True

    def _note_reasons(self, followed: FollowedList[ImageType], content: LoggedList) -> None:
        """Report chosen reasons that a list lacks, and rows that match without their reason, if this changed."""
        chosen = followed.image_reasons
        found = (unknown_reasons(content.head.reasons, chosen), other_reasons(content.table, chosen))
        faults = "; ".join(filter(None, found))
        if faults and faults != followed.reason_faults:
            self._report(
                "reasons_unknown",
                level="warning",
                list=followed.name,
                detail=f"lists.{followed.name}.reasons: {faults}",
            )
        followed.reason_faults = faults

    # Journal and copy

    async def _compare_journal(self, followed: FollowedList[ImageType]) -> None:
        """Find the changes of the copy that the journal lacks, once after a start, because an earlier process could not record them."""
        held = followed.held
        if not followed.is_compared and held is not None and not self._journal.has(followed.name, held.head.digest):
            known = await asyncio.to_thread(followed.copy.known)
            entries = [each for each in await self._timed.log(followed.name, 0) if each.change.digest in known]
            followed.unrecorded += await self._changes(followed.name, entries[-UNRECORDED_MAX:], ROWS_MAX)
        followed.is_compared = True

    async def _record(self, followed: FollowedList[ImageType]) -> None:
        if not followed.unrecorded or followed.held is None:
            return
        changes = followed.unrecorded
        try:
            await asyncio.to_thread(self._journal.record, followed.name, changes, followed.held.head.reasons)
        except (EirError, OSError) as error:
            self._failed("journal", error, followed.name, event="journal_failed")
            followed.unrecorded = changes[-UNRECORDED_MAX:]
        else:
            followed.unrecorded = []

    def _record_gap(self, followed: FollowedList[ImageType], what: str, before: Head, after: Head) -> None:
        try:
            self._journal.record_gap(followed.name, what, before, after)
        except (EirError, OSError) as error:
            self._failed("journal", error, followed.name, event="journal_failed")

    async def _read_copy(self, followed: FollowedList[ImageType]) -> None:
        followed.is_read = True
        try:
            held = await asyncio.to_thread(followed.copy.read)
            self._check_kind(followed, None if held is None else held.head)
        except StoreError as error:
            self._copy_failed(followed, "copy_", error)
        else:
            followed.held = held

    async def _save_copy(self, followed: FollowedList[ImageType], changes: Sequence[ChangeRows]) -> None:
        """Bring the copy to the held content; the content is then a view of the copy if the whole copy was written."""
        if followed.held is None or time.monotonic() < followed.copy_at:
            return
        try:
            followed.held = await asyncio.to_thread(followed.copy.save, followed.held, changes)
        except StoreError as error:
            followed.copy_at = time.monotonic() + (
                self._pauses.full_s if error.cause == "full" else self._pauses.retry_s
            )
            self._copy_failed(followed, "copy_", error)
        else:
            self.copy_faults.pop(followed.name, None)

    def _copy_failed(self, followed: FollowedList[ImageType], of: str, error: StoreError) -> None:
        self.copy_faults[followed.name] = str(error)
        self._failed(of + error.cause, error, followed.name, event="copy_failed")

    # Lost and forked lists

    def _write_back(self, followed: FollowedList[ImageType]) -> WriteBack:
        name, keep = followed.name, self._keep(followed.name)
        return WriteBack(self._store, ListWriter(self._store, name, followed.kind, self._who, keep=keep))

    async def _lose(
        self,
        followed: FollowedList[ImageType],
        head: Head,
        heads: StoredHeads,
        stored: Head | None,
        *,
        is_damaged: bool = False,
    ) -> None:
        """Report that the store has lost or damaged a list, and write it back after a random pause. `head`: newest head that the node has."""
        name = followed.name
        await self._settle(followed)
        seen = heads.digests.get(name, NO_CHANGE)
        stored_text = "damaged data" if is_damaged else "nothing"
        if stored is not None and not is_damaged:
            stored_text = f"generation {stored.generation}, serial {stored.serial}"
        if name not in self.lost:
            self.errors["lost_data"] += 1
        self.lost[name] = stored_text
        if self._is_due("store_lost_data", name):
            self._report(
                "store_lost_data", level="error", list=name, stored=stored_text, detail="the memory stays in force",
                held=f"generation {head.generation}, serial {head.serial}",
            )  # fmt: skip
        if followed.heal_at is None:
            followed.heal_at = time.monotonic() + random.uniform(0, self._pauses.heal_s)  # noqa: S311 - no secret
        if self._heals and time.monotonic() >= followed.heal_at:
            followed.heal_at = None
            await self._heal(followed, head, seen, stored)

    async def _heal(self, followed: FollowedList[ImageType], head: Head, seen: str, stored: Head | None) -> None:
        """Write the newest content of a list back to the store, where the newest change has the digest `seen`."""
        name, held = followed.name, followed.held
        if held is None or held.head.digest != head.digest:
            fault = "this node's copy is older than the list in force and is not written back; load the release again"
            self._copy_failed(followed, "heal_", StoreError("behind", f"list {name}: {fault}"))
            return
        work = self._write_back(followed)
        try:
            known = await asyncio.to_thread(followed.copy.known)
            change = await work.heal(held, seen, stored, known)
        except GenerationConflict:
            return  # another process wrote first; its change is read next
        except StoreError as error:
            self._copy_failed(followed, "heal_", error)
            return
        followed.failures = 0
        self._report("store_healed", level="warning", list=name, detail=change.detail)
        await self._write_lost(followed, head, work.lost)
        await self._put_in_force(followed, work.writer.content, [ChangeRows(change, None)])
        await self._confirm(followed)

    async def _append(self, followed: FollowedList[ImageType], found: LogRelation) -> bool:
        """If the store has lost rows of a learned list, append them, follow the stored chain, and return True."""
        name, held = followed.name, followed.held
        learned = next((each for each in self._learned if each.merging == name), None)
        is_lost = found in {LogRelation.LOST, LogRelation.FORKED}
        if learned is None or held is None or not is_lost:
            return False
        self.errors["lost_data"] += 1
        content = await learned.append_to(held)
        self._report(
            "store_lost_data", level="warning", list=name, held=f"generation {held.head.generation}",
            stored=f"generation {content.head.generation}", detail="the rows that the store had lost were appended",
        )  # fmt: skip
        entries = await self._timed.log(name, 0)
        await self._put_in_force(followed, content, await self._unseen(followed, content.head, entries))
        return True

    async def _fork(
        self, followed: FollowedList[ImageType], newest: Head, stored: Head, entries: Sequence[LogEntry]
    ) -> bool:
        """Follow another chain, after lost local changes are applied to it again; return False if another process changes the list."""
        name = followed.name
        held = newest if followed.held is None else followed.held.head
        if self._is_due("list_forked", f"{name} {stored.digest}"):
            self.errors["forked"] += 1
            self._report(
                "list_forked", level="error", list=name, held=f"generation {newest.generation}", stored=f"generation {stored.generation}",
                detail="the store has another chain of changes, as after a failover that lost writes; the stored chain goes on",
            )  # fmt: skip
        content = await read_content(self._timed, name, stored)
        lost, work = LostChanges(), self._write_back(followed)
        if held.mark == NO_MARK:
            lost = await work.find_lost(held, content, entries, followed.copy.changes())
            if held.digest != newest.digest:
                lost = lost._replace(missing=newest.digest)
        if lost.applicable:
            work.writer.content = content
            try:
                is_done = await self._apply_again(work, lost, held.reasons)
            except StoreError as error:
                self._copy_failed(followed, "apply_", error)
                if error.cause != "noperm":
                    return False
                lost = lost._replace(gone=[*lost.gone, *lost.applicable])
            else:
                if not is_done:
                    return False
                content, entries = work.writer.content, await self._timed.log(name, 0)
                self._report(
                    "lost_changes_applied", level="warning", list=name, detail=f"{len(lost.applicable)} changes"
                )
        await self._write_lost(followed, newest, lost)
        self._record_gap(followed, "fork", newest, stored)
        await self._put_in_force(followed, content, await self._unseen(followed, content.head, entries))
        return True

    async def _write_lost(self, followed: FollowedList[ImageType], held: Head, lost: LostChanges) -> None:
        """Write lost changes that are not in the list to a file for the operator, and report the file."""
        if not lost.gone and not lost.missing:
            return
        name = followed.name
        path = self._folder / LOST / f"{name}-{held.digest[:16]}.csv"
        self.lost_rows[name] = path
        try:
            await asyncio.to_thread(write_lost_file, path, held, lost.gone)
        except OSError as error:
            self._copy_failed(followed, "lost_", StoreError("io", f"{path}: {error.strerror}"))
        digests = [digest[:16] for digest in (lost.missing, *(each.change.digest for each in lost.gone)) if digest]
        self._report(
            "lost_changes_kept", level="error", list=name,
            detail=f"changes that the store lost are not applied again: {', '.join(digests)}; compare {path} with the list, then use eir add or eir remove",
        )  # fmt: skip

    async def _apply_again(self, work: WriteBack, lost: LostChanges, reasons: Sequence[str]) -> bool:
        """Apply lost changes under the list's lease; return False if another node has it, or another process changed the list."""
        task = f"apply-again:{work.writer.name}"
        if not await self._store.claim(task, self._who, APPLY_S):
            return False
        try:
            return len(await work.apply_again(lost, reasons)) == len(lost.applicable)
        finally:
            await self._store.claim(task, self._who, 0)

    # Faults

    def _failed(self, cause: str, error: Exception, name: str | None = None, *, event: str = "store_failed") -> None:
        """Count and report a fault of the store, of the copy, or of the journal."""
        self.errors[cause] += 1
        if name is None:
            self.up = False
        if self._is_due(cause, name or ""):
            self._report(event, level="error", reason=cause, list=name, detail=str(error) or type(error).__name__)

    def _is_due(self, cause: str, name: str) -> bool:
        """Return True if the last report of this cause for a list is long enough ago."""
        now = time.monotonic()
        if now - self._reported_at.get((cause, name), -math.inf) < REPORT_AGAIN_S:
            return False
        self._reported_at[cause, name] = now
        return True


class _StoreAway(Exception):
    """The store failed; the fault was counted and reported."""


def _cause(error: Exception) -> str:
    return error.cause if isinstance(error, StoreError) else "internal"


def _lost_files(folder: Path, name: str) -> Sequence[Path]:
    """Return the files with lost changes of a list that an operator has not deleted yet."""
    return sorted(path for path in (folder / LOST).glob("*.csv") if path.stem[:-17] == name)


def _oldest(changes: Sequence[Change], stored: Head) -> int:
    """Return the generation of the oldest change from which the log leads to the head without a gap."""
    oldest, before = stored.generation, stored.digest
    for change in reversed(changes):
        if change.digest != before:
            break
        oldest, before = change.generation, change.before
    return oldest


def _has_gap(held: Head, changes: Sequence[Change]) -> bool:
    """Return True if changes do not lead from the held one on, nor continue it."""
    is_continued = held.digest in {change.continues for change in changes}
    return not is_continued and first_break(changes, held.digest) is not None


class TimedStore:
    """Store whose answers have a time limit, for reading. Writes have the time limits of the store itself."""

    def __init__(self, store: LogStore, answer_s: float) -> None:
        self._store, self._answer_s = store, answer_s
        self.stage, self.commit, self.wait, self.claim, self.close = (
            store.stage,
            store.commit,
            store.wait,
            store.claim,
            store.close,
        )

    async def heads(self) -> StoredHeads:
        """Return the heads of all lists."""
        return await await_store(self._store.heads(), self._answer_s)

    async def log(self, name: str, after: int) -> Sequence[LogEntry]:
        """Return the changes of a list with generations above `after`."""
        return await await_store(self._store.log(name, after), self._answer_s)

    async def base(self, name: str, part_id: str) -> AsyncIterator[bytes]:
        """Yield the parts with an ID; the time limit applies to each."""
        parts = self._store.base(name, part_id)
        with suppress(StopAsyncIteration):
            while True:
                yield await await_store(anext(parts), self._answer_s)

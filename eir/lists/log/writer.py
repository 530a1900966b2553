"""Writer of one list: computes a change, commits it if the newest change is unchanged, else reads the log and computes it again."""

import asyncio
import hashlib
import random
import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from eir.errors import GenerationConflict, StoreError
from eir.lists.log.change import (
    FORGET,
    NEVER_UNDONE,
    NO_CHANGE,
    TIME_FORMAT,
    Change,
    Head,
    following,
    release_of,
    restorable_releases,
)
from eir.lists.log.reader import LoggedList, SuppressUnreadable, advance, empty_content, join_parts
from eir.lists.log.store import LogEntry, LogStore, StoredHeads
from eir.lists.table.codec import encode as encode_table
from eir.lists.table.codec import encode_change
from eir.lists.table.columns import NO_ROWS, TableRows
from eir.lists.table.digest import digest_tree, updated_tree
from eir.lists.table.table import Table, TableEffect, change, device_count, replacement

TRIES_MAX = 20
"""Number of times that a change is computed if other writers are faster."""
PAUSE_S_MAX = 0.05
"""Longest pause in seconds before a change is computed again."""
INLINE_BYTES_MAX = 1 << 20
"""Size in bytes up to which the rows of a change are in its log entry; longer rows are staged in parts."""
WHOLE_SHARE = 10
"""A change of more than a tenth of the list has no rows, but a base."""
BASE_ROWS, BASE_ENTRIES, BASE_BYTES = 100_000, 20_000, 1 << 20
"""A base is due if the log since the last one has more rows than this and a tenth of the list, more entries than this and a hundredth of the
list's rows, or more bytes than this and the last base."""
KEEP = 5
"""Default number of earlier releases that stay available for a rollback."""
LOCAL_KEPT = timedelta(days=1)
"""Time for which each change of a local list can be undone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListUpdate:
    """Update of a list, as a load, a local change, a rollback or a write-back computes it from the present content."""

    what: str
    """Kind of the change (Change.what)."""
    added: TableRows = NO_ROWS
    removed: TableRows = NO_ROWS
    table: Table | None = None
    """Whole new content in place of `added` and `removed`."""
    state: dict[str, Any] = field(default_factory=dict)
    """Fields of the release in force after the change (ReleaseInForce) that differ from those before."""
    reasons: tuple[str, ...] = ()
    """Reason texts of the list after the change; empty if they do not change. With rows, they begin with those before."""
    continues: str = ""
    above: int = 0
    """Generation above which that of the change must be; for a write-back or a restore."""
    lifted: tuple[str, ...] = ()
    detail: str = ""
    who: str = ""
    """User and host; empty: those of the writer."""


class ComputedUpdate(NamedTuple):
    """Update of a list with its effect on the present content."""

    content: LoggedList
    """Content before the update."""
    update: ListUpdate
    effect: TableEffect
    now: int
    """Time of the effect in Unix seconds."""


class _Staged(NamedTuple):
    """Parts that are staged in the store."""

    part_id: str
    digest: str
    """SHA-256 of all parts."""
    number: int
    size: int
    """Size of all parts in bytes."""


Make = Callable[[LoggedList], "ListUpdate | None"]
"""Function that computes an update from the present content; None if there is nothing to change."""
Complete = Callable[[ComputedUpdate], ListUpdate]
"""Function that completes an update from its effect: sets `lifted` and `detail`, or raises an exception to reject the update."""


class ListWriter:
    """Writer of one list. It keeps the content that it has read last, so that a feed reads only the log.

    Args:
        store: store of the list.
        name: name of the list.
        kind: kind of the list (eir.lists.record.settings).
        who: user and host, for the changes.
        keep: number of earlier releases (of a local list: changes) that stay available.
        now: clock in UTC.
    """

    def __init__(
        self,
        store: LogStore,
        name: str,
        kind: str,
        who: str,
        *,
        keep: int = KEEP,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.name = name
        self.content = empty_content(kind)
        """Content of the list as read or written last."""
        self._store, self._who, self._keep, self._now = store, who, keep, now
        self._spare: tuple[Table, _Staged] | None = None
        """Base that was staged before a conflict, with the table that it encodes."""

    async def catch_up(self, *, over_damage: bool = False) -> LoggedList:
        """Read the changes of other writers, and return the present content.

        `over_damage`: return a damaged list as an empty content with its head, or with the release of the newest readable change.

        Raises:
            StoreError: if the store fails.
        """
        heads = await self._store.heads()
        digest, kind = heads.digests.get(self.name, NO_CHANGE), self.content.head.kind
        if digest == NO_CHANGE:
            self.content = empty_content(kind)
        elif digest != self.content.head.digest:
            try:
                self.content = await advance(self._store, self.name, self.content, heads[self.name])
            except StoreError as error:
                if not over_damage or error.cause != "corrupt":
                    raise
                self.content = replace(empty_content(kind), head=await self._damaged_head(heads))
        return self.content

    async def _damaged_head(self, heads: StoredHeads) -> Head:
        """Return the head of a damaged list; if it is damaged itself, a head with its digest and the release of the newest readable change."""
        with SuppressUnreadable():
            return heads[self.name]
        head = Head(kind=self.content.head.kind)
        for entry in (await self._store.log(self.name, 0))[-1:]:
            head = following(head, entry.change, entries=0, devices=0)
        return replace(head, digest=heads.digests[self.name], generation=head.generation + 1, content="")

    async def compute(
        self, make: Make, complete: Complete = lambda computed: computed.update, *, over_damage: bool = False
    ) -> ComputedUpdate | None:
        """Compute an update and its effect, but write nothing. The arguments are those of `write`.

        Raises:
            StoreError: if the list cannot be read.
        """
        content = await self.catch_up(over_damage=over_damage)
        update = await asyncio.to_thread(make, content)
        if update is None:
            return None
        now = int(self._now().timestamp())
        computed = ComputedUpdate(content, update, await asyncio.to_thread(_effect, content, update, now), now)
        return computed._replace(update=complete(computed))

    async def write(
        self, make: Make, complete: Complete = lambda computed: computed.update, *, over_damage: bool = False
    ) -> Change | None:
        """Change the list; return the change, or None if there was nothing to change.

        Args:
            make: computes the update from the present content. It runs in a thread.
            complete: completes the update from its effect, or raises an exception to reject the update.
            over_damage: as for `catch_up`; the update must have a whole content.

        Raises:
            GenerationConflict: if other writers were faster TRIES_MAX times.
            StoreError: if the store fails; then nothing was written, unless the answer of the store was lost.
        """
        tries = 0
        while True:
            computed = await self.compute(make, complete, over_damage=over_damage)
            if computed is None:
                return None
            try:
                made = await self._commit(computed.update, computed.effect, is_first_try=not tries)
            except GenerationConflict:
                tries += 1
                if tries == TRIES_MAX:
                    raise
            except StoreError:
                self._spare = None  # its parts may have expired, or a change whose answer is lost may name them
                raise
            else:
                return made
            await asyncio.sleep(random.uniform(0, PAUSE_S_MAX))  # noqa: S311 - no secret

    async def overwrite(self, before: Head, table: Table, update: ListUpdate) -> Change:
        """Write a whole content as a base after a head, without reading the content before, which may be damaged.

        Args:
            before: head before the change, with the digest of the newest stored change.
            table: content after the change.
            update: the change.

        Raises:
            GenerationConflict: if another process was faster.
            StoreError: if the store fails.
        """
        self.content = replace(empty_content(before.kind), head=before)
        whole = replace(update, table=table)
        effect = await asyncio.to_thread(_effect, self.content, whole, int(self._now().timestamp()))
        return await self._commit(whole, effect, is_first_try=True)

    async def _commit(self, update: ListUpdate, effect: TableEffect, *, is_first_try: bool) -> Change:
        before, table = self.content.head, effect.table
        reasons = update.reasons or before.reasons
        is_whole = update.table is not None and (
            not self.content.since_base
            or (effect.rows_added + effect.rows_removed) * WHOLE_SHARE > len(table)
            or before.reasons != reasons[: len(before.reasons)]
            or update.what == FORGET
        )
        tree = await asyncio.to_thread(
            lambda: (
                digest_tree(table, reasons)
                if is_whole
                else updated_tree(self.content.tree, table, reasons, effect.blocks)
            )
        )
        rows = b""
        made = Change(
            generation=max(before.generation, update.above) + 1,
            before=before.digest,
            continues=update.continues,
            time=self._now().strftime(TIME_FORMAT),
            who=update.who or self._who,
            what=update.what,
            last_base=before.base_digest,
            content=tree.root,
            added=effect.rows_added,
            removed=effect.rows_removed,
            lifted=update.lifted,
            detail=update.detail,
            reasons=update.reasons if update.reasons != before.reasons else (),
            **release_of(before) | update.state,
        )
        if not is_whole:
            made, rows = await self._with_rows(made, update, effect)
        # A base takes long to stage, so that other writers may be faster again: a repeated change leaves it to the next one.
        if is_whole or not self.content.since_base or (is_first_try and self._is_base_due(made, len(table))):
            made = await self._with_base(made, table, reasons)
        head = following(before, made, entries=len(table), devices=device_count(table))
        oldest = made.generation if made.what == FORGET else await self._oldest_wanted(made) if made.base_id else 0
        await self._store.commit(self.name, head, LogEntry(made, rows or None), seen=before.digest, oldest=oldest)
        self._spare = None
        since_base = (made,) if made.base_id else (*self.content.since_base, made)
        self.content = LoggedList(head, table, tree, since_base)
        return made

    async def _with_rows(self, made: Change, update: ListUpdate, effect: TableEffect) -> tuple[Change, bytes]:
        """Encode the rows of a change; stage them if they are long.

        Rows are recorded as they were given, also those that change nothing: after a fork they are applied again to another content.
        """
        rows_of_change = effect if update.table is not None else update
        parts = await asyncio.to_thread(lambda: [*encode_change(rows_of_change.added, rows_of_change.removed)])
        if sum(map(len, parts)) <= INLINE_BYTES_MAX:
            rows = join_parts(parts)
            return replace(made, rows=hashlib.sha256(rows).hexdigest(), rows_bytes=len(rows)), rows
        staged = await self._stage(parts)
        return replace(
            made, rows=staged.digest, rows_id=staged.part_id, rows_parts=staged.number, rows_bytes=staged.size
        ), b""

    async def _with_base(self, made: Change, table: Table, reasons: tuple[str, ...]) -> Change:
        """Stage the base of a change; a base of the same table that was staged before a conflict is used again."""
        if self._spare is None or self._spare[0] is not table:
            self._spare = table, await self._stage(encode_table(table))
        staged = self._spare[1]
        return replace(
            made, base=staged.digest, base_id=staged.part_id, base_parts=staged.number, base_bytes=staged.size, reasons=reasons
        )  # fmt: skip

    async def _stage(self, parts: Iterable[bytes]) -> "_Staged":
        """Stage parts under a new ID."""
        part_id, total, size = secrets.token_hex(8), hashlib.sha256(), 0

        def summed() -> Iterator[bytes]:
            nonlocal size
            for part in parts:
                total.update(part)
                size += len(part)
                yield part

        count = await self._store.stage(self.name, part_id, summed())
        return _Staged(part_id, total.hexdigest(), count, size)

    def _is_base_due(self, made: Change, rows: int) -> bool:
        content = self.content
        logged = content.rows_since_base + made.added + made.removed
        size = content.bytes_since_base + made.rows_bytes
        has_many_entries = len(content.since_base) >= BASE_ENTRIES and logged * 100 >= rows
        return (
            has_many_entries
            or logged > max(BASE_ROWS, rows // 10)
            or size > max(BASE_BYTES, content.since_base[0].base_bytes)
        )

    async def _oldest_wanted(self, made: Change) -> int:
        """Return the generation of the oldest base that must stay, so that `keep` earlier releases can be restored; 0 keeps all.

        In a local list, each change of the last day stays, except those in NEVER_UNDONE.
        """
        changes = [entry.change for entry in await self._store.log(self.name, 0)]
        bases = [change.generation for change in changes if change.base_id]
        wanted = restorable_releases([*changes, made])[-self._keep - 1 :]
        if not made.highest_serial:
            begin = (self._now() - LOCAL_KEPT).strftime(TIME_FORMAT)
            wanted += [change for change in changes if change.what not in NEVER_UNDONE and change.time >= begin]
        limit = min([*bases[-1:], *(change.generation for change in wanted)])
        return max((generation for generation in bases if generation <= limit), default=0)


def _effect(content: LoggedList, update: ListUpdate, now: int) -> TableEffect:
    """Return the effect of an update on the present content at a time in Unix seconds."""
    if update.table is None:
        return change(content.table, update.added, update.removed, now)
    effect = replacement(content.table, update.table, now)
    if content.head.entries > len(content.table):  # a damaged list, of which only the number of devices is known
        more = device_count(effect.table) - content.head.devices
        effect = effect._replace(devices_added=max(more, 0), devices_removed=max(-more, 0))
    return effect

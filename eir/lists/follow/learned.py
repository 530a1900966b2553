"""Record of first sightings on one node: a list that checks write, and whose rows merge.

The record is a list like any other (eir.lists.follow.log_follower), and so are the imported first days, which form a list of their own.
The answering process's sightings are queued here. Each round writes the rows that the store lacks as one change, which is computed from the stored content.
If the store is away, the rows wait on this node's disk. The image has the stored rows, those that wait, and imported ones. It leaves
out rows that break a bound (eir.lists.follow.learned_bounds).

A device that a list registers is removed. A device that leaves such a list gets the first day WAS_LISTED, so that it gets no second
period of grace. Such rows are in the image and on the disk of the node before the list without the device is. The head of the
record names for each such list the change up to which the record has these rows.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np

from eir.errors import Report, StoreError
from eir.lists.follow.learned_bounds import (
    BACK_DAYS,
    NO_DAY,
    TOLERANCE_S,
    LearnedStep,
    judged,
    leads_by_rows,
    learned_steps,
    seconds_of,
)
from eir.lists.follow.learned_list import FORGOTTEN_MIN, FORGOTTEN_SHARE, LearnedList
from eir.lists.follow.learned_state import LearnedState, read_state
from eir.lists.images.first_seen_image import first_seen_image
from eir.lists.images.image import Image
from eir.lists.images.index import FirstSeenList
from eir.lists.log.change import LEARN, Head, utc_text
from eir.lists.log.reader import ChangeRows, LoggedList, continues_by_rows, empty_content, entries_until, read_rows
from eir.lists.log.store import LogStore
from eir.lists.log.writer import ListUpdate
from eir.lists.record.first_days import (
    DAY_S,
    IMPORT,
    WAS_LISTED,
    Sighted,
    batches,
    count_first_days,
    different_keys,
    first_days,
    is_covered,
    is_unseen,
    last_days,
    last_periods,
    merged_tables,
    rows_of_devices,
    select_keys,
    sighted_rows,
)
from eir.lists.record.registered import ended_rows, ends_by, is_registered
from eir.lists.record.settings import FIRST_SEEN, FirstSeenSettings
from eir.lists.table.columns import BEGINS, NO_ROWS, WHOLE, Numbers, TableRows, distinct, rows_of
from eir.lists.table.table import EMPTY, Table, change, difference, fold, has_ended, merge

BEHIND_S = 600.0
"""Seconds after which changes of registering lists that only the record names are forged."""
COMPARE_S, AHEAD_S = 3600.0, 7200
"""Seconds between two comparisons of the whole record with the registering lists, after which the record names the newest change of each
list; seconds before the end of a registration from which the
record treats it as over, so that no check comes between the end and the next comparison."""
AT_ONCE_MAX = 10_000_000
"""Maximum number of devices on record with which a device that leaves a list is in the image before the list without the device is in force.
The image of a larger record takes long to build, so it gets the device in the next round."""
NEW, LISTED, UNSEEN, LEFT, MERGED, UNDONE = "new", "listed", "unseen", "left_list", "merged", "undone"
"""Reasons for a change of the record: devices seen for the first time; in a list that registers them; not seen for long; removed from such a list; merged from other nodes and imports; import taken back."""
NO_KEYS = np.empty(0, "<u8")


class _Mark(NamedTuple):
    """Newest change of a registering list that the record has, as in the head of the record."""

    generation: int
    digest: str


def _marks(head: Head) -> dict[str, _Mark]:
    """Return the mark of each registering list in the head of a record; a text of another form is left out."""
    marks = dict[str, _Mark]()
    for text in head.registered:
        match text.split(" "):
            case [name, generation, digest] if generation.isdecimal():
                marks[name] = _Mark(int(generation), digest)
    return marks


def _mark_texts(marks: Mapping[str, _Mark]) -> tuple[str, ...]:
    return tuple(f"{name} {mark.generation} {mark.digest}" for name, mark in marks.items())


class LearnedRecord(LearnedList):
    """Record of first sightings on one node.

    Args:
        settings: settings of the record.
        record: record in memory; it gets the clock of the node and each new image.
        store: store of all lists.
        folder: state folder.
        who: name of this node in changes.
        report: logs events.
        held: returns the newest verified content of each list of this node.
        registering: returns the names of the lists whose devices do not belong on the record.
        publish: receives each new image.
        reject: receives a peer and its devices above the peer's limit, or an empty peer and devices that a list registers.
    """

    def __init__(
        self, settings: FirstSeenSettings, record: FirstSeenList, store: LogStore, folder: Path, *, who: str, report: Report,
        held: Callable[[], Mapping[str, LoggedList]], registering: Callable[[], Collection[str]],
        publish: Callable[[Head, Image], None], reject: Callable[[str, list[int]], None],
    ) -> None:  # fmt: skip
        super().__init__(
            settings.list, FIRST_SEEN, store, folder / "copies" / f"{settings.list}.learned", who=who, report=report, held=held
        )  # fmt: skip
        self.imports = settings.list + IMPORT
        self.kinds = dict.fromkeys((self.merging, self.imports), FIRST_SEEN)
        self.first_days: Mapping[int, int] = {}
        """Number of devices of the record in memory by first day."""
        self.refused = 0
        """Number of devices whose stored row breaks a bound."""
        self._settings, self._record = settings, record
        self._registering, self._publish, self._reject = registering, publish, reject
        self._state = LearnedState()
        self._is_saved = True
        """True if the file has the state."""
        self._sighted: list[Sighted] = []
        self._merged: Table = EMPTY
        """Content of the image: accepted rows, rows that wait, imported rows."""
        self._clock_start: float | None = None
        """Newest time that the node knew at its start, in Unix seconds; None until its start."""
        self._joined: list[Numbers] = []
        """Devices that came into a registering list since the last round."""
        self._compare_at = float("-inf")
        """Time (time.monotonic) of the next comparison."""
        self._behind_at = time.monotonic()
        """Last time (time.monotonic) at which this node had the changes of the registering lists that the record names."""
        self._room = 0
        """Number of unseen devices that may still be removed today."""

    # Tasks

    def note_sightings(self, sighted: Iterable[Sighted]) -> None:
        """Queue sightings of devices from the answering process. The next round adds them to the record."""
        first_min = self._record.first_day_min
        self._sighted += [each._replace(day=max(each.day, first_min)) for each in sighted]

    async def open(self) -> None:
        """Read the file with the rows that the store lacks. Call it before the follower starts."""
        try:
            self._state = await asyncio.to_thread(read_state, self._path)
        except StoreError as error:
            self._failed(f"copy_{error.cause}", error)
        self._note_time(self._state.newest)

    async def start(self) -> None:
        """Put the record in force after the follower has started, before the node answers checks."""
        async with self._lock:
            self._clock_start = self._record.known_time
            await asyncio.to_thread(self._refresh, None)
            await asyncio.to_thread(self._judge_again)
            await self._switch()

    async def round(self) -> None:
        """Publish the image if it changed, and write the rows that the store lacks. After a failure these are in the image, and the next round tries again.

        After a write the image changes once, in the next round: then the follower has read the stored rows.
        """
        async with self._lock:
            await self._switch()
            is_stored = await self._attempt(self._add_and_write())
            await asyncio.to_thread(self._save)
            if not is_stored:
                await self._switch()

    async def _add_and_write(self) -> None:
        for peer, keys in await asyncio.to_thread(self._add_sighted):
            if len(keys):
                self._reject(peer, keys.tolist())
        await asyncio.to_thread(self._judge_again)
        await self._write()

    # Contents that the follower reads

    async def note(
        self, name: str, before: LoggedList | None, content: LoggedList, changes: Sequence[ChangeRows]
    ) -> None:
        """Handle a new content of a list, before its copy is written."""
        if name not in self.kinds and name not in self._registering():
            return
        async with self._lock:
            if name == self.merging:
                await asyncio.to_thread(self._follow, before, content, changes)
            elif name == self.imports:
                added, removed = await asyncio.to_thread(_rows_between, name, before, content, changes)
                self.changes[UNDONE if any(each.change.what == "undo" for each in changes) else MERGED] += len(added)
                await asyncio.to_thread(self._refresh, _keys(added, removed), imports=content.table)
            else:
                has_left = await asyncio.to_thread(self._follow_registering, name, before, content, changes)
                if has_left and self._clock_start is not None and len(self._merged) <= AT_ONCE_MAX:
                    await self._switch()

    def _follow(self, before: LoggedList | None, content: LoggedList, changes: Sequence[ChangeRows]) -> None:
        """Judge the rows of a new content of the record. A node without a record accepts all."""
        state, waiting = self._state, self._state.pending
        state.pending = waiting.select(~is_covered(waiting, rows_of_devices(content.table, waiting.keys)))
        others = [each.change for each in changes if each.change.who != self._who]
        self.changes[MERGED] += sum(each.added for each in others)
        if before is None:
            newest = [seconds_of(each.change.time) for each in changes]
            state.newest, keys = max([state.newest, *newest]), None
        else:
            known = self._record.known_time if self._clock_start is None else self._clock_start
            limit = max(self._record.now(), known) + TOLERANCE_S
            steps, state.newest = learned_steps(
                self.merging, before, content, changes, newest=state.newest, limit=limit
            )
            ahead = [moment for each in others if (moment := seconds_of(each.time)) > limit]
            state.retry_at = min([state.retry_at, *ahead])
            keys = _keys(waiting, *(rows for step in steps for rows in (step.added, step.removed)))
            rows = self._accepted(before.table, keys)
            for step in steps:
                rows = self._judged(rows, step)
            self._dispute(keys, rows, rows_of_devices(content.table, keys))
        self._note_time(state.newest)
        self._is_saved = False
        self._refresh(keys, content.table)
        if len(state.disputed):
            self._save()  # before the copy has the rows

    def _judged(self, rows: TableRows, step: LearnedStep) -> TableRows:
        remember = self._settings.remember
        return judged(
            rows, step, left=self._has_left, registered=partial(self._is_registered, ahead=0), remember=remember
        )

    def _has_left(self, keys: Numbers) -> Numbers:
        """Return a mask of the devices that left a registering list in the last days, or whose registration ends soon."""
        moment = int(self._record.now() + AHEAD_S + TOLERANCE_S)
        return np.isin(keys, self._state.left.keys) | ends_by(self._registered_tables().values(), keys, moment)

    def _dispute(self, keys: Numbers, rows: TableRows, stored: TableRows) -> None:
        """Note which of the devices `keys` have another accepted row than the stored one. `rows`: accepted rows of these devices."""
        state, different = self._state, different_keys(rows, stored)
        if len(different) or len(state.disputed):
            state.kept = merge(select_keys(state.kept, keys, without=True), select_keys(rows, different))
            state.disputed = np.union1d(np.setdiff1d(state.disputed, keys, assume_unique=True), different)
            self._is_saved = False

    def _accepted(self, table: Table, keys: Numbers) -> TableRows:
        """Return the accepted rows of devices (ascending). `table`: stored content."""
        rows, state = rows_of_devices(table, keys), self._state
        if not len(state.disputed):
            return rows
        return merge(select_keys(rows, state.disputed, without=True), select_keys(state.kept, keys))

    def _accepted_table(self, table: Table) -> Table:
        """Return the accepted rows of all devices. `table`: stored content."""
        return change(table, self._state.kept, rows_of(self._state.disputed)).table

    def _follow_registering(
        self, name: str, before: LoggedList | None, content: LoggedList, changes: Sequence[ChangeRows]
    ) -> bool:
        """Note devices that come into a registering list, and those that leave it; return True if the image has other rows then."""
        self._is_saved = False
        if before is None:
            self._state.since[name], self._compare_at = content.head.generation, float("-inf")
            return False
        self._state.since.setdefault(name, before.head.generation)
        added, removed = _rows_between(name, before, content, changes)
        now = int(self._record.now())
        self._joined.append(added.keys[added.keys < WHOLE])
        if len(added) and added.keys[-1] >= WHOLE:
            self._compare_at = float("-inf")
        ending = added.select(has_ended(added, now + AHEAD_S))
        rows = rows_of_devices(before.table, removed.keys)
        gone = select_keys(removed, rows.keys[rows.column(BEGINS) > now], without=True)
        return self._leave(_keys(ending, gone), self._registered_tables() | {name: content.table})

    def _leave(self, keys: Numbers, tables: Mapping[str, Table]) -> bool:
        """Add a row for each of the devices `keys` that left a registering list, and save them; return True if there are any.

        `tables`: content of each registering list. A device that one of them registers gets no row.
        """
        state, keys = self._state, keys[keys < WHOLE]
        if not len(keys):
            return False
        left = sighted_rows(keys, WAS_LISTED, self._record.today)
        state.left = merge(state.left, left)
        left = left.select(~self._is_registered(keys, tables=tables))
        state.pending = merge(state.pending, left)
        self.changes[LEFT] += len(left)
        self._is_saved = False
        self._save()  # before the copy lacks the devices
        return len(left) > 0

    def _merged_with(self, table: Table, held: Table) -> Table:
        return merged_tables(table, self._accepted_table(held))

    def _registered_after(self, held: Head, stored: Head) -> tuple[str, ...]:
        marks = _marks(held)
        return _mark_texts(marks | {name: max(mark, marks.get(name, mark)) for name, mark in _marks(stored).items()})

    # Sightings

    def _begin_day(self) -> None:
        state, today = self._state, self._record.today
        if today != state.day:
            state.day, state.taken = today, {}
            is_recent = last_days(state.left) >= today - 1
            state.left = state.left.select(is_recent | np.isin(state.left.keys, state.pending.keys))
            self._room = max(FORGOTTEN_MIN, len(self._merged) // FORGOTTEN_SHARE)
            self._compare_at, self._is_saved = float("-inf"), False

    def _add_sighted(self) -> list[tuple[str, Numbers]]:
        """Add the queued sightings to the rows that wait, up to the number of new devices that each peer may add; return the rejected devices by peer."""
        self._begin_day()
        state, rejected = self._state, list[tuple[str, Numbers]]()
        queued, self._sighted = self._sighted, []
        for sighted in queued:
            keys = np.unique(np.frombuffer(sighted.keys, "<u8"))
            is_listed = self._is_registered(keys)
            rejected.append(("", keys[is_listed]))
            keys = keys[~is_listed]
            known = merge(rows_of_devices(self._merged, keys), select_keys(state.pending, keys))
            new, peer = np.setdiff1d(keys, known.keys, assume_unique=True), (sighted.peer, sighted.confirmed)
            room = max(self._settings.new_per_peer - state.taken.get(peer, 0), 0)
            if len(new):
                state.taken[peer] = state.taken.get(peer, 0) + min(room, len(new))
                self._is_saved = False
                self.changes[NEW] += min(room, len(new))
            rejected.append((sighted.peer, new[room:]))
            rows = sighted_rows(np.union1d(known.keys, new[:room]), sighted.day, sighted.day)
            rows = rows.select(~is_covered(rows, known))
            state.pending = merge(state.pending, rows)
            self._is_saved &= not len(rows)
        return rejected

    def _judge_again(self) -> None:
        """Judge the disputed rows by the lists that this node has now, and report those that stay refused."""
        state, content = self._state, self._content(self.merging)
        if len(state.disputed):
            if not self._is_level(content.head):
                return
            stored, before = rows_of_devices(content.table, state.disputed), state.disputed
            first_min = self._record.today - BACK_DAYS if self._record.now() >= state.retry_at else NO_DAY
            removed = select_keys(state.kept, stored.keys, without=True)
            step = LearnedStep(first_min, self._record.today, stored, removed)
            if first_min != NO_DAY:
                state.retry_at, self._is_saved = float("inf"), False
            self._dispute(before, self._judged(state.kept, step), stored)
            self._refresh(before)
        refused = np.setdiff1d(state.disputed, state.pending.keys, assume_unique=True)
        if len(refused) > self.refused:
            self._report("first_seen_refused", level="error", list=self.merging, count=len(refused), detail=REFUSED)
        self.refused = len(refused)

    def _is_level(self, head: Head) -> bool:
        """Return True if this node has the changes of the registering lists that the record names, or lacked them for BEHIND_S: then they are forged."""
        held = self._held()
        marks = {name: mark for name, mark in _marks(head).items() if name in self._registering()}
        if all(name in held and held[name].head.generation >= mark.generation for name, mark in marks.items()):
            self._behind_at = time.monotonic()
            return True
        return self._has_forged_marks

    @property
    def _has_forged_marks(self) -> bool:
        return time.monotonic() - self._behind_at > BEHIND_S

    # Write

    async def _write(self) -> None:
        state, content = self._state, self._content(self.merging)
        if content.head.kind not in {"", FIRST_SEEN}:
            return
        contents = {name: held for name in self._registering() if (held := self._held().get(name)) is not None}
        await self._leave_since_marks(contents, content.head)
        marks = {name: _Mark(each.head.generation, each.head.digest) for name, each in contents.items()}
        is_compared = time.monotonic() >= self._compare_at
        joined, self._joined = self._joined, []
        listed, unseen, ended = await asyncio.to_thread(self._departed, joined, contents if is_compared else None)
        waiting, added = await asyncio.to_thread(self._new_rows, ended)
        update = partial(self._update, added, np.union1d(listed, unseen), marks, is_compared)
        self._writer.content = content
        try:
            made = await self._writer.write(update)
        except BaseException:
            self._joined = [*joined, *self._joined]
            raise
        if is_compared:
            self._compare_at = time.monotonic() + COMPARE_S
        self._room -= len(unseen)
        if made is not None:
            self.changes[LISTED] += len(listed)
            self.changes[UNSEEN] += len(unseen)
        self._is_saved &= not len(state.pending)
        dropped, state.pending = select_keys(state.pending, waiting.keys, without=True).keys, waiting
        await asyncio.to_thread(self._refresh, dropped)
        self._writer.content = empty_content(FIRST_SEEN)

    def _update(self, added: TableRows, removed: Numbers, marks: Mapping[str, _Mark], is_compared: bool, content: LoggedList) -> ListUpdate | None:  # fmt: skip
        """Return the change that the present content needs; None if it needs none."""
        known = _marks(content.head)
        newer = {
            name: mark
            for name, mark in marks.items()
            if name not in known
            or mark.generation > known[name].generation
            or (self._has_forged_marks and mark != known[name])
        }
        present = rows_of_devices(content.table, added.keys)
        disputed = np.intersect1d(self._state.disputed, self._state.pending.keys, assume_unique=True)
        is_lacking = ~is_covered(added, present) | np.isin(added.keys, disputed)
        rows = added.select(is_lacking)
        gone = rows_of_devices(content.table, removed)
        gone = select_keys(gone, rows.keys, without=True)
        if not (len(rows) or len(gone) or (newer and (is_compared or not newer.keys() <= known.keys()))):
            return None
        return ListUpdate(
            what=LEARN, added=rows, removed=rows_of(gone.keys), state={"registered": _mark_texts(known | newer)}
        )

    def _new_rows(self, ended: TableRows) -> tuple[TableRows, TableRows]:
        """Return the rows that wait; and these with `ended` rows of devices whose registration ended, and accepted rows that the store lacks."""
        state, first_min = self._state, self._record.today - BACK_DAYS
        firsts = first_days(state.pending)
        firsts = np.where(firsts == WAS_LISTED, firsts, np.maximum(firsts, first_min))
        waiting = sighted_rows(state.pending.keys, firsts, last_days(state.pending))
        rows = merge(waiting, ended)
        if self._is_level(self._content(self.merging).head):
            rows = merge(rows, select_keys(state.kept, rows.keys, without=True))
        rows = rows.select(~self._is_registered(rows.keys))
        return select_keys(waiting, rows.keys), rows

    async def _leave_since_marks(self, contents: Mapping[str, LoggedList], head: Head) -> None:
        """Note the devices that left a registering list after the change that the record names, and before this node followed the list."""
        for name, mark in _marks(head).items():
            content = contents.get(name)
            if content is None or mark.generation >= self._state.since.get(name, content.head.generation):
                continue
            log = await self._store.log(name, mark.generation)
            entries = entries_until(content.head, log)
            if continues_by_rows(replace(content.head, digest=mark.digest), entries):
                rows = [(await read_rows(self._store, name, entry)).decoded(name) for entry in entries]
                keys = _keys(*(removed for _, removed in rows))
                await asyncio.to_thread(self._leave, keys, self._registered_tables())
            else:
                detail = f"the log of {name} does not reach back to generation {mark.generation}, which this node has not followed"
                self._report("first_seen_gap", level="error", list=name, detail=detail)
            self._state.since[name], self._is_saved = mark.generation, False

    def _departed(
        self, joined: Sequence[Numbers], contents: Mapping[str, LoggedList] | None
    ) -> tuple[Numbers, Numbers, TableRows]:
        """Return the devices on record that are registered now, those that were not seen for long, and rows of those whose registration ended.

        `joined`: devices to compare with the record; `contents`: registering lists with which the whole record is compared.
        """
        table = self._content(self.merging).table
        if contents is None:
            keys = rows_of_devices(table, distinct(np.concatenate([NO_KEYS, *joined]))).keys
            return keys[self._is_registered(keys)], NO_KEYS, NO_ROWS
        now, today, remember = int(self._record.now()), self._record.today, self._settings.remember
        listed, unseen, room = [NO_KEYS], [NO_KEYS], self._room
        for rows in batches(table):
            is_listed = self._is_registered(rows.keys)
            listed.append(rows.keys[is_listed])
            unseen.append(rows.keys[is_unseen(rows, today, remember) & ~is_listed][:room])
            room -= len(unseen[-1])
        ended = NO_ROWS
        for content in contents.values():
            ended = merge(ended, ended_rows(content.table, now + AHEAD_S, now - remember * DAY_S))
        return np.concatenate(listed), np.concatenate(unseen), ended

    # In memory

    def _registered_tables(self) -> dict[str, Table]:
        held = self._held()
        return {name: held[name].table for name in self._registering() if name in held}

    def _is_registered(
        self, keys: Numbers, *, ahead: int = AHEAD_S, tables: Mapping[str, Table] | None = None
    ) -> Numbers:
        """Return a mask of the devices (ascending) that a list registers. A registration that ends within `ahead` seconds does not count."""
        now = int(self._record.now())
        return is_registered((tables or self._registered_tables()).values(), keys, now, now + ahead)

    def _refresh(self, keys: Numbers | None, table: Table | None = None, *, imports: Table | None = None) -> None:
        """Bring the content of the image up to date. `keys`: devices (ascending) whose rows changed; None: all. `table`: stored content."""
        state = self._state
        table = self._content(self.merging).table if table is None else table
        imports = self._content(self.imports).table if imports is None else imports
        if not (len(imports) or len(state.pending) or len(state.disputed)):
            self._merged = table
        elif keys is None:
            self._merged = change(merged_tables(self._accepted_table(table), imports), state.pending, NO_ROWS).table
        elif len(keys):
            rows = merge(self._accepted(table, keys), rows_of_devices(imports, keys))
            rows = merge(rows, select_keys(state.pending, keys))
            self._merged = change(self._merged, rows, rows_of(keys)).table

    async def _switch(self) -> None:
        """Build the image and publish it, if its content has changed."""
        await asyncio.to_thread(self._refresh, self._state.pending.keys)
        head, before = self._head(), self._record.state
        if before is None and not head.entries:
            return
        if before is None or before.content != head.content:
            try:
                image = await asyncio.to_thread(first_seen_image, self._merged)
            except OSError as error:
                self._failed("image", error)
                return
            self._record.replace(head, image)
            self._publish(head, image)
        elif self.first_days:
            return
        self.first_days = await asyncio.to_thread(count_first_days, self._merged)

    @property
    def _has_more(self) -> bool:
        """True if the image has other rows than the store."""
        state = self._state
        return bool(self._content(self.imports).head.entries or len(state.pending) or len(state.disputed))

    def _head(self) -> Head:
        """Return the head of the record in force. Its time is the newest that the node knows; its content digest covers imports and rows that wait."""
        state, head, imports = self._state, self._content(self.merging).head, self._content(self.imports).head
        known = utc_text(datetime.fromtimestamp(state.newest, UTC)) if state.newest else None
        head = replace(head, entries=len(self._merged), devices=len(self._merged), loaded_at=known)
        if not self._has_more:
            return head
        total = sha256(f"{head.content} {imports.content}".encode())
        for rows in (state.pending, state.kept):
            total.update(rows.keys.tobytes() + last_periods(rows).tobytes() + first_days(rows).tobytes())
        return replace(head, content=total.hexdigest(), digest=total.hexdigest())

    def _save(self) -> None:
        """Write the part of the record that the store lacks to the disk."""
        if self._is_saved:
            return
        try:
            self._state.save(self._path)
        except OSError as error:
            self._failed("copy_io", error)
        else:
            self._is_saved = True

    # Clock

    def _now(self) -> datetime:
        """Return the time of a change: not before the newest time of the store, so that a wrong clock does not set it back."""
        return datetime.fromtimestamp(max(self._record.now(), self._record.known_time), UTC)

    def _note_time(self, seconds: float) -> None:
        self._record.known_time = max(self._record.known_time, seconds)


REFUSED = (
    "rows of the store break a bound of first sightings and are left out: see eir history, then use eir first-seen undo"
)


def _keys(*rows: TableRows) -> Numbers:
    return distinct(np.concatenate([NO_KEYS, *(each.keys for each in rows)]))


def _rows_between(
    name: str, before: LoggedList | None, content: LoggedList, changes: Sequence[ChangeRows]
) -> tuple[TableRows, TableRows]:
    """Return the rows that lead from one content to the next: those of the changes if they are stored, otherwise by a comparison."""
    if before is None:
        return content.table.rows(), NO_ROWS
    if leads_by_rows(before, content, changes):
        return fold([each.decoded(name) for each in changes])
    return difference(before.table, content.table)

"""Loader of a release: verifies its files, reads the rows, and writes the change of its list.

eir.lists.releases.release verifies signatures and manifest, eir.lists.changes.data_files size and digest of all files before the first row is
read. The list in force stays until one commit replaces it. A load blocks the calling thread while it reads, so it needs a process of its own.
The caller records a rejection (`rejection` of eir.lists.sources.release_result).
"""

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from eir.errors import GenerationConflict, ReleaseRefused, StoreError
from eir.lists.changes.data_files import BUILD, VERIFY, WRITE, read_release
from eir.lists.changes.merged_rows import ended_before, has_other, with_days, with_reasons
from eir.lists.log.change import Change, Head, SerialMark, utc_text
from eir.lists.log.reader import LoggedList, empty_content
from eir.lists.log.store import LogStore
from eir.lists.log.writer import ComputedUpdate, ListUpdate, ListWriter
from eir.lists.record.reasons import Reasons
from eir.lists.record.settings import LOAD_MEMORY, TYPES, ListSettings
from eir.lists.releases.release import (
    DELTA,
    Manifest,
    VerifiedRelease,
    check_serial,
    check_times,
    naming_release,
    verify_release,
)
from eir.lists.rows.delivered import Done, Progress, sum_progress
from eir.lists.rows.listed_rows import check_sides
from eir.lists.rows.turnover import exceeded_by, force_text, turnover
from eir.lists.table.columns import NO_COLUMNS, NO_ROWS, TableRows, block_numbers, distinct, matches, rows_of
from eir.lists.table.table import EMPTY, Table, TableEffect, device_count, merge, replacement, table_of

if TYPE_CHECKING:
    from eir.lists.rows.reader import Tally

NO_MARK: SerialMark = (0, 0)


class ReleaseRows(NamedTuple):
    """Rows of a release, with indexes in a reason table of their own."""

    added: TableRows = NO_ROWS
    """Added rows of a delta."""
    removed: TableRows = NO_ROWS
    table: Table | None = None
    """Content of a full release."""
    texts: tuple[str, ...] = ()
    """Reason texts by index."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """Result of a load or of a dry run."""

    list: str
    holds: str
    """Kind of the list."""
    kind: str
    serial: int
    rows: int
    entries: int
    devices: int
    entries_before: int
    devices_before: int
    bad_rows: int
    bad: tuple[str, ...]
    """Complaints about the first bad rows, as in Tally."""
    come: int
    """Number of identifiers that were not in the list before; a whole TAC counts as 1,000,000."""
    gone: int
    """Number of identifiers that are no longer in the list."""
    lifted: tuple[str, ...]
    """Limits that the release exceeds and that `force` lifted: `shrink`, `growth`, `range`."""
    seconds: Mapping[str, float]
    """Duration of each stage in seconds."""
    change: Change | None
    """Stored change; None for a dry run."""
    head: Head | None
    """Head of the list after the load; None for a dry run."""

    def as_json(self) -> dict[str, object]:
        """Return the report of the load as a JSON document for scripts."""
        names = [part.name for part in fields(self) if part.name not in {"change", "head"}]
        document = {name: getattr(self, name) for name in names}
        return document | {"seconds": {stage: round(duration, 3) for stage, duration in self.seconds.items()}}

    def as_text(self) -> str:
        """Format the report of the load in one line, followed by one line for each bad row."""
        parts = [f"{self.list} {self.kind} {self.serial}: {self.entries:,} entries, before {self.entries_before:,}"]
        parts.append(turnover(self.holds, self.come, self.gone))
        if self.lifted:
            parts.append(force_text(self.lifted))
        if self.bad_rows:
            parts.append(f"{self.bad_rows:,} bad rows left out")
        parts.append(f"{sum(self.seconds.values()):.1f} s")
        return "\n  ".join(("; ".join(parts), *self.bad))


def release_update(
    release: VerifiedRelease, rows: ReleaseRows, settings: ListSettings, mark: SerialMark = NO_MARK
) -> Callable[[LoggedList], ListUpdate]:
    """Return the function that computes the update of a list by a verified release.

    The content after the update depends only on the content before and on the release, so that all EIRs and the publisher's index have the same
    content digest. So rows that have ended are judged at the time of issue.

    Args:
        release: verified release.
        rows: rows of the release.
        settings: settings of the list.
        mark: highest mark of the list that was ever in force on this node, independent of the store.

    The function raises ReleaseRefused: `serial`, `serial_step` or `base` if the release does not follow the present content.
    """
    manifest = release.manifest

    @lru_cache(maxsize=1)  # after a conflict the same table is returned, so that its staged base is used again
    def full(present_texts: Sequence[str]) -> ListUpdate:
        table, reasons = with_reasons(rows.table or EMPTY, rows.texts, present_texts)
        if has_other(table):
            table, reasons = with_reasons(rows.table or EMPTY, rows.texts, ())
        return ListUpdate(what="load", table=table, reasons=reasons)

    def delta(content: LoggedList) -> ListUpdate:
        if content.head.kind != settings.kind:
            raise ReleaseRefused(
                "base", f"the list in force is a list of {content.head.kind}; publish a full release of {settings.kind}"
            )
        added, reasons = with_reasons(rows.added, rows.texts, content.head.reasons)
        ended = ended_before(content.table, added, int(manifest.issued.timestamp()))
        added, removed = with_days(added, ended), merge(rows.removed, ended)
        if settings.kind == TYPES:
            removed = merge(removed, _other_types(content.table, added))
        return ListUpdate(what="load", added=added, removed=removed, reasons=reasons)

    def make(content: LoggedList) -> ListUpdate:
        check_follows(manifest, settings, content.head, mark)
        resets, _ = max(mark, content.head.mark)
        update = delta(content) if rows.table is None else full(content.head.reasons)
        state = {
            "kind": settings.kind, "serial": manifest.serial, "highest_serial": manifest.serial, "serial_resets": resets,
            "release": release.digest, "issued": utc_text(manifest.issued), "expires": utc_text(manifest.expires), "signers": release.signers,
        }  # fmt: skip
        return replace(update, state=state)

    return make


def check_follows(manifest: Manifest, settings: ListSettings, head: Head, mark: SerialMark) -> None:
    """Reject a release that does not follow the present content of its list. `mark`: as for `release_update`.

    Raises:
        ReleaseRefused: `serial`, `serial_step`, `base`.
    """
    _, highest = max(mark, head.mark)
    current = head.serial if head.generation else None
    check_serial(manifest, current=current, highest=highest, step_max=settings.serial_step_max)


def _other_types(table: Table, added: TableRows) -> TableRows:
    """Return the rows of a list of device types that give the TACs of added rows another type, because a TAC has one type at a time."""
    present = table.rows(distinct(block_numbers(added.keys)))
    tacs = rows_of(added.keys)
    is_changed = matches(TableRows(present.keys, NO_COLUMNS), tacs) >= 0
    return present.select(is_changed & (matches(present, added) < 0))


def _least_effect(devices: int, table: Table) -> TableEffect:
    """Return the effect of a whole content on a damaged list. Only the number of its devices is known."""
    more = device_count(table) - devices
    return replacement(EMPTY, table)._replace(devices_added=max(more, 0), devices_removed=max(-more, 0))


@dataclass(slots=True)
class ReleaseLoader:
    """Load of one release into its list: its settings, and the duration of each stage."""

    lists: Mapping[str, ListSettings]
    store: LogStore
    who: str
    """User and host, for the change."""
    now: datetime
    marks: Mapping[str, SerialMark] = field(default_factory=dict)
    """Highest mark of each list that was ever in force on this node, independent of the store."""
    force: bool = False
    """Lift the limits on shrinking, growth and ranges, but no other check."""
    dry_run: bool = False
    """Write nothing to the store; do everything else."""
    save_mark: Callable[[str, SerialMark], None] = lambda *_: None
    """Function that stores the mark of a list on this host. It is called after the write, before the load returns."""
    progress: Progress = lambda *_: None
    memory_max: int = LOAD_MEMORY
    """Memory in bytes for the rows; a release that needs more is rejected before its first row is read."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Duration of each finished stage."""

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Done]:
        """Measure the duration of a stage (the `with` block). Yield a function that the block calls with the size of each completed part."""
        began = time.monotonic()
        yield sum_progress(self.progress, name, total)
        self.seconds[name] = time.monotonic() - began
        self.progress(name, total, total)

    async def verify_and_load(self, manifest: Path) -> LoadReport:
        """Verify and load the release of this manifest. Raises the errors of `load`."""
        with self.stage(VERIFY, 1):
            release = verify_release(manifest, self.lists, now=self.now)
        return await self.load(release, manifest.parent)

    async def load(self, release: VerifiedRelease, folder: Path) -> LoadReport:
        """Load a verified release whose data files are in `folder`.

        Raises:
            ReleaseRefused: if the release is rejected; the list in force is unchanged.
            StoreError: if the store fails.
        """
        name = release.manifest.list
        gc.disable()  # the collector would scan the objects of polars repeatedly and free nothing
        try:
            with naming_release(release.manifest, release.digest):
                try:
                    return await self._load(release, folder)
                except GenerationConflict:
                    detail = f"{name} was changed by another load or command meanwhile; nothing was written, see eir history {name}"
                    raise ReleaseRefused("conflict", detail) from None
        finally:
            gc.enable()

    async def _load(self, release: VerifiedRelease, folder: Path) -> LoadReport:
        manifest = release.manifest
        settings = self.lists[manifest.list]
        check_times(manifest, self.now)
        writer = ListWriter(
            self.store, settings.name, settings.kind, self.who, keep=settings.keep, now=lambda: self.now
        )
        mark = self.marks.get(manifest.list, NO_MARK)
        content, is_damaged = await self._present(writer, manifest)
        check_follows(manifest, settings, content.head, mark)  # before the files are read
        rows, tally = self._read(manifest, folder, settings)
        make = release_update(release, rows, settings, mark)
        seen: list[ComputedUpdate] = []

        def complete(computed: ComputedUpdate) -> ListUpdate:
            update = self._completed(release, settings, computed, tally)
            seen[:] = [computed._replace(update=update)]
            return update

        with self.stage(BUILD if self.dry_run else WRITE, 1):
            change = None
            update = make(content) if is_damaged else ListUpdate(what="load")
            if update.table is not None:
                effect = _least_effect(content.head.devices, update.table)
                update = complete(ComputedUpdate(content, update, effect, int(self.now.timestamp())))
                if not self.dry_run:
                    change = await writer.overwrite(content.head, effect.table, update)
            elif self.dry_run:
                await writer.compute(make, complete)
            else:
                change = await writer.write(make, complete)
        if change is None:
            return self._report(manifest, settings, seen[0], tally)
        head = writer.content.head
        self.save_mark(manifest.list, head.mark)
        return self._report(manifest, settings, seen[0], tally, change=change, head=head)

    async def _present(self, writer: ListWriter, manifest: Manifest) -> tuple[LoggedList, bool]:
        """Read the present content of a list; return also if it is damaged. Damaged content counts as empty, so that a full release can replace it.

        Raises:
            StoreError: if the store fails, or a delta builds on damaged content (`corrupt`).
        """
        try:
            return await writer.catch_up(), False
        except StoreError as error:
            if error.cause != "corrupt" or manifest.kind == DELTA:
                raise
        head = (await self.store.heads())[manifest.list]
        return replace(empty_content(head.kind), head=head), True

    def _read(self, manifest: Manifest, folder: Path, settings: ListSettings) -> tuple[ReleaseRows, "Tally"]:
        """Verify and read the data files; return the rows of the release, and the counts of good and bad rows."""
        from eir.lists.rows.reader import Tally  # noqa: PLC0415  # only a load needs polars, and the server imports this module

        reasons = Reasons()
        tally = Tally(bad_rows_max=settings.bad_rows_max, range_tacs_max=settings.range_tacs_max, dates=settings.dates)
        by_role = read_release(manifest, folder, settings, reasons, tally, stage=self.stage, memory_max=self.memory_max)
        if tally.wide and not self.force:
            limit = f"ranges over {settings.range_tacs_max} TACs (range_tacs_max); if they are intended, load them with --force"
            raise ReleaseRefused("range", "\n".join((limit, *tally.wide)))
        with self.stage(BUILD, 1):
            added, *removed = (rows.pop() for rows in by_role)
            if manifest.kind == DELTA:
                check_sides(added, removed[0])
                return ReleaseRows(added, removed[0], texts=reasons.texts), tally
            return ReleaseRows(table=table_of(added), texts=reasons.texts), tally

    def _completed(
        self, release: VerifiedRelease, settings: ListSettings, computed: ComputedUpdate, tally: "Tally"
    ) -> ListUpdate:
        """Verify the limits on the change of a list, and complete its record.

        Raises:
            ReleaseRefused: `shrink`, `growth`.
        """
        head, effect = computed.content.head, computed.effect
        come, gone = effect.devices_added, effect.devices_removed
        passed = exceeded_by(settings, computed) if head.generation else {}
        if passed and not self.force:
            reason, excess = next(iter(passed.items()))
            raise ReleaseRefused(reason, f"{excess}; if this is intended, load it with --force")
        lifted = (*passed, *["range"] * bool(tally.wide))
        parts = [f"{len(effect.table)} entries, before {head.entries}", turnover(settings.kind, come, gone)]
        if tally.bad:
            parts.append(f"{tally.bad} bad rows left out")
        if self.force:
            parts.append(force_text(lifted))
        parts.append(f"signed by {', '.join(release.signers)}")
        return replace(computed.update, lifted=lifted, detail="; ".join(parts))

    def _report(
        self, manifest: Manifest, settings: ListSettings, computed: ComputedUpdate, tally: "Tally", *,
        change: Change | None = None, head: Head | None = None,
    ) -> LoadReport:  # fmt: skip
        before, effect = computed.content.head, computed.effect
        return LoadReport(
            list=manifest.list, holds=settings.kind, kind=manifest.kind, serial=manifest.serial, rows=sum(file.rows for file in manifest.files),
            entries=len(effect.table), devices=device_count(effect.table), entries_before=before.entries, devices_before=before.devices,
            bad_rows=tally.bad, bad=tuple(tally.complaints),
            come=effect.devices_added, gone=effect.devices_removed, lifted=computed.update.lifted, seconds=self.seconds, change=change, head=head,
        )  # fmt: skip
